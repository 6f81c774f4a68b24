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

import re

_PARTS = re.compile(r"(?s)(?:(?P<place>.*?): )?got (?P<got>.*?)(?:; need (?P<need>.*?))?(?:; next: (?P<next>.*))?")
_SETTING = re.compile(r"`(\w+)(?:=[^`]*)?`")


class ThinsliceError(ValueError):
    """The root of every error that a caller may want to catch.

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
            found = _PARTS.fullmatch(message)
            parts = {name: text or "" for name, text in found.groupdict().items()} if found else {"got": message}
            got, need, next, place = (parts.get(name, "") for name in ("got", "need", "next", "place"))
        self.got, self.need, self.next, self.place, self.code = got, need, next, str(place), code
        parts_told = [f"got {got}" if got else "", f"need {need}" if need else "", f"next: {next}" if next else ""]
        told = message or "; ".join(part for part in parts_told if part)
        super().__init__(told if message or not self.place else f"{self.place}: {told}")

    @property
    def options(self) -> tuple[str, ...]:
        """The settings that the error speaks of, by their names in Python, each once."""
        return tuple(dict.fromkeys(_SETTING.findall(str(self))))

    def at(self, place: object) -> "ThinsliceError":
        """The same error about a file or scan that only the caller knows; one that has its place keeps it."""
        if self.place:
            return self
        return type(self)(got=self.got, need=self.need, next=self.next, place=place, code=self.code)

    def __reduce__(self) -> tuple[object, ...]:
        """An error that is sent to another process keeps its fields."""
        return _again, (type(self), self.args, self.__dict__)


class InputRefused(ThinsliceError):
    """The file cannot be read as a scan."""


class PlanRefused(ThinsliceError):
    """The scan can be read, but not made thinner as asked."""


class ModelRefused(ThinsliceError):
    """There is no such model, or the file is not a thinslice model."""


class OutputRefused(ThinsliceError):
    """The answer may not be written there."""


def _again(kind: type[ThinsliceError], arguments: tuple[str, ...], fields: dict[str, str]) -> ThinsliceError:
    error = kind(*arguments)
    error.__dict__.update(fields)
    return error
