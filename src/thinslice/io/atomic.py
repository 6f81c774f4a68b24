"""What is written is whole or not there, whatever happens meanwhile; and what a file seems to be.

Files are written under other names, in a hidden folder beside their places, and moved at the end. What holds then:

- A failure, Ctrl-C included, leaves everything as it was.
- ``kill -9`` and a power cut between two moves leave some of the new files or some of the earlier ones, each whole,
  never one of these beside one of those: all earlier ones leave before the first new one comes.
- Without ``overwrite`` a file that another program has put there meanwhile stays, and this run is refused.
- Of two runs that replace the same files and end at the same time, all files are those of one of them.
"""

import errno
import json
import logging
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from thinslice.errors import OutputRefused
from thinslice.files import make_folder, read_bytes
from thinslice.io.archives import START_BYTES, is_packed, members_of

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

HIDDEN = ".thinslice-"
"""How the names begin of what lies beside an output while it is made; after a ``kill -9`` it is left there."""

_LOCK = f"{HIDDEN}moving.lock"
"""The file of a folder that one process holds while it moves its outputs into their places."""

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What file systems say that have no locks, such as Lustre without its option for that."""

_MOST_TRIES = 100
"""How often a lock is made anew whose folder another process removes at the same time; each try takes microseconds."""


# ---- one file


@contextmanager
def whole_or_not(path: Path, overwrite: bool = True) -> Iterator[Path]:
    """Lends a temporary name in the same folder; it takes ``path``'s place if all went well, else it vanishes.

    Missing folders are made, and removed again after a failure, a KeyboardInterrupt included.

    Args:
        path: the file.
        overwrite: whether a file that is there at the end is replaced.

    Raises:
        OutputRefused: one is there, and it is not.
        OSError: it cannot be written.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with whole_or_not(Path(folder, "facts.json")) as part:
        ...         size = part.write_text("{}")
        ...     os.listdir(folder)
        ['facts.json']
    """
    missing = [folder for folder in path.parents if not folder.exists()]
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        make_folder(path.parent)
        yield temporary
        if overwrite:
            os.replace(temporary, path)
        else:
            with locked_folders([path.parent]):
                move_to_free_name(temporary, path)
            temporary.unlink(missing_ok=True)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise


def move_to_free_name(part: Path, target: Path) -> None:
    """Gives a file its name, if nothing has that name; the name ``part`` may be left, of the same file.

    A hard link is made in one step or not at all, on every file system that has them, NFS among them; a rename would
    replace what is there. Where there are none (FAT, some network shares) we look and then rename: a file that another
    program puts there between the two, some microseconds, is lost. Runs of thinslice do not: they hold a lock.

    Raises:
        OutputRefused: something has that name.
    """
    try:
        os.link(part, target)
    except OSError as error:
        if os.path.lexists(target):
            raise exists_already(target) from error
        logger.debug("no hard link to %s (%s): it is renamed", target, error.strerror)
        os.rename(part, target)


def exists_already(path: Path) -> OutputRefused:
    """Returns the error for an output that is there, where nothing may be replaced."""
    return OutputRefused(
        got="an output that exists already",
        need="a free name",
        next="choose another, or give `overwrite=True`",
        place=path,
        code="output-exists",
    )


# ---- several files


@contextmanager
def all_or_none(
    targets: Sequence[Path], overwrite: bool, find_stale: Callable[[], Iterable[Path]] | None = None
) -> Iterator[list[Path]]:
    """Lends places to write the targets to, in hidden folders beside them; at the end all are moved, or none.

    Args:
        targets: the files, each once. What is written beside one of the places is moved beside its target too.
        overwrite: whether files that are there at the end are replaced.
        find_stale: finds the files of an earlier answer that have to go when it is replaced, in folders of the targets.
            It is asked when the moves begin, since a run that ends earlier may have left more of them.

    Raises:
        OutputRefused: a target is there and may not be replaced, or is a folder.
        OSError: they cannot be written.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with all_or_none([Path(folder, "a.txt"), Path(folder, "b.txt")], overwrite=False) as parts:
        ...         sizes = [part.write_text("all of it") for part in parts]
        ...     sorted(os.listdir(folder))
        ['a.txt', 'b.txt']
    """
    with ExitStack() as stack:
        stages = {folder: stack.enter_context(_stage(folder)) for folder in dict.fromkeys(t.parent for t in targets)}
        parts = {target: stages[target.parent] / "new" / target.name for target in targets}
        yield list(parts.values())
        for folder, stage in stages.items():
            # What a writer has put beside its part goes with it: the file that holds the voxels of a header.
            parts = {folder / part.name: part for part in sorted((stage / "new").iterdir())} | parts
        missing = [part for part in parts.values() if not os.path.lexists(part)]
        if missing:
            raise FileNotFoundError(errno.ENOENT, "a file that was to be written is not there", str(missing[0]))
        with locked_folders(stages):
            _move_all(parts, stages, overwrite, find_stale)


@contextmanager
def _stage(folder: Path) -> Iterator[Path]:
    """Lends a hidden folder inside ``folder``; after a failure folders that had to be made for it vanish too."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        make_folder(folder)
        with tempfile.TemporaryDirectory(prefix=HIDDEN, dir=folder, ignore_cleanup_errors=True) as name:
            stage = Path(name)
            (stage / "new").mkdir()
            (stage / "earlier").mkdir()
            yield stage
    except BaseException:  # KeyboardInterrupt too
        for parent in missing:
            with suppress(OSError):
                parent.rmdir()
        raise


