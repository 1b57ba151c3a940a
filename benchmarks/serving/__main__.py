"""The gateway beside its peers.

    python -m benchmarks.serving peers      once: the peers' own environment
    python -m benchmarks.serving prepare    once: the gateway's precisions, the peers' settings
    python -m benchmarks.serving all        everything but the soak; or one scenario by its name

Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks.serving import environment, results, settings
from benchmarks.serving.models import NAMES, measure_precisions
from benchmarks.serving.scenarios import faults as faults_
from benchmarks.serving.scenarios import hits as hits_
from benchmarks.serving.scenarios import open_loop
from benchmarks.serving.scenarios import overload as overload_
from benchmarks.serving.scenarios import soak as soak_
from benchmarks.serving.scenarios import throughput as throughput_
from benchmarks.serving.scenarios import triton as triton_

cli = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)

Rounds = Annotated[int, typer.Option(help="All sides take a turn this often.")]
Seconds = Annotated[float, typer.Option(help="How long each turn counts.")]


@cli.command()
def peers() -> None:
    """Create the environment that the peers run in."""
    environment.create()


@cli.command()
def prepare() -> None:
    """Measure the precisions of ViT-S/16, and with both models which setting suits each peer."""
    measure_precisions()
    for name in NAMES:
        settings.choose(name)


@cli.command()
def throughput(rounds: Rounds = 3, seconds: Seconds = 6) -> None:
    """Images a second with ViT-S/16, 16 and 64 connections."""
    throughput_.throughput(rounds, seconds)


@cli.command()
def null(rounds: Rounds = 3, seconds: Seconds = 5) -> None:
    """Images a second and processor time with a near-null model."""
    throughput_.null(rounds, seconds)


@cli.command(name="open")
def open_(rounds: Rounds = 3, seconds: Seconds = 12) -> None:
    """Latency at 70 % of capacity, arrivals at given times."""
    open_loop.open_loop(rounds, seconds)


@cli.command()
def hits(rounds: Rounds = 3, seconds: Seconds = 4) -> None:
    """Cache hits beside a bare FastAPI route."""
    hits_.hits(rounds, seconds)


@cli.command()
def overload(seconds: Seconds = 60) -> None:
    """Five times the capacity."""
    overload_.overload(seconds)


@cli.command()
def faults(seconds: Seconds = 8) -> None:
    """Broken images and clients that go away."""
    faults_.faults(seconds)


@cli.command()
def triton(rounds: Rounds = 3, seconds: Seconds = 12) -> None:
    """The gateway before Triton, beside Triton asked directly."""
    triton_.triton(rounds, seconds)


@cli.command()
def soak(minutes: Annotated[float, typer.Option(help="How long.")] = 30) -> None:
    """Everything at once for half an hour."""
    soak_.soak(minutes)


@cli.command()
def report() -> None:
    """Write serving.md and serving.svg out of the results."""
    results.report()


@cli.command(name="all")
def all_(
    short: Annotated[bool, typer.Option(help="One brief round of each, to see that it runs.")] = (
        False
    ),
) -> None:
    """Every scenario but the soak, then the report."""
    if short:
        throughput(1, 2)
        null(1, 2)
        open_(1, 3)
        hits(1, 1)
        overload(5)
        faults(2)
        triton(1, 2)
    else:
        throughput()
        null()
        open_()
        hits()
        overload()
        faults()
        triton()
    report()


if __name__ == "__main__":
    cli()
