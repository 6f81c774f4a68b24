"""Thick scans that something can be learnt from: read, planned, each once; the others are named."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thinslice.errors import InputRefused, ThinsliceError
from thinslice.io.formats import read
from thinslice.io.outputs import unique_names
from thinslice.io.synthetic import check_acquired
from thinslice.models.protocol import Model
from thinslice.plan import Plan, make_plan
from thinslice.settings import Settings
from thinslice.volume import Volume, fingerprint

LEAST_SLICES, LEAST_SIDE = 6, 48
"""Acquired slices, and pixels of each of their sides, that there is something to learn from."""


@dataclass(frozen=True)
class UsableScan:
    """A thick scan that can be learnt from, and what will be done to it."""

    label: str
    path: Path
    volume: Volume
    plan: Plan
    fingerprint: str


def find_usable_scans(
    paths: Sequence[Path], model: Model, wish: dict[str, Any], complain: Callable[[str], None]
) -> Iterator[UsableScan]:
    """Every scan that can be planned, once, one after the other; the rest is named.

    Args:
        paths: of the scans.
        model: that is to make them thin.
        wish: spacing_mm, factor, thickness_mm and profile, see `thinslice.plan.make_plan`.
        complain: receives a line about every scan that is left out.
    """
    labels = unique_names(paths)
    found: dict[str, str] = {}
    for path, label in labels.items():
        scan = _usable(path, label, model, wish, complain)
        if scan is None:
            continue
        if scan.fingerprint in found:
            other = found[scan.fingerprint]
            complain(f"{label}: left out: got the same scan as {other}; need it once; next: nothing, or leave one out")
            continue
        found[scan.fingerprint] = label
        yield scan


def _usable(
    path: Path, label: str, model: Model, wish: dict[str, Any], complain: Callable[[str], None]
) -> UsableScan | None:
    """A scan and its plan, or None after saying why not."""
    try:
        volume = read(path)
        check_acquired(volume)
        settings = Settings(
            spacing_mm=wish["spacing_mm"],
            factor=wish["factor"],
            thickness_mm=wish["thickness_mm"],
            profile=wish["profile"],
        )
        plan = make_plan(volume, settings, model)
    except (ThinsliceError, OSError, MemoryError) as refusal:
        complain(f"{label}: left out: {one_line_reason(path, refusal)}")
        return None
    return UsableScan(label, path, volume, plan, fingerprint(volume))


def check_large_enough(volume: Volume, plan: Plan) -> None:
    """Refuse a scan of which there is too little to learn from.

    Raises:
        InputRefused: it is not 3-D, small, flat or not finite.
    """
    voxels = volume.voxels
    if voxels.ndim != 3:
        raise InputRefused(f"got {voxels.ndim} axes; need a 3-D scan; next: give one volume of the series")
    sides = sorted(n for axis, n in enumerate(voxels.shape) if axis != plan.axis)
    if plan.n_thick < LEAST_SLICES or sides[0] < LEAST_SIDE:
        raise InputRefused(
            f"got {plan.n_thick} slices of {sides[0]} x {sides[1]} pixels; need at least {LEAST_SLICES} of "
            f"{LEAST_SIDE} x {LEAST_SIDE} to learn from; next: leave it out, its model need not be its own"
        )
    if not np.isfinite(voxels).all() or voxels.min() == voxels.max():
        raise InputRefused("got an empty image or voxels that are not finite; need a scan; next: repair it")


def one_line_reason(path: Path, error: Exception) -> str:
    """One line, without the name of the scan, which is said before it."""
    if isinstance(error, MemoryError):
        return "got a scan larger than the free memory; need a smaller one; next: crop it, or use a larger machine"
    line = " ".join(str(error).split())
    return line.removeprefix(f"{path}: ").removeprefix(f"{path.name}: ")
