"""Where not to trust an answer, and where it disagrees with what was acquired: maps that point to the right place."""

from dataclasses import replace

import numpy as np
import pytest

from phantoms import lopsided, network, silent, straight
from thinslice.plan import intensity_range, make_plan
from thinslice.report import check, misfit
from thinslice.uncertainty import POWER, SCALE, cell_affine, cell_means, cell_size, expected_error
from thinslice.upsample import upsample
from thinslice.volume import Volume
from thinslice.weights import find_model


def scan(shape=(40, 36, 10), spacing_mm=(1.0, 1.0, 4.0), seed=0):
    voxels = np.random.default_rng(seed).normal(500, 100, shape).astype(np.float32)
    return Volume(voxels, np.diag([*spacing_mm, 1.0]))


def asked(volume, model, **wish):
    plan = make_plan(volume, model=model.name, factor=4, **wish)
    thin = upsample(volume, plan, model).volume
    return thin, plan, expected_error(volume, thin, plan, model)


@pytest.mark.parametrize("name", ["cubic", "linear", "lanczos", "nearest"])
def test_an_interpolation_says_the_same_to_every_mirror_image(name):
    *_, found = asked(scan(), find_model(name))
    assert found is None


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


def test_where_the_answers_are_apart_is_found_at_its_place_and_size():
    """0.02 ranges are added in one corner, in the mirror image's answer in the other: half the distance is 0.01."""
    volume = scan((39, 36, 10))
    thin, plan, found = asked(volume, one_sided((slice(0, 9), slice(0, 9)), 0.02), projection=False)
    low, high = intensity_range(volume.voxels)
    assert found.unit == pytest.approx(high - low)
    said = found.volume.voxels / found.unit
    expected = SCALE * 0.01**POWER
    assert cell_size(plan) == (3, 3, 3)
    corners = said[:3, :3], said[-3:, -3:]
    for corner in corners:
        assert np.allclose(corner, expected, rtol=1e-2)
    middle = said[4:-4, 4:-4]
    assert middle.max() < 1e-3
    assert found.volume.affine[:3, 3] == pytest.approx([1, 1, -0.5])  # the middle of the first three voxels
    assert thin.shape[2] // 3 == said.shape[2]


def test_to_fuse_or_not_the_map_is_the_same():
    volume, model = scan(), lopsided()
    *_, plain = asked(volume, model, projection=False)
    plan = make_plan(volume, model=model.name, factor=4, projection=False)
    plan = replace(plan, fuse=True)
    thin = upsample(volume, plan, model).volume
    fused = expected_error(volume, thin, plan, model)
    assert plain.volume.voxels.max() > 0
    assert np.allclose(plain.volume.voxels, fused.volume.voxels, rtol=1e-3, atol=1e-4 * plain.unit)


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
    found = cell_means(one, other, (2, 3, 4))
    assert found.shape == (3, 2, 2)
    assert found[2, 1, 0] == pytest.approx(np.abs(one - other)[4:6, 3:6, 0:4].mean())


def test_a_cell_lies_in_the_middle_of_its_voxels():
    affine = np.array([[0, -0.5, 0, 10], [2, 0, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1.0]])
    cells = cell_affine(affine, (4, 2, 3))
    corners = [affine @ [x, y, z, 1] for x in (4, 7) for y in (2, 3) for z in (3, 5)]
    assert np.allclose(cells @ [1, 1, 1, 1], np.mean(corners, axis=0))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_misfit_is_what_the_report_measures_at_its_place(axis):
    volume = scan()
    order = np.roll([0, 1, 2], axis)
    volume = Volume(np.transpose(volume.voxels, order), volume.affine[:, [*order, 3]])
    plan = make_plan(volume, model="linear", factor=4, projection=False)
    thin = upsample(volume, plan, find_model("linear")).volume
    found, measured = misfit(volume, thin, plan), check(volume, thin, plan)
    assert found.voxels.shape == volume.voxels.shape
    assert np.array_equal(found.affine, volume.affine)
    assert np.sqrt(np.mean(found.voxels.astype(float) ** 2)) == pytest.approx(measured.rms, rel=1e-5)
    assert found.voxels.max() == pytest.approx(measured.worst, rel=1e-5)
    again = np.tensordot(plan.matrix(), np.moveaxis(thin.voxels, plan.axis, 0), axes=1)
    assert np.allclose(found.voxels, np.abs(np.moveaxis(again, 0, plan.axis) - volume.voxels), atol=1e-2)


def test_the_misfit_of_enlarged_slices_is_on_the_acquired_grid():
    volume = scan()
    plan = make_plan(volume, model="cubic", factor=2, in_plane=2)
    thin = upsample(volume, plan, find_model("cubic")).volume
    found, measured = misfit(volume, thin, plan), check(volume, thin, plan)
    assert found.voxels.shape == volume.voxels.shape
    assert found.voxels.max() == pytest.approx(measured.worst, rel=1e-5)
