"""A graph with what is constant computed."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnxruntime as ort


def folded(graph: Path | bytes) -> onnx.ModelProto:
    """Let ONNX Runtime compute what depends on no input.

    Args:
        graph: Of ONNX, as a file or as its bytes.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "folded.onnx"
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return onnx.load(path)
