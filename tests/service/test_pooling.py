import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from service.bundle import AttentionSpec, Bundle, Manifest
from service.errors import InvalidOption
from service.pooling import cast, outputs_for, pool, unit

RNG = np.random.default_rng(0)
OUTPUTS = {
    "embedding": RNG.normal(size=6).astype(np.float32),
    "patches": RNG.normal(size=(3, 5, 6)).astype(np.float32),
}

vectors = arrays.arrays(
    np.float32, (3, 8), elements=st.floats(np.float32(-1e3), np.float32(1e3), width=32)
)


def manifest(bundle: Bundle, query: str) -> Manifest:
    return bundle.manifest.model_copy(update={"attention": AttentionSpec(query=query, layer=0)})


def test_default_and_cls_are_the_embedding():
    assert pool(OUTPUTS, "default") is OUTPUTS["embedding"]
    assert pool(OUTPUTS, "cls") is OUTPUTS["embedding"]


def test_mean_is_that_of_all_patches():
    tokens = [OUTPUTS["patches"][y, x].astype(float) for y in range(3) for x in range(5)]
    np.testing.assert_allclose(pool(OUTPUTS, "mean"), sum(tokens) / 15, rtol=1e-5)


def test_gem_is_the_cube_root_of_the_mean_cube_of_what_is_positive():
    for channel, found in enumerate(pool(OUTPUTS, "gem")):
        values = [max(float(v), 1e-6) for v in OUTPUTS["patches"][..., channel].ravel()]
        assert found == pytest.approx((sum(v**3 for v in values) / 15) ** (1 / 3), rel=1e-5)


def test_gem_of_nothing_positive_is_small_and_finite():
    assert pool({"patches": np.full((2, 2, 4), -3, np.float32)}, "gem") == pytest.approx(1e-6)


def test_cls_mean_is_one_beside_the_other():
    both = pool(OUTPUTS, "cls_mean")
    assert np.array_equal(both[:6], OUTPUTS["embedding"])
    assert np.array_equal(both[6:], pool(OUTPUTS, "mean"))


def test_patches_are_left_as_they_are():
    assert pool(OUTPUTS, "patches") is OUTPUTS["patches"]


@pytest.mark.parametrize("pooling", ["default", "cls", "mean", "gem", "cls_mean", "patches"])
def test_every_pooling_asks_for_what_it_uses_and_no_more(bundle: Bundle, pooling: str):
    names = outputs_for(pooling, manifest(bundle, "cls"))
    assert pool({name: OUTPUTS[name] for name in names}, pooling).dtype == np.float32
    for name in names:
        with pytest.raises(KeyError):
            pool({other: OUTPUTS[other] for other in names if other != name}, pooling)


@pytest.mark.parametrize("pooling", ["cls", "cls_mean"])
def test_a_model_without_cls_token_has_no_cls_pooling(bundle: Bundle, pooling: str):
    with pytest.raises(InvalidOption, match=f"pooling: {pooling} needs a CLS token"):
        outputs_for(pooling, manifest(bundle, "mean"))


@given(vectors)
def test_unit_keeps_directions_and_zeros(given_vectors: np.ndarray):
    for vector, scaled in zip(given_vectors.astype(float), unit(given_vectors), strict=True):
        length = sum(v * v for v in vector) ** 0.5
        if length > 1e-15:
            np.testing.assert_allclose(scaled, vector / length, atol=1e-6)
        elif length == 0:
            assert not scaled.any()


@given(vectors)
@example(np.full((2, 8), 1e-45, np.float32))
@example(np.full((2, 8), 2e-43, np.float32))
def test_int8_times_its_scale_is_within_half_a_step(given_vectors: np.ndarray):
    rounded, scale = cast(given_vectors, "int8")
    assert rounded.dtype == np.int8
    assert np.abs(rounded.astype(int)).max() in (0, 127)
    error = np.abs(rounded * np.float64(scale) - given_vectors)
    assert error.max() <= 0.5001 * scale


def test_int8_of_a_unit_vector_comes_back_without_its_scale():
    vector = unit(RNG.normal(size=384).astype(np.float32))
    rounded = cast(vector, "int8")[0].astype(float)
    assert rounded @ vector / np.linalg.norm(rounded) > 0.9999


def test_float16_halves_the_bytes():
    rounded, scale = cast(OUTPUTS["embedding"], "float16")
    assert rounded.dtype == np.float16
    assert scale is None
    np.testing.assert_allclose(rounded, OUTPUTS["embedding"], rtol=1e-3)
