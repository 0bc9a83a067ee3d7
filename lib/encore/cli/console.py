"""Where commands print: results on standard output, messages on standard error."""

from __future__ import annotations

import sys

from rich.console import Console

# files and pipes have no width to fit, so grids are not wrapped there
out = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True, soft_wrap=True)
