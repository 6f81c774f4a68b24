"""The door to the inference engine, and the embedded model behind it."""

import dataclasses
import hashlib
import itertools
import json
import os
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from onnxruntime.capi import onnxruntime_pybind11_state as library

from faults import catches
from model_files import save_network, with_card
from planning import plan_for
from test_cli import make_scan
from test_upsample import flipped, same, turned
from thinslice.cli.enhance import SAMPLE
from thinslice.compute.upsample import upsample
from thinslice.errors import ModelRefused
from thinslice.evaluation.benchmark import simulate
from thinslice.evaluation.metrics import data_range, foreground, psnr
from thinslice.io.nifti import read
from thinslice.models import files, slab_network
from thinslice.models.engine import CARD_KEY, EngineSettings, make_engine
from thinslice.models.files import load_model
from thinslice.models.registry import EMBEDDED, find_model
from thinslice.models.slab_network import INPUTS, SlabModel
from thinslice.pipeline import enhance_volume
from thinslice.settings import Settings
from thinslice.volume import Volume, through_plane_axis


def scan(shape=(40, 52, 6)):
    """Structured noise in 0 .. 1, slices 4 mm apart."""
    voxels = np.cumsum(np.random.default_rng(0).normal(size=shape), axis=0).astype(np.float32)
    return Volume((voxels - voxels.min()) / np.ptp(voxels), np.diag([1.0, 1.0, 4.0, 1.0]))


def enhanced(volume):
    model = find_model("default")
    plan = plan_for(volume, model=model.name, envelope=model.envelope)
    return upsample(volume, plan, model).volume


OURS = json.loads((EMBEDDED / "default.json").read_text())
"""A card of this version."""


def refusal(path):
    """The code of the one line with which a file is refused; its cause is kept."""
    with pytest.raises(
        ModelRefused, match=rf"^{path}: got .* is not a thinslice model of this version.*next: "
    ) as caught:
        load_model(path)
    return caught.value.code


@pytest.mark.parametrize(
    ("card", "code"),
    [
        (None, "no-card"),
        ([1], "no-card"),
        ({}, "other-contract"),
        ({"envelope": 3}, "other-contract"),
        (OURS | {"contract": 1}, "other-contract"),
        (OURS | {"contract": None}, "other-contract"),
        (OURS | {"base": "magic"}, "foreign-card"),
        (OURS | {"envelope": 3}, "foreign-card"),
        ({key: value for key, value in OURS.items() if key != "reach"}, "foreign-card"),
    ],
)
@catches("models/files.py", 'if session.card.get("contract") != CONTRACT:', "if False:")
def test_a_card_that_is_not_ours_is_refused(tmp_path, card, code):
    assert refusal(save_network(tmp_path / "foreign.onnx", card, INPUTS)) == code
    load_model(save_network(tmp_path / "same.onnx", OURS, INPUTS))


def test_a_card_that_is_no_json_is_refused(tmp_path):
    network = onnx.load(save_network(tmp_path / "foreign.onnx", None, INPUTS))
    helper.set_model_props(network, {CARD_KEY: "{"})
    onnx.save(network, tmp_path / "foreign.onnx")
    assert refusal(tmp_path / "foreign.onnx") == "no-card"


def test_inputs_that_are_not_ours_are_refused(tmp_path):
    assert refusal(save_network(tmp_path / "foreign.onnx", OURS, {"image"})) == "unknown-kind-of-model"


def of_another_version(path):
    """A network of a version of ONNX that is still to come."""
    network = onnx.load(save_network(path, OURS, INPUTS))
    network.opset_import[0].version = 999
    onnx.save(network, path)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no network"),
        lambda path: path.write_bytes((EMBEDDED / "default.onnx").read_bytes()[:1000]),
        lambda path: path.write_bytes((EMBEDDED / "default.onnx").read_bytes()[:-1000]),
        of_another_version,
    ],
)
def test_a_file_that_holds_no_network_is_refused(tmp_path, make):
    make(tmp_path / "cut.onnx")
    assert refusal(tmp_path / "cut.onnx") == "unreadable-network"


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "gone.onnx"):
        with pytest.raises(ModelRefused, match="which cannot be read") as caught:
            load_model(path)
        assert caught.value.code == "unreadable-model-file"
        assert isinstance(caught.value.__cause__, OSError)


