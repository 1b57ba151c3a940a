import numpy as np
import onnxruntime as ort
import pytest

from benchmarks.serving import images, models
from benchmarks.serving.load import read
from service.images import Limits, View, prepare


@pytest.fixture
def null(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "CACHE", tmp_path)
    return models.model("null")


def test_the_near_null_model_gives_the_mean_colour_of_every_32nd_pixel(null):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    session = ort.InferenceSession(null.graph)
    embedding, patches, attention = session.run(None, {"images": pixels})
    expected = pixels[:, ::32, ::32].astype(np.float64).mean(axis=(1, 2))
    np.testing.assert_allclose(embedding, expected, rtol=1e-5)
    assert patches.shape == (2, 1, 1, 3)
    assert attention.shape == (2, 1, 1, 1)


def test_no_two_images_are_the_same_and_each_is_a_photograph(null, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "CACHE", tmp_path)
    found = read(images.written(40, images.THUMBNAIL))
    assert len(set(found)) == 40
    spec, limits = null.manifest.input, Limits(bytes=2**24, pixels=2**24, patches=2**12)
    assert {prepare(data, spec, View(), limits).shape for data in found} == {(224, 224, 3)}
