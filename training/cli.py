"""`foveal-train`: run a recipe, evaluate a checkpoint, export or import a bundle."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import DownloadColumn, Progress
from rich.table import Table

from service.bundle import Bundle, BundleError, Evaluation
from training import config, distributed
from training.assessment import Assessment, Floor, Trained, load_trained
from training.auto import resolve
from training.checkpoint import CheckpointError
from training.config import Recipe, RecipeError
from training.data.sources import DataError
from training.devices import DeviceError, choose_device
from training.download import PUBLISHED, DownloadError, obtain, recorded
from training.export.imported import import_bundle
from training.export.onnx import input_spec, write_bundle
from training.loop import RunOptions, train
from training.models.shapes import some
from training.progress import progress
from training.stopping import Stopped
from training.trainer import Diverged

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
console = Console(stderr=True)

CheckpointPath = Annotated[Path, typer.Argument(help="A checkpoint that `run` wrote.")]
Size = Annotated[
    int, typer.Option(help="Side of the centre crop in pixels; larger shows more and costs more.")
]
Data = Annotated[
    str, typer.Option(help="Folder with train/ and val/ (or test/), a sub-folder a class; or .npz.")
]
RecipeName = Annotated[str, typer.Argument(help="Name of a recipe, or the path of a .yaml file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, for example epochs=10 optimizer.lr=1e-3")
]


@app.command()
def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; the run in it goes on. [runs/NAME]")
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, ...; name one to leave the accelerator alone.")
    ] = "auto",
    workers: Annotated[
        int,
        typer.Option(
            min=0,
            help="Processes that read images; raise if the model waits, to all cores on a GPU.",
        ),
    ] = 1,
    save_every: Annotated[
        int, typer.Option(min=1, help="Steps between checkpoints; raise if writing takes long.")
    ] = 100,
    keep: Annotated[
        int, typer.Option(min=1, help="Last checkpoints to keep; raise to go back in time.")
    ] = 1,
) -> None:
    """Train a model. Start it by torchrun for several processes."""
    loaded = Recipe.load(recipe, tuple(overrides or ()))
    options = RunOptions(
        out=out or Path("runs") / loaded.name,
        device=choose_device(device),
        workers=workers,
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
        table.add_row(key, value, when)
    Console().print(table)


@app.command()
def evaluate(
    checkpoint: CheckpointPath,
    data: Data,
    size: Size = 128,
    k: Annotated[int, typer.Option(min=1, help="Neighbours that vote; 20 is the papers'.")] = 20,
    instead: Annotated[
        Floor | None, typer.Option(help="A floor to evaluate instead of the trained model.")
    ] = None,
) -> None:
    """Print the k-NN accuracy of the teacher's backbone, in percent."""
    trained = load_trained(checkpoint)
    assessment = Assessment(trained.recipe, data, size, k)
    typer.echo(f"{_measure(assessment, trained, instead):.2f}")


@app.command()
def export(
    checkpoint: CheckpointPath,
    out: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    data: Data,
    licence: Annotated[str, typer.Option(help="Of the weights; the data may decide it.")],
    size: Size = 128,
    note: Annotated[str, typer.Option(help="What else the card should say of the run.")] = "",
) -> None:
    """Write a bundle, with its k-NN accuracy measured beside the floors."""
    trained = load_trained(checkpoint)
    recipe = trained.recipe
    spec = input_spec(trained.backbone, size, recipe.pixels.mean, recipe.pixels.std)
    assessment = Assessment(recipe, data, size, k=20)
    name = Path(data).name
    command = f"foveal-train evaluate CHECKPOINT --data {name} --size {size}"
    evaluation = [
        Evaluation(
            name="20-NN top-1, %" + (f", {instead}" if instead else ""),
            value=round(_measure(assessment, trained, instead), 2),
            command=command + (f" --instead {instead}" if instead else ""),
        )
        for instead in (None, *Floor)
    ]
    bundle = write_bundle(
        out,
        trained.backbone,
        name=recipe.name,
        architecture=recipe.model.architecture,
        spec=spec,
        training={
            "data": name,
            "steps": trained.step,
            "recipe": recipe.model_dump(mode="json", exclude={"data": True, "evaluation": True}),
            **({"note": note} if note else {}),
        },
        evaluation=tuple(evaluation),
        licence=licence,
    )
    _describe(bundle)


@app.command("import")
def import_(
    source: Annotated[
        str,
        typer.Argument(help=f"A file, a folder, an address, or one of {', '.join(PUBLISHED)}."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    licence: Annotated[
        str | None, typer.Option(help="Of the weights; DINO's own are under Apache-2.0.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name. [the source's]")] = None,
    size: Size = 224,
    checksum: Annotated[
        str | None, typer.Option(help="sha256 that the file must have; name it if you know it.")
    ] = None,
    cache: Annotated[Path, typer.Option(help="Where downloads are kept.")] = Path(
        "~/.cache/foveal"
    ),
) -> None:
    """Make a bundle of a published checkpoint: its authors', timm's or Hugging Face's."""
    licence = licence or ("Apache-2.0" if source in PUBLISHED else None)
    if licence is None:
        raise typer.BadParameter("name the licence of the weights", param_hint="--licence")
    path = _obtain(source, cache.expanduser(), checksum)
    bundle = import_bundle(path, out, name=name, size=size, licence=licence, source=source)
    if left_over := bundle.manifest.training["left_over"]:
        typer.echo(f"left over, not needed: {some(left_over)}")
    _describe(bundle)


def _obtain(source: str, cache: Path, checksum: str | None) -> Path:
    with Progress(*Progress.get_default_columns(), DownloadColumn(), console=console) as bar:
        task = bar.add_task(source, total=None, visible=False)

        def report(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        path = obtain(source, cache, expected=checksum, report=report)
    if digest := recorded(path):
        typer.echo(f"{path}  sha256 {digest}")
    return path


def _measure(assessment: Assessment, trained: Trained, instead: Floor | None) -> float:
    with Progress(console=console) as bar:
        task = bar.add_task(str(instead or "model"), total=assessment.images)
        return assessment.measure(trained, instead, functools.partial(bar.advance, task))


def _describe(bundle: Bundle) -> None:
    typer.echo(f"{bundle.path}  {bundle.manifest.name}  digest {bundle.digest}")
    for figure in bundle.manifest.evaluation:
        typer.echo(f"{figure.name}: {figure.value}")


def main() -> None:
    """Run the command line; what the user can mend is one line and exit status 1."""
    try:
        app()
    except Stopped as stopped:
        # All processes stop alike, so the first one speaks for them; an error may be one's own.
        if os.environ.get("RANK", "0") == "0":
            console.print(f"{stopped}", highlight=False, soft_wrap=True)
        raise SystemExit(128 + stopped.number) from None
    except (
        BundleError,
        CheckpointError,
        DataError,
        DeviceError,
        Diverged,
        DownloadError,
        OSError,
        RecipeError,
    ) as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
