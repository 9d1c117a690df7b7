"""Work is a list of tasks mapped over any `concurrent.futures.Executor`; threads by default."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import pickle
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from weightkit import files
from weightkit.errors import ClusterError, MissingError

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
    the caller stops early, by Ctrl-C or an error, the tasks not yet begun are dropped. Tasks are pure, so an
    executor may do one again. Raises ClusterError where its processes are gone.
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


class Work:
    """Tasks of one pass or several, of any sizes, told to one progress: how much of what is known of is done.

    What turns out to be needed on the way adds to it.
    """

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


AHEAD = 256  # futures whose results are not taken yet: of a million tasks, those would be heavy
MOST_FUTURES = 1 << 13  # where there are more tasks, each future is several: to hand one out can take a millisecond


def _windowed(
    executor: Executor, function: Callable[[Task], Result], tasks: Sequence[Task], progress: Progress | None
) -> Iterator[Result]:
    step = max(1, -(-len(tasks) // MOST_FUTURES))
    home, abroad = _here(), files.abroad()
    waiting: deque[Future[list[Result]]] = deque()
    taken = 0
    try:
        for first in range(0, len(tasks), step):
            waiting.append(executor.submit(_Batch(function, tasks[first : first + step], home, abroad)))
            while len(waiting) >= AHEAD or (waiting and first + step >= len(tasks)):
                for result in _results(waiting.popleft()):
                    taken += 1
                    yield result
                    if progress is not None:
                        progress(taken, len(tasks))
    finally:
        for future in waiting:
            future.cancel()


def _results(future: Future[list[Result]]) -> list[Result]:
    from concurrent.futures import BrokenExecutor, CancelledError

    try:
        return future.result()
    except (BrokenExecutor, CancelledError) as error:
        raise ClusterError(f"the processes that worked are gone: {str(error) or type(error).__name__}") from None


def _here() -> tuple[str, int]:
    return socket.gethostname(), os.getpid()


@dataclass(frozen=True)
class _Batch(Generic[Task, Result]):
    """Some tasks, to be done here or, as what it pickles as, in another process."""

    function: Callable[[Task], Result]
    tasks: Sequence[Task]
    home: tuple[str, int]  # where they come from
    abroad: files.Abroad

    def __reduce__(self) -> tuple[type[_Sent], tuple[Any, ...]]:
        raw, paths = _pickled((self.function, self.tasks))
        return _Sent, (raw, self.home, self.abroad, tuple(_sizes(paths)))

    def __call__(self) -> list[Result]:
        """The results."""
        return [self.function(task) for task in self.tasks]


@dataclass(frozen=True)
class _Sent:
    """Work that came from another process, with what has to be known to do it; unpacked by who does it."""

    raw: bytes
    home: tuple[str, int]
    abroad: files.Abroad
    sizes: tuple[tuple[Path, int], ...]  # of the files that the tasks are about, as they are at home

    def __call__(self) -> list[Any]:
        """The results. MissingError where this process does not see the files that the other one sees."""
        function, tasks = pickle.loads(self.raw)
        if self.home == _here():
            return [function(task) for task in tasks]
        from weightkit.threads import one_blas_thread

        _work_alone()
        files.learn(self.abroad)
        try:
            for path, size in self.sizes:
                if (found := os.stat(path).st_size) != size:
                    raise MissingError(f"{path}: has {found:,} bytes, not {size:,}")
            with one_blas_thread():
                return [function(task) for task in tasks]
        except (MissingError, FileNotFoundError, PermissionError) as error:
            where = "workers need every file under the path that it has here, or a URL such as s3://"
            raise MissingError(f"{_said(error)}, on {_here()[0]}: {where}") from None


def _pickled(value: object) -> tuple[bytes, list[Path]]:
    """A value, in which paths are absolute, and those paths: other processes may work in other folders."""
    paths: dict[Path, None] = {}

    class Pickler(pickle.Pickler):
        def reducer_override(self, obj: object) -> Any:
            if not isinstance(obj, Path):
                return NotImplemented
            paths[obj.absolute()] = None
            return Path, (os.fspath(obj.absolute()),)

    buffer = io.BytesIO()
    Pickler(buffer).dump(value)
    return buffer.getvalue(), list(paths)


def _sizes(paths: list[Path]) -> Iterator[tuple[Path, int]]:
    for path in paths:
        if not files.is_elsewhere(path):
            with contextlib.suppress(OSError):  # who reads it will say so
                yield path, os.stat(path).st_size


@functools.cache
def _work_alone() -> None:
    """Have this process compute with one thread: there are as many workers as there should be threads."""
    from weightkit.threads import set_threads

    set_threads(1)


def _said(error: Exception) -> str:
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
