"""Structured logs on standard error: quiet by default, JSON lines where no terminal reads them, and no secrets."""

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
# a password may hold an @, but a path begins at the first /
_SECRET_IN_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)[^/?#\s:@\"']*:[^/?#\s\"']*@", re.IGNORECASE)


def redact(value: Any) -> Any:
    """A value without the user and password that URLs in it may carry, and without what is named as a secret.

    Numbers, booleans and null stay; mappings and lists are gone through; of anything else its text is taken.
    """
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {name: "***" if is_secret_name(str(name)) else redact(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [redact(inner) for inner in value]
    return _SECRET_IN_URL.sub(r"\g<scheme>***@", str(value))


def is_secret_name(name: str) -> bool:
    """Whether a setting or a field of that name is taken to hold a secret."""
    return bool(_SECRET_NAME.search(name))


def _redact_all(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    redacted: EventDict = redact(event)
    return redacted


def configure_logging(config: LogConfig) -> None:
    """Send structlog's and the standard library's records to standard error in one form."""
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
