"""Thick scans that something can be learnt from: read, planned, each once; the others are named."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from thinslice.compute.kept_slices import take_kept
from thinslice.compute.label_maps import check_is_scan
from thinslice.errors import InputRefused, ThinsliceError
from thinslice.io.formats import read
from thinslice.io.outputs import unique_names
from thinslice.io.synthetic import check_acquired
from thinslice.models.protocol import Model
from thinslice.plan import Plan, make_plan
from thinslice.settings import Settings
from thinslice.volume import Volume, fingerprint

logger = logging.getLogger(__name__)

LEAST_SLICES = 6
"""Acquired slices that there is something to learn from: fewer do not show how neighbours follow one another."""

LEAST_SIDE = 48
"""Pixels of each side of a slice that there is something to learn from: those of a patch."""


@dataclass(frozen=True)
class UsableScan:
    """A thick scan that can be learnt from, and what will be done to it.

    Attributes:
        label: what a message calls it.
        path: its file or folder.
        volume: the scan.
        plan: how it will be made thin.
        fingerprint: see `thinslice.volume.fingerprint`.
    """

    label: str
    path: Path
    volume: Volume
    plan: Plan
    fingerprint: str


def plan_settings(settings: Settings) -> dict[str, Any]:
    """Returns the settings by which scans are planned that a model learns from, by their names.

    Example:
        >>> plan_settings(Settings(factor=4, profile="box"))
        {'spacing_mm': None, 'factor': 4, 'thickness_mm': None, 'profile': 'box'}
    """
    return {name: getattr(settings, name) for name in ("spacing_mm", "factor", "thickness_mm", "profile")}


def find_usable_scans(
    paths: Sequence[Path], model: Model, settings: Settings, complain: Callable[[str], None]
) -> Iterator[UsableScan]:
    """Yields every scan that can be planned, once, one after the other; the rest is named.

    Args:
        paths: of the scans.
        model: that is to make them thin.
        settings: how it shall do so, see `plan_settings`.
        complain: receives a line about every scan that is left out.
    """
    labels = unique_names(paths)
    found: dict[str, str] = {}
    for path, label in labels.items():
        scan = _read_and_plan(path, label, model, settings, complain)
        if scan is None:
            continue
        # Under two names it would count twice, and might be learnt from and judged by at once.
        if scan.fingerprint in found:
            other = found[scan.fingerprint]
            complain(f"{label}: left out: got the same scan as {other}; need it once; next: nothing, or leave one out")
            continue
        found[scan.fingerprint] = label
        yield scan


def no_usable_scan() -> InputRefused:
    """Returns the refusal of scans none of which can be used."""
    return InputRefused(
        got="no scan that can be learnt from",
        need="thick slices",
        next="see the reason named for each",
        code="no-usable-scan",
    )


def _read_and_plan(
    path: Path, label: str, model: Model, settings: Settings, complain: Callable[[str], None]
) -> UsableScan | None:
    """Returns a scan and its plan, or None after telling why not."""
    try:
        # Parts are cut out of it: of tilted or uneven slices those on the upright, even grid.
        volume = replace(read(path), measured=None)
        # What this program invented between slices must not teach as if a scanner had seen it.
        check_acquired(volume)
        check_is_scan(volume)
        plan = make_plan(volume, Settings(**plan_settings(settings)), model)
    # One scan is left out, the others are still worth learning from.
    except (ThinsliceError, OSError, MemoryError) as refusal:
        logger.debug("%s cannot be used", path, exc_info=refusal)
        complain(f"{label}: left out: {one_line_reason(path, refusal)}")
        return None
    known_by = fingerprint(volume)
    # What was interpolated between acquired slices must not teach either.
    volume, plan = take_kept(volume, plan)
    return UsableScan(label, path, volume, plan, known_by)


def check_large_enough(volume: Volume, plan: Plan) -> None:
    """Refuses a scan of which there is too little to learn from.

    Raises:
        InputRefused: it is not 3-D, small, flat or not finite.
    """
    voxels = volume.voxels
    if voxels.ndim != 3:
        raise InputRefused(
            got=f"{voxels.ndim} axes", need="a 3-D scan", next="give one volume of the series", code="not-3d"
        )
    sides = sorted(n for axis, n in enumerate(voxels.shape) if axis != plan.axis)
    if plan.n_thick < LEAST_SLICES or sides[0] < LEAST_SIDE:
        raise InputRefused(
            got=f"{plan.n_thick} slices of {sides[0]} x {sides[1]} pixels",
            need=f"at least {LEAST_SLICES} of {LEAST_SIDE} x {LEAST_SIDE} to learn from",
            next="leave it out, its model need not be its own",
            code="too-small-to-learn-from",
        )
    if not np.isfinite(voxels).all() or voxels.min() == voxels.max():
        raise InputRefused(
            got="an empty image or voxels that are not finite", need="a scan", next="repair it", code="nothing-to-learn"
        )


def one_line_reason(path: Path, error: Exception) -> str:
    """Returns one line, without the name of the scan, which stands before it."""
    if isinstance(error, MemoryError):
        return "got a scan larger than the free memory; need a smaller one; next: crop it, or use a larger machine"
    line = " ".join(str(error).split())
    return line.removeprefix(f"{path}: ").removeprefix(f"{path.name}: ")
