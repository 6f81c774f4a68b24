"""Laws of the training: what it sees is what inference will see, and it can be killed at any time."""

import hashlib
from dataclasses import replace
from itertools import chain, count, islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import seeds

pytest.importorskip("torch", reason="training needs torch, which comes with thinslice[train]")

import torch

from faults import catches
from planning import plan_for
from thinslice.compute.upsample import upsample
from thinslice.models.conditioning import geometry_of, position_code
from thinslice.models.slab_network import SlabModel
from thinslice.networks.slab import SlabNet
from thinslice.physics.acquisition import Acquisition
from thinslice.physics.intensity import intensity_range
from thinslice.physics.projection import project
from thinslice.training import losses
from thinslice.training.batches import (
    AcquisitionRanges,
    Draw,
    Geometry,
    batch_at,
    cut,
    draw_geometry,
    draw_patch,
    render,
)
from thinslice.training.fit import (
    Schedule,
    _from_a_thread,
    _from_processes,
    _gradients,
    _numbers,
    _workers,
    fit,
)
from thinslice.training.losses import projected_loss
from thinslice.training.volumes import TrainingVolume, normalise
from thinslice.volume import Volume

CONTEXT, SLABS, SIZE = 1, 2, 16
AROUND = CONTEXT + 1
"""Slices beyond a block: what the network sees of its neighbours, which say their share."""
ATOL = 2e-5
"""Float32 intensities of order one to three, summed with weights of sum one, through a spline inverse."""


pytestmark = pytest.mark.usefixtures("one_thread")


def a_corpus():
    rng = np.random.default_rng(0)
    volumes = []
    for name, shape, axes in (("a", (34, 30, 28), (0, 1, 2)), ("b", (20, 40, 36), (1,))):
        rough = rng.random(shape)
        for axis in range(3):
            rough = (rough + np.roll(rough, 1, axis) + np.roll(rough, 2, axis)) / 3
        volumes.append(TrainingVolume(name, normalise(rough), axes, rough.size**0.5))
    return volumes


CORPUS = a_corpus()


def batches(step, seed=3, ranges=AcquisitionRanges()):  # noqa: B008 # frozen
    return batch_at(step, seed, CORPUS, ranges, patches=2, size=SIZE, slabs=SLABS, context=AROUND)


