"""Chooses what of a scan goes onto a page: all of it where that is small, else as much as a budget of bytes allows.

In this order, and only as far as needed: cropped to what is not background, 16 -> 8 bits over the grey window,
averaged over whole steps of voxels. Where the remaining voxels are in the patient stays exact. The page tells of it.
"""

import logging
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from thinslice.volume import Volume, patient_axes, through_plane_axis

logger = logging.getLogger(__name__)

BUDGET_BYTES = 48 * 2**20
"""Bytes of voxels on one page, before compression: what a browser on a laptop or a phone still opens."""

ALIGNED_WITHIN_VOXELS = 0.25
"""Two scans have the same axes if no voxel is farther than this from where equal axes would put it."""

BRIGHT_SHARE = 0.1
"""Share of the window from its lower end above which a voxel is no background."""

BACKGROUND_SHARE = 5e-4
"""A slice in which a smaller share of the voxels is bright may be cropped: a few bright specks are noise."""

LOST_SHARE = 1e-3
"""Nothing is cropped where the crop would lose more than this share of all bright voxels."""

MARGIN_MM = 5.0
"""Millimetres that are left around what is bright: skin and air at the edge show where the body ends."""

BEYOND_WINDOW = 4
"""Values that are no whole numbers are kept up to so many windows beyond the window; few outliers lie farther away."""

IN_WINDOW = 2**12
"""Steps within the window into which such values are rounded: sixteen for each grey that a screen shows."""

BITS_8 = 2**8 - 1
"""The highest number of 8 bits."""

TYPE_CODES = {"uint8": 2, "int16": 4, "uint16": 512}
"""NIfTI's codes of the types that are stored (nifti1.h, ``datatype``)."""

HEADER_BYTES = 352
"""Bytes of a NIfTI-1 header and the four after it that say that no extension follows."""


@dataclass(frozen=True)
class Excerpt:
    """Voxels as a page holds them: their value in the scan's own units is ``stored * slope + inter``.

    Attributes:
        stored: [x, y, z], uint8, int16 or uint16.
        affine: [4, 4], index of a stored voxel -> patient millimetres.
        slope, inter: see above.
        cut: whether values beyond these were cut off, though nothing else says so.
    """

    stored: np.ndarray
    affine: np.ndarray
    slope: float = 1.0
    inter: float = 0.0
    cut: bool = False

    @property
    def value_range(self) -> tuple[float, float]:
        """The lowest and the highest value, in the scan's own units."""
        low, high = (float(end) * self.slope + self.inter for end in (self.stored.min(), self.stored.max()))
        return low, high

    def to_nifti(self, window: tuple[float, float]) -> bytes:
        """Returns a NIfTI-1 file; the window becomes its ``cal_min`` and ``cal_max``."""
        # Written here, at the offsets of nifti1.h, so that a page has the same bytes whatever nibabel is installed.
        header = bytearray(HEADER_BYTES)
        code, bits = TYPE_CODES[self.stored.dtype.name], 8 * self.stored.dtype.itemsize
        spacing = np.linalg.norm(self.affine[:3, :3], axis=0)
        struct.pack_into("<i", header, 0, 348)
        struct.pack_into("<8h", header, 40, 3, *self.stored.shape, 1, 1, 1, 1)
        struct.pack_into("<2h", header, 70, code, bits)
        struct.pack_into("<8f", header, 76, 1, *spacing, 0, 0, 0, 0)
        struct.pack_into("<3f", header, 108, HEADER_BYTES, self.slope, self.inter)
        header[123] = 2  # millimetres
        struct.pack_into("<2f", header, 124, window[1], window[0])
        struct.pack_into("<2h", header, 252, 0, 1)
        struct.pack_into("<12f", header, 280, *self.affine[:3].ravel())
        header[344:348] = b"n+1\0"
        little = self.stored.astype(self.stored.dtype.newbyteorder("<"), copy=False)
        return bytes(header) + little.tobytes(order="F")


