"""Shows people what was done to one scan: a page to open in a browser, and a figure for a paper."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from thinslice.compute.consistency import Report, map_misfit
from thinslice.compute.uncertainty import is_checked, map_expected_error
from thinslice.compute.upsample import upsample
from thinslice.io.scratch import allocate
from thinslice.models.interpolations import interpolation
from thinslice.models.protocol import Model
from thinslice.physics.intensity import intensity_range
from thinslice.physics.noise import describe_noise
from thinslice.plan import Plan
from thinslice.progress import no_progress, part_of
from thinslice.reports.picture import write_comparison_picture
from thinslice.reports.viewer_page import Layer, Overlay, write_viewer_page
from thinslice.volume import Volume

CHECKED_IN_WORDS = "on MR of other people it ranked the true error, and its size was right to within a third."
"""What docs/report.md found for the weights of `thinslice.compute.uncertainty.CHECKED_SHA256`."""

EXPECTED_IN_WORDS = (
    "Mean error to be expected, from how far the network's answers to the scan and to its mirror image are apart. "
    "What both get wrong alike it cannot show; where the guard took the network back, nothing is known and the "
    "last colour stands. Read it as a map:"
)
"""How the expected error of `thinslice.compute.uncertainty` is read."""

SHOWN_MISFIT = 0.02
"""The misfit that gets the last colour, in intensity ranges; more where the worst place in a thousand has more.

A scale that followed every scan's own misfit would paint the best of answers red.
"""

FIGURE_SIDE = 900
"""Length in pixels of the longest side of the larger plane of a figure: three of them fill a page at 300 dpi."""


class EnhancedScan(Protocol):
    """What a page has to know of one enhanced scan: what went in, what came out, and how."""

    @property
    def acquired(self) -> Volume:
        """The scan with thick slices, [x, y, z] or [x, y, z, t]."""

    @property
    def volume(self) -> Volume:
        """The scan with thin slices."""

    @property
    def plan(self) -> Plan:
        """Every decision."""

    @property
    def model(self) -> Model:
        """What computed the slices."""

    @property
    def report(self) -> Report:
        """How well the thin slices agree with the acquired ones."""

    @property
    def fell_back(self) -> np.ndarray | None:
        """Bool [x, y, z], the acquired voxels where the guard took the network back; None if that is not known."""


@dataclass(frozen=True)
class _FirstVolume:
    """The first volume of a 4-D series, as an `EnhancedScan`."""

    acquired: Volume
    volume: Volume
    plan: Plan
    model: Model
    report: Report
    fell_back: np.ndarray | None = None


def write_report_page(path: Path, scan: EnhancedScan, progress: Callable[[float], None] = no_progress) -> None:
    """Writes one offline HTML page: acquired, cubic and enhanced, what was done, how well it agrees, where to doubt it.

    Args:
        path: the HTML file, written whole or not at all.
        scan: what is shown; of a 4-D series the first volume.
        progress: called with the share done, 0 .. 1.

    Raises:
        OSError: the page cannot be written.
    """
    notes = list(scan.report.notes)
    if scan.acquired.voxels.ndim == 4:
        # Before the first volume stands for the scan: it no longer says that there were more.
        notes.append("Of this 4-D series the first volume is shown; the figures above are of all its volumes.")
    scan = _first_volume(scan)
    plan = scan.plan
    cubic = interpolate_cubic(scan, part_of(progress, 0.0, 0.2))
    overlays = [_show_misfit(scan)]
    # Most of the time: the network is asked about the whole scan once more.
    of_network = part_of(progress, 0.2, 0.9)
    expected = map_expected_error(scan.acquired, scan.volume, plan, scan.model, scan.fell_back, of_network)
    facts = _describe(scan)
    if expected is not None:
        # By its weights: a name can be given to any model.
        checked = is_checked(scan.model)
        in_words = CHECKED_IN_WORDS if checked else "its size was not checked."
        overlays.append(show_expected_error(expected.volume, f"{EXPECTED_IN_WORDS} {in_words}"))
        of_model = "checked against known truth for this model on MR" if checked else "not checked for this model"
        facts.append(("expected error", f"a map; {of_model}"))
    else:
        facts.append(("expected error", "not known of an interpolation"))
    acquired_mm, thin_mm = plan.spacing_thick_mm[plan.axis], plan.spacing_thin_mm[plan.axis]
    write_viewer_page(
        path,
        title=scan.report.source or "a scan",
        acquired=Layer(f"acquired, {acquired_mm:.3g} mm slices", scan.acquired, staircase=True),
        others=[
            Layer(f"cubic interpolation, {thin_mm:.3g} mm", cubic, staircase=False),
            Layer(f"computed by {plan.model}, {thin_mm:.3g} mm", scan.volume, staircase=False),
        ],
        overlays=overlays,
        facts=facts,
        notes=notes,
    )
    progress(1.0)


def write_figure(path: Path, scan: EnhancedScan) -> None:
    """Writes a PNG with the acquired slices, cubic interpolation and the answer in both re-sliced planes.

    Args:
        path: the PNG file, written whole or not at all.
        scan: what is drawn, at true aspect; of a 4-D series the first volume.

    Raises:
        OSError: the figure cannot be written.
    """
    scan = _first_volume(scan)
    write_comparison_picture(
        scan.acquired, interpolate_cubic(scan), scan.volume, path, f"computed by {scan.plan.model}", FIGURE_SIDE
    )


def interpolate_cubic(scan: EnhancedScan, progress: Callable[[float], None] = no_progress) -> Volume:
    """Returns bare cubic interpolation onto the grid of an answer, as people do it today: of all slices as they are."""
    plan = replace(
        scan.plan,
        model="cubic",
        model_sha256=None,
        projection=False,
        fuse=False,
        every=1,
        first_kept=0,
        smoothed_noise=0.0,
        alternating_gain=1.0,
        alternating_shift_px=(0.0, 0.0),
    )
    # In the answer's own type, so that both layers are rounded alike and differ only in how they were computed.
    out = allocate(plan.shape_thin, scan.volume.voxels.dtype, Path(tempfile.gettempdir()))
    return upsample(scan.acquired, plan, interpolation("cubic"), out, progress).volume


def _first_volume(scan: EnhancedScan) -> EnhancedScan:
    """Returns the first volume of a 4-D series, and a 3-D scan as it is."""
    if scan.acquired.voxels.ndim == 3:
        return scan
    acquired, volume = (replace(one, voxels=one.voxels[..., 0]) for one in (scan.acquired, scan.volume))
    return _FirstVolume(acquired, volume, scan.plan, scan.model, scan.report, scan.fell_back)


def _describe(scan: EnhancedScan) -> list[tuple[str, str]]:
    """Returns what was done, as rows of words and numbers."""
    plan, report = scan.plan, scan.report
    before, after = plan.spacing_thick_mm[plan.axis], plan.spacing_thin_mm[plan.axis]
    found = report.consistency
    facts = [
        ("scan", report.source),
        ("slices", f"{plan.n_thick} of {before:.4g} mm -> {plan.n_thin} of {after:.4g} mm"),
        ("slice profile", f"{plan.profile}, {plan.thickness_mm:.4g} mm"),
        *_describe_slices(plan),
        ("same", "field of view" if plan.grid == "fov" else "outer slice centres"),
        ("model", plan.model + (f", sha256 {plan.model_sha256[:16]}..." if plan.model_sha256 else "")),
        *_describe_card(scan.model.card),
        ("time", f"{report.seconds:.1f} s of computing, by the clock, without reading and writing"),
        (
            "made thick again",
            f"differs from the acquired slices by {_number(found.rms)} RMS ({found.rms_percent:.2g} % of the range"
            f"{found.in_noise}) and {_number(found.worst)} at worst ({found.worst_percent:.2g} %)",
        ),
        ("guard", f"{report.guard.percent} of {report.guard.cells} cells taken back to interpolation"),
        ("projected onto the acquired slices", "yes" if plan.projection else "no"),
        ("versions", ", ".join(f"{name} {number}" for name, number in plan.versions.items())),
    ]
    if plan.in_plane > 1:
        facts.insert(2, ("in-plane", f"{plan.in_plane} times finer along both sides"))
    return facts


def _describe_slices(plan: Plan) -> list[tuple[str, str]]:
    """Returns what was found in the slices: their noise, and what alternates from one to the next."""
    facts = []
    if plan.slice_noise is not None:
        facts.append(("noise of the slices", describe_noise(plan.slice_noise)))
    if plan.alternation.is_clear:
        first, second = plan.alternating_shift_px
        text = f"brightness by {100 * (plan.alternating_gain - 1):+.1f} %, place by {first:.2f} and {second:.2f} pixels"
        facts.append(("alternates from slice to slice, taken out", text))
    return facts


def _describe_card(card: Any) -> list[tuple[str, str]]:
    """Returns what a model's card says: what it learnt from, and what it is valid for."""
    # A card is the user's own file: whatever it lacks or has of another kind is left out, and the page is written.
    if not isinstance(card, dict):
        return []
    facts = []
    data = card.get("data")
    if isinstance(data, list) and data:
        # Without what is said of a licence in brackets, such as where it was read.
        licences = sorted({str(one.get("licence", "?")).split(" (")[0] for one in data if isinstance(one, dict)})
        facts.append(("learnt from", f"{len(data)} scans ({', '.join(licences)})"))
    envelope = card.get("envelope")
    if isinstance(envelope, dict) and {"factor", "thickness_over_spacing"} <= envelope.keys():
        factor, thickness = envelope["factor"], envelope["thickness_over_spacing"]
        valid = f"factors {factor[0]:g} to {factor[1]:g}, slices {thickness[0]:g} to {thickness[1]:g} spacings thick"
        facts.append(("valid for", valid))
    return facts


