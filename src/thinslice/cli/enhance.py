"""The verbs demo and enhance: thin slices out of thick ones."""

import argparse
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from thinslice.cli.options import (
    DICOM,
    SCAN,
    Parser,
    add_engine,
    add_settings,
    add_strict,
    add_threads,
    add_verb,
    engine_from,
    path_argument,
    read_scan,
    settings_from,
    threads_from,
)
from thinslice.cli.terminal import bar, complain, how_many, say
from thinslice.cli.words import named, reason_of, to_options
from thinslice.errors import InputRefused, OutputRefused, ThinsliceError
from thinslice.io.atomic import all_or_none

if TYPE_CHECKING:
    from thinslice.compute.consistency import Report
    from thinslice.compute.guard import GuardCount
    from thinslice.io.dicom.series import Study, Unusable
    from thinslice.io.outputs import Output, ScanOutput
    from thinslice.models.protocol import Model
    from thinslice.pipeline import Enhanced, Places
    from thinslice.settings import Settings
    from thinslice.volume import Volume

logger = logging.getLogger(__name__)

SAMPLE = Path(__file__).parents[1] / "sample" / "spine_t2_sag_thick_4p5mm.nii.gz"
"""The bundled scan: lumbar spine, T2, 0.5 T, slices 4.5 mm apart; CC0."""

DEMO_FILES = ("spine_thin.nii.gz", "spine_thin.json", "spine_thin.png", "spine_thin.html")
"""What the demonstration writes: the thin slices, their report, the picture, and last the page."""


# ---- demo


def add_demo(verbs: "argparse._SubParsersAction[Parser]") -> None:
    """Adds ``thinslice demo`` and its options."""
    verb = add_verb(verbs, "demo", demo, "enhance the bundled real thick scan and draw a picture of it")
    verb.add_argument(
        "-o", "--output", type=path_argument, default=Path("thinslice-demo"), metavar="DIR", help="%(default)s"
    )
    add_settings(verb, only=["model"])
    add_threads(verb)


def demo(arguments: argparse.Namespace) -> int:
    """Enhances the bundled scan, and tells in three lines what was done, what was measured, and where the files are."""
    from thinslice.io.formats import write
    from thinslice.io.outputs import Output, check_outputs
    from thinslice.models.registry import find_model
    from thinslice.pipeline import describe_slices, enhance_volume

    check_outputs([Output(arguments.output / name, "`output`") for name in DEMO_FILES], [SAMPLE], overwrite=True)
    settings = settings_from(arguments)
    folder: Path = arguments.output
    model = find_model(settings.model, threads_from(arguments))
    with bar("demo", quiet=False) as show:
        done = enhance_volume(read_scan(SAMPLE), settings, model, target=folder / DEMO_FILES[0], progress=show)
    with all_or_none([folder / name for name in DEMO_FILES[:3]], overwrite=True) as (image, facts, picture):
        write(done.volume, image)
        done.report.save(facts)
        done.write_figure(picture)
    # After the files above are in their places: it asks the network once more, and may fail.
    with bar("demo: report", quiet=False) as show:
        done.write_page(folder / DEMO_FILES[3], show)
    say(f"did       a real lumbar spine, T2, 0.5 T: {describe_slices(done.plan)}")
    say(f"measured  {done.report.seconds:.1f} s of computing; {_agreement(done.report)}")
    say(f"wrote     {folder / DEMO_FILES[3]} (open this in a browser), and beside it {', '.join(DEMO_FILES[:3])}")
    return 0


# ---- enhance


