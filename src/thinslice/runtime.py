"""A model file -> a callable on arrays: the only door to the inference engine."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from thinslice.errors import ModelRefused
from thinslice.interpolate import INTERPOLATIONS
from thinslice.plan import Envelope
from thinslice.tile import padded, tiles

CARD_KEY = "thinslice.card"
"""Where the model file keeps its card (ONNX metadata)."""

CONTRACT = 2
"""Of what a model file computes. 1: a slab's own thin slices; 2: shares of the thin slices up to both neighbours."""

INPUTS = {"slices", "geometry", "position"}
"""What a model file is fed with, see `Residual`."""

TILE_LIMIT = 640
"""Largest side of a piece of a slice that is computed at once, in pixels."""

WORKERS = 2
"""Slabs that are computed at the same time, each by its share of the cores.

What is not the network's own work (turning, projecting, watching) is then done beside it.
"""

Residual = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(slices [2 context + 1, h, w], geometry [3], positions [p, 7]) -> [p, h, w], all float32."""


@dataclass(frozen=True)
class Model:
    """Anything that makes slices thinner: an interpolation, or a network's residual over one.

    Attributes:
        name: for people, plans and tables.
        base: the interpolation it starts from, a key of `thinslice.interpolate.INTERPOLATIONS`.
        residual: what the network adds, None for a bare interpolation.
        context: acquired slices seen on each side of a slab.
        envelope: the inputs it is valid for, None for any.
        sha256: of the model file.
        card: where it came from.
    """

    name: str
    base: str
    residual: Residual | None = None
    context: int = 0
    envelope: Envelope | None = None
    sha256: str | None = None
    card: dict[str, object] | None = None


def interpolation(name: str) -> Model:
    """One of the baselines as a model."""
    if name not in INTERPOLATIONS:
        raise ModelRefused(
            f"got interpolation {name!r}; need one of {', '.join(INTERPOLATIONS)}; next: choose one of them"
        )
    return Model(name=name, base=name)


def load_model(path: Path, name: str | None = None, threads: int | None = None) -> Model:
    """Read a model file written by ``thinslice train``.

    Args:
        path: an ONNX file with a thinslice card inside.
        name: what to call it; default: the name on its card.
        threads: CPU threads of one call; default: its share of the cores this process may use. Calls from
            several Python threads run beside each other.

    Raises:
        ModelRefused: the file is missing, damaged, or not one of ours.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelRefused(
            f"got {path}, which cannot be read ({error.strerror}); need a thinslice model file (.onnx); "
            "next: check the path"
        ) from None
    options = _options(threads)
    try:
        session, card = _open(content, options)
        envelope = card["envelope"]
        return Model(
            name=name or str(card["name"]),
            base=interpolation(card["base"]).base,
            residual=_residual(session, int(card["multiple"]), int(card["reach"])),
            context=int(card["context"]),
            envelope=Envelope(
                tuple(envelope["factor"]), tuple(envelope["thickness_over_spacing"]), tuple(envelope["profiles"])
            ),
            sha256=hashlib.sha256(content).hexdigest(),
            card=card,
        )
    except Exception:  # onnxruntime raises its own, undocumented classes, and a foreign card may hold anything
        raise ModelRefused(
            f"got {path}, which is not a thinslice model of this version; need an .onnx file written by its "
            "'thinslice train'; "
            "next: check the path, or leave --model out to use the embedded one"
        ) from None


def _options(threads: int | None):  # type: ignore[no-untyped-def] # onnxruntime is untyped
    import onnxruntime

    options = onnxruntime.SessionOptions()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # Linux alone has it
    options.intra_op_num_threads = threads or max(1, (cores or 1) // WORKERS)
    options.log_severity_level = 4
    options.enable_mem_pattern = False
    return options


def _open(content: bytes, options):  # type: ignore[no-untyped-def]
    """The session, and the card inside the file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    if {entry.name for entry in session.get_inputs()} != INPUTS:
        raise ValueError("the inputs are not those of a slab network")
    card = json.loads(session.get_modelmeta().custom_metadata_map[CARD_KEY])
    if card.get("contract") != CONTRACT:
        raise ValueError("a model of another version")
    return session, card


def _residual(session, multiple: int, margin: int) -> Residual:  # type: ignore[no-untyped-def]
    def run(slices: np.ndarray, geometry: np.ndarray, position: np.ndarray) -> np.ndarray:
        height, width = slices.shape[1:]
        answer = np.empty((len(position), height, width), np.float32)
        for tile in tiles(height, width, TILE_LIMIT, margin):
            piece = slices[(slice(None), *tile.read)]
            feed = {"slices": padded(piece, multiple)[None], "geometry": geometry, "position": position}
            (out,) = _run(session, feed)
            out = out[0, :, : piece.shape[1], : piece.shape[2]]
            answer[(slice(None), *tile.write)] = out[(slice(None), *tile.keep)]
        return answer

    return run


def _run(session, feed: dict[str, np.ndarray]) -> list[np.ndarray]:  # type: ignore[no-untyped-def]
    """The engine's own errors, in ours: it is out of memory, or the network has failed."""
    try:
        answers: list[np.ndarray] = session.run(None, feed)
    except Exception as error:  # onnxruntime raises its own, undocumented classes
        if "alloc" in str(error):
            raise MemoryError(str(error)) from None
        said = " ".join(str(error).split())[:200]
        raise ModelRefused(
            f"got a failure of the inference engine ({said}); need a model file that runs; next: use another --model"
        ) from None
    return answers
