"""The noise of a stack of slices: its standard deviation, found from the slices alone and in-plane.

Differences of second order along lines and columns leave little of smooth anatomy and all of the noise. Taken over one
pixel and over two they tell noise, which is the same in both, from texture, which grows. Air, where there is any, holds
no anatomy at all; magnitude images have less noise there. Everything is counted in intensity ranges.
"""

from dataclasses import dataclass

import numpy as np

from thinslice.physics.intensity import intensity_range

LEAST_NOISE = 0.005
"""Less noise than this, in intensity ranges, is found in half of the scans without any (LOG.md)."""

SLICES = 12
"""Evenly chosen slices that are looked at: 320x320x36 takes 0.05 s so, and 12 slices hold thousands of cells."""

CELL = 12
"""Side of the square cells in pixels: a patch of white matter or muscle holds one, and its noise is known to 8 %."""

MARGIN = 4
"""Pixels left out at every edge, as far as the widest difference reaches."""

TEXTURE_GROWTH = 6.0
"""How many times the power of differences of clean anatomy grows from one pixel to two, and from two to four.

In the smoothest fifth of the cells of 31 volumes of `iso_train` made thick x4 it was 1.6 to 13, 6 in the middle. Less
takes more texture for noise, more takes noise for texture (LOG.md).
"""

SMOOTHEST = 0.2
"""The share of the cells of the anatomy, those with the least differences, in which noise is looked for."""

QUIETEST = 0.25
"""The share of the cells of air in which it is looked for: in others there are ghosts, and parts of the head."""

QUIETEST_IF_CORRELATED = 0.1
"""The same where the noise of neighbouring pixels is strongly correlated, and looks more like ghosts."""

CORRELATED = 3.0
"""From this growth of the power of noise on, from differences over one pixel to two, those over one hold too little.

It is 1 for noise of which neighbouring pixels have each their own, 6 and more for images that were made twice as large
by zeros around their spectrum, and a scanner's filters lie between.
"""

AIR_BELOW = 0.1
"""Cells whose mean is less than this above zero, in intensity ranges, are air."""

MOST_BELOW_ZERO = 0.2
"""So far can noise below zero lower the range; what reaches lower is no magnitude image."""

TISSUE_ABOVE = 0.2
"""Cells of a larger mean are anatomy."""

FEWEST_CELLS = 20
"""Fewer cells of air or of anatomy say nothing."""

RAYLEIGH_LEVEL = 1.2
"""Air whose mean is more standard deviations than this above zero is that of a magnitude image, where it is 1.9."""

RAYLEIGH_SHARE = 0.655
"""Standard deviation of the magnitude of complex noise, sqrt(2 - pi / 2), as a share of that of its two parts."""


@dataclass(frozen=True)
class Noise:
    """The noise of a stack of slices, in intensity ranges.

    Attributes:
        sd: its standard deviation.
        independent: that of its part which neighbouring pixels do not share, and which smoothing takes out.
    """

    sd: float
    independent: float


def estimate_noise(thick: np.ndarray, padding: float | None = None) -> float | None:
    """Returns the standard deviation of the noise of the slices, in intensity ranges; see `find_noise`.

    Example:
        >>> scan = np.zeros((12, 64, 64)) + 100.0 * (np.arange(64) > 20)
        >>> noise = np.random.default_rng(0).normal(scale=5.0, size=scan.shape)
        >>> round(estimate_noise(scan + noise), 2), estimate_noise(scan)  # the noise widens the range from 100 to 123
        (0.04, 0.0)
    """
    found = find_noise(thick, padding)
    return found.sd if found is not None else None


def find_noise(thick: np.ndarray, padding: float | None = None) -> Noise | None:
    """Returns the noise of the slices.

    In anatomy it is what differences over one pixel hold beyond what texture explains (`TEXTURE_GROWTH`). In air,
    unless that was set to one value, it is all there is; in magnitude images it is corrected for the bias there. The
    smaller of the two counts. Where the noise of neighbouring pixels is correlated (scanners fill spectra with zeros,
    and filter), air tells how much; if by much, pixels twice as far apart are compared. Without air, noise that is
    strongly correlated is taken for texture and counts as none.

    Args:
        thick: acquired slices [n, h, w], any numeric dtype.
        padding: a value that stands for what the scanner did not see.

    Returns:
        None where the slices are too small to tell, 0 where all that is there looks like anatomy.
    """
    if min(thick.shape[1:]) < CELL + 2 * MARGIN:
        return None
    chosen = np.unique(np.linspace(0, len(thick) - 1, SLICES).round().astype(int))
    slices = thick[chosen].astype(np.float32, order="C")
    if padding is not None:
        outside = slices == np.float32(padding)
        if outside.all():
            return None
        slices[outside] = slices[~outside].min()
    low, high = intensity_range(slices)
    slices -= np.float32(low)
    slices /= np.float32(high - low)
    return _Cells(slices, zero=-low / (high - low)).noise()


