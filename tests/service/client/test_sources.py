import itertools
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from service.client.sources import batches

SIZES = st.lists(st.integers(0, 30), max_size=40)


@given(SIZES, st.integers(1, 5), st.integers(1, 50))
def test_groups_keep_order_and_limits_and_are_as_large_as_they_may(
    sizes: list[int], count: int, size: int
) -> None:
    images = [bytes(length) for length in sizes]
    groups = list(batches(images, count, size))
    assert [image for group in groups for image in group] == images
    for group in groups:
        assert 1 <= len(group) <= count
        assert len(group) == 1 or sum(map(len, group)) <= size
    for group, following in itertools.pairwise(groups):
        assert len(group) == count or sum(map(len, group)) + len(following[0]) > size


def test_files_count_by_their_size_and_missing_ones_by_nothing(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(bytes(10))
    paths = [tmp_path / "gone", tmp_path / "a", tmp_path / "b"]
    assert list(batches(paths, 9, 15)) == [paths[:2], paths[2:]]
