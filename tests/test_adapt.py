"""Laws of an adaptation: the best look is kept if it is better, nothing if not; and it can be killed at any moment."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from time import monotonic
from types import SimpleNamespace

import numpy as np
import pytest

import thinslice
from planning import plan_for
from thick_scans import make_quick, save_start, save_thick, small_network, thick_volume
from thinslice.compute.upsample import upsample
from thinslice.errors import ModelRefused, OutputRefused
from thinslice.io import nifti
from thinslice.models.registry import find_model, models_for
from thinslice.volume import Volume

pytest.importorskip("torch", reason="training needs torch, which comes with thinslice[train]")
pytest.importorskip("onnx", reason="the export needs onnx, which comes with thinslice[train]")
pytest.importorskip("scipy", reason="the slices are turned with scipy, which comes with thinslice[train]")

import torch

from faults import catches
from thinslice.networks.registry import Architecture
from thinslice.settings import Settings
from thinslice.training import objectives, run_state, validation
from thinslice.training import usable_scans as reading
from thinslice.training.export import load_weights
from thinslice.training.fit import Schedule
from thinslice.training.model_outputs import name_models
from thinslice.training.objectives import SelfSupervisedObjective
from thinslice.training.recipes import adapt as adapting
from thinslice.training.validation import NOT_BEFORE, PATIENCE

STEPS = 6
OF_THE_TIME = validation.rest_of
"""Before `make_quick` replaces it."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    make_quick(monkeypatch, STEPS)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return save_start(tmp_path_factory.mktemp("start") / "start.onnx")


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    return save_thick(tmp_path_factory.mktemp("scans") / "scan.nii.gz")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, scan, start):
    """One adaptation of `STEPS` steps: (what it said of itself, lines of progress)."""
    said = []
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch, STEPS)
        (done,) = adapt([scan], tmp_path_factory.mktemp("out") / "mine", start=start, steps=STEPS, report=said.append)
    return done, said


def adapt(paths, output, start="default", spacing_mm=None, factor=None, thickness_mm=None, profile=None, **options):
    settings = Settings(str(start), spacing_mm, factor, thickness_mm, profile)
    return adapting.adapt(paths, output, settings, **options)


def records_of(card):
    return card["validation"]["adapt"]["records"]


def weights_of(path):
    network = small_network()
    load_weights(network, path)
    return network.state_dict()


def differ(one, other):
    """The largest difference of the weights of two models."""
    one, other = weights_of(one), weights_of(other)
    return max((one[name] - other[name]).abs().max().item() for name in one)


def answer_of(wish, volume):
    model = find_model(str(wish))
    return upsample(volume, plan_for(volume, envelope=model.envelope), model).volume.voxels


def card_of(path):
    return json.loads(Path(path).with_suffix(".json").read_text())


def quiet(line):
    pass


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ---- what comes of it


@catches(
    "training/validation.py", 'one["held_out"] < first["held_out"] and', 'one["held_out"] >= first["held_out"] and'
)
@catches("training/sources.py", "scans = [scan for scan, _ in inputs.scans]", "scans = list(inputs.scans)")
def test_the_answer_is_a_model_of_that_name(undisturbed, start):
    done, _ = undisturbed
    assert done.adapted
    assert done.model.name == "mine.onnx"
    assert files_in(done.model.parent) == ["mine.json", "mine.onnx"]
    by_name, by_file = (find_model(str(wish)) for wish in (done.model.with_suffix(""), done.model))
    assert by_name.sha256 == by_file.sha256 != find_model(str(start)).sha256
    assert differ(done.model, start) > 0.001


@catches(
    "training/validation.py",
    "since >= PATIENCE and self._share_done(step)",
    "since >= PATIENCE or self._share_done(step)",
)
def test_its_card_says_what_it_learnt_from_and_what_came_of_it(undisturbed, start, scan):
    done, said = undisturbed
    card, model = card_of(done.model), find_model(str(done.model))
    assert card["sha256"] == model.sha256
    assert {key: value for key, value in card.items() if key != "sha256"} == model.card
    assert (card["name"], card["adapted"]) == ("mine", True)
    assert [row["file"] for row in card["adapted_to"]] == [scan.name] == list(done.scans)
    assert card["started_from"]["sha256"] == find_model(str(start)).sha256
    looks = records_of(card)
    assert [look["step"] for look in looks] == [0, 2, 4, 6]
    best = min(looks, key=lambda look: look["score"])
    assert card["held_out_loss"]["before"] == looks[0]["held_out"] == done.held_out[0]
    assert card["held_out_loss"]["after"] == best["held_out"] == done.held_out[1]
    assert card["share"] == best["share"] > 0
    assert card["trained"]["adapt"]["steps"] == done.steps == STEPS
    assert card["envelope"] == card_of(start)["envelope"]
    assert len([line for line in said if "held-out loss" in line]) == len(looks)


def test_one_may_go_on_from_an_adapted_model_by_its_name(undisturbed, scan, tmp_path):
    done, _ = undisturbed
    (again,) = adapt([scan], tmp_path / "more", start=done.model.with_suffix(""), steps=2, report=quiet)
    assert card_of(again.model)["started_from"]["sha256"] == card_of(done.model)["sha256"]


@catches("training/validation.py", 'return bool(self.best()["score"] < 1 - LEAST_GAIN)', "return True")
@pytest.mark.parametrize("rate", [0.0, 30.0])
def test_where_the_held_out_loss_does_not_fall_the_file_is_the_start(run, scan, start, tmp_path, monkeypatch, rate):
    make_quick(monkeypatch, 2, rate=rate, ema=0.0)
    code, out, err = run("adapt", "-i", scan, "-o", tmp_path / "mine", "--model", start)
    assert (code, err) == (0, [])
    assert any("the losses did not fall enough: this is the starting model, unchanged" in line for line in out)
    card = card_of(tmp_path / "mine.onnx")
    assert not card["adapted"]
    assert card["held_out_loss"]["before"] == card["held_out_loss"]["after"]
    assert card["envelope"] == card_of(start)["envelope"]
    assert differ(tmp_path / "mine.onnx", start) == 0
    volume = thick_volume(seed=5)
    np.testing.assert_array_equal(answer_of(tmp_path / "mine", volume), answer_of(start, volume))


