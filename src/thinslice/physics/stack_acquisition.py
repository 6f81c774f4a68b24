"""How a stack in any position sees a volume: thick slices at any angle, of any spacing, on a grid that is not theirs.

`thinslice.physics.acquisition.Acquisition` is the special case of slices that are parallel to the voxels of the volume
and have the same pixels. Here stack and volume each have an affine. Voxel ``q`` of the stack lies at ``C q + c`` in
voxels of the volume, and the operator is taken apart into three passes along the axes of the volume
(`thinslice.physics.line_passes`): two that interpolate in the slices' own directions, and at last one with the slice
profile. When that comes, the lines run across the slices: the profile is integrated in the stack's own direction, at
any angle.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from thinslice.physics.interpolation import CARDINAL_REACH, cardinal_spline
from thinslice.physics.line_passes import LinePass, to_contiguous
from thinslice.physics.profile import reach_vox, slice_profile
from thinslice.settings import Profile
from thinslice.volume import patient_axes

PARALLEL_VOX = 0.01
"""Lines of which no two positions differ by more count as parallel: a hundredth of a voxel is seen nowhere."""

QUADRATURE_VOX = 0.25
"""Step at which interpolation is averaged over a pixel that is larger than the voxels."""

SEEN = 1e-6
"""A sample of which a smaller share lies inside the volume sees nothing of it."""


# Compared by identity: two arrays compared give an array, which is neither true nor false.
@dataclass(frozen=True, eq=False)
class StackAcquisition:
    """Says how one stack sees a volume: the linear operator A of ``stack = A volume``, whatever their positions.

    Every row sums to one where the volume is large enough. Where a slab reaches over the edge of the volume, what lies
    inside it carries the whole weight; `coverage` says how much that is.

    Attributes:
        shape: of the volume.
        affine: [4, 4] of the volume, voxel index -> patient millimetres.
        stack_shape: of the stack.
        stack_affine: [4, 4] of the stack, where its slices truly lie; motion [4, 4] in patient millimetres is taken
            into account as ``motion @ affine``.
        axis: the array axis of the stack across its slices.
        thickness_mm: slice thickness, the full width at half maximum of the profile.
        profile: see `thinslice.physics.profile.slice_profile`; None for voxels that see across the slices as they do
            within them, which is interpolation (`resample`), and for which the thickness does not matter.

    Example:
        >>> thick = np.diag([1.0, 1.0, 2.0, 1.0])
        >>> thick[2, 3] = 0.5
        >>> stack = StackAcquisition((1, 1, 4), np.eye(4), (1, 1, 2), thick, axis=2, thickness_mm=2.0, profile="box")
        >>> stack.forward(np.array([[[1.0, 3.0, 5.0, 5.0]]]))
        array([[[2., 5.]]])
        >>> stack.adjoint(np.array([[[2.0, 4.0]]]))
        array([[[1., 1., 2., 2.]]])
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    stack_shape: tuple[int, int, int]
    stack_affine: np.ndarray
    axis: int
    thickness_mm: float
    profile: Profile | None

    def forward(self, volume: np.ndarray) -> np.ndarray:
        """Returns what the scanner would acquire: A x, on the grid of the stack.

        Args:
            volume: on the grid of the volume. Computed in its dtype if that is a float one, otherwise in float32.
        """
        volume = volume if volume.dtype.kind == "f" else volume.astype(np.float32)
        seen = np.transpose(volume, self._volume_axes)[:, :, self._reached]
        for axis in self._order:
            seen = self._passes[axis].forward(seen, axis)
        seen = seen * self._inverse_inside.astype(volume.dtype, copy=False)
        return to_contiguous(np.transpose(seen, np.argsort(self._stack_axes)))

    def adjoint(self, stack: np.ndarray) -> np.ndarray:
        """Returns a stack carried back to the volume by the transpose: At y, with <A x, y> = <x, At y>.

        Args:
            stack: on the grid of the stack; otherwise as in `forward`.
        """
        stack = stack if stack.dtype.kind == "f" else stack.astype(np.float32)
        carried = self._carry_back(stack)
        turned = np.argsort(self._volume_axes)
        if carried.shape[2] == self.shape[self._volume_axes[2]]:
            return to_contiguous(np.transpose(carried, turned))
        volume: np.ndarray = np.zeros(self.shape, stack.dtype)
        np.transpose(volume, self._volume_axes)[:, :, self._reached] = carried
        return volume

    def add_adjoint(self, stack: np.ndarray, volume: np.ndarray) -> None:
        """Adds to a volume what `adjoint` returns: of few slices, without room for another volume.

        Args:
            stack: on the grid of the stack.
            volume: on the grid of the volume, changed.
        """
        np.transpose(volume, self._volume_axes)[:, :, self._reached] += self._carry_back(stack)

    def take_slices(self, chosen: range, motion: np.ndarray | None = None) -> "StackAcquisition":
        """Returns how some slices of the stack see the volume, each as it does in the stack.

        Args:
            chosen: their numbers, evenly apart.
            motion: [4, 4] patient millimetres, by which they have moved beyond the stack; default: not at all.
        """
        affine = np.array(self.stack_affine)
        affine[:3, 3] += chosen.start * affine[:3, self.axis]
        affine[:3, self.axis] *= chosen.step
        first, second, third = (len(chosen) if a == self.axis else n for a, n in enumerate(self.stack_shape))
        there = affine if motion is None else motion @ affine
        return replace(self, stack_shape=(first, second, third), stack_affine=there)

    def moved(self, motion: np.ndarray) -> "StackAcquisition":
        """Returns how the stack sees the volume where it has moved, [4, 4] patient millimetres."""
        return replace(self, stack_affine=motion @ self.stack_affine)

    def places_mm(self) -> np.ndarray:
        """Returns where all samples lie, [3, x, y, z] patient millimetres."""
        i, j, k = (np.arange(n) for n in self.stack_shape)
        affine = self.stack_affine
        lines = [affine[:3, 0, None] * i, affine[:3, 1, None] * j, affine[:3, 2, None] * k + affine[:3, 3:]]
        places: np.ndarray = lines[0][:, :, None, None] + lines[1][:, None, :, None] + lines[2][:, None, None, :]
        return places

    def _carry_back(self, stack: np.ndarray) -> np.ndarray:
        """Returns what `adjoint` gives to the voxels that are reached, in the order of the passes."""
        carried: np.ndarray = np.transpose(stack, self._stack_axes) * self._inverse_inside.astype(
            stack.dtype, copy=False
        )
        for axis in reversed(self._order):
            carried = self._passes[axis].adjoint(carried, axis)
        return carried

    @cached_property
    def coverage(self) -> np.ndarray:
        """The share of what each sample of the stack sees that lies inside the volume, 0 .. 1, float32, read-only.

        Samples of less than one are no good to compare: they saw what the volume does not hold.
        """
        inside = self._lines_inside()
        # Where all lines are inside for their whole length the profile alone decides.
        share = self._inside if inside is None else self._passes[2].forward(inside, 2)
        share = np.transpose(np.clip(share, 0.0, 1.0), np.argsort(self._stack_axes)).copy()
        share.setflags(write=False)  # it is kept
        return share

    @cached_property
    def _stack_axes(self) -> tuple[int, int, int]:
        """The axes of the stack in the order of the passes: those of the slices first, then the one across them."""
        first, second = (axis for axis in range(3) if axis != self.axis)
        return first, second, self.axis

    @cached_property
    def _volume_axes(self) -> tuple[int, int, int]:
        """The axes of the volume that lie nearest to `_stack_axes`."""
        turn = np.eye(4)
        spacing_mm = np.linalg.norm(self.affine[:3, :3], axis=0)
        between = np.linalg.solve(self.affine, self.stack_affine)[:3, :3]
        turn[:3, :3] = spacing_mm[:, None] * between
        nearest = patient_axes(turn)
        first, second, across = (nearest[axis] for axis in self._stack_axes)
        return first, second, across

    @cached_property
    def _between(self) -> tuple[np.ndarray, np.ndarray]:
        """C and c in the order of the passes: sample q of the stack lies at voxel C q + c."""
        between = np.linalg.solve(self.affine, self.stack_affine)
        matrix = between[np.ix_(self._volume_axes, self._stack_axes)]
        count = np.array(self.stack_shape)[list(self._stack_axes)]
        # What turns by less than can be seen is the rounding of headers, and parallel stacks are many times faster.
        slight = np.abs(matrix) * (count - 1) < PARALLEL_VOX
        np.fill_diagonal(slight, False)
        return np.where(slight, 0.0, matrix), between[list(self._volume_axes), 3]

    @cached_property
    def _reached(self) -> slice:
        """The voxels across the slices that any of them may see: few slices are not carried through a whole volume."""
        matrix, offset = self._between
        ends = np.array([[0, n - 1] for n in np.array(self.stack_shape)[list(self._stack_axes)]]) * matrix[2][:, None]
        reach = self._across(abs(matrix[2, 2]))[1] + 2
        size = self.shape[self._volume_axes[2]]
        first = int(np.clip(np.floor(offset[2] + ends.min(axis=1).sum() - reach), 0, size - 1))
        last = int(np.clip(np.ceil(offset[2] + ends.max(axis=1).sum() + reach), first, size - 1))
        return slice(first, last + 1)

    @cached_property
    def _reached_grid(self) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """C and c, and the size of the volume, counted from the first voxel that is reached."""
        matrix, offset = self._between
        sizes = [self.shape[axis] for axis in self._volume_axes]
        sizes[2] = self._reached.stop - self._reached.start
        return matrix, offset - [0, 0, self._reached.start], sizes

    @cached_property
    def _order(self) -> tuple[int, int, int]:
        """The order of the passes: the profile comes last, or first where the slices are parallel to the voxels."""
        matrix, _ = self._between
        is_parallel = not matrix[2, :2].any() and not matrix[:2, 2].any()
        # There both orders give the same, and few thick slices are less to interpolate than many thin ones.
        return (2, 0, 1) if is_parallel else (0, 1, 2)

    @cached_property
    def _passes(self) -> tuple[LinePass, LinePass, LinePass]:
        matrix, offset, sizes = self._reached_grid
        inverse = np.linalg.inv(matrix)
        counts = [self.stack_shape[axis] for axis in self._stack_axes]
        # The positions of a pass follow from C q + c with what is known by then: samples along the axes that were
        # passed, voxels along those that were not.
        along_0, along_1 = -inverse[0, 1] / inverse[0, 0], -inverse[0, 2] / inverse[0, 0]
        turn = matrix[1, 2] / matrix[2, 2]
        starts = (
            offset[0] - along_0 * offset[1] - along_1 * offset[2],
            offset[1] - turn * offset[2],
            offset[2],
        )
        steps = (1 / inverse[0, 0], matrix[1, 1] - turn * matrix[2, 1], matrix[2, 2])
        slopes = ((along_0, along_1), (matrix[1, 0] - turn * matrix[2, 0], turn), (matrix[2, 0], matrix[2, 1]))
        in_slices = [
            LinePass(sizes[axis], counts[axis], steps[axis], starts[axis], slopes[axis], *self._pixel(axis), True)
            for axis in (0, 1)
        ]
        across = LinePass(sizes[2], counts[2], steps[2], starts[2], slopes[2], *self._across(abs(matrix[2, 2])))
        return in_slices[0], in_slices[1], across

    def _across(self, step_vox: float) -> tuple[Callable[[np.ndarray], np.ndarray], float, bool]:
        """Returns how a slice sees the voxels across it, how far, and whether the outermost go on beyond the edge."""
        if self.profile is None:
            return *self._pixel(2), True
        profile, fwhm_vox = self.profile, self.thickness_mm / self._spacing_mm(self.axis) * step_vox
        return lambda distance: slice_profile(distance, fwhm_vox, profile), reach_vox(fwhm_vox, profile), False

    def _pixel(self, axis: int) -> tuple["Pixel", float]:
        """Returns how a pixel sees the voxels along an axis within the slices, and how far."""
        voxel_mm = float(np.linalg.norm(self.affine[:3, self._volume_axes[axis]]))
        scale = self._spacing_mm(self._stack_axes[axis]) / voxel_mm
        # Interpolation has the width of a voxel already; the squares of widths add up.
        pixel = Pixel(float(np.sqrt(max(scale**2 - 1, 0.0))))
        return pixel, pixel.reach_vox

    def _spacing_mm(self, axis: int) -> float:
        return float(np.linalg.norm(self.stack_affine[:3, axis]))

    def _lines_inside(self) -> np.ndarray | None:
        """Returns 1 where lines of the last pass lie inside the volume, else 0, [i, j, voxels]; None: everywhere."""
        matrix, offset, sizes = self._reached_grid
        counts = [self.stack_shape[axis] for axis in self._stack_axes]

        def find_inside(i: np.ndarray, j: np.ndarray, voxel: np.ndarray) -> np.ndarray:
            i, j = i[:, None, None].astype(np.float32), j[:, None].astype(np.float32)
            inside = np.ones((i.size, j.size, voxel.size), bool)
            for axis in (0, 1):
                turn = matrix[axis, 2] / matrix[2, 2]
                by_i, by_j = (float(matrix[axis, k] - turn * matrix[2, k]) for k in (0, 1))
                along = (offset[axis] + turn * (voxel - offset[2])).astype(np.float32)
                position = by_i * i + by_j * j + along
                inside &= np.abs(position - (sizes[axis] - 1) / 2) <= sizes[axis] / 2 + PARALLEL_VOX
            return inside

        # Positions are affine: where the corners are inside, so is everything between them.
        if find_inside(*(np.array([0, count - 1]) for count in (*counts[:2], sizes[2]))).all():
            return None
        return find_inside(*(np.arange(count) for count in (*counts[:2], sizes[2]))).astype(np.float32)

    @cached_property
    def _inside(self) -> np.ndarray:
        """The share of the slice profile that lies between the ends of the lines, [i, j, slices]."""
        counts = [self.stack_shape[axis] for axis in self._stack_axes]
        across = self._passes[2]
        if not any(across.slopes):
            line = across.forward(np.ones((1, 1, across.n_voxels)), 2)
            return np.broadcast_to(line, counts)
        return across.forward(np.ones((counts[0], counts[1], across.n_voxels), np.float32), 2)

    @cached_property
    def _inverse_inside(self) -> np.ndarray:
        """What makes up for the part of the profile that lies beyond the ends of the lines; 0 where all of it does."""
        inside = self._inside.astype(np.float64)
        return np.where(inside > SEEN, 1 / np.maximum(inside, SEEN), 0.0)


