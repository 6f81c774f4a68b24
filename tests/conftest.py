"""How the suite is run: the same examples every time, no deadline (the machine may be busy)."""

import os

from hypothesis import HealthCheck, Phase, settings

settings.register_profile(
    "suite", max_examples=20, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)
settings.register_profile("search", max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile(
    "faults", settings.get_profile("suite"), phases=(Phase.explicit, Phase.generate)
)  # a fault need only be caught, not explained
settings.load_profile(os.environ.get("THINSLICE_HYPOTHESIS", "suite"))
