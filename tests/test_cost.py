"""What a plan will need is told, and refused, before anything is computed."""

import numpy as np
import pytest

from faults import catches
from thinslice.compute import cost
from thinslice.compute.cost import check_cost, estimate_cost
from thinslice.compute.upsample import _Lines
from thinslice.errors import PlanRefused
from thinslice.models.registry import find_model
from thinslice.pipeline import enhance_volume
from thinslice.plan import make_plan
from thinslice.settings import Settings
from thinslice.volume import Volume

CUBIC = find_model("cubic")


def scan(side=64, slices=8):
    voxels = np.random.default_rng(0).integers(0, 900, (side, side, slices)).astype(np.int16)
    return Volume(voxels, np.diag([1.0, 1, 4, 1]))


def limits(monkeypatch, memory=1e12, disk=1e15):
    monkeypatch.setattr(cost, "free_memory_bytes", lambda: int(memory))
    monkeypatch.setattr(cost, "free_disk_bytes", lambda folder: int(disk))


def advice(refusal):
    name, value = refusal.next.split("`")[1].split("=")
    return {name: int(value)}


@catches("pipeline.py", "    check_cost(acquired, plan", "    0 and check_cost(acquired, plan")
@pytest.mark.parametrize(
    ("asked", "there", "code", "words"),
    [
        ({"in_plane": 40}, {"memory": 2e8}, "too-much-memory", "of memory; need at most the 0.2 GB that are free"),
        ({"in_plane": 40}, {"disk": 1e9}, "too-much-room", "GB on a disk for a while; need at most the 1.0 GB"),
        ({"factor": 2000}, {"memory": 2e8}, "too-much-memory", "64 x 64 x 16000 voxels"),
    ],
)
def test_a_plan_beyond_the_machine_is_refused_with_an_advice_that_works(monkeypatch, asked, there, code, words):
    limits(monkeypatch, **there)
    monkeypatch.setattr("thinslice.pipeline.upsample", lambda *_: pytest.fail("it was begun"))
    with pytest.raises(PlanRefused) as refusal:
        enhance_volume(scan(), Settings(**asked), CUBIC)
    assert refusal.value.code == code
    assert words in str(refusal.value)
    plan = make_plan(scan(), Settings(**(asked | advice(refusal.value))), CUBIC)
    check_cost(scan(), plan, CUBIC, 2, refusal)


def test_days_of_computing_are_refused(monkeypatch):
    limits(monkeypatch)
    monkeypatch.setattr(cost, "INTERPOLATED_PER_SECOND", 100.0)
    with pytest.raises(
        PlanRefused, match=r"hours or more; need at most 24 hours a scan; next: give `in_plane="
    ) as refusal:
        enhance_volume(scan(128, 20), Settings(in_plane=4), CUBIC)
    assert refusal.value.code == "too-much-time"


def test_usual_plans_are_never_refused_where_there_is_a_gigabyte(monkeypatch):
    limits(monkeypatch, memory=1e9, disk=1e9)
    for model in (CUBIC, find_model("default")):
        for settings in (Settings(), Settings(factor=2), Settings(spacing_mm=0.8)):
            plan = make_plan(scan(256, 24), settings, model)
            check_cost(scan(256, 24), plan, model, 2, None)


def test_the_matrices_along_the_slices_are_within_the_estimate():
    """They alone grow with the square of the factor."""
    plan = make_plan(scan(8, 60), Settings(factor=60), CUBIC)
    to_thin, keep, *_ = _Lines(plan, "cubic").matrices(24, 32)
    held = to_thin.nbytes + keep.nbytes
    estimated = estimate_cost(plan, CUBIC, 1, 2, 1).memory_bytes
    assert 0.4 * estimated < held < estimated


def test_info_says_so_too(tmp_path, run, monkeypatch):
    import nibabel as nib

    limits(monkeypatch, memory=2e8)
    nib.save(nib.Nifti1Image(scan().voxels, scan().affine), tmp_path / "scan.nii.gz")
    code, out, err = run("info", "-i", tmp_path / "scan.nii.gz", "--model", "cubic", "--in-plane", 40)
    assert (code, out[-1]) == (2, "would  refuse")
    assert "of memory are" not in err[0]
    assert "next: give --in-plane" in err[0]
