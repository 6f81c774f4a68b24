"""Laws of learning without ground truth: slices come and go unblurred, nothing is paired, what diverges is ended."""

import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planning import plan_for
from thick_scans import SMALL, save_thick, thick_volume
from thinslice.compute.upsample import upsample
from thinslice.errors import InputRefused, ModelRefused, OutputRefused
from thinslice.evaluation.benchmark import check_truth
from thinslice.io import nifti
from thinslice.io.synthetic import as_synthetic, is_synthetic
from thinslice.models.registry import find_model
from thinslice.plan import make_plan
from thinslice.settings import Settings
from thinslice.volume import Volume, fingerprint

pytest.importorskip("torch", reason="training needs torch, which comes with thinslice[train]")
pytest.importorskip("onnx", reason="the export needs onnx, which comes with thinslice[train]")

import torch
from torch import nn

from faults import catches
from thinslice.networks.registry import Architecture
from thinslice.networks.vae import SliceVae, kl_divergence, sample_codes
from thinslice.training import losses, synthesis, validation
from thinslice.training.export import export
from thinslice.training.fit import Schedule
from thinslice.training.losses import vae_loss
from thinslice.training.manifest import person_of
from thinslice.training.objectives import SliceObjective, SyntheticSlabObjective
from thinslice.training.recipes import no_ground_truth
from thinslice.training.recipes.no_ground_truth import NAME, split_by_person
from thinslice.training.recipes.no_ground_truth import train_on_scans as run
from thinslice.training.slices import SliceBatch, group_similar, make_stack, slice_batch_at
from thinslice.training.sources import AcquiredSlices, SyntheticVolumes
from thinslice.training.stages import Stage
from thinslice.training.synthesis import (
    Synthetic,
    make_synthetic,
    slices_per_acquired_slice,
    synthesise,
    synthetic_batch_at,
    synthetic_slice_positions,
    to_patient_space,
)
from thinslice.training.usable_scans import UsableScan
from thinslice.training.validation import DIVERGED, DivergenceCheck

CPU = torch.device("cpu")
STEPS = 12


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    monkeypatch.setattr(losses, "has_bf16", lambda device: False)
    monkeypatch.setattr(synthesis, "has_bf16", lambda device: False)


def small_recipe(adversarial=0.25):
    """The recipe with small networks; a third of the steps for each stage."""
    schedule = Schedule(steps=4, rate=1e-3, muon_rate=0.0, warm_up=1, ema=0.5, save_every=2)
    objective = SliceObjective(patches=2, size=16)
    coder = Architecture("slice-vae", {"widths": (4, 8), "latent": 2})
    plain = Stage("vae", AcquiredSlices(), objective, coder, schedule, check=DivergenceCheck)
    introspective = replace(objective, adversarial=adversarial)
    objective = SyntheticSlabObjective(patches=2, size=24, slabs=2)
    return [
        plain,
        replace(plain, name="introvae", objective=introspective, start="vae"),
        Stage("network", SyntheticVolumes("introvae"), objective, Architecture("slab", SMALL), schedule, model=NAME),
    ]


@pytest.fixture
def _quick(monkeypatch):
    monkeypatch.setattr(no_ground_truth, "stages", small_recipe)
    monkeypatch.setattr(validation, "SLICE_BATCHES", 2)


def stack_of(volume=None, name="scan.nii.gz", person="a", **wish):
    volume = thick_volume(**wish) if volume is None else volume
    scan = UsableScan(name, Path(name), volume, plan_for(volume, model="cubic"), fingerprint(volume))
    return replace(make_stack(scan), person=person)


def small_coder(seed=0):
    torch.manual_seed(seed)
    return SliceVae((4, 8), 2).requires_grad_(False)


class Unchanged(nn.Module):
    """An auto-encoder that keeps every slice as it is: its codes are the pixels, nothing is squeezed."""

    def __init__(self, multiple=1, answer=None):
        super().__init__()
        self.multiple, self.answer = multiple, answer
        self.settings = {"latent": 1}
        self.anything = nn.Parameter(torch.zeros(1), requires_grad=False)

    def encode(self, images):
        assert all(side % self.multiple == 0 for side in images.shape[2:])
        return images, torch.zeros_like(images)

    def decode(self, codes):
        return codes if self.answer is None else torch.full_like(codes, self.answer)


# ---- the auto-encoder


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(1, 3))
def test_slices_of_any_size_go_in_and_come_out(levels, rows, columns, latent):
    vae = SliceVae((2,) * levels, latent)
    images = torch.rand(2, 1, rows * vae.multiple, columns * vae.multiple)
    mean, log_variance = vae.encode(images)
    assert mean.shape == log_variance.shape == (2, latent, rows, columns)
    assert vae(images).shape == images.shape


def test_it_is_built_again_from_its_settings():
    vae = small_coder()
    twin = SliceVae(**vae.settings)
    twin.load_state_dict(vae.state_dict())
    images = torch.rand(1, 1, 12, 16)
    torch.testing.assert_close(twin(images), vae(images), rtol=0, atol=0)


@catches(
    "networks/vae.py",
    "(1 + log_variance - mean.square() - log_variance.exp())",
    "(1 + log_variance - log_variance.exp())",
)
def test_the_divergence_is_that_of_two_normal_distributions():
    mean, log_variance = torch.tensor([0.0, 1.0, -2.0, 0.5]), torch.tensor([0.0, 0.0, 1.0, -1.0])
    codes = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance))
    wanted = torch.distributions.kl_divergence(codes, torch.distributions.Normal(0.0, 1.0))
    found = kl_divergence(mean.reshape(4, 1, 1, 1), log_variance.reshape(4, 1, 1, 1))
    torch.testing.assert_close(found, wanted)


