"""Where not to trust an answer, and where it disagrees with what was acquired: maps that point to the right place."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from faults import catches
from phantoms import enlarging, lopsided, network, silent, straight
from planning import plan_for
from thinslice.compute.consistency import check, map_misfit
from thinslice.compute.uncertainty import (
    CHECKED_SHA256,
    POWER,
    SCALE,
    average_in_cells,
    choose_cell_size,
    make_cell_affine,
    map_expected_error,
)
from thinslice.compute.upsample import upsample
from thinslice.models.registry import EMBEDDED, find_model
from thinslice.physics.intensity import intensity_range
from thinslice.volume import Volume


def scan(shape=(40, 36, 10), spacing_mm=(1.0, 1.0, 4.0), seed=0):
    voxels = np.random.default_rng(seed).normal(500, 100, shape).astype(np.float32)
    return Volume(voxels, np.diag([*spacing_mm, 1.0]))


def asked(volume, model, **wish):
    plan = plan_for(volume, model=model.name, factor=4, **wish)
    thin = upsample(volume, plan, model).volume
    return thin, plan, map_expected_error(volume, thin, plan, model)


def test_what_was_checked_are_the_weights_that_ship():
    """Where they change, docs/report.md has to be measured again."""
    assert hashlib.sha256((EMBEDDED / "default.onnx").read_bytes()).hexdigest() == CHECKED_SHA256
    assert json.loads((EMBEDDED / "default.json").read_text())["sha256"] == CHECKED_SHA256


@pytest.mark.parametrize("name", ["cubic", "linear", "lanczos", "nearest"])
def test_an_interpolation_says_the_same_to_every_mirror_image(name):
    *_, found = asked(scan(), find_model(name))
    assert found is None


@catches(
    "compute/uncertainty.py",
    "return _run(*mirror(volume, plan), model, progress)[::-1, ::-1, ::-1]",
    "return _run(*mirror(volume, plan), model, progress)",
)
@pytest.mark.parametrize("model", [silent(), straight()], ids=["silent", "straight"])
def test_a_network_that_says_the_same_to_the_mirror_image_is_trusted(model):
    *_, found = asked(scan(), model)
    assert found.volume.voxels.max() < 1e-3 * found.unit


def one_sided(where, size):
    """A network that adds ``size`` in some columns and lines as it sees them, which in the mirror image are others."""

    def residual(slices, offset):
        added = np.zeros((len(offset), *slices.shape[1:]), np.float32)
        added[:, where[0], where[1]] = size
        return added

    return network(residual)


@catches(
    "compute/uncertainty.py",
    "return average_in_cells(answer, _run_mirrored(volume, plain, model, progress), size) / 2",
    "return average_in_cells(answer, _run_mirrored(volume, plain, model, progress), size)",
)
@catches("compute/uncertainty.py", "cells[:3, 3] += cells[:3, :3] @ (np.array(size) - 1) / 2", "cells[:3, 3] += 0")
def test_where_the_answers_are_apart_is_found_at_its_place_and_size():
    """0.02 ranges are added in one corner, in the mirror image's answer in the other: half the distance is 0.01."""
    volume = scan()
    *_, plan, found = asked(volume, one_sided((slice(0, 9), slice(0, 9)), 0.02), projection=False)
    low, high = intensity_range(volume.voxels)
    assert found.unit == pytest.approx(high - low)
    said = found.volume.voxels / found.unit
    expected = SCALE * 0.01**POWER
    assert choose_cell_size(plan.spacing_thin_mm, plan.shape_thin) == (3, 3, 3)
    assert said.shape == (14, 12, 14)  # the last cells of 40 voxels are of one
    assert np.allclose(said[:3, :3], expected, rtol=1e-2)
    assert np.allclose(said[-3:, -3:], expected, rtol=1e-2)
    middle = said[4:-4, 4:-4]
    assert middle.max() < 1e-3
    assert found.volume.affine[:3, 3] == pytest.approx([1, 1, -0.5])  # the middle of the first three voxels


def test_to_fuse_or_not_the_map_is_the_same():
    volume, model = scan(), lopsided()
    *_, plain = asked(volume, model, projection=False)
    plan = plan_for(volume, model=model.name, factor=4, projection=False)
    plan = replace(plan, fuse=True)
    thin = upsample(volume, plan, model).volume
    fused = map_expected_error(volume, thin, plan, model)
    assert plain.volume.voxels.max() > 0
    assert np.allclose(plain.volume.voxels, fused.volume.voxels, rtol=1e-3, atol=1e-4 * plain.unit)


def test_fused_planes_are_compared_plain():
    """A median of eight turns is no mean of two: both plain answers are asked for."""
    model = enlarging("depth", 2, lambda planes: 0.01 * (planes - np.roll(planes, 1, axis=-1)))
    volume = scan()
    maps = []
    for fuse in (False, True):
        plan = replace(plan_for(volume, model="planes", factor=2, projection=False), fuse=fuse)
        thin = upsample(volume, plan, model).volume
        maps.append(map_expected_error(volume, thin, plan, model).volume.voxels)
    assert maps[0].max() > 0
    assert np.allclose(maps[0], maps[1], rtol=1e-3, atol=1e-4 * maps[0].max())


