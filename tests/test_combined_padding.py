"""What lies outside a CT scanner's circle, in several stacks: it says nothing, and it is padding in the answer too."""

import numpy as np
import pytest

import thinslice
from faults import catches
from thinslice.compute.stacks import go_on
from thinslice.models.hounsfield import find_padding, locate_padding
from thinslice.volume import Volume

SIDE = 64
THICK_VOX = 4
RADIUS_MM = 30.0
PLACE = np.stack(np.meshgrid(*[np.arange(SIDE) - (SIDE - 1) / 2] * 3, indexing="ij"))
"""Millimetres from the middle."""


def body():
    """A head, and a table of tissue that reaches to the scanner's circle and beyond, in Hounsfield units."""
    x, y, z = PLACE
    texture = np.sin(x / 4) * np.cos(z / 5) * np.cos(y / 3)
    found = np.where((x / 24) ** 2 + (y / 20) ** 2 < 1, 40 + 30 * texture, -1000.0)
    found = np.where((x - 8) ** 2 + (y - 2) ** 2 + (z / 1.5) ** 2 < 36, 400.0, found)
    return np.where(y > 10, 60 + 20 * np.sin(x / 3) * np.sin(z / 4), found)


BODY = body()


def circle(middle_mm=(0.0, 0.0)):
    return np.hypot(PLACE[0] - middle_mm[0], PLACE[1] - middle_mm[1]) < RADIUS_MM


