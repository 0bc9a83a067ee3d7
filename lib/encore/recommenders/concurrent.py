"""Computes the parts of one query at the same time, where the caller has threads to spare.

A batch keeps its cores busy with a task each, and computes parts one after the other. A server that answers a single
request would leave cores idle: it calls models within `helped_by`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Result = TypeVar("Result")

_EXECUTOR: ContextVar[Executor | None] = ContextVar("executor", default=None)


@contextmanager
def helped_by(executor: Executor | None) -> Iterator[None]:
    """Let `compute` use the threads of an executor within the block, in this thread; None: only this thread."""
    token = _EXECUTOR.set(executor)
    try:
        yield
    finally:
        _EXECUTOR.reset(token)


def compute(tasks: Sequence[Callable[[], Result]]) -> list[Result]:
    """The results of some tasks, in their order. List the longest tasks first, so that threads end at the same time.

    This thread computes all that no other thread has begun, so that it never waits for a thread that is busy with
    another request. The first exception of a task is raised, once no task is running any more.
    """
    executor = _EXECUTOR.get()
    if executor is None or len(tasks) < 2:
        return [task() for task in tasks]
    # the first is for this thread, which need not be woken up
    futures = [executor.submit(task) for task in tasks[1:]]
    own: dict[int, Result] = {}
    try:
        own[0] = tasks[0]()
        for i, future in enumerate(futures, 1):
            if future.cancel():
                own[i] = tasks[i]()
    finally:
        for future in futures:
            if not future.cancel():
                future.exception()
    return [own[i] if i in own else futures[i - 1].result() for i in range(len(tasks))]
