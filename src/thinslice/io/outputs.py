"""Which scans go in, and where answers go: the one policy for everything that thinslice writes.

`check_outputs` refuses what may not or cannot be written before anything is computed; every verb and the Python API
call it. That nothing was put there meanwhile is seen at the end, see `thinslice.io.atomic`.
"""

import logging
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from thinslice.errors import InputRefused, OutputRefused
from thinslice.files import make_folder, walk
from thinslice.io.atomic import HIDDEN, exists_already, folder_in_place, is_inside, looks_like_dicom, read_object
from thinslice.io.formats import (
    READABLE,
    WRITABLE,
    ending,
    files_beside,
    name_to_write,
    sidecar_path,
    stem_of,
    voxel_file,
    without_voxel_files,
)

if TYPE_CHECKING:  # pydicom takes a third of a second to import
    from thinslice.io.dicom.series import Series, Study

logger = logging.getLogger(__name__)

WAY_FROM_DICOM = "make one from the DICOM series with dcm2niix"
"""What leads from a file of an unknown kind to a scan: most often it is a slice as the scanner wrote it."""

WAYS_TO_NIFTI = (
    ((".img", ".hdr"), "join the pair into one file with FSL: fslchfiletype NIFTI_GZ IN OUT"),
    ((".mnc",), "convert it with ITK-SNAP's c3d: c3d IN -o OUT.nii.gz"),
    ((".gz", ".zip", ".tar", ".tgz", ".bz2", ".xz", ".zst"), "unpack it first"),
    ((".json", ".txt", ".csv", ".png", ".jpg", ".pdf"), "name the scan instead"),
)
"""What leads to a file that can be read from files that end so."""

REPORT_NAME = "thinslice.json"
"""The report among the slices of a computed DICOM series."""

LABELS_NAME = "labels.nii.gz"
"""The segmentation among the slices of a computed DICOM series."""

SEGMENTATION_NAME = "labels.dcm"
"""The same as a DICOM SEG."""

LONGEST_NAME = 60
"""Letters of the name of a series' folder: with its path it stays within the 260 of Windows."""

PAGE_ENDINGS = (".html", ".htm")
"""How the name of a page may end that is opened in a browser."""

FIGURE_ENDINGS = (".png",)
"""How the name of a picture may end."""


# ---- the policy


@dataclass(frozen=True)
class Output:
    """Describes one file that a run will write, or the folder of a new DICOM series.

    Attributes:
        path: where.
        what: what a message calls it: "the answer to a.nii", or the setting that names it, such as "`report`".
        endings: how its name may end, in small letters; any way where empty.
        is_series: whether it is a folder, for the slices of a new DICOM series.
        way_out: what to do where another output has the same name.
    """

    path: Path
    what: str
    endings: tuple[str, ...] = ()
    is_series: bool = False
    way_out: str = "choose another name or folder"


def check_outputs(outputs: Sequence[Output], inputs: Iterable[Path], overwrite: bool) -> None:
    """Refuses what may not or cannot be written, before anything is computed; nothing is left behind by the check.

    Args:
        outputs: everything that the run will write.
        inputs: the files that it reads; the JSON beside each counts as one too.
        overwrite: whether files, or computed DICOM series, that are there already may be replaced.

    Raises:
        OutputRefused: an output has no name or one of another kind; is an input or its JSON, by whatever link; is there
            already, without ``overwrite``; is a folder; shares its name with another output; lies among the slices of a
            new series; or cannot be written where it is to be, for want of permission or since the file system takes
            no such name.

    Example:
        >>> picture = Output(Path("thin.jpg"), "`figure`", FIGURE_ENDINGS)
        >>> check_outputs([picture], inputs=[], overwrite=False)
        Traceback (most recent call last):
        ...
        thinslice.errors.OutputRefused: thin.jpg: got another kind of name for `figure`; need .png; next: change it
    """
    for output in outputs:
        _check_name(output)
    outputs = [*outputs, *(_voxels_of(output, file) for output in outputs for file in files_beside(output.path))]
    _check_not_an_input(outputs, inputs)
    for output in outputs:
        _check_free(output, overwrite)
    _check_apart(outputs)
    for folder in dict.fromkeys(_folder_of(output) for output in outputs):
        names = [output.path.name for output in outputs if not output.is_series and output.path.parent == folder]
        check_writable(folder, names)
    logger.debug("%d outputs may be written", len(outputs))


