"""read / write NIfTI: the only door to nibabel.

The header is parsed unrepaired: nibabel.load turns a spacing of zero into 1 mm and a negative one into a positive one,
with no more than a line in a log. Here a scan whose geometry is unknown is refused, and whatever else had to be decided
is said in `Volume.notes`.
"""

import gzip
import json
import math
import os
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np
from nibabel import nifti1, nifti2
from nibabel.spatialimages import HeaderDataError
from numpy.typing import DTypeLike

from thinslice.errors import InputRefused, OutputRefused
from thinslice.files import whole_or_not
from thinslice.volume import Volume, grid_distance_mm, sidecar_path

ON_DISK_BYTES = 512 * 2**20  # arrays from this size on live in a file, not in memory
SLAB_BYTES = 16 * 2**20
LARGEST = 1e30  # beyond it sums of squares are no float32; such voxels are marks, not signal
AIR = (-1100.0, -900.0)  # where the smallest value of computed tomography lies, in Hounsfield units
GZIP_BEST_RATIO = 1040  # deflate cannot shrink more than 1032 : 1

SYNTHETIC = b"synthesised by thinslice, not a scan"
"""Description in the header of a volume that shows, between acquired slices, what nobody saw."""

SHEAR_COSINE = 1e-3
SMALL_TURN = 3e-3
COMMENT_EXTENSION = 6
ALIGNED = 2

# Any: nibabel's headers carry no types
_HEADERS: dict[int, Any] = {348: nifti1.Nifti1Header, 540: nifti2.Nifti2Header}
_DTYPES = {
    2: np.uint8, 4: np.int16, 8: np.int32, 16: np.float32, 64: np.float64,
    256: np.int8, 512: np.uint16, 768: np.uint32, 1024: np.int64, 1280: np.uint64,
}  # fmt: skip
_OTHER_DTYPES = {
    1: "binary", 32: "complex", 128: "RGB", 1536: "128-bit float", 1792: "complex", 2048: "complex", 2304: "RGBA",
}  # fmt: skip
_Order = Literal["<", ">"]
_ORDERS: tuple[_Order, _Order] = ("<", ">")
_UNITS: dict[int, tuple[str, float]] = {0: ("mm", 1.0), 1: ("metres", 1e3), 2: ("mm", 1.0), 3: ("micrometres", 1e-3)}
_SIGNATURES = {
    b"NRRD": "an NRRD file", b"\x89PNG": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture",
    b"II*\x00": "a TIFF picture", b"PK\x03\x04": "a zip archive", b"BZh": "a bzip2 file",
    b"\x28\xb5\x2f\xfd": "a zstd file", b"\x89HDF": "an HDF5 or MINC file",
}  # fmt: skip
_NEED = "one NIfTI file, .nii or .nii.gz"
_WHOLE = "the whole file"
_AGAIN = "copy or download it again"
_CONVERT = "make one from the DICOM series with dcm2niix"
_SET_SPACING = (
    "convert the DICOM series again with dcm2niix, or write the true spacing in mm into a copy: "
    "nifti_tool -mod_hdr -mod_field pixdim '1 DX DY DZ 1 1 1 1' -prefix fixed.nii.gz -infiles scan.nii.gz"
)


def read(path: Path) -> Volume:
    """Read one NIfTI-1 or NIfTI-2 file.

    The voxels [x, y, z] or [x, y, z, t] keep their stored integer type where the file has no rescale, and are float32
    otherwise (float64 where stored so). The affine is in millimetres whatever the file's unit: sform, else qform, else
    pixdim alone, as in nibabel. A BIDS sidecar next to the file gives `thickness_mm`; NIfTI itself has no field for it.

    Raises:
        InputRefused: not a readable scan; one line: the file, what was got, what is needed, what to do next.
    """
    path = Path(path)
    try:
        return _read(path)
    except InputRefused as error:
        refusal = error
    except (EOFError, zlib.error, gzip.BadGzipFile):
        refusal = _refused("a damaged or cut-off gzip stream", _WHOLE, _AGAIN)
    except MemoryError:
        refusal = _refused("a scan larger than the free memory", "a smaller one", "crop it, or use a larger machine")
    except OSError as error:
        refusal = _refused(f"no access ({error.strerror or error})", _NEED, "check the name and the permissions")
    except ValueError as error:
        refusal = _refused(f"what cannot be understood ({error})", _NEED, _CONVERT)
    raise InputRefused(_one_line(f"{path}: {refusal}"))


