"""Volumes made thick: the batches of the slab networks.

Every random choice is drawn and recorded first (`Draw`), then applied (`render`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from thinslice.physics.acquisition import Acquisition, apply_along_first_axis
from thinslice.physics.interpolation import cubic_matrix
from thinslice.physics.noise import add_noise
from thinslice.physics.profile import sd_over_fwhm
from thinslice.physics.projection import correction_matrix, noise_to_signal, scale_damping
from thinslice.settings import Profile
from thinslice.training.faults import NO_FAULTS, FaultRanges, Faults, alter_slices, bias_field, draw_faults
from thinslice.training.volumes import TrainingVolume

BLANK = 0.08
"""A patch whose middle is darker than this share of the intensity range is drawn again: air teaches nothing."""

TRIES = 4
"""Times that a patch is drawn until its middle is not `BLANK`; the last one counts: some volumes are mostly air."""

Ends = Literal["voxels", "slices"]
"""What repeats beyond the ends of a volume: its outermost thin slice, or, as at inference, its outermost thick one."""


@dataclass(frozen=True)
class Geometry:
    """One acquisition, shared by all patches of a batch.

    Positions are in thin voxels from the middle of the block; ``thick`` runs over ``slabs + 2 * context`` slices.

    Attributes:
        factor: slice spacing, in thin voxels.
        thickness_over_spacing, profile: by which the slices are made.
        thick_centres, thin_positions: where slices lie.
        ends: see `Ends`.
        stated: thickness over spacing and profile that are stated instead, where an estimate would have been wrong.
        noise: standard deviation of the noise of the slices, in intensity ranges of the scan.
        stated_noise: what an estimate would have said of it.
        faulty: whether patches may have the faults of `AcquisitionRanges.faults`.
    """

    factor: float
    thickness_over_spacing: float
    profile: Profile
    thick_centres: np.ndarray
    thin_positions: tuple[np.ndarray, ...]
    ends: Ends = "voxels"
    stated: tuple[float, Profile] | None = None
    noise: float = 0.0
    stated_noise: float = 0.0
    faulty: bool = False

    @property
    def assumed(self) -> tuple[float, Profile]:
        """Returns the thickness over the spacing, and the profile, that the network and the projection go by."""
        return self.stated or (self.thickness_over_spacing, self.profile)


@dataclass(frozen=True)
class Draw:
    """All that is random about one patch."""

    volume: int
    axis: int
    transpose: bool
    flips: tuple[bool, bool, bool]
    corner: tuple[int, int, int]
    gain: float
    offset: float
    noise: float = 0.0
    seed: int = 0
    faults: Faults = NO_FAULTS


@dataclass(frozen=True)
class AcquisitionRanges:
    """What the training draws from; the envelope of the model is stated from it.

    Attributes:
        factor, thickness_over_spacing: lowest and highest of acquisitions that are not typical.
        profiles: their profiles, each with its share.
        typical: share of typical acquisitions, see `draw_geometry`.
        whole: factors of the typical ones, and of those that keep every n-th thin slice.
        noise, noisy: lowest and highest standard deviation, of the intensity range, and the share of patches with it.
        kept: share of acquisitions that keep every n-th thin slice and lose the others: a video at fewer frames.
        fractional: False for whole factors everywhere.
        ends: a volume as short as a clip needs "slices": the frame at its end, which may have to be predicted, would
            otherwise be shown beside it.
        faults: what else a scanner does to slices; None: nothing. Typical acquisitions stay without.
    """

    factor: tuple[float, float] = (1.4, 10.5)
    thickness_over_spacing: tuple[float, float] = (0.55, 1.35)
    profiles: tuple[tuple[Profile, float], ...] = (("box", 0.25), ("gaussian", 0.75))
    typical: float = 0.5
    noise: tuple[float, float] = (0.0, 0.02)
    noisy: float = 0.3
    whole: tuple[int, ...] = (2, 3, 4, 4, 5, 6, 7, 8)
    kept: float = 0.0
    fractional: bool = True
    ends: Ends = "voxels"
    faults: FaultRanges | None = None


THICK_SCAN_RANGES = AcquisitionRanges(noisy=0.1)
"""How patches of thick scans are recoloured: with less noise, as the scans have their own."""

NEAR_FACTOR = 0.1
"""How far the factor of a batch departs from a scan's own, as a share of it, so that the network is sure around it."""

