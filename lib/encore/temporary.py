"""Temporary folders of this process, all inside one folder whose name identifies its owner.

A process that is killed cannot clean up after itself. The next run on this machine that has work to do then removes its
folder, `encore-<machine>-<pid>-<start>-...` in TMPDIR.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import shutil
import socket
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

_NAME = re.compile(r"encore-(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)-.+")


@lru_cache(maxsize=1)
def machine() -> str:
    """A digest of host, boot and PID namespace, equal for processes that can see each other's process ids."""
    parts = [socket.gethostname()]
    # on systems other than Linux, only the host name is used
    with suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return hashlib.blake2b(" ".join(parts).encode(), digest_size=4).hexdigest()


def start_of(pid: int) -> int | None:
    """When a process started, in hundredths of a second since 1970; None if no process has that id."""
    import psutil

    try:
        return round(psutil.Process(pid).create_time() * 100)
    except psutil.Error:
        return None


def is_running(pid: int, start: int) -> bool:
    """Whether a process of this machine is still running, as opposed to another process that reuses its id."""
    found = start_of(pid)
    return found is not None and abs(found - start) <= 100


def new_folder(kind: str) -> str:
    """Create an empty folder for files of one kind; it is removed when this process ends."""
    return tempfile.mkdtemp(prefix=f"{kind}-", dir=_own())


@lru_cache(maxsize=1)
def _own() -> str:
    pid = os.getpid()
    folder = tempfile.mkdtemp(prefix=f"encore-{machine()}-{pid}-{start_of(pid) or 0}-")
    atexit.register(remove_own)
    return folder


def remove_own() -> None:
    """Remove the temporary folders of this process, if it has any; called when the process ends."""
    if _own.cache_info().currsize and f"-{os.getpid()}-" in _own():
        shutil.rmtree(_own(), ignore_errors=True)


def remove_abandoned() -> tuple[int, int]:
    """Remove folders left by ended processes of this machine; returns how many there were and their total bytes."""
    count = size = 0
    for entry in os.scandir(tempfile.gettempdir()):
        found = _NAME.fullmatch(entry.name)
        if found is None or found["machine"] != machine() or not entry.is_dir(follow_symlinks=False):
            continue
        # leave the folders of other users alone
        if not is_running(int(found["pid"]), int(found["start"])) and entry.stat().st_uid == os.getuid():
            size += sum(_size(os.path.join(path, name)) for path, _, names in os.walk(entry.path) for name in names)
            shutil.rmtree(entry.path, ignore_errors=True)
            count += 1
    return count, size


def _size(path: str) -> int:
    with suppress(OSError):
        return os.lstat(path).st_size
    return 0
