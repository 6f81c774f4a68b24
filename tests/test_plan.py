"""Laws of the plan: every decision, once, in millimetres that can be checked."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from faults import catches
from planning import plan_for
from strategies import affines, axes, grids, millimetres, profiles, scans, scans_and_wishes
from thinslice.errors import PlanRefused, ThinsliceError
from thinslice.models.envelope import Envelope
from thinslice.physics.projection import NOISE_LEVEL, noise_to_signal
from thinslice.plan import ISOTROPIC_BELOW, MAX_SLICES, Plan
from thinslice.settings import PROFILES
from thinslice.volume import Volume, through_plane_axis

MM = 1e-9
"""Affines are float64 and hundreds of millimetres large: 1e-9 mm leaves room for a few hundred roundings."""


def centre_mm(affine, axis, index):
    """Patient position of a point on the through-plane axis of the corner column of voxels."""
    affine = np.asarray(affine)
    return affine[:3, 3] + affine[:3, axis] * index


def stack(n_thick=5, thick_mm=4.0, pixel_mm=1.0, **facts):
    return Volume(np.zeros((4, 4, n_thick), np.float32), np.diag([pixel_mm, pixel_mm, thick_mm, 1.0]), **facts)


@catches("plan.py", "{name: _to_tuples(value) for name, value", "{name: value for name, value")
@catches("volume.py", "(1 - SAME_SPACING))[-1])", "(1 - SAME_SPACING))[-1] * 0 + 2)")
@given(scans_and_wishes())
def test_the_plan_survives_json(case):
    volume, wish = case
    plan = plan_for(volume, **wish, model_sha256="ab" * 32, noise=0.03, projection=False)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert hash(again.affine_thin) == hash(plan.affine_thin)
    assert isinstance(json.loads(plan.to_json()), dict)
    np.testing.assert_array_equal(again.acquisition().matrix(), plan.acquisition().matrix())


@catches("volume.py", "thin[:3, 3] -= thin[:3, :3] @ first", "pass")
@catches("volume.py", "thin[:3, 3] -=", "thin[:3, 3] +=")
@catches("volume.py", "thin[:3, :3] /= finer", "pass")
@catches(
    "plan.py",
    "refine_affine(volume.affine, finer, first)",
    "refine_affine(volume.affine, [k if k != real_factor else thick_mm / target_mm for k in finer], first)",
)
@catches(
    "plan.py", "(np.arange(self.n_thin) - self.first_centre)", "(np.arange(self.n_thin) + 0.5 - self.first_centre)"
)
@given(scans_and_wishes())
def test_positions_and_affines_say_the_same(case):
    volume, wish = case
    plan = plan_for(volume, **wish)
    for j, position in enumerate(plan.positions()):
        thick = centre_mm(plan.affine_thick, plan.axis, position)
        np.testing.assert_allclose(centre_mm(plan.affine_thin, plan.axis, j), thick, atol=MM)


@catches("plan.py", "first_centre = (factor - 1) / 2 if", "first_centre = factor / 2 if")
@catches("plan.py", "first_centre = (factor - 1) / 2 if", "first_centre = 0.0 if")
@given(scans_and_wishes())
def test_the_fov_grid_keeps_the_outer_edges(case):
    volume, wish = case
    plan = plan_for(volume, **(wish | {"grid": "fov"}))
    for end in (0, 1):
        thick = centre_mm(volume.affine, plan.axis, end * plan.n_thick - 0.5)
        thin = centre_mm(plan.affine_thin, plan.axis, end * plan.n_thin - 0.5)
        np.testing.assert_allclose(thin, thick, atol=MM)


@catches("plan.py", 'settings.grid == "fov" else 0.0', 'settings.grid == "fov" else 0.5')
@catches("plan.py", "factor = (n_thin - 1) / (n_thick - 1)", "factor = n_thin / n_thick")
@given(scans_and_wishes())
def test_the_centre_grid_keeps_the_outer_centres(case):
    volume, wish = case
    plan = plan_for(volume, **(wish | {"grid": "centres"}))
    for end in (0, 1):
        thick = centre_mm(volume.affine, plan.axis, end * (plan.n_thick - 1))
        thin = centre_mm(plan.affine_thin, plan.axis, end * (plan.n_thin - 1))
        np.testing.assert_allclose(thin, thick, atol=MM)


@given(scans_and_wishes())
def test_oblique_and_sheared_directions_are_kept(case):
    volume, wish = case
    plan = plan_for(volume, **wish)
    thin, thick = np.array(plan.affine_thin), volume.affine
    assert plan.axis == int(np.argmax(volume.spacing_mm))
    for axis in range(3):
        if axis == plan.axis:
            np.testing.assert_allclose(thin[:3, axis] * plan.factor, thick[:3, axis], atol=MM)
        else:
            np.testing.assert_array_equal(thin[:3, axis], thick[:3, axis])
            assert plan.shape_thin[axis] == volume.shape[axis]
    np.testing.assert_array_equal(thin[3], [0, 0, 0, 1])
    np.testing.assert_array_equal(plan.affine_thick, thick)
    np.testing.assert_allclose(plan.spacing_thin_mm, np.linalg.norm(thin[:3, :3], axis=0), atol=MM)


@catches("plan.py", "fwhm_vox = self.thickness_over_spacing * self.factor", "fwhm_vox = self.factor")
@given(scans_and_wishes())
def test_the_matrix_sees_the_thickness_in_millimetres(case):
    volume, wish = case
    plan = plan_for(volume, **(wish | {"profile": "gaussian"}))
    matrix, thin_mm = plan.acquisition().matrix(), plan.spacing_thin_mm[plan.axis]
    assert matrix.shape == (plan.n_thick, plan.n_thin)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
    wanted = volume.thickness_mm or plan.spacing_thick_mm[plan.axis]
    wanted = wish.get("thickness_mm", wanted)
    # Ratio of two weights of one row: exact for a Gaussian wherever its centre lies.
    row = matrix[plan.n_thick // 2]
    top = int(np.argmax(row))
    other = top + 1 if top + 1 < plan.n_thin and row[top + 1] > 0 else top - 1
    centre = plan.first_centre + plan.factor * (plan.n_thick // 2)
    squares = ((top - centre) ** 2 - (other - centre) ** 2) * thin_mm**2
    if abs(squares) > 1e-3:
        assert np.log(row[top] / row[other]) == pytest.approx(-4 * np.log(2) * squares / wanted**2, rel=1e-6)


@given(volume=scans(), grid=grids, wish=st.floats(1.8, 6.0))
def test_the_wished_factor_is_honoured_to_the_next_whole_slice(volume, grid, wish):
    plan = plan_for(volume, factor=wish, grid=grid)
    intervals, wanted = (plan.n_thin, plan.n_thick) if grid == "fov" else (plan.n_thin - 1, plan.n_thick - 1)
    assert abs(intervals - wanted * wish) <= 0.5 + 1e-9
    assert plan.factor == intervals / wanted
    assert plan_for(volume, spacing_mm=max(volume.spacing_mm) / wish, grid=grid).shape_thin == plan.shape_thin


@given(volume=scans(), grid=grids, factor=st.integers(2, 7))
def test_a_whole_factor_is_honoured_exactly(volume, grid, factor):
    plan = plan_for(volume, factor=factor, grid=grid)
    assert plan.factor == factor
    assert plan.n_thin == (factor * plan.n_thick if grid == "fov" else factor * (plan.n_thick - 1) + 1)
    assert not any("do not divide" in note for note in plan.notes)


@catches("plan.py", "target_mm = max(in_plane_mm)", "target_mm = min(in_plane_mm)")
@given(volume=scans())
def test_the_default_is_the_coarser_in_plane_spacing(volume):
    plan = plan_for(volume)
    target = sorted(volume.spacing_mm)[1]
    assert abs(plan.n_thin - plan.n_thick * max(volume.spacing_mm) / target) <= 0.5 + 1e-9


def test_a_rounded_grid_is_said_in_a_note():
    plan = plan_for(stack(5, 4.0), spacing_mm=1.5)
    assert plan.n_thin == 13
    assert any("do not divide" in note and "field of view" in note for note in plan.notes)


def test_thickness_comes_from_the_wish_then_the_header_then_the_spacing():
    assert plan_for(stack()).thickness_mm == 4.0
    assert plan_for(stack(thickness_mm=3.5)).thickness_mm == 3.5
    assert plan_for(stack(thickness_mm=3.5), thickness_mm=5.0).thickness_mm == 5.0
    assert any("3.5 mm as stated with the scan" in note for note in plan_for(stack(thickness_mm=3.5)).notes)
    assert plan_for(stack(), thickness_mm=3.0).thickness_over_spacing == 0.75


def test_a_profile_that_cannot_be_found_is_a_box_and_a_note_says_so():
    silent = plan_for(stack(), profile=None)
    assert (silent.profile, silent.thickness_mm) == ("box", 4.0)
    assert any("taken for a box of 4 mm (the slice spacing" in note for note in silent.notes)
    stated = plan_for(stack(thickness_mm=3.0), profile=None)
    assert (stated.profile, stated.thickness_mm) == ("box", 3.0)
    assert any("taken for a box of 3 mm (the slice thickness)" in note for note in stated.notes)
    for profile in PROFILES:
        told = plan_for(stack(), profile=profile)
        assert told.profile == profile
        assert not any("not known" in note for note in told.notes)


@catches("plan.py", "fwhm_vox, self.profile, self.axis)", 'fwhm_vox, "gaussian", self.axis)')
def test_gap_overlap_and_profile_change_the_matrix():
    plain = plan_for(stack()).acquisition().matrix()
    for wish in ({"thickness_mm": 3.0}, {"thickness_mm": 5.0}, {"profile": "box"}, {"grid": "centres"}):
        other = plan_for(stack(), **wish).acquisition().matrix()
        assert other.shape != plain.shape or np.abs(other - plain).max() > 0.01


@given(axis=axes, data=st.data())
def test_the_through_plane_axis_is_found_wherever_it_is(axis, data):
    volume = data.draw(scans(axis=st.just(axis)))
    assert through_plane_axis(volume) == plan_for(volume).axis == axis


@catches("plan.py", "if thick_mm / target_mm < ISOTROPIC_BELOW:", "if thick_mm / target_mm < 0.5:")
@given(scan=millimetres(0.5, 2.0), data=st.data(), stretch=st.floats(1.0, ISOTROPIC_BELOW - 0.001))
def test_an_isotropic_scan_is_refused_with_a_way_out(scan, data, stretch):
    affine = data.draw(affines((scan, scan, scan * stretch), shear=False))
    volume = Volume(np.zeros((8, 8, 8), np.float32), affine)
    with pytest.raises(PlanRefused, match=r"isotropic.*next:.*`factor` or `spacing_mm`"):
        plan_for(volume)
    assert plan_for(volume, factor=2).n_thin == 16  # the way out is open


@pytest.mark.parametrize("spacings", [(0.5, 3.0, 3.0), (3.0, 0.5, 3.0), (3.0, 3.0, 0.5)])
def test_a_scan_that_is_coarse_along_two_axes_is_not_called_isotropic(spacings):
    volume = Volume(np.zeros((8, 8, 8), np.float32), np.diag([*spacings, 1.0]))
    with pytest.raises(PlanRefused, match=r"coarse along two axes.*next:.*`spacing_mm=0\.5`") as refusal:
        plan_for(volume)
    assert "isotropic" not in str(refusal.value)
    assert plan_for(volume, spacing_mm=0.5).factor == 6  # the way out is open


@pytest.mark.parametrize(
    ("volume", "wish"),
    [
        (stack(1), {}),
        (stack(), {"factor": 1.0}),
        (stack(), {"factor": 0.5}),
        (stack(), {"factor": 1.05}),
        (stack(), {"spacing_mm": 4.0}),
        (stack(), {"spacing_mm": 9.0}),
        (stack(), {"spacing_mm": 1.0, "factor": 4}),
        (stack(), {"factor": float("nan")}),
        (stack(), {"spacing_mm": -1.0}),
        (stack(), {"spacing_mm": 0.0}),
        (stack(), {"factor": float("inf")}),
        (stack(), {"factor": MAX_SLICES / 5 + 1}),
        (stack(), {"thickness_mm": 0.0}),
        (stack(), {"thickness_mm": float("nan")}),
        (stack(thickness_mm=-1.0), {}),
        (stack(), {"grid": "corners"}),
    ],
)
def test_every_refusal_says_got_need_next(volume, wish):
    with pytest.raises(PlanRefused, match=r"(?s)got .*need .*next: ") as caught:
        plan_for(volume, **wish)
    assert isinstance(caught.value, ThinsliceError)
    assert "\n" not in str(caught.value)


ENVELOPE = Envelope((1.5, 8.0), (0.6, 1.3), ("gaussian",))


@catches(
    "plan.py",
    "most = min(np.floor((largest_factor + TOLERANCE) * spans)",
    "most = min(np.ceil((largest_factor + TOLERANCE) * spans)",
)
@catches("plan.py", "if not low - TOLERANCE <= ratio <= high + TOLERANCE:", "if not ratio <= high + TOLERANCE:")
@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"factor": 9}, r"factor of 9 .*1\.5 to 8.*`spacing_mm=0\.5` or more"),
        ({"factor": 1.4}, r"factor of 1\.4 .*1\.5 to 8.*`spacing_mm=2\.5` or less"),
        ({"thickness_mm": 2.0}, r"2 mm, 0\.5 times.*0\.6 to 1\.3"),
        ({"thickness_mm": 6.0}, r"6 mm, 1\.5 times.*0\.6 to 1\.3"),
        ({"profile": "box"}, r"profile box.*gaussian"),
    ],
)
def test_what_a_model_is_not_valid_for_is_refused_with_a_way_out(wish, words):
    with pytest.raises(PlanRefused, match=words + r".*`model=cubic`"):
        plan_for(stack(), model="net", envelope=ENVELOPE, **wish)
    plan_for(stack(), **wish)  # which cubic does


@pytest.mark.parametrize("wish", [{"factor": 1.6}, {"factor": 8}, {"thickness_mm": 2.4}, {"thickness_mm": 5.2}])
def test_both_ends_of_the_envelope_are_inside(wish):
    plan_for(stack(), model="net", envelope=ENVELOPE, **wish)


@given(
    n=st.integers(2, 60),
    thick=millimetres(2.0, 8.0),
    grid=grids,
    wish=st.sampled_from([1.01, 1.15, 10.0, 33.3, 20_000.0]),
    envelope=st.sampled_from([Envelope((1.4, 8.5), (0.5, 2.0)), Envelope((1.5, 8.0), (0.5, 2.0)), None]),
)
@example(n=11, thick=3.0, grid="fov", wish=1.15, envelope=Envelope((1.4, 8.5), (0.5, 2.0)))
def test_the_spacing_that_a_refusal_advises_is_accepted(n, thick, grid, wish, envelope):
    try:
        plan_for(stack(n, thick), factor=wish, grid=grid, envelope=envelope)
    except PlanRefused as refusal:
        advised = float(str(refusal).split("`spacing_mm=")[1].split("`")[0])
    else:
        assert envelope is None  # without one, most is possible
        return
    plan = plan_for(stack(n, thick), spacing_mm=advised, grid=grid, envelope=envelope)
    if envelope:
        # The advice is the end of what is possible: one slice further is refused.
        spans = n if grid == "fov" else n - 1
        step = 1 if wish > 5 else -1
        beyond = (plan.factor * spans + step) / spans
        assert not envelope.factor[0] <= beyond <= envelope.factor[1] or beyond <= 1


def test_where_no_whole_number_of_slices_fits_another_model_is_advised():
    narrow = Envelope((2.1, 2.2), (0.5, 2.0))
    with pytest.raises(PlanRefused, match=r"next: use `model=cubic`"):
        plan_for(stack(3), factor=2, envelope=narrow)


@catches("plan.py", "    _check_matrix(plan)\n", "")
@given(ratio=st.floats(0.05, 3.0), factor=st.integers(2, 6), grid=grids, profile=profiles)
@example(ratio=0.1, factor=2, grid="fov", profile="gaussian")
def test_a_plan_that_was_made_can_be_carried_out(ratio, factor, grid, profile):
    try:
        plan = plan_for(stack(), factor=factor, thickness_mm=4.0 * ratio, grid=grid, profile=profile)
    except PlanRefused:
        return
    assert np.isfinite(plan.acquisition().matrix()).all()


@given(factor=st.floats(1.6, 6.0), grid=grids)
@example(factor=2.0, grid="fov")
def test_the_thickness_that_a_refusal_advises_is_accepted(factor, grid):
    try:
        plan_for(stack(), factor=factor, thickness_mm=0.001, grid=grid)
    except PlanRefused as refusal:
        enough = float(str(refusal).split("at least ")[1].split(" mm")[0])
        plan_for(stack(), factor=factor, thickness_mm=enough, grid=grid)
    plan_for(stack(), factor=factor, thickness_mm=0.001, grid=grid, profile="box")  # the other way out


def noisy(percent):
    """A bright ball in the dark, the noise in percent of its brightness; slices along the first axis."""
    x, y, z = np.ogrid[-1:1:12j, -1:1:96j, -1:1:96j]
    ball = 100.0 * (x**2 + y**2 + z**2 < 0.7)
    ball += np.random.default_rng(0).normal(scale=percent, size=ball.shape)
    return Volume(ball, np.diag([4.0, 1.0, 1.0, 1.0]))


@catches("plan.py", "return noise_to_signal(found.sd), found", "return 0.003, found")
def test_the_projection_follows_the_noise_of_the_slices():
    small = plan_for(Volume(np.zeros((4, 4, 4)), np.diag([1.0, 1.0, 4.0, 1.0])), noise=None)
    assert (small.slice_noise, small.noise) == (None, NOISE_LEVEL)
    clean, one, three = (plan_for(noisy(percent), noise=None) for percent in (0, 1, 3))
    assert clean.noise == pytest.approx(NOISE_LEVEL, rel=0.01)
    # The noise widens the range by five standard deviations, half of them at each end.
    for plan, true in ((one, 0.01 / 1.05), (three, 0.03 / 1.15)):
        assert plan.slice_noise == pytest.approx(true, rel=0.15)
        assert plan.noise == noise_to_signal(plan.slice_noise)
    assert not any("have noise" in note for note in clean.notes)
    assert any("the slices have noise of 2." in note for note in three.notes)
    told = plan_for(noisy(3), noise=0.5)
    assert (told.slice_noise, told.noise) == (None, 0.5)
    assert not any("have noise" in note for note in told.notes)


@catches("plan.py", "found.independent < NOISE_WORTH_SMOOTHING", "False")
def test_clear_noise_is_smoothed_unless_it_shall_not_be():
    clean, one, three = (plan_for(noisy(percent), noise=None) for percent in (0, 1, 3))
    assert clean.smoothed_noise == one.smoothed_noise == 0
    assert three.smoothed_noise == pytest.approx(three.slice_noise, rel=0.1)
    assert any("smoothed where there is nothing else (`denoise=False`" in note for note in three.notes)
    left = plan_for(noisy(3), noise=None, denoise=False)
    assert left == replace(three, smoothed_noise=0.0, notes=left.notes)
    assert any("have noise" in note and "smoothed" not in note for note in left.notes)


@catches("plan.py", "return model.envelope is None and not settings.projection", "return False")
def test_plain_interpolation_is_left_plain():
    x, y = np.mgrid[-1:1:96j, -1:1:96j]
    uneven = Volume(
        np.stack([100 * np.exp(-(x**2) - y**2 - z**2) for z in np.linspace(-1, 1, 16)]), np.diag([4, 1, 1, 1.0])
    )
    uneven.voxels[1::2] *= 1.1
    uneven.voxels[...] += np.random.default_rng(0).normal(scale=4, size=uneven.voxels.shape)
    projected = plan_for(uneven, noise=None)
    assert projected.smoothed_noise > 0
    assert projected.alternating_gain > 1.05
    plain = plan_for(uneven, noise=None, projection=False)
    assert (plain.smoothed_noise, plain.alternating_gain) == (0, 1)
    assert not any("noise" in note or "every other" in note for note in plain.notes)


def test_the_noise_of_a_series_is_that_of_its_first_volume():
    series = np.stack([noisy(3).voxels, noisy(0).voxels], axis=-1)
    plan = plan_for(Volume(series, np.diag([4.0, 1.0, 1.0, 1.0])), noise=None)
    assert plan.slice_noise == plan_for(noisy(3), noise=None).slice_noise
