"""The command line: one function per verb; the only place that prints.

Whatever is slow to import is imported by the verb that needs it, so that ``thinslice --help`` answers at once. Answers
go to standard output, refusals and the progress bar to standard error. Exit codes: 0 done, 2 refused, 130 interrupted.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from shlex import quote
from time import perf_counter
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, TextIO

from thinslice.errors import InputRefused, OutputRefused, ThinsliceError
from thinslice.files import all_or_none

if TYPE_CHECKING:
    from thinslice.batch import Progress
    from thinslice.cases import Case
    from thinslice.dataset import Found
    from thinslice.dicom.series import Study
    from thinslice.explain import Answer
    from thinslice.guard import GuardCount
    from thinslice.job import Outcome
    from thinslice.plan import Plan
    from thinslice.report import Report
    from thinslice.runtime import Model
    from thinslice.study import Scan
    from thinslice.study import Study as MadeStudy
    from thinslice.volume import Volume

SCAN = "scan: NIfTI (.nii, .nii.gz), FreeSurfer (.mgh, .mgz) or NRRD (.nrrd, .nhdr)"
DICOM = "DICOM (a series, a study)"

PROFILES = ("gaussian", "box")
GRIDS = ("fov", "centres")
"""As `thinslice.profile.PROFILES` and `thinslice.plan.GRIDS`, which would import numpy."""

SAMPLE = Path(__file__).parent / "sample" / "spine_t2_sag_thick_4p5mm.nii.gz"
"""The bundled scan: lumbar spine, T2, 0.5 T, slices 4.5 mm apart; CC0."""

DEMO_FILES = ("spine_thin.nii.gz", "spine_thin.json", "spine_thin.png", "spine_thin.html")

NO_GROUND_TRUTH = "no-ground-truth"
"""The recipe that learns from target scans (`thinslice.training.no_ground_truth`)."""

RECIPES = ("default", "default-large", "video-mr", "video-mr-average", "planes", "planes-paper", NO_GROUND_TRUTH)
"""As in `thinslice.training.recipes`, and that one."""

REFUSED, INTERRUPTED = 2, 130

_WAYS_OUT = {
    FileNotFoundError: ("a file or folder that is there", "check the name"),
    FileExistsError: ("a folder", "choose another place"),
    NotADirectoryError: ("a folder", "choose another place"),
    IsADirectoryError: ("a file", "choose another name"),
    PermissionError: ("permission there", "choose another place"),
}
"""What is needed and what to do next, for errors of the operating system that are not about room."""

_WHAT_STAYS = {
    "batch": "what is done stays; next: the same command goes on from there",
    "adapt": "next: the same command goes on from the last checkpoint in NAME.adapting, if there was one",
    "train": "next: --resume goes on from the last checkpoint, if there was one",
    "evaluate": "results.jsonl holds what was scored until then",
}
"""After an interruption, where it is not nothing."""

_EXTRAS = {"torch": "train", "onnx": "train", "scipy": "train", "av": "video"}
"""Which extra brings a package that is imported only where it is needed."""

BAR_CELLS = 30
_BAD = ("refused", "failed")
"""How a scan of a data set may end so that the exit code says so."""

LONGEST_WORDS = 60
"""Of the name of a summary, from the labels it is of."""

PATIENT_AXES = ("left-right", "front-back", "head-foot")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    Args:
        argv: the words after ``thinslice``; default: those this process was started with.
    """
    arguments = make_parser().parse_args(argv)
    verb: Callable[[argparse.Namespace], int] = arguments.verb
    try:
        with _terminated_as_interrupted():
            return verb(arguments)
    except KeyboardInterrupt:
        _complain(f"interrupted; {_WHAT_STAYS.get(verb.__name__, 'no unfinished file was left behind')}")
        return INTERRUPTED
    except BrokenPipeError:  # as in: thinslice info ... | head -1
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return REFUSED
    except (ThinsliceError, OSError, MemoryError) as error:
        _complain(_reason(error))
        return REFUSED


class _Parser(argparse.ArgumentParser):
    """Refuses in one line that says where help is."""

    def error(self, message: str) -> NoReturn:
        _complain(f"{message}; next: see '{self.prog} --help'")
        sys.exit(REFUSED)


