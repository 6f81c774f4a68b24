"""Laws of the intensity range."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from faults import catches
from strategies import seeds
from thinslice.physics.intensity import intensity_range


@catches("physics/intensity.py", "[np.floor(rank), np.ceil(rank)]", "[np.floor(rank), np.floor(rank)]")
@catches("physics/intensity.py", 'side="right"', 'side="left"')
@catches("physics/intensity.py", "(rank - ranks[0])", "0.5")
@given(
    seed=seeds,
    dtype=st.sampled_from([np.int8, np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64]),
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    spread=st.sampled_from([3.0, 40.0, 1e5]),
)
def test_the_intensity_range_is_numpys_percentiles_for_every_kind_of_number(seed, dtype, shape, spread):
    values = np.random.default_rng(seed).normal(0, spread, shape)
    if np.dtype(dtype).kind != "f":
        values = np.clip(np.rint(values), np.iinfo(dtype).min, np.iinfo(dtype).max)
    voxels = values.astype(dtype)
    low, high = np.percentile(voxels.astype(np.float64), [0.5, 99.5])
    wanted = (low, high) if high > low else (low, low + 1)
    for turned in (voxels, voxels.T, voxels[::-1]):
        assert intensity_range(turned) == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_what_is_not_finite_does_not_count_and_nothing_has_a_range_too():
    voxels = np.array([np.nan, 1.0, np.inf, 3.0, -np.inf])
    assert intensity_range(voxels) == intensity_range(np.array([1.0, 3.0]))
    assert intensity_range(np.full(4, np.nan)) == (0.0, 1.0)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_one_bright_voxel_in_a_dark_scan_still_has_a_range(dtype):
    voxels = np.zeros(10_000, dtype)
    voxels[7] = 200
    assert intensity_range(voxels) == (0.0, 200.0)
