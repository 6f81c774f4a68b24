"""Cases: which files go in, where answers go. Everything that can be refused is refused here, before any work."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from thinslice.errors import InputRefused, OutputRefused
from thinslice.io.atomic import is_inside, looks_like_dicom
from thinslice.io.formats import READABLE, WRITABLE, ending, name_to_write, sidecar_path, stem_of

if TYPE_CHECKING:  # pydicom takes a third of a second to import
    from thinslice.io.dicom.series import Series, Study

WAY_FROM_DICOM = "make one from the DICOM series with dcm2niix"
WAYS_TO_NIFTI = (
    ((".img", ".hdr"), "join the pair into one file with FSL: fslchfiletype NIFTI_GZ IN OUT"),
    ((".mha", ".mhd", ".mnc"), "convert it with ITK-SNAP's c3d: c3d IN -o OUT.nii.gz"),
    ((".gz", ".zip", ".tar", ".tgz", ".bz2", ".xz", ".zst"), "unpack it first"),
    ((".json", ".txt", ".csv", ".png", ".jpg", ".pdf"), "name the scan instead"),
)
"""What leads to a file that can be read from files that end so."""


@dataclass(frozen=True)
class Case:
    """One scan to be made thinner.

    Attributes:
        source: the scan that goes in.
        destination: the scan that comes out, see `thinslice.io.formats.WRITABLE`.
        sidecar: the JSON beside it: destination with .json instead of that ending.
        series: of DICOM: source is the folder of its files, and destination a file, or the folder of a new series, in
            which the sidecar lies.
    """

    source: Path
    destination: Path
    sidecar: Path
    series: "Series | None" = None

    @property
    def name(self) -> str:
        """What to call the scan in a message."""
        return self.source.name if self.series is None else self.series.label

    @property
    def into_series(self) -> bool:
        """Whether the answer is a DICOM series, one file a slice."""
        return sidecar_path(self.destination) is None


def find_cases(
    source: Path | str, destination: Path | str, overwrite: bool = False, sidecars: bool = True
) -> list[Case]:
    """Pair every scan with its answer; nothing is created.

    A file goes to a file, or under its own name into a folder: one that exists, or a name that ends with a separator
    (pass the destination as it was typed: a Path has lost its last separator). A folder goes to a folder: every scan
    that lies directly in it, hidden files left out, in the order of their names. Into a folder each answer goes in its
    source's format, but a header whose voxels are in another file (.nhdr) becomes one file (.nrrd).

    Without ``sidecars`` nothing will be written beside the answers, and what lies there does not matter.

    Raises:
        InputRefused: there is no scan at `source`.
        OutputRefused: an answer would replace an input or another answer, exists already without `overwrite`, or cannot
            be put there.
    """
    source, target = Path(source), Path(destination)
    sources = find_sources(source)
    into_folder = source.is_dir() or target.is_dir() or str(destination).endswith(("/", os.sep))
    if into_folder:
        _check_folder(target, sources)
    cases = [_pair(file, target / name_to_write(file.name) if into_folder else target) for file in sources]
    _check_collisions(cases)
    _check_not_an_input(cases)
    for case in cases:
        _check_free(case, overwrite, sidecars)
    check_writable(cases[0].destination.parent)
    return cases


def find_sources(source: Path) -> list[Path]:
    """The scans at a path: the file itself, or every one that lies directly in the folder, by name.

    Raises:
        InputRefused: there is no scan at `source`.
    """
    need, then = f"a scan ({', '.join(READABLE)}) or a folder of them", _way_to_nifti(source)
    try:
        if source.is_dir():
            visible = (f for f in source.iterdir() if not f.name.startswith("."))
            found = sorted(f for f in visible if sidecar_path(f) and not f.is_dir())
            if not found:
                raise InputRefused(_say(source, "a folder with no scan directly in it", need, then))
            return found
        source.stat()
    except OSError as error:
        raise InputRefused(_say(source, f"no access ({error.strerror})", need, "check the name")) from None
    if sidecar_path(source) is None:
        raise InputRefused(_say(source, "another kind of file", need, then))
    return [source]


def find_namesake(folder: Path, scan: Path) -> Path:
    """The file of a folder that is called as a scan is, of whatever format; one of the very name comes first.

    Raises:
        InputRefused: there are several.
    """
    same = folder / scan.name
    if same.exists() or not folder.is_dir():
        return same
    found = sorted(file for file in folder.iterdir() if ending(file) and stem_of(file) == stem_of(scan))
    if len(found) > 1:
        names = " and ".join(file.name for file in found)
        raise InputRefused(_say(folder, f"{names} for {scan.name}", "one of them", "move the others away"))
    return found[0] if found else same


# ---- DICOM


REPORT_NAME, LABELS_NAME = "thinslice.json", "labels.nii.gz"
"""What lies beside the slices of a computed series."""

LONGEST_NAME = 60


def find_study(path: Path, output: Path | None = None) -> "Study | None":
    """The DICOM series at a path; None where it holds other scans, or none: those are for `find_sources`.

    A folder with other scans directly in it is a folder of these, unless slices lie directly beside them: then these
    are the scan, and what lies beside was made of it. What thinslice computed earlier, in ``output``, is not looked at.

    Raises:
        InputRefused: DICOM files, none of which holds an image.
    """
    if not _holds_dicom(path):
        return None
    from thinslice.io.dicom.series import find_study

    found = find_study(path)
    if output is not None:
        there = os.path.realpath(output)
        inside = [one for one in found.unusable if one.computed and is_inside(os.path.realpath(one.folder), there)]
        found = replace(found, unusable=tuple(one for one in found.unusable if one not in inside))
    beside = [file.name for file in sorted(path.iterdir()) if ending(file)] if path.is_dir() else []
    if beside:
        found = replace(found, notes=(*found.notes, f"{', '.join(beside)} beside the slices left alone"))
    if not found.series and not found.unusable:
        then = "name another folder" if path.is_dir() else "name the folder that the images lie in"
        raise InputRefused(_say(path, "DICOM without any image", "MR or CT images", then))
    return found


def _holds_dicom(path: Path) -> bool:
    try:
        if not path.is_dir():
            return not ending(path) and looks_like_dicom(path)
        here = [file for file in path.iterdir() if not file.name.startswith(".")]
        if any(not ending(file) and looks_like_dicom(file) for file in here):
            return True
        if any(ending(file) for file in here):
            return False
    except OSError:
        return False
    walk = ((Path(folder), files) for folder, _, files in os.walk(path, followlinks=True))
    return any(looks_like_dicom(folder / name) for folder, files in walk for name in files if not name.startswith("."))


def find_series_cases(
    study: "Study", source: Path, destination: Path | str, overwrite: bool = False, nameless: bool = False
) -> list[Case]:
    """Pair every series that can be read with its answer; nothing is created.

    One series goes to a file, or its slices directly into a folder. Several go to a folder each, in one folder.

    Args:
        study, source: the series, and where they were found.
        destination: a file for one series, see `thinslice.io.formats.WRITABLE`, or a folder, as it was typed.
        overwrite: whether computed series that are there already may be replaced.
        nameless: folders are called after numbers alone.

    Raises:
        OutputRefused: an answer would replace anything else than a computed series, exists already without
            `overwrite`, or cannot be put there.
    """
    target = Path(destination)
    if ending(target) and not target.is_dir() and not str(destination).endswith(("/", os.sep)):
        return [_into_file(study, source, target, overwrite)] if study.series else []
    if (target.exists() and not target.is_dir()) or target.suffix.lower() == ".dcm":
        raise OutputRefused(_say(target, "a file as output", "a folder for slices", "name a folder"))
    folders = [target] if len(study.series) == 1 else [target / name for name in names_of_series(study, nameless)]
    cases = [
        Case(one.folder, folder, folder / REPORT_NAME, one) for one, folder in zip(study.series, folders, strict=True)
    ]
    for case in cases:
        _check_series_folder(case.destination, overwrite)
        check_writable(case.destination)
    return cases


def find_place(source: Path, series: "Series | None", destination: Path | str, overwrite: bool = False) -> Case:
    """Where the answer to a scan goes that has been read; nothing is created.

    Args:
        source: the file it came from, "" for none.
        series: of DICOM; its answer may go to a file or to the folder of a new series.
        destination: as it was typed.
        overwrite: whether an answer that is there already may be replaced.

    Raises:
        OutputRefused: it would replace the input, exists already without `overwrite`, or cannot be put there.
    """
    if series is not None:
        from thinslice.io.dicom.series import Study

        return find_series_cases(Study((series,), (), ()), source, destination, overwrite)[0]
    target = Path(destination)
    if target.is_dir() or str(destination).endswith(("/", os.sep)):
        raise OutputRefused(_say(target, "a folder as output", "a file's name", "add a name, such as thin.nii.gz"))
    case = _pair(source, target)
    _check_not_an_input([case])
    _check_free(case, overwrite, sidecars=True)
    check_writable(case.destination.parent)
    return case


def find_reslice_case(source: Path, destination: Path | str, overwrite: bool = False) -> Case:
    """Pair a thin scan with the file it goes to on the grid of a thick one: `find_cases` of one, or of a DICOM series.

    Raises:
        OutputRefused: see `find_cases`; a DICOM series goes to a file.
    """
    if not _holds_dicom(source):
        return find_cases(source, destination, overwrite, sidecars=False)[0]
    case = _pair(source, Path(destination))
    _check_free(case, overwrite, sidecars=False)
    check_writable(case.destination.parent)
    return case


def _into_file(study: "Study", source: Path, target: Path, overwrite: bool) -> Case:
    if len(study.series) > 1:
        labels = ", ".join(one.label for one in study.series)
        got = f"{len(study.series)} series ({labels}) for one file"
        raise OutputRefused(_say(source, got, "one series", "name the folder of one, or a folder as output"))
    if ending(target) not in WRITABLE:
        need = f"a name that ends in {', '.join(WRITABLE)}, or a folder"
        raise OutputRefused(_say(target, "an output that is not written", need, "change the name"))
    sidecar = sidecar_path(target)
    assert sidecar is not None
    case = Case(study.series[0].folder, target, sidecar, study.series[0])
    _check_free(case, overwrite, sidecars=True)
    check_writable(target.parent)
    return case


def names_of_series(study: "Study", nameless: bool = False) -> list[str]:
    """Of each series its number and, unless ``nameless``, description, as they can stand in a path; each once."""
    names: list[str] = []
    for one in study.series:
        number = f"{one.images[0].number or 0:03d}"
        words = re.sub(r"[^A-Za-z0-9]+", "_", one.label.removeprefix(str(one.images[0].number or ""))).strip("_")
        name = number if nameless or not words else f"{number}_{words}"[:LONGEST_NAME].rstrip("_")
        times = sum(other == name or other.startswith(f"{name}-") for other in names)
        names.append(f"{name}-{times + 1}" if times else name)
    return names


def _check_series_folder(folder: Path, overwrite: bool) -> None:
    """Free, or empty, or, to overwrite it, without anything but what a run like this one left there."""
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise OutputRefused(_say(folder, "a file as output", "a folder for slices", "name a folder"))
    there = sorted(folder.iterdir())
    if there and not overwrite:
        then = "choose another, or give --overwrite"
        raise OutputRefused(_say(folder, "an output folder that is not empty", "an empty or a new one", then))
    from thinslice.io.dicom.headers import is_computed

    foreign = [file for file in there if file.name not in (REPORT_NAME, LABELS_NAME) and not is_computed(file)]
    if foreign:
        got = f"a folder with {foreign[0].name}, which thinslice did not write"
        raise OutputRefused(_say(folder, got, "a folder of its own for the series", "choose another"))


# ---- files of their own


def _way_to_nifti(path: Path) -> str:
    suffix = path.suffix.lower()
    return next((way for suffixes, way in WAYS_TO_NIFTI if suffix in suffixes), WAY_FROM_DICOM)


def _say(path: Path, got: str, need: str, then: str) -> str:
    return " ".join(f"{path}: got {got}; need {need}; next: {then}".split())


def _pair(source: Path, destination: Path) -> Case:
    sidecar = sidecar_path(destination)
    if sidecar is None or ending(destination) not in WRITABLE:
        need = f"a name that ends in {' or '.join(WRITABLE)}, or a folder"
        raise OutputRefused(_say(destination, "an output of another kind", need, "end a folder's name with /"))
    return Case(source, destination, sidecar)


def _check_folder(folder: Path, sources: list[Path]) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputRefused(_say(folder, "a file as output", f"a folder for {len(sources)} scan(s)", "name a folder"))
    if not folder.exists() and sidecar_path(folder):
        raise OutputRefused(_say(folder, "a file's name as output", "a folder's", f"leave out {ending(folder)}"))


def _check_collisions(cases: list[Case]) -> None:
    """No two answers share a sidecar, hence no two a file; letter case does not count, as on Windows and macOS."""
    taken: dict[str, Path] = {}
    for case in cases:
        other = taken.setdefault(case.sidecar.name.casefold(), case.source)
        if other is not case.source:
            got = f"{other.name} and {case.source.name}, whose answers would both write {case.sidecar.name}"
            raise OutputRefused(_say(case.source.parent, got, "one answer per scan", "rename or move one of them"))


def _check_not_an_input(cases: list[Case]) -> None:
    """No answer, under whatever name or link, is one of the inputs or the facts that lie beside one."""
    inputs = [f for case in cases for f in (case.source, sidecar_path(case.source)) if f is not None]
    places, files = {os.path.realpath(f) for f in inputs}, _identities(inputs)
    for case in cases:
        for output in (case.destination, case.sidecar):
            if os.path.realpath(output) in places or _identities([output]) & files:
                got = "an output that is an input, or its sidecar"
                raise OutputRefused(
                    _say(output, got, "another place", "inputs are never replaced: choose a new folder")
                )


def _identities(files: Iterable[Path]) -> set[tuple[int, int]]:
    """(device, inode) of those that exist: the same for all links to one file."""
    states = [f.stat() for f in files if f.exists()]
    return {(s.st_dev, s.st_ino) for s in states}


def _check_free(case: Case, overwrite: bool, sidecars: bool) -> None:
    for output in (case.destination, case.sidecar) if sidecars else (case.destination,):
        if output.is_dir():
            raise OutputRefused(_say(output, "a folder in the place of an output", "a free name", "choose another"))
        if not overwrite and os.path.lexists(output):
            then = "choose another, or give --overwrite"
            raise OutputRefused(_say(output, "an output that exists already", "a free name", then))


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written into, or made.

    Raises:
        OutputRefused: it is a file, or without permission.
    """
    existing = next(f for f in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(f))
    if not existing.is_dir():
        raise OutputRefused(_say(existing, "a file", "a folder to write into", "choose another output"))
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputRefused(_say(existing, "a folder without write permission", "one with it", "choose another output"))


def told_apart(paths: Sequence[Path]) -> dict[Path, str]:
    """What to call each of some paths in a message: its last name, or the whole path where another has that too."""
    names = [path.name for path in dict.fromkeys(paths)]
    return {path: path.name if path.name and names.count(path.name) == 1 else str(path) for path in paths}
