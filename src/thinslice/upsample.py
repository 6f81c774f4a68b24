"""Volume + Plan + model -> Volume. The only place that turns axes.

The answer is made slab by slab and written chunk by chunk, so that what is held in memory besides the scan and its
answer does not grow with the number of slices: a chunk of slabs is interpolated, corrected by the network, watched
by the guard, projected onto the acquired slices, and stored.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from thinslice.degrade import along_first_axis, correction_matrix, damping_of, thicken
from thinslice.guard import GuardCount, keep_map, suspect_cells
from thinslice.interpolate import INTERPOLATIONS
from thinslice.plan import Plan, intensity_range
from thinslice.runtime import Model
from thinslice.slab import geometry_of, position_code
from thinslice.volume import Volume

PROJECTION_HALO = 16
"""Slices beyond a chunk that take part in its projection: their influence has died away to 1e-4 by then."""

CHUNK = 8
"""Slabs that are projected and stored together."""

ROWS = 64
"""In-plane rows that are interpolated and projected together."""


@dataclass(frozen=True)
class Upsampled:
    """The answer and what the guard saw on the way."""

    volume: Volume
    guard: GuardCount


def upsample(
    volume: Volume,
    plan: Plan,
    model: Model,
    out: np.ndarray | None = None,
    progress: Callable[[float], None] | None = None,
) -> Upsampled:
    """Compute the thin slices of a plan.

    Args:
        volume: the scan, [x, y, z] or [x, y, z, t]; every volume of a 4-D series is computed by itself.
        plan: from `thinslice.plan.make_plan` for this volume and model.
        model: from `thinslice.weights.find_model`.
        out: array for the answer, shape ``plan.shape_thin`` (plus t); its dtype is kept, integers are rounded and
            clipped. Default: float32.
        progress: called with the share done, 0 .. 1.

    Returns:
        The answer in the same patient space, and the guard's count.
    """
    series = volume.voxels if volume.voxels.ndim == 4 else volume.voxels[..., None]
    shape = (*plan.shape_thin, series.shape[3])
    if out is None:
        out = np.empty(shape if volume.voxels.ndim == 4 else plan.shape_thin, np.float32)
    answers = out.reshape(shape)
    if not np.shares_memory(answers, out):
        raise ValueError("out must be a whole array, not a strided view")
    total = GuardCount()
    for t in range(series.shape[3]):
        thick = np.moveaxis(series[..., t], plan.axis, 0)
        thin = np.moveaxis(answers[..., t], plan.axis, 0)
        stack = _Stack(thick, plan, model)
        for start in range(0, plan.n_thick, CHUNK):
            stack.compute(start, min(start + CHUNK, plan.n_thick), thin)
            if progress is not None:
                progress((t + min(start + CHUNK, plan.n_thick) / plan.n_thick) / series.shape[3])
        total = total + stack.count
    affine = np.array(plan.affine_thin)
    return Upsampled(replace(volume, voxels=out, affine=affine, thickness_mm=None, notes=plan.notes), total)


class _Stack:
    """One 3-D scan with its slices along the first axis, in the network's normalised intensities."""

    def __init__(self, thick: np.ndarray, plan: Plan, model: Model) -> None:
        self.thick = thick
        self.plan = plan
        self.model = model
        self.low, high = intensity_range(thick)
        self.scale = high - self.low
        self.positions = plan.positions()
        self.owner = np.clip(np.floor(self.positions + 0.5).astype(int), 0, plan.n_thick - 1)
        self.acquire = plan.matrix()
        middle = max(plan.n_thick // 2 - PROJECTION_HALO, 0)
        inner = self.thin_of(middle, middle + 2 * PROJECTION_HALO)
        self.damping = damping_of(self.acquire[middle : middle + 2 * PROJECTION_HALO, inner], plan.factor, plan.noise)
        self.base = INTERPOLATIONS[model.base](self.positions, plan.n_thick)
        self.geometry = geometry_of(plan.factor, plan.thickness_over_spacing, plan.profile)
        self.raw: dict[int, np.ndarray] = {}
        self.kept: dict[int, np.ndarray] = {}
        self.count = GuardCount()
        self.bounds = _bounds(thick, self.low, self.scale)
        support = self.acquire > 0
        self.first_thin = support.argmax(axis=1)
        self.last_thin = support.shape[1] - 1 - support[:, ::-1].argmax(axis=1)

    def slices(self, low: int, high: int) -> np.ndarray:
        """Acquired slices low .. high - 1, normalised float32; the outermost ones repeat beyond the ends."""
        index = np.clip(np.arange(low, high), 0, self.plan.n_thick - 1)
        return (self.thick[index].astype(np.float32) - np.float32(self.low)) / np.float32(self.scale)

    def thin_of(self, low: int, high: int) -> slice:
        """Thin slices inside slabs low .. high - 1."""
        return slice(int(np.searchsorted(self.owner, low)), int(np.searchsorted(self.owner, high)))

    def compute(self, start: int, stop: int, thin: np.ndarray) -> None:
        """Slabs start .. stop - 1, stored into ``thin``."""
        plan = self.plan
        low, high = max(start - PROJECTION_HALO, 0), min(stop + PROJECTION_HALO, plan.n_thick)
        window, wanted = self.thin_of(low, high), self.thin_of(start, stop)
        spline_low, spline_high = max(low - PROJECTION_HALO, 0), min(high + PROJECTION_HALO, plan.n_thick)
        acquired = self.slices(spline_low, spline_high)
        base = self.base[window, spline_low:spline_high]
        whole = (self.first_thin >= window.start) & (self.last_thin < window.stop)
        rows = np.flatnonzero(whole)
        acquire = self.acquire[rows, window]
        if self.model.residual is not None:
            residuals = [self.guarded(slab) for slab in range(low, high)]
        if plan.projection:
            repair = correction_matrix(acquire, plan.factor, self.damping)
            repair = repair[wanted.start - window.start : wanted.stop - window.start]
        for top in range(0, acquired.shape[1], ROWS):
            band = slice(top, top + ROWS)
            answer = along_first_axis(base, acquired[:, band])
            if self.model.residual is not None:
                answer += np.concatenate([r[:, band] for r in residuals])
            part = answer[wanted.start - window.start : wanted.stop - window.start]
            if plan.projection:
                part = part + along_first_axis(repair, acquired[rows - spline_low, band] - thicken(answer, acquire))
            thin[wanted, band] = _stored(part * np.float32(self.scale) + np.float32(self.low), thin.dtype)
        for store in (self.raw, self.kept):
            for slab in [s for s in store if s < stop - PROJECTION_HALO - self.plan_reach]:
                del store[slab]

    @property
    def plan_reach(self) -> int:
        """Slabs on each side that a thick slice's profile reaches into."""
        return int(np.ceil(2 * self.plan.thickness_over_spacing + 0.5))

    def residual(self, slab: int) -> np.ndarray:
        """The network's answer [p, h, w] for one slab, computed once."""
        if slab not in self.raw:
            own = self.thin_of(slab, slab + 1)
            around = self.slices(slab - self.model.context, slab + self.model.context + 1)
            code = position_code(self.positions[own] - slab)
            assert self.model.residual is not None
            empty = np.empty((0, *around.shape[1:]), np.float32)
            self.raw[slab] = self.model.residual(around, self.geometry, code) if len(code) else empty
        return self.raw[slab]

    def guarded(self, slab: int) -> np.ndarray:
        """`residual` with the suspect regions taken back to zero, which leaves interpolation there."""
        if slab not in self.kept:
            near_low, near_high = max(slab - self.plan_reach, 0), min(slab + self.plan_reach + 1, self.plan.n_thick)
            near = np.concatenate([self.residual(s) for s in range(near_low, near_high)])
            seen = self.acquire[slab : slab + 1, self.thin_of(near_low, near_high)]
            with np.errstate(invalid="ignore", over="ignore"):  # an infinite answer is found suspect below
                disagreement = along_first_axis(seen, near)[0]
            own = self.residual(slab)
            cells = suspect_cells(own, disagreement, self.slices(slab - 1, slab + 2), self.bounds)
            self.count = self.count.with_slab(cells)
            if cells.any():
                own = np.where(np.isfinite(own), own, 0.0) * keep_map(cells, own.shape[1:])
            self.kept[slab] = own
        return self.kept[slab]


def _bounds(thick: np.ndarray, low: float, scale: float) -> tuple[float, float]:
    """Smallest and largest acquired value in normalised units."""
    return (float(thick.min()) - low) / scale, (float(thick.max()) - low) / scale


def _stored(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Values rounded and clipped to an integer dtype, or cast to a float one."""
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        top = float(info.max) if info.bits < 64 else np.nextafter(float(info.max), 0)  # 2^63 - 1 is no float64
        values = np.clip(np.rint(values.astype(np.float64)), info.min, top)
    stored: np.ndarray = values.astype(dtype)
    return stored
