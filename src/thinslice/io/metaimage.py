"""read / write MetaImage, .mha and .mhd with its .raw or .zraw: ITK's own format.

The layout is that of ITK's MetaIO (docs.itk.org, "MetaIO/Documentation"; where that is silent, what SimpleITK 2.5 does
was tried out): lines of ``Key = value``, the last of which, ElementDataFile, says where the voxels are. Lengths are in
mm, directions and position left-posterior-superior (LPS). Of two keys that say the same, the one that ITK believes is
believed. What ITK ignores in silence is told in a note: CenterOfRotation has no effect (the position is that of the
first voxel), and a function of intensities is not applied.
"""

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from thinslice.io.affines import (
    OF_THE_GRID,
    check_affine,
    check_affine_to_write,
    check_lengths,
    check_shape_to_write,
    shear_notes,
    slice_axis,
)
from thinslice.io.atomic import all_or_none
from thinslice.io.encoding import encoded, put_on_steps, replace_non_finite, type_to_store
from thinslice.io.formats import ending, stem_of
from thinslice.io.refusals import by, reading, refused, unwritable, writing
from thinslice.io.sidecars import thickness_beside, thickness_of_header
from thinslice.io.streams import (
    Inflated,
    Packed,
    check_is_file,
    drain,
    file_beside,
    in_place_of,
    kind_of,
    read_ascii,
    read_voxels,
)
from thinslice.volume import Volume, patient_axes

logger = logging.getLogger(__name__)

MOST_HEADER_BYTES = 16 * 2**20
"""A header that is longer is none: ITK puts the tags of DICOM files into it, some thousand lines at most."""

MOST_AXES = 10
"""As many as MetaIO can hold."""

