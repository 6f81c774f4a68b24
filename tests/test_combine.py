"""Laws of joining several stacks of one body, and of finding how they moved."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from faults import catches
from phantoms import sampled
from thinslice.compute.blur import blur
from thinslice.compute.combine import combine_stacks, join, solve
from thinslice.compute.motion import refine_motions
from thinslice.compute.stacks import Stack, VoxelGrid, find_say, observe, straighten
from thinslice.models.interpolations import interpolation
from thinslice.physics.acquisition import Acquisition
from thinslice.pipeline import enhance_volume
from thinslice.settings import Settings
from thinslice.volume import Volume, grid_distance_mm

SIDE = 48
MIDDLE_MM = (SIDE - 1) / 2
GRID = VoxelGrid(
    (SIDE, SIDE, SIDE), np.array([[1, 0, 0, -MIDDLE_MM], [0, 1, 0, -MIDDLE_MM], [0, 0, 1, -MIDDLE_MM], [0, 0, 0, 1.0]])
)
TRUTH = 100 * sampled(GRID.shape, GRID.affine)


def motion_of(degrees, shift_mm):
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_rotvec(np.deg2rad(degrees)).as_matrix()
    motion[:3, 3] = shift_mm
    return motion


MOTION = motion_of((2.0, -1.5, 2.0), (1.5, -1.0, 1.2))


def stack_along(axis, motion=None, noise=0.0, gain=1.0, seed=0):
    """A stack of slices of 4 mm; the body lies where ``motion`` carries the stack."""
    motion = np.eye(4) if motion is None else motion
    thin = 100 * sampled(GRID.shape, motion @ GRID.affine)
    thick = Acquisition(1.5 + 4 * np.arange(SIDE // 4), SIDE, 4.0, "gaussian", axis).forward(thin)
    thick = gain * (thick + noise * np.random.default_rng(seed).standard_normal(thick.shape))
    affine = GRID.affine.copy()
    affine[:3, axis] *= 4
    affine[axis, 3] += 1.5
    scan = Volume(thick.astype(np.float32), affine, thickness_mm=4.0)
    done = enhance_volume(scan, Settings(factor=4.0, profile="gaussian"), interpolation("cubic"))
    return Stack(scan, done.plan, done.volume)


def error(volume, margin=0):
    inside = slice(margin, SIDE - margin)
    return float(np.sqrt(np.mean((volume - TRUTH)[inside, inside, inside] ** 2)))


STACKS = [stack_along(axis) for axis in range(3)]


@catches("compute/combine.py", "start += solve(apply, gradient, density, progress)", "pass")
@catches("compute/combine.py", "gradient += one.acquisition.adjoint", "gradient = one.acquisition.adjoint")
def test_three_stacks_are_better_than_the_best_and_than_the_mean():
    joined = combine_stacks(STACKS, GRID)
    best = min(error(stack.thin.voxels) for stack in STACKS)
    mean = error(np.mean([stack.thin.voxels for stack in STACKS], axis=0))
    # 6 dB over the best one, and 4 over the mean.
    assert error(joined.voxels) < 0.5 * best
    assert error(joined.voxels) < 0.63 * mean
    assert (joined.held_by == 3).all()
    for fit in joined.fits:
        assert fit.rms_percent < 0.5
        assert fit.gain == pytest.approx(1, abs=0.01)
        assert (fit.slice_weights == 1).all()


def test_two_stacks_are_better_than_one():
    assert error(combine_stacks(STACKS[:2], GRID).voxels) < 0.75 * min(error(one.thin.voxels) for one in STACKS[:2])


def test_one_stack_is_what_it_was():
    """Within its noise: where only one stack sees, the answer is that of `enhance`."""
    assert np.abs(combine_stacks(STACKS[:1], GRID).voxels - STACKS[0].thin.voxels).max() < 1.0


@catches("compute/combine.py", "PULL = 0.5", "PULL = 0.0")
def test_noise_is_not_followed():
    noisy = [stack_along(axis, noise=4.0, seed=axis) for axis in range(3)]
    joined = combine_stacks(noisy, GRID)
    assert error(joined.voxels) < 0.9 * min(error(one.thin.voxels) for one in noisy)
    assert error(joined.voxels) < error(np.mean([one.thin.voxels for one in noisy], axis=0))


@catches("compute/stacks.py", "there = stack.motion @ acquired.affine", "there = acquired.affine")
def test_a_moved_stack_helps_as_much_where_its_motion_is_known():
    moved = replace(stack_along(1, MOTION), motion=MOTION)
    joined = combine_stacks([STACKS[0], moved, STACKS[2]], GRID)
    assert error(joined.voxels, 6) < 1.12 * error(combine_stacks(STACKS, GRID).voxels, 6)


@catches(
    "compute/motion_evidence.py", "np.cross(places[:, number] - middle_mm[:, None, None], steep, axis=0)", "0 * steep"
)
@catches("compute/motion.py", "motions = steps @ motions", "motions = steps")
@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_motion_is_found(noise):
    stacks = [stack_along(axis, MOTION if axis == 1 else None, noise, seed=axis) for axis in range(3)]
    found = refine_motions(stacks, GRID)
    assert grid_distance_mm(found[1].stack.motion @ GRID.affine, MOTION @ GRID.affine, GRID.shape) < 0.35
    assert grid_distance_mm(found[2].stack.motion @ GRID.affine, GRID.affine, GRID.shape) < 0.2
    np.testing.assert_array_equal(found[0].stack.motion, np.eye(4))
    assert found[1].turned_degrees == pytest.approx(np.sqrt(2**2 + 1.5**2 + 2**2), abs=0.3)
    assert found[1].rms_after < 0.5 * found[1].rms_before


def test_stacks_that_share_nothing_stay_where_they_are():
    away = replace(STACKS[1], motion=motion_of((0, 0, 0), (300.0, 0, 0)))
    found = refine_motions([STACKS[0], away], GRID)[1]
    np.testing.assert_array_equal(found.stack.motion, away.motion)
    assert found.rms_before is None


@catches("compute/stacks.py", "one.samples /= np.float32(gain)", "pass")
def test_brightness_is_that_of_the_first_stack():
    brighter = stack_along(1, gain=3.0)
    joined = combine_stacks([STACKS[0], brighter, STACKS[2]], GRID)
    assert joined.fits[1].gain == pytest.approx(3.0, rel=0.02)
    assert error(joined.voxels) < 1.1 * error(combine_stacks(STACKS, GRID).voxels)


@catches("compute/stacks.py", "low = low if is_hounsfield(stacks[0].acquired.voxels) else 0.0", "low = 0.0")
def test_hounsfield_units_are_left_as_they_are():
    def in_hounsfield(stack, gain):
        acquired, thin = (gain * (8 * volume.voxels - 80) for volume in (stack.acquired, stack.thin))
        # Hardly any air: the dark end of the range is fat, which is not far below zero.
        acquired[:2, :2, :2] = thin[:2, :2, :2] = -1000
        return replace(stack, acquired=replace(stack.acquired, voxels=acquired), thin=replace(stack.thin, voxels=thin))

    observed, low, width = observe([in_hounsfield(STACKS[0], 1.0), in_hounsfield(STACKS[1], 1.1)], GRID)
    assert -0.2 * width < low < 0
    assert [one.gain for one in observed] == [1, 1]


@catches("compute/combine.py", "weights[index] = min(1.0,", "weights[index] = max(1.0,")
def test_a_spoilt_slice_loses_its_say():
    voxels = STACKS[1].acquired.voxels.copy()
    voxels[:, 6] = 20.0
    scan = replace(STACKS[1].acquired, voxels=voxels)
    done = enhance_volume(scan, Settings(factor=4.0, profile="gaussian"), interpolation("cubic"))
    joined = combine_stacks([STACKS[0], Stack(scan, done.plan, done.volume), STACKS[2]], GRID)
    weights = joined.fits[1].slice_weights
    assert weights[6] < 0.2
    assert (np.delete(weights, [5, 6, 7]) == 1).all()


def test_where_one_stack_ends_there_is_no_seam():
    """The second stack sees half of the grid: the answer passes from one to the other without a step."""
    half = STACKS[1].acquired.voxels[: SIDE // 2]
    scan = replace(STACKS[1].acquired, voxels=half)
    done = enhance_volume(scan, Settings(factor=4.0, profile="gaussian"), interpolation("cubic"))
    joined = combine_stacks([STACKS[0], Stack(scan, done.plan, done.volume)], GRID)
    assert (joined.held_by[: SIDE // 2] == 2).all()
    assert (joined.held_by[SIDE // 2 + 1 :] == 1).all()
    steps = np.sqrt(np.mean(np.diff(joined.voxels - TRUTH, axis=0) ** 2, axis=(1, 2)))
    assert steps[SIDE // 2 - 2 : SIDE // 2 + 2].max() < 1.3 * steps.max()
    np.testing.assert_allclose(joined.voxels[-8:], STACKS[0].thin.voxels[-8:], atol=1.0)


@catches("compute/stacks.py", "say *= np.clip(depth / np.float32(taper), LEAST_SAY, 1)", "say *= 1")
def test_a_stack_says_nothing_outside_and_little_at_its_edge():
    say = find_say((20, 20, 20), motion_of((0, 0, 30), (3, 0, 0)), VoxelGrid((40, 40, 40), np.eye(4)), 4.0)
    assert say.max() == 1
    assert say[0, 0, 39] == 0
    assert 0 < say[3, 1, 0] < 0.3


@catches("compute/stacks.py", "there = stack.motion @ stack.thin.affine", "there = stack.thin.affine")
def test_thin_slices_lie_where_the_stack_was_moved_to():
    moved = stack_along(1, MOTION)
    (one,), low, width = observe([replace(moved, motion=MOTION)], GRID)
    (wrong,), _, _ = observe([moved], GRID)
    well_inside = one.say == 1
    off = [np.std((thin * width + low - TRUTH)[well_inside]) for thin in (one.thin, wrong.thin)]
    assert off[0] < 0.8 * off[1]


def test_what_is_said_of_a_grid_is_in_intensity_ranges():
    observed, low, width = observe(STACKS, GRID)
    for one, stack in zip(observed, STACKS, strict=True):
        np.testing.assert_allclose(one.samples * width + low, stack.acquired.voxels, atol=1)
        assert np.abs(one.residual(((TRUTH - low) / width).astype(np.float32))).max() < 0.02


def test_conjugate_gradients_solve_a_linear_problem():
    rng = np.random.default_rng(0)
    root = rng.standard_normal((30, 12))
    matrix = root.T @ root + np.eye(12)
    wanted = rng.standard_normal(12)
    found = solve(lambda x: matrix @ x, matrix @ wanted, np.diag(matrix).copy())
    np.testing.assert_allclose(found, wanted, atol=0.02)
    assert not solve(lambda x: matrix @ x, np.zeros(12), np.ones(12)).any()


@catches("compute/blur.py", "weights /= weights.sum(axis=1, keepdims=True)", "weights /= weights.sum(axis=1).max()")
def test_blurring_keeps_what_is_flat_and_the_sum_within():
    np.testing.assert_allclose(blur(np.full((4, 5, 6), 3.0), 1.0), 3.0)
    spot = np.zeros((15, 15, 15))
    spot[7, 7, 7] = 1
    assert blur(spot, 1.0).sum() == pytest.approx(1, abs=1e-3)
    across = np.arange(15) - 7
    assert np.einsum("xyz,x->", blur(spot, 1.0), across**2) == pytest.approx(1, abs=1e-2)


@catches("compute/combine.py", "left -= find_smooth_part(one, left)", "pass")
def test_a_smooth_difference_in_brightness_is_not_put_between_the_slices():
    """Where slices have gaps it could be explained within them alone, and would be seen as bands."""
    body = ndimage.gaussian_filter(np.random.default_rng(2).random((48, 48, 48)), 1.5).astype(np.float32)
    stacks = []
    for axis in (0, 2):
        affine = np.diag([4.0 if a == axis else 1.0 for a in range(3)] + [1.0])
        affine[axis, 3] = 1.5
        voxels = Acquisition(1.5 + 4 * np.arange(12), 48, 2.0, "box", axis).forward(body)
        settings = Settings(factor=4.0, model="cubic", profile="box", thickness_mm=2.0)
        done = enhance_volume(Volume(voxels, affine), settings, interpolation("cubic"))
        stacks.append(Stack(done.acquired, done.plan, done.volume))
    observed, _, _ = observe(stacks, VoxelGrid((48, 48, 48), np.eye(4)))
    even, *_ = join(observed)
    observed[1].samples += np.linspace(0, 0.2, 48, dtype=np.float32)[:, None, None]
    uneven, *_ = join(observed)
    # Within the edges, to which the slope goes on unseen.
    assert np.abs(uneven - even)[12:-12, 12:-12, 12:-12].max() < 0.02


def test_a_stack_that_another_place_does_not_fit_stays(monkeypatch):
    """What the others say of it would carry it away: a step of Gauss and Newton that is far too long."""
    body = ndimage.gaussian_filter(np.random.default_rng(2).random((48, 48, 48)), 1.5).astype(np.float32)
    stacks = []
    for axis in (0, 2):
        affine = np.diag([4.0 if a == axis else 1.0 for a in range(3)] + [1.0])
        affine[axis, 3] = 1.5
        voxels = Acquisition(1.5 + 4 * np.arange(12), 48, 4.0, "box", axis).forward(body)
        settings = Settings(factor=4.0, model="cubic", profile="box", thickness_mm=4.0)
        done = enhance_volume(Volume(voxels, affine), settings, interpolation("cubic"))
        stacks.append(Stack(done.acquired, done.plan, done.volume))
    away = np.eye(4)
    away[0, 3] = 3.0
    monkeypatch.setattr("thinslice.compute.motion_evidence.rigid", lambda *_: away)
    found = refine_motions(stacks, VoxelGrid((48, 48, 48), np.eye(4)))
    assert [np.array_equal(one.stack.motion, np.eye(4)) for one in found] == [True, True]


@catches("compute/motion.py", "CLEAR_GAIN = 100.0", "CLEAR_GAIN = 0.0")
def test_a_nearly_round_body_is_not_turned_by_noise():
    """It fits the other stacks as well where it is turned by a degree."""
    x, y, z = np.stack(np.meshgrid(*[np.arange(64) - 31.5] * 3, indexing="ij")) / np.reshape(
        [20, 20.5, 19.5], (3, 1, 1, 1)
    )
    radius = np.sqrt(x**2 + y**2 + z**2)
    body = ndimage.gaussian_filter(600.0 * (radius < 1) + 200.0 * (radius < 0.6), 0.7)
    rng = np.random.default_rng(2)
    stacks = []
    for axis in (2, 1, 0):
        affine = np.diag([4.0 if a == axis else 1.0 for a in range(3)] + [1.0])
        affine[axis, 3] = 1.5
        thick = Acquisition(1.5 + 4 * np.arange(16), 64, 4.0, "box", axis).forward(body)
        thick = (thick + 40 * rng.standard_normal(thick.shape)).astype(np.float32)
        done = enhance_volume(Volume(thick, affine), Settings(factor=4.0), interpolation("cubic"))
        stacks.append(Stack(done.acquired, done.plan, done.volume))
    found = refine_motions(stacks, VoxelGrid((64, 64, 64), np.eye(4)))
    assert [one.turned_degrees for one in found] == [0.0, 0.0, 0.0]


def textured(axis: int, pixel_mm: float = 1.0, change=None) -> Stack:
    """Slices of 4 mm along an axis of a body of 48 mm, whose pixels may be finer than a millimetre."""
    finer = round(1 / pixel_mm)
    rng = np.random.default_rng(2)
    body = 0.3 + ndimage.gaussian_filter(rng.random((48, 48, 48)), 2) + 0.2
    body = body.repeat(finer, 0).repeat(finer, 1).repeat(finer, 2)
    body += 0.2 * rng.standard_normal(body.shape) * (finer > 1)
    body = (body if change is None else change(body)).astype(np.float32)
    acquisition = Acquisition((1.5 + 4 * np.arange(12)) * finer + (finer - 1) / 2, 48 * finer, 4.0 * finer, "box", axis)
    affine = np.diag([4.0 if a == axis else pixel_mm for a in range(3)] + [1.0])
    affine[:3, 3] = [1.5 if a == axis else (pixel_mm - 1) / 2 for a in range(3)]
    settings = Settings(factor=4.0, model="cubic", profile="box", thickness_mm=4.0)
    done = enhance_volume(Volume(acquisition.forward(body), affine), settings, interpolation("cubic"))
    return Stack(done.acquired, done.plan, done.volume)


MILLIMETRES = VoxelGrid((48, 48, 48), np.eye(4))


@catches("compute/stacks.py", "acquired = _as_fine_as(acquired, stack.motion, plan.axis, grid)", "pass")
def test_pixels_finer_than_the_voxels_of_the_answer_are_averaged():
    """Otherwise what the grid cannot hold comes out as a checkerboard."""
    (one,), _, width = observe([textured(0, 0.5)], MILLIMETRES)
    assert one.samples.shape == (12, 48, 48)
    means = textured(0, 0.5).acquired.voxels.reshape(12, 48, 2, 48, 2).mean(axis=(2, 4)) / width
    inner = np.s_[:, 4:-4, 4:-4]
    assert np.std(one.samples[inner] - means[inner]) < 0.3 * np.std(means[inner])


@catches("compute/stacks.py", "_divide_by(one, 1.0, _find_field(one, matched, grid))", "pass")
def test_smooth_differences_in_brightness_are_matched():
    field = np.linspace(0.7, 1.4, 48)[:, None, None]
    observed, _, _ = observe([textured(0), textured(2, change=lambda body: body * field)], MILLIMETRES)
    inner = np.s_[12:-12, 12:-12, 12:-12]
    ratio = observed[1].thin[inner].mean(axis=(1, 2)) / observed[0].thin[inner].mean(axis=(1, 2))
    # Unmatched 1.39; so small a body has little more than one neighbourhood of 20 mm in which brightness is compared.
    assert ratio.max() / ratio.min() < 1.3


@catches("compute/stacks.py", "one.misfit = find_misfit(", "_ = find_misfit(")
def test_what_contradicts_the_other_stacks_counts_less_there_alone():
    def with_vessel(body: np.ndarray) -> np.ndarray:
        body[22:26, 22:26, 22:26] += 0.5
        return body

    observed, _, _ = observe([textured(0), textured(2, change=with_vessel)], MILLIMETRES)
    trust = observed[1].trust(0.006)
    assert trust[24, 24, 5] < 0.05
    assert np.median(trust) > 0.2


def with_moved_slices(axis, motions, noise=0.0):
    """A stack of which each slice was acquired where the body had moved to by then."""
    thick = np.array(STACKS[axis].acquired.voxels)
    for motion in np.unique(motions, axis=0):
        moved = stack_along(axis, motion, noise, seed=axis).acquired.voxels
        chosen = np.expand_dims((motions == motion).all(axis=(1, 2)), [a for a in range(3) if a != axis])
        thick = np.where(chosen, moved, thick)
    scan = replace(STACKS[axis].acquired, voxels=thick)
    done = enhance_volume(scan, Settings(factor=4.0, profile="gaussian"), interpolation("cubic"))
    return Stack(scan, done.plan, done.volume)


def still():
    return np.tile(np.eye(4), (SIDE // 4, 1, 1))


def packages():
    motions = still()
    motions[1::2] = MOTION
    return motions


def places(stack):
    return (still() if stack.slice_motions is None else stack.slice_motions) @ stack.motion


def farthest_mm(found, true):
    return max(grid_distance_mm(a @ GRID.affine, b @ GRID.affine, GRID.shape) for a, b in zip(found, true, strict=True))


@catches(
    "compute/motion_evidence.py",
    "normal[1 - half, group], moment[1 - half, group]",
    "normal[half, group], moment[half, group]",
)
@pytest.mark.parametrize("noise", [0.0, 4.0])
def test_stacks_that_lie_still_are_not_split(noise, monkeypatch):
    """With the slice profile as it was they are not even where very little has to be explained."""
    for least in ("LEAST_EXPLAINED", "LEAST_OF_SLICES"):
        monkeypatch.setattr(f"thinslice.compute.motion.{least}", 0.01)
    stacks = [stack_along(axis, noise=noise, seed=axis) for axis in range(3)]
    for one, stack in zip(refine_motions(stacks, GRID), stacks, strict=True):
        assert one.stack.slice_motions is None
        assert one.stack.plan == stack.plan
        assert one.moved_mm < 0.3


@catches("compute/motion.py", "alternating_shift_px=(0.0, 0.0)", "alternating_shift_px=(0.4, 0.4)")
@catches("compute/motion.py", "number % n for n in PACKAGES", "number % (n + 3) for n in PACKAGES")
@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_packages_that_moved_are_found(noise):
    stacks = [stack_along(0, noise=noise), with_moved_slices(1, packages(), noise), stack_along(2, noise=noise, seed=2)]
    found = [one.stack for one in refine_motions(stacks, GRID)]
    assert [one.slice_motions is None for one in found] == [True, False, True]
    assert len(np.unique(found[1].slice_motions, axis=0)) == 2
    assert farthest_mm(places(found[1]), packages()) < 0.4
    whole = combine_stacks(stacks, GRID).voxels
    assert error(combine_stacks(found, GRID).voxels, 6) < (0.9 if noise else 0.75) * error(whole, 6)


@catches("compute/motion_evidence.py", "whole[first, :, second] += COUPLING", "whole[first, :, second] += 1e6")
def test_single_slices_that_moved_are_found():
    """The body moves suddenly, twice; two slices alone would not explain enough to be believed."""
    motions = still()
    motions[3:6] = MOTION
    motions[9:] = np.linalg.inv(MOTION)
    stacks = [STACKS[0], with_moved_slices(1, motions), STACKS[2]]
    found = [one.stack for one in refine_motions(stacks, GRID)]
    assert [one.slice_motions is None for one in found] == [True, False, True]
    # Of the slices at the ends little is seen by the others.
    assert farthest_mm(places(found[1])[3:9], motions[3:9]) < 1.0
    assert error(combine_stacks(found, GRID).voxels, 6) < 0.7 * error(combine_stacks(stacks, GRID).voxels, 6)


@catches(
    "compute/motion.py",
    "self.first_motion if k == 0 else back @ stack.motion",
    "self.first_motion if k == 0 else stack.motion",
)
@catches("compute/motion.py", "            self._keep_first()", "            pass")
def test_the_first_stack_stays_where_it_is_as_a_whole():
    """Its packages lie as far on one side of the place that its header says as on the other."""
    found = [one.stack for one in refine_motions([with_moved_slices(0, packages()), *STACKS[1:]], GRID)]
    middle = np.array([0, 0, 0, 1.0])
    first, second = (found[0].slice_motions[number] @ middle for number in (0, 1))
    np.testing.assert_allclose((first + second)[:3], 0, atol=0.01)
    assert np.linalg.norm((second - first)[:3]) == pytest.approx(np.linalg.norm((MOTION @ middle)[:3]), abs=0.15)
    np.testing.assert_array_equal(found[0].motion, np.eye(4))
    # The still stacks lie where the first package does.
    for one in found[1:]:
        assert grid_distance_mm(one.motion @ GRID.affine, found[0].slice_motions[0] @ GRID.affine, GRID.shape) < 0.4


@catches("compute/stacks.py", "known * (whole.forward(volume) - moved.forward(volume))", "0 * known")
@catches(
    "compute/stacks.py",
    "whole.forward(volume) - moved.forward(volume)",
    "moved.forward(volume) - whole.forward(volume)",
)
def test_slices_that_moved_are_laid_evenly_apart():
    """As the stack would have acquired them without motion, wherever the body is inside the volume."""
    stack = replace(with_moved_slices(1, packages()), slice_motions=packages())
    even, plan = straighten(stack, GRID, TRUTH.astype(np.float32))
    assert plan.axis == 1
    inner = np.s_[6:-6, 1:-1, 6:-6]
    off, was = (np.std((each - STACKS[1].acquired.voxels)[inner]) for each in (even.voxels, stack.acquired.voxels))
    assert off < 0.1 * was
