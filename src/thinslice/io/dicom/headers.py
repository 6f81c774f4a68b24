"""What the headers of DICOM files say: one `Image` for each file, or for each frame of an enhanced one.

Nothing in a file is trusted: whatever pydicom makes of damaged bytes ends as a refusal with the file's name. A file
that is sound, but no slice of a scan, is an `Image` with a problem: what becomes of its series is decided in `series`.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydicom import dcmread, uid
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info

from thinslice.errors import InputRefused
from thinslice.io.dicom.deflated import check_deflated
from thinslice.io.refusals import one_line, refused

CLASSIC: dict[str, str] = {uid.MRImageStorage: "MR", uid.CTImageStorage: "CT"}
ENHANCED: dict[str, str] = {
    uid.EnhancedMRImageStorage: "MR",
    uid.EnhancedCTImageStorage: "CT",
    uid.LegacyConvertedEnhancedMRImageStorage: "MR",
    uid.LegacyConvertedEnhancedCTImageStorage: "CT",
}
"""Storage classes of scans: one slice a file, and many."""

SEGMENTATIONS = (uid.SegmentationStorage, "1.2.840.10008.5.1.4.1.1.66.7")
"""Storage classes of what is drawn on scans: Segmentation, and Label Map Segmentation, which pydicom 3.0 has not."""

CONTOURS = (uid.RTStructureSetStorage, uid.SurfaceSegmentationStorage)
"""Storage classes of what is drawn as outlines and surfaces, without voxels."""

MAKER = "thinslice"
"""Manufacturer of the modifying equipment, by which a computed series is known."""

IMPLEMENTATION = "2.25.287304857463054017634929468713527418391"
"""ImplementationClassUID of the files that this program writes; made of a random UUID once, and never changed."""

PROJECTIONS = ("MIP", "MINIP", "MNIP", "PROJECTION IMAGE", "MAX_IP", "MIN_IP", "CSA MIP")
"""Values of ImageType of what no slice profile can describe."""

AMONG = ("ImageType", "EchoNumbers", "DiffusionBValue", "TemporalPositionIdentifier", "StackID")
"""Facts that tell stacks of one series apart."""

WHERE_DOUBLED = {
    "EchoTime": "TE",
    "EffectiveEchoTime": "TE",
    "ComplexImageComponent": "component",
    "VasCollapseFlag": "kind",
    "DiffusionDirectionality": "diffusion",
    "DiffusionGradientOrientation": "gradient",
    "InversionTime": "TI",
    "InversionTimes": "TI",
    "FlipAngle": "flip angle",
    "RepetitionTime": "TR",
    "KVP": "kV",
    "ASLContext": "ASL",
    "ContrastBolusAgentPhase": "contrast phase",
    "NominalCardiacTriggerDelayTime": "trigger",
    "TriggerTime": "trigger",
    "TemporalPositionIndex": "phase",
    "TemporalPositionTimeOffset": "phase at",
    "AcquisitionNumber": "acquisition",
    "FrameAcquisitionNumber": "acquisition",
    "AcquisitionTime": "time",
    "AcquisitionDateTime": "time",
    "FrameAcquisitionDateTime": "time",
    "FrameReferenceDateTime": "time",
    "ContentTime": "time",
    "ConvolutionKernel": "kernel",
    "SequenceName": "sequence",
    "SliceThickness": "thickness",
    "SeriesNumber": "series number",
    "SeriesDescription": "",
}
"""Facts that tell them apart where several images lie at one place, and may differ within one stack elsewhere.

