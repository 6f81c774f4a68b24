"""Slices that are tilted, uneven or incomplete: the answer is upright, and agrees with all of them."""

from dataclasses import replace

import numpy as np
import pydicom
import pytest

import thinslice
from dicom_files import AXIAL, normal_of, oblique, stack
from faults import catches
from phantoms import acquired, psnr, sampled, thick_grid
from thinslice.compute.consistency import check, map_misfit
from thinslice.compute.uncertainty import map_expected_error
from thinslice.errors import InputRefused, PlanRefused
from thinslice.io.affines import shear
from thinslice.io.dicom.groups import find_groups
from thinslice.io.dicom.pixels import read_series
from thinslice.io.dicom.series import find_study
from thinslice.io.formats import write
from thinslice.io.upright import find_empty_slices, make_upright
from thinslice.models.interpolations import interpolation
from thinslice.models.registry import find_model
from thinslice.physics.interpolation import cubic_matrix
from thinslice.physics.straightening import (
    even_matrix,
    find_even_places,
    find_gaps,
    hold,
    shift_matrix,
    shift_slice,
)
from thinslice.plan import Plan, make_plan
from thinslice.settings import Settings
from thinslice.volume import Volume

D_MM = 4.0
"""Distance of the acquired slices."""

MODELS = ("cubic", "default")

SETTINGS = Settings(model="cubic", factor=4, thickness_mm=D_MM, profile="box")
"""With which the phantom is made thin."""


def body(points):
    """A smooth body at points [..., 3] in mm: wide enough that thick slices show it, different along every axis."""
    x, y, z = np.moveaxis(points, -1, 0)
    blobs = ((20, 18, 20, 9.0, 1.0), (30, 26, 30, 7.0, 0.8), (22, 30, 36, 6.0, -0.5), (34, 20, 14, 8.0, 0.6))
    return 100 * sum(a * np.exp(-((x - u) ** 2 + (y - v) ** 2 + (z - w) ** 2) / (2 * s**2)) for u, v, w, s, a in blobs)


def slices_at(origins, size=(48, 44), fwhm_mm=D_MM):
    """What a box of that thickness shows of the body in axial slices whose first voxels lie there: [x, y, n]."""
    grid = np.stack(np.meshgrid(np.arange(size[0]), np.arange(size[1]), [0.0], indexing="ij"), -1)[:, :, 0]
    steps = (np.arange(16) + 0.5) / 16 - 0.5
    seen = [np.mean([body(grid + origin + [0, 0, s * fwhm_mm]) for s in steps], axis=0) for origin in origins]
    return np.stack(seen, -1).astype(np.float32)


def origins_of(n=12, tilt=0.0, aside=0.0, places=None):
    """First voxels of slices, shifted sideways along y (and x) from one to the next."""
    places = np.arange(n) if places is None else np.asarray(places, float)
    step = np.array([np.tan(np.radians(aside)), np.tan(np.radians(tilt)), 1.0])
    return np.outer(places * D_MM, step) + np.array([0.0, 0.0, 2.0])


def tilted(tilt=20.0, aside=0.0, n=12):
    origins = origins_of(n, tilt, aside)
    affine = np.eye(4)
    affine[:3, 2], affine[:3, 3] = origins[1] - origins[0], origins[0]
    return Volume(slices_at(origins), affine)


def wrong(volume, inside=None):
    """Root mean square difference to the body where the acquired slices show it, in percent of its brightness."""
    at = np.stack(np.meshgrid(*(np.arange(n) for n in volume.shape), indexing="ij"), -1)
    points = at @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    apart = volume.voxels.astype(float) - body(points)
    inside = slice(None) if inside is None else inside(points)
    return float(np.sqrt((apart[inside] ** 2).mean()))


def in_view(tilt=0.0, aside=0.0, margin=2.0, low=8.0, high=40.0):
    """Tells of points whether they lie within tilted slices."""

    def inside(points):
        x, y, z = np.moveaxis(points, -1, 0)
        x, y = x - np.tan(np.radians(aside)) * (z - 2), y - np.tan(np.radians(tilt)) * (z - 2)
        return (x > margin) & (x < 47 - margin) & (y > margin) & (y < 43 - margin) & (z > low) & (z < high)

    return inside


