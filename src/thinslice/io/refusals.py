"""How a file is refused: on one line that begins with its name and says what was got, what is needed, what to do."""

import gzip
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from thinslice.errors import InputRefused, OutputRefused

WHOLE = "the whole file"
"""What is needed where a part of a file is missing."""

AGAIN = "copy or download it again"
"""What to do then."""


def refused(got: str, need: str, then: str) -> InputRefused:
    """The refusal of an input, still without its name."""
    return InputRefused(f"got {got}; need {need}; next: {then}")


def unwritable(got: str, need: str, then: str) -> OutputRefused:
    """The refusal of an output, still without its name."""
    return OutputRefused(f"got {got}; need {need}; next: {then}")


def one_line(text: str) -> str:
    """The text with every run of white space as one blank."""
    return " ".join(text.split())


def by(numbers: Iterable[float]) -> str:
    """3 x 4 x 5."""
    return " x ".join(f"{n:g}" for n in numbers)


@contextmanager
def reading(path: Path, need: str, way: str) -> Iterator[None]:
    """Whatever goes wrong while a file is read becomes a refusal on one line that begins with its name.

    Args:
        path: the file.
        need: what kind of file is needed.
        way: how to come by one.

    Raises:
        InputRefused: something went wrong.
    """
    try:
        yield
        return
    except InputRefused as error:
        refusal = error
    except (EOFError, zlib.error, gzip.BadGzipFile):
        refusal = refused("a damaged or cut-off compressed stream", WHOLE, AGAIN)
    except MemoryError:
        refusal = refused("a scan larger than the free memory", "a smaller one", "crop it, or use a larger machine")
    except OSError as error:
        refusal = refused(f"no access ({error.strerror or error})", need, "check the name and the permissions")
    except (ValueError, OverflowError) as error:
        refusal = refused(f"what cannot be understood ({error})", need, way)
    raise InputRefused(one_line(f"{path}: {refusal}")) from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whatever goes wrong while a file is written becomes a refusal on one line that begins with its name.

    Raises:
        OutputRefused: something went wrong.
    """
    try:
        yield
        return
    except OutputRefused as error:
        refusal = error
    except OSError as error:
        reason = error.strerror or str(error)
        refusal = unwritable(f"no access ({reason})", "a folder with room and permission", "choose another output")
    raise OutputRefused(one_line(f"{path}: {refusal}")) from None
