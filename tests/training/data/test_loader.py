import shutil

import pytest
import torch

from tests.data import dataset
from training.data.crops import CropConfig
from training.data.loader import CropLoader
from training.data.sources import DataError, ImageFolder

CROPS = CropConfig(global_size=32, local_size=16, local_count=2)


@pytest.fixture(scope="module")
def source():
    return ImageFolder.open(dataset("photos"))


def batches(source, workers, first=0):
    return list(CropLoader(source, CROPS, 8, seed=3, workers=workers).epoch(1, first))


def test_batches_do_not_depend_on_the_number_of_workers(source):
    for one, two in zip(batches(source, 0), batches(source, 2), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_starting_later_gives_the_same_batches(source):
    full, rest = batches(source, 0), batches(source, 0, first=4)
    assert len(full) == len(source) // 8
    for one, two in zip(full[4:], rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_epochs_differ(source):
    loader = CropLoader(source, CROPS, 8, seed=3, workers=0)
    assert not torch.equal(next(loader.epoch(0))[0], next(loader.epoch(1))[0])


def test_fewer_images_than_a_batch_is_refused(source):
    with pytest.raises(DataError, match="lower batch_size"):
        CropLoader(source, CROPS, 1000, seed=0, workers=0)


def test_an_empty_or_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="no image below"):
        ImageFolder.open(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        ImageFolder.open(tmp_path / "nowhere")


def test_sub_folders_are_classes_in_order_of_name(tmp_path):
    photo = dataset("photos") / "skimage_rocket.jpg"
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        shutil.copy(photo, tmp_path / name / "1.jpg")
    source = ImageFolder.open(tmp_path)
    assert source.classes == ("a", "b")
    assert source.labels == (0, 1)
    assert source.image(0).mode == "RGB"
