"""A file is whole or not there: everything that is written goes through here."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


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
        with suppress(OSError):
            for folder in missing:
                folder.rmdir()
        raise
