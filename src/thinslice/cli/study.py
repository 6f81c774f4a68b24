"""The verb study: makes a blinded comparison of methods by readers, and scores it."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from thinslice.cli.options import (
    DICOM,
    SCAN,
    Parser,
    add_settings,
    add_threads,
    add_verb,
    names,
    path_argument,
    read_scan,
    settings_from,
    sources,
    threads_from,
    whole,
)
from thinslice.cli.terminal import bar, complain, how_many, say, say_lines
from thinslice.cli.words import named, reason_of, to_options
from thinslice.errors import InputRefused, ThinsliceError
from thinslice.io.atomic import all_or_none

if TYPE_CHECKING:
    from thinslice.evaluation.reader_study import Scan, Study
    from thinslice.models.protocol import Model
    from thinslice.plan import Plan
    from thinslice.volume import Volume


def add_study(verbs: "argparse._SubParsersAction[Parser]") -> None:
    """Adds ``thinslice study`` and its options."""
    verb = add_verb(verbs, "study", study, "make a blinded reader study of some methods, one offline page; or score it")
    verb.add_argument(
        "-i", "--input", type=path_argument, metavar="CASES", help=f"thick scans: {SCAN}, a folder of them, or {DICOM}"
    )
    verb.add_argument(
        "-o", "--output", type=path_argument, metavar="PAGE", help="the page, .html; its key goes beside it"
    )
    verb.add_argument(
        "--methods", type=names, metavar="NAMES", help="two or more, as --model of enhance: lanczos,default"
    )
    add_settings(verb, leave_out=["model", "force"])
    add_threads(verb)
    verb.add_argument("--pairs", type=whole, metavar="N", help="comparisons, of all pairs of methods (default: 40)")
    verb.add_argument("--repeats", type=whole, metavar="N", help="of them shown once more (default: a fifth)")
    verb.add_argument("--seed", type=whole, default=0, metavar="S", help="of places, order and sides (default: 0)")
    verb.add_argument(
        "--window",
        type=float,
        nargs=2,
        metavar=("BLACK", "WHITE"),
        help="values shown black and white; default: the 0.5 and 99.5 percentiles of each scan",
    )
    verb.add_argument("--overwrite", action="store_true", help="replace a page and its key")
    verb.add_argument("-q", "--quiet", action="store_true", help="say nothing unless something is refused")
    verb.add_argument(
        "--score", type=path_argument, nargs="+", metavar="RESULTS", help="instead: score what readers saved"
    )
    verb.add_argument(
        "--key", type=path_argument, metavar="KEY", help="the study's key; default: beside the results, or here"
    )
    verb.add_argument("--json", action="store_true", help="the score as JSON")


def study(arguments: argparse.Namespace) -> int:
    """Makes a page that readers compare methods on, or scores what they saved."""
    # One verb does two things; options of the one that are given to the other would be ignored silently.
    making = {"-i": arguments.input, "-o": arguments.output, "--methods": arguments.methods}
    drawing = {"--pairs": arguments.pairs, "--repeats": arguments.repeats, "--seed": arguments.seed}
    scoring = {"--key": arguments.key, "--json": arguments.json}
    other = making | drawing if arguments.score else scoring
    for option, value in other.items():
        if value:
            purpose = "score a study" if arguments.score else "make one"
            raise InputRefused(
                got=f"{option} to {purpose}",
                need="it without",
                next=f"leave {option} out",
                code="study-makes-or-scores",
            )
    if arguments.score:
        return _score_study(arguments)
    for option, value in making.items():
        if not value:
            raise InputRefused(
                got=f"no {option}",
                need="-i, -o and --methods, or --score",
                next=f"add {option}",
                code="study-makes-or-scores",
            )
    return _make_study(arguments)


def _make_study(arguments: argparse.Namespace) -> int:
    """Writes the page and its key; scans that a method refuses are named and left out."""
    from dataclasses import replace

    from thinslice.evaluation.reader_study import PAIRS, StudySettings, make_study
    from thinslice.models.registry import find_model
    from thinslice.plan import make_plan

    settings = settings_from(arguments)
    files = _study_files(arguments)
    pairs = PAIRS if arguments.pairs is None else arguments.pairs
    study_settings = StudySettings(pairs, arguments.repeats, arguments.seed, _check_window(arguments.window))
    # The dict of models below would keep one of the two, and the study compare less than was meant.
    repeated = [name for name in arguments.methods if arguments.methods.count(name) > 1]
    if repeated:
        raise InputRefused(
            got=f"method {repeated[0]} twice", need="different ones", next="leave one out", code="method-twice"
        )
    models = {name: find_model(name, threads_from(arguments)) for name in arguments.methods}

    def plan(volume: "Volume", model: "Model") -> "Plan":
        """Plans networks as `enhance` does, interpolations as other programs do: not projected, nothing to fuse."""
        fuse, projection = settings.fuse and model.adds, settings.projection and model.adds
        # Lanczos as other programs have it is what a study is there to compare with (Georgescu et al. 2020).
        return make_plan(volume, replace(settings, fuse=fuse, projection=projection), model)

    scans = _find_scans(arguments.input)
    # Looked at before anything is computed: the number of places per scan depends on how many can be shown.
    sound = [scan for scan in scans if _can_be_shown(scan, models, plan)]
    if sound:
        with bar("study", arguments.quiet) as show:
            made = make_study(sound, models, plan, study_settings, show)
        # A page without its key could never be scored, nor could an old page with a new key.
        with all_or_none(files, arguments.overwrite) as parts:
            for part, text in zip(parts, (made.page, made.key), strict=True):
                part.write_text(text, encoding="utf-8")
        if not arguments.quiet:
            _describe_study(made, files, len(sound))
    return how_many(len(scans) - len(sound), len(scans), len(scans) > 1, "shown")


def _study_files(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """Returns the paths of the page and of the key beside it, if they may be written."""
    from thinslice.evaluation.reader_scores import KEY_ENDING
    from thinslice.io.outputs import PAGE_ENDINGS, Output, check_outputs

    page: Path = arguments.output
    key = page.parent / f"{page.stem}{KEY_ENDING}"
    outputs = [Output(page, "the page", PAGE_ENDINGS), Output(key, "its key")]
    check_outputs(outputs, [arguments.input], arguments.overwrite)
    return page, key


def _check_window(ends: Sequence[float] | None) -> tuple[float, float] | None:
    """Returns the values shown black and white, if the first is below the second and both are finite."""
    if ends is not None and not (ends[0] < ends[1] and abs(ends[0]) + abs(ends[1]) < float("inf")):
        raise InputRefused(
            got=f"--window {ends[0]:g} {ends[1]:g}",
            need="black below white",
            next="swap them, or leave it out",
            code="empty-window",
        )
    return None if ends is None else (ends[0], ends[1])


def _find_scans(path: Path) -> "list[Scan]":
    """Returns the scans in a file or folder, or the series of a DICOM study; what is unusable says why when read."""
    from functools import partial

    from thinslice.evaluation.reader_study import Scan
    from thinslice.io.outputs import find_study

    found = find_study(path)
    if found is None:
        return [Scan(file.name, partial(read_scan, file)) for file in sources(path)]
    from thinslice.io.dicom.pixels import read_series

    # A series that is no scan becomes one that cannot be read: so it is counted and named like all others.
    def refuse(reason: str) -> NoReturn:
        raise InputRefused(reason, code="unusable-series")

    usable = [Scan(one.label, partial(read_series, one)) for one in found.series]
    return usable + [Scan(one.label, partial(refuse, one.reason)) for one in found.unusable]


def _can_be_shown(scan: "Scan", models: "dict[str, Model]", plan: "Callable[[Volume, Model], Plan]") -> bool:
    """Tells whether all methods can do the scan; says why where one cannot."""
    from thinslice.evaluation.reader_study import check_scan

    try:
        check_scan(scan, models, plan)
    except (ThinsliceError, OSError, MemoryError) as error:
        complain(named(scan.name, reason_of(error)))
        return False
    return True


def _describe_study(made: "Study", files: tuple[Path, Path], scans: int) -> None:
    """Says what was made and where it lies."""
    say(f"made   {made.comparisons} comparisons of {scans} scan(s), {made.repeats} of them shown twice")
    for note in made.notes:
        say(f"  note: {to_options(note)}")
    say(f"wrote  {files[0]} ({len(made.page) / 1e6:.1f} MB; give readers this file alone)")
    say(f"       {files[1]} (which picture is whose: keep it, it is needed to score)")


def _score_study(arguments: argparse.Namespace) -> int:
    """Prints which method the readers prefer."""
    from thinslice.evaluation.reader_scores import make_table, score

    found = score(arguments.score, arguments.key)
    say_lines(found.to_json() if arguments.json else make_table(found))
    return 0
