"""The client: one thread that keeps many connections busy, in a process of its own.

    python -m benchmarks.serving.load < SPEC

It shares the cores with the server it asks, so it does as little as it can: requests are laid out
beforehand, one `send` and one or two `recv` serve each, and answers are counted, not parsed.

A closed loop sends the next request on a connection as soon as the last one is answered. An open
loop sends at given times, whether or not earlier requests are answered, on as many connections as
that takes; latency counts from the time at which a request was due.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import resource
import selectors
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.serving.wire import Answer, layout

RAMP = 1.0  # seconds before a closed loop counts
DRAIN = 40.0  # seconds for the last answers of an open loop
SEED = 0


@dataclass(frozen=True)
class Spec:
    """What to send.

    Attributes:
        port: Where, on loopback.
        path: Of the URL.
        form: How an image becomes a body: `raw`, `triton` or `pixels`.
        images: Folder of the images, sent in turn.
        seconds: How long to count.
        connections: Of the closed loop.
        rate: Requests a second of the open loop (Poisson arrivals), instead of the closed one.
        broken: Share of requests whose image is cut short.
        leaving: Share of requests whose client goes away before the answer.
        patience: Seconds after which it goes.
        seed: Of arrivals and faults.
        fresh: Whether no two images are ever the same: the last eight bytes, after a JPEG's end,
            are then the request's number.
    """

    port: int
    path: str
    form: str
    images: str
    seconds: float
    connections: int = 16
    rate: float = 0.0
    broken: float = 0.0
    leaving: float = 0.0
    patience: float = 0.05
    seed: int = SEED
    fresh: bool = False


@dataclass
class Outcome:
    """What came back.

    Attributes:
        seconds: Over which `statuses` were counted.
        statuses: How many answers had which status; 0 is a connection that broke or gave nothing.
        latencies: Of each status, in seconds.
        broken: Statuses of the images that were cut short.
        left: Clients that went away.
        sent: Whole images whose client stayed.
        answered: Images answered 200, those outside the window included.
        in_time: Images answered 200 before the window's end.
        cpu: Seconds of processor time that the client took.
    """

    seconds: float
    statuses: dict[str, int] = field(default_factory=dict)
    latencies: dict[str, list[float]] = field(default_factory=dict)
    broken: dict[str, int] = field(default_factory=dict)
    left: int = 0
    sent: int = 0
    answered: int = 0
    in_time: int = 0
    cpu: float = 0.0

    @property
    def rate(self) -> float:
        """Images answered a second."""
        return self.statuses.get("200", 0) / self.seconds

    def percentile(self, percent: float, status: str = "200") -> float:
        """Latency that so many percent of a status's answers did not exceed, in seconds."""
        latencies = sorted(self.latencies.get(status, ()))
        if not latencies:
            return math.nan
        return latencies[min(int(len(latencies) * percent / 100), len(latencies) - 1)]


def read(folder: Path) -> list[bytes]:
    """The files of a folder in the order of their names."""
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def run(spec: Spec) -> Outcome:
    """Start the client's process, wait for it and read what it tells."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serving.load"],
        input=json.dumps(dataclasses.asdict(spec)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        timeout=spec.seconds + DRAIN + 60,
    )
    return Outcome(**json.loads(done.stdout))


class Connection:
    """One socket and the request on it."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.rest: memoryview | None = None
        self.answer = Answer()
        self.due = 0.0
        self.leaves: float | None = None
        self.is_broken = False


