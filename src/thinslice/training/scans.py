"""Thick scans that something can be learnt from: read, planned, each once; the others are named."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thinslice.cases import told_apart
from thinslice.errors import InputRefused, ThinsliceError
from thinslice.nifti import is_synthetic, read
from thinslice.plan import Plan, make_plan
from thinslice.runtime import Model
from thinslice.volume import Volume, fingerprint


@dataclass(frozen=True)
class Scan:
    """A thick scan that can be learnt from, and what will be done to it."""

    label: str
    path: Path
    volume: Volume
    plan: Plan
    fingerprint: str


def usable_ones(
    paths: Sequence[Path], model: Model, wish: dict[str, Any], complain: Callable[[str], None]
) -> Iterator[Scan]:
    """Every scan that can be planned, once, one after the other; the rest is named.

    Args:
        paths: of the scans.
        model: that is to make them thin.
        wish: spacing_mm, factor, thickness_mm and profile, see `thinslice.plan.make_plan`.
        complain: receives a line about every scan that is left out.
    """
    labels = told_apart(paths)
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


def _usable(path: Path, label: str, model: Model, wish: dict[str, Any], complain: Callable[[str], None]) -> Scan | None:
    """A scan and its plan, or None after saying why not."""
    try:
        volume = read(path)
        check_acquired(volume)
        plan = make_plan(
            volume,
            spacing_mm=wish["spacing_mm"],
            factor=wish["factor"],
            thickness_mm=wish["thickness_mm"],
            profile=wish["profile"],
            model=model.name,
            model_sha256=model.sha256,
            envelope=model.envelope,
        )
    except (ThinsliceError, OSError, MemoryError) as refusal:
        complain(f"{label}: left out: {reason(path, refusal)}")
        return None
    return Scan(label, path, volume, plan, fingerprint(volume))


def check_acquired(volume: Volume) -> None:
    """Refuse a volume that `thinslice.training.no_ground_truth` synthesised: it shows what nobody saw.

    Raises:
        InputRefused: it is one.
    """
    if is_synthetic(volume):
        raise InputRefused("got a volume that was synthesised; need a scan that was acquired; next: leave it out")


def reason(path: Path, error: Exception) -> str:
    """One line, without the name of the scan, which is said before it."""
    if isinstance(error, MemoryError):
        return "got a scan larger than the free memory; need a smaller one; next: crop it, or use a larger machine"
    line = " ".join(str(error).split())
    return line.removeprefix(f"{path}: ").removeprefix(f"{path.name}: ")
