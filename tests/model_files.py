"""Model files that no training has made."""

import json

import onnx
from onnx import TensorProto, helper

from thinslice.models.engine import CARD_KEY
from thinslice.models.registry import EMBEDDED


def save_network(path, card, inputs):
    """A network that gives back the first of its inputs, as a model file with any card."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (*sorted(inputs), "residual")]
    graph = helper.make_graph(
        [helper.make_node("Identity", [values[0].name], ["residual"])], "g", values[:-1], values[-1:]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if card is not None:
        helper.set_model_props(model, {CARD_KEY: json.dumps(card)})
    onnx.save(model, path)
    return path


def with_card(path, **facts):
    """The embedded network with other facts on its card, as a model file."""
    network = onnx.load(EMBEDDED / "default.onnx")
    (entry,) = [entry for entry in network.metadata_props if entry.key == CARD_KEY]
    entry.value = json.dumps(json.loads(entry.value) | facts)
    onnx.save(network, path)
    return path


def save_endless(path):
    """A network of the embedded one's kind, with its card, whose graph goes round for ever."""
    network = onnx.load(EMBEDDED / "default.onnx")
    known = {entry.key: entry.value for entry in network.metadata_props}

    def value(name, kind=TensorProto.FLOAT, shape=None):
        return helper.make_tensor_value_info(name, kind, shape)

    going_on, turned = value("on", TensorProto.BOOL, []), value("still on", TensorProto.BOOL, [])
    nodes = [helper.make_node("Identity", ["on"], ["still on"]), helper.make_node("Sin", ["x"], ["y"])]
    body = helper.make_graph(
        nodes, "round", [value("count", TensorProto.INT64, []), going_on, value("x")], [turned, value("y")]
    )
    loop = helper.make_node("Loop", ["", "true", "slices"], ["residual"], body=body)
    yes = helper.make_tensor("true", TensorProto.BOOL, [], [True])
    inputs = [value(entry.name) for entry in network.graph.input]
    graph = helper.make_graph([loop], "g", inputs, [value("residual")], [yes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, known)
    onnx.save(model, path)
    return path
