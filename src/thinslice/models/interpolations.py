"""The interpolations as models: they add nothing to themselves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from thinslice.errors import ModelRefused
from thinslice.models.protocol import Answer, Model, Stack
from thinslice.physics.interpolation import INTERPOLATIONS


@dataclass(frozen=True)
class Interpolation(Model):
    """An interpolation, valid for every scan.

    Example:
        >>> cubic = interpolation("cubic")
        >>> cubic.adds, cubic.envelope, cubic.sha256
        (False, None, None)
    """

    adds: ClassVar[bool] = False

    def begin(self, stack: Stack) -> Answer:
        """Returns an answer that adds nothing."""
        return _Nothing(stack)


class _Nothing(Answer):
    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    def residuals(self, slab: int) -> Mapping[int, np.ndarray]:
        own = self.stack.thin_of(slab, slab + 1)
        return {slab: np.zeros((own.stop - own.start, *self.stack.shape), np.float32)}


def interpolation(name: str) -> Interpolation:
    """Returns an interpolation as a model.

    Raises:
        ModelRefused: there is none of that name.
    """
    if name not in INTERPOLATIONS:
        raise ModelRefused(
            got=f"interpolation {name!r}",
            need=f"one of {', '.join(INTERPOLATIONS)}",
            next="choose one of them",
            code="no-such-interpolation",
        )
    return Interpolation(name=name, base=name)
