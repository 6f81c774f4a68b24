"""The test for ringing: it tells profiles that are too wide from right ones, and what is done then."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from faults import catches
from thinslice.compute.ringing import NARROWER, RINGING, SAMPLE_SIDE, measure_ringing, settle_profile, take_sample
from thinslice.compute.upsample import upsample
from thinslice.evaluation.benchmark import simulate
from thinslice.models.registry import find_model
from thinslice.physics.projection import project
from thinslice.pipeline import enhance_volume
from thinslice.plan import make_plan
from thinslice.settings import Settings
from thinslice.volume import Volume

FACTOR = 4


@pytest.fixture(scope="module")
def tissue():
    """Blobs with edges a voxel wide, alike along all axes, 64 x 64 x 96 voxels."""
    smooth = gaussian_filter(np.random.default_rng(7).standard_normal((64, 64, 96)), 3)
    smooth /= smooth.std()
    steps = sum(gaussian_filter((smooth > level).astype(float), 0.7) for level in (-0.7, 0.3, 1.1))
    return Volume((100 * steps).astype(np.float32), np.eye(4))


@pytest.fixture(scope="module")
def thick(tissue):
    """Its slices, as a box of three quarters of their spacing sees them; nothing is stated of that."""
    return replace(simulate(tissue, 2, FACTOR, 0.75, "box")[1], thickness_mm=None)


@pytest.fixture(scope="module")
def network():
    return find_model("default")


def plan_of(thick, network, profile, width):
    """A profile that was found, not told: it may be narrowed."""
    told = make_plan(thick, Settings(factor=FACTOR, profile=profile, thickness_mm=width * FACTOR), network)
    return replace(told, profile_source="estimated")


def along(array):
    return np.moveaxis(array, 2, 0)


def test_the_truth_does_not_ring_and_a_sharpened_truth_does(tissue, thick, network):
    plan = plan_of(thick, network, "box", 0.75)
    truth = along(tissue.voxels)
    assert measure_ringing(along(thick.voxels), truth, plan) < 1
    sharpened = truth + 2.5 * (truth - gaussian_filter(truth, (2, 0, 0)))
    assert measure_ringing(along(thick.voxels), sharpened, plan) > RINGING


@catches("compute/ringing.py", "_detail(thin, plan.factor)", "_detail(thin, plan.factor / 2)")
def test_an_answer_that_was_told_a_profile_too_wide_rings(thick, network):
    found = {}
    for profile, width in (("box", 0.75), ("gaussian", 1.0)):
        plan = plan_of(thick, network, profile, width)
        answer = upsample(thick, plan, network).volume.voxels
        found[profile] = measure_ringing(along(thick.voxels), along(answer), plan)
    assert found["box"] < RINGING < found["gaussian"]
    assert found["gaussian"] > 1.3 * found["box"]


@catches("compute/ringing.py", "if ringing <= RINGING:\n            break", "if False:\n            break")
def test_what_nobody_has_told_becomes_narrower_until_it_does_not_ring(thick, network):
    plan = plan_of(thick, network, "gaussian", 1.0)
    settled = settle_profile(thick, plan, network)
    assert settled.thickness_mm == pytest.approx(FACTOR * NARROWER)  # one step is enough here
    assert settled.ringing < RINGING
    assert settled.ringing < plan_ringing(thick, plan, network)
    assert "rings" in settled.notes[-1]
    assert replace(settled, thickness_mm=plan.thickness_mm, ringing=None, notes=plan.notes) == plan
    right = plan_of(thick, network, "box", 0.75)
    assert replace(settle_profile(thick, right, network), ringing=None) == right


def plan_ringing(thick, plan, network):
    return settle_profile(thick, replace(plan, profile_source="told"), network).ringing


@catches("compute/ringing.py", 'if plan.profile_source == "told":', 'if plan.profile_source != "told":')
def test_what_was_told_is_obeyed_with_a_note(thick, network):
    told = enhance_volume(thick, Settings(factor=FACTOR, profile="gaussian", thickness_mm=4.0), network)
    assert told.plan.thickness_mm == 4
    assert told.plan.ringing > RINGING
    assert any("check `profile`" in note for note in told.report.notes)


def test_a_scan_that_states_nothing_and_whose_profile_is_found_is_left_alone(thick, network):
    done = enhance_volume(thick, Settings(factor=FACTOR), network)
    assert done.plan.thickness_mm == make_plan(thick, Settings(factor=FACTOR), network).thickness_mm
    assert done.plan.ringing < RINGING
    assert not any("rings" in note for note in done.report.notes)


@pytest.mark.parametrize("case", ["few slices", "coarse pixels", "interpolation", "kept slices"])
def test_what_cannot_be_measured_is_left_alone(thick, network, case):
    scan, model = thick, network
    if case == "few slices":
        scan = replace(thick, voxels=thick.voxels[..., :6])
    if case == "coarse pixels":
        scan = replace(thick, affine=thick.affine * [3, 3, 1, 1])
    if case == "interpolation":
        model = find_model("cubic")
    plan = plan_of(scan, model, "gaussian", 1.0)
    if case == "kept slices":
        plan = replace(plan, every=2)
    settled = settle_profile(scan, plan, model)
    assert settled == plan


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("grid", ["fov", "centres"])
def test_the_sample_is_the_part_with_most_change_from_slice_to_slice(network, axis, grid):
    voxels = np.zeros((40, 300, 260), np.int16)
    voxels[:, 200:240, 20:60] = (100 * np.random.default_rng(1).random((40, 40, 40))).astype(np.int16)
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = 3.5
    scan = Volume(np.moveaxis(voxels, 0, axis), np.diag([*spacing, 1.0]))
    plan = make_plan(scan, Settings(grid=grid), network)
    sample, part = take_sample(scan, plan)
    assert sample.shape == part.shape_thick
    assert sample.shape[axis] == 32
    assert max(np.delete(sample.shape, axis)) < 90
    assert min(np.delete(sample.shape, axis)) >= SAMPLE_SIDE
    assert np.count_nonzero(sample.voxels) == np.count_nonzero(voxels[4:36])
    assert upsample(sample, part, find_model("cubic")).volume.shape == part.shape_thin
    assert part.n_thin == round(plan.factor * (32 - (grid == "centres"))) + (grid == "centres")


def test_a_flat_scan_does_not_ring(network):
    plan = make_plan(Volume(np.ones((64, 64, 12)), np.diag([1.0, 1.0, 4.0, 1.0])), Settings(), network)
    assert measure_ringing(np.ones((12, 64, 64)), np.ones((48, 64, 64)), plan) == 0


def test_interpolation_that_agrees_with_the_slices_does_not_ring(thick):
    cubic = find_model("cubic")
    plan = plan_of(thick, cubic, "box", 0.75)
    answer = along(upsample(thick, plan, cubic).volume.voxels)
    again = project(answer, along(thick.voxels), plan.acquisition().matrix(), plan.factor)
    assert measure_ringing(along(thick.voxels), again, plan) < RINGING
