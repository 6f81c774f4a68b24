"""Makes a blinded reader study of scans and methods: one offline HTML page, and the key that says what it showed.

Readers see the same plane of the same scan as two methods computed it, side by side, and say which is better, so that
anyone can repeat what Georgescu et al. (IEEE Access 2020) report: by how many their networks are preferred to Lanczos
interpolation. What readers answered is scored by `thinslice.evaluation.reader_scores`.

The key is a file of its own beside the page: one in the page, however wrapped, could be unwrapped by anyone who
opens the developer's tools of a browser, while a page without it can be given away. In the page every picture and every
comparison has a number that says nothing. That is blinding among colleagues, no cryptography: who has the scans, the
methods and the seed can make the key again.
"""

import base64
import hashlib
import io
import json
import logging
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from thinslice.compute.upsample import upsample
from thinslice.errors import InputRefused, PlanRefused
from thinslice.evaluation.metrics import FOREGROUND_SHARE
from thinslice.models.protocol import Model
from thinslice.physics.intensity import intensity_range
from thinslice.plan import Plan
from thinslice.progress import no_progress
from thinslice.reports.picture import Picture, Plane, render, reslice_planes
from thinslice.reports.viewer_page import VIEWER
from thinslice.volume import Volume, fingerprint

logger = logging.getLogger(__name__)

KEY_FORMAT = "thinslice study key 1"
"""What a key says that it is, in its field ``format``; the number rises when older programs could not read it."""

RESULTS_FORMAT = "thinslice study results 1"
"""What a reader's results say that they are, likewise."""

PAIRS = 40
"""Comparisons of a study where their number is not given: what one reader can do in one sitting."""

REPEATS_SHARE = 0.2
"""Share of the comparisons that are shown once more: enough to see whether a reader agrees with himself."""

REPEATS_APART = 10
"""Comparisons between the two times that a pair is shown, if there are so many: until then it may be remembered."""

ANATOMY_SHARE = 0.5
"""A place is shown if its plane has at least this share of what is not black in the fullest plane of the scan."""

LONG_SIDE = 560
"""Length in pixels of the longest side of a scan's pictures: two of them lie side by side on a laptop's screen."""

LEAST_SIDE = 160
"""Length in pixels below which pictures are not made smaller to fit into the page: less than that shows nothing."""

MOST_BYTES = 40_000_000
"""Bytes of all pictures together, as they lie in the page: what a browser opens at once, and a mail may not carry."""


@dataclass(frozen=True)
class Scan:
    """A thick scan to be shown.

    Attributes:
        name: what it is called in the key.
        read: reads it; it is called twice, so that not all scans are in memory together.
    """

    name: str
    read: Callable[[], Volume]


@dataclass(frozen=True)
class StudySettings:
    """What a study shows.

    Attributes:
        pairs: number of comparisons, without those that are shown once more.
        repeats: number of comparisons that are shown once more with the sides swapped; None: `REPEATS_SHARE` of them.
        seed: decides the places, the order and the sides.
        window: values shown black and white; None: the 0.5 and 99.5 percentiles of each scan.
    """

    pairs: int = PAIRS
    repeats: int | None = None
    seed: int = 0
    window: tuple[float, float] | None = None


@dataclass(frozen=True)
class Study:
    """What `make_study` made.

    Attributes:
        page: the text of the HTML page for the readers.
        key: the text of the JSON file that says which picture is whose.
        comparisons, repeats: how many different pairs are shown, and how many of them twice.
        notes: what whoever made it should know.
    """

    page: str
    key: str
    comparisons: int
    repeats: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Place:
    """A plane of a scan that is shown.

    Attributes:
        scan: index of the scan.
        plane: which of the two planes across the slices, 0 or 1, see `thinslice.reports.picture.reslice_planes`.
        at: voxel index on the thick grid that the plane goes through; zero along the other axes.
    """

    scan: int
    plane: int
    at: tuple[int, int, int]


@dataclass(frozen=True)
class _Trial:
    """One comparison as it is shown.

    Attributes:
        place: index of the place.
        left, right: names of the methods on the two sides.
        first: of a repeat, the index of the trial that it repeats.
    """

    place: int
    left: str
    right: str
    first: int | None = None


