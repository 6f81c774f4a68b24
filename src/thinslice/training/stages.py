"""What a recipe is made of: stages, each with a source, an objective, a network, a schedule and a start.

`thinslice.training.runner` runs them, `thinslice.training.recipes` holds the recipes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Protocol

from thinslice.networks.contract import Network
from thinslice.networks.registry import Architecture
from thinslice.training.fit import Schedule
from thinslice.training.objectives import Objective, SlabObjective

Report = Callable[[str], None]
"""Receives one line about what is done."""


@dataclass(frozen=True)
class Inputs:
    """What a run learns from: a folder of sources, or scans that shall be made thin.

    Attributes:
        data: the folder that holds the source folders; None where a recipe learns from scans.
        scans: what was made of each scan that is learnt from.
        validation: what was made of the scans by which it is judged.
        begun: when the time of the run began (`time.monotonic`); None: with its first step.
    """

    data: Path | None = None
    scans: Sequence[Any] = ()
    validation: Sequence[Any] = ()
    begun: float | None = None


class Source(Protocol):
    """Where the volumes of a stage come from."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the earlier stages whose networks make the volumes."""

    def volumes(self, inputs: Inputs, networks: Mapping[str, Network]) -> Sequence[Any]:
        """Returns what the stage learns from, as its objective expects it.

        Args:
            inputs: of the run.
            networks: of the earlier stages, by their names.

        Raises:
            InputRefused: there is nothing to learn from.
        """

    def describe(self, inputs: Inputs, volumes: Sequence[Any]) -> str:
        """Returns how much there is to learn from, in a few words; nothing where that is known already."""

    def attribution(self, inputs: Inputs) -> dict[str, list[Any]]:
        """Returns what the model card says of the source: lists, such as ``data``, that grow from stage to stage."""


class Check(Protocol):
    """Validates the averaged weights of a stage now and then, ends it early, and chooses the weights that are kept."""

    @classmethod
    def begin(cls, objective: Any, network: Any, inputs: Inputs, folder: Path, report: Report) -> "Check":
        """Returns a check of a stage in its folder; ``network`` has the weights that the stage begins with."""

    def fit_into(self, schedule: Schedule) -> Schedule:
        """Returns the schedule without the time that validation takes."""

    def __call__(self, step: int, average: Any) -> bool:
        """Validates weights, and returns whether the stage shall end."""

    def choose(self, average: Any) -> Network:
        """Returns the network that the stage ends with."""

    def validation(self) -> dict[str, Any]:
        """Returns what was found at every validation, for the card."""

    def verdict(self) -> dict[str, Any]:
        """Returns what was chosen, for the card."""


@dataclass(frozen=True)
class Stage:
    """One training.

    Attributes:
        name: folder of its checkpoint and log inside the output folder.
        source: where thin volumes come from.
        objective: how they are made thick, and which loss is made small.
        network: which network learns.
        schedule: for how long and how fast.
        start: name of an earlier stage whose weights are the start; None for fresh ones.
        check: how the weights are validated; None: they are not, and the last ones are kept.
        model: name of the model file that it ends with; None for a stage that only prepares another.
    """

    name: str
    source: Source
    objective: Objective = field(default_factory=SlabObjective)
    network: Architecture = field(default_factory=Architecture)
    schedule: Schedule = field(default_factory=Schedule)
    start: str | None = None
    check: type[Check] | None = None
    model: str | None = None

    def to_card(self) -> dict[str, Any]:
        """Returns the stage as plain data, for a model card."""
        card: dict[str, Any] = {"name": self.name, "start": self.start, "model": self.model}
        for key in ("source", "objective", "network", "schedule"):
            part = getattr(self, key)
            kind = {} if key in ("network", "schedule") else {"kind": type(part).__name__}
            card[key] = kind | (asdict(part) if is_dataclass(part) and not isinstance(part, type) else {})
        return card | {"check": None if self.check is None else self.check.__name__}


@dataclass(frozen=True)
class Recipe:
    """One way to train a model, from the first stage to the last.

    Attributes:
        stages: returns them, in order; called without arguments.
        train_on_scans: runs the recipe on scans that shall be made thin; None: it learns from a folder of sources.
    """

    stages: Callable[..., list[Stage]]
    train_on_scans: Callable[..., Any] | None = None
