"""What a process of `foveal` does first."""

import subprocess
import sys

import pytest

# SIGTERM comes while the command line is imported.
EARLY = """
import os, signal, sys
class Early:
    def find_spec(self, name, *_):
        if name == 'service.cli':
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Early())
from service.__main__ import main
sys.argv = ['foveal', *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize("command", ["serve", "--help"])
def test_sigterm_ends_it_before_its_command_line_is_there(command):
    # Without a handler it would be -15, and the first process of a container would not end.
    ended = subprocess.run([sys.executable, "-c", EARLY, command], timeout=60, check=False)
    assert ended.returncode == 143
