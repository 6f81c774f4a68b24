"""DICOM segmentations (SEG): one as the labels of a scan, and labels as one beside a new series.

A SEG holds frames for those slices and segments alone in which something is drawn, each with its own place. As a label
map a voxel has the number of its segment. The names and codes of segments are kept for the segmentation that is
written on the thin slices. Written are binary ones, one frame for each segment and slice, without further libraries.
"""

import copy
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pack_bits
from pydicom.sequence import Sequence as Items

from thinslice.errors import InputRefused
from thinslice.io.atomic import looks_like_dicom
from thinslice.io.dicom.decode import decode, decode_compressed
from thinslice.io.dicom.derived import save
from thinslice.io.dicom.headers import CONTOURS, MAKER, SEGMENTATIONS, damaged, find_groups, quiet, read_dataset
from thinslice.io.dicom.identity import uid_from
from thinslice.io.dicom.series import TO_RAS
from thinslice.volume import SAME_VOXEL, Volume, fingerprint

logger = logging.getLogger(__name__)

HALF = 0.5
"""Share of the largest value of a fractional segmentation from which on a voxel counts as the segment's."""

OF_THE_STUDY = (
    "SpecificCharacterSet", "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "PatientWeight",
    "StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "StudyDescription", "AccessionNumber",
    "ReferringPhysicianName", "FrameOfReferenceUID", "PositionReferenceIndicator", "PatientIdentityRemoved",
    "DeidentificationMethod", "DeidentificationMethodCodeSequence", "LongitudinalTemporalInformationModified",
)  # fmt: skip
"""What the images of a new series and a segmentation of them say alike."""

OF_A_SEGMENT = (
    "SegmentNumber", "SegmentLabel", "SegmentDescription", "SegmentAlgorithmType", "SegmentAlgorithmName",
    "SegmentedPropertyCategoryCodeSequence", "SegmentedPropertyTypeCodeSequence", "AnatomicRegionSequence",
    "RecommendedDisplayGrayscaleValue", "RecommendedDisplayCIELabValue", "TrackingID", "TrackingUID",
)  # fmt: skip
"""What is kept of each segment."""

MAY_NAME_SOMEBODY = ("SegmentDescription", "TrackingID", "TrackingUID")
"""What of these goes where the patient's identity does."""


@dataclass(frozen=True)
class Segmentation:
    """Header of a label map that was read from a SEG.

    Attributes:
        segments: what each says of itself: number, name, codes.
        label: ContentLabel.
        description: ContentDescription.
    """

    segments: tuple[Dataset, ...]
    label: str
    description: str

    def without_identity(self) -> "Segmentation":
        """Returns the same without words that may name the patient."""
        segments = [copy.deepcopy(segment) for segment in self.segments]
        for segment in segments:
            for name in MAY_NAME_SOMEBODY:
                if name in segment:
                    delattr(segment, name)
        return Segmentation(tuple(segments), self.label, "")


def find_segmentation(path: Path) -> Path | None:
    """Returns the SEG file at a path: the file itself, or the only one in a folder; None where there is none.

    Raises:
        InputRefused: contours (RT Structure Set) instead, or several.
    """
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    kinds = {file: _kind_of(file) for file in files if file.is_file() and looks_like_dicom(file)}
    found = [file for file, kind in kinds.items() if kind in SEGMENTATIONS]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputRefused(
            got=f"{len(found)} segmentations ({', '.join(file.name for file in found[:3])})",
            need="one",
            next="name its file",
            place=path,
            code="several-segmentations",
        )
    if any(kind in CONTOURS for kind in kinds.values()):
        raise InputRefused(
            got="contours (RT Structure Set or Surface Segmentation)",
            need="a label map",
            next="make one of them on the scan's grid, as 3D Slicer or plastimatch do: NIfTI, NRRD or DICOM SEG",
            place=path,
            code="labels-are-contours",
        )
    return None


