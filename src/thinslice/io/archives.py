"""Files in files: gzip, zip and tar, as scans are sent and stored; read one after the other, never unpacked unseen."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple, cast

GZIP = b"\x1f\x8b"
"""How a gzip stream begins."""

ZIP = b"PK\x03\x04"
"""How a zip file begins."""

OTHER_TARS = (b"BZh", b"\xfd7zXZ\x00")
"""How bzip2 and xz begin: only tar files of these kinds are read."""

TAR = b"ustar"
"""What stands at byte `TAR_AT` of a tar file."""

TAR_AT = 257
"""Where that stands."""

START_BYTES = 512
"""As much of a file as is needed to know what it is."""

MOST_MEMBERS = 100_000
"""More files in one archive are not looked at: the largest studies have some ten thousand."""

MOST_OTHER_BYTES = 2**30
"""So much in a tar file may be no DICOM (viewers, films): it has to be read to get at what lies behind it."""


class Member(NamedTuple):
    """One file in an archive: its name without folders, how many bytes it says it has (None: unknown), its content."""

    name: str
    size: int | None
    stream: BinaryIO


def is_packed(start: bytes) -> bool:
    """Tells whether a file that starts so may have other files in it.

    Example:
        >>> is_packed(b"PK\\x03\\x04..."), is_packed(b"a text")
        (True, False)
    """
    return start.startswith((GZIP, ZIP, *OTHER_TARS)) or start[TAR_AT : TAR_AT + len(TAR)] == TAR


def members_of(path: Path) -> Iterator[Member]:
    """Yields the files in an archive, or the one in a gzip stream; each has to be read before the next is asked for.

    Raises:
        ValueError: it has more files, or more to skip, than is ever needed.
        OSError, EOFError, and what the libraries raise: it is damaged or locked with a password.
    """
    with open(path, "rb") as raw:
        start = raw.read(START_BYTES)
    if start.startswith(ZIP):
        yield from _in_zip(path)
        return
    if start.startswith(GZIP):
        with gzip.open(path) as stream:
            inner = stream.read(START_BYTES)
        if inner[TAR_AT : TAR_AT + len(TAR)] != TAR:
            name = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
            with gzip.open(path) as stream:
                yield Member(name, None, cast(BinaryIO, stream))
            return
    yield from _in_tar(path)


def _in_zip(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        _check_count(len(entries))
        for entry in entries:
            with archive.open(entry) as stream:
                yield _unzipped(entry.filename, entry.file_size, cast(BinaryIO, stream))


def _in_tar(path: Path) -> Iterator[Member]:
    skipped = 0
    # As a stream: nothing is looked up twice, so that a compressed one is unpacked once.
    with tarfile.open(path, "r|*") as archive:
        for count, entry in enumerate(archive):
            _check_count(count)
            stream = archive.extractfile(entry) if entry.isreg() else None
            if stream is not None:
                yield _unzipped(entry.name, entry.size, cast(BinaryIO, stream))
            # What was not read has to be skipped now, which takes as long.
            skipped += entry.size if stream is None or stream.tell() < entry.size else 0
            if skipped > MOST_OTHER_BYTES:
                raise ValueError(f"more than {MOST_OTHER_BYTES:,} bytes of other files")


def _check_count(count: int) -> None:
    if count > MOST_MEMBERS:
        raise ValueError(f"more than {MOST_MEMBERS:,} files")


def _unzipped(name: str, size: int, stream: BinaryIO) -> Member:
    """Returns a member; of a gzip stream in an archive what is in that."""
    # The name alone: a path out of the folder, as attackers write it, leads nowhere.
    name = PurePosixPath(name.replace("\\", "/")).name
    buffered = io.BufferedReader(cast(io.RawIOBase, stream))
    if buffered.peek(2)[:2] == GZIP:
        return Member(name.removesuffix(".gz"), None, cast(BinaryIO, gzip.GzipFile(fileobj=buffered)))
    return Member(name, size, buffered)