@catches("compute/uncertainty.py", "    if fell_back is not None:", "    if False:")
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_where_the_guard_took_the_network_back_nothing_is_trusted(axis):
    """There both answers are the interpolation's, and near each other for that reason alone."""

    def wrong(slices, offset):
        added = 0.003 * np.tanh(slices[1] - np.roll(slices[1], 1, axis=0))[None].repeat(len(offset), axis=0)
        added[:, :20, :18] += 0.4 * np.ones((20, 18))
        return added

    volume = scan((128, 128, 6))
    order = np.roll([0, 1, 2], axis)
    volume = Volume(np.transpose(volume.voxels, order), volume.affine[:, [*order, 3]])
    model = network(wrong)
    plan = plan_for(volume, model=model.name, factor=4)
    answer = upsample(volume, plan, model)
    assert answer.guard.suspect
    assert answer.fell_back.shape == volume.shape
    share = answer.fell_back.mean()
    assert 0.1 < share < 0.9
    found = map_expected_error(volume, answer.volume, plan, model, answer.fell_back)
    to_cells = np.linalg.solve(found.volume.affine, volume.affine)
    for index in np.argwhere(answer.fell_back)[::97]:
        cell = np.rint((to_cells @ [*index, 1])[:3]).astype(int)
        assert found.volume.voxels[tuple(cell)] == found.volume.voxels.max()
    assert (found.volume.voxels == found.volume.voxels.max()).mean() < 0.95


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_axes_are_only_names(axis):
    volume = scan()
    *_, straightforward = asked(volume, lopsided())
    order = np.roll([0, 1, 2], axis)
    turned = Volume(np.transpose(volume.voxels, order), volume.affine[:, [*order, 3]])
    *_, found = asked(turned, lopsided())
    assert np.allclose(found.volume.voxels, np.transpose(straightforward.volume.voxels, order), rtol=1e-4, atol=1e-5)


def test_of_a_series_the_first_volume_is_looked_at():
    volume = scan()
    series = replace(volume, voxels=np.stack([volume.voxels, volume.voxels[::-1]], axis=-1))
    *_, found = asked(series, lopsided())
    *_, alone = asked(volume, lopsided())
    assert np.allclose(found.volume.voxels, alone.volume.voxels)


def test_cells_are_means_over_their_voxels():
    one, other = np.random.default_rng(0).normal(size=(2, 7, 8, 9))
    found = average_in_cells(one, other, (2, 3, 4))
    assert found.shape == (4, 3, 3)
    assert found[2, 1, 0] == pytest.approx(np.abs(one - other)[4:6, 3:6, 0:4].mean())
    assert found[3, 2, 2] == pytest.approx(np.abs(one - other)[6:, 6:, 8:].mean())


def test_a_cell_lies_in_the_middle_of_its_voxels():
    affine = np.array([[0, -0.5, 0, 10], [2, 0, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1.0]])
    cells = make_cell_affine(affine, (4, 2, 3))
    corners = [affine @ [x, y, z, 1] for x in (4, 7) for y in (2, 3) for z in (3, 5)]
    assert np.allclose(cells @ [1, 1, 1, 1], np.mean(corners, axis=0))


@catches("compute/consistency.py", "    np.abs(apart, out=apart)\n", "")
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_misfit_is_what_the_report_measures_at_its_place(axis):
    volume = scan()
    order = np.roll([0, 1, 2], axis)
    volume = Volume(np.transpose(volume.voxels, order), volume.affine[:, [*order, 3]])
    plan = plan_for(volume, model="linear", factor=4, projection=False)
    thin = upsample(volume, plan, find_model("linear")).volume
    found, measured = map_misfit(volume, thin, plan), check(volume, thin, plan)
    assert found.voxels.shape == volume.voxels.shape
    assert np.array_equal(found.affine, volume.affine)
    assert np.sqrt(np.mean(found.voxels.astype(float) ** 2)) == pytest.approx(measured.rms, rel=1e-5)
    assert found.voxels.max() == pytest.approx(measured.worst, rel=1e-5)
    again = np.tensordot(plan.acquisition().matrix(), np.moveaxis(thin.voxels, plan.axis, 0), axes=1)
    assert np.allclose(found.voxels, np.abs(np.moveaxis(again, 0, plan.axis) - volume.voxels), atol=1e-2)


def test_the_misfit_of_enlarged_slices_is_on_the_acquired_grid():
    volume = scan()
    plan = plan_for(volume, model="cubic", factor=2, in_plane=2)
    thin = upsample(volume, plan, find_model("cubic")).volume
    found, measured = map_misfit(volume, thin, plan), check(volume, thin, plan)
    assert found.voxels.shape == volume.voxels.shape
    assert found.voxels.max() == pytest.approx(measured.worst, rel=1e-5)
