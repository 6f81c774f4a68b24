"""Planted faults: small changes of the source, easily made and hard to see, that a test must catch.

A fault stands on the test that catches it, in one line: ``@catches("volume.py", "if a < b", "if a > b")``.
``python tests/faults.py [--changed REVISION] [word ...]`` copies the source and the tests to temporary folders, plants
each fault there in turn, runs that one test with all its parameters, and tells which faults were caught. A word chooses
the faults whose test, file or text contains it; ``--changed`` those whose test file or source file has changed since.
"""

import argparse
import ast
import contextlib
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TypeVar

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "thinslice"

MOST_SECONDS = 300
"""A fault after which the test does not end within this time has not been caught."""

Test = TypeVar("Test", bound=Callable[..., object])


def catches(file: str, old: str, new: str) -> Callable[[Test], Test]:
    """Says of a test that it fails when ``old``, which is in a file of the source once, becomes ``new``."""
    return pytest.mark.catches(file, old, new)


@dataclass(frozen=True)
class Fault:
    """One decorator: the test it stands on (FILE::FUNCTION), the file below src/thinslice, and what becomes of what."""

    test: str
    file: str
    old: str
    new: str

    def __str__(self) -> str:
        short = " ".join(self.old.split())
        return f"{self.file}  {short[:40]}{'...' * (len(short) > 40)}  ({self.test})"

    def misfit(self) -> str:
        """Returns why the fault cannot be planted in the source as it is now, or nothing."""
        path = SOURCE / self.file
        times = path.read_text().count(self.old) if path.is_file() else 0
        if times != 1:
            return "the text is gone" if times == 0 else f"the text is there {times} times"
        return "nothing is changed" if self.old == self.new else ""


def all_faults() -> list[Fault]:
    """Reads the decorators off the text of the test files, without importing them."""
    return [
        Fault(f"{path.name}::{function.name}", *(ast.literal_eval(argument) for argument in decorator.args))
        for path in sorted(ROOT.glob("tests/test_*.py"))
        for function in ast.parse(path.read_text()).body
        if isinstance(function, ast.FunctionDef)
        for decorator in function.decorator_list
        if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name) and decorator.func.id == "catches"
    ]


def files_changed_since(revision: str) -> set[str]:
    """Returns the names, from the root, of the files that differ from a revision, those git does not know yet too."""
    commands = (["diff", "--name-only", revision], ["ls-files", "--others", "--exclude-standard"])
    said = [subprocess.run(["git", *c], cwd=ROOT, capture_output=True, text=True, check=True).stdout for c in commands]
    return {line for text in said for line in text.splitlines()}


IN_THE_COPY = """

from pathlib import Path

import thinslice

assert Path(thinslice.__file__).parents[2] == Path(__file__).resolve().parents[1], thinslice.__file__


def pytest_collection_modifyitems(items):
    items[:] = [item for item in items if item.get_closest_marker("xfail") is None]
"""
"""Added to a copy's ``conftest.py``: it tests itself; and a test that is expected to fail catches nothing."""


def copy_to(folder: Path) -> Path:
    """Copies the source, the tests and the settings to a folder."""
    ignore = shutil.ignore_patterns("__pycache__", ".hypothesis")
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", folder)
    with (folder / "tests" / "conftest.py").open("a") as conftest:
        conftest.write(IN_THE_COPY)
    return folder


@contextlib.contextmanager
def planted(fault: Fault | None, copy: Path) -> Iterator[None]:
    """Changes one file of a copy for as long as it lasts."""
    if fault is None:
        yield
        return
    target = copy / "src" / "thinslice" / fault.file
    sound = target.read_text()
    target.write_text(sound.replace(fault.old, fault.new))
    try:
        yield
    finally:
        target.write_text(sound)


def run(copy: Path, tests: list[str], fault: Fault | None = None) -> tuple[int, str]:
    """Runs tests in a copy with a fault planted; returns pytest's exit code (124: it did not end) and what it wrote."""
    environment = os.environ | {
        "PYTHONPATH": str(copy / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",  # two faults of one length and second would share their compiled file
        "OMP_NUM_THREADS": "1",
        "THINSLICE_HYPOTHESIS": "faults",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "-p", "no:cacheprovider"]
    with planted(fault, copy):
        try:
            ended = subprocess.run(
                command + [f"tests/{test}" for test in tests],
                cwd=copy,
                env=environment,
                capture_output=True,
                text=True,
                timeout=MOST_SECONDS * len(tests),
            )
        except subprocess.TimeoutExpired:
            return 124, ""
    return ended.returncode, ended.stdout[-2000:] + ended.stderr[-2000:]


def main(words: list[str]) -> int:
    """Plants the faults that were chosen and reports; returns 1 where one was not caught, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--changed", metavar="REVISION", help="only where files have changed since")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="how many run at once (default: all cores)")
    options = parser.parse_args(words)

    faults = all_faults()
    if options.words:
        faults = [fault for fault in faults if any(word in part for word in options.words for part in astuple(fault))]
    if options.changed:
        changed = files_changed_since(options.changed)
        places = [{f"src/thinslice/{fault.file}", f"tests/{fault.test.split('::')[0]}"} for fault in faults]
        faults = [fault for fault, place in zip(faults, places, strict=True) if place & changed]
    misfits = [fault for fault in faults if fault.misfit()]
    for fault in misfits:
        print(f"{fault.misfit()}: {fault}")
    return report_on([fault for fault in faults if not fault.misfit()], misfits, options.workers)


def report_on(faults: list[Fault], misfits: list[Fault], workers: int) -> int:
    """Runs the tests as they are, then with each fault planted; prints a line a fault and the sum."""
    copies: queue.SimpleQueue[Path] = queue.SimpleQueue()
    survived = []

    def in_a_copy(tests: list[str], fault: Fault | None = None) -> tuple[int, str, float]:
        copy, started = copies.get(), time.monotonic()
        try:
            return *run(copy, tests, fault), time.monotonic() - started
        finally:
            copies.put(copy)

    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(workers) as pool:
        for number in range(workers):
            copies.put(copy_to(Path(temporary).resolve() / str(number)))
        tests: dict[str, list[str]] = {}
        for name in sorted({fault.test for fault in faults}):
            tests.setdefault(name.split("::")[0], []).append(name)
        for file, (code, said, _) in zip(tests, pool.map(in_a_copy, tests.values()), strict=True):
            if code != 0:
                print(f"{said}\n{file} fails without any fault; nothing can be told")
                return 1
        running = {pool.submit(in_a_copy, [fault.test], fault): fault for fault in faults}
        for done in as_completed(running):
            code, _, seconds = done.result()
            caught = code == 1  # any other code is no failed test: none collected, a wrong call, an interruption
            survived += [] if caught else [running[done]]
            print(f"{'caught  ' if caught else 'SURVIVED'}  {seconds:4.0f} s  {running[done]}", flush=True)
    print(f"{len(faults) - len(survived)} of {len(faults) + len(misfits)} faults caught")
    for fault in survived:
        print(f"SURVIVED  {fault}")
    return 1 if survived or misfits else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
