"""Checks of where the voxels of a file are: affines [4, 4], voxel index -> patient millimetres (RAS)."""

import math
import re
from collections.abc import Sequence

import numpy as np

from thinslice.io.refusals import by, refused, unwritable

SHEAR_COSINE = 1e-3
"""Axes whose cosine is larger are said to be sheared: 0.06 degrees, which a header's rounding does not reach."""

NEAREST_MM = 1e-6
"""No scanner's voxels lie closer: such lengths are damaged headers."""

FARTHEST_MM = 1e7
"""No scanner's voxels lie farther from the origin, ten kilometres: such lengths are damaged headers."""

OF_THE_GRID = re.compile(r"(Segment\d+_Extent|Segmentation_ReferenceImageExtentOffset)\b")
"""Keys of 3D Slicer in headers that count voxels: they do not hold on another grid."""


def check_affine(affine: np.ndarray, way_out: str) -> None:
    """Refuses an affine [4, 4], in mm, that is not finite or has no inverse.

    Raises:
        InputRefused: it is so; the last words are `way_out`.
    """
    with np.errstate(all="ignore"):
        spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not (np.isfinite(spacing_mm) & (spacing_mm > 0)).all():
        raise refused(
            f"an affine with columns of {by(spacing_mm)} mm",
            "three positive lengths",
            way_out,
            code="bad-affine",
        )
    # Of unit columns, so that the size of the voxels does not matter.
    if abs(np.linalg.det(affine[:3, :3] / spacing_mm)) < 1e-3:
        raise refused("an affine whose axes lie in one plane", "three directions", way_out, code="bad-affine")


def check_lengths(affine: np.ndarray, way_out: str) -> None:
    """Refuses an affine [4, 4], in mm, of a size that no scanner has; for formats whose numbers may be any.

    Raises:
        InputRefused: it is so; the last words are `way_out`.
    """
    lengths = np.abs(affine[:3])
    # Not "larger than": what is not a number is refused too.
    if not lengths.max() <= FARTHEST_MM or not lengths[:, :3].max(axis=0).min() >= NEAREST_MM:
        got = f"an affine with columns of {by(lengths[:, :3].max(axis=0))} mm and an origin of {by(affine[:3, 3])} mm"
        raise refused(got, "millimetres that a scanner may have", way_out, code="bad-affine")


def check_affine_to_write(affine: np.ndarray) -> None:
    """Refuses what no file can hold.

    Raises:
        OutputRefused: not a finite [4, 4] affine with an inverse.
    """
    is_whole = affine.shape == (4, 4) and np.isfinite(affine).all()
    if not is_whole or abs(np.linalg.det(directions(affine))) < 1e-6:
        raise unwritable(
            "an affine without an inverse",
            "a [4, 4] one",
            "this is a fault of the caller",
            code="bad-affine",
        )


def check_shape_to_write(shape: tuple[int, ...]) -> None:
    """Refuses what is no scan.

    Raises:
        OutputRefused: neither three nor four axes, or no voxel.
    """
    if len(shape) not in (3, 4) or 0 in shape:
        raise unwritable(
            f"voxels of shape {shape}", "[x, y, z] or [x, y, z, t]", "this is a fault of the caller", code="not-3d"
        )


def shear(affine: np.ndarray) -> float:
    """Returns the largest cosine between two axes of an affine [4, 4]; 0 where all are at right angles."""
    turned = directions(affine)
    return float(np.abs(turned.T @ turned - np.eye(3)).max())


def shear_notes(affine: np.ndarray) -> list[str]:
    """Returns what to say about a sheared affine [4, 4]; nothing where it is none."""
    cosine = shear(affine)
    if cosine <= SHEAR_COSINE:
        return []
    degrees = math.degrees(math.asin(min(cosine, 1.0)))
    return [f"the affine is sheared by {degrees:.1f} degrees (as with a tilted gantry)"]


def directions(form: np.ndarray) -> np.ndarray:
    """Returns unit vectors [3, 3] along the array axes of an affine [4, 4], as columns."""
    lengths = np.linalg.norm(form[:3, :3], axis=0).clip(1e-12)
    return np.asarray(form[:3, :3] / lengths)


def slice_axis(affine: np.ndarray) -> int:
    """Returns the axis along which slices are taken to follow each other, as the plan takes it.

    It is that with the largest spacing, of equal ones the last.

    Example:
        >>> slice_axis(np.diag([1.0, 4.0, 1.0, 1.0])), slice_axis(np.eye(4))
        (1, 2)
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    # Headers round: spacings that differ by a ten-thousandth are meant to be equal.
    return int(np.flatnonzero(spacing >= spacing.max() * (1 - 1e-4))[-1])


def outer_corners_mm(affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Returns the corners [8, 3] of a field of view in mm, half a voxel beyond the outermost centres.

    Example:
        >>> outer_corners_mm(np.eye(4), (2, 2, 2)).min(axis=0)
        array([-0.5, -0.5, -0.5])
    """
    ends = [(-0.5, n - 0.5) for n in shape]
    index = np.array([(x, y, z, 1.0) for x in ends[0] for y in ends[1] for z in ends[2]])
    corners: np.ndarray = (index @ np.asarray(affine).T)[:, :3]
    return corners


def gap_mm(one: np.ndarray, one_shape: Sequence[int], other: np.ndarray, other_shape: Sequence[int]) -> float:
    """Returns how far two fields of view are apart; less than nothing where they overlap.

    Two boxes are apart if they are so along an axis of one of them, or along a line at right angles to an axis of each
    (Gottschalk et al., SIGGRAPH 1996).

    Args:
        one, other: their affines [4, 4], voxel index -> patient millimetres.
        one_shape, other_shape: spatial shapes.

    Example:
        >>> higher = np.eye(4)
        >>> higher[2, 3] = 10.0
        >>> gap_mm(np.eye(4), (8, 8, 8), higher, (8, 8, 8))
        2.0
    """
    mine, theirs = directions(one), directions(other)
    crossed = np.cross(mine.T[:, None], theirs.T[None]).reshape(9, 3)
    lengths = np.linalg.norm(crossed, axis=1)
    # Of parallel axes there is no such line.
    lines = np.concatenate([mine.T, theirs.T, crossed[lengths > 1e-3] / lengths[lengths > 1e-3, None]])
    first, second = (lines @ outer_corners_mm(*box).T for box in ((one, one_shape), (other, other_shape)))
    gaps_mm = np.maximum(first.min(axis=1) - second.max(axis=1), second.min(axis=1) - first.max(axis=1))
    return float(gaps_mm.max())
