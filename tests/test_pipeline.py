"""The line of the program: one sequence behind every surface, and one result that knows everything about the answer."""

import json
import re
import sys

import numpy as np
import pytest

import thinslice
from faults import catches
from test_cli import make_labels, make_scan
from thinslice.errors import InputRefused, ModelRefused
from thinslice.io.formats import read
from thinslice.models.interpolations import interpolation
from thinslice.pipeline import Enhanced, enhance_volume
from thinslice.settings import Settings

SETTINGS = {"factor": 3.0, "profile": "box", "grid": "centres", "projection": False, "model": "cubic"}
OPTIONS = ["--factor", 3, "--profile", "box", "--grid", "centres", "--no-projection", "--model", "cubic"]


def without_time(page):
    """A page or a report without the seconds that it took and what else differs from run to run."""
    text = re.sub(r"(<th scope=row>time<td>)[^<]*", r"\1", page)
    return re.sub(r'"seconds": [0-9.]+,', "", text)


@catches("datasets/job.py", "return enhance_volume(volume, job.settings,", "return enhance_volume(volume, Settings(),")
@catches("api.py", "        settings,\n        chosen,", "        Settings(),\n        chosen,")
def test_every_surface_gives_the_same_answer_and_the_same_page(run, tmp_path):
    pytest.importorskip("distributed")
    scan = make_scan(tmp_path / "in" / "scan.nii.gz")
    by_enhance, by_api, by_batch = (tmp_path / name for name in ("enhance", "api", "batch"))
    words = ["-i", scan, "-o", by_enhance / "scan.nii.gz", *OPTIONS, "--report", by_enhance / "page.html"]
    assert run("enhance", *words)[0] == 0
    thinslice.enhance(scan, **SETTINGS).save(by_api / "scan.nii.gz", report=by_api / "page.html")
    assert run("batch", "-i", scan.parent, "-o", by_batch, *OPTIONS, "--reports", "--workers", 1)[0] == 0
    answers = [folder / "scan.nii.gz" for folder in (by_enhance, by_api, by_batch)]
    assert len({answer.read_bytes() for answer in answers}) == 1
    pages = [by_enhance / "page.html", by_api / "page.html", by_batch / "reports" / "scan.html"]
    assert len({without_time(page.read_text()) for page in pages}) == 1
    plans = [json.loads(answer.with_name("scan.json").read_text())["plan"] for answer in answers]
    assert plans[0] == plans[1] == plans[2]
    assert (plans[0]["factor"], plans[0]["profile"], plans[0]["projection"]) == (3.0, "box", False)


@pytest.mark.parametrize("surface", ["enhance", "info", "api", "demo", "study"])
def test_on_every_surface_a_profile_that_is_not_told_is_found(run, tmp_path, surface):
    scan = make_scan(tmp_path / "scan.nii.gz")
    if surface == "enhance":
        assert run("enhance", "-i", scan, "-o", tmp_path / "thin.nii.gz", "--model", "cubic")[0] == 0
        plan = json.loads((tmp_path / "thin.json").read_text())["plan"]
    elif surface == "info":
        plan = json.loads("\n".join(run("info", "-i", scan, "--json", "--model", "cubic")[1]))["plan"]
    elif surface == "demo":
        assert run("demo", "-o", tmp_path / "demo", "--model", "cubic")[0] == 0
        plan = json.loads((tmp_path / "demo" / "spine_thin.json").read_text())["plan"]
    elif surface == "study":
        words = ["--methods", "linear,cubic", "--pairs", 2, "-o", tmp_path / "study.html"]
        assert run("study", "-i", scan, *words)[0] == 0
        plan = json.loads((tmp_path / "study.key.json").read_text())["plans"][0]["cubic"]
    else:
        plan = json.loads(thinslice.enhance(scan, model="cubic").plan.to_json())
    assert plan["profile_source"] in ("estimated", "stated")
    assert plan["profile_uncertainty"] > 0
    assert any("the slice profile is estimated from" in note for note in plan["notes"])


