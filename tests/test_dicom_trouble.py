"""DICOM as it comes from hospitals: odd images, broken identifiers, copies, phases, archives, rounded directions."""

import gzip
import io
import json
import tarfile
import zipfile

import numpy as np
import pytest
from pydicom import dcmread, uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dicom_files import CORONAL, blobs, enhanced, normal_of, oblique, stack
from faults import catches
from thinslice import enhance
from thinslice.cli import main
from thinslice.io.dicom.pixels import read_series
from thinslice.io.dicom.series import find_study


@pytest.fixture
def run(capsys):
    """Code, lines of standard output, lines of standard error."""

    def call(*words):
        code = main(list(map(str, words)))
        said = capsys.readouterr()
        return code, said.out.splitlines(), said.err.splitlines()

    return call


@pytest.fixture
def quick(run):
    return lambda *words: run("enhance", *words, "--model", "linear")


def only(folder):
    """The one series, whatever was left out."""
    study = find_study(folder)
    assert len(study.series) == 1, [one.label for one in study.series]
    return study.series[0]


def voxels_of(series):
    """[slices, rows, columns], as they were written."""
    return read_series(series).voxels[:, ::-1].transpose(2, 1, 0)


def left_out(folder):
    return [one for one in find_study(folder).unusable if not one.is_scan]


# An odd image in a series


def of_another_orientation(folder):
    stack(folder, named="X", count=1, orientation=CORONAL, change=named_otherwise)


def of_another_size(folder):
    stack(folder, named="X", count=1, rows=40, change=named_otherwise)


def in_its_own_frame(folder):
    stack(folder, named="X", count=1, orientation=CORONAL, FrameOfReferenceUID="1.9.9", change=named_otherwise)


def a_localizer(folder):
    kind = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    stack(folder, named="X", count=2, orientation=CORONAL, ImageType=kind, change=named_otherwise)


def a_secondary_capture(folder):
    stack(folder, named="X", count=1, change=no_slice, SOPClassUID=uid.SecondaryCaptureImageStorage)


def a_dose_page(folder):
    kind = ["DERIVED", "SECONDARY", "SCREEN SAVE"]
    stack(folder, named="X", count=1, rows=64, columns=64, ImageType=kind, change=no_slice)


def a_segmentation_of_it(folder):
    stack(folder, named="X", count=1, change=no_slice, SOPClassUID=uid.SegmentationStorage)


def named_otherwise(ds, index):
    ds.SOPInstanceUID += ".77"


def no_slice(ds, index):
    named_otherwise(ds, index)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(ds, name)


ODD = [
    of_another_orientation, of_another_size, in_its_own_frame, a_localizer, a_secondary_capture, a_dose_page,
]  # fmt: skip


@catches("io/dicom/stacks.py", "    if not stacks or 2 * sum", "    if True or 2 * sum")
@catches("io/dicom/stacks.py", '        "dicom-odd-image",\n', "")
@pytest.mark.parametrize("odd", ODD)
def test_an_odd_image_is_left_out_and_named_and_the_stack_is_done(tmp_path, quick, odd):
    values = stack(tmp_path / "in")
    odd(tmp_path / "in")
    series = only(tmp_path / "in")
    assert np.array_equal(voxels_of(series), values)
    assert [note for note in series.notes if note.startswith("left out: X000")]
    code, out, err = quick("-i", tmp_path / "in", "-o", tmp_path / "out.nii.gz")
    assert (code, err) == (0, [])
    assert [line for line in out if "left out" in line and "X000" in line]
    notes = json.loads((tmp_path / "out.json").read_text())["notes"]
    assert [note for note in notes if note.startswith("left out: X000")]


def test_a_segmentation_of_the_series_is_named_as_one_and_the_stack_is_done(tmp_path, quick):
    values = stack(tmp_path / "in")
    a_segmentation_of_it(tmp_path / "in")
    assert np.array_equal(voxels_of(only(tmp_path / "in")), values)
    code, out, err = quick("-i", tmp_path / "in", "-o", tmp_path / "out.nii.gz")
    assert (code, err) == (0, [])
    assert [line for line in out if "1 segmentation(s)" in line and "X000" in line and "--labels" in line]


def test_strictly_an_odd_image_counts_as_refused(tmp_path, quick, run):
    stack(tmp_path / "in")
    of_another_orientation(tmp_path / "in")
    code, _, err = quick("-i", tmp_path / "in", "-o", tmp_path / "out", "--strict")
    assert code == 2
    assert "X000: got one image of another orientation than the slices of the stack" in err[0]
    assert len(list((tmp_path / "out").glob("*.dcm"))) == 36
    words = ("info", "-i", tmp_path / "in", "--model", "linear")
    assert run(*words)[0] == 0
    assert run(*words, "--strict")[0] == 2


def test_all_odd_images_are_left_out_and_every_stack_is_done(tmp_path, quick):
    stack(tmp_path / "in")
    for at, odd in enumerate(ODD):
        odd(tmp_path / "in" / str(at))
    stack(tmp_path / "in" / "other", series=2, step_mm=5.0)
    code, out, err = quick("-i", tmp_path / "in", "-o", tmp_path / "out")
    assert (code, err) == (0, [])
    assert len([line for line in out if "wrote" in line]) == 2