@catches(
    "training/validation.py",
    "score = sum(means[kind] / first[kind] for kind in means) / len(means)",
    'score = means["held_out"] / first["held_out"]',
)
def test_a_gain_below_the_least_one_is_none(scan, start, tmp_path, monkeypatch):
    seeing(monkeypatch, (1.0, 1 - 1.5 * validation.LEAST_GAIN, 1.0, 1.0))  # three quarters of it, as one of two losses
    (done,) = adapt([scan], tmp_path / "mine", start=start, steps=STEPS, report=quiet)
    assert (done.adapted, done.held_out) == (False, (1.0, 1.0))
    assert differ(done.model, start) == 0


def seeing(monkeypatch, held_out, thicker=None, shares=(1.0,)):
    """Let the losses be these, one of each a look and share; the weights at every look are in the list returned."""
    pairs = zip(held_out, thicker or [9.0] * len(held_out), strict=True)
    seen, losses = [], iter([value for pair in pairs for value in pair])
    asked = []

    def loss(network, batches):
        asked.append(network)
        if len(asked) % 2:
            seen.append({name: weight.clone() for name, weight in network.state_dict().items()})
        return next(losses)

    monkeypatch.setattr(validation, "SHARES", shares)
    monkeypatch.setattr(validation.HeldOutCheck, "_loss", staticmethod(loss))
    return seen


@catches("training/validation.py", "torch.load(self._weights_of(best), weights_only=True)", "average.state_dict()")
@catches(
    "training/validation.py",
    "torch.lerp(self.start[name], weight, share)",
    "torch.lerp(weight, self.start[name], share)",
)
@pytest.mark.parametrize(("losses", "best"), [((1.0, 0.5, 0.9, 0.8), 1), ((1.0, 0.7, 0.6, 0.6), 2), ((3, 2, 2, 1), 3)])
def test_the_best_look_is_kept_not_the_last(scan, start, tmp_path, monkeypatch, losses, best):
    seen = seeing(monkeypatch, losses)
    (done,) = adapt([scan], tmp_path / "mine", start=start, steps=STEPS, report=quiet)
    assert done.held_out == (losses[0], losses[best])
    kept = weights_of(done.model)
    for name, weight in seen[best].items():
        torch.testing.assert_close(kept[name], weight, rtol=0, atol=0)
    others = [look for number, look in enumerate(seen) if number != best]
    assert all(any(not torch.equal(kept[name], look[name]) for name in kept) for look in others)


@pytest.mark.parametrize("thicker", [(1.0, 1.3, 1.3, 1.3), (1.0, 1.1, 1.2, 1.3)])
def test_what_harms_the_slice_direction_is_not_kept(scan, start, tmp_path, monkeypatch, thicker):
    seeing(monkeypatch, (1.0, 0.9, 0.9, 0.9), thicker)
    (done,) = adapt([scan], tmp_path / "mine", start=start, steps=STEPS, report=quiet)
    assert (done.adapted, done.held_out) == (False, (1.0, 1.0))
    assert differ(done.model, start) == 0


@catches("training/validation.py", 'if one["held_out"] < first["held_out"] and', "if")
def test_what_helps_the_slice_direction_alone_is_not_kept(scan, start, tmp_path, monkeypatch):
    """It is known at another scale only, so that it cannot vouch for an answer by itself."""
    seeing(monkeypatch, (1.0, 1.01, 1.01, 1.01), (1.0, 0.5, 0.5, 0.5))
    (done,) = adapt([scan], tmp_path / "mine", start=start, steps=STEPS, report=quiet)
    assert not done.adapted


def test_the_best_share_of_the_way_is_kept(scan, start, tmp_path, monkeypatch):
    held_out = (1.0, 0.9, 0.7, 0.8, *[0.95] * 6)  # the start; the shares after 2 steps; those after 4 and 6
    seen = seeing(monkeypatch, held_out, shares=(0.25, 0.5, 1.0))
    (done,) = adapt([scan], tmp_path / "mine", start=start, steps=STEPS, report=quiet)
    assert done.held_out == (1.0, 0.7)
    assert card_of(done.model)["share"] == 0.5
    begun, kept = weights_of(start), weights_of(done.model)
    for name, all_the_way in seen[3].items():
        torch.testing.assert_close(kept[name], 0.5 * (begun[name] + all_the_way), rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(kept[name], begun[name]) for name in kept)


def test_what_is_kept_is_what_enhance_computes_with(run, scan, tmp_path, monkeypatch):
    gentle = save_start(tmp_path / "gentle.onnx", loud=1.0)  # the guard takes nothing of it back
    seeing(monkeypatch, (1.0, 0.9, 0.8, 0.7))
    (done,) = adapt([scan], tmp_path / "mine", start=gentle, profile="gaussian", steps=STEPS, report=quiet)
    assert done.adapted
    for model, thin in ((gentle, "before"), (done.model.with_suffix(""), "after")):
        words = ["-i", scan, "-o", tmp_path / f"{thin}.nii", "--model", model, "--profile", "gaussian", "-q"]
        # Noise as it is, the scan agrees with no answer.
        assert run("enhance", *words, "--force")[:2] == (0, [])
    before, after = (nifti.read(tmp_path / f"{thin}.nii").voxels for thin in ("before", "after"))
    assert (after != before).mean() > 0.1


def test_it_ends_early_when_nothing_gets_better(scan, start, tmp_path, monkeypatch):
    steps = 4 * PATIENCE
    make_quick(monkeypatch, steps, save_every=1)
    seeing(monkeypatch, [1.0 + 0.1 * look for look in range(steps + 1)])
    (done,) = adapt([scan], tmp_path / "mine", start=start, steps=steps, report=quiet)
    assert done.steps == next(step for step in range(steps) if step >= PATIENCE and step / steps > NOT_BEFORE)
    assert not done.adapted


@catches("training/validation.py", "*about, held_out=True)", "*about, held_out=False)")
def test_looks_are_at_what_is_held_out_and_always_the_same(scan, start, tmp_path, monkeypatch):
    """Lessons and looks are asked for by what they are; the looks are the same ones every time."""
    asked = {"in_plane_batch_at": [], "thicker_slices_batch_at": [], "self_supervised_batch_at": []}

    def listening(module, name):
        real = getattr(module, name)

        def batch_at(number, *rest, **kinds):
            asked[name].append((number, kinds))
            return real(number, *rest, **kinds)

        return batch_at

    for name in asked:
        module = objectives if name == "self_supervised_batch_at" else validation
        monkeypatch.setattr(module, name, listening(module, name))
    adapt([scan], tmp_path / "mine", start=start, steps=STEPS, report=quiet)
    looks = [(number, {"held_out": True}) for number in range(validation.LEAST_BATCHES)]
    assert asked["in_plane_batch_at"] == asked["thicker_slices_batch_at"] == looks
    lessons = sorted(number for number, _ in asked["self_supervised_batch_at"])
    assert lessons[: STEPS * adapting.SCHEDULE.batches] == list(range(STEPS * adapting.SCHEDULE.batches))


