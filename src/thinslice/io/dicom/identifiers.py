"""Identifiers that anonymisers and exports have broken: whose images are of one series all the same, and new ones.

Of unique identifiers (UID) some programs write one for all images, one for each where all share one, or none. Where the
other facts agree, and there are several places, the images are read as the series that they are. What is computed from
them gets new identifiers, the same ones every time.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

from thinslice.io.dicom.headers import Image
from thinslice.io.dicom.places import by, by_grid, by_orientation, even_spacing_mm, find_places

LEAST_BROKEN = 3
"""So many images at least, each with an identifier of its own, are those of a series that a program took apart."""


LEAST_EVEN = 5
"""So many images at least, whose series have numbers of their own too, are one series if they lie evenly."""


@dataclass(frozen=True)
class Origin:
    """The images of one series, as the scanner made it.

    Attributes:
        images: without the identifiers that are not theirs alone.
        notes: what was found broken.
    """

    images: list[Image]
    notes: tuple[str, ...] = ()


def find_origins(images: Sequence[Image]) -> list[Origin]:
    """Returns the series that images belong to."""
    groups = by(images, lambda image: (image.patient, image.study_uid, _series_key(image)))
    alone = [group for group in groups if _is_at_one_place(group)]
    others = [group for group in groups if not _is_at_one_place(group)]
    # First within a patient, then within a series: images of two patients in two series are never put together.
    joined: list[list[Image]] = []
    for key in (_of_a_patient, _of_a_series):
        made, alone = _join(alone, key)
        joined += made
    made, alone = _join(alone, _of_any_number, needs_even=True)
    joined += made
    parts = [part for group in others for part in _by_number(group)]
    return [_origin(group) for group in (*parts, *joined, *alone)]


def _series_key(image: Image) -> Hashable:
    return image.series_uid or (image.number, image.description)


def _is_at_one_place(images: list[Image]) -> bool:
    known = all(image.position and image.orientation and not image.problem for image in images)
    return known and len(by_orientation(images)) == 1 and len(find_places(images)) == 1


def _look(image: Image) -> Hashable:
    """Returns what all slices of a series have in common, whatever their identifiers are."""
    cosines = tuple(round(cosine, 3) + 0.0 for cosine in image.orientation or ())
    return image.sop_class, image.number, image.description, image.shape, image.spacing_mm, image.grey, cosines


def _of_a_patient(image: Image) -> Hashable:
    return image.patient, _look(image)


def _of_any_number(image: Image) -> Hashable:
    look = (image.sop_class, image.description, image.shape, image.spacing_mm, image.grey, image.thickness_mm)
    return image.patient, look, tuple(round(cosine, 3) + 0.0 for cosine in image.orientation or ())


def _by_number(images: list[Image]) -> list[list[Image]]:
    """Returns the series that have one name all the same, by their numbers; images of one even stack are one."""
    numbered = by(images, lambda image: image.number)
    if len(numbered) == 1 or any(image.problem or not image.position or not image.orientation for image in images):
        return [images]
    is_one = len(by_orientation(images)) == 1 and len(by_grid(images)) == 1 and even_spacing_mm(images) is not None
    are_stacks = all(len(find_places(one)) >= LEAST_BROKEN for one in numbered)
    return numbered if are_stacks and not is_one else [images]


def _of_a_series(image: Image) -> Hashable:
    return image.series_uid, _look(image)


def _join(
    groups: list[list[Image]], key: Callable[[Image], Hashable], needs_even: bool = False
) -> tuple[list[list[Image]], list[list[Image]]]:
    """Returns images of several groups put together, and the groups that could not be."""
    homes: dict[Hashable, list[list[Image]]] = {}
    for group in groups:
        homes.setdefault(key(group[0]), []).append(group)
    joined, alone = [], []
    for home in homes.values():
        images = [image for group in home for image in group]
        least = LEAST_EVEN if needs_even else LEAST_BROKEN
        is_one = len(home) >= least and bool(images[0].orientation) and len(find_places(images)) >= least
        if is_one and (not needs_even or even_spacing_mm(images) is not None):
            joined.append(images)
        else:
            alone += home
    return joined, alone


def _origin(images: list[Image]) -> Origin:
    """Returns the images without identifiers that say nothing, and notes on these."""
    names = {
        "PatientID": {image.patient for image in images},
        "StudyInstanceUID": {image.study_uid for image in images},
        "SeriesInstanceUID": {image.series_uid for image in images},
        "SeriesNumber": {str(image.number) for image in images},
    }
    own = [name for name, values in names.items() if len(values) >= LEAST_BROKEN]
    if _is_broken_frame(images):
        own.append("FrameOfReferenceUID")
        images = [replace(image, frame_of_reference="") for image in images]
    notes = []
    if own:
        notes.append(
            f"{len(images)} images, each with a {' and a '.join(own)} of its own as some anonymisers write them, are "
            "read as one series"
        )
    missing = [name for name, values in names.items() if "" in values and name != "PatientID"]
    if missing:
        notes.append(f"images without {' and '.join(missing)} are read as one series")
    uids = {image.sop_uid for image in images if image.frame is None}
    if uids and "" in uids:
        notes.append("images without a SOPInstanceUID of their own: what is computed refers to none of them")
    return Origin(images, tuple(notes))


def _is_broken_frame(images: list[Image]) -> bool:
    """Tells whether each place of a series has a frame of reference of its own, which says nothing."""
    if any(image.problem or not image.position or not image.orientation for image in images):
        return False
    frames = by(images, lambda image: image.frame_of_reference)
    return len(frames) >= LEAST_BROKEN and all(_is_at_one_place(frame) for frame in frames)


def without_shared_uids(images: Sequence[Image]) -> list[Image]:
    """Returns the images, those whose SOPInstanceUID is that of another image or frame without one."""
    owners = by([image for image in images if image.sop_uid], lambda image: (image.sop_uid, image.frame))
    shared = {(group[0].sop_uid, group[0].frame) for group in owners if len(group) > 1}
    return [replace(image, sop_uid="") if (image.sop_uid, image.frame) in shared else image for image in images]
