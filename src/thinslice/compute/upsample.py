"""Makes the thin slices: a volume, its plan and a model go in, the volume on the thin grid comes out.

The answer is made slab by slab and written chunk by chunk, so that what is held in memory besides the scan (enlarged,
if it is to be, and once more where its slices are uneven or noisy) and its answer does not grow with the number of
slices: a chunk of slabs is interpolated, corrected by the model (`thinslice.models.protocol`), watched by the guard,
projected onto the acquired slices, and stored. Interpolation and projection are linear in the acquired slices, so they
are one matrix per chunk; see `_Lines.matrices`.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np

from thinslice.compute.guard import GuardCount, find_suspect_cells, make_keep_map
from thinslice.compute.kept_slices import give_to_all, take_kept
from thinslice.compute.planes import enlarge_slices
from thinslice.compute.tilted import acquired_slices, blank_outside, outside_value
from thinslice.io.upright import put_at_even_places
from thinslice.models.blas import one_blas_thread
from thinslice.models.engine import network_threads
from thinslice.models.envelope import TOLERANCE
from thinslice.models.protocol import Model
from thinslice.physics.acquisition import Acquisition, apply_along_first_axis
from thinslice.physics.intensity import intensity_range
from thinslice.physics.interleaving import make_even
from thinslice.physics.interpolation import INTERPOLATIONS
from thinslice.physics.noise import smooth_noise
from thinslice.physics.padding import fill_padding
from thinslice.physics.projection import correction_matrix, cut_into_bands, scale_damping
from thinslice.physics.straightening import find_missing, hold
from thinslice.plan import Plan
from thinslice.progress import no_progress, part_of
from thinslice.settings import Profile
from thinslice.volume import Volume, patient_axes, runs_backwards

logger = logging.getLogger(__name__)

PROJECTION_HALO = 20
"""Slices beyond a chunk that take part in its projection: their influence has died away to 1e-4 by then.

Measured on noise with the default noise level, factors 2 to 5.6, both profiles: 2e-7 for touching slices, 3e-5 for a
thickness of 1.3 spacings (with 16 slices 3e-6 and 3e-4).
"""

GUARD_HALO = 6
"""Slices beyond a slab's reach that take part in its interpolation for the guard: a cubic spline forgets to 4e-4."""

WIDE = tuple(np.dtype(kind) for kind in (np.float64, np.int32, np.uint32, np.int64, np.uint64))
"""Kinds of numbers that hold more digits than float32."""

FILL_REACH = 4
"""Every second slice so many steps from a missing one takes part in filling it: networks see two on each side."""

CHUNK = 8
"""Slabs that are projected and stored together: fewer compute the halo more often, more need more memory."""

IN_PLANE_SHARE = 0.35
"""The share of the progress that is done when the slices have been enlarged in-plane, roughly."""


@dataclass(frozen=True)
class Upsampled:
    """The answer and what happened on the way.

    Attributes:
        volume: the answer.
        guard: how many cells the guard looked at, and took back.
        clipped: how many voxels lay beyond what the kind of numbers can hold.
        fell_back: [x, y, z] acquired voxels (of a series of its first volume) where the guard took the network back;
            None if nowhere.
    """

    volume: Volume
    guard: GuardCount
    clipped: int = 0
    fell_back: np.ndarray | None = None