def _show_misfit(scan: EnhancedScan) -> Overlay:
    """Returns the map of how far the answer, made thick again, is from the acquired slices."""
    found = map_misfit(scan.acquired, scan.volume, scan.plan)
    low, high = intensity_range(scan.acquired.voxels)
    # Not the largest of all: one voxel far off would leave the rest of the map without a colour.
    top = max(SHOWN_MISFIT * (high - low), float(np.quantile(found.voxels, 0.999)))
    words = "How far the computed slices, made thick again, are from the acquired ones."
    return Overlay("misfit", found, "of the scan's units", top, words, _worst_mm(found))


def show_expected_error(found: Volume, words: str) -> Overlay:
    """Returns the map of the expected error, with words on how to read it."""
    # Where no error at all is expected any scale will do but that from 0 to 0.
    top = float(np.quantile(found.voxels, 0.995)) or 1.0
    return Overlay("expected error", found, "of the scan's units", top, words, _worst_mm(found))


def _worst_mm(found: Volume) -> tuple[float, float, float]:
    """Returns the patient millimetres of the largest value."""
    index = np.unravel_index(int(found.voxels.argmax()), found.voxels.shape)
    x, y, z = (float(mm) for mm in (found.affine @ [*index, 1])[:3])
    return x, y, z


def _number(value: float) -> str:
    """Returns a number in the scan's own units, with three digits."""
    return f"{value:.3g}"
