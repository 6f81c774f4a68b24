"""Tells segmentations from images: the one rule for whether a volume looks like a label map, and what says so.

An image is averaged, a segmentation is not: who takes one for the other gets numbers that no label has. Headers seldom
say which of the two a file is, and names may say anything; so the voxels decide. Labels are whole numbers from zero on
that form regions. In an image neighbours differ, by noise or by shading; where its grey levels are so few that
neighbours are mostly equal, one level leads to the next.
"""

import logging
import re
import sys
from dataclasses import dataclass, field

import numpy as np

from thinslice.errors import InputRefused
from thinslice.io import nifti
from thinslice.io.formats import stem_of
from thinslice.volume import Volume

logger = logging.getLogger(__name__)

REGIONS = 0.7
"""Share of equal neighbours from which on whole numbers may be labels."""

OF_EACH = 0.5
"""The same of the middle one of all labels. In an image with a wide margin of one grey, or that was clipped, most
neighbours are equal, but not those of most grey values."""

SURELY_REGIONS = 0.95
"""Share of equal neighbours from which on regions need not be more than a step apart: vertebrae in their order."""

FEW_LEVELS = 5
"""From so many values on, steps from each to the next alone are those of an image with few grey levels."""

JUMPS = 0.1
"""The least share, of neighbours that differ, of those that differ by more than one, in a label map of many labels."""

FEW_VOXELS = 0.01
"""The largest share of voxels that single points, which have no neighbours, fill: discs of a spine, landmarks."""

NEARLY_WHOLE = 0.01
"""How far a label may lie beside a whole number: what a scale of float32 leaves, and no probability map stays within.
"""

SCALE_ERROR = 2e-4
"""By how much of its value it may lie beside it too: a scale of 0.9999 for 1."""

LARGEST_SCALED = 1000
"""Beyond it a label that went through a slightly wrong scale may be nearer to another whole number than to its own."""

SUSPECT = 64
"""An image with no more different values than this, whole numbers from zero on, may be a segmentation after all."""

SLAB = 16
"""Planes that are compared at a time."""

WORDS = frozenset(
    (
        *("seg", "segs", "segm", "segmentation", "segmentations", "dseg", "label", "labels", "labelmap", "labelmaps"),
        *("mask", "masks", "roi", "rois", "gt", "groundtruth", "truth", "annotation", "annotations", "annot"),
        *("aseg", "aparc", "parc", "parcellation", "lesion", "lesions"),
    )
)
"""Words that the names of segmentations, and of the folders that they lie in, are made of."""


PARTS_OF_SETS = frozenset(("tr", "ts", "va", "train", "test", "val", "training", "testing", "validation"))
"""Words that the names of such folders have beside these."""


@dataclass
class _Neighbours:
    """Counts, along one axis, pairs of neighbours that are not zero, by the value of the first."""

    pairs: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    equal: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    jumps: int = 0

    def add(self, near: np.ndarray, far: np.ndarray) -> None:
        """Counts some pairs, of whole numbers from zero on."""
        both = (near > 0) & (far > 0)
        near, far = near[both], far[both]
        size = max(len(self.pairs), int(near.max(initial=0)) + 1)
        self.pairs, self.equal = (np.pad(found, (0, size - len(found))) for found in (self.pairs, self.equal))
        self.pairs += np.bincount(near, minlength=size)
        self.equal += np.bincount(near[near == far], minlength=size)
        # The counting codes of `_as_codes` keep the order, and neighbouring values stay neighbours.
        self.jumps += int(np.count_nonzero((near > far + 1) | (far > near + 1)))

    def look_like_labels(self, values: int) -> bool:
        """Tells whether regions of equal numbers show; ``values`` is how many numbers there are."""
        there = self.pairs > 0
        share = self.equal.sum() / self.pairs.sum()
        if share <= REGIONS or np.median(self.equal[there] / self.pairs[there]) < OF_EACH:
            return False
        differ = int(self.pairs.sum() - self.equal.sum())
        return bool(values < FEW_LEVELS or share > SURELY_REGIONS or self.jumps > JUMPS * differ)


