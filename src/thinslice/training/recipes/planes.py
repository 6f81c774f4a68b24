"""The embedded networks for planes: for x2 and x4, for MR, and from there for CT, of which there is less.

The two kinds of network of Georgescu, Ionescu and Verga, *CNNs with Intermediate Loss for 3D Super-Resolution of CT and
MRI Scans* (IEEE Access 2020): one enlarges the slices in-plane, the other the planes that cut through the slices. What
differs from the paper: `thinslice.networks.planes`; `planes-paper` is closer to it.
"""

from dataclasses import replace

from thinslice.models.plane_networks import Part
from thinslice.networks.registry import Architecture
from thinslice.training.fit import Schedule
from thinslice.training.objectives import PlaneObjective
from thinslice.training.plane_batches import Shrinking
from thinslice.training.sources import Folders
from thinslice.training.stages import Recipe, Stage

NETWORKS: tuple[tuple[Part, int], ...] = (("in-plane", 2), ("in-plane", 4), ("depth", 2), ("depth", 4))
"""Part and factor of the networks that make a family, for one scanner."""

SCHEDULE = Schedule(steps=8000, save_every=200)
"""Of every network."""


def stages() -> list[Stage]:
    """Returns one stage for each network: four for MR, then four for CT that start from these."""
    mr = [plane_stage("mr", part, factor) for part, factor in NETWORKS]
    ct = [plane_stage("ct", part, factor) for part, factor in NETWORKS]
    gentle = Schedule(steps=4000, save_every=200).gentle()
    return mr + [replace(two, schedule=gentle, start=one.name) for one, two in zip(mr, ct, strict=True)]


def plane_stage(scanner: str, part: Part, factor: int) -> Stage:
    """Returns the training of one network for ``mr`` or ``ct`` from fresh weights."""
    objective = PlaneObjective(part, Shrinking(factor), hounsfield=scanner == "ct", patches=8 // factor)
    narrow = part == "depth" and factor == 2  # which has the most pixels to go through for what it adds
    widths = {"width": 16 if narrow else 32, "fine_width": 16}
    return Stage(
        f"{scanner}-{part}-x{factor}",
        Folders({"ct" if scanner == "ct" else "iso_train": 1.0}),
        objective=objective,
        network=Architecture("planes", {"scale": objective.scale, **widths}),
        schedule=SCHEDULE,
        model=f"planes-{scanner}.{part}-x{factor}",
    )


RECIPE = Recipe(stages)
