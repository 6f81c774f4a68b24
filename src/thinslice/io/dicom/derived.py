"""A thin Volume -> a new series beside the one it was computed from: same patient, study and frame of reference.

Classic MR or CT images, one a file, uncompressed. What all acquired slices say alike is kept, what they say one by one
is not; private elements are dropped. The same scan, plan and model give the same files, byte for byte.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import uid
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as Items
from pydicom.tag import BaseTag
from pydicom.valuerep import DSfloat

from thinslice.errors import ThinsliceError
from thinslice.io.dicom.headers import AMONG, ENHANCED, IMPLEMENTATION, MAKER, Image, quiet, read_dataset
from thinslice.io.dicom.identity import declare_anonymous, remove_identity, replacement_uid, uid_from
from thinslice.io.dicom.series import Series
from thinslice.io.refusals import one_line, unwritable
from thinslice.plan import Plan
from thinslice.volume import Volume, fingerprint

logger = logging.getLogger(__name__)

REACH = 3
"""An image refers to acquired slices no farther than so many spacings: what is farther adds next to nothing."""

LOSSY = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless, uid.JPEG2000, uid.HTJ2K)
"""Transfer syntaxes that lose something, or may."""

B_VALUE = AMONG.index("DiffusionBValue")
"""Where the b-value is among the facts that tell stacks apart."""

LONGEST_LO = 64
"""Characters in a long string (LO)."""

LARGEST_STORED = 65_535
"""The largest whole number that 16 bits without a sign hold."""

LARGEST_SIGNED = 32_767
"""The largest that 16 bits with a sign hold."""

SMALLEST_SIGNED = -32_768
"""The smallest that these hold."""

MADE_ANEW = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "InstanceNumber",
    "ImageType", "ImagePositionPatient", "ImageOrientationPatient", "SliceLocation", "SliceThickness",
    "SpacingBetweenSlices", "PixelSpacing", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "SamplesPerPixel", "PixelPaddingValue", "RescaleSlope", "RescaleIntercept", "WindowCenter",
    "WindowWidth", "WindowCenterWidthExplanation", "LossyImageCompression", "DerivationDescription",
    "DerivationCodeSequence", "SourceImageSequence", "ContributingEquipmentSequence", "ImageComments",
)  # fmt: skip
"""What is said of each computed slice, whatever the acquired ones say."""

DROPPED = (
    "PixelData", "NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "DimensionIndexSequence", "DimensionOrganizationSequence", "DimensionOrganizationType", "ConcatenationUID",
    "InConcatenationNumber", "InConcatenationTotalNumber", "SOPInstanceUIDOfConcatenationSource",
    "ConcatenationFrameOffsetNumber", "RepresentativeFrameNumber", "StackID", "InStackPositionNumber",
    "SmallestImagePixelValue", "LargestImagePixelValue", "SmallestPixelValueInSeries", "LargestPixelValueInSeries",
    "SmallestImagePixelValueInPlane", "LargestImagePixelValueInPlane", "PixelPaddingRangeLimit", "IconImageSequence",
    "InstanceCreationDate", "InstanceCreationTime", "InstanceCreatorUID", "ImagesInAcquisition", "NumberOfSlices",
    "DigitalSignaturesSequence", "MACParametersSequence", "EncryptedAttributesSequence", "DataSetTrailingPadding",
    "RealWorldValueMappingSequence", "PixelDataProviderURL", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
    "ReferencedImageEvidenceSequence", "SourceImageEvidenceSequence", "BulkMotionCorrectionTechnique",
    "VolumetricProperties", "VolumeBasedCalculationTechnique", "PixelPresentation", "ContentQualification",
    "PixelMeasuresSequence", "FrameType", "QualityControlImage", "AcquisitionDuration",
)  # fmt: skip
"""What holds of acquired slices, their frames or their bytes alone."""

PIXEL_GROUPS = (0x5000, 0x6000)
"""Curves and overlays: drawn on the acquired slices."""

EMPTY_IF_SILENT = {
    "": (
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
        "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator", "Manufacturer",
    ),
    "MR": ("ScanOptions", "MRAcquisitionType", "EchoTime", "EchoTrainLength", "RepetitionTime"),
    "CT": ("KVP", "AcquisitionNumber"),
}  # fmt: skip
"""Attributes of type 2: there, but without a value where the slices disagree or say nothing."""

OF_ALL = (
    "SpecificCharacterSet", "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID",
    "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "FrameOfReferenceUID", "Modality",
    "PositionReferenceIndicator", "PatientPosition", "Manufacturer", "PhotometricInterpretation", "ScanningSequence",
    "SequenceVariant", "MRAcquisitionType", "Laterality",
)  # fmt: skip
"""What a series has one of: where slices disagree (a name that was corrected), the first one's is kept."""

