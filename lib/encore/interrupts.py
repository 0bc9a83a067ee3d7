"""SIGINT and SIGTERM: a command that is told to stop ends soon, with one line and 128 + the signal's number.

The first signal raises `Interrupted` in the main thread, which unwinds as after any other error. That alone is not
enough: a library may swallow the exception, and a call into compiled code or to the JVM may not return. So a thread of
its own learns of every signal through a pipe, whatever handler is installed by then (pyspark replaces the one of
SIGINT). At the first signal it tells child processes to end, Spark's JVM above all, whose end makes calls to it fail;
where the process is still there after `GRACE_SECONDS`, or a second signal comes, it ends the process at once.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from encore import temporary

GRACE_SECONDS = 3.5
"""How long an orderly end may take; what is started after it must fit into the rest of five seconds."""
SAME_SIGNAL_SECONDS = 0.2
"""A second signal this soon is the first one, sent to the process and to its group."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal has asked the process to end. Like KeyboardInterrupt it is no Exception, so that few handlers take it
    for an error of their own."""

    def __init__(self, number: int) -> None:
        super().__init__("interrupted" if number == signal.SIGINT else "terminated")
        self.number = number

    @property
    def exit_code(self) -> int:
        """As a shell says it of a process that a signal ended: 130 or 143."""
        return 128 + self.number


class _State:
    """What is known of signals in this process."""

    received: Interrupted | None = None
    deadline = float("inf")
    grace = GRACE_SECONDS
    installed = raised = False

    def __init__(self) -> None:
        self.on_first: Callable[[int], None] = _terminate_children


def received() -> Interrupted | None:
    """The first signal that this process was sent; None where there was none, or where nobody called `install`."""
    return _state.received


def install() -> None:
    """Take over SIGINT and SIGTERM of this process. Call it in the main thread, once or more often."""
    if _state.installed:
        restore_handlers()
        return
    _state.installed = True
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    before = threading.excepthook

    def quiet(args: threading.ExceptHookArgs) -> None:
        # threads that were waiting for Spark fail once it has gone
        if _state.received is None:
            before(args)

    threading.excepthook = quiet
    # both ends belong to the thread, which lives as long as the process
    parent = os.getppid() if "PYSPARK_GATEWAY_PORT" in os.environ else None
    threading.Thread(target=_watch, args=(reading, writing, parent), name="interrupts", daemon=True).start()
    restore_handlers()


def restore_handlers() -> None:
    """Make the handlers those of `install` again, where it was called and another library has replaced them."""
    if _state.installed and threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, _handle)


def _handle(number: int, frame: FrameType | None) -> None:
    _note(number)
    # only once: a second exception would break off what the first one unwinds
    if not _state.raised:
        _state.raised = True
        raise Interrupted(number)


def _note(number: int) -> None:
    """Remember the first signal."""
    if _state.received is None:
        _state.deadline = time.monotonic() + _state.grace
        _state.received = Interrupted(number)


def _watch(reading: socket.socket, writing: socket.socket, parent: int | None) -> None:
    """Learn of signals by their numbers in a pipe. `parent`: the JVM that started this process, if one did: when it
    has gone, no work can be done any more."""
    first: float | None = None
    while True:
        left = None if _state.received is None else max(0.0, _state.deadline - time.monotonic())
        waiting = 0.5 if parent is not None and left is None else left
        if not select.select([reading], [], [], waiting)[0]:
            if left is not None and time.monotonic() >= _state.deadline:
                _end_now("did not end in time")
            if parent is not None and first is None and os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
                parent = None
            continue
        for number in reading.recv(64):
            if number not in SIGNALS:
                continue
            now = time.monotonic()
            if first is None:
                first = now
                _note(number)
                logging.getLogger("py4j").setLevel(logging.CRITICAL + 1)
                _state.on_first(number)
            elif now - first > SAME_SIGNAL_SECONDS:
                _end_now("ended at once")


def _end_now(how: str) -> NoReturn:
    """End this process and its children without any more ado."""
    found = _state.received or Interrupted(signal.SIGTERM)
    for child in _descendants():
        _send(child, signal.SIGKILL)
    with suppress(OSError, ValueError):
        # not through sys.stderr, whose lock the main thread may hold
        os.write(2, f"encore: {found}, {how}\n".encode())
    os._exit(found.exit_code)


def _terminate_children(number: int) -> None:
    for child in _descendants():
        _send(child, signal.SIGTERM)


def _descendants() -> list[Any]:
    """Processes that this one started, and what those started."""
    # not at import: it is a hundredth of a second of every command
    import psutil

    with suppress(psutil.Error):
        return list(psutil.Process().children(recursive=True))
    return []


def _send(process: Any, number: int) -> None:
    import psutil

    with suppress(psutil.Error):
        process.send_signal(number)


@contextmanager
def forwarded_to(group: int) -> Iterator[None]:
    """Within the block, the first signal is sent on as it is to a process group of children instead of ending them."""
    before = _state.on_first

    def forward(number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(group, number)

    _state.on_first = forward
    if _state.received is not None:
        # it came between the start of the children and now
        forward(_state.received.number)
    try:
        yield
    finally:
        _state.on_first = before


def wait_for_group(leader: subprocess.Popen[bytes]) -> None:
    """After a signal, wait for a child and all of its process group to end, as long as there is time; then kill it."""
    while time.monotonic() < _state.deadline - 0.5:
        # a child that has ended is part of its group until someone asks how
        leader.poll()
        try:
            os.killpg(leader.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    with suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)


@contextmanager
def children_ignore_sigint() -> Iterator[None]:
    """Processes that are started within the block are not reached by a terminal's Ctrl-C: this one ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def patient(seconds: float) -> Iterator[None]:
    """Within the block an orderly end may take longer, as where work elsewhere has to be cancelled."""
    before, _state.grace = _state.grace, seconds
    try:
        yield
    finally:
        _state.grace = before


def run(command: Callable[[], None]) -> NoReturn:
    """Run a command and end the process with its exit code, or with that of the signal that interrupted it."""
    install()
    code: str | int | None = 0
    try:
        command()
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        if _state.received is None:
            raise
    if _state.received is None:
        sys.exit(code)
    _leave(_state.received)


def _leave(found: Interrupted) -> NoReturn:
    """End after a signal: children first, and without waiting for threads that will not end."""
    import psutil

    # those that a failure has left: they were told to end already
    left = max(0.0, _state.deadline - time.monotonic())
    for child in psutil.wait_procs(_descendants(), timeout=left)[1]:
        _send(child, signal.SIGKILL)
    temporary.remove_own()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(found.exit_code)


_state = _State()
