"""Measures what users measure on a scan: the volumes of tissues, their overlap, and how sharp edges are across slices.

*Tissue classes.* The truth's foreground is cut into three classes by the two thresholds that separate them best
(Otsu 1979, with two thresholds). An answer is cut by the truth's thresholds, everywhere. Told are the error of the
classes' volumes and their overlap, the Dice coefficient (Dice 1945; both as in Taha and Hanbury 2015). Thresholds are
no segmentation program, but need none, and partial volume shows in them as it does in one.

*Edge width.* Strong edges of the truth that face along the slice axis are looked for. Around them, at the places where
the truth has them, the gradient along the slice axis is averaged, in the truth and in the answers; its full width at
half maximum is told in millimetres. It is the line spread function of an edge test (Samei, Flynn and Reimann 1998;
ISO 12233) with the anatomy's own edges. As it is an average over many edges, an edge that is steep at the wrong place,
as that of a staircase, counts as a wide one.
"""

from dataclasses import dataclass

import numpy as np

from thinslice.evaluation.metrics import foreground
from thinslice.physics.intensity import intensity_range

CLASSES = ("dark", "middle", "bright")
"""What the three classes are called."""

BINS = 256
"""Grey values among which thresholds are looked for: as many as scikit-image takes, and eight bits have."""

STEEPNESS = 2.0
"""How many times steeper along the slice axis than within the slices an edge that faces along it is: 27 degrees."""

STRONGEST_SHARE = 0.25
"""The share of these edges that are measured, the strongest ones: the others are texture and noise."""

REACH = 2.0
"""How far from an edge the gradient is followed, in slice spacings: nearest-neighbour slices spread it over one."""

STEP_VOX = 0.25
"""Distance between the places at which it is averaged: a quarter of a voxel, as ISO 12233 samples edges."""


@dataclass(frozen=True)
class Edges:
    """Where the truth has strong edges along the slice axis.

    Attributes:
        gap: [n] the gap between two slices in which each lies: that between slices k and k + 1 is gap k.
        column: [n] the pixel, as an index into the flattened slice.
        offset_vox: [n] how far the edge is from the middle of the gap, -0.5 .. 0.5.
        scale: [n] with sign, what one over the truth's change in that gap is.
        reach_vox: how far from the edge the gradient is followed.
    """

    gap: np.ndarray
    column: np.ndarray
    offset_vox: np.ndarray
    scale: np.ndarray
    reach_vox: float


@dataclass(frozen=True)
class Structures:
    """What is measured of one truth, found once for all answers.

    Attributes:
        thresholds: where the foreground, the middle and the bright class begin, in the truth's units.
        classes: [x, y, z], 0 outside the foreground, then 1 to 3.
        edges: strong edges along the slice axis.
        edge_mm: their width in the truth.
        axis: the array axis across the slices.
        spacing_mm: between thin slices.
    """

    thresholds: tuple[float, float, float]
    classes: np.ndarray
    edges: Edges
    edge_mm: float
    axis: int
    spacing_mm: float


@dataclass(frozen=True)
class Downstream:
    """What users would measure on one answer, beside the truth.

    Attributes:
        volumes_mm3: of the truth's classes, dark, middle, bright.
        volume_errors_percent: of the answer's classes, with sign; NaN for a class that the truth has not.
        dice: overlap of each class with the truth's, 0 .. 1; NaN likewise.
        smallest: the index of the truth's smallest class.
        edge_mm: edge width across the slices; NaN where there is no edge, or no end of it within `REACH`.
        edge_mm_truth: that of the truth.
        n_edges: how many edges were averaged.
    """

    volumes_mm3: tuple[float, ...]
    volume_errors_percent: tuple[float, ...]
    dice: tuple[float, ...]
    smallest: int
    edge_mm: float
    edge_mm_truth: float
    n_edges: int


