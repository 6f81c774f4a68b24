"""What files of every format share: streams, voxels as they are stored, and refusals on one line."""

import gzip
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from thinslice.errors import InputRefused, OutputRefused
from thinslice.io.atomic import whole_or_not
from thinslice.io.formats import FORMATS, sidecar_path

ON_DISK_BYTES = 512 * 2**20  # arrays from this size on live in a file, not in memory
SLAB_BYTES = 16 * 2**20
LARGEST = 1e30  # beyond it sums of squares are no float32; such voxels are marks, not signal
AIR = (-1100.0, -900.0)  # where the smallest value of computed tomography lies, in Hounsfield units
GZIP_BEST_RATIO = 1040  # deflate cannot shrink more than 1032 : 1
SHEAR_COSINE = 1e-3
NEAREST_MM, FARTHEST_MM = 1e-6, 1e7

WHOLE = "the whole file"
AGAIN = "copy or download it again"

_SIGNATURES = {
    b"\x89PNG": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture",
    b"II*\x00": "a TIFF picture", b"PK\x03\x04": "a zip archive", b"BZh": "a bzip2 file",
    b"\x28\xb5\x2f\xfd": "a zstd file", b"\x89HDF": "an HDF5 or MINC file", b"\x1f\x8b": "a gzip file",
}  # fmt: skip


# ---- refusals


def refused(got: str, need: str, then: str) -> InputRefused:
    """The refusal of an input, still without its name."""
    return InputRefused(f"got {got}; need {need}; next: {then}")


def unwritable(got: str, need: str, then: str) -> OutputRefused:
    """The refusal of an output, still without its name."""
    return OutputRefused(f"got {got}; need {need}; next: {then}")


def one_line(text: str) -> str:
    """The text with every run of white space as one blank."""
    return " ".join(text.split())


def by(numbers: Iterable[float]) -> str:
    """3 x 4 x 5."""
    return " x ".join(f"{n:g}" for n in numbers)