def test_the_embedded_network_can_be_adapted(run, scan, tmp_path, monkeypatch):
    make_quick(monkeypatch, 1)
    monkeypatch.setattr(adapting, "NETWORK", Architecture("slab"))
    assert run("adapt", "-i", scan, "-o", tmp_path / "mine", "-q") == (0, [], [])
    card, embedded = card_of(tmp_path / "mine.onnx"), find_model("default")
    assert card["started_from"]["sha256"] == embedded.sha256
    assert card["data"] == embedded.card["data"]
    # What it has learnt since, nobody knows.
    assert find_model(str(tmp_path / "mine")).envelope == replace(embedded.envelope, learnt_mr_alone=False)


@catches(
    "training/validation.py",
    "return replace(schedule, minutes=max(minutes - spent_seconds / 60, LEAST_SHARE_OF_TIME * minutes))",
    "return schedule",
)
@pytest.mark.parametrize(("spent", "left"), [(0.0, 600.0), (20.0, 580.0), (530.0, 70.0), (1000.0, 60.0)])
def test_what_is_left_of_the_time_is_learnt_in(spent, left):
    assert 60 * OF_THE_TIME(Schedule(minutes=10.0), spent).minutes == pytest.approx(left)


def test_the_clock_ends_it(run, scan, start, tmp_path, monkeypatch):
    make_quick(monkeypatch, 500)  # which take longer
    monkeypatch.setattr(validation, "rest_of", OF_THE_TIME)
    assert run("adapt", "-i", scan, "-o", tmp_path / "mine", "--model", start, "--minutes", "0.05", "-q")[0] == 0
    card = card_of(tmp_path / "mine.onnx")
    assert 1 <= card["trained"]["adapt"]["steps"] < 500
    assert card["recipe"][0]["schedule"]["minutes"] <= 0.05


@catches("training/recipes/adapt.py", "monotonic() > late", "monotonic() < 0")
def test_scans_whose_turn_comes_late_are_named_and_left_out_now_and_when_it_goes_on(scan, start, tmp_path):
    scans = [scan, *(save_thick(tmp_path / f"scan{seed}.nii.gz", seed=seed) for seed in (1, 2))]
    complaints = []
    wish = {"start": start, "minutes": 1e-4, "complain": complaints.append}
    with pytest.raises(KeyboardInterrupt):
        adapt(scans, tmp_path / "mine", report=Interrupting("step 4:", ctrl_c), **wish)
    assert [line.split(":")[0] for line in complaints] == ["scan1.nii.gz", "scan2.nii.gz"]
    assert all(word in line for line in complaints for word in ("left out: got 1 others before it", "need ", "next: "))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapting, "PREPARING", 1e6)  # the time that this takes does not matter
        (done,) = adapt(scans, tmp_path / "mine", report=quiet, **wish)
    assert complaints[2:] == complaints[:2]
    assert done.scans == (scan.name,)
    assert [row["file"] for row in card_of(done.model)["adapted_to"]] == [scan.name]


@catches(
    "training/validation.py",
    "min(max(LEAST_BATCHES, 2 * len(targets)), MOST_BATCHES)",
    "max(LEAST_BATCHES, 2 * len(targets))",
)
def test_however_many_scans_there_are_a_look_takes_only_so_long(tmp_path, monkeypatch):
    looked = []
    for name in ("in_plane_batch_at", "thicker_slices_batch_at"):
        monkeypatch.setattr(validation, name, lambda number, seed, scans, *_, held_out: looked.append(scans[0]))
    for count, most in ((50, validation.MOST_BATCHES), (5, 10)):
        looked.clear()
        validation.HeldOutCheck(SelfSupervisedObjective(), small_network(), list(range(count)), tmp_path, quiet)
        assert len(looked) == 2 * most
        assert looked[:most] == looked[most:]
        assert len(set(looked)) == min(count, most)
        assert max(looked) - min(looked) >= 0.9 * (count - 1)


def test_every_scan_is_looked_at_alike(scan, start, tmp_path, monkeypatch):
    others = [save_thick(tmp_path / f"scan{seed}.nii.gz", seed=seed) for seed in (1, 2)]
    monkeypatch.setattr(validation, "LEAST_BATCHES", 1)
    looked, real = {"directions": [], "thicker": []}, (validation.in_plane_batch_at, validation.thicker_slices_batch_at)

    def direction(number, seed, targets, *rest, held_out):
        looked["directions"] += [target.name for target in targets] if held_out else []
        return real[0](number, seed, targets, *rest, held_out=held_out)

    def thicker(number, seed, targets, *rest, held_out):
        looked["thicker"] += [target.name for target in targets] if held_out else []
        return real[1](number, seed, targets, *rest, held_out=held_out)

    monkeypatch.setattr(validation, "in_plane_batch_at", direction)
    monkeypatch.setattr(validation, "thicker_slices_batch_at", thicker)
    adapt([scan, *others], tmp_path / "mine", start=start, steps=1, report=quiet)
    names = sorted(2 * ["scan.nii.gz", "scan1.nii.gz", "scan2.nii.gz"])
    assert sorted(looked["directions"]) == sorted(looked["thicker"]) == names


def test_it_is_adapted_to_the_factor_that_is_asked_for(run, scan, start, tmp_path):
    words = ["adapt", "-i", scan, "--model", start, "-q"]
    for wish, factor in ((["--factor", "3"], 3.0), (["--spacing", "0.8"], 5.0), ([], 4.0)):
        assert run(*words, "-o", tmp_path / f"m{factor}", *wish) == (0, [], [])
        assert card_of(tmp_path / f"m{factor}.onnx")["adapted_to"][0]["factor"] == pytest.approx(factor)


