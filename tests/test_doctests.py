"""The examples in the docstrings of the source are true."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest

import thinslice

SOURCE = Path(thinslice.__file__).parent


def has_examples(path):
    nodes = [
        n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)
    ]
    return any(">>>" in (ast.get_docstring(node) or "") for node in nodes)


def module_of(path):
    *folders, name = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(folders if name == "__init__" else [*folders, name])


@pytest.mark.parametrize("name", [module_of(path) for path in sorted(SOURCE.rglob("*.py")) if has_examples(path)])
def test_the_examples_of_a_module_say_what_it_does(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # an example may write files
    if name.split(".")[1] in ("networks", "training"):
        pytest.importorskip("torch", reason="training needs torch, which comes with thinslice[train]")
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0, capsys.readouterr().out
