"""Several models by name: loaded, replaced and taken out, under the event loop's own load."""

import asyncio
import gc
import shutil
import weakref
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.bundle import GRAPH, BundleError
from service.errors import InvalidOption, NotFound
from service.images import View
from service.models import Model, Models
from service.settings import Settings
from tests.bundles import make_bundle
from tests.service.gateways import photograph

Use = Callable[[Models], Coroutine[Any, Any, None]]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A default model, tiny, and a repository with a second, other."""
    make_bundle(tmp_path / "tiny")
    make_bundle(tmp_path / "repository" / "other", "other", seed=1)
    return Settings(
        model=tmp_path / "tiny",
        repository=tmp_path / "repository",
        data=tmp_path / "data",
        threads=1,
        request_timeout=5,
    )


def run(settings: Settings, use: Use) -> None:
    async def started() -> None:
        models = Models(settings)
        await models.start()
        try:
            await asyncio.wait_for(use(models), 60)
        finally:
            await models.close()

    asyncio.run(started())


async def embed(model: Model, seed: int = 0) -> np.ndarray:
    deadline = asyncio.get_running_loop().time() + 30
    outputs = await model.pipeline.run(photograph(seed), View(), ("embedding",), deadline)
    return outputs["embedding"]


async def closed(model: weakref.ref[Model], pipeline: Any) -> None:
    """Wait until nobody holds the model and its pipeline is closed."""
    while model() or pipeline.ready:
        gc.collect()
        await asyncio.sleep(0.01)


def test_the_default_and_the_repository_are_served_by_name(settings: Settings) -> None:
    async def use(models: Models) -> None:
        assert models.default == "tiny"
        assert [model.manifest.name for model in models] == ["tiny", "other"]
        assert models.ready
        assert not np.allclose(await embed(models["tiny"]), await embed(models["other"]))
        with pytest.raises(NotFound, match="'tiny', 'other'"):
            models["third"]

    run(settings, use)


@pytest.mark.parametrize(
    ("place", "reason"),
    [("nowhere", "No such file or directory"), ("tiny/bundle.json", "Not a directory")],
)
def test_a_repository_that_is_no_folder_is_refused_at_start(
    settings: Settings, tmp_path: Path, place: str, reason: str
) -> None:
    wrong = settings.model_copy(update={"repository": tmp_path / place})
    with pytest.raises(BundleError, match=f"repository: {tmp_path / place}: {reason}; name a fol"):
        Models(wrong)


def test_a_new_version_takes_over_and_the_memory_of_the_old_is_freed(settings: Settings) -> None:
    async def use(models: Models) -> None:
        old, before = models["other"].digest, await embed(models["other"])
        reference, pipeline = weakref.ref(models["other"]), models["other"].pipeline
        engine = weakref.ref(pipeline._engine)
        make_bundle(settings.repository / "other", "other", seed=2)
        await models.load("other")
        assert models["other"].digest != old
        assert not np.allclose(await embed(models["other"]), before)
        await closed(reference, pipeline)
        assert not engine().ready
        del pipeline
        while engine():
            gc.collect()
            await asyncio.sleep(0.01)

    run(settings, use)


def test_whoever_holds_the_old_version_still_gets_its_answer(settings: Settings) -> None:
    async def use(models: Models) -> None:
        held = models["other"]
        make_bundle(settings.repository / "other", "other", seed=2)
        await models.load("other")
        await asyncio.sleep(0.3)
        assert not np.allclose(await embed(held), await embed(models["other"]))
        reference, pipeline = weakref.ref(held), held.pipeline
        del held
        await closed(reference, pipeline)

    run(settings, use)


def test_a_damaged_bundle_leaves_what_was_served(settings: Settings) -> None:
    async def use(models: Models) -> None:
        before = models["other"]
        (settings.repository / "other" / GRAPH).write_bytes(b"broken")
        with pytest.raises(InvalidOption, match="damaged"):
            await models.load("other")
        (settings.repository / "other" / "bundle.json").write_text("{")
        with pytest.raises(InvalidOption, match="not valid"):
            await models.load("other")
        assert models["other"] is before
        assert (await embed(before)).shape == (16,)

    run(settings, use)


def test_a_bundle_that_was_renamed_inside_is_refused(settings: Settings) -> None:
    async def use(models: Models) -> None:
        for folder, name in ((settings.repository / "other", "other"), (settings.model, "tiny")):
            shutil.rmtree(folder)
            make_bundle(folder, "renamed")
            with pytest.raises(InvalidOption, match=f"'renamed'; '{name}'"):
                await models.load(name)
            assert name in models

    run(settings, use)
    with pytest.raises(BundleError, match="'renamed'; 'other'"):
        Models(settings)


def test_a_graph_that_cannot_be_run_is_refused_and_closed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(models: Models) -> None:
        before, built = models["other"], []

        async def fail(engine: Any) -> None:
            built.append(engine)
            raise RuntimeError("no such kernel")

        monkeypatch.setattr(type(before.pipeline._engine), "warm_up", fail)
        with pytest.raises(InvalidOption, match="no such kernel"):
            await models.load("other")
        assert models["other"] is before
        assert not built[0].ready
        assert built[0]._pool._shutdown

    run(settings, use)


def test_the_default_is_loaded_anew_from_its_own_folder_and_is_never_taken_out(
    settings: Settings,
) -> None:
    async def use(models: Models) -> None:
        old = models["tiny"].digest
        make_bundle(settings.model, seed=3)
        await models.load("tiny")
        assert models["tiny"].digest != old
        with pytest.raises(InvalidOption, match="default"):
            await models.unload("tiny")

    run(settings, use)


def test_a_model_comes_and_goes(settings: Settings) -> None:
    async def use(models: Models) -> None:
        make_bundle(settings.repository / "third", "third", seed=4)
        assert models.stored() == ["other", "third"]
        assert (await models.load("third")) is models["third"]
        reference, pipeline = weakref.ref(models["third"]), models["third"].pipeline
        await models.unload("third")
        assert "third" not in models
        await closed(reference, pipeline)
        for take_out in (models.unload, models.load):
            with pytest.raises(NotFound):
                await take_out("fourth")

    run(settings, use)


@pytest.mark.parametrize("name", ["..", ".", "../tiny", "/etc", "other/../other", "other/", ""])
def test_a_name_never_leaves_the_repository(settings: Settings, name: str) -> None:
    async def use(models: Models) -> None:
        with pytest.raises(NotFound):
            await models.load(name)

    run(settings, use)


def test_closing_does_not_wait_for_what_is_being_replaced(settings: Settings) -> None:
    async def started() -> None:
        models = Models(settings.model_copy(update={"request_timeout": 600}))
        await models.start()
        held = models["other"]
        await models.load("other")
        await asyncio.wait_for(models.close(), 60)
        assert not held.pipeline.ready
        assert not models.ready

    asyncio.run(started())
