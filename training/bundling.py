"""The commands of `foveal-train` that make bundles: export, measure and import."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import DownloadColumn, Progress

from service.bundle import Bundle, BundleError, Evaluation
from training.assessment import Assessment, Floor, Trained, load_trained, splits
from training.data.sources import open_source
from training.download import PUBLISHED, obtain, recorded, require_known
from training.evaluation import validation
from training.evaluation.validation import Validation
from training.export.imported import import_bundle, usable_name
from training.export.onnx import card_of, input_spec, write_bundle
from training.models.shapes import some

if TYPE_CHECKING:
    from training.export.tensorrt import Builder

console = Console(stderr=True)

PLANS = Path("~/.cache/foveal/plans")

Size = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Side of the centre crop in pixels; larger shows more and costs more.",
        show_default="as the run evaluates",
    ),
]
Resize = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Short side before the crop; nearer to the crop's side shows more.",
        show_default="as the run evaluates, else 256/224 of the size",
    ),
]
Channels = tuple[float, float, float]
Data = Annotated[
    str, typer.Option(help="Folder with train/ and val/ (or test/), a sub-folder a class; or .npz.")
]


def export(
    source: Annotated[Path, typer.Argument(help="A checkpoint that `run` wrote, or a bundle.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the bundle that is made of a checkpoint.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="As of `evaluate`: a checkpoint and a plan are measured.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="Of a checkpoint's weights; the data may decide it.")
    ] = None,
    size: Size = None,
    resize: Resize = None,
    name: Annotated[
        str | None, typer.Option(help="The model's name.", show_default="the recipe's")
    ] = None,
    note: Annotated[str, typer.Option(help="What else the card should say of the run.")] = "",
    triton: Annotated[
        Path | None, typer.Option(help="Triton's model repository, which the bundle is added to.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Add a TensorRT plan for the GPU of this machine.")
    ] = False,
) -> None:
    """Write a bundle, with its k-NN accuracy measured beside the floors, or serve one by Triton."""
    if plan and not (triton and data):
        raise typer.BadParameter("name --triton and --data with it", param_hint="--plan")
    builder = _tensorrt() if plan else None
    if source.is_dir():
        if triton is None:
            raise typer.BadParameter(f"{source} is a bundle; where to?", param_hint="--triton")
        bundle = Bundle.load(source)
    else:
        if not (out and data and licence):
            raise typer.BadParameter(
                "a checkpoint becomes a bundle with --out, --data and --licence",
                param_hint="SOURCE",
            )
        bundle = _bundle_of(source, out, data, licence, size, resize, name, note)
    if triton is not None:
        bundle = _to_triton(bundle, triton, builder, data)
    _describe(bundle)


def measure(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    data: Data,
    most: Annotated[
        int | None, typer.Option(min=1, help="Images of each set; name it for a quicker look.")
    ] = None,
) -> None:
    """Add an int8 graph to a bundle, measure each precision and write both into it."""
    loaded = Bundle.load(bundle)
    train, held_out = map(open_source, splits(data))
    shown = Validation(train, held_out, loaded.manifest.input, k=20, most=most)
    _describe(_with_precisions(loaded, shown, Path(data).name, most))


def import_(
    source: Annotated[
        str,
        typer.Argument(help=f"A file, a folder, an address, or one of {', '.join(PUBLISHED)}."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    licence: Annotated[
        str | None, typer.Option(help="Of the weights; DINO's own are under Apache-2.0.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The model's name.", show_default="the source's")
    ] = None,
    size: Annotated[int, typer.Option(min=1, help="Side of the centre crop in pixels.")] = 224,
    heads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of every block; name them where the source has no config.json.",
            show_default="config.json's, else the published width's",
        ),
    ] = None,
    mean: Annotated[
        Channels | None,
        typer.Option(
            help="Of red, green and blue in the training images, from 0 to 1.",
            show_default="the source's files, else ImageNet's",
        ),
    ] = None,
    std: Annotated[
        Channels | None, typer.Option(help="Their deviation.", show_default="like mean")
    ] = None,
    checksum: Annotated[
        str | None, typer.Option(help="sha256 that the file must have; name it if you know it.")
    ] = None,
    cache: Annotated[Path, typer.Option(help="Where downloads are kept.")] = Path(
        "~/.cache/foveal"
    ),
) -> None:
    """Make a bundle of a published checkpoint: its authors', timm's or Hugging Face's."""
    require_known(source)
    licence = licence or ("Apache-2.0" if source in PUBLISHED else None)
    if licence is None:
        raise typer.BadParameter("name the licence of the weights", param_hint="--licence")
    if (mean is None) != (std is None):
        raise typer.BadParameter("name both or neither", param_hint="--mean, --std")
    path = _obtain(source, cache.expanduser(), checksum)
    bundle = import_bundle(
        path,
        out,
        name=name,
        size=size,
        licence=licence,
        source=source,
        heads=heads,
        normalisation=(mean, std) if mean and std else None,
    )
    spec = bundle.manifest.input
    typer.echo(f"{bundle.manifest.heads} heads, mean {spec.mean}, std {spec.std}")
    if left_over := bundle.manifest.training["left_over"]:
        typer.echo(f"left over, not needed: {some(left_over)}")
    _describe(bundle)


