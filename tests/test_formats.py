"""In and out across formats, and every verb with each of them."""

import gzip
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import strategies
from data_sets import orders
from faults import catches
from make_scans import make_affine, make_voxels
from thinslice.datasets.find import find_in_folder
from thinslice.errors import InputRefused, OutputRefused
from thinslice.io.atomic import looks_like_dicom
from thinslice.io.formats import (
    FORMATS,
    READABLE,
    WRITABLE,
    as_stored,
    ending,
    files_beside,
    format_of,
    formats_in_words,
    has_detached_voxels,
    is_same_format,
    name_to_write,
    read,
    sidecar_path,
    stem_of,
    voxel_file,
    write,
)
from thinslice.io.outputs import find_namesake, find_scan_outputs, find_sources
from thinslice.volume import Volume

SHAPE = (24, 20, 6)
AFFINE = make_affine((1.0, 1.0, 4.0), angles_deg=(0, 12, 0))
few = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def make_scan(path: Path, dtype: str = "i2", frames: tuple[int, ...] = ()) -> Path:
    """A smooth thick scan, in the format of the name."""
    at = np.indices((*SHAPE, *frames))
    voxels = (100 + 50 * np.sin(at[0] / 4) * np.cos(at[1] / 3) + 9 * at[2]).astype(dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".nhdr":
        write(Volume(voxels, AFFINE), path.with_suffix(".nrrd"))
        head, _, packed = path.with_suffix(".nrrd").read_bytes().partition(b"\n\n")
        path.with_suffix(".nrrd").unlink()
        path.write_bytes(head + b"\ndata file: scan.raw.gz\n")
        (path.parent / "scan.raw.gz").write_bytes(packed)
    else:
        write(Volume(voxels, AFFINE), path)
    return path


def make_labels(path: Path, dtype: str = "u1") -> Path:
    drawn = np.zeros(SHAPE, dtype)
    drawn[5:15, 4:12, 1:5] = 7
    drawn[8:12, 4:12, 2:4] = 90
    path.parent.mkdir(parents=True, exist_ok=True)
    write(Volume(drawn, AFFINE), path)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- across formats


@few
@given(
    data=st.data(),
    spacing=st.tuples(*[strategies.millimetres(0.2, 6)] * 3),
    dtype=st.sampled_from(["u1", "i2", "i4", "f4"]),
    frames=st.sampled_from([(), (3,)]),
    way=st.permutations(["b.nrrd", "c.mgz", "d.nii.gz", "e.mgh", "f.nii"]),
)
def test_a_scan_comes_through_all_formats_unchanged(tmp_path, data, spacing, dtype, frames, way):
    voxels, affine = make_voxels((5, 4, 3, *frames), dtype), data.draw(strategies.affines(spacing))
    volume = Volume(voxels, affine)
    for name in ["a.nii.gz", *way, "g.nii.gz"]:
        write(volume, tmp_path / name)
        volume = read(tmp_path / name)
        assert volume.voxels.dtype == voxels.dtype
        np.testing.assert_array_equal(volume.voxels, voxels)
        np.testing.assert_allclose(volume.affine, affine, rtol=0, atol=1e-4)
        assert all("sheared" in note for note in volume.notes)


@catches("io/formats.py", "format_of(path).load().as_stored(volume)", "FORMATS[0].load().as_stored(volume)")
@pytest.mark.parametrize("suffix", WRITABLE)
@pytest.mark.parametrize("source", READABLE)
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "f4", "f8"])
def test_what_is_ready_for_a_name_is_what_is_in_the_file(tmp_path, source, suffix, dtype):
    scan = read(make_scan(tmp_path / f"scan{source}", dtype))
    rng = np.random.default_rng(0)
    kind = {"u1": "i2", "i1": "i2"}.get(dtype, dtype)
    answer = (scan.voxels.astype(np.float64) * 1.01 + rng.normal(size=SHAPE)).clip(-120, 400).astype(kind)
    if scan.voxels.dtype == np.int32 and dtype == "u2":  # as FreeSurfer stores it
        answer = answer.astype(np.int32)
    target = tmp_path / f"thin{suffix}"
    ready = as_stored(replace(scan, voxels=answer), target)
    write(ready, target)
    np.testing.assert_array_equal(read(target).voxels, ready.voxels)