def _move_all(
    parts: Mapping[Path, Path],
    stages: Mapping[Path, Path],
    overwrite: bool,
    find_stale: Callable[[], Iterable[Path]] | None,
) -> None:
    """Moves every part to its target; after a failure all is as it was.

    What was done is read off the disk, not off a list of ours: Ctrl-C may come between a move and the note of it.
    """
    stale = dict.fromkeys(find_stale() if find_stale is not None and overwrite else ())
    if overwrite and len(parts) == 1 and not stale:
        [(target, part)] = parts.items()  # in one step: nobody ever sees the name without a file
        _refuse_folder(target)
        os.replace(part, target)
        return
    leaving = dict.fromkeys([*parts, *stale]) if overwrite else {}
    earlier = {target: stages[target.parent] / "earlier" / target.name for target in leaving}
    try:
        for target, place in earlier.items():
            _refuse_folder(target)
            with suppress(FileNotFoundError):
                os.replace(target, place)
        for target, part in parts.items():
            if overwrite:
                os.replace(part, target)
            else:
                move_to_free_name(part, target)
    except BaseException:
        for target, part in parts.items():
            if _has_become(part, target):
                target.unlink(missing_ok=True)
        for target, place in earlier.items():
            if os.path.lexists(place):
                os.replace(place, target)
        raise
    logger.debug("moved %d files into place, %d earlier ones away", len(parts), len(earlier))


def _refuse_folder(target: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        raise folder_in_place(target)


def folder_in_place(path: Path) -> OutputRefused:
    """Returns the error for a folder where a file is to be written."""
    return OutputRefused(
        got="a folder in the place of an output",
        need="a file's name",
        next="choose another",
        place=path,
        code="output-is-folder",
    )


def _has_become(part: Path, target: Path) -> bool:
    """Says whether the part, which had been written, has the target's name now: it may have both names."""
    try:
        return os.path.samestat(os.lstat(part), os.lstat(target))
    except FileNotFoundError:
        return not os.path.lexists(part)


# ---- locks


@contextmanager
def locked_folders(folders: Iterable[Path]) -> Iterator[None]:
    """Keeps every other run of thinslice from moving outputs into one of the folders meanwhile.

    All take the locks in the same order, so that no two wait for each other. Where the file system or Windows has
    none, two runs that replace the same files in the same instant can leave files of both.
    """
    with ExitStack() as stack:
        for folder in sorted({os.path.realpath(folder) for folder in folders}):
            stack.enter_context(hold_lock(Path(folder) / _LOCK))
        yield


@contextmanager
def hold_lock(path: Path, wait: bool = True) -> Iterator[None]:
    """Holds a file that no other process holds meanwhile; a process that dies holds it no longer.

    Folders that were made for it and are empty at the end are removed.

    Where the system or the file system has no locks, two runs on one output are the user's care.

    Raises:
        BlockingIOError: another does, and ``wait`` is False.
    """
    if fcntl is None:
        make_folder(path.parent)
        yield
        return
    made = [folder for folder in path.parents if not os.path.exists(folder)]
    while True:
        held = _opened(path)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_still(held, path):
                break
        except OSError as error:
            if error.errno in _NO_LOCKS:
                logger.debug("no locks for %s (%s)", path, error.strerror)
                break
            os.close(held)
            raise
        except BaseException:
            os.close(held)
            raise
        os.close(held)  # its holder has removed it meanwhile
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(held)
        for folder in made:  # nothing came of it
            with suppress(OSError):
                folder.rmdir()


def _opened(path: Path) -> int:
    """Opens a file, made where it is missing, and its folders, which another process may be about to remove."""
    for _ in range(_MOST_TRIES):
        with suppress(FileNotFoundError, FileExistsError):
            make_folder(path.parent)
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    make_folder(path.parent)
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)


def _is_still(held: int, path: Path) -> bool:
    """Says whether the name still is that of the open file: its last holder may have removed it while we waited."""
    try:
        return os.path.samestat(os.fstat(held), os.stat(path))
    except OSError:
        return False


# ---- what a file seems to be


def read_object(path: Path) -> dict[str, Any]:
    """Returns what a JSON file holds, if it is an object; else, and where it cannot be read, an empty one."""
    try:
        content: Any = json.loads(read_bytes(path))  # finds out the encoding of bytes
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def is_inside(place: str, folder: str) -> bool:
    """Says whether a path is that of a folder or leads into it; both are real paths.

    Example:
        >>> is_inside("/data/a/scan.nii", "/data/a"), is_inside("/data/ab", "/data/a")
        (True, False)
    """
    return place == folder or place.startswith(os.path.join(folder, ""))


def looks_like_dicom(path: Path) -> bool:
    """Says whether a regular file is DICOM, or an archive or a gzip stream with DICOM in it."""
    try:
        if not path.is_file():  # a pipe would never end
            return False
        with open(path, "rb") as raw:
            start = raw.read(START_BYTES)
        if not is_packed(start):
            return starts_like_dicom(start)
        # Whatever a library says of a damaged archive: nobody knows that there was DICOM in it.
        with suppress(Exception):
            return any(starts_like_dicom(member.stream.read(START_BYTES)) for member in members_of(path))
    except OSError:
        return False
    return False


def starts_like_dicom(start: bytes) -> bool:
    """Says whether a file that starts so is DICOM: it says so, or starts as those do that were written without.

    Example:
        >>> starts_like_dicom(bytes(128) + b"DICM")
        True
    """
    start = start[:132]
    if start[128:132] == b"DICM":
        return True
    orders: tuple[Literal["little", "big"], ...] = ("little", "big")
    tags = [[int.from_bytes(start[at : at + 2], order) for at in (0, 2)] for order in orders]
    return len(start) == 132 and any(group in (2, 8) and element < 0x20 for group, element in tags)