@catches("training/validation.py", ' and one["worst"] <= 1]', "]")
def test_what_harms_one_of_the_scans_is_not_kept(scan, start, tmp_path, monkeypatch):
    """Losses of the first and the second scan, within the slices and across them, at the start and at every look."""
    others = save_thick(tmp_path / "other.nii.gz", seed=1)
    for second, adapted in ((1.01, False), (0.99, True)):
        losses = iter([1.0, 1.0, 1.0, 1.0, *[0.5, second, 1.0, 1.0] * 3])
        monkeypatch.setattr(validation, "SHARES", (1.0,))
        monkeypatch.setattr(validation.HeldOutCheck, "_loss", staticmethod(lambda *_, said=losses: next(said)))
        (done,) = adapt([scan, others], tmp_path / f"m{second}", start=start, steps=STEPS, report=quiet)
        assert done.adapted == adapted


def test_a_look_that_rose_does_not_hide_one_that_fell(scan, start, tmp_path, monkeypatch):
    seeing(monkeypatch, (1.0, 0.9, 1.01, 1.0), (1.0, 1.0, 0.5, 1.0))
    (done,) = adapt([scan], tmp_path / "mine", start=start, steps=STEPS, report=quiet)
    assert (done.adapted, done.held_out) == (True, (1.0, 0.9))


def test_without_git_the_commit_is_unknown(monkeypatch):
    from thinslice.training import runner

    monkeypatch.setenv("PATH", "")
    assert runner.current_commit() == "unknown"


# ---- which scans


def mixed(folder):
    return [
        save_thick(folder / "axial.nii.gz"),
        save_thick(folder / "sagittal.nii", axis=0, shape=(80, 64, 12), factor=3, dtype=np.float32, seed=1),
        save_thick(folder / "coronal.nii.gz", axis=1, shape=(52, 96, 8), factor=5, dtype=np.uint8, seed=2),
    ]


def test_scans_may_differ_in_spacing_size_orientation_and_kind(tmp_path, start):
    scans, complaints = mixed(tmp_path / "in"), []
    (done,) = adapt(scans, tmp_path / "m", start=start, steps=4, report=quiet, complain=complaints.append)
    assert complaints == []
    assert done.scans == ("axial.nii.gz", "sagittal.nii", "coronal.nii.gz")
    assert [round(row["factor"]) for row in card_of(done.model)["adapted_to"]] == [4, 3, 5]
    for path in scans:
        assert np.isfinite(answer_of(done.model, nifti.read(path))).all()


def unusable(folder):
    """Scans that cannot be read, planned, or learnt from; each with what is said of it."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = thick_volume()
    nifti.write(Volume(whole.voxels, np.diag([1.0, 1.0, 1.0, 1.0])), folder / "isotropic.nii.gz")
    nifti.write(Volume(np.stack([whole.voxels] * 2, axis=3), whole.affine), folder / "series.nii.gz")
    nifti.write(Volume(whole.voxels[:, :40], whole.affine), folder / "small.nii.gz")
    nifti.write(Volume(np.full_like(whole.voxels, 5), whole.affine), folder / "flat.nii.gz")
    (folder / "torn.nii.gz").write_bytes(b"no scan")
    return sorted(folder.iterdir())


def test_scans_that_cannot_be_used_are_named_and_left_out(run, tmp_path, scan, start):
    others, words = unusable(tmp_path / "odd"), ["--model", start, "-o", tmp_path / "mine"]
    code, _, err = run("adapt", "-i", scan, *others, tmp_path / "gone.nii.gz", *words)
    assert code == 0
    named = sorted(line.removeprefix("thinslice: ").split(":")[0] for line in err)
    assert named == sorted([*(path.name for path in others), "gone.nii.gz"])
    assert all(word in line for line in err for word in ("left out: got ", "need ", "next: "))
    card = card_of(tmp_path / "mine.onnx")
    assert [row["file"] for row in card["adapted_to"]] == [scan.name]


@pytest.mark.parametrize("per_scan", [[], ["--per-scan"]])
def test_where_no_scan_can_be_used_nothing_is_written(run, tmp_path, start, per_scan):
    others = unusable(tmp_path / "odd")
    code, out, err = run("adapt", "-i", tmp_path / "odd", "-o", tmp_path / "o" / "mine", "--model", start, *per_scan)
    assert (code, len(err)) == (2, len(others) + 1)
    assert not [line for line in out if "wrote" in line]
    assert "got no scan that can be learnt from" in err[-1]
    assert files_in(tmp_path) == [f"odd/{path.name}" for path in others]
    assert not (tmp_path / "o").exists()


@catches("training/usable_scans.py", "if scan.fingerprint in found:", "if False:")
def test_the_same_scan_under_two_names_is_learnt_from_once(run, scan, start, tmp_path):
    copy = Path(shutil.copy(scan, tmp_path / "copy.nii.gz"))
    words = ["adapt", "-i", scan, copy, scan, "--model", start, "--per-scan", "-o", tmp_path / "mine"]
    code, _, err = run(*words)
    assert (code, files_in(tmp_path / "mine")) == (0, ["scan.json", "scan.onnx"])
    (line,) = err
    assert all(word in line for word in ("copy.nii.gz: left out: got the same scan as scan.nii.gz", "need ", "next: "))


def test_a_model_learns_from_so_many_scans_at_most(scan, start, tmp_path, monkeypatch):
    monkeypatch.setattr(adapting, "MOST_SCANS", 1)
    other, said = save_thick(tmp_path / "other.nii.gz", seed=1), []
    (done,) = adapt([scan, other], tmp_path / "mine", start=start, steps=2, report=quiet, complain=said.append)
    assert done.scans == (scan.name,)
    assert [line.split(":")[0] for line in said] == ["other.nii.gz"]


def test_scans_share_what_may_be_kept_of_them(scan, start, tmp_path, monkeypatch):
    other, asked, real = save_thick(tmp_path / "other.nii.gz", seed=1), [], adapting.make_target_scan

    def listening(*rest):
        asked.append(rest[-1])
        return real(*rest)

    monkeypatch.setattr(adapting, "make_target_scan", listening)
    adapt([scan, other], tmp_path / "mine", start=start, steps=1, report=quiet)
    assert asked == [adapting.VOXELS // 2] * 2


def test_scans_of_one_file_name_are_told_apart_in_what_is_said(run, scan, start, tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "torn.nii.gz").write_bytes(b"no scan")
    (tmp_path / "c").mkdir()
    monkeypatch.chdir(tmp_path / "c")
    _, _, err = run("adapt", "-i", scan, tmp_path / "a", tmp_path / "b", ".", "-o", tmp_path / "m", "--model", start)
    assert err[0].startswith("thinslice: .: left out: got ")
    assert [line.split(": ")[1] for line in err[1:]] == [str(tmp_path / name / "torn.nii.gz") for name in "ab"]


@pytest.mark.parametrize(("module", "step"), [(adapting, "make_target_scan"), (reading, "make_plan")])
def test_a_scan_too_large_for_the_memory_is_left_out_with_a_way_out(
    run, scan, start, tmp_path, monkeypatch, module, step
):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(module, step, fail)
    code, _, err = run("adapt", "-i", scan, "-o", tmp_path / "m", "--model", start)
    assert code == 2
    assert all(word in err[0] for word in (f"{scan.name}: left out: got ", "memory", "need ", "next: "))


# ---- its name


def test_a_model_that_is_there_is_not_replaced_unasked(run, tmp_path, scan, start):
    words = ["adapt", "-i", scan, "-o", tmp_path / "mine.onnx", "--model", start]
    (tmp_path / "mine.onnx").write_bytes(b"dear")
    code, out, err = run(*words)
    assert (code, out, len(err)) == (2, [], 1)
    assert all(word in err[0] for word in ("mine.onnx", "got ", "exists already", "next: "))
    assert (tmp_path / "mine.onnx").read_bytes() == b"dear"
    assert files_in(tmp_path) == ["mine.onnx"]
    assert run(*words, "--overwrite", "-q") == (0, [], [])
    assert find_model(str(tmp_path / "mine")).card["adapted_to"]


@pytest.mark.parametrize("name", ["default", "default.onnx", "planes-mr", "cubic", "."])
def test_a_name_that_means_something_else_is_refused(scan, start, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputRefused, match=r"got .*need .*next: "):
        adapt([scan], Path(name), start=start, steps=1, report=quiet)
    assert files_in(tmp_path) == []


def test_a_name_that_model_would_not_find_is_refused(run, scan, start, tmp_path):
    (tmp_path / "mine.depth-x2.onnx").write_bytes(b"a network for planes")
    (tmp_path / "file").write_bytes(b"dear")
    words = ["adapt", "-i", scan, "--model", start, "--overwrite", "-o"]
    for name, more in (("mine", []), ("mine", ["--per-scan"]), ("file", ["--per-scan"])):
        code, out, err = run(*words, tmp_path / name, *more)
        assert (code, out, len(err)) == (2, [], 1)
        assert all(word in err[0] for word in (name, "got ", "need ", "next: "))
    assert files_in(tmp_path) == ["file", "mine.depth-x2.onnx"]


@catches("training/model_outputs.py", "if card.exists() and not {", "if False and not {")
def test_the_file_beside_a_scan_is_not_taken_for_a_card(run, start, tmp_path):
    """Named as its scan, a model would put its card in the place of the scan's sidecar."""
    scan = save_thick(tmp_path / "scan.nii.gz")
    sidecar = tmp_path / "scan.json"
    sidecar.write_text('{"SliceThickness": 4.0}')
    words = ["adapt", "-i", scan, "--model", start]
    for out in (["-o", tmp_path / "scan"], ["-o", tmp_path, "--per-scan", "--resume"], ["-o", tmp_path, "--per-scan"]):
        code, _, err = run(*words, *out, *([] if "--resume" in out else ["--overwrite"]))
        assert (code, len(err)) == (2, 1)
        assert all(word in err[0] for word in ("scan.json", "got ", "need ", "next: "))
    assert sidecar.read_text() == '{"SliceThickness": 4.0}'
    assert files_in(tmp_path) == ["scan.json", "scan.nii.gz"]