class _Version(argparse.Action):
    """Looks the version up only when asked for it."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        _say(f"thinslice {version('thinslice')}")
        parser.exit()


def make_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(
        prog="thinslice",
        description="Turn thick-slice MR and CT scans into thin-slice ones, and check the answer.",
        epilog="Start with: thinslice demo",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_demo(verbs)
    _add_enhance(verbs)
    _add_batch(verbs)
    _add_info(verbs)
    _add_reslice(verbs)
    _add_view(verbs)
    _add_adapt(verbs)
    _add_train(verbs)
    _add_evaluate(verbs)
    _add_study(verbs)
    return parser


# ---- demo


def _add_demo(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    verb = _add_verb(verbs, "demo", demo, "enhance the bundled real thick scan and draw a picture of it")
    verb.add_argument("-o", "--output", type=Path, default=Path("thinslice-demo"), metavar="DIR", help="%(default)s")
    _add_model(verb)


def demo(arguments: argparse.Namespace) -> int:
    """Enhance the bundled scan; three lines: what was done, what was measured, where the files are."""
    from thinslice.api import compute
    from thinslice.explain import Answer, write_explanation, write_figure
    from thinslice.formats import write
    from thinslice.plan import make_plan
    from thinslice.weights import find_model

    model = find_model(arguments.model)
    volume = _read(SAMPLE)
    plan = make_plan(volume, model=model.name, model_sha256=model.sha256, envelope=model.envelope)
    folder: Path = arguments.output
    with _bar("demo", quiet=False) as show:
        thin, report, done = compute(volume, plan, model, folder / DEMO_FILES[0], show)
    answer = Answer(volume, thin, plan, model, report, done.fell_back)
    with all_or_none([folder / name for name in DEMO_FILES[:3]]) as (image, facts, picture):
        write(thin, image)
        report.save(facts)
        write_figure(picture, answer)
    with _bar("demo: report", quiet=False) as show:
        write_explanation(folder / DEMO_FILES[3], answer, show)
    _say(f"did       a real lumbar spine, T2, 0.5 T: {_what_was_done(plan)}")
    _say(f"measured  {report.seconds:.1f} s; {_agreement(report)}")
    _say(f"wrote     {folder / DEMO_FILES[3]} (open this in a browser), and beside it {', '.join(DEMO_FILES[:3])}")
    return 0


# ---- enhance


def _add_enhance(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    verb = _add_verb(verbs, "enhance", enhance, "compute the thin slices of a scan, or of every scan in a folder")
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
    _add_plan_options(verb)
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
    from thinslice.cases import find_cases, find_study
    from thinslice.weights import models_for

    study = find_study(arguments.input, Path(arguments.output))
    if study is not None:
        return _enhance_study(study, arguments)
    if arguments.anonymise:
        raise InputRefused("got --anonymise for files that are no DICOM; need a DICOM series; next: leave it out")
    cases = find_cases(arguments.input, arguments.output, arguments.overwrite)
    is_folder = arguments.input.is_dir()
    targets = [_labels_case(case, arguments, is_folder) for case in cases]
    _check_all_apart(cases, targets)
    _check_pages(cases, targets, arguments)
    choose = models_for(arguments.model)
    done = [_enhance_if_possible(case, labels, choose, arguments) for case, labels in zip(cases, targets, strict=True)]
    return _how_many(done.count(False), len(cases), is_folder, pages=done.count(None))


def _how_many(refused: int, scans: int, is_folder: bool, done: str = "enhanced", pages: int = 0) -> int:
    """Says how many scans of a folder were refused, and how many pages failed; the exit code."""
    if (refused or pages) and is_folder:
        failed = f", {pages} without the page asked for" if pages else ""
        _complain(f"{refused} of {scans} scans refused, {scans - refused} {done}{failed}")
    return REFUSED if refused or pages else 0


def _enhance_study(study: "Study", arguments: argparse.Namespace) -> int:
    """Every series that can be made thinner; what cannot is named, with the reason."""
    from thinslice.cases import find_series_cases
    from thinslice.weights import models_for

    cases = find_series_cases(study, arguments.input, arguments.output, arguments.overwrite, arguments.anonymise)
    labels = _labels_of_series(cases, arguments)
    _check_pages(cases, [labels], arguments)
    choose = models_for(arguments.model)
    for one in study.unusable:
        _complain(f"{one.label}: {one.reason}")
    if not arguments.quiet:
        for note in study.notes:
            _say(f"note: {note}")
    done = [_enhance_if_possible(case, labels, choose, arguments) for case in cases]
    scans = len(cases) + len(study.unusable)
    return _how_many(done.count(False) + len(study.unusable), scans, scans > 1, pages=done.count(None))


def _labels_of_series(cases: "Sequence[Case]", arguments: argparse.Namespace) -> "tuple[Path, Path] | None":
    """The segmentation of the only series, and where its answer goes; None without --labels."""
    from thinslice.cases import LABELS_NAME

    if arguments.labels is None or (len(cases) == 1 and not cases[0].into_series):
        return _labels_case(cases[0], arguments, is_folder=False) if cases else None
    if len(cases) != 1:
        raise InputRefused(
            f"{arguments.input}: got --labels for {len(cases)} series; need one; next: name the folder of one series"
        )
    target = arguments.labels_out or cases[0].destination / LABELS_NAME
    _check_labels_target(target, cases[0], arguments.labels, arguments.overwrite)
    return arguments.labels, target


def _labels_case(case: "Case", arguments: argparse.Namespace, is_folder: bool) -> "tuple[Path, Path] | None":
    """The segmentation of a scan, and where its answer goes; None without --labels."""
    from thinslice.cases import find_namesake

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


def _check_all_apart(cases: "Sequence[Case]", targets: "Sequence[tuple[Path, Path] | None]") -> None:
    """No scan's labels take the place of another scan's answer, or of what went in."""
    taken = {os.path.realpath(path) for case in cases for path in (case.destination, case.sidecar, case.source)}
    for target in targets:
        if target is not None and os.path.realpath(target[1]) in taken:
            raise OutputRefused(
                f"{target[1]}: got one name for the labels of a scan and for another scan; need two; "
                "next: rename one of the scans, or move it to another folder"
            )


def _with_labels(path: Path) -> Path:
    """scan.nii.gz -> scan_labels.nii.gz, and so with other endings."""
    from thinslice.volume import stem_of

    return path.with_name(f"{stem_of(path)}_labels{path.name[len(stem_of(path)) :]}")


def _check_labels_target(target: Path, case: "Case", source: Path, overwrite: bool) -> None:
    from thinslice.formats import check_name

    check_name(target)
    inputs = {os.path.realpath(path) for path in (case.source, source)}
    if inputs & {os.path.realpath(path) for path in (target, case.destination, case.sidecar)}:
        raise OutputRefused(f"{target}: got an output that is an input; need another place; next: choose another name")
    if os.path.realpath(target) in {os.path.realpath(path) for path in (case.destination, case.sidecar)}:
        raise OutputRefused(f"{target}: got one name for two outputs; need two; next: change --labels-out")
    if target.is_dir() or (os.path.lexists(target) and not overwrite):
        raise OutputRefused(f"{target}: got an output that exists already; next: choose another, or add --overwrite")


def _enhance_if_possible(
    case: "Case",
    labels: "tuple[Path, Path] | None",
    choose: "Callable[[Volume], Model]",
    arguments: argparse.Namespace,
) -> bool | None:
    """`_enhance_one`; False where the scan was refused, None where only its page failed, after saying why."""
    try:
        _enhance_one(case, labels, choose, arguments)
    except _PageFailed as error:
        _complain(_reason(error))
        return None
    except (ThinsliceError, OSError, MemoryError) as error:
        reason = _reason(error)
        _complain(reason if labels is not None and str(labels[0]) in reason else _named(case.name, reason))
        return False
    return True


def _enhance_one(
    case: "Case",
    labels: "tuple[Path, Path] | None",
    choose: "Callable[[Volume], Model]",
    arguments: argparse.Namespace,
) -> None:
    """Read, plan, compute, check, and put all files in their places, or none of them."""
    from dataclasses import replace
    from functools import partial

    from thinslice.api import compute, write_answer
    from thinslice.labels import check_labels

    volume = _read_case(case, arguments.anonymise)
    model = choose(volume)
    plan = _plan(volume, model, arguments)
    drawn = _read(labels[0]) if labels is not None else None
    if drawn is not None:
        check_labels(drawn, plan)
        drawn = replace(drawn, header=None) if arguments.anonymise else drawn  # a header may name the patient
    with _bar(case.name, arguments.quiet) as show:
        thin, report, done = compute(volume, plan, model, case.destination, show)
    report = replace(report, source="" if arguments.anonymise else case.name)
    beside: dict[Path, Callable[[Path], None]] = {}
    if labels is not None and drawn is not None:
        beside[labels[1]] = partial(_write_labels, drawn, plan)
    write_answer(case, thin, volume, report, beside, arguments.anonymise)
    if not arguments.quiet:
        _say(f"{case.name}: {_what_was_done(plan)}, {report.seconds:.1f} s")
        _say(f"  {_agreement(report)}")
        for note in report.notes:
            _say(f"  note: {note}")
        _say(f"  wrote {' and '.join(map(str, [case.destination, *(labels[1:] if labels else [])]))}")
    if arguments.report or arguments.figure:
        from thinslice.explain import Answer

        _explain(case, Answer(volume, thin, plan, model, report, done.fell_back), arguments)


class _PageFailed(OutputRefused):
    """A page or a figure could not be written; the scan that it is about has been."""


def _write_labels(drawn: "Volume", plan: "Plan", path: Path) -> None:
    from thinslice.formats import write
    from thinslice.labels import labels_to_thin

    write(labels_to_thin(drawn, plan), path)


def _explain(case: "Case", answer: "Answer", arguments: argparse.Namespace) -> None:
    """The page and the figure that were asked for; whatever happens to them, the answer has been written."""
    from thinslice.explain import write_explanation, write_figure

    pages = _pages(case, arguments)
    try:
        if "--report" in pages:
            with _bar(f"{case.name}: report", arguments.quiet) as show:
                write_explanation(pages["--report"], answer, show)
        if "--figure" in pages:
            write_figure(pages["--figure"], answer)
    except Exception as error:  # whatever it is, it must not stop the scans that come next
        names = " and ".join(map(str, pages.values()))
        raise _PageFailed(f"{names}: {_reason(error)}; the scan itself is whole: {case.destination}") from error
    if not arguments.quiet:
        _say(f"  wrote {' and '.join(map(str, pages.values()))}")


def _pages(case: "Case", arguments: argparse.Namespace) -> dict[str, Path]:
    """Option -> the file it asks for; in a folder it is called after the answer."""
    from thinslice.volume import stem_of

    wishes = {"--report": (arguments.report, ".html"), "--figure": (arguments.figure, ".png")}
    found = {}
    for option, (wish, suffix) in wishes.items():
        if wish is None:
            continue
        into_folder = Path(wish).is_dir() or wish.endswith(("/", os.sep)) or not Path(wish).suffix
        found[option] = Path(wish) / f"{stem_of(case.destination.absolute())}{suffix}" if into_folder else Path(wish)
    return found


def _check_pages(
    cases: "Sequence[Case]", labels: "Sequence[tuple[Path, Path] | None]", arguments: argparse.Namespace
) -> None:
    """No page takes the place of a scan, of another page, or of what is there without --overwrite."""
    from thinslice.cases import check_writable

    outputs = [path for case in cases for path in (case.source, case.destination, case.sidecar)]
    taken = {os.path.realpath(path) for path in (*outputs, *(path for pair in labels if pair for path in pair))}
    for case in cases:
        for option, page in _pages(case, arguments).items():
            suffix = {"--report": ".html", "--figure": ".png"}[option]
            if page.suffix.lower() not in (suffix, suffix[:-1] if suffix == ".html" else suffix):
                raise OutputRefused(f"{page}: got another kind of name for {option}; need {suffix}; next: change it")
            if case.into_series and os.path.realpath(page.parent) == os.path.realpath(case.destination):
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


def _read_case(case: "Case", anonymise: bool) -> "Volume":
    if case.series is None:
        return _read(case.source)
    from thinslice.dicom.identity import check_can_hide
    from thinslice.dicom.pixels import read_series

    if anonymise:
        check_can_hide(case.series)
    return read_series(case.series)


# ---- batch


def _add_batch(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    verb = _add_verb(
        verbs, "batch", batch, "enhance a whole data set, on one machine or many; goes on where it stopped"
    )
    verb.add_argument("bids", nargs="*", metavar="BIDS_DIR OUT_DIR participant", help="a BIDS data set; as a BIDS App")
    verb.add_argument("-i", "--input", type=Path, metavar="DIR", help="or any folder of scans, with all folders in it")
    verb.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder for the answers, which keep their paths")
    for option, example in (("--participant-label", "01"), ("--session-label", "1"), ("--suffix", "T2w")):
        names = [option, option.replace("-label", "_label")] if "-label" in option else [option]
        verb.add_argument(*names, nargs="+", metavar=example, help="BIDS: only these; default: all")
    _add_plan_options(verb)
    where = verb.add_mutually_exclusive_group()
    where.add_argument(
        "--workers", type=_positive(int), metavar="N", help="processes; default: as many as cores and memory allow"
    )
    where.add_argument("--scheduler", metavar="tcp://HOST:PORT", help="use the workers of this Dask scheduler")
    verb.add_argument(
        "--threads",
        type=_positive(int),
        metavar="N",
        help="of a worker; default: all cores, shared out; 1 of --scheduler",
    )
    verb.add_argument(
        "--shard",
        metavar="I/N",
        help="do the I-th of N parts, counted from 1; default: the place of this task in a Slurm array, else all",
    )
    verb.add_argument(
        "--allowed-failures",
        type=_whole,
        default=1,
        metavar="N",
        help="deaths of a process that a scan may cause before it is set aside, to be tried alone (default: 1)",
    )
    verb.add_argument("--reports", action="store_true", help="also write a page for every scan; takes twice as long")
    verb.add_argument("--overwrite", action="store_true", help="compute again what is done, replace other files")
    verb.add_argument("-q", "--quiet", action="store_true", help="say nothing unless something is refused")


def batch(arguments: argparse.Namespace) -> int:
    """Enhance a data set; what was done earlier is kept, and what is refused or fails is named at the end."""
    from thinslice import batch as engine
    from thinslice.bids import write_description
    from thinslice.job import Outcome
    from thinslice.overview import make_table, write_overview

    _check_form(arguments)
    _check_numbers(arguments)
    engine.check_installed()
    cores, memory_bytes = engine.cores_and_bytes()
    workers = arguments.workers or engine.choose_workers(cores, memory_bytes)
    index, count = engine.read_shard(arguments.shard, os.environ)
    threads = arguments.threads or (1 if arguments.scheduler else max(1, cores // workers))
    found = _find_data_set(arguments, threads, (index, count))
    workers = min(workers, max(1, len(found.jobs)))
    started = perf_counter()
    outcomes = list(found.failed)
    for one in outcomes:
        _complain(_named(one.name, one.reason))
    page = arguments.output / f"{_summary_name(arguments, index, count)}.html"

    def sum_up() -> None:
        seconds = perf_counter() - started
        if arguments.bids and any(one.state in ("done", "kept") for one in outcomes):
            model = found.jobs[0]
            write_description(arguments.input, arguments.output, Path(model.wish.model).name, model.model_sha256)
        write_overview(arguments.output, page.stem, found.jobs, outcomes, seconds)
        if not arguments.quiet:
            for line in make_table(outcomes, seconds):
                _say(line)
            _say(f"wrote {page} (open it in a browser) and {page.stem}.tsv beside it")

    try:
        with _ProgressLines(arguments.quiet) as lines:

            def tell_workers(there: int) -> None:
                done = len(outcomes) - len(found.failed)
                hands = f"{there} worker{'s' if there > 1 else ''}"
                waiting = f"waiting for workers of {arguments.scheduler}"
                lines.say(f"{done} of {len(found.jobs)}, {hands if there else waiting}")

            def end(progress: "Progress") -> None:
                outcomes.append(progress.outcome)
                lines.after(progress)

            if found.jobs:
                where = engine.Engine(workers, arguments.scheduler, arguments.allowed_failures)
                engine.run(found.jobs, where, end, tell_workers)
    except (KeyboardInterrupt, InputRefused):
        if outcomes:
            reached = {one.name for one in outcomes}
            rest = [one.name for one in found.jobs if one.name not in reached]
            outcomes += [Outcome(name, "left", "the run ended before; next: run again") for name in rest]
            sum_up()
        raise
    sum_up()
    return REFUSED if any(one.state in _BAD for one in outcomes) else 0


def _summary_name(arguments: argparse.Namespace, index: int, count: int) -> str:
    """Runs of other participants, or of other parts of a data set, leave each other's summary alone."""
    labels = [f"sub-{label.removeprefix('sub-')}" for label in sorted(arguments.participant_label or ())]
    labels += [f"ses-{label.removeprefix('ses-')}" for label in sorted(arguments.session_label or ())]
    words = "-".join([*labels, *sorted(arguments.suffix or ())])
    if len(words) > LONGEST_WORDS:
        words = f"{words[: LONGEST_WORDS - 9]}-{sha256(words.encode(errors='replace')).hexdigest()[:8]}"
    part = f"{index}-of-{count}" if count > 1 else ""
    return "-".join(word for word in ("summary", words, part) if word)


