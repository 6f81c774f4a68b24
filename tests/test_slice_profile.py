"""The slice profile of a scan is found: from what is told, what is stated, and what its slices show."""

from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

import thinslice
from faults import catches
from thinslice.compute.consistency import map_misfit
from thinslice.compute.kept_slices import take_kept
from thinslice.errors import PlanRefused
from thinslice.models.envelope import Envelope
from thinslice.models.registry import find_model
from thinslice.models.slice_profile import NARROWEST, Estimate, Estimator, estimate, find_profile
from thinslice.physics.acquisition import Acquisition
from thinslice.physics.interleaving import Alternation
from thinslice.physics.interpolation import cubic_matrix, linear_matrix
from thinslice.physics.profile import sd_over_fwhm
from thinslice.physics.slice_statistics import find_first_acquired, find_interpolation, measure, swap_axes
from thinslice.plan import Plan, make_plan
from thinslice.settings import PROFILES, Settings
from thinslice.volume import Volume

FACTOR = 4


@cache
def leaves(side: int = 96, count: int = 1200, seed: int = 3) -> np.ndarray:
    """Balls of all sizes that hide each other: edges in every direction, as anatomy has them."""
    rng = np.random.default_rng(seed)
    voxels = np.full((side, side, side), 0.3, np.float32)
    for _ in range(count):
        radius = min(2.5 / rng.random() ** 0.5, 25.0)
        centre = rng.uniform(0, side, 3)
        low = np.maximum(np.floor(centre - radius).astype(int), 0)
        high = np.minimum(np.ceil(centre + radius).astype(int) + 1, side)
        block = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        distance = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(np.ogrid[block], centre, strict=True)))
        share = np.clip(radius - distance + 0.5, 0, 1)
        voxels[block] += share * (np.float32(rng.random()) - voxels[block])
    return voxels


def made_thick(width: float, profile: str, factor: float = FACTOR, **about) -> Volume:
    """The leaves in slices ``factor`` apart."""
    thin = leaves()
    n = int(len(thin) / factor)
    centres = (len(thin) - factor * (n - 1) - 1) / 2 + factor * np.arange(n)
    return Volume(
        Acquisition(centres, len(thin), width * factor, profile).forward(thin),
        np.diag([float(factor), 1.0, 1.0, 1.0]),
        **about,
    )


WIDTHS = [(0.5, "box"), (1.0, "box"), (0.75, "gaussian"), (1.0, "gaussian"), (1.5, "gaussian")]


@pytest.mark.parametrize(("width", "profile"), WIDTHS)
@pytest.mark.parametrize("factor", [3, 4, 6.5])
def test_the_width_of_the_profile_is_found_blind(width, profile, factor):
    found = estimate(made_thick(width, profile, factor), 0)
    # Balls are no anatomy, of which the estimator has learnt: on that it is 0.033 off on average (LOG.md).
    assert found.sd == pytest.approx(width * sd_over_fwhm(profile), abs=0.1)


@catches("models/slice_profile.py", "np.stack([measured, swap_axes(measured)])", "np.stack([measured, measured])")
def test_the_estimate_is_the_same_for_the_transposed_and_the_stretched_scan():
    scan = made_thick(0.9, "gaussian")
    found = estimate(scan, 0)
    turned = Volume(np.ascontiguousarray(scan.voxels.swapaxes(1, 2)), scan.affine)
    assert estimate(turned, 0).sd == pytest.approx(found.sd, abs=1e-4)
    brighter = Volume(300 + 1000 * scan.voxels, scan.affine)
    assert estimate(brighter, 0).sd == pytest.approx(found.sd, abs=1e-3)
    along = Volume(np.moveaxis(scan.voxels, 0, 2), np.diag([1.0, 1.0, FACTOR, 1.0]))
    assert estimate(along, 2).sd == pytest.approx(found.sd, abs=1e-4)


