"""Without the patient: the Basic Application Level Confidentiality Profile of PS3.15, annex E, by dicom-anonymizer."""

import hashlib
import logging
import uuid
from typing import Any

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from thinslice.io.dicom.headers import read_dataset
from thinslice.io.dicom.series import Series
from thinslice.io.refusals import refused

logger = logging.getLogger(__name__)

NEEDED = (
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "StudyDate", "StudyTime", "AccessionNumber",
    "Modality", "Manufacturer", "ManufacturerModelName", "ReferringPhysicianName", "PatientName", "PatientID",
    "PatientBirthDate", "PatientSex", "StudyInstanceUID", "SeriesInstanceUID", "StudyID", "FrameOfReferenceUID",
    "PositionReferenceIndicator", "ReferencedSOPClassUID", "ReferencedSOPInstanceUID", "ReferencedFrameNumber",
)  # fmt: skip
"""What an image cannot do without; the profile has emptied or replaced what names somebody."""

TECHNICAL_GROUPS = (0x0018, 0x0020, 0x0028, 0x2050)
"""Groups of elements about the acquisition, the places of the slices, the pixels and how they are shown."""

TECHNICAL_KINDS = ("AT", "CS", "DS", "FD", "FL", "IS", "OB", "OW", "SL", "SS", "UL", "US")
"""Kinds of values (VR) that are numbers or codes: into text somebody may have typed a name."""

TECHNICAL_TEXT = (
    "SequenceName", "ImagedNucleus", "ConvolutionKernel", "ReceiveCoilName", "TransmitCoilName", "FilterType",
    "RescaleType", "WindowCenterWidthExplanation", "SoftwareVersions",
)  # fmt: skip
"""Text that is kept: it names methods and parts of the machine."""

PROFILE = "dicomfields_2026c"
"""The edition of table E.1-1."""


def check_can_hide(series: Series) -> None:
    """Refuses what no look at the header can make anonymous.

    Raises:
        InputRefused: the package for it is not installed, or the images say that text is burned into them.
    """
    _library()
    files = {image.path for image in series.images}
    for path in files:
        # Headers alone are cleaned: what is drawn into the pixels stays there.
        found = read_dataset(path, stop_before_pixels=True, specific_tags=["BurnedInAnnotation"])
        if str(found.get("BurnedInAnnotation", "")).upper() == "YES":
            raise refused(
                "images with text burned into them (BurnedInAnnotation), which may name the patient",
                "images without",
                "leave `anonymise` out, or have the text removed first",
                code="dicom-burned-in",
            )
    logger.debug("headers are cleaned by %s: of %d files none says that text is burned in", PROFILE, len(files))


def remove_identity(dataset: Dataset) -> None:
    """Takes the identity out of the header of an image, in place: by the profile, then all that may name somebody.

    Unique identifiers become others, the same ones every time, so that what belongs together stays together. PatientID
    is made of the study's: a patient's own number is so short that its hash could be guessed.
    """
    library = _library()
    rules = library.initialize_actions(PROFILE)
    # The library would draw other identifiers in every run, and part what belongs together.
    by_uid = {library.replace_UID, library.delete_or_empty_or_replace_UID}
    ours = {tag: (_replace_uids if action in by_uid else action) for tag, action in rules.items()}
    study = str(dataset.get("StudyInstanceUID", ""))
    _apply_profile(dataset, ours, library)
    for element in [e for e in dataset if not _is_harmless(e)]:
        del dataset[element.tag]
    if study:
        dataset.PatientID = f"ANON-{replacement_uid(study)[-12:]}"


def _is_harmless(element: DataElement) -> bool:
    """Tells whether an element names nobody: numbers and codes of the acquisition; text and sequences only if known."""
    name = element.keyword
    if name in NEEDED or name in TECHNICAL_TEXT:
        return True
    return bool(name) and element.tag.group in TECHNICAL_GROUPS and element.VR in TECHNICAL_KINDS


def declare_anonymous(dataset: Dataset) -> None:
    """Adds what the profile asks to be said of a dataset that went through `remove_identity`."""
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "PS3.15 basic profile, header only (thinslice)"
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = "113100", "DCM"
    code.CodeMeaning = "Basic Application Confidentiality Profile"
    dataset.DeidentificationMethodCodeSequence = Items([code])
    dataset.LongitudinalTemporalInformationModified = "REMOVED"


def _library() -> Any:
    try:
        from dicomanonymizer import simpledicomanonymizer
    except ModuleNotFoundError as error:
        got, way = "`anonymise` without the package for it", "pip install 'thinslice[dicom]'"
        raise refused(got, "dicom-anonymizer", way, code="missing-package") from error
    return simpledicomanonymizer


def _apply_profile(dataset: Dataset, rules: Any, library: Any) -> None:
    library.anonymize_dataset(dataset, delete_private_tags=True, base_rules_gen=lambda: dict(rules))
    for element in dataset:
        if element.VR in ("DA", "TM", "DT") and (element.tag.group, element.tag.element) in rules:
            element.value = ""  # the library writes the year 1, which is no valid date everywhere
        if element.VR == "SQ":
            for item in element.value:
                _apply_profile(item, rules, library)


def _replace_uids(dataset: Dataset, tag: tuple[int, int]) -> None:
    element = dataset.get(tag)
    if element is None or element.VR == "SQ":  # what is nested is reached by itself
        return
    several = not isinstance(element.value, str)
    values = [replacement_uid(str(value)) for value in (element.value if several else [element.value])]
    element.value = values if several else values[0]


def replacement_uid(value: str) -> str:
    """Returns the identifier that takes the place of one; always the same."""
    return uid_from(b"thinslice, hidden: " + value.encode()) if value else value


def uid_from(content: bytes) -> str:
    """Returns a UUID-derived UID (PS3.5, annex B.2): the same content gives the same one.

    Example:
        >>> uid_from(b"a scan") == uid_from(b"a scan"), uid_from(b"a scan").startswith("2.25.")
        (True, True)
    """
    digest = hashlib.sha256(content).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"