def check_writable(folder: Path, names: Sequence[str] = ()) -> None:
    """Refuses a folder that cannot be written into or made, and names that its file system does not take.

    It is tried out, in a hidden folder that is removed again: what `os.access` says is wrong for administrators and on
    network shares, and no question tells which names a file system takes.

    Raises:
        OutputRefused: it is a file, or cannot be written to.
    """
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
    if not existing.is_dir():
        raise OutputRefused(
            got="a file",
            need="a folder to write into",
            next="choose another output",
            place=existing,
            code="output-not-writable",
        )
    tried = folder
    # Never under the name itself: another run that looks for it in this instant would be refused.
    try:
        with tempfile.TemporaryDirectory(prefix=HIDDEN, dir=existing) as trial:
            tried = existing
            place = Path(trial) / folder.absolute().relative_to(existing)
            tried = folder
            make_folder(place)
            for name in names:
                tried = folder / name
                (place / name).touch()
    except PermissionError as error:
        raise OutputRefused(
            got="a folder without write permission",
            need="one with it",
            next="choose another output",
            place=existing,
            code="output-not-writable",
        ) from error
    except OSError as error:
        raise _not_writable(tried, error.strerror or str(error)) from error


def _not_writable(path: Path, reason: str) -> OutputRefused:
    return OutputRefused(
        got=f"an output that cannot be written there ('{reason}')",
        need="a place that takes a file of that name",
        next="choose a shorter or plainer name, or another folder",
        place=path,
        code="output-not-writable",
    )


def _check_name(output: Output) -> None:
    if not output.path.name:
        raise empty_name(output.what)
    if "\0" in str(output.path):  # which the system's functions do not even take
        raise _not_writable(output.path, "a zero byte in it")
    if output.is_series:
        return
    name = output.path.name.lower()
    if output.endings and not any(name.endswith(end) and len(name) > len(end) for end in output.endings):
        *others, last = output.endings
        raise OutputRefused(
            got=f"another kind of name for {output.what}",
            need=f"{', '.join(others)} or {last}" if others else last,
            next="change it",
            place=output.path,
            code="output-ending",
        )


def empty_name(what: str) -> OutputRefused:
    """Returns the error for an output whose name is empty, such as that of a shell's variable which is not set."""
    return OutputRefused(
        got=f"an empty name for {what}",
        need="the name of a file or folder",
        next="name it; a variable of the shell may be empty",
        code="output-empty-name",
    )


def _voxels_of(output: Output, file: Path) -> Output:
    """Returns the place of the voxels of a header that will be written."""
    return Output(file, f"the voxels of {output.what}", way_out=output.way_out)


def _check_not_an_input(outputs: Sequence[Output], inputs: Iterable[Path]) -> None:
    """Refuses an output that is, under whatever name or link, an input, or the facts or voxels that lie beside one."""
    scans = dict.fromkeys(inputs)
    beside = [file for scan in scans for file in (sidecar_path(scan), voxel_file(scan)) if file is not None]
    read = [*scans, *beside]
    # By path and by identity: a hard link has another path, and what is not there yet has no identity.
    places, files = {os.path.realpath(file) for file in read}, _identities(read)
    for output in outputs:
        if os.path.realpath(output.path) in places or _identities([output.path]) & files:
            raise OutputRefused(
                got=f"an output that is an input, or its sidecar, as the place of {output.what}",
                need="another place",
                next="choose a new name or folder: inputs are never replaced",
                place=output.path,
                code="output-is-input",
            )


def _identities(files: Iterable[Path]) -> set[tuple[int, int]]:
    """Returns (device, inode) of those that exist, which is the same for all links to one file."""
    states = [os.stat(file) for file in files if os.path.exists(file)]
    return {(state.st_dev, state.st_ino) for state in states}


