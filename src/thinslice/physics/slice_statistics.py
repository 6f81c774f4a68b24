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

FEWEST_FOR_RANK = 16
"""Among fewer slices chance, and overlapping slices, look like interpolated ones."""

MOST_LINES = 20_000
"""Lines across the slices that are looked at for their rank: more tell no more."""

HALF_RANKS = (0.4, 0.53)
"""Share of the slices that the lines across them span where every second slice was interpolated, or all were."""

HIGHER_RANKS = (0.55, 0.7)
"""Likewise, where slices were interpolated by less, as 4 mm slices to 3 mm."""

EMPTY = 80.0
"""So many times less power lies beyond the rank of interpolated slices than within. Slices interpolated by any kernel,
and rounded to 200 steps, had 95 times at least; acquired ones, up to 2.2 times as thick as they are far apart and
without any noise, 26 (66 where `HIGHER_RANKS` are looked at; LOG.md, 2026-11-30)."""

PREDICTED = 3.0
"""Slices are interpolated if they follow from the others so many times better than the others from them. Of slices
interpolated by lines or splines, every second one did 5 times at least; where all lie between acquired ones, 1.1 at
most."""

SPARSER: dict[float, float] = {0.0: 0.04, 1.0: 0.04, 0.5: 0.02, 1.5: 0.1}
"""Where that does not tell, the differences of `_sparseness` that do, for each place of the first acquired slice. It
lies at 0.5 where programs keep the outer edges of a scan, which is common, and at 1.5 if a slice is then cut off. On
stacks of `iso_train` 75 of 100 are recognised and 3 are mistaken (`experiments/interpolated_slices.py`, LOG.md)."""

ENDS = 8
"""One slice of so many at either end has no say in that: k-space makes one end ripple with the edge of the other."""

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

    Then every slice is a sum of others, with the same weights for all pixels: the lines across n slices span a space of
    fewer than n dimensions, beyond which lies nothing but rounding. Of acquired slices, however thick, power falls off
    smoothly.

    Args:
        thick: [n, h, w] slices; fewer than `FEWEST_FOR_RANK` are never called interpolated.

    Returns:
        ``halved`` where the lines span half of the dimensions, so that every other slice tells as much as all do.
    """
    if len(thick) < FEWEST_FOR_RANK:
        return "none"
    if drop_of_power(thick, HALF_RANKS) >= EMPTY:
        return "halved"
    return "less" if drop_of_power(thick, HIGHER_RANKS) >= EMPTY else "none"


def drop_of_power(thick: np.ndarray, ranks: tuple[float, float]) -> float:
    """Returns how many times less power the lines across slices have beyond a rank than within, the largest of some.

    Args:
        thick: [n, h, w] slices.
        ranks: the lowest and the highest rank that are tried, as shares of n.
    """
    count = len(thick)
    lines = thick.reshape(count, -1)
    lines = lines[:, :: max(lines.shape[1] // MOST_LINES, 1)].astype(np.float64)
    power = np.linalg.eigvalsh(lines @ lines.T)[::-1]
    # What is below the rounding of float32 is none.
    level = np.log10(np.maximum(power, 1e-9 * power[0] + TINY**2))
    # The edge is not quite sharp, as the ends of a stack are interpolated in another way.
    width = max(2, count // 12)
    rank = np.arange(int(np.ceil(ranks[0] * count)), int(ranks[1] * count) + 1)
    rank = rank[rank + width < count]
    return float(10 ** (level[rank - width] - level[rank + width]).max())


def find_first_acquired(thick: np.ndarray) -> float | None:
    """Says where the first slice was acquired of a stack in which every other one, or each, was interpolated.

    Args:
        thick: [n, h, w] slices that `find_interpolation` calls ``halved``.

    Returns:
        0 where the first, third, ... slices were acquired, 1 where the second, fourth, ... were, 0.5 or 1.5 where each
        acquired one lay half-way between two; None where it is not clear.
    """
    lines = thick.reshape(len(thick), -1)
    lines = lines[:, :: max(lines.shape[1] // MOST_LINES, 1)].astype(np.float64)
    left = [_left_unpredicted(lines, first) for first in (0, 1)]
    for first in (0, 1):
        if PREDICTED * left[first] < left[1 - first]:
            return first
    # Interpolated by all frequencies that there are, each half predicts the other alike. But acquired slices are sharp
    # where edges lie between two of them, and those between have the ripples of Gibbs.
    end = len(lines) // ENDS // 2 * 2
    whole, half = (
        _sparseness(one[end : len(lines) - end : 2]) - _sparseness(one[end + 1 : len(lines) - end : 2])
        for one in (lines, midway_matrix(len(lines)) @ lines)
    )
    clear = {first: value / SPARSER[first] for first, value in ((0.0, whole), (1.0, -whole), (0.5, half), (1.5, -half))}
    clearest = max(clear, key=lambda first: clear[first])
    return clearest if clear[clearest] >= 1 else None


def take_acquired(thick: np.ndarray, first: float, every: int) -> np.ndarray:
    """Returns the slices at ``first`` and every so many-th after it.

    Args:
        thick: [n, ...] slices.
        first: 0, 1, ..., for which a view is returned, or half-way between two, see `midway_matrix`.
        every: distance of those that are returned.

    Example:
        >>> take_acquired(np.array([1.0, 2.0, 3.0, 4.0]), 1, 2)
        array([2., 4.])
    """
    if first == int(first):
        return thick[int(first) :: every]
    return apply_along_first_axis(midway_matrix(len(thick))[int(first) :: every], thick)


def midway_matrix(count: int) -> np.ndarray:
    """Returns the matrix [count - 1, count] that interpolates half-way between slices, by all frequencies they have.

    With slices that were filled up by zeros in k-space it gives back those that lay between, to the last digit but for
    the ends, where the stack is mirrored.

    Example:
        >>> midway_matrix(2).round(2)
        array([[0.5, 0.5]])
    """
    mirrored = np.concatenate([np.eye(count), np.eye(count)[::-1]])
    frequency = np.fft.rfftfreq(2 * count)[:, None]
    matrix: np.ndarray = np.fft.irfft(np.fft.rfft(mirrored, axis=0) * np.exp(1j * np.pi * frequency), axis=0)
    return matrix[: count - 1]


def _left_unpredicted(lines: np.ndarray, first: int) -> float:
    """Returns the power that is left of slices after least squares on the four nearest of every second slice.

    Args:
        lines: [slices, pixels].
        first: the first slice that is predicted from.
    """
    wanted = np.arange(1 - first, len(lines), 2)
    wanted = wanted[(wanted >= 3) & (wanted + 3 < len(lines))]
    near, far = (((lines[wanted - step] + lines[wanted + step]) / 2).ravel() for step in (1, 3))
    causes, effect = np.stack([near, far], axis=1), lines[wanted].ravel()
    coefficients = np.linalg.lstsq(causes, effect, rcond=None)[0]
    return float(np.mean((effect - causes @ coefficients) ** 2)) + TINY**2


def _sparseness(lines: np.ndarray) -> float:
    """Returns how unequally the changes from slice to slice are shared out, summed over three orders of differences.

    The logarithm of quadratic mean over mean: large where a few edges have all of it, small where ripples share it.
    """
    total = 0.0
    for order in (1, 2, 3):
        size = np.abs(np.diff(lines, order, axis=0)) + TINY
        total += float(np.log(np.sqrt(np.mean(size**2)) / np.mean(size)))
    return total


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