def add_enhance(verbs: "argparse._SubParsersAction[Parser]") -> None:
    """Adds ``thinslice enhance`` and its options."""
    verb = add_verb(verbs, "enhance", enhance, "compute the thin slices of a scan, or of every scan in a folder")
    verb.add_argument(
        "-i",
        "--input",
        required=True,
        type=path_argument,
        nargs="+",
        action="extend",
        metavar="IN",
        help=f"{SCAN}, a folder of them, or {DICOM}; several, also of several -i, go to one folder",
    )
    verb.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUT",
        help="file for a file, folder for a folder or for a new DICOM series; a file's name says the format",
    )
    add_settings(verb)
    add_engine(verb)
    verb.add_argument(
        "--labels",
        type=path_argument,
        metavar="SEG",
        help="segmentation on the scan's grid, or DICOM SEG, to bring along, written as OUT with _labels in its name; "
        "for a folder: a folder with segmentations of the scans' names; their format may be another",
    )
    verb.add_argument("--labels-out", type=path_argument, metavar="FILE", help="another name for it (one scan only)")
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
    add_strict(verb)
    verb.add_argument("-q", "--quiet", action="store_true", help="say nothing unless something is refused")


def enhance(arguments: argparse.Namespace) -> int:
    """Computes thin slices; in a folder, a scan that is refused is named and the rest goes on."""
    from thinslice.io.outputs import find_scan_outputs, find_study

    settings = settings_from(arguments)
    paths = _each_once(arguments.input)
    if len(paths) > 1:
        return _enhance_several(paths, settings, arguments)
    arguments.input = paths[0]
    study = find_study(arguments.input, Path(arguments.output))
    if study is not None:
        return _enhance_study(study, settings, arguments)
    if arguments.anonymise:
        raise _anonymise_without_dicom()
    answers = find_scan_outputs(arguments.input, arguments.output, arguments.overwrite)
    is_folder = arguments.input.is_dir()
    drawn = _find_drawn(answers, arguments.input) if is_folder else []
    answers = _without_drawn(answers, drawn)
    tasks = _find_tasks(answers, arguments, is_folder, [each.place for each in drawn if each.scan is not None])
    states = _enhance_all(tasks, settings, arguments)
    states += [_bring_along_if_possible(each, settings, arguments) for each in drawn]
    return how_many(states.count(False), len(states), is_folder, pages=states.count(None))


def _anonymise_without_dicom() -> InputRefused:
    return InputRefused(
        got="`anonymise` for files that are no DICOM",
        need="a DICOM series",
        next="leave it out",
        code="anonymise-without-dicom",
    )


def _each_once(paths: Sequence[Path]) -> list[Path]:
    """Returns the inputs, those that are given twice once."""
    once: dict[str, Path] = {}
    for path in paths:
        once.setdefault(os.path.realpath(path), path)
    return list(once.values())


def _enhance_several(paths: Sequence[Path], settings: "Settings", arguments: argparse.Namespace) -> int:
    """Enhances files, folders and studies together, into one folder; all of them are looked at before any is done."""
    from thinslice.io.outputs import find_scan_outputs, find_series_outputs, find_study

    target = Path(arguments.output)
    of_series: list[ScanOutput] = []
    of_files: list[ScanOutput] = []
    studies: list[Study] = []
    for number, path in enumerate(paths, 1):
        study = find_study(path, target)
        if study is not None:
            # A folder is often called after the patient.
            name = f"{number:03d}" if arguments.anonymise else path.resolve().name
            place = f"{target / name}/"  # with the separator, as whatever is made of it is a folder
            of_series += find_series_outputs(study, path, place, arguments.overwrite, arguments.anonymise)
            studies.append(study)
        elif arguments.anonymise:
            raise _anonymise_without_dicom().at(path)
        else:
            of_files += find_scan_outputs(path, f"{target}/", arguments.overwrite)
    drawn = _find_drawn(of_files, paths[0]) if of_files else []
    of_files = _without_drawn(of_files, drawn)
    brought = [each.place for each in drawn if each.scan is not None]
    tasks = _find_tasks([*of_files, *of_series], arguments, True, brought)
    refused = _tell_of_others(studies, arguments, not tasks)
    states = _enhance_all(tasks, settings, arguments)
    states += [_bring_along_if_possible(each, settings, arguments) for each in drawn]
    scans = len(states) + len(refused)
    return how_many(states.count(False) + len(refused), scans, True, pages=states.count(None))


