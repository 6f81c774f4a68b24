"""Scans and methods -> a blinded reader study: one offline HTML page, and the key that says what it showed.

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
from thinslice.models.engine import Model
from thinslice.physics.intensity import intensity_range
from thinslice.plan import Plan
from thinslice.reports.picture import Picture, Plane, render, reslice_planes
from thinslice.reports.viewer_page import VIEWER
from thinslice.volume import Volume, fingerprint

KEY_FORMAT, RESULTS_FORMAT = "thinslice study key 1", "thinslice study results 1"
"""What the key and a reader's results say they are."""

PAIRS = 40
"""Comparisons, unless asked otherwise."""

REPEATS_SHARE, REPEATS_APART = 0.2, 10
"""Of the comparisons, that are shown once more; and how many others lie between the two times, if there are so many."""

ANATOMY_SHARE = 0.5
"""A place is shown if its plane has at least this share of what is not black in the fullest plane."""

LONG_SIDE, LEAST_SIDE = 560, 160
"""Pixels of the longest side of a scan's pictures, as wished, and at least."""

MOST_BYTES = 40_000_000
"""Of all pictures together, as they lie in the page: what a browser opens at once, and a mail may not carry."""


@dataclass(frozen=True)
class Scan:
    """A thick scan to be shown; ``read`` is called twice, so that not all scans are in memory together."""

    name: str
    read: Callable[[], Volume]


@dataclass(frozen=True)
class Wish:
    """What is to be shown.

    Attributes:
        pairs: comparisons, without those that are shown once more.
        repeats: comparisons that are shown once more with the sides swapped; default: `REPEATS_SHARE`.
        seed: of the places, the order and the sides.
        window: values shown black and white; default: the 0.5 and 99.5 percentiles of each scan.
    """

    pairs: int = PAIRS
    repeats: int | None = None
    seed: int = 0
    window: tuple[float, float] | None = None


@dataclass(frozen=True)
class Study:
    """What `make_study` made: two texts to be written, and what there is to say."""

    page: str
    key: str
    comparisons: int
    repeats: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Place:
    """A plane of a scan: which of the two across the slices, and where on the thick grid."""

    scan: int
    plane: int
    at: tuple[int, int, int]


@dataclass(frozen=True)
class _Trial:
    """One showing: the place, the methods on the left and on the right, and of a repeat the index of the first time."""

    place: int
    left: str
    right: str
    first: int | None = None


@dataclass(frozen=True)
class _Shown:
    """A plane as one method computed it, with what it takes to draw it."""

    plane: Plane
    window: tuple[float, float]
    long_side_mm: float


