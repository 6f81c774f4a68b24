"""Keeps what an evaluation found: one record per answer or skip, and the tables that sum them up."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TextIO

import numpy as np

from thinslice.evaluation.conditions import Condition
from thinslice.evaluation.downstream import CLASSES, Downstream
from thinslice.physics.profile import sd_over_fwhm
from thinslice.settings import Profile

REFERENCE = "cubic"
"""The interpolation that gains are counted from, with projection and without."""


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
        assumed: the profile and the width in slice spacings that the program computed with, stated or found.
        downstream: what users would measure, None where it was not asked for.
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
    assumed: tuple[Profile, float] | None = None
    downstream: Downstream | None = None


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
    # At once and not when the file is closed: an evaluation of hours that is stopped keeps what it has found.
    lines.write(json.dumps(_finite(record), allow_nan=False) + "\n")
    lines.flush()


def _finite(value: Any) -> Any:
    """Returns plain data with None for every number that is not finite, however deep."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def make_table(scores: Sequence[Score], skips: Sequence[Skip] = ()) -> str:
    """Returns one Markdown table: means over the cases (times axes) of every condition, model and projection.

    Gains are differences from cubic interpolation on the same case, with projection and without, in dB; the smallest
    is in brackets.
    """
    head = ("condition", "model", "projection", "n", "PSNR dB", "SSIM", "gain dB (min)", "over plain cubic (min)")
    rows = [(*head, "stripes % (truth)", "guard %", "re-slice RMS %", "seconds")]
    projected, plain = _references(scores, projection=True), _references(scores, projection=False)
    for words, group in _groups(scores):
        rows.append(
            (
                *words,
                str(len(group)),
                f"{_mean(s.psnr_db for s in group):.2f}",
                f"{_mean(s.ssim for s in group):.4f}",
                _mean_and_smallest(_gains(group, projected)),
                _mean_and_smallest(_gains(group, plain)),
                f"{_mean(s.stripes for s in group):.1f} ({_mean(s.stripes_truth for s in group):.1f})",
                f"{100 * _mean(s.guard_share for s in group):.2f}",
                f"{100 * _mean(s.reslice_rms for s in group):.2f}",
                f"{_mean(s.seconds for s in group):.1f}",
            )
        )
    notes = [
        "Thick-slice protocol. PSNR and SSIM (7x7x7 uniform window) over the foreground, all slices; range: distance",
        "between the truth's 0.5 and 99.5 percentiles. Means over the cases; gain: over cubic with projection, and",
        "over plain cubic, which has none; the smallest of a case in brackets. Stripes: how much the mean change from",
        "slice to slice rises and falls with the acquired slices (the truth's in brackets).",
        "Condition: slice spacing in thin voxels, slice profile, gap or overlap in shares of the slice spacing.",
    ]
    skipped = _skip_lines(skips)
    return "\n".join([*notes, "", *_aligned(rows), *(["", "Skipped:", "", *skipped] if skipped else []), ""])


def make_mismatch_table(scores: Sequence[Score]) -> str:
    """Returns a Markdown table for every model with projection: true profiles down, what is stated of them across.

    Every cell has the mean gain over plain cubic interpolation and the smallest of a case, in dB; the last row those
    over all true profiles. What each row has where its own profile is stated is repeated in the last column, so that
    the mean stands below it. The scores are of `thinslice.evaluation.conditions.make_mismatch_conditions`.
    """
    plain = _references(scores, projection=False)
    columns = list(dict.fromkeys(score.condition.stated for score in scores))
    cells: dict[tuple[str, str], dict[str, dict[str, list[float]]]] = {}
    for score in scores:
        if score.projection:
            # The condition but for what is stated, and of that but for the true profile.
            every = replace(score.condition, stated="true")
            around = str(replace(every, profile="gaussian", thickness_over_spacing=1.0)).replace(
                " gaussian, touching", ""
            )
            table = cells.setdefault((_name(score), around), {})
            row = table.setdefault(f"{every.profile}:{every.thickness_over_spacing:g}", {})
            row.setdefault(score.condition.stated, []).extend(_gains([score], plain))
    parts = [
        "Gain over plain cubic in dB: mean and, in brackets, the smallest of a case, with projection. Down: the true"
    ]
    parts += ["slice profile and its width in slice spacings; across: what the program is told of it."]
    columns.append("the truth")
    for (model, around), table in cells.items():
        for true, row in table.items():
            row["the truth"] = row.get(true, [])
        rows = [(f"{model}, {around}", *("told " + ("nothing" if one == "none" else one) for one in columns))]
        rows += [(true, *(_mean_and_smallest(row.get(one, [])) for one in columns)) for true, row in table.items()]
        over_all = {one: [gain for row in table.values() for gain in row.get(one, [])] for one in columns}
        rows.append(("all", *(_mean_and_smallest(over_all[one]) for one in columns)))
        parts += ["", *_aligned(rows, words=1)]
    found = [s for s in scores if s.condition.stated == "none" and s.assumed is not None]
    if found:
        off = [abs(_deviation(*s.assumed) - _deviation(*_true(s.condition))) for s in found if s.assumed is not None]
        parts += [
            "",
            "Told nothing, the program's slice profile has a standard deviation that is off by "
            f"{_mean(off):.3f} slice spacings on average, {max(off):.3f} at most.",
        ]
    return "\n".join([*parts, ""])


