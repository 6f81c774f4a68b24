"""Laws of the baselines, against implementations that are not ours."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from faults import catches
from strategies import interpolations, seeds
from thinslice.physics.interpolation import INTERPOLATIONS, cubic_matrix, lanczos_matrix, linear_matrix, nearest_matrix

sizes = st.integers(1, 14)


def positions_inside(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, n - 0.5, 25)


@catches("physics/interpolation.py", "reach=2) @ np.linalg.inv(knots)", "reach=2)")
@catches("physics/interpolation.py", "period = max(2 * (n_thick - 1), 1)", "period = max(2 * n_thick - 1, 1)")
@given(n=st.integers(2, 14), seed=seeds)
def test_cubic_equals_scipy(n, seed):
    values, position = np.random.default_rng(seed).random(n), positions_inside(n, seed)
    wanted = ndimage.map_coordinates(values, position[None], order=3, mode="mirror")
    # float64 on both sides; scipy's recursive prefilter starts from a truncated sum (1e-15 of the values).
    np.testing.assert_allclose(cubic_matrix(position, n) @ values, wanted, atol=1e-10)


@given(n=sizes, seed=seeds)
def test_linear_equals_numpy(n, seed):
    values, position = np.random.default_rng(seed).random(n), positions_inside(n, seed)
    np.testing.assert_allclose(
        linear_matrix(position, n) @ values, np.interp(position, np.arange(n), values), atol=1e-13
    )


@catches("physics/interpolation.py", "np.floor(np.asarray(position) + 0.5)", "np.floor(np.asarray(position))")
@given(n=sizes, seed=seeds)
def test_nearest_takes_the_closest_slice(n, seed):
    values, position = np.random.default_rng(seed).random(n), positions_inside(n, seed)
    wanted = [values[np.argmin(np.abs(np.arange(n) - p))] for p in position]
    np.testing.assert_array_equal(nearest_matrix(position, n) @ values, wanted)


def test_lanczos_is_the_windowed_sinc():
    row = lanczos_matrix(np.array([10.3]), 21)[0]
    distance = 10.3 - np.arange(21)
    kernel = np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
    np.testing.assert_allclose(row, kernel / kernel.sum(), atol=1e-14)


@given(name=interpolations, n=sizes)
def test_slices_are_kept_at_their_own_positions(name, n):
    np.testing.assert_allclose(INTERPOLATIONS[name](np.arange(float(n)), n), np.eye(n), atol=1e-12)


@given(name=interpolations, n=sizes, seed=seeds)
def test_flat_stays_flat(name, n, seed):
    matrix = INTERPOLATIONS[name](positions_inside(n, seed), n)
    assert matrix.shape == (25, n)
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-12)


@given(name=interpolations, n=st.integers(2, 12), seed=seeds)
def test_turning_the_stack_over_turns_the_answer_over(name, n, seed):
    position = positions_inside(n, seed)
    forward, backward = INTERPOLATIONS[name](position, n), INTERPOLATIONS[name](n - 1 - position, n)
    np.testing.assert_allclose(forward, backward[:, ::-1], atol=1e-12)


@pytest.mark.parametrize("name", ["linear", "cubic"])
def test_a_ramp_stays_a_ramp_away_from_the_ends(name):
    position = np.linspace(8, 12, 33)
    # The mirrored ends of the spline are felt as 0.27^8 = 3e-5 of a slice step, eight slices away.
    np.testing.assert_allclose(INTERPOLATIONS[name](position, 21) @ np.arange(21.0), position, atol=1e-4)
