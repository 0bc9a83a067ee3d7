"""Signals: what a process says and with which code it ends, whatever it is doing."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time

import pytest

BEGIN = """
import signal, subprocess, sys, time
from encore import interrupts
def ready():
    sys.stdout.write("ready\\n")
    sys.stdout.flush()
def work():
WORK
def begin():
    try:
        work()
    finally:
        sys.stderr.write("unwound\\n")
interrupts.run(begin)
"""
SLEEPING = "ready()\ntime.sleep(60)"
SWALLOWING = """
while True:
    try:
        ready()
        time.sleep(60)
    except BaseException:
        pass
"""
SHORT_GRACE = "interrupts._state.grace = 0.3\n"


def ended(work: str, *numbers: int, pause: float = 0.4) -> tuple[int, str]:
    """Run some work, send signals once it is ready; code and what it said."""
    code = BEGIN.replace("WORK", textwrap.indent(work, "    "))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for number in numbers:
            process.send_signal(number)
            time.sleep(pause)
        _, said = process.communicate(timeout=60)
        return process.returncode, said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_work_is_unwound(number: int, code: int) -> None:
    assert ended(SLEEPING, number) == (code, "unwound\n")


def test_py4j_shows_no_stack_trace_of_an_interrupted_call() -> None:
    """It logs one on the root logger, which is not its own, from the thread that was interrupted."""
    call = """
import logging, py4j.java_gateway
class Broken:
    def send_command(self, command):
        ready()
        time.sleep(60)
    socket = None
class Client(py4j.java_gateway.GatewayClient):
    def _get_connection(self):
        return Broken()
Client().send_command("c")
"""
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        assert ended(call, number) == (code, "unwound\n")
    logging = "import logging\nready()\nlogging.error('kept')\ntime.sleep(60)"
    assert "ERROR:root:kept\n" in ended(logging, signal.SIGTERM)[1]


def test_a_handler_of_another_library_changes_nothing() -> None:
    work = f"{SHORT_GRACE}signal.signal(signal.SIGINT, lambda *_: None)\n{SLEEPING}"
    assert ended(work, signal.SIGINT) == (130, "encore: interrupted, did not end in time\n")


def test_a_swallowed_exception_changes_nothing() -> None:
    work = f"{SHORT_GRACE}{SWALLOWING}"
    assert ended(work, signal.SIGTERM) == (143, "encore: terminated, did not end in time\n")


def test_a_second_signal_ends_at_once() -> None:
    assert ended(SWALLOWING, signal.SIGINT, signal.SIGINT) == (130, "encore: interrupted, ended at once\n")


def test_the_same_signal_to_process_and_group_counts_once() -> None:
    assert ended(SLEEPING, signal.SIGINT, signal.SIGINT, pause=0.01) == (130, "unwound\n")


def test_children_end_too() -> None:
    work = "child = subprocess.Popen(['sleep', '3600'])\nready()\nchild.wait()"
    assert ended(work, signal.SIGTERM) == (143, "unwound\n")


def test_an_error_that_the_signal_has_caused_is_not_shown() -> None:
    work = "try:\n    ready()\n    time.sleep(60)\nexcept BaseException:\n    raise RuntimeError('gone')"
    assert ended(work, signal.SIGINT) == (130, "unwound\n")


def test_without_a_signal_the_code_is_the_commands() -> None:
    assert ended("ready()\nsys.exit(7)") == (7, "unwound\n")
