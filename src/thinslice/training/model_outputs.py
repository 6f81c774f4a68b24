"""Where the models of an adaptation go, and which model it starts from: refused here, before any work."""

from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from thinslice.errors import ModelRefused, OutputRefused
from thinslice.io.atomic import read_object
from thinslice.io.formats import stem_of
from thinslice.io.outputs import check_writable
from thinslice.models.registry import is_known_name, planes_files, resolve
from thinslice.training.export import read_card


def check_model_name(output: Path, per_scan: bool, may_exist: bool) -> None:
    """Refuses a name, without .onnx, that cannot be one of a model, or of a folder of them.

    Args:
        output: the name.
        per_scan: whether it is that of a folder, with a model for each scan.
        may_exist: whether what is there may stay or be replaced.

    Raises:
        OutputRefused: it means something else, is there already, or cannot be written to.
    """
    if output.name in ("", ".."):
        raise OutputRefused(
            got=f"`output={output}`",
            need="a name for the model",
            next="choose one, such as my-model",
            code="output-empty-name",
        )
    if is_known_name(str(output)):
        raise _refuse_name(output, "a name that `model` already has", "one of your own")
    if planes_files(output):
        raise _refuse_name(output, "the name of networks for planes, which `model` would find first", "one of your own")
    file = output.with_name(f"{output.name}.onnx")
    if per_scan and output.exists() and not output.is_dir():
        raise _refuse_name(output, "a file", "a name for a folder")
    if per_scan and file.exists():
        raise _refuse_name(file, "a model file of the name that a folder shall have", "a free one")
    if not per_scan and output.is_dir():
        raise _refuse_name(output, "a folder", "a name for a model file")
    there = file if not per_scan else output
    if there.exists() and not may_exist:
        raise OutputRefused(
            got="an output that exists already",
            need="a free name",
            next="choose another, keep what is there with `resume`, or replace it with `overwrite`",
            place=there,
            code="output-exists",
        )
    check_writable(output if per_scan else output.parent)


def _refuse_name(place: Path, got: str, need: str) -> OutputRefused:
    return OutputRefused(got=got, need=need, next="choose another `output`", place=place, code="output-name-taken")


def check_answer(answer: Path, start: Path) -> None:
    """Refuses to write a model file over its own start, or its card over anything but a card.

    Raises:
        OutputRefused: it would.
    """
    if answer.exists() and answer.resolve() == start.resolve():
        raise _refuse_name(answer, "an output that is the start", "another place")
    card = answer.with_suffix(".json")
    for path in (answer, card):
        if path.is_dir():
            raise _refuse_name(path, "a folder", "a name for a file")
    if card.exists() and not {"sha256", "envelope"} <= read_object(card).keys():
        got = "a file that is no model's card, perhaps a scan's"
        raise _refuse_name(card, got, f"its name for the card of {answer.name}")


def name_models(paths: Sequence[Path], fingerprints: Sequence[str], known: Mapping[str, str]) -> list[str]:
    """Returns a name for the model of each scan: the one it has, else that of its file where no other has it.

    Args:
        paths: of the scans.
        fingerprints: of the scans.
        known: fingerprint -> name of the models that are there, see `find_adapted_models`.

    Example:
        >>> name_models([Path("a/t1.nii"), Path("b/t1.nii"), Path("c/t2.nii")], ["1", "2", "3"], {})
        ['t1-1', 't1-2', 't2']
    """
    stems = [stem_of(path) for path in paths]
    # Small and large letters are one on many file systems: T1.onnx would replace t1.onnx.
    shared = [stem.casefold() for stem in stems]
    taken = {name.casefold() for name in known.values()}
    names: list[str] = []
    for stem, fingerprint in zip(stems, fingerprints, strict=True):
        name = known.get(fingerprint, stem)
        # Of two scans of one file name neither has the bare name: which one has it would follow from their order.
        if fingerprint not in known and (shared.count(stem.casefold()) > 1 or stem.casefold() in taken):
            others = {*shared, *taken}
            name = next(n for number in count(1) if (n := f"{stem}-{number}").casefold() not in others)
        taken.add(name.casefold())
        names.append(name)
    return names


def find_adapted_models(folder: Path) -> dict[str, str]:
    """Returns, by the fingerprint of its scan, the name of every model that was adapted to one scan alone."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.onnx")):
        try:
            scans: list[dict[str, Any]] = read_card(path).get("adapted_to", [])
        # It is the user's folder: what else lies in it is none of our business.
        except ModelRefused:
            continue
        if len(scans) == 1:
            found[scans[0]["fingerprint"]] = path.stem
    return found


def find_start(start: str | Path, setting: str) -> Path:
    """Returns the model file that a name stands for, as in `thinslice.models.registry`.

    Args:
        start: the name, or a path.
        setting: what a refusal calls it.

    Raises:
        ModelRefused: it stands for what cannot be adapted.
    """
    found = resolve(start)
    if found.kind == "folder" or (found.kind == "file" and found.files[0].is_dir()):
        raise ModelRefused(
            got=f"`{setting}={start}`, a folder", need="a model file", next="choose one in it", code="start-is-folder"
        )
    if found.kind == "file":
        return found.files[0]
    raise ModelRefused(
        got=f"`{setting}={start}`, which is no network of the kind that can be adapted",
        need="default, or a file that 'thinslice train default', 'train video-mr' or 'adapt' wrote",
        next="choose one of them",
        code="start-of-another-kind",
    )
