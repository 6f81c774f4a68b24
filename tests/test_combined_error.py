"""The error to be expected of a combined volume: its size, its place, and where it is not known."""

from dataclasses import replace

import numpy as np
import pytest

import thinslice
from faults import catches
from phantoms import sampled
from test_combination import PLAIN, STACKS, make_stack, names, save
from thinslice.compute.combine import combine_stacks
from thinslice.compute.stacks import Stack, VoxelGrid
from thinslice.compute.uncertainty import JOINT_SCALE, NOISE_LEFT, POWER, Spread, map_combined_error, map_expected_error
from thinslice.errors import OutputRefused
from thinslice.io import formats
from thinslice.models.interpolations import interpolation
from thinslice.models.registry import find_model
from thinslice.pipeline import enhance_volume
from thinslice.settings import Settings
from thinslice.volume import Volume

CELL = 3


def stack_of(scan, **more):
    """A stack that the embedded network made thin."""
    model = find_model("default")
    done = enhance_volume(scan, Settings(factor=4.0, profile="box"), model)
    return Stack(scan, done.plan, done.volume, model=model, fell_back=done.fell_back, **more)


@pytest.fixture(scope="module")
def stacks():
    return {name: stack_of(make_stack(axis, np.float32)) for axis, name in enumerate(STACKS)}


def joined_of(*used):
    thin = used[0].thin
    return combine_stacks(list(used), VoxelGrid(thin.shape, thin.affine))


@catches("compute/uncertainty.py", "np.sqrt(variance / np.maximum(count - 1, 1))", "np.sqrt(variance)")
def test_the_spread_is_that_of_the_mean_of_the_answers(stacks):
    """Answers that are sigma apart make the mean of n of them uncertain by sigma over the root of n."""
    rng = np.random.default_rng(0)
    for count in (2, 3):
        used = []
        for stack in list(stacks.values())[:count]:
            voxels = 400 + 20 * rng.standard_normal(stack.thin.shape)
            used.append(replace(stack, thin=replace(stack.thin, voxels=voxels.astype(np.float32))))
        used[0].thin.voxels[:, :, 0] = np.linspace(0, 1000, 40)  # a range
        spread = joined_of(*used).spread
        inner = spread.apart[2:-2, 2:-2, 2:-2] * spread.unit
        # The brightness of a stack of noise is not changed by matching.
        assert np.sqrt(np.mean(inner**2)) == pytest.approx(20 / np.sqrt(count), rel=0.1)
        assert all(np.max(alone[2:-2, 2:-2, 2:-2]) < 0.05 for alone in spread.alone)


@catches(
    "compute/uncertainty.py",
    "(JOINT_SCALE * spread.apart**POWER) ** 2 + (",
    "(JOINT_SCALE * spread.apart**POWER) ** 2 * (",
)
def test_spread_and_noise_and_the_mirror_image_add_up():
    shape = (2, 1, 1)
    apart = np.array([0.02, 0.0], np.float32).reshape(shape)
    spread = Spread(
        VoxelGrid(shape, np.eye(4)), np.array([True, False]).reshape(shape), apart, (0 * apart,), (1.0,), 0.01, (None,),
        True, 500.0,
    )  # fmt: skip
    found = map_combined_error(spread)
    assert found.unit == 500
    expected = 500 * np.hypot(JOINT_SCALE * 0.02**POWER, NOISE_LEFT * 0.01)
    np.testing.assert_allclose(found.volume.voxels.ravel(), [expected, 0.0], rtol=1e-5)
    assert map_combined_error(replace(spread, has_model=False)) is None


@catches("compute/uncertainty.py", "np.clip(2 - count, 0, 1) / say", "np.clip(2 - count, 0, 0.5) / say")
@catches("compute/uncertainty.py", "np.float32(gain * spread.unit)", "np.float32(spread.unit)")
@catches("compute/uncertainty.py", "affine = stack.motion @ own.volume.affine", "affine = own.volume.affine")
def test_where_one_stack_sees_alone_it_is_its_own_error(stacks):
    # Half of the second stack, and the body of the first lies elsewhere than its header says.
    motion = np.eye(4)
    motion[:3, 3] = (2.0, -1.0, 3.0)
    whole, half = stacks["axial"], make_stack(1, np.float32)
    half = replace(half, voxels=3 * half.voxels[:, :5])
    first = replace(whole, motion=motion)
    grid = VoxelGrid(whole.thin.shape, motion @ whole.thin.affine)
    for used in ([first, stack_of(half, motion=motion)], [stack_of(half, motion=motion), first]):
        spread = combine_stacks(used, grid).spread
        found = map_combined_error(spread).volume
        own = map_expected_error(whole.acquired, whole.thin, whole.plan, whole.model, whole.fell_back).volume
        scale = 3 if used[1] is first else 1
        assert spread.noise < 0.003
        alone = np.s_[:, 9:]
        np.testing.assert_allclose(found.voxels[alone], scale * own.voxels[alone], rtol=0.15, atol=scale * 8.0)
        # Where both see they say it themselves; the first one is asked for the rest alone.
        assert [stack is not None for stack in spread.stacks] == [one is first for one in used]


