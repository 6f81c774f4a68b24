"""Files that are none, or have no end, and folders of any depth."""

import gzip
import os
import shutil
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom import uid

from dicom_files import stack
from faults import catches
from thinslice.errors import InputRefused, reason_of
from thinslice.files import check_is_regular, make_folder, read_bytes, walk
from thinslice.io.dicom.series import find_study
from thinslice.io.formats import read
from thinslice.io.scratch import check_memory, free_memory_bytes
from thinslice.io.streams import MOST_BEHIND_BYTES, MOST_PADDING_BYTES

DEEP = 1500
"""Folders one in the other: more than Python calls functions in one another."""


def thick_scan(path, shape=(12, 12, 5)):
    voxels = np.random.default_rng(0).integers(0, 900, shape).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1, 4, 1])), path)
    return path


@pytest.fixture
def deep(tmp_path):
    """A folder, and the one 1,500 folders below it; made step by step, as every other way calls itself too."""
    top = tmp_path / "deep"
    top.mkdir()
    here = os.getcwd()
    os.chdir(top)
    for _ in range(DEEP):
        os.mkdir("d")
        os.chdir("d")
    bottom = top.joinpath(*["d"] * DEEP)
    os.chdir(here)
    yield top, bottom
    os.chdir(here)
    for each in (top, tmp_path / "out"):
        remove(each)


def remove(top):
    """Removes a folder that is too deep for `shutil.rmtree`, which calls itself, too."""
    found = [folder for folder, *_ in walk(top, follow_links=False)]
    for folder in reversed(found):
        for name in os.listdir(folder):
            os.remove(folder / name)
        os.rmdir(folder)


@catches("files.py", "for name in reversed(folders)", "for name in folders")
def test_walk_goes_down_in_the_order_of_the_callers_list(tmp_path):
    for name in ("b/x", "a/y", "a/z"):
        make_folder(tmp_path / name)
    found = []
    for folder, real, folders, _ in walk(tmp_path):
        folders.sort()
        found.append(folder.name)
        assert real == os.path.realpath(folder)
    assert found == [tmp_path.name, "a", "y", "z", "b", "x"]


@catches("files.py", "        if real in seen:\n            continue\n", "")
def test_walk_comes_to_an_end_where_links_lead_back(tmp_path):
    make_folder(tmp_path / "a/b")
    (tmp_path / "a/b/up").symlink_to(tmp_path)
    (tmp_path / "other").symlink_to(tmp_path / "a")
    assert len(list(zip(walk(tmp_path), range(10), strict=False))) == 3
    assert len(list(walk(tmp_path, follow_links=False))) == 3


def test_a_scan_1500_folders_down_is_found_and_done(deep, run, tmp_path):
    top, bottom = deep
    thick_scan(bottom / "scan.nii.gz")
    assert len(find_study(top).notes) == 1
    code, _, err = run("info", "-i", top, "--model", "cubic")
    assert code == 2
    assert "a folder with no scan directly in it" in err[0]
    code, _, err = run("batch", "-i", top, "-o", tmp_path / "out", "--model", "cubic", "--workers", 1)
    assert (code, err) == (0, [])
    answer = (tmp_path / "out").joinpath(*["d"] * DEEP, "scan.nii.gz")
    assert nib.load(answer).shape == (12, 12, 20)


def test_dicom_1500_folders_down_is_described(deep, run):
    top, bottom = deep
    stack(bottom, count=4)
    code, out, err = run("info", "-i", top, "--model", "cubic")
    assert (code, err) == (0, [])
    assert out[1].startswith("sees   24 x 20 x 4 voxels")


