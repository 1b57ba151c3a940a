"""`foveal embed`: files and folders to one file of vectors, by a server or in this process."""

from __future__ import annotations

import asyncio
import glob
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import orjson

from service.bundle import BundleError
from service.client.aio import AsyncFoveal
from service.client.errors import ClientError
from service.client.many import bar, in_order_async
from service.client.results import Embedding
from service.client.sources import image_files
from service.embedding_files import EmbeddingFile, FileRefused
from service.engines.base import EngineUnavailable
from service.errors import FovealError
from service.models import Models
from service.pooling import outputs_for, pool, unit
from service.schemas import EmbedOptions
from service.settings import Settings
from service.telemetry import codecs

AT_ONCE = 64  # images read, decoded or in the model at a time

Answers = AsyncGenerator[tuple[Path, Embedding | Exception], None]


class NothingFound(Exception):
    """An argument names no image; the message says which."""


# What ends the command, each with a message for its user.
REASONS = (BundleError, ClientError, EngineUnavailable, FileRefused, FovealError, NothingFound)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many images were embedded, how many failed, and where the failures are listed."""

    embedded: int
    failed: int
    errors: Path


def find_images(arguments: Iterable[str]) -> list[Path]:
    """The files that the arguments name, each once, in the order of the arguments.

    A file is taken as it is, a folder is searched for images with its sub-folders, and anything
    else is a pattern in which `**` stands for any number of folders.

    Raises:
        NothingFound: An argument gives no file.
    """
    found: dict[Path, None] = {}
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            files = image_files(path)
        elif path.exists():
            files = [path]
        else:
            names = sorted(glob.glob(argument, recursive=True))
            files = [Path(name) for name in names if Path(name).is_file()]
        if not files:
            raise NothingFound(f"{argument}: no image is there")
        found |= dict.fromkeys(files)
    return list(found)


async def embed_here(settings: Settings, options: EmbedOptions, files: Sequence[Path]) -> Answers:
    """Embed with the bundle at `settings.model`, through the gateway's own pipeline.

    Raises:
        BundleError: The bundle is missing or damaged.
        EngineUnavailable: Its engine cannot be had.
        InvalidOption: An option does not suit the model.
    """
    codecs.silence()
    models = Models(settings)
    model = models[models.default]
    view = model.view(options)
    outputs = outputs_for(options.pooling, model.manifest)
    # Nobody waits: an image may take as long as it takes.
    never = float("inf")

    async def embed(file: Path) -> tuple[Path, Embedding | Exception]:
        try:
            data = await asyncio.to_thread(_read, file, settings.max_image_bytes)
            found = await model.pipeline.run(data, view, outputs, never)
        except Exception as error:  # whatever it is, it is this image's alone
            return file, error
        vector = pool(found, options.pooling)
        return file, Embedding(unit(vector) if options.normalize else vector, **model.served)

    await models.start()
    try:
        async with aclosing(in_order_async(embed, files, AT_ONCE)) as answers:
            async for answer in answers:
                yield answer
    finally:
        await models.close()


async def embed_there(
    url: str, api_key: str | None, options: EmbedOptions, files: Sequence[Path]
) -> Answers:
    """Embed with the server at `url`.

    Raises:
        ClientError: The server cannot be reached, or refuses more than single images.
    """
    asked = options.model_dump(exclude_unset=True, exclude_none=True)
    async with (
        AsyncFoveal(url, api_key) as client,
        aclosing(client.embed_many(files, **asked)) as answers,
    ):
        async for file, answer in answers:
            assert isinstance(file, Path)
            yield file, answer


def write(answers: Answers, total: int, out: EmbeddingFile) -> Outcome:
    """Write embeddings as they come, and beside them why an image has none.

    The failures are JSON lines in a file named as `out` with `.errors.jsonl` added; one from an
    earlier run goes.

    Args:
        answers: Each file's embedding, or why it has none.
        total: How many there will be, for the progress bar.
        out: Takes the embeddings.

    Raises:
        One of `REASONS`: The run had to end.
    """
    errors = out.path.with_name(f"{out.path.name}.errors.jsonl")
    errors.unlink(missing_ok=True)
    failed = 0

    async def consume() -> None:
        nonlocal failed
        async with aclosing(answers):
            async for file, answer in answers:
                if isinstance(answer, Embedding):
                    out.add(str(file), answer)
                else:
                    failed += 1
                    with errors.open("ab") as listed:
                        listed.write(_failure(file, answer))
                advance()

    with out, bar(total) as advance:
        asyncio.run(consume())
    return Outcome(out.added, failed, errors)


def _read(file: Path, limit: int) -> bytes:
    """The file's bytes, at most one more than the limit, which is enough to refuse it."""
    with file.open("rb") as opened:
        return opened.read(limit + 1)


def _failure(file: Path, error: Exception) -> bytes:
    line = {"path": str(file), "error": str(error)}
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
