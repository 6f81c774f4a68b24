"""Deflated DICOM: how much a file may unpack to is known from its header, and pydicom unpacks all of it at once."""

import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_file_meta_info

from thinslice.io.refusals import AGAIN, refused
from thinslice.io.scratch import check_memory

MOST_HEADER_BYTES = 16 * 2**20
"""What a header, or what follows the voxels, may have: the largest, of enhanced files, have a few megabytes."""

META_BYTES = 65536
"""Where the transfer syntax stands, in the first group of a file, which has some hundred bytes as a rule."""

META_BEGINS = 144
"""The byte behind the length of the first group: 128 of preamble, 4 of DICM, 12 of that length."""

CHUNK_BYTES = 2**20
"""How much is unpacked at a time."""


def check_deflated(path: Path) -> None:
    """Refuses a deflated file that unpacks to far more than the image that its header describes.

    Raises:
        InputRefused: it does.
        MemoryError: the image itself is larger than the free memory.
        OSError: it cannot be read.
    """
    with open(path, "rb") as raw:
        # Looked for as bytes: of thousands of files hardly one is deflated, and to understand each twice takes time.
        if str(uid.DeflatedExplicitVRLittleEndian).encode() not in raw.read(META_BYTES):
            return
        meta: Any = read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") != uid.DeflatedExplicitVRLittleEndian:
            return
        raw.seek(META_BEGINS + int(meta.get("FileMetaInformationGroupLength", 0)))
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        start = unpacker.decompress(raw.read(MOST_HEADER_BYTES), MOST_HEADER_BYTES)
        most = 2 * MOST_HEADER_BYTES + _voxel_bytes(start)
        check_memory(most)
        done = len(start)
        while not unpacker.eof and (packed := unpacker.unconsumed_tail or raw.read(CHUNK_BYTES)):
            done += len(unpacker.decompress(packed, CHUNK_BYTES))
            if done > most:
                raise refused(
                    f"a deflated file with more than {most:,} bytes in it",
                    "no more than the image that its header describes",
                    AGAIN,
                    code="endless-stream",
                ).at(path)


def _voxel_bytes(start: bytes) -> int:
    """Returns how many bytes of voxels a header, without its first group, describes."""
    found: Dataset = read_dataset(
        BytesIO(start), False, True, stop_when=lambda tag, _vr, _length: tag >= 0x7FE00010, defer_size=None
    )
    sizes = (int(found.get(name) or 1) for name in ("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames"))
    bits = int(found.get("BitsAllocated") or 8)
    count = 1
    for size in sizes:
        count *= max(size, 1)
    return count * max(bits, 8) // 8
