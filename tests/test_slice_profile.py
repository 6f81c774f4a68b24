"""The slice profile of a scan is found: from what is told, what is stated, and what its slices show."""

from functools import cache

import numpy as np
import pytest

import thinslice
from faults import catches
from thinslice.compute.consistency import map_misfit
from thinslice.errors import PlanRefused
from thinslice.models.envelope import Envelope
from thinslice.models.slice_profile import NARROWEST, Estimate, Estimator, estimate, find_profile
from thinslice.physics.acquisition import Acquisition
from thinslice.physics.interleaving import Alternation
from thinslice.physics.interpolation import cubic_matrix, linear_matrix
from thinslice.physics.profile import sd_over_fwhm
from thinslice.physics.slice_statistics import find_interpolation, measure, swap_axes
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


@catches("models/slice_profile.py", "found = seen.combined(", "found = (lambda _: seen)(")
def test_a_stated_thickness_has_its_say():
    scan = made_thick(0.75, "box")
    alone = find_profile(scan, 0, Settings(), None)
    stated = find_profile(made_thick(0.75, "box", thickness_mm=3.0), 0, Settings(), None)
    truth = 0.75 * sd_over_fwhm("box")
    widths = [one.thickness_mm / FACTOR * sd_over_fwhm(one.profile) for one in (alone, stated)]
    assert abs(widths[1] - truth) < 0.06
    assert stated.uncertainty < alone.uncertainty
    assert (alone.source, stated.source) == ("estimated", "stated")
    # A header that is far from what the slices show is contradicted in a note.
    wrong = find_profile(made_thick(0.5, "box", thickness_mm=8.0), 0, Settings(), None)
    assert any("thinner than expected" in note for note in wrong.notes)
    with pytest.raises(PlanRefused, match="positive"):
        find_profile(made_thick(1.0, "box", thickness_mm=float("nan")), 0, Settings(), None)


def in_hounsfield(scan: Volume) -> Volume:
    return Volume(1500 * scan.voxels - 1000, scan.affine)


@catches("models/slice_profile.py", "RECONSTRUCTED if is_hounsfield", "USUAL if is_hounsfield")
def test_computed_tomography_has_no_gaps_between_its_slices():
    """Nothing is stated; slices that seem a little thinner than their spacing are rather as thick as that."""
    scan = made_thick(0.85, "box")
    as_mr, as_ct = (find_profile(one, 0, Settings(), None) for one in (scan, in_hounsfield(scan)))
    assert as_mr.thickness_mm < as_ct.thickness_mm < FACTOR * 0.33 / sd_over_fwhm("gaussian")
    assert as_ct.uncertainty < as_mr.uncertainty


@catches("models/slice_profile.py", "if contradicts and stated_mm is None", "if False")
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


@catches("physics/slice_statistics.py", ">= EMPTY * low", ">= 30 * EMPTY * low")
@catches("physics/slice_statistics.py", ">= EMPTY * low", ">= 1e-9 * low")
def test_interpolated_slices_are_recognised_and_others_are_not():
    rng = np.random.default_rng(0)
    for width, profile in [*WIDTHS, (2.2, "box"), (1.7, "gaussian")]:
        assert not recognised(made_thick(width, profile).voxels)
    stack = made_thick(1.0, "box").voxels
    n = len(stack)
    noisy = stack + 0.01 * rng.standard_normal(stack.shape, dtype=np.float32)
    positions = (np.arange(2 * n) - 0.5) / 2
    for one in (stack, noisy):
        for matrix in (linear_matrix, cubic_matrix):
            between = np.tensordot(matrix(positions, n), one, axes=1)
            assert recognised(between)
            assert recognised(np.round(200 * between))
    assert recognised(filled_up(noisy))


def recognised(stack: np.ndarray) -> bool:
    return find_interpolation(stack) != "none"


def filled_up(stack: np.ndarray) -> np.ndarray:
    """Twice as many slices, by zeros in k-space; every other one is as it was."""
    spectrum = np.fft.rfft(np.concatenate([stack, stack[::-1]]), axis=0)
    filled = 2 * np.fft.irfft(spectrum, 4 * len(stack), axis=0)[: 2 * len(stack)]
    return filled.astype(np.float32)


@catches("models/slice_profile.py", 'found == "halved" and', 'found == "less" and')
@pytest.mark.parametrize("model", ["cubic", "default"])
def test_interpolated_slices_are_enhanced_from_every_other_one(model):
    stack = made_thick(1.0, "box").voxels
    filled = filled_up(stack)
    assert np.allclose(filled[::2], stack, atol=1e-4)
    done = thinslice.enhance(filled, affine=np.diag([2.0, 1.0, 1.0, 1.0]), model=model, spacing_mm=1.0)
    assert done.plan.every == 2
    assert any("computed from every second one" in note for note in done.report.notes)
    assert done.plan.shape_thick == filled.shape
    # The same slices without those between them: the same answer, on a grid that begins half a stored slice earlier.
    direct = thinslice.enhance(stack, affine=np.diag([4.0, 1.0, 1.0, 1.0]), model=model, spacing_mm=1.0)
    assert done.array.shape == direct.array.shape
    # Nearly: of all slices another noise is estimated. Not at the ends, where the two grids end at different places.
    apart = done.array[:-1][16:-16] - direct.array[1:][16:-16]
    assert np.sqrt(np.mean(apart**2)) < 5e-3
    assert done.report.consistency.rms_percent == pytest.approx(direct.report.consistency.rms_percent, abs=0.3)


@catches("models/slice_profile.py", "if factor is None or _has_factor(", "if factor is None or not _has_factor(")
def test_interpolated_slices_are_all_computed_from_where_the_model_has_no_such_factor():
    filled = Volume(filled_up(made_thick(1.0, "box").voxels), np.diag([2.0, 1.0, 1.0, 1.0]))
    envelope = Envelope(factor=(1.5, 10.0), thickness_over_spacing=(0.4, 2.2))
    assert find_profile(filled, 0, Settings(), envelope, factor=5.0).every == 2
    for refused in (envelope, Envelope(only_factors=(2, 6), thickness_over_spacing=(0.4, 2.2))):
        found = find_profile(filled, 0, Settings(), refused, factor=6.0)
        assert found.every == 1
        assert 0.4 <= found.thickness_mm / 2.0 <= 2.2


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
