"""Which scans a data set has, where each answer goes, and what people see of it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

import dicom_files
from data_sets import make_latin, make_raw, names_of, orders, tree
from faults import catches
from test_cli import make_scan
from thinslice.compute.consistency import read_plan_beside
from thinslice.datasets import bids, find, summary
from thinslice.datasets.job import Outcome, run_job
from thinslice.errors import InputRefused, OutputRefused
from thinslice.io import nifti
from thinslice.io.dicom import series


@pytest.fixture
def raw(tmp_path):
    return make_raw(tmp_path / "raw")


@pytest.fixture
def latin(tmp_path):
    return make_latin(tmp_path / "in")


# ---- a folder of scans


@catches("datasets/find.py", "(output / relative).with_name(name)", "output / name")
@catches("datasets/find.py", "real in seen or any(is_inside(real, other) for other in others)", "real in seen")
def test_a_folder_is_searched_to_the_bottom(tmp_path):
    for name in ("b.nii.gz", "a/x.nii", "a/deep/x.nii.gz", ".hidden/x.nii.gz", "out/x.nii.gz", "a/.y.nii.gz"):
        make_scan(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("not a scan")
    found = find.find_in_folder(tmp_path, tmp_path / "out", orders())
    assert names_of(found) == ["a/deep/x.nii.gz", "a/x.nii", "b.nii.gz"]
    assert found.jobs[0].destination == tmp_path / "out" / "a" / "deep" / "x.nii.gz"
    assert not found.failed


def test_a_folder_of_dicom_slices_is_one_scan(tmp_path):
    dicom_files.stack(tmp_path / "in" / "patient" / "t2")
    found = find.find_in_folder(tmp_path / "in", tmp_path / "out", orders())
    assert names_of(found) == ["patient/t2"]
    outcome = run_job(found.jobs[0])
    assert (outcome.state, outcome.reason) == ("done", "")
    assert nifti.read(tmp_path / "out" / "patient" / "t2.nii.gz").shape[2] > 5
    again = find.find_in_folder(tmp_path / "in", tmp_path / "out", orders())
    assert run_job(again.jobs[0]).state == "kept"


def all_series(tmp_path, **more):
    wanted = orders(extras=frozenset({"page"}), **more)
    found = find.find_in_folder(tmp_path / "in", tmp_path / "out", wanted)
    return find.split_by_series(found, tmp_path / "in", tmp_path / "out", wanted)


def test_every_series_of_a_folder_is_a_scan(tmp_path):
    """As when a disc is copied into one folder: two series, a scout, a damaged file, and one more series below."""
    values = dicom_files.stack(tmp_path / "in" / "cd", series=3, description="T2 TSE", named="A")
    dicom_files.stack(tmp_path / "in" / "cd", series=4, description="T1/SE", named="B", count=5)
    dicom_files.stack(tmp_path / "in" / "cd", series=1, description="scout", named="C", count=1)
    (tmp_path / "in" / "cd" / "D").write_bytes(bytes(128) + b"DICM" + b"torn")
    dicom_files.stack(tmp_path / "in" / "cd" / "more", series=5)
    make_scan(tmp_path / "in" / "x.nii.gz")
    found = all_series(tmp_path)
    assert names_of(found) == ["cd/003_T2_TSE", "cd/004_T1_SE", "cd/more", "x.nii.gz"]
    assert [(one.name.split(" ")[0], one.state) for one in found.failed] == [("cd/1", "refused"), ("cd/D", "refused")]
    assert [run_job(one).state for one in found.jobs] == ["done"] * 4
    assert read_plan_beside(tmp_path / "out" / "cd" / "003_T2_TSE.nii.gz").n_thick == len(values)
    assert (tmp_path / "out" / "cd" / "004_T1_SE.nii.gz").is_file()
    assert (tmp_path / "out" / "reports" / "cd" / "004_T1_SE.html").is_file()
    assert (tmp_path / "out" / "cd" / "more.nii.gz").is_file()


@catches("datasets/find.py", "        if bad:\n", "        if False:\n")
@catches(
    "datasets/find.py",
    "    allowed = reject_outputs_over_inputs(jobs, source, output)\n    return",
    "    allowed = Found(jobs, [])\n    return",
)
def test_a_link_leads_the_answer_of_no_series_to_an_input(tmp_path):
    for number in (3, 4):
        dicom_files.stack(tmp_path / "in" / "cd", series=number, named=f"{number}-")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cd").symlink_to(tmp_path / "in" / "cd")
    found = all_series(tmp_path)
    assert (names_of(found), len(found.failed)) == ([], 2)
    assert "link" in found.failed[0].reason


@catches(
    "datasets/job.py",
    "*sorted(_sha256(file) for file in {image.path for image in series.images})",
    "*sorted(str(image.path) for image in series.images)",
)
def test_a_series_is_done_again_when_its_own_files_change(tmp_path):
    for number, description in ((3, "T2"), (4, "T1")):
        dicom_files.stack(tmp_path / "in", series=number, description=description, named=f"{description}-")
    assert [run_job(one).state for one in all_series(tmp_path).jobs] == ["done", "done"]
    assert [run_job(one).state for one in all_series(tmp_path).jobs] == ["kept", "kept"]
    dicom_files.stack(tmp_path / "in", series=4, description="T1", named="T1-", values=np.full((8, 20, 24), 7))
    assert [run_job(one).state for one in all_series(tmp_path).jobs] == ["kept", "done"]
    jobs = all_series(tmp_path).jobs
    for file in (tmp_path / "in").glob("T1-*"):
        file.unlink()
    gone = run_job(jobs[1])
    assert gone.state == "failed"
    assert "run again" in gone.reason


def test_names_of_slices_do_not_count(tmp_path):
    for number in (3, 4):
        dicom_files.stack(tmp_path / "in", series=number, named=f"{number}-", description=str(number))
    assert [run_job(one).state for one in all_series(tmp_path).jobs] == ["done", "done"]
    (tmp_path / "in" / "3-000").rename(tmp_path / "in" / "renamed")
    assert [run_job(one).state for one in all_series(tmp_path).jobs] == ["kept", "kept"]


@catches("datasets/job.py", "if job.series in (None, key_of_series(one))]", "][:1]")
def test_two_stacks_of_one_file_are_two_scans(tmp_path):
    """As of two echoes in an enhanced file."""
    (tmp_path / "in").mkdir()
    dicom_files.enhanced(tmp_path / "in" / "both", echoes=2)
    jobs = all_series(tmp_path).jobs
    assert [run_job(one).state for one in jobs] == ["done", "done"]
    one, other = (nifti.read(job.destination).voxels for job in jobs)
    assert one.shape == other.shape
    assert (one != other).any()


def test_only_the_files_of_a_series_are_looked_at(tmp_path, monkeypatch):
    for number in (3, 4):
        dicom_files.stack(tmp_path / "in", series=number, named=f"{number}-", description=str(number))
    jobs = all_series(tmp_path).jobs
    assert [len(one.files) for one in jobs] == [8, 8]
    looked, real = [], series.read_images
    monkeypatch.setattr(series, "read_images", lambda file: looked.append(file.name) or real(file))
    assert run_job(jobs[0]).state == "done"
    assert {name[:2] for name in looked} == {"3-"}


def test_what_holds_no_image_is_no_scan(tmp_path):
    dicom_files.stack(tmp_path / "in" / "t2")
    text = dicom_files.header()
    text.SOPClassUID, text.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.11", "1.2.3"
    dicom_files.save(text, tmp_path / "in" / "report")
    found = all_series(tmp_path)
    assert (names_of(found), found.failed) == (["t2"], [])


def test_slices_directly_in_the_folder_are_a_scan(tmp_path):
    dicom_files.stack(tmp_path / "in")
    found = find.find_in_folder(tmp_path / "in", tmp_path / "out", orders())
    assert names_of(found) == ["in"]
    assert run_job(found.jobs[0]).state == "done"
    assert (tmp_path / "out" / "in.nii.gz").is_file()


def test_links_to_folders_are_followed_once(tmp_path):
    for name in ("in/a/x.nii.gz", "store/y.nii.gz", "in/out/z.nii.gz"):
        make_scan(tmp_path / name)
    for name, target in (("0", "in/a"), ("a/up", "in"), ("b", "store"), ("c", "store"), ("made", "in/out")):
        (tmp_path / "in" / name).symlink_to(tmp_path / target)
    (tmp_path / "store" / "round").symlink_to(tmp_path / "store")
    found = find.find_in_folder(tmp_path / "in", tmp_path / "in" / "out", orders())
    assert names_of(found) == ["a/x.nii.gz", "b/y.nii.gz"]
    assert not found.failed


@catches(
    "datasets/find.py", "walk(top, follow_links=False, complain=unreadable.append)", "walk(top, follow_links=False)"
)
def test_folders_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    for name in ("a/x.nii.gz", "closed/y.nii.gz"):
        make_scan(tmp_path / "in" / name)
    real = os.scandir

    def scandir(path):
        if os.path.basename(str(path)) == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = find.find_in_folder(tmp_path / "in", tmp_path / "out", orders())
    assert names_of(found) == ["a/x.nii.gz"]
    assert [(one.name, one.state) for one in found.failed] == [("closed", "failed")]
    assert "Permission denied" in found.failed[0].reason


@catches("datasets/find.py", "if not os.access(folder, os.X_OK):", "if False:")
def test_folders_that_can_be_listed_but_not_entered_are_named(tmp_path, monkeypatch):
    for name in ("a/x.nii.gz", "closed/y.nii.gz"):
        make_scan(tmp_path / "in" / name)
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "closed" and real(path, mode))
    found = find.find_in_folder(tmp_path / "in", tmp_path / "out", orders())
    assert names_of(found) == ["a/x.nii.gz"]
    assert [(one.name, one.state) for one in found.failed] == [("closed", "failed")]


def test_two_answers_never_share_a_name(tmp_path):
    for name in ("a.nii.gz", "a.nii", "b.nii.gz"):
        make_scan(tmp_path / "in" / name)
    found = find.find_in_folder(tmp_path / "in", tmp_path / "out", orders())
    assert names_of(found) == ["a.nii", "b.nii.gz"]
    assert [(one.name, one.state) for one in found.failed] == [("a.nii.gz", "failed")]


def test_folders_that_cannot_be(tmp_path):
    scan = make_scan(tmp_path / "in" / "a.nii.gz")
    with pytest.raises(OutputRefused):
        find.find_in_folder(tmp_path / "in", tmp_path / "in" / ".." / "in", orders())
    with pytest.raises(InputRefused, match="enhance"):
        find.find_in_folder(scan, tmp_path / "out", orders())
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputRefused, match="without any scan"):
        find.find_in_folder(tmp_path / "empty", tmp_path / "out", orders())


@catches("datasets/find.py", "    if is_inside(raw, out):\n", "    if False:\n")
def test_an_output_that_holds_the_scans_is_refused(tmp_path):
    """raw/raw/x.nii.gz would go to raw/x.nii.gz."""
    for name in ("raw/x.nii.gz", "raw/raw/x.nii.gz"):
        make_scan(tmp_path / name)
    before = tree(tmp_path)
    for output in (tmp_path, tmp_path.parent):
        with pytest.raises(OutputRefused, match="holds the scans"):
            find.find_in_folder(tmp_path / "raw", output, orders(redo=True))
    assert tree(tmp_path) == before


@pytest.mark.parametrize("out", ["out", "in/out"])
def test_a_link_in_the_output_leads_no_answer_to_an_input(tmp_path, out):
    for name in ("a/x.nii.gz", "a/b/x.nii.gz", "y.nii.gz"):
        make_scan(tmp_path / "in" / name)
    (tmp_path / out).mkdir()
    (tmp_path / out / "a").symlink_to(tmp_path / "in" / "a")
    found = find.find_in_folder(tmp_path / "in", tmp_path / out, orders(redo=True))
    assert names_of(found) == ["y.nii.gz"]
    assert [(one.name, one.state) for one in found.failed] == [("a/b/x.nii.gz", "failed"), ("a/x.nii.gz", "failed")]
    assert "link" in found.failed[0].reason


def test_a_link_in_the_input_leads_to_no_input_in_the_output(tmp_path):
    """The scan is a link to where its answer, or the JSON of its answer, would go."""
    for name in ("x.nii.gz", "y.nii"):
        make_scan(tmp_path / "store" / name)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.nii.gz").symlink_to(tmp_path / "store" / "x.nii.gz")
    (tmp_path / "in" / "y.nii.gz").symlink_to(tmp_path / "store" / "y.nii")
    found = find.find_in_folder(tmp_path / "in", tmp_path / "store", orders(redo=True))
    assert names_of(found) == []
    assert len(found.failed) == 2


@catches(
    "datasets/find.py",
    "    check_not_raw(output)\n    check_writable(output)\n    scans",
    "    check_writable(output)\n    scans",
)
def test_folder_to_folder_does_not_write_into_raw_data(tmp_path, raw):
    make_scan(tmp_path / "in" / "x.nii.gz")
    for place in ("", "sub-01", "sub-01/anat", "out", "derivatives"):
        with pytest.raises(OutputRefused, match="raw data"):
            find.find_in_folder(tmp_path / "in", raw / place, orders())
    assert names_of(find.find_in_folder(tmp_path / "in", raw / "derivatives" / "thin", orders())) == ["x.nii.gz"]


@catches("datasets/find.py", "found.jobs[index - 1 :: count]", "found.jobs[index::count]")
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_shards_are_the_data_set(tmp_path, count):
    for index in range(5):
        make_scan(tmp_path / "in" / f"{index}.nii.gz")
    found = find.find_in_folder(tmp_path / "in", tmp_path / "out", orders())
    shards = [names_of(find.shard(found, index + 1, count)) for index in range(count)]
    assert sorted(name for shard in shards for name in shard) == names_of(found)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


# ---- BIDS


@catches("datasets/bids.py", 'NO_MAGNITUDE = ("part-phase", ', "NO_MAGNITUDE = (")
def test_images_are_picked_by_place_suffix_and_label(raw):
    def found(**choice):
        return [path.name.removesuffix(".nii.gz") for path in bids.find_images(raw, bids.Choice(**choice))[0]]

    one = ["sub-01_T1w", "sub-01_T2w", "sub-01_acq-ax_run-2_FLAIR"]
    assert found() == [*one, "sub-02_ses-a_T2w", "sub-02_ses-b_T1w"]
    assert found(participants=["01"]) == found(participants=["sub-01"]) == one
    assert found(sessions=["b"]) == ["sub-02_ses-b_T1w"]
    assert found(suffixes=["FLAIR"]) == ["sub-01_acq-ax_run-2_FLAIR"]
    with pytest.raises(InputRefused, match="participant 3"):
        found(participants=["01", "3"])
    with pytest.raises(InputRefused, match="no image"):
        found(suffixes=["PDw"])
    with pytest.raises(InputRefused, match="session c"):
        found(sessions=["b", "c"])
    for part in ("phase", "real", "imag"):
        make_scan(raw / f"sub-01/anat/sub-01_part-{part}_T2starw.nii.gz")
    make_scan(raw / "sub-01/anat/sub-01_part-mag_T2starw.nii.gz")
    assert found(suffixes=["T2starw"]) == ["sub-01_part-mag_T2starw"]
    with pytest.raises(InputRefused, match="dataset_description"):
        bids.find_images(raw.parent, bids.Choice())


@catches("datasets/job.py", "for file in reversed(files):", "for file in files:")
@catches("datasets/bids.py", "if its_suffix == suffix and set(other) <= set(entities):", "if its_suffix == suffix:")
@pytest.mark.parametrize("place", ["", "sub-02/", "sub-02/ses-a/", "sub-02/ses-a/anat/"])
def test_thickness_is_inherited(raw, tmp_path, place):
    """From the root, the participant, the session or the folder; the nearest holds, and other images' do not."""

    def outcome():
        choice = bids.Choice(participants=["02"], sessions=["a"])
        (one,) = find.find_in_bids(raw, tmp_path / "out", choice, orders()).jobs
        state = run_job(one).state
        return state, json.loads(one.sidecar.read_text())["plan"]["thickness_mm"]

    own = raw / "sub-02/ses-a/anat/sub-02_ses-a_T2w.json"
    own.write_text('{"EchoTime": 0.1}')
    prefix = {"": "", "sub-02/": "sub-02_"}.get(place, "sub-02_ses-a_" if place.endswith("ses-a/") else "sub-02_")
    (raw / "T2w.json").write_text('{"SliceThickness": 2.5}')
    for foreign in ("T1w", "acq-ax_T2w"):
        (raw / f"{place}{prefix}{foreign}.json").write_text('{"SliceThickness": 2}')
    (raw / f"{place}{prefix}T2w.json").write_text('{"SliceThickness": 3.5}')
    assert outcome() == ("done", 3.5)
    assert outcome() == ("kept", 3.5)
    (raw / f"{place}{prefix}T2w.json").write_text('{"SliceThickness": 3.0}')
    assert outcome() == ("done", 3.0)
    own.write_text('{"SliceThickness": 3.9}')
    assert outcome() == ("done", 3.9), "its own comes first"


