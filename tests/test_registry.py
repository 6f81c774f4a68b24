"""What a name of a model stands for: the same for every verb."""

import os
import re
import shutil
from pathlib import Path

import pytest

import thinslice
from faults import catches
from test_cli import make_scan
from thinslice.errors import ModelRefused
from thinslice.models.registry import EMBEDDED, Resolved, find_model, identify, known_names, resolve, to_absolute


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put_model(path):
    """A model file at that place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(EMBEDDED / "planes-mr.depth-x2.onnx", path))


IN_THE_WAY = ["{}/scan.onnx", "{}.onnx", "{}", "{}.depth-x2.onnx"]
"""Files that may be called like a model."""


@catches("models/registry.py", "    if is_known_name(name):", "    if is_known_name(name) and not Path(name).exists():")
@pytest.mark.parametrize("file", IN_THE_WAY)
@pytest.mark.parametrize("name", known_names())
def test_no_file_takes_the_place_of_a_known_name(here, name, file):
    before = resolve(name)
    there = put_model(here / file.format(name))
    assert resolve(name) == before
    assert to_absolute(name) == name
    for spelled in (f"./{name}", Path(name), here / name, to_absolute(f"./{name}")):
        found = resolve(spelled)
        assert not found.embedded
        assert [path.resolve() for path in found.files] == [there.resolve()]


VERBS = {
    "enhance": "enhance -i in/scan.nii.gz -o thin.nii.gz --model cubic",
    "info": "info -i in/scan.nii.gz --model cubic",
    "batch": "batch -i in -o out --model cubic -q",
    "demo": "demo -o demo --model cubic",
    "evaluate": "evaluate -i truth -o results --models cubic,linear -q",
    "study": "study -i in -o study.html --methods cubic,linear --pairs 2 --repeats 1 -q",
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_folder_does_not_take_the_place_of_an_interpolation_in_any_verb(here, run, verb):
    put_model(here / "cubic" / "scan.onnx")
    make_scan(here / "in" / "scan.nii.gz", shape=(48, 40, 8))
    make_scan(here / "truth" / "scan.nii.gz", spacing_mm=(1.0, 1.0, 1.0), shape=(24, 24, 30))
    code, _, complained = run(*VERBS[verb].split())
    assert code == 0, complained
    hashes = {sha for file in here.rglob("*.json*") for sha in re.findall(r'"model_sha256": (\S+)', file.read_text())}
    assert {sha.strip(",}") for sha in hashes} <= {"null"}


def test_nor_does_it_in_python(here):
    put_model(here / "cubic" / "scan.onnx")
    scan = make_scan(here / "scan.nii.gz")
    done = thinslice.enhance(scan, model="cubic")
    assert (done.plan.model, done.plan.model_sha256) == ("cubic", None)
    for reached in ("./cubic", Path("cubic")):
        with pytest.raises(ModelRefused, match="none of whose 1 models was adapted to this scan"):
            thinslice.enhance(scan, model=reached)


def test_nor_where_an_adaptation_starts(here):
    pytest.importorskip("torch", reason="adapt needs thinslice[train]")
    from thinslice.training.model_outputs import find_start

    put_model(here / "default" / "scan.onnx")
    put_model(here / "cubic" / "scan.onnx")
    assert find_start("default", "model") == EMBEDDED / "default.onnx"
    with pytest.raises(ModelRefused, match="no network of the kind that can be adapted"):
        find_start("cubic", "model")
    with pytest.raises(ModelRefused, match="a folder"):
        find_start("./cubic", "model")


def test_a_model_is_identified_by_its_content_whatever_it_is_called(here):
    one, other = put_model(here / "a.onnx"), put_model(here / "folder" / "b.onnx")
    assert identify("./a") == identify(other) == find_model(one).sha256
    assert identify("cubic") is None
    alone = identify("folder")
    assert alone not in (None, identify(one))
    shutil.copy(EMBEDDED / "planes-mr.depth-x4.onnx", here / "folder" / "c.onnx")
    assert identify("folder") != alone


def test_a_name_that_stands_for_nothing_is_refused_with_the_known_ones(here):
    with pytest.raises(ModelRefused, match=r"'quintic'.*nearest, linear, cubic, lanczos") as caught:
        resolve("quintic")
    assert caught.value.code == "no-such-model"


def test_a_path_means_the_same_in_another_folder(here):
    put_model(here / "mine.onnx")
    elsewhere = to_absolute("mine")
    os.chdir(EMBEDDED)
    assert resolve(elsewhere).files == (here / "mine.onnx",)


def test_a_folder_of_models_is_not_one_model(here):
    put_model(here / "models" / "a.onnx")
    assert resolve("models") == Resolved("folder", None, (Path("models/a.onnx"),))
    with pytest.raises(ModelRefused, match=r"a model for each of several scans.*such as models/a.onnx"):
        find_model("models")