@dataclass(frozen=True)
class Pixel:
    """Says how a pixel sees the voxels along one of its sides: cubic interpolation, averaged over its width.

    Attributes:
        width_vox: of the average, in voxels; 0 for plain interpolation.

    Example:
        >>> Pixel(0.0)(np.array([-1.0, 0.0, 1.0])).round(6) + 0.0
        array([0., 1., 0.])
    """

    width_vox: float

    @property
    def reach_vox(self) -> float:
        """How far it sees."""
        return CARDINAL_REACH + self.width_vox / 2

    def __call__(self, distance_vox: np.ndarray) -> np.ndarray:
        """Returns its weights of voxels at some distances."""
        if self.width_vox < PARALLEL_VOX:
            return cardinal_spline(distance_vox)
        count = 2 * int(np.ceil(self.width_vox / QUADRATURE_VOX / 2)) + 1
        places = ((np.arange(count) + 0.5) / count - 0.5) * self.width_vox
        weights: np.ndarray = sum((cardinal_spline(distance_vox - at) for at in places), np.zeros_like(distance_vox))
        return weights / count


def resample(voxels: np.ndarray, affine: np.ndarray, shape: tuple[int, int, int], new_affine: np.ndarray) -> np.ndarray:
    """Returns a volume on another grid, at any angle: cubic interpolation, averaged where the new voxels are larger.

    Beyond its edges the volume goes on as it ends.

    Args:
        voxels: [x, y, z]. Computed in its dtype if that is a float one, otherwise in float32.
        affine: [4, 4] of the volume, voxel index -> patient millimetres.
        shape: of the answer.
        new_affine: of the answer.

    Example:
        >>> volume = np.arange(4.0).reshape(1, 1, 4)
        >>> shifted = np.eye(4)
        >>> shifted[2, 3] = 1.0
        >>> resample(volume, np.eye(4), (1, 1, 2), shifted)
        array([[[1., 2.]]])
    """
    x, y, z = voxels.shape
    return StackAcquisition((x, y, z), affine, shape, new_affine, axis=2, thickness_mm=1.0, profile=None).forward(
        voxels
    )
