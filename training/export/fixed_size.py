"""The graph at the default size only: what TensorRT can take in.

TensorRT's parser refuses two things that a bundle's graph does so that one graph serves every size:
it works out positions from the image's shape in floating point (`Range` of floats that are no
constants, onnx-tensorrt's operators.md), and it looks at the uint8 image before it casts it
(NVIDIA/TensorRT#3985). With height and width fixed the first becomes constants; the second is a
cast in front. The numbers stay.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.bundle import Bundle
from training.export.folding import folded

CAST = "images_as_float"


def fixed_size(bundle: Bundle) -> onnx.ModelProto:
    """A bundle's graph for its default size, with any batch.

    Returns:
        The graph with the signature of `service.bundle`, height and width being numbers.
    """
    model = onnx.load(bundle.graph)
    graph = model.graph
    side = bundle.manifest.input.crop
    _fix(graph.input[0], (None, side, side, 3))
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == "images":
                node.input[place] = CAST
    _fold_shapes(graph, (None, side, side, 3))
    graph.node.insert(0, helper.make_node("Cast", ["images"], [CAST], to=TensorProto.FLOAT))
    # What the exporter noted of inner shapes holds the names of free sides.
    graph.ClearField("value_info")
    shapes = output_shapes(bundle)
    for output in graph.output:
        _fix(output, (None, *shapes[output.name]))
    known = next(opset for opset in model.opset_import if not opset.domain)
    model = folded(model.SerializeToString())
    # ONNX Runtime declares every operator set that it knows.
    model.ClearField("opset_import")
    model.opset_import.append(known)
    return model


def output_shapes(bundle: Bundle) -> dict[str, tuple[int, ...]]:
    """Of each output for one image of the default size, without the batch."""
    manifest = bundle.manifest
    cells = manifest.input.crop // manifest.patch_size
    shapes = {
        "embedding": (manifest.dim,),
        "patches": (cells, cells, manifest.dim),
        "attention": (manifest.heads, cells, cells),
    }
    return {name: shapes[name] for name in manifest.outputs}


def _fix(value: onnx.ValueInfoProto, shape: tuple[int | None, ...]) -> None:
    """Write a shape's numbers; None leaves a side as it is."""
    for dimension, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
        if size is not None:
            dimension.dim_value = size


def _fold_shapes(graph: onnx.GraphProto, shape: tuple[int | None, ...]) -> None:
    """Replace what asks for a known side of the image; ONNX Runtime folds only whole shapes."""
    for node in [node for node in graph.node if node.op_type == "Shape" and node.input[0] == CAST]:
        bounds = {attribute.name: attribute.i for attribute in node.attribute}
        sides = shape[bounds.get("start", 0) : bounds.get("end", len(shape))]
        if None not in sides:
            constant = numpy_helper.from_array(np.array(sides, np.int64), node.output[0])
            graph.initializer.append(constant)
            graph.node.remove(node)
