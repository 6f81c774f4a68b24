"""The verb batch: a whole data set, on one machine or many."""

import argparse
import itertools
import os
import shlex
import sys
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, TextIO

from thinslice.cli.options import (
    Parser,
    add_engine,
    add_settings,
    add_strict,
    add_verb,
    engine_from,
    path_argument,
    positive,
    settings_from,
    whole,
)
from thinslice.cli.terminal import BAR_CELLS, REFUSED, complain, in_one_line, redraw, say
from thinslice.cli.words import named, reason_of, to_options
from thinslice.errors import InputRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from thinslice.datasets.engine import Engine, Progress
    from thinslice.datasets.find import Found
    from thinslice.datasets.job import Extra, Outcome
    from thinslice.settings import Settings

_BAD = ("refused", "failed")
"""How a scan of a data set may end so that the exit code says so."""

LONGEST_WORDS = 60
"""Letters of the name of a summary, from the labels it is of: with more, a name may be too long for a file system."""


def add_batch(verbs: "argparse._SubParsersAction[Parser]") -> None:
    """Adds ``thinslice batch`` and its options."""
    verb = add_verb(verbs, "batch", batch, "enhance a whole data set, on one machine or many; goes on where it stopped")
    verb.add_argument("bids", nargs="*", metavar="BIDS_DIR OUT_DIR participant", help="a BIDS data set; as a BIDS App")
    verb.add_argument(
        "-i", "--input", type=path_argument, metavar="DIR", help="or any folder of scans, with all folders in it"
    )
    verb.add_argument(
        "-o", "--output", type=path_argument, metavar="DIR", help="folder for the answers, which keep their paths"
    )
    for option, example in (("--participant-label", "01"), ("--session-label", "1"), ("--suffix", "T2w")):
        # BIDS Apps spell it --participant_label.
        names = [option, option.replace("-label", "_label")] if "-label" in option else [option]
        verb.add_argument(*names, nargs="+", metavar=example, help="BIDS: only these; default: all")
    add_settings(verb)
    where = verb.add_mutually_exclusive_group()
    where.add_argument(
        "--workers", type=positive(int), metavar="N", help="processes; default: as many as cores and memory allow"
    )
    where.add_argument(
        "--scheduler",
        metavar="tcp://HOST:PORT",
        help="use the workers of this Dask scheduler; --debug does not show what they do",
    )
    add_engine(verb, "of a worker; default: all cores, shared out; 1 of --scheduler")
    verb.add_argument(
        "--shard",
        metavar="I/N",
        help="do the I-th of N parts, counted from 1; default: the place of this task in a Slurm array, else all",
    )
    verb.add_argument(
        "--allowed-failures",
        type=whole,
        default=1,
        metavar="N",
        help="deaths of a process that a scan may cause before it is set aside, to be tried alone (default: 1)",
    )
    verb.add_argument(
        "--labels",
        type=path_argument,
        metavar="DIR",
        help="folder with segmentations on the scans' grids to bring along, at the scans' paths",
    )
    verb.add_argument(
        "--combine",
        action="store_true",
        help="make one volume of the scans of a visit (BIDS) or of a DICOM study that belong together, as 'thinslice "
        "combine'; enhance the others",
    )
    verb.add_argument(
        "--no-registration", dest="registration", action="store_false", help="of --combine: believe the headers"
    )
    verb.add_argument("--reports", action="store_true", help="also write a page for every scan; takes twice as long")
    verb.add_argument("--figures", action="store_true", help="also draw a figure for a paper of every scan")
    verb.add_argument(
        "--dry-run", action="store_true", help="say what would be done with each scan, or why not; compute nothing"
    )
    again = verb.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="keep what an earlier run has done: so it is without, too")
    again.add_argument("--overwrite", action="store_true", help="compute again what is done, replace other files")
    add_strict(verb)
    verb.add_argument("-q", "--quiet", action="store_true", help="say nothing unless something is refused")


