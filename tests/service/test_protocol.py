"""Connections that keep us waiting, say too much or are too many."""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from service.bundle import Bundle
from tests.service.exposition import samples
from tests.service.gateways import assert_problem, photograph
from tests.service.processes import serving
from tests.service.wire import read_all, read_answer
from tests.waiting import wait_until

Connect = Callable[[], socket.socket]

LAST = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
UPGRADES = {
    "as curl asks": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings:\r\n",
    "in any case": b"connection: keep-alive\r\nCONNECTION: uPgRaDe\r\nuPGRADe: websocket\r\n",
    "many times": b"Connection: upgrade\r\n" + 50 * b"Upgrade: a\r\n",
}


@contextmanager
def limited(bundle: Bundle, data: Path, header_timeout: str) -> Iterator[tuple[str, int]]:
    limits = {"FOVEAL_HEADER_TIMEOUT": header_timeout, "FOVEAL_MAX_HEADER_BYTES": "4096"}
    with serving("--model", bundle.path, "--data", data, **limits) as server:
        url = httpx.URL(server.address)
        yield url.host, url.port


@pytest.fixture(scope="module")
def patient(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    with limited(bundle, tmp_path_factory.mktemp("data"), "600") as address:
        yield address


@pytest.fixture(scope="module")
def hasty(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    with limited(bundle, tmp_path_factory.mktemp("data"), "2") as address:
        yield address


@contextmanager
def connecting(address: tuple[str, int]) -> Iterator[Connect]:
    with ExitStack() as opened:
        yield lambda: opened.enter_context(socket.create_connection(address, timeout=60))


@pytest.fixture
def connect(patient: tuple[str, int]) -> Iterator[Connect]:
    with connecting(patient) as connect:
        yield connect


@pytest.fixture
def connect_in_haste(hasty: tuple[str, int]) -> Iterator[Connect]:
    """To a server that waits two seconds for headers."""
    with connecting(hasty) as connect:
        yield connect


def parse(answer: bytes) -> httpx.Response:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return httpx.Response(int(status.split()[1]), headers=headers, content=body)


def test_headers_that_trickle_in_are_cut_off(connect_in_haste: Connect) -> None:
    connection = connect_in_haste()
    connection.sendall(b"GET /livez HTTP/1.1\r\n")
    stop = threading.Event()

    def trickle() -> None:
        while not stop.wait(0.1):
            try:
                connection.sendall(b"X-A: b\r\n")
            except OSError:
                return

    thread = threading.Thread(target=trickle)
    thread.start()
    answer = parse(read_all(connection))
    stop.set()
    thread.join()
    assert_problem(answer, 408, "headers_timeout", "2 s")
    assert answer.headers["connection"] == "close"


def test_a_connection_that_says_nothing_is_closed(connect_in_haste: Connect) -> None:
    assert read_all(connect_in_haste()) == b""


def test_headers_that_trickle_in_after_a_first_request_are_cut_off(
    connect_in_haste: Connect,
) -> None:
    connection = connect_in_haste()
    connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    assert read_answer(connection).startswith(b"HTTP/1.1 200")
    connection.sendall(b"GET /liv")
    assert_problem(parse(read_all(connection)), 408, "headers_timeout")


def test_a_body_that_nobody_reads_does_not_hold_a_connection(connect_in_haste: Connect) -> None:
    connection = connect_in_haste()
    connection.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\nabc")
    assert read_answer(connection).startswith(b"HTTP/1.1 404")
    connection.sendall(b"def")
    assert read_all(connection) == b""


@pytest.mark.parametrize("pieces", [1, 50])
@pytest.mark.parametrize("more", [b"", UPGRADES["as curl asks"]], ids=["plain", "upgrade"])
def test_headers_over_their_limit_are_refused(connect: Connect, pieces: int, more: bytes) -> None:
    connection = connect()
    request = b"GET /livez HTTP/1.1\r\nHost: x\r\n" + more + b"X-A: " + 5000 * b"a" + b"\r\n\r\n"
    size = -(-len(request) // pieces)
    for start in range(0, len(request), size):
        connection.sendall(request[start : start + size])
    assert_problem(parse(read_all(connection)), 431, "headers_too_large", "4096 bytes")


def test_headers_below_it_beside_a_large_body_are_not(connect: Connect) -> None:
    connection = connect()
    body = 20_000 * b"a"
    head = b"POST /nothing HTTP/1.1\r\nHost: x\r\nX-A: %b\r\nContent-Length: %d\r\n\r\n"
    connection.sendall(head % (3900 * b"a", len(body)) + body)
    assert read_answer(connection).startswith(b"HTTP/1.1 404")


def test_what_is_not_http_is_told(connect: Connect) -> None:
    connection = connect()
    connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
    assert_problem(parse(read_all(connection)), 400, "malformed_request", "HTTP/1.1")


def test_beyond_the_most_connections_requests_are_refused_and_probes_are_not(
    bundle: Bundle, tmp_path: Path
) -> None:
    arguments = ("--model", bundle.path, "--data", tmp_path)
    with serving(*arguments, FOVEAL_MAX_CONNECTIONS="2") as server, ExitStack() as stack:
        url = httpx.URL(server.address)
        first, second, third = (
            stack.enter_context(socket.create_connection((url.host, url.port), timeout=60))
            for _ in range(3)
        )
        # By the answers all three are known to be accepted.
        for connection in (first, second, third):
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_answer(connection).startswith(b"HTTP/1.1 200")
        first.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        refused = parse(read_all(first))
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["x-request-id"]
        assert refused.json()["error"]["code"] == "overloaded"
        second.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_answer(second).startswith(b"HTTP/1.1 200")


def test_pipelined_requests_are_answered_in_their_order(connect_in_haste: Connect) -> None:
    connection = connect_in_haste()
    paths = ("/livez", "/readyz", "/nothing")
    connection.sendall(b"".join(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % p.encode() for p in paths))
    answers = read_all(connection)  # until the connection has been idle for long
    marks = [answers.index(mark) for mark in (b"alive", b"ready", b"not_found")]
    assert marks == sorted(marks)


def test_many_small_requests_at_once_are_not_one_with_large_headers(connect: Connect) -> None:
    connection = connect()
    request = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
    connection.sendall(999 * (request + b"\r\n") + request)
    time.sleep(0.2)  # a read that ends inside of the last one's headers
    connection.sendall(b"Connection: close\r\n\r\n")
    assert read_all(connection).count(b"HTTP/1.1 200") == 1000


def test_what_is_behind_a_whole_request_and_no_http_costs_it_nothing(connect: Connect) -> None:
    connection = connect()
    connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n\x16\x03\x01\r\n\r\n")
    answer = parse(read_all(connection))
    assert answer.json() == {"status": "alive"}
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("upgrade", UPGRADES.values(), ids=UPGRADES)
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("pieces", [1, 9])
def test_a_request_that_asks_for_an_upgrade_is_answered_like_any_other(
    connect: Connect, upgrade: bytes, chunked: bool, pieces: int
) -> None:
    photo = photograph()
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(photo)
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(photo), photo) if chunked else photo
    head = b"POST /embed HTTP/1.1\r\nHost: x\r\n" + upgrade + framing
    request = head + b"\r\nContent-Type: image/png\r\n\r\n" + body
    connection = connect()
    sent = request + request + LAST
    size = -(-len(sent) // pieces)
    for start in range(0, len(sent), size):
        connection.sendall(sent[start : start + size])
        time.sleep(0.02)  # so that each is likely to be a read of its own
    answers = read_all(connection)
    assert answers.count(b"HTTP/1.1 ") == answers.count(b"HTTP/1.1 200") == 3
    assert answers.count(b'"embedding"') == 2
    assert answers.endswith(b'{"status":"alive"}')


def test_the_body_of_a_request_that_asks_for_an_upgrade_is_no_request(connect: Connect) -> None:
    connection = connect()
    body = b"DELETE /collections/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    head = b"POST /embed HTTP/1.1\r\nHost: x\r\n" + UPGRADES["as curl asks"]
    connection.sendall(head + b"Content-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(body))
    time.sleep(0.1)
    connection.sendall(body)
    time.sleep(0.1)
    connection.sendall(LAST)
    assert re.findall(rb"HTTP/1.1 (\d+)", read_all(connection)) == [b"415", b"200"]


def test_several_requests_in_one_read_may_ask_for_an_upgrade(connect: Connect) -> None:
    connection = connect()
    head = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
    connection.sendall(30 * (head + UPGRADES["in any case"] + b"\r\n") + LAST)
    assert read_all(connection).count(b"HTTP/1.1 200") == 31


def test_a_tunnel_is_refused_with_all_that_is_sent_into_it(connect: Connect) -> None:
    connection = connect()
    connection.sendall(b"CONNECT /livez HTTP/1.1\r\nHost: x\r\n\r\n" + LAST)
    assert_problem(parse(read_all(connection)), 400, "malformed_request", "CONNECT")


def test_answers_outside_of_the_application_are_told_of_like_all_others(
    bundle: Bundle, tmp_path: Path
) -> None:
    head = b"X-Request-Id: mine\r\nHost: x\r\n"
    post = b"POST /embed HTTP/1.1\r\n" + head + b"Transfer-Encoding: chunked\r\n\r\n"
    cases = {
        b"\x16\x03\x01 hello\r\n\r\n": ("_OTHER", "-", 400),
        b"FETCH /embed HTTP/1.1\r\n" + head + b"\r\n": ("_OTHER", "-", 400),
        b"GET /embed?a=secret HTTP/1.1\r\n" + head + b"a b: c\r\n\r\n": ("GET", "/embed", 400),
        b"GET /embed?a=secret HTTP/1.1\r\n" + head: ("GET", "/embed", 408),
        b"PUT /a HTTP/1.1\r\n" + head + b"A: " + 5000 * b"a" + b"\r\n\r\n": ("PUT", "/a", 431),
        # Its body alone is none: the application, which heard of it, tells that it was given up.
        post + b"none\r\n\r\n": ("POST", "/embed", 499),
    }
    settings = {
        "FOVEAL_HEADER_TIMEOUT": "1",
        "FOVEAL_MAX_HEADER_BYTES": "4096",
        "FOVEAL_ACCESS_LOG": "true",
        "FOVEAL_LOG_FORMAT": "json",
    }
    with serving("--model", bundle.path, "--data", tmp_path, **settings) as server:
        url = httpx.URL(server.address)
        answers = []
        for case in cases:
            with socket.create_connection((url.host, url.port), timeout=60) as connection:
                connection.sendall(case)
                answers.append(parse(read_all(connection)))
        wait_until(lambda: server.log.count("foveal.access") == len(cases))
        text = httpx.get(url.join("/metrics"), timeout=60).text
        lines = [json.loads(line) for line in server.log.splitlines()]
    told = [line for line in lines if line["logger"] == "foveal.access"][: len(cases)]
    assert [(line["method"], line["path"], line["status"]) for line in told] == [*cases.values()]
    assert "secret" not in json.dumps(lines)
    assert not [line for line in lines if line["level"] == "error"]
    # Of the first two no header was read.
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert ids == [line["request_id"] for line in told]
    assert ids[2:] == ["mine"] * 4
    assert samples(text, "http_server_request_duration_seconds_count") == {
        ("_OTHER", "400", "unknown"): 2,
        ("GET", "400", "unknown"): 1,
        ("GET", "408", "unknown"): 1,
        ("PUT", "431", "unknown"): 1,
        ("POST", "499", "/embed"): 1,
    }
