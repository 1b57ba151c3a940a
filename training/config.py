"""Recipes: everything that decides a run's numbers, typed and checked before it starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from training.data.crops import CropConfig
from training.data.pixels import MEAN, STD
from training.objectives.config import (
    DINOConfig,
    HeadConfig,
    ObjectiveConfig,
    Section,
    TeacherConfig,
)
from training.recipe_faults import faults
from training.recipe_files import RECIPES, RecipeError, read_recipe

__all__ = [
    "RECIPES",
    "EvaluationConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PixelsConfig",
    "Recipe",
    "RecipeError",
    "describe",
]


def _changed(section: Section, keys: Iterable[str]) -> list[str]:
    """Those keys that differ from their defaults: a run's own record names all of them."""
    fields = type(section).model_fields
    return sorted(key for key in keys if getattr(section, key) != fields[key].default)


class ModelConfig(Section):
    """The backbone."""

    architecture: Literal[
        "vit_nano",
        "vit_micro",
        "vit_tiny",
        "vit_small",
        "vit_base",
        "vit_large",
        "swin_tiny",
        "swin_small",
        "swin_base",
        "resnet18",
        "resnet50",
    ] = Field(
        "vit_small", description="vit_nano, vit_micro and resnet18 suit images of some 32 px."
    )
    patch_size: Literal[4, 8, 14, 16] = Field(
        16, description="Of a ViT. Half of it: better, four times as slow."
    )
    window: Literal[7, 14] = Field(7, description="Of a Swin. 14 is better by half a point.")
    drop_path: float = Field(
        0.1, ge=0, lt=1, description="0 for short runs; 0.2 for Swin-S and B. Not of a ResNet."
    )

    @model_validator(mode="after")
    def _keys_suit_the_family(self) -> ModelConfig:
        family = self.architecture.split("_")[0].rstrip("0123456789")
        foreign = {
            "vit": {"window"},
            "swin": {"patch_size"},
            "resnet": {"window", "patch_size", "drop_path"},
        }[family]
        if wrong := ", ".join(_changed(self, foreign)):
            raise ValueError(
                f"{self.architecture} has no {wrong}; leave it out, on the command line by "
                f"'model={{architecture: {self.architecture}}}'"
            )
        return self


class PixelsConfig(Section):
    """What a decoded image becomes before the model."""

    channels: int = Field(
        3, ge=1, le=32, description="1 for grey data such as MNIST; more than 3 from arrays alone."
    )
    mean: tuple[float, ...] = Field(
        MEAN, description="A channel; ImageNet's. Name your data's own if they are not photographs."
    )
    std: tuple[float, ...] = Field(
        STD, description="A channel; ImageNet's. Like mean, of values from 0 to 1."
    )

    @model_validator(mode="after")
    def _one_number_a_channel(self) -> PixelsConfig:
        for name in ("mean", "std"):
            if len(values := getattr(self, name)) != self.channels:
                raise ValueError(
                    f"{name} has {len(values)} numbers for channels = {self.channels}; "
                    f"name {self.channels}"
                )
        if min(self.std) <= 0:
            raise ValueError("std must be above 0")
        return self


class OptimizerConfig(Section):
    """The optimiser and its schedules."""

    name: Literal["adamw", "sgd"] = Field("adamw", description="sgd is published for ResNet-50.")
    lr: float = Field(5e-4, gt=0, description="For a batch of 256; scaled linearly with it.")
    min_lr: float = Field(1e-6, ge=0, description="Where the cosine ends; not scaled.")
    warmup_epochs: int = Field(10, ge=0, description="Raise it if the loss jumps early on.")
    weight_decay: float = Field(
        0.04, ge=0, description="At the start; 0.05 for the rivals, 1e-4 with sgd."
    )
    weight_decay_end: float = Field(
        0.4, ge=0, description="Equal to weight_decay for the rivals; lower it for short runs."
    )
    clip_grad: Annotated[float, Field(gt=0)] | None = Field(
        3.0, description="Norm of each parameter's gradient; null for the rivals."
    )
    freeze_last_layer: int = Field(
        1, ge=0, description="Epochs; raise it if the loss does not fall."
    )


class EvaluationConfig(Section):
    """k-NN while the run goes on; changes nothing in what is trained."""

    data: str | None = Field(
        None, description="Held-out images with labels; the training images need labels, too."
    )
    every: int = Field(10, gt=0, description="Epochs between evaluations.")
    resize: int | None = Field(
        None, gt=0, description="Short side before the crop; default 256/224 of the size."
    )
    size: int | None = Field(
        None, gt=0, description="Side of the crop; default the global crops'. Larger is better."
    )
    k: int = Field(20, gt=0, description="Neighbours that vote; 10 or 20 for small sets.")
    images: int | None = Field(
        None, gt=0, description="Images of either set that take part; lower it to save time."
    )


