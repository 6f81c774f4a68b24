"""What keeps a training from doing harm: the averaged weights are validated now and then, and the best are kept.

`DivergenceCheck` is for adversarial training, which can diverge; `HeldOutCheck` for an adaptation, which can make a
model worse than it was. Both keep what they found in ``validation.jsonl`` of the stage's folder.
"""

import json
import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic
from typing import Any, cast

import torch

from thinslice.errors import InputRefused
from thinslice.io.atomic import read_object, whole_or_not
from thinslice.networks.contract import Network, SlabNetwork
from thinslice.networks.vae import SliceVae
from thinslice.training.fit import Schedule, copy_of, save_whole
from thinslice.training.losses import has_bf16, projected_loss
from thinslice.training.objectives import SelfSupervisedObjective, SliceObjective
from thinslice.training.run_state import write_json
from thinslice.training.self_supervision import TargetScan, in_plane_batch_at, thicker_slices_batch_at
from thinslice.training.slices import SliceBatch
from thinslice.training.stages import Inputs, Report

logger = logging.getLogger(__name__)

RECORDS = "validation.jsonl"
"""One line for every validation of a stage, in its folder."""


def _read_records(folder: Path) -> list[dict[str, Any]]:
    file = folder / RECORDS
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _write_records(folder: Path, records: Sequence[dict[str, Any]]) -> None:
    with whole_or_not(folder / RECORDS) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records))


# ---- adversarial training


DIVERGED = 1.5
"""An error that is so many times the best one, or no number, means that the training has diverged."""

SLICE_BATCHES = 8
"""Batches, always the same, that show how well slices are made again."""


class DivergenceCheck:
    """Validates how well slices are made again, ends what diverges, and goes back to the last good weights.

    Attributes:
        records: step and error (RMS, of the intensity range; None for no number) of every validation.
    """

    def __init__(self, batches: Sequence[SliceBatch], folder: Path, report: Report) -> None:
        self.batches, self.folder, self.report = batches, folder, report
        self.records = _read_records(folder)
        self._went_back_to: int | None = None

    @classmethod
    def begin(
        cls, objective: SliceObjective, network: SliceVae, inputs: Inputs, folder: Path, report: Report
    ) -> "DivergenceCheck":
        """Returns a check by slices of the validation scans."""
        batch_at = objective.batches(inputs.validation, 1, network)
        return cls([batch_at(number) for number in range(SLICE_BATCHES)], folder, report)

    def fit_into(self, schedule: Schedule) -> Schedule:
        """Returns the schedule as it is: a validation takes little time."""
        return schedule

    @property
    def has_diverged(self) -> bool:
        """Returns whether the last error was no number, or worse than the best one by far."""
        if not self.records:
            return False
        last = self.records[-1]["error"]
        numbers = [error for record in self.records if (error := record["error"]) is not None]
        return last is None or last > DIVERGED * min(numbers)

    def __call__(self, step: int, average: SliceVae) -> bool:
        """Records the error of the averaged weights; returns True where nothing good is to be hoped for."""
        self.records = [one for one in self.records if one["step"] < step]  # after a resumption the last comes again
        error = self._error(average)
        self.records.append({"step": step, "error": error if math.isfinite(error) else None})
        if self.has_diverged:
            self.report(f"  step {step}: slices are made again {error:.3g} away: this diverges")
        else:
            save_whole({"step": step, "weights": average.state_dict()}, self.folder / "good.pt")
            self.report(f"  step {step}: slices are made again {error:.4f} of the intensity range away (RMS)")
        _write_records(self.folder, self.records)
        return self.has_diverged

    def choose(self, average: SliceVae) -> Network:
        """Returns the network with its last weights, or where they have diverged with the last good ones."""
        first, last = self.records[0]["error"], self.records[-1]["error"]
        if self.has_diverged:
            good = self.last_good()
            average.load_state_dict(good["weights"])
            self._went_back_to = good["step"]
            self.report(f"  {self.folder.name} diverged: went back to its weights after step {good['step']}")
        elif last > first:
            self.report(f"  note: {self.folder.name} ends with an error of {last:.4f}, where it began with {first:.4f}")
        return average

    def last_good(self) -> dict[str, Any]:
        """Returns the step and the weights of the last validation that was good.

        Raises:
            InputRefused: there never was one.
        """
        if not (self.folder / "good.pt").exists():
            raise InputRefused(
                got="slices that cannot be made again, not even badly",
                need="scans whose voxels are intensities",
                next="look at the scans",
                place=self.folder,
                code="slices-not-learnt",
            )
        found: dict[str, Any] = torch.load(self.folder / "good.pt", map_location="cpu", weights_only=True)
        return found

    def validation(self) -> dict[str, Any]:
        """Returns every error, whether the stage diverged, and what it went back to."""
        back = {} if self._went_back_to is None else {"went_back_to": self._went_back_to}
        return {"records": self.records, "diverged": self.has_diverged} | back

    def verdict(self) -> dict[str, Any]:
        """Returns nothing: `validation` holds all there is."""
        return {}

    def _error(self, network: SliceVae) -> float:
        device = next(network.parameters()).device
        total, count = 0.0, 0
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=has_bf16(device)):
            for batch in self.batches:
                slices = torch.from_numpy(batch.slices).to(device)
                total += float((network(slices).float() - slices).square().sum())
                count += slices.numel()
        return math.sqrt(total / count)


