"""How well an answer agrees with what the scanner acquired, and the report that says so beside what was done."""

import dataclasses
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thinslice.compute.guard import GuardCount
from thinslice.compute.kept_slices import give_to_all, take_kept
from thinslice.compute.tilted import acquired_voxels, back_to_acquired, held_beyond
from thinslice.errors import PlanRefused
from thinslice.files import read_text
from thinslice.io.atomic import whole_or_not
from thinslice.io.formats import sidecar_path
from thinslice.io.outputs import REPORT_NAME
from thinslice.physics.acquisition import apply_along_first_axis
from thinslice.physics.downscaling import downscaling_matrix
from thinslice.physics.intensity import intensity_range
from thinslice.physics.interleaving import make_even
from thinslice.physics.noise import LEAST_NOISE
from thinslice.physics.projection import cut_into_bands
from thinslice.physics.straightening import SAME_PLACE, inside
from thinslice.plan import Plan
from thinslice.volume import Volume

logger = logging.getLogger(__name__)

CHUNK = 8
"""Acquired slices that are compared together, so that only the thin slices they see are in use."""

SAME_PLACE_MM = 1e-3
"""Affines that differ by less are one grid: formats store them as 32-bit floats."""


MOST_PERCENT = 5.0
"""Percent of the intensity range, root mean square. With what is found for them, all real scans that were tried stay
below 2.1, without projection too, and with the widest usual profile (a Gaussian as wide as the spacing) below 2.6; told
a thickness of a metre they have 12 to 22 (LOG.md, 2026-11-30)."""

MOST_IN_NOISE = 2.0
"""Times the standard deviation of the slices' noise: an answer need not follow noise, and noise may be large."""


@dataclass(frozen=True)
class Consistency:
    """Says how far the answer, made thick again, is from the acquired slices: an error that needs no truth.

    Attributes:
        rms, worst: root mean square and largest absolute difference, in the scan's own units.
        rms_percent, worst_percent: the same in percent of the intensity range (0.5 to 99.5 percentile); in a 4-D series
            every volume is measured against its own range.
        rms_in_noise: the root mean square over the standard deviation of the slices' noise. About 1 is what an answer
            without noise has; None where there is less noise than `thinslice.physics.noise.LEAST_NOISE`.
    """

    rms: float
    worst: float
    rms_percent: float
    worst_percent: float
    rms_in_noise: float | None = None

    @property
    def in_noise(self) -> str:
        """The last as text that goes on with a comma, empty if it is not known."""
        return "" if self.rms_in_noise is None else f", {self.rms_in_noise:.2g} times the noise of the slices"


