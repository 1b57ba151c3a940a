import errno
import fcntl
import os
import sys
from pathlib import Path

import pytest

from service.engines.triton import memory
from service.engines.triton.memory import FOLDER, Region, Regions, sweep
from tests.commands import run
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
    made: list[str] = []

    def no_room(file: int, *_: object) -> None:
        made.append(os.readlink(f"/proc/self/fd/{file}"))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    assert regions.take(10, 100) is None
    assert regions.take(10, 100) is None
    (lost,) = made
    assert lost.startswith(str(FOLDER / "foveal-"))
    assert not Path(lost).exists()
    assert caplog.text.count("has no room for 100 bytes (No space left on device): 1 runs") == 1
    regions.give(region)
    assert regions.take(10, 100) is region
    regions.close()


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_has_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder of its own, which no other gateway sweeps meanwhile."""
    program = """
import os, pathlib, signal, sys
from service.engines.triton import memory
memory.FOLDER = pathlib.Path(sys.argv[1])
print(memory.Region(1000).name, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    told = run([sys.executable, "-c", program, tmp_path], timeout=300)
    left = tmp_path / told.stdout.strip()
    assert left.is_file(), told.stderr
    monkeypatch.setattr(memory, "FOLDER", tmp_path)
    mine = Region(1000)
    sweep()
    assert not left.exists()
    assert (tmp_path / mine.name).exists()
    mine.close()


def test_what_another_process_is_making_just_now_is_not_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "FOLDER", tmp_path)
    lock = fcntl.flock

    def swept_before(file: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        sweep()
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", swept_before)
    region = Region(1000)
    assert (tmp_path / region.name).stat().st_size == 1000
    region.close()
