"""Evaluates models on scans that are made thick: models x cases x conditions -> results and one table.

Protocol: *thick-slice*. A near-isotropic thin scan is the truth. It is made thick along one axis by the slice profile
of the condition, disturbed where the condition says so, and every model computes the thin slices again from that, with
and without the projection onto the acquired slices. The truth is cropped so that whole thick slices cover it. Measures
are those of `thinslice.evaluation.metrics` and, where they are asked for, `thinslice.evaluation.downstream`. The
reference of every gain is cubic interpolation, with projection and without, which is always evaluated.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, TextIO

import numpy as np

from thinslice.compute.upsample import upsample
from thinslice.errors import InputRefused, PlanRefused, ThinsliceError
from thinslice.evaluation.conditions import Condition
from thinslice.evaluation.disturbances import disturb
from thinslice.evaluation.downstream import Downstream, find_structures, measure
from thinslice.evaluation.metrics import banding, data_range, foreground, psnr, reslice_rms, ssim, stripes
from thinslice.evaluation.results import (
    REFERENCE,
    Score,
    Skip,
    make_downstream_table,
    make_mismatch_table,
    make_table,
    write_line,
)
from thinslice.io.atomic import whole_or_not
from thinslice.io.formats import read, stem_of
from thinslice.io.outputs import check_writable
from thinslice.io.synthetic import check_acquired
from thinslice.models.engine import EngineSettings
from thinslice.models.protocol import Model
from thinslice.models.registry import find_model
from thinslice.physics.acquisition import Acquisition
from thinslice.physics.intensity import intensity_range
from thinslice.physics.interleaving import make_even
from thinslice.physics.interpolation import INTERPOLATIONS
from thinslice.plan import Plan, make_plan
from thinslice.reports.picture import (
    Picture,
    Plane,
    draw_side_by_side,
    find_picture_centre,
    reslice_planes,
    write_picture,
)
from thinslice.settings import Profile, Settings
from thinslice.volume import Volume

logger = logging.getLogger(__name__)

Axes = Literal["last", "all"]
"""Along which array axes scans are made thick: the last one alone, or each in turn."""

MAX_ANISOTROPY = 1.25
"""Largest over smallest spacing of a scan that may serve as truth: one that is coarser has slices of its own."""

MIN_SIDE = 16
"""Smallest number of voxels of a truth along any axis: more than twice the window of SSIM."""

MIN_THICK = 6
"""Smallest number of slices of a simulated scan: with fewer most of the volume lies at its ends."""

DOWNSTREAM_REFERENCES = ("linear", "nearest")
"""Interpolations that what users measure is compared with besides cubic: what viewers and resampling programs do."""

ERROR_GAIN = 3
"""How many times brighter than the scan the pictures of errors are drawn, without a unit: else they are black."""


@dataclass(frozen=True)
class Evaluation:
    """Everything `evaluate` found.

    Attributes:
        scores: one for every answer.
        skips: what was not scored, and why.
        table: Markdown, aligned to be read as plain text.
    """

    scores: tuple[Score, ...]
    skips: tuple[Skip, ...]
    table: str


@dataclass(frozen=True)
class _Simulated:
    """One scan that was made thick: what every model is asked about.

    Attributes:
        case, axis, condition: see `thinslice.evaluation.results.Score`.
        truth: the thin scan.
        thick: what the program gets, disturbed, with the thickness that is stated.
    """

    case: str
    axis: int
    condition: Condition
    truth: Volume
    thick: Volume


@dataclass(frozen=True)
class _Answer:
    """What the pictures keep of an answer.

    Attributes:
        planes: the two planes across the slices.
        score: for the caption.
    """

    planes: tuple[Plane, Plane]
    score: Score


def simulate(
    volume: Volume, axis: int, factor: float, thickness_over_spacing: float = 1.0, profile: Profile = "gaussian"
) -> tuple[Volume, Volume]:
    """Makes a thin scan thick along one axis, on the field-of-view grid.

    floor(N / factor) thick slices are made of the middle round(that * factor) of the N thin ones; the realised factor
    is the quotient of the two. ``make_plan(thick, factor=realised)`` gives the truth's grid and affine and the matrix
    used here; the thickness is on the thick volume, as a header would say it.

    Args:
        volume: [x, y, z], spacings alike.
        axis: the array axis to make thick.
        factor: slice spacing in thin voxels, above 1.
        thickness_over_spacing: slice thickness over slice spacing.
        profile: see `thinslice.physics.profile.slice_profile`.

    Returns:
        (truth, thick), both float32: the middle of ``volume``, and what a 2-D scanner would have acquired of it.

    Raises:
        PlanRefused: fewer than `MIN_THICK` thick slices would remain, or the factor is not above 1.
    """
    n = volume.shape[axis]
    # A quotient that is whole may come out a little below in floating point, which would cost a slice.
    n_thick = int(n / factor + 1e-9) if factor > 0 else 0
    # Only what whole thick slices cover can be compared voxel by voxel: the truth is cropped to it, and the factor is
    # what the sizes say then.
    n_thin = round(n_thick * factor)
    if n_thick < MIN_THICK or n_thin <= n_thick:
        raise PlanRefused(
            got=f"{n} slices along axis {axis} and a factor of {factor:g}",
            need=f"{MIN_THICK} thick slices and a factor above 1",
            next=f"ask for a factor of at most {n / MIN_THICK:.3g}",
            code="too-few-thick-slices",
        )
    realised = n_thin / n_thick
    # The outer edges of both grids coincide: the first thick slice lies in the middle of the thin ones that it covers.
    first_centre = (realised - 1) / 2
    start = (n - n_thin) // 2
    thin = np.take(volume.voxels, np.arange(start, start + n_thin), axis=axis).astype(np.float32)
    centres = first_centre + realised * np.arange(n_thick)
    thick = Acquisition(centres, n_thin, thickness_over_spacing * realised, profile, axis).forward(thin)
    affine = np.array(volume.affine, dtype=np.float64)
    affine[:3, 3] += start * affine[:3, axis]
    # The header's thickness is that of the file's slices and would be taken for that of the simulated ones.
    truth = replace(volume, voxels=thin, affine=affine, thickness_mm=None, measured=None)
    affine_thick = affine.copy()
    affine_thick[:3, 3] += first_centre * affine[:3, axis]
    affine_thick[:3, axis] *= realised
    thickness_mm = thickness_over_spacing * realised * volume.spacing_mm[axis]
    acquired = replace(truth, voxels=np.ascontiguousarray(thick), affine=affine_thick, thickness_mm=thickness_mm)
    return truth, acquired


def evaluate(
    paths: Iterable[Path],
    models: Sequence[str],
    conditions: Sequence[Condition] = (Condition(),),
    out: Path = Path("evaluation"),
    axes: Axes = "last",
    progress: Callable[[float, str], None] | None = None,
    threads: int | None = None,
    fuse: bool = False,
    downstream: bool = False,
    crop: int | None = None,
    projected_only: bool = False,
) -> Evaluation:
    """Scores models on simulated thick scans.

    Every model is run as a user would get it, with the default regularisation of the projection, and once more
    without projection. Writes into ``out``, replacing what an earlier evaluation left there: ``results.jsonl`` (one
    line per answer or skip), ``table.md`` and one picture CASE.png per case, of the first condition and axis. Lines are
    written as they are found, into ``results.jsonl.part``, which gets its name at the end: an evaluation that is
    stopped leaves there what it has found, and the results of an earlier one as they are.

    Args:
        paths: files of near-isotropic 3-D scans, the truths.
        models: names or files for `thinslice.models.registry.find_model`; cubic is added where it is missing.
        conditions: how the scans are made thick, see `thinslice.evaluation.conditions.make_conditions`.
        out: a folder, made if need be.
        axes: ``last``: the scans are made thick along their last array axis; ``all``: along each in turn.
        progress: called with the share done, 0 .. 1, and what comes next.
        threads: CPU threads of the networks, see `thinslice.models.engine.EngineSettings`.
        fuse: whether networks run in several orientations, see `thinslice.plan.make_plan`.
        downstream: whether what users measure is measured too, see `thinslice.evaluation.downstream`; nearest and
            linear are evaluated then as well.
        crop: side of the middle cube of every scan that is used, in voxels; None: all of it.
        projected_only: leaves out the answers of networks without projection, which take half of the time.

    Raises:
        InputRefused: there is no path, or nothing could be scored; then no file is left.
        ModelRefused: there is no such model; before anything is computed.
        OutputRefused: ``out`` cannot be written to.
    """
    cases = _name_cases([Path(path) for path in paths])
    if not cases or not conditions:
        raise InputRefused(
            got="no scan or no condition to evaluate",
            need="at least one",
            next="check the input folder",
            code="nothing-to-evaluate",
        )
    # Models and the place of the results first: either refusal comes before anything is computed.
    found = _find_models([*models, *(DOWNSTREAM_REFERENCES if downstream else ())], threads)
    out = Path(out)
    check_writable(out)
    results: list[Score | Skip] = []
    unfinished = out / "results.jsonl.part"
    with ExitStack() as stack:
        lines: TextIO | None = None
        for number, (case, path) in enumerate(cases.items()):
            tell = _part_of(progress, number, len(cases), case)
            answers = partial(_answers, models=found, fuse=fuse, downstream=downstream, projected_only=projected_only)
            for result in _evaluate_case(case, path, crop, conditions, axes, answers, tell, out):
                results.append(result)
                # The file begins with the first score, so that nothing is left behind where nothing could be scored.
                if lines is None and isinstance(result, Score):
                    out.mkdir(parents=True, exist_ok=True)
                    lines = stack.enter_context(unfinished.open("w", encoding="utf-8"))
                    for earlier in results[:-1]:
                        write_line(lines, earlier)
                if lines is not None:
                    write_line(lines, result)
    scores = [result for result in results if isinstance(result, Score)]
    skips = [result for result in results if isinstance(result, Skip)]
    _check_scored(scores, skips, len(cases))
    table = _make_tables(scores, skips)
    with whole_or_not(out / "table.md") as part:
        part.write_text(table, encoding="utf-8")
        unfinished.replace(out / "results.jsonl")
    if progress is not None:
        progress(1.0, "done")
    return Evaluation(tuple(scores), tuple(skips), table)


def _check_scored(scores: Sequence[Score], skips: Sequence[Skip], n_cases: int) -> None:
    """Refuses an evaluation in which nothing could be scored.

    Raises:
        InputRefused: there is no score.
    """
    if not scores:
        reasons = "; ".join(dict.fromkeys(f"{skip.case}: {skip.reason}" for skip in skips))
        raise InputRefused(
            got=f"{n_cases} scan(s), none of which could be scored ({reasons})",
            need="one that can",
            next="give near-isotropic 3-D scans",
            code="nothing-scored",
        )


def _make_tables(scores: Sequence[Score], skips: Sequence[Skip]) -> str:
    """Returns the table of all scores, and those that sum up what else was asked for."""
    tables = [make_table(scores, skips)]
    # One word says what is stated in every other evaluation; a matrix has profiles by name.
    if any(":" in score.condition.stated for score in scores):
        tables.append(make_mismatch_table(scores))
    if any(score.downstream is not None for score in scores):
        tables.append(make_downstream_table(scores))
    return "\n".join(tables)


def _evaluate_case(
    case: str,
    path: Path,
    crop: int | None,
    conditions: Sequence[Condition],
    axes: Axes,
    answers_to: Callable[[_Simulated], Iterable[_Answer | Skip]],
    tell: Callable[[float, str], None],
    out: Path,
) -> Iterable[Score | Skip]:
    """Yields all answers for one scan, as they are found, and leaves its picture."""
    try:
        volume = read(path)
        volume = volume if crop is None else take_middle(volume, crop)
        check_truth(volume)
    except ThinsliceError as refusal:
        # An unfit scan costs its own scores; the others of the folder are evaluated.
        logger.debug("%s is skipped: %s", path, refusal)
        yield Skip(case, str(refusal))
        return
    places = list(product(range(3) if axes == "all" else [2], conditions))
    drawn = False
    for number, (axis, condition) in enumerate(places):
        tell(number / len(places), str(condition))
        try:
            truth, thick = simulate(volume, axis, condition.factor, condition.thickness_over_spacing, condition.profile)
            acquired = _state(disturb(truth, thick, axis, condition), axis, condition)
        except PlanRefused as refusal:
            yield Skip(case, str(refusal), axis, condition)
            continue
        answers: list[_Answer] = []
        for result in answers_to(_Simulated(case, axis, condition, truth, acquired)):
            yield result if isinstance(result, Skip) else result.score
            if isinstance(result, _Answer):
                answers.append(result)
        if answers and not drawn:
            write_picture(_draw_case(truth, acquired, answers), out / f"{case}.png")
            drawn = True


def _state(thick: Volume, axis: int, condition: Condition) -> Volume:
    """Returns the thick scan with the thickness that the program is told, which need not be the true one."""
    stated = condition.stated_profile()
    return replace(thick, thickness_mm=None if stated is None else stated[1] * thick.spacing_mm[axis])


def _answers(
    one: _Simulated, models: dict[str, Model], fuse: bool, downstream: bool, projected_only: bool
) -> Iterable[_Answer | Skip]:
    """Yields every model's answers, with and without projection, to one simulated scan."""
    # Mask, range, structures and place come from the truth, so that they are the same for every method.
    truth, axis = one.truth, one.axis
    mask = foreground(truth.voxels)
    centre = find_picture_centre(truth)
    factor = truth.shape[axis] / one.thick.shape[axis]
    structures = find_structures(truth.voxels, axis, factor, truth.spacing_mm) if downstream else None
    voxel_mm3 = abs(float(np.linalg.det(truth.affine[:3, :3])))
    for (name, model), projection in product(models.items(), (True, False)):
        # Interpolations are references without it, and take no time.
        if projected_only and not projection and model.sha256 is not None:
            continue
        try:
            # An interpolation has nothing to fuse, and would be refused with the option.
            plan = _plan(one, name, model, projection, fuse and model.sha256 is not None)
        except PlanRefused as refusal:
            if projection:  # the reason is the same without, and is given once
                yield Skip(one.case, str(refusal), axis, one.condition, name)
            continue
        logger.debug("%s, axis %d, %s: %s, projection %s", one.case, axis, one.condition, name, projection)
        start = perf_counter()
        answer = upsample(one.thick, plan, model)
        seconds = perf_counter() - start
        voxels = answer.volume.voxels
        used: Downstream | None = measure(voxels, structures, voxel_mm3) if structures is not None else None
        span = data_range(truth.voxels)
        # As the report says it: what alternated from slice to slice was taken out of the slices first.
        acquired = np.moveaxis(make_even(np.moveaxis(one.thick.voxels, axis, 0), plan.alternation), 0, axis)
        score = Score(
            case=one.case,
            axis=axis,
            condition=one.condition,
            factor=plan.factor,
            model=name,
            model_sha256=model.sha256,
            projection=projection,
            psnr_db=psnr(voxels, truth.voxels, span, mask),
            ssim=ssim(voxels, truth.voxels, span, mask),
            stripes=stripes(voxels, plan.factor, mask, axis),
            stripes_truth=stripes(truth.voxels, plan.factor, mask, axis),
            banding=banding(voxels, truth.voxels, plan.factor, mask, axis),
            seconds=seconds,
            guard_share=answer.guard.share,
            reslice_rms=reslice_rms(voxels, acquired, plan.acquisition()) / span,
            fuse=plan.fuse,
            assumed=(plan.profile, plan.thickness_over_spacing),
            downstream=used,
        )
        yield _Answer(reslice_planes(answer.volume, axis, centre), score)