def write(volume: Volume, path: Path, like: Volume | None = None) -> None:
    """Write a scan as .nii or .nii.gz: under a temporary name in the same folder first, then renamed.

    Type, rescale, unit, form codes, intent, description, display window and repetition time are those of the source
    header (`like`'s, else the volume's own). Integers are rounded and clipped. Slice timing is dropped when the grid
    has changed. A qform cannot hold a sheared affine: its code is then 0. Where no code was set and pixdim alone cannot
    hold the new affine, the sform code is 2 (aligned). Missing folders are made; after a failure nothing is left.

    Raises:
        OutputRefused: not a NIfTI name, a folder that cannot be written to, or voxels that are not finite.
    """
    path = Path(path)
    try:
        if sidecar_path(path) is None:
            raise _unwritable("another kind of name", ".nii or .nii.gz", "change the output's name")
        header = _header_for(volume, like)
        with _in_place_of(path) as stream:
            header.write_to(stream)
            for slab in _encoded(volume.voxels, header):
                stream.write(slab)
        return
    except OutputRefused as error:
        refusal = error
    except OSError as error:
        reason = error.strerror or str(error)
        refusal = _unwritable(f"no access ({reason})", "a folder with room and permission", "choose another output")
    raise OutputRefused(_one_line(f"{path}: {refusal}"))


def as_stored(volume: Volume) -> Volume:
    """The volume with the values that `write` will put into the file, and a header whose scale holds them all.

    Only files that store whole numbers with a rescale change anything: an answer goes a little beyond the acquired
    values, which their scale need not hold. 8 bits become 16; where that is not enough the scale is widened, and a
    note says so. The voxels, which are spent on it, are put on the file's steps.
    """
    header = volume.header
    if not isinstance(header, nifti1.Nifti1Header) or volume.voxels.dtype.kind != "f":
        return volume
    header = cast(Any, header).copy()
    dtype = np.dtype(header.get_data_dtype()).newbyteorder("=")
    slope, inter = _slope_inter(header)
    if dtype.kind not in "iu":
        return volume
    low, high = float(volume.voxels.min()), float(volume.voxels.max())
    notes = volume.notes
    if dtype.itemsize == 1 and not _holds(dtype, slope, inter, low, high):
        dtype = np.dtype(np.int16)
    if not _holds(dtype, slope, inter, low, high):
        least, most = float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
        wider = (high - low) / (most - least) * (1 + 1e-3) or abs(slope)
        header["scl_slope"], header["scl_inter"] = wider, (low + high) / 2 - wider * (least + most) / 2
        notes += (f"the file's scale of {abs(slope):.4g} per step would clip the answer: widened to {wider:.4g}",)
        slope, inter = _slope_inter(header)
    header.set_data_dtype(dtype)
    for at in _slabs(volume.voxels.shape, 8):
        volume.voxels[at] = _from_floats(volume.voxels[at], dtype, slope, inter).astype(np.float64) * slope + inter
    return replace(volume, header=header, notes=notes)


def as_synthetic(volume: Volume) -> Volume:
    """The volume with a header that says that nobody acquired it."""
    header = _fresh_header(volume.voxels.dtype)
    header["descrip"] = SYNTHETIC
    return replace(volume, header=header)


def is_synthetic(volume: Volume) -> bool:
    """Whether a volume was written with the header of `as_synthetic`."""
    header = volume.header
    return isinstance(header, nifti1.Nifti1Header) and bytes(header["descrip"].item()).startswith(SYNTHETIC)


def check_acquired(volume: Volume) -> None:
    """Refuse what `as_synthetic` marked: it is nothing to learn from or to be scored by.

    Raises:
        InputRefused: it is so marked.
    """
    if is_synthetic(volume):
        raise InputRefused("got a volume that was synthesised; need a scan that was acquired; next: leave it out")