def read(path: Path, spacings_mm: Sequence[float], directions: np.ndarray) -> Volume:
    """Reads a SEG as a label map: each voxel has the number of its segment.

    Args:
        path: the file.
        spacings_mm: of the scan that it is for, along its three axes: a SEG leaves out slices where nothing is drawn,
            and need not say how far apart the others would be.
        directions: unit vectors along these axes, as columns [3, 3] (RAS).

    Returns:
        The box of its frames, [columns, rows from the last to the first, slices]; its header is a `Segmentation`.

    Raises:
        InputRefused: damaged, or frames that are no parallel slices of a patient.
    """
    header = read_dataset(path, stop_before_pixels=True)
    try:
        with quiet():
            numbers, places = _places(header)
    except InputRefused as error:
        raise error.at(path) from error
    except Exception as error:  # elements are understood only now, when they are asked for
        raise damaged(path, error) from error
    affine, index = _stack(path, places, spacings_mm, directions)
    frames, notes = _frames(path, header, len(places))
    columns, rows = frames.shape[2], frames.shape[1]
    labels = np.zeros((columns, rows, int(index.max()) + 1), np.uint8 if max(numbers, default=0) < 256 else np.uint16)
    if not numbers:  # a label map, whose values are the numbers
        labels = labels.astype(frames.dtype)
    doubled = 0
    for at, values in enumerate(frames):
        target = labels[:, :, index[at]]
        # Rows from the last to the first, as `thinslice.io.dicom.pixels` lays out a series.
        drawn = values[::-1].T
        if not numbers:
            target[...] = drawn
            continue
        doubled += int(np.count_nonzero((target > 0) & (drawn > 0)))
        target[drawn > 0] = np.maximum(target, numbers[at])[drawn > 0]
    affine[:3, 3] += affine[:3, 1] * (1 - rows)
    if doubled:
        notes.append(f"{doubled:,} voxels are of several segments: each has the largest of their numbers")
    kept = Segmentation(
        tuple(_segment(item) for item in header.get("SegmentSequence") or []),
        str(header.get("ContentLabel") or "SEGMENTATION"),
        str(header.get("ContentDescription") or ""),
    )
    logger.debug("%s: %d frames of %d segments", path, len(frames), len(kept.segments))
    return Volume(labels, affine, notes=tuple(notes), source=path, header=kept)


def _kind_of(path: Path) -> str:
    with suppress(InputRefused, OSError):
        return str(read_dataset(path, stop_before_pixels=True, specific_tags=["SOPClassUID"]).get("SOPClassUID") or "")
    return ""


def _segment(item: Dataset) -> Dataset:
    kept = Dataset()
    for name in OF_A_SEGMENT:
        if name in item:
            kept[name] = copy.deepcopy(item[name])
    kept.remove_private_tags()
    return kept


_Place = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of a frame in mm (LPS): its position, its directions [2, 3], and the spacing of rows and of columns."""


def _places(header: Dataset) -> tuple[list[int], list[_Place]]:
    """Returns the segment of each frame (none of a label map), and its place."""
    count = int(header.get("NumberOfFrames") or 1)
    is_label_map = str(header.get("SegmentationType", "")).upper() == "LABELMAP"
    shared = find_groups(header, "SharedFunctionalGroupsSequence", 0)
    numbers: list[int] = []
    places: list[_Place] = []
    for frame in range(count):
        groups = [*find_groups(header, "PerFrameFunctionalGroupsSequence", frame), *shared]

        def look_up(name: str, groups: list[Dataset] = groups) -> Any:
            return next((group[name].value for group in groups if name in group), None)

        found = [look_up(name) for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")]
        if any(value is None for value in found):
            raise InputRefused(
                got=f"a segmentation whose frame {frame + 1} does not say where in the patient it lies",
                need="frames with position, orientation and spacing",
                next="write it as NIfTI or NRRD on the scan's grid, with the program that made it",
                code="segmentation-without-place",
            )
        position, orientation, spacing = (np.asarray(value, np.float64) for value in found)
        places.append((position, orientation.reshape(2, 3), spacing))
        if not is_label_map:
            numbers.append(int(look_up("ReferencedSegmentNumber")))
    return numbers, places


def _stack(
    path: Path, places: list[_Place], spacings_mm: Sequence[float], directions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns where the slices of all frames lie, and which of them each frame is.

    The affine [4, 4] (RAS) is that of [columns, rows, slices]; its second axis runs from the last row to the first, but
    its origin is that of the first row.
    """
    (_, (along_row, along_column), (between_rows, between_columns)) = places[0]
    if any(np.abs(place[1] - places[0][1]).max() > 1e-3 or (place[2] != places[0][2]).any() for place in places):
        raise InputRefused(
            got="frames in several orientations or sizes",
            need="parallel slices",
            next="write it as NIfTI or NRRD on the scan's grid, with the program that made it",
            place=path,
            code="segmentation-without-place",
        )
    normal = np.cross(along_row, along_column)
    normal /= np.linalg.norm(normal)
    axis = int(np.argmax(np.abs((TO_RAS @ normal) @ directions)))
    step_mm = spacings_mm[axis]
    positions = np.array([position for position, _, _ in places])
    along = positions @ normal
    exact = (along - along.min()) / step_mm
    index = np.rint(exact).astype(int)
    if np.abs(exact - index).max() > SAME_VOXEL:
        raise InputRefused(
            got=f"frames that do not lie on slices {step_mm:.4g} mm apart, as the scan's do",
            need="a segmentation of this scan",
            next="give that of the series that it was drawn on",
            place=path,
            code="other-grid",
        )
    starts = positions - index[:, None] * step_mm * normal
    if np.ptp(starts, axis=0).max() > SAME_VOXEL * min(between_rows, between_columns):
        # One grid at right angles holds none of them but the first at its place.
        raise InputRefused(
            got="frames that are shifted sideways from one to the next (tilted slices)",
            need="a grid at right angles",
            next="write it as NIfTI or NRRD on the scan's grid, with the program that made it",
            place=path,
            code="segmentation-without-place",
        )
    start = starts.mean(axis=0)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = (
        along_row * between_columns,
        -along_column * between_rows,
        normal * step_mm,
    )
    affine[:3, 3] = start
    affine[:3] = TO_RAS @ affine[:3]
    return affine, index


