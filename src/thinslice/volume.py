"""Volume: voxels, where they are in the patient, and what the header says about the acquisition."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Volume:
    """A scan.

    Attributes:
        voxels: [x, y, z] or [x, y, z, t], in the scan's own units (rescale applied), any numeric dtype.
        affine: [4, 4] float64, voxel index -> patient millimetres (RAS).
        thickness_mm: slice thickness, None where the header is silent.
        notes: what the reader had to decide, in plain words, for the plan and the terminal.
        source: the file it came from.
        header: whatever the writer of the same format needs to keep dtype, units, codes and scale.
    """

    voxels: np.ndarray
    affine: np.ndarray
    thickness_mm: float | None = None
    notes: tuple[str, ...] = ()
    source: Path | None = None
    header: Any = field(default=None, repr=False)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along each array axis."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Spatial shape, without the volumes of a 4-D series."""
        x, y, z = self.voxels.shape[:3]
        return x, y, z


def fingerprint(volume: Volume) -> str:
    """A hash of the voxels and where they are: the same scan has the same one under another name."""
    found = hashlib.sha256(repr((volume.voxels.shape, str(volume.voxels.dtype))).encode())
    found.update((np.round(np.asarray(volume.affine, np.float64), 3) + 0.0).tobytes())  # -0.0 becomes 0.0
    for part in np.moveaxis(volume.voxels, -1, 0):
        found.update(np.ascontiguousarray(part).data)
    return found.hexdigest()


def patient_axes(affine: np.ndarray) -> tuple[int, int, int]:
    """For each array axis the patient axis it is nearest to (0 left-right, 1 back-front, 2 foot-head), each once."""
    share = np.abs(affine[:3, :3]) / np.linalg.norm(affine[:3, :3], axis=0)
    nearest = [0, 0, 0]
    for _ in range(3):
        patient, array = (int(index) for index in np.unravel_index(int(np.argmax(share)), (3, 3)))
        nearest[array] = patient
        share[patient, :] = -1
        share[:, array] = -1
    return nearest[0], nearest[1], nearest[2]


def refine_affine(affine: np.ndarray, finer: Sequence[float], first: Sequence[float]) -> np.ndarray:
    """Of a grid so many times finer along each axis, on which the old first voxel has its centre at ``first``."""
    thin = np.array(affine, dtype=np.float64)
    thin[:3, :3] /= finer
    thin[:3, 3] -= thin[:3, :3] @ first
    return thin


def through_plane_axis(volume: Volume) -> int:
    """The array axis with the largest spacing; of equal ones the last, as scanners store stacks."""
    spacing = np.asarray(volume.spacing_mm)
    return int(np.flatnonzero(spacing >= spacing.max() * (1 - 1e-4))[-1])


def corners(shape: tuple[int, ...]) -> np.ndarray:
    """Homogeneous voxel indices [8, 4] of the corners of a grid."""
    return np.asarray([[*corner, 1] for corner in np.ndindex(2, 2, 2)] * np.array([*(np.array(shape[:3]) - 1), 1]))


def grid_distance_mm(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """The largest distance between equal indices of two grids: affines [4, 4], spatial shape."""
    return float(np.linalg.norm((corners(shape) @ (one - other).T)[:, :3], axis=1).max())
