"""A data set on one machine or a hundred: the only door to Dask's distributed engine.

A process of its own computes every scan, so what kills it (too little memory, a fault in a library) costs that scan
and no other. The engine starts the process again and gives the scan to the next; a scan whose processes have died
too often is tried once more while nothing else runs, since a scan may have died of its neighbour, and then named.
"""

import logging
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import resource_tracker
from time import perf_counter, sleep
from typing import Any

from thinslice.datasets.job import Job, Outcome, clean_up
from thinslice.errors import InputRefused, reason_of

logger = logging.getLogger(__name__)

WORKER_BYTES = 2 << 30
"""Memory that a worker should have: 512 x 512 x 60 voxels that become 343 slices take 1.3 GiB with the network."""

COMBINING_BYTES = 3 << 30
"""Likewise where scans are combined: three stacks of 320 x 320 x 30 to 0.8 mm take 2.3 GiB (docs/combine.md)."""

_SILENT = 60
"""Above all levels of `logging`."""

_DEBUG = "THINSLICE_DEBUG"
"""The environment variable of our workers that lets them tell on standard error what they do."""

_TOO_OFTEN = (
    "got {} deaths of the process that worked on it, the last ones with nothing beside it (more memory than there "
    "is, or a fault in a library); need a scan that can be computed; next: try it alone with 'thinslice enhance', or "
    "on a machine with more memory"
)
"""The outcome of a scan whose processes died, and how many of them did."""

_KEPT_BYTES = 32 << 20
"""What the C library may keep of freed memory: as much as it does by itself. The engine's 64 KiB cost a tenth of the
time of a scan, in page faults (LOG.md)."""

_LOOK_SECONDS = 0.01
"""How often we look for a scan that has landed: nobody notices, and it costs no time worth a word."""

_COUNT_SECONDS = 1.0
"""How often we look for workers, while none lands."""


