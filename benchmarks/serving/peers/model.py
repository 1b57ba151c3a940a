"""What every peer serves: the gateway's own preprocessing and the same graph, one thread a run."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnxruntime as ort

from service.bundle import Bundle
from service.images import Limits, View, prepare

PORT = int(os.environ.get("BENCH_PORT", "0"))
WORKERS = int(os.environ.get("BENCH_WORKERS", "2"))
BATCH = int(os.environ.get("BENCH_BATCH", "1"))
LIMITS = Limits(bytes=2**24, pixels=2**24, patches=2**12)


class Model:
    """Decoding and the graph; it notes how many images it computed."""

    def __init__(self, threads: int = 1) -> None:
        bundle = Bundle.load(Path(os.environ["BENCH_BUNDLE"]))
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._input = bundle.manifest.input
        self._session = ort.InferenceSession(
            str(bundle.graph), options, providers=["CPUExecutionProvider"]
        )
        # Appended to by all the processes of a server: its length is the number of images.
        self._count = os.open(os.environ["BENCH_COUNTER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def decode(self, data: bytes) -> np.ndarray:
        """Encoded bytes -> uint8 [height, width, 3]."""
        return prepare(data, self._input, View(), LIMITS)

    def run(self, pixels: list[np.ndarray]) -> list[bytes]:
        """Images -> their embeddings as raw float32."""
        (embeddings,) = self._session.run(["embedding"], {"images": np.stack(pixels)})
        os.write(self._count, b"." * len(pixels))
        return [embedding.tobytes() for embedding in embeddings]
