"""The verb evaluate: scores models on scans that are made thick."""

import argparse

from thinslice.cli.options import Parser, add_settings, add_verb, names, numbers, path_argument, profiles, sources
from thinslice.cli.terminal import bar, say


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
    verb.add_argument("--profiles", type=profiles, default=["gaussian"], metavar="gaussian,box", help="slice profiles")
    verb.add_argument("--axes", choices=("last", "all"), default="last", help="made thick along these (default: last)")
    # Factor, thickness and profile come from the conditions, and both ways of the projection are scored.
    add_settings(verb, only=["fuse"])
    verb.add_argument("-q", "--quiet", action="store_true", help="no progress, no table on the terminal")


def evaluate(arguments: argparse.Namespace) -> int:
    """Scores models on simulated thick scans, and prints the table."""
    from thinslice.evaluation import benchmark

    conditions = benchmark.make_conditions(arguments.factors, arguments.thickness_ratios, arguments.profiles)
    paths = sources(arguments.input)
    with bar("evaluate", arguments.quiet) as show:
        found = benchmark.evaluate(
            paths,
            arguments.models,
            conditions,
            arguments.output,
            axes=arguments.axes,
            fuse=arguments.fuse,
            progress=lambda share, text: show(share),
        )
    if not arguments.quiet:
        say(found.table.rstrip())
        say(f"wrote {arguments.output / 'table.md'}, results.jsonl and pictures beside it")
    return 0