def _check_free(output: Output, overwrite: bool) -> None:
    if output.is_series:
        _check_series_folder(output.path, overwrite)
    elif os.path.isdir(output.path):
        raise folder_in_place(output.path)
    elif not overwrite and os.path.lexists(output.path):
        raise exists_already(output.path)


def _check_apart(outputs: Sequence[Output]) -> None:
    """Refuses two outputs of one name, or one in another; letter case does not count, as on Windows and macOS."""
    taken: dict[str, Output] = {}
    for output in outputs:
        other = taken.setdefault(os.path.realpath(output.path).casefold(), output)
        if other is not output:
            raise OutputRefused(
                got=f"one name for {other.what} and {output.what}",
                need="two",
                next=output.way_out,
                place=output.path,
                code="output-twice",
            )
    # Anything else among the slices would be taken for somebody else's when the series is to be replaced one day.
    for output in outputs:
        folder, name = os.path.split(os.path.realpath(output.path))
        while folder != os.path.dirname(folder):
            above = taken.get(folder.casefold())
            if above is not None and above.is_series and name not in (REPORT_NAME, LABELS_NAME, SEGMENTATION_NAME):
                raise OutputRefused(
                    got=f"a place for {output.what} among the slices of the new series",
                    need="another",
                    next="name a file or a folder beside it",
                    place=output.path,
                    code="output-in-series",
                )
            if above is not None and not above.is_series:
                raise OutputRefused(
                    got=f"a place for {output.what} in a folder that is the file of {above.what}",
                    need="another",
                    next=output.way_out,
                    place=output.path,
                    code="output-twice",
                )
            folder, name = os.path.split(folder)


def _folder_of(output: Output) -> Path:
    return output.path if output.is_series else output.path.parent


def _check_series_folder(folder: Path, overwrite: bool) -> None:
    """Refuses a folder that holds anything, or, to overwrite it, anything but what a run like this one left there."""
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise OutputRefused(
            got="a file as output",
            need="a folder for slices",
            next="name a folder",
            place=folder,
            code="output-not-a-folder",
        )
    there = sorted(file for file in folder.iterdir() if not file.name.startswith(HIDDEN))  # of a run that was killed
    if there and not overwrite:
        raise OutputRefused(
            got="an output folder that is not empty",
            need="an empty or a new one",
            next="choose another, or give `overwrite=True`",
            place=folder,
            code="output-exists",
        )
    from thinslice.io.dicom.headers import is_computed

    foreign = [file for file in there if file.name not in (REPORT_NAME, LABELS_NAME) and not is_computed(file)]
    if foreign:
        raise OutputRefused(
            got=f"a folder with {foreign[0].name}, which thinslice did not write",
            need="a folder of its own for the series",
            next="choose another",
            place=folder,
            code="output-with-other-files",
        )


# ---- names


