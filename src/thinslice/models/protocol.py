"""What a model is to the rest of the program: the thin slices between thick ones come from anything that answers this.

A model starts from an interpolation of the thick slices and may add something to it. What it adds is asked for slab by
slab: a slab is all thin slices that are nearest to one thick slice. Interpolating, checking what was added against the
thick slices, projecting and storing are done by `thinslice.compute.upsample` and are the same for every kind of model.

To add a kind of model: one class made from `Model`, one made from `Answer`, and a row of
`thinslice.models.files.KINDS`, which says what the model files of that kind are fed with.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, TypeVar

import numpy as np

from thinslice.models.envelope import Envelope
from thinslice.progress import Progress
from thinslice.settings import Profile

WORKERS = 2
"""Slabs that are computed at the same time, each by its share of the cores.

What is not the network's own work (turning, projecting, checking) is then done beside it.
"""

AnyModel = TypeVar("AnyModel", bound="Model")
"""One kind of model."""


@dataclass(frozen=True)
class Enlarger:
    """A network that enlarges planes by whole factors.

    Attributes:
        run: (planes [n, h, w], their interpolation [n, a h, b w]) -> enlarged planes [n, a h, b w], all float32.
        reach: pixels of a plane, before it is enlarged, that the answer may depend on, along both axes.
        workers: pieces that are computed at the same time.
    """

    run: Callable[[np.ndarray, np.ndarray], np.ndarray]
    reach: tuple[int, int]
    workers: int = WORKERS

    def __call__(self, planes: np.ndarray, base: np.ndarray) -> np.ndarray:
        """Enlarges planes, as ``run`` does."""
        return self.run(planes, base)


class Stack(Protocol):
    """The thick slices of one scan while thin ones are computed from them: what a model may look at.

    Slabs have the numbers of their thick slices. Slices are [n, h, w] float32 in normalised intensities, in which the
    range of the scan (`thinslice.physics.intensity.intensity_range`) is 0 .. 1. Positions are counted in thick slices.
    """

    @property
    def n_thick(self) -> int:
        """The number of thick slices, and of slabs."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of a slice."""

    @property
    def factor(self) -> float:
        """Thick spacing over thin spacing."""

    @property
    def thickness_over_spacing(self) -> float:
        """1 for touching slices, below 1 with a gap, above 1 with an overlap."""

    @property
    def profile(self) -> Profile:
        """The shape of the slice profile."""

    @property
    def fuse(self) -> bool:
        """Whether the answers to several orientations of the scan shall be joined."""

    @property
    def positions(self) -> np.ndarray:
        """[thin] float64: centres of the thin slices, in rising order."""

    @property
    def workers(self) -> Executor:
        """Threads, `Model.workers` of them, for what is computed at the same time."""

    @property
    def progress(self) -> Progress:
        """Takes the share of all slabs that is done; see `Answer.tells_progress`."""

    def thin_of(self, low: int, high: int) -> slice:
        """Returns which thin slices lie in slabs low .. high - 1."""

    def slices(self, low: int, high: int) -> np.ndarray:
        """Returns thick slices low .. high - 1 as an own array; beyond the ends the outermost ones repeat."""

    def subtract_base(self, thin: np.ndarray, start: int, stop: int) -> None:
        """Subtracts the interpolation from all thin slices of slabs start .. stop - 1, in place.

        For models that compute whole slices: what they add to the interpolation is left.
        """


class Answer(ABC):
    """What a model adds to the interpolation of one stack.

    Attributes:
        tells_progress: whether it calls ``stack.progress`` itself, since it computes many slabs at once.
    """

    tells_progress: ClassVar[bool] = False

    @abstractmethod
    def residuals(self, slab: int) -> Mapping[int, np.ndarray]:
        """Computes what is added to the thin slices of a slab, and of others that are computed along with it.

        Asked once per slab, in rising order; not asked for a slab that was given along with an earlier one.

        Returns:
            Slab -> [p, h, w] float32 for its thin slices, ``slab`` among them.
        """


@dataclass(frozen=True)
class Model(ABC):
    """Anything that computes thin slices from thick ones.

    Attributes:
        name: what people call it, in plans and tables. Two models may have the same: it identifies nothing.
        base: the interpolation it starts from, a key of `thinslice.physics.interpolation.INTERPOLATIONS`.
        envelope: the scans it is valid for, None for any.
        sha256: identifies what was learnt: of the model file; of several, of their own ones, sorted and joined by
            commas. None for what was not learnt.
        card: where it came from.
        workers: slabs that are computed at the same time.
        adds: whether it adds anything to its interpolation.
        follows_profile: whether what it adds depends on the slice profile that is assumed.
        fused_is_mirrored: whether the joined answer is the mean of those to the scan and to its mirror image.
    """

    name: str
    base: str
    envelope: Envelope | None = None
    sha256: str | None = None
    card: dict[str, object] | None = None
    workers: int = WORKERS

    adds: ClassVar[bool] = True
    follows_profile: ClassVar[bool] = False
    fused_is_mirrored: ClassVar[bool] = False

    @abstractmethod
    def begin(self, stack: Stack) -> Answer:
        """Returns what answers for one stack; may already begin to compute."""

    def in_plane_network(self, factor: int) -> Enlarger | None:
        """Returns the network that enlarges slices by a factor along both axes; None: they are interpolated."""
        return None

    def with_threads(self: AnyModel, threads: int) -> AnyModel:
        """Returns the same for so many threads: with a single one nothing is computed at the same time."""
        return replace(self, workers=min(WORKERS, threads))