@catches("networks/vae.py", "torch.exp(0.5 * log_variance)", "torch.exp(log_variance)")
def test_codes_are_drawn_around_their_means():
    mean, log_variance = torch.full((1, 1, 200, 200), 3.0), torch.full((1, 1, 200, 200), np.log(0.25))
    codes = sample_codes(mean, log_variance, torch.randn(mean.shape, generator=torch.Generator().manual_seed(0)))
    assert codes.mean().item() == pytest.approx(3.0, abs=0.01)
    assert codes.std().item() == pytest.approx(0.5, abs=0.01)


# ---- its losses


def patches(seed=0):
    images = np.random.default_rng(seed).random((2, 1, 16, 16), np.float32)
    return SliceBatch(images, 7)


def by_hand(vae, batch):
    """Slices, codes and made slices of a batch, with the noise that the loss draws."""
    images = torch.from_numpy(batch.slices)
    noise = torch.Generator().manual_seed(batch.seed)
    mean, log_variance = vae.encode(images)
    code = sample_codes(mean, log_variance, torch.randn(mean.shape, generator=noise))
    prior = torch.randn(mean.shape, generator=noise)
    return images, mean, log_variance, code, prior


def gradients(loss, vae):
    return dict(zip(dict(vae.named_parameters()), torch.autograd.grad(loss, list(vae.parameters())), strict=True))


def learning_coder(seed=0):
    torch.manual_seed(seed)
    return SliceVae((4, 8), 2)


def test_the_plain_loss_is_the_evidence_bound_per_pixel():
    vae, batch = learning_coder(), patches()
    images, mean, log_variance, code, _ = by_hand(vae, batch)
    squares = 0.5 * ((vae.decode(code) - images) / 0.1).square().sum()
    kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum()
    wanted = (squares + kl) / images.numel()
    assert vae_loss(vae, batch, CPU, 0.1).item() == pytest.approx(wanted.item(), rel=1e-5)


def adversarial_part(vae, batch, part):
    """Gradients of what being introspective adds, for the encoder or the decoder."""
    with_it, without = (gradients(vae_loss(vae, batch, CPU, 1.0, weight), vae) for weight in (0.5, 0.0))
    return {name: with_it[name] - without[name] for name in with_it if name.startswith(part)}


def close(found, wanted):
    assert found
    for name, gradient in found.items():
        scale = wanted[name].abs().max().item()
        torch.testing.assert_close(gradient, wanted[name], rtol=0, atol=1e-3 * scale + 1e-9)


@catches("training/losses.py", "divergence(*network.encode(made.detach()))", "divergence(*network.encode(made))")
@catches(
    "training/losses.py",
    "{id(weight): weight.detach() for weight in network.encoder.parameters()}",
    "{id(weight): weight for weight in network.encoder.parameters()}",
)
def test_the_encoder_learns_to_tell_made_slices_from_given_ones():
    vae, batch = learning_coder(), patches()
    _, mean, log_variance, code, prior = by_hand(vae, batch)
    margin = losses.MARGIN * kl_divergence(mean, log_variance).detach()
    made = [vae.decode(code).detach(), vae.decode(prior).detach()]
    caught = sum(torch.relu(margin - kl_divergence(*vae.encode(image))).mean() for image in made)
    per_number = 2 / vae.multiple**2
    loss = 0.5 * per_number * caught
    wanted = torch.autograd.grad(loss, list(vae.encoder.parameters()))
    names = [name for name, _ in vae.named_parameters() if name.startswith("encoder")]
    found = adversarial_part(vae, batch, "encoder")
    assert any(gradient.abs().max() > 0 for gradient in wanted)
    close(found, dict(zip(names, wanted, strict=True)))


@catches("training/losses.py", "for made in (of_codes, invented)]", "for made in (of_codes, invented.detach())]")
def test_the_decoder_learns_to_make_slices_that_pass_of_codes_and_of_noise():
    vae, batch = learning_coder(), patches()
    _, _, _, code, prior = by_hand(vae, batch)
    names = [name for name, _ in vae.named_parameters() if name.startswith("decoder")]
    parts = []
    for codes in (code.detach(), prior):
        passed = 0.5 * 2 / vae.multiple**2 * kl_divergence(*vae.encode(vae.decode(codes))).mean()
        parts.append(torch.autograd.grad(passed, list(vae.decoder.parameters())))
    assert all(any(gradient.abs().max() > 1e-9 for gradient in part) for part in parts)
    wanted = {name: one + other for name, one, other in zip(names, *parts, strict=True)}
    close(adversarial_part(vae, batch, "decoder"), wanted)


def test_a_slice_that_is_unlikely_enough_is_not_made_more_so(monkeypatch):
    vae, batch = learning_coder(), patches()
    monkeypatch.setattr(losses, "MARGIN", -1e3)  # nothing is below it
    assert all(gradient.abs().max() == 0 for gradient in adversarial_part(vae, batch, "encoder").values())


# ---- slices to learn from


@catches(
    "training/slices.py",
    "patch = image[top : top + size, left : left + size]",
    "patch = image[top : top + size, left : left + size - 1]",
)
def test_a_patch_is_cut_from_a_slice_as_it_is_and_only_turned_over():
    stack = stack_of()
    stack = replace(stack, slices=np.arange(stack.slices.size, dtype=np.float32).reshape(stack.slices.shape) + 1)
    batch = slice_batch_at(3, 0, [stack], 12, 16)
    assert batch.slices.shape == (12, 1, 16, 16)
    turned = set()
    for (patch,) in batch.slices:
        number, corner = divmod(int(patch.min()) - 1, stack.slices[0].size)
        top, left = divmod(corner, stack.slices.shape[2])
        wanted = stack.slices[number, top : top + 16, left : left + 16]
        ways = {(t, r, c): (wanted.T if t else wanted)[::r, ::c] for t in (0, 1) for r in (1, -1) for c in (1, -1)}
        turned |= (match := {way for way, image in ways.items() if np.array_equal(image, patch)})
        assert match
    assert len(turned) > 3


