"""A volume from several series as a new series of the study: where it lies, what it says, what it refers to."""

from dataclasses import replace

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread

from dicom_files import AXIAL, CORONAL, SAGITTAL, enhanced, oblique, stack
from faults import catches
from strategies import affines
from test_dicom_derived import SECRETS, converted, errors_of, needs_dciodvfy
from test_dicom_groups import CENTRE, body
from thinslice.errors import InputRefused, OutputRefused
from thinslice.io.dicom.combined import check_can_combine, images_of_combined, turn_to_slices
from thinslice.io.dicom.derived import as_stored, save
from thinslice.io.dicom.pixels import read, read_series
from thinslice.io.dicom.series import find_study
from thinslice.volume import Volume

DIRECTIONS = {1: AXIAL, 2: SAGITTAL, 3: CORONAL}


def study(folder, **more):
    """Three stacks across each other; returns them as they are read."""
    for number, orientation in DIRECTIONS.items():
        body(folder, number, orientation, **more)
    return [read_series(series) for series in find_study(folder).series]


def combined(sources, affine=None, shape=(14, 18, 11), seed=0):
    """Whatever the voxels are, on a grid around the middle of the stacks: that of no series by default."""
    if affine is None:
        affine = np.diag([1.1, 1.2, 1.3, 1.0])
    middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    affine = np.array(affine)
    affine[:3, 3] = np.array(CENTRE) * [-1, -1, 1] - middle
    voxels = np.random.default_rng(seed).integers(0, 1000, shape).astype(np.int16)
    return as_stored(Volume(np.asfortranarray(voxels), affine, header=sources[0].header))


def on_first(sources, factor=2):
    """On the grid of the first series, between its slices too."""
    affine = np.array(sources[0].affine)
    affine[:3, 2] /= factor
    columns, rows, slices = sources[0].shape
    return combined(sources, affine, (columns, rows, slices * factor))


def written(folder, volume, sources, **more):
    folder.mkdir()
    options = {"description": "They fit.", "key": "a plan", "model": "default", **more}
    for number, image in enumerate(images_of_combined(volume, sources, **options)):
        save(image, folder / f"IM{number:03d}.dcm")
    return [dcmread(file) for file in sorted(folder.iterdir())]


def in_patient(volume):
    """The same voxels in the nearest order to right, front and head."""
    return nibabel.as_closest_canonical(nibabel.Nifti1Image(volume.voxels.astype(float), volume.affine))


GRIDS = {
    "of no series": None,
    "permuted": np.array([[0, 0, 1.3, 0], [-1.1, 0, 0, 0], [0, 1.2, 0, 0], [0, 0, 0, 1.0]]),
    "thick along another axis": np.diag([3.0, -1.1, 1.2, 1.0]),
    "coarse in the planes": np.diag([1.4, -1.1, 1.2, 1.0]),
    "oblique": np.vstack([
        np.column_stack([np.linalg.qr(np.arange(9.0).reshape(3, 3) ** 2 + np.eye(3))[0] * [1, 1.1, 0.9], [0, 0, 0]]),
        [0, 0, 0, 1],
    ]),
}  # fmt: skip


@catches("io/dicom/combined.py", "(voxels.shape[axis] - 1) * affine[:3, axis]", "voxels.shape[axis] * affine[:3, axis]")
@catches("io/dicom/combined.py", "(rows_mm, columns_mm), spacing_mm)", "(columns_mm, rows_mm), spacing_mm)")
@catches("io/dicom/combined.py", "[*along[:, 0], *-along[:, 1]]", "[*along[:, 0], *along[:, 1]]")
@pytest.mark.parametrize("grid", GRIDS)
def test_dcm2niix_and_we_read_the_volume_that_was_written(tmp_path, grid):
    sources = study(tmp_path / "in")
    volume = combined(sources, GRIDS[grid])
    written(tmp_path / "out", volume, sources)
    expected = in_patient(volume)
    (theirs,) = converted(tmp_path / "out", tmp_path / "d")
    for found in (nibabel.as_closest_canonical(theirs), in_patient(read(tmp_path / "out"))):
        assert np.abs(found.affine - expected.affine).max() < 1e-3
        assert np.array_equal(found.get_fdata(), expected.get_fdata())


