"""A data set: what is done once is kept, what is changed is done again, and what dies takes nothing along.

The faults are real: processes are killed, disks are full, two runs meet. What a test needs to happen inside a worker
happens in an audit hook that Python starts with there (`HOOK`); the program knows nothing of it.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import dicom_files
import thinslice
from make_scans import save_scan
from test_cli import make_scan, raising
from thick_scans import save_start
from thinslice import batch, bids, cli, dataset, job, nifti, overview
from thinslice.dataset import Orders
from thinslice.errors import InputRefused, ModelRefused, OutputRefused
from thinslice.job import Job, Outcome, Wish, run_job
from thinslice.report import plan_beside
from thinslice.volume import Volume

CUBIC = Wish(model="cubic")

HOOK = """
import os, sys, time
log = os.environ.get("TEST_LOG")
def hook(event, details):
    if event == "import" and details[0] == os.environ.get("TEST_MISSING"):
        raise ModuleNotFoundError(details[0], name=details[0])
    if event != "open" or not isinstance(details[0], str) or details[1] not in ("r", "rb"):
        return
    name = os.path.basename(details[0])
    if not name.endswith(".nii.gz") or "desc-sr" in name or os.environ["TEST_INPUT"] not in details[0]:
        return
    if name.startswith("poison"):
        os.kill(os.getpid(), 9)
    if name.startswith("slow"):
        with open(log, "a") as lines:
            lines.write(f"{os.getpid()} {name}\\n")
        time.sleep(float(os.environ.get("TEST_SECONDS", "0.5")))
sys.addaudithook(hook)
"""


def needs_engine():
    pytest.importorskip("distributed", reason="the data set engine is an extra")


@pytest.fixture
def world(tmp_path):
    """What the command line is called with, in a folder of its own: in/, out/, and the hook."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    paths = [str(tmp_path / "hook"), str(Path(thinslice.__file__).parents[1])]
    os.environ["PYTHONPATH"], earlier = os.pathsep.join(paths), os.environ.get("PYTHONPATH")
    os.environ |= {"TEST_LOG": str(tmp_path / "log"), "TEST_INPUT": str(tmp_path / "in")}
    yield tmp_path
    for name in ("TEST_LOG", "TEST_INPUT", "TEST_SECONDS", "TEST_MISSING"):
        os.environ.pop(name, None)
    del os.environ["PYTHONPATH"]
    if earlier is not None:
        os.environ["PYTHONPATH"] = earlier


def start(folder, *words, **options):
    command = [sys.executable, "-m", "thinslice", "batch", "-i", "in", "-o", "out", "--model", "cubic", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, **(pipes | options))