def same_batch(one, other):
    assert one.geometry.factor == other.geometry.factor
    for name in ("thick", "cubic", "truth", "matrix", "correction"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@given(step=st.integers(0, 10**6), seed=seeds)
def test_a_batch_is_a_function_of_seed_and_step_alone(step, seed):
    same_batch(batches(step, seed), batches(step, seed))


@catches("training/batches.py", "if ranges.kept and rng.random() < ranges.kept:", "if rng.random() < ranges.kept:")
def test_the_default_recipe_draws_what_it_has_always_drawn():
    """The numbers of its first draws, to six decimals: what else the ranges may be asked for leaves them alone."""
    lines = []
    for step in range(40):
        rng = np.random.default_rng([3, step])
        geometry = draw_geometry(rng, AcquisitionRanges(), 4, 4)
        said = [geometry.factor, geometry.thickness_over_spacing, geometry.profile == "box"]
        said += [*geometry.thick_centres, *np.concatenate(geometry.thin_positions)]
        for _ in range(3):
            d = draw_patch(rng, CORPUS, AcquisitionRanges(), geometry, SIZE)
            said += [d.volume, d.axis, d.transpose, *d.flips, *d.corner, d.gain, d.offset, d.noise, d.seed]
        lines.append(" ".join(f"{float(number):.6f}" for number in said))
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest().startswith("56447527421a87b32360f72cd18a57ae")


@catches("training/batches.py", "rng = np.random.default_rng([seed, step])", "rng = np.random.default_rng(step)")
def test_other_steps_and_seeds_are_other_batches():
    first = batches(7)
    for other in (batches(8), batches(7, seed=4)):
        assert first.thick.shape != other.thick.shape or np.abs(first.thick - other.thick).max() > 0.01


def test_steps_see_many_acquisitions():
    geometries = [batches(step).geometry for step in range(60)]
    assert {g.profile for g in geometries} == {"gaussian", "box"}
    ratios = [g.thickness_over_spacing for g in geometries]
    assert min(ratios) < 0.8
    assert max(ratios) > 1.2
    assert 0.3 < np.mean([g.factor == round(g.factor) for g in geometries]) < 0.75


@given(seed=seeds, slabs=st.integers(1, 4), context=st.integers(0, 3))
def test_every_thin_slice_lies_in_the_slab_of_its_nearest_thick_slice(seed, slabs, context):
    geometry = draw_geometry(np.random.default_rng(seed), AcquisitionRanges(), slabs, context)
    assert len(geometry.thick_centres) == slabs + 2 * context
    np.testing.assert_allclose(np.diff(geometry.thick_centres), geometry.factor)
    inner = np.concatenate(geometry.thin_positions)
    np.testing.assert_array_equal(inner, np.arange(inner[0], inner[-1] + 1))
    for slab, positions in enumerate(geometry.thin_positions):
        offset = (positions - geometry.thick_centres[context + slab]) / geometry.factor
        assert (np.abs(offset) <= 0.5 + 1e-9).all()


@given(seed=seeds)
def test_draws_are_reproducible_and_stay_inside(seed):
    ranges = AcquisitionRanges(noisy=1.0)
    geometry = draw_geometry(np.random.default_rng(seed), ranges, SLABS, AROUND)
    draw, again = (draw_patch(np.random.default_rng(seed), CORPUS, ranges, geometry, SIZE) for _ in range(2))
    assert draw == again
    assert draw.axis in CORPUS[draw.volume].axes
    assert 0 <= draw.noise <= ranges.noise[1]
    inner = np.concatenate(geometry.thin_positions) + draw.corner[0]
    depth = CORPUS[draw.volume].voxels.shape[draw.axis]
    assert inner[0] >= 0
    assert inner[-1] < max(depth, len(inner))


PLAIN = Draw(0, 0, False, (False, False, False), (0, 0, 0), 1.0, 0.0, 0.0, 0)


@given(
    axis=st.integers(0, 2),
    transpose=st.booleans(),
    flips=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    corner=st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)),
    gain=st.sampled_from([1.0, -0.7]),
)
def test_a_patch_is_cut_from_where_the_draw_says(axis, transpose, flips, corner, gain):
    x, y, z = np.meshgrid(np.arange(9), np.arange(10), np.arange(11), indexing="ij")
    corpus = [TrainingVolume("ramp", (x + 20 * y + 400 * z).astype(np.float32), (0, 1, 2), 1.0)]
    draw = Draw(0, axis, transpose, flips, corner, gain, 0.25, 0.0, 0)
    got = cut(corpus, draw, np.arange(4), np.arange(5), np.arange(5))
    assert got.shape == (4, 5, 5)
    lengths = [9, 10, 11]
    weights = [1, 20, 400]
    in_plane = [a for a in range(3) if a != axis]
    if transpose:
        in_plane.reverse()
    for d, r, c in ((0, 0, 0), (3, 1, 4), (2, 4, 0)):
        depth = corner[0] + d
        depth = lengths[axis] - 1 - depth if flips[0] else depth
        row = corner[1] + (4 - r if flips[1] else r)
        column = corner[2] + (4 - c if flips[2] else c)
        value = weights[axis] * depth + weights[in_plane[0]] * row + weights[in_plane[1]] * column
        assert got[d, r, c] == pytest.approx(gain * value + 0.25, rel=1e-6)


