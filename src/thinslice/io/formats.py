"""Files of any format, by the endings of their names: read, as_stored, write.

    .nii, .nii.gz    NIfTI        thinslice.io.nifti
    .mgh, .mgz       FreeSurfer   thinslice.io.mgh
    .nrrd, .nhdr     NRRD         thinslice.io.nrrd    (.nhdr, whose voxels are in another file, is not written)

A folder, or a file that is DICOM whatever its name, is read as the one series that it holds; see `thinslice.io.dicom`
for folders of several, and for writing. What a name does not tell is read as NIfTI, which says what it is instead.
"""

from pathlib import Path
from types import ModuleType
from typing import cast

from thinslice.errors import OutputRefused
from thinslice.io import nifti
from thinslice.io.atomic import looks_like_dicom
from thinslice.volume import ENDINGS, Volume, ending

READABLE = ENDINGS
WRITABLE = tuple(suffix for suffix in ENDINGS if suffix != ".nhdr")


def read(path: Path) -> Volume:
    """Read one scan; see the `read` of its format.

    Raises:
        InputRefused: not a readable scan; one line: the file, what was got, what is needed, what to do next.
    """
    path = Path(path)
    if path.is_dir() or (not ending(path) and looks_like_dicom(path)):
        from thinslice.io.dicom.pixels import read_only_series

        return read_only_series(path)
    return cast(Volume, _format_of(path).read(path))


def write(volume: Volume, path: Path, like: Volume | None = None) -> None:
    """Write a scan in the format that the name asks for; see the `write` of that format.

    The header of the source (`like`, else the volume) lends what it says where it is of the same format.

    Raises:
        OutputRefused: another kind of name, a folder that cannot be written to, or voxels that the format cannot hold.
    """
    path = Path(path)
    check_name(path)
    _format_of(path).write(volume, path, like)


def as_stored(volume: Volume, path: Path) -> Volume:
    """The volume with the values that `write` will put into a file of that name; its voxels are spent on it.

    Raises:
        OutputRefused: another kind of name, or voxels that the format cannot hold.
    """
    path = Path(path)
    check_name(path)
    return cast(Volume, _format_of(path).as_stored(volume))


def _format_of(path: Path) -> ModuleType:
    """The module that reads and writes files of that name; loaded when it is needed."""
    suffix = ending(path)
    if suffix in (".mgh", ".mgz"):
        from thinslice.io import mgh

        return mgh
    if suffix in (".nrrd", ".nhdr"):
        from thinslice.io import nrrd

        return nrrd
    return nifti


def name_to_write(name: str) -> str:
    """The name of an answer to a file of that name: the same, but a.nhdr, which is not written, becomes a.nrrd."""
    return f"{name[: -len('.nhdr')]}.nrrd" if ending(Path(name)) == ".nhdr" else name


def own_ending(volume: Volume) -> str:
    """How the name of a file ends that keeps the header of a scan: as that of its source, else as NIfTI's."""
    known = ending(Path(name_to_write(volume.source.name))) if volume.source is not None else None
    return known if known and volume.header is not None else ".nii.gz"


def same_format(one: str, other: str) -> bool:
    """Whether two of `WRITABLE` are one format: .nii and .nii.gz, .mgh and .mgz."""
    return one == other or {one, other} in ({".nii", ".nii.gz"}, {".mgh", ".mgz"})


def check_name(path: Path) -> None:
    """Refuse what no scan can be written as.

    Raises:
        OutputRefused: the name ends otherwise.
    """
    if ending(path) not in WRITABLE:
        raise OutputRefused(
            f"{path}: got another kind of name; need {', '.join(WRITABLE[:-1])} or {WRITABLE[-1]}; "
            "next: change the output's name"
        )
