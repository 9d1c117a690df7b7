"""The threads that the engine works with, and the desk where compiled jobs are shared out among them."""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from weightkit.dtypes import Array
from weightkit.errors import whole_number
from weightkit.parallel import processors

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from threadpoolctl import ThreadpoolController

WORTH_SHARING = 1 << 25  # multiplications, a millisecond: it can take as long until other threads are there
PATIENCE = 30_000  # turns that a thread without work waits before it sleeps: about a millisecond


@functools.cache
def _blas() -> ThreadpoolController:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


class _OneBlasThread:
    """A limit on the whole process, which several threads may be within at once: the last one out lifts it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._limit: Any = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                self._limit = _blas().limit(limits=1, user_api="blas")
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._limit.restore_original_limits()


# While the crew shares out the work, BLAS has one thread: more would wait for each other, and round otherwise.
one_blas_thread = _OneBlasThread()


class Crew:
    """The threads that the engine works with: the one that asks, and helpers that wait for work.

    Helpers wait awake for a moment, as a matrix is followed by another, and sleep after that.
    """

    def __init__(self) -> None:
        self.size = processors()
        self.forget()

    def forget(self) -> None:
        """Have no threads yet."""
        self._lock = threading.Lock()
        self._idle: list[SimpleQueue[bool]] = []
        self._helpers: list[tuple[threading.Thread, SimpleQueue[bool]]] = []
        self._pool: ThreadPoolExecutor | None = None

    def resize(self, count: int | None) -> None:
        """Work with so many threads; None for one on each processor that this process may use.

        Many more than there are processors would only be in each other's way, and are not hired.
        """
        self.dismiss()
        self.size = processors() if count is None else min(count, 4 * processors())

    def dismiss(self) -> None:
        """Let the helpers go; they come back when there is work."""
        with self._lock:
            helpers, self._helpers = self._helpers, []
            for _, call in helpers:
                call.put(False)
            for thread, _ in helpers:
                thread.join()
            self._idle.clear()
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None

    def map(self, function: Callable[[Any], None], tasks: Sequence[Any], work: int) -> None:
        """Call a function that releases the GIL for every task, by all threads where there is `work` for them.

        It is counted in multiplications, as in a product of matrices.
        """
        if self.size == 1 or len(tasks) < 2 or work < WORTH_SHARING:
            for task in tasks:
                function(task)
            return
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor

            self._pool = ThreadPoolExecutor(self.size)
        if self._helpers:
            desk().leave(True)  # who waits for compiled jobs would be in the way
        context = copy_context()  # where numpy keeps what it warns of
        for _ in self._pool.map(lambda task: context.copy().run(function, task), tasks):
            pass

    def run(self, job: Job) -> None:
        """Do a compiled job with all threads."""
        with self._lock:
            self._call(job.parts)
            desk().run(job)

    def run_all(self, jobs: NDArray[np.int64]) -> None:
        """Do compiled jobs one after another, each as `written`, [jobs, numbers]."""
        with self._lock:
            self._call(int(jobs[:, 0].max()))
            desk().run_all(jobs)

    def _call(self, parts: int) -> None:
        """Have helpers for so many parts awake."""
        desk().leave(False)
        if parts > 1 and len(self._helpers) < self.size - 1:
            self._hire()
        for _ in range(min(parts - 1, len(self._idle))):
            self._idle.pop().put(True)

    def _hire(self) -> None:
        for _ in range(self.size - 1):
            call: SimpleQueue[bool] = SimpleQueue()
            thread = threading.Thread(target=self._help, args=(call,), name="weightkit", daemon=True)
            self._helpers.append((thread, call))
            thread.start()

    def _help(self, call: SimpleQueue[bool]) -> None:
        staying = True
        while staying:
            desk().share(PATIENCE)
            self._idle.append(call)
            if desk().is_busy and self._not_called(call):  # with a job that began before it could be called
                continue
            staying = call.get()

    def _not_called(self, call: SimpleQueue[bool]) -> bool:
        """Whether a helper is idle no more by its own will, and not because it was called."""
        try:
            self._idle.remove(call)
        except ValueError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Job:
    """A compiled job: in how many parts it is shared out, and the arguments of its products, or of what else it is."""

    parts: int
    products: Sequence[list[Any]]  # numbers

    def written(self) -> NDArray[np.int64]:
        """The job as numbers, to be done with others."""
        from weightkit import compiled

        numbers = np.zeros(compiled.DESK, np.int64)
        numbers[0] = self.parts
        self.write(numbers)
        return numbers

    def write(self, numbers: Any) -> None:
        """Put the arguments of the products where they lie on a desk."""
        for start, arguments in zip(_starts(), self.products, strict=False):
            numbers[start : start + len(arguments)] = arguments


@functools.cache
def _starts() -> list[int]:
    """Where the arguments of each product lie."""
    from weightkit import compiled

    return [compiled.FIRST_ARGUMENT + i * compiled.ARGUMENT_STEP for i in range(compiled.MOST_PRODUCTS)]


class Desk:
    """Where the arguments of a compiled job lie while threads share it."""

    def __init__(self) -> None:
        from weightkit import compiled

        self._numbers = (ctypes.c_int64 * compiled.DESK)()
        self._leave = compiled.LEAVE
        self._address = ctypes.addressof(self._numbers)
        self._run, self._share, self._run_all = compiled.sharing()

    def run(self, job: Job) -> None:
        """Do a job."""
        job.write(self._numbers)
        self._run(self._address, job.parts)

    def run_all(self, jobs: NDArray[np.int64]) -> None:
        """Do jobs one after another, [jobs, DESK] numbers side by side."""
        self._run_all(self._address, jobs.ctypes.data, len(jobs))

    def leave(self, now: bool) -> None:
        """Have who shares wait for no more jobs, or wait again."""
        self._numbers[self._leave] = now

    @property
    def is_busy(self) -> bool:
        """Whether there are parts of a job to hand out."""
        return bool(self._numbers[0] & (1 << 24) - 1)

    def share(self, patience: int) -> None:
        """Help with jobs until there was none for so many turns."""
        self._share(self._address, patience)


@functools.cache
def desk() -> Desk:
    """The desk of the crew, made when the first job is done."""
    return Desk()


crew = Crew()


def set_threads(count: int | None = None) -> None:
    """Run models with so many threads; None for one on each processor that this process may use.

    What is computed does not depend on it. Raises EngineError for what is no number of threads.
    """
    crew.resize(None if count is None else whole_number(count, "a number of threads", least=1))


def by_rows(function: Callable[..., Array], *arrays: Array) -> Array:
    """A function of arrays [..., d], number by number, of which threads take some rows each where there are many."""
    if arrays[0].size < 1 << 16:
        return function(*arrays)
    flat = [array.reshape(-1, array.shape[-1]) for array in arrays]
    step = max(1, (1 << 16) // flat[0].shape[1])
    out = np.empty_like(flat[0])

    def some(first: int) -> None:
        out[first : first + step] = function(*(array[first : first + step] for array in flat))

    crew.map(some, range(0, len(out), step), work=flat[0].size << 9)  # as an exponential takes so long
    return out.reshape(arrays[0].shape)


atexit.register(crew.dismiss)  # while compiled code still lies where the helpers run it
if hasattr(os, "register_at_fork"):  # a child has this thread only
    os.register_at_fork(after_in_child=crew.forget)