def test_a_study_without_any_stack_is_refused(tmp_path, quick):
    stack(tmp_path / "in", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    a_secondary_capture(tmp_path / "in")
    code, _, err = quick("-i", tmp_path / "in", "-o", tmp_path / "out")
    assert code == 2
    assert err
    assert not (tmp_path / "out").exists()


@catches("io/dicom/stacks.py", "not any(_goes_on(part.images, stack.images) for stack in stacks)", "True")
@pytest.mark.parametrize("index", [0, 7])
def test_a_slice_at_the_end_of_a_stack_is_no_odd_image(tmp_path, quick, index):
    """Its polarity differs: the scan is not whole without it, and the exit code says so."""

    def change(ds, at):
        ds.PhotometricInterpretation = "MONOCHROME1" if at == index else "MONOCHROME2"

    stack(tmp_path / "in", change=change)
    assert not left_out(tmp_path / "in")
    assert quick("-i", tmp_path / "in", "-o", tmp_path / "out")[0] == 2


def test_a_few_slices_in_each_of_many_orientations_are_still_refused(tmp_path):
    stack(tmp_path, count=2)
    stack(tmp_path, named="B", count=2, orientation=CORONAL, change=named_otherwise)
    study = find_study(tmp_path)
    assert not study.series
    assert "4 slices in 2 orientations" in study.unusable[0].reason


def test_two_slices_under_each_of_two_numbers_are_no_stacks_either(tmp_path):
    stack(tmp_path, count=2)
    stack(
        tmp_path, named="B", count=2, orientation=CORONAL, change=named_otherwise, SeriesInstanceUID="1.2.3.4.1",
        SeriesNumber=9,
    )  # fmt: skip
    study = find_study(tmp_path)
    assert not study.series
    assert "4 slices in 2 orientations" in study.unusable[0].reason


def test_batch_leaves_out_what_is_no_scan(tmp_path, run):
    values = stack(tmp_path / "in" / "a")
    of_another_orientation(tmp_path / "in" / "a")
    words = ("batch", "-i", tmp_path / "in", "-o", tmp_path / "out", "--model", "linear", "--workers", "1")
    code, out, err = run(*words)
    assert (code, err) == (0, []), out
    assert [line for line in out if "left out, no scan" in line]
    notes = json.loads((tmp_path / "out" / "a.json").read_text())["notes"]
    assert [note for note in notes if note.startswith("left out: X000")]
    assert run(*words, "--strict")[0] == 2
    assert values.shape == (8, 20, 24)


def test_from_python_the_odd_image_is_in_the_notes(tmp_path):
    stack(tmp_path)
    of_another_orientation(tmp_path)
    assert [note for note in enhance(tmp_path, model="linear").report.notes if "left out: X000" in note]


# Identifiers that somebody broke


def own(*names):
    """Gives each slice identifiers of its own."""

    def change(ds, index):
        for name in names:
            setattr(ds, name, f"1.7.{index + 1}")

    return change


def without(*names):
    def change(ds, index):
        for name in names:
            delattr(ds, name)

    return change


def one_name_for_all(ds, index):
    ds.SOPInstanceUID = "1.2.3.4.1.1"


BROKEN = {
    "one SOPInstanceUID": one_name_for_all,
    "series": own("SeriesInstanceUID"),
    "frame": own("FrameOfReferenceUID"),
    "study": own("StudyInstanceUID"),
    "all": own("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    "patient": own("PatientID"),
    "no study": without("StudyInstanceUID"),
    "no series": without("SeriesInstanceUID"),
    "no frame": without("FrameOfReferenceUID"),
    "no names": without("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
}


def write_broken(folder, change, **options):
    values = stack(folder, change=lambda ds, index: None, **options)
    # The writer of the tests needs a name for each file.
    for number, file in enumerate(sorted(folder.iterdir())):
        ds = dcmread(file)
        change(ds, int(ds.InstanceNumber) - 1)
        ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number + 1}"
        ds.save_as(file, enforce_file_format=False)
    return values


@catches("io/dicom/identifiers.py", "LEAST_BROKEN = 3", "LEAST_BROKEN = 300")
@pytest.mark.parametrize("kind", BROKEN)
def test_an_even_stack_is_read_whatever_its_identifiers_are(tmp_path, quick, kind):
    values = write_broken(tmp_path / "in", BROKEN[kind])
    study = find_study(tmp_path / "in")
    assert not study.unusable
    assert np.array_equal(voxels_of(only(tmp_path / "in")), values)
    code, out, err = quick("-i", tmp_path / "in", "-o", tmp_path / "out")
    assert (code, err) == (0, [])
    assert kind == "no frame" or len([line for line in out if "as some anonymisers" in line or "without" in line]) >= 1


@catches("io/dicom/derived.py", "    complete_identifiers(shared, stored.series.images, account.key)\n", "")
@catches(
    "io/dicom/derived.py",
    "        if not image.sop_uid:\n            continue",
    "        if False:\n            continue",
)
@pytest.mark.parametrize("kind", BROKEN)
def test_a_new_series_has_one_of_each_identifier_and_the_same_every_time(tmp_path, quick, kind):
    write_broken(tmp_path / "in", BROKEN[kind])
    for name in ("a", "b"):
        assert quick("-i", tmp_path / "in", "-o", tmp_path / name)[0] == 0
    made = [dcmread(file) for file in sorted((tmp_path / "a").glob("*.dcm"))]
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        values = {getattr(ds, name) for ds in made}
        assert len(values) == 1
        assert uid.UID(values.pop()).is_valid
    assert len({ds.SOPInstanceUID for ds in made}) == len(made) == 36
    acquired = {str(dcmread(file).get("SOPInstanceUID")) for file in (tmp_path / "in").iterdir()}
    refers = {item.ReferencedSOPInstanceUID for ds in made for item in ds.get("SourceImageSequence", [])}
    assert refers == (acquired if kind not in ("one SOPInstanceUID", "no names") else set())
    for first, second in zip(
        sorted((tmp_path / "a").glob("*.dcm")), sorted((tmp_path / "b").glob("*.dcm")), strict=True
    ):
        assert first.read_bytes() == second.read_bytes()


def test_two_series_of_a_study_without_a_name_stay_in_one_study(tmp_path, quick):
    for number in (1, 2):
        write_broken(tmp_path / "in" / str(number), without("StudyInstanceUID"), series=number)
    assert quick("-i", tmp_path / "in", "-o", tmp_path / "out")[0] == 0
    assert len({dcmread(file).StudyInstanceUID for file in (tmp_path / "out").rglob("*.dcm")}) == 1


def test_of_two_patients_nothing_is_put_together(tmp_path):
    """Each slice has a series, every second one is of another patient."""
    write_broken(
        tmp_path, lambda ds, index: (own("SeriesInstanceUID")(ds, index), setattr(ds, "PatientID", str(index % 2)))
    )
    assert sorted(len(one.images) for one in find_study(tmp_path).series) == [4, 4]


def test_numbers_of_their_own_do_not_part_an_even_stack(tmp_path):
    values = write_broken(
        tmp_path, lambda ds, index: (own("SeriesInstanceUID")(ds, index), setattr(ds, "SeriesNumber", index + 1))
    )
    series = only(tmp_path)
    assert np.array_equal(voxels_of(series), values)
    assert [note for note in series.notes if "a SeriesInstanceUID and a SeriesNumber of its own" in note]


@catches("io/dicom/identifiers.py", "return numbered if are_stacks and not is_one", "return numbered if False")
def test_one_name_for_two_series_keeps_them_apart_by_their_numbers(tmp_path, run):
    """With other places they are no stacks of one series: nothing but their numbers tells them apart."""
    for number, count, step_mm in ((1, 8, 4.0), (2, 10, 3.0)):

        def change(ds, index, number=number):
            ds.SeriesInstanceUID, ds.SOPInstanceUID = "1.2.3.4", f"1.2.5.{number}.{index + 1}"

        folder = tmp_path / "in" / "a"
        stack(folder, series=number, count=count, step_mm=step_mm, thickness_mm=3.0, change=change, named=f"S{number}")
    assert [one.shape for one in find_study(tmp_path / "in").series] == [(24, 20, 8), (24, 20, 10)]
    words = ("batch", "-i", tmp_path / "in", "-o", tmp_path / "out", "--model", "linear", "--workers", "1")
    assert run(*words)[0] == 0
    assert len(list((tmp_path / "out" / "a").glob("*.nii.gz"))) == 2


def test_single_slices_that_belong_to_nothing_are_one_line(tmp_path, quick):
    for number in range(5):
        stack(tmp_path / "in" / str(number), count=1, series=1, StudyInstanceUID=f"1.2.{number}", PatientID=str(number),
              SeriesInstanceUID=f"1.8.{number}")  # fmt: skip
    code, _, err = quick("-i", tmp_path / "in", "-o", tmp_path / "out")
    assert code == 2
    assert len([line for line in err if "a single slice" in line]) == 1
    assert "5 times over" in err[0]


def test_phases_of_which_each_image_is_a_series_are_put_in_order(tmp_path):
    for phase in (1, 2):

        def change(ds, index, phase=phase):
            ds.SeriesInstanceUID = ds.SOPInstanceUID = f"1.7.{phase}.{index + 1}"
            ds.TriggerTime = phase * 100 + index

        stack(tmp_path, change=change, named=f"P{phase}", values=blobs(8, 20, 24) + phase)
    found = find_study(tmp_path).series
    assert [len(one.images) for one in found] == [8, 8]
    assert [int(voxels_of(one).min()) for one in found] == [1, 2]


# Copies


@catches("io/dicom/series.py", "elif twin.sop_uid != image.sop_uid:", "elif False:")
def test_a_slice_that_was_exported_twice_is_read_once_and_told(tmp_path, quick):
    values = stack(tmp_path / "in")
    stack(tmp_path / "in", named="copy", skip=(0, 1, 2, 3, 4, 6, 7), change=named_otherwise)
    series = only(tmp_path / "in")
    assert np.array_equal(voxels_of(series), values)
    assert [note for note in series.notes if note.startswith("exported twice under other names, and read once: ")]
    assert quick("-i", tmp_path / "in", "-o", tmp_path / "out")[0] == 0


@catches("io/dicom/stacks.py", "    if len(once) == len(places):", "    if False:")
def test_a_copy_with_another_number_and_time_is_read_once(tmp_path):
    def sent_again(ds, index):
        named_otherwise(ds, index)
        ds.InstanceNumber, ds.ContentTime = 99, "120000"

    values = stack(tmp_path)
    stack(tmp_path, named="copy", skip=(0, 1, 2, 3, 4, 6, 7), change=sent_again)
    series = only(tmp_path)
    assert np.array_equal(voxels_of(series), values)
    assert [note for note in series.notes if "are there twice" in note]


def test_a_whole_series_that_was_sent_twice_is_read_once(tmp_path):
    values = stack(tmp_path)
    stack(tmp_path, named="copy", change=named_otherwise)
    assert np.array_equal(voxels_of(only(tmp_path)), values)


def test_a_copy_that_an_archive_has_packed_is_read_once(tmp_path):
    values = stack(tmp_path)
    stack(tmp_path, named="copy", skip=(0, 1, 2, 3, 4, 6, 7), change=named_otherwise, syntax=uid.RLELossless)
    series = only(tmp_path)
    assert np.array_equal(voxels_of(series), values)
    assert [note for note in series.notes if "are there twice" in note]


@pytest.mark.parametrize("number", [6, 99])
def test_another_image_at_a_place_is_never_dropped(tmp_path, quick, number):
    def other(ds, index):
        named_otherwise(ds, index)
        ds.InstanceNumber = number

    stack(tmp_path / "in")
    stack(tmp_path / "in", named="other", skip=(0, 1, 2, 3, 4, 6, 7), change=other, values=np.full((8, 20, 24), 7))
    code, _, err = quick("-i", tmp_path / "in", "-o", tmp_path / "out.nii.gz")
    assert code == 2
    assert "9 images at 8 places" in err[0]
    assert "leave one of the two out" in err[0]
    assert not (tmp_path / "out.nii.gz").exists()


def test_air_that_is_alike_in_all_phases_is_no_copy(tmp_path):
    for phase in (1, 2, 3):
        values = blobs(8, 20, 24) + phase
        values[0] = 0

        def change(ds, index, phase=phase):
            ds.SOPInstanceUID += f".{phase}"
            ds.InstanceNumber = (phase - 1) * 8 + index + 1

        stack(tmp_path, change=change, named=f"P{phase}", values=values)
    assert [len(one.images) for one in find_study(tmp_path).series] == [8, 8, 8]


# Phases


def phases(folder, change, count=3, skip=(), **options):
    """Write phases whose voxels are told apart by their smallest value: 1, 2, 3 ..."""
    for phase in range(count):

        def apply(ds, index, phase=phase):
            ds.SOPInstanceUID += f".{phase}"
            ds.InstanceNumber = 1 + index * count + phase
            change(ds, index, phase)

        left = skip if phase == count - 1 else ()
        stack(folder, change=apply, named=f"P{phase}", values=blobs(8, 20, 24) + phase + 1, skip=left, **options)


def by_trigger(ds, index, phase):
    ds.TriggerTime = 40.0 * phase + 1.7 * index
    ds.AcquisitionTime = "101010"


def by_acquisition_time(ds, index, phase):
    ds.AcquisitionTime = f"1010{10 + 2 * phase}.{index:06d}"


def over_midnight(ds, index, phase):
    seconds = 2 * phase + 0.1 * index - 3
    ds.AcquisitionTime = f"2359{60 + seconds:09.6f}" if seconds < 0 else f"0000{seconds:09.6f}"


def by_date_and_time(ds, index, phase):
    del ds.AcquisitionTime
    ds.AcquisitionDateTime = f"202503121010{10 + phase:02d}.{index:06d}"


def by_content_time(ds, index, phase):
    ds.ContentTime = f"1010{10 + phase:02d}.{index:06d}"
    ds.AcquisitionTime = "101010"


def by_number(ds, index, phase):
    ds.AcquisitionTime = "101010"


def by_number_of_volumes(ds, index, phase):
    ds.AcquisitionTime, ds.InstanceNumber = "101010", 1 + phase * 8 + index


@catches("io/dicom/stacks.py", "key=lambda pair: pair[0])]", "key=lambda pair: -pair[0])]")
@catches("io/dicom/stacks.py", "    return [[value + 2 * NOON if value < NOON", "    return [[value if value < NOON")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (by_trigger, "TriggerTime"), (by_acquisition_time, "AcquisitionTime"), (over_midnight, "AcquisitionTime"),
        (by_date_and_time, "AcquisitionDateTime"), (by_content_time, "ContentTime"), (by_number, "InstanceNumber"),
        (by_number_of_volumes, "InstanceNumber"),
    ],
)  # fmt: skip
def test_phases_follow_the_order_at_each_place(tmp_path, change, told):
    phases(tmp_path, change)
    study = find_study(tmp_path)
    assert not study.unusable
    assert [one.label for one in study.series] == [f"1 T2 TSE, phase {n}" for n in (1, 2, 3)]
    for number, one in enumerate(study.series, 1):
        assert np.array_equal(voxels_of(one), blobs(8, 20, 24) + number)
        assert f"phases are told apart by the order of {told} at each place alone" in one.notes