def find_thresholds(values: np.ndarray) -> tuple[float, float]:
    """Returns the two thresholds that cut values into the three classes with the largest variance between them.

    Otsu 1979, over a histogram: all pairs are tried. The few values beyond the 99.5 percentile count as that
    one, or a single bright voxel would leave all others in one grey value.

    Args:
        values: any shape, of the foreground.

    Example:
        >>> low, high = find_thresholds(np.repeat([1.0, 5.0, 9.0], [50, 30, 20]))
        >>> 1 < low < 5 < high < 9
        True
    """
    first, last = float(values.min()), intensity_range(values)[1]
    counts, edges = np.histogram(np.minimum(values, last), bins=BINS, range=(first, max(last, first)))
    middles = (edges[1:] + edges[:-1]) / 2
    weight, total = np.cumsum(counts), np.cumsum(counts * middles)
    # The squared sum over the weight, summed over the classes, is the variance between them but for a constant.
    low, high = np.arange(BINS)[:, None], np.arange(BINS)[None, :]
    parts = (
        (weight[low], total[low]),
        (weight[high] - weight[low], total[high] - total[low]),
        (weight[-1] - weight[high], total[-1] - total[high]),
    )
    between = sum(np.where(w > 0, s**2 / np.maximum(w, 1), 0.0) for w, s in parts)
    best = np.where(high > low, between, -np.inf)
    # Between two peaks every threshold is as good as the next: the middle of the best ones, not the first.
    ties = np.argwhere(best >= best.max() * (1 - 1e-12))
    chosen = ties[len(ties) // 2]
    return float(edges[chosen[0] + 1]), float(edges[chosen[1] + 1])


def find_structures(truth: np.ndarray, axis: int, factor: float, spacing_mm: tuple[float, ...]) -> Structures:
    """Finds what is measured of a truth.

    Args:
        truth: [x, y, z], finite.
        axis: the array axis across the slices.
        factor: slice spacing in thin voxels.
        spacing_mm: of the truth, along its three axes.
    """
    mask = foreground(truth)
    # The largest value outside the foreground is where it begins, as `foreground` says it.
    begin = float(truth[~mask].max()) if not mask.all() else -np.inf
    thresholds = (begin, *find_thresholds(truth[mask]))
    edges = find_edges(truth, mask, axis, factor, spacing_mm)
    edge_mm = edge_width(truth, edges, axis) * spacing_mm[axis]
    return Structures(thresholds, _classify(truth, thresholds), edges, edge_mm, axis, spacing_mm[axis])


def measure(answer: np.ndarray, structures: Structures, voxel_mm3: float) -> Downstream:
    """Returns what users would measure on an answer.

    Args:
        answer: [x, y, z], on the truth's grid.
        structures: of the truth.
        voxel_mm3: volume of a voxel.

    Example:
        >>> truth = np.zeros((12, 12, 16), np.float32)
        >>> truth[2:10, 2:10, 4:12] = [100, 100, 100, 100, 200, 200, 300, 300]
        >>> answer = truth.copy()
        >>> answer[2:10, 2:10, 10] = 200  # one of two bright slices comes out as the middle class
        >>> found = measure(answer, find_structures(truth, 2, 2.0, (1.0, 1.0, 1.0)), voxel_mm3=1.0)
        >>> found.volume_errors_percent, found.dice[:2]
        ((0.0, 50.0, -50.0), (1.0, 0.8))
    """
    classes, true = _classify(answer, structures.thresholds), structures.classes
    one_to_three = range(1, len(CLASSES) + 1)
    volumes = [int(np.count_nonzero(true == one)) for one in one_to_three]
    found = [int(np.count_nonzero(classes == one)) for one in one_to_three]
    both = [int(np.count_nonzero((classes == one) & (true == one))) for one in one_to_three]
    none = float("nan")
    return Downstream(
        volumes_mm3=tuple(count * voxel_mm3 for count in volumes),
        volume_errors_percent=tuple(100 * (f - v) / v if v else none for v, f in zip(volumes, found, strict=True)),
        dice=tuple(2 * b / (v + f) if v else none for b, v, f in zip(both, volumes, found, strict=True)),
        smallest=min((k for k, count in enumerate(volumes) if count), key=volumes.__getitem__),
        edge_mm=edge_width(answer, structures.edges, structures.axis) * structures.spacing_mm,
        edge_mm_truth=structures.edge_mm,
        n_edges=len(structures.edges.gap),
    )


def find_edges(truth: np.ndarray, mask: np.ndarray, axis: int, factor: float, spacing_mm: tuple[float, ...]) -> Edges:
    """Returns the strong edges of a truth that face along the slice axis.

    Such an edge is where the change from slice to slice is largest along the slice axis, is `STEEPNESS` times the
    gradient within the slices, per millimetre, and has the foreground on one side at least; of these the strongest
    `STRONGEST_SHARE`.

    Args:
        truth: [x, y, z].
        mask: its foreground.
        axis: the array axis across the slices.
        factor: slice spacing in thin voxels.
        spacing_mm: along the three axes.
    """
    thin = np.moveaxis(truth, axis, 0).astype(np.float32)
    across_mm, *within_mm = (spacing_mm[axis], *(mm for i, mm in enumerate(spacing_mm) if i != axis))
    change = np.diff(thin, axis=0)
    size = np.abs(change)
    within = np.hypot(*(np.gradient(thin, mm, axis=one) for one, mm in zip((1, 2), within_mm, strict=True)))
    within = (within[1:] + within[:-1]) / 2
    inside = np.moveaxis(mask, axis, 0)
    reach_vox = REACH * factor
    margin = int(np.ceil(reach_vox)) + 1
    is_edge = (size >= STEEPNESS * within * across_mm) & (inside[1:] | inside[:-1]) & (size > 0)
    is_edge[1:-1] &= (size[1:-1] > size[:-2]) & (size[1:-1] >= size[2:])
    # The whole reach has to lie within the field of view.
    is_edge[:margin] = is_edge[max(len(is_edge) - margin, 0) :] = False
    gap, row, line = np.nonzero(is_edge)
    peak = size[gap, row, line]
    strong = peak >= np.quantile(peak, 1 - STRONGEST_SHARE) if len(peak) else np.zeros(0, bool)
    gap, row, line, peak = gap[strong], row[strong], line[strong], peak[strong]
    # A parabola through the three gaps says where between them the change is largest.
    before, after = size[gap - 1, row, line], size[gap + 1, row, line]
    offset = (after - before) / (2 * (2 * peak - before - after))
    return Edges(gap, row * thin.shape[2] + line, offset, 1 / change[gap, row, line], reach_vox)


def edge_width(volume: np.ndarray, edges: Edges, axis: int) -> float:
    """Returns the full width at half maximum of the mean gradient at the truth's edges, in thin voxels.

    Args:
        volume: an answer or the truth, [x, y, z].
        edges: of the truth.
        axis: the array axis across the slices.

    Returns:
        NaN where there is no edge, or where the mean gradient does not fall to half its maximum within reach.
    """
    if not len(edges.gap):
        return float("nan")
    thin = np.moveaxis(volume, axis, 0)
    change = np.diff(thin.reshape(len(thin), -1).astype(np.float32), axis=0)
    steps = round(edges.reach_vox / STEP_VOX)
    places = np.arange(-steps, steps + 1) * STEP_VOX
    spread = np.empty(len(places))
    for number, place in enumerate(places):
        at = edges.gap + edges.offset_vox + place
        low = np.floor(at).astype(np.intp)
        share = at - low
        here = (1 - share) * change[low, edges.column] + share * change[low + 1, edges.column]
        spread[number] = np.mean(here * edges.scale)
    # An answer's edge may lie a little off, but no more than half a slice spacing on average.
    near = np.abs(places) <= edges.reach_vox / (2 * REACH)
    top = int(np.flatnonzero(near)[np.argmax(spread[near])])
    return STEP_VOX * (_steps_to_half(spread[top:]) + _steps_to_half(spread[top::-1]))


def _steps_to_half(curve: np.ndarray) -> float:
    """Returns how many steps it takes a curve to fall to half its first value, NaN if it does not."""
    below = np.flatnonzero(curve <= curve[0] / 2)
    if not len(below) or below[0] == 0:
        return float("nan")
    last = int(below[0])
    high, low = curve[last - 1], curve[last]
    return float(last - 1 + (high - curve[0] / 2) / (high - low))


def _classify(volume: np.ndarray, thresholds: tuple[float, float, float]) -> np.ndarray:
    """Returns the class of every voxel, 0 to 3: how many thresholds lie below it."""
    return np.searchsorted(np.asarray(thresholds, dtype=volume.dtype), volume, side="left").astype(np.uint8)
