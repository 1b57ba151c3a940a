"""A tiny bundle for tests: random weights, yet the whole contract of `service.bundle`."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.bundle import GRAPH, MANIFEST, Bundle, sha256

PATCH = 8
DIM = 16
HEADS = 2
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def make_bundle(folder: Path, name: str = "tiny", seed: int = 0) -> Bundle:
    """Write a bundle to `folder`: 8 px patches, 16 dimensions, 2 heads, 64 px by default.

    A convolution cuts the photograph into patches and a second one lets neighbours see each other,
    so that the outputs depend on the pixels, their order and their place.
    """
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(graph(seed), folder / GRAPH)
    manifest = {
        "name": name,
        "architecture": "convolution",
        "patch_size": PATCH,
        "dim": DIM,
        "heads": HEADS,
        "prefix_tokens": 0,
        "input": {"resize": 72, "crop": 64, "multiple": PATCH, "mean": MEAN, "std": STD},
        "attention": {"query": "mean", "layer": 0},
        "training": {"recipe": "random weights"},
        "licence": "Apache-2.0",
        "files": {GRAPH: sha256(folder / GRAPH)},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return Bundle.load(folder)


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """The graph's weights, for a computation of the same numbers without ONNX Runtime."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(0, np.prod(shape[1:]) ** -0.5, shape).astype(np.float32)

    return {
        "cut": normal(DIM, 3, PATCH, PATCH),
        "mix": normal(DIM, DIM, 3, 3),
        "query": 4 * normal(HEADS, DIM, 1, 1),
        "mean": np.array(MEAN, np.float32),
        "std": np.array(STD, np.float32),
    }


def graph(seed: int = 0) -> onnx.ModelProto:
    """Images -> normalised -> patches -> attention, and the mean patch as embedding."""
    constants = weights(seed) | {
        "white": np.float32(255),
        "flat": np.array([0, HEADS, -1], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["bytes"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["bytes", "white"], ["unit"]),
        helper.make_node("Sub", ["unit", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["channels"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["channels", "cut"], ["cells"], strides=[PATCH, PATCH]),
        helper.make_node("Tanh", ["cells"], ["tokens"]),
        helper.make_node("Conv", ["tokens", "mix"], ["mixed"], pads=[1, 1, 1, 1]),
        helper.make_node("Transpose", ["mixed"], ["patches"], perm=[0, 2, 3, 1]),
        helper.make_node("ReduceMean", ["patches"], ["embedding"], axes=[1, 2], keepdims=0),
        helper.make_node("Conv", ["mixed", "query"], ["logits"]),
        helper.make_node("Reshape", ["logits", "flat"], ["rows"]),
        helper.make_node("Softmax", ["rows"], ["weights"], axis=-1),
        helper.make_node("Shape", ["logits"], ["shape"]),
        helper.make_node("Reshape", ["weights", "shape"], ["attention"]),
    ]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "tiny",
            [
                helper.make_tensor_value_info(
                    "images", TensorProto.UINT8, ["batch", "height", "width", 3]
                )
            ],
            [
                _output("embedding", ["batch", DIM]),
                _output("patches", ["batch", "rows", "columns", DIM]),
                _output("attention", ["batch", HEADS, "rows", "columns"]),
            ],
            [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=10,
    )


def _output(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
