"""What the JSON beside a scan says of how it was acquired (BIDS)."""

import json
from pathlib import Path

from thinslice.io.formats import sidecar_path
from thinslice.io.refusals import one_line


def thickness_beside(path: Path) -> tuple[float | None, list[str]]:
    """SliceThickness, in mm, of the BIDS sidecar, and notes; None where there is none."""
    sidecar = sidecar_path(path)
    if sidecar is None or not sidecar.is_file():
        return None, []
    return thickness_in(sidecar)


def thickness_in(sidecar: Path) -> tuple[float | None, list[str]]:
    """SliceThickness, in mm, of such a JSON, and notes; None where it does not say."""
    try:
        facts = json.loads(sidecar.read_text(encoding="utf-8"))
        thickness_mm = facts.get("SliceThickness")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None, [f"the sidecar {sidecar.name} is not a readable JSON object and is ignored"]
    if thickness_mm is None:
        return None, []
    is_number = isinstance(thickness_mm, int | float) and not isinstance(thickness_mm, bool)
    if not is_number or not 0 < thickness_mm < 1e3:
        got = str(thickness_mm)[:40]
        return None, [one_line(f"SliceThickness in {sidecar.name} is {got}, not a length in mm, and is ignored")]
    return float(thickness_mm), []
