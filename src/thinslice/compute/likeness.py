"""How alike two stacks are where both see: whether they show the same body, in the same contrast, in the same place.

Intensities are compared only with their neighbours. Within a few millimetres the mean is taken away and the spread
divided out, of both volumes, and what is left is correlated over the tissue that both see. So a scale, an offset and a
bias field do not matter; the sign does, as two contrasts share their edges but not which side of them is bright. Hence
no mutual information, which aligns contrasts so well because it cannot tell them apart.

The outline of the body is left out: dark air around bright tissue looks alike in all contrasts, and the edges of two
heads without their skulls agree whosever they are.
"""

from dataclasses import dataclass

import numpy as np

from thinslice.compute.blur import blur
from thinslice.models.blas import one_blas_thread
from thinslice.physics.acquisition import apply_along_first_axis
from thinslice.physics.interpolation import cubic_matrix
from thinslice.volume import Volume

LEAST_LIKENESS = 0.57
"""From this on two stacks show one body in one contrast. Measured, each pair in its best place: stacks of one body 0.66
and more (0.93 and more simulated, with noise and a bias field), other contrasts of it 0.42 and less, others 0.49 and
less. Stacks between whose slices the body moved by degrees may fall below."""

SPACING_MM = 1.5
"""Of the grid on which likeness is measured: contrasts differ most in the finest detail that thick stacks share."""

SIGMA_MM = 1.5
"""Of the blur before: what only one of two stacks resolves does not count, nor does noise of a few percent."""

WINDOW_MM = 5.0
"""Standard deviation of the neighbourhood: wider ones see the outlines of organs, which all contrasts share."""

TISSUE = 0.1
"""Share of the intensity range above its dark end from which on a voxel is tissue and not air."""

OUTLINE_MM = 1.5
"""Standard deviation of the neighbourhood that has to be tissue as well, or the voxel belongs to the outline."""

ALL_TISSUE = 0.9
"""Share of that neighbourhood from which on it is tissue: a thin vessel that is as dark as air does not matter."""

LEAST_SPREAD = 0.1
"""Spread below this share of the usual one counts as noise: unbounded, the noise of flat regions would be amplified."""

LEAST_COMMON_MM3 = 5000.0
"""Common tissue below this says nothing: a cube of 17 mm, in which a few edges agree by chance."""

FLAT = 1e-5
"""A volume whose spread is a smaller share of its largest value is flat: float32 rounds to 1e-7."""

_BLUR_REACH = 2.8
"""Where a Gaussian blur ends, in standard deviations; beyond lie 0.5 % of its weight."""

_BLUR_STEP = 0.8
"""Largest step between the samples of a Gaussian, in standard deviations: its sum is smooth to 1e-3 then."""


@dataclass(frozen=True)
class Likeness:
    """Says how alike two volumes are in one place.

    Attributes:
        value: -1 to 1; 0 where too little is common to say.
        overlap: the share of the smaller field of view that both see.
    """

    value: float
    overlap: float

    @property
    def is_same_body(self) -> bool:
        """Whether it is enough for one body in one contrast, see `LEAST_LIKENESS`."""
        return self.value >= LEAST_LIKENESS


def measure_likeness(moving: Volume, fixed: Volume, motion: np.ndarray | None = None) -> Likeness:
    """Returns how alike two volumes are where both see.

    Args:
        moving: voxels [x, y, z]; thin slices, or thick ones as acquired.
        fixed: another volume, on any grid.
        motion: [4, 4], from where the header says that the moving volume lies to where it lies in the fixed one,
            patient millimetres (RAS); default: the headers are right.

    Example:
        >>> random = np.random.default_rng(0)
        >>> volume = Volume(random.normal(size=(24, 24, 24)) + 9, np.diag([2.0, 2.0, 2.0, 1.0]))
        >>> darker = Volume(30 - 2 * volume.voxels, volume.affine)
        >>> [round(measure_likeness(other, volume).value, 3) for other in (volume, darker)]
        [1.0, -1.0]
    """
    return Comparison(moving, fixed).measure(np.eye(4) if motion is None else motion)


