"""Which files of a folder are segmentations, and of which of the scans beside them.

Data sets have them beside the scans, under names of every kind. They are known by what is in them, and belong to a scan
whose voxels are theirs; where several have these, to that whose name begins most as theirs does.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from thinslice.compute.label_maps import describe_labels
from thinslice.errors import ThinsliceError
from thinslice.io.formats import read, stem_of
from thinslice.volume import SAME_VOXEL, Volume, grid_distance_voxels, run_like

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelFile:
    """Describes a segmentation among scans.

    Attributes:
        path: its file.
        reason: why it is taken for one, in words.
        scan: the scan beside it that it was drawn on; None where there is none on its grid.
    """

    path: Path
    reason: str
    scan: Path | None


def find_label_files(paths: Sequence[Path]) -> list[LabelFile]:
    """Returns which of some files are segmentations, in their order; all of them are read.

    What cannot be read is none: it is refused when it is its turn.
    """
    grids: dict[Path, Volume] = {}
    reasons: dict[Path, str] = {}
    for path in paths:
        try:
            volume = read(path)
            reasons[path] = describe_labels(volume)
        except (ThinsliceError, OSError, MemoryError) as error:
            logger.debug("%s: no segmentation, as it cannot be read: %s", path, error)
            continue
        # Of the voxels only their number matters from here on.
        grids[path] = replace(volume, voxels=np.broadcast_to(np.zeros((), np.uint8), volume.shape), header=None)
    scans = {path: grid for path, grid in grids.items() if not reasons[path]}
    return [LabelFile(path, reason, _find_scan(path, grids[path], scans)) for path, reason in reasons.items() if reason]


def has_voxels_of(labels: Volume, scan: Volume) -> bool:
    """Returns whether two volumes have the same voxel centres, whatever the order of their axes.

    Example:
        >>> scan = Volume(np.zeros((4, 5, 6)), np.diag([1.0, 1.0, 4.0, 1.0]))
        >>> has_voxels_of(Volume(np.zeros((6, 4, 5)), scan.affine[:, [2, 0, 1, 3]]), scan)
        True
    """
    turned = run_like(labels, scan.affine)
    if turned.shape != scan.shape:
        return False
    return bool(grid_distance_voxels(turned.affine, scan.affine, scan.shape) <= SAME_VOXEL)


def _find_scan(path: Path, grid: Volume, scans: dict[Path, Volume]) -> Path | None:
    """Returns the scan on a grid whose name has most in common with that of a segmentation."""
    alike = [scan for scan, other in scans.items() if has_voxels_of(grid, other)]
    name = stem_of(path).casefold()
    return max(alike, key=lambda scan: _count_shared(name, stem_of(scan).casefold()), default=None)


def _count_shared(one: str, other: str) -> int:
    """Returns how many letters two names begin with that are the same."""
    differs = [index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b]
    return differs[0] if differs else min(len(one), len(other))
