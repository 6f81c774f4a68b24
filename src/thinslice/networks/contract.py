"""What the training loop, the export and the engine expect of a network."""

from abc import abstractmethod
from typing import Any

import numpy as np
from torch import Tensor, nn


class Network(nn.Module):
    """Anything that can be trained, saved and built again.

    Attributes:
        settings: keyword arguments that build it again.
    """

    settings: dict[str, Any]

    def grown(self, known: set[str]) -> dict[str, np.ndarray]:
        """Returns the weights of what a network has more than an earlier one, silent at first.

        None by default: a file must then have them all.

        Args:
            known: names of the weights that the earlier one has.
        """
        return {}


class SlabNetwork(Network):
    """A trunk that is paid once per acquired slice, and a read-out per thin slice.

    Attributes:
        context: acquired slices seen on each side of the one in the middle.
        multiple: height and width must be multiples of this.
        reach: pixels that an answer may depend on, in every in-plane direction.
        n_geometry, n_position: lengths of the codes of `thinslice.models.conditioning`.
    """

    context: int
    multiple: int
    reach: int
    n_geometry: int = 3
    n_position: int = 7

    @abstractmethod
    def trunk(self, slices: Tensor, geometry: Tensor) -> Tensor:
        """Returns features [n, ...] of slices [n, 2 context + 1, h, w] and their acquisition [n_geometry]."""

    @abstractmethod
    def read_out(self, features: Tensor, geometry: Tensor, position: Tensor) -> Tensor:
        """Returns a slice's share of the residual over cubic [n, p, h, w]; positions are [p, n_position]."""

    def forward(self, slices: Tensor, geometry: Tensor, position: Tensor) -> Tensor:
        """Returns the middle slice's share of the thin slices up to its neighbours; those of two neighbours are added.

        Args:
            slices: [n, 2 context + 1, h, w], normalised intensities, h and w multiples of ``multiple``.
            geometry: [n_geometry], see `thinslice.models.conditioning.geometry_of`.
            position: [p, n_position], see `thinslice.models.conditioning.position_code`.

        Returns:
            [n, p, h, w], to be added to the cubic interpolation and to the neighbour's.
        """
        return self.read_out(self.trunk(slices, geometry), geometry, position)
