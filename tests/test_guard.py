"""Laws of the guard: a bad answer falls back to interpolation where it is bad, and a good one is left alone."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from faults import catches
from phantoms import acquired, knowing, network, silent, thick_grid
from planning import plan_for
from strategies import seeds
from thinslice.compute.guard import CELL, DISAGREEMENT, MARGIN, OVERSHOOT, GuardCount, find_suspect_cells, make_keep_map
from thinslice.compute.upsample import upsample
from thinslice.models.interpolations import interpolation
from thinslice.physics.intensity import intensity_range
from thinslice.physics.interpolation import cubic_matrix
from thinslice.volume import Volume

ROUNDING = 1e-5
SIDE = 5 * CELL
BAD = slice(0, CELL)
"""The region spoilt below, the first cell."""

FAR = slice(3 * CELL, None)
"""Where the ramp from a suspect cell to full trust has ended: it reaches into the second cell beyond."""


@pytest.fixture(scope="module")
def scan():
    """Texture that changes from slice to slice, in-plane smooth over a few pixels, and its plan."""
    rng = np.random.default_rng(5)
    rough = rng.random((SIDE // 4, SIDE // 4, 7))
    voxels = np.repeat(np.repeat(rough, 4, 0), 4, 1).astype(np.float32) * 900 - 200
    volume = Volume(voxels, np.diag([1.0, 1.0, 3.0, 1.0]))
    plan = plan_for(volume)
    return volume, plan, upsample(volume, plan, interpolation("cubic")).volume.voxels


def spoiling(add):
    """A network that answers well (with a little) everywhere but in the bad corner."""

    def residual(slices, offset):
        answer = 0.02 * np.cos(np.pi * offset)[:, None, None] * (slices[1] - 0.5)
        answer[:, BAD, BAD] = add(slices, offset)[:, BAD, BAD]
        return answer

    return network(residual)


def wave(slices, offset):
    return np.ones((len(offset), 1, 1)) * np.ones(slices.shape[1:])


def moved(slices, offset):
    """Cubic interpolation half a slice away from where it was asked for, as a residual."""
    before = cubic_matrix(1.0 + offset.astype(float), 3)
    after = cubic_matrix(np.clip(1.5 + offset.astype(float), 0, 2), 3)
    return np.einsum("pt,thw->phw", after - before, slices)


@given(seed=seeds, height=st.integers(1, 3 * CELL), width=st.integers(1, 3 * CELL))
def test_a_zero_residual_is_never_suspect(seed, height, width):
    around = np.random.default_rng(seed).standard_normal((3, height, width)).astype(np.float32)
    cells = find_suspect_cells(around, around[0], around[0], (float(around.min()), float(around.max())))
    assert cells.shape == (-(-height // CELL), -(-width // CELL))
    assert not cells.any()
    np.testing.assert_array_equal(make_keep_map(cells, (height, width)), 1)


@catches("compute/guard.py", "np.hypot(DISAGREEMENT, NOISE_SHARE * noise)", "DISAGREEMENT")
@given(seed=seeds, noise=st.floats(0.02, 0.1))
def test_an_answer_without_noise_is_not_taken_back_where_the_slices_are_noisy(seed, noise):
    rng = np.random.default_rng(seed)
    shape = (2 * CELL, 2 * CELL)
    in_tissue = rng.normal(scale=noise, size=shape)
    in_air = np.hypot(*rng.normal(scale=noise, size=(2, *shape)))
    answer, base = np.zeros((3, *shape)), np.zeros(shape)
    for apart in (in_tissue, in_air):
        assert not find_suspect_cells(answer, apart, base, (0.0, 1.0), noise).any()
        assert find_suspect_cells(answer, 2 * apart, base, (0.0, 1.0), noise).all()


@catches("compute/upsample.py", "self.bounds, self.plan.slice_noise or 0.0)", "self.bounds)")
def test_the_guard_is_told_of_the_noise_of_the_plan(scan):
    volume, plan, _ = scan
    bad = spoiling(lambda slices, offset: 0.08 * wave(slices, offset))
    assert upsample(volume, replace(plan, slice_noise=None), bad).guard.suspect > 0
    assert upsample(volume, replace(plan, slice_noise=0.1), bad).guard.suspect == 0


@catches(
    "compute/upsample.py",
    "max(slab - self.plan_reach, 0), min(slab + self.plan_reach + 1, self.plan.n_thick)",
    "slab, slab + 1",
)
def test_the_count_of_a_silent_network_is_zero(scan):
    volume, plan, cubic = scan
    result = upsample(volume, plan, silent())
    assert result.guard == GuardCount(cells=plan.n_thick * 25, suspect=0)
    assert result.guard.share == 0.0
    np.testing.assert_array_equal(result.volume.voxels, cubic)


SPOILERS = {
    "nan": lambda s, o: np.nan * wave(s, o),
    "infinite": lambda s, o: np.inf * wave(s, o),
    "minus infinite": lambda s, o: -np.inf * wave(s, o),
    "huge": lambda s, o: 1e30 * wave(s, o),
    "constant": lambda s, o: 0.6 * wave(s, o),
    "negative constant": lambda s, o: -0.6 * wave(s, o),
    "half a slice away": moved,
    "beyond the range but balanced": lambda s, o: 40 * OVERSHOOT * np.sin(2 * np.pi * o)[:, None, None] * wave(s, o),
}


@catches("compute/upsample.py", "if cells.any():", "if False:")
@catches("compute/guard.py", ".astype(np.float64)) > 0", ".astype(np.float64)) > 2")
@catches("compute/guard.py", "np.maximum(MARGIN * accepted, always)", "np.inf")
@catches("compute/upsample.py", "own, 0.0) * keep", "own, 0.0) * 0.0")
@pytest.mark.parametrize("kind", SPOILERS)
def test_a_bad_region_falls_back_to_projected_cubic_there_and_only_there(scan, kind):
    volume, plan, cubic = scan
    bad = upsample(volume, plan, spoiling(SPOILERS[kind]))
    good = upsample(volume, plan, spoiling(lambda s, o: 0.02 * np.cos(np.pi * o)[:, None, None] * (s[1] - 0.5)))
    assert good.guard.suspect == 0
    # One cell in every slab; a slab at the ends may be right by the mirrored border.
    assert plan.n_thick - 2 <= bad.guard.suspect <= plan.n_thick
    answer, scale = bad.volume.voxels, 900
    assert np.isfinite(answer).all()
    if bad.guard.suspect == plan.n_thick:
        np.testing.assert_allclose(answer[:CELL, :CELL] / scale, cubic[:CELL, :CELL] / scale, atol=ROUNDING)
    for far in (np.s_[FAR, :], np.s_[:, FAR]):
        np.testing.assert_allclose(answer[far] / scale, good.volume.voxels[far] / scale, atol=ROUNDING)
    assert np.abs(good.volume.voxels - cubic)[FAR, FAR].max() / scale > 1e-3  # the good answer is not cubic


@pytest.mark.parametrize("kind", ["nan", "infinite", "huge", "constant"])
def test_a_wholly_bad_answer_is_projected_cubic(scan, kind):
    volume, plan, cubic = scan
    result = upsample(volume, plan, network(SPOILERS[kind]))
    assert result.guard.share == 1.0
    np.testing.assert_allclose(result.volume.voxels / 900, cubic / 900, atol=ROUNDING)


def test_an_infinite_answer_warns_nobody_it_is_the_guards_business(scan):
    volume, plan, _ = scan
    upsample(volume, plan, network(SPOILERS["infinite"]))


@pytest.mark.parametrize("one", [(0, 0, 0), (1, 40, 70), (-1, SIDE - 1, SIDE - 1)])
def test_a_single_nan_is_found(scan, one):
    volume, plan, cubic = scan

    def residual(slices, offset):
        answer = np.zeros((len(offset), *slices.shape[1:]))
        thin, row, column = one
        answer[thin % len(offset), row, column] = np.nan
        return answer

    result = upsample(volume, plan, network(residual))
    assert result.guard.suspect == plan.n_thick
    np.testing.assert_allclose(result.volume.voxels / 900, cubic / 900, atol=ROUNDING)


@pytest.mark.parametrize(("grid", "factor"), [("fov", 4), ("centres", 3.3)])
def test_a_plausible_answer_in_the_null_space_is_not_flagged(grid, factor):
    thick = thick_grid(side=48)
    volume = Volume(acquired(thick.shape, thick.affine, 2, 4.0).astype(np.float32), thick.affine)
    plan = plan_for(volume, factor=factor, grid=grid)
    matrix = plan.acquisition().matrix()
    wish = np.random.default_rng(1).standard_normal((plan.n_thin, 48, 48)) * 0.1
    unseen = wish - np.einsum("ij,jhw->ihw", np.linalg.pinv(matrix) @ matrix, wish)
    assert np.abs(np.einsum("ij,jhw->ihw", matrix, unseen)).max() < 1e-12
    assert unseen.std() > 0.05
    low, high = intensity_range(volume.voxels)
    result = upsample(volume, plan, knowing(volume, plan, unseen))
    assert result.guard.suspect == 0
    cubic = upsample(volume, plan, interpolation("cubic")).volume.voxels
    # What the scanner cannot see passes the guard and the projection untouched.
    difference = np.moveaxis(result.volume.voxels - cubic, 2, 0) / (high - low)
    np.testing.assert_allclose(difference, unseen, atol=ROUNDING)


def test_what_a_slab_adds_is_judged_together_with_its_neighbours():
    voxels = np.random.default_rng(2).random((CELL, 2 * CELL, 9), dtype=np.float32)
    voxels[:, CELL:] = 0.5  # a flat cell, where little is allowed
    volume = Volume(voxels, np.diag([1.0, 1.0, 4.0, 1.0]))
    plan = plan_for(volume, thickness_mm=5.2)
    matrix = plan.acquisition().matrix()
    own = np.zeros(plan.n_thin)
    middle = slice(4 * 4, 5 * 4)
    own[middle] = matrix[4, middle]
    most = 0.8 * OVERSHOOT
    found = linprog(-own, A_eq=matrix, b_eq=np.zeros(plan.n_thick), bounds=(-most, most))
    unseen = found.x  # of all answers that change no acquired slice, the one whose middle slab alone would change most
    assert own @ unseen > 1.5 * DISAGREEMENT  # the slab alone would be suspect
    assert np.abs(matrix @ unseen).max() < 1e-6  # with its neighbours it changes nothing
    residual = np.zeros((plan.n_thin, CELL, 2 * CELL))
    residual[:, :, CELL:] = unseen[:, None, None]
    assert upsample(volume, plan, knowing(volume, plan, residual)).guard.suspect == 0


@catches("compute/upsample.py", "missed[0, slab - spline_low] -= 1.0", "missed[:] = 0.0")
def test_a_good_answer_is_left_alone_it_mends_what_interpolation_misses():
    voxels = 0.3 + 0.4 * np.random.default_rng(3).random((CELL, CELL, 9), dtype=np.float32)
    voxels[:2], voxels[-2:] = 0, 1  # so that nothing leaves the range of the scan
    volume = Volume(voxels, np.diag([1.0, 1.0, 4.0, 1.0]))
    plan = plan_for(volume)
    matrix = plan.acquisition().matrix()
    low, high = intensity_range(voxels)
    thick = np.moveaxis((voxels - low) / (high - low), 2, 0)
    base = cubic_matrix(plan.positions(), plan.n_thick)
    mend = np.linalg.pinv(matrix) @ (np.eye(plan.n_thick) - matrix @ base)
    residual = np.einsum("ij,jhw->ihw", mend, thick)
    assert np.einsum("ij,jhw->ihw", matrix, residual).std() > 1.5 * DISAGREEMENT
    assert upsample(volume, plan, knowing(volume, plan, residual)).guard.suspect == 0


@given(seed=seeds, share=st.floats(0.0, 0.4))
def test_trust_is_zero_in_suspect_cells_one_far_away_and_between_elsewhere(seed, share):
    cells = np.random.default_rng(seed).random((6, 7)) < share
    shape = (6 * CELL - 5, 7 * CELL - 11)
    keep = make_keep_map(cells, shape)
    assert keep.shape == shape
    assert keep.min() >= 0
    assert keep.max() <= 1
    for y, x in np.ndindex(cells.shape):
        own = keep[y * CELL : (y + 1) * CELL, x * CELL : (x + 1) * CELL]
        if cells[y, x]:
            assert (own == 0).all()
        if not cells[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3].any():
            assert (own == 1).all()
    # No step at the edge of a suspect cell, as a seam would be seen: at most a few pixels' worth of the ramp.
    steps = max((np.abs(np.diff(keep, axis=a)).max(initial=0) for a in (0, 1)), default=0)
    assert steps <= 2 / CELL + 1e-6


@given(distance=st.floats(0.0, 1.0))
def test_where_interpolation_agrees_the_stated_distance_is_the_limit(distance):
    by_network = np.full((CELL, CELL), distance * 2 * DISAGREEMENT)
    answer = np.full((2, CELL, CELL), 0.5, np.float32)
    cells = find_suspect_cells(answer, by_network, np.zeros((CELL, CELL)), (0.0, 1.0))
    if abs(distance - 0.5) > 1e-6:
        assert bool(cells[0, 0]) == (distance > 0.5)


@given(ratio=st.floats(0.0, 2.0), base=st.floats(2 * DISAGREEMENT, 0.5), sign=st.sampled_from([-1, 1]))
def test_where_interpolation_disagrees_the_network_may_not_disagree_more(ratio, base, sign):
    by_base = np.full((CELL, CELL), base)
    answer = np.full((2, CELL, CELL), 0.5, np.float32)
    cells = find_suspect_cells(answer, sign * ratio * by_base, by_base, (0.0, 1.0))
    if ratio * base > DISAGREEMENT and abs(ratio - MARGIN) > 1e-6:
        assert bool(cells[0, 0]) == (ratio > MARGIN)


@given(beyond=st.floats(0.0, 2.0), side=st.sampled_from([-1, 1]))
def test_the_stated_overshoot_is_the_limit(beyond, side):
    answer = np.full((2, CELL, CELL), 0.5)
    answer[1, 3, 4] += side * (0.5 + beyond * OVERSHOOT)
    agreed = np.zeros((CELL, CELL))
    cells = find_suspect_cells(answer, agreed, agreed, (0.0, 1.0))
    if abs(beyond - 1) > 1e-6:
        assert bool(cells[0, 0]) == (beyond > 1)


@pytest.mark.parametrize(("suspect", "said"), [(1, "0.0278 %"), (3573, "99.2 %"), (3600, "100 %")])
def test_the_share_is_told_in_three_digits(suspect, said):
    assert GuardCount(3600, suspect).percent == said


def test_counts_add_up():
    count = GuardCount().with_slab(np.array([[True, False]])).with_slab(np.array([[False, False]]))
    assert count == GuardCount(cells=4, suspect=1)
    assert count + count == GuardCount(8, 2)
    assert count.share == 0.25
    assert GuardCount().share == 0.0
