"""The verb combine: one volume from several stacks of one body."""

import argparse
import dataclasses
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from thinslice.cli.options import (
    DICOM,
    SCAN,
    Parser,
    add_engine,
    add_settings,
    add_verb,
    engine_from,
    path_argument,
    positive,
    read_scan,
    settings_from,
)
from thinslice.cli.terminal import REFUSED, bar, complain, say
from thinslice.cli.words import named, reason_of, to_options
from thinslice.errors import InputRefused, ThinsliceError

if TYPE_CHECKING:
    from thinslice.combination import Combined
    from thinslice.datasets.bids import StackGroup
    from thinslice.io.contrast import Contrast
    from thinslice.io.dicom.groups import SeriesGroup
    from thinslice.io.dicom.series import Series, Study
    from thinslice.volume import Volume

logger = logging.getLogger(__name__)

LEFT_OUT = ("factor", "spacing_mm", "grid", "in_plane", "fuse", "projection", "force")
"""Settings of enhance that say something about one stack, or about a grid that several do not share."""


LONGEST_FOLDER = 64
"""Characters of a folder's name: some file systems take few."""


def add_combine(verbs: "argparse._SubParsersAction[Parser]") -> None:
    """Adds ``thinslice combine`` and its options."""
    verb = add_verb(verbs, "combine", combine, "make one volume from several stacks of one body")
    verb.add_argument(
        "-i",
        "--input",
        required=True,
        nargs="+",
        type=path_argument,
        metavar="IN",
        help=f"two or more, each a {SCAN}, or {DICOM}; or one study, whose series that belong together are found",
    )
    verb.add_argument(
        "-o",
        "--output",
        required=True,
        type=path_argument,
        metavar="OUT",
        help="the combined volume; of DICOM also a folder",
    )
    verb.add_argument(
        "--spacing",
        type=positive(float),
        metavar="MM",
        help="distance between voxels along all axes; default: that which enhance gives the first stack",
    )
    verb.add_argument(
        "--grid",
        dest="answer_grid",
        metavar="first|union|LIKE",
        help="field of view of the first stack, that around all of them, or a scan whose grid the answer gets "
        "(default: first; of a study or a data set with chunks of one direction: union)",
    )
    verb.add_argument(
        "--no-registration",
        dest="registration",
        action="store_false",
        help="believe the headers; by default stacks are placed where they fit each other",
    )
    verb.add_argument("--labels", type=path_argument, metavar="SEG", help="a segmentation of the first stack")
    verb.add_argument("--labels-out", type=path_argument, metavar="OUT", help="where to; default: beside the answer")
    verb.add_argument("--held-by", type=path_argument, metavar="OUT", help="a map: how many stacks hold each voxel")
    verb.add_argument(
        "--expected-error", type=path_argument, metavar="OUT", help="a map: the error to be expected, in cells of 3 mm"
    )
    verb.add_argument("--report", type=path_argument, metavar="HTML", help="a page on which they are compared")
    verb.add_argument("--anonymise", action="store_true", help="DICOM: without the patient's identity")
    add_settings(verb, leave_out=LEFT_OUT)
    add_engine(verb)
    verb.add_argument("--overwrite", action="store_true", help="replace files that exist")
    verb.add_argument("-q", "--quiet", action="store_true", help="print nothing but refusals")


def combine(arguments: argparse.Namespace) -> int:
    """Reads the stacks, combines them, and puts all files in their places, or none of them."""
    from thinslice.errors import OutputRefused
    from thinslice.io.outputs import find_study
    from thinslice.pipeline import read_scan as read_any

    if arguments.labels_out is not None and arguments.labels is None:
        raise OutputRefused(
            got="`labels_out` without `labels`",
            need="both",
            next="give `labels`, or leave both out",
            code="labels-out",
        )
    if len(arguments.input) == 1 and (arguments.input[0] / "dataset_description.json").is_file():
        return _combine_dataset(arguments)
    study = find_study(arguments.input[0])
    if study is not None and len(arguments.input) == 1:
        return _combine_study(study, arguments)
    # The answer may become a series of the study of the first stack.
    series = study.series[0] if study is not None and study.series else None
    stacks = _Stacks(arguments.input, lambda: ([read_any(path) for path in arguments.input], None), series)
    _combine_one(stacks, arguments.output, arguments)
    return 0


