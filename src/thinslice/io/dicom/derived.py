"""A thin Volume -> a new series beside the one it was computed from: same patient, study and frame of reference.

Classic MR or CT images, one a file, uncompressed. What all acquired slices say alike is kept, what they say one by one
is not; private elements are dropped. The same scan, plan and model give the same files, byte for byte. What becomes of
several series is written with the same functions, see `thinslice.io.dicom.combined`.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

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

LONGEST_ST = 1024
"""Characters in a short text (ST)."""

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

STUDY_FACTS = ("PatientID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber")
"""What a study is known by where it has no identifier."""

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
class Layout:
    """How the images of a new series lie, in the words of their headers.

    Attributes:
        orientation: direction of the rows and of the columns, six cosines (LPS).
        pixel_mm: between rows, and between columns.
        spacing_mm: between slices, whose normal is the cross product of the two directions.
    """

    orientation: tuple[float, ...]
    pixel_mm: tuple[float, ...]
    spacing_mm: float


@dataclass(frozen=True)
class Account:
    """What a new series says of how it came to be.

    Attributes:
        key: what its identifiers are made of: all that decides what its voxels are.
        number: SeriesNumber.
        description: SeriesDescription, at most `LONGEST_LO` characters.
        step: what was done in one word, the last value of ImageType.
        comments: ImageComments.
        derivation: DerivationDescription; what is beyond `LONGEST_ST` characters is cut off.
        contribution: what this program did, cut off likewise.
    """

    key: str
    number: int
    description: str
    step: str
    comments: str
    derivation: str
    contribution: str


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
    # Whole numbers are on the steps of a rescale by one already.
    if volume.voxels.dtype.kind == "f" or note or storage.slope != 1:
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
    with quiet(), no_surprise():
        headers = read_headers(series)
        account = _account(thick, plan, agreement, anonymise)
        first = series.images[0]
        pixel_mm = tuple(mm / plan.in_plane for mm in first.spacing_mm or ())
        layout = Layout(first.orientation or (), pixel_mm, plan.spacing_thin_mm[plan.axis])
        shared = shared_header(headers, series)
        describe(shared, thin, layout, account, anonymise)
        if plan.offsets_px is not None and "GantryDetectorTilt" in shared:
            del shared.GantryDetectorTilt  # whoever reads it would straighten once more
        windows = [window_of(header) for header in headers]
        is_downwards = counts_down(series)
        # Each new slice refers to, and is shown as, the acquired ones nearest to it.
        nearest = np.clip(np.rint(plan.acquired_positions()), 0, plan.n_acquired - 1).astype(int)
        for index in range(plan.n_thin):
            near = series.images[max(nearest[index] - REACH, 0) : nearest[index] + REACH + 1]
            image = image_at(shared, thin, layout, index, account.key)
            image.InstanceNumber = plan.n_thin - index if is_downwards else index + 1
            if sources := references(near, anonymise):
                image.SourceImageSequence = Items(sources)
            image.update(windows[nearest[index]])
            yield image


def _account(thick: Volume, plan: Plan, agreement: str, anonymise: bool) -> Account:
    """Returns what is said of the slices of one scan, made thin; see `images`."""
    series = thick.header
    assert isinstance(series, Series)
    program = program_in_words()
    model = plan.model + (f" (sha256 {plan.model_sha256})" if plan.model_sha256 else "")
    spacing_mm = plan.spacing_thin_mm[plan.axis]
    named = series.images[0].description
    return Account(
        key=_key(thick, plan, anonymise),
        number=series_number(series.images[0].number or 0, series.index),
        description=series_description(
            named, series.distinction, f"{spacing_mm:.3g} mm COMPUTED slices ({MAKER})", anonymise
        ),
        step="RESAMPLED",
        comments=f"Computed slices, not acquired ones: {program}, model {plan.model}. Not for diagnosis alone.",
        derivation=(
            f"{plan.n_thin} slices {spacing_mm:.4g} mm apart computed by {program} from {plan.n_acquired} acquired "
            f"ones {plan.spacing_thick_mm[plan.axis]:.4g} mm apart and {plan.thickness_mm:.4g} mm thick "
            f"({plan.profile} profile), model {model}. {agreement}"
        ),
        contribution=f"computed the slices between acquired ones with model {model}",
    )


def program_in_words() -> str:
    """Returns the name and the version of this program."""
    return f"{MAKER} {version('thinslice')}"


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
    with quiet(), no_surprise():
        image.save_as(path, enforce_file_format=True, overwrite=True)


@contextmanager
def no_surprise() -> Iterator[None]:
    """Turns whatever pydicom says about elements of others into a refusal."""
    try:
        yield
    except (ThinsliceError, OSError, MemoryError):
        raise
    except Exception as error:
        got = f"a header that cannot be written again ({one_line(f'{type(error).__name__}: {error}')[:160]})"
        raise unwritable(got, "a valid one", "write NIfTI (thin.nii.gz)", code="dicom-header-unwritable") from error


def read_headers(series: Series) -> list[Dataset]:
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


def shared_header(headers: Sequence[Dataset], series: Series, of_all: Collection[str] = OF_ALL) -> Dataset:
    """Returns what all slices say alike, but for what is made anew and what does not hold of computed slices.

    What differs from slice to slice, such as a trigger time, would be wrong of slices between them. Of what a series
    has one of (`OF_ALL`), such as the patient's name, the first slice's is kept even where a later one was corrected.
    What the standard requires, but may be empty (type 2), is there without a value where the slices are silent.
    """
    never = {tag_for_keyword(name) for name in (*MADE_ANEW, *DROPPED)}
    kept = {tag_for_keyword(name) for name in of_all}
    shared = Dataset()
    for tag in headers[0].keys():  # noqa: SIM118
        if tag in never or tag.is_private or tag.group in (0x0002, 0x7FE0) or tag.group & 0xFF00 in PIXEL_GROUPS:
            continue
        if tag in kept or all(tag in other and _same(headers[0], other, tag) for other in headers[1:]):
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


def window_of(header: Dataset) -> Dataset:
    """Returns the elements of the display window, as they are; none where they are no numbers."""
    found = Dataset()
    for name in ("WindowCenter", "WindowWidth"):
        with suppress(Exception):  # as above
            value = header[name].value
            numbers = [float(v) for v in (value if isinstance(value, MultiValue) else [value])]
            if finite := [decimal_string(number) for number in numbers if np.isfinite(number)]:
                setattr(found, name, finite)
    return found if len(found) == 2 else Dataset()


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


def references(images: Iterable[Image], anonymise: bool) -> list[Dataset]:
    """Returns one reference for each file, with all of its frames that are meant."""
    files: dict[tuple[str, str], list[int]] = {}
    for image in images:
        if not image.sop_uid:
            continue  # nothing that could be referred to
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


def describe(shared: Dataset, volume: Volume, layout: Layout, account: Account, anonymise: bool) -> None:
    """Adds what is the same for all images of a new series to what it keeps of the acquired ones.

    Args:
        shared: see `shared_header`; without the patient's identity afterwards, if asked for.
        volume: the voxels as they are stored, see `as_stored`.
        layout: how its images lie.
        account: what they say of how they came to be.
        anonymise: without the patient's identity.
    """
    stored = volume.header
    assert isinstance(stored, Stored)
    image, storage = stored.series.images[0], stored.storage
    complete_identifiers(shared, stored.series.images, account.key)
    if anonymise:
        remove_identity(shared)
        declare_anonymous(shared)
    shared.SOPClassUID = uid.MRImageStorage if image.modality == "MR" else uid.CTImageStorage
    shared.Modality = image.modality
    shared.ImageType = _image_type(stored.series, account.step)
    shared.SeriesInstanceUID = uid_from(repr((account.key,)).encode())
    shared.SeriesNumber = account.number
    shared.SeriesDescription = account.description
    shared.ImageComments = account.comments
    shared.DerivationDescription = account.derivation[:LONGEST_ST]
    shared.DerivationCodeSequence = Items([_code(RESAMPLED)])
    shared.ContributingEquipmentSequence = Items([_equipment(account.contribution)])
    shared.SamplesPerPixel = 1
    shared.BitsAllocated, shared.BitsStored, shared.HighBit = 16, storage.bits, storage.bits - 1
    shared.PixelRepresentation = int(storage.signed)
    if image.modality == "CT" or storage.slope != 1 or storage.intercept != 0:
        shared.RescaleSlope, shared.RescaleIntercept = decimal_string(storage.slope), decimal_string(storage.intercept)
        shared.setdefault("RescaleType", "HU" if image.modality == "CT" else "US")
    if volume.padding is not None:
        _describe_padding(shared, volume.padding, storage)
    shared.Columns, shared.Rows = volume.shape[:2]
    shared.PixelSpacing = [decimal_string(mm) for mm in layout.pixel_mm]
    shared.ImageOrientationPatient = [decimal_string(cosine) for cosine in layout.orientation]
    shared.SliceThickness = decimal_string(layout.spacing_mm)
    shared.SpacingBetweenSlices = decimal_string(layout.spacing_mm)


def complete_identifiers(shared: Dataset, images: Sequence[Image], key: str) -> None:
    """Gives the header of a new series the identifiers of study and space that the acquired images do not agree on.

    Args:
        shared: what is kept of the acquired images, in place.
        images: these.
        key: what the identifiers of the new series are made of.
    """
    frames = {image.frame_of_reference for image in images}
    if len({image.study_uid for image in images}) > 1 or not images[0].study_uid:
        facts = [str(shared.get(name) or "") for name in STUDY_FACTS]
        # Where nothing tells one study from another, each series is one of its own.
        facts.append(next(iter(frames)) if len(frames) == 1 else "")
        shared.StudyInstanceUID = uid_from(repr(("study", facts if any(facts) else key)).encode())
    if len(frames) > 1 or "" in frames:
        shared.FrameOfReferenceUID = uid_from(repr(("frame of reference", key)).encode())


def _describe_padding(shared: Dataset, padding: float, storage: Storage) -> None:
    """Adds which stored value stands for what the scanner did not see, so that viewers go on to leave it out."""
    value = round((padding - storage.intercept) / storage.slope)
    low, high = (SMALLEST_SIGNED, LARGEST_SIGNED) if storage.signed else (0, LARGEST_STORED)
    # One that was stated but is not there may not fit into what is stored.
    if low <= value <= high:
        shared.add_new("PixelPaddingValue", "SS" if storage.signed else "US", value)


def series_description(named: str, distinction: str, what: str, anonymise: bool) -> str:
    """Returns the source's description, what tells the stack apart, and what was done, within 64 characters."""
    distinction = distinction[:20] if not anonymise else ""
    room = LONGEST_LO - len(what) - len(distinction) - 1
    kept = f"{named[:room].strip()}{distinction} " if not anonymise else ""
    return f"{kept.strip(' ,')} {what}".strip()