_TYPES = {
    "MET_ASCII_CHAR": "i1", "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2",
    "MET_INT": "i4", "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
"""ElementType -> numpy's name; a long has 4 bytes in a file, whatever the platform."""

_NAMES = {np.dtype(kind): name for name, kind in _TYPES.items() if name not in ("MET_LONG", "MET_ULONG")}
"""Type -> the ElementType that ITK writes for it."""

_MM = {"mm": 1.0, "um": 1e-3, "cm": 10.0, "?": 1.0, "": 1.0}
"""DistanceUnits in mm; ITK itself takes all of them for mm."""

_SPACING = ("ElementSpacing", "ElementSize")
"""Keys for the distance between voxels: of several, ITK believes the first of these."""

_POSITION = ("Origin", "Offset", "Position")
"""Keys for the centre of the first voxel: of several, ITK believes the first of these."""

_MATRIX = ("TransformMatrix", "Rotation", "Orientation")
"""Keys for the directions of the axes: of several, ITK believes the first of these."""

_ORDER = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
"""Keys for the byte order: of several, ITK believes the first of these."""

_INTENSITY = ("ElementToIntensityFunctionSlope", "ElementToIntensityFunctionOffset")
"""What would have to be done to the voxels, and what neither ITK nor we do."""

_READ = (
    "ObjectType", "NDims", "BinaryData", "CompressedData", "CompressedDataSize", "CenterOfRotation",
    "AnatomicalOrientation", "DistanceUnits", "DimSize", "HeaderSize", "ElementMin",
    "ElementMax", "ElementNumberOfChannels", "ElementType", "ElementDataFile", *_SPACING, *_POSITION, *_MATRIX, *_ORDER,
)  # fmt: skip
"""Keys that are understood, or hold for the voxels of one file only; lines with other keys are carried over."""

_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""LPS <-> RAS."""

_CAME_FROM = (("L", "R"), ("P", "A"), ("I", "S"))
"""For each patient axis (RAS): the letter of AnatomicalOrientation where an array axis runs along it, and against it.

ITK's letters name the side that an axis comes from: RAI is that of a grid along LPS.
"""

_SIZE_WIDTH = 20
"""Places left for CompressedDataSize, which is known when the voxels have been written: 2**64 has 20 digits."""

_PLAIN_STEM = re.compile(r"(?!LIST| )[^%:\\\x00-\x1f]+")
"""Names that a header can name: others are a pattern or a list to MetaIO, or a place elsewhere; then it holds all."""

_NEED = "one MetaImage volume, .mha or .mhd"
_CONVERT = "write it again, with 3D Slicer or with SimpleITK's WriteImage"


@dataclass(frozen=True)
class Header:
    """What the writer needs to know of the header that was read.

    Attributes:
        dtype: stored type, in native byte order.
        shape: [x, y, z].
        is_packed: whether the voxels were compressed; a .mhd keeps that.
        step: distance between the volumes of a 4-D series, in the file's unit of time.
        start: the time of the first.
        kept: the lines that hold whatever the grid and the voxels.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_packed: bool
    step: float
    start: float
    kept: tuple[str, ...]


def read(path: Path) -> Volume:
    """Reads one .mha file, or a .mhd header and the data file in its folder.

    The voxels [x, y, z], or [x, y, z, t] where NDims is 4, keep their stored type. The affine is in millimetres and
    RAS. Where a header states ElementSize, the extent of a voxel, beside ElementSpacing, that along the slice axis is
    `thickness_mm`, else SliceThickness of a BIDS sidecar.

    Raises:
        InputRefused: not a readable scan; one line: the file, what was got, what is needed, what to do next.
    """
    path = Path(path)
    with reading(path, _NEED, _CONVERT):
        return _read(path)


def write(volume: Volume, path: Path, like: Volume | None = None) -> None:
    """Writes a scan as .mha, compressed, or as .mhd with its voxels beside it; whole or not at all, both files or none.

    The voxels of a .mhd are in a file of the same name that ends in .raw, or in .zraw where those of the source were
    compressed; in its own, as those of a .mha, where MetaIO could not find a file of that name (a%d.mhd). The type, the
    step of a series in time, comments and keys that are not known here are those of the source header (`like`'s, else
    the volume's own). Integers are rounded and clipped.

    Raises:
        OutputRefused: another kind of name, a folder that cannot be written to, or voxels that are not finite.
    """
    path = Path(path)
    with writing(path):
        suffix = ending(path)
        if suffix not in (".mha", ".mhd"):
            raise unwritable("another kind of name", ".mha or .mhd", "change the output's name", code="output-name")
        check_shape_to_write(volume.voxels.shape)
        check_affine_to_write(np.asarray(volume.affine))
        source = _source_header(volume, like)
        if suffix == ".mhd" and _PLAIN_STEM.fullmatch(stem_of(path)):
            _write_pair(volume, source, path)
        else:
            _write_attached(volume, source, path)


def as_stored(volume: Volume) -> Volume:
    """Returns the volume with the values that `write` will put into the file; its voxels are spent on it."""
    dtype = _type_for(volume, _source_header(volume, None))
    if volume.voxels.dtype.kind in "iuf" and volume.voxels.dtype != dtype:
        put_on_steps(volume.voxels, dtype)
    return volume


def data_file(path: Path) -> Path | None:
    """Returns the file that the voxels of a header are in; None where they are in the header's own file.

    Raises:
        InputRefused: not such a header.
    """
    with reading(path, _NEED, _CONVERT):
        check_is_file(path, _NEED)
        with open(path, "rb") as stream:
            texts, _ = _read_header(stream)
        return _data_file(path, texts)


# ---- reading: the header


def _read(path: Path) -> Volume:
    check_is_file(path, _NEED)
    with open(path, "rb") as stream:
        texts, kept = _read_header(stream)
        start = stream.tell()
    count = _axes(texts)
    shape = _shape(texts, count)
    affine, notes = _geometry(texts, count)
    stored = _read_data(path, _data_file(path, texts), start, texts, shape)
    voxels, finite_notes = replace_non_finite(stored)
    thickness_mm, thickness_notes = _thickness(texts, count, affine, path)
    step, first = (_of_time(texts, keys, count) if len(shape) == 4 else None for keys in (_SPACING, _POSITION))
    header = Header(stored.dtype, shape[:3], _is_true(texts, "CompressedData"), step or 1.0, first or 0.0, kept)
    notes += _intensity_notes(kept) + finite_notes + thickness_notes
    return Volume(voxels, affine, thickness_mm, tuple(notes), path, header)


def _read_header(stream: BinaryIO) -> tuple[dict[str, str], tuple[str, ...]]:
    """Reads the text of each known key, and the other lines; leaves the stream behind the line of ElementDataFile."""
    texts: dict[str, str] = {}
    kept: list[str] = []
    start = stream.read(256)
    if not re.match(rb"\s*[A-Za-z]\w*[ \t]*[=:]", start):
        raise refused(kind_of(start), _NEED, _CONVERT, code="other-format")
    stream.seek(0)
    while "ElementDataFile" not in texts:
        line = stream.readline(MOST_HEADER_BYTES - stream.tell() + 1)
        if stream.tell() > MOST_HEADER_BYTES:
            raise refused("a header without an end", _NEED, _CONVERT, code="damaged-header")
        if not line:
            raise refused("a header without 'ElementDataFile'", _NEED, _CONVERT, code="missing-field")
        _take_line(line.decode("utf-8", "surrogateescape").strip(), texts, kept)
    object_type = texts.get("ObjectType", "Image")
    if object_type != "Image":
        raise refused(f"a MetaIO object of type {object_type[:30]!a}", "an Image", _CONVERT, code="other-format")
    return texts, tuple(kept)


def _take_line(text: str, texts: dict[str, str], kept: list[str]) -> None:
    """Takes one line of the header: a key with its value, parted by = or by a colon."""
    if not text:
        return
    found = re.match(r"(.*?)\s*[=:]\s*(.*)", text)
    # Neither = nor colon: most likely the voxels have begun, and the header lost its end.
    if found is None:
        raise refused(f"a header line without '=' ({text[:40]!a})", _NEED, _CONVERT, code="damaged-header")
    key, value = found.groups()
    if key not in _READ:
        kept.append(f"{key} = {value}")
        return
    if key in texts:
        raise refused(f"two fields '{key}' in one header", "one", _CONVERT, code="field-twice")
    texts[key] = value


def _key(texts: dict[str, str], keys: Sequence[str]) -> str | None:
    """Returns which of some keys that say the same is believed: the first that is there."""
    return next((key for key in keys if key in texts), None)


def _is_true(texts: dict[str, str], key: str, otherwise: bool = False) -> bool:
    text = texts.get(key, str(otherwise))
    if text[:1].upper() not in ("T", "F", "0", "1"):
        raise refused(f"'{key}' of {text[:20]!a}", "True or False", _CONVERT, code="damaged-header")
    return text[:1].upper() in ("T", "1")


def _numbers(texts: dict[str, str], key: str, count: int) -> np.ndarray:
    """Returns the numbers [count] of a key, all finite."""
    words = texts[key].split()
    if len(words) != count:
        raise refused(f"{len(words)} numbers for '{key}'", f"{count}", _CONVERT, code="wrong-count")
    try:
        numbers = np.array([float(word) for word in words])
    except ValueError as error:
        got = f"'{key}' of {texts[key][:60]!a}"
        raise refused(got, f"{count} numbers", _CONVERT, code="damaged-header") from error
    if not np.isfinite(numbers).all():
        raise refused(f"'{key}' of {texts[key][:60]!a}", f"{count} finite numbers", _CONVERT, code="damaged-header")
    return numbers


def _of_time(texts: dict[str, str], keys: Sequence[str], count: int) -> float | None:
    """Returns the number along the fourth axis of the first of some keys that is there; None where none is."""
    key = _key(texts, keys)
    return None if key is None else float(_numbers(texts, key, count)[3])


def _axes(texts: dict[str, str]) -> int:
    """Returns how many axes the file has."""
    for key in ("NDims", "DimSize", "ElementType"):
        if key not in texts:
            raise refused(f"a header without '{key}'", _NEED, _CONVERT, code="missing-field")
    text = texts["NDims"]
    if not re.fullmatch(r"[0-9]{1,3}", text) or not 1 <= int(text) <= MOST_AXES:
        raise refused(f"'NDims' of {text[:20]!a}", f"3 or 4, at most {MOST_AXES}", _CONVERT, code="damaged-header")
    return int(text)


def _shape(texts: dict[str, str], count: int) -> tuple[int, ...]:
    """Returns the shape [x, y, z], or [x, y, z, t]; axes of one sample behind these are left out."""
    words = texts["DimSize"].split()
    if not all(re.fullmatch(r"[0-9]{1,18}", word) for word in words) or len(words) != count:
        got = f"'DimSize' of {texts['DimSize'][:60]!a}"
        raise refused(got, f"{count} whole numbers", _CONVERT, code="damaged-header")
    shape = [int(word) for word in words]
    size = by(shape)
    if min(shape) < 1:
        raise refused(f"a grid of {size} voxels", "at least one along each axis", _CONVERT, code="empty-grid")
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) < 3:
        way = "join the slices of the stack, as with SimpleITK's JoinSeries"
        raise refused(f"a {len(shape)}-D image ({size})", "3-D", way, code="not-3d")
    if len(shape) > 4:
        way = "extract one volume from it"
        raise refused(f"a {len(shape)}-D image ({size})", "3-D, or 4-D with time last", way, code="not-3d")
    channels = texts.get("ElementNumberOfChannels", "1")
    if channels != "1" or texts["ElementType"].endswith("_ARRAY"):
        got, way = f"several numbers per voxel ({channels[:20]})", "extract one of its channels"
        raise refused(got, "one real number per voxel", way, code="several-channels")
    return tuple(shape)


