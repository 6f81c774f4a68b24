"""Small thick scans to learn from, and an adaptation of seconds: a small network, few steps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from thinslice.io import nifti
from thinslice.volume import Volume

SHAPE = (64, 56, 10)

SMALL = {"width": 8, "before": 1, "deep_width": 8, "deep": 1, "after": 0}
"""Settings of a small network."""


def texture(shape: tuple[int, ...], lengths: tuple[int, ...] = (3, 3, 3), seed: int = 0) -> np.ndarray:
    """Noise around 100, averaged over so many voxels along each axis: bright everywhere, 20 in standard deviation."""
    rough = np.random.default_rng(seed).standard_normal(shape)
    for axis, length in enumerate(lengths):
        rough = np.mean([np.roll(rough, shift, axis) for shift in range(length)], axis=0) * length**0.5
    return np.asarray(100 + 20 * rough)


def thick_volume(
    axis: int = 2, shape: tuple[int, ...] = SHAPE, factor: int = 4, dtype: Any = np.int16, seed: int = 0
) -> Volume:
    """Slices of a texture, ``factor`` voxels of 1 mm thick: ``shape`` ends with their number, ``axis`` is theirs."""
    thin = texture((shape[0], shape[1], shape[2] * factor), seed=seed)
    thick = thin.reshape(*shape, factor).mean(axis=3)
    affine = np.diag([1.0, 1.0, factor, 1.0])
    order = [0, 1]
    order.insert(axis, 2)
    return Volume(np.ascontiguousarray(thick.transpose(order).astype(dtype)), affine[:, [*order, 3]])


def save_thick(path: Path, **wish: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nifti.write(thick_volume(**wish), path)
    return path


def small_network(**settings: Any) -> Any:
    from thinslice.networks.slab import SlabNet

    return SlabNet(**(SMALL | settings))


def save_start(path: Path, seed: int = 0, loud: float = 40.0) -> Path:
    """A model that adds noise to every answer, so much that a few steps make it better, whatever it is shown."""
    import torch

    from thinslice.training.export import export

    torch.manual_seed(seed)
    network = small_network()
    with torch.no_grad():
        network.to_kernel.weight *= loud
    envelope = {"factor": (1.4, 10.5), "thickness_over_spacing": (0.55, 1.35), "profiles": ["gaussian", "box"]}
    export(network, {"name": "start", "envelope": envelope}, path)
    return path


def make_quick(patch: Any, steps: int = 6, **schedule: Any) -> None:
    """Let an adaptation take ``steps`` steps of the small network, one after the other, and look at every second."""
    from thinslice.networks.registry import Architecture
    from thinslice.training import validation
    from thinslice.training.objectives import SelfSupervisedObjective
    from thinslice.training.recipes import adapt

    calm = {"rate": 6e-3, "muon_rate": 0.0, "warm_up": 1, "ema": 0.5, "save_every": 2, "side_by_side": False}
    patch.setattr(adapt, "NETWORK", Architecture("slab", SMALL))
    patch.setattr(adapt, "SCHEDULE", replace(adapt.SCHEDULE, **(calm | schedule)))
    patch.setattr(adapt, "OBJECTIVE", SelfSupervisedObjective(patches=2, size=24, slabs=2))
    patch.setattr(validation, "LEAST_BATCHES", 2)
    patch.setattr(validation, "rest_of", lambda schedule, spent: replace(schedule, minutes=None, steps=steps))
