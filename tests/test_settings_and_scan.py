"""What a scan and what is asked for say of each other: channels, factors beyond a network, contradictions, sidecars."""

import json

import nibabel
import numpy as np
import pytest

import thinslice
from faults import catches
from make_scans import make_voxels, save_scan
from thinslice import cli
from thinslice.compute.reslice import reslice
from thinslice.errors import InputRefused, PlanRefused
from thinslice.files import MOST_TEXT_BYTES
from thinslice.io.nifti import read
from thinslice.io.sidecars import thickness_beside

THICK = np.diag([1.0, 1.0, 4.0, 1.0])


def smooth(shape=(32, 30, 10)):
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return np.float32(100 * np.exp(-2 * ((x - 0.2) ** 2 + y**2 + (z - 0.1) ** 2)) + 20 * np.sin(9 * z + 3 * x))


# ---- channels that come first


@pytest.mark.parametrize(
    "voxels",
    [smooth()[None], smooth()[None, ..., None], np.stack([smooth()] * 3), np.stack([smooth()] * 4), smooth()[:, None]],
    ids=["one", "one and a last axis", "three", "four", "second"],
)
@catches("plan.py", "    check_times_last(volume, axis)\n", "")
def test_channels_that_come_first_are_refused_not_made_thin(voxels, tmp_path):
    with pytest.raises(InputRefused, match=r"channels come first|one channel"):
        thinslice.enhance(voxels, affine=np.diag([0.5, 0.5, 4.0, 1.0]), model="cubic")
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([0.5, 0.5, 4.0, 1.0])), tmp_path / "scan.nii.gz")
    assert cli.main(["enhance", "-i", str(tmp_path / "scan.nii.gz"), "-o", str(tmp_path / "out.nii.gz")]) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["scan.nii.gz"]
    volume = read(tmp_path / "scan.nii.gz")
    with pytest.raises(InputRefused):
        reslice(volume, volume)


def test_the_advice_for_channels_that_come_first_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nibabel.save(nibabel.Nifti1Image(smooth()[None], THICK), "scan.nii.gz")
    with pytest.raises(InputRefused) as caught:
        thinslice.enhance("scan.nii.gz")
    exec(caught.value.next.split('python -c "')[1].rstrip('"'))
    done = thinslice.enhance("channel.nii.gz", model="cubic")
    assert done.array.shape == (32, 30, 40)
    np.testing.assert_array_equal(done.acquired.voxels, smooth())


@pytest.mark.parametrize("shape", [(32, 30, 10), (32, 30, 10, 2), (3, 4, 5, 2), (1, 8, 6), (32, 30, 4, 20)])
def test_times_that_come_last_are_a_series(shape):
    done = thinslice.enhance(np.float32(make_voxels(shape)), affine=THICK, model="cubic", factor=2, force=True)
    assert done.array.shape == (*shape[:2], 2 * shape[2], *shape[3:])


# ---- factors that a network has not learnt


@pytest.mark.parametrize(
    ("slices", "pixel_mm", "slice_mm", "thin"),
    [(12, 0.43, 6.5, 120), (12, 0.43, 4.5, 120), (12, 1.0, 10.0, 120), (10, 1.0, 1.2, 15), (10, 1.0, 1.44, 15)],
)
@pytest.mark.parametrize("grid", ["fov", "centres"])
@catches("plan.py", "        return _find_valid_mm(", "        return target_mm, [] and _find_valid_mm(")
def test_without_options_the_nearest_factor_is_taken(slices, pixel_mm, slice_mm, thin, grid):
    affine = np.diag([pixel_mm, pixel_mm, slice_mm, 1])
    done = thinslice.enhance(smooth((24, 20, slices)), affine=affine, grid=grid)
    if grid == "fov":
        assert done.array.shape[2] == thin
    assert 1.5 - 1e-6 <= done.plan.factor <= 10 + 1e-6
    told = [note for note in done.report.notes if "that default is valid for" in note]
    assert len(told) == (slice_mm != 10.0)
    edges = [found[2, 3] - found[2, 2] / 2 for found in (affine, done.affine)]
    if grid == "fov":
        assert edges[0] == pytest.approx(edges[1])
    with pytest.raises(PlanRefused, match=r"need 1\.5 to 10") as caught:
        thinslice.enhance(smooth((24, 20, slices)), affine=affine, factor=11 if slice_mm > 2 else 1.3, grid=grid)
    assert caught.value.code in ("factor-above-envelope", "factor-below-envelope")


def test_a_stack_beyond_the_factors_of_a_network_is_combined():
    affine = np.diag([0.4, 0.4, 6.0, 1])
    stacks = [smooth((40, 36, 8)), 1.01 * smooth((40, 36, 8))]
    done = thinslice.combine(stacks, affines=[affine, affine], registration=False, spacing_mm=1.0)
    assert [stack.left_out for stack in done.stacks] == [None, None]


# ---- what contradicts the scan


