"""SliceVae: a variational auto-encoder of single slices (Xuan et al., Pattern Recognition 2021, arXiv 2003.12627).

As in the first author's code: residual blocks, LeakyReLU(0.2), no normalisation, average pooling down, nearest
neighbours up, 5x5 at both ends, linear output. Unlike theirs, which squeezes a whole slice of 128x128 pixels into one
vector of 256 numbers, the code is a map of vectors, one for every ``multiple`` x ``multiple`` pixels: slices of any
size go in and out as they are, and nothing has to be resampled to a grid and back. What was tried: LOG.md.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thinslice.networks.contract import Network

SLOPE = 0.2
"""Slope of LeakyReLU for negative numbers, as in the first author's code."""

LOWEST = -12.0
"""Lower limit of the logarithm of a variance: below it all codes are exact, and the divergence runs over."""

HIGHEST = 6.0
"""Upper limit of the logarithm of a variance: above it nothing is left of a code, and its exponential runs over."""


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, which is a 1x1 convolution where the channels change."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out, 3, padding=1)
        self.second = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Returns [n, out, h, w] of [n, channels, h, w]."""
        inner = self.second(F.leaky_relu(self.first(x), SLOPE))
        return F.leaky_relu(self.shortcut(x) + inner, SLOPE)


class SliceVae(Network):
    """Slices [n, 1, h, w] <-> codes [n, latent, h / multiple, w / multiple]; h and w are multiples of ``multiple``.

    Args:
        widths: channels of the levels, each at half the resolution of the one before.
        latent: length of the vector that stands for ``multiple`` x ``multiple`` pixels.

    Attributes:
        multiple: 2 for every level.
    """

    def __init__(self, widths: Sequence[int] = (16, 32, 64), latent: int = 16) -> None:
        super().__init__()
        self.settings = {"widths": tuple(widths), "latent": latent}
        self.multiple = 2 ** len(widths)
        before = (widths[0], *widths[:-1])
        down: list[nn.Module] = [nn.Conv2d(1, widths[0], 5, padding=2), nn.LeakyReLU(SLOPE)]
        for channels, out in zip(before, widths, strict=True):
            down += [ResidualBlock(channels, out), nn.AvgPool2d(2)]
        self.encoder = nn.Sequential(*down, nn.Conv2d(widths[-1], 2 * latent, 1))
        up: list[nn.Module] = [nn.Conv2d(latent, widths[-1], 1), nn.LeakyReLU(SLOPE)]
        for channels, out in zip((widths[-1], *widths[:0:-1]), widths[::-1], strict=True):
            up += [ResidualBlock(channels, out), nn.Upsample(scale_factor=2)]
        up += [ResidualBlock(widths[0], widths[0]), nn.Conv2d(widths[0], 1, 5, padding=2)]
        self.decoder = nn.Sequential(*up)

    def encode(self, slices: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the means and the logarithms of the variances of the codes of some slices."""
        return mean_and_log_variance(self.encoder(slices))

    def decode(self, codes: Tensor) -> Tensor:
        """Returns the slices that codes stand for."""
        return self.decoder(codes)

    def forward(self, slices: Tensor) -> Tensor:
        """Returns what is left of slices that were squeezed into their codes."""
        return self.decode(self.encode(slices)[0])


def mean_and_log_variance(encoded: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the two halves of what an encoder answers."""
    # In float32, under autocast too: bf16 has too few digits for the exponential that follows.
    mean, log_variance = encoded.float().chunk(2, dim=1)
    return mean, log_variance.clamp(LOWEST, HIGHEST)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Returns the Kullback-Leibler divergence of codes from a standard normal distribution, nats per number, [n]."""
    each = -0.5 * (1 + log_variance - mean.square() - log_variance.exp())
    return each.mean(dim=(1, 2, 3))


def sample_codes(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """Returns codes drawn from their distributions, by noise of their shape."""
    return mean + noise * torch.exp(0.5 * log_variance)
