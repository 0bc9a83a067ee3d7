"""The lock of a lake: only one pipeline run writes at a time, and the lock identifies it.

The lock is one small file, `_lock`, next to the tables. It lists the processes that hold it. All of them belong to one
pipeline run, so jobs that a scheduler runs in parallel share the lock of their run. Each process renews its own entry
while it runs and removes it at the end; an entry whose lease has expired is ignored. The file itself remains, with an
empty list, so that every change is a compare-and-swap: on S3 a conditional put (If-None-Match, If-Match), locally a
rewrite of the file under `flock`. A holder that died on this machine is detected immediately, one that died elsewhere
when its lease expires.

The lock keeps runs from interfering with each other. Rows stay correct even without it, because every commit names the
version it was planned on (transaction.py).
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
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Protocol

import structlog

from encore.config import Config, S3Config
from encore.errors import EncoreError, LakeError, TransientError
from encore.lake.filesystem import is_s3, no_conditional_puts, read_versioned, s3_client, write_if
from encore.log import redact
from encore.temporary import machine

NAME = "_lock"
"""The name of the lock file in the lake. No table name begins with an underscore."""

LEASE_SECONDS = 120.0
"""How long a process that no longer renews its entry still counts as a holder."""

RENEW_SECONDS = 30.0
"""The interval between renewals of an entry: three attempts may fail before the lease expires."""

_ATTEMPTS = 20
"""How often a swap is attempted if other processes change the lock first."""

_GUARD_SECONDS = 10.0
"""How long to wait while another process of this machine rewrites the file, which takes about a millisecond."""

log = structlog.get_logger("encore.lake.lock")


@dataclass(frozen=True)
class Holder:
    """A process that holds the lock. Times are in seconds since 1970, by the server's clock if the lake is in S3;
    `token` is unique to the process, and `pid` is a process id on `machine`."""

    run_id: str
    token: str
    host: str
    machine: str
    pid: int
    since: float
    until: float
    command: str

    def is_live(self, now: float) -> bool:
        """Whether its lease has not expired and, if this can be checked from here, its process is still running."""
        return now < self.until and not (self.machine == machine() and not _is_running(self.pid))

    def __str__(self) -> str:
        """A description for messages."""
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
    """Storage for a short text that is only changed by compare-and-swap."""

    where: str

    def read(self) -> tuple[str, str, float]:
        """The text and its version, both empty if there is no text, and the time in seconds since 1970."""

    def swap(self, version: str, text: str) -> bool:
        """Replace the text if it still has this version; otherwise return False and change nothing."""


class LocalCell:
    """A file that is rewritten under `flock`, for a lake on a file system of this machine."""

    def __init__(self, path: str) -> None:
        self.where = path

    def read(self) -> tuple[str, str, float]:
        """See Cell. Raises LakeError if the file cannot be read."""
        try:
            with self._guarded(os.O_RDONLY) as handle:
                text = _read_all(handle)
        except FileNotFoundError:
            text = ""
        return text, text, time.time()

    def swap(self, version: str, text: str) -> bool:
        """See Cell. Raises LakeError if the file cannot be written."""
        with self._guarded(os.O_RDWR | os.O_CREAT) as handle:
            if _read_all(handle) != version:
                return False
            try:
                # if the process is killed in between, the end of the old text follows the new one: see `_holders`
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
            # this also releases the flock
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
    """An object in S3 that is replaced by conditional puts; its version is its ETag."""

    def __init__(self, url: str, s3: S3Config) -> None:
        self.where, self._s3 = url, s3

    @cached_property
    def _client(self) -> Any:
        return s3_client(self._s3)

    def read(self) -> tuple[str, str, float]:
        """See Cell. The time is the server's, so all machines agree on it."""
        data, etag, now = read_versioned(self._client, self.where)
        return data.decode(errors="replace"), etag, now

    def swap(self, version: str, text: str) -> bool:
        """See Cell. Raises LakeError if the server does not support conditional puts."""
        done = write_if(self._client, self.where, text.encode(), version)
        # checked once per lake, when the object is created: a server that ignores the conditions provides no locking
        if done and not version and any(self._put_anyway(text, wrong) for wrong in ("", f'"{uuid.uuid4().hex}"')):
            raise no_conditional_puts(self.where, "it ignores their conditions")
        return done

    def _put_anyway(self, text: str, wrong: str) -> bool:
        return write_if(self._client, self.where, text.encode(), wrong)


class LakeLock:
    """The lock of one lake, for one process of a pipeline run: acquired when first needed, renewed by a background
    thread, released at the end.

    Processes with the same run id share it. With `take_over`, it is taken from any current holder.
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
        """Acquire the lock; returns False if this process already has it.

        If this returns True, anything read from the lake before may be out of date. Raises TransientError immediately
        if another run holds the lock, and LakeError if the lake does not support locking.
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
        """The holders including this process, and the holders that the lock was taken from."""
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
            machine(),
            os.getpid(),
            now,
            now + LEASE_SECONDS,
            _command(),
        )
        return [*(holder for holder in own if holder.token != self._token), mine], others

    def check(self) -> None:
        """Raise TransientError if the lake shows that this process no longer holds the lock; called before each commit.

        Does nothing if the lock was never acquired.
        """
        if self._renewer is None:
            return
        if self._lost is None:
            text, _, now = self._cell.read()
            mine = [holder for holder in _holders(self._cell.where, text) if holder.token == self._token]
            if not mine:
                self._lose(text)
            elif now >= mine[0].until:
                # the lease expired but nobody has taken the lock: the machine slept, or the network was down
                self._renew()
        if self._lost is not None:
            raise TransientError(self._lost, remedy="wait until that run has ended, then run this one again")

    def release(self) -> None:
        """Release the lock if this process has it; if releasing it fails, the lease expires by itself."""
        if self._renewer is None:
            return
        self._over.set()
        # a renewal still in progress no longer finds the entry and does nothing
        self._renewer.join(timeout=1)
        self._renewer = None
        if self._lost is not None:
            return
        try:
            self._swap(self._left)
        except EncoreError as error:
            # this must not change how the run ends
            log.warning("lock_not_released", lease_ends=True, error=str(error))

    def _left(self, holders: Sequence[Holder], _: float) -> tuple[list[Holder], list[Holder]]:
        return [holder for holder in holders if holder.token != self._token], []

    def _keep(self) -> None:
        while not self._over.wait(RENEW_SECONDS):
            try:
                self._renew()
            except EncoreError as error:
                # there are more attempts before the lease expires, and `check` reads the lock again
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
        """Change the list of holders, retrying if another process was faster; returns the second result of `change`."""
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
    """Parse the holders listed in a lock's text. Raises LakeError if the text is not valid."""
    if not text.strip(" \0\n"):
        # empty, or zeroed by a power failure, which no process has survived
        return []
    try:
        # the end of a longer old text may follow if a process was killed before it truncated the file
        found, _ = json.JSONDecoder().raw_decode(text)
        return [Holder(**holder) for holder in found["holders"]]
    except (ValueError, KeyError, TypeError) as error:
        raise LakeError(
            f"{where}: not a lock that this version of Encore knows: {text[:100]!r}",
            remedy="delete it, once you are sure that no run is at work",
        ) from error


def _command() -> str:
    """The command line of this process without its settings, some of which may be secret."""
    words = [os.path.basename(word) if i == 0 else word for i, word in enumerate(sys.argv)]
    kept = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if not {before, word} & {"-s", "--set", "--set-json"}
    ]
    return str(redact(shlex.join(kept)))[:500]
