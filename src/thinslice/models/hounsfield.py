"""Tells whether a scan is in Hounsfield units, and what of it is padding: for models that need computed tomography."""

import numpy as np

from thinslice.errors import PlanRefused

AIR_HOUNSFIELD = -1024.0
"""Below air, in Hounsfield units, lies nothing but padding: the lowest number that 12 bits hold for air."""

PADDING_SHARE = 0.001
"""A share of the scan: so many voxels at least have one and the same value below air if that is padding, not noise."""

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
    lowest = float(np.nanmin(voxels)) if voxels.dtype.kind == "f" else float(voxels.min())
    # Not "at least": where all voxels are NaN the lowest is, and no comparison with it is true.
    if not lowest < AIR_HOUNSFIELD or np.mean(voxels == lowest) < PADDING_SHARE:
        return None
    return lowest


def find_padding(voxels: np.ndarray) -> tuple[float, np.ndarray] | None:
    """Returns the value of what lies beyond the scanner's field of view, and where that is; None where there is none.

    The darkest air that 12 bits hold may be padding too. It is taken for it where it fills an edge of the volume, as
    outside a scanner's circle, and there as far as it reaches: such air in a lung is none.

    Args:
        voxels: of any scan, [x, y, z].

    Returns:
        The value, and bool [x, y, z].

    Example:
        >>> scan = np.zeros((4, 10, 10), np.int16)
        >>> scan[:, 0], scan[2, 5, 5] = -1024, -1024
        >>> value, where = find_padding(scan)
        >>> value, int(where.sum())
        (-1024.0, 40)
    """
    value = padding_of(voxels)
    if value is None and (voxels.dtype.kind == "u" or voxels.min() != AIR_HOUNSFIELD):
        return None
    if not is_hounsfield(voxels):
        return None
    if value is not None:
        return value, voxels == value
    where = voxels == AIR_HOUNSFIELD
    if not any(np.moveaxis(where, axis, 2)[i, j].all() for axis in range(3) for i in (0, -1) for j in (0, -1)):
        return None
    # A circle is convex: from everything outside it a line along some axis leaves the volume without meeting it.
    reached = np.zeros_like(where)
    for axis in range(3):
        reached |= np.logical_and.accumulate(where, axis=axis)
        reached |= np.flip(np.logical_and.accumulate(np.flip(where, axis), axis=axis), axis)
    return AIR_HOUNSFIELD, reached


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