def _holds(dtype: np.dtype[Any], slope: float, inter: float, low: float, high: float) -> bool:
    limits = np.iinfo(dtype)
    ends = np.rint((np.array([low, high]) - inter) / slope)
    return bool(ends.min() >= limits.min and ends.max() <= limits.max)


def allocate(shape: tuple[int, ...], dtype: DTypeLike, folder: Path) -> np.ndarray:
    """An uninitialised array in file order (first axis fastest): in memory below 512 MB, else on an unlinked file.

    The file lies in `folder` (or its nearest existing parent) and is reserved in full, so a full disk is an error here
    and not a crash later; it vanishes with the array.

    Raises:
        OutputRefused: the disk has no room for it.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size < ON_DISK_BYTES:
        return np.empty(shape, dtype, order="F")
    folder = next(f for f in (Path(folder).absolute(), *Path(folder).absolute().parents) if f.is_dir())
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            return np.asarray(np.memmap(cast(Any, file), dtype, "w+", shape=shape, order="F"))
    except OSError as error:
        need = f"{size / 1e9:.1f} GB there for a while"
        refusal = _unwritable(f"no room ({error.strerror})", need, "free some room or choose another output folder")
        raise OutputRefused(_one_line(f"{folder}: {refusal}")) from None


def _refused(got: str, need: str, then: str) -> InputRefused:
    return InputRefused(f"got {got}; need {need}; next: {then}")


def _unwritable(got: str, need: str, then: str) -> OutputRefused:
    return OutputRefused(f"got {got}; need {need}; next: {then}")


# ---- reading


def _read(path: Path) -> Volume:
    file_bytes = _check_is_file(path)
    with _open(path) as stream:
        header, order = _read_header(stream)
        shape, dtype = _shape_and_dtype(header, order)
        extension_notes = _read_extensions(stream, header, order, file_bytes * _best_ratio(stream))
        stored = _read_voxels(stream, path, int(header["vox_offset"]), shape, dtype, file_bytes)
    affine, notes = _geometry(header, shape)
    voxels, finite_notes = _replace_non_finite(_rescale(stored, *_slope_inter(header)))
    thickness_mm, sidecar_notes = _read_sidecar(path)
    notes += extension_notes + finite_notes + sidecar_notes
    return Volume(voxels, affine, thickness_mm, tuple(notes), path, header)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _check_is_file(path: Path) -> int:
    """Size in bytes of a regular file."""
    if path.is_dir():
        raise _refused("a folder", _NEED, "name a file in it")
    size = path.stat().st_size
    if not path.is_file():
        raise _refused("a pipe or device", _NEED, "save the scan to a file first")
    if size == 0:
        raise _refused("an empty file", _NEED, _AGAIN)
    return size


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, uncompressed where they are gzip, whatever the name says."""
    with open(path, "rb") as raw:
        is_gzip = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if is_gzip:
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield cast(BinaryIO, unpacked)
        elif path.name.lower().endswith(".gz"):
            got = f"{_kind(raw.read(348))}, not gzip"
            raise _refused(got, "what the name promises", "rename it to .nii or copy it again")
        else:
            yield raw


def _best_ratio(stream: BinaryIO) -> int:
    return GZIP_BEST_RATIO if isinstance(stream, gzip.GzipFile) else 1


def _kind(start: bytes) -> str:
    """What a file that is not NIfTI seems to be, from its first bytes."""
    if not start:
        return "no content"
    if start[128:132] == b"DICM":
        return "a DICOM file"
    for signature, kind in _SIGNATURES.items():
        if start.startswith(signature):
            return kind
    if int.from_bytes(start[:4], "little") in _HEADERS or int.from_bytes(start[:4], "big") in _HEADERS:
        return "a plain NIfTI or Analyze file"
    if all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in start):
        return "a text file"
    return "an unknown kind of file"


