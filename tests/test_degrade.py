"""Laws of thin to thick, and of the projection back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import profiles, seeds
from thinslice.degrade import NOISE_LEVEL, along_first_axis, correction_matrix, damping_of, project, spread, thicken
from thinslice.profile import profile_matrix


def acquisition(n: int, factor: float, ratio: float, profile: str) -> np.ndarray:
    return profile_matrix((factor - 1) / 2 + factor * np.arange(n), round(n * factor), factor * ratio, profile)


acquisitions = st.builds(acquisition, st.integers(2, 9), st.floats(1.6, 6.0), st.floats(0.6, 1.2), profiles)


@given(matrix=acquisitions, seed=seeds)
def test_projection_without_noise_gives_back_what_was_acquired(matrix, seed):
    rng = np.random.default_rng(seed)
    thin, thick = rng.standard_normal((matrix.shape[1], 2, 3)), rng.standard_normal((len(matrix), 2, 3))
    # float64; A At has a condition number below 1e4 for these thicknesses.
    np.testing.assert_allclose(thicken(project(thin, thick, matrix, noise=0), matrix), thick, atol=1e-10)


@given(matrix=acquisitions, seed=seeds)
def test_projection_leaves_a_consistent_answer_alone(matrix, seed):
    thin = np.random.default_rng(seed).standard_normal((matrix.shape[1], 4))
    np.testing.assert_allclose(project(thin, thicken(thin, matrix), matrix), thin, atol=1e-12)


@given(matrix=acquisitions, seed=seeds)
def test_projection_is_the_smallest_change_that_agrees(matrix, seed):
    rng = np.random.default_rng(seed)
    thin, thick = rng.standard_normal((matrix.shape[1], 4)), rng.standard_normal((len(matrix), 4))
    change = project(thin, thick, matrix, noise=0) - thin
    smallest = np.linalg.pinv(matrix) @ (thick - matrix @ thin)
    np.testing.assert_allclose(change, smallest, atol=1e-8)


@given(matrix=acquisitions, seed=seeds)
def test_projection_with_noise_is_the_regularised_least_squares_answer(matrix, seed):
    rng = np.random.default_rng(seed)
    thin, thick = rng.standard_normal((matrix.shape[1], 4)), rng.standard_normal((len(matrix), 4))
    damping = NOISE_LEVEL * np.median((matrix @ matrix.T).sum(axis=1))
    change = project(thin, thick, matrix) - thin
    # The gradient of |A (x + d) - y|^2 + damping |d|^2 vanishes at the answer.
    gradient = spread(thicken(thin + change, matrix) - thick, matrix) + damping * change
    np.testing.assert_allclose(gradient, 0, atol=1e-10)


@pytest.mark.parametrize("noise", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("ratio", [0.75, 1.0, 1.25])
@pytest.mark.parametrize(("shift", "n_thin"), [(1.5, 240), (0.0, 237)], ids=["fov", "centres"])
def test_the_damping_is_the_noise_in_units_of_what_a_flat_image_keeps(shift, n_thin, ratio, noise):
    matrix = profile_matrix(shift + 4.0 * np.arange(60), n_thin, 4.0 * ratio)
    inside = matrix[10:50] @ matrix[10:50].T
    assert damping_of(matrix, noise) == pytest.approx(noise * np.linalg.eigvalsh(inside)[-1], rel=0.01)


@given(matrix=acquisitions, seed=seeds)
def test_projection_never_moves_away_from_the_truth(matrix, seed):
    rng = np.random.default_rng(seed)
    truth, guess = rng.standard_normal((2, matrix.shape[1], 5))
    answer = project(guess, thicken(truth, matrix), matrix)
    assert np.linalg.norm(answer - truth) <= np.linalg.norm(guess - truth) * (1 + 1e-12)


@given(matrix=acquisitions, value=st.floats(-1000, 1000))
def test_flat_stays_flat(matrix, value):
    thin = np.full((matrix.shape[1], 2, 2), value)
    np.testing.assert_allclose(thicken(thin, matrix), value, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(project(thin, thicken(thin, matrix), matrix), value, rtol=1e-12, atol=1e-12)


@given(matrix=acquisitions)
def test_the_correction_fades_with_the_noise_level(matrix):
    sizes = [
        np.linalg.norm(correction_matrix(matrix, damping_of(matrix, noise))) for noise in (0.0, 0.01, 0.1, 1.0, 1e6)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 1e-4 * sizes[0]


@given(seed=seeds, dtype=st.sampled_from([np.float32, np.float64]))
def test_a_matrix_acts_on_the_first_axis_only_and_keeps_the_dtype(seed, dtype):
    rng = np.random.default_rng(seed)
    matrix, array = rng.standard_normal((3, 5)), rng.standard_normal((5, 2, 4)).astype(dtype)
    answer = along_first_axis(matrix, array)
    assert answer.dtype == dtype
    np.testing.assert_allclose(answer, np.einsum("mn,nyx->myx", matrix, array), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, bool])
def test_whole_numbers_are_made_thick_like_any_others(dtype):
    matrix = profile_matrix(np.array([1.5, 5.5]), 8, 4.0)
    thin = (np.arange(0, 240, 30)[:, None] % 77).astype(dtype)
    thick = thicken(thin, matrix)
    assert thick.dtype == np.float32
    np.testing.assert_allclose(thick, thicken(thin.astype(float), matrix), rtol=1e-6)
    np.testing.assert_allclose(project(thin, thick, matrix), thin, atol=1e-4)
