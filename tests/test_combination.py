"""One volume from several stacks, as users get it: from the command line and from Python, and what is refused."""

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

import thinslice
from dicom_files import AXIAL, SAGITTAL
from dicom_files import stack as save_series
from faults import catches
from phantoms import acquired, psnr, sampled
from thinslice import combination
from thinslice.combination import MOST_VOXELS, combine_volumes
from thinslice.compute.likeness import Likeness
from thinslice.compute.registration import Registration, register
from thinslice.compute.stacks import Stack
from thinslice.errors import InputRefused, OutputRefused, PlanRefused, ThinsliceError
from thinslice.io import atomic, formats, nifti
from thinslice.models.interpolations import interpolation
from thinslice.physics.acquisition import Acquisition
from thinslice.physics.stack_acquisition import resample
from thinslice.volume import Volume

SIDE = 40
THICK_MM = 4.0
NAMES = ("sagittal", "coronal", "axial")
PLAIN = ("--model", "cubic", "--no-registration")
"""Options with which a run takes a fifth of a second."""


def affine_of(axis, shape, middle_mm=(0.0, 0.0, 0.0)):
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = THICK_MM
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = np.array(middle_mm) - (np.array(shape) - 1) / 2 * spacing
    return affine


def grid_of(shape, spacing_mm=1.0):
    """Cubes around the middle."""
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing_mm
    return affine


def make_stack(axis, dtype=np.int16, side=SIDE, peak=800.0, middle_mm=(0.0, 0.0, 0.0)):
    """A stack of slices of 4 mm of the phantom, whose slices lie along one axis."""
    shape = [side, side, side]
    shape[axis] = int(side / THICK_MM)
    affine = affine_of(axis, shape, middle_mm)
    voxels = peak * acquired(tuple(shape), affine, axis, THICK_MM)
    return Volume((np.rint(voxels) if np.dtype(dtype).kind in "iu" else voxels).astype(dtype), affine)


STACKS = {name: make_stack(axis) for axis, name in enumerate(NAMES)}
FIRST = STACKS["axial"]


def as_moved(volume, motion):
    """The same slices, with a header that says that they lie elsewhere."""
    return replace(volume, affine=motion @ volume.affine)


MOTION = np.eye(4)
MOTION[:3, :3] = Rotation.from_rotvec(np.deg2rad((2.0, -1.5, 2.0))).as_matrix()
MOTION[:3, 3] = 1.5, -1.0, 1.2


def combined(*stacks, **more):
    more = {"registration": False, "model": "cubic"} | more
    return thinslice.combine(list(stacks), **more)


def truth_on(volume):
    return 800 * sampled(volume.shape, volume.affine)


def as_in_patient(volume):
    """The voxels on axes that run right, anterior and superior, wherever a grid without turns puts them."""
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(np.asarray(volume.voxels), volume.affine))
    return image.get_fdata(), image.affine


@pytest.fixture
def scans(tmp_path):
    """A folder with the three stacks: name -> file."""
    folder = tmp_path / "in"
    folder.mkdir()
    files = {}
    for name, volume in STACKS.items():
        files[name] = folder / f"{name}.nii.gz"
        nifti.write(volume, files[name])
    return files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def save(volume, path):
    nifti.write(volume, path)
    return path


# ---- what comes out


@pytest.mark.parametrize("count", [2, 3])
def test_several_stacks_are_better_than_each(run, scans, tmp_path, count):
    chosen = [scans[name] for name in ("axial", "coronal", "sagittal")[:count]]
    out = tmp_path / "out" / "combined.nii.gz"
    code, said, err = run("combine", "-i", *chosen, "-o", out, *PLAIN)
    assert (code, err) == (0, [])
    assert names(out.parent) == ["combined.json", "combined.nii.gz"]
    volume = nifti.read(out)
    assert volume.shape == (SIDE, SIDE, SIDE)
    alone = [thinslice.enhance(path, model="cubic").volume for path in chosen]
    best = max(psnr(one.voxels, truth_on(one)) for one in alone)
    assert psnr(volume.voxels, truth_on(volume)) > best + (1.5 if count == 2 else 2.5)
    assert said[0].startswith(f"{count} stacks -> 40 x 40 x 40 voxels of 1 x 1 x 1 mm, ")


def test_the_terminal_says_what_became_of_each_stack(run, scans, tmp_path):
    out = tmp_path / "out"
    words = ["--held-by", out / "held.nii.gz", "--report", out / "page.html"]
    _, said, _ = run("combine", "-i", scans["axial"], scans["coronal"], "-o", out / "c.nii", *PLAIN, *words)
    assert said[1].startswith("  axial.nii.gz: where its header says, differs by ")
    assert said[2].startswith("  coronal.nii.gz: where its header says, differs by ")
    assert said[-1].startswith("  wrote ")
    assert [Path(word).name for word in said[-1][8:].split(", ")] == ["c.nii", "page.html", "held.nii.gz", "c.json"]
    assert all(line.startswith("  note: ") for line in said[3:-1])


def test_quiet_says_nothing(run, scans, tmp_path):
    words = ["combine", "-i", scans["axial"], scans["coronal"], "-o", tmp_path / "c.nii", *PLAIN, "-q"]
    assert run(*words) == (0, [], [])
    assert (tmp_path / "c.nii").exists()


def test_advice_in_notes_can_be_followed(run, scans, tmp_path):
    """What a note tells to give is an option of this verb, too."""
    words = ["combine", "-i", scans["axial"], scans["coronal"], "-o", tmp_path / "c.nii", *PLAIN]
    assert any("give --profile and --thickness" in line for line in run(*words)[1])
    code, said, _ = run(*words, "--overwrite", "--profile", "gaussian", "--thickness", THICK_MM)
    assert code == 0
    assert not any("estimated" in line for line in said)
    plans = [stack["plan"] for stack in json.loads((tmp_path / "c.json").read_text())["combined_from"]]
    assert [(plan["profile"], plan["thickness_mm"]) for plan in plans] == [("gaussian", THICK_MM)] * 2


def test_the_json_says_how_it_was_made(run, scans, tmp_path):
    run("combine", "-i", scans["axial"], scans["coronal"], scans["sagittal"], "-o", tmp_path / "c.nii", *PLAIN)
    facts = json.loads((tmp_path / "c.json").read_text())
    assert [one["name"] for one in facts["combined_from"]] == ["axial.nii.gz", "coronal.nii.gz", "sagittal.nii.gz"]
    for one in facts["combined_from"]:
        assert one["left_out"] is None
        np.testing.assert_array_equal(one["motion"], np.eye(4))
        assert one["likeness"] > 0.8
        assert len(one["fit"]["slice_weights"]) == SIDE / THICK_MM
        assert 0 < one["fit"]["rms_percent"] < 3
        assert one["plan"]["factor"] == 4
    assert facts["held_by"] == {"0": 0, "1": 0, "2": 0, "3": SIDE**3}
    assert facts["shape"] == [SIDE] * 3
    np.testing.assert_allclose(facts["affine"], nifti.read(tmp_path / "c.nii").affine)
    assert facts["versions"]["thinslice"]


