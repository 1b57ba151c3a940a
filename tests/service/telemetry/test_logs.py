import json
import logging
from collections.abc import Iterator

import pytest

from service.telemetry import logs
from service.telemetry.record import Record, current


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in (*logs.OURS, *logs.UNHEARD):
        logging.getLogger(name).setLevel(logging.NOTSET)


def test_json_has_one_object_a_line_with_the_request_and_the_fields(
    capsys: pytest.CaptureFixture,
) -> None:
    logs.configure("json", "info")
    logger = logging.getLogger("service.somewhere")
    token = current.set(Record("abc", trace="0af7"))
    try:
        raise RuntimeError("two\nlines")
    except RuntimeError:
        logger.exception("it %s", "failed", extra={"fields": {"status": 500}})
    current.reset(token)
    logger.info("later")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first["request_id"] == "abc"
    assert first["trace_id"] == "0af7"
    assert first["level"] == "error"
    assert first["logger"] == "service.somewhere"
    assert first["message"] == "it failed"
    assert first["status"] == 500
    assert "RuntimeError: two\nlines" in first["exception"]
    assert first["time"].endswith("+00:00")
    assert "request_id" not in second


def test_text_names_the_request(capsys: pytest.CaptureFixture) -> None:
    logs.configure("text", "info")
    token = current.set(Record("abc"))
    logging.getLogger("service.somewhere").warning("it happened")
    current.reset(token)
    assert "WARNING service.somewhere [abc]: it happened" in capsys.readouterr().err


def test_the_level_is_ours_and_libraries_are_heard_when_they_warn(
    capsys: pytest.CaptureFixture,
) -> None:
    logs.configure("text", "info")
    for name in ("service.somewhere", "library"):
        for level in (logging.DEBUG, logging.INFO, logging.WARNING):
            logging.getLogger(name).log(level, "%s says %d", name, level)
    told = [line.split(": ")[-1] for line in capsys.readouterr().err.splitlines()]
    assert told == ["service.somewhere says 20", "service.somewhere says 30", "library says 30"]
    logs.configure("text", "error")
    logging.getLogger("library").warning("unheard")
    assert not capsys.readouterr().err
