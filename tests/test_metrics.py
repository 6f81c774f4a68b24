from dataclasses import replace

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from thinslice.evaluation.metrics import banding, data_range, foreground, psnr, reslice_rms, ssim, stripes
from thinslice.physics.acquisition import Acquisition
from thinslice.physics.interpolation import INTERPOLATIONS


def anatomy(shape: tuple[int, int, int] = (48, 40, 36), seed: int = 0) -> np.ndarray:
    """A noisy blobby head in air: smooth random texture inside an ellipsoid."""
    rng = np.random.default_rng(seed)
    texture = rng.normal(size=shape)
    for axis, size in enumerate(shape):
        damping = np.exp(-((np.fft.fftfreq(size) * 10) ** 2))
        damped = np.fft.fft(texture, axis=axis) * damping.reshape([-1 if i == axis else 1 for i in range(3)])
        texture = np.fft.ifft(damped, axis=axis).real
    grids = np.meshgrid(*[np.linspace(-1.15, 1.15, n) for n in shape], indexing="ij")
    inside = sum(g**2 for g in grids) < 1
    return np.where(inside, 500 + 150 * texture / texture.std(), 0) + rng.normal(0, 4, shape)


def stack_positions(n_thin: int, factor: float) -> tuple[np.ndarray, int]:
    return (np.arange(n_thin) - (factor - 1) / 2) / factor, round(n_thin / factor)


@pytest.mark.parametrize("shape", [(48, 40, 36), (7, 30, 9), (25, 24, 23)])
def test_ssim_equals_scikit_image(shape):
    truth = anatomy(shape)
    answer = truth + np.random.default_rng(1).normal(0, 40, shape)
    mask = foreground(truth)
    span = data_range(truth)
    _, full = structural_similarity(answer, truth, data_range=span, full=True)
    assert ssim(answer, truth, span, mask) == pytest.approx(full[mask].mean(), abs=1e-9)


def test_ssim_equals_scikit_image_in_hounsfield_units_and_integers():
    truth = (anatomy() - 1000).astype(np.int16)
    answer = (truth + np.random.default_rng(1).normal(0, 40, truth.shape)).astype(np.int16)
    mask = foreground(truth)
    _, full = structural_similarity(
        answer.astype(np.float64), truth.astype(np.float64), data_range=data_range(truth), full=True
    )
    assert ssim(answer, truth, data_range(truth), mask) == pytest.approx(full[mask].mean(), abs=1e-9)


def test_psnr_equals_scikit_image_and_is_infinite_for_equal_images():
    truth = anatomy()
    answer = truth + np.random.default_rng(1).normal(0, 40, truth.shape)
    everywhere = np.ones(truth.shape, bool)
    expected = peak_signal_noise_ratio(truth, answer, data_range=data_range(truth))
    assert psnr(answer, truth, data_range(truth), everywhere) == pytest.approx(expected, abs=1e-9)
    assert psnr(truth, truth, data_range(truth), everywhere) == float("inf")
    assert ssim(truth, truth, data_range(truth), everywhere) == pytest.approx(1, abs=1e-12)


def test_unsigned_integers_do_not_wrap():
    truth = np.full((8, 8, 8), 10, np.uint8)
    answer = np.full((8, 8, 8), 8, np.uint8)
    assert psnr(answer, truth, 2.0, np.ones(truth.shape, bool)) == pytest.approx(0)


def test_errors_outside_the_mask_do_not_count():
    truth = anatomy()
    mask = foreground(truth)
    answer = np.where(mask, truth, truth + 1000)
    assert psnr(answer, truth, data_range(truth), mask) == float("inf")


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (2.5, -1024.0), (0.001, 3.0)])
def test_intensity_scale_and_offset_do_not_matter_for_the_foreground(scale, offset):
    truth = anatomy()
    mask = foreground(truth)
    assert 0.2 < mask.mean() < 0.6
    np.testing.assert_array_equal(foreground(truth * scale + offset), mask)


def test_shape_or_mask_errors_are_named():
    truth = anatomy()
    with pytest.raises(ValueError, match="one shape"):
        psnr(truth[1:], truth, 1.0, np.ones(truth.shape, bool))
    with pytest.raises(ValueError, match="at least one true voxel"):
        psnr(truth, truth, 1.0, np.zeros(truth.shape, bool))
    with pytest.raises(ValueError, match="at least 7 voxels"):
        ssim(truth[:6], truth[:6], 1.0, np.ones(truth[:6].shape, bool))


FACTORS = [2.0, 48 / 19, 3.0, 4.0, 6.0, 8.0]


