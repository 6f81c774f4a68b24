"""Has what verbs share: options, parsers of their values, and the scans that these stand for."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from thinslice.cli.terminal import REFUSED, complain
from thinslice.cli.words import to_options
from thinslice.io.formats import formats_in_words
from thinslice.settings import PROFILES, Settings

if TYPE_CHECKING:
    from thinslice.models.engine import EngineSettings
    from thinslice.volume import Volume

SCAN = f"scan: {formats_in_words()}"
"""What the help calls an input of any format but DICOM."""

DICOM = "DICOM (a series, a study)"
"""What the help calls a folder of DICOM slices."""


# ---- options


EXIT_CODES_IN_SHORT = "Exit codes: 0 done, 2 refused or failed, 130 interrupted; the table is in docs/errors.md."
"""What ends every help text."""


class Parser(argparse.ArgumentParser):
    """Refuses in one line that says where help is."""

    def error(self, message: str) -> NoReturn:
        """Prints one line, and ends with the exit code of a refusal."""
        # argparse by itself prints the usage of all options before the reason; a refusal is one line, whoever refuses.
        complain(f"{message}; next: see '{self.prog} --help'")
        sys.exit(REFUSED)


def add_verb(
    verbs: "argparse._SubParsersAction[Parser]", name: str, run: Callable[[argparse.Namespace], int], what: str
) -> argparse.ArgumentParser:
    """Adds a verb without options of its own yet; ``run`` is called with what was parsed."""
    verb = verbs.add_parser(
        name, help=what, description=what[0].upper() + what[1:] + ".", epilog=EXIT_CODES_IN_SHORT, allow_abbrev=False
    )
    verb.set_defaults(verb=run)
    verb.add_argument(
        "--debug", action="store_true", help="tell on standard error what is done, and of an error where it came from"
    )
    verb.add_argument(
        "--log", type=path_argument, metavar="FILE", help="add what is said and done to the end of a file (.log, .txt)"
    )
    return verb


def add_settings(
    verb: argparse.ArgumentParser, leave_out: Sequence[str] = (), only: Sequence[str] | None = None, about: str = ""
) -> None:
    """Adds an option for every field of `thinslice.settings.Settings`, or for some of them.

    Args:
        verb: the parser that gets them.
        leave_out: fields without an option.
        only: the fields with one; default: all.
        about: what the help says before each of them.
    """
    for setting in dataclasses.fields(Settings):
        if setting.metadata and setting.name not in leave_out and (only is None or setting.name in only):
            _add_setting(verb, setting, about)


def _add_setting(verb: argparse.ArgumentParser, setting: "dataclasses.Field[Any]", about: str) -> None:
    kind, text = setting.metadata["kind"], about + setting.metadata["help"]
    name = to_options(f"`{setting.name}`")
    if kind is None:  # a flag, which turns the default around
        off = setting.default is True
        name = to_options(f"`{setting.name}=False`") if off else name
        verb.add_argument(name, dest=setting.name, action="store_false" if off else "store_true", help=text)
    elif isinstance(kind, tuple):
        verb.add_argument(name, dest=setting.name, choices=kind, default=setting.default, help=text)
    else:
        # argparse fills in %-formats of a help text.
        metavar = setting.metadata["metavar"]
        verb.add_argument(
            name, dest=setting.name, type=kind, default=setting.default, metavar=metavar, help=text.replace("%", "%%")
        )


def settings_from(arguments: argparse.Namespace, **changes: Any) -> Settings:
    """Returns what the options ask for.

    Args:
        arguments: of a verb with options of `add_settings`; a field without an option keeps its default.
        changes: fields that the verb decides by itself.

    Raises:
        PlanRefused: a value is right for no scan.
    """
    given = {setting.name for setting in dataclasses.fields(Settings)} & vars(arguments).keys()
    return Settings(**({name: getattr(arguments, name) for name in given} | changes))


def add_strict(verb: argparse.ArgumentParser) -> None:
    """Adds the option that makes what is no scan count as refused."""
    verb.add_argument(
        "--strict",
        action="store_true",
        help="DICOM: exit code 2 even where only what is no stack of slices was left out (localizers, dose pages ...)",
    )


def add_engine(
    verb: argparse.ArgumentParser, threads: str = "of the processor; default: all cores that may be used"
) -> None:
    """Adds the options that say how a network is run; ``threads`` is the help of ``--threads``."""
    add_threads(verb, threads)
    verb.add_argument("-d", "--device", default="cpu", metavar="DEVICE", help="what runs a network (default: cpu)")
    verb.add_argument("--precision", default="fp32", metavar="P", help="of a network's numbers (default: fp32)")


def add_threads(
    verb: argparse.ArgumentParser, threads: str = "of the processor; default: all cores that may be used"
) -> None:
    """Adds the option that says how many threads compute."""
    verb.add_argument("--threads", type=positive(int), metavar="N", help=threads)


def threads_from(arguments: argparse.Namespace) -> "EngineSettings":
    """Returns how a network is run, as the option of `add_threads` asks for it, and all else as usual."""
    from thinslice.models.engine import EngineSettings

    return EngineSettings(threads=arguments.threads)


def engine_from(arguments: argparse.Namespace) -> "EngineSettings":
    """Returns how a network is run, as the options of `add_engine` ask for it."""
    from thinslice.models.engine import EngineSettings

    return EngineSettings(device=arguments.device, threads=arguments.threads, precision=arguments.precision)


# ---- their values


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    """Returns a parser of positive numbers of one kind."""

    def parse(text: str) -> float:
        with suppress(ValueError):
            number = kind(text)
            # No comparison holds of NaN, so it is refused with the rest.
            if 0 < number < float("inf"):
                return number
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")

    return parse


def whole(text: str) -> int:
    """Parses a whole number."""
    # `int` alone takes 1_000, signs and digits of every script; `isdigit` alone takes superscripts.
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def path_argument(text: str) -> Path:
    """Parses a path: an empty one, of a variable that is not set, would mean the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("got an empty name; need the name of a file or folder; next: name it")
    return Path(text)


def numbers(text: str) -> list[float]:
    """Parses positive numbers, as in 2,3,4."""
    try:
        return [positive(float)(word) for word in text.split(",")]
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers like 2,3,4") from error


def amounts(text: str) -> list[float]:
    """Parses numbers from zero on, as in 0,3,5."""
    with suppress(ValueError):
        found = [float(word) for word in text.split(",")]
        # No comparison holds of NaN, so it is refused with the rest.
        if all(0 <= number < float("inf") for number in found):
            return found
    raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers from zero on, like 0,3,5")


def names(text: str) -> list[str]:
    """Parses names, at least one."""
    if not _words(text):
        raise argparse.ArgumentTypeError("no name in it; need at least one, such as default,cubic")
    return _words(text)


def profiles(text: str) -> list[str]:
    """Parses slice profiles, at least one."""
    wrong = [word for word in _words(text) if word not in PROFILES]
    if wrong or not _words(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of {', '.join(PROFILES)}")
    return _words(text)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


# ---- scans


def read_scan(path: Path) -> "Volume":
    """Reads the scan in a file."""
    from thinslice.io.formats import read

    return read(path)


def sources(path: Path) -> list[Path]:
    """Returns the scans at a path: the file itself, or those that lie directly in the folder."""
    from thinslice.io.outputs import find_sources

    return find_sources(path)
