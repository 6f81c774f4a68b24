"""What a thick stack says of its own slice profile: how it changes across the slices, and how it changes within them.

Anatomy looks alike in all directions, on average. Where lines within the slices are blurred by a Gaussian of the right
width and sampled at the slice spacing, they change from sample to sample as the lines across the slices change from
slice to slice. `measure` puts both into numbers; `thinslice.models.slice_profile` reads the width from them.
"""

from typing import Literal

import numpy as np

from thinslice.physics.acquisition import Acquisition, apply_along_first_axis

WIDTHS = (0.1, 0.2, 0.3, 0.42, 0.6, 0.85)
"""Standard deviations of the Gaussians that blur lines within the slices, in slice spacings: those that slices have."""

LARGEST_SIDE = 192
"""Pixels along the sides of the middle of a slice that is measured: more would tell hardly more, and take longer."""

MOST_SLICES = 64
"""Slices from the middle of a longer stack that are measured; likewise."""

FEWEST_SAMPLES = 5
"""Samples of a line that the statistics need: a shorter one repeats its last."""

BRIGHT = 0.08
"""Pixels above this share of the intensity range are no air: there the noise is measured."""

FEWEST_BRIGHT = 100
"""So many of them are needed; with fewer, all pixels are measured."""

STATISTICS = 18
"""Numbers about the lines of one direction, see `_line_statistics`."""

NARROWEST_PX = 0.5
"""A Gaussian that blurs lines within the slices is at least so wide, in pixels, or it would fall between them."""

FURTHEST = 1.2
"""Widths at which two statistics cross are cut at this one, in slice spacings: beyond lies noise."""

FLAT = 1e-4
"""A statistic that changes by less from width to width tells none."""

FEWEST_FOR_SPECTRUM = 12
"""Slices that it takes to tell frequencies across them apart."""

LOW_BAND = (0.08, 0.2)
"""Frequencies across the slices, in cycles a slice, at which every stack shows anatomy."""

HIGH_BAND = 0.42
"""Interpolation of any kind leaves nothing from here on: cycles a slice, of which 0.5 is the highest."""

EMPTY = 1e-3
"""Power in the high band over that in the low one below which the high one is empty. Slices interpolated by half (zeros
in k-space, linear, cubic; rounded to 8 bits or not) had 4e-4 at most, acquired ones 8e-3 at least (LOG.md)."""

MIDDLE_BAND = (0.3, 0.36)
"""Frequencies that interpolation to half of the spacing has cut, but one by a third has not: cycles a slice."""

HALVED = 0.045
"""Power in the middle band over that in the low one: of slices interpolated by half 0.034 at most, by a third 0.064 at
least (LOG.md)."""

Interpolation = Literal["none", "less", "halved"]
"""Whether slices were interpolated: not, by less than half of their spacing, or by half."""

TINY = 1e-6
"""Keeps quotients and logarithms finite where nothing changes."""


def measure(thick: np.ndarray, steps: tuple[float, float]) -> np.ndarray:
    """Returns numbers about a stack from which the width of its slice profile can be read.

    Args:
        thick: [n, h, w] slices in normalised intensities (`thinslice.physics.intensity.intensity_range` is 0 .. 1).
        steps: slice spacing over pixel spacing along h and along w.

    Returns:
        float64 [numbers]: the statistics across the slices; those along h and along w for each of `WIDTHS`; the widths
        at which these cross those; noise, spacing and size. `swap_axes` exchanges h and w.
    """
    scale = float(np.sqrt(np.mean(np.diff(thick, axis=0) ** 2))) + TINY
    noise = _noise(thick)
    scaled = thick / np.float32(scale)
    across = _line_statistics(scaled.reshape(len(thick), -1))
    within = np.array([_within(np.moveaxis(scaled, axis, 0), steps[axis - 1]) for axis in (1, 2)])
    about = [np.log(steps).mean(), 1 / len(thick), np.log(scale + TINY)]
    crossings = _crossings(within - across)
    return np.concatenate([across, within.ravel(), crossings.ravel(), np.log(noise / scale + 1e-3), 10 * noise, about])


