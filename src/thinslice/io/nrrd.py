"""read / write NRRD, .nrrd and detached .nhdr: the only door to pynrrd.

Format: teem.sourceforge.net/nrrd/format.html. pynrrd parses the fields of a header, one by one; the voxels are read
here, because pynrrd loads what comes after a header before it looks at sizes, and follows its data file anywhere.
"""

import bz2
import gzip
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import nrrd
import numpy as np

from thinslice.errors import InputRefused
from thinslice.io.affines import (
    OF_THE_GRID,
    check_affine,
    check_affine_to_write,
    check_lengths,
    check_shape_to_write,
    shear_notes,
    slice_axis,
)
from thinslice.io.encoding import encoded, put_on_steps, replace_non_finite, type_to_store
from thinslice.io.formats import ending
from thinslice.io.refusals import AGAIN, WHOLE, by, reading, refused, unwritable, writing
from thinslice.io.scratch import check_memory
from thinslice.io.sidecars import thickness_beside, thickness_of_header
from thinslice.io.streams import (
    SLAB_BYTES,
    Packed,
    as_native,
    check_is_file,
    drain,
    file_beside,
    in_place_of,
    kind_of,
    read_ascii,
    read_voxels,
)
from thinslice.volume import Volume

logger = logging.getLogger(__name__)

MOST_SKIPPED_BYTES = 64 * 2**20
"""What may be skipped in packed voxels: the header of another program."""

MOST_HEADER_BYTES = 16 * 2**20
"""A header that is longer is none, and is not read into memory to find that out."""

MOST_AXES = 16
"""As many as the format's own library allows (NRRD_DIM_MAX)."""

MOST_FIELD_LETTERS = 10_000
"""A field that is longer is refused before pynrrd parses it: sixteen axes never need as many."""

SEGMENT_KEY = re.compile(r"Segment\d+_ID\b")
"""The key that 3D Slicer writes for each segment of a segmentation."""

OFFSET_KEY = "Segmentation_ReferenceImageExtentOffset"
"""The key that says where in the grid of a scan a segmentation begins which 3D Slicer has cropped."""

LPS = "left-posterior-superior"
"""The space of DICOM, of ITK, and of what this module writes."""

_TO_RAS = {
    "right-anterior-superior": (1.0, 1.0, 1.0), "ras": (1.0, 1.0, 1.0),
    "left-anterior-superior": (-1.0, 1.0, 1.0), "las": (-1.0, 1.0, 1.0),
    LPS: (-1.0, -1.0, 1.0), "lps": (-1.0, -1.0, 1.0),
}  # fmt: skip
"""What turns the axes of a space towards the patient's right, front and head."""

_NOT_THE_PATIENTS = ("scanner-xyz", "3d-right-handed", "3d-left-handed")
"""Spaces that do not say which side of the patient is which."""

_IN_SPACE = ("domain", "space")
"""Kinds of axes that are in space."""

_BESIDE_SPACE = ("list", "time", "point", "stub", "scalar")
"""Kinds of axes that are not. What has another kind has several numbers per voxel: colours, vectors, matrices."""

_UNKNOWN_KINDS = ("none", "???", "unknown")
"""What is written where the kind of an axis is not known."""

_MM = {"mm": 1.0, "millimeter": 1.0, "millimetre": 1.0, "millimeters": 1.0, "millimetres": 1.0, "": 1.0, "???": 1.0,
       "m": 1e3, "meter": 1e3, "metre": 1e3, "meters": 1e3, "metres": 1e3, "cm": 10.0, "centimeter": 10.0,
       "centimetre": 10.0, "um": 1e-3, "\u00b5m": 1e-3, "\u03bcm": 1e-3, "micron": 1e-3, "microns": 1e-3,
       "micrometer": 1e-3, "micrometre": 1e-3}  # fmt: skip
"""Names of units of length, and their size in mm."""

_TYPES = {
    "signed char": "i1", "int8": "i1", "int8_t": "i1", "uchar": "u1", "unsigned char": "u1", "uint8": "u1",
    "uint8_t": "u1", "short": "i2", "short int": "i2", "signed short": "i2", "signed short int": "i2", "int16": "i2",
    "int16_t": "i2", "ushort": "u2", "unsigned short": "u2", "unsigned short int": "u2", "uint16": "u2",
    "uint16_t": "u2", "int": "i4", "signed int": "i4", "int32": "i4", "int32_t": "i4", "uint": "u4",
    "unsigned int": "u4", "uint32": "u4", "uint32_t": "u4", "longlong": "i8", "long long": "i8", "long long int": "i8",
    "signed long long": "i8", "signed long long int": "i8", "int64": "i8", "int64_t": "i8", "ulonglong": "u8",
    "unsigned long long": "u8", "unsigned long long int": "u8", "uint64": "u8", "uint64_t": "u8", "float": "f4",
    "double": "f8",
}  # fmt: skip
"""The format's names of types of real numbers -> numpy's."""

