"""The networks for planes that ship with the package, from the command line: what they do, and what they refuse."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from faults import catches
from make_scans import save_scan
from planning import plan_for
from test_cli import names
from thinslice.cli.enhance import SAMPLE
from thinslice.compute.consistency import check
from thinslice.compute.planes import enlarge_slices
from thinslice.compute.upsample import upsample
from thinslice.io.nifti import read
from thinslice.models.plane_networks import enlarge_depth, enlarging_matrix
from thinslice.models.protocol import Enlarger
from thinslice.models.registry import embedded_names, find_model
from thinslice.physics.acquisition import Acquisition
from thinslice.plan import Plan
from thinslice.volume import through_plane_axis

FAMILIES = ("planes-mr", "planes-ct")
METAL, SOFT, AIR = 4000, 40, -1000
GAIN = 0.98
"""Share of Lanczos' error that may remain."""


@pytest.fixture
def chest(tmp_path):
    """Air around a body with two lungs, a spine and a piece of metal, in Hounsfield units, slices 3 mm apart."""
    x, y, z = np.indices((64, 56, 12)) - np.array([31.5, 27.5, 5.5])[:, None, None, None]
    voxels = np.where(np.hypot(x / 1.2, y) < 24, SOFT, AIR)
    voxels = np.where(np.hypot(x / 1.2, y) > 21, np.where(voxels == SOFT, -100, voxels), voxels)
    for side in (-1, 1):
        voxels = np.where(np.hypot(x - side * 12, y + z / 3) < 8, -850, voxels)
    voxels = np.where(np.hypot(x, y - 14) < 4, 700, voxels)
    voxels = np.where(np.maximum(abs(x), abs(y + 15)) < 3, METAL, voxels)
    noisy = voxels + np.random.default_rng(0).normal(0, 8, voxels.shape).round()
    affine = np.diag([0.7, 0.7, 3.0, 1.0])
    affine[:3, 3] = [10.0, -20.0, 30.0]
    return save_scan(tmp_path / "chest.nii.gz", np.maximum(noisy, -1024).astype(np.int16), affine)


def test_both_families_have_both_parts_and_factors_in_tens_of_thousands_of_parameters():
    assert set(FAMILIES) <= set(embedded_names())
    for name in FAMILIES:
        model = find_model(name)
        assert set(model.planes) == {(part, factor) for part in ("in-plane", "depth") for factor in (2, 4)}
        assert model.envelope.hounsfield == (name == "planes-ct")
        for card in model.card["parts"]:
            assert 10_000 < card["parameters"] < 100_000
            assert all(row["licence"] for row in card["data"])


@pytest.mark.parametrize(("factor", "in_plane"), [(2, 1), (4, 1), (2, 2), (4, 4), (4, 2)])
def test_hounsfield_units_go_in_and_come_out(run, chest, tmp_path, factor, in_plane):
    out = tmp_path / "thin.nii.gz"
    words = ["--factor", factor, *(["--in-plane", in_plane] if in_plane > 1 else [])]
    code, said, _ = run("enhance", "--model", "planes-ct", "-i", chest, "-o", out, *words)
    assert code == 0, said
    before, after = read(chest), read(out)
    assert after.voxels.dtype == np.int16
    assert after.shape == (64 * in_plane, 56 * in_plane, 12 * factor)
    starts = [v.affine @ [-0.5, -0.5, -0.5, 1] for v in (before, after)]
    np.testing.assert_allclose(*starts, atol=1e-4)
    ends = [v.affine @ [*(n - 0.5 for n in v.shape), 1] for v in (before, after)]
    np.testing.assert_allclose(*ends, atol=1e-4)
    assert after.voxels.min() < -1000  # air is not clipped away
    assert after.voxels.max() > 0.95 * METAL  # nor is metal
    body = after.voxels[28 * in_plane : 36 * in_plane, 24 * in_plane : 32 * in_plane]
    assert abs(float(np.median(body)) - SOFT) < 8
    report = json.loads((tmp_path / "thin.json").read_text())
    plan = Plan.from_json(json.dumps(report["plan"]))
    assert (plan.factor, plan.in_plane, plan.model) == (factor, in_plane, "planes-ct")


