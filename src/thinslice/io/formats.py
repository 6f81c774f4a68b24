"""The formats of files that hold a scan, a row each, and what follows from them: read, as_stored, write, and names.

A folder, or a file that is DICOM whatever its name, is read as the one series that it holds; see `thinslice.io.dicom`
for folders of several, and for writing. What a name does not tell is read as the first row, which says what it is
instead.

To add a format, write a module with a ``read``, and with a ``write`` and an ``as_stored`` where it is written too (see
`FormatModule`), and add a row to `FORMATS`. Nothing else knows how many formats there are. A row's module is imported
when the first file of its kind is met: the command line starts without any of them.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from thinslice.errors import InputRefused, OutputRefused
from thinslice.io.atomic import looks_like_dicom

if TYPE_CHECKING:  # numpy takes a tenth of a second to import
    from thinslice.volume import Volume

logger = logging.getLogger(__name__)


class FormatModule(Protocol):
    """What the module of a format has; one that is only read has only the first."""

    def read(self, path: Path) -> "Volume":
        """Reads one scan; whatever goes wrong is an `InputRefused`."""

    def write(self, volume: "Volume", path: Path, like: "Volume | None" = None) -> None:
        """Writes a scan, whole or not at all, with what the header of the source says; refuses by `OutputRefused`."""

    def as_stored(self, volume: "Volume") -> "Volume":
        """Gives the voxels, in place, the values that `write` will put into a file."""


class DetachedModule(FormatModule, Protocol):
    """What the module of a format has too whose headers may name another file for their voxels."""

    def data_file(self, path: Path) -> Path | None:
        """Returns that file; None where the voxels are in the header's own."""


@dataclass(frozen=True)
class Format:
    """One format of files.

    Attributes:
        name: what people call it.
        module: the full name of the module that reads and writes it, see `FormatModule`.
        kind: a file of it, as the object of a sentence: "got an NRRD file".
        endings: how the names of its files end, in small letters.
        written: those of them that can be written; a new file gets the first.
        detached: those of a header whose voxels lie in another file beside it.
        voxel_endings: how the name of that other file may end where such a header is written, else as the header's.
        signatures: (place, bytes) that tell one of its files by its content.
        is_folder: whether a folder of files is one scan.
        recognises: tells a file of it whose name does not end in any special way.

    Example:
        >>> toy = Format("Toy", "toy_format", "a toy", endings=(".toy", ".toyhdr"), written=(".toy",))
        >>> str(toy)
        'Toy (.toy, .toyhdr)'
        >>> toy.ending_to_write(".toyhdr")
        '.toy'
    """

    name: str
    module: str
    kind: str
    endings: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    detached: tuple[str, ...] = ()
    voxel_endings: tuple[str, ...] = ()
    signatures: tuple[tuple[int, bytes], ...] = ()
    is_folder: bool = False
    recognises: Callable[[Path], bool] | None = None

    def __str__(self) -> str:
        """Returns its name, and how its files are called."""
        return f"{self.name} ({', '.join(self.endings)})" if self.endings else self.name

    def load(self) -> FormatModule:
        """Imports its module."""
        return cast(FormatModule, import_module(self.module))

    def starts(self, start: bytes) -> bool:
        """Tells whether a file that begins so is one of its files."""
        return any(start[place : place + len(mark)] == mark for place, mark in self.signatures)

    def ending_to_write(self, suffix: str) -> str:
        """Returns how the answer to a file that ends so is called: as that, if it can be written as one file."""
        if suffix in self.written and suffix not in self.detached:
            return suffix
        return next((other for other in self.written if other not in self.detached), FORMATS[0].written[0])


FORMATS = (
    Format(
        "NIfTI",
        "thinslice.io.nifti",
        "a plain NIfTI or Analyze file",
        endings=(".nii.gz", ".nii"),
        written=(".nii.gz", ".nii"),
        signatures=tuple((0, size.to_bytes(4, order)) for size in (348, 540) for order in ("little", "big")),
    ),
    Format(
        "FreeSurfer",
        "thinslice.io.mgh",
        "a plain FreeSurfer volume",
        endings=(".mgz", ".mgh"),
        written=(".mgz", ".mgh"),
        signatures=((0, b"\x00\x00\x00\x01"),),
    ),
    Format(
        "NRRD",
        "thinslice.io.nrrd",
        "an NRRD file",
        endings=(".nrrd", ".nhdr"),
        written=(".nrrd",),
        detached=(".nhdr",),
        signatures=((0, b"NRRD"),),
    ),
    Format(
        "MetaImage",
        "thinslice.io.metaimage",
        "a MetaImage file",
        endings=(".mha", ".mhd"),
        written=(".mha", ".mhd"),
        detached=(".mhd",),
        voxel_endings=(".raw", ".zraw"),
        signatures=((0, b"ObjectType = "), (0, b"NDims = ")),
    ),
    Format(
        "DICOM",
        "thinslice.io.dicom.pixels",
        "a DICOM file",
        signatures=((128, b"DICM"),),
        is_folder=True,
        recognises=looks_like_dicom,
    ),
)
"""All formats; the first is that of a file whose name and content say nothing."""

READABLE = tuple(suffix for row in FORMATS for suffix in row.endings)
"""How the names of files end that hold one scan."""

WRITABLE = tuple(suffix for row in FORMATS for suffix in row.written)
"""How the names of files end that can be written."""


# ---- files


def read(path: Path) -> "Volume":
    """Reads one scan; see the `read` of its format.

    Raises:
        InputRefused: not a readable scan; one line: the file, what was got, what is needed, what to do next.
    """
    path = Path(path)
    row = format_of(path)
    logger.debug("%s is read as %s", path, row.name)
    return row.load().read(path)


