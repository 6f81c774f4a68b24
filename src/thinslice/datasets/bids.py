"""BIDS: which images of a data set are looked at, and what their derivatives are called and say.

The Brain Imaging Data Structure, https://bids-specification.readthedocs.io: raw images are
``sub-01/[ses-01/]anat/sub-01_[ses-01_][...]_T2w.nii.gz``; a derivative has ``res-iso_desc-sr`` before the suffix, and
lies in a data set of its own, whose ``dataset_description.json`` says what generated it.
"""

import json
import logging
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from thinslice.errors import InputRefused, OutputRefused
from thinslice.files import read_bytes
from thinslice.io.atomic import read_object, whole_or_not

logger = logging.getLogger(__name__)

SUFFIXES = ("T1w", "T2w", "FLAIR", "PDw", "T2starw", "PDT2", "inplaneT1", "inplaneT2")
"""Weighted anatomical images. Maps, masks and defaced copies are made otherwise, and not looked at."""

BIDS_VERSION = "1.10.0"
"""The version of the specification that the derivatives follow."""

DESCRIPTION = "dataset_description.json"
"""The file that every data set of BIDS has in its folder."""

IGNORED = ("summary*", "thumbnails", "reports", "figures")
"""What the output holds beside the derivatives: for .bidsignore."""

NO_MAGNITUDE = ("part-phase", "part-real", "part-imag")
"""Images that are not looked at: between two wrapped phases lies no mean."""

OF_ONE_CONTRAST = ("acq", "run", "dir")
"""Entities in which the stacks of one body differ. What is of another contrast all the same is told by its header and
by its looks when it is combined."""

_LABEL = re.compile("[A-Za-z0-9]+")
"""What BIDS takes as the label of a participant or a session."""

_NAME = re.compile(r"(?P<entities>sub-[A-Za-z0-9]+(?:_[a-z]+-[A-Za-z0-9+]+)*)_(?P<suffix>[A-Za-z0-9]+)\.nii(?:\.gz)?")
"""The name of an image: entities, each a key and a label, and a suffix."""


@dataclass(frozen=True)
class Choice:
    """Says which images of a data set are chosen; None for all.

    Attributes:
        participants, sessions: labels, with or without ``sub-`` and ``ses-``.
        suffixes: as T2w.
    """

    participants: Sequence[str] | None = None
    sessions: Sequence[str] | None = None
    suffixes: Sequence[str] = SUFFIXES


def find_images(dataset: Path, choice: Choice) -> tuple[list[Path], list[OSError]]:
    """Finds the raw images of the chosen participants, by name, and what became of folders that cannot be read.

    Raises:
        InputRefused: it is no BIDS data set, or a participant, a session, or all that was chosen, is not there.
    """
    if not (dataset / DESCRIPTION).is_file():
        raise InputRefused(
            got=f"a folder without {DESCRIPTION}",
            need="a BIDS data set",
            next="check the name, or use 'thinslice batch -i FOLDER -o FOLDER' for a folder of scans",
            place=dataset,
            code="not-bids",
        )
    # JSON may have come since an earlier run of this process.
    _names_of_json.cache_clear()
    unreadable: list[OSError] = []
    participants = _find_participants(dataset, choice, unreadable)
    visits = {folder: _find_folders(folder, "ses-", unreadable) for folder in participants}
    sessions = _labels(choice.sessions, "ses-")
    _check_sessions(dataset, sessions, {visit.name for folder in visits.values() for visit in folder}, unreadable)
    # a participant without sessions has its images in its own folder; chosen sessions leave those out
    places = [
        place
        for folder in participants
        for place in (folder, *visits[folder])
        if (sessions is None or place.name in sessions) and str(place) not in {str(one.filename) for one in unreadable}
    ]
    found = [
        path
        for place in places
        for path in _list(place / "anat", unreadable)
        if (match := _NAME.fullmatch(path.name))
        and match["suffix"] in choice.suffixes
        and not set(NO_MAGNITUDE) & set(match["entities"].split("_"))
    ]
    if not found and not unreadable:
        raise InputRefused(
            got="no image in an anat folder for that choice",
            need=", ".join(choice.suffixes),
            next="change `suffix`, `session_label` or `participant_label`",
            place=dataset,
            code="no-image-chosen",
        )
    logger.debug("%s: %d images of %d participants", dataset, len(found), len(participants))
    return found, unreadable


