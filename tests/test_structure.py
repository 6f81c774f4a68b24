"""The house rules that can be read off the source."""

import ast
import graphlib
import pkgutil
import re
import runpy
import subprocess
import sys
import tokenize
from contextlib import suppress
from pathlib import Path

import pytest

import thinslice
from faults import ROOT, Fault, all_faults

SOURCE = Path(thinslice.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

LAYERS = [
    {"errors", "progress"},
    {"files"},
    {"settings"},
    {"volume"},
    {"physics", "networks"},
    {"models"},
    {"plan"},
    {"io"},
    {"compute"},
    {"reports"},
    {"evaluation"},
    {"pipeline"},
    {"combination"},
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
        known |= {"shtab"} if name_of(path) == "cli.completion" else set()  # an extra, named where it is missed
        known |= {"SimpleITK"} if name_of(path) == "compute.registration" else set()  # an extra, named where missed
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
        ("SimpleITK", {"compute.registration"}),
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


def test_there_are_as_many_planted_faults_as_ever():
    """`python tests/faults.py` shows that each is caught."""
    assert len(all_faults()) >= 540


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("no such words", "other words", "the text is gone"),
        ("def ", "class ", "the text is there"),
        ("class ThinsliceError(ValueError)", "class ThinsliceError(ValueError)", "nothing is changed"),
        ("class ThinsliceError(ValueError)", "class ThinsliceError(OSError)", ""),
    ],
)
def test_a_planted_fault_that_does_not_fit_is_noticed(old, new, why):
    assert Fault("test_structure.py::this", "errors.py", old, new).misfit()[: len(why) or None] == why


def test_every_planted_fault_still_fits_the_source():
    misfits = [f"{why}: {fault}" for fault in all_faults() if (why := fault.misfit())]
    assert not misfits, "\n".join(misfits)


# What is written in every module, and how

TREES = {name_of(path): ast.parse(path.read_text()) for path in FILES}


def functions():
    """(module:function, node) of every function of the source."""
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{name}:{node.name}", node


def test_few_modules_lie_on_the_top_floor():
    assert len(list(SOURCE.glob("*.py"))) <= 12


def test_no_function_is_longer_than_a_reader_can_hold():
    assert not [name for name, node in functions() if node.end_lineno - node.lineno + 1 > 85]


def test_a_constant_is_defined_on_a_line_of_its_own():
    """So that its unit and its reason can stand below it."""
    rooms = [(name, room) for name, tree in TREES.items() for room in [tree, *(n for n in tree.body if is_a_class(n))]]
    shared = [
        f"{name}: {ast.unparse(target)}"
        for name, room in rooms
        for statement in room.body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Tuple)
    ]
    assert not shared


def is_a_class(node):
    return isinstance(node, ast.ClassDef)


def test_comments_say_why_often_enough():
    """At least one in fifty lines; marks for tools do not count."""
    comments = lines = 0
    for path in FILES:
        with path.open("rb") as file:
            tokens = [token for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT]
        comments += sum(not re.match(r"# ?(type:|noqa|pragma|ruff:)", token.string) for token in tokens)
        lines += len(path.read_text().splitlines())
    assert comments >= 0.02 * lines, f"{comments} in {lines} lines, which is {comments / lines:.1%}"


def test_docstrings_show_examples():
    """They are run by test_doctests.py."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    shown = [n for t in TREES.values() for n in ast.walk(t) if isinstance(n, documented) and ">>>" in docstring(n)]
    assert len(shown) >= 20


def docstring(node):
    return ast.get_docstring(node) or ""


PRIVATE_WORDS = {"wish", "wishes", "wished", "told", "untold", "said"}
"""What only the builders of the house once understood."""


@pytest.mark.parametrize("name", TREES)
def test_names_are_words_of_the_field(name):
    named = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            named.add(node.name)
        elif isinstance(node, ast.arg):
            named.add(node.arg)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            named.add(node.id if isinstance(node, ast.Name) else node.attr)
    private = {each for each in named if PRIVATE_WORDS & set(re.findall("[A-Z]?[a-z]+", each.lower()))}
    assert not private, private


# Errors

KINDS = {"ThinsliceError"}
while more := {
    node.name
    for tree in TREES.values()
    for node in ast.walk(tree)
    if is_a_class(node) and node.name not in KINDS and KINDS & {ast.unparse(base) for base in node.bases}
}:
    KINDS |= more


def errors_made():
    """(module, call) of every error that the source makes."""
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in KINDS:
                yield name, node


def codes():
    """Every code that is written in the source, and the modules that use it."""
    found = {}
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "code" and name != "errors":
                for one in ast.walk(node.value):
                    if isinstance(one, ast.Constant) and isinstance(one.value, str):
                        found.setdefault(one.value, set()).add(name)
    return found


def test_every_error_has_a_code():
    """Codes stay the same when words change; a program can tell one reason from another by them."""
    without = [name for name, call in errors_made() if {"code", None}.isdisjoint(word.arg for word in call.keywords)]
    assert not without


def test_codes_are_written_alike():
    assert not [code for code in codes() if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+|[a-z]+", code)]


def test_every_code_is_documented_as_the_source_has_it():
    """`nox -s docs` writes the page anew."""
    page = runpy.run_path(str(ROOT / "docs" / "list_errors.py"))["page"]()
    assert set(re.findall(r"(?m)^\| `([^`]+)`", page)) == set(codes())
    assert (ROOT / "docs" / "errors.md").read_text(encoding="utf-8") == page


def test_the_cause_of_an_error_is_kept():
    dropped = [
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and isinstance(node.cause, ast.Constant)
    ]
    assert not dropped


def test_only_the_command_line_speaks_of_options():
    """From Python there is no ``--spacing``; cli/words.py translates the names of settings."""
    spoken = [
        name
        for name, call in errors_made()
        if name.split(".")[0] != "cli"
        for node in ast.walk(call)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.search(r"(?<![\w-])--[a-z]", node.value)
    ]
    assert not spoken


# What is said about the source

PAGES = [*FILES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def address_of(path):
    # The source may be an installed copy, elsewhere.
    return str(path.relative_to(SOURCE.parent if path.is_relative_to(SOURCE) else ROOT))


@pytest.mark.parametrize("page", PAGES, ids=address_of)
def test_names_of_the_source_in_backticks_are_there(page):
    """``thinslice.a.b`` in backticks, whatever follows the name, is something that can be imported."""
    names = set(re.findall(r"`(thinslice(?:\.\w+)+)", page.read_text(encoding="utf-8")))
    assert not {name for name in names - {"thinslice.json"} if not is_there(name)}


def is_there(name):
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        # A field of a dataclass without a default is no attribute of the class.
        owner, _, last = name.rpartition(".")
        with suppress(ImportError, AttributeError):
            return last in getattr(pkgutil.resolve_name(owner), "__annotations__", {})
        return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=address_of)
def test_documents_that_are_cited_are_there(page):
    """Those with a folder are looked for from the root, those without beside the page as well."""
    cited = set(re.findall(r"(?<![\w/.*])(?:\w+/)?[\w-]+\.md\b", page.read_text(encoding="utf-8")))
    cited = {name for name in cited if not name.endswith("table.md")}  # which `thinslice evaluate` writes
    assert not {name for name in cited if not any((room / name).exists() for room in (ROOT, page.parent))}
