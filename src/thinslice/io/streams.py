"""The bytes of a file as a stream: packed or not, read with an eye on its size, written whole or not at all."""

import gzip
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from thinslice.io.atomic import whole_or_not
from thinslice.io.formats import FORMATS
from thinslice.io.refusals import AGAIN, refused
from thinslice.io.scratch import ON_DISK_BYTES

SLAB_BYTES = 16 * 2**20
"""How much is read, computed or written at a time: large enough to be fast, small beside a scan."""

GZIP_BEST_RATIO = 1040
"""A gzip file holds at most so many times its own size: deflate cannot shrink more than 1032 : 1."""

_FOREIGN_SIGNATURES = {
    b"\x89PNG": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture",
    b"II*\x00": "a TIFF picture", b"PK\x03\x04": "a zip archive", b"BZh": "a bzip2 file",
    b"\x28\xb5\x2f\xfd": "a zstd file", b"\x89HDF": "an HDF5 or MINC file", b"\x1f\x8b": "a gzip file",
}  # fmt: skip
"""How files of other kinds begin, and what they are called in a refusal."""


def check_is_file(path: Path, need: str) -> int:
    """Size in bytes of a regular file.

    Raises:
        InputRefused: it is none, or empty.
    """
    if path.is_dir():
        raise refused("a folder", need, "name a file in it")
    size = path.stat().st_size
    if not path.is_file():
        raise refused("a pipe or device", need, "save the scan to a file first")
    if size == 0:
        raise refused("an empty file", need, AGAIN)
    return size


@contextmanager
def unpacked(path: Path, packed: str, plain: str) -> Iterator[BinaryIO]:
    """The file's bytes, uncompressed where they are gzip.

    Args:
        path: the file.
        packed: the ending of names that promise gzip; other files may be gzip too.
        plain: the ending of those that do not.

    Raises:
        InputRefused: the name promises gzip in vain.
    """
    with open(path, "rb") as raw:
        is_gzip = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if is_gzip:
            with gzip.GzipFile(fileobj=raw) as stream:
                yield cast(BinaryIO, stream)
        elif path.name.lower().endswith(packed):
            got = f"{kind_of(raw.read(348))}, not gzip"
            raise refused(got, "what the name promises", f"rename it to {plain} or copy it again")
        else:
            yield raw


def most_bytes(stream: BinaryIO, file_bytes: int) -> int:
    """How much a stream can hold at most."""
    return file_bytes * (GZIP_BEST_RATIO if isinstance(stream, gzip.GzipFile) else 1)


def kind_of(start: bytes) -> str:
    """What a file of another kind seems to be, from its first bytes."""
    if not start:
        return "no content"
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
    """Stored values in native byte order; a plain file of 512 MB or more is mapped copy-on-write, not loaded.

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
    if offset + size > most_bytes(stream, file_bytes):
        raise refused(f"a file of {file_bytes:,} bytes", need, AGAIN)
    if size >= ON_DISK_BYTES and not isinstance(stream, gzip.GzipFile):
        stored = np.asarray(np.memmap(path, dtype, "c", offset, shape, order="F"))
    else:
        stored = np.empty(shape, dtype, order="F")
        read_bytes = _fill(stream, stored)
        if read_bytes < size:
            raise refused(f"{read_bytes:,} bytes", need, AGAIN)
    return as_native(stored)


def as_native(stored: np.ndarray) -> np.ndarray:
    """The array, which is spent on it, in the byte order of this machine."""
    return stored if stored.dtype.isnative else stored.byteswap(inplace=True).view(stored.dtype.newbyteorder("="))


def drain(stream: BinaryIO) -> None:
    """Read a gzip stream to its end, where the checksum is."""
    while isinstance(stream, gzip.GzipFile) and stream.read(SLAB_BYTES):
        pass


def _fill(stream: BinaryIO, array: np.ndarray) -> int:
    """Read into the array, in file order, until it is full or the stream ends; the number of bytes read."""
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
    """A stream to a temporary file in the same folder; it takes `path`'s place if all went well, else it vanishes."""
    with whole_or_not(path) as temporary, open(temporary, "xb") as raw:
        if packed:
            packer = Packed(raw)
            yield cast(BinaryIO, packer)
            packer.finish()
        else:
            yield raw
        raw.flush()
        os.fsync(raw.fileno())


class Packed:
    """A gzip stream that looks for repeated voxels only: half the time of level 1, and 1 to 4 % larger on scans.

    It holds neither name nor date: the same scan gives the same bytes.
    """

    def __init__(self, raw: BinaryIO) -> None:
        self.raw = raw
        self.packer = zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
        self.size = 0

    def write(self, content: bytes) -> int:
        """Add some bytes; returns their number, uncompressed."""
        self.raw.write(self.packer.compress(content))
        self.size += len(content)
        return len(content)

    def tell(self) -> int:
        """How many bytes went in."""
        return self.size

    def finish(self) -> None:
        """Write what is still held back, and the checksum."""
        self.raw.write(self.packer.flush())


def slabs(shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[Any, ...]]:
    """Indices that walk an array [x, y, z] or [x, y, z, t] in file order, some 16 MB at a time."""
    step = max(1, SLAB_BYTES // (shape[0] * shape[1] * itemsize))
    for time in np.ndindex(*shape[3:]):
        for start in range(0, shape[2], step):
            yield (slice(None), slice(None), slice(start, start + step), *time)
