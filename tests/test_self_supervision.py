"""Laws of what a thick scan is taught with: only its own slices, where they look like themselves, none held out."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planning import plan_for
from strategies import seeds
from thick_scans import SHAPE, texture, thick_volume
from thinslice.errors import InputRefused
from thinslice.models.interpolations import interpolation
from thinslice.models.slab_network import SlabModel
from thinslice.volume import Volume

pytest.importorskip("torch", reason="training needs torch, which comes with thinslice[train]")
pytest.importorskip("scipy", reason="the slices are turned with scipy, which comes with thinslice[train]")

from faults import catches
from thinslice.training import self_supervision
from thinslice.training.batches import NEAR_FACTOR, NEAR_THICKNESS, cut, geometry_of_block
from thinslice.training.self_supervision import (
    CELL,
    LEAST_VOXELS,
    PatchPlaces,
    in_plane_batch_at,
    make_target_scan,
    self_supervised_batch_at,
    thicker_slices_batch_at,
)
from thinslice.training.usable_scans import LEAST_SIDE, LEAST_SLICES
from thinslice.training.volumes import TrainingVolume, normalise

SIZE, SLABS, AROUND = 24, 3, 2
CUBIC = interpolation("cubic")


def a_target(volume, **wish):
    return make_target_scan("scan", volume, plan_for(volume, model="cubic", **wish), CUBIC)


TARGET = a_target(thick_volume())


def batches(step, seed=3, scans=(TARGET,), held_out=False):
    return in_plane_batch_at(step, seed, scans, patches=2, size=SIZE, slabs=SLABS, context=AROUND, held_out=held_out)


def same(one, other):
    return one.thick.shape == other.thick.shape and np.array_equal(one.thick, other.thick)


# ---- what is held out


def parts_of(target):
    """All that lessons are cut from, and all that looks are."""
    return [*target.volumes, target.acquired], [*target.held_out, target.held_out_acquired]


@catches(
    "training/self_supervision.py",
    "for part in (learnt, held_out)\n    ]",
    "for part in ((crop[0], crop[1]), held_out)\n    ]",
)
@catches(
    "training/self_supervision.py",
    "(2,), 1.0) for p in (learnt, held_out)",
    "(2,), 1.0) for p in (slice(None), held_out)",
)
@catches("training/self_supervision.py", "HELD_OUT * shown.sum()", "HELD_OUT * 0")
@catches("training/self_supervision.py", "    if last:\n", "    if not last:\n")
@pytest.mark.parametrize("bright", ["first", "last"])
@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("shape", [(160, 60, 12), (60, 96, 12), (52, 48, 6)])
def test_nothing_held_out_is_learnt_from_by_lessons_of_either_kind(shape, axis, bright):
    """Voxels say which line of the longer side they lie on: what is learnt from and what is held out share none."""
    side = int(np.argmax(shape))
    lines = np.arange(100.0, 100 + shape[side])
    ramp = np.broadcast_to(np.expand_dims(lines, [a for a in range(3) if a != side]), shape)
    ramp = ramp if bright == "last" else np.flip(ramp, side)
    affine = np.diag([1.0, 1.0, 4.0, 1.0])[:, [*np.roll([0, 1, 2], axis + 1), 3]]
    target = a_target(Volume(np.moveaxis(ramp, 2, axis).astype(np.float32), affine))
    learnt, held_out = parts_of(target)
    step = np.diff(np.unique(target.acquired.voxels)).min()
    border = target.acquired.voxels.max() + step / 2
    assert max(thin.voxels.max() for thin in learnt) < border < min(thin.voxels.min() for thin in held_out)
    for whole, part in ((target.volumes[0], target.held_out[0]), (target.acquired, target.held_out_acquired)):
        assert whole.voxels.shape[side] + part.voxels.shape[side] == shape[side]
        assert part.voxels.shape[side] >= min(self_supervision.LEAST_HELD_OUT, shape[side] // 3)
        assert part.voxels.shape[1 - side] == shape[1 - side]


@catches("training/self_supervision.py", "min(LEAST_HELD_OUT, n // 3, most)", "min(LEAST_HELD_OUT, n // 3)")
@given(
    lines=st.integers(48, 200),
    begin=st.floats(0, 0.8),
    share=st.floats(0.05, 1),
    flip=st.booleans(),
    empty=st.integers(0, 3),
)
def test_what_is_held_out_shows_something_and_so_does_what_is_learnt_from(lines, begin, share, flip, empty):
    """Air at the sides and empty slices at the ends: an object somewhere within, which may be too narrow."""
    first, end = int(lines * begin), min(lines, int(lines * (begin + share)) + 1)
    slices = np.zeros((lines, 40, 12))
    slices[first:end, 10:30, empty : 12 - empty] = 1
    slices = slices[::-1] if flip else slices
    try:
        learnt, held_out = self_supervision._split(slices)
    except InputRefused:
        assert end - first < 2 * self_supervision.NARROWEST + 2
        return
    shown = [slices[part].sum() / slices.sum() for part in (learnt, held_out)]
    assert sum(shown) == pytest.approx(1)
    assert shown[1] + 1e-9 >= self_supervision.HELD_OUT
    assert shown[0] + 1e-9 >= self_supervision.LEAST_LEARNT
    assert min(slices[part].shape[0] for part in (learnt, held_out)) >= self_supervision.NARROWEST


@pytest.mark.parametrize(("end", "count", "cropped"), [(70, self_supervision.LEAST_HELD_OUT, 30), (50, 30, 25)])
def test_the_end_that_shows_its_share_in_fewer_pixels_is_held_out(end, count, cropped):
    """At least so many pixels, or a third, unless less than half of the object were left to learn from."""
    slices = np.zeros((100, 60, 12))
    slices[10:end] = 1
    assert self_supervision._split(slices) == ((slice(count, 100), slice(None)), (slice(0, count), slice(None)))
    rest = slice(0, 100 - count)
    assert self_supervision._split(slices[::-1]) == ((rest, slice(None)), (slice(100 - count, 100), slice(None)))
    across = self_supervision._split(slices.transpose(1, 0, 2))
    assert across == ((slice(None), slice(count, 100)), (slice(None), slice(0, count)))
    within = self_supervision._split(slices, (slice(5, 95), slice(2, 58)))
    assert within == ((slice(5 + cropped, 95), slice(2, 58)), (slice(5, 5 + cropped), slice(2, 58)))


@catches("training/self_supervision.py", "wanted = (0, 1) if square", "wanted = (0, 1, 2) if square")
def test_a_narrow_strip_is_judged_along_its_length():
    thin = np.ones((16, 80, 50), np.float32)
    (strip,) = self_supervision._turned("strip", thin, factor=5.0)
    assert strip.axes == (1,)
    (strip,) = self_supervision._turned("strip", thin, factor=4.0)
    assert strip.axes == (0, 1)
    (tiny,) = self_supervision._turned("tiny", thin[:, :20], factor=9.0)
    assert tiny.axes == (1,)


def without(volumes):
    return [replace(thin, voxels=np.full_like(thin.voxels, np.nan)) for thin in volumes]


@catches(
    "training/self_supervision.py",
    "(target.held_out, target.held_out_places) if held_out else",
    "(target.held_out, target.held_out_places) if not held_out else",
)
def test_lessons_are_cut_from_what_is_learnt_from_and_looks_from_what_is_held_out():
    lessons = replace(TARGET, held_out=without(TARGET.held_out))
    looks = replace(TARGET, volumes=without(TARGET.volumes))
    for step in range(12):
        for scan, held_out in ((lessons, False), (looks, True)):
            batch = batches(step, scans=[scan], held_out=held_out)
            assert np.isfinite(batch.truth).all()
            assert np.isfinite(batch.thick).all()


@catches(
    "training/self_supervision.py",
    "target.held_out_acquired if held_out else target.acquired",
    "target.held_out_acquired",
)
@catches(
    "training/self_supervision.py",
    "return batch_at(step, seed, targets, patches, size, slabs, context)",
    "return batch_at(step, seed, targets, patches, size, slabs, context, True)",
)
def test_no_lesson_of_either_kind_shows_what_is_held_out():
    nothing = replace(TARGET.held_out_acquired, voxels=np.full_like(TARGET.held_out_acquired.voxels, np.nan))
    lessons = replace(TARGET, held_out=without(TARGET.held_out), held_out_acquired=nothing)
    for step in range(24):
        batch = self_supervised_batch_at(step, 1, [lessons], 2, SIZE, SLABS, AROUND)
        assert np.isfinite(batch.truth).all()
        assert np.isfinite(batch.thick).all()


def smearing():
    """A network whose answer at a pixel depends on pixels far away."""
    from scipy.ndimage import uniform_filter

    def residual(slices, geometry, position):
        far = np.stack([uniform_filter(image, 31) for image in slices]).mean(axis=0) - slices.mean()
        return np.repeat(far[None].astype(np.float32), len(position), axis=0)

    return SlabModel("smearing", "cubic", residual=residual, context=1)


@catches(
    "training/self_supervision.py",
    "_thin_of(part, scan, plan, model)[..., depth]",
    "_thin_of((slice(None), slice(None)), scan, plan, model)[part][..., depth]",
)
@pytest.mark.parametrize("of_held_out", [False, True])
def test_thin_slices_of_either_part_are_computed_from_that_part_alone(of_held_out):
    """The network sees far: what it says near the border must not tell what lies beyond."""
    scan = thick_volume(shape=(96, 56, 10), dtype=np.float32)
    learnt, held_out = self_supervision._split(scan.voxels)
    part = learnt if of_held_out else held_out
    other = scan.voxels.copy()
    other[part] = other[part][..., ::-1]  # of the same intensity range
    plan = plan_for(scan, model="smearing")
    one, two = (make_target_scan("scan", replace(scan, voxels=v), plan, smearing()) for v in (scan.voxels, other))
    (same_of, changed) = ("held_out", "volumes") if of_held_out else ("volumes", "held_out")
    for mine, its in zip(getattr(one, same_of), getattr(two, same_of), strict=True):
        np.testing.assert_array_equal(mine.voxels, its.voxels)
    assert not np.array_equal(getattr(one, changed)[0].voxels, getattr(two, changed)[0].voxels)


@catches("training/self_supervision.py", "square = max(spacing_mm) <= SQUARE * min(spacing_mm)", "square = True")
def test_pixels_that_are_not_square_are_learnt_from_along_the_coarser_side():
    volume = thick_volume()
    stretched = Volume(volume.voxels, np.diag([0.5, 1.0, 4.0, 1.0]))
    target = a_target(stretched)
    assert [thin.axes for thin in (*target.volumes, *target.held_out)] == [(1,), (1,)]


def test_no_class_of_places_is_drawn_more_than_so_often():
    """Rare looks that the scan's own slices have would else be shown again and again."""
    looks = np.r_[np.zeros((999, 2)), np.ones((1, 2))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(self_supervision, "_measure_places", lambda seen: (looks, np.zeros((len(looks), 3), int)))
        places = self_supervision._places([TARGET.volumes[0]], np.ones((10, 2)), 4.0, 1.0, "gaussian")
    assert places.chance.max() / places.chance.min() <= self_supervision.OFTEN / self_supervision.RARELY * (1 + 1e-9)


# ---- places


def test_places_lie_inside_and_their_chances_are_chances():
    for volumes, places in ((TARGET.volumes, TARGET.places), (TARGET.held_out, TARGET.held_out_places)):
        assert places.chance.sum() == pytest.approx(1)
        assert places.chance.min() > 0
        assert set(places.axis) == {0, 1}
        assert set(places.volume) <= set(range(len(volumes)))
        for volume, axis, middle in zip(places.volume, places.axis, places.middle, strict=True):
            shape = np.moveaxis(volumes[volume].voxels, axis, 0).shape
            assert (middle >= 0).all()
            assert (middle < shape).all()


def share_of(places, axis):
    return places.chance[places.axis == axis].sum()


@catches(
    "training/self_supervision.py",
    "return PatchPlaces(volume, axis, middle, chance / chance.sum())",
    "return PatchPlaces(volume, axis, middle, np.full(len(chance), 1 / len(chance)))",
)
@catches(
    "training/self_supervision.py",
    "share_wanted / np.maximum(share_own, 1e-9)",
    "share_own / np.maximum(share_wanted, 1e-9)",
)
@pytest.mark.parametrize("alike", [0, 1])
def test_places_that_look_like_the_slices_get_most_of_the_chance(alike):
    """Along one axis the image changes slowly, as it does from slice to slice; along the other fast."""
    lengths = (16, 2, 4) if alike == 0 else (2, 16, 4)
    volume = TrainingVolume("made", normalise(texture((96, 96, 64), lengths)), (0, 1), 1.0)
    own = normalise(texture((64, 96, 96), (16, 2, 4), seed=1))  # slice axis first
    wanted = self_supervision._measure_places(own.reshape(16, 4, 96, 96).mean(axis=1))[0]
    places = self_supervision._places([volume], wanted, 4.0, 1.0, "box")
    assert share_of(places, alike) > 0.8
    either = self_supervision._measure_places(np.random.default_rng(0).random((16, 96, 96)) + 1)[0]  # unlike both
    assert share_of(self_supervision._places([volume], either, 4.0, 1.0, "box"), alike) < 0.75


def test_dark_places_are_left_out():
    voxels = normalise(texture((64, 64, 64)))
    voxels[:, 32:] = 0
    places = self_supervision._places(
        [TrainingVolume("half", voxels, (0,), 1.0)], np.zeros((1, 2)), 4.0, 1.0, "gaussian"
    )
    assert places.middle[:, 1].max() < 32 + CELL


# ---- draws


@given(step=st.integers(0, 10**6), seed=seeds, held_out=st.booleans())
def test_a_batch_is_a_function_of_seed_and_step_alone(step, seed, held_out):
    assert same(batches(step, seed, held_out=held_out), batches(step, seed, held_out=held_out))


def test_other_steps_and_seeds_are_other_batches():
    first = batches(7)
    assert not same(first, batches(8))
    assert not same(first, batches(7, seed=4))


def test_larger_scans_are_drawn_more_often():
    large = replace(TARGET, weight=3 * TARGET.weight, factor=8.0)
    found = [batches(step, scans=[TARGET, large]).geometry.factor > 6 for step in range(80)]
    assert 0.6 < np.mean(found) < 0.9


@catches(
    "training/self_supervision.py",
    "lines, columns = (middle[2], middle[1]) if drawn.transpose",
    "lines, columns = (middle[1], middle[2]) if drawn.transpose",
)
@catches(
    "training/self_supervision.py",
    "depth = shape[0] - 1 - int(middle[0]) if drawn.flips[0] else int(middle[0])",
    "depth = int(middle[0])",
)
@given(seed=seeds, axis=st.integers(0, 2), depth=st.integers(30, 50), line=st.integers(30, 50))
def test_a_patch_lies_around_the_place_that_was_drawn(seed, axis, depth, line):
    x, y, z = np.meshgrid(np.arange(80), np.arange(84), np.arange(88), indexing="ij")
    volume = TrainingVolume("map", (x + 100 * y + 10_000 * z).astype(np.float32), (0, 1, 2), 1.0)
    middle = np.array([depth, line, 35])
    places = PatchPlaces(np.array([0]), np.array([axis]), middle[None], np.array([1.0]))
    geometry = geometry_of_block(4.0, 1.0, "gaussian", 1.5, SLABS, AROUND)
    draw = self_supervision._draw(np.random.default_rng(seed), [volume], places, geometry, SIZE)
    inner = np.concatenate(geometry.thin_positions)
    side = np.arange(SIZE)
    block = cut([volume], replace(draw, gain=1.0, offset=0.0), inner, side, side)
    at = np.stack([block % 100, block // 100 % 100, block // 10_000], axis=-1)
    seen = [at[..., axis], *(at[..., a] for a in range(3) if a != axis)]
    for coordinate, wanted, length in zip(seen, middle, (len(inner), SIZE, SIZE), strict=True):
        assert np.ptp(coordinate) == length - 1  # whole: no edge is repeated
        assert abs((coordinate.min() + coordinate.max()) / 2 - wanted) <= CELL // 2 + 1


def test_patches_near_the_ends_stay_inside_where_there_is_room():
    x, y, z = np.meshgrid(np.arange(40), np.arange(42), np.arange(44), indexing="ij")
    volume = TrainingVolume("map", (x + 100 * y + 10_000 * z).astype(np.float32), (0,), 1.0)
    corners = np.array([[a, b, c] for a in (0, 39) for b in (0, 41) for c in (0, 43)])
    places = PatchPlaces(np.zeros(8, int), np.zeros(8, int), corners, np.full(8, 1 / 8))
    geometry = geometry_of_block(4.0, 1.0, "gaussian", 1.5, SLABS, AROUND)
    inner, side = np.concatenate(geometry.thin_positions), np.arange(SIZE)
    for seed in range(40):
        draw = self_supervision._draw(np.random.default_rng(seed), [volume], places, geometry, SIZE)
        block = cut([volume], replace(draw, gain=1.0, offset=0.0), inner, side, side)
        assert len(np.unique(block)) == block.size


def test_lessons_are_acquired_nearly_as_the_scan_was():
    scan = thick_volume(factor=5)
    target = a_target(scan, thickness_mm=4.5, profile="box")
    found = [batches(step, scans=[target]).geometry for step in range(60)]
    factors = np.array([geometry.factor for geometry in found]) / 5
    thickness = np.array([geometry.thickness_over_spacing for geometry in found]) / 0.9
    assert np.abs(np.log(factors)).max() <= NEAR_FACTOR + 1e-9
    assert np.abs(thickness - 1).max() <= NEAR_THICKNESS + 1e-9
    assert np.ptp(factors) >= NEAR_FACTOR
    assert np.ptp(thickness) >= NEAR_THICKNESS
    assert {geometry.profile for geometry in found} == {"box"}


def test_the_acquired_slices_are_made_twice_as_thick_along_their_own_axis():
    (batch,) = [thicker_slices_batch_at(0, 1, [TARGET], 2, SIZE, SLABS, AROUND)]
    assert batch.geometry.factor == 2
    assert TARGET.acquired.axes == (2,)
    assert same(batch, thicker_slices_batch_at(0, 1, [TARGET], 2, SIZE, SLABS, AROUND))


def test_lessons_of_the_slice_direction_come_from_what_is_not_held_out():
    ones, twos = (replace(TARGET.acquired, voxels=np.full(SHAPE, value, np.float32)) for value in (1, 2))
    for held_out in (False, True):
        about = ([replace(TARGET, acquired=ones, held_out_acquired=twos)], 2, SIZE, SLABS, AROUND, held_out)
        wanted = twos if held_out else ones
        alone = ([replace(TARGET, acquired=wanted, held_out_acquired=wanted)], *about[1:])
        for step in range(5):
            assert same(thicker_slices_batch_at(step, 1, *about), thicker_slices_batch_at(step, 1, *alone))


@catches("training/self_supervision.py", "random() < THICKER", "random() < 0")
def test_a_quarter_of_the_lessons_lies_across_the_slices():
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(self_supervision, "thicker_slices_batch_at", lambda *wish: asked.append("across"))
        patch.setattr(self_supervision, "in_plane_batch_at", lambda *wish: asked.append("within"))
        for step in range(2000):
            self_supervised_batch_at(step, 1, [TARGET], 2, SIZE, SLABS, AROUND)
    assert asked.count("across") / len(asked) == pytest.approx(self_supervision.THICKER, abs=0.03)


def test_the_slice_direction_of_a_small_scan_is_shown_in_smaller_patches():
    small = replace(TARGET.acquired, voxels=TARGET.acquired.voxels[:20])
    batch = thicker_slices_batch_at(
        0, 1, [replace(TARGET, held_out_acquired=small)], 1, 40, SLABS, AROUND, held_out=True
    )
    assert batch.thick.shape[0] == 4
    assert batch.thick.shape[2:] == (20, 20)


# ---- turning


@catches("training/self_supervision.py", "voxels[_inside(thin.shape[:2], angle)]", "voxels")
@pytest.mark.parametrize("shape", [(160, 120), (131, 170)])
def test_turned_slices_hold_nothing_from_beyond_the_image(shape):
    """On a ramp every voxel says where it is from: a border that was made up would say a place on the edge."""
    x, y = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    for ramp, wish in ((x, lambda i, j, c, s: c * i + s * j), (y, lambda i, j, c, s: -s * i + c * j)):
        thin = np.repeat(ramp[..., None], 3, axis=2).astype(np.float32)
        turned = self_supervision._turned("ramp", thin, 4.0)
        assert len(turned) > len(self_supervision.ANGLES) // 2
        for volume in turned:
            angle = np.radians(float(volume.name.split()[1]))
            i, j = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in volume.voxels.shape[:2]), indexing="ij")
            middle = [(n - 1) / 2 for n in shape]
            wanted = wish(i, j, np.cos(angle), np.sin(angle)) + middle[0 if ramp is x else 1]
            # Half a voxel: an even cut of an odd image lies so far off its middle, along both axes.
            assert np.abs(volume.voxels[..., 1] - wanted).max() < 0.8
            assert min(volume.voxels.shape[:2]) >= LEAST_SIDE


@pytest.mark.parametrize("axis", [0, 1])
def test_the_order_of_the_axes_is_only_a_name(axis):
    turned = a_target(thick_volume(axis))
    assert [v.name for v in turned.volumes] == [v.name for v in TARGET.volumes]
    for mine, its in zip([*turned.volumes, *turned.held_out], [*TARGET.volumes, *TARGET.held_out], strict=True):
        np.testing.assert_allclose(mine.voxels, its.voxels, atol=1e-4)
    np.testing.assert_allclose(turned.acquired.voxels, TARGET.acquired.voxels, atol=1e-5)
    np.testing.assert_allclose(turned.held_out_acquired.voxels, TARGET.held_out_acquired.voxels, atol=1e-5)
    assert share_of(turned.places, 0) == pytest.approx(share_of(TARGET.places, 0), abs=0.01)


@given(shape=st.tuples(st.integers(50, 400), st.integers(50, 400), st.integers(20, 300)), wish=st.integers(1, 4))
def test_of_a_large_scan_the_middle_is_kept_within_the_limit(shape, wish):
    voxels = wish * LEAST_VOXELS
    spans = self_supervision._middle(shape, voxels)
    kept = tuple(span.stop - span.start for span in spans)
    assert all(few <= many for few, many in zip(kept, shape, strict=True))
    assert np.prod(kept) <= 1.1 * voxels  # the least sides may want a little more
    if np.prod(shape) <= voxels and max(shape[:2]) <= 160:
        assert kept == shape
    assert np.prod(kept) >= 0.4 * min(np.prod(shape), voxels) or min(shape) < 100
    for span, n in zip(spans, shape, strict=True):
        assert abs(span.start - (n - span.stop)) <= 1


# ---- what cannot be learnt from


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda v: v[..., : LEAST_SLICES - 1], f"{LEAST_SLICES - 1} slices"),
        (lambda v: v[: LEAST_SIDE - 1], f"{LEAST_SIDE - 1} x 56 pixels"),
        (lambda v: np.full_like(v, 7.0), "empty image"),
        (lambda v: np.stack([v, v], axis=3), "4 axes"),
        (lambda v: np.where(v == v.max(), np.nan, v), "not finite"),
        (lambda v: np.where(np.arange(64)[:, None, None] < 4, v, 0), "bright voxels so close together"),
        (lambda v: np.where(np.arange(64)[:, None, None] % 16 == np.arange(56)[:, None] % 16, v, 0), "dark"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused_with_a_way_out(change, reason):
    scan = thick_volume(dtype=np.float32)
    plan = plan_for(scan, model="cubic")
    scan = replace(scan, voxels=change(scan.voxels))
    with np.errstate(invalid="ignore"), pytest.raises(InputRefused, match=rf"got .*{reason}.*; need .*; next: "):
        make_target_scan("scan", scan, plan_for(scan, model="cubic") if scan.shape != SHAPE else plan, CUBIC)
