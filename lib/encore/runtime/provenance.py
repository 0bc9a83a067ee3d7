"""The git commit of the code, in a checkout or in the application archive."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SOURCES = ("lib", "jobs", "conf", "deploy/requirements-emr.txt", "deploy/package.py")
"""What a run and the archive consist of: changes to other files do not make the commit dirty."""

PACKED = Path(__file__).parents[1] / "COMMIT"
"""The file with the commit in the archive, which is not a git checkout."""

CHECKOUT = Path(__file__).resolve().parents[3]
"""The root of the checkout that this module is in."""


def commit_of(root: Path = CHECKOUT) -> str:
    """The commit of the code in a checkout at `root`, or of the archive that this module was packed into.

    ENCORE_GIT_COMMIT where it is set, else what the archive says, else git's HEAD, with `-dirty` where SOURCES differ
    from it or hold new files; `unknown` without git.
    """
    given = os.environ.get("ENCORE_GIT_COMMIT")
    if given:
        return given
    if PACKED.is_file():
        return PACKED.read_text().strip()
    try:
        head = _git(root, "rev-parse", "HEAD")
        # a user's own settings may hide new files
        changed = _git(root, "status", "--porcelain", "--untracked-files=all", "--", *SOURCES)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{head}-dirty" if changed else head


def _git(root: Path, *arguments: str) -> str:
    # a question takes no lock, at which somebody's own git would fail
    command = ["git", "--no-optional-locks", *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()