def finish(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def wait_for_log(folder, lines=1):
    """The numbers of the processes that have opened a slow scan."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if (folder / "log").exists() and len((folder / "log").read_text().splitlines()) >= lines:
            return [int(line.split()[0]) for line in (folder / "log").read_text().splitlines()]
        time.sleep(0.05)
    raise AssertionError("no scan was ever opened")


def states(folder, name="summary"):
    rows = [line.split("\t") for line in (folder / "out" / f"{name}.tsv").read_text().splitlines()[1:]]
    return {row[0]: row[1] for row in rows}


def reasons(folder):
    rows = [line.split("\t") for line in (folder / "out" / "summary.tsv").read_text().splitlines()[1:]]
    return {row[0]: row[6] for row in rows}


def check_whole(folder, names):
    """All answers are there with their JSON, can be read, and nothing else is."""
    found = sorted(str(path.relative_to(folder / "out")) for path in (folder / "out").rglob("*") if path.is_file())
    stems = [name.removesuffix(".nii.gz") for name in names]
    expected = [f"{stem}.{suffix}" for stem in stems for suffix in ("json", "nii.gz")]
    thumbnails = [f"thumbnails/{stem}.png" for stem in stems]
    assert found == sorted([*expected, *thumbnails, "summary.html", "summary.tsv"])
    for stem in stems:
        plan = plan_beside(folder / "out" / f"{stem}.nii.gz")
        assert nifti.read(folder / "out" / f"{stem}.nii.gz").shape == plan.shape_thin


def make_job(folder, name="scan.nii.gz", wish=CUBIC, **more):
    stem = name.removesuffix(".nii.gz")
    settings = {"model_sha256": job.hash_of_model(wish.model), "thumbnail": folder / "out" / f"{stem}.png"}
    return Job(name, folder / "in" / name, folder / "out" / name, wish, **(settings | more))


@pytest.fixture
def scan(tmp_path):
    return make_scan(tmp_path / "in" / "scan.nii.gz")


# ---- one job


def test_a_job_is_done_once(tmp_path, scan):
    first = run_job(make_job(tmp_path))
    assert (first.state, first.reason, first.slices) == ("done", "", "6 x 4 mm -> 24 x 1 mm")
    before = (tmp_path / "out" / "scan.nii.gz").stat()
    again = run_job(make_job(tmp_path))
    after = (tmp_path / "out" / "scan.nii.gz").stat()
    assert again.state == "kept"
    assert (again.rms_percent, again.worst_percent) == (first.rms_percent, first.worst_percent)
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert sorted(os.listdir(tmp_path / "out")) == ["scan.json", "scan.nii.gz", "scan.png"]


def test_the_answer_is_that_of_enhance(run, tmp_path, scan):
    run_job(make_job(tmp_path))
    run("enhance", "-i", scan, "-o", tmp_path / "alone.nii.gz", "--model", "cubic")
    one, other = nifti.read(tmp_path / "out" / "scan.nii.gz"), nifti.read(tmp_path / "alone.nii.gz")
    np.testing.assert_array_equal(one.voxels, other.voxels)
    np.testing.assert_array_equal(one.affine, other.affine)


def test_what_has_changed_is_done_again(tmp_path, scan):
    def outcome(**more):
        return run_job(make_job(tmp_path, **more)).state

    assert outcome() == "done"
    shutil.copy2(scan, scan.with_name("copy.nii.gz"))
    scan.with_name("copy.nii.gz").replace(scan)
    assert outcome() == "kept", "the same bytes in another file are the same scan"
    scan.with_suffix("").with_suffix(".json").write_text('{"SliceThickness": 3}')
    assert outcome() == "done", "the JSON beside the scan tells the thickness"
    assert outcome(wish=replace(CUBIC, factor=2.0)) == "done"
    assert outcome(wish=replace(CUBIC, factor=2.0)) == "kept"
    assert outcome(wish=Wish(model="linear")) == "done"
    size = scan.stat().st_size
    volume = nifti.read(scan)
    nifti.write(replace(volume, voxels=volume.voxels + np.int16(1)), scan)
    assert abs(scan.stat().st_size - size) < 200
    assert outcome(wish=Wish(model="linear")) == "done", "other voxels under the same name"
    answer = tmp_path / "out" / "scan.nii.gz"
    answer.write_bytes(answer.read_bytes()[:-9])
    assert outcome(wish=Wish(model="linear")) == "done", "an answer that was cut off"
    answer.unlink()
    assert outcome(wish=Wish(model="linear")) == "done", "an answer that is gone"
    assert outcome(wish=Wish(model="linear")) == "kept"
    assert outcome(wish=Wish(model="linear"), redo=True) == "done"


def test_another_model_of_the_same_name_does_it_again(tmp_path, scan):
    pytest.importorskip("torch")
    file = save_start(tmp_path / "model.onnx", seed=1, loud=1.0)
    wish = Wish(model=str(file))
    assert run_job(make_job(tmp_path, wish=wish)).state == "done"
    assert run_job(make_job(tmp_path, wish=wish)).state == "kept"
    old = job.hash_of_model(str(file))
    save_start(file, seed=2, loud=1.0)
    assert run_job(make_job(tmp_path, wish=wish)).state == "done"
    stale = run_job(make_job(tmp_path, wish=replace(wish, factor=2.0), model_sha256=old, threads=3))
    assert stale.state == "refused", "a worker that finds another file than the run was started with"
    assert "sha256" in stale.reason


def test_a_model_is_loaded_once_for_all_scans_of_a_process(tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(job, "models_for", lambda *words: loaded.append(words) or job_models(*words))
    job_models = thinslice.weights.models_for
    job._models.cache_clear()
    for index in range(3):
        make_scan(tmp_path / "in" / f"scan{index}.nii.gz")
        assert run_job(make_job(tmp_path, f"scan{index}.nii.gz")).state == "done"
    assert len(loaded) == 1


def test_what_another_program_wrote_is_not_replaced(tmp_path, scan):
    theirs = tmp_path / "out" / "scan.nii.gz"
    make_scan(theirs)
    before = theirs.read_bytes()
    outcome = run_job(make_job(tmp_path))
    assert outcome.state == "failed"
    assert "--overwrite" in outcome.reason
    assert theirs.read_bytes() == before
    assert os.listdir(tmp_path / "out") == ["scan.nii.gz"]
    assert run_job(make_job(tmp_path, redo=True)).state == "done"


def test_what_a_dead_run_left_gives_no_right_to_the_files_of_others(tmp_path, scan):
    """Their file came after a run that was killed while it computed."""
    one = make_job(tmp_path)
    one.stage.mkdir(parents=True)
    (one.stage / "scan.nii.gz").write_bytes(b"half")
    theirs = make_scan(tmp_path / "out" / "scan.nii.gz")
    before = theirs.read_bytes()
    assert run_job(one).state == "failed"
    assert theirs.read_bytes() == before


@pytest.mark.parametrize("until", [0, 1, 2])
def test_a_run_that_dies_between_the_renames_is_made_whole(tmp_path, scan, monkeypatch, until):
    """Died after so many of three: the picture, the answer, the JSON. What is there then is never taken for done."""
    assert run_job(make_job(tmp_path, wish=replace(CUBIC, factor=2.0))).state == "done"

    class Dead(BaseException):
        pass

    real, moved = os.replace, []

    def move(part, target):
        if Path(target).parent == tmp_path / "out":
            if len(moved) == until:
                raise Dead
            moved.append(target)
        real(part, target)

    with monkeypatch.context() as patch:
        patch.setattr(job.os, "replace", move)
        with pytest.raises(Dead):
            run_job(make_job(tmp_path))
    assert not (tmp_path / "out" / "scan.json").exists()
    assert run_job(make_job(tmp_path)).state == "done"
    assert sorted(os.listdir(tmp_path / "out")) == ["scan.json", "scan.nii.gz", "scan.png"]


@pytest.mark.parametrize(
    ("error", "state", "told"),
    [
        (OSError(28, "No space left on device"), "failed", "No space left"),
        (MemoryError(), "failed", "memory"),
        (InputRefused("got nonsense"), "failed", "got nonsense"),
        (ModelRefused("got no model"), "refused", "got no model"),
        (RuntimeError("boom"), "failed", "boom"),
    ],
)
def test_what_goes_wrong_is_told_and_leaves_nothing(tmp_path, scan, monkeypatch, error, state, told):
    monkeypatch.setattr(job, "write", raising(error))
    outcome = run_job(make_job(tmp_path))
    assert outcome.state == state
    assert told in outcome.reason
    assert os.listdir(tmp_path / "out") == []


def test_a_scan_that_is_elsewhere(tmp_path):
    """As the files of a DataLad data set whose contents have not been fetched."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "scan.nii.gz").symlink_to(tmp_path / "annex" / "key")
    outcome = run_job(make_job(tmp_path))
    assert outcome.state == "failed"
    assert "check links" in outcome.reason


def test_thin_scans_are_left_out_unless_more_is_wished(tmp_path):
    make_scan(tmp_path / "in" / "scan.nii.gz", spacing_mm=(1.0, 1.0, 1.2))
    assert run_job(make_job(tmp_path)).state == "thin"
    assert run_job(make_job(tmp_path, wish=replace(CUBIC, spacing_mm=0.6))).state == "done"


def test_every_kind_of_scan_has_a_picture(tmp_path):
    voxels = np.random.default_rng(0).normal(100, 20, (16, 14, 5, 2)).astype(np.float32)
    (tmp_path / "in").mkdir()
    save_scan(tmp_path / "in" / "series.nii.gz", voxels)
    assert run_job(make_job(tmp_path, "series.nii.gz")).state == "done"
    assert (tmp_path / "out" / "series.png").read_bytes()[1:4] == b"PNG"


def test_a_page_for_every_scan_on_request(tmp_path, scan):
    page = tmp_path / "out" / "pages" / "scan.html"
    assert run_job(make_job(tmp_path)).state == "done"
    assert run_job(make_job(tmp_path, page=page)).state == "done"
    assert "<html" in page.read_text()[:200]
    assert run_job(make_job(tmp_path, page=page)).state == "kept"


def test_a_page_belongs_to_its_answer(tmp_path, scan):
    page = tmp_path / "out" / "pages" / "scan.html"

    def outcome(pages, **more):
        return run_job(make_job(tmp_path, page=page if pages else None, earlier_page=page, **more)).state

    assert outcome(True) == "done"
    assert outcome(False) == "kept"
    assert page.exists(), "it still shows this answer"
    assert outcome(False, wish=replace(CUBIC, factor=2.0)) == "done"
    assert not page.exists(), "it showed another answer"
    page.write_text("a page of someone else")
    assert outcome(False, wish=replace(CUBIC, factor=3.0)) == "done"
    assert page.exists()
    assert outcome(True, wish=replace(CUBIC, factor=3.0)) == "done"
    page.write_text("cut off")
    assert outcome(True, wish=replace(CUBIC, factor=3.0)) == "done"


def test_a_picture_that_is_gone_is_made_again(tmp_path, scan):
    assert run_job(make_job(tmp_path)).state == "done"
    (tmp_path / "out" / "scan.png").unlink()
    assert run_job(make_job(tmp_path)).state == "done"
    assert (tmp_path / "out" / "scan.png").is_file()


def test_a_job_that_is_repeated_within_a_run_counts_as_done(tmp_path, scan):
    """As when a worker dies with an outcome that the scheduler has not fetched; nothing is computed twice."""
    assert run_job(make_job(tmp_path, run="this", redo=True)).state == "done"
    before = (tmp_path / "out" / "scan.nii.gz").stat().st_ino
    assert run_job(make_job(tmp_path, run="this", redo=True)).state == "done"
    assert (tmp_path / "out" / "scan.nii.gz").stat().st_ino == before
    assert run_job(make_job(tmp_path, run="next")).state == "kept"


# ---- which scans


def orders(**more):
    return Orders(CUBIC, None, **more)


def names_of(found):
    return [one.name for one in found.jobs]


def test_a_folder_is_searched_to_the_bottom(tmp_path):
    for name in ("b.nii.gz", "a/x.nii", "a/deep/x.nii.gz", ".hidden/x.nii.gz", "out/x.nii.gz", "a/.y.nii.gz"):
        make_scan(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("not a scan")
    found = dataset.find_in_folder(tmp_path, tmp_path / "out", orders())
    assert names_of(found) == ["a/deep/x.nii.gz", "a/x.nii", "b.nii.gz"]
    assert found.jobs[0].destination == tmp_path / "out" / "a" / "deep" / "x.nii.gz"
    assert not found.failed


def test_a_folder_of_dicom_slices_is_one_scan(tmp_path):
    dicom_files.stack(tmp_path / "in" / "patient" / "t2")
    found = dataset.find_in_folder(tmp_path / "in", tmp_path / "out", orders())
    assert names_of(found) == ["patient/t2"]
    outcome = run_job(found.jobs[0])
    assert (outcome.state, outcome.reason) == ("done", "")
    assert nifti.read(tmp_path / "out" / "patient" / "t2.nii.gz").shape[2] > 5
    again = dataset.find_in_folder(tmp_path / "in", tmp_path / "out", orders())
    assert run_job(again.jobs[0]).state == "kept"


def test_slices_directly_in_the_folder_are_a_scan(tmp_path):
    dicom_files.stack(tmp_path / "in")
    found = dataset.find_in_folder(tmp_path / "in", tmp_path / "out", orders())
    assert names_of(found) == ["in"]
    assert run_job(found.jobs[0]).state == "done"
    assert (tmp_path / "out" / "in.nii.gz").is_file()


def test_links_to_folders_are_followed_once(tmp_path):
    for name in ("in/a/x.nii.gz", "store/y.nii.gz", "in/out/z.nii.gz"):
        make_scan(tmp_path / name)
    for name, target in (("0", "in/a"), ("a/up", "in"), ("b", "store"), ("c", "store"), ("made", "in/out")):
        (tmp_path / "in" / name).symlink_to(tmp_path / target)
    (tmp_path / "store" / "round").symlink_to(tmp_path / "store")
    found = dataset.find_in_folder(tmp_path / "in", tmp_path / "in" / "out", orders())
    assert names_of(found) == ["a/x.nii.gz", "b/y.nii.gz"]
    assert not found.failed


def test_folders_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    for name in ("a/x.nii.gz", "closed/y.nii.gz"):
        make_scan(tmp_path / "in" / name)
    real = os.scandir

    def scandir(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = dataset.find_in_folder(tmp_path / "in", tmp_path / "out", orders())
    assert names_of(found) == ["a/x.nii.gz"]
    assert [(one.name, one.state) for one in found.failed] == [("closed", "failed")]
    assert "Permission denied" in found.failed[0].reason


def test_two_answers_never_share_a_name(tmp_path):
    for name in ("a.nii.gz", "a.nii", "b.nii.gz"):
        make_scan(tmp_path / "in" / name)
    found = dataset.find_in_folder(tmp_path / "in", tmp_path / "out", orders())
    assert names_of(found) == ["a.nii", "b.nii.gz"]
    assert [(one.name, one.state) for one in found.failed] == [("a.nii.gz", "failed")]


def test_folders_that_cannot_be(tmp_path):
    scan = make_scan(tmp_path / "in" / "a.nii.gz")
    with pytest.raises(OutputRefused):
        dataset.find_in_folder(tmp_path / "in", tmp_path / "in" / ".." / "in", orders())
    with pytest.raises(InputRefused, match="enhance"):
        dataset.find_in_folder(scan, tmp_path / "out", orders())
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputRefused, match="without any scan"):
        dataset.find_in_folder(tmp_path / "empty", tmp_path / "out", orders())


def test_an_output_that_holds_the_scans_is_refused(tmp_path):
    """raw/raw/x.nii.gz would go to raw/x.nii.gz."""
    for name in ("raw/x.nii.gz", "raw/raw/x.nii.gz"):
        make_scan(tmp_path / name)
    before = tree(tmp_path)
    for output in (tmp_path, tmp_path.parent):
        with pytest.raises(OutputRefused, match="holds the scans"):
            dataset.find_in_folder(tmp_path / "raw", output, orders(redo=True))
    assert tree(tmp_path) == before


@pytest.mark.parametrize("out", ["out", "in/out"])
def test_a_link_in_the_output_leads_no_answer_to_an_input(tmp_path, out):
    for name in ("a/x.nii.gz", "a/b/x.nii.gz", "y.nii.gz"):
        make_scan(tmp_path / "in" / name)
    (tmp_path / out).mkdir()
    (tmp_path / out / "a").symlink_to(tmp_path / "in" / "a")
    found = dataset.find_in_folder(tmp_path / "in", tmp_path / out, orders(redo=True))
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
    found = dataset.find_in_folder(tmp_path / "in", tmp_path / "store", orders(redo=True))
    assert names_of(found) == []
    assert len(found.failed) == 2


def test_folder_to_folder_does_not_write_into_raw_data(tmp_path, raw):
    make_scan(tmp_path / "in" / "x.nii.gz")
    for place in ("", "sub-01", "sub-01/anat", "out", "derivatives"):
        with pytest.raises(OutputRefused, match="raw data"):
            dataset.find_in_folder(tmp_path / "in", raw / place, orders())
    assert names_of(dataset.find_in_folder(tmp_path / "in", raw / "derivatives" / "thin", orders())) == ["x.nii.gz"]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_shards_are_the_data_set(tmp_path, count):
    for index in range(5):
        make_scan(tmp_path / "in" / f"{index}.nii.gz")
    found = dataset.find_in_folder(tmp_path / "in", tmp_path / "out", orders())
    shards = [names_of(dataset.shard(found, index + 1, count)) for index in range(count)]
    assert sorted(name for shard in shards for name in shard) == names_of(found)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def slurm(task, least, count, step=1):
    return {
        f"SLURM_ARRAY_TASK_{name}": str(n)
        for name, n in zip(("ID", "MIN", "COUNT", "STEP"), (task, least, count, step), strict=True)
    }


def test_which_shard():
    assert batch.read_shard(None, {}) == (1, 1)
    assert batch.read_shard("3/8", slurm(1, 1, 4)) == (3, 8)
    assert [batch.read_shard(None, slurm(task, 0, 3)) for task in range(3)] == [(1, 3), (2, 3), (3, 3)]
    assert [batch.read_shard(None, slurm(task, 1, 3, 5)) for task in (1, 6, 11)] == [(1, 3), (2, 3), (3, 3)]
    for wrong in ("0/3", "4/3", "1", "a/b", "-1/3", "1/2/3"):
        with pytest.raises(InputRefused, match="--shard"):
            batch.read_shard(wrong, {})
    with pytest.raises(InputRefused, match="even steps"):
        batch.read_shard(None, slurm(17, 1, 3))


def test_workers_fit_the_memory():
    assert batch.choose_workers(8, 64 << 30) == 8
    assert batch.choose_workers(8, 5 << 30) == 2
    assert batch.choose_workers(2, 1 << 30) == 1


# ---- the engine, with real processes


def test_a_worker_may_use_all_the_memory_of_the_machine():
    """Dask would end it at 95 % of its share, even where nothing runs beside it."""
    needs_engine()
    with batch._client(batch.Engine(2)) as client:
        client.wait_for_workers(2)
        until = time.monotonic() + 20
        while len(client.cluster.workers) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        watched = [nanny.memory_manager for nanny in client.cluster.workers.values()]
        assert len(watched) == 2
        assert not any(one.memory_limit and one.memory_terminate_fraction for one in watched)


def test_what_fails_is_named_and_the_rest_is_done(world):
    needs_engine()
    for name in ("a/one.nii.gz", "b/two.nii.gz", "three.nii.gz", "four.nii.gz", "poison.nii.gz"):
        make_scan(world / "in" / name)
    make_scan(world / "in" / "thin.nii.gz", spacing_mm=(1.0, 1.0, 1.0))
    (world / "in" / "torn.nii.gz").write_bytes(make_scan(world / "in" / "whole.nii.gz").read_bytes()[:300])
    code, out, err = finish(start(world, "--workers", "2"))
    assert code == 2, err
    expected = dict.fromkeys(("a/one.nii.gz", "b/two.nii.gz", "three.nii.gz", "four.nii.gz", "whole.nii.gz"), "done")
    assert states(world) == expected | dict.fromkeys(("poison.nii.gz", "torn.nii.gz"), "failed") | {
        "thin.nii.gz": "thin"
    }
    assert "4 deaths" in reasons(world)["poison.nii.gz"]
    assert len(err.splitlines()) == 2, "one line for each failure, and nothing from the engine"
    assert {line.split()[1].split("/")[-1].split(":")[0] for line in err.splitlines()} == {
        "poison.nii.gz",
        "torn.nii.gz",
    }
    assert "8/8" in out
    check_whole(world, expected)
    page = (world / "out" / "summary.html").read_text()
    assert "deaths of the process" in page
    (world / "in" / "poison.nii.gz").unlink()
    (world / "in" / "torn.nii.gz").unlink()
    code, out, err = finish(start(world, "--workers", "1"))
    assert (code, err) == (0, "")
    assert set(states(world).values()) == {"kept", "thin"}


def test_a_worker_that_is_killed_costs_nothing(world):
    needs_engine()
    scans = [f"slow{index}.nii.gz" for index in range(4)]
    for name in scans:
        make_scan(world / "in" / name)
    process = start(world, "--workers", "2")
    os.kill(wait_for_log(world)[0], signal.SIGKILL)
    code, _, err = finish(process)
    assert (code, err) == (0, "")
    assert states(world) == dict.fromkeys(scans, "done")
    check_whole(world, scans)


def test_an_interrupted_run_sums_up_what_was_done(world):
    """And what fails is told when it fails, not at the end."""
    needs_engine()
    for name in ("slow0.nii.gz", "slow1.nii.gz", "slow2.nii.gz"):
        make_scan(world / "in" / name)
    (world / "in" / "a.nii.gz").write_bytes(b"torn")
    process = start(world, "--workers", "1")
    assert "in/a.nii.gz: got a text" in process.stderr.readline()
    assert process.poll() is None
    wait_for_log(world, 3)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert (code, len(err.splitlines())) == (130, 1), err
    assert "summary.html" in out
    expected = {"a.nii.gz": "failed", "slow0.nii.gz": "done", "slow2.nii.gz": "left"}
    assert states(world).items() >= expected.items()
    assert len(states(world)) == 4, "what was not reached is told too"
    assert "not done yet" in (world / "out" / "summary.html").read_text()


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.3, 0.6])
def test_ctrl_c_twice(world, seconds):
    needs_engine()
    for index in range(3):
        make_scan(world / "in" / f"slow{index}.nii.gz")
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = start(world, "--workers", "2", start_new_session=True, **heard)
    wait_for_log(world, 2)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(seconds)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    code, _, err = finish(process)
    assert (code, len(err.splitlines())) == (130, 1), err
    until = time.monotonic() + 20
    while started_by(process.pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not started_by(process.pid)


def test_names_give_no_orders_to_the_terminal(world):
    needs_engine()
    make_scan(world / "in" / "one\ntwo\x1b[31m.nii.gz")
    code, out, err = finish(start(world, "--workers", "1"))
    assert (code, err) == (0, "")
    assert "1/1 one two?[31m.nii.gz: computed," in out
    assert "\x1b" not in out


@pytest.mark.parametrize("seconds", [0.0, 0.2, 0.6])
@pytest.mark.parametrize("killer", [signal.SIGINT, signal.SIGTERM])
def test_a_run_is_interrupted_while_workers_start(world, killer, seconds):
    needs_engine()
    if not Path("/proc/self/task").exists():
        pytest.skip("processes are looked up in /proc")
    make_scan(world / "in" / "slow.nii.gz")
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = start(world, "--workers", "2", start_new_session=True, **heard)
    until = time.monotonic() + 60
    while not started_by(process.pid) and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(seconds)
    if killer == signal.SIGINT:
        os.killpg(process.pid, killer)
    else:
        process.send_signal(killer)
    code, _, err = finish(process)
    assert (code, len(err.splitlines())) == (130, 1), err
    assert not list((world / "out").rglob(".thinslice-*"))


def started_by(pid):
    """The workers of a run, which may not have come far."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"spawn_main" in (place / "cmdline").read_bytes() and os.getpgid(int(place.name)) == pid:
                found.append(int(place.name))
    return found


@pytest.mark.parametrize("killer", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_killed_goes_on(world, killer):
    needs_engine()
    scans = [f"slow{index}.nii.gz" for index in range(4)]
    for name in scans:
        make_scan(world / "in" / name)
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # a shell may have said otherwise
    process = start(world, "--workers", "1", start_new_session=True, **heard)
    workers = set(wait_for_log(world, 3))  # hashing and reading open a scan twice: the first is done
    if killer in (signal.SIGINT, signal.SIGHUP):  # Ctrl-C, and the end of a terminal, go to all its processes
        os.killpg(process.pid, killer)
    else:
        process.send_signal(killer)
    code, _, err = finish(process)
    for _ in range(100):
        if not any(Path(f"/proc/{worker}").exists() for worker in workers):
            break
        time.sleep(0.1)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers), "the workers die with the run"
    left = [path.name for path in (world / "out").rglob(".thinslice-*")]
    if killer == signal.SIGKILL:
        assert code == -9
    else:
        assert (code, left) == (130, [])
        assert err.splitlines() == [
            f"thinslice: interrupted; {'what is done stays; next: the same command goes on from there'}"
        ]
    os.environ["TEST_SECONDS"] = "0"
    code, _, err = finish(start(world, "--workers", "1"))
    assert (code, err) == (0, "")
    assert states(world)["slow0.nii.gz"] == "kept"
    assert set(states(world)) == set(scans)
    check_whole(world, scans)


def test_two_runs_on_one_output_do_every_scan_once(world):
    needs_engine()
    os.environ["TEST_SECONDS"] = "0.2"
    scans = [f"slow{index}.nii.gz" for index in range(4)]
    for name in scans:
        make_scan(world / "in" / name)
    both = [start(world, "--workers", "1"), start(world, "--workers", "1")]
    ends = [finish(process) for process in both]
    assert [(code, err) for code, _, err in ends] == [(0, ""), (0, "")]
    said = "\n".join(out for _, out, _ in ends)
    assert [said.count(f"{name}: computed,") for name in scans] == [1, 1, 1, 1]
    assert [said.count(f"{name}: kept,") for name in scans] == [1, 1, 1, 1]
    check_whole(world, scans)


@contextmanager
def small_disk(folder, size):
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk needs the right to mount one")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_what_fits_is_done(world):
    needs_engine()
    random = np.random.default_rng(0)
    (world / "in").mkdir()
    for name, side in (("large.nii.gz", 160), ("small1.nii.gz", 16), ("small2.nii.gz", 16)):
        voxels = random.integers(0, 30000, (side, side, 6)).astype(np.int16)
        nifti.write(Volume(voxels, np.diag([1.0, 1.0, 4.0, 1.0])), world / "in" / name)
    with small_disk(world / "out", "700k"):
        code, _, err = finish(start(world, "--workers", "1"))
        assert code == 2
        assert "No space left" in err
        assert states(world) == {"large.nii.gz": "failed", "small1.nii.gz": "done", "small2.nii.gz": "done"}
        check_whole(world, ["small1.nii.gz", "small2.nii.gz"])


def test_any_scheduler_will_do(world):
    needs_engine()
    for name in ("one.nii.gz", "two.nii.gz", "poison.nii.gz"):
        make_scan(world / "in" / name)
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=60) as cluster:
        command = ["batch", "-i", world / "in", "-o", world / "out", "--model", "cubic"]
        words = [sys.executable, "-m", "thinslice", *map(str, command), "--scheduler", cluster.scheduler_address]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert states(world) == {"one.nii.gz": "done", "two.nii.gz": "done", "poison.nii.gz": "failed"}


class Scheduler:
    """One of Dask's, as a machine room has it, whose workers we start."""

    def __init__(self, folder):
        self.file, self.processes = folder / "scheduler.json", []
        self.process = self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", self.file)
        until = time.monotonic() + 60
        while not self.file.exists() and time.monotonic() < until:
            time.sleep(0.05)
        self.address = json.loads(self.file.read_text())["address"]

    def worker(self, environment=None):
        limits = ("--nthreads", "1", "--no-nanny", "--death-timeout", "20")
        return self._start("worker", self.address, *limits, env=os.environ | (environment or {}))

    def _start(self, what, *words, **options):
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", *map(str, words), "--no-dashboard"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.processes.append(subprocess.Popen(command, **quiet, **options))
        return self.processes[-1]


@pytest.fixture
def scheduler(world, monkeypatch):
    needs_engine()
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "2s")
    one = Scheduler(world)
    yield one
    for process in reversed(one.processes):
        process.kill()
        process.wait()