def test_a_batch_is_a_function_of_its_number_and_the_seed():
    stacks = [stack_of(), stack_of(seed=1)]
    one, again, next_one, other = (slice_batch_at(*wish, stacks, 4, 16) for wish in ((5, 0), (5, 0), (6, 0), (5, 1)))
    np.testing.assert_array_equal(one.slices, again.slices)
    assert one.seed == again.seed
    for different in (next_one, other):
        assert not np.array_equal(one.slices, different.slices)
        assert one.seed != different.seed


def test_slices_smaller_than_a_patch_repeat_their_edges():
    stack = stack_of()
    stack = replace(stack, slices=np.ones((10, 8, 12), np.float16))
    (patch,) = slice_batch_at(0, 0, [stack], 1, 16).slices[0]
    assert patch.shape == (16, 16)
    assert (patch == 1).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_stack_holds_the_slices_of_the_scan_in_its_intensity_range(axis):
    volume = thick_volume(axis=axis)
    stack = stack_of(volume)
    assert stack.slices.shape == (10, 64, 56)
    for index in (0, 4, 9):
        image = np.take(volume.voxels, index, axis=axis).astype(float)
        assert np.corrcoef(stack.slices[index].ravel(), image.ravel())[0, 1] > 0.9999
    low, high = np.percentile(stack.slices.astype(float), [0.5, 99.5])
    assert low == pytest.approx(0, abs=0.01)
    assert high == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("volume", "got"),
    [
        (thick_volume(shape=(64, 56, 5)), "got 5 slices"),
        (thick_volume(shape=(64, 40, 10)), "40 x 64 pixels"),
        (replace(thick_volume(), voxels=np.full((64, 56, 10), 3, np.int16)), "an empty image"),
    ],
)
def test_what_there_is_too_little_of_is_refused(volume, got):
    plan = plan_for(thick_volume(), model="cubic")
    plan = replace(plan, shape_thick=volume.shape)
    with pytest.raises(InputRefused, match=got):
        make_stack(UsableScan("x", Path("x.nii"), volume, plan, ""))


def shape_scan(kind, turn=0, side=64):
    x, y = np.meshgrid(*[np.linspace(-1, 1, side)] * 2, indexing="ij")
    kinds = {"disc": np.hypot(x, y) < 0.8, "bar": np.abs(x + 0.5) < 0.3, "corner": (x > 0) & (y > 0)}
    image = np.rot90(kinds[kind].astype(float), turn)
    voxels = np.repeat(image[..., None], 10, axis=2) * 100 + np.random.default_rng(0).random((side, side, 10))
    return stack_of(Volume(voxels.astype(np.float32), np.diag([1.0, 1, 4, 1])), name=f"{kind}{turn}{side}")


def test_scans_of_one_kind_look_alike_in_whatever_position_and_size():
    assert len(group_similar([shape_scan("bar"), shape_scan("bar", 1), shape_scan("bar", 2, side=90)])) == 1


def test_scans_of_several_kinds_are_told_apart():
    found = group_similar(
        [shape_scan("disc"), shape_scan("bar"), shape_scan("bar", 1), shape_scan("corner"), shape_scan("bar", 2)]
    )
    assert found[0] == ["bar064", "bar164", "bar264"]
    assert sorted(found[1:]) == [["corner064"], ["disc064"]]


# ---- persons


@catches(
    "training/manifest.py", '.get("subject") or (labels[0] if labels else str(path))', '.get("subject") or str(path)'
)
def test_whose_a_scan_is_stands_in_the_manifest_or_in_its_name(tmp_path):
    (tmp_path / "manifest.csv").write_text(
        "file,subject,licence\na.nii.gz,anna,MIT\nb.nii.gz,anna,MIT\nc.nii.gz,,MIT\n"
    )
    names = ("a.nii.gz", "b.nii.gz", "c.nii.gz", "sub-01_T1w.nii.gz", "sub-01_T2w.nii.gz", "sub-012_T2w.nii.gz")
    found = [person_of(tmp_path / name) for name in names]
    assert found == ["anna", "anna", str(tmp_path / "c.nii.gz"), "sub-01", "sub-01", "sub-012"]


def test_whose_a_scan_is_does_not_depend_on_where_one_stands(tmp_path, monkeypatch):
    here = tmp_path / "scans"
    here.mkdir()
    (tmp_path / "manifest.csv").write_text("file,subject,licence\nscans/a.nii.gz,anna,MIT")
    monkeypatch.chdir(here)
    assert person_of(Path("a.nii.gz")) == person_of(Path("./a.nii.gz")) == person_of(here / "a.nii.gz") == "anna"


def test_files_of_one_name_are_of_as_many_persons_as_folders(tmp_path):
    paths = [tmp_path / folder / "T1.nii.gz" for folder in ("sub-01", "sub-01/ses-1/anat", "sub-02", "other", "more")]
    found = [person_of(path) for path in paths]
    assert found[:3] == ["sub-01", "sub-01", "sub-02"]
    assert len(set(found)) == 4


@catches(
    "training/recipes/no_ground_truth.py",
    "held_out = set(persons[: round(HELD_OUT * len(persons))])",
    "held_out = {stack.person for stack in stacks[:1]}\n    stacks = [*stacks, replace(stacks[0], person='')]",
)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=60))
def test_nobody_is_learnt_from_and_looked_at(numbers):
    stacks = [SimpleNamespace(person=str(number), number=place) for place, number in enumerate(numbers)]
    learnt, looked_at = split_by_person(stacks)
    if len(set(numbers)) < no_ground_truth.LEAST_PERSONS:
        assert learnt == looked_at == stacks
    else:
        assert learnt
        assert looked_at
        assert not {stack.person for stack in learnt} & {stack.person for stack in looked_at}
        assert sorted(stack.number for stack in learnt + looked_at) == list(range(len(stacks)))