def _read_header(stream: BinaryIO) -> tuple[Any, _Order]:
    """The header exactly as stored but in native byte order, and the file's byte order, "<" or ">"."""
    start = stream.read(348)
    order = next((o for o in _ORDERS if len(start) >= 4 and struct.unpack(o + "i", start[:4])[0] in _HEADERS), None)
    if order is None:
        raise _refused(_kind(start), _NEED, _CONVERT)
    size = struct.unpack(order + "i", start[:4])[0]
    start += stream.read(size - len(start))
    if len(start) < size:
        raise _refused(f"{len(start)} bytes of a {size}-byte header", _WHOLE, _AGAIN)
    magic = start[344:347] if size == 348 else start[4:7]
    if magic in (b"ni1", b"ni2"):
        raise _refused("half of a .hdr/.img pair", _NEED, "join the pair first (fslchfiletype NIFTI_GZ)")
    if magic not in (b"n+1", b"n+2"):
        raise _refused(f"an Analyze 7.5 or damaged header (magic {magic!r})", _NEED, _CONVERT)
    header = _HEADERS[size](start, endianness=order, check=False)
    return header.as_byteswapped("<" if struct.pack("=h", 1) == struct.pack("<h", 1) else ">"), order


def _shape_and_dtype(header: Any, order: _Order) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Stored shape [x, y, z] or [x, y, z, t], and stored type in the file's byte order."""
    code = int(header["datatype"])
    if code not in _DTYPES:
        kind = _OTHER_DTYPES.get(code, f"unknown (datatype {code})")
        raise _refused(
            f"{kind} voxels", "one real number per voxel", "convert the scan to float32 or split its channels"
        )
    dims = [int(n) for n in header["dim"]]
    if not 1 <= dims[0] <= 7:
        raise _refused(f"a damaged header (dim[0] is {dims[0]})", _NEED, _CONVERT)
    shape = dims[1 : dims[0] + 1]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    size = _by(shape)
    if min(shape) < 1:
        raise _refused(f"a grid of {size} voxels", "at least one along each axis", _CONVERT)
    if len(shape) not in (3, 4):
        raise _refused(f"a {len(shape)}-D image ({size})", "3-D, or 4-D with time last", "extract one volume from it")
    return tuple(shape), np.dtype(_DTYPES[code]).newbyteorder(order)


def _read_extensions(stream: BinaryIO, header: Any, order: _Order, most_bytes: int) -> list[str]:
    """Leave `stream` at the end of the extensions; keep the comments in `header`, name the others that are dropped."""
    header_bytes = int(header["sizeof_hdr"])
    offset = float(header["vox_offset"])
    if not math.isfinite(offset) or offset > most_bytes:
        raise _refused(f"voxels that start at byte {offset:g}, beyond the end", _WHOLE, _AGAIN)
    header["vox_offset"] = max(int(offset), header_bytes + 4)
    block = stream.read(int(header["vox_offset"]) - header_bytes)
    dropped = 0
    for code, content in _split_extensions(block, order):
        if code == COMMENT_EXTENSION:
            header.extensions.append(nifti1.Nifti1Extension(COMMENT_EXTENSION, content))
        else:
            dropped += 1
    if dropped:
        return [f"{dropped} header extension(s) not carried over: written by other programs for the acquired grid"]
    return []


def _split_extensions(block: bytes, order: _Order) -> Iterator[tuple[int, bytes]]:
    """(code, content) of each extension that is whole; `block` starts with the four flag bytes."""
    start = 4
    while block[:1] not in (b"", b"\0") and start + 8 <= len(block):
        size, code = struct.unpack(order + "ii", block[start : start + 8])
        if size < 16 or start + size > len(block):
            return
        yield code, block[start + 8 : start + size].rstrip(b"\0")
        start += size


def _read_voxels(
    stream: BinaryIO, path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], file_bytes: int
) -> np.ndarray:
    """Stored values in native byte order; a plain file of 512 MB or more is mapped copy-on-write, not loaded."""
    size = math.prod(shape) * dtype.itemsize
    need = f"{size:,} bytes of voxels, as its header says"
    if offset + size > file_bytes * _best_ratio(stream):
        raise _refused(f"a file of {file_bytes:,} bytes", need, _AGAIN)
    if size >= ON_DISK_BYTES and not isinstance(stream, gzip.GzipFile):
        stored = np.asarray(np.memmap(path, dtype, "c", offset, shape, order="F"))
    else:
        stored = np.empty(shape, dtype, order="F")
        read_bytes = _fill(stream, stored)
        if read_bytes < size:
            raise _refused(f"{read_bytes:,} bytes", need, _AGAIN)
        while isinstance(stream, gzip.GzipFile) and stream.read(SLAB_BYTES):
            pass  # the checksum is at the end
    if not dtype.isnative:
        stored = stored.byteswap(inplace=True).view(dtype.newbyteorder("="))
    return stored


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


