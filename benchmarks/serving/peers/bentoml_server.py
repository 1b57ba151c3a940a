"""BentoML: raw bodies by its root input; batches, if asked, in a second service that runs them."""

# ruff: noqa: D101, D102 - the methods are BentoML's and the names say what they do
import asyncio
from pathlib import Path
from typing import Annotated

import bentoml
import numpy as np
from bentoml.exceptions import InvalidArgument
from bentoml.validators import ContentType

from benchmarks.serving.peers.model import BATCH, WORKERS, Model, Undecodable

Photo = Annotated[Path, ContentType("image/jpeg")]
TRAFFIC = {"timeout": 60}


def decode(model: Model, photo: Path) -> np.ndarray:
    try:
        return model.decode(photo.read_bytes())
    except Undecodable as error:
        raise InvalidArgument(str(error)) from None


@bentoml.service(workers=WORKERS, traffic=TRAFFIC)
class Embed:
    def __init__(self) -> None:
        self.model = Model()

    @bentoml.api
    def embed(self, photo: Photo, /) -> bytes:
        return self.model.run([decode(self.model, photo)])[0]


@bentoml.service(workers=WORKERS, traffic=TRAFFIC)
class Run:
    def __init__(self) -> None:
        self.model = Model()

    @bentoml.api(batchable=True, max_batch_size=max(BATCH, 2), max_latency_ms=60_000)
    def run(self, pixels: np.ndarray) -> np.ndarray:
        found = self.model.run(list(pixels))
        return np.frombuffer(b"".join(found), np.float32).reshape(len(pixels), -1)


@bentoml.service(workers=WORKERS, traffic=TRAFFIC)
class EmbedInBatches:
    runner = bentoml.depends(Run)

    def __init__(self) -> None:
        self.model = Model()

    @bentoml.api
    async def embed(self, photo: Photo, /) -> bytes:
        pixels = await asyncio.to_thread(decode, self.model, photo)
        return (await self.runner.to_async.run(pixels[None])).tobytes()


Served = EmbedInBatches if BATCH > 1 else Embed