@catches("pipeline.py", "*check_agreement(report.consistency, plan, is_forced=settings.force)", "")
def test_a_thickness_that_the_slices_contradict_is_refused_or_forced(tmp_path, capsys):
    scan = save_scan(tmp_path / "scan.nii.gz", np.int16(10 * smooth()), THICK)
    words = ["enhance", "-i", str(scan), "-o", str(tmp_path / "thin.nii.gz"), "--model", "cubic", "--thickness", "1000"]
    assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert "differs from the acquired slices by" in told
    assert "leave --thickness and --profile out, or add --force" in told
    assert [file.name for file in tmp_path.iterdir()] == ["scan.nii.gz"]
    with pytest.raises(PlanRefused, match="1000 mm for slices 4 mm apart") as caught:
        thinslice.enhance(scan, model="cubic", thickness_mm=1000)
    assert caught.value.code == "contradicts-scan"
    assert cli.main([*words, "--force"]) == 0
    assert "note: forced: an answer that differs" in capsys.readouterr().out
    assert any("forced" in note for note in json.loads((tmp_path / "thin.json").read_text())["notes"])
    # Another format has a report of its own.
    thinslice.enhance(scan, model="cubic", thickness_mm=1000, force=True).save(tmp_path / "other.mha")
    assert any("forced" in note for note in json.loads((tmp_path / "other.json").read_text())["notes"])
    assert cli.main([*words[:-2], "--overwrite"]) == 0
    assert not any("forced" in note for note in json.loads((tmp_path / "thin.json").read_text())["notes"])


def test_a_thickness_that_no_scanner_has_is_told():
    done = thinslice.enhance(smooth(), affine=THICK, model="cubic", thickness_mm=0.5, profile="box")
    assert any("0.125 times the slice spacing, which no usual scan has" in note for note in done.report.notes)


def test_a_stack_that_contradicts_what_is_asked_is_not_combined():
    with pytest.raises(PlanRefused, match="differs from the acquired slices") as caught:
        thinslice.combine(
            [smooth(), 1.01 * smooth()], affines=[THICK, THICK], model="cubic", registration=False, thickness_mm=1000
        )
    assert "force" not in caught.value.next


def test_computed_tomography_for_a_network_that_never_saw_any_is_told():
    scan = np.where(smooth() > 20, smooth() - 20, -1000 + smooth())
    words = "learnt from magnetic resonance alone"
    for model, told in (("default", 1), ("planes-mr", 1), ("cubic", 0), ("planes-ct", 0)):
        done = thinslice.enhance(scan, affine=THICK, model=model)
        assert sum(words in note for note in done.report.notes) == told, model
    assert not any(words in note for note in thinslice.enhance(smooth(), affine=THICK).report.notes)


# ---- sidecars


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
)
@catches("io/sidecars.py", "facts = json.loads(content)", "facts = json.loads(content.decode())")
def test_sidecars_are_read_in_every_encoding_of_json(tmp_path, encoding):
    text = json.dumps({"SliceThickness": 3.5, "InstitutionName": "Klinikum Nürnberg 東京"}, ensure_ascii=False)
    (tmp_path / "a.json").write_bytes(text.encode(encoding))
    assert thickness_beside(tmp_path / "a.nii.gz") == (3.5, [])


@pytest.mark.parametrize(
    "content",
    [b"[3.5]", b"3.5", b"null", b'"3.5"', b"", b"\xff", b'{"SliceThickness": 3.5', b"[" * 10**5, b"1" * 10**5, b"\0"],
    ids=range(10),
)
def test_sidecars_that_are_no_object_are_ignored_and_that_is_told(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    thickness_mm, notes = thickness_beside(tmp_path / "a.nii.gz")
    assert thickness_mm is None
    assert ["not a readable JSON object" in note for note in notes] == [True]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" * 400, "0", "[3]", "{}", "true"])
def test_a_thickness_that_is_none_is_ignored_and_that_is_told(tmp_path, number):
    (tmp_path / "a.json").write_text(f'{{"SliceThickness": {number}}}')
    thickness_mm, notes = thickness_beside(tmp_path / "a.nii.gz")
    assert thickness_mm is None
    assert ["not a length in mm" in note for note in notes] == [True]


def test_a_sidecar_larger_than_any_is_not_read(tmp_path):
    with open(tmp_path / "a.json", "wb") as stream:
        stream.truncate(MOST_TEXT_BYTES + 2)
    assert thickness_beside(tmp_path / "a.nii.gz")[0] is None


def test_the_sidecar_of_a_scan_in_another_encoding_counts(tmp_path):
    scan = save_scan(tmp_path / "a.nii.gz", np.int16(10 * smooth()), THICK)
    (tmp_path / "a.json").write_text('{"SliceThickness": 3.5}', encoding="utf-16")
    assert read(scan).thickness_mm == 3.5


# ---- warnings are errors


@pytest.mark.filterwarnings("error")
def test_no_verb_warns(tmp_path):
    """A folder that was listed and not closed was told of where warnings are errors."""
    import subprocess
    import sys

    from dicom_files import stack

    stack(tmp_path / "in")
    for words in (
        ["enhance", "-q", "-i", tmp_path / "in", "-o", tmp_path / "thin.nii.gz", "--model", "cubic"],
        ["info", "-i", tmp_path / "in"],
        ["reslice", "-i", tmp_path / "thin.nii.gz", "--like", tmp_path / "in", "-o", tmp_path / "thick.nii.gz"],
    ):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "thinslice", *map(str, words)], capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
