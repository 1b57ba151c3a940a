"""The benchmarks' commands: help costs nothing, and a stop leaves nothing behind."""

import signal
import subprocess
import sys

import pytest

# The engine is another program's, of which a test session has only one.
DEPLOY = """
import time
from contextlib import contextmanager
from benchmarks.deploy import __main__ as deploy

def build(docker):
    print("building", flush=True)
    time.sleep(600)

@contextmanager
def engine():
    try:
        yield
    finally:
        print("stopped", flush=True)

deploy.docker_engine, deploy.build_gateway = engine, build
deploy.main()
"""


@pytest.mark.parametrize("name", ["deploy", "training.crops", "training.step"])
def test_help_is_told_and_nothing_is_run(name):
    command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("usage: ")
    assert ended.stderr == ""


def test_a_benchmark_of_containers_that_is_stopped_stops_its_engine():
    with subprocess.Popen(
        [sys.executable, "-c", DEPLOY], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "building\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "stopped\n"
        assert process.wait(300) == 128 + signal.SIGTERM
