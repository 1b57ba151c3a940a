"""`foveal`: serve a model, or look at one."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import uvicorn
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from service.bundle import Bundle, BundleError, Manifest
from service.index.base import IndexUnavailable
from service.settings import Settings

BACKLOG = 2048

cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Serve what self-supervised vision transformers see.",
)


def main() -> None:
    """Run the command line."""
    cli()


@cli.command()
def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; 0.0.0.0 to be reachable.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    model: Annotated[Path | None, typer.Option(help="Folder of the bundle to serve.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the local index.")] = None,
    threads: Annotated[
        int | None, typer.Option(help="Processor cores for decoding and for the model.")
    ] = None,
) -> None:
    """Serve a model over HTTP until SIGTERM or Ctrl-C, then answer what is in flight and exit.

    Every setting can also come from the environment (FOVEAL_PORT, FOVEAL_MAX_IMAGES, ...) or from
    the TOML file that FOVEAL_CONFIG names; a flag wins.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    flags = {"host": host, "port": port, "model": model, "data": data, "threads": threads}
    settings = _settings({name: value for name, value in flags.items() if value is not None})
    listener = _bind(settings.host, settings.port)
    # Imported late: ONNX Runtime and FAISS take a second that `foveal --help` need not.
    from service.app import create_app

    try:
        app = create_app(settings)
    except (BundleError, IndexUnavailable) as error:
        _fail(str(error))
    server = _Server(
        uvicorn.Config(
            app,
            host=settings.host,
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="on",
            backlog=BACKLOG,
            access_log=False,
            log_level="warning",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=round(settings.request_timeout),
        ),
        app.state.gateway.model().manifest,
    )
    with contextlib.suppress(KeyboardInterrupt):
        server.run([listener])


@cli.command()
def bundle(
    path: Annotated[Path, typer.Argument(help="Folder that holds bundle.json and model.onnx.")],
) -> None:
    """Verify a bundle and print its card."""
    try:
        found = Bundle.load(path)
    except BundleError as error:
        _fail(str(error))
    Console().print(_card(found.manifest))


class _Server(uvicorn.Server):
    """Says where it listens once it does."""

    def __init__(self, config: uvicorn.Config, manifest: Manifest) -> None:
        super().__init__(config)
        self._manifest = manifest

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if sockets:
            host, port = sockets[0].getsockname()[:2]
            address = f"[{host}]" if ":" in host else host
            typer.echo(f"Foveal serves {self._manifest.name} at http://{address}:{port}")


def _settings(flags: dict[str, Any]) -> Settings:
    try:
        return Settings(**flags)
    except ValidationError as error:
        wrong = [f"{e['loc'][0]}: {e['msg']} (it is {e['input']!r})" for e in error.errors()]
        _fail("; ".join(wrong))
    except ValueError as error:
        _fail(f"FOVEAL_CONFIG: {error}")


def _bind(host: str, port: int) -> socket.socket:
    """Take the port before the model is loaded, so that a port in use is told at once."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        _fail(f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port")
    return listener


def _card(manifest: Manifest) -> Table:
    table = Table(title=manifest.name, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    rows = {
        "digest": manifest.digest,
        "architecture": manifest.architecture,
        "patch": f"{manifest.patch_size} px",
        "embedding": f"{manifest.dim} numbers",
        "attention": f"{manifest.heads} heads, from {manifest.attention.query}",
        "input": f"short side {manifest.input.resize} px, crop {manifest.input.crop} px",
        "outputs": ", ".join(manifest.outputs),
        "licence": manifest.licence,
    }
    rows |= {f"training: {name}": str(value) for name, value in manifest.training.items()}
    rows |= {e.name: f"{e.value:g}  ({e.command})" for e in manifest.evaluation}
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _fail(message: str) -> NoReturn:
    typer.echo(f"foveal: {message}", err=True)
    raise typer.Exit(1)
