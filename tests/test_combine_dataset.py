"""What is combined of a BIDS data set, and what is left out of it: by thinslice combine."""

import json
from dataclasses import replace

import numpy as np
import pytest

from faults import catches
from thinslice.datasets.groups import find_odd
from thinslice.io import nifti
from visits import BODY, FAST, SIDE, across, add_visit, is_like_body

T2 = {"EchoTime": 0.1, "RepetitionTime": 4.0, "ScanningSequence": "SE"}
PD = T2 | {"EchoTime": 0.02}


@pytest.fixture
def raw(tmp_path):
    return tmp_path / "raw"


def combine(run, raw, out, *words):
    return run("combine", "-i", raw, "-o", out, *FAST, *words)


def answer(out, subject="01", ending="nii.gz"):
    return out / f"sub-{subject}" / "anat" / f"sub-{subject}_res-iso_desc-combined_T2w.{ending}"


def facts_of(out, subject="01"):
    return json.loads(answer(out, subject, "json").read_text())


def spoilt(kind):
    """What is no stack of the others."""
    return {
        "thin": lambda: across(2, thick=1),
        "short": lambda: replace(across(2), voxels=across(2).voxels[:, :, 4:8]),
        "of several volumes": lambda: replace(across(2), voxels=np.stack([across(2).voxels] * 2, axis=3)),
        "flat": lambda: replace(across(2), voxels=np.zeros_like(across(2).voxels)),
        "a copy": lambda: across(0),
    }[kind]()


@catches("datasets/groups.py", "if thick_mm < THICK_FROM * in_plane_mm:", "if False:")
@catches("datasets/groups.py", "if count < FEWEST_SLICES else", "if count < 0 else")
@catches("combination.py", "            odd[names[number]] = ", "            _ = ")
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("thin", "thin already"),
        ("short", "fewer than 5"),
        ("of several volumes", "a series of 2 volumes"),
        ("flat", "the same value everywhere"),
        ("a copy", "the same slices as"),
    ],
)
def test_an_odd_image_of_a_visit_is_left_out_and_the_others_are_combined(tmp_path, run, raw, kind, reason):
    """By name it is the first, which would set the grid; a copy is that of an image before it."""
    odd = "acq-sag_run-2_T2w" if kind == "a copy" else "acq-a_T2w"
    add_visit(raw, "01", {odd: spoilt(kind), "acq-cor_T2w": across(1), "acq-sag_run-1_T2w": across(0)})
    code, out, err = combine(run, raw, tmp_path / "out")
    assert (code, err) == (0, [])
    assert sum(f"sub-01_{odd}.nii.gz: left out: " in line and reason in line for line in out) == 1
    assert is_like_body(answer(tmp_path / "out"))
    facts = facts_of(tmp_path / "out")
    assert [(name, reason in why) for name, why in facts["odd"].items()] == [(f"sub-01_{odd}.nii.gz", True)]
    assert len(facts["combined_from"]) == 2


@catches("datasets/groups.py", "group = max(kinds, key=len, default=[])", "group = kinds[0]")
@catches("datasets/groups.py", "contrast_beside(path, inherited[path]) for path", "contrast_beside(path) for path")
def test_what_is_of_another_contrast_by_inherited_headers_is_left_out(tmp_path, run, raw):
    """Echo times stand in files that hold for several images; most images are of one of them."""
    images = {"acq-apd_T2w": across(2), "acq-cor_T2w": across(1), "acq-sag_T2w": across(0)}
    add_visit(raw, "01", images, **{"acq-apd_T2w": {"FlipAngle": 90}})
    (raw / "T2w.json").write_text(json.dumps(T2))
    (raw / "sub-01" / "sub-01_acq-apd_T2w.json").write_text(json.dumps(PD))
    code, out, err = combine(run, raw, tmp_path / "out")
    assert (code, err) == (0, [])
    (line,) = [line for line in out if "left out" in line]
    assert "acq-apd" in line
    assert "echo times of 100 and 20 ms" in line
    assert facts_of(tmp_path / "out")["Sources"] == [
        f"bids:raw:sub-01/anat/sub-01_acq-{a}_T2w.nii.gz" for a in ("cor", "sag")
    ]


@catches("datasets/groups.py", "for kind in homes:", "for kind in homes[:1]:")
def test_what_says_nothing_of_its_contrast_is_of_that_of_most(raw):
    """By name it comes after one of each contrast."""
    names = ("acq-apd", "acq-cor", "acq-mute", "acq-tra")
    facts = {"acq-apd_T2w": PD, "acq-cor_T2w": T2, "acq-tra_T2w": T2}
    folder = add_visit(raw, "01", {f"{name}_T2w": across(number % 3) for number, name in enumerate(names)}, **facts)
    stacks = [folder / f"sub-01_{name}_T2w.nii.gz" for name in names]
    assert list(find_odd(stacks, dict.fromkeys(stacks, ()))) == stacks[:1]


@catches(
    "datasets/job.py",
    "read(path), inherited), contrast_beside(path, inherited)",
    "read(path), inherited), contrast_beside(path)",
)
@catches("combination.py", "contrasts=[contrasts[number] for number in used],", "")
def test_what_is_inherited_makes_no_two_contrasts_of_one(tmp_path, run, raw):
    """One image says by itself what the other one inherits."""
    add_visit(raw, "01", {"acq-cor_T2w": across(1), "acq-sag_T2w": across(0)}, **{
        "acq-cor_T2w": T2, "acq-sag_T2w": T2 | {"InversionTime": 0.15},
    })  # fmt: skip
    (raw / "T2w.json").write_text('{"InversionTime": 0.15}')
    assert combine(run, raw, tmp_path / "out")[::2] == (0, [])
    (raw / "T2w.json").unlink()
    code, _, err = combine(run, raw, tmp_path / "other")
    assert (code, len(err)) == (2, 1)
    assert "inversion time of 150 ms and none" in err[0]


@catches("cli/combine.py", "    if len(chosen) < 2:\n", "    if len(chosen) < 1:\n")
def test_a_visit_without_two_that_belong_together_is_told_and_the_next_one_goes_on(tmp_path, run, raw):
    add_visit(raw, "01", {"acq-thin_T2w": across(2, thick=1), "acq-sag_T2w": across(0)})
    add_visit(raw, "02", {"acq-cor_T2w": across(1), "acq-sag_T2w": across(0)})
    code, _, err = combine(run, raw, tmp_path / "out")
    assert (code, len(err)) == (2, 1)
    assert "thin already" in err[0]
    assert "sub-01_res-iso_desc-combined_T2w" in err[0]
    assert not answer(tmp_path / "out").exists()
    assert is_like_body(answer(tmp_path / "out", "02"))


@catches("combination.py", "grid=grid or choose_grid(chosen)", 'grid=grid or "first"')
@catches("cli/combine.py", '("first" if stacks.odd is None else None)', '"first"')
def test_stations_of_one_direction_are_shown_whole(tmp_path, run, raw):
    """Those that only touch as well: files say where the scanner saw them."""
    add_visit(raw, "01", {"acq-cervical_T2w": across(0, 24), "acq-lumbar_T2w": across(0, 0, 24)})
    code, out, err = combine(run, raw, tmp_path / "out")
    assert (code, err) == (0, [])
    assert nifti.read(answer(tmp_path / "out")).shape == BODY.shape
    assert any("hardly overlaps" in line for line in out)
    code, _, err = combine(run, raw, tmp_path / "first", "--grid", "first")
    assert (code, err) == (0, [])
    assert nifti.read(answer(tmp_path / "first")).shape == (SIDE, SIDE, SIDE // 2)
