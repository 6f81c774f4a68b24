"""read / write NIfTI: the only door to nibabel.

The header is parsed unrepaired: nibabel.load turns a spacing of zero into 1 mm and a negative one into a positive one,
with no more than a line in a log. Here a scan whose geometry is unknown is refused, and whatever else had to be decided
is said in `Volume.notes`. Where the voxels are is read and written in `thinslice.io.nifti_forms`.
"""

import logging
import math
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np
from nibabel import nifti1, nifti2
from nibabel.spatialimages import HeaderDataError, SpatialImage

from thinslice.io.affines import check_affine, check_shape_to_write, shear_notes
from thinslice.io.encoding import as_numbers, encoded, finite, put_on_steps, replace_non_finite
from thinslice.io.formats import ending
from thinslice.io.nifti_forms import ALIGNED, find_place, loses_qform, set_both_forms, set_forms
from thinslice.io.refusals import AGAIN, WHOLE, by, reading, refused, unwritable, writing
from thinslice.io.sidecars import thickness_beside
from thinslice.io.streams import check_is_file, drain, in_place_of, kind_of, most_bytes, read_voxels, slabs, unpacked
from thinslice.volume import Volume

logger = logging.getLogger(__name__)

MOST_EXTENSION_BYTES = 256 * 2**20
"""What may lie between header and voxels: descriptions of some kilobytes as a rule, of CIFTI some megabytes."""

COMMENT_EXTENSION = 6
"""The code of an extension that is a comment (nifti1.h: NIFTI_ECODE_COMMENT)."""

IN_SCANNER = 1
"""The code of a form that counts from the scanner (NIFTI_XFORM_SCANNER_ANAT)."""

LABEL_INTENT = 1002
"""The intent code of voxels that are labels (NIFTI_INTENT_LABEL)."""

# Any: nibabel's headers carry no types
_HEADERS: dict[int, Any] = {348: nifti1.Nifti1Header, 540: nifti2.Nifti2Header}
"""Bytes of a header -> its class."""

_DTYPES = {
    2: np.uint8, 4: np.int16, 8: np.int32, 16: np.float32, 64: np.float64,
    256: np.int8, 512: np.uint16, 768: np.uint32, 1024: np.int64, 1280: np.uint64,
}  # fmt: skip
"""The codes of real numbers (nifti1.h: DT_...)."""

_OTHER_DTYPES = {
    1: "binary", 32: "complex", 128: "RGB", 1536: "128-bit float", 1792: "complex", 2048: "complex", 2304: "RGBA",
}  # fmt: skip
"""What others are called in a refusal."""

_Order = Literal["<", ">"]
_ORDERS: tuple[_Order, _Order] = ("<", ">")
"""Byte orders of a file, as numpy writes them."""

_NEED = "one NIfTI file, .nii or .nii.gz"
_CONVERT = "make one from the DICOM series with dcm2niix"


def read(path: Path) -> Volume:
    """Reads one NIfTI-1 or NIfTI-2 file.

    The voxels [x, y, z] or [x, y, z, t] keep their stored integer type where the file has no rescale, and are float32
    otherwise (float64 where stored so). The affine is in millimetres whatever the file's unit: sform, else qform, else
    pixdim alone, as in nibabel, but a form that is of no use is left out where the other one is good. A BIDS sidecar
    next to the file gives `thickness_mm`; NIfTI itself has no field for it.

    Raises:
        InputRefused: not a readable scan; one line: the file, what was got, what is needed, what to do next.
    """
    path = Path(path)
    with reading(path, _NEED, _CONVERT):
        return _read(path)


def read_grid(path: Path) -> Volume:
    """Reads where a scan lies, from its header alone: its voxels are zeros that take no room.

    Raises:
        InputRefused: as of `read`; what is wrong beyond the header is not seen.
    """
    path = Path(path)
    with reading(path, _NEED, _CONVERT):
        check_is_file(path, _NEED)
        with unpacked(path, ".gz", ".nii") as stream:
            header, order = _read_header(stream)
        shape, dtype = _shape_and_dtype(header, order)
        affine = find_place(header, shape).affine
        return Volume(np.broadcast_to(np.zeros((), dtype), shape), affine, source=path, header=header)