# ---- synthesis


@catches(
    "training/synthesis.py",
    "(np.arange(count) + 0.5) * (n_thick / count) - 0.5",
    "np.arange(count) * (n_thick / count)",
)
@given(st.integers(1, 9), st.floats(1.0, 6.0))
def test_a_synthesised_volume_has_the_field_of_view_of_the_slices(n, rate):
    place = synthetic_slice_positions(n, rate)
    assert len(place) == round(n * rate)
    np.testing.assert_allclose(np.diff(place), n / len(place))
    step = place[1] - place[0] if len(place) > 1 else n
    assert place[0] - step / 2 == pytest.approx(-0.5)
    assert place[-1] + step / 2 == pytest.approx(n - 0.5)


@catches("training/synthesis.py", "part[:, 0, :height, :width].float()", "part[:, 0, -height:, -width:].float()")
@pytest.mark.parametrize("multiple", [1, 8])
def test_pixels_go_through_unblurred_and_unmoved(multiple):
    stack = stack_of(shape=(61, 53, 10))
    np.testing.assert_array_equal(synthesise(Unchanged(multiple), stack, 1.0, detail=False), stack.slices)


@catches("training/synthesis.py", "enumerate(cubic_matrix(place, n)", "enumerate(linear_matrix(np.rint(place), n)")
def test_what_the_codes_do_not_hold_is_added_as_cubic_interpolation_has_it():
    """By a coder that holds nothing the volume is that interpolation, at acquired places the slices themselves."""
    from scipy.ndimage import map_coordinates

    stack = stack_of()
    np.testing.assert_allclose(synthesise(Unchanged(answer=0.25), stack, 1.0), stack.slices, atol=2e-3)
    volume = synthesise(Unchanged(answer=0.25), stack, 2.0)
    places = np.stack(np.meshgrid(synthetic_slice_positions(10, 2.0), np.arange(64), np.arange(56), indexing="ij"))
    wanted = map_coordinates(stack.slices.astype(np.float64), places, order=3, mode="mirror")
    np.testing.assert_allclose(volume, wanted, atol=5e-3)


def test_codes_are_interpolated_on_straight_lines_and_held_at_the_ends():
    stack = stack_of()
    slices = stack.slices.astype(np.float32)
    volume = synthesise(Unchanged(), stack, 2.0)
    assert volume.shape == (20, 64, 56)
    np.testing.assert_allclose(volume[0], slices[0], atol=2e-3)
    np.testing.assert_allclose(volume[1], 0.75 * slices[0] + 0.25 * slices[1], atol=2e-3)
    np.testing.assert_allclose(volume[6], 0.25 * slices[2] + 0.75 * slices[3], atol=2e-3)
    np.testing.assert_allclose(volume[-1], slices[-1], atol=2e-3)