def test_echoes_whose_phases_have_times_of_their_own_are_all_told_apart(tmp_path):
    for echo in (10, 80):
        phases(tmp_path / str(echo), lambda ds, index, phase, echo=echo: (
            by_trigger(ds, index, phase), setattr(ds, "EchoTime", echo),
            setattr(ds, "SOPInstanceUID", f"{ds.SOPInstanceUID}.{echo}")))  # fmt: skip
    found = find_study(tmp_path).series
    assert [one.distinction for one in found] == [f", TE {te}, phase {n}" for te in (10.0, 80.0) for n in (1, 2, 3)]


@catches("io/dicom/stacks.py", "        if most > least:", "        if False:")
@pytest.mark.parametrize("change", [by_trigger, by_acquisition_time, by_number_of_volumes])
def test_of_an_interrupted_series_the_whole_volumes_are_done_and_the_broken_one_named(tmp_path, quick, change):
    phases(tmp_path / "in", change, skip=(5, 6, 7))
    study = find_study(tmp_path / "in")
    assert [int(voxels_of(one).min()) for one in study.series] == [1, 2]
    assert [one.label for one in study.unusable] == ["1 T2 TSE, phase 3"]
    assert "a volume of 5 of 8 slices (interrupted, or files are missing)" in study.unusable[0].reason
    code, out, err = quick("-i", tmp_path / "in", "-o", tmp_path / "out")
    assert (code, err) == (0, [])
    assert [line for line in out if "5 of 8 slices" in line]