def _tell_of_others(
    studies: "Sequence[Study]", arguments: argparse.Namespace, is_nothing_else: bool
) -> "list[Unusable]":
    """Tells of what in studies is left out, and why; returns what counts as refused."""
    unusable = [one for study in studies for one in study.unusable]
    # What is no scan is only missing where nothing else is there, or all is wanted.
    refused = [one for one in unusable if one.is_scan or arguments.strict or is_nothing_else]
    # Not before all places are found to be free: a command that is refused has said nothing else.
    for one in refused:
        complain(f"{one.label}: {to_options(one.reason)}")
    notes = [note for study in studies for note in study.notes]
    notes += [f"left out: {one.label}: {one.what}" for one in unusable if one not in refused]
    for note in [] if arguments.quiet else notes:
        say(f"note: {to_options(note)}")
    return refused


def _enhance_study(study: "Study", settings: "Settings", arguments: argparse.Namespace) -> int:
    """Enhances every series that can be made thinner; what cannot is named, with the reason."""
    from thinslice.io.outputs import find_series_outputs

    answers = find_series_outputs(study, arguments.input, arguments.output, arguments.overwrite, arguments.anonymise)
    if arguments.labels is not None and len(answers) > 1:
        raise InputRefused(
            got=f"`labels` for {len(answers)} series",
            need="one",
            next="name the folder of one series",
            place=arguments.input,
            code="labels-for-several-series",
        )
    tasks = _find_tasks(answers, arguments, is_folder=False)
    refused = _tell_of_others([study], arguments, not tasks)
    states = _enhance_all(tasks, settings, arguments)
    scans = len(tasks) + len(refused)
    return how_many(states.count(False) + len(refused), scans, scans > 1, pages=states.count(None))


# ---- what goes in and where it goes


class _Task(NamedTuple):
    """One scan, the segmentation that is brought along, and where everything goes."""

    answer: "ScanOutput"
    labels: Path | None
    places: "Places"


class _Drawn(NamedTuple):
    """One segmentation among the scans of a folder: where it goes, the scan it belongs to, and why it is taken so."""

    answer: "ScanOutput"
    scan: Path | None
    reason: str

    @property
    def place(self) -> "Output":
        """The file that it goes to; no JSON is written beside that."""
        return self.answer.outputs[0]


def _find_drawn(answers: "Sequence[ScanOutput]", folder: Path) -> list[_Drawn]:
    """Finds the segmentations among the scans of a folder; a folder of them alone is refused."""
    from thinslice.compute.label_files import find_label_files

    answer_to = {answer.source: answer for answer in answers}
    found = [_Drawn(answer_to[one.path], one.scan, one.reason) for one in find_label_files(list(answer_to))]
    if len(found) == len(answers):
        names = [each.answer.name for each in found]
        raise InputRefused(
            got=f"segmentations alone ({', '.join(names[:3])}{' ...' if len(names) > 3 else ''}: {found[0].reason})",
            need="scans",
            next="give the folder of the scans, and this one as `labels`; or name one file, if it is an image",
            place=folder,
            code="folder-of-labels",
        )
    return found


def _without_drawn(answers: "Sequence[ScanOutput]", drawn: Sequence[_Drawn]) -> "list[ScanOutput]":
    return [answer for answer in answers if answer not in [each.answer for each in drawn]]


def _find_tasks(
    answers: "Sequence[ScanOutput]", arguments: argparse.Namespace, is_folder: bool, others: "Sequence[Output]" = ()
) -> list[_Task]:
    """Pairs every scan with its segmentation and its places, all of which may be written, and the ``others`` too."""
    from thinslice.io.outputs import check_outputs

    if arguments.labels_out is not None and (arguments.labels is None or is_folder):
        raise OutputRefused(
            got="`labels_out` " + ("for a folder of scans" if is_folder else "without `labels`"),
            need="one scan" if is_folder else "both",
            next="leave it out" if is_folder else "give `labels`, or leave both out",
            code="labels-out",
        )
    if is_folder and arguments.labels is not None and not arguments.labels.is_dir():
        raise InputRefused(
            got="one segmentation for a folder of scans",
            need="a folder",
            next="give a folder",
            place=arguments.labels,
            code="labels-for-folder",
        )
    tasks = [_find_task(answer, arguments) for answer in answers]
    # All tasks together: neither may two answers have one place, nor may one land on the input of another.
    inputs = [file for task in tasks for file in (task.answer.source, task.labels) if file is not None]
    outputs = [output for task in tasks for output in task.places.outputs]
    check_outputs([*outputs, *others], inputs, arguments.overwrite)
    return tasks


