"""The embedded weights: near-isotropic MR, every acquisition in one training."""

from thinslice.training.batches import AcquisitionRanges
from thinslice.training.faults import FaultRanges
from thinslice.training.fit import Schedule
from thinslice.training.objectives import SlabObjective
from thinslice.training.sources import Folders
from thinslice.training.stages import Recipe, Stage

SCANNERS = AcquisitionRanges(
    thickness_over_spacing=(0.36, 2.4),
    profiles=(("gaussian", 0.3), ("box", 0.25), ("trapezoid", 0.15), ("triangle", 0.1), ("spin-echo", 0.2)),
    typical=0.6,
    noisy=0.0,
    faults=FaultRanges(),
)
"""How thin volumes become thick: most often as the field's papers do it, else as scanners might."""


def stages() -> list[Stage]:
    """Returns one stage."""
    return [
        Stage(
            "iso",
            Folders({"iso_train": 1.0}, balanced=True),
            objective=SlabObjective(ranges=SCANNERS),
            schedule=Schedule(save_every=200),
            model="default",
        )
    ]


RECIPE = Recipe(stages)