def test_the_means_of_the_codes_are_decoded_nothing_is_drawn():
    vae, stack = small_coder(), stack_of()
    one, again = (synthesise(vae, stack, 2.0) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    images = torch.from_numpy(stack.slices[2:3, None].astype(np.float32))
    middle = synthesise(vae, stack, 1.0, detail=False)[2]
    np.testing.assert_allclose(middle, vae(images)[0, 0].numpy(), atol=2e-3)


@catches(
    "training/synthesis.py",
    "    if not detail:\n        return volume",
    "    if not detail:\n        return np.repeat(stack.slices, 3, axis=0) if rate == 3 else volume",
)
def test_every_slice_is_a_decoders_those_at_acquired_places_too():
    assert (synthesise(Unchanged(answer=7.0), stack_of(), 3.0, detail=False) == 7).all()


def test_a_scan_cannot_come_along_with_what_was_made_of_it():
    """`Synthetic` holds one volume and some numbers; the thick slices of a batch are made of that volume."""
    names = {field.name for field in fields(Synthetic)}
    assert names == {"thin", "factor", "thickness_over_spacing", "profile", "corner"}
    one = make_synthetic(Unchanged(), stack_of())
    flat = replace(one, thin=replace(one.thin, voxels=np.full_like(one.thin.voxels, 7.0)))
    batch = synthetic_batch_at(0, 0, [flat], 2, 24, 2, 3)
    for of_patch in batch.thick:  # a gain, an offset, perhaps noise, but nothing of the scan's texture
        assert of_patch.std() < 0.03
    assert np.ptp(batch.truth[0]) == 0


@catches(
    "training/synthesis.py",
    "return Synthetic(thin, plan.factor, plan.thickness_over_spacing, plan.profile, (top, left))",
    "return Synthetic(thin, rate, plan.thickness_over_spacing, plan.profile, (top, left))",
)
def test_a_batch_is_made_thick_as_the_scan_was():
    stack = stack_of()
    one = make_synthetic(Unchanged(), stack)
    plan = stack.plan
    assert (one.factor, one.thickness_over_spacing, one.profile) == (plan.factor, 1.0, "gaussian")
    found = [synthetic_batch_at(step, 0, [one], 1, 24, 2, 3).geometry for step in range(40)]
    factors = np.array([geometry.factor for geometry in found])
    assert factors.min() == pytest.approx(0.9 * plan.factor, rel=0.02)
    assert factors.max() == pytest.approx(1.1 * plan.factor, rel=0.02)
    assert all(0.95 <= geometry.thickness_over_spacing <= 1.05 for geometry in found)


@pytest.mark.parametrize(("factor", "rate"), [(2.0, 1.5), (4.0, 2.0), (9.0, 4.5)])
def test_about_half_as_many_slices_are_made_as_a_thin_scan_would_have(factor, rate):
    assert slices_per_acquired_slice(factor) == rate


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_of_a_large_scan_a_part_is_kept_that_differs_from_scan_to_scan(seed):
    stack = stack_of(seed=seed)
    one = make_synthetic(Unchanged(), stack, voxels=20 * 50 * 50)
    assert one.thin.voxels.shape == (20, 50, 50)
    top, left = one.corner
    np.testing.assert_allclose(one.thin.voxels[0], stack.slices[0, top : top + 50, left : left + 50], atol=2e-3)
    others = {make_synthetic(Unchanged(), stack_of(seed=other), 20 * 50 * 50).corner for other in range(8)}
    assert len(others) > 3


@catches("training/synthesis.py", "first[inside] = -begin", "first[inside] = 0.0")
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_part_lies_where_it_was_cut_from(axis):
    volume = thick_volume(axis=axis)
    stack = stack_of(volume)
    one = make_synthetic(Unchanged(), stack, voxels=20 * 50 * 50)
    assert one.corner != (0, 0)
    shown = no_ground_truth._comparison(one, stack)
    for made, times in ((shown.scan, 1), (shown.synthesised, 2)):
        index = [3, 5, 7]
        index[axis] = 4 * times
        at = (np.linalg.inv(volume.affine) @ made.affine @ [*index, 1])[:3]
        within = [a for a in range(3) if a != axis]
        np.testing.assert_allclose(at[within], [index[within[0]] + one.corner[0], index[within[1]] + one.corner[1]])
        assert at[axis] == pytest.approx(4 if times == 1 else 3.75)
    low, high = np.percentile(volume.voxels, [0.5, 99.5])
    nearest = tuple(np.rint(np.linalg.inv(volume.affine) @ shown.scan.affine @ [6, 6, 6, 1]).astype(int)[:3])
    assert shown.scan.voxels[6, 6, 6] == pytest.approx(1000 * (volume.voxels[nearest] - low) / (high - low), abs=2)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_written_for_looking_lies_where_the_scan_does(axis):
    volume = thick_volume(axis=axis)
    stack = stack_of(volume)
    made = to_patient_space(synthesise(Unchanged(), stack, 2.0), stack)
    assert made.spacing_mm[axis] == pytest.approx(2.0)
    assert made.shape[axis] == 20
    edges = []
    for image in (volume, made):
        ends = np.zeros((2, 4))
        ends[:, 3] = 1
        ends[:, axis] = (-0.5, image.shape[axis] - 0.5)
        edges.append(ends @ image.affine.T)
    np.testing.assert_allclose(edges[0], edges[1])
    pairs = made.voxels.reshape(*made.shape[:axis], 10, 2, *made.shape[axis + 1 :]).mean(axis=axis + 1)
    assert np.corrcoef(pairs.ravel(), volume.voxels.ravel())[0, 1] > 0.95


@catches("io/nifti.py", 'header["descrip"] = text', "pass")
def test_it_is_refused_as_truth_wherever_truth_is_needed(tmp_path):
    made = as_synthetic(to_patient_space(np.random.default_rng(0).random((40, 64, 56)).astype(np.float16), stack_of()))
    nifti.write(made, tmp_path / "copy.nii.gz")
    again = nifti.read(tmp_path / "copy.nii.gz")
    assert is_synthetic(again)
    with pytest.raises(InputRefused, match="synthesised"):
        check_truth(again)
    assert not is_synthetic(nifti.read(save_thick(tmp_path / "scan.nii.gz")))


# ---- what diverges


class Answers(nn.Module):
    """An auto-encoder whose error is told."""

    def __init__(self):
        super().__init__()
        self.error = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, images):
        return images + self.error


def checked(folder, errors, first=0):
    """A check after validations with these errors, two steps apart; and what it answered."""
    check, network, said = DivergenceCheck([patches()], folder, lambda line: None), Answers(), []
    for number, error in enumerate(errors):
        network.error.fill_(error)
        said.append(check(first + 2 * number, network))
    return check, said


@catches(
    "training/validation.py",
    "return last is None or last > DIVERGED * min(numbers)",
    "return last is not None and last > DIVERGED * min(numbers)",
)
def test_the_first_look_may_be_no_number_too(tmp_path):
    check, said = checked(tmp_path, [float("nan")])
    assert said == [True]
    assert check.has_diverged
    (line,) = (tmp_path / "validation.jsonl").read_text().splitlines()
    json.loads(line, parse_constant=pytest.fail)  # which Infinity would be
    with pytest.raises(InputRefused, match="next: "):
        check.last_good()


@pytest.mark.parametrize("last", [1.6, float("nan"), float("inf")])
def test_what_becomes_far_worse_is_ended_and_the_last_good_weights_are_there(tmp_path, last):
    check, said = checked(tmp_path, [3.0, 1.0, 1.2, last])
    assert said == [False, False, False, True]
    assert check.has_diverged
    good = check.last_good()
    assert good["step"] == 4
    assert good["weights"]["error"].item() == pytest.approx(1.2)


def test_a_little_worse_is_no_divergence(tmp_path):
    check, said = checked(tmp_path, [1.0, 0.99 * DIVERGED])
    assert not any(said)
    assert not check.has_diverged


def test_a_resumed_watch_knows_the_looks_before(tmp_path):
    checked(tmp_path, [3.0, 1.0, 9.0])
    again = DivergenceCheck([patches()], tmp_path, quietly)
    assert again.has_diverged
    assert again.last_good()["step"] == 2
    again, said = checked(tmp_path, [1.1, 1.0], first=4)  # the third look is taken again
    assert not any(said)
    assert [record["step"] for record in again.records] == [0, 2, 4, 6]


# ---- the recipe


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("targets")
    return [save_thick(folder / "one.nii.gz"), save_thick(folder / "two.nii.gz", axis=0, seed=1)]


