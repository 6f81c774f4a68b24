"""Brings a thin image or segmentation onto the grid of a thick scan, as its slices would see it."""

import logging
from dataclasses import replace

import numpy as np

from thinslice.compute.labels import to_whole_numbers
from thinslice.errors import InputRefused, PlanRefused
from thinslice.physics.acquisition import Acquisition, apply_along_first_axis
from thinslice.physics.downscaling import downscaling_matrix
from thinslice.physics.projection import cut_into_bands
from thinslice.settings import Profile
from thinslice.volume import (
    NOTED_FROM_VOXELS,
    SAME_SPACING,
    SAME_VOXEL,
    Volume,
    check_times_last,
    corners,
    format_shape,
    refine_affine,
    run_like,
    through_plane_axis,
)

logger = logging.getLogger(__name__)

DECIDED = 1e-9
"""A label needs this much more weight to win over a smaller one: sums of equal weights differ by their rounding."""


def reslice(
    thin: Volume,
    like: Volume,
    *,
    thickness_mm: float | None = None,
    profile: Profile = "box",
    labels: bool = False,
    padding: float | None = None,
) -> Volume:
    """Returns ``thin`` as the thick slices of ``like`` see it.

    Args:
        thin: image or segmentation on a thin grid, [x, y, z] or [x, y, z, t]; in-plane it has the grid of ``like``, or
            one that is finer by a whole factor and has the same outer edges (`in_plane`). Its axes may run in any order
            and direction.
        like: the scan with thick slices; only its grid, thickness and header are used.
        thickness_mm: default: the thickness that the header of ``like`` states, else its slice spacing.
        profile: shape of the slice profile; default: that of a plan for a scan which does not tell it.
        labels: ``thin`` is a segmentation: each voxel gets the label with the largest weight under the profile (of
            equal ones the smallest), instead of a weighted mean. A label that is nowhere the largest, such as a single
            point, is kept in the one voxel where it weighs most. From a finer grid an image is made small by
            anti-aliased bicubic downscaling (`thinslice.physics.downscaling`), labels by their share of a voxel.
        padding: the value of an image where the scanner saw nothing (`Plan.padding`). It takes no part in means: it
            counts as the smallest other value, and lies where most of a thick voxel has it.

    Returns:
        Shape and affine of ``like``, dtype of ``thin``; integers are rounded and clipped.

    Raises:
        InputRefused: the two grids do not fit together within a tenth of a voxel, or a segmentation has fractions.
        PlanRefused: the thickness is not positive or too small.

    Example:
        >>> thin = Volume(np.arange(8.0).reshape(1, 1, 8), np.eye(4))
        >>> affine = np.diag([1.0, 1.0, 4.0, 1.0])
        >>> affine[2, 3] = 1.5  # the first thick slice is centred between the second and the third thin one
        >>> reslice(thin, Volume(np.zeros((1, 1, 2)), affine)).voxels
        array([[[1.5, 5.5]]])
    """
    axis = through_plane_axis(like)
    check_times_last(like, axis)
    check_times_last(thin, axis)
    # Programs store what was drawn on the thin slices from another corner, or along other axes.
    thin = run_like(thin, like.affine)
    times = _times_finer(thin, like, axis)
    centres, thin_mm, notes = _thick_centres(thin, _finer(like, axis, times), axis)
    if thickness_mm is None:
        thickness_mm = like.thickness_mm if like.thickness_mm is not None else like.spacing_mm[axis]
    matrix = _make_matrix(centres, thin.shape[axis], thickness_mm, thin_mm, profile)
    logger.debug(
        "%s %d thin slices of %.4g mm seen by %d thick ones: profile %s of %.4g mm, in-plane finer by %d",
        "labels of" if labels else "an image of",
        thin.shape[axis],
        thin_mm,
        like.shape[axis],
        profile,
        thickness_mm,
        times,
    )
    if labels:
        thin = to_whole_numbers(thin)
    out = np.empty((*like.shape, *thin.voxels.shape[3:]), thin.voxels.dtype)
    for at in np.ndindex(*thin.voxels.shape[3:]):
        source, target = (np.moveaxis(voxels[(..., *at)], axis, 0) for voxels in (thin.voxels, out))
        if labels:
            _fill_labels(source, target, matrix, times)
        else:
            _fill_image(source, target, matrix, times, padding)
    if labels:
        notes += _keep_every_label(thin, out, matrix, axis, times)
    notes = [*thin.notes, *notes]
    return replace(thin, voxels=out, affine=like.affine, thickness_mm=thickness_mm, notes=tuple(notes))


