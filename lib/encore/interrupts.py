"""SIGINT and SIGTERM: an interrupted command exits promptly, with a one-line message and exit code 128 + the signal.

The first signal raises `Interrupted` in the main thread, which unwinds as it does after any other error. That alone is
not enough: a library may swallow the exception, and a call into compiled code or the JVM may not return. So a dedicated
thread receives every signal through a pipe, whichever handler is installed at the time (pyspark replaces the one for
SIGINT). At the first signal it terminates the child processes, above all Spark's JVM, so that calls to it fail. If the
process is still running after `GRACE_SECONDS`, or a second signal arrives, the thread ends the process immediately.
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
"""How long an orderly shutdown may take; whatever follows it must fit into what is left of five seconds."""
SAME_SIGNAL_SECONDS = 0.2
"""A second signal within this time is the first one again: it was sent to both the process and its group."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The process was signalled to end. Like KeyboardInterrupt this is not an Exception, so few handlers catch it by
    mistake."""

    def __init__(self, number: int) -> None:
        super().__init__("interrupted" if number == signal.SIGINT else "terminated")
        self.number = number

    @property
    def exit_code(self) -> int:
        """The exit code that a shell reports for a process ended by a signal: 130 or 143."""
        return 128 + self.number


class _State:
    """The signal handling state of this process."""

    received: Interrupted | None = None
    deadline = float("inf")
    grace = GRACE_SECONDS
    installed = raised = False

    def __init__(self) -> None:
        self.on_first: Callable[[int], None] = _terminate_children


def received() -> Interrupted | None:
    """The first signal that this process received; None if it received none or `install` was not called."""
    return _state.received


def install() -> None:
    """Handle SIGINT and SIGTERM in this process. Must be called in the main thread; may be called repeatedly."""
    if _state.installed:
        restore_handlers()
        return
    _state.installed = True
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    before = threading.excepthook

    def quiet(args: threading.ExceptHookArgs) -> None:
        # threads that were waiting for Spark fail once it is gone
        if _state.received is None:
            before(args)

    threading.excepthook = quiet
    for name in ("", "py4j.clientserver", "py4j.java_gateway"):
        logging.getLogger(name).addFilter(_is_wanted)
    # the thread owns both ends and lives as long as the process
    parent = os.getppid() if "PYSPARK_GATEWAY_PORT" in os.environ else None
    threading.Thread(target=_watch, args=(reading, writing, parent), name="interrupts", daemon=True).start()
    restore_handlers()


def restore_handlers() -> None:
    """Restore the handlers of `install`, if it was called, after another library has replaced them."""
    if _state.installed and threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, _handle)


def _is_wanted(record: logging.LogRecord) -> bool:
    """Whether to log a record: after a signal, py4j reports stack traces of calls of the JVM that were interrupted, in
    part on the root logger, and at once, in the thread that the signal interrupted."""
    return _state.received is None or record.module not in ("clientserver", "java_gateway")


def _handle(number: int, frame: FrameType | None) -> None:
    _note(number)
    # only once: a second exception would abort the cleanup triggered by the first
    if not _state.raised:
        _state.raised = True
        raise Interrupted(number)


def _note(number: int) -> None:
    """Remember the first signal."""
    if _state.received is None:
        _state.deadline = time.monotonic() + _state.grace
        _state.received = Interrupted(number)


def _watch(reading: socket.socket, writing: socket.socket, parent: int | None) -> None:
    """Receive signal numbers through a pipe. `parent`: the JVM that started this process, if any; once it is gone, no
    more work can be done."""
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
                _state.on_first(number)
            elif now - first > SAME_SIGNAL_SECONDS:
                _end_now("ended at once")


def _end_now(how: str) -> NoReturn:
    """End this process and its children immediately."""
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
    """The processes that this one started, and their descendants."""
    # imported here because it would cost every command a hundredth of a second
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
    """Within the block, forward the first signal unchanged to a process group of children instead of terminating
    them."""
    before = _state.on_first

    def forward(number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(group, number)

    _state.on_first = forward
    if _state.received is not None:
        # it arrived after the children were started
        forward(_state.received.number)
    try:
        yield
    finally:
        _state.on_first = before


def wait_for_group(leader: subprocess.Popen[bytes]) -> None:
    """After a signal, wait for a child and its whole process group to end; kill the group when time runs out."""
    while time.monotonic() < _state.deadline - 0.5:
        # a child that has ended stays in its group until it is reaped
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
    """Processes started within the block ignore a terminal's Ctrl-C; this process terminates them instead."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def patient(seconds: float) -> Iterator[None]:
    """Allow an orderly shutdown more time within the block, for example to cancel work on another system."""
    before, _state.grace = _state.grace, seconds
    try:
        yield
    finally:
        _state.grace = before


def run(command: Callable[[], None]) -> NoReturn:
    """Run a command and exit with its exit code, or with that of the signal that interrupted it."""
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
    """Exit after a signal: end the children first, and do not wait for threads that will not end."""
    import psutil

    # children that are left after a failure: they have already been sent SIGTERM
    left = max(0.0, _state.deadline - time.monotonic())
    for child in psutil.wait_procs(_descendants(), timeout=left)[1]:
        _send(child, signal.SIGKILL)
    temporary.remove_own()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(found.exit_code)


_state = _State()