NEAR_THICKNESS = 0.05
"""How far the slice thickness of a batch departs from a scan's own, as a share of it; likewise."""


@dataclass(frozen=True)
class Batch:
    """Arrays for one step: B patches, S slabs, P thin slices in all.

    thick [B, S + 2 context, h, w], cubic [B, P, h, w], truth [B, P, h, w], matrix A [S, P] of the block and the matrix
    [P, S] that projects onto its slices (`thinslice.physics.projection.correction_matrix`), both of the acquisition
    that is stated, and what it does not explain of the slices [B, S, h, w]: how they differ from the truth made thick
    by it. None for nothing.
    """

    geometry: Geometry
    thick: np.ndarray
    cubic: np.ndarray
    truth: np.ndarray
    matrix: np.ndarray
    correction: np.ndarray
    unexplained: np.ndarray | None = None


def draw_geometry(rng: np.random.Generator, ranges: AcquisitionRanges, slabs: int, context: int) -> Geometry:
    """Draws an acquisition: half of them typical (whole factor, Gaussian, thickness = spacing, slabs on the grid).

    Where every n-th thin slice is kept, its thickness is one voxel and its centre lies on one: a box of that width sees
    this voxel alone.
    """
    low, high = ranges.factor
    profile: Profile = "gaussian"
    # Drawn only where it decides: recipes without it would else see other batches from the same seed than they did.
    if ranges.kept and rng.random() < ranges.kept:
        factor = float(rng.choice(ranges.whole))
        thickness, phase = 1 / factor, float(rng.integers(int(factor)))
        profile = "box"
    elif rng.random() < ranges.typical:
        factor = float(rng.choice(ranges.whole))
        thickness, phase = 1.0, (factor - 1) / 2
    elif ranges.faults is not None:
        return _draw_faulty(rng, ranges, ranges.faults, slabs, context)
    else:
        any_factor = ranges.fractional
        # Even in the logarithm: evenly drawn, most factors would be large ones.
        factor = float(np.exp(rng.uniform(np.log(low), np.log(high))) if any_factor else rng.choice(ranges.whole))
        thickness = float(rng.uniform(*ranges.thickness_over_spacing))
        profile = _draw_profile(rng, ranges)
        phase = float(rng.uniform(0, factor))
    return geometry_of_block(factor, thickness, profile, phase, slabs, context, ranges.ends)


def _draw_profile(rng: np.random.Generator, ranges: AcquisitionRanges) -> Profile:
    """Returns a profile by the shares."""
    drawn, (*others, last) = rng.random(), ranges.profiles
    for profile, share in others:
        if drawn < share:
            return profile
        drawn -= share
    return last[0]


def _draw_faulty(
    rng: np.random.Generator, ranges: AcquisitionRanges, faults: FaultRanges, slabs: int, context: int
) -> Geometry:
    """Draws an acquisition with noise, of which something else may be stated than what is true."""
    low, high = np.log(ranges.factor)
    thin, thick = ranges.thickness_over_spacing
    factor = float(rng.choice(ranges.whole))
    profile: Profile = "gaussian"
    thickness, phase = 1.0, (factor - 1) / 2
    if rng.random() > faults.usual:
        factor = float(np.exp(rng.uniform(low, high)))
        phase = float(rng.uniform(0, factor))
        # By ratio, and those near the spacing most often: gaps and overlaps are the rarer the larger they are.
        thickness = float(np.exp(rng.triangular(np.log(thin), 0.0, np.log(thick))))
        profile = _draw_profile(rng, ranges)
    stated: tuple[float, Profile] | None = None
    if rng.random() < faults.misstated:
        bell = sd_over_fwhm("gaussian")
        width = (sd_over_fwhm(profile) * thickness + faults.width_error * rng.standard_normal()) / bell
        stated = (float(np.clip(width, thin, thick)), "gaussian")
    noise = float(rng.uniform(*faults.noise)) if rng.random() < faults.noisy else 0.0
    stated_noise = noise * float(np.exp(faults.noise_error * rng.standard_normal()))
    geometry = geometry_of_block(factor, thickness, profile, phase, slabs, context, ranges.ends)
    return replace(geometry, stated=stated, noise=noise, stated_noise=stated_noise, faulty=True)