def looks_like_labels(volume: Volume) -> bool:
    """Returns whether the voxels of a volume are those of a segmentation: labels in regions, or a few single points.

    Whole numbers in a file of floats are as good as others, and so are those that came through a scale. A volume of
    one number alone is none: nothing tells an empty segmentation from an empty image.

    Example:
        >>> drawn = np.zeros((6, 6, 6), np.float32)
        >>> drawn[1:5, 1:5, 1:5] = 7
        >>> looks_like_labels(Volume(drawn, np.eye(4)))
        True
        >>> shaded = np.arange(216).reshape(6, 6, 6)
        >>> looks_like_labels(Volume(shaded, np.eye(4)))
        False
    """
    codes = _as_codes(volume.voxels)
    if codes is None:
        return False
    values = _count_values(codes)
    if values < 2:  # flat: as an image it stays what it is
        return False
    along = [_count_along(codes, axis) for axis in range(3) if codes.shape[axis] > 1]
    found = [one for one in along if one.pairs.any()]
    if not found:
        filled = int(np.count_nonzero(codes))
        return 0 < filled <= max(1, FEW_VOXELS * codes.size)
    # Of thick slices the neighbours along one axis may differ though those along the others form regions.
    looking = sum(one.look_like_labels(values - 1) for one in found)
    logger.debug("%d values, regions along %d of %d axes", values, looking, len(found))
    return looking >= min(2, len(found))


def may_be_labels(volume: Volume) -> bool:
    """Returns whether a volume that does not look like labels has few whole numbers from zero on all the same."""
    codes = _as_codes(volume.voxels)
    return codes is not None and 1 < _count_values(codes) <= SUSPECT


def states_labels(volume: Volume) -> str:
    """Returns what in the header says that a volume is a segmentation, as the rest of a sentence; else nothing."""
    if nifti.has_label_intent(volume):
        return "its NIfTI intent code 1002 says so"
    nrrd = sys.modules.get("thinslice.io.nrrd")  # not imported: then the volume is none of its
    if nrrd is not None and nrrd.has_segments(volume):
        return "its header names segments"
    return ""


def is_named_like_labels(volume: Volume) -> bool:
    """Returns whether the name of a volume's file, or of the folder that it lies in, is that of a segmentation.

    Example:
        >>> from pathlib import Path
        >>> names = "case1_seg.nii.gz", "labelsTr/case1.nii.gz", "case1_segmented_epi.nii.gz"
        >>> [is_named_like_labels(Volume(np.zeros((1, 1, 1)), np.eye(4), source=Path(name))) for name in names]
        [True, True, False]
    """
    if volume.source is None:
        return False
    # All words of the folder's: a project about segmentations has scans in it too.
    folder = _words_of(volume.source.absolute().parent.name)
    return bool(WORDS & _words_of(stem_of(volume.source)) or (WORDS & folder and folder <= WORDS | PARTS_OF_SETS))


def describe_labels(volume: Volume) -> str:
    """Returns why a volume is taken for a segmentation, in words; nothing where it is taken for an image.

    Example:
        >>> drawn = np.zeros((6, 6, 6), np.uint8)
        >>> drawn[1:5, 1:5, 1:5] = 7
        >>> describe_labels(Volume(drawn, np.eye(4)))
        'its voxels form regions of whole numbers (0, 7)'
    """
    stated = states_labels(volume)
    codes = _as_codes(volume.voxels)
    if stated and codes is not None:
        return stated
    if looks_like_labels(volume):
        return f"its voxels form regions of whole numbers ({_in_words(np.unique(volume.voxels))})"
    if codes is not None and not codes.any() and is_named_like_labels(volume):
        return "its name says so, and nothing is drawn in it"
    return ""


