"""Where the models of an adaptation go, and which model it starts from: refused here, before any work."""

import json
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from thinslice.errors import ModelRefused, OutputRefused
from thinslice.io.formats import stem_of
from thinslice.io.outputs import check_writable
from thinslice.models.registry import is_known_name, planes_files, resolve
from thinslice.training.export import read_card


def check_model_name(out: Path, per_scan: bool, may_exist: bool) -> None:
    """Refuse a name, without .onnx, that cannot be one of a model, or of a folder of them.

    Raises:
        OutputRefused: it means something else, is there already, or cannot be written to.
    """
    if out.name in ("", ".."):
        raise OutputRefused(f"got -o {out}; need a name for the model; next: choose one, such as my-model")
    if is_known_name(str(out)):
        raise OutputRefused(
            f"got -o {out}, a name that --model already has; need one of your own; next: choose another name"
        )
    if planes_files(out):
        raise OutputRefused(
            f"{out}: got the name of networks for planes, which --model would find first; need one of your own; next: "
            "choose another -o"
        )
    file = out.with_name(f"{out.name}.onnx")
    if per_scan and out.exists() and not out.is_dir():
        raise OutputRefused(f"{out}: got a file; need a name for a folder; next: choose another -o")
    if per_scan and file.exists():
        raise OutputRefused(
            f"{file}: got a model file of the name that a folder shall have; need a free one; next: choose another -o"
        )
    if not per_scan and out.is_dir():
        raise OutputRefused(f"{out}: got a folder; need a name for a model file; next: choose another -o")
    there = file if not per_scan else out
    if there.exists() and not may_exist:
        raise OutputRefused(
            f"{there}: got an output that exists already; need a free name; next: choose another, keep what is there "
            "with --resume, or replace it with --overwrite"
        )
    check_writable(out if per_scan else out.parent)


def check_answer(answer: Path, start: Path) -> None:
    """Refuse to write a model file over its own start, or its card over anything but a card.

    Raises:
        OutputRefused: it would.
    """
    if answer.exists() and answer.resolve() == start.resolve():
        raise OutputRefused(f"{answer}: got an output that is the start; need another place; next: choose another -o")
    card = answer.with_suffix(".json")
    for path in (answer, card):
        if path.is_dir():
            raise OutputRefused(f"{path}: got a folder; need a name for a file; next: choose another -o")
    if card.exists() and not _is_card(card):
        raise OutputRefused(
            f"{card}: got a file that is no model's card, perhaps a scan's; need its name for the card of "
            f"{answer.name}; next: choose another -o"
        )


def _is_card(path: Path) -> bool:
    try:
        card = json.loads(path.read_text())
    except ValueError:
        return False
    return isinstance(card, dict) and {"sha256", "envelope"} <= card.keys()


def name_models(paths: Sequence[Path], fingerprints: Sequence[str], known: Mapping[str, str]) -> list[str]:
    """A name for the model of each scan: the one it has, else that of its file where no other has it.

    Args:
        paths, fingerprints: of the scans.
        known: fingerprint -> name of the models that are there, see `find_adapted_models`.
    """
    stems = [stem_of(path) for path in paths]
    shared = [stem.casefold() for stem in stems]
    taken = {name.casefold() for name in known.values()}
    names: list[str] = []
    for stem, fingerprint in zip(stems, fingerprints, strict=True):
        name = known.get(fingerprint, stem)
        if fingerprint not in known and (shared.count(stem.casefold()) > 1 or stem.casefold() in taken):
            others = {*shared, *taken}
            name = next(n for number in count(1) if (n := f"{stem}-{number}").casefold() not in others)
        taken.add(name.casefold())
        names.append(name)
    return names


def find_adapted_models(folder: Path) -> dict[str, str]:
    """Fingerprint of a scan -> name of the model that was adapted to it alone."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.onnx")):
        try:
            scans: list[dict[str, Any]] = read_card(path).get("adapted_to", [])
        except ModelRefused:
            continue
        if len(scans) == 1:
            found[scans[0]["fingerprint"]] = path.stem
    return found


def find_start(start: str | Path, option: str = "--model") -> Path:
    """The model file that a name stands for, as for ``--model``.

    Args:
        start: the name, or a path.
        option: what a refusal calls it.

    Raises:
        ModelRefused: it stands for what cannot be adapted.
    """
    found = resolve(start)
    if found.kind == "folder" or (found.kind == "file" and found.files[0].is_dir()):
        raise ModelRefused(f"got {option} {start}, a folder; need a model file; next: choose one in it")
    if found.kind == "file":
        return found.files[0]
    raise ModelRefused(
        f"got {option} {start}, which is no network of the kind that can be adapted; need default, or a file that "
        "'thinslice train default', 'train video-mr' or 'adapt' wrote; next: choose one of them"
    )
