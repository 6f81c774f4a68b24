"""Makes texts that several verbs print: options for settings, the name of a scan before a reason, one-line reasons."""

import re

from thinslice import errors

_SETTING = re.compile(r"`(\w+)(?:=([^`]*))?`")

QUOTES = "\"'"
"""What stands around a text in Python; a shell needs none around ours."""

_OTHER_NAMES = {
    ("spacing_mm", None): "--spacing",
    ("thickness_mm", None): "--thickness",
    ("projection", "False"): "--no-projection",
    ("denoise", "False"): "--no-denoise",
    ("interleaving", "False"): "--no-interleaving",
    ("registration", "False"): "--no-registration",
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
        # With its value first: --no-projection is the name of `projection=False` alone.
        if (setting, value) in _OTHER_NAMES:
            return _OTHER_NAMES[setting, value]
        name = _OTHER_NAMES.get((setting, None), "--" + setting.replace("_", "-"))
        # Flags have no value behind them on the command line.
        return name if value in (None, "True") else f"{name} {value.strip(QUOTES)}"

    return _SETTING.sub(option, text)


def named(name: str, reason: str) -> str:
    """Returns the reason with the scan's name before it, once."""
    # Reasons of readers begin with the path already.
    return reason if name in reason else f"{name}: {reason}"


def reason_of(error: BaseException) -> str:
    """Returns one line about an error, with options called as on the command line."""
    return to_options(errors.reason_of(error))
