"""Writes one offline HTML page on which a scan and what was computed from it are judged by eye. No server, no request.

The page is `viewer/page.html` with our style and program, niivue (https://github.com/niivue/niivue), which draws, and
the scans as compressed NIfTI. Its policy lets nothing in and nothing out: no address, no program but these two.
"""

import base64
import gzip
import hashlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

import numpy as np

from thinslice.compute.label_maps import looks_like_labels
from thinslice.errors import InputRefused
from thinslice.io.atomic import whole_or_not
from thinslice.io.formats import stem_of
from thinslice.physics.intensity import intensity_range
from thinslice.reports.downsample import BUDGET_BYTES, Excerpt, box_mm, make_excerpts
from thinslice.reports.picture import find_picture_centre
from thinslice.volume import Volume, patient_axes, through_plane_axis

logger = logging.getLogger(__name__)

VIEWER = Path(__file__).parent / "viewer"
"""The folder of the page's template, style, program and vendored viewer."""

NIIVUE = "niivue-0.69.0.umd.js"
"""The vendored viewer in that folder; its version stands in NOTICE.md too."""

COMPUTED = "Computed slices were not acquired: what they show may not be there. For research, not for diagnosis."
"""The warning beside the heading of a page with computed slices."""

ONE_SCALE = 3.0
"""Two intensity ranges are one scale if neither is so many times as wide as the other, and they overlap.

In one window a range three times as wide still shows its tissues; Hounsfield units beside MR do not.
"""

TILT_NAMED_DEGREES = 1.0
"""Degrees from the patient's axes from which on a note says that planes are tilted; less cannot be seen."""


@dataclass(frozen=True)
class Layer:
    """A scan on the page.

    Attributes:
        name, volume: what it is called, and its voxels.
        staircase: whether every voxel is shown as the block it is, as acquired; else smoothly.
        window: values shown black and white if its intensities have another scale than the page's; None: the page's.
    """

    name: str
    volume: Volume
    staircase: bool
    window: tuple[float, float] | None = None


@dataclass(frozen=True)
class Overlay:
    """A map in colour over the scans, from 0 (not drawn) to ``top`` and more.

    Attributes:
        name: what it shows.
        volume: the numbers; any grid of the same patient space.
        unit: of the numbers, in words; may be empty.
        top: the number that gets the last colour.
        words: one sentence on how to read it.
        worst_mm: patient millimetres of the worst place, None where there is none to go to.
    """

    name: str
    volume: Volume
    unit: str
    top: float
    words: str
    worst_mm: tuple[float, float, float] | None = None


def write_viewer_page(
    path: Path,
    *,
    title: str,
    acquired: Layer,
    others: Sequence[Layer],
    overlays: Sequence[Overlay] = (),
    facts: Sequence[tuple[str, str]] = (),
    notes: Sequence[str] = (),
    warning: str = COMPUTED,
    window: tuple[float, float] | None = None,
    start_mm: tuple[float, float, float] | None = None,
    budget_bytes: int = BUDGET_BYTES,
) -> None:
    """Writes the page, whole or not at all. The same scans give the same bytes.

    Args:
        path: the HTML file.
        title: its heading.
        acquired: shown on the left; its grey window and its axes are everybody's.
        others: one of them, or the acquired scan, is shown on the right; the last one at first. At least one.
        overlays: maps that can be laid over the right.
        facts, notes: what was done, as a table of words and numbers, and as sentences.
        warning: one sentence beside the heading.
        window: values shown black and white; None: the acquired scan's intensity range.
        start_mm: patient millimetres of the crosshair at first; None: the middle of what is bright.
        budget_bytes: of voxels on the page; see `thinslice.reports.downsample`.

    Raises:
        OSError: it cannot be written; nothing is left behind.
        InputRefused: there is nothing to compare with.
    """
    if not others:
        raise InputRefused(
            got="no scan beside the acquired one",
            need="at least one",
            next="give `others=[Layer(...)]`",
            code="nothing-to-compare",
        )
    layers = [acquired, *others]
    window = window or intensity_range(acquired.volume.voxels)
    scans, maps, done = make_excerpts(
        [(layer.name, layer.volume) for layer in layers],
        [(overlay.volume, overlay.top) for overlay in overlays],
        window,
        budget_bytes,
    )
    logger.debug("%s: window %s; for the page: %s", title, window, "; ".join(done) or "nothing was changed")
    start = start_mm or _find_start(acquired.volume)
    all_notes = [*notes, *_describe_tilt(acquired.volume), *_for_this_page(done)]
    data = _collect_data(layers, scans, overlays, maps, window, start)
    packed = [*(_pack(one, window) for one in scans), *map(_pack_map, maps)]
    text = _fill_template(title, warning, facts, all_notes, data, packed)
    # File names may hold bytes that are no UTF-8; they are shown escaped and never stop the page.
    with whole_or_not(Path(path)) as part:
        part.write_bytes(text.encode(errors="backslashreplace"))


