"""Whether an answer rings: a test of the slice profile that was assumed, which does not trust that profile.

A profile that is taken for wider than it is makes a network sharpen what is sharp already: the answer has more detail
at the limit of what the slices resolve than the anatomy has there, which shows as rims, bands and steps. How much is
usual, the acquired slices say: along their own axes they are fine. A part of the scan is computed first and tested;
where it rings, and nobody has given the profile, the plan gets a narrower one.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from thinslice.compute.upsample import upsample
from thinslice.models.protocol import Model
from thinslice.physics.intensity import intensity_range
from thinslice.physics.padding import fill_padding
from thinslice.plan import Plan
from thinslice.volume import Volume

logger = logging.getLogger(__name__)

RINGING = 1.35
"""From here on an answer rings: 2 % of those with the right profile, and a third of those with one whose standard
deviation is more than 0.1 spacings too wide (experiments/ringing.py, LOG.md)."""

LIMIT = (0.4, 0.5, 0.6)
"""The frequencies, in turns to a slice spacing, around the highest that slices resolve, 1 / 2."""

BELOW = (0.2, 0.25, 0.3)
"""Those that slices show hardly blurred: how much an anatomy changes along one axis and along another."""

NARROWER = 0.8
"""The next profile that is tried is so much narrower: in two steps a Gaussian becomes nearly as narrow as a box."""

ATTEMPTS = 2
"""So many narrower profiles are tried."""

SAMPLE_SHARE = 1 / 12
"""The share of the pixels of a slice that is computed to be tested, but for small slices."""

SAMPLE_SIDE = 64
"""Side in pixels of what is computed to be tested, at least; what `RINGING` was chosen on."""

SAMPLE_SLICES = 32
"""So many acquired slices of it at most, which is enough for both parts of the test."""

FEWEST_SLICES = 8
"""With fewer acquired slices there is no spectrum along them to speak of."""

FEWEST_PIXELS = 2.0
"""Pixels of a slice to one slice spacing, at least: with fewer the slices are no finer within than across."""

FLOOR = 1e-9
"""Power in squared intensity ranges that is next to none: a flat scan shall not divide by zero."""

SMALLEST_FACTOR = 1.25
"""With a smaller one the answer has not all of `LIMIT`."""


def settle_profile(volume: Volume, plan: Plan, model: Model) -> Plan:
    """Returns the plan, with a narrower profile where that of the plan makes the answer ring.

    A profile that the user has told is obeyed, and a note says that the answer rings.

    Args:
        volume: the scan, of a series its first volume is looked at.
        plan: from `thinslice.plan.make_plan`.
        model: what will compute the slices.

    Returns:
        A plan whose ``ringing`` says what was measured, None where it could not be, slices are enlarged in-plane, or
        some of them were interpolated.
    """
    # Slices that were interpolated have nothing at these frequencies, and are not all computed from.
    if not model.follows_profile or plan.in_plane > 1 or plan.every > 1:
        return plan
    sample, part = take_sample(replace(volume, voxels=fill_padding(volume.voxels, plan.padding)), plan)
    found = _measure(sample, part, model)
    if found is None or found <= RINGING:
        return replace(plan, ringing=found)
    rings = f"with a {plan.profile} of {plan.thickness_mm:.4g} mm the answer rings (x{found:.2g} of what is usual"
    if plan.profile_source == "told":
        note = f"{rings}, accepted x{RINGING:g}): the slices seem to be thinner; check `profile` and `thickness_mm`"
        return replace(plan, ringing=found, notes=(*plan.notes, note))
    settled, ringing = _find_narrower(sample, part, model)
    if ringing >= found:  # whatever it is, a narrower profile is no help
        return replace(plan, ringing=found)
    mm = settled.thickness_mm
    note = (
        f"{rings}): the profile is taken for one of {mm:.4g} mm (x{ringing:.2g}); give `profile` and `thickness_mm` if "
        "you know them"
    )
    return replace(plan, thickness_mm=mm, ringing=ringing, notes=(*plan.notes, note))


def _find_narrower(sample: Volume, part: Plan, model: Model) -> tuple[Plan, float]:
    """Returns a sample's plan with the first narrower profile that does not ring, or the last, and how that rings."""
    ringing = float("inf")
    lowest = model.envelope.thickness_over_spacing[0] if model.envelope is not None else 0.0
    for _ in range(ATTEMPTS):
        ratio = max(part.thickness_over_spacing * NARROWER, lowest)
        if ratio >= part.thickness_over_spacing:
            break
        part = replace(part, thickness_mm=ratio * part.spacing_thick_mm[part.axis])
        ringing = _measure(sample, part, model) or 0.0
        logger.debug("a %s of %.4g mm rings x%.3g", part.profile, part.thickness_mm, ringing)
        if ringing <= RINGING:
            break
    return part, ringing