class Client:
    """Connections, and one loop over those that have something to say."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        images = read(Path(spec.images))
        # Eight bytes more, after the end of a JPEG, where `fresh` writes.
        more = bytes(0 if spec.form == "pixels" else 8)
        self.requests = [bytearray(layout(spec.form, spec.path, data + more)) for data in images]
        self.cut = [layout(spec.form, spec.path, data[: len(data) // 2]) for data in images[:64]]
        self.random = random.Random(spec.seed)  # noqa: S311
        self.poll = selectors.EpollSelector()
        self.number = 0
        self.idle: list[Connection] = []
        self.busy: set[Connection] = set()
        self.leaving: list[Connection] = []
        self.since = self.until = 0.0
        self.statuses: Counter[str] = Counter()
        self.broken: Counter[str] = Counter()
        self.latencies: dict[str, list[float]] = {}
        self.left = self.sent = self.answered = self.in_time = 0

    def closed(self) -> None:
        """Keep `connections` requests in flight; count from the ramp's end on."""
        self.since = time.perf_counter() + (RAMP if self.spec.seconds > RAMP else 0)
        self.until = self.since + self.spec.seconds
        for _ in range(self.spec.connections):
            self._send(time.perf_counter())
        faults = self.spec.leaving > 0 or self.spec.broken > 0
        while (now := time.perf_counter()) < self.until or (faults and self.busy):
            ended = self._turn(0.005 if self.leaving else 0.1)
            if now < self.until:
                for _ in range(ended):
                    self._send(time.perf_counter())
            elif now > self.until + DRAIN:
                break

    def open(self) -> None:
        """Send at Poisson's times until the end, then wait for the last answers."""
        now = time.perf_counter()
        self.since, self.until = now, now + self.spec.seconds
        due = now + self.random.expovariate(self.spec.rate)
        while due < self.until:
            if (wait := due - time.perf_counter()) > 0:
                self._turn(wait)
            else:
                self._send(due)
                due += self.random.expovariate(self.spec.rate)
        while self.busy and time.perf_counter() < self.until + DRAIN:
            self._turn(0.1)
        for connection in list(self.busy):
            self._end(connection, "0")

    def _send(self, due: float) -> None:
        try:
            connection = self.idle.pop() if self.idle else self._connect()
        except OSError:
            self._count("0", due, broken=False)
            return
        connection.due = due
        connection.answer = Answer()
        connection.is_broken = self.random.random() < self.spec.broken
        leaves = not connection.is_broken and self.random.random() < self.spec.leaving
        connection.leaves = due + self.spec.patience if leaves else None
        requests = self.cut if connection.is_broken else self.requests
        request = requests[self.number % len(requests)]
        if self.spec.fresh and isinstance(request, bytearray):
            request[-8:] = self.number.to_bytes(8)
        connection.rest = memoryview(request)
        self.number += 1
        self.busy.add(connection)
        if leaves:
            self.leaving.append(connection)
        self.sent += not (leaves or connection.is_broken)
        self._write(connection)

    def _connect(self) -> Connection:
        connection = Connection(self.spec.port)
        self.poll.register(connection.socket, selectors.EVENT_READ, connection)
        return connection

    def _write(self, connection: Connection) -> None:
        assert connection.rest is not None
        try:
            connection.rest = connection.rest[connection.socket.send(connection.rest) :]
        except BlockingIOError:
            pass
        except OSError:
            # A server may answer and close before it has read all; the answer is still to be read.
            connection.rest = None
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.rest else 0)
        self.poll.modify(connection.socket, events, connection)
        connection.rest = connection.rest or None

    def _turn(self, wait: float) -> int:
        """Serve what is ready within `wait` seconds; tell how many requests ended."""
        ended = 0
        for key, events in self.poll.select(wait):
            connection: Connection = key.data
            if events & selectors.EVENT_WRITE and connection.rest is not None:
                self._write(connection)
            if events & selectors.EVENT_READ:
                ended += self._read(connection)
        if self.leaving:
            ended += self._leave(time.perf_counter())
        return ended

    def _read(self, connection: Connection) -> bool:
        try:
            data = connection.socket.recv(262_144)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if connection not in self.busy:
            if not data:
                self._drop(connection)
                if connection in self.idle:
                    self.idle.remove(connection)
            return False
        answer = connection.answer
        if data and not answer.feed(data):
            return False
        self._end(connection, answer.status or "0", reuse=bool(data) and answer.reusable)
        return True

    def _end(self, connection: Connection, status: str, reuse: bool = False) -> None:
        self.busy.discard(connection)
        if connection.leaves is not None:
            self.leaving.remove(connection)
        else:
            self._count(status, connection.due, connection.is_broken)
        if reuse and connection.rest is None:
            self.idle.append(connection)
        else:
            self._drop(connection)

    def _leave(self, now: float) -> int:
        gone = [c for c in self.leaving if c.leaves is not None and c.leaves <= now]
        for connection in gone:
            self.leaving.remove(connection)
            self.busy.discard(connection)
            self._drop(connection)
        self.left += len(gone)
        return len(gone)

    def _drop(self, connection: Connection) -> None:
        self.poll.unregister(connection.socket)
        connection.socket.close()

    def _count(self, status: str, due: float, broken: bool) -> None:
        now = time.perf_counter()
        self.answered += status == "200"
        self.in_time += status == "200" and now < self.until
        if broken:
            self.broken[status] += 1
        # A closed loop counts answers that come in the window, an open one requests due in it.
        elif self.spec.leaving or self.since <= (due if self.spec.rate else now) < self.until:
            self.statuses[status] += 1
            self.latencies.setdefault(status, []).append(round(now - due, 6))


def main() -> None:
    spec = Spec(**json.load(sys.stdin))
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    client = Client(spec)
    before = time.process_time()
    if spec.rate:
        client.open()
    else:
        client.closed()
    outcome = Outcome(
        seconds=spec.seconds,
        statuses=dict(client.statuses),
        latencies=client.latencies,
        broken=dict(client.broken),
        left=client.left,
        sent=client.sent,
        answered=client.answered,
        in_time=client.in_time,
        cpu=time.process_time() - before,
    )
    json.dump(dataclasses.asdict(outcome), sys.stdout)


if __name__ == "__main__":
    main()