def test_swapped_statistics_are_those_of_the_transposed_stack():
    stack = made_thick(1.0, "box").voxels
    assert np.allclose(
        swap_axes(measure(stack, (4.0, 4.0))),
        measure(np.ascontiguousarray(stack.swapaxes(1, 2)), (4.0, 4.0)),
        atol=1e-3,
    )


@catches("models/slice_profile.py", "while steps[side] > STEPS[1]:", "while False:")
def test_pixels_much_finer_than_slices_are_joined():
    scan = made_thick(0.8, "gaussian")
    finer, finest = (
        Volume(scan.voxels.repeat(n, axis=1).repeat(n, axis=2)[:, :190, :190], np.diag([FACTOR, 1 / n, 1 / n, 1.0]))
        for n in (2, 4)
    )
    joined = Volume(finest.voxels.reshape(24, 95, 2, 95, 2).mean(axis=(2, 4)), finer.affine)
    assert estimate(finest, 0).sd == pytest.approx(estimate(joined, 0).sd, abs=1e-3)


def test_slices_that_tell_nothing_are_taken_for_a_box():
    stack = made_thick(1.0, "gaussian")
    for voxels, affine in (
        (stack.voxels[:4], stack.affine),
        (np.ones_like(stack.voxels), stack.affine),
        (stack.voxels[:, :10], stack.affine),
        (stack.voxels, np.diag([1.2, 1.0, 1.0, 1.0])),
    ):
        scan = Volume(voxels, affine)
        assert estimate(scan, 0) is None
        found = find_profile(scan, 0, Settings(), None)
        assert (found.profile, found.source) == ("box", "assumed")
        assert found.thickness_mm == pytest.approx(affine[0, 0])
        assert "not known" in found.notes[0]


@catches("models/slice_profile.py", "if settings.profile is not None:", "if False:")
def test_what_is_told_is_obeyed():
    scan = made_thick(1.0, "gaussian", thickness_mm=3.0)
    for profile in PROFILES:
        found = find_profile(scan, 0, Settings(profile=profile), None)
        assert (found.profile, found.thickness_mm, found.source) == (profile, 3.0, "told")
    found = find_profile(scan, 0, Settings(profile="box", thickness_mm=2.0), None)
    assert (found.profile, found.thickness_mm) == ("box", 2.0)
    assert find_profile(scan, 0, Settings(thickness_mm=2.0), None).thickness_mm == 2.0


@catches("models/slice_profile.py", "return expected, seen.combined(", "return expected, (lambda _: seen)(")
def test_a_stated_thickness_has_its_say():
    scan = made_thick(0.75, "box")
    alone = find_profile(scan, 0, Settings(), None)
    stated = find_profile(made_thick(0.75, "box", thickness_mm=3.0), 0, Settings(), None)
    truth = 0.75 * sd_over_fwhm("box")
    widths = [one.thickness_mm / FACTOR * sd_over_fwhm(one.profile) for one in (alone, stated)]
    assert abs(widths[1] - truth) < 0.06
    assert stated.uncertainty < alone.uncertainty
    assert (alone.source, stated.source) == ("estimated", "stated")
    # A header that is far from what the slices show is contradicted in a note, and not believed.
    bare = find_profile(made_thick(0.5, "box"), 0, Settings(), None)
    for nonsense_mm, word in ((12.0, "thinner"), (0.01, "thicker")):
        wrong = find_profile(made_thick(0.5, "box", thickness_mm=nonsense_mm), 0, Settings(), None)
        assert any(f"{word} than expected" in note for note in wrong.notes)
        assert (wrong.thickness_mm, wrong.source) == (bare.thickness_mm, "estimated")
    # One that a scanner may have had has its say all the same.
    thick = find_profile(made_thick(0.5, "box", thickness_mm=8.0), 0, Settings(), None)
    assert any("thinner than expected" in note for note in thick.notes)
    assert thick.source == "stated"
    assert bare.thickness_mm < thick.thickness_mm


