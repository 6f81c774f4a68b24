"""BIDS data sets of simulated stacks of one body, for tests of what combines them."""

import json

import numpy as np

from test_slice_profile import leaves
from thinslice.io import nifti
from thinslice.volume import Volume

SIDE = 48
"""Voxels of 1 mm along each side of the body."""

THICK = 4
"""Voxels that a slice averages."""

BODY = (1000 * leaves()[:SIDE, :SIDE, :SIDE]).astype(np.float32)
"""What all stacks show."""

FAST = ("--no-registration", "--model", "cubic")
"""Options with which a visit takes a fifth of a second."""


def across(axis, first=0, last=SIDE, body=BODY, thick=THICK):
    """A stack of slices across an axis, of the part of a body between two heights in mm."""
    part = body[:, :, first:last]
    shape = list(part.shape)
    shape[axis : axis + 1] = [part.shape[axis] // thick, thick]
    affine = np.diag([*(float(thick) if a == axis else 1.0 for a in range(3)), 1.0])
    affine[2, 3] = first
    affine[axis, 3] += (thick - 1) / 2
    return Volume(np.ascontiguousarray(part.reshape(shape).mean(axis=axis + 1)), affine)


def add_visit(raw, subject, images, **facts):
    """Writes images of a participant, called by what comes behind the label, and JSON beside those with facts."""
    (raw / "dataset_description.json").parent.mkdir(exist_ok=True)
    (raw / "dataset_description.json").write_text('{"Name": "leaves", "BIDSVersion": "1.10.0"}')
    folder = raw / f"sub-{subject}" / "anat"
    folder.mkdir(parents=True, exist_ok=True)
    for name, volume in images.items():
        nifti.write(volume, folder / f"sub-{subject}_{name}.nii.gz")
    for name, content in facts.items():
        (folder / f"sub-{subject}_{name}.json").write_text(json.dumps(content))
    return folder


def is_like_body(path, least=0.95):
    """Whether a file holds the body, voxel by voxel."""
    found = nifti.read(path).voxels
    inner = np.s_[8:-8, 8:-8, 8:-8]
    return found.shape == BODY.shape and np.corrcoef(found[inner].ravel(), BODY[inner].ravel())[0, 1] > least