def _make_matrix(
    centres_vox: np.ndarray, n_thin: int, thickness_mm: float, thin_mm: float, profile: Profile
) -> np.ndarray:
    """Returns the weights [thick, thin] with which the thick slices see the thin ones, or refuses the thickness."""
    if not (np.isfinite(thickness_mm) and thickness_mm > 0):
        raise PlanRefused(
            got=f"a slice thickness of {thickness_mm:g} mm",
            need="a positive number",
            next="give `thickness_mm`",
            code="not-a-positive-number",
        )
    try:
        return Acquisition(centres_vox, n_thin, thickness_mm / thin_mm, profile).matrix()
    except PlanRefused as error:
        raise PlanRefused(
            got=f"a slice thickness of {thickness_mm:g} mm",
            need=f"one not much below the {thin_mm:.3g} mm of the thin slices",
            next="give `thickness_mm`",
            code="slice-sees-nothing",
        ) from error


def _times_finer(thin: Volume, like: Volume, axis: int) -> int:
    """Returns the whole factor by which both in-plane sizes differ; 1 where there is none, which is then refused."""
    factors = {a / b for i, (a, b) in enumerate(zip(thin.shape, like.shape, strict=True)) if i != axis}
    factor = factors.pop()
    return int(factor) if not factors and factor.is_integer() else 1


def _finer(like: Volume, axis: int, times: int) -> Volume:
    """Returns the grid of a scan with so many times more voxels along both in-plane axes, the outer edges kept."""
    finer = [1 if i == axis else times for i in range(3)]
    affine = refine_affine(like.affine, finer, [(k - 1) / 2 for k in finer])
    shape = tuple(n * k for n, k in zip(like.shape, finer, strict=True))
    # Only the grid is needed: one zero stands for all voxels and takes no room.
    return replace(like, voxels=np.broadcast_to(np.zeros((), like.voxels.dtype), shape), affine=affine)


def _thick_centres(thin: Volume, like: Volume, axis: int) -> tuple[np.ndarray, float, list[str]]:
    """Returns the centres of the thick slices in thin-voxel units [thick], the thin spacing in mm, and notes.

    Both are read off the affines, so that stacks may run in opposite directions or hold a part of each other.
    """
    to_thin = np.linalg.inv(thin.affine) @ like.affine
    thin_mm = thin.spacing_mm[axis]
    apart, apart_mm = _in_plane_distance(to_thin, thin, like, axis)
    same_shape = all(a == b for i, (a, b) in enumerate(zip(thin.shape, like.shape, strict=True)) if i != axis)
    if not same_shape or not apart <= SAME_VOXEL:
        shapes = f"{format_shape(thin.shape)} and {format_shape(like.shape)}"
        raise _refusal(
            thin,
            got=f"grids of {shapes} voxels, up to {apart_mm:.3g} mm apart in-plane",
            need=f"the same grid within the slices (axes other than {axis})",
            code="other-grid",
        )
    centres = to_thin[axis, axis] * np.arange(like.shape[axis]) + to_thin[axis, 3]
    if abs(to_thin[axis, axis]) < 1 - SAME_SPACING:
        raise _refusal(
            thin,
            got=f"slices {thin_mm:.3g} mm apart",
            need=f"slices no farther apart than {like.spacing_mm[axis]:.3g} mm",
            code="thin-scan-coarser",
        )
    notes = []
    if apart >= NOTED_FROM_VOXELS:
        notes.append(
            f"the two grids lie up to {apart_mm:.2g} mm ({apart:.2g} voxels) apart in-plane, as headers are rounded: "
            "they are taken for the same"
        )
    # The field of view ends half a thin voxel beyond the outermost centres, and so far a slice may lie.
    beyond = max(-0.5 - centres.min(), centres.max() - (thin.shape[axis] - 0.5)) * thin_mm
    if beyond > SAME_VOXEL * thin_mm:
        raise _refusal(
            thin,
            got=f"slices that end {beyond:.3g} mm before a slice of the thick scan",
            need="all of them inside",
            code="slices-end-early",
        )
    return centres, thin_mm, notes


