"""The models in service: loaded by name, replaced and taken out while requests go on."""

from __future__ import annotations

import asyncio
import os
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from service.bundle import MANIFEST, Bundle, BundleError, Manifest
from service.cache import Cache
from service.engines.base import EngineUnavailable, ServerStatistics
from service.engines.choose import choose
from service.errors import InvalidOption, NotFound
from service.images import View
from service.pipeline import Pipeline
from service.schemas import Options
from service.settings import Settings

RETIRE_POLL = 0.1  # seconds


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Model:
    """One bundle and the path that photographs take through it.

    Attributes:
        bundle: What is served.
        pipeline: Runs it.
        since: When it was loaded, in seconds since 1970.
    """

    bundle: Bundle
    pipeline: Pipeline
    since: int = field(default_factory=lambda: int(time.time()))

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self.bundle.manifest

    @property
    def digest(self) -> str:
        """The name of the model's numbers."""
        return self.bundle.digest

    @property
    def served(self) -> dict[str, str]:
        """How every answer names the model."""
        return {"model": self.manifest.name, "digest": self.digest}

    def view(self, options: Options) -> View:
        """Check the options that every image route shares, and give the view they ask for.

        Raises:
            InvalidOption: `size` is no multiple of the patch.
        """
        multiple = self.manifest.input.multiple
        if options.size is not None and options.size % multiple:
            raise InvalidOption(f"size: {options.size} is not a multiple of the patch, {multiple}.")
        return View(fit=options.fit, size=options.size)


