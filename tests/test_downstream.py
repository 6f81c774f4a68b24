"""What users measure, on phantoms whose right values are known in closed form."""

from math import erf

import numpy as np
import pytest
from skimage.filters import threshold_multiotsu

from faults import catches
from thinslice.evaluation.downstream import edge_width, find_edges, find_structures, find_thresholds, measure
from thinslice.evaluation.metrics import foreground

SPACING_MM = (1.0, 1.0, 1.5)
FWHM = np.sqrt(8 * np.log(2))
"""Full width at half maximum of a Gaussian over its standard deviation."""


def boxes():
    """Three boxes in air: 4,000 voxels of 100, 2,000 of 200, 1,000 of 300."""
    volume = np.zeros((40, 40, 40), np.float32)
    volume[2:22, 2:12, 2:22] = 100
    volume[2:22, 20:30, 2:12] = 200
    volume[30:40, 20:30, 20:30] = 300
    return volume


def measured(answer, truth, axis=2, factor=2.0):
    return measure(answer, find_structures(truth, axis, factor, SPACING_MM), voxel_mm3=1.5)


def test_the_truth_itself_has_no_error():
    one = measured(boxes(), boxes())
    assert one.volumes_mm3 == (6000, 3000, 1500)
    assert one.volume_errors_percent == (0, 0, 0)
    assert one.dice == (1, 1, 1)
    assert one.smallest == 2
    assert one.edge_mm == one.edge_mm_truth


@catches("evaluation/downstream.py", "2 * b / (v + f)", "b / v")
def test_volumes_and_dice_are_those_of_counting():
    answer = boxes()
    # The brightest box loses a fifth of its voxels to the middle class, and a new bright one of 100 lies elsewhere.
    answer[30:32, 20:30, 20:30] = 200
    answer[2:12, 32:37, 30:32] = 300
    one = measured(answer, boxes())
    assert one.volume_errors_percent == pytest.approx((0, 10, -10))
    assert one.dice == pytest.approx((1, 2 * 2000 / (2000 + 2200), 2 * 800 / (1000 + 900)))


def test_an_answer_is_cut_by_the_truths_thresholds_outside_its_foreground_too():
    answer = boxes()
    answer[30:40, 2:12, 30:40] = 100
    assert measured(answer, boxes()).volume_errors_percent == pytest.approx((25, 0, 0))


def test_a_class_that_the_truth_has_not_is_no_number():
    truth = np.zeros((30, 30, 30), np.float32)
    truth[5:25, 5:25, 5:25] = 100
    one = measured(truth, truth)
    assert np.count_nonzero(np.isnan(one.dice)) == 2
    assert one.dice[one.smallest] == 1


@pytest.mark.parametrize("seed", range(4))
def test_thresholds_are_those_of_scikit_image(seed):
    rng = np.random.default_rng(seed)
    middles = np.sort(rng.uniform(0, 100, 3)) + np.array([0, 40, 80])
    values = np.concatenate([rng.normal(m, 12, n) for m, n in zip(middles, (4000, 3000, 2000), strict=True)])
    # Both histograms end at the percentile at which ours does; scikit-image gives the middles of grey values.
    values = np.minimum(values, np.percentile(values, 99.5))
    grey = (values.max() - values.min()) / 256
    ours, theirs = find_thresholds(values), threshold_multiotsu(values, classes=3)
    # Where no value lies between two peaks, every threshold there cuts alike.
    for one, other in zip(ours, theirs, strict=True):
        assert np.count_nonzero((values > one) != (values > other + grey / 2)) <= 2


def test_one_bright_voxel_does_not_change_the_thresholds():
    values = np.repeat([100.0, 200.0, 300.0], [4000, 2000, 1000])
    low, high = find_thresholds(np.append(values, 1e6))
    assert 100 < low < 200 < high < 300


# ---- edges


def ramp(sd_vox, n=80):
    """A surface between 100 and 300 whose place along the last axis differs from column to column, blurred along it."""
    x, y = np.meshgrid(np.arange(60), np.arange(44), indexing="ij")
    # Over 20 slices, so that it lies everywhere within slices of 4 and of 5.
    middle = n / 2 + (x - 29.5) / 3 + 0.01 * y
    distance = np.arange(n) - middle[..., None]
    volume = 200 + 100 * np.vectorize(erf)(distance / (np.sqrt(2) * sd_vox))
    return volume.astype(np.float32)


def width_mm(answer, truth, axis=2, factor=4.0, spacing_mm=SPACING_MM):
    edges = find_edges(truth, foreground(truth), axis, factor, spacing_mm)
    return edge_width(answer, edges, axis) * spacing_mm[axis]


@pytest.mark.parametrize("sd_vox", [1.5, 2.0, 3.0])
@catches("evaluation/downstream.py", "share * change[low + 1", "share * change[low")
def test_the_width_of_a_blurred_step_is_that_of_the_gaussian(sd_vox):
    """Its gradient is the Gaussian; differences of neighbours, and looking between them, add a variance of a sixth."""
    truth = ramp(1.0)
    found = width_mm(ramp(sd_vox), truth)
    assert found == pytest.approx(FWHM * np.sqrt(sd_vox**2 + 1 / 6) * SPACING_MM[2], rel=0.02)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_width_is_in_millimetres_along_the_slice_axis(axis):
    truth = np.moveaxis(ramp(2.0), 2, axis)
    spacing = np.insert([1.0, 1.0], axis, 0.7)
    assert width_mm(truth, truth, axis, spacing_mm=tuple(spacing)) == pytest.approx(FWHM * 2.04 * 0.7, rel=0.02)


@pytest.mark.parametrize("factor", [4, 5])
def test_a_staircase_is_as_wide_as_its_slices_however_steep_its_steps_are(factor):
    """Box-shaped slices of a sharp edge, repeated: on average over where the edge lies, a triangle of that width."""
    truth = ramp(0.3)
    thick = truth.reshape(*truth.shape[:2], -1, factor).mean(axis=3)
    assert width_mm(np.repeat(thick, factor, axis=2), truth, factor=factor) == pytest.approx(1.5 * factor, rel=0.1)
    assert width_mm(truth, truth, factor=factor) < 0.5 * 1.5 * factor


def test_edges_along_the_slices_do_not_count():
    along = np.swapaxes(ramp(1.0, n=44), 1, 2)
    assert np.isnan(width_mm(along, along, factor=2.0))
    assert find_edges(along, foreground(along), 1, 2.0, SPACING_MM).gap.size > 0


def test_an_answer_without_the_edge_has_no_width():
    truth = ramp(1.0)
    assert np.isnan(width_mm(np.full_like(truth, 100), truth))


def test_an_edge_near_the_end_of_the_scan_is_left_out():
    truth = ramp(1.0)[:, :, 44:]
    assert find_edges(truth, foreground(truth), 2, 4.0, SPACING_MM).gap.size == 0