def stack_along(axis, seen, padding):
    """Slices of 4 mm along an axis, which hold padding where any part of a voxel lies outside what was seen."""
    shape = [SIDE] * 3
    shape[axis : axis + 1] = [SIDE // THICK_VOX, THICK_VOX]
    thick, inside = BODY.reshape(shape).mean(axis=axis + 1), seen.reshape(shape).all(axis=axis + 1)
    spacing = np.ones(3)
    spacing[axis] = THICK_VOX
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(np.array(thick.shape) - 1) / 2 * spacing
    return Volume(np.where(inside, np.rint(thick), padding).astype(np.int16), affine, thickness_mm=float(THICK_VOX))


def combined(*stacks, **more):
    return thinslice.combine(list(stacks), **{"registration": False, "model": "cubic"} | more)


@catches("compute/combine.py", "volume[held_by == 0] = padding[0] if padding else low", "pass")
@catches(
    "compute/combine.py",
    "say = np.asarray(sum(one.say + FAINT for one in observed))",
    "say = sum(one.say for one in observed) + FAINT",
)
@catches("combination.py", "scan = replace(scan, voxels=go_on(scan.voxels, beyond))", "pass")
@pytest.mark.parametrize("padding", [-1024, -2000, -3024])
@pytest.mark.parametrize("model", ["cubic", "default", "planes-ct"])
def test_tissue_beside_padding_is_not_pulled_towards_it(model, padding):
    seen = circle()
    done = combined(stack_along(2, seen, padding), stack_along(0, seen, padding), model=model)
    assert (done.array[~seen] == padding).all()
    rim = seen & (np.hypot(PLACE[0], PLACE[1]) > RADIUS_MM - 3) & (BODY > -100)
    # Without care it was 118 to 390 HU off here.
    assert np.abs(done.array - BODY)[rim].mean() < 5
    assert not (done.array[rim] == padding).any()
    assert any(f"voxels of {padding} are padding" in note for note in done.notes)
    assert any("are held by no stack, and are padding" in note for note in done.notes)


@catches("compute/stacks.py", "counted *= np.abs(_as_fine_as(real", "_ = np.abs(_as_fine_as(real")
@catches("compute/stacks.py", "say *= resample(_as_share(~_beyond_thin(", "_ = resample(_as_share(~_beyond_thin(")
@pytest.mark.parametrize("padding", [-1024, -2000])
def test_what_one_of_two_circles_holds_is_there(padding):
    """As of two series with reconstruction circles of their own."""
    first, second = circle((-6.0, 0.0)), circle((6.0, 0.0))
    done = combined(stack_along(2, first, padding), stack_along(1, second, padding))
    # Across its slices the second one ends in steps of 4 mm.
    steps = second.reshape(SIDE, SIDE // THICK_VOX, THICK_VOX, SIDE).all(axis=2).repeat(THICK_VOX, axis=1)
    np.testing.assert_array_equal(done.held_by.voxels, first.astype(int) + steps)
    assert (done.array[~first & ~steps] == padding).all()
    # What the second one holds there instead of padding is nobody's measurement: followed, it was 14 HU off.
    assert np.abs(done.array - BODY)[first & ~steps & (BODY > -100)].mean() < 3
    assert np.median(np.abs(done.array - BODY)[steps & ~first & (BODY > -100)]) < 10


def test_padding_widens_no_range_and_makes_no_noise():
    seen = circle()
    padded = combined(stack_along(2, seen, -2000), stack_along(0, seen, -2000))
    whole = combined(stack_along(2, np.ones_like(seen), -2000), stack_along(0, np.ones_like(seen), -2000))
    for one, other in zip(padded.stacks, whole.stacks, strict=True):
        assert one.plan.padding == -2000
        assert one.plan.slice_noise == pytest.approx(other.plan.slice_noise or 0.0, abs=0.003)
    assert padded.spread.unit == pytest.approx(whole.spread.unit, rel=0.1)  # with padding 2,300


def test_pixels_finer_than_the_voxels_of_the_answer():
    seen = circle()
    done = combined(stack_along(2, seen, -2000), stack_along(0, seen, -2000), spacing_mm=2.0)
    pooled = BODY.reshape(32, 2, 32, 2, 32, 2).mean(axis=(1, 3, 5))
    wholly = seen.reshape(32, 2, 32, 2, 32, 2).all(axis=(1, 3, 5))
    nowhere = ~seen.reshape(32, 2, 32, 2, 32, 2).any(axis=(1, 3, 5))
    assert (done.array[nowhere] == -2000).all()
    inner = wholly & (PLACE[1][::2, ::2, ::2] > 14)
    assert np.abs(done.array - pooled)[inner].mean() < 5


@catches("models/hounsfield.py", "else _in_full_lines(where)", "else where")
def test_the_darkest_air_is_padding_only_outside_the_circle():
    voxels = np.where(circle(), np.rint(BODY), -1024).astype(np.int16)
    # One slice with a wider view: beyond it the circle is found all the same, within the body nothing is.
    voxels[:, :, 32] = BODY[:, :, 32]
    voxels[30:32, 30:32, 30:32] = -1024
    assert find_padding(Volume(voxels, np.eye(4))) == -1024
    np.testing.assert_array_equal(locate_padding(voxels, -1024.0), ~circle() & (np.arange(SIDE) != 32))
    # Where no edge of the volume is filled with it, it is air.
    speckled = np.where(np.random.default_rng(0).random(BODY.shape) < 0.3, -1024, np.rint(BODY)).astype(np.int16)
    assert find_padding(Volume(speckled, np.eye(4))) is None
    # Numbers that are no Hounsfield units have none.
    assert find_padding(Volume(np.where(circle(), 500, -1024).astype(np.int16), np.eye(4))) is None
    assert find_padding(Volume(np.where(circle(), 500, 0).astype(np.uint16), np.eye(4))) is None


@catches("compute/stacks.py", "place - before <= behind - place", "place - before >= behind - place")
def test_voxels_go_on_into_padding_as_they_end():
    rng = np.random.default_rng(0)
    voxels, beyond = rng.random((9, 8, 7)), np.zeros((9, 8, 7), bool)
    beyond[:2], beyond[:, 6:], beyond[4, 4, 4] = True, True, True
    found = go_on(voxels, beyond)
    np.testing.assert_array_equal(found[~beyond], voxels[~beyond])
    np.testing.assert_array_equal(found[:2, :6], voxels[[2, 2], :6])
    np.testing.assert_array_equal(found[2:, 6], np.where(beyond[2:, 5], found[2:, 5], voxels[2:, 5]))
    assert found[4, 4, 4] == voxels[3, 4, 4]


def test_a_stack_of_nothing_but_padding_is_refused():
    nothing = stack_along(0, np.zeros_like(circle()), -2000)
    with pytest.raises(thinslice.InputRefused, match="the same value everywhere"):
        combined(stack_along(2, circle(), -2000), nothing)
