"""What a scenario found: a JSON file, and a table of all scenarios for people."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.serving import environment

FOLDER = Path(__file__).parents[1] / "results"
OURS = ("onnxruntime", "openvino", "uvicorn", "fastapi", "pillow")
THEIRS = ("mosec", "litserve", "bentoml", "ray", "nvidia-pytriton", "onnxruntime")

Figures = Mapping[str, float | int | str | None]


def write(scenario: str, what: str, table: Mapping[str, Figures], **more: Any) -> None:
    """Write `results/serving-SCENARIO.json` and print its table.

    Args:
        scenario: Its name, which is also its command.
        what: What was measured, in words.
        table: Figures of each side.
        more: Targets, rounds and whatever else there is to tell.
    """
    result = {
        "what": what,
        "command": f"python -m benchmarks.serving {scenario}",
        "table": table,
        **more,
        "machine": describe(*OURS),
        "peers": environment.versions(*THEIRS),
    }
    FOLDER.mkdir(exist_ok=True)
    path(scenario).write_text(json.dumps(result, indent=2) + "\n")
    print(markdown(what, table, more.get("targets", ())))


def path(scenario: str) -> Path:
    """Where a scenario's result lies."""
    return FOLDER / f"serving-{scenario}.json"


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each figure over the rounds."""
    return {name: rounded(statistics.median(r[name] for r in rounds)) for name in rounds[0]}


def rounded(value: float) -> float:
    """Four digits, which is more than any figure here is good for."""
    return float(f"{value:.4g}")


def target(
    what: str, values: Iterable[float], *, least: float | None = None, most: float | None = None
) -> dict[str, Any]:
    """One of the issue's targets: the median over the rounds, and whether it is met."""
    rounds = [rounded(value) for value in values]
    found = statistics.median(rounds)
    met = found >= least if least is not None else most is not None and found <= most
    bound = f"at least {least}" if least is not None else f"at most {most}"
    return {"what": what, "target": bound, "found": found, "met": met, "rounds": rounds}


def markdown(what: str, table: Mapping[str, Figures], targets: Sequence[Figures]) -> str:
    """A scenario as two tables."""
    columns = [*dict.fromkeys(name for figures in table.values() for name in figures)]
    rows = [
        f"{what}\n",
        "| | " + " | ".join(columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for side, figures in table.items():
        cells = ("" if figures.get(c) is None else str(figures[c]) for c in columns)
        rows.append(f"| {side} | " + " | ".join(cells) + " |")
    if targets:
        rows += ["", "| | target | found | |", "|---|---|---|---|"]
        rows += [
            f"| {t['what']} | {t['target']} | {t['found']} | {'met' if t['met'] else 'missed'} |"
            for t in targets
        ]
    return "\n".join([*rows, ""])


def report() -> None:
    """Write `results/serving.md` out of all the results, and the plot of the speeds."""
    parts = ["# The gateway beside its peers\n"]
    for found in sorted(FOLDER.glob("serving-*.json")):
        result = json.loads(found.read_text())
        title = found.stem.removeprefix("serving-")
        machine = result["machine"]
        parts += [
            f"## {title}\n",
            markdown(result["what"], result["table"], result.get("targets", ())),
            f"`{result['command']}` on {machine['cores']} cores of {machine['processor']}.\n",
        ]
    (FOLDER / "serving.md").write_text("\n".join(parts))
    plot(FOLDER / "serving.svg")


def plot(file: Path) -> None:
    """Images a second of every side, over the bare loop's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, (scenario, column, title) in zip(
        figure.subplots(1, 2),
        (
            ("throughput", "images/s, 16", "ViT-S/16, 16 connections"),
            ("null", "images/s, 16", "Near-null model, 16 connections"),
        ),
        strict=True,
    ):
        table = json.loads(path(scenario).read_text())["table"]
        names = [*table][::-1]
        colors = ["tab:blue" if n.startswith("foveal") else "tab:gray" for n in names]
        axes.barh(names, [table[name][column] for name in names], color=colors)
        axes.set(xlabel="images/s", title=title)
    figure.savefig(file)
