"""lightly-train's side of the comparison; runs in an environment that has lightly-train and timm.

The step is Lightning's whole batch: forward, backward, clipping, optimiser and teacher, without
loggers, progress bar or checkpoints. The batch lies in memory before the clock starts.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import timm
from lightly_train._methods.dino.dino import DINO, DINOAdamWArgs, DINOArgs
from lightly_train._models.embedding_model import EmbeddingModel
from lightly_train._models.timm.timm_package import TIMMPackage
from lightly_train._scaling import IMAGENET_SIZE, ScalingInfo
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.training.sides import BATCH, answer, peak_memory, random_crops

EPOCHS = 100
PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed"}


class Batches(IterableDataset[dict[str, Any]]):
    """Batches without end."""

    def __len__(self) -> int:
        return IMAGENET_SIZE // BATCH

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in range(len(self)):
            yield {"filename": [""] * BATCH, "views": random_crops(number)}


class Turns(Callback):
    """Waits for a turn before each batch and answers with its seconds."""

    def on_train_batch_start(self, *_: object) -> None:
        """Wait; without another turn, end."""
        if not sys.stdin.readline():
            answer(peak_memory(), sys.__stdout__)
            raise SystemExit
        self.started = time.perf_counter()

    def on_train_batch_end(self, *_: object) -> None:
        """Answer."""
        answer(time.perf_counter() - self.started, sys.__stdout__)


def method() -> LightningModule:
    """DINO as lightly-train configures it for ImageNet, with the published drop path."""
    model = timm.create_model("vit_small_patch16_224", dynamic_img_size=True, drop_path_rate=0.1)
    wrapped = TIMMPackage.get_model_wrapper(model)
    optimizer = DINOAdamWArgs()
    arguments = DINOArgs(output_dim=65536, student_freeze_last_layer_steps=0)
    arguments.resolve_auto(ScalingInfo(IMAGENET_SIZE, EPOCHS), optimizer, wrapped)
    return DINO(arguments, optimizer, EmbeddingModel(wrapped), BATCH, num_input_channels=3)


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable()
    trainer = Trainer(
        accelerator="cpu",
        precision=PRECISION[sys.argv[1]],
        max_epochs=EPOCHS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Turns()],
    )
    trainer.fit(method(), DataLoader(Batches(), batch_size=None))


if __name__ == "__main__":
    main()
