"""Brings a segmentation from the thick grid onto the thin one: shapes are interpolated, labels never mixed.

Shape-based interpolation (Raya & Udupa, IEEE Trans. Med. Imaging 9:32-42, 1990) with one simplification that makes it
fast and free of gaps between labels. A pixel that carries label p in one drawn slice and q in the next changes once on
the way. It changes where the signed distance to the outline of p, linear between the two slices, is zero; the same is
done for q, and the mean is taken. So only pixels that change are looked at, and all labels, background among them, are
treated alike. A part that has no overlap with its label in the next slice ends in a dome halfway between.
"""

import logging
from dataclasses import replace

import numpy as np

from thinslice.compute.label_maps import is_nearly_whole, whole_type
from thinslice.errors import InputRefused
from thinslice.physics.straightening import inside
from thinslice.plan import Plan
from thinslice.volume import (
    NOTED_FROM_VOXELS,
    SAME_VOXEL,
    Volume,
    format_shape,
    grid_distance_mm,
    grid_distance_voxels,
    run_like,
)

logger = logging.getLogger(__name__)

QUERIES = 2**20
"""Distances that are compared together: 8 MiB of them, which bounds the memory."""

AT_ONCE = 1e-5
"""Two moments on the way between slices (0 .. 1) nearer than this are the same: then the larger label is taken."""


def interpolate_labels(labels: Volume, plan: Plan, out: np.ndarray | None = None) -> Volume:
    """Returns a segmentation of the acquired slices on the thin grid.

    Args:
        labels: on the grid of the scan, [x, y, z] or [x, y, z, t]; whole numbers.
        plan: the scan's plan.
        out: array for the answer, shape ``plan.shape_thin`` (plus t), the labels' dtype; default: a new one.

    Returns:
        The labels on the thin grid in their own dtype: no new label; equal to the drawn slice at its centre; the
        outermost slices are held beyond their centres.

    Raises:
        InputRefused: another grid than the scan's, or voxels that are not whole numbers.
    """
    labels = fit_labels(labels, plan)
    logger.debug("labels of %d drawn slices are interpolated to %d", plan.n_thick, plan.n_thin)
    if out is None:
        out = np.empty((*plan.shape_thin, *labels.voxels.shape[3:]), labels.voxels.dtype)
    upright, positions = _upright(labels, plan)
    for at in np.ndindex(*labels.voxels.shape[3:]):
        drawn = np.moveaxis(upright[(..., *at)], plan.axis, 0)
        # Pixels are repeated where images are interpolated: between two labels there is nothing.
        drawn = drawn.repeat(plan.in_plane, axis=1).repeat(plan.in_plane, axis=2)
        thin = np.moveaxis(out[(..., *at)], plan.axis, 0)
        in_plane = [mm for axis, mm in enumerate(plan.spacing_thin_mm) if axis != plan.axis]
        _fill(drawn, thin, positions, (in_plane[0], in_plane[1]))
    return replace(labels, voxels=out, affine=np.array(plan.affine_thin), thickness_mm=None)


