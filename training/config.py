"""Recipes: everything that decides a run's numbers, typed and checked before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from training.data.crops import CropConfig

RECIPES = Path(__file__).parent / "recipes"


class RecipeError(Exception):
    """The recipe cannot be run; the message names each wrong key and why."""


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(_Config):
    """The backbone."""

    architecture: Literal["vit_tiny", "vit_small", "vit_base"] = "vit_small"
    patch_size: Literal[8, 16] = 16
    drop_path: float = Field(0.1, ge=0, lt=1)


class HeadConfig(_Config):
    """The projection head."""

    prototypes: int = Field(
        65536, gt=1, description="Scale with the data: 1024 suffice below 20,000 images."
    )
    hidden: int = Field(2048, gt=0)
    bottleneck: int = Field(256, gt=0)
    batch_norm: bool = Field(
        False, description="True leaves the uniform start sooner; for runs of a few epochs."
    )
    norm_last_layer: bool = Field(True, description="True is steadier; False is better for ViT-S.")


class TeacherConfig(_Config):
    """The teacher and its targets."""

    momentum: float = Field(
        0.996, ge=0, le=1, description="Rises to 1 by a cosine; lower it for short runs."
    )
    temperature: float = Field(0.04, gt=0, description="Lower it if the entropy stays at ln K.")
    warmup_temperature: float = Field(0.04, gt=0)
    warmup_epochs: int = Field(0, ge=0)
    center_momentum: float = Field(0.9, ge=0, lt=1)


class OptimizerConfig(_Config):
    """AdamW and its schedules."""

    lr: float = Field(5e-4, gt=0, description="For a batch of 256; scaled linearly with it.")
    min_lr: float = Field(1e-6, ge=0)
    warmup_epochs: int = Field(10, ge=0)
    weight_decay: float = Field(0.04, ge=0)
    weight_decay_end: float = Field(0.4, ge=0)
    clip_grad: float = Field(3.0, gt=0, description="Norm of each parameter's gradient.")
    freeze_last_layer: int = Field(
        1, ge=0, description="Epochs; raise it if the loss does not fall."
    )


class Recipe(_Config):
    """One run."""

    name: str
    data: Path
    epochs: int = Field(100, gt=0)
    batch_size: int = Field(64, gt=0)
    seed: int = 0
    precision: Literal["fp32", "bf16"] = Field(
        "bf16", description="bf16 where the processor has it; fp32 for exact comparisons."
    )
    student_temperature: float = Field(0.1, gt=0)
    model: ModelConfig = ModelConfig()
    crops: CropConfig = CropConfig()
    head: HeadConfig = HeadConfig()
    teacher: TeacherConfig = TeacherConfig()
    optimizer: OptimizerConfig = OptimizerConfig()

    @model_validator(mode="after")
    def _crops_fit_the_patch(self) -> Recipe:
        for name in ("global_size", "local_size"):
            size = getattr(self.crops, name)
            if size % self.model.patch_size:
                raise ValueError(
                    f"crops.{name} = {size} is no multiple of model.patch_size = "
                    f"{self.model.patch_size}"
                )
        return self

    @classmethod
    def load(cls, source: str, overrides: tuple[str, ...] = ()) -> Recipe:
        """Read a recipe by name or path, with `key=value` on top (`optimizer.lr=0.001`).

        Raises:
            RecipeError: There is no such recipe, or it does not hold together.
        """
        path = Path(source) if source.endswith(".yaml") else RECIPES / f"{source}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
            raise RecipeError(f"no recipe {source!r}; known: {known}, or the path of a .yaml file")
        values: dict[str, Any] = {"name": path.stem, **yaml.safe_load(path.read_text())}
        for override in overrides:
            key, separator, value = override.partition("=")
            if not separator:
                raise RecipeError(f"{override!r} is not of the form key=value")
            *parents, leaf = key.split(".")
            target = values
            for parent in parents:
                target = target.setdefault(parent, {})
                if not isinstance(target, dict):
                    raise RecipeError(f"{key}: {parent} is a value, not a group of values")
            target[leaf] = yaml.safe_load(value)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc'])) or 'recipe'}: {fault['msg']}"
                for fault in error.errors()
            )
            raise RecipeError(f"{source}: {faults}") from None
