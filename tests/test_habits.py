"""What people are used to: several inputs, a trial run, a log, completion, exit codes; and names of any kind."""

import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dicom_files import stack
from faults import catches
from thinslice import cli
from thinslice.cli.terminal import EXIT_CODES, INTERRUPTED, printable


def thick_scan(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).integers(0, 900, (12, 12, 5)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1, 4, 1])), path)
    return path


def names_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ---- several inputs


def test_files_folders_and_studies_go_to_one_folder(tmp_path, run):
    one, more = thick_scan(tmp_path / "one.nii.gz"), tmp_path / "more"
    thick_scan(more / "a.nii.gz", 1)
    thick_scan(more / "b.mgz", 2)
    stack(tmp_path / "knee", count=5)
    out = tmp_path / "out"
    words = ["enhance", "-i", one, more, "-i", tmp_path / "knee", one, "-o", out, "--model", "cubic"]
    code, said, err = run(*words)
    assert (code, err) == (0, [])
    done = [line.split(":")[0] for line in said if "slices x" in line]
    assert done == ["one.nii.gz", "a.nii.gz", "b.mgz", "1 T2 TSE"]
    found = names_below(out)
    assert found[:4] == ["a.json", "a.nii.gz", "b.json", "b.mgz"]
    assert "knee/thinslice.json" in found
    assert nib.load(out / "one.nii.gz").shape == (12, 12, 20)


@catches("cli/enhance.py", "    paths = _each_once(arguments.input)", "    paths = arguments.input")
def test_what_is_named_twice_is_done_once(tmp_path, run):
    scan = thick_scan(tmp_path / "scan.nii.gz")
    code, said, _ = run("enhance", "-i", scan, "-i", scan, "-o", tmp_path / "thin.nii.gz", "--model", "cubic")
    assert (code, sum("slices x" in line for line in said)) == (0, 1)


@pytest.mark.parametrize(
    ("inputs", "options", "got"),
    [
        (["a/scan.nii.gz", "b/scan.nii.gz"], [], "scan.nii.gz"),
        (["a/scan.nii.gz", "gone.nii.gz"], [], "No such file"),
        (["a/scan.nii.gz", "b/scan.nii.gz"], ["--anonymise"], "files that are no DICOM"),
        (["a/scan.nii.gz", "b/other.nii.gz"], ["--labels", "a/scan.nii.gz"], "one segmentation for a folder of scans"),
    ],
)
def test_several_inputs_are_all_looked_at_before_any_is_done(tmp_path, run, monkeypatch, inputs, options, got):
    monkeypatch.chdir(tmp_path)
    for name in ("a/scan.nii.gz", "b/scan.nii.gz", "b/other.nii.gz"):
        thick_scan(tmp_path / name)
    code, said, err = run("enhance", "-i", *inputs, "-o", "out", "--model", "cubic", *options)
    assert (code, said, len(err)) == (2, [], 1)
    assert got in err[0]
    assert not (tmp_path / "out").exists()


def test_several_inputs_need_a_folder(tmp_path, run):
    scans = [thick_scan(tmp_path / name) for name in ("a.nii.gz", "b.nii.gz")]
    code, _, err = run("enhance", "-i", *scans, "-o", tmp_path / "thin.nii.gz", "--model", "cubic")
    assert code == 2
    assert "need a folder's" in err[0]


# ---- a trial run


