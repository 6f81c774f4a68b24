"""What the headers of a DICOM series say of its contrast."""

from typing import Any

from pydicom.dataset import Dataset

from thinslice.io.contrast import Contrast, contrast_from_facts
from thinslice.io.dicom.headers import AMONG, CLASSIC, ENHANCED, find_groups, quiet, read_dataset
from thinslice.io.dicom.series import Series

_WANTED = (
    "EchoTime", "RepetitionTime", "InversionTime", "FlipAngle", "ScanningSequence", "SequenceVariant", "ScanOptions",
    "ContrastBolusAgent", "ConvolutionKernel", "EffectiveEchoTime", "InversionTimes", "EchoPulseSequence",
    "InversionRecovery", "SpectrallySelectedSuppression", "MagnetizationTransfer", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", "ContrastBolusAgentSequence",
)  # fmt: skip
"""The elements that are read."""

_ECHO_WORDS = {"SPIN": "SE", "GRADIENT": "GR", "BOTH": "SE\\GR"}
"""EchoPulseSequence of enhanced images in the words of classic ones."""


def contrast_of_series(series: Series) -> Contrast:
    """Returns what the header of its first slice says; all slices of a stack have one contrast.

    Raises:
        InputRefused: the file is damaged by now.
    """
    image = series.images[0]
    found = read_dataset(image.path, stop_before_pixels=True, specific_tags=list(_WANTED))
    with quiet():
        places = [found]
        if image.frame is not None:
            places = [
                *find_groups(found, "PerFrameFunctionalGroupsSequence", image.frame),
                *find_groups(found, "SharedFunctionalGroupsSequence", 0),
                found,
            ]
        facts = {name: _look_up(places, name) for name in _WANTED}
    if image.sop_class in ENHANCED:
        facts |= _in_classic_words(facts)
    # What the reader found already counts for more: it knows of private elements.
    among = dict(zip(AMONG, image.among, strict=True))
    facts["Modality"] = CLASSIC.get(image.sop_class) or image.modality
    facts["ImageType"], facts["DiffusionBValue"] = among["ImageType"], among["DiffusionBValue"]
    return contrast_from_facts(facts)


def _look_up(places: list[Dataset], name: str) -> Any:
    return next((place[name].value for place in places if name in place and place[name].value is not None), None)


def _in_classic_words(facts: dict[str, Any]) -> dict[str, Any]:
    """Returns what enhanced images say in other elements than classic ones."""
    inverted = str(facts["InversionRecovery"] or "") == "YES"
    times = facts["InversionTimes"]
    words = [_ECHO_WORDS.get(str(facts["EchoPulseSequence"] or ""), ""), "IR" if inverted else ""]
    return {
        "EchoTime": facts["EffectiveEchoTime"] or facts["EchoTime"],
        "InversionTime": (times[0] if hasattr(times, "__getitem__") else times) if times else facts["InversionTime"],
        "ScanningSequence": "\\".join(word for word in words if word),
        "ScanOptions": "FS" if str(facts["SpectrallySelectedSuppression"] or "") == "FAT" else "",
        "SequenceVariant": "MTC" if str(facts["MagnetizationTransfer"] or "NONE") != "NONE" else "",
        "ContrastBolusAgent": "given" if facts["ContrastBolusAgentSequence"] else facts["ContrastBolusAgent"],
    }
