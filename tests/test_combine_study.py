"""thinslice combine on a DICOM study: the groups that are found become new series of it, or files."""

import json

import numpy as np
import pytest
from pydicom import dcmread

from dicom_files import AXIAL, CORONAL, SAGITTAL
from faults import catches
from test_dicom_groups import body
from test_slice_profile import leaves
from thinslice import cli
from thinslice.io import nifti
from thinslice.io.dicom.pixels import read_series
from thinslice.io.dicom.series import find_study
from thinslice.volume import Volume

SIDE = 48
"""Voxels of 1 mm along each side of the body; slices are 4 mm thick."""


def acquired(orientation, shift=0):
    """Stored values [slices, rows, columns] of the leaves, 4 voxels a slice, as a scanner sees them."""
    # [x, y, z] in LPS; rows run along the first direction cosine.
    voxels = (1000 * leaves()[shift : SIDE + shift, :SIDE, :SIDE]).astype(float)
    along_row, along_column = np.reshape(orientation, (2, 3))
    across = np.cross(along_row, along_column)
    order, flips = zip(
        *((int(np.abs(v).argmax()), v.sum() < 0) for v in (across, along_column, along_row)), strict=True
    )
    stack = voxels.transpose(order)
    stack = stack[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    return stack.reshape(SIDE // 4, 4, SIDE, SIDE).mean(axis=1).round().astype(np.int16)


def add(folder, series, orientation, description="T2 TSE", shift=0, **more):
    """Writes a stack of the leaves, in a folder of its own."""
    more = {"thickness_mm": 4.0, **more}
    body(
        folder, series, orientation, description, count=SIDE // 4, rows=SIDE, columns=SIDE, spacing=(1.0, 1.0),
        values=acquired(orientation, shift), **more,
    )  # fmt: skip


@pytest.fixture
def run(capsys):
    def call(*words):
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as left:
            code = left.code
        out, err = capsys.readouterr()
        return code, out.splitlines(), err.splitlines()

    return call


FAST = ("--no-registration", "--model", "cubic")


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@catches("combination.py", "sources = [self.acquired[number] for number in used]", "sources = [self.acquired[0]]")
def test_a_study_becomes_a_new_series_of_it(tmp_path, run):
    study = tmp_path / "study"
    add(study, 1, AXIAL)
    add(study, 2, SAGITTAL)
    add(study, 3, CORONAL)
    body(study, 4, AXIAL, "localizer", count=3)
    code, out, err = run("combine", "-i", study, "-o", tmp_path / "new", *FAST)
    assert (code, err) == (0, [])
    assert any(line.startswith("left out: 4 localizer") for line in out)
    assert any("3 stacks -> 48 x 48 x 48 voxels of 1 x 1 x 1 mm" in line for line in out)
    (series,) = find_study(tmp_path / "new", computed_too=True).series
    volume = read_series(series)
    truth = 1000 * leaves()[:SIDE, :SIDE, :SIDE]
    # Its axes as those of the axial stack: columns to the left, rows from the last to the first, slices to the head.
    answer = volume.voxels[:, ::-1] if volume.affine[1, 1] > 0 else volume.voxels
    assert np.corrcoef(answer[8:-8, 8:-8, 8:-8].ravel(), truth[8:-8, 8:-8, 8:-8].ravel())[0, 1] > 0.95
    first = dcmread(next((tmp_path / "new").glob("IM*.dcm")))
    assert first.StudyInstanceUID == dcmread(next((study / "s1").iterdir())).StudyInstanceUID
    assert {one.SeriesInstanceUID for one in first.ReferencedSeriesSequence} == {
        dcmread(next((study / f"s{n}").iterdir())).SeriesInstanceUID for n in (1, 2, 3)
    }
    assert "Stack 1 of 3" in first.DerivationDescription
    facts = json.loads((tmp_path / "new" / "thinslice.json").read_text())
    assert [one["left_out"] for one in facts["combined_from"]] == [None] * 3
    # Once more into the same place: refused, and with --overwrite the same bytes.
    before = {name: (tmp_path / "new" / name).read_bytes() for name in names(tmp_path / "new") if name.endswith("dcm")}
    assert run("combine", "-i", study, "-o", tmp_path / "new", *FAST)[0] == 2
    assert run("combine", "-i", study, "-o", tmp_path / "new", "--overwrite", "-q", *FAST)[:2] == (0, [])
    assert before == {name: (tmp_path / "new" / name).read_bytes() for name in before}


def test_a_group_goes_to_a_file_too(tmp_path, run):
    add(tmp_path / "study", 1, AXIAL)
    add(tmp_path / "study", 2, SAGITTAL)
    code, _, err = run("combine", "-i", tmp_path / "study", "-o", tmp_path / "one.nii.gz", *FAST, "--spacing", "1.5")
    assert (code, err) == (0, [])
    assert names(tmp_path)[:2] == ["one.json", "one.nii.gz"]


@catches("cli/combine.py", "len(found.groups) > 1 and (ending(", "len(found.groups) > 9 and (ending(")
def test_groups_of_two_contrasts_become_two_series(tmp_path, run):
    for number, orientation in ((1, AXIAL), (2, SAGITTAL)):
        add(tmp_path / "study", number, orientation)
        add(tmp_path / "study", number + 2, orientation, "T1 SE", EchoTime=10, RepetitionTime=500)
    code, _, err = run("combine", "-i", tmp_path / "study", "-o", tmp_path / "one.nii.gz", *FAST)
    assert code == 2
    assert len(err) == 1
    assert "2 groups of series" in err[0]
    code, out, err = run("combine", "-i", tmp_path / "study", "-o", tmp_path / "both", *FAST)
    assert (code, err) == (0, [])
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == ["01_T2_TSE", "02_T1_SE"]
    assert sum("2 stacks ->" in line for line in out) == 2


@catches("combination.py", "return bool(frame) and frame == second.images[0].frame_of_reference", "return False")
def test_stations_that_only_touch_become_one_series_where_they_share_a_frame_of_reference(tmp_path, run):
    half = SIDE // 8
    for number, values in enumerate((acquired(AXIAL)[:half], acquired(AXIAL)[half:])):
        body(
            tmp_path / "study", number + 1, AXIAL, "T2 TSE", (5.0, -10.0, 40.0 + number * 4.0 * half), count=half,
            rows=SIDE, columns=SIDE, spacing=(1.0, 1.0), values=values, thickness_mm=4.0,
        )  # fmt: skip
    code, out, err = run("combine", "-i", tmp_path / "study", "-o", tmp_path / "new.nii.gz", *FAST)
    assert (code, err) == (0, [])
    assert nifti.read(tmp_path / "new.nii.gz").shape == (SIDE, SIDE, SIDE)
    assert sum("hardly overlaps" in line for line in out) == 1


@catches("combination.py", "shown._write_series(", "self._write_series(")
def test_nothing_names_the_patient_where_that_is_asked_for(tmp_path, run):
    add(tmp_path / "study", 1, AXIAL, "Meier T2")
    add(tmp_path / "study", 2, SAGITTAL, "Meier T2")
    code, _, err = run("combine", "-i", tmp_path / "study", "-o", tmp_path / "new", "--anonymise", *FAST)
    assert (code, err) == (0, [])
    for file in (tmp_path / "new").iterdir():
        assert b"Meier" not in file.read_bytes()


def test_a_study_without_two_that_belong_together_is_refused(tmp_path, run):
    add(tmp_path / "study", 1, AXIAL)
    body(tmp_path / "study", 2, SAGITTAL, "T1 SE", EchoTime=10, RepetitionTime=500)
    code, _, err = run("combine", "-i", tmp_path / "study", "-o", tmp_path / "new", "-q", *FAST)
    assert code == 2
    assert len(err) == 1
    assert "no two series that belong together" in err[0]
    assert not (tmp_path / "new").exists()


def test_bodies_that_are_not_alike_are_refused_and_nothing_is_left(tmp_path, run):
    add(tmp_path / "study", 1, AXIAL)
    add(tmp_path / "study", 2, SAGITTAL, shift=48)
    code, _, err = run("combine", "-i", tmp_path / "study", "-o", tmp_path / "new", "-q", *FAST)
    assert code == 2
    assert len(err) == 1
    assert "do not fit" in err[0] or "does not look like" in err[0]
    assert not (tmp_path / "new").exists()


@catches("datasets/job.py", "return inherit_thickness(read(path), inherited), contrast", "return read(path), contrast")
def test_a_bids_data_set_gets_derivatives(tmp_path, run):
    """Acquisitions and runs of one visit are combined, and what generated them is told."""
    raw, out = tmp_path / "raw", tmp_path / "out"
    thin = (1000 * leaves()[:SIDE, :SIDE, :SIDE]).astype(np.float32)
    for subject in ("01", "02"):
        for name, axis in ((f"sub-{subject}_acq-ax_T2w", 2), (f"sub-{subject}_acq-sag_run-1_T2w", 0)):
            affine = np.diag([4.0 if a == axis else 1.0 for a in range(3)] + [1.0])
            affine[axis, 3] = 1.5
            stack = np.moveaxis(np.moveaxis(thin, axis, 0).reshape(SIDE // 4, 4, SIDE, SIDE).mean(axis=1), 0, axis)
            path = raw / f"sub-{subject}" / "anat" / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nifti.write(Volume(np.ascontiguousarray(stack), affine), path)
    (raw / "dataset_description.json").write_text('{"Name": "leaves", "BIDSVersion": "1.10.0"}')
    (raw / "T2w.json").write_text('{"SliceThickness": 4.0}')
    code, _, err = run("combine", "-i", raw, "-o", out, *FAST)
    assert (code, err) == (0, [])
    for subject in ("01", "02"):
        path = out / f"sub-{subject}" / "anat" / f"sub-{subject}_res-iso_desc-combined_T2w.nii.gz"
        assert np.corrcoef(nifti.read(path).voxels[8:-8].ravel(), thin[8:-8].ravel())[0, 1] > 0.9
        facts = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
        assert facts["Sources"] == [
            f"bids:raw:sub-{subject}/anat/sub-{subject}_acq-{name}_T2w.nii.gz" for name in ("ax", "sag_run-1")
        ]
        assert {one["plan"]["thickness_mm"] for one in facts["combined_from"]} == {4.0}
    assert json.loads((out / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    assert run("combine", "-i", raw, "-o", out, *FAST)[0] == 2
    assert run("combine", "-i", raw, "-o", raw, *FAST)[0] == 2
    assert run("combine", "-i", raw, "-o", tmp_path / "other", "--report", tmp_path / "a.html", *FAST)[0] == 2
    assert not (tmp_path / "other").exists()


@catches("cli/combine.py", 'check_into_series(scans, grid or "first")', "pass")
def test_a_series_of_dicom_and_other_stacks_is_refused_before_anything_is_computed(tmp_path, run, monkeypatch):
    add(tmp_path / "study", 1, AXIAL)
    affine = np.diag([4.0, 1.0, 1.0, 1.0])
    nifti.write(Volume(leaves()[:SIDE:4, :SIDE, :SIDE].copy(), affine), tmp_path / "sag.nii.gz")
    monkeypatch.setattr("thinslice.combination.combine_volumes", lambda *_, **__: pytest.fail("it was computed"))
    words = ("combine", "-i", tmp_path / "study" / "s1", tmp_path / "sag.nii.gz", "-o", tmp_path / "new", *FAST)
    code, _, err = run(*words)
    assert (code, len(err)) == (2, 1)
    assert "no DICOM series" in err[0]
    code, _, err = run(*words[:-4], tmp_path / "new.nii.gz", "--anonymise", *FAST)
    assert (code, len(err)) == (2, 1)
    assert not (tmp_path / "new").exists()


@catches("combination.py", "grid.affine if isinstance(grid, Volume) else scans[0].affine", "scans[0].affine")
def test_a_sheared_grid_for_a_series_is_refused_before_anything_is_computed(tmp_path, run, monkeypatch):
    add(tmp_path / "study", 1, AXIAL)
    add(tmp_path / "study", 2, SAGITTAL)
    affine = np.eye(4)
    affine[0, 1] = 0.1
    nifti.write(Volume(np.zeros((9, 9, 9), np.int16), affine), tmp_path / "like.nii.gz")
    monkeypatch.setattr("thinslice.combination.combine_volumes", lambda *_, **__: pytest.fail("it was computed"))
    folders = [tmp_path / "study" / name for name in ("s1", "s2")]
    code, _, err = run("combine", "-i", *folders, "-o", tmp_path / "new", "--grid", tmp_path / "like.nii.gz", *FAST)
    assert (code, len(err)) == (2, 1)
    assert "got a grid whose axes are not at right angles" in err[0]
    assert not (tmp_path / "new").exists()


@catches("combination.py", "if len(patients) > 1:", "if len(patients) > 9:")
def test_two_patients_are_never_one_body(tmp_path, run):
    add(tmp_path / "one", 1, AXIAL)
    add(tmp_path / "two", 2, SAGITTAL, PatientID="another")
    code, _, err = run("combine", "-i", tmp_path / "one", tmp_path / "two", "-o", tmp_path / "c.nii.gz", *FAST)
    assert (code, len(err)) == (2, 1)
    assert "2 patients" in err[0]


@catches("combination.py", "*folder.glob(LABELS_NAME)", "*folder.glob('nothing')")
def test_labels_of_an_earlier_volume_do_not_stay_beside_another(tmp_path, run):
    add(tmp_path / "study", 1, AXIAL)
    add(tmp_path / "study", 2, SAGITTAL)
    code, _, err = run("combine", "-i", tmp_path / "study", "-o", tmp_path / "new", *FAST)
    assert (code, err) == (0, [])
    (tmp_path / "new" / "labels.nii.gz").write_bytes(b"of before")
    code, _, err = run("combine", "-i", tmp_path / "study", "-o", tmp_path / "new", "--overwrite", *FAST)
    assert (code, err) == (0, [])
    assert not (tmp_path / "new" / "labels.nii.gz").exists()
