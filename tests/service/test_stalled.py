"""Clients that do not read what they asked for, or slowly."""

import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from service.bundle import Bundle
from tests.service.exposition import samples
from tests.service.gateways import photograph
from tests.service.processes import Serving, serving
from tests.service.wire import read_all, read_answer
from tests.waiting import wait_until

IMAGES = 48
ANSWER = IMAGES * 64 * 64 * 16 * 4  # bytes of float32; far more than the kernels keep
REQUEST_TIMEOUT = "600"  # so large an answer takes a slow machine long
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
Connect = Callable[..., socket.socket]


@pytest.fixture(scope="module")
def server(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    arguments = ("--model", bundle.path, "--data", tmp_path_factory.mktemp("data"))
    settings = {"FOVEAL_WRITE_TIMEOUT": "2", "FOVEAL_REQUEST_TIMEOUT": REQUEST_TIMEOUT}
    with serving(*arguments, **settings) as started:
        yield started


def connect(server: Serving, buffer: int = 4096) -> socket.socket:
    """A connection whose own end keeps hardly anything."""
    url = httpx.URL(server.address)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(60)
    connection.connect((url.host, url.port))
    return connection


def large(*headers: str) -> bytes:
    """Asks for an answer of `ANSWER` bytes and its head."""
    files = [("images", photograph())] * IMAGES
    request = httpx.Request(
        "POST",
        "http://x/embed?pooling=patches&size=512",
        files=files,
        headers={"Accept": "application/x-npy"} | dict(h.split(": ") for h in headers),
    )
    lines = [b"POST %b HTTP/1.1" % request.url.raw_path]
    lines += [b"%b: %b" % header for header in request.headers.raw]
    return b"\r\n".join([*lines, b"", request.read()])


def counted(server: Serving, name: str) -> dict[tuple[str, ...], float]:
    return samples(httpx.get(server.address + "/metrics", timeout=60).text, name)


def begun(connection: socket.socket) -> bool:
    """Whether an answer has begun to come."""
    return bool(select.select([connection], [], [], 60)[0])


def is_reset(connection: socket.socket, seconds: float) -> bool:
    """Whether the server resets the connection, of which nothing is read meanwhile."""
    poll = select.poll()
    poll.register(connection, 0)  # of errors alone
    return bool(poll.poll(1000 * seconds))


@pytest.mark.parametrize("headers", [(), ("Connection: close",)])
def test_who_reads_nothing_is_given_up_and_a_neighbour_is_not(
    server: Serving, headers: tuple[str, ...]
) -> None:
    route = ("POST", "200", "/embed")
    http = "http_server_request_duration_seconds_count"
    requests = counted(server, http).get(route, 0)
    given_up = counted(server, "foveal_unread_answers_total")[()]
    with connect(server) as silent, connect(server) as neighbour:
        silent.sendall(large(*headers))
        deadline = time.monotonic() + 60
        while not is_reset(silent, 0.1):
            assert time.monotonic() < deadline
            neighbour.sendall(LIVEZ)
            assert read_answer(neighbour).startswith(b"HTTP/1.1 200")
    assert counted(server, "foveal_unread_answers_total")[()] == given_up + 1
    wait_until(lambda: counted(server, http).get(route, 0) > requests)
    assert counted(server, http)[route] == requests + 1
    assert "Traceback" not in server.log


def test_who_asks_again_and_again_and_reads_nothing_is_given_up(server: Serving) -> None:
    with connect(server) as silent:
        silent.sendall(1000 * b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
        assert is_reset(silent, 60)


def test_who_reads_slowly_gets_everything(server: Serving) -> None:
    """So slowly that for several timeouts the server's kernel has no room for more."""
    with connect(server) as slow:
        slow.sendall(large("Connection: close"))
        started, got = time.monotonic(), 0
        while got < 600_000:
            got += len(slow.recv(5000))
            time.sleep(max(0, started + got / 100_000 - time.monotonic()))
        assert got + len(read_all(slow)) > ANSWER


def test_who_comes_back_in_time_gets_everything_and_may_ask_again(server: Serving) -> None:
    with connect(server, 65536) as pausing:
        pausing.sendall(large())
        assert begun(pausing)
        time.sleep(0.5)
        assert read_answer(pausing).startswith(b"HTTP/1.1 200")
        pausing.sendall(LIVEZ)
        assert read_answer(pausing).startswith(b"HTTP/1.1 200")


def test_sigterm_does_not_wait_for_who_reads_nothing(bundle: Bundle, tmp_path: Path) -> None:
    arguments = ("--model", bundle.path, "--data", tmp_path)
    settings = {"FOVEAL_WRITE_TIMEOUT": "1", "FOVEAL_REQUEST_TIMEOUT": REQUEST_TIMEOUT}
    with serving(*arguments, **settings) as server, connect(server) as silent:
        silent.sendall(large())
        assert begun(silent)
        server.process.terminate()
        # The longest drain is 620 s.
        assert server.process.wait(60) == 0
        assert is_reset(silent, 60)
        assert server.log == ""


def test_an_answer_that_waits_in_full_is_read_to_its_end_during_the_drain(
    bundle: Bundle, tmp_path: Path
) -> None:
    arguments = ("--model", bundle.path, "--data", tmp_path)
    settings = {"FOVEAL_REQUEST_TIMEOUT": REQUEST_TIMEOUT}
    with serving(*arguments, **settings) as server, connect(server, 65536) as late:
        late.sendall(large("Connection: close"))
        assert begun(late)
        server.process.terminate()
        time.sleep(0.5)
        assert len(read_all(late)) > ANSWER
        assert server.process.wait(60) == 0
