"""What several verbs say, as text."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thinslice.plan import Plan

_WAYS_OUT = {
    FileNotFoundError: ("a file or folder that is there", "check the name"),
    FileExistsError: ("a folder", "choose another place"),
    NotADirectoryError: ("a folder", "choose another place"),
    IsADirectoryError: ("a file", "choose another name"),
    PermissionError: ("permission there", "choose another place"),
}
"""What is needed and what to do next, for errors of the operating system that are not about room."""


_SETTING = re.compile(r"`(\w+)(?:=([^`]*))?`")

QUOTES = "\"'"
"""What stands around a text in Python; a shell needs none around ours."""

_OTHER_NAMES = {
    ("spacing_mm", None): "--spacing",
    ("thickness_mm", None): "--thickness",
    ("projection", "False"): "--no-projection",
}
"""Options that are not called as the setting of a Python program is."""


def to_options(text: str) -> str:
    """Returns a message in which settings are called as on the command line: `spacing_mm=2` becomes --spacing 2.

    Example:
        >>> to_options("give `spacing_mm=0.5` or less, or leave `fuse` out")
        'give --spacing 0.5 or less, or leave --fuse out'
        >>> to_options("use `model='cubic'`")
        'use --model cubic'
    """

    def option(match: re.Match[str]) -> str:
        setting, value = match[1], match[2]
        if (setting, value) in _OTHER_NAMES:
            return _OTHER_NAMES[setting, value]
        name = _OTHER_NAMES.get((setting, None), "--" + setting.replace("_", "-"))
        return name if value in (None, "True") else f"{name} {value.strip(QUOTES)}"

    return _SETTING.sub(option, text)


def what_was_done(plan: "Plan") -> str:
    """Slices before and after, and by which model."""
    before, after = plan.spacing_thick_mm[plan.axis], plan.spacing_thin_mm[plan.axis]
    larger = f", each {plan.in_plane} times larger along both sides," if plan.in_plane > 1 else ""
    done = f"{plan.n_thick} slices x {before:.4g} mm -> {plan.n_thin} slices x {after:.4g} mm"
    return f"{done}{larger} with {plan.model}"


def named(name: str, reason: str) -> str:
    """The reason with the scan's name before it, once."""
    return reason if name in reason else f"{name}: {reason}"


def reason_of(error: Exception) -> str:
    """One line about an error that a user can do something about."""
    if isinstance(error, MemoryError):
        return (
            "got a scan larger than the free memory; need a smaller one; "
            "next: crop it, ask for fewer voxels, or use a larger machine"
        )
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        need, then = _WAYS_OUT.get(type(error), ("room and permission there", "free some room, or choose another"))
        return f"{place}got '{error.strerror}'; need {need}; next: {then}"
    return to_options(" ".join(str(error).split()))
