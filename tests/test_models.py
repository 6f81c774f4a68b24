"""Kinds of models and engines: every one answers by the same protocol, and one more is a class and a row."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given

import thinslice
from faults import catches
from make_scans import save_scan
from model_files import save_network
from phantoms import curved, enlarging, lopsided
from planning import plan_for
from strategies import interpolations, scans_and_wishes
from thinslice.compute.upsample import upsample
from thinslice.errors import ModelRefused
from thinslice.io.formats import read
from thinslice.models import engine, files
from thinslice.models.engine import Engine, EngineSettings, Session
from thinslice.models.envelope import Envelope
from thinslice.models.interpolations import Interpolation, interpolation
from thinslice.models.protocol import Answer, Model
from thinslice.models.registry import EMBEDDED, find_model
from thinslice.volume import Volume

SHARE = np.float32(0.002)
"""Of a thick slice that the toy model adds: too little for the guard to doubt it."""


@dataclass(frozen=True)
class Brighter(Model):
    """A kind of model that the package does not know: its network is shown a thick slice, and gives it back."""

    session: Session = field(kw_only=True)

    def begin(self, stack):
        return BrighterAnswer(self.session, stack)

    @staticmethod
    def from_session(session, name, sha256):
        card = session.card
        envelope = Envelope(tuple(card["envelope"]["factor"]))
        return Brighter(name, card["base"], envelope, sha256, card, session=session)


class BrighterAnswer(Answer):
    def __init__(self, session, stack):
        self.session, self.stack = session, stack

    def residuals(self, slab):
        own = self.stack.thin_of(slab, slab + 1)
        (seen,) = self.session.run({"image": self.stack.slices(slab, slab + 1)})
        return {slab: np.repeat(SHARE * seen, own.stop - own.start, axis=0)}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The file of a model of that kind, and the row that makes it known."""
    monkeypatch.setitem(files.KINDS, frozenset({"image"}), Brighter.from_session)
    card = {"name": "toy", "base": "linear", "envelope": {"factor": [1.5, 8.0]}, "contract": files.CONTRACT}
    return save_network(tmp_path / "toy.onnx", card, {"image"})


@pytest.fixture
def scan(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 1000, (20, 22, 7)).astype(np.float32)
    return save_scan(tmp_path / "scan.nii", voxels, np.diag([1.0, 1.0, 4.0, 1.0]))


def brightened(volume):
    """What the toy adds to linear interpolation, computed without it."""
    low = np.percentile(volume.voxels, 0.5)
    plan = plan_for(volume, model="linear", projection=False)
    base = upsample(volume, plan, interpolation("linear")).volume.voxels
    return base + SHARE * (np.repeat(volume.voxels, 4, axis=2) - low), plan


def test_a_kind_of_model_is_a_class_and_a_row(toy, scan, tmp_path, run):
    wanted, plan = brightened(read(scan))
    code, _, complained = run(
        "enhance", "-i", scan, "-o", tmp_path / "thin.nii", "--model", toy, "--no-projection", "--profile", plan.profile
    )
    assert (code, complained) == (0, [])
    np.testing.assert_allclose(read(tmp_path / "thin.nii").voxels, wanted, atol=1e-2)
    done = thinslice.enhance(scan, model=toy, projection=False, profile=plan.profile)
    np.testing.assert_allclose(done.array, wanted, atol=1e-2)
    assert (done.plan.model, done.plan.model_sha256) == ("toy", find_model(toy).sha256)


def test_the_envelope_of_a_new_kind_is_obeyed(toy, scan, tmp_path, run):
    code, _, (line,) = run("enhance", "-i", scan, "-o", tmp_path / "thin.nii", "--model", toy, "--factor", 9)
    assert code == 2
    assert "need 1.5 to 8" in line


def test_what_the_package_does_not_know_is_refused(toy, monkeypatch):
    monkeypatch.delitem(files.KINDS, frozenset({"image"}))
    with pytest.raises(ModelRefused, match="is not a thinslice model of this version: it is fed with image") as caught:
        find_model(toy)
    assert caught.value.code == "unknown-kind-of-model"


@catches("models/files.py", "        interpolation(model.base)\n", "")
@catches("models/envelope.py", "or not low <= high:", ":")
@pytest.mark.parametrize(
    ("base", "factor", "said"),
    [
        ("cubics", [1.5, 8.0], "got interpolation 'cubics'"),
        ("linear", "x", "not enough values"),
        ("linear", ["a", "b"], "factor is a to b"),
        ("linear", [8.0, 1.5], "factor is 8.0 to 1.5"),
        ("linear", 4, "not iterable"),
    ],
)
def test_a_card_with_anything_in_it_is_refused(toy, tmp_path, base, factor, said):
    card = {"name": "toy", "base": base, "envelope": {"factor": factor}, "contract": files.CONTRACT}
    with pytest.raises(ModelRefused, match=f"its card cannot be understood .*{said}") as caught:
        find_model(save_network(tmp_path / "other.onnx", card, {"image"}))
    assert caught.value.code == "foreign-card"


class Asked(Interpolation):
    """An interpolation that is asked what it adds."""

    adds: ClassVar[bool] = True