def _find_task(answer: "ScanOutput", arguments: argparse.Namespace) -> _Task:
    from thinslice.io.outputs import find_namesake, name_after_answer
    from thinslice.pipeline import Places, find_labels_place, is_segmentation

    labels: Path | None = arguments.labels
    if labels is not None and labels.is_dir() and not is_segmentation(labels):
        labels = find_namesake(labels, answer.source)
    wanted = ((arguments.report, ".html"), (arguments.figure, ".png"))
    page, figure = (None if name is None else name_after_answer(name, answer.destination, end) for name, end in wanted)
    labels_place = None
    if labels is not None:
        labels_place = find_labels_place(answer, arguments.labels_out, is_segmentation(labels))
    return _Task(answer, labels, Places(answer, labels_place, page, figure))


# ---- the work


def _enhance_all(tasks: "Sequence[_Task]", settings: "Settings", arguments: argparse.Namespace) -> list[bool | None]:
    """Enhances one scan after the other; False for one that was refused, None where only its page failed."""
    from thinslice.models.registry import models_for

    # Once for all scans: files of models are read here, and not again for each.
    choose = models_for(settings.model, engine_from(arguments))
    return [_enhance_if_possible(task, settings, choose, arguments) for task in tasks]


def _enhance_if_possible(
    task: _Task, settings: "Settings", choose: "Callable[[Volume], Model]", arguments: argparse.Namespace
) -> bool | None:
    """Enhances one scan, and tells why where that does not succeed."""
    try:
        _enhance_one(task, settings, choose, arguments)
    # Above ThinsliceError, of which it is one: that scan has its answer and was not refused.
    except _PageFailed as error:
        logger.debug("%s: its page failed", task.answer.name, exc_info=error)
        complain(reason_of(error))
        return None
    except BrokenPipeError:  # nobody reads what is said: nothing is wrong with the scan
        raise
    except (ThinsliceError, OSError, MemoryError) as error:
        logger.debug("%s was refused", task.answer.name, exc_info=error)
        reason = reason_of(error)
        # A reason that names the segmentation is about that file; the name of the scan before it would mislead.
        is_about_labels = task.labels is not None and str(task.labels) in reason
        complain(reason if is_about_labels else named(task.answer.name, reason))
        return False
    return True


def _enhance_one(
    task: _Task, settings: "Settings", choose: "Callable[[Volume], Model]", arguments: argparse.Namespace
) -> None:
    """Reads, plans, computes, checks, and puts all files in their places, or none of them."""
    from thinslice.pipeline import check_labels_place, describe_slices, enhance_volume, read_labels

    answer, started = task.answer, perf_counter()
    volume = _read_source(answer, arguments.anonymise)
    labels = read_labels(task.labels, volume) if task.labels is not None else None
    if labels is not None and task.places.labels is not None:
        check_labels_place(task.places.labels, labels)
    with bar(answer.name, arguments.quiet) as show:
        done = enhance_volume(
            volume, settings, choose(volume), target=answer.destination, labels=labels, name=answer.name, progress=show
        )
    if arguments.anonymise:
        done = done.without_identity()
    done.write(task.places, arguments.anonymise)
    if not arguments.quiet:
        all_seconds = perf_counter() - started
        took = f"{done.report.seconds:.1f} s of computing, {all_seconds:.1f} s with reading and writing"
        say(f"{answer.name}: {describe_slices(done.plan)}, {took}")
        say(f"  {_agreement(done.report)}")
        for note in done.report.notes:
            say(f"  note: {to_options(note)}")
        written = [place for place in (answer.destination, task.places.labels) if place is not None]
        say(f"  wrote {' and '.join(map(str, written))}")
    _write_pages(done, task.places, arguments.quiet)


