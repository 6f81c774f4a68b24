"""The verbs demo and enhance: thin slices out of thick ones."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from thinslice.cli.options import (
    DICOM,
    SCAN,
    Parser,
    add_model,
    add_plan_options,
    add_verb,
    path_to_write,
    plan_for,
    read_scan,
)
from thinslice.cli.terminal import bar, complain, how_many, say
from thinslice.cli.words import named, reason_of, what_was_done
from thinslice.errors import InputRefused, OutputRefused, ThinsliceError
from thinslice.io.atomic import all_or_none

if TYPE_CHECKING:
    from thinslice.compute.consistency import Report
    from thinslice.compute.guard import GuardCount
    from thinslice.io.dicom.series import Study
    from thinslice.io.outputs import ScanOutput
    from thinslice.models.protocol import Model
    from thinslice.plan import Plan
    from thinslice.reports.report_page import Answer
    from thinslice.volume import Volume

SAMPLE = Path(__file__).parents[1] / "sample" / "spine_t2_sag_thick_4p5mm.nii.gz"
"""The bundled scan: lumbar spine, T2, 0.5 T, slices 4.5 mm apart; CC0."""

DEMO_FILES = ("spine_thin.nii.gz", "spine_thin.json", "spine_thin.png", "spine_thin.html")


# ---- demo


def add_demo(verbs: "argparse._SubParsersAction[Parser]") -> None:
    """``thinslice demo`` and its options."""
    verb = add_verb(verbs, "demo", demo, "enhance the bundled real thick scan and draw a picture of it")
    verb.add_argument(
        "-o", "--output", type=path_to_write, default=Path("thinslice-demo"), metavar="DIR", help="%(default)s"
    )
    add_model(verb)


def demo(arguments: argparse.Namespace) -> int:
    """Enhance the bundled scan; three lines: what was done, what was measured, where the files are."""
    from thinslice.api import compute
    from thinslice.io.formats import write
    from thinslice.io.outputs import Output, check_outputs
    from thinslice.models.registry import find_model
    from thinslice.plan import make_plan
    from thinslice.reports.report_page import Answer, write_figure, write_report_page

    check_outputs([Output(arguments.output / name, "`output`") for name in DEMO_FILES], [SAMPLE], overwrite=True)
    model = find_model(arguments.model)
    volume = read_scan(SAMPLE)
    plan = make_plan(volume, model=model.name, model_sha256=model.sha256, envelope=model.envelope)
    folder: Path = arguments.output
    with bar("demo", quiet=False) as show:
        thin, report, done = compute(volume, plan, model, folder / DEMO_FILES[0], show)
    answer = Answer(volume, thin, plan, model, report, done.fell_back)
    with all_or_none([folder / name for name in DEMO_FILES[:3]], overwrite=True) as (image, facts, picture):
        write(thin, image)
        report.save(facts)
        write_figure(picture, answer)
    with bar("demo: report", quiet=False) as show:
        write_report_page(folder / DEMO_FILES[3], answer, show)
    say(f"did       a real lumbar spine, T2, 0.5 T: {what_was_done(plan)}")
    say(f"measured  {report.seconds:.1f} s; {_agreement(report)}")
    say(f"wrote     {folder / DEMO_FILES[3]} (open this in a browser), and beside it {', '.join(DEMO_FILES[:3])}")
    return 0


# ---- enhance


def add_enhance(verbs: "argparse._SubParsersAction[Parser]") -> None:
    """``thinslice enhance`` and its options."""
    verb = add_verb(verbs, "enhance", enhance, "compute the thin slices of a scan, or of every scan in a folder")
    verb.add_argument(
        "-i", "--input", required=True, type=Path, metavar="IN", help=f"{SCAN}, a folder of them, or {DICOM}"
    )
    verb.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUT",
        help="file for a file, folder for a folder or for a new DICOM series; a file's name says the format",
    )
    add_plan_options(verb)
    verb.add_argument(
        "--labels",
        type=Path,
        metavar="SEG",
        help="segmentation on the scan's grid to bring along, written as OUT with _labels in its name; for a folder: "
        "a folder with segmentations of the scans' names; their format may be another",
    )
    verb.add_argument("--labels-out", type=Path, metavar="FILE", help="another name for it (one scan only)")
    verb.add_argument(
        "--report",
        metavar="HTML",
        help="also write a page to look at: acquired, cubic and computed side by side, how well they agree, where not "
        "to trust it; asks a network once more; a folder for several scans",
    )
    verb.add_argument(
        "--figure", metavar="PNG", help="also draw acquired, cubic and computed for a paper; a folder for several scans"
    )
    verb.add_argument(
        "--anonymise",
        action="store_true",
        help="DICOM: leave the patient's identity out (basic profile of PS3.15, headers only)",
    )
    verb.add_argument("--overwrite", action="store_true", help="replace answers that exist already")
    verb.add_argument("-q", "--quiet", action="store_true", help="say nothing unless something is refused")


def enhance(arguments: argparse.Namespace) -> int:
    """Compute thin slices; in a folder, a scan that is refused is named and the rest goes on."""
    from thinslice.io.outputs import find_scan_outputs, find_study
    from thinslice.models.registry import models_for

    study = find_study(arguments.input, Path(arguments.output))
    if study is not None:
        return _enhance_study(study, arguments)
    if arguments.anonymise:
        raise InputRefused("got --anonymise for files that are no DICOM; need a DICOM series; next: leave it out")
    cases = find_scan_outputs(arguments.input, arguments.output, arguments.overwrite)
    is_folder = arguments.input.is_dir()
    targets = [_labels_case(case, arguments, is_folder) for case in cases]
    _check_all_apart(cases, targets)
    _check_pages(cases, targets, arguments)
    choose = models_for(arguments.model)
    done = [_enhance_if_possible(case, labels, choose, arguments) for case, labels in zip(cases, targets, strict=True)]
    return how_many(done.count(False), len(cases), is_folder, pages=done.count(None))


def _enhance_study(study: "Study", arguments: argparse.Namespace) -> int:
    """Every series that can be made thinner; what cannot is named, with the reason."""
    from thinslice.io.outputs import find_series_outputs
    from thinslice.models.registry import models_for

    cases = find_series_outputs(study, arguments.input, arguments.output, arguments.overwrite, arguments.anonymise)
    labels = _labels_of_series(cases, arguments)
    _check_pages(cases, [labels], arguments)
    choose = models_for(arguments.model)
    for one in study.unusable:
        complain(f"{one.label}: {one.reason}")
    if not arguments.quiet:
        for note in study.notes:
            say(f"note: {note}")
    done = [_enhance_if_possible(case, labels, choose, arguments) for case in cases]
    scans = len(cases) + len(study.unusable)
    return how_many(done.count(False) + len(study.unusable), scans, scans > 1, pages=done.count(None))


def _enhance_if_possible(
    case: "ScanOutput",
    labels: "tuple[Path, Path] | None",
    choose: "Callable[[Volume], Model]",
    arguments: argparse.Namespace,
) -> bool | None:
    """`_enhance_one`; False where the scan was refused, None where only its page failed, after saying why."""
    try:
        _enhance_one(case, labels, choose, arguments)
    except _PageFailed as error:
        complain(reason_of(error))
        return None
    except (ThinsliceError, OSError, MemoryError) as error:
        reason = reason_of(error)
        complain(reason if labels is not None and str(labels[0]) in reason else named(case.name, reason))
        return False
    return True


def _enhance_one(
    case: "ScanOutput",
    labels: "tuple[Path, Path] | None",
    choose: "Callable[[Volume], Model]",
    arguments: argparse.Namespace,
) -> None:
    """Read, plan, compute, check, and put all files in their places, or none of them."""
    from dataclasses import replace
    from functools import partial

    from thinslice.api import compute, write_answer
    from thinslice.compute.labels import check_labels

    volume = _read_case(case, arguments.anonymise)
    model = choose(volume)
    plan = plan_for(volume, model, arguments)
    drawn = read_scan(labels[0]) if labels is not None else None
    if drawn is not None:
        check_labels(drawn, plan)
        drawn = replace(drawn, header=None) if arguments.anonymise else drawn  # a header may name the patient
    with bar(case.name, arguments.quiet) as show:
        thin, report, done = compute(volume, plan, model, case.destination, show)
    report = replace(report, source="" if arguments.anonymise else case.name)
    beside: dict[Path, Callable[[Path], None]] = {}
    if labels is not None and drawn is not None:
        beside[labels[1]] = partial(_write_labels, drawn, plan)
    write_answer(case, thin, volume, report, beside, arguments.anonymise)
    if not arguments.quiet:
        say(f"{case.name}: {what_was_done(plan)}, {report.seconds:.1f} s")
        say(f"  {_agreement(report)}")
        for note in report.notes:
            say(f"  note: {note}")
        say(f"  wrote {' and '.join(map(str, [case.destination, *(labels[1:] if labels else [])]))}")
    if arguments.report or arguments.figure:
        from thinslice.reports.report_page import Answer

        _explain(case, Answer(volume, thin, plan, model, report, done.fell_back), arguments)


def _read_case(case: "ScanOutput", anonymise: bool) -> "Volume":
    if case.series is None:
        return read_scan(case.source)
    from thinslice.io.dicom.identity import check_can_hide
    from thinslice.io.dicom.pixels import read_series

    if anonymise:
        check_can_hide(case.series)
    return read_series(case.series)


# ---- labels


def _labels_of_series(cases: "Sequence[ScanOutput]", arguments: argparse.Namespace) -> "tuple[Path, Path] | None":
    """The segmentation of the only series, and where its answer goes; None without --labels."""
    from thinslice.io.outputs import LABELS_NAME

    if arguments.labels is None or (len(cases) == 1 and not cases[0].is_into_series):
        return _labels_case(cases[0], arguments, is_folder=False) if cases else None
    if len(cases) != 1:
        raise InputRefused(
            f"{arguments.input}: got --labels for {len(cases)} series; need one; next: name the folder of one series"
        )
    target = arguments.labels_out or cases[0].destination / LABELS_NAME
    _check_labels_target(target, cases[0], arguments.labels, arguments.overwrite)
    return arguments.labels, target


def _labels_case(case: "ScanOutput", arguments: argparse.Namespace, is_folder: bool) -> "tuple[Path, Path] | None":
    """The segmentation of a scan, and where its answer goes; None without --labels."""
    from thinslice.io.outputs import find_namesake

    if arguments.labels is None:
        if arguments.labels_out is not None:
            raise InputRefused("got --labels-out without --labels; need both; next: give --labels, or leave both out")
        return None
    if is_folder and arguments.labels_out is not None:
        raise OutputRefused("got --labels-out for a folder of scans; need one scan; next: leave it out")
    source = find_namesake(arguments.labels, case.source) if arguments.labels.is_dir() else arguments.labels
    if is_folder and not arguments.labels.is_dir():
        raise InputRefused(f"{source}: got one segmentation for a folder of scans; need a folder; next: give a folder")
    target = arguments.labels_out or _with_labels(case.destination)
    _check_labels_target(target, case, source, arguments.overwrite)
    return source, target


def _with_labels(path: Path) -> Path:
    """scan.nii.gz -> scan_labels.nii.gz, and so with other endings."""
    from thinslice.io.formats import stem_of

    return path.with_name(f"{stem_of(path)}_labels{path.name[len(stem_of(path)) :]}")


def _check_labels_target(target: Path, case: "ScanOutput", source: Path, overwrite: bool) -> None:
    from thinslice.io.formats import check_name

    check_name(target)
    inputs = {os.path.realpath(path) for path in (case.source, source)}
    if inputs & {os.path.realpath(path) for path in (target, case.destination, case.sidecar)}:
        raise OutputRefused(f"{target}: got an output that is an input; need another place; next: choose another name")
    if os.path.realpath(target) in {os.path.realpath(path) for path in (case.destination, case.sidecar)}:
        raise OutputRefused(f"{target}: got one name for two outputs; need two; next: change --labels-out")
    if target.is_dir() or (os.path.lexists(target) and not overwrite):
        raise OutputRefused(f"{target}: got an output that exists already; next: choose another, or add --overwrite")


def _check_all_apart(cases: "Sequence[ScanOutput]", targets: "Sequence[tuple[Path, Path] | None]") -> None:
    """No scan's labels take the place of another scan's answer, or of what went in."""
    taken = {os.path.realpath(path) for case in cases for path in (case.destination, case.sidecar, case.source)}
    for target in targets:
        if target is not None and os.path.realpath(target[1]) in taken:
            raise OutputRefused(
                f"{target[1]}: got one name for the labels of a scan and for another scan; need two; "
                "next: rename one of the scans, or move it to another folder"
            )


def _write_labels(drawn: "Volume", plan: "Plan", path: Path) -> None:
    from thinslice.compute.labels import interpolate_labels
    from thinslice.io.formats import write

    write(interpolate_labels(drawn, plan), path)


# ---- pages


class _PageFailed(OutputRefused):
    """A page or a figure could not be written; the scan that it is about has been."""


def _check_pages(
    cases: "Sequence[ScanOutput]", labels: "Sequence[tuple[Path, Path] | None]", arguments: argparse.Namespace
) -> None:
    """No page takes the place of a scan, of another page, or of what is there without --overwrite."""
    from thinslice.io.outputs import check_writable

    outputs = [path for case in cases for path in (case.source, case.destination, case.sidecar)]
    taken = {os.path.realpath(path) for path in (*outputs, *(path for pair in labels if pair for path in pair))}
    for case in cases:
        for option, page in _pages(case, arguments).items():
            suffix = {"--report": ".html", "--figure": ".png"}[option]
            if page.suffix.lower() not in (suffix, suffix[:-1] if suffix == ".html" else suffix):
                raise OutputRefused(f"{page}: got another kind of name for {option}; need {suffix}; next: change it")
            if case.is_into_series and os.path.realpath(page.parent) == os.path.realpath(case.destination):
                raise OutputRefused(
                    f"{page}: got a place for {option} among the slices of the new series; need another; next: name a "
                    "file or a folder beside it"
                )
            if os.path.realpath(page) in taken:
                raise OutputRefused(
                    f"{page}: got one name for {option} and another file; need two; next: name a folder for {option}, "
                    "or another file"
                )
            if page.is_dir() or (os.path.lexists(page) and not arguments.overwrite):
                raise OutputRefused(
                    f"{page}: got an output that exists already; need a free name; next: choose another, or give "
                    "--overwrite"
                )
            check_writable(page.parent)
            taken.add(os.path.realpath(page))


def _pages(case: "ScanOutput", arguments: argparse.Namespace) -> dict[str, Path]:
    """Option -> the file it asks for; in a folder it is called after the answer."""
    from thinslice.io.formats import stem_of

    wishes = {"--report": (arguments.report, ".html"), "--figure": (arguments.figure, ".png")}
    found = {}
    for option, (wish, suffix) in wishes.items():
        if wish is None:
            continue
        into_folder = Path(wish).is_dir() or wish.endswith(("/", os.sep)) or not Path(wish).suffix
        found[option] = Path(wish) / f"{stem_of(case.destination.absolute())}{suffix}" if into_folder else Path(wish)
    return found


def _explain(case: "ScanOutput", answer: "Answer", arguments: argparse.Namespace) -> None:
    """The page and the figure that were asked for; whatever happens to them, the answer has been written."""
    from thinslice.reports.report_page import write_figure, write_report_page

    pages = _pages(case, arguments)
    try:
        if "--report" in pages:
            with bar(f"{case.name}: report", arguments.quiet) as show:
                write_report_page(pages["--report"], answer, show)
        if "--figure" in pages:
            write_figure(pages["--figure"], answer)
    except Exception as error:  # whatever it is, it must not stop the scans that come next
        names = " and ".join(map(str, pages.values()))
        raise _PageFailed(f"{names}: {reason_of(error)}; the scan itself is whole: {case.destination}") from error
    if not arguments.quiet:
        say(f"  wrote {' and '.join(map(str, pages.values()))}")


# ---- words


def _agreement(report: "Report") -> str:
    """The consistency, and the guard where it stepped in."""
    found = report.consistency
    text = (
        f"re-sliced thick, it differs from the acquired slices by {found.rms_percent:.2g} % RMS, "
        f"{found.worst_percent:.2g} % at worst, of the intensity range"
    )
    return text + _fallback(report.guard)


def _fallback(guard: "GuardCount") -> str:
    return f"; {guard.percent} taken back to interpolation" if guard.suspect else ""