def _upright(labels: Volume, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Returns drawn slices on the upright grid of the plan, and [thin] the places of the thin slices among them.

    Where a slice is missing, and nothing is drawn in it, the labels go on from one of its neighbours to the other.
    """
    stack = np.moveaxis(labels.voxels, plan.axis, 0)
    places = np.arange(len(stack)) if plan.places is None else np.array(plan.places)
    drawn = np.arange(len(stack))
    if len(stack) > len(places):  # the slices of the file, of which some hold nothing
        there = np.isin(drawn, np.rint(places).astype(int))
        drawn = drawn[there | np.array([one.any() for one in stack])]
        places = drawn.astype(float)
    stack = stack[drawn]
    # Not where the labels lie on the upright grid already.
    if plan.offsets_px is not None and labels.shape == plan.shape_acquired:
        stack = _moved(stack, drawn, plan)
    positions = np.interp(plan.positions(), places, np.arange(len(places)))
    return np.moveaxis(stack, 0, plan.axis), plan.positions() if plan.places is None else positions


def _moved(stack: np.ndarray, drawn: np.ndarray, plan: Plan) -> np.ndarray:
    """Returns labels [n, h, w, ...] of tilted slices, each moved by whole pixels to where it lies; 0 beyond them."""
    within = [axis for axis in range(3) if axis != plan.axis]
    shape = plan.shape_thick[within[0]], plan.shape_thick[within[1]]
    known = np.arange(plan.n_acquired) if plan.places is None else np.array(plan.places)
    places = drawn if len(drawn) > plan.n_acquired else known
    offsets = np.array(plan.offsets_px)
    upright = np.zeros((len(stack), *shape, *stack.shape[3:]), stack.dtype)
    for index, place in enumerate(places):
        rows, columns = (float(np.interp(place, known, offsets[:, side])) for side in (0, 1))
        part = inside((rows, columns), stack.shape[1:3], shape)
        size = part[0].stop - part[0].start, part[1].stop - part[1].start
        upright[(index, *part)] = stack[index, : size[0], : size[1]]
    return upright


def fit_labels(labels: Volume, plan: Plan) -> Volume:
    """Returns a segmentation as the grid of the plan's scan holds it: the same voxels, in the scan's order.

    Programs store what was drawn on one series from different corners, and along other axes; that is undone, and
    nothing is resampled. Voxels that lie a little beside the scan's, for the rounding of a header, are the scan's.

    Args:
        labels: [x, y, z] or [x, y, z, t], with axes in any order and direction.
        plan: the scan's plan.

    Returns:
        Whole numbers with the scan's shape and affine; what had to be decided is added to the notes.

    Raises:
        InputRefused: another grid than the scan's, or voxels that are not whole numbers.
    """
    name = labels.source or "the segmentation"
    shape, affine, turned = _find_grid(labels, plan)
    if turned.shape != shape:
        raise InputRefused(
            got=f"labels of {format_shape(labels.shape)} voxels",
            need=f"{format_shape(shape)} as in the scan",
            next="give the segmentation that was drawn on this scan",
            place=name,
            code="other-grid",
        )
    apart_mm = grid_distance_mm(turned.affine, affine, shape)
    apart = grid_distance_voxels(turned.affine, affine, shape)
    # Not "greater than": of a header with NaN every comparison is false, and it must be refused.
    if not apart <= SAME_VOXEL:
        raise InputRefused(
            got=f"labels up to {apart_mm:.3g} mm ({apart:.2g} voxels) away from the scan's voxels",
            need=f"the same grid within {SAME_VOXEL:g} voxels",
            next="resample the segmentation onto the scan, each voxel with its nearest label",
            place=name,
            code="other-grid",
        )
    whole = to_whole_numbers(turned)
    notes = list(whole.notes)
    if apart >= NOTED_FROM_VOXELS:
        notes.append(
            f"the voxels of the segmentation lie up to {apart_mm:.2g} mm ({apart:.2g} voxels) beside those of the "
            "scan, as headers are rounded: they are taken for the same"
        )
    return replace(whole, affine=affine, notes=tuple(notes))


def _find_grid(labels: Volume, plan: Plan) -> tuple[tuple[int, int, int], np.ndarray, Volume]:
    """Returns shape and affine of the grid that labels were drawn on, and the labels with their axes as it has them.

    Slices that are tilted, uneven or incomplete have two: that of the file, and the upright one.
    """
    shape, affine = plan.shape_thick, np.array(plan.affine_thick)
    turned = run_like(labels, affine)
    if plan.affine_acquired is None or plan.shape_acquired is None:
        return shape, affine, turned
    own = np.array(plan.affine_acquired)
    as_acquired = run_like(labels, own)
    if as_acquired.shape == plan.shape_acquired:
        apart = grid_distance_voxels(as_acquired.affine, own, plan.shape_acquired)
        if turned.shape != shape or apart <= grid_distance_voxels(turned.affine, affine, shape):
            return plan.shape_acquired, own, as_acquired
    return shape, affine, turned


def extend_to_grid(labels: Volume, scan: Volume) -> Volume:
    """Returns a segmentation that covers a part of a scan's grid on all of it; 0 where nothing was drawn.

    Programs store no more than the box of what was drawn.

    Args:
        labels: [x, y, z], voxels that lie where some of the scan's do, with axes in any order and direction.
        scan: of which only shape and affine are used.

    Returns:
        The labels with the scan's shape; `fit_labels` says how well they lie on its voxels.

    Raises:
        InputRefused: something is drawn beyond the scan, or it has voxels of another size.
    """
    turned = run_like(labels, scan.affine)
    to_scan = np.linalg.inv(scan.affine) @ turned.affine
    first = np.rint(to_scan[:3, 3]).astype(int)
    moved = np.array(turned.affine)
    moved[:3, 3] -= turned.affine[:3, :3] @ first
    whole = np.zeros(scan.shape, labels.voxels.dtype)
    sizes = zip(first, turned.shape, whole.shape, strict=True)
    there = [slice(max(start, 0), max(min(start + n, size), 0)) for start, n, size in sizes]
    part = tuple(slice(s.start - f, max(s.stop - f, 0)) for s, f in zip(there, first, strict=True))
    drawn = turned.voxels[part]
    is_same_size = np.abs(to_scan[:3, :3] - np.eye(3)).max() <= SAME_VOXEL
    # Not what the box alone reaches beyond the scan, but what is drawn there.
    if not is_same_size or np.count_nonzero(drawn) < np.count_nonzero(turned.voxels):
        raise InputRefused(
            got="a segmentation of voxels that are not the scan's",
            need="one that was drawn on this scan",
            next="give that of this series, or resample it onto the scan",
            place=labels.source or "the segmentation",
            code="other-grid",
        )
    whole[tuple(there)] = drawn
    return replace(turned, voxels=whole, affine=moved)


def to_whole_numbers(labels: Volume) -> Volume:
    """Returns a segmentation whose voxels are whole numbers.

    Labels that went through a scale, as that of a NIfTI header, come out of it a little beside whole numbers: they are
    rounded and the scale is dropped, with a note.

    Raises:
        InputRefused: they are not whole numbers, nor near them.
    """
    voxels = labels.voxels
    if voxels.dtype.kind != "f":
        return labels
    # Plane by plane, as a comparison of the whole would need the room of the scan again.
    if all((plane == np.rint(plane)).all() for plane in voxels):
        return labels
    if not all(is_nearly_whole(plane).all() for plane in voxels):
        raise InputRefused(
            got="voxels with fractions",
            need="whole numbers, one per label",
            next="give a label map, not a probability map or an image",
            place=labels.source or "the segmentation",
            code="labels-with-fractions",
        )
    kind = whole_type(float(voxels.min()), float(voxels.max()))
    whole = np.empty(voxels.shape, kind)
    farthest = 0.0
    for plane, out in zip(voxels, whole, strict=True):
        out[...] = np.rint(plane)
        farthest = max(farthest, float(np.abs(plane - np.rint(plane)).max()))
    note = f"labels up to {farthest:.2g} beside whole numbers, as a scale or its rounding leaves them, are rounded"
    # Without the header: its scale would lead away from whole numbers again.
    return replace(labels, voxels=whole, header=None, notes=(*labels.notes, note))


def find_changing_times(near: np.ndarray, far: np.ndarray, spacing_mm: tuple[float, float]) -> np.ndarray:
    """Returns when each pixel changes from its label in ``near`` to that in ``far``, 0 .. 1 on the way between them.

    Args:
        near, far: two adjacent drawn slices [h, w].
        spacing_mm: pixel spacings along h and w.

    Returns:
        float64 [h, w]; 0.5 where nothing changes.

    Example:
        >>> near, far = np.array([[1, 1, 1, 1, 0]]), np.array([[1, 1, 0, 0, 0]])
        >>> find_changing_times(near, far, spacing_mm=(1.0, 1.0))
        array([[0.5 , 0.5 , 0.75, 0.25, 0.5 ]])
    """
    changed = np.nonzero(near != far)
    leave, ends = _leaving_times(near, far, changed, spacing_mm)
    enter, begins = _leaving_times(far, near, changed, spacing_mm)
    times = np.full(near.shape, 0.5)
    # A part that ends in neither slice or in both is seen from both, and the mean is taken; else from where it ends.
    one_sided = np.where(ends, leave, 1 - enter)
    times[changed] = np.where(ends == begins, (leave + 1 - enter) / 2, one_sided)
    return times


def _fill(drawn: np.ndarray, thin: np.ndarray, positions: np.ndarray, spacing_mm: tuple[float, float]) -> None:
    """Fills ``thin`` [thin, h, w], centres at ``positions`` in units of drawn slices, from these [thick, h, w]."""
    positions = np.clip(positions, 0, len(drawn) - 1)
    whole = np.abs(positions - np.rint(positions)) < AT_ONCE
    # At a drawn slice what was drawn comes back to the last pixel, whatever its neighbours say.
    for j in np.flatnonzero(whole):
        thin[j] = drawn[int(np.rint(positions[j]))]
    first = np.floor(positions).astype(int)
    for i in np.unique(first[~whole]):
        # Every thin slice between the same two drawn ones shares their moments of change.
        near, far = np.ascontiguousarray(drawn[i]), np.ascontiguousarray(drawn[i + 1])
        times = find_changing_times(near, far, spacing_mm)
        for j in np.flatnonzero((first == i) & ~whole):
            thin[j] = _at(near, far, times, positions[j] - i)


def _at(near: np.ndarray, far: np.ndarray, times: np.ndarray, moment: float) -> np.ndarray:
    """Returns the labels [h, w] at one moment on the way from ``near`` (0) to ``far`` (1)."""
    labels = np.where(times > moment, near, far)
    # Which of two labels comes first must not depend on rounding, nor on the direction: flipping a scan flips these.
    undecided = np.abs(times - moment) < AT_ONCE
    labels[undecided] = np.maximum(near, far)[undecided]
    return labels


def _leaving_times(
    here: np.ndarray, there: np.ndarray, pixels: tuple[np.ndarray, ...], spacing_mm: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns when pixels (rows, columns) leave their label of ``here``, and whether their part ends before ``there``.

    The depth is the distance to the outline in ``here``, the way that to the outline of the same label in ``there``.
    """
    half_pixel = min(spacing_mm) / 2  # the outline runs between pixels, the distances between their centres
    longest = float(np.hypot(here.shape[0] * spacing_mm[0], here.shape[1] * spacing_mm[1]))
    to_outline = _distance(_to_other_label(here, spacing_mm[0]), here, pixels, spacing_mm[1])
    # A slice of one label has no outline: infinitely deep, its times would be infinity over infinity.
    depth = np.minimum(to_outline, longest) - half_pixel
    way = np.full(len(depth), longest)
    own = here[pixels]
    for label in np.unique(own):
        mine = own == label
        rows, columns = pixels[0][mine], pixels[1][mine]
        way[mine] = np.minimum(_distance_to(there == label, (rows, columns), spacing_mm), longest)
    depth_map = np.zeros(here.shape)
    depth_map[pixels] = depth
    # Of whole parts, not pixels: a part that overlaps its label in the next slice anywhere goes on there.
    ends = _peak(here, (here == there).astype(np.float64))[pixels] == 0
    share = depth / np.maximum(_peak(here, depth_map)[pixels], depth)
    # A quarter of a circle from the outline (0) to the deepest pixel (halfway): parts end round, not pointed.
    dome = np.sqrt(share * (2 - share)) / 2
    return np.where(ends, dome, depth / (depth + way - half_pixel)), ends


def _distance_to(
    target: np.ndarray, pixels: tuple[np.ndarray, np.ndarray], spacing_mm: tuple[float, float]
) -> np.ndarray:
    """Returns how many mm pixels (rows, columns) are from the nearest true pixel of ``target`` [h, w], or infinity."""
    inside = np.flatnonzero(target.any(axis=0))
    if len(inside) == 0:
        return np.full(len(pixels[0]), np.inf)
    cropped = target[:, inside[0] : inside[-1] + 1]
    rows = np.arange(len(target))[:, None]
    above = np.maximum.accumulate(np.where(cropped, rows, -np.inf), axis=0)
    below = np.minimum.accumulate(np.where(cropped, rows, np.inf)[::-1], axis=0)[::-1]
    along_columns = np.minimum(rows - above, below - rows) * spacing_mm[0]
    return _distance(along_columns, None, (pixels[0], pixels[1] - inside[0]), spacing_mm[1])


def _to_other_label(labels: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Returns how many mm each pixel is from the nearest of another label in its column [h, w], or infinity."""
    rows = np.arange(len(labels))[:, None]
    change = labels[1:] != labels[:-1]
    nothing = np.full((1, labels.shape[1]), np.inf)
    above = np.maximum.accumulate(np.vstack([-nothing, np.where(change, rows[:-1], -np.inf)]), axis=0)
    below = np.minimum.accumulate(np.vstack([np.where(change, rows[1:], np.inf), nothing])[::-1], axis=0)[::-1]
    return np.asarray(np.minimum(rows - above, below - rows) * spacing_mm)


def _distance(
    along_columns: np.ndarray, labels: np.ndarray | None, pixels: tuple[np.ndarray, ...], spacing_mm: float
) -> np.ndarray:
    """Returns Euclidean distances in mm at some pixels: the second pass of the exact distance transform.

    The columns are done already, and the rows are searched (Felzenszwalb & Huttenlocher, Theory of Computing 8:415-428,
    2012, without the parabolas: only pixels that change are looked at).

    Args:
        along_columns: distance in mm within each column [h, w].
        labels: with them [h, w], a column whose pixel in the same row has another label is at distance 0.
        pixels: rows and columns.
        spacing_mm: between columns.
    """
    rows, columns = pixels
    width = along_columns.shape[1]
    squared = along_columns**2
    across = np.arange(width)
    nearest = np.empty(len(rows))
    step = max(1, QUERIES // width)
    for start in range(0, len(rows), step):
        row, column = rows[start : start + step], columns[start : start + step]
        # Infinite columns stay infinite; all columns of a row are compared, as its outline may lie in any.
        candidates = squared[row]
        if labels is not None:
            candidates[labels[row] != labels[row, column][:, None]] = 0.0
        candidates += ((across[None, :] - column[:, None]) * spacing_mm) ** 2
        nearest[start : start + step] = candidates.min(axis=1)
    return np.sqrt(nearest)


def _peak(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns the largest of ``values`` [h, w] in each part: pixels of one label that are connected by their edges."""
    row_runs, column_runs = _run_starts(labels), _run_starts(labels.T)
    # Rows and columns in turn; each turn carries the peak round one more bend of the part.
    while True:
        # That ends: values only rise, and only to values that are there.
        spread = _peak_of_runs(_peak_of_runs(values, row_runs).T, column_runs).T
        if np.array_equal(spread, values):
            return spread
        values = spread


def _run_starts(labels: np.ndarray) -> np.ndarray:
    """Returns the flat indices at which runs of equal labels within a row begin."""
    begins = np.ones(labels.shape, bool)
    begins[:, 1:] = labels[:, 1:] != labels[:, :-1]
    return np.flatnonzero(begins)


def _peak_of_runs(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Returns the largest of ``values`` [h, w] in each run."""
    lengths = np.diff(starts, append=values.size)
    return np.repeat(np.maximum.reduceat(values.ravel(), starts), lengths).reshape(values.shape)