def swap_axes(measured: np.ndarray) -> np.ndarray:
    """Returns what `measure` would say of a stack whose slices were transposed."""
    swapped = measured.copy()
    start = STATISTICS
    for size in (STATISTICS * len(WIDTHS), STATISTICS):
        first, second = slice(start, start + size), slice(start + size, start + 2 * size)
        swapped[..., first], swapped[..., second] = measured[..., second], measured[..., first]
        start += 2 * size
    return swapped


def find_interpolation(thick: np.ndarray) -> Interpolation:
    """Says whether slices were interpolated, or filled up with zeros in k-space, before they were stored.

    Then they hold next to nothing at the highest frequencies across them. Of acquired slices these hold noise, and
    anatomy that is sampled too coarsely: even slices twice as thick as they are far apart had 8 times `EMPTY`.

    Args:
        thick: [n, h, w] slices; fewer than `FEWEST_FOR_SPECTRUM` are never called interpolated.

    Returns:
        ``halved`` where the upper half of the frequencies is empty, so that every other slice tells as much as all do.
    """
    if len(thick) < FEWEST_FOR_SPECTRUM:
        return "none"
    # Tapered, or the ends of the stack would leak into all frequencies.
    taper = np.hanning(len(thick) + 2)[1:-1].astype(np.float32)
    spectrum = np.fft.rfft((thick - thick.mean(axis=0)) * taper[:, None, None], axis=0)
    power = np.mean(np.abs(spectrum) ** 2, axis=(1, 2))
    frequency = np.fft.rfftfreq(len(thick))
    low = power[(frequency >= LOW_BAND[0]) & (frequency <= LOW_BAND[1])].mean()
    if low <= 0 or power[frequency >= HIGH_BAND].mean() >= EMPTY * low:
        return "none"
    middle = power[(frequency >= MIDDLE_BAND[0]) & (frequency <= MIDDLE_BAND[1])].mean()
    return "halved" if middle < HALVED * low else "less"