def make_downstream_table(scores: Sequence[Score]) -> str:
    """Returns one Markdown table of what users measure: means over the cases of every condition, model and projection.

    See `thinslice.evaluation.downstream`; scores without it are left out.
    """
    head = ["condition", "model", "projection", "n", *(f"{name} volume %" for name in CLASSES), "smallest class %"]
    rows = [(*head, "Dice", "Dice of smallest", "edge mm (truth)")]
    for words, group in _groups([score for score in scores if score.downstream is not None]):
        found = [score.downstream for score in group if score.downstream is not None]
        errors = [[abs(one.volume_errors_percent[k]) for one in found] for k in range(len(CLASSES))]
        smallest = [one.volume_errors_percent[one.smallest] for one in found]
        rows.append(
            (
                *words,
                str(len(group)),
                *(f"{_known_mean(each):.1f}" for each in errors),
                f"{_mean(smallest):+.1f} ({max(smallest, key=abs):+.1f})",
                f"{_known_mean(dice for one in found for dice in one.dice):.3f}",
                f"{_mean(one.dice[one.smallest] for one in found):.3f}",
                f"{_known_mean(one.edge_mm for one in found):.2f} ({_known_mean(o.edge_mm_truth for o in found):.2f})",
            )
        )
    notes = [
        "What users measure. Three tissue classes by two thresholds of the truth's foreground (Otsu): mean absolute",
        "error of their volumes; of the truth's smallest class with sign, the largest of a case in brackets; Dice",
        "overlap, mean of the classes and of the smallest. Edge: full width at half maximum, across the slices, of the",
        "mean gradient at the truth's strong edges (the truth's in brackets).",
    ]
    return "\n".join([*notes, "", *_aligned(rows), ""])


def _true(condition: Condition) -> tuple[Profile, float]:
    """Returns the profile that slices have and its width in slice spacings."""
    return condition.profile, condition.thickness_over_spacing


def _deviation(profile: Profile, width: float) -> float:
    """Returns the standard deviation of a profile, in units of its width: what counts for the answer."""
    return sd_over_fwhm(profile) * width


def _groups(scores: Sequence[Score]) -> Iterator[tuple[tuple[str, str, str], list[Score]]]:
    """Yields the scores of every condition, model and projection, and these three in words."""
    groups: dict[tuple[Condition, str, bool], list[Score]] = {}
    for score in scores:
        groups.setdefault((score.condition, score.model, score.projection), []).append(score)
    order = list(dict.fromkeys(score.condition for score in scores))
    # Sorting is stable: within a condition models stay in the order in which they answered.
    for (condition, _, projection), group in sorted(groups.items(), key=lambda item: order.index(item[0][0])):
        yield (str(condition), _name(group[0]), "yes" if projection else "no"), group


def _name(score: Score) -> str:
    """Returns what a model is called in the tables."""
    return f"{score.model}, fused" if score.fuse else score.model


def _references(scores: Sequence[Score], projection: bool) -> dict[tuple[str, int, Condition], float]:
    """Returns the PSNR of cubic interpolation by what an answer has in common with it."""
    return {_key(s): s.psnr_db for s in scores if s.model == REFERENCE and s.projection == projection}


def _gains(scores: Sequence[Score], reference: dict[tuple[str, int, Condition], float]) -> list[float]:
    """Returns the gains of answers; one that the reference did not give, or gave without any error, has none."""
    return [s.psnr_db - reference[_key(s)] for s in scores if np.isfinite(reference.get(_key(s), np.nan))]


def _key(score: Score) -> tuple[str, int, Condition]:
    """Returns what an answer has in common with the reference that its gain is counted from."""
    return score.case, score.axis, score.condition


def _mean_and_smallest(gains: Sequence[float]) -> str:
    """Returns the two as text."""
    return f"{_mean(gains):+.2f} ({min(gains):+.2f})" if gains else "-"


def _known_mean(values: Iterable[float]) -> float:
    """Returns the mean of those that are numbers; NaN if none is."""
    known = [value for value in values if not np.isnan(value)]
    return _mean(known) if known else float("nan")


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


def _aligned(rows: Sequence[Sequence[str]], words: int = 3) -> list[str]:
    """Returns the lines of a Markdown table with columns of even width; after those of words, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| "
        + " | ".join(c.ljust(w) if i < words else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (w + 2) if i < words else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return [lines[0], rule, *lines[1:]]
