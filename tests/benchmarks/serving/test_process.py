import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks.serving.process import Process
from tests.waiting import wait_until

# A child leaves the group and the session, and its parent ends: an orphan, as daemons are.
DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(600)
    os._exit(0)
os.wait()
print("an orphan", flush=True)
time.sleep(600)
"""
BUSY = "while True: pass"


@pytest.fixture
def start(tmp_path):
    started = []

    def run(code):
        process = Process([sys.executable, "-c", code], {}, tmp_path / "log")
        started.append(process)
        return process

    yield run
    for process in started:
        process.stop()


def state(pid):
    """As `ps` has it; that of a process that is no more is Z too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def test_orphans_belong_to_the_server_and_end_with_it(start, tmp_path):
    process = start(DAEMON)
    wait_until(lambda: (tmp_path / "log").read_text() == "an orphan\n")
    server, orphan = process.tree()
    assert os.getsid(orphan) not in (server, os.getsid(0))
    process.stop()
    assert process.ended
    wait_until(lambda: state(orphan) == "Z")


def test_a_paused_server_takes_no_processor_time(start):
    process = start(BUSY)
    wait_until(lambda: process.cpu() > 0)
    process.pause()
    wait_until(lambda: state(process.tree()[0]) == "T")
    before = process.cpu()
    time.sleep(0.3)
    assert process.cpu() == before
    process.resume()
    wait_until(lambda: process.cpu() > before)
    assert process.memory() > 1e6
