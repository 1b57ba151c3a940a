import io

from rich.console import Console

from training.progress import PERIOD, Lines, progress

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


def lines(*told):
    """What a log holds after steps, each told at a time."""
    clock = iter([now for now, _ in told])
    out = io.StringIO()
    log = Lines(Console(file=out, width=80), clock=lambda: next(clock))
    for _, step in told:
        log(RECORD | {"step": step})
    return out.getvalue().splitlines()


def test_a_log_gets_one_line_a_minute_and_one_of_the_last_step():
    told = [(0, 1), (1, 2), (PERIOD - 1, 40), (PERIOD, 41), (PERIOD + 1, 42), (PERIOD + 2, 200)]
    shown = lines(*told)
    assert [line.split(", ")[1] for line in shown] == ["step 1/200", "step 41/200", "step 200/200"]
    assert "epoch 3, step 41/200, loss 4.250, entropy 2.500, KL 1.750, deviation 0.812" in shown[1]


def test_a_log_tells_the_time_that_is_left_by_the_steps_of_this_process():
    first, second = lines((100, 50), (100 + PERIOD, 100))
    assert "left" not in first
    assert second.endswith("left 0:02:00")  # 50 steps took a minute, 100 are left


def test_where_there_is_no_terminal_lines_are_whole_and_bare():
    shown_there = shown(RECORD, terminal=False)
    assert shown_there.count("\n") == 1
    assert "\x1b" not in shown_there


def test_a_warning_is_said_also_where_there_is_no_terminal():
    assert "warning after step 1: collapsed" in shown(warnings=[(1, "collapsed")], terminal=False)
