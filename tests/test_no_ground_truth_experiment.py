"""What the experiment on learning without ground truth pairs, and what it makes of its scores."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from thick_scans import thick_volume

pytest.importorskip("torch", reason="training needs torch, which comes with thinslice[train]")
pytest.importorskip("scipy", reason="the knees are compared with scipy, which comes with thinslice[train]")

from planning import plan_for
from thinslice.training.slices import make_stack
from thinslice.training.usable_scans import UsableScan

SCRIPT = Path(__file__).parents[1] / "experiments" / "no_ground_truth.py"


@pytest.fixture(scope="module")
def experiment():
    spec = importlib.util.spec_from_file_location("no_ground_truth_experiment", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pairs():
    """A scan's slices, and a thin volume in which every one comes by itself, plus one, plus one, and by itself."""
    volume = thick_volume()
    stack = make_stack(UsableScan("a", Path("a.nii"), volume, plan_for(volume, model="cubic"), ""))
    thin = np.repeat(stack.slices.astype(np.float32), 4, axis=0) + np.tile([0, 1, 1, 0], 10).reshape(-1, 1, 1)
    return [(stack, thin)]


@pytest.mark.parametrize("step", range(6))
def test_a_real_slice_is_paired_with_the_four_thin_ones_in_its_place(experiment, pairs, step):
    context = 4
    batch = experiment.paired_batch_at(step, pairs, context)
    assert batch.thick.shape == (3, experiment.SLABS + 2 * context, 48, 48)
    assert batch.truth.shape == batch.cubic.shape == (3, 4 * experiment.SLABS, 48, 48)
    for thick, truth in zip(batch.thick, batch.truth, strict=True):
        inner = thick[context : context + experiment.SLABS]
        within = truth.reshape(experiment.SLABS, 4, 48, 48) - inner[:, None]
        gain = within[0, 1].mean() - within[0, 0].mean()
        assert 0.4 < abs(gain) < 1.7
        wanted = gain * np.array([0, 1, 1, 0]).reshape(1, 4, 1, 1)
        np.testing.assert_allclose(within, np.broadcast_to(wanted, within.shape), atol=0.1)  # noise of 2 % at most


def test_its_matrix_is_that_of_the_acquisition(experiment, pairs):
    batch = experiment.paired_batch_at(0, pairs, 4)
    centres = batch.matrix @ np.arange(16)
    np.testing.assert_allclose(centres[1:-1], [5.5, 9.5], atol=5e-3)  # tails are cut off at the ends
    np.testing.assert_allclose(batch.matrix.sum(axis=1), 1, atol=1e-6)


def test_cubic_interpolation_keeps_what_the_slices_are(experiment, pairs):
    batch = experiment.paired_batch_at(1, pairs, 4)
    means = batch.cubic.reshape(3, experiment.SLABS, 4, 48, 48).mean(axis=2)
    inner = batch.thick[:, 4 : 4 + experiment.SLABS]
    assert np.corrcoef(means.ravel(), inner.ravel())[0, 1] > 0.95


def test_the_tables_have_a_line_for_every_arm(experiment):
    records = [
        {"case": case, "arm": arm, "psnr_db": 20 + gain, "gain_db": gain, "ssim": 0.5, "guard": 0.25}
        for arm, case, gain in [("cubic", "a", 0.0), ("cubic", "b", 0.0), ("iv", "a", 0.25), ("iv", "b", 0.75)]
    ]
    lines = experiment.table(records).splitlines()
    assert lines[0] == "| arm | PSNR dB | SSIM | mean gain dB | a | b | guard % |"
    assert lines[-1] == "| iv | 20.50 | 0.5000 | +0.500 | +0.250 | +0.750 | 25.0 |"
    real = experiment.real_table([{"arm": "iv", "agreement": {"knee_pdfs_sag": 0.25, "knee_pdfs_cor": 0.5}}])
    assert real.splitlines()[-1] == "| iv | 0.2500 | 0.5000 |"
