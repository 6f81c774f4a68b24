"""read / write FreeSurfer's MGH and MGZ: the second door to nibabel.

The layout is nibabel's (`nibabel.freesurfer.mghformat`, after surfer.nmr.mgh.harvard.edu/fswiki/FsTutorial/MghFormat):
a header, the voxels in big-endian byte order, then times of the sequence, then tags of any kind. nibabel's own reader
believes what a header says about sizes; here nothing is allocated that the file cannot hold.
"""

import logging
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from nibabel.freesurfer.mghformat import DATA_OFFSET, MGHHeader, footer_dtype, header_dtype

from thinslice.io.affines import check_affine, check_affine_to_write, check_lengths, check_shape_to_write, shear_notes
from thinslice.io.encoding import encoded, put_on_steps, replace_non_finite, type_to_store
from thinslice.io.formats import ending
from thinslice.io.refusals import AGAIN, WHOLE, by, reading, refused, unwritable, writing
from thinslice.io.sidecars import thickness_beside
from thinslice.io.streams import check_is_file, drain, in_place_of, kind_of, read_voxels, unpacked
from thinslice.volume import Volume

logger = logging.getLogger(__name__)

VERSION = 1
"""The only version of the format there is."""

INTENTS = (0, 1, 0xFFFF)
"""What may be in the file: a scan, labels, unknown. The others are surfaces and warps."""

# Any: nibabel's headers carry no types
_Header: Any = MGHHeader
_DTYPES = {0: np.uint8, 1: np.int32, 3: np.float32, 4: np.int16, 10: np.uint16}
"""The format's codes of types that are read; uint16 is younger than most programs."""

_CODES = {np.dtype(kind): code for code, kind in _DTYPES.items()}
"""Type -> its code."""

_WIDER = {
    "int8": np.int16, "uint16": np.int32, "uint32": np.int32, "int64": np.int32, "uint64": np.int32,
    "float64": np.float32,
}  # fmt: skip
"""What becomes of types that MGH, or an older FreeSurfer, does not have."""

_CORONAL = ((-1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0))
"""Where columns, lines and slices run (RAS) in FreeSurfer where a header does not say; nibabel's has it transposed."""

_NEED = "one FreeSurfer volume, .mgh or .mgz"
_CONVERT = "make one with FreeSurfer: mri_convert IN OUT.mgz"
_UNKNOWN = (
    "the header says that it knows no geometry (goodRASFlag 0): taken, as FreeSurfer does, for coronal slices "
    "of 1 mm voxels around the origin"
)


def read(path: Path) -> Volume:
    """Reads one .mgh or .mgz file.

    The voxels [x, y, z], or [x, y, z, t] where there are several frames, keep their stored type. The affine is
    FreeSurfer's vox2ras; where the header has none the notes say so. A BIDS sidecar next to the file gives
    `thickness_mm`. Tags after the voxels are not kept.

    Raises:
        InputRefused: not a readable scan; one line: the file, what was got, what is needed, what to do next.
    """
    path = Path(path)
    with reading(path, _NEED, _CONVERT):
        return _read(path)


def write(volume: Volume, path: Path, like: Volume | None = None) -> None:
    """Writes a scan as .mgh or .mgz, whole or not at all.

    Type, degrees of freedom, repetition, echo and inversion time and flip angle are those of the source header
    (`like`'s, else the volume's own). Types that the format does not have become wider ones: uint16 int32, int8 int16;
    float64 becomes float32. An affine is kept within float32, sheared or not.

    Raises:
        OutputRefused: another kind of name, a folder that cannot be written to, voxels that are not finite, or whole
            numbers beyond 32 bits.
    """
    path = Path(path)
    with writing(path):
        suffix = ending(path)
        if suffix not in (".mgh", ".mgz"):
            raise unwritable("another kind of name", ".mgh or .mgz", "change the output's name", code="output-name")
        header = _header_for(volume, like)
        dtype = np.dtype(_DTYPES[int(header["type"])])
        with in_place_of(path, packed=suffix == ".mgz") as stream:
            stream.write(header.binaryblock[: header_dtype.itemsize].ljust(DATA_OFFSET, b"\0"))
            for slab in encoded(volume.voxels, dtype):
                stream.write(slab.astype(dtype.newbyteorder(">")).tobytes(order="F"))
            stream.write(header.binaryblock[header_dtype.itemsize :])


def as_stored(volume: Volume) -> Volume:
    """Returns the volume with the values that `write` will put into the file; its voxels are spent on it.

    Raises:
        OutputRefused: whole numbers beyond 32 bits.
    """
    dtype = _type_for(volume, volume)
    if volume.voxels.dtype.kind == "f" and volume.voxels.dtype != dtype:
        put_on_steps(volume.voxels, dtype)
    return volume


# ---- reading


def _read(path: Path) -> Volume:
    file_bytes = check_is_file(path, _NEED)
    with unpacked(path, ".mgz", ".mgh") as stream:
        start = _read_start(stream)
        shape, dtype = _shape_and_dtype(start)
        stored = read_voxels(stream, path, DATA_OFFSET, shape, dtype, file_bytes)
        times, has_tags = _read_end(stream, DATA_OFFSET + stored.nbytes)
    affine, notes = _geometry(start)
    voxels, finite_notes = replace_non_finite(stored)
    thickness_mm, sidecar_notes = thickness_beside(path)
    if has_tags:
        notes.append("FreeSurfer's tags behind the voxels (history, colours, transforms) not carried over")
    header: Any = _Header(start.tobytes() + times, check=False)
    notes += finite_notes + sidecar_notes
    return Volume(voxels, affine, thickness_mm, tuple(notes), path, header)


