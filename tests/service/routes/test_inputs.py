"""The three input forms and everything that can be wrong with them, on `/embed`."""

import base64
import io
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from tests.data import dataset
from tests.service.gateways import PNG, Serve, assert_problem, b64, photograph
from tests.service.wire import read_all


def embeddings(answer: httpx.Response) -> list:
    assert answer.status_code == 200, answer.text
    return [entry["embedding"] for entry in answer.json()["embeddings"]]


def huge_png() -> bytes:
    """A whole PNG whose header says 60000 x 60000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_the_three_forms_give_the_same_embedding(client: httpx.Client) -> None:
    photo = photograph()
    uri = "data:image/png;base64," + base64.b64encode(photo).decode()
    answers = [
        client.post("/embed", content=photo, headers=PNG),
        client.post("/embed", content=photo, headers={"Content-Type": "application/octet-stream"}),
        client.post("/embed", files={"images": photo}),
        client.post("/embed", json={"images": [b64(photo)]}),
        client.post("/embed", json={"images": [uri]}),
    ]
    first, *others = [embeddings(answer) for answer in answers]
    assert all(other == first for other in others)


def test_options_are_taken_from_the_query_the_form_and_the_json(client: httpx.Client) -> None:
    photo = photograph()
    answers = [
        client.post("/embed?size=32&normalize=false", content=photo, headers=PNG),
        client.post("/embed", files={"images": photo}, data={"size": "32", "normalize": "false"}),
        client.post("/embed?size=32", json={"images": [b64(photo)], "normalize": False}),
    ]
    first, *others = [embeddings(answer) for answer in answers]
    assert all(other == first for other in others)
    assert first != embeddings(client.post("/embed", content=photo, headers=PNG))


def test_images_keep_their_order(client: httpx.Client) -> None:
    photos = [photograph(seed) for seed in range(5)]
    alone = [embeddings(client.post("/embed", content=p, headers=PNG))[0] for p in photos]
    together = [
        client.post("/embed", files=[("images", p) for p in photos]),
        client.post("/embed", json={"images": [b64(p) for p in photos]}),
    ]
    for answer in together:
        assert [entry["index"] for entry in answer.json()["embeddings"]] == [0, 1, 2, 3, 4]
        for one, other in zip(embeddings(answer), alone, strict=True):
            assert one == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize(
    ("bad", "status", "code"),
    [
        (b"", 415, "unsupported_media_type"),
        (b"this is text", 415, "unsupported_media_type"),
        (photograph()[:100], 422, "undecodable_image"),
        (huge_png(), 422, "undecodable_image"),
    ],
    ids=["empty", "text", "truncated", "60000 x 60000"],
)
def test_an_only_image_that_fails_is_a_problem(
    client: httpx.Client, bad: bytes, status: int, code: str
) -> None:
    assert_problem(client.post("/embed", content=bad, headers=PNG), status, code)
    assert_problem(client.post("/embed", files={"images": bad}), status, code)
    assert_problem(client.post("/embed", json={"images": [b64(bad)]}), status, code)
    assert client.post("/embed", content=photograph(), headers=PNG).status_code == 200


def test_of_several_images_each_fails_alone(client: httpx.Client) -> None:
    images = [b64(photograph()), b64(b"text"), {"b64": "%%%"}, {"url": "https://example.org/a.jpg"}]
    answer = client.post("/embed", json={"images": images})
    assert answer.status_code == 200
    good, *bad = answer.json()["embeddings"]
    assert set(good) == {"index", "embedding"}
    assert [(entry["index"], entry["error"]["status"]) for entry in bad] == [
        (1, 415),
        (2, 400),
        (3, 422),
    ]
    assert "URL" in bad[2]["error"]["detail"]


def test_when_all_fail_the_problem_lists_each(client: httpx.Client) -> None:
    answer = client.post("/embed", files=[("images", b"text"), ("images", photograph()[:100])])
    problem = assert_problem(answer, 422, "all_images_failed")
    assert [(entry["index"], entry["error"]["status"]) for entry in problem["errors"]] == [
        (0, 415),
        (1, 422),
    ]


@pytest.mark.parametrize(
    ("request_", "status", "code", "word"),
    [
        ({"json": {"images": []}}, 422, "invalid_option", "images"),
        ({}, 422, "invalid_option", "images"),
        ({"json": {"images": "x"}}, 422, "invalid_option", "list"),
        ({"json": {"images": [{"url": "http://a/b"}]}}, 422, "invalid_option", "FOVEAL_URL_FETCH"),
        ({"json": {"images": [{"url": 7}]}}, 422, "invalid_option", "url"),
        ({"json": {"images": [{"url": "http://a/b", "b64": ""}]}}, 422, "invalid_option", "url"),
        ({"json": {"images": [7]}}, 422, "invalid_option", "b64"),
        ({"json": {"images": [{"b64": "a"}]}}, 400, "malformed_request", "base64"),
        ({"json": {"images": ["data:image/png,abc"]}}, 400, "malformed_request", "data URI"),
        ({"json": [1]}, 400, "malformed_request", "object"),
        (
            {"content": b"{", "headers": {"Content-Type": "application/json"}},
            400,
            "malformed_request",
            "JSON",
        ),
        (
            {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}},
            400,
            "malformed_request",
            "boundary",
        ),
        (
            {"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
            400,
            "malformed_request",
            "multipart",
        ),
        (
            {
                "content": b'--b\r\nContent-Disposition: form-data; name="images"\r\n\r\nabc',
                "headers": {"Content-Type": "multipart/form-data; boundary=b"},
            },
            400,
            "malformed_request",
            "closing boundary",
        ),
        ({"data": {"images": "x"}}, 415, "unsupported_media_type", "multipart/form-data"),
        ({"content": b"x"}, 415, "unsupported_media_type", "missing"),
    ],
)
def test_a_malformed_request_is_told_what_is_wrong(
    client: httpx.Client, request_: dict, status: int, code: str, word: str
) -> None:
    assert_problem(client.post("/embed", **request_), status, code, word)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("sise=64", ("'sise'", "fit, model, normalize, pooling, size")),
        ("size=0", ("size",)),
        ("size=many", ("size",)),
        ("size=30", ("size", "30", "multiple", "8")),
        ("size=80000", ("size",)),
        ("fit=stretch", ("fit", "crop")),
        ("size=64&size=32", ("size", "twice")),
        ("normalize=perhaps", ("normalize",)),
    ],
)
def test_an_option_that_is_wrong_is_named(
    client: httpx.Client, query: str, words: tuple[str, ...]
) -> None:
    answer = client.post(f"/embed?{query}", content=photograph(), headers=PNG)
    assert_problem(answer, 422, "invalid_option", *words)


def test_an_unknown_part_is_an_unknown_option(client: httpx.Client) -> None:
    answer = client.post("/embed", files={"image": photograph()})
    assert_problem(answer, 422, "invalid_option", "'image'", "normalize")
    answer = client.post("/embed", files={"images": photograph(), "candidates": photograph()})
    assert_problem(answer, 422, "invalid_option", "candidates")


def test_another_models_name_is_not_found(client: httpx.Client) -> None:
    answer = client.post("/embed?model=clip", content=photograph(), headers=PNG)
    assert_problem(answer, 404, "not_found", "'clip'", "'tiny'")
    right = client.post("/embed?model=tiny", content=photograph(), headers=PNG)
    assert right.status_code == 200


def test_limits_in_bytes_and_count_are_413(serve: Serve) -> None:
    with serve(max_body_bytes=200_000, max_image_bytes=50_000, max_images=3) as client:
        over = client.post("/embed", content=photograph() + bytes(60_000), headers=PNG)
        assert_problem(over, 413, "too_large", "50")
        many = client.post("/embed", files=[("images", photograph())] * 4)
        assert_problem(many, 413, "too_large", "4 images", "3")
        announced = client.post("/embed", content=bytes(20_000_000), headers=PNG)
        assert_problem(announced, 413, "too_large", "20000000", "200000")
        stream = client.post("/embed", content=iter([bytes(150_000), bytes(150_000)]), headers=PNG)
        assert_problem(stream, 413, "too_large", "200000")
        parts = client.post("/embed", files=[(f"p{n}", b"") for n in range(100)])
        assert_problem(parts, 413, "too_large", "parts")
        assert client.post("/embed", content=photograph(), headers=PNG).status_code == 200


def test_an_announced_body_that_is_too_large_is_refused_before_it_arrives(serve: Serve) -> None:
    with serve(max_body_bytes=1000) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port)) as raw:
            raw.sendall(
                b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
                b"Content-Length: 99999999\r\n\r\n"
            )
            raw.settimeout(60)
            answer = read_all(raw)
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"application/problem+json" in answer


def test_a_body_that_trickles_is_cut_off(serve: Serve) -> None:
    with serve(body_timeout=0.3) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port)) as raw:
            raw.sendall(
                b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
                b"Content-Length: 1000\r\n\r\nabc"
            )
            raw.settimeout(60)
            answer = read_all(raw)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"3 bytes" in answer
        photo = photograph()
        with socket.create_connection((client.base_url.host, client.base_url.port)) as raw:
            # At once, so that it cannot be late.
            raw.sendall(
                b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
                b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(photo), photo)
            )
            raw.settimeout(60)
            assert read_all(raw).startswith(b"HTTP/1.1 200")


def test_a_client_that_leaves_while_sending_harms_nobody(client: httpx.Client) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port)) as raw:
        raw.sendall(
            b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            b"Content-Length: 1000\r\n\r\nabc"
        )
    time.sleep(0.1)
    assert client.post("/embed", content=photograph(), headers=PNG).status_code == 200


def test_a_large_body_is_parsed_like_a_small_one(client: httpx.Client) -> None:
    buffer = io.BytesIO()
    buffer.write(photograph(size=(900, 900)))
    large = [buffer.getvalue() + bytes(700_000)] * 2
    answer = client.post("/embed", files=[("images", p) for p in large])
    assert len(embeddings(answer)) == 2


class Store(BaseHTTPRequestHandler):
    """A photograph at /photo, nothing ever at /never, 404 elsewhere."""

    protocol_version = "HTTP/1.1"
    asked = threading.Event()
    left = threading.Event()

    def do_GET(self) -> None:
        if self.path == "/never":
            self.asked.set()
            self.connection.settimeout(60)
            if self.connection.recv(1) == b"":
                self.left.set()
            self.close_connection = True
            return
        body = photograph() if self.path == "/photo" else b""
        self.send_response(200 if body else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def store() -> Iterator[str]:
    Store.asked.clear()
    Store.left.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def fetching(serve: Serve) -> Iterator[httpx.Client]:
    with serve(
        url_fetch=True, url_allow=("127.0.0.1/32",), url_timeout=120, max_images=3
    ) as client:
        yield client


def test_an_image_at_a_url_is_as_good_as_its_bytes(fetching: httpx.Client, store: str) -> None:
    link = {"url": f"{store}/photo"}
    one, other = embeddings(fetching.post("/embed", json={"images": [link, b64(photograph())]}))
    assert one == other
    ranked = fetching.post("/similar", json={"images": [link], "candidates": [link]}).json()
    assert ranked["results"] == [{"index": 0, "score": pytest.approx(1)}]
    drawn = fetching.post("/attention?output=png", json={"images": [link]})
    assert drawn.headers["content-type"] == "image/png"


def test_of_several_urls_each_fails_alone(fetching: httpx.Client, store: str) -> None:
    images = [{"url": f"{store}/{path}"} for path in ("none", "photo")]
    images.append({"url": "http://127.0.0.2/photo"})
    first, good, last = fetching.post("/embed", json={"images": images}).json()["embeddings"]
    assert "embedding" in good
    assert first["error"]["code"] == last["error"]["code"] == "unfetchable_image"
    assert "404" in first["error"]["detail"]
    assert "public" in last["error"]["detail"]


def test_a_host_that_is_no_name_fails_alone(fetching: httpx.Client) -> None:
    images = [b64(photograph()), {"url": "http://xn--a/"}]
    good, bad = fetching.post("/embed", json={"images": images}).json()["embeddings"]
    assert "embedding" in good
    assert bad["error"]["code"] == "unfetchable_image"


def test_nothing_is_fetched_for_a_request_that_is_refused(
    fetching: httpx.Client, store: str
) -> None:
    never = {"url": f"{store}/never"}
    for body in ({"images": [never] * 4}, {"images": [never], "size": 0}):
        answer = fetching.post("/embed", json=body)
        assert answer.status_code in (413, 422)
    assert not Store.asked.is_set()


def test_urls_are_fetched_within_the_deadline(fetching: httpx.Client, store: str) -> None:
    asked = {"images": [{"url": f"{store}/never"}]}
    answer = fetching.post("/embed", json=asked, headers={"X-Request-Timeout-Ms": "3000"})
    assert_problem(answer, 504, "deadline_exceeded")
    assert Store.left.wait(60)


def test_a_client_that_leaves_ends_the_fetch(fetching: httpx.Client, store: str) -> None:
    asked = json.dumps({"images": [{"url": f"{store}/never"}]}).encode()
    with socket.create_connection((fetching.base_url.host, fetching.base_url.port)) as raw:
        raw.sendall(
            b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(asked), asked)
        )
        assert Store.asked.wait(60)
    assert Store.left.wait(20)  # Its deadline is at 30 s.


@pytest.mark.parametrize("asked", ["soon", "0", "-1", "1.5", "", "²"])
def test_a_deadline_that_is_no_number_is_named(client: httpx.Client, asked: str) -> None:
    headers = {**PNG, "X-Request-Timeout-Ms": asked.encode()}
    answer = client.post("/embed", content=photograph(), headers=headers)
    assert_problem(answer, 422, "invalid_option", "X-Request-Timeout-Ms", "30000")


@pytest.mark.filterwarnings("ignore")
def test_odd_images_harm_no_good_one_beside_them(serve: Serve) -> None:
    odd = [path.read_bytes() for path in sorted(dataset("odd_public").glob("pub_*"))]
    good = ("images", photograph())
    answered = 0
    with serve() as client:
        (alone,) = embeddings(client.post("/embed", files=[good]))
        for start in range(0, len(odd), 60):
            files = [good, *(("images", data) for data in odd[start : start + 60])]
            answer = client.post("/embed", files=files)
            assert answer.status_code == 200, answer.text
            first, *others = answer.json()["embeddings"]
            assert first["embedding"] == alone
            assert len(others) == len(files) - 1
            for entry in others:
                answered += "embedding" in entry
                assert "embedding" in entry or 400 <= entry["error"]["status"] < 500
    assert answered >= 309 - 2