@catches("datasets/bids.py", "inside = there == raw or raw in there.parents", "inside = there == raw")
@pytest.mark.parametrize("place", ["", "sub-01", "out", "derivatives", "../"])
def test_raw_data_is_no_output(raw, place):
    with pytest.raises(OutputRefused):
        bids.check_output(raw, raw / place)


@catches(
    "datasets/find.py",
    "    check_not_raw(output)\n    check_writable(output)\n    images",
    "    check_writable(output)\n    images",
)
@pytest.mark.parametrize("described", ['{"Name": "Other", "BIDSVersion": "1.9.0"}', "{torn"])
def test_other_raw_data_is_no_output_either(raw, tmp_path, described):
    (tmp_path / "other" / "sub-09").mkdir(parents=True)
    (tmp_path / "other" / "dataset_description.json").write_text(described)
    for place in ("other/sub-09", "other/new"):
        with pytest.raises(OutputRefused, match="raw data"):
            find.find_in_bids(raw, tmp_path / place, bids.Choice(), orders())
    assert find.find_in_bids(raw, tmp_path / "other/derivatives/thin", bids.Choice(), orders()).jobs


@catches("datasets/bids.py", "        unreadable.append(error)\n        return []\n", "        return []\n")
@pytest.mark.parametrize("closed", ["sub-01/anat", "sub-02", "sub-02/ses-a"])
def test_folders_of_participants_that_cannot_be_read_are_named(raw, tmp_path, monkeypatch, closed):
    real = os.listdir

    def listdir(path):
        if str(path).startswith(str(raw / closed)):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    found = find.find_in_bids(raw, tmp_path / "out", bids.Choice(participants=["01", "02"]), orders())
    assert [(one.name.startswith(closed), one.state) for one in found.failed] == [(True, "failed")]
    assert not [one for one in found.jobs if one.name.startswith(closed)]
    assert found.jobs


