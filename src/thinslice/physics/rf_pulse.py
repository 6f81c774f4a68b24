"""The slice profile of a spin echo, simulated: what its two selective pulses make of spins beside the middle."""

import numpy as np

TIME_BANDWIDTH = 3.0
"""Duration times bandwidth of both pulses: short ones, as of a usual turbo spin echo, whose edges are soft."""

STEPS = 256
"""Hard pulses of which a shaped one is made."""


def spin_echo_profile(distance_fwhm: np.ndarray, time_bandwidth: float = TIME_BANDWIDTH) -> np.ndarray:
    """Returns the signal of a spin echo at some distances from the middle of the slice, 1 there.

    Excitation (90 degrees) times refocusing (180 degrees), both Hamming-windowed sinc pulses on one gradient. The spins
    are turned by the hard pulses of the Shinnar-Le Roux transform (Pauly et al., IEEE Trans. Med. Imaging 10:53, 1991,
    sec. II), forwards: 2 conj(a) b of the first pulse and b squared of the second.

    Args:
        distance_fwhm: distances from the middle, in units of the full width at half maximum, any shape.
        time_bandwidth: duration times bandwidth of the pulses; longer ones have sharper edges.

    Example:
        >>> spin_echo_profile(np.array([0.0, 0.5, 1.5])).round(2)
        array([1. , 0.5, 0. ])
    """
    # The refocusing pulse narrows the slice: in units of its nominal thickness the half width is not known beforehand.
    nominal = np.linspace(0, 2, 2001)
    signal = _spin_echo(nominal, time_bandwidth)
    below = int(np.argmax(signal < 0.5))
    half = np.interp(0.5, signal[[below, below - 1]], nominal[[below, below - 1]])
    at_distance: np.ndarray = np.interp(2 * half * np.abs(distance_fwhm), nominal, signal)
    return at_distance


def _spin_echo(distance: np.ndarray, time_bandwidth: float) -> np.ndarray:
    """Returns the signal at distances in units of the nominal thickness, over that in the middle."""
    excited = _spinor(distance, time_bandwidth, np.pi / 2)
    refocused = _spinor(distance, time_bandwidth, np.pi)
    signal = 2 * np.abs(np.conj(excited[0]) * excited[1]) * np.abs(refocused[1]) ** 2
    normalised: np.ndarray = signal / signal[0]
    return normalised


def _spinor(distance: np.ndarray, time_bandwidth: float, flip: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the Cayley-Klein parameters a and b of spins after one pulse."""
    time = (np.arange(STEPS) + 0.5) / STEPS - 0.5
    pulse = np.sinc(time_bandwidth * time) * (0.54 + 0.46 * np.cos(2 * np.pi * time))
    angles = flip * pulse / pulse.sum()
    turn = np.exp(1j * np.pi * distance * time_bandwidth / STEPS)
    a, b = np.ones_like(turn), np.zeros_like(turn)
    for angle in angles:
        a, b = a * turn, b * np.conj(turn)
        cosine, sine = np.cos(angle / 2), 1j * np.sin(angle / 2)
        a, b = cosine * a + sine * b, sine * a + cosine * b
    return a, b