def _check_form(arguments: argparse.Namespace) -> None:
    """BIDS_DIR OUT_DIR participant, or -i and -o; the former becomes the latter."""
    of_bids = {
        "--participant-label": arguments.participant_label,
        "--session-label": arguments.session_label,
        "--suffix": arguments.suffix,
    }
    if not arguments.bids:
        if arguments.input is None or arguments.output is None:
            raise InputRefused("got no data set; need -i DIR -o DIR, or BIDS_DIR OUT_DIR participant; next: name them")
        for option, value in of_bids.items():
            if value:
                raise InputRefused(f"got {option} for a folder of scans; need a BIDS data set; next: leave it out")
    elif len(arguments.bids) != 3 or arguments.bids[2] != "participant" or arguments.input or arguments.output:
        got = " ".join(arguments.bids)
        raise InputRefused(f"got {got}; need BIDS_DIR OUT_DIR participant, without -i and -o; next: correct it")
    else:
        arguments.input, arguments.output = Path(arguments.bids[0]), Path(arguments.bids[1])
    arguments.input, arguments.output = arguments.input.absolute(), arguments.output.absolute()  # workers are elsewhere


def _check_numbers(arguments: argparse.Namespace) -> None:
    """What can be right for no scan is refused once, not for each."""
    least = {"--spacing": 0.0, "--factor": 1.0, "--thickness": 0.0, "--in-plane": 0.0}
    for option, limit in least.items():
        value = getattr(arguments, option.removeprefix("--").replace("-", "_"))
        if value is not None and not limit < value < float("inf"):
            raise InputRefused(
                f"got {option} {value:g}; need a number above {limit:g}; next: correct it or leave it out"
            )


