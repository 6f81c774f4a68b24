"""How thick a header, or the JSON beside a scan, says that the slices are (BIDS: SliceThickness)."""

import json
import logging
import math
from pathlib import Path
from typing import Any

from thinslice.files import read_bytes
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


def read_facts(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file, in UTF-8, UTF-16 or UTF-32, with a byte order mark or without.

    Raises:
        OSError: it cannot be read, is no regular file, or larger than `thinslice.files.MOST_TEXT_BYTES`.
        ValueError: it is none.
        RecursionError: it is nested too deeply.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "scan.json"
        ...     _ = path.write_text('{"SliceThickness": 3.5}', encoding="utf-16")
        ...     read_facts(path)
        {'SliceThickness': 3.5}
    """
    content = read_bytes(path)  # a pipe or a device would be read, and waited for, without an end
    facts = json.loads(content)  # finds out the encoding of bytes
    if not isinstance(facts, dict):
        raise ValueError("no JSON object")
    return facts


def thickness_in(sidecar: Path) -> tuple[float | None, list[str]]:
    """Returns SliceThickness, in mm, of such a JSON, and notes; None where it does not say."""
    try:
        thickness_mm = read_facts(sidecar).get("SliceThickness")
    except (OSError, ValueError, RecursionError):
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