@catches(
    "io/dicom/combined.py",
    "if np.linalg.det(turned.affine[:3, :3]) < 0:",
    "if np.linalg.det(turned.affine[:3, :3]) > 0:",
)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_turning_moves_no_voxel_in_the_patient(data):
    affine = data.draw(affines((1.0, 1.1, 1.2), shear=False))
    first = data.draw(st.sampled_from([affine, np.diag([-1.0, 1.0, 4.0, 1.0])]))
    volume = Volume(np.arange(3 * 4 * 5).reshape(3, 4, 5), affine)
    turned = turn_to_slices(volume, replace(SERIES, affine=first))
    for index in np.ndindex(turned.shape):
        place = turned.affine @ [*index, 1]
        at = np.rint(np.linalg.solve(affine, place)[:3]).astype(int)
        assert np.allclose(affine @ [*at, 1], place)
        assert volume.voxels[tuple(at)] == turned.voxels[index]
    # Slices are counted along their normal, as the reader counts them.
    assert np.linalg.det(turned.affine[:3, :3]) < 0


@pytest.fixture(scope="module", autouse=True)
def series_to_turn_to(tmp_path_factory):
    global SERIES
    folder = tmp_path_factory.mktemp("series")
    stack(folder)
    (SERIES,) = find_study(folder).series


@pytest.mark.parametrize(
    ("axes", "shown"),
    [
        ([0, 1, 2], AXIAL),
        ([1, 2, 0], SAGITTAL),
        ([2, 0, 1], CORONAL),
    ],
)
def test_a_grid_of_no_series_is_shown_as_usual(tmp_path, axes, shown):
    """The last axis of the array is across the slices; left and back are at the right, back and feet below."""
    stack(tmp_path / "in", orientation=oblique())
    (series,) = find_study(tmp_path / "in").series
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, axes]
    turned = turn_to_slices(Volume(np.zeros((3, 4, 5)), affine), series)
    along = np.diag([-1, -1, 1]) @ turned.affine[:3, :3]
    assert np.allclose([*along[:, 0], *-along[:, 1]], shown)


def test_on_the_grid_of_the_first_series_slices_lie_as_its_own(tmp_path):
    """Oblique, counted from the head down, and turned to the right side where a usual one would not be."""
    odd = tuple(-value for value in oblique()[:3]) + oblique()[3:]
    body(tmp_path / "in", 1, odd, change=lambda ds, index: setattr(ds, "InstanceNumber", 8 - index))
    body(tmp_path / "in", 2, SAGITTAL)
    sources = [read_series(series) for series in find_study(tmp_path / "in").series]
    volume = on_first(sources)
    # However the array of the volume runs.
    other = replace(volume, voxels=volume.voxels[::-1].transpose(2, 0, 1), affine=volume.affine.copy())
    other.affine[:3, :3] = volume.affine[:3, [2, 0, 1]] * [1, -1, 1]
    other.affine[:3, 3] = (volume.affine @ [volume.shape[0] - 1, 0, 0, 1])[:3]
    new = written(tmp_path / "a", volume, sources)
    for ds, again in zip(new, written(tmp_path / "b", other, sources), strict=True):
        assert np.allclose(np.array(ds.ImageOrientationPatient, float), odd, atol=1e-9)
        assert np.array_equal(ds.pixel_array, again.pixel_array)
        assert list(map(float, ds.PixelSpacing)) == [0.8, 0.9]
        assert float(ds.SliceThickness) == float(ds.SpacingBetweenSlices) == 2
    assert [ds.InstanceNumber for ds in new] == list(range(16, 0, -1))
    assert np.allclose(np.diff([float(ds.SliceLocation) for ds in new]), 2)


