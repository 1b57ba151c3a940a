"""Triton by pytriton: it decodes in its inference function, which runs once a worker."""

import os

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.serving.peers.model import BATCH, PORT, WORKERS, Model


def embedder():
    model = Model()

    @batch
    def embed(jpeg: np.ndarray) -> list[np.ndarray]:
        pixels = [model.decode(data) for (data,) in jpeg]
        found = np.frombuffer(b"".join(model.run(pixels)), np.float32)
        return [found.reshape(len(pixels), -1)]

    return embed


if __name__ == "__main__":
    config = TritonConfig(
        http_address="127.0.0.1", http_port=PORT, allow_grpc=False, allow_metrics=False
    )
    with Triton(config=config, workspace=os.environ["BENCH_FOLDER"] + "/triton") as triton:
        triton.bind(
            model_name="embed",
            infer_func=[embedder() for _ in range(WORKERS)],
            inputs=[Tensor(name="jpeg", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="embedding", dtype=np.float32, shape=(-1,))],
            config=ModelConfig(
                batching=True,
                max_batch_size=BATCH,
                batcher=DynamicBatcher(max_queue_delay_microseconds=0),
            ),
        )
        triton.serve()