def upsample(
    volume: Volume,
    plan: Plan,
    model: Model,
    out: np.ndarray | None = None,
    progress: Callable[[float], None] = no_progress,
) -> Upsampled:
    """Computes the thin slices of a plan.

    Args:
        volume: the scan, [x, y, z] or [x, y, z, t]; every volume of a 4-D series is computed by itself.
        plan: from `thinslice.plan.make_plan` for this volume and model.
        model: from `thinslice.models.registry.find_model`.
        out: array for the answer, shape ``plan.shape_thin`` (plus t); its dtype is kept, integers are rounded and
            clipped. Default: float32.
        progress: called with the share done, 0 .. 1.

    Returns:
        The answer in the same patient space, the guard's count, and how many whole numbers were clipped.

    Raises:
        MemoryError: there is not enough memory.
        ModelRefused: the engine has failed while the model was run.

    Example:
        >>> from thinslice.models.registry import find_model
        >>> from thinslice.plan import make_plan
        >>> from thinslice.settings import Settings
        >>> model = find_model("cubic")
        >>> volume = Volume(np.zeros((8, 8, 5), np.float32), np.diag([1.0, 1.0, 4.0, 1.0]))
        >>> upsample(volume, make_plan(volume, Settings(), model), model).volume.shape
        (8, 8, 20)
    """
    if plan.every > 1:
        done = upsample(*take_kept(volume, plan), model, out, progress)
        return replace(done, fell_back=None if done.fell_back is None else give_to_all(done.fell_back, plan))
    series = volume.voxels if volume.voxels.ndim == 4 else volume.voxels[..., None]
    shape = (*plan.shape_thin, series.shape[3])
    if out is None:
        out = np.empty(shape if volume.voxels.ndim == 4 else plan.shape_thin, np.float32)
    answers = out.reshape(shape)
    # Where the scan was put on an upright, even grid it is the acquired slices that the answer is computed from.
    acquired = acquired_slices(volume, plan)
    # Reshaping a strided view makes a copy: the caller's array would stay as it was.
    if not np.shares_memory(answers, out):
        raise ValueError("out must be a whole array, not a strided view")
    logger.debug("%d slabs in chunks of %d; the model adds to interpolation: %s", plan.n_thick, CHUNK, model.adds)
    total, clipped = GuardCount(), 0
    lines = _Lines(plan.turned() if runs_backwards(volume.affine, plan.axis) else plan, model.base)
    fell_back = np.zeros(series.shape[:3], bool) if model.adds else None
    # An interpolation has no network to be kept from its cores, and BLAS is all that computes.
    with network_threads(model.workers) as workers, one_blas_thread if model.adds else nullcontext():
        for t in range(series.shape[3]):
            this = part_of(progress, t / series.shape[3], (t + 1) / series.shape[3])
            thick = np.moveaxis(acquired[..., t], plan.axis, 0)
            thin = np.moveaxis(answers[..., t], plan.axis, 0)
            # Before the stack is turned, as the plan counts the slices and lines of the file.
            even = make_even(_Padding(thick, plan).filled(thick), plan.alternation)
            thick, even, thin = (_as_in_the_patient(array, volume.affine, plan.axis) for array in (thick, even, thin))
            # Turned as the stack is, so that the map comes out as the file stores the scan.
            where = np.moveaxis(fell_back, plan.axis, 0) if fell_back is not None and t == 0 else None
            where = None if where is None else _as_in_the_patient(where, volume.affine, plan.axis)
            count, beyond = _upsample_one(thick, even, thin, lines, model, workers, this, where)
            total, clipped = total + count, clipped + beyond
    if plan.offsets_px is not None and volume.measured is not None:
        blank_outside(answers, plan, plan.positions(), outside_value(volume.measured, plan), plan.in_plane)
    logger.debug("%d of %d cells fell back to interpolation, %d voxels clipped", total.suspect, total.cells, clipped)
    affine = np.array(plan.affine_thin)
    # The acquired slices' thickness is not that of the thin ones; whoever plans the answer again would believe it.
    padding = volume.padding if plan.padding is None else plan.padding
    answer = replace(
        volume, voxels=out, affine=affine, thickness_mm=None, notes=plan.notes, padding=padding, measured=None
    )
    return Upsampled(answer, total, clipped, fell_back if fell_back is not None and fell_back.any() else None)


