"""Files as such: what is written is whole or not there, and what a file seems to be."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal


@contextmanager
def whole_or_not(path: Path) -> Iterator[Path]:
    """A temporary name in the same folder; it takes ``path``'s place if all went well, else it vanishes.

    Missing folders are made, and removed again after a failure, a KeyboardInterrupt included.
    """
    missing = [folder for folder in path.parents if not folder.exists()]
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise


def looks_like_dicom(path: Path) -> bool:
    """Whether a regular file says that it is DICOM, or starts as those do that were written without saying so."""
    try:
        if not path.is_file():  # a pipe would never end
            return False
        with open(path, "rb") as raw:
            start = raw.read(132)
    except OSError:
        return False
    if start[128:132] == b"DICM":
        return True
    orders: tuple[Literal["little", "big"], ...] = ("little", "big")
    tags = [[int.from_bytes(start[at : at + 2], order) for at in (0, 2)] for order in orders]
    return len(start) == 132 and any(group in (2, 8) and element < 0x20 for group, element in tags)
