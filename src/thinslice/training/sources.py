"""Where the volumes of a stage come from: folders of sources, or the scans that shall be made thin."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from thinslice.errors import InputRefused
from thinslice.networks.contract import Network
from thinslice.networks.vae import SliceVae
from thinslice.training.clips import find_clips, holds_clips, load_clips
from thinslice.training.manifest import UNKNOWN, contrasts, provenance
from thinslice.training.self_supervision import TargetScan
from thinslice.training.slices import Stack
from thinslice.training.stages import Inputs, Stage
from thinslice.training.synthesis import VOXELS, Synthetic, make_synthetic
from thinslice.training.volumes import TrainingVolume, load_isotropic, load_thick

logger = logging.getLogger(__name__)

CT_SHARE = 0.6
"""Share of the slices of every CT scan, from the first on, that is learnt from. Scores come from the last third."""

Kind = Literal["isotropic", "clips", "thick"]
"""What a source folder holds."""

KINDS: dict[Kind, str] = {"isotropic": "near-isotropic volumes", "clips": "video clips", "thick": "thick scans"}
"""How a message calls each kind."""


@dataclass(frozen=True)
class Folders:
    """Source folders inside the data folder. How one is read follows from what it is.

    One named ``iso...`` holds near-isotropic volumes, of which any axis may become thick. One that holds clips and no
    NIfTI is read as clips, whose time becomes thick. Any other holds thick scans, of which the in-plane axes do. Of
    computed tomography (``ct``), which has no folder of its own to be scored on, the first slices are learnt from.

    Attributes:
        weights: name of a folder -> how often its volumes are drawn, relative to the others.
        balanced: whether contrasts (T1, FLAIR, ... by the manifest) are drawn by the root of how much there is of each:
            where most volumes are of one kind, a network forgets the others (LOG.md).
    """

    weights: dict[str, float]
    balanced: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """Returns none: no network makes these volumes."""
        return ()

    def volumes(self, inputs: Inputs, networks: Mapping[str, Network]) -> list[TrainingVolume]:
        """Returns the volumes of all folders.

        Raises:
            InputRefused: a folder is missing, or holds nothing that can be learnt from.
        """
        corpus: list[TrainingVolume] = []
        for name, weight in self.weights.items():
            folder = folder_of(inputs.data, name)
            kind = kind_of(folder)
            if kind == "isotropic":
                volumes = load_isotropic(folder)
            elif kind == "clips":
                volumes = load_clips(folder)
            else:
                volumes = load_thick(folder, CT_SHARE if name == "ct" else 1.0)
            logger.debug("%s is read as %s: %d volumes", folder, KINDS[kind], len(volumes))
            volumes = _balance(volumes, contrasts(folder)) if self.balanced else volumes
            corpus += [replace(volume, weight=volume.weight * weight) for volume in volumes]
        return corpus

    def describe(self, inputs: Inputs, volumes: Sequence[Any]) -> str:
        """Returns how many volumes there are, and how many clips are not learnt from."""
        left_out = self._left_out(inputs)
        more = f"; {len(left_out)} clips left out, whose licence is share-alike" if left_out else ""
        return f"{len(volumes)} volumes{more}"

    def attribution(self, inputs: Inputs) -> dict[str, list[Any]]:
        """Returns name, licence and source of all that is learnt from, and the clips left out for their licence."""
        rows = [row for name in self.weights for row in _attribution(folder_of(inputs.data, name))]
        left_out = self._left_out(inputs)
        return {"data": rows} | ({"left_out_as_share_alike": left_out} if left_out else {})

    def _left_out(self, inputs: Inputs) -> list[str]:
        folders = [folder_of(inputs.data, name) for name in self.weights]
        clips = [folder for folder in folders if kind_of(folder) == "clips"]
        return [f"{folder.name}/{path.name}" for folder in clips for path in find_clips(folder)[1]]


def _balance(volumes: Sequence[TrainingVolume], contrast: Mapping[str, str]) -> list[TrainingVolume]:
    """Returns the volumes with weights by which a contrast is drawn by the root of the sum of its volumes' weights."""
    kinds = [contrast.get(volume.name, "") for volume in volumes]
    sums = {kind: sum(v.weight for v, own in zip(volumes, kinds, strict=True) if own == kind) for kind in kinds}
    return [replace(v, weight=v.weight / sums[kind] ** 0.5) for v, kind in zip(volumes, kinds, strict=True)]


def folder_of(data: Path | None, name: str) -> Path:
    """Returns a source folder.

    Raises:
        InputRefused: it is not there.
    """
    if data is None or not (data / name).is_dir():
        raise InputRefused(
            got=f"`data={data}`, which has no folder {name}",
            need="it",
            next="check `data`",
            code="no-source-folder",
        )
    return data / name


def kind_of(folder: Path) -> Kind:
    """Returns what a source folder holds, by its name and by its files."""
    if folder.name.startswith("iso"):
        return "isotropic"
    return "clips" if holds_clips(folder) else "thick"


