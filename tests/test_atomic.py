"""What is written is whole or not there: with failures, signals, real disks that are full, and runs that race."""

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faults import catches
from thinslice.errors import OutputRefused
from thinslice.io import atomic
from thinslice.io.atomic import all_or_none, hold_lock, whole_or_not

NAMES = ("thin.json", "thin.nii.gz", "labels/thin.nii.gz")
"""An answer of several files, one of them in a folder of its own."""


def write_all(
    folder: Path, text: str, overwrite: bool, names: tuple[str, ...] = NAMES, meanwhile: str | None = None
) -> None:
    """Writes files of one run, each of which says which run that is; ``meanwhile`` another program writes one."""
    with all_or_none([folder / name for name in names], overwrite) as parts:
        for part in parts:
            part.write_text(text)
        if meanwhile is not None:
            (folder / meanwhile).parent.mkdir(exist_ok=True)
            (folder / meanwhile).write_text("theirs")


def content(folder: Path) -> dict[str, str]:
    """All files below a folder, hidden ones too."""
    return {file.relative_to(folder).as_posix(): file.read_text() for file in folder.rglob("*") if file.is_file()}


def visible(folder: Path) -> dict[str, str]:
    """The files that a user sees."""
    return {name: text for name, text in content(folder).items() if "/." not in f"/{name}"}


# ---- one process


def test_files_come_all_together_and_folders_are_made(tmp_path):
    folder = tmp_path / "new" / "deep"
    with all_or_none([folder / name for name in NAMES], overwrite=False) as parts:
        for part in parts:
            part.write_text("mine")
            assert not visible(folder)
    assert content(folder) == dict.fromkeys(NAMES, "mine")


@catches("io/atomic.py", "        os.link(part, target)\n", "        os.replace(part, target)\n")
@pytest.mark.parametrize("taken", NAMES)
def test_a_file_that_another_program_puts_there_meanwhile_stays(tmp_path, taken):
    with pytest.raises(OutputRefused) as refusal:
        write_all(tmp_path, "mine", overwrite=False, meanwhile=taken)
    assert refusal.value.code == "output-exists"
    assert content(tmp_path) == {taken: "theirs"}


def test_one_file_that_another_program_puts_there_meanwhile_stays(tmp_path):
    def write(name: str, meanwhile: bool) -> None:
        with whole_or_not(tmp_path / name, overwrite=False) as part:
            part.write_text("mine")
            if meanwhile:
                (tmp_path / name).write_text("theirs")

    with pytest.raises(OutputRefused):
        write("a", meanwhile=True)
    write("b", meanwhile=False)
    assert content(tmp_path) == {"a": "theirs", "b": "mine"}