class _Stacks(NamedTuple):
    """The stacks of one body, and how they are read.

    Attributes:
        inputs: their files or folders.
        read: returns them, and what is known of their contrasts beyond what lies beside them.
        series: the first one if it is a DICOM series.
        facts: what else the JSON of the answer shall say.
        odd: what was found with them and does not belong to them, and why; None where a person has chosen the stacks.
    """

    inputs: Sequence[Path]
    read: "Callable[[], tuple[list[Volume], list[Contrast] | None]]"
    series: "Series | None" = None
    facts: Mapping[str, Any] = {}
    odd: Mapping[str, str] | None = None


def _combine_study(study: "Study", arguments: argparse.Namespace) -> int:
    """Combines the series of a study that belong together, each group to a file or a series of its own."""
    from thinslice.io.dicom.groups import find_groups
    from thinslice.io.formats import ending

    found = find_groups(study)
    for one in found.left_out if not arguments.quiet else ():
        say(f"left out: {one.label}: {one.reason}")
    if not found.groups:
        reasons = "; ".join(f"{one.label}: {one.reason}" for one in found.left_out)
        raise InputRefused(
            place=arguments.input[0],
            got=f"no two series that belong together ({reasons})",
            need="stacks of one body in one contrast",
            next="name the files or folders of those that do",
            code="no-group",
        )
    if len(found.groups) > 1 and (ending(arguments.output) or _has_one_place(arguments)):
        names = ", ".join(group.name for group in found.groups)
        raise InputRefused(
            place=arguments.input[0],
            got=f"{len(found.groups)} groups of series ({names}) for one file",
            need="one",
            next="name a folder as output, without further files, or the folders of the series of one group",
            code="several-groups",
        )
    done = [
        _combine_group(
            arguments.output if len(found.groups) == 1 else arguments.output / _folder_name(number, group, arguments),
            arguments,
            group,
        )
        for number, group in enumerate(found.groups)
    ]
    return 0 if all(done) else REFUSED


def _combine_dataset(arguments: argparse.Namespace) -> int:
    """Combines the stacks of every visit of a BIDS data set that belong together, into a data set of derivatives."""
    from thinslice.datasets.bids import (
        Choice,
        check_output,
        find_images,
        group_stacks,
        write_description,
    )

    dataset, output = arguments.input[0], arguments.output
    if _has_one_place(arguments):
        raise InputRefused(
            place=dataset,
            got="one further file for all volumes of a data set",
            need="none",
            next="leave `labels`, `held_by`, `expected_error` and `report` out, or name the files of one visit",
            code="one-place-for-data-set",
        )
    check_output(dataset, output)
    images, unreadable = find_images(dataset, Choice())
    for error in unreadable:
        complain(reason_of(error))
    groups = group_stacks(images, dataset, output)
    if not groups:
        raise InputRefused(
            place=dataset,
            got=f"{len(images)} images, of which no two are of one visit and one contrast",
            need="stacks that differ in acq, run or dir alone",
            next="name the files of those that belong together",
            code="no-group",
        )
    done = [_combine_visit(group, dataset, arguments) for group in groups]
    if any(done):
        write_description(dataset, output)
    return 0 if all(done) and not unreadable else REFUSED


def _combine_visit(group: "StackGroup", dataset: Path, arguments: argparse.Namespace) -> bool:
    """Combines what belongs together of one visit, and tells why where that does not succeed; the others go on."""
    from thinslice.datasets.bids import combined_facts, inherited_sidecars
    from thinslice.datasets.groups import find_odd
    from thinslice.datasets.job import read_inheriting

    inherited = {path: inherited_sidecars(path, dataset) for path in group.stacks}
    odd = {path.name: reason for path, reason in find_odd(group.stacks, inherited).items()}
    chosen = [path for path in group.stacks if path.name not in odd]
    if len(chosen) < 2:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in odd.items())
        error = InputRefused(
            place=group.derivative.name,
            got=f"no two images that belong together ({reasons})",
            need="stacks of one body in one contrast",
            next="make each thin with enhance, or name the files of those that do",
            code="no-group",
        )
        complain(reason_of(error))
        return False

    def read() -> "tuple[list[Volume], list[Contrast] | None]":
        found = [read_inheriting(path, inherited[path]) for path in chosen]
        return [scan for scan, _ in found], [contrast for _, contrast in found]

    stacks = _Stacks(chosen, read, None, combined_facts(chosen, dataset), odd)
    return _combine_if_possible(stacks, group.derivative, arguments, group.derivative.name)