class Comparison:
    """Compares two volumes in one place after the other; what does not depend on the place is computed once.

    Args:
        moving, fixed: as in `measure_likeness`.
    """

    def __init__(self, moving: Volume, fixed: Volume) -> None:
        with one_blas_thread:
            self.moving, self.fixed = (blur_to_spacing(each, SPACING_MM, SIGMA_MM) for each in (moving, fixed))
            self.moving_tissue, self.fixed_tissue = (_find_tissue(each.voxels) for each in (self.moving, self.fixed))

    def measure(self, motion: np.ndarray) -> Likeness:
        """Returns how alike they are after a motion [4, 4] of the moving volume."""
        to_index = index_map(self.moving, self.fixed, motion)
        seen, inside = resample(self.moving.voxels, to_index, self.fixed.shape)
        tissue, _ = resample(self.moving_tissue.astype(np.float32), to_index, self.fixed.shape)
        overlap = float(inside.sum() / min(self.moving.voxels.size, self.fixed.voxels.size))
        # Tissue of both, and of the moving one wholly: its edge is the outline again.
        common = self.fixed_tissue & (tissue > 0.99)
        if common.sum() * SPACING_MM**3 < LEAST_COMMON_MM3:
            return Likeness(0.0, min(overlap, 1.0))
        with one_blas_thread:
            first, second = (
                normalise_locally(voxels, WINDOW_MM / SPACING_MM, common)[common]
                for voxels in (seen, self.fixed.voxels)
            )
        return Likeness(correlate(first, second), min(overlap, 1.0))