def _frames(path: Path, header: Dataset, count: int) -> tuple[np.ndarray, list[str]]:
    """Returns the values of all frames [n, rows, columns], and notes: a fractional one is cut at half of its range."""
    syntax = uid.UID(header.file_meta.get("TransferSyntaxUID") or uid.ImplicitVRLittleEndian)
    # Codecs crash on damaged data: in a process of their own.
    values = next(decode_compressed([path], count)) if syntax.is_compressed else decode(path)
    frames = values.reshape(-1, *values.shape[-2:])
    if len(frames) != count:
        raise damaged(path, ValueError(f"{len(frames)} frames of {count}"))
    if str(header.get("SegmentationType", "")).upper() != "FRACTIONAL":
        return frames, []
    most = float(header.get("MaximumFractionalValue") or 255)
    kind = str(header.get("SegmentationFractionalType") or "fractions").lower()
    note = f"the segmentation holds fractions ({kind}): a voxel is of a segment from {HALF:g} on"
    return (frames >= HALF * most).astype(np.uint8), [note]


# ---- a new one


def header_of(image: Dataset) -> Dataset:
    """Returns what a segmentation needs to know of an image that is written: all but its voxels."""
    header = Dataset()
    header.update({element.tag: element for element in image if element.keyword != "PixelData"})
    return header


def write(labels: Volume, images: Sequence[Dataset], path: Path) -> None:
    """Writes labels on the slices of a new series as a binary SEG, with the segments that they came from.

    Args:
        labels: [x, y, z] on the grid of the series, as `thinslice.io.dicom.derived.images` has it; its header is a
            `Segmentation`.
        images: the headers of the slices of the series, in the order of the last axis, see `header_of`.
        path: the file.

    Raises:
        OutputRefused: an element that was kept cannot be written.
    """
    kept = labels.header
    assert isinstance(kept, Segmentation)
    first = images[0]
    key = repr((str(first.SeriesInstanceUID), fingerprint(labels)))
    found = Dataset()
    for name in OF_THE_STUDY:
        if name in first:
            found[name] = first[name]
    _describe(found, first, kept, key)
    numbers = {int(segment.SegmentNumber): new for new, segment in enumerate(kept.segments, 1)}
    items = [copy.deepcopy(segment) for segment in kept.segments]
    for new, item in enumerate(items, 1):  # the standard wants 1, 2, 3 ... of a binary one
        item.SegmentNumber = new
    found.SegmentSequence = Items(items)
    voxels = labels.voxels[:, ::-1]
    drawn = [(number, k) for number in numbers for k in range(len(images)) if (voxels[..., k] == number).any()]
    drawn = drawn or [(next(iter(numbers)), 0)]  # a file has at least one frame
    bits = np.stack([(voxels[..., k] == number).T for number, k in drawn])
    found.Rows, found.Columns, found.NumberOfFrames = bits.shape[1], bits.shape[2], len(drawn)
    found.PixelData = pack_bits(bits.ravel())
    found["PixelData"].VR = "OB"
    _add_groups(found, first, [(numbers[number], k, images[k]) for number, k in drawn], key)
    _refer(found, images)
    save(found, path)


