"""`video-mr` with frames that are averaged under a slice profile, as a scanner would, instead of left out."""

from dataclasses import replace

from thinslice.training.recipes import video_mr
from thinslice.training.stages import Recipe, Stage


def stages() -> list[Stage]:
    """Returns the stages of `video-mr`, of which the first keeps no frame as it is."""
    return video_mr.stages(replace(video_mr.FRAMES, kept=0.0), "video-mr-average")


RECIPE = Recipe(stages)
