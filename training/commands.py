"""`foveal-train`: run a recipe, evaluate a checkpoint, export, import or measure a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from training import config, distributed
from training.assessment import Assessment, Floor, load_trained
from training.auto import resolve
from training.bundling import Data, Resize, Size, export, import_, measure, measured
from training.config import Recipe
from training.data.workers import MOST, usual_count
from training.devices import choose_device
from training.evaluation.validation import input_spec
from training.progress import progress

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
console = Console(stderr=True)

CheckpointPath = Annotated[Path, typer.Argument(help="A checkpoint that `run` wrote.")]
RecipeName = Annotated[str, typer.Argument(help="Name of a recipe, or the path of a .yaml file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, for example epochs=10 optimizer.lr=1e-3")
]


@app.command()
def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; the run in it goes on.", show_default="runs/NAME"),
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, ...; name one to leave the accelerator alone.")
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that read images; raise if the model waits, lower if memory is short.",
            show_default=f"on GPUs all cores but one each, at most {MOST}; on a CPU 1",
        ),
    ] = None,
    save_every: Annotated[
        int, typer.Option(min=1, help="Steps between checkpoints; raise if writing takes long.")
    ] = 100,
    keep: Annotated[
        int, typer.Option(min=1, help="Last checkpoints to keep; raise to go back in time.")
    ] = 1,
) -> None:
    """Train a model. Start it by torchrun for several processes."""
    # What only training needs takes as long to import as all else.
    from training.loop import RunOptions, train

    loaded = Recipe.load(recipe, tuple(overrides or ()))
    chosen = choose_device(device)
    options = RunOptions(
        out=out or Path("runs") / loaded.name,
        device=chosen,
        workers=usual_count(chosen) if workers is None else workers,
        save_every=save_every,
        keep=keep,
    )
    with distributed.processes(options.device), progress(console) as bar:
        last = train(loaded, options, bar)
        if distributed.rank() == 0:
            typer.echo(last)


@app.command()
def explain(
    recipe: RecipeName,
    overrides: Overrides = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Training images; name it to see what `auto` becomes.")
    ] = None,
) -> None:
    """Print every key of a recipe, its value, and when to change it."""
    loaded = Recipe.load(recipe, tuple(overrides or ()))
    if images is not None:
        loaded, arithmetic = resolve(loaded, images)
        for line in arithmetic:
            typer.echo(line)
    table = Table("key", "value", "when to change it", box=None)
    for key, value, when in config.describe(loaded):
        table.add_row(key, escape(value), when)
    Console().print(table)


@app.command()
def evaluate(
    checkpoint: CheckpointPath,
    data: Data,
    size: Size = None,
    resize: Resize = None,
    k: Annotated[int, typer.Option(min=1, help="Neighbours that vote; 20 is the papers'.")] = 20,
    instead: Annotated[
        Floor | None, typer.Option(help="A floor to evaluate instead of the trained model.")
    ] = None,
) -> None:
    """Print the k-NN accuracy of the teacher's backbone, in percent."""
    trained = load_trained(checkpoint)
    spec = input_spec(trained.recipe, size, resize)
    assessment = Assessment(trained.recipe, data, spec, k)
    typer.echo(f"{measured(assessment, trained, instead):.2f}")


app.command()(export)
app.command()(measure)
app.command("import")(import_)