@catches("io/dicom/stacks.py", "        if most > least and not _lack_the_last(values):", "        if False:")
@pytest.mark.parametrize("change", [by_trigger, by_acquisition_time, by_number, by_number_of_volumes])
@pytest.mark.parametrize("lost", [0, 1])
def test_an_image_that_is_missing_in_the_middle_never_shifts_the_phases(tmp_path, change, lost):
    phases(tmp_path, change, count=4)
    gone = [file for file in tmp_path.iterdir() if file.name.startswith(f"P{lost}")]
    next(file for file in gone if dcmread(file).ImagePositionPatient[2] == 30.125 + 8).unlink()
    study = find_study(tmp_path)
    assert not study.series
    assert "31 images at 8 places" in study.unusable[0].reason


def test_of_a_series_acquired_slice_by_slice_the_last_place_may_be_short(tmp_path):
    def change(ds, index, phase):
        ds.AcquisitionTime = f"10{10 + index:02d}{10 + phase:02d}.000000"

    phases(tmp_path, change, skip=(7,))
    study = find_study(tmp_path)
    assert [len(one.images) for one in study.series] == [8, 8]
    assert "a volume of 7 of 8 slices" in study.unusable[0].reason


def test_a_few_slices_that_were_acquired_again_are_not_dropped(tmp_path):
    stack(tmp_path)
    stack(
        tmp_path, named="B", AcquisitionNumber=2, skip=(2, 3, 4, 5, 6, 7), values=blobs(8, 20, 24) + 1,
        change=named_otherwise,
    )  # fmt: skip
    study = find_study(tmp_path)
    assert not study.series
    assert "10 images at 8 places" in study.unusable[0].reason