def series_number(source: int, index: int) -> int:
    """Returns a number after all others of the study, and recognisable, as far as the 31 bits of an IS go."""
    number = source * 1000 + index + 1
    return number if abs(number) < 2**31 else index + 1


def _image_type(series: Series, step: str) -> list[str]:
    """Returns DERIVED, SECONDARY, what kind of image the source was, and what was done to it."""
    source = series.images[0].among[0].split("\\")
    kind = [value.strip() for value in source[2:3] if value.strip()]
    if series.images[0].modality == "CT":
        kind = ["AXIAL"]
    return ["DERIVED", "SECONDARY", *(kind or ["OTHER"]), step]


def _equipment(contribution: str) -> Dataset:
    item = Dataset()
    item.Manufacturer = MAKER
    item.ManufacturerModelName = MAKER
    item.SoftwareVersions = program_in_words()
    item.ContributionDescription = contribution[:LONGEST_ST]
    item.PurposeOfReferenceCodeSequence = Items([_code(MODIFIED)])
    return item


def decimal_string(value: float) -> DSfloat:
    """Returns a decimal string of at most 16 characters, as many digits as fit."""
    return DSfloat(float(value), auto_format=True)


def counts_down(series: Series) -> bool:
    """Tells whether the images' numbers fall along the array, as they do where a scanner counts from the head down."""
    numbers = [image.instance for image in series.images if image.frame is None and image.instance is not None]
    return len(numbers) == len(series.images) and numbers[0] > numbers[-1]


def image_at(shared: Dataset, volume: Volume, layout: Layout, index: int, key: str) -> Dataset:
    """Returns one image of a new series, but for its number, its window and what it refers to.

    Args:
        shared: what all of them say, see `describe`.
        volume: [columns, rows from the last to the first, slices], as they are stored.
        layout: how its images lie.
        index: along the array's last axis.
        key: what identifiers are made of.
    """
    stored = volume.header
    assert isinstance(stored, Stored)
    image = Dataset()
    image.update(shared)
    image.SOPInstanceUID = uid_from(repr((key, index)).encode())
    corner = volume.affine @ [0, volume.shape[1] - 1, index, 1]  # the first row is the last of the array
    position = corner[:3] * [-1, -1, 1]
    image.ImagePositionPatient = [decimal_string(mm) for mm in position]
    along_row, along_column = np.reshape(layout.orientation, (2, 3))
    image.SliceLocation = decimal_string(float(np.cross(along_row, along_column) @ position))
    # Rows run from the last to the first in the array, see `read_series`.
    values = _to_stored(volume.voxels[:, ::-1, index].T, stored.storage)
    image.PixelData = values.astype("<i2" if stored.storage.signed else "<u2").tobytes()
    image["PixelData"].VR = "OW"
    return image
