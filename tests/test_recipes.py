"""A recipe as a user runs it: from a folder of volumes to a model file that enhances, in one process and in two."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from make_scans import save_scan
from planning import plan_for
from thick_scans import SMALL
from thinslice.cli import main
from thinslice.compute.upsample import upsample
from thinslice.errors import InputRefused, ModelRefused, OutputRefused
from thinslice.models.registry import find_model
from thinslice.models.slab_network import SlabModel
from thinslice.volume import Volume

pytest.importorskip("torch", reason="training needs torch, which comes with thinslice[train]")
pytest.importorskip("onnx", reason="the export needs onnx, which comes with thinslice[train]")

import torch

from faults import catches
from thinslice.networks.registry import Architecture
from thinslice.networks.slab import SlabNet
from thinslice.training import runner
from thinslice.training.clips import FEWEST
from thinslice.training.export import export, load_weights
from thinslice.training.objectives import SlabObjective
from thinslice.training.recipes import default, load_recipe, planes_paper, video_mr
from thinslice.training.runner import train as run
from thinslice.training.sources import Folders
from thinslice.training.stages import Inputs, Recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with one small near-isotropic volume."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "iso_train").mkdir()
    rough = np.random.default_rng(0).random((60, 56, 52))
    smooth = sum(np.roll(rough, shift, axis) for axis in range(3) for shift in (0, 1, 2))
    save_scan(folder / "iso_train" / "small.nii.gz", (100 * smooth).astype(np.int16), np.diag([1.0, 1.0, 1.0, 1.0]))
    return folder


@pytest.fixture(scope="module")
def data_for_planes(data, tmp_path_factory):
    """The same, and a scan in Hounsfield units with slices three times as far apart."""
    folder = tmp_path_factory.mktemp("more")
    (folder / "iso_train").symlink_to(data / "iso_train")
    (folder / "ct").mkdir()
    rough = np.random.default_rng(1).random((50, 48, 30))
    voxels = (2500 * (rough + np.roll(rough, 1, 0) + np.roll(rough, 1, 1)) / 3 - 1000).astype(np.int16)
    save_scan(folder / "ct" / "chest.nii.gz", voxels, np.diag([0.7, 0.7, 2.1, 1.0]))
    return folder


def silent(line):
    pass


def read(data, weights):
    return Folders(weights).volumes(Inputs(data), {})


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    (path,) = run("default", data, out, steps=2, report=silent)
    return path


def test_a_recipe_ends_with_a_model_file_and_a_card_that_says_how_it_came_about(trained):
    model = find_model(str(trained))
    assert isinstance(model, SlabModel)
    card = json.loads(trained.with_suffix(".json").read_text())
    assert card["sha256"] == model.sha256
    assert card["trained"] == {"iso": {"steps": 2, "minutes": pytest.approx(0, abs=5)}}
    assert card["processes"] == "1 x cpu"
    assert [row["file"] for row in card["data"]] == ["iso_train/small.nii.gz"]
    assert set(card["envelope"]) == {"factor", "thickness_over_spacing", "profiles"}


def test_a_used_folder_is_refused_without_resume(trained, data):
    with pytest.raises(InputRefused, match="`resume`"):
        run("default", data, trained.parent, steps=2, report=silent)


def test_a_finished_run_that_is_resumed_writes_the_same_model(trained, data):
    before = find_model(str(trained)).sha256
    run("default", data, trained.parent, resume=True, steps=2, report=silent)
    assert find_model(str(trained)).sha256 == before


def test_training_goes_on_from_a_model_file(trained, data, tmp_path):
    network = SlabNet()
    load_weights(network, trained)
    assert not np.allclose(network.entry.weight.detach().numpy(), SlabNet().entry.weight.detach().numpy())
    (again,) = run("default", data, tmp_path / "more", steps=1, start_from=trained, report=silent)
    card = json.loads(again.with_suffix(".json").read_text())
    before = json.loads(trained.with_suffix(".json").read_text())
    assert card["started_from"]["sha256"] == before["sha256"]
    assert card["started_from"]["trained"] == before["trained"]
    with pytest.raises(ModelRefused, match="do not fit"):
        load_weights(SlabNet(width=32), trained)


@catches("networks/slab.py", "torch.zeros_like(weight) if name.startswith", "weight if name.startswith")
def test_a_deeper_network_begins_with_what_the_shallower_one_computes(tmp_path):
    shallow = SlabNet(width=8, deep_width=8, deep=1)
    envelope = {"factor": (2, 4), "thickness_over_spacing": (1, 1), "profiles": ["gaussian"]}
    export(shallow, {"name": "shallow", "envelope": envelope}, tmp_path / "shallow.onnx")
    deeper = SlabNet(width=8, deep_width=8, deep=3)
    load_weights(deeper, tmp_path / "shallow.onnx")
    with torch.no_grad():
        inputs = (torch.rand(1, 7, 16, 16), torch.rand(3), torch.rand(2, 7))
        torch.testing.assert_close(deeper(*inputs), shallow(*inputs))
    assert deeper.deep[2].first.weight.abs().max() > 0  # or it could never learn
    with pytest.raises(ModelRefused, match="do not fit"):
        load_weights(SlabNet(width=8, deep_width=8, deep=3, after=3), tmp_path / "shallow.onnx")
    with pytest.raises(ModelRefused, match="do not fit"):
        load_weights(SlabNet(width=8, deep_width=8, deep=0), tmp_path / "shallow.onnx")


@pytest.mark.parametrize(
    ("shape", "spacing", "reason"),
    [(None, 1.0, "without a NIfTI file"), ((20, 20, 20), 4.0, "near-isotropic"), ((20, 20, 20, 2), 1.0, "3-D")],
)
def test_volumes_that_nothing_can_be_learnt_from_are_refused_by_name(tmp_path, shape, spacing, reason):
    (tmp_path / "iso_train").mkdir()
    if shape is not None:
        voxels = np.random.default_rng(0).integers(0, 99, shape).astype(np.int16)
        save_scan(tmp_path / "iso_train" / "odd.nii.gz", voxels, np.diag([1.0, 1.0, spacing, 1.0]))
    with pytest.raises(InputRefused, match=f"{reason}.*next:") as refusal:
        run("default", tmp_path, tmp_path / "out", steps=1, report=silent)
    assert ("odd.nii.gz" in str(refusal.value)) == (shape is not None)
    assert not (tmp_path / "out").exists()


def test_a_start_that_is_not_there_is_refused(data, tmp_path):
    with pytest.raises(ModelRefused, match=r"none\.onnx, which cannot be read.*next:"):
        run("default", data, tmp_path / "out", steps=1, start_from=tmp_path / "none.onnx", report=silent)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [("nothing", None), ("default", "empty")])
def test_an_unknown_recipe_or_a_missing_source_is_refused(words, data, tmp_path):
    recipe, folder = words
    with pytest.raises((ModelRefused, InputRefused), match="next:"):
        run(recipe, data if folder is None else tmp_path, tmp_path / "out", steps=1, report=silent)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_planes_recipe_ends_with_a_family_for_mr_and_one_for_ct(data_for_planes, tmp_path):
    models = run("planes", data_for_planes, tmp_path, steps=8, report=silent)
    assert len(models) == 8
    mr, ct = (find_model(str(tmp_path / name)) for name in ("planes-mr", "planes-ct"))
    for model in (mr, ct):
        assert model.envelope.only_factors == (2, 4)
        assert model.envelope.in_plane == (1, 2, 4)
        assert set(model.planes) == {(part, factor) for part in ("in-plane", "depth") for factor in (2, 4)}
    assert (mr.envelope.hounsfield, ct.envelope.hounsfield) == (False, True)
    assert mr.sha256 != ct.sha256
    alone = find_model(str(tmp_path / "planes-mr.depth-x2.onnx"))
    assert set(alone.planes) == {("depth", 2)}
    card = json.loads((tmp_path / "planes-ct.in-plane-x4.json").read_text())
    assert list(card["trained"]) == ["mr-in-plane-x4", "ct-in-plane-x4"]
    assert card["trained"]["ct-in-plane-x4"]["steps"] == 1
    assert [row["file"] for row in card["data"] if "slices" in row] == ["ct/chest.nii.gz"]
    assert [row["file"] for row in card["data"]] == ["iso_train/small.nii.gz", "ct/chest.nii.gz"]
    assert card["parameters"] == pytest.approx(47_000, rel=0.1)
    voxels = np.random.default_rng(0).integers(-1000, 2000, (20, 22, 12)).astype(np.int16)
    volume = Volume(voxels, np.diag([1.0, 1.0, 4.0, 1.0]))
    plan = plan_for(volume, factor=4, in_plane=2, model=ct.name, envelope=ct.envelope)
    answer = upsample(volume, plan, ct).volume.voxels
    assert answer.shape == (40, 44, 48)
    assert np.isfinite(answer).all()


@catches(
    "training/runner.py",
    'Path(start) / f"{stage.model}.onnx" for stage in stages if',
    'Path(start) / f"{stages[0].model}.onnx" for stage in stages if',
)
@pytest.mark.slow
def test_every_network_for_planes_goes_on_from_its_own_file(data_for_planes, tmp_path):
    run("planes", data_for_planes, tmp_path / "first", steps=8, report=silent)
    models = run("planes", data_for_planes, tmp_path / "more", steps=8, start_from=tmp_path / "first", report=silent)
    for path in models:
        before, after = (json.loads((tmp_path / f / f"{path.stem}.json").read_text()) for f in ("first", "more"))
        assert after["started_from"]["sha256"] == before["sha256"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelRefused, match=r"no model of this recipe.*next:"):
        run("planes", data_for_planes, tmp_path / "third", steps=8, start_from=tmp_path / "empty", report=silent)


@catches("training/export.py", "for name in exported.inputs.keys() - traced:", "for name in ():")
@pytest.mark.slow
def test_a_network_that_makes_the_image_anew_can_be_used_like_any_other(data_for_planes, tmp_path):
    models = run("planes-paper", data_for_planes, tmp_path, steps=8, report=silent)
    assert len(models) == 8
    model = find_model(str(tmp_path / "planes-mr"))
    volume = Volume(np.random.default_rng(0).random((20, 22, 6)), np.diag([1.0, 1.0, 4.0, 1.0]))
    plan = plan_for(volume, factor=4, in_plane=2, model=model.name, envelope=model.envelope)
    assert upsample(volume, plan, model).volume.voxels.shape == (40, 44, 24)


# ---- video, then MR


@pytest.fixture(scope="module")
def data_with_video(data, tmp_path_factory):
    """The same as ``data``, and three clips, one of them share-alike."""
    pytest.importorskip("av", reason="clips are read with PyAV, which comes with thinslice[video]")
    from make_clips import save_clip

    folder = tmp_path_factory.mktemp("video")
    (folder / "iso_train").symlink_to(data / "iso_train")
    (folder / "video").mkdir()
    for seed, name in enumerate("abc"):
        frames = np.random.default_rng(seed).integers(0, 256, (16, 20, 24), dtype=np.uint8)
        save_clip(folder / "video" / f"{name}.mkv", frames)
    rows = 'file,source,origin,licence\nvideo/a.mkv,a,Rome,"BSD (""read"", twice)"\nvideo/b.mkv,b,Paris,CC BY-SA 4.0\n'
    (folder / "video" / "manifest.csv").write_text(rows)
    return folder


@pytest.fixture
def short_video_mr(monkeypatch):
    """The recipe with a small network, 4 steps of video and 12 of MR, all saved and told."""
    stages = [
        replace(
            stage,
            objective=replace(stage.objective, patches=2, size=16),
            network=Architecture("slab", SMALL),
            schedule=replace(stage.schedule, steps=stage.schedule.steps // 1250, save_every=1, log_every=1, warm_up=2),
        )
        for stage in video_mr.stages()
    ]
    monkeypatch.setattr(video_mr, "RECIPE", Recipe(lambda: stages))
    return stages


def test_a_quarter_of_the_steps_goes_to_video():
    video, iso = video_mr.stages()
    (whole,) = default.stages()
    assert video.schedule.steps * 3 == iso.schedule.steps
    assert video.schedule.steps + iso.schedule.steps == whole.schedule.steps
    assert (iso.objective, iso.network) == (
        whole.objective,
        whole.network,
    )  # so it is the first stage alone that differs
    assert (video.start, video.model, iso.start, iso.model) == (None, None, "video", "video-mr")
    assert isinstance(video.objective, SlabObjective)
    assert video.network == iso.network
    assert video.objective.slabs * max(video.objective.ranges.whole) == FEWEST
    assert video.objective.ranges.kept == 1.0


@catches("training/runner.py", "network.load_state_dict(done.networks[stage.start].state_dict())", "pass")
def test_the_second_stage_starts_from_the_averaged_weights_of_the_first(
    data_with_video, short_video_mr, tmp_path, monkeypatch
):
    begun, real = [], runner.fit

    def fit(network, *rest):
        begun.append({name: weight.clone() for name, weight in network.state_dict().items()})
        return real(network, *rest)

    monkeypatch.setattr(runner, "fit", fit)
    run("video-mr", data_with_video, tmp_path, steps=8, report=silent)
    saved = torch.load(tmp_path / "video" / "checkpoint.pt")
    assert saved["step"] == 2
    assert len(begun) == 2
    for name, weight in begun[1].items():
        torch.testing.assert_close(weight, saved["average"][name], rtol=0, atol=0)
    assert any(not torch.equal(weight, begun[0][name]) for name, weight in begun[1].items())
    assert any(not torch.equal(weight, saved["network"][name]) for name, weight in begun[1].items())


@catches("training/sources.py", "for path in find_clips(folder)[0]:", "for path in sum(find_clips(folder), []):")
def test_the_card_names_the_clips_that_were_learnt_from(data_with_video, short_video_mr, tmp_path):
    told = []
    (path,) = run("video-mr", data_with_video, tmp_path, steps=8, report=told.append)
    assert path.name == "video-mr.onnx"
    assert told[0] == "video: 2 volumes; 1 clips left out, whose licence is share-alike"
    assert "iso: 1 volumes" in told
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["data"][:2] == [
        {"files": ["video/a.mkv"], "licence": 'BSD ("read", twice)', "source": "Rome"},
        {"files": ["video/c.mkv"], "licence": "unknown", "source": "unknown"},
    ]
    assert [row["file"] for row in card["data"][2:]] == ["iso_train/small.nii.gz"]
    assert card["left_out_as_share_alike"] == ["video/b.mkv"]
    assert {name: length["steps"] for name, length in card["trained"].items()} == {"video": 2, "iso": 6}
    assert [stage["name"] for stage in card["recipe"]] == ["video", "iso"]
    assert isinstance(find_model(str(path)), SlabModel)


@catches("training/runner.py", "return [stage for stage in stages if stage.name in used]", "return list(stages)")
def test_from_an_earlier_run_of_two_stages_only_the_last_one_is_trained(data_with_video, short_video_mr, tmp_path):
    (first,) = run("video-mr", data_with_video, tmp_path / "first", steps=8, report=silent)
    told = []
    (path,) = run("video-mr", data_with_video, tmp_path / "more", steps=3, start_from=first.parent, report=told.append)
    assert not any(line.startswith("video:") for line in told)
    assert not (tmp_path / "more" / "video").exists()
    card = json.loads(path.with_suffix(".json").read_text())
    assert [stage["name"] for stage in card["recipe"]] == list(card["trained"]) == ["iso"]
    assert card["trained"]["iso"]["steps"] == 3
    assert {row.get("file") for row in card["data"]} == {"iso_train/small.nii.gz"}
    assert card["started_from"]["sha256"] == find_model(str(first)).sha256
    assert list(card["started_from"]["trained"]) == ["video", "iso"]


def test_the_start_of_the_first_stage_is_on_the_card_of_the_last(data_with_video, short_video_mr, tmp_path):
    (first,) = run("video-mr", data_with_video, tmp_path / "first", steps=4, report=silent)
    (path,) = run("video-mr", data_with_video, tmp_path / "more", steps=4, start_from=first, report=silent)
    card = json.loads(path.with_suffix(".json").read_text())
    assert list(card["trained"]) == ["video", "iso"]
    assert card["started_from"]["sha256"] == find_model(str(first)).sha256


def test_the_average_of_the_frames_is_a_recipe_too():
    picks, averages = (load_recipe(name).stages() for name in ("video-mr", "video-mr-average"))
    assert (picks[0].objective.ranges.kept, averages[0].objective.ranges.kept) == (1.0, 0.0)
    assert [stages[-1].model for stages in (picks, averages)] == ["video-mr", "video-mr-average"]


@catches("training/sources.py", "if fit and isinstance(stage.source, Folders)", "if isinstance(stage.source, Folders)")
def test_a_new_source_is_a_folder_name(data_with_video, short_video_mr, tmp_path):
    """Volumes and clips that are put beside the others are learnt from by the stages that learn from such."""
    folder = shutil.copytree(data_with_video, tmp_path / "data")
    shutil.copytree(folder / "iso_train", folder / "iso_more")
    shutil.copytree(folder / "video", folder / "films")
    told, more = [], ["iso_more", "films"]
    (path,) = run("video-mr", folder, tmp_path / "out", steps=4, add_source=more, report=told.append)
    assert [line.split(";")[0] for line in told if "volumes" in line] == ["video: 4 volumes", "iso: 2 volumes"]
    rows = json.loads(path.with_suffix(".json").read_text())["data"]
    assert {"iso_train/small.nii.gz", "iso_more/small.nii.gz"} <= {row.get("file") for row in rows}
    assert ["films/a.mkv"] in [row.get("files") for row in rows]


@catches(
    "training/runner.py",
    'optional, length = ("start_from", "add_source"), ("minutes", "steps")',
    'optional, length = (), ("start_from", "add_source", "minutes", "steps")',
)
@pytest.mark.slow
def test_a_resumed_run_learns_from_what_it_was_begun_with(data, trained, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data")
    shutil.copytree(folder / "iso_train", folder / "iso_more")
    wish = {"steps": 2, "start_from": trained, "add_source": ["iso_more"], "report": silent}
    (path,) = run("default", folder, tmp_path / "out", **wish)
    before = json.loads(path.with_suffix(".json").read_text())
    (again,) = run("default", folder, tmp_path / "out", resume=True, steps=3, report=silent)
    card = json.loads(again.with_suffix(".json").read_text())
    assert card["trained"]["iso"]["steps"] == 3
    for key in ("data", "started_from"):
        assert card[key] == before[key]
    assert len(card["data"]) == 2
    for other in ({"start_from": tmp_path / "other.onnx"}, {"add_source": ["iso_train"]}):
        with pytest.raises(InputRefused, match=r"got .*begun with another.*need .*next: "):
            run("default", folder, tmp_path / "out", resume=True, report=silent, **other)


def test_a_model_that_is_there_is_not_replaced_by_a_new_training(data, tmp_path):
    (tmp_path / "default.onnx").write_bytes(b"dear")
    with pytest.raises(OutputRefused, match=r"default\.onnx: got .*need .*next: "):
        run("default", data, tmp_path, steps=1, report=silent)
    assert [path.name for path in tmp_path.iterdir()] == ["default.onnx"]
    assert (tmp_path / "default.onnx").read_bytes() == b"dear"


def test_a_source_that_no_stage_learns_from_is_refused_with_a_way_out(data, tmp_path, capsys):
    folder = shutil.copytree(data, tmp_path / "data")
    shutil.copytree(folder / "iso_train", folder / "mine")
    for name in ("mine", "none"):
        words = ["train", "default", "--data", folder, "-o", tmp_path / "out", "--steps", 1, "--add-source", name]
        assert main([str(word) for word in words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert all(word in line for word in (name, "got ", "need ", "next: "))
    assert not (tmp_path / "out").exists()


@catches("training/runner.py", 'request["minutes"], request["steps"])', "minutes, steps)")
@pytest.mark.parametrize(("stage", "step"), [("video", 2), ("iso", 3)])
@pytest.mark.slow
def test_a_killed_run_of_two_stages_goes_on_where_it_was(data_with_video, short_video_mr, tmp_path, stage, step):
    class Killed(Exception):
        pass

    at = []

    def until_killed(line):
        at.append(line.partition(":")[0] if ": " in line else line)
        stages = [entry for entry in at if entry in ("video", "iso")]
        if stages[-1] == stage and line.startswith(f"step {step} "):
            raise Killed

    run("video-mr", data_with_video, tmp_path / "whole", steps=8, report=silent)
    with pytest.raises(Killed):
        run("video-mr", data_with_video, tmp_path / "killed", steps=8, report=until_killed)
    assert torch.load(tmp_path / "killed" / stage / "checkpoint.pt")["step"] == step - 1
    told = []
    run("video-mr", data_with_video, tmp_path / "killed", resume=True, report=told.append)
    assert any(line.startswith(f"resumed at step {step - 1} ") for line in told)
    whole, again = (torch.load(tmp_path / name / "iso" / "checkpoint.pt") for name in ("whole", "killed"))
    assert (whole["step"], again["step"]) == (6, 6)
    for name, weight in whole["average"].items():
        torch.testing.assert_close(again["average"][name], weight, rtol=0, atol=1e-6)


def test_a_folder_is_read_by_what_it_holds(data_with_video, tmp_path):
    corpus = read(data_with_video, {"video": 3.0, "iso_train": 1.0})
    assert [thin.axes for thin in corpus] == [(0,), (0,), (0, 1, 2)]
    assert corpus[0].weight == pytest.approx(3 * (16 * 20 * 24) ** 0.5)
    (tmp_path / "anything").mkdir()
    with pytest.raises(InputRefused, match=r"without a NIfTI file or a clip.*next:"):
        read(tmp_path, {"anything": 1.0})
    (tmp_path / "anything" / "c.mkv").symlink_to(data_with_video / "video" / "c.mkv")
    assert [thin.axes for thin in read(tmp_path, {"anything": 1.0})] == [(0,)]


def test_without_the_package_for_clips_the_command_names_the_remedy(data_with_video, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "av", None)
    assert main(["train", "video-mr", "--data", str(data_with_video), "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    remedy = "got no av; need it for training; next: pip install 'thinslice[video]'"
    assert (said.out, said.err) == ("", f"thinslice: {remedy}\n")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_model_of_the_recipe_names_the_one_it_needs(data_with_video, tmp_path):
    with pytest.raises(ModelRefused, match=r"need video-mr\.onnx"):
        run("video-mr", data_with_video, tmp_path / "out", steps=8, start_from=tmp_path, report=silent)


def test_all_sources_are_looked_for_before_anything_is_trained(data, tmp_path):
    with pytest.raises(InputRefused, match="no folder ct"):
        run("planes", data, tmp_path / "out", steps=8, report=silent)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_resumed_run_keeps_its_length_and_leaves_what_is_done(data, tmp_path, monkeypatch):
    (stage,) = default.stages()
    short = replace(stage, schedule=replace(stage.schedule, steps=5))
    monkeypatch.setattr(default, "RECIPE", Recipe(lambda: [short]))
    (path,) = run("default", data, tmp_path, steps=2, report=silent)
    before = path.stat().st_mtime_ns
    run("default", data, tmp_path, resume=True, report=silent)
    assert json.loads(path.with_suffix(".json").read_text())["trained"]["iso"]["steps"] == 2
    assert path.stat().st_mtime_ns == before
    run("default", data, tmp_path, resume=True, steps=3, report=silent)
    assert json.loads(path.with_suffix(".json").read_text())["trained"]["iso"]["steps"] == 3


def test_the_papers_setting_is_a_recipe():
    for stage in planes_paper.stages():
        assert (stage.objective.shrinking.scanner, stage.objective.intermediate) == (0.0, 1.0)
        assert stage.objective.shrinking.sigma_vox == (0.0, 0.5)
        network = stage.network.build()
        assert not network.residual
        assert sum(p.numel() for p in network.parameters()) == pytest.approx(57_000, rel=0.08)
        assert stage.schedule.muon_rate == 0


@pytest.mark.slow
def test_two_processes_train_one_model(data, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["-m", "thinslice", "train", "default", "--data", str(data), "-o", str(tmp_path / "out"), "--steps", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*launch, *words], capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("wrote") == 1  # the first process alone speaks and exports
    card = json.loads((tmp_path / "out" / "default.json").read_text())
    assert card["processes"] == "2 x cpu"
    assert find_model(str(tmp_path / "out" / "default.onnx")).sha256 == card["sha256"]


@catches("training/sources.py", "v.weight / sums[kind] ** 0.5", "v.weight / sums[kind]")
def test_contrasts_are_drawn_by_the_root_of_how_much_there_is_of_each(data, tmp_path):
    """Four T1 and one FLAIR: drawn two to one, and without a manifest, or unbalanced, four to one."""
    (tmp_path / "iso_train").mkdir()
    names = [f"{letter}.nii.gz" for letter in "abcde"]
    for name in names:
        (tmp_path / "iso_train" / name).symlink_to(data / "iso_train" / "small.nii.gz")

    def shares(balanced):
        volumes = Folders({"iso_train": 1.0}, balanced).volumes(Inputs(tmp_path), {})
        return np.array([v.weight for v in volumes]) / sum(v.weight for v in volumes)

    np.testing.assert_allclose(shares(True), 0.2)
    kinds = ["T1 MPRAGE", "T1", "T1 3D", "T1", "FLAIR"]
    rows = [f"iso_train/{name},CC0,{kind}" for name, kind in zip(names, kinds, strict=True)]
    (tmp_path / "manifest.csv").write_text("\n".join(["file,licence,contrast", *rows]))
    np.testing.assert_allclose(shares(True), [1 / 6] * 4 + [1 / 3])
    np.testing.assert_allclose(shares(False), 0.2)
