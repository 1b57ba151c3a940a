"""The log: one line an event on standard error, as text or as JSON, with the request's id."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

from service.telemetry.record import current

OURS = ("service", "foveal")
# They tell of what is wrong with a request's body, and so does its answer.
UNHEARD = ("PIL", "python_multipart")


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s%(request)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        request = current.get()
        record.request = f" [{request.id}]" if request else ""
        return super().format(record)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request := current.get():
            entry["request_id"] = request.id
            if request.trace:
                entry["trace_id"] = request.trace
        entry |= getattr(record, "fields", {})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(entry, default=str).decode()


def configure(form: Literal["text", "json"], level: str) -> None:
    """Write the log of this process to standard error; of libraries only what they warn of.

    A record's `fields` (`logger.info(..., extra={"fields": {...}})`) are members of its JSON.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if form == "json" else _Text())
    ours = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(handlers=[handler], level=max(ours, logging.WARNING), force=True)
    for name in OURS:
        logging.getLogger(name).setLevel(ours)
    # What is no HTTP is counted, and in the access log if there is one: with a warning for each,
    # strangers could fill this log.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    for name in UNHEARD:
        logging.getLogger(name).setLevel(logging.CRITICAL)