@pytest.mark.parametrize("folder", ["mine.onnx", "mine.json"])
def test_a_folder_in_the_place_of_the_answer_is_refused_before_any_work(run, scan, start, tmp_path, folder):
    (tmp_path / folder).mkdir()
    code, out, err = run("adapt", "-i", scan, "--model", start, "-o", tmp_path / "mine", "--overwrite")
    assert (code, out, len(err)) == (2, [], 1)
    assert all(word in err[0] for word in (folder, "got a folder", "need ", "next: "))


def test_a_model_is_not_written_over_its_start(run, undisturbed, scan, tmp_path):
    model = Path(shutil.copy(undisturbed[0].model, tmp_path / "mine.onnx"))
    before = model.read_bytes()
    words = ["adapt", "-i", scan, "--model", tmp_path / "mine", "-o", tmp_path / "mine", "--overwrite"]
    code, out, err = run(*words)
    assert (code, out, len(err)) == (2, [], 1)
    assert all(word in err[0] for word in ("an output that is the start", "need ", "next: "))
    assert model.read_bytes() == before


@pytest.mark.parametrize("out", ["scan.nii.gz/mine", "..", "missing/.."])
def test_a_place_that_cannot_be_written_to_is_refused_before_any_work(run, start, tmp_path, monkeypatch, out):
    scan = save_thick(tmp_path / "scan.nii.gz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reading, "read", lambda path: pytest.fail("the scan was read"))
    code, said, err = run("adapt", "-i", scan, "--model", start, "-o", out)
    assert (code, said, len(err)) == (2, [], 1)
    assert all(word in err[0] for word in ("got ", "need ", "next: "))


@pytest.mark.parametrize("model", ["planes-mr", "cubic", "none.onnx", "planes-mr.depth-x4.onnx"])
def test_a_start_that_is_not_the_default_network_is_refused_in_one_line(run, scan, tmp_path, model):
    embedded = Path(thinslice.__file__).parent / "models" / "embedded" / model
    code, out, err = run("adapt", "-i", scan, "-o", tmp_path / "m", "--model", embedded if embedded.exists() else model)
    assert (code, out, len(err)) == (2, [], 1)
    assert all(word in err[0] for word in ("got ", "need ", "next: "))
    assert files_in(tmp_path) == []


# ---- one model for every scan


@pytest.fixture(scope="module")
def two(tmp_path_factory, start):
    """Two scans of one file name, and a folder with a model for each."""
    folder = tmp_path_factory.mktemp("two")
    scans = [save_thick(folder / name / "scan.nii.gz", seed=seed) for seed, name in enumerate("ab")]
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch, 2)
        adapt(scans, folder / "models", start=start, per_scan=True, steps=2, report=quiet)
    return folder, scans


