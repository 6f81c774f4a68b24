"""Room for large arrays: in memory, or on the disk for a while."""

import math
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike

from thinslice.io.refusals import one_line, unwritable

ON_DISK_BYTES = 512 * 2**20
"""Arrays from this size on live in a file, which the system may put out of memory, not in memory."""


SPARE_BYTES = 64 * 2**20
"""Of the free memory what is left to the rest of the program."""


def free_memory_bytes() -> int | None:
    """Returns how much memory this process can still have, as far as the system tells; None where it does not.

    That is what is free on the machine, or less where a container, or `ulimit -v`, sets a limit.
    """
    known = [_free_on_machine(), _free_in_group(), _free_below_limit()]
    return min((free for free in known if free is not None), default=None)


def free_disk_bytes(folder: Path) -> int | None:
    """Returns how much room there is in a folder, or where it would be made; None where the system does not tell."""
    with suppress(OSError):
        return shutil.disk_usage(next(f for f in (folder.absolute(), *folder.absolute().parents) if f.is_dir())).free
    return None


def check_memory(size: int) -> None:
    """Refuses an array larger than the free memory: the system would promise it, and then end this process.

    Raises:
        MemoryError: it is.
    """
    # Nothing is asked of the system for small ones.
    if size < ON_DISK_BYTES // 8:
        return
    free = free_memory_bytes()
    if free is not None and size > free - SPARE_BYTES:
        raise MemoryError(f"{size:,} bytes, where {free:,} are free")


def _free_on_machine() -> int | None:
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    # Other systems tell how much there is alone; what other programs need of it is not known.
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _free_in_group() -> int | None:
    """Returns what the control group of a container, or of a job, leaves; version 2, else version 1."""
    for folder, limit, used in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):
            most = int(Path(folder, limit).read_text())  # "max" is no number: no limit
            facts = Path(folder, "memory.stat").read_text().split()
            # Files that the system keeps in memory are given back when memory is wanted.
            cached = int(facts[facts.index("inactive_file") + 1])
            return most - int(Path(folder, used).read_text()) + cached
    return None


def _free_below_limit() -> int | None:
    with suppress(ImportError, OSError, ValueError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            return limit - int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return None


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
        check_memory(size)
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