# ---- the parts


def test_the_curve_through_slices_is_the_cubic_spline_through_them():
    np.testing.assert_allclose(even_matrix(np.arange(9.0), 9), np.eye(9), atol=1e-12)
    # Slices at every second place, of which each one between is seen by the spline of `cubic_matrix`.
    every_second = even_matrix(np.arange(0.0, 9.0, 2), 9)
    np.testing.assert_allclose(every_second, cubic_matrix(np.arange(9) / 2, 5), atol=1e-12)


@catches("physics/straightening.py", "place = np.arange(n_out) - offset_px", "place = np.arange(n_out) + offset_px")
@catches("physics/straightening.py", "    matrix /= total[:, None]\n", "")
def test_a_shift_moves_by_parts_of_pixels_and_back():
    x = np.arange(60.0)
    wave = np.cos(0.7 * x) * np.exp(-((x - 30) ** 2) / 120)
    moved = shift_matrix(2.4, 60, 70) @ wave
    there = np.arange(70) - 2.4
    np.testing.assert_allclose(moved, np.cos(0.7 * there) * np.exp(-((there - 30) ** 2) / 120), atol=5e-3)
    np.testing.assert_allclose(shift_matrix(-2.4, 70, 60) @ moved, wave, atol=5e-3)
    np.testing.assert_allclose(shift_matrix(0.37, 20, 25) @ np.ones(20), 1, atol=1e-12)
    np.testing.assert_array_equal(shift_slice(np.arange(12.0).reshape(3, 4), (1.0, 0.0), (5, 4))[1:4, 2], [2, 6, 10])


def test_places_of_even_missing_and_uneven_slices():
    spacing, places = find_even_places(np.array([0, 4.001, 8, 15.999, 20]))
    assert spacing == pytest.approx(4, abs=1e-3)
    assert places.tolist() == [0, 1, 2, 4, 5]
    # Most steps are a little longer than the mean: still as many places as slices.
    spacing, places = find_even_places(np.array([0, 4.4, 8.8, 11.0, 15.4, 19.8, 24.2, 26.4, 30.8]))
    assert spacing == pytest.approx(30.8 / 8)
    assert find_gaps(np.array([0, 1, 2, 4, 5, 8.0])) == [(2, 2.0), (4, 3.0)]


def test_padding_takes_the_value_of_the_nearest_pixel():
    image = np.array([[9, 9, 1], [2, 9, 9], [9, 9, 4]])
    np.testing.assert_array_equal(hold(image, image == 9), [[2, 2, 1], [2, 2, 1], [2, 2, 4]])


# ---- tilted


@pytest.mark.parametrize(("tilt", "aside"), [(10.0, 0.0), (25.0, 0.0), (-18.0, 7.0)])
@catches("physics/straightening.py", "upright[:3, axis] = normal * spacing_mm", "upright[:3, axis] = affine[:3, axis]")
@catches("physics/straightening.py", "origins_mm[0] + pixels @ first", "origins_mm[0]")
@catches("compute/tilted.py", "    return hold(thin, outside)", "    return thin")
@catches("compute/tilted.py", "(-rows, -columns)", "(rows, columns)")
def test_a_sheared_affine_is_straightened_and_the_body_stays_where_it_was(tilt, aside):
    scan = tilted(tilt, aside)
    done = thinslice.enhance(scan, settings=SETTINGS)
    assert shear(done.affine) < 1e-9
    np.testing.assert_allclose(np.linalg.norm(done.affine[:3, :3], axis=0), [1, 1, 1], atol=1e-9)
    upright = thinslice.enhance(Volume(slices_at(origins_of()), np.diag([1, 1, D_MM, 1.0])), settings=SETTINGS)
    # The margin is where the windowed sinc sees the edge.
    assert wrong(done.volume, in_view(tilt, aside, margin=8)) < wrong(upright.volume, in_view(margin=8)) + 0.1
    assert any("straightened within the slices" in note for note in done.report.notes)
    angle = np.degrees(np.arctan(np.hypot(np.tan(np.radians(tilt)), np.tan(np.radians(aside)))))
    assert any(f"by {angle:.1f} degrees" in note for note in done.report.notes)
    # Measured on the slices as they were acquired.
    assert done.report.consistency.worst_percent < 2.5
    assert done.acquired.measured.voxels is scan.voxels
    assert check(done.acquired, done.volume, done.plan) == done.report.consistency
    assert done.report.consistency.worst == pytest.approx(
        float(map_misfit(done.acquired, done.volume, done.plan).voxels.max()), rel=1e-4
    )


