"""Limit the memory of a command and all its child processes, with a Linux control group."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.figures import BenchError

_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


@contextmanager
def in_cgroup(limit: int | None) -> Iterator[list[str]]:
    """Yields a command prefix that limits the command and its children to `limit` bytes, page cache included.

    The prefix is empty for None. BenchError if this user may not create control groups.
    """
    if limit is None:
        yield []
        return
    v1 = (_V1 / "memory.limit_in_bytes").exists()
    group = (_V1 if v1 else _V2) / f"encore-bench-{os.getpid()}"
    file = "memory.limit_in_bytes" if v1 else "memory.max"
    try:
        group.mkdir()
        (group / file).write_text(str(limit))
        if not v1:
            (group / "memory.swap.max").write_text("0")
    except OSError as error:
        raise BenchError(f"{group}: cannot create a memory control group: {error.strerror}; root can") from error
    try:
        # the shell enters the group, then is replaced by the command
        yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
    finally:
        group.rmdir()


def parse_size(text: str) -> int:
    """Parse a size such as 8g or 512m into bytes. BenchError if it is malformed."""
    units = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
    number, unit = text[:-1], text[-1:].lower()
    if unit not in units or not number.isdecimal():
        raise BenchError(f"a size such as 8g or 512m expected, {text!r} found")
    return int(number) * units[unit]