_NAMES = {np.dtype(kind): name for name, kind in reversed(_TYPES.items())} | {
    np.dtype(np.int8): "int8", np.dtype(np.uint8): "uint8", np.dtype(np.int16): "int16", np.dtype(np.uint16): "uint16",
    np.dtype(np.int32): "int32", np.dtype(np.uint32): "uint32", np.dtype(np.int64): "int64",
    np.dtype(np.uint64): "uint64",
}  # fmt: skip
"""Type -> the name that is written for it."""

_ENCODINGS = {
    "raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2", "ascii": "ascii", "text": "ascii",
    "txt": "ascii",
}  # fmt: skip
"""Names of encodings, and how they are called here; "hex" is not read."""

_FIELDS = {
    name.replace(" ", ""): name
    for name in (
        "type", "dimension", "sizes", "encoding", "endian", "content", "data file", "line skip", "byte skip", "old min",
        "old max", "sample units", "spacings", "thicknesses", "centerings", "labels", "units", "kinds", "space",
        "space dimension", "space units", "space origin", "space directions", "measurement frame",
    )
} | {"centers": "centerings"}  # fmt: skip
"""The fields that are looked at, without blanks, and how they are called here."""

_VECTORS = ("space origin", "space directions", "measurement frame")
"""Fields whose values are vectors in brackets."""

_NEED = "one NRRD volume, .nrrd or .nhdr"
_CONVERT = "write it again, with 3D Slicer or with 'unu save -f nrrd'"
_IN_3D = f"write it with 'space: {LPS}' and 'none' for the direction of time"


