"""Writes the acquisition as the numbers that a slab network is fed with, in inference and in training."""

import numpy as np

from thinslice.physics.profile import sd_over_fwhm
from thinslice.settings import Profile


def geometry_of(factor: float, thickness_over_spacing: float, profile: Profile) -> np.ndarray:
    """Returns the code [3] float32 of an acquisition: how the factor, the thickness and the profile differ from usual.

    Args:
        factor: slice spacing over thin spacing; 4 gives 0.
        thickness_over_spacing: 1 for touching slices gives 0.
        profile: 0 for a Gaussian, 1 for a box, and in between for what is in between by its standard deviation.

    Example:
        >>> geometry_of(4.0, 1.0, "box")
        array([0., 0., 1.], dtype=float32)
    """
    bell, box = sd_over_fwhm("gaussian"), sd_over_fwhm("box")
    shape = (bell - sd_over_fwhm(profile)) / (bell - box)
    # By ratio, and the thickness stretched by four: the numbers then vary about equally much.
    return np.array([np.log2(factor) - 2.0, 4.0 * (thickness_over_spacing - 1.0), shape], dtype=np.float32)


def position_code(offset: np.ndarray) -> np.ndarray:
    """Returns the code [p, 7] float32 of where thin slices lie: the offset itself, and waves along it.

    Args:
        offset: [p] distances from the centre of a thick slice, in units of the slice spacing (-1 .. 1).

    Example:
        >>> position_code(np.array([0.0])).shape
        (1, 7)
    """
    offset = np.asarray(offset, dtype=np.float64)
    # These waves are part of what model files compute: with others every file has to be trained anew.
    waves = [f(2 * np.pi * n * offset) for n in (0.5, 1.0, 2.0) for f in (np.sin, np.cos)]
    return np.stack([2.0 * offset, *waves], axis=1).astype(np.float32)
