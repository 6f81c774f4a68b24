"""Makes a plan: every decision about one scan, once, as plain data -- or a refusal that says what would help."""

import dataclasses
import json
import logging
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np

from thinslice.errors import PlanRefused
from thinslice.models.envelope import TOLERANCE, Envelope
from thinslice.models.hounsfield import check_hounsfield, find_padding, is_hounsfield
from thinslice.models.slice_profile import FEWEST_SLICES, FoundProfile, Source, find_profile
from thinslice.physics.acquisition import Acquisition
from thinslice.physics.interleaving import Alternation, find_alternation
from thinslice.physics.noise import Noise, find_noise
from thinslice.physics.padding import fill_padding
from thinslice.physics.profile import GAUSSIAN_REACH_FWHM
from thinslice.physics.projection import noise_to_signal
from thinslice.physics.straightening import WIDEST_GAP, WIDEST_GAP_OF_NETWORKS, find_even_run, is_even
from thinslice.settings import Grid, Profile, Settings
from thinslice.volume import Measured, Volume, check_times_last, refine_affine, through_plane_axis

logger = logging.getLogger(__name__)

ISOTROPIC_BELOW = 1.05
"""A scan whose slices are less than this many in-plane spacings apart is called isotropic: headers round lengths."""

MAX_SLICES = 32_767
"""The largest size of one axis that NIfTI-1 can store."""


NOISE_WORTH_TELLING = 0.01
"""From this standard deviation on, in intensity ranges, a note says that the slices are noisy: that is seen by eye."""

NOISE_WORTH_SMOOTHING = 0.015
"""From this standard deviation on noise is smoothed: leaving 1 % costs nothing, and clean scans may seem to have it."""


