"""Work is a list of tasks mapped over any `concurrent.futures.Executor`; threads by default."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

Task = TypeVar("Task")
Result = TypeVar("Result")
MOST_THREADS = 8  # that read one disk
Progress = Callable[[int, int], None]  # (done, all): tasks, or bytes, whatever is counted


def processors() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Iterator[Result]:
    """`map(function, tasks)` over an executor, results in the order of the tasks.

    Without an executor a few threads are used: reading files and numpy's loops release the GIL. When
    the caller stops early, by Ctrl-C or an error, the tasks not yet begun are dropped.
    """
    if executor is not None:
        yield from _windowed(executor, function, tasks, progress)
        return
    from concurrent.futures import ThreadPoolExecutor

    threads = ThreadPoolExecutor(min(processors(), MOST_THREADS))
    try:
        yield from _windowed(threads, function, tasks, progress)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


AHEAD = 256  # tasks that are handed out before their results are taken: a million futures would be heavy


def _windowed(
    executor: Executor, function: Callable[[Task], Result], tasks: Sequence[Task], progress: Progress | None
) -> Iterator[Result]:
    waiting: deque[Future[Result]] = deque()
    done = 0
    for task in tasks:
        waiting.append(executor.submit(function, task))
        if len(waiting) >= AHEAD:
            done += 1
            yield _take(waiting.popleft(), done, len(tasks), progress)
    while waiting:
        done += 1
        yield _take(waiting.popleft(), done, len(tasks), progress)


def _take(future: Future[Result], done: int, total: int, progress: Progress | None) -> Result:
    result = future.result()
    if progress is not None:
        progress(done, total)
    return result