def test_per_scan_writes_a_folder_with_a_model_for_each(two):
    folder, scans = two
    assert files_in(folder / "models") == ["scan-1.json", "scan-1.onnx", "scan-2.json", "scan-2.onnx"]
    assert not (folder / "models.adapting").exists()
    assert differ(folder / "models" / "scan-1.onnx", folder / "models" / "scan-2.onnx") > 0
    for number, path in enumerate(scans, 1):
        (learnt,) = card_of(folder / "models" / f"scan-{number}.onnx")["adapted_to"]
        assert learnt["fingerprint"] == reading.fingerprint(nifti.read(path))


@catches("models/registry.py", "return own[known]", "return models[0]")
def test_each_scan_is_enhanced_with_its_own_model_whatever_its_file_is_called(run, two, tmp_path):
    folder, scans = two
    for number, path in enumerate(scans, 1):
        renamed = tmp_path / "in" / f"scan-{3 - number}.nii.gz"  # the name of the other's model
        renamed.parent.mkdir(exist_ok=True)
        renamed.write_bytes(path.read_bytes())
        chosen = models_for(str(folder / "models"))(nifti.read(renamed))
        assert chosen.sha256 == card_of(folder / "models" / f"scan-{number}.onnx")["sha256"]
    code, _, err = run("enhance", "-i", tmp_path / "in", "-o", tmp_path / "thin", "--model", folder / "models", "-q")
    assert (code, err) == (0, [])
    for number in (1, 2):
        plan = json.loads((tmp_path / "thin" / f"scan-{3 - number}.json").read_text())["plan"]
        assert plan["model_sha256"] == card_of(folder / "models" / f"scan-{number}.onnx")["sha256"]


def test_a_scan_without_a_model_of_its_own_is_refused_with_a_way_out(run, two, tmp_path):
    folder, _ = two
    other = save_thick(tmp_path / "other.nii.gz", seed=9)
    code, out, err = run("enhance", "-i", other, "-o", tmp_path / "thin.nii.gz", "--model", folder / "models")
    assert (code, out, len(err)) == (2, [], 1)
    assert all(word in err[0] for word in ("other.nii.gz", "got ", "need ", "next: ", "thinslice adapt"))
    with pytest.raises(ModelRefused, match="next: choose one"):
        find_model(str(folder / "models"))


def test_names_of_models_never_collide():
    paths = [Path("a/x.nii"), Path("b/x.nii.gz"), Path("c/x-1.nii"), Path("d/y.nii"), Path("e/Y.nii")]
    assert name_models(paths, list("12345"), {}) == ["x-2", "x-3", "x-1", "y-1", "Y-2"]
    assert name_models(paths[:2], list("12"), {"2": "x"}) == ["x-1", "x"]
    assert name_models(paths[3:4], ["4"], {"9": "y"}) == ["y-1"]


def test_a_scan_keeps_its_model_when_another_of_its_name_comes(run, two, start, tmp_path):
    _, scans = two
    words = ["--model", start, "--per-scan", "-o", tmp_path / "mine"]
    assert run("adapt", "-i", scans[1], *words, "-q") == (0, [], [])
    before = (tmp_path / "mine" / "scan.onnx").stat().st_mtime_ns
    code, out, _ = run("adapt", "-i", *scans, *words, "--resume")
    assert code == 0
    assert f"  left as it was: {tmp_path / 'mine' / 'scan.onnx'}" in out
    assert any(line.startswith(f"wrote {tmp_path / 'mine' / 'scan-1.onnx'} ") for line in out)
    assert (tmp_path / "mine" / "scan.onnx").stat().st_mtime_ns == before
    assert files_in(tmp_path / "mine") == ["scan-1.json", "scan-1.onnx", "scan.json", "scan.onnx"]


@catches("training/recipes/adapt.py", "                begun = monotonic()\n", "")
def test_every_scan_has_the_whole_time(two, start, tmp_path, monkeypatch):
    begun, real = [], adapting._run
    monkeypatch.setattr(adapting, "_run", lambda *rest: begun.append((rest[6], monotonic())) or real(*rest))
    adapt(two[1], tmp_path / "mine", start=start, steps=2, per_scan=True, report=quiet)
    (_, first), (second, _) = begun
    assert second > first


@catches(
    "training/recipes/adapt.py",
    "if earlier is None and job.answer.exists() and not overwrite:",
    "if earlier is None and job.answer.exists() and not (overwrite or resume):",
)
@catches("training/recipes/adapt.py", 'job.request.keys() - {"recipe", "minutes", "steps"}', '{"scans"}')
@pytest.mark.parametrize("other", ["another start", "another thickness", "another profile"])
def test_a_model_under_another_wish_is_not_taken_for_the_answer(undisturbed, scan, start, tmp_path, other):
    scans, model, wish = others(other, scan, start, tmp_path)
    with pytest.raises(OutputRefused, match="got a model of other scans, or of another start"):
        adapt(scans, undisturbed[0].model, start=model, resume=True, report=quiet, **({"steps": STEPS} | wish))


# ---- killed, and continued


class Interrupting:
    """Says every line on, until one begins with certain words."""

    def __init__(self, words, how):
        self.words, self.how, self.said = words, how, []

    def __call__(self, line):
        self.said.append(line)
        if line.strip().startswith(self.words):
            self.how()


def ctrl_c():
    raise KeyboardInterrupt


@catches(
    "training/recipes/adapt.py",
    "    recipe = share_length(",
    "    job.answer.parent.mkdir(exist_ok=True)\n    job.answer.write_bytes(b'')\n    recipe = share_length(",
)
@catches("training/runner.py", "place, schedule, True, lines, check)", "place, schedule, False, lines, check)")
@pytest.mark.parametrize("how", [ctrl_c, lambda: os.kill(os.getpid(), signal.SIGTERM)], ids=["ctrl-c", "SIGTERM"])
def test_interrupted_and_continued_equals_undisturbed(run, undisturbed, scan, start, tmp_path, monkeypatch, how):
    words = ["adapt", "-i", scan, "-o", tmp_path / "mine", "--model", start]
    with monkeypatch.context() as patch:
        patch.setattr("thinslice.cli.training._say", Interrupting("step 4:", how))
        code, _, err = run(*words)
    assert (code, len(err)) == (130, 1)
    assert "the same command goes on" in err[0]
    assert {path.name for path in tmp_path.iterdir()} == {"mine.adapting"}
    code, out, _ = run(*words)
    assert code == 0
    told = [line.split(":")[0].strip() for line in out if "held-out loss 0" in line or line.strip().startswith("step")]
    assert "step 0" not in told
    assert "step 2" not in told
    assert {"step 4", "step 6"} <= set(told)
    assert files_in(tmp_path) == ["mine.json", "mine.onnx"]
    # One thread, and the same lessons in the same order.
    assert differ(tmp_path / "mine.onnx", undisturbed[0].model) <= 1e-6
    again, before = (card_of(path) for path in (tmp_path / "mine.onnx", undisturbed[0].model))
    assert [look["step"] for look in records_of(again)] == [look["step"] for look in records_of(before)]
    assert again["held_out_loss"]["after"] == pytest.approx(before["held_out_loss"]["after"], rel=1e-5)