def test_it_is_a_new_series_of_the_same_study_that_nobody_can_take_for_an_acquisition(tmp_path):
    sources = study(tmp_path / "in", BurnedInAnnotation="NO", BodyPartExamined="KNEE")
    new = written(tmp_path / "out", combined(sources), sources)
    source = dcmread(sources[0].header.images[0].path)
    for ds in new:
        for name in (
            "PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "StudyDate", "FrameOfReferenceUID",
            "Manufacturer", "InstitutionName", "EchoTime", "RepetitionTime", "Modality", "SOPClassUID",
            "BodyPartExamined", "BurnedInAnnotation", "SpecificCharacterSet",
        ):  # fmt: skip
            assert ds[name].value == source[name].value, name
        assert ds.SeriesNumber == 1501
        assert list(ds.ImageType) == ["DERIVED", "SECONDARY", "M", "COMBINED"]
        assert ds.SeriesDescription == "T2 TSE 3 stacks, 1.3 mm COMPUTED (thinslice)"
        assert "not acquired" in ds.ImageComments
        assert "11 slices 1.3 mm apart computed by thinslice" in ds.DerivationDescription
        assert "3 stacks of acquired ones (3 x 8 slices 4 mm apart and 3.5 mm thick)" in ds.DerivationDescription
        assert ds.DerivationDescription.endswith("model default. They fit.")
        assert ds.DerivationCodeSequence[0].CodeValue == "113085"
        equipment = ds.ContributingEquipmentSequence[0]
        assert equipment.Manufacturer == "thinslice"
        assert "model default" in equipment.ContributionDescription
        assert not [element for element in ds.iterall() if element.tag.is_private]
    assert len({ds.SeriesInstanceUID for ds in new} | {f"1.2.3.4.{n}" for n in DIRECTIONS}) == 4
    assert len({ds.SOPInstanceUID for ds in new}) == len(new)
    assert "computed by thinslice" in find_study(tmp_path / "out").unusable[0].reason


@catches("io/dicom/combined.py", "(*OF_ALL, *OF_CONTRAST)", "OF_ALL")
@catches("io/dicom/combined.py", "        if name in shared:\n            delattr(shared, name)\n", "        pass\n")
def test_what_differs_between_series_is_dropped_but_for_what_makes_the_contrast(tmp_path):
    for number, orientation in DIRECTIONS.items():
        body(
            tmp_path / "in", number, orientation, RepetitionTime=3000 + number, PixelBandwidth=100 + number,
            AcquisitionMatrix=[256, 0, 0, 256], InPlanePhaseEncodingDirection="ROW", EchoTrainLength=7 + number,
            PatientPosition="HFS" if number == 1 else "FFS", ImagingFrequency=63.8, ProtocolName=f"P{number}",
        )  # fmt: skip
    sources = [read_series(series) for series in find_study(tmp_path / "in").series]
    new = written(tmp_path / "out", combined(sources), sources)
    for ds in new:
        assert (ds.RepetitionTime, ds.EchoTrainLength, ds.PatientPosition) == (3001, 8, "HFS")
        assert float(ds.ImagingFrequency) == 63.8
        for name in ("PixelBandwidth", "AcquisitionMatrix", "InPlanePhaseEncodingDirection", "ProtocolName"):
            assert name not in ds


@catches("io/dicom/combined.py", "boxes.high >= low - 1e-3", "boxes.high >= low + 1e9")
@catches("io/dicom/combined.py", "reach_mm = REACH * float(", "reach_mm = 0 * float(")
def test_each_slice_refers_to_the_slices_it_crosses_and_those_beside_it(tmp_path):
    sources = study(tmp_path / "in")
    body(tmp_path / "in", 4, SAGITTAL, centre=(CENTRE[0], CENTRE[1], CENTRE[2] + 60))
    sources = [read_series(series) for series in find_study(tmp_path / "in").series]
    new = written(tmp_path / "out", combined(sources, shape=(14, 18, 101)), sources)
    where = {
        image.sop_uid: (image.series_uid[-1], image.position[2]) for source in sources for image in source.header.images
    }
    for ds in new:
        height = float(ds.ImagePositionPatient[2])
        items = ds.get("SourceImageSequence", [])
        names = [item.ReferencedSOPInstanceUID for item in items]
        assert len(names) == len(set(names))
        found = {number: [where[name][1] for name in names if where[name][0] == number] for number in "1234"}
        # The axial stack, within three spacings; the sagittal ones, whole or not at all.
        near = [z for number, z in where.values() if number == "1" and abs(z - height) <= 12 + 1e-3]
        assert sorted(found["1"]) == sorted(near)
        assert {len(found[number]) for number in "234"} <= {0, 8}
        is_low, is_high = abs(height - CENTRE[2]) < 7, abs(height - CENTRE[2] - 60) < 7
        assert len(found["2"]) == 8 or not is_low
        assert len(found["4"]) == 8 or not is_high
        assert not (is_low and found["4"])
        assert {item.PurposeOfReferenceCodeSequence[0].CodeValue for item in items} <= {"121322"}
        of_series = {
            item.SeriesInstanceUID[-1]: {one.ReferencedSOPInstanceUID for one in item.ReferencedInstanceSequence}
            for item in ds.get("ReferencedSeriesSequence", [])
        }
        assert of_series == {n: {name for name in names if where[name][0] == n} for n in "1234" if found[n]}
    assert {item.ReferencedSOPInstanceUID for ds in new for item in ds.get("SourceImageSequence", [])} == set(where)