def test_only_what_a_scan_needs_is_loaded(tmp_path):
    make_scan(tmp_path / "a.nii.gz")
    code = "import sys; from thinslice.io.formats import read; read(sys.argv[1]); print(*sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.nii.gz")], capture_output=True, text=True, check=True
    )
    assert not set(answer.stdout.split()) & {"nrrd", "thinslice.io.nrrd", "thinslice.io.mgh"}


@pytest.mark.parametrize("name", ["a.nhdr", "a.mnc", "a", ".nrrd", "a.gz"])
def test_names_that_no_format_has_are_refused(tmp_path, name):
    volume = Volume(make_voxels((3, 3, 3)), AFFINE)
    for act in (lambda: write(volume, tmp_path / name), lambda: as_stored(volume, tmp_path / name)):
        with pytest.raises(OutputRefused, match=rf"need {WRITABLE[0]}, .* or {WRITABLE[-1]}; next: change"):
            act()


def test_a_file_of_one_format_under_the_name_of_another_is_refused(tmp_path):
    for true in (".nii", ".nii.gz", ".mgh", ".mgz", ".nrrd"):
        content = make_scan(tmp_path / f"a{true}").read_bytes()
        for other in {".nii", ".mgh", ".mgz", ".nrrd"} - {true}:
            if {true, other} in ({".mgh", ".mgz"}, {".nii", ".nii.gz"}):
                continue
            (tmp_path / f"b{other}").write_bytes(content)
            with pytest.raises(InputRefused, match=r": got .*; need .*; next: ") as caught:
                read(tmp_path / f"b{other}")
            assert "\n" not in str(caught.value)
    (tmp_path / "c.mgh").write_bytes(gzip.compress((tmp_path / "a.mgh").read_bytes()))
    assert read(tmp_path / "c.mgh").voxels.shape == SHAPE  # packed or not, whatever the name of a plain file


# ---- names


@pytest.mark.parametrize("suffix", READABLE)
def test_every_ending_is_known_in_small_and_capital_letters(suffix):
    for typed in (suffix, suffix.upper(), suffix.title()):
        path = Path("folder") / f"T1.v2{typed}"
        assert sidecar_path(path) == Path("folder/T1.v2.json")
        assert stem_of(path) == "T1.v2"
        assert sidecar_path(Path("folder") / typed) is None
    assert set(READABLE) - set(WRITABLE) == {".nhdr"}


def test_a_folder_of_several_formats_keeps_them(tmp_path):
    for name in ("e.NRRD", "a.nii", "b.mgz", "c.nhdr", "d.mgh", "scan.raw", "f.nii.gz", ".g.nrrd"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).touch()
    assert [path.name for path in find_sources(tmp_path / "in")] == [
        "a.nii",
        "b.mgz",
        "c.nhdr",
        "d.mgh",
        "e.NRRD",
        "f.nii.gz",
    ]
    found = find_scan_outputs(tmp_path / "in", tmp_path / "out")
    assert [case.destination.name for case in found] == ["a.nii", "b.mgz", "c.nrrd", "d.mgh", "e.NRRD", "f.nii.gz"]
    assert [case.sidecar.name for case in found] == [f"{letter}.json" for letter in "abcdef"]
    assert name_to_write("x.NHDR") == "x.nrrd"


@pytest.mark.parametrize("twin", ["a.nrrd", "A.mgz", "a.nhdr"])
def test_two_scans_that_share_a_sidecar_are_refused(tmp_path, twin):
    for name in ("a.nii.gz", twin):
        (tmp_path / name).touch()
    with pytest.raises(OutputRefused, match=r"[aA]\.json: got one name for"):
        find_scan_outputs(tmp_path, tmp_path / "out")


