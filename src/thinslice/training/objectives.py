"""What can be learnt: which network, from which batches, with which loss. A stage of a recipe names one of these."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from thinslice.models.plane_networks import Part
from thinslice.networks.contract import Network
from thinslice.networks.planes import PlaneNet
from thinslice.networks.slab import CONTEXT, SlabNet
from thinslice.networks.vae import SliceVae
from thinslice.training.corpus import AcquisitionRanges, Batch, TrainingVolume, batch_at
from thinslice.training.losses import intermediate_loss, projected_loss, vae_loss
from thinslice.training.planes import PlaneBatch, Shrinking, plane_batch_at
from thinslice.training.slices import SliceBatch, Stack, slice_batch_at
from thinslice.training.synthesis import Synthetic, synthetic_batch_at

VALID_FACTOR = (1.5, 10.0)
VALID_THICKNESS = (0.6, 1.3)


class Objective(Protocol):
    """What every task can do."""

    def make_network(self) -> Network:
        """With fresh weights."""

    def batch_at(self, step: int, seed: int, corpus: Sequence[Any]) -> Any:
        """What is learnt from in one step: a function of the seed and the step alone."""

    def loss(self, network: Any, batch: Any, device: torch.device) -> Tensor:
        """What is made small."""

    @property
    def envelope(self) -> dict[str, Any]:
        """The inputs that the model is valid for."""


@dataclass(frozen=True)
class SlabObjective:
    """Learn what lies between acquired slices: `SlabNet`, `projected_loss`.

    Attributes:
        network: settings of `SlabNet`.
        ranges: what acquisitions are drawn from.
        patches, size, slabs: of a batch; in-plane pixels; thick slices whose thin content is predicted.
    """

    network: dict[str, Any] = field(default_factory=dict)
    ranges: AcquisitionRanges = field(default_factory=AcquisitionRanges)
    patches: int = 3
    size: int = 48
    slabs: int = 4

    def make_network(self) -> SlabNet:
        """With fresh weights."""
        return SlabNet(**self.network)

    def batch_at(self, step: int, seed: int, corpus: Sequence[TrainingVolume]) -> Batch:
        """What is learnt from in one step: the slabs, and what their neighbours see."""
        around = self.network.get("context", CONTEXT) + 1
        return batch_at(step, seed, corpus, self.ranges, self.patches, self.size, self.slabs, around)

    def loss(self, network: SlabNet, batch: Batch, device: torch.device) -> Tensor:
        """See `projected_loss`."""
        return projected_loss(network, batch, device)

    @property
    def envelope(self) -> dict[str, Any]:
        """The inputs that the model is valid for."""
        return {
            "factor": VALID_FACTOR,
            "thickness_over_spacing": VALID_THICKNESS,
            "profiles": ["gaussian", "box"],
        }


@dataclass(frozen=True)
class SyntheticSlabObjective:
    """Learn what lies between the slices of volumes that nobody acquired (stage 2 of Xuan et al. 2021).

    As `SlabObjective`, but every volume is made thick as the scans were that shall be made thin.
    """

    network: dict[str, Any] = field(default_factory=dict)
    patches: int = 3
    size: int = 48
    slabs: int = 4

    def make_network(self) -> SlabNet:
        """With fresh weights."""
        return SlabNet(**self.network)

    def batch_at(self, step: int, seed: int, corpus: Sequence[Synthetic]) -> Batch:
        """What is learnt from in one step."""
        around = self.network.get("context", CONTEXT) + 1
        return synthetic_batch_at(step, seed, corpus, self.patches, self.size, self.slabs, around)

    def loss(self, network: SlabNet, batch: Batch, device: torch.device) -> Tensor:
        """See `projected_loss`."""
        return projected_loss(network, batch, device)

    @property
    def envelope(self) -> dict[str, Any]:
        """Empty: it follows from the scans, see `thinslice.training.no_ground_truth`."""
        return {}


@dataclass(frozen=True)
class PlaneObjective:
    """Learn to enlarge planes by a whole factor: `PlaneNet`, `intermediate_loss` (Georgescu et al. 2020).

    Attributes:
        part: in-plane (both axes of a slice) or depth (planes through the slices, across them).
        shrinking: how the planes are made small, and the factor.
        network: settings of `PlaneNet` but for its scale.
        intermediate: weight of the loss on the intermediate answer; the paper's is 1.
        hounsfield: learnt from computed tomography, and valid for that alone.
        patches, lines, size: places drawn for a batch, neighbouring planes at each, scored pixels of the small planes.
        margin: pixels around those that are seen but not scored; beyond them lie zeros, which change a trained answer
            by 3e-5 of the intensity range at most (LOG.md).
    """

    part: Part
    shrinking: Shrinking = field(default_factory=Shrinking)
    network: dict[str, Any] = field(default_factory=dict)
    intermediate: float = 1.0
    hounsfield: bool = False
    patches: int = 4
    lines: int = 6
    size: int = 24
    margin: int = 6

    def make_network(self) -> PlaneNet:
        """With fresh weights."""
        factor = self.shrinking.factor
        return PlaneNet((factor, factor if self.part == "in-plane" else 1), **self.network)

    def batch_at(self, step: int, seed: int, corpus: Sequence[TrainingVolume]) -> PlaneBatch:
        """What is learnt from in one step."""
        return plane_batch_at(
            step, seed, corpus, self.part, self.shrinking, self.patches, self.lines, self.size, self.margin
        )

    def loss(self, network: PlaneNet, batch: PlaneBatch, device: torch.device) -> Tensor:
        """See `intermediate_loss`."""
        return intermediate_loss(network, batch, device, self.intermediate)

    @property
    def envelope(self) -> dict[str, Any]:
        """The inputs that the model is valid for."""
        return {
            "part": self.part,
            "factor": self.shrinking.factor,
            "thickness_over_spacing": self.shrinking.fwhm_over_factor,
            "profiles": ["gaussian", "box"],
            "hounsfield": self.hounsfield,
        }


@dataclass(frozen=True)
class SliceObjective:
    """Learn to make slices from short codes: `SliceVae`, `vae_loss` (stage 1 of Xuan et al. 2021).

    Attributes:
        network: settings of `SliceVae`.
        sigma: how exactly slices are made again, of the intensity range.
        adversarial: 0 for a plain auto-encoder, else the weight of what makes it introspective.
        patches, size: of a batch; pixels along their sides.
    """

    network: dict[str, Any] = field(default_factory=dict)
    sigma: float = 0.06
    adversarial: float = 0.0
    patches: int = 16
    size: int = 64

    def make_network(self) -> SliceVae:
        """With fresh weights."""
        return SliceVae(**self.network)

    def batch_at(self, step: int, seed: int, corpus: Sequence[Stack]) -> SliceBatch:
        """What is learnt from in one step."""
        return slice_batch_at(step, seed, corpus, self.patches, self.size)

    def loss(self, network: SliceVae, batch: SliceBatch, device: torch.device) -> Tensor:
        """See `vae_loss`."""
        return vae_loss(network, batch, device, self.sigma, self.adversarial)

    @property
    def envelope(self) -> dict[str, Any]:
        """Empty: no model file comes of it."""
        return {}
