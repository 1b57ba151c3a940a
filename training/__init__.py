"""Foveal's offline half: trains, evaluates and exports self-supervised vision models."""

import os

# ONNX Runtime reports to its makers over the network unless it is told otherwise before it loads.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