@dataclass(frozen=True)
class Engine:
    """Says where the work is done.

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
    """Says after a scan how many are done, what became of it, and the seconds that the rest will take, if known."""

    done: int
    scans: int
    outcome: Outcome
    seconds_left: float | None


def check_installed() -> None:
    """Refuses to go on where the engine is missing.

    Raises:
        InputRefused: it is.
    """
    try:
        import cryptography  # noqa: F401
        import distributed  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputRefused(
            got=f"no {(error.name or '').partition('.')[0]}",
            need="it for a data set",
            next="pip install 'thinslice[batch]'",
            code="batch-not-installed",
        ) from error


def cores_and_bytes() -> tuple[int, int]:
    """Returns what this process may use, limits of a container or of a job scheduler included."""
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    return int(CPU_COUNT), int(MEMORY_LIMIT)


def choose_workers(cores: int, memory_bytes: int, worker_bytes: int = WORKER_BYTES) -> int:
    """Returns how many processes to start: one for every core, as far as the memory goes.

    Args:
        cores, memory_bytes: of this machine, see `cores_and_bytes`.
        worker_bytes: memory that each should have.

    Example:
        >>> choose_workers(cores=8, memory_bytes=5 << 30)
        2
    """
    return max(1, min(cores, memory_bytes // worker_bytes))


def read_shard(text: str | None, environment: Mapping[str, str]) -> tuple[int, int]:
    """Returns ``i/n`` as two numbers, 1 <= i <= n; without, the place of this task in a Slurm array; else 1 of 1.

    Raises:
        InputRefused: it is something else.

    Example:
        >>> read_shard("3/8", {})
        (3, 8)
        >>> slurm = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "4"}
        >>> read_shard(None, slurm)
        (3, 4)
    """
    if text is None:
        return _shard_of_slurm(environment)
    with suppress(ValueError):
        index, count = (int(word) for word in text.split("/"))
        if 1 <= index <= count:
            return index, count
    raise InputRefused(
        got=f"`shard={text}`", need="i/n with 1 <= i <= n, such as 3/8", next="correct it", code="not-a-shard"
    )


def _shard_of_slurm(environment: Mapping[str, str]) -> tuple[int, int]:
    try:
        task, least, count = (int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "MIN", "COUNT"))
        step = int(environment.get("SLURM_ARRAY_TASK_STEP", "1"))
    except (KeyError, ValueError):
        return 1, 1
    # Slurm counts tasks from any number in steps of any size, as in --array=5-17:4.
    index = (task - least) // max(step, 1) + 1
    if not 1 <= index <= count:
        raise InputRefused(
            got=f"task {task} of a Slurm array that starts at {least} and has {count}",
            need="an array with even steps",
            next="give `shard=i/n`",
            code="uneven-slurm-array",
        )
    return index, count


def run(
    jobs: Sequence[Job],
    engine: Engine,
    report: Callable[[Progress], None],
    report_workers: Callable[[int], None] = lambda workers: None,
) -> None:
    """Does all jobs; each gets an outcome.

    After an interruption what was unfinished is cleaned up, and what is done stays.

    Args:
        jobs: the scans.
        engine: where to do them.
        report: called when a job ends.
        report_workers: called with the number of workers: at the start, and when the last has gone or the first come.

    Raises:
        InputRefused: there is no scheduler at the address, or a worker of it lacks thinslice.
    """
    unfinished = {job.name: job for job in jobs}
    clock = _Clock(jobs)

    def end(job: Job, outcome: Outcome) -> None:
        del unfinished[job.name]
        report(clock.after(job, outcome))

    try:
        with _client(engine) as client:
            _do_all(client, jobs, _Crew(client, engine, clock, report_workers), end)
    except _OutOfReach as error:
        logger.debug("the engine no longer answers", exc_info=error)
        for job in list(unfinished.values()):
            reason = f"got the end of the engine ({error}); need a scheduler that runs to the end; next: run again"
            end(job, Outcome(job.name, "failed", reason))
    finally:
        if engine.scheduler is None:  # the workers are gone by now
            with _held_back(forget=True):
                for job in unfinished.values():
                    if os.path.exists(job.stage) or os.path.exists(job.lock):
                        clean_up(job)


def dask_setup(_worker: Any) -> None:
    """Prepares a worker that starts: Ctrl-C, which all processes of a terminal hear, is for the one that leads."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        # Inherited from the thread that started it (see `_held_back`): the engine ends workers by this signal.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    if not os.environ.get(_DEBUG):
        logging.disable(_SILENT)
        # A worker that starts again just as the run ends dies of it; Python would print its traceback beside our lines.
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 -- as long as the process
        return
    handler = logging.StreamHandler()
    # Lines of several workers come mixed; the number of the process tells them apart.
    handler.setFormatter(logging.Formatter("%(relativeCreated)7.0f ms  [%(process)d] %(name)s: %(message)s"))
    package = logging.getLogger("thinslice")
    package.addHandler(handler)
    package.setLevel(logging.DEBUG)


class _OutOfReach(Exception):
    """Says that the engine no longer answers."""


class _Crew:
    """Counts the workers; calls ``report`` when the last has gone or the first come."""

    def __init__(self, client: Any, engine: Engine, clock: "_Clock", report: Callable[[int], None]) -> None:
        self.client, self.engine, self.clock, self.report = client, engine, clock, report
        self.has_workers: bool | None = None

    def room(self) -> int:
        """Returns how many scans to hand out: as many as workers; where more may start when work waits, twice that."""
        if self.engine.scheduler is None:
            workers = self.clock.workers = room = self.engine.workers
        else:
            there = self.client.nthreads()
            workers, self.clock.workers = len(there), max(1, sum(there.values()))
            room = 2 * self.clock.workers
        if self.has_workers is not bool(workers):
            self.has_workers = bool(workers)
            self.report(workers)
        return room


def _do_all(client: Any, jobs: Sequence[Job], crew: _Crew, end: Callable[[Job, Outcome], None]) -> None:
    # A process that dies takes the scan of its neighbour along, and both look guilty: so all that died too often are
    # done once more, one at a time with nothing beside them, and only who dies then is named.
    suspects: list[Job] = []
    for job, outcome in _each(client, jobs, crew.room):
        if outcome is None:
            suspects.append(job)
        else:
            end(job, outcome)
    local = crew.engine.scheduler is None
    # Each of the two rounds ends with one death more than is allowed; what another scheduler allows is not known.
    deaths = 2 * (crew.engine.allowed_failures + 1) if local else "too many"
    for job, outcome in _each(client, suspects, lambda: min(1, crew.room())):
        if outcome is None:
            clean_up(job)
        end(job, outcome or Outcome(job.name, "failed", _TOO_OFTEN.format(deaths)))