def measured(assessment: Assessment, trained: Trained, instead: Floor | None) -> float:
    """The k-NN accuracy of a model or a floor in percent, with a bar that shows how far it is."""
    with Progress(console=console) as bar:
        task = bar.add_task(str(instead or "model"), total=assessment.images)
        return assessment.measure(trained, instead, functools.partial(bar.advance, task))


def _bundle_of(
    checkpoint: Path,
    out: Path,
    data: str,
    licence: str,
    size: int | None,
    resize: int | None,
    name: str | None,
    note: str,
) -> Bundle:
    trained = load_trained(checkpoint)
    recipe = trained.recipe
    seen = validation.input_spec(recipe, size, resize)
    data_name = Path(data).name
    # What no bundle can be is told before the measuring, which may take hours.
    card = card_of(
        trained.backbone,
        name=name or usable_name(recipe.name),
        architecture=recipe.model.architecture,
        spec=input_spec(trained.backbone, seen.crop, seen.mean, seen.std, seen.resize),
        training={
            "data": data_name,
            "steps": trained.step,
            "recipe": recipe.model_dump(mode="json", exclude={"data": True, "evaluation": True}),
            **({"note": note} if note else {}),
        },
        evaluation=(),
        licence=licence,
    )
    assessment = Assessment(recipe, data, seen, k=20)
    command = (
        f"foveal-train evaluate CHECKPOINT --data {data_name} --size {seen.crop} "
        f"--resize {seen.resize}"
    )
    evaluation = tuple(
        Evaluation(
            name="20-NN top-1, %" + (f", {instead}" if instead else ""),
            value=round(measured(assessment, trained, instead), 2),
            command=command + (f" --instead {instead}" if instead else ""),
        )
        for instead in (None, *Floor)
    )
    measured_card = card.model_copy(update={"evaluation": evaluation})
    bundle = write_bundle(out, trained.backbone, measured_card)
    return _with_precisions(bundle, assessment.validation, data_name)


def _tensorrt() -> Builder:
    from training.export.tensorrt import TensorRT

    return TensorRT()


def _to_triton(
    bundle: Bundle, repository: Path, builder: Builder | None, data: str | None
) -> Bundle:
    """Add a bundle to a repository, with a plan where something builds one."""
    from training.export.tensorrt import faithful_plan
    from training.export.triton import write_repository

    plan = None
    if builder is not None and data is not None:
        source = open_source(splits(data)[1])
        command = f"foveal-train export BUNDLE --triton REPOSITORY --plan --data {Path(data).name}"
        bundle, plan = faithful_plan(bundle, builder, PLANS.expanduser(), source, command)
    version = write_repository(bundle, repository, plan)
    typer.echo(f"{repository / bundle.manifest.name}  version {version}")
    return bundle


def _obtain(source: str, cache: Path, checksum: str | None) -> Path:
    with Progress(*Progress.get_default_columns(), DownloadColumn(), console=console) as bar:
        task = bar.add_task(escape(source), total=None, visible=False)

        def report(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        path = obtain(source, cache, expected=checksum, report=report)
    if digest := recorded(path):
        typer.echo(f"{path}  sha256 {digest}")
    return path


def _with_precisions(
    bundle: Bundle, validation: Validation, data: str, most: int | None = None
) -> Bundle:
    try:
        from training.export.precision import add_int8, add_precisions
    except ModuleNotFoundError as error:
        # Only this needs ONNX Runtime: a machine that trains may lack it.
        raise BundleError(
            f"{bundle.path} stays without measured precisions: {error}; in the checkout, "
            "pip install -e '.[cpu]', then `foveal-train measure`"
        ) from None
    command = f"foveal-train measure BUNDLE --data {data}" + (f" --most {most}" if most else "")
    with Progress(console=console) as bar:
        task = bar.add_task("precisions", total=validation.images)
        report = functools.partial(bar.advance, task)
        return add_precisions(add_int8(bundle), validation, command, report)


def _describe(bundle: Bundle) -> None:
    typer.echo(f"{bundle.path}  {bundle.manifest.name}  digest {bundle.digest}")
    for figure in bundle.manifest.evaluation:
        typer.echo(f"{figure.name}: {figure.value}")
    for p in bundle.manifest.precisions:
        typer.echo(
            f"{p.engine} {p.precision}: {p.speed:.2f}x, cosine {p.cosine:.6f} "
            f"(least {p.least_cosine:.6f}), k-NN {p.knn_change:+.2f}"
        )
