"""What a run has left in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from training import journal
from training.attention_over_time import FOLDER, PHOTOGRAPHS

Column = NDArray[np.float64]


class Record(NamedTuple):
    """A run, as far as it has come.

    Attributes:
        name: Of the recipe, or of the folder.
        recipe: The text of `recipe.yaml`; empty without one.
        outcomes: Number K of outcomes, where the recipe tells.
        log: Columns of `log.jsonl`, all of one length, NaN where a step lacks a value.
        evaluations: Columns of `evaluations.jsonl`.
        warnings: Step and message of each.
        photographs: uint8 [photographs, side, side, channels], or None.
        attention: Of each epoch, in order, [photographs, heads, rows, columns].
    """

    name: str
    recipe: str
    outcomes: int | None
    log: dict[str, Column]
    evaluations: dict[str, Column]
    warnings: list[tuple[int, str]]
    photographs: NDArray[np.uint8] | None
    attention: dict[int, NDArray[np.float32]]


def read(folder: Path) -> Record:
    """Read a run's folder; whatever is missing or not yet there is left empty.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no run at {folder}; give the folder that `run` wrote")
    path = folder / "recipe.yaml"
    text = path.read_text() if path.exists() else ""
    recipe: dict[str, Any] = yaml.safe_load(text) or {}
    prototypes = recipe.get("head", {}).get("prototypes")
    warnings = journal.read(folder / journal.WARNINGS)
    photographs, attention = _attention(folder / FOLDER)
    return Record(
        name=recipe.get("name", folder.resolve().name),
        recipe=text,
        outcomes=prototypes if isinstance(prototypes, int) else None,
        log=_columns(folder / journal.LOG),
        evaluations=_columns(folder / journal.EVALUATIONS),
        warnings=[(record["step"], record["message"]) for record in warnings],
        photographs=photographs,
        attention=attention,
    )


def _columns(path: Path) -> dict[str, Column]:
    columns: dict[str, list[float]] = {}
    rows = 0
    for record in journal.read(path):
        for key, value in record.items():
            column = columns.setdefault(key, [])
            column.extend([np.nan] * (rows - len(column)))
            column.append(value)
        rows += 1
    return {
        key: np.array(column + [np.nan] * (rows - len(column)), np.float64)
        for key, column in columns.items()
    }


def _attention(folder: Path) -> tuple[NDArray[np.uint8] | None, dict[int, NDArray[np.float32]]]:
    path = folder / f"{PHOTOGRAPHS}.npz"
    if not path.exists():
        return None, {}
    epochs = sorted(int(path.stem) for path in folder.glob("*.npz") if path.stem.isdecimal())
    return _array(path, "images"), {
        epoch: _array(folder / f"{epoch}.npz", "maps") for epoch in epochs
    }


def _array(path: Path, name: str) -> NDArray[Any]:
    with np.load(path) as file:
        array: NDArray[Any] = file[name]
    return array
