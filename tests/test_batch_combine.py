"""A data set of which scans that belong together become one volume: thinslice batch --combine."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest

from data_sets import orders
from dicom_files import AXIAL, CORONAL, SAGITTAL
from faults import catches
from test_combine_study import add
from test_dicom_groups import body as dicom_body
from thinslice.datasets import bids, find, summary
from thinslice.datasets.job import run_job
from thinslice.errors import InputRefused
from thinslice.io import nifti
from thinslice.settings import Settings
from visits import BODY, FAST, across, add_visit, is_like_body

COMBINED = "sub-01/anat/sub-01_res-iso_desc-combined_T2w.nii.gz"


def wanted(**more):
    return replace(orders(combine=True, registration=False), **more)


def find_visits(raw, out, part=(1, 1), **more):
    asked = wanted(**more)
    found = find.shard(find.find_in_bids(raw, out, bids.Choice(), asked), *part)
    return find.sort_visits(found, raw, out, asked)


def find_studies(folder, out, part=(1, 1), **more):
    asked = wanted(**more)
    found = find.shard(find.gather_studies(find.find_in_folder(folder, out, asked), folder), *part)
    return find.split_by_series(found, folder, out, asked)


def outcomes(found):
    return {job.name: run_job(job) for job in found.jobs}


def states(found):
    return {name: outcome.state for name, outcome in outcomes(found).items()}


@pytest.fixture
def raw(tmp_path):
    """Two visits: three stacks of one body and an image that stands alone; and one image."""
    raw = tmp_path / "raw"
    stacks = {f"acq-{name}_T2w": across(axis) for axis, name in enumerate(("sag", "cor", "tra"))}
    add_visit(raw, "01", stacks | {"T1w": across(2)})
    add_visit(raw, "02", {"T2w": across(2)})
    return raw


@catches("datasets/find.py", "if job.source not in others\n        ]\n    found", "]\n    found")
@catches(
    "datasets/job.py",
    "contrasts=contrasts or None,\n            spacing_mm=",
    "contrasts=contrasts or None, grid=None,\n            spacing_mm=3 or ",
)
def test_images_of_a_visit_that_belong_together_become_one_volume(tmp_path, raw):
    """Those that stand alone are enhanced as ever."""
    found = outcomes(find_visits(raw, tmp_path / "out"))
    alone = ["sub-01/anat/sub-01_T1w.nii.gz", "sub-02/anat/sub-02_T2w.nii.gz"]
    assert sorted(found) == sorted([COMBINED, *alone])
    assert {one.state for one in found.values()} == {"done"}
    assert is_like_body(tmp_path / "out" / COMBINED)
    one = found[COMBINED]
    assert (one.reason, one.worst_percent) == ("", None)
    assert "3 stacks -> 48 x 48 x 48 voxels of 1 x 1 x 1 mm" in one.slices
    facts = json.loads((tmp_path / "out" / COMBINED.replace(".nii.gz", ".json")).read_text())
    assert facts["Sources"] == [f"bids:raw:sub-01/anat/sub-01_acq-{name}_T2w.nii.gz" for name in ("cor", "sag", "tra")]
    assert one.rms_percent == max(stack["fit"]["rms_percent"] for stack in facts["combined_from"])
    assert (tmp_path / "out" / "thumbnails" / COMBINED.replace(".nii.gz", ".png")).stat().st_size


@catches("datasets/job.py", "hashes[0] if job.group is None else _joined(hashes)", "hashes[0]")
@catches("datasets/job.py", '{"registration": job.group.registration}', "{}")
@catches(
    "datasets/job.py",
    "if job.group is not None:\n            return Outcome(job.name, state",
    "if False:\n            return Outcome(job.name, state",
)
def test_an_answer_is_kept_until_one_of_its_members_changes(tmp_path, raw):
    def state(**more):
        return states(find_visits(raw, tmp_path / "out", **more))[COMBINED]

    first = outcomes(find_visits(raw, tmp_path / "out"))[COMBINED]
    again = outcomes(find_visits(raw, tmp_path / "out"))[COMBINED]
    assert replace(again, seconds=0) == replace(first, state="kept", seconds=0)
    last = raw / "sub-01" / "anat" / "sub-01_acq-tra_T2w.nii.gz"
    nifti.write(replace(across(2), voxels=across(2).voxels + 1), last)
    assert [state(), state()] == ["done", "kept"]
    (raw / "T2w.json").write_text('{"SliceThickness": 4}')
    assert [state(), state()] == ["done", "kept"]
    assert state(redo=True) == "done"
    (raw / "sub-01" / "anat" / "sub-01_acq-tra_run-2_T2w.nii.gz").write_bytes(last.read_bytes())
    # What says nothing of several scans is none of their business; the rest is.
    assert [state(), state(settings=Settings(model="cubic", factor=3))] == ["done", "kept"]
    assert state(settings=Settings(model="cubic", denoise=False)) == "done"
    pytest.importorskip("SimpleITK")
    assert [state(), state(), state(registration=True)] == ["done", "kept", "done"]


@catches(
    "datasets/find.py",
    "reasons, job.destination, dataset, output, orders), *alone]",
    "reasons, job.destination, dataset, output, orders)]",
)
@catches("datasets/job.py", "odd={**group.odd, **done.odd}", "odd=done.odd")
def test_an_odd_image_is_named_and_stands_alone(tmp_path, raw):
    folder = add_visit(
        raw, "01", {"acq-a_T2w": across(2, thick=1), "acq-b_T2w": replace(across(1), voxels=0 * across(1).voxels)}
    )
    found = outcomes(find_visits(raw, tmp_path / "out"))
    assert found[COMBINED].state == "done"
    assert "sub-01_acq-a_T2w.nii.gz: thin already" in found[COMBINED].reason
    assert "sub-01_acq-b_T2w.nii.gz: got the same value everywhere" in found[COMBINED].reason
    assert is_like_body(tmp_path / "out" / COMBINED)
    assert found["sub-01/anat/sub-01_acq-a_T2w.nii.gz"].state == "thin"
    # It was found by its voxels alone, when it was too late to stand alone.
    assert "sub-01/anat/sub-01_acq-b_T2w.nii.gz" not in found
    assert "thin already" in outcomes(find_visits(raw, tmp_path / "out"))[COMBINED].reason
    # One is left of a visit: nothing is combined.
    for name in ("acq-b", "acq-sag", "acq-cor"):
        (folder / f"sub-01_{name}_T2w.nii.gz").unlink()
    left = states(find_visits(raw, tmp_path / "other"))
    assert COMBINED not in left
    assert left["sub-01/anat/sub-01_acq-tra_T2w.nii.gz"] == "done"


@catches("datasets/job.py", "raise _NotTogether(reason_of(error)) from error", "raise")
def test_a_group_that_does_not_fit_is_told_and_its_members_are_not_enhanced_instead(tmp_path, raw):
    other = np.roll(BODY[::-1, :, ::-1], 17, axis=1)
    add_visit(raw, "03", {"acq-sag_T2w": across(0), "acq-tra_T2w": across(2, body=other)})
    found = outcomes(find_visits(raw, tmp_path / "out"))
    name = COMBINED.replace("01", "03")
    assert found[name].state == "refused"
    assert "does not look like" in found[name].reason
    assert not [other for other in found if "sub-03" in other and other != name]
    assert not list((tmp_path / "out").rglob("sub-03*.nii.gz"))
    assert found[COMBINED].state == "done"


@catches("datasets/find.py", "for one in job.scans):", "for one in job.scans[:1]):")
def test_no_answer_lands_on_a_member(tmp_path, raw):
    """By way of a link in the output."""
    member = raw / "sub-01" / "anat" / "sub-01_acq-tra_T2w.nii.gz"
    place = tmp_path / "out" / COMBINED
    place.parent.mkdir(parents=True)
    outside = tmp_path / "elsewhere.nii.gz"
    os.replace(member, outside)
    member.symlink_to(outside)
    place.symlink_to(outside)
    found = find_visits(raw, tmp_path / "out")
    assert [one.name for one in found.failed] == [COMBINED]


@pytest.mark.parametrize("count", [2, 3])
def test_shards_have_all_of_a_group_or_nothing(tmp_path, raw, count):
    parts = [find_visits(raw, tmp_path / "out", (index, count)) for index in range(1, count + 1)]
    names = [job.name for part in parts for job in part.jobs]
    assert sorted(names) == sorted(job.name for job in find_visits(raw, tmp_path / "out").jobs)
    add(tmp_path / "in" / "one", 1, AXIAL)
    add(tmp_path / "in" / "one", 2, SAGITTAL)
    add(tmp_path / "in" / "two", 3, CORONAL, StudyInstanceUID="1.2.3")
    parts = [find_studies(tmp_path / "in", tmp_path / "out2", (index, count)) for index in range(1, count + 1)]
    names = [job.name for part in parts for job in part.jobs]
    assert sorted(names) == ["one/s1_combined.nii.gz", "two/s3"]


@catches("datasets/find.py", "        for member in members[1:]:\n            del jobs[member.name]\n", "")
@catches(
    "datasets/find.py",
    "job_of = {id(series): job for job, series in found}",
    "job_of = {id(series): found[0][0] for _, series in found}",
)
def test_groups_of_studies_become_one_volume_each(tmp_path):
    """Of two contrasts, in folders of their own; what stands alone is enhanced, be it a localizer."""
    study = tmp_path / "in" / "a" / "study"
    for number, orientation in ((1, AXIAL), (2, SAGITTAL)):
        add(study, number, orientation)
        add(study, number + 2, orientation, "T1 SE", EchoTime=10, RepetitionTime=500)
    add(study, 5, CORONAL, "PD", EchoTime=10, RepetitionTime=4000)
    dicom_body(study, 6, AXIAL, "localizer", count=3)
    found = find_studies(tmp_path / "in", tmp_path / "out")
    groups = {job.name: [member.name for member in job.scans] for job in found.jobs if job.group is not None}
    assert groups == {
        "a/study/s1_combined.nii.gz": ["a/study/s1", "a/study/s2"],
        "a/study/s3_combined.nii.gz": ["a/study/s3", "a/study/s4"],
    }
    done = outcomes(found)
    assert sorted(done) == sorted([*groups, "a/study/s5", "a/study/s6"])
    assert {one.state for one in done.values()} == {"done"}
    assert set(states(find_studies(tmp_path / "in", tmp_path / "out")).values()) == {"kept"}
    answer = nifti.read(tmp_path / "out" / "a" / "study" / "s1_combined.nii.gz")
    assert answer.shape == BODY.shape
    facts = json.loads((tmp_path / "out" / "a" / "study" / "s1_combined.json").read_text())
    assert facts["group"] == "T2 TSE"


def test_series_of_a_study_in_one_folder_are_a_group_too(tmp_path):
    for number, orientation in ((1, AXIAL), (2, SAGITTAL)):
        add(tmp_path / "parts", number, orientation)
    (tmp_path / "in" / "study").mkdir(parents=True)
    for part in (tmp_path / "parts").iterdir():
        for file in part.iterdir():
            os.replace(file, tmp_path / "in" / "study" / f"{part.name}_{file.name}")
    found = find_studies(tmp_path / "in", tmp_path / "out")
    assert list(states(found).values()) == ["done"]
    (job,) = found.jobs
    assert len(job.scans) == 2
    assert job.destination.parent == tmp_path / "out" / "study"


@catches("datasets/find.py", "    if not studies:\n", "    if False:\n")
def test_a_folder_of_files_says_nothing_of_what_belongs_together(tmp_path):
    (tmp_path / "in").mkdir()
    nifti.write(across(2), tmp_path / "in" / "scan.nii.gz")
    with pytest.raises(InputRefused, match="nothing says which scans belong together") as refusal:
        find_studies(tmp_path / "in", tmp_path / "out")
    assert refusal.value.code == "nothing-to-combine"


@catches("datasets/find.py", 'wanted=members[0].wanted - {"figure"},', "")
def test_pages_and_labels_of_a_volume(tmp_path, raw):
    """A segmentation of the first stack comes along; there is no figure of several."""
    drawn = tmp_path / "drawn" / "sub-01" / "anat"
    drawn.mkdir(parents=True)
    first = across(1)
    nifti.write(replace(first, voxels=(first.voxels > 300).astype(np.uint8)), drawn / "sub-01_acq-cor_T2w.nii.gz")
    for state in ("done", "kept"):
        found = find_visits(raw, tmp_path / "out", labels=tmp_path / "drawn", extras=frozenset({"page", "figure"}))
        (job,) = [job for job in found.jobs if job.group is not None]
        assert run_job(job).state == state
    labels = nifti.read(tmp_path / "out" / "sub-01" / "anat" / "sub-01_res-iso_desc-combinedT2w_dseg.nii.gz")
    assert labels.shape == BODY.shape
    assert np.mean((labels.voxels > 0) == (BODY > 300)) > 0.9
    assert job.extras["page"].exists()
    assert not job.extras["figure"].exists()


@catches("datasets/summary.py", "escape(one.name)}{members}<br>", "escape(one.name)}<br>")
def test_the_summary_names_the_members(tmp_path, raw):
    found = find_visits(raw, tmp_path / "out")
    done = list(outcomes(found).values())
    summary.write_table(tmp_path / "out" / "summary.tsv", found.jobs, done)
    summary.write_page(tmp_path / "out" / "summary.html", found.jobs, done, 1.0)
    head, *rows = (line.split("\t") for line in (tmp_path / "out" / "summary.tsv").read_text().splitlines())
    members = {row[0]: row[head.index("combined_of")] for row in rows}
    assert members[COMBINED].split("; ") == [
        f"sub-01/anat/sub-01_acq-{name}_T2w.nii.gz" for name in ("cor", "sag", "tra")
    ]
    assert members["sub-02/anat/sub-02_T2w.nii.gz"] == "n/a"
    page = (tmp_path / "out" / "summary.html").read_text()
    assert "of sub-01/anat/sub-01_acq-cor_T2w.nii.gz<br>" in page
    assert f'href="{COMBINED}"' in page


@pytest.mark.slow
def test_the_command_line_does_a_data_set(tmp_path, run, raw):
    pytest.importorskip("distributed", reason="the data set engine is an extra")
    out = tmp_path / "out"
    code, said, err = run("batch", raw, out, "participant", "--combine", *FAST, "--workers", "1")
    assert (code, err) == (0, [])
    assert any("3 stacks -> 48 x 48 x 48" in line for line in said)
    assert is_like_body(out / COMBINED)
    code, said, err = run("batch", raw, out, "participant", "--combine", *FAST, "--workers", "1")
    assert (code, err) == (0, [])
    assert sum("kept, computed earlier" in line for line in said) == 4
    words = ("batch", "-i", raw, "-o", out, "--no-registration", "--workers", "1")
    assert run(*words)[0] == 2
    code, _, err = run(*words, "--combine", "--model", "cubic")
    assert (code, len(err)) == (2, 1)
    assert "leave" in err[0]
