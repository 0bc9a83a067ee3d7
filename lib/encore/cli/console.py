"""Where commands print: results on standard output, messages on standard error."""

from __future__ import annotations

import sys

from rich.console import Console

# without a terminal there is no width to fit: grids are not folded in files and pipes
out = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True, soft_wrap=True)