# ---- reading: where it is


def _geometry(texts: dict[str, str], count: int) -> tuple[np.ndarray, list[str]]:
    """Returns the affine [4, 4] in mm, RAS, and what had to be decided about it."""
    way = "correct 'ElementSpacing' and 'TransformMatrix', or convert the DICOM series again"
    spacing_key = _key(texts, _SPACING)
    if spacing_key is None:
        raise refused("a header without 'ElementSpacing'", "the distance between voxels", way, code="no-spacing")
    # ITK takes 1 mm where nothing is said; a spacing that is unknown would make a wrong plan.
    spacing = _numbers(texts, spacing_key, count)[:3]
    if not spacing.all():
        raise refused(f"a spacing of {by(spacing)}", "three lengths", way, code="bad-spacing")
    mm, notes = _mm_per_unit(texts)
    directions, direction_notes = _directions(texts, count)
    position_key = _key(texts, _POSITION)
    position = np.zeros(3) if position_key is None else _numbers(texts, position_key, count)[:3]
    if position_key is None:
        notes.append("the header has no Offset: the position is unknown, the first voxel taken to be at 0")
    affine = np.eye(4)
    with np.errstate(over="ignore", invalid="ignore"):
        # A negative spacing turns its axis round, as in ITK.
        affine[:3, :3], affine[:3, 3] = directions * spacing * mm, position * mm
    check_lengths(affine, way)
    check_affine(affine, way)
    affine = _TO_RAS @ affine + 0.0
    return affine, notes + direction_notes + shear_notes(affine)


