"""Which series a folder holds: split, sorted, measured, or refused by name and reason; never made to look regular."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_files import AXIAL, CORONAL, SAGITTAL, enhanced, header, normal_of, oblique, save, set_pixels, stack
from faults import catches
from thinslice.io.dicom.pixels import read_series
from thinslice.io.dicom.series import find_study
from thinslice.physics.straightening import find_gaps

TO_RAS = np.diag([-1, -1, 1])


def only(folder):
    study = find_study(folder)
    assert not study.unusable, study.unusable
    assert len(study.series) == 1, [s.label for s in study.series]
    return study.series[0]


def refusal(folder):
    study = find_study(folder)
    assert not study.series, [s.label for s in study.series]
    assert len(study.unusable) == 1, study.unusable
    return study.unusable[0].reason


@catches(
    "io/dicom/series.py",
    "    between_rows, between_columns = image.spacing_mm or ()",
    "    between_columns, between_rows = image.spacing_mm or ()",
)
@catches("io/dicom/series.py", "TO_RAS = np.diag([-1.0, -1.0, 1.0])", "TO_RAS = np.diag([1.0, 1.0, 1.0])")
@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL, CORONAL, oblique(), oblique(-37)])
def test_every_voxel_is_where_its_header_says(tmp_path, orientation):
    values = stack(tmp_path, orientation=orientation)
    series = only(tmp_path)
    volume = read_series(series)
    assert volume.shape == (24, 20, 8)
    for image in series.images:
        index = image.instance - 1
        at = series.images.index(image)
        for row, column in [(0, 0), (19, 0), (0, 23), (7, 11)]:
            lps = (
                np.array(image.position)
                + column * 0.9 * np.array(orientation[:3])
                + row * 0.8 * np.array(orientation[3:])
            )
            ras = volume.affine @ [column, 19 - row, at, 1]
            assert np.allclose(ras[:3], TO_RAS @ lps, atol=1e-6)
            assert volume.voxels[column, 19 - row, at] == values[index, row, column]


@catches(
    "io/dicom/series.py",
    'images = [images[i] for i in np.argsort(along, kind="stable")]',
    "images = sorted(images, key=lambda image: -(image.instance or 0))",
)
@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL, CORONAL, oblique()])
def test_the_array_is_left_handed_as_dcm2niix_writes_it(tmp_path, orientation):
    stack(tmp_path, orientation=orientation)
    assert np.linalg.det(only(tmp_path).affine[:3, :3]) < 0


def test_spacing_is_by_least_squares_and_the_residual_is_told(tmp_path):
    def jitter(ds, index):
        ds.ImagePositionPatient = [0, 0, round(4.0 * index + (0.03 if index == 3 else 0.0), 3)]

    stack(tmp_path, change=jitter)
    series = only(tmp_path)
    along = 4.0 * np.arange(8) + 0.03 * (np.arange(8) == 3)
    slope, start = np.polyfit(np.arange(8), along, 1)
    assert np.linalg.norm(series.affine[:3, 2]) == pytest.approx(slope, abs=1e-9)
    assert series.residual_mm == pytest.approx(np.abs(along - start - slope * np.arange(8)).max(), abs=1e-9)
    assert "none farther than 0.026 mm" in series.notes[0]


def test_thickness_gap_and_a_wrong_stated_spacing_are_told(tmp_path):
    stack(tmp_path, SpacingBetweenSlices=5)
    series = only(tmp_path)
    assert series.thickness_mm == 3.5
    assert "a gap of 0.5 mm" in series.notes[1]
    assert "SpacingBetweenSlices says 5 mm; the positions are used" in series.notes[2]


def test_overlap_is_told(tmp_path):
    stack(tmp_path, thickness_mm=5)
    assert "an overlap of 1 mm" in only(tmp_path).notes[1]


@pytest.mark.parametrize(("written", "read"), [(None, None), (0, None), (-3, None), (3.25, 3.25)])
def test_a_thickness_that_cannot_be_is_none(tmp_path, written, read):
    stack(tmp_path, thickness_mm=written)
    assert only(tmp_path).thickness_mm == read


def two(folder, name, first, second):
    """Two stacks of one series at the same places, told apart by one attribute."""

    def change(value, offset):
        def apply(ds, index):
            ds.SOPInstanceUID += f".{offset}"
            setattr(ds, name, value)

        return apply

    stack(folder, change=change(first, 1), named="A")
    stack(folder, change=change(second, 2), named="B")


@catches("io/dicom/stacks.py", "in by(grid, lambda image: image.among)]", "in by(grid, lambda image: image.among[:1])]")
@catches(
    "io/dicom/stacks.py",
    "if len(groups) > 1 and all(are_same_places(find_places(group), places) for group in groups):",
    "if len(groups) > 1:",
)
@pytest.mark.parametrize(
    ("name", "first", "second", "said"),
    [
        ("EchoNumbers", 1, 2, ["echo 1", "echo 2"]),
        ("EchoTime", 20, 80, ["TE 20", "TE 80"]),
        ("DiffusionBValue", 0.0, 1000.0, ["b 0", "b 1000"]),
        ("TemporalPositionIdentifier", 1, 2, ["phase 1", "phase 2"]),
        ("ImageType", ["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "R"], ["M", "R"]),
        ("TriggerTime", 10, 400, ["trigger 10", "trigger 400"]),
        ("InversionTime", 100, 900, ["TI 100", "TI 900"]),
        ("AcquisitionNumber", 1, 2, ["acquisition 1", "acquisition 2"]),
        ("AcquisitionTime", "101010", "101020", ["time 101010", "time 101020"]),
        ("ConvolutionKernel", "B30f", "B70f", ["kernel B30f", "kernel B70f"]),
        ("SeriesInstanceUID", "1.5", "1.6", ["1 T2 TSE", "1 T2 TSE"]),
    ],
)
def test_stacks_at_the_same_places_are_told_apart(tmp_path, name, first, second, said):
    two(tmp_path, name, first, second)
    study = find_study(tmp_path)
    assert not study.unusable
    assert [s.shape for s in study.series] == [(24, 20, 8)] * 2
    assert all(text in s.label for text, s in zip(said, study.series, strict=True))
    for series in study.series:
        assert len({image.path.name[0] for image in series.images}) == 1


def test_both_echo_and_phase_tell_apart(tmp_path):
    for echo in (10, 20):
        for trigger in (0, 300, 600):

            def change(ds, index, echo=echo, trigger=trigger):
                ds.SOPInstanceUID += f".{echo}.{trigger}"
                ds.EchoTime, ds.TriggerTime = echo, trigger

            stack(tmp_path, change=change, named=f"{echo}-{trigger}-")
    study = find_study(tmp_path)
    assert len(study.series) == 6
    assert not study.unusable
    assert len({s.label for s in study.series}) == 6


@pytest.mark.parametrize("name", ["AcquisitionNumber", "TriggerTime", "InversionTime"])
def test_what_only_varies_along_a_stack_does_not_split_it(tmp_path, name):
    """Interleaved slices have two acquisition numbers, gated ones a trigger time each."""
    stack(tmp_path, change=lambda ds, index: setattr(ds, name, 1 + index % 2))
    assert only(tmp_path).shape == (24, 20, 8)


@pytest.mark.parametrize(
    ("tag", "vr", "creator", "value"),
    [
        ((0x0019, 0x0C), "IS", "SIEMENS MR HEADER", 1000),
        ((0x0043, 0x39), "IS", "GEMS_PARM_01", [1000001000, 8, 0, 0]),
        ((0x2001, 0x03), "FL", "Philips Imaging DD 001", 1000.0),
    ],
)
def test_private_b_values_are_known(tmp_path, tag, vr, creator, value):
    def weighted(ds, index):
        ds.SOPInstanceUID += ".9"
        ds.private_block(tag[0], creator, create=True).add_new(tag[1], vr, value)

    stack(tmp_path, named="A")
    stack(tmp_path, named="B", change=weighted)
    study = find_study(tmp_path)
    assert sorted(s.label for s in study.series) == ["1 T2 TSE, b", "1 T2 TSE, b 1000"]


def test_images_that_differ_at_the_same_place_with_nothing_to_tell_apart_are_refused(tmp_path):
    def change(offset):
        def apply(ds, index):
            ds.SOPInstanceUID += f".{offset}"
            ds.PixelData = bytes([offset]) + ds.PixelData[1:]

        return apply

    stack(tmp_path, change=change(1), named="A")
    stack(tmp_path, change=change(2), named="B")
    assert "16 images at 8 places" in refusal(tmp_path)


def test_copies_of_the_same_image_are_read_once(tmp_path):
    stack(tmp_path / "a")
    stack(tmp_path / "b")
    study = find_study(tmp_path)
    assert study.series[0].shape == (24, 20, 8)
    assert study.notes == ("8 image(s) were there twice and are read once",)


def test_several_series_are_in_the_order_of_their_numbers(tmp_path):
    for number in (12, 3, 5):
        stack(tmp_path / str(number), series=number, description=f"S{number}")
    assert [s.label for s in find_study(tmp_path).series] == ["3 S3", "5 S5", "12 S12"]


def test_stacks_of_several_orientations_are_read_each(tmp_path):
    def of(offset):
        return lambda ds, index: setattr(ds, "SOPInstanceUID", f"{ds.SOPInstanceUID}.{offset}")

    stack(tmp_path, change=of(1), named="A")
    stack(tmp_path, change=of(2), named="B", orientation=CORONAL)
    study = find_study(tmp_path)
    assert [s.label for s in study.series] == ["1 T2 TSE, orientation 1 of 2", "1 T2 TSE, orientation 2 of 2"]
    assert [s.index for s in study.series] == [0, 1]


def rotating(ds, index):
    angle = np.radians(10 * index)
    ds.ImageOrientationPatient = [f"{v:.8f}" for v in (np.cos(angle), np.sin(angle), 0, 0, 0, -1)]


def gap(ds, index):
    ds.ImagePositionPatient = [0, 0, [0, 4, 8, 8.5, 17, 26, 34, 43][index]]


def mixed_thickness(ds, index):
    ds.SliceThickness = 3.5 if index < 7 else 5


@catches("io/dicom/series.py", "steps_mm.min() < SHORTEST_STEP * usual_mm", "steps_mm.min() < 0")
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"change": rotating}, "8 slices in 8 orientations"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "a localizer"),
        ({"ImageType": ["DERIVED", "SECONDARY", "PROJECTION IMAGE"]}, "projections (MIP)"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MIP"]}, "projections (MIP)"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]}, "mosaics"),
        ({"skip": (2, 3, 4, 5)}, "4 slices 4 mm apart, and 20 mm between IM"),
        ({"change": gap}, "from 0.5 to 9 mm apart; need distances of one stack"),
        ({"count": 1}, "a single slice"),
        ({"change": mixed_thickness}, "from 3.5 to 5 mm thick"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour images (PALETTE COLOR)"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.128"}, "Positron Emission Tomography Image Storage"),
        ({"RescaleSlope": 0}, "RescaleSlope of zero"),
        ({"PixelSpacing": [0, 1]}, "spacings above zero"),
        ({"orientation": (1, 0, 0, 0.5, 0.5, 0)}, "at right angles"),
    ],
)
def test_what_is_no_even_stack_is_refused_by_name(tmp_path, options, reason):
    stack(tmp_path, **options)
    assert reason in refusal(tmp_path)
    assert "; need " in refusal(tmp_path)
    assert "; next: " in refusal(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "BitsStored",
     "PhotometricInterpretation"],
)  # fmt: skip
def test_a_header_without_what_is_needed_is_refused(tmp_path, name):
    stack(tmp_path, change=lambda ds, index: delattr(ds, name))
    assert name.replace("BitsStored", "0/16 bits").replace("Rows", "got") in refusal(tmp_path)


@pytest.mark.parametrize("name", ["ImagePositionPatient", "PixelSpacing"])
def test_one_slice_without_what_is_needed_refuses_the_series_and_not_only_the_slice(tmp_path, name):
    """Even one at the end, without which the rest would look whole."""
    stack(tmp_path, change=lambda ds, index: delattr(ds, name) if index == 7 else None)
    assert "(1 of 8 images)" in refusal(tmp_path)


def test_rgb_is_refused(tmp_path):
    ds = header()
    ds.SOPInstanceUID, ds.ImagePositionPatient = "1.2.3.4.1.1", [0, 0, 0]
    set_pixels(ds, np.zeros((4, 12), int), bits=8)
    ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 4, 3, "RGB", 0
    save(ds, tmp_path / "a")
    assert "colour images (RGB)" in refusal(tmp_path)


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_slice_that_is_cut_off_refuses_the_series_or_leaves_a_gap(tmp_path, kept):
    stack(tmp_path)
    victim = sorted(tmp_path.iterdir())[2]
    victim.write_bytes(victim.read_bytes()[: int(victim.stat().st_size * kept)])
    reason = " ".join(one.reason for one in find_study(tmp_path).unusable)
    assert victim.name in reason
    # What it left is a gap, which is told of as well.
    assert all(find_gaps(series.grid.places) for series in find_study(tmp_path).series)


def test_a_file_whose_header_is_cut_off_is_named_and_the_series_warned(tmp_path):
    stack(tmp_path)
    (tmp_path / "rest").write_bytes(sorted(tmp_path.iterdir())[0].read_bytes()[:140])
    study = find_study(tmp_path)
    assert [one.label for one in study.unusable] == ["rest"]
    assert "damaged" in study.unusable[0].reason
    assert "a damaged file lies beside these slices" in study.series[0].notes[-1]


def test_a_refused_series_does_not_stop_the_others(tmp_path):
    stack(tmp_path / "a", series=1, skip=(2, 3, 4, 5))
    stack(tmp_path / "b", series=2)
    study = find_study(tmp_path)
    assert [s.label for s in study.series] == ["2 T2 TSE"]
    assert [s.label for s in study.unusable] == ["1 T2 TSE"]


def test_a_label_is_one_printable_line(tmp_path):
    stack(tmp_path, description="T2\x1b[2J\ttra\nx")
    assert only(tmp_path).label == "1 T2?[2J tra x"


def test_other_files_hidden_ones_and_reports_are_left_alone(tmp_path):
    stack(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / ".hidden").write_bytes(b"\0" * 128 + b"DICM")
    report = header()
    report.SOPClassUID, report.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.11", "1.2.3.4.8"
    for name in ("ImageOrientationPatient", "PixelSpacing"):
        delattr(report, name)
    save(report, tmp_path / "report")
    study = find_study(tmp_path)
    assert len(study.series) == 1
    assert not study.unusable
    assert study.notes == ("2 file(s) hold no DICOM image and were left alone",)


@catches("io/dicom/pixels.py", "index = image.frame or 0", "index = 0")
@pytest.mark.parametrize("echoes", [1, 2])
def test_enhanced_images_are_read_frame_by_frame(tmp_path, echoes):
    values = enhanced(tmp_path / "e", echoes=echoes)
    study = find_study(tmp_path / "e")
    assert not study.unusable
    assert len(study.series) == echoes
    for echo, series in enumerate(study.series):
        volume = read_series(series)
        frames = values[echo * 6 : echo * 6 + 6][::-1]  # they run from the last slice to the first
        assert np.allclose(volume.voxels, frames.transpose(2, 1, 0)[:, ::-1] * 2.5 - 10)
        assert volume.thickness_mm == 3.5
        assert np.allclose(volume.affine @ [0, 19, 0, 1], [-1, -2, 3, 1])


def test_frames_without_their_groups_are_refused(tmp_path):
    from pydicom import dcmread

    enhanced(tmp_path / "e")
    ds = dcmread(tmp_path / "e")
    ds.PerFrameFunctionalGroupsSequence = ds.PerFrameFunctionalGroupsSequence[:-1]
    ds.save_as(tmp_path / "e")
    assert "not one functional group for each" in refusal(tmp_path)


@catches("io/dicom/stacks.py", "and even_spacing_mm(grid) is not None:", "and False:")
@pytest.mark.parametrize("name", ["ImageType", "EchoNumbers"])
@pytest.mark.parametrize("differ", [lambda index: index >= 4, lambda index: index in (1, 2, 6)])
def test_an_even_stack_is_one_whatever_differs_along_it(tmp_path, name, differ):
    values = {"ImageType": ["ORIGINAL", "PRIMARY", "M", "NORM"], "EchoNumbers": 7}
    stack(tmp_path, change=lambda ds, index: setattr(ds, name, values[name]) if differ(index) else None)
    series = only(tmp_path)
    assert series.shape == (24, 20, 8)
    assert [note for note in series.notes if "differ along the stack" in note]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda ds, index: setattr(ds, "FrameOfReferenceUID", f"1.9.{int(index < 3)}"), None),
        (lambda ds, index: setattr(ds, "PhotometricInterpretation", f"MONOCHROME{1 + (index > 0)}"), "single slice"),
        (lambda ds, index: setattr(ds, "PatientID", "1" if index == 4 else "2"), "single slice"),
    ],
)
def test_slices_of_other_places_polarity_or_patients_are_never_fused(tmp_path, change, reason):
    stack(tmp_path, change=change)
    study = find_study(tmp_path)
    assert all(len(series.images) < 8 for series in study.series)
    assert reason is None or any(reason in one.reason for one in study.unusable)


@catches("io/dicom/stacks.py", "== _hash_voxels(other.path, other.voxels_at)", "!= b''")
def test_different_images_of_one_place_under_one_name_are_refused(tmp_path):
    stack(tmp_path)
    stack(tmp_path, named="A", values=np.full((8, 20, 24), 777), skip=(0, 1, 2, 4, 5, 6, 7))
    assert "9 images at 8 places (such as A006 and IM006)" in refusal(tmp_path)


def test_the_order_of_stacks_is_theirs_and_not_that_of_file_names(tmp_path):
    def weighted(b):
        def change(ds, index):
            ds.SOPInstanceUID += f".{b}"
            ds.DiffusionBValue = float(b)

        return change

    for name, b in (("Z", 0), ("A", 500), ("M", 1000)):
        stack(tmp_path, named=name, change=weighted(b))
    assert [(s.index, s.distinction) for s in find_study(tmp_path).series] == [
        (0, ", b 0"),
        (1, ", b 500"),
        (2, ", b 1000"),
    ]


def test_a_private_element_of_another_maker_is_no_b_value(tmp_path):
    def other(ds, index):
        ds.private_block(0x0019, "TOSHIBA_MEC_MR3", create=True).add_new(0x0C, "IS", index)

    stack(tmp_path, change=other)
    assert only(tmp_path).shape == (24, 20, 8)


def test_every_second_slice_only_is_refused(tmp_path):
    stack(tmp_path, skip=(1, 3, 5, 7), SpacingBetweenSlices=4)
    assert "every 2. slice only (images 1, 3 ..., 8 mm apart where SpacingBetweenSlices says 4)" in refusal(tmp_path)


def test_fewer_slices_than_the_header_counts_are_told(tmp_path):
    stack(tmp_path, skip=(6, 7), ImagesInAcquisition=8)
    assert "the header counts 8 images in the acquisition, this stack has 6" in only(tmp_path).notes


def test_a_concatenation_is_whole_or_refused(tmp_path):
    from pydicom import dcmread

    enhanced(tmp_path / "e")
    ds = dcmread(tmp_path / "e")
    ds.ConcatenationUID, ds.InConcatenationNumber, ds.InConcatenationTotalNumber = "1.2.3.77", 1, 2
    ds.save_as(tmp_path / "e")
    assert "1 of the 2 files of a concatenation" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("HighBit", 15), ("BitsAllocated", 32), ("BitsStored", 0), ("BitsStored", 17)]
)
def test_bits_that_cannot_be_are_refused(tmp_path, name, value):
    stack(tmp_path, change=lambda ds, index: setattr(ds, name, value))
    assert "need grey ones of 8 or 16 bits" in refusal(tmp_path)


def test_folders_behind_links_are_read_once(tmp_path):
    stack(tmp_path / "elsewhere")
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "series").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "study")
    assert only(tmp_path / "study").shape == (24, 20, 8)


def test_a_folder_without_permission_is_named(tmp_path):
    stack(tmp_path / "a")
    (tmp_path / "b").mkdir(mode=0)
    if os.access(tmp_path / "b", os.R_OK):
        pytest.skip("this user may read everything")
    assert [one.label for one in find_study(tmp_path).unusable] == ["b"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_a_pipe_is_left_alone_and_not_waited_for(tmp_path):
    stack(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert only(tmp_path).shape == (24, 20, 8)


def test_several_patients_are_told(tmp_path):
    stack(tmp_path / "a", PatientID="1")
    stack(tmp_path / "b", PatientID="2")
    study = find_study(tmp_path)
    assert len(study.series) == 2
    assert "these are images of 2 patients (PatientID)" in study.notes


@settings(deadline=None, max_examples=25)
@given(
    step_mm=st.floats(0.5, 9),
    count=st.integers(2, 12),
    degrees=st.floats(-80, 80),
    origin=st.tuples(*[st.floats(-300, 300)] * 3),
)
def test_the_affine_is_exact_for_every_stack(tmp_path_factory, step_mm, count, degrees, origin):
    folder = tmp_path_factory.mktemp("stack")
    orientation = oblique(degrees)
    stack(folder, step_mm=step_mm, count=count, orientation=orientation, origin=origin, rows=4, columns=5)
    series = only(folder)
    assert series.residual_mm < 1e-8
    expected = TO_RAS @ (np.array(origin) + (count - 1) * step_mm * normal_of(orientation))
    assert np.allclose(series.affine @ [0, 3, count - 1, 1], [*expected, 1], atol=1e-6)
