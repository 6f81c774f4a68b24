import numpy as np
import pytest
from PIL import Image

from faults import catches
from thinslice.reports.picture import (
    INK,
    LETTERS,
    Picture,
    Plane,
    _hang,
    find_picture_centre,
    render,
    reslice_planes,
    write_comparison_picture,
    write_picture,
)
from thinslice.reports.picture import draw_side_by_side as sheet_of
from thinslice.volume import Volume


def marked(affine: np.ndarray, shape=(10, 12, 14)) -> Volume:
    """Every voxel's value is 10000 right + 100 front + head, in patient millimetres."""
    index = np.stack([*np.indices(shape), np.ones(shape)], axis=-1)
    x, y, z = np.moveaxis(index @ affine.T, -1, 0)[:3]
    return Volume(10000 * x + 100 * y + z, affine)


ORIENTATIONS = {
    "RAS": np.diag([1, 1, 1, 1.0]),
    "LPS": np.diag([-1, -1, 1, 1.0]),
    "sagittal stack": np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]]),
    "coronal stack": np.array([[-1, 0, 0, 5], [0, 0, -1, 0], [0, 1, 0, 3], [0, 0, 0, 1.0]]),
}


@pytest.mark.parametrize("name", ORIENTATIONS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_planes_hang_head_up_front_left_and_patient_right_to_the_left(name, axis):
    """One row down is 1 mm towards the feet (axial: back), one column to the right towards the back or the left."""
    volume = marked(ORIENTATIONS[name])
    down_and_right = {"sagittal": (-1, -100), "coronal": (-1, -10000), "axial": (-100, -10000)}
    planes = reslice_planes(volume, axis)
    assert planes[0].name != planes[1].name
    for plane in planes:
        down, right = down_and_right[plane.name]
        np.testing.assert_allclose(np.diff(plane.pixels, axis=0), down)
        np.testing.assert_allclose(np.diff(plane.pixels, axis=1), right)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_planes_contain_the_slice_axis_at_its_spacing(axis):
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = 4.0
    shape = (10, 12, 14)
    for plane in reslice_planes(marked(np.diag([*spacing, 1.0]), shape), axis):
        along = 0 if plane.thick_rows else 1
        assert plane.pixel_mm[along] == pytest.approx(4)
        assert plane.pixels.shape[along] == shape[axis]


def test_tilted_stacks_take_each_patient_axis_once():
    turn = np.deg2rad(44)
    affine = np.eye(4)
    affine[1:3, 1:3] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    assert {plane.name for plane in reslice_planes(marked(affine), 2)} == {"sagittal", "coronal"}


def test_the_first_volume_of_a_series_is_shown():
    volume = marked(np.eye(4))
    series = Volume(np.stack([volume.voxels, -volume.voxels], axis=-1), volume.affine)
    for one, other in zip(reslice_planes(volume, 2), reslice_planes(series, 2), strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)


def test_the_centre_is_that_of_the_bright_part_and_of_the_grid_where_there_is_none():
    voxels = np.zeros((20, 20, 20))
    voxels[4:9, 10:15, 2:7] = 3
    assert find_picture_centre(Volume(voxels, np.eye(4))) == (6, 12, 4)
    assert find_picture_centre(Volume(np.zeros((20, 20, 20)), np.eye(4))) == (10, 10, 10)
    assert find_picture_centre(Volume(np.full((20, 20, 20), np.nan), np.eye(4))) == (10, 10, 10)


def plane(pixels: np.ndarray, pixel_mm=(1.0, 1.0), thick_rows=True) -> Plane:
    return Plane("coronal", pixels, pixel_mm, thick_rows)


def test_true_aspect_and_window():
    image = render(Picture("", plane(np.array([[-5.0, 0, 5], [10, 15, np.nan]]), (4, 1)), (0, 10)), 10)
    assert image.size == (30, 80)
    pixels = np.asarray(image)
    assert pixels.min() == 0
    assert pixels.max() == 255


@pytest.mark.parametrize("thick_rows", [True, False])
def test_a_staircase_has_flat_steps_and_the_smooth_picture_has_none(thick_rows):
    ramp = np.repeat(np.arange(6.0)[:, None], 6, axis=1)
    size = (8.0, 1.0)
    if not thick_rows:
        ramp, size = ramp.T, (1.0, 8.0)
    steps, smooth = (
        np.asarray(render(Picture("", plane(ramp, size, thick_rows), (0, 5), stairs), 1)) for stairs in (True, False)
    )
    along = 0 if thick_rows else 1
    assert len(np.unique(steps)) == 6
    np.testing.assert_array_equal(np.count_nonzero(np.diff(steps.astype(int), axis=along).any(axis=1 - along)), 5)
    assert len(np.unique(smooth)) > 20


def test_sheet_has_every_picture_in_its_place():
    shades = [
        [Picture(f"{r}{c}", plane(np.full((10, 10), 50.0 * (3 * r + c))), (0, 255)) for c in range(3)] for r in (0, 1)
    ]
    sheet = np.asarray(sheet_of(shades, "title"))
    height, width = sheet.shape
    centres = [
        [sheet[round(height * (r + 0.65) / 2), 26 + round((width - 26) * (c + 0.5) / 3)] for c in range(3)]
        for r in (0, 1)
    ]
    np.testing.assert_array_equal(centres, [[0, 50, 100], [150, 200, 250]])


def test_captions_of_narrow_pictures_do_not_run_into_each_other():
    narrow = plane(np.zeros((40, 2)))
    row = [Picture("a rather long caption", narrow, (0, 1)) for _ in range(3)]
    captions = np.asarray(sheet_of([row]))[8:30, 26:] > 100
    empty = ~captions.any(axis=0)
    runs = np.diff(np.flatnonzero(~empty))
    assert np.count_nonzero(runs > 8) == 2


def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    write_picture(Image.new("L", (4, 4), 7), path)

    def fail(*arguments):
        raise OSError("no room")

    monkeypatch.setattr("thinslice.io.atomic.os.replace", fail)
    with pytest.raises(OSError, match="no room"):
        write_picture(Image.new("L", (4, 4), 9), path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert np.asarray(Image.open(path)).max() == 7


def test_demo_picture(tmp_path):
    rng = np.random.default_rng(0)
    acquired = Volume(rng.normal(size=(40, 50, 8)), np.diag([1, 1, 5, 1.0]))
    thin = Volume(rng.normal(size=(40, 50, 40)), np.eye(4))
    write_comparison_picture(acquired, thin, thin, tmp_path / "demo.png")
    with Image.open(tmp_path / "demo.png") as image:
        assert image.format == "PNG"
        assert image.width > 3 * 270


@catches("reports/picture.py", '"coronal": tuple("RLSI")', '"coronal": tuple("LRSI")')
@catches("reports/picture.py", '"axial": tuple("RLAP")', '"axial": tuple("RLPA")')
def test_letters_say_where_the_sides_of_a_plane_are():
    """A voxel that is farthest to the right, front and head of the patient is at the sides with R, A and S."""
    for affine in (np.diag([1.0, 1, 1, 1]), np.diag([-1.0, 1, -1, 1])):
        voxels = np.zeros((9, 9, 9))
        corner = [8 if affine[axis, axis] > 0 else 0 for axis in range(3)]
        voxels[tuple(corner)] = 1
        for across in range(3):
            centre = tuple(corner[axis] if axis == across else 4 for axis in range(3))
            plane = _hang(voxels[(slice(None),) * across + (centre[across],)], affine, across, 2)
            row, column = np.unravel_index(plane.pixels.argmax(), plane.pixels.shape)
            left, right, top, bottom = LETTERS[plane.name]
            assert {left if column == 0 else right, top if row == 0 else bottom} <= set("RAS")


def test_marks_are_at_the_sides_and_the_bar_is_as_long_as_it_says():
    plane = Plane("axial", np.zeros((100, 100)), (1.0, 1.0), True)
    bare, marked = (np.asarray(render(Picture("", plane, (0, 1), marks=marks), 4)) for marks in (False, True))
    assert not bare.any()
    seen = marked == INK
    for part in (seen[190:210, :20], seen[190:210, -20:], seen[:20, 190:210], seen[-20:, 190:210]):
        assert part.any()
    # 100 mm of 400 pixels, of which a bar takes three tenths at most: 20 mm are 80 pixels.
    assert max(seen[row, :150].sum() for row in range(380, 400)) == 79
    small = render(Picture("", plane, (0, 1), marks=True), 1)
    assert not np.asarray(small).any()
