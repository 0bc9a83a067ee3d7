"""Expected failures: each error has a one-sentence message, a remedy and an exit code.

Exit codes are part of the interface; a scheduler uses them to decide whether to retry:

| code | meaning | try again? |
|---|---|---|
| 0 | done, or nothing to do | |
| 1 | a defect in Encore (a stack trace is printed) | no |
| 2 | wrong usage or configuration | no |
| 3 | bad input | no |
| 4 | something that Encore needs is missing: Java, jars, memory, disk space, credentials | no |
| 5 | a lake error: wrong schema, read-only, a write that violates a table's declaration | no |
| 75 | a transient failure: throttling, a service that does not respond | yes |
| 130 | interrupted (Ctrl-C, SIGINT) | no |
| 143 | terminated (SIGTERM), for example by a scheduler that reclaims the machine | yes |
"""

from __future__ import annotations

from typing import Any


class EncoreError(Exception):
    """An expected failure. `str(error)` is the message; `remedy` says what to do, if known."""

    exit_code = 1

    def __init__(self, sentence: str, *, remedy: str | None = None) -> None:
        super().__init__(sentence)
        self.remedy = remedy

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle all attributes, whatever the signature of __init__: workers send their errors to the driver."""
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[EncoreError], args: tuple[Any, ...], state: dict[str, Any]) -> EncoreError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigError(EncoreError):
    """A setting or an argument is unknown, of the wrong type or out of range."""

    exit_code = 2


class InputError(EncoreError):
    """The input data is missing or malformed."""

    exit_code = 3


class EnvironmentMissing(EncoreError):
    """Something external that Encore needs is missing: Java, jars, memory, disk space, credentials."""

    exit_code = 4


class LakeError(EncoreError):
    """The lake cannot be read or written, or its tables do not match their declarations."""

    exit_code = 5


class WriteRefused(LakeError):
    """The rows violate their table's declaration. `differences` lists every violation; nothing was written."""

    def __init__(self, table: str, differences: list[str]) -> None:
        super().__init__(f"{table}: {len(differences)} difference(s) from its declaration: " + "; ".join(differences))
        self.table = table
        self.differences = differences


class TransientError(EncoreError):
    """A failure that a retry may resolve: throttling, a service that does not respond."""

    exit_code = 75
