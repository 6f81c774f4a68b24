"""The verbs adapt and train: models that learn from scans. They need the packages of an extra."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

from thinslice.cli.options import Parser, add_verb, path_to_write, positive, sources
from thinslice.cli.terminal import complain, say, uninterrupted
from thinslice.errors import InputRefused
from thinslice.settings import PROFILES

NO_GROUND_TRUTH = "no-ground-truth"
"""The recipe that learns from target scans (`thinslice.training.no_ground_truth`)."""

RECIPES = ("default", "default-large", "video-mr", "video-mr-average", "planes", "planes-paper", NO_GROUND_TRUTH)
"""As in `thinslice.training.recipes`, and that one."""

_EXTRAS = {"torch": "train", "onnx": "train", "scipy": "train", "av": "video"}
"""Which extra brings a package that is imported only where it is needed."""


# ---- adapt


def add_adapt(verbs: "argparse._SubParsersAction[Parser]") -> None:
    """``thinslice adapt`` and its options."""
    verb = add_verb(verbs, "adapt", adapt, "adapt the model to your own thick scans; no thin truth is needed")
    verb.add_argument("-i", "--input", required=True, type=Path, nargs="+", metavar="SCANS", help="files, folders")
    verb.add_argument(
        "-o",
        "--output",
        required=True,
        type=path_to_write,
        metavar="NAME",
        help="the model, for --model NAME; in NAME.onnx",
    )
    verb.add_argument(
        "--minutes", type=positive(float), default=10.0, metavar="M", help="length of one adaptation (default: 10)"
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
            report=_hear_nothing if arguments.quiet else say,
            complain=complain,
        )
    if arguments.quiet:
        return 0
    for one in done:
        before, after = one.held_out
        loss = f"held-out loss {before:.5f} -> {after:.5f} ({100 * (after / before - 1):+.1f} %)"
        verdict = loss if one.adapted else "the losses did not fall enough: this is the starting model, unchanged"
        say(f"{', '.join(one.scans)}: {one.steps} steps in {one.minutes:.1f} min; {verdict}")
        say(f"  {'wrote' if one.new else 'left as it was:'} {one.model}")
    name = arguments.output.with_suffix("") if arguments.output.suffix == ".onnx" else arguments.output
    say(f"use it: thinslice enhance --model {quote(str(name))} -i IN -o OUT")
    return 0


def _hear_nothing(line: str) -> None:
    """Where nothing shall be said."""


# ---- train


def add_train(verbs: "argparse._SubParsersAction[Parser]") -> None:
    """``thinslice train`` and its options."""
    verb = add_verb(verbs, "train", train, "run a training recipe; ends with a model file for --model")
    verb.add_argument("recipe", metavar="RECIPE", help=f"one of {', '.join(RECIPES)}")
    verb.add_argument("--data", type=Path, metavar="DIR", help="folder with the recipe's source folders")
    verb.add_argument(
        "--target", type=Path, nargs="+", metavar="SCANS", help="no-ground-truth: thick scans, files or folders"
    )
    verb.add_argument(
        "-o", "--output", required=True, type=path_to_write, metavar="DIR", help="checkpoints, logs, the model"
    )
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
        metavar="PATH",
        help="a model file whose weights to start from, or (not for no-ground-truth) the folder of an earlier run",
    )
    verb.add_argument(
        "--keep-synthetic", action="store_true", help="no-ground-truth: write the volumes that were synthesised"
    )
    _add_acquisition(verb, "no-ground-truth: ")
    length = verb.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=positive(float), metavar="M", help="length, shared out over the stages")
    length.add_argument("--steps", type=positive(int), metavar="N", help="length, shared out over the stages")


def train(arguments: argparse.Namespace) -> int:
    """Run a recipe; checkpoints stay after an interruption, for --resume."""
    _check_options_of_recipe(arguments)
    with _training_installed():
        models = [_no_ground_truth(arguments)] if arguments.recipe == NO_GROUND_TRUTH else _from_data(arguments)
    family = {str(path.with_name(path.name.split(".")[0])) for path in models}
    names = [str(models[0])] if len(models) == 1 else sorted(family)
    for name in names:
        say(f"use it: thinslice enhance --model {quote(name)} -i IN -o OUT")
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
        start=None if arguments.start_from is None else Path(arguments.start_from),
        steps=arguments.steps,
        more_sources=arguments.add_source,
        report=say,
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
        report=say,
        complain=complain,
    )


# ---- what both need


def _add_acquisition(verb: argparse.ArgumentParser, recipe: str = "") -> None:
    """How scans are made thin that a model learns from."""
    wish = verb.add_mutually_exclusive_group()
    number = positive(float)
    wish.add_argument("--spacing", type=number, metavar="MM", help=f"{recipe}slice spacing you will ask enhance for")
    wish.add_argument("--factor", type=number, metavar="K", help=f"{recipe}or number of times closer slices")
    verb.add_argument(
        "--thickness", type=number, metavar="MM", help=f"{recipe}slice thickness of all scans; default: as in enhance"
    )
    verb.add_argument("--profile", choices=PROFILES, help=f"{recipe}slice profile (default: gaussian)")


def _sources_of_all(wishes: Sequence[Path]) -> list[Path]:
    """The scans at some paths, each once."""
    from thinslice.io.outputs import unique_names

    labels = unique_names(wishes)
    return list(dict.fromkeys(path for wish in labels for path in _sources_or_none(wish, labels[wish])))


def _sources_or_none(path: Path, label: str) -> list[Path]:
    """The scans at a path; none, after saying why, where there are none."""
    try:
        return sources(path)
    except InputRefused as refusal:
        complain(f"{label}: left out: {str(refusal).removeprefix(f'{path}: ')}")
        return []


@contextmanager
def _training_installed() -> Iterator[None]:
    """Says how to install what a training needs and does not find."""
    try:
        with uninterrupted():  # an import that is cut off half way is not repaired by another
            import thinslice.training.recipes  # noqa: F401
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRAS:
            raise
        raise InputRefused(
            f"training needs {missing}, which is not installed; next: pip install 'thinslice[{_EXTRAS[missing]}]'"
        ) from None
