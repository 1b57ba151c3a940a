"""The gateway's container: how large, how soon ready, and replaced under load.

    python -m benchmarks.deploy

Runs an engine of its own, on stand-ins for the official base images; `make test` installs it.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import httpx

from benchmarks.machine import describe
from tests.compose_stack import GATEWAY, ROLLING, Stack, build_gateway
from tests.docker_engine import PYTHON, DockerEngine, docker_engine
from tests.integration.load import Load
from tests.ports import free_port

RESULT = Path(__file__).parents[1] / "results/deploy.json"
ROUNDS = 5
CONNECTIONS = 8
PATIENCE = 60.0  # seconds


def megabytes(docker: DockerEngine) -> dict[str, float]:
    whole, base = (docker.inspect(name)["Size"] / 1e6 for name in (GATEWAY, PYTHON))
    return {"own layers": round(whole - base), "base (stand-in)": round(base)}


def cold_start(docker: DockerEngine) -> float:
    """Seconds from `docker run` to the first 200 of /readyz."""
    port = free_port()
    begun = time.perf_counter()
    publish = ("--publish", f"127.0.0.1:{port}:8000")
    contained = ("--read-only", "--tmpfs", "/tmp")  # noqa: S108 - in the container
    name = "foveal-cold-start"
    try:
        docker("run", "--detach", "--name", name, *contained, *publish, GATEWAY)
        # One client: making one each time would take a core that the gateway wants.
        with httpx.Client() as client:
            while time.perf_counter() - begun < PATIENCE:
                with suppress(httpx.TransportError):
                    if client.get(f"http://127.0.0.1:{port}/readyz").is_success:
                        return time.perf_counter() - begun
                time.sleep(0.02)
        raise TimeoutError(docker("logs", name))
    finally:
        docker("rm", "--force", "--volumes", name)


def replacement(docker: DockerEngine) -> dict[str, float | int]:
    """What became of requests while the gateway was replaced."""
    # A proxy made of Debian's HAProxy.
    stack = Stack(docker, ROLLING, FOVEAL_PROXY_IMAGE=PYTHON)
    try:
        stack.up()
        with Load(stack.port, CONNECTIONS) as load:
            load.wait(100)
            begun = time.perf_counter()
            stack.replace()
            seconds = time.perf_counter() - begun
            load.wait(100)
        return {"replacing took, seconds": round(seconds, 1), **load.outcomes}
    finally:
        stack.down()


def stop(*_: object) -> NoReturn:
    """End as an error does, so that engine and containers go; a second signal cuts nothing off."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + signal.SIGTERM)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    signal.signal(signal.SIGTERM, stop)
    with docker_engine() as docker:
        build_gateway(docker)
        starts = [cold_start(docker) for _ in range(ROUNDS)]
        result = {
            "command": "python -m benchmarks.deploy",
            "image, megabytes": megabytes(docker),
            "cold start to ready, seconds": {
                "median": round(statistics.median(starts), 2),
                "longest": round(max(starts), 2),
            },
            "requests while the gateway was replaced": replacement(docker),
            "machine": describe("onnxruntime", "uvicorn"),
        }
    text = json.dumps(result, indent=2)
    RESULT.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