def unique_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Returns what to call each of some paths in a message: its last name, or all of it where another has that too.

    Example:
        >>> names = unique_names([Path("a/scan.nii"), Path("b/scan.nii"), Path("b/other.nii")])
        >>> list(names.values())
        ['a/scan.nii', 'b/scan.nii', 'other.nii']
    """
    names = [path.name for path in dict.fromkeys(paths)]
    return {path: path.name if path.name and names.count(path.name) == 1 else str(path) for path in paths}


def name_after_answer(wanted: Path | str, answer: Path, suffix: str) -> Path:
    """Returns where a page or a picture about an answer goes; in a folder it is called after the answer.

    Args:
        wanted: a file's name, or that of a folder: one that exists, or a name without an ending or with a separator at
            its end (pass it as it was typed: a Path has lost that).
        answer: the file of the answer, or the folder of a new series.
        suffix: the ending in a folder.

    Raises:
        OutputRefused: the name is empty.

    Example:
        >>> name_after_answer("pages/", Path("out/thin.nii.gz"), ".html").as_posix()
        'pages/thin.html'
    """
    if not str(wanted):
        raise empty_name("a page or a figure")
    into_folder = _is_folder_name(wanted) or not Path(wanted).suffix
    return Path(wanted) / f"{stem_of(answer.absolute())}{suffix}" if into_folder else Path(wanted)


def labels_beside(answer: Path) -> Path:
    """Returns where the segmentation of a scan goes by default: scan.nii.gz -> scan_labels.nii.gz, and so on.

    Example:
        >>> labels_beside(Path("thin.nrrd")).name
        'thin_labels.nrrd'
    """
    stem = stem_of(answer)
    return answer.with_name(f"{stem}_labels{answer.name[len(stem) :]}")


def _is_folder_name(typed: Path | str) -> bool:
    return Path(typed).is_dir() or str(typed).endswith(("/", os.sep))


# ---- scans and the places of their answers


@dataclass(frozen=True)
class ScanOutput:
    """Pairs one scan that is to be made thinner with the place of its answer.

    Attributes:
        source: the scan that goes in.
        destination: the scan that comes out, see `thinslice.io.formats.WRITABLE`.
        sidecar: the JSON beside it: destination with .json instead of that ending.
        series: of DICOM: source is the folder of its files, and destination a file, or the folder of a new series, in
            which the sidecar lies.
        overwrite: whether what is there already may be replaced.
    """

    source: Path
    destination: Path
    sidecar: Path
    series: "Series | None" = None
    overwrite: bool = False

    @property
    def name(self) -> str:
        """Returns what to call the scan in a message."""
        return self.source.name if self.series is None else self.series.label

    @property
    def is_into_series(self) -> bool:
        """Says whether the answer is a DICOM series, one file a slice."""
        return sidecar_path(self.destination) is None

    @property
    def outputs(self) -> list[Output]:
        """Returns the files of the answer, for `check_outputs`."""
        endings = () if self.is_into_series else WRITABLE
        way_out = "rename one of the scans, or move it to another folder"
        return [
            Output(self.destination, f"the answer to {self.name}", endings, self.is_into_series, way_out),
            Output(self.sidecar, f"the JSON of the answer to {self.name}", way_out=way_out),
        ]


def find_scan_outputs(source: Path | str, destination: Path | str, overwrite: bool = False) -> list[ScanOutput]:
    """Pairs every scan with the place of its answer; nothing is created.

    A file goes to a file, or under its own name into a folder: one that exists, or a name that ends with a separator
    (pass the destination as it was typed: a Path has lost its last separator). A folder goes to a folder: every scan
    that lies directly in it, hidden files left out, in the order of their names. Into a folder each answer goes in its
    source's format, but a header whose voxels are in another file (.nhdr, .mhd) becomes one file (.nrrd, .mha).

    Raises:
        InputRefused: there is no scan at `source`.
        OutputRefused: an answer would replace an input or another answer, exists already without `overwrite`, or cannot
            be put there.
    """
    source, target = Path(source), _to_path(destination)
    sources = find_sources(source)
    into_folder = source.is_dir() or _is_folder_name(destination)
    if into_folder:
        _check_folder(target, sources)
    found = [_pair(file, target / name_to_write(file.name) if into_folder else target, overwrite) for file in sources]
    check_outputs([output for one in found for output in one.outputs], sources, overwrite)
    return found


def find_reslice_output(source: Path, like: Path, destination: Path | str, overwrite: bool = False) -> ScanOutput:
    """Pairs a thin scan with the file it goes to on the grid of a thick one; no JSON is written beside that.

    Raises:
        OutputRefused: see `find_scan_outputs`; a DICOM series goes to a file.
    """
    target = _to_path(destination)
    if _is_folder_name(destination) and not _holds_dicom(source):
        target = target / name_to_write(source.name)
    found = _pair(source, target, overwrite)
    answer, sidecar = found.outputs
    _check_not_an_input([sidecar], [source, like])  # it would be taken for that of the new file
    if "plan" in read_object(found.sidecar):
        raise OutputRefused(
            got=f"a name whose JSON, {found.sidecar.name}, is that of an answer of enhance",
            need="one that has none",
            next="choose another name",
            place=target,
            code="output-json-of-another",
        )
    check_outputs([answer], [source, like], overwrite)
    return found


def find_output(source: Path, series: "Series | None", destination: Path | str, overwrite: bool = False) -> ScanOutput:
    """Finds where the answer to a scan goes that has been read; nothing is created.

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

        return find_series_outputs(Study((series,), (), ()), source, destination, overwrite)[0]
    target = _to_path(destination)
    if _is_folder_name(destination):
        raise OutputRefused(
            got="a folder as output",
            need="a file's name",
            next="add a name, such as thin.nii.gz",
            place=target,
            code="output-is-folder",
        )
    found = _pair(source, target, overwrite)
    check_outputs(found.outputs, [source], overwrite)
    return found