def make_page_name(acquired: Path, other: Path) -> str:
    """Returns what the page on two scans is called by default: ``A-B.html``."""
    return f"{_stem(acquired)}-{_stem(other)}.html"


def check_one_space(acquired: Volume, other: Volume, names: tuple[str, str]) -> None:
    """Refuses two scans whose fields of view do not overlap.

    Raises:
        InputRefused: they share no millimetre of the patient.
    """
    # Along the axes of both: boxes that are turned against each other can overlap along those of one and yet not touch.
    apart = max(_apart_mm(acquired, other), _apart_mm(other, acquired))
    # 0 too: fields of view that only touch share no voxel.
    if apart >= 0:
        raise InputRefused(
            place=names[1],
            got=f"a scan whose field of view is {apart:.0f} mm away from that of {names[0]}",
            need="two scans of the same patient space",
            next="give two of one examination, or register them first",
            code="scans-share-no-space",
        )


def write_comparison_page(path: Path, scans: Sequence[tuple[str, Volume]]) -> None:
    """Writes the page on an acquired scan and another one of the same patient space.

    Args:
        path: the HTML file, written whole or not at all.
        scans: name and volume of the acquired scan, then those of the other one.

    Raises:
        InputRefused: their fields of view do not overlap.
        OSError: it cannot be written; nothing is left behind.
    """
    (first, acquired), (second, other) = scans
    check_one_space(acquired, other, (first, second))
    facts = [(name, _grid_in_words(volume)) for name, volume in scans]
    notes = [f"{name}: {note}" for name, volume in scans for note in volume.notes]
    own = _own_window(acquired, other)
    if own is not None:
        notes.append(f"{second} has another scale of intensities, and a grey window of its own.")
    write_viewer_page(
        path,
        title=f"{first} and {second}",
        acquired=Layer(first, acquired, True),
        others=[Layer(second, other, looks_like_labels(other), own)],
        warning="Two scans as their files hold them. If one was computed, what it shows may not be there.",
        facts=facts,
        notes=notes,
    )


def _own_window(volume: Volume, other: Volume) -> tuple[float, float] | None:
    """Returns the window of another scan where one window cannot show both."""
    (low, high), (low_2, high_2) = intensity_range(volume.voxels), intensity_range(other.voxels)
    # `intensity_range` never returns two equal ends.
    ratio = (high_2 - low_2) / (high - low)
    return (low_2, high_2) if not 1 / ONE_SCALE < ratio < ONE_SCALE or low_2 >= high or high_2 <= low else None


def to_display(volume: Volume, boxes: Sequence[np.ndarray]) -> np.ndarray:
    """Returns [4, 4], patient millimetres -> millimetres of the page, which lie along a scan, all boxes around zero.

    niivue slices along the axes of its world, so the world is turned to lie along the scan: each of its axes becomes
    the patient axis that it is nearest to.
    """
    # A sheared affine has axes that are not at right angles; `solve` maps each of them onto its patient axis all the
    # same, where a rotation could not.
    directions = volume.affine[:3, :3] / np.array(volume.spacing_mm)
    upright = np.zeros((3, 3))
    for axis, patient in enumerate(patient_axes(volume.affine)):
        # `or`: an axis of a sheared grid may have no part along its patient axis at all.
        upright[patient, axis] = np.sign(volume.affine[patient, axis]) or 1.0
    turn = np.eye(4)
    turn[:3, :3] = np.linalg.solve(directions.T, upright.T).T
    around = np.concatenate(boxes) @ turn[:3, :3].T
    turn[:3, 3] = -(around.min(0) + around.max(0)) / 2
    return turn


