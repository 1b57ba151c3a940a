import os
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.cache.values import MAGIC, _checksum, decode, encode

arrays = hnp.arrays(
    st.sampled_from(["<f4", "<f2", "<f8", "|i1", "|u1", "<i8", "|b1"]), hnp.array_shapes(min_dims=0)
)


@given(arrays)
def test_an_array_comes_back_to_the_last_bit_and_read_only(array: np.ndarray) -> None:
    back = decode("key", encode("key", array))
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()
    assert not back.flags.writeable


def test_float32_comes_back_aligned() -> None:
    for axes in range(4):
        assert decode("key", encode("key", np.ones((2,) * axes, np.float32))).flags.aligned


def test_a_strided_view_comes_back_as_it_reads() -> None:
    view = np.arange(24, dtype=np.float32).reshape(4, 6)[::2, ::-1].T
    np.testing.assert_array_equal(decode("key", encode("key", view)), view)


@given(arrays, st.integers(0), st.integers(1, 255))
def test_one_changed_byte_anywhere_is_noticed(array: np.ndarray, at: int, change: int) -> None:
    value = bytearray(encode("key", array))
    value[at % len(value)] ^= change
    with pytest.raises(ValueError, match="key"):
        decode("key", bytes(value))


@given(arrays, st.integers(0))
def test_a_value_cut_short_is_noticed(array: np.ndarray, cut: int) -> None:
    value = encode("key", array)
    with pytest.raises(ValueError, match="key"):
        decode("key", value[: cut % len(value)])


def test_another_keys_value_is_noticed() -> None:
    with pytest.raises(ValueError, match="damaged"):
        decode("key", encode("other", np.zeros(3, np.float32)))


@given(st.binary() | st.none() | st.integers() | st.text() | st.lists(st.binary()))
def test_anything_else_is_noticed(value: object) -> None:
    with pytest.raises(ValueError, match=r"under key is (not one of Foveal's|damaged)"):
        decode("key", value)


@given(st.binary(max_size=80))
def test_even_with_a_right_checksum_nonsense_gives_an_array_or_a_value_error(body: bytes) -> None:
    try:
        decode("key", MAGIC + _checksum("key", body) + body)
    except ValueError:
        return


def test_a_pickle_is_not_run() -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return os._exit, (1,)

    bomb = pickle.dumps(np.array([Bomb()], dtype=object))
    body = struct.pack("<8sII", b"|O", 1, 1) + bomb
    for value in (bomb, MAGIC + _checksum("key", body) + body):
        with pytest.raises(ValueError, match=r"key|object|OBJECT"):
            decode("key", value)
