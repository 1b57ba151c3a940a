"""The Triton servers behind an engine: found by name, and each run goes to the idlest."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator

from service.bundle import Bundle
from service.engines.base import EngineUnavailable, Images, Outputs
from service.engines.triton.client import Client, Served
from service.engines.triton.connection import Connection
from service.engines.triton.memory import Regions
from service.engines.triton.server import Server
from service.engines.triton.tls import Tls
from service.errors import DeadlineExceeded, InvalidOption, Overloaded

logger = logging.getLogger(__name__)

FIND_PAUSE = 5.0  # seconds; as long as a cluster's names are commonly held
START_LIMIT = 10.0


class Servers:
    """Balances over every address that the given names lead to.

    A name may lead to several addresses, and to others later: a headless Service of Kubernetes
    names the pods that are ready. A connection to a balancer before them would stay with one pod.

    Args:
        urls: Host and port of each gRPC service.
        bundle: The model.
        regions: Memory that is shared with all of them; None where it is not.
        tls: How they and this gateway know each other; None where they speak in the clear.

    Attributes:
        precision: Of the matrix products of all servers that are there, or were there last.
    """

    def __init__(
        self, urls: tuple[str, ...], bundle: Bundle, regions: Regions | None, tls: Tls | None
    ) -> None:
        self.precision = "unknown"
        self._urls = urls
        self._bundle = bundle
        self._regions = regions
        self._tls = tls
        self._servers: dict[tuple[str, str], Server] = {}  # by address, and name that leads there
        self._finding: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Iterator[Server]:
        return iter(self._servers.values())

    @property
    def served(self) -> list[Served]:
        """What each server says of the model that is to be sent images."""
        return [served for server in self if (served := server.served)]

    async def start(self) -> None:
        """Find the servers, and return when each was looked at or does not answer."""
        await self._find()
        looks = [asyncio.create_task(server.looked.wait()) for server in self]
        if looks:
            await asyncio.wait(looks, timeout=START_LIMIT)
        for look in looks:
            look.cancel()
        self._finding = asyncio.create_task(self._keep_finding())

    async def infer(
        self,
        images: Images,
        outputs: tuple[str, ...],
        limit: float | None,
    ) -> Outputs:
        """Run images on the idlest server and, if it fails, once more on another.

        Raises:
            Overloaded: No server is there, or the queues are full.
            DeadlineExceeded: The answer was not there within `limit` seconds.
            InvalidOption: The servers take images of one size alone, and these have another.
            InferenceServerException: The run failed, on two servers if there are two.
        """
        started = asyncio.get_running_loop().time()
        first = self._idlest()
        if first is None:
            raise Overloaded("No model server is there; try again.", retry_after=1)
        try:
            return await first.infer(images, outputs, limit)
        except (DeadlineExceeded, InvalidOption):
            raise
        except Exception as error:
            second = self._idlest(first)
            if second is None:
                raise
            if limit is not None:
                limit -= asyncio.get_running_loop().time() - started
                if limit <= 0:
                    raise
            answer = await second.infer(images, outputs, limit)
            first.disproved(error)
            return answer

    async def close(self) -> None:
        """Let go of all servers."""
        if self._finding:
            self._finding.cancel()
        await asyncio.gather(*self._leaving, *(server.close() for server in self))
        self._servers.clear()

    def _agree(self, served: Served) -> None:
        if any(other.precision != served.precision for other in self.served):
            raise EngineUnavailable(
                f"it runs at {served.precision}, and others at {self.precision}: the numbers of an "
                "image would depend on where it is sent"
            )
        self.precision = served.precision

    def _idlest(self, tried: Server | None = None) -> Server | None:
        there = [server for server in self if server.served and server is not tried]
        return min(there, key=lambda server: (server.in_flight, server.runs), default=None)

    async def _keep_finding(self) -> None:
        while True:
            await asyncio.sleep(FIND_PAUSE)
            await self._find()

    async def _find(self) -> None:
        found: dict[str, str] = {}
        for url in self._urls:
            for address in await _addresses(url):
                found.setdefault(address, _host(url))
        for address, host in found.items():
            if (address, host) in self._servers:
                continue
            connection = Connection(address, host, self._tls)
            client = Client(connection, self._bundle, self._regions)
            self._servers[address, host] = Server(client, self._agree)
        # Where no name leads anywhere, those known stay: it may be the names that fail.
        for gone in self._servers.keys() - found.items() if found else ():
            leaving = asyncio.create_task(self._servers.pop(gone).leave())
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)


def _host(url: str) -> str:
    return url.rpartition(":")[0].strip("[]")


async def _addresses(url: str) -> list[str]:
    host, port = _host(url), int(url.rpartition(":")[2])
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        logger.warning("triton_urls: %s leads nowhere: %s", host, error.strerror)
        return []
    # A name of both kinds, such as localhost, is one server twice.
    old = [address[0] for family, *_, address in found if family == socket.AF_INET]
    return [f"{address}:{port}" for address in old or [f"[{a[0]!s}]" for *_, a in found]]
