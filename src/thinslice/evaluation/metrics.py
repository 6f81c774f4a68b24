"""Measures how near an answer is to the truth, and whether the acquired slices still show in it.

Conventions, the same for every method. The foreground is taken from the truth. The data range is the distance between
the truth's 0.5 and 99.5 percentiles. All slices count, also those at acquired positions. SSIM uses a uniform window
of 7 x 7 x 7 voxels. Identical images have an infinite PSNR, and it is reported as such.
"""

import numpy as np

from thinslice.errors import InputRefused
from thinslice.physics.acquisition import Acquisition
from thinslice.physics.intensity import intensity_range

FOREGROUND_SHARE = 0.05
"""Foreground begins this share of the way from the 0.5 to the 99.5 percentile: above the noise of air."""

SSIM_WINDOW = 7
"""Side of the SSIM window in voxels, the default of scikit-image; no axis may be shorter."""

SSIM_SLAB = 24
"""Planes whose SSIM is computed together: few enough for the memory, many beside the window's six more."""

SSIM_K1 = 0.01
"""Wang et al. 2004, sec. III: keeps the luminance term stable, as a share of the data range."""

SSIM_K2 = 0.03
"""Wang et al. 2004, sec. III: keeps the contrast term stable, as a share of the data range."""

BANDING_AREA = 0.1
"""Slices count for `stripes` and `banding` from where the foreground has this share of its largest area.

The few voxels at the ends of a head change from slice to slice by chance.
"""


def data_range(truth: np.ndarray) -> float:
    """Returns the distance between the 0.5 and the 99.5 percentile of ``truth``: the peak of PSNR, the range of SSIM.

    Example:
        >>> round(data_range(np.arange(1001.0)), 6)
        990.0
    """
    low, high = intensity_range(truth)
    return high - low


def foreground(truth: np.ndarray) -> np.ndarray:
    """Returns the mask of voxels above 5 % of the way from the truth's 0.5 to its 99.5 percentile.

    It leaves out the air around an MR scan and, as the percentiles move with the units, around a CT in Hounsfield
    units.

    Args:
        truth: any shape, any numeric dtype.

    Returns:
        bool mask of the same shape. It is all true where the volume has no darker background.

    Example:
        >>> foreground(np.array([0.0, 1.0, 50.0, 100.0]))
        array([False, False,  True,  True])
    """
    low, high = intensity_range(truth)
    return np.asarray(truth > low + FOREGROUND_SHARE * (high - low))


def psnr(answer: np.ndarray, truth: np.ndarray, data_range: float, mask: np.ndarray) -> float:
    """Returns the peak signal-to-noise ratio over ``mask`` in dB: 10 log10(data_range^2 / mean squared error).

    Args:
        answer, truth: same shape, any numeric dtype.
        data_range: see `data_range`.
        mask: bool, same shape, not empty.

    Returns:
        dB; infinite where answer and truth are equal.

    Raises:
        InputRefused: the three arrays have different shapes, or the mask is empty.

    Example:
        >>> truth = np.zeros((4, 4, 4))
        >>> psnr(truth + 0.1, truth, 1.0, np.ones(truth.shape, bool))
        20.0
    """
    _check(answer, truth, mask)
    # In float64: differences of unsigned whole numbers wrap around zero, and squares of 16 bits overflow.
    error = answer[mask].astype(np.float64) - truth[mask].astype(np.float64)
    mean_square = float(np.mean(error**2))
    return float("inf") if mean_square == 0 else float(10 * np.log10(data_range**2 / mean_square))


def ssim(answer: np.ndarray, truth: np.ndarray, data_range: float, mask: np.ndarray) -> float:
    """Returns the structural similarity averaged over ``mask``, 1 for equal volumes.

    Wang et al. 2004 with a uniform 7 x 7 x 7 window, K1 = 0.01, K2 = 0.03, sample covariances and mirrored edges:
    the map that scikit-image's ``structural_similarity(..., full=True)`` gives for a volume with its defaults.

    Args:
        answer, truth: [x, y, z], any numeric dtype, no axis shorter than `SSIM_WINDOW`.
        data_range: see `data_range`.
        mask: bool [x, y, z], not empty.

    Raises:
        InputRefused: the three arrays have different shapes, or the mask is empty, or an axis is too short.

    Example:
        >>> truth = np.random.default_rng(0).normal(size=(8, 8, 8))
        >>> inside = np.ones(truth.shape, bool)
        >>> round(ssim(truth, truth, 1.0, inside), 6), round(ssim(0.5 * truth, truth, 1.0, inside), 2)
        (1.0, 0.66)
    """
    _check(answer, truth, mask)
    if truth.ndim != 3 or min(truth.shape) < SSIM_WINDOW:
        raise InputRefused(
            got=f"a volume of shape {truth.shape}",
            need=f"three axes of at least {SSIM_WINDOW} voxels",
            next="score a larger part of the scan",
            code="too-small-for-ssim",
        )
    reach = SSIM_WINDOW // 2
    # Slab by slab, each with the planes that its windows reach into, mirrored at the ends of the volume alone: the sum
    # does not depend on where a slab ends.
    mirrored = np.pad(np.arange(len(truth)), reach, mode="symmetric")
    total = 0.0
    for start in range(0, len(truth), SSIM_SLAB):
        stop = min(start + SSIM_SLAB, len(truth))
        if mask[start:stop].any():
            index = mirrored[start : stop + 2 * reach]
            total += float(_ssim_map(answer[index], truth[index], data_range)[mask[start:stop]].sum())
    return total / int(np.count_nonzero(mask))