def test_a_data_set_that_cannot_be_listed_is_told(raw, tmp_path, monkeypatch):
    def listdir(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(InputRefused, match="Permission denied"):
        find.find_in_bids(raw, tmp_path / "out", bids.Choice(participants=["01"]), orders())


@pytest.mark.parametrize(
    ("facts", "kept"),
    [
        ({"Name": None, "Authors": None, "License": None, "DatasetDOI": None}, {}),
        ({"Name": 3, "Authors": "A, B", "License": "", "DatasetDOI": "n/a"}, {}),
        ({"Authors": ["A", "B"], "License": "CC0"}, {"Authors": ["A", "B"], "License": "CC0"}),
        ({"DatasetDOI": "https://doi.org/10.1/x"}, {"SourceDatasets": [{"URL": "doi:10.1/x"}]}),
        ({"DatasetDOI": "doi:10.1/x"}, {"SourceDatasets": [{"URL": "doi:10.1/x"}]}),
    ],
)
def test_the_description_takes_over_what_is_sound(raw, tmp_path, facts, kept):
    (raw / "dataset_description.json").write_text(json.dumps({"Name": "Two", "BIDSVersion": "1.9.0"} | facts))
    out = tmp_path / "out"
    out.mkdir()
    (out / ".bidsignore").write_bytes(b"caf\xe9/\n")
    bids.write_description(raw, out)
    told = json.loads((out / "dataset_description.json").read_text())
    expected = {"SourceDatasets": [{"URL": "../raw"}]} | kept
    assert {key: told.get(key) for key in expected} == expected
    assert {"Authors", "License"} & set(told) == {"Authors", "License"} & set(kept)
    assert told["Name"] in ("Two: thin slices", "raw: thin slices")
    assert (out / ".bidsignore").read_bytes().startswith(b"caf\xe9/\nsummary*\n")


@pytest.mark.parametrize("choice", [{"sessions": ["a/b"]}, {"participants": ["../01"]}, {"suffixes": ["T2w", "x y"]}])
def test_labels_are_letters_and_digits(raw, tmp_path, choice):
    with pytest.raises(InputRefused, match="letters and digits"):
        find.find_in_bids(raw, tmp_path / "out", bids.Choice(**choice), orders())


def test_outputs_of_other_programs_are_left_alone(raw):
    bids.check_output(raw, raw / "derivatives" / "thinslice")
    other = raw / "derivatives" / "other"
    (other / "dataset_description.json").write_text('{"Name": "x", "GeneratedBy": [{"Name": "fmriprep"}]}')
    with pytest.raises(OutputRefused, match="another program"):
        bids.check_output(raw, other)


# ---- segmentations that come along


def with_labels(folder):
    return orders(labels=folder / "drawn")


def test_segmentations_lie_at_the_paths_of_the_scans(tmp_path, raw):
    (tmp_path / "drawn").mkdir()
    make_scan(tmp_path / "in" / "a" / "x.nii")
    dicom_files.stack(tmp_path / "in" / "t2")
    jobs = find.find_in_folder(tmp_path / "in", tmp_path / "out", with_labels(tmp_path)).jobs
    assert [one.labels for one in jobs] == [tmp_path / "drawn" / "a" / "x.nii", tmp_path / "drawn" / "t2.nii.gz"]
    assert [one.extras["labels"].name for one in jobs] == ["x_labels.nii", "t2_labels.nii.gz"]
    assert all("labels" in one.wanted for one in jobs)
    choice = bids.Choice(participants=["01"], suffixes=["T2w"])
    (one,) = find.find_in_bids(raw, tmp_path / "of_bids", choice, with_labels(tmp_path)).jobs
    assert one.labels == tmp_path / "drawn" / one.name
    assert one.extras["labels"].name == "sub-01_res-iso_desc-srT2w_dseg.nii.gz"


def test_every_series_of_a_folder_has_its_segmentation(tmp_path):
    (tmp_path / "drawn").mkdir()
    for number in (3, 4):
        dicom_files.stack(tmp_path / "in" / "cd", series=number, named=f"{number}-")
    jobs = all_series(tmp_path, labels=tmp_path / "drawn").jobs
    assert [one.labels for one in jobs] == [
        tmp_path / "drawn" / one.destination.relative_to(tmp_path / "out") for one in jobs
    ]
    assert len({one.labels for one in jobs}) == 2


@catches("datasets/find.py", "*([orders.labels] if orders.labels is not None else [])", "")
def test_segmentations_among_the_scans_are_no_scans(tmp_path):
    for name in ("x.nii.gz", "drawn/x.nii.gz"):
        make_scan(tmp_path / "in" / name)
    found = find.find_in_folder(tmp_path / "in", tmp_path / "out", orders(labels=tmp_path / "in" / "drawn"))
    assert names_of(found) == ["x.nii.gz"]


@catches("datasets/find.py", "if is_inside(drawn, out) or is_inside(out, drawn):", "if False:")
@pytest.mark.parametrize(("drawn", "out"), [("out", "out"), ("out/drawn", "out"), ("drawn", "drawn/out")])
def test_segmentations_and_answers_do_not_lie_in_one_folder(tmp_path, drawn, out):
    make_scan(tmp_path / "in" / "x.nii.gz")
    (tmp_path / drawn).mkdir(parents=True)
    with pytest.raises(OutputRefused, match="segmentations"):
        find.find_in_folder(tmp_path / "in", tmp_path / out, orders(labels=tmp_path / drawn))


def test_a_folder_of_segmentations_must_be_there(tmp_path):
    make_scan(tmp_path / "in" / "x.nii.gz")
    with pytest.raises(InputRefused, match="segmentations"):
        find.find_in_folder(tmp_path / "in", tmp_path / "out", with_labels(tmp_path))


@catches("datasets/find.py", "            or os.path.dirname(place) in drawn\n", "")
def test_a_link_leads_no_answer_to_a_segmentation(tmp_path):
    make_scan(tmp_path / "in" / "x.nii.gz")
    (tmp_path / "drawn").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x.nii.gz").symlink_to(tmp_path / "drawn" / "x.nii.gz")
    found = find.find_in_folder(tmp_path / "in", tmp_path / "out", with_labels(tmp_path))
    assert (names_of(found), len(found.failed)) == ([], 1)


@catches("datasets/find.py", '*([job.extras["labels"]] if "labels" in job.wanted else [])', "")
def test_a_scan_that_is_called_like_the_labels_of_another_is_named(tmp_path):
    (tmp_path / "drawn").mkdir()
    for name in ("x.nii.gz", "x_labels.nii.gz"):
        make_scan(tmp_path / "in" / name)
    found = find.find_in_folder(tmp_path / "in", tmp_path / "out", with_labels(tmp_path))
    assert (names_of(found), [one.name for one in found.failed]) == (["x.nii.gz"], ["x_labels.nii.gz"])
    assert len(find.find_in_folder(tmp_path / "in", tmp_path / "out", orders()).jobs) == 2


# ---- what people see


def write_overview(folder, jobs, outcomes):
    summary.write_table(folder / "summary.tsv", jobs, outcomes)
    summary.write_page(folder / "summary.html", jobs, outcomes, 2.0)
    return folder / "summary.html"


def test_a_table_gives_names_as_they_are(tmp_path):
    make_scan(tmp_path / "in" / "a  b\tc.nii.gz")
    found = find.find_in_folder(tmp_path / "in", tmp_path / "out", orders())
    write_overview(tmp_path / "out", found.jobs, [run_job(found.jobs[0])])
    (row,) = (tmp_path / "out" / "summary.tsv").read_text().splitlines()[1:]
    assert row.split("\t")[0] == "a  b c.nii.gz"


def test_a_page_of_an_earlier_run_is_linked(tmp_path):
    make_scan(tmp_path / "in" / "x.nii.gz")
    for pages in (True, False):
        wanted = orders(extras=frozenset({"page"} if pages else ()))
        found = find.find_in_folder(tmp_path / "in", tmp_path / "out", wanted)
        outcome = run_job(found.jobs[0])
        assert "reports/x.html" in write_overview(tmp_path / "out", found.jobs, [outcome]).read_text()
    (tmp_path / "out" / "reports" / "x.html").unlink()
    assert "reports/x.html" not in write_overview(tmp_path / "out", found.jobs, [outcome]).read_text()


def test_the_overview_names_all_and_links_what_is_there(tmp_path):
    make_scan(tmp_path / "in" / "a <b>" / "ä scan.nii.gz")
    found = find.find_in_folder(tmp_path / "in", tmp_path / "out", orders(extras=frozenset({"page"})))
    bad = Outcome("bad & torn.nii.gz", "failed", "got <nothing>\tat all; need a scan")
    page = write_overview(tmp_path / "out", found.jobs, [run_job(found.jobs[0]), bad])
    text = page.read_text()
    assert "<b>" not in text
    assert "bad &amp; torn.nii.gz" in text
    assert text.index("bad &amp; torn") < text.index("a &lt;b&gt;"), "what failed comes first"
    from urllib.parse import unquote

    links = [unquote(part.split('"')[0]) for part in text.replace('src="', 'href="').split('href="')[1:]]
    assert len(links) == 4
    assert all((tmp_path / "out" / link).is_file() for link in links)
    assert not [word for word in ("http:", "https:", "//") if word in text]
    rows = (tmp_path / "out" / "summary.tsv").read_text().splitlines()
    assert [len(row.split("\t")) for row in rows] == [8, 8, 8]


@catches("datasets/summary.py", ', errors="backslashreplace")', ")")
def test_names_that_are_no_utf_8(tmp_path, latin):
    from urllib.parse import unquote_to_bytes

    found = find.find_in_folder(latin, tmp_path / "out", orders(extras=frozenset({"page"})))
    outcomes = [run_job(one) for one in found.jobs]
    assert [(one.state, one.reason) for one in outcomes] == [("done", "")] * 2
    page = write_overview(tmp_path / "out", found.jobs, outcomes)
    assert "M\\udcfcller.nii.gz" in page.with_suffix(".tsv").read_text(encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    links = [unquote_to_bytes(part.split('"')[0]) for part in text.replace('src="', 'href="').split('href="')[1:]]
    assert len(links) == 8
    assert all(os.path.isfile(os.fsencode(tmp_path / "out") + b"/" + link) for link in links)


def test_the_page_stays_small(tmp_path):
    many = [Outcome(f"{index}.nii.gz", "failed", "got nothing") for index in range(summary.MOST_ROWS + 5)]
    text = write_overview(tmp_path, [], many).read_text()
    assert "and 5 more" in text
    assert len((tmp_path / "summary.tsv").read_text().splitlines()) == len(many) + 1