@pytest.fixture(scope="module")
def begun(tmp_path_factory, scan, start):
    """The folder of an adaptation, called mine, that was interrupted at step 4."""
    folder = tmp_path_factory.mktemp("begun")
    patch = pytest.MonkeyPatch()
    make_quick(patch, STEPS)
    with pytest.raises(KeyboardInterrupt):
        adapt([scan], folder / "mine", start=start, steps=STEPS, report=Interrupting("step 4:", ctrl_c))
    patch.undo()
    return folder


def first_look(scans, start, out, **wish):
    heard = Interrupting("step", ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        adapt(scans, out, start=start, report=heard, **({"steps": STEPS} | wish))
    return heard.said[0].split(":")[0].strip()


def test_the_work_on_a_scan_is_continued_under_any_name(begun, scan, start, tmp_path):
    out = Path(shutil.copytree(begun, tmp_path / "out")) / "mine"
    renamed = Path(shutil.copy(scan, tmp_path / "renamed.nii.gz"))
    assert first_look([renamed], start, out) == "step 4"


def others(name, scan, start, folder):
    """What is asked for in another way than that which `begun` was: scans, start and wish."""
    return {
        "another scan": ([save_thick(folder / scan.name, seed=1)], start, {}),
        "one more scan": ([scan, save_thick(folder / "more.nii.gz", seed=1)], start, {}),
        "another start": ([scan], save_start(folder / start.name, seed=1), {}),
        "another thickness": ([scan], start, {"thickness_mm": 3.0}),
        "another profile": ([scan], start, {"profile": "box"}),
        "another length": ([scan], start, {"steps": STEPS + 2}),
    }[name]


@catches("training/run_state.py", "if known and known.get(key) != request[key]]", "if not known]")
@catches("training/recipes/adapt.py", "    if overwrite:\n        return None\n", "    return None\n")
@pytest.mark.parametrize(
    "other",
    ["another scan", "one more scan", "another start", "another thickness", "another profile", "another length"],
)
def test_unfinished_work_of_another_command_is_neither_gone_on_with_nor_lost(begun, scan, start, tmp_path, other):
    out = Path(shutil.copytree(begun, tmp_path / "out")) / "mine"
    scans, model, wish = others(other, scan, start, tmp_path)
    before = files_in(out.parent)
    with pytest.raises(OutputRefused, match=r"mine: got the unfinished work of another.*need .*next: .*`overwrite`"):
        adapt(scans, out, start=model, report=quiet, **({"steps": STEPS} | wish))
    assert files_in(out.parent) == before
    assert first_look(scans, model, out, overwrite=True, **wish) == "step 0"


def test_what_it_leaves_of_another_command_is_said(begun, scan, start, tmp_path):
    """An unfinished model for all scans, and then one for each, under the same name."""
    out = Path(shutil.copytree(begun, tmp_path / "out")) / "mine"
    said = []
    adapt([scan], out, start=start, steps=2, per_scan=True, report=said.append)
    work = out.with_name("mine.adapting") / "mine"
    assert (work / "adapt" / "checkpoint.pt").exists()
    assert any(f"{work} holds the unfinished work of another command; next: " in line for line in said)
    shutil.rmtree(out)
    assert first_look([scan], start, out) == "step 4"


def test_what_is_finished_stays_when_it_is_resumed(run, undisturbed, scan, start):
    done, _ = undisturbed
    before = (done.model.read_bytes(), done.model.stat().st_mtime_ns)
    code, out, _ = run("adapt", "-i", scan, "-o", done.model, "--model", start, "--resume")
    assert code == 0
    assert f"{done.model.with_suffix('')}.onnx is there already" in out
    assert (done.model.read_bytes(), done.model.stat().st_mtime_ns) == before


def test_a_model_of_other_scans_is_not_replaced_by_resuming(undisturbed, start, tmp_path):
    done, _ = undisturbed
    before = done.model.read_bytes()
    other = save_thick(tmp_path / "other.nii.gz", seed=1)
    with pytest.raises(OutputRefused, match=r"mine\.onnx: got .*need .*next: "):
        adapt([other], done.model, start=start, steps=STEPS, resume=True, report=quiet)
    assert done.model.read_bytes() == before


@catches(
    "training/run_state.py", "        write_json(self.folder / FINISHED,", "        (lambda *_: None)(self.folder,"
)
@catches(
    "training/recipes/adapt.py",
    "if resume and (not overwrite or made) else None",
    "if resume and not overwrite else None",
)
@catches("training/recipes/adapt.py", "resume = resume or folder.folder.exists()", "pass")
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_per_scan_the_same_command_goes_on_with_the_scan_it_was_at(run, two, start, tmp_path, monkeypatch, overwrite):
    folder, scans = two
    make_quick(monkeypatch, 2)
    words = ["adapt", "-i", *scans, "-o", tmp_path / "models", "--model", start, "--per-scan", *overwrite]
    if overwrite:  # both models are there before, and shall be replaced
        shutil.copytree(folder / "models", tmp_path / "models")
    earlier = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "models").glob("*.onnx")}
    with monkeypatch.context() as patch:
        patch.setattr("thinslice.cli.training._say", Interrupting(f"{scans[1]}:", ctrl_c))
        assert run(*words)[0] == 130
    if not overwrite:
        assert files_in(tmp_path / "models") == ["scan-1.json", "scan-1.onnx"]
    first = (tmp_path / "models" / "scan-1.onnx").stat().st_mtime_ns
    assert first != earlier.get("scan-1.onnx")
    assert run(*words)[0] == 0
    assert (tmp_path / "models" / "scan-1.onnx").stat().st_mtime_ns == first
    assert (tmp_path / "models" / "scan-2.onnx").stat().st_mtime_ns != earlier.get("scan-2.onnx")
    assert files_in(tmp_path) == [f"models/{name}" for name in files_in(folder / "models")]
    assert differ(tmp_path / "models" / "scan-2.onnx", folder / "models" / "scan-2.onnx") <= 1e-6


