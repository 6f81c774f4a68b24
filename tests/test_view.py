"""``thinslice view A B`` at the terminal."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import thinslice
from dicom_files import stack
from faults import catches
from test_cli import names, raising
from test_viewer_page import embedded
from thinslice.io.nifti import write
from thinslice.volume import Volume


def save(path, affine=(1.0, 1.0, 4.0), shape=(12, 10, 5), origin=(0.0, 0.0, 0.0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    matrix = np.diag([*affine, 1.0])
    matrix[:3, 3] = origin
    write(Volume(np.random.default_rng(0).integers(0, 900, shape).astype(np.int16), matrix), path)
    return path


@pytest.fixture
def scans(tmp_path):
    thin = save(tmp_path / "in" / "thin.nii.gz", (1, 1, 1), (12, 10, 20), (0, 0, -1.5))
    return save(tmp_path / "in" / "scan.nii.gz"), thin


@catches("reports/viewer_page.py", '"staircase": layer.staircase', '"staircase": False')
def test_two_scans_become_one_page_here(run, scans, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("view", *scans)
    assert (code, err) == (0, [])
    assert out == ["scan.nii.gz and thin.nii.gz -> scan-thin.html (open it in a browser)"]
    text = (tmp_path / "scan-thin.html").read_text()
    (one, other), data = embedded(text)
    assert (one.shape, other.shape) == ((12, 10, 5), (12, 10, 20))
    assert [layer["staircase"] for layer in data["layers"]] == [True, False]
    assert "<td>12 x 10 x 20 voxels of 1 x 1 x 1 mm" in text


def test_a_dicom_series_is_read_too(run, scans, tmp_path):
    series = tmp_path / "series"
    stack(series)
    code, _, err = run("view", series, series, "-o", tmp_path / "page.html")
    assert (code, err) == (0, [])
    assert len(embedded((tmp_path / "page.html").read_text())[0]) == 2


def test_scans_of_the_same_name_are_told_apart(run, tmp_path):
    one, other = save(tmp_path / "a" / "scan.nii.gz"), save(tmp_path / "b" / "scan.nii.gz")
    code, _, _ = run("view", one, other, "-o", tmp_path / "page.html")
    assert code == 0
    data = embedded((tmp_path / "page.html").read_text())[1]
    assert len({layer["name"] for layer in data["layers"]}) == 2


def test_scans_that_share_no_space_are_refused(run, scans, tmp_path):
    away = save(tmp_path / "in" / "away.nii.gz", origin=(0.0, 110.0, 0.0))
    code, out, err = run("view", scans[0], away, "-o", tmp_path / "page.html")
    assert (code, out, len(err)) == (2, [], 1)
    assert "away.nii.gz: got a scan whose field of view is 100 mm away from that of scan.nii.gz; need " in err[0]
    assert "; next: " in err[0]
    assert names(tmp_path) == ["in"]


@pytest.mark.parametrize("output", ["page.nii.gz", "page", "in/scan.nii.gz", "folder.html"])
def test_what_is_no_name_for_a_page_is_refused(run, scans, tmp_path, output):
    (tmp_path / "folder.html").mkdir()
    before = scans[0].read_bytes()
    code, out, err = run("view", *scans, "-o", tmp_path / output, "--overwrite")
    assert (code, out, len(err)) == (2, [], 1)
    assert re.search(r"got .*; need .*; next: ", err[0])
    assert scans[0].read_bytes() == before
    assert names(tmp_path) == ["folder.html", "in"]


def test_nothing_is_overwritten_unless_asked_to(run, scans, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("mine")
    code, _, err = run("view", *scans, "-o", page)
    assert (code, page.read_text()) == (2, "mine")
    assert "--overwrite" in err[0]
    assert run("view", *scans, "-o", page, "--overwrite")[0] == 0
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_a_missing_scan_is_refused_in_one_line(run, scans, tmp_path):
    code, out, err = run("view", scans[0], tmp_path / "none.nii.gz", "-o", tmp_path / "page.html")
    assert (code, out, len(err)) == (2, [], 1)
    assert "none.nii.gz" in err[0]
    assert names(tmp_path) == ["in"]


@pytest.mark.parametrize(("error", "code"), [(OSError(28, "No space left on device"), 2), (KeyboardInterrupt(), 130)])
def test_a_failure_leaves_no_trace(run, scans, tmp_path, monkeypatch, error, code):
    monkeypatch.setattr(os, "replace", raising(error))
    found, out, err = run("view", *scans, "-o", tmp_path / "new" / "page.html")
    assert (found, out, len(err)) == (code, [], 1)
    assert names(tmp_path) == ["in"]


def test_ctrl_c_leaves_nothing(scans, tmp_path):
    code = (
        "import signal, sys, time; from pathlib import Path; from thinslice import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "whole = Path.write_bytes\n"
        "Path.write_bytes = lambda *a: (whole(*a), print('ready', flush=True), time.sleep(60))\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    words = ["view", *scans, "-o", tmp_path / "out" / "page.html"]
    with subprocess.Popen([sys.executable, "-c", code, *words], stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines() == ["thinslice: interrupted; no unfinished file was left behind"]
    assert names(tmp_path) == ["in"]


def test_the_wheel_holds_what_the_page_is_made_of():
    """Hatchling takes what lies under src/thinslice; other pages have files there too."""
    viewer = Path(thinslice.__file__).parent / "reports" / "viewer"
    files = {"niivue-0.69.0.umd.js", "niivue-LICENSE.txt", "page.css", "page.html", "page.js"}
    assert files <= {path.name for path in viewer.iterdir()}
