"""Clients that ask without a pause and count what became of each request.

Run by itself too, where only Python's own library is at hand: inside a container's network.

    python load.py PORT CONNECTIONS ANSWERS

It says when so many requests were answered, goes on until the server is gone, and counts.
"""

import http.client
import json
import sys
import threading
import time
import zlib
from collections import Counter


def gray_png(value: int, side: int = 96) -> bytes:
    """A PNG, one of 2 ** 16 that differ."""
    row = bytes([0]) + bytes([value % 256, value // 256 % 256]) * (side // 2)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    head = side.to_bytes(4) + side.to_bytes(4) + bytes([8, 0, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(row * side))
        + chunk(b"IEND", b"")
    )


class Load:
    """`connections` clients, each with a new connection for each request.

    Attributes:
        outcomes: How many requests were answered with each status (`200`), `refused` a connection
            or `lost` after it was made.
    """

    def __init__(self, port: int, connections: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self._port = port
        self._end = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(number,)) for number in range(connections)
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def wait(self, answers: int) -> None:
        """Until so many more requests were answered."""
        self._wait("200", answers)

    def wait_until_gone(self) -> None:
        """Until every connection was refused, and each client has tried several."""
        self._wait("refused", 10 * len(self._threads))

    def _wait(self, outcome: str, more: int) -> None:
        wanted = self.outcomes[outcome] + more
        deadline = time.monotonic() + 300
        while self.outcomes[outcome] < wanted:
            assert time.monotonic() < deadline, self.outcomes
            time.sleep(0.01)

    def _ask(self, number: int) -> None:
        while not self._end.is_set():
            number += len(self._threads)
            outcome = self._post(gray_png(number))
            self.outcomes[outcome] += 1
            if outcome == "refused":
                time.sleep(0.05)

    def _post(self, image: bytes) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.connect()
        except OSError:
            return "refused"
        try:
            connection.request("POST", "/embed", image, {"Content-Type": "image/png"})
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            return "lost"
        else:
            return str(answer.status)
        finally:
            connection.close()


if __name__ == "__main__":
    port, connections, answers = map(int, sys.argv[1:])
    with Load(port, connections) as load:
        load.wait(answers)
        print("answered", flush=True)
        load.wait_until_gone()
    print(json.dumps(load.outcomes))