def test_a_namesake_is_found_in_any_format(tmp_path):
    for name in ("a.nrrd", "b.nii.gz", "b.mgz", "a.json", "c.mgz", "c.nii"):
        (tmp_path / name).touch()
    assert find_namesake(tmp_path, Path("in/a.nii.gz")).name == "a.nrrd"
    assert find_namesake(tmp_path, Path("in/b.nii.gz")).name == "b.nii.gz"
    assert find_namesake(tmp_path, Path("in/x.nii.gz")).name == "x.nii.gz"
    with pytest.raises(InputRefused, match=r"c\.mgz and c\.nii for c\.nrrd; need one"):
        find_namesake(tmp_path, Path("in/c.nrrd"))


# ---- the verbs


@pytest.mark.parametrize("suffix", READABLE)
@pytest.mark.parametrize("frames", [(), (2,)])
def test_enhance_gives_the_same_answer_in_every_format(run, tmp_path, suffix, frames):
    scan = make_scan(tmp_path / "in" / f"scan{suffix}", frames=frames)
    wanted = make_scan(tmp_path / "nifti" / "scan.nii", frames=frames)
    words = ["--model", "cubic"]
    assert run("enhance", "-i", wanted, "-o", tmp_path / "nifti" / "thin.nii", *words)[0] == 0
    code, out, err = run("enhance", "-i", scan, "-o", f"{tmp_path / 'out'}/", *words)
    assert (code, err) == (0, [])
    written = name_to_write(scan.name)
    assert names(tmp_path / "out") == sorted(["scan.json", written])
    assert out[-1] == f"  wrote {tmp_path / 'out' / written}"
    thin, by_nifti = read(tmp_path / "out" / written), read(tmp_path / "nifti" / "thin.nii")
    np.testing.assert_array_equal(thin.voxels, by_nifti.voxels)
    np.testing.assert_allclose(thin.affine, by_nifti.affine, atol=1e-5)
    assert thin.thickness_mm is None


@pytest.mark.parametrize("suffix", [s for s in WRITABLE if s != ".nii"])
def test_the_report_is_about_the_file(run, tmp_path, suffix):
    """A scan of uint16 and one of float64, which MGH holds otherwise."""
    from thinslice.compute.consistency import check
    from thinslice.plan import Plan

    for dtype in ("u2", "f8"):
        scan = make_scan(tmp_path / f"scan-{dtype}.nii", dtype)
        target = tmp_path / f"thin-{dtype}{suffix}"
        assert run("enhance", "-i", scan, "-o", target, "--model", "cubic")[0] == 0
        facts = json.loads(sidecar_path(target).read_text())
        found = check(read(scan), read(target), Plan.from_json(json.dumps(facts["plan"])))
        assert found.rms == pytest.approx(facts["consistency"]["rms"], rel=1e-12)


@pytest.mark.parametrize(
    ("scan", "seg"), [("scan.nrrd", "seg.mgz"), ("scan.mgz", "seg.nii.gz"), ("scan.nii", "seg.nrrd")]
)
def test_labels_may_be_of_another_format(run, tmp_path, scan, seg):
    make_scan(tmp_path / "in" / scan)
    make_labels(tmp_path / "seg" / seg)
    words = ["--model", "cubic", "-q", "--labels", tmp_path / "seg" / seg]
    assert run("enhance", "-i", tmp_path / "in" / scan, "-o", tmp_path / "out" / scan, *words) == (0, [], [])
    stem, suffix = scan.split(".")
    assert names(tmp_path / "out") == sorted([scan, "scan.json", f"scan_labels.{suffix}"])
    drawn = read(tmp_path / "out" / f"{stem}_labels.{suffix}")
    assert set(np.unique(drawn.voxels)) == {0, 7, 90}
    assert drawn.voxels.dtype == np.uint8
    np.testing.assert_allclose(drawn.affine, read(tmp_path / "out" / scan).affine, atol=1e-4)