def _find_participants(dataset: Path, choice: Choice, unreadable: list[OSError]) -> list[Path]:
    there = _find_folders(dataset, "sub-", unreadable)
    if unreadable:
        raise InputRefused(
            got=f"'{unreadable[0].strerror}'",
            need="a folder that can be read",
            next="see to its permissions",
            place=dataset,
            code="no-access",
        ) from unreadable[0]
    chosen = _labels(choice.participants, "sub-")
    missing = sorted((chosen or set()) - {folder.name for folder in there})
    if missing:
        raise InputRefused(
            got=f"participant {missing[0].removeprefix('sub-')}, who is not in it",
            need=f"some of its {len(there)}",
            next="correct `participant_label`",
            place=dataset,
            code="no-such-participant",
        )
    return [folder for folder in there if chosen is None or folder.name in chosen]


def _check_sessions(dataset: Path, chosen: set[str] | None, there: set[str], unreadable: list[OSError]) -> None:
    missing = sorted((chosen or set()) - there)
    if missing and not unreadable:  # it may be in a folder that cannot be read
        raise InputRefused(
            got=f"session {missing[0].removeprefix('ses-')}, which no participant chosen has",
            need=f"some of {', '.join(sorted(there)) or 'none'}",
            next="correct `session_label`",
            place=dataset,
            code="no-such-session",
        )


def derivative_path(raw: Path, dataset: Path, output: Path) -> Path:
    """Returns where the answer goes, by the rules of BIDS.

    Example:
        >>> derivative_path(Path("raw/sub-01/anat/sub-01_T2w.nii"), Path("raw"), Path("out")).as_posix()
        'out/sub-01/anat/sub-01_res-iso_desc-sr_T2w.nii.gz'
    """
    match = _NAME.fullmatch(raw.name)
    assert match is not None, "an image that find_images found"
    name = f"{match['entities']}_res-iso_desc-sr_{match['suffix']}.nii.gz"
    return output / raw.parent.relative_to(dataset) / name


@dataclass(frozen=True)
class StackGroup:
    """Names images of one visit that may be stacks of one body: alike but for acquisition, run and direction.

    Attributes:
        stacks: two or more, by name.
        derivative: where the volume that is combined from them goes.
    """

    stacks: tuple[Path, ...]
    derivative: Path


def group_stacks(images: Sequence[Path], dataset: Path, output: Path) -> list[StackGroup]:
    """Returns the images that differ in nothing but what acquisitions of one contrast differ in, two or more at a time.

    Args:
        images: as `find_images` finds them.
        dataset: that they lie in.
        output: of the derivatives.

    Example:
        >>> names = ["sub-01_acq-ax_T2w.nii", "sub-01_acq-sag_run-1_T2w.nii", "sub-01_acq-ax_T1w.nii"]
        >>> raw = Path("raw")
        >>> (group,) = group_stacks([raw / "sub-01/anat" / name for name in names], raw, Path("out"))
        >>> len(group.stacks), group.derivative.as_posix()
        (2, 'out/sub-01/anat/sub-01_res-iso_desc-combined_T2w.nii.gz')
    """
    groups: dict[tuple[Path, str, str], list[Path]] = {}
    for path in images:
        match = _NAME.fullmatch(path.name)
        assert match is not None, "an image that find_images found"
        kept = [entity for entity in match["entities"].split("_") if entity.split("-")[0] not in OF_ONE_CONTRAST]
        groups.setdefault((path.parent, "_".join(kept), match["suffix"]), []).append(path)
    return [
        StackGroup(
            tuple(sorted(stacks)),
            output / folder.relative_to(dataset) / f"{entities}_res-iso_desc-combined_{suffix}.nii.gz",
        )
        for (folder, entities, suffix), stacks in groups.items()
        if len(stacks) > 1
    ]


def combined_facts(stacks: Sequence[Path], dataset: Path) -> dict[str, Any]:
    """Returns what BIDS wants the JSON of a combined volume to say."""
    facts = derivative_facts(stacks[0], dataset)
    return facts | {
        "Description": "One volume that several stacks of thick slices agree with.",
        "Resolution": "Voxels as far apart across the slices of the first stack as within them, or as asked for.",
        "Sources": [f"bids:raw:{path.relative_to(dataset).as_posix()}" for path in stacks],
    }


