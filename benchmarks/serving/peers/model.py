"""What every peer serves: the same graph, one thread a run, after DINO's own preprocessing.

The preprocessing is written with Pillow, as those who serve such a model by a peer have it. Where
BENCH_PREPROCESSING says so it is the gateway's, which tells what of a difference is the server's.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image

from service.bundle import Bundle, InputSpec
from service.errors import FovealError
from service.images import Limits, View, prepare

PORT = int(os.environ.get("BENCH_PORT", "0"))
WORKERS = int(os.environ.get("BENCH_WORKERS", "2"))
BATCH = int(os.environ.get("BENCH_BATCH", "1"))
GATEWAYS = os.environ.get("BENCH_PREPROCESSING") == "gateway"
LIMITS = Limits(bytes=2**24, pixels=2**24, patches=2**12)


class Undecodable(Exception):
    """What was sent is no image."""


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
        """Encoded bytes -> uint8 [height, width, 3].

        Raises:
            Undecodable: They are no image.
        """
        try:
            if GATEWAYS:
                return prepare(data, self._input, View(), LIMITS)
            return _fitted(Image.open(io.BytesIO(data)).convert("RGB"), self._input)
        except (FovealError, OSError) as error:
            raise Undecodable(str(error)) from error

    def run(self, pixels: list[np.ndarray]) -> list[bytes]:
        """Images -> their embeddings as raw float32."""
        (embeddings,) = self._session.run(["embedding"], {"images": np.stack(pixels)})
        os.write(self._count, b"." * len(pixels))
        return [embedding.tobytes() for embedding in embeddings]


def _fitted(image: Image.Image, spec: InputSpec) -> np.ndarray:
    """Resize and CenterCrop as torchvision has them."""
    width, height = (spec.resize * side // min(image.size) for side in image.size)
    left, top = round((width - spec.crop) / 2), round((height - spec.crop) / 2)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + spec.crop, top + spec.crop)))
