"""One scan of a data set: what is done once is kept, what is changed is done again, and nothing is half there."""

import errno
import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

import thinslice
from data_sets import CUBIC, make_job, orders, with_page
from faults import catches
from make_scans import make_voxels, save_scan
from model_files import with_card
from test_cli import make_scan, raising
from thick_scans import save_start, save_thick
from thinslice.datasets import find, job
from thinslice.datasets.job import run_job
from thinslice.errors import InputRefused, ModelRefused
from thinslice.io import atomic, nifti, nrrd
from thinslice.models.engine import EngineSettings
from thinslice.models.registry import EMBEDDED, find_model, identify
from thinslice.pipeline import enhance_volume
from thinslice.reports.report_page import write_report_page
from thinslice.settings import Settings
from thinslice.volume import Volume


@pytest.fixture
def scan(tmp_path):
    return make_scan(tmp_path / "in" / "scan.nii.gz")


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


@catches("datasets/job.py", "found = _hash_of_scan(job.source)", "found = job.source.name")
@catches("datasets/job.py", "return _joined([_sha256(path), *facts])", "return _joined([_sha256(path)])")
@catches("datasets/job.py", 'job.destination.stat().st_size != record["answer_bytes"]', "not job.destination.exists()")
def test_what_has_changed_is_done_again(tmp_path, scan):
    def outcome(**more):
        return run_job(make_job(tmp_path, **more)).state

    assert outcome() == "done"
    shutil.copy2(scan, scan.with_name("copy.nii.gz"))
    scan.with_name("copy.nii.gz").replace(scan)
    assert outcome() == "kept", "the same bytes in another file are the same scan"
    scan.with_suffix("").with_suffix(".json").write_text('{"SliceThickness": 3}')
    assert outcome() == "done", "the JSON beside the scan tells the thickness"
    assert outcome(settings=replace(CUBIC, factor=2.0)) == "done"
    assert outcome(settings=replace(CUBIC, factor=2.0)) == "kept"
    assert outcome(settings=Settings(model="linear")) == "done"
    size = scan.stat().st_size
    volume = nifti.read(scan)
    nifti.write(replace(volume, voxels=volume.voxels + np.int16(1)), scan)
    assert abs(scan.stat().st_size - size) < 200
    assert outcome(settings=Settings(model="linear")) == "done", "other voxels under the same name"
    answer = tmp_path / "out" / "scan.nii.gz"
    answer.write_bytes(answer.read_bytes()[:-9])
    assert outcome(settings=Settings(model="linear")) == "done", "an answer that was cut off"
    answer.unlink()
    assert outcome(settings=Settings(model="linear")) == "done", "an answer that is gone"
    assert outcome(settings=Settings(model="linear")) == "kept"
    assert outcome(settings=Settings(model="linear"), redo=True) == "done"


@catches(
    "datasets/job.py",
    '"model_sha256": job.model_sha256,',
    '"model_sha256": None,',
)
def test_another_model_of_the_same_name_does_it_again(tmp_path, scan):
    pytest.importorskip("torch")
    file = save_start(tmp_path / "model.onnx", seed=1, loud=1.0)
    settings = Settings(model=str(file))
    assert run_job(make_job(tmp_path, settings=settings)).state == "done"
    assert run_job(make_job(tmp_path, settings=settings)).state == "kept"
    old = identify(str(file))
    save_start(file, seed=2, loud=1.0)
    assert run_job(make_job(tmp_path, settings=settings)).state == "done"
    stale = run_job(
        make_job(tmp_path, settings=replace(settings, factor=2.0), model_sha256=old, engine=EngineSettings(threads=3))
    )
    assert stale.state == "refused", "a worker that finds another file than the run was started with"
    assert "sha256" in stale.reason


