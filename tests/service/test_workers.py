"""Several processes on one port: one sum of metrics, none missed when it dies, all drained."""

import os
import signal
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from service.bundle import Bundle
from tests.redis_servers import RedisServer
from tests.service.gateways import PNG, photograph
from tests.service.processes import Serving, foveal, serving
from tests.waiting import wait_until


def children(pid: int) -> set[int]:
    """Those that serve; multiprocessing's resource tracker does not."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child) for child in found if b"spawn_main" in _command(child)}


def answering(server: Serving, photo: bytes) -> int:
    url = f"{server.address}/embed"
    return httpx.post(url, content=photo, headers=PNG, timeout=60).status_code


def served(folder: Path, worker: int) -> bool:
    """Whether a worker has noted a request among its metrics."""
    return any(b"/embed" in noted.read_bytes() for noted in folder.rglob(f"*_{worker}.db"))


def counted(server: Serving) -> float:
    answer = httpx.get(f"{server.address}/metrics", timeout=60)
    families = text_string_to_metric_families(answer.text)
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == "http_server_request_duration_seconds_count"
        and sample.labels["http_route"] == "/embed"
    )


def test_workers_share_port_metrics_and_end_and_the_dead_are_replaced(
    bundle: Bundle,
    redis8: RedisServer,
) -> None:
    shared = {"FOVEAL_REDIS_URL": redis8.url, "FOVEAL_INDEX": "redis", "FOVEAL_THREADS": "1"}
    with serving("--workers", 2, "--model", bundle.path, **shared) as server:
        parent = server.process.pid
        wait_until(lambda: len(children(parent)) == 2, seconds=60)
        photo = photograph()
        # Whichever answers the scrape knows of all requests, whoever answered those.
        assert [answering(server, photo) for _ in range(20)] == [200] * 20
        # A request is counted just after its answer.
        wait_until(lambda: counted(server) >= 20)
        assert {counted(server) for _ in range(10)} == {20}

        victim, other = children(parent)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(children(parent) - {victim}) == 2, seconds=60)
        assert other in children(parent)
        assert f"Worker {victim} died with status -9" in server.log
        assert answering(server, photo) == 200
        wait_until(lambda: counted(server) > 20)
        assert counted(server) == 21

        last = children(parent)
        assert server.end() == 0
        assert not any(Path(f"/proc/{child}").exists() for child in last)


def test_workers_do_not_outlive_their_parent(
    bundle: Bundle,
    redis8: RedisServer,
    tmp_path: Path,
) -> None:
    shared = {"FOVEAL_REDIS_URL": redis8.url, "FOVEAL_INDEX": "redis", "FOVEAL_THREADS": "1"}
    place = {"TMPDIR": str(tmp_path)}  # killed, the parent leaves the folder of its metrics behind
    with serving("--workers", 2, "--model", bundle.path, **shared, **place) as server:
        wait_until(lambda: len(children(server.process.pid)) == 2, seconds=60)
        orphans = children(server.process.pid)
        photo = photograph()
        wait_until(
            lambda: answering(server, photo) == 200 and all(served(tmp_path, o) for o in orphans),
            seconds=60,
        )
        server.process.kill()
        server.process.wait()
        wait_until(lambda: not any(_runs(orphan) for orphan in orphans), seconds=60)


def test_what_keeps_workers_from_starting_is_told_once(
    tmp_path: Path,
    redis8: RedisServer,
) -> None:
    ended = foveal(
        "serve",
        *("--port", 0, "--workers", 3, "--model", tmp_path),
        FOVEAL_REDIS_URL=redis8.url,
        FOVEAL_INDEX="redis",
    )
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert "bundle.json" in ended.stderr


def _command(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return b""


def _runs(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
