import io

from rich.console import Console

from training.progress import progress

RECORD = {
    "step": 41,
    "steps": 200,
    "epoch": 3,
    "loss": 4.25,
    "entropy": 2.5,
    "kl": 1.75,
    "deviation": 0.8125,
    "images_per_second": 47.31,
}


def shown(*records, warnings=(), terminal=True):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=80, color_system=None)
    with progress(console) as bar:
        for record in records:
            bar(record)
        for warning in warnings:
            bar.warn(*warning)
    return out.getvalue()


def last(text):
    """The two lines that stay, as one."""
    lines = text.splitlines()
    end = max(i for i, line in enumerate(lines) if "images/s" in line)
    return " ".join(" ".join(lines[end - 1 : end + 1]).split())


def test_the_last_step_is_shown_with_its_numbers_in_80_columns():
    text = last(shown({**RECORD, "step": 40}, {**RECORD, "step": 1041, "steps": 125100}))
    assert "epoch 3" in text
    assert "1041/125100" in text
    assert "loss 4.250, entropy 2.500, KL 1.750" in text
    assert "deviation 0.812, 47.3 images/s" in text
    assert "left" in text
    assert "…" not in text


def test_what_an_objective_does_not_measure_is_not_shown():
    record = {key: value for key, value in RECORD.items() if key not in ("entropy", "kl")}
    text = last(shown(record))
    assert "loss 4.250" in text
    assert "entropy" not in text
    assert "KL" not in text


def test_a_warning_stands_above_the_bar():
    text = shown(RECORD, warnings=[(41, "all images look alike [red]")])
    assert "warning after step 41: all images look alike [red]" in text
    assert text.rindex("warning after") < text.rindex("41/200")


def test_a_warning_is_said_also_where_there_is_no_terminal():
    assert "warning after step 1: collapsed" in shown(warnings=[(1, "collapsed")], terminal=False)
