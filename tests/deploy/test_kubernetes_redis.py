"""The Redis of the manifests: its real arguments on a real Redis 8, and the runbook's backup."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, OutOfMemoryError, RedisError

from service.index.base import Item
from service.index.fitness import require_fitness
from service.index.redis import RedisIndex
from tests.deploy.manifests import Manifest, one, pod, workload
from tests.ports import HeldPort
from tests.redis_servers import QUERY_ENGINE, REDIS8_SERVER

PASSWORD = "X7_x-1"  # noqa: S105 - of a server that this test starts
MEGABYTE = 1_000_000
TIMEOUT = 60.0


def container() -> Manifest:
    (found,) = pod(workload("cpu", "foveal-redis"))["containers"]
    return dict(found)


class Server:
    """Redis as the container runs it, but for the port, the folder and the image's module."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.url = f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0"
        (volume,) = (v for v in pod(workload("cpu", "foveal-redis"))["volumes"] if "configMap" in v)
        config = one("cpu", "ConfigMap", volume["configMap"]["name"])["data"]["redis.conf"]
        (folder / "redis.conf").write_text(config.replace("dir /data", f"dir {folder}"))

    @contextmanager
    def running(self) -> Iterator[Redis]:
        name, config, *arguments = container()["args"]
        assert (name, config) == ("redis-server", "/etc/foveal/redis.conf")
        command = [REDIS8_SERVER, self.folder / "redis.conf"]
        command += [a.replace("$(REDISCLI_AUTH)", PASSWORD) for a in arguments]
        command += ["--port", str(self.port), "--bind", "127.0.0.1", "--loadmodule", QUERY_ENGINE]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            with Redis.from_url(self.url, decode_responses=True) as client:
                self._wait(client, process)
                yield client
        finally:
            process.terminate()
            process.wait(timeout=120)

    def _wait(self, client: Redis, process: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + 120
        while True:
            try:
                client.ping()
                return
            except RedisError:
                assert process.poll() is None, "Redis refuses what the manifests tell it"
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def shell(self, command: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        """What `kubectl exec` would run in the container: its folder and port are these here."""
        command = command.replace("/data", str(self.folder))
        command = command.replace("redis-cli", f"redis-cli -p {self.port}")
        environment = {"PATH": os.environ["PATH"], "REDISCLI_AUTH": PASSWORD}
        return subprocess.run(
            ["/bin/sh", "-c", command],
            input=stdin,
            capture_output=True,
            env=environment,
            check=False,
        )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with HeldPort() as port:
        yield Server(tmp_path, port.number)


def item(key: str) -> Item:
    vector = np.random.default_rng(len(key)).normal(size=16).astype(np.float32)
    return Item(key, vector / np.linalg.norm(vector), {"name": key})


def test_the_image_loads_the_query_engine_because_its_entry_point_stays() -> None:
    assert "command" not in container()
    assert container()["args"][0] == "redis-server"


def test_redis_wants_the_password_and_is_fit_for_an_index(server: Server) -> None:
    with server.running():
        with Redis(port=server.port) as stranger, pytest.raises(AuthenticationError):
            stranger.ping()
        require_fitness(server.url, TIMEOUT)


@pytest.mark.parametrize("probe", ["startupProbe", "livenessProbe", "readinessProbe"])
def test_the_probes_tell_a_redis_that_answers_from_one_that_does_not(
    server: Server, probe: str
) -> None:
    sh, c, command = container()[probe]["exec"]["command"]
    assert (sh, c) == ("sh", "-c")
    with server.running() as redis:
        assert server.shell(command).returncode == 0
        redis.config_set("requirepass", "another")  # as when it answers LOADING: no PONG
        assert server.shell(command).returncode != 0
    assert server.shell(command).returncode != 0


def test_a_full_redis_drops_cached_outputs_and_no_item(server: Server) -> None:
    with server.running() as redis:
        redis.config_set("maxmemory", str(redis.info("memory")["used_memory"] + 4 * MEGABYTE))
        _put_items(redis, 0, 20)
        for number in range(100):
            redis.set(f"output:{number}", "x" * 100_000, ex=3600)
        assert redis.dbsize() < 120
        with pytest.raises(OutOfMemoryError):
            _put_items(redis, 20, 200)
        assert redis.exists(*(f"item:{number}" for number in range(20))) == 20


def _put_items(redis: Redis, first: int, last: int) -> None:
    for number in range(first, last):
        redis.set(f"item:{number}", "x" * 50_000)


def test_the_container_has_room_beyond_what_redis_may_keep() -> None:
    """Redis copies pages while it rewrites its log; half as much again is the usual allowance."""
    volume = pod(workload("cpu", "foveal-redis"))["volumes"][0]["configMap"]["name"]
    text = one("cpu", "ConfigMap", volume)["data"]["redis.conf"]
    (most,) = (line.split()[1] for line in text.splitlines() if line.startswith("maxmemory "))
    limit = container()["resources"]["limits"]["memory"]
    assert most.endswith("mb")
    assert limit.endswith("Gi")
    assert int(limit[:-2]) * 1024 >= 1.5 * int(most[:-2])


async def test_items_outlive_a_restart_and_come_back_from_a_backup(
    server: Server, tmp_path: Path
) -> None:
    backup = tmp_path / "kept-elsewhere.rdb"
    with server.running():
        await _put(server, "first")
        made = server.shell("redis-cli --rdb /data/backup.rdb >&2 && cat /data/backup.rdb")
        assert made.returncode == 0, made.stderr
        backup.write_bytes(made.stdout)
        await _put(server, "second")
    with server.running():
        assert await _found(server) == {"first", "second"}

    shutil.rmtree(tmp_path / "appendonlydir")  # the volume is lost
    with server.running():
        restored = server.shell(RESTORE, stdin=backup.read_bytes())
        assert restored.returncode == 0, restored.stderr
    with server.running():
        assert await _found(server) == {"first"}
        await _put(server, "third")
    with server.running():
        assert await _found(server) == {"first", "third"}


# As the runbook has it: the backup becomes the base of the log that Redis reads when it starts.
RESTORE = """
set -e
redis-cli config set appendonly no
cd /data
rm -rf appendonlydir
mkdir appendonlydir
cat > appendonlydir/appendonly.aof.1.base.rdb
echo 'file appendonly.aof.1.base.rdb seq 1 type b' > appendonlydir/appendonly.aof.manifest
"""


async def _put(server: Server, key: str) -> None:
    index = RedisIndex(server.url, TIMEOUT)
    await index.put("photos", [item(key)], "digest")
    await index.close()


async def _found(server: Server) -> set[str]:
    index = RedisIndex(server.url, TIMEOUT)
    matches = await index.search("photos", item("first").vector, "digest", k=10)
    await index.close()
    return {match.id for match in matches}