def _stem(path: Path) -> str:
    """Returns what to call a scan in a file's name: a file without its ending, a folder as it is."""
    whole = path.resolve()
    return stem_of(whole) or whole.name or "scan"


def _apart_mm(one: Volume, other: Volume) -> float:
    """Returns how far the box of another scan is from one, along one's axes; negative by how much they overlap."""
    directions = one.affine[:3, :3] / np.array(one.spacing_mm)
    own, theirs = (np.linalg.solve(directions, box_mm(v.affine, v.shape).T) for v in (one, other))
    return float(np.max(np.maximum(theirs.min(1) - own.max(1), own.min(1) - theirs.max(1))))


def _grid_in_words(volume: Volume) -> str:
    """Returns voxels, spacings and slice thickness of a scan in words."""
    voxels = " x ".join(str(n) for n in volume.voxels.shape)
    spacing = " x ".join(f"{mm:.3g}" for mm in volume.spacing_mm)
    thickness = f", slices {volume.thickness_mm:.3g} mm thick" if volume.thickness_mm else ""
    return f"{voxels} voxels of {spacing} mm{thickness}"


def _find_start(volume: Volume) -> tuple[float, float, float]:
    """Returns the patient millimetres of the middle of what is bright."""
    x, y, z = (float(mm) for mm in (volume.affine @ [*find_picture_centre(volume), 1.0])[:3])
    return x, y, z


def _describe_tilt(volume: Volume) -> list[str]:
    """Says that the planes are not the patient's, where they are not."""
    directions = volume.affine[:3, :3] / np.array(volume.spacing_mm)
    cosines = [abs(directions[patient, axis]) for axis, patient in enumerate(patient_axes(volume.affine))]
    # Clipped, since rounding takes the cosine of a straight axis beyond 1, where `arccos` is NaN.
    degrees = float(np.degrees(np.arccos(np.clip(min(cosines), -1, 1))))
    if degrees <= TILT_NAMED_DEGREES:
        return []
    return [f"The planes follow the scan's own axes, which are up to {degrees:.0f} degrees from the patient's."]


def _for_this_page(done: Sequence[str]) -> list[str]:
    """Returns a note on what was done for the page only, if anything was."""
    return [f"For this page only: {'; '.join(done)}. The scans' own files hold everything."] if done else []


def _collect_data(
    layers: Sequence[Layer],
    scans: Sequence[Excerpt],
    overlays: Sequence[Overlay],
    maps: Sequence[Excerpt],
    window: tuple[float, float],
    start: Sequence[float],
) -> dict[str, object]:
    """Returns what the page's program has to know besides the voxels."""
    boxes = [box_mm(one.affine, one.stored.shape) for one in scans]
    # The page's program does no geometry of its own: it gets every matrix that it needs.
    turn = to_display(layers[0].volume, boxes)
    half = np.abs(np.concatenate(boxes) @ turn[:3, :3].T + turn[:3, 3]).max(0)
    # The sliders for the window reach over the values of all scans, and over the window even where that is wider.
    ranges = np.array([one.value_range for one in scans])
    axis = through_plane_axis(layers[0].volume)
    return {
        "display": turn.tolist(),
        "patient": np.linalg.inv(turn).tolist(),
        "half_mm": half.tolist(),
        "step_mm": _steps(scans),
        "through": patient_axes(layers[0].volume.affine)[axis],
        "window": list(window),
        "range": [min(float(ranges.min()), window[0]), max(float(ranges.max()), window[1])],
        "start_mm": list(start),
        "layers": [
            {
                "name": layer.name + _mark_coarser(layer.volume, one),
                "staircase": layer.staircase,
                "voxel": np.linalg.inv(one.affine).tolist(),
                "window": list(layer.window or window),
            }
            for layer, one in zip(layers, scans, strict=True)
        ],
        "overlays": [
            {
                "name": overlay.name,
                "unit": overlay.unit,
                "top": overlay.top,
                "words": overlay.words,
                "worst_mm": None if overlay.worst_mm is None else _worst_shown(overlay.worst_mm, one),
                "voxel": np.linalg.inv(one.affine).tolist(),
            }
            for overlay, one in zip(overlays, maps, strict=True)
        ],
    }


