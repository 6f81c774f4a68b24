"""Keeps what an evaluation found: one record per answer or skip, and the table that sums them up."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TextIO

import numpy as np

from thinslice.settings import Profile

REFERENCE = "cubic"
"""The interpolation, with projection, that gains are counted from."""


@dataclass(frozen=True)
class Condition:
    """How the truth is made thick.

    Attributes:
        factor: slice spacing in thin voxels.
        thickness_over_spacing: slice thickness over slice spacing; below 1 there are gaps, above 1 slices overlap.
        profile: shape of the slice profile.

    Example:
        >>> str(Condition(4, 0.8, "box"))
        'x4 box, gap 20 %'
    """

    factor: float = 4.0
    thickness_over_spacing: float = 1.0
    profile: Profile = "gaussian"

    def __str__(self) -> str:
        gap = 100 * (1 - self.thickness_over_spacing)
        slabs = "touching" if abs(gap) < 0.05 else f"gap {gap:.3g} %" if gap > 0 else f"overlap {-gap:.3g} %"
        return f"x{self.factor:g} {self.profile}, {slabs}"


@dataclass(frozen=True)
class Score:
    """One answer against its truth.

    Attributes:
        case, axis: the scan, and the array axis it was made thick along.
        condition: as asked for.
        factor: as realised, whole thin slices over whole thick slices.
        model, model_sha256, projection: who answered.
        psnr_db: infinite for an answer equal to the truth.
        ssim, stripes, banding: see `thinslice.evaluation.metrics`; ``stripes_truth`` is what the truth itself has.
        seconds: wall-clock of the computation, reading and writing left out.
        guard_share: share of the cells where the guard went back to interpolation.
        reslice_rms: RMS of (answer made thick - acquired) over the truth's data range.
        fuse: whether it is the mean of what was answered in several orientations.
    """

    case: str
    axis: int
    condition: Condition
    factor: float
    model: str
    model_sha256: str | None
    projection: bool
    psnr_db: float
    ssim: float
    stripes: float
    stripes_truth: float
    banding: float
    seconds: float
    guard_share: float
    reslice_rms: float
    fuse: bool = False


@dataclass(frozen=True)
class Skip:
    """What was not scored, and why; None where the reason holds for all axes, conditions or models."""

    case: str
    reason: str
    axis: int | None = None
    condition: Condition | None = None
    model: str | None = None


def write_line(lines: TextIO, result: Score | Skip) -> None:
    """Writes one line of strict JSON; an infinite number becomes null, with ``identical`` beside it."""
    record: dict[str, Any] = {"kind": "score" if isinstance(result, Score) else "skip", **asdict(result)}
    if isinstance(result, Score):
        # Strict JSON has no infinity, and a null alone could be any number that is not finite.
        record["identical"] = bool(np.isposinf(result.psnr_db))
    clean = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in record.items()}
    # At once and not when the file is closed: an evaluation of hours that is stopped keeps what it has found.
    lines.write(json.dumps(clean, allow_nan=False) + "\n")
    lines.flush()


def make_table(scores: Sequence[Score], skips: Sequence[Skip] = ()) -> str:
    """Returns one Markdown table: means over the cases (times axes) of every condition, model and projection.

    Gains are differences from cubic interpolation with projection on the same case, in dB; the smallest is in brackets.
    """
    head = ("condition", "model", "projection", "n", "PSNR dB", "SSIM", "gain dB (min)", "stripes % (truth)", "guard %")
    rows = [(*head, "re-slice RMS %", "seconds")]
    reference = {_key(s): s.psnr_db for s in scores if s.model == REFERENCE and s.projection}
    groups: dict[tuple[Condition, str, bool], list[Score]] = {}
    for score in scores:
        groups.setdefault((score.condition, score.model, score.projection), []).append(score)
    order = list(dict.fromkeys(score.condition for score in scores))
    # Sorting is stable: within a condition models stay in the order in which they answered.
    for (condition, model, projection), group in sorted(groups.items(), key=lambda item: order.index(item[0][0])):
        # A case that the reference did not do, or did without any error, has no gain.
        gains = [s.psnr_db - reference[_key(s)] for s in group if np.isfinite(reference.get(_key(s), np.nan))]
        rows.append(
            (
                str(condition),
                f"{model}, fused" if group[0].fuse else model,
                "yes" if projection else "no",
                str(len(group)),
                f"{_mean(s.psnr_db for s in group):.2f}",
                f"{_mean(s.ssim for s in group):.4f}",
                f"{_mean(gains):+.2f} ({min(gains):+.2f})" if gains else "-",
                f"{_mean(s.stripes for s in group):.1f} ({_mean(s.stripes_truth for s in group):.1f})",
                f"{100 * _mean(s.guard_share for s in group):.2f}",
                f"{100 * _mean(s.reslice_rms for s in group):.2f}",
                f"{_mean(s.seconds for s in group):.1f}",
            )
        )
    notes = [
        "Thick-slice protocol. PSNR and SSIM (7x7x7 uniform window) over the foreground, all slices; range: distance",
        "between the truth's 0.5 and 99.5 percentiles. Means over the cases; gain: over cubic with projection, the",
        "smallest of a case in brackets. Stripes: how much the mean change from slice to slice rises and falls with",
        "the acquired slices (the truth's in brackets).",
        "Condition: slice spacing in thin voxels, slice profile, gap or overlap in shares of the slice spacing.",
    ]
    skipped = _skip_lines(skips)
    return "\n".join([*notes, "", *_aligned(rows), *(["", "Skipped:", "", *skipped] if skipped else []), ""])


def _key(score: Score) -> tuple[str, int, Condition]:
    """Returns what an answer has in common with the reference that its gain is counted from."""
    return score.case, score.axis, score.condition


def _mean(values: Iterable[float]) -> float:
    """Returns the mean; infinite where one of the values is."""
    return float(np.mean(list(values)))


def _skip_lines(skips: Sequence[Skip]) -> list[str]:
    """Returns one line per case and model: the first reason, and how many more there are in results.jsonl."""
    groups: dict[tuple[str, str | None], list[Skip]] = {}
    for skip in skips:
        groups.setdefault((skip.case, skip.model), []).append(skip)
    lines = []
    for group in groups.values():
        first = group[0]
        axis = f"axis {first.axis}" if first.axis is not None else ""
        place = ", ".join(part for part in (first.case, axis, str(first.condition or ""), first.model or "") if part)
        more = f" (and {len(group) - 1} more, see results.jsonl)" if len(group) > 1 else ""
        lines.append(f"- {place}: {first.reason}{more}")
    return lines


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a Markdown table with columns of even width, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    left = 3  # columns of words, which come first
    lines = [
        "| "
        + " | ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (w + 2) if i < left else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return [lines[0], rule, *lines[1:]]
