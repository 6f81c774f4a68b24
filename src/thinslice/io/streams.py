"""The bytes of a file as a stream: packed or not, read with an eye on its size, written whole or not at all."""

import gzip
import math
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO, cast

import numpy as np

from thinslice.io.atomic import whole_or_not
from thinslice.io.formats import FORMATS
from thinslice.io.refusals import AGAIN, WHOLE, refused
from thinslice.io.scratch import ON_DISK_BYTES, check_memory

SLAB_BYTES = 16 * 2**20
"""How much is read, computed or written at a time: large enough to be fast, small beside a scan."""

GZIP_BEST_RATIO = 1040
"""A gzip file holds at most so many times its own size: deflate cannot shrink more than 1032 : 1."""

MOST_BEHIND_BYTES = 64 * 2**20
"""What may follow the voxels in a packed file, such as the tags of FreeSurfer: a few kilobytes as a rule."""

MOST_PADDING_BYTES = 2**20
"""What may be filled with zeros behind a gzip stream, as tapes and some transfers do it in blocks of some kilobytes."""

_FOREIGN_SIGNATURES = {
    b"\x89PNG": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture",
    b"II*\x00": "a TIFF picture", b"PK\x03\x04": "a zip archive", b"BZh": "a bzip2 file",
    b"\x28\xb5\x2f\xfd": "a zstd file", b"\x89HDF": "an HDF5 or MINC file", b"\x1f\x8b": "a gzip file",
}  # fmt: skip
"""How files of other kinds begin, and what they are called in a refusal."""


def check_is_file(path: Path, need: str) -> int:
    """Returns size in bytes of a regular file.

    Raises:
        InputRefused: it is none, or empty.
    """
    if path.is_dir():
        raise refused("a folder", need, "name a file in it", code="not-a-file")
    size = path.stat().st_size
    if not path.is_file():
        raise refused("a pipe or device", need, "save the scan to a file first", code="not-a-file")
    if size == 0:
        raise refused("an empty file", need, AGAIN, code="empty-file")
    return size


@contextmanager
def unpacked(path: Path, packed: str, plain: str) -> Iterator[BinaryIO]:
    """Lends the file's bytes as a stream, uncompressed where they are gzip.

    Args:
        path: the file.
        packed: the ending of names that promise gzip; other files may be gzip too.
        plain: the ending of those that do not.

    Raises:
        InputRefused: the name promises gzip in vain.
    """
    with open(path, "rb") as raw:
        # By content: many a .nii is gzip, whatever its name says.
        is_gzip = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if is_gzip:
            _check_padding(raw)
            with gzip.GzipFile(fileobj=raw) as stream:
                yield cast(BinaryIO, stream)
        elif path.name.lower().endswith(packed):
            got = f"{kind_of(raw.read(348))}, not gzip"
            raise refused(got, "what the name promises", f"rename it to {plain} or copy it again", code="other-format")
        else:
            yield raw


def _check_padding(raw: BinaryIO) -> None:
    """Refuses gzip with megabytes of zeros behind it, which Python's reader would skip one byte after the other."""
    size = raw.seek(0, os.SEEK_END)
    raw.seek(max(0, size - MOST_PADDING_BYTES))
    # Packed bytes are never all zero for so long: the checksum at their end is not.
    is_padded = size > MOST_PADDING_BYTES and not raw.read(MOST_PADDING_BYTES).strip(b"\0")
    raw.seek(0)
    if is_padded:
        got = f"a compressed stream with more than {MOST_PADDING_BYTES:,} zeros behind it"
        raise refused(got, WHOLE, AGAIN, code="endless-stream")


def most_bytes(stream: BinaryIO, file_bytes: int) -> int:
    """Returns how much a stream can hold at most."""
    return file_bytes * (GZIP_BEST_RATIO if isinstance(stream, Unpacked) else 1)


def kind_of(start: bytes) -> str:
    """Returns what a file of another kind seems to be, from its first bytes."""
    if not start:
        return "no content"
    # Ours first: what is said of a scan under a wrong name leads to the right one.
    ours = [row.kind for row in FORMATS if row.starts(start)]
    others = [kind for signature, kind in _FOREIGN_SIGNATURES.items() if start.startswith(signature)]
    if ours or others:
        return (ours + others)[0]
    if all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in start):
        return "a text file"
    return "an unknown kind of file"


