"""Images and options out of a request, in any of the three forms that the routes share.

A raw body is one image and carries its options in the query string; multipart has parts named
`images` and options as form fields; JSON has a list `images` and options beside it. An option may
stand in the query string of every form. Images that JSON names by URL are fetched here, so that the
routes see bytes alone.
"""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import ValidationError
from starlette.requests import Request

from service.deadline import Deadline
from service.errors import (
    FovealError,
    InvalidOption,
    MalformedRequest,
    TooLarge,
    UnsupportedMediaType,
)
from service.fetch import Allowance
from service.json_text import load_body
from service.routes.body import deadline, off_loop_if_large, read_body, while_connected
from service.routes.gateway import Gateway
from service.routes.multipart import parse_multipart
from service.routes.problems import explain, require_known
from service.schemas import Options
from service.telemetry.record import count_image

O = TypeVar("O", bound=Options)  # noqa: E741

Source = bytes | FovealError


@dataclass(frozen=True, slots=True)
class Link:
    """An image that is somewhere else."""

    url: str


FORMS = (
    "image/* or application/octet-stream with the image as the body, multipart/form-data with "
    "parts named images, or application/json with a list named images"
)
IMAGE_FIELDS = ("images", "candidates")
EXTRA_PARTS = 64


@dataclass(frozen=True, slots=True)
class Asked(Generic[O]):
    """A parsed request.

    Attributes:
        options: The validated options.
        images: The encoded images; an error where one cannot be read.
        candidates: Those to rank against the first, where the route takes any.
    """

    options: O
    images: list[Source]
    candidates: list[Source]

    def only_image(self) -> Source:
        """The one image of the request.

        Raises:
            InvalidOption: There are none or several.
        """
        if len(self.images) != 1:
            raise InvalidOption(f"images: send exactly one here; there are {len(self.images)}.")
        return self.images[0]


@dataclass(slots=True)
class _Parsed:
    options: dict[str, Any] = field(default_factory=dict)
    images: list[Source | Link] = field(default_factory=list)
    candidates: list[Source | Link] = field(default_factory=list)

    def option(self, name: str, value: Any) -> None:
        if name in self.options:
            raise InvalidOption(f"{name}: given twice.")
        self.options[name] = value


async def receive(request: Request, options: type[O], *, candidates: bool = False) -> Asked[O]:
    """Read and parse a request.

    Args:
        request: What came.
        options: The model of the options that the route knows.
        candidates: Whether the route takes candidates.

    Raises:
        MalformedRequest: The JSON or the multipart is broken.
        UnsupportedMediaType: The body has none of the three forms.
        InvalidOption: An option is unknown, given twice or out of its range.
        TooLarge: The body, its JSON or the number of images is over its limit.
        BodyTimeout: The body did not arrive in time.
        DeadlineExceeded: The images at URLs did not arrive in time.
        ClientDisconnect: The client went away.
    """
    settings = Gateway.of(request).settings
    deadline(request, settings)
    body = await read_body(request, settings)
    # An image that is the body needs no parsing, however large it is.
    size = 0 if _is_image(_form(request)) else len(body)
    found, valid = await off_loop_if_large(size, _read, request, body, options, settings.max_images)
    if found.candidates and not candidates:
        raise InvalidOption("candidates: only /similar ranks candidates.")
    sources = await arrived(request, [*found.images, *found.candidates])
    images = len(found.images)
    return Asked(valid, sources[:images], sources[images:])


async def arrived(request: Request, sources: list[Source | Link]) -> list[Source]:
    """The bytes of all images; those at URLs are fetched side by side, and each fails alone."""
    here = [source for source in sources if not isinstance(source, Link)]
    if len(here) == len(sources):
        return here
    gateway = Gateway.of(request)
    allowance = Allowance(gateway.settings.max_body_bytes)

    async def arrive(source: Source | Link) -> Source:
        if not isinstance(source, Link):
            return source
        if gateway.fetcher is None:
            return InvalidOption(
                "url: this server fetches no URLs; send the image's bytes as b64, or have it "
                "started with FOVEAL_URL_FETCH=true."
            )
        try:
            return await gateway.fetcher.fetch(source.url, allowance)
        except FovealError as error:
            count_image()  # what was fetched counts as it is run
            return error

    async with Deadline(deadline(request, gateway.settings)):
        return await while_connected(request, asyncio.gather(*map(arrive, sources)))


def _form(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _is_image(form: str) -> bool:
    return form.startswith("image/") or form == "application/octet-stream"


def _read(request: Request, body: bytes, options: type[O], max_images: int) -> tuple[_Parsed, O]:
    parsed = _parse(request, body, max_images)
    return parsed, _validate(parsed.options, options)


def _parse(request: Request, body: bytes, max_images: int) -> _Parsed:
    parsed = _Parsed()
    for name, value in request.query_params.multi_items():
        parsed.option(name, value)
    form = _form(request)
    if _is_image(form):
        parsed.images.append(body)
    elif form == "multipart/form-data":
        header = request.headers["content-type"]
        _read_parts(parse_multipart(header, body, max_images + EXTRA_PARTS), parsed)
        _require_count(len(parsed.images) + len(parsed.candidates), max_images)
    elif form == "application/json":
        _read_json(body, parsed, max_images)
    elif body or form:
        raise UnsupportedMediaType(f"Content-Type {form or 'is missing'}: send {FORMS}.")
    return parsed


def _read_parts(parts: list[tuple[str, bytes]], parsed: _Parsed) -> None:
    for name, content in parts:
        if name == "images":
            parsed.images.append(content)
        elif name == "candidates":
            parsed.candidates.append(content)
        else:
            parsed.option(name, content.decode(errors="replace"))


def _read_json(body: bytes, parsed: _Parsed, max_images: int) -> None:
    document = load_body(body)
    if not isinstance(document, dict):
        raise MalformedRequest('The body must be a JSON object such as {"images": [...]}.')
    entries = {name: document.pop(name, []) for name in IMAGE_FIELDS}
    for name, value in entries.items():
        if not isinstance(value, list):
            raise InvalidOption(f"{name}: must be a list.")
    _require_count(sum(map(len, entries.values())), max_images)
    parsed.images, parsed.candidates = (list(map(decode, entries[name])) for name in IMAGE_FIELDS)
    for name, value in document.items():
        parsed.option(name, value)


def _require_count(count: int, max_images: int) -> None:
    if count > max_images:
        raise TooLarge(
            f"The request has {count} images; the limit is {max_images}. "
            "Send them in several requests."
        )


def decode(entry: Any) -> Source | Link:
    """Give the bytes of one entry of a JSON list, or what is wrong with it."""
    match entry:
        case {"b64": str(text), **rest} if not rest:
            pass
        case str(uri) if uri.startswith("data:"):
            head, _, text = uri.partition(",")
            if not head.endswith(";base64"):
                return MalformedRequest("A data URI must be of the form data:image/png;base64,….")
        case {"url": str(url), **rest} if not rest:
            return Link(url)
        case _:
            return InvalidOption(
                'An image must be {"b64": "…"}, {"url": "https://…"} or "data:image/png;base64,…".'
            )
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        return MalformedRequest(f"The image is not base64: {error}.")


def _validate(values: dict[str, Any], options: type[O]) -> O:
    require_known(values, options.model_fields)
    try:
        return options.model_validate(values)
    except ValidationError as error:
        raise InvalidOption(explain(error.errors(include_url=False))) from None
