"""What runs a model in Triton servers."""

from __future__ import annotations

import asyncio
import logging

from service.bundle import Bundle
from service.engines.base import Images, Outputs, ServerStatistics
from service.engines.triton.memory import Regions, sweep
from service.engines.triton.servers import Servers
from service.engines.triton.tls import Tls

logger = logging.getLogger(__name__)

# While an instance runs one batch, the next is on its way to it.
RUNS_AN_INSTANCE = 2
MOST_REGIONS = 16
# Assumed of servers that are not there: what `foveal-train export --triton` gives a GPU.
EXPORTED_BATCH = 64


class TritonEngine:
    """Runs a bundle's graph in Triton servers that have it under the manifest's name.

    A server is used if the `digest` among the parameters of its model's configuration is the
    bundle's; the graph beside the manifest is not loaded here.

    Args:
        bundle: The model.
        urls: Host and port of each server's gRPC service.
        shared_memory: Whether pixels reach the servers through memory that they share with this
            process.
        tls: How the servers and this gateway know each other; None where they speak in the clear.

    Raises:
        EngineUnavailable: A certificate or key cannot be used.
    """

    name = "triton"

    def __init__(
        self,
        bundle: Bundle,
        urls: tuple[str, ...],
        *,
        shared_memory: bool,
        tls: Tls | None = None,
    ) -> None:
        if tls:
            tls.read()  # What cannot be used is told before a server is looked for.
        self._regions = Regions(MOST_REGIONS) if shared_memory else None
        self._servers = Servers(urls, bundle, self._regions, tls)

    @property
    def precision(self) -> str:
        """What the servers say that they run at; `unknown` before one was there."""
        return self._servers.precision

    @property
    def max_batch(self) -> int:
        """The most images that every server takes."""
        return min((served.max_batch for served in self._servers.served), default=EXPORTED_BATCH)

    @property
    def slots(self) -> int:
        """As many runs as keep every instance of every server busy."""
        instances = sum(served.instances for served in self._servers.served)
        return RUNS_AN_INSTANCE * max(1, instances)

    @property
    def ready(self) -> bool:
        """Whether a server is there."""
        return bool(self._servers.served)

    async def infer(
        self,
        images: Images,
        outputs: tuple[str, ...],
        *,
        lone: bool = False,
        limit: float | None = None,
    ) -> Outputs:
        """Run images of one shape, uint8 [batch, height, width, 3], and give the named outputs.

        Raises:
            Overloaded: No server is there, or their queues are full.
            DeadlineExceeded: The answer was not there within `limit` seconds.
            InvalidOption: The servers take images of one size alone, and these have another.
            InferenceServerException: The run failed, on two servers if there are two.
        """
        return await self._servers.infer(images, outputs, limit)

    async def warm_up(self) -> None:
        """Look for the servers and run one image on each; ready as soon as one is there.

        One with another model counts as not there: it may be replaced, as this gateway replaces
        one that asks for the other model.
        """
        if self._regions:
            sweep()
        await self._servers.start()
        if not self.ready:
            logger.warning("Not ready before a Triton server has the model; looking every second")

    async def statistics(self) -> list[ServerStatistics]:
        """What each server has counted; those that do not tell within a second are not ready."""
        return list(await asyncio.gather(*(server.statistics() for server in self._servers)))

    async def close(self) -> None:
        """Let go of the servers and of the memory shared with them."""
        await self._servers.close()
        if self._regions:
            self._regions.close()