def read_voxels(
    stream: BinaryIO, path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], file_bytes: int
) -> np.ndarray:
    """Reads stored values in native byte order; a plain file of 512 MB or more is mapped copy-on-write, not loaded.

    Args:
        stream: of the file `path`, plain or gzip, at its byte `offset`.
        path: the file, which has `file_bytes`.
        offset: where the voxels begin.
        shape: any, the first axis fastest.
        dtype: in the file's byte order.
        file_bytes: size of the file.

    Raises:
        InputRefused: the file holds less.
    """
    size = math.prod(shape) * dtype.itemsize
    need = f"{size:,} bytes of voxels, as its header says"
    # Before anything is allocated: a header of a few bytes may claim terabytes.
    if offset + size > most_bytes(stream, file_bytes):
        raise refused(f"a file of {file_bytes:,} bytes", need, AGAIN, code="cut-off")
    if size >= ON_DISK_BYTES and not isinstance(stream, Unpacked):
        # Copy-on-write: voxels are changed in place later on, and the file stays what it is.
        stored = np.asarray(np.memmap(path, dtype, "c", offset, shape, order="F"))
    else:
        check_memory(size)
        stored = np.empty(shape, dtype, order="F")
        read_bytes = _fill(stream, stored)
        if read_bytes < size:
            raise refused(f"{read_bytes:,} bytes", need, AGAIN, code="cut-off")
    return as_native(stored)


def as_native(stored: np.ndarray) -> np.ndarray:
    """Returns the array, which is spent on it, in the byte order of this machine."""
    return stored if stored.dtype.isnative else stored.byteswap(inplace=True).view(stored.dtype.newbyteorder("="))


def drain(stream: BinaryIO) -> None:
    """Reads a packed stream to its end, where the checksum is.

    Raises:
        InputRefused: far more follows than any format has behind the voxels.
    """
    follows = 0
    while isinstance(stream, Unpacked) and (part := stream.read(SLAB_BYTES)):
        follows += len(part)
        if follows > MOST_BEHIND_BYTES:
            raise refused(
                f"a compressed stream with more than {MOST_BEHIND_BYTES:,} bytes behind its voxels",
                "one that ends where its header says",
                f"{AGAIN}, or write the scan anew",
                code="endless-stream",
            )


def _fill(stream: BinaryIO, array: np.ndarray) -> int:
    """Reads into the array, in file order, until it is full or the stream ends; returns the number of bytes read."""
    target = memoryview(cast(Any, array.reshape(-1, order="F").view(np.uint8)))
    done = 0
    while done < len(target):
        count = cast(Any, stream).readinto(target[done : done + SLAB_BYTES])
        if not count:
            break
        done += count
    return done


@contextmanager
def in_place_of(path: Path, packed: bool) -> Iterator[BinaryIO]:
    """Lends a stream to a temporary file, which takes `path`'s place if all went well, else vanishes."""
    with whole_or_not(path) as temporary, open(temporary, "xb") as raw:
        if packed:
            packer = Packed(raw)
            yield cast(BinaryIO, packer)
            packer.finish()
        else:
            yield raw
        raw.flush()
        # A rename may reach the disk before the content does: after a power cut the file would be empty.
        os.fsync(raw.fileno())