@pytest.mark.parametrize("factor", FACTORS)
def test_truth_with_a_little_noise_has_no_banding(factor):
    truth = anatomy()
    noisy = truth + np.random.default_rng(2).normal(0, 2, truth.shape)
    mask = foreground(truth)
    assert banding(truth, truth, factor, mask) == pytest.approx(1, abs=1e-12)
    assert 0.8 < banding(noisy, truth, factor, mask) < 1.25


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("axis", [0, 2])
def test_banding_sees_a_staircase_on_any_axis(factor, axis):
    truth = anatomy()
    position, n_thick = stack_positions(48, factor)
    thick = Acquisition(
        (factor - 1) / 2 + factor * np.arange(n_thick), 48, factor, "gaussian"
    ).matrix() @ truth.reshape(48, -1)
    mask = foreground(truth)
    stairs, cubic = (
        (INTERPOLATIONS[name](position, n_thick) @ thick).reshape(truth.shape) for name in ("nearest", "cubic")
    )
    seen = banding(*(np.moveaxis(v, 0, axis) for v in (stairs, truth)), factor, np.moveaxis(mask, 0, axis), axis)
    assert seen > 2
    assert seen > 2 * banding(cubic, truth, factor, mask)


@pytest.mark.parametrize("factor", FACTORS)
def test_banding_sees_a_stripe_of_two_percent(factor):
    truth = anatomy((96, 80, 72))
    phase = 2 * np.pi * (np.arange(96) / factor) + 0.4
    stripe = 1 + 0.02 * np.cos(phase)[:, None, None]
    mask = foreground(truth)
    assert banding(truth * stripe, truth, factor, mask) > 1.5
    assert banding(truth * (1 + 4 * (stripe - 1)), truth, factor, mask) > 4


@pytest.mark.parametrize("factor", [3.0, 4.0, 8.0])
def test_banding_sees_sharpness_that_comes_and_goes(factor):
    """Every slab has one noisy slice: the slices' means stay as they are."""
    truth = anatomy()
    noise = np.random.default_rng(3).normal(0, 60, truth.shape)
    noise[np.arange(48) % factor != 0] = 0
    mask = foreground(truth)
    assert banding(truth + noise, truth, factor, mask) > 2


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (30.0, -1024.0)])
def test_stripes_are_the_percentage_by_which_the_change_per_slice_varies(factor, axis, scale, offset):
    change = 1 + 0.2 * np.cos(2 * np.pi * np.arange(95) / factor)
    sign = np.random.default_rng(0).choice([-1, 1], (95, 8, 7))
    volume = np.moveaxis(np.cumsum(np.vstack([np.zeros((1, 8, 7)), change[:, None, None] * sign]), 0), 0, axis)
    mask = np.ones(volume.shape, bool)
    assert stripes(scale * volume + offset, factor, mask, axis) == pytest.approx(20, abs=0.2)
    assert stripes(scale * volume + offset, 1.37 * factor, mask, axis) < 1


@pytest.mark.parametrize("factor", [4.0, 6.0, 8.0])
def test_a_staircase_has_many_stripes_and_the_truth_few(factor):
    truth = anatomy()
    stairs = truth[np.arange(48) // int(factor) * int(factor)]
    mask = foreground(truth)
    assert stripes(stairs, factor, mask) > 150
    assert stripes(truth, factor, mask) < 20


def test_too_short_a_stack_has_no_stripes():
    truth = anatomy((7, 30, 30))
    assert stripes(truth, 4.0, np.ones(truth.shape, bool)) == 0.0


def test_a_stripe_at_another_frequency_is_not_banding_of_the_slices():
    truth = anatomy()
    stripe = 1 + 0.02 * np.cos(2 * np.pi * np.arange(48) / 5.3)[:, None, None]
    assert banding(truth * stripe, truth, 3.0, foreground(truth)) < 1.25


def test_reslice_rms_is_zero_for_what_was_acquired_and_measures_an_offset():
    truth = anatomy().astype(np.float32)
    acquisition = Acquisition(1.5 + 4 * np.arange(12), 48, 4.0, "gaussian")
    thick = (acquisition.matrix() @ truth.reshape(48, -1)).reshape(12, *truth.shape[1:])
    assert reslice_rms(truth, thick, acquisition) < 1e-3
    assert reslice_rms(truth + 7, thick, acquisition) == pytest.approx(7, rel=1e-3)
    moved = reslice_rms(np.moveaxis(truth, 0, 2), np.moveaxis(thick, 0, 2), replace(acquisition, axis=2))
    assert moved == pytest.approx(reslice_rms(truth, thick, acquisition), abs=1e-6)