def _find_data_set(arguments: argparse.Namespace, threads: int, part: tuple[int, int]) -> "Found":
    """The scans of this shard."""
    from thinslice.bids import SUFFIXES, Choice
    from thinslice.dataset import Orders, apart_by_series, find_in_bids, find_in_folder, shard
    from thinslice.job import Wish, hash_of_model
    from thinslice.weights import known_names

    wish = Wish(
        model=arguments.model if arguments.model in known_names() else str(Path(arguments.model).absolute()),
        spacing_mm=arguments.spacing,
        factor=arguments.factor,
        thickness_mm=arguments.thickness,
        profile=arguments.profile,
        grid=arguments.grid,
        in_plane=arguments.in_plane,
        fuse=arguments.fuse,
        projection=not arguments.no_projection,
    )
    orders = Orders(wish, hash_of_model(wish.model), arguments.reports, arguments.overwrite, threads)
    if not arguments.bids:
        found = shard(find_in_folder(arguments.input, arguments.output, orders), *part)
        return apart_by_series(found, arguments.input, arguments.output)
    choice = Choice(arguments.participant_label, arguments.session_label, arguments.suffix or SUFFIXES)
    found = find_in_bids(arguments.input, arguments.output, choice, orders)
    return shard(found, *part)


class _ProgressLines:
    """One line a scan; on a terminal also how far it is, on a last line that is wiped at the end."""

    def __init__(self, quiet: bool) -> None:
        self.quiet, self.on_terminal = quiet, sys.stderr.isatty() and not quiet

    def __enter__(self) -> "_ProgressLines":
        return self

    def __exit__(self, *_: object) -> None:
        self._draw("")

    def say(self, text: str) -> None:
        """A line that stays."""
        self._draw("")
        if not self.quiet:
            _say(_in_one_line(text))

    def after(self, progress: "Progress") -> None:
        """What became of a scan, and how far it is."""
        self.say(f"{progress.done}/{progress.scans} {_outcome_line(progress.outcome)}")
        if progress.outcome.state in _BAD:
            _complain(_named(progress.outcome.name, progress.outcome.reason))
        share = progress.done / progress.scans
        bar = "#" * round(share * BAR_CELLS)
        left = "" if progress.seconds_left is None else f", about {_duration(progress.seconds_left)} left"
        self._draw(f"[{bar.ljust(BAR_CELLS, '.')}] {progress.done} of {progress.scans}{left}")

    def _draw(self, line: str) -> None:
        if self.on_terminal:
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()


def _outcome_line(one: "Outcome") -> str:
    from thinslice.overview import WORDS

    if one.rms_percent is None:
        return f"{one.name}: {WORDS[one.state]}" + (f" ({one.reason})" if one.state == "thin" else "")
    seconds = f", {one.seconds:.1f} s" if one.state == "done" else ""
    return f"{one.name}: {WORDS[one.state]}, {one.slices}{seconds}, agrees to {one.rms_percent:.2g} % RMS"


