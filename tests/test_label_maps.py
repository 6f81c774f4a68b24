"""Whether voxels are labels: segmentations of every kind are, images of every kind are not."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree

from faults import catches
from thinslice.compute.label_maps import (
    check_is_scan,
    describe_labels,
    is_named_like_labels,
    looks_like_labels,
    may_be_labels,
)
from thinslice.errors import InputRefused
from thinslice.io.formats import read
from thinslice.volume import Volume


def volume(voxels, source=None):
    return Volume(np.asarray(voxels), np.diag([1.0, 1.0, 4.0, 1.0]), source=source)


def parcels(count, shape=(48, 44, 14), seed=0):
    """An ellipsoid cut into so many parts, labels 1 .. count in no order."""
    random = np.random.default_rng(seed)
    index = np.indices(shape).reshape(3, -1).T
    nearest = cKDTree(random.random((count, 3)) * shape).query(index)[1].reshape(shape)
    inside = ((((index / shape - 0.5) / 0.45) ** 2).sum(axis=1) < 1).reshape(shape)
    return np.where(inside, nearest + 1, 0).astype(np.uint16)


def points(shape=(48, 44, 14)):
    drawn = np.zeros(shape, np.uint8)
    for label in range(1, 13):
        drawn[24, 3 * label, 7] = label
    return drawn


def vertebrae(shape=(30, 60, 12)):
    """Numbered from the top, each touching the next."""
    drawn = np.zeros(shape, np.uint8)
    drawn[10:20, :, 3:9] = (np.arange(60) // 6 + 1)[None, :, None]
    return drawn


SEGMENTATIONS = {
    "a mask": parcels(1),
    "a mask of 255": parcels(1) * 255,
    "a mask in a file of floats": parcels(1).astype(np.float32),
    "three labels": parcels(3),
    "labels in a file of floats": parcels(40).astype(np.float32),
    "an atlas of large numbers": parcels(90).astype(np.int32) * 137,
    "labels that came through a scale": parcels(40) * np.float32(0.9999),
    "single points": points(),
    "single points in a file of floats": points().astype(np.float32),
    "discs of some voxels": ndimage.grey_dilation(points(), (3, 1, 1)),
    "vertebrae in their order": vertebrae(),
    "slices along the first axis": parcels(30).transpose(2, 0, 1),
    "a series": np.stack([parcels(3), parcels(3, seed=1)], axis=3),
    "one slice": parcels(5)[:, :, 7:8],
    "truth values": parcels(1) > 0,
}


@catches("compute/label_maps.py", "looking >= min(2, len(found))", "looking >= 3")
@catches("compute/label_maps.py", "share > SURELY_REGIONS or ", "")
@pytest.mark.parametrize("name", SEGMENTATIONS)
def test_a_segmentation_is_known(name):
    assert looks_like_labels(volume(SEGMENTATIONS[name]))


def smooth(shape=(48, 44, 14), sigma=2.0, seed=0):
    image = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), sigma)
    return (image - image.min()) / np.ptp(image)


def quantised(image, levels):
    return np.rint(image * (levels - 1)).astype(np.uint8)


IMAGES = {
    "floats": smooth().astype(np.float32),
    "8 bits": quantised(smooth(), 256),
    "few grey levels": quantised(smooth(sigma=4), 16),
    "8 bits on white": 255 - np.where(parcels(1), quantised(smooth(), 200), 0).astype(np.uint8),
    "8 bits, clipped": np.minimum(quantised(smooth(), 256), 110),
    "8 bits, enlarged": quantised(smooth(), 256).repeat(2, 0).repeat(2, 1),
    "counts": np.random.default_rng(0).poisson(1.5, (40, 40, 12)),
    "hot spots on nothing": np.where(smooth() > 0.7, smooth() * 900, 0).astype(np.int16),
    "Hounsfield units": (smooth() * 2000).astype(np.int16) - 1024,
    "a mask, made thin as an image": parcels(1).astype(np.int16) * 3 - 1,
    "probabilities": ndimage.gaussian_filter(parcels(1).astype(np.float32), 1),
    "nothing": np.zeros((8, 8, 8), np.uint8),
    "one number": np.full((8, 8, 8), 5, np.uint8),
}


@catches("compute/label_maps.py", " or np.median(self.equal[there] / self.pairs[there]) < OF_EACH", "")
@catches("compute/label_maps.py", "self.jumps > JUMPS * differ", "True")
@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_none(name):
    assert not looks_like_labels(volume(IMAGES[name]))


def test_few_whole_numbers_that_are_no_regions_may_be_labels():
    assert may_be_labels(volume(np.random.default_rng(0).integers(0, 5, (9, 9, 9))))
    assert not may_be_labels(volume(quantised(smooth(), 256)))
    assert not may_be_labels(volume(np.zeros((4, 4, 4), np.uint8)))


def test_the_intent_of_a_file_counts_whatever_its_voxels_look_like(tmp_path):
    image = nibabel.Nifti1Image(np.random.default_rng(0).integers(0, 5, (9, 9, 9)).astype(np.uint8), np.eye(4))
    image.header.set_intent("label")
    nibabel.save(image, tmp_path / "a.nii.gz")
    assert describe_labels(read(tmp_path / "a.nii.gz")) == "its NIfTI intent code 1002 says so"
    image = nibabel.Nifti1Image(smooth().astype(np.float32), np.eye(4), image.header)  # a wrong code on an image
    image.header.set_data_dtype(np.float32)
    nibabel.save(image, tmp_path / "b.nii.gz")
    assert describe_labels(read(tmp_path / "b.nii.gz")) == ""


def test_the_names_of_segments_count(tmp_path):
    head = (
        "NRRD0004\ntype: unsigned char\ndimension: 3\nspace: left-posterior-superior\nsizes: 6 6 6\n"
        "space directions: (1,0,0) (0,1,0) (0,0,4)\nkinds: domain domain domain\nencoding: raw\n"
        "space origin: (0,0,0)\nSegment0_ID:=Segment_1\nSegment0_Name:=liver\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(head.encode() + bytes(216))
    assert describe_labels(read(tmp_path / "a.nrrd")) == "its header names segments"


@pytest.mark.parametrize(
    ("name", "is_named"),
    [
        ("case1_seg.nii.gz", True),
        ("CASE1-Segmentation.nrrd", True),
        ("LesionMask.nii", True),
        ("sub-01_dseg.nii.gz", True),
        ("labelsTr/case_001.nii.gz", True),
        ("T2.nii.gz", False),
        ("imagesTr/case_001.nii.gz", False),
        ("unmasked_T1.nii.gz", False),
        ("groin.nii.gz", False),
    ],
)
def test_names_of_segmentations(name, is_named):
    assert is_named_like_labels(volume(np.zeros((1, 1, 1)), Path(name))) == is_named


def test_a_segmentation_is_not_taken_as_a_scan_and_a_phantom_is_with_a_note():
    with pytest.raises(InputRefused, match="this as `labels`; if it is an image, rename it") as refusal:
        check_is_scan(volume(parcels(3), Path("case1_seg.nii.gz")))
    assert refusal.value.code == "labels-for-scan"
    (note,) = check_is_scan(volume(parcels(3), Path("phantom.nii.gz")))
    assert "it may be a segmentation: its voxels form regions of whole numbers (0, 1, 2, 3)" in note
    assert check_is_scan(volume(quantised(smooth(), 256), Path("case1_seg.nii.gz"))) == []


def test_an_empty_segmentation_is_known_by_its_name_alone():
    empty = np.zeros((6, 6, 6), np.uint8)
    assert "nothing is drawn" in describe_labels(volume(empty, Path("case1_seg.nii.gz")))
    assert describe_labels(volume(empty, Path("case1.nii.gz"))) == ""
