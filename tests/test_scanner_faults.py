"""Laws of what training does to thick slices: noise, uneven brightness, shifts, and acquisitions stated wrong."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import seeds

pytest.importorskip("torch", reason="training needs torch, which comes with thinslice[train]")

import torch

from faults import catches
from thinslice.models.conditioning import geometry_of
from thinslice.networks.slab import SlabNet
from thinslice.physics.acquisition import Acquisition
from thinslice.physics.noise import add_noise
from thinslice.physics.profile import sd_over_fwhm
from thinslice.physics.projection import correction_matrix, noise_to_signal, scale_damping
from thinslice.training.batches import Draw, batch_at, draw_geometry, draw_patch, geometry_of_block, render
from thinslice.training.faults import (
    NO_FAULTS,
    FaultRanges,
    Faults,
    alter_slices,
    bias_field,
    draw_faults,
)
from thinslice.training.losses import projected_loss, residual_of
from thinslice.training.objectives import SlabObjective
from thinslice.training.recipes import default, default_large
from thinslice.training.volumes import TrainingVolume

CONTEXT, SLABS, SIZE = 1, 3, 16
AROUND = CONTEXT + 1
ATOL = 2e-5
"""Float32 intensities of order one."""

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


def smooth(shape=(90, 24, 24), seed=0):
    """A volume of positive intensities, of which neighbouring voxels know something."""
    rough = np.random.default_rng(seed).random(shape, dtype=np.float32)
    for axis in range(3):
        rough = (rough + np.roll(rough, 1, axis) + np.roll(rough, 2, axis)) / 3
    return 0.2 + rough


CORPUS = [TrainingVolume("smooth", smooth(), (0,), 1.0)]
DRAW = Draw(0, 0, False, (False, False, False), (40, 0, 0), 1.0, 0.0, seed=7)


def acquired(geometry, draw=DRAW):
    return render(CORPUS, geometry, [draw], SIZE, AROUND)


def clean(thickness=1.0, profile="gaussian", factor=3.0):
    return geometry_of_block(factor, thickness, profile, (factor - 1) / 2, SLABS, AROUND)


def network():
    torch.manual_seed(0)
    return SlabNet(context=CONTEXT, width=8, before=1, deep_width=8, deep=1, after=0)


# What is drawn


def drawn(n=400):
    return [draw_geometry(np.random.default_rng([5, i]), default.SCANNERS, SLABS, AROUND) for i in range(n)]


@catches("training/batches.py", "elif ranges.faults is not None:", "elif False:")
@catches("training/batches.py", "elif rng.random() < ranges.typical:", "elif rng.random() < 0.0:")
def test_most_acquisitions_are_typical_and_without_faults():
    found = drawn()
    plain = [g for g in found if not g.faulty]
    assert 0.53 < len(plain) / len(found) < 0.67
    for g in plain:
        assert (g.thickness_over_spacing, g.profile, g.stated, g.noise) == (1.0, "gaussian", None, 0.0)
        assert g.factor == round(g.factor)


@catches("training/batches.py", "np.log(thin), 0.0, np.log(thick)", "np.log(thin), 0.0, 0.1")
def test_the_others_cover_all_profiles_widths_and_levels_of_noise():
    found = [g for g in drawn() if g.faulty]
    assert {g.profile for g in found} == {"gaussian", "box", "trapezoid", "triangle", "spin-echo"}
    ratios = [g.thickness_over_spacing for g in found]
    assert min(ratios) < 0.5
    assert max(ratios) > 1.9
    noise = np.array([g.noise for g in found])
    assert 0.5 < np.mean(noise > 0) < 0.8
    assert noise.max() > 0.055
    known = np.array([g.stated_noise for g in found])[noise > 0] / noise[noise > 0]
    assert np.std(np.log(known)) == pytest.approx(0.2, rel=0.3)


@catches(
    "training/batches.py",
    "width = (sd_over_fwhm(profile) * thickness + faults.width_error",
    "width = (bell * thickness + faults.width_error",
)
def test_a_wrong_statement_is_a_gaussian_whose_standard_deviation_is_nearly_the_true_one():
    wrong = [g for g in drawn() if g.stated is not None]
    assert 0.2 < len(wrong) / 400 < 0.33
    assert {g.stated[1] for g in wrong} == {"gaussian"}
    low, high = default.SCANNERS.thickness_over_spacing
    inside = [g for g in wrong if low < g.stated[0] < high]
    off = [sd_over_fwhm("gaussian") * g.stated[0] - sd_over_fwhm(g.profile) * g.thickness_over_spacing for g in inside]
    assert np.std(off) == pytest.approx(0.03, rel=0.25)
    assert abs(np.mean(off)) < 0.01


@given(seed=seeds)
def test_faults_are_drawn_within_their_ranges(seed):
    ranges = FaultRanges()
    faults = draw_faults(np.random.default_rng(seed), ranges)
    assert faults == draw_faults(np.random.default_rng(seed), ranges)
    assert abs(faults.alternating) <= ranges.alternating
    assert 0 <= faults.random <= ranges.random
    assert np.hypot(*faults.shift) <= ranges.shift + 1e-9
    assert abs(faults.bias) <= ranges.bias


def test_patches_of_typical_acquisitions_have_no_faults():
    for step in range(40):
        rng = np.random.default_rng(step)
        geometry = draw_geometry(rng, default.SCANNERS, SLABS, AROUND)
        draw = draw_patch(rng, CORPUS, default.SCANNERS, geometry, SIZE)
        assert geometry.faulty or draw.faults == NO_FAULTS
        assert draw.noise == 0


# What is done to slices


def test_without_faults_slices_stay_as_they_are():
    slices = smooth((6, 8, 8))
    np.testing.assert_array_equal(alter_slices(slices, NO_FAULTS, np.random.default_rng(0)), slices)
    assert add_noise(slices, 0.0, True, np.random.default_rng(0)) is slices
    np.testing.assert_array_equal(bias_field(NO_FAULTS, 4, 5), 1)


@catches("training/faults.py", "/ (1 + 0.5 * faults.alternating)", "")
@given(share=st.floats(-0.12, 0.12))
def test_every_other_slice_is_brighter_and_the_mean_stays(share):
    slices = np.ones((6, 5, 5), np.float32)
    found = alter_slices(slices, Faults(alternating=share), np.random.default_rng(0))[:, 2, 2]
    np.testing.assert_allclose(found[1::2] / found[::2], 1 + share, rtol=1e-5)
    np.testing.assert_allclose(found.mean(), 1, atol=1e-5)


@catches("training/faults.py", "np.arange(length) - pixels", "np.arange(length) + pixels")
@pytest.mark.parametrize("axis", [0, 1])
def test_every_other_slice_lies_farther(axis):
    ramp = np.moveaxis(np.broadcast_to(np.arange(20, dtype=np.float32), (4, 20, 20)), 2, 1 + axis)
    shift = [0.0, 0.0]
    shift[axis] = 0.6
    found = alter_slices(ramp.copy(), Faults(shift=tuple(shift)), np.random.default_rng(0))
    inner = found[:, 8:12, 8:12] - ramp[:, 8:12, 8:12]
    # Content that lies farther: at a place is seen what was before it.
    np.testing.assert_allclose(inner[::2], 0.3, atol=2e-3)
    np.testing.assert_allclose(inner[1::2], -0.3, atol=2e-3)


@catches(
    "physics/noise.py",
    "np.hypot(real, deviation * rng.standard_normal(slices.shape, dtype=slices.dtype))",
    "np.abs(real)",
)
def test_rician_noise_has_a_floor_and_gaussian_noise_has_none():
    dark = np.zeros((20, 50, 50), np.float32)
    rician, normal = (add_noise(dark, 0.05, kind, np.random.default_rng(0)) for kind in (True, False))
    # The mean of a Rayleigh distribution.
    assert rician.mean() == pytest.approx(0.05 * np.sqrt(np.pi / 2), rel=0.02)
    assert normal.std() == pytest.approx(0.05, rel=0.02)
    assert abs(normal.mean()) < 0.001


@catches(
    "training/batches.py",
    "signal = alter_slices((thick[:, column] - draw.offset) / draw.gain",
    "signal = alter_slices(thick[:, column]",
)
def test_faults_act_on_what_the_scanner_saw_whatever_the_patch_was_recoloured_to():
    geometry = replace(clean(), noise=0.03, stated_noise=0.03, faulty=True)
    faults = Faults(alternating=0.1, shift=(0.3, 0.2), bias=0.1, rician=True)
    plain = acquired(geometry, replace(DRAW, faults=faults))
    other = acquired(geometry, replace(DRAW, faults=faults, gain=-0.7, offset=1.1))
    np.testing.assert_allclose(other.thick, -0.7 * plain.thick + 1.1, atol=ATOL)
    np.testing.assert_allclose(other.truth, -0.7 * plain.truth + 1.1, atol=ATOL)


def test_the_truth_has_the_bias_of_the_coil_and_none_of_the_other_faults():
    geometry = replace(clean(), noise=0.03, faulty=True)
    faults = Faults(alternating=0.1, random=0.03, shift=(0.3, 0.2))
    np.testing.assert_allclose(
        acquired(geometry, replace(DRAW, faults=faults)).truth, acquired(clean()).truth, atol=ATOL
    )
    biased = Faults(bias=0.2, phase=(0.1, 0.4))
    wanted = acquired(clean()).truth * bias_field(biased, SIZE, SIZE)
    found = acquired(geometry, replace(DRAW, faults=biased))
    np.testing.assert_allclose(found.truth, wanted, atol=ATOL)


# What the network and the loss go by


def test_without_faults_a_batch_is_the_plain_one_to_the_last_bit_and_so_is_its_loss():
    """The ranges with faults change neither what is typical nor how its loss is counted."""
    plain, faulty = acquired(clean()), acquired(replace(clean(), faulty=True))
    assert plain.unexplained is None
    for name in ("thick", "cubic", "truth", "matrix", "correction"):
        np.testing.assert_allclose(getattr(faulty, name), getattr(plain, name), atol=1e-6)
    np.testing.assert_allclose(faulty.unexplained, 0, atol=1e-6)
    losses = [projected_loss(network(), batch, CPU).item() for batch in (plain, faulty)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@catches(
    "training/losses.py",
    "seen = seen - torch.as_tensor(batch.unexplained)",
    "seen = seen + torch.as_tensor(batch.unexplained)",
)
@catches("training/batches.py", "noise_to_signal(geometry.stated_noise)", "noise_to_signal(0.0)")
def test_the_loss_projects_onto_the_slices_as_they_were_acquired():
    """Against the projection written out: the whole volume is known, so slices at the block's ends are seen whole."""
    geometry = replace(clean(1.2, "box"), stated=(0.9, "gaussian"), noise=0.04, stated_noise=0.05, faulty=True)
    batch = acquired(geometry, replace(DRAW, faults=Faults(alternating=0.1)))
    residual = residual_of(network(), geometry, torch.from_numpy(batch.thick)).detach().numpy()
    answer, truth = batch.cubic + residual, batch.truth
    # Beyond the block the answer counts as right; the rows of the block's own matrix are those that training has.
    inner = np.concatenate(geometry.thin_positions)
    own = geometry.thick_centres[AROUND:-AROUND]
    whole = Acquisition(40 + own, 90, 0.9 * 3.0, "gaussian")
    volume = CORPUS[0].voxels[:, :SIZE, :SIZE]
    matrix = Acquisition(own - inner[0], len(inner), 0.9 * 3.0, "gaussian").matrix()
    missing = (
        batch.thick[0, AROUND:-AROUND] - whole.forward(volume) - np.einsum("sp,phw->shw", matrix, (answer - truth)[0])
    )
    correct = correction_matrix(matrix, 3.0, scale_damping(matrix, 3.0, noise_to_signal(0.05)))
    projected = (answer - truth)[0] + np.einsum("ps,shw->phw", correct, missing)
    wanted = np.sqrt((projected**2).mean() + 1e-6) + 0.2 * np.sqrt(((answer - truth) ** 2).mean() + 1e-6)
    assert projected_loss(network(), batch, CPU, 0.2).item() == pytest.approx(wanted, rel=1e-3)