def take_middle(thick: np.ndarray) -> np.ndarray:
    """Returns the middle of a stack [n, h, w] that is large; a view."""
    most = (MOST_SLICES, LARGEST_SIDE, LARGEST_SIDE)
    first = [max((n - m) // 2, 0) for n, m in zip(thick.shape, most, strict=True)]
    return thick[tuple(slice(f, f + m) for f, m in zip(first, most, strict=True))]


def _within(lines: np.ndarray, step: float) -> np.ndarray:
    """Returns the statistics [widths, statistics] of lines [pixels, ...] as thick slices would sample them."""
    length = len(lines)
    # Every other line: neighbours say the same.
    flat = lines.reshape(length, -1)[:, ::2]
    count = max(int((length - 1) / step), FEWEST_SAMPLES)
    centres = (length - 1 - step * (count - 1)) / 2 + step * np.arange(count)
    # Where a slice has fewer pixels than the samples need, the samples beyond its ends repeat it.
    centres = np.clip(centres, 0, length - 1)
    found = []
    for width in WIDTHS:
        fwhm = max(np.sqrt(8 * np.log(2)) * width * step, NARROWEST_PX)
        matrix = Acquisition(centres, length, fwhm, "gaussian").matrix()
        found.append(_line_statistics(apply_along_first_axis(matrix, flat)))
    return np.array(found)


def _line_statistics(lines: np.ndarray) -> np.ndarray:
    """Returns numbers about lines [samples, lines] that tell sharp ones from blurred ones.

    Differences of second and third order and over one and three steps, each over that of two steps, by three means that
    weigh strong edges differently; how unequally two neighbouring steps share an edge; how differences go together.
    """
    if len(lines) < FEWEST_SAMPLES:
        lines = np.pad(lines, [(0, FEWEST_SAMPLES - len(lines)), (0, 0)], mode="edge")
    one = np.diff(lines, axis=0)
    second = np.diff(one, axis=0)
    third = np.diff(second, axis=0)
    over_two = _log_means(lines[2:] - lines[:-2])
    numbers = [_log_means(differences) - over_two for differences in (second, one, lines[3:] - lines[:-3], third)]
    after, before = one[1:], one[:-1]
    total = np.abs(after) + np.abs(before)
    # Of an edge between two samples one step has all, of a blurred one both have a half.
    unequal = np.abs(np.abs(after) - np.abs(before)) / (total + TINY)
    monotone = after * before > 0
    power, amount = np.where(monotone, total**2, 0), np.where(monotone, total, 0)
    shares = [
        np.vdot(power, unequal) / (power.sum() + TINY),
        power.sum() / ((total**2).sum() + TINY),
        np.vdot(amount, unequal) / (amount.sum() + TINY),
    ]
    together = [
        np.mean(second[1:] * second[:-1]) / (np.mean(second**2) + TINY),
        np.mean(after * before) / (np.mean(one**2) + TINY),
        np.mean(one[2:] * one[:-2]) / (np.mean(one**2) + TINY),
    ]
    return np.array([*np.concatenate(numbers), *shares, *together], np.float64)


def _log_means(differences: np.ndarray) -> np.ndarray:
    """Returns the logarithms of three means of absolute values: quadratic, plain, and of the roots, squared."""
    size = np.abs(differences)
    return np.log(np.array([np.sqrt(np.mean(size**2)), np.mean(size), np.mean(np.sqrt(size)) ** 2]) + TINY)


def _crossings(apart: np.ndarray) -> np.ndarray:
    """Returns the widths [2, statistics] at which ``apart`` [2, widths, statistics] is zero, in slice spacings."""
    widths = np.array(WIDTHS)
    nearest = np.abs(apart).argmin(axis=1)
    place = np.meshgrid(np.arange(apart.shape[0]), np.arange(apart.shape[2]), indexing="ij")
    at, before = (apart[place[0], index, place[1]] for index in (nearest, np.maximum(nearest - 1, 0)))
    # The line through the nearest point and its neighbour on the other side of zero, or else the next one.
    falls_before = (nearest > 0) & ((nearest == len(widths) - 1) | (before * at < 0))
    first = np.where(falls_before, nearest - 1, np.minimum(nearest, len(widths) - 2))
    low, high = (apart[place[0], index, place[1]] for index in (first, first + 1))
    slope = high - low
    flat = np.abs(slope) <= FLAT
    crossing = widths[first] - low * (widths[first + 1] - widths[first]) / np.where(flat, 1.0, slope)
    return np.where(flat, 0.4, np.clip(crossing, 0, FURTHEST))


def _noise(thick: np.ndarray) -> np.ndarray:
    """Returns the median and a low quantile of a mask that anatomy hardly passes (Immerkaer, CVIU 64:300, 1996)."""
    corners = thick[:, :-2, :-2] + thick[:, 2:, 2:] + thick[:, :-2, 2:] + thick[:, 2:, :-2]
    sides = thick[:, :-2, 1:-1] + thick[:, 2:, 1:-1] + thick[:, 1:-1, :-2] + thick[:, 1:-1, 2:]
    masked = np.abs(4 * thick[:, 1:-1, 1:-1] - 2 * sides + corners) / 6
    bright = masked[thick[:, 1:-1, 1:-1] > BRIGHT]
    chosen = bright if bright.size > FEWEST_BRIGHT else masked.ravel()
    # Of a Gaussian the absolute value is below 0.67 standard deviations in half of all cases, 0.25 in a fifth.
    return np.array([np.median(chosen) / 0.6745, np.quantile(chosen, 0.2) / 0.2533])