def test_a_scheduler_that_dies_is_told(world, scheduler):
    scans = [f"slow{index}.nii.gz" for index in range(4)]
    for name in scans:
        make_scan(world / "in" / name)
    scheduler.worker()
    process = start(world, "--scheduler", scheduler.address)
    wait_for_log(world, 3)
    scheduler.process.kill()
    code, _, err = finish(process)
    assert code == 2
    failed = [name for name, state in states(world).items() if state == "failed"]
    assert list(states(world)) == scans
    assert set(scans[2:]) <= set(failed), "the first may have ended, with or without word of it"
    assert len(err.splitlines()) == len(failed), err
    assert all("run again" in line for line in err.splitlines()), err


def test_where_there_is_no_scheduler(world, run):
    needs_engine()
    import dask

    make_scan(world / "in" / "one.nii.gz")
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        code, out, err = run("batch", "-i", world / "in", "-o", world / "out", "--scheduler", "tcp://127.0.0.1:1")
    assert (code, out, len(err)) == (2, [], 1)
    assert "dask scheduler" in err[0]


def test_the_engine_is_named_where_it_is_missing(world):
    make_scan(world / "in" / "one.nii.gz")
    os.environ["TEST_MISSING"] = "distributed"
    code, out, err = finish(start(world))
    assert (code, out) == (2, "")
    assert "thinslice[batch]" in err


