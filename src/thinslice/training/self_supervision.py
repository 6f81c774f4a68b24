"""Thick scans that teach themselves: stage 3 of Wang et al. (ISBI 2024), without any thin truth.

What lies in the slices is sharp, so a direction within them is made thick and undone, as SMORE does it (Zhao et al.
2020); here in many directions, and mostly where that looks like the slices: a direction that crosses many edges
teaches little about one that runs along them. How much an image changes from one thick slice to the next, against how
much it changes within them, can be seen in the acquired slices as well as in those made thick, so places
are drawn the less the more often they occur there than across the acquired slices (importance weighting under
covariate shift, Shimodaira 2000). Without that, adaptation did harm (LOG.md).

The acquired slices made thicker still are the slice direction itself, at another scale: a quarter of the batches. One
end of the field of view is held out of batches of either kind; what it says of an answer that learnt elsewhere is the
judge (LOG.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from thinslice.compute.upsample import upsample
from thinslice.errors import InputRefused
from thinslice.models.protocol import Model
from thinslice.physics.acquisition import Acquisition
from thinslice.physics.intensity import intensity_range
from thinslice.plan import Plan
from thinslice.settings import Profile
from thinslice.training.batches import (
    BLANK,
    THICK_SCAN_RANGES,
    Batch,
    Draw,
    Geometry,
    draw_patch,
    geometry_near,
    geometry_of_block,
    render,
)
from thinslice.training.usable_scans import LEAST_SIDE, check_large_enough
from thinslice.training.volumes import TrainingVolume
from thinslice.volume import Volume

ANGLES = (0.0, 15.0, 30.0, 45.0, 60.0, 75.0)
"""Directions within the slices, degrees; each also with the one across it."""

HELD_OUT = 0.2
"""Share of what is brighter than BLANK that nothing is learnt from, at one end of the longer side of the slices."""

LEAST_HELD_OUT = 32
"""Pixels along that side that are held out at least, or a third of it."""

LEAST_LEARNT = 0.5
"""Share of what is bright that is left to learn from, however little is held out then."""

NARROWEST = 16
"""Pixels along that side of either part at least."""

VOXELS = 60_000_000
"""Thin voxels learnt from, of all scans together; the rest of a larger scan is cut off. They lie in memory, turned."""

LEAST_VOXELS = 1_600_000
"""Thin voxels learnt from of each scan, at least."""

THICKER = 0.25
"""Share of the batches that are cut from the acquired slices made thicker."""

SQUARE = 1.05
"""Pixels whose sides differ by this factor at most pass for square ones."""

ROOM = 4
"""Thick slices that must have room along a direction to be learnt from; the longer side of the slices always is."""

CELL = 16
"""Pixels along the sides of a cell: a place is judged by 3x3 cells around its middle."""

SLABS_SEEN = 4
"""Acquired slices around its middle by which a place is judged: those of a patch."""

BINS = (8, 4)
"""Classes of places: by the change between slices relative to that within, and by the latter."""

RARELY = 0.02
"""How often a class of places is drawn at least, relative to chance: what is unlike the slices is drawn less."""

OFTEN = 1.0
"""The same at most, so that a few places that are like the slices are not all that is seen."""


@dataclass(frozen=True)
class PatchPlaces:
    """Where patches can be cut: volume, axis and middle (thin voxels along axis, lines, columns), and their chances."""

    volume: np.ndarray
    axis: np.ndarray
    middle: np.ndarray
    chance: np.ndarray


@dataclass(frozen=True)
class TargetScan:
    """One thick scan, ready to be learnt from.

    Attributes:
        name: of the scan.
        factor, thickness_over_spacing, profile: of its plan.
        volumes, places: what is learnt from: the starting model's answer, turned by `ANGLES`, slice axis last.
        held_out, held_out_places: the same of the end of the field of view that is held out.
        acquired, held_out_acquired: the acquired slices themselves [x, y, slices], to be made thicker still; likewise.
        weight: how often it is drawn.
    """

    name: str
    factor: float
    thickness_over_spacing: float
    profile: Profile
    volumes: list[TrainingVolume]
    places: PatchPlaces
    held_out: list[TrainingVolume]
    held_out_places: PatchPlaces
    acquired: TrainingVolume
    held_out_acquired: TrainingVolume
    weight: float


def make_target_scan(name: str, scan: Volume, plan: Plan, model: Model, voxels: int = VOXELS) -> TargetScan:
    """Computes the thin slices by the starting model, turns them, and sees which places are like the slices.

    Args:
        name: of the scan.
        scan: 3-D.
        plan: what will be done to it, with ``model``.
        model: the starting model.
        voxels: thin voxels to be kept of it at most.

    Raises:
        InputRefused: there is too little of it to learn from.
    """
    check_large_enough(scan, plan)
    low, high = intensity_range(scan.voxels.astype(np.float32))
    acquired = (np.moveaxis(scan.voxels, plan.axis, 2).astype(np.float32) - low) / np.float32(high - low)
    *crop, depth = _middle((*acquired.shape[:2], plan.n_thin), voxels)
    # Split before thin slices are computed: a network sees some ten pixels far, and would carry what is held out into
    # what is learnt from (LOG.md).
    learnt, held_out = _split(acquired, (crop[0], crop[1]))
    about = (plan.factor, plan.thickness_over_spacing, plan.profile)
    thin = [
        (_thin_of(part, scan, plan, model)[..., depth] - low) / np.float32(high - low) for part in (learnt, held_out)
    ]
    volumes, held_out_volumes = (_turned(name, part, plan.factor, _spacing_in_plane(scan, plan)) for part in thin)
    slices, held_out_slices = (
        TrainingVolume(name, np.ascontiguousarray(acquired[p]), (2,), 1.0) for p in (learnt, held_out)
    )
    return TargetScan(
        name,
        *about,
        volumes,
        # What is learnt from is like the learnt part alone, or what is held out would have a say in it; what is
        # validated with is like the whole scan.
        _places(volumes, _measure_places(np.moveaxis(slices.voxels, 2, 0))[0], *about),
        held_out_volumes,
        _places(held_out_volumes, _measure_places(np.moveaxis(acquired, 2, 0))[0], *about),
        slices,
        held_out_slices,
        (thin[0].size + thin[1].size) ** 0.5,
    )


def _thin_of(part: tuple[slice, slice], scan: Volume, plan: Plan, model: Model) -> np.ndarray:
    """Returns thin slices [x, y, thin] of a part of the field of view, computed from nothing but that part."""
    voxels = np.moveaxis(np.moveaxis(scan.voxels, plan.axis, 2)[part], 2, plan.axis)
    shape = list(voxels.shape)
    shape[plan.axis] = plan.n_thin
    own = replace(plan, shape_thick=voxels.shape, shape_thin=tuple(shape))
    return np.moveaxis(upsample(replace(scan, voxels=voxels), own, model).volume.voxels, plan.axis, 2)


def _spacing_in_plane(scan: Volume, plan: Plan) -> tuple[float, float]:
    first, second = (mm for axis, mm in enumerate(scan.spacing_mm) if axis != plan.axis)
    return first, second


def _middle(shape: tuple[int, ...], voxels: int) -> tuple[slice, slice, slice]:
    """Returns the middle of a scan that is too large, at least `LEAST_VOXELS` of it."""
    voxels = max(voxels, LEAST_VOXELS)
    side = max(160, int((voxels / shape[2]) ** 0.5))
    kept = [min(n, side) for n in shape[:2]]
    kept.append(min(shape[2], max(64, voxels // (kept[0] * kept[1]))))
    first, second, third = (slice((n - k) // 2, (n - k) // 2 + k) for n, k in zip(shape, kept, strict=True))
    return first, second, third


def _split(
    acquired: np.ndarray, crop: tuple[slice, slice] = (slice(None), slice(None))
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Returns parts of the field of view of slices [x, y, slices]: what is learnt from, and what is held out.

    Held out is that end of the longer side which shows its share in fewer pixels, so that it never is air alone. What
    lies outside ``crop`` is in neither.

    Raises:
        InputRefused: what is bright is so narrow that one of the two would be less than `NARROWEST` pixels wide.
    """
    inside = acquired[crop]
    side = int(np.argmax(inside.shape[:2]))
    n, begin = inside.shape[side], crop[side].start or 0
    shown = (np.moveaxis(inside, side, 0) > BLANK).reshape(n, -1).sum(axis=1)
    from_ends = [np.cumsum(shown), np.cumsum(shown[::-1])]
    counts = [int(np.searchsorted(seen, HELD_OUT * shown.sum())) + 1 for seen in from_ends]
    last = int(np.argmin(counts))
    most = int(np.searchsorted(from_ends[last], (1 - LEAST_LEARNT) * shown.sum(), side="right"))
    count = max(counts[last], min(LEAST_HELD_OUT, n // 3, most))
    if min(count, n - count) < NARROWEST:
        raise InputRefused(
            got=f"bright voxels so close together that {min(count, n - count)} of {n} pixels show enough of them",
            need=f"{NARROWEST} to learn from and to hold out",
            next="leave it out",
            code="too-small-to-learn-from",
        )
    ends = (slice(begin + count, begin + n), slice(begin, begin + count))
    if last:
        ends = (slice(begin, begin + n - count), slice(begin + n - count, begin + n))
    learnt, held_out = ((part, crop[1]) if side == 0 else (crop[0], part) for part in ends)
    return learnt, held_out


def _turned(
    name: str, thin: np.ndarray, factor: float, spacing_mm: tuple[float, float] = (1.0, 1.0)
) -> list[TrainingVolume]:
    """Returns the slices turned by every angle, cut to what lies inside; axes that have room may become thick.

    Where the pixels are not square, the coarser of their axes is learnt from as it is: the finer one, or one between
    the two, is another scale.
    """
    # It comes with the extra for training, and other recipes run without it.
    from scipy.ndimage import rotate

    square = max(spacing_mm) <= SQUARE * min(spacing_mm)
    wanted = (0, 1) if square else (int(np.argmax(spacing_mm)),)
    turned = []
    for angle in ANGLES if square else ANGLES[:1]:
        voxels = rotate(thin, angle, axes=(0, 1), reshape=False, order=3, mode="nearest") if angle else thin
        # The corners that a turned image fills by repeating its edges are no anatomy.
        voxels = np.ascontiguousarray(voxels[_inside(thin.shape[:2], angle)], np.float32)
        # The slices as they are stay in any case; of narrow ones hardly anything is left when they are turned.
        if not angle or min(voxels.shape[:2]) >= LEAST_SIDE:
            room = min(ROOM * factor, max(voxels.shape[axis] for axis in wanted))
            axes = tuple(axis for axis in wanted if voxels.shape[axis] >= room)
            turned.append(TrainingVolume(f"{name}, {angle:g} degrees", voxels, axes, 1.0))
    return turned


def _inside(shape: tuple[int, int], angle: float) -> tuple[slice, slice]:
    """Returns the largest part of an image's own proportions that stays inside when it is turned about its middle."""
    sine, cosine = abs(np.sin(np.radians(angle))), abs(np.cos(np.radians(angle)))
    height, width = shape
    share = min(height / (height * cosine + width * sine), width / (height * sine + width * cosine))
    kept = [int(n * share) for n in shape]
    rows, columns = (slice((n - k) // 2, (n - k) // 2 + k) for n, k in zip(shape, kept, strict=True))
    return rows, columns


def _measure_places(thick: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns how the places of a thick stack [n, h, w] look: [m, 2], and the index [m, 3] of their middles.

    The logarithms of the mean change from slice to slice over that from pixel to pixel, and of the latter. Places with
    a dark middle are left out.
    """
    between = np.abs(np.diff(thick, axis=0))
    within = np.abs(np.diff(thick, axis=1, append=thick[:, -1:])) + np.abs(
        np.diff(thick, axis=2, append=thick[:, :, -1:])
    )
    count = max(len(thick) - SLABS_SEEN + 1, 1)
    slabs = min(SLABS_SEEN, len(thick))
    across = _around(_cells(between))
    inside = _around(_cells(within))
    across = np.stack([across[i : i + slabs - 1].mean(axis=0) for i in range(count)])
    inside = np.stack([inside[i : i + slabs].mean(axis=0) for i in range(count)])
    sides = zip(across.shape[1:], thick.shape[1:], strict=True)
    rows, columns = (np.minimum(CELL * np.arange(n) + CELL // 2, side - 1) for n, side in sides)
    slices = np.arange(count) + slabs // 2
    seen = thick[np.ix_(slices, rows, columns)] > BLANK
    where = np.argwhere(seen)
    middle = np.stack([slices[where[:, 0]], rows[where[:, 1]], columns[where[:, 2]]], axis=1)
    # What is added keeps the logarithms finite where nothing changes.
    ratio = np.log(across[seen] / (inside[seen] + 1e-4) + 1e-3)
    return np.stack([ratio, np.log(inside[seen] + 1e-3)], axis=1), middle


def _cells(field: np.ndarray) -> np.ndarray:
    """Returns means over cells of CELL x CELL pixels, [n, h // CELL, w // CELL]; a shorter side is one cell."""
    missing = [(0, max(CELL - side, 0)) for side in field.shape[1:]]
    field = np.pad(field, [(0, 0), *missing], mode="edge")
    n, height, width = (field.shape[0], *(side // CELL for side in field.shape[1:]))
    inside = field[:, : height * CELL, : width * CELL]
    return inside.reshape(n, height, CELL, width, CELL).mean(axis=(2, 4))


def _around(cells: np.ndarray) -> np.ndarray:
    """Returns means over 3x3 cells; beyond the edges they repeat."""
    padded = np.pad(cells, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = np.stack([padded[:, i : i + cells.shape[1]] for i in range(3)]).mean(axis=0)
    return np.stack([rows[:, :, i : i + cells.shape[2]] for i in range(3)]).mean(axis=0)


def _places(
    volumes: Sequence[TrainingVolume],
    wanted: np.ndarray,
    factor: float,
    thickness_over_spacing: float,
    profile: Profile,
) -> PatchPlaces:
    """Returns all places of some volumes, with chances that make features as frequent as the ``wanted`` ones [m, 2]."""
    features, found = [], []
    for number, thin in enumerate(volumes):
        for along in thin.axes:
            block = np.moveaxis(thin.voxels, along, 0)
            count = max(int(len(block) / factor), 1)
            centres = (len(block) - factor * (count - 1) - 1) / 2 + factor * np.arange(count)
            acquisition = Acquisition(centres, len(block), thickness_over_spacing * factor, profile)
            seen, middle = _measure_places(acquisition.forward(block))
            features.append(seen)
            where = np.stack([np.round(centres[middle[:, 0]]).astype(int), middle[:, 1], middle[:, 2]], axis=1)
            found.append((np.full(len(where), number), np.full(len(where), along), where))
    own = np.concatenate(features)
    if not len(own) or not len(wanted):
        raise InputRefused(got="nothing but dark slices", need="a scan", next="leave it out", code="nothing-to-learn")
    # Classes of equal numbers: of equal widths most would be empty, and the ratio of two small counts says nothing.
    edges = [np.quantile(np.r_[wanted[:, i], own[:, i]], np.linspace(0, 1, BINS[i] + 1)[1:-1]) for i in range(2)]
    share_wanted, share_own = _shares(wanted, edges), _shares(own, edges)
    # Importance weights, bounded on both sides: few places would else have nearly all of the chance.
    chance = np.clip(share_wanted / np.maximum(share_own, 1e-9), RARELY, OFTEN)[_classes(own, edges)]
    volume, axis, middle = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return PatchPlaces(volume, axis, middle, chance / chance.sum())


def _classes(features: np.ndarray, edges: Sequence[np.ndarray]) -> np.ndarray:
    first, second = (np.searchsorted(edges[i], features[:, i]) for i in range(2))
    return first * BINS[1] + second


def _shares(features: np.ndarray, edges: Sequence[np.ndarray]) -> np.ndarray:
    return np.bincount(_classes(features, edges), minlength=BINS[0] * BINS[1]) / len(features)


def self_supervised_batch_at(
    step: int, seed: int, targets: Sequence[TargetScan], patches: int, size: int, slabs: int, context: int
) -> Batch:
    """Returns a batch: mostly of a direction within the slices, sometimes across them at another scale."""
    # A stream of its own: the batch draws from [seed, step], whose first number must not have chosen its kind.
    across = np.random.default_rng([seed, step, 1]).random() < THICKER
    batch_at = thicker_slices_batch_at if across else in_plane_batch_at
    return batch_at(step, seed, targets, patches, size, slabs, context)


def in_plane_batch_at(
    step: int,
    seed: int,
    targets: Sequence[TargetScan],
    patches: int,
    size: int,
    slabs: int,
    context: int,
    held_out: bool = False,
) -> Batch:
    """Returns patches of one scan, thick along a direction within its slices, in an acquisition near its own.

    Where there is less room than a patch has pixels there are more and smaller ones.

    With ``held_out`` of the part held out.
    """
    rng = np.random.default_rng([seed, step])
    target = _one_of(rng, targets)
    about = (target.factor, target.thickness_over_spacing, target.profile)
    geometry = geometry_near(rng, *about, slabs, context)
    volumes, places = (target.held_out, target.held_out_places) if held_out else (target.volumes, target.places)
    patches, size = _fitting(patches, size, min(volumes[0].voxels.shape))
    draws = [_draw(rng, volumes, places, geometry, size) for _ in range(patches)]
    return render(volumes, geometry, draws, size, context)


def thicker_slices_batch_at(
    step: int,
    seed: int,
    targets: Sequence[TargetScan],
    patches: int,
    size: int,
    slabs: int,
    context: int,
    held_out: bool = False,
) -> Batch:
    """Returns patches of one scan's acquired slices, made twice as thick; with ``held_out`` of the part held out."""
    rng = np.random.default_rng([seed, step])
    target = _one_of(rng, targets)
    phase = float(rng.choice([0.0, 0.5, 1.0]))
    geometry = geometry_of_block(2.0, target.thickness_over_spacing, target.profile, phase, slabs, context)
    slices = target.held_out_acquired if held_out else target.acquired
    patches, size = _fitting(patches, size, min(slices.voxels.shape[:2]))
    draws = [draw_patch(rng, [slices], THICK_SCAN_RANGES, geometry, size) for _ in range(patches)]
    return render([slices], geometry, draws, size, context)


def _fitting(patches: int, size: int, room: int) -> tuple[int, int]:
    """Returns more and smaller patches where there is less room: larger ones would show its end many times over."""
    # Even, as the network halves it.
    side = min(size, room // 2 * 2)
    return round(patches * (size / side) ** 2), side


def _one_of(rng: np.random.Generator, targets: Sequence[TargetScan]) -> TargetScan:
    weights = np.array([target.weight for target in targets])
    return targets[int(rng.choice(len(targets), p=weights / weights.sum()))]


def _draw(
    rng: np.random.Generator, volumes: Sequence[TrainingVolume], places: PatchPlaces, geometry: Geometry, size: int
) -> Draw:
    """Draws a place by its chance, moved a little, and how the patch around it is turned over and recoloured."""
    chosen = int(rng.choice(len(places.chance), p=places.chance))
    volume, axis = int(places.volume[chosen]), int(places.axis[chosen])
    # Everything but the place is drawn as for any volume.
    drawn = draw_patch(rng, [replace(volumes[volume], axes=(axis,))], THICK_SCAN_RANGES, geometry, size)
    shape = np.moveaxis(volumes[volume].voxels, axis, 0).shape
    # Anywhere in its cell, for all of which the measures stand.
    middle = places.middle[chosen] + rng.integers(-CELL // 2, CELL // 2 + 1, 3)
    low, high = int(geometry.thin_positions[0][0]), int(geometry.thin_positions[-1][-1])
    # A place is known in the volume as it lies, but `cut` counts in the one that is turned over.
    depth = shape[0] - 1 - int(middle[0]) if drawn.flips[0] else int(middle[0])
    lines, columns = (middle[2], middle[1]) if drawn.transpose else (middle[1], middle[2])
    height, width = (shape[2], shape[1]) if drawn.transpose else (shape[1], shape[2])
    corner = (
        int(np.clip(depth - (high - low) // 2, 0, max(shape[0] - (high - low + 1), 0))) - low,
        int(np.clip(lines - size // 2, 0, max(height - size, 0))),
        int(np.clip(columns - size // 2, 0, max(width - size, 0))),
    )
    return replace(drawn, volume=volume, corner=corner)
