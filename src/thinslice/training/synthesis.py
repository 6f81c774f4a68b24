"""Thin volumes that nobody acquired: an auto-encoder's codes of neighbouring slices, interpolated and decoded.

Stage 1 of Xuan et al. (Pattern Recognition 2021, arXiv 2003.12627). They are realistic, but between the slices the
anatomy is invented; so they must never be paired with the scan they come from. Here nothing can: what is learnt from is
a `TrainingVolume`, which is made thick again by `thinslice.training.batches.render`, and the scan is not in it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from thinslice.networks.vae import SliceVae
from thinslice.physics.interpolation import cubic_matrix, linear_matrix
from thinslice.settings import Profile
from thinslice.training.batches import THICK_SCAN_RANGES, Batch, draw_patch, geometry_near, render
from thinslice.training.losses import has_bf16
from thinslice.training.slices import Stack
from thinslice.training.usable_scans import LEAST_SIDE
from thinslice.training.volumes import TrainingVolume
from thinslice.volume import Volume, refine_affine

AT_ONCE = 4
"""Slices that are encoded or decoded together."""


VOXELS = 300_000_000
"""Of all synthesised volumes together, two bytes each."""


def slices_per_acquired_slice(factor: float) -> float:
    """Returns how many slices are synthesised for every acquired one.

    Fewer than the factor: between two of as many, hardly anything would change, unlike from one thin slice to the next,
    and a network would learn that little lies between acquired slices (LOG.md).
    """
    return max(factor / 2, 1.5)


def synthetic_slice_positions(n_thick: int, rate: float) -> np.ndarray:
    """Returns where a synthesised volume has slices, in spacings of the acquired ones; the outer edges are kept."""
    count = round(n_thick * rate)
    return (np.arange(count) + 0.5) * (n_thick / count) - 0.5


def synthesise(vae: SliceVae, stack: Stack, rate: float, detail: bool = True) -> np.ndarray:
    """Returns a volume [slices, h, w] float16 made of the slices of a stack, whose pixels are the scan's own.

    Codes are interpolated on straight lines, beyond the outermost acquired slices held, and decoded. Unlike in the
    paper, what the codes of the acquired slices do not hold is added, interpolated by a cubic spline (why: LOG.md).

    Args:
        vae: trained.
        stack: whose slices are encoded.
        rate: slices for every acquired one.
        detail: False for the decoder's answer alone.
    """
    n = len(stack.slices)
    place = synthetic_slice_positions(n, rate)
    volume = _decoded(vae, stack.slices, linear_matrix(place, n))
    if not detail:
        return volume
    # By the same decoder at the acquired slices: what is missing there is what their codes do not hold.
    lost = stack.slices.astype(np.float32) - _decoded(vae, stack.slices, np.eye(n))
    for index, weights in enumerate(cubic_matrix(place, n).astype(np.float32)):
        volume[index] += np.tensordot(weights, lost, axes=1).astype(np.float16)
    return volume


def _decoded(vae: SliceVae, slices: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns slices [n, h, w] float16 of interpolated codes; ``weights`` [slices, acquired] says how much of which."""
    _, height, width = slices.shape
    missing = [(0, -side % vae.multiple) for side in (height, width)]
    # Behind the last lines and columns only, so that what is cut off again begins at the first pixel.
    padded = np.pad(slices, [(0, 0), *missing], mode="edge")
    device = next(vae.parameters()).device
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=has_bf16(device)):
        codes = torch.cat([vae.encode(part)[0] for part in _parts(padded, device)])
        between = torch.einsum("ta,achw->tchw", torch.from_numpy(weights).to(codes), codes)
        made = np.empty((len(between), height, width), np.float16)
        for start in range(0, len(between), AT_ONCE):
            part = vae.decode(between[start : start + AT_ONCE].contiguous(memory_format=torch.channels_last))
            made[start : start + AT_ONCE] = part[:, 0, :height, :width].float().cpu().numpy()
    return made


def _parts(slices: np.ndarray, device: torch.device) -> Iterator[torch.Tensor]:
    for start in range(0, len(slices), AT_ONCE):
        part = torch.from_numpy(slices[start : start + AT_ONCE, None].astype(np.float32))
        yield part.to(device).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Synthetic:
    """A synthesised volume to learn from, and how such a volume is made thick.

    Attributes:
        thin: [slices, h, w], of which the first axis becomes thick.
        factor, thickness_over_spacing, profile: of the scans that shall be made thin.
        corner: line and column of the acquired slices at which it begins.
    """

    thin: TrainingVolume
    factor: float
    thickness_over_spacing: float
    profile: Profile
    corner: tuple[int, int] = (0, 0)


def make_synthetic(vae: SliceVae, stack: Stack, voxels: int = VOXELS) -> Synthetic:
    """Returns what is learnt from in place of a thin scan: about ``voxels`` at most; of large slices a part."""
    rate = slices_per_acquired_slice(stack.plan.factor)
    side = max(LEAST_SIDE, int((voxels / (len(stack.slices) * rate)) ** 0.5))
    # By the scan's fingerprint: a run that goes on, or one with more scans, cuts the same part.
    rng = np.random.default_rng(int(stack.fingerprint[:8] or "0", 16))
    top, left = (int(rng.integers(0, max(n - side, 0) + 1)) for n in stack.slices.shape[1:])
    part = replace(stack, slices=stack.slices[:, top : top + side, left : left + side])
    volume, plan = synthesise(vae, part, rate), stack.plan
    thin = TrainingVolume(f"made of {stack.name}", volume, (0,), volume.size**0.5)
    return Synthetic(thin, plan.factor, plan.thickness_over_spacing, plan.profile, (top, left))


def synthetic_batch_at(
    step: int, seed: int, volumes: Sequence[Synthetic], patches: int, size: int, slabs: int, context: int
) -> Batch:
    """Returns patches of one synthesised volume, thick in an acquisition near that of the scans."""
    rng = np.random.default_rng([seed, step])
    weights = np.array([volume.thin.weight for volume in volumes])
    one = volumes[int(rng.choice(len(volumes), p=weights / weights.sum()))]
    geometry = geometry_near(rng, one.factor, one.thickness_over_spacing, one.profile, slabs, context)
    draws = [draw_patch(rng, [one.thin], THICK_SCAN_RANGES, geometry, size) for _ in range(patches)]
    return render([one.thin], geometry, draws, size, context)


def to_patient_space(slices: np.ndarray, stack: Stack, corner: tuple[int, int] = (0, 0)) -> Volume:
    """Returns slices [n, h, w] over the field of view of a stack as a volume in patient space, 0 .. 1000.

    Their first pixel lies at ``corner``, line and column of the acquired slices.
    What is synthesised so is for looking at alone: the anatomy between the acquired slices is invented.
    """
    axis, finer, first = stack.plan.axis, [1.0] * 3, [0.0] * 3
    finer[axis] = len(slices) / len(stack.slices)
    first[axis] = (finer[axis] - 1) / 2
    for inside, begin in zip([a for a in range(3) if a != axis], corner, strict=True):
        first[inside] = -begin
    grey = np.rint(1000 * slices.astype(np.float32)).astype(np.int16)
    return Volume(np.moveaxis(grey, 0, axis), refine_affine(stack.affine, finer, first))
