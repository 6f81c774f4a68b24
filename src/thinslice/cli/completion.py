"""The verb completion: what makes a shell complete verbs and options."""

import argparse

from thinslice.cli.options import Parser, add_verb
from thinslice.cli.terminal import say_lines
from thinslice.errors import InputRefused

SHELLS = ("bash", "zsh", "tcsh")
"""Those for which a script can be made."""


def add_completion(verbs: "argparse._SubParsersAction[Parser]", parser: argparse.ArgumentParser) -> None:
    """Adds ``thinslice completion``; the script is made of the whole parser."""
    verb = add_verb(verbs, "completion", completion, "print a script that lets a shell complete verbs and options")
    verb.add_argument("shell", choices=SHELLS, help='eval "$(thinslice completion bash)", as a line of ~/.bashrc')
    verb.set_defaults(parser=parser)


def completion(arguments: argparse.Namespace) -> int:
    """Prints the script."""
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise InputRefused(
            got="no shtab",
            need="it for completion",
            next="pip install 'thinslice[completion]'",
            code="missing-package",
        ) from error
    say_lines(shtab.complete(arguments.parser, arguments.shell))
    return 0
