"""Finds the rigid motion of a body between two of its stacks: the only door to SimpleITK.

Headers come first. The place that they state is where the search begins and where it ends, unless another one is
clearly better. Then, from coarse to fine: both volumes are blurred to one isotropic grid and normalised within their
neighbourhood (`thinslice.compute.likeness`), so that scale, offset and bias field do not matter; on the coarsest grid
turns and shifts around the stated place are tried; from the best of them SimpleITK descends along the gradient of the
correlation over what both see. Nothing is drawn at random and one thread computes: the answer is always the same.

SimpleITK counts from the patient's left, front and feet up (LPS) and maps points of the fixed volume into the moving
one. Here millimetres are RAS, and a motion carries the moving volume to where it lies in the fixed one.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from thinslice.compute.likeness import (
    Comparison,
    Likeness,
    blur_to_spacing,
    correlate,
    index_map,
    normalise_locally,
    resample,
)
from thinslice.errors import InputRefused
from thinslice.models.blas import one_blas_thread
from thinslice.progress import Progress, no_progress
from thinslice.volume import Volume

logger = logging.getLogger(__name__)

LEVELS: tuple[tuple[float, float, float], ...] = ((6.0, 4.0, 20.0), (3.0, 2.0, 12.0), (1.5, 1.0, 6.0))
"""Spacing, blur and neighbourhood (both standard deviations) in mm of each grid. Twice as fine each time; on the last
the place of a stack 4 mm thick is found to 0.1 mm."""

TRIED_DEGREES = 10.0
"""Turn about each patient axis that is tried, both ways; the descent finds what lies as far beyond."""

TRIED_MM = 12.0
"""Shift along each patient axis that is tried, both ways."""

DESCENTS = 3
"""From so many of the best places on the coarsest grid, and from the stated one, a descent begins."""

SECOND_DESCENTS = 2
"""So many of these go on to the next grid; from there on the best one alone."""

SAMPLES = 100_000
"""Voxels of a grid that a descent looks at, evenly spread: more of them change the place by less than 0.01 mm."""

MOST_STEPS = 60
"""Of one descent; 10 to 25 are usual where both show one body, and more only cost time where they do not."""

SHORTEST_STEP_MM = 0.01
"""At which a descent ends: well below what is found anyway."""

FARTHEST_MM = 40.0
"""Motion of the volume's middle beyond this is a wrong match: twice what happens within a study."""

FARTHEST_DEGREES = 30.0
"""Turns beyond this likewise."""

CLEARLY_BETTER = 0.95
"""A motion is taken if the likeness lacks at most this share of what it lacked before. Where nothing
moved it has never become less; half a millimetre and half a degree make it 60 to 95 %."""

LEAST_GAIN = 0.003
"""Of the likeness, for a motion to be taken: where it is almost 1, a share of what it lacks is nothing."""

LEAST_OVERLAP_KEPT = 0.5
"""A motion that leaves less than this share of the common field of view has lost the body, however alike the rest."""

TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Between patient millimetres as RAS and as LPS, either way."""


@dataclass(frozen=True, eq=False)
class Registration:
    """Says where a volume lies in another one, and how alike they are there.

    Attributes:
        motion: [4, 4] float64, patient millimetres (RAS): from where the header says that the moving volume lies to
            where it lies in the fixed one. The identity where no other place is clearly better.
        likeness: there, see `thinslice.compute.likeness`.
        stated: the likeness where the headers say that both lie.
        shift_mm: by how much the middle of the moving volume moves.
        degrees: by how much it turns.
    """

    motion: np.ndarray
    likeness: Likeness
    stated: Likeness
    shift_mm: float
    degrees: float

    @property
    def overlap(self) -> float:
        """The share of the smaller field of view that both see after the motion."""
        return self.likeness.overlap

    @property
    def is_moved(self) -> bool:
        """Whether another place than the stated one was found."""
        return not np.array_equal(self.motion, np.eye(4))

    def __str__(self) -> str:
        found = f"moved by {self.shift_mm:.1f} mm and {self.degrees:.1f} degrees" if self.is_moved else "not moved"
        return f"{found}, likeness {self.stated.value:.2f} before and {self.likeness.value:.2f} after"


def check_installed() -> None:
    """Refuses to go on where SimpleITK is missing.

    Raises:
        InputRefused: it is.
    """
    try:
        import SimpleITK  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputRefused(
            got="no SimpleITK",
            need="it to find motion between stacks",
            next="pip install 'thinslice[combine]', or give `registration=False`",
            code="combine-not-installed",
        ) from error


def register(moving: Volume, fixed: Volume, progress: Progress = no_progress) -> Registration:
    """Finds the rigid motion of a volume against another one of the same body.

    Both may have any field of view, orientation, spacing, intensity scale and bias field. Thick slices are fine; of
    thin ones the place is a little surer.

    Args:
        moving: voxels [x, y, z].
        fixed: voxels [x, y, z].
        progress: called with the share done, 0 .. 1.

    Raises:
        InputRefused: SimpleITK is missing.
    """
    check_installed()
    comparison = Comparison(moving, fixed)
    unmoved = np.eye(4)
    stated = comparison.measure(unmoved)
    progress(0.1)
    if stated.overlap == 0:
        # Headers that put two stacks apart say that these are two places; no search could tell where they are wrong.
        return Registration(unmoved, stated, stated, 0.0, 0.0)
    motion = _search(moving, fixed, progress)
    likeness = comparison.measure(motion)
    shift_mm, degrees = _size(motion, _middle(moving))
    progress(1.0)
    found = Registration(motion, likeness, stated, shift_mm, degrees)
    is_taken = _is_clearly_better(found)
    logger.debug("%s, overlap %.2f: %s", found, found.overlap, "taken" if is_taken else "the headers are kept")
    return found if is_taken else Registration(unmoved, stated, stated, 0.0, 0.0)


def _is_clearly_better(found: Registration) -> bool:
    is_usual = found.shift_mm <= FARTHEST_MM and found.degrees <= FARTHEST_DEGREES
    sees_enough = found.likeness.overlap >= LEAST_OVERLAP_KEPT * found.stated.overlap
    lacking, lacked = 1 - found.likeness.value, 1 - found.stated.value
    is_better = lacking <= min(CLEARLY_BETTER * lacked, lacked - LEAST_GAIN)
    # Of two bodies, or two contrasts, some other place is always a little better, and none is right.
    return is_usual and sees_enough and found.likeness.is_same_body and is_better


def _search(moving: Volume, fixed: Volume, progress: Progress) -> np.ndarray:
    """Returns the best motion, from coarse to fine."""
    turned_about = (_middle(moving) + _middle(fixed)) / 2
    places = [np.eye(4)]
    for number, (spacing_mm, _, _) in enumerate(LEVELS):
        pair = _make_pair(moving, fixed, LEVELS[number], places[0] if number > 0 else None)
        if number == 0:
            tried = sorted(_places_around(turned_about), key=pair.correlation, reverse=True)
            # The stated place has its descent even if others begin better: small motions are the usual ones.
            places += tried[:DESCENTS]
        places = sorted(
            (_descend(pair, place, turned_about, spacing_mm) for place in places), key=pair.correlation, reverse=True
        )[: SECOND_DESCENTS if number == 0 else 1]
        logger.debug("on a grid of %g mm: correlation %.3f", spacing_mm, pair.correlation(places[0]))
        progress(0.1 + 0.8 * (number + 1) / len(LEVELS))
    return places[0]


@dataclass(frozen=True, eq=False)
class _Pair:
    """Two volumes on grids of one spacing, normalised within their neighbourhood, and which voxels of each count."""

    moving: Volume
    fixed: Volume
    moving_counted: np.ndarray
    fixed_counted: np.ndarray

    def correlation(self, motion: np.ndarray) -> float:
        """Returns the correlation over what both see after a motion."""
        to_index = index_map(self.moving, self.fixed, motion)
        seen, inside = resample(self.moving.voxels, to_index, self.fixed.shape)
        counted = inside & self.fixed_counted
        first, second = seen[counted], self.fixed.voxels[counted]
        if first.size == 0:
            return 0.0
        return correlate(first - first.mean(), second - second.mean())


def _make_pair(
    moving: Volume, fixed: Volume, level: tuple[float, float, float], motion: np.ndarray | None = None
) -> _Pair:
    """Returns both volumes on the grids of a level.

    Args:
        moving, fixed: as acquired.
        level: one of `LEVELS`.
        motion: where the moving volume nearly lies, if that is known. Then only what both see there counts, and their
            neighbourhoods end at the same places: those that the edge of one field of view cuts off alone have another
            mean and spread, which moves thin fields of view by half a millimetre.
    """
    spacing_mm, sigma_mm, window_mm = level
    with one_blas_thread:
        coarse = [blur_to_spacing(each, spacing_mm, sigma_mm) for each in (moving, fixed)]
        if motion is None:
            counted = [np.ones(each.shape, bool) for each in coarse]
        else:
            maps = (index_map(coarse[1], coarse[0], np.linalg.inv(motion)), index_map(coarse[0], coarse[1], motion))
            counted = [
                resample(other.voxels, to_index, own.shape)[1]
                for own, other, to_index in zip(coarse, reversed(coarse), maps, strict=True)
            ]
        first, second = (
            Volume(normalise_locally(each.voxels, window_mm / spacing_mm, where), each.affine)
            for each, where in zip(coarse, counted, strict=True)
        )
    return _Pair(first, second, *counted)


def _places_around(middle: np.ndarray) -> Iterator[np.ndarray]:
    """Yields motions: every turn that is tried, with every shift that is tried, but not the stated place itself."""
    ways = [np.zeros(3), *np.eye(3), *-np.eye(3)]
    for turn in ways:
        for shift in ways:
            if turn.any() or shift.any():
                yield _motion(turn * np.radians(TRIED_DEGREES), shift * TRIED_MM, middle)


def _motion(turn: np.ndarray, shift_mm: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """Returns the motion [4, 4] of a turn (radians, about one axis) around a middle, and a shift."""
    angle = float(np.linalg.norm(turn))
    axis = turn / (angle or 1.0)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    motion = np.eye(4)
    # Rodrigues' formula.
    motion[:3, :3] += np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    motion[:3, 3] = middle + shift_mm - motion[:3, :3] @ middle
    return motion


def _middle(volume: Volume) -> np.ndarray:
    """Returns the middle of a volume in patient millimetres."""
    index = (np.asarray(volume.shape) - 1) / 2
    middle: np.ndarray = volume.affine[:3, :3] @ index + volume.affine[:3, 3]
    return middle


def _size(motion: np.ndarray, middle: np.ndarray) -> tuple[float, float]:
    """Returns by how many millimetres a motion moves the middle, and by how many degrees it turns."""
    shift_mm = float(np.linalg.norm(motion[:3, :3] @ middle + motion[:3, 3] - middle))
    cosine = (np.trace(motion[:3, :3]) - 1) / 2
    return shift_mm, float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))


# ---- SimpleITK


def _descend(pair: _Pair, motion: np.ndarray, turned_about: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Returns the motion with the largest correlation near another one."""
    import SimpleITK  # an extra, and loaded only where stacks are registered

    # SimpleITK has types of its own in some versions and in some places.
    sitk: Any = SimpleITK
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsCorrelation()
    method.SetInterpolator(sitk.sitkLinear)
    if (share := SAMPLES / max(int(pair.fixed_counted.sum()), 1)) < 1:
        method.SetMetricSamplingStrategy(method.REGULAR)
        method.SetMetricSamplingPercentage(share, 1)  # the seed: even samples are shifted a little, by chance
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=spacing_mm / 2,
        minStep=SHORTEST_STEP_MM,
        numberOfIterations=MOST_STEPS,
        relaxationFactor=0.7,
        gradientMagnitudeTolerance=1e-7,
    )
    # Turns and shifts are weighed by how far they move voxels: then a step is a length.
    method.SetOptimizerScalesFromPhysicalShift()
    for counted, volume, use in (
        (pair.fixed_counted, pair.fixed, method.SetMetricFixedMask),
        (pair.moving_counted, pair.moving, method.SetMetricMovingMask),
    ):
        if not counted.all():
            use(_to_image(sitk, Volume(counted.astype(np.uint8), volume.affine)))
    transform = _to_transform(sitk, motion, turned_about)
    method.SetInitialTransform(transform, True)
    try:
        with _quiet_in_one_thread(sitk):
            method.Execute(_to_image(sitk, pair.fixed), _to_image(sitk, pair.moving))
    except RuntimeError as error:  # nothing common there, or flat: no descent, the place stays
        logger.debug("SimpleITK: %s", " ".join(str(error).split())[-200:])
        return motion
    return _from_transform(transform)


