"""The end of a server: under load, with nothing dropped."""

import io
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from PIL import Image

from service.bundle import Bundle
from tests.bundles import make_bundle
from tests.service.gateways import PNG, photograph
from tests.service.processes import Serving, serving
from tests.service.wire import read_all, read_answer
from tests.waiting import wait_until

# A run of what is white begins and goes on until it is set free.
STUCK = """
import os, time
from pathlib import Path
import service.batching, service.engines.onnx as onnx, service.server
from service.__main__ import main

service.batching.STUCK = 0.5
service.server.STUCK_TICKS = 5
run = onnx.Graph.__call__
begun, free, ended = (Path(os.environ["STUCK"], name) for name in ("begun", "free", "ended"))

def stuck(graph, images, outputs):
    if (images.min(axis=(1, 2, 3)) == 255).any():
        begun.touch()
        while not free.exists():
            time.sleep(0.05)
        ended.touch()
    return run(graph, images, outputs)

onnx.Graph.__call__ = stuck
main()
"""


def embed_request(photo: bytes, *headers: bytes) -> bytes:
    lines = [b"POST /embed HTTP/1.1", b"Host: x", b"Content-Type: image/png", *headers]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(photo), b"", photo])


def target(address: str) -> tuple[str, int]:
    url = httpx.URL(address)
    return url.host, url.port


def refuses(address: tuple[str, int]) -> bool:
    """Whether nobody listens, which is so while a server drains."""
    try:
        socket.create_connection(address, timeout=60).close()
    except OSError:
        return True
    return False


def test_sigterm_answers_what_is_in_flight(bundle: Bundle, tmp_path: Path) -> None:
    photo = photograph()
    with serving("--model", bundle.path, "--data", tmp_path) as server:
        with socket.create_connection(target(server.address), timeout=60) as raw:
            head, _, _ = embed_request(photo, b"Expect: 100-continue").partition(b"\r\n\r\n")
            raw.sendall(head + b"\r\n\r\n")
            assert raw.recv(100).startswith(b"HTTP/1.1 100")  # the handler has begun
            server.process.terminate()
            finish = threading.Timer(0.5, raw.sendall, [photo])
            finish.start()
            answer = read_all(raw)
            finish.join()
        assert answer.startswith(b"HTTP/1.1 200")
        assert server.process.wait(60) == 0


def test_while_draining_it_is_alive_not_ready_and_takes_what_open_connections_bring(
    bundle: Bundle, tmp_path: Path
) -> None:
    with serving("--model", bundle.path, "--data", tmp_path) as server:
        holding, live, ready, silent, asking = (
            socket.create_connection(target(server.address), timeout=60) for _ in range(5)
        )
        photo = photograph()
        holding.sendall(embed_request(photo)[:-10])
        asking.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_answer(asking).startswith(b"HTTP/1.1 200")
        server.process.terminate()
        wait_until(lambda: refuses(target(server.address)))
        live.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        ready.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        asking.sendall(embed_request(photo))
        holding.sendall(photo[-10:])
        for connection, status in ((live, 200), (ready, 503), (asking, 200), (holding, 200)):
            answer = read_all(connection)
            assert answer.startswith(b"HTTP/1.1 %d" % status)
            assert b"connection: close" in answer.lower()
            connection.close()
        assert read_all(silent) == b""
        silent.close()
        assert server.process.wait(60) == 0


def test_what_strangers_send_does_not_fill_the_log(bundle: Bundle, tmp_path: Path) -> None:
    with serving("--model", bundle.path, "--data", tmp_path) as server:
        for garbage in (b"\x16\x03\x01\r\n\r\n", b"GET / HTTP/1.1\r\nx: " + 70_000 * b"x"):
            with socket.create_connection(target(server.address), timeout=60) as raw:
                raw.sendall(garbage)
                assert read_all(raw).startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))
        assert server.end() == 0
        assert server.log == ""


def hammer(address: tuple[str, int], photo: bytes, keep: bool, outcomes: Counter) -> None:
    """Ask until nobody listens; count what became of each request that was sent."""
    request = embed_request(photo, *([] if keep else [b"Connection: close"]))
    while True:
        try:
            connection = socket.create_connection(address, timeout=60)
        except ConnectionRefusedError:
            return
        with connection:
            while True:
                answer = b""
                # Broken off, it is a request that was accepted and got no answer.
                with suppress(OSError):
                    connection.sendall(request)
                    answer = read_answer(connection)
                outcomes[answer[:12]] += 1
                if not answer or b"connection: close" in answer.lower():
                    break