def _duration(seconds: float) -> str:
    """In the unit that a person would use."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


# ---- info


def _add_info(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    verb = _add_verb(verbs, "info", info, "say what a scan is and what enhance would do, or why it would refuse")
    verb.add_argument("-i", "--input", required=True, type=Path, metavar="IN", help=f"{SCAN}, or a folder of them")
    _add_plan_options(verb)
    verb.add_argument("--json", action="store_true", help="as JSON: an object, or a list of them for a folder")


def info(arguments: argparse.Namespace) -> int:
    """What a scan is and what would be done to it; exit code 2 where it would be refused."""
    from functools import partial

    from thinslice.cases import find_study
    from thinslice.weights import models_for

    choose = models_for(arguments.model)
    study = find_study(arguments.input)
    if study is None:
        facts = [_facts(str(path), partial(_read, path), choose, arguments) for path in _sources(arguments.input)]
    else:
        facts = _facts_of_study(study, choose, arguments)
        for note in () if arguments.json else study.notes:
            _say(f"note: {note}")
    if arguments.json:
        _say(json.dumps(facts if arguments.input.is_dir() or len(facts) != 1 else facts[0], indent=2))
    for fact in facts:
        if not arguments.json:
            _describe(fact)
        if fact["refused"] is not None:
            name = str(fact["source"]) if "folder" in fact else Path(str(fact["source"])).name
            _complain(_named(name, str(fact["refused"])))
    return REFUSED if any(fact["refused"] is not None for fact in facts) else 0


def _facts_of_study(
    study: "Study", choose: "Callable[[Volume], Model]", arguments: argparse.Namespace
) -> list[dict[str, object]]:
    """`_facts` of every series, and of what cannot be read as one."""
    from functools import partial

    from thinslice.dicom.pixels import read_series

    facts = [
        _facts(one.label, partial(read_series, one), choose, arguments) | {"folder": str(one.folder)}
        for one in study.series
    ]
    return facts + [
        {"source": one.label, "sees": None, "plan": None, "refused": one.reason, "folder": str(one.folder)}
        for one in study.unusable
    ]


def _facts(
    name: str, read: "Callable[[], Volume]", choose: "Callable[[Volume], Model]", arguments: argparse.Namespace
) -> dict[str, object]:
    """What is seen in a scan (None where it cannot be read), the plan (None where refused), and the refusal."""
    import dataclasses

    seen: dict[str, object] | None = None
    try:
        volume = read()
        seen = _seen(volume)
        plan = dataclasses.asdict(_plan(volume, choose(volume), arguments))
    except (ThinsliceError, OSError, MemoryError) as error:
        return {"source": name, "sees": seen, "plan": None, "refused": _reason(error)}
    return {"source": name, "sees": seen, "plan": plan, "refused": None}


def _seen(volume: "Volume") -> dict[str, object]:
    import numpy as np

    from thinslice.plan import through_plane_axis

    axis = through_plane_axis(volume)
    direction = np.abs(volume.affine[:3, axis]).argmax()
    return {
        "shape": list(volume.voxels.shape),
        "spacing_mm": list(volume.spacing_mm),
        "dtype": str(volume.voxels.dtype),
        "axis": axis,
        "direction": PATIENT_AXES[int(direction)],
        "thickness_mm": volume.thickness_mm,
        "notes": list(volume.notes),
    }


def _describe(fact: dict[str, object]) -> None:
    """The facts about one file as a few aligned lines."""
    from thinslice.plan import Plan

    _say(f"scan   {fact['source']}" + (f"  ({fact['folder']})" if "folder" in fact else ""))
    seen = fact["sees"]
    if isinstance(seen, dict):
        spacing = " x ".join(f"{mm:.4g}" for mm in seen["spacing_mm"])
        _say(f"sees   {' x '.join(map(str, seen['shape']))} voxels of {spacing} mm, {seen['dtype']}")
        thickness = "not stated" if seen["thickness_mm"] is None else f"{seen['thickness_mm']:g} mm"
        _say(f"       slices along axis {seen['axis']} ({seen['direction']}); slice thickness: {thickness}")
    if isinstance(fact["plan"], dict):
        plan = Plan(**fact["plan"])
        slab = f"{plan.profile} profile of {plan.thickness_mm:.4g} mm"
        kept = "field of view" if plan.grid == "fov" else "outer slice centres"
        _say(f"would  {_what_was_done(plan)}")
        _say(f"       factor {plan.factor:.4g}, {slab}, same {kept}, {'' if plan.projection else 'not '}projected")
    notes = fact["plan"]["notes"] if isinstance(fact["plan"], dict) else seen["notes"] if isinstance(seen, dict) else ()
    for note in notes:
        _say(f"note: {note}")
    if fact["refused"] is not None:
        _say("would  refuse")


# ---- reslice


def _add_reslice(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    verb = _add_verb(verbs, "reslice", reslice, "bring a thin scan or segmentation back onto the acquired slices")
    verb.add_argument("-i", "--input", required=True, type=Path, metavar="THIN", help="scan or segmentation")
    verb.add_argument("--like", required=True, type=Path, metavar="THICK", help="the scan whose grid is wanted")
    verb.add_argument("-o", "--output", required=True, metavar="OUT", help="file or folder")
    kind = verb.add_mutually_exclusive_group()
    kind.add_argument("--labels", action="store_true", help="THIN is a segmentation: majority instead of mean")
    kind.add_argument("--image", action="store_true", help="THIN is an image; default: seen from its voxels")
    verb.add_argument(
        "--thickness",
        type=float,
        metavar="MM",
        help="slice thickness; default: that of the plan beside THIN, else SliceThickness of the JSON beside THICK, "
        "else its slice spacing",
    )
    verb.add_argument(
        "--profile", choices=PROFILES, help="slice profile; default: that of the plan beside THIN, else gaussian"
    )
    verb.add_argument("--overwrite", action="store_true", help="replace OUT if it exists already")


def reslice(arguments: argparse.Namespace) -> int:
    """Bring a thin image or segmentation onto the grid of a thick scan."""
    from thinslice.cases import find_reslice_case
    from thinslice.formats import write
    from thinslice.report import plan_beside
    from thinslice.reslice import looks_like_labels
    from thinslice.reslice import reslice as to_thick

    thin, like = _read(arguments.input), _read(arguments.like)
    case = find_reslice_case(arguments.input, arguments.output, arguments.overwrite)
    if os.path.realpath(case.destination) == os.path.realpath(arguments.like):
        raise OutputRefused(f"{case.destination}: got an output that is an input; next: choose another")
    plan = plan_beside(arguments.input)
    thickness_mm = arguments.thickness if arguments.thickness is not None or plan is None else plan.thickness_mm
    profile = arguments.profile or (plan.profile if plan is not None else "gaussian")
    labels = arguments.labels or (not arguments.image and looks_like_labels(thin))
    padding = plan.padding if plan is not None else None
    thick = to_thick(thin, like, thickness_mm=thickness_mm, profile=profile, labels=labels, padding=padding)
    with all_or_none([case.destination]) as (part,):
        write(thick, part)
    how = "segmentation, majority" if labels else "image, mean"
    _say(f"{case.source.name}: {how} under a {profile} profile of {thick.thickness_mm:.4g} mm -> {case.destination}")
    if labels and not arguments.labels:
        _say("  note: taken for a segmentation, its voxels form regions of equal numbers; --image if it is an image")
    return 0


# ---- view


def _add_view(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    verb = _add_verb(verbs, "view", view, "write a page on which two scans are compared in a browser, offline")
    verb.add_argument("acquired", type=Path, metavar="A", help=f"{SCAN}, {DICOM}; shown as it was acquired")
    verb.add_argument("other", type=Path, metavar="B", help="another scan of the same patient space, on any grid")
    verb.add_argument("-o", "--output", type=Path, metavar="OUT", help="the page; default: A-B.html, here")
    verb.add_argument("--overwrite", action="store_true", help="replace OUT if it exists already")


def view(arguments: argparse.Namespace) -> int:
    """Put two scans onto one page."""
    from thinslice.cases import told_apart
    from thinslice.page import find_page, view_page

    acquired, other = arguments.acquired, arguments.other
    target = find_page(arguments.output, acquired, other, arguments.overwrite)
    names = told_apart([acquired, other])
    view_page(target, [(names[path], _read(path)) for path in (acquired, other)])
    _say(f"{names[acquired]} and {names[other]} -> {target} (open it in a browser)")
    return 0


# ---- adapt


def _add_adapt(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    verb = _add_verb(verbs, "adapt", adapt, "adapt the model to your own thick scans; no thin truth is needed")
    verb.add_argument("-i", "--input", required=True, type=Path, nargs="+", metavar="SCANS", help="files, folders")
    verb.add_argument(
        "-o", "--output", required=True, type=Path, metavar="NAME", help="the model, for --model NAME; in NAME.onnx"
    )
    verb.add_argument(
        "--minutes", type=_positive(float), default=10.0, metavar="M", help="length of one adaptation (default: 10)"
    )
    verb.add_argument(
        "--per-scan",
        action="store_true",
        help="adapt to every scan by itself: NAME is a folder then, and --model NAME takes each scan's own",
    )
    verb.add_argument("--model", default="default", metavar="MODEL", help="model to start from (default: default)")
    _add_acquisition(verb)
    again = verb.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="finish what is unfinished, keep what is there")
    again.add_argument("--overwrite", action="store_true", help="replace a model, or unfinished work, of that name")
    verb.add_argument("-q", "--quiet", action="store_true", help="say nothing unless a scan is left out")


def adapt(arguments: argparse.Namespace) -> int:
    """Adapt a model to thick scans; where the held-out loss does not fall, the answer is the starting model."""
    with _training_installed():
        from thinslice.training.adapt import adapt as to_adapt

        paths = _sources_of_all(arguments.input)
        done = to_adapt(
            paths,
            arguments.output,
            start=arguments.model,
            minutes=arguments.minutes,
            per_scan=arguments.per_scan,
            resume=arguments.resume,
            overwrite=arguments.overwrite,
            spacing_mm=arguments.spacing,
            factor=arguments.factor,
            thickness_mm=arguments.thickness,
            profile=arguments.profile or "gaussian",
            report=_hear_nothing if arguments.quiet else _say,
            complain=_complain,
        )
    if arguments.quiet:
        return 0
    for one in done:
        before, after = one.held_out
        loss = f"held-out loss {before:.5f} -> {after:.5f} ({100 * (after / before - 1):+.1f} %)"
        verdict = loss if one.adapted else "the losses did not fall enough: this is the starting model, unchanged"
        _say(f"{', '.join(one.scans)}: {one.steps} steps in {one.minutes:.1f} min; {verdict}")
        _say(f"  {'wrote' if one.new else 'left as it was:'} {one.model}")
    name = arguments.output.with_suffix("") if arguments.output.suffix == ".onnx" else arguments.output
    _say(f"use it: thinslice enhance --model {quote(str(name))} -i IN -o OUT")
    return 0


def _hear_nothing(line: str) -> None:
    """Where nothing shall be said."""


def _sources_of_all(wishes: Sequence[Path]) -> list[Path]:
    """The scans at some paths, each once."""
    from thinslice.cases import told_apart

    labels = told_apart(wishes)
    return list(dict.fromkeys(path for wish in labels for path in _sources_or_none(wish, labels[wish])))


def _sources_or_none(path: Path, label: str) -> list[Path]:
    """The scans at a path; none, after saying why, where there are none."""
    try:
        return _sources(path)
    except InputRefused as refusal:
        _complain(f"{label}: left out: {str(refusal).removeprefix(f'{path}: ')}")
        return []


@contextmanager
def _training_installed() -> Iterator[None]:
    """Says how to install what a training needs and does not find."""
    try:
        with _uninterrupted():  # an import that is cut off half way is not repaired by another
            import thinslice.training.recipes  # noqa: F401
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRAS:
            raise
        raise InputRefused(
            f"training needs {missing}, which is not installed; next: pip install 'thinslice[{_EXTRAS[missing]}]'"
        ) from None


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Puts Ctrl-C and SIGTERM off until the end."""
    came: list[int] = []
    with _handled(lambda number, _: came.append(number), signal.SIGINT, signal.SIGTERM):
        yield
    if came:
        raise KeyboardInterrupt


