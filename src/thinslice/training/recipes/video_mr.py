"""Stages 1 and 2 of Wang et al. (ISBI 2024, arXiv 2406.05974): pre-training on video, then near-isotropic MR.

Video clips are volumes whose slices are frames; what lies between the frames that are kept is predicted. A quarter of
all steps goes there, and all of them together are as many as those of `default`.

Unlike theirs: the network of `default`, any open clips, 2 to 4 times fewer frames, four patches of two slabs (what a
clip of 16 frames has room for), averaged weights handed on. Their stage 3 learns from the target scans, see
`thinslice.training.recipes.adapt`.
"""

from dataclasses import replace

from thinslice.training.batches import AcquisitionRanges
from thinslice.training.fit import Schedule
from thinslice.training.objectives import SlabObjective
from thinslice.training.recipes import default
from thinslice.training.sources import Folders
from thinslice.training.stages import Recipe, Stage

FRAMES = AcquisitionRanges(factor=(2.0, 4.0), whole=(2, 3, 4), fractional=False, kept=1.0, ends="slices")
"""How frames become fewer: every second, third or fourth is kept, as in the paper."""


def stages(ranges: AcquisitionRanges = FRAMES, model: str = "video-mr") -> list[Stage]:
    """Returns two stages.

    Args:
        ranges: how frames become fewer.
        model: name of the model file.
    """
    video = Stage(
        "video",
        Folders({"video": 1.0}),
        objective=SlabObjective(ranges=ranges, patches=4, slabs=2),
        schedule=Schedule(steps=5_000, save_every=200),
    )
    (mr,) = default.stages()
    return [video, replace(mr, schedule=Schedule(steps=15_000, save_every=200), start="video", model=model)]


RECIPE = Recipe(stages)
