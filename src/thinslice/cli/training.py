"""The verbs adapt and train: models that learn from scans. They need the packages of an extra."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from time import monotonic
from typing import TYPE_CHECKING

from thinslice.cli.options import Parser, add_threads, add_verb, path_argument, positive, sources
from thinslice.cli.terminal import complain, say, uninterrupted
from thinslice.cli.words import to_options
from thinslice.errors import InputRefused
from thinslice.settings import PROFILES, Settings
from thinslice.training.recipes import recipe_names

if TYPE_CHECKING:  # the import would bring torch
    from thinslice.training.stages import Recipe

EXTRAS = {"torch": "train", "onnx": "train", "scipy": "train", "av": "video"}
"""Which extra brings a package that is imported only where it is needed."""


# ---- adapt


def add_adapt(verbs: "argparse._SubParsersAction[Parser]") -> None:
    """Adds ``thinslice adapt`` and its options."""
    verb = add_verb(verbs, "adapt", adapt, "adapt the model to your own thick scans; no thin truth is needed")
    verb.add_argument(
        "-i", "--input", required=True, type=path_argument, nargs="+", metavar="SCANS", help="files, folders"
    )
    verb.add_argument(
        "-o",
        "--output",
        required=True,
        type=path_argument,
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
    add_threads(verb)
    verb.add_argument("-q", "--quiet", action="store_true", help="say nothing unless a scan is left out")


def adapt(arguments: argparse.Namespace) -> int:
    """Adapts a model to thick scans; where the held-out loss does not fall, the answer is the starting model."""
    begun = monotonic()  # the import of torch takes seconds of the minutes that were given
    with _training_installed(arguments.threads):
        from thinslice.training.recipes.adapt import adapt as adapt_to

        done = adapt_to(
            _find_all_sources(arguments.input),
            arguments.output,
            _settings(arguments, model=arguments.model),
            minutes=arguments.minutes,
            begun=begun,
            per_scan=arguments.per_scan,
            resume=arguments.resume,
            overwrite=arguments.overwrite,
            report=_say_nothing if arguments.quiet else _say,
            complain=_complain,
        )
    if arguments.quiet:
        return 0
    for one in done:
        before, after = one.held_out
        loss = f"held-out loss {before:.5f} -> {after:.5f} ({100 * (after / before - 1):+.1f} %)"
        verdict = loss if one.adapted else "the losses did not fall enough: this is the starting model, unchanged"
        say(f"{', '.join(one.scans)}: {one.steps} steps in {one.minutes:.1f} min, preparations included; {verdict}")
        if not one.new:
            say(f"  left as it was: {one.model}")
    name = arguments.output.with_suffix("") if arguments.output.suffix == ".onnx" else arguments.output
    say(f"use it: thinslice enhance --model {quote(str(name))} -i IN -o OUT")
    return 0


# ---- train


def add_train(verbs: "argparse._SubParsersAction[Parser]") -> None:
    """Adds ``thinslice train`` and its options."""
    verb = add_verb(verbs, "train", train, "run a training recipe; ends with a model file for --model")
    verb.add_argument("recipe", metavar="RECIPE", help=f"one of {', '.join(_recipes())}")
    verb.add_argument("--data", type=path_argument, metavar="DIR", help="folder with the recipe's source folders")
    verb.add_argument(
        "--target",
        type=path_argument,
        nargs="+",
        metavar="SCANS",
        help="no-ground-truth: thick scans, files or folders",
    )
    verb.add_argument(
        "-o", "--output", required=True, type=path_argument, metavar="DIR", help="checkpoints, logs, the model"
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
    add_threads(verb)
    length = verb.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=positive(float), metavar="M", help="length, shared out over the stages")
    length.add_argument("--steps", type=positive(int), metavar="N", help="length, shared out over the stages")


def train(arguments: argparse.Namespace) -> int:
    """Runs a recipe; checkpoints stay after an interruption, for --resume."""
    if arguments.recipe not in _recipes():
        known = ", ".join(_recipes())
        raise InputRefused(
            got=f"recipe {arguments.recipe!r}", need=f"one of {known}", next="choose one of them", code="unknown-recipe"
        )
    with _training_installed(arguments.threads):
        from thinslice.training.recipes import load_recipe

        recipe = load_recipe(arguments.recipe)
        _check_options_of_recipe(arguments, from_scans=recipe.train_on_scans is not None)
        models = _train_on_scans(recipe, arguments) if recipe.train_on_scans else _train_on_data(arguments)
    # Networks for planes are files NAME.PART-xFACTOR.onnx and one model, which is called NAME.
    family = {str(path.with_name(path.name.split(".")[0])) for path in models}
    names = [str(models[0])] if len(models) == 1 else sorted(family)
    for name in names:
        say(f"use it: thinslice enhance --model {quote(name)} -i IN -o OUT")
    return 0


def _recipes() -> list[str]:
    """Returns the names of the recipes of ``train``; ``adapt`` has a verb of its own."""
    return [name for name in recipe_names() if name != "adapt"]


def _check_options_of_recipe(arguments: argparse.Namespace, from_scans: bool) -> None:
    """Refuses options for recipes of the other kind: one learns from a folder of sources, or from scans."""
    of_scans = {
        "target": arguments.target,
        "keep_synthetic": arguments.keep_synthetic,
        "spacing_mm": arguments.spacing,
        "factor": arguments.factor,
        "thickness_mm": arguments.thickness,
        "profile": arguments.profile,
    }
    of_data = {"data": arguments.data, "add_source": arguments.add_source}
    wanted, other = ("target", of_data) if from_scans else ("data", of_scans)
    for option, value in other.items():
        if value:
            raise InputRefused(
                got=f"`{option}` for {arguments.recipe}",
                need=f"`{wanted}`",
                next=f"leave `{option}` out",
                code="option-of-another-recipe",
            )
    if not (of_scans if from_scans else of_data)[wanted]:
        what = "thick scans" if from_scans else "a folder with the recipe's source folders"
        raise InputRefused(got=f"no `{wanted}`", need=what, next=f"add `{wanted}`", code="option-missing")


def _train_on_data(arguments: argparse.Namespace) -> list[Path]:
    from thinslice.training.runner import train as run

    return run(
        arguments.recipe,
        arguments.data,
        arguments.output,
        resume=arguments.resume,
        minutes=arguments.minutes,
        steps=arguments.steps,
        start_from=None if arguments.start_from is None else Path(arguments.start_from),
        add_source=arguments.add_source,
        report=_say,
    )


def _train_on_scans(recipe: "Recipe", arguments: argparse.Namespace) -> list[Path]:
    assert recipe.train_on_scans is not None
    model: Path = recipe.train_on_scans(
        _find_all_sources(arguments.target),
        arguments.output,
        _settings(arguments),
        start_from=arguments.start_from,
        resume=arguments.resume,
        minutes=arguments.minutes,
        steps=arguments.steps,
        keep_synthetic=arguments.keep_synthetic,
        report=_say,
        complain=_complain,
    )
    return [model]


# ---- what both need


def _add_acquisition(verb: argparse.ArgumentParser, recipe: str = "") -> None:
    """Adds the options for how scans are made thin that a model learns from."""
    distance = verb.add_mutually_exclusive_group()
    number = positive(float)
    distance.add_argument(
        "--spacing", type=number, metavar="MM", help=f"{recipe}slice spacing you will ask enhance for"
    )
    distance.add_argument("--factor", type=number, metavar="K", help=f"{recipe}or number of times closer slices")
    verb.add_argument(
        "--thickness", type=number, metavar="MM", help=f"{recipe}slice thickness of all scans; default: as in enhance"
    )
    verb.add_argument("--profile", choices=PROFILES, help=f"{recipe}slice profile; default: found in each scan")


def _settings(arguments: argparse.Namespace, model: str = "default") -> Settings:
    """Returns what the options of `_add_acquisition` ask for."""
    return Settings(
        model=model,
        spacing_mm=arguments.spacing,
        factor=arguments.factor,
        thickness_mm=arguments.thickness,
        profile=arguments.profile,
    )


def _find_all_sources(paths: Sequence[Path]) -> list[Path]:
    """Returns the scans at some paths, each once."""
    from thinslice.io.outputs import unique_names

    labels = unique_names(paths)
    # A file that is named by itself and again by its folder is learnt from once.
    return list(dict.fromkeys(found for path in labels for found in _find_sources(path, labels[path])))


def _find_sources(path: Path, label: str) -> list[Path]:
    """Returns the scans at a path; none, after telling why, where there are none."""
    try:
        return sources(path)
    except InputRefused as refusal:
        # The reason begins with the path, which the label stands for already.
        _complain(f"{label}: left out: {str(refusal).removeprefix(f'{path}: ')}")
        return []


def _say(line: str) -> None:
    """Says a line in which settings are called as options are."""
    say(to_options(line))


def _say_nothing(line: str) -> None:
    """Says nothing, as `--quiet` asks."""


def _complain(line: str) -> None:
    """Complains in a line in which settings are called as options are."""
    complain(to_options(line))


@contextmanager
def _training_installed(threads: int | None) -> Iterator[None]:
    """Tells how to install what a training needs and does not find; it computes with as many threads as are given."""
    try:
        with uninterrupted():  # an import that is cut off half way is not repaired by another
            import thinslice.training.runner

            if threads is not None:
                thinslice.training.runner.use_threads(threads)
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        # A module of ours that is missing is a fault, and no extra would bring it.
        if missing not in EXTRAS:
            raise
        raise InputRefused(
            got=f"no {missing}",
            need="it for training",
            next=f"pip install 'thinslice[{EXTRAS[missing]}]'",
            code="missing-package",
        ) from error
