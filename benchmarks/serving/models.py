"""The models that every server is given: ViT-S/16, and one that costs next to nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.bundle import GRAPH, MANIFEST, Bundle, sha256
from tests.data import dataset

CACHE = Path(__file__).parents[2] / ".cache" / "bench"
NAMES = ("vit", "null")
FOVEAL_TRAIN = str(Path(sys.executable).with_name("foveal-train"))
MEASURED = 64  # images


def model(name: str) -> Bundle:
    """The bundle `vit` or `null`, written once."""
    folder = CACHE / name
    if not (folder / MANIFEST).exists():
        {"vit": _vit, "null": _null}[name](folder)
    return Bundle.load(folder)


def measure_precisions() -> Bundle:
    """Let `foveal-train measure` find the speed and the cosine of each precision of ViT-S/16.

    Random weights know no classes: which neighbours they find is chance at any precision, so the
    change of the k-NN accuracy is written down as none.
    """
    folder = model("vit").path
    data = dataset("imagenette128")
    command = [FOVEAL_TRAIN, "measure", folder, "--data", data, "--most", str(MEASURED)]
    subprocess.run(command, check=True)
    manifest = json.loads((folder / MANIFEST).read_text())
    for record in manifest["precisions"]:
        record["knn_change"] = 0.0
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return Bundle.load(folder)


def _vit(folder: Path) -> None:
    """ViT-S/16 at 224 px with random weights: the speed does not depend on them."""
    import torch

    from training.export.onnx import card_of, input_spec, write_bundle
    from training.models.vit import vit

    torch.manual_seed(0)
    backbone = vit("vit_small", patch_size=16).eval()
    write_bundle(
        folder,
        backbone,
        card_of(
            backbone,
            name="vits16",
            architecture="vit_small",
            spec=input_spec(backbone, 224),
            training={"weights": "random"},
            evaluation=(),
            licence="Apache-2.0",
        ),
    )


def _null(folder: Path) -> None:
    """Each colour's mean as the embedding: decoding, resizing and serving are all of the work.

    The whole picture is its one patch, which keeps the contract of `service.bundle`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(_mean_colour(), folder / GRAPH)
    manifest = {
        "name": "null",
        "architecture": "mean",
        "patch_size": 224,
        "dim": 3,
        "heads": 1,
        "prefix_tokens": 0,
        "input": {"resize": 256, "crop": 224, "multiple": 224},
        "attention": {"query": "mean", "layer": 0},
        "training": {"weights": "none"},
        "licence": "Apache-2.0",
        "files": {GRAPH: sha256(folder / GRAPH)},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))


def _mean_colour() -> onnx.ModelProto:
    """Every 32nd pixel of every 32nd row, averaged."""
    constants = {
        "first": np.array([0, 0], np.int64),
        "last": np.array([2**31, 2**31], np.int64),
        "sides": np.array([1, 2], np.int64),
        "stride": np.array([32, 32], np.int64),
        "cell": np.array([0, 1, 1, 3], np.int64),
    }
    nodes = [
        helper.make_node("Slice", ["images", "first", "last", "sides", "stride"], ["few"]),
        helper.make_node("Cast", ["few"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["embedding"], axes=[1, 2], keepdims=0),
        helper.make_node("Reshape", ["embedding", "cell"], ["patches"]),
        helper.make_node("ReduceMean", ["patches"], ["grey"], axes=[3], keepdims=1),
        helper.make_node("Transpose", ["grey"], ["attention"], perm=[0, 3, 1, 2]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "null",
        [value("images", TensorProto.UINT8, ["batch", "height", "width", 3])],
        [
            value("embedding", TensorProto.FLOAT, ["batch", 3]),
            value("patches", TensorProto.FLOAT, ["batch", "rows", "columns", 3]),
            value("attention", TensorProto.FLOAT, ["batch", 1, "rows", "columns"]),
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
