"""What a scanner does to thick slices besides averaging: noise, uneven brightness, slices moved against each other.

Drawn first (`Faults`), then applied to slices [slice, line, column] whose dark is 0 and whose intensity range is 1.
"""

from dataclasses import dataclass

import numpy as np

from thinslice.physics.acquisition import apply_along_first_axis
from thinslice.physics.interpolation import cubic_matrix

TILT = 0.5
"""How far the brightness of a slice that differs from its neighbours' differs more on one side of a patch and less on
the other, as a share: coils and saturation by the neighbouring slice do not act alike everywhere."""

MOST_SIGMA = 3.0
"""Random brightness departs so many standard deviations at most."""


@dataclass(frozen=True)
class Faults:
    """The faults of the slices of one patch, but for their noise, whose level is that of the batch.

    Attributes:
        alternating: every other slice is brighter by this share.
        random: standard deviation of the brightness from slice to slice, as a share.
        tilt: direction along lines and columns in which these two vary in the plane, and how much.
        shift: pixels along lines and columns by which every other slice lies farther.
        bias: how much the sensitivity of a coil changes over the patch, as a share.
        phase: of that change along lines and columns, in turns.
        rician: whether the noise is that of a magnitude image.
    """

    alternating: float = 0.0
    random: float = 0.0
    tilt: tuple[float, float] = (0.0, 0.0)
    shift: tuple[float, float] = (0.0, 0.0)
    bias: float = 0.0
    phase: tuple[float, float] = (0.0, 0.0)
    rician: bool = False


NO_FAULTS = Faults()
"""Slices as a profile makes them."""


@dataclass(frozen=True)
class FaultRanges:
    """What faults are drawn from.

    Attributes:
        usual: share of acquisitions with faults that are typical but for these.
        misstated: share of them of which a Gaussian is stated, of the true standard deviation with an error.
        width_error: standard deviation of that error, in slice spacings: what a blind estimate is off by.
        noise, noisy: lowest and highest standard deviation, in intensity ranges, and the share of batches with it.
        noise_error: standard deviation of the logarithm of what is stated of the noise over what it is.
        rician: share of patches whose noise is that of a magnitude image.
        alternating, random, bias, shift: the largest of each, see `Faults`.
        share: share of patches that have each of these four.
    """

    usual: float = 0.35
    misstated: float = 0.65
    width_error: float = 0.03
    noise: tuple[float, float] = (0.005, 0.06)
    noisy: float = 0.65
    noise_error: float = 0.2
    rician: float = 0.5
    alternating: float = 0.12
    random: float = 0.04
    bias: float = 0.2
    shift: float = 0.7
    share: float = 0.25


def draw_faults(rng: np.random.Generator, ranges: FaultRanges) -> Faults:
    """Draws the faults of one patch."""
    # All of them, used or not: so whether one is there changes none of the others.
    has, size = rng.random(4) < ranges.share, rng.uniform(-1, 1, 4)
    tilt, phase, angle = rng.uniform(-TILT, TILT, 2), rng.random(2), rng.uniform(0, 2 * np.pi)
    shift = has[3] * ranges.shift * abs(size[3])
    return Faults(
        alternating=float(has[0] * ranges.alternating * size[0]),
        random=float(has[1] * ranges.random * abs(size[1])),
        tilt=(float(tilt[0]), float(tilt[1])),
        shift=(float(shift * np.sin(angle)), float(shift * np.cos(angle))),
        bias=float(has[2] * ranges.bias * size[2]),
        phase=(float(phase[0]), float(phase[1])),
        rician=bool(rng.random() < ranges.rician),
    )


def bias_field(faults: Faults, height: int, width: int) -> np.ndarray:
    """Returns the sensitivity of the coil over a patch [height, width] float32: half a wave along either side.

    Example:
        >>> bias_field(NO_FAULTS, 1, 2)
        array([[1., 1.]], dtype=float32)
    """
    waves = [
        np.sin(2 * np.pi * (phase + np.linspace(-0.25, 0.25, n)))
        for phase, n in zip(faults.phase, (height, width), strict=True)
    ]
    field: np.ndarray = 1 + 0.5 * faults.bias * (waves[0][:, None] + waves[1][None, :])
    return field.astype(np.float32)


def alter_slices(slices: np.ndarray, faults: Faults, rng: np.random.Generator) -> np.ndarray:
    """Returns slices brighter and darker than each other, and moved against each other; on average neither.

    Args:
        slices: [slice, line, column], the signal.
        faults: of the patch.
        rng: for brightness that is random from slice to slice.

    Example:
        >>> alter_slices(np.ones((2, 1, 1)), Faults(alternating=0.1), np.random.default_rng(0)).round(3).ravel()
        array([0.952, 1.048])
    """
    other = np.where(np.arange(len(slices)) % 2, 0.5, -0.5)
    # The truth has the brightness in the middle: half of the difference goes either way.
    change = other * faults.alternating / (1 + 0.5 * faults.alternating)
    change = change + faults.random * np.clip(rng.standard_normal(len(slices)), -MOST_SIGMA, MOST_SIGMA)
    if change.any():
        sides = [t * np.linspace(-1, 1, n) for t, n in zip(faults.tilt, slices.shape[1:], strict=True)]
        tilt = 1 + sides[0][:, None] + sides[1][None, :]
        slices = slices * (1 + change[:, None, None] * tilt[None]).astype(slices.dtype)
    for axis, shift in enumerate(faults.shift, start=1):
        if shift:
            slices = np.stack([_move(one, axis - 1, shift * way) for one, way in zip(slices, other, strict=True)])
    return slices


def _move(plane: np.ndarray, axis: int, pixels: float) -> np.ndarray:
    """Returns a plane whose content lies farther along an axis, by cubic interpolation."""
    length = plane.shape[axis]
    position = np.clip(np.arange(length) - pixels, 0, length - 1)
    moved = apply_along_first_axis(cubic_matrix(position, length), np.moveaxis(plane, axis, 0))
    return np.moveaxis(moved, 0, axis)
