"""Which files go in, where answers go: every refusal comes before any work, and leaves nothing behind."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

import thinslice
from faults import catches
from test_atomic import without_rights
from test_cli import make_labels, make_scan, raising
from thinslice import cli, pipeline
from thinslice.compute.consistency import read_plan_beside
from thinslice.errors import InputRefused, OutputRefused, ThinsliceError
from thinslice.io import nifti
from thinslice.io.formats import WRITABLE
from thinslice.io.outputs import (
    FIGURE_ENDINGS,
    LABELS_NAME,
    PAGE_ENDINGS,
    REPORT_NAME,
    Output,
    ScanOutput,
    check_outputs,
    find_output,
    find_reslice_output,
    find_scan_outputs,
    labels_beside,
    name_after_answer,
    unique_names,
)


@pytest.fixture
def scans(tmp_path):
    """A folder with a.nii, b.nii.gz, and what is no scan."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "folder.nii").mkdir()
    for name in ("b.nii.gz", "a.nii", "notes.txt", "._a.nii", "a.json", "c.mnc", "sub/d.nii"):
        (folder / name).write_bytes(b"x")
    return folder


def refusal(kind: type[ThinsliceError], *args) -> str:
    """The message of a refusal: one line, the three parts, nothing created."""
    root = Path(args[0]).parent
    before = sorted(root.rglob("*")) if root.is_dir() else []
    with pytest.raises(kind) as caught:
        find_scan_outputs(*args)
    message = str(caught.value)
    assert "\n" not in message
    assert ": got " in message
    assert "; need " in message
    assert "; next: " in message
    assert (sorted(root.rglob("*")) if root.is_dir() else []) == before
    return message


def test_file_to_file(scans, tmp_path):
    out = tmp_path / "not" / "yet" / "thin.nii.gz"
    assert find_scan_outputs(scans / "a.nii", out, False) == [
        ScanOutput(scans / "a.nii", out, out.with_name("thin.json"))
    ]
    assert not (tmp_path / "not").exists()


def test_file_to_folder_keeps_its_name(scans, tmp_path):
    (tmp_path / "out").mkdir()
    wanted = [ScanOutput(scans / "a.nii", tmp_path / "out/a.nii", tmp_path / "out/a.json")]
    assert find_scan_outputs(scans / "a.nii", tmp_path / "out", False) == wanted
    assert find_scan_outputs(str(scans / "a.nii"), str(tmp_path / "out"), False) == wanted
    assert (
        find_scan_outputs(scans / "a.nii", f"{tmp_path / 'new'}{os.sep}", False)[0].destination
        == tmp_path / "new/a.nii"
    )
    assert not (tmp_path / "new").exists()


def test_folder_to_folder(scans, tmp_path):
    found = find_scan_outputs(scans, tmp_path / "out", False)
    assert [(c.source.name, c.destination.name, c.sidecar.name) for c in found] == [
        ("a.nii", "a.nii", "a.json"),
        ("b.nii.gz", "b.nii.gz", "b.json"),
    ]
    assert {c.destination.parent for c in found} == {tmp_path / "out"}
    assert not (tmp_path / "out").exists()


def test_names_with_dots_and_capitals(tmp_path):
    (tmp_path / "T1.v2.NII.GZ").touch()
    (case,) = find_scan_outputs(tmp_path / "T1.v2.NII.GZ", f"{tmp_path}/out/", False)
    assert (case.destination.name, case.sidecar.name) == ("T1.v2.NII.GZ", "T1.v2.json")


def test_inputs_that_are_none_are_refused(scans, tmp_path):
    assert "No such file" in refusal(InputRefused, scans / "missing.nii", tmp_path / "o.nii", False)
    (tmp_path / "empty").mkdir()
    assert "no scan directly" in refusal(InputRefused, tmp_path / "empty", tmp_path / "o", False)
    for name, way in (
        ("c.mnc", "c3d"),
        ("c.IMG", "fslchfiletype"),
        ("c.json", "name the scan"),
        ("c.nii.zip", "unpack"),
        ("IM0001", "dcm2niix"),
    ):
        (tmp_path / name).touch()
        said = refusal(InputRefused, tmp_path / name, tmp_path / "o.nii", False)
        assert "another kind" in said
        assert way in said.split("next:")[1]


@pytest.mark.parametrize("name", ["out", "out.mnc", "out.gz", ".nii", "out.nhdr", ".nrrd"])
def test_outputs_of_another_kind_are_refused(scans, tmp_path, name):
    assert " or ".join(WRITABLE) in refusal(OutputRefused, scans / "a.nii", tmp_path / name, False)


