"""The command line as a user meets it: what is written, what is said and where, and the exit code."""

import gzip
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from faults import catches
from make_scans import save_scan
from test_nifti import BAD_SCANS, DATA
from thinslice import cli
from thinslice.cli.terminal import uninterrupted
from thinslice.compute.consistency import check
from thinslice.errors import InputRefused
from thinslice.io import atomic, formats, nifti
from thinslice.plan import Plan
from thinslice.volume import Volume

SHAPE = (24, 20, 6)


def make_scan(path: Path, spacing_mm: tuple[float, ...] = (1.0, 1.0, 4.0), shape: tuple[int, ...] = SHAPE) -> Path:
    at = np.indices(shape)
    voxels = (500 + 200 * np.sin(at[0] / 4) * np.cos(at[1] / 3) + 40 * at[2]).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    nifti.write(Volume(voxels, np.diag([*spacing_mm, 1.0])), path)
    return path


def make_labels(path: Path) -> Path:
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[5:15, 4:12, 1:5] = 7
    drawn[8:12, 4:12, 2:4] = 200
    path.parent.mkdir(parents=True, exist_ok=True)
    nifti.write(Volume(drawn, np.diag([1.0, 1.0, 4.0, 1.0])), path)
    return path


@pytest.fixture
def scan(tmp_path):
    return make_scan(tmp_path / "in" / "scan.nii.gz")


def shell(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "thinslice", *(str(word) for word in words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


# ---- the parser


def test_help_comes_without_anything_slow():
    code = (
        "import sys; from thinslice import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit as stop: assert stop.code in (0, None)\n"
        "slow = {'numpy', 'nibabel', 'onnxruntime', 'PIL', 'torch', 'importlib.metadata'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    for verb in (
        "demo",
        "enhance",
        "combine",
        "batch",
        "info",
        "reslice",
        "view",
        "adapt",
        "train",
        "evaluate",
        "study",
    ):
        assert verb in answer.stdout


@pytest.mark.parametrize(
    "verb", ["demo", "enhance", "batch", "info", "reslice", "view", "adapt", "train", "evaluate", "study"]
)
def test_every_verb_has_help(run, verb):
    code, out, err = run(verb, "--help")
    assert (code, err) == (0, [])
    assert out[0].startswith(f"usage: thinslice {verb}")


def test_version(run):
    code, out, _ = run("--version")
    assert code == 0
    assert out[0].split()[0] == "thinslice"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["enlarge"],
        ["enhance", "-i", "scan.nii"],
        ["enhance", "-i", "a.nii", "-o", "b.nii", "--factor", "many"],
        ["enhance", "-i", "a.nii", "-o", "b.nii", "--profile", "round"],
        ["evaluate", "-i", "a", "-o", "b", "--factors", "2,x"],
        ["evaluate", "-i", "a", "-o", "b", "--factors", "2,-3"],
        ["adapt", "-i", "a.nii"],
        ["adapt", "-i", "a.nii", "-o", "b", "--minutes", "0"],
        ["adapt", "-i", "a.nii", "-o", "b", "--resume", "--overwrite"],
        ["train", "default", "--data", "a", "-o", "b", "--steps", "0"],
        ["train", "default", "--data", "a", "-o", "b", "--minutes", "nan"],
        ["evaluate", "-i", "a", "-o", "b", "--profiles", "gaussian,round"],
    ],
)
def test_wrong_words_are_refused_in_one_line_with_a_hint(run, words):
    code, out, err = run(*words)
    assert (code, out, len(err)) == (2, [], 1)
    assert err[0].startswith("thinslice: ")
    assert err[0].endswith("--help'")


# ---- enhance


def test_enhance_one_file(run, scan, tmp_path):
    out_path = tmp_path / "new" / "thin.nii.gz"
    code, out, err = run("enhance", "-i", scan, "-o", out_path, "--model", "cubic")
    assert (code, err) == (0, [])
    assert out[0].startswith("scan.nii.gz: 6 slices x 4 mm -> 24 slices x 1 mm with cubic, ")
    assert "% RMS" in out[1]
    assert out[-1] == f"  wrote {out_path}"
    assert names(out_path.parent) == ["thin.json", "thin.nii.gz"]
    thin = nifti.read(out_path)
    assert thin.voxels.shape == (24, 20, 24)
    assert thin.voxels.dtype == np.int16
    np.testing.assert_allclose(thin.affine[:3, 3], [0, 0, -1.5])
    content = json.loads((out_path.parent / "thin.json").read_text())
    assert Plan.from_json(json.dumps(content["plan"])).factor == 4
    assert content["source"] == "scan.nii.gz"


def test_enhance_obeys_its_options(run, scan, tmp_path):
    wish = ["--spacing", 2, "--thickness", 3, "--profile", "box", "--grid", "centres", "--no-projection"]
    code, _, _ = run("enhance", "-i", scan, "-o", tmp_path / "thin.nii", "--model", "linear", *wish)
    assert code == 0
    plan = json.loads((tmp_path / "thin.json").read_text())["plan"]
    found = [plan[key] for key in ("factor", "thickness_mm", "profile", "grid", "projection", "model")]
    assert found == [2, 3, "box", "centres", False, "linear"]
    assert nifti.read(tmp_path / "thin.nii").voxels.shape == (24, 20, 11)


def test_notes_are_said(run, scan, tmp_path):
    code, out, _ = run("enhance", "-i", scan, "-o", tmp_path / "thin.nii", "--model", "cubic", "--factor", 2.2)
    assert code == 0
    assert any(line.startswith("  note: 6 slices of 4 mm do not divide") for line in out)