def _combine_group(output: Path, arguments: argparse.Namespace, group: "SeriesGroup") -> bool:
    """Combines one group, and tells why where that does not succeed; the others go on."""
    from thinslice.io.dicom.pixels import read_series

    if not arguments.quiet:
        say(f"{group.name}: {', '.join(series.label for series in group.series)}")
        for note in group.notes:
            say(f"  note: {note}")
    folders = [series.folder for series in group.series]
    stacks = _Stacks(folders, lambda: ([read_series(series) for series in group.series], None), group.series[0], odd={})
    return _combine_if_possible(stacks, output, arguments, group.name)


def _combine_if_possible(stacks: _Stacks, output: Path, arguments: argparse.Namespace, name: str) -> bool:
    """Combines some stacks, and tells why where that does not succeed; others go on."""
    try:
        _combine_one(stacks, output, arguments)
    except (ThinsliceError, OSError, MemoryError) as error:
        logger.debug("%s was refused", name, exc_info=error)
        complain(named(name, reason_of(error)))
        return False
    return True


def _folder_name(number: int, group: "SeriesGroup", arguments: argparse.Namespace) -> str:
    """Returns what the folder of a group is called: nothing of its description where it is to be anonymous."""
    words = "" if arguments.anonymise else re.sub(r"[^A-Za-z0-9]+", "_", group.name).strip("_")
    return f"{number + 1:02d}_{words}"[:LONGEST_FOLDER].rstrip("_")


def _has_one_place(arguments: argparse.Namespace) -> bool:
    further = (arguments.labels, arguments.held_by, arguments.expected_error, arguments.report)
    return any(one is not None for one in further)


def _combine_one(stacks: _Stacks, output: Path, arguments: argparse.Namespace) -> None:
    """Reads stacks, combines them, and writes what was asked for."""
    from thinslice.combination import (
        check_can_be_anonymous,
        check_expects_error,
        check_into_series,
        check_places,
        combine_fitting,
        combine_volumes,
        describe_combination,
        find_places,
    )
    from thinslice.io.formats import ending
    from thinslice.models.registry import models_for
    from thinslice.pipeline import read_labels

    # Stacks that were found, and not chosen, may be chunks of which the first one would show a part.
    wanted: Any = arguments.answer_grid or ("first" if stacks.odd is None else None)
    places = find_places(
        output,
        arguments.held_by,
        arguments.expected_error,
        arguments.labels_out,
        arguments.report,
        arguments.labels is not None,
        stacks.series,
    )
    inputs = list(stacks.inputs)
    inputs += [arguments.labels] if arguments.labels is not None else []
    # Of the scan whose grid is taken the voxels do not matter, but it is the user's all the same.
    inputs += [Path(wanted)] if wanted not in ("first", "union", None) else []
    check_places(places, inputs, arguments.overwrite)
    settings = settings_from(arguments)
    if arguments.expected_error is not None:
        check_expects_error(settings.model)
    grid = wanted if wanted in ("first", "union", None) else read_scan(Path(wanted))
    scans, contrasts = stacks.read()
    labels = read_labels(arguments.labels, scans[0]) if arguments.labels is not None else None
    if not ending(places["volume"]):
        check_into_series(scans, grid or "first")
    if arguments.anonymise:
        check_can_be_anonymous(scans)
    with bar("combine", arguments.quiet) as show:
        compute = combine_volumes if stacks.odd is None else combine_fitting
        done = compute(
            scans,
            models_for(settings.model, engine_from(arguments)),
            contrasts=contrasts,
            spacing_mm=arguments.spacing,
            grid=grid,
            registration=arguments.registration,
            labels=labels,
            settings=settings,
            target=output,
            progress=show,
        )
    done = dataclasses.replace(done, facts=stacks.facts, odd={**(stacks.odd or {}), **done.odd})
    done.save(
        output,
        held_by=arguments.held_by,
        expected_error=arguments.expected_error,
        labels_out=arguments.labels_out,
        report=arguments.report,
        anonymise=arguments.anonymise,
        overwrite=arguments.overwrite,
    )
    if not arguments.quiet:
        _tell(done, f"{describe_combination(done)}, {done.seconds:.1f} s", [str(place) for place in places.values()])


def _tell(done: "Combined", what: str, written: list[str]) -> None:
    say(what)
    for stack in done.stacks:
        say(f"  {stack.describe()}")
    for name, reason in done.odd.items():
        say(f"  {name}: left out: {to_options(reason)}")
    for note in done.notes:
        say(f"  note: {to_options(note)}")
    say(f"  wrote {', '.join(reversed(written))}")
