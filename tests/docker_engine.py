"""A Docker engine of the tests' own, with compose, and stand-ins for images that cannot be pulled.

The stand-ins are Debian's root file system under the names of the official images: with Python,
with Redis 8 and its query engine, with HAProxy and with Prometheus. The engine keeps them, and
the layers of builds, under `.cache/docker`.
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.redis_servers import QUERY_ENGINE, REDIS8_SERVER

ROOT = Path(__file__).parents[1]
# `make test` puts them there: compose, Prometheus, hadolint.
CACHE = ROOT / ".cache" / "docker"
COMPOSE = CACHE / "tools/bin/docker-compose"
HADOLINT = CACHE / "tools/bin/hadolint"
PROMETHEUS = CACHE / "prometheus/usr/bin/prometheus"
PROMTOOL = CACHE / "prometheus/usr/bin/promtool"
FILE_SYSTEM = CACHE / "debian.tar"
PACKAGES = "python3,python3-pip,python3-venv,ca-certificates,redis-server,haproxy"
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")

PYTHON = "python:3.11-slim-bookworm"
REDIS = """
FROM python:3.11-slim-bookworm
COPY redis-server entrypoint /usr/local/bin/
COPY redisearch.so /usr/local/lib/redis/modules/
RUN groupmod --gid 999 --non-unique redis && usermod --uid 999 --gid 999 --non-unique redis \
    && install -d -o redis -g redis /data