def smooth_noise(slices: np.ndarray, noise: float) -> np.ndarray:
    """Returns slices in which noise is smoothed where there is nothing but noise: Wiener's filter in 3 x 3 pixels.

    Each pixel keeps of its difference from the mean of its surroundings the share of their variance that noise does not
    explain (Lee, IEEE Trans. Pattern Anal. Mach. Intell. 2(2):165-168, 1980): edges stay.

    Args:
        slices: [n, h, w], any numeric dtype.
        noise: standard deviation of what neighbouring pixels do not share of it, in the units of the slices.

    Returns:
        float32, or float64 where float32 would lose digits.

    Example:
        >>> noisy = np.random.default_rng(0).normal(100.0, 5.0, (2, 40, 40))
        >>> noisy[:, :, 20:] += 100
        >>> smooth = smooth_noise(noisy, 5.0)
        >>> round(float(smooth[:, :, :18].std()), 1), round(float(np.diff(smooth[..., 19:21]).mean()))
        (2.0, 98)
    """
    wide = slices.dtype.itemsize > 2 and slices.dtype != np.float32
    smooth = slices.astype(np.float64 if wide else np.float32, order="C")
    for one in smooth:
        # About zero: squares of large numbers have no digits left for a small variance.
        level = one.mean()
        one -= level
        mean = _mean_around(one)
        variance = np.maximum(_mean_around(one * one) - mean * mean, 1e-30)
        one -= mean
        one *= np.clip(1 - noise**2 / variance, 0, 1)
        one += mean + level
    return smooth


def _mean_around(image: np.ndarray) -> np.ndarray:
    """Returns the mean of the 3 x 3 pixels around each of an image, whose outermost lines repeat beyond it."""
    padded = np.pad(image, 1, mode="edge")
    lines = padded[:-2] + padded[1:-1] + padded[2:]
    mean: np.ndarray = (lines[:, :-2] + lines[:, 1:-1] + lines[:, 2:]) / image.dtype.type(9)
    return mean


def describe_noise(noise: float) -> str:
    """Returns the noise of slices in words.

    Example:
        >>> describe_noise(0.0123), describe_noise(0.002)
        ('1.2 % of the intensity range', 'below 0.5 % of the intensity range')
    """
    share = f"{100 * noise:.2g} %" if noise >= LEAST_NOISE else f"below {100 * LEAST_NOISE:.2g} %"
    return f"{share} of the intensity range"


