"""`foveal-train`: run a recipe, evaluate a checkpoint, export or import a bundle."""

from __future__ import annotations

import functools
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from service.bundle import Bundle, BundleError, Evaluation, InputSpec, sha256
from training.checkpoint import CheckpointError, load
from training.config import Recipe, RecipeError
from training.data.pixels import MEAN, STD
from training.data.sources import DataError, ImageFolder
from training.download import PUBLISHED, DownloadError, fetch, recorded
from training.evaluation.features import embed_folder, raw_pixels
from training.evaluation.knn import knn_accuracy
from training.export.onnx import write_bundle
from training.loop import Diverged, build, train
from training.loop import Progress as Step
from training.models.checkpoints import read_backbone
from training.models.shapes import some
from training.models.vit import VisionTransformer

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
console = Console(stderr=True)

CheckpointPath = Annotated[Path, typer.Argument(help="A checkpoint that `run` wrote.")]
Size = Annotated[int, typer.Option(help="Side of the centre crop in pixels.")]
Data = Annotated[Path, typer.Option(help="Folder with train/ and val/, a sub-folder a class.")]


class Floor(StrEnum):
    """What a trained model has to beat."""

    PIXELS = "pixels"
    UNTRAINED = "untrained"


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, or the path of a .yaml file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, for example epochs=10 optimizer.lr=1e-3")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; the run in it goes on. [runs/NAME]")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that cut crops; raise if the model waits.")
    ] = 1,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 100,
) -> None:
    """Train a model."""
    loaded = Recipe.load(recipe, tuple(overrides or ()))
    columns = (
        SpinnerColumn(),
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} loss {task.fields[loss]:.3f}"),
        TextColumn("entropy {task.fields[entropy]:.3f} {task.fields[speed]:.1f} images/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", visible=False, epoch=0, loss=0.0, entropy=0.0, speed=0.0)

        def show(step: Step) -> None:
            bar.update(
                task,
                visible=True,
                completed=step.step,
                total=step.steps,
                epoch=step.epoch,
                loss=step.loss,
                entropy=step.teacher_entropy,
                speed=step.images_per_second,
            )

        folder = out or Path("runs") / loaded.name
        last = train(loaded, folder, workers=workers, save_every=save_every, report=show)
    typer.echo(last)


@app.command()
def evaluate(
    checkpoint: CheckpointPath,
    data: Data,
    size: Size = 128,
    k: Annotated[int, typer.Option(min=1, help="Neighbours that vote.")] = 20,
    instead: Annotated[
        Floor | None, typer.Option(help="A floor to evaluate instead of the trained model.")
    ] = None,
) -> None:
    """Print the k-NN accuracy of the teacher's backbone, in percent."""
    typer.echo(f"{_knn(checkpoint, data, size, k, instead):.2f}")


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
    recipe, backbone = _backbone(checkpoint)
    command = f"foveal-train evaluate CHECKPOINT --data {data.name} --size {size}"
    evaluation = [
        Evaluation(
            name="20-NN top-1, %" + (f", {instead}" if instead else ""),
            value=round(_knn(checkpoint, data, size, 20, instead), 2),
            command=command + (f" --instead {instead}" if instead else ""),
        )
        for instead in (None, *Floor)
    ]
    bundle = write_bundle(
        out,
        backbone,
        name=recipe.name,
        architecture=recipe.model.architecture,
        spec=_input(backbone, size),
        training={
            "data": data.name,
            "steps": load(checkpoint)["step"],
            "recipe": recipe.model_dump(mode="json", exclude={"data"}),
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
    checksum: Annotated[str | None, typer.Option(help="sha256 that the file must have.")] = None,
    cache: Annotated[Path, typer.Option(help="Where downloads are kept.")] = Path(
        "~/.cache/foveal"
    ),
) -> None:
    """Make a bundle of a published checkpoint: DINO's, DINOv2's, timm's or Hugging Face's."""
    licence = licence or ("Apache-2.0" if source in PUBLISHED else None)
    if licence is None:
        raise typer.BadParameter("name the licence of the weights", param_hint="--licence")
    path = Path(source) if Path(source).exists() else _fetch(source, cache.expanduser(), checksum)
    if checksum and path.is_file() and sha256(path) != checksum:
        raise CheckpointError(f"the sha256 of {path} is {sha256(path)}, not {checksum}")
    imported = read_backbone(path)
    backbone = imported.backbone
    if not isinstance(backbone, VisionTransformer):
        raise CheckpointError(f"{source} holds a {imported.architecture}; only ViTs are exported")
    if size % backbone.patch_size:
        raise typer.BadParameter(
            f"{size} is no multiple of the patch, {backbone.patch_size}", param_hint="--size"
        )
    bundle = write_bundle(
        out,
        backbone,
        name=name or Path(source).stem.lower(),
        architecture=imported.architecture,
        spec=_input(backbone, size),
        training={"source": source, "layout": imported.source},
        evaluation=(),
        licence=licence,
    )
    if imported.left_over:
        typer.echo(f"left over, not needed: {some(imported.left_over)}")
    _describe(bundle)


def _fetch(source: str, cache: Path, checksum: str | None) -> Path:
    with Progress(*Progress.get_default_columns(), DownloadColumn(), console=console) as bar:
        task = bar.add_task(source, total=None)

        def report(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        path = fetch(source, cache, expected=checksum, report=report)
    typer.echo(f"{path}  sha256 {recorded(path)}")
    return path


def _backbone(checkpoint: Path, instead: Floor | None = None) -> tuple[Recipe, VisionTransformer]:
    """The teacher's backbone of a checkpoint, or the one that its recipe starts from."""
    state = load(checkpoint)
    recipe = Recipe.model_validate(state["recipe"])
    model = build(recipe)
    if instead is None:
        model.load_state_dict(state["model"])
    backbone = model.teacher.backbone
    assert isinstance(backbone, VisionTransformer)
    return recipe, backbone.eval()


def _input(backbone: VisionTransformer, size: int) -> InputSpec:
    # Short side over crop as in the published protocol, 256 over 224.
    resize = round(size * 256 / 224)
    return InputSpec(resize=resize, crop=size, multiple=backbone.patch_size, mean=MEAN, std=STD)


def _knn(checkpoint: Path, data: Path, size: int, k: int, instead: Floor | None) -> float:
    """k-NN accuracy in percent, from data/train to data/val."""
    _, backbone = _backbone(checkpoint, instead)
    train, val = (ImageFolder.open(data / split) for split in ("train", "val"))
    with Progress(console=console) as bar:

        def features(source: ImageFolder) -> NDArray[np.float32]:
            task = bar.add_task(f"{instead or 'model'}, {source.root.name}", total=len(source))
            report = functools.partial(bar.advance, task)
            if instead is Floor.PIXELS:
                return raw_pixels(source, report)
            return embed_folder(backbone, source, _input(backbone, size), report)

        train_x, val_x = features(train), features(val)
    if instead is Floor.PIXELS:
        centre = train_x.mean(axis=0)
        train_x, val_x = train_x - centre, val_x - centre
    return 100 * knn_accuracy(train_x, train.labels, val_x, val.labels, k)


def _describe(bundle: Bundle) -> None:
    typer.echo(f"{bundle.path}  {bundle.manifest.name}  digest {bundle.digest}")
    for figure in bundle.manifest.evaluation:
        typer.echo(f"{figure.name}: {figure.value}")


def main() -> None:
    """Run the command line; what the user can mend is one line and exit status 1."""
    try:
        app()
    except (
        BundleError,
        CheckpointError,
        DataError,
        Diverged,
        DownloadError,
        RecipeError,
    ) as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