def find_sources(source: Path) -> list[Path]:
    """Returns the scans at a path: the file itself, or every one that lies directly in the folder, by name.

    Raises:
        InputRefused: there is no scan at `source`.
    """
    need, then = f"a scan ({', '.join(READABLE)}) or a folder of them", _way_to_nifti(source)
    try:
        if source.is_dir():
            visible = (f for f in source.iterdir() if not f.name.startswith("."))
            found = sorted(f for f in visible if sidecar_path(f) and not f.is_dir())
            if not found:
                got = "a folder with no scan directly in it"
                raise InputRefused(got=got, need=need, next=then, place=source, code="folder-without-scans")
            return found
        source.stat()
    except OSError as error:
        got = f"no access ({error.strerror})"
        raise InputRefused(got=got, need=need, next="check the name", place=source, code="no-access") from error
    if sidecar_path(source) is None:
        raise InputRefused(got="another kind of file", need=need, next=then, place=source, code="not-a-scan")
    return [source]


def find_namesake(folder: Path, scan: Path) -> Path:
    """Returns the file of a folder that is called as a scan is, in whatever format; one of the very name comes first.

    Raises:
        InputRefused: there are several.
    """
    same = folder / scan.name
    if same.exists() or not folder.is_dir():
        return same
    found = sorted(file for file in folder.iterdir() if ending(file) and stem_of(file) == stem_of(scan))
    if len(found) > 1:
        raise InputRefused(
            got=f"{' and '.join(file.name for file in found)} for {scan.name}",
            need="one of them",
            next="move the others away",
            place=folder,
            code="several-namesakes",
        )
    return found[0] if found else same


def _way_to_nifti(path: Path) -> str:
    suffix = path.suffix.lower()
    return next((way for suffixes, way in WAYS_TO_NIFTI if suffix in suffixes), WAY_FROM_DICOM)


def _to_path(destination: Path | str) -> Path:
    """Returns as a path what was typed as `output`; an empty text would otherwise mean the current folder."""
    if not str(destination):
        raise empty_name("`output`")
    return Path(destination)


def _pair(source: Path, destination: Path, overwrite: bool, series: "Series | None" = None) -> ScanOutput:
    sidecar = sidecar_path(destination)
    if sidecar is None or ending(destination) not in WRITABLE:
        raise OutputRefused(
            got="an output of another kind",
            need=f"a name that ends in {' or '.join(WRITABLE)}, or a folder",
            next="end a folder's name with /",
            place=destination,
            code="output-ending",
        )
    _check_json_is_its_own(destination, sidecar)
    return ScanOutput(source, destination, sidecar, series, overwrite)


def _check_json_is_its_own(destination: Path, sidecar: Path) -> None:
    """Refuses a name whose JSON is there already as that of an answer in another format: thin.nrrd beside thin.nii."""
    stem = stem_of(destination)
    others = [destination.with_name(f"{stem}{end}") for end in WRITABLE if f"{stem}{end}" != destination.name]
    there = [file.name for file in others if file.exists() and not destination.exists()]
    if there and {"plan", "combined_from"} & read_object(sidecar).keys():
        raise OutputRefused(
            got=f"a name whose JSON, {sidecar.name}, is that of {there[0]}",
            need="one JSON for each answer",
            next="choose another name, or move the earlier answer away",
            place=destination,
            code="output-json-of-another",
        )