# ---- train


def _add_train(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    verb = _add_verb(verbs, "train", train, "run a training recipe; ends with a model file for --model")
    verb.add_argument("recipe", metavar="RECIPE", help=f"one of {', '.join(RECIPES)}")
    verb.add_argument("--data", type=Path, metavar="DIR", help="folder with the recipe's source folders")
    verb.add_argument(
        "--target", type=Path, nargs="+", metavar="SCANS", help="no-ground-truth: thick scans, files or folders"
    )
    verb.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="checkpoints, logs, the model")
    verb.add_argument(
        "--add-source",
        action="append",
        default=[],
        metavar="NAME",
        help="one more folder of DIR: iso..., or one of clips, or of thick scans; for the stages that learn from such",
    )
    verb.add_argument("--resume", action="store_true", help="continue from the checkpoints in the output folder")
    verb.add_argument(
        "--start-from",
        type=Path,
        metavar="PATH",
        help="a model file whose weights to start from, or (not for no-ground-truth) the folder of an earlier run",
    )
    verb.add_argument(
        "--keep-synthetic", action="store_true", help="no-ground-truth: write the volumes that were synthesised"
    )
    _add_acquisition(verb, "no-ground-truth: ")
    length = verb.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=_positive(float), metavar="M", help="length, shared out over the stages")
    length.add_argument("--steps", type=_positive(int), metavar="N", help="length, shared out over the stages")


def train(arguments: argparse.Namespace) -> int:
    """Run a recipe; checkpoints stay after an interruption, for --resume."""
    _check_options_of_recipe(arguments)
    with _training_installed():
        models = [_no_ground_truth(arguments)] if arguments.recipe == NO_GROUND_TRUTH else _from_data(arguments)
    family = {str(path.with_name(path.name.split(".")[0])) for path in models}
    names = [str(models[0])] if len(models) == 1 else sorted(family)
    for name in names:
        _say(f"use it: thinslice enhance --model {quote(name)} -i IN -o OUT")
    return 0


def _check_options_of_recipe(arguments: argparse.Namespace) -> None:
    """A recipe learns from a folder of sources, or from target scans; options for the other kind are refused."""
    if arguments.recipe not in RECIPES:
        known = ", ".join(RECIPES)
        raise InputRefused(f"got recipe {arguments.recipe!r}; need one of {known}; next: choose one of them")
    of_targets = {
        "--target": arguments.target,
        "--keep-synthetic": arguments.keep_synthetic,
        "--spacing": arguments.spacing,
        "--factor": arguments.factor,
        "--thickness": arguments.thickness,
        "--profile": arguments.profile,
    }
    of_data = {"--data": arguments.data, "--add-source": arguments.add_source}
    targeted = arguments.recipe == NO_GROUND_TRUTH
    wanted, other = ("--target", of_data) if targeted else ("--data", of_targets)
    for option, value in other.items():
        if value:
            raise InputRefused(f"got {option} for {arguments.recipe}; need {wanted}; next: leave {option} out")
    if not (of_targets if targeted else of_data)[wanted]:
        what = "thick scans" if targeted else "a folder with the recipe's source folders"
        raise InputRefused(f"got no {wanted}; need {what}; next: add {wanted}")


def _from_data(arguments: argparse.Namespace) -> list[Path]:
    from thinslice.training.recipes import run

    return run(
        arguments.recipe,
        arguments.data,
        arguments.output,
        resume=arguments.resume,
        minutes=arguments.minutes,
        start=arguments.start_from,
        steps=arguments.steps,
        more_sources=arguments.add_source,
        report=_say,
    )


def _no_ground_truth(arguments: argparse.Namespace) -> Path:
    from thinslice.training.no_ground_truth import Wish, run

    wish = Wish(arguments.spacing, arguments.factor, arguments.thickness, arguments.profile or "gaussian")
    return run(
        _sources_of_all(arguments.target),
        arguments.output,
        wish,
        start=arguments.start_from,
        resume=arguments.resume,
        minutes=arguments.minutes,
        steps=arguments.steps,
        keep_synthetic=arguments.keep_synthetic,
        report=_say,
        complain=_complain,
    )


# ---- evaluate


def _add_evaluate(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    verb = _add_verb(verbs, "evaluate", evaluate, "make thin scans thick, compute them back, and score the models")
    verb.add_argument("-i", "--input", required=True, type=Path, metavar="DIR", help="near-isotropic scans, the truth")
    verb.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="results, a table and pictures")
    verb.add_argument("--factors", type=_numbers, default=[4.0], metavar="2,3,4", help="slice spacings in thin voxels")
    verb.add_argument("--models", type=_names, default=["default", "cubic"], metavar="NAMES", help="default,cubic")
    verb.add_argument(
        "--thickness-ratios", type=_numbers, default=[1.0], metavar="1,0.75", help="slice thickness over slice spacing"
    )
    verb.add_argument("--profiles", type=_profiles, default=["gaussian"], metavar="gaussian,box", help="slice profiles")
    verb.add_argument("--axes", choices=("last", "all"), default="last", help="made thick along these (default: last)")
    _add_fuse(verb)
    verb.add_argument("-q", "--quiet", action="store_true", help="no progress, no table on the terminal")