@catches("models/slice_profile.py", "volume.slice_axis not in (None, axis)", "False")
def test_the_thickness_of_slices_along_another_axis_is_none_of_these():
    """Reformats whose pixels are farther apart along one side than the slices are: that side is made thin."""
    scan = made_thick(0.75, "box", thickness_mm=1.0, slice_axis=2)
    found = find_profile(scan, 0, Settings(), None)
    assert found.source == "estimated"
    assert any("across the third axis" in note for note in found.notes)
    assert found.thickness_mm == find_profile(made_thick(0.75, "box"), 0, Settings(), None).thickness_mm
    along = find_profile(replace(scan, slice_axis=0), 0, Settings(), None)
    assert "slice thickness 1 mm as stated with the scan" in along.notes


@catches("models/slice_profile.py", 'source if settings.thickness_mm is None else "told"', "source")
def test_a_thickness_alone_is_obeyed_and_its_shape_found():
    scan = made_thick(1.0, "gaussian")
    found = find_profile(scan, 0, Settings(thickness_mm=4.0), None)
    assert (found.thickness_mm, found.source) == (4.0, "told")
    assert sd_over_fwhm(found.profile) > 0.35
    wide = find_profile(scan, 0, Settings(thickness_mm=8.0), None)
    assert (wide.thickness_mm, wide.profile) == (8.0, "box")
    assert any("look most like a box of that thickness" in note for note in wide.notes)


def test_computed_tomography_has_no_spin_echo():
    scan = in_hounsfield(made_thick(1.0, "spin-echo"))
    for thickness_mm in (3.5, 4.0, 4.5, 5.0):
        assert find_profile(replace(scan, thickness_mm=thickness_mm), 0, Settings(), None).profile != "spin-echo"
    with pytest.raises(PlanRefused, match="positive"):
        find_profile(made_thick(1.0, "box", thickness_mm=float("nan")), 0, Settings(), None)


def in_hounsfield(scan: Volume) -> Volume:
    return Volume(1500 * scan.voxels - 1000, scan.affine)


@catches("models/slice_profile.py", "RECONSTRUCTED if of_ct", "USUAL if of_ct")
def test_computed_tomography_has_no_gaps_between_its_slices():
    """Nothing is stated; slices that seem a little thinner than their spacing are rather as thick as that."""
    scan = made_thick(0.85, "box")
    as_mr, as_ct = (find_profile(one, 0, Settings(), None) for one in (scan, in_hounsfield(scan)))
    assert as_mr.thickness_mm < as_ct.thickness_mm < FACTOR * 0.33 / sd_over_fwhm("gaussian")
    assert as_ct.uncertainty < as_mr.uncertainty


@catches("models/slice_profile.py", "expected if is_believed else Estimate(*USUAL)", "expected")
def test_clear_evidence_of_gaps_is_believed_of_computed_tomography_too(monkeypatch):
    """Single slices far apart, as of lungs in high resolution."""
    monkeypatch.setattr("thinslice.models.slice_profile.estimate", lambda *_: Estimate(0.12, 0.03))
    found = find_profile(in_hounsfield(made_thick(0.4, "box")), 0, Settings(), None)
    assert found.thickness_mm / FACTOR * sd_over_fwhm(found.profile) == pytest.approx(0.127, abs=1e-3)
    assert any("thinner than expected" in note for note in found.notes)


@pytest.mark.parametrize("low", [0.4, 0.6, 0.9])
def test_a_profile_that_is_found_is_one_that_the_model_is_valid_for(low):
    envelope = Envelope(thickness_over_spacing=(low, 1.1), profiles=("gaussian", "box"))
    for width, profile in WIDTHS:
        found = find_profile(made_thick(width, profile), 0, Settings(), envelope)
        assert found.profile in envelope.profiles
        assert low - 1e-9 <= found.thickness_mm / FACTOR <= 1.1 + 1e-9


