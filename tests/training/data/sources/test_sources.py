"""Each form of data, local and in fsspec's memory, with good and bad files."""

import io
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data import SOURCE, dataset
from training.data.sources import DataError, ImageFolder, Unreadable, open_source


@pytest.fixture(params=["local", "memory"])
def place(request, tmp_path):
    """An empty location."""
    if request.param == "local":
        yield str(tmp_path)
        return
    yield "memory://data"
    fsspec.filesystem("memory").store.clear()


def write(url, data):
    system, path = fsspec.url_to_fs(url, auto_mkdir=True)
    system.pipe_file(path, data)


def png(photo, mode="RGB"):
    file = io.BytesIO()
    photo.convert(mode).save(file, "PNG")
    return file.getvalue()


def shard(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def table(**columns):
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, row_group_size=2)
    return file.getvalue()


def same(image, photo):
    return np.array_equal(np.asarray(image), np.asarray(photo))


def test_a_folder_has_a_class_a_sub_folder_in_order_of_name(place, photos):
    write(f"{place}/b/1.png", png(photos[0]))
    write(f"{place}/a/deep/2.PNG", png(photos[1]))
    write(f"{place}/a/notes.txt", b"no image")
    source = open_source(place)
    assert (source.classes, source.labels) == (("a", "b"), (0, 1))
    assert same(source.image(0), photos[1])
    assert source.title(1).endswith("b/1.png")


def test_images_outside_sub_folders_are_one_class():
    source = ImageFolder.open(dataset("photos"))
    assert set(source.labels) == {0}
    assert Path(source.title(0)).is_file()


def test_shards_have_images_and_classes_by_key(place, photos):
    first = [("n1/a.png", png(photos[0])), ("n1/a.cls", b"3\n"), ("n1/a.json", b"{}")]
    second = [("n2/b.cls", b"1"), ("n2/b.png", png(photos[1]))]
    write(f"{place}/train-0.tar", shard(first))
    write(f"{place}/train-1.tar", shard(second))
    write(f"{place}/val-0.tar", shard(second))
    for location, count in ((place, 3), (f"{place}/train-*.tar", 2), (f"{place}/val-0.tar", 1)):
        assert len(open_source(location)) == count
    source = open_source(f"{place}/train-*.tar")
    assert source.labels == (3, 1)
    assert same(source.image(0), photos[0])
    assert same(source.image(1), photos[1])


def test_parquet_holds_structs_or_bytes(place, photos):
    rows = [{"bytes": png(photo), "path": None} for photo in photos[:5]]
    write(f"{place}/0.parquet", table(image=rows, label=[2, 0, 1, 1, 2]))
    write(f"{place}/1.parquet", table(image=[png(photos[5])], label=[0]))
    source = open_source(place)
    assert source.labels == (2, 0, 1, 1, 2, 0)
    assert source.classes == ("0", "1", "2")
    assert all(same(source.image(index), photos[index]) for index in (5, 0, 3))


def test_parquet_may_name_its_classes_or_have_none(place, photos):
    write(f"{place}/named.parquet", table(image=[png(photos[0])] * 2, label=["dog", "cat"]))
    write(f"{place}/bare.parquet", table(image=[png(photos[0])] * 2))
    assert open_source(f"{place}/named.parquet").labels == (1, 0)
    assert open_source(f"{place}/bare.parquet").labels == (0, 0)
    # As the hub has sets without labels.
    write(f"{place}/none.parquet", table(image=[png(photos[0])] * 2, label=[-1, -1]))
    assert open_source(f"{place}/none.parquet").labels == (0, 0)
    write(f"{place}/some.parquet", table(image=[png(photos[0])] * 2, label=[-1, 1]))
    with pytest.raises(DataError, match=r"some\.parquet: a label is -1"):
        open_source(f"{place}/some.parquet")


def test_an_archive_has_splits(place):
    grey = np.random.default_rng(0).integers(0, 256, (4, 28, 28), np.uint8)
    file = io.BytesIO()
    np.savez(file, train_x=grey, train_y=[1, 0, 2, 2], test_x=grey[:1], test_y=[1])
    write(f"{place}/set.npz", file.getvalue())
    train, test = (open_source(f"{place}/set.npz{split}", 1) for split in ("", "#test"))
    assert (train.labels, test.labels) == ((1, 0, 2, 2), (1,))
    assert same(train.image(2), grey[2])
    assert same(Image.open(io.BytesIO(train.encoded(2))), grey[2])
    assert open_source(f"{place}/set.npz", 3).image(0).mode == "RGB"


@pytest.mark.parametrize("channels", [1, 3])
def test_real_sets_of_arrays_are_read(channels):
    source = open_source(f"{SOURCE}/mnist/mnist.npz#test", channels)
    assert len(source) == 10_000
    assert set(source.labels) == set(range(10))
    assert source.picture(0).pixels().shape == (28, 28, channels)