def _plan(one: _Simulated, name: str, model: Model, projection: bool, fuse: bool) -> Plan:
    """Returns the plan that a user would get for the simulated scan, who knows of the slices what is stated.

    Raises:
        PlanRefused: the model is not valid for it, or another axis looks like that across the slices.
    """
    stated = one.condition.stated_profile()
    settings = Settings(
        factor=one.truth.shape[one.axis] / one.thick.shape[one.axis],
        thickness_mm=one.thick.thickness_mm,
        profile=None if stated is None else stated[0],
        projection=projection,
        fuse=fuse,
    )
    # By the name that tells it from the others of this evaluation: two files may call themselves alike.
    plan = make_plan(one.thick, settings, replace(model, name=name))
    if plan.axis != one.axis:
        spacings = " x ".join(f"{mm:.3g}" for mm in one.thick.spacing_mm)
        raise PlanRefused(
            got=f"spacings of {spacings} mm after making axis {one.axis} thick, so axis {plan.axis} looks like the "
            "slice axis",
            need="the thick axis to be the coarsest",
            next="ask for a larger factor",
            code="another-axis-is-coarser",
        )
    return plan


def take_middle(volume: Volume, side: int) -> Volume:
    """Returns the middle of a scan, at most so many voxels along each axis, in its place.

    Example:
        >>> part = take_middle(Volume(np.zeros((9, 4, 6)), np.eye(4)), side=5)
        >>> part.shape, part.affine[:3, 3]
        ((5, 4, 5), array([2., 0., 0.]))
    """
    size = [min(n, side) for n in volume.shape]
    start = [(n - kept) // 2 for n, kept in zip(volume.shape, size, strict=True)]
    voxels = volume.voxels[tuple(slice(low, low + kept) for low, kept in zip(start, size, strict=True))]
    affine = np.array(volume.affine, dtype=np.float64)
    affine[:3, 3] += affine[:3, :3] @ start
    return replace(volume, voxels=voxels, affine=affine, measured=None)


def check_truth(volume: Volume, anisotropy: float = MAX_ANISOTROPY) -> None:
    """Refuses what is no truth: it must be acquired, 3-D, near-isotropic, not tiny and not flat.

    Args:
        volume: the truth.
        anisotropy: largest spacing over the smallest.

    Raises:
        InputRefused: it is not.
    """
    check_acquired(volume)
    if volume.voxels.ndim != 3:
        raise InputRefused(
            got=f"{volume.voxels.ndim} axes",
            need="a 3-D scan",
            next="give one volume of the series",
            code="truth-not-3d",
        )
    if min(volume.shape) < MIN_SIDE:
        raise InputRefused(
            got=f"{volume.shape} voxels",
            need=f"at least {MIN_SIDE} along each axis",
            next="use a larger scan",
            code="truth-too-small",
        )
    if max(volume.spacing_mm) > anisotropy * min(volume.spacing_mm):
        raise InputRefused(
            got=f"spacings of {' x '.join(f'{mm:.3g}' for mm in volume.spacing_mm)} mm",
            need=f"a near-isotropic truth (at most {anisotropy:g} to 1)",
            next="use a 3-D acquisition",
            code="truth-not-isotropic",
        )
    if not np.isfinite(volume.voxels).all():
        raise InputRefused(
            got="voxels that are not finite", need="numbers everywhere", next="repair the scan", code="truth-not-finite"
        )
    if volume.voxels.min() == volume.voxels.max():
        raise InputRefused(got="the same value everywhere", need="an image", next="check the file", code="flat-image")


def _draw_case(truth: Volume, thick: Volume, answers: Sequence[_Answer]) -> Any:
    """Draws truth, acquired, cubic, the first network and the two errors, in both re-sliced planes."""
    axis = answers[0].score.axis
    projected = [a for a in answers if a.score.projection]
    cubic = next(a for a in projected if a.score.model == REFERENCE)
    # The first network is shown, or else the first interpolation that is not the reference.
    ours = next((a for a in projected if a.score.model_sha256), None)
    ours = ours or next((a for a in projected if a.score.model != REFERENCE), cubic)
    window = intensity_range(thick.voxels)
    centre = find_picture_centre(truth)
    true_planes, thick_planes = reslice_planes(truth, axis, centre), reslice_planes(thick, axis, centre)
    dark = (0.0, (window[1] - window[0]) / ERROR_GAIN)
    rows = []
    for row in range(2):
        pair = (("cubic, projected", cubic), (f"{ours.score.model}, projected", ours))
        shown = [Picture(_caption(name, a), a.planes[row], window) for name, a in pair]
        errors = [
            Picture(
                f"error of {a.score.model}\n{ERROR_GAIN} times brighter", _error(a.planes[row], true_planes[row]), dark
            )
            for _, a in pair
        ]
        thick_mm = thick.spacing_mm[axis]
        true = Picture(f"truth\n{truth.spacing_mm[axis]:.3g} mm slices", true_planes[row], window)
        acquired = Picture(f"thick slices\n{thick_mm:.3g} mm apart", thick_planes[row], window, staircase=True)
        rows.append([true, acquired, *shown, *errors])
    score = answers[0].score
    return draw_side_by_side(rows, f"{score.case}: {score.condition}, axis {axis}")


def _caption(name: str, answer: _Answer) -> str:
    """Returns the two lines above a picture."""
    return f"{name}\n{answer.score.psnr_db:.2f} dB, SSIM {answer.score.ssim:.4f}"


def _error(plane: Plane, truth: Plane) -> Plane:
    """Returns the absolute difference of two planes of one grid."""
    return replace(plane, pixels=np.abs(plane.pixels - truth.pixels))


def _find_models(names: Sequence[str], threads: int | None) -> dict[str, Model]:
    """Returns the models by name, each once, with the reference.

    A second file of the same name goes by its path, and so does one that is called like an interpolation: nothing but
    cubic interpolation may be taken for the reference.
    """
    found: dict[str, Model] = {}
    for name in dict.fromkeys([*names, REFERENCE]):
        model = find_model(name, EngineSettings(threads=threads))
        taken = model.name in found or (model.sha256 is not None and model.name in INTERPOLATIONS)
        found[name if taken else model.name] = model
    return found


def _name_cases(paths: Sequence[Path]) -> dict[str, Path]:
    """Returns short, unique names: the file's stem, where needed with the folder before it and a number behind it."""
    names: dict[str, Path] = {}
    stems = [stem_of(path) for path in paths]
    for path, stem in zip(paths, stems, strict=True):
        name = stem if stems.count(stem) == 1 else f"{path.parent.name}-{stem}"
        number = 2
        while name in names:
            name, number = f"{path.parent.name}-{stem}-{number}", number + 1
        names[name] = path
    return names


def _part_of(
    progress: Callable[[float, str], None] | None, number: int, count: int, case: str
) -> Callable[[float, str], None]:
    """Returns the progress of one case as a part of the progress of the whole."""

    def tell(share: float, text: str) -> None:
        if progress is not None:
            progress((number + share) / count, f"{case}: {text}")

    return tell