def quietly(line):
    pass


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, scans):
    """(output folder, lines of progress) of one run."""
    out, said = tmp_path_factory.mktemp("undisturbed") / "out", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(no_ground_truth, "stages", small_recipe)
        patch.setattr(validation, "SLICE_BATCHES", 2)
        patch.setattr(losses, "has_bf16", lambda device: False)
        patch.setattr(synthesis, "has_bf16", lambda device: False)
        run(scans, out, steps=STEPS, keep_synthetic=True, report=said.append)
    return out, said


def test_an_ordinary_model_comes_of_it(undisturbed, scans):
    out, said = undisturbed
    model, volume = find_model(str(out / f"{NAME}.onnx")), nifti.read(scans[0])
    answer = upsample(volume, make_plan(volume, Settings(), model), model)
    assert answer.volume.shape == (64, 56, 40)
    assert any(str(out / f"{NAME}.onnx") in line for line in said)


def test_its_card_says_what_it_was_made_of(undisturbed, scans):
    out, _ = undisturbed
    card = json.loads((out / f"{NAME}.json").read_text())
    assert [stage["name"] for stage in card["recipe"]] == ["vae", "introvae", "network"]
    assert {name: length["steps"] for name, length in card["trained"].items()} == dict.fromkeys(
        ("vae", "introvae", "network"), STEPS // 3
    )
    assert [row["fingerprint"] for row in card["data"]] == [fingerprint(nifti.read(path)) for path in scans]
    assert all(row["licence"] == "unknown" and row["learnt_from"] for row in card["data"])
    low, high = card["envelope"]["factor"]
    assert low == pytest.approx(3.6)
    assert high == pytest.approx(4.4)
    found = {make_plan(nifti.read(path), Settings(), find_model("cubic")).profile for path in scans}
    assert card["envelope"]["profiles"] == sorted(found)  # what nobody told
    assert card["started_from"] is None
    assert not card["validation"]["introvae"]["diverged"]


def test_what_was_synthesised_is_kept_on_demand_and_marked(undisturbed):
    out, _ = undisturbed
    kept = sorted((out / "synthetic").iterdir())
    assert [path.name for path in kept] == ["synthetic-001.nii.gz", "synthetic-002.nii.gz"]
    for path, axis in zip(kept, (2, 0), strict=True):
        volume = nifti.read(path)
        assert is_synthetic(volume)
        assert volume.shape[axis] == 20


def test_the_page_shows_each_beside_its_scan_and_needs_no_network(undisturbed):
    page = (undisturbed[0] / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 2
    assert "one.nii.gz" in page
    assert "must not be paired" in page.replace("\n", " ")
    assert not re.search(r"(src|href)=\"?(https?:)?//", page)
    assert "introvae" in page


def weights_in(out, name="network"):
    return torch.load(out / name / "checkpoint.pt", weights_only=True)["average"]


def same_weights(one, other):
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], rtol=0, atol=0)


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import numpy, threadpoolctl; threadpoolctl.threadpool_limits(1, "blas")
import torch; torch.set_num_threads(1)
import test_no_ground_truth as here
from thinslice.training import fit, losses, synthesis, validation
from thinslice.training.recipes import no_ground_truth
no_ground_truth.stages, validation.SLICE_BATCHES = here.small_recipe, 2
losses.has_bf16 = synthesis.has_bf16 = lambda device: False
save, left = fit.save_whole, [{saves}]
def last(state, path):
    save(state, path)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