def test_a_folder_needs_a_folder(scans, tmp_path):
    (tmp_path / "file").touch()
    refusal(OutputRefused, scans, tmp_path / "file", True)
    refusal(OutputRefused, scans, tmp_path / "out.nii.gz", True)
    refusal(OutputRefused, scans / "a.nii", f"{tmp_path / 'file'}/", True)


@pytest.mark.parametrize("there", ["a.nii", "a.json"])
def test_existing_outputs_are_kept_unless_overwriting(scans, tmp_path, there):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / there).touch()
    for source in (scans, scans / "a.nii"):
        message = refusal(OutputRefused, source, tmp_path / "out", False)
        assert "exists already" in message
        assert "`overwrite=True`" in message
        assert find_scan_outputs(source, tmp_path / "out", True)


@catches("io/outputs.py", "    _check_json_is_its_own(destination, sidecar)\n", "")
@catches("io/outputs.py", "file.exists() and not destination.exists()", "file.exists() and destination.exists()")
def test_the_json_of_an_answer_is_not_given_to_another(scans, tmp_path):
    (tmp_path / "thin.json").write_text('{"plan": {}}')
    (tmp_path / "thin.nii.gz").touch()
    message = refusal(OutputRefused, scans / "a.nii", tmp_path / "thin.nrrd", True)
    assert "thin.nrrd: got a name whose JSON, thin.json, is that of thin.nii.gz; need one JSON" in message
    assert find_scan_outputs(scans / "a.nii", tmp_path / "thin.nii.gz", True)
    (tmp_path / "thin.json").write_text('{"SliceThickness": 5}')
    assert find_scan_outputs(scans / "a.nii", tmp_path / "thin.nrrd", True)


@catches("cli/scans.py", "read_plan_beside(arguments.input, thin)", "read_plan_beside(arguments.input)")
def test_labels_of_an_answer_that_was_replaced_are_not_resliced_by_the_plan_of_the_new_one(run, tmp_path):
    """They stay where they are, as somebody may have drawn them; but the report beside is about another grid."""
    scan, drawn = make_scan(tmp_path / "scan.nii.gz"), make_labels(tmp_path / "drawn.nii.gz")
    words = ["-i", scan, "-o", tmp_path / "thin.nii.gz", "--model", "cubic", "--profile", "gaussian", "--thickness", 3]
    back = ["-i", tmp_path / "thin_labels.nii.gz", "--like", scan, "-o", tmp_path / "back.nii.gz", "--overwrite"]
    assert run("enhance", *words, "--labels", drawn)[0] == 0
    assert "under a gaussian profile of 3 mm" in run("reslice", *back)[1][0]
    assert run("enhance", *words, "--factor", 2, "--overwrite")[0] == 0
    assert "under a box profile of 4 mm" in run("reslice", *back)[1][0]


@catches("io/outputs.py", 'if "plan" in read_object(found.sidecar):', "if False:")
def test_what_is_resliced_gets_no_answers_json(scans, tmp_path):
    (tmp_path / "thin.json").write_text('{"plan": {}}')
    with pytest.raises(OutputRefused, match=r"thin\.json, is that of an answer of enhance; need one that has none"):
        find_reslice_output(scans / "a.nii", scans / "a.nii", tmp_path / "thin.nii", True)


def test_a_dangling_link_is_something_that_exists(scans, tmp_path):
    (tmp_path / "o.nii").symlink_to(tmp_path / "nowhere.nii")
    refusal(OutputRefused, scans / "a.nii", tmp_path / "o.nii", False)


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_is_never_an_output(scans, tmp_path, overwrite):
    refusal(OutputRefused, scans / "a.nii", scans / "a.nii", overwrite)
    refusal(OutputRefused, scans / "a.nii", scans / "sub" / ".." / "a.nii", overwrite)
    refusal(OutputRefused, scans / "a.nii", scans, overwrite)
    refusal(OutputRefused, scans, scans, overwrite)
    (tmp_path / "link").symlink_to(scans)
    refusal(OutputRefused, scans, tmp_path / "link", overwrite)
    (tmp_path / "soft.nii").symlink_to(scans / "a.nii")
    refusal(OutputRefused, scans / "a.nii", tmp_path / "soft.nii", overwrite)
    refusal(OutputRefused, tmp_path / "soft.nii", scans / "a.nii", overwrite)
    os.link(scans / "a.nii", tmp_path / "hard.nii")
    refusal(OutputRefused, scans / "a.nii", tmp_path / "hard.nii", overwrite)