def _each(client: Any, jobs: Sequence[Job], room: Callable[[], int]) -> Iterator[tuple[Job, Outcome | None]]:
    """Yields every job and what became of it, None where its process died too often; at most ``room`` at a time.

    The engine would take all at once, but it puts several into the hands of a process, and when that dies it holds all
    of them guilty.

    Raises:
        InputRefused: a worker lacks thinslice.
        _OutOfReach: the engine no longer answers.
    """
    from distributed import as_completed

    waiting = iter(jobs)
    flying: dict[Any, Job] = {}
    # An error is a result here: raised, that of one scan would end the run.
    landing = as_completed(with_results=True, raise_errors=False)
    start, ours = _make_start(), version("thinslice")
    while True:
        try:
            while len(flying) < room() and (job := next(waiting, None)) is not None:
                # As bytes, which a machine without thinslice can take. Not `pure`: the engine knows a pure call by its
                # arguments, and could answer a suspect's second try with the failure of the first.
                future = client.submit(start, pickle.dumps(job), ours, pure=False)
                flying[future] = job
                landing.add(future)
            if not flying:
                return
            if not _has_landed(landing):
                continue
            future, result = next(landing)
            job = flying.pop(future)
            outcome = _outcome(job, result)
            # Else the engine keeps a record of every scan until the run ends.
            future.release()
        except InputRefused:
            raise
        except Exception as error:  # it has many of its own
            raise _OutOfReach(reason_of(error)) from error
        yield job, outcome


def _make_start() -> Callable[[bytes, str], bytes]:
    """Returns what a worker is asked to do, sent as it stands here.

    A worker that lacks thinslice could not even read a function of ours; it would end, without a word to us.
    """

    def start(job: bytes, version: str) -> bytes:
        import pickle
        from importlib.metadata import version as version_of

        from distributed import get_worker

        try:
            found = version_of("thinslice")
            from thinslice.datasets.job import run_job
        except ImportError as error:
            raise ModuleNotFoundError(f"{get_worker().address}: {error}") from error
        if found != version:
            raise ModuleNotFoundError(f"{get_worker().address}: version {found}, here {version}")
        return pickle.dumps(run_job(pickle.loads(job)))

    return start


def _has_landed(landing: Any) -> bool:
    """Says whether a scan has landed, within a while."""
    until = perf_counter() + _COUNT_SECONDS
    while perf_counter() < until:
        if landing.has_ready():
            return True
        sleep(_LOOK_SECONDS)
    return False


def _outcome(job: Job, result: Any) -> Outcome | None:
    """Returns the outcome in what the engine gives back: that of a worker, or an error, bare or as three parts."""
    from distributed.scheduler import KilledWorker

    if isinstance(result, bytes):
        found: Outcome = pickle.loads(result)
        return found
    error = result[1] if isinstance(result, tuple) else result
    if isinstance(error, KilledWorker):
        return None
    if isinstance(error, ModuleNotFoundError):
        raise InputRefused(
            got=f"a worker that cannot help ({reason_of(error)})",
            need="thinslice on all of them, the same version as here",
            next="install it there, start the worker again, and run again: what is done stays",
            code="worker-without-thinslice",
        ) from error
    reason = f"got an unfinished scan ({reason_of(error)}); need workers that run; next: run again"
    return Outcome(job.name, "failed", reason)