def geometry_of_block(
    factor: float,
    thickness_over_spacing: float,
    profile: Profile,
    phase: float,
    slabs: int,
    context: int,
    ends: Ends = "voxels",
) -> Geometry:
    """Returns an acquisition whose first slab's centre lies at ``phase``, in thin voxels."""
    centres = phase + factor * np.arange(-context, slabs + context)
    edges = phase + factor * (np.arange(slabs + 1) - 0.5)
    # A thin slice on the border of two slabs belongs to the second, and rounding must not change that.
    first = np.ceil(edges - 1e-9).astype(int)
    positions = tuple(np.arange(first[i], first[i + 1]) for i in range(slabs))
    return Geometry(factor, thickness_over_spacing, profile, centres, positions, ends)


def geometry_near(
    rng: np.random.Generator,
    factor: float,
    thickness_over_spacing: float,
    profile: Profile,
    slabs: int,
    context: int,
) -> Geometry:
    """Draws an acquisition like that of a scan, a little more or less."""
    factor *= float(np.exp(rng.uniform(-NEAR_FACTOR, NEAR_FACTOR)))
    thickness_over_spacing *= 1 + float(rng.uniform(-NEAR_THICKNESS, NEAR_THICKNESS))
    return geometry_of_block(factor, thickness_over_spacing, profile, float(rng.uniform(0, factor)), slabs, context)


def draw_patch(
    rng: np.random.Generator, corpus: Sequence[TrainingVolume], ranges: AcquisitionRanges, geometry: Geometry, size: int
) -> Draw:
    """Draws where a patch is cut and how it is altered."""
    inner = int(geometry.thin_positions[-1][-1] - geometry.thin_positions[0][0] + 1)
    draw = draw_block(rng, corpus, (inner, size, size))
    noise = float(rng.uniform(*ranges.noise)) if rng.random() < ranges.noisy else 0.0
    # Positions of a geometry are relative to its block, which need not begin at 0.
    corner = (draw.corner[0] - int(geometry.thin_positions[0][0]), *draw.corner[1:])
    draw = replace(draw, corner=corner, noise=noise, seed=int(rng.integers(2**31)))
    return replace(draw, faults=draw_faults(rng, ranges.faults)) if ranges.faults and geometry.faulty else draw