def test_one_scan_may_not_take_the_place_of_another(scans, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.nii").symlink_to(scans / "b.nii.gz")
    refusal(OutputRefused, scans, tmp_path / "out", True)


def test_the_facts_beside_an_input_are_never_replaced(scans):
    message = refusal(OutputRefused, scans / "a.nii", scans / "a.nii.gz", True)
    assert "a.json" in message


@pytest.mark.parametrize("twin", ["a.nii.gz", "A.nii"])
def test_two_scans_with_one_answer_are_refused(scans, tmp_path, twin):
    (scans / twin).touch()
    if not (scans / twin).samefile(scans / "a.nii"):  # where letter case counts
        message = refusal(OutputRefused, scans, tmp_path / "out", True)
        assert twin in message
        assert "a.nii" in message


def test_outputs_that_cannot_be_written_are_refused(scans, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    refusal(OutputRefused, scans / "a.nii", tmp_path / "file" / "deep" / "o.nii", True)
    (tmp_path / "o.nii").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.nii").mkdir()
    assert "a folder in the place" in refusal(OutputRefused, scans, tmp_path / "out", True)
    monkeypatch.setattr(os, "mkdir", raising(PermissionError(13, "Permission denied")))
    assert "permission" in refusal(OutputRefused, scans / "a.nii", tmp_path / "new" / "p.nii", True)


def test_paths_are_told_apart_by_as_little_as_it_takes():
    paths = [Path("a/x.nii"), Path("b/x.nii"), Path("b/y.nii"), Path("b/y.nii"), Path()]
    assert unique_names(paths) == {
        Path("a/x.nii"): "a/x.nii",
        Path("b/x.nii"): "b/x.nii",
        Path("b/y.nii"): "y.nii",
        Path(): ".",
    }


# ---- the policy for everything that is written


def reason(outputs: list[Output], inputs: Sequence[Path] = (), overwrite: bool = False) -> OutputRefused:
    """Why some outputs are refused; nothing is created, and the message has all its parts."""
    with pytest.raises(OutputRefused) as caught:
        check_outputs(outputs, inputs, overwrite)
    error = caught.value
    assert error.got
    assert error.need
    assert error.next
    assert error.code
    return error


@catches("io/outputs.py", "    if not output.path.name:\n", "    if False:\n")
@pytest.mark.parametrize("name", ["", ".", "/"])
def test_an_empty_name_is_refused(name):
    error = reason([Output(Path(name), "`labels_out`")])
    assert (error.code, error.options) == ("output-empty-name", ("labels_out",))


@pytest.mark.parametrize("find", [find_scan_outputs, partial(find_output, series=None)])
def test_an_empty_destination_is_not_the_current_folder(scans, tmp_path, monkeypatch, find):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(OutputRefused) as caught:
        find(scans / "a.nii", destination="")
    assert caught.value.code == "output-empty-name"


@catches("io/outputs.py", "len(name) > len(end) for end", "True for end")
@pytest.mark.parametrize(
    ("name", "endings", "fits"),
    [
        ("a.html", PAGE_ENDINGS, True),
        ("a.HTM", PAGE_ENDINGS, True),
        ("a.png", PAGE_ENDINGS, False),
        (".html", PAGE_ENDINGS, False),
        ("a.png", FIGURE_ENDINGS, True),
        ("a.txt", (), True),
    ],
)
def test_another_kind_of_name_is_refused(tmp_path, name, endings, fits):
    output = Output(tmp_path / name, "`report`", endings)
    if fits:
        check_outputs([output], [], overwrite=False)
    else:
        error = reason([output])
        assert error.code == "output-ending"
        assert "`report`" in error.got
        assert ".html" in error.need


@catches("io/outputs.py", "taken.setdefault(os.path.realpath(output.path).casefold(), output)", "output")
@pytest.mark.parametrize("other", ["a.html", "A.HTML", "sub/../a.html", "link/a.html"])
def test_two_outputs_of_one_name_are_refused(tmp_path, other):
    (tmp_path / "link").symlink_to(tmp_path)
    error = reason([Output(tmp_path / "a.html", "`report`"), Output(tmp_path / other, "`figure`", way_out="rename it")])
    assert (error.code, error.options, error.next) == ("output-twice", ("report", "figure"), "rename it")


def test_no_output_lies_in_the_place_of_another(tmp_path):
    inner, outer = Output(tmp_path / "a.nii" / "b.html", "`report`"), Output(tmp_path / "a.nii", "`output`")
    for outputs in ([inner, outer], [outer, inner]):
        assert reason(outputs).code == "output-twice"


@catches("io/outputs.py", "and name not in (REPORT_NAME, LABELS_NAME, SEGMENTATION_NAME):", "and False:")
def test_among_the_slices_of_a_new_series_lies_what_belongs_there_alone(tmp_path):
    series = Output(tmp_path / "out", "the answer", is_series=True)
    for name in (REPORT_NAME, LABELS_NAME):
        check_outputs([series, Output(tmp_path / "out" / name, "`labels_out`")], [], overwrite=False)
    for name in ("page.html", "pages/page.html"):
        assert reason([series, Output(tmp_path / "out" / name, "`report`")]).code == "output-in-series"


@catches("io/outputs.py", "for file in (sidecar_path(scan), voxel_file(scan))", "for file in (voxel_file(scan),)")
@catches("io/outputs.py", "or _identities([output.path]) & files:", "or False:")
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["a.nii", "a.json", "sub/../a.nii", "soft.html", "hard.html"])
def test_no_output_is_an_input_or_its_facts(scans, name, overwrite):
    (scans / "soft.html").symlink_to(scans / "a.nii")
    os.link(scans / "a.json", scans / "hard.html")
    assert reason([Output(scans / name, "`report`")], [scans / "a.nii"], overwrite).code == "output-is-input"


@catches("io/outputs.py", "        check_writable(folder, names)\n", "        check_writable(folder)\n")
@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("a" * 300, "File name too long"),
        ("a" * 300 + "/b.html", "File name too long"),
        ("/".join(["a" * 250] * 20), "File name too long"),
        ("file/b.html", "got a file; need a folder"),
        ("file/deep/b.html", "got a file; need a folder"),
        ("dangling/b.html", "got a file; need a folder"),
        ("zero\0byte", "a zero byte"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_refused_and_nothing_stays(tmp_path, name, word):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    error = reason([Output(tmp_path / name, "`labels_out`")])
    assert (error.code, word in str(error)) == ("output-not-writable", True)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.root
@pytest.mark.skipif(shutil.which("unshare") is None, reason="no disks to mount here")
def test_a_disk_that_may_only_be_read_is_refused(tmp_path):
    """Even to an administrator, who may write anywhere else."""
    code = (
        f"from pathlib import Path; from thinslice.io.outputs import check_writable; check_writable(Path('{tmp_path}'))"
    )
    words = f'mount -t tmpfs -o ro tmpfs {tmp_path} || exit 77; {sys.executable} -c "{code}"'
    done = subprocess.run(["unshare", "--mount", "sh", "-c", words], capture_output=True, text=True, check=False)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no permission to mount")
    assert "OutputRefused" in done.stderr
    assert "Read-only file system" in done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_folder_without_permission_is_refused():
    with tempfile.TemporaryDirectory() as name:  # others may go through, which they may not in tmp_path
        Path(name).chmod(0o555)

        def refused() -> None:
            error = reason([Output(Path(name) / "new" / "a.html", "`report`")])
            assert (error.code, error.place) == ("output-not-writable", name)
            assert "write permission" in error.got

        without_rights(refused)


def test_names_of_pages_and_labels_follow_the_answer(tmp_path):
    (tmp_path / "there.html").mkdir()
    answer = Path("out/thin.nii.gz")
    assert name_after_answer(str(tmp_path / "there.html"), answer, ".html") == tmp_path / "there.html" / "thin.html"
    assert name_after_answer("pages", answer, ".html") == Path("pages/thin.html")
    assert name_after_answer("page.html", answer, ".html") == Path("page.html")
    assert name_after_answer("pages.d/", Path("out/001_T2"), ".png") == Path("pages.d/001_T2.png")
    assert labels_beside(answer) == Path("out/thin_labels.nii.gz")


@pytest.mark.parametrize(
    "words",
    [
        ["enhance", "-i", "IN"],
        ["reslice", "-i", "IN", "--like", "IN"],
        ["view", "IN", "IN"],
        ["study", "-i", "IN", "--methods", "linear,cubic"],
        ["demo"],
        ["batch", "-i", "."],
        ["evaluate", "-i", "."],
        ["adapt", "-i", "IN"],
        ["train", "default"],
    ],
    ids=lambda words: words[0],
)
def test_every_verb_refuses_an_empty_name(run, scans, tmp_path, monkeypatch, words):
    """As that of a variable of the shell that is not set; it would be the current folder."""
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run(*(str(scans / "a.nii") if word == "IN" else word for word in words), "-o", "")
    assert (code, out, len(err)) == (2, [], 1)
    assert "got an empty name" in err[0]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("words", [["view", "IN", "IN"], ["study", "-i", "IN", "--methods", "linear,cubic"], ["demo"]])
def test_an_impossible_place_is_refused_before_a_scan_is_read(run, scans, tmp_path, words):
    """The scans of this test are none."""
    (tmp_path / "file").touch()
    target = tmp_path / "file" / "a.html"
    code, out, err = run(*(str(scans / "a.nii") if word == "IN" else word for word in words), "-o", target)
    assert (code, out, len(err)) == (2, [], 1)
    assert err[0].startswith(f"thinslice: {tmp_path / 'file'}: got a file; need a folder to write into")


# ---- two runs at once


def enhance_at_once(scan, target, *words):
    """Two processes that compute the same answer, by different factors; their exit codes and what they say."""
    command = [sys.executable, "-m", "thinslice", "enhance", "-i", scan, "-o", target, "--model", "cubic", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"PYTHONPATH": str(Path(thinslice.__file__).parents[1])}
    runs = [subprocess.Popen([*command, "--factor", str(factor)], env=environment, **pipes) for factor in (2, 3)]
    said = [run.communicate(timeout=120) for run in runs]
    return [run.returncode for run in runs], [err for _, err in said]


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True])
def test_two_runs_with_one_output_leave_the_files_of_one(tmp_path, overwrite):
    scan = make_scan(tmp_path / "in" / "scan.nii.gz")
    words = ["--report", tmp_path / "thin.html", *(["--overwrite"] if overwrite else [])]
    codes, errors = enhance_at_once(scan, tmp_path / "thin.nii.gz", *words)
    assert sorted(codes) == ([0, 0] if overwrite else [0, 2])
    if not overwrite:
        refused = errors[codes.index(2)]
        assert "exists already" in refused
        assert len(refused.splitlines()) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in", "thin.html", "thin.json", "thin.nii.gz"]
    assert nifti.read(tmp_path / "thin.nii.gz").shape == read_plan_beside(tmp_path / "thin.nii.gz").shape_thin