def test_quiet_says_nothing(run, scan, tmp_path):
    assert run("enhance", "-i", scan, "-o", tmp_path / "thin.nii", "--model", "cubic", "-q") == (0, [], [])


def test_nothing_is_overwritten_unless_asked_to(run, scan, tmp_path):
    words = ["enhance", "-i", scan, "-o", tmp_path / "thin.nii", "--model", "cubic", "-q"]
    assert run(*words)[0] == 0
    before = (tmp_path / "thin.json").read_bytes()
    code, out, err = run(*words)
    assert (code, out, len(err)) == (2, [], 1)
    assert (tmp_path / "thin.json").read_bytes() == before
    assert run(*words, "--overwrite", "--factor", 2)[0] == 0
    assert nifti.read(tmp_path / "thin.nii").voxels.shape == (24, 20, 12)
    assert names(tmp_path) == ["in", "thin.json", "thin.nii"]


def test_a_folder_goes_on_after_a_refusal(run, tmp_path):
    make_scan(tmp_path / "in" / "a.nii.gz")
    make_scan(tmp_path / "in" / "b.nii.gz", spacing_mm=(1, 1, 1))
    make_scan(tmp_path / "in" / "d.nii.gz")
    (tmp_path / "in" / "c.nii.gz").write_bytes(b"nonsense")
    code, out, err = run("enhance", "-i", tmp_path / "in", "-o", tmp_path / "out", "--model", "cubic")
    assert code == 2
    assert [line.split(":")[0] for line in out if not line.startswith(" ")] == ["a.nii.gz", "d.nii.gz"]
    assert len(err) == 3
    assert "b.nii.gz: got slices 1 mm apart" in err[0]
    assert "c.nii.gz" in err[1]
    assert err[2] == "thinslice: 2 of 4 scans refused, 2 enhanced"
    assert names(tmp_path / "out") == ["a.json", "a.nii.gz", "d.json", "d.nii.gz"]


def test_labels_come_along(run, scan, tmp_path):
    drawn = make_labels(tmp_path / "seg.nii.gz")
    out = tmp_path / "out" / "thin.nii.gz"
    assert run("enhance", "-i", scan, "-o", out, "--model", "cubic", "--labels", drawn)[0] == 0
    assert names(out.parent) == ["thin.json", "thin.nii.gz", "thin_labels.nii.gz"]
    thin = nifti.read(out.parent / "thin_labels.nii.gz")
    assert set(np.unique(thin.voxels)) == {0, 7, 200}
    assert thin.voxels.dtype == np.uint8
    np.testing.assert_allclose(thin.affine, nifti.read(out).affine)


def test_labels_of_a_folder_and_under_another_name(run, scan, tmp_path):
    make_labels(tmp_path / "seg" / "scan.nii.gz")
    words = ["--model", "cubic", "-q", "--labels", tmp_path / "seg"]
    assert run("enhance", "-i", scan.parent, "-o", tmp_path / "out", *words)[0] == 0
    assert names(tmp_path / "out") == ["scan.json", "scan.nii.gz", "scan_labels.nii.gz"]
    other = tmp_path / "elsewhere" / "seg.nii"
    assert run("enhance", "-i", scan, "-o", tmp_path / "out2" / "a.nii", *words, "--labels-out", other)[0] == 0
    assert other.exists()
    assert names(tmp_path / "out2") == ["a.json", "a.nii"]


@catches("cli/enhance.py", "for file in (task.answer.source, task.labels) if", "for file in (task.answer.source,) if")
def test_an_answer_never_replaces_the_segmentation(run, scan, tmp_path):
    seg = make_labels(tmp_path / "seg.nii.gz")
    before = seg.read_bytes()
    code, out, err = run("enhance", "-i", scan, "-o", seg, "--labels", seg, "--model", "cubic", "--overwrite")
    assert (code, out, len(err)) == (2, [], 1)
    assert "got an output that is an input" in err[0]
    assert seg.read_bytes() == before


@catches("pipeline.py", "return self.answer.outputs + [", "return [] + [")
def test_labels_of_one_scan_never_replace_the_answer_to_another(run, tmp_path):
    for name in ("a.nii.gz", "a_labels.nii.gz"):
        make_scan(tmp_path / "in" / name)
        make_labels(tmp_path / "seg" / name)
    words = ["-i", tmp_path / "in", "-o", tmp_path / "out", "--labels", tmp_path / "seg", "--model", "cubic"]
    code, out, err = run("enhance", *words)
    assert (code, out, len(err)) == (2, [], 1)
    assert "got one name for the labels of a.nii.gz and the answer to a_labels.nii.gz" in err[0]
    assert not (tmp_path / "out").exists()


def test_a_missing_segmentation_is_named_and_nothing_else(run, scan, tmp_path):
    words = ["-i", scan, "-o", tmp_path / "thin.nii.gz", "--labels", tmp_path / "none.nii.gz", "--model", "cubic"]
    code, _, err = run("enhance", *words)
    assert (code, len(err)) == (2, 1)
    assert "none.nii.gz" in err[0]
    assert "scan.nii.gz" not in err[0]