def _mm_per_unit(texts: dict[str, str]) -> tuple[float, list[str]]:
    """Returns the size in mm of the unit of length, and a note where it is not mm."""
    unit = texts.get("DistanceUnits", "")
    mm = _MM.get(unit.lower())
    if mm is None:
        way = "convert the lengths, or correct 'DistanceUnits'"
        raise refused(f"'DistanceUnits' of {unit[:20]!a}", "mm, um or cm", way, code="unknown-unit")
    if mm == 1:
        return mm, []
    return mm, [f"lengths are in {unit} and were converted to mm, which ITK does not do; if that is wrong, correct it"]


def _directions(texts: dict[str, str], count: int) -> tuple[np.ndarray, list[str]]:
    """Returns the directions [3, 3] of the array axes, as columns, LPS; and a note where the file is silent."""
    key = _key(texts, _MATRIX)
    if key is None:
        return np.eye(3), [
            "the header has no TransformMatrix: orientation unknown; the axes are taken to run right to left, front to "
            "back, foot to head"
        ]
    # Row by row in the file, and row i is the direction of axis i: the transpose of what SimpleITK shows.
    matrix = _numbers(texts, key, count * count).reshape(count, count).T
    if matrix[:3, 3:].any() or matrix[3:, :3].any():
        raise refused("directions that mix space with time", "three axes in space", _CONVERT, code="space-with-time")
    return matrix[:3, :3], []


def _thickness(texts: dict[str, str], count: int, affine: np.ndarray, path: Path) -> tuple[float | None, list[str]]:
    """Returns the slice thickness in mm along the slice axis: the header's, else that of the sidecar."""
    if "ElementSize" not in texts or "ElementSpacing" not in texts:
        return thickness_beside(path)
    mm, _ = _mm_per_unit(texts)
    extent = float(_numbers(texts, "ElementSize", count)[slice_axis(affine)]) * mm
    return thickness_of_header(extent, "ElementSize", path)


def _intensity_notes(kept: Sequence[str]) -> list[str]:
    functions = [line for line in kept if line.startswith(_INTENSITY)]
    identity = ("ElementToIntensityFunctionSlope = 1", "ElementToIntensityFunctionOffset = 0")
    if not functions or all(line.removesuffix(".0") in identity for line in functions):
        return []
    return [f"the header says {' and '.join(functions)}, which is not applied, as ITK does not"]