def test_what_alternates_is_taken_out_before_the_slices_are_looked_at():
    scan = made_thick(1.0, "gaussian")
    uneven = scan.voxels.copy()
    uneven[1::2] *= 1.1
    clean = estimate(scan, 0).sd
    assert abs(estimate(Volume(uneven, scan.affine), 0).sd - clean) > 0.02
    assert estimate(Volume(uneven, scan.affine), 0, Alternation(gain=1.1)).sd == pytest.approx(clean, abs=0.01)


@catches("physics/slice_statistics.py", "HALF_RANKS) >= EMPTY", "HALF_RANKS) >= 1e9 * EMPTY")
@catches("physics/slice_statistics.py", "HALF_RANKS) >= EMPTY", "HALF_RANKS) >= 1")
@catches("physics/slice_statistics.py", "HIGHER_RANKS) >= EMPTY", "HIGHER_RANKS) >= 1e9 * EMPTY")
def test_interpolated_slices_are_recognised_and_others_are_not():
    rng = np.random.default_rng(0)
    for width, profile in [*WIDTHS, (2.0, "box"), (2.2, "box"), (2.0, "gaussian"), (2.2, "gaussian")]:
        for factor in (2, 3, 4):
            assert not recognised(made_thick(width, profile, factor).voxels)
    stack = made_thick(1.0, "box").voxels
    n = len(stack)
    noisy = stack + 0.01 * rng.standard_normal(stack.shape, dtype=np.float32)
    positions = (np.arange(2 * n) - 0.5) / 2
    for one in (stack, noisy):
        for matrix in (linear_matrix, cubic_matrix):
            between = np.tensordot(matrix(positions, n), one, axes=1)
            assert find_interpolation(between) == "halved"
            assert find_interpolation(np.round(200 * between)) == "halved"
    assert find_interpolation(filled_up(noisy)) == "halved"
    third = np.tensordot(cubic_matrix(np.arange(n * 3 // 2) / 1.5, n), noisy, axes=1)
    assert find_interpolation(third) == "less"


def recognised(stack: np.ndarray) -> bool:
    return find_interpolation(stack) != "none"


def filled_up(stack: np.ndarray) -> np.ndarray:
    """Twice as many slices, by zeros in k-space; every other one is as it was."""
    spectrum = np.fft.rfft(np.concatenate([stack, stack[::-1]]), axis=0)
    filled = 2 * np.fft.irfft(spectrum, 4 * len(stack), axis=0)[: 2 * len(stack)]
    return filled.astype(np.float32)


@catches("physics/slice_statistics.py", "if PREDICTED * left[first] <", "if PREDICTED * left[first] >")
@catches("physics/slice_statistics.py", "(0.0, whole), (1.0, -whole)", "(0.0, -whole), (1.0, whole)")
@pytest.mark.parametrize("kind", ["linear", "cubic", "zeros"])
def test_the_slices_that_were_acquired_are_told_from_those_between_them(kind):
    stack = made_thick(1.0, "gaussian").voxels
    n = len(stack)
    if kind == "zeros":
        filled = filled_up(stack)
    else:
        matrix = {"linear": linear_matrix, "cubic": cubic_matrix}[kind]
        filled = np.tensordot(matrix(np.clip(np.arange(2 * n) / 2, 0, n - 1), n), stack, axes=1).astype(np.float32)
    assert find_first_acquired(filled) == 0
    assert find_first_acquired(filled[1:]) == 1
    assert find_first_acquired(filled[::-1]) == 1


@catches("physics/slice_statistics.py", "1j * np.pi * frequency", "1j * 2 * np.pi * frequency")
def test_slices_that_lie_between_acquired_ones_are_computed_from_those():
    """Programs that resample keep the outer edges of a scan: then no slice is one that was acquired."""
    stack = made_thick(1.0, "gaussian").voxels
    n = len(stack)
    filled = filled_up(stack)
    # A quarter of an acquired slice off: half-way between each two that were filled in.
    finer = filled_up(filled)[1::2]
    assert find_first_acquired(finer) in (0.5, 1.5)
    between = np.tensordot(cubic_matrix(np.clip((np.arange(2 * n) - 0.5) / 2, 0, n - 1), n), stack, axes=1)
    scan = Volume(between.astype(np.float32), np.diag([2.0, 1.0, 1.0, 1.0]))
    assert recognised(scan.voxels)
    found = find_profile(scan, 0, Settings(), None)
    assert (found.every, found.first) == (2, 0.5)
    kept, plan = take_kept(scan, make_plan(scan, Settings(spacing_mm=1.0, model="cubic"), find_model("cubic")))
    assert (plan.n_thick, plan.first_centre) == (n, 1.5)
    apart = kept.voxels[4:-4] - stack[4:-4]
    assert np.sqrt(np.mean(apart**2)) < 0.2 * np.sqrt(np.mean((between[8:-8:2] - stack[4:-4]) ** 2))


@catches("models/slice_profile.py", "if may_leave_out and seen.first is not None", "if may_leave_out")
def test_where_it_is_not_clear_which_slices_were_acquired_all_are_computed_from(monkeypatch):
    monkeypatch.setattr("thinslice.models.slice_profile.find_first_acquired", lambda _: None)
    scan = Volume(filled_up(made_thick(1.0, "box").voxels), np.diag([2.0, 1.0, 1.0, 1.0]))
    found = find_profile(scan, 0, Settings(), None)
    assert (found.every, found.first) == (1, 0)
    assert any("not clear" in note for note in found.notes)


@catches("plan.py", "affine[:3, 3] += self.first_kept", "affine[:3, 3] += 0 * self.first_kept")
@catches("plan.py", "first_centre=self.first_centre + self.first_kept * self.factor", "first_centre=self.first_centre")
def test_slices_that_are_left_out_may_be_the_first():
    filled = filled_up(made_thick(1.0, "box").voxels)
    affine = np.diag([2.0, 1.0, 1.0, 1.0])
    whole = thinslice.enhance(filled, affine=affine, model="cubic", spacing_mm=1.0)
    later = affine.copy()
    later[0, 3] = 2.0
    cut = thinslice.enhance(filled[1:], affine=later, model="cubic", spacing_mm=1.0)
    assert (whole.plan.first_kept, cut.plan.first_kept) == (0, 1)
    np.testing.assert_allclose(cut.array[24:-24], whole.array[2:][24:-24], atol=5e-3)
    of_kept = cut.plan.of_kept_slices()
    np.testing.assert_allclose(np.array(of_kept.affine_thick)[0, 3], 4.0)
    assert map_misfit(cut.acquired, cut.volume, cut.plan).voxels.shape == cut.acquired.shape


@catches("models/slice_profile.py", 'interpolation == "halved" else 1', 'interpolation == "less" else 1')
@pytest.mark.parametrize("model", ["cubic", "default"])
def test_interpolated_slices_are_enhanced_from_every_other_one(model):
    stack = made_thick(1.0, "box").voxels
    filled = filled_up(stack)
    assert np.allclose(filled[::2], stack, atol=1e-4)
    done = thinslice.enhance(filled, affine=np.diag([2.0, 1.0, 1.0, 1.0]), model=model, spacing_mm=1.0)
    assert done.plan.every == 2
    assert any("from every second one" in note for note in done.report.notes)
    assert done.plan.shape_thick == filled.shape
    # The same slices without those between them: the same answer, on a grid that begins half a stored slice earlier.
    direct = thinslice.enhance(stack, affine=np.diag([4.0, 1.0, 1.0, 1.0]), model=model, spacing_mm=1.0)
    assert done.array.shape == direct.array.shape
    # Nearly: of all slices another noise is estimated. Not at the ends, where the two grids end at different places.
    apart = done.array[:-1][16:-16] - direct.array[1:][16:-16]
    assert np.sqrt(np.mean(apart**2)) < 5e-3
    assert done.report.consistency.rms_percent == pytest.approx(direct.report.consistency.rms_percent, abs=0.3)


@catches("plan.py", "model.envelope.has_factor(2 * factor)", "model.envelope.has_factor(factor)")
def test_interpolated_slices_are_all_computed_from_where_the_model_has_no_such_factor():
    filled = Volume(filled_up(made_thick(1.0, "box").voxels), np.diag([2.0, 1.0, 1.0, 1.0]))
    envelope = Envelope(factor=(1.5, 10.0), thickness_over_spacing=(0.4, 2.2))

    def planned(envelope: Envelope, factor: float) -> Plan:
        model = SimpleNamespace(name="one", sha256=None, envelope=envelope)
        return make_plan(filled, Settings(factor=factor), model)

    assert planned(envelope, 5.0).every == 2
    for refused in (envelope, Envelope(only_factors=(2, 6), thickness_over_spacing=(0.4, 2.2))):
        plan = planned(refused, 6.0)
        assert plan.every == 1
        assert 0.4 <= plan.thickness_over_spacing <= 2.2
        assert any("all are computed from" in note for note in plan.notes)


@catches("plan.py", "return not _is_plain(model, settings) and (", "return (")
def test_plain_interpolation_is_that_of_all_slices():
    filled = filled_up(made_thick(1.0, "box").voxels)
    done = thinslice.enhance(
        filled, affine=np.diag([2.0, 1.0, 1.0, 1.0]), model="cubic", projection=False, spacing_mm=1.0
    )
    assert done.plan.every == 1
    plain = np.tensordot(cubic_matrix(done.plan.positions(), len(filled)), filled, axes=1)
    np.testing.assert_allclose(done.array, plain, atol=1e-5)


def test_interpolated_slices_have_one_answer_however_the_file_runs():
    filled = filled_up(made_thick(1.0, "box").voxels)
    affine = np.diag([2.0, 1.0, 1.0, 1.0])
    forwards = thinslice.enhance(filled, affine=affine, model="default", spacing_mm=1.0)
    other = affine.copy()
    other[0, 0], other[0, 3] = -2.0, 2.0 * (len(filled) - 1)
    backwards = thinslice.enhance(filled[::-1], affine=other, model="default", spacing_mm=1.0)
    np.testing.assert_allclose(backwards.array[::-1], forwards.array, atol=1e-4)
    assert backwards.report.consistency.rms == pytest.approx(forwards.report.consistency.rms, rel=1e-3)
    misfits = [map_misfit(done.acquired, done.volume, done.plan).voxels for done in (forwards, backwards)]
    assert misfits[0].shape == filled.shape
    np.testing.assert_allclose(misfits[1][::-1], misfits[0], atol=1e-4)


def test_estimates_are_combined_by_how_sure_they_are():
    both = Estimate(0.2, 0.02).combined(Estimate(0.4, 0.06))
    assert both.sd == pytest.approx(0.22)
    assert both.uncertainty == pytest.approx((0.02**-2 + 0.06**-2) ** -0.5)


def test_an_estimator_comes_back_from_its_file(tmp_path):
    rng = np.random.default_rng(0)
    count = len(measure(made_thick(1.0, "box").voxels, (4.0, 4.0)))
    shapes = ((5, count), (5,), (4, 5), (4,), (2, 4), (2,))
    networks = tuple(tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes) for _ in range(2))
    made = Estimator(rng.standard_normal(count), 1 + rng.random(count), networks, 1.5)
    made.save(tmp_path / "made.npz")
    measured = rng.standard_normal(count)
    assert Estimator.load(tmp_path / "made.npz")(measured) == made(measured)
    assert NARROWEST < 0.2