def evaluate(arguments: argparse.Namespace) -> int:
    """Score models on simulated thick scans, and print the table."""
    from thinslice import bench

    conditions = bench.make_conditions(arguments.factors, arguments.thickness_ratios, arguments.profiles)
    paths = _sources(arguments.input)
    with _bar("evaluate", arguments.quiet) as show:
        found = bench.evaluate(
            paths,
            arguments.models,
            conditions,
            arguments.output,
            axes=arguments.axes,
            fuse=arguments.fuse,
            progress=lambda share, text: show(share),
        )
    if not arguments.quiet:
        _say(found.table.rstrip())
        _say(f"wrote {arguments.output / 'table.md'}, results.jsonl and pictures beside it")
    return 0


# ---- study


def _add_study(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    verb = _add_verb(
        verbs, "study", study, "make a blinded reader study of some methods, one offline page; or score it"
    )
    verb.add_argument(
        "-i", "--input", type=Path, metavar="CASES", help=f"thick scans: {SCAN}, a folder of them, or {DICOM}"
    )
    verb.add_argument("-o", "--output", type=Path, metavar="PAGE", help="the page, .html; its key goes beside it")
    verb.add_argument(
        "--methods", type=_names, metavar="NAMES", help="two or more, as --model of enhance: lanczos,default"
    )
    _add_plan_options(verb, model=False)
    verb.add_argument("--pairs", type=_whole, metavar="N", help="comparisons, of all pairs of methods (default: 40)")
    verb.add_argument("--repeats", type=_whole, metavar="N", help="of them shown once more (default: a fifth)")
    verb.add_argument("--seed", type=_whole, default=0, metavar="S", help="of places, order and sides (default: 0)")
    verb.add_argument(
        "--window",
        type=float,
        nargs=2,
        metavar=("BLACK", "WHITE"),
        help="values shown black and white; default: the 0.5 and 99.5 percentiles of each scan",
    )
    verb.add_argument("--overwrite", action="store_true", help="replace a page and its key")
    verb.add_argument("-q", "--quiet", action="store_true", help="say nothing unless something is refused")
    verb.add_argument("--score", type=Path, nargs="+", metavar="RESULTS", help="instead: score what readers saved")
    verb.add_argument("--key", type=Path, metavar="KEY", help="the study's key; default: beside the results, or here")
    verb.add_argument("--json", action="store_true", help="the score as JSON")


def study(arguments: argparse.Namespace) -> int:
    """Make a page that readers compare methods on, or score what they saved."""
    making = {"-i": arguments.input, "-o": arguments.output, "--methods": arguments.methods}
    drawing = {"--pairs": arguments.pairs, "--repeats": arguments.repeats, "--seed": arguments.seed}
    scoring = {"--key": arguments.key, "--json": arguments.json}
    other = making | drawing if arguments.score else scoring
    for option, value in other.items():
        if value:
            to = "score a study" if arguments.score else "make one"
            raise InputRefused(f"got {option} to {to}; need it without; next: leave {option} out")
    if arguments.score:
        return _score_study(arguments)
    for option, value in making.items():
        if not value:
            raise InputRefused(f"got no {option}; need -i, -o and --methods, or --score; next: add {option}")
    return _make_study(arguments)


def _score_study(arguments: argparse.Namespace) -> int:
    from thinslice.preference import make_table, score

    found = score(arguments.score, arguments.key)
    _say(found.to_json() if arguments.json else make_table(found))
    return 0


def _make_study(arguments: argparse.Namespace) -> int:
    """The page and its key; scans that a method refuses are named and left out."""
    from thinslice.study import PAIRS, Wish, make_study
    from thinslice.weights import find_model

    files = _study_files(arguments)
    pairs = PAIRS if arguments.pairs is None else arguments.pairs
    wish = Wish(pairs, arguments.repeats, arguments.seed, _window(arguments.window))
    repeated = [name for name in arguments.methods if arguments.methods.count(name) > 1]
    if repeated:
        raise InputRefused(f"got method {repeated[0]} twice; need different ones; next: leave one out")
    models = {name: find_model(name) for name in arguments.methods}

    def plan(volume: "Volume", model: "Model") -> "Plan":
        """Networks as `enhance` uses them, interpolations as other programs do: not projected, nothing to fuse."""
        bare = arguments.no_projection or not model.adds
        wish = {"fuse": arguments.fuse and model.adds, "no_projection": bare}
        return _plan(volume, model, argparse.Namespace(**(vars(arguments) | wish)))

    scans = _scans_of_study(arguments.input)
    sound = [scan for scan in scans if _can_be_shown(scan, models, plan)]
    if sound:
        with _bar("study", arguments.quiet) as show:
            made = make_study(sound, models, plan, wish, show)
        with all_or_none(files) as parts:
            for part, text in zip(parts, (made.page, made.key), strict=True):
                part.write_text(text, encoding="utf-8")
        if not arguments.quiet:
            _describe_study(made, files, len(sound))
    return _how_many(len(scans) - len(sound), len(scans), len(scans) > 1, "shown")


def _can_be_shown(scan: "Scan", models: "dict[str, Model]", plan: "Callable[[Volume, Model], Plan]") -> bool:
    """False where a method refuses the scan, after saying why."""
    from thinslice.study import check_scan

    try:
        check_scan(scan, models, plan)
    except (ThinsliceError, OSError, MemoryError) as error:
        _complain(_named(scan.name, _reason(error)))
        return False
    return True


def _describe_study(made: "MadeStudy", files: tuple[Path, Path], scans: int) -> None:
    _say(f"made   {made.comparisons} comparisons of {scans} scan(s), {made.repeats} of them shown twice")
    for note in made.notes:
        _say(f"  note: {note}")
    _say(f"wrote  {files[0]} ({len(made.page) / 1e6:.1f} MB; give readers this file alone)")
    _say(f"       {files[1]} (which picture is whose: keep it, it is needed to score)")


def _study_files(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """The page and the key beside it, if they may be written."""
    from thinslice.cases import check_writable

    page: Path = arguments.output
    if page.suffix.lower() not in (".html", ".htm"):
        raise OutputRefused(f"{page}: got another kind of name; need .html; next: change the output's name")
    files = page, page.with_suffix(".key.json")
    for file in files:
        if os.path.realpath(file) == os.path.realpath(arguments.input):
            raise OutputRefused(f"{file}: got an output that is an input; need another place; next: choose another")
        if file.is_dir() or (os.path.lexists(file) and not arguments.overwrite):
            raise OutputRefused(f"{file}: got an output that exists already; next: choose another, or add --overwrite")
    check_writable(page.parent)
    return files


def _scans_of_study(path: Path) -> "list[Scan]":
    from functools import partial

    from thinslice.cases import find_study
    from thinslice.study import Scan

    found = find_study(path)
    if found is None:
        return [Scan(file.name, partial(_read, file)) for file in _sources(path)]
    from thinslice.dicom.pixels import read_series

    def refuse(reason: str) -> NoReturn:
        raise InputRefused(reason)

    usable = [Scan(one.label, partial(read_series, one)) for one in found.series]
    return usable + [Scan(one.label, partial(refuse, one.reason)) for one in found.unusable]


def _window(ends: Sequence[float] | None) -> tuple[float, float] | None:
    if ends is not None and not (ends[0] < ends[1] and abs(ends[0]) + abs(ends[1]) < float("inf")):
        raise InputRefused(
            f"got --window {ends[0]:g} {ends[1]:g}; need black below white; next: swap them, or leave it out"
        )
    return None if ends is None else (ends[0], ends[1])


# ---- options that several verbs share


def _add_verb(
    verbs: "argparse._SubParsersAction[_Parser]", name: str, run: Callable[[argparse.Namespace], int], what: str
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".", allow_abbrev=False)
    verb.set_defaults(verb=run)
    return verb


def _add_model(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--model",
        default="default",
        metavar="MODEL",
        help="default (embedded network), planes-mr or planes-ct (networks that enlarge in-plane too), a model file "
        "(.onnx), nearest, linear, cubic or lanczos",
    )


def _add_plan_options(verb: argparse.ArgumentParser, model: bool = True) -> None:
    wish = verb.add_mutually_exclusive_group()
    wish.add_argument("--spacing", type=float, metavar="MM", help="wanted slice spacing; default: as in-plane")
    wish.add_argument("--factor", type=float, metavar="K", help="wanted number of times closer slices")
    verb.add_argument(
        "--thickness",
        type=float,
        metavar="MM",
        help="slice thickness; default: what an NRRD header or SliceThickness of the JSON beside the scan says, else "
        "the spacing",
    )
    verb.add_argument("--profile", choices=PROFILES, default="gaussian", help="slice profile (default: gaussian)")
    verb.add_argument(
        "--grid",
        choices=GRIDS,
        default="fov",
        help="keep the outer edges of the field of view (fov, default) or the outermost slice centres",
    )
    verb.add_argument(
        "--in-plane",
        type=int,
        default=1,
        metavar="K",
        help="enlarge the slices themselves first, K times along each side",
    )
    _add_fuse(verb)
    if model:
        _add_model(verb)
    verb.add_argument(
        "--no-projection",
        action="store_true",
        help="leave the model's answer as it is, not made to agree with the scan",
    )


def _add_fuse(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--fuse",
        action="store_true",
        help="ask a network in several orientations and join its answers: slower, a little better",
    )


def _add_acquisition(verb: argparse.ArgumentParser, recipe: str = "") -> None:
    """How scans are made thin that a model learns from."""
    wish = verb.add_mutually_exclusive_group()
    positive = _positive(float)
    wish.add_argument("--spacing", type=positive, metavar="MM", help=f"{recipe}slice spacing you will ask enhance for")
    wish.add_argument("--factor", type=positive, metavar="K", help=f"{recipe}or number of times closer slices")
    verb.add_argument(
        "--thickness", type=positive, metavar="MM", help=f"{recipe}slice thickness of all scans; default: as in enhance"
    )
    verb.add_argument("--profile", choices=PROFILES, help=f"{recipe}slice profile (default: gaussian)")


def _plan(volume: "Volume", model: "Model", arguments: argparse.Namespace) -> "Plan":
    from thinslice.plan import make_plan

    return make_plan(
        volume,
        spacing_mm=arguments.spacing,
        factor=arguments.factor,
        thickness_mm=arguments.thickness,
        profile=arguments.profile,
        grid=arguments.grid,
        model=model.name,
        model_sha256=model.sha256,
        envelope=model.envelope,
        projection=not arguments.no_projection,
        in_plane=arguments.in_plane,
        fuse=arguments.fuse,
    )


def _positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    """A parser of positive numbers of one kind."""

    def parse(text: str) -> float:
        with suppress(ValueError):
            number = kind(text)
            if 0 < number < float("inf"):
                return number
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")

    return parse


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _numbers(text: str) -> list[float]:
    try:
        return [_positive(float)(word) for word in text.split(",")]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers like 2,3,4") from None


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _names(text: str) -> list[str]:
    if not _words(text):
        raise argparse.ArgumentTypeError("no name in it; need at least one, such as default,cubic")
    return _words(text)


def _profiles(text: str) -> list[str]:
    wrong = [word for word in _words(text) if word not in PROFILES]
    if wrong or not _words(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of {', '.join(PROFILES)}")
    return _words(text)


# ---- files


def _read(path: Path) -> "Volume":
    from thinslice.formats import read

    return read(path)


def _sources(path: Path) -> list[Path]:
    """The scans at a path: the file itself, or those that lie directly in the folder."""
    from thinslice.cases import find_sources

    return find_sources(path)


# ---- words


def _what_was_done(plan: "Plan") -> str:
    before, after = plan.spacing_thick_mm[plan.axis], plan.spacing_thin_mm[plan.axis]
    larger = f", each {plan.in_plane} times larger along both sides," if plan.in_plane > 1 else ""
    done = f"{plan.n_thick} slices x {before:.4g} mm -> {plan.n_thin} slices x {after:.4g} mm"
    return f"{done}{larger} with {plan.model}"


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


def _named(name: str, reason: str) -> str:
    """The reason with the scan's name before it, once."""
    return reason if name in reason else f"{name}: {reason}"


def _reason(error: Exception) -> str:
    """One line about an error that a user can do something about."""
    if isinstance(error, MemoryError):
        return (
            "got a scan larger than the free memory; need a smaller one; "
            "next: crop it, ask for fewer voxels, or use a larger machine"
        )
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        need, then = _WAYS_OUT.get(type(error), ("room and permission there", "free some room, or choose another"))
        return f"{place}got '{error.strerror}'; need {need}; next: {then}"
    return " ".join(str(error).split())


@contextmanager
def _bar(name: str, quiet: bool) -> Iterator[Callable[[float], None]]:
    """Draws the share done, 0 .. 1, as a bar on one line of the terminal, and wipes it at the end."""
    if quiet or not sys.stderr.isatty():
        yield lambda share: None
        return

    def show(share: float) -> None:
        done = round(share * BAR_CELLS)
        sys.stderr.write(f"\r{name[:30]} [{'#' * done}{'.' * (BAR_CELLS - done)}] {100 * share:3.0f} %")
        sys.stderr.flush()

    try:
        show(0.0)
        yield show
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def _say(text: str) -> None:
    _print(text, sys.stdout)


def _complain(text: str) -> None:
    _print(f"thinslice: {_in_one_line(text)}", sys.stderr)


def _in_one_line(text: str) -> str:
    """Names of files may hold anything, orders to the terminal too."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))


def _print(text: str, stream: TextIO) -> None:
    """What the terminal cannot show is shown as its code: names of files and patients come in every alphabet."""
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """A polite kill (SIGTERM, as job schedulers send it; SIGHUP of a terminal that closes) cleans up like Ctrl-C."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    polite = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    heard = [number for number in polite if signal.getsignal(number) is not signal.SIG_IGN]  # as nohup asks for
    with _handled(interrupt, *heard):
        yield


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals) -> Iterator[None]:
    """Signals go to a handler for a while; not where this is not the main thread, which alone may ask for that."""
    try:
        before = {number: signal.signal(number, handler) for number in numbers}
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