# ---- reading: the voxels


def _data_file(path: Path, texts: dict[str, str]) -> Path | None:
    """Returns the file that the voxels are in; None where they follow the header."""
    text = texts["ElementDataFile"]
    if text.upper() == "LOCAL":
        return None
    if text.split()[:1] == ["LIST"] or ("%" in text and len(text.split()) > 1):
        got = "voxels in several files, one a slice"
        raise refused(got, "one data file", _CONVERT, code="several-data-files")
    return file_beside(path, text)


def _header_size(texts: dict[str, str], start: int) -> int | None:
    """Returns the byte of its file that the voxels begin at; None where they end with it.

    HeaderSize counts from the beginning of the file that holds the voxels, be it the header's own.

    Args:
        texts: the fields of the header.
        start: where the header ends in that file, 0 where it is in another.
    """
    text = texts.get("HeaderSize", "0")
    if not re.fullmatch(r"-?[0-9]{1,18}", text) or int(text) < -1 or 0 < int(text) < start:
        raise refused(f"'HeaderSize' of {text[:30]!a}", "-1, or a number of bytes", _CONVERT, code="damaged-header")
    # ITK counts from the first byte of the file, even where that is the header.
    return None if int(text) == -1 else max(start, int(text))


def _read_data(
    path: Path, beside: Path | None, start: int, texts: dict[str, str], shape: tuple[int, ...]
) -> np.ndarray:
    """Reads the voxels, in native byte order.

    Args:
        path: the header's file.
        beside: the data file; None: the header's own.
        start: where the header ends.
        texts: its fields.
        shape: of the voxels.
    """
    kind = texts["ElementType"]
    if kind not in _TYPES:
        got, way = f"voxels of type {kind[:40]!a}", "convert the scan to MET_FLOAT"
        raise refused(got, "one real number per voxel", way, code="voxel-type")
    dtype = np.dtype(_TYPES[kind])
    # Silent headers mean little endian, to ITK as well.
    is_big = _is_true(texts, _key(texts, _ORDER) or _ORDER[0])
    is_packed, is_binary = _is_true(texts, "CompressedData"), _is_true(texts, "BinaryData", otherwise=True)
    held_in = path if beside is None else beside
    file_bytes = check_is_file(held_in, _NEED if beside is None else "the data file that the header names")
    offset = _header_size(texts, start if beside is None else 0)
    if offset is None and (is_packed or not is_binary):
        raise refused("a 'HeaderSize' of -1 for voxels that are not raw", "raw ones", _CONVERT, code="damaged-header")
    size = math.prod(shape) * dtype.itemsize
    offset = max(start if beside is None else 0, file_bytes - size) if offset is None else offset
    logger.debug("%s: %s voxels from byte %d of %s on", path, kind, offset, held_in.name)
    in_file = dtype.newbyteorder(">" if is_big else "<")
    with open(held_in, "rb") as stream:
        stream.seek(min(offset, file_bytes))
        if not is_binary:
            return read_ascii(stream, shape, dtype, file_bytes)
        if not is_packed:
            return read_voxels(stream, held_in, offset, shape, in_file, file_bytes)
        inflated = cast(BinaryIO, Inflated(stream))
        stored = read_voxels(inflated, held_in, 0, shape, in_file, file_bytes)
        drain(inflated)
        return stored


# ---- writing


def _source_header(volume: Volume, like: Volume | None) -> Header | None:
    sources = (like.header if like is not None else None, volume.header)
    return next((header for header in sources if isinstance(header, Header)), None)


def _type_for(volume: Volume, source: Header | None) -> np.dtype[Any]:
    """Returns the type in the file, in native byte order."""
    dtype = type_to_store(volume.voxels.dtype, None if source is None else source.dtype)
    if dtype not in _NAMES:
        way = "this is a fault of the caller"
        raise unwritable(f"{volume.voxels.dtype} voxels", "real numbers", way, code="voxel-type")
    return dtype


def _write_attached(volume: Volume, source: Header | None, path: Path) -> None:
    dtype = _type_for(volume, source)
    before, after = _lines(volume, source, dtype, "LOCAL")
    with in_place_of(path, packed=False) as raw:
        raw.write(_encode(before))
        # ITK needs the size of a compressed stream, which is known at its end: room is left for it.
        size_at = raw.tell() + len("CompressedDataSize = ")
        raw.write(_encode([f"CompressedDataSize = {'':{_SIZE_WIDTH}}", *after]))
        begin = raw.tell()
        _write_voxels(raw, volume.voxels, dtype, is_packed=True)
        size = raw.tell() - begin
        raw.seek(size_at)
        raw.write(str(size).encode())


