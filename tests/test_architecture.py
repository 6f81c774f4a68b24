"""docs/architecture.md is true: whoever adds what it says gets a format, a kind of model, an engine and a recipe."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

import thinslice

SOURCE = Path(thinslice.__file__).parent
PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
FILE = re.compile(r"# src/thinslice/([\w/]+\.py)\n")
ROW = re.compile(r"# src/thinslice/([\w/]+\.py), a row of (\w+)( and its import)?\n")


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the package with everything in it that the page adds; how many files were touched for each."""
    top = tmp_path_factory.mktemp("house")
    copy = top / "thinslice"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    touched = []
    for block in BLOCKS:
        if found := ROW.match(block):
            add_row(copy / found[1], found[2], block[found.end() :])
        elif found := FILE.match(block):
            assert not (copy / found[1]).exists(), "the page adds files, it changes none"
            (copy / found[1]).write_text(block[found.end() :])
        else:
            continue
        touched.append(found[1])
    return top, touched


def add_row(file, name, block):
    """The last lines of a block at the end of a tuple or dict of that name, its imports among the others."""
    text = file.read_text()
    (end,) = (node.end_lineno for node in ast.parse(text).body if name in names_bound(node))
    lines = text.splitlines(keepends=True)
    imports = [line for line in block.splitlines(keepends=True) if line.startswith("from ")]
    lines.insert(end - 1, "".join(line for line in block.splitlines(keepends=True) if line.startswith(" ")))
    first = next(number for number, line in enumerate(lines) if line.startswith(("import ", "from ")))
    lines[first:first] = imports
    file.write_text("".join(lines))


def names_bound(node):
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def run(house, *words, folder, ok=True):
    environment = os.environ | {"PYTHONPATH": str(house[0])}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout


def save_scan(path, shape=(24, 20, 6), thick_mm=4.0):
    rough = np.random.default_rng(0).random(shape)
    smooth = sum(np.roll(rough, shift, axis) for axis in range(3) for shift in (0, 1, 2))
    nibabel.save(nibabel.Nifti1Image((1000 * smooth).astype(np.float32), np.diag([1.0, 1.0, thick_mm, 1.0])), path)


def test_a_format_a_kind_and_a_network_are_two_files_each_and_a_recipe_is_one(house):
    assert sorted(house[1]) == sorted(
        [
            *("io/toy.py", "io/formats.py"),
            *("models/toy.py", "models/files.py"),
            "models/echo.py",
            *("networks/toy.py", "networks/registry.py"),
            "training/recipes/toy.py",
        ]
    )


def test_the_format_is_read_and_written_on_every_surface(house, tmp_path):
    save_scan(tmp_path / "scan.nii.gz")
    convert = (
        "from pathlib import Path; from thinslice.io.formats import read, write; "
        "write(read(Path('scan.nii.gz')), Path('scan.toy'))"
    )
    run(house, "-c", convert, folder=tmp_path)
    for scan, thin in (("scan.toy", "thin.toy"), ("scan.nii.gz", "other.nii.gz")):
        run(house, "-m", "thinslice", "enhance", "-i", scan, "-o", thin, "--model", "cubic", folder=tmp_path)
    compare = (
        "from pathlib import Path; from thinslice.io.formats import read; "
        "a, b = (read(Path(name)) for name in ('thin.toy', 'other.nii.gz')); "
        "assert (a.voxels == b.voxels).all() and abs(a.affine - b.affine).max() < 1e-6"
    )
    run(house, "-c", compare, folder=tmp_path)
    assert ".toy" in run(house, "-m", "thinslice", "enhance", "--help", folder=tmp_path)


def test_labels_in_the_format_stay_labels(house, tmp_path):
    save_scan(tmp_path / "scan.nii.gz")
    make = (
        "from pathlib import Path; import numpy; from thinslice import Volume; from thinslice.io.formats import write; "
        "drawn = numpy.zeros((24, 20, 6), numpy.uint8); drawn[5:15, 4:12, 1:4] = 7; drawn[15:20, 4:12, 2:] = 90; "
        "write(Volume(drawn, numpy.diag([1., 1, 4, 1])), Path('seg.toy'))"
    )
    run(house, "-c", make, folder=tmp_path)
    words = ("-i", "scan.nii.gz", "-o", "thin.nii.gz", "--labels", "seg.toy", "--labels-out", "thin_seg.toy")
    run(house, "-m", "thinslice", "enhance", *words, "--model", "cubic", folder=tmp_path)
    words = ("-i", "thin_seg.toy", "--like", "scan.nii.gz", "-o", "back.toy")
    assert "majority" in run(house, "-m", "thinslice", "reslice", *words, folder=tmp_path)
    check = (
        "from pathlib import Path; import numpy; from thinslice.io.formats import read; "
        "seg, thin, back = (read(Path(n)).voxels for n in ('seg.toy', 'thin_seg.toy', 'back.toy')); "
        "assert seg.dtype == thin.dtype == back.dtype == numpy.uint8 and set(numpy.unique(thin)) == {0, 7, 90}; "
        "assert (seg == back).all()"
    )
    run(house, "-c", check, folder=tmp_path)


def test_the_kind_of_model_answers_and_so_does_the_engine(house, tmp_path):
    pytest.importorskip("onnx")
    save_scan(tmp_path / "scan.nii.gz")
    (make,) = (block for block in BLOCKS if "helper.make_graph" in block)
    run(house, "-c", make, folder=tmp_path)
    for model, answer in (("toy.onnx", "toy.nii.gz"), ("cubic", "cubic.nii.gz")):
        words = ("-i", "scan.nii.gz", "-o", answer, "--model", model, "--no-projection")
        run(house, "-m", "thinslice", "enhance", *words, folder=tmp_path)
    toy, cubic = (nibabel.load(tmp_path / name).get_fdata() for name in ("toy.nii.gz", "cubic.nii.gz"))
    thick = nibabel.load(tmp_path / "scan.nii.gz").get_fdata()
    added = 0.001 * (np.repeat(thick, 4, axis=2) - np.percentile(thick, 0.5))
    np.testing.assert_allclose(toy - cubic, added, atol=1e-2)
    (use,) = (block for block in BLOCKS if 'ENGINES["echo"]' in block)
    check = "import numpy; assert model.session.run({'image': numpy.ones((1, 2, 2))})[0].sum() == 4"
    run(house, "-c", f"{use}\n{check}", folder=tmp_path)


@pytest.mark.slow
def test_the_recipe_trains_the_network_and_ends_with_a_model(house, tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "data" / "iso_train").mkdir(parents=True)
    save_scan(tmp_path / "data" / "iso_train" / "thin.nii.gz", shape=(60, 56, 52), thick_mm=1.0)
    save_scan(tmp_path / "scan.nii.gz")
    words = ("--data", "data", "-o", "out", "--steps", 2)
    run(house, "-m", "thinslice", "train", "toy", *words, folder=tmp_path)
    words = ("-i", "scan.nii.gz", "-o", "thin.nii.gz", "--model", "out/toy.onnx")
    assert "with toy" in run(house, "-m", "thinslice", "enhance", *words, folder=tmp_path)
