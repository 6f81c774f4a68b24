"""SlabNet: one trunk pass per acquired slice, then any thin slice up to the next acquired one.

The trunk sees a thick slice and its neighbours as channels of 2-D in-plane convolutions. The read-out is one
convolution whose kernel is predicted from the position about the slice and from the acquisition geometry, so one set
of weights serves every factor, thickness and grid (the idea of Meta-SR, Hu et al., CVPR 2019, sec. 3, applied to the
slice axis). A thin slice is the sum of what the two acquired slices around it say; each one's say fades to nothing at
the other, so the answer runs on smoothly from slab to slab.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thinslice.networks.contract import SlabNetwork

CONTEXT = 3
"""Acquired slices that the network sees on each side of the one in the middle: those of the embedded weights."""


class Block(nn.Module):
    """x + conv(relu(conv(x))): the residual block of EDSR, without normalisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.kaiming_normal_(self.first.weight, nonlinearity="relu")
        # A tenth of what keeps the variance: without normalisation many blocks would add up to far more than went in.
        nn.init.normal_(self.second.weight, std=0.1 * (2.0 / (9 * width)) ** 0.5)
        assert self.second.bias is not None
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the same shape, [n, width, h, w]."""
        return x + self.second(F.relu(self.first(x)))


class _ComputedKernel(torch.autograd.Function):
    """A 3x3 convolution whose kernel is an input: ONNX has it, torch's exporter does not know of it."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(features, weight, bias, padding=1)

    @staticmethod
    def symbolic(g: Any, features: Any, weight: Any, bias: Any) -> Any:
        return g.op("Conv", features, weight, bias, kernel_shape_i=[3, 3], pads_i=[1, 1, 1, 1])


class SlabNet(SlabNetwork):
    """Residual over cubic interpolation, in normalised intensities.

    Args:
        context: acquired slices seen on each side of the one in the middle.
        width: channels at full in-plane resolution.
        before, after: residual blocks at full resolution, before and after the deep level.
        deep_width, deep: channels and blocks at half resolution, which see twice as far for a quarter of the cost.
    """

    # The deep level halves a slice once.
    multiple = 2

    def __init__(
        self,
        context: int = CONTEXT,
        width: int = 48,
        before: int = 2,
        deep_width: int = 64,
        deep: int = 5,
        after: int = 2,
    ) -> None:
        super().__init__()
        self.settings = {
            "context": context,
            "width": width,
            "before": before,
            "deep_width": deep_width,
            "deep": deep,
            "after": after,
        }
        self.context = context
        self.width = width
        # Entry and read-out see one pixel farther each, a block two, at half resolution four, and the way down and up
        # two; rounded up to whole eights.
        self.reach = -(-(2 + 2 * (before + after) + 2 * (2 * deep + 1)) // 8) * 8
        self.entry = nn.Conv2d(2 * context + 1, width, 3, padding=1)
        self.acquisition = nn.Sequential(nn.Linear(self.n_geometry, 32), nn.ReLU(), nn.Linear(32, width))
        self.before = nn.Sequential(*[Block(width) for _ in range(before)])
        self.down = nn.Conv2d(width, deep_width, 2, stride=2)
        self.deep = nn.Sequential(*[Block(deep_width) for _ in range(deep)])
        self.up = nn.ConvTranspose2d(deep_width, width, 2, stride=2)
        self.after = nn.Sequential(*[Block(width) for _ in range(after)])
        self.kernel = nn.Sequential(
            nn.Linear(self.n_geometry + self.n_position, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()
        )
        self.to_kernel = nn.Linear(64, width * 9 + 1)
        # Small: the untrained shares are near nothing, and the answer begins as cubic interpolation.
        nn.init.normal_(self.to_kernel.weight, std=0.2 * (1.0 / (64 * 9 * width)) ** 0.5)
        nn.init.zeros_(self.to_kernel.bias)

    def grown(self, known: set[str]) -> dict[str, np.ndarray]:
        """Returns the blocks at the deep level that a file does not have: they add nothing at first."""
        new = {i: block for i, block in enumerate(self.deep) if f"deep.{i}.first.weight" not in known}
        return {
            f"deep.{i}.{name}": (torch.zeros_like(weight) if name.startswith("second") else weight).numpy()
            for i, block in new.items()
            for name, weight in block.state_dict().items()
        }

    def trunk(self, slices: Tensor, geometry: Tensor) -> Tensor:
        """Returns features [n, width, h, w] of slices [n, 2 * context + 1, h, w]."""
        x = F.relu(self.entry(slices) + self.acquisition(geometry.unsqueeze(0)).reshape(1, -1, 1, 1))
        x = self.before(x)
        x = x + self.up(self.deep(F.relu(self.down(x))))
        return self.after(x)

    def read_out(self, features: Tensor, geometry: Tensor, position: Tensor) -> Tensor:
        """Returns this slice's share of the answer [n, p, h, w], of features and positions [p, 7]."""
        n_position = position.shape[0]
        share = torch.cos(0.25 * torch.pi * position[:, :1]) ** 2  # of offset 0 is 1, of 0.5 a half, of 1 nothing
        code = torch.cat([geometry.unsqueeze(0).expand(n_position, self.n_geometry), position], dim=1)
        kernel = share * self.to_kernel(self.kernel(code))
        weight = kernel[:, :-1].reshape(-1, self.width, 3, 3)
        bias = kernel[:, -1]
        if torch.onnx.is_in_onnx_export():
            return _ComputedKernel.apply(features, weight, bias)
        return F.conv2d(features, weight, bias, padding=1)
