"""Prints lines, bars and errors on the terminal, and turns signals into interruptions; nothing else prints."""

import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import TextIO

from thinslice.errors import OutputRefused

DONE = 0
"""Exit code where all that was asked for is done."""

FAULT = 1
"""Exit code of Python after an error that nobody foresaw: a fault in this program."""

REFUSED = 2
"""Exit code where something was refused or has failed."""

INTERRUPTED = 130
"""Exit code after Ctrl-C or a polite kill: 128 and the number of SIGINT, as shells give it."""

EXIT_CODES = {
    DONE: "done; also where only what is no scan was left out of a DICOM study, without `--strict`",
    FAULT: "a fault in this program, with a traceback: please report it",
    REFUSED: "refused, or failed, all or some of it: each with a line on standard error that says why, and what helps",
    INTERRUPTED: "interrupted, by Ctrl-C, SIGTERM or SIGHUP; a second signal ends the program by that signal",
}
"""Exit code -> what it means; docs/errors.md has the table."""

ONE_SIGNAL_SECONDS = 0.3
"""Signals that come within this time are one: nobody presses Ctrl-C twice as fast."""

BAR_CELLS = 30
"""Characters of a progress bar: with a name and a percentage it fits into 80 columns."""


LOG_ENDINGS = (".log", ".txt")
"""How the name of a log ends."""

_lines = logging.getLogger(__name__)
_lines.addHandler(logging.NullHandler())  # Python would print complaints by itself, once more

# ---- what is shown


def say(text: str) -> None:
    """Prints a line of the answer on standard output; blanks in a row stay, as they align it."""
    say_lines(printable(text))


def say_lines(text: str) -> None:
    """Prints some lines on standard output, as they are: a table, or JSON."""
    _lines.info(text)
    _print(text, sys.stdout)


def complain(text: str) -> None:
    """Prints a line about what is refused or went wrong on standard error, where that is still open."""
    _lines.warning(in_one_line(text))
    with suppress(OSError):
        _print(f"thinslice: {in_one_line(text)}", sys.stderr)


def in_one_line(text: str) -> str:
    """Returns a text without line breaks and control characters, and with one blank where there were several."""
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """Returns a text without line breaks and control characters: names of files may hold orders to the terminal.

    Example:
        >>> printable("scan\\n\\x1b[2J.nii")
        'scan??[2J.nii'
    """
    return "".join(character if character.isprintable() else "?" for character in text)


def _print(text: str, stream: TextIO) -> None:
    """Prints what the terminal cannot show as its code: names of files and patients come in every alphabet."""
    encoding = stream.encoding or "utf-8"
    # Flushed, so that answers and complaints come in their order where both go into one file.
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def how_many(refused: int, scans: int, is_folder: bool, done: str = "enhanced", pages: int = 0) -> int:
    """Tells how many scans of a folder were refused and how many pages failed, and returns the exit code."""
    if (refused or pages) and is_folder:
        failed = f", {pages} without the page asked for" if pages else ""
        complain(f"{refused} of {scans} scans refused, {scans - refused} {done}{failed}")
    return REFUSED if refused or pages else 0


@contextmanager
def bar(name: str, quiet: bool) -> Iterator[Callable[[float], None]]:
    """Draws the share done, 0 .. 1, as a bar on one line of the terminal, and wipes it at the end."""
    # A log would keep every state of the bar.
    if quiet or not sys.stderr.isatty():
        yield lambda share: None
        return

    def show(share: float) -> None:
        done = round(share * BAR_CELLS)
        sys.stderr.write(f"\r{printable(name[:30])} [{'#' * done}{'.' * (BAR_CELLS - done)}] {100 * share:3.0f} %")
        sys.stderr.flush()

    try:
        show(0.0)
        yield show
    finally:
        redraw("")


def log_to_terminal() -> None:
    """Lets every module of the package tell on standard error what it does, and where an error came from."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(relativeCreated)7.0f ms  %(name)s: %(message)s"))
    # What is said stands on the terminal already.
    handler.addFilter(lambda record: record.name != _lines.name)
    # The package's alone: with the root logger those of Pillow and other libraries would speak too.
    package = logging.getLogger("thinslice")
    package.addHandler(handler)
    package.setLevel(logging.DEBUG)


@contextmanager
def logged(path: Path | None, words: Sequence[str]) -> Iterator[None]:
    """Adds what is said, and what every module tells of its work, to the end of a file while the block runs.

    Args:
        path: the file; None for no log.
        words: of the command line, with which the log begins.

    Raises:
        OutputRefused: the name is not that of a log, or it cannot be written.
    """
    if path is None:
        yield
        return
    # Added to, never replaced; but a scan, to which lines are added, is damaged as well.
    if path.suffix not in LOG_ENDINGS:
        raise OutputRefused(
            got="another kind of name for a log",
            need=" or ".join(LOG_ENDINGS),
            next="change it",
            place=path,
            code="log-name",
        )
    if path.exists() and not path.is_file():
        got, need = "no file in the place of a log", "the name of a file"
        raise OutputRefused(got=got, need=need, next="choose another", place=path, code="log-name")
    from importlib.metadata import version

    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s  %(levelname)-7s  %(name)s: %(message)s"))
    package = logging.getLogger("thinslice")
    earlier = package.level
    package.addHandler(handler)
    package.setLevel(logging.DEBUG)
    _lines.info("thinslice %s, called with: %s", version("thinslice"), shlex.join(words))
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(earlier)
        handler.close()


def redraw(line: str) -> None:
    """Puts a line in the place of the last one, which has not ended yet."""
    # ESC [ K wipes to the end of the line, as the one before may have been longer.
    sys.stderr.write(f"\r\x1b[K{line}")
    sys.stderr.flush()


# ---- what is heard


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Makes a polite kill clean up like Ctrl-C: SIGTERM, as job schedulers send it, and SIGHUP of a closed terminal.

    Whichever comes a second time ends the program at once, and nothing is cleaned up.
    """
    heard_at = float("-inf")

    def interrupt(number: int, _frame: FrameType | None) -> None:
        nonlocal heard_at
        earlier, heard_at = heard_at, monotonic()
        if earlier == float("-inf"):
            raise KeyboardInterrupt
        # Many senders send one signal twice: to the process, and to the group that it is in.
        if heard_at - earlier > ONE_SIGNAL_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    polite = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    heard = [number for number in polite if signal.getsignal(number) is not signal.SIG_IGN]  # as nohup asks for
    with _handled(interrupt, *heard):
        yield


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Puts Ctrl-C and SIGTERM off until the block ends."""
    came: list[int] = []
    with _handled(lambda number, _: came.append(number), signal.SIGINT, signal.SIGTERM):
        yield
    # Only now: the block is over, and the earlier handlers are back.
    if came:
        raise KeyboardInterrupt


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals) -> Iterator[None]:
    """Sends signals to a handler while the block runs; only the main thread may ask for that, others change nothing."""
    try:
        before = {number: signal.signal(number, handler) for number in numbers}
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
