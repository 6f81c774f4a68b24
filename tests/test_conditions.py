import numpy as np
import pytest

from faults import catches
from thinslice.errors import PlanRefused
from thinslice.evaluation.conditions import (
    MISMATCH_PROFILES,
    Condition,
    make_conditions,
    make_mismatch_conditions,
)
from thinslice.evaluation.disturbances import SEED, brighten_every_other, disturb, move_every_other
from thinslice.physics.noise import add_noise
from thinslice.volume import Volume


def test_conditions_are_every_combination():
    made = make_conditions((2, 4), (1.0, 0.75), ("gaussian", "box"))
    assert len(set(made)) == 8
    assert made[0] == Condition(2, 1.0, "gaussian")
    assert [str(c) for c in made[1:4]] == ["x4 gaussian, touching", "x2 gaussian, gap 25 %", "x4 gaussian, gap 25 %"]
    assert len(set(make_conditions((2, 4), stated=("true", "none"), noise_percent=(0, 3, 5), shift_px=(0, 1)))) == 24


def test_the_default_is_the_protocol_of_the_field_and_is_called_as_ever():
    assert str(Condition()) == "x4 gaussian, touching"
    assert Condition().is_protocol()
    others = make_conditions(stated=("none", "wrong", "gaussian:1"), noise_percent=(0, 3))
    others += [Condition(brightness_percent=5), Condition(shift_px=0.5)]
    assert not any(one.is_protocol() for one in others)


def test_disturbances_are_named():
    made = Condition(2, 1.25, "box", "wrong", 3, "rician", 10, 0.5)
    assert str(made) == (
        "x2 box, overlap 25 %, Rician noise 3 %, every other slice +10 %, every other slice 0.5 px off, "
        "told a wrong profile"
    )
    assert str(Condition(stated="box:0.75")) == "x4 gaussian, touching, told box:0.75"


@pytest.mark.parametrize(
    ("condition", "stated"),
    [
        (Condition(4, 0.75, "box"), ("box", 0.75)),
        (Condition(4, 0.75, "box", "none"), None),
        (Condition(4, 0.75, "box", "wrong"), ("gaussian", 1.0)),
        (Condition(4, 0.75, "gaussian", "wrong"), ("gaussian", 1.0)),
        (Condition(4, 1.0, "gaussian", "wrong"), ("box", 1.0)),
        (Condition(4, 1.0, "gaussian", "triangle:1.5"), ("triangle", 1.5)),
    ],
)
@catches("evaluation/conditions.py", 'return "box" if is_common else "gaussian", 1.0', 'return "gaussian", 1.0')
def test_what_is_stated(condition, stated):
    assert condition.stated_profile() == stated


@pytest.mark.parametrize("stated", ["", "box", "bell:1", "box:", "box:0", "box:-1", "box:nan", "box:inf", "True"])
def test_what_cannot_be_stated_is_refused_at_once(stated):
    with pytest.raises(PlanRefused, match="width in slice spacings"):
        Condition(stated=stated)


def test_the_matrix_of_mismatches_states_every_profile_of_every_one_and_nothing():
    made = make_mismatch_conditions((4,), noise_percent=(0, 3))
    assert len(set(made)) == 2 * len(MISMATCH_PROFILES) * (len(MISMATCH_PROFILES) + 1)
    stated = {(c.profile, c.thickness_over_spacing, c.stated_profile()) for c in made if c.noise_percent == 0}
    assert stated == {(*true, one) for true in MISMATCH_PROFILES for one in [*MISMATCH_PROFILES, None]}


# ---- what disturbs the slices


def test_noise_has_the_deviation_that_is_asked_for():
    flat = np.full((40, 50, 60), 100.0)
    noisy = add_noise(flat, 4.0, False, np.random.default_rng(SEED))
    assert noisy.mean() == pytest.approx(100, abs=0.1)
    assert noisy.std() == pytest.approx(4, rel=0.01)
    np.testing.assert_array_equal(noisy, add_noise(flat, 4.0, False, np.random.default_rng(SEED)))


@pytest.mark.parametrize("signal", [0.0, 2.0, 40.0])
def test_rician_noise_has_the_second_moment_of_its_distribution(signal):
    """Gudbjartsson and Patz 1995: the mean square is that of the signal and twice the variance of a channel."""
    noisy = add_noise(np.full((50, 50, 50), signal), 2.0, True, np.random.default_rng(SEED))
    assert (noisy >= 0).all()
    assert np.mean(noisy**2) == pytest.approx(signal**2 + 2 * 2.0**2, rel=0.01)


def test_every_other_slice_gets_brighter_and_air_stays_air():
    slices = np.array([[-1000.0, 0.0], [-1000.0, 0.0], [-1000.0, 0.0], [-1000.0, 0.0]])
    brighter = brighten_every_other(slices, 10, low=-1000)
    np.testing.assert_array_equal(brighter[::2], slices[::2])
    np.testing.assert_allclose(brighter[1::2], [[-1000, 100], [-1000, 100]])


@pytest.mark.parametrize("pixels", [0.5, 1.0, 1.25])
@catches("evaluation/disturbances.py", "-2j * np.pi", "2j * np.pi")
def test_every_other_slice_moves_by_so_many_pixels(pixels):
    place = np.arange(64.0)[None, :, None] + np.zeros((4, 1, 3))

    def bump(at):
        return np.exp(-0.5 * ((place - at) / 3) ** 2)

    moved = move_every_other(bump(30), pixels)
    np.testing.assert_array_equal(moved[::2], bump(30)[::2])
    np.testing.assert_allclose(moved[1::2], bump(30 + pixels)[1::2], atol=1e-9)


def scan(seed=0):
    rng = np.random.default_rng(seed)
    truth = Volume(rng.uniform(0, 200, (10, 12, 24)).astype(np.float32), np.eye(4))
    thick = Volume(rng.uniform(0, 200, (10, 12, 6)).astype(np.float32), np.diag([1.0, 1, 4, 1]), thickness_mm=4.0)
    return truth, thick


@catches("evaluation/disturbances.py", "np.moveaxis(thick.voxels, axis, 0)", "thick.voxels")
def test_noise_is_in_percent_of_the_truths_range_and_the_rest_is_across_the_slice_axis():
    truth, thick = scan()
    same = disturb(truth, thick, 2, Condition())
    np.testing.assert_array_equal(same.voxels, thick.voxels)
    noisy = disturb(truth, thick, 2, Condition(noise_percent=5))
    assert np.std(noisy.voxels - thick.voxels) == pytest.approx(0.05 * 198, rel=0.06)
    assert noisy.voxels.dtype == np.float32
    brighter = disturb(truth, thick, 2, Condition(brightness_percent=10)).voxels
    np.testing.assert_array_equal(brighter[:, :, ::2], thick.voxels[:, :, ::2])
    assert np.all(np.abs(brighter - thick.voxels)[:, :, 1::2].max(axis=(0, 1)) > 10)
    moved = disturb(truth, thick, 2, Condition(shift_px=1)).voxels
    np.testing.assert_allclose(moved[1:, :, 1], thick.voxels[:-1, :, 1], atol=1e-3)


def test_no_rician_noise_below_zero():
    truth, thick = scan()
    below = Volume(truth.voxels - 100, truth.affine)
    with pytest.raises(PlanRefused, match="Rician"):
        disturb(below, thick, 2, Condition(noise_percent=5, noise_kind="rician"))