def test_the_command_line_and_python_do_the_same(run, scans, tmp_path):
    chosen = [scans["axial"], scans["coronal"]]
    options = ["--spacing", 1.2, "--grid", "union", "--no-denoise", "--profile", "gaussian"]
    run("combine", "-i", *chosen, "-o", tmp_path / "a.nii.gz", *options, *PLAIN)
    done = combined(*chosen, spacing_mm=1.2, grid="union", denoise=False, profile="gaussian")
    done.save(tmp_path / "b.nii.gz")
    first, second = nifti.read(tmp_path / "a.nii.gz"), nifti.read(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(first.voxels, second.voxels)
    np.testing.assert_array_equal(first.affine, second.affine)
    np.testing.assert_array_equal(done.array, second.voxels)
    facts = [json.loads((tmp_path / name).read_text()) | {"seconds": 0} for name in ("a.json", "b.json")]
    assert facts[0] == facts[1]


def test_with_the_embedded_network():
    done = combined(FIRST, STACKS["coronal"], STACKS["sagittal"], model="default", threads=1)
    best = max(psnr(one.voxels, truth_on(one)) for one in (thinslice.enhance(v).volume for v in STACKS.values()))
    assert psnr(done.array, truth_on(done.volume)) > best + 2
    assert repr(done) == "<Combined: 3 stacks -> 40 x 40 x 40 voxels of 1 x 1 x 1 mm>"


def test_a_model_that_is_loaded_and_progress():
    shares = []
    done = combined(FIRST, STACKS["coronal"], model=interpolation("cubic"), progress=shares.append)
    np.testing.assert_array_equal(done.array, combined(FIRST, STACKS["coronal"]).array)
    assert shares == sorted(shares)
    assert shares[-1] == 1


DOCS = Path(__file__).parent.parent / "docs" / "combine.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if DOCS.exists() else []


@pytest.mark.skipif(not SNIPPETS, reason="the documentation is not here")
def test_the_example_of_the_documentation_runs(scans, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(scans["axial"].parent)
    exec("".join(SNIPPETS), {})
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert {"combined.nii.gz", "combined.json", "held.nii.gz", "combined.html"} <= set(names(Path()))


@pytest.mark.skipif(not SNIPPETS, reason="the documentation is not here")
def test_the_documentation_names_every_option_and_every_field(run, scans, tmp_path):
    text = DOCS.read_text()
    _, said, _ = run("combine", "--help")
    for option in re.findall(r"--[a-z][a-z-]+", " ".join(said)):
        assert f"`{option}" in text or option in ("--help", "--input", "--output"), option
    facts = json.loads(combined(FIRST, STACKS["coronal"]).to_json())
    for name in (*facts, *facts["combined_from"][0], *facts["combined_from"][0]["fit"]):
        assert f"`{name}`" in text or f"`... {name}`" in text, name


# ---- where the answer lies


@catches("combination.py", "affine[:3, 3] = along @ ((low + high) / 2", "affine[:3, 3] = along @ (low")
def test_the_grid_of_the_first_stack_or_around_all_or_of_another_scan():
    away = make_stack(1, middle_mm=(12.0, 0.0, -8.0))
    first = combined(FIRST, away, grid="first")
    thin = thinslice.enhance(FIRST, model="cubic").volume
    np.testing.assert_allclose(first.affine, thin.affine)
    assert first.array.shape == thin.shape

    union = combined(FIRST, away, grid="union")
    assert union.array.shape == (SIDE + 12, SIDE, SIDE + 8)
    np.testing.assert_allclose(union.affine[:3, 3], [-19.5, -19.5, -27.5])
    held = union.held_by.voxels
    assert held[0, 0, -1] == 1
    assert held[-1, 0, 0] == 1
    assert held[0, 0, 0] == 0
    assert held[SIDE // 2, 0, SIDE // 2] == 2

    like = Volume(np.zeros((20, 30, 25), np.uint8), grid_of((20, 30, 25), 1.2))
    other = combined(FIRST, STACKS["coronal"], grid=like)
    assert other.array.shape == (20, 30, 25)
    np.testing.assert_array_equal(other.affine, like.affine)
    assert psnr(other.array, truth_on(other.volume)) > 26


@catches("combination.py", "if fit.share_seen == 0:", "if False:")
def test_a_stack_beside_the_grid_is_told():
    """Chunks of a spine: the second one meets the third, and not the grid of the first."""
    voxels, affine = STACKS["coronal"].voxels, STACKS["coronal"].affine
    upper = affine.copy()
    upper[:3, 3] += affine[:3, 2] * 22
    chunks = [
        Volume(np.ascontiguousarray(voxels[:, :, :18]), affine),
        Volume(np.ascontiguousarray(voxels[:, :, 22:]), upper),
    ]
    done = combined(*chunks, STACKS["sagittal"])
    assert "beside the grid of the answer: nothing of it is in there" in done.stacks[1].describe()
    assert "differs by" in done.stacks[2].describe()
    around = combined(*chunks, STACKS["sagittal"], grid="union")
    assert around.array.shape == (SIDE, SIDE, SIDE)
    assert all("differs by" in stack.describe() for stack in around.stacks)


@pytest.mark.parametrize("spacing_mm", [0.7, 1.5, 2.0])
def test_voxels_of_another_size(spacing_mm):
    done = combined(FIRST, STACKS["coronal"], STACKS["sagittal"], spacing_mm=spacing_mm)
    np.testing.assert_allclose(done.volume.spacing_mm, [spacing_mm] * 3)
    assert done.array.shape == (int(np.ceil(SIDE / spacing_mm)),) * 3
    # The middle of the field of view stays where it is.
    middle = done.affine @ [*((np.array(done.array.shape) - 1) / 2), 1]
    np.testing.assert_allclose(middle[:3], 0, atol=1e-6)
    assert psnr(done.array, truth_on(done.volume)) > 26


@catches("cli/combine.py", 'inputs += [Path(wanted)] if wanted not in ("first", "union", None) else []', "pass")
def test_the_grid_of_a_file_from_the_command_line(run, scans, tmp_path, monkeypatch):
    like = save(
        Volume(np.zeros((30, 31, 32), np.int16), grid_of((30, 31, 32))),
        tmp_path / "l.nii",
    )
    words = ["-i", scans["axial"], scans["coronal"], "-o", tmp_path / "c.nii", "--grid", like]
    assert run("combine", *words, *PLAIN)[0] == 0
    assert nifti.read(tmp_path / "c.nii").shape == (30, 31, 32)
    # It is the user's file as well, and is not replaced; that is told before anything is computed.
    monkeypatch.setattr("thinslice.combination.combine_volumes", None)
    code, _, err = run("combine", *words[:3], "-o", like, "--grid", like, "--overwrite", *PLAIN)
    assert code == 2
    assert "an output that is an input" in err[0]


@catches("combination.py", "[*(volume.source for volume in read), self.like]", "[*(volume.source for volume in read)]")
@pytest.mark.parametrize("facts", [{}, {"Sources": []}])
def test_the_scan_whose_grid_is_taken_is_not_replaced_from_python_either(scans, tmp_path, facts):
    like = save(Volume(np.zeros((9, 9, 9), np.int16), grid_of((9, 9, 9))), tmp_path / "l.nii")
    done = replace(combined(scans["axial"], scans["coronal"], grid=like), facts=facts)
    with pytest.raises(OutputRefused) as caught:
        done.save(like, overwrite=True)
    assert caught.value.code == "output-is-input"
    assert not nifti.read(like).voxels.any()


@pytest.mark.parametrize("kind", ["as usual", "flipped", "turned axes", "sheared"])
def test_the_grid_of_another_scan_may_run_anyhow(kind):
    """A DICOM series can hold no sheared one, which is told before anything is computed."""
    affine = grid_of((30, 31, 32))
    if kind == "flipped":
        affine[0] *= -1
    elif kind == "turned axes":
        affine = affine[:, [2, 1, 0, 3]]
    elif kind == "sheared":
        affine[0, 1] = 0.3
    done = combined(*STACKS.values(), grid=Volume(np.zeros((30, 31, 32), np.int16), affine))
    np.testing.assert_array_equal(done.affine, affine)
    held = done.held_by.voxels > 1
    assert held.mean() > 0.7
    assert np.sqrt(np.mean((done.array - truth_on(done.volume))[held] ** 2)) < 16


@catches("combination.py", "np.round((high - low) / spacing, 3)", "(high - low) / spacing + 1e-6")
def test_an_extent_of_a_whole_number_of_voxels_gets_that_number():
    assert combined(FIRST, STACKS["coronal"], spacing_mm=0.8).array.shape == (50, 50, 50)


# ---- types and headers


@catches("combination.py", "np.clip(np.rint(voxels)", "np.clip(np.floor(voxels)")
@catches("combination.py", "voxels = _in_type_of(scans[0], joined.voxels)", "voxels = joined.voxels")
@pytest.mark.parametrize(
    ("dtype", "expected", "peak"),
    [
        (np.uint8, np.int16, 220.0),
        (np.int16, np.int16, 800.0),
        (np.uint16, np.uint16, 800.0),
        (np.int32, np.int32, 800.0),
        (np.float32, np.float32, 800.0),
        (np.float64, np.float64, 800.0),
    ],
)
def test_whole_numbers_stay_whole_numbers(tmp_path, dtype, expected, peak):
    done = combined(make_stack(2, dtype, peak=peak), make_stack(1, dtype, peak=peak))
    assert done.array.dtype == expected
    exact = combined(make_stack(2, np.float64, peak=peak), make_stack(1, np.float64, peak=peak))
    kept = np.clip(exact.array, np.iinfo(expected).min, None) if np.dtype(expected).kind == "u" else exact.array
    assert abs(float(np.mean(done.array - kept))) < 0.1
    assert np.sqrt(np.mean((done.array - kept) ** 2)) < 0.02 * peak
    done.save(tmp_path / "c.nii.gz")
    np.testing.assert_array_equal(nifti.read(tmp_path / "c.nii.gz").voxels, done.array)


@pytest.mark.parametrize("end", [".nii", ".mgz", ".nrrd", ".mha"])
def test_every_format_that_is_written(run, scans, tmp_path, end):
    out = tmp_path / f"c{end}"
    assert run("combine", "-i", scans["axial"], scans["coronal"], "-o", out, *PLAIN)[0] == 0
    done = combined(scans["axial"], scans["coronal"])
    found = formats.read(out)
    np.testing.assert_array_equal(found.voxels, done.array)
    np.testing.assert_allclose(found.affine, done.affine, atol=1e-4)


def test_stacks_of_several_formats_and_kinds(scans, tmp_path):
    volume = STACKS["coronal"]
    formats.write(volume, tmp_path / "coronal.nrrd")
    wanted = combined(scans["axial"], scans["coronal"]).array
    image = nibabel.Nifti1Image(volume.voxels, volume.affine)
    for other in (tmp_path / "coronal.nrrd", image, volume):
        # Sums over arrays that lie otherwise in memory differ in their last digit: a half may be rounded up or down.
        np.testing.assert_allclose(combined(scans["axial"], other).array, wanted, atol=1)
    arrays = [FIRST.voxels, volume.voxels]
    done = combined(*arrays, affines=[FIRST.affine, volume.affine])
    np.testing.assert_allclose(done.array, wanted, atol=1)
    assert [stack.name for stack in done.stacks] == ["stack 1", "stack 2"]


def test_a_dicom_series_among_them(run, tmp_path):
    """A series of axial slices and one of sagittal slices, in folders of their own."""
    body = 1000 + 2000 * gaussian_filter(np.random.default_rng(0).standard_normal((48, 48, 48)), 2)
    # Patient x runs left in DICOM, y back; sagittal slices are counted from left to right.
    axial = np.rint(body.reshape(48, 48, 12, 4).mean(axis=3)).astype(np.int16).transpose(2, 1, 0)
    sagittal = np.rint(body.reshape(12, 4, 48, 48).mean(axis=1)).astype(np.int16)[:, :, ::-1].transpose(0, 2, 1)
    more = {"spacing": (1.0, 1.0), "step_mm": 4.0, "thickness_mm": 4.0}
    save_series(
        tmp_path / "ax", values=axial, count=12, rows=48, columns=48, orientation=AXIAL, origin=(0, 0, 1.5), **more
    )
    save_series(
        tmp_path / "sag",
        values=sagittal[::-1],
        count=12,
        rows=48,
        columns=48,
        orientation=SAGITTAL,
        origin=(45.5, 0, 47),
        series=2,
        **more,
    )
    code, said, err = run("combine", "-i", tmp_path / "ax", tmp_path / "sag", "-o", tmp_path / "c.nii.gz", *PLAIN)
    assert (code, err) == (0, [])
    assert said[0].startswith("2 stacks -> 48 x 48 x 48 voxels of 1 x 1 x 1 mm")
    found, _ = as_in_patient(nifti.read(tmp_path / "c.nii.gz"))
    assert np.corrcoef(found[::-1, ::-1].ravel(), body.ravel())[0, 1] > 0.95


# ---- what must not matter


@pytest.mark.parametrize(
    ("order", "flips"), [((2, 0, 1), (0,)), ((1, 2, 0), (1, 2)), ((0, 2, 1), ()), ((0, 1, 2), (0, 1, 2))]
)
def test_axes_are_only_names(order, flips):
    """A stack whose axes are permuted and flipped, with its affine, is the same stack."""

    def renamed(volume):
        turn = np.eye(4)
        voxels, affine = volume.voxels.transpose(order), volume.affine[:, [*order, 3]]
        for axis in flips:
            turn = np.eye(4)
            turn[axis, axis], turn[axis, 3] = -1, voxels.shape[axis] - 1
            voxels, affine = np.flip(voxels, axis), affine @ turn
        return Volume(np.ascontiguousarray(voxels), affine)

    plain = combined(FIRST, STACKS["coronal"], STACKS["sagittal"])
    wanted, affine = as_in_patient(plain.volume)
    for chosen in ([0], [1, 2], [0, 1, 2]):
        stacks = [FIRST, STACKS["coronal"], STACKS["sagittal"]]
        stacks = [renamed(one) if number in chosen else one for number, one in enumerate(stacks)]
        found, other = as_in_patient(combined(*stacks).volume)
        np.testing.assert_allclose(other, affine, atol=1e-4)
        np.testing.assert_allclose(found, wanted, atol=3)


def test_only_the_first_place_in_the_list_means_something():
    one = combined(FIRST, STACKS["coronal"], STACKS["sagittal"]).array
    other = combined(FIRST, STACKS["sagittal"], STACKS["coronal"]).array
    np.testing.assert_allclose(one, other, atol=4)
    assert np.sqrt(np.mean((one - 1.0 * other) ** 2)) < 1


def test_stacks_in_other_units_are_brought_to_those_of_the_first():
    brighter = replace(STACKS["coronal"], voxels=STACKS["coronal"].voxels * np.float32(2.5))
    done = combined(FIRST, brighter)
    assert done.stacks[1].fit.gain == pytest.approx(2.5, rel=0.03)
    assert np.sqrt(np.mean((done.array - 1.0 * combined(FIRST, STACKS["coronal"]).array) ** 2)) < 8
    assert "brightness divided by 2." in done.stacks[1].describe()


@catches(
    "combination.py", "used = [number for number in range(len(stacks)) if number not in left_out]", "used = [0, 1]"
)
def test_all_stacks_are_used():
    two, three = combined(FIRST, STACKS["coronal"]), combined(FIRST, STACKS["coronal"], STACKS["sagittal"])
    assert psnr(three.array, truth_on(three.volume)) > psnr(two.array, truth_on(two.volume)) + 0.5
    assert [stack.fit is not None for stack in three.stacks] == [True] * 3


def test_where_one_stack_sees_alone_the_answer_is_its_own_and_there_is_no_seam():
    half = replace(STACKS["coronal"], voxels=np.ascontiguousarray(STACKS["coronal"].voxels[: SIDE // 2]))
    done = combined(FIRST, half)
    alone = thinslice.enhance(FIRST, model="cubic").array
    held = done.held_by.voxels
    assert (held[: SIDE // 2] == 2).all()
    assert (held[SIDE // 2 + 1 :] == 1).all()
    away = done.array[SIDE // 2 + 4 :] - 1.0 * alone[SIDE // 2 + 4 :]
    assert np.sqrt(np.mean(away**2)) < 0.01 * 800
    wrong = done.array - truth_on(done.volume)
    steps = np.sqrt(np.mean(np.diff(wrong, axis=0) ** 2, axis=(1, 2)))
    assert steps[SIDE // 2 - 2 : SIDE // 2 + 2].max() < 1.3 * steps.max()
    assert any("held by one stack alone: there it is nearly what enhance gives" in note for note in done.notes)


def test_nothing_that_goes_in_is_changed():
    before = [volume.voxels.copy() for volume in STACKS.values()]
    combined(*STACKS.values())
    for volume, voxels in zip(STACKS.values(), before, strict=True):
        np.testing.assert_array_equal(volume.voxels, voxels)


# ---- placing


BODY_SIDE = 56
BODY_GRID = affine_of(2, (BODY_SIDE, BODY_SIDE, BODY_SIDE)) @ np.diag([1, 1, 1 / THICK_MM, 1])
BODY_GRID[2, 3] = -(BODY_SIDE - 1) / 2


def slices_of_body(axis, motion):
    """Slices of 4 mm of a larger body with texture."""
    texture = gaussian_filter(np.random.default_rng(3).standard_normal((BODY_SIDE + 16,) * 3), 1.8)
    texture = 500 + 300 * texture / texture.std()
    larger = BODY_GRID.copy()
    larger[:3, 3] -= 8
    moved = resample(texture.astype(np.float32), larger, (BODY_SIDE,) * 3, motion @ BODY_GRID)
    centres = 1.5 + 4 * np.arange(BODY_SIDE // 4)
    thick = Acquisition(centres, BODY_SIDE, 4.0, "gaussian", axis).forward(moved)
    affine = BODY_GRID.copy()
    affine[:3, axis] *= 4
    affine[axis, 3] += 1.5
    return Volume(thick.astype(np.float32), affine, thickness_mm=4.0)


@pytest.fixture(scope="module")
def body():
    """Three stacks of it; the coronal one lies where its header does not say."""
    return [slices_of_body(2, np.eye(4)), slices_of_body(1, MOTION), slices_of_body(0, np.eye(4))]


def test_a_stack_that_moved_is_placed_where_it_fits(body, tmp_path):
    pytest.importorskip("SimpleITK")
    done = combined(*body, registration=True, profile="gaussian", thickness_mm=4.0)
    middle = np.array([0, 0, 0, 1.0])
    found = done.stacks[1]
    assert np.linalg.norm((found.motion @ middle - MOTION @ middle)[:3]) < 0.15
    assert found.turned_degrees == pytest.approx(np.sqrt(2**2 + 1.5**2 + 2**2), abs=0.2)
    assert found.moved_mm == pytest.approx(np.linalg.norm(MOTION[:3, 3]), abs=0.15)
    assert "moved by 2.2 mm and 3.2 degrees" in found.describe()
    np.testing.assert_array_equal(done.stacks[0].motion, np.eye(4))
    assert done.stacks[2].moved_mm < 0.1
    believed = combined(*body, profile="gaussian", thickness_mm=4.0)
    assert found.fit.rms_percent < 0.5 * believed.stacks[1].fit.rms_percent
    np.testing.assert_array_equal(believed.stacks[1].motion, np.eye(4))


@catches(
    "combination.py",
    "placed = _refine(stacks, used, grid, part_of(progress, 0.0, 0.3)) if registration",
    "placed = list(stacks) if registration",
)
def test_what_registration_leaves_is_found_by_the_slices_themselves(body, monkeypatch):
    pytest.importorskip("SimpleITK")
    alike = Likeness(0.9, 1.0)
    stays = Registration(np.eye(4), alike, alike, 0.0, 0.0)
    monkeypatch.setattr(combination, "register", lambda *_: stays)
    done = combined(*body, registration=True, profile="gaussian", thickness_mm=4.0)
    middle = np.array([0, 0, 0, 1.0])
    assert np.linalg.norm((done.stacks[1].motion @ middle - MOTION @ middle)[:3]) < 0.3


@catches("combination.py", "if number in beside or alike.is_same_body:", "if True:")
def test_a_stack_of_another_body_is_left_out_and_told(run, body, tmp_path):
    pytest.importorskip("SimpleITK")
    stranger = np.random.default_rng(5).standard_normal((56, 56, 56))
    stranger = gaussian_filter(stranger, 1.8)
    stranger = 500 + 300 * stranger / stranger.std()
    voxels = stranger.reshape(56, 14, 4, 56).mean(axis=2).astype(np.float32)
    files = [
        save(volume, tmp_path / f"{number}.nii")
        for number, volume in enumerate([body[0], body[2], replace(body[1], voxels=voxels)])
    ]
    code, said, err = run("combine", "-i", *files, "-o", tmp_path / "c.nii", "--model", "cubic")
    assert (code, err) == (0, [])
    assert said[0].startswith("2 stacks -> ")
    assert said[3].startswith("  2.nii: left out: it does not look like ")
    facts = json.loads((tmp_path / "c.json").read_text())["combined_from"]
    assert "likeness" in facts[2]["left_out"]
    assert "fit" not in facts[2]
    # The others are as if it had not been there.
    alone = combined(*files[:2], registration=True)
    np.testing.assert_array_equal(nifti.read(tmp_path / "c.nii").voxels, alone.array)
    # Nor does it go in as the first: which of them is the stranger is not known then.
    code, _, err = run("combine", "-i", *reversed(files), "-o", tmp_path / "d.nii", "--model", "cubic")
    assert (code, len(err)) == (2, 1)
    assert "got no stack that fits 2.nii (" in err[0]


def test_registration_is_asked_of_each_stack_against_one_that_is_placed(monkeypatch):
    pytest.importorskip("SimpleITK")
    pairs = []

    def note(moving, fixed, *more):
        pairs.append((moving, fixed))
        return register(moving, fixed, *more)

    monkeypatch.setattr(combination, "register", note)
    combined(FIRST, STACKS["coronal"], STACKS["sagittal"], registration=True)
    assert len(pairs) == 2


@catches("combination.py", "and (share > 0 or continues or pair[0] not in reasons)", "and pair[0] not in reasons")
def test_a_stack_that_does_not_fit_one_is_tried_with_others(monkeypatch):
    """The second one fits the third alone, which is placed after it was tried: the third shares less with the first."""
    alike, strange = Likeness(0.9, 1.0), Likeness(0.1, 1.0)
    pairs = []

    def believe(moving, fixed):
        pairs.append(tuple(int(volume.voxels.max()) for volume in (moving, fixed)))
        likeness = strange if set(pairs[-1]) == {1, 2} else alike
        return Registration(np.eye(4), likeness, likeness, 0.0, 0.0)

    def numbered(number, shape):
        scan = Volume(np.full(shape, float(number)), np.eye(4))
        return Stack(scan, None, scan)

    monkeypatch.setattr(combination, "register", believe)
    stacks = [numbered(1, (20, 20, 20)), numbered(2, (20, 20, 20)), numbered(3, (20, 20, 40))]
    _, likeness, left_out, _ = combination._place(stacks, ["a", "b", "c"], True, lambda share: None)
    assert pairs == [(2, 1), (3, 1), (2, 3)]
    assert likeness == [1.0, 0.9, 0.9]
    assert left_out == {}
    stacks[2] = numbered(2, (20, 20, 40))
    _, _, left_out, _ = combination._place(stacks, ["a", "b", "c"], True, lambda share: None)
    assert list(left_out) == [1, 2]


@catches("combination.py", "return replace(stack, thin=done.volume, fell_back=fell_back)", "return stack")
@catches("combination.py", "motions @ stack.motion, parts,", "motions, parts,")
@catches("combination.py", "if first.slice_motions is not None:", "if False:")
def test_packages_that_moved_within_a_stack_are_placed_and_told(body, tmp_path):
    pytest.importorskip("SimpleITK")
    still, moved, other = body
    # Every second slice of the coronal stack was acquired where the body lay at first.
    back = slices_of_body(1, np.eye(4)).voxels
    mixed = moved.voxels.copy()
    mixed[:, ::2] = back[:, ::2]
    stack = replace(moved, voxels=mixed)
    done = combined(still, stack, other, registration=True, profile="gaussian", thickness_mm=4.0)
    within = done.stacks[1].within
    assert within.parts == 2
    middle = np.array([0, 0, 0, 1.0])
    np.testing.assert_allclose((within.motions[1] @ middle)[:3], (MOTION @ middle)[:3], atol=0.2)
    np.testing.assert_allclose((within.motions[0] @ middle)[:3], 0, atol=0.2)
    assert "its 2 packages of slices up to " in done.stacks[1].describe()
    facts = json.loads(done.to_json())["combined_from"]
    assert facts[0]["within"] is facts[2]["within"] is None
    np.testing.assert_allclose(facts[1]["within"]["motions"], within.motions)
    assert [one.within is None for one in done.stacks] == [True, False, True]
    without = combined(still, stack, other, profile="gaussian", thickness_mm=4.0)
    best = combined(still, replace(moved, voxels=back), other, profile="gaussian", thickness_mm=4.0)
    off, was = (np.std((each.array - best.array)[8:-8, 8:-8, 8:-8]) for each in (done, without))
    assert off < 0.2 * was
    drawn = replace(stack, voxels=(mixed > 100).astype(np.uint8))
    first = combined(stack, still, other, registration=True, profile="gaussian", thickness_mm=4.0, labels=drawn)
    assert any("labels: they stay where they were drawn, though slices" in note for note in first.notes)


def test_without_simpleitk_a_way_out_is_named(run, scans, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    words = ["combine", "-i", scans["axial"], scans["coronal"], "-o", tmp_path / "out" / "c.nii", "--model", "cubic"]
    code, said, err = run(*words)
    assert (code, said) == (2, [])
    assert err == [
        "thinslice: got no SimpleITK; need it to find motion between stacks; "
        "next: pip install 'thinslice[combine]', or give --no-registration"
    ]
    assert names(tmp_path) == ["in"]
    assert run(*words, "--no-registration")[0] == 0


# ---- what goes along


@catches("combination.py", "to_thin = np.linalg.solve(thin.affine, grid.affine)", "to_thin = np.eye(4)")
def test_labels_lie_where_the_body_does(run, scans, tmp_path):
    drawn = (FIRST.voxels > 150).astype(np.uint8)
    seg = save(replace(FIRST, voxels=drawn), tmp_path / "in" / "seg.nii.gz")
    words = ["combine", "-i", scans["axial"], scans["coronal"], "--labels", seg, *PLAIN]
    assert run(*words, "-o", tmp_path / "c.nii.gz", "--spacing", 0.8)[0] == 0
    found = nifti.read(tmp_path / "c_labels.nii.gz")
    truth = sampled(found.shape, found.affine) > 150 / 800
    both = np.count_nonzero(found.voxels.astype(bool) & truth)
    assert 2 * both / (np.count_nonzero(found.voxels) + np.count_nonzero(truth)) > 0.9
    assert found.voxels.dtype.kind in "iu"
    # In another place, by another name.
    assert run(*words, "-o", tmp_path / "d.nii", "--labels-out", tmp_path / "drawn.nii")[0] == 0
    assert not (tmp_path / "d_labels.nii").exists()
    # Without a change of grid they are what enhance brings along.
    thin = thinslice.enhance(FIRST, model="cubic").labels_to_thin(Volume(drawn, FIRST.affine))
    np.testing.assert_array_equal(np.asarray(getattr(thin, "voxels", thin)), nifti.read(tmp_path / "drawn.nii").voxels)


@catches("api.py", "labels is not None and _is_bare(labels) else None", "labels is not None else None")
def test_labels_of_arrays_lie_where_the_first_array_does():
    drawn = (FIRST.voxels > 500).astype(np.uint8)
    arrays, affines = [FIRST.voxels, STACKS["coronal"].voxels], [FIRST.affine, STACKS["coronal"].affine]
    done = combined(*arrays, affines=affines, labels=drawn)
    other = combined(*arrays, affines=affines, labels=Volume(drawn, FIRST.affine))
    np.testing.assert_array_equal(done.segmentation.voxels, other.segmentation.voxels)
    assert done.segmentation.voxels.any()


def test_the_map_of_stacks(run, scans, tmp_path):
    half = replace(STACKS["coronal"], voxels=np.ascontiguousarray(STACKS["coronal"].voxels[:, :6]))
    files = [scans["axial"], save(half, tmp_path / "half.nii"), scans["sagittal"]]
    run("combine", "-i", *files, "-o", tmp_path / "c.nii", "--held-by", tmp_path / "held.mha", *PLAIN)
    held = formats.read(tmp_path / "held.mha")
    assert held.voxels.dtype == np.uint8
    np.testing.assert_allclose(held.affine, nifti.read(tmp_path / "c.nii").affine, atol=1e-4)
    assert (held.voxels[:, :24] == 3).all()
    assert (held.voxels[:, 25:] == 2).all()


def test_the_page_shows_all_of_it_offline(run, scans, tmp_path):
    page = tmp_path / "page.html"
    run("combine", "-i", scans["axial"], scans["coronal"], "-o", tmp_path / "c.nii", "--report", page, *PLAIN)
    text = page.read_text()
    for word in ("axial.nii.gz", "coronal.nii.gz", "stacks that hold it", "differs by"):
        assert word in text
    assert 'src="http' not in text


# ---- what is refused


def stranger():
    noise = gaussian_filter(np.random.default_rng(1).standard_normal((SIDE, SIDE, SIDE)), 2)
    voxels = (800 + 2000 * noise).reshape(SIDE, 10, 4, SIDE).mean(axis=2)
    return replace(STACKS["coronal"], voxels=voxels.astype(np.int16))


def isotropic():
    noise = gaussian_filter(np.random.default_rng(1).standard_normal((SIDE, SIDE, SIDE)), 2)
    return Volume((800 + 2000 * noise).astype(np.int16), np.diag([1.0, 1.0, 1.0, 1.0]))


AWAY = np.eye(4)
AWAY[0, 3] = 500.0

REFUSED = {
    "one alone": (lambda: [FIRST], {}, "one-stack", "got 1 stack; need two or more of one body"),
    "none": (list, {}, "one-stack", "got no stack"),
    "the same twice": (lambda: [FIRST, FIRST], {}, "stack-given-twice", "the same slices as"),
    "a series": (
        lambda: [FIRST, replace(STACKS["coronal"], voxels=np.stack([STACKS["coronal"].voxels] * 3, axis=-1))],
        {},
        "stack-is-series",
        "two: got a series of 3 volumes",
    ),
    "flat": (
        lambda: [FIRST, replace(STACKS["coronal"], voxels=np.full((40, 10, 40), 7))],
        {},
        "stack-is-flat",
        "same value",
    ),
    "elsewhere": (
        lambda: [FIRST, as_moved(STACKS["coronal"], AWAY)],
        {},
        "stacks-do-not-fit",
        "its field of view does not meet that of one",
    ),
    "somebody else": (lambda: [FIRST, stranger()], {}, "stacks-do-not-fit", "it does not look like one where both see"),
    "isotropic": (lambda: [FIRST, isotropic()], {}, "stack-is-thin", "two: got slices 1 mm apart"),
    "isotropic first": (lambda: [isotropic(), FIRST], {}, "isotropic", "one: got slices 1 mm apart"),
    "a localizer": (
        lambda: [FIRST, Volume(FIRST.voxels[:, :, 2:5], FIRST.affine)],
        {},
        "stack-is-short",
        "two: got 3 slices, as of a localizer",
    ),
    "a grid that is too large": (
        lambda: [FIRST, STACKS["coronal"]],
        {"spacing_mm": 0.01},
        "grid-too-large",
        "4000 x 4000",
    ),
    "a grid too large of a scan": (
        lambda: [FIRST, STACKS["coronal"]],
        {"grid": Volume(np.broadcast_to(np.uint8(0), (1000, 1000, 1000)), np.diag([0.1, 0.1, 0.1, 1.0]))},
        "grid-too-large",
        f"{MOST_VOXELS:,} at most",
    ),
    "a grid elsewhere": (
        lambda: [FIRST, STACKS["coronal"]],
        {"grid": as_moved(FIRST, AWAY)},
        "grid-sees-nothing",
        "a grid where no stack lies",
    ),
    "two grids": (lambda: [FIRST, STACKS["coronal"]], {"grid": FIRST, "spacing_mm": 1.0}, "two-grids", "one of them"),
    "no thick slices": (
        lambda: [FIRST, STACKS["coronal"]],
        {"spacing_mm": 5.0},
        "stack-is-thin",
        "a smaller `spacing_mm`",
    ),
    "a negative spacing": (
        lambda: [FIRST, STACKS["coronal"]],
        {"spacing_mm": -1.0},
        "not-a-positive-number",
        "`spacing_mm=-1`",
    ),
    "labels of another scan": (
        lambda: [FIRST, STACKS["coronal"]],
        {"labels": Volume(np.zeros((40, 10, 40), np.uint8), STACKS["coronal"].affine)},
        "other-grid",
        "labels of 40 x 10 x 40 voxels",
    ),
}


@catches("combination.py", "if slices < FEWEST_SLICES:", "if slices < 2:")
@catches("combination.py", "if is_there and np.array_equal(scan.voxels, other.voxels):", "if False:")
@catches("combination.py", "if np.prod(found.shape, dtype=np.float64) > MOST_VOXELS:", "if False:")
@catches("combination.py", "_share_inside(scan, box) > 0 or", "True or")
@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_several_stacks_is_refused(what):
    make, more, code, text = REFUSED[what]
    stacks = make()
    with pytest.raises((InputRefused, PlanRefused), match="got") as caught:
        combine_volumes(
            stacks, lambda _: interpolation("cubic"), names=["one", "two"][: len(stacks)], registration=False, **more
        )
    assert caught.value.code == code
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.got


ON_THE_COMMAND_LINE = {
    "one alone": (["axial"], "got 1 stack"),
    "missing": (["axial", "none"], "none.nii.gz: got no access"),
    "flat": (["axial", "flat"], "flat.nii.gz: got the same value everywhere"),
    "a series": (["axial", "series"], "series.nii.gz: got a series of 2 volumes"),
    "elsewhere": (["axial", "away"], "(away.nii.gz: its field of view does not meet that of axial.nii.gz)"),
    "two contrasts": (["t1", "t2"], "t2.nii.gz: got another contrast than t1.nii.gz (echo times of 12 and 100 ms"),
    "no scan": (["axial", "text"], "text.nii.gz: got"),
}


@catches("combination.py", "if match.is_same is False:", "if False:")
@pytest.mark.parametrize("what", ON_THE_COMMAND_LINE)
def test_a_refusal_is_one_line_and_leaves_nothing(run, scans, tmp_path, what):
    folder = tmp_path / "in"
    save(replace(FIRST, voxels=np.full_like(FIRST.voxels, 3)), folder / "flat.nii.gz")
    save(replace(FIRST, voxels=np.stack([FIRST.voxels] * 2, axis=-1)), folder / "series.nii.gz")
    save(as_moved(STACKS["coronal"], AWAY), folder / "away.nii.gz")
    (folder / "text.nii.gz").write_text("no scan")
    for name, volume, echo_s, repetition_s in (("t1", FIRST, 0.012, 0.6), ("t2", STACKS["coronal"], 0.1, 4.0)):
        save(volume, folder / f"{name}.nii.gz")
        facts = {"Modality": "MR", "EchoTime": echo_s, "RepetitionTime": repetition_s}
        (folder / f"{name}.json").write_text(json.dumps(facts))
    before = names(folder)
    chosen, text = ON_THE_COMMAND_LINE[what]
    out = tmp_path / "out"
    files = [folder / f"{name}.nii.gz" for name in chosen]
    code, said, err = run(
        "combine", "-i", *files, "-o", out / "c.nii", "--held-by", out / "h.nii", "--report", out / "r.html", *PLAIN
    )
    assert (code, said, len(err)) == (2, [], 1)
    assert err[0].startswith("thinslice: ")
    assert text in err[0]
    assert names(tmp_path) == ["in"]
    assert names(folder) == before


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["-o", "in/axial.nii.gz", "--overwrite"], "an output that is an input"),
        (["-o", "c.nii", "--held-by", "c.nii"], "one name for"),
        (["-o", "c.nii", "--report", "page.txt"], "need .html or .htm"),
        (["-o", "c.txt"], "need a name that ends in .nii.gz"),
        (["-o", "c.nii", "--held-by", "h.jpg"], "another kind of name for --held-by"),
        (["-o", "c.nii", "--labels-out", "l.nii"], "got --labels-out without --labels"),
        (["-o", "there.nii"], "exists already"),
        (["-o", "c.nii", "--grid", "nowhere"], "nowhere: got no access"),
        (["-o", "c.nii", "--grid", "in/axial.nii.gz", "--spacing", "1"], "got --spacing and a volume as --grid"),
        (["-o", "c.nii", "--spacing", "0.01"], "give a larger --spacing"),
        (["-o", "c.nii", "--spacing", "-1"], "'-1' is not a positive number"),
        (["-o", "c.nii", "--model", "none"], "got model 'none'"),
        (["-o", "c.nii", "--profile", "round"], "invalid choice: 'round'"),
        (["-o", "in/axial.nii.gz/c.nii"], "got a file; need a folder to write into"),
    ],
)
def test_places_and_options_that_cannot_be(run, scans, tmp_path, monkeypatch, words, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.nii").write_text("mine")
    code, said, err = run("combine", "-i", "in/axial.nii.gz", "in/coronal.nii.gz", *PLAIN, *words)
    assert (code, said, len(err)) == (2, [], 1)
    assert text in err[0]
    assert names(tmp_path) == ["in", "there.nii"]
    assert (tmp_path / "there.nii").read_text() == "mine"
    np.testing.assert_array_equal(nifti.read(scans["axial"]).voxels, FIRST.voxels)


@catches("cli/combine.py", "check_places(places, inputs, arguments.overwrite)", "pass")
def test_places_are_checked_before_anything_is_read(run, scans, tmp_path, monkeypatch):
    monkeypatch.setattr("thinslice.pipeline.read_scan", lambda *_: pytest.fail("a scan was read"))
    code, _, err = run("combine", "-i", *scans.values(), "-o", scans["axial"], "--overwrite", *PLAIN)
    assert code == 2
    assert "is an input" in err[0]


@catches("combination.py", "short.count(name) > 1", "short.count(name) > 9")
def test_two_files_of_one_name_are_told_apart(run, scans, tmp_path):
    (tmp_path / "other").mkdir()
    twin = save(STACKS["coronal"], tmp_path / "other" / "axial.nii.gz")
    _, said, _ = run("combine", "-i", scans["axial"], twin, "-o", tmp_path / "c.nii", *PLAIN)
    assert said[1].startswith(f"  {scans['axial']}: ")
    assert said[2].startswith(f"  {twin}: ")


def test_what_is_not_finite_is_read_as_zero_and_noted(run, scans, tmp_path):
    voxels = STACKS["coronal"].voxels.astype(np.float32)
    voxels[3, 3, 3] = np.nan
    nibabel.save(nibabel.Nifti1Image(voxels, STACKS["coronal"].affine), tmp_path / "nan.nii")
    code, said, _ = run("combine", "-i", scans["axial"], tmp_path / "nan.nii", "-o", tmp_path / "c.nii", *PLAIN)
    assert code == 0
    assert "  note: nan.nii: 1 of 16,000 voxels were NaN or infinite and are read as 0" in said
    assert np.isfinite(nifti.read(tmp_path / "c.nii").voxels).all()


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"affines": [FIRST.affine]}, "got 1 affines for 2 images"),
        ({"threads": 0}, "`threads=0`"),
        ({"grid": "somewhere"}, "somewhere: got no access"),
        ({"profile": "round"}, "`profile=round`"),
        ({"model": "none"}, "got model 'none'"),
        ({"spacing_mm": float("nan")}, "`spacing_mm=nan`"),
    ],
)
def test_python_programs_are_told_as_plainly(scans, more, text):
    with pytest.raises(ThinsliceError, match="got") as caught:
        combined(scans["axial"], scans["coronal"], **more)
    assert text in str(caught.value)


def test_one_name_is_no_list(scans):
    with pytest.raises(InputRefused, match="need a list of stacks"):
        thinslice.combine(str(scans["axial"]))


def test_save_refuses_what_the_command_line_does(scans, tmp_path):
    done = combined(scans["axial"], scans["coronal"])
    done.save(tmp_path / "c.nii")
    for path, more, code in (
        ("c.nii", {}, "output-exists"),
        ("c.nii", {"labels_out": tmp_path / "l.nii"}, "labels-out"),
        (scans["coronal"], {"overwrite": True}, "output-is-input"),
        ("c.nrrd", {"overwrite": True}, "output-json-of-another"),
        ("c.doc", {}, "output-ending"),
    ):
        with pytest.raises(OutputRefused) as caught:
            done.save(tmp_path / path, **more)
        assert caught.value.code == code
    done.save(tmp_path / "c.nii", overwrite=True)
    assert names(tmp_path) == ["c.json", "c.nii", "in"]


# ---- failures on the way


@catches(
    "combination.py", "with all_or_none([*places.values()], overwrite) as parts:", "for parts in [[*places.values()]]:"
)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), MemoryError()])
@pytest.mark.parametrize("where", ["combine", "write", "json", "page", "rename"])
def test_a_failure_leaves_no_trace(run, scans, tmp_path, monkeypatch, error, where):
    def fail(*_, **__):
        raise error

    if where == "rename":
        real = atomic.move_to_free_name

        def move(source, target):
            if target.suffix == ".nii":
                raise error
            real(source, target)

        monkeypatch.setattr(atomic, "move_to_free_name", move)
    else:
        place = {
            "combine": "thinslice.combination.combine_stacks",
            "write": "thinslice.io.nifti.write",
            "json": "thinslice.combination.Combined.to_json",
            "page": "thinslice.combination.Combined.write_page",
        }[where]
        monkeypatch.setattr(place, fail)
    out = tmp_path / "out"
    code, said, err = run(
        "combine",
        "-i",
        *scans.values(),
        "-o",
        out / "c.nii",
        "--held-by",
        out / "h.nii",
        "--report",
        out / "r.html",
        *PLAIN,
    )
    assert (code, said, len(err)) == (130 if isinstance(error, KeyboardInterrupt) else 2, [], 1)
    assert names(tmp_path) == ["in"]


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(scans, tmp_path, kind):
    """It arrives when the JSON is written and the volume is not."""
    code = (
        "import signal, sys, time; from thinslice import cli, combination\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is deaf to it\n"
        "real = combination.Combined._write_one\n"
        "def slow(self, name, part):\n"
        "    real(self, name, part)\n"
        "    print('ready', flush=True), time.sleep(60)\n"
        "combination.Combined._write_one = slow\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    words = ["combine", "-i", *scans.values(), "-o", tmp_path / "out" / "c.nii", *PLAIN]
    with subprocess.Popen([sys.executable, "-c", code, *words], stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert any(name.startswith(".thinslice-") for name in names(tmp_path / "out"))
        process.send_signal(kind)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines() == ["thinslice: interrupted; no unfinished file was left behind"]
    assert names(tmp_path) == ["in"]


def test_a_failed_overwrite_keeps_the_earlier_answer(run, scans, tmp_path, monkeypatch):
    words = ["combine", "-i", *scans.values(), "-o", tmp_path / "out" / "c.nii", *PLAIN, "--overwrite"]
    assert run(*words)[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("thinslice.io.nifti.write", fail)
    assert run(*words, "--spacing", 2)[0] == 2
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@catches("combination.py", "labels = _fit_labels(labels, first_plan)", "pass")
def test_a_series_of_segmentations_is_refused_before_anything_is_computed(run, scans, tmp_path):
    drawn = np.zeros((*FIRST.voxels.shape, 2), np.uint8)
    nifti.write(Volume(drawn, FIRST.affine), tmp_path / "drawn.nii")
    stacks = scans["axial"], scans["coronal"]
    code, said, err = run(
        "combine", "-i", *stacks, "-o", tmp_path / "c.nii", "--labels", tmp_path / "drawn.nii", *PLAIN
    )
    assert (code, said, len(err)) == (2, [], 1)
    assert "a series of 2 segmentations" in err[0]
    assert not (tmp_path / "c.nii").exists()


def test_labels_from_another_corner_are_those_of_the_first_stack(tmp_path):
    drawn = np.zeros(FIRST.voxels.shape, np.uint8)
    drawn[8:30, 10:24, 3:8] = 5
    affine = FIRST.affine[:, [2, 0, 1, 3]].copy()
    affine[:3, 3] += affine[:3, 1] * (drawn.shape[0] - 1)
    affine[:3, 1] *= -1
    elsewhere = Volume(np.flip(drawn.transpose(2, 0, 1), 1), affine)
    words = {"model": "cubic", "registration": False}
    stacks = [FIRST, STACKS["coronal"]]
    found = thinslice.combine(stacks, labels=elsewhere, **words)
    expected = thinslice.combine(stacks, labels=Volume(drawn, FIRST.affine), **words)
    np.testing.assert_array_equal(found.segmentation.voxels, expected.segmentation.voxels)
    np.testing.assert_array_equal(found.segmentation.affine, found.volume.affine)
    assert (found.segmentation.voxels == 5).any()
