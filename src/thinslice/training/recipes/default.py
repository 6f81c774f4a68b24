"""The embedded weights: near-isotropic MR, every acquisition in one training."""

from thinslice.training.fit import Schedule
from thinslice.training.sources import Folders
from thinslice.training.stages import Recipe, Stage


def stages() -> list[Stage]:
    """Returns one stage."""
    return [Stage("iso", Folders({"iso_train": 1.0}), schedule=Schedule(save_every=200), model="default")]


RECIPE = Recipe(stages)
