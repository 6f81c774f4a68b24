"""How a file is refused: on one line that begins with its name and says what was got, what is needed, what to do."""

import gzip
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from thinslice.errors import InputRefused, OutputRefused, ThinsliceError

WHOLE = "the whole file"
"""What is needed where a part of a file is missing."""

AGAIN = "copy or download it again"
"""What to do then."""


def refused(got: str, need: str, then: str, *, code: str) -> InputRefused:
    """Returns the refusal of an input, still without its name; see `thinslice.errors.ThinsliceError`."""
    return InputRefused(got=one_line(got), need=one_line(need), next=one_line(then), code=code)


def unwritable(got: str, need: str, then: str, *, code: str) -> OutputRefused:
    """Returns the refusal of an output, still without its name; see `thinslice.errors.ThinsliceError`."""
    return OutputRefused(got=one_line(got), need=one_line(need), next=one_line(then), code=code)


def without_place(error: InputRefused) -> InputRefused:
    """Returns the same refusal without the file that it is about, for a list that names the file by itself."""
    return InputRefused(got=error.got, need=error.need, next=error.next, code=error.code)


def one_line(text: str) -> str:
    """Returns the text with every run of white space as one blank.

    Example:
        >>> one_line("two\\n  lines")
        'two lines'
    """
    return " ".join(text.split())


def by(numbers: Iterable[float]) -> str:
    """Returns sizes in words.

    Example:
        >>> by([3, 4, 0.5])
        '3 x 4 x 0.5'
    """
    return " x ".join(f"{n:g}" for n in numbers)


@contextmanager
def reading(path: Path, need: str, way: str) -> Iterator[None]:
    """Turns whatever goes wrong while a file is read into a refusal on one line that begins with its name.

    Args:
        path: the file.
        need: what kind of file is needed.
        way: how to come by one.

    Raises:
        InputRefused: something went wrong.
    """
    place = one_line(str(path))
    try:
        yield
    except ThinsliceError as error:
        if error.place:
            raise
        raise error.at(place) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise refused("a damaged or cut-off compressed stream", WHOLE, AGAIN, code="cut-off").at(place) from error
    except MemoryError as error:
        way = "crop it, or use a larger machine"
        raise refused("a scan larger than the free memory", "a smaller one", way, code="memory").at(place) from error
    except OSError as error:
        got = f"no access ({error.strerror or error})"
        raise refused(got, need, "check the name and the permissions", code="no-access").at(place) from error
    except (ValueError, OverflowError) as error:
        raise refused(f"what cannot be understood ({error})", need, way, code="damaged-header").at(place) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns whatever goes wrong while a file is written into a refusal on one line that begins with its name.

    Raises:
        OutputRefused: something went wrong.
    """
    place = one_line(str(path))
    try:
        yield
    except OutputRefused as error:
        if error.place:
            raise
        raise error.at(place) from error
    except OSError as error:
        got, need = f"no access ({error.strerror or error})", "a folder with room and permission"
        raise unwritable(got, need, "choose another output", code="output-not-writable").at(place) from error