def write(volume: Volume, path: Path, like: Volume | None = None) -> None:
    """Writes a scan as .nii or .nii.gz: under a temporary name in the same folder first, then renamed.

    Type, rescale, unit, form codes, intent, description, display window and repetition time are those of the source
    header (`like`'s, else the volume's own). Integers are rounded and clipped. Slice timing is dropped when the grid
    has changed. Where sform and qform differ, each keeps what it says (`thinslice.io.nifti_forms.set_forms`). A qform
    cannot hold a sheared affine: its code is then 0. Where no code was set and pixdim alone cannot hold the new affine,
    the sform code is 2 (aligned). Missing folders are made; after a failure nothing is left.

    Raises:
        OutputRefused: not a NIfTI name, a folder that cannot be written to, or voxels that are not finite.
    """
    path = Path(path)
    with writing(path):
        suffix = ending(path)
        if suffix not in (".nii", ".nii.gz"):
            raise unwritable("another kind of name", ".nii or .nii.gz", "change the output's name", code="output-name")
        header = _header_for(volume, like)
        with in_place_of(path, packed=suffix == ".nii.gz") as stream:
            header.write_to(stream)
            for slab in _encoded(volume.voxels, header):
                stream.write(slab)


def as_stored(volume: Volume) -> Volume:
    """Returns the volume with the values that `write` will put into the file, and a header whose scale holds them all.

    Only files that store whole numbers with a rescale change anything: an answer goes a little beyond the acquired
    values, which their scale need not hold. 8 bits become 16; where that is not enough the scale is widened, and a
    note says so. The voxels, which are spent on it, are put on the file's steps. A note also says where the qform of
    the source cannot be written on the grid of the volume.
    """
    header = volume.header
    if not isinstance(header, nifti1.Nifti1Header):
        return volume
    if loses_qform(header, np.asarray(volume.affine, np.float64)):
        lost = "the qform would be sheared on this grid, which no quaternion can say: only the sform is written"
        volume = replace(volume, notes=(*volume.notes, lost))
    if volume.voxels.dtype.kind != "f":
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
    put_on_steps(volume.voxels, dtype, slope, inter)
    return replace(volume, header=header, notes=notes)


def described_header(volume: Volume, text: bytes) -> Any:
    """Returns a fresh header for a volume, with a description of at most 79 bytes."""
    header = _fresh_header(volume.voxels.dtype)
    set_both_forms(header, np.asarray(volume.affine, np.float64))
    header["descrip"] = text
    return header


def is_in_scanner(volume: Volume) -> bool:
    """Tells whether a scan was read from NIfTI whose header says that it is where the scanner has seen it."""
    header = volume.header
    if not isinstance(header, nifti1.Nifti1Header):
        return False
    codes = [int(cast(Any, header)[name]) for name in ("sform_code", "qform_code")]
    # The sform comes first, as in `find_place`.
    return next((code for code in codes if code > 0), 0) == IN_SCANNER


def description_of(volume: Volume) -> bytes:
    """Returns the description in the header of a scan that was read from NIfTI; else nothing."""
    header = volume.header
    return bytes(header["descrip"].item()) if isinstance(header, nifti1.Nifti1Header) else b""


def has_label_intent(volume: Volume) -> bool:
    """Tells whether the header of a scan that was read from NIfTI says that its voxels are labels."""
    header = volume.header
    return isinstance(header, nifti1.Nifti1Header) and int(cast(Any, header)["intent_code"]) == LABEL_INTENT


def _holds(dtype: np.dtype[Any], slope: float, inter: float, low: float, high: float) -> bool:
    limits = np.iinfo(dtype)
    ends = np.rint((np.array([low, high]) - inter) / slope)
    return bool(ends.min() >= limits.min and ends.max() <= limits.max)


