"""What the slices of a stack say of how they moved: least squares for each slice, added up for slices that moved alike.

A turn ``w`` about a point and a shift ``t`` move a sample that lies at ``p`` from that point by ``w x p + t``, and by
that times the gradient of the volume it sees more. So the squares that are left after a small motion are a quadratic
function of it, with one factor of brightness beside. Of several slices that moved together the functions are added:
once they are known for every slice, a motion of the whole stack, of its packages and of its single slices costs
nothing more to find, nor does it to tell which of them is true: a motion that is found from one half of the samples has
to explain the other half.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from thinslice.compute.stacks import WHOLLY_SEEN, ObservedStack, VoxelGrid
from thinslice.physics.split_acquisition import SplitAcquisition
from thinslice.physics.stack_acquisition import StackAcquisition

OUTLIER_DEVIATIONS = 3.0
"""Samples that are so many robust standard deviations off have no more say than those at that distance (Huber)."""

HALF_MM = 10.0
"""Side of the squares that belong to one half of the samples, as of a chess board: errors of what is seen are alike
over a few millimetres, and neighbours would vouch for each other."""

UNKNOWNS = 7
"""Three of a turn, three of a shift, and one of brightness."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """Says how well each slice of a stack would fit after a small motion.

    Attributes:
        normal: [2, slices, 7, 7], of both halves of the samples: the quadratic part, about ``middle_mm``.
        moment: [2, slices, 7]: the linear part.
        square: [2, slices]: what is left without motion.
        count: how many samples are compared.
        rms: root mean square of what is left, outliers bounded.
        centres_mm: [slices, 3], the middle of each slice.
        middle_mm: [3], that of the stack.
    """

    normal: np.ndarray
    moment: np.ndarray
    square: np.ndarray
    count: int
    rms: float
    centres_mm: np.ndarray
    middle_mm: np.ndarray

    def explained(self, groups: np.ndarray) -> float:
        """Returns the share of the squares that vanishes where the slices of each group move together.

        What is found from either half of the samples is tried on the other one, so that chance explains nothing: it is
        below zero where there is no motion. Differences in brightness are not counted.

        Args:
            groups: [slices], the number of the group of each slice.
        """
        normal, moment, _ = self._add_up(groups)
        usual = normal.mean(axis=(0, 1))
        explained = 0.0
        for half in range(2):
            for group in range(normal.shape[1]):
                found = np.linalg.lstsq(normal[half, group] + DAMPING * usual, moment[half, group], rcond=None)[0]
                brightness = np.zeros(UNKNOWNS)
                brightness[6] = moment[half, group, 6] / max(normal[half, group, 6, 6], 1e-12)
                other_normal, other_moment = normal[1 - half, group], moment[1 - half, group]
                for motion, sign in ((found, 1), (brightness, -1)):
                    explained += sign * float(2 * other_moment @ motion - motion @ other_normal @ motion)
        return explained / max(float(self.square.sum()), 1e-12)

    def step(self, groups: np.ndarray, apart: int = 0) -> np.ndarray:
        """Returns [slices, 4, 4], the motion by which each slice fits best, one for each group of slices.

        Args:
            groups: [slices], the number of the group of each slice.
            apart: groups whose numbers are so far apart move nearly alike; 0: each for itself.
        """
        halves, moments, centres_mm = self._add_up(groups)
        normal, moment = halves.sum(axis=0), moments.sum(axis=0)
        count, usual = len(normal), normal.mean(axis=0)
        whole = np.zeros((count, UNKNOWNS, count, UNKNOWNS))
        for group in range(count):
            whole[group, :, group] = normal[group]
            if count > 1:
                whole[group, :, group] += (DAMPING if apart == 0 else LITTLE_DAMPING) * usual
        for one in range(count - apart if apart else 0):
            # How far apart two motions are is counted where the slices lie.
            between = (centres_mm[one] + centres_mm[one + apart]) / 2
            pairs = [(one, _about(between, centres_mm[one])), (one + apart, -_about(between, centres_mm[one + apart]))]
            for first, left in pairs:
                for second, right in pairs:
                    whole[first, :, second] += COUPLING * left.T @ usual @ right
        size = count * UNKNOWNS
        found = np.linalg.lstsq(whole.reshape(size, size), moment.ravel(), rcond=None)[0].reshape(count, UNKNOWNS)
        steps = np.stack([rigid(one[:3], one[3:6], centre) for one, centre in zip(found, centres_mm, strict=True)])
        of_slices: np.ndarray = steps[groups]
        return of_slices

    def _add_up(self, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns normal [2, groups, 7, 7] and moment [2, groups, 7] about the middle of each group, and these."""
        normals, moments, centres = [], [], []
        for group in range(int(groups.max()) + 1):
            chosen = groups == group
            centres.append(self.centres_mm[chosen].mean(axis=0))
            about = _about(self.middle_mm, centres[-1])
            normals.append(about.T @ self.normal[:, chosen].sum(axis=1) @ about)
            moments.append(self.moment[:, chosen].sum(axis=1) @ about)
        return np.stack(normals, axis=1), np.stack(moments, axis=1), np.stack(centres)