def test_series_of_another_study_are_named_among_the_source_images_alone(tmp_path):
    body(tmp_path / "in", 1, SAGITTAL)
    body(tmp_path / "in", 2, CORONAL, StudyInstanceUID="1.2.3.5")
    sources = [read_series(series) for series in find_study(tmp_path / "in").series]
    for ds in written(tmp_path / "out", combined(sources), sources):
        names = {item.ReferencedSOPInstanceUID.split(".")[4] for item in ds.SourceImageSequence}
        assert names == {"1", "2"}
        assert [item.SeriesInstanceUID for item in ds.ReferencedSeriesSequence] == ["1.2.3.4.1"]


def test_frames_are_referred_to_by_their_numbers(tmp_path):
    (tmp_path / "in").mkdir()
    enhanced(tmp_path / "in" / "one.dcm", echoes=2)
    sources = [read_series(find_study(tmp_path / "in").series[0])]
    volume = replace(on_first(sources), affine=sources[0].affine @ np.diag([1, 1, 0.5, 1]))
    new = written(tmp_path / "out", volume, sources)
    assert sorted(new[0].SourceImageSequence[0].ReferencedFrameNumber) == [3, 4, 5, 6]  # the last frame lies lowest
    (item,) = new[0].ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert "ReferencedFrameNumber" not in item
    assert float(new[0].EchoTime) == 10