@catches(
    "io/atomic.py",
    "        if os.path.lexists(target):\n            raise exists_already",
    "        if False:\n            raise exists_already",
)
@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV])
def test_where_there_are_no_hard_links_nothing_is_replaced_either(tmp_path, monkeypatch, number):
    """As on FAT."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    write_all(tmp_path, "first", overwrite=False)
    assert content(tmp_path) == dict.fromkeys(NAMES, "first")
    with pytest.raises(OutputRefused):
        write_all(tmp_path, "second", overwrite=False, names=("free", *NAMES))
    assert content(tmp_path) == dict.fromkeys(NAMES, "first")


@catches("io/atomic.py", "            if _has_become(part, target):\n", "            if not part.exists():\n")
@catches(
    "io/atomic.py",
    "            if os.path.lexists(place):\n                os.replace(place, target)\n",
    "            pass\n",
)
@given(
    there=st.sets(st.sampled_from(NAMES)),
    overwrite=st.booleans(),
    step=st.integers(0, 12),
    before=st.booleans(),
    error=st.sampled_from([KeyboardInterrupt(), OSError(errno.EIO, "broken")]),
)
def test_a_failure_at_any_move_leaves_all_as_it_was(there, overwrite, step, before, error):
    """Before or after the move itself: Ctrl-C comes when it will."""
    if not overwrite:
        there = set()
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder, steps = Path(name), []
        for file in there:
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text("earlier")

        def failing(move: Callable[..., None]) -> Callable[..., None]:
            def call(*arguments: object, **words: object) -> None:
                steps.append(arguments)
                if len(steps) == step + 1 and before:
                    raise error
                move(*arguments, **words)
                if len(steps) == step + 1:
                    raise error

            return call

        for move in ("replace", "link", "rename"):
            patch.setattr(os, move, failing(getattr(os, move)))
        try:
            write_all(folder, "new", overwrite)
        except (KeyboardInterrupt, OSError):
            assert content(folder) == dict.fromkeys(there, "earlier")
        else:
            assert content(folder) == dict.fromkeys(NAMES, "new")


def test_a_file_that_was_not_written_moves_nothing(tmp_path):
    (tmp_path / "a").write_text("earlier")
    with pytest.raises(FileNotFoundError), all_or_none([tmp_path / "a", tmp_path / "b"], overwrite=True) as parts:
        parts[0].write_text("new")
    assert content(tmp_path) == {"a": "earlier"}


@pytest.mark.parametrize("names", [("a",), ("a", "b")])
def test_a_folder_is_never_replaced(tmp_path, names):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "precious").write_text("mine")
    with pytest.raises(OutputRefused) as refusal:
        write_all(tmp_path, "new", overwrite=True, names=names)
    assert refusal.value.code == "output-is-folder"
    assert content(tmp_path) == {"a/precious": "mine"}


@catches("io/atomic.py", "leaving = dict.fromkeys([*parts, *stale])", "leaving = dict.fromkeys(parts)")
@pytest.mark.parametrize("fails", [False, True])
def test_what_an_earlier_answer_had_more_of_goes_with_it(tmp_path, monkeypatch, fails):
    def slices(number: int) -> list[Path]:
        return [tmp_path / f"IM{index}.dcm" for index in range(number)]

    def write(number: int, overwrite: bool) -> None:
        def stale() -> set[Path]:
            return set(tmp_path.glob("IM*.dcm")) - set(slices(number))

        with all_or_none(slices(number), overwrite, stale) as parts:
            for part in parts:
                part.write_text(f"of {number}")

    write(5, overwrite=False)
    (tmp_path / "other").write_text("mine")
    if fails:
        monkeypatch.setattr(atomic, "logger", None)  # after the last move
        with pytest.raises(AttributeError):
            write(3, overwrite=True)
        monkeypatch.undo()
    write(3, overwrite=True)
    assert content(tmp_path) == {f"IM{index}.dcm": "of 3" for index in range(3)} | {"other": "mine"}


# ---- several processes


RUNS = 2

ROUNDS = 50

SLICES = (30, 40)
"""Of the series that either run makes: enough that the moves of the two overlap."""


def race(work: Callable[..., None], tmp_path: Path) -> None:
    """Two processes that do the same in the same instant, many times, each in a folder of that round."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(RUNS)
    runs = [context.Process(target=work, args=(tmp_path, number, barrier)) for number in range(RUNS)]
    for one in runs:
        one.start()
    for one in runs:
        one.join(timeout=120)
        assert one.exitcode == 0


def write_once(tmp_path: Path, number: int, barrier: object) -> None:
    """Without overwriting; what was refused is noted in a file elsewhere."""
    for turn in range(ROUNDS):
        folder = tmp_path / str(turn)
        folder.mkdir(exist_ok=True)
        try:
            with all_or_none([folder / name for name in NAMES], overwrite=False) as parts:
                for part in parts:
                    part.write_text(str(number))
                barrier.wait(60)
        except OutputRefused as error:
            (tmp_path / f"refused-{turn}-{number}").write_text(error.code)


def test_of_two_runs_that_end_at_once_one_is_refused(tmp_path):
    race(write_once, tmp_path)
    for turn in range(ROUNDS):
        refused = sorted(file.name for file in tmp_path.glob(f"refused-{turn}-*"))
        assert len(refused) == 1, turn
        winner = "1" if refused[0].endswith("0") else "0"
        assert content(tmp_path / str(turn)) == dict.fromkeys(NAMES, winner)


def write_over(tmp_path: Path, number: int, barrier: object) -> None:
    """Over each other; one run has more slices than the other."""
    for turn in range(ROUNDS):
        folder = tmp_path / str(turn)
        folder.mkdir(exist_ok=True)
        targets = [folder / f"IM{index}.dcm" for index in range(SLICES[number])]

        def stale(folder: Path = folder, targets: list[Path] = targets) -> set[Path]:
            return set(folder.glob("IM*.dcm")) - set(targets)

        with all_or_none([folder / "thin.json", *targets], True, stale) as parts:
            for part in parts:
                part.write_text(str(number))
            barrier.wait(60)


def test_of_two_runs_that_replace_at_once_all_files_are_of_one(tmp_path):
    race(write_over, tmp_path)
    for turn in range(ROUNDS):
        found = content(tmp_path / str(turn))
        assert found["thin.json"] in ("0", "1"), turn
        number = int(found["thin.json"])
        wanted = ["thin.json", *(f"IM{index}.dcm" for index in range(SLICES[number]))]
        assert found == dict.fromkeys(wanted, str(number)), turn


