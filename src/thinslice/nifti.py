"""read / write NIfTI: the only door to nibabel."""

from pathlib import Path

import nibabel
import numpy as np

from thinslice.volume import Volume


def read(path: Path) -> Volume:
    image = nibabel.load(path)
    return Volume(np.asanyarray(image.dataobj), np.asarray(image.affine, dtype=np.float64), source=Path(path))