def correlate(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the sum of products over the root of both sums of squares, signed; 0 where one of them is flat."""
    first, second = (np.asarray(each, np.float64).ravel() for each in (first, second))
    size = float(np.sqrt((first @ first) * (second @ second)))
    return float(first @ second) / size if size > 0 else 0.0


def blur_to_spacing(volume: Volume, spacing_mm: float, sigma_mm: float) -> Volume:
    """Returns a volume on an isotropic grid along its own axes, blurred by a Gaussian: float32, mean 0, spread 1.

    Axes whose voxels lie farther apart than that are interpolated.

    Example:
        >>> blur_to_spacing(Volume(np.zeros((64, 64, 9)), np.diag([0.5, 0.5, 4.0, 1.0])), 2.0, 2.0).shape
        (16, 16, 18)
    """
    voxels = np.asarray(volume.voxels, np.float32)
    finite = np.isfinite(voxels)
    if not finite.all():
        voxels = np.where(finite, voxels, voxels[finite].min() if finite.any() else 0.0)
    largest = float(np.abs(voxels).max())
    first = np.zeros(4)
    first[3] = 1.0
    for axis, (size, own_mm) in enumerate(zip(volume.shape, volume.spacing_mm, strict=True)):
        position = _positions(size, own_mm, spacing_mm)
        first[axis] = position[0]
        matrix = _blurring_matrix(position, size, sigma_mm / own_mm)
        voxels = np.moveaxis(apply_along_first_axis(matrix, np.moveaxis(voxels, axis, 0)), 0, axis)
    affine = volume.affine.copy()
    affine[:3, :3] *= spacing_mm / np.asarray(volume.spacing_mm)
    affine[:3, 3] = (volume.affine @ first)[:3]
    voxels = voxels - voxels.mean(dtype=np.float64)
    spread = float(voxels.std(dtype=np.float64))
    # What is left of a flat volume is rounding, which divided by its spread would look like noise.
    voxels = voxels / spread if spread > FLAT * largest else np.zeros_like(voxels)
    return Volume(np.ascontiguousarray(voxels, np.float32), affine)


def normalise_locally(voxels: np.ndarray, window_vox: float, counted: np.ndarray | None = None) -> np.ndarray:
    """Returns voxels less the mean of their neighbourhood, over its spread: float32, 0 where nothing is counted.

    Args:
        voxels: [x, y, z] float32.
        window_vox: standard deviation of the Gaussian neighbourhood.
        counted: bool, the voxels that count, as neighbours too; default: all.
    """
    weight = np.ones(voxels.shape, np.float32) if counted is None else counted.astype(np.float32)
    # Means over what counts alone: beyond it, as beyond the field of view, nothing is known.
    total = blur(weight, window_vox) + np.float32(1e-6)
    centred = (voxels - blur(voxels * weight, window_vox) / total) * weight
    variance = blur(centred**2, window_vox) / total
    usual = float((variance * weight).sum(dtype=np.float64) / max(weight.sum(dtype=np.float64), 1.0))
    spread = np.sqrt(variance + np.float32(LEAST_SPREAD**2 * usual))
    normalised: np.ndarray = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0)
    return normalised


def index_map(moving: Volume, fixed: Volume, motion: np.ndarray) -> np.ndarray:
    """Returns the [4, 4] map from voxel indices of the fixed grid to those of the moved one."""
    to_index: np.ndarray = np.linalg.inv(motion @ moving.affine) @ fixed.affine
    return to_index


def resample(voxels: np.ndarray, to_index: np.ndarray, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns voxels on another grid, by straight lines between their neighbours, and where the grid sees them.

    Args:
        voxels: [x, y, z], two or more along each axis.
        to_index: [4, 4], index of the other grid -> index into ``voxels``.
        shape: of the other grid.

    Returns:
        float32 of that shape, 0 outside; bool of that shape.
    """
    out, inside = np.zeros(shape, np.float32), np.zeros(shape, bool)
    largest = np.asarray(voxels.shape)[:, None] - 1
    steps = np.array([voxels.shape[1] * voxels.shape[2], voxels.shape[2], 1])
    flat = voxels.ravel()
    plane = to_index[:3, 1:3] @ np.indices(shape[1:]).reshape(2, -1) + to_index[:3, 3:]
    # Plane by plane, as the positions of a whole large grid would need several times its room.
    for number in range(shape[0]):
        index = plane + number * to_index[:3, :1]
        seen = ((index >= 0) & (index <= largest)).all(axis=0)
        # The last voxel is the upper neighbour of the one before it.
        below = np.minimum(index[:, seen].astype(np.intp), largest - 1)
        part = (index[:, seen] - below).astype(np.float32)
        base, values = steps @ below, np.zeros(below.shape[1], np.float32)
        for corner in np.ndindex(2, 2, 2):
            weights = [p if up else 1 - p for p, up in zip(part, corner, strict=True)]
            values += weights[0] * weights[1] * weights[2] * flat[base + steps @ np.asarray(corner)]
        out[number].ravel()[seen] = values
        inside[number].ravel()[seen] = True
    return out, inside


def _find_tissue(voxels: np.ndarray) -> np.ndarray:
    low, high = np.percentile(voxels, [0.5, 99.5])
    tissue = (voxels > low + TISSUE * (high - low)).astype(np.float32)
    inner: np.ndarray = blur(tissue, OUTLINE_MM / SPACING_MM) > ALL_TISSUE
    return inner


def _positions(size: int, own_mm: float, spacing_mm: float) -> np.ndarray:
    """Returns where the voxels of a grid of another spacing lie, in voxels of the own one; the middle is kept."""
    count = max(int(size * own_mm / spacing_mm), 2)
    positions: np.ndarray = (np.arange(count) - (count - 1) / 2) * spacing_mm / own_mm + (size - 1) / 2
    return positions


def _blurring_matrix(position: np.ndarray, size: int, sigma_vox: float) -> np.ndarray:
    """Returns the weights [new, old] of a Gaussian mean of the interpolated voxels around each position."""
    # Steps of a voxel at most: longer ones would skip some of the voxels, and take their noise from the rest alone.
    step_vox = min(_BLUR_STEP * sigma_vox, 1.0)
    reach = int(np.ceil(_BLUR_REACH * sigma_vox / step_vox))
    offset = step_vox * np.arange(-reach, reach + 1)
    shares = np.exp(-((offset / sigma_vox) ** 2) / 2)
    around = position[:, None] + offset
    weights = cubic_matrix(around.ravel(), size).reshape(len(position), len(shares), size)
    matrix: np.ndarray = np.einsum("pns,n->ps", weights, shares / shares.sum())
    return matrix.astype(np.float32)