# ---- reading


def _read(path: Path) -> Volume:
    file_bytes = check_is_file(path, _NEED)
    with unpacked(path, ".gz", ".nii") as stream:
        header, order = _read_header(stream)
        shape, dtype = _shape_and_dtype(header, order)
        extension_notes = _read_extensions(stream, header, order, most_bytes(stream, file_bytes))
        stored = read_voxels(stream, path, int(header["vox_offset"]), shape, dtype, file_bytes)
        drain(stream)
    place = find_place(header, shape)
    voxels, finite_notes = replace_non_finite(_rescale(stored, *_slope_inter(header)))
    thickness_mm, sidecar_notes = thickness_beside(path)
    notes = (*place.notes, *extension_notes, *finite_notes, *sidecar_notes)
    return Volume(voxels, place.affine, thickness_mm, notes, path, header, other_spacing_mm=place.other_spacing_mm)


def _read_header(stream: BinaryIO) -> tuple[Any, _Order]:
    """Returns the header exactly as stored but in native byte order, and the file's byte order, "<" or ">"."""
    start = stream.read(348)
    order = next((o for o in _ORDERS if len(start) >= 4 and struct.unpack(o + "i", start[:4])[0] in _HEADERS), None)
    if order is None:
        raise refused(kind_of(start), _NEED, _CONVERT, code="other-format")
    size = struct.unpack(order + "i", start[:4])[0]
    start += stream.read(size - len(start))
    if len(start) < size:
        raise refused(f"{len(start)} bytes of a {size}-byte header", WHOLE, AGAIN, code="cut-off")
    magic = start[344:347] if size == 348 else start[4:7]
    if magic in (b"ni1", b"ni2"):
        raise refused(
            "half of a .hdr/.img pair",
            _NEED,
            "join the pair first (fslchfiletype NIFTI_GZ)",
            code="half-a-pair",
        )
    if magic not in (b"n+1", b"n+2"):
        raise refused(f"an Analyze 7.5 or damaged header (magic {magic!r})", _NEED, _CONVERT, code="other-format")
    header = _HEADERS[size](start, endianness=order, check=False)
    return header.as_byteswapped("<" if struct.pack("=h", 1) == struct.pack("<h", 1) else ">"), order


def _shape_and_dtype(header: Any, order: _Order) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Returns the stored shape [x, y, z] or [x, y, z, t], and the type in the file's byte order."""
    code = int(header["datatype"])
    if code not in _DTYPES:
        kind = _OTHER_DTYPES.get(code, f"unknown (datatype {code})")
        raise refused(
            f"{kind} voxels",
            "one real number per voxel",
            "convert the scan to float32 or split its channels",
            code="voxel-type",
        )
    dims = [int(n) for n in header["dim"]]
    if not 1 <= dims[0] <= 7:
        raise refused(f"a damaged header (dim[0] is {dims[0]})", _NEED, _CONVERT, code="damaged-header")
    shape = dims[1 : dims[0] + 1]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    size = by(shape)
    if min(shape) < 1:
        raise refused(f"a grid of {size} voxels", "at least one along each axis", _CONVERT, code="empty-grid")
    if len(shape) not in (3, 4):
        raise refused(
            f"a {len(shape)}-D image ({size})",
            "3-D, or 4-D with time last",
            "extract one volume from it",
            code="not-3d",
        )
    return tuple(shape), np.dtype(_DTYPES[code]).newbyteorder(order)


