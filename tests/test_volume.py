"""Laws of what a scan is known by."""

from dataclasses import replace

import numpy as np
import pytest

from faults import catches
from make_scans import make_affine, make_voxels, save_scan
from thinslice.io.nifti import read
from thinslice.volume import Volume, fingerprint

SCAN = Volume(make_voxels((7, 6, 5)), make_affine())


def test_the_same_scan_has_the_same_fingerprint_under_another_name(tmp_path):
    one = read(save_scan(tmp_path / "one.nii", SCAN.voxels, SCAN.affine))
    other = read(save_scan(tmp_path / "other.nii.gz", SCAN.voxels, SCAN.affine))
    assert fingerprint(one) == fingerprint(other)


@pytest.mark.parametrize("order", ["C", "F"])
def test_how_the_numbers_lie_in_memory_does_not_matter(order):
    assert fingerprint(replace(SCAN, voxels=SCAN.voxels.copy(order))) == fingerprint(SCAN)
    nothing = replace(SCAN, affine=np.where(SCAN.affine == 0, -0.0, SCAN.affine))
    assert fingerprint(nothing) == fingerprint(SCAN)


def other_voxel(scan):
    voxels = scan.voxels.copy()
    voxels[3, 2, 1] += 1
    return replace(scan, voxels=voxels)


def moved(scan):
    affine = scan.affine.copy()
    affine[0, 3] += 0.01
    return replace(scan, affine=affine)


@catches("volume.py", "found.update((np.round(np.asarray(volume.affine, np.float64), 3) + 0.0).tobytes())", "pass")
@pytest.mark.parametrize(
    "change",
    [
        other_voxel,
        moved,
        lambda scan: replace(scan, voxels=scan.voxels.reshape(6, 7, 5)),
        lambda scan: replace(scan, voxels=scan.voxels[::-1]),
        lambda scan: replace(scan, voxels=scan.voxels[:, :, :-1]),
        lambda scan: replace(scan, affine=np.diag([1.0, 1, 4, 1])),
    ],
)
def test_another_voxel_place_or_shape_is_another_scan(change):
    assert fingerprint(change(SCAN)) != fingerprint(SCAN)
