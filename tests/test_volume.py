"""Laws of what a scan is known by, and of grids in space."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from faults import catches
from make_scans import make_affine, make_voxels, save_scan
from strategies import affines, seeds
from thinslice.io.nifti import read
from thinslice.volume import Volume, fingerprint, grid_distance_mm, patient_axes, refine_affine

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


ROUNDING_MM = 1e-9
"""Affines are float64 and hundreds of millimetres large: this leaves room for a few hundred roundings."""


@given(affine=affines((0.7, 3.0, 1.1)), seed=seeds)
def test_every_voxel_of_a_coarse_grid_keeps_its_place_in_the_finer_one(affine, seed):
    rng = np.random.default_rng(seed)
    finer, first, index = rng.uniform(1, 6, 3), rng.uniform(0, 3, 3), rng.integers(0, 30, 3)
    there = refine_affine(affine, finer, first) @ [*(first + finer * index), 1]
    np.testing.assert_allclose(there, affine @ [*index, 1], atol=ROUNDING_MM)


@catches("volume.py", "axis=1).max())", "axis=1).mean())")
@given(one=affines((0.7, 3.0, 1.1)), other=affines((0.7, 3.0, 1.1)), shape=st.tuples(*[st.integers(1, 6)] * 3))
def test_the_distance_of_two_grids_is_that_of_the_voxels_farthest_apart(one, other, shape):
    index = np.array([[*voxel, 1] for voxel in np.ndindex(*shape)])
    apart = np.linalg.norm((index @ one.T - index @ other.T)[:, :3], axis=1).max()
    assert grid_distance_mm(one, other, shape) == pytest.approx(apart, abs=ROUNDING_MM)


@given(order=st.permutations(range(3)), signs=st.tuples(*[st.sampled_from([-1, 1])] * 3), seed=seeds)
def test_each_array_axis_has_the_patient_axis_it_runs_along(order, signs, seed):
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, order] * signs * [0.7, 3.0, 1.1]
    # Tilted by so little that no axis is nearer to another one.
    affine[:3, :3] += np.random.default_rng(seed).uniform(-0.2, 0.2, (3, 3))
    assert patient_axes(affine) == tuple(order)


@catches("volume.py", "share[patient, :] = -1", "pass")
@given(affine=affines((0.7, 3.0, 1.1)))
def test_no_two_array_axes_have_the_same_patient_axis(affine):
    assert sorted(patient_axes(affine)) == [0, 1, 2]