@dataclass(frozen=True)
class Plan:
    """What will be done to one scan.

    Positions along the through-plane axis are in thin-voxel units: thin slice j has its centre at j, thick slice i
    at ``first_centre + i * factor``.

    Attributes:
        axis: the array axis across the slices.
        shape_thick, shape_thin: spatial shapes before and after.
        spacing_thick_mm, spacing_thin_mm: voxel spacings along the three array axes.
        thickness_mm: slice thickness assumed for the acquired slices (FWHM of the profile).
        profile: shape of the slice profile.
        every: every so many-th acquired slice is computed from, as the others were interpolated from those.
        first_kept: the first of them; half-way between two slices where those that were acquired lay there.
        profile_source: where these two are from, see `thinslice.models.slice_profile.FoundProfile`.
        profile_uncertainty: how far off the profile's standard deviation may be, in slice spacings: the standard
            deviation of its error; None where it was told, or nothing is known of it.
        grid: ``fov`` keeps the outer edges of the field of view, ``centres`` the outermost slice centres.
        factor: acquired spacing over new spacing, exactly as realised.
        first_centre: centre of the first thick slice in thin-voxel units.
        affine_thick, affine_thin: voxel index -> patient millimetres.
        model: the model's name; ``model_sha256`` is None for an interpolation.
        in_plane: by how much the slices themselves are enlarged along both of their axes, before any is added; their
            outer edges are kept.
        fuse: whether a network is run in several orientations and its answers are joined.
        padding: the value with which the scan is filled where the scanner saw nothing, None if it is not. Computed as
            air, and put back where it was.
        projection: whether the answer is projected onto the acquired slices.
        noise: regularisation of that projection, see `thinslice.physics.projection.noise_to_signal`.
        slice_noise: standard deviation of the noise of the acquired slices in intensity ranges, as found in them by
            `thinslice.physics.noise.find_noise`; None where it cannot be told, or ``noise`` was given.
        smoothed_noise: standard deviation of that part of it which is smoothed within the slices for the computation, 0
            where none is.
        alternating_gain: brightness of the second, fourth, ... slices over that of the others, as the file counts them;
            1 where none is clear. It is taken out for the computation, and so are the shifts.
        alternating_shift_px: how far they lie behind the others along the two in-plane axes, in pixels; 0 where no
            shift is clear.
        ringing: how much a sample of the answer rings, see `thinslice.compute.ringing.measure_ringing`; None where that
            was not measured.
        places: where the acquired slices lie, in thick-slice index units, where that is not at 0, 1, 2 ...: their
            distances differ, or some are missing. Else None.
        offsets_px: where the first pixel of each acquired slice lies along the two in-plane axes of ``affine_thick``,
            where they are shifted sideways, as with a tilted gantry; else None.
        shape_acquired, affine_acquired: the grid of the file, where ``affine_thick`` is an upright, even one that was
            laid around it; else None.
        notes: what the reader and the planner had to decide, in plain words.
        versions: of this package, Python and what it computes with.
    """

    axis: int
    shape_thick: tuple[int, int, int]
    shape_thin: tuple[int, int, int]
    spacing_thick_mm: tuple[float, float, float]
    spacing_thin_mm: tuple[float, float, float]
    thickness_mm: float
    profile: Profile
    grid: Grid
    factor: float
    first_centre: float
    affine_thick: tuple[tuple[float, ...], ...]
    affine_thin: tuple[tuple[float, ...], ...]
    model: str
    model_sha256: str | None
    projection: bool
    noise: float
    in_plane: int = 1
    fuse: bool = False
    padding: float | None = None
    every: int = 1
    first_kept: float = 0
    profile_source: Source = "told"
    profile_uncertainty: float | None = None
    slice_noise: float | None = None
    smoothed_noise: float = 0.0
    alternating_gain: float = 1.0
    alternating_shift_px: tuple[float, float] = (0.0, 0.0)
    ringing: float | None = None
    places: tuple[float, ...] | None = None
    offsets_px: tuple[tuple[float, float], ...] | None = None
    shape_acquired: tuple[int, int, int] | None = None
    affine_acquired: tuple[tuple[float, ...], ...] | None = None
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def n_thick(self) -> int:
        """Number of acquired slices."""
        return self.shape_thick[self.axis]

    @property
    def n_thin(self) -> int:
        """Number of slices of the answer."""
        return self.shape_thin[self.axis]

    @property
    def n_acquired(self) -> int:
        """Number of slices that the scanner acquired; with gaps among them there are fewer than `n_thick`."""
        return self.n_thick if self.places is None else len(self.places)

    @property
    def thickness_over_spacing(self) -> float:
        """1 for touching slices, below 1 with a gap, above 1 with an overlap."""
        return self.thickness_mm / self.spacing_thick_mm[self.axis]

    @property
    def alternation(self) -> Alternation:
        """What alternates from slice to slice, as the computation takes it out."""
        return Alternation(self.alternating_gain, self.alternating_shift_px)

    def positions(self) -> np.ndarray:
        """Returns [thin], the centres of the thin slices in thick-slice index units."""
        return (np.arange(self.n_thin) - self.first_centre) / self.factor

    def acquisition(self) -> Acquisition:
        """Returns the operator by which the acquired slices see the thin ones, each at its true position."""
        return self._acquisition_at(np.arange(self.n_thick) if self.places is None else np.array(self.places))

    def even_acquisition(self) -> Acquisition:
        """Returns the operator by which even slices see the thin ones, which the acquired ones are for most scans."""
        return self._acquisition_at(np.arange(self.n_thick))

    def acquired_positions(self) -> np.ndarray:
        """Returns [thin], the centres of the thin slices as indices of acquired slices, linear between two of them."""
        if self.places is None:
            return self.positions()
        # Beyond the outermost slices as far as on the even grid, whose ends these are.
        found = np.interp(self.positions(), self.places, np.arange(self.n_acquired))
        beyond = self.positions() - np.clip(self.positions(), 0, self.n_thick - 1)
        return np.asarray(found + beyond)

    def without_true_places(self) -> "Plan":
        """Returns the plan of the even, upright slices alone: of a part of them, or of others on their grid."""
        return replace(self, places=None, offsets_px=None, shape_acquired=None, affine_acquired=None)

    def _acquisition_at(self, places: np.ndarray) -> Acquisition:
        centres_vox = self.first_centre + self.factor * places
        fwhm_vox = self.thickness_over_spacing * self.factor
        return Acquisition(centres_vox, self.n_thin, fwhm_vox, self.profile, self.axis)

    def of_kept_slices(self) -> "Plan":
        """Returns the plan of the slices that are computed from: ``first_kept`` and every so many-th after it."""
        if self.every == 1:
            return self
        kept = int((self.n_thick - 1 - self.first_kept) // self.every) + 1
        shape, spacing = list(self.shape_thick), list(self.spacing_thick_mm)
        shape[self.axis] = kept
        spacing[self.axis] *= self.every
        affine = np.array(self.affine_thick)
        affine[:3, 3] += self.first_kept * affine[:3, self.axis]
        affine[:3, self.axis] *= self.every
        return replace(
            self,
            every=1,
            first_kept=0,
            shape_thick=_to_tuples(shape),
            spacing_thick_mm=_to_tuples(spacing),
            affine_thick=_to_tuples(affine.tolist()),
            factor=self.factor * self.every,
            first_centre=self.first_centre + self.first_kept * self.factor,
        )

    def turned(self) -> "Plan":
        """Returns the plan of the same slices counted from the other end; only the place of the first one differs.

        The same plan where both ends are alike, as they are where all slices are computed from.
        """
        first = self.n_thin - 1 - (self.first_centre + (self.n_thick - 1) * self.factor)
        # Not for rounding: a scan that is stored the other way round has the same answer to the last bit.
        first = first if abs(first - self.first_centre) > TOLERANCE else self.first_centre
        places = None if self.places is None else tuple(self.n_thick - 1 - place for place in reversed(self.places))
        return replace(self, first_centre=first, places=places)

    def to_json(self) -> str:
        """Returns readable JSON; `from_json` gives back an equal plan."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @staticmethod
    def from_json(text: str) -> "Plan":
        """Returns the plan that `to_json` wrote."""
        # JSON makes lists of tuples, and a plan of lists would equal no other plan.
        return Plan(**{name: _to_tuples(value) for name, value in json.loads(text).items()})


class PlannedModel(Protocol):
    """What a plan has to know of the model that will compute the slices; every model has it."""

    @property
    def name(self) -> str:
        """What people call it."""

    @property
    def sha256(self) -> str | None:
        """The hash of its file, None for an interpolation."""

    @property
    def envelope(self) -> Envelope | None:
        """The scans it is valid for, None for any."""


def make_plan(volume: Volume, settings: Settings, model: PlannedModel) -> Plan:
    """Decides everything about one scan, or refuses it and says what would help.

    Where the settings do not tell the slice profile it is found, from what the scan states and from its slices, and a
    note says so (`thinslice.models.slice_profile.find_profile`).

    Args:
        volume: the scan; in its voxels slice profile and noise are estimated, what alternates from slice to slice is
            looked for, and whether they are Hounsfield units.
        settings: what is asked for.
        model: the model that will compute the slices.

    Raises:
        InputRefused: its channels come before its axes of space.
        PlanRefused: the scan is isotropic or has one slice, what is asked lies outside what the model is valid for, or
            a slice is so thin that it would fall between the new ones.

    Example:
        >>> from thinslice.models.interpolations import interpolation
        >>> scan = Volume(np.zeros((64, 64, 10)), np.diag([1.0, 1.0, 4.0, 1.0]))
        >>> plan = make_plan(scan, Settings(), interpolation("cubic"))
        >>> plan.n_thin, plan.factor, plan.profile
        (40, 4.0, 'box')
    """
    axis = through_plane_axis(volume)
    thick_mm = volume.spacing_mm[axis]
    _check_in_plane(model, settings.in_plane, volume)
    _check_slices(volume, axis, model)
    # The envelope is checked against what the grid makes of the wanted spacing: a factor of 4.98 that becomes 5 is a 5.
    target_mm, target_notes = _find_target_mm(volume, axis, settings, model)
    n_thin, factor = _fit_grid(volume.shape[axis], thick_mm, target_mm, settings.grid, model)
    padding, seen, padding_notes = _find_padding(volume, model)
    alternation, alternation_notes = _find_alternation(volume, axis, padding, settings, model)
    even, leave_out = _evenly_acquired(seen, axis), _may_leave_out(volume, model, settings, factor)
    found = find_profile(even, axis, settings, model.envelope, alternation, leave_out)
    if found.every > 1:
        # What alternates in slices that were interpolated was none of the scanner's.
        alternation, alternation_notes = Alternation(), []
    if model.envelope is not None:
        apart_mm, times = thick_mm * found.every, factor * found.every
        _check_envelope(model, model.envelope, volume.shape[axis], apart_mm, times, found, settings)
    noise, slice_noise, noise_notes = _find_noise(volume, axis, padding, settings, model)
    _check_fuse(model, settings)
    # On the field-of-view grid the outer edges coincide, so the first thick centre lies half a factor inside, less half
    # a thin slice; on the centre grid it is the first thin slice.
    first_centre = (factor - 1) / 2 if settings.grid == "fov" else 0.0
    finer = [factor if i == axis else float(settings.in_plane) for i in range(3)]
    first = [first_centre if i == axis else (settings.in_plane - 1) / 2 for i in range(3)]
    notes = [*volume.notes, *target_notes, *found.notes, *padding_notes, *noise_notes, *alternation_notes]
    notes += _note_rounding(volume.shape[axis], thick_mm, target_mm, n_thin, factor, settings.grid)
    plan = Plan(
        axis=axis,
        shape_thick=volume.shape,
        shape_thin=_to_tuples([n_thin if i == axis else n * settings.in_plane for i, n in enumerate(volume.shape)]),
        spacing_thick_mm=volume.spacing_mm,
        spacing_thin_mm=_to_tuples([mm / times for mm, times in zip(volume.spacing_mm, finer, strict=True)]),
        thickness_mm=found.thickness_mm,
        profile=found.profile,
        every=found.every,
        first_kept=found.first,
        profile_source=found.source,
        profile_uncertainty=found.uncertainty,
        grid=settings.grid,
        factor=factor,
        first_centre=first_centre,
        affine_thick=_to_tuples(volume.affine.tolist()),
        affine_thin=_to_tuples(refine_affine(volume.affine, finer, first).tolist()),
        model=model.name,
        model_sha256=model.sha256,
        projection=settings.projection,
        noise=noise,
        slice_noise=None if slice_noise is None else slice_noise.sd,
        smoothed_noise=0.0 if slice_noise is None else slice_noise.independent,
        alternating_gain=alternation.gain,
        alternating_shift_px=alternation.shift_px,
        in_plane=settings.in_plane,
        fuse=settings.fuse,
        padding=padding,
        **_true_places(volume),
        notes=tuple(notes),
        versions=_find_versions(),
    )
    _check_matrix(plan)
    logger.debug("plan: axis %d, x%g, %s %g mm, %s", axis, factor, plan.profile, plan.thickness_mm, model.name)
    return plan


# ---- decisions


def _find_target_mm(volume: Volume, axis: int, settings: Settings, model: PlannedModel) -> tuple[float, list[str]]:
    """Returns the wanted distance between thin slices, and a note where the model has another factor near by."""
    thick_mm = volume.spacing_mm[axis]
    in_plane_mm = [mm / settings.in_plane for i, mm in enumerate(volume.spacing_mm) if i != axis]
    if settings.factor is not None:
        target_mm = thick_mm / settings.factor
    elif settings.spacing_mm is not None:
        target_mm = settings.spacing_mm
    else:
        # The coarser of the two: finer, voxels would be smaller across the slices than along one of their axes.
        target_mm = max(in_plane_mm)
        if thick_mm / target_mm < ISOTROPIC_BELOW:
            raise _refuse_isotropic(thick_mm, in_plane_mm, volume.other_spacing_mm)
    if target_mm >= thick_mm:
        raise PlanRefused(
            got=f"a new spacing of {target_mm:g} mm for slices that are {thick_mm:g} mm apart already",
            need=f"less than {thick_mm:g} mm",
            next="give a smaller `spacing_mm` or a `factor` above 1",
            code="not-thinner",
        )
    if settings.asks_for_spacing() or model.envelope is None:
        return target_mm, []
    if not model.envelope.only_factors:
        return _find_valid_mm(volume.shape[axis], thick_mm, target_mm, settings.grid, model)
    wanted = thick_mm / target_mm
    # By ratio: halfway between the factors 2 and 4 lies 2.83, not 3.
    nearest = min(model.envelope.only_factors, key=lambda factor: abs(np.log(factor / wanted)))
    same = abs(wanted - nearest) <= TOLERANCE
    notes = [] if same else [f"factor {nearest}, of those that {model.name} has the nearest to {wanted:.3g}"]
    return thick_mm / nearest, notes


def _find_valid_mm(
    n_thick: int, thick_mm: float, target_mm: float, grid: Grid, model: PlannedModel
) -> tuple[float, list[str]]:
    """Returns the distance between thin slices, of those that a model is valid for, nearest to that of the pixels."""
    spans = n_thick if grid == "fov" else n_thick - 1
    wanted = round(spans * (thick_mm / target_mm))
    count = model.envelope.nearest_count(wanted, spans) if model.envelope is not None else wanted
    if count == wanted:
        return target_mm, []
    valid_mm = thick_mm * spans / count
    end = "largest" if count < wanted else "smallest"
    return valid_mm, [
        f"new slices {valid_mm:.4g} mm apart, a factor of {count / spans:.3g}, the {end} that {model.name} is valid "
        f"for; as far apart as pixels ({target_mm:.4g} mm) they would need one of {thick_mm / target_mm:.3g}"
    ]


def _find_padding(volume: Volume, model: PlannedModel) -> tuple[float | None, Volume, list[str]]:
    """Returns the value of the padding of a scan, what the scanner saw, and notes.

    What is no computed tomography is refused for a model that needs it.
    """
    needs_ct = model.envelope is not None and model.envelope.hounsfield
    # In tilted slices it is not at one place, and would be mixed with what lies at its edge.
    acquired = volume if volume.measured is None else replace(volume, voxels=volume.measured.voxels)
    padding = find_padding(acquired, needs_ct)
    # Without the padding: far below air as it is, it would make a good CT scan look like no Hounsfield units.
    notes = check_hounsfield(model.name, volume.voxels, padding) if needs_ct else []
    if padding is not None:
        notes.append(_note_on_padding(padding))
    seen = replace(volume, voxels=fill_padding(volume.voxels, padding))
    return padding, seen, notes + _note_foreign_kind(seen, model)


def _note_foreign_kind(seen: Volume, model: PlannedModel) -> list[str]:
    """Returns a note where computed tomography, without its padding, goes to a network that never saw any."""
    if model.envelope is None or not model.envelope.learnt_mr_alone or not is_hounsfield(seen.voxels):
        return []
    return [
        f"this looks like computed tomography, and {model.name} has learnt from magnetic resonance alone; "
        "`model=planes-ct` has learnt from both"
    ]


def _note_on_padding(padding: float) -> str:
    return f"voxels of {padding:g} are padding: computed as air, and put back where they were"


def _is_plain(model: PlannedModel, settings: Settings) -> bool:
    """Returns whether interpolation and nothing else is asked for: what papers compare with, through the slices."""
    return model.envelope is None and not settings.projection


def _may_leave_out(volume: Volume, model: PlannedModel, settings: Settings, factor: float) -> bool:
    """Returns whether slices that were interpolated may be left out: half of them, so the factor is twice as large."""
    # Of slices that are tilted or uneven each one counts where it is.
    if volume.measured is not None:
        return False
    # Plain interpolation is what papers compare with: of all slices, whatever they are.
    return not _is_plain(model, settings) and (model.envelope is None or model.envelope.has_factor(2 * factor))


def _find_noise(
    volume: Volume, axis: int, padding: float | None, settings: Settings, model: PlannedModel
) -> tuple[float, Noise | None, list[str]]:
    """Returns the projection's regularisation, the noise of the slices that it follows, and a note if it matters.

    Of the noise, ``independent`` is what shall be smoothed: 0 where it shall not, or where there is hardly any.
    """
    if settings.noise is not None:
        return settings.noise, None, []
    # Of a series the first volume: the others have the same scanner, and one plan serves all of them.
    # As they were acquired: slices that were shifted, or computed in a gap, have less of it.
    acquired = volume.voxels if volume.measured is None else volume.measured.voxels
    voxels = acquired if acquired.ndim == 3 else acquired[..., 0]
    found = find_noise(np.moveaxis(voxels, axis, 0), padding)
    if found is None:
        return noise_to_signal(0.0), None, []
    if not settings.denoise or found.independent < NOISE_WORTH_SMOOTHING or _is_plain(model, settings):
        found = Noise(found.sd, 0.0)
    effects = []
    if found.independent:
        effects.append("it is smoothed where there is nothing else (`denoise=False` leaves it)")
    if settings.projection:
        effects.append("the answer is not forced to follow it")
    noisy = f"the slices have noise of {100 * found.sd:.2g} % of the intensity range (standard deviation)"
    tells = found.sd >= NOISE_WORTH_TELLING and effects
    return noise_to_signal(found.sd), found, [f"{noisy}: {', and '.join(effects)}"] if tells else []


def _find_alternation(
    volume: Volume, axis: int, padding: float | None, settings: Settings, model: PlannedModel
) -> tuple[Alternation, list[str]]:
    """Returns what alternates from slice to slice, and a note on it; nothing where it shall be left as it is."""
    if not settings.interleaving or _is_plain(model, settings):
        return Alternation(), []
    # Among slices that are uneven or incomplete every second one of the file is not every second one of the body.
    if volume.measured is not None and not is_even(volume.measured.places):
        return Alternation(), []
    found = _find_common_alternation(np.moveaxis(volume.voxels, axis, 0), padding)
    parts = []
    if found.gain != 1:
        parts.append(f"{abs(found.gain - 1):.1%} {'brighter' if found.gain > 1 else 'darker'}".replace("%", " %"))
    if any(found.shift_px):
        lengths = [mm for i, mm in enumerate(volume.spacing_mm) if i != axis]
        apart = np.linalg.norm(np.multiply(found.shift_px, lengths))
        parts.append(f"shifted by {apart:.2g} mm")
    if not parts:
        return found, []
    return found, [
        f"every other slice is {' and '.join(parts)} against its neighbours: corrected, half of it in either kind of "
        "slices; `interleaving=False` leaves them as they are"
    ]


def _find_common_alternation(stack: np.ndarray, padding: float | None) -> Alternation:
    """Returns what alternates in a stack [n, h, w], or in the first, middle and last volumes of a series of them."""
    if stack.ndim == 3:
        return find_alternation(stack, padding)
    count = stack.shape[3]
    found = [find_alternation(stack[..., t], padding) for t in sorted({0, count // 2, count - 1})]
    # What a series has in common, the scanner did. What the patient did differs, and one plan serves all volumes.
    gains = [one.gain for one in found]
    same = min(gains) > 1 or max(gains) < 1
    return Alternation(float(np.median(gains)) if same else 1.0)


def _fit_grid(n_thick: int, thick_mm: float, target_mm: float, grid: Grid, model: PlannedModel) -> tuple[int, float]:
    """Returns the number of thin slices and the factor that they make, with the edges (fov) or outer centres kept."""
    ratio = thick_mm / target_mm
    if grid == "fov":
        n_thin = max(round(n_thick * ratio), 1)
        factor = n_thin / n_thick
    else:
        # Between the outermost centres there is one spacing less than there are slices.
        n_thin = max(round((n_thick - 1) * ratio), 1) + 1
        factor = (n_thin - 1) / (n_thick - 1)
    if n_thin <= n_thick:
        raise PlanRefused(
            got=f"{n_thick} slices and a factor of {ratio:.3g}, which rounds to {n_thin} slices: nothing to compute",
            need="a larger factor",
            next=f"give {_spacing_to_advise(n_thick, thick_mm, grid, model.envelope)[0]}",
            code="factor-rounds-to-one",
        )
    if n_thin > MAX_SLICES:
        raise PlanRefused(
            got=f"an answer of {n_thin:.6g} slices",
            need=f"at most {MAX_SLICES}",
            next=f"give {_spacing_to_advise(n_thick, thick_mm, grid, model.envelope)[1]}",
            code="too-many-slices",
        )
    return n_thin, factor


def _note_rounding(
    n_thick: int, thick_mm: float, target_mm: float, n_thin: int, factor: float, grid: Grid
) -> list[str]:
    if abs(thick_mm / factor - target_mm) <= 1e-6 * target_mm:
        return []
    kept = "field of view" if grid == "fov" else "outer centres"
    return [
        f"{n_thick} slices of {thick_mm:g} mm do not divide into {target_mm:g} mm: "
        f"{n_thin} slices of {thick_mm / factor:g} mm keep the {kept}"
    ]


def _evenly_acquired(volume: Volume, axis: int) -> Volume:
    """Returns the part of a scan in which no slice was computed from others, if it is long enough to tell anything."""
    if volume.measured is None or is_even(volume.measured.places):
        return volume
    places = np.array(volume.measured.places)
    run = find_even_run(places)
    if run.stop - run.start < FEWEST_SLICES:
        return volume
    among = [slice(None)] * 3
    among[axis] = slice(round(places[run.start]), round(places[run.stop - 1]) + 1)
    return replace(volume, voxels=volume.voxels[tuple(among)], measured=None)


def _true_places(volume: Volume) -> dict[str, Any]:
    """Returns the fields of a plan that say where the acquired slices lie, if that is not on the grid of the volume."""
    found = volume.measured
    if found is None:
        return {}
    return {
        "places": None if is_even(found.places) else found.places,
        "offsets_px": found.offsets_px if np.any(found.offsets_px) else None,
        "shape_acquired": found.shape,
        "affine_acquired": _to_tuples(np.asarray(found.affine).tolist()),
    }


# ---- refusals


def _refuse_isotropic(
    thick_mm: float, in_plane_mm: Sequence[float], other_spacing_mm: Sequence[float] | None
) -> PlanRefused:
    finest, coarsest = min(in_plane_mm), max(in_plane_mm)
    if coarsest > thick_mm * ISOTROPIC_BELOW:
        got = f"{finest:g} x {coarsest:g} mm in-plane: the scan is coarse within its slices, not across them"
        then, option = "choose another series, or", f"`spacing_mm={min(finest, thick_mm / 2):g}`"
    elif thick_mm / finest < ISOTROPIC_BELOW:
        got, then = f"{coarsest:g} mm in-plane: the scan is already isotropic", "use it as it is, or"
        option = "`factor` or `spacing_mm`"
    else:
        got = f"{finest:g} x {coarsest:g} mm in-plane: the scan is coarse along two axes"
        then = "make one of them finer:"
        option = f"`spacing_mm={finest:g}`"
    if other_spacing_mm is not None:
        got += f", though the header also says {' x '.join(f'{mm:g}' for mm in other_spacing_mm)} mm (pixdim)"
        option += (
            "; if the other spacing is right: nifti_tool -mod_hdr -mod_field sform_code 0 -prefix fixed.nii.gz "
            "-infiles scan.nii.gz"
        )
    return PlanRefused(
        got=f"slices {thick_mm:g} mm apart and {got}",
        need=f"slices at least {ISOTROPIC_BELOW:g} times farther apart than the in-plane spacing",
        next=f"{then} ask for thinner slices with {option}",
        code="isotropic",
    )


def _check_slices(volume: Volume, axis: int, model: PlannedModel) -> None:
    """Refuses a single slice, and gaps among the slices that are wider than what a model can be asked to fill."""
    check_times_last(volume, axis)
    count, thick_mm = volume.shape[axis], volume.spacing_mm[axis]
    if count < 2:
        raise PlanRefused(
            got=f"{count} slice along the through-plane axis {axis} (spacing {thick_mm:g} mm)",
            need="at least 2 slices to compute any between them",
            next="give the whole stack, not one slice of it",
            code="one-slice",
        )
    if volume.measured is not None:
        _check_gaps(volume.measured, thick_mm, model)


def _check_gaps(measured: Measured, thick_mm: float, model: PlannedModel) -> None:
    steps = np.diff(measured.places)
    widest = float(steps.max())
    limit = WIDEST_GAP if model.envelope is None else WIDEST_GAP_OF_NETWORKS
    if widest <= limit:
        return
    before = int(np.argmax(steps))
    cubic = widest <= WIDEST_GAP
    raise PlanRefused(
        got=f"{widest * thick_mm:.4g} mm between acquired slices {before + 1} and {before + 2}, where "
        f"{round(widest) - 1} slices {thick_mm:.4g} mm apart are missing, for model {model.name}",
        need=f"at most {round(limit) - 1} missing in a row",
        next=("use `model=cubic`, which fills up to three," if cubic else "find the missing slices,")
        + " or give the slices on either side as scans of their own",
        code="gap-too-wide",
    )


def _spacing_to_advise(n_thick: int, thick_mm: float, grid: Grid, envelope: Envelope | None) -> tuple[str, str]:
    """Returns the largest and the smallest spacing that a model is valid for, each in the words of an advice."""
    smallest_factor, largest_factor = envelope.factor if envelope is not None else (1.0, float("inf"))
    spans = n_thick if grid == "fov" else n_thick - 1
    # Counted in slices, as the grid rounds to whole ones: the very end of an envelope may round to what lies beyond it.
    fewest = max(np.ceil((smallest_factor - TOLERANCE) * spans), spans + 1)
    most = min(np.floor((largest_factor + TOLERANCE) * spans), MAX_SLICES - n_thick + spans)
    if fewest > most:
        return "another `spacing_mm`", "another `spacing_mm`"
    largest, smallest = (_shortest_spacing(thick_mm, spans, int(count)) for count in (fewest, most))
    return f"`spacing_mm={largest}` or less", f"`spacing_mm={smallest}` or more"


def _shortest_spacing(thick_mm: float, spans: int, count: int) -> str:
    """Returns the shortest decimal of a spacing that makes ``count`` thin spacings of ``spans`` thick ones."""
    exact = f"{thick_mm * spans / count:.12f}"
    shorter = (f"{float(exact):.{digits}f}" for digits in range(1, 12))
    # Advice must be good: each shorter number is rounded as `_fit_grid` will round it, and has to give the same count.
    return next((s for s in shorter if float(s) > 0 and round(spans * (thick_mm / float(s))) == count), exact)


def _check_envelope(
    model: PlannedModel,
    envelope: Envelope,
    n_thick: int,
    thick_mm: float,
    factor: float,
    found: FoundProfile,
    settings: Settings,
) -> None:
    """Refuses what the model is not valid for."""
    or_cubic = "or use `model=cubic`, which is valid for any geometry"
    if not envelope.has_factor(factor) and envelope.only_factors is not None:
        known = " or ".join(str(one) for one in envelope.only_factors) or "none: it enlarges slices only"
        give = "give " + " or ".join(f"`factor={one}`" for one in envelope.only_factors)
        family = "give `model` the common name of its files, without .in-plane-x..."
        raise PlanRefused(
            got=f"a factor of {factor:.3g} for model {model.name}",
            need=known,
            next=f"{give if envelope.only_factors else family}, {or_cubic}",
            code="factor-outside-envelope",
        )
    low, high = envelope.factor
    if not low - TOLERANCE <= factor <= high + TOLERANCE:
        largest, smallest = _spacing_to_advise(n_thick, thick_mm, settings.grid, envelope)
        has_any = "=" in largest
        give = f"give {smallest if factor > high else largest}, {or_cubic}" if has_any else or_cubic.removeprefix("or ")
        raise PlanRefused(
            got=f"a factor of {factor:.3g} for model {model.name}",
            need=f"{low:g} to {high:g}",
            next=give,
            code="factor-above-envelope" if factor > high else "factor-below-envelope",
        )
    ratio = found.thickness_mm / thick_mm
    low, high = envelope.thickness_over_spacing
    if not low - TOLERANCE <= ratio <= high + TOLERANCE:
        raise PlanRefused(
            got=f"a thickness of {ratio * thick_mm:g} mm, {ratio:.3g} times the slice spacing, for model {model.name}",
            need=f"{low:g} to {high:g} times ({low * thick_mm:.3g} to {high * thick_mm:.3g} mm)",
            next=f"check `thickness_mm` (default: SliceThickness in the JSON beside the scan), {or_cubic}",
            code="thickness-outside-envelope",
        )
    if found.profile not in envelope.profiles:
        raise PlanRefused(
            got=f"profile {found.profile} for model {model.name}",
            need=" or ".join(envelope.profiles),
            next=f"change `profile`, {or_cubic}",
            code="profile-outside-envelope",
        )
    if settings.grid not in envelope.grids:
        raise PlanRefused(
            got=f"`grid={settings.grid}` for model {model.name}",
            need=" or ".join(envelope.grids),
            next="leave `grid` out",
            code="grid-outside-envelope",
        )


def _check_fuse(model: PlannedModel, settings: Settings) -> None:
    if settings.fuse and model.envelope is None:
        raise PlanRefused(
            got=f"`fuse` for {model.name}, whose answer is the same in every orientation",
            need="a network",
            next="leave `fuse` out, or use `model=default`",
            code="fuse-without-network",
        )


def _check_in_plane(model: PlannedModel, in_plane: int, volume: Volume) -> None:
    """Interpolations enlarge slices by any whole factor, networks by those they have learnt."""
    if model.envelope is not None and in_plane not in model.envelope.in_plane:
        raise PlanRefused(
            got=f"`in_plane={in_plane}` for model {model.name}",
            need=" or ".join(str(factor) for factor in model.envelope.in_plane),
            next="give one of these, or use a model that enlarges slices (planes-mr, planes-ct, cubic)",
            code="in-plane-outside-envelope",
        )
    if max(volume.shape) * in_plane > MAX_SLICES:
        raise PlanRefused(
            got=f"`in_plane={in_plane}` for a scan of {volume.shape} voxels",
            need=f"at most {MAX_SLICES} along an axis",
            next="give a smaller one",
            code="too-many-slices",
        )


def _check_matrix(plan: Plan) -> None:
    """Refuses a slice so much thinner than the new spacing that it lies between two new slices and sees neither."""
    try:
        plan.acquisition().matrix()
    except ValueError as error:
        thin_mm = plan.spacing_thin_mm[plan.axis]
        enough = 1.01 * thin_mm * 0.5 / GAUSSIAN_REACH_FWHM  # half a spacing is the farthest; rounded up in the text
        raise PlanRefused(
            got=f"a slice thickness of {plan.thickness_mm:g} mm for new slices {thin_mm:.3g} mm apart, so a slice "
            "would fall between two of them",
            need=f"a thickness of at least {enough:.3g} mm",
            next="check `thickness_mm`, or give a smaller `spacing_mm` or `profile=box`",
            code="slice-between-slices",
        ) from error


# ---- plain data


def _find_versions() -> dict[str, str]:
    packages = ("thinslice", "numpy", "nibabel", "onnxruntime")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _to_tuples(value: Any) -> Any:
    return tuple(_to_tuples(item) for item in value) if isinstance(value, list) else value
