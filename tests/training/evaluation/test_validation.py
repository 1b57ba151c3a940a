"""k-NN while a run goes on, against the gateway's own preparation and scikit-learn's neighbours."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from service.bundle import DEFAULT, Bundle, InputSpec
from service.images import Limits, View, prepare
from tests.data import dataset
from training.config import Recipe, RecipeError
from training.data.pixels import normalise
from training.data.sources import DataError, open_source
from training.evaluation.features import embed
from training.evaluation.validation import Validation, input_spec
from training.models.vit import vit

SPEC = InputSpec(resize=36, crop=32, multiple=8)


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return vit("vit_nano", 8, 32)


def arrays(folder, classes=("0", "1"), count=40, seed=0):
    """Images of two classes, dark and bright ones, 36 px."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % len(classes)
    images = random.integers(0, 128, (count, 36, 36, 3)) + 100 * labels[:, None, None, None]
    np.savez(
        folder / f"{seed}.npz",
        train_x=images.astype(np.uint8),
        train_y=[int(classes[i]) for i in labels],
    )
    return open_source(f"{folder / f'{seed}.npz'}#train")


def test_images_are_prepared_as_the_gateway_prepares_them(backbone):
    source = open_source(str(dataset("photos")))
    indices = [0, 3, 5]
    backbone.eval()
    limits = Limits(bytes=10**8, pixels=10**8, patches=10**4)
    pixels = np.stack([prepare(source.encoded(i), SPEC, View(), limits) for i in indices])
    with torch.inference_mode():
        expected = backbone(normalise(torch.from_numpy(pixels))).numpy()
    embedded = embed(backbone, source, indices, SPEC)
    np.testing.assert_allclose(embedded.features, expected, atol=1e-5)
    assert embedded.indices == indices


def test_accuracy_is_that_of_weighted_neighbours(backbone, tmp_path):
    train, held_out = arrays(tmp_path, seed=0), arrays(tmp_path, seed=1)
    validation = Validation(train, held_out, SPEC, k=5)
    accuracy = validation.accuracy(backbone)
    keys, queries = (embed(backbone, s, range(len(s)), SPEC).features for s in (train, held_out))
    keys, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (keys, queries))
    oracle = KNeighborsClassifier(
        5, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
    )
    expected = oracle.fit(keys, train.labels).score(queries, held_out.labels)
    assert accuracy == pytest.approx(100 * expected)


def test_what_cannot_be_read_is_left_out_with_its_label(backbone, tmp_path):
    for name, count in (("a", 3), ("b", 3)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.new("RGB", (36, 36), (90 * number, 9, 9)).save(tmp_path / name / f"{number}.png")
    (tmp_path / "a/1.png").write_bytes(b"no picture")
    source = open_source(str(tmp_path))
    assert embed(backbone, source, range(6), SPEC).indices == [0, 2, 3, 4, 5]
    assert 0 <= Validation(source, source, SPEC, k=1).accuracy(backbone) <= 100
    with pytest.raises(DataError, match="none of 1 images"):
        embed(backbone, source, [1], SPEC)


def test_what_is_too_narrow_for_the_model_is_left_out(backbone, tmp_path):
    Image.new("RGB", (36, 36)).save(tmp_path / "0.png")
    Image.new("RGB", (1, 210_000)).save(tmp_path / "1.png")
    assert embed(backbone, open_source(str(tmp_path)), range(2), SPEC).indices == [0]


def test_the_backbone_comes_back_as_it_was(backbone, tmp_path):
    validation = Validation(arrays(tmp_path), arrays(tmp_path, seed=1), SPEC, k=1)
    for mode in (True, False):
        backbone.train(mode)
        validation.accuracy(backbone)
        assert backbone.training is mode


def test_no_more_images_than_asked_take_part_evenly_chosen(tmp_path):
    validation = Validation(arrays(tmp_path), arrays(tmp_path, seed=1), SPEC, k=1, most=4)
    assert validation.among == validation.queries == [0, 10, 20, 30]
    assert validation.images == 8


def test_without_two_classes_there_is_nothing_to_measure(tmp_path):
    one = arrays(tmp_path, classes=("3",))
    with pytest.raises(DataError, match="no labels of two classes"):
        Validation(one, one, SPEC, k=1)


def test_other_classes_are_refused(tmp_path):
    with pytest.raises(DataError, match="different classes"):
        Validation(arrays(tmp_path), arrays(tmp_path, classes=("0", "7"), seed=1), SPEC, k=1)


def test_the_default_is_the_protocols_256_over_224():
    recipe = Recipe.load("dino-vits16", ("data=unused",))
    assert (input_spec(recipe).resize, input_spec(recipe).crop) == (256, 224)
    assert (input_spec(recipe, 112).resize, input_spec(recipe, 112).crop) == (128, 112)


@pytest.mark.parametrize(
    ("asked", "seen"),
    [
        ({}, (240, 208)),
        ({"size": 208}, (240, 208)),
        ({"size": 112}, (128, 112)),
        ({"resize": 300}, (300, 208)),
        ({"size": 112, "resize": 112}, (112, 112)),
    ],
)
def test_what_is_not_asked_for_is_the_recipes(asked, seen):
    own = ("data=unused", "evaluation.size=208", "evaluation.resize=240")
    spec = input_spec(Recipe.load("dino-vits16", own), **asked)
    assert (spec.resize, spec.crop) == seen


def test_the_embedded_models_recipe_is_evaluated_as_its_bundle_is_served():
    assert input_spec(Recipe.load("imagenette-vitt8")) == Bundle.load(DEFAULT).manifest.input


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"size": 100}, "size 100 is no multiple of the patch, 16 px; try 96"),
        ({"resize": 200}, "resize 200 is less than the crop's side; name 224 or more"),
    ],
)
def test_what_does_not_suit_is_refused_with_a_way_out(asked, says):
    with pytest.raises(RecipeError, match=says):
        input_spec(Recipe.load("dino-vits16", ("data=unused",)), **asked)