def _bring_along_if_possible(drawn: _Drawn, settings: "Settings", arguments: argparse.Namespace) -> bool:
    """Brings a segmentation along that lies among the scans, or tells why not; it is never computed as an image."""
    try:
        _bring_along(drawn, settings, arguments)
    except (ThinsliceError, OSError, MemoryError) as error:
        logger.debug("%s was not brought along", drawn.answer.name, exc_info=error)
        complain(named(drawn.answer.name, reason_of(error)))
        return False
    return True


def _bring_along(drawn: _Drawn, settings: "Settings", arguments: argparse.Namespace) -> None:
    """Interpolates a segmentation as the plan of its scan says, and writes it; without a scan it is left alone."""
    from thinslice.compute.labels import interpolate_labels
    from thinslice.io.formats import write
    from thinslice.models.registry import models_for
    from thinslice.plan import make_plan

    name = drawn.answer.name
    if drawn.scan is None:
        if not arguments.quiet:
            say(f"{name}: a segmentation ({drawn.reason}), on the grid of no scan here: left alone")
            say(to_options("  next: enhance its scan with this as `labels`"))
        return
    scan = read_scan(drawn.scan)
    plan = make_plan(scan, settings, models_for(settings.model, engine_from(arguments))(scan))
    thin = interpolate_labels(read_scan(drawn.answer.source), plan)
    with all_or_none([drawn.answer.destination], arguments.overwrite) as (part,):
        write(thin, part)
    if not arguments.quiet:
        say(f"{name}: a segmentation ({drawn.reason}) of {drawn.scan.name}, brought along to {plan.n_thin} slices")
        for note in thin.notes:
            say(f"  note: {to_options(note)}")
        say(f"  wrote {drawn.answer.destination}")


def _read_source(answer: "ScanOutput", anonymise: bool) -> "Volume":
    if answer.series is None:
        return read_scan(answer.source)
    from thinslice.io.dicom.identity import check_can_hide
    from thinslice.io.dicom.pixels import read_series

    if anonymise:
        # Before the pixels are decoded: what cannot be made anonymous is refused by its headers.
        check_can_hide(answer.series)
    return read_series(answer.series)


class _PageFailed(OutputRefused):
    """A page or a figure could not be written; the scan that it is about has been."""


def _write_pages(done: "Enhanced", places: "Places", quiet: bool) -> None:
    """Writes the page and the figure that were asked for; whatever happens to them, the answer has been written."""
    written = " and ".join(str(place) for place in (places.page, places.figure) if place is not None)
    try:
        if places.page is not None:
            with bar(f"{places.answer.name}: report", quiet) as show:
                done.write_page(places.page, show, places.answer.overwrite)
        if places.figure is not None:
            done.write_figure(places.figure, places.answer.overwrite)
    except Exception as error:  # whatever it is, it must not stop the scans that come next
        raise _PageFailed(
            f"{written}: {reason_of(error)}; the scan itself is whole: {places.answer.destination}", code="page-failed"
        ) from error
    if written and not quiet:
        say(f"  wrote {written}")


# ---- words


def _agreement(report: "Report") -> str:
    """Returns how well an answer agrees with the acquired slices, and what the guard took back, in words."""
    found = report.consistency
    text = (
        f"re-sliced thick, it differs from the acquired slices by {found.rms_percent:.2g} % RMS, "
        f"{found.worst_percent:.2g} % at worst, of the intensity range{found.in_noise}"
    )
    return text + _fallback(report.guard)


def _fallback(guard: "GuardCount") -> str:
    return f"; {guard.percent} taken back to interpolation" if guard.suspect else ""
