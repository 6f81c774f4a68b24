"""The command line: one module per verb or family of verbs; only `thinslice.cli.terminal` prints.

Whatever is slow to import is imported by the verb that needs it, so that ``thinslice --help`` answers at once. Answers
go to standard output, refusals and the progress bar to standard error. Exit codes: `thinslice.cli.terminal.EXIT_CODES`.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence

from thinslice.cli.batch import add_batch
from thinslice.cli.combine import add_combine
from thinslice.cli.completion import add_completion
from thinslice.cli.enhance import add_demo, add_enhance
from thinslice.cli.evaluate import add_evaluate
from thinslice.cli.options import EXIT_CODES_IN_SHORT, Parser
from thinslice.cli.scans import add_info, add_reslice, add_view
from thinslice.cli.study import add_study
from thinslice.cli.terminal import (
    INTERRUPTED,
    REFUSED,
    complain,
    log_to_terminal,
    logged,
    say,
    terminated_as_interrupted,
)
from thinslice.cli.training import add_adapt, add_train
from thinslice.cli.words import reason_of
from thinslice.errors import ThinsliceError

logger = logging.getLogger(__name__)

_WHAT_STAYS = {
    # The keys are the names of the functions that are the verbs: `main` looks up what was interrupted by them.
    "batch": "what is done stays; next: the same command goes on from there",
    "adapt": "next: the same command goes on from the last checkpoint in NAME.adapting, if there was one",
    "train": "next: --resume goes on from the last checkpoint, if there was one",
    "evaluate": "results.jsonl.part holds what was scored until then",
}
"""After an interruption, where it is not nothing."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code.

    Args:
        argv: the words after ``thinslice``; default: those this process was started with.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = make_parser().parse_args(words)
    arguments.words = words
    verb: Callable[[argparse.Namespace], int] = arguments.verb
    if arguments.debug:
        log_to_terminal()
    try:
        with logged(arguments.log, words):
            return _call(verb, arguments)
    except (ThinsliceError, OSError) as error:  # there can be no log
        complain(reason_of(error))
        return REFUSED


def _call(verb: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """Runs a verb and tells how it ended, if not well; returns the exit code."""
    try:
        with terminated_as_interrupted():
            return verb(arguments)
    except KeyboardInterrupt:
        complain(f"interrupted; {_WHAT_STAYS.get(verb.__name__, 'no unfinished file was left behind')}")
        return INTERRUPTED
    # Above OSError, of which it is one: that a reader has seen enough is nothing to complain of.
    except BrokenPipeError:  # as in: thinslice info ... | head -1
        # When Python ends it writes what is left in the buffer once more, and would complain of the pipe itself.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return REFUSED
    except (ThinsliceError, OSError, MemoryError) as error:
        logger.debug("the error below came from here", exc_info=error)
        complain(reason_of(error))
        return REFUSED


# argparse's own action wants the text of the version whenever a parser is made, which is at every start.
class _Version(argparse.Action):
    """Looks the version up only when it is wanted."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        say(f"thinslice {version('thinslice')}")
        parser.exit()


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the whole command line."""
    parser = Parser(
        prog="thinslice",
        description="Turn thick-slice MR and CT scans into thin-slice ones, and check the answer.",
        epilog=f"Start with: thinslice demo. {EXIT_CODES_IN_SHORT}",
        # An abbreviation that fits one option today fits two after the next version.
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    add_demo(verbs)
    add_enhance(verbs)
    add_combine(verbs)
    add_batch(verbs)
    add_info(verbs)
    add_reslice(verbs)
    add_view(verbs)
    add_adapt(verbs)
    add_train(verbs)
    add_evaluate(verbs)
    add_study(verbs)
    add_completion(verbs, parser)
    return parser
