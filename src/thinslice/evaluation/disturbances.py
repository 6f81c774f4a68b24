"""Disturbs simulated slices as scanners do: noise, slices of an interleaved acquisition that differ, small motion."""

from dataclasses import replace

import numpy as np

from thinslice.errors import PlanRefused
from thinslice.evaluation.conditions import Condition
from thinslice.physics.intensity import intensity_range
from thinslice.physics.noise import add_noise
from thinslice.volume import Volume

SEED = 20
"""Of the noise: every model and every program version sees the same. Its value means nothing."""


def disturb(truth: Volume, thick: Volume, axis: int, condition: Condition) -> Volume:
    """Returns the thick slices as a scanner would have given them: moved, brightened, then noisy, in this order.

    The anatomy moves first, then the receiver's gain differs, and noise comes last. Where a condition asks for none of
    it, the slices are returned as they are.

    Args:
        truth: sets the intensity range in which noise is stated, and the level that stays when slices get brighter.
        thick: see `thinslice.evaluation.benchmark.simulate`.
        axis: the array axis across the slices.
        condition: what is asked for.

    Raises:
        PlanRefused: Rician noise for a scan with values below zero, which no magnitude has.
    """
    low, high = intensity_range(truth.voxels)
    slices = np.moveaxis(thick.voxels, axis, 0)
    if condition.shift_px:
        slices = move_every_other(slices, condition.shift_px)
    if condition.brightness_percent:
        slices = brighten_every_other(slices, condition.brightness_percent, low)
    if condition.noise_percent:
        if condition.noise_kind == "rician" and truth.voxels.min() < 0:
            raise PlanRefused(
                got=f"Rician noise for values down to {float(truth.voxels.min()):g}",
                need="a magnitude image, which has none below zero",
                next="ask for Gaussian noise",
                code="rician-below-zero",
            )
        deviation = condition.noise_percent / 100 * (high - low)
        is_rician = condition.noise_kind == "rician"
        slices = add_noise(slices.astype(np.float64), deviation, is_rician, np.random.default_rng(SEED))
    voxels = np.ascontiguousarray(np.moveaxis(slices, 0, axis), dtype=np.float32)
    return replace(thick, voxels=voxels)


def brighten_every_other(slices: np.ndarray, percent: float, low: float = 0.0) -> np.ndarray:
    """Returns slices [n, ...] of which every second one is brighter, measured from ``low``.

    Example:
        >>> brighten_every_other(np.array([[10.0], [10.0], [10.0]]), percent=20)
        array([[10.],
               [12.],
               [10.]])
    """
    brighter = np.array(slices)
    # From the dark end of the intensity range: in Hounsfield units it is air that stays, not water.
    brighter[1::2] = low + (brighter[1::2] - low) * (1 + percent / 100)
    return brighter


def move_every_other(slices: np.ndarray, pixels: float) -> np.ndarray:
    """Returns slices [n, h, w] of which every second one is moved along its first axis, mirrored at the edges.

    By a phase ramp in the frequency domain: nothing is blurred, so that what differs is the place alone.

    Example:
        >>> move_every_other(np.arange(8.0).reshape(2, 4, 1), pixels=1)[1].ravel().round(6)
        array([4., 4., 5., 6.])
    """
    moved = np.array(slices)
    others = moved[1::2]
    # Mirrored, the slice goes on without a jump where it is repeated: there would be ringing.
    spectrum = np.fft.rfft(np.concatenate([others, others[:, ::-1]], axis=1), axis=1)
    length = 2 * others.shape[1]
    ramp = np.exp(-2j * np.pi * np.fft.rfftfreq(length) * pixels)
    moved[1::2] = np.fft.irfft(spectrum * ramp[:, None], length, axis=1)[:, : others.shape[1]]
    return moved
