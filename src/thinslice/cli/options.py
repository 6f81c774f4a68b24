"""What verbs share: options, parsers of their values, and the scans and plans that these stand for."""

import argparse
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from thinslice.cli.terminal import REFUSED, complain
from thinslice.io.formats import formats_in_words

if TYPE_CHECKING:
    from thinslice.models.protocol import Model
    from thinslice.plan import Plan
    from thinslice.volume import Volume

SCAN = f"scan: {formats_in_words()}"
DICOM = "DICOM (a series, a study)"

PROFILES = ("gaussian", "box")
GRIDS = ("fov", "centres")
"""As `thinslice.physics.profile.PROFILES` and `thinslice.models.envelope.GRIDS`, which would import numpy."""


# ---- options


class Parser(argparse.ArgumentParser):
    """Refuses in one line that says where help is."""

    def error(self, message: str) -> NoReturn:
        """One line, and the exit code of a refusal."""
        complain(f"{message}; next: see '{self.prog} --help'")
        sys.exit(REFUSED)


def add_verb(
    verbs: "argparse._SubParsersAction[Parser]", name: str, run: Callable[[argparse.Namespace], int], what: str
) -> argparse.ArgumentParser:
    """A verb without options yet; ``run`` is called with what was parsed."""
    verb = verbs.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".", allow_abbrev=False)
    verb.set_defaults(verb=run)
    verb.add_argument(
        "--debug", action="store_true", help="tell on standard error what is done, and of an error where it came from"
    )
    return verb


def add_plan_options(verb: argparse.ArgumentParser, model: bool = True) -> None:
    """What the new slices shall be like, and how they are computed."""
    wish = verb.add_mutually_exclusive_group()
    wish.add_argument("--spacing", type=float, metavar="MM", help="wanted slice spacing; default: as in-plane")
    wish.add_argument("--factor", type=float, metavar="K", help="wanted number of times closer slices")
    verb.add_argument(
        "--thickness",
        type=float,
        metavar="MM",
        help="slice thickness; default: what the header or SliceThickness of the JSON beside the scan says, else "
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
    add_fuse(verb)
    if model:
        add_model(verb)
    verb.add_argument(
        "--no-projection",
        action="store_true",
        help="leave the model's answer as it is, not made to agree with the scan",
    )


def add_model(verb: argparse.ArgumentParser) -> None:
    """Which model computes the slices."""
    verb.add_argument(
        "--model",
        default="default",
        metavar="MODEL",
        help="default (embedded network), planes-mr or planes-ct (networks that enlarge in-plane too), a model file "
        "(.onnx), nearest, linear, cubic or lanczos",
    )


def add_fuse(verb: argparse.ArgumentParser) -> None:
    """Whether a network is asked in several orientations."""
    verb.add_argument(
        "--fuse",
        action="store_true",
        help="ask a network in several orientations and join its answers: slower, a little better",
    )


# ---- their values


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    """A parser of positive numbers of one kind."""

    def parse(text: str) -> float:
        with suppress(ValueError):
            number = kind(text)
            if 0 < number < float("inf"):
                return number
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")

    return parse


def whole(text: str) -> int:
    """A parser of whole numbers."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def path_to_write(text: str) -> Path:
    """A parser of the path of an output: an empty one, of a variable that is not set, would mean the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("got an empty name; need the name of a file or folder; next: name it")
    return Path(text)


def numbers(text: str) -> list[float]:
    """A parser of positive numbers, as in 2,3,4."""
    try:
        return [positive(float)(word) for word in text.split(",")]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers like 2,3,4") from None


def names(text: str) -> list[str]:
    """A parser of names, at least one."""
    if not _words(text):
        raise argparse.ArgumentTypeError("no name in it; need at least one, such as default,cubic")
    return _words(text)


def profiles(text: str) -> list[str]:
    """A parser of slice profiles, at least one."""
    wrong = [word for word in _words(text) if word not in PROFILES]
    if wrong or not _words(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of {', '.join(PROFILES)}")
    return _words(text)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


# ---- scans and plans


def read_scan(path: Path) -> "Volume":
    """The scan in a file."""
    from thinslice.io.formats import read

    return read(path)


def sources(path: Path) -> list[Path]:
    """The scans at a path: the file itself, or those that lie directly in the folder."""
    from thinslice.io.outputs import find_sources

    return find_sources(path)


def plan_for(volume: "Volume", model: "Model", arguments: argparse.Namespace) -> "Plan":
    """The plan for a scan, as the options of `add_plan_options` ask for it."""
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
