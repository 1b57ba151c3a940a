"""Triton without a gateway: fitted images by gRPC, the next when the last is answered.

python -m benchmarks.serving.direct URL MODEL IMAGES SIDE BATCH CONNECTIONS SECONDS
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient

from benchmarks.serving.load import RAMP, read


def measure(
    url: str, name: str, images: Path, side: int, batch: int, connections: int, seconds: float
) -> float:
    """Images a second, asked by a process of its own, as the gateway is.

    Args:
        url: Host and port of Triton's gRPC service.
        name: Of the model.
        images: Folder of files of uint8 [side, side, 3].
        side: In pixels.
        batch: Images of a request.
        connections: Requests in flight.
        seconds: How long to count.
    """
    arguments = map(str, (url, name, images, side, batch, connections, seconds))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serving.direct", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    return float(done.stdout)


async def drive(
    url: str, name: str, pixels: np.ndarray, batch: int, connections: int, seconds: float
) -> float:
    """Images a second, after a ramp that does not count."""
    since = time.perf_counter() + RAMP
    until = since + seconds
    turns, done = count(), 0

    async def connection(client: InferenceServerClient) -> None:
        nonlocal done
        while time.perf_counter() < until:
            chosen = np.arange(batch) + batch * next(turns)
            images = pixels[chosen % len(pixels)]
            tensor = InferInput("images", images.shape, "UINT8")
            tensor.set_data_from_numpy(images)
            answer = await client.infer(name, [tensor], outputs=[InferRequestedOutput("embedding")])
            assert len(answer.as_numpy("embedding")) == batch
            done += batch * (since <= time.perf_counter() < until)

    async with InferenceServerClient(url) as client:
        await asyncio.gather(*(connection(client) for _ in range(connections)))
    return done / seconds


def main() -> None:
    url, name, folder, side, batch, connections, seconds = sys.argv[1:]
    files = read(Path(folder))
    pixels = np.frombuffer(b"".join(files), np.uint8).reshape(-1, int(side), int(side), 3)
    print(asyncio.run(drive(url, name, pixels, int(batch), int(connections), float(seconds))))


if __name__ == "__main__":
    main()