@contextmanager
def _client(engine: Engine) -> Iterator[Any]:
    import dask
    from distributed import Client, LocalCluster

    loggers = [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]
    for name in [*loggers, "asyncio", "tornado.application"]:
        logging.getLogger(name).setLevel(_SILENT)  # what happens to a worker is reported by us
    if engine.scheduler is not None:
        try:
            client = Client(engine.scheduler)
        except (OSError, ValueError) as error:
            raise InputRefused(
                got=f"no answer from a scheduler at {engine.scheduler} ({reason_of(error)})",
                need="a running one",
                next="start 'dask scheduler', or leave `scheduler` out",
                code="no-scheduler",
            ) from error
        try:
            yield client
        finally:
            with suppress(Exception):  # it may be gone
                client.close()
        return
    settings: dict[str, Any] = {
        "distributed.scheduler.allowed-failures": engine.allowed_failures,
        "distributed.nanny.pre-spawn-environ.DASK_LOGGING__DISTRIBUTED": _SILENT,
        "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": _KEPT_BYTES,
        "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": _KEPT_BYTES,
        "distributed.scheduler.http.routes": [],  # nothing is served
        "distributed.worker.http.routes": [],
        "distributed.scheduler.worker-saturation": 1.0,  # a process that dies takes no waiting scan along
    }
    stack = ExitStack()
    try:
        stack.enter_context(dask.config.set(settings))
        stack.enter_context(_debug_in_environment())
        with _held_back():
            cluster = LocalCluster(
                n_workers=0,
                # One scan in a process: two would die together, and share its threads.
                threads_per_worker=1,
                memory_limit=0,  # else a worker would be ended at its share, even where nothing runs beside it
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                security=True,  # else whoever has an account on this machine could give the workers orders
                preload=[__name__],
                silence_logs=_SILENT,
            )
            stack.enter_context(cluster)
            client = stack.enter_context(Client(cluster))
        # Outside of the block: workers take seconds to start, and Ctrl-C is heard again by us; the threads that start
        # them still hear nothing.
        cluster.scale(engine.workers)
        yield client
    finally:
        # The workers end in a moment; a second Ctrl-C would leave that half done.
        with _held_back(forget=sys.exc_info()[0] is not None):
            stack.close()


@contextmanager
def _debug_in_environment() -> Iterator[None]:
    """Makes workers that start meanwhile tell as much as the process that leads them.

    Not by Dask's settings for their environment: these stay in ours afterwards, and what is there comes first.
    """
    earlier = os.environ.pop(_DEBUG, None)
    os.environ[_DEBUG] = "1" if logger.isEnabledFor(logging.DEBUG) else ""
    try:
        yield
    finally:
        del os.environ[_DEBUG]
        if earlier is not None:
            os.environ[_DEBUG] = earlier


@contextmanager
def _held_back(forget: bool = False) -> Iterator[None]:
    """Makes Ctrl-C and a polite kill wait; threads that start meanwhile, and their processes, hear neither.

    Args:
        forget: whether those that came meanwhile are not heard at all: the run has been interrupted already, and a
            second one, heard late, would end the program before it has told what it did.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # which would end the process started here:
    resource_tracker.ensure_running()  # it does not hear the others, but lets them through to us again
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        while forget and signal.sigtimedwait({signal.SIGINT, signal.SIGTERM}, 0):
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


class _Clock:
    """Estimates how long the rest will take: as long for a byte that has to be computed as for those that were.

    A scan whose answer is there is thought to be kept, others to be computed, until it is seen what becomes of such.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.sizes = {job.name: _size(job) for job in jobs}
        self.there = {job.name: os.path.exists(job.sidecar) and not job.redo for job in jobs}
        self.left, self.seen, self.computed = ([0, 0] for _ in range(3))  # bytes of those without, and with, an answer
        for name, size in self.sizes.items():
            self.left[self.there[name]] += size
        self.seconds, self.done, self.workers = 0.0, 0, 1

    def after(self, job: Job, outcome: Outcome) -> Progress:
        size, kind = self.sizes[job.name], self.there[job.name]
        self.left[kind] -= size
        self.seen[kind] += size
        self.done += 1
        if outcome.state == "done":
            self.computed[kind] += size
            self.seconds += outcome.seconds
        shares = [self.computed[k] / self.seen[k] if self.seen[k] else float(not k) for k in (False, True)]
        to_compute = sum(left * share for left, share in zip(self.left, shares, strict=True))
        computed = sum(self.computed)
        seconds = self.seconds / computed * to_compute / self.workers if computed else None
        return Progress(self.done, len(self.sizes), outcome, seconds)


def _size(job: Job) -> int:
    return sum(map(_size_of_scan, job.scans))


def _size_of_scan(job: Job) -> int:
    with suppress(OSError):
        if job.files is not None:
            return sum((job.source / name).stat().st_size for name in job.files)
        if job.source.is_dir():
            return sum(file.stat().st_size for file in os.scandir(job.source))
        return job.source.stat().st_size
    return 0