@pytest.mark.parametrize("verb", [["enhance"], ["info"], ["batch"], ["study", "--methods", "cubic,linear"]])
def test_settings_that_are_right_for_no_scan_are_refused_at_once(run, verb, tmp_path):
    words = [*verb, "-i", tmp_path / "a", *([] if verb == ["info"] else ["-o", tmp_path / "b.html"])]
    for wrong, said in (
        (("--factor", 2, "--spacing", 1), "got --spacing 1 and --factor 2; need one of them"),
        (("--factor", 0.5), "got --factor 0.5; need a number above 1"),
        (("--thickness", -1), "got --thickness -1; need a positive number"),
        (("--in-plane", 0), "got --in-plane 0; need a whole number"),
    ):
        code, out, err = run(*words, *wrong)
        assert (code, out, len(err)) == (2, [], 1)
        assert said in err[0]


@pytest.mark.parametrize("target", ["scan", "seg", "thin"])
def test_labels_never_replace_an_input(run, scan, tmp_path, target):
    seg = make_labels(tmp_path / "seg.nii.gz")
    thin = tmp_path / "thin.nii.gz"
    place = {"scan": scan, "seg": seg, "thin": thin}[target]
    words = ["--model", "cubic", "--labels", seg, "--labels-out", place, "--overwrite"]
    code, out, err = run("enhance", "-i", scan, "-o", thin, *words)
    assert (code, out, len(err)) == (2, [], 1)
    assert names(tmp_path) == ["in", "seg.nii.gz"]


@pytest.mark.parametrize("place", ["a file", "no such kind", "an answer"])
@pytest.mark.parametrize(
    ("option", "name"), [("--labels-out", "l.nii.gz"), ("--report", "p.html"), ("--figure", "f.png")]
)
def test_an_impossible_place_is_refused_before_any_work(run, scan, tmp_path, monkeypatch, option, name, place):
    monkeypatch.setattr("thinslice.pipeline.upsample", raising(AssertionError("too late")))
    labels, thin = make_labels(tmp_path / "seg.nii.gz"), tmp_path / "thin.nii.gz"
    target = {"a file": labels / name, "no such kind": tmp_path / "x.odd", "an answer": tmp_path / "thin.json"}[place]
    words = ["--model", "cubic", "--labels", labels, option, target]
    code, out, err = run("enhance", "-i", scan, "-o", thin, *words)
    assert (code, out, len(err)) == (2, [], 1)
    assert "next: " in err[0]
    assert names(tmp_path) == ["in", "seg.nii.gz"]


def test_labels_that_do_not_fit_are_refused_before_any_work(run, scan, tmp_path, monkeypatch):
    monkeypatch.setattr("thinslice.pipeline.upsample", raising(AssertionError("too late")))
    wrong = make_scan(tmp_path / "seg.nii.gz", shape=(24, 20, 5))
    code, _, err = run("enhance", "-i", scan, "-o", tmp_path / "o" / "t.nii", "--model", "cubic", "--labels", wrong)
    assert code == 2
    assert "need 24 x 20 x 6 as in the scan" in err[0]
    assert names(tmp_path) == ["in", "seg.nii.gz"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--model", "nonesuch"], "nonesuch"),
        (["--spacing", "5"], "apart already"),
        (["--thickness", "nan"], "--thickness"),
        (["--labels-out", "x.nii"], "--labels"),
    ],
)
def test_refusals_take_one_line_and_leave_nothing(run, scan, tmp_path, words, reason):
    code, out, err = run("enhance", "-i", scan, "-o", tmp_path / "out" / "thin.nii.gz", "--model", "cubic", *words)
    assert (code, out, len(err)) == (2, [], 1)
    assert err[0].startswith("thinslice: ")
    assert reason in err[0]
    assert names(tmp_path) == ["in"]


@pytest.mark.parametrize("verb", ["enhance", "info"])
def test_a_refusal_of_one_scan_names_it(run, tmp_path, verb):
    scan = make_scan(tmp_path / "iso.nii", spacing_mm=(1, 1, 1))
    output = ["-o", tmp_path / "thin.nii"] if verb == "enhance" else []
    code, _, err = run(verb, "-i", scan, "--model", "cubic", *output)
    assert (code, len(err)) == (2, 1)
    assert err[0].startswith("thinslice: iso.nii: got slices 1 mm apart")


# ---- failures on the way: nothing half-done stays


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device"), 2, "No space left"),
        (PermissionError(13, "Permission denied", "thin.nii"), 2, "thin.nii: got 'Permission denied'; need "),
        (MemoryError(), 2, "memory"),
    ],
)
@pytest.mark.parametrize("where", ["upsample", "write", "report", "rename"])
def test_a_failure_leaves_no_trace(run, scan, tmp_path, monkeypatch, error, code, word, where):
    if where == "rename":
        real = atomic.move_to_free_name

        def sidecar_fails(source: Path, target: Path) -> None:
            if target == tmp_path / "out" / "thin.json":
                raise error
            real(source, target)

        monkeypatch.setattr(atomic, "move_to_free_name", sidecar_fails)
    else:
        place = {
            "upsample": "thinslice.pipeline.upsample",
            "write": "thinslice.io.nifti.write",
            "report": "thinslice.compute.consistency.Report.save",
        }[where]
        monkeypatch.setattr(place, raising(error))
    found, out, err = run("enhance", "-i", scan, "-o", tmp_path / "out" / "thin.nii.gz", "--model", "cubic")
    assert (found, out, len(err)) == (code, [], 1)
    assert word in err[0]
    assert names(tmp_path) == ["in"]


