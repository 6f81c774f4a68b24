"""What each kind of network is trained to make small."""

from copy import deepcopy

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from thinslice.models.conditioning import geometry_of, position_code
from thinslice.networks.contract import SlabNetwork
from thinslice.networks.planes import PlaneNet
from thinslice.networks.vae import SliceVae, kl_divergence, mean_and_log_variance, sample_codes
from thinslice.training.batches import Batch, Geometry
from thinslice.training.plane_batches import PlaneBatch
from thinslice.training.slices import SliceBatch

MARGIN = 1.5
"""How unlikely the codes of made slices shall be, relative to those of the slices themselves. The first author's code
has a constant, 110 nats for 256 numbers, which depends on how exactly slices are made again."""

UNPROJECTED = 0.2
"""Share of the error before the projection in `projected_loss`."""


def projected_loss(
    network: SlabNetwork, batch: Batch, device: torch.device, unprojected: float = UNPROJECTED
) -> Tensor:
    """Returns the root mean square error of patches after the projection onto the acquired slices, mean over them.

    What the projection repairs need not be learnt. A share of the error before it is added, which keeps the bare
    answer consistent by itself, so that its disagreement with the acquired slices can serve as a warning
    (`thinslice.compute.guard`). The root gives every patch the same say, bright or dim, near slices or far ones.
    """
    arrays = (batch.thick, batch.cubic, batch.truth, batch.matrix, batch.correction)
    thick, cubic, truth, matrix, correction = (torch.as_tensor(a).to(device, non_blocking=True) for a in arrays)
    error = cubic + residual_of(network, batch.geometry, thick) - truth
    # The projection is linear, and leaves the truth where it is but for what the slices have that is not explained by
    # it: so the error can be projected itself.
    seen = torch.einsum("sp,bphw->bshw", matrix, error)
    if batch.unexplained is not None:
        seen = seen - torch.as_tensor(batch.unexplained).to(device, non_blocking=True)
    projected = error - torch.einsum("ps,bshw->bphw", correction, seen)
    return _patch_rms(projected) + unprojected * _patch_rms(error)


def intermediate_loss(network: PlaneNet, batch: PlaneBatch, device: torch.device, intermediate: float = 1.0) -> Tensor:
    """Returns the mean absolute error of the answer plus that of the intermediate one (Georgescu et al., eq. 3)."""
    planes, base, truth = (
        torch.as_tensor(a).to(device, non_blocking=True) for a in (batch.planes, batch.base, batch.truth)
    )
    rows, columns = batch.inner()
    with torch.autocast(device.type, torch.bfloat16, enabled=has_bf16(device)):
        halfway, answer = network.answers(planes.contiguous(memory_format=torch.channels_last), base)
    # The difference in float32: bf16 has three digits, and the two are near each other.
    errors = [(image.float() - truth)[:, :, rows, columns].abs().mean() for image in (answer, halfway)]
    return errors[0] + intermediate * errors[1] if intermediate else errors[0]


def vae_loss(
    network: SliceVae, batch: SliceBatch, device: torch.device, sigma: float, adversarial: float = 0.0
) -> Tensor:
    """Returns the negative evidence bound of slices, nats per pixel; with ``adversarial`` the loss of an IntroVAE.

    The encoder of an IntroVAE (Huang et al., NeurIPS 2018, sec. 3.2; Xuan et al. 2021 train one) is its own
    discriminator: it learns to give slices that the decoder made codes that are unlikely, up to a margin, the decoder
    to make slices whose codes are likely. Both are learnt at once here: for the encoder's share such slices count as
    given, for the decoder's the encoder does.

    Args:
        network: the auto-encoder.
        batch: patches of slices, and the seed of the codes that are drawn.
        device: where to compute.
        sigma: standard deviation of the noise, of the intensity range: how exactly slices must be made again.
        adversarial: weight of the adversarial terms (a in the paper's code, 0.25 there).
    """
    slices = torch.as_tensor(batch.slices).to(device, non_blocking=True)
    noise = torch.Generator(device).manual_seed(batch.seed)
    per_pixel = network.settings["latent"] / network.multiple**2
    with torch.autocast(device.type, torch.bfloat16, enabled=has_bf16(device)):
        mean, log_variance = network.encode(slices.contiguous(memory_format=torch.channels_last))
        code = sample_codes(mean, log_variance, torch.randn(mean.shape, generator=noise, device=device))
        again = network.decode(code).float()
        real = kl_divergence(mean, log_variance)
        loss = 0.5 * ((again - slices) / sigma).square().mean() + per_pixel * real.mean()
        if not adversarial:
            return loss
        invented = network.decode(torch.randn(mean.shape, generator=noise, device=device))
        of_codes = network.decode(code.detach())
        margin = MARGIN * real.detach()
        seen = [kl_divergence(*network.encode(made.detach())) for made in (again, invented)]
        # The same weights, but given; not swapped in the network itself, which other threads may be computing with.
        judge = deepcopy(network.encoder, {id(weight): weight.detach() for weight in network.encoder.parameters()})
        judged = [kl_divergence(*mean_and_log_variance(judge(made))) for made in (of_codes, invented)]
    caught = sum(F.relu(margin - each).mean() for each in seen)
    passed = sum(each.mean() for each in judged)
    return loss + adversarial * per_pixel * (caught + passed)


def residual_of(network: SlabNetwork, geometry: Geometry, thick: Tensor) -> Tensor:
    """Returns the network's answer for a block: thick [b, slabs + 2 + 2 context, h, w] -> [b, thin, h, w], float32.

    The first and the last slab are there for what they say of their neighbours' thin slices.
    """
    context = network.context
    slabs = thick.shape[1] - 2 * context
    around = thick.unfold(1, 2 * context + 1, 1).permute(0, 1, 4, 2, 3)
    stack = around.reshape(-1, *around.shape[2:]).contiguous(memory_format=torch.channels_last)
    about = torch.from_numpy(geometry_of(geometry.factor, *geometry.assumed))
    about = about.to(thick.device)
    positions = np.concatenate(geometry.thin_positions)
    answer = thick.new_zeros(thick.shape[0], len(positions), *thick.shape[2:])
    with torch.autocast(thick.device.type, torch.bfloat16, enabled=has_bf16(thick.device)):
        features = network.trunk(stack, about)
        features = features.reshape(thick.shape[0], slabs, *features.shape[1:])
        for slab in range(slabs):
            offset = (positions - geometry.thick_centres[context + slab]) / geometry.factor
            near = np.flatnonzero(np.abs(offset) < 1)
            if len(near):
                code = torch.from_numpy(position_code(offset[near])).to(thick.device)
                share = network.read_out(features[:, slab], about, code).float()
                answer = answer.index_add(1, torch.from_numpy(near).to(thick.device), share)
    return answer


def has_bf16(device: torch.device) -> bool:
    """Says whether bf16 is computed in hardware; elsewhere it would be slower than fp32."""
    if device.type == "cuda":
        return True
    # Some versions of torch do not say: then it is fp32, which is never wrong, only slow.
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _patch_rms(error: Tensor) -> Tensor:
    # A root has no slope at zero: the gradient of a flat patch that is met exactly would be no number.
    return (error.square().mean(dim=(1, 2, 3)) + 1e-6).sqrt().mean()
