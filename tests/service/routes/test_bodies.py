"""What the bodies of all requests hold together."""

import socket

import httpx

from tests.service.gateways import PNG, Serve, assert_problem, photograph
from tests.service.wire import read_answer
from tests.waiting import wait_until

HEAD = (
    b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 90000\r\n\r\n"
)


def post(client: httpx.Client, body: bytes) -> httpx.Response:
    return client.post("/embed", content=body, headers=PNG)


def test_a_body_beyond_what_all_may_hold_is_refused_until_others_are_answered(serve: Serve) -> None:
    with serve(max_bodies_bytes=100_000, body_timeout=120) as client:
        url = client.base_url
        with socket.create_connection((url.host, url.port), timeout=60) as held:
            held.sendall(HEAD + bytes(80_000))
            # The first bytes to arrive leave no room either.
            wait_until(lambda: "80000 bytes" in post(client, bytes(60_000)).text)
            refused = post(client, bytes(60_000))
            assert_problem(refused, 503, "overloaded", "80000 bytes", "the limit is 100000")
            assert refused.headers["retry-after"] == "1"
            assert post(client, photograph()).status_code == 200
            held.sendall(bytes(10_000))
            assert read_answer(held).startswith(b"HTTP/1.1 415")
        for _ in range(3):
            assert post(client, bytes(60_000)).status_code == 415
        assert 'foveal_requests_shed_total{reason="bodies"}' in client.get("/metrics").text


def test_chunks_of_unknown_length_count_as_they_come(serve: Serve) -> None:
    with serve(max_bodies_bytes=100_000) as client:
        refused = client.post("/embed", content=(bytes(30_000) for _ in range(5)), headers=PNG)
        assert_problem(refused, 503, "overloaded", "Try again later")
        assert post(client, photograph()).status_code == 200