@catches("models/interpolations.py", "{slab: np.zeros(", "{slab: 1e-3 * np.ones(")
@given(case=scans_and_wishes(), name=interpolations)
def test_an_interpolation_adds_nothing(case, name):
    volume, wish = case
    plan = plan_for(volume, model=name, **wish)
    wanted = upsample(volume, plan, interpolation(name)).volume.voxels
    np.testing.assert_array_equal(upsample(volume, plan, Asked(name, name)).volume.voxels, wanted)


@dataclass(frozen=True)
class Watched(Model):
    """Passes everything on to another model, and writes down what it is asked and what it answers."""

    other: Model = field(kw_only=True)
    seen: list = field(kw_only=True, default_factory=list)

    def begin(self, stack):
        return WatchedAnswer(self.other.begin(stack), stack, self.seen)


class WatchedAnswer(Answer):
    def __init__(self, other, stack, seen):
        self.other, self.stack, self.seen = other, stack, seen

    def residuals(self, slab):
        found = self.other.residuals(slab)
        self.seen.append((slab, found, self.stack))
        return found


@pytest.mark.parametrize(
    "model",
    [curved(), lopsided(), enlarging("depth", 2, lambda base: 0.01 * base), interpolation("cubic")],
    ids=["curved", "lopsided", "planes", "cubic"],
)
@pytest.mark.parametrize("n_thick", [3, 11, 70])
def test_every_kind_is_asked_once_for_a_slab_and_answers_for_all_of_its_thin_slices(model, n_thick):
    voxels = np.random.default_rng(0).random((6, 7, n_thick), dtype=np.float32)
    volume = Volume(voxels, np.diag([1.0, 1.0, 3.0, 1.0]))
    watched = Watched("watched", model.base, other=model)
    plan = plan_for(volume, factor=2, model="watched")
    answer = upsample(volume, plan, watched).volume.voxels
    np.testing.assert_array_equal(answer, upsample(volume, plan, model).volume.voxels)
    asked = [slab for slab, _, _ in watched.seen]
    assert asked == sorted(set(asked))
    given_back = [slab for _, found, _ in watched.seen for slab in found]
    assert given_back == list(range(n_thick))
    for slab, found, stack in watched.seen:
        assert slab in found
        assert stack.n_thick == n_thick
        for one, residual in found.items():
            own = stack.thin_of(one, one + 1)
            assert residual.shape == (own.stop - own.start, *stack.shape)
            assert residual.dtype == np.float32


# ---- engines


class Abacus(Engine):
    """An engine that the package does not know; it ignores the network and adds nothing."""

    devices = ("beads",)
    precisions = ("fp32", "fp64")

    def open(self, content):
        return AbacusSession(self.settings)


class AbacusSession(Session):
    def __init__(self, settings):
        self.settings = settings
        self.inputs = frozenset({"slices", "geometry", "position"})
        self.card = find_model("default").card

    def run(self, feed):
        slices, position = feed["slices"], feed["position"]
        return [np.zeros((1, len(position), *slices.shape[2:]), np.float32)]


def test_an_engine_is_a_class_and_a_row(scan, monkeypatch):
    monkeypatch.setitem(engine.ENGINES, "abacus", Abacus)
    settings = EngineSettings(engine="abacus", device="beads", precision="fp64")
    model, volume = find_model("default", settings), read(scan)
    plan = plan_for(volume, model=model.name, model_sha256=model.sha256, envelope=model.envelope)
    wanted = upsample(volume, plan, interpolation("cubic")).volume.voxels
    np.testing.assert_array_equal(upsample(volume, plan, model).volume.voxels, wanted)
    with pytest.raises(ModelRefused, match=r"`device='cpu'` for the engine abacus; need one of beads"):
        find_model("default", replace(settings, device="cpu"))


@catches("models/engine.py", "if settings.device not in kind.devices:", "if False:")
@catches("models/engine.py", "if settings.precision not in kind.precisions:", "if False:")
@pytest.mark.parametrize(
    ("settings", "got", "code"),
    [
        (
            EngineSettings(device="cuda"),
            "`device='cuda'`.*need one of cpu",
            "no-such-device",
        ),
        (EngineSettings(precision="fp16"), "`precision='fp16'`.*need one of fp32", "no-such-precision"),
        (EngineSettings(engine="abacus"), "engine 'abacus'; need one of onnxruntime", "no-such-engine"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(settings, got, code):
    with pytest.raises(ModelRefused, match=f"got {got}; next: ") as caught:
        find_model("default", settings)
    assert caught.value.code == code


@pytest.mark.parametrize(("threads", "each", "at_once"), [(1, 1, 1), (2, 1, 2), (3, 1, 2), (8, 4, 2)])
def test_threads_are_shared_out_among_what_runs_at_the_same_time(threads, each, at_once):
    settings = EngineSettings(threads=threads)
    assert settings.threads_per_call == each
    models = [find_model(name, settings) for name in ("cubic", "planes-mr")]
    models.append(files.load_model(EMBEDDED / "default.onnx", settings=settings))
    assert [model.workers for model in models] == [at_once] * 3
    assert {network.workers for network in models[1].planes.values()} == {at_once}