class Packed:
    """A gzip stream, or a zlib one, that looks for repeated voxels only.

    That takes half the time of level 1, and is 1 to 4 % larger on scans. It holds neither name nor date: the same scan
    gives the same bytes.
    """

    def __init__(self, raw: BinaryIO, as_gzip: bool = True) -> None:
        self.raw = raw
        window_bits = zlib.MAX_WBITS + (16 if as_gzip else 0)  # 16: with the header and checksum of gzip, not of zlib
        self.packer = zlib.compressobj(1, zlib.DEFLATED, window_bits, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
        self.size = 0

    def write(self, content: bytes) -> int:
        """Adds some bytes; returns their number, uncompressed."""
        self.raw.write(self.packer.compress(content))
        self.size += len(content)
        return len(content)

    def tell(self) -> int:
        """Returns how many bytes went in."""
        return self.size

    def finish(self) -> None:
        """Writes what is still held back, and the checksum."""
        self.raw.write(self.packer.flush())


def slabs(shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[Any, ...]]:
    """Indices that walk an array [x, y, z] or [x, y, z, t] in file order, some 16 MB at a time."""
    # Whole planes, in the order of the file: each slab is one piece of memory.
    step = max(1, SLAB_BYTES // (shape[0] * shape[1] * itemsize))
    for time in np.ndindex(*shape[3:]):
        for start in range(0, shape[2], step):
            yield (slice(None), slice(None), slice(start, start + step), *time)


class Inflated:
    """A stream of what a zlib or gzip stream holds, which begins where another stream is.

    `gzip.GzipFile` reads the second kind alone.
    """

    CHUNK_BYTES = 2**20
    """How much is taken from the packed stream at a time: what is not used at once is copied."""

    def __init__(self, packed: BinaryIO) -> None:
        self.packed = packed
        self.unpacker = zlib.decompressobj(32 + zlib.MAX_WBITS)  # 32: whichever of the two

    def readinto(self, buffer: memoryview) -> int:
        """Fills the buffer as far as one step goes; returns the number of bytes, 0 at the end.

        Raises:
            EOFError, zlib.error: the packed stream is cut off, or damaged.
        """
        while len(buffer) and not self.unpacker.eof:
            packed = self.unpacker.unconsumed_tail or self.packed.read(self.CHUNK_BYTES)
            content = self.unpacker.decompress(packed, len(buffer))
            if content:
                buffer[: len(content)] = content
                return len(content)
            if not packed:
                raise EOFError("a packed stream without its end")
        return 0

    def read(self, size: int) -> bytes:
        """Returns the next bytes, at most ``size``; none at the end."""
        content = bytearray(size)
        return bytes(content[: self.readinto(memoryview(content))])


MOST_LETTERS = 64
"""Of a number in text with the white space around it."""

Unpacked = gzip.GzipFile | Inflated
"""Streams that may hold far more than their files."""


def read_ascii(stream: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[Any], file_bytes: int) -> np.ndarray:
    """Returns voxels that are written as numbers in text, with white space between them.

    Args:
        stream: where they begin.
        shape: any, the first axis fastest.
        dtype: of this machine's byte order.
        file_bytes: size of the file.

    Raises:
        InputRefused: there are fewer, or whole numbers that are too large.
        ValueError: not numbers.
    """
    count = math.prod(shape)
    need = f"{count:,} numbers, as its header says"
    if 2 * count - 1 > file_bytes:  # a digit each, and what parts them
        raise refused(f"a file of {file_bytes:,} bytes", need, AGAIN, code="cut-off")
    # Not all that there is: behind few numbers gigabytes may lie.
    words = stream.read(count * MOST_LETTERS + SLAB_BYTES).split()
    if len(words) < count:
        raise refused(f"{len(words):,} numbers", need, AGAIN, code="cut-off")
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.array([float(word) for word in words[:count]]).astype(dtype).reshape(shape, order="F")
    numbers = [int(word) for word in words[:count]]
    limits = np.iinfo(dtype)
    if min(numbers) < limits.min or max(numbers) > limits.max:
        need, way = f"{limits.min} to {limits.max}", "write the scan again in a wider type"
        raise refused(f"numbers beyond {dtype}", need, way, code="beyond-type")
    return np.array(numbers, dtype).reshape(shape, order="F")


def file_beside(header_file: Path, text: str) -> Path:
    """Returns the file that a header names for its voxels: in the header's folder or below it, and nowhere else.

    A header comes from strangers: it must not make this program read whatever lies on the machine, or on the network.

    Raises:
        InputRefused: it lies elsewhere.
    """
    ways = (PurePosixPath(text), PureWindowsPath(text))
    is_outside = any(way.is_absolute() or way.drive or way.root or ".." in way.parts for way in ways)
    if not text or "\0" in text or is_outside or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", text):
        got = f"a data file outside the header's folder ({text[:80]!a})"
        raise refused(got, "one in it", "move it there, and name it without a folder", code="data-file-elsewhere")
    return header_file.parent / text
