"""`foveal` as a user runs it: in a process of its own."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.commands import run

FOVEAL = [sys.executable, "-m", "service"]


def _environment(more: dict[str, str]) -> dict[str, str]:
    """That of the tests without their own variables, which are no settings."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("FOVEAL_")}
    return inherited | {"PYTHONUNBUFFERED": "1"} | more


def foveal(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """Run a command to its end."""
    return run([*FOVEAL, *arguments], timeout=120, env=_environment(environment))


class Serving:
    """A server: its process, its address and what it has logged."""

    def __init__(self, process: subprocess.Popen, address: str, errors: Path) -> None:
        self.process = process
        self.address = address
        self._errors = errors

    @property
    def log(self) -> str:
        return self._errors.read_text()

    def end(self) -> int:
        """SIGTERM, and the exit status."""
        self.process.terminate()
        return self.process.wait(60)


@contextmanager
def serving(
    *arguments: object, program: Sequence[str] = FOVEAL, **environment: str
) -> Iterator[Serving]:
    """A server on a free port."""
    with tempfile.NamedTemporaryFile("w") as errors:
        process = subprocess.Popen(
            [*program, "serve", "--port", "0", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=_environment(environment),
        )
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            address = re.search(r"http://\S+", line)
            assert address, line + Path(errors.name).read_text()
            yield Serving(process, address.group(), Path(errors.name))
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