FROM_GROUPS = {
    "EffectiveEchoTime": "EchoTime",
    "RepetitionTime": "RepetitionTime",
    "EchoTrainLength": "EchoTrainLength",
    "FlipAngle": "FlipAngle",
    "PixelBandwidth": "PixelBandwidth",
    "KVP": "KVP",
    "FrameLaterality": "Laterality",
    "RescaleType": "RescaleType",
}
"""Functional groups of an enhanced image, and what the classic one calls them."""

_Code = tuple[str, str]
RESAMPLED: _Code = ("113085", "Spatial resampling")
"""How the new images were derived (PS3.16, CID 7203)."""

SOURCE: _Code = ("121322", "Source image for image processing operation")
"""Why an image refers to acquired ones (CID 7202)."""

MODIFIED: _Code = ("109103", "Modifying Equipment")
"""What this program was to the images (CID 7005)."""


@dataclass(frozen=True)
class Storage:
    """How voxels are put into 16 bits: voxel = stored * slope + intercept."""

    slope: float
    intercept: float
    signed: bool
    bits: int


@dataclass(frozen=True)
class Stored:
    """Header of a volume whose voxels are those that a file of a series will hold."""

    series: Series
    storage: Storage


def as_stored(volume: Volume) -> Volume:
    """Returns the volume with the values that `images` will store, and notes on what had to change for that.

    The rescale of the acquired slices is kept where it is one and the same and its 16 bits hold the answer; else it is
    made wide enough. The voxels, which are spent on it, are put on its steps.
    """
    series = volume.header
    assert isinstance(series, Series)
    storage, note = _storage(volume.voxels, series)
    if volume.voxels.dtype.kind == "f" or note:
        voxels = volume.voxels if volume.voxels.dtype.kind == "f" else volume.voxels.astype(np.float32)
        for index in range(voxels.shape[2]):
            voxels[..., index] = _to_stored(voxels[..., index], storage) * storage.slope + storage.intercept
        volume = replace(volume, voxels=voxels)
    return replace(volume, header=Stored(series, storage), notes=(*volume.notes, *note))


def _storage(voxels: np.ndarray, series: Series) -> tuple[Storage, tuple[str, ...]]:
    """Returns how voxels are stored: with the acquired slices' rescale if that holds them all, else a wider one."""
    low, high = float(voxels.min()), float(voxels.max())
    rescales = {image.rescale for image in series.images}
    why = f"the {len(series.images)} slices have {len(rescales)} different rescales"
    if len(rescales) == 1:
        slope, intercept = next(iter(rescales))
        ends = sorted(float(end) for end in np.rint((np.array([low, high]) - intercept) / slope))
        if ends[0] >= SMALLEST_SIGNED and ends[1] <= (LARGEST_STORED if ends[0] >= 0 else LARGEST_SIGNED):
            signed = ends[0] < 0
            return Storage(slope, intercept, signed, 16 if signed else max(12, int(ends[1]).bit_length())), ()
        why = "the rescale of the slices would clip the answer"
    slope = (high - low) / (LARGEST_STORED - 1) or 1.0
    return Storage(slope, low, False, 16), (f"{why}: stored with one of {slope:.4g} per step and {low:.6g}",)