@catches("datasets/job.py", "    _check_free(job, _is_torn(job.stage))\n    volume", "    volume")
def test_a_dry_run_says_what_would_be_done_and_does_nothing(tmp_path, run):
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("a.nii.gz", "b.nii.gz", "taken.nii.gz"):
        thick_scan(folder / name)
    (folder / "bad.nii.gz").write_text("text")
    thin = nib.Nifti1Image(np.zeros((12, 12, 12), np.int16), np.eye(4))
    nib.save(thin, folder / "thin.nii.gz")
    command = ["batch", "-i", folder, "-o", out, "--model", "cubic", "--workers", 1]
    code, said, err = run(*command, "--dry-run")
    assert code == 2
    assert not out.exists()
    assert said == [
        "a.nii.gz: would be computed, 5 x 4 mm -> 20 x 1 mm",
        "b.nii.gz: would be computed, 5 x 4 mm -> 20 x 1 mm",
        "bad.nii.gz: failed",
        "taken.nii.gz: would be computed, 5 x 4 mm -> 20 x 1 mm",
        "thin.nii.gz: left out, thin already, slices 1 mm apart, 1 mm in-plane",
        "3 of 5 scans would be computed",
    ]
    assert len(err) == 1
    (folder / "bad.nii.gz").unlink()
    thick_scan(out / "taken.nii.gz")
    (folder / "b.nii.gz").unlink()
    before = names_below(tmp_path)
    code, said, err = run(*command, "--dry-run")
    assert code == 2
    assert "a free name" in err[0]
    assert names_below(tmp_path) == before
    (folder / "taken.nii.gz").unlink()
    assert run(*command)[0] == 0
    code, said, err = run(*command, "--dry-run")
    assert (code, err) == (0, [])
    assert said[0] == "a.nii.gz: kept, computed earlier, 5 x 4 mm -> 20 x 1 mm"


# ---- a log


@catches("cli/terminal.py", "        package.removeHandler(handler)\n", "")
def test_a_log_holds_what_was_said_and_done(tmp_path, run):
    scan, log = thick_scan(tmp_path / "scan.nii.gz"), tmp_path / "run.log"
    for number in (1, 2):
        words = ["enhance", "-i", scan, "-o", tmp_path / f"thin{number}.nii.gz", "--model", "cubic", "--log", log]
        assert run(*words)[0] == 0
    run("enhance", "-i", scan, "-o", tmp_path / "thin1.nii.gz", "--log", log)
    text = log.read_text()
    assert text.count("called with: enhance") == 3
    assert text.count("5 slices x 4 mm -> 20 slices x 1 mm with cubic") >= 2
    assert "WARNING  thinslice.cli.terminal:" in text
    assert "next: " in text
    assert text.count("wrote") == 2


@pytest.mark.parametrize("name", ["scan.nii.gz", "folder.log", "gone/run.log"])
def test_a_log_is_nothing_else(tmp_path, run, name):
    scan = thick_scan(tmp_path / "scan.nii.gz")
    before = scan.read_bytes()
    (tmp_path / "folder.log").mkdir()
    code, _, err = run("info", "-i", scan, "--log", tmp_path / name)
    assert (code, len(err)) == (2, 1)
    assert scan.read_bytes() == before


# ---- completion, threads, exit codes


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_a_shell_can_complete(run, shell):
    pytest.importorskip("shtab", reason="completion needs shtab, which comes with thinslice[completion]")
    code, said, err = run("completion", shell)
    assert (code, err) == (0, [])
    assert any("dry-run" in line for line in said)
    assert any("enhance" in line for line in said)


