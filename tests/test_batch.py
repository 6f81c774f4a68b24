"""A data set is done by processes, and what dies takes nothing along.

The faults are real: processes are killed, disks are full, two runs meet. What a test needs to happen inside a worker
happens in an audit hook that Python starts with there (`HOOK`); the program knows nothing of it.
"""

import importlib.util
import json
import os
import re
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

import thinslice
from data_sets import make_job, make_latin, make_raw, tree
from faults import catches
from test_cli import make_labels, make_scan
from thinslice.cli.batch import _duration, _ProgressLines
from thinslice.compute.consistency import read_plan_beside
from thinslice.datasets import bids, engine
from thinslice.datasets.job import Outcome
from thinslice.errors import InputRefused
from thinslice.io import nifti
from thinslice.volume import Volume

pytestmark = pytest.mark.slow

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


@pytest.fixture
def raw(tmp_path):
    return make_raw(tmp_path / "raw")


@pytest.fixture
def latin(tmp_path):
    return make_latin(tmp_path / "in")


def start(folder, *words, deaf=False, **options):
    command = [sys.executable, "-m", "thinslice", "batch", "-i", "in", "-o", "out", "--model", "cubic", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, preexec_fn=lambda: _hears(deaf), **(pipes | options))


def _hears(deaf):
    """Ctrl-C and, unless it is deaf to that, the end of a terminal, whatever a shell or nohup has said to us."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN if deaf else signal.SIG_DFL)


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
        plan = read_plan_beside(folder / "out" / f"{stem}.nii.gz")
        assert nifti.read(folder / "out" / f"{stem}.nii.gz").shape == plan.shape_thin


# ---- in parts


def slurm(task, least, count, step=1):
    return {
        f"SLURM_ARRAY_TASK_{name}": str(n)
        for name, n in zip(("ID", "MIN", "COUNT", "STEP"), (task, least, count, step), strict=True)
    }


def test_which_shard():
    assert engine.read_shard(None, {}) == (1, 1)
    assert engine.read_shard("3/8", slurm(1, 1, 4)) == (3, 8)
    assert [engine.read_shard(None, slurm(task, 0, 3)) for task in range(3)] == [(1, 3), (2, 3), (3, 3)]
    assert [engine.read_shard(None, slurm(task, 1, 3, 5)) for task in (1, 6, 11)] == [(1, 3), (2, 3), (3, 3)]
    for wrong in ("0/3", "4/3", "1", "a/b", "-1/3", "1/2/3"):
        with pytest.raises(InputRefused, match="`shard="):
            engine.read_shard(wrong, {})
    with pytest.raises(InputRefused, match="even steps"):
        engine.read_shard(None, slurm(17, 1, 3))


def test_workers_fit_the_memory():
    assert engine.choose_workers(8, 64 << 30) == 8
    assert engine.choose_workers(8, 5 << 30) == 2
    assert engine.choose_workers(2, 1 << 30) == 1


# ---- the engine, with real processes


@catches("datasets/engine.py", "memory_limit=0,", 'memory_limit="auto",')
def test_a_worker_may_use_all_the_memory_of_the_machine():
    """Dask would end it at 95 % of its share, even where nothing runs beside it."""
    needs_engine()
    with engine._client(engine.Engine(2)) as client:
        client.wait_for_workers(2)
        until = time.monotonic() + 20
        while len(client.cluster.workers) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        watched = [nanny.memory_manager for nanny in client.cluster.workers.values()]
        assert len(watched) == 2
        assert not any(one.memory_limit and one.memory_terminate_fraction for one in watched)


@catches("datasets/engine.py", "security=True,", "security=None,")
def test_nobody_else_gives_the_workers_orders():
    needs_engine()
    from distributed import Client

    with engine._client(engine.Engine(1)) as client:
        address = client.scheduler.address
        assert address.startswith("tls://")
        for other in (address, address.replace("tls", "tcp")):
            with pytest.raises((OSError, TypeError, ValueError)):
                Client(other, timeout="2s")


@catches("datasets/engine.py", 'sys.stderr = open(os.devnull, "w")', "pass")
def test_a_worker_that_dies_of_the_end_of_a_run_prints_no_traceback():
    code = """
import multiprocessing
from thinslice.datasets.engine import dask_setup

def worker():
    dask_setup(None)
    raise RuntimeError("ConnectionPool is closed")

process = multiprocessing.get_context("fork").Process(target=worker)
process.start()
process.join()
print(process.exitcode)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("1\n", "")


