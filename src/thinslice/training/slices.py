"""The acquired slices of thick scans: what an auto-encoder of slices learns from, at their own pixels."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from thinslice.physics.intensity import intensity_range
from thinslice.plan import Plan
from thinslice.training.batches import BLANK, TRIES
from thinslice.training.manifest import UNKNOWN, person_of, provenance
from thinslice.training.usable_scans import UsableScan, check_large_enough

LOOK = 16
"""Pixels along the sides of the coarse grid on which mean slices of scans are compared."""

ALIKE = 0.6
"""Mean slices of two scans of one kind correlate by more than this: brains of any contrast by 0.64 to 0.99; brain,
knee, pelvis, breast and spine among each other by 0.56 at most, two orthogonal stacks of a knee too."""

LARGEST = 100.0
"""Intensity ranges beyond which a voxel is held: 16 bits hold no more than 65,504, and one would drown the others."""


# Compared by identity, as two arrays are neither equal nor unequal.
@dataclass(frozen=True, eq=False)
class Stack:
    """The slices of one thick scan.

    Attributes:
        name: of the scan.
        person: whose it is; nobody's slices are learnt from and judged by.
        slices: [slices, h, w] float16, scaled so that the intensity range of the scan is 0 .. 1.
        plan: what will be done to the scan.
        affine: of the scan, [4, 4].
        fingerprint: of the scan.
        origin: file, licence and source, for the card.
    """

    name: str
    person: str
    slices: np.ndarray
    plan: Plan
    affine: np.ndarray
    fingerprint: str
    origin: dict[str, str]


@dataclass(frozen=True)
class SliceBatch:
    """Patches of slices [n, 1, h, w], and the seed of what is drawn at random while they are learnt from."""

    slices: np.ndarray
    seed: int


def make_stack(scan: UsableScan) -> Stack:
    """Turns the slice axis of a scan to the front, and scales its intensities.

    Raises:
        InputRefused: there is too little of it to learn from.
    """
    voxels, plan, path = scan.volume.voxels, scan.plan, Path(os.path.abspath(scan.path))
    check_large_enough(scan.volume, plan)
    low, high = intensity_range(voxels)
    acquired = np.moveaxis(voxels, plan.axis, 0)
    slices = np.empty(acquired.shape, np.float16)
    for index, image in enumerate(acquired):  # one by one: a copy of all of them as float32 may not have room
        slices[index] = np.clip((image.astype(np.float32) - low) / np.float32(high - low), -LARGEST, LARGEST)
    origin = {"file": f"{path.parent.name}/{path.name}", **provenance(path.parent).get(path.name, UNKNOWN)}
    return Stack(path.name, person_of(path), slices, plan, scan.volume.affine, scan.fingerprint, origin)


def group_similar(stacks: Sequence[Stack]) -> list[list[str]]:
    """Returns the names of stacks in groups that look unlike each other, the largest first; one where all look alike.

    Two stacks look alike where their mean slices do, coarsely and in any of eight positions (`ALIKE`).
    """
    looks = [_look(stack) for stack in stacks]
    groups: list[list[int]] = []
    for index, look in enumerate(looks):
        # What is like two groups joins them: likeness goes on from one scan to the next.
        near = [group for group in groups if any(_alike(look, looks[other]) for other in group)]
        groups = [group for group in groups if group not in near] + [[index, *(i for group in near for i in group)]]
    return [[stacks[i].name for i in sorted(group)] for group in sorted(groups, key=len, reverse=True)]


def _look(stack: Stack) -> np.ndarray:
    """Returns the mean of the middle half of the slices, as `LOOK` x `LOOK` pixels, its own mean taken off."""
    n = len(stack.slices)
    # Clipped: a few very bright voxels must not decide what a slice looks like.
    mean = np.clip(stack.slices[n // 4 : n - n // 4].astype(np.float32), 0, 1).mean(axis=0)
    rows, columns = (_shares(side) for side in mean.shape)
    look: np.ndarray = rows @ mean @ columns.T
    return look - look.mean()


def _shares(side: int) -> np.ndarray:
    """Returns the matrix [LOOK, side] of means over LOOK equal parts of a side; a pixel on a border goes to both."""
    edges = np.linspace(0, side, LOOK + 1)
    pixel = np.arange(side)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    shares: np.ndarray = np.clip(overlap, 0, None) * (LOOK / side)
    return shares


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    scale = float(np.linalg.norm(one) * np.linalg.norm(other)) + 1e-9
    turned = (np.rot90(image, turns) for image in (other, other.T) for turns in range(4))
    return max(float(np.vdot(one, image)) for image in turned) / scale > ALIKE


def slice_batch_at(step: int, seed: int, stacks: Sequence[Stack], patches: int, size: int) -> SliceBatch:
    """Returns the batch of one step: a function of seed and step alone. Every slice is as likely as any other."""
    rng = np.random.default_rng([seed, step])
    counts = np.array([len(stack.slices) for stack in stacks])
    chosen = rng.choice(len(stacks), size=patches, p=counts / counts.sum())
    drawn = np.stack([_patch(rng, stacks[index].slices, size) for index in chosen])
    return SliceBatch(drawn[:, None], int(rng.integers(2**31)))


def _patch(rng: np.random.Generator, slices: np.ndarray, size: int) -> np.ndarray:
    """Draws a patch of one slice, bright in the middle if that can be had, turned over at random; its edges repeat."""
    for _ in range(TRIES):
        image = slices[rng.integers(len(slices))]
        top, left = (int(rng.integers(0, max(side - size, 0) + 1)) for side in image.shape)
        patch = image[top : top + size, left : left + size]
        if patch[patch.shape[0] // 2, patch.shape[1] // 2] > BLANK:
            break
    patch = np.pad(patch, [(0, size - side) for side in patch.shape], mode="edge")
    patch = patch.T if rng.random() < 0.5 else patch
    rows, columns = (slice(None, None, int(rng.choice((-1, 1)))) for _ in range(2))
    return np.ascontiguousarray(patch[rows, columns], np.float32)
