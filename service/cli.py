"""`foveal`: serve a model, or look at one."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from service import configuration
from service.bundle import Bundle, BundleError, Manifest
from service.configuration import Configuration, SettingsUnusable
from service.guards import keys
from service.telemetry import logs
from service.workers import Workers

logger = logging.getLogger(__name__)

cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Serve what self-supervised vision transformers see.",
)


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
    engine: Annotated[
        str | None,
        typer.Option(help="auto, onnx, openvino or triton: what runs the model."),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="auto, fp32, bf16 or int8; fp32 for the numbers of training."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes on the one port; more than one needs Redis.")
    ] = None,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="Print every setting, where from, and exit.")
    ] = False,
) -> None:
    """Serve a model over HTTP until SIGTERM or Ctrl-C, then answer what is in flight and exit.

    Every setting can also come from the environment (FOVEAL_PORT, FOVEAL_MAX_IMAGES, ...) or from
    the TOML file that FOVEAL_CONFIG names; a flag wins.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    flags = {
        "host": host,
        "port": port,
        "model": model,
        "data": data,
        "threads": threads,
        "engine": engine,
        "precision": precision,
        "workers": workers,
    }
    read = _configuration({name: value for name, value in flags.items() if value is not None})
    if show_config:
        typer.echo(read.toml())
        return
    settings = read.settings
    logs.configure(settings.log_format, settings.log_level)
    if settings.keys_file is None and not _is_loopback(settings.host):
        logger.warning("Whoever reaches %s may use this server: no keys_file is set", settings.host)
    listener = _bind(settings.host, settings.port)

    def started(name: str) -> None:
        host, port = listener.getsockname()[:2]
        address = f"[{host}]" if ":" in host else host
        typer.echo(f"Foveal serves {name} at http://{address}:{port}")

    if settings.workers > 1:
        raise typer.Exit(Workers(settings, listener, started).run())
    # Imported late: ONNX Runtime and FAISS take a second that `foveal --help` need not.
    from service.server import FAILURES, run

    try:
        with contextlib.suppress(KeyboardInterrupt):
            run(settings, listener, started)
    except FAILURES as error:
        _fail(str(error))


@cli.command()
def key(
    name: Annotated[str, typer.Argument(help="Whose it is: letters, digits and . _ - @.")],
    scopes: Annotated[
        str,
        typer.Option(
            help="read: ask for vectors, maps and neighbours. write: change collections and models."
        ),
    ] = "read,write",
) -> None:
    """Make an API key: `foveal key alice >> keys` appends its line and shows the key, once.

    The file keeps a hash, so the key is nowhere else. `FOVEAL_KEYS_FILE` names the file to serve.
    """
    try:
        secret, made = keys.make(name, scopes)
    except ValueError:
        _fail(f"name is letters, digits and . _ - @, scopes of {', '.join(keys.SCOPES)}")
    typer.echo(f"The key of {name}, which is shown this once: {secret}", err=True)
    typer.echo(made.line())


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


@cli.command()
def embed(
    paths: Annotated[
        list[str], typer.Argument(help="Images, folders of images, or patterns such as 'a/*.jpg'.")
    ],
    out: Annotated[Path, typer.Option(help="File to write: .parquet, .npz or .jsonl.")],
    model: Annotated[
        str | None, typer.Option(help="Folder of the bundle; with --url, the name of a model.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Ask this server, instead of computing in this process.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="FOVEAL_API_KEY", help="Key for the server.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Side in pixels, a multiple of the patch.")
    ] = None,
    fit: Annotated[
        Literal["crop", "whole"],
        typer.Option(help="crop: the centre square. whole: all of the photograph."),
    ] = "crop",
    pooling: Annotated[
        Literal["default", "cls", "mean", "gem", "cls_mean"],
        typer.Option(help="What the vector is made of; default is the model's own."),
    ] = "default",
) -> None:
    """Embed images into one file of vectors.

    Images that fail are left out and listed in OUT.errors.jsonl; the command fails if all do. An
    interrupted run leaves no vectors, and the next one starts anew.
    """
    # Imported late, as the application is.
    from service import bulk
    from service.embedding_files import EmbeddingFile
    from service.schemas import EmbedOptions

    options = EmbedOptions(size=size, fit=fit, pooling=pooling)
    try:
        files = bulk.find_images(paths)
        if url is not None:
            asked = options.model_copy(update={"model": model})
            answers = bulk.embed_there(url, api_key, asked, files)
        else:
            settings = _configuration({} if model is None else {"model": model}).settings
            answers = bulk.embed_here(settings, options, files)
        outcome = bulk.write(answers, len(files), EmbeddingFile(out))
    except bulk.REASONS as error:
        _fail(str(error))
    if outcome.failed:
        typer.echo(
            f"foveal: {outcome.failed} of {len(files)} images have no embedding; "
            f"{outcome.errors} says why",
            err=True,
        )
    if not outcome.embedded:
        raise typer.Exit(1)
    typer.echo(f"{outcome.embedded} embeddings in {out}")


def _configuration(flags: dict[str, Any]) -> Configuration:
    try:
        return configuration.read(flags)
    except SettingsUnusable as error:
        _fail(str(error))


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
    rows |= {
        f"{p.engine} {p.precision}": f"{p.speed:g} times as fast, cosine {p.cosine:.6f}, "
        f"k-NN {p.knn_change:+.2f}  ({p.command})"
        for p in manifest.precisions
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _fail(message: str) -> NoReturn:
    typer.echo(f"foveal: {message}", err=True)
    raise typer.Exit(1)