def _read_extensions(stream: BinaryIO, header: Any, order: _Order, most_bytes: int) -> list[str]:
    """Reads the extensions: keeps comments in `header`, returns a note on the others, which are dropped."""
    header_bytes = int(header["sizeof_hdr"])
    offset = float(header["vox_offset"])
    if not math.isfinite(offset) or offset > most_bytes:
        raise refused(f"voxels that start at byte {offset:g}, beyond the end", WHOLE, AGAIN, code="cut-off")
    if offset > MOST_EXTENSION_BYTES:
        got = f"voxels that start at byte {offset:g}"
        raise refused(got, f"extensions of at most {MOST_EXTENSION_BYTES:,} bytes", _CONVERT, code="damaged-header")
    header["vox_offset"] = max(int(offset), header_bytes + 4)
    block = stream.read(int(header["vox_offset"]) - header_bytes)
    dropped = 0
    for code, content in _split_extensions(block, order):
        if code == COMMENT_EXTENSION:
            header.extensions.append(nifti1.Nifti1Extension(COMMENT_EXTENSION, content))
        else:
            dropped += 1
    if dropped:
        return [_note_on_dropped(dropped)]
    return []


def _split_extensions(block: bytes, order: _Order) -> Iterator[tuple[int, bytes]]:
    """Yields (code, content) of each extension that is whole; `block` starts with the four flag bytes."""
    start = 4
    while block[:1] not in (b"", b"\0") and start + 8 <= len(block):
        size, code = struct.unpack(order + "ii", block[start : start + 8])
        if size < 16 or start + size > len(block):
            return
        yield code, block[start + 8 : start + size].rstrip(b"\0")
        start += size


