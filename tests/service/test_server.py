"""The end of a server: under load, with nothing dropped."""

import io
import socket
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import httpx
from PIL import Image

from service.bundle import Bundle
from tests.service.gateways import PNG, photograph
from tests.service.processes import serving
from tests.service.wire import read_all, read_answer

STUCK = """
import threading
import service.batching, service.engines.onnx as onnx
from service.__main__ import main

service.batching.STUCK = 0.5
run = onnx.Graph.__call__

def never_ends(graph, images, outputs):
    if images.min() == 255:
        threading.Event().wait()
    return run(graph, images, outputs)

onnx.Graph.__call__ = never_ends
main()
"""


def embed_request(photo: bytes, *headers: bytes) -> bytes:
    lines = [b"POST /embed HTTP/1.1", b"Host: x", b"Content-Type: image/png", *headers]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(photo), b"", photo])


def target(address: str) -> tuple[str, int]:
    url = httpx.URL(address)
    return url.host, url.port


def test_sigterm_answers_what_is_in_flight(bundle: Bundle, tmp_path: Path) -> None:
    photo = photograph()
    with serving("--model", bundle.path, "--data", tmp_path) as server:
        with socket.create_connection(target(server.address), timeout=20) as raw:
            head, _, _ = embed_request(photo, b"Expect: 100-continue").partition(b"\r\n\r\n")
            raw.sendall(head + b"\r\n\r\n")
            assert raw.recv(100).startswith(b"HTTP/1.1 100")  # the handler has begun
            server.process.terminate()
            finish = threading.Timer(0.5, raw.sendall, [photo])
            finish.start()
            answer = read_all(raw)
            finish.join()
        assert answer.startswith(b"HTTP/1.1 200")
        assert server.process.wait(20) == 0


def test_while_draining_it_is_alive_not_ready_and_takes_what_open_connections_bring(
    bundle: Bundle, tmp_path: Path
) -> None:
    with serving("--model", bundle.path, "--data", tmp_path) as server:
        holding, live, ready, silent, asking = (
            socket.create_connection(target(server.address), timeout=20) for _ in range(5)
        )
        photo = photograph()
        holding.sendall(embed_request(photo)[:-10])
        asking.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_answer(asking).startswith(b"HTTP/1.1 200")
        server.process.terminate()
        time.sleep(0.3)
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
        assert server.process.wait(20) == 0


def test_what_strangers_send_does_not_fill_the_log(bundle: Bundle, tmp_path: Path) -> None:
    with serving("--model", bundle.path, "--data", tmp_path) as server:
        for garbage in (b"\x16\x03\x01\r\n\r\n", b"GET / HTTP/1.1\r\nx: " + 70_000 * b"x"):
            with socket.create_connection(target(server.address), timeout=20) as raw:
                raw.sendall(garbage)
                assert read_all(raw).startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))
        assert server.end() == 0
        assert server.log == ""


def hammer(address: tuple[str, int], photo: bytes, keep: bool, outcomes: Counter) -> None:
    """Ask until nobody listens; count what became of each request that was sent."""
    request = embed_request(photo, *([] if keep else [b"Connection: close"]))
    while True:
        try:
            connection = socket.create_connection(address, timeout=20)
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
        time.sleep(1)
        assert server.end() == 0
        for client in clients:
            client.join(30)
            assert not client.is_alive()
        log = server.log
    assert outcomes.keys() == {b"HTTP/1.1 200"}, outcomes
    assert outcomes.total() > 50
    assert log == ""


def test_where_a_run_never_ends_others_are_answered_and_the_process_ends_for_another_to_start(
    bundle: Bundle, tmp_path: Path
) -> None:
    white = io.BytesIO()
    Image.new("RGB", (80, 120), "white").save(white, "PNG")
    program = [sys.executable, "-c", STUCK]
    arguments = ("--model", bundle.path, "--data", tmp_path, "--engine", "onnx")
    limits = {"FOVEAL_REQUEST_TIMEOUT": "2", "FOVEAL_THREADS": "2"}
    with serving(*arguments, program=program, **limits) as server:
        with httpx.Client(base_url=server.address, timeout=20) as client:
            assert client.post("/embed", content=white.getvalue(), headers=PNG).status_code == 504
            assert client.post("/embed", content=photograph(), headers=PNG).status_code == 200
        assert server.process.wait(20) == 70
        assert "this process ends, and another should be started" in server.log
        assert "in never_ends" in server.log
