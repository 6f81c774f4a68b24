"""What the benchmark of real scans makes of two stacks whose common truth is known."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from thinslice.evaluation.benchmark import simulate
from thinslice.io.nifti import write
from thinslice.volume import Volume

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "real_scans.py"


@pytest.fixture(scope="module")
def bench():
    pytest.importorskip("scipy")
    if not SCRIPT.is_file():
        pytest.skip("the benchmarks are not here")
    spec = importlib.util.spec_from_file_location("real_scans_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def anatomy():
    """Smooth noise on a dark ground, 40 x 36 x 32 voxels of a millimetre, turned and moved in the patient."""
    from scipy.ndimage import gaussian_filter

    voxels = gaussian_filter(np.random.default_rng(3).standard_normal((40, 36, 32)), 1.2)
    voxels = (200 + 400 * voxels / np.abs(voxels).max()).astype(np.float32)
    turn = np.deg2rad(12)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    affine[:3, 3] = (-30, 12, 7)
    return Volume(voxels, affine)


def test_what_the_other_stack_sees_of_the_truth_is_what_it_acquired(bench, anatomy):
    sagittal, coronal = (simulate(anatomy, axis, 4, profile="box")[1] for axis in (0, 1))
    truth = simulate(anatomy, 0, 4, profile="box")[0]
    seen = bench.seen_by(truth, coronal, 4.0)
    inside = (slice(2, -2), slice(1, -1), slice(2, -2))
    assert np.abs(seen - coronal.voxels)[inside].max() < 12  # of 800; a quarter of a voxel of shift makes 20 and more
    assert bench.facing_axis(sagittal, coronal) == 0
    assert bench.correlate_detail(seen, coronal, 0, sagittal) > 0.99
    moved = Volume(truth.voxels, truth.affine + np.eye(4, k=3) * 2.0)
    assert bench.correlate_detail(bench.seen_by(moved, coronal, 4.0), coronal, 0, sagittal) < 0.7


def test_a_stack_made_thicker_is_the_mean_of_neighbours_in_the_same_place(bench):
    voxels = np.arange(5.0, dtype=np.float32) * np.ones((4, 4, 1), np.float32)
    truth, thicker = bench.make_thicker(Volume(voxels, np.diag([1.0, 1.0, 3.0, 1.0])))
    assert truth.shape == (4, 4, 4)
    assert thicker.voxels[0, 0].tolist() == [0.5, 2.5]
    assert thicker.affine[2, 2:].tolist() == [6.0, 1.5]


def test_the_tables_have_a_row_for_every_answer_and_pictures_are_drawn(bench, anatomy, tmp_path):
    names = {0: "sagittal.nii.gz", 1: "coronal.nii.gz"}
    for axis, name in names.items():
        write(simulate(anatomy, axis, 4, profile="box")[1], tmp_path / name)
    case = bench.Case(names[0], {names[1]: 4.0}, (("gaussian", 4.0),))
    lines = list(bench.pair_table([case], tmp_path, ["cubic", "default"], tmp_path / "pictures"))
    assert lines[2].startswith("| sagittal | coronal | plain cubic |  |  | 0.")
    assert lines[3].startswith("| sagittal | coronal | default | nothing | ")
    assert lines[4].startswith("| sagittal | coronal | default | gaussian 4 mm | gaussian 4 mm | ")
    assert (tmp_path / "pictures" / "sagittal-against-coronal.png").is_file()
    lines = list(bench.thicker_table([tmp_path / names[0]], ["cubic"], tmp_path / "pictures"))
    assert len(lines) == 3
    assert lines[2].endswith("| +0.00 |")
    assert (tmp_path / "pictures" / "sagittal-thicker.png").is_file()
    hounsfield = bench.Case(names[0], {names[1]: 4.0}, (), hounsfield=True)
    assert len(list(bench.pair_table([hounsfield], tmp_path, ["cubic"], None))) == 3