def draw_block(
    rng: np.random.Generator, corpus: Sequence[TrainingVolume], wanted: tuple[int, int, int], in_plane: bool = False
) -> Draw:
    """Draws a place for a block of ``wanted`` voxels and how it is altered, without noise.

    With ``in_plane`` the slice axis of a thick scan, where that is known, becomes the block's middle axis: its other
    two then lie in the slices.
    """
    weights = np.array([thin.weight for thin in corpus])
    volume = int(rng.choice(len(corpus), p=weights / weights.sum()))
    axis = int(rng.choice(corpus[volume].axes))
    # Drawn even where it is not free, so that the later draws are the same in both cases.
    transpose = bool(rng.random() < 0.5)
    if in_plane and len(corpus[volume].axes) == 2:
        across = 3 - sum(corpus[volume].axes)
        transpose = across != min({0, 1, 2} - {axis})
    shape = np.moveaxis(corpus[volume].voxels, axis, 0).shape
    shape = (shape[0], shape[2], shape[1]) if transpose else shape
    room = [max(n - m, 0) + 1 for n, m in zip(shape, wanted, strict=True)]
    flips = (bool(rng.random() < 0.5), bool(rng.random() < 0.5), bool(rng.random() < 0.5))
    for _ in range(TRIES):
        corner = [int(rng.integers(0, n)) for n in room]
        middle = [min(c + m // 2, n - 1) for c, m, n in zip(corner, wanted, shape, strict=True)]
        if _value_at(corpus[volume].voxels, axis, transpose, flips[0], middle) > BLANK:
            break
    gain = float(np.exp(rng.uniform(np.log(0.5), np.log(1.6)))) * (-1.0 if rng.random() < 0.1 else 1.0)
    # A negative gain turns 0 .. 1 into -1 .. 0: one more brings it back.
    offset = float(rng.uniform(-0.15, 0.15)) + (1.0 if gain < 0 else 0.0)
    return Draw(volume, axis, transpose, flips, (corner[0], corner[1], corner[2]), gain, offset)


def _value_at(voxels: np.ndarray, axis: int, transpose: bool, reverse: bool, index: Sequence[int]) -> float:
    """Returns the voxel at an index of the block that `cut` would see."""
    # One voxel is looked up: of a block that was cut, most of the work would be for patches that are drawn again.
    block = np.moveaxis(voxels, axis, 0)
    depth, rows, columns = index
    depth = block.shape[0] - 1 - depth if reverse else depth
    return float(block[depth, columns, rows] if transpose else block[depth, rows, columns])


def cut(
    corpus: Sequence[TrainingVolume],
    draw: Draw,
    thin_index: np.ndarray,
    row_index: np.ndarray,
    column_index: np.ndarray,
) -> np.ndarray:
    """Returns the thin block that a draw names, at indices from its corner; beyond the volume its edge repeats."""
    block = np.moveaxis(corpus[draw.volume].voxels, draw.axis, 0)
    if draw.transpose:
        block = block.transpose(0, 2, 1)
    depth, height, width = block.shape
    if draw.flips[0]:
        block = block[::-1]
    index = np.clip(thin_index + draw.corner[0], 0, depth - 1)
    rows = np.clip(row_index + draw.corner[1], 0, height - 1)
    columns = np.clip(column_index + draw.corner[2], 0, width - 1)
    block = block[index[:, None, None], rows[None, :, None], columns[None, None, :]]
    if draw.flips[1]:
        block = block[:, ::-1]
    if draw.flips[2]:
        block = block[:, :, ::-1]
    return np.ascontiguousarray(block, dtype=np.float32) * np.float32(draw.gain) + np.float32(draw.offset)


def render(
    corpus: Sequence[TrainingVolume], geometry: Geometry, draws: Sequence[Draw], size: int, context: int
) -> Batch:
    """Cuts, thickens and interpolates the patches of one batch, as they were drawn."""
    fwhm = geometry.thickness_over_spacing * geometry.factor
    # Cut is more than what is predicted: all thin slices that the thick ones around the block see.
    reach = int(np.ceil(2 * fwhm)) + 1
    low = int(np.floor(geometry.thick_centres[0])) - reach
    high = int(np.ceil(geometry.thick_centres[-1])) + reach
    wide = np.arange(low, high + 1)
    inner = np.concatenate(geometry.thin_positions)
    acquisition = Acquisition(geometry.thick_centres - low, len(wide), fwhm, geometry.profile)
    side = np.arange(size)
    thin = np.stack([cut(corpus, draw, wide, side, side) for draw in draws], axis=1)
    unexplained = None
    if geometry.faulty:
        thick, unexplained = _acquire_with_faults(thin, acquisition, geometry, draws, context)
    else:
        thick = acquisition.forward(thin)
    # Noise is the scanner's, so it is added to the thick slices; in the thin ones thickening would average it away.
    # This one nobody knows of: the loss goes on as if there were none.
    for column, draw in enumerate(draws):
        if draw.noise:
            shape = thick[:, column].shape
            thick[:, column] += draw.noise * np.random.default_rng(draw.seed).standard_normal(shape, dtype=np.float32)
    if geometry.ends == "slices":
        # Thick slices that lie outside the volume are none that a scanner made: inference repeats the outermost one.
        for column, draw in enumerate(draws):
            thick[:, column] = thick[_acquired(corpus, draw, geometry.thick_centres), column]
    # From the thick slices with their noise: at inference, too, there is nothing else to interpolate.
    position = (inner - geometry.thick_centres[0]) / geometry.factor
    cubic = apply_along_first_axis(cubic_matrix(position, len(thick)), thick)
    # Only onto the slabs in the middle: the thin slices of the context are not predicted.
    own = geometry.thick_centres[context : len(thick) - context]
    thickness, profile = geometry.assumed
    matrix = Acquisition(own - inner[0], len(inner), thickness * geometry.factor, profile).matrix()
    damping = scale_damping(matrix, geometry.factor, noise_to_signal(geometry.stated_noise))
    correction = correction_matrix(matrix, geometry.factor, damping)
    swap = (1, 0, 2, 3)
    return Batch(
        geometry,
        np.ascontiguousarray(thick.transpose(swap)),
        np.ascontiguousarray(cubic.transpose(swap)),
        np.ascontiguousarray(thin[inner - low].transpose(swap)),
        matrix.astype(np.float32),
        correction.astype(np.float32),
        None if unexplained is None else np.ascontiguousarray(unexplained.transpose(swap)),
    )


def _acquire_with_faults(
    thin: np.ndarray, acquisition: Acquisition, geometry: Geometry, draws: Sequence[Draw], context: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns slices as a scanner gives them, and how those of the block differ from the truth in the stated one.

    Args:
        thin: the truth [wide, patch, h, w]; multiplied in place by the bias of its coil, which the answer keeps.
        acquisition: the true one.
        geometry: of the batch.
        draws: of its patches.
        context: slices around the block.
    """
    for column, draw in enumerate(draws):
        field = bias_field(draw.faults, *thin.shape[2:])
        # Of what the scanner sees, whose dark is 0: a patch was recoloured since.
        thin[:, column] = (thin[:, column] - draw.offset) * field + draw.offset
    thick = acquisition.forward(thin)
    for column, draw in enumerate(draws):
        rng = np.random.default_rng([draw.seed, 1])
        signal = alter_slices((thick[:, column] - draw.offset) / draw.gain, draw.faults, rng)
        signal = add_noise(signal, geometry.noise, draw.faults.rician, rng)
        thick[:, column] = signal * draw.gain + draw.offset
    width, profile = geometry.assumed
    own = slice(context, len(thick) - context)
    stated = replace(
        acquisition, centres_vox=acquisition.centres_vox[own], fwhm_vox=width * geometry.factor, profile=profile
    )
    return thick, thick[own] - stated.forward(thin)


def _acquired(corpus: Sequence[TrainingVolume], draw: Draw, thick_centres: np.ndarray) -> np.ndarray:
    """Returns, of every thick slice, the number of the nearest one whose centre lies within the volume."""
    place = thick_centres + draw.corner[0]
    within = np.flatnonzero((place > -0.5) & (place < corpus[draw.volume].voxels.shape[draw.axis] - 0.5))
    return np.clip(np.arange(len(place)), within[0], within[-1])


def batch_at(
    step: int,
    seed: int,
    corpus: Sequence[TrainingVolume],
    ranges: AcquisitionRanges,
    patches: int,
    size: int,
    slabs: int,
    context: int,
) -> Batch:
    """Returns the batch of one step: a function of seed and step alone, so that a resumed run continues exactly."""
    rng = np.random.default_rng([seed, step])
    geometry = draw_geometry(rng, ranges, slabs, context)
    draws = [draw_patch(rng, corpus, ranges, geometry, size) for _ in range(patches)]
    return render(corpus, geometry, draws, size, context)