def _describe(found: Dataset, first: Dataset, kept: Segmentation, key: str) -> None:
    """Adds what a SEG says of itself, but for its segments and frames."""
    found.SOPClassUID, found.Modality = uid.SegmentationStorage, "SEG"
    found.SOPInstanceUID, found.SeriesInstanceUID = (uid_from(repr((key, what)).encode()) for what in ("file", "seg"))
    found.SeriesNumber, found.InstanceNumber = int(first.get("SeriesNumber") or 0) + 500, 1
    found.SeriesDescription = f"{kept.label} on COMPUTED slices ({MAKER})"[:64]
    found.Manufacturer, found.ManufacturerModelName, found.DeviceSerialNumber = MAKER, MAKER, "1"
    found.SoftwareVersions = version("thinslice")
    # The same scan gives the same file: the day is that of the study.
    found.ContentDate, found.ContentTime = first.get("StudyDate") or "19700101", first.get("StudyTime") or "000000"
    found.ImageType = ["DERIVED", "PRIMARY"]
    found.ContentLabel, found.ContentDescription, found.ContentCreatorName = kept.label, kept.description[:64], ""
    found.SegmentationType, found.LossyImageCompression = "BINARY", "00"
    found.SamplesPerPixel, found.PhotometricInterpretation, found.PixelRepresentation = 1, "MONOCHROME2", 0
    found.BitsAllocated, found.BitsStored, found.HighBit = 1, 1, 0


def _add_groups(found: Dataset, first: Dataset, drawn: list[tuple[int, int, Dataset]], key: str) -> None:
    """Adds the functional groups: what all frames share, and segment, place and image of each."""
    organisation = uid_from(repr((key, "dimensions")).encode())
    found.DimensionOrganizationSequence = Items([_item(DimensionOrganizationUID=organisation)])
    pointers = ((0x0062000B, 0x0062000A), (0x00200032, 0x00209113))  # segment number, then position
    found.DimensionIndexSequence = Items(
        [
            _item(DimensionOrganizationUID=organisation, DimensionIndexPointer=pointer, FunctionalGroupPointer=group)
            for pointer, group in pointers
        ]
    )
    measures = _item(
        SliceThickness=first.get("SliceThickness"),
        SpacingBetweenSlices=first.get("SpacingBetweenSlices"),
        PixelSpacing=first.PixelSpacing,
    )
    orientation = _item(ImageOrientationPatient=first.ImageOrientationPatient)
    found.SharedFunctionalGroupsSequence = Items(
        [_item(PixelMeasuresSequence=Items([measures]), PlaneOrientationSequence=Items([orientation]))]
    )
    order = {k: at for at, k in enumerate(sorted({k for _, k, _ in drawn}), 1)}
    found.PerFrameFunctionalGroupsSequence = Items(
        [
            _item(
                FrameContentSequence=Items([_item(DimensionIndexValues=[number, order[k]])]),
                PlanePositionSequence=Items([_item(ImagePositionPatient=image.ImagePositionPatient)]),
                SegmentIdentificationSequence=Items([_item(ReferencedSegmentNumber=number)]),
                DerivationImageSequence=Items([_derivation(image)]),
            )
            for number, k, image in drawn
        ]
    )


def _derivation(image: Dataset) -> Dataset:
    """Returns that a frame was drawn on an image."""
    source = _reference(image)
    source.SpatialLocationsPreserved = "YES"
    source.PurposeOfReferenceCodeSequence = Items([_code("121322", "Source image for image processing operation")])
    return _item(SourceImageSequence=Items([source]), DerivationCodeSequence=Items([_code("113076", "Segmentation")]))


def _refer(found: Dataset, images: Sequence[Dataset]) -> None:
    """Adds references to all images of the series, as a study's archive wants to find them."""
    series = _item(
        SeriesInstanceUID=images[0].SeriesInstanceUID,
        ReferencedInstanceSequence=Items([_reference(image) for image in images]),
    )
    found.ReferencedSeriesSequence = Items([series])


def _reference(image: Dataset) -> Dataset:
    return _item(ReferencedSOPClassUID=image.SOPClassUID, ReferencedSOPInstanceUID=image.SOPInstanceUID)


def _code(value: str, meaning: str) -> Dataset:
    return _item(CodeValue=value, CodingSchemeDesignator="DCM", CodeMeaning=meaning)


def _item(**elements: Any) -> Dataset:
    item = Dataset()
    for name, value in elements.items():
        setattr(item, name, value)
    return item