@dataclass(frozen=True)
class Report:
    """Says what was done to one scan, and how well the answer agrees with it.

    Attributes:
        source: name of the file that went in.
        plan: every decision.
        seconds: how long the thin slices took to compute, to the millisecond, without reading and writing.
        consistency: see `check`.
        guard: how many cells were looked at, and how many fell back to interpolation.
        notes: what had to be decided or fell back, in plain words.
    """

    source: str
    plan: Plan
    seconds: float
    consistency: Consistency
    guard: GuardCount
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Returns readable JSON; its ``plan`` is that of `thinslice.plan.Plan.to_json`."""
        content = {
            "source": self.source,
            "model": {"name": self.plan.model, "sha256": self.plan.model_sha256},
            "seconds": self.seconds,
            "consistency": dataclasses.asdict(self.consistency),
            "guard": {"cells": self.guard.cells, "fell_back": self.guard.suspect, "fell_back_share": self.guard.share},
            "notes": self.notes,
            "plan": dataclasses.asdict(self.plan),
        }
        return json.dumps(content, indent=2) + "\n"

    def save(self, path: Path) -> None:
        """Writes the JSON under a temporary name in the same folder, then renames; a failure leaves nothing behind."""
        with whole_or_not(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")


def make_report(
    volume: Volume, thin: Volume, plan: Plan, guard: GuardCount, seconds: float, clipped: int = 0
) -> Report:
    """Returns the report on one answer, and measures with `check` how well it agrees with the scan.

    Args:
        volume, thin, plan: as in `check`.
        guard: how many cells were looked at, and how many fell back to interpolation.
        seconds: how long the thin slices took to compute.
        clipped: how many voxels lay beyond what the answer's dtype holds.
    """
    # Each once: `upsample` hands the notes of the plan on with the answer.
    notes = list(dict.fromkeys([*plan.notes, *thin.notes]))
    if guard.suspect:
        notes.append(f"the guard took {guard.suspect} of {guard.cells} cells ({guard.percent}) back to interpolation")
    if clipped:
        notes.append(
            f"{clipped:,} of {thin.voxels.size:,} voxels lay beyond what {thin.voxels.dtype} holds and were clipped: "
            "there the answer agrees less well with the scan; next: store the scan as float32, which is not clipped"
        )
    name = volume.source.name if volume.source is not None else ""
    return Report(name, plan, seconds, check(volume, thin, plan), guard, tuple(notes))


def check(volume: Volume, thin: Volume, plan: Plan) -> Consistency:
    """Makes the answer thick again by the plan's acquisition, and compares it with the acquired slices.

    What clearly alternates from slice to slice, and was taken out for the computation, is taken out of these too.
    Slices that were enlarged in-plane are made small again by anti-aliased bicubic downscaling. Those that are not
    computed from, as they were interpolated, are not compared. Slices that were straightened, or are uneven, are
    compared as they were acquired: what the answer shows there is shifted back to them.

    Args:
        volume: the scan that went in, [x, y, z] or [x, y, z, t].
        thin: the answer, ``plan.shape_thin`` (plus t).
        plan: the plan that led from one to the other.

    Returns:
        The differences; of a 4-D series over all its volumes.
    """
    volume, plan = take_kept(volume, plan)
    measured = [
        _measure_differences(np.moveaxis(before, plan.axis, 0), np.moveaxis(after, plan.axis, 0), plan)
        for before, after in zip(_volumes(acquired_voxels(volume)), _volumes(thin.voxels), strict=True)
    ]
    mean_square, worst, scale = (np.array(column) for column in zip(*measured, strict=True))
    in_ranges = float(np.sqrt((mean_square / scale**2).mean()))
    noise = plan.slice_noise
    found = Consistency(
        rms=float(np.sqrt(mean_square.mean())),
        worst=float(worst.max()),
        rms_percent=100 * in_ranges,
        worst_percent=float(100 * (worst / scale).max()),
        rms_in_noise=in_ranges / noise if noise is not None and noise >= LEAST_NOISE else None,
    )
    logger.debug(
        "compared %d acquired slices: %.3g %% apart (RMS), %.3g %% at worst",
        plan.n_thick,
        found.rms_percent,
        found.worst_percent,
    )
    return found


def check_agreement(found: Consistency, plan: Plan, is_forced: bool | None = None) -> list[str]:
    """Refuses an answer that contradicts the acquired slices, or returns a note on it.

    More than `MOST_PERCENT` of the intensity range and `MOST_IN_NOISE` times the noise of the slices, root mean square,
    is more than any real scan has with what is found for it: the slices are not as thick as the plan has them.

    Args:
        found: of `check`.
        plan: by which the answer was computed.
        is_forced: whether such an answer is wanted all the same (`Settings.force`), None where nobody may want that;
            what was not projected onto the acquired slices is, and one whose profile was found, not told.

    Raises:
        PlanRefused: it contradicts them, and is not wanted.
    """
    most = max(MOST_PERCENT, MOST_IN_NOISE * 100 * (plan.slice_noise or 0.0))
    if not found.rms_percent > most:
        return []
    got = (
        f"an answer that differs from the acquired slices by {found.rms_percent:.3g} % RMS of the intensity range, "
        f"computed with a {plan.profile} of {plan.thickness_mm:.4g} mm for slices "
        f"{plan.spacing_thick_mm[plan.axis]:.4g} mm apart"
    )
    # Without projection an answer is not made by the profile, nor to agree; and what nobody told may be mere noise.
    if is_forced or not plan.projection or plan.profile_source != "told":
        why = "check `thickness_mm`" if plan.profile_source != "told" else "forced"
        why = why if plan.projection else "not made to agree with the scan (`projection=False`)"
        return [f"{why}: {got}, where at most {most:.3g} % are usual"]
    way = "leave `thickness_mm` and `profile` out"
    raise PlanRefused(
        got=got,
        need=f"at most {most:.3g} %",
        next=way if is_forced is None else f"{way}, or add `force=True` to have it all the same",
        code="contradicts-scan",
    )


def map_misfit(volume: Volume, thin: Volume, plan: Plan) -> Volume:
    """Returns where `check` finds what: absolute differences on the acquired grid, float32, in the scan's own units.

    Of a 4-D series the first volume is looked at.
    """
    if plan.every > 1:
        kept, of_kept = take_kept(volume, plan)
        misfit = map_misfit(kept, thin, of_kept)
        return Volume(give_to_all(misfit.voxels, plan), volume.affine)
    before, after = (np.moveaxis(_volumes(one)[0], plan.axis, 0) for one in (acquired_voxels(volume), thin.voxels))
    before, after = _as_computed(before, after, plan)
    apart = np.empty(before.shape, np.float32)
    for start in range(0, len(before), CHUNK):
        chunk = apart[start : start + CHUNK]
        if plan.in_plane > 1 or plan.offsets_px is not None:
            chunk[...] = list(_compare_one_by_one(before, after, plan, start, start + len(chunk)))
            continue
        differences = _compare(before, after, plan, start, start + len(chunk))
        for band, found in zip(cut_into_bands(after), differences, strict=True):
            chunk[band] = found
    np.abs(apart, out=apart)
    return Volume(np.moveaxis(_on_even_grid(apart, plan), 0, plan.axis), volume.affine)


def _on_even_grid(apart: np.ndarray, plan: Plan) -> np.ndarray:
    """Returns what was found in the acquired slices [n, h, w] where these lie on the upright, even grid.

    A slice that is missing gets what was found in its neighbours, the larger of two.
    """
    if plan.shape_acquired is None:
        return apart
    within = [axis for axis in range(3) if axis != plan.axis]
    shape = plan.shape_thick[within[0]], plan.shape_thick[within[1]]
    if plan.offsets_px is not None:
        upright = np.zeros((len(apart), *shape), apart.dtype)
        for index, offset in enumerate(plan.offsets_px):
            part = inside(offset, (apart.shape[1], apart.shape[2]), shape)
            upright[index][part] = apart[index, : part[0].stop - part[0].start, : part[1].stop - part[1].start]
        apart = upright
    if plan.places is None:
        return apart
    among = np.interp(np.arange(plan.n_thick), plan.places, np.arange(plan.n_acquired))
    before, behind = np.floor(among + SAME_PLACE).astype(int), np.ceil(among - SAME_PLACE).astype(int)
    return np.asarray(np.maximum(apart[before], apart[behind]))


def read_plan_beside(path: Path, thin: Volume | None = None) -> Plan | None:
    """Returns the plan in the report beside an answer, or beside the answer that its labels belong to.

    Args:
        path: an answer, its labels, or the folder of a DICOM series, in which its report lies.
        thin: what lies there, if its grid shall be compared with that of the plan.

    Returns:
        None where there is no such report, or it is not one of this program, or it is about another grid.
    """
    sidecar = path / REPORT_NAME if path.is_dir() else sidecar_path(path)
    try:
        # Labels have no report of their own; the plan they were made by is in that of the answer beside them.
        if sidecar is not None and not sidecar.exists():
            sidecar = sidecar.with_name(sidecar.name.replace("_labels.json", ".json"))
        content: Any = json.loads(read_text(sidecar)) if sidecar is not None else None
        plan = Plan.from_json(json.dumps(content["plan"]))
    # Any JSON may lie there under this name: one of another program is no error, only no plan.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    # The file may have been replaced since by something else, with its report left beside it.
    if thin is not None and not (
        thin.shape == tuple(plan.shape_thin) and np.allclose(thin.affine, plan.affine_thin, atol=SAME_PLACE_MM)
    ):
        logger.debug("%s is about another grid than %s has", sidecar, path.name)
        return None
    return plan


def _volumes(voxels: np.ndarray) -> list[np.ndarray]:
    """Returns the 3-D volumes [x, y, z] of a scan."""
    return [voxels] if voxels.ndim == 3 else [voxels[..., t] for t in range(voxels.shape[3])]


def _measure_differences(thick: np.ndarray, thin: np.ndarray, plan: Plan) -> tuple[float, float, float]:
    """Returns mean square and largest difference of [thick, h, w] and A [thin, h, w], and the range of the former.

    Padding counts as what it was computed as.
    """
    thick, thin = _as_computed(thick, thin, plan)
    total, worst = 0.0, 0.0
    compare = _compare if plan.in_plane == 1 and plan.offsets_px is None else _compare_one_by_one
    for start in range(0, len(thick), CHUNK):
        for difference in compare(thick, thin, plan, start, min(start + CHUNK, len(thick))):
            total += float(np.sum(difference**2))
            worst = max(worst, float(np.abs(difference).max()))
    low, high = intensity_range(thick)
    return total / thick.size, worst, high - low


def _as_computed(thick: np.ndarray, thin: np.ndarray, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Returns both with air where the scanner saw nothing, and the acquired slices even: so they were computed with.

    Slices that were straightened are not compared where the scanner saw nothing: NaN stands there.
    """
    if plan.offsets_px is not None:
        even = make_even(thick, plan.alternation).astype(np.float64)
        if plan.padding is not None:
            even[thick == plan.padding] = np.nan
        return even, held_beyond(thin, plan)
    if plan.padding is not None and not (thick == plan.padding).all():
        # The value that `upsample` computed with: another one would look like disagreement all along the rim.
        air = thick[thick != plan.padding].min()
        thick, thin = np.where(thick == plan.padding, air, thick), np.where(thin == plan.padding, air, thin)
    return make_even(thick, plan.alternation), thin