@contextmanager
def _quiet_in_one_thread(sitk: Any) -> Iterator[None]:
    """Lets SimpleITK compute in one thread, as sums of several depend on how many there are, and print nothing."""
    process = sitk.ProcessObject
    # Settings of the whole process: the registration's own number of threads does not reach its metric.
    threads, warns = process.GetGlobalDefaultNumberOfThreads(), process.GetGlobalWarningDisplay()
    process.SetGlobalDefaultNumberOfThreads(1)
    # Where a descent leaves what both see, its warnings would stand between the lines of a terminal.
    process.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        process.SetGlobalDefaultNumberOfThreads(threads)
        process.SetGlobalWarningDisplay(warns)


def _to_image(sitk: Any, volume: Volume) -> Any:
    affine = TO_LPS @ volume.affine
    # SimpleITK's arrays run [z, y, x].
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.voxels.T))
    image.SetSpacing(volume.spacing_mm)
    image.SetDirection((affine[:3, :3] / volume.spacing_mm).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


def _to_transform(sitk: Any, motion: np.ndarray, turned_about: np.ndarray) -> Any:
    """Returns a motion as SimpleITK's map from the fixed into the moving volume."""
    inverse = TO_LPS @ np.linalg.inv(motion) @ TO_LPS
    middle = TO_LPS[:3, :3] @ turned_about
    # Products of turns drift from orthogonal by rounding, which SimpleITK refuses.
    left, _, right = np.linalg.svd(inverse[:3, :3])
    transform = sitk.Euler3DTransform()
    transform.SetCenter(middle.tolist())
    transform.SetMatrix((left @ right).ravel().tolist())
    transform.SetTranslation((inverse[:3, :3] @ middle + inverse[:3, 3] - middle).tolist())
    return transform


def _from_transform(transform: Any) -> np.ndarray:
    """Returns a motion from SimpleITK's map of the fixed into the moving volume."""
    turn = np.reshape(transform.GetMatrix(), (3, 3))
    middle, shift_mm = np.asarray(transform.GetCenter()), np.asarray(transform.GetTranslation())
    inverse = np.eye(4)
    inverse[:3, :3] = turn
    inverse[:3, 3] = middle + shift_mm - turn @ middle
    motion: np.ndarray = TO_LPS @ np.linalg.inv(inverse) @ TO_LPS
    return motion