@catches("training/losses.py", "*geometry.assumed", "geometry.thickness_over_spacing, geometry.profile")
@catches("training/batches.py", "thickness, profile = geometry.assumed", "thickness, profile = 1.2, geometry.profile")
def test_network_and_projection_go_by_what_is_stated_and_slices_by_what_is_true():
    true = clean(1.2, "box")
    stated = replace(true, stated=(0.9, "gaussian"), faulty=True)
    right, wrong, other = acquired(true), acquired(stated), acquired(clean(0.9, "gaussian"))
    np.testing.assert_allclose(wrong.thick, right.thick, atol=ATOL)
    np.testing.assert_allclose(wrong.matrix, other.matrix, atol=1e-6)
    np.testing.assert_allclose(wrong.correction, other.correction, atol=1e-5)
    shown = []
    spy = network()
    spy.trunk = lambda stack, about, trunk=spy.trunk: shown.append(about) or trunk(stack, about)
    projected_loss(spy, wrong, CPU)
    np.testing.assert_array_equal(shown[0].numpy(), geometry_of(3.0, 0.9, "gaussian"))


def test_batches_with_faults_are_a_function_of_seed_and_step():
    for step in range(6):
        one, again = (batch_at(step, 3, CORPUS, default.SCANNERS, 2, SIZE, SLABS, AROUND) for _ in range(2))
        np.testing.assert_array_equal(one.thick, again.thick)
        assert np.isfinite(one.thick).all()
        assert (one.unexplained is None) == (again.unexplained is None) == (not one.geometry.faulty)


def test_the_default_recipes_learn_and_are_valid_for_the_wider_family():
    for recipe in (default, default_large):
        (stage,) = recipe.stages()
        envelope = stage.objective.envelope([], None)
        assert envelope["thickness_over_spacing"] == (0.4, 2.2)
        assert envelope["profiles"] == ["gaussian", "box", "trapezoid", "triangle", "spin-echo"]
    narrow = SlabObjective().envelope([], None)
    assert narrow["thickness_over_spacing"] == (0.55, 1.35)
    assert narrow["profiles"] == ["gaussian", "box"]
