"""Real Triton servers on the loopback; each can be killed, started anew, frozen and thawed.

The server is NVIDIA's, out of the package nvidia-pytriton; the backend that runs the graph is a
stand-in, see `tests.triton_backend`.
"""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from service.bundle import Bundle
from tests.certificates import Authority, Certificate
from tests.ports import HeldPort

# `make test` puts them there: the server, and what the backend's own Python imports.
CACHE = Path(__file__).parents[1] / ".cache" / "triton"
PACKAGE = CACHE / "pkg"
STUB = CACHE / "stub" / "bin"
SERVER = PACKAGE / "pytriton" / "tritonserver"
BACKEND = Path(__file__).with_name("triton_backend.py")

CONFIG = """
name: "{name}"
backend: "onnxruntime"
max_batch_size: {max_batch}
input {{ name: "images" data_type: TYPE_UINT8 dims: [{side}, {side}, 3] }}
output {{ name: "embedding" data_type: TYPE_FP32 dims: [{dim}] }}
output {{ name: "patches" data_type: TYPE_FP32 dims: [-1, -1, {dim}] }}
output {{ name: "attention" data_type: TYPE_FP32 dims: [{heads}, -1, -1] }}
instance_group {{ kind: KIND_CPU count: {instances} }}
dynamic_batching {{
  max_queue_delay_microseconds: 0
  default_queue_policy {{
    timeout_action: REJECT
    allow_timeout_override: true
    default_timeout_microseconds: 30000000
    max_queue_size: {max_queue}
  }}
}}
parameters {{ key: "digest" value {{ string_value: "{digest}" }} }}
"""


def write_repository(
    folder: Path,
    bundle: Bundle,
    *,
    digest: str | None = None,
    max_batch: int = 8,
    max_queue: int = 64,
    instances: int = 1,
    side: int = -1,
) -> Path:
    """Write a bundle as Triton's model repository, and give the model's folder.

    It takes images of any size, or of one `side` alone.
    """
    manifest = bundle.manifest
    model = folder / manifest.name
    (model / "1").mkdir(parents=True, exist_ok=True)
    shutil.copy(bundle.graph, model / "1" / "model.onnx")
    config = CONFIG.format(
        name=manifest.name,
        dim=manifest.dim,
        heads=manifest.heads,
        digest=digest or bundle.digest,
        max_batch=max_batch,
        max_queue=max_queue,
        instances=instances,
        side=side,
    )
    (model / "config.pbtxt").write_text(config)
    return model


