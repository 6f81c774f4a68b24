"""What is learnt: how volumes become the batches of a training, and which loss of a network is made small.

A stage of a recipe names one of these, and the network apart from it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from thinslice.models.plane_networks import Part
from thinslice.networks.contract import SlabNetwork
from thinslice.networks.planes import PlaneNet
from thinslice.networks.vae import SliceVae
from thinslice.settings import PROFILES
from thinslice.training.batches import NEAR_FACTOR, NEAR_THICKNESS, AcquisitionRanges, Batch, batch_at
from thinslice.training.losses import intermediate_loss, projected_loss, vae_loss
from thinslice.training.plane_batches import PlaneBatch, Shrinking, plane_batch_at
from thinslice.training.self_supervision import TargetScan, self_supervised_batch_at
from thinslice.training.slices import SliceBatch, Stack, slice_batch_at
from thinslice.training.synthesis import Synthetic, synthetic_batch_at
from thinslice.training.volumes import TrainingVolume

VALID_FACTOR = (1.5, 10.0)
"""Factors that a model of `SlabObjective` is valid for: a little inside those that it learns from, where it is sure."""

VALID_THICKNESS = (0.4, 2.2)
"""Slice thickness, relative to the slice spacing, that it is valid for; likewise."""

Envelope = dict[str, Any]
"""The inputs that a model is valid for, as its card holds them (`thinslice.models.envelope.Envelope`)."""


class Objective(Protocol):
    """What every objective can do."""

    def batches(self, volumes: Sequence[Any], seed: int, network: Any) -> Callable[[int], Any]:
        """Returns a function from the number of a batch to the batch.

        A batch depends on the seed and its number alone, so that a training that goes on sees what an undisturbed one
        would have seen.

        Args:
            volumes: from the source of the stage.
            seed: of all that is drawn.
            network: that will learn from the batches; of it the shape alone is looked at.
        """

    def loss(self, network: Any, batch: Any, device: torch.device) -> Tensor:
        """Returns what is made small."""

    def envelope(self, volumes: Sequence[Any], start: Envelope | None) -> Envelope:
        """Returns the inputs that the model is valid for.

        Args:
            volumes: that it learnt from.
            start: the envelope of the model whose weights it began with; None for fresh ones.
        """


@dataclass(frozen=True)
class SlabObjective:
    """Learns what lies between acquired slices: for a `SlabNetwork`, by `projected_loss`.

    Attributes:
        ranges: what acquisitions are drawn from.
        patches: patches of a batch.
        size: pixels along the in-plane sides of a patch.
        slabs: thick slices of a patch whose thin content is predicted.
    """

    ranges: AcquisitionRanges = field(default_factory=AcquisitionRanges)
    patches: int = 3
    size: int = 48
    slabs: int = 4

    def batches(self, volumes: Sequence[TrainingVolume], seed: int, network: SlabNetwork) -> Callable[[int], Batch]:
        """Returns the slabs of a batch by its number, with the slices that their neighbours see."""
        # One slice more on each side: the slabs beyond the ends have shares in the thin slices too, see `residual_of`.
        around = network.context + 1
        return lambda number: batch_at(number, seed, volumes, self.ranges, self.patches, self.size, self.slabs, around)

    def loss(self, network: SlabNetwork, batch: Batch, device: torch.device) -> Tensor:
        """Returns `projected_loss`."""
        return projected_loss(network, batch, device)

    def envelope(self, volumes: Sequence[TrainingVolume], start: Envelope | None) -> Envelope:
        """Returns what the ranges cover."""
        low, high = self.ranges.thickness_over_spacing
        thickness = (max(low, VALID_THICKNESS[0]), min(high, VALID_THICKNESS[1]))
        profiles = [name for name in PROFILES if name in {"gaussian", *(name for name, _ in self.ranges.profiles)}]
        return {"factor": VALID_FACTOR, "thickness_over_spacing": thickness, "profiles": profiles}


@dataclass(frozen=True)
class SyntheticSlabObjective:
    """Learns what lies between the slices of volumes that nobody acquired (stage 2 of Xuan et al. 2021).

    As `SlabObjective`, but every volume is made thick as the scans were that shall be made thin.
    """

    patches: int = 3
    size: int = 48
    slabs: int = 4

    def batches(self, volumes: Sequence[Synthetic], seed: int, network: SlabNetwork) -> Callable[[int], Batch]:
        """Returns the slabs of one volume by the number of the batch."""
        around = network.context + 1
        return lambda number: synthetic_batch_at(number, seed, volumes, self.patches, self.size, self.slabs, around)

    def loss(self, network: SlabNetwork, batch: Batch, device: torch.device) -> Tensor:
        """Returns `projected_loss`."""
        return projected_loss(network, batch, device)

    def envelope(self, volumes: Sequence[Synthetic], start: Envelope | None) -> Envelope:
        """Returns acquisitions near those of the scans; what the start is valid for, where there is one."""
        if start is not None:
            return start
        # As far as the lessons departed from the scans' own acquisitions, and no farther.
        factors = [one.factor for one in volumes]
        ratios = [one.thickness_over_spacing for one in volumes]
        return {
            "factor": (min(factors) * (1 - NEAR_FACTOR), max(factors) * (1 + NEAR_FACTOR)),
            "thickness_over_spacing": (min(ratios) * (1 - NEAR_THICKNESS), max(ratios) * (1 + NEAR_THICKNESS)),
            "profiles": sorted({one.profile for one in volumes}),
        }


@dataclass(frozen=True)
class SelfSupervisedObjective:
    """Learns from thick scans alone: directions within their slices, and their slices made thicker (Wang et al. 2024).

    See `thinslice.training.self_supervision`. The attributes are those of `SlabObjective`.
    """

    patches: int = 3
    size: int = 48
    slabs: int = 4

    def batches(self, volumes: Sequence[TargetScan], seed: int, network: SlabNetwork) -> Callable[[int], Batch]:
        """Returns patches of one scan by the number of the batch."""
        around = network.context + 1
        return lambda number: self_supervised_batch_at(
            number, seed, volumes, self.patches, self.size, self.slabs, around
        )

    def loss(self, network: SlabNetwork, batch: Batch, device: torch.device) -> Tensor:
        """Returns `projected_loss`."""
        return projected_loss(network, batch, device)

    def envelope(self, volumes: Sequence[TargetScan], start: Envelope | None) -> Envelope:
        """Returns what the start is valid for: an adaptation is small."""
        return start or {}


@dataclass(frozen=True)
class PlaneObjective:
    """Learns to enlarge planes by a whole factor: for a `PlaneNet`, by `intermediate_loss` (Georgescu et al. 2020).

    Attributes:
        part: in-plane (both axes of a slice) or depth (planes through the slices, across them).
        shrinking: how the planes are made small, and the factor.
        intermediate: weight of the loss on the intermediate answer; the paper's is 1.
        hounsfield: learnt from computed tomography, and valid for that alone.
        patches: places drawn for a batch.
        lines: neighbouring planes at each.
        size: scored pixels along the sides of the small planes.
        margin: pixels around those that are seen but not scored; beyond them lie zeros, which change a trained answer
            by 3e-5 of the intensity range at most (LOG.md).
    """

    part: Part
    shrinking: Shrinking = field(default_factory=Shrinking)
    intermediate: float = 1.0
    hounsfield: bool = False
    patches: int = 4
    lines: int = 6
    size: int = 24
    margin: int = 6

    @property
    def scale(self) -> tuple[int, int]:
        """Returns how many times larger the network makes either axis of a plane."""
        factor = self.shrinking.factor
        return factor, factor if self.part == "in-plane" else 1

    def batches(self, volumes: Sequence[TrainingVolume], seed: int, network: PlaneNet) -> Callable[[int], PlaneBatch]:
        """Returns small planes and large ones by the number of the batch."""
        return lambda number: plane_batch_at(
            number, seed, volumes, self.part, self.shrinking, self.patches, self.lines, self.size, self.margin
        )

    def loss(self, network: PlaneNet, batch: PlaneBatch, device: torch.device) -> Tensor:
        """Returns `intermediate_loss`."""
        return intermediate_loss(network, batch, device, self.intermediate)

    def envelope(self, volumes: Sequence[TrainingVolume], start: Envelope | None) -> Envelope:
        """Returns the one factor, and the widths of the profiles."""
        return {
            "part": self.part,
            "factor": self.shrinking.factor,
            "thickness_over_spacing": self.shrinking.fwhm_over_factor,
            "profiles": ["gaussian", "box"],
            "hounsfield": self.hounsfield,
        }


@dataclass(frozen=True)
class SliceObjective:
    """Learns to make slices from short codes: for a `SliceVae`, by `vae_loss` (stage 1 of Xuan et al. 2021).

    Attributes:
        sigma: how exactly slices are made again, of the intensity range.
        adversarial: 0 for a plain auto-encoder, else the weight of what makes it introspective.
        patches: patches of a batch.
        size: pixels along their sides.
    """

    sigma: float = 0.06
    adversarial: float = 0.0
    patches: int = 16
    size: int = 64

    def batches(self, volumes: Sequence[Stack], seed: int, network: SliceVae) -> Callable[[int], SliceBatch]:
        """Returns patches of slices by the number of the batch."""
        return lambda number: slice_batch_at(number, seed, volumes, self.patches, self.size)

    def loss(self, network: SliceVae, batch: SliceBatch, device: torch.device) -> Tensor:
        """Returns `vae_loss`."""
        return vae_loss(network, batch, device, self.sigma, self.adversarial)

    def envelope(self, volumes: Sequence[Stack], start: Envelope | None) -> Envelope:
        """Returns nothing: no model file comes of it."""
        return {}
