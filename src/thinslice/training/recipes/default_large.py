"""`default` for a GPU: steps of 32 times as many pixels, in patches of four times as many, so edges matter less."""

from dataclasses import replace

from thinslice.training.fit import Schedule
from thinslice.training.objectives import SlabObjective
from thinslice.training.recipes import default
from thinslice.training.stages import Recipe, Stage


def stages() -> list[Stage]:
    """Returns the stage of `default` with more of everything."""
    schedule = Schedule(steps=10_000, batches=4, save_every=500)
    return [
        replace(stage, objective=SlabObjective(default.SCANNERS, patches=12, size=96), schedule=schedule)
        for stage in default.stages()
    ]


RECIPE = Recipe(stages)
