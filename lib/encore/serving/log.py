"""Structured logs of the container, by the standard library alone: one JSON object a line on standard error."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

import orjson


class _Json(logging.Formatter):
    """A record as JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        about = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        if record.exc_info:
            about["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(about).decode()


def configure(level: int = logging.WARNING) -> None:
    """Log from a level up; the scorer's own messages about its life from INFO up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("encore.serving").setLevel(min(level, logging.INFO))
