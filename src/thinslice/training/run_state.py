"""The folder in which a training keeps all that it needs to go on after it was interrupted, whenever that was.

OUT/                      of a recipe, or NAME.adapting/ANSWER/ of an adaptation
|-- request.json          what was asked of the run; another request is refused
|-- finished.json         models that are in their places: the digest of each file, and how long it was trained
`-- STAGE/                checkpoint.pt, log.jsonl, and what the stage's check keeps

An adaptation may make many models, one after the other, and keeps nothing when all are in their places: its outer
folder, NAME.adapting/, has the lock and finished.json, and a folder as above for each model that is unfinished.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from thinslice.errors import InputRefused, OutputRefused
from thinslice.io.atomic import hold_lock, read_object, whole_or_not

REQUEST = "request.json"
"""What was asked of a run."""

FINISHED = "finished.json"
"""Which models of a run are in their places."""

_EARLIER_REQUEST = "wish.json"
"""The name that `REQUEST` had in the folders of an earlier version; such runs are not gone on with."""

_LOCK = ".lock"
"""The file that a process holds while it works in the folder."""


class RunFolder:
    """One such folder; nobody else works in it within a ``with``.

    Raises:
        OutputRefused: somebody else works in it, when the ``with`` begins.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = ExitStack()

    def __enter__(self) -> "RunFolder":
        try:
            self._lock.enter_context(hold_lock(self.folder / _LOCK, wait=False))
        except BlockingIOError as error:
            raise OutputRefused(
                got="a name under which another training is running",
                need="one of its own",
                next="wait until that ends, or choose another name",
                place=self.folder,
                code="training-is-running",
            ) from error
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._lock.close()

    # ---- what was asked

    def request(self) -> dict[str, Any]:
        """Returns what the run was begun with; nothing where none was begun.

        Raises:
            InputRefused: it was begun by an earlier version, or its request cannot be read.
        """
        file = self.folder / REQUEST
        if not file.exists() and not (self.folder / _EARLIER_REQUEST).exists():
            return {}
        known = read_object(file)
        if not known:
            raise InputRefused(
                got="a training that an earlier version began, or whose request.json is damaged",
                need="one that this version began",
                next="choose another folder",
                place=self.folder,
                code="training-of-another-version",
            )
        return known

    def changes(self, request: Mapping[str, Any]) -> list[str]:
        """Returns the keys of a request by which the run was not begun, empty where none was begun."""
        known = self.request()
        return [key for key in request if known and known.get(key) != request[key]]

    def complete(
        self, request: Mapping[str, Any], optional: Sequence[str] = (), may_change: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Returns a request together with what the run was begun with, where it leaves that open.

        A run keeps its length, ``minutes`` or ``steps``, where the request has neither.

        Args:
            request: with all its keys; None, or empty, where something is left open.
            optional: keys that may be left open.
            may_change: keys that may be another than those that it was begun with.

        Raises:
            InputRefused: another recipe was begun in this folder, or the same one with another request.
        """
        known = self.request()
        if not known:
            return dict(request)
        open_length = request["minutes"] is None and request["steps"] is None
        left_open = {key for key in optional if not request[key]} | ({"minutes", "steps"} if open_length else set())
        whole = {key: known.get(key) if key in left_open else value for key, value in request.items()}
        changed = [key for key in self.changes(whole) if key not in may_change]
        if "recipe" in changed:
            raise InputRefused(
                got="the training of another recipe",
                need=f"one of {request['recipe']}",
                next="choose another folder",
                place=self.folder,
                code="training-of-another-recipe",
            )
        if changed:
            raise InputRefused(
                got=f"{self.folder}, a training that was begun with another {', '.join(f'`{key}`' for key in changed)}",
                need="the same to resume it",
                next="repeat the command that began it, or choose another folder",
                code="training-with-another-request",
            )
        return whole

    def begin(self, request: Mapping[str, Any]) -> None:
        """Keeps what is asked of the run, whole or not at all."""
        write_json(self.folder / REQUEST, request)

    def stage(self, name: str) -> Path:
        """Returns the folder of a stage."""
        return self.folder / name

    # ---- what is finished

    def finish(self, model: Path, trained: Mapping[str, Any]) -> None:
        """Notes that a model is in its place, and how long it was trained."""
        entry = {"sha256": _digest(model), "trained": dict(trained)}
        write_json(self.folder / FINISHED, read_object(self.folder / FINISHED) | {model.stem: entry})

    def is_finished(self, model: Path, trained: Mapping[str, Any] | None = None) -> bool:
        """Returns whether a model of this run is in its place; with ``trained``, at the end of a training so long."""
        entry = read_object(self.folder / FINISHED).get(model.stem)
        # By content: somebody may have put another file in its place since.
        if entry is None or not model.exists() or entry["sha256"] != _digest(model):
            return False
        return trained is None or bool(entry["trained"] == trained)

    # ---- the runs of an adaptation, each for one model

    def run_for(self, model: Path) -> "RunFolder":
        """Returns the folder of the run that makes a model."""
        return RunFolder(self.folder / model.stem)

    def clear(self, model: Path) -> None:
        """Removes the run that made a model."""
        run = self.run_for(model).folder
        if run.exists():
            shutil.rmtree(run)

    def close(self) -> list[Path]:
        """Removes everything when all is done; but not the runs of other commands, which are returned."""
        names = (REQUEST, _EARLIER_REQUEST)
        others = sorted({path.parent for name in names for path in self.folder.glob(f"*/{name}")})
        for path in self.folder.iterdir():
            if path.is_dir() and path not in others:  # what a kill left of a run that was about to be removed
                shutil.rmtree(path)
            elif not path.is_dir() and path.name != _LOCK:
                path.unlink()
        self._lock.close()
        with suppress(OSError):  # others are there, or the lock was the last file and has taken the folder with it
            self.folder.rmdir()
        return others


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Writes facts as JSON, whole or not at all."""
    with whole_or_not(path) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
