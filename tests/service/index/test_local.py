"""What the local index adds: restarts, one process at a time, and `kill -9`."""

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from service.index.base import IndexUnavailable
from service.index.local import LocalIndex
from tests.service.index.vectors import DIGEST, items, query


async def test_a_reopened_index_answers_as_before(tmp_path: Path) -> None:
    first = LocalIndex(tmp_path)
    await first.put("photos", items(120), DIGEST)
    await first.delete("photos", "7")
    before = await first.search("photos", query(), DIGEST, k=20)
    await first.close()
    second = LocalIndex(tmp_path)
    assert await second.search("photos", query(), DIGEST, k=20) == before
    assert [c.items for c in await second.collections()] == [119]
    await second.close()


async def test_a_second_opener_is_told_that_the_folder_is_in_use(tmp_path: Path) -> None:
    first = LocalIndex(tmp_path)
    with pytest.raises(IndexUnavailable, match="open in another process"):
        LocalIndex(tmp_path)
    await first.close()
    await LocalIndex(tmp_path).close()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "index.sqlite").write_bytes(b"not a database" * 1000)
    with pytest.raises(IndexUnavailable, match=r"index\.sqlite"):
        LocalIndex(tmp_path)


# Puts three items at a time, of which the first takes the place of the last one before; soon they
# are laid anew, in the middle of which it may be killed too.
WRITER = """
import asyncio, sys
from pathlib import Path
import numpy as np
from service.index.base import Item
from service.index.local import LocalIndex

def vector(number):
    return np.random.default_rng(number).normal(size=24).astype(np.float32)

async def write(start):
    index = LocalIndex(Path(sys.argv[1]), exact_below=20)
    for number in range(start, start + 100_000, 2):
        three = [
            Item(str(n), vector(n), {"by": number}) for n in range(number, number + 3)
        ]
        await index.put("photos", three, "d" * 64)
        print(number, flush=True)

asyncio.run(write(int(sys.argv[2])))
"""


def test_no_acknowledged_item_is_lost_to_kill_9_at_any_moment(tmp_path: Path) -> None:
    moments = np.random.default_rng(0)
    start = 0
    for _ in range(4):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(start)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            acknowledged = [int(writer.stdout.readline()) for _ in range(moments.integers(1, 60))]
            time.sleep(moments.uniform(0, 0.01))
            writer.send_signal(signal.SIGKILL)
            rest = writer.stdout.read().splitlines(keepends=True)
            acknowledged += [int(line) for line in rest if line.endswith(b"\n")]
            assert writer.wait() == -signal.SIGKILL
        start = asyncio.run(written(tmp_path, acknowledged[-1]))


async def written(folder: Path, last: int) -> int:
    """Check that all of the puts up to `last`, and of a later one all or nothing, is there."""
    index = LocalIndex(folder, exact_below=20)
    (collection,) = await index.collections()
    assert collection.items % 2 == 1
    assert collection.items >= last + 3
    for number in range(collection.items):
        vector = np.random.default_rng(number).normal(size=24).astype(np.float32)
        (match,) = await index.search("photos", vector, DIGEST, k=1)
        assert match.id == str(number)
        assert match.score == pytest.approx(1, abs=1e-6)
        by = number - number % 2
        assert match.metadata == {"by": by if number < collection.items - 1 else by - 2}
    await index.close()
    return collection.items - 1
