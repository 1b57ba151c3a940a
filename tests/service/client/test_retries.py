"""Both clients against a server that follows a script, and the rules of waiting by themselves."""

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import numpy as np
import pytest

from service.client import (
    InvalidInput,
    RateLimited,
    Retries,
    ServerFailure,
    Unavailable,
    Unreachable,
)
from service.client.retries import Attempts
from tests.clock import Clock
from tests.service.client.conftest import Connect

DROP = None
OK = (200, {}, b'{"collections": []}')


def problem(status: int, **headers: str) -> tuple[int, dict[str, str], bytes]:
    body = f'{{"status": {status}, "code": "busy", "title": "", "type": "", "detail": "Wait."}}'
    return status, headers, body.encode()


class Script:
    """Answers request by request; remembers what each carried."""

    def __init__(self, *answers: tuple[int, dict[str, str], bytes] | None) -> None:
        self.seen: list[tuple[str, bytes]] = []
        self._answers = iter(answers)
        script = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("content-length", 0))
                script.seen.append((self.headers.get("authorization", ""), self.rfile.read(length)))
                answer = next(script._answers)
                if answer is DROP:
                    self.connection.close()
                    return
                status, headers, body = answer
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = answer  # noqa: N815 - the names are http.server's

            def log_message(self, *_: object) -> None:
                pass

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except (OSError, ValueError):  # its own connection, closed by DROP
                    self.close_connection = True

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @contextmanager
    def running(self) -> Iterator[str]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{self._server.server_address[1]}"
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()


def test_a_busy_server_is_asked_again_until_it_answers(connect: Connect) -> None:
    script = Script(problem(429, Retry_After="7"), problem(503), DROP, problem(504), OK)
    slept: list[float] = []
    with script.running() as url:
        client = connect(url, slept=slept, retries=Retries(first=1.0, total=1000.0))
        assert client.collections() == []
        client.close()
    assert len(script.seen) == 5
    assert 7 <= slept[0] < 8
    assert 0 <= slept[1] < 2
    assert 0 <= slept[2] < 4
    assert 0 <= slept[3] < 8


def test_every_attempt_carries_the_whole_request(connect: Connect) -> None:
    script = Script(problem(503), DROP, (200, {}, b'{"results": []}'))
    with script.running() as url:
        client = connect(url, api_key="secret")
        assert client.similar(b"photograph", k=3) == []
        client.close()
    assert {key for key, _ in script.seen} == {"Bearer secret"}
    assert len(script.seen) == 3
    assert all(body.count(b"photograph") == 1 and b"3" in body for _, body in script.seen)


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, InvalidInput), (422, InvalidInput), (500, ServerFailure), (502, ServerFailure)],
)
def test_what_fails_again_is_not_tried_again(
    connect: Connect, status: int, error: type[Exception]
) -> None:
    script, slept = Script(problem(status)), list[float]()
    with script.running() as url:
        client = connect(url, slept=slept)
        with pytest.raises(error, match="busy: Wait"):
            client.collections()
        client.close()
    assert len(script.seen) == 1
    assert slept == []


@pytest.mark.parametrize(("status", "error"), [(429, RateLimited), (503, Unavailable)])
def test_attempts_are_bounded(connect: Connect, status: int, error: type[Exception]) -> None:
    script = Script(*[problem(status)] * 3)
    with script.running() as url:
        client = connect(url, retries=Retries(attempts=3))
        with pytest.raises(error) as raised:
            client.collections()
        client.close()
    assert raised.value.status == status
    assert len(script.seen) == 3


def test_a_wait_beyond_the_total_is_not_begun(connect: Connect) -> None:
    script, slept = Script(problem(503, Retry_After="3600")), list[float]()
    with script.running() as url:
        client = connect(url, slept=slept)
        with pytest.raises(Unavailable):
            client.collections()
        client.close()
    assert slept == []


