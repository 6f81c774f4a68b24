"""Stacks of one body in a data set: which of those that are called alike fit each other, as far as their headers say.

Names alone put images together (`thinslice.datasets.bids.group_stacks`). A thin image, a localizer or one of another
contrast among them would have all refused: it is left out with its reason, and stands alone.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from thinslice.combination import FEWEST_SLICES
from thinslice.datasets.job import THICK_FROM, describe_spacings, spacings_mm
from thinslice.errors import InputRefused
from thinslice.io import nifti
from thinslice.io.contrast import Contrast, compare_contrasts, contrast_beside
from thinslice.io.refusals import without_place
from thinslice.volume import Volume, through_plane_axis

logger = logging.getLogger(__name__)


def find_odd(stacks: Sequence[Path], inherited: Mapping[Path, Sequence[Path]]) -> dict[Path, str]:
    """Finds the images that cannot be of the others, whatever they show, and says why; headers alone are read.

    Of several contrasts the one with the most images is that of the group, and the first by name of equal ones.

    Args:
        stacks: images of a BIDS data set that are called alike.
        inherited: for each of them, see `thinslice.datasets.bids.inherited_sidecars`.
    """
    odd: dict[Path, str] = {}
    for path in stacks:
        try:
            reason = _why_odd(nifti.read_grid(path))
        except (InputRefused, OSError) as error:
            reason = str(without_place(error)) if isinstance(error, InputRefused) else f"no access ({error.strerror})"
        if reason:
            odd[path] = reason
    contrasts = {path: contrast_beside(path, inherited[path]) for path in stacks if path not in odd}
    kinds: list[list[Path]] = []
    for path in contrasts:
        # To every kind that it may be of: what says nothing of its contrast may be of all of them.
        homes = [kind for kind in kinds if not any(_differences(contrasts[path], contrasts[other]) for other in kind)]
        for kind in homes:
            kind.append(path)
        if not homes:
            kinds.append([path])
    group = max(kinds, key=len, default=[])
    for path in contrasts.keys() - set(group):
        for other in group:
            # One that came before the first of them, and differs from none, belongs to them as well.
            if path not in odd and (reasons := _differences(contrasts[other], contrasts[path])):
                odd[path] = f"another contrast than {other.name} ({'; '.join(reasons)})"
    logger.debug("%d of %d images are left out", len(odd), len(stacks))
    return {path: odd[path] for path in stacks if path in odd}


def _differences(one: Contrast, other: Contrast) -> tuple[str, ...]:
    """Returns why two contrasts are not one, in words; nothing where they are, or where nobody can tell."""
    return compare_contrasts(one, other).reasons


def _why_odd(scan: Volume) -> str:
    """Returns why a scan is no stack to combine; nothing if it is one."""
    if scan.voxels.ndim != 3:
        return f"a series of {scan.voxels.shape[3]} volumes"
    count = scan.shape[through_plane_axis(scan)]
    thick_mm, in_plane_mm = spacings_mm(scan)
    if thick_mm < THICK_FROM * in_plane_mm:
        return f"thin already: {describe_spacings(scan)}"
    return f"{count} slices: fewer than {FEWEST_SLICES} are no stack to combine" if count < FEWEST_SLICES else ""