def _slabs(shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[Any, ...]]:
    """Indices that walk an array [x, y, z] or [x, y, z, t] in file order, some 16 MB at a time."""
    step = max(1, SLAB_BYTES // (shape[0] * shape[1] * itemsize))
    for time in np.ndindex(*shape[3:]):
        for start in range(0, shape[2], step):
            yield (slice(None), slice(None), slice(start, start + step), *time)


def _slope_inter(header: Any) -> tuple[float, float]:
    """The rescale; (1, 0) where the file has none (slope zero or not finite)."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(slope):
        return 1.0, 0.0
    if not math.isfinite(inter):
        got = f"scl_slope {slope:g} with scl_inter {inter:g}"
        raise _refused(got, "two finite numbers", "set scl_inter to 0 if there is no offset")
    return slope, inter


def _rescale(stored: np.ndarray, slope: float, inter: float) -> np.ndarray:
    if (slope, inter) == (1.0, 0.0):
        return stored
    voxels = np.empty(stored.shape, np.float64 if stored.dtype == np.float64 else np.float32, order="F")
    with np.errstate(all="ignore"):  # what overflows is not finite, and is treated as such next
        for at in _slabs(stored.shape, 8):
            voxels[at] = stored[at].astype(np.float64) * slope + inter
    return voxels


def _replace_non_finite(voxels: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """NaN and infinities -> 0 if the finite values lie around it, else the finite minimum; in place.

    Where that minimum is air in Hounsfield units, 0 would be water: then it is the minimum too.
    """
    if voxels.dtype.kind != "f":
        return voxels, []
    bad, low, high = 0, math.inf, -math.inf
    for at in _slabs(voxels.shape, voxels.itemsize):
        finite = voxels[at][np.isfinite(voxels[at])]
        bad += voxels[at].size - finite.size
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if max(-low, high) > LARGEST:
        got = f"a voxel of {low if -low > high else high:.3g}"
        raise _refused(got, f"values below {LARGEST:g}", "replace the marks for missing voxels by NaN or zero")
    if not bad:
        return voxels, []
    if bad == voxels.size:
        raise _refused("no finite voxel at all (NaN or infinite)", "an image", "check the program that wrote it")
    fill = 0.0 if low <= 0 <= high and not AIR[0] <= low <= AIR[1] else low
    for at in _slabs(voxels.shape, voxels.itemsize):
        np.copyto(voxels[at], fill, where=~np.isfinite(voxels[at]), casting="same_kind")
    return voxels, [f"{bad:,} of {voxels.size:,} voxels were NaN or infinite and are read as {fill:g}"]


def _read_sidecar(path: Path) -> tuple[float | None, list[str]]:
    """SliceThickness, in mm, of the BIDS sidecar; None where there is none."""
    sidecar = sidecar_path(path)
    if sidecar is None or not sidecar.is_file():
        return None, []
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
        return None, [_one_line(f"SliceThickness in {sidecar.name} is {got}, not a length in mm, and is ignored")]
    return float(thickness_mm), []


# ---- geometry


def _by(numbers: Iterable[float]) -> str:
    return " x ".join(f"{n:g}" for n in numbers)


def _mm_per_unit(header: Any) -> tuple[str, float]:
    """Name of the file's unit of length, and its size in mm; mm where the header is silent."""
    return _UNITS.get(int(header["xyzt_units"]) & 7, _UNITS[0])


def _geometry(header: Any, shape: tuple[int, ...]) -> tuple[np.ndarray, list[str]]:
    """Affine [4, 4] in mm, and what had to be decided about it."""
    _check_pixdim(header)
    unit, mm = _mm_per_unit(header)
    affine, notes = _choose_affine(header, shape, mm)
    affine[:3] *= mm
    _check_affine(affine)
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    if mm != 1:
        notes.append(
            f"lengths are in {unit}, the spacing is {_by(spacing_mm)} mm; if that is wrong, correct xyzt_units"
        )
    cosine = _shear(affine)
    if cosine > SHEAR_COSINE:
        degrees = math.degrees(math.asin(min(cosine, 1.0)))
        notes.append(f"the affine is sheared by {degrees:.1f} degrees (as with a tilted gantry) and kept as it is")
    return affine, notes


def _check_pixdim(header: Any) -> None:
    pixdim = [float(p) for p in header["pixdim"][1:4]]
    if not all(math.isfinite(p) and p > 0 for p in pixdim):
        raise _refused(f"a spacing (pixdim) of {_by(pixdim)}", "three positive lengths", _SET_SPACING)


def _check_affine(affine: np.ndarray) -> None:
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    way_out = f"if pixdim is right, clear sform_code, else {_SET_SPACING}"
    if not np.isfinite(affine).all() or not (spacing_mm > 0).all():
        raise _refused(f"an affine with columns of {_by(spacing_mm)} mm", "three positive lengths", way_out)
    if abs(np.linalg.det(affine[:3, :3] / spacing_mm)) < 1e-3:
        raise _refused("an affine whose axes lie in one plane", "three directions", way_out)


def _shear(affine: np.ndarray) -> float:
    """The largest cosine between two axes; 0 where all are at right angles."""
    directions = _directions(affine)
    return float(np.abs(directions.T @ directions - np.eye(3)).max())


def _choose_affine(header: Any, shape: tuple[int, ...], mm: float) -> tuple[np.ndarray, list[str]]:
    """Affine in the file's unit: sform, else qform, else pixdim; and what speaks against it."""
    has_sform, has_qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    if not has_sform and not has_qform:
        base = np.asarray(header.get_base_affine(), np.float64)
        assumed = "the axes are taken to run right to left, back to front, foot to head"
        return base, [
            f"neither sform nor qform is set: spacing from pixdim, position and orientation unknown; {assumed}"
        ]
    qform = _qform(header) if has_qform else None
    if not has_sform:
        if qform is None:
            raise _refused("an impossible rotation (qform quaternion)", "a valid one, or an sform", _CONVERT)
        return qform, []
    sform = np.asarray(header.get_sform(), np.float64)
    if has_qform and qform is None:
        return sform, ["the qform is not a rotation and is ignored; the sform is used"]
    if np.isfinite(sform).all():
        return sform, _differences(sform, qform, header, shape, mm)
    return sform, []


def _qform(header: Any) -> np.ndarray | None:
    """The qform [4, 4] in the file's unit; None where its quaternion is no rotation."""
    header = header.copy()
    if float(header["pixdim"][0]) != -1:
        header["pixdim"][0] = 1  # the standard: anything else means 1
    try:
        qform = np.asarray(header.get_qform(), np.float64)
    except (ValueError, ArithmeticError, HeaderDataError):
        return None
    return qform if np.isfinite(qform).all() else None


def _differences(
    sform: np.ndarray, qform: np.ndarray | None, header: Any, shape: tuple[int, ...], mm: float
) -> list[str]:
    """How the sform, which is used, differs from what else the header says.

    By more than a tenth of a voxel in position, 1 % in spacing, or 0.17 degrees: near half a turn a float32 quaternion
    is wrong by up to 0.1 degrees.
    """
    pixdim = np.asarray(header["pixdim"][1:4], np.float64)
    spacing = np.linalg.norm(sform[:3, :3], axis=0)
    same_spacing = np.allclose(spacing, pixdim, rtol=0.01, atol=0)
    if qform is None:
        if same_spacing:
            return []
        return [f"pixdim says {_by(pixdim * mm)} mm and the sform {_by(spacing * mm)} mm; the sform is used"]
    same_start = np.linalg.norm(sform[:3, 3] - qform[:3, 3]) <= 0.1 * pixdim.min()
    if same_spacing and same_start and np.allclose(_directions(sform), _directions(qform), rtol=0, atol=SMALL_TURN):
        return []
    apart_mm = grid_distance_mm(sform, qform, shape) * mm
    how = _describe_turn(sform, qform)
    return [f"sform and qform disagree by {how}, up to {apart_mm:.1f} mm apart; the sform is used"]


def _directions(form: np.ndarray) -> np.ndarray:
    """Unit vectors [3, 3] along the array axes, as columns."""
    lengths = np.linalg.norm(form[:3, :3], axis=0).clip(1e-12)
    return np.asarray(form[:3, :3] / lengths)


def _describe_turn(sform: np.ndarray, qform: np.ndarray) -> str:
    """What leads from the qform to the sform, in a few words."""
    to_s, to_q = _directions(sform), _directions(qform)
    turn = to_s @ np.linalg.inv(to_q)
    if np.linalg.det(turn) < 0:
        return _describe_mirror(turn, np.linalg.inv(to_q) @ to_s, to_q)
    degrees = math.degrees(math.acos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))
    return (
        f"a rotation of {degrees:.1f} degrees"
        if degrees > math.degrees(SMALL_TURN)
        else "a shift or a change of spacing"
    )