@catches(
    "io/dicom/combined.py", "image.update(windows[_nearest(turned, index, stacks[0])])", "image.update(windows[0])"
)
def test_the_window_is_that_of_the_nearest_slice_of_the_first_series(tmp_path):
    def window(ds, index):
        ds.WindowCenter, ds.WindowWidth = 100 + index, 200 + index

    sources = study(tmp_path / "in", change=window)
    parallel = written(tmp_path / "a", on_first(sources), sources)
    # The middle of the new grid is that of the stack: 16 slices of it, half as far apart.
    assert [int(ds.WindowCenter) for ds in parallel] == [100 + index // 2 for index in range(16)]
    for ds in written(tmp_path / "b", combined(sources, GRIDS["oblique"]), sources):
        along_row, along_column = np.reshape(np.array(ds.ImageOrientationPatient, float), (2, 3))
        between_rows, between_columns = map(float, ds.PixelSpacing)
        middle = np.array(ds.ImagePositionPatient, float) + along_row * between_columns * (ds.Columns - 1) / 2
        height = (middle + along_column * between_rows * (ds.Rows - 1) / 2)[2]
        assert abs(int(ds.WindowCenter) - 100 - (height - CENTRE[2] + 14) / 4) <= 0.5


@pytest.mark.parametrize(
    "options",
    [{}, {"modality": "CT"}, {"RescaleSlope": "0.37", "RescaleIntercept": "-17"}, {"RescaleSlope": "2"}],
    ids=["MR", "CT", "slope", "a slope of two"],
)
@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_the_files_hold_what_as_stored_gave(tmp_path, options, kind):
    sources = study(tmp_path / "in", **options)
    voxels = (np.random.default_rng(1).random((9, 8, 7)) * 300 - 10).astype(kind)
    volume = as_stored(Volume(voxels, np.diag([1.0, 1.0, 1.0, 1.0]), header=sources[0].header))
    written(tmp_path / "out", volume, sources)
    found = in_patient(read(tmp_path / "out"))
    assert np.allclose(found.get_fdata(), in_patient(volume).get_fdata(), rtol=1e-6, atol=1e-4)


def test_the_same_series_plan_and_grid_give_the_same_files(tmp_path):
    for folder in "ab":
        sources = study(tmp_path / f"in{folder}")
        written(tmp_path / folder, combined(sources), sources)
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


@catches("io/dicom/combined.py", "return repr((scans, grid, key,", "return repr((scans[:1], grid, key,")
@catches("io/dicom/combined.py", "repr((scans, grid, key, version", "repr((scans, grid, version")
def test_other_series_plans_and_grids_give_other_identifiers(tmp_path):
    sources = study(tmp_path / "in")
    volume = combined(sources)
    changed = [*sources[:2], replace(sources[2], voxels=sources[2].voxels + 1)]
    moved = combined(sources, np.diag([1.1, 1.2, 1.4, 1.0]))
    runs = [
        written(tmp_path / "a", volume, sources),
        written(tmp_path / "b", volume, sources, key="another"),
        written(tmp_path / "c", volume, sources[:2]),
        written(tmp_path / "d", volume, changed),
        written(tmp_path / "e", moved, sources),
        written(tmp_path / "f", volume, sources, anonymise=True),
        written(tmp_path / "g", volume, sources, description="another", model="x"),
    ]
    names = [new[0].SeriesInstanceUID for new in runs]
    assert len(set(names[:6])) == 6
    assert names[6] == names[0]


def test_anonymised_nothing_names_the_patient_and_references_still_fit(tmp_path):
    sources = study(tmp_path / "in", ProtocolName="T2 TSE Muster", ImageComments="Erika")
    new = written(tmp_path / "out", combined(sources), sources, anonymise=True)
    for file in (tmp_path / "out").iterdir():
        content = file.read_bytes()
        for secret in SECRETS:
            assert secret.encode() not in content, secret
    for ds in new:
        assert ds.PatientIdentityRemoved == "YES"
        assert ds.SeriesDescription == "3 stacks, 1.3 mm COMPUTED (thinslice)"
        assert len(ds.ReferencedSeriesSequence) == 3
        names = {
            one.ReferencedSOPInstanceUID for s in ds.ReferencedSeriesSequence for one in s.ReferencedInstanceSequence
        }
        assert names == {item.ReferencedSOPInstanceUID for item in ds.SourceImageSequence}


@catches(
    "io/dicom/combined.py",
    "if len(patients := {image.patient for image in images}) > 1:",
    "if len(patients := {image.patient for image in images}) > 9:",
)
@catches("io/dicom/combined.py", "if shear(affine) > SHEAR_COSINE:", "if shear(affine) > 2:")
def test_what_cannot_become_one_series_is_refused(tmp_path):
    sources = study(tmp_path / "in")
    body(tmp_path / "other", 4, PatientID="4712")
    body(tmp_path / "ct", 5, modality="CT")
    other, ct = (read_series(find_study(tmp_path / name).series[0]) for name in ("other", "ct"))
    with pytest.raises(InputRefused, match="2 patients"):
        check_can_combine([*sources, other], np.eye(4))
    with pytest.raises(InputRefused, match="MR and CT"):
        check_can_combine([*sources, ct], np.eye(4))
    sheared = np.eye(4)
    sheared[0, 1] = 0.1
    with pytest.raises(OutputRefused, match="right angles"):
        check_can_combine(sources, sheared)
    with pytest.raises(InputRefused, match="2 patients"):
        next(images_of_combined(combined(sources), [*sources, other], "", ""))
    check_can_combine(sources, np.eye(4))


@pytest.mark.hospital
@needs_dciodvfy
@pytest.mark.parametrize("modality", ["MR", "CT"])
@pytest.mark.parametrize("anonymise", [False, True])
def test_dciodvfy_finds_no_error_that_the_sources_did_not_have(tmp_path, modality, anonymise):
    sources = study(tmp_path / "in", modality=modality)
    written(tmp_path / "out", combined(sources), sources, anonymise=anonymise)
    before = set().union(*map(errors_of, (tmp_path / "in").glob("*/*")))
    after = set().union(*map(errors_of, (tmp_path / "out").iterdir()))
    assert after <= before
