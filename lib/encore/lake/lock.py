"""The lock of a lake: one pipeline run writes at a time, and says who it is.

The lock is one small file, `_lock`, beside the tables. It lists the processes that hold it. All of them belong to one
pipeline run, so jobs that a scheduler starts side by side share the lock of their run. Each process renews its own
entry while it lives and removes it at the end; an entry whose lease has ended counts for nothing. The file itself
stays, with an empty list, so that every change is a compare-and-swap: on S3 a conditional put (If-None-Match,
If-Match), locally a rewrite of the file under `flock`. A holder that died on this machine is noticed at once, one that
died elsewhere when its lease ends.

The lock keeps runs from getting in each other's way. What keeps rows right even without it is that every commit names
the version it was planned on (transaction.py).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import shlex
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import structlog

from encore.config import Config, S3Config
from encore.errors import EncoreError, LakeError, TransientError
from encore.lake.filesystem import is_s3, no_conditional_puts, read_versioned, s3_client, write_if
from encore.log import redact

NAME = "_lock"
"""The lock's file in the lake. No table has a name that begins with an underscore."""

LEASE_SECONDS = 120.0
"""How long a process that no longer renews its entry still counts as a holder."""

RENEW_SECONDS = 30.0
"""How often an entry is renewed: three attempts may fail before the lease ends."""

_ATTEMPTS = 20
"""How often a swap that another process got ahead of is tried again."""

_GUARD_SECONDS = 10.0
"""How long to wait for another process of this machine that is rewriting the file, which takes it a millisecond."""

log = structlog.get_logger("encore.lake.lock")


def _machine() -> str:
    """What two processes have in common that see each other's process ids: host, boot and PID namespace."""
    parts = [socket.gethostname()]
    # on anything but Linux the host's name has to do
    with suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


