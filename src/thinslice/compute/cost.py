"""What a plan will need: memory, room on a disk and time, estimated before any of it is spent.

The estimates are of the largest arrays alone, so that no plan is refused that would have fitted; what is refused would
have ended in the middle, by the system or by the patience of whoever waits.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from thinslice.compute.upsample import CHUNK, PROJECTION_HALO
from thinslice.errors import PlanRefused
from thinslice.io.scratch import ON_DISK_BYTES, SPARE_BYTES, free_disk_bytes, free_memory_bytes
from thinslice.models.engine import EngineSettings
from thinslice.models.protocol import Model
from thinslice.plan import Plan
from thinslice.volume import Volume

logger = logging.getLogger(__name__)

LONGEST_HOURS = 24.0
"""A scan that takes longer even by the rates below is refused: an hour is long, and a day is a mistake in an option."""

INTERPOLATED_PER_SECOND = 1e8
"""Voxels of an answer that one core interpolates, projects and stores a second: four times what was measured, so that
what is said to be needed is the least of it."""

NETWORK_PER_SECOND = 1e7
"""The same with a network: ten times what was measured with the embedded one, as smaller networks are faster."""

SINGLE_BYTES = 4
"""Of a number while it is computed with."""

DOUBLE_BYTES = 8
"""Of a number in the matrices along the slices."""


@dataclass(frozen=True)
class Cost:
    """What a plan will need at least.

    Attributes:
        memory_bytes: beside the scan, which is there already.
        disk_bytes: for an answer that is too large for the memory, until it is written.
        hours: of computing.
    """

    memory_bytes: int
    disk_bytes: int
    hours: float


def estimate_cost(plan: Plan, model: Model, volumes: int, itemsize: int, cores: int) -> Cost:
    """Returns what a plan will need at least.

    Args:
        plan: from `thinslice.plan.make_plan`.
        model: that will compute it.
        volumes: of a 4-D series, else 1.
        itemsize: bytes of a voxel of the answer.
        cores: that may be used.
    """
    across = [size for axis, size in enumerate(plan.shape_thin) if axis != plan.axis]
    slice_voxels = math.prod(across)
    answer_voxels = slice_voxels * plan.n_thin * volumes
    window = min(plan.n_thin, math.ceil((CHUNK + 2 * PROJECTION_HALO) * plan.factor))
    wanted = min(plan.n_thin, math.ceil(CHUNK * plan.factor))
    memory = DOUBLE_BYTES * 2 * window * wanted
    if model.adds:
        # The residuals of a chunk and of the halo around it, as the network and as the guard gave them.
        memory += SINGLE_BYTES * window * slice_voxels
    if plan.in_plane > 1:
        memory += SINGLE_BYTES * slice_voxels * plan.n_thick
    answer_bytes = answer_voxels * itemsize
    is_on_disk = answer_bytes >= ON_DISK_BYTES
    rate = (NETWORK_PER_SECOND if model.adds else INTERPOLATED_PER_SECOND) * max(cores, 1)
    return Cost(
        memory + (0 if is_on_disk else answer_bytes), answer_bytes if is_on_disk else 0, answer_voxels / rate / 3600
    )


def check_cost(acquired: Volume, plan: Plan, model: Model, itemsize: int, folder: Path) -> None:
    """Refuses a plan that needs more memory, room or time than there is; nothing has been computed by then.

    Args:
        acquired: the scan.
        plan: from `thinslice.plan.make_plan` for it.
        model: that will compute it.
        itemsize: bytes of a voxel of the answer.
        folder: where an answer lies meanwhile that is too large for the memory.

    Raises:
        PlanRefused: it does.
    """
    volumes = acquired.voxels.shape[3] if acquired.voxels.ndim == 4 else 1
    cores = EngineSettings().threads_per_call * max(model.workers, 1)
    cost = estimate_cost(plan, model, volumes, itemsize, cores)
    free = free_memory_bytes()
    words = _gigabytes(cost.memory_bytes), _gigabytes(cost.disk_bytes)
    logger.debug("at least %s of memory, %s on a disk, %.2g hours", *words, cost.hours)
    room = free_disk_bytes(folder)

    def beyond(needed: Cost) -> PlanRefused | None:
        """Returns the refusal, still without a way out; None for a plan that can be done."""
        large = f"an answer of {_by(plan.shape_thin)} voxels, which needs "
        if free is not None and needed.memory_bytes > free - SPARE_BYTES:
            got = f"{large}{_gigabytes(needed.memory_bytes)} of memory"
            return PlanRefused(got=got, need=f"at most the {_gigabytes(free)} that are free", code="too-much-memory")
        if room is not None and needed.disk_bytes > room:
            got = f"{large}{_gigabytes(needed.disk_bytes)} on a disk for a while"
            need = f"at most the {_gigabytes(room)} that are free in {folder}"
            return PlanRefused(got=got, need=need, code="too-much-room")
        if needed.hours > LONGEST_HOURS:
            got = f"{large}{needed.hours:.0f} hours or more"
            return PlanRefused(got=got, need=f"at most {LONGEST_HOURS:.0f} hours a scan", code="too-much-time")
        return None

    refusal = beyond(cost)
    if refusal is None:
        return
    smaller = (
        words
        for words, other in _smaller_plans(plan, model)
        if beyond(estimate_cost(other, model, volumes, itemsize, cores)) is None
    )
    way_out = next(smaller, None)
    then = f"give {way_out}, or crop the scan" if way_out else "crop the scan, or use a larger machine"
    raise PlanRefused(got=refusal.got, need=refusal.need, next=then, code=refusal.code)


def _smaller_plans(plan: Plan, model: Model) -> Iterator[tuple[str, Plan]]:
    """Yields settings that make a smaller answer, the nearest to what was asked for first, and roughly their plans."""
    envelope = model.envelope
    for in_plane in range(plan.in_plane - 1, 0, -1):
        if envelope is None or in_plane in envelope.in_plane:
            yield f"`in_plane={in_plane}`", _smaller(plan, in_plane, plan.factor)
    for factor in range(math.ceil(plan.factor) - 1, 1, -1):
        if envelope is None or envelope.has_factor(factor):
            yield f"`factor={factor}`", _smaller(plan, plan.in_plane, factor)


def _smaller(plan: Plan, in_plane: int, factor: float) -> Plan:
    sizes = [
        round(size * factor) if axis == plan.axis else size * in_plane for axis, size in enumerate(plan.shape_thick)
    ]
    return replace(plan, in_plane=in_plane, factor=factor, shape_thin=(sizes[0], sizes[1], sizes[2]))


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape)