@contextmanager
def reading(path: Path, need: str, way: str) -> Iterator[None]:
    """Whatever goes wrong while a file is read becomes a refusal on one line that begins with its name.

    Args:
        path: the file.
        need: what kind of file is needed.
        way: how to come by one.

    Raises:
        InputRefused: something went wrong.
    """
    try:
        yield
        return
    except InputRefused as error:
        refusal = error
    except (EOFError, zlib.error, gzip.BadGzipFile):
        refusal = refused("a damaged or cut-off compressed stream", WHOLE, AGAIN)
    except MemoryError:
        refusal = refused("a scan larger than the free memory", "a smaller one", "crop it, or use a larger machine")
    except OSError as error:
        refusal = refused(f"no access ({error.strerror or error})", need, "check the name and the permissions")
    except (ValueError, OverflowError) as error:
        refusal = refused(f"what cannot be understood ({error})", need, way)
    raise InputRefused(one_line(f"{path}: {refusal}")) from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whatever goes wrong while a file is written becomes a refusal on one line that begins with its name.

    Raises:
        OutputRefused: something went wrong.
    """
    try:
        yield
        return
    except OutputRefused as error:
        refusal = error
    except OSError as error:
        reason = error.strerror or str(error)
        refusal = unwritable(f"no access ({reason})", "a folder with room and permission", "choose another output")
    raise OutputRefused(one_line(f"{path}: {refusal}")) from None


# ---- streams


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
    others = [kind for signature, kind in _SIGNATURES.items() if start.startswith(signature)]
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


# ---- voxels


def slabs(shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[Any, ...]]:
    """Indices that walk an array [x, y, z] or [x, y, z, t] in file order, some 16 MB at a time."""
    step = max(1, SLAB_BYTES // (shape[0] * shape[1] * itemsize))
    for time in np.ndindex(*shape[3:]):
        for start in range(0, shape[2], step):
            yield (slice(None), slice(None), slice(start, start + step), *time)


def replace_non_finite(voxels: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """NaN and infinities -> 0 if the finite values lie around it, else the finite minimum; in place, with a note.

    Where that minimum is air in Hounsfield units, 0 would be water: then it is the minimum too.

    Raises:
        InputRefused: no voxel is finite, or one is beyond what can be computed with.
    """
    if voxels.dtype.kind != "f":
        return voxels, []
    bad, low, high = 0, math.inf, -math.inf
    for at in slabs(voxels.shape, voxels.itemsize):
        finite = voxels[at][np.isfinite(voxels[at])]
        bad += voxels[at].size - finite.size
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if max(-low, high) > LARGEST:
        got = f"a voxel of {low if -low > high else high:.3g}"
        raise refused(got, f"values below {LARGEST:g}", "replace the marks for missing voxels by NaN or zero")
    if not bad:
        return voxels, []
    if bad == voxels.size:
        raise refused("no finite voxel at all (NaN or infinite)", "an image", "check the program that wrote it")
    fill = 0.0 if low <= 0 <= high and not AIR[0] <= low <= AIR[1] else low
    for at in slabs(voxels.shape, voxels.itemsize):
        np.copyto(voxels[at], fill, where=~np.isfinite(voxels[at]), casting="same_kind")
    return voxels, [f"{bad:,} of {voxels.size:,} voxels were NaN or infinite and are read as {fill:g}"]


def as_numbers(voxels: np.ndarray) -> np.ndarray:
    """Voxels of an array from elsewhere: real numbers in this machine's byte order, 16-bit floats as 32; else as it is.

    Raises:
        InputRefused: no real numbers (truth values are labels), or not three or four axes with a voxel along each.
    """
    if voxels.dtype.kind not in "iuf":
        raise refused(
            f"{voxels.dtype} voxels", "one real number per voxel", "convert the scan, as by .astype('float32')"
        )
    while voxels.ndim > 3 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim not in (3, 4) or 0 in voxels.shape:
        raise refused(f"voxels of shape {voxels.shape}", "[x, y, z] or [x, y, z, t]", "choose one scan of them")
    kinds = {2: np.dtype(np.float32)} if voxels.dtype.kind == "f" else {}
    wide = np.dtype(np.float64) if voxels.dtype.itemsize > 8 else voxels.dtype.newbyteorder("=")
    return voxels.astype(kinds.get(voxels.dtype.itemsize, wide), copy=False)


def finite(voxels: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """`replace_non_finite`, but of an array that is not ours: one that has such voxels is copied."""
    ours = voxels.dtype.kind == "f" and not all(np.isfinite(voxels[at]).all() for at in slabs(voxels.shape, 8))
    return replace_non_finite(voxels.copy(order="K") if ours else voxels)


def type_to_store(voxels: np.dtype[Any], source: np.dtype[Any] | None) -> np.dtype[Any]:
    """The type in the file of voxels of one type that were computed from a file of another (None: from none).

    It is that of the source, but 8 bits become 16 where the answer, which goes beyond 0 .. 255, has as many.
    """
    own = {"b": np.dtype(np.uint8)}.get(voxels.kind, voxels.newbyteorder("="))
    own = np.dtype(np.float32) if own == np.float16 else own
    if source is None:
        return own
    narrow = source.kind in "iu" and source.itemsize == 1 and voxels == np.int16
    return np.dtype(np.int16) if narrow else source.newbyteorder("=")


def encoded(voxels: np.ndarray, dtype: np.dtype[Any], slope: float = 1.0, inter: float = 0.0) -> Iterator[np.ndarray]:
    """(voxels - inter) / slope as `dtype`, rounded and clipped, slab by slab in file order.

    Raises:
        OutputRefused: the voxels are not real or not finite numbers.
    """
    if voxels.dtype.kind == "b":
        voxels = voxels.view(np.uint8)
    if voxels.dtype.kind not in "iuf":
        raise unwritable(f"{voxels.dtype} voxels", "real numbers", "this is a fault of the caller")
    for at in slabs(voxels.shape, 8):
        if (slope, inter) == (1.0, 0.0) and voxels.dtype.kind in "iu" and dtype.kind in "iu":
            yield _clip_integers(voxels[at], dtype)
        else:
            yield _from_numbers(voxels[at], dtype, slope, inter)


def put_on_steps(voxels: np.ndarray, dtype: np.dtype[Any], slope: float = 1.0, inter: float = 0.0) -> None:
    """Give the voxels, in place, the values that a file of `dtype` with this rescale holds.

    Raises:
        OutputRefused: the voxels are not finite numbers.
    """
    for at, slab in zip(slabs(voxels.shape, 8), encoded(voxels, dtype, slope, inter), strict=True):
        voxels[at] = slab if (slope, inter) == (1.0, 0.0) else slab.astype(np.float64) * slope + inter


def _clip_integers(slab: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    if slab.dtype == dtype:
        return slab
    source, target = np.iinfo(slab.dtype), np.iinfo(dtype)
    return slab.clip(max(source.min, target.min), min(source.max, target.max)).astype(dtype)


def _from_numbers(slab: np.ndarray, dtype: np.dtype[Any], slope: float, inter: float) -> np.ndarray:
    """(slab - inter) / slope, rounded and clipped where `dtype` is an integer type."""
    values = slab.astype(np.float64) if (slope, inter) == (1.0, 0.0) else (slab.astype(np.float64) - inter) / slope
    if not np.isfinite(values).all():
        raise unwritable("NaN or infinite voxels", "finite ones", "this is a fault of the model or of the caller")
    if dtype.kind == "f":
        limits = np.finfo(dtype)
        return values.clip(limits.min, limits.max).astype(dtype)
    low, high = (float(limit) for limit in (np.iinfo(dtype).min, np.iinfo(dtype).max))
    if high > np.iinfo(dtype).max:  # 2**63 - 1 is no float64
        high = math.nextafter(high, 0)
    return np.rint(values).clip(low, high).astype(dtype)


# ---- facts beside the file, and where it is


def thickness_beside(path: Path) -> tuple[float | None, list[str]]:
    """SliceThickness, in mm, of the BIDS sidecar, and notes; None where there is none."""
    sidecar = sidecar_path(path)
    if sidecar is None or not sidecar.is_file():
        return None, []
    return thickness_in(sidecar)


def thickness_in(sidecar: Path) -> tuple[float | None, list[str]]:
    """SliceThickness, in mm, of such a JSON, and notes; None where it does not say."""
    try:
        facts = json.loads(sidecar.read_text(encoding="utf-8"))
        thickness_mm = facts.get("SliceThickness")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None, [f"the sidecar {sidecar.name} is not a readable JSON object and is ignored"]
    if thickness_mm is None:
        return None, []
    is_number = isinstance(thickness_mm, int | float) and not isinstance(thickness_mm, bool)
    if not is_number or not 0 < thickness_mm < 1e3:
        got = str(thickness_mm)[:40]
        return None, [one_line(f"SliceThickness in {sidecar.name} is {got}, not a length in mm, and is ignored")]
    return float(thickness_mm), []


def check_affine(affine: np.ndarray, way_out: str) -> None:
    """Refuse an affine [4, 4], in mm, that is not finite or has no inverse.

    Raises:
        InputRefused: it is so; the last words are `way_out`.
    """
    with np.errstate(all="ignore"):
        spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not (np.isfinite(spacing_mm) & (spacing_mm > 0)).all():
        raise refused(f"an affine with columns of {by(spacing_mm)} mm", "three positive lengths", way_out)
    if abs(np.linalg.det(affine[:3, :3] / spacing_mm)) < 1e-3:
        raise refused("an affine whose axes lie in one plane", "three directions", way_out)


def check_lengths(affine: np.ndarray, way_out: str) -> None:
    """Refuse an affine [4, 4], in mm, of a size that no scanner has; for formats whose numbers may be any.

    Raises:
        InputRefused: it is so; the last words are `way_out`.
    """
    lengths = np.abs(affine[:3])
    if not lengths.max() <= FARTHEST_MM or not lengths[:, :3].max(axis=0).min() >= NEAREST_MM:
        got = f"an affine with columns of {by(lengths[:, :3].max(axis=0))} mm and an origin of {by(affine[:3, 3])} mm"
        raise refused(got, "millimetres that a scanner may have", way_out)


def check_affine_to_write(affine: np.ndarray) -> None:
    """Refuse what no file can hold.

    Raises:
        OutputRefused: not a finite [4, 4] affine with an inverse.
    """
    is_whole = affine.shape == (4, 4) and np.isfinite(affine).all()
    if not is_whole or abs(np.linalg.det(directions(affine))) < 1e-6:
        raise unwritable("an affine without an inverse", "a [4, 4] one", "this is a fault of the caller")


def check_shape_to_write(shape: tuple[int, ...]) -> None:
    """Refuse what is no scan.

    Raises:
        OutputRefused: neither three nor four axes, or no voxel.
    """
    if len(shape) not in (3, 4) or 0 in shape:
        raise unwritable(f"voxels of shape {shape}", "[x, y, z] or [x, y, z, t]", "this is a fault of the caller")


def shear(affine: np.ndarray) -> float:
    """The largest cosine between two axes of an affine [4, 4]; 0 where all are at right angles."""
    turned = directions(affine)
    return float(np.abs(turned.T @ turned - np.eye(3)).max())


def shear_notes(affine: np.ndarray) -> list[str]:
    """What to say about a sheared affine [4, 4]; nothing where it is none."""
    cosine = shear(affine)
    if cosine <= SHEAR_COSINE:
        return []
    degrees = math.degrees(math.asin(min(cosine, 1.0)))
    return [f"the affine is sheared by {degrees:.1f} degrees (as with a tilted gantry) and kept as it is"]


def directions(form: np.ndarray) -> np.ndarray:
    """Unit vectors [3, 3] along the array axes of an affine [4, 4], as columns."""
    lengths = np.linalg.norm(form[:3, :3], axis=0).clip(1e-12)
    return np.asarray(form[:3, :3] / lengths)