@catches(
    "pipeline.py",
    "with whole_or_not(path, overwrite) as part:\n            write_report_page",
    "with whole_or_not(path) as part:\n            write_report_page",
)
@catches(
    "pipeline.py",
    "with whole_or_not(path, overwrite) as part:\n            write_figure",
    "with whole_or_not(path) as part:\n            write_figure",
)
@catches("cli/enhance.py", "write_page(places.page, show, places.answer.overwrite)", "write_page(places.page, show)")
@pytest.mark.parametrize(("option", "name"), [("--report", "page.html"), ("--figure", "figure.png")])
def test_a_page_that_another_run_wrote_meanwhile_stays(run, tmp_path, monkeypatch, option, name):
    scan = make_scan(tmp_path / "in" / "scan.nii.gz")
    real = pipeline.upsample

    def upsample(*words, **more):
        (tmp_path / name).write_text("theirs")
        return real(*words, **more)

    monkeypatch.setattr(pipeline, "upsample", upsample)
    words = ["-o", tmp_path / "thin.nii.gz", "--model", "cubic", option, tmp_path / name]
    code, _, err = run("enhance", "-i", scan, *words)
    assert (code, len(err)) == (2, 1)
    assert "exists already" in err[0]
    assert (tmp_path / name).read_text() == "theirs"
    assert (tmp_path / "thin.nii.gz").exists(), "the scan itself is whole"


