"""How thick a header, or the JSON beside a scan, says that the slices are (BIDS: SliceThickness)."""

import json
import logging
import math
from pathlib import Path

from thinslice.io.formats import sidecar_path
from thinslice.io.refusals import one_line

logger = logging.getLogger(__name__)

THICKEST_MM = 1e3
"""No slice is a metre thick: such numbers are mistakes, or have another unit."""


def thickness_beside(path: Path) -> tuple[float | None, list[str]]:
    """Returns SliceThickness, in mm, of the JSON beside a scan, and notes; None where there is none."""
    sidecar = sidecar_path(path)
    if sidecar is None or not sidecar.is_file():
        return None, []
    return thickness_in(sidecar)


def thickness_in(sidecar: Path) -> tuple[float | None, list[str]]:
    """Returns SliceThickness, in mm, of such a JSON, and notes; None where it does not say."""
    try:
        facts = json.loads(sidecar.read_text(encoding="utf-8"))
        thickness_mm = facts.get("SliceThickness")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None, [f"the sidecar {sidecar.name} is not a readable JSON object and is ignored"]
    if thickness_mm is None:
        return None, []
    # True is a number to Python.
    is_number = isinstance(thickness_mm, int | float) and not isinstance(thickness_mm, bool)
    if not is_number or not 0 < thickness_mm < THICKEST_MM:
        got = str(thickness_mm)[:40]
        return None, [one_line(f"SliceThickness in {sidecar.name} is {got}, not a length in mm, and is ignored")]
    logger.debug("%s says %g mm thick", sidecar.name, thickness_mm)
    return float(thickness_mm), []


def thickness_of_header(thickness_mm: float, field: str, path: Path) -> tuple[float | None, list[str]]:
    """Returns the slice thickness in mm of a header that states one, and notes.

    Args:
        thickness_mm: what it says; NaN where it is silent after all, and the JSON beside it is asked.
        field: what the format calls it.
        path: the scan.
    """
    beside_mm, notes = thickness_beside(path)
    if math.isnan(thickness_mm):
        return beside_mm, notes
    if not 0 < thickness_mm < THICKEST_MM:
        return beside_mm, [*notes, f"{field} says {thickness_mm:g} mm, which is no slice thickness, and is ignored"]
    if beside_mm is not None and not math.isclose(beside_mm, thickness_mm, rel_tol=1e-3):
        notes.append(f"the header says {thickness_mm:g} mm thick, the sidecar {beside_mm:g} mm; the header is believed")
    return thickness_mm, notes