def test_a_note_names_options_on_the_command_line_and_settings_in_python(run, tmp_path):
    scan = make_scan(tmp_path / "scan.nii.gz")
    _, out, _ = run("enhance", "-i", scan, "-o", tmp_path / "thin.nii.gz", "--model", "cubic")
    assert any("give --profile and --thickness if you know them" in line for line in out)
    notes = thinslice.enhance(scan, model="cubic").report.notes
    assert any("give `profile` and `thickness_mm` if you know them" in note for note in notes)


@catches("pipeline.py", "formats.write(self.labels_to_thin(), parts[1])", "formats.write(self.segmentation, parts[1])")
def test_labels_from_python_are_those_of_the_command_line(run, tmp_path):
    scan, labels = make_scan(tmp_path / "scan.nii.gz"), make_labels(tmp_path / "seg.nii.gz")
    words = ["-i", scan, "-o", tmp_path / "cli" / "thin.nii.gz", "--labels", labels, "--model", "cubic"]
    assert run("enhance", *words)[0] == 0
    done = thinslice.enhance(scan, labels=labels, model="cubic")
    done.save(tmp_path / "api" / "thin.nii.gz")
    one, other = (tmp_path / kind / "thin_labels.nii.gz" for kind in ("cli", "api"))
    assert one.read_bytes() == other.read_bytes()
    np.testing.assert_array_equal(done.labels_to_thin().voxels, read(one).voxels)
    done.save(tmp_path / "moved" / "thin.nii.gz", labels_out=tmp_path / "moved" / "mine.nii.gz")
    assert (tmp_path / "moved" / "mine.nii.gz").read_bytes() == one.read_bytes()


def test_labels_that_are_not_there_are_asked_for(tmp_path):
    done = thinslice.enhance(make_scan(tmp_path / "scan.nii.gz"), model="cubic")
    with pytest.raises(InputRefused, match="no segmentation") as refusal:
        done.labels_to_thin()
    assert refusal.value.code == "no-labels"


def test_a_figure_from_python_is_that_of_the_command_line(run, tmp_path):
    scan = make_scan(tmp_path / "scan.nii.gz")
    words = ["-i", scan, "-o", tmp_path / "thin.nii.gz", "--model", "cubic", "--figure", tmp_path / "cli.png"]
    assert run("enhance", *words)[0] == 0
    thinslice.enhance(scan, model="cubic").save(tmp_path / "api.nii.gz", figure=tmp_path / "api.png")
    assert (tmp_path / "cli.png").read_bytes() == (tmp_path / "api.png").read_bytes()


@pytest.mark.parametrize(("option", "value"), [("device", "cuda:9"), ("precision", "fp7")])
def test_a_device_that_no_engine_has_is_refused_on_every_surface(run, tmp_path, option, value):
    scan = make_scan(tmp_path / "scan.nii.gz")
    code, out, err = run("enhance", "-i", scan, "-o", tmp_path / "t.nii.gz", f"--{option}", value)
    assert (code, out, len(err)) == (2, [], 1)
    assert f"--{option} {value}" in err[0]
    with pytest.raises(ModelRefused, match=f"`{option}="):
        thinslice.enhance(scan, **{option: value})


def test_the_result_keeps_all_that_a_page_needs(tmp_path):
    volume = read(make_scan(tmp_path / "scan.nii.gz"))
    model = interpolation("linear")
    done = enhance_volume(volume, Settings(model="linear"), model, name="a name")
    assert isinstance(done, Enhanced)
    assert (done.model, done.report.source) == (model, "a name")
    assert done.acquired is volume
    assert repr(done).startswith("<Enhanced: 6 slices x 4 mm -> 24 slices x 1 mm with linear")


def test_debug_tells_where_an_error_came_from(tmp_path):
    import subprocess

    command = [sys.executable, "-m", "thinslice", "info", "-i", str(tmp_path / "none.nii"), "--debug"]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 2
    assert "Traceback" in told.stderr
    assert told.stderr.splitlines()[-1].startswith("thinslice: ")
    quiet = subprocess.run(command[:-1], capture_output=True, text=True)
    assert len(quiet.stderr.splitlines()) == 1