def _describe_mirror(world_turn: np.ndarray, array_turn: np.ndarray, to_world: np.ndarray) -> str:
    """A flip of one axis of the patient or of the array, named by the patient's; some degrees of rotation allowed."""
    names = ("left-right", "front-back", "head-foot")
    for axis in range(3):
        flip = np.diag(np.where(np.arange(3) == axis, -1.0, 1.0))
        if np.allclose(world_turn, flip, atol=0.1):
            return f"a {names[axis]} flip"
        if np.allclose(array_turn, flip, atol=0.1):
            return f"a {names[int(np.abs(to_world[:, axis]).argmax())]} flip"
    return "a mirror image"


# ---- writing


@contextmanager
def _in_place_of(path: Path) -> Iterator[BinaryIO]:
    """A stream to a temporary file in the same folder; it takes `path`'s place if all went well, else it vanishes."""
    with whole_or_not(path) as temporary, open(temporary, "xb") as raw:
        if path.name.lower().endswith(".gz"):
            packed = _Packed(raw)
            yield cast(BinaryIO, packed)
            packed.finish()
        else:
            yield raw
        raw.flush()
        os.fsync(raw.fileno())


class _Packed:
    """A gzip stream that looks for repeated voxels only: half the time of level 1, and 1 to 4 % larger on scans.

    It holds neither name nor date: the same scan gives the same bytes.
    """

    def __init__(self, raw: BinaryIO) -> None:
        self.raw = raw
        self.packer = zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
        self.size = 0

    def write(self, content: bytes) -> int:
        self.raw.write(self.packer.compress(content))
        self.size += len(content)
        return len(content)

    def tell(self) -> int:
        return self.size

    def finish(self) -> None:
        self.raw.write(self.packer.flush())