def test_without_in_plane_enlargement_the_depth_network_runs_alone():
    thick = read(SAMPLE)
    model = find_model("planes-mr")

    def never(planes, base):
        raise AssertionError("the in-plane network was asked")

    planes = {key: Enlarger(never, (8, 8)) if key[0] == "in-plane" else net for key, net in model.planes.items()}
    plan = plan_for(thick, factor=2, model=model.name, envelope=model.envelope)
    thin = upsample(thick, plan, replace(model, planes=planes)).volume
    assert [a // b for a, b in zip(thin.shape, thick.shape, strict=True)] == [1 + (i == plan.axis) for i in range(3)]
    assert check(thick, thin, plan).rms_percent < 0.2
    both = plan_for(thick, factor=2, in_plane=2, model=model.name, envelope=model.envelope)
    with pytest.raises(AssertionError, match="in-plane network"):
        upsample(thick, both, replace(model, planes=planes))


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("part", ["in-plane", "depth"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_embedded_weights_beat_lanczos_on_what_they_never_saw(name, part, factor, chest):
    """In-plane detail of the bundled spine, and a body of ellipses; made small by a slice profile."""
    if name == "planes-mr":
        thick = read(SAMPLE)
        truth = np.moveaxis(thick.voxels, through_plane_axis(thick), 0)[8:12, 60:188, 60:188].astype(np.float32)
    else:
        truth = np.moveaxis(read(chest).voxels, 2, 0)[:4, :, :56].astype(np.float32)
    truth = (truth - truth.min()) / np.ptp(truth)
    truth = truth if part == "in-plane" else np.ascontiguousarray(truth.swapaxes(0, 1))
    shrink = [
        Acquisition((np.arange(n // factor) + 0.5) * factor - 0.5, n, factor, "gaussian").matrix() for n in truth.shape
    ]
    network = find_model(name).planes[part, factor]
    if part == "in-plane":
        small = (shrink[1] @ truth @ shrink[2].T).astype(np.float32)
        answers = [enlarge_slices(small, factor, base, net)[0] for base, net in (("lanczos", None), ("cubic", network))]
    else:
        small = np.tensordot(shrink[0], truth, axes=1).astype(np.float32)
        around = np.pad(small, ((8, 8), (0, 0), (0, 0)), mode="edge")
        lanczos = np.tensordot(enlarging_matrix(len(small), factor, "lanczos"), small, axes=1)
        answers = [lanczos, enlarge_depth(around, 8, factor, "cubic", network)]
    errors = [float(np.sqrt(np.mean((answer - truth) ** 2))) for answer in answers]
    assert errors[1] < GAIN * errors[0], errors


@pytest.mark.parametrize("in_plane", [1, 2])
def test_fused_is_another_answer_of_the_same_shape(run, chest, tmp_path, in_plane):
    answers = []
    for name, words in (("once", []), ("fused", ["--fuse"])):
        out = tmp_path / f"{name}.nii"
        words = [*words, "--factor", 2, "--in-plane", in_plane]
        assert run("enhance", "--model", "planes-ct", "-i", chest, "-o", out, *words)[0] == 0
        answers.append(read(out).voxels.astype(float))
    assert answers[0].shape == answers[1].shape
    difference = np.abs(answers[0] - answers[1])
    assert difference.max() > 0
    assert difference.mean() < 20


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--model", "planes-ct", "--factor", 3], "got a factor of 3 .*need 2 or 4"),
        (["--model", "planes-ct", "--factor", 2, "--in-plane", 3], "got --in-plane 3 .*need 1 or 2 or 4"),
        (["--model", "planes-ct", "--factor", 2, "--grid", "centres"], "got --grid centres"),
        (["--model", "planes-ct", "--factor", 2, "--thickness", 9], "got a thickness of 9 mm"),
        (["--model", "default", "--factor", 2, "--in-plane", 2], "got --in-plane 2 .*need 1"),
        (["--model", "cubic", "--factor", 2, "--fuse"], "got --fuse for cubic"),
        (["--model", "planes"], "got model 'planes'; need one of .*planes-ct, planes-mr"),
    ],
)
def test_what_a_model_does_not_have_is_one_line(run, chest, tmp_path, words, reason):
    refused(run, chest, tmp_path / "out", words, reason)


@catches("models/hounsfield.py", "np.mean(voxels < DARKEST_HOUNSFIELD) > DARKEST_SHARE", "False")
@catches("models/hounsfield.py", "lowest > WINDOW_HOUNSFIELD and np.mean(voxels == lowest) > WINDOW_SHARE", "False")
@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda v: v + 1024, "got values from 0 to"),  # stored with an offset that was lost
        (lambda v: np.clip((v + 160) * 255 / 400, 0, 255), "got values from 0 to 255"),  # a window
        (lambda v: np.clip(v, -160, 240), "got values from -160 to 240 .*cut off"),  # a window, its numbers kept
        (lambda v: v * 20.0, "got values from -20480 to"),
        (lambda v: v * 3.0, "got values from .*darker than air"),
        (lambda v: np.minimum(v, -900), "got values from -1024 to -900 .*soft tissue"),
        (lambda v: np.zeros_like(v), "got values from 0 to 0"),
        (lambda v: np.random.default_rng(0).integers(-4096, 4095, v.shape), "got values from -409"),  # a phase image
    ],
)
def test_values_that_are_not_hounsfield_units_are_one_line(run, chest, tmp_path, change, got):
    thick = read(chest)
    other = save_scan(tmp_path / "other.nii", change(thick.voxels.astype(np.float32)), thick.affine)
    refused(run, other, tmp_path / "out", ["--model", "planes-ct", "--factor", 2], f"{got}.*need Hounsfield units")


def test_magnetic_resonance_given_to_a_model_for_tomography_is_one_line(run, tmp_path):
    refused(run, SAMPLE, tmp_path / "out", ["--model", "planes-ct", "--factor", 2], "computed tomography")


def refused(run, scan, folder, words, reason):
    folder.mkdir()
    code, said, complained = run("enhance", "-i", scan, "-o", folder / "thin.nii", *words)
    assert code == 2
    assert said == []
    assert len(complained) == 1
    assert re.search(f"{reason}.*next: ", complained[0]), complained[0]
    assert names(folder) == []


def test_a_window_that_cut_off_what_is_bright_is_noted(run, chest, tmp_path):
    thick = read(chest)
    other = save_scan(tmp_path / "lung.nii", np.clip(thick.voxels, -1000, 400), thick.affine)
    code, said, _ = run("enhance", "-i", other, "-o", tmp_path / "thin.nii", "--model", "planes-ct", "--factor", 2)
    assert code == 0
    assert any("highest value, 400: if that is a window" in line for line in said)


@catches("io/encoding.py", "and not AIR[0] <= low <= AIR[1] else", "else")
def test_missing_voxels_of_tomography_are_air(chest, tmp_path):
    thick = read(chest)
    voxels = thick.voxels.astype(np.float32)
    voxels[:8] = np.nan
    again = read(save_scan(tmp_path / "missing.nii", voxels, thick.affine))
    assert (again.voxels[:8] == np.nanmin(voxels)).all()
