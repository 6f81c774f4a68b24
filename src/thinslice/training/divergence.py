"""Adversarial training can diverge: what notices it, and keeps the last weights that were good."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from thinslice.errors import InputRefused
from thinslice.io.atomic import whole_or_not
from thinslice.networks.vae import SliceVae
from thinslice.training.fit import save_whole
from thinslice.training.losses import has_bf16
from thinslice.training.slices import SliceBatch

WORSE = 1.5
"""An error that is worse than the best one by this factor, or no number, means that the training has diverged."""


class DivergenceCheck:
    """A ``watch`` of `thinslice.training.fit.fit`: looks at how well slices are made again, and ends what diverges.

    Attributes:
        diverged: whether the last look was no number, or worse than the best one by far; `last_good` has weights from
            before.
        looks: step and error (RMS, of the intensity range; None for no number) of every look, kept in
            ``folder/looks.json``.
    """

    def __init__(self, batches: Sequence[SliceBatch], folder: Path, report: Callable[[str], None] = print) -> None:
        self.batches, self.folder, self.report = batches, folder, report
        kept = folder / "looks.json"
        self.looks: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else []

    @property
    def diverged(self) -> bool:
        """See above."""
        if not self.looks:
            return False
        last = self.looks[-1]["error"]
        numbers = [error for look in self.looks if (error := look["error"]) is not None]
        return last is None or last > WORSE * min(numbers)

    def __call__(self, step: int, average: SliceVae) -> bool:
        """Take a look; True where nothing good is to be hoped for."""
        self.looks = [look for look in self.looks if look["step"] < step]  # after a resumption the last comes again
        error = self._error(average)
        self.looks.append({"step": step, "error": error if math.isfinite(error) else None})
        if self.diverged:
            self.report(f"  step {step}: slices are made again {error:.3g} away: this diverges")
        else:
            save_whole({"step": step, "weights": average.state_dict()}, self.folder / "good.pt")
            self.report(f"  step {step}: slices are made again {error:.4f} of the intensity range away (RMS)")
        with whole_or_not(self.folder / "looks.json") as temporary:
            temporary.write_text(json.dumps(self.looks) + "\n")
        return self.diverged

    def last_good(self) -> dict[str, Any]:
        """The step and the weights of the last look that was good.

        Raises:
            InputRefused: there never was one.
        """
        if not (self.folder / "good.pt").exists():
            raise InputRefused(
                f"{self.folder}: got slices that cannot be made again, not even badly; need scans whose voxels are "
                "intensities; next: look at the scans"
            )
        found: dict[str, Any] = torch.load(self.folder / "good.pt", map_location="cpu", weights_only=True)
        return found

    def _error(self, network: SliceVae) -> float:
        device = next(network.parameters()).device
        total, count = 0.0, 0
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=has_bf16(device)):
            for batch in self.batches:
                slices = torch.from_numpy(batch.slices).to(device)
                total += float((network(slices).float() - slices).square().sum())
                count += slices.numel()
        return math.sqrt(total / count)