def make_study(
    scans: Sequence[Scan],
    models: Mapping[str, Model],
    plan: Callable[[Volume, Model], Plan],
    wish: Wish = Wish(),
    progress: Callable[[float], None] = lambda share: None,
) -> Study:
    """Compute every scan with every method, draw the places shown, and pair them.

    Args:
        scans: thick scans; of a series the first volume is shown.
        models: the methods, by the names that the score will call them.
        plan: as `thinslice.plan.make_plan`, for one scan and one method.
        wish: see `Wish`.
        progress: called with the share done.

    Raises:
        InputRefused: fewer than two methods, no scan, or a wish for pairs that cannot be had.
        PlanRefused: a scan cannot be made thinner by one of the methods, or not to the same slices by all of them.
    """
    pairs = _check_wish(scans, models, wish)
    checked = [check_scan(scan, models, plan) for scan in scans]
    draw = random.Random(json.dumps([wish.seed, list(models), [mark for mark, _ in checked]]))
    per_scan = _places_per_scan(len(scans), -(-wish.pairs // len(pairs)), draw)
    places: list[_Place] = []
    shown: dict[tuple[int, str], _Shown] = {}
    for number, (scan, count) in enumerate(zip(scans, per_scan, strict=True)):
        if count:
            found, planes = _computed(number, scan, models, plan, count, wish, draw)
            shown |= {(len(places) + place, name): plane for (place, name), plane in planes.items()}
            places += found
        progress((number + 1) / len(scans))
    trials = _in_order(_comparisons(places, pairs, wish.pairs, draw), pairs, wish, draw)
    pictures, side = _drawn({use: shown[use] for use in sorted(_uses(trials))})
    plans = [plans for _, plans in checked]
    return _bound(scans, models, plans, wish, places, trials, pictures, _notes(trials, pictures, side, wish))


def check_scan(
    scan: Scan, models: Mapping[str, Model], plan: Callable[[Volume, Model], Plan]
) -> tuple[str, dict[str, Plan]]:
    """The scan's fingerprint and each method's plan, if all can make it thinner, to the same slices.

    Raises:
        PlanRefused: they cannot.
        InputRefused: it cannot be read, or shows nothing.
    """
    volume = _first_volume(scan.read())
    if not np.isfinite(volume.voxels).all() or volume.voxels.min() == volume.voxels.max():
        raise InputRefused("got the same value everywhere, or none; need an image; next: leave this scan out")
    plans = {name: plan(volume, model) for name, model in models.items()}
    grids = {name: (one.n_thin, one.in_plane) for name, one in plans.items()}
    if len(set(grids.values())) > 1:
        got = ", ".join(f"{count} slices by {name}" for name, (count, _) in grids.items())
        raise PlanRefused(f"got {got}; need the same slices by all methods; next: give a --factor that all have")
    return fingerprint(volume), plans


# ---- what is shown


def _check_wish(scans: Sequence[Scan], models: Mapping[str, Model], wish: Wish) -> list[tuple[str, str]]:
    """The pairs of methods: of each the later one comes first, as it is compared with the earlier."""
    if not scans:
        raise InputRefused("got no scan that can be shown; need at least one; next: see what 'thinslice info' says")
    if len(models) < 2:
        raise InputRefused(f"got {len(models)} method; need two or more; next: --methods lanczos,default")
    pairs = [(later, earlier) for earlier, later in combinations(models, 2)]
    if wish.pairs < len(pairs):
        raise InputRefused(
            f"got {wish.pairs} comparisons for {len(pairs)} pairs of methods; need one of each at least; next: raise "
            "--pairs, or name fewer methods"
        )
    if wish.repeats is not None and not 0 <= wish.repeats <= wish.pairs // 2:
        raise InputRefused(
            f"got {wish.repeats} repeats of {wish.pairs} comparisons; need 0 to {wish.pairs // 2}; next: change "
            "--repeats"
        )
    return pairs


def _places_per_scan(scans: int, places: int, draw: random.Random) -> list[int]:
    """As evenly as can be; who gets one more is drawn."""
    more = set(draw.sample(range(scans), places % scans))
    return [places // scans + (number in more) for number in range(scans)]


def _computed(
    number: int,
    scan: Scan,
    models: Mapping[str, Model],
    plan: Callable[[Volume, Model], Plan],
    count: int,
    wish: Wish,
    draw: random.Random,
) -> tuple[list[_Place], dict[tuple[int, str], _Shown]]:
    """The places drawn in one scan, and how each method shows them."""
    volume = _first_volume(scan.read())
    window = wish.window or intensity_range(volume.voxels)
    places: list[_Place] = []
    shown: dict[tuple[int, str], _Shown] = {}
    for name, model in models.items():
        done = plan(volume, model)
        places = places or _places(number, _seen(volume, window), done.axis, count, scan.name, draw)
        thin = upsample(volume, done, model).volume
        side = max(n * mm for n, mm in zip(thin.shape, thin.spacing_mm, strict=True))
        for index, place in enumerate(places):
            x, y, z = (i if axis == done.axis else i * done.in_plane for axis, i in enumerate(place.at))
            plane = reslice_planes(thin, done.axis, (x, y, z))[place.plane]
            shown[index, name] = _Shown(replace(plane, pixels=plane.pixels.copy()), window, side)
    return places, shown


def _first_volume(volume: Volume) -> Volume:
    return replace(volume, voxels=volume.voxels[..., 0]) if volume.voxels.ndim == 4 else volume


def _seen(volume: Volume, window: tuple[float, float]) -> np.ndarray:
    """The voxels that are more than nearly black; in the default window those of `foreground` in `metrics`."""
    low, high = window
    return np.asarray(volume.voxels > low + FOREGROUND_SHARE * (high - low))


def _places(number: int, mask: np.ndarray, axis: int, count: int, name: str, draw: random.Random) -> list[_Place]:
    """Drawn where there is anatomy, spread over it, half of them in each of the two planes across the slices."""
    turned = draw.randrange(2)
    found: list[_Place] = []
    for plane, across in enumerate(other for other in range(3) if other != axis):
        filled = mask.mean(axis=tuple(other for other in range(3) if other != across))
        there = np.flatnonzero((filled > 0) & (filled >= ANATOMY_SHARE * filled.max()))
        wanted = (count + (plane != turned)) // 2
        if wanted > len(there):
            raise InputRefused(
                f"{name}: got {wanted} places to show and {len(there)} planes with anatomy; need as many; next: lower "
                "--pairs, add scans, or change --window"
            )
        for part in np.array_split(there, wanted) if wanted else []:
            at = [0, 0, 0]
            at[across] = int(draw.choice(part.tolist()))
            found.append(_Place(number, plane, (at[0], at[1], at[2])))
    return found


# ---- pairs, order and sides


def _comparisons(
    places: Sequence[_Place], pairs: Sequence[tuple[str, str]], count: int, draw: random.Random
) -> list[_Trial]:
    """Every place with every pair of methods, as many as are wanted; either method is as often on the left, +-1.

    What is too much is left out at the end: of a scan that has most places.
    """
    times = Counter(place.scan for place in places)
    order = sorted(range(len(places)), key=lambda index: times[places[index].scan])
    chosen = [(place, pair) for place in order for pair in pairs][:count]
    trials: list[_Trial] = []
    for one, other in pairs:
        mine = [place for place, pair in chosen if pair == (one, other)]
        for place, swapped in zip(mine, _balanced(len(mine), draw), strict=True):
            trials.append(_Trial(place, other, one) if swapped else _Trial(place, one, other))
    return trials


def _balanced(count: int, draw: random.Random) -> list[bool]:
    """Half of them true, +-1, in random order."""
    start = draw.randrange(2)
    turns = [(start + turn) % 2 == 1 for turn in range(count)]
    draw.shuffle(turns)
    return turns


def _in_order(trials: list[_Trial], pairs: Sequence[tuple[str, str]], wish: Wish, draw: random.Random) -> list[_Trial]:
    """In random order, some of them once more, mirrored, and not soon after the first time."""
    draw.shuffle(trials)
    apart = min(REPEATS_APART, len(trials) // 2)
    repeats = round(REPEATS_SHARE * len(trials)) if wish.repeats is None else wish.repeats
    again = _spread(trials[: len(trials) - apart], pairs)[:repeats]
    when: list[tuple[float, _Trial, int | None]] = [(float(at), trial, None) for at, trial in enumerate(trials)]
    for trial in again:
        at = trials.index(trial)
        mirrored = replace(trial, left=trial.right, right=trial.left)
        when.append((draw.uniform(at + apart, len(trials)), mirrored, at))
    when.sort(key=lambda one: one[0])
    moved = {int(at): new for new, (at, _, first) in enumerate(when) if first is None}
    return [replace(trial, first=None if first is None else moved[first]) for _, trial, first in when]


def _spread(trials: Sequence[_Trial], pairs: Sequence[tuple[str, str]]) -> list[_Trial]:
    """Those of every pair of methods by turns."""
    turn = dict.fromkeys((frozenset(pair) for pair in pairs), 0)
    ranked = []
    for trial in trials:
        pair = frozenset((trial.left, trial.right))
        ranked.append((turn[pair], trial))
        turn[pair] += 1
    return [trial for _, trial in sorted(ranked, key=lambda one: one[0])]


def _uses(trials: Sequence[_Trial]) -> set[tuple[int, str]]:
    return {(trial.place, name) for trial in trials for name in (trial.left, trial.right)}


# ---- pictures


def _drawn(shown: Mapping[tuple[int, str], _Shown]) -> tuple[dict[tuple[int, str], str], int]:
    """All pictures as PNG in base64, at a size at which they are not too large together; and that size."""
    side = LONG_SIDE
    while True:
        pictures = {use: _png(one, side) for use, one in shown.items()}
        size = sum(map(len, pictures.values()))
        if size <= MOST_BYTES:
            return pictures, side
        side = int(min(0.95 * side, 0.98 * side * (MOST_BYTES / size) ** 0.5))
        if side < LEAST_SIDE:
            raise InputRefused(
                f"got {len(shown)} pictures, too many for one page of {MOST_BYTES // 10**6} MB; need fewer; next: "
                "lower --pairs, and make several studies"
            )


def _png(shown: _Shown, side: int) -> str:
    stream = io.BytesIO()
    render(Picture("", shown.plane, shown.window), side / shown.long_side_mm).save(stream, format="PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()


def _notes(trials: Sequence[_Trial], pictures: Mapping[tuple[int, str], str], side: int, wish: Wish) -> tuple[str, ...]:
    notes = []
    if side < LONG_SIDE:
        notes.append(
            f"pictures of {side} instead of {LONG_SIDE} pixels keep the page below {MOST_BYTES // 10**6} MB; "
            "fewer --pairs make them larger"
        )
    same = sum(
        pictures[trial.place, trial.left] == pictures[trial.place, trial.right]
        for trial in trials
        if trial.first is None
    )
    if same:
        notes.append(f"{same} of {wish.pairs} comparisons show two pictures that are equal to the last grey value")
    return tuple(notes)


# ---- page and key


def _bound(
    scans: Sequence[Scan],
    models: Mapping[str, Model],
    plans: Sequence[Mapping[str, Plan]],
    wish: Wish,
    places: Sequence[_Place],
    trials: Sequence[_Trial],
    pictures: Mapping[tuple[int, str], str],
    notes: tuple[str, ...],
) -> Study:
    """Numbers that say nothing for pictures and showings, then the two texts."""
    known: dict[str, Any] = {
        "seed": wish.seed,
        "methods": [{"name": name, "model": one.name, "sha256": one.sha256} for name, one in models.items()],
        "scans": [scan.name for scan in scans],
        "trials": [_facts(trial, places, pictures) for trial in trials],
    }
    secret = hashlib.sha256(json.dumps(known).encode() + "".join(pictures.values()).encode()).hexdigest()
    named = {use: _opaque(secret, "picture", index) for index, use in enumerate(pictures)}
    ids = [_opaque(secret, "trial", index) for index in range(len(trials))]
    study = _opaque(secret, "study", 0)
    for fact, trial, own in zip(known["trials"], trials, ids, strict=True):
        fact |= {"id": own, "repeats": None if trial.first is None else ids[trial.first]}
    data = {
        "study": study,
        "format": RESULTS_FORMAT,
        "trials": [
            {"id": own, "left": named[trial.place, trial.left], "right": named[trial.place, trial.right]}
            for own, trial in zip(ids, trials, strict=True)
        ],
        "pictures": {name: pictures[use] for name, use in sorted((name, use) for use, name in named.items())},
    }
    done = [{name: asdict(one) for name, one in of_scan.items()} for of_scan in plans]
    key = json.dumps({"format": KEY_FORMAT, "study": study, **known, "plans": done}, indent=2) + "\n"
    repeats = sum(trial.first is not None for trial in trials)
    return Study(_page(data), key, len(trials) - repeats, repeats, notes)


def _facts(trial: _Trial, places: Sequence[_Place], pictures: Mapping[tuple[int, str], str]) -> dict[str, Any]:
    place = places[trial.place]
    return {
        "scan": place.scan,
        "plane": place.plane,
        "at": max(place.at),
        "left": trial.left,
        "right": trial.right,
        "equal": pictures[trial.place, trial.left] == pictures[trial.place, trial.right],
    }


def _opaque(secret: str, kind: str, index: int) -> str:
    return hashlib.sha256(f"{secret} {kind} {index}".encode()).hexdigest()[:12]


def _page(data: Mapping[str, Any]) -> str:
    """The template with style, script and pictures in it; nothing else may run, and nothing can be fetched."""
    html, style, script = ((VIEWER / f"study.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    text = json.dumps(data).replace("<", "\\u003c")
    for place, content in (("POLICY", policy), ("STYLE", style), ("SCRIPT", script), ("DATA", text)):
        html = html.replace(f"@{place}@", content)
    return html


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
