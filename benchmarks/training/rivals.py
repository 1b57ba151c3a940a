"""The nine rows of DINO's Table 7 in miniature, three seeds each.

    python -m benchmarks.training.rivals DATA/fashion_mnist.npz
    python -m benchmarks.training.rivals DATA/cifar10 --recipe cifar10-vitt4 --device cuda --jobs 1

Every row is `foveal-train run RECIPE` with the overrides below: the same network, images, epochs,
learning rate and head; what the authors set otherwise for the rivals (contrast temperature 0.1, no
clipping) is set here, too. On a processor there is one process a core, of one thread. An
interrupted run of this command goes on where it stopped. Writes rivals-RECIPE.json, .md and .svg.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import machine
from training.assessment import splits
from training.config import Recipe
from training.observer import monitor

RESULTS = Path(__file__).parents[1] / "results"
SEEDS = (0, 1, 2)
WITHOUT_MULTI_CROP = ("crops.local_count=0", "crops.global_scale=[0.14,1]")
RIVAL = ("optimizer.clip_grad=null",)
# Their default, which an objective without prototypes takes for none.
WITHOUT_PROTOTYPES = ("head.prototypes=65536",)


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        number: In the paper's table.
        method: What it is called there.
        published: k-NN accuracy in percent, ViT-S/16 on ImageNet, 300 epochs.
        overrides: What it differs by.
    """

    number: int
    method: str
    published: float
    overrides: tuple[str, ...]


ROWS = (
    Row(1, "DINO", 72.8, ()),
    Row(2, "without momentum", 0.1, ("teacher.follows=student_copy",)),
    Row(3, "with Sinkhorn-Knopp", 72.2, ("objective.targets=sinkhorn",)),
    Row(4, "without multi-crop", 67.9, WITHOUT_MULTI_CROP),
    Row(5, "MSE for cross-entropy", 52.6, ("objective.loss=mse",)),
    Row(6, "with predictor", 71.8, ("objective.predictor=true",)),
    Row(
        7,
        "BYOL",
        66.6,
        ("objective={name: byol}", *WITHOUT_PROTOTYPES, *RIVAL, *WITHOUT_MULTI_CROP),
    ),
    Row(
        8,
        "MoCo-v2",
        62.0,
        (
            "objective={name: moco, temperature: 0.1, queue: 4096}",
            *WITHOUT_PROTOTYPES,
            *RIVAL,
            *WITHOUT_MULTI_CROP,
        ),
    ),
    Row(9, "SwAV", 64.7, ("objective={name: swav}", "teacher=null", *RIVAL)),
)


def main() -> None:
    """Train what is not trained yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="an .npz file, or a folder with train/ and test/")
    parser.add_argument("--recipe", default="fashion-vitn4")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/rivals"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    arguments = parser.parse_args()
    jobs = [(row, seed) for seed in arguments.seeds for row in ROWS]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        runs = list(pool.map(lambda job: train(*job, arguments), jobs))
    table = [
        summary(row, [run for (r, _), run in zip(jobs, runs, strict=True) if r is row])
        for row in ROWS
    ]
    result = {"machine": machine.describe("torch", "numpy"), "rows": table}
    results = arguments.results / f"rivals-{arguments.recipe}"
    results.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    results.with_suffix(".md").write_text(markdown(table))
    plot(table, arguments.out, results.with_suffix(".svg"))
    print(markdown(table))


def train(row: Row, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run, to its end; what it came to."""
    folder = arguments.out / f"{row.number}-{seed}"
    done = folder / "report.html"
    if not done.exists():
        images, held_out = splits(arguments.data)
        command = [sys.executable, "-m", "training.cli", "run", arguments.recipe]
        command += [f"data={images}", f"evaluation.data={held_out}", f"seed={seed}"]
        command += [*row.overrides, "--out", str(folder), "--device", arguments.device]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "console.txt").open("a") as console:
            subprocess.run(
                command,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=console,
                stderr=console,
                check=True,
            )
    log, evaluations = lines(folder / "log.jsonl"), lines(folder / "evaluations.jsonl")
    print(f"row {row.number}, seed {seed}: {evaluations[-1]['knn']:.2f} %", flush=True)
    return {
        "seed": seed,
        "knn": evaluations[-1]["knn"],
        "curve": [[e["epoch"] + 1, e["knn"]] for e in evaluations],
        "deviation": log[-1]["deviation"],
        "warnings": warnings(folder / "recipe.yaml", log),
    }