def _read_start(stream: BinaryIO) -> Any:
    """Returns the header as stored, a record of `header_dtype`; the stream is left where the voxels begin."""
    start = stream.read(DATA_OFFSET)
    if len(start) < header_dtype.itemsize or start[3] != VERSION or start[0] != 0:
        raise refused(kind_of(start), _NEED, _CONVERT, code="other-format")
    if len(start) < DATA_OFFSET:
        raise refused(f"{len(start)} bytes of a {DATA_OFFSET}-byte header", WHOLE, AGAIN, code="cut-off")
    record: Any = np.frombuffer(start[: header_dtype.itemsize], header_dtype)[0]
    intent = int(record["version"]) >> 8
    if intent not in INTENTS:
        raise refused(
            f"a surface overlay or a warp (intent {intent})",
            "a scan or labels",
            "name the scan instead",
            code="not-a-scan",
        )
    return record


def _shape_and_dtype(start: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Returns the shape [x, y, z] or [x, y, z, t], and type in the file's byte order."""
    code = int(start["type"])
    if code not in _DTYPES:
        raise refused(f"voxels of an unknown type ({code})", "one real number per voxel", _CONVERT, code="voxel-type")
    shape = tuple(int(n) for n in start["dims"])
    if min(shape) < 1:
        raise refused(f"a grid of {by(shape)} voxels", "at least one along each axis", _CONVERT, code="empty-grid")
    return shape[:3] if shape[3] == 1 else shape, np.dtype(_DTYPES[code]).newbyteorder(">")


def _read_end(stream: BinaryIO, place: int) -> tuple[bytes, bool]:
    """Returns the times behind the voxels, zero where the file ends before, and whether anything comes after them."""
    stream.seek(place)  # mapped voxels have not moved the stream
    # Old programs write no times, and the file ends with its voxels.
    times = stream.read(footer_dtype.itemsize)
    has_tags = any(stream.read(64))
    drain(stream)
    return times.ljust(footer_dtype.itemsize, b"\0"), has_tags


def _geometry(start: Any) -> tuple[np.ndarray, list[str]]:
    """Returns vox2ras [4, 4] in mm, and what had to be decided about it."""
    is_known = int(start["goodRASFlag"]) > 0
    logger.debug("goodRASFlag %d", start["goodRASFlag"])
    with np.errstate(invalid="ignore"):  # what is not a number is refused below
        delta, turn, centre = (np.asarray(start[name], np.float64) for name in ("delta", "Mdc", "Pxyz_c"))
    if not is_known:
        delta, turn, centre = np.ones(3), np.array(_CORONAL), np.zeros(3)
    if not all(np.isfinite(mm) and mm > 0 for mm in delta):
        raise refused(f"a spacing of {by(delta)}", "three positive lengths", _CONVERT, code="bad-spacing")
    with np.errstate(all="ignore"):
        # c_ras is where index dims / 2 lies: half a voxel beside the middle of the centres.
        columns = turn.T * delta
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = columns, centre - columns @ (start["dims"][:3] / 2)
    check_lengths(affine, _CONVERT)
    check_affine(affine, _CONVERT)
    return affine, shear_notes(affine) if is_known else [_UNKNOWN]


# ---- writing


def _header_for(volume: Volume, like: Volume | None) -> Any:
    """Returns the source's header on the volume's grid; a fresh one where the source was not MGH."""
    check_shape_to_write(volume.voxels.shape)
    affine = np.asarray(volume.affine, np.float64)
    check_affine_to_write(affine)
    source = _source_header(volume, like)
    header = _Header() if source is None else cast(Any, source).copy()
    header["version"], header["goodRASFlag"] = VERSION, 1
    header["type"] = _CODES[_type_for(volume, like)]
    header["dims"] = (*volume.voxels.shape, 1)[:4]
    header["delta"] = volume.spacing_mm
    header["Mdc"] = (affine[:3, :3] / volume.spacing_mm).T
    # As in reading: the place of index dims / 2.
    header["Pxyz_c"] = affine[:3, :3] @ (np.array(volume.shape) / 2) + affine[:3, 3]
    return header


def _source_header(volume: Volume, like: Volume | None) -> Any:
    sources = (like.header if like is not None else None, volume.header)
    return next((header for header in sources if isinstance(header, MGHHeader)), None)


def _type_for(volume: Volume, like: Volume | None) -> np.dtype[Any]:
    """Returns the type in the file."""
    source = _source_header(volume, like)
    known = None if source is None else np.dtype(_DTYPES[int(source["type"])])
    dtype = type_to_store(volume.voxels.dtype, known)
    dtype = np.dtype(_WIDER.get(dtype.name, dtype))
    if dtype not in _CODES:
        raise unwritable(
            f"{volume.voxels.dtype} voxels",
            "real numbers",
            "this is a fault of the caller",
            code="voxel-type",
        )
    if dtype == np.int32 and volume.voxels.dtype.kind in "iu":
        _check_range(volume.voxels)
    return dtype


def _check_range(voxels: np.ndarray) -> None:
    """Refuses what MGH, whose widest whole numbers are int32, would clip: a clipped label is another label."""
    limits = np.iinfo(np.int32)
    if np.iinfo(voxels.dtype).max > limits.max and not (limits.min <= voxels.min() and voxels.max() <= limits.max):
        got = f"whole numbers from {voxels.min()} to {voxels.max()}"
        raise unwritable(got, "32 bits for MGH", "write .nii.gz or .nrrd instead", code="beyond-type")
