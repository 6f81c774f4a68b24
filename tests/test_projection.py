"""Laws of thin to thick, and of the projection back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from faults import catches
from strategies import profiles, seeds
from thinslice.physics.acquisition import Acquisition, apply_along_first_axis
from thinslice.physics.projection import (
    CORRELATION_LENGTH,
    NOISE_LEVEL,
    correction_matrix,
    cut_into_bands,
    project,
    scale_damping,
    smooth_adjoint_matrix,
)


def acquisition(n: int, factor: float, ratio: float, profile: str) -> tuple[np.ndarray, float]:
    centres = (factor - 1) / 2 + factor * np.arange(n)
    return Acquisition(centres, round(n * factor), factor * ratio, profile).matrix(), factor


acquisitions = st.builds(acquisition, st.integers(2, 9), st.floats(1.6, 6.0), st.floats(0.6, 1.2), profiles)


def covariance(n: int, factor: float) -> np.ndarray:
    """W [n, n]: a Gaussian on an endless line that the field of view is mirrored onto, half a voxel beyond its ends."""
    line = np.arange(-n, 2 * n)
    folded = np.concatenate([np.arange(n)[::-1], np.arange(n), np.arange(n)[::-1]])
    weights = np.exp(-0.5 * ((np.arange(n)[:, None] - line) / (factor * CORRELATION_LENGTH)) ** 2)
    return weights @ np.eye(n)[folded]


def root(n: int, factor: float) -> np.ndarray:
    """R with R Rt = W."""
    values, vectors = np.linalg.eigh(covariance(n, factor))
    return vectors * np.sqrt(values.clip(0))


@catches("physics/projection.py", "thin + apply_along_first_axis(repair", "thin - apply_along_first_axis(repair")
@given(case=acquisitions, seed=seeds)
def test_projection_without_noise_gives_back_what_was_acquired(case, seed):
    matrix, factor = case
    rng = np.random.default_rng(seed)
    thin, thick = rng.standard_normal((matrix.shape[1], 2, 3)), rng.standard_normal((len(matrix), 2, 3))
    # float64; A W At has a condition number below 1e4 for these thicknesses.
    np.testing.assert_allclose(
        apply_along_first_axis(matrix, project(thin, thick, matrix, factor, noise=0)), thick, atol=1e-10
    )


@given(case=acquisitions, seed=seeds)
def test_projection_leaves_a_consistent_answer_alone(case, seed):
    matrix, factor = case
    thin = np.random.default_rng(seed).standard_normal((matrix.shape[1], 4))
    np.testing.assert_allclose(project(thin, apply_along_first_axis(matrix, thin), matrix, factor), thin, atol=1e-12)


@catches(
    "physics/projection.py",
    "smoothed: np.ndarray = covariance @ matrix.T",
    "smoothed: np.ndarray = np.eye(len(covariance)) @ matrix.T",
)
@catches("physics/projection.py", "for d in distances)", "for d in distances[:1])")
@catches("physics/projection.py", "(d / CORRELATION_LENGTH)", "(d * factor / CORRELATION_LENGTH)")
@given(case=acquisitions, seed=seeds)
def test_projection_is_the_smallest_change_that_agrees_in_the_norm_of_w(case, seed):
    matrix, factor = case
    rng = np.random.default_rng(seed)
    thin, thick = rng.standard_normal((matrix.shape[1], 4)), rng.standard_normal((len(matrix), 4))
    change = project(thin, thick, matrix, factor, noise=0) - thin
    # A change R e has the norm of e: the smallest e with A R e = thick - A thin.
    scale = root(matrix.shape[1], factor)
    smallest = scale @ np.linalg.pinv(matrix @ scale) @ (thick - matrix @ thin)
    np.testing.assert_allclose(change, smallest, atol=1e-7)


@catches(
    "physics/projection.py",
    "return float(noise * np.median((matrix @ smooth_adjoint_matrix(matrix, factor)).sum(axis=1)))",
    "return float(noise)",
)
@catches("physics/projection.py", "noise * np.median(", "noise * np.max(")
@given(case=acquisitions, seed=seeds)
def test_projection_with_noise_is_the_regularised_least_squares_answer(case, seed):
    matrix, factor = case
    rng = np.random.default_rng(seed)
    thin, thick = rng.standard_normal((matrix.shape[1], 4)), rng.standard_normal((len(matrix), 4))
    w = covariance(matrix.shape[1], factor)
    damping = NOISE_LEVEL * np.median((matrix @ w @ matrix.T).sum(axis=1))
    change = project(thin, thick, matrix, factor) - thin
    # The gradient of |A (x + d) - y|^2 + damping dt W^-1 d, times W, vanishes at the answer.
    gradient = w @ matrix.T @ (matrix @ (thin + change) - thick) + damping * change
    np.testing.assert_allclose(gradient, 0, atol=1e-10)


@pytest.mark.parametrize("factor", [2.0, 2.6, 3.0, 4.0, 50 / 9, 8.0])
@pytest.mark.parametrize("profile", ["gaussian", "box"])
@pytest.mark.parametrize("noise", [0.0, NOISE_LEVEL])
def test_a_flat_correction_comes_back_flat(factor, profile, noise):
    matrix, factor = acquisition(27, factor, 1.0, profile)
    answer = project(np.zeros(matrix.shape[1]), np.ones(len(matrix)), matrix, factor, noise)
    inside = answer[round(6 * factor) : -round(6 * factor)]
    assert inside.mean() == pytest.approx(1, abs=0.005)
    # Measured 0.03 to 0.13 % (Gaussian) and none (box); up to 11 % (Gaussian) without W.
    assert np.ptp(inside) < 0.005


@pytest.mark.parametrize("factor", [2.0, 2.6, 3.0, 4.0, 50 / 9, 8.0])
@pytest.mark.parametrize("profile", ["gaussian", "box"])
def test_a_straight_correction_comes_back_straight(factor, profile):
    matrix, factor = acquisition(39, factor, 1.0, profile)
    line = (np.arange(matrix.shape[1]) - (factor - 1) / 2) / factor
    answer = project(np.zeros(matrix.shape[1]), np.arange(39.0), matrix, factor, noise=0)
    inside = slice(round(14 * factor), -round(14 * factor))
    # Measured 0.003 slice steps (0.025: box, factor 2.6); 0.06 to 0.33 (Gaussian) and a staircase (box) without W.
    np.testing.assert_allclose(answer[inside], line[inside], atol=0.03)


@given(case=acquisitions, seed=seeds)
def test_smooth_spread_is_w_times_the_adjoint(case, seed):
    matrix, factor = case
    wanted = covariance(matrix.shape[1], factor) @ matrix.T
    np.testing.assert_allclose(smooth_adjoint_matrix(matrix, factor), wanted, atol=1e-12)


@pytest.mark.parametrize("noise", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("ratio", [0.75, 1.0, 1.25])
@pytest.mark.parametrize(("shift", "n_thin"), [(1.5, 240), (0.0, 237)], ids=["fov", "centres"])
def test_the_damping_is_the_noise_in_units_of_what_a_flat_image_keeps(shift, n_thin, ratio, noise):
    matrix = Acquisition(shift + 4.0 * np.arange(60), n_thin, 4.0 * ratio, "gaussian").matrix()
    inside = (matrix @ covariance(n_thin, 4.0) @ matrix.T)[10:50, 10:50]
    assert scale_damping(matrix, 4.0, noise) == pytest.approx(noise * np.linalg.eigvalsh(inside)[-1], rel=0.01)


@given(case=acquisitions, seed=seeds)
def test_projection_never_moves_away_from_a_truth_in_the_norm_of_w(case, seed):
    matrix, factor = case
    rng = np.random.default_rng(seed)
    truth, error = rng.standard_normal((2, matrix.shape[1], 5))
    scale = root(matrix.shape[1], factor)
    answer = project(truth + scale @ error, apply_along_first_axis(matrix, truth), matrix, factor)
    left = np.linalg.lstsq(scale, answer - truth, rcond=1e-6)[0]
    assert np.linalg.norm(left) <= np.linalg.norm(error) * (1 + 1e-9)


@given(case=acquisitions, value=st.floats(-1000, 1000))
def test_flat_stays_flat(case, value):
    matrix, factor = case
    thin = np.full((matrix.shape[1], 2, 2), value)
    np.testing.assert_allclose(apply_along_first_axis(matrix, thin), value, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        project(thin, apply_along_first_axis(matrix, thin), matrix, factor), value, rtol=1e-12, atol=1e-12
    )


@given(case=acquisitions)
def test_the_correction_fades_with_the_noise_level(case):
    matrix, factor = case
    noises = (0.0, 0.01, 0.1, 1.0, 1e6)
    sizes = [np.linalg.norm(correction_matrix(matrix, factor, scale_damping(matrix, factor, n))) for n in noises]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 1e-4 * sizes[0]


@given(shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40)), order=st.permutations(range(3)))
def test_bands_cut_a_stack_into_pieces_each_voxel_once_along_the_slower_in_plane_axis(shape, order):
    stack = np.moveaxis(np.zeros([shape[i] for i in order]), range(3), order)
    for band in cut_into_bands(stack):
        stack[band] += 1
        slower = 1 if order.index(1) < order.index(2) else 2
        assert stack[band].shape[3 - slower] == stack.shape[3 - slower] or 1 in stack.shape
    np.testing.assert_array_equal(stack, 1)


@given(seed=seeds, dtype=st.sampled_from([np.float32, np.float64]))
def test_a_matrix_acts_on_the_first_axis_only_and_keeps_the_dtype(seed, dtype):
    rng = np.random.default_rng(seed)
    matrix, array = rng.standard_normal((3, 5)), rng.standard_normal((5, 2, 4)).astype(dtype)
    answer = apply_along_first_axis(matrix, array)
    assert answer.dtype == dtype
    np.testing.assert_allclose(answer, np.einsum("mn,nyx->myx", matrix, array), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, bool])
def test_whole_numbers_are_made_thick_like_any_others(dtype):
    matrix = Acquisition(np.array([1.5, 5.5]), 8, 4.0, "gaussian").matrix()
    thin = (np.arange(0, 240, 30)[:, None] % 77).astype(dtype)
    thick = apply_along_first_axis(matrix, thin)
    assert thick.dtype == np.float32
    np.testing.assert_allclose(thick, apply_along_first_axis(matrix, thin.astype(float)), rtol=1e-6)
    np.testing.assert_allclose(project(thin, thick, matrix, 4.0), thin, atol=1e-4)