def test_a_model_is_loaded_once_for_all_scans_of_a_process(tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(job, "models_for", lambda *words: loaded.append(words) or job_models(*words))
    job_models = thinslice.models.registry.models_for
    job._models.cache_clear()
    for index in range(3):
        make_scan(tmp_path / "in" / f"scan{index}.nii.gz")
        assert run_job(make_job(tmp_path, f"scan{index}.nii.gz")).state == "done"
    assert len(loaded) == 1


@catches("datasets/job.py", "    if target.parent == job.destination.parent:\n", "    if True:\n")
@catches("datasets/find.py", "engine=orders.engine,", "engine=EngineSettings(threads=2),")
@pytest.mark.parametrize(("threads", "each", "at_once"), [(1, 1, 1), (2, 1, 2), (8, 4, 2)])
def test_the_threads_of_a_worker_are_shared_out(tmp_path, scan, monkeypatch, threads, each, at_once):
    asked = []
    real, job_models = job.enhance_volume, thinslice.models.registry.models_for
    monkeypatch.setattr(job, "models_for", lambda *words: asked.append(words[1].threads_per_call) or job_models(*words))
    monkeypatch.setattr(
        job, "enhance_volume", lambda *words, **more: asked.append(words[2].workers) or real(*words, **more)
    )
    job._models.cache_clear()
    (one,) = find.find_in_folder(tmp_path / "in", tmp_path / "out", orders(engine=EngineSettings(threads=threads))).jobs
    assert run_job(one).state == "done"
    assert asked == [each, at_once]


@catches("datasets/job.py", "    if torn or job.redo:\n", "    if True:\n")
def test_what_another_program_wrote_is_not_replaced(tmp_path, scan):
    theirs = tmp_path / "out" / "scan.nii.gz"
    make_scan(theirs)
    before = theirs.read_bytes()
    outcome = run_job(make_job(tmp_path))
    assert outcome.state == "failed"
    assert "`overwrite=True`" in outcome.reason
    assert theirs.read_bytes() == before
    assert os.listdir(tmp_path / "out") == ["scan.nii.gz"]
    assert run_job(make_job(tmp_path, redo=True)).state == "done"


@catches("datasets/job.py", "return (stage / _MOVING).exists()", "return stage.exists()")
def test_what_a_dead_run_left_gives_no_right_to_the_files_of_others(tmp_path, scan):
    """Their file came after a run that was killed while it computed."""
    one = make_job(tmp_path)
    one.stage.mkdir(parents=True)
    (one.stage / "scan.nii.gz").write_bytes(b"half")
    theirs = make_scan(tmp_path / "out" / "scan.nii.gz")
    before = theirs.read_bytes()
    outcome = run_job(one)
    assert (outcome.state, "need a free name" in outcome.reason) == ("failed", True)
    assert theirs.read_bytes() == before


@catches("datasets/job.py", "return beside | parts", "return beside | dict(reversed(parts.items()))")
@catches("datasets/job.py", "            job.sidecar.unlink(missing_ok=True)\n", "")
@catches("datasets/job.py", '        (stage / _MOVING).write_text(" ".join(sorted(ours | job.wanted)))\n', "")
@pytest.mark.parametrize("until", [0, 1, 2])
def test_a_run_that_dies_between_the_renames_is_made_whole(tmp_path, scan, monkeypatch, until):
    """Died after so many of three: the picture, the answer, the JSON. What is there then is never taken for done."""
    assert run_job(make_job(tmp_path, settings=replace(CUBIC, factor=2.0))).state == "done"

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
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path, scan, monkeypatch, number):
    monkeypatch.setattr(atomic.fcntl, "flock", raising(OSError(number, os.strerror(number))))
    assert run_job(make_job(tmp_path)).state == "done"
    assert sorted(os.listdir(tmp_path / "out")) == ["scan.json", "scan.nii.gz", "scan.png"]


