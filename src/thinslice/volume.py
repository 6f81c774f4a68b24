"""The volume: voxels, where they are in the patient, what the header says of the acquisition; and grids in space."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from thinslice.errors import InputRefused

SAME_PLACE_MM = 1e-3
"""Two grids are one if no voxel of them lies farther apart: the rounding of float32 headers is well below."""

SAME_SPACING = 1e-4
"""Two spacings are one if they differ by no larger a share: the rounding of decimals in headers is below."""

SAME_VOXEL = 0.1
"""Voxels of two grids are the same ones if they lie no farther apart along any axis, in voxels: converters round
headers to six digits and straighten small shears, and half a voxel is needed before another voxel is meant."""

NOTED_FROM_VOXELS = 0.01
"""From this distance on, in voxels, a note says that two grids differ: below it nobody could see or measure it."""


MOST_CHANNELS = 4
"""No series has so few voxels along an axis within its slices; images with channels have three contrasts, or four."""

FEWEST_PIXELS = 16
"""Along both other axes so many voxels at least tell such an image from a tiny array."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Holds slices as the scanner acquired them, where they do not lie evenly one behind the other.

    The grid meant here is that of the `Volume` they belong to: upright, even, and large enough for all of them.

    Attributes:
        voxels: [x, y, z] or [x, y, z, t] as in the file, without slices that hold nothing.
        affine: [4, 4] of the file's grid: that of its slices in a row, tilted or not, at their mean distance.
        shape: spatial shape of the file's grid.
        places: [n] of the slices along the slice axis, in voxels of the grid, ascending.
        offsets_px: [n, 2], where the first pixel of each slice lies along the two other axes, in voxels of the grid.
    """

    voxels: np.ndarray
    affine: np.ndarray
    shape: tuple[int, int, int]
    places: tuple[float, ...]
    offsets_px: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Volume:
    """Holds one scan: its voxels, their place in the patient, and what is known of how it was acquired.

    Attributes:
        voxels: [x, y, z] or [x, y, z, t], in the scan's own units (rescale applied), any numeric dtype.
        affine: [4, 4] float64, voxel index -> patient millimetres (RAS).
        thickness_mm: slice thickness, None where the header is silent.
        notes: what the reader had to decide, in plain words, for the plan and the terminal.
        source: the file it came from.
        header: whatever the writer of the same format needs to keep dtype, units, codes and scale.
        slice_axis: the array axis across the acquired slices, that of ``thickness_mm``; None where the file does not
            say. Slices that are closer together than their pixels make another axis the coarsest one.
        padding: the value that the header states for voxels which the scanner did not see, on the scale of ``voxels``.
        other_spacing_mm: a spacing that another part of the header states, where it contradicts that of the affine.
        measured: the acquired slices, where the voxels are these on an upright, even grid; None where the voxels are
            the acquired slices themselves. See `thinslice.io.upright`.

    Example:
        >>> scan = Volume(np.zeros((256, 256, 20), np.int16), np.diag([0.9, 0.9, 5.0, 1.0]))
        >>> scan.shape, scan.spacing_mm
        ((256, 256, 20), (0.9, 0.9, 5.0))
    """

    voxels: np.ndarray
    affine: np.ndarray
    thickness_mm: float | None = None
    notes: tuple[str, ...] = ()
    source: Path | None = None
    header: Any = field(default=None, repr=False)
    slice_axis: int | None = None
    padding: float | None = None
    other_spacing_mm: tuple[float, float, float] | None = None
    measured: Measured | None = field(default=None, repr=False)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along each array axis."""
        # Lengths of the columns, not the diagonal: that holds for oblique and permuted stacks too.
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Spatial shape, without the volumes of a 4-D series."""
        x, y, z = self.voxels.shape[:3]
        return x, y, z


def fingerprint(volume: Volume) -> str:
    """Returns a hash of the voxels and where they are: the same scan has the same one under another name.

    Neither the order of the numbers in memory nor the other fields matter.
    """
    found = hashlib.sha256(repr((volume.voxels.shape, str(volume.voxels.dtype))).encode())
    # To a micrometre, as `SAME_PLACE_MM`: another format keeps the same affine in other digits.
    found.update((np.round(np.asarray(volume.affine, np.float64), 3) + 0.0).tobytes())  # -0.0 becomes 0.0
    # Part by part, since hashing needs the numbers in one order, and a copy of the whole would need its room again.
    for part in np.moveaxis(volume.voxels, -1, 0):
        found.update(np.ascontiguousarray(part).data)
    return found.hexdigest()


def patient_axes(affine: np.ndarray) -> tuple[int, int, int]:
    """Returns for each array axis the patient axis it is nearest to, each once.

    Args:
        affine: [4, 4], voxel index -> patient millimetres (RAS).

    Returns:
        0 left-right, 1 back-front, 2 foot-head.

    Example:
        >>> sagittal = np.array([[0, 0, 4.0, 0], [0.5, 0, 0, 0], [0, 0.5, 0, 0], [0, 0, 0, 1.0]])
        >>> patient_axes(sagittal)
        (1, 2, 0)
    """
    share = np.abs(affine[:3, :3]) / np.linalg.norm(affine[:3, :3], axis=0)
    nearest = [0, 0, 0]
    # The surest pair first: of an oblique stack two array axes may be nearest to the same patient axis.
    for _ in range(3):
        patient, array = (int(index) for index in np.unravel_index(int(np.argmax(share)), (3, 3)))
        nearest[array] = patient
        share[patient, :] = -1
        share[:, array] = -1
    return nearest[0], nearest[1], nearest[2]


def runs_backwards(affine: np.ndarray, axis: int) -> bool:
    """Says whether an array axis runs towards the patient's left, back or feet, whichever it is nearest to.

    Example:
        >>> runs_backwards(np.diag([1.0, 1.0, -4.0, 1.0]), 2)
        True
    """
    return bool(affine[patient_axes(affine)[axis], axis] < 0)


def refine_affine(affine: np.ndarray, finer: Sequence[float], first: Sequence[float]) -> np.ndarray:
    """Returns the affine of a finer grid in the same place.

    Args:
        affine: [4, 4] of the coarse grid, voxel index -> patient millimetres.
        finer: how many times finer the new grid is along each array axis.
        first: where the coarse grid's first voxel has its centre, in voxel indices of the new grid.

    Example:
        >>> refine_affine(np.diag([1.0, 1.0, 4.0, 1.0]), finer=[1, 1, 4], first=[0, 0, 1.5])[2]
        array([ 0. ,  0. ,  1. , -1.5])
    """
    thin = np.array(affine, dtype=np.float64)
    # Columns first: ``first`` is in voxels of the new grid.
    thin[:3, :3] /= finer
    thin[:3, 3] -= thin[:3, :3] @ first
    return thin


def through_plane_axis(volume: Volume) -> int:
    """Returns the array axis across the slices: the one the scan states, else the one with the largest spacing.

    Of equal spacings the last counts, as scanners store stacks.

    Example:
        >>> through_plane_axis(Volume(np.zeros((20, 256, 256)), np.diag([5.0, 0.9, 0.9, 1.0])))
        0
    """
    # Where pixels are coarser than slices are apart, the slices are still what was acquired one by one.
    if volume.slice_axis is not None:
        return volume.slice_axis
    spacing = np.asarray(volume.spacing_mm)
    # Nearly equal is equal: the rounding of a header must not decide which axis is thick.
    return int(np.flatnonzero(spacing >= spacing.max() * (1 - SAME_SPACING))[-1])


def check_times_last(volume: Volume, axis: int) -> None:
    """Refuses a series whose first axis is none of space: an image [channel, x, y, z] looks like one [x, y, z, t].

    Taken for such, its slices would be times, and rows or columns would be made thinner.

    Args:
        volume: of three axes, or four.
        axis: across the slices, see `through_plane_axis`.

    Raises:
        InputRefused: there is one voxel along an axis within the slices, or a few along the first where there are many
            along the others.

    Example:
        >>> check_times_last(Volume(np.zeros((40, 40, 10, 3)), np.diag([0.5, 0.5, 4.0, 1.0])), axis=2)
    """
    if volume.voxels.ndim != 4 or volume.voxels.shape[3] < 2:
        return
    shape = volume.shape
    is_flat = any(size == 1 for other, size in enumerate(shape) if other != axis)
    is_stack_of_channels = axis != 0 and shape[0] <= MOST_CHANNELS and min(shape[1:]) >= FEWEST_PIXELS
    if shape[0] == 1 or is_flat or is_stack_of_channels:
        raise InputRefused(
            got=f"{format_shape(shape)} voxels at {volume.voxels.shape[3]} times, as an image becomes whose channels "
            "come first",
            need="[x, y, z], or [x, y, z, t] with times last",
            next="give one channel: array[0], of a file python -c \"import nibabel as n; i = n.load('scan.nii.gz'); "
            "n.save(n.Nifti1Image(i.dataobj[0], i.affine), 'channel.nii.gz')\"",
            code="channels-first",
        )


def corners(shape: tuple[int, ...]) -> np.ndarray:
    """Returns the homogeneous voxel indices [8, 4] of the outermost voxels at the corners of a grid."""
    return np.asarray([[*corner, 1] for corner in np.ndindex(2, 2, 2)] * np.array([*(np.array(shape[:3]) - 1), 1]))


def grid_distance_mm(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """Returns the largest distance in mm between voxels of the same index of two grids.

    Args:
        one, other: their affines [4, 4], voxel index -> patient millimetres.
        shape: spatial shape of both.
    """
    # A difference of affine maps is affine: it is largest at a corner.
    return float(np.linalg.norm((corners(shape) @ (one - other).T)[:, :3], axis=1).max())


def grid_distance_voxels(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """Returns the largest distance along any axis, in voxels of ``other``, between voxels of the same index.

    Args:
        one, other: affines of two grids [4, 4], voxel index -> patient millimetres.
        shape: spatial shape of both.

    Example:
        >>> grid, moved = np.diag([1.0, 1.0, 4.0, 1.0]), np.diag([1.0, 1.0, 4.0, 1.0])
        >>> moved[2, 3] = 1.0
        >>> grid_distance_voxels(moved, grid, (8, 8, 8))
        0.25
    """
    apart = corners(shape) @ (np.linalg.inv(other) @ one - np.eye(4)).T
    return float(np.abs(apart[:, :3]).max())


def run_like(volume: Volume, affine: np.ndarray) -> Volume:
    """Returns the volume with its array axes in the order and direction of those of another grid; no voxel changes.

    A segmentation that was drawn on a DICOM series elsewhere has the same voxels, stored from another corner.

    Args:
        volume: [x, y, z] or [x, y, z, t].
        affine: of the other grid [4, 4], voxel index -> patient millimetres.

    Returns:
        A view of the voxels, and the affine that puts each of them where it was; the volume itself where its axes run
        so already.

    Example:
        >>> upside_down = np.diag([1.0, 1.0, -4.0, 1.0])
        >>> upside_down[2, 3] = 8.0  # the first slice is the uppermost
        >>> there = run_like(Volume(np.arange(3).reshape(1, 1, 3), upside_down), np.diag([1.0, 1.0, 4.0, 1.0]))
        >>> there.voxels.tolist(), there.affine[2].tolist()
        ([[[2, 1, 0]]], [0.0, 0.0, 4.0, 0.0])
    """
    turn = np.eye(4)
    turn[:3, :3] = np.linalg.inv(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)) @ volume.affine[:3, :3]
    nearest = patient_axes(turn)  # of each axis of the volume, the other grid's
    order = [nearest.index(axis) for axis in range(3)]
    is_flipped = [turn[axis, order[axis]] < 0 for axis in range(3)]
    if order == [0, 1, 2] and not any(is_flipped):
        return volume
    voxels = volume.voxels.transpose(*order, *range(3, volume.voxels.ndim))
    voxels = voxels[tuple(slice(None, None, -1 if flipped else 1) for flipped in is_flipped)]
    moved = np.array(volume.affine, np.float64)
    moved[:3, :3] = moved[:3, order]
    for axis in np.flatnonzero(is_flipped):
        moved[:3, 3] += moved[:3, axis] * (voxels.shape[axis] - 1)
        moved[:3, axis] *= -1
    slice_axis = None if volume.slice_axis is None else order.index(volume.slice_axis)
    return replace(volume, voxels=voxels, affine=moved, slice_axis=slice_axis)


def format_shape(shape: Sequence[int]) -> str:
    """Returns a shape as text: ``3 x 4 x 5``."""
    return " x ".join(str(n) for n in shape)
