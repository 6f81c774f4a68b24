"""The new series: same patient, study and place; said to be computed; exact; the same every time."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import dcm2niix
import nibabel
import numpy as np
import pytest
from pydicom import dcmread, uid

from dicom_files import COMPRESSED, CORONAL, PLAIN, SAGITTAL, enhanced, oblique, stack
from faults import catches
from planning import plan_for
from test_nifti import DATA
from thinslice.compute.upsample import upsample
from thinslice.io.dicom.derived import as_stored, images, save
from thinslice.io.dicom.pixels import read_series
from thinslice.io.dicom.series import find_study
from thinslice.io.nifti import write
from thinslice.models.registry import find_model

KNEE = DATA / "dicom" / "knee_ax_pdfs_jpegll"


def compute(folder, out, index=0, anonymise=False, **wish):
    """A new series by linear interpolation; the scan, the answer and the written datasets."""
    thick = read_series(find_study(folder).series[index])
    model = find_model("linear")
    plan = plan_for(thick, model="linear", **{"factor": 2.5, **wish})
    kind = thick.voxels.dtype if thick.voxels.dtype.kind in "iu" else np.float32
    answer = np.empty(plan.shape_thin, np.int16 if np.dtype(kind).itemsize == 1 else kind, order="F")
    thin = as_stored(upsample(thick, plan, model, answer).volume)
    out.mkdir()
    for number, image in enumerate(images(thin, thick, plan, "They agree.", anonymise)):
        save(image, out / f"IM{number:03d}.dcm")
    return thick, thin, [dcmread(file) for file in sorted(out.iterdir())]


def converted(folder, to):
    """dcm2niix: every scan that it makes of a folder."""
    to.mkdir()
    command = [dcm2niix.bin, "-p", "n", "-z", "n", "-b", "n", "-o", str(to), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return [nibabel.load(file) for file in sorted(to.glob("*.nii"))]


@catches(
    "io/dicom/derived.py",
    "volume.voxels[:, ::-1, index].T, stored.storage",
    "volume.voxels[:, :, index].T, stored.storage",
)
@catches(
    "io/dicom/derived.py",
    "corner = volume.affine @ [0, volume.shape[1] - 1, index, 1]",
    "corner = volume.affine @ [0, 0, index, 1]",
)
@catches(
    "io/dicom/derived.py",
    "(values.astype(np.float64) - storage.intercept) / storage.slope",
    "values.astype(np.float64) / storage.slope",
)
@pytest.mark.parametrize(
    "options", [{}, {"orientation": SAGITTAL}, {"orientation": CORONAL}, {"orientation": oblique()}]
)
@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_dcm2niix_makes_of_it_what_we_write_as_nifti(tmp_path, options, modality):
    stack(tmp_path / "in", modality=modality, **options)
    _, thin, _ = compute(tmp_path / "in", tmp_path / "out")
    write(thin, tmp_path / "ours.nii")
    ours = nibabel.load(tmp_path / "ours.nii")
    (theirs,) = converted(tmp_path / "out", tmp_path / "d")
    assert theirs.shape == ours.shape
    assert np.abs(theirs.affine - ours.affine).max() < 1e-3
    assert np.array_equal(theirs.get_fdata(), ours.get_fdata())


@pytest.mark.parametrize("options", [{}, {"orientation": oblique(-30)}, {"modality": "CT"}, {"RescaleSlope": 0.5}])
def test_dcm2niix_agrees_on_what_is_read(tmp_path, options):
    stack(tmp_path / "in", **options)
    thick = read_series(find_study(tmp_path / "in").series[0])
    (theirs,) = converted(tmp_path / "in", tmp_path / "d")
    assert np.abs(theirs.affine - thick.affine).max() < 1e-3
    assert np.allclose(theirs.get_fdata(), thick.voxels, rtol=1e-6)


def canonical(voxels, affine):
    return nibabel.as_closest_canonical(nibabel.Nifti1Image(np.asarray(voxels, np.float64), affine))


def folders_of_series():
    import pydicom

    tests = Path(pydicom.__file__).parent / "data" / "test_files" / "dicomdirtests" / "98892001" / "CT5N"
    bad = KNEE.parents[1] / "bad"
    names = ("dcm_generic_compressed_jpegls", "dcm_generic_compressed_rle", "dcm_philips_enhanced_anatomical_001")
    return [tests, KNEE, *(bad / name for name in names)]


@pytest.mark.parametrize("folder", folders_of_series(), ids=lambda folder: folder.name)
def test_dcm2niix_agrees_on_real_series(tmp_path, folder):
    """Of three-dimensional acquisitions it turns the axes: compared are the voxels at each place."""
    if not folder.exists():
        pytest.skip(f"no {folder}")
    (series,) = find_study(folder).series
    thick = read_series(series)
    (theirs,) = (nibabel.as_closest_canonical(image) for image in converted(folder, tmp_path / "d"))
    ours = canonical(thick.voxels, thick.affine)
    assert np.abs(theirs.affine - ours.affine).max() < 1e-3
    assert np.allclose(theirs.get_fdata(), ours.get_fdata(), rtol=1e-6)


@catches(
    "io/dicom/derived.py",
    "shared.SliceThickness = decimal_string(layout.spacing_mm)",
    "shared.SliceThickness = decimal_string(3.5)",
)
def test_every_slice_is_where_the_plan_puts_it(tmp_path):
    stack(tmp_path / "in", orientation=oblique())
    thick, thin, new = compute(tmp_path / "in", tmp_path / "out")
    first = find_study(tmp_path / "in").series[0].images[0]
    for index, ds in enumerate(new):
        ras = thin.affine @ [0, thin.shape[1] - 1, index, 1]
        assert np.abs(np.array(ds.ImagePositionPatient, float) - ras[:3] * [-1, -1, 1]).max() < 1e-9
        assert tuple(map(float, ds.ImageOrientationPatient)) == first.orientation
        assert tuple(map(float, ds.PixelSpacing)) == first.spacing_mm
    spacing_mm = thin.spacing_mm[2]
    for name in ("SliceThickness", "SpacingBetweenSlices"):
        assert np.allclose([float(ds[name].value) for ds in new], spacing_mm, rtol=0, atol=1e-12)
    locations = np.diff([float(ds.SliceLocation) for ds in new])
    assert np.allclose(locations, spacing_mm)
    assert [ds.InstanceNumber for ds in new] == list(range(1, len(new) + 1))
    assert len(new) == thin.shape[2] > thick.shape[2]


def test_patient_study_and_frame_of_reference_are_kept_and_the_series_is_new(tmp_path):
    stack(tmp_path / "in", series=6, Laterality="L", RequestedProcedureDescription="MR knee")
    _, _, new = compute(tmp_path / "in", tmp_path / "out")
    source = dcmread(next((tmp_path / "in").iterdir()))
    for ds in new:
        for name in (
            "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime",
            "StudyID", "AccessionNumber", "ReferringPhysicianName", "FrameOfReferenceUID", "PatientPosition",
            "Manufacturer", "InstitutionName", "Laterality", "EchoTime", "RepetitionTime", "Modality", "SOPClassUID",
            "RequestedProcedureDescription", "SpecificCharacterSet",
        ):  # fmt: skip
            assert ds[name].value == source[name].value, name
        assert ds.SeriesInstanceUID not in ("", source.SeriesInstanceUID)
        assert ds.SeriesNumber == 6001
    assert len({ds.SeriesInstanceUID for ds in new}) == 1
    assert len({ds.SOPInstanceUID for ds in new}) == len(new)
    assert all(uid.UID(ds.SOPInstanceUID).is_valid for ds in new)
    assert all(ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID for ds in new)


def test_nobody_can_take_it_for_an_acquisition(tmp_path):
    stack(tmp_path / "in", BurnedInAnnotation="NO")
    _, _, new = compute(tmp_path / "in", tmp_path / "out")
    for ds in new:
        assert list(ds.ImageType) == ["DERIVED", "SECONDARY", "M", "RESAMPLED"]
        assert "COMPUTED" in ds.SeriesDescription
        assert ds.SeriesDescription.startswith("T2 TSE ")
        assert "not acquired" in ds.ImageComments
        assert ds.BurnedInAnnotation == "NO"
        assert "20 slices 1.6 mm apart computed by thinslice" in ds.DerivationDescription
        assert "8 acquired ones 4 mm apart and 3.5 mm thick" in ds.DerivationDescription
        assert "model linear. They agree." in ds.DerivationDescription
        code = ds.DerivationCodeSequence[0]
        assert (code.CodeValue, code.CodingSchemeDesignator) == ("113085", "DCM")
        equipment = ds.ContributingEquipmentSequence[0]
        assert equipment.Manufacturer == "thinslice"
        assert equipment.PurposeOfReferenceCodeSequence[0].CodeValue == "109103"


def test_model_and_hash_are_named(tmp_path):
    stack(tmp_path / "in")
    thick = read_series(find_study(tmp_path / "in").series[0])
    plan = replace(plan_for(thick, model="linear", factor=2), model="default", model_sha256="ab" * 32)
    thin = as_stored(upsample(thick, plan, find_model("linear")).volume)
    ds = next(images(thin, thick, plan, ""))
    assert f"model default (sha256 {'ab' * 32})" in ds.DerivationDescription
    assert f"model default (sha256 {'ab' * 32})" in ds.ContributingEquipmentSequence[0].ContributionDescription


@catches("io/dicom/series.py", "    if not image.computed:\n        return image", "    if True:\n        return image")
def test_a_computed_series_is_not_computed_from_again(tmp_path):
    stack(tmp_path / "in")
    compute(tmp_path / "in", tmp_path / "out")
    (unusable,) = find_study(tmp_path / "out").unusable
    assert "computed by thinslice" in unusable.reason


def test_source_images_are_referenced(tmp_path):
    stack(tmp_path / "in")
    _, _, new = compute(tmp_path / "in", tmp_path / "out")
    place = {
        ds.SOPInstanceUID: float(ds.ImagePositionPatient[2]) for ds in map(dcmread, sorted((tmp_path / "in").iterdir()))
    }
    seen = set()
    for ds in new:
        for item in ds.SourceImageSequence:
            assert item.ReferencedSOPClassUID == ds.SOPClassUID
            assert item.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
            assert abs(place[item.ReferencedSOPInstanceUID] - float(ds.ImagePositionPatient[2])) <= 3.5 * 4
            seen.add(item.ReferencedSOPInstanceUID)
        near = {name for name, mm in place.items() if abs(mm - float(ds.ImagePositionPatient[2])) <= 4}
        assert near <= {item.ReferencedSOPInstanceUID for item in ds.SourceImageSequence}
    assert seen == set(place)


@catches("io/dicom/derived.py", "if tag in never or tag.is_private or tag.group", "if tag in never or tag.group")
@catches(
    "io/dicom/derived.py",
    "all(tag in other and _same(headers[0], other, tag) for other in headers[1:])",
    "all(tag in other for other in headers[1:])",
)
def test_what_differs_from_slice_to_slice_is_dropped_and_private_things_too(tmp_path):
    def change(ds, index):
        ds.TriggerTime = index
        ds.IconImageSequence = []
        ds.add_new((0x6000, 0x0022), "LO", "ROI")
        ds.SmallestImagePixelValue = 3

    stack(tmp_path / "in", change=change)
    _, _, new = compute(tmp_path / "in", tmp_path / "out")
    for ds in new:
        assert not [element for element in ds.iterall() if element.tag.is_private]
        for name in ("AcquisitionTime", "TriggerTime", "SmallestImagePixelValue", "IconImageSequence"):
            assert name not in ds
        assert (0x6000, 0x0022) not in ds


def same_patient_and_place(ds):
    assert (ds.PatientID, ds.StudyInstanceUID, ds.FrameOfReferenceUID) == ("4711", "1.2.3.4", "1.2.3.9")
    assert ds.PatientName == "Muster^Erika"


@pytest.mark.parametrize("other", ["implicit", "big-endian", "deflated"])
def test_slices_in_different_encodings_say_the_same(tmp_path, other):
    stack(tmp_path / "in", skip=(0, 2, 4, 6))
    stack(tmp_path / "in", skip=(1, 3, 5, 7), syntax=PLAIN[other], named="B")
    _, _, new = compute(tmp_path / "in", tmp_path / "out")
    for ds in new:
        same_patient_and_place(ds)
        assert (ds.EchoTime, ds.ScanningSequence, ds.InstitutionName) == (90, "SE", "Hospital")


@catches("io/dicom/derived.py", "if same_order and first[1:4] == second[1:4]:", "if first[1:4] == second[1:4]:")
def test_the_same_bytes_in_another_order_are_another_number(tmp_path):
    stack(tmp_path / "in", skip=(0, 2, 4, 6), AcquisitionMatrix=[256, 0, 0, 1])
    big = {"syntax": PLAIN["big-endian"], "named": "B", "AcquisitionMatrix": [1, 0, 0, 256]}
    stack(tmp_path / "in", skip=(1, 3, 5, 7), **big)
    _, _, new = compute(tmp_path / "in", tmp_path / "out")
    assert all("AcquisitionMatrix" not in ds for ds in new)


@pytest.mark.parametrize(
    ("name", "value"),
    [("PatientName", "Muster^Erika^"), ("SpecificCharacterSet", "ISO_IR 192"), ("PatientPosition", "FFS"),
     ("ScanningSequence", "GR"), ("StudyID", "8")],
)  # fmt: skip
def test_what_a_series_has_one_of_is_that_of_the_first_slice(tmp_path, name, value):
    stack(tmp_path / "in", change=lambda ds, index: setattr(ds, name, value) if index == 5 else None)
    _, _, new = compute(tmp_path / "in", tmp_path / "out")
    for ds in new:
        same_patient_and_place(ds)
        assert (ds.PatientPosition, ds.ScanningSequence, ds.StudyID) == ("HFS", "SE", "7")


def test_lossy_compression_that_only_the_transfer_syntax_tells_is_said(tmp_path):
    stack(tmp_path / "in", syntax=COMPRESSED["JPEG 2000"])
    for file in (tmp_path / "in").iterdir():
        ds = dcmread(file)
        ds.file_meta.TransferSyntaxUID = uid.JPEG2000
        ds.save_as(file)
    _, _, new = compute(tmp_path / "in", tmp_path / "out")
    assert {ds.LossyImageCompression for ds in new} == {"01"}


def test_what_tells_stacks_apart_is_told_by_the_new_series(tmp_path):
    for name, b in (("A", 0), ("B", 1000)):

        def weighted(ds, index, b=b):
            ds.SOPInstanceUID += f".{b}"
            ds.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0C, "IS", b)

        stack(
            tmp_path / "in", named=name, change=weighted, description="a very long description of diffusion weighting"
        )
    described = []
    for index, b in enumerate((0, 1000)):
        _, _, new = compute(tmp_path / "in", tmp_path / f"out{b}", index=index)
        assert new[0].DiffusionBValue == b
        assert len(new[0].SeriesDescription) <= 64
        described.append(new[0].SeriesDescription)
    assert ", b 0 1.6 mm COMPUTED" in described[0]
    assert ", b 1000 1.6 mm COMPUTED" in described[1]


def test_images_are_counted_in_the_scanners_direction(tmp_path):
    stack(tmp_path / "in", change=lambda ds, index: setattr(ds, "InstanceNumber", 8 - index))
    _, _, new = compute(tmp_path / "in", tmp_path / "out")
    assert [ds.InstanceNumber for ds in new] == list(range(20, 0, -1))


@catches("io/dicom/derived.py", "image.update(windows[nearest[index]])", "image.update(windows[0])")
def test_window_is_that_of_the_nearest_acquired_slice(tmp_path):
    def window(ds, index):
        ds.WindowCenter, ds.WindowWidth = 100 + index, 200 + index

    stack(tmp_path / "in", change=window)
    _, _, new = compute(tmp_path / "in", tmp_path / "out", factor=3)
    assert [int(ds.WindowCenter) for ds in new] == [100 + index // 3 for index in range(24)]
    assert [int(ds.WindowWidth) for ds in new] == [200 + index // 3 for index in range(24)]


def test_lossy_compression_of_the_source_is_said(tmp_path):
    stack(tmp_path / "in", LossyImageCompression="01", LossyImageCompressionRatio="12")
    _, _, new = compute(tmp_path / "in", tmp_path / "out")
    assert {ds.LossyImageCompression for ds in new} == {"01"}
    assert {float(ds.LossyImageCompressionRatio) for ds in new} == {12}


def test_hounsfield_units_and_the_rescale_are_kept(tmp_path):
    stack(tmp_path / "in", modality="CT", bits=12)
    _, thin, new = compute(tmp_path / "in", tmp_path / "out")
    for index, ds in enumerate(new):
        assert (ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType) == (1, -1024, "HU")
        assert list(ds.ImageType) == ["DERIVED", "SECONDARY", "AXIAL", "RESAMPLED"]
        assert np.array_equal(ds.pixel_array - 1024, thin.voxels[:, ::-1, index].T)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bits": 16, "values": np.linspace(0, 65535, 8 * 20 * 24).astype(int).reshape(8, 20, 24)},
        {"bits": 8},
        {"bits": 16, "signed": True, "values": np.linspace(-32768, 32767, 3840).astype(int).reshape(8, 20, 24)},
        {"RescaleSlope": "0.37", "RescaleIntercept": "-17"},
        {"change": lambda ds, index: setattr(ds, "RescaleSlope", 1 + index)},
        {"modality": "CT", "bits": 16, "values": np.linspace(0, 65535, 3840).astype(int).reshape(8, 20, 24)},
    ],
    ids=["12 bits", "16 bits", "8 bits", "signed", "slope", "a slope a slice", "beyond 16 bits"],
)
def test_the_file_holds_what_the_report_is_about(tmp_path, options):
    """`as_stored` gives the very values that a reader of the series gets."""
    stack(tmp_path / "in", **options)
    thick, thin, new = compute(tmp_path / "in", tmp_path / "out")
    step = float(new[0].get("RescaleSlope", 1))
    for index, ds in enumerate(new):
        values = ds.pixel_array * step + float(ds.get("RescaleIntercept", 0))
        assert np.allclose(values.T[:, ::-1], thin.voxels[..., index], rtol=1e-6, atol=1e-3 * step)
    reach = float(thick.voxels.max()) - float(thick.voxels.min())
    assert abs(float(thin.voxels.max()) - float(thick.voxels.max())) < 0.1 * reach
    assert abs(float(thin.voxels.min()) - float(thick.voxels.min())) < 0.1 * reach


def test_a_rescale_that_had_to_change_is_told(tmp_path):
    stack(tmp_path / "in", change=lambda ds, index: setattr(ds, "RescaleSlope", 1 + index))
    _, thin, _ = compute(tmp_path / "in", tmp_path / "out")
    assert "8 different rescales: stored with one of " in thin.notes[-1]


@catches("io/dicom/identity.py", "uuid.UUID(bytes=digest[:16], version=5).int", "uuid.uuid4().int")
def test_the_same_scan_plan_and_model_give_the_same_files(tmp_path):
    stack(tmp_path / "in")
    compute(tmp_path / "in", tmp_path / "a")
    compute(tmp_path / "in", tmp_path / "b")
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


@catches(
    "io/dicom/derived.py",
    'decisions = {name: value for name, value in asdict(plan).items() if name not in ("notes", "versions")}',
    "decisions: dict[str, object] = {}",
)
def test_another_plan_or_scan_gives_other_identifiers(tmp_path):
    values = stack(tmp_path / "in")
    stack(tmp_path / "in2", values=values + (values == values.max()))
    stack(tmp_path / "in3", origin=(0, 0, 0))
    runs = [
        compute(tmp_path / "in", tmp_path / "a"),
        compute(tmp_path / "in", tmp_path / "b", factor=3),
        compute(tmp_path / "in", tmp_path / "c", thickness_mm=4),
        compute(tmp_path / "in2", tmp_path / "d"),
        compute(tmp_path / "in3", tmp_path / "e"),
        compute(tmp_path / "in", tmp_path / "f", anonymise=True),
    ]
    assert len({new[0].SeriesInstanceUID for *_, new in runs}) == 6


def test_two_stacks_of_one_series_become_two_series(tmp_path):
    enhanced(tmp_path / "in", echoes=2)
    *_, first = compute(tmp_path / "in", tmp_path / "a", index=0)
    *_, second = compute(tmp_path / "in", tmp_path / "b", index=1)
    assert [first[0].SeriesNumber, second[0].SeriesNumber] == [3001, 3002]
    assert first[0].SeriesInstanceUID != second[0].SeriesInstanceUID
    assert [first[0].EchoTime, second[0].EchoTime] == [10, 20]


def test_of_an_enhanced_ct_comes_a_classic_one(tmp_path):
    enhanced(tmp_path / "in", modality="CT")
    _, _, new = compute(tmp_path / "in", tmp_path / "out")
    assert {ds.SOPClassUID for ds in new} == {uid.CTImageStorage}
    assert {ds.RescaleType for ds in new} == {"US"}
    assert {float(ds.KVP) for ds in new} == {120}


def test_a_huge_series_number_does_not_overflow(tmp_path):
    stack(tmp_path / "in", series=2_000_000_000)
    _, _, new = compute(tmp_path / "in", tmp_path / "out")
    assert new[0].SeriesNumber == 1


@catches("io/dicom/derived.py", "frames.append(image.frame + 1)", "frames.append(image.frame)")
def test_of_an_enhanced_image_comes_a_classic_series(tmp_path):
    enhanced(tmp_path / "in")
    _, thin, new = compute(tmp_path / "in", tmp_path / "out")
    for index, ds in enumerate(new):
        assert ds.SOPClassUID == uid.MRImageStorage
        assert "NumberOfFrames" not in ds
        assert "SharedFunctionalGroupsSequence" not in ds
        assert (float(ds.RescaleSlope), float(ds.RescaleIntercept)) == (2.5, -10)
        assert np.allclose(ds.pixel_array * 2.5 - 10, thin.voxels[:, ::-1, index].T, atol=1e-3)
        assert 300 <= int(ds.WindowCenter) <= 305
        (item,) = ds.SourceImageSequence
        frames = item.ReferencedFrameNumber
        assert all(1 <= frame <= 6 for frame in frames)
    assert len(new[0].SourceImageSequence[0].ReferencedFrameNumber) == 4
    assert sorted(new[0].SourceImageSequence[0].ReferencedFrameNumber) == [3, 4, 5, 6]  # the last frame lies lowest


def errors_of(file):
    """What dciodvfy calls an error, without where and how often."""
    found = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True, check=False)
    return {line for line in (found.stdout + found.stderr).splitlines() if line.startswith("Error")}


needs_dciodvfy = pytest.mark.skipif(
    shutil.which("dciodvfy") is None, reason="dciodvfy is not installed; next: apt install dicom3tools"
)


@pytest.mark.hospital
@needs_dciodvfy
@pytest.mark.parametrize("modality", ["MR", "CT"])
@pytest.mark.parametrize("anonymise", [False, True])
def test_dciodvfy_finds_no_error_that_the_source_did_not_have(tmp_path, modality, anonymise):
    stack(tmp_path / "in", modality=modality)
    compute(tmp_path / "in", tmp_path / "out", anonymise=anonymise)
    before = set().union(*map(errors_of, (tmp_path / "in").iterdir()))
    after = set().union(*map(errors_of, (tmp_path / "out").iterdir()))
    assert after <= before


@pytest.mark.hospital
@needs_dciodvfy
@pytest.mark.parametrize("folder", folders_of_series(), ids=lambda folder: folder.name)
def test_dciodvfy_finds_no_new_error_in_what_came_of_real_series(tmp_path, folder):
    if not folder.exists():
        pytest.skip(f"no {folder}")
    compute(folder, tmp_path / "out", factor=2)
    files = [file for file in folder.rglob("*") if file.is_file()]
    before = set().union(*map(errors_of, files))
    after = set().union(*map(errors_of, sorted((tmp_path / "out").iterdir())))
    assert after <= before


@pytest.mark.hospital
@needs_dciodvfy
def test_dciodvfy_finds_no_error_in_what_came_of_an_enhanced_image(tmp_path):
    enhanced(tmp_path / "in")
    compute(tmp_path / "in", tmp_path / "out")
    assert not set().union(*map(errors_of, (tmp_path / "out").iterdir()))


SECRETS = [
    "Muster",
    "Erika",
    "4711",
    "19640812",
    "Arzt",
    "Hospital",
    "20200102",
    "101112",
    "1.2.3.4",
    "1.2.3.9",
    "T2 TSE",
]


@catches("io/dicom/identity.py", "for element in [e for e in dataset if not _is_harmless(e)]:", "for element in []:")
def test_anonymised_nothing_names_the_patient(tmp_path):
    def nested(ds, index):
        from pydicom.dataset import Dataset

        item = Dataset()
        item.PatientID, item.ReferencedSOPInstanceUID = "4711", "1.2.3.4.99"
        item.ReferencedSOPClassUID, item.InstitutionName = "1.2.840.10008.5.1.4.1.1.4", "Hospital"
        ds.ReferencedImageSequence = [item]
        ds.OtherPatientIDs, ds.PatientComments, ds.OperatorsName = "4711", "Erika", "Arzt^B"
        ds.add_new((0x0010, 0x2299), "LO", "Muster")  # in no dictionary
        ds.add_new((0x0008, 0x00FE), "UN", b"Erika")
        ds.PatientBirthDateInAlternativeCalendar, ds.ContentDescription = "19640812", "Muster"
        ds.SecondaryReviewerName, ds.TextValue, ds.DateOfLastCalibration = "Arzt^A", "Erika", "20200102"
        ds.VolumeFrameOfReferenceUID, ds.AcquisitionDateTime = "1.2.3.4.5", "20200102101112"
        ds.AcquisitionComments, ds.ImageComments, ds.ProtocolName = "Muster", "Erika", "T2 TSE Muster"

    stack(tmp_path / "in", change=nested)
    _, _, new = compute(tmp_path / "in", tmp_path / "out", anonymise=True)
    for file in (tmp_path / "out").iterdir():
        content = file.read_bytes()
        for secret in SECRETS:
            assert secret.encode() not in content, secret
    for ds in new:
        assert ds.PatientIdentityRemoved == "YES"
        assert ds.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
        assert not ds.StudyDate
        assert "COMPUTED" in ds.SeriesDescription
        assert ds.EchoTime == 90
        assert ds.PatientID.startswith("ANON-")
    assert len({ds.StudyInstanceUID for ds in new}) == 1
    assert len({ds.FrameOfReferenceUID for ds in new}) == 1


def test_anonymised_series_of_one_study_stay_in_one_study_and_place(tmp_path):
    for number in (1, 2):
        stack(tmp_path / f"in{number}", series=number)
    runs = [compute(tmp_path / f"in{number}", tmp_path / f"out{number}", anonymise=True)[2] for number in (1, 2)]
    assert runs[0][0].StudyInstanceUID == runs[1][0].StudyInstanceUID
    assert runs[0][0].FrameOfReferenceUID == runs[1][0].FrameOfReferenceUID
    assert runs[0][0].SeriesInstanceUID != runs[1][0].SeriesInstanceUID


def test_in_plane_enlargement_has_its_own_spacing_and_corner(tmp_path):
    stack(tmp_path / "in")
    thick = read_series(find_study(tmp_path / "in").series[0])
    model = find_model("cubic")
    plan = plan_for(thick, model="cubic", factor=2, in_plane=2)
    thin = as_stored(upsample(thick, plan, model).volume)
    ds = next(images(thin, thick, plan, ""))
    assert (ds.Rows, ds.Columns) == (40, 48)
    assert list(map(float, ds.PixelSpacing)) == [0.4, 0.45]
    corner = np.array([-10.5 - 0.9 / 4, -20.25 - 0.8 / 4])
    assert np.allclose(np.array(ds.ImagePositionPatient[:2], float), corner)
