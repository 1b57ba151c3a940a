"""Foveal's gateway: embeddings, attention maps and nearest neighbours over HTTP."""

import os

__version__ = "0.1.0"

# ONNX Runtime reports to its makers over the network unless it is told otherwise before it loads.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
