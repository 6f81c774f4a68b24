"""What runs networks: the only door to the libraries that do.

An engine opens the content of a model file and gives a session, which answers to arrays with arrays. To add an engine:
one class made from `Engine`, and a row of `ENGINES`.
"""

import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread, Timer, current_thread, get_ident
from time import perf_counter
from typing import Any, ClassVar

import numpy as np

from thinslice.errors import ModelRefused
from thinslice.models.protocol import WORKERS

logger = logging.getLogger(__name__)

CARD_KEY = "thinslice.card"
"""Where the model file keeps its card (ONNX metadata)."""

LONGEST_CALL_SECONDS = 60.0
"""The first call of a network that takes longer is ended: ours need seconds for a slab of the largest scans, a graph
that loops for ever none that would be enough."""

TIMES_LONGER = 20.0
"""A later call may take so many times as long as the longest before it: other programs may want the processor too."""

ENDING_SECONDS = 0.1
"""How often threads that are to end are looked at."""

LONGEST_REASON = 200
"""Letters of what an engine says that an error repeats: some add a trace of pages."""


@dataclass(frozen=True)
class EngineSettings:
    """How networks are run.

    Attributes:
        engine: a key of `ENGINES`.
        device: what computes, such as ``cpu``; an engine says which it knows.
        threads: of the processor, for all that is computed at the same time; None for all cores that this process may
            use.
        precision: of the network's numbers, such as ``fp32``; an engine says which it knows.

    Example:
        >>> EngineSettings(threads=5).threads_per_call
        2
    """

    engine: str = "onnxruntime"
    device: str = "cpu"
    threads: int | None = None
    precision: str = "fp32"

    @property
    def threads_per_call(self) -> int:
        """Threads of one call of a network, one of `WORKERS` that run at the same time."""
        if self.threads is not None:
            return max(1, self.threads // WORKERS)
        # Linux alone has sched_getaffinity, which knows of cores that are not ours.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return max(1, (cores or 1) // WORKERS)


class Session(ABC):
    """A network that can be run; safe in several threads at once.

    Attributes:
        inputs: the names of what it is fed with.
        card: what the model file says of itself.
    """

    inputs: frozenset[str]
    card: dict[str, Any]

    @abstractmethod
    def run(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Returns the network's answers.

        Raises:
            MemoryError: there is not enough memory.
            ModelRefused: the engine has failed (code ``engine-failed``).
        """


class Engine(ABC):
    """A library that runs networks, with the settings it was chosen with.

    Attributes:
        devices: those it can compute on.
        precisions: those it can compute in.
    """

    devices: ClassVar[tuple[str, ...]]
    precisions: ClassVar[tuple[str, ...]]

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings

    @abstractmethod
    def open(self, content: bytes) -> Session:
        """Returns the network in the content of a model file.

        Raises:
            MemoryError: there is not enough memory.
            ModelRefused: the content is no network (``unreadable-network``), has no card (``no-card``), the library is
                not there (``engine-missing``), or it has failed (``engine-failed``).
        """


class _OnnxRuntime(Engine):
    """ONNX Runtime on the processor."""

    devices = ("cpu",)
    precisions = ("fp32",)

    REASONS_IN_THE_FILE = (
        "Fail",  # another version of ONNX
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NoModel",
        "NotImplemented",
        "UnicodeDecodeError",
    )
    """Names of the library's errors that tell, when a file is opened, that the file is no network it can run."""

    def open(self, content: bytes) -> Session:
        """Returns the network in the content of an ONNX file."""
        try:
            # Here and not above: whoever only interpolates, or asks for help, needs neither to wait for the library nor
            # to have it.
            import onnxruntime
            from onnxruntime.capi import onnxruntime_pybind11_state as library
        except ImportError as error:
            raise ModelRefused(
                got=f"no onnxruntime that can be loaded ({_short(error)})",
                need="that package to run a network",
                next="install it ('pip install onnxruntime'), or use `model='cubic'`, which needs none",
                code="engine-missing",
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.settings.threads_per_call
        # Nothing of its own on the terminal: what goes wrong is raised, in our words.
        options.log_severity_level = 4
        # Such plans are for inputs of one size; ours vary with the tile, the scan and the number of thin slices.
        options.enable_mem_pattern = False
        # Its errors have no class in common but Exception, so they are looked up; RuntimeError is what it makes of
        # errors of C++ that it does not know. Anything else is no failure of the engine and must not pass for one.
        kinds = [kind for kind in vars(library).values() if isinstance(kind, type) and issubclass(kind, Exception)]
        # Names in a damaged file need not be text, and then the library cannot even say what is wrong with it.
        errors: tuple[type[Exception], ...] = (RuntimeError, UnicodeDecodeError, *kinds)
        try:
            # No fallback: it would print of its first failure, and try the very same once more.
            session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"], enable_fallback=False
            )
            opened = _OnnxSession(session, errors)
        except errors as error:
            if type(error).__name__ in self.REASONS_IN_THE_FILE and "alloc" not in str(error):
                raise ModelRefused(
                    got=f"what is not a thinslice model of this version: no network can be read ({_short(error)})",
                    need="an .onnx file written by its 'thinslice train'",
                    next="check the path, or leave `model` out to use the embedded one",
                    code="unreadable-network",
                ) from error
            raise _failure(error) from error
        logger.debug("opened a network of %d bytes, %d threads a call", len(content), options.intra_op_num_threads)
        return opened


class _OnnxSession(Session):
    def __init__(self, session: Any, errors: tuple[type[Exception], ...]) -> None:
        self.session, self.errors = session, errors
        self.inputs = frozenset(entry.name for entry in session.get_inputs())
        self.card = card_from(session.get_modelmeta().custom_metadata_map.get(CARD_KEY))
        self.longest_seconds = 0.0

    def run(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        from onnxruntime import RunOptions

        most_seconds = max(LONGEST_CALL_SECONDS, TIMES_LONGER * self.longest_seconds)
        call = _Call(RunOptions())
        watch = Timer(most_seconds, call.end)
        watch.daemon = True  # it must not keep the program from ending
        started = perf_counter()
        _running[get_ident()] = call
        watch.start()
        try:
            answers: list[np.ndarray] = self.session.run(None, dict(feed), call.options)
        except self.errors as error:
            if call.is_ended:
                raise _endless(perf_counter() - started) from error
            raise _failure(error) from error
        finally:
            watch.cancel()
            del _running[get_ident()]
        self.longest_seconds = max(self.longest_seconds, perf_counter() - started)
        return answers


class _Call:
    """A call of a network, which can be ended from another thread: between two nodes of its graph, or two rounds."""

    def __init__(self, options: Any) -> None:
        self.options, self.is_ended = options, False

    def end(self) -> None:
        self.is_ended = self.options.terminate = True


_running: dict[int, _Call] = {}
"""The call that each thread waits for."""


@contextmanager
def network_threads(count: int) -> Iterator[Executor]:
    """Lends threads that run networks; a failure in the block, or an interruption, ends what they are computing.

    A network may need minutes, or never come to an end: it is not waited for.
    """
    threads: list[Thread] = []
    pool = ThreadPoolExecutor(count, initializer=lambda: threads.append(current_thread()))
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        # Not once and for all: a thread may be about to begin.
        while alive := [thread for thread in threads if thread.is_alive()]:
            for thread in alive:
                if (call := _running.get(thread.ident or 0)) is not None:
                    call.end()
            alive[0].join(ENDING_SECONDS)
        raise
    pool.shutdown()


ENGINES: dict[str, type[Engine]] = {"onnxruntime": _OnnxRuntime}
"""Name -> engine."""


def make_engine(settings: EngineSettings) -> Engine:
    """Returns the engine that is asked for.

    Raises:
        ModelRefused: there is no such engine, or it knows no such device or precision.
    """
    if settings.engine not in ENGINES:
        raise ModelRefused(
            got=f"engine {settings.engine!r}",
            need=f"one of {', '.join(ENGINES)}",
            next="choose one of them",
            code="no-such-engine",
        )
    kind = ENGINES[settings.engine]
    if settings.device not in kind.devices:
        raise ModelRefused(
            got=f"`device={settings.device!r}` for the engine {settings.engine}",
            need=f"one of {', '.join(kind.devices)}",
            next="choose one of them, or leave `device` out",
            code="no-such-device",
        )
    if settings.precision not in kind.precisions:
        raise ModelRefused(
            got=f"`precision={settings.precision!r}` for the engine {settings.engine}",
            need=f"one of {', '.join(kind.precisions)}",
            next="choose one of them, or leave `precision` out",
            code="no-such-precision",
        )
    return kind(settings)


def card_from(text: str | None) -> dict[str, Any]:
    """Returns the card that a model file keeps as text.

    Raises:
        ModelRefused: there is none, or it is none of ours.
    """
    try:
        card = json.loads(text or "null")
    except ValueError as error:
        raise _no_card() from error
    if not isinstance(card, dict):
        raise _no_card()
    return card


def _no_card() -> ModelRefused:
    return ModelRefused(
        got="a network that is not a thinslice model of this version: it has no card",
        need="an .onnx file written by 'thinslice train'",
        next="check the path, or leave `model` out to use the embedded one",
        code="no-card",
    )


def _failure(error: Exception) -> Exception:
    """Returns the engine's own error in our words: it is out of memory, or the network has failed."""
    # The library has no class for a lack of memory: it stands in the words alone.
    if "alloc" in str(error):
        return MemoryError(str(error))
    return ModelRefused(
        got=f"a failure of the inference engine ({_short(error)})",
        need="a model file that runs",
        next="use another `model`",
        code="engine-failed",
    )


def _endless(seconds: float) -> ModelRefused:
    return ModelRefused(
        got=f"a network without an answer after {seconds:.0f} s",
        need="a model file that comes to an end",
        next="use another `model`",
        code="engine-too-slow",
    )


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:LONGEST_REASON]
