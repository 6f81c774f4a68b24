"""What never ends by itself, and what is ended from outside: at once, with one line, and nothing is left behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

import nibabel as nib
import numpy as np
import pytest

from faults import catches
from model_files import save_endless
from thinslice.errors import ModelRefused
from thinslice.models import engine
from thinslice.models.engine import EngineSettings, make_engine, network_threads

TOO_LONG = 5
"""Seconds after which a program that was asked to end has not heard."""

FEED = {
    "slices": np.ones((5, 8, 8), np.float32),
    "geometry": np.ones(3, np.float32),
    "position": np.ones((1, 7), np.float32),
}


@pytest.fixture
def scan(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 900, (12, 12, 5)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1, 4, 1])), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def test_a_network_that_loops_for_ever_is_refused(tmp_path, scan, run, monkeypatch):
    monkeypatch.setattr(engine, "LONGEST_CALL_SECONDS", 1.0)
    model = save_endless(tmp_path / "loop.onnx")
    started = monotonic()
    code, _, err = run("enhance", "-i", scan, "-o", tmp_path / "out.nii.gz", "--model", model)
    assert code == 2
    assert err == [
        "thinslice: scan.nii.gz: got a network without an answer after 1 s; need a model file that comes to an end; "
        "next: use another --model"
    ]
    assert monotonic() - started < 30
    assert not (tmp_path / "out.nii.gz").exists()


@catches("models/engine.py", "max(LONGEST_CALL_SECONDS, TIMES_LONGER * self.longest_seconds)", "LONGEST_CALL_SECONDS")
def test_a_later_call_may_take_longer_than_the_first_did(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "LONGEST_CALL_SECONDS", 0.2)
    session = make_engine(EngineSettings(threads=1)).open(save_endless(tmp_path / "loop.onnx").read_bytes())
    session.longest_seconds = 0.1
    started = monotonic()
    with pytest.raises(ModelRefused, match=r"without an answer after 2 s"):
        session.run(FEED)
    assert monotonic() - started >= 2


@catches("models/engine.py", "                    call.end()\n", "                    pass\n")
def test_a_failure_beside_it_ends_a_call(tmp_path):
    session = make_engine(EngineSettings(threads=1)).open(save_endless(tmp_path / "loop.onnx").read_bytes())
    started = monotonic()

    def fail_beside_a_call():
        with network_threads(1) as threads:
            future = threads.submit(session.run, FEED)
            while not future.running():
                sleep(0.01)
            raise KeyError

    with pytest.raises(KeyError):
        fail_beside_a_call()
    assert monotonic() - started < TOO_LONG


RUN = """
import signal, sys
from thinslice.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is deaf to it
sys.exit(main())
"""
"""The command line, as a terminal starts it."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_is_heard_while_a_network_computes(tmp_path, scan, number):
    model = save_endless(tmp_path / "loop.onnx")
    words = ["enhance", "-i", scan, "-o", tmp_path / "out.nii.gz", "--model", model, "--debug"]
    process = subprocess.Popen(
        [sys.executable, "-m", "thinslice", *map(str, words)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    for line in process.stderr:
        if "slabs of" in line:  # the network is asked next
            break
    sleep(1)
    started = monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert monotonic() - started < TOO_LONG
    assert process.returncode == 130
    assert said.splitlines()[-1] == "thinslice: interrupted; no unfinished file was left behind"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["loop.onnx", "scan.nii.gz"]


DEAF = """
import signal
from time import sleep
from thinslice.cli.terminal import terminated_as_interrupted
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is deaf to it
said = "ready"
with terminated_as_interrupted():
    while True:
        try:
            if said:
                print(said, flush=True)
            said = ""
            sleep(60)
        except KeyboardInterrupt:
            print("heard", flush=True)
"""
"""A program that goes on whatever it hears."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
@catches("cli/terminal.py", "            os.kill(os.getpid(), number)\n", "            pass\n")
def test_a_second_signal_ends_the_program_at_once(number):
    process = subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.readline() == "heard\n"
    process.send_signal(number)  # the same once more: sent to the process and to its group
    sleep(1)
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(TOO_LONG) == -number


def test_nothing_is_left_of_a_program_that_was_ended(tmp_path):
    """Wherever it is by then: reading, computing, or writing."""
    voxels = np.random.default_rng(0).integers(0, 900, (96, 96, 24)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1, 4, 1])), tmp_path / "scan.nii.gz")
    words = ["enhance", "-i", "scan.nii.gz", "-o", "out/thin.nii.gz", "--model", "cubic", "--report", "out/page.html"]
    environment = os.environ | {"PYTHONPATH": str(Path(engine.__file__).parents[2])}
    for seconds in (0.5, 1.0, 1.5, 2.5):
        process = subprocess.Popen(
            [sys.executable, "-m", "thinslice", *words], cwd=tmp_path, stderr=subprocess.PIPE, env=environment
        )
        sleep(seconds)
        started = monotonic()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert monotonic() - started < TOO_LONG
        left = sorted(file.name for file in (tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else []
        assert left in ([], ["thin.json", "thin.nii.gz"], ["page.html", "thin.json", "thin.nii.gz"])
        for name in left:
            (tmp_path / "out" / name).unlink()