@catches("datasets/engine.py", "    if isinstance(error, KilledWorker):\n        return None\n", "")
@catches("cli/batch.py", " and not any(one.state in bad for one in self.outcomes)", "")
@catches(
    "datasets/engine.py",
    "            suspects.append(job)\n",
    "            end(job, Outcome(job.name, 'failed', 'died'))\n",
)
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


def test_figures_pages_and_segmentations_on_request(world):
    needs_engine()
    make_scan(world / "in" / "a" / "x.nii.gz")
    make_labels(world / "drawn" / "a" / "x.nii.gz")
    code, _, err = finish(start(world, "--workers", "1", "--labels", "drawn", "--figures", "--reports"))
    assert (code, err) == (0, "")
    made = ("figures/a/x.png", "reports/a/x.html", "a/x_labels.nii.gz")
    assert [(world / "out" / name).is_file() for name in made] == [True] * 3
    page = (world / "out" / "summary.html").read_text()
    assert [f'href="{name}"' in page for name in made] == [True] * 3


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


@catches("datasets/engine.py", '"1" if logger.isEnabledFor(logging.DEBUG) else ""', '""')
def test_what_workers_do_is_shown_on_request(world):
    needs_engine()
    make_scan(world / "in" / "scan.nii.gz")
    # Whatever an earlier run, or another program, has left in the environment.
    code, _, err = finish(start(world, "--workers", "1", "--debug", env={**os.environ, "THINSLICE_DEBUG": ""}))
    assert code == 0
    assert re.search(r"\[\d+\] thinslice\.compute\.upsample: \d+ slabs in chunks of", err), err


def test_a_device_that_is_not_known_is_refused_once(world):
    needs_engine()
    for name in ("one.nii.gz", "two.nii.gz"):
        make_scan(world / "in" / name)
    code, _, err = finish(start(world, "--model", "default", "--device", "abacus"))
    assert (code, err.count("abacus")) == (2, 1)
    assert not (world / "out").exists(), "before any scan is looked for"


@catches("cli/batch.py", "for name in rest]", "for name in rest[:0]]")
def test_an_interrupted_run_sums_up_what_was_done(world):
    """And what fails is told when it fails, not at the end."""
    needs_engine()
    for name in ("slow0.nii.gz", "slow1.nii.gz", "slow2.nii.gz"):
        make_scan(world / "in" / name)
    (world / "in" / "a.nii.gz").write_bytes(b"torn")
    process = start(world, "--workers", "1")
    assert process.stderr.readline().startswith("thinslice: a.nii.gz: got a text")
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


