"""The house rules that can be read off the source."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import thinslice
from faults import all_faults

SOURCE = Path(thinslice.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

LAYERS = [
    {"errors", "progress"},
    {"settings"},
    {"volume"},
    {"physics", "networks"},
    {"models"},
    {"plan"},
    {"io"},
    {"compute"},
    {"reports"},
    {"evaluation"},
    {"api"},
    {"datasets", "training"},
    {"cli"},
    {"__main__"},
]
"""From the ground up. A module imports from its own wing, without a circle, and from the layers below it."""


def name_of(path):
    """A package is called by its folder, ours by nothing."""
    *folders, name = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(folders if name == "__init__" else [*folders, name])


def imports_of(path):
    """Full names of everything imported anywhere in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers(package):
    return {name_of(path) for path in FILES if any(n.split(".")[0] == package for n in imports_of(path))}


def test_only_networks_and_training_import_torch():
    assert all(name.split(".")[0] in ("networks", "training") for name in importers("torch"))


def test_what_is_imported_is_what_is_installed():
    """Without extras; an import that only the tests' own packages bring works here and nowhere else."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads pyproject.toml")
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = {False: project["dependencies"], True: project["dependencies"] + extras["train"] + extras["video"]}
    for path in FILES:
        declared = named[name_of(path).split(".")[0] in ("networks", "training")]
        known = {re.split(r"\W", wanted)[0] for wanted in declared} | {"thinslice", "PIL", "nrrd"}
        known |= sys.stdlib_module_names
        known |= (
            {"cryptography", "dask", "distributed"} if name_of(path) == "datasets.engine" else set()
        )  # an extra, named where it is missed
        known |= {"dicomanonymizer"} if name_of(path) == "io.dicom.identity" else set()  # an extra, named where missed
        assert {name.split(".")[0] for name in imports_of(path)} <= known, path


@pytest.mark.parametrize(
    ("package", "doors"),
    [
        ("nibabel", {"io.nifti", "io.mgh"}),
        ("nrrd", {"io.nrrd"}),
        ("onnxruntime", {"models.engine"}),
        ("pydicom", {"io.dicom"}),
        ("av", {"training.clips"}),
        ("dask", {"datasets.engine"}),
        ("distributed", {"datasets.engine"}),
    ],
)
def test_there_are_few_doors_to_each_package(package, doors):
    assert {"io.dicom" if name.startswith("io.dicom.") else name for name in importers(package)} <= doors


MODULES = {name_of(path): path for path in FILES}


def wing_of(name):
    return name.split(".")[0]


def layer_of(name):
    return next(number for number, wings in enumerate(LAYERS) if wing_of(name) in wings)


def modules_imported(name):
    """The modules of the package that one imports, wherever in its text."""
    wanted = [target.removeprefix("thinslice.") for target in imports_of(MODULES[name])]
    known = {max((m for m in MODULES if w == m or w.startswith(m + ".")), key=len, default=None) for w in wanted}
    return known - {None, name}


@pytest.mark.parametrize("name", [name for name in MODULES if name])
def test_modules_import_only_from_their_wing_and_the_layers_below(name):
    for other in modules_imported(name):
        assert wing_of(other) == wing_of(name) or layer_of(other) < layer_of(name), f"{name} imports {other}"


def test_no_module_imports_itself_by_way_of_others():
    graphlib.TopologicalSorter({name: modules_imported(name) for name in MODULES}).prepare()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_command_line_prints(path):
    if name_of(path) == "cli.terminal":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "input", "breakpoint"), f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_annotations_are_real(path):
    assert "__future__" not in list(imports_of(path))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_module_is_a_drawer_for_odds_and_ends(path):
    assert path.stem not in ("utils", "helpers", "common", "misc", "base", "core", "manager", "handler")


def modules_after(statement):
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_the_command_line_starts_without_numpy():
    assert not modules_after("import thinslice.cli") & {"numpy", "nibabel", "onnxruntime", "torch", "PIL"}


def test_enhancing_a_scan_does_not_load_torch():
    loaded = modules_after("import thinslice.compute.upsample, thinslice.io.nifti, thinslice.models.registry")
    assert not loaded & {"torch", "onnx", "onnxruntime"}


def test_every_planted_fault_still_fits_the_source():
    misfits = [f"{why}: {fault}" for fault in all_faults() if (why := fault.misfit())]
    assert not misfits, "\n".join(misfits)