def test_a_proxy_that_answers_html_is_an_error_with_its_words(connect: Connect) -> None:
    with Script((502, {}, b"<h1>Bad gateway</h1>")).running() as url:
        client = connect(url)
        with pytest.raises(ServerFailure, match="http_502: <h1>Bad gateway") as raised:
            client.collections()
        client.close()
    assert raised.value.status == 502


def embedded(*vectors: list[float] | None) -> tuple[int, dict[str, str], bytes]:
    """An answer of `/embed`, None where an image found the queue full."""
    full = json.loads(problem(503)[2])
    entries = [
        {"error": full}
        if vector is None
        else {"embedding": base64.b64encode(np.array(vector, "<f4").tobytes()).decode()}
        for vector in vectors
    ]
    answer = {"model": "m", "digest": "d", "dim": 1, "embeddings": entries}
    return 200, {}, json.dumps(answer).encode()


def test_of_many_images_those_that_found_the_queue_full_are_sent_again(connect: Connect) -> None:
    script = Script(
        embedded([0], None, [2], None), embedded(None, [3]), problem(503), embedded([1])
    )
    with script.running() as url:
        client = connect(url)
        images = [b"image-0", b"image-1", b"image-2", b"image-3"]
        answers = list(client.embed_many(images))
        client.close()
    assert [float(answer.vector[0]) for _, answer in answers] == [0, 1, 2, 3]
    sent = [re.findall(rb"image-\d", body) for _, body in script.seen]
    assert sent == [images, [images[1], images[3]], [images[1]], [images[1]]]


def busy(retry_after: str | None = None) -> httpx.Response:
    return httpx.Response(503, headers={} if retry_after is None else {"Retry-After": retry_after})


def attempts(draw: float = 0.5, **bounds: Any) -> tuple[Attempts, Clock]:
    clock = Clock(1_700_000_000.0)
    return Attempts(Retries(**bounds), clock=clock, now=clock, draw=lambda: draw), clock


def test_pauses_double_up_to_their_bound() -> None:
    tried, _ = attempts(attempts=7, first=1.0, longest=10.0, total=1000.0)
    assert [tried.judge(busy()) for _ in range(6)] == [0.5, 1, 2, 4, 5, 5]
    assert isinstance(tried.judge(busy()), httpx.Response)


@pytest.mark.parametrize("draw", [0.0, 0.999])
def test_retry_after_in_seconds_is_the_least(draw: float) -> None:
    tried, _ = attempts(draw, first=1.0)
    assert tried.judge(busy("3")) == 3 + draw


def test_retry_after_as_a_date_is_the_least() -> None:
    tried, clock = attempts(0.0)
    assert tried.judge(busy(formatdate(clock.now + 12, usegmt=True))) == 12


@pytest.mark.parametrize("past", ["Wed, 21 Oct 2015 07:28:00 GMT", "soon", "-5", ""])
def test_a_past_or_senseless_retry_after_is_passed_over(past: str) -> None:
    tried, _ = attempts(0.5, first=1.0)
    assert tried.judge(busy(past)) == 0.5


def test_the_total_counts_time_that_requests_took() -> None:
    tried, clock = attempts(0.5, first=2.0, total=60.0)
    assert tried.judge(busy()) == 1
    clock.now += 59
    assert isinstance(tried.judge(busy()), httpx.Response)


@pytest.mark.parametrize(
    ("kind", "again"),
    [
        (httpx.ConnectError, True),
        (httpx.ReadError, True),
        (httpx.RemoteProtocolError, True),
        (httpx.ConnectTimeout, True),
        (httpx.ReadTimeout, False),
        (httpx.UnsupportedProtocol, False),
    ],
)
def test_a_broken_connection_is_tried_again_and_a_slow_answer_is_not(
    kind: type[httpx.TransportError], again: bool
) -> None:
    error = kind("broken", request=httpx.Request("GET", "http://host/embed?size=8"))
    tried, _ = attempts(0.5)
    if again:
        assert tried.judge(error) == 0.25
    else:
        with pytest.raises(Unreachable, match=r"http://host/embed, asked once: broken"):
            tried.judge(error)
