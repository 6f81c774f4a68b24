"""What a slab network is told about the acquisition, in numbers: shared by inference (numpy) and training (torch)."""

import numpy as np

from thinslice.settings import Profile


def geometry_of(factor: float, thickness_over_spacing: float, profile: Profile) -> np.ndarray:
    """[3] float32: log2 of spacing over thin spacing, thickness over spacing, 1 for a box profile."""
    return np.array(
        [np.log2(factor) - 2.0, 4.0 * (thickness_over_spacing - 1.0), float(profile == "box")], dtype=np.float32
    )


def position_code(offset: np.ndarray) -> np.ndarray:
    """[p] offsets from the slice centre, in units of the slice spacing (-1 .. 1) -> [p, 7] float32."""
    offset = np.asarray(offset, dtype=np.float64)
    waves = [f(2 * np.pi * n * offset) for n in (0.5, 1.0, 2.0) for f in (np.sin, np.cos)]
    return np.stack([2.0 * offset, *waves], axis=1).astype(np.float32)
