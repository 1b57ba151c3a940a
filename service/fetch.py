"""Images by URL, from where the server may look and nowhere else.

Whoever names a URL makes this server connect somewhere, and must not reach through it what they
could not reach themselves. So a name is resolved once, every address that it has is checked, and
the connection goes to the very address that was checked, under the name that was asked for; each
redirect is a URL like the first. Nothing is kept between two fetches: no cookie, no connection.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import httpx

from service.errors import TooLarge, UnfetchableImage
from service.settings import Settings

Address = IPv4Address | IPv6Address

PORTS = {"http": 80, "https": 443}
REDIRECTS = 3
REDIRECTED = {301, 302, 303, 307, 308}
# IPv4 addresses in other clothes: translation of addresses (RFC 6052) reaches what they name.
TRANSLATED = IPv6Network("64:ff9b::/96")


@dataclass(slots=True)
class Allowance:
    """The bytes that the URLs of one request may still bring in, all together."""

    bytes: int


class Fetcher:
    """Fetches images by HTTP, within limits.

    Args:
        settings: Its `url_*` settings and `max_image_bytes`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._slots = asyncio.Semaphore(settings.url_concurrency)
        self._resolver = ThreadPoolExecutor(settings.url_concurrency, "resolve")
        self._transport = httpx.AsyncHTTPTransport(
            trust_env=False, limits=httpx.Limits(max_keepalive_connections=0)
        )

    async def close(self) -> None:
        """Close what is open; a name that is being looked up is not waited for."""
        await self._transport.aclose()
        self._resolver.shutdown(wait=False, cancel_futures=True)

    async def fetch(self, url: str, allowance: Allowance) -> bytes:
        """Get one image.

        Args:
            url: http or https, without credentials.
            allowance: What the whole request may bring in; reduced by what arrives.

        Raises:
            UnfetchableImage: The URL may not be fetched, or nothing useful came of it.
            TooLarge: The image is over `max_image_bytes`, or over the allowance.
        """
        async with self._slots:
            try:
                async with asyncio.timeout(self._settings.url_timeout):
                    return await self._follow(url, allowance)
            except TimeoutError:
                raise UnfetchableImage(
                    f"url: nothing complete came in {self._settings.url_timeout:g} s, the limit; "
                    "send the image's bytes."
                ) from None
            except (httpx.TransportError, httpx.InvalidURL, OSError, ValueError, OverflowError):
                # What exactly failed would map a network for whoever asks. A host that is no name,
                # a port or a length of too many digits show as ValueError and OverflowError.
                raise UnfetchableImage(
                    "url: the server there could not be reached or broke off; check the URL, or "
                    "send the image's bytes."
                ) from None

    async def _follow(self, url: str, allowance: Allowance) -> bytes:
        target = httpx.URL(url)
        for _ in range(REDIRECTS + 1):
            async with self._get(target) as answer:
                if answer.status_code not in REDIRECTED:
                    return await self._read(answer, allowance)
                location = answer.headers.get("location", "")
            target = target.join(location)
        raise UnfetchableImage(
            f"url: it redirects more than {REDIRECTS} times, the limit; send the last URL."
        )

    @asynccontextmanager
    async def _get(self, url: httpx.URL) -> AsyncIterator[httpx.Response]:
        answer = await self._connect(url, await self._addresses(url))
        try:
            yield answer
        finally:
            await answer.aclose()

    async def _connect(self, url: httpx.URL, addresses: Iterable[Address]) -> httpx.Response:
        """Ask the first address that answers; the name stays in the Host header and in TLS."""
        failure: Exception | None = None
        for address in addresses:
            request = httpx.Request(
                "GET",
                url.copy_with(host=str(address), fragment=None),
                headers={
                    "Host": url.netloc.decode("ascii"),
                    "Accept": "image/*",
                    # A few compressed bytes could unpack to any number.
                    "Accept-Encoding": "identity",
                    "User-Agent": "foveal",
                },
                extensions={
                    "sni_hostname": url.raw_host.decode("ascii"),
                    # Half, so that another address can be tried.
                    "timeout": {"connect": self._settings.url_timeout / 2},
                },
            )
            try:
                return await self._transport.handle_async_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = error
        raise failure or httpx.ConnectError("no address")

    async def _addresses(self, url: httpx.URL) -> list[Address]:
        """Resolve the URL's host; all of its addresses must be allowed."""
        if url.scheme not in PORTS or not url.host:
            raise UnfetchableImage("url: must begin with http:// or https:// and name a host.")
        if url.userinfo:
            raise UnfetchableImage("url: must hold no user name or password.")
        port = url.port or PORTS[url.scheme]
        try:
            found = await asyncio.get_running_loop().run_in_executor(
                self._resolver, _resolve, url.raw_host.decode("ascii"), port
            )
        except (OSError, UnicodeError):
            found = []
        if not found or not all(self._allows(address, port) for address in found):
            # Said in the same words, so that nobody can ask which internal names there are.
            raise UnfetchableImage(
                "url: its host must have a public address, and its port must be 80 or 443; send "
                "the image's bytes."
            )
        return found

    def _allows(self, address: Address, port: int) -> bool:
        plain = _plain(address)
        if any(plain in network for network in self._settings.url_allow):
            return True
        return port in PORTS.values() and is_public(plain)

    async def _read(self, answer: httpx.Response, allowance: Allowance) -> bytes:
        if answer.status_code != 200:
            raise UnfetchableImage(f"url: the server there answered {answer.status_code}, not 200.")
        if answer.headers.get("content-encoding", "identity").lower() != "identity":
            raise UnfetchableImage(
                "url: the server there sent a compressed body, which is not accepted; send the "
                "image's bytes."
            )
        announced = answer.headers.get("content-length", "0")
        self._check(int(announced) if announced.isdigit() else 0, allowance.bytes)
        body = bytearray()
        async for chunk in answer.aiter_raw():
            body += chunk
            allowance.bytes -= len(chunk)
            self._check(len(body), allowance.bytes + len(body))
        return bytes(body)

    def _check(self, size: int, most: int) -> None:
        if size > self._settings.max_image_bytes:
            raise TooLarge(
                f"url: the image has more than {self._settings.max_image_bytes} bytes, the limit."
            )
        if size > most:
            raise TooLarge(
                "url: the images of this request have more bytes than a body may have, "
                f"{self._settings.max_body_bytes}; send fewer at once."
            )


def is_public(address: Address) -> bool:
    """Whether an address is one that anybody on the internet can reach."""
    if isinstance(address, IPv6Address) and (
        address.is_site_local or address.sixtofour is not None or address.teredo is not None
    ):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def _plain(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, if it stands for one."""
    if isinstance(address, IPv6Address):
        if address in TRANSLATED:
            return IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address
    return address


def _resolve(host: str, port: int) -> list[Address]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ip_address(str(entry[4][0])) for entry in found))
