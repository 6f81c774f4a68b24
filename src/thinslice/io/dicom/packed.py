"""DICOM files in archives -> files in a folder of their own, each no larger than its header says it can be."""

import logging
import shutil
import tempfile
import weakref
from io import BytesIO
from pathlib import Path

from pydicom import dcmread, uid
from pydicom.dataset import Dataset

from thinslice.errors import ThinsliceError
from thinslice.io.archives import Member, members_of
from thinslice.io.atomic import starts_like_dicom
from thinslice.io.dicom.headers import printable, quiet
from thinslice.io.refusals import AGAIN, one_line, refused

logger = logging.getLogger(__name__)

MOST_HEADER_BYTES = 64 * 2**20
"""What a header, and what follows the voxels, may have: the largest, of enhanced files, have a few megabytes."""

CHUNK_BYTES = 2**20
"""How much is unpacked at a time."""

LARGER_COMPRESSED = 2
"""Voxels that a codec has packed take no more than so many times the room that they take without."""

LONGEST_NAME = 100
"""Characters that are kept of a name in an archive."""


class Unpacked:
    """A folder with what was in an archive, which vanishes when nobody needs it any more."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="thinslice-"))
        # Also at the end of the program, whatever ends it.
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.files: list[Path] = []


def unpack(path: Path) -> Unpacked:
    """Returns the DICOM files that an archive, or a gzip stream, holds.

    Raises:
        InputRefused: it is damaged, locked, or holds more than the headers in it say; or there is no room for it.
        OSError: the archive cannot be read.
    """
    found = Unpacked()
    try:
        for number, member in enumerate(members_of(path)):
            _unpack_member(member, number, found)
    except (ThinsliceError, MemoryError, PermissionError, FileNotFoundError):
        raise
    except Exception as error:  # each library has its own errors for what is damaged
        got = f"an archive that cannot be unpacked ({one_line(f'{type(error).__name__}: {error}')[:160]})"
        raise refused(got, "the whole file, without a password", AGAIN, code="archive-damaged") from error
    logger.debug("%s: %d DICOM files unpacked to %s", path, len(found.files), found.folder)
    return found


def _unpack_member(member: Member, number: int, found: Unpacked) -> None:
    start = member.stream.read(CHUNK_BYTES)
    if not starts_like_dicom(start):
        return
    most = _most_bytes(start, member)
    if (member.size or 0) > most:
        raise _too_large(member, most)
    free = shutil.disk_usage(found.folder).free
    if most - MOST_HEADER_BYTES > free // 2:
        got = f"{most - MOST_HEADER_BYTES:,} bytes to unpack for a while, with {free:,} free"
        raise refused(got, "twice as much room", "unpack it yourself where there is room", code="no-room")
    # A folder for each: in an archive many files may have one name.
    target = found.folder / str(number) / (printable(member.name).replace("/", "_")[-LONGEST_NAME:] or "image")
    target.parent.mkdir()
    done = len(start)
    with open(target, "wb") as out:
        out.write(start)
        while part := member.stream.read(CHUNK_BYTES):
            done += len(part)
            if done > most:
                raise _too_large(member, most)
            out.write(part)
    found.files.append(target)


def _too_large(member: Member, most: int) -> ThinsliceError:
    got = f"{printable(member.name)}, which unpacks to more than the {most:,} bytes that its header allows"
    return refused(got, "a file that holds what it says", AGAIN, code="archive-too-large")


def _most_bytes(start: bytes, member: Member) -> int:
    """Returns how many bytes a file that begins so can have."""
    try:
        with quiet():
            found = dcmread(BytesIO(start), stop_before_pixels=True, force=True)
            return MOST_HEADER_BYTES + _voxel_bytes(found)
    except Exception:  # a header that is longer than its beginning, or damaged: what it is in truth is seen later
        logger.debug("%s: its header is longer than %d bytes, or damaged", member.name, len(start))
        return MOST_HEADER_BYTES + LARGER_COMPRESSED * (member.size or 0)


def _voxel_bytes(found: Dataset) -> int:
    """Returns how many bytes of voxels a header describes."""
    count = 1
    for name in ("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames"):
        count *= max(int(found.get(name) or 1), 1)
    size = count * max(int(found.get("BitsAllocated") or 8), 8) // 8
    syntax = uid.UID(found.file_meta.get("TransferSyntaxUID") or uid.ImplicitVRLittleEndian)
    return size * (LARGER_COMPRESSED if syntax.is_transfer_syntax and syntax.is_encapsulated else 1)