def _header_for(volume: Volume, like: Volume | None) -> Any:
    """The source's header on the volume's grid; a fresh one where the source was not NIfTI."""
    shape = volume.voxels.shape
    if len(shape) not in (3, 4) or 0 in shape:
        raise _unwritable(f"voxels of shape {shape}", "[x, y, z] or [x, y, z, t]", "this is a fault of the caller")
    sources = (like.header if like is not None else None, volume.header)
    source = next((h for h in sources if isinstance(h, nifti1.Nifti1Header)), None)
    header = _fresh_header(volume.voxels.dtype) if source is None else cast(Any, source).copy()
    stored = header.get_data_dtype()
    if stored.kind in "iu" and stored.itemsize == 1 and volume.voxels.dtype == np.int16:
        header.set_data_dtype(np.int16)  # an answer computed from 8 bits, which goes beyond 0 .. 255
    if not np.array_equal(header["dim"][1:4], shape[:3]):
        for timing in ("slice_code", "slice_start", "slice_end", "slice_duration"):
            header[timing] = 0
    beyond_space = header["pixdim"][4:].copy()  # set_data_shape resets the repetition time of a 3-D scan
    try:
        header.set_data_shape(shape)
    except HeaderDataError:
        raise _unwritable(f"{max(shape)} voxels along one axis", "at most 32767 in NIfTI-1", "crop the scan") from None
    header["pixdim"][4:] = beyond_space
    header["vox_offset"] = 0  # nibabel: to be set from the extensions
    _set_affine(header, np.asarray(volume.affine, np.float64))
    return header