def _upsample_one(
    thick: np.ndarray,
    even: np.ndarray,
    thin: np.ndarray,
    lines: "_Lines",
    model: Model,
    workers: Executor,
    progress: Callable[[float], None],
    fell_back: np.ndarray | None,
) -> tuple[GuardCount, int]:
    """Computes one stack [n, h, w] into ``thin``; returns what the guard saw, and how many numbers were clipped.

    It is computed from ``even``, the slices without padding and without what alternates between them; their noise
    is smoothed.
    Where the guard took the network back becomes True in ``fell_back`` [n, h, w].
    """
    plan, count, begin = lines.plan, GuardCount(), 0.0
    padding, thick = _Padding(thick, plan), even
    shown = intensity_range(thick)
    if plan.smoothed_noise > 0:
        thick = smooth_noise(thick, plan.smoothed_noise * (shown[1] - shown[0]))
    if plan.in_plane > 1:
        begin = IN_PLANE_SHARE
        # By the range of the acquired slices, as both networks have to work on one scale.
        thick, count = _larger_slices(thick, shown, plan, model, part_of(progress, 0, begin))
    evenly = lines.evenly(thick)
    if model.adds and not lines.is_even:
        _fill_missing(evenly, shown, lines, model, workers)
    stack = _Stack(evenly, thick, shown, lines, model, workers, part_of(progress, begin, 1))
    for start in range(0, plan.n_thick, CHUNK):
        stack.compute(start, min(start + CHUNK, plan.n_thick), thin)
    padding.put_back(thin, lines.owner_acquired)
    if fell_back is not None:
        for slab, where in stack.fell_back.items():
            fell_back[slab] = where[:: plan.in_plane, :: plan.in_plane]
    return count + stack.count, stack.clipped


def _as_in_the_patient(stack: np.ndarray, affine: np.ndarray, axis: int) -> np.ndarray:
    """Returns a view of a stack [n, h, w] whose axes run as in the patient, however the file stores them.

    Slices go towards the patient's right, front or head, and so do lines and columns, the first of left-right,
    back-front and foot-head first: a network that is not symmetric answers the same to the same scan. The plan that
    holds for a stack that is turned is that of `Plan.turned`.
    """
    # Views all the way: what is written into the turned stack lands in the caller's array, in the order of the file.
    nearest = patient_axes(affine)
    stored = [axis, *(other for other in range(3) if other != axis)]
    turned = stack[tuple(slice(None, None, 1 if affine[nearest[a], a] > 0 else -1) for a in stored)]
    return turned if nearest[stored[1]] < nearest[stored[2]] else turned.swapaxes(1, 2)


def _fill_missing(
    even: np.ndarray, shown: tuple[float, float], lines: "_Lines", model: Model, workers: Executor
) -> None:
    """Puts what a model makes of every second slice [n, h, w] where one is missing between two of these, in place.

    Every second slice is a stack as well, twice as far apart: what a network finds between its slices is nearer to the
    slice that is missing than a smooth curve, and the same network is then shown that. A model that is not valid for
    twice the distance leaves the curve.
    """
    plan = lines.plan
    missing = find_missing(lines.places, plan.n_thick)
    ratio = plan.thickness_over_spacing / 2
    if model.envelope is None or not model.envelope.has_factor(2 * plan.factor):
        return
    if ratio < model.envelope.thickness_over_spacing[0] - TOLERANCE:
        return
    found = {}
    for parity in (0, 1):
        # Of slices that are missing in a row, each would be filled from the other.
        wanted = [int(at) for at in missing if at % 2 != parity and not {at - 1, at + 1} & set(missing)]
        if not wanted:
            continue
        first = max(wanted[0] - 1 - 2 * FILL_REACH, parity)
        kept = even[first : wanted[-1] + 2 * FILL_REACH + 2 : 2]
        own = _every_second(plan, len(kept))
        thin = np.empty((own.n_thin, *kept.shape[1:]), kept.dtype if kept.dtype.kind == "f" else np.float32)
        stack = _Stack(kept, kept, shown, _Lines(own, model.base), model, workers, no_progress)
        for start in range(0, len(kept), CHUNK):
            stack.compute(start, min(start + CHUNK, len(kept)), thin)
        centres_vox = own.first_centre + plan.factor * (np.array(wanted) - first)
        acquire = Acquisition(centres_vox, own.n_thin, plan.thickness_over_spacing * plan.factor, plan.profile)
        for number, at in enumerate(wanted):
            seen, weights = acquire.rows(number, number + 1)
            found[at] = apply_along_first_axis(weights, thin[seen])[0]
    for at, one in found.items():
        even[at] = one


