"""Planted faults: small changes of the source, easily made and hard to see, that a test must catch.

A fault stands on the test that catches it, in one line: ``@catches("volume.py", "if a < b", "if a > b")``.
``python tests/faults.py [--changed REVISION] [word ...]`` copies the source and the tests to temporary folders, plants
each fault there in turn, runs that one test with all its parameters, and tells which faults were caught. A word chooses
the faults whose test, file or text contains it; ``--changed`` those whose test file or source file has changed since.
"""

import argparse
import ast
import contextlib
import importlib
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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

    @property
    def test_file(self) -> str:
        return self.test.split("::")[0]

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


ENVIRONMENT = {
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "THINSLICE_HYPOTHESIS": "faults",
}

IMPORTED_ONCE = ("numpy", "scipy.ndimage", "nibabel", "nrrd", "pydicom", "PIL.Image", "onnxruntime", "onnx", "torch")
"""What takes longer to import than most tests take to fail; every run is a fork of a process that has it already."""


def run_tests(copy: Path, tests: list[str], fault: Fault | None) -> None:
    """Runs pytest in a copy, with a fault planted, and ends this process, a fork, with its exit code."""
    code: int = pytest.ExitCode.INTERNAL_ERROR  # unlike an error of Python, it is no failed test
    try:
        os.setsid()  # so that whatever the tests start can be ended with them
        os.chdir(copy)
        os.environ["PYTHONPATH"] = sys.path[0] = str(copy / "src")
        with open(copy / "log", "wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        if fault:
            target = copy / "src" / "thinslice" / fault.file
            target.write_text(target.read_text().replace(fault.old, fault.new))
        sys.dont_write_bytecode = fault is not None  # two faults of one length and second would share what is compiled
        code = pytest.main(["-x", "-q", "--tb=line", "-p", "no:cacheprovider", *tests])
    finally:
        sys.stdout.flush()
        os._exit(code)


Job = tuple[list[str], Fault | None]
"""What pytest is called with, and what is planted meanwhile."""


def run_all(jobs: list[Job], copies: list[Path]) -> Iterator[tuple[Job, int, float, str]]:
    """Runs each job in a copy that no other uses; yields it with pytest's exit code, seconds and what was written."""
    waiting, free, running = list(reversed(jobs)), list(copies), {}
    fork = multiprocessing.get_context("fork")
    while waiting or running:
        while waiting and free:
            job, copy = waiting.pop(), free.pop()
            process = fork.Process(target=run_tests, args=(copy, *job))
            file = copy / "src" / "thinslice" / job[1].file if job[1] else None
            sound = (file, file.read_bytes(), file.stat()) if file else None
            process.start()
            running[process.sentinel] = process, job, copy, sound, time.monotonic()
        ended = multiprocessing.connection.wait(list(running), timeout=1)
        for sentinel, (process, job, copy, sound, started) in list(running.items()):
            late = time.monotonic() - started > MOST_SECONDS * len(job[0])
            if sentinel in ended or late:
                del running[sentinel]
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.join()
                if sound:  # with its date, so that what was compiled of it fits again
                    sound[0].write_bytes(sound[1])
                    os.utime(sound[0], ns=(sound[2].st_atime_ns, sound[2].st_mtime_ns))
                free.append(copy)
                yield job, process.exitcode or 0, time.monotonic() - started, (copy / "log").read_text(errors="replace")


def main(words: list[str]) -> int:
    """Plants the faults that were chosen and reports; returns 1 where one was not caught, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="word")
    parser.add_argument("--changed", metavar="REVISION", help="only where files have changed since")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="how many run at once (default: all cores)")
    options = parser.parse_args(words)

    faults = all_faults()
    if options.words:
        faults = [fault for fault in faults if any(word in part for word in options.words for part in astuple(fault))]
    if options.changed:
        changed = files_changed_since(options.changed)
        faults = [fault for fault in faults if {f"src/thinslice/{fault.file}", f"tests/{fault.test_file}"} & changed]
    misfits = [fault for fault in faults if fault.misfit()]
    for fault in misfits:
        print(f"{fault.misfit()}: {fault}")

    os.environ |= ENVIRONMENT
    for name in IMPORTED_ONCE:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with tempfile.TemporaryDirectory() as temporary:
        first, *others = (Path(temporary).resolve() / str(number) for number in range(options.workers))
        files = sorted({f"tests/{fault.test_file}" for fault in faults})
        for _ in run_all([(["--collect-only", *files], None)] if files else [], [copy_to(first)]):
            pass  # now it holds the compiled files, which every run would else make again
        copies = [first, *(shutil.copytree(first, other) for other in others)]
        missed = plant([fault for fault in faults if fault not in misfits], copies)
    print(f"{len(faults) - len(misfits) - len(missed)} of {len(faults)} faults caught")
    for fault in missed:
        print(f"not caught: {fault}")
    return 1 if missed or misfits else 0


def plant(faults: list[Fault], copies: list[Path]) -> list[Fault]:
    """Runs the tests as they are, then with each fault planted; prints a line a fault, returns those not caught."""
    tests: dict[str, list[str]] = {}
    for name in sorted({f"tests/{fault.test}" for fault in faults}):
        tests.setdefault(name.split("::")[0], []).append(name)
    unsound = set()
    for (names, _), code, seconds, said in run_all([(names, None) for names in tests.values()], copies):
        file = names[0].split("::")[0].removeprefix("tests/")
        print(f"{'sound   ' if code == 0 else 'UNSOUND '}  {seconds:4.0f} s  {file}", flush=True)
        if code != 0:
            print(f"{said[-2000:]}\n{file} fails without any fault; nothing can be told", flush=True)
            unsound.add(file)
    missed = [fault for fault in faults if fault.test_file in unsound]
    jobs: list[Job] = [([f"tests/{fault.test}"], fault) for fault in faults if fault not in missed]
    for (_, fault), code, seconds, _ in run_all(jobs, copies):
        caught = code == pytest.ExitCode.TESTS_FAILED  # any other: no test collected, a wrong call, an interruption
        print(f"{'caught  ' if caught else 'SURVIVED'}  {seconds:4.0f} s  {fault}", flush=True)
        missed += [] if caught or fault is None else [fault]
    return missed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
