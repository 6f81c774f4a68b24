"""What can go wrong, as one small tree. Every error says what was got, what is needed, and what to do next.

ThinsliceError            (a ValueError; the command line prints it on one line and exits with 2)
|-- InputRefused          the file cannot be read as a scan
|-- PlanRefused           the scan can be read, but not made thinner as asked; the way out is in the message
|-- ModelRefused          there is no such model, or the file is not one of ours
`-- OutputRefused         the answer may not be written there

Settings are called in an error as a Python program calls them, between backticks: `` `spacing_mm=1.2` ``. The command
line shows them as its own options (``--spacing 1.2``), so that neither surface speaks the language of the other.
docs/errors.md lists every code.
"""

import errno
import re

_PARTS = re.compile(r"(?s)(?:(?P<place>.*?): )?got (?P<got>.*?)(?:; need (?P<need>.*?))?(?:; next: (?P<next>.*))?")
_SETTING = re.compile(r"`(\w+)(?:=[^`]*)?`")

_WAYS_OUT: dict[type[OSError], tuple[str, str]] = {
    FileNotFoundError: ("a file or folder that is there", "check the name"),
    FileExistsError: ("a folder", "choose another place"),
    NotADirectoryError: ("a folder", "choose another place"),
    IsADirectoryError: ("a file", "choose another name"),
    PermissionError: ("permission there", "choose another place"),
}
"""What is needed and what to do next, for errors of the operating system that are not about room."""


_WAYS_OUT_BY_NUMBER = {
    errno.EINVAL: ("a file", "save it to a file first"),
    errno.EFBIG: ("a smaller file", "check the name"),
    errno.ENAMETOOLONG: ("a shorter path", "choose a place with a shorter name, or fewer folders above it"),
}
"""The same for those that have no class of their own."""


class ThinsliceError(ValueError):
    """The root of every error that a caller may want to catch.

    Args:
        message: the whole sentence instead of its parts, where it comes from elsewhere; it is taken apart.

    Attributes:
        got: what was found, as the rest of a sentence that begins with "got".
        need: what would have been accepted.
        next: what the reader can do about it.
        place: the file or scan that it is about, empty where the caller knows.
        code: which reason it is, in letters that stay the same when the words change; see docs/errors.md.

    Example:
        >>> error = InputRefused(got="1 slice", need="at least 2", next="give the whole stack", code="one-slice")
        >>> str(error)
        'got 1 slice; need at least 2; next: give the whole stack'
        >>> error.code
        'one-slice'
    """

    def __init__(
        self, message: str = "", *, got: str = "", need: str = "", next: str = "", place: object = "", code: str = ""
    ) -> None:
        if message:
            # A text that was put together elsewhere, as the reason of a series that cannot be used, is taken apart
            # again: every error has its fields. A sentence of another form is all of it what was got.
            found = _PARTS.fullmatch(message)
            parts = {name: text or "" for name, text in found.groupdict().items()} if found else {"got": message}
            got, need, next, place = (parts.get(name, "") for name in ("got", "need", "next", "place"))
        self.got, self.need, self.next, self.place, self.code = got, need, next, str(place), code
        clauses = [f"got {got}" if got else "", f"need {need}" if need else "", f"next: {next}" if next else ""]
        sentence = message or "; ".join(clause for clause in clauses if clause)
        # A message begins with its place already.
        super().__init__(sentence if message or not self.place else f"{self.place}: {sentence}")

    @property
    def options(self) -> tuple[str, ...]:
        """The settings that the error speaks of, by their names in Python, each once."""
        return tuple(dict.fromkeys(_SETTING.findall(str(self))))

    def at(self, place: object) -> "ThinsliceError":
        """Returns the same error about a file or scan that only the caller knows; one that has its place keeps it."""
        if self.place:
            return self
        return type(self)(got=self.got, need=self.need, next=self.next, place=place, code=self.code)

    def __reduce__(self) -> tuple[object, ...]:
        """Keeps the fields of an error that is sent to another process."""
        # By itself an exception is pickled as its class and its text, and code, place and the rest would be empty.
        return _again, (type(self), self.args, self.__dict__)


class InputRefused(ThinsliceError):
    """The file cannot be read as a scan."""


class PlanRefused(ThinsliceError):
    """The scan can be read, but not made thinner as asked."""


class ModelRefused(ThinsliceError):
    """There is no such model, or the file is not a thinslice model."""


class OutputRefused(ThinsliceError):
    """The answer may not be written there."""


def reason_of(error: BaseException, name_file: bool = True) -> str:
    """Returns one line about any error: what was got, what is needed, what to do next.

    Args:
        error: one of ours, of the operating system, or any other.
        name_file: whether the file is named that the operating system complains of.

    Example:
        >>> reason_of(PermissionError(13, "Permission denied", "thin.nii"))
        "thin.nii: got 'Permission denied'; need permission there; next: choose another place"
    """
    if isinstance(error, MemoryError):
        # Python's own has no text, and numpy's speaks of shapes and types of arrays.
        return (
            "got a scan larger than the free memory; need a smaller one; "
            "next: crop it, ask for fewer voxels, or use a larger machine"
        )
    # Those of gzip and zlib have no `strerror`: their text is all they say.
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename and name_file else ""
        # By the class itself, not by `isinstance`: a full disk and a spent quota have none of their own and are a bare
        # OSError.
        usual = _WAYS_OUT_BY_NUMBER.get(
            error.errno or 0, ("room and permission there", "free some room, or choose another")
        )
        need, then = _WAYS_OUT.get(type(error), usual)
        return f"{place}got '{error.strerror}'; need {need}; next: {then}"
    # Messages of libraries run over several lines, and some have no text at all; a reason is one line.
    return " ".join(str(error).split()) or type(error).__name__


def _again(kind: type[ThinsliceError], arguments: tuple[str, ...], fields: dict[str, str]) -> ThinsliceError:
    error = kind(*arguments)
    error.__dict__.update(fields)
    return error