class _Cells:
    """The cells of some slices: the mean of each, and the power of its differences over 1, 2 and 4 pixels."""

    def __init__(self, slices: np.ndarray, zero: float) -> None:
        self.zero = zero
        inner = _inner(slices, 0)
        self.mean = _cell_means(inner)
        self.power = {step: _cell_means(_inner(_second_differences(slices, step), step) ** 2) for step in (1, 2, 4)}
        # Air that was masked out, or that 8 bits have no steps for, holds no noise to be measured.
        masked = _cell_means((inner == _inner(np.roll(slices, 1, axis=2), 0)).astype(np.float32)) >= 0.5
        # Noise below zero moves the lower end of the range away from air.
        air_below = AIR_BELOW + min(max(zero, 0.0), MOST_BELOW_ZERO)
        self.tissue = self.mean > TISSUE_ABOVE
        self.air = (self.mean < air_below) & ~masked & (self.power[1] > 0)

    def noise(self) -> Noise | None:
        """Returns the smaller of what anatomy and air say."""
        if self.tissue.sum() < FEWEST_CELLS:
            return None
        if self.air.sum() < max(FEWEST_CELLS, 0.01 * self.air.size):
            return Noise(self._in_tissue(1), self._in_tissue(1))
        growth, found, level = self._in_air(QUIETEST)
        if abs(level - self.zero) > AIR_BELOW:  # the air of computed tomography: no zero, and less noise than inside
            return Noise(self._in_tissue(1), self._in_tissue(1))
        step = 1
        if growth > CORRELATED:
            step, growth = 2, 1.0
            _, found, level = self._in_air(QUIETEST_IF_CORRELATED)
        if level - self.zero > RAYLEIGH_LEVEL * found:
            found /= RAYLEIGH_SHARE
        sd = min(self._in_tissue(step, growth), found)
        return Noise(sd, sd / float(np.sqrt(growth)) if step == 1 else 0.0)

    def _in_tissue(self, step: int, growth: float = 1.0) -> float:
        """Returns the noise in the smoothest cells of the anatomy.

        With n and t the powers of noise and texture in differences over ``step`` pixels, those over twice as many hold
        g n + G t, where g is ``growth`` and G `TEXTURE_GROWTH`. The wider ones hold all of the noise.
        """
        near, far = self.power[step][self.tissue], self.power[2 * step][self.tissue]
        # By the wider differences, in which texture counts more: chosen by the others, low noise would be chosen too.
        smooth = far <= np.quantile(far, SMOOTHEST)
        power = (TEXTURE_GROWTH * near[smooth].mean() - far[smooth].mean()) / (TEXTURE_GROWTH - growth)
        return float(np.sqrt(max(growth * power, 0.0)))

    def _in_air(self, share: float) -> tuple[float, float, float]:
        """Returns the growth of the noise's power, its standard deviation and its mean in the quietest cells of air."""
        # By differences that are not used: chosen by those, low noise would be chosen with the quiet cells.
        quiet = self.air & (self.power[4] <= np.quantile(self.power[4][self.air], share))
        near, far = (float(self.power[step][quiet].mean()) for step in (1, 2))
        return max(far / near, 1.0), float(np.sqrt(far)), float(self.mean[quiet].mean())


def _second_differences(slices: np.ndarray, step: int) -> np.ndarray:
    """Returns second differences along both in-plane axes over ``step`` pixels, scaled to keep the noise's size."""
    lines = slices[:, : -2 * step] - 2 * slices[:, step:-step] + slices[:, 2 * step :]
    both: np.ndarray = lines[:, :, : -2 * step] - 2 * lines[:, :, step:-step] + lines[:, :, 2 * step :]
    both /= 6.0  # the root of the sum of the squared weights 1, -2, 1 of either axis
    return both


def _inner(slices: np.ndarray, lost: int) -> np.ndarray:
    """Returns the slices without `MARGIN` pixels at every edge, of which ``lost`` are missing already."""
    edge = slice(MARGIN - lost, lost - MARGIN or None)
    return slices[:, edge, edge]


def _cell_means(slices: np.ndarray) -> np.ndarray:
    """Returns the means over all whole cells, in one row."""
    n, rows, columns = slices.shape[0], slices.shape[1] // CELL, slices.shape[2] // CELL
    cells = slices[:, : rows * CELL, : columns * CELL].reshape(n, rows, CELL, columns, CELL)
    means: np.ndarray = cells.sum(axis=4).sum(axis=2).ravel() / CELL**2
    return means


def add_noise(slices: np.ndarray, deviation: float, is_rician: bool, rng: np.random.Generator) -> np.ndarray:
    """Returns slices with independent noise: Gaussian, or Rician.

    Args:
        slices: any shape, float32 or float64, in which it is computed; for Rician noise nothing below zero.
        deviation: its standard deviation in the slices' own units; for Rician noise that of either of the two channels.
            0 leaves the slices as they are.
        is_rician: the magnitude of a complex image with Gaussian noise in both channels (Gudbjartsson and Patz
            1995), instead of Gaussian noise added.
        rng: for the noise.

    Example:
        >>> noisy = add_noise(np.zeros(100_000), 2.0, True, np.random.default_rng(20))
        >>> round(float(noisy.mean() / 2.0), 2)  # Rayleigh, where there is no signal: the root of pi / 2
        1.25
    """
    if not deviation:
        return slices
    real = slices + deviation * rng.standard_normal(slices.shape, dtype=slices.dtype)
    if not is_rician:
        return np.asarray(real)
    return np.asarray(np.hypot(real, deviation * rng.standard_normal(slices.shape, dtype=slices.dtype)))
