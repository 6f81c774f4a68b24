"""What is said and shown on the terminal, and which signals are heard; the only place that prints."""

import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TextIO

REFUSED, INTERRUPTED = 2, 130

BAR_CELLS = 30


# ---- what is shown


def say(text: str) -> None:
    """A line of the answer."""
    _print(text, sys.stdout)


def complain(text: str) -> None:
    """A line about what is refused or went wrong; a terminal that is closed hears of nothing."""
    with suppress(OSError):
        _print(f"thinslice: {in_one_line(text)}", sys.stderr)


def in_one_line(text: str) -> str:
    """Names of files may hold anything, orders to the terminal too."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))


def _print(text: str, stream: TextIO) -> None:
    """What the terminal cannot show is shown as its code: names of files and patients come in every alphabet."""
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def how_many(refused: int, scans: int, is_folder: bool, done: str = "enhanced", pages: int = 0) -> int:
    """Says how many scans of a folder were refused, and how many pages failed; the exit code."""
    if (refused or pages) and is_folder:
        failed = f", {pages} without the page asked for" if pages else ""
        complain(f"{refused} of {scans} scans refused, {scans - refused} {done}{failed}")
    return REFUSED if refused or pages else 0


@contextmanager
def bar(name: str, quiet: bool) -> Iterator[Callable[[float], None]]:
    """Draws the share done, 0 .. 1, as a bar on one line of the terminal, and wipes it at the end."""
    if quiet or not sys.stderr.isatty():
        yield lambda share: None
        return

    def show(share: float) -> None:
        done = round(share * BAR_CELLS)
        sys.stderr.write(f"\r{name[:30]} [{'#' * done}{'.' * (BAR_CELLS - done)}] {100 * share:3.0f} %")
        sys.stderr.flush()

    try:
        show(0.0)
        yield show
    finally:
        redraw("")


def log_to_terminal() -> None:
    """Let every module of the package tell on standard error what it does, and where an error came from."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(relativeCreated)7.0f ms  %(name)s: %(message)s"))
    package = logging.getLogger("thinslice")
    package.addHandler(handler)
    package.setLevel(logging.DEBUG)


def redraw(line: str) -> None:
    """Puts a line in the place of the last one, which has not ended yet."""
    sys.stderr.write(f"\r\x1b[K{line}")
    sys.stderr.flush()


# ---- what is heard


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """A polite kill (SIGTERM, as job schedulers send it; SIGHUP of a terminal that closes) cleans up like Ctrl-C."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    polite = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    heard = [number for number in polite if signal.getsignal(number) is not signal.SIG_IGN]  # as nohup asks for
    with _handled(interrupt, *heard):
        yield


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Puts Ctrl-C and SIGTERM off until the end."""
    came: list[int] = []
    with _handled(lambda number, _: came.append(number), signal.SIGINT, signal.SIGTERM):
        yield
    if came:
        raise KeyboardInterrupt


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals) -> Iterator[None]:
    """Signals go to a handler for a while; not where this is not the main thread, which alone may ask for that."""
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