@dataclass(frozen=True)
class _Shown:
    """A plane as one method computed it, with what it takes to draw it.

    Attributes:
        plane: the pixels, in the scan's own units.
        window: values shown black and white.
        long_side_mm: longest side of the whole scan, so that all pictures of a scan have one scale.
    """

    plane: Plane
    window: tuple[float, float]
    long_side_mm: float


def make_study(
    scans: Sequence[Scan],
    models: Mapping[str, Model],
    plan: Callable[[Volume, Model], Plan],
    settings: StudySettings = StudySettings(),
    progress: Callable[[float], None] = no_progress,
) -> Study:
    """Makes a study: computes every scan with every method, draws the places that are shown, and pairs them.

    The same scans, methods and settings make the same study, to the last byte.

    Args:
        scans: thick scans; of a 4-D series the first volume is shown.
        models: the methods, by the names that the score will call them.
        plan: makes the plan for one scan and one method, as `thinslice.plan.make_plan` does.
        settings: what is shown.
        progress: called with the share done, 0 .. 1.

    Raises:
        InputRefused: fewer than two methods, no scan, or more or fewer pairs than can be shown.
        PlanRefused: a scan cannot be made thinner by one of the methods, or not to the same slices by all of them.
    """
    pairs = _pair_methods(scans, models, settings)
    checked = [check_scan(scan, models, plan) for scan in scans]
    # One generator for everything that is drawn, seeded by what the scans hold and not by their order of reading or
    # their names: whoever has the scans can make the study again, and another scan makes another one.
    draw = random.Random(json.dumps([settings.seed, list(models), [mark for mark, _ in checked]]))
    # Rounded up: what is too much is left out by `_make_comparisons`. Every draw below comes from the same generator,
    # so their order is part of what a seed stands for.
    per_scan = _share_places(len(scans), -(-settings.pairs // len(pairs)), draw)
    places: list[_Place] = []
    shown: dict[tuple[int, str], _Shown] = {}
    for number, (scan, count) in enumerate(zip(scans, per_scan, strict=True)):
        if count:
            found, planes = _compute_scan(number, scan, models, plan, count, settings, draw)
            shown |= {(len(places) + place, name): plane for (place, name), plane in planes.items()}
            places += found
        progress((number + 1) / len(scans))
    trials = _put_in_order(_make_comparisons(places, pairs, settings.pairs, draw), pairs, settings, draw)
    # Sorted: the order of a set of texts is another one in every process, and the page shall have the same bytes.
    pictures, side = _draw_pictures({use: shown[use] for use in sorted(_pictures_of(trials))})
    logger.debug("%d trials, %d pictures of %d pixels", len(trials), len(pictures), side)
    plans = [plans for _, plans in checked]
    notes = _make_notes(trials, pictures, side, settings)
    return _make_texts(scans, models, plans, settings, places, trials, pictures, notes)


def check_scan(
    scan: Scan, models: Mapping[str, Model], plan: Callable[[Volume, Model], Plan]
) -> tuple[str, dict[str, Plan]]:
    """Returns the scan's fingerprint and the plan of each method, if all can make it thinner, to the same slices.

    Raises:
        PlanRefused: one of the methods cannot, or they would make different numbers of slices.
        InputRefused: the scan cannot be read, or shows nothing.
    """
    volume = _first_volume(scan.read())
    if not np.isfinite(volume.voxels).all() or volume.voxels.min() == volume.voxels.max():
        raise InputRefused(
            got="the same value everywhere, or none", need="an image", next="leave this scan out", code="flat-image"
        )
    plans = {name: plan(volume, model) for name, model in models.items()}
    grids = {name: (one.n_thin, one.in_plane) for name, one in plans.items()}
    if len(set(grids.values())) > 1:
        got = ", ".join(f"{count} slices by {name}" for name, (count, _) in grids.items())
        raise PlanRefused(
            got=got,
            need="the same slices by all methods",
            next="give a `factor` that all have",
            code="methods-disagree",
        )
    return fingerprint(volume), plans


# ---- what is shown


def _pair_methods(scans: Sequence[Scan], models: Mapping[str, Model], settings: StudySettings) -> list[tuple[str, str]]:
    """Returns the pairs of methods, the later one of each first, as it is compared with the earlier.

    Raises:
        InputRefused: the study cannot be made of these scans, methods and settings.
    """
    if not scans:
        raise InputRefused(
            got="no scan that can be shown", need="at least one", next="see what 'thinslice info' says", code="no-scan"
        )
    if len(models) < 2:
        raise InputRefused(
            got=f"{len(models)} method", need="two or more", next="`methods=lanczos,default`", code="too-few-methods"
        )
    pairs = [(later, earlier) for earlier, later in combinations(models, 2)]
    if settings.pairs < len(pairs):
        raise InputRefused(
            got=f"{settings.pairs} comparisons for {len(pairs)} pairs of methods",
            need="one of each at least",
            next="raise `pairs`, or name fewer methods",
            code="too-few-pairs",
        )
    if settings.repeats is not None and not 0 <= settings.repeats <= settings.pairs // 2:
        raise InputRefused(
            got=f"{settings.repeats} repeats of {settings.pairs} comparisons",
            need=f"0 to {settings.pairs // 2}",
            next="change `repeats`",
            code="too-many-repeats",
        )
    return pairs


def _share_places(scans: int, places: int, draw: random.Random) -> list[int]:
    """Returns how many places each scan gets: as evenly as can be, and who gets one more is drawn."""
    more = set(draw.sample(range(scans), places % scans))
    return [places // scans + (number in more) for number in range(scans)]


def _compute_scan(
    number: int,
    scan: Scan,
    models: Mapping[str, Model],
    plan: Callable[[Volume, Model], Plan],
    count: int,
    settings: StudySettings,
    draw: random.Random,
) -> tuple[list[_Place], dict[tuple[int, str], _Shown]]:
    """Returns the places drawn in one scan, and the plane of each as each method computes it."""
    volume = _first_volume(scan.read())
    window = settings.window or intensity_range(volume.voxels)
    places: list[_Place] = []
    shown: dict[tuple[int, str], _Shown] = {}
    for name, model in models.items():
        done = plan(volume, model)
        logger.debug("%s: %d places by %s", scan.name, count, name)
        places = places or _draw_places(number, _find_anatomy(volume, window), done.axis, count, scan.name, draw)
        thin = upsample(volume, done, model).volume
        side = max(n * mm for n, mm in zip(thin.shape, thin.spacing_mm, strict=True))
        for index, place in enumerate(places):
            x, y, z = (i if axis == done.axis else i * done.in_plane for axis, i in enumerate(place.at))
            plane = reslice_planes(thin, done.axis, (x, y, z))[place.plane]
            # A plane is a view of the whole volume, which would stay in memory with it.
            shown[index, name] = _Shown(replace(plane, pixels=plane.pixels.copy()), window, side)
    return places, shown


def _first_volume(volume: Volume) -> Volume:
    """Returns the first volume of a 4-D series, and a 3-D scan as it is."""
    return replace(volume, voxels=volume.voxels[..., 0]) if volume.voxels.ndim == 4 else volume


def _find_anatomy(volume: Volume, window: tuple[float, float]) -> np.ndarray:
    """Returns the mask of voxels that are more than nearly black; in the default window that of `foreground`."""
    low, high = window
    return np.asarray(volume.voxels > low + FOREGROUND_SHARE * (high - low))


def _draw_places(number: int, mask: np.ndarray, axis: int, count: int, name: str, draw: random.Random) -> list[_Place]:
    """Draws places where there is anatomy, spread over it, half of them in each of the planes across the slices.

    Raises:
        InputRefused: more places are wanted than there are planes with anatomy.
    """
    turned = draw.randrange(2)  # which of the two planes gets one more, where the number is odd
    found: list[_Place] = []
    for plane, across in enumerate(other for other in range(3) if other != axis):
        filled = mask.mean(axis=tuple(other for other in range(3) if other != across))
        there = np.flatnonzero((filled > 0) & (filled >= ANATOMY_SHARE * filled.max()))
        wanted = (count + (plane != turned)) // 2
        if wanted > len(there):
            raise InputRefused(
                place=name,
                got=f"{wanted} places to show and {len(there)} planes with anatomy",
                need="as many",
                next="lower `pairs`, add scans, or change `window`",
                code="too-little-anatomy",
            )
        for part in np.array_split(there, wanted) if wanted else []:
            at = [0, 0, 0]
            at[across] = int(draw.choice(part.tolist()))  # one of each part: spread, but not at even distances
            found.append(_Place(number, plane, (at[0], at[1], at[2])))
    return found


# ---- pairs, order and sides


def _make_comparisons(
    places: Sequence[_Place], pairs: Sequence[tuple[str, str]], count: int, draw: random.Random
) -> list[_Trial]:
    """Returns every place with every pair of methods, as many as are wanted.

    Either method is as often on the left, +-1. What is too much is left out of a scan that has most places.
    """
    times = Counter(place.scan for place in places)
    order = sorted(range(len(places)), key=lambda index: times[places[index].scan])
    chosen = [(place, pair) for place in order for pair in pairs][:count]
    trials: list[_Trial] = []
    for one, other in pairs:
        mine = [place for place, pair in chosen if pair == (one, other)]
        for place, swapped in zip(mine, _draw_balanced(len(mine), draw), strict=True):
            trials.append(_Trial(place, other, one) if swapped else _Trial(place, one, other))
    return trials


def _draw_balanced(count: int, draw: random.Random) -> list[bool]:
    """Draws so many booleans, half of them true, +-1, in random order."""
    start = draw.randrange(2)
    turns = [(start + turn) % 2 == 1 for turn in range(count)]
    draw.shuffle(turns)
    return turns


def _put_in_order(
    trials: list[_Trial], pairs: Sequence[tuple[str, str]], settings: StudySettings, draw: random.Random
) -> list[_Trial]:
    """Returns the trials in random order, some of them once more, mirrored, and not soon after the first time."""
    draw.shuffle(trials)
    apart = min(REPEATS_APART, len(trials) // 2)
    repeats = round(REPEATS_SHARE * len(trials)) if settings.repeats is None else settings.repeats
    again = _take_turns(trials[: len(trials) - apart], pairs)[:repeats]
    # Each trial stands at its whole number; a repeat gets a fraction far enough behind, and sorting puts it between.
    when: list[tuple[float, _Trial, int | None]] = [(float(at), trial, None) for at, trial in enumerate(trials)]
    for trial in again:
        at = trials.index(trial)
        mirrored = replace(trial, left=trial.right, right=trial.left)
        when.append((draw.uniform(at + apart, len(trials)), mirrored, at))
    when.sort(key=lambda one: one[0])
    moved = {int(at): new for new, (at, _, first) in enumerate(when) if first is None}
    return [replace(trial, first=None if first is None else moved[first]) for _, trial, first in when]


def _take_turns(trials: Sequence[_Trial], pairs: Sequence[tuple[str, str]]) -> list[_Trial]:
    """Returns the trials sorted so that every pair of methods has its turn."""
    turn = dict.fromkeys((frozenset(pair) for pair in pairs), 0)
    ranked = []
    for trial in trials:
        pair = frozenset((trial.left, trial.right))
        ranked.append((turn[pair], trial))
        turn[pair] += 1
    return [trial for _, trial in sorted(ranked, key=lambda one: one[0])]


def _pictures_of(trials: Sequence[_Trial]) -> set[tuple[int, str]]:
    """Returns place and method of every picture that the trials need."""
    return {(trial.place, name) for trial in trials for name in (trial.left, trial.right)}


# ---- pictures


def _draw_pictures(shown: Mapping[tuple[int, str], _Shown]) -> tuple[dict[tuple[int, str], str], int]:
    """Returns all pictures as PNG in base64, and the pixels of their long side, at which they fit into the page.

    Raises:
        InputRefused: they would have to be too small for that.
    """
    side = LONG_SIDE
    while True:
        pictures = {use: _to_png(one, side) for use, one in shown.items()}
        size = sum(map(len, pictures.values()))
        if size <= MOST_BYTES:
            return pictures, side
        # Bytes grow about as the area does; a little less than that, and at least a step of 5 %, so that it ends.
        side = int(min(0.95 * side, 0.98 * side * (MOST_BYTES / size) ** 0.5))
        if side < LEAST_SIDE:
            raise InputRefused(
                got=f"{len(shown)} pictures, too many for one page of {MOST_BYTES // 10**6} MB",
                need="fewer",
                next="lower `pairs`, and make several studies",
                code="page-too-large",
            )


def _to_png(shown: _Shown, side: int) -> str:
    """Returns a PNG in base64 of a plane, ``side`` pixels being the longest side of its scan."""
    stream = io.BytesIO()
    render(Picture("", shown.plane, shown.window, marks=True), side / shown.long_side_mm).save(
        stream, format="PNG", optimize=True
    )
    return base64.b64encode(stream.getvalue()).decode()


def _make_notes(
    trials: Sequence[_Trial], pictures: Mapping[tuple[int, str], str], side: int, settings: StudySettings
) -> tuple[str, ...]:
    """Returns what whoever made the study should know of its pictures."""
    notes = []
    if side < LONG_SIDE:
        notes.append(
            f"pictures of {side} instead of {LONG_SIDE} pixels keep the page below {MOST_BYTES // 10**6} MB; "
            "fewer `pairs` make them larger"
        )
    same = sum(
        pictures[trial.place, trial.left] == pictures[trial.place, trial.right]
        for trial in trials
        if trial.first is None
    )
    if same:
        notes.append(f"{same} of {settings.pairs} comparisons show two pictures that are equal to the last grey value")
    return tuple(notes)


# ---- page and key


def _make_texts(
    scans: Sequence[Scan],
    models: Mapping[str, Model],
    plans: Sequence[Mapping[str, Plan]],
    settings: StudySettings,
    places: Sequence[_Place],
    trials: Sequence[_Trial],
    pictures: Mapping[tuple[int, str], str],
    notes: tuple[str, ...],
) -> Study:
    """Returns the study: the page, where pictures and trials have numbers that say nothing, and the key to them."""
    known: dict[str, Any] = {
        "seed": settings.seed,
        "methods": [{"name": name, "model": one.name, "sha256": one.sha256} for name, one in models.items()],
        "scans": [scan.name for scan in scans],
        "trials": [_describe_trial(trial, places, pictures) for trial in trials],
    }
    # The numbers follow from all that the key says, so that every run gives the same ones and the page alone does not
    # tell which method made which picture.
    secret = hashlib.sha256(json.dumps(known).encode() + "".join(pictures.values()).encode()).hexdigest()
    named = {use: _hide_number(secret, "picture", index) for index, use in enumerate(pictures)}
    ids = [_hide_number(secret, "trial", index) for index in range(len(trials))]
    study = _hide_number(secret, "study", 0)
    for fact, trial, own in zip(known["trials"], trials, ids, strict=True):
        fact |= {"id": own, "repeats": None if trial.first is None else ids[trial.first]}
    data = {
        "study": study,
        "format": RESULTS_FORMAT,
        "trials": [
            {"id": own, "left": named[trial.place, trial.left], "right": named[trial.place, trial.right]}
            for own, trial in zip(ids, trials, strict=True)
        ],
        # Sorted by their hidden names: in the order of drawing the methods would take turns.
        "pictures": {name: pictures[use] for name, use in sorted((name, use) for use, name in named.items())},
    }
    done = [{name: asdict(one) for name, one in of_scan.items()} for of_scan in plans]
    key = json.dumps({"format": KEY_FORMAT, "study": study, **known, "plans": done}, indent=2) + "\n"
    repeats = sum(trial.first is not None for trial in trials)
    return Study(_fill_page(data), key, len(trials) - repeats, repeats, notes)


def _describe_trial(trial: _Trial, places: Sequence[_Place], pictures: Mapping[tuple[int, str], str]) -> dict[str, Any]:
    """Returns what the key says of a trial: where it is, whose picture is on which side, and whether they are equal."""
    place = places[trial.place]
    return {
        "scan": place.scan,
        "plane": place.plane,
        # The one index that counts: the others are zero.
        "at": max(place.at),
        "left": trial.left,
        "right": trial.right,
        "equal": pictures[trial.place, trial.left] == pictures[trial.place, trial.right],
    }


def _hide_number(secret: str, kind: str, index: int) -> str:
    """Returns a name for a picture, a trial or the study that does not say which one it is."""
    return hashlib.sha256(f"{secret} {kind} {index}".encode()).hexdigest()[:12]


def _fill_page(data: Mapping[str, Any]) -> str:
    """Returns the template with style, script and pictures in it; nothing else may run, nothing can be fetched."""
    html, style, script = ((VIEWER / f"study.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    text = json.dumps(data).replace("<", "\\u003c")  # a name with </script> in it must not end the element
    for place, content in (("POLICY", policy), ("STYLE", style), ("SCRIPT", script), ("DATA", text)):
        html = html.replace(f"@{place}@", content)
    return html


def _digest(text: str) -> str:
    """Returns the hash by which a Content-Security-Policy lets one text run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
