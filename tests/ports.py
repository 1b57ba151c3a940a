"""Ports of the loopback, for servers that must be told theirs."""

import socket
from typing import Self


class HeldPort:
    """A port that nobody else is given before it is closed.

    A server that is told of the port may listen there all the same, if it reuses addresses.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number: int = self._socket.getsockname()[1]

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def free_port() -> int:
    """A port for a server that reuses no address: another may be given it before."""
    with HeldPort() as port:
        return port.number
