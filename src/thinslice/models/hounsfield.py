"""Tells whether a scan is in Hounsfield units, and what of it is padding: for models that need computed tomography."""

import numpy as np

from thinslice.errors import PlanRefused
from thinslice.volume import Volume

AIR_HOUNSFIELD = -1024.0
"""Below air, in Hounsfield units, lies nothing but padding: the lowest number that 12 bits hold for air."""

PADDING_SHARE = 0.001
"""A share of the scan: so many voxels at least have one and the same value below air if that is padding, not noise."""

FEWEST_PADDED = 8
"""Voxels: in a tiny scan the one that happens to be the lowest is a large share already."""

FULL_LINES = 0.95
"""A share: lines with so much of the value of padding are full of it, where air or tissue may have it too, and so much
of it lies in such lines. Of noise that was cut off there, hardly a line has it in most voxels."""

FAT_HOUNSFIELD = -50.0
"""Fat and air are darker than this, in Hounsfield units: fat is near -100."""

FAT_SHARE = 0.001
"""A share of the scan: fat or air take up so much of a CT scan at least, skin and lungs of any body."""

TISSUE_HOUNSFIELD = 200.0
"""Soft tissue and fat are no farther from water than this, in Hounsfield units, with and without contrast medium."""

TISSUE_SHARE = 0.02
"""A share of the scan: soft tissue or fat take up so much of a CT scan at least."""

DARKEST_HOUNSFIELD = -1100.0
"""Air with noise and with the ringing of a kernel reaches down to this, in Hounsfield units."""

DARKEST_SHARE = 0.05
"""A share of the scan: no more of a CT scan is darker than that, but for its padding; resampled padding has a rim."""

WINDOW_HOUNSFIELD = -500.0
"""If a scan was cut off below this, in Hounsfield units, lungs and air may still be told from tissue."""

WINDOW_SHARE = 0.01
"""A share of the scan: so many voxels have the lowest (highest) value where what was darker (brighter) was cut off."""

BRIGHT_HOUNSFIELD = 2000.0
"""If a scan was cut off below this, in Hounsfield units, bone may have been cut off."""

MOST_HOUNSFIELD = 32_768.0
"""Metal is brighter than bone, but its Hounsfield units fit in 16 bits."""

MOST_LOOKED_AT = 2**20
"""Voxels that say whether a scan is in Hounsfield units, about: shares of them are looked at, see above."""


def padding_of(voxels: np.ndarray) -> float | None:
    """Returns the value of what lies beyond the scanner's field of view, None if there is no such value.

    Args:
        voxels: of a scan in Hounsfield units, of any shape.

    Example:
        >>> scan = np.zeros((4, 10, 10), np.int16)
        >>> padding_of(scan) is None
        True
        >>> scan[:, 0] = -2000
        >>> padding_of(scan)
        -2000.0
    """
    # Unsigned numbers are never below air.
    if voxels.dtype.kind == "u" or not voxels.size:
        return None
    lowest = float(np.fmin.reduce(voxels, axis=None))  # without NaN, and without a warning where nothing else is there
    # Not "at least": where all voxels are NaN the lowest is, and no comparison with it is true.
    if not lowest < AIR_HOUNSFIELD:
        return None
    found = int(np.count_nonzero(voxels == lowest))
    return lowest if found >= max(PADDING_SHARE * voxels.size, FEWEST_PADDED) else None


def find_padding(volume: Volume, of_ct: bool = False) -> float | None:
    """Returns the value with which a scan is filled where the scanner saw nothing, None if it is not.

    Below air nothing else lies in computed tomography. A value that air, or a dark tissue, may have as well is padding
    only where it runs through the scan along one axis, as what lies around a round field of view does, and is told by
    the header or is the lowest that 12 bits hold for air. What lies outside a body in magnetic resonance is none: a
    value of 0 there is noise that was cut off, or a mask.

    Args:
        volume: the scan; ``padding`` is what its header states.
        of_ct: it is known to be computed tomography; else that is read off its numbers.

    Example:
        >>> scan = np.zeros((8, 8, 5), np.int16)
        >>> scan[0] = -3024
        >>> find_padding(Volume(scan, np.eye(4)), of_ct=True)
        -3024.0
        >>> find_padding(Volume(scan + 3024, np.eye(4))) is None
        True
    """
    below_air = padding_of(volume.voxels)
    stated = volume.padding
    if below_air is not None and (of_ct or below_air == stated or is_hounsfield(volume.voxels)):
        return below_air
    voxels = volume.voxels if volume.voxels.ndim == 3 else volume.voxels[..., 0]
    if stated is not None and _runs_through(voxels, stated):
        return stated
    # First what is quickly told: most scans have no such value.
    is_lowest = voxels.dtype.kind in "if" and voxels.size and float(voxels.min()) == AIR_HOUNSFIELD
    if is_lowest and _runs_through(voxels, AIR_HOUNSFIELD) and (of_ct or is_hounsfield(voxels)):
        return AIR_HOUNSFIELD
    return None


