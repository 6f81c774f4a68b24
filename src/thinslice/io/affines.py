"""Checks of where the voxels of a file are: affines [4, 4], voxel index -> patient millimetres (RAS)."""

import math
import re

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
    return [f"the affine is sheared by {degrees:.1f} degrees (as with a tilted gantry) and kept as it is"]


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
