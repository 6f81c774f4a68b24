"""Computes from what readers answered which method they prefer, how surely, and whether they agree with themselves.

Of a pair shown twice the first time counts, and both are compared: that is how well a reader agrees with himself. "No
difference" counts half for each method in the share of preference, and not at all in the sign test.
"""

import json
import logging
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist, median
from typing import Any

from thinslice.errors import InputRefused
from thinslice.evaluation.reader_study import KEY_FORMAT, RESULTS_FORMAT
from thinslice.files import read_text

logger = logging.getLogger(__name__)

CHOICES = ("left", "right", "none")
"""What a reader can answer to a pair; ``none``: no difference."""

CONFIDENCE = 0.95
"""Probability with which an interval holds the true share, as is usual in reader studies."""

KEY_ENDING = ".key.json"
"""What the name of a study's key ends with, beside the page of the same stem."""


@dataclass(frozen=True)
class Preference:
    """How one reader, or all together, judged one pair of methods.

    Attributes:
        method, over: the two; ``share`` is of the first.
        reader: None for all readers together.
        comparisons, preferred, against, ties: how many, and for which.
        share: (preferred + ties / 2) / comparisons.
        interval: of the share, by `wilson`.
        share_without_ties: preferred / (preferred + against), None where all were ties.
        p: of the sign test, by `sign_test`.
        repeats, agreed: pairs answered both times, and how many of them in the same way.
    """

    method: str
    over: str
    reader: str | None
    comparisons: int
    preferred: int
    against: int
    ties: int
    share: float
    interval: tuple[float, float]
    share_without_ties: float | None
    p: float
    repeats: int
    agreed: int


@dataclass(frozen=True)
class Reader:
    """What one reader did.

    Attributes:
        name: as the reader gave it.
        answered, showings: how many of all trials, repeats among them, were answered.
        left, right, none: how often each answer was given.
        seconds: median time for one answer.
    """

    name: str
    answered: int
    showings: int
    left: int
    right: int
    none: int
    seconds: float


@dataclass(frozen=True)
class Preferences:
    """Everything `score` found.

    Attributes:
        study: the number of the study.
        readers: what each reader did.
        rows: of every pair of methods a row for each reader, then one for all readers together.
    """

    study: str
    readers: tuple[Reader, ...]
    rows: tuple[Preference, ...]

    def to_json(self) -> str:
        """Returns readable JSON."""
        return json.dumps({"confidence": CONFIDENCE, **asdict(self)}, indent=2)


@dataclass(frozen=True)
class _Results:
    """The file of one reader.

    Attributes:
        path: the file.
        reader: the reader's name.
        answers: trial -> choice, and milliseconds that it took, of each trial that was answered.
    """

    path: Path
    reader: str
    answers: dict[str, tuple[str, int]]


# ---- statistics


