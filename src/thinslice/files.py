"""Files and folders of strangers: only regular files are opened, and no deeper folder is too deep."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

MOST_TEXT_BYTES = 64 * 2**20
"""A JSON, a key or a table of ours has some kilobytes: more than this is none, or is meant to fill the memory."""


def no_complaint(error: OSError) -> None:
    """Does nothing, for callers to whom a folder that cannot be read is an empty one."""


def check_is_regular(path: Path, most_bytes: int | None = None) -> int:
    """Returns the size in bytes of a regular file.

    Raises:
        OSError: it is no regular file (a pipe or a device may never end), larger than ``most_bytes``, or not there.
    """
    facts = os.stat(path)
    if stat.S_ISDIR(facts.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(errno.EINVAL, "A pipe or a device, not a file", str(path))
    if most_bytes is not None and facts.st_size > most_bytes:
        raise OSError(errno.EFBIG, f"{facts.st_size:,} bytes, where {most_bytes:,} are plenty", str(path))
    return facts.st_size


def read_bytes(path: Path, most_bytes: int = MOST_TEXT_BYTES) -> bytes:
    """Returns the bytes of a regular file that has no more than ``most_bytes``.

    Raises:
        OSError: see `check_is_regular`, or it cannot be read.

    Example:
        >>> read_bytes(Path("/dev/zero"))
        Traceback (most recent call last):
        OSError: [Errno 22] A pipe or a device, not a file: '/dev/zero'
    """
    size = check_is_regular(path, most_bytes)
    with open(path, "rb") as stream:
        # As much as there was: a file to which another program goes on writing has no end.
        return stream.read(size)


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Returns the text of a regular file of `MOST_TEXT_BYTES` at most.

    Raises:
        OSError: see `read_bytes`.
        ValueError: it is no text of that encoding.
    """
    return read_bytes(path).decode(encoding)


def walk(
    top: Path, follow_links: bool = True, complain: Callable[[OSError], None] = no_complaint
) -> Iterator[tuple[Path, str, list[str], list[str]]]:
    """Yields every folder at and below one: (its path, its real path, names of folders in it, names of files in it).

    Each real folder comes once, whatever links lead to it. The caller may take names out of the list of folders, or
    put them in order, as with `os.walk`; but folders may be of any depth.

    Args:
        top: where to begin.
        follow_links: whether links to folders are gone into; they are among the names of folders anyway.
        complain: called with the error of a folder that cannot be listed.
    """
    # `os.walk` calls itself for each level (until Python 3.12), and ends with a RecursionError a thousand levels down.
    waiting = [(top, os.path.realpath(top))]
    seen: set[str] = set()
    while waiting:
        folder, real = waiting.pop()
        if real in seen:
            continue
        seen.add(real)
        folders: list[str] = []
        files: list[str] = []
        links = set()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    (folders if _is_folder(entry) else files).append(entry.name)
                    if entry.is_symlink():
                        links.add(entry.name)
        except OSError as error:
            complain(error)
            continue
        yield folder, real, folders, files
        for name in reversed(folders):
            below = folder / name
            if name not in links:
                # Not by `realpath`, which asks the system for every part of the path: the square of the depth.
                waiting.append((below, os.path.join(real, name)))
            elif follow_links:
                waiting.append((below, os.path.realpath(below)))


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def make_folder(folder: Path) -> None:
    """Makes a folder, and those that it lies in, where they are missing.

    Raises:
        OSError: a file is in the place of one, or it may not be made.
    """
    # `Path.mkdir(parents=True)` calls itself for every folder that is missing: see `walk`.
    missing = []
    for one in (folder, *folder.parents):
        if os.path.isdir(one):
            break
        missing.append(one)
    for one in reversed(missing):
        one.mkdir(exist_ok=True)
