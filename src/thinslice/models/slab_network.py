"""Networks that look at a few neighbouring thick slices and say what is between them (ours: `networks.slab`).

Every thick slice is looked at once, with ``context`` slices on each side, and gives its share of all thin slices up to
both neighbours. What two neighbouring slices say of a thin slice between them is added, so no seam can show.
"""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from thinslice.models.conditioning import geometry_of, position_code
from thinslice.models.engine import Session
from thinslice.models.envelope import Envelope, count_on
from thinslice.models.interpolations import interpolation
from thinslice.models.protocol import Answer, Model, Stack
from thinslice.models.tiling import padded, tiles

logger = logging.getLogger(__name__)

INPUTS = frozenset({"slices", "geometry", "position"})
"""What a model file of this kind is fed with, see `Residual`."""

TILE_LIMIT = 640
"""Largest side, in pixels, of a piece of a slice computed at once: it bounds the memory of the network's features."""

Residual = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(slices [2 context + 1, h, w], geometry [3], positions [p, 7]) -> shares [p, h, w], all float32."""


@dataclass(frozen=True)
class SlabModel(Model):
    """A network over an interpolation, asked slab by slab.

    Attributes:
        residual: the network, see `Residual`.
        context: thick slices that it sees on each side of the one in the middle.
    """

    residual: Residual = field(kw_only=True)
    context: int = field(kw_only=True)

    follows_profile: ClassVar[bool] = True
    fused_is_mirrored: ClassVar[bool] = True

    def begin(self, stack: Stack) -> Answer:
        """Returns the network's answer for one stack."""
        return _SlabAnswer(self, stack)

    @staticmethod
    def from_session(session: Session, name: str, sha256: str) -> "SlabModel":
        """Returns the model in a file that is fed with `INPUTS`.

        Raises:
            KeyError, TypeError, ValueError: the card is that of something else.
        """
        card = session.card
        envelope = card["envelope"]
        return SlabModel(
            name=name,
            base=interpolation(card["base"]).base,
            residual=_tiled(session, count_on(card, "multiple", 1), count_on(card, "reach")),
            context=count_on(card, "context"),
            envelope=Envelope(
                tuple(envelope["factor"]),
                tuple(envelope["thickness_over_spacing"]),
                tuple(envelope["profiles"]),
            ),
            sha256=sha256,
            card=card,
        )


def _tiled(session: Session, multiple: int, margin: int) -> Residual:
    """Returns the network for slices of any size: in pieces that overlap by its reach, each padded to a multiple."""

    def run(slices: np.ndarray, geometry: np.ndarray, position: np.ndarray) -> np.ndarray:
        height, width = slices.shape[1:]
        answer = np.empty((len(position), height, width), np.float32)
        for tile in tiles(height, width, TILE_LIMIT, margin):
            piece = slices[(slice(None), *tile.read)]
            feed = {"slices": padded(piece, multiple)[None], "geometry": geometry, "position": position}
            (out,) = session.run(feed)
            out = out[0, :, : piece.shape[1], : piece.shape[2]]
            answer[(slice(None), *tile.write)] = out[(slice(None), *tile.keep)]
        return answer

    return run


class _SlabAnswer(Answer):
    """Adds up what neighbouring slabs say of the thin slices between them; the next slabs are begun meanwhile."""

    def __init__(self, model: SlabModel, stack: Stack) -> None:
        self.model = model
        self.stack = stack
        self.geometry = geometry_of(stack.factor, stack.thickness_over_spacing, stack.profile)
        logger.debug("slabs of %d slices, %d at once, fused: %s", 2 * model.context + 1, model.workers, stack.fuse)
        self.begun: dict[int, Future[tuple[int, np.ndarray]]] = {}

    def residuals(self, slab: int) -> Mapping[int, np.ndarray]:
        own = self.stack.thin_of(slab, slab + 1)
        total = np.zeros((own.stop - own.start, *self.stack.shape), np.float32)
        # A thin slice lies between two thick ones, and both have a share in it, whichever slab it is counted to.
        for near in (slab - 1, slab, slab + 1):
            first, shares = self.slab_answer(near)
            low, high = max(own.start, first), min(own.stop, first + len(shares))
            if low < high:
                # What is infinite the guard finds; there is nobody to be warned of it.
                with np.errstate(invalid="ignore", over="ignore"):
                    total[low - own.start : high - own.start] += shares[low - first : high - first]
        # Slabs are asked for in rising order, so this one is not needed again.
        self.begun.pop(slab - 1, None)
        return {slab: total}

    def slab_answer(self, slab: int) -> tuple[int, np.ndarray]:
        """Returns the network's answer for one slab, up to its neighbours: first thin slice and shares [p, h, w].

        It is computed once, and the slabs that come next are begun meanwhile. The slab before the first and the one
        after the last thick slice repeat that slice.
        """
        # No farther ahead: every finished share waits in memory until its turn.
        for coming in range(slab, min(slab + self.model.workers, self.stack.n_thick) + 1):
            if coming not in self.begun:
                self.begun[coming] = self.stack.workers.submit(self.run_network, coming)
        return self.begun[slab].result()

    def run_network(self, slab: int) -> tuple[int, np.ndarray]:
        """Runs the network on one slab; to fuse, also on its mirror image through its middle.

        The mean of these two is worth nearly as much as that of all sixteen orientations (LOG.md).
        """
        positions = self.stack.positions
        # A thin slice exactly at a neighbour's centre is the neighbour's alone.
        first, last = np.searchsorted(positions, (slab - 1 + 1e-9, slab + 1 - 1e-9))
        around = self.stack.slices(slab - self.model.context, slab + self.model.context + 1)
        offset = positions[first:last] - slab
        # Before the first slice of the centres grid, for instance, there is nothing to run the network for.
        if not len(offset):
            return int(first), np.empty((0, *around.shape[1:]), np.float32)
        answer = self.model.residual(around, self.geometry, position_code(offset))
        if self.stack.fuse:
            # In the mirror what lies just after the middle slice lies just before it, hence also the negative offsets.
            mirrored = np.ascontiguousarray(around[::-1, ::-1, ::-1])
            with np.errstate(invalid="ignore", over="ignore"):
                answer += self.model.residual(mirrored, self.geometry, position_code(-offset))[:, ::-1, ::-1]
                answer /= 2
        return int(first), answer
