"""`planes` closer to Georgescu et al.: the image anew, their widths, bicubic downscaling and blur, Adam at 1e-3.

Unlike theirs: larger patches, intensities 0 .. 1, a warm-up and a decaying rate, averaged weights, the depth rate
(theirs is 1e-4 in-plane), and no ReLU where the two answers are made.
"""

from dataclasses import replace

from thinslice.models.plane_networks import Part
from thinslice.networks.registry import Architecture
from thinslice.training.objectives import PlaneObjective
from thinslice.training.plane_batches import Shrinking
from thinslice.training.recipes.planes import NETWORKS, SCHEDULE, plane_stage
from thinslice.training.stages import Recipe, Stage

ADAM = replace(SCHEDULE, rate=1e-3, muon_rate=0.0, weight_decay=0.0)
"""The paper's optimiser and rate."""


def stages() -> list[Stage]:
    """Returns one stage for each network, all of them from fresh weights."""
    return [_stage(scanner, part, factor) for scanner in ("mr", "ct") for part, factor in NETWORKS]


def _stage(scanner: str, part: Part, factor: int) -> Stage:
    shrinking = Shrinking(factor, scanner=0.0)
    objective = PlaneObjective(part, shrinking, hounsfield=scanner == "ct", patches=8 // factor)
    network = Architecture("planes", {"scale": objective.scale, "residual": False, "fine_width": 32})
    return replace(plane_stage(scanner, part, factor), objective=objective, network=network, schedule=ADAM)


RECIPE = Recipe(stages)
