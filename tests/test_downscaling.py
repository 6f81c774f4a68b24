"""Laws of bicubic downscaling."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from faults import catches
from thinslice.physics.downscaling import downscaling_matrix


@given(n=st.integers(3, 40), factor=st.sampled_from([2, 4]), sigma=st.floats(0, 2))
def test_downscaling_keeps_flat_flat_and_is_the_same_backwards(n, factor, sigma):
    matrix = downscaling_matrix(n, factor, sigma)
    assert matrix.shape == (n, factor * n)
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    np.testing.assert_allclose(matrix[::-1, ::-1], matrix, atol=1e-12)


@given(n=st.integers(9, 30), factor=st.sampled_from([2, 4]), sigma=st.floats(0, 1))
def test_downscaling_says_the_centre_of_its_pixels_on_a_ramp(n, factor, sigma):
    said = downscaling_matrix(n, factor, sigma) @ np.arange(factor * n)
    centres = (np.arange(n) + 0.5) * factor - 0.5
    np.testing.assert_allclose(said[3:-3], centres[3:-3], atol=1e-9)


@catches("physics/downscaling.py", "- centres[:, None]) / factor", "- centres[:, None])")
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_downscaling_is_that_of_a_picture_library(factor):
    image = pytest.importorskip("PIL.Image", reason="Pillow comes with the test extra")
    line = np.random.default_rng(0).random(24 * factor).astype(np.float32)
    picture = image.fromarray(np.repeat(line[:, None], 3, axis=1), mode="F")
    wanted = np.asarray(picture.resize((3, 24), image.Resampling.BICUBIC))[:, 1]
    np.testing.assert_allclose(downscaling_matrix(24, factor) @ line, wanted, atol=1e-5)


def test_a_gaussian_before_downscaling_blurs_by_its_sigma():
    thin = np.zeros(80)
    thin[40] = 1
    blurred = np.linalg.pinv(downscaling_matrix(40, 2)) @ (downscaling_matrix(40, 2, 0.5) @ thin)
    index = np.arange(80) - 40
    # Three taps of a Gaussian of 0.5: the variance is 2 e / (1 + 2 e) with e = exp(-2).
    wanted = 2 * np.exp(-2) / (1 + 2 * np.exp(-2))
    narrow = np.linalg.pinv(downscaling_matrix(40, 2)) @ (downscaling_matrix(40, 2) @ thin)
    assert (index**2 @ blurred) - (index**2 @ narrow) == pytest.approx(wanted, rel=0.2)
