"""make_plan: every decision, once, as plain data -- or PlanRefused, with a way out."""

import dataclasses
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np

from thinslice.errors import PlanRefused
from thinslice.models.envelope import TOLERANCE, Envelope
from thinslice.models.hounsfield import check_hounsfield, padding_of
from thinslice.physics.acquisition import Acquisition
from thinslice.physics.profile import GAUSSIAN_REACH_FWHM
from thinslice.physics.projection import NOISE_LEVEL
from thinslice.settings import GRIDS, Grid, Profile
from thinslice.volume import Volume, refine_affine, through_plane_axis

ISOTROPIC_BELOW = 1.05
"""A scan whose slices are less than this many in-plane spacings apart is called isotropic."""

MAX_SLICES = 32_767
"""The largest size of one axis that NIfTI-1 can store."""


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
        grid: ``fov`` keeps the outer edges of the field of view, ``centres`` the outermost slice centres.
        factor: acquired spacing over new spacing, exactly as realised.
        first_centre: centre of the first thick slice in thin-voxel units.
        affine_thick, affine_thin: voxel index -> patient millimetres.
        model: the model's name; ``model_sha256`` is None for an interpolation.
        in_plane: by how much the slices themselves are enlarged along both of their axes, before any is added; their
            outer edges are kept.
        fuse: whether a network is asked in several orientations and its answers are joined.
        padding: the value with which the scan is filled where the scanner saw nothing, None if it is not. Computed as
            air, and put back where it was.
        projection: whether the answer is projected onto the acquired slices.
        noise: regularisation of that projection, see `thinslice.physics.projection.NOISE_LEVEL`.
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
    def thickness_over_spacing(self) -> float:
        """1 for touching slices, below 1 with a gap, above 1 with an overlap."""
        return self.thickness_mm / self.spacing_thick_mm[self.axis]

    def positions(self) -> np.ndarray:
        """[thin] centres of the thin slices in thick-slice index units."""
        return (np.arange(self.n_thin) - self.first_centre) / self.factor

    def acquisition(self) -> Acquisition:
        """Returns the operator by which the acquired slices of this plan see the thin ones."""
        centres_vox = self.first_centre + self.factor * np.arange(self.n_thick)
        fwhm_vox = self.thickness_over_spacing * self.factor
        return Acquisition(centres_vox, self.n_thin, fwhm_vox, self.profile, self.axis)

    def to_json(self) -> str:
        """Readable JSON; `from_json` gives back an equal plan."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @staticmethod
    def from_json(text: str) -> "Plan":
        """The inverse of `to_json`."""
        return Plan(**{name: _to_tuples(value) for name, value in json.loads(text).items()})


def make_plan(
    volume: Volume,
    *,
    spacing_mm: float | None = None,
    factor: float | None = None,
    thickness_mm: float | None = None,
    profile: Profile = "gaussian",
    grid: Grid = "fov",
    model: str = "cubic",
    model_sha256: str | None = None,
    envelope: Envelope | None = None,
    projection: bool = True,
    noise: float = NOISE_LEVEL,
    in_plane: int = 1,
    fuse: bool = False,
) -> Plan:
    """Decide everything about one scan.

    Args:
        volume: the scan; only its geometry is looked at, and its values for a model that needs Hounsfield units.
        spacing_mm: wanted distance between slices; default: the coarser of the two in-plane spacings.
        factor: alternatively, how many times closer the slices shall be.
        thickness_mm: slice thickness; default: what the header says, else the slice spacing.
        profile, grid: see `Plan`.
        model, model_sha256, envelope: the model that will be used and what it is valid for (None: anything).
        projection, noise, in_plane: see `Plan`.
        fuse: see `Plan`.

    Raises:
        PlanRefused: the scan is isotropic, has one slice, the wish lies outside what the model is valid for, or a
            slice is so thin that it would fall between the new ones.
    """
    notes = list(volume.notes)
    axis = through_plane_axis(volume)
    n_thick = volume.shape[axis]
    thick_mm = volume.spacing_mm[axis]
    _check_in_plane(model, envelope, in_plane, volume)
    in_plane_mm = [s / in_plane for i, s in enumerate(volume.spacing_mm) if i != axis]
    if n_thick < 2:
        raise PlanRefused(
            f"got {n_thick} slice along the through-plane axis {axis} (spacing {thick_mm:g} mm); "
            "need at least 2 slices to compute any between them; next: give the whole stack, not one slice of it"
        )
    target_mm = _target_mm(thick_mm, in_plane_mm, spacing_mm, factor)
    if spacing_mm is None and factor is None and envelope is not None and envelope.only_factors:
        target_mm, told = _nearest_known(model, envelope.only_factors, thick_mm, target_mm)
        notes += told
    valid = envelope.factor if envelope is not None else (1.0, float("inf"))
    spacings = _advised_spacings(n_thick, thick_mm, valid, grid)
    n_thin, real_factor = _thin_grid(n_thick, thick_mm / target_mm, grid, spacings)
    if thickness_mm is None and volume.thickness_mm is not None:
        notes.append(f"slice thickness {volume.thickness_mm:g} mm as stated with the scan")
    thickness = _thickness_mm(thickness_mm, volume.thickness_mm, thick_mm)
    if envelope is not None:
        _check_envelope(model, envelope, real_factor, thickness / thick_mm, profile, thick_mm, spacings)
        _check_grid(model, envelope, grid)
    padding = None
    if envelope is not None and envelope.hounsfield:
        padding = padding_of(volume.voxels)
        notes += check_hounsfield(model, volume.voxels, padding)
    if padding is not None:
        notes.append(f"voxels of {padding:g} are padding: computed as air, and put back where they were")
    if fuse and envelope is None:
        raise PlanRefused(
            f"got --fuse for {model}, whose answer is the same in every orientation; need a network; next: leave "
            "--fuse out, or use --model default"
        )
    if abs(thick_mm / real_factor - target_mm) > 1e-6 * target_mm:
        notes.append(
            f"{n_thick} slices of {thick_mm:g} mm do not divide into {target_mm:g} mm: "
            f"{n_thin} slices of {thick_mm / real_factor:g} mm keep "
            f"the {'field of view' if grid == 'fov' else 'outer centres'}"
        )
    first_centre = (real_factor - 1) / 2 if grid == "fov" else 0.0
    finer = [real_factor if i == axis else float(in_plane) for i in range(3)]
    first = [first_centre if i == axis else (in_plane - 1) / 2 for i in range(3)]
    shape_thin = [n_thin if i == axis else n * in_plane for i, n in enumerate(volume.shape)]
    plan = Plan(
        axis=axis,
        shape_thick=volume.shape,
        shape_thin=_to_tuples(shape_thin),
        spacing_thick_mm=volume.spacing_mm,
        spacing_thin_mm=_to_tuples([mm / times for mm, times in zip(volume.spacing_mm, finer, strict=True)]),
        thickness_mm=thickness,
        profile=profile,
        grid=grid,
        factor=real_factor,
        first_centre=first_centre,
        affine_thick=_to_tuples(volume.affine.tolist()),
        affine_thin=_to_tuples(refine_affine(volume.affine, finer, first).tolist()),
        model=model,
        model_sha256=model_sha256,
        projection=projection,
        noise=noise,
        in_plane=in_plane,
        fuse=fuse,
        padding=padding,
        notes=tuple(notes),
        versions=_versions(),
    )
    _check_matrix(plan)
    return plan


def _target_mm(thick_mm: float, in_plane_mm: Sequence[float], spacing_mm: float | None, factor: float | None) -> float:
    if spacing_mm is not None and factor is not None:
        raise PlanRefused(
            f"got --spacing {spacing_mm:g} and --factor {factor:g}; need one of them; next: leave one out"
        )
    for name, value in (("--spacing", spacing_mm), ("--factor", factor)):
        if value is not None and not (np.isfinite(value) and value > 0):
            raise PlanRefused(f"got {name} {value:g}; need a positive number; next: correct it or leave it out")
    if factor is not None:
        target = thick_mm / factor
    elif spacing_mm is not None:
        target = spacing_mm
    else:
        target = max(in_plane_mm)
        if thick_mm / target < ISOTROPIC_BELOW:
            raise PlanRefused(_why_not_thick(thick_mm, in_plane_mm))
    if target >= thick_mm:
        raise PlanRefused(
            f"got a wish for slices {target:g} mm apart, but they are {thick_mm:g} mm apart already; "
            f"need less than {thick_mm:g} mm; next: give a smaller --spacing or a --factor above 1"
        )
    return target


def _nearest_known(model: str, known: Sequence[int], thick_mm: float, target_mm: float) -> tuple[float, list[str]]:
    """The spacing by the factor, of those a model has, that is nearest to a spacing; and a note if that is another."""
    wish = thick_mm / target_mm
    nearest = min(known, key=lambda factor: abs(np.log(factor / wish)))
    same = abs(wish - nearest) <= TOLERANCE
    told = [] if same else [f"factor {nearest}, of those that {model} has the nearest to {wish:.3g}"]
    return thick_mm / nearest, told


def _why_not_thick(thick_mm: float, in_plane_mm: Sequence[float]) -> str:
    finest, coarsest = min(in_plane_mm), max(in_plane_mm)
    if thick_mm / finest < ISOTROPIC_BELOW:
        got, then = f"{coarsest:g} mm in-plane: the scan is already isotropic", "use it as it is, or"
        option = "--factor or --spacing"
    else:
        got = f"{finest:g} x {coarsest:g} mm in-plane: the scan is coarse along two axes"
        then = "make one of them finer:"
        option = f"--spacing {finest:g}"
    return (
        f"got slices {thick_mm:g} mm apart and {got}; need slices at least {ISOTROPIC_BELOW:g} times farther apart "
        f"than the in-plane spacing; next: {then} ask for thinner slices with {option}"
    )


def _thin_grid(n_thick: int, ratio: float, grid: Grid, spacings: tuple[str, str]) -> tuple[int, float]:
    """Number of thin slices and the realised factor, so that edges (fov) or outer centres (centres) are kept.

    ``spacings``: the largest and the smallest to advise.
    """
    if grid == "fov":
        n_thin = max(round(n_thick * ratio), 1)
        realised = n_thin / n_thick
    elif grid == "centres":
        n_thin = max(round((n_thick - 1) * ratio), 1) + 1
        realised = (n_thin - 1) / (n_thick - 1)
    else:
        raise PlanRefused(f"got --grid {grid}; need one of {', '.join(GRIDS)}; next: choose one of them")
    if n_thin <= n_thick:
        raise PlanRefused(
            f"got {n_thick} slices and a factor of {ratio:.3g}, which rounds to {n_thin} slices: nothing to compute; "
            f"need a larger factor; next: give {_spacing_option(spacings[0], 'or less')}"
        )
    if n_thin > MAX_SLICES:
        raise PlanRefused(
            f"got a wish for {n_thin:.6g} slices; need at most {MAX_SLICES}; "
            f"next: give {_spacing_option(spacings[1], 'or more')}"
        )
    return n_thin, realised


def _thickness_mm(wished: float | None, header: float | None, spacing_mm: float) -> float:
    thickness = wished if wished is not None else header if header is not None else spacing_mm
    if not (np.isfinite(thickness) and thickness > 0):
        raise PlanRefused(
            f"got a slice thickness of {thickness:g} mm; need a positive number; next: give --thickness in millimetres"
        )
    return float(thickness)


def _advised_spacings(n_thick: int, thick_mm: float, factors: tuple[float, float], grid: Grid) -> tuple[str, str]:
    """The largest and the smallest spacing, in mm, that make whole slices and a factor within ``factors``.

    Both are empty where there is no such number.
    """
    spans = n_thick if grid == "fov" else n_thick - 1
    fewest = max(np.ceil((factors[0] - TOLERANCE) * spans), spans + 1)
    most = min(np.floor((factors[1] + TOLERANCE) * spans), MAX_SLICES - n_thick + spans)
    if fewest > most:
        return "", ""
    return _short(thick_mm, spans, int(fewest)), _short(thick_mm, spans, int(most))


def _short(thick_mm: float, spans: int, count: int) -> str:
    """The shortest decimal for a spacing that is rounded to ``count`` thin spacings for ``spans`` thick ones."""
    exact = f"{thick_mm * spans / count:.12f}"
    shorter = (f"{float(exact):.{digits}f}" for digits in range(1, 12))
    return next((s for s in shorter if float(s) > 0 and round(spans * (thick_mm / float(s))) == count), exact)


def _spacing_option(spacing: str, side: str) -> str:
    return f"--spacing {spacing} {side}" if spacing else "another --spacing"


def _check_envelope(
    model: str,
    envelope: Envelope,
    factor: float,
    ratio: float,
    profile: str,
    thick_mm: float,
    spacings: tuple[str, str],
) -> None:
    """Refuse what the model is not valid for; ``spacings``: the largest and smallest to advise, see above."""
    way_out = "or use --model cubic, which is valid for any geometry"
    if envelope.only_factors is not None and not any(
        abs(factor - known) <= TOLERANCE for known in envelope.only_factors
    ):
        known = " or ".join(str(f) for f in envelope.only_factors) or "none: it enlarges slices only"
        option = "give " + " or ".join(f"--factor {f}" for f in envelope.only_factors)
        family = "give --model the common name of its files, without .in-plane-x..."
        advice = f"{option if envelope.only_factors else family}, {way_out}"
        raise PlanRefused(f"got a factor of {factor:.3g} for model {model}; need {known}; next: {advice}")
    low, high = envelope.factor
    if not low - TOLERANCE <= factor <= high + TOLERANCE:
        largest, smallest = spacings
        option = _spacing_option(smallest, "or more") if factor > high else _spacing_option(largest, "or less")
        advice = f"give {option}, {way_out}" if largest else way_out.removeprefix("or ")
        raise PlanRefused(f"got a factor of {factor:.3g} for model {model}; need {low:g} to {high:g}; next: {advice}")
    low, high = envelope.thickness_over_spacing
    if not low - TOLERANCE <= ratio <= high + TOLERANCE:
        raise PlanRefused(
            f"got a thickness of {ratio * thick_mm:g} mm, {ratio:.3g} times the slice spacing, for model {model}; "
            f"need {low:g} to {high:g} times ({low * thick_mm:.3g} to {high * thick_mm:.3g} mm); "
            f"next: check --thickness (default: SliceThickness in the JSON beside the scan), {way_out}"
        )
    if profile not in envelope.profiles:
        raise PlanRefused(
            f"got profile {profile} for model {model}; need {' or '.join(envelope.profiles)}; "
            f"next: change --profile, {way_out}"
        )


def _check_grid(model: str, envelope: Envelope, grid: str) -> None:
    if grid not in envelope.grids:
        raise PlanRefused(
            f"got --grid {grid} for model {model}; need {' or '.join(envelope.grids)}; next: leave --grid out"
        )


def _check_in_plane(model: str, envelope: Envelope | None, in_plane: int, volume: Volume) -> None:
    """Interpolations enlarge slices by any whole factor, networks by those they have learnt."""
    if in_plane < 1 or in_plane * 1.0 != int(in_plane):
        raise PlanRefused(f"got --in-plane {in_plane}; need a whole number from 1 on; next: correct it or leave it out")
    if envelope is not None and in_plane not in envelope.in_plane:
        known = " or ".join(str(factor) for factor in envelope.in_plane)
        raise PlanRefused(
            f"got --in-plane {in_plane} for model {model}; need {known}; next: give one of these, or use a model that "
            "enlarges slices (planes-mr, planes-ct, cubic)"
        )
    if max(volume.shape) * in_plane > MAX_SLICES:
        raise PlanRefused(
            f"got --in-plane {in_plane} for a scan of {volume.shape} voxels; need at most {MAX_SLICES} along an axis; "
            "next: give a smaller one"
        )


def _check_matrix(plan: Plan) -> None:
    """A slice much thinner than the new spacing may lie between two new slices and see neither."""
    try:
        plan.acquisition().matrix()
    except ValueError:
        thin_mm = plan.spacing_thin_mm[plan.axis]
        enough = 1.01 * thin_mm * 0.5 / GAUSSIAN_REACH_FWHM  # half a spacing is the farthest; rounded up in the text
        raise PlanRefused(
            f"got a slice thickness of {plan.thickness_mm:g} mm for new slices {thin_mm:.3g} mm apart, so a slice "
            f"would fall between two of them; need a thickness of at least {enough:.3g} mm; "
            "next: check --thickness, or give a smaller --spacing or --profile box"
        ) from None


def _versions() -> dict[str, str]:
    packages = ("thinslice", "numpy", "nibabel", "onnxruntime")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _to_tuples(value: Any) -> Any:
    return tuple(_to_tuples(item) for item in value) if isinstance(value, list) else value
