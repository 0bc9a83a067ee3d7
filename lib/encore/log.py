"""Structured logs on standard error: quiet by default, JSON lines unless it is a terminal, secrets redacted."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from encore.config import LogConfig

_SECRET_NAME = re.compile(
    r"secret|password|passwd|token|credential|authorization|(access|api|private)[._-]?key", re.IGNORECASE
)
# a password may contain an @, but the path starts at the first /
_SECRET_IN_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)[^/?#\s:@\"']*:[^/?#\s\"']*@", re.IGNORECASE)


def redact(value: Any) -> Any:
    """A copy of a value with credentials removed: user and password in URLs, and fields whose names suggest a secret.

    Numbers, booleans and None are unchanged; mappings and lists are redacted recursively; anything else becomes a
    string.
    """
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {name: "***" if is_secret_name(str(name)) else redact(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [redact(inner) for inner in value]
    return _SECRET_IN_URL.sub(r"\g<scheme>***@", str(value))


def is_secret_name(name: str) -> bool:
    """Whether the name of a setting or field suggests that it holds a secret."""
    return bool(_SECRET_NAME.search(name))


def _redact_all(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    redacted: EventDict = redact(event)
    return redacted


def configure_logging(config: LogConfig) -> None:
    """Write the log records of structlog and of the standard library to standard error in the same format."""
    level = getattr(logging, config.level.upper())
    is_terminal = sys.stderr.isatty()
    text = config.format == "text" or (config.format == "auto" and is_terminal)
    last: Processor = (
        structlog.dev.ConsoleRenderer(colors=is_terminal) if text else structlog.processors.JSONRenderer(default=str)
    )
    about: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*about, _redact_all, last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*about, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _redact_all, last],
        )
    )
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)
    for noisy in ("py4j", "mlflow", "alembic", "matplotlib", "botocore", "urllib3", "pyspark"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