@pytest.mark.parametrize(
    "words",
    [
        ["enhance", "-o", "out/", "-i"],
        ["enhance", "-i", "a.nii", "-o", "b.nii", "--labels"],
        ["info", "-i"],
        ["reslice", "-i", "a.nii", "-o", "b.nii", "--like"],
        ["batch", "-o", "out", "-i"],
        ["evaluate", "-o", "out", "-i"],
        ["adapt", "-o", "out", "-i"],
        ["train", "default", "-o", "out", "--data"],
    ],
    ids=" ".join,
)
def test_no_input_is_an_empty_name(capsys, tmp_path, monkeypatch, words):
    """It would be the current folder, with everything in it."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        cli.main([*words, ""])
    assert f"argument {'-i/--input' if words[-1] == '-i' else words[-1]}: got an empty name" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("option", ["--labels-out", "--report", "--figure"])
def test_no_option_takes_an_empty_name(run, tmp_path, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    scan = make_scan(tmp_path / "in" / "scan.nii.gz")
    words = ["--labels", scan] if option == "--labels-out" else []
    code, _, err = run("enhance", "-i", scan, "-o", "thin.nii.gz", *words, option, "")
    assert (code, len(err)) == (2, 1)
    assert "empty name" in err[0]
    assert os.listdir(tmp_path) == ["in"]
