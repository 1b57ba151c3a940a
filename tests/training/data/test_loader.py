import gc
import logging
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data import dataset
from tests.training.data import pillow
from training.data import device_loader
from training.data import loader as loaders
from training.data.crops import CropConfig
from training.data.device_loader import DeviceLoader, together
from training.data.loader import CropLoader, ResidentLoader
from training.data.sources import DataError, ImageFolder, open_source
from training.data.sources.picture import EncodedPicture
from training.data.views import boxes, distortions

CROPS = CropConfig(global_size=32, local_size=16, local_count=2)


@pytest.fixture(scope="module")
def source():
    return ImageFolder.open(dataset("photos"))


@pytest.fixture(scope="module")
def small(tmp_path_factory, photos):
    """The photographs at about 60 x 50, in a lossless folder."""
    folder = tmp_path_factory.mktemp("small")
    for number, photo in enumerate(photos):
        photo.resize((photo.width // 4, photo.height // 4)).save(folder / f"{number:02}.png")
    return ImageFolder.open(folder)


def by_workers(source, batch=8, config=CROPS, workers=0, **share):
    return CropLoader(source, config, batch, seed=3, workers=workers, **share)


def resident(source, batch=8, config=CROPS, **share):
    return ResidentLoader(source, config, batch, seed=3, device="cpu", **share)


def on_device(source, batch=8, config=CROPS, workers=0, **share):
    return DeviceLoader(source, config, batch, seed=3, workers=workers, device="cpu", **share)


def equal(one, two):
    return len(one) == len(two) and all(
        torch.equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True)
    )


@pytest.mark.parametrize("loader", [by_workers, resident, on_device])
class TestEveryLoader:
    def test_gives_the_global_crops_first(self, loader, small):
        shapes = [tuple(crop.shape) for crop in next(loader(small).epoch(0))]
        assert shapes == [(8, 32, 32, 3)] * 2 + [(8, 16, 16, 3)] * 2

    def test_gives_only_global_crops_when_multi_crop_is_off(self, loader, small):
        crops = CROPS.model_copy(update={"local_count": 0})
        batch = next(loader(small, config=crops).epoch(0))
        assert [tuple(crop.shape) for crop in batch] == [(8, 32, 32, 3)] * 2

    def test_starting_later_gives_the_same_batches(self, loader, small):
        full, rest = list(loader(small).epoch(1)), list(loader(small).epoch(1, 3))
        assert len(full) == len(small) // 8
        assert equal(full[3:], rest)

    def test_epochs_and_seeds_differ(self, loader, small):
        first = next(loader(small).epoch(0))
        assert not torch.equal(first[0], next(loader(small).epoch(1))[0])
        assert not torch.equal(first[0], first[1])

    def test_two_processes_share_the_batch_of_one(self, loader, small):
        whole = list(loader(small).epoch(0))
        halves = [list(loader(small, rank=rank, world=2).epoch(0)) for rank in (0, 1)]
        for step, batch in enumerate(whole):
            for number, crop in enumerate(batch):
                for rank in (0, 1):
                    assert torch.equal(crop[rank::2], halves[rank][step][number])

    def test_shares_that_are_not_equal_are_refused(self, loader, small):
        with pytest.raises(DataError, match="no multiple of the 3 processes"):
            loader(small, rank=0, world=3)

    def test_fewer_images_than_a_batch_is_refused(self, loader, small):
        with pytest.raises(DataError, match="lower batch_size"):
            loader(small, batch=1000)

    def test_unreadable_images_are_replaced_counted_and_logged_once(
        self, loader, tmp_path, photos, caplog
    ):
        for number, photo in enumerate(photos[:8]):
            photo.resize((40, 40)).save(tmp_path / f"{number}.png")
        (tmp_path / "empty.jpg").touch()
        whole = (tmp_path / "0.png").read_bytes()
        (tmp_path / "truncated.png").write_bytes(whole[: len(whole) // 2])
        (tmp_path / "text.jpg").write_text("no image")
        source = ImageFolder.open(tmp_path)
        reading = loader(source, batch=11)
        with caplog.at_level(logging.WARNING):
            first = list(reading.epoch(0))
            again = list(loader(source, batch=11).epoch(0))
            caplog.clear()
            list(reading.epoch(1))
        assert not caplog.records
        assert equal(first, again)
        names = {title.rpartition("/")[2] for title in reading.unreadable}
        assert names == {"empty.jpg", "truncated.png", "text.jpg"}
        assert not any((crop == 0).all() for crop in first[0][0])

    def test_a_source_without_a_readable_image_is_an_error(self, loader, tmp_path):
        for number in range(10):
            (tmp_path / f"{number}.jpg").write_bytes(b"\xff\xd8 damaged")
        with pytest.raises(DataError, match="hardly a readable image"):
            next(loader(ImageFolder.open(tmp_path)).epoch(0))


def test_an_unreadable_image_is_named_in_the_log(tmp_path, photos, caplog):
    photos[0].save(tmp_path / "a.png")
    (tmp_path / "b.png").touch()
    with caplog.at_level(logging.WARNING):
        list(by_workers(ImageFolder.open(tmp_path), batch=2).epoch(0))
    assert "b.png: it is empty" in caplog.text


@pytest.mark.parametrize("loader", [by_workers, on_device])
def test_batches_do_not_depend_on_the_number_of_workers(loader, source):
    several = loader(source, workers=2)
    assert equal(list(loader(source).epoch(1)), list(several.epoch(1)))


@pytest.mark.parametrize("loader", [by_workers, on_device])
def test_workers_stay_for_the_next_epoch(loader, small):
    others = set(multiprocessing.active_children())  # those of a loader that is not yet collected
    alone, several = loader(small), loader(small, workers=2)
    next(several.epoch(0))  # given up in the middle
    workers = set(multiprocessing.active_children()) - others
    assert len(workers) == 2
    assert equal(list(alone.epoch(1, 2)), list(several.epoch(1, 2)))
    assert equal(list(alone.epoch(2)), list(several.epoch(2)))
    assert set(multiprocessing.active_children()) - others == workers


@pytest.mark.parametrize("loader", [by_workers, on_device])
def test_workers_end_well_with_their_loader(loader, small):
    before = set(multiprocessing.active_children())
    reading = loader(small, workers=2)
    next(reading.epoch(0))
    workers = set(multiprocessing.active_children()) - before
    del reading
    gc.collect()
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0, 0]


def test_an_epoch_keeps_its_number_when_the_next_is_asked_for(small):
    loader = by_workers(small)
    first, _ = loader.epoch(0), loader.epoch(1)
    assert equal(list(first), list(by_workers(small).epoch(0)))


def test_a_worker_hands_over_its_error(tmp_path):
    for number in range(8):
        (tmp_path / f"{number}.jpg").touch()
    with pytest.raises(DataError, match=r"^.* holds hardly a readable image"):
        next(by_workers(ImageFolder.open(tmp_path), workers=1).epoch(0))


def test_the_random_state_of_the_run_is_left_alone(small):
    before = torch.get_rng_state()
    next(by_workers(small).epoch(0))
    next(resident(small).epoch(0))
    next(on_device(small).epoch(0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("other", [resident, on_device])
def test_every_loader_gives_the_same_crops(other, small):
    for one, two in zip(by_workers(small).epoch(0), other(small).epoch(0), strict=True):
        for a, b in zip(one, two, strict=True):
            assert (a.int() - b.int()).abs().float().mean() < 0.5


def test_crops_do_not_depend_on_which_images_are_padded_together(small, monkeypatch):
    at_once = next(on_device(small).epoch(0))
    monkeypatch.setattr(device_loader, "TOGETHER", 3 * 60 * 50 * 3)
    assert equal([at_once], [next(on_device(small).epoch(0))])


def test_images_that_are_padded_together_stay_under_the_limit():
    sizes = np.random.default_rng(0).integers(1, 100, (50, 2))
    sizes[7] = (4000, 10)
    groups = together(sizes, most=30_000)
    assert sorted(row for group in groups for row in group) == list(range(50))
    padded = [len(group) * sizes[group].max(axis=0).prod() for group in groups]
    assert all(size <= 30_000 for size, group in zip(padded, groups, strict=True) if 7 not in group)
    assert [7] in groups
    assert len(groups) < 20


def test_an_image_that_no_decoder_reduces_is_reduced_before_it_is_copied(tmp_path):
    with Image.open(dataset("photos") / "kodak01.jpg") as photo:
        photo.convert("RGB").resize((1537, 1023)).save(tmp_path / "large.png")
    source = ImageFolder.open(tmp_path)
    crops = CROPS.model_copy(update={"local_scale": (0.1, 0.4)})
    loader = on_device(source, batch=1, config=crops)
    (batch,) = loader._workers.epoch(0, 0)
    assert batch.sizes.tolist() == [[192, 127]]
    full = next(by_workers(source, batch=1, config=crops).epoch(0))
    for one, two in zip(next(loader.epoch(0)), full, strict=True):
        assert (one.int() - two.int()).abs().float().mean() < 6


def test_images_that_would_fill_the_device_are_refused_before_all_are_decoded(small, monkeypatch):
    asked, refused = [], threading.Event()
    decode = small.picture

    def picture(index):
        asked.append(index)
        # All of them could be decoded before the first is looked at.
        assert index == 0 or refused.wait(timeout=60)
        return decode(index)

    class Pool(ThreadPoolExecutor):
        def shutdown(self, *arguments, **options):
            refused.set()
            super().shutdown(*arguments, **options)

    monkeypatch.setattr(small, "picture", picture)
    monkeypatch.setattr(loaders, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(loaders, "memory", lambda device: 10_000)
    with pytest.raises(DataError, match=r"bytes, and cpu has 10,000, .*; set resident=false"):
        resident(small)
    assert len(asked) < len(small)


def test_the_crops_are_pillows(small):
    config = CROPS.model_copy(update={"blur": (0.1, 0.6)})  # at edges a wider one differs more
    loader = by_workers(small, config=config)
    batch, uniform = next(loader.epoch(0)), loader.plan.numbers(0, 0)
    for row, index in enumerate(loader.plan.images(0)[0].tolist()):
        image = small.image(index)
        box = boxes(config, uniform[[row]], np.array([image.size]))[0]
        draws = distortions(config, uniform[row])
        for number, side in enumerate(CROPS.sides):
            expected = pillow.crop(image, box[number], draws[number], side).astype(int)
            difference = np.abs(batch[number][row].numpy().astype(int) - expected)
            assert difference.mean() < 1.0
            assert np.median(difference) <= 1


def test_a_large_jpeg_is_decoded_no_larger_than_its_crops_need(tmp_path, photos, monkeypatch):
    with Image.open(dataset("photos") / "kodak01.jpg") as photo:
        large = photo.convert("RGB").resize((1537, 1023))
    large.save(tmp_path / "large.jpg", quality=95)
    source = ImageFolder.open(tmp_path)
    crops = CROPS.model_copy(update={"local_scale": (0.1, 0.4)})
    asked = []
    decode = EncodedPicture.pixels

    def pixels(self, reduction=1):
        asked.append((reduction, decode(self, reduction).shape[:2]))
        return decode(self, reduction)

    monkeypatch.setattr(EncodedPicture, "pixels", pixels)
    reduced = next(by_workers(source, batch=1, config=crops).epoch(0))
    assert asked == [(8, (128, 193))]
    monkeypatch.setattr(EncodedPicture, "pixels", lambda self, reduction=1: decode(self))
    full = next(by_workers(source, batch=1, config=crops).epoch(0))
    for one, two in zip(reduced, full, strict=True):
        assert (one.int() - two.int()).abs().float().mean() < 6


def test_a_crop_that_needs_all_pixels_has_them(tmp_path, photos, monkeypatch):
    photos[0].save(tmp_path / "a.jpg")
    asked = []
    decode = EncodedPicture.pixels
    monkeypatch.setattr(
        EncodedPicture, "pixels", lambda self, r=1: asked.append(r) or decode(self, r)
    )
    config = CROPS.model_copy(update={"global_size": 128})
    next(by_workers(ImageFolder.open(tmp_path), batch=1, config=config).epoch(0))
    assert asked == [1]


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("loader", [by_workers, resident, on_device])
def test_images_of_other_channels_keep_them(loader, channels, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 28, 28, channels), np.uint8)
    np.savez(tmp_path / "set.npz", train_x=pixels)
    batch = next(loader(open_source(tmp_path / "set.npz", channels)).epoch(0))
    assert [tuple(crop.shape[1:]) for crop in batch] == [(32, 32, channels)] * 2 + [
        (16, 16, channels)
    ] * 2