def _check_folder(folder: Path, sources: Sequence[Path]) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputRefused(
            got="a file as output",
            need=f"a folder for {len(sources)} scan(s)",
            next="name a folder",
            place=folder,
            code="output-not-a-folder",
        )
    if not folder.exists() and sidecar_path(folder):
        raise OutputRefused(
            got="a file's name as output",
            need="a folder's",
            next=f"leave out {ending(folder)}",
            place=folder,
            code="output-not-a-folder",
        )


# ---- DICOM series and the places of their answers


def find_study(path: Path, output: Path | None = None) -> "Study | None":
    """Finds the DICOM series at a path; None where it holds other scans, or none: those are for `find_sources`.

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
    # A NIfTI file beside the slices is most often an answer of ours, or a segmentation: no scan of its own.
    beside = [file.name for file in sorted(path.iterdir()) if ending(file)] if path.is_dir() else []
    if beside:
        found = replace(found, notes=(*found.notes, f"{', '.join(beside)} beside the slices left alone"))
    if not found.series and not found.unusable:
        then = "name another folder" if path.is_dir() else "name the folder that the images lie in"
        got = "DICOM without any image"
        raise InputRefused(got=got, need="MR or CT images", next=then, place=path, code="dicom-without-images")
    return found


def _holds_dicom(path: Path) -> bool:
    try:
        if not path.is_dir():
            return not ending(path) and looks_like_dicom(path)
        here = without_voxel_files(file for file in path.iterdir() if not file.name.startswith("."))
        if any(not ending(file) and looks_like_dicom(file) for file in here):
            return True
        if any(ending(file) for file in here):
            return False
    except OSError:
        return False
    # Deep in a study there may be a hundred thousand files: the first slice is enough to know.
    below = ((folder / name) for folder, _, _, names in walk(path) for name in names if not name.startswith("."))
    return any(looks_like_dicom(file) for file in below)


def find_series_outputs(
    study: "Study", source: Path, destination: Path | str, overwrite: bool = False, nameless: bool = False
) -> list[ScanOutput]:
    """Pairs every series that can be read with the place of its answer; nothing is created.

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
    target = _to_path(destination)
    if ending(target) and not _is_folder_name(destination):
        found = [_into_file(study, source, target, overwrite)] if study.series else []
    else:
        found = _into_folders(study, target, overwrite, nameless)
    check_outputs([output for one in found for output in one.outputs], [one.source for one in found], overwrite)
    return found


def _into_folders(study: "Study", target: Path, overwrite: bool, nameless: bool) -> list[ScanOutput]:
    if (target.exists() and not target.is_dir()) or target.suffix.lower() == ".dcm":
        raise OutputRefused(
            got="a file as output",
            need="a folder for slices",
            next="name a folder",
            place=target,
            code="output-not-a-folder",
        )
    folders = [target] if len(study.series) == 1 else [target / name for name in names_of_series(study, nameless)]
    pairs = zip(study.series, folders, strict=True)
    return [ScanOutput(one.folder, folder, folder / REPORT_NAME, one, overwrite) for one, folder in pairs]


def _into_file(study: "Study", source: Path, target: Path, overwrite: bool) -> ScanOutput:
    if len(study.series) > 1:
        raise OutputRefused(
            got=f"{len(study.series)} series ({', '.join(one.label for one in study.series)}) for one file",
            need="one series",
            next="name the folder of one, or a folder as output",
            place=source,
            code="several-series",
        )
    return _pair(study.series[0].folder, target, overwrite, study.series[0])


def names_of_series(study: "Study", nameless: bool = False) -> list[str]:
    """Returns the name of each series' folder: its number and, unless ``nameless``, its description; each once."""
    names: list[str] = []
    for one in study.series:
        number = f"{one.images[0].number or 0:03d}"
        words = re.sub(r"[^A-Za-z0-9]+", "_", one.label.removeprefix(str(one.images[0].number or ""))).strip("_")
        name = number if nameless or not words else f"{number}_{words}"[:LONGEST_NAME].rstrip("_")
        # Names may be the same, or become so where they are cut off: then they get numbers.
        times = sum(other == name or other.startswith(f"{name}-") for other in names)
        names.append(f"{name}-{times + 1}" if times else name)
    return names
