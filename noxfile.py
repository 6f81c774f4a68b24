"""One word for everything a developer does: ``nox -s WORD [-- ARGUMENTS]``, in the environment that nox runs in.

pip install -e '.[dev]'
nox                     # lint, types, test: what every change must pass
nox -s faults -- --changed main
"""

import os
import tempfile
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"  # everything is installed by the extra named dev
nox.options.sessions = ["lint", "types", "test"]

IN_PARALLEL = ("-n", str(os.cpu_count()), "--dist", "loadfile", "--no-loadscope-reorder")
"""A process for every core; the tests of one file share trainings and browsers, so they stay together."""


@nox.session
def lint(session: nox.Session) -> None:
    """Check the style, the complexity and the layout of every file."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the source, strictly."""
    session.run("mypy")


@nox.session
def test(session: nox.Session) -> None:
    """Run the whole suite, or what is named after ``--``, in parallel; with coverage where nobody waits for it."""
    measured = ("--cov", "--cov-report=term") if os.environ.get("CI") and not session.posargs else ()
    session.run("pytest", *IN_PARALLEL, "-rs", *measured, *session.posargs)


@nox.session
def quick(session: nox.Session) -> None:
    """Run what needs no browser, no server and no long training."""
    session.run("pytest", *IN_PARALLEL, "-m", "not (slow or browser or hospital)", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Run the whole suite and report which lines of the source it reaches; fails below the floor in pyproject.toml."""
    session.run("pytest", *IN_PARALLEL, "-rs", "--cov", "--cov-report=term", *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """Plant every fault, or those chosen after ``--``, and run the test that must catch it."""
    session.run("python", "tests/faults.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Write docs/errors.md from the source, and run the examples in the docstrings and in the documentation."""
    session.run("python", "docs/list_errors.py")
    session.run("pytest", "tests/test_doctests.py", "tests/test_api.py", "-k", "example", *session.posargs)


@nox.session
def compare(session: nox.Session) -> None:
    """Compute scans with an older revision (``-- REVISION``, else main) and with this tree, and compare every bit."""
    revision, *rest = session.posargs or ["main"]
    with tempfile.TemporaryDirectory() as temporary:
        old = str(Path(temporary) / "old")
        session.run("git", "worktree", "add", "--detach", old, revision, external=True)
        try:
            session.run("python", "benchmarks/compare_checkouts.py", old, ".", *rest)
        finally:
            session.run("git", "worktree", "remove", "--force", old, external=True)


@nox.session
def ci(session: nox.Session) -> None:
    """Do what the machine does with every submission: from nothing, in new environments."""
    session.run("bash", ".ci/run", external=True)