@catches("io/dicom/stacks.py", "            part[0].among[PHASE]\n", "            False\n")
@pytest.mark.parametrize("left", [(5, 6, 7), (0,), (1, 3, 5, 7)])
def test_a_phase_that_was_interrupted_is_no_shorter_stack(tmp_path, left):
    phases(tmp_path, lambda ds, index, phase: setattr(ds, "TemporalPositionIdentifier", phase + 1), skip=left)
    study = find_study(tmp_path)
    assert [one.label for one in study.series] == ["1 T2 TSE, phase 1", "1 T2 TSE, phase 2"]
    assert [one.label for one in study.unusable] == ["1 T2 TSE, phase 3"]
    assert f"a volume of {8 - len(left)} of 8 slices" in study.unusable[0].reason
    assert not study.unusable[0].is_scan


def frames(path, facts, count=6, volumes=3, skip=()):
    """Write an enhanced file whose volumes are told apart by what `facts` returns for each frame."""
    values = enhanced(path, count=count, echoes=volumes)
    ds = dcmread(path)
    groups = list(ds.PerFrameFunctionalGroupsSequence)
    for at, group in enumerate(groups):
        volume, index = at // count, count - 1 - at % count
        group.MREchoSequence[0].EffectiveEchoTime = 10.0
        for name, content in facts(volume, index).items():
            item = Dataset()
            for key, value in content.items():
                setattr(item, key, value)
            setattr(group, name, Sequence([item]))
    kept = [at for at in range(len(groups)) if at not in skip]
    ds.PerFrameFunctionalGroupsSequence = [groups[at] for at in kept]
    ds.NumberOfFrames = len(kept)
    ds.PixelData = values[kept].astype("<u2").tobytes()
    ds.save_as(path)
    return values


def content(**facts):
    return {"FrameContentSequence": facts}


CONTENT = {
    "FrameAcquisitionNumber": lambda volume, index: content(FrameAcquisitionNumber=volume + 1),
    "TemporalPositionIndex": lambda volume, index: content(TemporalPositionIndex=volume + 1),
    "dimensions": lambda volume, index: content(DimensionIndexValues=[1, index + 1, volume + 1]),
    "dimensions in another order": lambda volume, index: content(DimensionIndexValues=[volume + 1, 1, index + 1]),
    "times of volumes": lambda volume, index: content(FrameAcquisitionDateTime=f"2025010110101{volume}"),
    "times of slices": lambda volume, index: content(FrameAcquisitionDateTime=f"2025010110101{volume}.{index:06d}"),
    "reference times": lambda volume, index: content(FrameReferenceDateTime=f"2025010110101{volume}.{index:06d}"),
    "labels": lambda volume, index: {
        "MRArterialSpinLabelingSequence": {"ASLContext": ["LABEL", "CONTROL", "M0"][volume]}
    },
    "order of frames": lambda volume, index: {},
    "components": lambda volume, index: {
        "MRImageFrameTypeSequence": {
            "FrameType": ["ORIGINAL", "PRIMARY", "M", "NONE"],
            "ComplexImageComponent": ["MAGNITUDE", "REAL", "IMAGINARY"][volume],
        }
    },
}


@catches("io/dicom/stacks.py", '        yield f"dimension {at + 1}", partial(_dimension, at)\n', "        continue\n")
def test_the_dimensions_of_a_file_count_for_more_than_the_order_of_its_frames(tmp_path):
    values = frames(
        tmp_path / "e", lambda volume, index: content(DimensionIndexValues=[1, index + 1, (volume + index) % 3 + 1])
    )
    found = find_study(tmp_path / "e").series
    assert len(found) == 3
    for number, one in enumerate(found):
        wanted = [values[6 * ((number - index) % 3) + 5 - index] * 2.5 - 10 for index in range(6)]
        assert np.allclose(voxels_of(one), wanted)


