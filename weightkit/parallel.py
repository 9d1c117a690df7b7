"""Work is a list of tasks mapped over any `concurrent.futures.Executor`; threads by default."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

Task = TypeVar("Task")
Result = TypeVar("Result")
Progress = Callable[[int, int], None]  # (done, all): tasks, or bytes, whatever is counted


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
        yield from _collect([executor.submit(function, task) for task in tasks], progress)
        return
    from concurrent.futures import ThreadPoolExecutor

    threads = ThreadPoolExecutor(min(os.cpu_count() or 1, 8))
    try:
        yield from _collect([threads.submit(function, task) for task in tasks], progress)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _collect(futures: Sequence[Future[Result]], progress: Progress | None) -> Iterator[Result]:
    for done, future in enumerate(futures, start=1):
        yield future.result()
        if progress is not None:
            progress(done, len(futures))