@pytest.mark.parametrize("gone", [[], ["request.json"], ["adapt/checkpoint.pt"]])
def test_killed_when_the_model_was_written_it_is_finished(run, undisturbed, scan, start, tmp_path, monkeypatch, gone):
    """Whatever was removed of the training before the kill."""
    words = ["adapt", "-i", scan, "-o", tmp_path / "mine", "--model", start]
    with monkeypatch.context() as patch:
        patch.setattr(run_state, "shutil", SimpleNamespace(rmtree=lambda path: ctrl_c()))
        assert run(*words)[0] == 130
    for name in gone:
        (tmp_path / "mine.adapting" / "mine" / name).unlink()
    written = (tmp_path / "mine.onnx").stat().st_mtime_ns
    other = save_thick(tmp_path / "other.nii.gz", seed=1)
    code, _, err = run("adapt", "-i", other, *words[3:])
    assert (code, len(err)) == (2, 1)
    assert all(word in err[0] for word in ("got ", "need ", "next: "))
    code, out, _ = run(*words)
    assert (code, out[0]) == (0, f"{tmp_path / 'mine.onnx'} is there already")
    assert {path.name for path in tmp_path.iterdir()} == {"mine.json", "mine.onnx", "other.nii.gz"}
    assert (tmp_path / "mine.onnx").stat().st_mtime_ns == written
    assert differ(tmp_path / "mine.onnx", undisturbed[0].model) <= 1e-6


def test_killed_before_its_answer_was_noted_it_goes_on_from_the_end(run, undisturbed, scan, start, tmp_path):
    words = ["adapt", "-i", scan, "-o", tmp_path / "mine", "--model", start]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_state.RunFolder, "finish", lambda *_: ctrl_c())
        assert run(*words)[0] == 130
    code, out, _ = run(*words)
    assert code == 0
    assert not any("step 4:" in line for line in out)
    assert files_in(tmp_path) == ["mine.json", "mine.onnx"]
    assert differ(tmp_path / "mine.onnx", undisturbed[0].model) <= 1e-6


@catches("training/run_state.py", "self._lock.enter_context(hold_lock(self.folder / _LOCK, wait=False))", "pass")
def test_two_runs_under_one_name_do_not_meet(begun, scan, start, tmp_path):
    out = Path(shutil.copytree(begun, tmp_path / "out")) / "mine"
    work = run_state.RunFolder(out.with_name("mine.adapting"))
    with work, pytest.raises(OutputRefused, match=r"another training is running; need .*next: "):
        adapt([scan], out, start=start, steps=STEPS, report=quiet)
    assert first_look([scan], start, out) == "step 4"


def test_what_a_kill_left_of_a_file_is_not_taken_for_work(begun, scan, start, tmp_path):
    out = Path(shutil.copytree(begun, tmp_path / "out")) / "mine"
    folder = out.with_name("mine.adapting")
    (folder / ".0123.part").write_bytes(b"half")
    (folder / "gone").mkdir()  # whose removal was cut off
    (folder / "gone" / "log.jsonl").write_text("")
    said = []
    adapt([scan], out, start=start, steps=STEPS, report=said.append)
    assert not [line for line in said if "another command" in line]
    assert files_in(out.parent) == ["mine.json", "mine.onnx"]
    assert not folder.exists()


@catches("training/fit.py", 'state["seconds"], state["stop"]', 'state["seconds"], False')
def test_what_ended_early_is_not_trained_on(scan, start, tmp_path, monkeypatch):
    steps = 4 * PATIENCE
    make_quick(monkeypatch, steps, save_every=1)
    with monkeypatch.context() as patch:
        seeing(patch, [1.0 + 0.1 * look for look in range(steps + 1)])
        patch.setattr(run_state.RunFolder, "finish", lambda *_: ctrl_c())
        with pytest.raises(KeyboardInterrupt):
            adapt([scan], tmp_path / "mine", start=start, steps=steps, report=quiet)
    ended = torch.load(tmp_path / "mine.adapting" / "mine" / "adapt" / "checkpoint.pt")["step"]
    assert ended < steps
    (done,) = adapt([scan], tmp_path / "mine", start=start, steps=steps, report=quiet)
    assert done.steps == ended


def test_no_room_for_a_checkpoint_is_said_in_one_line(run, scan, start, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("[enforce fail at inline_container.cc]")

    monkeypatch.setattr(torch, "save", fail)
    code, _, err = run("adapt", "-i", scan, "--model", start, "-o", tmp_path / "mine")
    assert (code, len(err)) == (2, 1)
    assert all(word in err[0] for word in ("got no room", "need ", "next: "))


KILLED = """
import sys, time
import numpy, pytest, scipy.linalg, threadpoolctl, torch
from thick_scans import make_quick
from thinslice.cli import main
from thinslice.training import export

def wait_for_death(*_):
    print("now", flush=True)
    time.sleep(60)

threadpoolctl.threadpool_limits(1, "blas")
torch.set_num_threads(1)
patch = pytest.MonkeyPatch()
make_quick(patch, 6)
if sys.argv[1] == "learning":
    die_at_step_4 = lambda line: wait_for_death() if line.strip().startswith("step 4:") else None
    patch.setattr("thinslice.cli.training._say", die_at_step_4)
else:
    patch.setattr(export, "_compare", wait_for_death)
main(sys.argv[2:])
"""


@pytest.mark.parametrize("moment", ["learning", "writing"])
@pytest.mark.slow
def test_killed_without_mercy_it_leaves_no_model_and_goes_on(run, undisturbed, scan, start, tmp_path, moment):
    words = ["adapt", "-i", scan, "-o", tmp_path / "mine", "--model", start]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED, moment, *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert any(line == "now\n" for line in process.stdout)
        process.kill()
    assert {path.name for path in tmp_path.iterdir()} == {"mine.adapting"}
    code, out, _ = run(*words)
    assert code == 0
    assert not any(line.strip().startswith("step 0:") for line in out)
    assert files_in(tmp_path) == ["mine.json", "mine.onnx"]
    assert differ(tmp_path / "mine.onnx", undisturbed[0].model) <= 1e-6