@catches(
    "training/batches.py",
    "position = (inner - geometry.thick_centres[0]) / geometry.factor",
    "position = (inner + 0.5 - geometry.thick_centres[0]) / geometry.factor",
)
@given(seed=seeds, gain=st.sampled_from([1.0, -1.0]))
def test_on_a_ramp_thick_truth_and_cubic_all_say_the_position(seed, gain):
    geometry = draw_geometry(np.random.default_rng(seed), AcquisitionRanges(factor=(3.0, 4.0), typical=0.0), 3, 4)
    geometry = replace(geometry, profile="gaussian")
    ramp = np.broadcast_to(np.arange(300, dtype=np.float32)[:, None, None] / 100, (300, 4, 4))
    draw = replace(PLAIN, corner=(150, 0, 0), gain=gain)
    batch = render([TrainingVolume("ramp", ramp, (0,), 1.0)], geometry, [draw], 4, 4)
    inner = np.concatenate(geometry.thin_positions)
    np.testing.assert_allclose(batch.truth[0, :, 0, 0], gain * (150 + inner) / 100, atol=ATOL)
    # A Gaussian is symmetric: on a ramp it says its centre; sampled at whole voxels, to 2e-3 voxel from FWHM 1.65 on.
    centres = gain * (150 + geometry.thick_centres) / 100
    np.testing.assert_allclose(batch.thick[0, :, 0, 0], centres, atol=2e-3 / 100)
    # The mirrored ends are felt as 0.27^4 of a slice step, four slices away.
    np.testing.assert_allclose(batch.cubic, batch.truth, atol=0.01 * geometry.factor / 100)


@catches(
    "training/batches.py",
    "acquisition = Acquisition(geometry.thick_centres - low, len(wide), fwhm, geometry.profile)",
    "acquisition = Acquisition(geometry.thick_centres - low, len(wide), geometry.factor, geometry.profile)",
)
@given(seed=seeds)
def test_the_thick_slices_are_the_profile_matrix_times_the_thin_ones(seed):
    geometry = draw_geometry(
        np.random.default_rng(seed), replace(AcquisitionRanges(), factor=(1.4, 4.0)), SLABS, AROUND
    )
    voxels = np.random.default_rng(seed).random((120, SIZE, SIZE), dtype=np.float32)
    corpus = [TrainingVolume("noise", voxels, (0,), 1.0)]
    batch = render(corpus, geometry, [replace(PLAIN, corner=(60, 0, 0))], SIZE, AROUND)
    fwhm = geometry.factor * geometry.thickness_over_spacing
    wanted = np.einsum(
        "mn,nyx->myx", Acquisition(60 + geometry.thick_centres, 120, fwhm, geometry.profile).matrix(), voxels
    )
    np.testing.assert_allclose(batch.thick[0], wanted, atol=ATOL)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_the_truth_made_thick_is_the_acquired_slice(factor):
    centres = (factor - 1) / 2 + factor * np.arange(-1.0, 4.0)
    positions = tuple(np.arange(factor * i, factor * (i + 1)) for i in range(3))
    geometry = Geometry(float(factor), 1.0, "box", centres, positions)
    voxels = np.random.default_rng(0).random((60, SIZE, SIZE), dtype=np.float32)
    batch = render([TrainingVolume("noise", voxels, (0,), 1.0)], geometry, [replace(PLAIN, corner=(20, 0, 0))], SIZE, 1)
    again = np.einsum("sp,bphw->bshw", batch.matrix, batch.truth)
    np.testing.assert_allclose(again, batch.thick[:, 1:-1], atol=ATOL)


@given(seed=seeds)
def test_the_matrix_of_a_batch_sums_to_one_and_fits_its_slabs(seed):
    batch = batches(seed)
    np.testing.assert_allclose(batch.matrix.sum(axis=1), 1, atol=1e-5)
    assert batch.matrix.shape == (SLABS, batch.truth.shape[1])
    assert batch.cubic.shape == batch.truth.shape == (2, batch.matrix.shape[1], SIZE, SIZE)
    assert batch.thick.shape == (2, SLABS + 2 * AROUND, SIZE, SIZE)
    inner = np.concatenate(batch.geometry.thin_positions)
    own = batch.geometry.thick_centres[AROUND:-AROUND] - inner[0]
    nearest = np.abs(np.arange(len(inner))[None, :] - own[:, None]).argmin(axis=1)
    largest = batch.matrix[np.arange(SLABS), nearest]
    np.testing.assert_allclose(largest, batch.matrix.max(axis=1), rtol=1e-5)


