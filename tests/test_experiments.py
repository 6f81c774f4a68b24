"""What the experiment with planes makes of its scores."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from thinslice.weights import find_model

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