class TritonServer:
    """One server process over a model repository, and the ports that it has for life."""

    def __init__(self, repository: Path, folder: Path, *arguments: str) -> None:
        assert SERVER.exists(), f"{SERVER} is missing: `make test` installs it"
        assert STUB.exists(), f"{STUB} is missing: `make test` installs it"
        self.repository = repository
        self.log = folder / "triton.log"
        self._held = HeldPort(), HeldPort()
        self.port, http = (held.number for held in self._held)
        self.url = f"127.0.0.1:{self.port}"
        self._ready = f"http://127.0.0.1:{http}/v2/health/ready"
        self._memory = f"triton-{self.port}-"
        backends = folder / "backends"
        if not backends.exists():
            copy_backends(backends, f"{sys.version_info.major}.{sys.version_info.minor}")
        self._command = [
            str(SERVER / "bin" / "tritonserver"),
            *("--model-repository", str(repository)),
            *("--backend-directory", str(backends)),
            *("--grpc-address", "127.0.0.1", "--grpc-port", str(self.port)),
            *("--http-address", "127.0.0.1", "--http-port", str(http)),
            *("--allow-metrics", "false", "--exit-timeout-secs", "2"),
            *("--backend-config", f"python,shm-region-prefix-name={self._memory}"),
            *arguments,
        ]
        libraries = (PACKAGE / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR"))
        self._env = os.environ | {
            "PATH": f"{STUB}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, anew after `kill`, and wait until it serves its models."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        with self.log.open("ab") as log:
            # A group of its own: the backend's processes are killed and frozen with the server.
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=self._env, start_new_session=True
            )

    def wait(self) -> None:
        deadline = time.monotonic() + 300
        while True:
            assert self.alive, self.log.read_text()[-4000:]
            assert time.monotonic() < deadline, self.log.read_text()[-4000:]
            # By HTTP, which is listened for after gRPC and is never encrypted.
            with suppress(httpx.TransportError):
                if httpx.get(self._ready, timeout=20).is_success:
                    return
            time.sleep(0.05)

    def kill(self) -> None:
        """End it at once, with the processes of its backend."""
        self._signal(signal.SIGKILL)
        if self._process:
            self._process.wait()
        for left in Path("/dev/shm").glob(f"{self._memory}*"):  # noqa: S108 - shared memory
            left.unlink(missing_ok=True)

    def close(self) -> None:
        """Undo what was done to it, and kill it for good."""
        self.heal()
        self.kill()
        for held in self._held:
            held.close()

    def freeze(self) -> None:
        """Stop the server alone: where its backend was stopped too, it may abort when thawed."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def heal(self) -> None:
        """Undo `freeze`, `slow`, `hold` and `fail`."""
        self._signal(signal.SIGCONT)
        for model in self._models():
            for name in ("seconds", "held", "begun", "broken"):
                (model / name).unlink(missing_ok=True)

    def fail(self) -> Path:
        """Let every run fail; gives the file that gains a letter with each."""
        (model,) = self._models()
        (model / "broken").touch()
        return model / "broken"

    def hold(self) -> Path:
        """Let no run end; gives the file that is there as soon as one has begun."""
        (model,) = self._models()
        (model / "begun").unlink(missing_ok=True)
        (model / "held").touch()
        return model / "begun"

    def slow(self, seconds: float) -> None:
        """Let every run take so much longer."""
        for model in self._models():
            (model / "seconds.new").write_text(str(seconds))
            (model / "seconds.new").rename(model / "seconds")  # never read half written

    def _models(self) -> list[Path]:
        return [config.parent for config in self.repository.glob("*/config.pbtxt")]

    def _signal(self, number: signal.Signals) -> None:
        if self._process and self.alive:
            os.killpg(self._process.pid, number)


def copy_backends(folder: Path, python: str) -> None:
    """Triton's Python backend, which runs the stand-in, with the stub for a release of Python."""
    shutil.copytree(SERVER / "backends" / "python", folder / "python")
    stub = SERVER / "python_backend_stubs" / python / "triton_python_backend_stub"
    shutil.copy(stub, folder / "python")
    (folder / "onnxruntime").mkdir()
    shutil.copy(BACKEND, folder / "onnxruntime" / "model.py")


@contextmanager
def running(repository: Path, folder: Path, *arguments: str) -> Iterator[TritonServer]:
    server = TritonServer(repository, folder, *arguments)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def triton_session(
    bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[TritonServer, TritonServer]]:
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    for folder in folders:
        write_repository(folder / "models", bundle, max_queue=4)
    one, two = (TritonServer(folder / "models", folder) for folder in folders)
    try:
        one.launch()
        two.launch()
        one.wait()
        two.wait()
        yield one, two
    finally:
        for server in (one, two):
            server.close()


@pytest.fixture
def tritons(
    triton_session: tuple[TritonServer, TritonServer],
) -> Iterator[tuple[TritonServer, TritonServer]]:
    """Two servers of the tiny bundle, whatever the last test did to them."""
    for server in triton_session:
        if not server.alive:
            server.start()
    yield triton_session
    for server in triton_session:
        server.heal()


@pytest.fixture
def triton(tritons: tuple[TritonServer, TritonServer]) -> TritonServer:
    """One of them."""
    return tritons[0]


class Encrypted(NamedTuple):
    """Two servers that speak TLS, of which the second asks for the client's certificate."""

    authority: Authority
    client: Certificate
    one_sided: TritonServer
    mutual: TritonServer

    @property
    def url(self) -> str:
        """The first by its name, which is that of its certificate."""
        return f"localhost:{self.one_sided.port}"

    @property
    def mutual_url(self) -> str:
        return f"localhost:{self.mutual.port}"


@pytest.fixture(scope="session")
def encrypted(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    folder = tmp_path_factory.mktemp("encrypted")
    authority = Authority(folder / "ours")
    certificate, key = authority.issue("localhost")
    files = (
        f"--grpc-server-cert={certificate}",
        f"--grpc-server-key={key}",
        f"--grpc-root-cert={authority.certificate}",
    )
    servers = []
    for kind in ("--grpc-use-ssl=1", "--grpc-use-ssl-mutual=1"):
        of_kind = folder / kind.strip("-")
        write_repository(of_kind / "models", bundle)
        servers.append(TritonServer(of_kind / "models", of_kind, kind, *files))
    try:
        for server in servers:
            server.launch()
        for server in servers:
            server.wait()
        yield Encrypted(authority, authority.issue("gateway"), *servers)
    finally:
        for server in servers:
            server.close()
