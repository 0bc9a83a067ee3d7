"""The compiled loops, imported when they are needed, and compiled once a machine.

Importing numba takes about half a second and compiling the loops about half a minute, so commands that search
for nothing must do neither: no module here imports numba before `loops` is called. What was compiled is kept in
files. They lie in NUMBA_CACHE_DIR where that is set, in the package's own __pycache__ where that can be written,
and else in a folder of this user under the system's folder for temporary files.
"""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np

_VARIABLE = "NUMBA_CACHE_DIR"


def cache_folder() -> Path:
    """Where compiled loops are kept; it exists and can be written, or it is a temporary one of this process."""
    named = os.environ.get(_VARIABLE)
    own = Path(__file__).parent / "__pycache__"
    shared = Path(tempfile.gettempdir()) / f"encore-compiled-{os.getuid()}"
    for folder in [Path(named)] if named else [own, shared]:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        # another user could put code of his own into a folder that was made before
        if os.access(folder, os.W_OK | os.X_OK) and (folder != shared or folder.stat().st_uid == os.getuid()):
            return folder
    return Path(tempfile.mkdtemp(prefix="encore-compiled-"))


@lru_cache(maxsize=1)
def loops() -> ModuleType:
    """`encore.similarity.loops`, with everything in it compiled; other processes of this machine wait for the first."""
    folder = cache_folder()
    if folder != Path(__file__).parent / "__pycache__":
        os.environ[_VARIABLE] = str(folder)
        if "numba" in sys.modules:
            sys.modules["numba"].config.CACHE_DIR = str(folder)
    with _locked(folder / "encore-compile.lock"):
        from encore.similarity import loops as module

        _compile(module)
    return module


def warm_up() -> None:
    """Compile everything that a search needs, or wait until another process has, so that a first search is as
    quick as any."""
    loops()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(module: ModuleType) -> None:
    """Call what `tree` calls, with arguments of the types it has there."""
    from encore.similarity.tree import Tree, search_with

    vectors = np.eye(3, 2, dtype=np.float32)
    tree = Tree.built_with(module, np.arange(3, dtype=np.int32), vectors)
    search_with(module, vectors, tree, 1)
