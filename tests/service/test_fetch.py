"""Fetching from a real server on the loopback, which the tests allow and nothing else does."""

import asyncio
import gzip
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import Any

import pytest

from service.bundle import Bundle
from service.errors import FovealError, TooLarge, UnfetchableImage
from service.fetch import Allowance, Fetcher, is_public
from service.settings import Settings
from tests.ports import HeldPort
from tests.waiting import until

IMAGE = bytes(range(256)) * 40


class Store(BaseHTTPRequestHandler):
    """Serves one image well, and everything else badly."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, dict[str, str]]]
    gate: threading.Event

    def do_GET(self) -> None:
        self.seen.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
        kind, _, rest = self.path[1:].partition("?")[0].partition("/")
        getattr(self, kind)(rest)

    def log_message(self, *_: object) -> None: ...

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def image(self, _: str) -> None:
        self.answer(IMAGE, Set_Cookie="a=b")

    def status(self, code: str) -> None:
        self.answer(b"the secret of the internal page", int(code))

    def to(self, target: str) -> None:
        self.answer(b"", 302, Location=target)

    def hops(self, left: str) -> None:
        self.to(f"/hops/{int(left) - 1}" if int(left) > 1 else "/image")

    def nowhere(self, _: str) -> None:
        self.answer(b"", 302)

    def zipped(self, _: str) -> None:
        self.answer(gzip.compress(bytes(10_000_000)), Content_Encoding="gzip")

    def announced(self, size: str) -> None:
        self.answer(b"", **{"Content-Length": size})

    def endless(self, _: str) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"1000\r\n" + bytes(0x1000) + b"\r\n")
        except OSError:
            self.close_connection = True

    def trickle(self, _: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        try:
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.05)
        except OSError:
            self.close_connection = True

    def held(self, _: str) -> None:
        self.gate.wait(60)
        self.answer(IMAGE)

    def broken(self, _: str) -> None:
        self.answer(b"half", **{"Content-Length": "1000"})
        self.close_connection = True


@pytest.fixture
def store() -> Iterator[ThreadingHTTPServer]:
    Store.seen, Store.gate = [], threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def allowing(bundle: Bundle, **options: Any) -> Settings:
    given = {"url_allow": ("127.0.0.1/32",), "url_fetch": True, "url_timeout": 60}
    return Settings(model=bundle.path, **(given | options))


async def fetch(settings: Settings, url: str, allowance: int = 10**9) -> bytes:
    fetcher = Fetcher(settings)
    try:
        return await fetcher.fetch(url, Allowance(allowance))
    finally:
        await fetcher.close()


def at(store: ThreadingHTTPServer, path: str) -> str:
    return f"http://127.0.0.1:{store.server_port}/{path}"


async def test_the_bytes_come_as_they_are(store: ThreadingHTTPServer, bundle: Bundle) -> None:
    assert await fetch(allowing(bundle), at(store, "image")) == IMAGE
    assert await fetch(allowing(bundle), at(store, "hops/3")) == IMAGE


async def test_nothing_is_carried_from_one_fetch_to_the_next(
    store: ThreadingHTTPServer, bundle: Bundle
) -> None:
    fetcher = Fetcher(allowing(bundle))
    for _ in range(2):
        await fetcher.fetch(at(store, "image?a=1#part"), Allowance(10**9))
    await fetcher.close()
    for path, headers in Store.seen:
        assert path == "/image?a=1"
        assert set(headers) == {"host", "accept", "accept-encoding", "user-agent"}
        assert headers["accept-encoding"] == "identity"


async def test_no_proxy_is_taken_from_the_environment(
    store: ThreadingHTTPServer, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "all_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert await fetch(allowing(bundle), at(store, "image")) == IMAGE


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/image",
        "http://localhost:{port}/image",
        "http://2130706433:{port}/image",
        "http://0x7f.1:{port}/image",
        "http://017700000001:{port}/image",
        "http://[::1]:{port}/image",
        "http://[::ffff:127.0.0.1]:{port}/image",
        "http://[64:ff9b::7f00:1]/",
        "http://0.0.0.0:{port}/image",
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.1/",
        "http://8.8.8.8:22/",
        "http://no-such-name.invalid/",
        "http://a..b/",
    ],
)
async def test_what_is_not_public_is_refused_in_the_same_words(
    store: ThreadingHTTPServer, bundle: Bundle, url: str
) -> None:
    with pytest.raises(UnfetchableImage) as error:
        await fetch(allowing(bundle, url_allow=()), url.format(port=store.server_port))
    assert error.value.detail.startswith("url: its host must have a public address")
    assert not Store.seen


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.2:{port}/image",
        "http://[::1]:{port}/image",
        "http://[::ffff:127.0.0.2]:{port}/image",
        "http://2130706434:{port}/image",
        "//169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "ftp://127.0.0.1/image",
        "http://user:word@127.0.0.1:{port}/image",
    ],
)
async def test_every_redirect_is_checked(
    store: ThreadingHTTPServer, bundle: Bundle, target: str
) -> None:
    with pytest.raises(UnfetchableImage, match="url: "):
        await fetch(allowing(bundle), at(store, "to/" + target.format(port=store.server_port)))
    assert [path[:4] for path, _ in Store.seen] == ["/to/"]


@pytest.mark.parametrize("target", ["http://xn--a/", "http://127.0.0.1:" + "9" * 23 + "/"])
async def test_what_is_no_host_or_port_is_refused(
    store: ThreadingHTTPServer, bundle: Bundle, target: str
) -> None:
    for url in (target, at(store, f"to/{target}")):
        with pytest.raises(UnfetchableImage, match="url: "):
            await fetch(allowing(bundle), url)


@pytest.mark.parametrize(
    "url", ["ftp://127.0.0.1/a", "file:///etc/passwd", "", "a.jpg", "http://", "http://u@h/"]
)
async def test_what_is_no_plain_web_address_is_refused(bundle: Bundle, url: str) -> None:
    with pytest.raises(UnfetchableImage, match="url: must"):
        await fetch(allowing(bundle), url)


async def test_a_url_that_cannot_be_read_is_refused(bundle: Bundle) -> None:
    for url in ("http://[::1", "http://a:99999999/", "http://a\n.b/", "http://a/" + "b" * 70_000):
        with pytest.raises(UnfetchableImage, match="url"):
            await fetch(allowing(bundle), url)


async def test_the_name_is_resolved_once_and_the_checked_address_is_asked(
    store: ThreadingHTTPServer, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookups: list[str] = []
    real = socket.getaddrinfo

    def rebinding(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if str(host) != "images.example":
            return real(host, port, *args, **kwargs)
        lookups.append(host)
        address = "127.0.0.1" if len(lookups) == 1 else "127.0.0.2"
        return real(address, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    url = f"http://images.example:{store.server_port}/image"
    assert await fetch(allowing(bundle), url) == IMAGE
    assert lookups == ["images.example"]
    assert Store.seen[0][1]["host"] == f"images.example:{store.server_port}"
    with pytest.raises(UnfetchableImage, match="public address"):
        await fetch(allowing(bundle), url)


async def test_one_private_address_among_a_names_is_enough_to_refuse_it(
    store: ThreadingHTTPServer, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def both(_: Any, port: int, *args: Any, **kwargs: Any) -> Any:
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, ("127.0.0.1", port)), (*kind, ("10.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    with pytest.raises(UnfetchableImage, match="public address"):
        await fetch(allowing(bundle), f"http://images.example:{store.server_port}/image")
    assert not Store.seen


async def test_tls_is_asked_for_the_name_and_trusts_no_stranger(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    loopback = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: loopback)
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    with pytest.raises(UnfetchableImage, match="could not be reached"):
        await fetch(allowing(bundle), f"https://images.example:{port}/image")
    server.close()
    assert names == ["images.example"]


async def test_limits_in_bytes_hold_announced_or_not(
    store: ThreadingHTTPServer, bundle: Bundle
) -> None:
    small = allowing(bundle, max_image_bytes=20_000)
    for path in ("announced/20001", "endless"):
        with pytest.raises(TooLarge, match="more than 20000 bytes"):
            await fetch(small, at(store, path))
    with pytest.raises(TooLarge, match="fewer at once"):
        await fetch(small, at(store, "image"), allowance=len(IMAGE) - 1)


async def test_the_images_of_a_request_share_their_allowance(
    store: ThreadingHTTPServer, bundle: Bundle
) -> None:
    fetcher, allowance = Fetcher(allowing(bundle)), Allowance(2 * len(IMAGE) + 5)
    for _ in range(2):
        await fetcher.fetch(at(store, "image"), allowance)
    assert allowance.bytes == 5
    with pytest.raises(TooLarge):
        await fetcher.fetch(at(store, "image"), allowance)
    await fetcher.close()


async def test_time_is_limited_as_a_whole(store: ThreadingHTTPServer, bundle: Bundle) -> None:
    with pytest.raises(UnfetchableImage, match=" 2 s, the limit"):
        await fetch(allowing(bundle, url_timeout=2), at(store, "trickle"))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("hops/4", "more than 3 times"),
        ("nowhere", "more than 3 times"),
        ("status/404", "answered 404"),
        ("status/500", "answered 500"),
        ("status/204", "answered 204"),
        ("zipped", "compressed"),
        ("broken", "broke off"),
    ],
)
async def test_what_brings_no_image_is_told_without_what_was_there(
    store: ThreadingHTTPServer, bundle: Bundle, path: str, words: str
) -> None:
    with pytest.raises(FovealError, match=words) as error:
        await fetch(allowing(bundle), at(store, path))
    assert error.value.status == 422
    assert "secret" not in error.value.detail


async def test_a_server_that_is_not_there_is_told(bundle: Bundle) -> None:
    with HeldPort() as port, pytest.raises(UnfetchableImage, match="could not be reached"):
        await fetch(allowing(bundle), f"http://127.0.0.1:{port.number}/")


async def test_no_more_are_fetched_at_once_than_allowed(
    store: ThreadingHTTPServer, bundle: Bundle
) -> None:
    fetcher = Fetcher(allowing(bundle, url_concurrency=2))
    slow = [fetcher.fetch(at(store, "held"), Allowance(10**9)) for _ in range(5)]
    work = asyncio.gather(*slow)
    await until(lambda: len(Store.seen) == 2)
    await asyncio.sleep(0.2)
    assert len(Store.seen) == 2
    Store.gate.set()
    assert await work == [IMAGE] * 5
    assert len(Store.seen) == 5
    await fetcher.close()


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "2a00:1450::1"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.1", "10.1.2.3", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.16.0.1"),
        *("192.0.0.1", "192.0.2.1", "192.168.0.1", "198.18.0.1", "224.0.0.1", "240.0.0.1"),
        *("255.255.255.255", "::", "::1", "::127.0.0.1", "fe80::1", "fec0::1", "fc00::1"),
        *("ff02::1", "2001:db8::1", "2002:7f00:1::", "2001:0:1::1", "100::1"),
    ],
)
def test_addresses_of_special_use_are_not_public(address: str) -> None:
    assert not is_public(ip_address(address))