def test_a_scan_that_is_elsewhere(tmp_path):
    """As the files of a DataLad data set whose contents have not been fetched."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "scan.nii.gz").symlink_to(tmp_path / "annex" / "key")
    outcome = run_job(make_job(tmp_path))
    assert outcome.state == "failed"
    assert "check links" in outcome.reason


@catches(
    "datasets/job.py",
    "    if series is None and os.path.exists(job.source) and not os.path.isfile(job.source):",
    "    if False:",
)
def test_what_is_no_file_is_named(tmp_path):
    """To open a pipe waits until somebody writes, here at once, else for ever."""
    (tmp_path / "in").mkdir()
    pipe = tmp_path / "in" / "scan.nii.gz"
    os.mkfifo(pipe)
    Thread(target=lambda: pipe.open("wb").close(), daemon=True).start()
    outcome = run_job(make_job(tmp_path))
    assert (outcome.state, outcome.reason.split(";")[0]) == ("failed", "got scan.nii.gz, which is no file")


@catches("datasets/job.py", "THICK_FROM = 1.4", "THICK_FROM = 1.5")
@pytest.mark.parametrize(
    ("model", "spacing", "slices", "state"),
    [
        ("cubic", 1.35, 10, "thin"),
        ("cubic", 1.45, 10, "done"),
        ("default", 1.5, 7, "done"),  # the network is valid from 1.5 on, and 10 slices of 7 are less: 11 are made
        ("default", 1.55, 10, "done"),
        ("planes-mr", 1.35, 10, "thin"),
        ("planes-mr", 1.45, 10, "done"),  # the nearest of its factors is 2
    ],
)
def test_where_thick_begins(tmp_path, model, spacing, slices, state):
    """1.4 times the coarser side of a pixel; a network makes more slices where its envelope begins later."""
    make_scan(tmp_path / "in" / "scan.nii.gz", spacing_mm=(0.5, 1.0, spacing), shape=(20, 24, slices))
    outcome = run_job(make_job(tmp_path, settings=Settings(model=model)))
    assert outcome.state == state, outcome.reason
    assert (tmp_path / "out").exists() == (state == "done"), "nothing is left where nothing came of it"


@pytest.mark.parametrize(
    ("smallest", "spacing", "state"), [(1.2, 1.3, "done"), (1.2, 1.1, "thin"), (3.0, 2.0, "done"), (3.0, 3.0, "done")]
)
def test_the_smallest_factor_is_that_of_the_model_that_is_used(tmp_path, smallest, spacing, state):
    envelope = find_model("default").card["envelope"] | {"factor": [smallest, 10.0]}
    path = with_card(tmp_path / "mine.onnx", envelope=envelope)
    make_scan(tmp_path / "in" / "scan.nii.gz", spacing_mm=(1.0, 1.0, spacing), shape=(20, 24, 10))
    outcome = run_job(make_job(tmp_path, settings=Settings(model=str(path))))
    assert outcome.state == state, outcome.reason


def test_parts_are_made_where_they_will_lie(tmp_path, scan, monkeypatch):
    """Pictures and pages may be on another disk, by way of a link, to which nothing can be renamed."""
    one = make_job(tmp_path, thumbnail=tmp_path / "far" / "scan.png", **with_page(tmp_path / "far" / "scan.html"))
    real = os.replace

    def replaced(part, target):
        assert tmp_path / "far" in Path(part).parents or Path(target).parent != tmp_path / "far", "another disk"
        real(part, target)

    monkeypatch.setattr(job.os, "replace", replaced)
    assert run_job(one).state == "done"
    assert sorted(os.listdir(tmp_path / "far")) == ["scan.html", "scan.png"]


def test_what_is_half_made_elsewhere_is_removed(tmp_path, scan, monkeypatch):
    one = make_job(tmp_path, thumbnail=tmp_path / "far" / "scan.png")
    monkeypatch.setattr(job, "_save_json", raising(OSError(28, "No space left on device")))
    assert run_job(one).state == "failed"
    assert os.listdir(tmp_path / "far") == []
    job._part(one, one.thumbnail).write_bytes(b"half")
    one.stage.mkdir(parents=True)
    job.clean_up(one)
    assert os.listdir(tmp_path / "far") == []
    assert not list((tmp_path / "out").rglob("*"))


@catches("datasets/job.py", "    _sweep(job)\n    _remove(stage)\n", "    _remove(stage)\n")
def test_what_a_dead_run_left_elsewhere_is_removed_by_the_next(tmp_path, scan):
    """Of a page, though the next run makes none; whether it computes or keeps."""
    page = tmp_path / "far" / "scan.html"
    one = make_job(tmp_path, thumbnail=tmp_path / "far" / "scan.png", **with_page(page, is_wanted=False))
    for state in ("done", "kept"):
        page.parent.mkdir(exist_ok=True)
        job._part(one, page).write_bytes(b"half")
        job._part(one, one.thumbnail).write_bytes(b"half")
        assert run_job(one).state == state
        assert os.listdir(page.parent) == ["scan.png"]


@catches(
    "datasets/job.py",
    "(beside.is_file() or beside.is_symlink())",
    "beside.is_file()",
)
def test_a_json_that_is_elsewhere_is_named(tmp_path, scan):
    """As in a DataLad data set: it may tell the slice thickness."""
    scan.with_name("scan.json").symlink_to(tmp_path / "annex" / "key")
    outcome = run_job(make_job(tmp_path))
    assert outcome.state == "failed"
    assert "scan.json" in outcome.reason


@catches("io/atomic.py", "return os.path.samestat(os.fstat(held), os.stat(path))", "return True")
def test_a_lock_that_was_removed_is_no_lock(tmp_path):
    """Who waited for it while its holder removed it takes a new one, which others see."""
    lock, seen = tmp_path / ".lock", []

    def wait():
        with atomic.hold_lock(lock):
            seen.append(lock.exists())

    with atomic.hold_lock(lock):
        waiting = Thread(target=wait)
        waiting.start()
        time.sleep(0.3)
        assert not seen
    waiting.join(10)
    assert seen == [True]


def test_a_folder_that_another_process_removes_is_made_again(tmp_path, monkeypatch):
    real, gone = Path.mkdir, []

    def mkdir(self, *words, **more):
        real(self, *words, **more)
        if self == tmp_path / "out" and len(gone) < 3:
            gone.append(self)
            self.rmdir()

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with atomic.hold_lock(tmp_path / "out" / ".lock"):
        assert len(gone) == 3
    assert not (tmp_path / "out").exists()


def test_thin_scans_are_left_out_unless_more_is_wished(tmp_path):
    make_scan(tmp_path / "in" / "scan.nii.gz", spacing_mm=(1.0, 1.0, 1.2))
    assert run_job(make_job(tmp_path)).state == "thin"
    assert run_job(make_job(tmp_path, settings=replace(CUBIC, spacing_mm=0.6))).state == "done"


def test_every_kind_of_scan_has_a_picture(tmp_path):
    voxels = np.random.default_rng(0).normal(100, 20, (16, 14, 5, 2)).astype(np.float32)
    (tmp_path / "in").mkdir()
    save_scan(tmp_path / "in" / "series.nii.gz", voxels)
    assert run_job(make_job(tmp_path, "series.nii.gz")).state == "done"
    assert (tmp_path / "out" / "series.png").read_bytes()[1:4] == b"PNG"


def test_a_page_for_every_scan_on_request(tmp_path, scan):
    page = tmp_path / "out" / "pages" / "scan.html"
    assert run_job(make_job(tmp_path)).state == "done"
    assert run_job(make_job(tmp_path, **with_page(page))).state == "done"
    assert "<html" in page.read_text()[:200]
    assert run_job(make_job(tmp_path, **with_page(page))).state == "kept"


@catches("datasets/job.py", "                place.unlink(missing_ok=True)\n", "                pass\n")
def test_a_page_belongs_to_its_answer(tmp_path, scan):
    page = tmp_path / "out" / "pages" / "scan.html"

    def outcome(pages, **more):
        return run_job(make_job(tmp_path, **with_page(page, pages), **more)).state

    assert outcome(True) == "done"
    assert outcome(False) == "kept"
    assert page.exists(), "it still shows this answer"
    assert outcome(False, settings=replace(CUBIC, factor=2.0)) == "done"
    assert not page.exists(), "it showed another answer"
    page.write_text("a page of someone else")
    assert outcome(False, settings=replace(CUBIC, factor=3.0)) == "done"
    assert page.exists()
    assert outcome(True, settings=replace(CUBIC, factor=3.0)) == "done"
    page.write_text("cut off")
    assert outcome(True, settings=replace(CUBIC, factor=3.0)) == "done"


def test_a_picture_that_is_gone_is_made_again(tmp_path, scan):
    assert run_job(make_job(tmp_path)).state == "done"
    (tmp_path / "out" / "scan.png").unlink()
    assert run_job(make_job(tmp_path)).state == "done"
    (tmp_path / "out" / "scan.png").write_bytes(b"")
    assert run_job(make_job(tmp_path)).state == "done"
    assert (tmp_path / "out" / "scan.png").is_file()


@catches(
    "datasets/job.py",
    'if kept is not None and not (job.redo and kept.state == "kept"):',
    "if kept is not None and not job.redo:",
)
def test_a_job_that_is_repeated_within_a_run_counts_as_done(tmp_path, scan):
    """As when a worker dies with an outcome that the scheduler has not fetched; nothing is computed twice."""
    assert run_job(make_job(tmp_path, run="this", redo=True)).state == "done"
    before = (tmp_path / "out" / "scan.nii.gz").stat().st_ino
    assert run_job(make_job(tmp_path, run="this", redo=True)).state == "done"
    assert (tmp_path / "out" / "scan.nii.gz").stat().st_ino == before
    assert run_job(make_job(tmp_path, run="next")).state == "kept"


# ---- what enhance writes too


def with_everything(folder):
    """Where lies all that a job may make beside its answer, and a segmentation on the grid of the scan."""
    extras = {
        "page": folder / "out" / "reports" / "scan.html",
        "figure": folder / "out" / "figures" / "scan.png",
        "labels": folder / "out" / "scan_labels.nii.gz",
    }
    return {"extras": extras, "wanted": frozenset(extras), "labels": folder / "drawn" / "scan.nii.gz"}


def draw_labels(scan, folder, threshold=500):
    """A segmentation of whatever is bright."""
    volume = nifti.read(scan)
    drawn = replace(volume, voxels=(volume.voxels > threshold).astype(np.uint8), header=None)
    folder.mkdir(exist_ok=True)
    nifti.write(drawn, folder / "scan.nii.gz")


@catches("pipeline.py", "model, done.fell_back, done.clipped", "model, None, done.clipped")
def test_the_page_is_that_of_enhance(run, tmp_path, monkeypatch):
    """And so are figure and segmentation; with a network that the guard stops, which is to be seen on the page."""
    pytest.importorskip("torch")
    monkeypatch.setattr("thinslice.pipeline.perf_counter", lambda: 0.0)  # the page says how long it took
    scan = save_thick(tmp_path / "in" / "scan.nii.gz")
    draw_labels(scan, tmp_path / "drawn")
    settings = Settings(model=str(save_start(tmp_path / "model.onnx", loud=400.0)), profile="box")
    everything = with_everything(tmp_path)
    outcome = run_job(
        make_job(tmp_path, settings=settings, engine=EngineSettings(threads=os.cpu_count()), **everything)
    )
    assert (outcome.state, outcome.reason) == ("done", "")
    words = ["--model", settings.model, "--profile", "box", "--labels", tmp_path / "drawn" / "scan.nii.gz"]
    pages = ["--report", tmp_path / "alone.html", "--figure", tmp_path / "alone.png"]
    assert run("enhance", "-i", scan, "-o", tmp_path / "alone.nii.gz", *words, *pages)[0] == 0
    facts = json.loads((tmp_path / "alone.json").read_text())
    assert facts["guard"]["fell_back"] > 0
    made = everything["extras"]
    page = made["page"].read_bytes()
    assert page == (tmp_path / "alone.html").read_bytes()
    out = tmp_path / "alone.nii.gz"
    done = enhance_volume(nifti.read(scan), settings, find_model(settings.model), target=out, name=scan.name)
    for fell_back in (done.fell_back, None):
        write_report_page(tmp_path / "again.html", replace(done, fell_back=fell_back))
        assert ((tmp_path / "again.html").read_bytes() == page) == (fell_back is not None)
    assert made["figure"].read_bytes() == (tmp_path / "alone.png").read_bytes()
    assert made["labels"].read_bytes() == (tmp_path / "alone_labels.nii.gz").read_bytes()
    assert (tmp_path / "out" / "scan.nii.gz").read_bytes() == (tmp_path / "alone.nii.gz").read_bytes()


@catches("datasets/job.py", '{"labels_sha256": _hash_of_scan(_find_labels(job))}', '{"labels_sha256": ""}')
@catches("datasets/job.py", "if any(_sha256(job.extras[extra])", "if any(False and _sha256(job.extras[extra])")
def test_labels_and_figures_belong_to_their_answer(tmp_path, scan):
    everything = with_everything(tmp_path)
    labels, figure = everything["extras"]["labels"], everything["extras"]["figure"]
    draw_labels(scan, tmp_path / "drawn")

    def outcome(*wanted, **more):
        drawn = everything["labels"] if "labels" in wanted else None
        of_run = {"extras": everything["extras"], "wanted": frozenset(wanted), "labels": drawn}
        return run_job(make_job(tmp_path, **of_run, **more)).state

    assert outcome("labels", "figure") == "done"
    assert outcome("labels", "figure") == "kept"
    assert outcome() == "kept"
    assert labels.exists(), "they still belong to this answer"
    draw_labels(scan, tmp_path / "drawn", threshold=600)
    assert outcome("labels") == "done", "another segmentation"
    assert not figure.exists(), "an answer that was computed again"
    figure.parent.mkdir(exist_ok=True)
    labels.write_bytes(labels.read_bytes()[:-9])
    assert outcome("labels") == "done", "cut off"
    assert outcome(settings=replace(CUBIC, factor=2.0)) == "done"
    assert not labels.exists(), "they were drawn on the grid of another answer"
    labels.write_text("a segmentation of someone else")
    assert outcome("labels", settings=replace(CUBIC, factor=2.0)) == "failed"
    assert labels.read_text() == "a segmentation of someone else"
    assert outcome("labels", settings=replace(CUBIC, factor=2.0), redo=True) == "done"


def test_a_segmentation_may_have_another_format_and_must_be_there(tmp_path, scan):
    everything = with_everything(tmp_path)
    outcome = run_job(make_job(tmp_path, **everything))
    assert outcome.state == "failed"
    assert "scan.nii.gz" in outcome.reason
    assert not (tmp_path / "out").exists()
    draw_labels(scan, tmp_path / "drawn")
    nrrd.write(nifti.read(tmp_path / "drawn" / "scan.nii.gz"), tmp_path / "drawn" / "scan.nrrd")
    (tmp_path / "drawn" / "scan.nii.gz").unlink()
    assert run_job(make_job(tmp_path, **everything)).state == "done"


# ---- a record is understood


def change_record(tmp_path, change):
    path = tmp_path / "out" / "scan.json"
    content = json.loads(path.read_text())
    change(content["batch"])
    path.write_text(json.dumps(content))


@catches("datasets/job.py", 'record.get("settings", record.get("wish"))', 'record.get("settings")')
def test_a_record_of_the_first_version_is_understood(tmp_path, scan):
    """It called the settings a wish, and always told the slice profile."""
    first = {
        "spacing_mm": None,
        "factor": None,
        "thickness_mm": None,
        "profile": "gaussian",
        "grid": "fov",
        "in_plane": 1,
        "fuse": False,
        "projection": True,
    }
    settings = replace(CUBIC, profile="gaussian")
    assert run_job(make_job(tmp_path, settings=settings)).state == "done"

    def as_first(record):
        del record["settings"]
        record["wish"] = {"model": "cubic"} | first

    change_record(tmp_path, as_first)
    assert run_job(make_job(tmp_path, settings=settings)).state == "kept"
    assert run_job(make_job(tmp_path)).state == "done", "a profile that is not known is a box now"


@pytest.mark.parametrize("settings", [None, [], {"model": "cubic", "novel": 3}, {"model": "cubic", "factor": "four"}])
def test_a_record_that_is_not_understood_is_done_again(tmp_path, scan, settings):
    assert run_job(make_job(tmp_path)).state == "done"
    change_record(tmp_path, lambda record: record.update(settings=settings))
    assert run_job(make_job(tmp_path)).state == "done"


@catches("datasets/job.py", ' - {"settings"} | {"precision"}', ' - {"settings"}')
def test_a_network_of_another_precision_gives_another_answer(tmp_path, scan, monkeypatch):
    monkeypatch.setattr("thinslice.models.engine._OnnxRuntime.precisions", ("fp32", "fp16"))
    settings = Settings(model=str(EMBEDDED / "default.onnx"))
    sha256 = identify(settings.model)

    def done_in(precision, settings=settings, sha256=sha256):
        engine = EngineSettings(threads=1, precision=precision)
        return run_job(make_job(tmp_path, settings=settings, model_sha256=sha256, engine=engine)).state

    states = [done_in(precision) for precision in ("fp32", "fp16", "fp16", "fp32", "fp32")]
    assert states == ["done", "done", "kept", "done", "kept"]
    states = [done_in(precision, CUBIC, None) for precision in ("fp32", "fp16")]
    assert states == ["done", "kept"], "an interpolation runs no network"


# ---- where thick begins, and who moves at the same time


@catches("models/envelope.py", "return max(min(wanted, wanted if", "return wanted or max(min(wanted, wanted if")
@pytest.mark.parametrize(
    ("slices", "spacing", "state", "asked"),
    [
        (8, 1.45, "done", "done"),
        (10, 1.44, "done", "refused"),
        (10, 1.3, "thin", "refused"),
        (10, 10.6, "done", "refused"),
    ],
)
def test_thick_scans_get_the_nearest_factor_of_the_model(tmp_path, slices, spacing, state, asked):
    """The embedded one has 1.5 to 10: 8 slices 1.45 mm apart make 12 of 1 mm, but 10 slices 1.44 mm apart make 14."""
    voxels, affine = make_voxels((24, 20, slices)), np.diag([1.0, 1.0, spacing, 1.0])
    (tmp_path / "in").mkdir()
    save_scan(tmp_path / "in" / "scan.nii.gz", voxels, affine)
    assert run_job(make_job(tmp_path, settings=Settings())).state == state
    assert run_job(make_job(tmp_path, settings=Settings(spacing_mm=1.0))).state == asked


@catches("datasets/job.py", "        with locked_folders([job.destination.parent]):\n", "        if True:\n")
def test_a_job_waits_while_another_run_moves_its_files(tmp_path, scan):
    """As an enhance of the same scan that ends in the same instant."""
    done = Thread(target=run_job, args=(make_job(tmp_path),))
    (tmp_path / "out").mkdir()
    with atomic.locked_folders([tmp_path / "out"]):
        done.start()
        done.join(timeout=1.5)
        assert not (tmp_path / "out" / "scan.nii.gz").exists()
    done.join()
    assert (tmp_path / "out" / "scan.nii.gz").exists()


@catches("datasets/job.py", "        nonlocal torn\n        _check_free(job, torn)\n", "        nonlocal torn\n")
def test_what_another_program_writes_meanwhile_stays(tmp_path, scan, monkeypatch):
    real, theirs = job.enhance_volume, tmp_path / "out" / "scan.nii.gz"

    def enhance(*words, **more):
        theirs.write_text("mine")
        return real(*words, **more)

    monkeypatch.setattr(job, "enhance_volume", enhance)
    assert run_job(make_job(tmp_path)).state == "failed"
    assert theirs.read_text() == "mine"


@catches("datasets/job.py", "<= LONGEST_NAME_BYTES", "<= 300")
@pytest.mark.parametrize("letters", ["a" * 240, "ä" * 120])
def test_a_name_that_just_fits_is_long_enough(tmp_path, letters):
    """What lies hidden beside it has a longer one."""
    name = f"{letters}.nii.gz"
    make_scan(tmp_path / "in" / name)
    outcome = run_job(make_job(tmp_path, name, **with_page(tmp_path / "out" / "reports" / f"{letters}.html")))
    assert (outcome.state, outcome.reason) == ("done", "")
    assert set(os.listdir(tmp_path / "out")) == {f"{letters}.json", name, f"{letters}.png", "reports"}


@catches("datasets/job.py", "(reason := describe_labels(volume))", "(reason := None)")
def test_a_segmentation_is_left_alone_with_the_reason(tmp_path):
    drawn = np.zeros((24, 22, 9), np.float32)
    drawn[6:18, 5:17, 2:7] = 2
    nifti.write(Volume(drawn, np.diag([1.0, 1.0, 4.0, 1.0])), make_job(tmp_path).source)
    found = run_job(make_job(tmp_path))
    assert found.state == "labels"
    assert found.reason == ("its voxels form regions of whole numbers (0, 2); `labels` brings it along with its scan")
    assert not make_job(tmp_path).destination.exists()