def _slope_inter(header: Any) -> tuple[float, float]:
    """Returns the rescale; (1, 0) where the file has none (slope zero or not finite)."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(slope):
        return 1.0, 0.0
    if not math.isfinite(inter):
        got = f"scl_slope {slope:g} with scl_inter {inter:g}"
        raise refused(got, "two finite numbers", "set scl_inter to 0 if there is no offset", code="damaged-header")
    return slope, inter


def _rescale(stored: np.ndarray, slope: float, inter: float) -> np.ndarray:
    if (slope, inter) == (1.0, 0.0):
        return stored
    voxels = np.empty(stored.shape, np.float64 if stored.dtype == np.float64 else np.float32, order="F")
    with np.errstate(all="ignore"):  # what overflows is not finite, and is treated as such next
        for at in slabs(stored.shape, 8):
            voxels[at] = stored[at].astype(np.float64) * slope + inter
    return voxels


# ---- images of nibabel


def is_image(thing: object) -> bool:
    """Tells whether it is an image of nibabel, of whatever format."""
    return isinstance(thing, SpatialImage)


def from_image(image: Any) -> Volume:
    """Returns what `read` gives for the file that nibabel has read; the image, perhaps changed since, rules.

    It is not changed. Of another format than NIfTI the header is kept for files of that format. An array that was put
    into a header for other numbers is taken as it is. The JSON beside the file counts while the image lies where the
    file says.

    Raises:
        InputRefused: no scan, or one whose geometry is unknown.
    """
    name = image.get_filename()
    source = Path(name) if name else None
    if not isinstance(image, nifti1.Nifti1Pair):
        return _from_foreign(image, source)
    kind: Any = nifti2.Nifti2Header if isinstance(image.header, nifti2.Nifti2Header) else nifti1.Nifti1Header
    header = kind.from_header(image.header, check=False)
    header = header.as_byteswapped("<" if struct.pack("=h", 1) == struct.pack("<h", 1) else ">")
    proxy: Any = image.dataobj
    if hasattr(proxy, "get_unscaled"):
        stored = as_numbers(np.asanyarray(proxy.get_unscaled()))
        header["scl_slope"], header["scl_inter"] = proxy.slope, proxy.inter
    else:
        stored = as_numbers(np.asarray(proxy))
        header.set_data_dtype(stored.dtype)
        header["scl_slope"], header["scl_inter"] = 1, 0
    header.set_data_shape(stored.shape)
    # Numbers that are not finite are the same: nibabel hands on what the header says.
    moved = image.affine is not None and not np.allclose(image.affine, header.get_best_affine(), equal_nan=True)
    if moved:  # as nibabel would write it
        header.set_sform(image.affine, ALIGNED)
        header.set_qform(image.affine, 0)
    place = find_place(header, stored.shape)
    voxels, finite_notes = finite(_rescale(stored, *_slope_inter(header)))
    thickness_mm, beside_notes = thickness_beside(source) if source is not None and not moved else (None, [])
    notes = (*place.notes, *_drop_extensions(header), *finite_notes, *beside_notes)
    return Volume(voxels, place.affine, thickness_mm, notes, source, header, other_spacing_mm=place.other_spacing_mm)


def to_image(volume: Volume) -> Any:
    """Returns a scan as an image of nibabel that shares its voxels, with the header that `write` would give it.

    Its voxels are those numbers, not what a rescale makes of others: the header's type is theirs.

    Raises:
        OutputRefused: the grid does not fit into a header.
    """
    header = _header_for(volume, None)
    header.set_data_dtype(_fresh_header(volume.voxels.dtype).get_data_dtype())
    header["scl_slope"], header["scl_inter"] = 1, 0
    image: Any = nifti2.Nifti2Image if isinstance(header, nifti2.Nifti2Header) else nifti1.Nifti1Image
    return image(volume.voxels, volume.affine, header)


def _from_foreign(image: Any, source: Path | None) -> Volume:
    stored = as_numbers(np.asanyarray(image.dataobj))
    if image.affine is None:
        raise refused("an image without an affine", "one that says where its voxels are", _CONVERT, code="bad-affine")
    affine = np.array(image.affine, np.float64)
    check_affine(affine, _CONVERT)
    voxels, notes = finite(stored)
    thickness_mm, beside_notes = thickness_beside(source) if source is not None else (None, [])
    notes = shear_notes(affine) + notes + beside_notes
    return Volume(voxels, affine, thickness_mm, tuple(notes), source, image.header.copy())


def _drop_extensions(header: Any) -> list[str]:
    """Comments stay, what other programs wrote for the acquired grid goes; a note on that."""
    kept = [one for one in header.extensions if one.get_code() == COMMENT_EXTENSION]
    dropped = len(header.extensions) - len(kept)
    header.extensions[:] = kept
    return [_note_on_dropped(dropped)] if dropped else []


def _note_on_dropped(count: int) -> str:
    return f"{count} header extension(s) not carried over: written by other programs for the acquired grid"


# ---- writing


def _header_for(volume: Volume, like: Volume | None) -> Any:
    """Returns the source's header on the volume's grid; a fresh one where the source was not NIfTI."""
    shape = volume.voxels.shape
    check_shape_to_write(shape)
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
    except HeaderDataError as error:
        raise unwritable(
            f"{max(shape)} voxels along one axis", "at most 32767 in NIfTI-1", "crop the scan", code="output-too-large"
        ) from error
    header["pixdim"][4:] = beyond_space
    header["vox_offset"] = 0  # nibabel: to be set from the extensions
    (set_both_forms if source is None else set_forms)(header, np.asarray(volume.affine, np.float64))
    return header


def _fresh_header(dtype: np.dtype[Any]) -> Any:
    header = _HEADERS[348]()
    family = {"b": np.dtype(np.uint8)}.get(dtype.kind, dtype.newbyteorder("="))
    if family not in [np.dtype(d) for d in _DTYPES.values()]:
        family = np.dtype(np.float64 if dtype.itemsize > 4 else np.float32)
    header.set_data_dtype(family)
    header["scl_slope"], header["scl_inter"] = 1, 0
    header.set_xyzt_units("mm", "sec")
    return header


def _encoded(voxels: np.ndarray, header: Any) -> Iterator[bytes]:
    """Yields the voxels as the file stores them, slab by slab in file order."""
    dtype = np.dtype(header.get_data_dtype()).newbyteorder("=")
    slope, inter = _slope_inter(header)
    for slab in encoded(voxels, dtype, slope, inter):
        yield slab.tobytes(order="F")