def segmentation_path(derivative: Path) -> Path:
    """Returns where the segmentation on the grid of a derivative goes, by the rules of BIDS.

    Example:
        >>> segmentation_path(Path("out/sub-01_res-iso_desc-sr_T2w.nii.gz")).name
        'sub-01_res-iso_desc-srT2w_dseg.nii.gz'
    """
    # `dseg` takes the place of the suffix, which moves into the description: else T1w and T2w would share one name.
    *entities, suffix = derivative.name.removesuffix(".nii.gz").split("_")
    return derivative.with_name("_".join([*entities[:-1], f"{entities[-1]}{suffix}", "dseg.nii.gz"]))


def derivative_facts(raw: Path, dataset: Path) -> dict[str, Any]:
    """Returns what BIDS wants the JSON of an answer to say, beside its ``Resolution``."""
    # The specification requires SkullStripped of processed images; "bids:raw:" is looked up in the DatasetLinks of the
    # description, see `write_description`.
    return {
        "Description": "Thin slices, computed from thick ones: between them nothing was acquired.",
        "SkullStripped": False,
        "SpatialReference": "orig",
        "Sources": [f"bids:raw:{raw.relative_to(dataset).as_posix()}"],
    }


def inherited_sidecars(raw: Path, dataset: Path) -> tuple[Path, ...]:
    """Returns the JSON files that hold for an image but are not its own, the nearest and most particular last.

    By the inheritance principle (specification, "Common principles"): in the folder of the image or one above it, with
    the same suffix, and with no entity that the image has not.
    """
    # sub-01_T2w.json holds for sub-01_run-2_T2w.nii.gz: it has no entity that the image has not
    *entities, suffix = raw.name.split(".")[0].split("_")
    folders = [folder for folder in reversed(raw.parents) if folder == dataset or dataset in folder.parents]
    found = []
    for folder in folders:
        level = []
        for name in _names_of_json(folder):
            *other, its_suffix = name.removesuffix(".json").split("_")
            if its_suffix == suffix and set(other) <= set(entities):
                level.append((len(other), name))
        found += [folder / name for _, name in sorted(level)]
    return tuple(file for file in found if file != raw.with_name("_".join([*entities, suffix]) + ".json"))


@lru_cache(maxsize=64)
def _names_of_json(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(file.name for file in folder.glob("*.json")))


def check_output(dataset: Path, output: Path) -> None:
    """Refuses an output among raw data, which is never written to, but for a folder of its derivatives.

    Raises:
        OutputRefused: it lies there, or is the data set of another program.
    """
    raw, there = Path(os.path.realpath(dataset)), Path(os.path.realpath(output))
    inside = there == raw or raw in there.parents
    # The specification lets derivatives lie in derivatives/NAME of their raw data; the folder of all of them is none.
    in_raw = there.relative_to(raw).parts if inside else ()
    if inside and (len(in_raw) < 2 or in_raw[0] != "derivatives"):
        raise _inside_raw_data(output, dataset)
    if there in raw.parents:
        raise OutputRefused(
            got="an output that holds the raw data",
            need="another",
            next="choose a new folder",
            place=output,
            code="output-holds-input",
        )
    if (output / DESCRIPTION).exists() and not _is_ours(output / DESCRIPTION):
        raise OutputRefused(
            got=f"a folder with another program's {DESCRIPTION}",
            need="one for the derivatives of thinslice alone",
            next="choose a new folder",
            place=output,
            code="output-with-other-files",
        )


def check_not_raw(output: Path) -> None:
    """Refuses a folder of answers that lies in raw data of BIDS, whichever, but for a folder of its derivatives.

    Raises:
        OutputRefused: it does.
    """
    there = Path(os.path.realpath(output))
    # The nearest description counts: derivatives may lie in raw data, and raw data in a folder of data sets.
    for root in (there, *there.parents):
        if not (root / DESCRIPTION).exists():
            continue
        facts = read_object(root / DESCRIPTION)  # one that cannot be read may be that of raw data
        inside = there.relative_to(root).parts
        if facts.get("DatasetType", "raw") == "raw" and (len(inside) < 2 or inside[0] != "derivatives"):
            raise _inside_raw_data(output, root)
        return


