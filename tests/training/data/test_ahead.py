import threading

import pytest
import torch

from training.data.ahead import ahead

CPU = torch.device("cpu")


def numbered(count, made):
    for number in range(count):
        made.append(number)
        yield [torch.tensor(number)]


def test_batches_come_in_their_order():
    assert [int(batch[0]) for batch in ahead(numbered(5, []), CPU)] == [0, 1, 2, 3, 4]
    assert list(ahead(numbered(0, []), CPU)) == []


def test_the_next_batch_is_made_while_this_one_is_used():
    second_is_made = threading.Event()

    def batches():
        yield [torch.tensor(0)]
        second_is_made.set()
        yield [torch.tensor(1)]

    reading = ahead(batches(), CPU)
    next(reading)
    assert second_is_made.wait(timeout=60)
    reading.close()


def test_what_goes_wrong_is_raised_where_the_batch_is_wanted():
    def batches():
        yield [torch.tensor(0)]
        raise ValueError("no more")

    reading = ahead(batches(), CPU)
    next(reading)
    with pytest.raises(ValueError, match="no more"):
        next(reading)


def test_a_reader_that_stops_leaves_no_thread():
    before = set(threading.enumerate())
    reading = ahead(numbered(5, []), CPU)
    next(reading)
    reading.close()
    assert set(threading.enumerate()) <= before
