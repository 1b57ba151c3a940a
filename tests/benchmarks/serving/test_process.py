import sys
import time

import pytest

from benchmarks.serving.process import Process

# A child leaves the group and the session, and its parent ends: an orphan, as daemons are.
DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(600)
    os._exit(0)
os.wait()
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


def wait_for(condition):
    limit = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_orphans_belong_to_the_server_and_end_with_it(start):
    process = start(DAEMON)
    wait_for(lambda: len(process.tree()) == 2)
    orphan = process.tree()[1]
    process.stop()
    assert process.ended
    wait_for(lambda: not alive(orphan))


def test_a_paused_server_takes_no_processor_time(start):
    process = start(BUSY)
    wait_for(lambda: process.cpu() > 0)
    process.pause()
    time.sleep(0.1)
    before = process.cpu()
    time.sleep(0.3)
    assert process.cpu() == before
    process.resume()
    wait_for(lambda: process.cpu() > before)
    assert process.memory() > 1e6