def test_the_upright_answer_holds_all_slices_and_nothing_is_made_up_beyond_them():
    scan = replace(tilted(25.0), voxels=tilted(25.0).voxels + 50)
    done = thinslice.enhance(scan, settings=SETTINGS)
    for index in np.ndindex(2, 2, 2):
        corner = scan.affine @ [*(np.array(index) * (np.array(scan.shape) - 1)), 1]
        at = np.linalg.solve(done.affine, corner)[:3]
        assert (at > -0.51).all()
        assert (at < np.array(done.array.shape) - 0.49).all()
    outside = done.array[:, -1, 0], done.array[:, 0, -1]
    assert all((edge == scan.voxels.min()).all() for edge in outside)
    assert (done.array[:, 20, 0] >= 49).all()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flipped", [False, True])
def test_axes_are_only_names_of_tilted_scans_too(order, flipped):
    scan = tilted(15.0)
    wanted = thinslice.enhance(scan, settings=SETTINGS)
    if flipped:
        affine = np.array(scan.affine)
        affine[:3, 3] += affine[:3, :3] @ [0, 43, 11]
        affine[:3, 1:3] *= -1
        scan = Volume(scan.voxels[:, ::-1, ::-1], affine)
    affine = np.array(scan.affine)
    affine[:3, :3] = affine[:3, list(order)]
    done = thinslice.enhance(Volume(scan.voxels.transpose(order), affine), settings=SETTINGS)
    array = done.array.transpose(np.argsort(order))
    array = array[:, ::-1, ::-1] if flipped else array
    assert array.shape == wanted.array.shape
    np.testing.assert_allclose(array, wanted.array, atol=1e-3)


