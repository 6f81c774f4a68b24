"""What runs networks: the only door to the libraries that do.

An engine opens the content of a model file and gives a session, which answers to arrays with arrays. To add an engine:
one class made from `Engine`, and a row of `ENGINES`.
"""

import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from thinslice.errors import ModelRefused
from thinslice.models.protocol import WORKERS

logger = logging.getLogger(__name__)

CARD_KEY = "thinslice.card"
"""Where the model file keeps its card (ONNX metadata)."""

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
        errors: tuple[type[Exception], ...] = (RuntimeError, *kinds)
        try:
            session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
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
        return _OnnxSession(session, errors)


class _OnnxSession(Session):
    def __init__(self, session: Any, errors: tuple[type[Exception], ...]) -> None:
        self.session, self.errors = session, errors
        self.inputs = frozenset(entry.name for entry in session.get_inputs())
        self.card = card_from(session.get_modelmeta().custom_metadata_map.get(CARD_KEY))

    def run(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        try:
            answers: list[np.ndarray] = self.session.run(None, dict(feed))
        except self.errors as error:
            raise _failure(error) from error
        return answers


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


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:LONGEST_REASON]
