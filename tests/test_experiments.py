"""What the experiment with planes makes of its scores."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from make_scans import save_scan
from thinslice.models.registry import find_model

SCRIPT = Path(__file__).parents[1] / "experiments" / "planes.py"


@pytest.fixture(scope="module")
def planes():
    pytest.importorskip("scipy")
    pytest.importorskip("skimage")
    spec = importlib.util.spec_from_file_location("planes_experiment", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def records(scores):
    """{(scanner, case, model, seed): decibels} of one part, factor and protocol."""
    return [
        {"scanner": s, "case": c, "part": "depth", "factor": 2, "protocol": "slices", "model": m, "seed": seed}
        | {"psnr_db": decibel, "ssim": 0.5}
        for (s, c, m, seed), decibel in scores.items()
    ]


def test_a_claim_is_paired_over_the_scans_and_averaged_over_the_seeds(planes):
    without = {("mr", "a", "0"): 20.0, ("mr", "a", "1"): 20.2, ("mr", "b", "0"): 30.0, ("mr", "b", "1"): 30.2}
    gains = {("mr", "a", "0"): 0.1, ("mr", "a", "1"): 0.3, ("mr", "b", "0"): 0.3, ("mr", "b", "1"): 0.5}
    scores = {(s, c, "plain", seed): value for (s, c, seed), value in without.items()}
    scores |= {(s, c, "loss", seed): value + gains[s, c, seed] for (s, c, seed), value in without.items()}
    scores |= {("ct", "c", "plain", "0"): 10.0, ("ct", "c", "loss", "0"): 9.0}
    lines = [line for line in planes.claims(records(scores)).splitlines() if "loss, no blur" in line]
    # two scans that gain 0.2 and 0.4: their standard error is 0.1, and t(97.5 %, 1) = 12.706
    assert "| mr | depth | 2 | slices | 2 | +0.300 ± 1.271 | +0.200, +0.400 |" in lines[0]
    assert "| ct | depth | 2 | slices | 1 | -1.000 | -1.000 |" in lines[1]
    assert "| all | depth | 2 | slices | 3 | -0.133 " in lines[2]
    assert len(lines) == 3


@pytest.mark.parametrize("part", ["in-plane", "depth", "both"])
def test_a_smooth_scan_loses_little_in_either_protocol(planes, part):
    """Half a voxel of shift between shrinking and enlarging would cost more than this."""
    x, y, z = np.indices((32, 40, 48))
    truth = (100 + 50 * np.sin(x / 9) * np.cos(y / 11) + 30 * np.cos(z / 10)).astype(np.float32)
    cubic = find_model("cubic")
    (picture,) = planes.pictures(truth, part, 2, cubic, False)
    slices = list(planes.thick_slices(truth, part, 2, cubic, False))
    assert picture[1] > 45
    assert all(decibel > 40 for _, decibel, _ in slices)


@pytest.mark.slow
def test_it_trains_scores_and_tells(planes, tmp_path, monkeypatch, capsys):
    """Two cells of one step on small volumes: each is trained once, and scored on every scan in both protocols."""
    pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    for folder, name in (("iso_train", "a"), ("iso_dev", "b"), ("ct", "c")):
        rough = rng.random((56, 52, 60))
        smooth = sum(np.roll(rough, shift, axis) for axis in range(3) for shift in (0, 1, 2)) / 9
        values = 2500 * smooth - 1000 if folder == "ct" else 200 * smooth
        (tmp_path / "data" / folder).mkdir(parents=True)
        spacing = (1.0, 1.0, 2.0 if folder == "ct" else 1.0, 1.0)
        save_scan(tmp_path / "data" / folder / f"{name}.nii.gz", values.astype(np.int16), np.diag(spacing))
    monkeypatch.setattr(planes, "beside", lambda jobs, work, calls: [work(*call) for call in calls])
    words = ["planes.py", "--data", tmp_path / "data", "-o", tmp_path / "out", "--steps", 1, "--seeds", 1, "--jobs", 1]
    monkeypatch.setattr("sys.argv", [*map(str, words), "--only", "plain", "loss"])
    assert planes.main() == 0
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/*.onnx")}
    assert len(made) == 2 * 8
    told = (tmp_path / "out" / "table.md").read_text()
    assert told in capsys.readouterr().out
    for scanner in ("mr", "ct"):
        for part, protocols in (("in-plane", 2), ("depth", 3)):
            for factor in (2, 4):
                rows = [line for line in told.splitlines() if line.startswith(f"| {scanner} | {part} | {factor} |")]
                assert len(rows) == protocols * (len(planes.BASELINES) + 2)
    assert told.count("| intermediate loss, no blur |") == 3 * 2 * (2 + 3)
    planes.main()
    assert {path: path.stat().st_mtime_ns for path in made} == made  # what is there is left alone


def test_what_was_learnt_from_is_not_scored(planes, tmp_path):
    sources = pytest.importorskip("thinslice.training.sources")
    voxels = np.broadcast_to(np.arange(50, dtype=np.int16), (8, 9, 50))
    path = save_scan(tmp_path / "ct.nii", voxels, np.diag([1.0, 1.0, 3.0, 1.0]))
    scored = planes.voxels(path, "ct", 0.5)
    assert scored.shape[1:] == (8, 9)
    assert scored.min() > 50 * sources.CT_SHARE


def test_a_model_is_not_scored_where_it_has_no_network(planes):
    truth = np.random.default_rng(0).random((16, 16, 16)).astype(np.float32)
    default = find_model("default")
    by_default = planes._enlarged(truth, "depth", 2, default, False)
    by_cubic = planes._enlarged(truth, "depth", 2, find_model("cubic"), False)
    assert by_default.shape == by_cubic.shape == (32, 16, 16)
    assert np.abs(by_default - by_cubic).max() > 1e-3
    with pytest.raises(KeyError):
        planes._enlarged(truth, "depth", 3, find_model("planes-mr"), False)