def _to_stored(values: np.ndarray, storage: Storage) -> np.ndarray:
    """Returns float64 whole numbers within the 16 bits."""
    ends = (SMALLEST_SIGNED, LARGEST_SIGNED) if storage.signed else (0, LARGEST_STORED)
    return np.rint((values.astype(np.float64) - storage.intercept) / storage.slope).clip(*ends)


# ---- the new series


def images(thin: Volume, thick: Volume, plan: Plan, agreement: str, anonymise: bool = False) -> Iterator[Dataset]:
    """Yields the slices of a new series, in order, to be written with `save`.

    Args:
        thin: the answer, as `as_stored` gives it back.
        thick: the scan that it was computed from, as `read_series` gives it back.
        plan: the plan that led from one to the other.
        agreement: a sentence on how well it agrees with the acquired slices.
        anonymise: without the patient's identity, see `thinslice.io.dicom.identity`.

    Raises:
        OutputRefused: what the acquired slices say cannot be written.
    """
    stored = thin.header
    assert isinstance(stored, Stored)
    series = stored.series
    logger.debug("%d slices of a new series, stored as %s", plan.n_thin, stored.storage)
    with quiet(), _no_surprise():
        headers = _headers(series)
        shared = _shared(headers, series)
        windows = [_window(header) for header in headers]
        key = _key(thick, plan, anonymise)
        if anonymise:
            remove_identity(shared)
            declare_anonymous(shared)
        _describe(shared, series, plan, stored.storage, agreement, key, anonymise)
        # Each new slice refers to, and is shown as, the acquired ones nearest to it.
        nearest = np.clip(np.rint(plan.positions()), 0, plan.n_thick - 1).astype(int)
        for index in range(plan.n_thin):
            near = series.images[max(nearest[index] - REACH, 0) : nearest[index] + REACH + 1]
            sources = _references(near, anonymise)
            yield _image(shared, thin, plan, index, windows[nearest[index]], sources, key)


def save(image: Dataset, path: Path) -> None:
    """Writes one image of `images`.

    Raises:
        OutputRefused: an element that was kept cannot be written.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = image.SOPClassUID
    meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    meta.ImplementationClassUID = uid.UID(IMPLEMENTATION)
    # A short string (SH) has 16 characters at most.
    meta.ImplementationVersionName = f"THINSLICE_{version('thinslice')}"[:16]
    image.file_meta = meta
    with quiet(), _no_surprise():
        image.save_as(path, enforce_file_format=True, overwrite=True)


@contextmanager
def _no_surprise() -> Iterator[None]:
    """Turns whatever pydicom says about elements of others into a refusal."""
    try:
        yield
    except (ThinsliceError, OSError, MemoryError):
        raise
    except Exception as error:
        got = f"a header that cannot be written again ({one_line(f'{type(error).__name__}: {error}')[:160]})"
        raise unwritable(got, "a valid one", "write NIfTI (thin.nii.gz)", code="dicom-header-unwritable") from error


def _headers(series: Series) -> list[Dataset]:
    """Returns the whole header of each acquired slice, without voxels and private elements."""
    files: dict[Path, Dataset] = {}
    found = []
    for image in series.images:
        if image.path not in files:
            files[image.path] = read_dataset(image.path, stop_before_pixels=True)
        header = files[image.path]
        found.append(header if image.frame is None else _of_frame(header, image.frame))
    return found


def _of_frame(header: Dataset, frame: int) -> Dataset:
    """Returns an enhanced image's header with what its functional groups say of one frame, as a classic image does."""
    places = [header]
    for name, index in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", frame)):
        items = header.get(name) or []
        if index < len(items):
            places += [e.value[0] for e in items[index] if e.VR == "SQ" and not e.tag.is_private and len(e.value)]
    flat = Dataset()
    flat.file_meta = header.file_meta
    flat.update({tag: header.get_item(tag) for tag in header.keys()})  # noqa: SIM118 - a Dataset iterates over elements
    for place in places:
        for name, classic in FROM_GROUPS.items():
            if place.get(name) is not None:
                setattr(flat, classic, place[name].value)
        for name in ("WindowCenter", "WindowWidth"):
            if place.get(name) is not None:
                setattr(flat, name, place[name].value)
    return flat


