"""Laws of the planes of Georgescu et al.: how they are cut and made small, and what is learnt from them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import seeds

pytest.importorskip("torch", reason="training needs torch, which comes with thinslice[train]")

import torch

from faults import catches
from thinslice.networks.planes import PlaneNet
from thinslice.training.losses import intermediate_loss
from thinslice.training.plane_batches import Shrinking, draw_planes, plane_batch_at, render_planes
from thinslice.training.volumes import TrainingVolume, normalise

SIZE, MARGIN, LINES = 8, 3, 2
FACTORS = st.sampled_from([2, 4])
PARTS = st.sampled_from(["in-plane", "depth"])


def a_corpus():
    rough = np.random.default_rng(0).random((60, 56, 40))
    return [
        TrainingVolume("isotropic", normalise(rough), (0, 1, 2), 1.0),
        TrainingVolume("thick along its last axis", normalise(rough[:50]), (0, 1), 1.0),
    ]


CORPUS = a_corpus()


def batches(step, part="depth", seed=0, **how):
    return plane_batch_at(step, seed, CORPUS, part, Shrinking(**how), 3, LINES, SIZE, MARGIN)


@catches("training/plane_batches.py", "slice(scale[0] * self.margin, -scale[0] * self.margin)", "slice(None)")
@given(step=st.integers(0, 10**6), part=PARTS, factor=FACTORS, scanner=st.sampled_from([0.0, 1.0]))
def test_a_batch_is_a_function_of_its_number_and_fits_together(step, part, factor, scanner):
    batch, again = (batches(step, part, factor=factor, scanner=scanner) for _ in range(2))
    small = SIZE + 2 * MARGIN
    assert batch.planes.shape == (3 * LINES, 1, small, small)
    wide = factor * small if part == "in-plane" else small
    assert batch.truth.shape == batch.base.shape == (3 * LINES, 1, factor * small, wide)
    rows, columns = batch.inner()
    scored = batch.truth[:, 0, rows, columns].shape
    assert scored == (3 * LINES, factor * SIZE, factor * SIZE if part == "in-plane" else SIZE)
    for name in ("planes", "base", "truth"):
        assert getattr(batch, name).dtype == np.float32
        np.testing.assert_array_equal(getattr(batch, name), getattr(again, name))
    assert np.abs(batch.planes - batches(step + 1, part, factor=factor, scanner=scanner).planes).max() > 0.01


@given(seed=seeds, part=PARTS, factor=FACTORS, scanner=st.sampled_from([0.0, 1.0]))
def test_on_a_ramp_planes_interpolation_and_truth_all_say_the_position(seed, part, factor, scanner):
    x, y, z = np.meshgrid(*[np.arange(160)] * 3, indexing="ij")
    corpus = [TrainingVolume("ramp", ((x + 0.7 * y + 0.4 * z) / 100).astype(np.float32), (0, 1, 2), 1.0)]
    draw = draw_planes(np.random.default_rng(seed), corpus, part, Shrinking(factor, scanner), LINES, SIZE)
    draw = replace(draw, place=replace(draw.place, corner=(60, 60, 60)))
    planes, base, truth = render_planes(corpus, draw, part, factor, LINES, SIZE, MARGIN)
    inner = np.s_[:, factor * MARGIN : -factor * MARGIN, factor * MARGIN : -factor * MARGIN]
    inner = inner if part == "in-plane" else (*inner[:2], slice(MARGIN, -MARGIN))
    # A spline rings from its mirrored ends: to a thousandth of a voxel's step, three pixels away.
    np.testing.assert_allclose(base[inner], truth[inner], atol=2e-3)
    middle = planes[:, MARGIN, MARGIN]
    fine = factor * MARGIN
    wanted = truth[:, fine : fine + factor, (fine if part == "in-plane" else MARGIN)]
    if part == "in-plane":
        wanted = truth[:, fine : fine + factor, fine : fine + factor].mean(axis=2)
    np.testing.assert_allclose(middle, wanted.mean(axis=1), atol=1e-4)


@catches(
    "training/batches.py",
    "transpose = across != min({0, 1, 2} - {axis})",
    "transpose = across == min({0, 1, 2} - {axis})",
)
@given(seed=seeds)
def test_in_plane_patches_of_a_thick_scan_lie_in_its_slices(seed):
    steps = np.zeros((60, 60, 30), np.float32) + np.arange(30) % 2  # neighbouring slices differ, each is flat
    corpus = [TrainingVolume("thick", steps + 0.2, (0, 1), 1.0)]
    draw = draw_planes(np.random.default_rng(seed), corpus, "in-plane", Shrinking(), LINES, SIZE)
    _, _, truth = render_planes(corpus, draw, "in-plane", 2, LINES, SIZE, MARGIN)
    assert np.ptp(truth, axis=(1, 2)).max() == 0
    assert np.ptp(truth) > 0.4


@catches("networks/planes.py", "permute(0, 3, 1, 4, 2)", "permute(0, 3, 2, 4, 1)")
@pytest.mark.parametrize("scale", [(2, 2), (4, 4), (2, 1), (4, 1)])
@pytest.mark.parametrize("residual", [True, False])
def test_both_answers_have_the_enlarged_shape_and_the_shuffle_keeps_places(scale, residual):
    network = PlaneNet(scale, residual=residual)
    base = torch.rand(2, 1, 6 * scale[0], 7 * scale[1])
    for answer in network.answers(torch.rand(2, 1, 6, 7), base):
        assert answer.shape == base.shape
    channels = torch.arange(scale[0] * scale[1]).float()[None, :, None, None].expand(1, -1, 3, 3)
    block = network.shuffled(channels)[0, 0, : scale[0], : scale[1]]
    np.testing.assert_array_equal(block.numpy().ravel(), channels[0, :, 0, 0].numpy())
    if scale[0] == scale[1]:
        np.testing.assert_array_equal(
            network.shuffled(channels).numpy(), torch.nn.functional.pixel_shuffle(channels, scale[0]).numpy()
        )


def test_the_network_has_the_papers_ten_convolutions_and_size():
    network = PlaneNet((2, 1))
    assert sum(isinstance(m, torch.nn.Conv2d) for m in network.modules()) == 10
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(57_000, rel=0.02)


class _Answering:
    def __init__(self, halfway, answer):
        self.said = torch.from_numpy(halfway), torch.from_numpy(answer)

    def answers(self, planes, base):
        return self.said


@catches("training/losses.py", "errors[0] + intermediate * errors[1] if intermediate else errors[0]", "errors[0]")
def test_the_loss_counts_both_answers_inside_the_margin_only():
    batch = batches(3, "in-plane")
    rows, columns = batch.inner()
    beside = batch.truth + 1
    beside[:, :, rows, columns] -= 1
    cpu = torch.device("cpu")
    assert intermediate_loss(_Answering(beside, beside), batch, cpu).item() == pytest.approx(0, abs=1e-6)
    wrong = _Answering(batch.truth + 0.3, batch.truth - 0.1)
    assert intermediate_loss(wrong, batch, cpu).item() == pytest.approx(0.4, abs=1e-5)
    assert intermediate_loss(wrong, batch, cpu, intermediate=0.0).item() == pytest.approx(0.1, abs=1e-5)


def test_the_stated_reach_is_enough_and_not_wasteful():
    torch.manual_seed(0)
    for scale in ((2, 2), (4, 1)):
        network = PlaneNet(scale)
        planes, base = torch.rand(1, 1, 41, 41), torch.rand(1, 1, 41 * scale[0], 41 * scale[1])
        other = planes.clone()
        other[0, 0, 20, 20] += 10
        with torch.no_grad():
            changed = np.argwhere(np.abs((network(other, base) - network(planes, base))[0, 0].numpy()) > 0)
        for axis, stated in enumerate(network.reach):
            seen = np.abs((changed[:, axis] - (scale[axis] - 1) / 2) / scale[axis] - 20).max()
            assert stated - 1 <= seen <= stated + 0.5