def with_source(name: str, stages: Sequence[Stage], data: Path) -> list[Stage]:
    """Returns the stages with one more source folder for those that learn from folders such as it.

    Raises:
        InputRefused: it is not there, or no stage learns from such folders.
    """
    kind = kind_of(folder_of(data, name))
    learnt = [stage.source.weights if isinstance(stage.source, Folders) else {} for stage in stages]
    fits = [any(kind_of(folder_of(data, source)) == kind for source in weights) for weights in learnt]
    if not any(fits):
        known = sorted({source for weights in learnt for source in weights})
        raise InputRefused(
            got=f"`add_source={name}`, a folder of {KINDS[kind]}",
            need=f"one such as {', '.join(known)}, which this recipe learns from",
            next="choose another recipe, or name a folder of near-isotropic volumes iso...",
            code="source-of-another-kind",
        )
    return [
        replace(stage, source=replace(stage.source, weights=stage.source.weights | {name: 1.0}))
        if fit and isinstance(stage.source, Folders)
        else stage
        for stage, fit in zip(stages, fits, strict=True)
    ]


def _attribution(folder: Path) -> list[dict[str, Any]]:
    """Returns a row for each file that is learnt from; of clips one row for all of one licence and source."""
    known = provenance(folder)
    if kind_of(folder) == "clips":
        together: dict[tuple[str, ...], list[str]] = {}
        for path in find_clips(folder)[0]:
            row = known.get(path.name, UNKNOWN)
            together.setdefault((row["licence"], row["source"]), []).append(f"{folder.name}/{path.name}")
        return [{"files": files, "licence": key[0], "source": key[1]} for key, files in together.items()]
    learnt = {"slices": f"first {CT_SHARE:.0%}"} if folder.name == "ct" else {}
    names = sorted(path.name for path in folder.glob("*.nii*"))
    return [{"file": f"{folder.name}/{name}", **known.get(name, UNKNOWN), **learnt} for name in names]


@dataclass(frozen=True)
class AcquiredSlices:
    """The slices of thick scans as they were acquired (`thinslice.training.slices.Stack`)."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Returns none: the slices are there."""
        return ()

    def volumes(self, inputs: Inputs, networks: Mapping[str, Network]) -> Sequence[Stack]:
        """Returns the stacks that are learnt from."""
        return inputs.scans

    def describe(self, inputs: Inputs, volumes: Sequence[Any]) -> str:
        """Returns how many slices there are to learn from, and how many persons' slices are only validated with."""
        persons = {stack.person for stack in inputs.validation} - {stack.person for stack in inputs.scans}
        apart = f"; the slices of {len(persons)} persons are validated with only" if persons else ""
        return f"{len(volumes)} scans, {sum(len(stack.slices) for stack in volumes)} slices to learn from{apart}"

    def attribution(self, inputs: Inputs) -> dict[str, list[Any]]:
        """Returns file, licence, source and fingerprint of every scan, and whether it is learnt from."""
        learnt = {stack.fingerprint for stack in inputs.scans}
        # Those that only judge are named as well: the weights that are kept were chosen by them.
        others = [stack for stack in inputs.validation if stack.fingerprint not in learnt]
        return {
            "data": [
                stack.origin | {"fingerprint": stack.fingerprint, "learnt_from": stack.fingerprint in learnt}
                for stack in [*inputs.scans, *others]
            ]
        }


@dataclass(frozen=True)
class SyntheticVolumes:
    """Volumes that an auto-encoder synthesises from the slices of thick scans (stage 1 of Xuan et al. 2021).

    Attributes:
        encoder: name of the stage whose network does so.
    """

    encoder: str

    @property
    def needs(self) -> tuple[str, ...]:
        """Returns the stage that trains the auto-encoder."""
        return (self.encoder,)

    def volumes(self, inputs: Inputs, networks: Mapping[str, Network]) -> list[Synthetic]:
        """Returns one volume for each scan that is learnt from, all of them together of `VOXELS` at most."""
        network = networks[self.encoder]
        assert isinstance(network, SliceVae)
        # The same room for each: one large scan must not leave none to the others.
        return [make_synthetic(network, stack, VOXELS // len(inputs.scans)) for stack in inputs.scans]

    def describe(self, inputs: Inputs, volumes: Sequence[Any]) -> str:
        """Returns how much was synthesised, and whether it shows the whole field of view."""
        pairs = zip(volumes, inputs.scans, strict=True)
        parts = sum(one.thin.voxels.shape[1:] != stack.slices.shape[1:] for one, stack in pairs)
        some = f"; {parts} of them show a part of the field of view, as there is no room for more" if parts else ""
        millions = sum(one.thin.voxels.size for one in volumes) / 1e6
        return f"synthesised {len(volumes)} volumes, {millions:.0f} million voxels{some}"

    def attribution(self, inputs: Inputs) -> dict[str, list[Any]]:
        """Returns nothing of its own: the slices that the volumes are made of are on the card already."""
        return {}


@dataclass(frozen=True)
class ScansThemselves:
    """Thick scans that teach themselves (stage 3 of Wang et al. 2024), see `thinslice.training.self_supervision`."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Returns none: thin slices of the scans are computed by the starting model, before any training."""
        return ()

    def volumes(self, inputs: Inputs, networks: Mapping[str, Network]) -> list[TargetScan]:
        """Returns what can be learnt from each scan."""
        return [target for _, target in inputs.scans]

    def describe(self, inputs: Inputs, volumes: Sequence[Any]) -> str:
        """Returns nothing: which scans are learnt from is known already."""
        return ""

    def attribution(self, inputs: Inputs) -> dict[str, list[Any]]:
        """Returns which scans the model is adapted to."""
        scans = [scan for scan, _ in inputs.scans]
        adapted_to = [
            {"file": scan.path.name, "fingerprint": scan.fingerprint, "factor": scan.plan.factor} for scan in scans
        ]
        return {"adapted_to": adapted_to}