def _every_second(plan: Plan, count: int) -> Plan:
    """Returns the plan of so many slices that are twice as far apart; its thin slices are as near as before."""
    shape, shape_thin, spacing = list(plan.shape_thick), list(plan.shape_thin), list(plan.spacing_thick_mm)
    shape[plan.axis], shape_thin[plan.axis] = count, int(np.ceil(2 * plan.factor * count))
    spacing[plan.axis] *= 2
    return replace(
        plan.without_true_places(),
        shape_thick=(shape[0], shape[1], shape[2]),
        shape_thin=(shape_thin[0], shape_thin[1], shape_thin[2]),
        spacing_thick_mm=(spacing[0], spacing[1], spacing[2]),
        factor=2 * plan.factor,
        first_centre=(2 * plan.factor - 1) / 2,
    )


class _Lines:
    """What happens along the slice axis: the same for every pixel, and for every volume of a series."""

    def __init__(self, plan: Plan, base: str) -> None:
        self.plan = plan
        self.positions = plan.positions()
        # Not rint, as in `nearest_matrix`: halves to even would make slabs of unequal numbers of slices.
        self.owner = np.clip(np.floor(self.positions + 0.5).astype(int), 0, plan.n_thick - 1)
        owner_acquired = np.floor(plan.acquired_positions() + 0.5).astype(int)
        self.owner_acquired = np.clip(owner_acquired, 0, plan.n_acquired - 1)
        self.interpolation = INTERPOLATIONS[base]
        # Two of them: models are shown even slices, and the answer has to agree with those that were acquired.
        self.even_acquisition = plan.even_acquisition()
        self.acquisition = plan.acquisition()
        self.places = np.arange(plan.n_thick) if plan.places is None else np.array(plan.places)
        self.is_even = plan.places is None
        # A window in the middle tells the damping of a long stack: the whole matrix grows with the square of its
        # length.
        middle = max(plan.n_thick // 2 - PROJECTION_HALO, 0)
        self.damping = scale_damping(self.acquire(middle, middle + 2 * PROJECTION_HALO)[1], plan.factor, plan.noise)

    def thin_of(self, low: int, high: int) -> slice:
        """Returns which thin slices lie in slabs low .. high - 1."""
        return slice(int(np.searchsorted(self.owner, low)), int(np.searchsorted(self.owner, high)))

    def beyond(self, low: int, high: int) -> tuple[int, int]:
        """Returns slabs low .. high - 1 and the halo around them."""
        return max(low - PROJECTION_HALO, 0), min(high + PROJECTION_HALO, self.plan.n_thick)

    def base(self, thin: slice, low: int, high: int) -> np.ndarray:
        """Returns the interpolation [thin, slices] of some thin slices from acquired slices low .. high - 1."""
        return self.interpolation(self.positions[thin] - low, high - low)

    def evenly(self, thick: np.ndarray) -> np.ndarray:
        """Returns acquired slices [n, h, w] as they look at even places."""
        return thick if self.is_even else put_at_even_places(thick, self.places, self.plan.n_thick, 0)

    def acquire(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the acquired slices that see nothing but slabs low .. high - 1, and their rows [., thin]."""
        high = min(high, self.plan.n_thick)
        window = self.thin_of(low, high)
        first, last = np.searchsorted(self.places, (low - 1, high))
        around = ((slab, self.acquisition.seen_by(slab, slab + 1)) for slab in range(int(first), int(last)))
        # A row that is cut at the window's border would see other thin slices than the scanner did.
        whole = [slab for slab, seen in around if window.start <= seen.start and seen.stop <= window.stop]
        rows = np.zeros((len(whole), window.stop - window.start))
        if whole:
            seen, weights = self.acquisition.rows(whole[0], whole[-1] + 1)
            rows[:, seen.start - window.start : seen.stop - window.start] = weights
        return np.array(whole, int), rows

    def matrices(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, slice, np.ndarray]:
        """Returns the matrices that make the thin slices of slabs start .. stop - 1.

        With B the interpolation, A the acquisition, C the correction (zero without projection) and E what picks the
        wanted slices out of the window, the projection of B s + r is E (B s + r) + C (s - A (B s + r)), so

            answer = (K B + C) s + K r,   K = E - C A.

        Where acquired slices are uneven, B has the even ones that were made of them, A and C the acquired ones.

        Returns:
            [wanted, slices] for the slices s of the window and its own halo, [wanted, window] for the network's
            residual r of the window; of uneven slices which acquired ones are corrected by, and C for these, else
            none and nothing.
        """
        low, high = self.beyond(start, stop)
        window, wanted = self.thin_of(low, high), self.thin_of(start, stop)
        # A halo around the halo: the spline mirrors at its ends, and those of the window are no ends of the scan.
        spline_low, spline_high = self.beyond(low, high)
        inside = slice(wanted.start - window.start, wanted.stop - window.start)
        # Only the rows that are wanted: all of them would be the square of the window.
        keep = np.eye(inside.stop - inside.start, window.stop - window.start, inside.start)
        base = self.base(window, spline_low, spline_high)
        to_thin = base[inside].copy()
        apart, by_apart = slice(0, 0), np.empty((len(keep), 0))
        if self.plan.projection:
            whole, acquire = self.acquire(low, high)
            correct = correction_matrix(acquire, self.plan.factor, self.damping)[inside]
            keep -= correct @ acquire
            to_thin = keep @ base
            if self.is_even:
                to_thin[:, whole - spline_low] += correct
            elif len(whole):
                apart, by_apart = slice(int(whole[0]), int(whole[-1]) + 1), correct
        return to_thin, keep, apart, by_apart


class _Stack:
    """One 3-D scan with its slices along the first axis, in normalised intensities: the `Stack` of models.

    The residuals of a few slabs are kept, as model (``raw``) and guard (``kept``) gave them: neighbouring chunks share
    a halo of `PROJECTION_HALO` slabs, and the guard looks beyond that.
    """

    def __init__(
        self,
        thick: np.ndarray,
        acquired: np.ndarray,
        shown: tuple[float, float],
        lines: _Lines,
        model: Model,
        workers: Executor,
        progress: Callable[[float], None],
    ) -> None:
        self.thick = thick
        self.acquired = acquired
        self.lines = lines
        self.plan = lines.plan
        self.model = model
        self.low, self.scale = shown[0], shown[1] - shown[0]
        self.clipped = 0
        self.workers = workers
        self.progress = progress
        self.raw: dict[int, np.ndarray] = {}
        self.kept: dict[int, np.ndarray] = {}
        self.fell_back: dict[int, np.ndarray] = {}
        self.count = GuardCount()
        self.bounds = _bounds(thick, self.low, self.scale)
        self.answer = model.begin(self) if model.adds else None

    @property
    def n_thick(self) -> int:
        """See `thinslice.models.protocol.Stack`, as for all that follows up to `thin_of`."""
        return self.plan.n_thick

    @property
    def shape(self) -> tuple[int, int]:
        return self.thick.shape[1], self.thick.shape[2]

    @property
    def factor(self) -> float:
        return self.plan.factor

    @property
    def thickness_over_spacing(self) -> float:
        return self.plan.thickness_over_spacing

    @property
    def profile(self) -> Profile:
        return self.plan.profile

    @property
    def fuse(self) -> bool:
        return self.plan.fuse

    @property
    def positions(self) -> np.ndarray:
        return self.lines.positions

    def thin_of(self, low: int, high: int) -> slice:
        return self.lines.thin_of(low, high)

    def slices(self, low: int, high: int) -> np.ndarray:
        """Returns acquired slices low .. high - 1, normalised float32; beyond the ends the outermost ones repeat."""
        index = np.clip(np.arange(low, high), 0, self.plan.n_thick - 1)
        return self.normalised(self.thick[index])

    def normalised(self, voxels: np.ndarray) -> np.ndarray:
        """Returns a float32 copy in which the intensity range is 0 .. 1; the first axis is the slowest in memory."""
        if voxels.dtype in WIDE:  # the offset may be larger than float32 can tell the signal from
            return ((voxels.astype(np.float64, order="C") - self.low) / self.scale).astype(np.float32)
        # In C order whatever the file's: each product of matrices would else copy the band once more.
        values = voxels.astype(np.float32, order="C")
        values -= np.float32(self.low)
        values /= np.float32(self.scale)
        return values

    def compute(self, start: int, stop: int, thin: np.ndarray) -> None:
        """Computes slabs start .. stop - 1 into ``thin``."""
        low, high = self.lines.beyond(start, stop)
        spline_low, spline_high = self.lines.beyond(low, high)
        to_thin, keep, apart, by_apart = self.lines.matrices(start, stop)
        wanted = self.lines.thin_of(start, stop)
        if self.answer is not None:
            # The halo's too: the projection carries what is added there into these slabs.
            residuals = [self.guarded(slab) for slab in range(low, high)]
        for band in cut_into_bands(self.thick):
            answer = apply_along_first_axis(to_thin, self.normalised(self.thick[spline_low:spline_high][band]))
            if apart.stop:
                answer += apply_along_first_axis(by_apart, self.normalised(self.acquired[apart][band]))
            if self.answer is not None:
                answer += apply_along_first_axis(keep, np.concatenate([r[band] for r in residuals]))
            if thin.dtype in WIDE:
                answer = answer.astype(np.float64) * self.scale + self.low
            else:
                answer *= np.float32(self.scale)
                answer += np.float32(self.low)
            self.clipped += _store(answer, thin[wanted][band])
        # The next chunk's halo, and what the guard sees from its first slab, begin no earlier than this.
        for store in (self.raw, self.kept):
            for slab in [s for s in store if s < stop - PROJECTION_HALO - self.plan_reach]:
                del store[slab]
        if self.answer is None or not self.answer.tells_progress or stop == self.plan.n_thick:
            self.progress(stop / self.plan.n_thick)

    @property
    def plan_reach(self) -> int:
        """How many slabs on each side a thick slice's profile reaches into."""
        # A Gaussian reaches 2 FWHM from its centre (`GAUSSIAN_REACH_FWHM`), a slab half a spacing from its own.
        return int(np.ceil(2 * self.plan.thickness_over_spacing + 0.5))

    def subtract_base(self, thin: np.ndarray, start: int, stop: int) -> None:
        """Subtracts the interpolation from the thin slices of slabs start .. stop - 1, in place."""
        low, high = self.lines.beyond(start, stop)
        base = self.lines.base(self.lines.thin_of(start, stop), low, high)
        for band in cut_into_bands(self.thick):
            thin[band] -= apply_along_first_axis(base, self.normalised(self.thick[low:high][band]))

    def residual(self, slab: int) -> np.ndarray:
        """Returns what the model adds to the interpolation [p, h, w] in the thin slices of one slab."""
        if slab not in self.raw:
            assert self.answer is not None, "a model that adds nothing is not asked"
            self.raw |= self.answer.residuals(slab)
        return self.raw[slab]

    def guarded(self, slab: int) -> np.ndarray:
        """Returns `residual` with the suspect regions taken back to zero, which leaves interpolation there."""
        if slab not in self.kept:
            low, high = max(slab - self.plan_reach, 0), min(slab + self.plan_reach + 1, self.plan.n_thick)
            near = self.lines.thin_of(low, high)
            thin, weights = self.lines.even_acquisition.rows(slab, slab + 1)
            seen = np.zeros((1, near.stop - near.start))
            seen[:, thin.start - near.start : thin.stop - near.start] = weights
            # Of the neighbours as the network gave them: guarded ones would depend on which slab was looked at first.
            residuals = np.concatenate([self.residual(s) for s in range(low, high)])
            spline_low, spline_high = max(low - GUARD_HALO, 0), min(high + GUARD_HALO, self.plan.n_thick)
            missed = seen @ self.lines.base(near, spline_low, spline_high)
            # What the interpolation, made thick again, misses of the acquired slice: one row, applied once.
            missed[0, slab - spline_low] -= 1.0
            nearby = self.slices(spline_low, spline_high)
            by_base = apply_along_first_axis(missed, nearby)[0]
            with np.errstate(invalid="ignore", over="ignore"):  # an infinite answer is found suspect below
                by_network = by_base + apply_along_first_axis(seen, residuals)[0]
            own = self.residual(slab)
            base = self.lines.base(self.lines.thin_of(slab, slab + 1), spline_low, spline_high)
            with np.errstate(invalid="ignore", over="ignore"):
                answer = apply_along_first_axis(base, nearby) + own
            cells = find_suspect_cells(answer, by_network, by_base, self.bounds, self.plan.slice_noise or 0.0)
            self.count = self.count.with_slab(cells)
            # Cells, not pixels, are taken back, and their edges are blended: a seam would be worse than the error.
            if cells.any():
                keep = make_keep_map(cells, own.shape[1:])
                # Not `own * keep` alone: NaN times 0 is NaN.
                own = np.where(np.isfinite(own), own, 0.0) * keep
                self.fell_back[slab] = keep < 0.5
            self.kept[slab] = own
        return self.kept[slab]


class _Padding:
    """What an image holds beyond the field of view of the scanner: computed as air, and put back where it was."""

    def __init__(self, thick: np.ndarray, plan: Plan) -> None:
        self.value, self.times = plan.padding, plan.in_plane
        self.where = thick == plan.padding if plan.padding is not None else None
        self.is_tilted = plan.offsets_px is not None

    def filled(self, thick: np.ndarray) -> np.ndarray:
        """Returns the scan with other values instead."""
        if self.is_tilted and self.where is not None and not self.where.all():
            # There padding is not at one place in all slices: between them air would be mixed with what is at its edge.
            return hold(thick, self.where)
        return fill_padding(thick, self.value)

    def put_back(self, thin: np.ndarray, owner: np.ndarray) -> None:
        """Writes it into the thin slices, each of which has an acquired one (``owner``) that is nearest."""
        if self.where is None:
            return
        for index, nearest in enumerate(owner):
            where = self.where[nearest].repeat(self.times, axis=0).repeat(self.times, axis=1)
            thin[index][where] = self.value


def _larger_slices(
    thick: np.ndarray, shown: tuple[float, float], plan: Plan, model: Model, progress: Callable[[float], None]
) -> tuple[np.ndarray, GuardCount]:
    """Returns the acquired slices [n, h, w], each of them enlarged in-plane, in the scan's own units."""
    low, scale = shown[0], shown[1] - shown[0]
    slices = ((thick.astype(np.float64, order="C") - low) / scale).astype(np.float32)
    network = model.in_plane_network(plan.in_plane)
    large, count = enlarge_slices(slices, plan.in_plane, model.base, network, plan.fuse, progress)
    if thick.dtype in WIDE:
        return large.astype(np.float64) * scale + low, count
    large *= np.float32(scale)
    large += np.float32(low)
    return large, count


def _bounds(thick: np.ndarray, low: float, scale: float) -> tuple[float, float]:
    """Returns the smallest and the largest acquired value in normalised units."""
    return (float(thick.min()) - low) / scale, (float(thick.max()) - low) / scale


def _store(values: np.ndarray, out: np.ndarray) -> int:
    """Stores float32 values, which are spent on it, rounded and clipped where the array holds whole numbers.

    Returns:
        How many were clipped.
    """
    clipped = 0
    if out.dtype.kind in "iu":
        info = np.iinfo(out.dtype)
        top = float(info.max)
        if info.bits > 16:  # whose largest values are no float32, and 2^63 - 1 no float64
            values = values.astype(np.float64)
            top = top if info.bits < 64 else np.nextafter(top, 0)
        # Rounded before it is counted: what rounding brings back into the range is not clipped.
        np.rint(values, out=values)
        clipped = int(np.count_nonzero(values < info.min) + np.count_nonzero(values > top))
        np.clip(values, info.min, top, out=values)
    out[...] = values
    return clipped
