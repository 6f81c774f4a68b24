"""What became of a data set, for people: a table, a page to open in a browser, and all of it for a program.

The page shows no more than `MOST_ROWS` scans, those with a reason first; the .tsv holds all.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import get_args
from urllib.parse import quote

from thinslice.datasets.job import Job, Outcome, State
from thinslice.io.atomic import whole_or_not

MOST_ROWS = 2000
"""Scans that the page shows: a browser is slow with more, and nobody reads them."""

WORDS: dict[State, str] = {
    "done": "computed",
    "kept": "kept, computed earlier",
    "thin": "left out, thin already",
    "no-scan": "left out, no scan",
    "labels": "left alone, a segmentation",
    "refused": "refused",
    "failed": "failed",
    "left": "not done yet",
}
"""What a state is called in a table for people."""

LINKS = {"page": "page to look at", "figure": "figure (PNG)", "labels": "segmentation on the thin slices"}
"""What the links of the page are called to what was made beside an answer."""

_NO_LINES = str.maketrans("\t\n\r", "   ")
"""What would end a cell or a line of the table."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; background: #111; color: #ddd; }
table { border-collapse: collapse; } td, th { padding: .4rem .8rem; text-align: left; vertical-align: top; }
tr { border-bottom: 1px solid #333; } td { overflow-wrap: anywhere; }
td.number { text-align: right; } a { color: #8cf; }
.failed, .refused { color: #f99; } .thin, .no-scan, .labels, .kept, .left { color: #aaa; } img { max-height: 220px; }
"""


def counts(outcomes: Sequence[Outcome]) -> dict[State, int]:
    """Counts how many scans ended in which way; those that none did are left out.

    Example:
        >>> counts([Outcome("a", "done"), Outcome("b", "thin"), Outcome("c", "done")])
        {'done': 2, 'thin': 1}
    """
    found = {state: sum(one.state == state for one in outcomes) for state in get_args(State)}
    return {state: number for state, number in found.items() if number}


def make_table(outcomes: Sequence[Outcome], seconds: float) -> list[str]:
    """Returns a few aligned lines: how many scans ended how, and how fast."""
    rows = [(WORDS[state], str(number)) for state, number in counts(outcomes).items()]
    rows.append(("scans", str(len(outcomes))))
    done = [one for one in outcomes if one.state == "done"]
    if done:
        rows.append(("seconds by the clock", f"{seconds:.0f}"))
        rows.append(("computed per hour", f"{3600 * len(done) / max(seconds, 1e-9):.0f}"))
        rows.append(("worst agreement", f"{max(one.rms_percent or 0.0 for one in done):.2g} % RMS"))
    width = max(len(name) for name, _ in rows)
    return [f"{name.ljust(width)}  {value}" for name, value in rows]


def write_table(path: Path, jobs: Sequence[Job], outcomes: Sequence[Outcome]) -> None:
    """Writes a table of all scans, by name, tab by tab; its folder is the output.

    Raises:
        OSError: it cannot be written.
    """
    where = {job.name: job for job in jobs}
    with whole_or_not(path) as part:
        _write(part, _lines(sorted(outcomes, key=lambda one: one.name), where, path.parent))


def write_page(
    path: Path,
    jobs: Sequence[Job],
    outcomes: Sequence[Outcome],
    seconds: float,
    about: Sequence[tuple[str, str]] = (),
) -> None:
    """Writes a page to open in a browser; its folder is the output.

    Args:
        path: the page.
        jobs, outcomes: of the run.
        seconds: of the run, by the clock.
        about: what else is to be known of the run, as its date and its command; rows of a name and a text.

    Raises:
        OSError: it cannot be written.
    """
    where = {job.name: job for job in jobs}
    # The page ends after `MOST_ROWS`: what needs to be looked at must not be beyond that.
    bad_first = sorted(outcomes, key=lambda one: (one.state not in ("failed", "refused"), one.name))
    with whole_or_not(path) as part:
        _write(part, _page(bad_first, where, path.parent, seconds, about))


def _write(path: Path, text: str) -> None:
    """Writes a text; names of files that are no UTF-8 are shown with the codes of their bytes."""
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def _lines(outcomes: Sequence[Outcome], where: Mapping[str, Job], folder: Path) -> str:
    # "n/a" is what BIDS writes for a value that is missing from a table.
    head = ("scan", "state", "seconds", "rms_percent", "worst_percent", "answer", "reason", "combined_of")
    rows = [
        (
            one.name,
            one.state,
            f"{one.seconds:.2f}",
            _percent(one.rms_percent),
            _percent(one.worst_percent),
            where[one.name].destination.relative_to(folder).as_posix() if one.state in ("done", "kept") else "n/a",
            one.reason or "n/a",
            "; ".join(_members(where.get(one.name))) or "n/a",
        )
        for one in outcomes
    ]
    return "".join("\t".join(cell.translate(_NO_LINES) for cell in row) + "\n" for row in (head, *rows))


def _members(job: Job | None) -> list[str]:
    """Returns the names of the scans that become one volume; nothing where it is one alone."""
    return [] if job is None or job.group is None else [member.name for member in job.group.members]


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3g}"


def _page(
    outcomes: Sequence[Outcome],
    where: Mapping[str, Job],
    folder: Path,
    seconds: float,
    about: Sequence[tuple[str, str]],
) -> str:
    lines = [*make_table(outcomes, seconds), *(f"{name}: {text}" for name, text in about)]
    summary = "".join(f"<li>{escape(line)}</li>" for line in lines)
    rows = "\n".join(_row(one, where.get(one.name), folder) for one in outcomes[:MOST_ROWS])
    more = len(outcomes) - MOST_ROWS
    rest = f"<p>and {more} more, see the .tsv beside this page</p>" if more > 0 else ""
    head = "".join(
        f"<th>{name}</th>"
        for name in ("scan", "acquired, computed", "agreement", "seconds, with reading and writing", "outcome")
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><meta charset="utf-8"><title>thinslice: a data set</title>'
        f"<style>{_STYLE}</style>\n<h1>{len(outcomes)} scans</h1><ul>{summary}</ul>\n"
        f"<table><tr>{head}</tr>\n{rows}\n</table>{rest}\n</html>\n"
    )


def _row(one: Outcome, job: Job | None, folder: Path) -> str:
    members = "".join(f"<br>of {escape(name)}" for name in _members(job))
    cells = [f"<td>{escape(one.name)}{members}<br>{escape(one.slices)}{_links(one, job, folder)}</td>"]
    # What could not become a job has no places, and what was not computed has nothing in them.
    there = job is not None and one.state in ("done", "kept")
    # Lazy: a browser opens the pictures that are scrolled to, and not two thousand of them at once.
    picture = f'<img loading="lazy" alt="" src="{_link(job.thumbnail, folder)}">' if there and job else ""
    agreement = "" if one.rms_percent is None else f"{_percent(one.rms_percent)} % RMS<br>"
    worst = "" if one.worst_percent is None else f"{_percent(one.worst_percent)} % at worst"
    cells += [f"<td>{picture}</td>", f"<td>{agreement}{worst}</td>", f'<td class="number">{one.seconds:.1f}</td>']
    reason = f"<br>{escape(one.reason)}" if one.reason else ""
    cells.append(f'<td class="{one.state}">{WORDS[one.state]}{reason}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _links(one: Outcome, job: Job | None, folder: Path) -> str:
    if job is None or one.state not in ("done", "kept"):
        return ""
    files: dict[str, Path] = {"thin slices": job.destination, "report (JSON)": job.sidecar}
    # what an earlier run made of the answer belongs to it, as long as it is there
    shown = {extra: place for extra, place in job.extras.items() if extra in job.wanted or extra != "labels"}
    files |= {extra: place for extra, place in shown.items() if place.exists()}
    links = (f'<a href="{_link(path, folder)}">{LINKS.get(name, name)}</a>' for name, path in files.items())
    return f"<br>{' '.join(links)}"


def _link(path: Path, folder: Path) -> str:
    # Relative, so that the page can be moved with its folder; names that are no UTF-8 become the codes of their bytes.
    return escape(quote(path.relative_to(folder).as_posix(), errors="surrogateescape"))
