"""DICOM segmentations (SEG): as labels of a scan, on whatever of its slices they are, and written on the thin ones."""

import shutil
import subprocess

import numpy as np
import pytest
from pydicom import dcmread, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.utils import pack_bits
from pydicom.sequence import Sequence

import dicom_files
import thinslice
from faults import catches
from thinslice.errors import InputRefused
from thinslice.io import nifti
from thinslice.pipeline import read_labels, read_scan
from thinslice.volume import Volume


def item(**elements):
    found = Dataset()
    for name, value in elements.items():
        setattr(found, name, value)
    return found


def code(value, scheme, meaning):
    return Sequence([item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)])


def segment(number, label, kind):
    return item(
        SegmentNumber=number,
        SegmentLabel=label,
        SegmentAlgorithmType="MANUAL",
        SegmentedPropertyCategoryCodeSequence=code("123037004", "SCT", "Anatomical structure"),
        SegmentedPropertyTypeCodeSequence=code(*kind),
    )


LIVER = segment(1, "liver", ("10200004", "SCT", "Liver"))
SPLEEN = segment(2, "spleen", ("78961009", "SCT", "Spleen"))


def write_seg(path, frames, like, numbers=(1, 2), kind="BINARY", spacing=True, most=200, **more):
    """A SEG of frames [(segment, values [rows, columns], the image it lies on)], one after the other."""
    ds = Dataset()
    ds.SOPClassUID, ds.Modality = uid.SegmentationStorage, "SEG"
    if kind == "LABELMAP":
        ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.66.7"
    ds.SOPInstanceUID, ds.SeriesInstanceUID = "1.2.9.1", "1.2.9"
    for name in ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "StudyDate", "StudyTime"):
        ds[name] = like[name]
    ds.SeriesNumber, ds.InstanceNumber, ds.SegmentationType, ds.ContentLabel = 99, 1, kind, "ABDOMEN"
    ds.ContentDescription = "Muster, Erika"
    ds.SegmentSequence = Sequence([one for one in (LIVER, SPLEEN) if one.SegmentNumber in numbers])
    ds.Rows, ds.Columns, ds.NumberOfFrames = like.Rows, like.Columns, len(frames)
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    measures = item(PixelSpacing=like.PixelSpacing, SliceThickness=like.SliceThickness)
    if spacing:
        measures.SpacingBetweenSlices = like.SliceThickness
    orientation = item(ImageOrientationPatient=like.ImageOrientationPatient)
    ds.SharedFunctionalGroupsSequence = Sequence(
        [item(PixelMeasuresSequence=Sequence([measures]), PlaneOrientationSequence=Sequence([orientation]))]
    )
    groups = []
    for number, _, image in frames:
        group = item(PlanePositionSequence=Sequence([item(ImagePositionPatient=image.ImagePositionPatient)]))
        if kind != "LABELMAP":
            group.SegmentIdentificationSequence = Sequence([item(ReferencedSegmentNumber=number)])
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = Sequence(groups)
    values = np.stack([values for _, values, _ in frames])
    bits = 1 if kind == "BINARY" else 8
    ds.BitsAllocated = ds.BitsStored = bits
    ds.HighBit = bits - 1
    if kind == "FRACTIONAL":
        ds.SegmentationFractionalType, ds.MaximumFractionalValue = "PROBABILITY", most
    ds.PixelData = pack_bits(values.ravel()) if bits == 1 else values.astype(np.uint8).tobytes()
    ds["PixelData"].VR = "OB"
    for name, value in more.items():
        setattr(ds, name, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture(params=["axial", "sagittal", "oblique"])
def series(request, tmp_path):
    """A folder with a series, its images in the order of places, and the scan as it is read."""
    orientation = {
        "axial": dicom_files.AXIAL,
        "sagittal": dicom_files.SAGITTAL,
        "oblique": dicom_files.oblique(),
    }[request.param]
    return make_series(tmp_path, orientation)


def make_series(tmp_path, orientation=dicom_files.AXIAL):
    folder = tmp_path / "series"
    dicom_files.stack(folder, orientation=orientation)
    scan = read_scan(folder)
    images = [dcmread(image.path, stop_before_pixels=True) for image in scan.header.images]
    return folder, images, scan


def drawn_on(scan):
    """Labels on the scan's grid: nothing on the first slices, on the last, and on one between."""
    drawn = np.zeros(scan.shape, np.uint8)
    columns, rows, slices = scan.shape
    drawn[3 : columns - 5, 4 : rows - 8, 2 : slices - 1] = 1
    drawn[6 : columns - 9, 6 : rows - 11, 2 : slices - 2] = 2
    drawn[:, :, 4] = 0
    return drawn


def frames_of(drawn, images, numbers=(1, 2), backwards=True):
    frames = [
        (number, (drawn[:, ::-1, k] == number).T, image)
        for number in numbers
        for k, image in enumerate(images)
        if (drawn[..., k] == number).any()
    ]
    return frames[::-1] if backwards else frames


@catches("io/dicom/segmentations.py", "affine[:3, 3] += affine[:3, 1] * (1 - rows)", "pass")
@catches("io/dicom/segmentations.py", "drawn = values[::-1].T", "drawn = values.T")
@pytest.mark.parametrize("spacing", [True, False])
def test_a_segment_is_read_onto_the_voxels_that_it_was_drawn_on(tmp_path, series, spacing):
    folder, images, scan = series
    drawn = drawn_on(scan)
    path = write_seg(tmp_path / "seg.dcm", frames_of(drawn, images), images[0], spacing=spacing)
    read = read_labels(path, scan)
    np.testing.assert_array_equal(read.voxels, drawn)
    done = thinslice.enhance(folder, model="cubic", factor=4, profile="box", labels=path)
    expected = thinslice.enhance(folder, model="cubic", factor=4, profile="box", labels=Volume(drawn, scan.affine))
    np.testing.assert_array_equal(done.labels_to_thin().voxels, expected.labels_to_thin().voxels)
    np.testing.assert_array_equal(done.labels_to_thin().affine, done.affine)


def test_one_frame_alone_is_read(tmp_path):
    _, images, scan = make_series(tmp_path)
    drawn = drawn_on(scan)
    drawn[..., :3], drawn[..., 4:] = 0, 0
    path = write_seg(tmp_path / "seg.dcm", frames_of(drawn, images, [2]), images[0], numbers=[2], spacing=False)
    np.testing.assert_array_equal(read_labels(path, scan).voxels, np.where(drawn == 2, 2, 0))


def test_a_label_map_is_read(tmp_path):
    _, images, scan = make_series(tmp_path)
    drawn = drawn_on(scan)
    frames = [(0, drawn[:, ::-1, k].T, image) for k, image in enumerate(images)]
    path = write_seg(tmp_path / "seg.dcm", frames, images[0], kind="LABELMAP")
    np.testing.assert_array_equal(read_labels(path, scan).voxels, drawn)


@catches("io/dicom/segmentations.py", "frames >= HALF * most", "frames > 0")
def test_fractions_are_cut_at_half_of_their_range_and_told(run, tmp_path):
    folder, images, scan = make_series(tmp_path)
    drawn = drawn_on(scan) == 1
    soft = np.where(drawn, 120, 90)  # of 200
    frames = [(1, soft[:, ::-1, k].T, image) for k, image in enumerate(images)]
    path = write_seg(tmp_path / "seg.dcm", frames, images[0], numbers=[1], kind="FRACTIONAL")
    np.testing.assert_array_equal(read_labels(path, scan).voxels, drawn)
    code, out, _ = run("enhance", "-i", folder, "-o", tmp_path / "a.nii", "--model", "cubic", "--labels", path)
    assert code == 0
    assert any("labels: the segmentation holds fractions (probability)" in line for line in out)


def test_voxels_of_two_segments_get_the_larger_number_and_are_counted(tmp_path):
    _, images, scan = make_series(tmp_path)
    both = [(n, np.ones((images[0].Rows, images[0].Columns), bool), images[3]) for n in (2, 1)]
    read = read_labels(write_seg(tmp_path / "seg.dcm", both, images[0]), scan)
    assert set(np.unique(read.voxels[..., 3])) == {2}
    assert f"{both[0][1].size:,} voxels are of several segments" in read.notes[0]


def test_a_compressed_one_is_read(tmp_path):
    _, images, scan = make_series(tmp_path)
    drawn = drawn_on(scan)
    frames = [(0, drawn[:, ::-1, k].T, image) for k, image in enumerate(images)]
    path = write_seg(tmp_path / "seg.dcm", frames, images[0], kind="LABELMAP")
    dataset = dcmread(path)
    dataset.compress(uid.RLELossless)
    dataset.save_as(path)
    np.testing.assert_array_equal(read_labels(path, scan).voxels, drawn)


@pytest.mark.parametrize("name", ["between the slices", "beside the pixels", "beyond the scan", "without a place"])
def test_what_was_drawn_on_another_scan_is_refused(run, tmp_path, name):
    folder, images, scan = make_series(tmp_path)
    frames = frames_of(drawn_on(scan), images)
    path = write_seg(tmp_path / "seg.dcm", frames, images[0])
    dataset = dcmread(path)
    for number, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        place = group.PlanePositionSequence[0]
        x, y, z = map(float, place.ImagePositionPatient)
        if name == "between the slices" and number % 2:
            place.ImagePositionPatient = [x, y, z + 2]
        elif name == "beside the pixels":
            place.ImagePositionPatient = [x + 0.3, y, z]
        elif name == "beyond the scan":
            place.ImagePositionPatient = [x, y, z + 12]
        elif name == "without a place":
            del group.PlanePositionSequence
    dataset.save_as(path)
    code, out, err = run("enhance", "-i", folder, "-o", tmp_path / "a.nii", "--model", "cubic", "--labels", path)
    assert (code, out, len(err)) == (2, [], 1)
    assert "seg.dcm: got" in err[0]
    assert "need" in err[0]
    assert not (tmp_path / "a.nii").exists()


@catches("io/dicom/segmentations.py", "if np.ptp(starts, axis=0).max() > ", "if 0 > ")
def test_frames_on_tilted_slices_are_refused_not_moved(run, tmp_path):
    folder = tmp_path / "series"
    dicom_files.stack(folder, drift_mm=1.0)
    images = [dcmread(image.path, stop_before_pixels=True) for image in read_scan(folder).header.images]
    drawn = np.ones((images[0].Rows, images[0].Columns), np.uint8)
    write_seg(tmp_path / "seg.dcm", [(1, drawn, image) for image in images], images[0], numbers=(1,))
    place = tmp_path / "out.nii.gz"
    code, _, err = run(
        "enhance", "-i", folder, "-o", place, "--labels", tmp_path / "seg.dcm", "--model", "linear", "--factor", "4"
    )
    assert code == 2
    assert "shifted sideways" in err[0]
    assert not place.exists()


def test_contours_are_refused_with_a_way_to_labels(run, tmp_path):
    folder, images, scan = make_series(tmp_path)
    path = write_seg(tmp_path / "rt.dcm", frames_of(drawn_on(scan), images), images[0])
    dataset = dcmread(path)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = uid.RTStructureSetStorage
    dataset.save_as(path)
    code, _, err = run("enhance", "-i", folder, "-o", tmp_path / "a.nii", "--model", "cubic", "--labels", path)
    assert code == 2
    assert "got contours (RT Structure Set" in err[0]


def test_beside_the_slices_it_is_left_alone_and_alone_it_is_refused(run, tmp_path):
    folder, images, scan = make_series(tmp_path)
    path = write_seg(folder / "seg.dcm", frames_of(drawn_on(scan), images), images[0])
    code, out, err = run("enhance", "-i", folder, "-o", tmp_path / "out", "--model", "cubic")
    assert (code, err) == (0, [])
    assert "note: 1 segmentation(s) (seg.dcm) left alone: --labels brings one along with its series" in out
    code, out, err = run("enhance", "-i", path, "-o", tmp_path / "b.nii", "--model", "cubic")
    assert code == 2
    assert "got a segmentation (DICOM SEG); need MR or CT images; next: give the series that it was drawn on" in err[0]


@catches("io/dicom/segmentations.py", "voxels = labels.voxels[:, ::-1]", "voxels = labels.voxels")
@pytest.mark.parametrize("anonymise", [False, True])
def test_one_is_written_among_the_new_slices_with_names_and_codes(run, tmp_path, series, anonymise):
    folder, images, scan = series
    drawn = drawn_on(scan)
    source = write_seg(tmp_path / "seg.dcm", frames_of(drawn, images), images[0])
    words = ["enhance", "-i", folder, "-o", tmp_path / "out", "--model", "cubic", "--factor", "4", "--labels", source]
    code, _, err = run(*words, *(["--anonymise"] if anonymise else []))
    assert (code, err) == (0, [])
    made = dcmread(tmp_path / "out" / "labels.dcm")
    one = dcmread(tmp_path / "out" / "IM0001.dcm")
    assert made.PatientID == one.PatientID
    assert made.FrameOfReferenceUID == one.FrameOfReferenceUID
    assert [segment.SegmentLabel for segment in made.SegmentSequence] == ["liver", "spleen"]
    assert made.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0].CodeValue == "78961009"
    assert ("Muster" in str(made)) != anonymise
    thin = written_labels(tmp_path / "out")
    expected = thinslice.enhance(folder, model="cubic", factor=4, labels=Volume(drawn, scan.affine))
    np.testing.assert_array_equal(thin.voxels, expected.labels_to_thin().voxels)
    check_with_dciodvfy(tmp_path / "out" / "labels.dcm")
    code, _, err = run(*words, "--overwrite", *(["--anonymise"] if anonymise else []))  # replaces its own
    assert (code, err) == (0, [])