class Recipe(Section):
    """One run."""

    name: str = Field(description="Of the run and its folder; the file's unless you name another.")
    data: str = Field(description="Folder, tar shards, Parquet or .npz of the training images.")
    epochs: int = Field(
        100, gt=0, description="More is better: 300 to 800 in the papers; all schedules span them."
    )
    batch_size: int = Field(64, gt=0, description="Images a step, over all processes.")
    accumulate: int = Field(
        1,
        gt=0,
        description="Parts of a batch; raise it if one does not fit in memory. simclr, sinkhorn "
        "and batch_norm then see one part at a time.",
    )
    seed: int = Field(
        0, ge=0, lt=2**64, description="Change it to see how far chance moves the figures."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 where the processor has it; fp32 for exact comparisons."
    )
    compile: bool = Field(
        False, description="True on a GPU for runs of hours; the first steps take minutes."
    )
    shard: bool = Field(False, description="True where a ViT-L or more fills a GPU (FSDP2).")
    resident: bool = Field(
        False, description="True keeps all decoded images on the device: for sets that fit there."
    )
    model: ModelConfig = Field(ModelConfig(), description="The backbone.")
    pixels: PixelsConfig = Field(PixelsConfig(), description="For data other than photographs.")
    crops: CropConfig = Field(CropConfig(), description="To suit the size of the images.")
    objective: ObjectiveConfig = Field(DINOConfig(), description="The loss; esvit for a Swin.")
    head: HeadConfig = Field(HeadConfig(), description="Smaller for small data.")
    teacher: TeacherConfig = Field(TeacherConfig(), description="Sooner and sharper in short runs.")
    optimizer: OptimizerConfig = Field(OptimizerConfig(), description="For other batches and nets.")
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="To watch the quality.")

    @field_validator("objective", mode="before")
    @classmethod
    def _dino_unless_named(cls, value: Any) -> Any:
        return {"name": "dino"} | value if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Recipe:
        found = [*self._side_faults(), *self._objective_faults()]
        if self.batch_size % self.accumulate:
            found.append(
                f"batch_size = {self.batch_size} is no multiple of accumulate = "
                f"{self.accumulate}; change either"
            )
        if found:
            raise ValueError("; ".join(found))
        return self

    def _side_faults(self) -> Iterator[str]:
        crops, evaluation = self.crops, self.evaluation
        sides = {"crops.global_size": crops.global_size}
        if crops.local_count:
            sides["crops.local_size"] = crops.local_size
        if evaluation.size is not None:
            sides["evaluation.size"] = evaluation.size
        patch = self.model.patch_size
        for name, side in sides.items() if self.model.architecture.startswith("vit") else ():
            if side % patch:
                near = max(1, round(side / patch)) * patch
                yield f"{name} = {side} is no multiple of model.patch_size = {patch}; try {near}"
        size = evaluation.size or crops.global_size
        if evaluation.resize is not None and evaluation.resize < size:
            yield f"evaluation.resize = {evaluation.resize} is less than the crop's side, {size}"

    def _objective_faults(self) -> Iterator[str]:
        objective, architecture = self.objective, self.model.architecture
        name = objective.name
        if name in ("swav", "simclr") and self.teacher != TeacherConfig():
            yield f"objective.name = {name} has no teacher; leave teacher out, or set it to null"
        if name in ("byol", "moco", "simclr") and (
            wrong := _changed(self.head, ("prototypes", "norm_last_layer"))
        ):
            keys = ", ".join(f"head.{key}" for key in wrong)
            yield f"objective.name = {name} has no prototypes; leave out {keys}"
        if name == "simclr" and self.crops.local_count:
            yield (
                "objective.name = simclr compares global crops only; set crops.local_count = 0 "
                "and crops.global_scale = [0.14, 1.0]"
            )
        if name == "esvit" and architecture.startswith("vit"):
            yield (
                "objective.name = esvit needs the regions of a Swin or a ResNet; for "
                f"model.architecture = {architecture} choose dino"
            )
        if (
            isinstance(objective, DINOConfig)
            and objective.loss == "mse"
            and objective.targets == "sinkhorn"
        ):
            yield (
                "objective.loss = mse compares vectors and objective.targets = sinkhorn makes "
                "distributions; choose centering or cross_entropy"
            )

    @classmethod
    def load(cls, source: str, overrides: tuple[str, ...] = ()) -> Recipe:
        """Read a recipe by name or path, with `key=value` on top (`optimizer.lr=0.001`).

        Raises:
            RecipeError: There is no such recipe, or it does not hold together.
        """
        return cls.check(read_recipe(source, overrides), source)

    @classmethod
    def check(cls, values: dict[str, Any], source: str) -> Recipe:
        """Validate values that came from `source`.

        Raises:
            RecipeError: They do not hold together.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise RecipeError(f"{source}: {faults(error, cls)}") from None


def describe(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Every key of a recipe or a part of it: name, value, and when to change it."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from describe(value, f"{prefix}{name}.")
        else:
            yield prefix + name, str(value), field.description or ""
