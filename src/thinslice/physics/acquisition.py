"""The acquisition operator: how thick slices see thin ones, and the adjoint that carries them back.

A 2-D acquisition excites a slab. The signal of a thick slice is the thin anatomy weighted by the slice-selection
profile along the slab normal: ``thick = A thin``. Whatever simulates a scanner in this package, or compares an answer
with what a scanner acquired, takes its weights along the slice axis from here.

Two matrices blur as well and are no acquisitions: bicubic downscaling, by which papers make pictures small
(`thinslice.physics.downscaling`), and the covariance of smooth anatomy (`thinslice.physics.projection`).

Positions are in thin-voxel units: thin slice ``j`` has its centre at ``j``.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from thinslice.errors import PlanRefused
from thinslice.physics.profile import reach_vox, slice_profile
from thinslice.settings import Profile


# Compared by identity: two arrays compared give an array, which is neither true nor false.
@dataclass(frozen=True, eq=False)
class Acquisition:
    """Says how thick slices see thin ones along one axis: the linear operator A of ``thick = A thin``.

    Every row of its matrix sums to one. Where a slab reaches over the edge of the field of view, what lies inside it
    carries the whole weight.

    Attributes:
        centres_vox: centres of the thick slices [thick], in thin-voxel units; they need not be even, ascending or
            whole.
        n_thin: number of thin slices, centres at 0 .. n_thin - 1.
        fwhm_vox: slice thickness, the full width at half maximum of the profile, in thin-voxel units.
        profile: see `thinslice.physics.profile.slice_profile`.
        axis: the array axis across the slices, for `forward` and `adjoint`.

    Example:
        >>> acquisition = Acquisition(np.array([0.5, 2.5]), n_thin=4, fwhm_vox=2.0, profile="box")
        >>> acquisition.forward(np.array([1.0, 3.0, 5.0, 5.0]))
        array([2., 5.])
        >>> acquisition.adjoint(np.array([2.0, 4.0]))
        array([1., 1., 2., 2.])
    """

    centres_vox: np.ndarray
    n_thin: int
    fwhm_vox: float
    profile: Profile
    axis: int = 0

    def __post_init__(self) -> None:
        """Copies the centres, so that nobody can change them."""
        centres_vox = np.array(self.centres_vox, dtype=np.float64)
        # A frozen dataclass has no other way to set a field of its own.
        centres_vox.setflags(write=False)
        object.__setattr__(self, "centres_vox", centres_vox)

    @property
    def n_thick(self) -> int:
        """Number of thick slices."""
        return len(self.centres_vox)

    def forward(self, thin: np.ndarray) -> np.ndarray:
        """Returns what the scanner would acquire: A x.

        Args:
            thin: thin slices along ``axis``, any number of other axes. Computed in its dtype if that is a float one,
                otherwise in float32.
        """
        return self._along_axis(self._matrix, thin)

    def adjoint(self, thick: np.ndarray) -> np.ndarray:
        """Returns thick slices carried back to the thin grid by the transpose: At y, with <A x, y> = <x, At y>.

        Args:
            thick: thick slices along ``axis``; otherwise as in `forward`.
        """
        return self._along_axis(self._matrix.T, thick)

    def matrix(self) -> np.ndarray:
        """Returns the whole matrix A [thick, thin], float64, read-only.

        Raises:
            PlanRefused: a slice sees no thin slice, the thickness is not positive, or the profile is unknown.
        """
        return self._matrix

    def seen_by(self, start: int, stop: int) -> slice:
        """Returns the thin slices that thick slices start .. stop - 1 see."""
        reach = reach_vox(self.fwhm_vox, self.profile)
        # Smallest and largest, not first and last: stacks run in either direction, and need not be even.
        centres_vox = self.centres_vox[start:stop]
        first = int(np.floor(centres_vox.min() - reach))
        last = int(np.ceil(centres_vox.max() + reach))
        return slice(max(first, 0), min(last + 1, self.n_thin))

    def rows(self, start: int, stop: int) -> tuple[slice, np.ndarray]:
        """Returns rows start .. stop - 1 of `matrix`: the thin slices they see, and their weights of these.

        The whole matrix grows with the square of the number of slices; these rows do not, and it is never made.

        Raises:
            PlanRefused: see `matrix`.

        Example:
            >>> acquisition = Acquisition(4.0 * np.arange(1000) + 1.5, n_thin=4000, fwhm_vox=4.0, profile="box")
            >>> seen, weights = acquisition.rows(500, 501)
            >>> seen, weights.shape
            (slice(1999, 2005, None), (1, 6))
        """
        seen = self.seen_by(start, stop)
        return seen, self._weights(start, stop, seen)

    @cached_property
    def _matrix(self) -> np.ndarray:
        matrix = self._weights(0, self.n_thick, slice(0, self.n_thin))
        matrix.setflags(write=False)  # it is kept, and `matrix` hands it out
        return matrix

    def _weights(self, start: int, stop: int, thin: slice) -> np.ndarray:
        """Returns rows start .. stop - 1, columns of some thin slices that hold all that they see."""
        n_thin = thin.stop - thin.start
        centres_vox = self.centres_vox[start:stop] - thin.start
        distance = np.arange(n_thin, dtype=np.float64)[None, :] - centres_vox[:, None]
        weights = slice_profile(distance, self.fwhm_vox, self.profile)
        # Over the edge of the field of view lie no voxels: without this an outermost slice would be dark.
        total = weights.sum(axis=1, keepdims=True)
        if (total <= 0).any():
            lost = self.centres_vox[start + int(np.argmin(total))]
            raise PlanRefused(
                got=f"a slice centred at {lost:g}, which sees none of the {self.n_thin} thin slices",
                need=f"centres from -0.5 to {self.n_thin - 0.5:g}, and slices not much thinner than the thin ones",
                next="check the slice positions and `thickness_mm`",
                code="slice-sees-nothing",
            )
        normalised: np.ndarray = weights / total
        return normalised

    def _along_axis(self, matrix: np.ndarray, array: np.ndarray) -> np.ndarray:
        return np.moveaxis(apply_along_first_axis(matrix, np.moveaxis(array, self.axis, 0)), 0, self.axis)


def apply_along_first_axis(matrix: np.ndarray, array: np.ndarray) -> np.ndarray:
    """Applies ``matrix`` [m, n] to the first axis of ``array`` [n, ...] and returns [m, ...].

    Computed in the array's dtype if that is a float one, otherwise in float32.

    Example:
        >>> apply_along_first_axis(np.array([[0.5, 0.5]]), np.array([[1, 2], [3, 4]], dtype=np.int16))
        array([[2., 3.]], dtype=float32)
    """
    array = array if array.dtype.kind == "f" else array.astype(np.float32)
    # Flattened, so that it is one product of two matrices, whatever the shape.
    flat = array.reshape(len(array), -1)
    # The matrix follows the image: the other way round float64 weights would make every image float64.
    product: np.ndarray = matrix.astype(array.dtype, copy=False) @ flat
    return product.reshape(len(matrix), *array.shape[1:])
