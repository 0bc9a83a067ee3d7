"""Parts of a query at the same time: who computes them, and what happens if one fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from encore.recommenders.concurrent import compute, helped_by

SECONDS = 20


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1, "helper") as found:
        yield found


def name() -> str:
    return threading.current_thread().name


def test_without_an_executor_this_thread_computes_all_in_order() -> None:
    done: list[int] = []

    def task(i: int) -> str:
        done.append(i)
        return name()

    assert compute([partial(task, i) for i in range(4)]) == [name()] * 4
    assert done == [0, 1, 2, 3]
    assert compute([]) == []


def test_two_threads_compute_at_the_same_time(executor: ThreadPoolExecutor) -> None:
    both = threading.Barrier(2, timeout=SECONDS)

    def task() -> str:
        both.wait()
        return name()

    with helped_by(executor):
        mine, other = compute([task, task])
    assert (mine, other.startswith("helper")) == (name(), True)


def test_results_are_in_the_order_of_the_tasks(executor: ThreadPoolExecutor) -> None:
    with helped_by(executor):
        for _ in range(50):
            assert compute([partial(str, i) for i in range(7)]) == list("0123456")
        assert compute([]) == []


def test_this_thread_does_not_wait_for_a_busy_one(executor: ThreadPoolExecutor) -> None:
    go = threading.Event()
    busy = executor.submit(go.wait, SECONDS)
    with helped_by(executor):
        assert compute([name, name, name]) == [name()] * 3
    assert not busy.done()
    go.set()


def test_only_within_the_block_and_only_in_this_thread(executor: ThreadPoolExecutor) -> None:
    asked: list[list[str]] = []
    with helped_by(executor):
        thread = threading.Thread(target=lambda: asked.append(compute([name, name])), name="another")
        thread.start()
        thread.join()
        with helped_by(None):
            assert compute([name, name]) == [name()] * 2
    assert asked == [["another"] * 2]
    executor.shutdown()
    assert compute([name, name]) == [name()] * 2


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_exception_is_raised_when_no_task_runs_any_more(executor: ThreadPoolExecutor, failing: int) -> None:
    running: set[int] = set()

    def task(i: int) -> None:
        running.add(i)
        time.sleep(0.02)
        running.remove(i)
        if i == failing:
            raise ZeroDivisionError(f"task {i}")

    with helped_by(executor), pytest.raises(ZeroDivisionError, match=f"task {failing}"):
        compute([partial(task, i) for i in range(3)])
    assert not running