class Models:
    """The default model and those of the repository; they share cache and decoding threads.

    Args:
        settings: `model` is the default's folder; `repository` holds a folder a further model,
            each named as its manifest says.

    Attributes:
        default: Name of the model that answers where none is asked for.
        cache: Holds outputs of all models.

    Raises:
        BundleError: A bundle is missing or damaged, its graph is not the contract's, or the
            repository is no folder that can be read.
        EngineUnavailable: The engine or precision asked for cannot run here.
    """

    def __init__(self, settings: Settings) -> None:
        _require_readable(settings.repository)
        self.cache = Cache(settings)
        self._settings = settings
        self._decoder = ThreadPoolExecutor(settings.threads, thread_name_prefix="decode")
        self._loading = asyncio.Lock()
        self._closing = asyncio.Event()
        self._retiring: dict[asyncio.Task[None], Pipeline] = {}
        first = self._open(settings.model)
        self.default = first.manifest.name
        self._models = {self.default: first}
        for name in self.stored():
            if name != self.default:
                self._models[name] = self._open(self._folder(name), name)

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def __getitem__(self, name: str) -> Model:
        """The model in service under `name`.

        Raises:
            NotFound: There is none.
        """
        try:
            return self._models[name]
        except KeyError:
            raise self._unknown(name) from None

    def __contains__(self, name: str) -> bool:
        return name in self._models

    @property
    def ready(self) -> bool:
        """Whether every model would accept a photograph now."""
        return all(model.pipeline.ready for model in self)

    @property
    def stuck(self) -> bool:
        """Whether a run of a model never ends, which only the end of the process cures."""
        pipelines = (*(model.pipeline for model in self), *self._retiring.values())
        return any(pipeline.batcher.stuck for pipeline in pipelines)

    def stored(self) -> list[str]:
        """Names of the bundles in the repository, in service or not."""
        repository = self._settings.repository
        if repository is None:
            return []
        names = (manifest.parent.name for manifest in repository.glob(f"*/{MANIFEST}"))
        # A hidden folder is a bundle that is being put in place or taken away.
        return sorted(name for name in names if not name.startswith("."))

    async def statistics(self) -> list[tuple[str, ServerStatistics]]:
        """What each server that runs a model has counted, with the model's name."""
        models = list(self)
        told = await asyncio.gather(*(model.pipeline.statistics() for model in models))
        return [
            (model.manifest.name, server)
            for model, servers in zip(models, told, strict=True)
            for server in servers
        ]

    async def start(self) -> None:
        """Warm every model up, then accept photographs; of servers', when one has the model."""
        for model in self:
            await model.pipeline.start()

    async def close(self) -> None:
        """Refuse new photographs, answer those accepted and release every model."""
        self._closing.set()
        async with self._loading:
            await asyncio.gather(*self._retiring, *(model.pipeline.close() for model in self))
        await asyncio.to_thread(self._decoder.shutdown)
        await self.cache.close()

    async def load(self, name: str) -> Model:
        """Read the bundle `name` anew and serve it, in place of what was served under its name.

        Requests go on meanwhile: the new model is warm before it is asked, and the one that it
        replaces answers what it has accepted.

        Raises:
            NotFound: The repository has no such bundle.
            InvalidOption: The bundle cannot be used.
        """
        async with self._loading:
            folder = self._folder(name)
            try:
                model = await asyncio.to_thread(self._open, folder, name)
            except (BundleError, EngineUnavailable) as error:
                raise InvalidOption(f"{name}: {error}; what was served goes on.") from error
            await self._start(model)
            if name in self._models:
                self._retire(self._models.pop(name))
            self._models[name] = model
            return model

    async def unload(self, name: str) -> None:
        """Serve the model `name` no longer.

        Raises:
            NotFound: It is not served.
            InvalidOption: It is the default.
        """
        async with self._loading:
            if name == self.default:
                raise InvalidOption(f"{name}: the default model stays; load it anew to replace it.")
            if name not in self._models:
                raise self._unknown(name)
            self._retire(self._models.pop(name))

    def _open(self, folder: Path, name: str | None = None) -> Model:
        bundle = Bundle.load(folder)
        if name not in (None, bundle.manifest.name):
            raise BundleError(
                f"{folder} holds the model {bundle.manifest.name!r}; {name!r} is expected there"
            )
        engine = choose(bundle, self._settings)
        return Model(bundle, Pipeline(bundle, engine, self._settings, self.cache, self._decoder))

    async def _start(self, model: Model) -> None:
        try:
            await model.pipeline.start()
            if not model.pipeline.ready:
                raise EngineUnavailable("no model server has it; the log says what they have")
        except BaseException as error:
            await model.pipeline.close()
            if isinstance(error, Exception):
                raise InvalidOption(
                    f"{model.manifest.name}: its graph cannot be run: {error}"
                ) from error
            raise

    def _folder(self, name: str) -> Path:
        if name == self.default:
            return self._settings.model
        if name in self.stored():
            assert self._settings.repository is not None
            return self._settings.repository / name
        raise NotFound(
            f"The repository has no model {name!r}; it has {', '.join(self.stored()) or 'none'}."
        )

    def _unknown(self, name: str) -> NotFound:
        served = ", ".join(map(repr, self._models))
        return NotFound(f"There is no model {name!r}; this server serves {served}.")

    def _retire(self, model: Model) -> None:
        """Close a model that is served no longer, once the requests that hold it are done."""
        task = asyncio.create_task(self._close_unused(weakref.ref(model), model.pipeline))
        self._retiring[task] = model.pipeline
        task.add_done_callback(self._retired)

    def _retired(self, task: asyncio.Task[None]) -> None:
        # One that is stuck is kept, for it to be noticed.
        if not self._retiring[task].batcher.stuck:
            del self._retiring[task]

    async def _close_unused(self, model: weakref.ref[Model], pipeline: Pipeline) -> None:
        # A request that was given the model before it was replaced holds it to its end. Where
        # an error's traceback holds it longer, no request lasts past the second limit.
        limit = asyncio.get_running_loop().time() + 2 * self._settings.request_timeout
        while model() and not self._closing.is_set():
            if asyncio.get_running_loop().time() > limit:
                break
            await asyncio.sleep(RETIRE_POLL)
        await pipeline.close()


def _require_readable(repository: Path | None) -> None:
    """A search of what is no folder finds nothing, and says nothing."""
    if repository is None:
        return
    try:
        os.listdir(repository)
    except OSError as error:
        raise BundleError(
            f"repository: {repository}: {error.strerror}; name a folder of bundles, or none"
        ) from None