def test_a_folder_of_several_formats_with_labels(run, tmp_path):
    make_scan(tmp_path / "in" / "a.nrrd")
    make_scan(tmp_path / "in" / "b.mgz")
    make_labels(tmp_path / "seg" / "a.nii.gz")
    make_labels(tmp_path / "seg" / "b.mgz")
    words = ["--model", "cubic", "-q", "--labels", tmp_path / "seg"]
    assert run("enhance", "-i", tmp_path / "in", "-o", tmp_path / "out", *words) == (0, [], [])
    assert names(tmp_path / "out") == ["a.json", "a.nrrd", "a_labels.nrrd", "b.json", "b.mgz", "b_labels.mgz"]


@pytest.mark.parametrize("suffix", [".nrrd", ".mgz"])
def test_there_and_back(run, tmp_path, suffix):
    scan, thin, back = (tmp_path / f"{name}{suffix}" for name in ("scan", "thin", "back"))
    make_scan(scan)
    assert run("enhance", "-i", scan, "-o", thin, "--model", "cubic", "-q")[0] == 0
    code, out, err = run("reslice", "-i", thin, "--like", scan, "-o", back)
    assert (code, err) == (0, [])
    assert "image, mean" in out[0]
    apart = np.abs(read(back).voxels.astype(float) - read(scan).voxels)
    assert apart.max() <= 2
    np.testing.assert_allclose(read(back).affine, read(scan).affine, atol=1e-4)
    code, out, err = run("info", "-i", scan)
    assert (code, err) == (0, [])
    assert "24 x 20 x 6 voxels of 1 x 1 x 4 mm, int16" in out[1]


@catches("compute/upsample.py", "thickness_mm=None, notes=plan.notes", "notes=plan.notes")
def test_thickness_of_an_nrrd_header_makes_the_plan(run, tmp_path):
    scan = make_scan(tmp_path / "a.nrrd")
    volume = read(scan)
    write(replace(volume, thickness_mm=3.0), scan)
    assert run("enhance", "-i", scan, "-o", tmp_path / "thin.nrrd", "--model", "cubic", "-q")[0] == 0
    assert json.loads((tmp_path / "thin.json").read_text())["plan"]["thickness_mm"] == 3.0
    assert b"thicknesses" not in (tmp_path / "thin.nrrd").read_bytes()


@pytest.mark.parametrize("name", ["thin.nhdr", "thin.mnc"])
def test_answers_that_cannot_be_written_are_refused_before_any_work(run, tmp_path, name):
    scan = make_scan(tmp_path / "in" / "a.nrrd")
    code, out, err = run("enhance", "-i", scan, "-o", tmp_path / name, "--model", "cubic")
    assert (code, out, len(err)) == (2, [], 1)
    assert f"or {WRITABLE[-1]}" in err[0]
    seg = make_labels(tmp_path / "seg.mgz")
    words = ["--labels", seg, "--labels-out", tmp_path / name, "--model", "cubic"]
    code, out, err = run("enhance", "-i", scan, "-o", tmp_path / "thin.nrrd", *words)
    assert (code, out, len(err)) == (2, [], 1)
    assert names(tmp_path) == ["in", "seg.mgz"]


def test_models_are_scored_on_scans_of_other_formats(run, tmp_path):
    at = np.indices((20, 20, 20))
    voxels = (500 + 200 * np.sin(at[0] / 4) * np.cos(at[1] / 3) + 40 * at[2]).astype(np.int16)
    for name in ("a.nrrd", "b.mgz"):
        (tmp_path / "in").mkdir(exist_ok=True)
        write(Volume(voxels, np.eye(4)), tmp_path / "in" / name)
    words = ["--models", "linear,cubic", "--factors", "2", "-q"]
    assert run("evaluate", "-i", tmp_path / "in", "-o", tmp_path / "out", *words)[0] == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert {line["case"] for line in lines if "case" in line} == {"a", "b"}