def stripes(volume: np.ndarray, factor: float, mask: np.ndarray, axis: int = 0) -> float:
    """Returns how much the change from slice to slice rises and falls with the acquired slices, in percent.

    The mean absolute change over the foreground is a curve over the gaps between neighbouring thin slices; this is the
    amplitude of its wave of the slice frequency 1 / factor, under a Hann window, over its mean. A staircase has 200
    (for large factors), no acquired slices show at 0; anatomy leaves some percent, so look at the truth's beside it.
    This measure is this project's own.

    Args:
        volume: an answer or a truth, [x, y, z].
        factor: slice spacing in thin voxels, need not be an integer.
        mask: bool [x, y, z], the truth's foreground.
        axis: the array axis across the slices.

    Raises:
        InputRefused: volume and mask have different shapes, or the mask is empty.
    """
    _check(volume, volume, mask)
    pairs, gaps = _gaps(mask, axis)
    # A wave of which less than two periods are seen cannot be told from the anatomy's own change.
    if gaps.stop - gaps.start < 2 * factor:
        return 0.0
    # The absolute change alone, whose mean is the level that the wave is compared with.
    curve = _change_per_gap(np.moveaxis(volume, axis, 0), pairs, gaps)[1:]
    sides = 1 if factor == 2 else 2  # a wave has two of them, but at Nyquist they are one
    _, level = _centred(curve)
    amplitude = sides * np.sqrt(_mean_power(curve, np.array([1 / factor]))) / _window(curve.shape[1]).sum()
    return float(100 * amplitude / level[0, 0]) if level[0, 0] > 0 else 0.0


def banding(answer: np.ndarray, truth: np.ndarray, factor: float, mask: np.ndarray, axis: int = 0) -> float:
    """Returns how much more the acquired slices show as stripes in the re-sliced planes than they do in the truth.

    Two curves over the gaps between neighbouring thin slices are looked at: the mean change of intensity (stripes)
    and the mean absolute change (steps, and sharpness that comes and goes), both over the foreground. Of each the
    power at the slice frequency 1 / factor and its harmonics up to Nyquist is taken under a Hann window:
    sqrt((P_answer + B) / (P_truth + B)), where B is the truth's power beside those frequencies, so that a truth that
    happens to have none there does not make every answer look striped. This measure is this project's own.

    Args:
        answer, truth: [x, y, z].
        factor: slice spacing in thin voxels, need not be an integer.
        mask: bool [x, y, z], the foreground.
        axis: the array axis across the slices.

    Returns:
        1: no more stripes than the truth has; 2: twice their amplitude. An over-smooth answer may lie below 1.

    Raises:
        InputRefused: the three arrays have different shapes, or the mask is empty.
    """
    _check(answer, truth, mask)
    pairs, gaps = _gaps(mask, axis)
    count = gaps.stop - gaps.start
    if count < 2 * factor:
        return 1.0
    curves = [_change_per_gap(np.moveaxis(v, axis, 0), pairs, gaps) for v in (answer, truth)]
    # The background is measured a few bins beside the slice frequencies: far enough to be out of the Hann window's main
    # lobe (two bins), near enough to be like it, and not where the anatomy's own slow change is.
    # A small number is added since a factor of 4 may have been computed as 3.999...: its harmonic at Nyquist would be
    # lost.
    slice_frequencies = np.arange(1, int(factor / 2 + 1e-9) + 1) / factor if factor >= 2 else np.array([1 / factor])
    beside = (slice_frequencies[:, None] + np.array([-4, -3, -2, 2, 3, 4]) / count).ravel()
    beside = beside[(beside > 2 / count) & (beside <= 0.5)]
    background = _mean_power(curves[1], beside) if beside.size else 0.0
    ours, theirs = (_mean_power(curve, slice_frequencies) + background for curve in curves)
    return float(np.sqrt(ours / theirs)) if theirs > 0 else (1.0 if ours == 0 else float("inf"))


