"""`foveal-train` as a process: its commands, and one line where the user can mend what failed."""

from __future__ import annotations

import os

from rich.console import Console
from rich.markup import escape

from training.stopping import Stopped

console = Console(stderr=True)


def main() -> None:
    """Run the command line; what the user can mend is one line and exit status 1."""
    try:
        from training.commands import app
    except ModuleNotFoundError as error:
        # What serves a model does without torch.
        raise _failed(f"{error}; in the checkout, pip install -e '.[training]'") from None
    try:
        app()
    except Stopped as stopped:
        # All processes stop alike, so the first one speaks for them; an error may be one's own.
        if os.environ.get("RANK", "0") == "0":
            console.print(escape(str(stopped)), highlight=False, soft_wrap=True)
        raise SystemExit(128 + stopped.number) from None
    except _mendable() as error:
        raise _failed(str(error)) from None


def _failed(message: str) -> SystemExit:
    console.print(f"[red]error:[/red] {escape(message)}", highlight=False, soft_wrap=True)
    return SystemExit(1)


def _mendable() -> tuple[type[Exception], ...]:
    """What the user can mend; only an error that has come asks for it, and waits for imports."""
    from service.bundle import BundleError
    from training.checkpoint import CheckpointError
    from training.config import RecipeError
    from training.data.sources import DataError
    from training.devices import DeviceError
    from training.download import DownloadError
    from training.trainer import Diverged

    return (
        BundleError,
        CheckpointError,
        DataError,
        DeviceError,
        Diverged,
        DownloadError,
        OSError,
        RecipeError,
    )


if __name__ == "__main__":
    main()
