"""The servers: how each starts, and in which settings it may be at its best."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.serving import images, load
from benchmarks.serving.environment import PYTHON
from benchmarks.serving.process import Process
from service.bundle import Bundle
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
CORES = len(os.sched_getaffinity(0))
READY = 120.0  # seconds
ATTEMPTS = 3  # Triton's instances wait for each other for one second only
FOVEAL = str(Path(sys.executable).with_name("foveal"))

Settings = dict[str, str]


class PeerFailed(Exception):
    """A peer could not be started."""


@dataclass(frozen=True)
class Server:
    """A server on a free port of loopback.

    Attributes:
        name: In results.
        command: What starts it; {port} stands for the port.
        settings: Environments to choose from; the quickest at 16 connections is taken.
        path: Of its route.
        form: How an image becomes a body, see `wire.layout`.
        paused: Whether it is stopped while others take their turn. Triton takes a pause for the
            death of its backend.
    """

    name: str
    command: tuple[str, ...]
    settings: tuple[Settings, ...] = ({},)
    path: str = "/embed"
    form: str = "raw"
    paused: bool = True

    @property
    def is_peer(self) -> bool:
        """Whether it runs in the peers' environment."""
        return str(PYTHON) in self.command

    def at(self, setting: Settings) -> Server:
        """The same server with one setting to choose from."""
        return replace(self, settings=(setting,))


def foveal(precision: str, **settings: str) -> Server:
    """The gateway, without its cache unless asked: every image is new to it."""
    fixed = {"FOVEAL_CACHE_BYTES": "0", "FOVEAL_PRECISION": precision, **settings}
    command = (FOVEAL, "serve", "--port", "{port}")
    return Server(f"foveal {precision}", command, (fixed,))


def _peer(name: str, module: str, *arguments: str, **more: str) -> Server:
    """A peer without batches and with them, as many workers as cores."""
    command = (str(PYTHON), "-m", f"benchmarks.serving.peers.{module}", *arguments)
    return Server(name, command, tuple(map(_batch, (1, 8))), **more)


def _batch(size: int) -> Settings:
    return {"BENCH_BATCH": str(size), "BENCH_WORKERS": str(CORES)}


# At fp32 on the engine of the bare loop and of the peers; `auto` may choose another.
FP32, AUTO = foveal("fp32", FOVEAL_ENGINE="onnx"), foveal("auto")
# Without batches to vary, the naive server varies the threads of its session.
NAIVE = replace(_peer("naive", "naive"), settings=(_batch(1), _batch(CORES)))
MOSEC = replace(
    _peer("mosec", "mosec_server", "--address", "127.0.0.1", "--port", "{port}"),
    path="/inference",
)
MOSEC = replace(MOSEC, command=(*MOSEC.command, "--timeout", "60000", "--log-level", "warning"))
LITSERVE = _peer("litserve", "litserve_server", path="/predict")
BENTOML = replace(
    _peer("bentoml", "bentoml_server"),
    command=(
        str(PYTHON),
        "-m",
        "bentoml",
        "serve",
        "benchmarks.serving.peers.bentoml_server:Served",
        "--host",
        "127.0.0.1",
        "--port",
        "{port}",
    ),
)
RAY = _peer("ray serve", "ray_server")
TRITON = replace(
    _peer("triton", "triton_server", path="/v2/models/embed/infer", form="triton"), paused=False
)
PEERS = (NAIVE, MOSEC, LITSERVE, BENTOML, RAY, TRITON)


def with_our_preprocessing(peer: Server) -> Server:
    """A peer that decodes and resizes as the gateway does: what is left is between the servers."""
    settings = tuple({**setting, "BENCH_PREPROCESSING": "gateway"} for setting in peer.settings)
    return replace(peer, name=f"{peer.name}, our preprocessing", settings=settings)


COMMON = {
    "BENTOML_DO_NOT_TRACK": "True",
    "DO_NOT_TRACK": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    # Triton's stub must load the library of the Python whose modules it imports.
    "LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR"),
}


