"""Connections that stall because their client does not read its answer.

The server keeps an answer until the client takes it, and neither uvicorn nor a transport that is
closing has an end to that. Here a client that takes nothing for so long is given up.

What counts is what the client's side acknowledged, and not only what this kernel took from us: of
the megabytes that it buffers, a third must be free before it takes more, which a slow line needs
long for. `TCP_USER_TIMEOUT` is no way either: it ends clients that do read, but so slowly that
their window opens only now and then.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Iterable
from typing import Protocol

from service.telemetry import metrics

LOOKS = 10  # of a timeout: how exactly it is kept
ACKNOWLEDGED = slice(120, 128)  # tcpi_bytes_acked of Linux' struct tcp_info
RESET = struct.pack("ii", 1, 0)  # struct linger: on close, drop what is unsent


class Connection(Protocol):
    """What is served: a protocol on its transport."""

    transport: asyncio.Transport


async def reset_stalled(connections: Iterable[Connection], seconds: float) -> None:
    """Reset, for as long as this runs, each connection that is stuck for `seconds`.

    A connection is stuck while bytes wait for its client and the client acknowledges none. However
    little it takes in this time, it is not given up.

    Args:
        connections: All there are at any time.
        seconds: Kept to a tenth.
    """
    clock = asyncio.get_running_loop().time
    stuck: dict[Connection, tuple[tuple[int, int], float]] = {}  # what was left, and since when
    while True:
        await asyncio.sleep(seconds / LOOKS)
        before, stuck, now = stuck, {}, clock()
        for connection in connections:
            # No bytes wait here for nearly all: of those the kernel need not be asked.
            if not connection.transport.get_write_buffer_size():
                continue
            left = _left(connection.transport)
            known, since = before.get(connection, (left, now))
            if left != known:
                since = now
            if now - since >= seconds:
                _reset(connection.transport)
            else:
                stuck[connection] = left, since


def _left(transport: asyncio.Transport) -> tuple[int, int]:
    """What changes when the client takes something: bytes acknowledged, and bytes that wait here.

    Systems other than Linux, and sandboxes that pose as one, do not tell of the first.
    """
    waiting = transport.get_write_buffer_size()
    if sys.platform != "linux":
        return 0, waiting
    information = transport.get_extra_info("socket").getsockopt(
        socket.IPPROTO_TCP, socket.TCP_INFO, ACKNOWLEDGED.stop
    )
    return int.from_bytes(information[ACKNOWLEDGED], sys.byteorder), waiting


def _reset(transport: asyncio.Transport) -> None:
    metrics.UNREAD.inc()
    # Without it the kernel would go on offering what it holds, and a client that never reads would
    # never hear that this is the end.
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    transport.abort()