def check_is_scan(volume: Volume) -> list[str]:
    """Refuses a segmentation as the scan: made thin as an image it would get labels that nobody drew.

    Returns:
        What to say where only the voxels look like labels: a phantom of a few whole numbers looks the same.

    Raises:
        InputRefused: its header, or its name and its voxels, say that it is one.
    """
    reason = describe_labels(volume)
    if not reason:
        return []
    stated = bool(states_labels(volume))
    if not stated and not is_named_like_labels(volume):
        return [
            f"it may be a segmentation: {reason}; it is computed as an image, which makes numbers between its own; "
            "next: if it is one, give the scan that it was drawn on, and this as `labels`"
        ]
    way_out = "correct its header" if stated else "rename it"
    raise InputRefused(
        got=f"a segmentation ({reason}{'' if stated else ', and its name is that of one'})",
        need="a scan",
        next=f"give the scan that it was drawn on, and this as `labels`; if it is an image, {way_out}",
        place=volume.source or "",
        code="labels-for-scan",
    )


def is_nearly_whole(values: np.ndarray) -> np.ndarray:
    """Returns where values are whole numbers, but for what a scale and its rounding leave."""
    away = np.abs(values - np.rint(values))
    scaled = (np.abs(values) <= LARGEST_SCALED) * (NEARLY_WHOLE + SCALE_ERROR * np.abs(values))
    return np.asarray(away <= scaled)


def whole_type(low: float, high: float) -> np.dtype[np.generic]:
    """Returns the smallest type of whole numbers that holds all between two, of those that every format has."""
    kinds = (np.uint8, np.int16, np.uint16, np.int32)
    return next(np.dtype(k) for k in kinds if np.iinfo(k).min <= np.rint(low) and np.rint(high) <= np.iinfo(k).max)


def _words_of(name: str) -> set[str]:
    """Returns the words of a name, in small letters."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def _as_codes(voxels: np.ndarray) -> np.ndarray | None:
    """Returns whole numbers from zero on that stand for the voxels in their order, None where these cannot be labels.

    Zero stays zero; large numbers become small ones, of which those that follow each other stay a step apart.
    """
    if voxels.dtype.kind not in "iubf":
        return None
    if voxels.dtype.kind == "f":
        # Plane by plane: of an image the first one decides.
        if not all(is_nearly_whole(plane).all() for plane in voxels):
            return None
        voxels = np.rint(voxels)
    if voxels.min() < 0:
        return None
    if voxels.max() < np.iinfo(np.uint16).max:
        return voxels.astype(np.uint16)
    found, codes = np.unique(voxels, return_inverse=True)
    # Two for each step that leaves numbers out, one for the others.
    steps = np.minimum(np.diff(found.astype(np.float64), prepend=0), 2)
    ranks = np.cumsum(steps).astype(np.int64)
    return ranks[codes.reshape(voxels.shape)]


def _count_values(codes: np.ndarray) -> int:
    """Returns how many different numbers from zero on there are; they are small, which makes counting cheap."""
    return int(np.count_nonzero(np.bincount(codes.ravel(order="K"))))


def _count_along(codes: np.ndarray, axis: int) -> _Neighbours:
    """Counts neighbours along one axis, slab by slab, as masks of the whole would take its room again."""
    found = _Neighbours()
    slabs = 1 if axis == 0 else 0
    for start in range(0, codes.shape[slabs], SLAB):
        slab = np.moveaxis(codes, slabs, 0)[start : start + SLAB]
        along = np.moveaxis(slab, axis or 1, 0)
        found.add(along[:-1], along[1:])
    return found


def _in_words(values: np.ndarray) -> str:
    """Returns a few numbers in words."""
    shown = ", ".join(f"{value:g}" for value in values[:4])
    return shown if len(values) <= 4 else f"{shown} ... {values[-1]:g}"
