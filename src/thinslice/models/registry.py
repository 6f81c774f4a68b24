"""Name -> model: the one place that knows what a name of a model stands for.

Interpolations and embedded models go by their names, which always win. Everything else is a path, so a file or folder
that is called like one of them is reached as ``./cubic``, or as a `pathlib.Path`.
"""

import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import Any, Literal

from thinslice.errors import ModelRefused
from thinslice.files import read_bytes
from thinslice.models.engine import EngineSettings
from thinslice.models.files import MOST_MODEL_BYTES, load_model
from thinslice.models.interpolations import interpolation
from thinslice.models.plane_networks import together
from thinslice.models.protocol import Model
from thinslice.physics.interpolation import INTERPOLATIONS
from thinslice.volume import Volume, fingerprint

logger = logging.getLogger(__name__)

EMBEDDED = Path(__file__).parent / "embedded"
"""Model files that ship with the package, ``NAME.onnx`` beside its card ``NAME.json``."""

MR_ALONE = ("default", "planes-mr")
"""Embedded models that have learnt from magnetic resonance and nothing else; NOTICE.md names what all learnt from."""

ModelName = str | os.PathLike[str]
"""A name, or the path of a model file or of a folder of them; a path that is no text is never a name."""

Load = Callable[[Path, str | None, EngineSettings | None], Model]
"""(path, name, settings) -> the model of a file: `thinslice.models.files.load_model`, or its `load_once`."""


@dataclass(frozen=True)
class Resolved:
    """What a name stands for.

    Attributes:
        kind: an interpolation; one model file; a family of networks for planes, which are one model; a folder of
            ``adapt --per-scan`` with a model for each of several scans.
        name: what to call the model, None for what its card says.
        files: its model files.
        embedded: whether they ship with the package.
    """

    kind: Literal["interpolation", "file", "family", "folder"]
    name: str | None
    files: tuple[Path, ...] = ()
    embedded: bool = False


def embedded_names() -> list[str]:
    """Returns the names of the models that ship with the package."""
    # Up to the first point: the files NAME.PART-xFACTOR.onnx of a family are one name.
    return sorted({path.name.split(".")[0] for path in EMBEDDED.glob("*.onnx")})


def known_names() -> list[str]:
    """Returns the names of models that are no file of the user's."""
    return [*embedded_names(), *INTERPOLATIONS]


def is_known_name(name: ModelName) -> bool:
    """Says whether a name is that of an interpolation or an embedded model.

    Example:
        >>> is_known_name("cubic"), is_known_name("./cubic"), is_known_name(Path("cubic"))
        (True, False, False)
    """
    return isinstance(name, str) and name in known_names()


def to_absolute(name: ModelName) -> str:
    """Returns a name that means the same in another working directory.

    Example:
        >>> to_absolute("cubic")
        'cubic'
    """
    return str(name) if is_known_name(name) else str(Path(name).absolute())


def resolve(name: ModelName) -> Resolved:
    """Finds out what a name stands for; no file is read.

    A file may be named without its .onnx. Networks for planes lie in files NAME.PART-xFACTOR.onnx, and their model is
    NAME, or its path.

    Raises:
        ModelRefused: it stands for nothing.

    Example:
        >>> resolve("cubic")
        Resolved(kind='interpolation', name='cubic', files=(), embedded=False)
        >>> resolve("default").files[0].name
        'default.onnx'
    """
    # Names win over files: a scan must not get another model where a file called `default` happens to lie.
    if is_known_name(name):
        return _known(str(name))
    path = Path(name)
    if family := planes_files(path):
        return Resolved("family", path.name, tuple(family))
    if path.is_dir() and (files := sorted(path.glob("*.onnx"))):
        return Resolved("folder", None, tuple(files))
    # Not `with_suffix`, which would look for model.onnx where model.v2 is asked for.
    with_ending = path.with_name(f"{path.name}.onnx") if path.name else path
    if path.suffix != ".onnx" and with_ending.is_file():
        return Resolved("file", None, (with_ending,))
    if path.suffix == ".onnx" or path.exists():
        return Resolved("file", None, (path,))
    raise ModelRefused(
        got=f"model {str(name)!r}",
        need=f"one of {', '.join(known_names())}, or the path of a model file (.onnx)",
        next="choose one",
        code="no-such-model",
    )