def test_scans_to_learn_from_may_be_of_any_format(tmp_path):
    pytest.importorskip("torch")
    from thinslice.models.registry import find_model
    from thinslice.settings import Settings
    from thinslice.training.usable_scans import find_usable_scans

    paths = [make_scan(tmp_path / f"{name}") for name in ("a.nrrd", "b.mgz", "c.nii.gz")]
    voxels = read(paths[1]).voxels + np.int16(1)
    write(replace(read(paths[1]), voxels=voxels), paths[1])
    said: list[str] = []
    found = list(find_usable_scans(paths, find_model("cubic"), Settings(), said.append))
    assert [scan.path for scan in found] == paths[:2]
    assert "the same scan as a.nrrd" in said[0]


# ---- the contract of every row of the registry

ROWS = [row for row in FORMATS if row.endings]
WIDENED = {"thinslice.io.mgh": {"i1", "u2", "f8"}}
"""Module -> types that it stores as others."""


@pytest.mark.parametrize("row", FORMATS, ids=str)
def test_a_row_is_whole(row):
    module = row.load()
    assert callable(module.read)
    assert callable(module.write) if row.written else not row.endings
    assert callable(module.as_stored) if row.written else not row.endings
    assert callable(module.data_file) if row.detached else not row.voxel_endings
    assert set(row.written) | set(row.detached) <= set(row.endings)
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in row.endings + row.voxel_endings)
    assert not set(row.voxel_endings) & set(READABLE)
    assert str(row) in formats_in_words() or not row.endings


def test_no_ending_has_two_rows():
    assert len(set(READABLE)) == len(READABLE)
    assert sum(row.is_folder for row in FORMATS) == 1


@catches("io/formats.py", "and suffix not in self.detached", "")
@pytest.mark.parametrize("suffix", READABLE)
def test_an_answer_in_a_folder_is_one_file_of_the_same_format(suffix):
    written = name_to_write(f"T1{suffix}")
    assert files_beside(Path(written)) == []
    assert ending(Path(written)) in WRITABLE
    assert is_same_format(ending(Path(written)) or "", suffix)
    assert name_to_write(written) == written