@pytest.mark.parametrize("kind", CONTENT)
def test_volumes_are_told_apart_by_what_each_frame_says(tmp_path, kind):
    values = frames(tmp_path / "e", CONTENT[kind])
    study = find_study(tmp_path / "e")
    assert not study.unusable
    assert len(study.series) == 3
    found = {voxels_of(one).tobytes() for one in study.series}
    wanted = {
        (values[6 * volume : 6 * volume + 6][::-1] * 2.5 - 10).astype(np.float32).tobytes() for volume in range(3)
    }
    assert found == {np.ascontiguousarray(np.frombuffer(one, np.float32)).tobytes() for one in wanted}


@pytest.mark.parametrize("kind", ["FrameAcquisitionNumber", "TemporalPositionIndex", "dimensions", "times of slices"])
def test_a_volume_of_frames_that_was_interrupted_is_named(tmp_path, kind):
    frames(tmp_path / "e", CONTENT[kind], skip=(16, 17))
    study = find_study(tmp_path / "e")
    assert [len(one.images) for one in study.series] == [6, 6]
    assert "a volume of 4 of 6 slices" in study.unusable[0].reason


def test_one_frame_may_say_all_in_groups_that_are_shared(tmp_path):
    values = enhanced(tmp_path / "e", count=4)
    ds = dcmread(tmp_path / "e")
    for at, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
        one = dcmread(tmp_path / "e")
        del one.PerFrameFunctionalGroupsSequence
        shared = one.SharedFunctionalGroupsSequence[0]
        for name in ("PlanePositionSequence", "MRImageFrameTypeSequence"):
            setattr(shared, name, getattr(group, name))
        one.NumberOfFrames, one.SOPInstanceUID, one.InstanceNumber = 1, f"1.2.9.{at + 1}", at + 1
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
        one.PixelData = values[at].astype("<u2").tobytes()
        one.save_as(tmp_path / f"f{at}")
    (tmp_path / "e").unlink()
    assert np.allclose(voxels_of(only(tmp_path)), values[::-1] * 2.5 - 10)


def test_frames_without_a_place_of_each_are_refused(tmp_path):
    enhanced(tmp_path / "e", count=4)
    ds = dcmread(tmp_path / "e")
    del ds.PerFrameFunctionalGroupsSequence
    ds.save_as(tmp_path / "e")
    study = find_study(tmp_path / "e")
    assert not study.series
    assert "4 frames, but not one functional group for each" in study.unusable[0].reason


# Magnitude, phase, field maps


def phase_image(ds, index):
    named_otherwise(ds, index)
    ds.ImageType = ["ORIGINAL", "PRIMARY", "P", "ND"]


def of_philips(ds, index):
    named_otherwise(ds, index)
    ds.ImageType = ["ORIGINAL", "PRIMARY", "PHASE MAP", "P", "FFE"]


def by_component(ds, index):
    named_otherwise(ds, index)
    ds.ComplexImageComponent = "PHASE"


def of_ge(ds, index):
    named_otherwise(ds, index)
    ds.private_block(0x0043, "GEMS_PARM_01", create=True).add_new(0x2F, "SS", 1)


@catches("io/dicom/headers.py", "    if _shows_phase(kind, values, found, look_up):", "    if False:")
@pytest.mark.parametrize("change", [phase_image, of_philips, by_component, of_ge])
def test_images_of_phase_are_left_out_of_a_series_with_magnitude(tmp_path, quick, change):
    values = stack(tmp_path / "in")
    stack(tmp_path / "in", named="P", change=change, values=blobs(8, 20, 24, seed=3))
    assert np.array_equal(voxels_of(only(tmp_path / "in")), values)
    code, out, err = quick("-i", tmp_path / "in", "-o", tmp_path / "out.nii.gz")
    assert (code, err) == (0, [])
    assert [line for line in out if "images of phase, which jumps where it is wrapped" in line]


def test_images_of_phase_alone_are_refused(tmp_path, quick):
    stack(tmp_path / "in", change=phase_image)
    code, _, err = quick("-i", tmp_path / "in", "-o", tmp_path / "out.nii.gz")
    assert code == 2
    assert "next: enhance those, or unwrap these first" in err[0]


def test_a_field_map_is_a_stack_beside_its_magnitude(tmp_path):
    def kind(value):
        def change(ds, index):
            ds.SOPInstanceUID += f".{value}"
            ds.private_block(0x0043, "GEMS_PARM_01", create=True).add_new(0x30, "SS", value)

        return change

    stack(tmp_path, named="A", change=kind(0), values=blobs(8, 20, 24) + 1)
    stack(tmp_path, named="B", change=kind(2))
    found = find_study(tmp_path).series
    assert [one.distinction for one in found] == [", kind 0", ", kind 2"]
    assert [int(voxels_of(one).min()) for one in found] == [1, 0]


# Contrasts whose slices alternate


def every_second(name, first, second):
    return lambda ds, index: setattr(ds, name, second if index % 2 else first)


