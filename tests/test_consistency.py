"""The report: what it measures is what it says, and its file is whole or not there."""

import json
from dataclasses import replace

import numpy as np
import pytest

from faults import catches
from planning import plan_for
from thinslice.compute.consistency import check, make_report, read_plan_beside
from thinslice.compute.guard import GuardCount
from thinslice.compute.upsample import upsample
from thinslice.models.registry import find_model
from thinslice.plan import Plan
from thinslice.volume import Volume


def scan(shape: tuple[int, ...] = (50, 40, 8), axis: int = 2) -> Volume:
    random = np.random.default_rng(0)
    voxels = np.cumsum(random.normal(size=shape), axis=0) * 20 + 300
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = 4.0
    return Volume(voxels.astype(np.float32), np.diag([*spacing, 1.0]))


def answered(volume: Volume, **wish: float | bool) -> tuple[Volume, Plan]:
    plan = plan_for(volume, factor=4, **wish)
    return upsample(volume, plan, find_model("cubic")).volume, plan


@pytest.mark.parametrize("axis", range(3))
def test_it_is_the_difference_to_the_acquired_slices(axis):
    shape = [37, 41, 43]
    shape[axis] = 8
    volume = scan(tuple(shape), axis)
    thin, plan = answered(volume, projection=False)
    found = check(volume, thin, plan)
    again = np.tensordot(plan.acquisition().matrix(), np.moveaxis(thin.voxels, axis, 0).astype(np.float64), axes=1)
    difference = again - np.moveaxis(volume.voxels, axis, 0)
    assert found.rms == pytest.approx(np.sqrt(np.mean(difference**2)))
    assert found.worst == pytest.approx(np.abs(difference).max())
    low, high = np.percentile(volume.voxels, [0.5, 99.5])
    assert found.rms_percent == pytest.approx(100 * found.rms / (high - low), rel=1e-5)
    assert found.worst_percent == pytest.approx(100 * found.worst / (high - low), rel=1e-5)


def test_it_is_told_in_units_of_the_noise_where_there_is_any():
    volume = scan()
    thin, plan = answered(volume, projection=False)
    assert check(volume, thin, plan).rms_in_noise is None
    assert check(volume, thin, replace(plan, slice_noise=0.004)).rms_in_noise is None
    found = check(volume, thin, replace(plan, slice_noise=0.02))
    assert found.rms_in_noise == pytest.approx(found.rms_percent / 2)
    assert found.in_noise == f", {found.rms_percent / 2:.2g} times the noise of the slices"


def test_projection_makes_it_agree_and_faults_show():
    volume = scan()
    thin, plan = answered(volume, noise=0.0)
    assert check(volume, thin, plan).worst_percent < 0.1
    for fault in (np.roll(thin.voxels, 1, axis=2), thin.voxels * 1.05, thin.voxels[:, :, ::-1]):
        assert check(volume, replace(thin, voxels=fault), plan).rms_percent > 1


def test_clipped_voxels_are_said():
    volume = scan()
    thin, plan = answered(volume)
    assert not any("clipped" in note for note in make_report(volume, thin, plan, GuardCount(), 1.0).notes)
    report = make_report(volume, thin, plan, GuardCount(), 1.0, clipped=1234)
    assert any("1,234 of" in note and "clipped" in note for note in report.notes)


def test_units_and_offset_do_not_change_the_percentages():
    volume = scan()
    thin, plan = answered(volume, projection=False)
    found = check(volume, thin, plan)
    moved = check(replace(volume, voxels=volume.voxels * 10 - 500), replace(thin, voxels=thin.voxels * 10 - 500), plan)
    assert moved.rms == pytest.approx(10 * found.rms, rel=1e-4)
    assert moved.rms_percent == pytest.approx(found.rms_percent, rel=1e-4)


@catches("compute/consistency.py", "mean_square / scale**2", "mean_square / scale[0] ** 2")
def test_every_volume_of_a_series_counts_in_its_own_range():
    one = scan()
    series = replace(one, voxels=np.stack([one.voxels, one.voxels * 100], axis=3))
    thin, plan = answered(one, projection=False)
    thin_series = replace(thin, voxels=np.stack([thin.voxels, thin.voxels * 100], axis=3))
    found, single = check(series, thin_series, plan), check(one, thin, plan)
    assert found.rms_percent == pytest.approx(single.rms_percent, rel=1e-4)
    assert found.worst == pytest.approx(100 * single.worst, rel=1e-4)


@catches("compute/consistency.py", '[seen][band].astype(np.float64, order="C")', "[seen][band].astype(np.float32)")
def test_wide_integers_are_measured_exactly():
    volume = replace(scan(), voxels=np.full((5, 5, 4), 2**31 - 5, np.int32))
    plan = plan_for(volume, factor=4)
    thin = replace(volume, voxels=np.full(plan.shape_thin, 2**31 - 6, np.int32))
    assert check(volume, thin, plan).rms == pytest.approx(1.0, abs=1e-4)


def test_the_file_is_readable_and_gives_the_plan_back(tmp_path):
    volume = scan()
    thin, plan = answered(volume)
    report = make_report(volume, thin, plan, GuardCount(cells=200, suspect=3), 1.5)
    report.save(tmp_path / "answer.json")
    content = json.loads((tmp_path / "answer.json").read_text())
    assert content["model"] == {"name": "cubic", "sha256": None}
    assert content["seconds"] == 1.5
    assert content["guard"] == {"cells": 200, "fell_back": 3, "fell_back_share": 0.015}
    assert content["consistency"]["rms"] == check(volume, thin, plan).rms
    assert any("3 of 200 cells (1.5 %)" in note for note in content["notes"])
    assert read_plan_beside(tmp_path / "answer.nii.gz") == plan
    assert read_plan_beside(tmp_path / "answer_labels.nii.gz", thin) == plan
    elsewhere = replace(thin, affine=thin.affine + np.outer([0, 0, 0.1, 0], [0, 0, 0, 1]))
    for other in (volume, elsewhere):
        assert read_plan_beside(tmp_path / "answer.nii.gz", other) is None, "the plan of another grid"
    assert [path.name for path in tmp_path.iterdir()] == ["answer.json"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"plan": 3}', '{"plan": {"axis": 2}}', "\xff"])
def test_a_foreign_file_beside_the_scan_holds_no_plan(tmp_path, content):
    (tmp_path / "scan.json").write_text(content, encoding="latin-1")
    assert read_plan_beside(tmp_path / "scan.nii") is None
    assert read_plan_beside(tmp_path / "none.nii") is None
    assert read_plan_beside(tmp_path / "scan.png") is None


def test_a_failed_save_leaves_nothing(tmp_path):
    volume = scan()
    thin, plan = answered(volume)
    (tmp_path / "answer.json").mkdir()
    with pytest.raises(OSError, match="answer"):
        make_report(volume, thin, plan, GuardCount(), 1.0).save(tmp_path / "answer.json")
    assert [path.name for path in tmp_path.iterdir()] == ["answer.json"]
