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
from faults import catches
from make_scans import make_affine, make_voxels
from thinslice.errors import InputRefused, OutputRefused
from thinslice.io.formats import READABLE, WRITABLE, as_stored, name_to_write, read, sidecar_path, stem_of, write
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


@pytest.mark.parametrize("name", ["a.nhdr", "a.mha", "a", ".nrrd", "a.gz"])
def test_names_that_no_format_has_are_refused(tmp_path, name):
    volume = Volume(make_voxels((3, 3, 3)), AFFINE)
    for act in (lambda: write(volume, tmp_path / name), lambda: as_stored(volume, tmp_path / name)):
        with pytest.raises(OutputRefused, match=r"need \.nii\.gz, .*\.nrrd; next: change"):
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
    for ending in (suffix, suffix.upper(), suffix.title()):
        path = Path("folder") / f"T1.v2{ending}"
        assert sidecar_path(path) == Path("folder/T1.v2.json")
        assert stem_of(path) == "T1.v2"
        assert sidecar_path(Path("folder") / ending) is None
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


@pytest.mark.parametrize("name", ["thin.nhdr", "thin.mha"])
def test_answers_that_cannot_be_written_are_refused_before_any_work(run, tmp_path, name):
    scan = make_scan(tmp_path / "in" / "a.nrrd")
    code, out, err = run("enhance", "-i", scan, "-o", tmp_path / name, "--model", "cubic")
    assert (code, out, len(err)) == (2, [], 1)
    assert "or .nrrd" in err[0]
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
    from thinslice.training.usable_scans import find_usable_scans

    paths = [make_scan(tmp_path / f"{name}") for name in ("a.nrrd", "b.mgz", "c.nii.gz")]
    voxels = read(paths[1]).voxels + np.int16(1)
    write(replace(read(paths[1]), voxels=voxels), paths[1])
    said: list[str] = []
    wish = {"spacing_mm": None, "factor": None, "thickness_mm": None, "profile": "gaussian"}
    found = list(find_usable_scans(paths, find_model("cubic"), wish, said.append))
    assert [scan.path for scan in found] == paths[:2]
    assert "the same scan as a.nrrd" in said[0]
