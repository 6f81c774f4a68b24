"""How a stack sees a volume of which the body moved between its slices: every slice lies where it was acquired."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from thinslice.physics.stack_acquisition import StackAcquisition


@dataclass(frozen=True, eq=False)
class SplitAcquisition:
    """Says how a stack sees a volume each of whose slices has moved by itself; it is used like `StackAcquisition`.

    Slices that moved alike and lie evenly apart, such as every second one, are computed together.

    Attributes:
        whole: how the stack would see it without that.
        motions: [slices, 4, 4] patient millimetres, by which each slice has moved beyond the stack.

    Example:
        >>> thick = np.diag([1.0, 1.0, 2.0, 1.0])
        >>> thick[2, 3] = 0.5
        >>> whole = StackAcquisition((1, 1, 6), np.eye(4), (1, 1, 2), thick, axis=2, thickness_mm=2.0, profile="box")
        >>> motions = np.stack([np.eye(4), np.eye(4)])
        >>> motions[1, 2, 3] = 2.0
        >>> SplitAcquisition(whole, motions).forward(np.array([[[1.0, 3.0, 5.0, 5.0, 7.0, 9.0]]]))
        array([[[2., 8.]]])
    """

    whole: StackAcquisition
    motions: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the volume."""
        return self.whole.shape

    @property
    def affine(self) -> np.ndarray:
        """Of the volume."""
        return self.whole.affine

    @property
    def stack_shape(self) -> tuple[int, int, int]:
        """Of the stack."""
        return self.whole.stack_shape

    @property
    def stack_affine(self) -> np.ndarray:
        """Of the stack as a whole."""
        return self.whole.stack_affine

    @property
    def axis(self) -> int:
        """The array axis of the stack across its slices."""
        return self.whole.axis

    @cached_property
    def parts(self) -> list[tuple[range, StackAcquisition]]:
        """Slices that are computed together, and how they see the volume."""
        alike: dict[bytes, list[int]] = {}
        for number, motion in enumerate(self.motions):
            alike.setdefault(motion.tobytes(), []).append(number)
        chosen = []
        for numbers in alike.values():
            step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
            evenly = range(numbers[0], numbers[-1] + 1, step)
            chosen += [evenly] if list(evenly) == numbers else [range(one, one + 1) for one in numbers]
        return [(one, self.whole.take_slices(one, self.motions[one.start])) for one in chosen]

    def forward(self, volume: np.ndarray) -> np.ndarray:
        """Returns what the scanner would acquire; as `StackAcquisition.forward`."""
        stack = np.empty(self.stack_shape, volume.dtype if volume.dtype.kind == "f" else np.float32)
        for chosen, part in self.parts:
            stack[self._within(chosen)] = part.forward(volume)
        return stack

    def adjoint(self, stack: np.ndarray) -> np.ndarray:
        """Returns a stack carried back to the volume; as `StackAcquisition.adjoint`."""
        volume = np.zeros(self.shape, stack.dtype if stack.dtype.kind == "f" else np.float32)
        for chosen, part in self.parts:
            part.add_adjoint(stack[self._within(chosen)], volume)
        return volume

    @cached_property
    def coverage(self) -> np.ndarray:
        """The share of what each sample sees that lies inside the volume; as `StackAcquisition.coverage`."""
        share = np.empty(self.stack_shape, np.float32)
        for chosen, part in self.parts:
            share[self._within(chosen)] = part.coverage
        share.setflags(write=False)  # it is kept
        return share

    def places_mm(self) -> np.ndarray:
        """Returns where all samples lie, [3, x, y, z]."""
        places = np.empty((3, *self.stack_shape))
        for chosen, part in self.parts:
            places[(slice(None), *self._within(chosen))] = part.places_mm()
        return places

    def moved(self, motion: np.ndarray) -> "SplitAcquisition":
        """Returns the same where the stack has moved once more, as a whole."""
        back = np.linalg.inv(motion)
        return SplitAcquisition(self.whole.moved(motion), motion @ self.motions @ back)

    def _within(self, chosen: range) -> tuple[slice, ...]:
        """Returns the place of slices in an array of the stack."""
        return tuple(
            slice(chosen.start, chosen.stop, chosen.step) if axis == self.axis else slice(None) for axis in range(3)
        )
