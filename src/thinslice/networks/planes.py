"""PlaneNet: a small network that enlarges one 2-D plane by a whole factor, along both of its axes or along one.

The network of Georgescu, Ionescu and Verga, *CNNs with Intermediate Loss for 3D Super-Resolution of CT and MRI Scans*
(IEEE Access 2020, sec. III): six convolutions, a sub-pixel shuffle to one channel, which is already an answer and has a
loss of its own, and four convolutions more. Two of them make a scan larger: one enlarges the slices in-plane, the other
the planes that cut through the slices.

Unlike the paper's, the answers are not passed through a ReLU (air is -1000 Hounsfield units), and by default each of
the two is a correction of what it starts from: of cubic interpolation, and of the intermediate answer.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from thinslice.networks.contract import Network


class PlaneNet(Network):
    """Enlarges planes [h, w] to [scale[0] * h, scale[1] * w].

    Args:
        scale: (r, r) in-plane, (r, 1) for depth: the first axis of a plane then runs across the slices.
        width: channels before the shuffle.
        fine_width: channels after it.
        residual: correct the interpolation; otherwise, as in the paper, make the image anew.

    Attributes:
        reach: pixels of the small plane that an answer may depend on, along both axes.
    """

    def __init__(
        self, scale: tuple[int, int] = (2, 1), width: int = 32, fine_width: int = 32, residual: bool = True
    ) -> None:
        super().__init__()
        self.settings = {"scale": tuple(scale), "width": width, "fine_width": fine_width, "residual": residual}
        self.scale = (int(scale[0]), int(scale[1]))
        self.residual = residual
        # Six convolutions before the shuffle, and four after it, where a pixel is smaller by the scale.
        self.reach = tuple(6 + -(-4 // times) for times in self.scale)
        self.entry = _convolution(1, width)
        self.coarse = nn.ModuleList(_convolution(width, width) for _ in range(4))
        self.to_plane = _convolution(width, self.scale[0] * self.scale[1])
        self.fine_entry = _convolution(1, fine_width)
        self.fine = nn.ModuleList(_convolution(fine_width, fine_width) for _ in range(2))
        self.exit = _convolution(fine_width, 1)
        # A correction begins near nothing, so that the untrained network is nearly the interpolation.
        for last in (self.to_plane, self.exit) if residual else ():
            nn.init.normal_(last.weight, std=0.01)

    def forward(self, planes: Tensor, base: Tensor) -> Tensor:
        """Returns the final one of `answers`."""
        return self.answers(planes, base)[1]

    def answers(self, planes: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the intermediate and the final answer.

        Args:
            planes: [n, 1, h, w], normalised intensities.
            base: their interpolation [n, 1, scale[0] * h, scale[1] * w].

        Returns:
            Twice [n, 1, scale[0] * h, scale[1] * w].
        """
        first = F.relu(self.entry(planes))
        x = F.relu(self.coarse[1](F.relu(self.coarse[0](first)))) + first
        x = F.relu(self.coarse[3](F.relu(self.coarse[2](x)))) + first
        intermediate = self.shuffled(self.to_plane(x))
        if self.residual:
            intermediate = base + intermediate
        second = F.relu(self.fine_entry(intermediate))
        x = F.relu(self.fine[1](F.relu(self.fine[0](second)))) + second
        answer = self.exit(x)
        return intermediate, intermediate + answer if self.residual else answer

    def shuffled(self, x: Tensor) -> Tensor:
        """Shuffles [n, a * b, h, w] to [n, 1, a * h, b * w], sub-pixel (Shi et al. 2016), for unequal factors too."""
        a, b = self.scale
        n, _, h, w = x.shape
        return x.reshape(n, a, b, h, w).permute(0, 3, 1, 4, 2).reshape(n, 1, a * h, b * w)


def _convolution(channels: int, out: int) -> nn.Conv2d:
    convolution = nn.Conv2d(channels, out, 3, padding=1)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution
