"""Signals: what a process says and with which code it ends, whatever it is doing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

BEGIN = """
import signal, subprocess, sys, time
from encore import interrupts
def work():
    WORK
def begin():
    try:
        work()
    finally:
        sys.stderr.write("unwound\\n")
interrupts.run(begin)
"""
SWALLOWING = "exec('while True:\\n try:\\n  time.sleep(60)\\n except BaseException: pass')"
READY = "sys.stdout.write('ready\\n'); sys.stdout.flush(); "


def ended(work: str, *numbers: int, pause: float = 0.4) -> tuple[int, str]:
    """Run some work, send signals once it is ready; code and what it said."""
    code = BEGIN.replace("WORK", f"{READY}{work}")
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
    assert ended("time.sleep(60)", number) == (code, "unwound\n")


def test_a_handler_of_another_library_changes_nothing() -> None:
    work = "interrupts._state.grace = 0.3; signal.signal(signal.SIGINT, lambda *_: None); time.sleep(60)"
    code, said = ended(work, signal.SIGINT)
    assert (code, said) == (130, "encore: interrupted, did not end in time\n")


def test_a_swallowed_exception_changes_nothing() -> None:
    assert ended(f"interrupts._state.grace = 0.3; {SWALLOWING}", signal.SIGTERM) == (
        143,
        "encore: terminated, did not end in time\n",
    )


def test_a_second_signal_ends_at_once() -> None:
    assert ended(SWALLOWING, signal.SIGINT, signal.SIGINT) == (130, "encore: interrupted, ended at once\n")


def test_the_same_signal_to_process_and_group_counts_once() -> None:
    assert ended("time.sleep(60)", signal.SIGINT, signal.SIGINT, pause=0.01) == (130, "unwound\n")


def test_children_end_too() -> None:
    work = "child = subprocess.Popen(['sleep', '3600']); child.wait()"
    assert ended(work, signal.SIGTERM) == (143, "unwound\n")


def test_an_error_that_the_signal_has_caused_is_not_shown() -> None:
    work = "child = subprocess.run(['sleep', '3600']); raise RuntimeError(child.returncode)"
    code, said = ended(work, signal.SIGINT)
    assert (code, "Traceback" in said) == (130, False)


def test_without_a_signal_the_code_is_the_commands() -> None:
    assert ended("sys.exit(7)") == (7, "unwound\n")
