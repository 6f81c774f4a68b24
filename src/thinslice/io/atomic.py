"""Files as such: what is written is whole or not there, and what a file seems to be."""

import json
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal


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


@contextmanager
def all_or_none(targets: Sequence[Path]) -> Iterator[list[Path]]:
    """Places to write the targets to, in hidden folders beside them; at the end all are moved into place, or none."""
    with ExitStack() as stack:
        stages = {folder: stack.enter_context(_stage(folder)) for folder in dict.fromkeys(t.parent for t in targets)}
        parts = [stages[target.parent] / target.name for target in targets]
        yield parts
        _move_all(parts, targets)


@contextmanager
def _stage(folder: Path) -> Iterator[Path]:
    """A hidden folder inside ``folder`` for a while; after a failure folders that had to be made for it vanish too."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".thinslice-", dir=folder, ignore_cleanup_errors=True) as stage:
            yield Path(stage)
    except BaseException:  # KeyboardInterrupt too
        for parent in missing:
            with suppress(OSError):
                parent.rmdir()
        raise


def _move_all(parts: Sequence[Path], targets: Sequence[Path]) -> None:
    """Rename every part to its target; after a failure the targets are as they were."""
    moved: list[Path] = []
    replaced: dict[Path, Path] = {}
    try:
        for part, target in zip(parts, targets, strict=True):
            if os.path.lexists(target):
                earlier = part.with_name(f"earlier-{part.name}")
                os.replace(target, earlier)
                replaced[target] = earlier
            os.replace(part, target)
            moved.append(target)
    except BaseException:
        for target in moved:
            target.unlink(missing_ok=True)
        for target, earlier in replaced.items():
            os.replace(earlier, target)
        raise


def read_object(path: Path) -> dict[str, Any]:
    """What a JSON file holds, if it is an object; else, and where it cannot be read, an empty one."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def is_inside(place: str, folder: str) -> bool:
    """Whether a path is that of a folder or leads into it; both are real paths."""
    return place == folder or place.startswith(os.path.join(folder, ""))


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