@catches("io/dicom/stacks.py", "        if not alternating:\n", "        if True:\n")
@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("EchoNumbers", 1, 2), ("EchoTime", 12, 90), ("ImageType", ["O", "P", "M", "A"], ["O", "P", "M", "B"]),
        ("DiffusionBValue", 0.0, 1000.0), ("ConvolutionKernel", "B30f", "B70f"),
    ],
)  # fmt: skip
def test_two_contrasts_whose_slices_alternate_are_two_stacks(tmp_path, name, first, second):
    values = stack(tmp_path, change=every_second(name, first, second))
    found = find_study(tmp_path).series
    assert [len(one.images) for one in found] == [4, 4]
    assert np.array_equal(voxels_of(found[0]), values[::2])
    assert np.array_equal(voxels_of(found[1]), values[1::2])
    assert all(np.linalg.norm(one.affine[:3, 2]) == pytest.approx(8) for one in found)


def test_echo_times_that_hardly_differ_are_one_contrast(tmp_path):
    stack(tmp_path, change=every_second("EchoTime", 90, 90.4))
    assert only(tmp_path).shape == (24, 20, 8)


def test_two_contrasts_at_uneven_places_are_two_stacks(tmp_path):
    """The second lies a quarter of the spacing behind the first: together they are not even."""

    def change(ds, index):
        every_second("EchoTime", 12, 90)(ds, index)
        ds.ImagePositionPatient = [0, 0, 4.0 * (index // 2) + (1 if index % 2 else 0)]

    stack(tmp_path, change=change)
    assert [len(one.images) for one in find_study(tmp_path).series] == [4, 4]


# Directions


@catches("io/dicom/places.py", "images[0]), step / np.linalg.norm(step)\n", "images[0]), normal_of(images[0])\n")
@catches("io/dicom/headers.py", "(left @ right).ravel()", "axes.ravel()")
@pytest.mark.parametrize("degrees", [20.0, -37.0, 8.0])
def test_directions_of_two_decimals_are_made_whole(tmp_path, quick, degrees):
    exact = oblique(degrees)
    rounded = [round(cosine, 2) for cosine in exact]
    stack(tmp_path / "in", orientation=exact, change=lambda ds, index: setattr(ds, "ImageOrientationPatient", rounded))
    series = only(tmp_path / "in")
    axes = series.affine[:3, :3] / np.linalg.norm(series.affine[:3, :3], axis=0)
    assert np.abs(axes.T @ axes - np.eye(3)).max() < 1e-3
    assert [np.linalg.norm(series.affine[:3, at]) for at in (0, 1)] == pytest.approx([0.9, 0.8], abs=1e-9)
    normal = normal_of(exact) * [-1, -1, 1]
    assert abs(axes[:, 2] @ normal) == pytest.approx(1, abs=1e-6)
    assert [note for note in series.notes if "not of unit length at right angles" in note]
    assert quick("-i", tmp_path / "in", "-o", tmp_path / "out")[0] == 0
    made = dcmread(next((tmp_path / "out").glob("*.dcm")))
    written = np.reshape([float(v) for v in made.ImageOrientationPatient], (2, 3))
    assert np.abs(written @ written.T - np.eye(2)).max() < 1e-6


@pytest.mark.parametrize("scale", [1.01, 0.98])
def test_directions_off_unit_length_are_made_so(tmp_path, scale):
    longer = [f"{scale * cosine:.9f}" for cosine in oblique()]
    values = stack(
        tmp_path, orientation=oblique(), change=lambda ds, index: setattr(ds, "ImageOrientationPatient", longer)
    )
    series = only(tmp_path)
    assert [np.linalg.norm(series.affine[:3, at]) for at in (0, 1)] == pytest.approx([0.9, 0.8], abs=1e-6)
    assert np.array_equal(voxels_of(series), values)
    assert [note for note in series.notes if "not of unit length" in note]


def test_directions_of_all_digits_are_left_as_they_are(tmp_path):
    stack(tmp_path, orientation=oblique())
    assert not [note for note in only(tmp_path).notes if "unit length" in note]
    assert only(tmp_path).images[0].orientation == oblique()


# The axis of the slices


@catches("volume.py", "    if volume.slice_axis is not None:\n        return volume.slice_axis\n", "")
@pytest.mark.parametrize(("spacing", "step_mm"), [((5.0, 0.5), 2.0), ((3.4, 3.4), 3.0), ((0.9, 4.0), 3.0)])
def test_slices_are_added_where_they_were_acquired_even_if_pixels_are_coarser(tmp_path, quick, spacing, step_mm):
    stack(tmp_path / "in", spacing=spacing, step_mm=step_mm, thickness_mm=step_mm)
    code, _, err = quick("-i", tmp_path / "in", "-o", tmp_path / "refused")
    assert code == 2
    assert "coarse within its slices, not across them" in err[0]
    wanted = [word for word in err[0].split() if word.startswith("--spacing")]
    assert wanted
    assert quick("-i", tmp_path / "in", "-o", tmp_path / "out", "--spacing", 1)[0] == 0
    made = [dcmread(file) for file in sorted((tmp_path / "out").glob("*.dcm"))]
    assert len(made) == 8 * step_mm
    assert {float(ds.SliceThickness) for ds in made} == {1.0}
    assert [float(mm) for mm in made[0].PixelSpacing] == list(spacing)
    assert quick("-i", tmp_path / "in", "-o", tmp_path / "out.nii.gz", "--spacing", 1)[0] == 0
    plan = json.loads((tmp_path / "out.json").read_text())["plan"]
    assert (plan["axis"], plan["thickness_mm"]) == (2, step_mm)


# Archives


def zipped(folder, target):
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))


def tarred(mode):
    def pack(folder, target):
        with tarfile.open(target, mode) as archive:
            archive.add(folder, "study")

    return pack


