"""Voxels as files store them: one kind of number, rounded and clipped, perhaps on the steps of a rescale; finite."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from thinslice.io.refusals import refused, unwritable
from thinslice.io.streams import slabs

LARGEST = 1e30
"""Beyond it sums of squares are no float32; such voxels are marks, not signal."""

AIR = (-1100.0, -900.0)
"""Where the smallest value of computed tomography lies, in Hounsfield units."""


def replace_non_finite(voxels: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Turns NaN and infinities into 0 if the finite values lie around it, else their minimum; in place, noted.

    Where that minimum is air in Hounsfield units, 0 would be water: then it is the minimum too.

    Raises:
        InputRefused: no voxel is finite, or one is beyond what can be computed with.
    """
    if voxels.dtype.kind != "f":
        return voxels, []
    # Slab by slab: a mask of all voxels would take a quarter more memory.
    bad, low, high = 0, math.inf, -math.inf
    for at in slabs(voxels.shape, voxels.itemsize):
        finite = voxels[at][np.isfinite(voxels[at])]
        bad += voxels[at].size - finite.size
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if max(-low, high) > LARGEST:
        got = f"a voxel of {low if -low > high else high:.3g}"
        raise refused(
            got,
            f"values below {LARGEST:g}",
            "replace the marks for missing voxels by NaN or zero",
            code="voxel-too-large",
        )
    if not bad:
        return voxels, []
    if bad == voxels.size:
        raise refused(
            "no finite voxel at all (NaN or infinite)",
            "an image",
            "check the program that wrote it",
            code="no-finite-voxel",
        )
    fill = 0.0 if low <= 0 <= high and not AIR[0] <= low <= AIR[1] else low
    for at in slabs(voxels.shape, voxels.itemsize):
        np.copyto(voxels[at], fill, where=~np.isfinite(voxels[at]), casting="same_kind")
    return voxels, [f"{bad:,} of {voxels.size:,} voxels were NaN or infinite and are read as {fill:g}"]


def as_numbers(voxels: np.ndarray) -> np.ndarray:
    """Returns voxels from elsewhere in this machine's byte order, 16-bit floats as 32; else as they are.

    Raises:
        InputRefused: no real numbers (truth values are labels), or not three or four axes with a voxel along each.
    """
    if voxels.dtype.kind not in "iuf":
        raise refused(
            f"{voxels.dtype} voxels",
            "one real number per voxel",
            "convert the scan, as by .astype('float32')",
            code="voxel-type",
        )
    while voxels.ndim > 3 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim not in (3, 4) or 0 in voxels.shape:
        raise refused(
            f"voxels of shape {voxels.shape}", "[x, y, z] or [x, y, z, t]", "choose one scan of them", code="not-3d"
        )
    kinds = {2: np.dtype(np.float32)} if voxels.dtype.kind == "f" else {}
    wide = np.dtype(np.float64) if voxels.dtype.itemsize > 8 else voxels.dtype.newbyteorder("=")
    return voxels.astype(kinds.get(voxels.dtype.itemsize, wide), copy=False)


def finite(voxels: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Does as `replace_non_finite`, but to an array that is not ours: one that has such voxels is copied."""
    ours = voxels.dtype.kind == "f" and not all(np.isfinite(voxels[at]).all() for at in slabs(voxels.shape, 8))
    return replace_non_finite(voxels.copy(order="K") if ours else voxels)


def type_to_store(voxels: np.dtype[Any], source: np.dtype[Any] | None) -> np.dtype[Any]:
    """Returns the type in the file of voxels of one type that were computed from a file of another (None: from none).

    It is that of the source, but 8 bits become 16 where the answer, which goes beyond 0 .. 255, has as many.
    """
    own = {"b": np.dtype(np.uint8)}.get(voxels.kind, voxels.newbyteorder("="))
    own = np.dtype(np.float32) if own == np.float16 else own
    if source is None:
        return own
    # Whoever computed 16 bits from 8 did so since the answer goes beyond 0 .. 255.
    narrow = source.kind in "iu" and source.itemsize == 1 and voxels == np.int16
    return np.dtype(np.int16) if narrow else source.newbyteorder("=")


def encoded(voxels: np.ndarray, dtype: np.dtype[Any], slope: float = 1.0, inter: float = 0.0) -> Iterator[np.ndarray]:
    """Yields (voxels - inter) / slope as `dtype`, rounded and clipped, slab by slab in file order.

    Raises:
        OutputRefused: the voxels are not real or not finite numbers.
    """
    if voxels.dtype.kind == "b":
        voxels = voxels.view(np.uint8)
    if voxels.dtype.kind not in "iuf":
        raise unwritable(f"{voxels.dtype} voxels", "real numbers", "this is a fault of the caller", code="voxel-type")
    for at in slabs(voxels.shape, 8):
        # Without a detour: not every integer of 64 bits is a float64, and a label must stay what it is.
        if (slope, inter) == (1.0, 0.0) and voxels.dtype.kind in "iu" and dtype.kind in "iu":
            yield _clip_integers(voxels[at], dtype)
        else:
            yield _from_numbers(voxels[at], dtype, slope, inter)


def put_on_steps(voxels: np.ndarray, dtype: np.dtype[Any], slope: float = 1.0, inter: float = 0.0) -> None:
    """Gives the voxels, in place, the values that a file of `dtype` with this rescale holds.

    Raises:
        OutputRefused: the voxels are not finite numbers.
    """
    for at, slab in zip(slabs(voxels.shape, 8), encoded(voxels, dtype, slope, inter), strict=True):
        voxels[at] = slab if (slope, inter) == (1.0, 0.0) else slab.astype(np.float64) * slope + inter


def _clip_integers(slab: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    if slab.dtype == dtype:
        return slab
    # Clipped to what both types hold, since astype alone wraps round.
    source, target = np.iinfo(slab.dtype), np.iinfo(dtype)
    return slab.clip(max(source.min, target.min), min(source.max, target.max)).astype(dtype)


def _from_numbers(slab: np.ndarray, dtype: np.dtype[Any], slope: float, inter: float) -> np.ndarray:
    """Returns (slab - inter) / slope, rounded and clipped where `dtype` is an integer type."""
    values = slab.astype(np.float64) if (slope, inter) == (1.0, 0.0) else (slab.astype(np.float64) - inter) / slope
    if not np.isfinite(values).all():
        raise unwritable(
            "NaN or infinite voxels", "finite ones", "this is a fault of the model or of the caller", code="not-finite"
        )
    if dtype.kind == "f":
        limits = np.finfo(dtype)
        return values.clip(limits.min, limits.max).astype(dtype)
    low, high = (float(limit) for limit in (np.iinfo(dtype).min, np.iinfo(dtype).max))
    if high > np.iinfo(dtype).max:  # 2**63 - 1 is no float64
        high = math.nextafter(high, 0)
    return np.rint(values).clip(low, high).astype(dtype)
