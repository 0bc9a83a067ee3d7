"""Where compiled loops are kept, and that one process compiles them while others wait.

Importing numba takes about half a second and compiling much longer, so modules of loops are imported where they are
called, within `prepared`. What was compiled is kept in files. They lie in NUMBA_CACHE_DIR where that is set, in the
package's own __pycache__ folders where those can be written, and else in a folder of this user under the system's
folder for temporary files.
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
_OWN = Path(__file__).parent / "__pycache__"


def cache_folder() -> Path:
    """Where compiled loops are kept; it exists and can be written, or it is a temporary one of this process."""
    named = os.environ.get(_VARIABLE)
    shared = Path(tempfile.gettempdir()) / f"encore-compiled-{os.getuid()}"
    for folder in [Path(named)] if named else [_OWN, shared]:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        # another user could put code of his own into a folder that was made before
        if os.access(folder, os.W_OK | os.X_OK) and (folder != shared or folder.stat().st_uid == os.getuid()):
            return folder
    return Path(tempfile.mkdtemp(prefix="encore-compiled-"))


def is_kept(module: str) -> bool:
    """Whether something that was compiled of a module is kept, so that loading it is quick."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return False
    source, folder = Path(spec.origin), cache_folder()
    places = source.parent.glob("__pycache__/*.nbi") if folder == _OWN else folder.rglob("*.nbi")
    return any(place.name.startswith(f"{source.stem}.") for place in places)


@contextmanager
def prepared() -> Iterator[None]:
    """Within it loops may be imported and called first: what is compiled goes where it can be kept, and other
    processes of this machine wait, to find it there."""
    folder = cache_folder()
    if folder != _OWN:
        # numba's own choice is the __pycache__ of each module
        os.environ[_VARIABLE] = str(folder)
        if "numba" in sys.modules:
            sys.modules["numba"].config.CACHE_DIR = str(folder)
    with locked(folder / "encore-compile.lock"):
        yield


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time."""
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
