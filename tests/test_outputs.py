"""Which files go in, where answers go: every refusal comes before any work, and leaves nothing behind."""

import os
from pathlib import Path

import pytest

from test_cli import raising
from thinslice.errors import InputRefused, OutputRefused, ThinsliceError
from thinslice.io.outputs import ScanOutput, find_scan_outputs, unique_names


@pytest.fixture
def scans(tmp_path):
    """A folder with a.nii, b.nii.gz, and what is no scan."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "folder.nii").mkdir()
    for name in ("b.nii.gz", "a.nii", "notes.txt", "._a.nii", "a.json", "c.mha", "sub/d.nii"):
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
        ("c.mha", "c3d"),
        ("c.IMG", "fslchfiletype"),
        ("c.json", "name the scan"),
        ("c.nii.zip", "unpack"),
        ("IM0001", "dcm2niix"),
    ):
        (tmp_path / name).touch()
        said = refusal(InputRefused, tmp_path / name, tmp_path / "o.nii", False)
        assert "another kind" in said
        assert way in said.split("next:")[1]


@pytest.mark.parametrize("name", ["out", "out.mha", "out.gz", ".nii", "out.nhdr", ".nrrd"])
def test_outputs_of_another_kind_are_refused(scans, tmp_path, name):
    assert ".nii.gz or .nii or .mgz or .mgh or .nrrd" in refusal(OutputRefused, scans / "a.nii", tmp_path / name, False)


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