@dataclass(frozen=True)
class Holder:
    """A process that holds the lock. Times are seconds since 1970, by the clock of the server where the lake is in S3;
    `token` is the process's own, `machine` says whose process ids `pid` is one of."""

    run_id: str
    token: str
    host: str
    machine: str
    pid: int
    since: float
    until: float
    command: str

    def is_live(self, now: float) -> bool:
        """Whether its lease has not ended and its process, where that can be seen from here, is there."""
        return now < self.until and not (self.machine == _machine() and not _is_running(self.pid))

    def __str__(self) -> str:
        """Who it is, for a message."""
        return (
            f"run {self.run_id} on {self.host} (process {self.pid}) since {_when(self.since)}, "
            f"lease until {_when(self.until)}: {self.command}"
        )


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _when(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


class Cell(Protocol):
    """A place for a short text that is only ever changed by compare-and-swap."""

    where: str

    def read(self) -> tuple[str, str, float]:
        """The text, empty where there is none; its version, empty where there is none; the time, seconds since 1970."""

    def swap(self, version: str, text: str) -> bool:
        """Replace the text of a version; False, and nothing is changed, where it is another one by now."""


class LocalCell:
    """A file that is rewritten under `flock`, for a lake on a file system of this machine's."""

    def __init__(self, path: str) -> None:
        self.where = path

    def read(self) -> tuple[str, str, float]:
        """See Cell. LakeError where it cannot be read."""
        try:
            with self._guarded(os.O_RDONLY) as handle:
                text = _read_all(handle)
        except FileNotFoundError:
            text = ""
        return text, text, time.time()

    def swap(self, version: str, text: str) -> bool:
        """See Cell. LakeError where it cannot be written."""
        with self._guarded(os.O_RDWR | os.O_CREAT) as handle:
            if _read_all(handle) != version:
                return False
            try:
                # a process that is killed in between leaves the new text and the end of the old one: see `_holders`
                os.pwrite(handle, text.encode(), 0)
                os.ftruncate(handle, len(text.encode()))
            except OSError as error:
                raise self._unwritable(error) from error
        return True

    @contextmanager
    def _guarded(self, flags: int) -> Iterator[int]:
        try:
            if flags & os.O_CREAT:
                os.makedirs(os.path.dirname(self.where), exist_ok=True)
            handle = os.open(self.where, flags, 0o644)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not flags & os.O_CREAT:
                raise
            raise self._unwritable(error) from error
        try:
            self._flock(handle, exclusive=bool(flags & os.O_RDWR))
            yield handle
        finally:
            # which lets the guard go, too
            os.close(handle)

    def _flock(self, handle: int, *, exclusive: bool) -> None:
        until = time.monotonic() + _GUARD_SECONDS
        while True:
            try:
                fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise TransientError(
                        f"{self.where}: another process has been writing it for {_GUARD_SECONDS:.0f} s",
                        remedy="end the process that has it open (`lsof` or `fuser` name it), then try again",
                    ) from error
                time.sleep(0.005)
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise self._unwritable(error) from error
                raise LakeError(
                    f"{self.where}: this file system cannot lock files ({error.strerror}), so two runs could write "
                    "the lake at once",
                    remedy="choose a lake.path on a file system that has flock, or in S3",
                ) from error

    def _unwritable(self, error: OSError) -> LakeError:
        return LakeError(
            f"the lake {os.path.dirname(self.where)} cannot be written: {NAME}: {error.strerror}",
            remedy="choose another lake.path or fix its permissions",
        )


def _read_all(handle: int) -> str:
    return os.pread(handle, 1 << 20, 0).decode(errors="replace")


class S3Cell:
    """An object in S3 that is replaced by conditional puts; its version is the entity tag."""

    def __init__(self, url: str, s3: S3Config) -> None:
        self.where, self._s3 = url, s3

    @cached_property
    def _client(self) -> Any:
        return s3_client(self._s3)

    def read(self) -> tuple[str, str, float]:
        """See Cell: the time is the server's, which all machines share."""
        data, etag, now = read_versioned(self._client, self.where)
        return data.decode(errors="replace"), etag, now

    def swap(self, version: str, text: str) -> bool:
        """See Cell. LakeError where the server has no conditional puts."""
        done = write_if(self._client, self.where, text.encode(), version)
        # once in a lake's life, when the object is made: a server that ignores conditions would lock nothing
        if done and not version and any(self._put_anyway(text, wrong) for wrong in ("", f'"{uuid.uuid4().hex}"')):
            raise no_conditional_puts(self.where, "it ignores their conditions")
        return done

    def _put_anyway(self, text: str, wrong: str) -> bool:
        return write_if(self._client, self.where, text.encode(), wrong)


class LakeLock:
    """The lock of one lake as one process of a pipeline run sees it: taken on first need, renewed by a thread of its
    own, released at the end.

    Processes with the same run id share it. `take_over` takes it from whoever holds it.
    """

    def __init__(self, config: Config, run_id: str, *, take_over: bool = False) -> None:
        path = config.lake.path.removeprefix("file://").rstrip("/")
        self._lake, self._run_id, self._take_over = path, run_id, take_over
        self._token = uuid.uuid4().hex
        self._cell: Cell
        if is_s3(path):
            self._cell = S3Cell(f"{path}/{NAME}".replace("s3a://", "s3://", 1), config.s3)
        else:
            self._cell = LocalCell(os.path.join(os.path.abspath(path), NAME))
        self._lost: str | None = None
        self._over = threading.Event()
        self._renewer: threading.Thread | None = None

    def take(self) -> bool:
        """Take the lock; False where this process has it already.

        What was read of the lake before may be out of date once this returns True. Raises TransientError, at once,
        where another run holds it, and LakeError where the lake cannot hold a lock.
        """
        if self._renewer is not None:
            self.check()
            return False
        gone = self._swap(self._joined)
        for holder in gone:
            if self._take_over:
                log.warning("lock_taken_over", holder=str(holder), why="--take-over")
            else:
                log.warning("lock_taken_over", holder=str(holder), why="it is gone, or its lease has ended")
        self._over.clear()
        self._renewer = threading.Thread(target=self._keep, name="lake-lock", daemon=True)
        self._renewer.start()
        return True

    def _joined(self, holders: Sequence[Holder], now: float) -> tuple[list[Holder], list[Holder]]:
        """Those that hold the lock with this process among them, and those that it was taken from."""
        own = [holder for holder in holders if holder.run_id == self._run_id and holder.is_live(now)]
        others = [holder for holder in holders if holder.run_id != self._run_id]
        live = [holder for holder in others if holder.is_live(now)]
        if live and not self._take_over:
            raise TransientError(
                f"the lake {self._lake} is in use by {live[0]}",
                remedy="wait until that run has ended; if it is gone for good, call `encore run --take-over`",
            )
        mine = Holder(
            self._run_id,
            self._token,
            socket.gethostname(),
            _machine(),
            os.getpid(),
            now,
            now + LEASE_SECONDS,
            _command(),
        )
        return [*(holder for holder in own if holder.token != self._token), mine], others

    def check(self) -> None:
        """Raise TransientError unless this process still holds the lock, which it asks the lake: before each commit.

        Nothing where the lock was never taken.
        """
        if self._renewer is None:
            return
        if self._lost is None:
            text, _, now = self._cell.read()
            mine = [holder for holder in _holders(self._cell.where, text) if holder.token == self._token]
            if not mine:
                self._lose(text)
            elif now >= mine[0].until:
                # nobody has taken it yet: a laptop that slept, or a network that was away
                self._renew()
        if self._lost is not None:
            raise TransientError(self._lost, remedy="wait until that run has ended, then run this one again")

    def release(self) -> None:
        """Give the lock back, where this process has it; what cannot be given back ends with its lease."""
        if self._renewer is None:
            return
        self._over.set()
        # a renewal that is under way no longer finds the entry, and does no harm
        self._renewer.join(timeout=1)
        self._renewer = None
        if self._lost is not None:
            return
        try:
            self._swap(self._left)
        except EncoreError as error:
            # the run's own ending counts
            log.warning("lock_not_released", lease_ends=True, error=str(error))

    def _left(self, holders: Sequence[Holder], _: float) -> tuple[list[Holder], list[Holder]]:
        return [holder for holder in holders if holder.token != self._token], []

    def _keep(self) -> None:
        while not self._over.wait(RENEW_SECONDS):
            try:
                self._renew()
            except EncoreError as error:
                # three more attempts before the lease ends, and `check` asks again
                log.warning("lock_not_renewed", error=str(error))
            if self._lost is not None:
                log.warning("lock_lost", error=self._lost)
                return

    def _renew(self) -> None:
        self._swap(self._renewed)

    def _renewed(self, holders: Sequence[Holder], now: float) -> tuple[list[Holder], list[Holder]] | None:
        if all(holder.token != self._token for holder in holders):
            self._lose(_text(holders))
            return None
        until = now + LEASE_SECONDS
        return [replace(holder, until=until) if holder.token == self._token else holder for holder in holders], []

    def _lose(self, text: str) -> None:
        others = [str(holder) for holder in _holders(self._cell.where, text)]
        by = f"by {others[0]}" if others else "and given back since"
        self._lost = f"the lake {self._lake}: the lock of run {self._run_id} was taken over {by}; this run stops"

    def _swap(
        self, change: Callable[[Sequence[Holder], float], tuple[list[Holder], list[Holder]] | None]
    ) -> list[Holder]:
        """Change the list of holders, again where another process was faster; what `change` gives besides it."""
        for attempt in range(_ATTEMPTS):
            text, version, now = self._cell.read()
            changed = change(_holders(self._cell.where, text), now)
            if changed is None:
                return []
            if self._cell.swap(version, _text(changed[0])):
                return changed[1]
            time.sleep(random.uniform(0, 0.01 * (attempt + 1)))
        raise TransientError(f"{self._cell.where}: changed by other processes {_ATTEMPTS} times in a row")


def _text(holders: Sequence[Holder]) -> str:
    return json.dumps({"holders": [asdict(holder) for holder in holders]}, indent=1) + "\n"


def _holders(where: str, text: str) -> list[Holder]:
    """The holders that a lock's text lists. LakeError where it is no such text."""
    if not text.strip(" \0\n"):
        # nothing, or what a power failure leaves of a file: no process has survived that
        return []
    try:
        # what may follow is the end of a longer text that a process did not live to cut off
        found, _ = json.JSONDecoder().raw_decode(text)
        return [Holder(**holder) for holder in found["holders"]]
    except (ValueError, KeyError, TypeError) as error:
        raise LakeError(
            f"{where}: not a lock that this version of Encore knows: {text[:100]!r}",
            remedy="delete it, once you are sure that no run is at work",
        ) from error


def _command() -> str:
    """The command line of this process without its settings, of which some may be secret."""
    words = [os.path.basename(word) if i == 0 else word for i, word in enumerate(sys.argv)]
    kept = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if not {before, word} & {"-s", "--set", "--set-json"}
    ]
    return str(redact(shlex.join(kept)))[:500]
