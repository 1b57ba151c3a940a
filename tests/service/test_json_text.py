import tracemalloc

import pytest

from service.errors import TooLarge
from service.json_text import load


@pytest.mark.parametrize("text", ["[1,[2],{}]", '["a,b","[{"]'])
def test_values_are_counted_by_what_parts_them(text: str) -> None:
    for form in (text, text.encode()):
        assert load(form, 5) == load(form)
        with pytest.raises(TooLarge, match="more than 4 values"):
            load(form, 4)


@pytest.mark.parametrize("value", ["0", "{}", '""', "[]"])
def test_what_has_too_many_values_is_not_parsed(value: str) -> None:
    body = f"[{','.join([value] * 700_000)}]".encode()
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match="600000"):
            load(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_one_long_text_is_one_value() -> None:
    assert len(load(b'["' + b"a" * 5_000_000 + b'"]')[0]) == 5_000_000