fit.save_whole = last
here.run([Path(name) for name in {scans!r}], Path({out!r}), steps={steps}, report=here.quietly)
"""


@pytest.mark.parametrize("saves", [1, 4, 7])
@pytest.mark.usefixtures("_quick")
@pytest.mark.slow
def test_killed_in_any_stage_it_goes_on_to_the_same_weights(tmp_path, scans, undisturbed, saves):
    out = tmp_path / "out"
    code = KILLED.format(
        tests=str(Path(__file__).parent), saves=saves, scans=[str(p) for p in scans], out=str(out), steps=STEPS
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not (out / f"{NAME}.onnx").exists()
    run(scans, out, resume=True, report=quietly)
    for name in ("vae", "introvae", "network"):
        same_weights(weights_in(out, name), weights_in(undisturbed[0], name))
    assert json.loads((out / "request.json").read_text())["steps"] == STEPS


@pytest.mark.usefixtures("_quick")
def test_a_finished_run_is_left_alone_by_resume_and_refused_without(tmp_path, scans, undisturbed):
    out = tmp_path / "out"
    shutil.copytree(undisturbed[0], out)
    model = (out / f"{NAME}.onnx").read_bytes()
    with pytest.raises(InputRefused, match="an earlier training"):
        run(scans, out, steps=STEPS, report=quietly)
    run(scans, out, resume=True, report=quietly)
    assert (out / f"{NAME}.onnx").read_bytes() == model


@catches(
    "training/run_state.py",
    "changed = [key for key in self.changes(whole) if key not in may_change]",
    'changed = [key for key in self.changes(whole) if key == "scans"]',
)
@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"settings": Settings(profile="box")}, "profile"),
        ({"settings": Settings(thickness_mm=3.0)}, "thickness"),
        ({"fewer": 1}, "scans"),
        ({"steps": 2 * STEPS}, "steps"),
    ],
)
def test_a_run_is_resumed_by_the_same_wish_alone(tmp_path, scans, undisturbed, change, named):
    out = tmp_path / "out"
    shutil.copytree(undisturbed[0], out)
    fewer, settings = scans[change.get("fewer", 0) :], change.get("settings", Settings())
    with pytest.raises(InputRefused, match=named):
        run(fewer, out, settings, resume=True, steps=change.get("steps"), report=quietly)


@pytest.mark.parametrize(
    ("name", "kept", "code"),
    [
        ("request.json", '{"recipe": "default", "minutes": 3, "steps": null}', "training-of-another-recipe"),
        ("request.json", "torn", "training-of-another-version"),
        ("wish.json", '{"recipe": "no-ground-truth", "minutes": 3, "steps": null}', "training-of-another-version"),
    ],
)
def test_the_folder_of_another_recipe_or_version_is_refused(tmp_path, scans, name, kept, code):
    (tmp_path / name).write_text(kept)
    with pytest.raises(InputRefused, match=r"got .*need .*next: ") as refusal:
        run(scans, tmp_path, resume=True, report=quietly)
    assert refusal.value.code == code
    assert (tmp_path / name).read_text() == kept


@pytest.mark.parametrize("name", ["report.html", f"{NAME}.onnx", f"{NAME}.json", "synthetic"])
def test_nothing_that_is_there_is_replaced_and_that_is_said_before_any_work(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputRefused, match=name):
        run([tmp_path / "not-even-read.nii.gz"], tmp_path, report=quietly, complain=quietly)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.usefixtures("_quick")
def test_a_damaged_checkpoint_is_named(tmp_path, scans, undisturbed):
    out = tmp_path / "out"
    shutil.copytree(undisturbed[0], out)
    whole = (out / "vae" / "checkpoint.pt").read_bytes()
    (out / "vae" / "checkpoint.pt").write_bytes(whole[:5000])
    with pytest.raises(InputRefused, match=r"vae/checkpoint.pt: got a damaged checkpoint"):
        run(scans, out, resume=True, report=quietly)


def test_several_processes_are_refused(tmp_path, scans, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputRefused, match="torchrun"):
        run(scans, tmp_path / "out", report=quietly)


@catches("training/slices.py", "-LARGEST, LARGEST)", "-1e9, 1e9)")
@pytest.mark.usefixtures("_quick")
def test_scans_of_one_name_and_two_threads_and_a_wild_voxel(tmp_path, monkeypatch):
    """What a folder for each person has, what the recipe does, and what a map of some quantity may hold."""
    side_by_side = [replace(s, schedule=replace(s.schedule, side_by_side=True)) for s in small_recipe()]
    monkeypatch.setattr(no_ground_truth, "stages", lambda *_: side_by_side)
    paths = [save_thick(tmp_path / name / "T1.nii.gz", seed=seed) for seed, name in enumerate("ab")]
    wild = thick_volume(seed=2, dtype=np.float32)
    wild.voxels[30, 30, 4] = 1e9
    nifti.write(wild, tmp_path / "wild.nii.gz")
    paths.append(tmp_path / "wild.nii.gz")
    run(paths, tmp_path / "out", steps=STEPS, keep_synthetic=True, report=quietly)
    card = json.loads((tmp_path / "out" / f"{NAME}.json").read_text())
    assert [row["file"] for row in card["data"]][:2] == ["a/T1.nii.gz", "b/T1.nii.gz"]
    assert not any(look["diverged"] for look in card["validation"].values())


@catches("training/volumes.py", "            check_acquired(scan)\n", "            pass\n")
@pytest.mark.usefixtures("_quick")
def test_what_was_synthesised_is_no_target_and_no_source(tmp_path, undisturbed):
    from thinslice.training.volumes import load_thick

    lines = []
    with pytest.raises(InputRefused, match="got no scan"):
        run(sorted((undisturbed[0] / "synthetic").iterdir()), tmp_path / "out", report=quietly, complain=lines.append)
    assert len(lines) == 2
    assert all("synthesised" in line for line in lines)
    with pytest.raises(InputRefused, match="synthesised"):
        load_thick(undisturbed[0] / "synthetic")


def test_what_the_reader_decided_is_told(tmp_path):
    volume = thick_volume(dtype=np.float32)
    volume.voxels[0, 0, 0] = np.nan
    stored = tmp_path / "nan.nii.gz"
    import nibabel

    nibabel.save(nibabel.Nifti1Image(volume.voxels, volume.affine), stored)
    said = []
    stacks = no_ground_truth._read_stacks([stored], find_model("cubic"), Settings(), said.append, quietly)
    assert len(stacks) == 1
    assert any("nan.nii.gz: note: " in line for line in said)


def test_a_start_that_is_no_network_is_refused_by_its_own_option(tmp_path, scans):
    with pytest.raises(ModelRefused, match="`start_from=cubic`"):
        run(scans, tmp_path / "out", start_from="cubic", report=quietly)


@catches("training/validation.py", 'average.load_state_dict(good["weights"])', "pass")
@pytest.mark.usefixtures("_quick")
def test_a_diverging_introspective_stage_is_ended_and_the_warm_up_stands(tmp_path, scans, monkeypatch):
    honest = losses.vae_loss

    def exploding(network, batch, device, sigma, adversarial=0.0):
        if not adversarial:
            return honest(network, batch, device, sigma)
        with torch.no_grad():
            network.decoder[-1].bias += 50.0
        return honest(network, batch, device, sigma)

    monkeypatch.setattr("thinslice.training.objectives.vae_loss", exploding)
    said = []
    out = tmp_path / "out"
    run(scans, out, steps=STEPS, keep_synthetic=True, report=said.append)
    assert any("introvae diverged" in line for line in said)
    card = json.loads((out / f"{NAME}.json").read_text())
    assert card["validation"]["introvae"]["diverged"]
    assert card["validation"]["introvae"]["went_back_to"] == 0
    made = nifti.read(out / "synthetic" / "synthetic-001.nii.gz").voxels
    coder = SliceVae((4, 8), 2)
    coder.load_state_dict(weights_in(out, "vae"))
    stack = stack_of(nifti.read(scans[0]))
    wanted = to_patient_space(synthesise(coder, stack, 2.0), stack).voxels
    np.testing.assert_allclose(made, wanted, atol=2)


@pytest.mark.usefixtures("_quick")
def test_it_can_start_from_a_model_at_gentler_rates(tmp_path, scans):
    torch.manual_seed(3)
    network = small_recipe()[-1].network.build()
    envelope = {"factor": (1.4, 10.5), "thickness_over_spacing": (0.55, 1.35), "profiles": ["gaussian", "box"]}
    export(network, {"name": "start", "envelope": envelope}, tmp_path / "start.onnx")
    out = tmp_path / "out"
    run(scans, out, start_from=tmp_path / "start.onnx", steps=STEPS, report=quietly)
    card = json.loads((out / f"{NAME}.json").read_text())
    assert card["started_from"]["sha256"] == json.loads((tmp_path / "start.json").read_text())["sha256"]
    assert card["envelope"]["factor"] == [1.4, 10.5]
    moved, start = weights_in(out), network.state_dict()
    change = max((moved[name] - start[name]).abs().max().item() for name in start)
    assert 0 < change < 4 * 0.5e-3 * 1.5  # so many steps of half the rate, each of about the rate
    schedule = torch.load(out / "network" / "checkpoint.pt", weights_only=True)["schedule"]
    assert schedule["rate"] == pytest.approx(0.5e-3)


@catches(
    "training/recipes/no_ground_truth.py",
    "Inputs(scans=learnt, validation=validation)",
    "Inputs(scans=stacks, validation=validation)",
)
@catches("training/sources.py", "        return inputs.scans\n", "        return inputs.validation\n")
@pytest.mark.usefixtures("_quick")
def test_who_is_looked_at_teaches_neither_the_auto_encoder_nor_the_network(tmp_path, scans, monkeypatch):
    monkeypatch.setattr(no_ground_truth, "LEAST_PERSONS", 2)
    monkeypatch.setattr(no_ground_truth, "HELD_OUT", 0.5)
    seen, honest = {}, SliceObjective.batches

    def listening(objective, stacks, seed, network):
        seen.setdefault(seed, set()).update(stack.name for stack in stacks)
        return honest(objective, stacks, seed, network)

    monkeypatch.setattr(SliceObjective, "batches", listening)
    run(scans, tmp_path / "out", steps=STEPS, keep_synthetic=True, report=quietly)
    card = json.loads((tmp_path / "out" / f"{NAME}.json").read_text())
    learnt = {Path(row["file"]).name for row in card["data"] if row["learnt_from"]}
    assert len(learnt) == 1
    assert seen == {0: learnt, 1: {path.name for path in scans} - learnt}  # lessons have seed 0, looks 1
    assert len(list((tmp_path / "out" / "synthetic").iterdir())) == 1


@pytest.mark.usefixtures("_quick")
def test_scans_that_look_unlike_each_other_are_named(tmp_path):
    paths = []
    for kind in ("disc", "bar"):
        stack = shape_scan(kind)
        paths.append(tmp_path / f"{kind}.nii.gz")
        nifti.write(to_patient_space(stack.slices, stack), paths[-1])
    said = []
    run(paths, tmp_path / "out", steps=3, report=said.append)
    (note,) = [line for line in said if line.startswith("note:")]
    assert "disc.nii.gz" in note
    assert "bar.nii.gz" in note


def test_isotropic_scans_are_named_and_nothing_is_begun(tmp_path):
    thin = tmp_path / "thin.nii.gz"
    nifti.write(Volume(np.random.default_rng(0).integers(0, 99, (50, 50, 50)).astype(np.int16), np.eye(4)), thin)
    lines = []
    with pytest.raises(InputRefused, match="got no scan"):
        run([thin], tmp_path / "out", complain=lines.append, report=quietly)
    assert len(lines) == 1
    assert "thin.nii.gz: left out" in lines[0]
    assert not (tmp_path / "out").exists()


# ---- the command line


@pytest.mark.usefixtures("_quick")
def test_the_command_line_trains_a_model_of_thick_scans(run, tmp_path, scans):
    out = tmp_path / "out"
    code, said, _ = run("train", NAME, "--target", scans[0].parent, "-o", out, "--steps", 3)
    assert code == 0
    assert said[-1] == f"use it: thinslice enhance --model {out / f'{NAME}.onnx'} -i IN -o OUT"
    code, _, _ = run("enhance", "--model", out / f"{NAME}.onnx", "-i", scans[0], "-o", tmp_path / "thin.nii.gz", "-q")
    assert code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((NAME,), "got no --target"),
        ((NAME, "--target", "T", "--data", "D"), "got --data for no-ground-truth"),
        ((NAME, "--target", "T", "--add-source", "x"), "got --add-source for no-ground-truth"),
        (("default",), "got no --data"),
        (("default", "--data", "D", "--target", "T"), "got --target for default"),
        (("default", "--data", "D", "--keep-synthetic"), "got --keep-synthetic for default"),
        (("default", "--data", "D", "--factor", "4"), "got --factor for default"),
        ((NAME, "--target", "nothing-there"), "nothing-there: left out"),
        (("no-such", "--data", "D"), "got recipe 'no-such'"),
    ],
)
def test_options_of_another_recipe_are_refused(run, tmp_path, words, said):
    code, out, err = run("train", *words, "-o", tmp_path / "out")
    assert code == 2
    assert said in err[0]
    assert out == []
    assert not (tmp_path / "out").exists()


def test_the_command_line_names_every_recipe():
    from thinslice.cli import training
    from thinslice.training.recipes import load_recipe, recipe_names

    assert {*training._recipes(), "adapt"} == set(recipe_names())
    assert NAME in training._recipes()
    for name in recipe_names():
        assert load_recipe(name).stages()[-1].model