def test_a_path_longer_than_the_system_takes_is_named(run, tmp_path):
    """Its folders cannot be listed; the rest of the data set is done."""
    top = tmp_path / "long"
    thick_scan_in = top / "a"
    thick_scan_in.mkdir(parents=True)
    thick_scan(thick_scan_in / "scan.nii.gz")
    here = os.getcwd()
    os.chdir(top)
    for _ in range(25):
        os.mkdir("x" * 200)
        os.chdir("x" * 200)
    os.chdir(here)
    code, out, err = run("batch", "-i", top, "-o", tmp_path / "out", "--model", "cubic", "--workers", 1)
    shutil.rmtree(top)  # other tests look at what lies beside their folders
    assert code == 2
    assert any("a/scan.nii.gz: computed" in line for line in out)
    assert len(err) == 1
    assert "File name too long" in err[0]


# ---- pipes, devices and files without an end


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/stdin", "pipe"])
def test_only_regular_files_are_opened(tmp_path, device):
    os.mkfifo(tmp_path / "pipe")
    place = tmp_path / device
    if place.is_file():
        pytest.skip("the tests were started with a file as input")
    with pytest.raises(OSError, match="pipe or a device") as refusal:
        read_bytes(place)
    assert "need a file; next: save it to a file first" in reason_of(refusal.value)


def test_no_more_is_read_than_is_allowed(tmp_path):
    large = tmp_path / "large"
    large.touch()
    os.truncate(large, 2**40)
    with pytest.raises(OSError, match="1,099,511,627,776 bytes, where 100 are plenty"):
        read_bytes(large, 100)
    assert check_is_regular(large) == 2**40


@pytest.mark.parametrize(
    ("words", "got"),
    [
        (["enhance", "-i", "SCAN", "-o", "OUT", "--model", "PIPE"], "a pipe or a device"),
        (["enhance", "-i", "SCAN", "-o", "OUT", "--model", "/dev/zero"], "a pipe or a device"),
        (["enhance", "-i", "SCAN", "-o", "OUT", "--model", "HUGE"], "bytes, where 536,870,912 are plenty"),
        (["enhance", "-i", "PIPE.nii.gz", "-o", "OUT"], "a pipe or device"),
        (["enhance", "-i", "SCAN", "-o", "OUT", "--labels", "PIPE.nii.gz"], "a pipe or device"),
        (["enhance", "-i", "SCAN", "-o", "OUT", "--labels", "/dev/zero"], "a pipe or device"),
        (["reslice", "-i", "SCAN", "--like", "PIPE.nii.gz", "-o", "OUT"], "a pipe or device"),
        (["study", "--score", "PIPE"], "a pipe or a device"),
        (["study", "--score", "/dev/zero"], "a pipe or a device"),
        (["study", "--score", "HUGE"], "bytes, where 67,108,864 are plenty"),
    ],
)
def test_pipes_devices_and_endless_files_are_refused_by_every_verb(tmp_path, run, words, got):
    os.mkfifo(tmp_path / "PIPE")
    os.mkfifo(tmp_path / "PIPE.nii.gz")
    (tmp_path / "HUGE").touch()
    os.truncate(tmp_path / "HUGE", 2**40)
    thick_scan(tmp_path / "scan.nii.gz")
    names = {"SCAN": "scan.nii.gz", "OUT": "out.nii.gz"}
    words = [
        str(tmp_path / names.get(word, word)) if word in names or word[:4] in ("PIPE", "HUGE") else word
        for word in words
    ]
    code, _, err = run(*words)
    assert (code, len(err)) == (2, 1)
    assert got in err[0].lower()
    assert not (tmp_path / "out.nii.gz").exists()


def test_a_sidecar_that_is_a_pipe_or_endless_is_no_sidecar(tmp_path, run):
    scan = thick_scan(tmp_path / "in" / "scan.nii.gz") if (tmp_path / "in").mkdir() is None else None
    os.mkfifo(tmp_path / "in" / "scan.json")
    assert read(scan).thickness_mm is None
    code, _, err = run("batch", "-i", tmp_path / "in", "-o", tmp_path / "out", "--model", "cubic", "--workers", 1)
    assert (code, err) == (0, [])
    os.remove(tmp_path / "in" / "scan.json")
    (tmp_path / "in" / "scan.json").touch()
    os.truncate(tmp_path / "in" / "scan.json", 2**40)
    assert any("not a readable JSON" in note for note in read(scan).notes)