@few
@given(
    data=st.data(),
    spacing=st.tuples(*[strategies.millimetres(0.2, 6)] * 3),
    dtype=st.sampled_from(["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]),
    frames=st.sampled_from([(), (3,)]),
    suffix=st.sampled_from(WRITABLE),
)
def test_what_is_written_is_read_again(tmp_path, data, spacing, dtype, frames, suffix):
    voxels = make_voxels((5, 4, 3, *frames), dtype)
    volume = Volume(voxels, data.draw(strategies.affines(spacing)), header=None)
    path = tmp_path / f"a{suffix}"
    if suffix in (".mgh", ".mgz") and dtype in ("u4", "i8", "u8"):
        with pytest.raises(OutputRefused, match="need 32 bits for MGH"):
            write(volume, path)
        return
    write(volume, path)
    again = read(path)
    if dtype not in WIDENED.get(format_of(path).module, ()):
        assert again.voxels.dtype == voxels.dtype
    np.testing.assert_array_equal(again.voxels, voxels)
    np.testing.assert_allclose(again.affine, volume.affine, rtol=2e-6, atol=1e-4)
    assert again.source == path
    write(again, tmp_path / f"b{suffix}")
    once_more = read(tmp_path / f"b{suffix}")
    np.testing.assert_array_equal(once_more.voxels, voxels)
    np.testing.assert_allclose(once_more.affine, again.affine, rtol=4e-7, atol=1e-4)


def assert_told(caught, place: Path) -> None:
    """A refusal has all its parts, on one line that begins with the file."""
    error = caught.value
    assert str(error).startswith(f"{place}: got ")
    assert "\n" not in str(error)
    assert all((error.got, error.need, error.next, error.place, error.code))


@pytest.mark.parametrize("suffix", READABLE)
def test_what_cannot_be_read_is_refused_with_a_way_out(tmp_path, suffix):
    whole = make_scan(tmp_path / "whole" / f"scan{suffix}").read_bytes()
    path = tmp_path / f"scan{suffix}"
    pieces = [whole[: len(whole) * share // 10] for share in range(10)] if not has_detached_voxels(path) else []
    for content in (b"", b"hello, world", bytes(1000), np.random.default_rng(0).bytes(2000), whole[:7], *pieces):
        path.write_bytes(content)
        with pytest.raises(InputRefused) as caught:
            read(path)
        assert_told(caught, path)
    path.unlink()
    for act in (lambda: None, path.mkdir):
        act()
        with pytest.raises(InputRefused) as caught:
            format_of(tmp_path / f"x{suffix}").load().read(path)
        assert_told(caught, path)


@pytest.mark.parametrize("suffix", WRITABLE)
@pytest.mark.parametrize(
    "change",
    [{"voxels": np.full(SHAPE, np.nan)}, {"voxels": np.zeros(SHAPE, complex)}, {"affine": np.zeros((4, 4))}],
    ids=["NaN", "complex", "flat"],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, suffix, change):
    path = tmp_path / "new" / f"a{suffix}"
    with pytest.raises(OutputRefused) as caught:
        write(replace(Volume(make_voxels(SHAPE, "f4"), AFFINE), **change), path)
    assert_told(caught, path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("suffix", WRITABLE)
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(28, "No space left on device")], ids=repr)
def test_a_scan_is_written_whole_or_stays_what_it_was(tmp_path, monkeypatch, suffix, error):
    path = make_scan(tmp_path / f"a{suffix}")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fail(*_args):
        yield make_voxels((24, 20, 1), "i2")
        raise error

    monkeypatch.setattr(format_of(path).load(), "encoded", fail)
    with pytest.raises(OutputRefused if isinstance(error, OSError) else error):
        write(Volume(make_voxels(SHAPE, "i2"), AFFINE), path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("suffix", [suffix for suffix in READABLE if not suffix.endswith(("gz", ".nhdr"))])
def test_a_file_is_known_by_how_it_begins(tmp_path, suffix):
    start = make_scan(tmp_path / f"a{suffix}").read_bytes()[:200]
    assert [row for row in FORMATS if row.starts(start)] == [format_of(tmp_path / f"a{suffix}")]


# ---- voxels in a file of their own


def test_a_header_and_its_voxels_are_one_answer(run, tmp_path):
    scan = make_scan(tmp_path / "in" / "scan.mhd")
    thin = tmp_path / "out" / "thin.mhd"
    seg = make_labels(tmp_path / "in" / "seg.mhd")
    words = ["--model", "cubic", "-q", "--labels", seg, "--labels-out", tmp_path / "out" / "seg.mhd"]
    assert run("enhance", "-i", scan, "-o", thin, *words) == (0, [], [])
    assert names(tmp_path / "out") == ["seg.mhd", "seg.raw", "thin.json", "thin.mhd", "thin.raw"]
    assert set(np.unique(read(tmp_path / "out" / "seg.mhd").voxels)) == {0, 7, 90}
    wanted = tmp_path / "thin.nii.gz"
    assert run("enhance", "-i", scan, "-o", wanted, "--model", "cubic", "-q") == (0, [], [])
    np.testing.assert_array_equal(read(thin).voxels, read(wanted).voxels)
    assert run("reslice", "-i", thin, "--like", scan, "-o", tmp_path / "out" / "back.mhd")[0] == 0
    assert run("info", "-i", scan)[0] == 0
    assert run("view", scan, thin, "-o", tmp_path / "a.html")[0] == 0
    code, _, err = run("enhance", "-i", scan, "-o", thin, "--model", "cubic", "-q")
    assert (code, len(err)) == (2, 1)
    assert "--overwrite" in err[0]
    assert run("enhance", "-i", scan, "-o", thin, "--model", "cubic", "-q", "--overwrite") == (0, [], [])
    assert "back.raw" in names(tmp_path / "out")


@catches("io/outputs.py", "for file in files_beside(output.path))]", "for file in ())]")
@pytest.mark.parametrize("there", ["thin.raw", "thin.zraw"])
def test_nothing_that_is_there_is_taken_for_the_voxels_of_an_answer(run, tmp_path, there):
    scan = make_scan(tmp_path / "scan.nii")
    (tmp_path / there).write_bytes(b"of somebody")
    code, out, err = run("enhance", "-i", scan, "-o", tmp_path / "thin.mhd", "--model", "cubic")
    assert (code, out, len(err)) == (2, [], 1)
    assert there in err[0]
    assert (tmp_path / there).read_bytes() == b"of somebody"
    assert names(tmp_path) == sorted(["scan.nii", there])


@catches("io/outputs.py", "for file in (sidecar_path(scan), voxel_file(scan))", "for file in (sidecar_path(scan),)")
def test_the_voxels_of_an_input_are_never_replaced(run, tmp_path):
    scan = make_scan(tmp_path / "scan.mhd")
    other = tmp_path / "other.mhd"
    other.write_bytes(scan.read_bytes())  # of the same voxels
    before = (tmp_path / "scan.raw").read_bytes()
    code, out, err = run("enhance", "-i", other, "-o", scan, "--model", "cubic", "--overwrite")
    assert (code, out, len(err)) == (2, [], 1)
    assert "scan.raw: got an output that is an input" in err[0]
    assert (tmp_path / "scan.raw").read_bytes() == before


@catches("io/atomic.py", 'for part in sorted((stage / "new").iterdir())', "for part in ()")
def test_the_voxels_are_moved_with_their_header(tmp_path):
    from thinslice.io.atomic import all_or_none

    with all_or_none([tmp_path / "a.mhd", tmp_path / "a.json"], overwrite=False) as parts:
        make_scan(parts[0])
        parts[1].touch()
    assert names(tmp_path) == ["a.json", "a.mhd", "a.raw"]
    (tmp_path / "a.mhd").unlink()
    with (
        pytest.raises(OutputRefused, match=r"a\.raw: got an output that exists"),
        all_or_none([tmp_path / "a.mhd"], overwrite=False) as parts,
    ):
        make_scan(parts[0])
    assert names(tmp_path) == ["a.json", "a.raw"]


@catches("io/formats.py", "return [file for file in files if file not in held]", "return files")
@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_voxels_that_begin_like_dicom_are_no_series(run, tmp_path, suffix):
    scan = make_scan(tmp_path / "in" / f"scan{suffix}")
    if suffix == ".nhdr":
        head = scan.read_bytes().replace(b"gzip", b"raw").replace(b"scan.raw.gz", b"scan.raw")
        scan.write_bytes(head)
        (tmp_path / "in" / "scan.raw.gz").unlink()
    voxels = np.full(SHAPE, 8, "<i2")  # group 8, element 8: what a file says that is DICOM without saying so
    (tmp_path / "in" / "scan.raw").write_bytes(voxels.tobytes())
    assert looks_like_dicom(tmp_path / "in" / "scan.raw")
    code, _, err = run("info", "-i", tmp_path / "in")
    assert (code, err) == (0, [])
    found = find_in_folder(tmp_path / "in", tmp_path / "out", orders())
    assert ([job.source for job in found.jobs], found.failed) == ([scan], [])


@catches("datasets/job.py", "if has_detached_voxels(path):", "if False:")
@pytest.mark.parametrize("suffix", [suffix for row in FORMATS for suffix in row.detached])
def test_other_voxels_under_the_same_header_are_another_scan(tmp_path, suffix):
    from thinslice.datasets.job import _hash_of_scan

    scan = make_scan(tmp_path / f"scan{suffix}")
    before = _hash_of_scan(scan)
    voxels = voxel_file(scan)
    other = make_scan(tmp_path / "other" / f"scan{suffix}")
    volume = read(other)
    if suffix == ".nhdr":
        write(replace(volume, voxels=volume.voxels + np.int16(1)), tmp_path / "x.nrrd")
        voxels.write_bytes((tmp_path / "x.nrrd").read_bytes().partition(b"\n\n")[2])
    else:
        write(replace(volume, voxels=volume.voxels + np.int16(1)), other)
        voxels.write_bytes(voxel_file(other).read_bytes())
    assert _hash_of_scan(scan) != before
