"""Records how a job ended, as a small JSON object that a scheduler reads.

A service that runs jobs reports that one failed, but the exit code at most within a line of text. Since the exit code
decides whether to retry, the job records it itself: `code` (encore.errors), `reason`, the message for the user, and
`remedy`. The outcome of a job that succeeded has code 0, and its warnings, if any, as the reason. If there is no
outcome, the driver was killed before it could write one.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from encore import interrupts
from encore.config import S3Config
from encore.errors import EncoreError
from encore.lake.filesystem import write_bytes
from encore.log import redact

log = structlog.get_logger("encore.runtime.outcome")


@dataclass(frozen=True)
class Outcome:
    """How a job ended: exit code, message (warnings, if it succeeded), and what to do (empty if unknown)."""

    code: int
    reason: str
    remedy: str


def read_outcome(text: str) -> Outcome | None:
    """Parse what `outcome_at` wrote; None if it is not such an object, for example if it was truncated."""
    try:
        found = json.loads(text)
        return Outcome(int(found["code"]), str(found["reason"]), str(found["remedy"]))
    except (ValueError, KeyError, TypeError):
        return None


@dataclass
class Warnings:
    """What a job that succeeded has to report, and what to do."""

    texts: list[str] = field(default_factory=list)
    remedy: str = ""


@contextmanager
def outcome_at(place: str | None, job: str, run_id: str | None) -> Iterator[Warnings]:
    """When the block ends, write how to `place`, a file or an object in S3. Writes nothing if `place` is None.

    Errors of the block are re-raised. If `place` cannot be written, this is only logged, so that it does not change how
    the job ends.
    """
    code, reason, remedy, warnings = 0, "", "", Warnings()
    try:
        yield warnings
        reason, remedy = "; ".join(warnings.texts), warnings.remedy if warnings.texts else ""
    except EncoreError as error:
        code, reason, remedy = error.exit_code, str(error), error.remedy or ""
        raise
    except KeyboardInterrupt as error:
        found = error if isinstance(error, interrupts.Interrupted) else interrupts.Interrupted(signal.SIGINT)
        code, reason = found.exit_code, str(found)
        raise
    except BaseException as error:
        first = next(iter(str(error).splitlines()), "")
        code, reason, remedy = 1, f"a defect: {type(error).__name__}: {first}", "the log has the stack trace"
        raise
    finally:
        if place is not None:
            # it has to fit into a message of at most 256 KB
            told = {"reason": redact(reason)[:2000], "remedy": remedy[:2000]}
            _write(place, json.dumps({"job": job, "run_id": run_id, "code": code, **told}))


def _write(place: str, text: str) -> None:
    try:
        # the configuration may be invalid, so endpoint and region come from the environment
        write_bytes(place, text.encode(), S3Config(endpoint=None, region=None, path_style=False))
    except EncoreError as error:
        log.warning("outcome_not_written", place=place, error=str(error))
