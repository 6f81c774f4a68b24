"""A data set on one machine or a hundred: the only door to Dask's distributed engine.

A process of its own computes every scan, so what kills it (too little memory, a fault in a library) costs that scan
and no other. The engine starts the process again and gives the scan to the next; a scan whose processes have died
too often is tried once more while nothing else runs, since a scan may have died of its neighbour, and then named.
"""

import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from time import perf_counter
from typing import Any

from thinslice.errors import InputRefused
from thinslice.job import Job, Outcome, clean_up, reason_of, run_job

WORKER_BYTES = 2 << 30
"""Memory that a worker should have: 512 x 512 x 60 voxels that become 343 slices take 1.3 GiB with the network."""

_SILENT = 60
"""Above all levels of `logging`."""

_TOO_OFTEN = (
    "got {} deaths of the process that worked on it, the last ones with nothing beside it (more memory than there "
    "is, or a fault in a library); need a scan that can be computed; next: try it alone with 'thinslice enhance', or "
    "on a machine with more memory"
)


_WITHOUT_US = (
    "got a scheduler or a worker that lacks a package ({}); need thinslice[batch] on all of them; next: install it "
    "there, the same version as here, and start them again"
)


@dataclass(frozen=True)
class Engine:
    """Where the work is done.

    Attributes:
        workers: processes on this machine.
        scheduler: address of a Dask scheduler to use instead, such as tcp://HOST:8786.
        allowed_failures: deaths of a process that a scan may cause before it is set aside.
    """

    workers: int = 1
    scheduler: str | None = None
    allowed_failures: int = 1


@dataclass(frozen=True)
class Progress:
    """After a scan: how many of how many, what became of it, and the seconds that the rest will take, if known."""

    done: int
    scans: int
    outcome: Outcome
    seconds_left: float | None


def check_installed() -> None:
    """Refuse where the engine is missing.

    Raises:
        InputRefused: it is.
    """
    try:
        import distributed  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputRefused(
            f"a data set needs {(error.name or '').partition('.')[0]}, which is not installed; "
            "next: pip install 'thinslice[batch]'"
        ) from None


def cores_and_bytes() -> tuple[int, int]:
    """What this process may use, limits of a container or of a job scheduler included."""
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    return int(CPU_COUNT), int(MEMORY_LIMIT)