def _fresh_header(dtype: np.dtype[Any]) -> Any:
    header = _HEADERS[348]()
    family = {"b": np.dtype(np.uint8)}.get(dtype.kind, dtype.newbyteorder("="))
    if family not in [np.dtype(d) for d in _DTYPES.values()]:
        family = np.dtype(np.float64 if dtype.itemsize > 4 else np.float32)
    header.set_data_dtype(family)
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["sform_code"] = header["qform_code"] = 1  # Volume.affine is in patient space
    header.set_xyzt_units("mm", "sec")
    return header


def _set_affine(header: Any, affine: np.ndarray) -> None:
    """Both forms get the affine [4, 4], in mm, and keep their codes where they can carry it."""
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise _unwritable("an affine without an inverse", "a [4, 4] one", "this is a fault of the caller")
    affine = np.diag([1 / _mm_per_unit(header)[1]] * 3 + [1]) @ affine
    sform_code, qform_code = max(0, int(header["sform_code"])), max(0, int(header["qform_code"]))
    header.set_qform(affine, 0)  # pixdim too
    header.set_sform(affine, 0)
    sheared = _shear(affine) > SHEAR_COSINE
    if not sform_code and not qform_code:
        # Only pixdim spoke, and it puts the middle of the grid at the origin; "aligned" claims no scanner position.
        sform_code = 0 if _is_close(header.get_base_affine(), affine, 1e-3 * header["pixdim"][1:4].min()) else ALIGNED
    elif not sform_code and (sheared or not _is_close(_qform(header), affine, 1e-5)):
        sform_code = qform_code
    header["sform_code"], header["qform_code"] = sform_code, 0 if sheared else qform_code


def _is_close(form: np.ndarray | None, affine: np.ndarray, tolerance: float) -> bool:
    """Equal within `tolerance`, and what float32 can hold of the position."""
    return form is not None and np.allclose(form, affine, rtol=1e-6, atol=tolerance)


def _encoded(voxels: np.ndarray, header: Any) -> Iterator[bytes]:
    """The voxels as the file stores them, slab by slab in file order."""
    dtype = np.dtype(header.get_data_dtype()).newbyteorder("=")
    slope, inter = _slope_inter(header)
    if voxels.dtype.kind == "b":
        voxels = voxels.view(np.uint8)
    if voxels.dtype.kind not in "iuf":
        raise _unwritable(f"{voxels.dtype} voxels", "real numbers", "this is a fault of the caller")
    for at in _slabs(voxels.shape, 8):
        if (slope, inter) == (1.0, 0.0) and voxels.dtype.kind in "iu" and dtype.kind in "iu":
            slab = _clip_integers(voxels[at], dtype)
        else:
            slab = _from_floats(voxels[at], dtype, slope, inter)
        yield slab.tobytes(order="F")


def _clip_integers(slab: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    if slab.dtype == dtype:
        return slab
    source, target = np.iinfo(slab.dtype), np.iinfo(dtype)
    return slab.clip(max(source.min, target.min), min(source.max, target.max)).astype(dtype)


def _from_floats(slab: np.ndarray, dtype: np.dtype[Any], slope: float, inter: float) -> np.ndarray:
    """(slab - inter) / slope, rounded and clipped where `dtype` is an integer type."""
    values = slab.astype(np.float64) if (slope, inter) == (1.0, 0.0) else (slab.astype(np.float64) - inter) / slope
    if not np.isfinite(values).all():
        raise _unwritable("NaN or infinite voxels", "finite ones", "this is a fault of the model or of the caller")
    if dtype.kind == "f":
        limits = np.finfo(dtype)
        return values.clip(limits.min, limits.max).astype(dtype)
    low, high = (float(limit) for limit in (np.iinfo(dtype).min, np.iinfo(dtype).max))
    if high > np.iinfo(dtype).max:  # 2**63 - 1 is no float64
        high = math.nextafter(high, 0)
    return np.rint(values).clip(low, high).astype(dtype)
