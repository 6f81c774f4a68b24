"""The runner of all recipes: what a new recipe and a new network cost, equal seeds, one run in a folder at a time."""

import json
import subprocess
import sys

import numpy as np
import pytest

from faults import catches
from make_scans import save_scan
from thick_scans import SMALL, save_thick
from thinslice.errors import InputRefused, ModelRefused, OutputRefused
from thinslice.models.registry import find_model
from thinslice.pipeline import enhance_volume, read_scan
from thinslice.settings import Settings

pytest.importorskip("torch", reason="training needs torch, which comes with thinslice[train]")
pytest.importorskip("onnx", reason="the export needs onnx, which comes with thinslice[train]")

import torch
from torch import nn

from thinslice.networks.contract import SlabNetwork
from thinslice.networks.registry import NETWORKS, Architecture
from thinslice.training import recipes
from thinslice.training.fit import Schedule
from thinslice.training.objectives import SlabObjective
from thinslice.training.run_state import RunFolder
from thinslice.training.runner import needed_stages, stages_behind, train, train_on_data
from thinslice.training.sources import AcquiredSlices, Folders, SyntheticVolumes
from thinslice.training.stages import Stage

QUICK = Schedule(steps=2, warm_up=1, batches=1, save_every=1)
TINY = SlabObjective(patches=1, size=16, slabs=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with one small near-isotropic volume."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "iso_train").mkdir()
    voxels = (100 * np.random.default_rng(0).random((40, 36, 38))).astype(np.int16)
    save_scan(folder / "iso_train" / "small.nii.gz", voxels, np.eye(4))
    return folder


def quiet(line):
    pass


def stage_of(network, name="iso", **more):
    return Stage(name, Folders({"iso_train": 1.0}), TINY, network, QUICK, **more)


def weights_in(out, stage="iso"):
    return torch.load(out / stage / "checkpoint.pt", weights_only=True)["average"]


# ---- what is added


TOY_RECIPE = """
from thinslice.networks.registry import Architecture
from thinslice.training.fit import Schedule
from thinslice.training.objectives import SlabObjective
from thinslice.training.sources import Folders
from thinslice.training.stages import Recipe, Stage

RECIPE = Recipe(
    lambda: [
        Stage(
            "iso",
            Folders({"iso_train": 1.0}),
            SlabObjective(patches=1, size=16, slabs=2),
            Architecture("slab", {"width": 8, "before": 1, "deep_width": 8, "deep": 1, "after": 0}),
            Schedule(steps=2, warm_up=1),
            model="mine",
        )
    ]
)
"""


def test_a_recipe_is_one_file(run, data, tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "my_own.py").write_text(TOY_RECIPE)
    monkeypatch.setattr(recipes, "__path__", [*recipes.__path__, str(tmp_path / "recipes")])
    code, out, err = run("train", "my-own", "--data", data, "-o", tmp_path / "out")
    assert (code, err) == (0, [])
    assert out[-1] == f"use it: thinslice enhance --model {tmp_path / 'out' / 'mine.onnx'} -i IN -o OUT"
    assert json.loads((tmp_path / "out" / "mine.json").read_text())["trained"]["iso"]["steps"] == 2
    monkeypatch.delitem(sys.modules, "thinslice.training.recipes.my_own")


class Toy(SlabNetwork):
    """One convolution, and the share of the nearer slice."""

    context = 1
    multiple = 1
    reach = 1

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.settings = {"width": width}
        self.entry = nn.Conv2d(3, width, 3, padding=1)
        self.exit = nn.Linear(self.n_geometry + self.n_position, width)

    def trunk(self, slices, geometry):
        return self.entry(slices)

    def read_out(self, features, geometry, position):
        code = torch.cat([geometry.unsqueeze(0).expand(position.shape[0], self.n_geometry), position], dim=1)
        return torch.einsum("nwhv,pw->nphv", features, self.exit(code))


def test_a_network_is_a_module_and_a_row_and_any_recipe_trains_it(data, tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "toy", Toy)
    stages = [stage_of(Architecture("toy", {"width": 3}), model="toy")]
    (model,) = train_on_data(stages, data, tmp_path / "out", report=quiet)
    assert weights_in(tmp_path / "out")["entry.weight"].shape[0] == 3
    scan = save_thick(tmp_path / "scan.nii.gz")
    done = enhance_volume(read_scan(scan), Settings(), find_model(model))
    assert done.volume.shape == (64, 56, 40)


def test_names_of_recipes_need_no_torch():
    code = "import sys, thinslice.cli; from thinslice.training.recipes import recipe_names; print(recipe_names())"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print('torch' in sys.modules, 'numpy' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    names, loaded = done.stdout.splitlines()
    assert "video-mr-average" in names
    assert loaded == "False False"


def test_a_recipe_that_would_leave_nothing_is_refused(run, data, tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "in_vain.py").write_text(TOY_RECIPE.replace('model="mine",', ""))
    monkeypatch.setattr(recipes, "__path__", [*recipes.__path__, str(tmp_path / "recipes")])
    code, out, err = run("train", "in-vain", "--data", data, "-o", tmp_path / "out")
    monkeypatch.delitem(sys.modules, "thinslice.training.recipes.in_vain")
    assert (code, out) == (2, [])
    assert "no stage of which ends with a model file; need one that does; next: " in err[0]
    assert not (tmp_path / "out").exists()


def test_a_recipe_for_scans_is_not_run_on_a_folder_of_sources(data, tmp_path):
    for name, code in (("adapt", "recipe-learns-from-scans"), ("no-such", "unknown-recipe")):
        with pytest.raises(ModelRefused, match=r"got .*need .*next: ") as refusal:
            train(name, data, tmp_path / "out", report=quiet)
        assert refusal.value.code == code
    assert not (tmp_path / "out").exists()


# ---- equal seeds


@catches("training/runner.py", "    torch.manual_seed(seed)\n", "")
def test_equal_seeds_give_equal_weights_and_others_do_not(data, tmp_path):
    stages = [stage_of(Architecture("slab", SMALL), model="small")]
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        train_on_data(stages, data, tmp_path / name, seed=seed, report=quiet)
    one, two, other = (weights_in(tmp_path / name) for name in ("one", "two", "other"))
    assert all(torch.equal(weight, two[name]) for name, weight in one.items())
    assert any(not torch.equal(weight, other[name]) for name, weight in one.items())


@catches("networks/registry.py", "for _ in range(self.draws - 1):", "for _ in range(0):")
def test_the_second_draw_counts_where_it_always_did():
    torch.manual_seed(0)
    first, second = (Architecture("slice-vae", {"widths": (2,), "latent": 1}).build() for _ in range(2))
    torch.manual_seed(0)
    drawn_twice = Architecture("slice-vae", {"widths": (2,), "latent": 1}, draws=2).build()
    for name, weight in drawn_twice.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])
    assert any(not torch.equal(weight, first.state_dict()[name]) for name, weight in drawn_twice.state_dict().items())