def test_noise_is_added_to_the_acquired_slices_only_and_repeats():
    geometry = draw_geometry(np.random.default_rng(1), AcquisitionRanges(typical=1.0), SLABS, AROUND)
    draw = replace(PLAIN, corner=(8, 0, 0), seed=5)
    clean, noisy, again = (render(CORPUS, geometry, [replace(draw, noise=n)], SIZE, AROUND) for n in (0.0, 0.02, 0.02))
    same_batch(noisy, again)
    np.testing.assert_array_equal(noisy.truth, clean.truth)
    assert np.std(noisy.thick - clean.thick) == pytest.approx(0.02, rel=0.1)


class Answering(torch.nn.Module):
    """Adds given answers, shared out among neighbouring slices, and keeps what it was shown."""

    context = CONTEXT

    def __init__(self, residual, geometry):
        super().__init__()
        self.residual, self.geometry, self.codes = residual, geometry, {}

    def trunk(self, slices, geometry):
        self.stack, self.about = slices, geometry
        return torch.arange(len(slices) // 2).repeat(2)  # two patches

    def read_out(self, features, geometry, position):
        slab = int(features[0])
        self.codes[slab] = position.numpy()
        offset = position[:, 0].numpy().astype(float) / 2
        first = self.geometry.thin_positions[0][0]
        centre = self.geometry.thick_centres[CONTEXT + slab]
        index = np.rint(offset * self.geometry.factor + centre - first).astype(int)
        share = torch.from_numpy(np.cos(np.pi * offset / 2) ** 2).float()[None, :, None, None]
        return share * self.residual[:, index]


@catches("training/losses.py", "np.flatnonzero(np.abs(offset) < 1)", "np.flatnonzero(np.abs(offset) < 0.5)")
@catches(
    "training/losses.py",
    "offset = (positions - geometry.thick_centres[context + slab]) / geometry.factor",
    "offset = (geometry.thick_centres[context + slab] - positions) / geometry.factor",
)
@given(step=st.integers(0, 10**6))
def test_the_loss_of_the_truth_is_zero_and_of_anything_else_is_not(step):
    batch = batches(step)
    right = torch.from_numpy(batch.truth - batch.cubic)
    cpu = torch.device("cpu")
    # The square root of 1e-6, which keeps its gradient finite, is counted for both errors.
    assert projected_loss(Answering(right, batch.geometry), batch, cpu, 0.2).item() == pytest.approx(1.2e-3, rel=0.01)
    wrong = right + 0.1 * torch.randn(right.shape, generator=torch.Generator().manual_seed(0))
    assert projected_loss(Answering(wrong, batch.geometry), batch, cpu, 0.2).item() > 0.01


def test_the_loss_forgives_what_the_projection_repairs():
    batch = batches(0, ranges=AcquisitionRanges(typical=1.0))
    right = batch.truth - batch.cubic
    seen = np.einsum("ps,bs->bp", batch.correction, np.ones((2, SLABS), np.float32))[:, :, None, None]
    repaired = torch.from_numpy(right + 0.1 * seen)
    cpu = torch.device("cpu")
    # The projection is damped by 0.003 of the largest eigenvalue.
    assert projected_loss(Answering(repaired, batch.geometry), batch, cpu, 0.0).item() < 0.1 * 0.05
    assert projected_loss(Answering(repaired, batch.geometry), batch, cpu, 1.0).item() > 0.05


def test_the_loss_projects_as_inference_does():
    batch = batches(0, ranges=AcquisitionRanges(typical=1.0))
    error = 0.1 * np.random.default_rng(0).standard_normal(batch.truth.shape).astype(np.float32)
    wrong = torch.from_numpy(batch.truth - batch.cubic + error)
    left = np.stack([project(e, np.zeros_like(e[:SLABS]), batch.matrix, batch.geometry.factor) for e in error])
    wanted = np.sqrt((left**2).mean(axis=(1, 2, 3)) + 1e-6).mean()
    found = projected_loss(Answering(wrong, batch.geometry), batch, torch.device("cpu"), 0.0).item()
    assert found == pytest.approx(wanted, rel=1e-4)


def test_the_loss_gives_every_patch_the_same_say():
    """A patch with a tenth of the error counts a tenth, not a hundredth."""
    batch = batches(0)
    right = batch.truth - batch.cubic
    noise = np.random.default_rng(0).standard_normal(right.shape[1:]).astype(np.float32)
    losses = [
        projected_loss(
            Answering(torch.from_numpy(right + np.stack([a * noise, b * noise])), batch.geometry),
            batch,
            torch.device("cpu"),
            0.2,
        ).item()
        for a, b in ((0.5, 0.5), (1.0, 0.1))
    ]
    assert losses[1] / losses[0] == pytest.approx(1.1, rel=0.01)


def test_training_and_inference_show_the_network_the_same():
    batch = batches(11, ranges=AcquisitionRanges(typical=1.0))
    geometry = batch.geometry
    spy = Answering(torch.zeros(batch.truth.shape), batch.geometry)
    projected_loss(spy, batch, torch.device("cpu"), 0.2)
    scan = np.moveaxis(batch.thick[0], 0, 2)
    volume = Volume(scan, np.diag([1.0, 1.0, geometry.factor, 1.0]))
    shown = []

    def run(slices, about, position):
        shown.append((slices, about, position))
        return np.zeros((len(position), *slices.shape[1:]), np.float32)

    upsample(volume, plan_for(volume), SlabModel("spy", "cubic", residual=run, context=CONTEXT).with_threads(1))
    low, high = intensity_range(scan)
    for slab in range(SLABS + 2):
        slices, about, position = shown[1 + CONTEXT + slab]  # the first one shown is the slice before the stack
        np.testing.assert_allclose(slices * (high - low) + low, spy.stack[slab].numpy(), atol=ATOL)
        np.testing.assert_array_equal(about, spy.about.numpy())
        assert np.isin(np.round(spy.codes[slab][:, 0], 5), np.round(position[:, 0], 5)).all()
        if 0 < slab <= SLABS:  # those at the ends of a block are not asked beyond it
            within = np.isin(np.round(position[:, 0], 5), np.round(spy.codes[slab][:, 0], 5))
            np.testing.assert_allclose(position[within], spy.codes[slab], atol=1e-6)


def test_training_positions_are_offsets_from_every_slice_up_to_its_neighbours():
    batch = batches(5, ranges=AcquisitionRanges(typical=0.0))
    geometry = batch.geometry
    spy = Answering(torch.zeros(batch.truth.shape), geometry)
    projected_loss(spy, batch, torch.device("cpu"), 0.2)
    inner = np.concatenate(geometry.thin_positions)
    for slab in range(SLABS + 2):
        offset = (inner - geometry.thick_centres[CONTEXT + slab]) / geometry.factor
        near = offset[np.abs(offset) < 1]
        assert (slab in spy.codes) == bool(len(near))
        if len(near):
            np.testing.assert_array_equal(spy.codes[slab], position_code(near))
    about = geometry_of(geometry.factor, geometry.thickness_over_spacing, geometry.profile)
    np.testing.assert_array_equal(spy.about.numpy(), about)


@catches(
    "networks/slab.py",
    "torch.cos(0.25 * torch.pi * position[:, :1]) ** 2",
    "torch.cos(0.25 * torch.pi * position[:, :1])",
)
def test_the_shares_of_two_slices_sum_to_the_whole():
    """A network whose features are the same for every slice answers as one slice alone would, anywhere between."""
    torch.manual_seed(0)
    network = SlabNet(context=1, width=8, before=1, deep_width=8, deep=1, after=0)
    code = torch.from_numpy(position_code(np.array([0.0, 0.25, -0.75, 1.0, -1.0])))
    features, about = torch.randn(1, 8, 6, 6), torch.zeros(3)
    whole = network.to_kernel(network.kernel(torch.cat([about.expand(5, 3), code], dim=1)))
    said = network.read_out(features, about, code)
    wanted = torch.nn.functional.conv2d(features, whole[:, :-1].reshape(5, 8, 3, 3), whole[:, -1], padding=1)
    shares = (said / wanted).mean(dim=(0, 2, 3)).detach().numpy()
    np.testing.assert_allclose(shares, [1.0, np.cos(np.pi / 8) ** 2, np.sin(np.pi / 8) ** 2, 0.0, 0.0], atol=1e-5)
    assert shares[1] + shares[2] == pytest.approx(1.0, abs=1e-5)


SCHEDULE = Schedule(steps=6, batches=2, warm_up=2, save_every=3, log_every=1)


class Killed(Exception):
    pass


def fresh():
    torch.manual_seed(0)
    return SlabNet(context=CONTEXT, width=8, before=1, deep_width=8, deep=1, after=0)


def train(folder, feed=batches, resume=False):
    return fit(fresh(), feed, projected_loss, folder, SCHEDULE, resume, report=lambda line: None)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return train(folder), folder


@catches("training/fit.py", 'self.stop = state["step"], state["seconds"]', 'self.stop = 0, state["seconds"]')
@catches("training/fit.py", 'self.average.load_state_dict(state["average"])', "pass")
def test_a_killed_and_resumed_training_equals_an_undisturbed_one(tmp_path, undisturbed):
    asked = []

    def until_killed(number):
        if number == 3 * SCHEDULE.batches:
            raise Killed
        return batches(number)

    def recorded(number):
        asked.append(number)
        return batches(number)

    with pytest.raises(Killed):
        train(tmp_path, until_killed)
    assert torch.load(tmp_path / "checkpoint.pt")["step"] == 3
    (tmp_path / ".0123456789abcdef.part").write_bytes(b"half a checkpoint")  # as a kill during a save leaves it
    again = train(tmp_path, recorded, resume=True)
    assert asked[: 3 * SCHEDULE.batches] == list(range(3 * SCHEDULE.batches, 6 * SCHEDULE.batches))
    for one, other in zip(again.state_dict().values(), undisturbed[0].state_dict().values(), strict=True):
        # One thread and the same data: the same sums in the same order.
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert len(lines) == 6
    assert not (tmp_path / ".0123456789abcdef.part").exists()


def test_training_changes_the_network_and_returns_its_average(undisturbed):
    average, folder = undisturbed
    state = torch.load(folder / "checkpoint.pt")
    assert state["step"] == 6
    assert state["settings"] == fresh().settings
    for name, start in fresh().state_dict().items():
        torch.testing.assert_close(average.state_dict()[name], state["average"][name])
        if name.endswith("weight"):
            assert not torch.equal(state["network"][name], start)
            assert not torch.equal(state["network"][name], state["average"][name])


@given(step=st.integers(0, 50), world=st.integers(1, 4), each=st.integers(1, 3))
def test_processes_and_steps_share_no_batch(step, world, each):
    numbers = [list(islice(_numbers(step, rank, world, each), 2 * each)) for rank in range(world)]
    first = step * world * each
    assert sorted(chain(*numbers)) == list(range(first, first + 2 * world * each))
    assert list(islice(_numbers(step + 1, 0, world, each), each)) == numbers[0][each:]


def test_without_resume_a_training_starts_anew(tmp_path, undisturbed):
    train(tmp_path)
    again = train(tmp_path)
    for one, other in zip(again.state_dict().values(), undisturbed[0].state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_an_answer_that_is_not_finite_does_not_spoil_the_weights(tmp_path):
    def feed(number):
        batch = batches(number)
        return replace(batch, truth=np.full_like(batch.truth, np.nan)) if number == 5 else batch

    network = train(tmp_path, feed)
    assert all(torch.isfinite(weight).all() for weight in network.state_dict().values())


# ---- watched, and side by side


def watched(folder, answer, resume=False, **schedule):
    """Train while somebody watches, who says when to stop: (average, steps at which there was a look, its weights)."""
    looks = []

    def check(step, average):
        looks.append((step, {name: weight.clone() for name, weight in average.state_dict().items()}))
        return answer(step)

    wish = replace(SCHEDULE, **schedule)
    average = fit(fresh(), batches, projected_loss, folder, wish, resume, report=lambda line: None, check=check)
    return average, looks


@pytest.mark.parametrize(("steps", "wanted"), [(6, [0, 3, 6]), (5, [0, 3, 5]), (2, [0, 2])])
def test_a_training_is_watched_before_it_begins_at_every_save_and_at_its_end(tmp_path, steps, wanted):
    average, looks = watched(tmp_path, lambda step: False, steps=steps)
    assert [step for step, _ in looks] == wanted
    for (_, weights), right in ((looks[0], fresh()), (looks[-1], average)):
        for name, weight in right.state_dict().items():
            torch.testing.assert_close(weights[name], weight, rtol=0, atol=0)


def test_watching_changes_nothing(tmp_path, undisturbed):
    average, _ = watched(tmp_path, lambda step: False)
    for one, other in zip(average.state_dict().values(), undisturbed[0].state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@catches(
    "training/fit.py",
    "training.stop = check is not None and check(training.step, training.average)",
    "training.stop = check is not None and check(training.step, training.average) and False",
)
@pytest.mark.parametrize("at", [0, 3])
def test_a_watcher_can_end_it(tmp_path, at):
    _, looks = watched(tmp_path, lambda step: step == at)
    assert [step for step, _ in looks] == [step for step in (0, 3) if step <= at]
    assert torch.load(tmp_path / "checkpoint.pt")["step"] == at


def test_a_resumed_training_is_watched_from_where_it_goes_on(tmp_path):
    def killed_at_six(step):
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watched(tmp_path, killed_at_six)
    _, looks = watched(tmp_path, lambda step: False, resume=True)
    assert [step for step, _ in looks] == [6]


def test_what_its_watcher_ended_is_not_gone_on_with(tmp_path):
    average, _ = watched(tmp_path, lambda step: step == 3)
    again, looks = watched(tmp_path, lambda step: False, resume=True)
    assert looks == []
    for one, other in zip(average.state_dict().values(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_what_is_computed_side_by_side_is_what_is_computed_in_turn(tmp_path, undisturbed):
    threads = torch.get_num_threads()
    average, _ = watched(tmp_path, lambda step: False, side_by_side=True)
    assert torch.get_num_threads() == threads
    beside, in_turn, start = (
        torch.cat([weight.flatten() for weight in network.state_dict().values()])
        for network in (average, undisturbed[0], fresh())
    )
    # Sums in another order, which Muon makes a little larger in each of six steps.
    assert (beside - in_turn).norm() < 0.05 * (in_turn - start).norm()


@catches("training/fit.py", "return self.batch_at(number)", "return self.batch_at(number + 1)")
def test_lessons_made_by_processes_are_those_made_by_a_thread():
    by_processes, by_a_thread = _from_processes(batches, count(3)), _from_a_thread(batches, count(3))
    for _ in range(3):
        one, other = next(by_processes), next(by_a_thread)
        assert one.geometry.factor == other.geometry.factor
        for name in ("thick", "cubic", "truth", "matrix", "correction"):
            np.testing.assert_array_equal(getattr(one, name).numpy(), getattr(other, name))
    by_processes.close()
    by_a_thread.close()


@catches("training/fit.py", "torch.stack(parts).sum(dim=0)", "torch.stack(parts).mean(dim=0)")
@pytest.mark.parametrize("beside", [False, True])
def test_the_gradient_of_a_step_is_that_of_the_mean_loss_of_its_batches(beside, monkeypatch):
    monkeypatch.setattr(losses, "has_bf16", lambda device: False)  # whose eight bits show in what order sums are made
    network, cpu, pair = fresh(), torch.device("cpu"), [batches(0), batches(1)]
    torch.stack([projected_loss(network, batch, cpu) for batch in pair]).mean().backward()
    wanted = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    network.zero_grad()
    with _workers(replace(SCHEDULE, side_by_side=beside), cpu) as workers:
        _gradients(network, pair, projected_loss, cpu, workers)
    for name, parameter in network.named_parameters():
        scale = wanted[name].abs().max().item()
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=0, atol=1e-5 * scale)