def test_completion_says_what_it_needs(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    code, _, err = run("completion", "bash")
    assert code == 2
    assert err == ["thinslice: got no shtab; need it for completion; next: pip install 'thinslice[completion]'"]


@pytest.mark.parametrize("verb", ["demo", "enhance", "combine", "batch", "info", "adapt", "train", "evaluate", "study"])
def test_every_verb_that_computes_takes_threads_and_a_log(run, verb):
    code, said, _ = run(verb, "--help")
    text = " ".join(said)
    assert code == 0
    assert "--threads N" in text
    assert "--log FILE" in text
    assert "docs/errors.md" in text


def test_exit_codes_are_those_of_the_table(tmp_path, run, monkeypatch):
    scan = thick_scan(tmp_path / "scan.nii.gz")
    done = {run("info", "-i", scan, "--model", "cubic")[0], run("--version")[0], run("--help")[0]}
    refused = {run("info", "-i", tmp_path / "gone.nii.gz")[0], run("nothing")[0], run()[0]}
    monkeypatch.setattr(cli, "make_parser", interrupted_parser(cli.make_parser()))
    interrupted = {run("info", "-i", scan)[0]}
    fault = subprocess.run([sys.executable, "-c", "raise KeyError"], stderr=subprocess.DEVNULL, check=False).returncode
    assert (done, refused, interrupted, {fault}) == ({0}, {2}, {INTERRUPTED}, {1})
    assert set(EXIT_CODES) == done | refused | interrupted | {fault}


def interrupted_parser(parser):
    def interrupt(_):
        raise KeyboardInterrupt

    parse = parser.parse_args

    def parse_args(words):
        found = parse(words)
        found.verb = interrupt
        return found

    parser.parse_args = parse_args
    return lambda: parser


def test_the_table_of_exit_codes_is_in_the_documents():
    page = (Path(__file__).parents[1] / "docs" / "errors.md").read_text(encoding="utf-8")
    for code, meaning in EXIT_CODES.items():
        assert f"| {code} | {meaning} |" in page


# ---- names with anything in them


def test_orders_to_the_terminal_are_not_passed_on():
    assert printable("a\nb\x1b[2J\tc\u202e") == "a?b?[2J?c?"


@catches("cli/terminal.py", "    say_lines(printable(text))", "    say_lines(text)")
@pytest.mark.parametrize("verb", ["enhance", "info", "batch", "dry"])
def test_a_name_with_a_line_break_stays_on_one_line(tmp_path, run, verb):
    scan = thick_scan(tmp_path / "in" / "a\nthinslice: b\x1b[2J.nii.gz")
    (tmp_path / "in" / "c\nd.nii.gz").write_text("text")
    out = tmp_path / "out"
    batch = ["batch", "-i", scan.parent, "-o", out, "--workers", 1, "--model", "cubic"]
    words = {
        "enhance": ["enhance", "-i", scan.parent, "-o", out, "--model", "cubic"],
        "info": ["info", "-i", scan.parent, "--model", "cubic"],
        "batch": batch,
        "dry": [*batch, "--dry-run"],
    }[verb]
    code, said, err = run(*words)
    assert code == 2
    assert not [line for line in said if line.startswith(("thinslice: b", "d.nii.gz"))]
    assert all(line.startswith("thinslice: ") and not line.startswith("thinslice: b?") for line in err)
    assert "\x1b" not in "".join([*said, *err])


def test_warnings_that_are_errors_change_nothing(tmp_path):
    scan = thick_scan(tmp_path / "scan.nii.gz")
    stack(tmp_path / "series", count=4)
    code = "import sys; from thinslice.cli import main; sys.exit(main())"
    for source, out in ((scan, "thin.nii.gz"), (tmp_path / "series", "thin")):
        words = ["enhance", "-i", source, "-o", tmp_path / out, "--report", tmp_path / f"{out}.html"]
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code, *map(str, words)], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")


@catches("cli/batch.py", '            ("command", shlex.join(["thinslice", *self.arguments.words])),\n', "")
def test_the_page_of_a_run_says_when_how_and_by_what(tmp_path, run):
    thick_scan(tmp_path / "in" / "a b.nii.gz")
    words = ["batch", "-i", tmp_path / "in", "-o", tmp_path / "out", "--model", "cubic", "--workers", 1, "--figures"]
    assert run(*words)[0] == 0
    page = (tmp_path / "out" / "summary.html").read_text()
    assert f"<li>command: thinslice batch -i {tmp_path / 'in'} -o {tmp_path / 'out'} --model cubic" in page
    assert re.search(r"<li>ended: \d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]", page)
    assert "<li>model: cubic</li>" in page
    assert "<li>version: thinslice " in page
    for link in ("thin slices", "report (JSON)", "figure (PNG)"):
        assert f">{link}</a>" in page
