"""Segmentations: no new labels, drawn slices kept, shapes smooth between them and of the right volume."""

from itertools import permutations, product

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from faults import catches
from planning import plan_for
from thinslice.compute import labels as module
from thinslice.compute.labels import find_changing_times, interpolate_labels
from thinslice.errors import InputRefused
from thinslice.plan import Plan
from thinslice.volume import Volume

SPACING = (0.8, 1.0, 4.0)
SHAPE = (60, 50, 12)


def volume(voxels: np.ndarray, spacing_mm: tuple[float, ...] = SPACING) -> Volume:
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = (-20.0, 7.0, 3.0)
    return Volume(voxels, affine)


def grid_mm(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Patient positions of all voxels [3, x, y, z]."""
    index = np.indices(shape).reshape(3, -1)
    return (affine[:3, :3] @ index + affine[:3, 3:]).reshape(3, *shape)


def sphere(at: np.ndarray, radius_mm: float = 16.0) -> np.ndarray:
    middle = np.array([3.5, 31.0, 25.5])[:, None, None, None]
    return ((at - middle) ** 2).sum(axis=0) < radius_mm**2


def slanted_cylinder(at: np.ndarray) -> np.ndarray:
    """Along z, the axis moving 1 mm in x per mm in z: 45 degrees."""
    middle_x = 4.0 + (at[2] - 25.0)
    return (at[0] - middle_x) ** 2 + (at[1] - 31.0) ** 2 < 10.0**2


def blobs(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """A few overlapping ellipsoids with labels 3, 7, 200 and one single-slice island."""
    random = np.random.default_rng(seed)
    drawn = np.zeros(shape, np.uint8)
    index = np.indices(shape).reshape(3, -1).T
    for label in (3, 7, 200, 7):
        middle, radius = random.uniform(0.2, 0.8, 3) * shape, random.uniform(0.1, 0.35, 3) * shape
        drawn.reshape(-1)[(((index - middle) / radius) ** 2).sum(axis=1) < 1] = label
    drawn[4:9, 5:9, shape[2] // 2] = 41
    return drawn


def thin_of(drawn: np.ndarray, **wish: float | str) -> tuple[Volume, Plan]:
    scan = volume(drawn)
    plan = plan_for(scan, **wish)
    return interpolate_labels(scan, plan), plan


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("grid", ["fov", "centres"])
def test_no_label_appears_and_none_is_lost(seed, grid):
    drawn = blobs(seed)
    thin, plan = thin_of(drawn, factor=3.7, grid=grid)
    assert thin.voxels.shape == plan.shape_thin
    assert thin.voxels.dtype == drawn.dtype
    np.testing.assert_array_equal(thin.affine, plan.affine_thin)
    assert set(np.unique(thin.voxels)) == set(np.unique(drawn))


@pytest.mark.parametrize(("wish", "step", "first"), [({"factor": 5}, 5, 2), ({"factor": 4, "grid": "centres"}, 4, 0)])
def test_the_drawn_slices_stay_as_they_are(wish, step, first):
    drawn = blobs(1)
    thin, _ = thin_of(drawn, **wish)
    np.testing.assert_array_equal(thin.voxels[:, :, first::step], drawn)


def test_between_equal_slices_nothing_changes_and_the_outermost_are_held():
    drawn = np.repeat(blobs(2)[:, :, 5:6], 6, axis=2)
    thin, plan = thin_of(drawn, factor=4)
    np.testing.assert_array_equal(thin.voxels, np.repeat(drawn, 4, axis=2))
    assert plan.positions()[0] < 0


@pytest.mark.parametrize("shape", [sphere, slanted_cylinder])
@pytest.mark.parametrize("wish", [{"factor": 4}, {"factor": 5}, {"factor": 4.3}, {"factor": 4, "grid": "centres"}])
def test_volume_and_shape_are_right(shape, wish):
    drawn = shape(grid_mm(SHAPE, volume(np.zeros(SHAPE)).affine)).astype(np.int16)
    thin, plan = thin_of(drawn, **wish)
    truth = shape(grid_mm(plan.shape_thin, thin.affine))
    inside = thin.voxels > 0
    assert inside.sum() == pytest.approx(truth.sum(), rel=0.03)
    nearest = drawn[:, :, np.clip(np.rint(plan.positions()), 0, SHAPE[2] - 1).astype(int)] > 0
    wrong, wrong_nearest = ((answer != truth).sum() for answer in (inside, nearest))
    assert wrong < 0.5 * wrong_nearest


def test_a_slanted_cylinder_moves_steadily_from_slice_to_slice():
    drawn = slanted_cylinder(grid_mm(SHAPE, volume(np.zeros(SHAPE)).affine)).astype(np.uint8)
    thin, plan = thin_of(drawn, factor=4)
    at = grid_mm(plan.shape_thin, thin.affine)
    for j in range(12, 32):
        found = at[0, :, :, j][thin.voxels[:, :, j] > 0].mean()
        assert found == pytest.approx(4.0 + (at[2, 0, 0, j] - 25.0), abs=0.3)


@catches("compute/labels.py", "half_pixel = min(spacing_mm) / 2", "half_pixel = 0.0")
def test_a_boundary_passes_at_the_moment_it_should():
    near, far = np.zeros((6, 12), int), np.zeros((6, 12), int)
    near[:, :8], far[:, :4] = 1, 1
    times = find_changing_times(near, far, (1.0, 1.0))
    np.testing.assert_allclose(times[:, 4:8], [[0.875, 0.625, 0.375, 0.125]] * 6)


def test_touching_labels_leave_no_gap():
    drawn = np.full(SHAPE, 1, np.uint8)
    drawn[sphere(grid_mm(SHAPE, volume(drawn).affine))] = 2
    drawn[:, 25:, 6:] += 2
    thin, _ = thin_of(drawn, factor=4)
    assert 0 not in thin.voxels


def test_one_label_takes_over_from_another_without_a_groove():
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[20:40, 15:35, :6] = 1
    drawn[20:40, 15:35, 6:] = 2
    thin, _ = thin_of(drawn, factor=4)
    np.testing.assert_array_equal(thin.voxels, np.repeat(drawn, 4, axis=2))


def test_a_part_without_a_counterpart_ends_in_domes_within_half_a_slice():
    drawn = np.zeros(SHAPE, np.uint8)
    disc = (np.indices(SHAPE[:2]).T - np.array([30, 25])).T
    drawn[(disc**2).sum(axis=0) < 15**2, 6] = 9
    drawn[2:4, 2:4, 6] = 9
    thin, _ = thin_of(drawn, factor=20)
    depth = (thin.voxels == 9).sum(axis=2)
    assert depth[30, 25] == 20
    assert (thin.voxels == 9).sum() / 20 == pytest.approx((drawn == 9).sum() * 2 / 3, rel=0.06)
    assert depth[2:4, 2:4].min() >= 5


def test_an_island_far_from_its_label_does_not_vanish():
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[40:58, 5:45, :] = 1
    drawn[5:15, 20:30, 6] = 1
    thin, _ = thin_of(drawn, factor=4)
    assert (thin.voxels[5:15, 20:30] == 1).sum() > 0.5 * 4 * 100


@pytest.mark.parametrize("wish", [{"factor": 4}, {"factor": 3.7}, {"factor": 2, "grid": "centres"}])
@pytest.mark.parametrize("axis", range(3))
def test_flips_commute(wish, axis):
    drawn = blobs(3)
    thin, _ = thin_of(drawn, **wish)
    flipped, _ = thin_of(np.flip(drawn, axis), **wish)
    np.testing.assert_array_equal(flipped.voxels, np.flip(thin.voxels, axis))


@pytest.mark.parametrize("order", list(permutations(range(3)))[1:])
def test_permutations_commute(order):
    drawn = blobs(3)
    thin, _ = thin_of(drawn, factor=4)
    scan = volume(drawn.transpose(order), tuple(SPACING[i] for i in order))
    turned = interpolate_labels(scan, plan_for(scan, factor=4))
    np.testing.assert_array_equal(turned.voxels, thin.voxels.transpose(order))


def test_names_of_labels_do_not_matter():
    drawn = blobs(3)
    thin, _ = thin_of(drawn, factor=4)
    renamed, _ = thin_of(drawn.astype(np.int32) * 3 + 1, factor=4)
    np.testing.assert_array_equal(renamed.voxels, thin.voxels.astype(np.int32) * 3 + 1)


def test_a_series_is_done_volume_by_volume():
    series = np.stack([blobs(0), blobs(1)], axis=3)
    thin, _ = thin_of(series, factor=3)
    for t in range(2):
        np.testing.assert_array_equal(thin.voxels[..., t], thin_of(series[..., t], factor=3)[0].voxels)


@pytest.mark.parametrize("seed", range(3))
def test_distances_are_the_euclidean_ones(seed, monkeypatch):
    monkeypatch.setattr(module, "QUERIES", 500)
    target = np.random.default_rng(seed).random((23, 31)) < 0.02
    pixels = tuple(index.ravel() for index in np.indices(target.shape))
    expected = distance_transform_edt(~target, sampling=(0.7, 1.3)).ravel()
    np.testing.assert_allclose(module._distance_to(target, pixels, (0.7, 1.3)), expected, atol=1e-9)


def test_parts_are_followed_around_corners():
    labels = np.array(
        [[1, 1, 1, 1], [0, 0, 0, 1], [1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1]]
    )
    values = np.zeros(labels.shape)
    values[0, 0], values[6, 1] = 5, 2
    peaks = module._peak(labels, values)
    assert (peaks[:5][labels[:5] == 1] == 5).all()
    assert peaks[6].tolist() == [0, 2, 0, 0]
    assert (peaks[labels == 0] == 0).all()


def test_what_is_not_a_segmentation_of_the_scan_is_refused():
    drawn = blobs(0)
    plan = plan_for(volume(drawn), factor=3)
    with pytest.raises(InputRefused, match="60 x 50 x 11 voxels; need 60 x 50 x 12") as refusal:
        interpolate_labels(volume(drawn[..., :-1]), plan)
    assert (refusal.value.code, refusal.value.place) == ("other-grid", "the segmentation")
    shifted = volume(drawn)
    shifted.affine[2, 3] += 4
    with pytest.raises(InputRefused, match=r"4 mm \(1 voxels\) away") as refusal:
        interpolate_labels(shifted, plan)
    assert refusal.value.code == "other-grid"
    with pytest.raises(InputRefused, match="fractions") as refusal:
        interpolate_labels(volume(drawn + 0.5), plan)
    assert refusal.value.code == "labels-with-fractions"


def test_a_rounded_affine_and_whole_floats_are_accepted():
    drawn = blobs(0)
    scan = volume(drawn.astype(np.float32))
    scan.affine[:3, 3] += 5e-4
    thin = interpolate_labels(scan, plan_for(volume(drawn), factor=3))
    assert thin.voxels.dtype == np.float32
    np.testing.assert_array_equal(thin.voxels, thin_of(drawn, factor=3)[0].voxels)


def test_random_noise_is_survived_too():
    drawn = np.random.default_rng(0).integers(0, 5, (9, 7, 4))
    thin, _ = thin_of(drawn, factor=3)
    np.testing.assert_array_equal(thin.voxels[:, :, 1::3], drawn)


@pytest.mark.parametrize("fill", list(product((0, 1), repeat=2)))
def test_whole_slices_of_one_label(fill):
    drawn = np.zeros((8, 9, 2), np.uint8)
    drawn[:, :, 0], drawn[:, :, 1] = fill
    thin, _ = thin_of(drawn, factor=4)
    np.testing.assert_array_equal(thin.voxels, np.repeat(drawn, 4, axis=2))


# ---- the same voxels, stored elsewhere


def stored_elsewhere(scan, order, flips):
    """The same voxels in the same places, with array axes in another order and direction."""
    voxels, affine = scan.voxels.transpose(*order, *range(3, scan.voxels.ndim)), scan.affine[:, [*order, 3]].copy()
    for axis in flips:
        affine[:3, 3] += affine[:3, axis] * (voxels.shape[axis] - 1)
        affine[:3, axis] *= -1
        voxels = np.flip(voxels, axis)
    return Volume(voxels, affine)


def oblique(scan, degrees=25.0):
    a = np.radians(degrees)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    affine = scan.affine.copy()
    affine[:3] = turn @ affine[:3]
    return Volume(scan.voxels, affine)


@catches("volume.py", "moved[:3, 3] += moved[:3, axis] * (voxels.shape[axis] - 1)", "pass")
@catches("volume.py", "order = [nearest.index(axis) for axis in range(3)]", "order = list(nearest)")
@pytest.mark.parametrize("flips", [(), (0,), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("turned", [volume, lambda drawn: oblique(volume(drawn))])
def test_a_segmentation_from_another_corner_is_the_same(order, flips, turned):
    scan = turned(blobs(1))
    plan = plan_for(scan, factor=4)
    thin = interpolate_labels(stored_elsewhere(scan, order, flips), plan)
    np.testing.assert_array_equal(thin.voxels, interpolate_labels(scan, plan).voxels)
    np.testing.assert_array_equal(thin.affine, plan.affine_thin)
    assert thin.notes == ()


def test_a_series_of_segmentations_from_another_corner_is_the_same():
    scan = volume(np.stack([blobs(0), blobs(1)], axis=3))
    plan = plan_for(scan, factor=3)
    thin = interpolate_labels(stored_elsewhere(scan, (2, 0, 1), (0, 2)), plan)
    np.testing.assert_array_equal(thin.voxels, interpolate_labels(scan, plan).voxels)


def test_a_grid_of_one_length_along_all_axes_is_turned_by_its_directions():
    drawn = blobs(2, (24, 24, 24))
    scan = volume(drawn)
    plan = plan_for(scan, factor=4)
    thin = interpolate_labels(stored_elsewhere(scan, (1, 2, 0), (1,)), plan)
    np.testing.assert_array_equal(thin.voxels, interpolate_labels(scan, plan).voxels)


@catches("compute/labels.py", "if not apart <= SAME_VOXEL:", "if not apart <= 10 * SAME_VOXEL:")
@pytest.mark.parametrize(
    ("beside_voxels", "is_noted"), [(0.004, False), (0.02, True), (0.09, True), (0.2, None), (1, None)]
)
@pytest.mark.parametrize("axis", range(3))
def test_headers_are_rounded_and_shifted_grids_are_not_the_scans(axis, beside_voxels, is_noted):
    drawn = blobs(0)
    scan, moved = volume(drawn), volume(drawn)
    moved.affine[:3, 3] += beside_voxels * moved.affine[:3, axis]
    moved = stored_elsewhere(moved, (1, 0, 2), (2,))
    plan = plan_for(scan, factor=4)
    if is_noted is None:
        with pytest.raises(InputRefused, match="away from the scan's voxels") as refusal:
            interpolate_labels(moved, plan)
        assert refusal.value.code == "other-grid"
        return
    thin = interpolate_labels(moved, plan)
    np.testing.assert_array_equal(thin.voxels, interpolate_labels(scan, plan).voxels)
    np.testing.assert_array_equal(thin.affine, plan.affine_thin)  # the scan's, not that of the rounded header
    assert [f"({beside_voxels:.2g} voxels) beside those of the scan" in note for note in thin.notes] == [
        True
    ] * is_noted


def test_a_header_that_a_converter_sheared_a_little_is_the_scans():
    drawn = blobs(0)
    sheared = volume(drawn)
    sheared.affine[0, 2] += 2e-3  # 0.024 mm at the far end
    plan = plan_for(volume(drawn), factor=4)
    thin = interpolate_labels(sheared, plan)
    np.testing.assert_array_equal(thin.affine, plan.affine_thin)
    assert "0.022 mm (0.028 voxels)" in thin.notes[0]


def test_a_header_that_is_not_a_number_is_refused():
    broken = volume(blobs(0))
    broken.affine[0, 0] = np.nan
    with pytest.raises(InputRefused, match="away from"):
        interpolate_labels(broken, plan_for(volume(blobs(0)), factor=4))


@pytest.mark.parametrize(("slope", "inter"), [(0.9999, 0), (1.0001, 1e-4), (1.00002, -3e-3), (1, 0.004)])
def test_labels_that_came_through_a_scale_are_rounded_and_told(slope, inter):
    drawn = blobs(1)
    scaled = volume((drawn.astype(np.float64) * slope + inter).astype(np.float32))
    plan = plan_for(volume(drawn), factor=4)
    thin = interpolate_labels(scaled, plan)
    assert thin.voxels.dtype == np.uint8
    np.testing.assert_array_equal(thin.voxels, interpolate_labels(volume(drawn), plan).voxels)
    assert "are rounded" in thin.notes[0]


@pytest.mark.parametrize("drawn", [blobs(1) * 0.5, blobs(1) * 0.97, np.where(blobs(1) > 0, 14175 * 0.9999, 0)])
def test_what_no_scale_explains_is_no_segmentation(drawn):
    with pytest.raises(InputRefused, match="fractions"):
        interpolate_labels(volume(drawn.astype(np.float32)), plan_for(volume(blobs(1)), factor=4))
