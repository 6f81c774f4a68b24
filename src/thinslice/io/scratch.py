"""Room for large arrays: in memory, or on the disk for a while."""

import math
import os
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike

from thinslice.io.refusals import one_line, unwritable

ON_DISK_BYTES = 512 * 2**20
"""Arrays from this size on live in a file, which the system may put out of memory, not in memory."""


def allocate(shape: tuple[int, ...], dtype: DTypeLike, folder: Path) -> np.ndarray:
    """Returns an uninitialised array in file order: in memory below 512 MB, else on an unlinked file.

    The file lies in `folder` (or its nearest existing parent) and is reserved in full, so a full disk is an error here
    and not a crash later; it vanishes with the array.

    Raises:
        OutputRefused: the disk has no room for it.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size < ON_DISK_BYTES:
        return np.empty(shape, dtype, order="F")
    folder = next(f for f in (Path(folder).absolute(), *Path(folder).absolute().parents) if f.is_dir())
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):
                # A page of a mapped file that finds no room on the disk kills the process.
                os.posix_fallocate(file.fileno(), 0, size)
            return np.asarray(np.memmap(cast(Any, file), dtype, "w+", shape=shape, order="F"))
    except OSError as error:
        need = f"{size / 1e9:.1f} GB there for a while"
        got, way = f"no room ({error.strerror})", "free some room or choose another output folder"
        raise unwritable(got, need, way, code="no-room").at(one_line(str(folder))) from error