def test_whole_numbers_series_and_enlarged_slices_stay_what_they_are():
    scan = tilted(20.0)
    whole = replace(scan, voxels=np.rint(10 * scan.voxels).astype(np.int16))
    one = thinslice.enhance(whole, settings=SETTINGS)
    assert one.array.dtype == np.int16
    four = thinslice.enhance(replace(whole, voxels=np.stack([whole.voxels, whole.voxels // 2], -1)), settings=SETTINGS)
    np.testing.assert_array_equal(four.array[..., 0], one.array)
    large = thinslice.enhance(scan, settings=replace(SETTINGS, in_plane=2))
    assert large.array.shape[:2] == (2 * one.array.shape[0], 2 * one.array.shape[1])
    assert wrong(large.volume, in_view(20.0, margin=8)) < 1.5
    assert large.report.consistency.worst_percent < 4


@pytest.mark.parametrize(("padding", "stated"), [(-2000, None), (500, 500.0)])
@catches("compute/tilted.py", "plan.axis, plan.padding)", "plan.axis)")
def test_padding_of_tilted_ct_comes_back_where_it_was_and_is_mixed_with_nothing(padding, stated):
    scan = tilted(20.0)
    x, y = np.meshgrid(np.arange(48) - 23.5, np.arange(44) - 21.5, indexing="ij")
    voxels = np.rint(10 * np.maximum(scan.voxels, 0)).astype(np.int16) - 1000
    voxels[np.hypot(x, y) > 20] = padding
    done = thinslice.enhance(replace(scan, voxels=voxels, padding=stated), settings=SETTINGS)
    is_anatomy = (done.array > -1100) & (done.array < 250)
    assert (done.array[~is_anatomy] == padding).all()
    inside = np.stack(np.meshgrid(*(np.arange(n) for n in done.array.shape), indexing="ij"), -1)
    at = inside @ done.affine[:3, :3].T + done.affine[:3, 3]
    radius = np.hypot(at[..., 0] - 23.5, at[..., 1] - 21.5 - np.tan(np.radians(20)) * (at[..., 2] - 2))
    assert (done.array[radius > 22.5] == padding).all()
    assert is_anatomy[radius < 18.5].all()
    assert done.report.consistency.worst_percent < 5


def test_a_small_shear_is_left_as_it_is():
    scan = tilted(0.05)
    assert make_upright(scan) is scan


def test_labels_of_tilted_slices_are_brought_along(tmp_path):
    scan = tilted(20.0)
    labels = replace(scan, voxels=(scan.voxels > 40).astype(np.uint8))
    write(scan, tmp_path / "scan.nii.gz")
    write(labels, tmp_path / "seg.nii.gz")
    done = thinslice.enhance(tmp_path / "scan.nii.gz", labels=tmp_path / "seg.nii.gz", settings=SETTINGS)
    thin = done.labels_to_thin()
    np.testing.assert_allclose(thin.affine, done.affine)
    inside = in_view(20.0, margin=3)
    at = np.stack(np.meshgrid(*(np.arange(n) for n in thin.shape), indexing="ij"), -1)
    points = at @ thin.affine[:3, :3].T + thin.affine[:3, 3]
    sure = inside(points) & (np.abs(body(points) - 40) > 12)
    np.testing.assert_array_equal(thin.voxels[sure] == 1, body(points)[sure] > 40)
    assert set(np.unique(thin.voxels)) == {0, 1}


def test_labels_of_another_tilt_are_refused(tmp_path):
    scan = tilted(20.0)
    other = tilted(10.0)
    with pytest.raises(InputRefused, match="away from the scan"):
        thinslice.enhance(scan, labels=replace(other, voxels=np.zeros(other.shape, np.uint8)), settings=SETTINGS)


# ---- uneven and missing


def uneven(places, **more):
    places = np.asarray(places, float)
    from thinslice.io.upright import put_on
    from thinslice.physics.straightening import find_upright_grid

    origins = origins_of(places=places, **more)
    affine = np.diag([1.0, 1.0, D_MM, 1.0])
    affine[:3, 3] = origins[0]
    grid = find_upright_grid(affine, (48, 44, len(places)), 2, origins)
    return put_on(grid, Volume(slices_at(origins), affine), 2)


@catches("plan.py", "self.n_thick) if self.places is None else np.array(self.places)", "self.n_acquired)")
def test_uneven_slices_count_where_they_are():
    places = np.arange(12) + np.array([0, 0.25, -0.2, 0.1, 0.3, -0.25, 0.2, -0.3, 0.1, 0.25, -0.2, 0])
    scan = uneven(places)
    done = thinslice.enhance(scan, settings=SETTINGS)
    even = thinslice.enhance(Volume(scan.measured.voxels, scan.affine), settings=SETTINGS)
    upright = thinslice.enhance(uneven(np.arange(12)), settings=SETTINGS)
    assert wrong(done.volume, in_view()) < 0.5 * wrong(even.volume, in_view())
    assert wrong(done.volume, in_view()) < 1.5 * wrong(upright.volume, in_view())
    assert done.report.consistency.worst_percent < 2
    assert any("at their true positions" in note for note in done.report.notes)
    assert Plan.from_json(done.plan.to_json()) == done.plan


def test_a_missing_slice_is_named_and_nothing_changes_but_around_it():
    whole = thinslice.enhance(uneven(np.arange(12)), settings=SETTINGS)
    done = thinslice.enhance(uneven(np.delete(np.arange(12), 5)), settings=SETTINGS)
    assert done.array.shape == whole.array.shape
    np.testing.assert_allclose(done.affine, whole.affine)
    assert any(
        "1 slice is missing between slices 5 and 6, which are 8 mm apart (4 mm are" in n for n in done.report.notes
    )
    apart = np.abs(done.array - whole.array).max(axis=(0, 1)) / 100
    assert apart[:16].max() < 0.02
    assert apart[28:].max() < 0.02
    assert repr(done).startswith("<Enhanced: 11 slices x 4 mm -> 48 slices")


@catches("compute/upsample.py", "        even[at] = one\n", "        pass\n")
def test_a_network_fills_a_gap_better_than_a_curve():
    grid, model = thick_grid(n_thick=13, side=48), find_model("default")
    voxels = acquired(grid.shape, grid.affine, 2, D_MM, "box").astype(np.float32)
    voxels[..., 6] = 0
    settings = replace(SETTINGS, model="default")
    answers = {name: thinslice.enhance(Volume(voxels, grid.affine), settings=settings, model=name) for name in MODELS}
    truth = sampled(answers["cubic"].array.shape, answers["cubic"].affine)
    found = {name: psnr(done.array[..., 25:27], truth[..., 25:27]) for name, done in answers.items()}
    assert found["default"] > found["cubic"] + 0.5
    done = answers["default"]
    expected = map_expected_error(done.acquired, done.volume, done.plan, model)
    assert expected is not None
    cells = expected.volume.voxels
    middle = np.array([25, 27]) // 3  # cells of 3 thin slices
    assert (cells[..., middle] == cells.max()).all()
    assert (cells[..., : middle[0] - 2] < cells.max()).mean() > 0.99


def test_more_than_one_missing_slice_is_for_curves_and_more_than_three_for_nobody():
    two, four = (uneven(np.delete(np.arange(14), range(5, 5 + n))) for n in (2, 4))
    with pytest.raises(PlanRefused, match="12 mm between acquired slices 5 and 6, where 2 slices 4 mm apart") as caught:
        make_plan(two, Settings(factor=4), find_model("default"))
    assert caught.value.code == "gap-too-wide"
    assert "`model=cubic`" in str(caught.value)
    assert make_plan(two, SETTINGS, interpolation("cubic")).n_acquired == 12
    with pytest.raises(PlanRefused, match="at most 3 missing in a row"):
        make_plan(four, SETTINGS, interpolation("cubic"))


@catches("io/upright.py", "    empty = find_empty_slices(volume.voxels, axis)\n", "    empty = np.empty(0, int)\n")
def test_slices_that_were_filled_with_zeros_are_missing(tmp_path):
    origins = origins_of()
    affine = np.diag([1.0, 1.0, D_MM, 1.0])
    affine[:3, 3] = origins[0]
    voxels = slices_at(origins) + 30
    voxels[..., 5] = 0
    write(Volume(voxels, affine), tmp_path / "scan.nii.gz")
    done = thinslice.enhance(tmp_path / "scan.nii.gz", settings=SETTINGS)
    scan = uneven(np.delete(np.arange(12), 5))
    same = thinslice.enhance(
        replace(scan, voxels=scan.voxels + 30, measured=replace(scan.measured, voxels=scan.measured.voxels + 30)),
        settings=SETTINGS,
    )
    np.testing.assert_allclose(done.array, same.array, atol=1e-4)
    assert any("slice 6 of the file holds nothing but 0: taken for missing" in note for note in done.report.notes)
    assert any("between slices 5 and 7, which are 8 mm apart" in note for note in done.report.notes)
    # Drawn on the slices of the file, with nothing where there was nothing to draw on.
    labels = Volume((voxels > 60).astype(np.uint8), affine)
    thin = done.labels_to_thin(labels).voxels
    assert thin[20, 18, 20:28].all()


@pytest.mark.parametrize("kind", ["ends", "masked", "half", "two values", "unlike"])
def test_slices_that_are_empty_for_another_reason_are_left_alone(kind):
    voxels = slices_at(origins_of()) + 30
    if kind == "ends":
        voxels[..., [0, 1, 11]] = 0
    elif kind == "masked":
        voxels[..., :5] = 0
    elif kind == "half":
        voxels[..., 1::2] = 0
    elif kind == "two values":
        voxels[..., 4], voxels[..., 6] = 0, 1
    else:
        voxels[..., 6:] = np.random.default_rng(0).random(voxels[..., 6:].shape)
        voxels[..., 5] = 0
    assert not len(find_empty_slices(voxels, 2))


def test_two_spacings_in_one_stack_are_both_true():
    places = np.concatenate([np.arange(0, 8), np.arange(9, 14, 2)])
    done = thinslice.enhance(uneven(places * 0.75), settings=SETTINGS)
    assert any("slices 8 to 11 are 6 mm apart, where 3 mm are usual" in note for note in done.report.notes)
    assert not any("missing" in note for note in done.report.notes)
    assert done.report.consistency.worst_percent < 2.5
    assert wrong(done.volume, in_view(low=4, high=20)) < 1.5


@pytest.mark.parametrize("ratio", [0.4, 1.0, 1.6, 2.2])
def test_gaps_and_overlaps_between_slices_are_modelled(ratio):
    origins = origins_of()
    affine = np.diag([1.0, 1.0, D_MM, 1.0])
    affine[:3, 3] = origins[0]
    scan = Volume(slices_at(origins, fwhm_mm=ratio * D_MM), affine, thickness_mm=ratio * D_MM)
    for name in ("cubic", "default"):
        done = thinslice.enhance(scan, settings=replace(SETTINGS, model=name, thickness_mm=ratio * D_MM), model=name)
        assert done.plan.thickness_over_spacing == pytest.approx(ratio)
        assert done.report.consistency.worst_percent < 3
        assert wrong(done.volume, in_view()) < 2


# ---- DICOM


def only(folder):
    (series,) = find_study(folder).series
    return series


@pytest.mark.parametrize("tag", [{}, {"GantryDetectorTilt": 14.0}])
@pytest.mark.parametrize("orientation", [AXIAL, oblique()])
@catches("io/dicom/derived.py", "            del shared.GantryDetectorTilt", "            pass")
def test_a_tilted_series_becomes_an_upright_one(run, tmp_path, tag, orientation):
    stack(tmp_path / "in", drift_mm=1.0, rows=40, columns=48, modality="CT", orientation=orientation, **tag)
    code, out, _ = run("enhance", "-i", tmp_path / "in", "-o", tmp_path / "out", "--model", "cubic", "--factor", "4")
    assert code == 0
    assert any("by 14.0 degrees (a tilted gantry" in line for line in out)
    images = [pydicom.dcmread(file) for file in sorted((tmp_path / "out").glob("*.dcm"))]
    assert len(images) == 32
    positions = np.array([image.ImagePositionPatient for image in images], float)
    steps, normal = np.diff(positions, axis=0), normal_of(orientation)
    np.testing.assert_allclose(np.abs(steps @ normal), 1.0, atol=1e-6)
    np.testing.assert_allclose(np.abs(steps), np.tile(np.abs(normal), (31, 1)), atol=1e-6)
    assert {(image.Rows, image.Columns) for image in images} == {(40, 56)}
    assert not any("GantryDetectorTilt" in image for image in images)
    # The first pixels of all acquired slices lie in the new images.
    across = (np.array(AXIAL[:3]) if orientation is AXIAL else np.array(orientation[:3])) @ (
        np.array([-10.5, -20.25, 30.125]) - positions[0]
    )
    assert -1e-6 <= across / 0.9 <= 1
    again = find_study(tmp_path / "out", computed_too=True).series[0]
    assert again.grid is None


@catches("physics/straightening.py", "TILT_DEGREES = 0.1", "TILT_DEGREES = 30.0")
def test_a_tilted_series_is_the_volume_of_its_sheared_affine(tmp_path):
    values = stack(tmp_path, drift_mm=1.0, rows=40, columns=48)
    volume = read_series(only(tmp_path))
    affine = np.diag([-0.9, 0.8, D_MM, 1.0])
    affine[:3, 2], affine[:3, 3] = [-1.0, 0, D_MM], [10.5, 20.25 - 0.8 * 39, 30.125]
    same = make_upright(Volume(values[:, ::-1].transpose(2, 1, 0).astype(np.float32), affine))
    np.testing.assert_allclose(volume.affine, same.affine, atol=1e-6)
    np.testing.assert_allclose(volume.voxels, same.voxels, atol=1e-3)
    np.testing.assert_allclose(volume.measured.affine, affine, atol=1e-6)


def test_a_series_that_lacks_a_slice_says_which_and_refers_to_those_around_it(run, tmp_path):
    stack(tmp_path / "in", skip=(5,), count=12)
    code, out, _ = run("enhance", "-i", tmp_path / "in", "-o", tmp_path / "out", "--model", "cubic", "--factor", "4")
    assert code == 0
    assert out[0].startswith("1 T2 TSE: 11 slices x 4 mm -> 48 slices x 1 mm")
    assert any(
        "1 slice is missing between slices 5 and 6, which are 8 mm apart (4 mm are usual)" in line for line in out
    )
    middle = pydicom.dcmread(sorted((tmp_path / "out").glob("*.dcm"))[22])
    names = {item.ReferencedSOPInstanceUID for item in middle.SourceImageSequence}
    assert {"1.2.3.4.1.5", "1.2.3.4.1.7"} <= names


def at_places(places):
    return lambda ds, index: setattr(ds, "ImagePositionPatient", [0, 0, float(places[index])])


@catches("io/dicom/places.py", "UNEVEN_SHARE = 0.02", "UNEVEN_SHARE = 2.0")
def test_uneven_positions_are_kept_in_the_order_of_the_patient(tmp_path):
    places = [0, 4, 8, 13, 19, 26, 34, 43]
    stack(tmp_path, change=at_places(places))
    volume = read_series(only(tmp_path))
    np.testing.assert_allclose(np.array(volume.measured.places) * 43 / 7, places, atol=1e-4)
    np.testing.assert_allclose(volume.affine[2, 2], 43 / 7, atol=1e-5)


@catches("physics/straightening.py", "offsets_px @ pixels.T, axis=1).max()", "offsets_px @ pixels.T, axis=1)[-1]")
def test_one_slice_that_lies_aside_of_the_others_is_shifted_to_its_place(tmp_path):
    def change(ds, index):
        ds.ImagePositionPatient = [3.6 if index == 3 else 0, 0, 4.0 * index]

    values = stack(tmp_path, rows=40, columns=48, change=change)
    volume = read_series(only(tmp_path))
    assert any("shifted sideways" in note for note in volume.notes)
    assert volume.shape == (52, 40, 8)
    shown = volume.voxels[:, ::-1].transpose(2, 1, 0)
    np.testing.assert_array_equal(shown[3][:, 4:], values[3])
    np.testing.assert_array_equal(shown[4][:, :48], values[4])


@pytest.mark.parametrize("count", [1, 2])
def test_images_at_the_places_of_others_are_no_stations(tmp_path, count):
    """Which of two images at one place counts cannot be known."""
    stack(
        tmp_path, count=8 + count, change=at_places([0, 4, 8, 12, 16, 20, 20, 24, 28][: 8 + count] + [28] * (count - 1))
    )
    study = find_study(tmp_path)
    assert not study.series
    assert "images at 8 places" in study.unusable[0].reason


def test_rounded_positions_are_even_as_they_ever_were(tmp_path):
    stack(tmp_path, change=at_places([0, 4.04, 7.97, 12, 16.05, 20, 23.98, 28]))
    assert only(tmp_path).grid is None


@catches("io/dicom/stacks.py", "> WIDEST_GAP * usual_mm) + 1", "> 99 * usual_mm) + 1")
def test_stations_with_a_hole_between_them_are_two_stacks(run, tmp_path):
    stack(tmp_path / "in", skip=(5, 6, 7, 8, 9), count=16)
    first, second = find_study(tmp_path / "in").series
    assert [first.label, second.label] == ["1 T2 TSE, part 1 of 2", "1 T2 TSE, part 2 of 2"]
    assert [len(first.images), len(second.images)] == [5, 6]
    assert first.notes[0] == "24 mm lie between its last slice and that of 1 T2 TSE, part 2 of 2, with no slice there"
    code, _, _ = run("enhance", "-i", tmp_path / "in", "-o", tmp_path / "out", "--model", "cubic")
    assert code == 0
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.parametrize("shift_mm", [0.0, 2.0])
def test_stations_that_overlap_are_two_stacks_and_combine_is_named(tmp_path, shift_mm):
    stack(tmp_path, count=16, change=at_places([4 * i if i < 8 else 4 * (i - 2) + shift_mm for i in range(16)]))
    first, second = find_study(tmp_path).series
    assert [len(first.images), len(second.images)] == [8, 8]
    assert f"overlaps 1 T2 TSE, part 2 of 2 by {4 - shift_mm:g} mm" in first.notes[0]
    assert "combine" in first.notes[0]


def test_slices_of_two_thicknesses_are_two_stacks(tmp_path):
    def change(ds, index):
        ds.SliceThickness = 2.5 if index < 8 else 5
        ds.ImagePositionPatient = [0, 0, 2.5 * index if index < 8 else 17.5 + 5 * (index - 7)]

    stack(tmp_path, count=16, change=change)
    thin, thick = find_study(tmp_path).series
    assert [thin.label, thick.label] == ["1 T2 TSE, 2.5 mm thick", "1 T2 TSE, 5 mm thick"]
    assert [thin.thickness_mm, thick.thickness_mm] == [2.5, 5]
    assert [one.affine[2, 2] for one in (thin, thick)] == pytest.approx([2.5, 5])


def test_runs_of_one_thickness_on_both_sides_of_another_have_names_of_their_own(tmp_path):
    stack(tmp_path, count=12, change=lambda ds, index: setattr(ds, "SliceThickness", 5 if 4 <= index < 8 else 2.5))
    assert {one.label for one in find_study(tmp_path).series} == {
        "1 T2 TSE, 2.5 mm thick, run 1 of 2",
        "1 T2 TSE, 2.5 mm thick, run 2 of 2",
        "1 T2 TSE, 5 mm thick",
    }


@catches("io/dicom/stacks.py", "[usual_spacing_mm(group) for group in groups]", "[None for group in groups]")
@pytest.mark.parametrize("name", ["EchoTime", "EchoNumbers"])
def test_two_contrasts_that_alternate_stay_apart_where_a_slice_is_missing(tmp_path, name):
    stack(tmp_path, count=12, skip=(4,), change=lambda ds, index: setattr(ds, name, [1, 20][index % 2]))
    first, second = find_study(tmp_path).series
    assert [len(first.images), len(second.images)] == [5, 6]
    assert find_gaps(first.grid.places) == [(1, 2.0)]
    assert second.grid is None


@catches("io/dicom/stacks.py", "| (usual_spacing_mm(stack) is None)", "")
def test_a_slice_of_an_uneven_stack_is_no_odd_image(tmp_path):
    places = [0, 4.3, 8, 11.6, 16.5, 20, 23.7, 28]

    def change(ds, index):
        at_places(places)(ds, index)
        ds.ImageType = ["DERIVED" if index == 4 else "ORIGINAL", "PRIMARY", "M"]

    stack(tmp_path, change=change)
    assert [one.is_scan for one in find_study(tmp_path).unusable] == [True]


def test_uneven_series_take_no_part_in_combining(tmp_path):
    stack(tmp_path / "a", drift_mm=1.0)
    stack(tmp_path / "b", series=2)
    left = {one.label: one.reason for one in find_groups(find_study(tmp_path)).left_out}
    assert "tilted, uneven or incomplete" in left["1 T2 TSE"]
    with pytest.raises(InputRefused, match="tilted, uneven or incomplete"):
        thinslice.combine([tmp_path / "a", tmp_path / "b"], registration=False)