def test_under_load_not_one_accepted_request_fails(bundle: Bundle, tmp_path: Path) -> None:
    """Half of the clients reuse connections, the others open one for each request."""
    outcomes: Counter = Counter()
    with serving("--model", bundle.path, "--data", tmp_path) as server:
        clients = [
            threading.Thread(
                target=hammer,
                args=(target(server.address), photograph(n), n % 2 == 0, outcomes),
            )
            for n in range(16)
        ]
        for client in clients:
            client.start()
        wait_until(lambda: outcomes.total() > 50)
        assert server.end() == 0
        for client in clients:
            client.join(60)
            assert not client.is_alive()
        log = server.log
    assert outcomes.keys() == {b"HTTP/1.1 200"}, outcomes
    assert log == ""


@pytest.fixture
def white() -> bytes:
    """The photograph that the model of `STUCK` does not get done with."""
    buffer = io.BytesIO()
    Image.new("RGB", (80, 120), "white").save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def sticking(bundle: Bundle, data: Path, **settings: str) -> Iterator[Serving]:
    arguments = ("--model", bundle.path, "--data", data, "--engine", "onnx")
    settings = {"FOVEAL_THREADS": "2", "STUCK": str(data), **settings}
    with serving(*arguments, program=[sys.executable, "-c", STUCK], **settings) as server:
        yield server


@contextmanager
def asking_in_vain(server: Serving, data: Path, white: bytes, **query: str) -> Iterator[None]:
    """Ask for what is not answered; inside, the model is at it, and wanted for a while."""
    impatient = PNG | {"X-Request-Timeout-Ms": "2000"}
    with httpx.Client(base_url=server.address, timeout=60) as client, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.post, "/embed", params=query, content=white, headers=impatient)
        wait_until((data / "begun").exists)
        yield
        assert asked.result().status_code == 504


def assert_ended_for_another_to_start(server: Serving) -> None:
    assert server.process.wait(60) == 70
    assert "this process ends, and another should be started" in server.log
    assert "in stuck" in server.log


def test_where_a_run_never_ends_others_are_answered_and_the_process_ends(
    bundle: Bundle, tmp_path: Path, white: bytes
) -> None:
    with sticking(bundle, tmp_path) as server:
        with asking_in_vain(server, tmp_path, white):
            url = f"{server.address}/embed"
            other = httpx.post(url, content=photograph(), headers=PNG, timeout=60)
        assert other.status_code == 200
        assert_ended_for_another_to_start(server)


def test_a_run_that_never_ends_is_noticed_of_a_model_that_was_unloaded_as_well(
    bundle: Bundle, tmp_path: Path, white: bytes
) -> None:
    make_bundle(tmp_path / "models" / "other", name="other")
    repository = str(tmp_path / "models")
    with sticking(bundle, tmp_path, FOVEAL_REPOSITORY=repository) as server:
        with asking_in_vain(server, tmp_path, white, model="other"):
            url = f"{server.address}/v2/repository/models/other/unload"
            unloaded = httpx.post(url, timeout=60)
        assert unloaded.status_code == 200
        assert_ended_for_another_to_start(server)


def test_a_server_that_ends_for_a_stuck_run_says_so_though_the_run_ends_meanwhile(
    bundle: Bundle, tmp_path: Path, white: bytes
) -> None:
    photo = photograph()
    with sticking(bundle, tmp_path, FOVEAL_BODY_TIMEOUT="120") as server:
        with socket.create_connection(target(server.address), timeout=60) as raw:
            raw.sendall(embed_request(photo)[:-10])
            with asking_in_vain(server, tmp_path, white):
                pass
            wait_until(lambda: "this process ends" in server.log)
            (tmp_path / "free").touch()
            wait_until((tmp_path / "ended").exists)
            raw.sendall(photo[-10:])
            assert read_all(raw).startswith(b"HTTP/1.1 200")
        assert_ended_for_another_to_start(server)
