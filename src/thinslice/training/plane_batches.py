"""Volumes -> pairs of planes for `thinslice.networks.planes`.

In-plane ones shrink along both of their axes, depth ones along the first.

As in `thinslice.training.batches`, every random choice is drawn and recorded first, then applied.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from thinslice.models.plane_networks import Part
from thinslice.physics.acquisition import Acquisition
from thinslice.physics.downscaling import downscaling_matrix
from thinslice.physics.interpolation import cubic_matrix
from thinslice.settings import Profile
from thinslice.training.batches import Draw, cut, draw_block
from thinslice.training.volumes import TrainingVolume


@dataclass(frozen=True)
class Shrinking:
    """How planes are made small.

    Attributes:
        factor: whole.
        scanner: share of the patches that are made by a Gaussian slice profile, as a scanner makes slices; the others
            are made by anti-aliased bicubic downscaling, as in the paper.
        fwhm_over_factor: range of that profile's width.
        box: share of those profiles that are a box instead.
        sigma_vox: range of the Gaussian before the downscaling; (0, 0) for none, equal ends for a fixed one.
        blurred: share of the downscaled patches that get it.
    """

    factor: int = 2
    scanner: float = 0.5
    fwhm_over_factor: tuple[float, float] = (0.75, 1.25)
    box: float = 0.2
    sigma_vox: tuple[float, float] = (0.0, 0.5)
    blurred: float = 0.5


@dataclass(frozen=True)
class PlaneDraw:
    """All that is random about one patch: where it is cut, and how it is made small.

    ``fwhm_vox`` is the width of the slice ``profile``, None for bicubic downscaling after a Gaussian of ``sigma_vox``.
    """

    place: Draw
    fwhm_vox: float | None
    sigma_vox: float
    profile: Profile = "gaussian"


@dataclass(frozen=True)
class PlaneBatch:
    """Planes, their cubic interpolation and the truth: [n, 1, h, w] and twice [n, 1, a h, b w], float32.

    The outermost ``margin`` pixels of the planes (before enlarging) are there for the network to see, not to be scored.
    """

    planes: np.ndarray
    base: np.ndarray
    truth: np.ndarray
    margin: int

    def inner(self) -> tuple[slice, slice]:
        """Returns what is scored of ``base`` and ``truth``."""
        scale = [large // small for large, small in zip(self.truth.shape[2:], self.planes.shape[2:], strict=True)]
        return slice(scale[0] * self.margin, -scale[0] * self.margin), slice(
            scale[1] * self.margin, -scale[1] * self.margin
        )


def plane_batch_at(
    step: int,
    seed: int,
    corpus: Sequence[TrainingVolume],
    part: Part,
    shrinking: Shrinking,
    patches: int,
    lines: int,
    size: int,
    margin: int,
) -> PlaneBatch:
    """Returns the batch of one step: a function of the seed and the step alone.

    Args:
        patches, lines: places that are drawn, and neighbouring planes at each.
        size, margin: pixels of the small planes along both axes, scored and around them.
    """
    rng = np.random.default_rng([seed, step])
    draws = [draw_planes(rng, corpus, part, shrinking, lines, size) for _ in range(patches)]
    made = [render_planes(corpus, draw, part, shrinking.factor, lines, size, margin) for draw in draws]
    planes, base, truth = (np.ascontiguousarray(np.concatenate(arrays)[:, None]) for arrays in zip(*made, strict=True))
    return PlaneBatch(planes, base, truth, margin)


def draw_planes(
    rng: np.random.Generator, corpus: Sequence[TrainingVolume], part: Part, shrinking: Shrinking, lines: int, size: int
) -> PlaneDraw:
    """Draws where one patch is cut and how it is made small."""
    long = shrinking.factor * size
    place = draw_block(rng, corpus, (long, lines, long if part == "in-plane" else size), in_plane=True)
    fwhm = float(rng.uniform(*shrinking.fwhm_over_factor)) * shrinking.factor
    sigma = float(rng.uniform(*shrinking.sigma_vox))
    # All three are drawn, whichever way they fall: another share must not move the patches that come after.
    scanner, blurred, box = rng.random(3) < (shrinking.scanner, shrinking.blurred, shrinking.box)
    return PlaneDraw(place, fwhm if scanner else None, sigma if blurred else 0.0, "box" if box else "gaussian")


def render_planes(
    corpus: Sequence[TrainingVolume], draw: PlaneDraw, part: Part, factor: int, lines: int, size: int, margin: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns planes [lines, h, w], their interpolation and the truth [lines, a h, b w]."""
    # How far a small pixel sees: the Gaussian two FWHM, the bicubic kernel two small pixels.
    wide = (draw.fwhm_vox or factor) * 2.0
    beyond = -(-int(np.ceil(wide)) // factor) + 1  # small pixels whose thin ones reach into the outermost
    count = size + 2 * (margin + beyond)
    long = np.arange(factor * count) - factor * (margin + beyond)
    short = np.arange(size + 2 * margin) - margin
    # The outermost small pixels see the end of what was cut, which is no end of the anatomy.
    shrink = shrinking_matrix(count, factor, draw)[beyond : count - beyond]
    kept = slice(factor * beyond, factor * (count - beyond))
    small = size + 2 * margin
    enlarge = cubic_matrix((np.arange(factor * small) - (factor - 1) / 2) / factor, small)
    if part == "depth":
        thin = cut(corpus, draw.place, long, np.arange(lines), short).transpose(1, 0, 2)
        planes = np.matmul(shrink.astype(np.float32), thin)
        return planes, np.matmul(enlarge.astype(np.float32), planes), thin[:, kept]
    thin = cut(corpus, draw.place, long, np.arange(lines), long).transpose(1, 0, 2)
    planes = np.matmul(np.matmul(shrink.astype(np.float32), thin), shrink.T.astype(np.float32))
    base = np.matmul(np.matmul(enlarge.astype(np.float32), planes), enlarge.T.astype(np.float32))
    return planes, base, thin[:, kept, kept]


def shrinking_matrix(n_thick: int, factor: int, draw: PlaneDraw) -> np.ndarray:
    """Returns the matrix [n_thick, factor * n_thick] of a slice profile, or by anti-aliased bicubic downscaling."""
    if draw.fwhm_vox is None:
        return downscaling_matrix(n_thick, factor, draw.sigma_vox)
    centres_vox = (np.arange(n_thick) + 0.5) * factor - 0.5
    return Acquisition(centres_vox, factor * n_thick, draw.fwhm_vox, draw.profile).matrix()