def written_labels(folder):
    """The written labels on the grid of the written slices."""
    from thinslice.io.formats import read

    return read_labels(folder / "labels.dcm", read(folder))


def check_with_dciodvfy(path):
    if shutil.which("dciodvfy") is None:
        return
    found = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    assert [line for line in found.stderr.splitlines() if line.startswith("Error")] == []


def test_labels_of_another_format_stay_so_and_cannot_become_one(run, tmp_path):
    folder, _, scan = make_series(tmp_path)
    nifti.write(Volume(drawn_on(scan), scan.affine), tmp_path / "seg.nii")
    words = ["enhance", "-i", folder, "-o", tmp_path / "out", "--model", "cubic", "--labels", tmp_path / "seg.nii"]
    code, _, err = run(*words, "--labels-out", tmp_path / "seg.dcm")
    assert code == 2
    assert "got a DICOM SEG as the place of labels that came from another format" in err[0]
    assert not (tmp_path / "out").exists()
    assert run(*words)[0] == 0
    assert (tmp_path / "out" / "labels.nii.gz").exists()


def test_a_folder_with_one_is_that_one_and_several_are_refused(tmp_path):
    _, images, scan = make_series(tmp_path)
    (tmp_path / "seg").mkdir()
    frames = frames_of(drawn_on(scan), images)
    write_seg(tmp_path / "seg" / "1.dcm", frames, images[0])
    np.testing.assert_array_equal(read_labels(tmp_path / "seg", scan).voxels, drawn_on(scan))
    write_seg(tmp_path / "seg" / "2.dcm", frames, images[0])
    with pytest.raises(InputRefused, match="2 segmentations"):
        read_labels(tmp_path / "seg", scan)


def test_what_3d_slicer_has_cropped_is_put_back_on_the_grid_of_the_scan(tmp_path):
    whole = np.zeros((20, 24, 8), np.uint8)
    whole[5:12, 6:18, 2:5] = 1
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    scan = Volume(np.zeros(whole.shape, np.int16), affine)
    box = np.ascontiguousarray(whole[4:14, 5:20, 2:5])
    head = (
        "NRRD0004\ntype: unsigned char\ndimension: 3\nspace: right-anterior-superior\nsizes: 10 15 3\n"
        "space directions: (1,0,0) (0,1,0) (0,0,4)\nkinds: domain domain domain\nencoding: raw\n"
        "space origin: (4,5,8)\nSegment0_ID:=Segment_1\nSegmentation_ReferenceImageExtentOffset:=4 5 2\n\n"
    )
    (tmp_path / "seg.nrrd").write_bytes(head.encode() + box.tobytes(order="F"))
    np.testing.assert_array_equal(read_labels(tmp_path / "seg.nrrd", scan).voxels, whole)
    with pytest.raises(InputRefused, match="voxels that are not the scan's"):
        read_labels(tmp_path / "seg.nrrd", Volume(scan.voxels[:8], affine))