# ---- compressed bombs


@catches("io/streams.py", "if follows > MOST_BEHIND_BYTES", "if follows < 0")
def test_gzip_that_goes_on_behind_its_voxels_is_refused(tmp_path):
    plain = thick_scan(tmp_path / "plain.nii").read_bytes()
    for name, behind in (("sound", 10_000), ("bomb", MOST_BEHIND_BYTES + 1)):
        with gzip.open(tmp_path / f"{name}.nii.gz", "wb", 1) as stream:
            stream.write(plain + bytes(behind))
    assert read(tmp_path / "sound.nii.gz").shape == (12, 12, 5)
    with pytest.raises(InputRefused, match="67,108,864 bytes behind its voxels"):
        read(tmp_path / "bomb.nii.gz")


@catches("io/streams.py", "            _check_padding(raw)\n", "")
def test_gigabytes_of_zeros_behind_a_gzip_stream_are_not_counted_one_by_one(tmp_path):
    for name, size in (("sound", 100_000), ("bomb", 2**25)):
        path = thick_scan(tmp_path / f"{name}.nii.gz")
        os.truncate(path, size)
    assert read(tmp_path / "sound.nii.gz").shape == (12, 12, 5)
    with pytest.raises(InputRefused, match=f"more than {MOST_PADDING_BYTES:,} zeros"):
        read(tmp_path / "bomb.nii.gz")


def test_extensions_without_an_end_are_not_read(tmp_path):
    content = bytearray(thick_scan(tmp_path / "plain.nii").read_bytes())
    content[108:112] = struct.pack("<f", 1e9)
    with gzip.open(tmp_path / "bomb.nii.gz", "wb", 9) as stream:
        stream.write(content)
        for _ in range(60):
            stream.write(bytes(2**24))
    with pytest.raises(InputRefused, match=r"extensions of at most"):
        read(tmp_path / "bomb.nii.gz")


@pytest.mark.parametrize("where", ["behind the voxels", "before them"])
@catches("io/dicom/headers.py", "            check_deflated(path)\n", "")
def test_deflated_dicom_that_unpacks_to_more_than_its_image_is_refused(tmp_path, where):
    stack(tmp_path, count=4, syntax=uid.DeflatedExplicitVRLittleEndian)
    assert not find_study(tmp_path).unusable
    path = sorted(tmp_path.iterdir())[0]
    content = path.read_bytes()
    begins = 144 + int.from_bytes(content[140:144], "little")
    header = zlib.decompress(content[begins:], -zlib.MAX_WBITS)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = struct.pack("<HH2sHI", 0xFFFC if where == "behind the voxels" else 0x0009, 0xFFFC, b"OB", 0, 2**27)
    parts = [header, bomb] if where == "behind the voxels" else [header[:200], bomb]
    packed = b"".join(packer.compress(part) for part in [*parts, *[bytes(2**24)] * 8])
    path.write_bytes(content[:begins] + packed + packer.flush())
    unusable = [one for one in find_study(tmp_path).unusable if one.label == path.name]
    assert len(unusable) == 1


def test_more_than_the_free_memory_is_refused_before_it_is_promised():
    free = free_memory_bytes()
    assert free is None or free > 2**26
    check_memory(2**20)
    if free is not None:
        with pytest.raises(MemoryError):
            check_memory(free + 2**30)


@pytest.mark.slow
def test_damaged_scans_labels_sidecars_and_models_never_crash_it():
    """A short run of `fuzz_files.py`, which is there to be run for longer by hand."""
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    script = Path(__file__).with_name("fuzz_files.py")
    command = [sys.executable, str(script), "--seconds", "20", "--seed", str(int(time.time()))]
    found = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-1000:]
