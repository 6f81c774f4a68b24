"""A trained network -> one model file: ONNX for inference, with its card inside and beside it."""

import hashlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from thinslice.errors import ModelRefused
from thinslice.io.atomic import whole_or_not
from thinslice.models.engine import CARD_KEY
from thinslice.models.files import CONTRACT, run_once
from thinslice.networks.contract import Network, SlabNetwork
from thinslice.networks.planes import PlaneNet


@dataclass(frozen=True)
class _Exported:
    """A network as a file will hold it: what runs, what its card says, inputs to trace it with, sizes that vary."""

    module: nn.Module
    facts: dict[str, Any]
    inputs: dict[str, torch.Tensor]
    moving: dict[str, dict[int, str]]
    output: str


def export(network: Network, card: dict[str, Any], path: Path) -> str:
    """Writes ``path`` (.onnx) and the card beside it (.json); returns the sha256 of the model file.

    Args:
        network: a `SlabNetwork` or a `PlaneNet`.
        card: provenance and envelope; what inference needs is added here.

    Raises:
        RuntimeError: the exported file does not compute what the network computes (1e-4 of the intensity range).
    """
    import onnx

    network.cpu().eval().float()
    assert isinstance(network, SlabNetwork | PlaneNet)
    exported = _slab_export(network) if isinstance(network, SlabNetwork) else _plane_export(network)
    card = card | {"base": "cubic"} | exported.facts
    card |= {"contract": CONTRACT, "parameters": sum(p.numel() for p in network.parameters())}
    with whole_or_not(path) as temporary:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                exported.module,
                tuple(exported.inputs.values()),
                str(temporary),
                # The newer exporter does not ask a function for its `symbolic`, see `networks.slab`.
                dynamo=False,
                opset_version=17,
                input_names=list(exported.inputs),
                output_names=[exported.output],
                dynamic_axes=exported.moving,
            )
        model = onnx.load(temporary)
        traced = {entry.name for entry in model.graph.input}
        for name in exported.inputs.keys() - traced:  # what a network has no use for, but is given all the same
            model.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        onnx.helper.set_model_props(model, {CARD_KEY: json.dumps(card)})
        onnx.save(model, temporary)
        # Before it has its name: a file that computes something else is never found under it.
        _compare(exported, temporary)
        digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
    # The digest stands beside the file alone, as no file can hold its own.
    path.with_suffix(".json").write_text(json.dumps(card | {"sha256": digest}, indent=2) + "\n")
    return digest


def _slab_export(network: SlabNetwork) -> _Exported:
    inputs = {
        "slices": torch.randn(1, 2 * network.context + 1, 32, 48),
        "geometry": torch.randn(network.n_geometry),
        "position": torch.randn(3, network.n_position),
    }
    facts = {"context": network.context, "multiple": network.multiple, "reach": network.reach}
    moving = {"slices": {0: "n", 2: "h", 3: "w"}, "position": {0: "p"}, "residual": {0: "n", 1: "p"}}
    return _Exported(network, facts | {"multiply_adds": multiply_adds(network)}, inputs, moving, "residual")


def _plane_export(network: PlaneNet) -> _Exported:
    # Sides that differ: were lines and columns mixed up on the way, `_compare` would see it.
    a, b = network.scale
    inputs = {"planes": torch.rand(2, 1, 24, 20), "base": torch.rand(2, 1, 24 * a, 20 * b)}
    facts = {"scale": list(network.scale), "reach": list(network.reach)}
    moving = {"planes": {0: "n", 2: "h", 3: "w"}, "base": {0: "n", 2: "ah", 3: "bw"}, "answer": {0: "n"}}
    return _Exported(network, facts, inputs, moving, "answer")


def read_card(path: Path) -> dict[str, Any]:
    """Returns the card inside a model file, of whatever version; empty where there is none.

    Raises:
        ModelRefused: the file is no model.
    """
    held = {entry.key: entry.value for entry in _read(path).metadata_props}
    card: dict[str, Any] = json.loads(held.get(CARD_KEY, "{}"))
    return card


def _read(path: Path) -> Any:
    import onnx

    try:
        return onnx.load(path)
    except Exception as error:  # protobuf raises its own classes
        raise ModelRefused(
            got=f"{path}, which cannot be read as a model file",
            need="an .onnx file written by 'thinslice train'",
            next="check the path",
            code="not-a-model-file",
        ) from error


def load_weights(network: Network, path: Path) -> None:
    """Fills a network with the weights of a model file that `export` wrote, to train on from there.

    A network that has grown since computes at first what the file does, see `Network.grown`.

    Raises:
        ModelRefused: the file is not a model of this network.
    """
    import onnx

    graph = _read(path).graph
    stored = {weight.name: onnx.numpy_helper.to_array(weight) for weight in graph.initializer}
    for node in graph.node:  # equal weights are stored once
        if node.op_type == "Identity" and node.input[0] in stored:
            stored[node.output[0]] = stored[node.input[0]]
    wanted = network.state_dict()
    stored = network.grown(set(stored)) | stored
    missing = [name for name, weight in wanted.items() if getattr(stored.get(name), "shape", None) != weight.shape]
    beyond = [name for name in stored if name.endswith((".weight", ".bias")) and name not in wanted]
    if missing or beyond:
        differences = f"{len(missing)} of {len(wanted)} differ, {len(beyond)} are of something it does not have"
        raise ModelRefused(
            got=f"{path}, whose weights do not fit this network ({differences})",
            need="a model of the same recipe",
            next="check the path",
            code="weights-of-another-network",
        )
    network.load_state_dict({name: torch.from_numpy(stored[name].copy()) for name in wanted})


def multiply_adds(network: SlabNetwork) -> dict[str, int]:
    """Returns the multiply-adds of the convolutions, per pixel of an acquired slice and per voxel of the answer."""
    size = 64
    counts = {"trunk": 0, "read_out": 0}
    part = "trunk"

    class Count(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            if function in (F.conv2d, torch.conv2d):
                counts[part] += out.numel() * args[1][0].numel()
            elif function in (F.conv_transpose2d, torch.conv_transpose2d):
                counts[part] += args[0].numel() * args[1][0].numel()
            return out

    geometry, position = torch.zeros(network.n_geometry), torch.zeros(1, network.n_position)
    with torch.no_grad(), Count():
        features = network.trunk(torch.zeros(1, 2 * network.context + 1, size, size), geometry)
        part = "read_out"
        network.read_out(features, geometry, position)
    read_out = 2 * counts["read_out"]  # of both slices around a thin voxel
    return {"per_acquired_pixel": counts["trunk"] // size**2, "per_thin_voxel": read_out // size**2}


def _compare(exported: _Exported, path: Path) -> None:
    with torch.no_grad():
        wanted = exported.module(*exported.inputs.values()).numpy()
    got = run_once(path, {name: value.numpy() for name, value in exported.inputs.items()})
    difference = float(np.abs(wanted - got).max())
    if difference > 1e-4:
        raise RuntimeError(f"the exported model differs from the network by {difference:g}; it was not written")
