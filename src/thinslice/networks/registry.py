"""Every network that can be trained, by its name.

To add a network, write its module (see `thinslice.networks.contract`) and add a row to `NETWORKS`. Any recipe can then
train it: a stage names it by an `Architecture`.
"""

from dataclasses import dataclass, field
from typing import Any

from thinslice.networks.contract import Network
from thinslice.networks.planes import PlaneNet
from thinslice.networks.slab import SlabNet
from thinslice.networks.vae import SliceVae

NETWORKS: dict[str, type[Network]] = {
    "slab": SlabNet,
    "planes": PlaneNet,
    "slice-vae": SliceVae,
}
"""Name -> class; its settings are the keyword arguments of the class."""


@dataclass(frozen=True)
class Architecture:
    """Which network is trained, and how it is built.

    Attributes:
        name: one of `NETWORKS`.
        settings: keyword arguments of its class.
        draws: how often fresh weights are drawn from the same seed; the last ones count. More than 1 only where earlier
            versions did so, so that equal seeds still give equal weights.

    Example:
        >>> Architecture("planes", {"scale": (2, 2)}).build().scale
        (2, 2)
    """

    name: str = "slab"
    settings: dict[str, Any] = field(default_factory=dict)
    draws: int = 1

    def build(self) -> Network:
        """Returns the network with fresh weights, drawn from torch's global generator."""
        for _ in range(self.draws - 1):
            NETWORKS[self.name](**self.settings)
        return NETWORKS[self.name](**self.settings)
