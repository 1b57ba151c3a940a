"""The embedded model: what it claims, and what a newcomer's first requests give."""

import io
import re

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image, ImageOps

from service.app import create_app
from service.bundle import DEFAULT, Bundle
from service.images import Limits, View, prepare
from service.settings import Settings
from tests.data import dataset
from tests.service.gateways import serving
from training.data.sources import open_source
from training.evaluation.knn import knn_accuracy

JPEG = {"Content-Type": "image/jpeg"}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with serving(create_app(Settings(data=tmp_path_factory.mktemp("index")))) as client:
        yield client


def jpeg(image):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    return file.getvalue()


def test_beats_raw_pixels_and_its_untrained_self_by_eight_points():
    figures = {e.name: e.value for e in Bundle.load(DEFAULT).manifest.evaluation}
    trained = figures["20-NN top-1, %"]
    assert trained >= figures["20-NN top-1, %, pixels"] + 8
    assert trained >= figures["20-NN top-1, %, untrained"] + 8


def test_its_card_tells_the_k_nn_accuracy_that_the_graph_has():
    bundle = Bundle.load(DEFAULT)
    session = ort.InferenceSession(bundle.graph)

    def embed(source):
        chunks = []
        limits = Limits(10**7, 10**7, 4096)
        for start in range(0, len(source), 64):
            photographs = map(source.encoded, range(len(source))[start : start + 64])
            pixels = [prepare(p, bundle.manifest.input, View(), limits) for p in photographs]
            chunks.append(session.run(["embedding"], {"images": np.stack(pixels)})[0])
        return np.concatenate(chunks)

    root = dataset("imagenette128")
    train, val = (open_source(str(root / split)) for split in ("train", "val"))
    accuracy = knn_accuracy(embed(train), train.labels, embed(val), val.labels)
    assert 100 * accuracy == pytest.approx(bundle.manifest.evaluation[0].value, abs=0.1)


def test_is_small_and_names_no_path():
    files = list(DEFAULT.iterdir())
    assert sum(file.stat().st_size for file in files) < 30_000_000
    assert not any(re.search(rb"site-packages|/training/", f.read_bytes()) for f in files)


def test_a_photograph_and_its_mirror_image_are_nearly_the_same(client):
    for photo in sorted(dataset("photos").glob("*.jpg"))[:20]:
        with Image.open(photo) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
        files = [("images", jpeg(image)), ("images", jpeg(ImageOps.mirror(image)))]
        one, two = client.post("/embed", files=files).json()["embeddings"]
        assert np.dot(one["embedding"], two["embedding"]) > 0.9, photo.name


@pytest.mark.parametrize(("size", "grid"), [((640, 480), (4, 3)), ((480, 640), (3, 4))])
def test_the_attention_grid_follows_the_photograph(client, size, grid):
    with Image.open(dataset("photos") / "hub_dog.jpg") as opened:
        image = ImageOps.fit(opened.convert("RGB"), size)
    answer = client.post("/attention?size=96", content=jpeg(image), headers=JPEG).json()
    rows, columns = answer["images"][0]["grid"]
    assert (rows * grid[0], columns * grid[1]) == (rows * grid[0], rows * grid[0])
    assert np.shape(answer["images"][0]["attention"]) == (3, rows, columns)


def test_a_crop_finds_the_photograph_it_was_cut_from(client):
    photos = sorted(dataset("photos").glob("in1k_*.jpg"))
    for photo in photos:
        client.put(f"/collections/x/items/{photo.name}", content=photo.read_bytes(), headers=JPEG)
    right = 0
    for photo in photos:
        with Image.open(photo) as image:
            part = ImageOps.crop(image.convert("RGB"), round(0.1 * min(image.size)))
        asked = client.post("/similar?collection=x&k=1", content=jpeg(part), headers=JPEG)
        right += asked.json()["results"][0]["id"] == photo.name
    assert right >= 0.8 * len(photos)


def test_every_odd_image_is_answered_or_refused_clearly(client):
    """No 5xx and no hang, whatever the bytes; the process that serves them stays well."""
    for file in sorted(dataset("odd_public").iterdir()):
        answer = client.post(
            "/embed", content=file.read_bytes(), headers={"Content-Type": "image/*"}
        )
        assert answer.status_code in {200, 413, 415, 422}, (file.name, answer.text)
    assert client.get("/readyz").is_success