@dataclass(frozen=True)
class _Selection:
    """What is taken of one volume: which of its voxels, averaged over how many along each axis, in how many bytes."""

    volume: Volume
    box: tuple[slice, slice, slice]
    steps: tuple[int, int, int]
    itemsize: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of what will be stored."""
        x, y, z = (-(-(part.stop - part.start) // step) for part, step in zip(self.box, self.steps, strict=True))
        return x, y, z

    @property
    def bytes(self) -> int:
        """The bytes of what will be stored."""
        return int(np.prod(self.shape)) * self.itemsize

    @property
    def affine(self) -> np.ndarray:
        """[4, 4], index of a stored voxel, which is the middle of those it stands for, -> patient millimetres."""
        start = np.array([part.start for part in self.box]) + (np.array(self.steps) - 1) / 2
        moved = np.array(self.volume.affine, np.float64)
        moved[:3, 3] += moved[:3, :3] @ start
        moved[:3, :3] *= self.steps
        return moved


def make_excerpts(
    scans: Sequence[tuple[str, Volume]],
    maps: Sequence[tuple[Volume, float]],
    window: tuple[float, float],
    budget_bytes: int = BUDGET_BYTES,
) -> tuple[list[Excerpt], list[Excerpt], list[str]]:
    """Prepares scans of one patient space, and maps over them, for a page.

    Args:
        scans: name and volume, the acquired one first; of a 4-D series the first volume. Those whose axes run
            otherwise than those of the first are resampled along them.
        maps: volumes of numbers from 0 to the number with each; in 8 bits always.
        window: values shown black and white, in the scan's own units.
        budget_bytes: of voxels, in all.

    Returns:
        The scans, the maps, and what was done for the page only, as parts of a sentence.
    """
    names, volumes = [name for name, _ in scans], [volume for _, volume in scans]
    first = _first(volumes[0])
    before = ["of a 4-D series the first volume is shown"] if any(v.voxels.ndim == 4 for v in volumes) else []
    along = [align_axes(_first(volume), first) for volume in [*volumes, *(volume for volume, _ in maps)]]
    if any(turned for _, turned in along[: len(scans)]):
        before.append("a scan whose axes run otherwise was resampled (linear) along those of the acquired one")
    selections = [_select_all(volume, 1 if index >= len(scans) else 2) for index, (volume, _) in enumerate(along)]
    selections, done = _fit_into(selections, names, window, budget_bytes)
    pictures = [_encode(selection, window) for selection in selections[: len(scans)]]
    if any(one.slope != 1 and one.stored.dtype == np.uint16 for one in pictures):
        done.append(f"values that are no whole numbers were rounded to steps of {_largest_step(pictures):.2g}")
    if any(one.cut for one in pictures):
        done.append(f"values more than {BEYOND_WINDOW} windows beyond the window were cut off")
    tops = [top for _, top in maps]
    shown = [_scale_into(selection, (0.0, top)) for selection, top in zip(selections[len(scans) :], tops, strict=True)]
    return pictures, shown, before + done


def align_axes(volume: Volume, like: Volume) -> tuple[Volume, bool]:
    """Returns the volume, resampled (linear) if its axes are not parallel to those of another, and whether it was.

    The resampled one covers what both cover, at the volume's own spacing; beyond the volume it has its lowest value.
    """
    # niivue slices all scans along the axes of one world: of two that are turned against each other only one can lie
    # along them, which is the acquired one.
    directions = like.affine[:3, :3] / np.array(like.spacing_mm)
    axes = np.linalg.solve(directions, volume.affine[:3, :3])
    nearest = patient_axes(_with_origin(axes))
    # What is left of each axis beside its nearest one, over the whole length of the scan: a small angle matters only
    # where it moves the far end by a good part of a voxel.
    off = np.abs(axes)
    off[list(nearest), range(3)] = 0
    if (off @ (np.array(volume.shape) - 1)).max() <= ALIGNED_WITHIN_VOXELS * min(volume.spacing_mm):
        return volume, False
    spacing = np.array([volume.spacing_mm[nearest.index(axis)] for axis in range(3)])
    low, high = _shared_box(volume, like, directions)
    shape = np.maximum(np.ceil((high - low) / spacing - 1e-6).astype(int), 1)
    affine = _with_origin(directions * spacing)
    affine[:3, 3] = directions @ (low + spacing / 2)
    voxels = _resample(volume, affine, (int(shape[0]), int(shape[1]), int(shape[2])))
    return replace(volume, voxels=voxels, affine=affine), True


def box_mm(affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Returns the outer corners of a grid's voxels, [8, 3], in the millimetres of its affine.

    Example:
        >>> box_mm(np.eye(4), (2, 3, 4))[[0, -1]]
        array([[-0.5, -0.5, -0.5],
               [ 1.5,  2.5,  3.5]])
    """
    ends = np.array([[-0.5, n - 0.5] for n in shape[:3]])
    indices = [[*(ends[axis, end] for axis, end in enumerate(corner)), 1.0] for corner in np.ndindex(2, 2, 2)]
    return np.asarray(np.array(indices) @ affine.T)[:, :3]


