"""Networks that enlarge planes by whole factors: slices in-plane, and planes through the slices in depth.

What Georgescu et al. 2020 (sec. III) do with their two networks; in depth, ``fuse`` is their "++": the same in several
orientations, and the mean of the answers. Planes are shown to a network with their edges repeated, as far as it can
see, so that it never meets the zeros with which convolutions fill what is missing.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np

from thinslice.errors import ModelRefused
from thinslice.models.engine import Session, network_threads
from thinslice.models.envelope import Envelope, count_on
from thinslice.models.interpolations import interpolation
from thinslice.models.protocol import WORKERS, Answer, Enlarger, Model, Stack
from thinslice.models.tiling import tiles
from thinslice.physics.interpolation import INTERPOLATIONS
from thinslice.progress import Progress, no_progress, part_of

logger = logging.getLogger(__name__)

INPUTS = frozenset({"planes", "base"})
"""What a model file of this kind is fed with, see `Enlarger`."""

PLANE_LIMIT = 1152
"""Largest side, in pixels, of an enlarged plane computed at once: it bounds the memory of the network's features."""

PIXELS = 2**19
"""Pixels of the enlarged planes that a network makes in one call: it bounds the memory of the network's features."""

LEAST_BLOCK = 16
"""Slabs that are computed together at least: a network sees some eight slices beyond a block on each side, which are
computed again for the next one, so that small blocks cost time."""

MOST_BLOCK = 64
"""Slabs that are computed together at most: by then the slices beyond it are a quarter of them."""

BLOCK_BYTES = 2**29
"""Bytes of thin slices of a block: as much memory as a block may take where that leaves `LEAST_BLOCK` slabs."""

Part = Literal["in-plane", "depth"]
"""Enlarge slices along both of their axes, or planes through the slices across them."""