def choose_workers(cores: int, memory_bytes: int) -> int:
    """One process for every core, as far as the memory goes: the rest of a core's work is shared by no other."""
    return max(1, min(cores, memory_bytes // WORKER_BYTES))


def read_shard(text: str | None, environment: Mapping[str, str]) -> tuple[int, int]:
    """``i/n`` as two numbers, 1 <= i <= n; without, the place of this task in a Slurm array; else 1 of 1.

    Raises:
        InputRefused: it is something else.
    """
    if text is None:
        return _shard_of_slurm(environment)
    with suppress(ValueError):
        index, count = (int(word) for word in text.split("/"))
        if 1 <= index <= count:
            return index, count
    raise InputRefused(f"got --shard {text}; need i/n with 1 <= i <= n, such as 3/8; next: correct it")


def _shard_of_slurm(environment: Mapping[str, str]) -> tuple[int, int]:
    try:
        task, least, count = (int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "MIN", "COUNT"))
        step = int(environment.get("SLURM_ARRAY_TASK_STEP", "1"))
    except (KeyError, ValueError):
        return 1, 1
    index = (task - least) // max(step, 1) + 1
    if not 1 <= index <= count:
        raise InputRefused(
            f"got task {task} of a Slurm array that starts at {least} and has {count}; need an array with even steps; "
            "next: give --shard i/n"
        )
    return index, count


def run(
    jobs: Sequence[Job],
    engine: Engine,
    tell: Callable[[Progress], None],
    begin: Callable[[int], None] = lambda workers: None,
) -> list[Outcome]:
    """Do all jobs; every one gets an outcome, in the order in which they end.

    ``begin`` is told how many workers there are, 0 where a scheduler waits for them.

    After an interruption what was unfinished is cleaned up, and what is done stays.

    Raises:
        InputRefused: there is no scheduler at the address.
    """
    unfinished = {job.name: job for job in jobs}
    clock = _Clock(jobs)
    outcomes = []

    def end(job: Job, outcome: Outcome) -> None:
        del unfinished[job.name]
        outcomes.append(outcome)
        tell(clock.after(job, outcome))

    try:
        with _client(engine) as client:
            begin(engine.workers if engine.scheduler is None else len(client.nthreads()))
            if engine.scheduler is not None:
                _check_workers(client)
            _do_all(client, jobs, engine, end)
    except _OutOfReach as error:
        for job in list(unfinished.values()):
            reason = f"got the end of the engine ({error}); need a scheduler that runs to the end; next: run again"
            end(job, Outcome(job.name, "failed", reason))
    finally:
        if engine.scheduler is None:  # the workers are gone by now
            for job in unfinished.values():
                if job.stage.exists() or job.lock.exists():
                    clean_up(job)
    return outcomes


def _check_workers(client: Any) -> None:
    """A worker that lacks thinslice ends with the first scan, without a word to us.

    Raises:
        InputRefused: there is one now.
    """

    def lacks_us() -> bool:  # sent as it stands here: a function of the module would need the module there
        from importlib.util import find_spec

        try:
            return find_spec("thinslice") is None
        except ImportError:
            return True

    lacking = [address for address, lacks in client.run(lacks_us).items() if lacks is True]
    if lacking:
        raise InputRefused(_WITHOUT_US.format(f"thinslice, on {lacking[0]}"))


def dask_setup(_worker: Any) -> None:
    """Called by a worker that starts: Ctrl-C, which all processes of a terminal hear, is for the one that leads."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    logging.disable(_SILENT)


class _OutOfReach(Exception):
    """The engine no longer answers."""


def _do_all(client: Any, jobs: Sequence[Job], engine: Engine, end: Callable[[Job, Outcome], None]) -> None:
    suspects: list[Job] = []
    for job, outcome in _each(client, jobs, lambda: _room(client, engine)):
        if outcome is None:
            suspects.append(job)
        else:
            end(job, outcome)
    deaths = 2 * (engine.allowed_failures + 1) if engine.scheduler is None else "too many"
    for job, outcome in _each(client, suspects, lambda: 1):
        if outcome is None:
            clean_up(job)
        end(job, outcome or Outcome(job.name, "failed", _TOO_OFTEN.format(deaths)))


def _each(client: Any, jobs: Sequence[Job], room: Callable[[], int]) -> Iterator[tuple[Job, Outcome | None]]:
    """Every job and what became of it, None where its process has died too often; no more than ``room`` at a time.

    The engine would take all at once, but it puts several into the hands of a process, and when that dies it holds all
    of them guilty.

    Raises:
        _OutOfReach: the engine no longer answers.
    """
    from distributed import as_completed

    waiting = iter(jobs)
    flying: dict[Any, Job] = {}
    landing = as_completed()
    while True:
        try:
            while len(flying) < room() and (job := next(waiting, None)) is not None:
                future = client.submit(run_job, job, pure=False)
                flying[future] = job
                landing.add(future)
            if not flying:
                return
            future = next(landing)
            job = flying.pop(future)
            outcome = _outcome(job, future)
            future.release()
        except Exception as error:  # it has many of its own
            raise _OutOfReach(reason_of(error)) from error
        yield job, outcome


def _outcome(job: Job, future: Any) -> Outcome | None:
    from distributed.scheduler import KilledWorker

    try:
        found: Outcome = future.result()
    except KilledWorker:
        return None
    except Exception as error:
        said = reason_of(error)
        if isinstance(error, ModuleNotFoundError) or isinstance(error.__cause__, ModuleNotFoundError):
            return Outcome(job.name, "failed", _WITHOUT_US.format(said))
        return Outcome(job.name, "failed", f"got an unfinished scan ({said}); need workers that run; next: run again")
    return found


def _room(client: Any, engine: Engine) -> int:
    """As many scans as workers; with a scheduler that may start more when work waits, twice that."""
    if engine.scheduler is None:
        return engine.workers
    return 2 * max(1, sum(client.nthreads().values()))


@contextmanager
def _client(engine: Engine) -> Iterator[Any]:
    import dask
    from distributed import Client, LocalCluster

    loggers = [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]
    for name in [*loggers, "asyncio", "tornado.application"]:
        logging.getLogger(name).setLevel(_SILENT)  # what happens to a worker is told by us
    if engine.scheduler is not None:
        try:
            client = Client(engine.scheduler)
        except (OSError, ValueError) as error:
            raise InputRefused(
                f"got no answer from a scheduler at {engine.scheduler} ({reason_of(error)}); need a running one; "
                "next: start 'dask scheduler', or leave --scheduler out"
            ) from None
        try:
            yield client
        finally:
            with suppress(Exception):  # it may be gone
                client.close()
        return
    settings = {
        "distributed.scheduler.allowed-failures": engine.allowed_failures,
        "distributed.nanny.pre-spawn-environ.DASK_LOGGING__DISTRIBUTED": _SILENT,
        "distributed.scheduler.worker-saturation": 1.0,  # a process that dies takes no waiting scan along
    }
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(settings))
        with _held_back():
            cluster = LocalCluster(
                n_workers=0,
                threads_per_worker=1,
                memory_limit=0,  # else a worker would be ended at its share, even where nothing runs beside it
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                preload=[__name__],
                silence_logs=_SILENT,
            )
            stack.enter_context(cluster)
            client = stack.enter_context(Client(cluster))
        cluster.scale(engine.workers)
        yield client


@contextmanager
def _held_back() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait for the end; the threads that start meanwhile, and their processes, do not hear them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which would let them through again
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


class _Clock:
    """How long the rest will take: as long for a byte of it as for a byte of what was computed."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.started = perf_counter()
        self.sizes = {job.name: _size(job) for job in jobs}
        self.left = sum(self.sizes.values())
        self.computed, self.done = 0, 0

    def after(self, job: Job, outcome: Outcome) -> Progress:
        size = self.sizes[job.name]
        self.left -= size
        self.done += 1
        self.computed += size if outcome.state == "done" else 0
        passed = perf_counter() - self.started
        seconds = passed * self.left / self.computed if self.computed else None
        return Progress(self.done, len(self.sizes), outcome, seconds)


def _size(job: Job) -> int:
    with suppress(OSError):
        if job.source.is_dir():
            return sum(file.stat().st_size for file in os.scandir(job.source))
        return job.source.stat().st_size
    return 0
