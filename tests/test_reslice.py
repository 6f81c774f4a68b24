"""Back to the acquired grid: the plan's own matrix, for every grid and factor, and refusals where grids do not fit."""

from itertools import permutations

import numpy as np
import pytest

from faults import catches
from planning import plan_for
from thinslice.compute.labels import interpolate_labels
from thinslice.compute.reslice import reslice
from thinslice.compute.upsample import upsample
from thinslice.errors import InputRefused, PlanRefused
from thinslice.models.registry import find_model
from thinslice.volume import Volume

SHAPE = (40, 36, 9)
WISHES = [{"factor": 4}, {"factor": 3.4}, {"factor": 3, "grid": "centres"}, {"spacing_mm": 1.1, "grid": "centres"}]


def scan(
    voxels: np.ndarray, spacing_mm: tuple[float, ...] = (1.0, 0.9, 4.0), thickness_mm: float | None = None
) -> Volume:
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing_mm
    affine[:3, 3] = (11.0, -7.0, 42.0)
    return Volume(voxels, affine, thickness_mm)


def smooth(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    x, y, z = np.indices(shape)
    return (500 + 300 * np.sin(x / 5) * np.cos(y / 6) + 200 * np.sin(z * 1.1)).astype(np.float32)


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("thickness_mm", [None, 3.0])
def test_the_answer_goes_back_to_what_was_acquired(wish, thickness_mm):
    thick = scan(smooth(), thickness_mm=thickness_mm)
    plan = plan_for(thick, noise=0.0, **wish)
    thin = upsample(thick, plan, find_model("cubic")).volume
    back = reslice(thin, thick, profile="gaussian")
    assert np.abs(back.voxels - thick.voxels)[:, :, 1:-1].max() < 0.5
    assert back.voxels.dtype == thin.voxels.dtype
    np.testing.assert_array_equal(back.affine, thick.affine)


@pytest.mark.parametrize("wish", WISHES)
def test_it_is_the_matrix_of_the_plan(wish):
    thick = scan(smooth())
    plan = plan_for(thick, thickness_mm=2.5, profile="box", **wish)
    thin = Volume(np.random.default_rng(0).normal(size=plan.shape_thin), np.array(plan.affine_thin))
    back = reslice(thin, thick, thickness_mm=2.5, profile="box")
    np.testing.assert_allclose(
        back.voxels, np.einsum("ij,xyj->xyi", plan.acquisition().matrix(), thin.voxels), atol=1e-9
    )


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_axes_are_only_names(order):
    thick = scan(smooth())
    plan = plan_for(thick, factor=4)
    thin = Volume(np.random.default_rng(0).normal(size=plan.shape_thin), np.array(plan.affine_thin))
    turned = [
        Volume(v.voxels.transpose(order), np.column_stack([v.affine[:, list(order)], v.affine[:, 3]]))
        for v in (thin, thick)
    ]
    expected = reslice(thin, thick).voxels.transpose(order)
    np.testing.assert_allclose(reslice(*turned).voxels, expected, atol=1e-12)


def test_a_thin_stack_that_runs_the_other_way_and_a_part_of_the_slices():
    thick = scan(smooth())
    plan = plan_for(thick, factor=4)
    thin = Volume(np.random.default_rng(0).normal(size=plan.shape_thin), np.array(plan.affine_thin))
    expected = reslice(thin, thick).voxels
    affine = thin.affine.copy()
    affine[:3, 3] += affine[:3, 2] * (plan.n_thin - 1)
    affine[:3, 2] *= -1
    np.testing.assert_allclose(reslice(Volume(thin.voxels[:, :, ::-1], affine), thick).voxels, expected, atol=1e-9)
    part = Volume(thick.voxels[:, :, 3:6], thick.affine.copy())
    part.affine[:3, 3] += 3 * thick.affine[:3, 2]
    np.testing.assert_allclose(reslice(thin, part).voxels, expected[:, :, 3:6], atol=1e-9)


def test_a_bright_slice_keeps_its_centre_of_mass():
    thick = scan(np.zeros((4, 4, 9), np.float32))
    plan = plan_for(thick, factor=4)
    voxels = np.zeros(plan.shape_thin)
    voxels[:, :, 17] = 1.0
    back = reslice(Volume(voxels, np.array(plan.affine_thin)), thick, profile="gaussian").voxels[0, 0]
    found = float((back * np.arange(9)).sum() / back.sum())
    assert found == pytest.approx((17 - 1.5) / 4, abs=0.06)  # half a thin slice would be 0.125


def test_integers_are_rounded_and_a_series_is_done_volume_by_volume():
    thick = scan(smooth())
    plan = plan_for(thick, factor=4)
    series = np.random.default_rng(0).integers(-5, 250, (*plan.shape_thin, 2), dtype=np.int16)
    back = reslice(Volume(series, np.array(plan.affine_thin)), thick).voxels
    exact = reslice(Volume(series.astype(np.float64), np.array(plan.affine_thin)), thick).voxels
    assert back.dtype == np.int16
    np.testing.assert_array_equal(back, np.rint(exact))


@pytest.mark.parametrize("wish", WISHES)
def test_labels_come_back_by_majority(wish):
    x, y, z = np.indices(SHAPE)
    drawn = np.where((x - 20) ** 2 + (y - 18) ** 2 + (4 * (z - 4)) ** 2 < 14**2, 7, 0).astype(np.uint8)
    drawn[(drawn == 7) & (x > 20)] = 200
    thick = scan(drawn)
    thin = interpolate_labels(thick, plan_for(thick, **wish))
    back = reslice(thin, thick, thickness_mm=2.0, labels=True)
    assert back.voxels.dtype == np.uint8
    assert set(np.unique(back.voxels)) == {0, 7, 200}
    assert (back.voxels == drawn).mean() > 0.99


@catches("compute/reslice.py", "best + DECIDED", "best - DECIDED")
def test_of_equally_weighted_labels_the_smallest_is_taken():
    thick = scan(np.zeros((2, 2, 2), np.uint8))
    plan = plan_for(thick, factor=2)
    thin = Volume(np.broadcast_to(np.array([5, 3, 9, 9], np.uint8), plan.shape_thin), np.array(plan.affine_thin))
    back = reslice(thin, thick, profile="box", labels=True).voxels
    assert back[0, 0].tolist() == [3, 9]


def test_grids_that_do_not_fit_are_refused():
    thick = scan(smooth())
    plan = plan_for(thick, factor=4)
    thin = Volume(np.zeros(plan.shape_thin), np.array(plan.affine_thin))
    beside = Volume(thin.voxels, thin.affine.copy())
    beside.affine[:3, 3] += 0.2 * thin.affine[:3, 0]
    for wrong, words, code in [
        (beside, "0.2 mm apart in-plane", "other-grid"),
        (Volume(thin.voxels[:-1], thin.affine), "same grid within the slices", "other-grid"),
        (Volume(thin.voxels[:, :, :-3], thin.affine), "before a slice of the thick scan", "slices-end-early"),
        (Volume(np.zeros((40, 36, 4)), thick.affine * [1, 1, 2, 1]), "no farther apart", "thin-scan-coarser"),
    ]:
        with pytest.raises(InputRefused, match=words) as refusal:
            reslice(wrong, thick)
        assert (refusal.value.code, refusal.value.place) == (code, "the thin scan")
        assert "thick scan" in refusal.value.next


@pytest.mark.parametrize("thickness_mm", [0.0, -1.0, float("nan"), 0.01])
def test_an_impossible_thickness_is_refused(thickness_mm):
    thick = scan(smooth())
    plan = plan_for(thick, factor=4)
    with pytest.raises(PlanRefused, match="`thickness_mm`") as refusal:
        reslice(
            Volume(np.zeros(plan.shape_thin), np.array(plan.affine_thin)),
            thick,
            thickness_mm=thickness_mm,
            profile="gaussian",
        )
    assert refusal.value.code == ("slice-sees-nothing" if thickness_mm == 0.01 else "not-a-positive-number")
    # The operator knows which slice it is: its refusal is the cause of the one in the scan's own units.
    assert ("slice centred at" in str(refusal.value.__cause__)) == (thickness_mm == 0.01)


def test_probabilities_are_no_labels():
    thick = scan(smooth())
    plan = plan_for(thick, factor=4)
    with pytest.raises(InputRefused, match="fractions") as refusal:
        reslice(Volume(np.full(plan.shape_thin, 0.5), np.array(plan.affine_thin)), thick, labels=True)
    assert refusal.value.code == "labels-with-fractions"


@catches("compute/reslice.py", "[(k - 1) / 2 for k in finer]", "[0.0 for k in finer]")
@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("times", [2, 3])
def test_slices_that_were_enlarged_come_back_too(order, times):
    upright = scan(smooth())
    thick = Volume(upright.voxels.transpose(order), upright.affine[:, [*order, 3]])
    plan = plan_for(thick, factor=3, in_plane=times)
    thin = upsample(thick, plan, find_model("cubic")).volume
    back = reslice(thin, thick, profile="gaussian").voxels
    # Cubic enlargement and bicubic shrinking are no inverses; a shift by half a new voxel would make 20 of it.
    assert np.abs(back - thick.voxels)[3:-3, 3:-3, 3:-3].max() < 5
    drawn = Volume((thick.voxels > 600).astype(np.uint8), thick.affine)
    there = interpolate_labels(drawn, plan)
    again = reslice(there, drawn, thickness_mm=2.0, labels=True).voxels
    assert (again == drawn.voxels).mean() > 0.98
    apart = Volume(thin.voxels, thin.affine + np.outer([0.3, 0, 0, 0], [0, 0, 0, 1]))
    with pytest.raises(InputRefused, match="mm apart in-plane"):
        reslice(apart, thick)


@catches("compute/reslice.py", "np.where(beyond, thin[~beyond].min(), thin)", "thin")
@pytest.mark.parametrize("times", [1, 2])
def test_padding_takes_no_part_in_what_a_slice_sees(times):
    x, y, z = np.indices((24 * times, 20 * times, 24))
    beyond = np.hypot(x / times - 12, y / times - 10) > 7 + z // 4  # wider from acquired slice to acquired slice
    thin = Volume(np.where(beyond, -3024, 40).astype(np.int16), np.diag([1.0 / times, 1.0 / times, 1.0, 1.0]))
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    affine[:3, 3] = [(times - 1) / 2 / times, (times - 1) / 2 / times, 1.5]
    like = Volume(np.zeros((24, 20, 6), np.int16), affine)
    back = reslice(thin, like, padding=-3024).voxels
    assert set(np.unique(back)) == {-3024, 40}
    seen = beyond[::times, ::times, 1::4]
    assert np.mean((back == -3024) == seen) > 0.97


def test_points_are_kept_where_they_weigh_most_and_told():
    thick = scan(np.zeros(SHAPE, np.uint8))
    plan = plan_for(thick, factor=4)
    drawn = np.zeros(plan.shape_thin, np.uint8)
    drawn[5, 6, 9], drawn[20, 21, 17], drawn[8:12, 8:12, 12:16] = 3, 4, 5
    back = reslice(Volume(drawn, np.array(plan.affine_thin)), thick, labels=True)
    assert np.argwhere(back.voxels == 3).tolist() == [[5, 6, 2]]
    assert np.argwhere(back.voxels == 4).tolist() == [[20, 21, 4]]
    assert (back.voxels == 5).sum() == 16
    assert back.notes == (
        "labels too small to fill half a thick voxel are kept in the one where they weigh most: 3, 4",
    )


@pytest.mark.parametrize("labels", [False, True])
def test_a_thin_scan_from_another_corner_comes_back_too(labels):
    thick = scan(smooth())
    plan = plan_for(thick, factor=4)
    drawn = np.random.default_rng(0).integers(0, 9, plan.shape_thin).astype(np.uint8)
    thin = Volume(drawn, np.array(plan.affine_thin))
    affine = thin.affine[:, [2, 0, 1, 3]].copy()
    affine[:3, 3] += affine[:3, 0] * (drawn.shape[2] - 1)
    affine[:3, 0] *= -1
    elsewhere = Volume(np.flip(drawn.transpose(2, 0, 1), 0), affine)
    back = reslice(elsewhere, thick, labels=labels)
    np.testing.assert_array_equal(back.voxels, reslice(thin, thick, labels=labels).voxels)
    np.testing.assert_array_equal(back.affine, thick.affine)


def test_headers_that_are_rounded_are_told():
    thick = scan(smooth())
    plan = plan_for(thick, factor=4)
    thin = Volume(np.ones(plan.shape_thin), np.array(plan.affine_thin))
    thin.affine[:3, 3] += 0.05 * thin.affine[:3, 0]
    assert "(0.05 voxels) apart in-plane" in reslice(thin, thick).notes[0]
