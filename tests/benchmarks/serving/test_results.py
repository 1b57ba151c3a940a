from benchmarks.serving.results import markdown, medians, target


def test_a_target_is_met_by_the_median_of_its_rounds():
    assert target("speed", [0.9, 1.1, 1.2], least=1.0)["met"]
    assert not target("speed", [0.9, 0.95, 1.2], least=1.0)["met"]
    assert target("time", [0.9, 0.95, 1.2], most=1.0)["met"]
    assert not target("time", [0.9, 1.1, 1.2], most=1.0)["met"]
    assert target("failures", [0], most=0)["met"]


def test_medians_are_of_each_figure():
    rounds = [{"a": 1.0, "b": 30.0}, {"a": 3.0, "b": 10.0}, {"a": 2.0, "b": 20.0}]
    assert medians(rounds) == {"a": 2.0, "b": 20.0}


def test_a_table_has_a_column_for_each_figure_of_any_side():
    text = markdown("Speed", {"one": {"a": 1.5}, "two": {"a": 2.5, "b": 3.5}}, ())
    assert "| | a | b |" in text
    assert "| one | 1.5 |  |" in text
    assert "| two | 2.5 | 3.5 |" in text
