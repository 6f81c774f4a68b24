"""A series -> a Volume: the stored values, bit for bit, in the scan's own units."""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from thinslice.errors import InputRefused
from thinslice.io.dicom.decode import decode, decode_compressed
from thinslice.io.dicom.headers import Image
from thinslice.io.dicom.series import Series, find_study
from thinslice.io.scratch import allocate
from thinslice.io.upright import put_on
from thinslice.volume import Volume

logger = logging.getLogger(__name__)


def read(path: Path) -> Volume:
    """Reads the series of a folder, or of a file, that holds one; acquired or computed.

    Raises:
        InputRefused: none, or several; and see `read_series`.
    """
    study = find_study(path, computed_too=True)
    if len(study.series) == 1:
        return read_series(study.series[0])
    if len(study.unusable) == 1 and not study.series:
        raise study.unusable[0].refusal.at(path)
    got = f"{len(study.series)} DICOM series and {len(study.unusable)} that cannot be used"
    raise InputRefused(got=got, need="one series", next="name its folder", place=path, code="several-series")


def read_series(series: Series) -> Volume:
    """Reads the voxels [columns, rows from the last to the first, slices]; `Volume.header` is the series.

    Whole numbers stay whole numbers where the rescale is by one: 16 bits with a sign where they fit, as computed slices
    go a little beyond the acquired ones; else float32.

    Raises:
        InputRefused: voxels that are cut off or damaged, or compressed in a way for which no codec is installed.
    """
    columns, rows, count = series.shape_acquired
    # Wide enough for all 16 bits, with a sign or without, whichever each slice has.
    stored = allocate((columns, rows, count), np.int32, Path(tempfile.gettempdir()))
    logger.debug("%s: %d slices, %d of them compressed", series.label, count, sum(i.compressed for i in series.images))
    for index, values in enumerate(_slices(series.images)):
        if values.shape != (rows, columns):
            raise InputRefused(
                got=f"{series.images[index].path.name} with voxels of shape {values.shape}",
                need=f"{rows} x {columns}",
                next="export the series again",
                place=series.label,
                code="dicom-other-shape",
            )
        # Rows from the last to the first, so that the array is laid out as by dcm2niix.
        stored[:, :, index] = values[::-1].T
    padding = _one_padding(stored, series.images)
    voxels = _rescaled(stored, [image.rescale for image in series.images])
    volume = Volume(
        voxels, series.affine, series.thickness_mm, series.notes, series.folder, series, slice_axis=2, padding=padding
    )
    return volume if series.grid is None else put_on(series.grid, volume, 2)


def _slices(images: Sequence[Image]) -> Iterator[np.ndarray]:
    """Yields the stored values [rows, columns] of each image; decodes a file of many frames once."""
    steps = list(zip(images, [None, *images], strict=False))
    files = [image.path for image, before in steps if image.compressed and _is_next(image, before)]
    compressed = decode_compressed(files, 1 + max(image.frame or 0 for image in images))
    decoded = np.empty(0)
    for image, before in steps:
        if _is_next(image, before):
            decoded = next(compressed) if image.compressed else decode(image.path)
        frames = decoded.reshape(-1, *decoded.shape[-2:])
        index = image.frame or 0
        yield frames[index] if index < len(frames) else frames[:0]


def _one_padding(stored: np.ndarray, images: Sequence[Image]) -> float | None:
    """Returns the value of pixels that the scanner did not see, in the scan's own units; None where none is stated.

    Of a range of such values all become the one that is called PixelPaddingValue, in place: no other value means
    anything there. None, too, where the slices do not agree.
    """
    facts = {(image.padding, image.rescale) for image in images}
    (padding, (slope, intercept)), *others = facts
    if padding is None or others:
        return None
    first, last = padding
    if first != last:
        for index in range(stored.shape[2]):
            within = stored[..., index]
            within[(within >= min(padding)) & (within <= max(padding))] = first
    # As the voxels are rescaled: a value that is rounded otherwise would be none of theirs.
    return float(np.float32(first * slope + intercept))


def _is_next(image: Image, before: Image | None) -> bool:
    """Tells whether its file is another one than that of the image before."""
    return before is None or image.path != before.path


def _rescaled(stored: np.ndarray, rescales: Sequence[tuple[float, float]]) -> np.ndarray:
    """Returns the stored values [x, y, z] in the scan's own units, each slice with its own slope and intercept."""
    slope, intercept = rescales[0]
    # A rescale by one only shifts: whole numbers stay exact.
    if all(rescale == rescales[0] for rescale in rescales) and slope == 1 and float(intercept).is_integer():
        low, high = int(stored.min()) + int(intercept), int(stored.max()) + int(intercept)
        kind = next(
            k for k in (np.int16, np.uint16, np.int32, np.int64) if np.iinfo(k).min <= low and high <= np.iinfo(k).max
        )
        return _plus(stored, int(intercept), np.dtype(kind))
    voxels = np.empty(stored.shape, np.float32, order="F")
    for index, (slope, intercept) in enumerate(rescales):
        voxels[..., index] = stored[..., index] * slope + intercept
    return voxels


def _plus(stored: np.ndarray, intercept: int, kind: np.dtype) -> np.ndarray:
    voxels = np.empty(stored.shape, kind, order="F")
    for index in range(stored.shape[2]):
        voxels[..., index] = stored[..., index].astype(np.int64) + intercept
    return voxels
