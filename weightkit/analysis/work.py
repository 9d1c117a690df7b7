"""Work in several passes, told to one progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from weightkit.parallel import Progress, in_order

if TYPE_CHECKING:
    from concurrent.futures import Executor

Task = TypeVar("Task")
Result = TypeVar("Result")


class Work:
    """How much of all the work that is known of is done. What turns out to be needed on the way adds to it."""

    def __init__(self, executor: Executor | None, progress: Progress | None, expected: int = 0) -> None:
        self.executor = executor
        self.progress = progress
        self.done = 0
        self.known = expected  # by now, of this pass and those to come

    def map(
        self, function: Callable[[Task], Result], tasks: Sequence[Task], sizes: Sequence[int] | None = None
    ) -> Iterator[Result]:
        """`map(function, tasks)` over the executor; `sizes` is how much work each task is, 1 if not given."""
        results = in_order(function, tasks, executor=self.executor)
        for result, size in zip(results, sizes or [1] * len(tasks), strict=True):
            yield result
            self.done += size
            self.known = max(self.known, self.done)
            if self.progress is not None:
                self.progress(self.done, self.known)
