"""One self-contained HTML page: how the run went, what it was told to do, what it looks at."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path

import numpy as np

from training.report import plots
from training.report.plots import Picture
from training.report.record import Record, read

REPORT = "report.html"
SCHEDULES = {
    "lr": "Learning rate",
    "weight_decay": "Weight decay",
    "momentum": "Teacher's momentum",
    "temperature": "Teacher's temperature",
}
FIGURES = {
    "loss": "loss",
    "entropy": "entropy, nats",
    "kl": "KL, nats",
    "deviation": "deviation",
}
# Steps that a figure at the top is averaged over.
LAST = 100

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light; }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; background: #f6f6f4; margin: 0 auto;
  max-width: 76rem; padding: 1.5rem; }}
h1 {{ margin: 0; }}
h2 {{ margin: 2rem 0 0.75rem; font-size: 1.2rem; }}
dl {{ display: flex; flex-wrap: wrap; gap: 0.75rem; margin: 1rem 0; }}
dl div, figure, pre, table {{ background: #fff; border: 1px solid #ddd; border-radius: 8px; }}
dl div {{ padding: 0.5rem 1rem; display: flex; flex-direction: column-reverse; }}
dt {{ color: #555; font-size: 0.85rem; }}
dd {{ margin: 0; font-size: 1.3rem; font-variant-numeric: tabular-nums; }}
.plots {{ display: grid; gap: 0.75rem;
  grid-template-columns: repeat(auto-fit, minmax(30rem, 1fr)); }}
.small {{ grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); }}
figure {{ margin: 0; padding: 0.5rem; overflow-x: auto; }}
figure img {{ display: block; width: 100%; height: auto; }}
.attention img {{ width: auto; max-width: 100%; }}
.warnings {{ background: #fff4e5; border: 1px solid #d55e00; border-radius: 8px;
  margin: 0; padding: 0.75rem 1rem 0.75rem 2rem; }}
.healthy {{ background: #e8f5ef; border: 1px solid #009e73; border-radius: 8px; margin: 0;
  padding: 0.75rem 1rem; }}
pre {{ padding: 1rem; overflow-x: auto; margin: 0; font-size: 0.9rem; }}
details {{ margin-top: 0.75rem; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: 0.2rem 1rem; text-align: right; font-variant-numeric: tabular-nums; }}
@media (max-width: 34rem) {{ .plots {{ grid-template-columns: 1fr; }} }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def write_report(run_folder: Path) -> Path:
    """Write `report.html` into a run's folder, whether the run is finished or not.

    Returns:
        Path of the page.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    run = read(run_folder)
    with plots.style():
        page = PAGE.format(title=escape(run.name), body="\n".join(_body(run)))
    path = run_folder / REPORT
    path.write_text(page, encoding="utf-8")
    return path


def _body(run: Record) -> Iterator[str]:
    if "step" not in run.log:
        yield "<p>Nothing was logged: the run has not finished its first step.</p>"
    else:
        yield _summary(run)
        yield _warnings(run)
        yield "<h2>Learning</h2>"
        yield _figures([plots.loss(run), *_targets(run), plots.deviation(run), *_knn(run)])
        if "knn" in run.evaluations:
            yield _table(run)
        else:
            yield "<p>No evaluation was logged yet, so there is no k-NN accuracy.</p>"
        yield "<h2>Schedules</h2>"
        logged = [plots.schedule(run, *item) for item in SCHEDULES.items() if item[0] in run.log]
        yield _figures(logged, "small")
    if run.attention:
        yield "<h2>Attention to fixed photographs</h2>"
        yield f'<div class="attention">{_figure(plots.attention(run))}</div>'
    if run.recipe:
        yield f"<h2>Recipe</h2>\n<pre>{escape(run.recipe)}</pre>"


def _targets(run: Record) -> list[Picture]:
    return [plots.targets(run)] if "entropy" in run.log else []


def _knn(run: Record) -> list[Picture]:
    return [plots.knn(run)] if "knn" in run.evaluations else []


def _summary(run: Record) -> str:
    log = run.log
    done, steps = log["step"][-1], log["steps"][-1]
    figures = {f"of {steps:,.0f} steps": f"{done:,.0f}"}
    if "knn" in run.evaluations:
        figures["best k-NN"] = f"{np.nanmax(run.evaluations['knn']):.1f} %"
    for key, title in FIGURES.items():
        if key in log:
            figures[title] = f"{np.nanmean(log[key][-LAST:]):.3f}"
    figures["images/s, median"] = f"{np.nanmedian(log['images_per_second']):,.1f}"
    items = (f"<div><dt>{title}</dt><dd>{value}</dd></div>" for title, value in figures.items())
    return (
        f"<p>{'Finished' if done == steps else 'Not finished'}; loss and measures are means of the "
        f"last {min(LAST, len(log['step']))} steps.</p>\n<dl>{''.join(items)}</dl>"
    )


def _warnings(run: Record) -> str:
    if not run.warnings:
        return '<p class="healthy">The collapse monitor has warned of nothing.</p>'
    items = "".join(
        f"<li>After step {step:,}: {escape(message)}.</li>" for step, message in run.warnings
    )
    return f'<h2>Warnings</h2>\n<ul class="warnings">{items}</ul>'


def _table(run: Record) -> str:
    columns = run.evaluations
    rows = "".join(
        f"<tr><td>{epoch:.0f}</td><td>{step:,.0f}</td><td>{knn:.2f}</td></tr>"
        for epoch, step, knn in zip(columns["epoch"], columns["step"], columns["knn"], strict=True)
    )
    head = (
        '<tr><th scope="col">epoch</th><th scope="col">step</th><th scope="col">k-NN, %</th></tr>'
    )
    return (
        f"<details><summary>Evaluations as a table</summary>\n<table><thead>{head}</thead>"
        f"<tbody>{rows}</tbody></table></details>"
    )


def _figures(pictures: list[Picture], size: str = "") -> str:
    return f'<div class="plots {size}">{"".join(map(_figure, pictures))}</div>'


def _figure(picture: Picture) -> str:
    return f'<figure><img src="{picture.source}" alt="{escape(picture.text)}"></figure>'
