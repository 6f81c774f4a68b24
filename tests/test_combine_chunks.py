"""Chunks of one direction, such as the stations of a spine: which grid they get, and those that only touch."""

from dataclasses import replace

import numpy as np
import pytest

from faults import catches
from test_combination import THICK_MM
from test_slice_profile import leaves
from thinslice.combination import choose_grid, combine_volumes
from thinslice.errors import InputRefused
from thinslice.io import nifti
from thinslice.models.interpolations import interpolation
from thinslice.volume import Volume

SIDE = 48
"""Voxels of 1 mm along each side of the body."""


def thin():
    return (1000 * leaves()[:SIDE, :SIDE, :SIDE]).astype(np.float32)


def slab(first, last, axis=2, body=None):
    """Slices of 4 mm across an axis, of a part of the body from one height to another in mm."""
    part = (thin() if body is None else body)[:, :, first:last]
    shape = list(part.shape)
    shape[axis : axis + 1] = [part.shape[axis] // 4, 4]
    affine = np.diag([*(THICK_MM if a == axis else 1.0 for a in range(3)), 1.0])
    affine[2, 3] = first
    affine[axis, 3] += 1.5
    return Volume(np.ascontiguousarray(part.reshape(shape).mean(axis=axis + 1)), affine)


def from_files(folder, *volumes):
    """The same, as files keep them: with a header that says that they lie where the scanner saw them."""
    for number, volume in enumerate(volumes):
        nifti.write(volume, folder / f"chunk{number + 1}.nii.gz")
    return [nifti.read(folder / f"chunk{number + 1}.nii.gz") for number in range(len(volumes))]


def combined(scans, grid="union"):
    return combine_volumes(scans, lambda _: interpolation("cubic"), grid=grid, registration=False)


@catches("combination.py", "if share < CHUNK_SHARE and _are_parallel(one, other):", "if share < CHUNK_SHARE:")
@catches("combination.py", "if share < CHUNK_SHARE and", "if share < 0 and")
def test_chunks_are_shown_whole_and_stacks_across_each_other_as_the_first():
    low, high, across = slab(0, 28), slab(20, 48), slab(0, 48, axis=0)
    assert choose_grid([low, high]) == "union"
    assert choose_grid([across, low, high]) == "union"
    assert choose_grid([slab(0, 48), across]) == "first"
    assert choose_grid([slab(0, 48), slab(0, 40)]) == "first"
    # A narrow slab across another one shares little with it, and is no chunk of it.
    narrow = replace(across, voxels=across.voxels[:5])
    assert choose_grid([narrow, slab(0, 20)]) == "first"


@catches("combination.py", "if alike.value == 0 and neighbours:", "if False:")
@catches("combination.py", "            *_notes_of_chunks(beside, names),\n", "")
def test_chunks_that_only_touch_lie_where_their_headers_say(tmp_path):
    """The third one touches the second one alone, and is given before it."""
    scans = from_files(tmp_path, slab(0, 20), slab(40, 48 + 12, body=np.tile(thin(), (1, 1, 2))), slab(20, 40))
    done = combined(scans)
    assert [one.left_out for one in done.stacks] == [None] * 3
    assert all(np.array_equal(one.motion, np.eye(4)) for one in done.stacks)
    assert sum("hardly overlaps" in note for note in done.notes) == 2
    body = np.tile(thin(), (1, 1, 2))[:, :, :60]
    assert done.volume.shape == body.shape
    # At the seams as well, where one slab ends and the next one begins.
    for middle in (10, 20, 30, 40):
        here = np.s_[6:-6, 6:-6, middle - 3 : middle + 3]
        assert np.corrcoef(done.array[here].ravel(), body[here].ravel())[0, 1] > 0.9


@catches("combination.py", "return nifti.is_in_scanner(one) and nifti.is_in_scanner(other)", "return True")
@catches("io/nifti.py", "for code in codes if code > 0), 0) == IN_SCANNER", "for code in codes if code > 0), 0) > 0")
def test_chunks_that_touch_by_headers_of_nothing_are_left_out(tmp_path):
    """Arrays say nothing of a scanner, and what was aligned with something is where that lies."""
    with pytest.raises(InputRefused, match="does not meet"):
        combined([slab(0, 20), slab(20, 40)])
    scans = from_files(tmp_path, slab(0, 20), slab(20, 40))
    scans[1].header["sform_code"] = 2
    with pytest.raises(InputRefused, match="does not meet"):
        combined(scans)


@catches(
    "combination.py",
    "is_near = gap_mm(one.affine, one.shape, other.affine, other.shape) <= nearest_mm",
    "is_near = True",
)
def test_chunks_with_a_gap_are_left_out(tmp_path):
    scans = from_files(tmp_path, slab(0, 20), slab(28, 48))
    with pytest.raises(InputRefused, match="does not meet"):
        combined(scans)