WORKDIR /data
VOLUME /data
ENTRYPOINT ["entrypoint"]
CMD ["redis-server"]
"""
# As the official image does: no query engine, unless the first word is redis-server.
REDIS_ENTRYPOINT = """#!/bin/sh
[ "$1" = redis-server ] && set -- "$@" --loadmodule /usr/local/lib/redis/modules/redisearch.so
exec "$@"
"""
PROMETHEUS_IMAGE = """
FROM python:3.11-slim-bookworm
COPY prometheus /bin/
RUN install -d -o 65534 -g 65534 /prometheus
USER 65534
VOLUME /prometheus
ENTRYPOINT ["/bin/prometheus"]
"""


class DockerEngine:
    """One dockerd, and the commands `docker` and `docker compose` against it."""

    def __init__(self, folder: Path) -> None:
        config = folder / "config/cli-plugins"
        config.mkdir(parents=True)
        (config / "docker-compose").symlink_to(COMPOSE)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "DOCKER_HOST": f"unix://{folder}/docker.sock",
            "DOCKER_CONFIG": str(config.parent),
            "DOCKER_BUILDKIT": "0",
        }

    def run(
        self, *command: str | Path, check: bool = True, timeout: float = 900, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """`docker COMMAND`, or fail with what it said."""
        whole = ["docker", *map(str, command)]
        done = subprocess.run(
            whole,
            env=self.environment | environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def __call__(self, *command: str | Path, **options: object) -> str:
        return self.run(*command, **options).stdout.strip()

    def build(self, name: str, folder: Path, *options: str | Path) -> None:
        # The machine's own network: only there the package index is sure to be reachable.
        self("build", "--network", "host", "--tag", name, *options, folder, timeout=1800)

    def inspect(self, name: str) -> dict:
        return json.loads(self("inspect", name))[0]


@pytest.fixture(scope="session")
def docker() -> Iterator[DockerEngine]:
    with docker_engine() as engine:
        yield engine


@contextmanager
def docker_engine() -> Iterator[DockerEngine]:
    """Start an engine that has the stand-ins, and stop it."""
    require(COMPOSE, REDIS8_SERVER, PROMETHEUS)
    for command in ("dockerd", "debootstrap", "iptables"):
        assert shutil.which(command), f"{command} is missing; `make test` installs it"
    # A socket's path has room for 108 bytes only.
    with tempfile.TemporaryDirectory(prefix="foveal-docker-") as name:
        folder = Path(name)
        with _dockerd(folder):
            engine = DockerEngine(folder)
            _wait_for(engine)
            _remove_leftovers(engine)
            _make_stand_ins(engine, folder / "images")
            # Layers of builds that nobody repeats any more.
            engine("image", "prune", "--force", "--filter", "until=48h")
            yield engine


def require(*paths: Path) -> None:
    for path in paths:
        assert path.is_file(), f"{path} is missing; `make test` installs it"


@contextmanager
def _dockerd(folder: Path) -> Iterator[None]:
    """A dockerd that leaves the machine's network as it found it."""
    data = CACHE / "engine"
    data.mkdir(parents=True, exist_ok=True)
    pidfile = folder / "dockerd.pid"
    rules, forwarding = _run("iptables-save"), FORWARDING.read_text()
    with (data / "dockerd.log").open("w") as log:
        process = subprocess.Popen(
            [
                *("dockerd", "--host", f"unix://{folder}/docker.sock", "--pidfile", str(pidfile)),
                *("--data-root", str(data / "data"), "--exec-root", str(folder / "exec")),
            ],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(300)
        FORWARDING.write_text(forwarding)
        _restore_rules(rules)
        _run("ip", "link", "delete", "docker0", check=False)
        _run("umount", folder / "exec/netns/default", check=False)


def _restore_rules(rules: str) -> None:
    for table in ("filter", "nat"):
        for option in ("--flush", "--delete-chain"):
            _run("iptables", "--table", table, option)
    _run("iptables", "--policy", "FORWARD", "ACCEPT")
    _run("iptables-restore", given=rules)


def _wait_for(engine: DockerEngine) -> None:
    deadline = time.monotonic() + 300
    while engine.run("info", check=False).returncode:
        log = (CACHE / "engine/dockerd.log").read_text()
        assert time.monotonic() < deadline, f"dockerd does not answer: {log[-2000:]}"
        time.sleep(0.1)


def _remove_leftovers(engine: DockerEngine) -> None:
    """What a run left that was killed: the engine would start its containers again."""
    if containers := engine("ps", "--all", "--quiet").split():
        engine("rm", "--force", "--volumes", *containers)
    if volumes := engine("volume", "ls", "--quiet").split():
        engine("volume", "rm", *volumes)
    engine("network", "prune", "--force")


def _make_stand_ins(engine: DockerEngine, folder: Path) -> None:
    if not FILE_SYSTEM.is_file():
        _bootstrap(FILE_SYSTEM)
    if not engine("images", "--quiet", PYTHON):
        certificates = f"ENV PIP_CERT=/{CERTIFICATES}"
        engine("import", "--change", certificates, FILE_SYSTEM, PYTHON)
    folder.mkdir()
    (folder / "entrypoint").write_text(REDIS_ENTRYPOINT)
    (folder / "entrypoint").chmod(0o755)
    _build(
        engine,
        "redis:8",
        folder / "redis",
        REDIS,
        REDIS8_SERVER,
        QUERY_ENGINE,
        folder / "entrypoint",
    )
    _build(engine, "prometheus:stand-in", folder / "prometheus", PROMETHEUS_IMAGE, PROMETHEUS)


def _build(engine: DockerEngine, name: str, folder: Path, dockerfile: str, *files: Path) -> None:
    folder.mkdir()
    (folder / "Dockerfile").write_text(dockerfile)
    for file in files:
        shutil.copy2(file, folder)
    engine.build(name, folder)


def _bootstrap(archive: Path) -> None:
    """Debian's smallest root file system with what the stand-ins need."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        root = Path(folder) / "root"
        _run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", root)
        for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            marker.unlink()
        shutil.copyfile(Path("/") / CERTIFICATES, root / CERTIFICATES)
        for path in (
            *root.glob("var/cache/apt/archives/*.deb"),
            *root.glob("var/lib/apt/lists/*_*"),
        ):
            path.unlink()
        made = Path(folder) / "made.tar"
        _run("tar", "-C", root, "--exclude=./dev/*", "-cf", made, ".")
        made.rename(archive)


def _run(*command: str | Path, given: str = "", check: bool = True) -> str:
    done = subprocess.run(
        list(map(str, command)),
        input=given,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    said = done.stdout[-2000:] + done.stderr[-2000:]
    assert not check or done.returncode == 0, f"{command[0]}: {said}"
    return done.stdout
