"""The door to the inference engine, and the embedded model behind it."""

import hashlib
import json
import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from faults import catches
from test_upsample import flipped, same, turned
from thinslice.cli.enhance import SAMPLE
from thinslice.compute.upsample import upsample
from thinslice.errors import ModelRefused
from thinslice.evaluation.benchmark import simulate
from thinslice.evaluation.metrics import data_range, foreground, psnr
from thinslice.io.nifti import read
from thinslice.models import slab_network
from thinslice.models.engine import CARD_KEY
from thinslice.models.files import load_model
from thinslice.models.registry import EMBEDDED, find_model
from thinslice.models.slab_network import INPUTS, SlabModel
from thinslice.plan import make_plan
from thinslice.volume import Volume, through_plane_axis


def foreign(path, card, inputs):
    """A model file that the engine can run and that is none of ours."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (*sorted(inputs), "residual")]
    graph = helper.make_graph(
        [helper.make_node("Identity", [values[0].name], ["residual"])], "g", values[:-1], values[-1:]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if card is not None:
        helper.set_model_props(model, {CARD_KEY: json.dumps(card)})
    onnx.save(model, path)
    return path


def scan(shape=(40, 52, 6)):
    """Structured noise in 0 .. 1, slices 4 mm apart."""
    voxels = np.cumsum(np.random.default_rng(0).normal(size=shape), axis=0).astype(np.float32)
    return Volume((voxels - voxels.min()) / np.ptp(voxels), np.diag([1.0, 1.0, 4.0, 1.0]))


def enhanced(volume):
    model = find_model("default")
    plan = make_plan(volume, model=model.name, envelope=model.envelope)
    return upsample(volume, plan, model).volume


@pytest.mark.parametrize("card", [None, {}, [1], {"envelope": 3}], ids=str)
def test_a_card_that_is_not_ours_is_refused(tmp_path, card):
    with pytest.raises(ModelRefused, match="is not a thinslice model"):
        load_model(foreign(tmp_path / "foreign.onnx", card, INPUTS))


@catches("models/files.py", 'if session.card.get("contract") != CONTRACT:', "if False:")
def test_a_model_of_an_earlier_contract_is_refused(tmp_path):
    card = json.loads((EMBEDDED / "default.json").read_text())
    load_model(foreign(tmp_path / "same.onnx", card, INPUTS))
    for other in (1, None):
        path = foreign(tmp_path / "earlier.onnx", card | {"contract": other}, INPUTS)
        with pytest.raises(ModelRefused, match="of this version"):
            load_model(path)


def test_inputs_that_are_not_ours_are_refused(tmp_path):
    card = json.loads((EMBEDDED / "default.json").read_text())
    with pytest.raises(ModelRefused, match="is not a thinslice model"):
        load_model(foreign(tmp_path / "foreign.onnx", card, {"image"}))


def test_a_base_that_is_no_interpolation_is_refused(tmp_path):
    card = json.loads((EMBEDDED / "default.json").read_text()) | {"base": "magic"}
    with pytest.raises(ModelRefused, match="is not a thinslice model"):
        load_model(foreign(tmp_path / "foreign.onnx", card, INPUTS))


@pytest.mark.parametrize("keep", [0, 1000, -1000])
def test_a_damaged_file_is_refused(tmp_path, keep):
    (tmp_path / "cut.onnx").write_bytes((EMBEDDED / "default.onnx").read_bytes()[:keep])
    with pytest.raises(ModelRefused, match="is not a thinslice model"):
        load_model(tmp_path / "cut.onnx")


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
        plan = make_plan(acquired, factor=4, model=model.name, envelope=model.envelope)
        answer = upsample(acquired, plan, model)
        assert answer.guard.share < 0.01
        scores.append(psnr(answer.volume.voxels, truth.voxels, data_range(truth.voxels), foreground(truth.voxels)))
    assert scores[1] > scores[0], scores  # measured: +0.02 dB; its pixels are finer than what was acquired
