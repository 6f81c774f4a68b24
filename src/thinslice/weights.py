"""Name -> model: the embedded weights, model files on disk, and the interpolations."""

from glob import escape
from pathlib import Path

from thinslice.errors import ModelRefused
from thinslice.interpolate import INTERPOLATIONS
from thinslice.runtime import Model, interpolation, load_model, together

EMBEDDED = Path(__file__).parent / "embedded"
"""Model files that ship with the package, ``NAME.onnx`` beside its card ``NAME.json``."""


def embedded_names() -> list[str]:
    """The models that ship with the package."""
    return sorted({path.name.split(".")[0] for path in EMBEDDED.glob("*.onnx")})


def find_model(wish: str, threads: int | None = None) -> Model:
    """An interpolation by name, an embedded model by name, or a model file by path.

    The networks for planes lie in files NAME.PART-xFACTOR.onnx, and their model is NAME, or its path.

    Raises:
        ModelRefused: there is no such model.
    """
    if wish in INTERPOLATIONS:
        return interpolation(wish)
    if wish in embedded_names() and (EMBEDDED / f"{wish}.onnx").exists():
        return load_model(EMBEDDED / f"{wish}.onnx", name=wish, threads=threads)
    if family := _family(EMBEDDED / wish if wish in embedded_names() else Path(wish)):
        return together([load_model(path, threads=threads) for path in family], Path(wish).name)
    if wish.endswith(".onnx") or Path(wish).exists():
        return load_model(Path(wish), threads=threads)
    names = ", ".join([*embedded_names(), *INTERPOLATIONS])
    raise ModelRefused(
        f"got model {wish!r}; need one of {names}, or the path of a model file (.onnx); next: choose one"
    )


def _family(path: Path) -> list[Path]:
    """The files of networks for planes of that name."""
    return sorted(path.parent.glob(f"{escape(path.name)}.*-x*.onnx")) if path.name else []