# ---- adaptation


LEAST_BATCHES = 12
"""Batches of either kind, always the same, whose mean losses are looked at, at least."""

MOST_BATCHES = 24
"""The same at most: two of every scan, where that is not more."""

SHARES = (0.25, 0.5, 0.75, 1.0)
"""How far the weights may go from the starting ones towards the adapted ones: all of the way is often too far."""

LEAST_GAIN = 0.002
"""The losses must fall by this share at least, or the starting model is kept."""

PATIENCE = 3
"""The training ends after so many validations without a new best one."""

NOT_BEFORE = 0.4
"""Share of the time before which it does not end so: the first steps are often no better."""

WRITING_SECONDS = 4.0
"""Seconds of the time that is given that are left for writing and checking the model file."""

LEAST_SHARE_OF_TIME = 0.1
"""Share of the time that is given that is trained for at least, however long the preparation took."""

VALIDATING_THREADS = 2
"""Batches whose losses are computed beside each other: as many as those of a step."""


class HeldOutCheck:
    """Validates on what is held out of the scans, keeps the best weights, and says when to stop.

    Two losses count alike, relative to the starting model's: that of directions within slices, and that of the slice
    direction itself at the scale at which its truth is known, both on what is held out. Together they may not rise for
    any scan that is looked at. The weights looked at lie between the starting and the adapted ones (Wortsman et al.,
    CVPR 2022): far out, the directions within the slices still gain while the slice direction loses (LOG.md).

    Attributes:
        records: what every validation found; a ``score`` below 1 is better than the starting model.
    """

    def __init__(
        self,
        objective: SelfSupervisedObjective,
        start: SlabNetwork,
        targets: Sequence[TargetScan],
        folder: Path,
        report: Report,
        begun: float | None = None,
    ) -> None:
        self.network, self.folder, self.report = start, folder, report
        self.schedule = Schedule()
        self.begun_run = begun
        # Copies: the network is trained in place.
        self.start = {name: weight.clone() for name, weight in start.state_dict().items()}
        about = (objective.patches, objective.size, objective.slabs, start.context + 1)
        count = min(max(LEAST_BATCHES, 2 * len(targets)), MOST_BATCHES)
        turns: dict[int, list[int]] = {}  # of each scan the numbers of its batches; of many scans some have none
        for number in range(count):
            turns.setdefault(number * len(targets) // count, []).append(number)
        self.batches = {
            kind: [[batch_at(n, 1, [targets[i]], *about, held_out=True) for n in ns] for i, ns in turns.items()]
            for kind, batch_at in (("held_out", in_plane_batch_at), ("thicker", thicker_slices_batch_at))
        }
        self.records = _read_records(folder)
        self.begun = monotonic() - (self.records[-1]["seconds"] if self.records else 0.0)

    @classmethod
    def begin(
        cls, objective: SelfSupervisedObjective, network: SlabNetwork, inputs: Inputs, folder: Path, report: Report
    ) -> "HeldOutCheck":
        """Returns a check by the parts of the scans that are held out."""
        return cls(objective, network, [target for _, target in inputs.scans], folder, report, inputs.begun)

    def fit_into(self, schedule: Schedule) -> Schedule:
        """Returns the schedule with what is left of its minutes after the preparation and a first validation.

        It is kept: a training that goes on has as long as it would have had undisturbed.
        """
        kept = self.folder / "schedule.json"
        known = read_object(kept)
        if known:
            schedule = Schedule(**known)
        elif schedule.minutes is not None:
            first = monotonic()
            self(0, self.network)
            # The starting weights are looked at once, later ones at every share of the way.
            last_validation = len(SHARES) * (monotonic() - first)
            spent = monotonic() - (first if self.begun_run is None else self.begun_run)
            schedule = rest_of(schedule, spent + last_validation + WRITING_SECONDS)
        write_json(kept, asdict(schedule))
        self.schedule = schedule
        return schedule

    def __call__(self, step: int, average: SlabNetwork) -> bool:
        """Records the losses of the averaged weights; returns True where nothing more is to be hoped for."""
        if step == 0 and self.records:
            return False  # the first validation was before the clock began
        self.records = [one for one in self.records if one["step"] < step]  # after a resumption the last comes again
        seen = [self._validate(step, share, average) for share in (SHARES if step else (0.0,))]
        record, weights = min(seen, key=lambda pair: pair[0]["score"])
        self.records.append(record)
        if self.best() is record:
            save_whole(weights, self._weights_of(record))
        _write_records(self.folder, self.records)
        changes = (record["held_out"] / self.records[0]["held_out"], record["score"])
        change, score = (100 * (value - 1) for value in changes)
        self.report(f"  step {step}: held-out loss {change:+.1f} %, with the slice direction {score:+.1f} %")
        since = len(self.records) - 1 - self.records.index(self.best())
        return since >= PATIENCE and self._share_done(step) > NOT_BEFORE

    def best(self) -> dict[str, Any]:
        """Returns the record with the smallest losses where the held-out loss fell and no scan lost; else the first."""
        first = self.records[0]
        fell = [one for one in self.records if one["held_out"] < first["held_out"] and one["worst"] <= 1]
        return min(fell, key=lambda one: one["score"], default=first)

    @property
    def is_better(self) -> bool:
        """Returns whether the best weights are kept, and not the starting ones."""
        return bool(self.best()["score"] < 1 - LEAST_GAIN)

    def choose(self, average: SlabNetwork) -> Network:
        """Returns a network with the best weights, or where they are hardly better with the starting ones."""
        chosen = copy_of(average)
        best = self.best()
        logger.debug("best after step %d: score %.5f, kept: %s", best["step"], best["score"], self.is_better)
        weights = torch.load(self._weights_of(best), weights_only=True) if self.is_better else self.start
        chosen.load_state_dict(weights)
        return chosen

    def validation(self) -> dict[str, Any]:
        """Returns what every validation found."""
        return {"records": self.records}

    def verdict(self) -> dict[str, Any]:
        """Returns whether the adapted weights were kept, how far from the start they are, and the held-out losses."""
        before, best = self.records[0], self.best()
        after = best if self.is_better else before
        return {
            "adapted": self.is_better,
            "held_out_loss": {"before": before["held_out"], "after": after["held_out"]},
            "share": best["share"] if self.is_better else 0.0,
        }

    def _validate(
        self, step: int, share: float, average: SlabNetwork
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Returns the losses of weights so far from the start, and the weights."""
        ends = {name: weight.cpu() for name, weight in average.state_dict().items()}
        weights = {name: torch.lerp(self.start[name], weight, share) for name, weight in ends.items()}
        mixed = copy_of(average)
        mixed.load_state_dict(weights)
        mixed.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # missing in torch's stub
        each = {kind: [self._loss(mixed, batches) for batches in scans] for kind, scans in self.batches.items()}
        means = {kind: sum(losses) / len(losses) for kind, losses in each.items()}
        # The first record is the starting model's, and everything is relative to it.
        first: dict[str, Any] = self.records[0] if self.records else {"each": each, **means}
        score = sum(means[kind] / first[kind] for kind in means) / len(means)
        ratios = [[loss / was for loss, was in zip(each[kind], first["each"][kind], strict=True)] for kind in each]
        # For each scan by itself: by the mean over all, one scan could pay for the gain of another.
        worst = max(sum(of_one) / len(of_one) for of_one in zip(*ratios, strict=True))
        seconds = round(monotonic() - self.begun, 1)
        record = {"step": step, "share": share, **means, "score": score, "worst": worst, "seconds": seconds}
        return record | {"each": each}, weights

    def _weights_of(self, record: dict[str, Any]) -> Path:
        """Returns where the weights lie of a validation that was the best one when it was made."""
        return self.folder / f"step-{record['step']}.pt"

    def _share_done(self, step: int) -> float:
        if self.schedule.minutes is None:
            return step / self.schedule.steps
        return (monotonic() - self.begun) / 60 / self.schedule.minutes

    @staticmethod
    def _loss(network: SlabNetwork, batches: Sequence[Any]) -> float:
        device = next(network.parameters()).device

        def one(batch: Any) -> float:
            with torch.no_grad():
                return projected_loss(network, batch, device).item()

        with ThreadPoolExecutor(max_workers=VALIDATING_THREADS) as workers:
            return sum(workers.map(one, batches)) / len(batches)


def rest_of(schedule: Schedule, spent_seconds: float) -> Schedule:
    """Returns the schedule with the rest of its minutes, but a tenth of them at least."""
    minutes = cast(float, schedule.minutes)
    return replace(schedule, minutes=max(minutes - spent_seconds / 60, LEAST_SHARE_OF_TIME * minutes))
