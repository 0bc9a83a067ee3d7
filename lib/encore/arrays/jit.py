"""The on-disk cache of compiled loops: one process compiles while the others wait.

Importing numba takes about half a second, and compiling takes much longer, so modules of compiled loops are imported
only where they are called, inside `compilation_cache`. The cache files are in NUMBA_CACHE_DIR if that is set, otherwise
in the package's __pycache__ folders if those are writable, otherwise in a per-user folder in the system's temporary
directory.
"""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

_VARIABLE = "NUMBA_CACHE_DIR"
_PACKAGE_CACHE = Path(__file__).parent / "__pycache__"


def cache_folder() -> Path:
    """The folder of compiled loops: an existing writable one, or a new temporary one for this process."""
    named = os.environ.get(_VARIABLE)
    shared = Path(tempfile.gettempdir()) / f"encore-compiled-{os.getuid()}"
    for folder in [Path(named)] if named else [_PACKAGE_CACHE, shared]:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        # a shared folder that another user created could contain that user's code
        if os.access(folder, os.W_OK | os.X_OK) and (folder != shared or folder.stat().st_uid == os.getuid()):
            return folder
    return Path(tempfile.mkdtemp(prefix="encore-compiled-"))


def is_cached(module: str) -> bool:
    """Whether the cache has compiled code for a module, so that loading it is quick."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return False
    source, folder = Path(spec.origin), cache_folder()
    files = source.parent.glob("__pycache__/*.nbi") if folder == _PACKAGE_CACHE else folder.rglob("*.nbi")
    return any(file.name.startswith(f"{source.stem}.") for file in files)


@contextmanager
def compilation_cache() -> Iterator[None]:
    """Import and first call compiled loops inside this context.

    Compiled code goes into the cache; other processes on this machine wait, and then find it there. Without numba, it
    does nothing: the loops of the scorer's container were compiled when it was built.
    """
    if find_spec("numba") is None:
        yield
        return
    folder = cache_folder()
    if folder != _PACKAGE_CACHE:
        # numba's default is the __pycache__ of each module
        os.environ[_VARIABLE] = str(folder)
        if "numba" in sys.modules:
            sys.modules["numba"].config.CACHE_DIR = str(folder)
    with file_lock(folder / "encore-compile.lock"):
        yield


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, which is created if missing: one process at a time."""
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
