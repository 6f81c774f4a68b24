"""Name -> model: the embedded weights, model files on disk, and the interpolations."""

from collections.abc import Callable
from glob import escape
from pathlib import Path
from typing import Any

from thinslice.errors import ModelRefused
from thinslice.models.engine import Model, interpolation, load_model, together
from thinslice.physics.interpolation import INTERPOLATIONS
from thinslice.volume import Volume, fingerprint

EMBEDDED = Path(__file__).parent / "embedded"
"""Model files that ship with the package, ``NAME.onnx`` beside its card ``NAME.json``."""


Load = Callable[..., Model]
"""(path, name, threads) -> the model of a file."""


def embedded_names() -> list[str]:
    """The models that ship with the package."""
    return sorted({path.name.split(".")[0] for path in EMBEDDED.glob("*.onnx")})


def known_names() -> list[str]:
    """What a model is called that is no file of the user's."""
    return [*embedded_names(), *INTERPOLATIONS]


def find_model(wish: str, threads: int | None = None, load: Load = load_model) -> Model:
    """An interpolation by name, an embedded model by name, or a model file by path.

    A file may be named without its .onnx. The networks for planes lie in files NAME.PART-xFACTOR.onnx, and their model
    is NAME, or its path. ``load`` reads one file: `thinslice.models.engine.load_model`, or its `load_once`.

    Raises:
        ModelRefused: there is no such model.
    """
    if wish in INTERPOLATIONS:
        return interpolation(wish)
    if wish in embedded_names() and (EMBEDDED / f"{wish}.onnx").exists():
        return load(EMBEDDED / f"{wish}.onnx", name=wish, threads=threads)
    if family := planes_files(EMBEDDED / wish if wish in embedded_names() else Path(wish)):
        return together([load(path, threads=threads) for path in family], Path(wish).name)
    if Path(wish).is_dir() and sorted(Path(wish).glob("*.onnx")):
        raise ModelRefused(
            f"got --model {wish}, which holds a model for each of several scans; need one of its files here; "
            f"next: choose one, such as {sorted(Path(wish).glob('*.onnx'))[0]}"
        )
    if not wish.endswith(".onnx") and Path(f"{wish}.onnx").is_file():
        return load(Path(f"{wish}.onnx"), threads=threads)
    if wish.endswith(".onnx") or Path(wish).exists():
        return load(Path(wish), threads=threads)
    names = ", ".join(known_names())
    raise ModelRefused(
        f"got model {wish!r}; need one of {names}, or the path of a model file (.onnx); next: choose one"
    )


def models_in(wish: str) -> list[Path]:
    """The model files of a folder of ``adapt --per-scan``; none where the wish is anything else."""
    folder = Path(wish)
    return sorted(folder.glob("*.onnx")) if folder.is_dir() and wish not in embedded_names() else []


def models_for(wish: str, threads: int | None = None, load: Load = load_model) -> Callable[[Volume], Model]:
    """What `find_model` finds, for every scan; or, in a folder of ``adapt --per-scan``, the scan's own model.

    A scan is known by its voxels and where they are, whatever its file is called now.

    Raises:
        ModelRefused: there is no such model; and, when the answer is called, none of the folder is the scan's own.
    """
    files = models_in(wish)
    if not files:
        model = find_model(wish, threads, load)
        return lambda volume: model
    models = [load(path, threads=threads) for path in files]
    own = {known: model for model in models for known in _adapted_to(model)}

    def choose(volume: Volume) -> Model:
        known = fingerprint(volume)
        if known not in own:
            raise ModelRefused(
                f"got --model {wish}, none of whose {len(files)} models was adapted to this scan; need its own one; "
                f"next: run 'thinslice adapt' on it, or choose a file, such as {files[0]}"
            )
        return own[known]

    return choose


def _adapted_to(model: Model) -> list[str]:
    scans: Any = (model.card or {}).get("adapted_to", [])
    return [scan["fingerprint"] for scan in scans]


def planes_files(path: Path) -> list[Path]:
    """The files of networks for planes of that name."""
    return sorted(path.parent.glob(f"{escape(path.name)}.*-x*.onnx")) if path.name else []
