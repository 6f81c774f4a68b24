"""What the experiment with adaptation makes of its scores, and how it compares two stacks of one person."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from thinslice.volume import Volume

SCRIPT = Path(__file__).parents[1] / "experiments" / "adaptation.py"


@pytest.fixture(scope="module")
def experiment():
    pytest.importorskip("scipy")
    spec = importlib.util.spec_from_file_location("adaptation_experiment", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stacks(shift_mm=0.0):
    """The same structure, thin and 1 mm everywhere, and as sagittal slices 4 mm apart."""
    x, y, z = np.indices((48, 40, 44)).astype(np.float64)
    thin = 100 + 20 * np.sin(x / 1.7) * np.cos(y / 2.1) + 20 * np.sin(z / 1.9 + x / 3) + 10 * np.cos(y * z / 50)
    moved = np.eye(4)
    moved[2, 3] = shift_mm
    weights = np.exp(-4 * np.log(2) * ((np.arange(48)[None] - (1.5 + 4 * np.arange(12)[:, None])) / 4) ** 2)
    thick = np.tensordot(weights / weights.sum(axis=1, keepdims=True), thin, axes=1)
    affine = np.diag([4.0, 1, 1, 1])
    affine[0, 3] = 1.5
    return Volume(thin.astype(np.float32), moved), Volume(thick.astype(np.float32), affine)


def test_a_perfect_answer_agrees_with_the_other_stack(experiment):
    assert experiment.agreement(*stacks()) > 0.995


@pytest.mark.parametrize("shift_mm", [0.5, -0.5, 1.0])
def test_half_a_voxel_between_the_stacks_shows(experiment, shift_mm):
    assert experiment.agreement(*stacks(shift_mm)) < experiment.agreement(*stacks()) - 0.01


def test_the_table_has_a_line_for_every_cell_and_the_mean_of_its_scans(experiment):
    records = [
        {
            "case": case,
            "start": start,
            "adaptation": how,
            "gain_db": gain,
            "fused_gain_db": gain + 0.5 if how == "per-scan" else None,
            "kept_start": kept,
        }
        for start, how, case, gain, kept in [
            ("mr", "none", "a", 1.0, None),
            ("mr", "none", "b", 2.0, None),
            ("mr", "per-scan", "a", 1.5, False),
            ("mr", "per-scan", "b", 2.0, True),
        ]
    ]
    lines = experiment.table(records).splitlines()
    assert "| mr | none | +1.500 | +1.000 | +2.000 |  |  |" in lines
    assert "| mr | per-scan | +1.750 | +1.500 | +2.000 | 1 of 2 | +2.250 |" in lines
    assert len(lines) == 4


def test_every_cell_of_the_paper_is_there(experiment):
    cells = set(experiment.cells())
    assert {(s, h) for s in ("nothing", "video", "mr", "video+mr") for h in ("none", "data-set", "per-scan")} <= cells
    assert ("mr", "truth") in cells


def test_the_table_of_real_scans_tells_what_was_kept(experiment):
    knees = dict.fromkeys(experiment.KNEES, 0.5)
    records = [
        {"start": "cubic", "adaptation": "none", "agreement": knees, "held_out_change": [], "kept_start": []},
        {
            "start": "mr",
            "adaptation": "per-scan",
            "agreement": knees,
            "held_out_change": [-0.02, 0.0],
            "kept_start": [False, True],
        },
    ]
    lines = experiment.real_table(records).splitlines()
    assert lines[2] == "| cubic | none | 0.5000 | 0.5000 |  |  |"
    assert lines[3] == "| mr | per-scan | 0.5000 | 0.5000 | -1.0 | 1 of 2 |"


def test_a_curve_keeps_its_points_when_the_training_goes_on(experiment, tmp_path, monkeypatch):
    """Killed amid its second look, and gone on with; undisturbed, it would be the same."""
    torch = pytest.importorskip("torch")
    asked = []

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.settings = {}
            self.weight = torch.nn.Parameter(torch.zeros(1))

    class Objective:
        batches = staticmethod(lambda volumes, seed, network: lambda number: number)
        loss = staticmethod(lambda network, batch, device: (network.weight - batch).square().sum())

    def gain(network, scan):
        asked.append(scan)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return float(len(asked))

    monkeypatch.setattr(experiment, "_gain", gain)
    wish = (Objective, None, 10, tmp_path, [("scan",)])
    with pytest.raises(KeyboardInterrupt):
        experiment._trained(Network(), *wish)
    _, curve = experiment._trained(Network(), *wish)
    assert [step for step, _ in curve] == [2, 4, 6, 8, 10]
    assert [gain for _, gain in curve][:2] == [1.0, 2.0]