DAMPING = 0.1
"""Of what the mean group says, added to each: one that says little stays where it is, and follows in several steps."""

LITTLE_DAMPING = 1e-3
"""Likewise where a group that says little follows its neighbours."""

COUPLING = 0.1
"""How much neighbours count against each other in that, over what the mean group says."""


def gather(
    one: ObservedStack,
    acquisition: StackAcquisition | SplitAcquisition,
    volume: np.ndarray,
    slopes: Sequence[np.ndarray],
    known: np.ndarray,
) -> Evidence:
    """Returns what the slices of a stack say of how they moved against a volume.

    Args:
        one: the stack.
        acquisition: how it sees the grid from where it is thought to lie.
        volume: on the grid, what the other stacks say.
        slopes: its gradient along the three patient axes, per millimetre (`find_slopes_mm`).
        known: float32, 1 where they say something, else 0.
    """
    axis = acquisition.axis
    counted = (acquisition.coverage >= WHOLLY_SEEN) & (one.counted > 0) & (acquisition.forward(known) > 0.9)
    seen = acquisition.forward(volume).astype(np.float64)
    gain = float(np.vdot(one.samples[counted], seen[counted]) / max(np.vdot(seen[counted], seen[counted]), 1e-12))
    left = counted * (one.samples - gain * seen)
    deviation = 1.4826 * float(np.median(np.abs(left[counted]))) + 1e-9 if counted.any() else 1.0
    robust = counted * np.minimum(1.0, OUTLIER_DEVIATIONS * deviation / np.maximum(np.abs(left), 1e-12))
    places = np.moveaxis(acquisition.places_mm(), axis + 1, 1)
    centres_mm = places.mean(axis=(2, 3)).T
    middle_mm = centres_mm.mean(axis=0)
    half = np.moveaxis(_halves(acquisition), axis, 0)
    slices = [np.moveaxis(acquisition.forward(slope), axis, 0) for slope in slopes]
    seen, left = np.moveaxis(seen, axis, 0), np.moveaxis(left, axis, 0)
    robust = np.moveaxis(robust, axis, 0)
    count = len(seen)
    normal, moment, square = np.zeros((2, count, 7, 7)), np.zeros((2, count, 7)), np.zeros((2, count))
    for number in range(count):
        steep = gain * np.stack([slope[number] for slope in slices]).astype(np.float64)
        turned = np.cross(places[:, number] - middle_mm[:, None, None], steep, axis=0)
        causes = np.concatenate([turned, steep, seen[None, number]]).reshape(UNKNOWNS, -1)
        for which in range(2):
            weight = (robust[number] * (half[0] == which)).ravel()
            normal[which, number] = (causes * weight) @ causes.T
            moment[which, number] = (causes * weight) @ left[number].ravel()
            square[which, number] = weight @ left[number].ravel() ** 2
    rms = float(np.sqrt(square.sum() / max(float(robust.sum()), 1e-12)))
    return Evidence(normal, moment, square, int(np.count_nonzero(counted)), rms, centres_mm, middle_mm)


def find_slopes_mm(volume: np.ndarray, grid: VoxelGrid) -> list[np.ndarray]:
    """Returns the gradient of a volume on a grid along the three patient axes, per millimetre."""
    along = np.stack(np.gradient(volume))
    to_voxels = np.linalg.inv(grid.affine[:3, :3])
    return [np.einsum("a,axyz->xyz", to_voxels[:, patient].astype(volume.dtype), along) for patient in range(3)]


def rigid(turn: np.ndarray, shift: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Returns the motion that turns about a point by a vector, whose length is the angle, and then shifts.

    Example:
        >>> rigid(np.array([0, 0, np.pi / 2]), np.zeros(3), np.array([1.0, 0, 0])).round(6)[:2] + 0.0
        array([[ 0., -1.,  0.,  1.],
               [ 1.,  0.,  0., -1.]])
    """
    angle = float(np.linalg.norm(turn))
    x, y, z = turn / angle if angle > 0 else turn
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    rotation = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    motion = np.eye(4)
    motion[:3, :3] = rotation
    motion[:3, 3] = centre + shift - rotation @ centre
    return motion


def _about(middle_mm: np.ndarray, other_mm: np.ndarray) -> np.ndarray:
    """Returns [7, 7] that makes of a motion about another point the same one about a middle."""
    x, y, z = middle_mm - other_mm
    matrix = np.eye(UNKNOWNS)
    matrix[3:6, :3] = [[0, z, -y], [-z, 0, x], [y, -x, 0]]
    return matrix


def _halves(acquisition: StackAcquisition | SplitAcquisition) -> np.ndarray:
    """Returns 0 or 1 for the samples of a slice, in squares like those of a chess board; broadcasts over a stack."""
    number = np.zeros((1, 1, 1), int)
    for axis in range(3):
        if axis != acquisition.axis:
            pixel_mm = float(np.linalg.norm(acquisition.stack_affine[:3, axis]))
            line = (np.arange(acquisition.stack_shape[axis]) * pixel_mm / HALF_MM).astype(int)
            number = number + line.reshape([-1 if other == axis else 1 for other in range(3)])
    return number % 2
