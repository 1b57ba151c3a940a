"""The plots of a run, each with the words for those who do not see it."""

from __future__ import annotations

import base64
import io
import math
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from training.report.record import Column, Record

# Of Okabe and Ito, told apart by colour-blind eyes too.
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#aa4499"
STYLE: dict[Any, object] = {
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "foveal",  # the same run gives the same page
}
WIDE, NARROW = (5.6, 3.0), (3.7, 2.3)
POINTS = 400
EVALUATIONS = 7


class Picture(NamedTuple):
    """A plot.

    Attributes:
        source: A data: address.
        text: What it shows, in words and numbers.
    """

    source: str
    text: str


def style() -> AbstractContextManager[None]:
    """The look of all plots, which are to be drawn inside it."""
    return mpl.rc_context(STYLE)


def loss(run: Record) -> Picture:
    """The loss over the steps, with ln K where targets are distributions."""
    figure, axes = _figure(WIDE, "Loss", "step", "nats" if "entropy" in run.log else "")
    text = _curve(axes, run.log, "loss", BLUE, "loss")
    if run.outcomes and "entropy" in run.log:
        text += _level(axes, run.outcomes)
    return _svg(figure, text)


def targets(run: Record) -> Picture:
    """Entropy of the teacher's targets and KL from the student to them, between 0 and ln K."""
    figure, axes = _figure(WIDE, "Teacher: entropy of its targets, and KL", "step", "nats")
    text = _curve(axes, run.log, "entropy", GREEN, "entropy")
    text += _curve(axes, run.log, "kl", ORANGE, "KL of student and targets")
    if run.outcomes:
        text += _level(axes, run.outcomes)
    axes.set_ylim(bottom=0)
    figure.legend(ncols=3, loc="outside lower center")
    return _svg(figure, text)


def deviation(run: Record) -> Picture:
    """How much the embeddings differ from image to image."""
    figure, axes = _figure(
        WIDE, "Deviation of the embeddings", "step", "1: spread evenly, 0: all alike"
    )
    text = _curve(axes, run.log, "deviation", PURPLE, "deviation")
    axes.set_ylim(bottom=0)
    return _svg(figure, text)


def knn(run: Record) -> Picture:
    """k-NN accuracy at each evaluation."""
    figure, axes = _figure(WIDE, "k-NN accuracy", "epoch", "%")
    epochs, values = run.evaluations["epoch"], run.evaluations["knn"]
    axes.plot(epochs, values, color=BLUE, marker="o", markersize=4)
    best = int(np.nanargmax(values))
    axes.annotate(
        f"{values[best]:.1f}",
        (epochs[best], values[best]),
        xytext=(0, 6),
        textcoords="offset points",
        ha="center",
    )
    axes.margins(y=0.15)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    text = f"k-NN accuracy: best {values[best]:.2f} % at epoch {epochs[best]:.0f}"
    return _svg(figure, f"{text}, last {values[-1]:.2f} %. ")


def schedule(run: Record, key: str, title: str) -> Picture:
    """A schedule over the steps."""
    figure, axes = _figure(NARROW, title, "step", "")
    text = _curve(axes, run.log, key, BLUE, title)
    axes.ticklabel_format(axis="y", useOffset=False, scilimits=(-3, 4))
    return _svg(figure, text)


def attention(run: Record) -> Picture:
    """A row a photograph: itself, then the mean of its heads at up to 7 evaluations."""
    assert run.photographs is not None
    epochs = list(run.attention)
    picked = [
        epochs[i]
        for i in np.unique(np.linspace(0, len(epochs) - 1, EVALUATIONS).round()).astype(int)
    ]
    rows, columns = len(run.photographs), 1 + len(picked)
    figure = Figure(figsize=(1.3 * columns, 1.3 * rows + 0.3))
    grid = figure.subplots(rows, columns, squeeze=False)
    for row, photograph in enumerate(run.photographs):
        _image(grid[row][0], visible(photograph), "photograph" if row == 0 else "")
        for column, epoch in enumerate(picked, 1):
            title = f"epoch {epoch}" if row == 0 else ""
            _image(grid[row][column], run.attention[epoch][row].mean(axis=0), title)
    shown = ", ".join(map(str, picked))
    return _encoded(
        figure,
        "png",
        f"Attention of the last layer, mean of the heads, bright where the model looks: {rows} "
        f"photographs in rows, epochs {shown} in columns.",
    )


def visible(photograph: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[side, side, channels] -> RGB as it is, any other number of channels as their mean."""
    if photograph.shape[-1] == 3:
        return photograph
    return np.repeat(photograph.mean(axis=-1, keepdims=True), 3, axis=-1).astype(np.uint8)


def buckets(steps: Column, values: Column) -> tuple[Column, Column, Column, Column]:
    """At most POINTS points: the mean step of each bucket, and its mean, least and most value."""
    present = ~np.isnan(values)
    parts = min(POINTS, int(present.sum()))
    x = np.array_split(steps[present], parts)
    y = np.array_split(values[present], parts)
    mean, least, most = (np.array([f(part) for part in y]) for f in (np.mean, np.min, np.max))
    return np.array([np.mean(part) for part in x]), mean, least, most


def _figure(size: tuple[float, float], title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size)
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    return figure, axes


def _curve(axes: Axes, log: dict[str, Column], key: str, colour: str, label: str) -> str:
    """Draw a column's means within the range of its values; what it says in words."""
    if key not in log or np.isnan(log[key]).all():
        return f"{label}: not logged. "
    steps, mean, least, most = buckets(log["step"], log[key])
    marker = "o" if len(steps) == 1 else ""
    axes.fill_between(steps, least, most, color=colour, alpha=0.18, linewidth=0)
    axes.plot(steps, mean, color=colour, label=label, marker=marker)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    start, end = f"{mean[0]:.4g} at step {steps[0]:,.0f}", f"{mean[-1]:.4g} at {steps[-1]:,.0f}"
    return f"{label}: {start}, {end}, least {mean.min():.4g}, most {mean.max():.4g}. "


def _level(axes: Axes, outcomes: int) -> str:
    uniform = math.log(outcomes)
    label = f"ln {outcomes:,} = {uniform:.2f}"
    axes.axhline(uniform, color="#555555", linestyle="--", linewidth=1, label=label)
    axes.annotate(
        label,
        (1, uniform),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
        color="#555555",
        bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0},
    )
    return f"The dashed line is {label}, that of a uniform distribution. "


def _image(axes: Axes, image: NDArray[np.generic], title: str) -> None:
    axes.imshow(image, cmap="inferno", interpolation="nearest")
    axes.set_title(title, fontsize=9, fontweight="normal", loc="center")
    axes.set_axis_off()


def _svg(figure: Figure, text: str) -> Picture:
    return _encoded(figure, "svg", text)


def _encoded(figure: Figure, form: str, text: str) -> Picture:
    out = io.BytesIO()
    kind = "svg+xml" if form == "svg" else form
    metadata = {"Date": None} if form == "svg" else None
    figure.savefig(out, format=form, dpi=130, metadata=metadata)
    data = base64.b64encode(out.getvalue()).decode()
    return Picture(f"data:image/{kind};base64,{data}", text.strip())