def _known(name: str) -> Resolved:
    if name in INTERPOLATIONS:
        return Resolved("interpolation", name)
    file = EMBEDDED / f"{name}.onnx"
    if file.exists():
        return Resolved("file", name, (file,), embedded=True)
    return Resolved("family", name, tuple(planes_files(EMBEDDED / name)), embedded=True)


def find_model(name: ModelName, settings: EngineSettings | None = None, load: Load = load_model) -> Model:
    """Returns the one model that a name stands for, see `resolve`.

    Args:
        name: of an interpolation or an embedded model, or a path.
        settings: of the engine; default: all cores that this process may use.
        load: reads one file.

    Raises:
        ModelRefused: there is no such model, or it is not one.
        MemoryError: there is not enough memory.
    """
    found = resolve(name)
    if found.kind == "folder":
        raise ModelRefused(
            got=f"`model={str(name)!r}`, which holds a model for each of several scans",
            need="one of its files here",
            next=f"choose one, such as {found.files[0]}",
            code="folder-of-models",
        )
    return _load(found, settings, load)


def _load(found: Resolved, settings: EngineSettings | None, load: Load) -> Model:
    logger.debug("the model is: %s %s", found.kind, ", ".join(map(str, found.files)) or found.name)
    if found.kind == "file":
        model = load(found.files[0], found.name, settings)
    elif found.kind == "family":
        model = together([load(path, None, settings) for path in found.files], str(found.name))
    else:
        model = interpolation(str(found.name))
    if found.embedded and found.name in MR_ALONE and model.envelope is not None:
        model = replace(model, envelope=replace(model.envelope, learnt_mr_alone=True))
    threads = settings.threads if settings is not None else None
    return model if threads is None or found.kind == "file" else model.with_threads(threads)


def models_for(
    name: ModelName, settings: EngineSettings | None = None, load: Load = load_model
) -> Callable[[Volume], Model]:
    """Returns what finds the model for a scan: always that of `find_model`, but in a folder of ``adapt --per-scan``.

    There it is the scan's own model. A scan is known by its voxels and where they are, whatever its file is called
    now.

    Raises:
        ModelRefused: there is no such model; and, when the answer is called, none of the folder is the scan's own.
        MemoryError: there is not enough memory.
    """
    found = resolve(name)
    if found.kind != "folder":
        model = _load(found, settings, load)
        return lambda volume: model
    models = [load(path, None, settings) for path in found.files]
    own = {known: model for model in models for known in _adapted_to(model)}

    def choose(volume: Volume) -> Model:
        known = fingerprint(volume)
        if known not in own:
            raise ModelRefused(
                got=f"`model={str(name)!r}`, none of whose {len(found.files)} models was adapted to this scan",
                need="its own one",
                next=f"run 'thinslice adapt' on it, or choose a file, such as {found.files[0]}",
                code="no-model-of-this-scan",
            )
        return own[known]

    return choose


def identify(name: ModelName) -> str | None:
    """Returns the sha256 of the model that a name means now; of a folder with a model for each scan that of all.

    None for an interpolation, which its name identifies.

    Raises:
        ModelRefused: there is no such model.
        MemoryError: there is not enough memory.
    """
    found = resolve(name)
    if found.kind != "folder":
        return _load(found, None, load_model).sha256
    # Sorted: what the files are called is no part of what was learnt.
    hashes = sorted(hashlib.sha256(read_bytes(file, MOST_MODEL_BYTES)).hexdigest() for file in found.files)
    return hashlib.sha256(",".join(hashes).encode()).hexdigest()


def _adapted_to(model: Model) -> list[str]:
    scans: Any = (model.card or {}).get("adapted_to", [])
    return [scan["fingerprint"] for scan in scans]


def planes_files(path: Path) -> list[Path]:
    """Returns the files of networks for planes that are a family of that path."""
    # Escaped: a name may hold brackets, which a pattern would not find.
    return sorted(path.parent.glob(f"{escape(path.name)}.*-x*.onnx")) if path.name else []
