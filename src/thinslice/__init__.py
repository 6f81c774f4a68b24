"""Thick-slice scans in, thin-slice scans out; see README.md.

import thinslice
done = thinslice.enhance("scan.nii.gz")     # or an array, or an image of nibabel, TorchIO or MONAI; see docs/python.md
done.save("thin.nii.gz")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from thinslice.errors import InputRefused, ModelRefused, OutputRefused, PlanRefused, ThinsliceError
from thinslice.settings import Settings

if TYPE_CHECKING:  # numpy and nibabel take a fifth of a second to import
    from thinslice.api import combine, enhance
    from thinslice.combination import Combined
    from thinslice.pipeline import Enhanced
    from thinslice.volume import Volume

__all__ = [
    "Combined",
    "Enhanced",
    "InputRefused",
    "ModelRefused",
    "OutputRefused",
    "PlanRefused",
    "Settings",
    "ThinsliceError",
    "Volume",
    "combine",
    "enhance",
]

_LATER = {
    "Combined": "combination",
    "Enhanced": "pipeline",
    "Volume": "volume",
    "combine": "api",
    "enhance": "api",
}
"""Name -> the module it is in, which is imported when the name is first used."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