@dataclass(frozen=True)
class Header:
    """What the writer needs to know of the header that was read.

    Attributes:
        dtype: stored type, in native byte order.
        shape: [x, y, z].
        place: which axis of the file is not in space; None: all are.
        space: what the file calls its space; None: nothing.
        has_directions: it has them, not only spacings.
        axes: kinds, labels, centerings: one text for each axis of the file, where it says so.
        step, unit: spacing along the axis that is not in space; NaN and "" where the file is silent.
        kept: whole lines that hold whatever the grid.
        of_values: those that hold while the type stays.
        keys: the lines of key/value pairs.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    place: int | None
    space: str | None
    has_directions: bool
    axes: dict[str, tuple[str, ...]]
    step: float
    unit: str
    kept: tuple[str, ...]
    of_values: tuple[str, ...]
    keys: tuple[str, ...]


def read(path: Path) -> Volume:
    """Reads one .nrrd file, or a .nhdr header and the data file in its folder.

    The voxels [x, y, z] keep their stored type; an axis that is not in space, wherever in the file, becomes the last.
    The affine is in millimetres and RAS, whatever the file's space and unit. `thicknesses` of the slice axis, or else
    a BIDS sidecar, gives `thickness_mm`.

    Raises:
        InputRefused: not a readable scan; one line: the file, what was got, what is needed, what to do next.
    """
    path = Path(path)
    with reading(path, _NEED, _CONVERT):
        return _read(path)


def write(volume: Volume, path: Path, like: Volume | None = None) -> None:
    """Writes a scan as .nrrd, gzip-encoded, whole or not at all.

    Type, space, order of axes, kinds, measurement frame and key/value pairs are those of the source header (`like`'s,
    else the volume's own); what counts the voxels of another grid is dropped. Integers are rounded and clipped.
    `thicknesses` is the volume's, or not there. Lengths are in mm.

    Raises:
        OutputRefused: another kind of name, a folder that cannot be written to, or voxels that are not finite.
    """
    path = Path(path)
    with writing(path):
        if ending(path) != ".nrrd":
            raise unwritable("another kind of name", ".nrrd", "change the output's name", code="output-name")
        check_shape_to_write(volume.voxels.shape)
        check_affine_to_write(np.asarray(volume.affine))
        source = _source_header(volume, like)
        dtype = _type_for(volume, source)
        place = _place_of_last(volume, source)
        text = "\n".join(_lines(volume, source, dtype, place)) + "\n\n"
        in_file = volume.voxels if place is None else np.moveaxis(volume.voxels, -1, place)
        with in_place_of(path, packed=False) as raw:
            raw.write(text.encode("utf-8", "surrogateescape"))
            packer = Packed(raw)
            for slab in encoded(in_file, dtype):
                packer.write(slab.astype(dtype.newbyteorder("<")).tobytes(order="F"))
            packer.finish()


def as_stored(volume: Volume) -> Volume:
    """Returns the volume with the values that `write` will put into the file; its voxels are spent on it."""
    dtype = _type_for(volume, _source_header(volume, None))
    if volume.voxels.dtype.kind in "iuf" and volume.voxels.dtype != dtype:
        put_on_steps(volume.voxels, dtype)
    return volume


def has_segments(volume: Volume) -> bool:
    """Tells whether the header of a scan that was read from NRRD names segments, as 3D Slicer writes them."""
    header = volume.header
    return isinstance(header, Header) and any(SEGMENT_KEY.match(key) for key in header.keys)


def is_cropped(volume: Volume) -> bool:
    """Tells whether the header of a scan from NRRD says that it is a part of a grid, as 3D Slicer's may do."""
    header = volume.header
    return isinstance(header, Header) and any(key.startswith(OFFSET_KEY) for key in header.keys)


def data_file(path: Path) -> Path | None:
    """Returns the file that the voxels of a header are in; None where they are in the header's own file.

    Raises:
        InputRefused: not such a header.
    """
    with reading(path, _NEED, _CONVERT):
        check_is_file(path, _NEED)
        with open(path, "rb") as stream:
            texts, _ = _read_header(stream)
        return _data_file(path, texts["data file"]) if "data file" in texts else None


# ---- reading: the header


def _read(path: Path) -> Volume:
    check_is_file(path, _NEED)
    with open(path, "rb") as stream:
        texts, keys = _read_header(stream)
        is_attached = "data file" not in texts
        start = stream.tell()
    sizes = _sizes(texts)
    spatial, beside = _axes(texts, sizes)
    # Axes of one sample that are not in space hold nothing, and are dropped.
    kept = sorted(spatial + beside)
    place = kept.index(beside[0]) if beside else None
    affine, notes = _geometry(texts, sizes, spatial)
    held_in = path if is_attached else _data_file(path, texts["data file"])
    stored = _read_data(held_in, start if is_attached else 0, texts, tuple(sizes[axis] for axis in kept))
    # A view: many write the gradients of diffusion first, and nothing is copied for that.
    voxels = stored if place is None else np.moveaxis(stored, place, -1)
    voxels, finite_notes = replace_non_finite(voxels)
    thickness_mm, thickness_notes = _thickness(texts, spatial, affine, path)
    header = _header(texts, keys, stored, kept, place)
    notes += finite_notes + thickness_notes
    return Volume(voxels, affine, thickness_mm, tuple(notes), path, header)


def _read_header(stream: BinaryIO) -> tuple[dict[str, str], tuple[str, ...]]:
    """Reads the text of each known field, and the key/value lines; leaves the stream behind the header."""
    magic = stream.read(8)
    if not re.fullmatch(rb"NRRD000[1-5]", magic):
        got = f"an NRRD file of another version ({magic!r})" if magic.startswith(b"NRRD") else kind_of(magic)
        raise refused(got, _NEED, _CONVERT, code="other-format")
    texts: dict[str, str] = {}
    keys: list[str] = []
    stream.readline(MOST_HEADER_BYTES)
    while line := stream.readline(MOST_HEADER_BYTES - stream.tell() + 1):
        if stream.tell() > MOST_HEADER_BYTES:
            raise refused("a header without an end", _NEED, _CONVERT, code="damaged-header")
        text = line.decode("utf-8", "surrogateescape").rstrip()
        if not text:
            break
        if not text.startswith("#"):
            _take_line(text, texts, keys)
    return texts, tuple(keys)


def _take_line(text: str, texts: dict[str, str], keys: list[str]) -> None:
    """Takes one line of the header: a field, or a key with its value."""
    name, colon, value = text.partition(":")
    if not colon:
        raise refused(f"a header line without a colon ({text[:40]!a})", _NEED, _CONVERT, code="damaged-header")
    if value.startswith("="):
        keys.append(text)
        return
    field = _FIELDS.get(name.lower().replace(" ", "").strip())
    if field in texts:
        raise refused(f"two fields '{field}' in one header", "one", _CONVERT, code="field-twice")
    if field == "data file" and (value.split() or [""])[0] == "LIST":
        raise refused("voxels in a list of data files", "one data file", _CONVERT, code="several-data-files")
    if field is not None:
        texts[field] = value.strip()


def _parsed(texts: dict[str, str], field: str) -> Any:
    """Returns the value of a field, as pynrrd understands it; None where there is none.

    Raises:
        InputRefused: it cannot be understood.
    """
    if field not in texts:
        return None
    text = texts[field]
    if len(text) > MOST_FIELD_LETTERS:
        raise refused(
            f"a {field} of {len(text):,} letters", f"at most {MOST_FIELD_LETTERS:,}", _CONVERT, code="damaged-header"
        )
    if field in _VECTORS:  # which others write with blanks inside
        text = " ".join("".join(part.split()) for part in re.findall(r"\([^()]*\)|[^\s()]+", text))
    try:
        with np.errstate(all="ignore"):
            # One field at a time: a field that is damaged, but that nobody needs, costs nothing.
            return nrrd.read_header(["NRRD0005", f"{field}: {text}"])[field]
    except (nrrd.NRRDError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise refused(
            f"a {field} that cannot be understood ({text[:60]!a})", _NEED, _CONVERT, code="damaged-header"
        ) from error


def _per_axis(texts: dict[str, str], field: str, count: int) -> list[Any] | None:
    """Returns the values of a field that has one for each axis of the file; None where it is not there."""
    values = _parsed(texts, field)
    if values is not None and len(values) != count:
        raise refused(f"{len(values)} {field} for {count} axes", "one for each axis", _CONVERT, code="wrong-count")
    return None if values is None else list(values)


def _sizes(texts: dict[str, str]) -> list[int]:
    """Returns how many samples along each axis of the file."""
    for field in ("type", "dimension", "sizes", "encoding"):
        if field not in texts:
            raise refused(f"a header without '{field}'", _NEED, _CONVERT, code="missing-field")
    words = texts["sizes"].split()
    if not all(re.fullmatch(r"[0-9]{1,18}", word) for word in words) or len(words) > MOST_AXES:
        raise refused(f"sizes of {texts['sizes'][:60]!a}", "whole numbers", _CONVERT, code="damaged-header")
    if texts["dimension"] != str(len(words)):
        raise refused(
            f"{len(words)} sizes for dimension {texts['dimension'][:20]!a}", "as many", _CONVERT, code="wrong-count"
        )
    sizes = [int(word) for word in words]
    if min(sizes, default=0) < 1:
        raise refused(f"a grid of {by(sizes)} voxels", "at least one along each axis", _CONVERT, code="empty-grid")
    return sizes


def _axes(texts: dict[str, str], sizes: list[int]) -> tuple[list[int], list[int]]:
    """Returns which three axes are in space, and which is not, if any; others of size one are left out."""
    kinds = _kinds(texts, len(sizes))
    rows = _directions(texts, len(sizes))
    if rows is not None:
        spatial = [axis for axis, row in enumerate(rows) if row is not None]
    else:
        spatial = [axis for axis, kind in enumerate(kinds) if kind not in _BESIDE_SPACE]
        spacings = _per_axis(texts, "spacings", len(sizes))
        if len(spatial) > 3 and spacings is not None:
            # Without directions and kinds, only a spacing that is NaN says that an axis is not in space.
            spatial = [axis for axis in spatial if not math.isnan(spacings[axis])]
        spatial = spatial[:3]
    beside = [axis for axis in range(len(sizes)) if axis not in spatial and sizes[axis] > 1]
    if len(spatial) != 3 or len(beside) > 1:
        got = f"an image with {len(spatial)} axes in space and {len(beside)} others ({by(sizes)})"
        raise refused(got, "three in space, and time at most", "extract one volume from it", code="not-3d")
    return spatial, beside


def _kinds(texts: dict[str, str], count: int) -> list[str]:
    """Returns the kind of each axis, "none" where the file is silent."""
    kinds = [str(kind).lower() for kind in _per_axis(texts, "kinds", count) or ["none"] * count]
    several = [kind for kind in kinds if kind not in (*_IN_SPACE, *_BESIDE_SPACE, *_UNKNOWN_KINDS)]
    if several:
        got = f"several numbers per voxel (an axis of kind {several[0][:30]!a})"
        raise refused(got, "one real number per voxel", "extract one of its channels", code="several-channels")
    return kinds


def _directions(texts: dict[str, str], count: int) -> list[np.ndarray | None] | None:
    """Returns the step in space [3] of each axis of the file, None where it has none; None where no axis has any."""
    _check_space(texts)
    rows = _per_axis(texts, "space directions", count)
    if rows is None:
        return None
    steps = [None if row is None or np.isnan(row).all() else np.asarray(row, np.float64) for row in rows]
    if any(step is not None and (step.shape != (3,) or not np.isfinite(step).all()) for step in steps):
        got = f"space directions of {texts['space directions'][:80]!a}"
        raise refused(got, "three numbers for each axis in space, 'none' for others", _CONVERT, code="damaged-header")
    return steps if any(step is not None for step in steps) else None


def _check_space(texts: dict[str, str]) -> None:
    space = texts.get("space", LPS).lower()
    if space.endswith("-time") or space in ("rast", "last", "lpst"):
        raise refused(f"a space with time ({space})", "a space of three dimensions", _IN_3D, code="space-with-time")
    if space not in _TO_RAS and space not in _NOT_THE_PATIENTS:
        raise refused(f"an unknown space ({space[:40]!a})", "RAS, LAS or LPS", _CONVERT, code="unknown-space")
    if texts.get("space dimension", "3") != "3":
        raise refused(f"a space of dimension {texts['space dimension'][:20]!a}", "three", _IN_3D, code="unknown-space")


# ---- reading: where it is


def _geometry(texts: dict[str, str], sizes: list[int], spatial: list[int]) -> tuple[np.ndarray, list[str]]:
    """Returns the affine [4, 4] in mm, RAS, and what had to be decided about it."""
    rows = _directions(texts, len(sizes))
    way = "correct 'space directions', or give true 'spacings' in mm"
    if rows is None:
        return _from_spacings(texts, sizes, spatial, way)
    mm, notes = _mm_per_unit(texts, "space units", [0, 1, 2])
    origin, origin_notes = _origin(texts)
    columns = np.array([rows[axis] for axis in spatial], np.float64).T
    space = texts.get("space", "").lower()
    affine = np.eye(4)
    with np.errstate(over="ignore"):
        affine[:3, :3], affine[:3, 3] = columns * mm, origin * mm
    check_lengths(affine, way)
    check_affine(affine, way)
    affine = np.diag([*_TO_RAS.get(space, _TO_RAS[LPS]), 1.0]) @ affine + 0.0
    if space not in _TO_RAS:
        notes.append(
            f"the header names no space of the patient ({space or 'none'}): its directions are taken as {LPS}; "
            "which side is which is not known"
        )
    return affine, notes + origin_notes + shear_notes(affine)


def _from_spacings(
    texts: dict[str, str], sizes: list[int], spatial: list[int], way: str
) -> tuple[np.ndarray, list[str]]:
    """As NIfTI without sform and qform: spacing known, the middle of the grid at the origin."""
    spacings = _per_axis(texts, "spacings", len(sizes))
    if spacings is None:
        raise refused(
            "a header without space directions and spacings", "the distance between voxels", way, code="no-spacing"
        )
    spacing = [float(spacings[axis]) for axis in spatial]
    if not all(math.isfinite(step) and step > 0 for step in spacing):
        raise refused(f"spacings of {by(spacing)}", "three positive lengths", way, code="bad-spacing")
    mm, notes = _mm_per_unit(texts, "units", spatial)
    with np.errstate(over="ignore", invalid="ignore"):
        affine = _base_affine(np.array(spacing) * mm, [sizes[axis] for axis in spatial])
    check_lengths(affine, way)
    return affine, [
        *notes,
        "the header has spacings but no directions: position and orientation unknown; the axes are taken to run right "
        "to left, back to front, foot to head",
    ]


def _base_affine(spacing_mm: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Returns the affine [4, 4] of a grid of which only the spacing is known, as in NIfTI."""
    affine = np.diag([-spacing_mm[0], spacing_mm[1], spacing_mm[2], 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine + 0.0


def _origin(texts: dict[str, str]) -> tuple[np.ndarray, list[str]]:
    """Returns the centre of the first voxel [3], in the file's unit; zero, with a note, where the file is silent."""
    origin = _parsed(texts, "space origin")
    if origin is not None and len(origin) != 3:
        raise refused(f"a space origin of {len(origin)} numbers", "three", _CONVERT, code="wrong-count")
    if origin is None or not np.isfinite(origin).all():
        return np.zeros(3), [
            "the header has no space origin: the position is unknown, the first voxel taken to be at 0"
        ]
    return np.asarray(origin, np.float64), []


def _mm_per_unit(texts: dict[str, str], field: str, places: list[int]) -> tuple[float, list[str]]:
    """Returns the size in mm of the one unit of length at some places of a field; mm where the file is silent."""
    units = _parsed(texts, field) or [""] * (max(places) + 1)
    if len(units) <= max(places):
        raise refused(f"{len(units)} {field}", f"{max(places) + 1}", _CONVERT, code="wrong-count")
    names = [str(units[place]).strip() for place in places]
    sizes = {_MM.get(name.lower()) for name in names}
    if len(sizes) != 1 or None in sizes:
        got = f"{field} of {' '.join(names)[:60]!a}"
        raise refused(
            got,
            "millimetres along all axes",
            "convert the lengths, or correct the units",
            code="unknown-unit",
        )
    mm = cast(float, sizes.pop())
    if mm == 1:
        return mm, []
    return mm, [f"lengths are in {names[0]} and were converted to mm; if that is wrong, correct {field}"]


def _thickness(
    texts: dict[str, str], spatial: list[int], affine: np.ndarray, path: Path
) -> tuple[float | None, list[str]]:
    """Returns the slice thickness in mm along the slice axis: the header's, else that of the sidecar."""
    values = _parsed(texts, "thicknesses")
    if values is None or len(values) != int(texts["dimension"]):
        return thickness_beside(path)
    has_directions = _directions(texts, len(values)) is not None
    mm, _ = _mm_per_unit(texts, "space units", [0, 1, 2]) if has_directions else _mm_per_unit(texts, "units", spatial)
    return thickness_of_header(float(values[spatial[slice_axis(affine)]]) * mm, "thicknesses", path)


def _header(
    texts: dict[str, str], keys: tuple[str, ...], stored: np.ndarray, kept: list[int], place: int | None
) -> Header:
    """Returns what the writer needs; lists whose length is wrong are left out."""
    count = int(texts["dimension"])
    axes: dict[str, tuple[str, ...]] = {}
    for field in ("kinds", "labels", "centerings"):
        values = _parsed_or_none(texts, field)
        if values is not None and len(values) == count:
            axes[field] = tuple(str(values[axis]) for axis in kept)
    spacings, units = _parsed_or_none(texts, "spacings"), _parsed_or_none(texts, "units")
    has_step = place is not None and spacings is not None and len(spacings) == count
    has_unit = place is not None and units is not None and len(units) == count
    has_directions = _directions(texts, count) is not None
    return Header(
        dtype=stored.dtype,
        shape=tuple(size for axis, size in enumerate(stored.shape) if axis != place),
        place=place,
        space=texts.get("space"),
        has_directions=has_directions,
        axes=axes,
        step=float(spacings[kept[cast(int, place)]]) if has_step else math.nan,
        unit=str(units[kept[cast(int, place)]]) if has_unit else "",
        kept=_lines_of(texts, ("content", "sample units", *(("measurement frame",) if has_directions else ()))),
        of_values=_lines_of(texts, ("old min", "old max")),
        keys=keys,
    )


def _parsed_or_none(texts: dict[str, str], field: str) -> Any:
    try:
        return _parsed(texts, field)
    except InputRefused:
        return None


def _lines_of(texts: dict[str, str], fields: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{field}: {texts[field]}" for field in fields if field in texts)


# ---- reading: the voxels


def _data_file(header_file: Path, text: str) -> Path:
    """Returns the data file of a detached header."""
    if re.search(r"%[0-9]*[dDiu]", text) and len(text.split()) > 3:
        raise refused("voxels in a series of data files", "one data file", _CONVERT, code="several-data-files")
    return file_beside(header_file, text)


def _type(texts: dict[str, str], encoding: str) -> np.dtype[Any]:
    """Returns the stored type in the file's byte order."""
    name = " ".join(texts["type"].lower().split())
    if name not in _TYPES:
        raise refused(f"voxels of type {name[:40]!a}", "one real number per voxel", _CONVERT, code="voxel-type")
    dtype, endian = np.dtype(_TYPES[name]), texts.get("endian", "").lower()
    if dtype.itemsize == 1 or encoding == "ascii":
        return dtype
    if endian not in ("little", "big"):
        raise refused(f"a byte order of {endian[:20]!a}", "endian: little, or big", _CONVERT, code="damaged-header")
    return dtype.newbyteorder("<" if endian == "little" else ">")


def _skip(texts: dict[str, str], field: str) -> int:
    text = texts.get(field, "0")
    if not re.fullmatch(r"-?[0-9]{1,18}", text) or int(text) < (-1 if field == "byte skip" else 0):
        raise refused(f"a {field} of {text[:30]!a}", "a number of them", _CONVERT, code="damaged-header")
    return int(text)


def _read_data(path: Path, start: int, texts: dict[str, str], shape: tuple[int, ...]) -> np.ndarray:
    """Reads the voxels in the order of the file's axes, native byte order.

    Args:
        path: the file they are in.
        start: the byte from which on it is data.
        texts: the fields of the header.
        shape: as in the file.
    """
    encoding = _ENCODINGS.get(texts["encoding"].lower())
    if encoding is None:
        got = f"the encoding {texts['encoding'][:30]!a}"
        raise refused(got, "raw, gzip, bzip2 or ascii", _CONVERT, code="unknown-encoding")
    dtype = _type(texts, encoding)
    logger.debug("%s: %s voxels, %s", path, dtype, encoding)
    skip, line_skip = _skip(texts, "byte skip"), _skip(texts, "line skip")
    file_bytes = check_is_file(path, "the data file that the header names" if start == 0 else _NEED)
    with open(path, "rb") as stream:
        stream.seek(start)
        _skip_lines(stream, line_skip)
        if encoding == "raw":
            return _read_raw(stream, path, skip, shape, dtype, file_bytes)
        if skip < 0:
            raise refused(f"a byte skip of -1 for {encoding}", "raw for that", _CONVERT, code="damaged-header")
        if skip > MOST_SKIPPED_BYTES:
            got, need = f"a byte skip of {skip:,} for {encoding}", f"at most {MOST_SKIPPED_BYTES:,}"
            raise refused(got, need, _CONVERT, code="damaged-header")
        if encoding == "gzip":
            return _read_gzip(stream, path, skip, shape, dtype, file_bytes)
        if encoding == "bzip2":
            return _read_bzip2(stream, skip, shape, dtype)
        stream.seek(skip, 1)
        return read_ascii(stream, shape, dtype, file_bytes)


def _skip_lines(stream: BinaryIO, count: int) -> None:
    while count and (part := stream.readline(SLAB_BYTES)):
        count -= part.endswith(b"\n")


def _read_raw(
    stream: BinaryIO, path: Path, skip: int, shape: tuple[int, ...], dtype: np.dtype[Any], file_bytes: int
) -> np.ndarray:
    size, here = math.prod(shape) * dtype.itemsize, stream.tell()
    # -1 says that the voxels are what the file ends with.
    offset = max(here, file_bytes - size) if skip < 0 else here + skip
    stream.seek(min(offset, file_bytes))
    return read_voxels(stream, path, offset, shape, dtype, file_bytes)


def _read_gzip(
    stream: BinaryIO, path: Path, skip: int, shape: tuple[int, ...], dtype: np.dtype[Any], file_bytes: int
) -> np.ndarray:
    """Bytes are skipped in what is unpacked."""
    with gzip.GzipFile(fileobj=stream) as packed:
        unpacked = cast(BinaryIO, packed)
        _skip_bytes(unpacked, skip)
        stored = read_voxels(unpacked, path, skip, shape, dtype, file_bytes)
        drain(unpacked)
    return stored


def _read_bzip2(stream: BinaryIO, skip: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Reads bzip2, which may shrink a million to one: only what came out tells whether a header is right."""
    size = math.prod(shape) * dtype.itemsize
    try:
        with bz2.BZ2File(stream) as packed:
            unpacked = cast(BinaryIO, packed)
            _skip_bytes(unpacked, skip)
            content = _some(unpacked, size)
            packed.read(1)  # the checksum is at the end
    except (OSError, ValueError) as error:
        raise refused("a damaged bzip2 stream", WHOLE, AGAIN, code="cut-off") from error
    if len(content) < size:
        raise refused(f"{len(content):,} bytes", f"{size:,} bytes of voxels, as its header says", AGAIN, code="cut-off")
    return as_native(np.frombuffer(content, dtype).reshape(shape, order="F"))


def _skip_bytes(stream: BinaryIO, count: int) -> None:
    """Reads bytes and forgets them; fewer where the stream ends before."""
    while count and (part := stream.read(min(SLAB_BYTES, count))):
        count -= len(part)


def _some(stream: BinaryIO, size: int) -> bytearray:
    """Reads the next bytes, fewer where the stream ends before; memory grows with what is there, not with `size`."""
    content = bytearray()
    while len(content) < size and (part := stream.read(min(SLAB_BYTES, size - len(content)))):
        content += part
        check_memory(2 * len(content))  # so much is taken while it grows
    return content


# ---- writing


def _source_header(volume: Volume, like: Volume | None) -> Header | None:
    sources = (like.header if like is not None else None, volume.header)
    return next((header for header in sources if isinstance(header, Header)), None)


def _type_for(volume: Volume, source: Header | None) -> np.dtype[Any]:
    """Returns the type in the file, in native byte order."""
    dtype = type_to_store(volume.voxels.dtype, None if source is None else source.dtype)
    if dtype not in _NAMES:
        raise unwritable(
            f"{volume.voxels.dtype} voxels",
            "real numbers",
            "this is a fault of the caller",
            code="voxel-type",
        )
    return dtype


def _place_of_last(volume: Volume, source: Header | None) -> int | None:
    """Returns where in the file the last axis of a series goes: where it was; None for three axes."""
    if volume.voxels.ndim == 3:
        return None
    return 3 if source is None or source.place is None else source.place


def _lines(volume: Volume, source: Header | None, dtype: np.dtype[Any], place: int | None) -> list[str]:
    """Returns the header, line by line."""
    shape = list(volume.shape)
    if place is not None:
        shape.insert(place, volume.voxels.shape[3])
    return [
        "NRRD0005",
        "# Complete NRRD file format specification at:",
        "# http://teem.sourceforge.net/nrrd/format.html",
        f"type: {_NAMES[dtype]}",
        f"dimension: {len(shape)}",
        f"sizes: {' '.join(map(str, shape))}",
        *_lines_of_geometry(volume, source, place),
        *_lines_of_axes(volume, source, place),
        *(["endian: little"] if dtype.itemsize > 1 else []),
        "encoding: gzip",
        *_lines_kept(volume, source, dtype),
    ]


def _lines_of_geometry(volume: Volume, source: Header | None, place: int | None) -> list[str]:
    """Returns space, directions and origin; only spacings where the source had no more and they say it all."""
    affine, spacing = np.asarray(volume.affine, np.float64), np.array(volume.spacing_mm)
    step = source.step if source is not None else math.nan
    unit = source.unit if source is not None else ""
    only_spacings = source is not None and not source.has_directions
    # Directions would claim an orientation that the source does not know.
    if only_spacings and np.allclose(_base_affine(spacing, volume.shape), affine, rtol=1e-6, atol=1e-3 * spacing.min()):
        return [
            f"spacings: {_with_time([_number(mm) for mm in spacing], _number(step), place)}",
            f"units: {_with_time([_quoted('mm')] * 3, _quoted(unit), place)}",
        ]
    space = LPS if source is None or only_spacings else source.space
    turned = np.diag(_TO_RAS.get((space or "").lower(), _TO_RAS[LPS])) @ affine[:3]
    of_time = [
        f"spacings: {_with_time(['NaN'] * 3, _number(step), place)}" if math.isfinite(step) else "",
        f"units: {_with_time([_quoted('')] * 3, _quoted(unit), place)}" if unit else "",
    ]
    return [
        "space dimension: 3" if space is None else f"space: {space}",
        f"space directions: {_with_time([_vector(column) for column in turned[:, :3].T], 'none', place)}",
        'space units: "mm" "mm" "mm"',
        f"space origin: {_vector(turned[:, 3])}",
        *(line for line in of_time if line and place is not None),
    ]


def _lines_of_axes(volume: Volume, source: Header | None, place: int | None) -> list[str]:
    """Returns kinds, labels, centerings and thicknesses."""
    known = source.axes if source is not None else {}
    kinds = _on_axes(known.get("kinds"), source, place, "list") or _with_time(["domain"] * 3, "list", place).split()
    labels = _on_axes(known.get("labels"), source, place, "")
    centerings = _on_axes(known.get("centerings"), source, place, "???")
    thick = ["NaN"] * 3
    if volume.thickness_mm is not None:
        thick[slice_axis(np.asarray(volume.affine))] = _number(volume.thickness_mm)
    return [
        f"kinds: {' '.join(kinds)}",
        *([f"labels: {' '.join(map(_quoted, labels))}"] if labels else []),
        *([f"centerings: {' '.join(centerings)}"] if centerings else []),
        *([f"thicknesses: {_with_time(thick, 'NaN', place)}"] if volume.thickness_mm is not None else []),
    ]


def _on_axes(values: tuple[str, ...] | None, source: Header | None, place: int | None, new: str) -> list[str] | None:
    """Returns the source's texts for each axis on those of the answer, which may have one more (`new`), or one less."""
    if values is None or source is None:
        return None
    changed = list(values)
    if source.place is not None and place is None:
        del changed[source.place]
    elif source.place is None and place is not None:
        changed.insert(place, new)
    return changed


def _lines_kept(volume: Volume, source: Header | None, dtype: np.dtype[Any]) -> list[str]:
    """Returns what the source says that still holds."""
    if source is None:
        return []
    same_grid = source.shape == volume.shape
    keys = [key for key in source.keys if same_grid or not OF_THE_GRID.match(key)]
    return [*source.kept, *(source.of_values if dtype == source.dtype else ()), *keys]


def _with_time(texts: Sequence[str], of_time: str, place: int | None) -> str:
    """Returns the texts of three axes, and that of time in its place."""
    words = list(texts)
    if place is not None:
        words.insert(place, of_time)
    return " ".join(words)


def _number(value: float) -> str:
    return "NaN" if math.isnan(value) else repr(float(value) + 0.0)


def _vector(numbers: np.ndarray) -> str:
    return f"({','.join(_number(n) for n in numbers)})"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