@catches("io/archives.py", "        if inner[TAR_AT : TAR_AT + len(TAR)] != TAR:", "        if True:")
@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("s.zip", zipped), ("s.tar", tarred("w")), ("s.tar.gz", tarred("w:gz")), ("s.tgz", tarred("w:gz")),
        ("s.tar.bz2", tarred("w:bz2")), ("s.tar.xz", tarred("w:xz")), ("archive", zipped),
    ],
)  # fmt: skip
def test_a_packed_study_is_read(tmp_path, quick, name, pack):
    values = stack(tmp_path / "in")
    (tmp_path / "in" / "readme.txt").write_text("hello")
    (tmp_path / "sent").mkdir()
    pack(tmp_path / "in", tmp_path / "sent" / name)
    for place in (tmp_path / "sent" / name, tmp_path / "sent"):
        assert np.array_equal(voxels_of(only(place)), values)
    code, out, err = quick("-i", tmp_path / "sent" / name, "-o", tmp_path / "out")
    assert (code, err) == (0, []), out
    assert len(list((tmp_path / "out").glob("*.dcm"))) == 36
    assert sorted(file.name for file in (tmp_path / "sent").iterdir()) == [name]


def test_files_that_are_gzipped_one_by_one_are_read(tmp_path, quick, run):
    values = stack(tmp_path / "in" / "a")
    for file in list((tmp_path / "in" / "a").iterdir()):
        file.with_name(f"{file.name}.dcm.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    assert np.array_equal(voxels_of(only(tmp_path / "in" / "a")), values)
    assert quick("-i", tmp_path / "in" / "a", "-o", tmp_path / "out.nii.gz")[0] == 0
    words = ("batch", "-i", tmp_path / "in", "-o", tmp_path / "all", "--model", "linear", "--workers", "1")
    assert run(*words)[0] == 0
    assert (tmp_path / "all" / "a.nii.gz").exists()


def test_gzipped_files_in_a_zip_and_two_files_of_one_name_are_read(tmp_path):
    values = stack(tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for number, file in enumerate(sorted((tmp_path / "in").iterdir())):
            archive.writestr(f"{number}/IM.dcm.gz", gzip.compress(file.read_bytes()))
    assert np.array_equal(voxels_of(only(tmp_path / "s.zip")), values)


def test_an_archive_leads_nowhere_but_into_a_folder_that_vanishes(tmp_path):
    stack(tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for file in sorted((tmp_path / "in").iterdir()):
            archive.writestr(f"../../../{file.name}", file.read_bytes())
    study = find_study(tmp_path / "s.zip")
    folder = study.series[0].images[0].unpacked.folder
    assert all(image.path.is_relative_to(folder) for image in study.series[0].images)
    assert folder.exists()
    del study
    assert not folder.exists()


def bomb(size):
    """A slice, and then a great many zeros, as gzip."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1) as stream:
        for _ in range(size // 2**20):
            stream.write(bytes(2**20))
    return packed.getvalue()


@catches("io/dicom/packed.py", "            if done > most:", "            if False:")
@pytest.mark.parametrize("kind", ["gzip", "zip", "tar"])
def test_what_unpacks_to_more_than_its_header_allows_is_refused(tmp_path, quick, monkeypatch, kind):
    from thinslice.io.dicom import packed

    monkeypatch.setattr(packed, "MOST_HEADER_BYTES", 2**20)
    stack(tmp_path / "in", count=1)
    slice_ = next((tmp_path / "in").iterdir()).read_bytes()
    place = tmp_path / "bomb"
    if kind == "gzip":
        place.write_bytes(gzip.compress(slice_) + bomb(40 * 2**20))
    elif kind == "zip":
        with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.dcm", slice_ + bytes(40 * 2**20))
    else:
        with tarfile.open(place, "w:gz") as archive:
            entry = tarfile.TarInfo("a.dcm")
            entry.size = len(slice_) + 40 * 2**20
            archive.addfile(entry, io.BytesIO(slice_ + bytes(40 * 2**20)))
    code, _, err = quick("-i", place, "-o", tmp_path / "out")
    assert code == 2
    assert "which unpacks to more than the" in err[0]
    assert not (tmp_path / "out").exists()


def test_a_locked_or_cut_off_archive_is_refused(tmp_path, quick):
    stack(tmp_path / "in", rows=200, columns=200)
    zipped(tmp_path / "in", tmp_path / "s.zip")
    tarred("w:gz")(tmp_path / "in", tmp_path / "s.tgz")
    for name in ("s.zip", "s.tgz"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        code, _, err = quick("-i", tmp_path / name, "-o", tmp_path / "out")
        assert code == 2
        assert len(err) == 1
        assert not (tmp_path / "out").exists()


def test_one_damaged_file_in_an_archive_is_named(tmp_path):
    stack(tmp_path / "in")
    first = sorted((tmp_path / "in").iterdir())[0]
    (tmp_path / "in" / "rest").write_bytes(first.read_bytes()[:140])
    zipped(tmp_path / "in", tmp_path / "s.zip")
    study = find_study(tmp_path / "s.zip")
    assert len(study.series) == 1
    assert [one.label for one in study.unusable] == ["s.zip, rest"]


def test_a_zip_without_dicom_is_another_kind_of_file(tmp_path, quick):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "text.txt").write_text("hello")
    zipped(tmp_path / "a", tmp_path / "s.zip")
    code, _, err = quick("-i", tmp_path / "s.zip", "-o", tmp_path / "out.nii.gz")
    assert code == 2
    assert "got another kind of file" in err[0]
