"""Cluster: work in other processes: by a Dask scheduler that runs already, or by one that is started for it.

Any `concurrent.futures.Executor` does as well. This is how the command line comes by one.
"""

from __future__ import annotations

import logging
import re
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from weightkit.errors import ClusterError

T = TypeVar("T")

PATIENCE = 5  # seconds that a scheduler has to answer
START = 60  # seconds that processes have to start
RETRIES = 2  # of a task that failed; one whose worker died is done again in any case
MOST_PROCESSES = 256
_SCHEDULER = re.compile(r"(tcp|tls|ucx|wss?)://[^\s/]+:\d{1,5}/?")
_SAME = ("weightkit", "numpy", "Python")  # in every worker, or results might not be the same to the bit


@contextmanager
def connect(where: str) -> Iterator[Executor]:
    """An executor of `tcp://host:port`, a Dask scheduler, or of `local:N`, N processes that live as long as this.

    Raises ClusterError where there is none of this version, and where its workers are lost.
    """
    count = _processes(where)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        try:
            import distributed
            from distributed.comm import CommClosedError
        except ImportError as error:
            raise ClusterError(f"{where}: {error.name} is not installed; pip install 'weightkit[cluster]'") from None
        stack.enter_context(_quiet())
        address = where if count is None else stack.enter_context(_started(where, count))
        client = _soon(lambda: distributed.Client(address, timeout=PATIENCE, set_as_default=False), where)
        stack.callback(client.close, timeout=PATIENCE)
        _require_same(client, where)
        executor = client.get_executor(pure=False, retries=RETRIES)
        stack.callback(executor.shutdown, wait=False)
        try:
            yield executor
        except distributed.KilledWorker:
            raise ClusterError(f"{where}: one worker after another died of the same task; have they memory?") from None
        except ModuleNotFoundError as error:
            raise ClusterError(f"{where}: its workers do not have {error.name}; install weightkit there") from None
        except (CancelledError, CommClosedError) as error:
            raise ClusterError(f"{where}: the scheduler is gone: {_line(error)}") from None


def _processes(where: str) -> int | None:
    """The N of local:N; None for the address of a scheduler."""
    if re.fullmatch(r"local:\d{1,9}", where) and 1 <= int(where[6:]) <= MOST_PROCESSES:
        return int(where[6:])
    if not _SCHEDULER.fullmatch(where):
        raise ClusterError(
            f"{where}: give tcp://host:port, a Dask scheduler, or local:N, 1 to {MOST_PROCESSES} processes"
        )
    return None


@contextmanager
def _started(where: str, count: int) -> Iterator[Any]:
    """A scheduler with so many processes, each of one thread, which leave nothing behind."""
    import dask
    from distributed import LocalCluster

    environment = "distributed.nanny.pre-spawn-environ"
    silent = dask.config.get(environment) | {"DASK_LOGGING__DISTRIBUTED": "critical"}
    with (
        tempfile.TemporaryDirectory(prefix="weightkit-", ignore_cleanup_errors=True) as folder,
        dask.config.set({environment: silent, "temporary-directory": folder}),
    ):
        try:
            cluster = LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                processes=True,
                memory_limit=0,  # it would count the pages of files that are mapped
                dashboard_address=None,
                silence_logs=logging.CRITICAL + 1,
                preload=[__name__],
            )
        except Exception as error:
            raise ClusterError(f"{where}: cannot be started: {_line(error)}") from None
        with cluster:
            yield cluster


def dask_setup(_worker: object) -> None:
    """What Dask calls in each process that is started here: Ctrl-C is for who asked, who then ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C comes when this is over, and never to processes that begin meanwhile: they end with this one."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _soon(make: Callable[[], T], where: str) -> T:
    """What is made within a short time: who listens at an address may never say a word."""
    found: list[T | BaseException] = []

    def run() -> None:
        try:
            found.append(make())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(2 * PATIENCE)
    result = found[0] if found else TimeoutError("it takes connections, and says nothing")
    if isinstance(result, BaseException):
        raise ClusterError(f"{where}: no Dask scheduler of this version answers there: {_line(result)}")
    return result


def _require_same(client: Any, where: str) -> None:
    """Raise ClusterError where scheduler and workers are not there, or not of the versions that are here."""
    from distributed import __version__ as ours

    try:
        theirs = client.get_versions()["scheduler"]["packages"]["distributed"]
    except Exception as error:
        raise ClusterError(f"{where}: does not say its version: {_line(error)}") from None
    if theirs != ours:
        raise ClusterError(f"{where}: its scheduler is distributed {theirs}, here is {ours}; install the same on both")
    try:
        client.wait_for_workers(1, timeout=START)
        said = client.run(versions, on_error="return")
    except Exception as error:
        raise ClusterError(f"{where}: has no workers: {_line(error)}") from None
    try:
        said["scheduler"] = client.run_on_scheduler(versions)  # which unpacks tasks before workers do
    except Exception as error:
        said["scheduler"] = error
    for process, found in said.items():
        _require(f"{where}: {process if process == 'scheduler' else f'worker {process}'}", found)


def _require(who: str, found: dict[str, str] | BaseException) -> None:
    """Raise ClusterError unless the versions that a process has are those that are here."""
    if isinstance(found, ModuleNotFoundError):
        raise ClusterError(f"{who} does not have {found.name}; install weightkit there")
    if isinstance(found, BaseException):
        raise ClusterError(f"{who} cannot work: {_line(found)}")
    for name, version in versions().items():
        if found[name] != version:
            raise ClusterError(f"{who} has {name} {found[name]}, here is {version}")


def versions() -> dict[str, str]:
    """What has to be the same in every process."""
    import platform

    import numpy as np

    from weightkit import __version__

    return dict(zip(_SAME, (__version__, np.__version__, platform.python_version()), strict=True))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the log of Dask: what matters of it is said in one line."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith(("distributed", "tornado", "asyncio"))]
    before = [(logger, logger.level) for logger in map(logging.getLogger, names)]
    for logger, _ in before:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in before:
            logger.setLevel(level)


def _line(error: BaseException) -> str:
    """An exception in one line."""
    return ((str(error).splitlines() or [""])[0] or type(error).__name__)[:200]
