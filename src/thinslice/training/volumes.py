"""Volumes that a network learns from: read from folders and scaled, with the axes along which they may become thick."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from thinslice.compute.upsample import upsample
from thinslice.errors import InputRefused
from thinslice.evaluation.benchmark import check_truth
from thinslice.io.nifti import read
from thinslice.io.synthetic import check_acquired
from thinslice.models.interpolations import interpolation
from thinslice.physics.intensity import intensity_range
from thinslice.plan import make_plan
from thinslice.settings import Settings
from thinslice.volume import Volume, through_plane_axis

MAX_ANISOTROPY = 1.4
"""Largest spacing over the smallest of a volume that is learnt from: more than a truth that is scored may have, as
sagittal MPRAGE is often 1 x 1.33 x 1.33 mm, and heads differ by as much in shape."""


@dataclass(frozen=True)
class TrainingVolume:
    """A volume that can be made thick along some of its axes.

    Attributes:
        name: where it came from.
        voxels: [x, y, z] (of a clip [time, y, x]) float32 or float16, scaled so that the intensity range of the scan
            is 0 .. 1.
        axes: array axes that may play the through-plane axis.
        weight: how often it is drawn.
    """

    name: str
    voxels: np.ndarray
    axes: tuple[int, ...]
    weight: float


def load_isotropic(folder: Path) -> list[TrainingVolume]:
    """Returns every NIfTI of a folder of near-isotropic volumes, any axis allowed; larger ones are drawn more often.

    Raises:
        InputRefused: there is none, or one of them is not a 3-D volume of near-isotropic voxels.
    """
    volumes = []
    for path in _find_scans(folder, "near-isotropic volumes there (.nii, .nii.gz)", "a NIfTI file"):
        volume = read(path)
        try:
            check_truth(volume, MAX_ANISOTROPY)
        except InputRefused as refusal:
            raise refusal.at(path) from refusal
        voxels = normalise(volume.voxels)
        volumes.append(TrainingVolume(path.name, voxels, (0, 1, 2), voxels.size**0.5))
    return volumes


def load_thick(folder: Path, share: float = 1.0) -> list[TrainingVolume]:
    """Returns every thick-slice NIfTI of a folder: its in-plane detail, never its slice axis, plays the thin truth.

    The slices are first brought to the in-plane spacing by projected cubic interpolation, so that the third
    direction has the right scale, if not the right detail (the idea of SMORE, Zhao et al. 2020, in three dimensions).
    The slice profile is taken for a Gaussian, as in most papers.

    Args:
        folder: with the scans.
        share: of the slices of a scan, from the first on, that is learnt from; the rest can be scored.

    Raises:
        InputRefused: there is none, or one of them is not 3-D.
        PlanRefused: one of them is not thick.
    """
    need = "thick scans there (.nii, .nii.gz) or clips (.mp4, ...)"
    volumes = []
    for path in _find_scans(folder, need, "a NIfTI file or a clip"):
        scan = read(path)
        try:
            check_acquired(scan)
        except InputRefused as refusal:
            raise refusal.at(path) from refusal
        # Before anything is computed: spline and projection would carry the slices that are scored into these.
        scan = take_first_slices(scan, share)
        if scan.voxels.ndim != 3:
            raise InputRefused(
                got=f"{scan.voxels.ndim} axes",
                need="a 3-D scan",
                next="give one volume of it",
                place=path,
                code="not-3d",
            )
        cubic = interpolation("cubic")
        thin = upsample(scan, make_plan(scan, Settings(profile="gaussian"), cubic), cubic).volume.voxels
        axes = tuple(axis for axis in range(3) if axis != through_plane_axis(scan))
        volumes.append(TrainingVolume(path.name, normalise(thin), axes, thin.size**0.5))
    return volumes


def _find_scans(folder: Path, need: str, missing: str) -> list[Path]:
    # Sorted: in another order the same seed would draw other batches.
    paths = sorted(folder.glob("*.nii*"))
    if not paths:
        raise InputRefused(
            got=f"{folder} without {missing}", need=need, next="check `data`", code="source-without-scans"
        )
    return paths


def take_first_slices(scan: Volume, share: float) -> Volume:
    """Returns the scan with the first of its acquired slices alone, a share of them rounded to whole ones."""
    axis = through_plane_axis(scan)
    count = round(share * scan.shape[axis])
    return replace(scan, voxels=np.take(scan.voxels, np.arange(count), axis=axis))


def normalise(voxels: np.ndarray) -> np.ndarray:
    """Returns intensities scaled so that the scan's intensity range becomes 0 .. 1; values outside it are kept.

    Example:
        >>> normalise(np.array([10, 20, 30])).round(3)
        array([-0.005,  0.5  ,  1.005], dtype=float32)
    """
    voxels = np.asarray(voxels, dtype=np.float32)
    low, high = intensity_range(voxels)
    return (voxels - np.float32(low)) / np.float32(high - low)
