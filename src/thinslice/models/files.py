"""Model files: each is a network with its card inside, and becomes a model of the kind that its inputs tell."""

import hashlib
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock

import numpy as np

from thinslice.errors import ModelRefused, ThinsliceError
from thinslice.files import read_bytes
from thinslice.models import plane_networks, slab_network
from thinslice.models.engine import EngineSettings, Session, make_engine
from thinslice.models.interpolations import interpolation
from thinslice.models.plane_networks import PlanesModel
from thinslice.models.protocol import Model
from thinslice.models.slab_network import SlabModel

logger = logging.getLogger(__name__)

CONTRACT = 2
"""The version of what a model file computes. 1: a slab's own thin slices; 2: shares of those up to both neighbours."""

KINDS: dict[frozenset[str], Callable[[Session, str, str], Model]] = {
    slab_network.INPUTS: SlabModel.from_session,
    plane_networks.INPUTS: PlanesModel.from_session,
}
"""What a model file is fed with -> what makes a model of its session, name and sha256.

It may raise KeyError, TypeError or ValueError where the card is not that of its kind.
"""

MOST_MODEL_BYTES = 512 * 2**20
"""A network of a hundred million numbers, fifty times the largest of ours: whatever is larger is none of them."""

MOST_KEPT = 8
"""Models that `load_once` keeps: a family of networks for planes has four, so two of them fit."""


def load_model(path: Path, name: str | None = None, settings: EngineSettings | None = None) -> Model:
    """Reads a model file written by ``thinslice train``.

    Args:
        path: an ONNX file with a thinslice card inside.
        name: what to call it; default: the name on its card.
        settings: of the engine; default: all cores that this process may use.

    Raises:
        ModelRefused: the file is missing, damaged, or not one of ours, or the engine cannot run it.
        MemoryError: there is not enough memory.
    """
    path = Path(path)
    # Read once: hash and network are of the same bytes, even if the file is replaced meanwhile.
    return _to_model(_content(path), path, name, settings or EngineSettings())


def load_once(path: Path, name: str | None = None, settings: EngineSettings | None = None) -> Model:
    """Does what `load_model` does, but makes no model again that this process has; safe in several Python threads.

    A file is known by its content: one that was replaced is another model. The last `MOST_KEPT` are kept.

    Raises:
        ModelRefused, MemoryError: as `load_model`.
    """
    path, settings = Path(path), settings or EngineSettings()
    content = _content(path)
    key = hashlib.sha256(content).hexdigest(), name, settings
    with _kept.lock:
        # Within the lock, loading included: of two threads that want the same model the second would load it again.
        if key not in _kept.models:
            _kept.models[key] = _to_model(content, path, name, settings)
        _kept.models.move_to_end(key)
        while len(_kept.models) > MOST_KEPT:
            _kept.models.popitem(last=False)
        return _kept.models[key]


class _Kept:
    """The models of `load_once`; a forked process starts anew, as the threads of the engine stay in its parent."""

    def __init__(self) -> None:
        self.inherited: list[object] = []
        self.forget()

    def forget(self) -> None:
        # A new one: the parent's may have been held by a thread, which no child has, and would never be released.
        self.lock = Lock()
        self.models: OrderedDict[tuple[str, str | None, EngineSettings], Model] = OrderedDict()

    def forked(self) -> None:
        self.inherited.append(self.models)  # closing a session without its threads crashes
        self.forget()


_kept = _Kept()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_kept.forked)


def run_once(path: Path, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the answer of a model file to inputs as they are, for comparison with the network it was made from."""
    (answer,) = make_engine(EngineSettings()).open(path.read_bytes()).run(inputs)
    return np.asarray(answer)


def _content(path: Path) -> bytes:
    try:
        return read_bytes(path, MOST_MODEL_BYTES)
    except OSError as error:
        raise ModelRefused(
            got=f"{path}, which cannot be read ({error.strerror})",
            need="a thinslice model file (.onnx)",
            next="check the path",
            code="unreadable-model-file",
        ) from error


def _to_model(content: bytes, path: Path, name: str | None, settings: EngineSettings) -> Model:
    """Makes the model in a file; what is wrong with it is raised with its path, what is wrong with us is not caught."""
    engine = make_engine(settings)
    try:
        session = engine.open(content)
    except ThinsliceError as error:
        raise error.at(path) from error
    # Before its kind: a file of another contract may be fed with the same and answer with something else.
    if session.card.get("contract") != CONTRACT:
        raise _foreign(path, f"its contract is {session.card.get('contract')}, not {CONTRACT}", "other-contract")
    if session.inputs not in KINDS:
        raise _foreign(path, f"it is fed with {', '.join(sorted(session.inputs))}", "unknown-kind-of-model")
    try:
        name = name or str(session.card["name"])
        model = KINDS[session.inputs](session, name, hashlib.sha256(content).hexdigest())
        interpolation(model.base)
    except (KeyError, TypeError, ValueError, ModelRefused) as error:  # a foreign card may hold anything
        raise _foreign(path, f"its card cannot be understood ({error})", "foreign-card") from error
    logger.debug("%s is %s, a %s", path, name, type(model).__name__)
    return model if settings.threads is None else model.with_threads(settings.threads)


def _foreign(path: Path, reason: str, code: str) -> ModelRefused:
    return ModelRefused(
        place=path,
        got=f"a network that is not a thinslice model of this version: {reason}",
        need="an .onnx file written by its 'thinslice train'",
        next="check the path, or leave `model` out to use the embedded one",
        code=code,
    )
