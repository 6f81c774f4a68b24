"""Small synthetic scans for the tests: arrays, affines, and NIfTI files written byte by byte, faults included."""

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nibabel import nifti1, nifti2


def make_voxels(shape: tuple[int, ...], dtype: Any = np.int16, seed: int = 0) -> np.ndarray:
    """Random voxels over a range that every dtype can hold, extremes of the integer types included."""
    dtype, random = np.dtype(dtype), np.random.default_rng(seed)
    if dtype.kind == "f":
        return np.asfortranarray(random.normal(100, 50, shape).astype(dtype))
    limits = np.iinfo(dtype)
    voxels = random.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    voxels.flat[0], voxels.flat[-1] = limits.min, limits.max
    return np.asfortranarray(voxels)


def make_affine(
    spacing_mm: Sequence[float] = (0.7, 0.8, 4.0),
    angles_deg: Sequence[float] = (0.0, 0.0, 0.0),
    axes: Sequence[int] = (0, 1, 2),
    flips: Sequence[int] = (1, 1, 1),
    origin_mm: Sequence[float] = (-30.0, 20.0, -10.0),
) -> np.ndarray:
    """Affine [4, 4]: array axis i runs along patient axis axes[i] (with flips[i]), then all is turned by the angles."""
    turn = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(angles_deg)):
        one, two = (a for a in range(3) if a != axis)
        rotation = np.eye(3)
        rotation[[one, one, two, two], [one, two, one, two]] = (
            np.cos(angle),
            -np.sin(angle),
            np.sin(angle),
            np.cos(angle),
        )
        turn = turn @ rotation
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.eye(3)[:, list(axes)] @ np.diag(np.asarray(spacing_mm) * flips)
    affine[:3, 3] = origin_mm
    return affine


def save_scan(
    path: Path,
    voxels: np.ndarray,
    affine: np.ndarray | None = None,
    *,
    nifti: int = 1,
    extensions: Any = (),
    **fields: Any,
) -> Path:
    """Write stored voxels in their own byte order under a header that nobody repairs; `fields` overwrite header fields.

    sform and qform both hold the affine, with code 1, unless `fields` say otherwise.
    """
    order = ">" if voxels.dtype.str.startswith(">") else "<"
    header: Any = (nifti1.Nifti1Header if nifti == 1 else nifti2.Nifti2Header)(endianness=order, check=False)
    header.set_data_shape(voxels.shape)
    header.set_data_dtype(voxels.dtype)
    affine = make_affine() if affine is None else affine
    header.set_qform(affine, 1)
    header.set_sform(affine, 1)
    header["xyzt_units"], header["scl_slope"], header["scl_inter"] = 2 + 8, 1, 0
    header.extensions.extend(nifti1.Nifti1Extension(code, content) for code, content in extensions)
    header["vox_offset"] = (352 if nifti == 1 else 544) + header.extensions.get_sizeondisk()
    for name, value in fields.items():
        header[name] = value
    with gzip.open(path, "wb", 1) if path.name.endswith(".gz") else open(path, "wb") as stream:
        stream.write(header.binaryblock)
        stream.write(b"\x01\0\0\0" if extensions else b"\0\0\0\0")
        header.extensions.write_to(stream, order == ">")
        stream.write(voxels.tobytes(order="F"))
    return path
