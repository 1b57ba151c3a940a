"""The network to start from: a run's checkpoint, or the weights in a bundle's graph."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from service.bundle import GRAPH, MANIFEST
from training.checkpoint import CheckpointError, load
from training.models.vit import SIZES, VisionTransformer, vit

PREFIX = "backbone."
TEACHER = "teacher.network.backbone."


def from_bundle(folder: Path) -> VisionTransformer:
    """Read a transformer's weights back out of its exported graph.

    Raises:
        CheckpointError: The bundle holds another kind of network.
    """
    card = json.loads((folder / MANIFEST).read_text())
    weights = graph_weights(onnx.load(folder / GRAPH).graph)
    return _assemble(card["architecture"], card["patch_size"], weights, folder)


def from_run(path: Path) -> VisionTransformer:
    """Read the teacher out of a checkpoint that `foveal-train run` wrote.

    Raises:
        CheckpointError: The file is damaged or holds another kind of network.
    """
    state = load(path)
    try:
        model, objective = state["recipe"]["model"], state["objective"]
    except (KeyError, TypeError):
        raise CheckpointError(f"{path} was not written by foveal-train run") from None
    weights = {
        name.removeprefix(TEACHER): weight
        for name, weight in objective.items()
        if name.startswith(TEACHER)
    }
    return _assemble(model["architecture"], model["patch_size"], weights, path)


def graph_weights(graph: onnx.GraphProto) -> dict[str, Tensor]:
    """Parameters by name, undoing what the exporter does to them.

    It transposes the weight of a linear layer and takes its name away: the bias that is added to
    the product keeps its own and gives it back. In the last block, where queries are projected
    apart, it cuts the bias in two: one of a token's width, one of keys' and values'.
    """
    arrays = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    named = {name: array for name, array in arrays.items() if name.startswith(PREFIX)}
    products = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    pieces = {}
    for node in graph.node:
        if node.op_type != "Add" or products.keys().isdisjoint(node.input):
            continue
        product, bias = sorted(node.input, key=lambda name: name not in products)
        if bias in named and products[product] in arrays:
            named[bias.removesuffix("bias") + "weight"] = arrays[products[product]].T
        elif bias in arrays and bias not in named:
            pieces[arrays[bias].size] = arrays[bias]
    for name, weight in tuple(named.items()):
        bias = name.removesuffix("weight") + "bias"
        if name.endswith("qkv.weight") and bias not in named:
            dim = weight.shape[1]
            named[bias] = np.concatenate([pieces[dim], pieces[2 * dim]])
    return {name.removeprefix(PREFIX): torch.tensor(array) for name, array in named.items()}


def _assemble(
    architecture: str, patch_size: int, weights: dict[str, Tensor], source: Path
) -> VisionTransformer:
    if architecture not in SIZES:
        raise CheckpointError(
            f"{source} holds {architecture!r}; this needs one of {', '.join(SIZES)}"
        )
    if "pos_embed" not in weights:
        raise CheckpointError(f"{source} holds no teacher; train one with the objective dino")
    grid = round((weights["pos_embed"].shape[1] - 1) ** 0.5)
    network = vit(architecture, patch_size, image_size=grid * patch_size)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{source} does not fit {architecture}: {error}") from None
    return network