def test_the_simulated_scheduler_does_what_can_be_reckoned(monkeypatch):
    pytest.importorskip("onnx")
    file = Path(__file__).parents[1] / "benchmarks" / "batch.py"
    if not file.exists():
        pytest.skip("the benchmarks are not here")
    monkeypatch.syspath_prepend(file.parent)
    spec = importlib.util.spec_from_file_location("batch_benchmark", file)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    assert benchmark.simulate([2.0] * 12, 1, 0.0, 0.0) == 24
    assert benchmark.simulate([2.0] * 12, 4, 0.0, 0.0) == 6
    assert benchmark.simulate([9.0, 1.0, 1.0, 1.0], 2, 0.0, 0.0) == 9, "a slow scan holds up no other"
    assert benchmark.simulate([1.0] * 8, 64, 0.5, 0.0) == 5, "the leading process hands out one after the other"
    assert benchmark.simulate([1.0] * 8, 64, 0.0, 2.0) == 17, "the file server moves one after the other"


# ---- BIDS


@pytest.fixture
def raw(tmp_path):
    """Two participants, one with sessions; thick, thin and foreign images; a derivative that is not to be looked at."""
    root = tmp_path / "raw"
    for name in (
        "sub-01/anat/sub-01_T2w",
        "sub-01/anat/sub-01_acq-ax_run-2_FLAIR",
        "sub-02/ses-a/anat/sub-02_ses-a_T2w",
        "sub-02/ses-b/anat/sub-02_ses-b_T1w",
    ):
        make_scan(root / f"{name}.nii.gz")
        (root / f"{name}.json").write_text('{"SliceThickness": 4, "MagneticFieldStrength": 3}')
    make_scan(root / "sub-01/anat/sub-01_T1w.nii.gz", spacing_mm=(1.0, 1.0, 1.0))
    make_scan(root / "derivatives/other/sub-01/anat/sub-01_desc-x_T2w.nii.gz")
    description = {"Name": "Two heads", "BIDSVersion": "1.9.0", "License": "CC0", "DatasetType": "raw"}
    (root / "dataset_description.json").write_text(json.dumps(description))
    (root / "README").write_text("Two heads that were made up.\n")
    return root