@catches("io/atomic.py", "        with locked_folders(stages):\n", "        if True:\n")
@catches("io/atomic.py", "fcntl.LOCK_EX | (0", "fcntl.LOCK_SH | (0")
@pytest.mark.parametrize("step", range(1, 6))
def test_a_run_that_ends_while_another_moves_its_files_waits(tmp_path, monkeypatch, step):
    """Whatever moves the other has made by then; without a lock files of both would stay."""
    write_all(tmp_path, "earlier", overwrite=False)
    real, steps = os.replace, []
    other = Thread(target=write_all, args=(tmp_path, "other", True))

    def replace(source: Path, target: Path) -> None:
        real(source, target)
        steps.append(target)
        if len(steps) == step:
            other.start()
            other.join(timeout=0.2)
            assert other.is_alive()

    monkeypatch.setattr(os, "replace", replace)
    write_all(tmp_path, "one", overwrite=True)
    other.join()
    assert content(tmp_path) == dict.fromkeys(NAMES, "other")


KILLED = """
import os, signal, sys
from pathlib import Path
from thinslice.io import atomic

step, overwrite, folder = int(sys.argv[1]), sys.argv[2] == "True", Path(sys.argv[3])
steps = []

def deadly(move):
    def call(*arguments, **words):
        move(*arguments, **words)
        steps.append(arguments)
        if len(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)
    return call

for name in ("link", "replace", "rename"):
    setattr(os, name, deadly(getattr(os, name)))
with atomic.all_or_none([folder / name for name in sys.argv[4:]], overwrite) as parts:
    for part in parts:
        part.write_text("new")
"""
"""Ends itself after so many moves, as a machine does whose power goes."""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal here")
@pytest.mark.parametrize(("overwrite", "step"), [(True, step) for step in range(1, 7)] + [(False, 1), (False, 2)])
def test_what_is_killed_between_two_moves_leaves_no_mixture_and_no_lock(tmp_path, overwrite, step):
    if overwrite:
        write_all(tmp_path, "earlier", overwrite=False)
    words = [sys.executable, "-c", KILLED, str(step), str(overwrite), str(tmp_path), *NAMES]
    assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
    left = visible(tmp_path)
    assert len(set(left.values())) <= 1
    assert len(left) == (abs(3 - step) if overwrite else step)
    write_all(tmp_path, "after", overwrite=True)
    assert visible(tmp_path) == dict.fromkeys(NAMES, "after")


def test_a_lock_is_free_when_its_holder_is_killed(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from thinslice.io.atomic import hold_lock\n"
        "with hold_lock(Path(sys.argv[1])):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / ".lock")], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError), hold_lock(tmp_path / ".lock", wait=False):
            pass
        holder.kill()
        holder.wait()
        with hold_lock(tmp_path / ".lock", wait=False):
            pass
    assert content(tmp_path) == {}


# ---- real disks


ON_A_SMALL_DISK = """
import sys
from pathlib import Path
from thinslice.io.atomic import all_or_none

folder, size, names = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
try:
    with all_or_none([folder / name for name in names], overwrite=True) as parts:
        for part in parts:
            part.write_bytes(bytes(size))
except OSError as error:
    print(error.strerror)
print(sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*")))
"""


@pytest.mark.root
@pytest.mark.skipif(shutil.which("unshare") is None or not hasattr(os, "geteuid"), reason="no disks to mount here")
def test_a_disk_that_is_full_keeps_what_was_there(tmp_path):
    """A disk in memory, of a process that takes it along when it ends."""
    run = f"{sys.executable} -c '{ON_A_SMALL_DISK}' {tmp_path}"
    mount = f"mount -t tmpfs -o size=256k tmpfs {tmp_path}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{mount} || exit 77; {run} 50000 a b && {run} 90000 a b && {run} 40000 a"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no permission to mount")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["['a', 'b']", "No space left on device", "['a', 'b']", "['a', 'b']"]


def without_rights(work: Callable[[], None]) -> None:
    """Does something in a process that is no administrator, who may write anywhere."""
    child = os.fork()
    if not child:
        code = 1
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            work()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_folder_that_cannot_be_written_to_keeps_what_was_there():
    with tempfile.TemporaryDirectory() as name:  # others may go through, which they may not in tmp_path
        folder = Path(name)
        (folder / "thin.json").write_text("earlier")
        (folder / "labels").mkdir(mode=0o777)
        (folder / "labels").chmod(0o777)
        folder.chmod(0o555)

        def refused() -> None:
            with pytest.raises(PermissionError):
                write_all(folder, "new", overwrite=True)

        without_rights(refused)
        folder.chmod(0o700)
        assert content(folder) == {"thin.json": "earlier"}
