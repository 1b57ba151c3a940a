"""The models in service: loaded by name, replaced and taken out while requests go on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from service.bundle import MANIFEST, Bundle, BundleError, Manifest
from service.cache import MemoryCache
from service.engines.onnx import OnnxEngine
from service.errors import InvalidOption, NotFound
from service.images import View
from service.pipeline import Pipeline
from service.schemas import Options
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class Model:
    """One bundle and the path that photographs take through it."""

    bundle: Bundle
    pipeline: Pipeline

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
        BundleError: A bundle is missing or damaged, or its graph is not the contract's.
    """

    def __init__(self, settings: Settings) -> None:
        self.cache = MemoryCache(settings.cache_bytes)
        self._settings = settings
        self._decoder = ThreadPoolExecutor(settings.threads, thread_name_prefix="decode")
        self._loading = asyncio.Lock()
        self._closing = asyncio.Event()
        self._retiring: set[asyncio.Task[None]] = set()
        first = self._open(settings.model)
        self.default = first.manifest.name
        self._models = {self.default: first}
        for name in self.stored():
            if name not in self._models:
                self._models[name] = self._open(self._folder(name))

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
            served = ", ".join(map(repr, self._models))
            raise NotFound(f"There is no model {name!r}; this server serves {served}.") from None

    def __contains__(self, name: str) -> bool:
        return name in self._models

    @property
    def ready(self) -> bool:
        """Whether every model would accept a photograph now."""
        return all(model.pipeline.ready for model in self)

    def stored(self) -> list[str]:
        """Names of the bundles in the repository, in service or not."""
        repository = self._settings.repository
        if repository is None:
            return []
        return sorted(manifest.parent.name for manifest in repository.glob(f"*/{MANIFEST}"))

    async def start(self) -> None:
        """Warm every model up, then accept photographs."""
        for model in self:
            await model.pipeline.start()

    async def close(self) -> None:
        """Refuse new photographs, answer those accepted and release every model."""
        self._closing.set()
        await asyncio.gather(*self._retiring, *(model.pipeline.close() for model in self))
        await asyncio.to_thread(self._decoder.shutdown)

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
                model = await asyncio.to_thread(self._open, folder)
            except BundleError as error:
                raise InvalidOption(f"{name}: {error}.") from error
            await model.pipeline.start()
            replaced = self._models.get(name)
            self._models[name] = model
            self._retire(replaced)
            return model

    async def unload(self, name: str) -> None:
        """Serve the model `name` no longer.

        Raises:
            NotFound: It is not served.
            InvalidOption: It is the default.
        """
        async with self._loading:
            model = self[name]
            if name == self.default:
                raise InvalidOption(f"{name}: the default model stays; load it anew to replace it.")
            del self._models[name]
            self._retire(model)

    def _open(self, folder: Path) -> Model:
        bundle = Bundle.load(folder)
        if folder != self._settings.model and folder.name != bundle.manifest.name:
            raise BundleError(
                f"{folder} holds the model {bundle.manifest.name!r}; name the folder so"
            )
        engine = OnnxEngine(bundle, self._settings.threads)
        return Model(bundle, Pipeline(bundle, engine, self._settings, self.cache, self._decoder))

    def _folder(self, name: str) -> Path:
        if name in self.stored():
            assert self._settings.repository is not None
            return self._settings.repository / name
        if name == self.default:
            return self._settings.model
        raise NotFound(
            f"The repository has no model {name!r}; it has {', '.join(self.stored()) or 'none'}."
        )

    def _retire(self, model: Model | None) -> None:
        if model is None:
            return
        task = asyncio.create_task(self._close_unused(model))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _close_unused(self, model: Model) -> None:
        # Whoever was given the model before it was replaced holds it for one request at most.
        with suppress(TimeoutError):
            async with asyncio.timeout(2 * self._settings.request_timeout):
                await self._closing.wait()
        await model.pipeline.close()