def test_a_local_folder_may_be_an_address(tmp_path, photos):
    photos[0].save(tmp_path / "1.png")
    assert same(open_source(f"file://{tmp_path}").image(0), photos[0])


def test_each_form_says_which_image_is_unreadable(place, photos):
    whole = png(photos[0])
    bad = {"empty": b"", "truncated": whole[: len(whole) // 2], "text": b"no image"}
    for name, data in bad.items():
        write(f"{place}/folder/{name}.png", data)
    write(f"{place}/tar/0.tar", shard([(f"{name}.png", data) for name, data in bad.items()]))
    write(f"{place}/table/0.parquet", table(image=[*bad.values(), None]))
    for form, count in (("folder", 3), ("tar", 3), ("table", 4)):
        source = open_source(f"{place}/{form}")
        assert len(source) == count
        for index in range(count):
            with pytest.raises(Unreadable):
                source.image(index)


def test_a_file_that_goes_away_is_unreadable(place, photos):
    write(f"{place}/a.png", png(photos[0]))
    source = open_source(place)
    system, path = fsspec.url_to_fs(f"{place}/a.png")
    system.rm(path)
    with pytest.raises(Unreadable, match="cannot be read"):
        source.image(0)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"", "no image below"),
        ("a.tar", b"not a tar file" * 100, "no uncompressed tar"),
        ("a.tar", shard([("a.txt", b"")]), "no image in the 1 tar files"),
        ("a.parquet", b"not parquet", "no Parquet file"),
        ("a.parquet", table(picture=[b""]), "no column `image`, only picture"),
        ("a.parquet", table(image=pa.array([], pa.binary())), "no row"),
    ],
)
def test_what_is_no_data_is_an_error_that_says_so(place, name, data, message):
    write(f"{place}/{name}", data)
    with pytest.raises(DataError, match=message):
        open_source(place)


@pytest.mark.parametrize(
    ("arrays", "split", "channels", "message"),
    [
        ({"train_x": np.zeros((2, 4, 4), np.uint8)}, "#val", 1, "no array val_x, only train_x"),
        ({"train_x": np.zeros((2, 4, 4))}, "", 1, "must be uint8"),
        ({"train_x": np.zeros((2, 4, 4, 5), np.uint8)}, "", 3, "5 channels and the recipe 3"),
        ({"train_x": np.zeros((2, 4, 4, 2), np.uint8)}, "", 1, "2 channels and the recipe 1"),
        ({"train_x": np.zeros((0, 4, 4), np.uint8)}, "", 1, "must be uint8"),
        *(
            ({"train_x": np.zeros((3, 4, 4), np.uint8), "train_y": labels}, "", 1, message)
            for labels, message in (
                ([0, 1], r"train_y of .* is int64 \[2\]; .* each of the 3 images"),
                ([0, 1, 1, 0], r"train_y of .* is int64 \[4\]; .* each of the 3 images"),
                (np.eye(3, dtype=int), r"int64 \[3, 3\]; .* each of the 3 images"),
                ([0.5, 1, 2], r"float64 \[3\]; it must be a whole number"),
                ([0, -1, 2], "train_y of .*: a label is -1; classes are numbered from 0"),
            )
        ),
    ],
)
def test_an_archive_that_does_not_fit_is_an_error(tmp_path, arrays, split, channels, message):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(DataError, match=message):
        open_source(f"{tmp_path}/set.npz{split}", channels)


def test_labels_may_be_a_column_or_missing_throughout(tmp_path):
    for labels, read in (([[2], [0]], (2, 0)), ([-1, -1], (0, 0))):
        np.savez(tmp_path / "set.npz", train_x=np.zeros((2, 4, 4), np.uint8), train_y=labels)
        assert open_source(f"{tmp_path}/set.npz", 1).labels == read


def test_a_folder_of_two_kinds_of_data_is_refused_by_name(place, photos):
    write(f"{place}/a/1.png", png(photos[0]))
    write(f"{place}/a/2.png", png(photos[1]))
    write(f"{place}/old/left-over.tar", shard([("1.png", png(photos[0]))]))
    with pytest.raises(DataError, match=r"a/1\.png as well as .*old/left-over\.tar"):
        open_source(place)
    write(f"{place}/old/0.parquet", table(image=[png(photos[0])]))
    with pytest.raises(DataError, match=r"left-over\.tar as well as .*old/0\.parquet"):
        open_source(f"{place}/old")
    assert len(open_source(f"{place}/old/*.tar")) == 1


def test_nothing_at_the_location_is_an_error(tmp_path):
    for location in (tmp_path / "nowhere", tmp_path / "none.npz", "memory://nowhere"):
        with pytest.raises(DataError):
            open_source(location)
    with pytest.raises(DataError, match="does not exist"):
        ImageFolder.open(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no image below"):
        ImageFolder.open(tmp_path)


def test_encoded_images_have_one_or_three_channels(tmp_path):
    with pytest.raises(DataError, match="1 or 3 channels, not 4"):
        open_source(tmp_path, channels=4)