def wilson(successes: float, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Returns the score interval of a share (Wilson, J. Am. Stat. Assoc. 22, 1927).

    It stays within 0 .. 1 and says something where all agree, unlike that of the normal approximation.

    Args:
        successes: 0 .. trials; half successes are allowed.
        trials: above 0.
        confidence: probability with which the interval holds the true share.

    Returns:
        Lower and upper end, 0 .. 1.

    Example:
        >>> low, high = wilson(8, 10)
        >>> f"{low:.3f} to {high:.3f}"
        '0.490 to 0.943'
    """
    # From the standard library: SciPy comes only with the extra for training.
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, weight = successes / trials, z * z / trials
    middle = (share + weight / 2) / (1 + weight)
    reach = z / (1 + weight) * math.sqrt(share * (1 - share) / trials + weight / (4 * trials))
    # Rounding may take an end beyond 0 or 1 by the last digit, where all agree.
    return max(middle - reach, 0.0), min(middle + reach, 1.0)


def sign_test(one: int, other: int) -> float:
    """Returns the two-sided exact p value of two counts if both outcomes were equally likely; 1 where both are 0.

    Example:
        >>> sign_test(9, 1)
        0.021484375
    """
    trials = one + other
    tail = sum(math.comb(trials, k) for k in range(min(one, other) + 1))
    # Whole numbers up to this division: as a float 2**1024 overflows. Where both are equal the two tails share the
    # middle, and their sum is above 1.
    return min(1.0, float(2 * tail / 2**trials))


# ---- score


def score(results: Sequence[Path], key: Path | None = None) -> Preferences:
    """Finds which method is preferred: for every pair of methods, by each reader and by all together.

    Args:
        results: files that readers saved, one of each reader, all of one study.
        key: the study's key; default: the one that lies beside the results or in the current folder.

    Raises:
        InputRefused: a file is no such file, was changed, is of another study, or is a reader's second one.
    """
    contents = [_read_object(path, RESULTS_FORMAT, "a file that a reader saved") for path in results]
    studies = {str(content["study"]): path for path, content in zip(results, contents, strict=True)}
    if len(studies) > 1:
        one, other = list(studies.values())[:2]
        raise InputRefused(
            place=other,
            got=f"results of another study than {one}",
            need="one study",
            next="score them apart",
            code="several-studies",
        )
    study = next(iter(studies))
    known = _read_key(key, study) if key is not None else _find_key(results, study)
    showings = known["trials"]
    readers = [
        _check_results(path, content, [one["id"] for one in showings])
        for path, content in zip(results, contents, strict=True)
    ]
    _check_readers(readers)
    logger.debug("study %s: %d readers, %d trials", study, len(readers), len(showings))
    did = tuple(_summarise_reader(reader, len(showings)) for reader in readers)
    return Preferences(study, did, tuple(_compare_methods(known, readers)))


def _compare_methods(known: Mapping[str, Any], readers: Sequence[_Results]) -> Iterable[Preference]:
    """Yields the rows of every pair of methods: one for each reader, then that of all."""
    methods = [method["name"] for method in known["methods"]]
    for index, over in enumerate(methods):
        for method in methods[index + 1 :]:
            mine = [one for one in known["trials"] if {one["left"], one["right"]} == {method, over}]
            counts = [_count(mine, reader, method) for reader in readers]
            for reader, count in zip(readers, counts, strict=True):
                yield _make_row(method, over, reader.reader, count)
            yield _make_row(method, over, None, [sum(column) for column in zip(*counts, strict=True)])


def _count(showings: Sequence[Mapping[str, Any]], reader: _Results, method: str) -> list[int]:
    """Counts how often one reader preferred the method, the other, none; pairs answered twice, and alike."""
    sides = {one["id"]: reader.answers[one["id"]][0] for one in showings if one["id"] in reader.answers}
    # A trial says which method was on which side. It has no side "none", so that "no difference" becomes None.
    chosen = {one["id"]: one.get(sides[one["id"]]) for one in showings if one["id"] in sides}
    firsts = [chosen[one["id"]] for one in showings if one["repeats"] is None and one["id"] in chosen]
    twice = [
        (chosen[one["repeats"]], chosen[one["id"]])
        for one in showings
        if one["repeats"] in chosen and one["id"] in chosen
    ]
    ties, preferred = firsts.count(None), firsts.count(method)
    agreed = sum(one == other for one, other in twice)
    return [preferred, len(firsts) - ties - preferred, ties, len(twice), agreed]


def _make_row(method: str, over: str, reader: str | None, count: Sequence[int]) -> Preference:
    """Returns share, interval and p value of what `_count` counted."""
    preferred, against, ties, repeats, agreed = count
    total = preferred + against + ties
    points = preferred + ties / 2
    return Preference(
        method=method,
        over=over,
        reader=reader,
        comparisons=total,
        preferred=preferred,
        against=against,
        ties=ties,
        # Nothing was compared: then nothing is known, which is what these two say.
        share=points / total if total else 0.5,
        interval=wilson(points, total) if total else (0.0, 1.0),
        share_without_ties=preferred / (preferred + against) if preferred + against else None,
        p=sign_test(preferred, against),
        repeats=repeats,
        agreed=agreed,
    )


def _summarise_reader(results: _Results, showings: int) -> Reader:
    """Returns how many trials a reader answered, in which way, and how fast."""
    sides = [choice for choice, _ in results.answers.values()]
    seconds = median(ms for _, ms in results.answers.values()) / 1000
    left, right, none = (sides.count(choice) for choice in CHOICES)
    return Reader(results.reader, len(sides), showings, left, right, none, seconds)


# ---- files


def _read_object(path: Path, form: str, what: str) -> dict[str, Any]:
    """Reads a JSON object that says in its field ``format`` that it has the form.

    Raises:
        InputRefused: it does not, or is no JSON.
    """
    try:
        content = json.loads(read_text(path))
    except OSError as error:
        raise InputRefused(
            place=path,
            got=f"'{error.strerror}'",
            need=what,
            next="check the name and the permissions",
            code="no-access",
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputRefused(
            place=path, got="no JSON", need=what, next="check the name", code="not-of-a-study"
        ) from error
    got = content.get("format") if isinstance(content, dict) else None
    if got != form or not isinstance(content.get("study"), str):
        kind = {KEY_FORMAT: "the key of a study", RESULTS_FORMAT: "a reader's results"}
        raise InputRefused(
            place=path,
            got=kind.get(str(got), "other JSON"),
            need=what,
            next="check the name",
            code="not-of-a-study",
        )
    return dict(content)


def _read_key(path: Path, study: str) -> dict[str, Any]:
    """Reads the key of a study, and checks that its trials and methods belong together.

    Raises:
        InputRefused: it is no key, that of another study, or was changed.
    """
    known = _read_object(path, KEY_FORMAT, "the key of the study, which lies beside its page")
    if known["study"] != study:
        raise InputRefused(
            place=path,
            got="the key of another study",
            need=f"that of {study}",
            next="give it with `key`",
            code="key-of-another-study",
        )
    try:
        trials = {one["id"]: one for one in known["trials"]}
        names = {method["name"] for method in known["methods"]}
        sound = all({one["left"], one["right"]} <= names for one in trials.values())
        sound &= all(one["repeats"] is None or one["repeats"] in trials for one in trials.values())
    except (KeyError, TypeError):
        sound = False
    if not sound:
        raise InputRefused(
            place=path,
            got="a key that was changed",
            need="it as it was written",
            next="make it again",
            code="key-changed",
        )
    return known


def _find_key(results: Sequence[Path], study: str) -> dict[str, Any]:
    """Finds and reads the key of the study among those beside the results and in the current folder.

    Raises:
        InputRefused: there is none.
    """
    folders = dict.fromkeys([*(path.parent for path in results), Path()])
    for path in (path for folder in folders for path in sorted(folder.glob(f"*{KEY_ENDING}"))):
        # Keys of other studies may lie beside it.
        with suppress(InputRefused, OSError):
            return _read_key(path, study)
    raise InputRefused(
        got=f"no key of study {study} beside the results",
        need=f"the *{KEY_ENDING} that was written with the page",
        next="give it with `key`",
        code="no-key",
    )


def _check_results(path: Path, content: Mapping[str, Any], trials: Sequence[str]) -> _Results:
    """Returns the answers in a file, if every one belongs to the study and the check sum is theirs.

    Raises:
        InputRefused: they do not, it is not, or there are none.
    """
    try:
        # The page joins the same lines in the same order (reports/viewer/study.js) before it takes their CRC-32.
        reader = content["reader"]
        given = [(one["trial"], one["choice"], one["ms"]) for one in content["answers"]]
        lines = [content["study"], reader, *(f"{trial} {choice} {ms}" for trial, choice, ms in given)]
        # chr(10) is the end of a line, since no backslash may stand in an f-string before Python 3.12.
        check = f"{zlib.crc32(chr(10).join(lines).encode(errors='replace')):08x}"
        sound = content["check"] == check and all(choice in CHOICES for _, choice, _ in given)
        sound &= all(isinstance(ms, int) and trial in trials for trial, _, ms in given)
        answers = {trial: (choice, ms) for trial, choice, ms in given}
    except (KeyError, TypeError):
        sound, reader, given, answers = False, "", [], {}
    # Fewer answers than lines: one trial was answered twice, which the page does not let happen.
    if not sound or len(answers) != len(given) or not str(reader).strip():
        raise InputRefused(
            place=path,
            got="results that were changed or cut after they were saved",
            need="the file as the page saved it",
            next="ask the reader to save it again",
            code="results-changed",
        )
    if not answers:
        raise InputRefused(
            place=path, got="no answer in it", need="one at least", next="leave this file out", code="no-answer"
        )
    return _Results(path, reader, answers)


def _check_readers(readers: Sequence[_Results]) -> None:
    """Refuses two files of one reader, however the name is spelt: whoever answers twice would count twice.

    Raises:
        InputRefused: there are two.
    """
    seen: dict[str, Path] = {}
    for one in readers:
        other = seen.get(one.reader.casefold())
        seen[one.reader.casefold()] = one.path
        if other is not None:
            raise InputRefused(
                place=one.path,
                got=f"a second file of reader {one.reader}, beside {other}",
                need="one of each reader",
                next="leave out the one saved earlier",
                code="reader-twice",
            )


# ---- table


HEAD = ("comparison", "reader", "n", "for", "against", "no difference", "preference", "95 % interval", "p", "repeats")
"""The first line of the table; what stands below it is made by `_format_row`."""


def make_table(found: Preferences) -> str:
    """Returns aligned text: a row of each pair of methods and reader, what the readers did, and how to read it."""
    # Of one reader the row of all readers would be the same again.
    shown = [row for row in found.rows if row.reader is not None or len(found.readers) > 1]
    rows = [HEAD, *map(_format_row, shown)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) if at < 2 else cell.rjust(width) for at, (cell, width) in enumerate(sized)).rstrip()
        for sized in (zip(row, widths, strict=True) for row in rows)
    ]
    words = ["No difference counts half for each method in the preference, and is left out of p (exact sign test)."]
    if len(found.readers) > 1:
        words.append(
            "All readers: as if every answer were independent, which those to the same pictures are not: the interval "
            "is too narrow for that."
        )
    return "\n".join([*lines, "", *map(_describe_reader, found.readers), *words])


def _format_row(row: Preference) -> tuple[str, ...]:
    """Returns the cells of one row."""
    low, high = (100 * end for end in row.interval)
    share = (
        (f"{100 * row.share:.1f} %", f"{low:.1f} to {high:.1f} %", _format_p(row.p))
        if row.comparisons
        else ("-", "-", "-")
    )
    return (
        f"{row.method} over {row.over}",
        "all readers" if row.reader is None else row.reader,
        *map(str, (row.comparisons, row.preferred, row.against, row.ties)),
        *share,
        f"{row.agreed} of {row.repeats} alike" if row.repeats else "-",
    )


def _describe_reader(reader: Reader) -> str:
    """Returns a line on what one reader did."""
    return (
        f"{reader.name}: {reader.answered} of {reader.showings} pairs answered; left {reader.left}, "
        f"right {reader.right}, no difference {reader.none}; median {reader.seconds:.1f} s"
    )


def _format_p(p: float) -> str:
    """Returns a p value with two digits.

    Example:
        >>> _format_p(0.0123), _format_p(0.00012)
        ('0.012', '1.2e-04')
    """
    return f"{p:.2g}" if p >= 0.001 else f"{p:.1e}"