def _in_plane_distance(to_thin: np.ndarray, thin: Volume, like: Volume, axis: int) -> tuple[float, float]:
    """Returns how far a thick voxel lies beside the thin voxels of the same in-plane index, at most: voxels, and mm."""
    thick = corners(like.shape)
    moved = (thick @ to_thin.T - thick)[:, :3]
    along = to_thin[axis, axis] * thick[:, axis] + to_thin[axis, 3]
    # A thick slice that is tilted against the thin ones has no one place among them.
    tilt = (thick @ to_thin.T)[:, axis] - along
    moved[:, axis] = tilt
    return float(np.abs(moved).max()), float(np.abs(moved * thin.spacing_mm).max())


def _refusal(thin: Volume, got: str, need: str, code: str) -> InputRefused:
    """Returns the refusal of a thin scan that does not fit the thick one."""
    way = "give the thick scan that the thin one was made from"
    return InputRefused(got=got, need=need, next=way, place=thin.source or "the thin scan", code=code)


def _fill_image(
    thin: np.ndarray, out: np.ndarray, matrix: np.ndarray, times: int, padding: float | None = None
) -> None:
    """Fills ``out`` [thick, h, w] from [thin, times h, times w], band by band or slice by slice."""
    beyond = thin == padding if padding is not None else np.zeros(1, bool)
    if beyond.any() and not beyond.all():
        share = np.empty(out.shape, np.float32)
        # Twice the same sum: of what lies beyond the scanner's view, and of the rest with a value it may have.
        _fill_image(beyond, share, matrix, times)
        _fill_image(np.where(beyond, thin[~beyond].min(), thin), out, matrix, times)
        out[share > 0.5] = padding
        return
    if times == 1:
        for band in cut_into_bands(thin):
            _put(apply_along_first_axis(matrix, thin[band].astype(np.float64, order="C")), out[band])
        return
    rows, columns = (downscaling_matrix(size, times) for size in out.shape[1:])
    for i, weights in enumerate(matrix):
        seen = np.flatnonzero(weights)
        # First one thick slice, then small: the other way round every thin slice would be made small, often twice.
        large = np.tensordot(weights[seen], thin[seen].astype(np.float64), axes=1)
        _put(rows @ large @ columns.T, out[i])


def _put(values: np.ndarray, out: np.ndarray) -> None:
    """Puts values into an array, rounded and clipped where it holds whole numbers."""
    if out.dtype.kind in "iu":
        info = np.iinfo(out.dtype)
        values = np.clip(np.rint(values), info.min, info.max)
    out[...] = values


def _fill_labels(thin: np.ndarray, out: np.ndarray, matrix: np.ndarray, times: int) -> None:
    """Fills ``out`` [thick, h, w] from [thin, times h, times w], slice by slice, one label at a time."""
    height, width = out.shape[1:]
    for i, weights in enumerate(matrix):
        seen = np.flatnonzero(weights)
        under, weights = thin[seen], weights[seen]
        best = np.full(out.shape[1:], -1.0)
        # In rising order, so that of equal weights the smallest label was there first.
        for label in np.unique(under):
            weight = np.tensordot(weights, under == label, axes=1)
            # In-plane a label counts by its share of the large voxel: the box, which cannot ring as bicubic weights do.
            weight = weight.reshape(height, times, width, times).mean(axis=(1, 3))
            wins = weight > best + DECIDED
            out[i][wins] = label
            best[wins] = weight[wins]


def _keep_every_label(thin: Volume, out: np.ndarray, matrix: np.ndarray, axis: int, times: int) -> list[str]:
    """Puts labels that no voxel got where they weigh most; a note on these. Of a series each volume has its own."""
    kept = set()
    for at in np.ndindex(*thin.voxels.shape[3:]):
        source, target = (np.moveaxis(voxels[(..., *at)], axis, 0) for voxels in (thin.voxels, out))
        for label in np.setdiff1d(source, target):
            thick = apply_along_first_axis(matrix, (source == label).astype(np.float64))
            count, height, width = target.shape
            weight = thick.reshape(count, height, times, width, times).mean(axis=(2, 4))
            # Not what lost to another of its weight; and beyond the thick slices nothing sees it.
            if label and 0 < weight.max() < 0.5 - DECIDED:
                target[np.unravel_index(int(np.argmax(weight)), target.shape)] = label
                kept.add(float(label))
    if not kept:
        return []
    shown = ", ".join(f"{label:g}" for label in sorted(kept)[:5]) + (" ..." if len(kept) > 5 else "")
    return [f"labels too small to fill half a thick voxel are kept in the one where they weigh most: {shown}"]