@dataclass(frozen=True)
class PlanesModel(Model):
    """Networks that enlarge planes.

    Attributes:
        planes: the networks, by part and whole factor.
    """

    planes: Mapping[tuple[Part, int], Enlarger] = field(kw_only=True)

    def begin(self, stack: Stack) -> Answer:
        """Returns the answer of the network for depth."""
        return _DepthAnswer(self, stack)

    def in_plane_network(self, factor: int) -> Enlarger | None:
        """Returns the network for slices of this factor, None if there is none."""
        return self.planes.get(("in-plane", factor))

    def with_threads(self, threads: int) -> "PlanesModel":
        """Returns the same for so many threads: with a single one nothing is computed at the same time."""
        workers = min(WORKERS, threads)
        planes = {part: replace(enlarger, workers=workers) for part, enlarger in self.planes.items()}
        return replace(self, workers=workers, planes=planes)

    @staticmethod
    def from_session(session: Session, name: str, sha256: str) -> "PlanesModel":
        """Returns the model in a file that is fed with `INPUTS`: it has one network.

        Raises:
            KeyError, TypeError, ValueError: the card is that of something else.
        """
        card = session.card
        envelope = card["envelope"]
        part, factor = envelope["part"], count_on(envelope, "factor", 1)
        scale, reach = (_pair_on(card, name, least) for name, least in (("scale", 1), ("reach", 0)))
        return PlanesModel(
            name=name,
            base=interpolation(card["base"]).base,
            planes={(part, factor): _tiled(session, scale, reach)},
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


def _pair_on(card: Mapping[str, Any], name: str, least: int) -> tuple[int, int]:
    """Returns two whole numbers on a card; see `thinslice.models.envelope.count_on`."""
    first, second = card[name]
    return count_on({name: first}, name, least), count_on({name: second}, name, least)


def together(models: Sequence[Model], name: str) -> PlanesModel:
    """Returns one model of several networks for planes: every part and factor that one of them has.

    Raises:
        ModelRefused: one of them is of another kind, or valid for other scans.
    """
    found: list[PlanesModel] = []
    for model in models:
        if not isinstance(model, PlanesModel) or _scans(model) != _scans(models[0]):
            raise ModelRefused(
                got=f"{name}, whose files do not belong together ({model.name} differs from {models[0].name})",
                need="networks for planes of one training",
                next="move the others elsewhere",
                code="mixed-networks",
            )
        found.append(model)
    planes = {key: network for model in found for key, network in model.planes.items()}
    envelopes = [model.envelope for model in found if model.envelope is not None]
    envelope = replace(
        envelopes[0],
        only_factors=tuple(sorted({factor for part, factor in planes if part == "depth"})),
        in_plane=(1, *sorted({factor for part, factor in planes if part == "in-plane"})),
    )
    # Sorted: a family is the same in whatever order its files are found.
    hashes = ",".join(sorted(str(model.sha256) for model in found))
    return PlanesModel(
        name=name,
        base=found[0].base,
        planes=planes,
        envelope=envelope,
        sha256=hashlib.sha256(hashes.encode()).hexdigest(),
        card={"name": name, "parts": [model.card for model in found]},
    )


def _scans(model: Model) -> tuple[str, Envelope | None]:
    """Returns what networks for planes of one training have in common, whatever their part and factor."""
    return model.base, model.envelope and replace(model.envelope, only_factors=None, in_plane=())


def _tiled(session: Session, scale: tuple[int, int], reach: tuple[int, int]) -> Enlarger:
    """Returns the network for planes of any size: in pieces that overlap by what it can see."""

    def run(planes: np.ndarray, base: np.ndarray) -> np.ndarray:
        answer = np.empty(base.shape, np.float32)
        for tile in tiles(planes.shape[1], planes.shape[2], PLANE_LIMIT // scale[1], max(reach)):
            small, whole, kept = (
                (slice(None), *span) for span in (tile.read, _times(tile.read, scale), _times(tile.keep, scale))
            )
            (out,) = session.run({"planes": planes[small][:, None], "base": base[whole][:, None]})
            answer[(slice(None), *_times(tile.write, scale))] = out[:, 0][kept]
        return answer

    return Enlarger(run, (int(reach[0]), int(reach[1])))


def _times(spans: tuple[slice, slice], scale: tuple[int, int]) -> tuple[slice, slice]:
    rows, columns = (slice(span.start * times, span.stop * times) for span, times in zip(spans, scale, strict=True))
    return rows, columns


class _DepthAnswer(Answer):
    """Enlarges planes through blocks of slabs."""

    tells_progress: ClassVar[bool] = True

    def __init__(self, model: PlanesModel, stack: Stack) -> None:
        self.model = model
        self.stack = stack
        slab_bytes = 4 * stack.factor * (stack.shape[0] * stack.shape[1])
        self.block = int(np.clip(BLOCK_BYTES // slab_bytes, LEAST_BLOCK, MOST_BLOCK))
        logger.debug("planes in depth through blocks of %d slabs, fused: %s", self.block, stack.fuse)

    def residuals(self, slab: int) -> Mapping[int, np.ndarray]:
        stack, factor = self.stack, round(self.stack.factor)
        # Blocks begin at fixed slabs: what is computed together must not depend on which slab is asked for first.
        start = slab - slab % self.block
        stop = min(start + self.block, stack.n_thick)
        network = self.model.planes["depth", factor]
        beyond = network.reach[0]
        around = stack.slices(start - beyond, stop + beyond)
        progress = part_of(stack.progress, start / stack.n_thick, stop / stack.n_thick)
        answer = enlarge_depth(around, beyond, factor, self.model.base, network, stack.fuse, progress)
        # The network answers with whole slices, but guard and projection work on what is added to the interpolation.
        stack.subtract_base(answer, start, stop)
        return dict(enumerate(answer.reshape(-1, factor, *answer.shape[1:]), start))


def enlarge_depth(
    slices: np.ndarray,
    beyond: int,
    factor: int,
    base: str,
    network: Enlarger,
    fuse: bool = False,
    progress: Progress = no_progress,
) -> np.ndarray:
    """Makes ``factor`` slices of every one, by planes that run through the slices; outer edges kept.

    Args:
        slices: [beyond + n + beyond, h, w] float32, normalised intensities.
        beyond: slices at both ends that are only looked at.
        factor: whole.
        base: the interpolation that the network corrects.
        network: for planes of this factor along their first axis.
        fuse: the mean over planes along both in-plane axes, each as it is and mirrored.
        progress: called with the share done, 0 .. 1.

    Returns:
        float32 [factor n, h, w].
    """
    # In the float32 of the planes: in float64 the largest product here would take twice the room and time.
    matrix = enlarging_matrix(len(slices), factor, base).astype(np.float32)
    wanted = slice(factor * beyond, len(matrix) - factor * beyond)
    answer = np.zeros((wanted.stop - wanted.start, *slices.shape[1:]), np.float32)
    orientations = [(2, False), (2, True), (1, False), (1, True)] if fuse else [(2, False)]

    def look(along: int, mirrored: bool, progress: Progress) -> None:
        # Views with axes [line, slice, along]: every line of pixels gives one plane; `out` writes into `answer`.
        seen, out = (np.moveaxis(a, (0, along), (1, 2)) for a in (slices, answer))
        backwards = slice(None, None, -1 if mirrored else 1)
        margin = network.reach[1]
        at_once = max(1, PIXELS // (len(matrix) * (seen.shape[2] + 2 * margin)))

        def add(start: int) -> None:
            lines = slice(start, start + at_once)
            planes = np.pad(seen[lines, :, backwards], ((0, 0), (0, 0), (margin, margin)), mode="edge")
            found = network(planes, np.matmul(matrix, planes))[:, wanted, margin : planes.shape[2] - margin]
            # Safe without a lock: pieces are other lines, and one orientation ends before the next one begins.
            out[lines] += found[:, :, backwards] / np.float32(len(orientations))

        run_beside_each_other(add, range(0, len(seen), at_once), progress, network.workers)

    for number, (along, mirrored) in enumerate(orientations):
        look(along, mirrored, part_of(progress, number / len(orientations), (number + 1) / len(orientations)))
    return answer


def enlarging_matrix(size: int, factor: int, base: str, margin: int = 0) -> np.ndarray:
    """Returns the interpolation [factor n, n] that makes n = size + 2 margin pixels finer, outer edges kept.

    Example:
        >>> enlarging_matrix(2, 2, "nearest")
        array([[1., 0.],
               [1., 0.],
               [0., 1.],
               [0., 1.]])
    """
    n = size + 2 * margin
    return INTERPOLATIONS[base]((np.arange(factor * n) - (factor - 1) / 2) / factor, n)


def run_beside_each_other(work: Callable[[int], None], items: Iterable[int], progress: Progress, workers: int) -> None:
    """Does some work for every item, several at the same time.

    Raises:
        The first failure; nothing new is begun after it.
    """
    with network_threads(workers) as pool:
        jobs = [pool.submit(work, item) for item in items]
        for done, job in enumerate(jobs, 1):
            job.result()
            progress(done / len(jobs))
