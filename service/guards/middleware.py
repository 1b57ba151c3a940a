"""The door: which key a request needs, and whether its caller has asked too much."""

from __future__ import annotations

import math
import re
from ipaddress import IPv6Address, ip_address

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Forbidden, FovealError, RateLimited, Unauthorized
from service.guards.keys import Key, KeyRing
from service.guards.limiters import Limiter
from service.guards.rates import Bucket, Rate
from service.routes.problems import render
from service.telemetry.record import current

# What tells nothing of anybody's data: the probes, the page and the documentation.
OPEN = re.compile(r"/(livez|readyz|v2/health/.*|web/.*|docs(/.*)?|openapi\.json)?")
METRICS = "/metrics"
# POST asks for an answer here; any other POST, PUT or DELETE changes something.
READING = re.compile(
    r"/(embed|attention|similar|correspond|v1/embeddings|v2/models/.*/infer|v2/repository/index)"
)


def is_open(path: str, *, open_metrics: bool) -> bool:
    """Whether a path needs no key, and counts towards no rate."""
    return OPEN.fullmatch(path) is not None or (path == METRICS and open_metrics)


class Guards:
    """Lets in whoever may ask, as often as they may.

    Args:
        app: What answers.
        keys: Who may ask; anybody, if None.
        limiter: Keeps count of what each key asks for, or each address where there are no keys.
        open_metrics: Whether `/metrics` needs no key.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: KeyRing | None,
        limiter: Limiter | None,
        open_metrics: bool,
    ) -> None:
        self._app = app
        self._keys = keys
        self._limiter = limiter
        self._open_metrics = open_metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or say why not."""
        if scope["type"] != "http" or is_open(scope["path"], open_metrics=self._open_metrics):
            await self._app(scope, receive, send)
            return
        try:
            caller = self._caller(scope)
        except FovealError as error:
            refusal = render(error, scope["path"])
            if isinstance(error, Unauthorized):
                refusal.headers["WWW-Authenticate"] = 'Bearer realm="foveal"'
            await refusal(scope, receive, send)
            return
        if self._limiter is None:
            await self._app(scope, receive, send)
        else:
            await self._limited(scope, receive, send, caller, self._limiter)

    def _caller(self, scope: Scope) -> str:
        """Name who asks.

        Raises:
            Unauthorized: There is no key, or it is unknown.
            Forbidden: The key lacks the scope.
        """
        if self._keys is None:
            return _network(scope)
        secret = _secret(scope)
        if secret is None:
            raise Unauthorized("Send an API key: `Authorization: Bearer KEY` or `X-API-Key: KEY`.")
        key = self._keys.find(secret)
        if key is None:
            raise Unauthorized("The API key is not known here.")
        _require(key, _scope(scope["method"], scope["path"]))
        if (record := current.get()) is not None:
            record.key = key.name
        return key.name

    async def _limited(
        self, scope: Scope, receive: Receive, send: Send, caller: str, limiter: Limiter
    ) -> None:
        rate = limiter.rate
        bucket = await limiter.take(caller, 1)

        async def respond(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_headers(rate, bucket)]
            await send(message)

        if not bucket.allowed:
            refusal = RateLimited(
                f"{rate.images} images in {rate.seconds} s is the limit; wait before the next.",
                retry_after=bucket.wait(rate),
            )
            await render(refusal, scope["path"])(scope, receive, respond)
            return
        try:
            await self._app(scope, receive, respond)
        finally:
            record = current.get()
            if record is not None and record.images > 1:
                await limiter.take(caller, record.images - 1, debt=True)


def _scope(method: str, path: str) -> str:
    if method in {"GET", "HEAD", "OPTIONS"} or (method == "POST" and READING.fullmatch(path)):
        return "read"
    return "write"


def _require(key: Key, scope: str) -> None:
    if scope not in key.scopes:
        raise Forbidden(f"The API key {key.name!r} lacks the scope {scope!r}.")


def _secret(scope: Scope) -> bytes | None:
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            secret: bytes = value
            return secret
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return bytes(value[7:].strip())
    return None


def _network(scope: Scope) -> str:
    """The address that a request came from; of IPv6 the /64, which is one subscriber's.

    A socket of both families gives IPv4 clients as ::ffff:a.b.c.d.
    """
    host = scope["client"][0] if scope.get("client") else ""
    if ":" not in host:
        return str(host)
    address = ip_address(host.partition("%")[0])
    assert isinstance(address, IPv6Address)
    return str(address.ipv4_mapped or address.exploded[:19])


def _headers(rate: Rate, bucket: Bucket) -> list[tuple[bytes, bytes]]:
    """The fields of draft-ietf-httpapi-ratelimit-headers-10."""
    policy = f'"images";q={rate.images};w={rate.seconds}'
    state = f'"images";r={bucket.left(rate)};t={math.ceil(bucket.filling)}'
    return [(b"ratelimit-policy", policy.encode()), (b"ratelimit", state.encode())]
