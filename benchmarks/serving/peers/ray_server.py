"""Ray Serve: as many replicas as cores, raw bodies from Starlette's request."""

# ruff: noqa: D101, D102 - the methods are Ray Serve's and the names say what they do
import time

import ray
from ray import serve
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from benchmarks.serving.peers.model import BATCH, PORT, WORKERS, Model, Undecodable


@serve.deployment(
    num_replicas=WORKERS, ray_actor_options={"num_cpus": 1}, max_ongoing_requests=max(2 * BATCH, 4)
)
class Embed:
    def __init__(self) -> None:
        self.model = Model()

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.005 if BATCH > 1 else 0)
    async def run(self, pixels):
        return await run_in_threadpool(self.model.run, pixels)

    async def __call__(self, request: Request) -> Response:
        try:
            pixels = await run_in_threadpool(self.model.decode, await request.body())
        except Undecodable as error:
            return PlainTextResponse(str(error), 400)
        return Response(await self.run(pixels), media_type="application/octet-stream")


if __name__ == "__main__":
    ray.init(num_cpus=WORKERS, include_dashboard=False, _node_ip_address="127.0.0.1")
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(Embed.bind(), route_prefix="/embed")
    while True:
        time.sleep(3600)
