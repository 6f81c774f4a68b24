"""The verb evaluate: scores models on scans that are made thick."""

import argparse

from thinslice.cli.options import (
    Parser,
    add_settings,
    add_threads,
    add_verb,
    amounts,
    names,
    numbers,
    path_argument,
    positive,
    profiles,
    sources,
)
from thinslice.cli.terminal import bar, say, say_lines
from thinslice.errors import PlanRefused
from thinslice.evaluation.conditions import NOISE_KINDS, make_conditions, make_mismatch_conditions
from thinslice.settings import PROFILES


def add_evaluate(verbs: "argparse._SubParsersAction[Parser]") -> None:
    """Adds ``thinslice evaluate`` and its options."""
    verb = add_verb(verbs, "evaluate", evaluate, "make thin scans thick, compute them back, and score the models")
    verb.add_argument(
        "-i", "--input", required=True, type=path_argument, metavar="DIR", help="near-isotropic scans, the truth"
    )
    verb.add_argument(
        "-o", "--output", required=True, type=path_argument, metavar="DIR", help="results, a table and pictures"
    )
    verb.add_argument("--factors", type=numbers, default=[4.0], metavar="2,3,4", help="slice spacings in thin voxels")
    verb.add_argument("--models", type=names, default=["default", "cubic"], metavar="NAMES", help="default,cubic")
    verb.add_argument(
        "--thickness-ratios", type=numbers, default=[1.0], metavar="1,0.75", help="slice thickness over slice spacing"
    )
    verb.add_argument(
        "--profiles", type=profiles, default=["gaussian"], metavar="gaussian,box", help=", ".join(PROFILES)
    )
    verb.add_argument(
        "--told",
        type=names,
        default=["true"],
        metavar="true,none,wrong",
        help="what the program is told of the slices: the truth (default), nothing, a wrong profile; or a profile and "
        "its width in slice spacings, such as box:0.75",
    )
    verb.add_argument(
        "--mismatch",
        action="store_true",
        help="five true profiles, each of them told and nothing told, as a matrix; instead of --profiles, "
        "--thickness-ratios and --told",
    )
    verb.add_argument(
        "--noise", type=amounts, default=[0.0], metavar="0,3,5", help="noise of the slices, %% of the intensity range"
    )
    verb.add_argument("--noise-kind", choices=NOISE_KINDS, default="gaussian", help="of it (default: gaussian)")
    verb.add_argument(
        "--brightness", type=amounts, default=[0.0], metavar="0,10", help="every other slice brighter by so many %%"
    )
    verb.add_argument(
        "--shift", type=amounts, default=[0.0], metavar="0,0.5", help="every other slice moved by so many pixels"
    )
    verb.add_argument(
        "--downstream",
        action="store_true",
        help="also tissue volumes, Dice and edge widths across the slices; nearest and linear are compared too",
    )
    verb.add_argument(
        "--crop", type=positive(int), metavar="N", help="the middle N voxels along each axis; default: all"
    )
    verb.add_argument(
        "--projected-only", action="store_true", help="no answers of networks without the projection: half the time"
    )
    verb.add_argument("--axes", choices=("last", "all"), default="last", help="made thick along these (default: last)")
    # Factor, thickness and profile come from the conditions, and both ways of the projection are scored.
    add_settings(verb, only=["fuse"])
    add_threads(verb)
    verb.add_argument("-q", "--quiet", action="store_true", help="no progress, no table on the terminal")


def evaluate(arguments: argparse.Namespace) -> int:
    """Scores models on simulated thick scans, and prints the table."""
    from thinslice.evaluation import benchmark

    disturbances = (arguments.noise, arguments.noise_kind, arguments.brightness, arguments.shift)
    if arguments.mismatch:
        _check_alone(arguments)
        conditions = make_mismatch_conditions(arguments.factors, *disturbances)
    else:
        slices = (arguments.factors, arguments.thickness_ratios, arguments.profiles)
        conditions = make_conditions(*slices, arguments.told, *disturbances)
    paths = sources(arguments.input)
    with bar("evaluate", arguments.quiet) as show:
        found = benchmark.evaluate(
            paths,
            arguments.models,
            conditions,
            arguments.output,
            axes=arguments.axes,
            fuse=arguments.fuse,
            downstream=arguments.downstream,
            crop=arguments.crop,
            projected_only=arguments.projected_only,
            threads=arguments.threads,
            progress=lambda share, text: show(share),
        )
    if not arguments.quiet:
        say_lines(found.table.rstrip())
        say(f"wrote {arguments.output / 'table.md'}, results.jsonl and pictures beside it")
    return 0


def _check_alone(arguments: argparse.Namespace) -> None:
    """Refuses what ``--mismatch`` chooses by itself.

    Raises:
        PlanRefused: an option says something else.
    """
    own = {"--thickness-ratios": arguments.thickness_ratios, "--profiles": arguments.profiles, "--told": arguments.told}
    defaults = {"--thickness-ratios": [1.0], "--profiles": ["gaussian"], "--told": ["true"]}
    given = [name for name, value in own.items() if value != defaults[name]]
    if given:
        raise PlanRefused(
            got=f"--mismatch and {' and '.join(given)}",
            need="one or the other, as --mismatch has its own",
            next="leave one out",
            code="mismatch-and-profiles",
        )
