"""`foveal`, or `python -m service`: what a process does before anything that takes time."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command line."""
    # The first process of a container gets only signals that it has asked for, and what the command
    # line imports takes half a second.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    from service.cli import cli

    cli()


if __name__ == "__main__":
    main()