def _shared(headers: Sequence[Dataset], series: Series) -> Dataset:
    """Returns what all slices say alike, but for what is made anew and what does not hold of computed slices.

    What differs from slice to slice, such as a trigger time, would be wrong of slices between them. Of what a series
    has one of (`OF_ALL`), such as the patient's name, the first slice's is kept even where a later one was corrected.
    What the standard requires, but may be empty (type 2), is there without a value where the slices are silent.
    """
    never = {tag_for_keyword(name) for name in (*MADE_ANEW, *DROPPED)}
    of_all = {tag_for_keyword(name) for name in OF_ALL}
    shared = Dataset()
    for tag in headers[0].keys():  # noqa: SIM118
        if tag in never or tag.is_private or tag.group in (0x0002, 0x7FE0) or tag.group & 0xFF00 in PIXEL_GROUPS:
            continue
        if tag in of_all or all(tag in other and _same(headers[0], other, tag) for other in headers[1:]):
            _add_if_readable(shared, headers[0], tag)
    modality = series.images[0].modality
    for name in (*EMPTY_IF_SILENT[""], *EMPTY_IF_SILENT[modality]):
        if name not in shared:
            setattr(shared, name, None)
    # An enhanced image may say B or U, which a classic one may not.
    if series.images[0].sop_class in ENHANCED and shared.get("Laterality") not in ("L", "R"):
        shared.Laterality = ""
    # The stack's b-value, which only a private element may have said.
    if series.images[0].among[B_VALUE] and "DiffusionBValue" not in shared and modality == "MR":
        shared.DiffusionBValue = float(series.images[0].among[B_VALUE])
    if modality == "MR" and series.images[0].sop_class in ENHANCED:
        shared.ScanningSequence, shared.SequenceVariant = _sequence(headers[0]), "NONE"
    if any(_is_lossy(header) for header in headers):
        shared.LossyImageCompression = "01"
    return shared


def _add_if_readable(shared: Dataset, header: Dataset, tag: BaseTag) -> None:
    """Adds an element without anything private within it; one that is damaged is left out."""
    with suppress(Exception):  # pydicom raises whatever its parts raise
        element = header[tag]
        if element.VR == "SQ":
            for item in element.value:
                item.remove_private_tags()
        str(element.value)
        shared.add(element)


def _same(one: Dataset, other: Dataset, tag: BaseTag) -> bool:
    """Tells whether two headers say the same, each in its own encoding; what cannot be understood is never the same."""
    first, second = one.get_item(tag), other.get_item(tag)
    # Most are equal byte for byte: only the others need to be understood, which for a damaged one would fail.
    if isinstance(first, RawDataElement) and isinstance(second, RawDataElement):
        same_order = first.is_little_endian == second.is_little_endian
        if same_order and first[1:4] == second[1:4]:
            return True
    with suppress(Exception):  # as above
        return bool(one[tag].value == other[tag].value)
    return False


def _is_lossy(header: Dataset) -> bool:
    """As the header says, or else the way in which it was compressed."""
    stated = str(header.get("LossyImageCompression") or "")
    return stated == "01" or (stated != "00" and header.file_meta.get("TransferSyntaxUID") in LOSSY)


def _sequence(header: Dataset) -> str:
    """Returns the ScanningSequence of an enhanced image: spin or gradient echo, else research mode."""
    return {"SPIN": "SE", "GRADIENT": "GR"}.get(str(header.get("EchoPulseSequence", "")), "RM")


