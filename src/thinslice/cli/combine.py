"""The verb combine: one volume from several stacks of one body."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from thinslice.cli.options import (
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
from thinslice.cli.terminal import bar, say
from thinslice.cli.words import to_options

if TYPE_CHECKING:
    from thinslice.combination import Combined

LEFT_OUT = ("factor", "spacing_mm", "grid", "in_plane", "fuse", "projection", "thickness_mm", "profile", "noise")
"""Settings of enhance that say something about one stack, or about a grid that several do not share."""


def add_combine(verbs: "argparse._SubParsersAction[Parser]") -> None:
    """Adds ``thinslice combine`` and its options."""
    verb = add_verb(verbs, "combine", combine, "make one volume from several stacks of one body")
    verb.add_argument(
        "-i", "--input", required=True, nargs="+", type=path_argument, metavar="IN", help=f"two or more; each a {SCAN}"
    )
    verb.add_argument("-o", "--output", required=True, type=path_argument, metavar="OUT", help="the combined volume")
    verb.add_argument(
        "--spacing",
        type=positive(float),
        metavar="MM",
        help="distance between voxels along all axes; default: that which enhance gives the first stack",
    )
    verb.add_argument(
        "--grid",
        dest="answer_grid",
        default="first",
        metavar="first|union|LIKE",
        help="field of view of the first stack, that around all of them, or a scan whose grid the answer gets "
        "(default: first)",
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
    verb.add_argument("--report", type=path_argument, metavar="HTML", help="a page on which they are compared")
    add_settings(verb, leave_out=LEFT_OUT)
    add_engine(verb)
    verb.add_argument("--overwrite", action="store_true", help="replace files that exist")
    verb.add_argument("-q", "--quiet", action="store_true", help="print nothing but refusals")


def combine(arguments: argparse.Namespace) -> int:
    """Reads the stacks, combines them, and puts all files in their places, or none of them."""
    from thinslice.combination import check_places, combine_volumes, describe_combination, find_places
    from thinslice.errors import OutputRefused
    from thinslice.models.registry import models_for
    from thinslice.pipeline import read_scan as read_any

    if arguments.labels_out is not None and arguments.labels is None:
        raise OutputRefused(
            got="`labels_out` without `labels`",
            need="both",
            next="give `labels`, or leave both out",
            code="labels-out",
        )
    wanted = arguments.answer_grid
    grid = wanted if wanted in ("first", "union") else read_scan(Path(wanted))
    places = find_places(
        arguments.output, arguments.held_by, arguments.labels_out, arguments.report, arguments.labels is not None
    )
    inputs = [*arguments.input, *([arguments.labels] if arguments.labels is not None else [])]
    check_places(places, inputs, arguments.overwrite)
    settings = settings_from(arguments)
    scans = [read_any(path) for path in arguments.input]
    labels = read_scan(arguments.labels) if arguments.labels is not None else None
    with bar("combine", arguments.quiet) as show:
        done = combine_volumes(
            scans,
            models_for(settings.model, engine_from(arguments)),
            spacing_mm=arguments.spacing,
            grid=grid,
            registration=arguments.registration,
            labels=labels,
            settings=settings,
            target=arguments.output,
            progress=show,
        )
    done.save(
        arguments.output,
        held_by=arguments.held_by,
        labels_out=arguments.labels_out,
        report=arguments.report,
        overwrite=arguments.overwrite,
    )
    if not arguments.quiet:
        _tell(done, f"{describe_combination(done)}, {done.seconds:.1f} s", [str(place) for place in places.values()])
    return 0


def _tell(done: "Combined", what: str, written: list[str]) -> None:
    say(what)
    for stack in done.stacks:
        say(f"  {stack.describe()}")
    for note in done.notes:
        say(f"  note: {to_options(note)}")
    say(f"  wrote {', '.join(reversed(written))}")
