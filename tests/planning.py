"""Plans for tests that are about something else: the settings by name, and a model of which only the facts matter."""

from dataclasses import dataclass

from thinslice.models.envelope import Envelope
from thinslice.physics.projection import NOISE_LEVEL
from thinslice.plan import Plan, make_plan
from thinslice.settings import Settings
from thinslice.volume import Volume


@dataclass(frozen=True)
class Facts:
    """What a plan has to know of a model."""

    name: str = "cubic"
    sha256: str | None = None
    envelope: Envelope | None = None


def plan_for(
    volume: Volume,
    *,
    model: str = "cubic",
    model_sha256: str | None = None,
    envelope: Envelope | None = None,
    profile: str | None = "gaussian",
    noise: float | None = NOISE_LEVEL,
    **settings: object,
) -> Plan:
    """A plan; with the slice profile of most papers unless the test says another one.

    Tests make scans of random numbers, in which noise would be found; they are projected as scans without noise.
    """
    settings_of_all = Settings(profile=profile, noise=noise, **settings)
    return make_plan(volume, settings_of_all, Facts(model, model_sha256, envelope))
