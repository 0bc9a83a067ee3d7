"""The entry of the container: `python -m encore.serving`, with settings from environment variables.

Exit codes are those of `encore`: see `encore.errors`.
"""

from __future__ import annotations

import os
import sys

# before NumPy is imported: a thread for each core makes small products many times as expensive
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from encore.errors import EncoreError
from encore.serving import log
from encore.serving.settings import Settings


def main() -> int:
    """Serve until SIGTERM; returns the exit code."""
    log.configure()
    try:
        settings = Settings.of_environment()
        from encore.serving.server import run
        from encore.serving.sources import create

        run(create(settings), settings)
    except EncoreError as error:
        sys.stderr.write(f"encore: {error}\n" + (f"        {error.remedy}\n" if error.remedy else ""))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