# ---- which stage builds on which


@catches("training/runner.py", "(*start, *stage.source.needs)", "(*start,)")
def test_a_stage_builds_on_its_start_and_on_what_makes_its_volumes(tmp_path):
    plain = Stage("plain", AcquiredSlices())
    fine = Stage("fine", AcquiredSlices(), start="plain")
    model = Stage("model", SyntheticVolumes("fine"), model="model")
    unused = Stage("unused", AcquiredSlices())
    stages = [plain, fine, unused, model]
    assert stages_behind(model, stages, {}) == [plain, fine, model]
    assert needed_stages(stages, {}) == [plain, fine, model]
    assert needed_stages(stages, {"fine": tmp_path / "fine.onnx"}) == [fine, model]


# ---- one folder


@catches("training/runner.py", "    with folder if rank == 0 else nullcontext():\n", "    with nullcontext():\n")
def test_two_trainings_do_not_meet_in_one_folder(data, tmp_path):
    stages = [stage_of(Architecture("slab", SMALL), model="small")]
    with RunFolder(tmp_path / "out"), pytest.raises(OutputRefused, match=r"another training is running; need"):
        train_on_data(stages, data, tmp_path / "out", report=quiet)
    train_on_data(stages, data, tmp_path / "out", report=quiet)
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", ["small.onnx", "small.json"])
def test_neither_a_model_nor_a_card_is_replaced(data, tmp_path, name):
    (tmp_path / name).write_text("mine")
    stages = [stage_of(Architecture("slab", SMALL), model="small")]
    with pytest.raises(OutputRefused, match=name):
        train_on_data(stages, data, tmp_path, report=quiet)
    assert (tmp_path / name).read_text() == "mine"


@catches("training/run_state.py", "        if not known:\n            raise", "        if False:\n            raise")
def test_a_training_of_an_earlier_version_is_not_gone_on_with(data, tmp_path):
    (tmp_path / "wish.json").write_text('{"start": null, "more_sources": [], "minutes": null, "steps": 4}')
    stages = [stage_of(Architecture("slab", SMALL), model="small")]
    with pytest.raises(InputRefused, match=r"earlier version.*need .*next: ") as refusal:
        train_on_data(stages, data, tmp_path, resume=True, report=quiet)
    assert refusal.value.code == "training-of-another-version"


def test_a_run_is_resumed_by_its_own_recipe_alone(data, tmp_path):
    stages = [stage_of(Architecture("slab", SMALL), model="small")]
    train_on_data(stages, data, tmp_path, "one", report=quiet)
    with pytest.raises(InputRefused, match="another recipe"):
        train_on_data(stages, data, tmp_path, "other", resume=True, report=quiet)
    model = tmp_path / "small.onnx"
    before = model.stat().st_mtime_ns
    train_on_data(stages, data, tmp_path, "one", resume=True, report=quiet)
    assert model.stat().st_mtime_ns == before
    assert find_model(model).sha256 == json.loads((tmp_path / "small.json").read_text())["sha256"]
