"""Where the slices of a stack lie: places along their normal, even or not, and slices of one orientation or grid."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from thinslice.io.dicom.headers import Image
from thinslice.physics.straightening import find_even_places

SAME_DIRECTION = 1e-4
"""Cosines that differ by less are those of one orientation: 0.03 mm at the edge of a large image."""

SAME_PLACE_MM = 1e-2
"""Slices closer together than this lie at one place."""

COSINE_TO_ANGLE = 2.5
"""By how many radians at most a normal turns where each of its six cosines is off by one unit: sqrt(6), rounded up."""

UNEVEN_SHARE = 0.02
"""The largest distance of a slice from its even place, in slice spacings."""


def find_positions(images: Sequence[Image]) -> np.ndarray:
    """Returns the centres [n, 3] of the first voxels, mm, LPS."""
    return np.array([image.position for image in images], np.float64).reshape(-1, 3)


def normal_of(image: Image) -> np.ndarray:
    """Returns the unit vector [3] at right angles to rows and columns, LPS."""
    rows, columns = np.reshape(image.orientation or np.eye(3)[:2], (2, 3))
    normal = np.cross(rows, columns)
    return np.asarray(normal / np.linalg.norm(normal))


def find_places(images: Sequence[Image]) -> np.ndarray:
    """Returns the places [n] in mm along the normal of the images, each once, in order."""
    along = np.sort(find_positions(images) @ normal_of(images[0]))
    return along[np.diff(along, prepend=-np.inf) > SAME_PLACE_MM]


def are_same_places(places: np.ndarray, others: np.ndarray) -> bool:
    """Tells whether two lists of places are one."""
    return len(places) == len(others) and bool(np.allclose(places, others, rtol=0, atol=SAME_PLACE_MM))


def are_among_places(some: np.ndarray, places: np.ndarray) -> bool:
    """Tells whether each of some places is one of a list that is in order."""
    return bool((np.abs(some[:, None] - places[None]).min(axis=1, initial=np.inf) <= SAME_PLACE_MM).all())


def by_place(images: Sequence[Image]) -> list[list[Image]]:
    """Returns the images of each place, in the order of the places."""
    along = find_positions(images) @ normal_of(images[0])
    places = find_places(images)
    # The nearest one: an image may lie a rounding away from the first of its place.
    home = np.abs(along[:, None] - places[None]).argmin(axis=1)
    return [[image for image, at in zip(images, home, strict=True) if at == place] for place in range(len(places))]


def fit_even_places(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Fits even places to positions [n, 3] by least squares: returns the first, the step, and the largest distance."""
    # Over all positions, not from the first to the last alone: each was rounded in its header.
    index = np.arange(len(positions)) - (len(positions) - 1) / 2
    middle = positions.mean(axis=0)
    step = index @ (positions - middle) / (index @ index)
    even = middle + index[:, None] * step
    return even[0], step, float(np.linalg.norm(positions - even, axis=1).max())


def even_spacing_mm(images: Sequence[Image]) -> float | None:
    """Returns how far apart two or more slices lie, one at each place; None where they are uneven."""
    positions = find_positions(images)
    if len(images) < 2 or len(find_places(images)) < len(images):
        return None
    _, step, residual_mm = fit_even_places(positions[np.argsort(positions @ normal_of(images[0]))])
    spacing_mm = float(np.linalg.norm(step))
    return spacing_mm if residual_mm <= UNEVEN_SHARE * spacing_mm else None


def usual_spacing_mm(images: Sequence[Image]) -> float | None:
    """Returns how far apart slices lie that are even but for some that are missing; None where they are uneven."""
    if len(images) < 2 or len(find_places(images)) < len(images):
        return None
    spacing_mm, places = find_even_places(np.sort(find_positions(images) @ normal_of(images[0])))
    return spacing_mm if np.abs(places - np.rint(places)).max() <= UNEVEN_SHARE else None


def by_orientation(images: Iterable[Image]) -> list[list[Image]]:
    """Returns the images of each orientation."""
    groups: list[list[Image]] = []
    for image in images:
        # With the first of each group: cosines differ in their last digits from slice to slice.
        home = next((g for g in groups if _largest_difference(image, g[0]) < SAME_DIRECTION), None)
        if home is None:
            groups.append([image])
        else:
            home.append(image)
    return groups


def _largest_difference(one: Image, other: Image) -> float:
    """Returns the largest difference between the cosines of two orientations."""
    return float(np.abs(np.subtract(one.orientation or (), other.orientation or ())).max(initial=0.0))


def mend_directions(images: list[Image], step: np.ndarray) -> tuple[list[Image], tuple[str, ...]]:
    """Returns slices whose rounded directions are turned to the line of their places, and a note on that.

    Places are written with more digits than directions, so a line that leaves the normal by no more than the rounding
    of the cosines can make it is the true normal. What is farther off is a stack that runs sideways.

    Args:
        images: one stack, in order.
        step: from one slice to the next, mm, LPS.
    """
    error = max(image.cosine_error for image in images)
    if not error:
        return images, ()
    normal, line = normal_of(images[0]), step / np.linalg.norm(step)
    degrees = float(np.degrees(np.arccos(np.clip(normal @ line, -1, 1))))
    note = "the stated directions of rows and columns are not of unit length at right angles: made so"
    if not 0 < degrees <= np.degrees(COSINE_TO_ANGLE * error):
        return images, (note,)
    # The smallest rotation that takes one direction to the other (Rodrigues).
    axis, cosine = np.cross(normal, line), float(normal @ line)
    across = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    turn = np.eye(3) + across + across @ across / (1 + cosine)
    turned = [
        replace(image, orientation=tuple(float(v) for v in (np.reshape(image.orientation or (), (2, 3)) @ turn.T).flat))
        for image in images
    ]
    return turned, (f"{note}, and turned by {degrees:.2g} degrees to the line of the slices",)


def by_grid(images: Iterable[Image]) -> list[list[Image]]:
    """Returns the images of each size and spacing of voxels."""
    return by(images, lambda image: (image.shape, tuple(round(mm, 4) for mm in image.spacing_mm or ())))


def by(images: Iterable[Image], key: Callable[[Image], Hashable]) -> list[list[Image]]:
    """Returns the images of each value of a key, in the order in which these come."""
    groups: dict[Hashable, list[Image]] = {}
    for image in images:
        groups.setdefault(key(image), []).append(image)
    return list(groups.values())