def _inside_raw_data(output: Path, dataset: Path) -> OutputRefused:
    return OutputRefused(
        got=f"an output inside the raw data of {dataset}",
        need="a folder elsewhere",
        next=f"choose another, such as {dataset / 'derivatives' / 'thinslice'}",
        place=output,
        code="output-in-raw-data",
    )


def write_description(dataset: Path, output: Path) -> None:
    """Writes what the derivatives are, of what and by what, and what the validator of BIDS shall not look at.

    Raises:
        OSError: it cannot be written.
    """
    raw = read_object(dataset / DESCRIPTION)
    # Relative, so that data set and derivatives can be moved together; readers of BIDS follow it from the output.
    link = Path(os.path.relpath(os.path.realpath(dataset), os.path.realpath(output))).as_posix()
    doi = re.search(r"10\.\d+/\S+", str(raw.get("DatasetDOI")))
    name, authors, licence = (raw.get(key) for key in ("Name", "Authors", "License"))
    description = (
        "Thin slices computed from thick ones; the JSON of each tells by which model, and how well they agree."
    )
    content: dict[str, Any] = {
        "Name": f"{name if name and isinstance(name, str) else dataset.name}: thin slices",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "thinslice", "Version": version("thinslice"), "Description": description}],
        "SourceDatasets": [{"URL": f"doi:{doi[0]}" if doi else link}],
        "DatasetLinks": {"raw": link},
    }
    # What another program or a hand has written may be of any kind; the validator would find the fault in our file.
    if licence and isinstance(licence, str):
        content["License"] = licence
    if authors and isinstance(authors, list) and all(isinstance(one, str) for one in authors):
        content["Authors"] = authors
    _write_if_new(output / DESCRIPTION, json.dumps(content, indent=2) + "\n")
    # Added to, not replaced: the folder's owner may ignore more.
    patterns = _lines(output / ".bidsignore")
    missing = [pattern for pattern in IGNORED if pattern not in patterns]
    if missing:
        _write_if_new(output / ".bidsignore", "".join(f"{pattern}\n" for pattern in [*patterns, *missing]))
    if not any(output.glob("README*")):
        _write_if_new(output / "README", "Thin slices computed from the thick ones of the source data set.\n")


def _lines(path: Path) -> list[str]:
    # Lines that are no UTF-8 go back as they came, see `_write_if_new`.
    return read_bytes(path).decode("utf-8", "surrogateescape").splitlines() if path.exists() else []


def check_labels(choice: Choice) -> None:
    """Refuses labels that cannot be parts of file names.

    Raises:
        InputRefused: one is not made of letters and digits.
    """
    for word in (*(choice.participants or ()), *(choice.sessions or ()), *choice.suffixes):
        if not _LABEL.fullmatch(word.removeprefix("sub-").removeprefix("ses-")):
            raise InputRefused(
                got=f"label {word!r}",
                need="letters and digits, such as 01 or T2w",
                next="correct it",
                code="not-a-label",
            )


def _labels(chosen: Iterable[str] | None, prefix: str) -> set[str] | None:
    return None if chosen is None else {prefix + label.removeprefix(prefix) for label in chosen}


def _find_folders(folder: Path, prefix: str, unreadable: list[OSError]) -> list[Path]:
    return [path for path in _list(folder, unreadable) if path.name.startswith(prefix) and os.path.isdir(path)]


def _list(folder: Path, unreadable: list[OSError]) -> list[Path]:
    """Returns what lies in a folder, by name. A folder that cannot be read is added to ``unreadable``."""
    try:
        return sorted(folder / name for name in os.listdir(folder))
    # A participant without anat is no fault.
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        unreadable.append(error)
        return []


def _is_ours(path: Path) -> bool:
    made_by = read_object(path).get("GeneratedBy")
    return isinstance(made_by, list) and any(
        isinstance(one, dict) and one.get("Name") == "thinslice" for one in made_by
    )


def _write_if_new(path: Path, text: str) -> None:
    # Left alone where it says the same: shards of one run all come here, and others may read it meanwhile.
    content = text.encode(errors="surrogateescape")
    with suppress(OSError):
        if read_bytes(path) == content:
            return
    with whole_or_not(path) as part:
        part.write_bytes(content)