def tree(root):
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*") if path.is_file()}


def test_images_are_picked_by_place_suffix_and_label(raw):
    def found(**choice):
        return [path.name.removesuffix(".nii.gz") for path in bids.find_images(raw, bids.Choice(**choice))]

    one = ["sub-01_T1w", "sub-01_T2w", "sub-01_acq-ax_run-2_FLAIR"]
    assert found() == [*one, "sub-02_ses-a_T2w", "sub-02_ses-b_T1w"]
    assert found(participants=["01"]) == found(participants=["sub-01"]) == one
    assert found(sessions=["b"]) == ["sub-02_ses-b_T1w"]
    assert found(suffixes=["FLAIR"]) == ["sub-01_acq-ax_run-2_FLAIR"]
    with pytest.raises(InputRefused, match="participant 3"):
        found(participants=["01", "3"])
    with pytest.raises(InputRefused, match="no image"):
        found(suffixes=["PDw"])
    with pytest.raises(InputRefused, match="dataset_description"):
        bids.find_images(raw.parent, bids.Choice())


@pytest.mark.parametrize("place", ["", "sub-02/", "sub-02/ses-a/", "sub-02/ses-a/anat/"])
def test_thickness_is_inherited(raw, tmp_path, place):
    """From the root, the participant, the session or the folder; the nearest holds, and other images' do not."""

    def outcome():
        choice = bids.Choice(participants=["02"], sessions=["a"])
        (one,) = dataset.find_in_bids(raw, tmp_path / "out", choice, orders()).jobs
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