def test_a_failed_overwrite_keeps_the_earlier_answer(run, scan, tmp_path, monkeypatch):
    words = ["enhance", "-i", scan, "-o", tmp_path / "out" / "thin.nii", "--model", "cubic", "--overwrite"]
    assert run(*words)[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    real = os.replace

    def sidecar_fails(source: Path, target: Path) -> None:
        if Path(target) == tmp_path / "out" / "thin.json" and "earlier" not in Path(source).parts:
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", sidecar_fails)
    assert run(*words, "--factor", 2)[0] == 2
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_bug_is_not_hidden(scan, tmp_path, monkeypatch):
    monkeypatch.setattr("thinslice.pipeline.upsample", raising(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):
        cli.main(["enhance", "-i", str(scan), "-o", str(tmp_path / "thin.nii"), "--model", "cubic"])
    assert names(tmp_path) == ["in"]


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(scan, tmp_path, kind):
    """It arrives when the image is written and its report is not."""
    code = (
        "import signal, sys, time; from thinslice import cli; from thinslice.compute import consistency\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is deaf to it\n"
        "consistency.Report.save = lambda *_: (print('ready', flush=True), time.sleep(60))\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    words = ["enhance", "-i", scan, "-o", tmp_path / "out" / "thin.nii.gz", "--model", "cubic"]
    with subprocess.Popen([sys.executable, "-c", code, *words], stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert any(name.startswith(".thinslice-") for name in names(tmp_path / "out"))
        process.send_signal(kind)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines() == ["thinslice: interrupted; no unfinished file was left behind"]
    assert names(tmp_path) == ["in"]


@pytest.mark.parametrize(
    ("module", "verb", "what"), [("training", "train", "--resume"), ("evaluate", "evaluate", "results.jsonl")]
)
def test_what_stays_after_an_interruption_is_said(run, monkeypatch, module, verb, what):
    interrupted = raising(KeyboardInterrupt())
    interrupted.__name__ = verb
    monkeypatch.setattr(f"thinslice.cli.{module}.{verb}", interrupted)
    words = {"train": ["default", "--data", "a"], "evaluate": ["-i", "a"]}[verb]
    code, _, err = run(verb, *words, "-o", "b")
    assert (code, len(err)) == (130, 1)
    assert what in err[0]


def test_as_a_process(scan, tmp_path):
    answer = shell("enhance", "-i", scan, "-o", tmp_path / "thin.nii.gz", "--model", "cubic")
    assert (answer.returncode, answer.stderr) == (0, "")
    refused = shell("enhance", "-i", tmp_path / "none.nii", "-o", tmp_path / "x.nii", "--model", "cubic")
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1


def test_the_bar_is_drawn_on_a_terminal_only(run, scan, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    words = ["enhance", "-i", str(scan), "-o", str(tmp_path / "a.nii"), "--model", "cubic"]
    assert cli.main(words) == 0
    shown = capsys.readouterr().err
    assert "100 %" in shown
    assert shown.endswith("\r\x1b[K")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert cli.main([*words, "--overwrite", "-q"]) == 0
    assert capsys.readouterr().err == ""


# ---- info


def test_info_says_what_would_be_done(run, scan, tmp_path):
    code, out, err = run("info", "-i", scan, "--model", "cubic", "--factor", 2)
    assert (code, err) == (0, [])
    text = "\n".join(out)
    for words in (
        "24 x 20 x 6 voxels of 1 x 1 x 4 mm, int16",
        "axis 2 (head-foot)",
        "6 slices x 4 mm -> 12 slices x 2 mm",
    ):
        assert words in text
    assert names(tmp_path) == ["in"]


def test_info_as_json_is_the_plan_that_enhance_obeys(run, scan, tmp_path):
    code, out, _ = run("info", "-i", scan, "--model", "cubic", "--json", "--grid", "centres")
    fact = json.loads("\n".join(out))
    assert (code, fact["refused"]) == (0, None)
    run("enhance", "-i", scan, "-o", tmp_path / "thin.nii", "--model", "cubic", "--grid", "centres")
    assert json.loads((tmp_path / "thin.json").read_text())["plan"] == fact["plan"]


@catches(
    "cli/scans.py",
    "settle_profile(volume, made, model)",
    "make_plan(volume, settings, model)",
)
def test_info_says_the_profile_that_is_left_after_ringing(run, scan, monkeypatch):
    """As enhance narrows a profile of which a sample of the answer rings."""
    monkeypatch.setattr(
        "thinslice.compute.ringing.settle_profile",
        lambda volume, plan, model: replace(plan, thickness_mm=1.5),
    )
    _, out, _ = run("info", "-i", scan, "--json")
    assert json.loads("\n".join(out))["plan"]["thickness_mm"] == 1.5


def test_info_says_why_it_would_refuse(run, tmp_path):
    make_scan(tmp_path / "iso.nii", spacing_mm=(1, 1, 1))
    code, out, err = run("info", "-i", tmp_path / "iso.nii", "--model", "cubic")
    assert (code, len(err)) == (2, 1)
    assert "already isotropic" in err[0]
    assert out[-1] == "would  refuse"
    code, out, _ = run("info", "-i", tmp_path / "iso.nii", "--model", "cubic", "--json")
    fact = json.loads("\n".join(out))
    assert code == 2
    assert fact["plan"] is None
    assert fact["sees"]["shape"] == list(SHAPE)
    assert "already isotropic" in fact["refused"]


def test_info_of_a_folder(run, scan, tmp_path):
    (scan.parent / "bad.nii").write_bytes(b"nonsense")
    code, out, err = run("info", "-i", scan.parent, "--model", "cubic", "--json")
    facts = json.loads("\n".join(out))
    assert (code, len(err)) == (2, 1)
    assert [fact["refused"] is None for fact in facts] == [False, True]


# ---- reslice


def test_there_and_back(run, scan, tmp_path):
    thin, back = tmp_path / "thin.nii.gz", tmp_path / "back.nii.gz"
    assert run("enhance", "-i", scan, "-o", thin, "--model", "cubic", "--thickness", 3, "--profile", "box")[0] == 0
    code, out, err = run("reslice", "-i", thin, "--like", scan, "-o", back)
    assert (code, err, len(out)) == (0, [], 1)
    assert "box profile of 3 mm" in out[0]
    before, after = nifti.read(scan), nifti.read(back)
    assert np.abs(after.voxels.astype(float) - before.voxels).max() < 5
    assert after.voxels.dtype == np.int16
    np.testing.assert_allclose(after.affine, before.affine)
    assert (
        "gaussian profile of 2 mm"
        in run(
            "reslice", "-i", thin, "--like", scan, "-o", tmp_path / "b.nii", "--profile", "gaussian", "--thickness", 2
        )[1][0]
    )


def test_labels_there_and_back(run, scan, tmp_path):
    drawn = make_labels(tmp_path / "seg.nii.gz")
    thin = tmp_path / "thin.nii.gz"
    run("enhance", "-i", scan, "-o", thin, "--model", "cubic", "--labels", drawn)
    words = ["-i", tmp_path / "thin_labels.nii.gz", "--like", scan, "--labels", "-o", tmp_path / "back.nii.gz"]
    assert run("reslice", *words)[0] == 0
    before, after = nifti.read(drawn).voxels, nifti.read(tmp_path / "back.nii.gz").voxels
    assert after.dtype == np.uint8
    assert (before == after).mean() > 0.97


@catches("compute/label_maps.py", "if share <= REGIONS or", "if share <= 2 or")
def test_reslice_sees_what_is_a_segmentation_and_what_is_not(run, scan, tmp_path):
    drawn = make_labels(tmp_path / "seg.nii.gz")
    thin = tmp_path / "thin.nii.gz"
    run("enhance", "-i", scan, "-o", thin, "--model", "cubic", "--labels", drawn)
    seg = ["-i", tmp_path / "thin_labels.nii.gz", "--like", scan]
    (tmp_path / "back.json").touch()  # reslice writes nothing there
    code, out, _ = run("reslice", *seg, "-o", tmp_path / "back.nii.gz")
    assert code == 0
    assert "taken for a segmentation" in out[1]
    assert set(np.unique(nifti.read(tmp_path / "back.nii.gz").voxels)) == {0, 7, 200}
    assert "image, mean" in run("reslice", *seg, "-o", tmp_path / "mean.nii.gz", "--image")[1][0]
    assert "image, mean" in run("reslice", "-i", thin, "--like", scan, "-o", tmp_path / "b.nii.gz")[1][0]


def test_reslice_refuses_what_does_not_fit_and_to_replace_an_input(run, scan, tmp_path):
    other = make_scan(tmp_path / "other.nii", spacing_mm=(1.1, 1, 4))
    before = scan.read_bytes()
    assert run("reslice", "-i", other, "--like", scan, "-o", tmp_path / "x.nii")[0] == 2
    assert run("reslice", "-i", other, "--like", scan, "-o", scan, "--overwrite")[0] == 2
    assert scan.read_bytes() == before
    assert names(tmp_path) == ["in", "other.nii"]


# ---- demo, train, evaluate


def test_demo(run, tmp_path):
    code, out, err = run("demo", "-o", tmp_path / "demo", "--model", "cubic")
    assert (code, err, len(out)) == (0, [], 3)
    assert "11 slices x 4.5 mm -> 72 slices" in out[0]
    assert "% RMS" in out[1]
    assert names(tmp_path / "demo") == ["spine_thin.html", "spine_thin.json", "spine_thin.nii.gz", "spine_thin.png"]
    assert (tmp_path / "demo" / "spine_thin.png").read_bytes().startswith(b"\x89PNG")
    assert nifti.read(tmp_path / "demo" / "spine_thin.nii.gz").voxels.shape == (256, 324, 72)


@pytest.mark.parametrize(("module", "extra"), [("torch", "train"), ("onnx", "train"), ("av", "video")])
def test_training_without_its_packages_names_the_remedy(run, tmp_path, monkeypatch, module, extra):
    for name in [name for name in sys.modules if name.startswith("thinslice.training")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "thinslice.training.runner", None)
    real = __import__

    def without(name: str, *rest: object) -> object:
        if name == "thinslice.training.runner":
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
        return real(name, *rest)

    monkeypatch.setattr("builtins.__import__", without)
    code, out, err = run("train", "default", "--data", tmp_path, "-o", tmp_path / "run")
    assert (code, out) == (2, [])
    remedy = f"next: pip install 'thinslice[{extra}]'"
    assert err == [f"thinslice: got no {module}; need it for training; {remedy}"]


def test_evaluate(run, tmp_path):
    pytest.importorskip("thinslice.evaluation.benchmark")
    truth = tmp_path / "truths" / "iso.nii.gz"
    make_scan(truth, spacing_mm=(1, 1, 1), shape=(32, 30, 34))
    words = ["--models", "cubic,linear", "--factors", "2,3", "--profiles", "gaussian"]
    code, out, err = run("evaluate", "-i", truth.parent, "-o", tmp_path / "out", *words)
    assert (code, err) == (0, [])
    assert any("linear" in line and line.startswith("|") for line in out)
    assert {"table.md", "results.jsonl"} <= set(names(tmp_path / "out"))
    assert run("evaluate", "-i", tmp_path / "none", "-o", tmp_path / "out", *words)[0] == 2
    more = ["--models", "cubic", "--factors", "2", "--crop", "30", "-q"]
    more += ["--noise", "0,3", "--noise-kind", "rician", "--brightness", "10", "--shift", "0,0.5"]
    assert run("evaluate", "-i", truth, "-o", tmp_path / "o", *more, "--told", "none,box:0.75", "--downstream")[0] == 0
    records = [json.loads(line) for line in (tmp_path / "o" / "results.jsonl").read_text().splitlines()]
    asked = {tuple(list(record["condition"].values())[3:]) for record in records}
    assert asked == {(s, n, "rician", 10, x) for s in ("none", "box:0.75") for n in (0, 3) for x in (0, 0.5)}
    assert run("evaluate", "-i", truth, "-o", tmp_path / "m", *more, "--mismatch")[0] == 0
    assert "told gaussian:1.25" in (tmp_path / "m" / "table.md").read_text()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--told", "maybe"], "need true, none, wrong"),
        (["--noise", "-1"], "not a list of numbers from zero on"),
        (["--shift", "nan"], "not a list of numbers from zero on"),
        (["--brightness", "some"], "not a list of numbers from zero on"),
        (["--crop", "0"], "not a positive number"),
        (["--mismatch", "--told", "none", "--profiles", "box"], "got --mismatch and --profiles and --told"),
    ],
)
def test_conditions_that_make_no_sense_are_refused_in_one_line(run, tmp_path, words, reason):
    make_scan(tmp_path / "iso.nii.gz", spacing_mm=(1, 1, 1), shape=(32, 30, 34))
    code, _, err = run("evaluate", "-i", tmp_path / "iso.nii.gz", "-o", tmp_path / "out", *words)
    assert (code, len(err)) == (2, 1)
    assert reason in err[0]
    assert not (tmp_path / "out").exists()


@catches("pipeline.py", "thin = to_stored(done.volume, target)", "thin = done.volume")
def test_the_report_is_about_what_is_in_the_file(run, tmp_path):
    """Also where the file stores whole numbers with a rescale, on the scale that just holds the acquired values."""
    voxels = (np.random.default_rng(0).integers(0, 2, (24, 24, 9)) * 65535 - 32768).astype(np.int16)
    scan = save_scan(tmp_path / "scan.nii", voxels, np.diag([1.0, 1.0, 4.0, 1.0]), scl_slope=0.37, scl_inter=5.0)
    out = tmp_path / "thin.nii"
    code, said, _ = run("enhance", "-i", scan, "-o", out, "--model", "cubic")
    assert code == 0
    assert any("would clip the answer: widened" in line for line in said)
    facts = json.loads(out.with_suffix(".json").read_text())
    thin, plan = nifti.read(out), Plan.from_json(json.dumps(facts["plan"]))
    found = check(nifti.read(scan), thin, plan)
    assert found.worst_percent == pytest.approx(facts["consistency"]["worst_percent"], rel=0.01)
    assert found.worst_percent < 2


@pytest.mark.parametrize("name", sorted(BAD_SCANS))
def test_every_bad_scan_is_enhanced_or_refused_in_one_line(run, tmp_path, name):
    if not (DATA / "bad" / name).exists():
        pytest.skip(f"no shared data at {DATA}; set THINSLICE_DATA")
    code, _, err = run("enhance", "-i", DATA / "bad" / name, "-o", tmp_path / "o" / "thin.nii.gz", "--model", "cubic")
    refused = BAD_SCANS[name] is InputRefused or name in ("syn_one_slice.nii.gz",)
    assert (code, len(err)) == ((2, 1) if refused else (0, 0))
    assert (tmp_path / "o").exists() == (not refused)
    if refused:
        assert all(word in err[0] for word in (name, "got ", "need ", "next: "))
        return
    thin = nifti.read(tmp_path / "o" / "thin.nii.gz")
    assert np.isfinite(thin.voxels).all()
    report = json.loads((tmp_path / "o" / "thin.json").read_text())
    # Some of them are nothing but noise, which is not followed.
    assert report["consistency"]["rms_percent"] < 1 + 100 * (report["plan"]["slice_noise"] or 0)


@pytest.mark.parametrize(
    ("folder", "reason"), [("dcm_failing_sliceorientation", "orientation"), ("dcm_generic_compressed_rle", "isotropic")]
)
def test_a_bad_folder_of_dicom_files_is_refused_with_the_reason(run, tmp_path, folder, reason):
    if not (DATA / "bad" / folder).exists():
        pytest.skip(f"no shared data at {DATA}; set THINSLICE_DATA")
    code, out, err = run("enhance", "-i", DATA / "bad" / folder, "-o", tmp_path / "o", "--model", "cubic")
    assert (code, out, len(err)) == (2, [], 1)
    assert reason in err[0]
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "o").exists()


def test_real_numbers_come_back_as_real_numbers_of_the_same_width(run, tmp_path):
    scan = make_scan(tmp_path / "in" / "scan.nii")
    volume = nifti.read(scan)
    nifti.write(replace(volume, voxels=volume.voxels * np.float32(0.1), header=None), tmp_path / "in" / "scan.nii")
    assert run("enhance", "-i", scan, "-o", tmp_path / "thin.nii", "--model", "cubic")[0] == 0
    assert nifti.read(tmp_path / "thin.nii").voxels.dtype == np.float32
    nifti.write(replace(volume, voxels=volume.voxels * 0.1 + 1e9, header=None), tmp_path / "in" / "scan.nii")
    assert run("enhance", "-i", scan, "-o", tmp_path / "thin.nii", "--model", "cubic", "--overwrite")[0] == 0
    assert nifti.read(tmp_path / "thin.nii").voxels.dtype == np.float64
    assert json.loads((tmp_path / "thin.json").read_text())["consistency"]["worst_percent"] < 2


def test_eight_bits_become_sixteen_so_that_the_answer_gives_the_scan_back(run, tmp_path):
    voxels = np.random.default_rng(0).choice([0, 255], size=(24, 24, 9)).astype(np.uint8)
    scan, out = tmp_path / "scan.nii", tmp_path / "thin.nii"
    nifti.write(Volume(voxels, np.diag([1.0, 1.0, 4.0, 1.0])), scan)
    assert run("enhance", "-i", scan, "-o", out, "--model", "cubic")[0] == 0
    thin = nifti.read(out).voxels
    assert thin.dtype == np.int16
    assert thin.min() < 0  # which 8 bits would have lost, and with it the agreement asked for here
    assert thin.max() > 255
    assert json.loads(out.with_suffix(".json").read_text())["consistency"]["worst_percent"] < 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_import_is_not_cut_off_half_way(number):
    """What is half imported cannot be imported again: the interruption comes when it is whole."""
    reached = []
    before = signal.getsignal(number)

    def interrupted():
        with uninterrupted():
            os.kill(os.getpid(), number)
            reached.append(True)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert reached
    assert signal.getsignal(number) == before


# ---- segmentations among the scans


def image_of(shape=(24, 22, 9), seed=0):
    return np.random.default_rng(seed).normal(500, 60, shape).astype(np.float32)


def drawn_on(shape=(24, 22, 9), kind="uint8"):
    drawn = np.zeros(shape, kind)
    drawn[6:18, 5:17, 2:7], drawn[9:14, 9:14, 3:6] = 1, 2
    return drawn


def put(path, voxels, order=(0, 1, 2), intent=None):
    """The voxels on one grid, whatever the order in which they are stored."""
    affine = np.diag([1.0, 1.0, 4.0, 1.0])[:, [*order, 3]]
    image = nibabel.Nifti1Image(voxels.transpose(order), affine)
    if intent is not None:
        image.header.set_intent(intent)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


@catches("cli/enhance.py", "if answer not in [each.answer for each in drawn]", "if True")
@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_a_segmentation_beside_its_scan_is_brought_along_and_not_computed_as_an_image(run, tmp_path, kind):
    put(tmp_path / "in" / "case1.nii.gz", image_of())
    put(tmp_path / "in" / "case1_seg.nii.gz", drawn_on(kind=kind), order=(2, 0, 1))
    put(tmp_path / "in" / "case2.nii.gz", image_of((20, 20, 8), 1))
    put(tmp_path / "in" / "mask_of_another.nii.gz", drawn_on((30, 22, 9)))
    code, out, err = run("enhance", "-i", tmp_path / "in", "-o", tmp_path / "thin", "--model", "cubic", "--factor", "4")
    assert (code, err) == (0, [])
    assert names(tmp_path / "thin") == ["case1.json", "case1.nii.gz", "case1_seg.nii.gz", "case2.json", "case2.nii.gz"]
    image, labels = (nibabel.load(tmp_path / "thin" / name) for name in ("case1.nii.gz", "case1_seg.nii.gz"))
    assert np.array_equal(image.affine, labels.affine)
    assert image.shape == labels.shape
    found = np.asarray(labels.dataobj)
    assert set(np.unique(found)) == {0, 1, 2}
    run("enhance", "-i", put(tmp_path / "a.nii.gz", image_of()), "-o", tmp_path / "alone.nii.gz", "--model", "cubic",
        "--factor", "4", "--labels", put(tmp_path / "b.nii.gz", drawn_on()))  # fmt: skip
    assert np.array_equal(found, np.asarray(nibabel.load(tmp_path / "alone_labels.nii.gz").dataobj))
    assert any("case1_seg.nii.gz: a segmentation" in line and "of case1.nii.gz" in line for line in out)
    assert any("mask_of_another.nii.gz" in line and "left alone" in line for line in out)


def test_several_segmentations_of_one_scan_are_all_brought_along(run, tmp_path):
    put(tmp_path / "in" / "t2.nii.gz", image_of())
    put(tmp_path / "in" / "lesion.nii.gz", drawn_on())
    put(tmp_path / "in" / "points.nii.gz", np.eye(24, 22, dtype=np.float32)[:, :, None] * (np.arange(9) == 4))
    assert run("enhance", "-i", tmp_path / "in", "-o", tmp_path / "thin", "--model", "cubic", "--factor", "3")[0] == 0
    assert names(tmp_path / "thin") == ["lesion.nii.gz", "points.nii.gz", "t2.json", "t2.nii.gz"]


def test_a_folder_of_segmentations_alone_is_refused_and_the_way_out_works(run, tmp_path):
    put(tmp_path / "labelsTr" / "a.nii.gz", drawn_on())
    put(tmp_path / "imagesTr" / "a.nii.gz", image_of())
    code, out, err = run("enhance", "-i", tmp_path / "labelsTr", "-o", tmp_path / "thin", "--model", "cubic")
    assert (code, out, len(err)) == (2, [], 1)
    assert "got segmentations alone (a.nii.gz: its voxels form regions of whole numbers (0, 1, 2))" in err[0]
    assert not (tmp_path / "thin").exists()
    way = ["-i", tmp_path / "imagesTr", "--labels", tmp_path / "labelsTr", "-o", tmp_path / "thin", "--model", "cubic"]
    assert run("enhance", *way)[0] == 0
    assert set(np.unique(nifti.read(tmp_path / "thin" / "a_labels.nii.gz").voxels)) == {0, 1, 2}


def test_one_segmentation_as_the_scan_is_refused_and_a_phantom_is_computed_with_a_note(run, tmp_path):
    for case in (
        put(tmp_path / "case1_seg.nii.gz", drawn_on()),
        put(tmp_path / "x.nii.gz", drawn_on(), intent="label"),
    ):
        code, out, err = run("enhance", "-i", case, "-o", tmp_path / "thin.nii.gz", "--model", "cubic")
        assert (code, out, len(err)) == (2, [], 1)
        assert "need a scan; next: give the scan that it was drawn on, and this as --labels" in err[0]
        assert run("info", "-i", case)[0] == 2
    phantom = put(tmp_path / "phantom.nii.gz", drawn_on())
    code, out, _ = run("enhance", "-i", phantom, "-o", tmp_path / "thin.nii.gz", "--model", "cubic")
    assert code == 0
    assert any("note: it may be a segmentation: its voxels form regions" in line for line in out)
    assert "it may be a segmentation" in (tmp_path / "thin.json").read_text()
    assert any("it may be a segmentation" in line for line in run("info", "-i", phantom)[1])


def test_info_of_a_folder_names_segmentations_and_refuses_none(run, tmp_path):
    put(tmp_path / "in" / "case1.nii.gz", image_of())
    put(tmp_path / "in" / "case1_seg.nii.gz", drawn_on())
    code, out, err = run("info", "-i", tmp_path / "in", "--model", "cubic")
    assert (code, err) == (0, [])
    assert any("note: a segmentation (its voxels form regions of whole numbers (0, 1, 2))" in line for line in out)


@pytest.mark.parametrize(("voxels", "words"), [
    (np.where(image_of() > 500, 3, 1).astype(np.uint8), "taken for an image, though its voxels are few whole numbers"),
    (drawn_on(kind="float32"), "taken for a segmentation, its voxels form regions of whole numbers (0, 1, 2)"),
])  # fmt: skip
def test_reslice_tells_what_it_guessed(run, tmp_path, voxels, words):
    thin = put(tmp_path / "thin.nii.gz", voxels)
    code, out, _ = run("reslice", "-i", thin, "--like", thin, "-o", tmp_path / "back.nii.gz")
    assert code == 0
    assert any(words in line for line in out)


@pytest.mark.parametrize("name", ["seg.nii.gz", "seg.nrrd", "seg.mgz", "seg.mha"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_labels_from_another_corner_are_written_on_the_grid_of_the_answer_in_every_format(run, tmp_path, name, order):
    scan = put(tmp_path / "scan.nii.gz", image_of())
    affine = np.diag([-1.0, -1.0, 4.0, 1.0])[:, [*order, 3]]
    affine[:2, 3] = 23, 21
    formats.write(Volume(drawn_on()[::-1, ::-1].transpose(order), affine), tmp_path / name)
    words = ["enhance", "-i", scan, "--model", "cubic", "--factor", "4", "--labels"]
    labels = tmp_path / f"thin_labels{name.removeprefix('seg')}"
    assert run(*words, tmp_path / name, "-o", tmp_path / "thin.nii.gz", "--labels-out", labels)[0] == 0
    run(*words, put(tmp_path / "plain.nii.gz", drawn_on()), "-o", tmp_path / "a.nii.gz")
    thin, expected, image = (formats.read(tmp_path / one) for one in (labels, "a_labels.nii.gz", "thin.nii.gz"))
    np.testing.assert_array_equal(thin.voxels, expected.voxels)
    np.testing.assert_allclose(thin.affine, image.affine, atol=1e-5)


def test_labels_that_a_scale_left_beside_whole_numbers_come_out_whole(run, tmp_path):
    scan = put(tmp_path / "scan.nii.gz", image_of())
    image = nibabel.Nifti1Image(drawn_on(), np.diag([1.0, 1.0, 4.0, 1.0]))
    image.header.set_slope_inter(0.9999, 0)
    nibabel.save(image, tmp_path / "seg.nii.gz")
    stored = bytearray(gzip.decompress((tmp_path / "seg.nii.gz").read_bytes()))
    stored[112:116] = struct.pack("<f", 0.9999)  # scl_slope
    (tmp_path / "seg.nii").write_bytes(stored)
    code, out, _ = run("enhance", "-i", scan, "-o", tmp_path / "thin.nii.gz", "--model", "cubic",
                       "--labels", tmp_path / "seg.nii")  # fmt: skip
    assert code == 0
    assert any("note: labels: labels up to 0.0002 beside whole numbers" in line for line in out)
    assert "beside whole numbers" in (tmp_path / "thin.json").read_text()
    found = nibabel.load(tmp_path / "thin_labels.nii.gz").get_fdata()
    assert set(np.unique(found)) == {0.0, 1.0, 2.0}
