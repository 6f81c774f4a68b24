"""Laws of what alternates from slice to slice: it is found where it was put in, nowhere else, and taken out whole."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, shift

from faults import catches
from phantoms import curved
from thinslice.cli import main
from thinslice.compute.consistency import check
from thinslice.compute.upsample import upsample
from thinslice.io.formats import write
from thinslice.models.interpolations import interpolation
from thinslice.physics.interleaving import Alternation, find_alternation, make_even
from thinslice.plan import Plan, make_plan
from thinslice.settings import Settings
from thinslice.volume import Volume

CUBIC = interpolation("cubic")


def anatomy(n=20, side=72, seed=0):
    """A textured body that narrows towards both ends, tilted; 0 .. 100 and more, slices along the first axis."""
    rng = np.random.default_rng(seed)
    texture = gaussian_filter(rng.standard_normal((n, side, side)), (1.2, 3, 3))
    z, y, x = np.ogrid[-1 : 1 : n * 1j, -1 : 1 : side * 1j, -1 : 1 : side * 1j]
    body = gaussian_filter(((0.5 * z) ** 2 + (y - 0.2 * z) ** 2 + x**2 < 0.7).astype(float), (0, 1, 1))
    return (body * (60 + 12 * texture / texture.std())).astype(np.float32)


def uneven(stack, gain=1.0, moved=(0.0, 0.0)):
    """The second, fourth, ... slices are brighter, and their image lies further along lines and columns."""
    stack = stack.copy()
    for i in range(1, len(stack), 2):
        stack[i] = gain * shift(stack[i], moved, order=3, mode="nearest")
    return stack


def as_volume(stack, dtype=np.float32, axis=0):
    spacing = [4.0 if i == axis else 1.0 for i in range(3)]
    return Volume(np.ascontiguousarray(np.moveaxis(stack, 0, axis)).astype(dtype), np.diag([*spacing, 1.0]))


@catches("physics/interleaving.py", "change = values[1:-1] / 2", "change = -values[1:-1] / 2")
@catches("physics/interleaving.py", "np.where(np.arange(len(change)) % 2, 1, -1)", "1")
@pytest.mark.parametrize("gain", [0.9, 0.95, 1.05, 1.1])
@pytest.mark.parametrize("n", [14, 21])
def test_a_gain_that_was_put_in_is_found(gain, n):
    found = find_alternation(uneven(anatomy(n), gain))
    assert found.gain == pytest.approx(gain, abs=0.01)
    assert found.shift_px == (0, 0)


@catches("physics/interleaving.py", "now + more if now else 0.0", "now")
@pytest.mark.parametrize("moved", [(0.5, 0.0), (0.0, -0.4), (-0.6, 0.8), (1.5, 0.0)])
def test_a_shift_that_was_put_in_is_found(moved):
    found = find_alternation(uneven(anatomy(), moved=moved))
    assert found.shift_px == pytest.approx(moved, abs=0.02)
    assert found.gain == 1


def test_both_are_found_together_in_noise():
    stack = uneven(anatomy(), 1.08, (0.6, 0.0))
    found = find_alternation(stack + np.random.default_rng(0).normal(scale=3, size=stack.shape))
    assert found.gain == pytest.approx(1.08, abs=0.015)
    assert found.shift_px == pytest.approx((0.6, 0), abs=0.1)


@catches("physics/interleaving.py", "STANDARD_ERRORS * error", "0")
@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_found_in_anatomy(seed):
    rng = np.random.default_rng(seed)
    stack = anatomy(int(rng.integers(8, 30)), seed=seed)
    # Slices that differ by chance do not alternate.
    stack *= rng.normal(1, 0.03, (len(stack), 1, 1)).astype(np.float32)
    stack = np.stack([shift(one, rng.normal(0, 0.2, 2), order=3) for one in stack])
    assert find_alternation(stack) == Alternation()


@catches("physics/interleaving.py", "kept = signed\n", "pass\n")
@pytest.mark.parametrize("n", range(8, 14))
def test_brightness_that_comes_and_goes_slowly_does_not_alternate(n):
    x, y, z = np.indices((40, 36, n))
    waves = 500 + 300 * np.sin(x / 5) * np.cos(y / 6) + 200 * np.sin(1.1 * z)
    assert find_alternation(np.moveaxis(waves, 2, 0)) == Alternation()


def test_in_few_small_or_empty_slices_nothing_is_looked_for():
    assert find_alternation(uneven(anatomy(7), 1.2)) == Alternation()
    assert find_alternation(uneven(anatomy(20, 14), 1.2)) == Alternation()
    assert find_alternation(np.zeros((12, 40, 40))) == Alternation()
    assert find_alternation(np.full((12, 40, 40), -2000), padding=-2000) == Alternation()


@catches("physics/interleaving.py", "if zero < HOUNSFIELD_ZERO:", "if True:")
def test_hounsfield_units_have_no_gain():
    hounsfield = 20 * uneven(anatomy(), 1.1, (0.5, 0)) - 1000
    found = find_alternation(hounsfield)
    assert found.gain == 1
    assert found.shift_px == pytest.approx((0.5, 0), abs=0.05)


@catches(
    "physics/interleaving.py", "first, top, left = max(n - MOST_SLICES, 0) // 4 * 2", "first, top, left = (n - 48) // 2"
)
def test_the_middle_of_a_long_stack_keeps_its_order():
    assert find_alternation(uneven(anatomy(50), 1.1)).gain == pytest.approx(1.1, abs=0.01)


@catches("physics/interleaving.py", "sign * shift / 2", "-sign * shift / 2")
@catches("physics/interleaving.py", "alternation.gain ** (-sign / 2)", "alternation.gain ** -sign")
def test_even_slices_are_those_that_all_would_be_half_way():
    clean = anatomy()
    even = make_even(uneven(clean, 1.21, (0.6, 0.0)), Alternation(1.21, (0.6, 0.0)))
    half_way = 1.1 * np.stack([shift(one, (0.3, 0), order=3, mode="nearest") for one in clean])
    apart = (even - half_way)[:, 5:-5, 5:-5]
    assert np.sqrt(np.mean(apart**2)) < 0.5


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_without_anything_to_correct_the_slices_stay_as_they_are(dtype):
    stack = anatomy().astype(dtype)
    assert make_even(stack, Alternation()) is stack
    even = make_even(stack, Alternation(1.1))
    assert even.dtype == (np.float64 if dtype in (np.int32, np.float64) else np.float32)
    np.testing.assert_allclose(even[1::2], stack[1::2] / 1.1**0.5, rtol=1e-5)


@pytest.mark.parametrize("n", [10, 11])
@pytest.mark.parametrize("moved", [(0.0, 0.0), (0.4, -0.7)])
def test_the_mirror_image_is_corrected_as_its_mirror_image(n, moved):
    stack, found = anatomy(n, 40), Alternation(1.3, moved)
    mirrored = make_even(stack[::-1, ::-1, ::-1], found.mirrored(n))[::-1, ::-1, ::-1]
    np.testing.assert_allclose(mirrored, make_even(stack, found), atol=1e-3)


# ---- the whole way


def planned(volume, model=CUBIC, **wish):
    return make_plan(volume, Settings(**{"profile": "gaussian", **wish}), model)


@catches("compute/upsample.py", "make_even(_Padding(thick, plan).filled(thick), plan.alternation)", "thick")
@catches("compute/consistency.py", "make_even(thick, plan.alternation), thin", "thick, thin")
@pytest.mark.parametrize("model", [CUBIC, curved()], ids=["cubic", "network"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_answer_is_that_of_even_slices(model, axis):
    clean = as_volume(anatomy(), axis=axis)
    volume = as_volume(uneven(anatomy(), 1.1), axis=axis)
    plan = planned(volume)
    assert plan.alternating_gain == pytest.approx(1.1, abs=0.01)
    answer = upsample(volume, plan, model).volume
    level = plan.alternating_gain**0.5
    expected = upsample(clean, planned(clean), model).volume.voxels * level
    assert np.abs(answer.voxels - expected).max() < 0.02 * np.ptp(expected)
    assert check(volume, answer, plan).rms_percent < 0.3
    left = planned(volume, interleaving=False)
    assert left.alternation == Alternation()
    assert not any("every other slice" in note for note in left.notes)


def test_the_plan_says_what_was_found_and_repeats_it():
    plan = planned(as_volume(uneven(anatomy(), 0.9, (0.5, 0.0))))
    (note,) = (note for note in plan.notes if "every other slice" in note)
    assert "every other slice is 10.0 % darker and shifted by 0.49 mm" in note
    assert "`interleaving=False`" in note
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert json.loads(plan.to_json())["alternating_gain"] == plan.alternating_gain


@catches("cli/words.py", '("interleaving", "False"): "--no-interleaving",', "")
def test_the_command_line_corrects_it_says_so_and_can_leave_it(tmp_path, capsys):
    write(as_volume(uneven(anatomy(), 1.1)), tmp_path / "scan.nii.gz")
    asked = ["enhance", "-i", str(tmp_path / "scan.nii.gz"), "--model", "cubic", "-o"]
    assert main([*asked, str(tmp_path / "even.nii.gz")]) == 0
    assert "every other slice is 10.0 % brighter" in (said := capsys.readouterr().out)
    assert "--no-interleaving leaves them as they are" in said
    assert main([*asked, str(tmp_path / "left.nii.gz"), "--no-interleaving"]) == 0
    assert "every other slice" not in capsys.readouterr().out
    even, left = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("even", "left"))
    assert even["plan"]["alternating_gain"] == pytest.approx(1.1, abs=0.01)
    assert even["consistency"]["rms_percent"] < 0.3
    assert left["plan"]["alternating_gain"] == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32])
def test_whole_numbers_are_corrected_too(dtype):
    stack = uneven(anatomy(), 1.1)
    volume = as_volume(np.rint(stack), dtype)
    plan = planned(volume)
    out = np.empty(plan.shape_thin, np.int16)
    answer = upsample(volume, plan, CUBIC, out=out).volume
    floats = upsample(as_volume(stack), plan, CUBIC).volume
    assert np.abs(answer.voxels - floats.voxels).max() <= 2
    assert check(volume, answer, plan).rms_percent < 0.5


@catches("plan.py", "min(gains) > 1 or max(gains) < 1", "True")
def test_of_a_series_only_what_all_volumes_have_in_common_is_corrected():
    first, other = uneven(anatomy(), 1.1), uneven(anatomy(seed=1), 1.1)
    moved = uneven(first, moved=(0.6, 0.0))

    def series(*stacks):
        return Volume(np.stack(stacks, axis=-1), np.diag([4.0, 1.0, 1.0, 1.0]))

    same = series(first, other, moved)
    plan = planned(same)
    assert plan.alternating_gain == pytest.approx(1.1, abs=0.01)
    assert plan.alternating_shift_px == (0, 0)
    assert check(same, upsample(same, plan, CUBIC).volume, plan).rms_percent < 0.3
    assert planned(series(first, anatomy(seed=1), first)).alternation == Alternation()


def test_padding_and_in_plane_enlargement_go_together_with_it():
    stack = uneven(anatomy(), moved=(0.6, 0.0))
    hounsfield = np.rint(20 * stack - 1000).astype(np.int16)
    hounsfield[:, :6] = -2000
    volume = as_volume(hounsfield, np.int16)
    plan = replace(planned(volume, in_plane=2), padding=-2000.0, alternating_shift_px=(0.6, 0.0))
    answer = upsample(volume, plan, CUBIC).volume
    assert (answer.voxels[:, :12] == -2000).all()
    assert answer.voxels[:, 12:].min() > -1700
    assert check(volume, answer, plan).rms_percent < 3


def test_a_mirrored_file_is_answered_by_the_mirrored_answer():
    for n in (16, 17):
        stack = uneven(anatomy(n), 1.1, (0.5, 0.0))
        volume, mirrored = as_volume(stack), as_volume(stack[::-1, ::-1, ::-1])
        answer = upsample(volume, planned(volume), CUBIC).volume.voxels
        other = upsample(mirrored, planned(mirrored), CUBIC).volume.voxels[::-1, ::-1, ::-1]
        assert np.abs(answer - other).max() < 0.02 * np.ptp(answer)


def test_a_usual_scan_takes_a_fifth_of_a_second():
    scan = np.random.default_rng(0).normal(100, 10, (36, 320, 320)).astype(np.int16)
    spent = []
    for _ in range(3):
        started = time.process_time()
        assert find_alternation(scan) == Alternation()
        spent.append(time.process_time() - started)
    assert min(spent) < 0.2