def test_it_ranks_the_true_error(stacks):
    joined = joined_of(*stacks.values())
    found = map_combined_error(joined.spread)
    truth = 800 * sampled(joined.voxels.shape, stacks["axial"].thin.affine)
    true = np.abs(joined.voxels - truth)[:39, :39, :39].reshape(13, 3, 13, 3, 13, 3).mean(axis=(1, 3, 5)).ravel()
    expected = found.volume.voxels[:13, :13, :13].ravel()
    rank = [np.argsort(np.argsort(one)) for one in (true, expected)]
    assert np.corrcoef(*rank)[0, 1] > 0.6


def test_python_and_the_command_line_write_it(run, tmp_path):
    files = [save(make_stack(axis), tmp_path / f"{axis}.nii.gz") for axis in (2, 1)]
    words = ["-i", *files, "--no-registration", "--overwrite"]
    code, _, err = run("combine", *words, "-o", tmp_path / "c.nii", "--expected-error", tmp_path / "e.nii.gz",
                       "--report", tmp_path / "c.html")  # fmt: skip
    assert (code, err) == (0, [])
    done = thinslice.combine(files, registration=False)
    done.save(tmp_path / "d.nii", expected_error=tmp_path / "f.nii.gz")
    found, again = (formats.read(tmp_path / name) for name in ("e.nii.gz", "f.nii.gz"))
    np.testing.assert_array_equal(found.voxels, again.voxels)
    np.testing.assert_array_equal(found.voxels, done.expected_error.voxels)
    assert found.voxels.dtype == np.float32
    assert found.shape == (14, 14, 14)
    np.testing.assert_allclose(found.affine[:3, :3], CELL * np.eye(3), atol=1e-5)
    text = (tmp_path / "c.html").read_text()
    for word in (
        "expected error",
        "answers to the stacks are apart",
        "checked against known truth of simulated stacks",
    ):
        assert word in text


@catches("cli/combine.py", "check_expects_error(settings.model)", "pass")
def test_of_an_interpolation_it_is_not_known(run, tmp_path, monkeypatch):
    files = [save(make_stack(axis), tmp_path / f"{axis}.nii.gz") for axis in (2, 1)]
    before = names(tmp_path)
    page = tmp_path / "c.html"
    monkeypatch.setattr("thinslice.pipeline.read_scan", lambda *_: pytest.fail("a scan was read"))
    code, _, err = run(
        "combine", "-i", *files, "-o", tmp_path / "c.nii", "--expected-error", tmp_path / "e.nii", *PLAIN
    )
    assert (code, len(err)) == (2, 1)
    assert "got --expected-error of stacks that cubic made thin" in err[0]
    assert names(tmp_path) == before
    monkeypatch.undo()
    done = thinslice.combine(files, registration=False, model="cubic")
    assert done.expected_error is None
    with pytest.raises(OutputRefused, match="of an interpolation it is not known"):
        done.save(tmp_path / "c.nii", expected_error=tmp_path / "e.nii", report=page)
    assert names(tmp_path) == before
    done.save(tmp_path / "c.nii", report=page)
    assert "not known of an interpolation" in page.read_text()


def test_a_model_whose_size_was_not_checked_says_so(tmp_path):
    done = thinslice.combine([make_stack(2), make_stack(1)], registration=False)
    stacks = tuple(replace(one, plan=replace(one.plan, model_sha256="other")) for one in done.stacks)
    replace(done, stacks=stacks).save(tmp_path / "c.nii", report=tmp_path / "c.html")
    assert "its size was not checked" in (tmp_path / "c.html").read_text()


def test_stacks_of_unknown_models_have_none(stacks):
    used = [replace(stacks["axial"], model=None), replace(stacks["coronal"], model=interpolation("cubic"))]
    assert map_combined_error(joined_of(*used).spread) is None


def test_the_empty_places_of_a_grid_have_none():
    scans = [make_stack(2, np.float32), make_stack(1, np.float32)]
    like = Volume(np.zeros((24, 24, 40), np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    done = thinslice.combine(scans, registration=False, grid=like)
    found = done.expected_error.voxels
    assert (found[:, :, -10:] == 0).all()
    assert found[:8, :8, :8].any()