def _compare(thick: np.ndarray, thin: np.ndarray, plan: Plan, start: int, stop: int) -> Iterator[np.ndarray]:
    """Yields the differences of some acquired slices, band by band."""
    seen, matrix = plan.acquisition().rows(start, stop)
    for band in cut_into_bands(thin):
        # Float64, as whole numbers of 32 bits are not exact in float32.
        again = apply_along_first_axis(matrix, thin[seen][band].astype(np.float64, order="C"))
        yield again - thick[start:stop][band]


def _compare_one_by_one(thick: np.ndarray, thin: np.ndarray, plan: Plan, start: int, stop: int) -> Iterator[np.ndarray]:
    """Yields the differences of some acquired slices; the thin ones are larger in-plane, or upright."""
    within = [size for axis, size in enumerate(plan.shape_thick) if axis != plan.axis]
    rows, columns = (downscaling_matrix(size, plan.in_plane) if plan.in_plane > 1 else None for size in within)
    acquisition = plan.acquisition()
    # One by one: in float64 the enlarged slices that a whole chunk sees would take ``in_plane`` squared times the room.
    for index in range(start, stop):
        seen, matrix = acquisition.rows(index, index + 1)
        large = np.tensordot(matrix[0], thin[seen].astype(np.float64), axes=1)
        small = large if rows is None or columns is None else rows @ large @ columns.T
        yield np.nan_to_num(back_to_acquired(small, plan, index) - thick[index])