# What is wrong with the engine, or with us, is not told of the file


def test_a_missing_library_is_told_as_one(run, tmp_path, monkeypatch):
    scan_file = make_scan(tmp_path / "scan.nii.gz")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelRefused) as caught:
        find_model("default")
    assert caught.value.code == "engine-missing"
    assert isinstance(caught.value.__cause__.__cause__, ImportError)
    code, _, (line,) = run("enhance", "-i", scan_file, "-o", tmp_path / "thin.nii.gz")
    assert code == 2
    assert "got no onnxruntime that can be loaded" in line
    assert "pip install onnxruntime" in line
    assert "--model cubic" in line
    assert run("enhance", "-i", scan_file, "-o", tmp_path / "thin.nii.gz", "--model", "cubic")[0] == 0


class Failing:
    """A session of the library that fails when it is run."""

    def __init__(self, error):
        self.error = error

    def get_inputs(self):
        return [SimpleNamespace(name=name) for name in INPUTS]

    def get_modelmeta(self):
        return SimpleNamespace(custom_metadata_map={CARD_KEY: json.dumps(OURS)})

    def run(self, names, feed, options):
        raise self.error


FAILURES = [
    (library.RuntimeException("[ONNXRuntimeError] : bad allocation"), MemoryError, None),
    (library.Fail("Failed to allocate memory for requested buffer of size 8"), MemoryError, None),
    (RuntimeError("std::bad_alloc"), MemoryError, None),
    (library.RuntimeException("[ONNXRuntimeError] : 6 : a thread could not be started"), ModelRefused, "engine-failed"),
    (library.EPFail("the processor has no such instruction"), ModelRefused, "engine-failed"),
    (RuntimeError("unknown exception"), ModelRefused, "engine-failed"),
    (MemoryError("too large"), MemoryError, None),
    (AssertionError("an error of ours"), AssertionError, None),
    (TypeError("another"), TypeError, None),
    (KeyError("name"), KeyError, None),
]
"""(what the library raises, what it is told as, with which code)."""


@pytest.mark.parametrize("when", ["opened", "run"])
@pytest.mark.parametrize(("error", "kind", "code"), FAILURES, ids=lambda value: repr(value)[:40])
def test_a_failure_is_told_as_what_it_is_and_never_of_the_file(monkeypatch, when, error, kind, code):
    def open_session(*words, **more):
        if when == "opened":
            raise error
        return Failing(error)

    monkeypatch.setattr(onnxruntime, "InferenceSession", open_session)
    with pytest.raises(kind) as caught:
        load_model(EMBEDDED / "default.onnx").residual(
            np.zeros((3, 8, 8), np.float32), np.zeros(3, np.float32), np.zeros((2, 7), np.float32)
        )
    assert type(caught.value) is kind
    assert getattr(caught.value, "code", None) == code
    assert "not a thinslice model" not in str(caught.value)
    chain, cause = [], caught.value
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__
    assert error in chain


def test_an_assertion_in_a_kind_of_model_is_not_told_of_the_file(monkeypatch):
    def fail(session, name, sha256):
        raise AssertionError("an error of ours")

    monkeypatch.setitem(files.KINDS, INPUTS, fail)
    with pytest.raises(AssertionError, match="an error of ours"):
        load_model(EMBEDDED / "default.onnx")