def warnings(recipe: Path, log: list[dict[str, Any]]) -> list[str]:
    """What the monitor says of a run as it is now, whatever it was when the run was done."""
    loaded = Recipe.load(str(recipe))
    outcomes = loaded.head.prototypes if "entropy" in log[0] else None
    watching = monitor(loaded, outcomes, log[-1]["steps"] // loaded.epochs)
    return [
        f"step {record['step']}: {message}"
        for record in log
        for message in watching.watch(record["step"], record["loss"], record)
    ]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def summary(row: Row, runs: list[dict[str, Any]]) -> dict[str, Any]:
    figures = [run["knn"] for run in runs]
    return {
        "row": row.number,
        "method": row.method,
        "published": row.published,
        "mean": statistics.mean(figures),
        "spread": statistics.stdev(figures) if len(figures) > 1 else 0.0,
        "overrides": row.overrides,
        "runs": runs,
    }


def markdown(table: list[dict[str, Any]]) -> str:
    """The table, and the pairs of rows whose order differs from the paper's."""
    out = [
        "| row | method | k-NN here, % (mean ± deviation of the seeds) | k-NN in the paper, % | "
        "monitor |",
        "|---|---|---|---|---|",
    ]
    for row in table:
        warned = sum(bool(run["warnings"]) for run in row["runs"])
        out.append(
            f"| {row['row']} | {row['method']} | {row['mean']:.1f} ± {row['spread']:.1f} "
            f"| {row['published']:.1f} | warned in {warned} of {len(row['runs'])} runs |"
        )
    agree, disagree, open_ = compare(table)
    out += [
        "",
        f"Of {len(agree) + len(disagree) + len(open_)} pairs of rows, {len(agree)} stand in the "
        f"paper's order by more than the seeds' spread, {len(disagree)} in the opposite order, and "
        f"{len(open_)} are closer than the spread.",
        "",
        "Opposite: " + ("; ".join(disagree) or "none") + ".",
        "",
        "Closer than the spread: " + ("; ".join(open_) or "none") + ".",
        "",
    ]
    return "\n".join(out)


def compare(table: list[dict[str, Any]]) -> tuple[list[str], list[str], list[str]]:
    """Pairs in the paper's order, in the opposite one, and closer than both spreads together."""
    agree, disagree, open_ = [], [], []
    for i, one in enumerate(table):
        for two in table[i + 1 :]:
            name = f"{one['method']} and {two['method']}"
            difference = one["mean"] - two["mean"]
            if abs(difference) <= one["spread"] + two["spread"]:
                open_.append(name)
            elif difference * (one["published"] - two["published"]) > 0:
                agree.append(name)
            else:
                disagree.append(name)
    return agree, disagree, open_


def plot(table: list[dict[str, Any]], out: Path, path: Path) -> None:
    """k-NN and deviation over the epochs, a line a row, the seeds' range as a band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    accuracy, spread = figure.subplots(1, 2)
    for row in table:
        label = f"{row['row']} {row['method']}"
        epochs = [epoch for epoch, _ in row["runs"][0]["curve"]]
        curves = list(zip(*([knn for _, knn in run["curve"]] for run in row["runs"]), strict=True))
        (line,) = accuracy.plot(epochs, [statistics.mean(c) for c in curves], label=label)
        color = line.get_color()
        accuracy.fill_between(
            epochs, [min(c) for c in curves], [max(c) for c in curves], color=color, alpha=0.2
        )
        log = lines(out / f"{row['row']}-{row['runs'][0]['seed']}" / "log.jsonl")[::10]
        spread.plot([r["step"] for r in log], [r["deviation"] for r in log], color=color)
    accuracy.set(xlabel="epoch", ylabel="20-NN top-1, %", title="k-NN, mean and range of the seeds")
    spread.set(xlabel="step", ylabel="deviation", title="Deviation of the embeddings, first seed")
    accuracy.legend(fontsize="small")
    figure.savefig(path)


if __name__ == "__main__":
    main()
