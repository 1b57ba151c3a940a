"""`docker compose` with the project's own files, as a user runs it."""

import subprocess
import time

import httpx

from service import __version__
from tests.docker_engine import ROOT, DockerEngine
from tests.ports import free_port
from tests.service.gateways import PNG

PROJECT = "foveal-test"
GATEWAY = f"foveal/gateway:{__version__}"
ROLLING = "deploy/rolling/compose.yml"


def build_gateway(docker: DockerEngine) -> None:
    docker.build(GATEWAY, ROOT, "--file", "docker/gateway.Dockerfile")


class Stack:
    """The project of docker-compose.yml under a name and a port of its own.

    Args:
        docker: Where it runs.
        files: Further compose files.
        environment: What `.env` would say.
    """

    def __init__(self, docker: DockerEngine, *files: str, **environment: str) -> None:
        self.docker = docker
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._files = [option for file in ("docker-compose.yml", *files) for option in ("-f", file)]
        self.environment = {"FOVEAL_PORT": str(self.port)} | environment

    def __call__(self, *command: str, check: bool = True, **environment: str) -> str:
        done = self.docker.run(
            *("compose", "--project-name", PROJECT, "--env-file", "/dev/null"),
            *(*self._files, *command),
            check=check,
            **self.environment | environment,
        )
        return done.stdout.strip() if check else done.stdout + done.stderr

    def up(self, *services: str, **environment: str) -> None:
        self("up", "--detach", "--wait", "--wait-timeout", "300", *services, **environment)

    def container(self, service: str) -> str:
        return self("ps", "--quiet", service)

    def state(self, service: str) -> dict:
        return self.docker.inspect(self.container(service))["State"]

    def post(self, path: str, image: bytes, **options: object) -> httpx.Response:
        return httpx.post(self.url + path, content=image, headers=PNG, params=options, timeout=60)

    def put(self, item: str, image: bytes) -> None:
        address = f"{self.url}/collections/{item}"
        answer = httpx.put(address, content=image, headers=PNG, timeout=60)
        assert answer.status_code in (200, 201), answer.text

    def ask(self, path: str, image: bytes, **options: object) -> dict:
        answer = self.post(path, image, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 300
        while True:
            try:
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline, self("logs", "gateway")
            time.sleep(0.05)

    def replace(self) -> None:
        """Replace the gateways as a user does, who has `deploy/rolling/compose.yml`."""
        command = [ROOT / "deploy/rolling/replace.sh"]
        environment = self.docker.environment | self.environment | {"COMPOSE_PROJECT_NAME": PROJECT}
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=900)

    def down(self) -> None:
        self("--profile", "*", "down", "--volumes", "--timeout", "5")