def reslice_rms(thin: np.ndarray, thick: np.ndarray, acquisition: Acquisition) -> float:
    """Returns the RMS difference between what was acquired and the answer made thick again, in the scan's units.

    Args:
        thin: the answer, [x, y, z] with thin slices along the acquisition's axis.
        thick: the acquired slices, likewise.
        acquisition: from `thinslice.plan.Plan.acquisition`.
    """
    again = acquisition.forward(thin.astype(np.float32, copy=False))
    across = acquisition.axis
    difference = np.moveaxis(again, across, 0).astype(np.float64) - np.moveaxis(thick, across, 0)
    return float(np.sqrt(np.mean(difference**2)))


def _check(answer: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> None:
    """Refuses arrays that cannot be compared.

    Raises:
        InputRefused: their shapes differ, or the mask is empty or not boolean.
    """
    if not answer.shape == truth.shape == mask.shape:
        raise InputRefused(
            got=f"an answer {answer.shape}, a truth {truth.shape} and a mask {mask.shape}",
            need="one shape",
            next="bring them onto one grid",
            code="shapes-differ",
        )
    if mask.dtype != bool or not mask.any():
        raise InputRefused(
            got=f"a mask of {mask.dtype} with {np.count_nonzero(mask)} voxels",
            need="a boolean one with at least one true voxel",
            next="use `thinslice.evaluation.metrics.foreground` of the truth",
            code="empty-mask",
        )


def _ssim_map(answer: np.ndarray, truth: np.ndarray, data_range: float) -> np.ndarray:
    """Returns the SSIM of every window, [a, y, z] -> [a - 6, y, z]; axes 1 and 2 are mirrored here, 0 by the caller."""
    reach = SSIM_WINDOW // 2
    edges = ((0, 0), (reach, reach), (reach, reach))
    x, y = (np.pad(v.astype(np.float64), edges, mode="symmetric") for v in (answer, truth))
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    # From n to n - 1: covariances of a sample, as scikit-image takes them.
    sample = SSIM_WINDOW**3 / (SSIM_WINDOW**3 - 1)
    variances = sample * (_window_mean(x * x) - mean_x**2 + _window_mean(y * y) - mean_y**2)
    covariance = sample * (_window_mean(x * y) - mean_x * mean_y)
    c1, c2 = (SSIM_K1 * data_range) ** 2, (SSIM_K2 * data_range) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return np.asarray(likeness / ((mean_x**2 + mean_y**2 + c1) * (variances + c2)))


def _window_mean(array: np.ndarray) -> np.ndarray:
    """Returns means over windows of `SSIM_WINDOW` voxels along every axis; each axis gets shorter by 6."""
    for axis in range(array.ndim):
        # Differences of running sums cost two additions a voxel, however large the window; they need the float64 that
        # the caller gives, as small differences of large numbers.
        running = np.moveaxis(np.cumsum(array, axis=axis), axis, 0)
        sums = running[SSIM_WINDOW - 1 :].copy()
        sums[1:] -= running[:-SSIM_WINDOW]
        array = np.moveaxis(sums / SSIM_WINDOW, 0, axis)
    return array


def _gaps(mask: np.ndarray, axis: int) -> tuple[np.ndarray, slice]:
    """Returns where both neighbours of a gap are foreground, [gaps, ...], and which gaps count, from first to last."""
    pairs = np.moveaxis(mask, axis, 0)
    pairs = pairs[1:] & pairs[:-1]
    area = np.count_nonzero(pairs, axis=(1, 2))
    used = np.flatnonzero((area > 0) & (area >= BANDING_AREA * area.max(initial=0)))
    return pairs, slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 0)


def _change_per_gap(volume: np.ndarray, pairs: np.ndarray, gaps: slice) -> np.ndarray:
    """Returns mean and mean absolute change from slice to slice over the foreground, [2, gaps]; 0 where it is empty."""
    rows = []
    for gap in range(gaps.start, gaps.stop):
        both = pairs[gap]
        change = volume[gap + 1][both].astype(np.float64) - volume[gap][both]
        rows.append((change.mean(), np.abs(change).mean()) if change.size else (0.0, 0.0))
    return np.array(rows).T


def _mean_power(curves: np.ndarray, frequencies: np.ndarray) -> float:
    """Returns the mean over the curves [c, n] and ``frequencies`` (cycles per gap) of the power under a Hann window."""
    waves = np.exp(-2j * np.pi * np.outer(frequencies, np.arange(curves.shape[1])))
    centred, _ = _centred(curves)
    return float(np.mean(np.abs((centred * _window(curves.shape[1])) @ waves.T) ** 2))


def _centred(curves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns curves [c, n] without their means under the window, and those means [c, 1]."""
    window = _window(curves.shape[1])
    level = (curves * window).sum(axis=1, keepdims=True) / window.sum()
    return curves - level, level


def _window(count: int) -> np.ndarray:
    """Returns a Hann window without its zeros."""
    # With them the first and the last gap would not count at all.
    return np.asarray(np.hanning(count + 2)[1:-1])