def take_sample(volume: Volume, plan: Plan) -> tuple[Volume, Plan]:
    """Returns the part of a scan with most detail across its slices, and the plan for it."""
    voxels = volume.voxels if volume.voxels.ndim == 3 else volume.voxels[..., 0]
    thick = np.moveaxis(voxels, plan.axis, 0)
    count = min(plan.n_thick, SAMPLE_SLICES)
    # An even one: what alternates from slice to slice keeps its turn.
    first = (plan.n_thick - count) // 4 * 2
    thick = thick[first : first + count]
    low, high = intensity_range(thick)
    # Clipped, as a single bright vessel or a metal would decide alone.
    steps = sum(np.abs(np.diff(np.clip(pair.astype(np.float64), low, high), axis=0)[0]) for pair in _pairs(thick))
    height, width = thick.shape[1:]
    side = max(SAMPLE_SIDE, round(float(np.sqrt(height * width * SAMPLE_SHARE))))
    windows = [_starts(size, side) for size in (height, width)]
    top, left = max(
        ((t, s) for t in windows[0] for s in windows[1]),
        key=lambda at: steps[at[0] : at[0] + side, at[1] : at[1] + side].sum(),
    )
    part = np.moveaxis(thick[:, top : top + side, left : left + side], 0, plan.axis)
    sample = Volume(np.ascontiguousarray(part), volume.affine)
    spans = count - 1 if plan.grid == "centres" else count
    n_thin = int(plan.factor * spans + 1e-9) + count - spans
    x, y, z = (n_thin if axis == plan.axis else n for axis, n in enumerate(sample.shape))
    # A part has no tilt to speak of, and is even: the upright slices are looked at.
    return sample, replace(plan.without_true_places(), shape_thick=sample.shape, shape_thin=(x, y, z), fuse=False)


def measure_ringing(thick: np.ndarray, thin: np.ndarray, plan: Plan) -> float | None:
    """Returns how much more detail an answer has at the limit of its slices than anatomy has: about 1, see `RINGING`.

    It is the root of the answer's power across the slices at `LIMIT`, over that within the acquired slices at the same
    frequencies, along the axis of the two where there is more. Both are divided by the root of the power at `BELOW`:
    anatomies are not alike along all axes, and where they change more slowly, they also do at `LIMIT`.

    Args:
        thick: acquired slices [n, h, w].
        thin: the answer [thin, h, w].
        plan: the plan that led from one to the other.

    Returns:
        None for fewer than `FEWEST_SLICES`, or where the slices are hardly finer within than across.
    """
    spacing = np.delete(plan.spacing_thick_mm, plan.axis)
    periods = plan.spacing_thick_mm[plan.axis] / spacing  # slice spacings in pixels
    fine = periods.min() >= FEWEST_PIXELS and plan.factor >= SMALLEST_FACTOR
    if not fine or len(thick) < FEWEST_SLICES or min(thick.shape[1:]) < 4 * periods.max():
        return None
    low, high = intensity_range(thick)
    thick, thin = (np.asarray((one.astype(np.float64) - low) / (high - low), np.float32) for one in (thick, thin))
    usual = [_detail(np.moveaxis(thick, axis, 0), period) for axis, period in enumerate(periods, 1)]
    return float(np.sqrt(_detail(thin, plan.factor) / max(*usual, FLOOR)))


def _measure(sample: Volume, part: Plan, model: Model) -> float | None:
    """Returns how much the answer to a sample rings."""
    answer = upsample(sample, part, model).volume.voxels
    return measure_ringing(np.moveaxis(sample.voxels, part.axis, 0), np.moveaxis(answer, part.axis, 0), part)


def _detail(stack: np.ndarray, period: float) -> float:
    """Returns the power of a stack [n, ...] along its first axis at `LIMIT`, over the root of that at `BELOW`.

    Args:
        stack: normalised intensities.
        period: the slice spacing, in steps along the first axis.
    """
    flat = stack.reshape(len(stack), -1)
    # Without its ends, at which it is zero.
    window = np.hanning(len(stack) + 2)[1:-1].astype(np.float32)
    flat = flat - (window @ flat) / window.sum()
    turns = np.outer([*LIMIT, *BELOW], np.arange(len(stack))) / period
    waves = np.concatenate([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)]) * window
    power = np.square(waves.astype(np.float32) @ flat, dtype=np.float64).mean(axis=1) / np.square(window).sum()
    at = power[: len(power) // 2] + power[len(power) // 2 :]
    return float(at[: len(LIMIT)].mean() / np.sqrt(at[len(LIMIT) :].mean() + FLOOR))


def _starts(size: int, side: int) -> list[int]:
    """Returns where windows may begin along an axis, half a window apart."""
    last = max(size - side, 0)
    return sorted({*range(0, last + 1, max(side // 2, 1)), last})


def _pairs(stack: np.ndarray) -> Iterator[np.ndarray]:
    """Yields each two neighbouring slices."""
    return (stack[index : index + 2] for index in range(len(stack) - 1))