@catches("datasets/engine.py", "        with _held_back(forget=sys.exc_info()[0] is not None):", "        if True:")
@catches("datasets/engine.py", "while forget and signal.sigtimedwait", "while False and signal.sigtimedwait")
@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.3, 0.6])
def test_ctrl_c_twice(world, seconds):
    needs_engine()
    for index in range(3):
        make_scan(world / "in" / f"slow{index}.nii.gz")
    process = start(world, "--workers", "2", start_new_session=True)
    wait_for_log(world, 2)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(seconds)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    pressed = time.monotonic()
    code, _, err = finish(process)
    assert (code, len(err.splitlines())) == (130, 1), err
    assert time.monotonic() - pressed < 9, "an engine that is left half ended is waited for, ten seconds"
    until = time.monotonic() + 20
    while started_by(process.pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not started_by(process.pid)


@catches("datasets/engine.py", "                        clean_up(job)\n", "                        pass\n")
def test_an_interruption_removes_what_was_begun(world):
    """The worker is in the middle of a scan that takes long, and is ended there."""
    needs_engine()
    os.environ["TEST_SECONDS"] = "100"
    make_scan(world / "in" / "a" / "slow.nii.gz")
    process = start(world, "--workers", "1")
    wait_for_log(world)
    assert list((world / "out").rglob(".thinslice-*"))
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert (code, len(err.splitlines())) == (130, 1), err
    assert not list((world / "out").rglob(".thinslice-*"))


def test_names_give_no_orders_to_the_terminal(world):
    needs_engine()
    make_scan(world / "in" / "one\ntwo\x1b[31m.nii.gz")
    code, out, err = finish(start(world, "--workers", "1"))
    assert (code, err) == (0, "")
    assert "1/1 one two?[31m.nii.gz: computed," in out
    assert "\x1b" not in out


@catches(
    "datasets/engine.py", "signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM}", "signal.SIG_BLOCK, {signal.SIGTERM}"
)
@pytest.mark.parametrize("seconds", [0.0, 0.2, 0.6])
@pytest.mark.parametrize("killer", [signal.SIGINT, signal.SIGTERM])
def test_a_run_is_interrupted_while_workers_start(world, killer, seconds):
    needs_engine()
    if not Path("/proc/self/task").exists():
        pytest.skip("processes are looked up in /proc")
    make_scan(world / "in" / "slow.nii.gz")
    process = start(world, "--workers", "2", start_new_session=True)
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


@catches("cli/terminal.py", '*([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])', "")
@pytest.mark.parametrize("killer", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_killed_goes_on(world, killer):
    needs_engine()
    scans = [f"slow{index}.nii.gz" for index in range(4)]
    for name in scans:
        make_scan(world / "in" / name)
    process = start(world, "--workers", "1", start_new_session=True)
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


@catches("io/atomic.py", "fcntl.LOCK_EX | (0", "fcntl.LOCK_SH | (0")
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


@pytest.mark.root
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


@catches(
    "cli/batch.py",
    "        except (OSError, ValueError) as error:\n            self.complain(reason_of(error))\n",
    "        except (OSError, ValueError) as error:\n            raise error\n",
)
@pytest.mark.root
def test_a_disk_that_is_full_to_the_end_is_told(world):
    """No room for any answer, nor for the summary, nor for a log: the run goes on to the end, and says what it can."""
    needs_engine()
    for name in ("one.nii.gz", "two.nii.gz"):
        make_scan(world / "in" / name)
    with small_disk(world / "out", "64k"):
        (world / "out" / "other").write_bytes(bytes(48 << 10))
        with suppress(OSError):
            (world / "out" / "rest").write_bytes(bytes(64 << 10))
        code, out, err = finish(start(world, "--workers", "1"))
        assert code == 2
        assert [line for line in out.splitlines() if line.split()[0] in ("failed", "scans")] == [
            "failed  2",
            "scans   2",
        ]
        assert err.count("No space left") == 4, "two scans, the table and the page"
        assert sorted(os.listdir(world / "out")) == ["other", "rest"]


@catches("cli/batch.py", "_if_heard(redraw, line, sys.stderr)", "redraw(line)")
def test_a_terminal_that_is_closed(world):
    """The end of a window, and one that ignores the hang-up, as after disown: the latter goes on to the end."""
    needs_engine()
    pty = pytest.importorskip("pty")
    scans = [f"slow{index}.nii.gz" for index in range(4)]
    for name in scans:
        make_scan(world / "in" / name)
    for ignored in (True, False):
        ours, theirs = pty.openpty()
        words = ("--overwrite", "--workers", "1")
        process = start(world, *words, start_new_session=True, stdout=theirs, stderr=theirs, deaf=ignored)
        os.close(theirs)
        wait_for_log(world, 3)
        os.close(ours)
        if not ignored:
            os.killpg(process.pid, signal.SIGHUP)
        assert process.wait(120) == (0 if ignored else 130)
        assert set(states(world)) == set(scans)
        assert set(states(world).values()) == ({"done"} if ignored else {"done", "left"})
        (world / "log").unlink()


@catches(
    "datasets/engine.py",
    "            if not _has_landed(landing):\n                continue\n",
    "            while not _has_landed(landing):\n                pass\n",
)
def test_workers_that_come_late_get_scans_at_once(monkeypatch, tmp_path):
    """Before any has ended."""
    needs_engine()
    import distributed

    rooms, flying, asked = iter([2, 2, 2]), [], []
    monkeypatch.setattr(distributed, "as_completed", lambda **settings: Landing())
    monkeypatch.setattr(engine, "_COUNT_SECONDS", 0.01)

    class Landing:
        def add(self, future):
            flying.append(future)

        def has_ready(self):
            asked.append(len(flying))
            if len(asked) > 99:
                raise OSError("too late")
            return len(flying) == 5

        def __next__(self):
            raise OSError("enough")

    class Client:
        def submit(self, *words, **more):
            return object()

    jobs = [make_job(tmp_path, f"{index}.nii.gz") for index in range(9)]
    with pytest.raises(engine._OutOfReach, match="enough"):
        list(engine._each(Client(), jobs, lambda: next(rooms, 5)))


@catches("cli/batch.py", "    except OSError:\n        os.dup2", "    except KeyError:\n        os.dup2")
def test_nobody_listens(world):
    """As with | head -1, or a log on a full disk."""
    needs_engine()
    scans = [f"{index}.nii.gz" for index in range(3)]
    for name in scans:
        make_scan(world / "in" / name)
    with open("/dev/full", "w") as full:
        process = start(world, "--workers", "1", stdout=full)
        assert finish(process)[::2] == (0, "")
    assert states(world) == dict.fromkeys(scans, "done")
    process = start(world, "--workers", "1", "--overwrite")
    process.stdout.close()
    process.stdout = None
    assert finish(process)[::2] == (0, "")
    check_whole(world, scans)


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

    def worker(self, *words, environment=None):
        words = words or ("--nthreads", "1", "--no-nanny")
        limits = ("--death-timeout", "20")
        return self._start("worker", self.address, *words, *limits, env=os.environ | (environment or {}))

    def _start(self, what, *words, **options):
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", *map(str, words), "--no-dashboard"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.processes.append(subprocess.Popen(command, **quiet, **options))
        return self.processes[-1]


@pytest.fixture
def scheduler(world, monkeypatch, request):
    needs_engine()
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "2s")
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", getattr(request, "param", "3"))
    one = Scheduler(world)
    yield one
    for process in reversed(one.processes):  # the workers take their leave of a scheduler that is there
        process.terminate()
        process.wait()


@catches("datasets/engine.py", "lambda: min(1, crew.room())", "crew.room")
@pytest.mark.parametrize("scheduler", ["0"], indirect=True)
def test_a_scan_that_dies_of_its_neighbour_is_done_alone(world, scheduler):
    """Both are in one process; it dies, and both are set aside at once."""
    for name in ("poison.nii.gz", "slow.nii.gz"):
        make_scan(world / "in" / name)
    scheduler.worker("--nthreads", "2", "--nworkers", "1", "--nanny")
    code, _, err = finish(start(world, "--scheduler", scheduler.address))
    assert code == 2, err
    assert states(world) == {"poison.nii.gz": "failed", "slow.nii.gz": "done"}


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


@catches("cli/batch.py", "        self._describe()\n        done = ", "        done = ")
def test_a_run_that_was_killed_leaves_a_data_set(world, raw):
    needs_engine()
    words = [sys.executable, "-m", "thinslice", "batch", raw, world / "out", "participant", "--workers", "1"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen([*map(str, words), "--model", "cubic"], **options)
    assert process.stdout.readline().startswith("0 of ")
    process.kill()
    process.communicate()
    assert not list((world / "out").glob("summary*"))
    assert "thinslice" in (world / "out" / "dataset_description.json").read_text()


def test_what_was_left_unfinished_is_a_data_set_too(world, raw):
    """Nothing was computed, or the run was killed; what others wrote into the output stays."""
    needs_engine()
    words = [sys.executable, "-m", "thinslice", "batch", raw, world / "out", "participant", "--workers", "1"]
    (world / "out").mkdir()
    (world / "out" / "README.md").write_text("Mine.")
    (world / "out" / ".bidsignore").write_text("mine\n")
    options = ["--model", "cubic", "--spacing", "9", "--reports"]
    done = subprocess.run([*map(str, words), *options], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert not list((world / "out").rglob("*.nii.gz"))
    assert not (world / "out" / "README").exists()
    assert (world / "out" / ".bidsignore").read_text().splitlines() == ["mine", *bids.IGNORED]
    check_with_validator(world / "out")


@pytest.mark.parametrize("file", ["batch.sbatch"])
def test_the_example_for_slurm(world, raw, file):
    """With srun and thinslice by other means: two tasks of an array do all images, and a last run sums up."""
    needs_engine()
    script = Path(__file__).parents[1] / "docs" / file
    if not script.exists():
        pytest.skip("the documentation is not here")
    for name, line in (
        ("srun", 'test "$1" = --cpus-per-task=4 && shift && exec "$@"'),
        ("thinslice", f'exec "{sys.executable}" -m thinslice "$@"'),
    ):
        (world / "hook" / name).write_text(f"#!/bin/sh\n{line}\n")
        (world / "hook" / name).chmod(0o755)
    path = {"PATH": f"{world / 'hook'}{os.pathsep}{os.environ['PATH']}"}
    words = ["bash", script, raw, world / "out", "--model", "cubic", "--workers", "1"]
    cores = {"SLURM_CPUS_PER_TASK": "4"}
    for array in (slurm(1, 1, 2), slurm(2, 1, 2), {}):
        done = subprocess.run(words, env=os.environ | path | cores | array, capture_output=True, text=True, check=False)
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


def test_a_run_survives_names_that_are_no_utf_8(world, latin):
    needs_engine()
    code, out, err = finish(start(world, "--workers", "2"))
    assert (code, err) == (0, "")
    assert out.count(": computed, ") == 2
    assert sorted(states(world)) == ["M\\udcfcller.nii.gz", "S\\udce9rie"]


def test_progress_in_a_log(capsys):
    outcome = Outcome("a.nii.gz", "done", "", 2.0, 0.5, 1.0, "6 x 4 mm -> 24 x 1 mm")
    with _ProgressLines(quiet=False) as lines:
        lines.after(engine.Progress(1, 2, outcome, 200.0))
        lines.after(engine.Progress(2, 2, outcome, 0.0))
    said = capsys.readouterr()
    assert [line.partition("RMS")[2] for line in said.out.splitlines()] == [", about 3 min left", ""]
    assert said.err == ""


def test_progress_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    outcome = Outcome("a.nii.gz", "done", "", 2.0, 0.5, 1.0, "6 x 4 mm -> 24 x 1 mm")
    with _ProgressLines(quiet=False) as lines:
        lines.after(engine.Progress(1, 4, outcome, 200.0))
        lines.after(engine.Progress(2, 4, replace(outcome, state="kept"), None))
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


@catches("datasets/engine.py", "        if found != version:\n", "        if False:\n")
@catches("datasets/engine.py", "    if isinstance(error, ModuleNotFoundError):\n", "    if False:\n")
@catches(
    "datasets/engine.py",
    "if self.has_workers is not bool(workers):",
    "if self.has_workers is not bool(workers) and workers:",
)
@pytest.mark.parametrize("found", [None, "0.0.1"])
def test_a_worker_that_cannot_help_is_named(world, scheduler, found):
    """It comes late, when others have done a part; nothing hangs, and what is done stays."""
    for index in range(4):
        make_scan(world / "in" / f"slow{index}.nii.gz")
    (world / "other").mkdir()
    (world / "other" / "sitecustomize.py").write_text(FOREIGN.format(found=found))
    ours = scheduler.worker()
    process = start(world, "--scheduler", scheduler.address)
    while not process.stdout.readline().startswith("1/4"):
        assert process.poll() is None
    ours.kill()
    time.sleep(2)
    scheduler.worker(environment={"PYTHONPATH": str(world / "other")})
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
    assert [_duration(seconds) for seconds in (5, 119, 121, 7300, 2e5)] == ["5 s", "119 s", "2 min", "2 h", "2 d"]


class Clock:
    """A hundred scans, a tenth of which have an answer already."""

    def __init__(self, folder, workers=1):
        (folder / "in").mkdir()
        (folder / "out").mkdir()
        self.jobs = [make_job(folder, f"{index}.nii.gz") for index in range(100)]
        for one in self.jobs:
            one.source.write_bytes(bytes(100))
        for one in self.jobs[:10]:
            one.sidecar.write_text("{}")
        self.clock = engine._Clock(self.jobs)
        self.clock.workers = workers

    def after(self, indices, state, seconds=0.0):
        """What it says after the last of them."""
        return [self.clock.after(self.jobs[i], Outcome("", state, "", seconds)) for i in indices][-1].seconds_left


def test_the_time_left_is_that_of_what_has_to_be_computed(tmp_path):
    clock = Clock(tmp_path, workers=2)
    assert clock.after(range(10), "kept", 0.05) is None
    assert clock.after([10], "done", 20.0) == pytest.approx(89 * 20 / 2)
    assert clock.after(range(11, 30), "done", 20.0) == pytest.approx(70 * 20 / 2)


@catches("datasets/engine.py", "zip(self.left, shares, strict=True)", "zip(self.left, [1.0, 1.0], strict=True)")
def test_the_time_left_learns_from_what_became_of_others(tmp_path):
    """Half of the scans are thin; and answers that are there are not kept, since the model is another one."""
    clock = Clock(tmp_path)
    assert clock.after([0], "done", 20.0) == pytest.approx(99 * 20)
    clock.after(range(10, 30), "done", 20.0)
    assert clock.after(range(30, 50), "thin") == pytest.approx((9 + 50 / 2) * 20)


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
