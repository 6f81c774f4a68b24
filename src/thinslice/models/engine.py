"""A model file -> a callable on arrays: the only door to the inference engine."""

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
from threadpoolctl import threadpool_limits

from thinslice.errors import ModelRefused
from thinslice.models.envelope import Envelope
from thinslice.models.tiling import padded, tiles
from thinslice.physics.interpolation import INTERPOLATIONS

CARD_KEY = "thinslice.card"
"""Where the model file keeps its card (ONNX metadata)."""

CONTRACT = 2
"""Of what a model file computes. 1: a slab's own thin slices; 2: shares of the thin slices up to both neighbours."""

SLAB_INPUTS, PLANE_INPUTS = {"slices", "geometry", "position"}, {"planes", "base"}
"""What a model file is fed with, see `Residual` and `Enlarger`."""

TILE_LIMIT, PLANE_LIMIT = 640, 1152
"""Largest side of a piece of a slice, and of an enlarged plane, that is computed at once, in pixels."""

WORKERS = 2
"""Slabs that are computed at the same time, each by its share of the cores.

What is not the network's own work (turning, projecting, watching) is then done beside it.
"""

MOST_KEPT = 8
"""Models that `load_once` keeps."""

Residual = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(slices [2 context + 1, h, w], geometry [3], positions [p, 7]) -> [p, h, w], all float32."""

Part = Literal["in-plane", "depth"]
"""Enlarge slices along both of their axes, or planes through the slices across them."""


@dataclass(frozen=True)
class Enlarger:
    """A network that enlarges planes by whole factors.

    Attributes:
        run: (planes [n, h, w], their interpolation [n, a h, b w]) -> enlarged planes [n, a h, b w], all float32.
        reach: pixels of a plane, before it is enlarged, that the answer may depend on, along both axes.
        workers: pieces that are computed at the same time.
    """

    run: Callable[[np.ndarray, np.ndarray], np.ndarray]
    reach: tuple[int, int]
    workers: int = WORKERS

    def __call__(self, planes: np.ndarray, base: np.ndarray) -> np.ndarray:
        """The same as ``run``."""
        return self.run(planes, base)


@dataclass(frozen=True)
class Model:
    """Anything that makes slices thinner: an interpolation, or a network's residual over one.

    Attributes:
        name: for people, plans and tables.
        base: the interpolation it starts from, a key of `thinslice.physics.interpolation.INTERPOLATIONS`.
        residual: what the network adds, None for a bare interpolation.
        context: acquired slices that the residual sees on each side of a slab.
        planes: networks that enlarge planes instead, by part and whole factor.
        envelope: the inputs it is valid for, None for any.
        sha256: of the model file; of several, of their own ones, sorted and joined by commas.
        card: where it came from.
        workers: slabs that are computed at the same time.
    """

    name: str
    base: str
    residual: Residual | None = None
    context: int = 0
    planes: Mapping[tuple[Part, int], Enlarger] = field(default_factory=dict)
    envelope: Envelope | None = None
    sha256: str | None = None
    card: dict[str, object] | None = None
    workers: int = WORKERS

    def on(self, threads: int) -> "Model":
        """The same for so many threads: with a single one nothing is computed at the same time."""
        workers = min(WORKERS, threads)
        planes = {part: replace(enlarger, workers=workers) for part, enlarger in self.planes.items()}
        return replace(self, workers=workers, planes=planes)

    @property
    def adds(self) -> bool:
        """Whether it is more than its interpolation."""
        return self.residual is not None or bool(self.planes)


class _OneBlasThread:
    """While a network runs, BLAS computes in one thread; afterwards in as many as before.

    Its threads wait for work in a busy loop and take the network's cores: with two of them a scan takes a tenth to a
    quarter longer (LOG.md). The setting is the whole process's, so the last of several users puts it back.
    """

    def __init__(self) -> None:
        self.lock, self.users = Lock(), 0

    def __enter__(self) -> None:
        with self.lock:
            if self.users == 0:
                self.limits = threadpool_limits(1, "blas")
            self.users += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0:
                self.limits.restore_original_limits()


one_blas_thread = _OneBlasThread()


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
    return _model_of(_content(path), path, name, threads)


def load_once(path: Path, name: str | None = None, threads: int | None = None) -> Model:
    """`load_model`, but a model that this process has already is not made again; safe in several Python threads.

    A file is known by its content: one that was replaced is another model. The last `MOST_KEPT` are kept.

    Raises:
        ModelRefused: as `load_model`.
    """
    path = Path(path)
    content = _content(path)
    key = hashlib.sha256(content).hexdigest(), name, threads
    with _kept.lock:
        if key not in _kept.models:
            _kept.models[key] = _model_of(content, path, name, threads)
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
        self.lock = Lock()
        self.models: OrderedDict[tuple[str, str | None, int | None], Model] = OrderedDict()

    def forked(self) -> None:
        self.inherited.append(self.models)  # closing a session without its threads crashes
        self.forget()


_kept = _Kept()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_kept.forked)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelRefused(
            f"got {path}, which cannot be read ({error.strerror}); need a thinslice model file (.onnx); "
            "next: check the path"
        ) from None


def _model_of(content: bytes, path: Path, name: str | None, threads: int | None) -> Model:
    options = _options(threads)
    try:
        session, card = _open(content, options)
        fed = {entry.name for entry in session.get_inputs()}
        sha256 = hashlib.sha256(content).hexdigest()
        make = _slab_model if fed == SLAB_INPUTS else _plane_model if fed == PLANE_INPUTS else None
        assert make is not None, "the inputs are those of another kind of network"
        return make(session, card, name or str(card["name"]), sha256)
    except Exception:  # onnxruntime raises its own, undocumented classes, and a foreign card may hold anything
        raise ModelRefused(
            f"got {path}, which is not a thinslice model of this version; need an .onnx file written by its "
            "'thinslice train'; "
            "next: check the path, or leave --model out to use the embedded one"
        ) from None


def together(models: Sequence[Model], name: str) -> Model:
    """One model of several networks for planes: every part and factor that one of them has.

    Raises:
        ModelRefused: one of them is of another kind, or valid for other scans.
    """
    for model in models:
        if not model.planes or (model.base, _scans(model)) != (models[0].base, _scans(models[0])):
            raise ModelRefused(
                f"got {name}, whose files do not belong together ({model.name} differs from {models[0].name}); need "
                "networks for planes of one training; next: move the others elsewhere"
            )
    planes = {key: network for model in models for key, network in model.planes.items()}
    envelopes = [model.envelope for model in models if model.envelope is not None]
    envelope = replace(
        envelopes[0],
        only_factors=tuple(sorted({factor for part, factor in planes if part == "depth"})),
        in_plane=(1, *sorted({factor for part, factor in planes if part == "in-plane"})),
    )
    hashes = ",".join(sorted(str(model.sha256) for model in models))
    return Model(
        name=name,
        base=models[0].base,
        planes=planes,
        envelope=envelope,
        sha256=hashlib.sha256(hashes.encode()).hexdigest(),
        card={"name": name, "parts": [model.card for model in models]},
    )


def _scans(model: Model) -> Envelope | None:
    """The scans that a network for planes is valid for, whatever its part and factor."""
    return model.envelope and replace(model.envelope, only_factors=None, in_plane=())


def run_once(path: Path, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """The answer of a model file to inputs as they are, for comparison with the network it was made from."""
    session, _ = _open(path.read_bytes(), _options(None))
    (answer,) = session.run(None, dict(inputs))
    return np.asarray(answer)


def _slab_model(session: Any, card: dict[str, Any], name: str, sha256: str) -> Model:
    envelope = card["envelope"]
    return Model(
        name=name,
        base=interpolation(card["base"]).base,
        residual=_residual(session, int(card["multiple"]), int(card["reach"])),
        context=int(card["context"]),
        envelope=Envelope(
            tuple(envelope["factor"]),
            tuple(envelope["thickness_over_spacing"]),
            tuple(envelope["profiles"]),
        ),
        sha256=sha256,
        card=card,
    )


def _plane_model(session: Any, card: dict[str, Any], name: str, sha256: str) -> Model:
    envelope = card["envelope"]
    part, factor = envelope["part"], int(envelope["factor"])
    return Model(
        name=name,
        base=interpolation(card["base"]).base,
        planes={(part, factor): _enlarger(session, card["scale"], card["reach"])},
        envelope=Envelope(
            thickness_over_spacing=tuple(envelope["thickness_over_spacing"]),
            profiles=tuple(envelope["profiles"]),
            only_factors=(factor,) if part == "depth" else (),
            in_plane=(1, factor) if part == "in-plane" else (1,),
            grids=("fov",),
            hounsfield=bool(envelope["hounsfield"]),
        ),
        sha256=sha256,
        card=card,
    )


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


def _enlarger(session, scale: tuple[int, int], reach: tuple[int, int]) -> Enlarger:  # type: ignore[no-untyped-def]
    def run(planes: np.ndarray, base: np.ndarray) -> np.ndarray:
        answer = np.empty(base.shape, np.float32)
        for tile in tiles(planes.shape[1], planes.shape[2], PLANE_LIMIT // scale[1], max(reach)):
            small, whole, kept = (
                (slice(None), *span) for span in (tile.read, _times(tile.read, scale), _times(tile.keep, scale))
            )
            (out,) = _run(session, {"planes": planes[small][:, None], "base": base[whole][:, None]})
            answer[(slice(None), *_times(tile.write, scale))] = out[:, 0][kept]
        return answer

    return Enlarger(run, (int(reach[0]), int(reach[1])))


def _times(spans: tuple[slice, slice], scale: tuple[int, int]) -> tuple[slice, slice]:
    rows, columns = (slice(span.start * times, span.stop * times) for span, times in zip(spans, scale, strict=True))
    return rows, columns


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
