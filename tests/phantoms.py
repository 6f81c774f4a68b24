"""Scans and networks of which everything is known.

The phantom is a function of patient millimetres. What a scanner would acquire is integrated here, finely and without
any code of the package, so that no error of the package can cancel itself.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from thinslice.models.envelope import Envelope
from thinslice.models.plane_networks import PlanesModel
from thinslice.models.protocol import Enlarger, Model
from thinslice.models.slab_network import SlabModel
from thinslice.physics.intensity import intensity_range
from thinslice.plan import Plan
from thinslice.volume import Volume

CONTEXT = 1
FINE_MM = 0.1
"""Step of the integration over the slice profile, a tenth of the thin spacing."""


def anatomy(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Three ellipsoids, a slanted edge and a slanted thin sheet; edges are a millimetre wide. Arguments in mm."""

    def inside(distance_mm: np.ndarray) -> np.ndarray:
        return 0.5 - 0.5 * np.tanh(np.clip(distance_mm, -20, 20) / 0.6)

    def ellipsoid(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
        radius = np.sqrt(sum(((p - c) / r) ** 2 for p, c, r in zip((x, y, z), centre, radii, strict=True)))
        return inside((radius - 1) * min(radii))

    body = 0.4 * ellipsoid((0, 0, 1.3), (17, 16, 17.5))
    organ = 0.5 * ellipsoid((5, -4, -6.2), (6, 5, 4.3))
    cyst = -0.3 * ellipsoid((-6, 5, 7.1), (4, 5, 5.7))
    edge = 0.15 * inside(z * np.cos(0.5) + x * np.sin(0.5) - 3.0) * inside(np.hypot(x + 8, y + 7) - 6)
    sheet = 0.35 * inside(np.abs(z * np.cos(0.35) + y * np.sin(0.35) + 1.7) - 1.2) * inside(np.hypot(x, y) - 13)
    return np.asarray(body + organ + cyst + edge + sheet)


def sampled(shape: tuple[int, ...], affine: np.ndarray, moved_mm: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    """The anatomy at the voxel centres of a grid, perhaps moved."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
    x, y, z = np.einsum("ij,j...->i...", affine[:3, :3], index) + affine[:3, 3, None, None, None]
    return anatomy(x - moved_mm[0], y - moved_mm[1], z - moved_mm[2])


def acquired(
    shape: tuple[int, int, int], affine: np.ndarray, axis: int, thickness_mm: float, profile: str = "gaussian"
) -> np.ndarray:
    """What a scanner acquires of the anatomy: each slice integrated over its profile along the slice axis."""
    direction = affine[:3, axis] / np.linalg.norm(affine[:3, axis])
    reach = 1.6 if profile == "gaussian" else 0.5
    steps = round(reach * thickness_mm / FINE_MM)
    total, answer = 0.0, np.zeros(shape)
    for step in range(-steps, steps + 1):
        offset = step * reach * thickness_mm / steps
        weight = np.exp(-4 * np.log(2) * (offset / thickness_mm) ** 2) if profile == "gaussian" else 1.0
        weight *= 0.5 if abs(step) == steps else 1.0
        moved = affine.copy()
        moved[:3, 3] += offset * direction
        answer += weight * sampled(shape, moved)
        total += weight
    return answer / total


@dataclass(frozen=True)
class Grid:
    """A thick grid around the origin."""

    shape: tuple[int, int, int]
    affine: np.ndarray


def thick_grid(axis: int = 2, n_thick: int = 12, thick_mm: float = 4.0, side: int = 40) -> Grid:
    """Slices ``thick_mm`` apart, 1 mm pixels, centred on the origin, array axes in any order."""
    order = [0, 1, 2]
    order.insert(axis, order.pop())  # array axis ``axis`` points along patient z
    spacing, shape = [1.0, 1.0, 1.0], [side, side, side]
    spacing[axis], shape[axis] = thick_mm, n_thick
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, order] * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid((shape[0], shape[1], shape[2]), affine)


def psnr(answer: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB; the peak is the range of the truth."""
    return float(20 * np.log10(np.ptp(truth)) - 10 * np.log10(np.mean((answer - truth) ** 2)))


def shift_mm(answer: np.ndarray, affine: np.ndarray, direction: np.ndarray) -> float:
    """How far the answer lies from the anatomy along a direction: the peak of their cross-correlation.

    The anatomy is moved analytically, so nothing is interpolated; the peak is found by a parabola.
    """
    moves = np.arange(-1.2, 1.21, 0.3)
    scores = [
        np.corrcoef(answer.ravel(), sampled(answer.shape, affine, tuple(m * direction)).ravel())[0, 1] for m in moves
    ]
    best = int(np.clip(np.argmax(scores), 1, len(moves) - 2))
    before, peak, after = scores[best - 1 : best + 2]
    return float(moves[best] + 0.3 * 0.5 * (before - after) / (before - 2 * peak + after))


# Networks that are known exactly. Contract: (slices [2c+1, h, w], geometry [3], position [p, 7]) -> [p, h, w].


def network(
    residual: Callable[[np.ndarray, np.ndarray], np.ndarray], base: str = "cubic", context: int = CONTEXT
) -> Model:
    """A model from a function of (slices, offsets in slice spacings, -1 .. 1).

    Its answers are shared out among the two slices around a thin one as a trained network learns to do.
    """

    def run(slices: np.ndarray, geometry: np.ndarray, position: np.ndarray) -> np.ndarray:
        assert slices.dtype == geometry.dtype == position.dtype == np.float32
        assert slices.shape[0] == 2 * context + 1
        assert geometry.shape == (3,)
        assert position.shape[1:] == (7,)
        offset = position[:, 0] / 2
        assert (np.abs(offset) < 1).all()
        share = np.cos(0.5 * np.pi * offset)[:, None, None] ** 2
        answer = np.asarray(share * residual(slices, offset), np.float32)
        assert answer.shape == (len(position), *slices.shape[1:])
        return answer

    return SlabModel("known", base, residual=run, context=context)


def silent() -> Model:
    """Adds nothing."""
    return network(lambda slices, offset: np.zeros((len(offset), *slices.shape[1:])))


def curved() -> Model:
    """Nonlinear in the intensities, and the same after any turn or flip of the scan."""

    def residual(slices: np.ndarray, offset: np.ndarray) -> np.ndarray:
        before, own, after = slices
        slope = np.sin(2 * np.pi * offset)[:, None, None] * np.tanh(after - before)
        bend = np.cos(np.pi * offset)[:, None, None] * (own - 0.5) ** 2
        return 0.04 * slope + 0.04 * bend

    return network(residual)


def lopsided() -> Model:
    """As networks are: answers differently to a scan that is turned or flipped."""

    def residual(slices: np.ndarray, offset: np.ndarray) -> np.ndarray:
        before, own, after = slices
        along = own - 0.5 * np.roll(own, 1, axis=0) - 0.3 * np.roll(own, 1, axis=1)
        wave = np.sin(2 * np.pi * offset + 0.4)[:, None, None]
        return np.asarray(0.03 * wave * np.tanh(along + 0.7 * before - 0.2 * after))

    return network(residual)


def straight() -> Model:
    """Repeats slices, and adds the slope between the neighbours: a ramp must come out as a ramp."""

    def residual(slices: np.ndarray, offset: np.ndarray) -> np.ndarray:
        from_nearest = offset - np.floor(offset + 0.5)
        return np.asarray(from_nearest[:, None, None] * (slices[2] - slices[0]) / 2)

    return network(residual, base="nearest")


def knowing(volume: Volume, plan: Plan, residual: np.ndarray) -> Model:
    """Answers with the given residual [thin, h, w] (normalised); recognises the slab by its slice, and the thin
    slices by their positions."""
    thick = np.moveaxis(volume.voxels, plan.axis, 0).astype(np.float64)
    low, high = intensity_range(volume.voxels)
    known = (thick - low) / (high - low)

    def run(slices: np.ndarray, offset: np.ndarray) -> np.ndarray:
        slab = int(np.argmin(((known - slices[CONTEXT]) ** 2).sum(axis=(1, 2))))
        if slab == 0 and (slices[CONTEXT + 1] == slices[CONTEXT]).all():
            slab = -1  # beyond the ends the outermost slice repeats
        elif slab == len(known) - 1 and (slices[CONTEXT - 1] == slices[CONTEXT]).all():
            slab = len(known)
        index = np.rint(plan.first_centre + plan.factor * (slab + offset.astype(np.float64))).astype(int)
        return residual[index]

    return network(run)


def enlarging(part: str, factor: int, add: Callable[[np.ndarray], np.ndarray], reach: int = 3) -> Model:
    """A network for planes that adds to the interpolation what a function makes of it."""

    def run(planes: np.ndarray, base: np.ndarray) -> np.ndarray:
        assert planes.dtype == base.dtype == np.float32
        times = (factor, factor if part == "in-plane" else 1)
        assert base.shape[1:] == tuple(n * k for n, k in zip(planes.shape[1:], times, strict=True))
        return np.asarray(base + add(base), np.float32)

    envelope = Envelope(
        only_factors=(factor,) if part == "depth" else (), in_plane=(1,) if part == "depth" else (1, factor)
    )
    return PlanesModel("planes", "cubic", planes={(part, factor): Enlarger(run, (reach, reach))}, envelope=envelope)
