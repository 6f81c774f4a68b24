"""How the suite is run: the same examples every time, no deadline (the machine may be busy); and the command line."""

import os

import pytest
from hypothesis import HealthCheck, Phase, settings
from threadpoolctl import threadpool_limits

from thinslice import cli

settings.register_profile(
    "suite", max_examples=20, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)
settings.register_profile("search", max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile(
    "faults", settings.get_profile("suite"), phases=(Phase.explicit, Phase.generate)
)  # a fault need only be caught, not explained
settings.load_profile(os.environ.get("THINSLICE_HYPOTHESIS", "suite"))


@pytest.fixture(scope="module")
def one_thread():
    """Trainings are the same to the last bit only with as many threads, of torch and of numpy's matrix products."""
    torch = pytest.importorskip("torch", reason="training needs torch, which comes with thinslice[train]")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1, "blas"):
        yield
    torch.set_num_threads(before)


@pytest.fixture
def run(capsys):
    """main(words) -> exit code, lines of standard output, lines of standard error."""

    def call(*words: object) -> tuple[int, list[str], list[str]]:
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return code, said.out.splitlines(), said.err.splitlines()

    return call