def locate_padding(voxels: np.ndarray, padding: float) -> np.ndarray:
    """Returns where a scan holds padding: bool [x, y, z].

    Air that has the same value, as in a lung, is none.

    Args:
        voxels: of the scan, [x, y, z].
        padding: the value that `find_padding` has found.

    Example:
        >>> scan = np.zeros((8, 8, 5), np.int16)
        >>> scan[0], scan[4, 4, 2] = -1024, -1024
        >>> int(locate_padding(scan, -1024.0).sum())
        40
    """
    where: np.ndarray = voxels == padding
    return where if padding < AIR_HOUNSFIELD else _in_full_lines(where)


def _runs_through(voxels: np.ndarray, value: float) -> bool:
    """Tells whether a value is there often enough, and nearly only in lines along one axis that are full of it."""
    where = voxels == value
    found = int(np.count_nonzero(where))
    if not PADDING_SHARE * where.size <= found < where.size:
        return False
    return int(np.count_nonzero(_in_full_lines(where))) >= FULL_LINES * found


def _in_full_lines(where: np.ndarray) -> np.ndarray:
    """Returns what lies in lines that are nearly full of it, along the one axis along which most does, [x, y, z].

    Of a scanner's circle that is the axis of the scanner, which slices may lie across or along.
    """
    full = [where & (where.mean(axis=axis, keepdims=True) >= FULL_LINES) for axis in range(3)]
    return max(full, key=np.count_nonzero)


def check_hounsfield(model: str, voxels: np.ndarray, padding: float | None) -> list[str]:
    """Refuses a scan whose numbers are no Hounsfield units, and returns what is to be noted of one that passes.

    Air is near -1000, fat near -100 and soft tissue near 50 Hounsfield units, and nothing is far below air. Other
    numbers of the same distribution cannot be told from them: an MR scan with negative noise, for instance.

    Args:
        model: what to call the model that needs them.
        voxels: of the scan, of any shape.
        padding: the value of `padding_of`.

    Raises:
        PlanRefused: the numbers are none, or what is outside a window was cut off.
    """
    voxels = voxels[np.isfinite(voxels)] if voxels.dtype.kind == "f" else voxels
    voxels = voxels[voxels != padding] if padding is not None else voxels.ravel()
    # Nothing but padding or NaN is left: the one zero has no fat beside it, and is refused.
    if not voxels.size:
        voxels = np.zeros(1)
    lowest, highest = float(voxels.min()), float(voxels.max())
    convert = "convert the scan with its rescale slope and intercept"
    reasons = {
        "nothing as dark as fat": (np.mean(voxels < FAT_HOUNSFIELD) < FAT_SHARE, convert),
        "too much darker than air": (np.mean(voxels < DARKEST_HOUNSFIELD) > DARKEST_SHARE, convert),
        "hardly any soft tissue": (
            # As float32: of the smallest number of 16 bits the absolute value is negative again.
            np.mean(np.abs(voxels.astype(np.float32)) < TISSUE_HOUNSFIELD) < TISSUE_SHARE,
            f"{convert}, or give a larger part of the body",
        ),
        "what was darker cut off": (
            lowest > WINDOW_HOUNSFIELD and np.mean(voxels == lowest) > WINDOW_SHARE,
            "export it without a window",
        ),
        "numbers beyond 16 bits": (max(-lowest, highest) > MOST_HOUNSFIELD, convert),
    }
    for reason, (holds, advice) in reasons.items():
        if holds:
            raise PlanRefused(
                got=f"values from {lowest:g} to {highest:g} for model {model}, which is for computed tomography, with "
                f"{reason}",
                need="Hounsfield units (air near -1000, fat near -100, soft tissue near 50), unwindowed",
                next=f"{advice}, or use `model='planes-mr'` or `model='default'`",
                code="no-hounsfield",
            )
    if highest < BRIGHT_HOUNSFIELD and np.mean(voxels == highest) > WINDOW_SHARE:
        return [f"many voxels have the highest value, {highest:g}: if that is a window, what was brighter is lost"]
    return []


def is_hounsfield(voxels: np.ndarray) -> bool:
    """Says whether the numbers of a scan are Hounsfield units, as far as can be told from them.

    Args:
        voxels: of the scan, of any shape; of a large one every few voxels along each axis are looked at.

    Example:
        >>> body = np.zeros((10, 32, 32), np.int16)
        >>> body[:, :8] = -1000
        >>> is_hounsfield(body), is_hounsfield(body + 1000)
        (True, False)
    """
    stride = max(int((voxels.size / MOST_LOOKED_AT) ** (1 / voxels.ndim)), 1)
    some = voxels[(slice(None, None, stride),) * voxels.ndim]
    try:
        check_hounsfield("any", some, padding_of(some))
    except PlanRefused:
        return False
    return True
