"""`foveal-train`: run a recipe, evaluate a checkpoint, export a bundle."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from service.bundle import Bundle, BundleError, Evaluation, InputSpec
from training.checkpoint import CheckpointError, load
from training.config import Recipe, RecipeError
from training.data.pixels import MEAN, STD
from training.data.sources import DataError, ImageFolder
from training.evaluation.embed import embed_folder
from training.evaluation.knn import knn_accuracy
from training.export.onnx import write_bundle
from training.loop import Diverged, build, train
from training.loop import Progress as Step
from training.models.vit import VisionTransformer

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
console = Console(stderr=True)

CheckpointPath = Annotated[Path, typer.Argument(help="A checkpoint that `run` wrote.")]
Size = Annotated[int, typer.Option(help="Side of the centre crop in pixels.")]
Data = Annotated[Path, typer.Option(help="Folder with train/ and val/, a sub-folder a class.")]
Untrained = Annotated[
    bool, typer.Option("--untrained", help="The same network before its first step, as a floor.")
]


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
        task = bar.add_task("", total=None, epoch=0, loss=0.0, entropy=0.0, speed=0.0)

        def show(step: Step) -> None:
            bar.update(
                task,
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
    untrained: Untrained = False,
) -> None:
    """Print the k-NN accuracy of the teacher's backbone, in percent."""
    _, backbone = _backbone(checkpoint, untrained)
    typer.echo(f"{100 * _knn(backbone, data, _input(backbone, size), k):.2f}")


@app.command()
def export(
    checkpoint: CheckpointPath,
    out: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    data: Data,
    size: Size = 128,
    licence: Annotated[str, typer.Option(help="Of the weights.")] = "Apache-2.0",
) -> None:
    """Write a bundle, with its k-NN accuracy measured beside the untrained network's."""
    recipe, backbone = _backbone(checkpoint, untrained=False)
    spec = _input(backbone, size)
    command = f"foveal-train evaluate CHECKPOINT --data {data.name} --size {size}"
    figures = []
    for untrained in (False, True):
        network = _backbone(checkpoint, untrained)[1]
        name = "20-NN top-1, %" + (", untrained" if untrained else "")
        value = round(100 * _knn(network, data, spec, 20), 2)
        figures.append(
            Evaluation(
                name=name, value=value, command=command + (" --untrained" if untrained else "")
            )
        )
    bundle = write_bundle(
        out,
        backbone,
        name=recipe.name,
        architecture=recipe.model.architecture,
        spec=spec,
        training={"recipe": recipe.model_dump(mode="json", exclude={"data"}), "data": data.name},
        evaluation=tuple(figures),
        licence=licence,
    )
    _describe(bundle)


def _backbone(checkpoint: Path, untrained: bool) -> tuple[Recipe, VisionTransformer]:
    """The teacher's backbone of a checkpoint, or the one that its recipe starts from."""
    state = load(checkpoint)
    recipe = Recipe.model_validate(state["recipe"])
    model = build(recipe)
    if not untrained:
        model.load_state_dict(state["model"])
    backbone = model.teacher.backbone
    assert isinstance(backbone, VisionTransformer)
    return recipe, backbone.eval()


def _input(backbone: VisionTransformer, size: int) -> InputSpec:
    # Short side over crop as in the published protocol, 256 over 224.
    return InputSpec(
        resize=round(size * 256 / 224), crop=size, multiple=backbone.patch_size, mean=MEAN, std=STD
    )


def _knn(backbone: VisionTransformer, data: Path, spec: InputSpec, k: int) -> float:
    folders = [ImageFolder.open(data / split) for split in ("train", "val")]
    with Progress(console=console) as bar:
        features = []
        for folder in folders:
            task = bar.add_task(f"embedding {folder.root.name}", total=len(folder))
            show = functools.partial(bar.advance, task)
            features.append(embed_folder(backbone, folder, spec, show))
    (train_x, test_x), (train, test) = features, folders
    return knn_accuracy(train_x, train.labels, test_x, test.labels, k)


def _describe(bundle: Bundle) -> None:
    typer.echo(f"{bundle.path}  {bundle.manifest.name}  digest {bundle.digest}")
    for figure in bundle.manifest.evaluation:
        typer.echo(f"{figure.name}: {figure.value}")


def main() -> None:
    """Run the command line; what the user can mend is one line and exit status 1."""
    try:
        app()
    except (BundleError, CheckpointError, DataError, Diverged, RecipeError) as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