def _write_pair(volume: Volume, source: Header | None, path: Path) -> None:
    """Writes the header and the file of its voxels beside their places, and moves them together."""
    dtype = _type_for(volume, source)
    is_packed = source is not None and source.is_packed
    voxels = path.with_name(f"{stem_of(path)}{'.zraw' if is_packed else '.raw'}")
    before, after = _lines(volume, source, dtype, voxels.name, is_packed)
    with all_or_none([path, voxels], overwrite=True) as (header_part, voxels_part):
        with in_place_of(voxels_part, packed=False) as raw:
            _write_voxels(raw, volume.voxels, dtype, is_packed)
            size = raw.tell()
        size_line = [f"CompressedDataSize = {size}"] if is_packed else []
        with in_place_of(header_part, packed=False) as raw:
            raw.write(_encode([*before, *size_line, *after]))


def _write_voxels(raw: BinaryIO, voxels: np.ndarray, dtype: np.dtype[Any], is_packed: bool) -> None:
    packer = Packed(raw, as_gzip=False) if is_packed else None
    for slab in encoded(voxels, dtype):
        content = slab.astype(dtype.newbyteorder("<")).tobytes(order="F")
        if packer is not None:
            packer.write(content)
        else:
            raw.write(content)
    if packer is not None:
        packer.finish()


def _encode(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")


def _lines(
    volume: Volume, source: Header | None, dtype: np.dtype[Any], data_name: str, is_packed: bool = True
) -> tuple[list[str], list[str]]:
    """Returns the header, line by line: those before and after the size of the compressed voxels."""
    affine = _TO_RAS @ np.asarray(volume.affine, np.float64)
    spacing = np.array(volume.spacing_mm)
    count = volume.voxels.ndim
    is_series = count == 4
    step = [source.step if source is not None else 1.0] * is_series
    first = [source.start if source is not None else 0.0] * is_series
    matrix = np.eye(count)
    matrix[:3, :3] = affine[:3, :3] / spacing
    before = [
        "ObjectType = Image",
        f"NDims = {count}",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        f"CompressedData = {is_packed}",
    ]
    after = [
        f"TransformMatrix = {_words(matrix.T.ravel())}",
        f"Offset = {_words([*affine[:3, 3], *first])}",
        f"CenterOfRotation = {_words([0] * count)}",
        *([] if is_series else [f"AnatomicalOrientation = {_anatomical(np.asarray(volume.affine))}"]),
        f"ElementSpacing = {_words([*spacing, *step])}",
        *_lines_of_thickness(volume, spacing, step),
        *_lines_kept(volume, source),
        f"DimSize = {_words(volume.voxels.shape)}",
        f"ElementType = {_NAMES[dtype]}",
        f"ElementDataFile = {data_name}",  # the last: what follows are voxels
    ]
    return before, after


def _lines_of_thickness(volume: Volume, spacing: np.ndarray, step: list[float]) -> list[str]:
    """Returns ElementSize, where the slice thickness is known."""
    if volume.thickness_mm is None:
        return []
    extent = [*spacing, *step]
    extent[slice_axis(np.asarray(volume.affine))] = volume.thickness_mm
    return [f"ElementSize = {_words(extent)}"]


def _lines_kept(volume: Volume, source: Header | None) -> list[str]:
    """Returns what the source says that still holds."""
    if source is None:
        return []
    same_grid = source.shape == volume.shape
    return [line for line in source.kept if same_grid or not OF_THE_GRID.match(line)]


def _anatomical(affine: np.ndarray) -> str:
    """Returns AnatomicalOrientation of an affine [4, 4], RAS: where each array axis comes from."""
    letters = (
        _CAME_FROM[patient][0 if affine[patient, axis] > 0 else 1] for axis, patient in enumerate(patient_axes(affine))
    )
    return "".join(letters)


def _words(numbers: Sequence[float] | np.ndarray) -> str:
    """Returns numbers with all their digits, whole ones without a point."""
    return " ".join(repr(float(number) + 0.0).removesuffix(".0") for number in numbers)
