"""Structured logs on standard error: quiet by default, JSON lines where no terminal reads them, and no secrets."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from encore.config import LogConfig

_SECRET_NAME = re.compile(r"secret|password|passwd|token|credential|authorization|access_key", re.IGNORECASE)
_SECRET_IN_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)[^/@\s:]+:[^/@\s]+@", re.IGNORECASE)


def redact(value: Any) -> Any:
    """A value without the user and password that a URL in it may carry."""
    return _SECRET_IN_URL.sub(r"\g<scheme>***@", value) if isinstance(value, str) else value


def is_secret_name(name: str) -> bool:
    """Whether a setting or a field of that name is taken to hold a secret."""
    return bool(_SECRET_NAME.search(name))


def _redact_all(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {name: "***" if is_secret_name(name) else redact(value) for name, value in event.items()}


def configure_logging(config: LogConfig) -> None:
    """Send structlog's and the standard library's records to standard error in one form."""
    level = getattr(logging, config.level.upper())
    text = config.format == "text" or (config.format == "auto" and sys.stderr.isatty())
    last: Processor = structlog.dev.ConsoleRenderer() if text else structlog.processors.JSONRenderer(default=str)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _redact_all,
            last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=max(level, logging.WARNING), stream=sys.stderr, format="%(message)s", force=True)
    for noisy in ("py4j", "mlflow", "alembic", "matplotlib", "botocore", "urllib3", "pyspark"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