def write(volume: "Volume", path: Path, like: "Volume | None" = None) -> None:
    """Writes a scan in the format that the name asks for; see the `write` of that format.

    The header of the source (`like`, else the volume) lends what it says where it is of the same format.

    Raises:
        OutputRefused: another kind of name, a folder that cannot be written to, or voxels that the format cannot hold.
    """
    path = Path(path)
    check_name(path)
    format_of(path).load().write(volume, path, like)


def as_stored(volume: "Volume", path: Path) -> "Volume":
    """Returns the volume with the values that `write` will put into a file of that name; its voxels are spent on it.

    Raises:
        OutputRefused: another kind of name, or voxels that the format cannot hold.
    """
    path = Path(path)
    check_name(path)
    return format_of(path).load().as_stored(volume)


def format_of(path: Path) -> Format:
    """Returns the row of a scan: by the name, else, for a folder or a file of another name, by what is there."""
    # A folder may be called scan.nii.
    suffix = None if path.is_dir() else ending(path)
    if suffix is not None:
        return _row_of(suffix)
    if path.is_dir():
        return next(row for row in FORMATS if row.is_folder)
    return next((row for row in FORMATS if row.recognises is not None and row.recognises(path)), FORMATS[0])


def check_name(path: Path) -> None:
    """Refuses what no scan can be written as.

    Raises:
        OutputRefused: the name ends otherwise.
    """
    if ending(path) not in WRITABLE:
        raise OutputRefused(
            got="another kind of name",
            need=f"{', '.join(WRITABLE[:-1])} or {WRITABLE[-1]}",
            next="change the output's name",
            place=path,
            code="output-name",
        )


# ---- names


def ending(path: Path) -> str | None:
    """Returns which of `READABLE` a file's name ends with, in small letters; None where it is not a scan's name.

    Example:
        >>> ending(Path("T1.NII.GZ")), ending(Path("notes.txt")), ending(Path(".nii"))
        ('.nii.gz', None, None)
    """
    found = (suffix for suffix in READABLE if path.name.lower().endswith(suffix) and len(path.name) > len(suffix))
    return next(found, None)


def stem_of(path: Path) -> str:
    """Returns a file's name without a scan's ending.

    Example:
        >>> stem_of(Path("scan.v2.nii.gz")), stem_of(Path("scan.txt"))
        ('scan.v2', 'scan.txt')
    """
    return path.name[: len(path.name) - len(ending(path) or "")]


def sidecar_path(path: Path) -> Path | None:
    """Returns the JSON that lies beside a scan, of the same folder and name; None where the name is not a scan's.

    Example:
        >>> sidecar_path(Path("scan.nii.gz")).name
        'scan.json'
    """
    return path.with_name(f"{stem_of(path)}.json") if ending(path) else None


def name_to_write(name: str) -> str:
    """Returns the name of the answer to a file of that name: the same, but a header without voxels becomes one file.

    Example:
        >>> name_to_write("a.nii"), name_to_write("a.nhdr")
        ('a.nii', 'a.nrrd')
    """
    suffix = ending(Path(name))
    if suffix is None:
        return name
    wanted = _row_of(suffix).ending_to_write(suffix)
    return name if wanted == suffix else f"{name[: -len(suffix)]}{wanted}"


def own_ending(volume: "Volume") -> str:
    """Returns how the name of a file ends that keeps the header of a scan: as that of its source, else as NIfTI's."""
    known = ending(Path(name_to_write(volume.source.name))) if volume.source is not None else None
    return known if known and volume.header is not None else FORMATS[0].written[0]


def is_same_format(one: str, other: str) -> bool:
    """Tells whether names that end in these two ways are of one format.

    Example:
        >>> is_same_format(".nii", ".nii.gz"), is_same_format(".nii", ".mgz")
        (True, False)
    """
    return one == other or any({one, other} <= set(row.endings) for row in FORMATS)


def has_detached_voxels(path: Path) -> bool:
    """Tells whether a file of that name is a header whose voxels lie in another file beside it."""
    suffix = ending(path)
    return suffix is not None and suffix in _row_of(suffix).detached


def voxel_file(path: Path) -> Path | None:
    """Returns the file that holds the voxels of a header; None for a scan in one file, and where a header is damaged.

    That a header is damaged is told when it is read.
    """
    if not has_detached_voxels(path):
        return None
    try:
        return cast(DetachedModule, format_of(path).load()).data_file(path)
    except InputRefused as error:
        logger.debug("%s", error)
        return None


def without_voxel_files(files: Iterable[Path]) -> list[Path]:
    """Returns the files but for those that hold the voxels of a header among them: they are no scans by themselves.

    By chance the numbers that one of them begins with may look like a DICOM file.
    """
    files = list(files)
    held = {voxel_file(file) for file in files if has_detached_voxels(file)}
    return [file for file in files if file not in held]


def files_beside(path: Path) -> list[Path]:
    """Returns the names that `write` may take beside that of the scan: those for the voxels of a header.

    Example:
        >>> [file.name for file in files_beside(Path("thin.mhd"))], files_beside(Path("thin.mha"))
        (['thin.raw', 'thin.zraw'], [])
    """
    if not has_detached_voxels(path):
        return []
    return [path.with_name(f"{stem_of(path)}{suffix}") for suffix in format_of(path).voxel_endings]


def formats_in_words() -> str:
    """Returns the formats of files by their names and endings, for the help of the command line."""
    *first, last = (str(row) for row in FORMATS if row.endings)
    return f"{', '.join(first)} or {last}"


def _row_of(suffix: str) -> Format:
    return next(row for row in FORMATS if suffix in row.endings)
