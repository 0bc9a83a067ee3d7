"""The git commit of the code, from a checkout or from the application archive."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SOURCES = ("lib", "jobs", "conf", "deploy/requirements-emr.txt", "deploy/package.py")
"""The files that runs and the archive use: changes to other files do not make the commit dirty."""

PACKED = Path(__file__).parents[1] / "COMMIT"
"""The file that stores the commit in the archive, which is not a git checkout."""

CHECKOUT = Path(__file__).resolve().parents[3]
"""The root of the checkout that contains this module."""


def commit_of(root: Path = CHECKOUT) -> str:
    """The commit of the code in a checkout at `root`, or in the archive that contains this module.

    This is ENCORE_GIT_COMMIT if it is set, else the commit stored in the archive, else git's HEAD, with `-dirty` if
    SOURCES differ from it or contain new files; `unknown` without git.
    """
    given = os.environ.get("ENCORE_GIT_COMMIT")
    if given:
        return given
    if PACKED.is_file():
        return PACKED.read_text().strip()
    try:
        head = _git(root, "rev-parse", "HEAD")
        # a user's git configuration may hide untracked files
        changed = _git(root, "status", "--porcelain", "--untracked-files=all", "--", *SOURCES)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{head}-dirty" if changed else head


def _git(root: Path, *arguments: str) -> str:
    # read without taking a lock, which could make a git command of the user fail
    command = ["git", "--no-optional-locks", *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()
