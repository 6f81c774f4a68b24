"""What is unfinished of an adaptation, so that the same command goes on with it, whenever it was killed.

NAME.adapting/          beside the answer, NAME
|-- .finished.json      answers of this run that are in their places, and the digests of their files
`-- ANSWER/             one that is not: wish.json (what was asked for, and what was left out), and the training
"""

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from thinslice.errors import OutputRefused
from thinslice.io.atomic import whole_or_not

try:
    import fcntl
except ImportError:  # not on Windows, where two runs under one name are not noticed
    fcntl = None  # type: ignore[assignment]


class Unfinished:
    """The folder of an adaptation that may have been interrupted; nobody else works in it within a ``with``.

    Raises:
        OutputRefused: somebody else works in it, when the ``with`` begins or the first answer does.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held: int | None = None

    def __enter__(self) -> "Unfinished":
        if self.folder.exists():
            self._hold()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self.held is not None:
            os.close(self.held)
            self.held = None

    def work_on(self, answer: Path) -> Path:
        """Where the training for an answer lies."""
        return self.folder / answer.stem

    def is_made(self, answer: Path) -> bool:
        """Whether an answer was made by this run; what then lies in its folder was about to be removed."""
        made = self._made().get(answer.stem)
        return made is not None and answer.exists() and made == _digest(answer)

    def known(self, answer: Path, wish: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
        """What was kept by `begin` for an answer to the same wish.

        Raises:
            OutputRefused: it is of another wish, and may not be replaced.
        """
        file = self.work_on(answer) / "wish.json"
        if not file.exists():
            return None
        begun: dict[str, Any] = json.loads(file.read_text())
        if all(begun.get(key) == value for key, value in wish.items()):
            return begun
        if overwrite:
            return None
        raise OutputRefused(
            f"{file.parent}: got the unfinished work of another command (other scans, another start or length); need "
            "that command to go on with it; next: repeat that, choose another -o, or give the work up with --overwrite"
        )

    def begin(self, answer: Path, facts: dict[str, Any]) -> None:
        """Begin an answer anew."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._hold()
        shutil.rmtree(self.work_on(answer), ignore_errors=True)
        keep(self.work_on(answer) / "wish.json", facts)

    def finish(self, answer: Path) -> None:
        """Note that an answer is in its place, and only then remove the training behind it."""
        keep(self.folder / ".finished.json", self._made() | {answer.stem: _digest(answer)})
        self.clear(answer)

    def clear(self, answer: Path) -> None:
        """Remove the training behind an answer."""
        if self.work_on(answer).exists():
            shutil.rmtree(self.work_on(answer))

    def close(self) -> list[Path]:
        """Remove the folder when all is done; but not the work of other commands, which is returned."""
        if not self.folder.exists():
            return []
        others = sorted(path.parent for path in self.folder.glob("*/wish.json"))
        for path in self.folder.iterdir():
            if path.is_dir() and path not in others:  # what a kill left of work that was about to be removed
                shutil.rmtree(path)
            elif not path.is_dir():
                path.unlink()
        if not others:
            self.folder.rmdir()
        return others

    def _hold(self) -> None:
        if fcntl is None or self.held is not None:
            return
        self.held = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self.held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputRefused(
                f"{self.folder}: got a name under which another adaptation is running; need one of its own; next: wait "
                "until that ends, or choose another -o"
            ) from None
        except OSError:  # a file system that cannot lock
            with suppress(OSError):
                os.close(self.held)
            self.held = None

    def _made(self) -> dict[str, str]:
        file = self.folder / ".finished.json"
        made: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
        return made


def keep(path: Path, facts: dict[str, Any]) -> None:
    """Write facts as JSON, whole or not at all."""
    with whole_or_not(path) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
