"""The mark of volumes that show, between acquired slices, what nobody saw: written on them, and looked for."""

from dataclasses import replace

from thinslice.errors import InputRefused
from thinslice.io import nifti
from thinslice.volume import Volume

SYNTHETIC = b"synthesised by thinslice, not a scan"
"""What the header's description of such a volume begins with."""


def as_synthetic(volume: Volume) -> Volume:
    """Returns the volume with a header that says that nobody acquired it."""
    return replace(volume, header=nifti.described_header(volume, SYNTHETIC))


def is_synthetic(volume: Volume) -> bool:
    """Tells whether a volume was written with the header of `as_synthetic`."""
    return nifti.description_of(volume).startswith(SYNTHETIC)


def check_acquired(volume: Volume) -> None:
    """Refuses what `as_synthetic` marked: it is nothing to learn from or to be scored by.

    Raises:
        InputRefused: it is so marked.
    """
    if is_synthetic(volume):
        raise InputRefused(
            got="a volume that was synthesised", need="a scan that was acquired", next="leave it out", code="synthetic"
        )