To each what it is called in the name of a stack.
"""

IN_TIME = (
    "TriggerTime",
    "NominalCardiacTriggerDelayTime",
    "TemporalPositionTimeOffset",
    "FrameAcquisitionDateTime",
    "FrameReferenceDateTime",
    "AcquisitionDateTime",
    "AcquisitionTime",
    "ContentTime",
)
"""Facts of `WHERE_DOUBLED` by which the images of one place can be put in the order of phases."""

PHASE_KINDS = ("P", "PHASE", "PHASE MAP", "VELOCITY MAP")
"""Third or fourth value of the ImageType of MR images that show an angle, which is wrapped at the end of its range."""

_WANTED = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription",
    "ProtocolName", "Modality", "ImageType", "FrameType", "InstanceNumber", "NumberOfFrames", "FrameOfReferenceUID",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices",
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "EchoNumbers", "EchoTime",
    "InversionTime", "DiffusionBValue", "DiffusionGradientOrientation", "TemporalPositionIdentifier", "TriggerTime",
    "NominalCardiacTriggerDelayTime", "AcquisitionNumber", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", "ContributingEquipmentSequence", "EffectiveEchoTime", "AcquisitionTime",
    "ConvolutionKernel", "PatientID", "ConcatenationUID", "InConcatenationNumber", "InConcatenationTotalNumber",
    "ImagesInAcquisition", "ComplexImageComponent", "DiffusionDirectionality", "InversionTimes", "FlipAngle",
    "RepetitionTime", "KVP", "ASLContext", "ContrastBolusAgentPhase", "AcquisitionDateTime", "ContentTime",
    "SequenceName", "PixelPaddingValue", "PixelPaddingRangeLimit",
)  # fmt: skip
"""The elements that are read: of the hundreds that a header has the others only cost time."""

_PRIVATE_B_VALUES = {
    (0x0019, 0x100C): "SIEMENS MR HEADER",
    (0x0043, 0x1039): "GEMS_PARM_01",
    (0x2001, 0x1003): "Philips Imaging DD 001",
}
"""Where Siemens, GE and Philips put the b-value before there was a public place, and who else must have reserved it."""

_PRIVATE_DIRECTION = (0x0019, 0x100E)
"""Where Siemens puts the direction of the diffusion gradient."""

_GE_COMPONENT = (0x0043, 0x102F)
"""Where GE says whether an image shows magnitude (0), phase (1), the real (2) or the imaginary part (3)."""

_GE_VAS_COLLAPSE_FLAG = (0x0043, 0x1030)
"""Where GE tells the images apart that one series has of each place, such as a field map and its magnitude."""

_GE_CREATOR = "GEMS_PARM_01"
"""Who must have reserved these two."""

MENDED_DIRECTIONS = 1e-4
"""Directions that are farther from unit length, or from a right angle, than this share are made so, and it is told."""

LARGEST_LENGTH_ERROR = 0.05
"""Directions whose length differs from 1 by more are no directions: two decimals make it differ by 0.009 at most."""

LARGEST_COSINE = 0.03
"""Directions with a larger cosine between them are not at right angles; two decimals make it 0.02 at most."""

_CREATORS = [(group, 0x0010) for group, _ in _PRIVATE_B_VALUES]
"""Where a private group says who has reserved it: without that its numbers mean nothing."""


@dataclass(frozen=True)
class Image:
    """One acquired slice as its header describes it; None, or empty, where the header is silent.

    Attributes:
        path, frame: the file, and the index of the frame in an enhanced one (None in a classic one).
        file: the file that it came in: the same, or the archive that it was unpacked from.
        patient, study_uid, series_uid, frame_of_reference, sop_class, sop_uid: identifiers.
        modality: MR or CT.
        number, description, instance: SeriesNumber, SeriesDescription (else ProtocolName), InstanceNumber.
        shape: rows and columns.
        position: centre of the first voxel, millimetres (LPS).
        orientation: direction of the rows and of the columns, six cosines (LPS), of unit length and at right angles.
        cosine_error: the largest error that the rounding of the stated cosines can have made, 0 where they need no
            mending.
        spacing_mm: between rows, and between columns.
        thickness_mm, stated_spacing_mm: SliceThickness and SpacingBetweenSlices.
        grey: PhotometricInterpretation.
        part: of a concatenation: its UID, the number of the file in it, and of how many.
        stated_images: ImagesInAcquisition.
        voxels_at: byte of the file at which the voxels begin; 0 where that is not known.
        rescale: slope and intercept that lead from stored values to the scan's own units.
        among, where_doubled: values of `AMONG` and of `WHERE_DOUBLED`.
        dimensions: DimensionIndexValues of a frame.
        compressed: whether a codec is needed for its voxels.
        computed: whether thinslice computed it.
        problem: why this image cannot be part of a scan; None if it can.
        unpacked: keeps the folder that it was unpacked into; None where the file was no archive.
        padding: the lowest and the highest stored value of pixels that the scanner did not see (PixelPaddingValue and
            PixelPaddingRangeLimit), the former first; None where the header is silent.
    """

    path: Path
    file: Path
    frame: int | None
    patient: str
    study_uid: str
    series_uid: str
    frame_of_reference: str
    sop_class: str
    sop_uid: str
    modality: str
    number: int | None
    description: str
    instance: int | None
    shape: tuple[int, int]
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    cosine_error: float
    spacing_mm: tuple[float, ...] | None
    thickness_mm: float | None
    stated_spacing_mm: float | None
    grey: str
    part: tuple[str, int, int] | None
    stated_images: int | None
    voxels_at: int
    rescale: tuple[float, float]
    among: tuple[str, ...]
    where_doubled: tuple[str, ...]
    dimensions: tuple[str, ...]
    compressed: bool
    computed: bool
    problem: InputRefused | None
    unpacked: object = None
    padding: tuple[int, int] | None = None


@contextmanager
def quiet() -> Iterator[None]:
    """Silences what pydicom warns and logs about the files of others; what matters is in our own refusals."""
    log = logging.getLogger("pydicom")
    before = log.disabled
    log.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = before


def read_dataset(path: Path, raw: BinaryIO | None = None, **options: Any) -> Dataset:
    """Reads a file, which may be open already, by `pydicom.dcmread`; its every failure is a refusal.

    Raises:
        InputRefused: damaged, cut off, or no DICOM at all.
    """
    try:
        with quiet():
            check_deflated(path)
            # Forced: many archives hold files without the preamble that says DICM.
            found = dcmread(raw or path, force=True, **options)
    except (OSError, MemoryError, InputRefused):
        raise
    except Exception as error:  # pydicom raises whatever its parts raise
        raise damaged(path, error) from error
    return found


def is_computed(path: Path) -> bool:
    """Tells whether a file is one of a computed series, as thinslice wrote it."""
    try:
        with quiet():
            return str(read_file_meta_info(path).get("ImplementationClassUID")) == IMPLEMENTATION
    except Exception:  # whatever it is, it is none of ours
        return False


def damaged(path: Path, error: Exception) -> InputRefused:
    """Returns the refusal of a file that cannot be understood."""
    why = one_line(f"{type(error).__name__}: {error}")[:160]
    return InputRefused(
        got=f"a damaged DICOM file ({why})",
        need="the whole file",
        next="copy or export it again",
        place=path,
        code="damaged-dicom",
    )


def read_images(path: Path) -> list[Image]:
    """Returns the slices that a file holds; none for a file that holds no image at all (a report, a directory).

    Raises:
        InputRefused: damaged or cut off.
    """
    private = [*_PRIVATE_B_VALUES, *_CREATORS, _PRIVATE_DIRECTION, _GE_COMPONENT, _GE_VAS_COLLAPSE_FLAG]
    wanted = [*_WANTED, *private]
    with open(path, "rb") as raw:
        found = read_dataset(path, raw, stop_before_pixels=True, specific_tags=wanted)
        # From the voxels on: enough to see that a file is cut off, without reading them.
        rest = path.stat().st_size - raw.tell()
    try:
        with quiet():
            return _images(path, found, rest)
    except (OSError, MemoryError, InputRefused):
        raise
    except Exception as error:  # elements are understood only now, when they are asked for
        raise damaged(path, error) from error


def _images(path: Path, found: Dataset, rest: int) -> list[Image]:
    """Returns the slices of a header; ``rest`` is the number of bytes of the file from its voxels on."""
    kind = str(found.get("SOPClassUID") or found.file_meta.get("MediaStorageSOPClassUID") or "")
    is_scan = kind in CLASSIC or kind in ENHANCED
    if not kind and (found.preamble or b"").startswith(b"\0"):
        raise damaged(path, ValueError("no SOPClassUID"))
    if not is_scan and not found.get("Rows"):
        return []
    if kind not in ENHANCED:
        return [_image(path, None, kind, rest, found, found)]
    shared = find_groups(found, "SharedFunctionalGroupsSequence", 0)
    frames = int(found.get("NumberOfFrames") or 1)
    of_frames = len(found.get("PerFrameFunctionalGroupsSequence") or [])
    # One frame may have all of its facts in the groups that are shared.
    if of_frames != frames and (of_frames or frames > 1):
        raise damaged(path, ValueError(f"{frames} frames, but not one functional group for each"))
    return [
        _image(path, n, kind, rest, found, *find_groups(found, "PerFrameFunctionalGroupsSequence", n), *shared, found)
        for n in range(frames)
    ]


def find_groups(found: Dataset, name: str, index: int) -> list[Dataset]:
    """Returns the contents of the public functional groups of one frame, or of those that are shared."""
    items = found.get(name) or []
    if index >= len(items):
        return []
    # A group may have its facts one sequence deeper, such as the direction of a gradient within MRDiffusionSequence.
    inner = [e.value[0] for e in items[index] if e.VR == "SQ" and not e.tag.is_private and len(e.value)]
    nested = [e.value[0] for group in inner for e in group if e.VR == "SQ" and not e.tag.is_private and len(e.value)]
    return [*inner, *nested]


def _image(path: Path, frame: int | None, kind: str, rest: int, found: Dataset, *places: Dataset) -> Image:
    """Returns one slice; a fact is looked for in one place after the other."""

    def look_up(name: str) -> Any:
        return next((place[name].value for place in places if name in place and place[name].value is not None), None)

    public = [name for name in (*AMONG, *WHERE_DOUBLED) if name != "VasCollapseFlag"]
    facts = {name: _text(look_up(name)) for name in public} | {"VasCollapseFlag": ""}
    # A frame may be of another kind than its file says of itself.
    facts["ImageType"] = _text(look_up("FrameType") or look_up("ImageType")).upper()
    weighting = _number(look_up("DiffusionBValue"))
    facts["DiffusionBValue"] = f"{weighting:g}" if weighting is not None else ""
    if kind == uid.MRImageStorage:
        facts["DiffusionBValue"] = facts["DiffusionBValue"] or _private_b_value(found)
    facts["DiffusionGradientOrientation"] = facts["DiffusionGradientOrientation"] or _text(
        _value(found, _PRIVATE_DIRECTION)
    )
    if kind == uid.MRImageStorage and _text(_value(found, (0x0043, 0x0010))) == _GE_CREATOR:
        facts["VasCollapseFlag"] = _text(_value(found, _GE_VAS_COLLAPSE_FLAG))
    orientation, cosine_error = _straightened(_lengths(look_up("ImageOrientationPatient"), 6))
    stored = (_number(look_up("RescaleSlope")), _number(look_up("RescaleIntercept")))
    return Image(
        path=path,
        file=path,
        frame=frame,
        patient=_text(found.get("PatientID")),
        study_uid=_text(found.get("StudyInstanceUID")),
        series_uid=_text(found.get("SeriesInstanceUID")),
        frame_of_reference=_text(found.get("FrameOfReferenceUID")),
        sop_class=kind,
        sop_uid=_text(found.get("SOPInstanceUID")),
        modality=CLASSIC.get(kind) or ENHANCED.get(kind) or _text(found.get("Modality")),
        number=_whole(found.get("SeriesNumber")),
        description=_text(found.get("SeriesDescription") or found.get("ProtocolName")),
        instance=_whole(found.get("InstanceNumber")),
        shape=(_whole(found.get("Rows")) or 0, _whole(found.get("Columns")) or 0),
        position=_lengths(look_up("ImagePositionPatient"), 3),
        orientation=orientation,
        cosine_error=cosine_error,
        spacing_mm=_lengths(look_up("PixelSpacing"), 2),
        thickness_mm=_length_mm(look_up("SliceThickness")),
        stated_spacing_mm=_length_mm(look_up("SpacingBetweenSlices")),
        grey=_text(found.get("PhotometricInterpretation")),
        part=_part(found),
        stated_images=_whole(found.get("ImagesInAcquisition")),
        voxels_at=max(path.stat().st_size - rest, 0) if rest else 0,
        rescale=(1.0 if stored[0] is None else stored[0], stored[1] or 0.0),
        among=tuple(facts[name] for name in AMONG),
        where_doubled=tuple(facts[name] for name in WHERE_DOUBLED),
        dimensions=_dimensions(look_up("DimensionIndexValues")),
        compressed=_is_compressed(found),
        computed=_is_computed(found),
        problem=_problem(path, kind, facts["ImageType"], rest, found, look_up),
        padding=_padding(found),
    )


def _padding(found: Dataset) -> tuple[int, int] | None:
    """Returns PixelPaddingValue and the other end of the range of such values, as stored; None where it is not said.

    Both are 16 bits with a sign if the voxels have one, but many writers put them down the other way.
    """
    value = _whole(found.get("PixelPaddingValue"))
    if value is None:
        return None
    limit = _whole(found.get("PixelPaddingRangeLimit"))
    is_signed = _whole(found.get("PixelRepresentation")) == 1
    first, last = (_in_16_bits(one, is_signed) for one in (value, value if limit is None else limit))
    return first, last


def _in_16_bits(value: int, is_signed: bool) -> int:
    value %= 2**16
    return value - 2**16 if is_signed and value >= 2**15 else value


def _problem(
    path: Path, kind: str, image_type: str, rest: int, found: Dataset, look_up: Callable[[str], Any]
) -> InputRefused | None:
    """Returns why an image cannot be part of a scan."""
    values = image_type.split("\\")
    if kind in SEGMENTATIONS:
        way = "give the series that it was drawn on, and this file as `labels`"
        return refused("a segmentation (DICOM SEG)", "MR or CT images", way, code="dicom-segmentation")
    if kind not in CLASSIC and kind not in ENHANCED:
        name = uid.UID(kind).name if kind else "an unnamed kind of image"
        return refused(name, "MR or CT images", "leave this series out", code="dicom-not-a-scan")
    colour = _text(found.get("PhotometricInterpretation"))
    if int(found.get("SamplesPerPixel") or 1) != 1 or (colour and not colour.startswith("MONO")):
        way = "choose the series that this one was made from"
        return refused(f"colour images ({colour})", "grey ones", way, code="dicom-colour")
    if "MOSAIC" in values:
        way = "convert them with dcm2niix"
        return refused("mosaics, all slices in one image", "one slice an image", way, code="dicom-mosaic")
    if "LOCALIZER" in values:
        return refused("a localizer", "a stack of slices", "leave it out", code="dicom-localizer")
    if any(value in PROJECTIONS for value in values):
        way = "choose the series that they were made from"
        return refused("projections (MIP)", "slices", way, code="dicom-projection")
    if _shows_phase(kind, values, found, look_up):
        got, need = "images of phase, which jumps where it is wrapped", "images of magnitude"
        return refused(got, need, "enhance those, or unwrap these first", code="dicom-phase")
    if found.get("ModalityLUTSequence"):
        got = "stored values with a look-up table (Modality LUT)"
        return refused(got, "a slope and an intercept", "leave it out", code="dicom-lut")
    return _missing(path, kind, found, look_up) or _wrong_pixels(path, found, rest)


def _shows_phase(kind: str, values: Sequence[str], found: Dataset, look_up: Callable[[str], Any]) -> bool:
    """Tells whether MR images show an angle: between two of them that are wrapped differently nothing can be put."""
    if (CLASSIC | ENHANCED).get(kind) != "MR":
        return False
    if _text(_value(found, (0x0043, 0x0010))) == _GE_CREATOR and _text(_value(found, _GE_COMPONENT)) == "1":
        return True
    return any(value in PHASE_KINDS for value in values[2:4]) or _text(look_up("ComplexImageComponent")) == "PHASE"


def _missing(path: Path, kind: str, found: Dataset, look_up: Callable[[str], Any]) -> InputRefused | None:
    """Returns what the header does not say, or says in a way that cannot be true."""
    again = "export the series again"
    for name, count in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2)):
        if _lengths(look_up(name), count) is None:
            got, need = f"{path.name} without a valid {name}", "to know where its slice lies"
            return refused(got, need, again, code="dicom-missing-element")
    has_directions = _are_at_right_angles(_lengths(look_up("ImageOrientationPatient"), 6))
    if not has_directions or min(_lengths(look_up("PixelSpacing"), 2) or (0,)) <= 0:
        got = f"{path.name} without two directions at right angles, and spacings above zero"
        return refused(got, "both", again, code="dicom-bad-geometry")
    if _number(look_up("RescaleSlope")) == 0:
        return refused(f"{path.name} with a RescaleSlope of zero", "another number", again, code="dicom-bad-rescale")
    if kind in CLASSIC and int(found.get("NumberOfFrames") or 1) != 1:
        got = f"{found.NumberOfFrames} frames in {path.name}, no enhanced image"
        return refused(got, "one slice a file", again, code="dicom-frames")
    return None


def _wrong_pixels(path: Path, found: Dataset, rest: int) -> InputRefused | None:
    """Returns what is wrong where there are no voxels, or too few of them in a file that is not compressed."""
    colour = _text(found.get("PhotometricInterpretation"))
    allocated, stored = int(found.get("BitsAllocated") or 0), int(found.get("BitsStored") or 0)
    whole = found.get("Rows") and found.get("Columns") and colour
    high = found.get("HighBit")
    if allocated not in (8, 16) or not 0 < stored <= allocated or high not in (None, stored - 1) or not whole:
        got = (
            f"{path.name} with {found.get('Rows')} x {found.get('Columns')} voxels of {stored}/{allocated} bits, "
            f"high bit {high}, {colour or 'no PhotometricInterpretation'}"
        )
        return refused(got, "grey ones of 8 or 16 bits, none above", "export it again", code="dicom-bits")
    syntax = _syntax(found)
    if not syntax.is_transfer_syntax:
        got = f"{path.name} in an unknown transfer syntax ({syntax})"
        return refused(got, "a known one", "export it uncompressed", code="dicom-transfer-syntax")
    if _is_compressed(found) or syntax.is_deflated:
        return None
    need = int(found.Rows) * int(found.Columns) * int(found.get("NumberOfFrames") or 1) * allocated // 8
    if rest < need:
        got = f"{path.name} with {rest:,} bytes of voxels"
        return refused(got, f"{need:,}, as its header says", "copy or export it again", code="cut-off")
    return None


def _part(found: Dataset) -> tuple[str, int, int] | None:
    """Returns which part of a concatenation this file is."""
    name, number, total = (
        found.get(fact) for fact in ("ConcatenationUID", "InConcatenationNumber", "InConcatenationTotalNumber")
    )
    return (str(name), int(number), int(total or 0)) if name and number else None


def _syntax(found: Dataset) -> uid.UID:
    return uid.UID(found.file_meta.get("TransferSyntaxUID") or uid.ImplicitVRLittleEndian)


def _is_compressed(found: Dataset) -> bool:
    """Tells whether its frames need a codec; a deflated file is unpacked as a whole."""
    syntax = _syntax(found)
    return syntax.is_transfer_syntax and syntax.is_encapsulated


def _is_computed(found: Dataset) -> bool:
    return any(_text(item.get("Manufacturer")) == MAKER for item in found.get("ContributingEquipmentSequence") or [])


def _are_at_right_angles(orientation: tuple[float, ...] | None) -> bool:
    """Tells whether six numbers are two directions, as far as rounding and carelessness leave them."""
    axes = np.reshape(orientation or np.zeros(6), (2, 3))
    lengths = np.linalg.norm(axes, axis=1)
    if np.abs(lengths - 1).max() > LARGEST_LENGTH_ERROR:
        return False
    return bool(abs(axes[0] @ axes[1]) / lengths.prod() <= LARGEST_COSINE)


def _straightened(orientation: tuple[float, ...] | None) -> tuple[tuple[float, ...] | None, float]:
    """Returns directions of unit length at right angles, and how far off a stated cosine may be for its rounding."""
    if orientation is None or not _are_at_right_angles(orientation):
        return orientation, 0.0
    axes = np.reshape(orientation, (2, 3))
    if np.abs(axes @ axes.T - np.eye(2)).max() <= MENDED_DIRECTIONS:
        return orientation, 0.0
    # The nearest ones (Schoenemann 1966): neither of the two is believed more than the other.
    left, _, right = np.linalg.svd(axes, full_matrices=False)
    decimals = next((n for n in range(7) if np.allclose(np.round(axes, n), axes, rtol=0, atol=1e-9)), 7)
    return tuple(float(cosine) for cosine in (left @ right).ravel()), 0.5 * 10.0**-decimals


def _dimensions(value: Any) -> tuple[str, ...]:
    """Returns the indices of a frame along the dimensions of its file."""
    if value is None:
        return ()
    return tuple(str(index) for index in (value if hasattr(value, "__iter__") else [value]))


def _private_b_value(found: Dataset) -> str:
    """Returns what the maker calls the b-value; GE adds a multiple of a million or a billion to it."""
    for tag, creator in _PRIVATE_B_VALUES.items():
        if _text(_value(found, (tag[0], 0x0010))) != creator:
            continue
        value = _value(found, tag)
        # The elements of GE are four numbers, of which the first counts; others are bytes of text.
        first = value[0] if isinstance(value, list | tuple) or hasattr(value, "insert") else value
        number = _number(first.decode("ascii", "replace").strip("\0 ") if isinstance(first, bytes) else first)
        if number is not None:
            return f"{number % 100_000:g}"
    return ""


def _value(found: Dataset, tag: tuple[int, int]) -> Any:
    return found[tag].value if tag in found else None


def printable(text: str) -> str:
    """Returns one line without what a terminal would obey."""
    line = " ".join(text.split())
    return "".join(character if character.isprintable() else "?" for character in line)


def _text(value: Any) -> str:
    """Returns one printable line; the parts of several values joined as DICOM joins them."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        value = value.hex()
    parts = (
        value
        if not isinstance(value, str) and hasattr(value, "__iter__") and not hasattr(value, "family_name")
        else [value]
    )
    return printable("\\".join(str(part) for part in parts))


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if np.isfinite(number) else None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and abs(number) < 2**31 else None


def _length_mm(value: Any) -> float | None:
    number = _number(value)
    return number if number is not None and 0 < number < 1e3 else None


def _lengths(value: Any, count: int) -> tuple[float, ...] | None:
    """Returns so many finite numbers, else None."""
    if value is None or isinstance(value, str) or not hasattr(value, "__len__") or len(value) != count:
        return None
    numbers = [_number(v) for v in value]
    found = tuple(n for n in numbers if n is not None and abs(n) < 1e7)
    return found if len(found) == count else None
