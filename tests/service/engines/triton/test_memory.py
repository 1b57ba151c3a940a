import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.engines.triton.memory import FOLDER, Region, Regions, sweep
from tests.service.engines.batches import images


def test_what_is_written_lies_where_others_find_it() -> None:
    batch = images(2, 8, 16)
    region = Region(2 * batch.nbytes)
    region.write(batch)
    file = FOLDER / region.key.removeprefix("/")
    assert file.read_bytes()[: batch.nbytes] == batch.tobytes()
    assert file.stat().st_mode & 0o777 == 0o600
    region.close()
    assert not file.exists()


def test_the_pool_is_bounded_and_takes_back_what_it_gave() -> None:
    regions = Regions(2)
    first, second = regions.take(10, 100), regions.take(100, 100)
    assert first is not None
    assert second is not None
    assert first.name != second.name
    assert regions.take(10, 100) is None
    regions.give(first)
    assert regions.take(10, 100) is first
    regions.close()
    assert not any((FOLDER / region.name).exists() for region in (first, second))


def test_what_is_larger_than_usual_gets_no_region() -> None:
    regions = Regions(2)
    assert regions.take(101, 100) is None
    region = regions.take(100, 100)
    assert region is not None
    regions.give(region)
    # The usual size has grown since: what is there would be too small.
    larger = regions.take(150, 200)
    assert larger is None or larger.size >= 150
    regions.close()


def test_without_room_pixels_go_another_way_and_one_line_tells(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    regions = Regions(4)
    region = regions.take(10, 100)
    assert region is not None
    held = {path.name for path in FOLDER.iterdir()}

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    assert regions.take(10, 100) is None
    assert regions.take(10, 100) is None
    assert {path.name for path in FOLDER.iterdir()} == held
    assert caplog.text.count("has no room for 100 bytes (No space left on device): 1 runs") == 1
    regions.give(region)
    assert regions.take(10, 100) is region
    regions.close()


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_has_is_not() -> None:
    program = """
import os, signal
from service.engines.triton.memory import Region
print(Region(1000).name, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    left: Path = FOLDER / told.stdout.strip()
    assert left.exists(), told.stderr
    mine = Region(1000)
    sweep()
    assert not left.exists()
    assert (FOLDER / mine.name).exists()
    mine.close()