def test_it_does_not_need_what_only_linux_has(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert isinstance(find_model("default"), SlabModel)


@pytest.mark.parametrize("path", sorted(EMBEDDED.glob("*.onnx")), ids=lambda path: path.stem)
def test_the_card_beside_an_embedded_model_is_its_own(path):
    model, card = load_model(path), json.loads(path.with_suffix(".json").read_text())
    content = path.read_bytes()
    assert card["sha256"] == model.sha256 == hashlib.sha256(content).hexdigest()
    assert model.card is not None
    assert {key: card[key] for key in model.card} == model.card
    assert card["data"]
    assert all(row["licence"] for row in card["data"])


def test_the_embedded_network_tiled_equals_whole(monkeypatch):
    volume = scan((150, 90, 3))
    whole = enhanced(volume)
    monkeypatch.setattr(slab_network, "TILE_LIMIT", 80)
    same(enhanced(volume), whole, 1e-5)


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_axes_are_only_names_to_the_embedded_network(order):
    volume = scan()
    same(enhanced(turned(volume, order)), turned(enhanced(volume), order))


@pytest.mark.parametrize("axis", range(3))
def test_directions_are_only_signs_to_the_embedded_network(axis):
    volume = scan()
    same(enhanced(flipped(volume, axis)), flipped(enhanced(volume), axis))


@catches("models/slab_network.py", "+= shares[low - first : high - first]", "+= 2 * shares[low - first : high - first]")
def test_the_embedded_weights_beat_projected_cubic_on_a_scan_they_never_saw():
    """In-plane detail of the bundled spine, made thick at x4: weights of another contract, or none, would not."""
    thick = read(SAMPLE)
    axis = through_plane_axis(thick)
    middle = np.moveaxis(thick.voxels, axis, 0)[thick.shape[axis] // 2 - 4 :][:8, :96, :96].astype(np.float32)
    truth, acquired = simulate(Volume(np.ascontiguousarray(middle), np.eye(4)), 1, 4)
    scores = []
    for name in ("cubic", "default"):
        model = find_model(name)
        plan = plan_for(acquired, factor=4, model=model.name, envelope=model.envelope)
        answer = upsample(acquired, plan, model)
        assert answer.guard.share < 0.01
        scores.append(psnr(answer.volume.voxels, truth.voxels, data_range(truth.voxels), foreground(truth.voxels)))
    assert scores[1] > scores[0], scores  # measured: +0.02 dB; its pixels are finer than what was acquired


@catches("models/engine.py", "(RuntimeError, UnicodeDecodeError, *kinds)", "(RuntimeError, *kinds)")
def test_a_network_whose_names_are_no_text_is_refused(tmp_path, capfd):
    """The library cannot even tell what is wrong: its own message is no text either."""
    content = (EMBEDDED / "default.onnx").read_bytes()
    refused = 0
    for at in range(60, 300, 7):
        damaged = content[:at] + b"\xb1" + content[at + 1 :]
        try:
            make_engine(EngineSettings(threads=1)).open(damaged)
        except ModelRefused as refusal:
            refused += refusal.code == "unreadable-network"
    assert refused > 10
    assert capfd.readouterr() == ("", "")


@catches(
    "models/slab_network.py",
    'with np.errstate(invalid="ignore", over="ignore"):\n                    total',
    "if True:\n                    total",
)
@pytest.mark.parametrize("fuse", [False, True])
def test_a_network_with_infinite_numbers_is_taken_back_without_a_word(tmp_path, fuse):
    """Shares of neighbouring slabs may be infinite with both signs; a warning would be a line on the terminal."""
    volume = read(make_scan(tmp_path / "scan.nii.gz", shape=(16, 16, 5)))
    signs = itertools.cycle([np.inf, -np.inf, np.inf])

    def residual(slices, geometry, position):
        return np.full((len(position), *slices.shape[1:]), next(signs), np.float32)

    model = dataclasses.replace(find_model("default"), residual=residual)
    done = enhance_volume(volume, Settings(fuse=fuse), model)
    assert np.isfinite(done.array).all()
    assert done.report.guard.suspect == done.report.guard.cells


@catches("models/envelope.py", "or not least <= count <= MOST_PIXELS", "")
@pytest.mark.parametrize("name", ["multiple", "reach", "context"])
@pytest.mark.parametrize("value", [None, True, -1, 1e400, "3", [], {}, 2**70, 1.5])
def test_a_card_that_says_anything_is_refused_when_it_is_read(tmp_path, name, value):
    model = with_card(tmp_path / "model.onnx", **{name: value})
    with pytest.raises(ModelRefused) as refusal:
        load_model(model)
    assert refusal.value.code == "foreign-card"


@pytest.mark.parametrize("factor", [None, [1], ["1", "8"], [8, 1], [{}, 2], [float("nan"), 2]])
def test_an_envelope_that_is_no_range_is_refused_when_it_is_read(tmp_path, factor):
    card = load_model(EMBEDDED / "default.onnx").card
    with pytest.raises(ModelRefused) as refusal:
        load_model(with_card(tmp_path / "model.onnx", envelope=card["envelope"] | {"factor": factor}))
    assert refusal.value.code == "foreign-card"