@dataclass
class Running:
    """A server that answers."""

    server: Server
    port: int
    process: Process
    counter: Path
    spec: load.Spec = field(init=False)

    def __post_init__(self) -> None:
        self.spec = load.Spec(
            port=self.port,
            path=self.server.path,
            form=self.server.form,
            images=str(images.written()),
            seconds=1,
        )

    def load(self, **changes: object) -> load.Outcome:
        """Put it under load; `changes` are of `load.Spec`."""
        return load.run(replace(self.spec, **changes))  # type: ignore[arg-type]

    def computed(self) -> int:
        """Images that went through the model so far."""
        if self.server.name.startswith("foveal"):
            return _computed_by_foveal(self.port)
        return self.counter.stat().st_size

    @contextmanager
    def turn(self) -> Iterator[Running]:
        """Let it run, and pause it afterwards."""
        self.process.resume()
        self.load(seconds=0.5, connections=2)
        try:
            yield self
        finally:
            self.rest()

    def rest(self) -> None:
        """Take no processor time from others, if it can bear that."""
        if self.server.paused:
            self.process.pause()


@contextmanager
def running(server: Server, bundle: Bundle) -> Iterator[Running]:
    """Start a server with its first setting, wait until it answers, and stop it in the end.

    Raises:
        PeerFailed: A peer ends or does not answer; the message has what it printed last.
        RuntimeError: The gateway does.
    """
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    started = _start(server, bundle, folder)
    try:
        yield started
    finally:
        started.process.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _start(server: Server, bundle: Bundle, folder: Path) -> Running:
    for attempt in range(ATTEMPTS):
        started = _launch(server, bundle, folder / str(attempt))
        if _answers(started):
            return started
        started.process.stop()
    printed = (folder / str(attempt) / "log").read_text()[-4000:]
    shutil.rmtree(folder)
    message = f"{server.name} does not answer; it printed: {printed}"
    raise PeerFailed(message) if server.is_peer else RuntimeError(message)


def _launch(server: Server, bundle: Bundle, folder: Path) -> Running:
    folder.mkdir()
    port = free_port()
    env = {
        **COMMON,
        **server.settings[0],
        "FOVEAL_MODEL": str(bundle.path),
        "FOVEAL_DATA": str(folder / "data"),
        "BENCH_BUNDLE": str(bundle.path),
        "BENCH_PORT": str(port),
        "BENCH_FOLDER": str(folder),
        "BENCH_COUNTER": str(folder / "counter"),
        "BENTOML_HOME": str(folder / "bentoml"),
        "RAY_TMPDIR": str(folder),
    }
    command = [part.format(port=port) for part in server.command]
    return Running(server, port, Process(command, env, folder / "log"), folder / "counter")


@contextmanager
def lineup(servers: list[Server], bundle: Bundle) -> Iterator[list[Running]]:
    """All servers at once, each paused until its turn comes; a peer that fails is left out."""
    with ExitStack() as stack:
        started = []
        for server in servers:
            try:
                found = stack.enter_context(running(server, bundle))
            except PeerFailed as error:
                print(error, flush=True)
                continue
            found.load(seconds=2, connections=16)
            found.rest()
            started.append(found)
        yield started


def tuned(server: Server, bundle: Bundle, seconds: float) -> tuple[Server, dict[str, float]]:
    """The server at the quickest of its settings, and images a second at each of them."""
    if len(server.settings) == 1:
        return server, {}
    rates: dict[str, float] = {}
    for setting in server.settings:
        with suppress(PeerFailed), running(server.at(setting), bundle) as started:
            started.load(seconds=1, connections=16)
            rates[setting["BENCH_BATCH"]] = round(
                started.load(seconds=seconds, connections=16).rate, 2
            )
    if not rates:
        return server.at(server.settings[0]), {}
    best = max(rates, key=lambda batch: rates[batch])
    return server.at(next(s for s in server.settings if s["BENCH_BATCH"] == best)), rates


def _answers(started: Running) -> bool:
    """Wait until the server answers; False when it ended or never did."""
    limit = time.monotonic() + READY
    while time.monotonic() < limit and not started.process.ended:
        if started.load(seconds=0.2, connections=1).statuses.keys() == {"200"}:
            return True
        time.sleep(0.3)
    return False


def _computed_by_foveal(port: int) -> int:
    from urllib.request import urlopen

    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("foveal_batch_size_sum"):
                return round(float(line.rpartition(" ")[2]))
    raise RuntimeError("the gateway's metrics have no foveal_batch_size_sum")