def _mark_coarser(volume: Volume, one: Excerpt) -> str:
    """Returns what stands behind a scan's name where the page shows it coarser than it is."""
    shown = np.linalg.norm(one.affine[:3, :3], axis=0)
    # Averaging at least doubles a spacing; a percent is the rounding of an affine.
    return " (coarser on this page)" if (shown > 1.01 * np.array(volume.spacing_mm)).any() else ""


def _worst_shown(worst_mm: Sequence[float], one: Excerpt) -> list[float]:
    """Returns the worst place; where it was cropped away, the worst of what is shown."""
    index = (np.linalg.inv(one.affine) @ [*worst_mm, 1.0])[:3]
    if ((index >= -0.5) & (index <= np.array(one.stored.shape) - 0.5)).all():
        return list(worst_mm)
    place = np.unravel_index(int(one.stored.argmax()), one.stored.shape)
    return [float(mm) for mm in (one.affine @ [*place, 1.0])[:3]]


def _steps(scans: Sequence[Excerpt]) -> list[float]:
    """Returns the finest voxel spacing along each axis of the display, in millimetres."""
    finest = [np.inf] * 3
    for one in scans:
        spacing = np.linalg.norm(one.affine[:3, :3], axis=0)
        for axis, patient in enumerate(patient_axes(one.affine)):
            finest[patient] = min(finest[patient], float(spacing[axis]))
    return finest


def _pack(one: Excerpt, window: tuple[float, float]) -> str:
    """Returns a compressed NIfTI file in base64; without the time, so that equal scans give equal bytes."""
    return base64.b64encode(gzip.compress(one.to_nifti(window), 6, mtime=0)).decode()


def _pack_map(one: Excerpt) -> str:
    """Returns a map likewise, its window from zero to the last colour."""
    # In 8 bits 255 stands for the overlay's `top`, and `slope` is the value of one step.
    return _pack(one, (0.0, 255 * one.slope))


def _fill_template(
    title: str,
    warning: str,
    facts: Sequence[tuple[str, str]],
    notes: Sequence[str],
    data: dict[str, object],
    packed: Sequence[str],
) -> str:
    """Returns the page's text; words are escaped, programs and data cannot end the elements that they are in."""
    niivue, program, style = (_read(name) for name in (NIIVUE, "page.js", "page.css"))
    # Before the policy is made: a browser hashes the text as it stands in the page.
    niivue, program = _inside_script(niivue), _inside_script(program)
    # `Template` and not `format`: what is filled in is full of braces, and a "$" in it is not looked at again.
    return Template(_read("page.html")).substitute(
        title=escape(title),
        warning=escape(warning),
        policy=_policy([niivue, program], style),
        style=style,
        facts="\n".join(f"<tr><th scope=row>{escape(name)}<td>{escape(value)}</tr>" for name, value in facts),
        notes="\n".join(f"<li>{escape(note)}</li>" for note in notes),
        data=_json(data),
        voxels="\n".join(f'<script type="text/plain" class="voxels">{text}</script>' for text in packed),
        licence=escape(_read("niivue-LICENSE.txt")),
        niivue=niivue,
        program=program,
    )


def _read(name: str) -> str:
    """Returns the text of a file of the viewer."""
    return (VIEWER / name).read_text(encoding="utf-8")


def _inside_script(text: str) -> str:
    """Returns program text that cannot end the script element that it is in, nor begin a comment there.

    Example:
        >>> _inside_script("a = '</script>'")
        "a = '\\\\x3C/script>'"
    """
    return re.sub(r"<(?=/script|!--)", r"\\x3C", text, flags=re.IGNORECASE)


def _json(data: dict[str, object]) -> str:
    """Returns JSON that cannot end the script element that it is in."""
    # Every "<" as an escape: neither "</script" nor "<!--" can stand in it. NaN is no JSON, and a browser reads none.
    return json.dumps(data, allow_nan=False).replace("<", "\\u003c")


def _policy(programs: Sequence[str], style: str) -> str:
    """Returns the Content-Security-Policy: these programs and this style, pictures of their own, and nothing else."""
    hashes = " ".join(_hash_of(text) for text in programs)
    return (
        f"default-src 'none'; script-src {hashes}; style-src {_hash_of(style)}; img-src data: blob:; "
        "connect-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _hash_of(text: str) -> str:
    """Returns the source of a policy that allows one text; in the bytes that the page will have."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode(errors='backslashreplace')).digest()).decode()}'"
