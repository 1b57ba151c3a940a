"""A command of ours run to its end, in a process of its own."""

import os
import signal
import subprocess
from collections.abc import Sequence

import pytest


def run(
    command: Sequence[object], timeout: float, **options: object
) -> subprocess.CompletedProcess[str]:
    """Run a Python program; one that hangs fails the test with what each of its threads did."""
    arguments = [str(argument) for argument in command]
    environment = options.pop("env", os.environ) | {"PYTHONFAULTHANDLER": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(arguments, text=True, env=environment, **pipes, **options) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)
            output, errors = process.communicate()
            pytest.fail(f"{arguments} hung for {timeout} s\n{output}\n{errors}")
    return subprocess.CompletedProcess(arguments, process.returncode, output, errors)