@pytest.mark.parametrize("place", ["", "sub-01", "out", "derivatives", "../"])
def test_raw_data_is_no_output(raw, place):
    with pytest.raises(OutputRefused):
        bids.check_output(raw, raw / place)


def test_outputs_of_other_programs_are_left_alone(raw):
    bids.check_output(raw, raw / "derivatives" / "thinslice")
    other = raw / "derivatives" / "other"
    (other / "dataset_description.json").write_text('{"Name": "x", "GeneratedBy": [{"Name": "fmriprep"}]}')
    with pytest.raises(OutputRefused, match="another program"):
        bids.check_output(raw, other)


def test_a_bids_data_set(world, raw):
    needs_engine()
    before = tree(raw)
    command = [sys.executable, "-m", "thinslice", "batch", str(raw), str(world / "out"), "participant"]
    options = ["--model", "cubic", "--workers", "2"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert tree(raw) == before, "raw data is never written to"
    answers = sorted(str(path.relative_to(world / "out")) for path in (world / "out").glob("sub-*/**/*.nii.gz"))
    assert answers == [
        "sub-01/anat/sub-01_acq-ax_run-2_res-iso_desc-sr_FLAIR.nii.gz",
        "sub-01/anat/sub-01_res-iso_desc-sr_T2w.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_res-iso_desc-sr_T2w.nii.gz",
        "sub-02/ses-b/anat/sub-02_ses-b_res-iso_desc-sr_T1w.nii.gz",
    ]
    told = json.loads((world / "out" / answers[1].replace(".nii.gz", ".json")).read_text())
    assert told["Resolution"] == "1 x 1 x 1 mm, computed from slices 4 mm apart"
    assert (told["SkullStripped"], told["SpatialReference"]) == (False, "orig")
    assert told["Sources"] == ["bids:raw:sub-01/anat/sub-01_T2w.nii.gz"]
    assert told["plan"]["thickness_mm"] == 4
    assert told["consistency"]["rms_percent"] < 5
    described = json.loads((world / "out" / "dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative"
    assert described["GeneratedBy"][0]["Name"] == "thinslice"
    assert (world / "out" / described["DatasetLinks"]["raw"]).resolve() == raw.resolve()
    again = subprocess.run(
        [*command, "--participant-label", "02", *options], capture_output=True, text=True, check=False, timeout=120
    )
    assert again.returncode == 0
    assert len(states(world)) == 5, "the summary of all stays"
    assert states(world, "summary-sub-02") == dict.fromkeys(
        ("sub-02/ses-a/anat/sub-02_ses-a_T2w.nii.gz", "sub-02/ses-b/anat/sub-02_ses-b_T1w.nii.gz"), "kept"
    )
    check_with_validator(world / "out")


def test_the_description_names_all_models_and_nothing_that_was_not_done(world, raw):
    needs_engine()

    def described(*words):
        command = [sys.executable, "-m", "thinslice", "batch", raw, world / "out", "participant", "--workers", "1"]
        options = ["--participant-label", "01", "--suffix", "T2w", *words]
        done = subprocess.run([*map(str, command), *options], capture_output=True, text=True, check=False, timeout=120)
        file = world / "out" / "dataset_description.json"
        makers = json.loads(file.read_text())["GeneratedBy"] if file.exists() else []
        return done.returncode, [one["Description"].split("model ")[1].split(";")[0] for one in makers]

    assert described("--model", "cubic", "--spacing", "9") == (2, [])
    assert described("--model", "cubic") == (0, ["cubic"])
    assert described("--model", "linear", "--spacing", "9") == (2, ["cubic"])
    assert described("--model", "linear") == (0, ["cubic", "linear"])
    assert described("--model", "linear") == (0, ["cubic", "linear"])


@pytest.mark.parametrize("file", ["batch.sbatch"])
def test_the_example_for_slurm(world, raw, file):
    """With srun and thinslice by other means: two tasks of an array do all images, and a last run sums up."""
    needs_engine()
    script = Path(__file__).parents[1] / "docs" / file
    if not script.exists():
        pytest.skip("the documentation is not here")
    for name, line in (("srun", 'exec "$@"'), ("thinslice", f'exec "{sys.executable}" -m thinslice "$@"')):
        (world / "hook" / name).write_text(f"#!/bin/sh\n{line}\n")
        (world / "hook" / name).chmod(0o755)
    path = {"PATH": f"{world / 'hook'}{os.pathsep}{os.environ['PATH']}"}
    words = ["bash", script, raw, world / "out", "--model", "cubic", "--workers", "1"]
    for array in (slurm(1, 1, 2), slurm(2, 1, 2), {}):
        done = subprocess.run(words, env=os.environ | path | array, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in (world / "out").glob("summary*.html")) == [
        "summary-1-of-2.html",
        "summary-2-of-2.html",
        "summary.html",
    ]
    assert sorted(states(world).values()) == ["kept"] * 4 + ["thin"]


def check_with_validator(folder):
    program = shutil.which(
        "bids-validator-deno", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    if program is None:
        pytest.skip("bids-validator-deno is not installed")
    said = subprocess.run([program, "--json", str(folder)], capture_output=True, text=True, check=False, timeout=120)
    issues = json.loads(said.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []


# ---- what people see


def test_the_overview_names_all_and_links_what_is_there(tmp_path):
    make_scan(tmp_path / "in" / "a <b>" / "ä scan.nii.gz")
    found = dataset.find_in_folder(tmp_path / "in", tmp_path / "out", orders(pages=True))
    bad = Outcome("bad & torn.nii.gz", "failed", "got <nothing>\tat all; need a scan")
    page = overview.write_overview(tmp_path / "out", "summary", found.jobs, [run_job(found.jobs[0]), bad], 2.0)
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
    assert [len(row.split("\t")) for row in rows] == [7, 7, 7]


@pytest.fixture
def latin(tmp_path):
    """A folder with a scan whose name is Latin-1, and so is that of a folder with a DICOM series."""
    folder = tmp_path / "in"
    make_scan(folder / "x.nii.gz")
    try:
        os.rename(folder / "x.nii.gz", os.fsencode(folder) + b"/M\xfcller.nii.gz")
        dicom_files.stack(folder / "series")
        os.rename(folder / "series", os.fsencode(folder) + b"/S\xe9rie")
    except OSError:
        pytest.skip("this file system knows UTF-8 alone")
    first = min((folder / os.fsdecode(b"S\xe9rie")).iterdir())
    first.rename(first.with_name(os.fsdecode(b"\xe9.dcm")))
    return folder


def test_names_that_are_no_utf_8(tmp_path, latin):
    from urllib.parse import unquote_to_bytes

    found = dataset.find_in_folder(latin, tmp_path / "out", orders(pages=True))
    outcomes = [run_job(one) for one in found.jobs]
    assert [(one.state, one.reason) for one in outcomes] == [("done", "")] * 2
    page = overview.write_overview(tmp_path / "out", "summary", found.jobs, outcomes, 1.0)
    assert "M\\udcfcller.nii.gz" in page.with_suffix(".tsv").read_text(encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    links = [unquote_to_bytes(part.split('"')[0]) for part in text.replace('src="', 'href="').split('href="')[1:]]
    assert len(links) == 8
    assert all(os.path.isfile(os.fsencode(tmp_path / "out") + b"/" + link) for link in links)


def test_a_run_survives_names_that_are_no_utf_8(world, latin):
    needs_engine()
    code, out, err = finish(start(world, "--workers", "2"))
    assert (code, err) == (0, "")
    assert out.count(": computed, ") == 2
    assert sorted(states(world)) == ["M\\udcfcller.nii.gz", "S\\udce9rie"]


def test_the_page_stays_small(tmp_path):
    many = [Outcome(f"{index}.nii.gz", "failed", "got nothing") for index in range(overview.MOST_ROWS + 5)]
    text = overview.write_overview(tmp_path, "summary", [], many, 1.0).read_text()
    assert "and 5 more" in text
    assert len((tmp_path / "summary.tsv").read_text().splitlines()) == len(many) + 1


def test_progress_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    outcome = Outcome("a.nii.gz", "done", "", 2.0, 0.5, 1.0, "6 x 4 mm -> 24 x 1 mm")
    with cli._ProgressLines(quiet=False) as lines:
        lines.after(batch.Progress(1, 4, outcome, 200.0))
        lines.after(batch.Progress(2, 4, replace(outcome, state="kept"), None))
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "1/4 a.nii.gz: computed, 6 x 4 mm -> 24 x 1 mm, 2.0 s, agrees to 0.5 % RMS",
        "2/4 a.nii.gz: kept, computed earlier, 6 x 4 mm -> 24 x 1 mm, agrees to 0.5 % RMS",
    ]
    assert "1 of 4, about 3 min left" in said.err
    assert said.err.endswith("2 of 4\r\x1b[K")


@pytest.mark.parametrize(
    "words", [("--factor", "-1"), ("--factor", "1"), ("--spacing", "0"), ("--thickness", "nan"), ("--in-plane", "0")]
)
def test_what_is_wrong_for_all_scans_is_told_once(tmp_path, run, words):
    needs_engine()
    for name in ("a.nii.gz", "b.nii.gz"):
        make_scan(tmp_path / "in" / name)
    code, out, err = run("batch", "-i", tmp_path / "in", "-o", tmp_path / "out", "--workers", "1", *words)
    assert (code, out, len(err)) == (2, [], 1)
    assert words[0] in err[0]
    assert not (tmp_path / "out").exists()


def test_a_run_says_at_once_what_it_is_about_to_do(world):
    needs_engine()
    make_scan(world / "in" / "a.nii.gz")
    code, out, _ = finish(start(world, "--workers", "1"))
    assert (code, out.splitlines()[0]) == (0, "0 of 1, 1 worker")


def test_waiting_for_workers_is_said(world):
    needs_engine()
    make_scan(world / "in" / "a.nii.gz")
    from distributed import LocalCluster

    with LocalCluster(n_workers=0, dashboard_address=None, silence_logs=60) as cluster:
        process = start(world, "--scheduler", cluster.scheduler_address)
        assert process.stdout.readline().startswith("0 of 1, waiting for workers of tcp://")
        cluster.scale(1)
        assert finish(process)[0] == 0


@pytest.mark.parametrize("found", [None, "0.0.1"])
def test_a_worker_that_cannot_help_is_named(world, scheduler, found):
    """It comes late, when others have done a part; nothing hangs, and what is done stays."""
    for index in range(4):
        make_scan(world / "in" / f"slow{index}.nii.gz")
    (world / "other").mkdir()
    (world / "other" / "sitecustomize.py").write_text(FOREIGN.format(found=found))
    ours = scheduler.worker()
    process = start(world, "--scheduler", scheduler.address)
    wait_for_log(world, 3)
    ours.kill()
    time.sleep(2)
    scheduler.worker({"PYTHONPATH": str(world / "other")})
    code, out, err = finish(process)
    assert code == 2
    assert err.startswith("thinslice: got a worker that cannot help (tcp://"), err
    assert len(err.splitlines()) == 1
    assert "waiting for workers" in out
    assert set(states(world).values()) == {"done", "left"}


FOREIGN = """
import importlib.metadata, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "thinslice" and {found!r} is None:
            raise ModuleNotFoundError("No module named 'thinslice'")
sys.meta_path.insert(0, Finder())
real = importlib.metadata.version
def version(name):
    if name != "thinslice":
        return real(name)
    if {found!r} is None:
        raise importlib.metadata.PackageNotFoundError(name)
    return {found!r}
importlib.metadata.version = version
"""
"""A machine without thinslice, or with another version of it."""


def test_lengths_of_time():
    assert [cli._duration(seconds) for seconds in (5, 119, 121, 7300, 2e5)] == ["5 s", "119 s", "2 min", "2 h", "2 d"]


def test_the_time_left_counts_what_has_to_be_computed(monkeypatch, tmp_path):
    for name, size in (("a", 100), ("b", 300), ("c", 600)):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{name}.nii.gz").write_bytes(bytes(size))
    now = [0.0]
    monkeypatch.setattr(batch, "perf_counter", lambda: now[0])
    jobs = [make_job(tmp_path, f"{name}.nii.gz") for name in "abc"]
    clock = batch._Clock(jobs)
    assert clock.after(jobs[0], Outcome("a.nii.gz", "kept")).seconds_left is None
    now[0] = 30.0
    assert clock.after(jobs[1], Outcome("b.nii.gz", "done")).seconds_left == pytest.approx(60)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["a", "b"], "participant"),
        (["a", "b", "group"], "participant"),
        (["a", "b", "participant", "-o", "c"], "without -i and -o"),
        (["-i", "a"], "-o DIR"),
        (["-i", "a", "-o", "b", "--participant-label", "01"], "leave it out"),
        (["-i", "a", "-o", "b", "--workers", "0"], "--workers"),
        (["-i", "a", "-o", "b", "--workers", "2", "--scheduler", "tcp://x:1"], "not allowed"),
    ],
)
def test_wrong_words_are_refused(run, words, told):
    code, out, err = run("batch", *words)
    assert (code, out, len(err)) == (2, [], 1)
    assert told in err[0]