def _window(header: Dataset) -> dict[str, Any]:
    """Returns the numbers of the display window, as they are; nothing where they are none."""
    found: dict[str, Any] = {}
    for name in ("WindowCenter", "WindowWidth"):
        with suppress(Exception):  # as above
            value = header[name].value
            numbers = [float(v) for v in (value if isinstance(value, MultiValue) else [value])]
            found[name] = [_decimal(number) for number in numbers if np.isfinite(number)]
    return found if len(found) == 2 and all(found.values()) else {}


def _key(thick: Volume, plan: Plan, hidden: bool) -> str:
    """Returns what the new identifiers are made of: the scan, its images, every decision, model and program."""
    series = thick.header
    assert isinstance(series, Series)
    # Versions and notes may change with an update of some package; the slices do not.
    decisions = {name: value for name, value in asdict(plan).items() if name not in ("notes", "versions")}
    whence = [(image.sop_uid, image.frame) for image in series.images]
    return repr(
        (
            fingerprint(thick),
            whence,
            series.index,
            series.distinction,
            sorted(decisions.items()),
            version("thinslice"),
            hidden,
        )
    )


def _code(code: _Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code[0], "DCM", code[1]
    return item


def _references(images: Iterable[Image], anonymise: bool) -> list[Dataset]:
    """Returns one reference for each file, with all of its frames that are meant."""
    files: dict[tuple[str, str], list[int]] = {}
    for image in images:
        name = replacement_uid(image.sop_uid) if anonymise else image.sop_uid
        frames = files.setdefault((image.sop_class, name), [])
        if image.frame is not None:
            frames.append(image.frame + 1)
    return [_reference(kind, name, frames) for (kind, name), frames in files.items()]


def _reference(sop_class: str, sop_uid: str, frames: list[int]) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_uid
    if frames:
        item.ReferencedFrameNumber = sorted(frames)
    item.PurposeOfReferenceCodeSequence = Items([_code(SOURCE)])
    return item


def _describe(
    shared: Dataset,
    series: Series,
    plan: Plan,
    storage: Storage,
    agreement: str,
    key: str,
    anonymise: bool,
) -> None:
    """Adds what is the same for all slices of the new series."""
    image = series.images[0]
    program = f"{MAKER} {version('thinslice')}"
    model = plan.model + (f" (sha256 {plan.model_sha256})" if plan.model_sha256 else "")
    spacing_mm = plan.spacing_thin_mm[plan.axis]
    shared.SOPClassUID = uid.MRImageStorage if image.modality == "MR" else uid.CTImageStorage
    shared.Modality = image.modality
    shared.ImageType = _image_type(series)
    shared.SeriesInstanceUID = uid_from(repr((key,)).encode())
    shared.SeriesNumber = _series_number(image.number or 0, series.index)
    shared.SeriesDescription = _description(series, f"{spacing_mm:.3g} mm COMPUTED slices ({MAKER})", anonymise)
    shared.ImageComments = (
        f"Computed slices, not acquired ones: {program}, model {plan.model}. Not for diagnosis alone."
    )
    shared.DerivationDescription = (
        f"{plan.n_thin} slices {spacing_mm:.4g} mm apart computed by {program} from {plan.n_thick} acquired ones "
        f"{plan.spacing_thick_mm[plan.axis]:.4g} mm apart and {plan.thickness_mm:.4g} mm thick "
        f"({plan.profile} profile), model {model}. {agreement}"
    )[:1024]
    shared.DerivationCodeSequence = Items([_code(RESAMPLED)])
    shared.ContributingEquipmentSequence = Items([_equipment(program, model)])
    shared.SamplesPerPixel = 1
    shared.BitsAllocated, shared.BitsStored, shared.HighBit = 16, storage.bits, storage.bits - 1
    shared.PixelRepresentation = int(storage.signed)
    if image.modality == "CT" or storage.slope != 1 or storage.intercept != 0:
        shared.RescaleSlope, shared.RescaleIntercept = _decimal(storage.slope), _decimal(storage.intercept)
        shared.setdefault("RescaleType", "HU" if image.modality == "CT" else "US")
    rows, columns = plan.shape_thin[1], plan.shape_thin[0]
    shared.Rows, shared.Columns = rows, columns
    shared.PixelSpacing = [_decimal(mm / plan.in_plane) for mm in image.spacing_mm or ()]
    shared.ImageOrientationPatient = [_decimal(cosine) for cosine in image.orientation or ()]
    shared.SliceThickness = _decimal(spacing_mm)
    shared.SpacingBetweenSlices = _decimal(spacing_mm)


def _description(series: Series, what: str, anonymise: bool) -> str:
    """Returns the source's description, what tells the stack apart, and what was done, within 64 characters."""
    distinction = series.distinction[:20] if not anonymise else ""
    room = LONGEST_LO - len(what) - len(distinction) - 1
    named = f"{series.images[0].description[:room].strip()}{distinction} " if not anonymise else ""
    return f"{named.strip(' ,')} {what}".strip()


def _series_number(source: int, index: int) -> int:
    """Returns a number after all others of the study, and recognisable, as far as the 31 bits of an IS go."""
    number = source * 1000 + index + 1
    return number if abs(number) < 2**31 else index + 1


def _image_type(series: Series) -> list[str]:
    """Returns DERIVED, SECONDARY, what kind of image the source was, and what was done to it."""
    source = series.images[0].among[0].split("\\")
    kind = [value.strip() for value in source[2:3] if value.strip()]
    if series.images[0].modality == "CT":
        kind = ["AXIAL"]
    return ["DERIVED", "SECONDARY", *(kind or ["OTHER"]), "RESAMPLED"]


def _equipment(program: str, model: str) -> Dataset:
    item = Dataset()
    item.Manufacturer = MAKER
    item.ManufacturerModelName = MAKER
    item.SoftwareVersions = program
    item.ContributionDescription = f"computed the slices between acquired ones with model {model}"[:1024]
    item.PurposeOfReferenceCodeSequence = Items([_code(MODIFIED)])
    return item


def _decimal(value: float) -> DSfloat:
    """Returns a decimal string of at most 16 characters, as many digits as fit."""
    return DSfloat(float(value), auto_format=True)


def _counts_down(series: Series) -> bool:
    """Tells whether the images' numbers fall along the array, as they do where a scanner counts from the head down."""
    numbers = [image.instance for image in series.images if image.frame is None and image.instance is not None]
    return len(numbers) == len(series.images) and numbers[0] > numbers[-1]


def _image(
    shared: Dataset, thin: Volume, plan: Plan, index: int, window: dict[str, Any], sources: list[Dataset], key: str
) -> Dataset:
    """Returns one slice; the index is along the array's last axis."""
    stored = thin.header
    assert isinstance(stored, Stored)
    image = Dataset()
    image.update(shared)
    image.SOPInstanceUID = uid_from(repr((key, index)).encode())
    image.InstanceNumber = plan.n_thin - index if _counts_down(stored.series) else index + 1
    corner = thin.affine @ [0, thin.voxels.shape[1] - 1, index, 1]  # the first row is the last of the array
    position = corner[:3] * [-1, -1, 1]
    image.ImagePositionPatient = [_decimal(mm) for mm in position]
    along_row, along_column = np.reshape(stored.series.images[0].orientation or (), (2, 3))
    image.SliceLocation = _decimal(float(np.cross(along_row, along_column) @ position))
    image.SourceImageSequence = Items(sources)
    for name, value in window.items():
        setattr(image, name, value)
    # Rows run from the last to the first in the array, see `read_series`.
    values = _to_stored(thin.voxels[:, ::-1, index].T, stored.storage)
    image.PixelData = values.astype("<i2" if stored.storage.signed else "<u2").tobytes()
    image["PixelData"].VR = "OW"
    return image