def batch(arguments: argparse.Namespace) -> int:
    """Enhances a data set; what was done earlier is kept, and what is refused or fails is named at the end."""
    from thinslice.datasets import engine

    _check_form(arguments)
    settings = settings_from(arguments)
    engine.check_installed()
    if arguments.combine and arguments.registration:
        from thinslice.compute.registration import check_installed

        check_installed()
    cores, memory_bytes = engine.cores_and_bytes()
    worker_bytes = engine.COMBINING_BYTES if arguments.combine else engine.WORKER_BYTES
    workers = arguments.workers or engine.choose_workers(cores, memory_bytes, worker_bytes)
    part = engine.read_shard(arguments.shard, os.environ)
    # A scheduler's workers share the cores among themselves, and we do not know how: one thread each is never too many.
    threads = arguments.threads or (1 if arguments.scheduler else max(1, cores // workers))
    found = _find_data_set(arguments, settings, threads, part)
    if arguments.dry_run:
        return _preview_all(found, arguments.quiet)
    # A process without a scan would only start and import its libraries.
    where = engine.Engine(min(workers, max(1, len(found.jobs))), arguments.scheduler, arguments.allowed_failures)
    with _ProgressLines(arguments.quiet) as lines:
        return _Run(arguments, found, lines, part).do(where)


def _preview_all(found: "Found", quiet: bool) -> int:
    """Says what would be done with each scan, one after the other; the exit code is that which the run would have."""
    from thinslice.datasets.job import preview_job
    from thinslice.datasets.summary import WORDS

    outcomes: list[Outcome] = []
    for one in itertools.chain(found.failed, map(preview_job, found.jobs)):
        outcomes.append(replace(one, reason=to_options(one.reason)))
        words = "would be computed" if one.state == "left" else WORDS[one.state]
        about = one.slices or (one.reason if one.state == "thin" else "")
        if not quiet:
            say(f"{one.name}: {words}" + (f", {about}" if about else ""))
        if one.state in _BAD:
            complain(named(one.name, outcomes[-1].reason))
    if not quiet:
        say(f"{sum(one.state == 'left' for one in outcomes)} of {len(outcomes)} scans would be computed")
    return REFUSED if any(one.state in _BAD for one in outcomes) else 0


class _Run:
    """Keeps what became of the scans of one run, and says and writes it."""

    def __init__(
        self, arguments: argparse.Namespace, found: "Found", lines: "_ProgressLines", part: tuple[int, int]
    ) -> None:
        self.arguments, self.jobs, self.lines = arguments, found.jobs, lines
        self.page = arguments.output / f"{_summary_name(arguments, *part)}.html"
        self.started = perf_counter()
        self.outcomes: list[Outcome] = []
        for one in found.failed:
            self._add(one)
            if one.state in _BAD or arguments.strict:
                self.lines.complain(named(one.name, self.outcomes[-1].reason))
        # These were never jobs: they do not count in how many of the jobs are done.
        self.failed_before = len(self.outcomes)

    def do(self, where: "Engine") -> int:
        """Does all scans; the exit code says whether each has its answer."""
        from thinslice.datasets.engine import run

        try:
            if self.jobs:
                run(self.jobs, where, self._end, self._tell_workers)
        except (KeyboardInterrupt, InputRefused):  # what is done by now is worth a summary, whatever ended the run
            self._sum_up_interrupted()
            raise
        is_written = self._sum_up()
        # What is no scan is only missing where nothing else is there, or all is wanted.
        is_alone = all(one.state == "no-scan" for one in self.outcomes)
        bad = (*_BAD, "no-scan") if self.arguments.strict or is_alone else _BAD
        return 0 if is_written and not any(one.state in bad for one in self.outcomes) else REFUSED

    def _add(self, outcome: "Outcome") -> None:
        # Workers name settings as Python does; line, table and page of this run name options.
        self.outcomes.append(replace(outcome, reason=to_options(outcome.reason)))

    def _end(self, progress: "Progress") -> None:
        self._add(progress.outcome)
        self.lines.after(replace(progress, outcome=self.outcomes[-1]))

    def _tell_workers(self, there: int) -> None:
        self._describe()
        done = len(self.outcomes) - self.failed_before
        workers = f"{there} worker{'s' if there > 1 else ''}"
        waiting = f"waiting for workers of {self.arguments.scheduler}"
        self.lines.say(f"{done} of {len(self.jobs)}, {workers if there else waiting}")

    def _describe(self) -> None:
        """Writes what BIDS wants in the folder of derivatives: early, so that a run that is killed leaves it too."""
        from thinslice.datasets.bids import write_description

        if self.arguments.bids:
            self.lines.in_spite_of_errors(lambda: write_description(self.arguments.input, self.arguments.output))

    def _sum_up(self) -> bool:
        """Writes the table and the page; returns whether both could be written."""
        from thinslice.datasets.summary import make_table, write_page, write_table

        self._describe()
        seconds = perf_counter() - self.started
        self.lines.table(make_table(self.outcomes, seconds))
        about = self._describe_run()
        # A list, not `and`: the page is written even where the table could not be.
        written = [
            self.lines.in_spite_of_errors(lambda: write_table(self.page.with_suffix(".tsv"), self.jobs, self.outcomes)),
            self.lines.in_spite_of_errors(lambda: write_page(self.page, self.jobs, self.outcomes, seconds, about)),
        ]
        if all(written):
            self.lines.table([f"wrote {self.page} (open it in a browser) and {self.page.stem}.tsv beside it"])
        return all(written)

    def _describe_run(self) -> list[tuple[str, str]]:
        """Returns when, how and by what this was computed."""
        from importlib.metadata import version

        name, known = self.arguments.model, self.jobs[0].model_sha256 if self.jobs else None
        return [
            ("ended", datetime.now().astimezone().isoformat(" ", "seconds")),
            ("command", shlex.join(["thinslice", *self.arguments.words])),
            ("model", f"{name}, sha256 {known}" if known else str(name)),
            ("version", f"thinslice {version('thinslice')}"),
        ]

    def _sum_up_interrupted(self) -> None:
        from thinslice.datasets.job import Outcome

        if not self.outcomes:
            return
        reached = {one.name for one in self.outcomes}
        rest = [one.name for one in self.jobs if one.name not in reached]
        self.outcomes += [Outcome(name, "left", "the run ended before; next: run again") for name in rest]
        self._sum_up()


def _check_form(arguments: argparse.Namespace) -> None:
    """Refuses anything but BIDS_DIR OUT_DIR participant, or -i and -o; the former becomes the latter."""
    if not arguments.bids:
        if arguments.input is None or arguments.output is None:
            raise InputRefused(
                got="no data set",
                need="-i DIR -o DIR, or BIDS_DIR OUT_DIR participant",
                next="name them",
                code="no-data-set",
            )
        # Ignored silently they would look as if they had chosen something.
        for name in ("participant_label", "session_label", "suffix"):
            if getattr(arguments, name):
                raise InputRefused(
                    got=f"`{name}` for a folder of scans",
                    need="a BIDS data set",
                    next="leave it out",
                    code="bids-only",
                )
    elif len(arguments.bids) != 3 or arguments.bids[2] != "participant" or arguments.input or arguments.output:
        raise InputRefused(
            got=" ".join(arguments.bids),
            need="BIDS_DIR OUT_DIR participant, without -i and -o",
            next="correct it",
            code="not-a-bids-app-call",
        )
    else:
        from thinslice.io.outputs import empty_name

        if not arguments.bids[1]:
            raise empty_name("OUT_DIR")
        # From here on there is one form.
        arguments.input, arguments.output = Path(arguments.bids[0]), Path(arguments.bids[1])
    if not arguments.registration and not arguments.combine:
        raise InputRefused(
            got="`registration=False` without `combine`",
            need="both",
            next="give `combine`, or leave it out",
            code="registration-without-combine",
        )
    for name in ("input", "output", "labels"):  # workers are elsewhere
        if getattr(arguments, name) is not None:
            setattr(arguments, name, getattr(arguments, name).absolute())


def _find_data_set(arguments: argparse.Namespace, settings: "Settings", threads: int, part: tuple[int, int]) -> "Found":
    """Finds the scans of this shard."""
    from thinslice.datasets.bids import SUFFIXES, Choice
    from thinslice.datasets.find import (
        Orders,
        find_in_bids,
        find_in_folder,
        gather_studies,
        shard,
        sort_visits,
        split_by_series,
        without_any_scan,
    )
    from thinslice.models.engine import make_engine
    from thinslice.models.registry import identify, to_absolute

    settings = replace(settings, model=to_absolute(settings.model))  # workers are elsewhere
    extras: dict[Extra, bool] = {"page": arguments.reports, "figure": arguments.figures}
    engine, model_sha256 = replace(engine_from(arguments), threads=threads), identify(settings.model)
    if model_sha256 is not None:
        make_engine(engine)  # refuses once here what else every scan would be refused for
    orders = Orders(
        settings,
        model_sha256,
        frozenset(extra for extra, is_wanted in extras.items() if is_wanted),
        arguments.labels,
        arguments.overwrite,
        engine,
        combine=arguments.combine,
        registration=arguments.registration,
    )
    if arguments.bids:
        choice = Choice(arguments.participant_label, arguments.session_label, arguments.suffix or SUFFIXES)
        found = shard(find_in_bids(arguments.input, arguments.output, choice, orders), *part)
        found = sort_visits(found, arguments.input, arguments.output, orders) if arguments.combine else found
    else:
        # Shared out by name and only then opened: a shard reads the headers of its own scans alone.
        found = find_in_folder(arguments.input, arguments.output, orders)
        found = shard(gather_studies(found, arguments.input) if arguments.combine else found, *part)
        found = split_by_series(found, arguments.input, arguments.output, orders)
    # A shard may be empty, where there are more of them than scans; a data set may not.
    if part[1] == 1 and not found.jobs and not found.failed:
        raise without_any_scan(arguments.input)
    return found


def _summary_name(arguments: argparse.Namespace, index: int, count: int) -> str:
    """Names the summary: runs of other participants, or of other shards, leave each other's alone."""
    labels = [f"sub-{label.removeprefix('sub-')}" for label in sorted(arguments.participant_label or ())]
    labels += [f"ses-{label.removeprefix('ses-')}" for label in sorted(arguments.session_label or ())]
    words = "-".join([*labels, *sorted(arguments.suffix or ())])
    if len(words) > LONGEST_WORDS:
        # Nine for the dash and the eight digits behind it; the digits tell apart what begins alike.
        words = f"{words[: LONGEST_WORDS - 9]}-{sha256(words.encode(errors='replace')).hexdigest()[:8]}"
    part = f"{index}-of-{count}" if count > 1 else ""
    return "-".join(word for word in ("summary", words, part) if word)


class _ProgressLines:
    """Shows one line a scan, and how far it is: on a terminal on a last line, which is wiped at the end."""

    def __init__(self, quiet: bool) -> None:
        self.quiet, self.on_terminal = quiet, sys.stderr.isatty() and not quiet

    def __enter__(self) -> "_ProgressLines":
        return self

    def __exit__(self, *_: object) -> None:
        self._draw("")

    def say(self, text: str) -> None:
        """Shows a line that stays."""
        self.table([in_one_line(text)])

    def table(self, rows: "Sequence[str]") -> None:
        """Shows lines that stay, as they are."""
        self._draw("")
        for row in [] if self.quiet else rows:
            _if_heard(say, row, sys.stdout)

    def complain(self, text: str) -> None:
        """Shows a line about what went wrong."""
        self._draw("")
        complain(text)

    def in_spite_of_errors(self, write: "Callable[[], object]") -> bool:
        """Writes something beside the answers; returns whether it could, and says no more than why not."""
        try:
            write()
        except (OSError, ValueError) as error:
            self.complain(reason_of(error))
            return False
        return True

    def after(self, progress: "Progress") -> None:
        """Shows what became of a scan, and how far it is."""
        left = "" if progress.seconds_left is None else f", about {_duration(progress.seconds_left)} left"
        # On a terminal the last line says it; in a log there is none.
        in_log = "" if self.on_terminal or progress.done == progress.scans else left
        self.say(f"{progress.done}/{progress.scans} {_outcome_line(progress.outcome)}{in_log}")
        if progress.outcome.state in _BAD:
            self.complain(named(progress.outcome.name, progress.outcome.reason))
        share = progress.done / progress.scans
        bar = "#" * round(share * BAR_CELLS)
        self._draw(f"[{bar.ljust(BAR_CELLS, '.')}] {progress.done} of {progress.scans}{left}")

    def _draw(self, line: str) -> None:
        if self.on_terminal:
            _if_heard(redraw, line, sys.stderr)


def _if_heard(tell: "Callable[[str], None]", text: str, stream: TextIO) -> None:
    """Says something, if anybody listens: a log on a full disk, or a reader who has gone, ends no run."""
    # The stream itself goes nowhere: Python would try to write what is left in its buffer once more when it ends.
    try:
        tell(text)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _outcome_line(one: "Outcome") -> str:
    from thinslice.datasets.summary import WORDS

    if one.rms_percent is None:
        return f"{one.name}: {WORDS[one.state]}" + (f" ({one.reason})" if one.state in ("thin", "labels") else "")
    seconds = f", {one.seconds:.1f} s" if one.state == "done" else ""
    left_out = f"; {one.reason}" if one.reason else ""
    return f"{one.name}: {WORDS[one.state]}, {one.slices}{seconds}, agrees to {one.rms_percent:.2g} % RMS{left_out}"


def _duration(seconds: float) -> str:
    """Returns seconds in the unit that a person would use."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        # From two on: below, whole hours for 80 minutes would be off by a quarter.
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