def _first(volume: Volume) -> Volume:
    """Returns the first volume of a 4-D series, and a 3-D scan as it is."""
    return replace(volume, voxels=volume.voxels[..., 0]) if volume.voxels.ndim == 4 else volume


def _with_origin(directions: np.ndarray) -> np.ndarray:
    """Returns an affine of these columns, the first voxel at zero."""
    affine = np.eye(4)
    affine[:3, :3] = directions
    return affine


def _shared_box(volume: Volume, like: Volume, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lowest and highest millimetres along the directions that both scans reach."""
    boxes = [np.linalg.solve(directions, box_mm(one.affine, one.shape).T) for one in (volume, like)]
    low = np.max([box.min(1) for box in boxes], axis=0)
    return low, np.maximum(np.min([box.max(1) for box in boxes], axis=0), low)


def _resample(volume: Volume, affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Returns the volume on another grid, [x, y, z] float32, linear between its voxels."""
    to_index = np.linalg.solve(volume.affine, affine)
    outside = float(np.nan_to_num(volume.voxels.min()))
    answer = np.empty(shape, np.float32)
    for z in range(shape[2]):
        grid = np.stack([*np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")], axis=0)
        index = np.tensordot(to_index[:3, :2], grid, axes=1) + (to_index[:3, 2] * z + to_index[:3, 3])[:, None, None]
        answer[..., z] = _interpolate(volume.voxels, index, outside)
    return answer


def _interpolate(voxels: np.ndarray, index: np.ndarray, outside: float) -> np.ndarray:
    """Returns values at fractional indices [3, ...], linear; beyond half a voxel from the outermost, ``outside``."""
    size = np.array(voxels.shape).reshape(3, 1, 1)
    base = np.floor(index).astype(int)
    part = index - base
    total = np.zeros(index.shape[1:])
    for corner in np.ndindex(2, 2, 2):
        side = np.reshape(corner, (3, 1, 1))
        x, y, z = np.clip(base + side, 0, size - 1)
        total += np.prod(np.where(side, part, 1 - part), axis=0) * np.nan_to_num(voxels[x, y, z])
    inside = ((index >= -0.5) & (index <= size - 0.5)).all(axis=0)
    return np.where(inside, total, outside)


def _select_all(volume: Volume, itemsize: int) -> _Selection:
    """Returns all voxels of a volume, each for itself, in so many bytes; bytes stay bytes."""
    x, y, z = (slice(0, n) for n in volume.shape)
    return _Selection(volume, (x, y, z), (1, 1, 1), 1 if volume.voxels.dtype == np.uint8 else itemsize)


def _fit_into(
    selections: list[_Selection], names: Sequence[str], window: tuple[float, float], budget_bytes: int
) -> tuple[list[_Selection], list[str]]:
    """Returns what fits into the budget, and what had to be done for that, in words."""
    done = []
    if _bytes(selections) > budget_bytes:
        box = _find_foreground(selections[0].volume, window)
        if box is not None:
            selections = [_crop(selection, box) for selection in selections]
            done.append("cropped to what is not background")
    if _bytes(selections) > budget_bytes and any(selection.itemsize > 1 for selection in selections):
        selections = [replace(selection, itemsize=1) for selection in selections]
        low, high = _over_8_bits(window)
        done.append(f"shown in 8 bits over the values {low:.5g} to {high:.5g}")
    # Cropping and 8 bits cost a reader little. Averaging does, so it comes last, and one step at a time.
    through = selections[0].volume.affine[:3, through_plane_axis(selections[0].volume)]
    while _bytes(selections) > budget_bytes and max(max(selection.shape) for selection in selections) > 1:
        selections = _make_coarser(selections, through)
    logger.debug("a page of %d MB: %s", _bytes(selections) >> 20, "; ".join(done) or "all of it fits")
    done += _describe_averages(selections, names)
    return selections, done


def _over_8_bits(window: tuple[float, float]) -> tuple[float, float]:
    """Returns what 8 bits are spent on: the window, and as far above it, where bone is; a quarter below."""
    width = window[1] - window[0]
    return window[0] - width / 4, window[1] + width


def _bytes(selections: Sequence[_Selection]) -> int:
    """Returns the bytes that all of them take together."""
    return sum(selection.bytes for selection in selections)


def _describe_averages(selections: Sequence[_Selection], names: Sequence[str]) -> list[str]:
    """Returns in words over how many voxels the scans that have a name are averaged."""
    found = [
        f"{' x '.join(map(str, selection.steps))} voxels ({name})"
        for name, selection in zip(names, selections, strict=False)
        if selection.steps != (1, 1, 1)
    ]
    return [f"averaged over {', '.join(found)}"] if found else []


def _find_foreground(volume: Volume, window: tuple[float, float]) -> np.ndarray | None:
    """Returns the corners around all that is bright, [8, 3] millimetres; None where cropping to them is not safe."""
    bright = volume.voxels > window[0] + BRIGHT_SHARE * (window[1] - window[0])
    ends = []
    for axis, spacing in enumerate(volume.spacing_mm):
        share = bright.mean(axis=tuple(other for other in range(3) if other != axis))
        kept = np.flatnonzero(share > BACKGROUND_SHARE)
        if not len(kept):
            return None
        # Only ends are cut off: a dark slice between bright ones stays.
        margin = int(np.ceil(MARGIN_MM / spacing))
        ends.append((max(int(kept[0]) - margin, 0), min(int(kept[-1]) + 1 + margin, len(share))))
    # Specks of which each slice has too few to count can be many together: then nothing is cropped.
    inside = bright[tuple(slice(*pair) for pair in ends)]
    if np.count_nonzero(inside) < (1 - LOST_SHARE) * np.count_nonzero(bright):
        return None
    if inside.shape == bright.shape:
        return None
    moved = np.array(volume.affine, np.float64)
    moved[:3, 3] += moved[:3, :3] @ [pair[0] for pair in ends]
    return box_mm(moved, inside.shape)


def _crop(selection: _Selection, box: np.ndarray) -> _Selection:
    """Returns only the voxels that reach into a box [8, 3] of millimetres; all where none does."""
    index = np.linalg.solve(selection.volume.affine, np.c_[box, np.ones(8)].T)[:3]
    # Corners are edges of voxels, at halves; a little is added so that rounding takes no voxel that is only touched.
    low = np.floor(index.min(1) + 0.5 + 1e-6).astype(int)
    high = np.ceil(index.max(1) + 0.5 - 1e-6).astype(int)
    parts = [
        slice(max(a, 0), min(b, n)) for a, b, n in zip(low.tolist(), high.tolist(), selection.volume.shape, strict=True)
    ]
    x, y, z = parts
    return selection if any(part.start >= part.stop for part in parts) else replace(selection, box=(x, y, z))


def _make_coarser(selections: Sequence[_Selection], through: np.ndarray) -> list[_Selection]:
    """Averages the largest volume over one voxel more along its finest axis, and leaves no volume finer along it.

    A scan that stayed finer than another would look sharper for no reason of its own. Across the acquired slices, which
    is the direction ``through`` and what the page is there to show, twice as fine counts as equal.
    """
    largest = max(selections, key=lambda selection: selection.bytes)
    pairs = zip(largest.volume.spacing_mm, largest.steps, largest.shape, strict=True)
    # An axis of one stored voxel cannot get coarser: it is taken for infinitely coarse already.
    spacing = np.array([mm * step if n > 1 else np.inf for mm, step, n in pairs])
    directions = largest.volume.affine[:3, :3] / np.array(largest.volume.spacing_mm)
    spacing[int(np.argmax(np.abs(through @ directions)))] *= 2 - 1e-3
    axis = int(
        np.argmin(np.round(spacing, 4))
    )  # rounded, so that equal spacings are equal in every computation of them
    direction, mm = largest.volume.affine[:3, axis], largest.volume.spacing_mm[axis]
    least_mm = mm * (largest.steps[axis] + 1)
    return [_limit_spacing(selection, direction, least_mm) for selection in selections]


def _limit_spacing(selection: _Selection, direction: np.ndarray, least_mm: float) -> _Selection:
    """Averages over as many voxels along a direction as make it no finer than that."""
    spacing = np.array(selection.volume.spacing_mm)
    axis = int(np.argmax(np.abs(direction @ selection.volume.affine[:3, :3]) / spacing))
    needed = int(np.ceil(least_mm / spacing[axis] - 1e-3))
    most = selection.box[axis].stop - selection.box[axis].start
    steps = [max(step, min(needed, most)) if i == axis else step for i, step in enumerate(selection.steps)]
    return replace(selection, steps=(steps[0], steps[1], steps[2]))


def _largest_step(pictures: Sequence[Excerpt]) -> float:
    """Returns the coarsest rounding among the pictures that are stored in 16 bits."""
    return max(one.slope for one in pictures if one.stored.dtype == np.uint16)


def _encode(selection: _Selection, window: tuple[float, float]) -> Excerpt:
    """Returns a scan as the page stores it: whole numbers of at most 16 bits as they are, others over a range."""
    voxels = selection.volume.voxels[selection.box]
    if selection.itemsize == 1 and voxels.dtype != np.uint8:
        return _scale_into(selection, _over_8_bits(window))
    if selection.steps != (1, 1, 1):
        limits = (0.0, float(BITS_8)) if voxels.dtype == np.uint8 else _over_8_bits(window)
        return _scale_into(selection, limits)
    if voxels.dtype.name in TYPE_CODES:
        return Excerpt(voxels, selection.affine)
    low, high, whole = _find_range(voxels)
    if whole and low >= -(2**15) and high < 2**15:
        return Excerpt(voxels.astype(np.int16), selection.affine)
    # Fractions: 16 bits over the values, as far as these are near the window, which gets the same fine steps whatever
    # single voxels lie far beyond it.
    width = window[1] - window[0]
    lowest, highest = low, high
    low, high = max(low, window[0] - BEYOND_WINDOW * width), min(high, window[1] + BEYOND_WINDOW * width)
    top = max(int(np.ceil((high - low) / width * IN_WINDOW)), BITS_8 + 1)
    return replace(_scale_into(selection, (low, high), top), cut=(lowest, highest) != (low, high))


def _find_range(voxels: np.ndarray) -> tuple[float, float, bool]:
    """Returns the lowest and highest finite value, and whether all are finite whole numbers; slice by slice."""
    low, high, whole = np.inf, -np.inf, True
    for z in range(voxels.shape[2]):
        part = voxels[..., z]
        finite = part if part.dtype.kind in "biu" else part[np.isfinite(part)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
        whole &= part.dtype.kind in "biu" or (finite.size == part.size and bool((finite == np.rint(finite)).all()))
    return (low, high, whole) if low <= high else (0.0, 0.0, False)


def _scale_into(selection: _Selection, limits: tuple[float, float], top: int = BITS_8) -> Excerpt:
    """Averages over the steps, in whole numbers 0 .. ``top`` between the limits; what is no number is the lower one.

    Where the steps do not divide the voxels, the last ones are repeated.
    """
    low, high = limits
    slope = (high - low) / top if high > low else 1.0
    voxels = selection.volume.voxels[selection.box]
    stored = np.empty(selection.shape, np.uint8 if top == BITS_8 else np.uint16)
    for z in range(selection.shape[2]):
        thick = np.minimum(np.arange(z * selection.steps[2], (z + 1) * selection.steps[2]), voxels.shape[2] - 1)
        part = voxels[..., thick].astype(np.float64)
        finite = np.nan_to_num(part, nan=low, posinf=high, neginf=low)
        mean = _average(np.clip(finite, low, high).mean(axis=2), selection.steps[:2])
        # Rounded: the cast to whole numbers would cut off, and darken everything by half a step.
        stored[..., z] = np.rint((mean - low) / slope)
    return Excerpt(stored, selection.affine, slope, low)


def _average(image: np.ndarray, steps: tuple[int, int]) -> np.ndarray:
    """Returns [x, y] averaged over steps; the last row and column are repeated where needed."""
    missing = [(0, -n % step) for n, step in zip(image.shape, steps, strict=True)]
    padded = np.pad(image, missing, mode="edge")
    x, y = (n // step for n, step in zip(padded.shape, steps, strict=True))
    return np.asarray(padded.reshape(x, steps[0], y, steps[1]).mean(axis=(1, 3)))
