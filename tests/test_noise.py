"""Laws of the noise that is found in slices: what was put in is found, and anatomy is not taken for it."""

import time

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from faults import catches
from thinslice.physics.intensity import intensity_range
from thinslice.physics.noise import estimate_noise, find_noise, smooth_noise


def anatomy(shape=(14, 120, 132), seed=0):
    """Smooth tissue of a few brightnesses with texture and sharp borders, in air of zero; 0 .. 100."""
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.standard_normal(shape), (1, 9, 9))
    smooth /= smooth.std()
    texture = gaussian_filter(rng.standard_normal(shape), (0.5, 2, 2))
    tissue = 60 + 12 * np.clip(np.rint(1.2 * smooth), -2, 2) + 2 * texture / texture.std()
    y, x = np.mgrid[-1 : 1 : shape[1] * 1j, -1 : 1 : shape[2] * 1j]
    inside = gaussian_filter((np.hypot(x, y) < 0.75).astype(float), 0.8)
    return np.clip(tissue, 0, 100) * inside


def gaussian(clean, sd, rng):
    return clean + rng.normal(scale=sd, size=clean.shape)


def rician(clean, sd, rng):
    return np.hypot(clean + rng.normal(scale=sd, size=clean.shape), rng.normal(scale=sd, size=clean.shape))


def zero_filled(clean, sd, rng):
    """Noise of which the outer half of the spectrum is missing along both axes: an image made twice as large."""
    spectrum = np.fft.fft2(rng.standard_normal(clean.shape))
    kept = [np.abs(np.fft.fftfreq(size)) < 0.25 for size in clean.shape[1:]]
    noise = np.fft.ifft2(spectrum * np.outer(*kept)).real
    return clean + noise * (sd / noise.std())


@catches("physics/noise.py", "both /= 6.0", "both /= 5.0")
@catches("physics/noise.py", "found /= RAYLEIGH_SHARE", "pass")
@catches("physics/noise.py", "step, growth = 2, 1.0", "pass")
@pytest.mark.parametrize("percent", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("kind", "off"), [(gaussian, 0.15), (rician, 0.15), (zero_filled, 0.35)], ids=["gaussian", "rician", "zero-filled"]
)
def test_noise_that_was_put_in_is_found(kind, off, percent):
    noisy = kind(anatomy(), float(percent), np.random.default_rng(1))
    low, high = intensity_range(noisy)
    assert estimate_noise(noisy) == pytest.approx(percent / (high - low), rel=off)


@catches("physics/noise.py", "(TEXTURE_GROWTH * near[smooth].mean() - far[smooth].mean())", "(5 * near[smooth].mean())")
@pytest.mark.parametrize("seed", range(3))
def test_texture_is_not_taken_for_noise(seed):
    assert estimate_noise(anatomy(seed=seed)) < 0.009


@catches("physics/noise.py", "& ~masked", "")
def test_air_that_was_masked_out_says_nothing():
    clean = anatomy()
    noisy = np.where(clean > 2, gaussian(clean, 3.0, np.random.default_rng(0)), 0.0)
    low, high = intensity_range(noisy)
    assert estimate_noise(noisy) == pytest.approx(3 / (high - low), rel=0.2)


@catches("physics/noise.py", "if abs(level - self.zero) > AIR_BELOW:", "if False:")
def test_air_of_computed_tomography_does_not_count():
    clean = anatomy()
    noisy = np.where(clean > 2, gaussian(clean, 3.0, np.random.default_rng(0)), 0.2 * np.random.default_rng(1).random())
    air = gaussian(np.zeros_like(clean), 0.2, np.random.default_rng(2))
    hounsfield = 20 * np.where(clean > 2, noisy, air) - 1000
    low, high = intensity_range(hounsfield)
    assert estimate_noise(hounsfield) == pytest.approx(60 / (high - low), rel=0.2)


def test_noise_is_counted_in_intensity_ranges_of_any_kind_of_number():
    noisy = np.maximum(gaussian(anatomy(), 3.0, np.random.default_rng(0)), 0)
    expected = estimate_noise(noisy)
    assert estimate_noise(50 * noisy) == pytest.approx(expected, rel=1e-3)
    assert estimate_noise(np.rint(50 * noisy).astype(np.int16)) == pytest.approx(expected, rel=0.01)
    for turned in (noisy[::-1], noisy[:, ::-1], noisy.swapaxes(1, 2)):
        assert estimate_noise(turned) == pytest.approx(expected, rel=0.1)


@catches("physics/noise.py", "slices[outside] = slices[~outside].min()", "pass")
def test_padding_is_no_part_of_the_range():
    noisy = gaussian(anatomy(), 3.0, np.random.default_rng(0))
    padded = noisy.copy()
    padded[:, :, :16] = -2000
    assert estimate_noise(padded, padding=-2000) == pytest.approx(estimate_noise(noisy), rel=0.1)
    assert estimate_noise(np.full((4, 40, 40), -2000.0), padding=-2000) is None


def test_what_is_too_small_or_empty_tells_nothing():
    assert estimate_noise(np.random.default_rng(0).random((8, 19, 64))) is None
    assert estimate_noise(np.zeros((8, 64, 64))) is None


@pytest.mark.parametrize(("kind", "share"), [(gaussian, 1.0), (rician, 1.0), (zero_filled, 0.0)])
def test_only_noise_that_pixels_do_not_share_is_called_independent(kind, share):
    found = find_noise(kind(anatomy(), 3.0, np.random.default_rng(1)))
    assert found.independent == pytest.approx(share * found.sd, rel=0.15)


@catches("physics/noise.py", "np.clip(1 - noise**2 / variance, 0, 1)", "0.0")
@catches("physics/noise.py", "one += mean + level", "one += mean")
@pytest.mark.parametrize("level", [0.0, 1e5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_smoothing_takes_noise_and_leaves_edges(level, dtype):
    clean = anatomy()
    noisy = (gaussian(clean, 4.0, np.random.default_rng(0)) + level).astype(dtype)
    smooth = smooth_noise(noisy, 4.0)
    assert smooth.dtype == dtype
    before, after = (float(np.sqrt(np.mean((one - level - clean) ** 2))) for one in (noisy, smooth))
    assert after < 0.6 * before
    edges = np.abs(np.diff(clean, axis=2)) > 20
    steps = [np.abs(np.diff(one, axis=2))[edges].mean() for one in (clean, smooth)]
    assert steps[1] > 0.9 * steps[0]
    np.testing.assert_allclose(smooth_noise(noisy, 0.0), noisy, atol=1e-6 * (level + 100))


def test_smoothing_of_flat_and_of_whole_numbers():
    np.testing.assert_array_equal(smooth_noise(np.full((2, 5, 6), 7, np.int16), 3.0), 7)
    assert smooth_noise(np.full((1, 1, 1), 2**30 + 1, np.int32), 3.0)[0, 0, 0] == 2**30 + 1


def test_a_usual_scan_takes_a_tenth_of_a_second():
    scan = np.random.default_rng(0).normal(100, 10, (36, 320, 320)).astype(np.int16)
    spent = []
    for _ in range(3):
        started = time.process_time()
        find_noise(scan)
        spent.append(time.process_time() - started)
    assert min(spent) < 0.1
