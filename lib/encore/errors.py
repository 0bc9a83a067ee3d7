"""What can go wrong on purpose: each error is one sentence, a remedy and an exit code.

Exit codes are part of the interface; a scheduler decides by them whether to try again:

| code | meaning | try again? |
|---|---|---|
| 0 | done, or nothing to do | |
| 1 | a defect in Encore (a stack trace is printed) | no |
| 2 | wrong usage or configuration | no |
| 3 | bad input | no |
| 4 | something that Encore needs is missing: Java, jars, memory, disk space, credentials | no |
| 5 | the lake refuses: another schema, read-only, a write that breaks a table's declaration | no |
| 75 | a transient failure: throttling, a service that does not answer | yes |
| 130 | interrupted (Ctrl-C, SIGINT) | no |
| 143 | terminated (SIGTERM), as by a scheduler that takes its machine back | yes |
"""

from __future__ import annotations

from typing import Any


class EncoreError(Exception):
    """An expected failure. `str(error)` is the sentence; `remedy` says what to do, where that is known."""

    exit_code = 1

    def __init__(self, sentence: str, *, remedy: str | None = None) -> None:
        super().__init__(sentence)
        self.remedy = remedy

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled with all that it holds, whatever its __init__ takes: workers send their errors to the driver."""
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
    """The data given to Encore is missing or not of a shape that it can use."""

    exit_code = 3


class EnvironmentMissing(EncoreError):
    """A thing outside Encore that it needs is not there: Java, jars, memory, credentials."""

    exit_code = 4


class LakeError(EncoreError):
    """The lake cannot be read or written, or holds tables of another declaration."""

    exit_code = 5


class WriteRefused(LakeError):
    """Rows that break the declaration of their table. `differences` lists every one; nothing was written."""

    def __init__(self, table: str, differences: list[str]) -> None:
        super().__init__(f"{table}: {len(differences)} difference(s) from its declaration: " + "; ".join(differences))
        self.table = table
        self.differences = differences


class TransientError(EncoreError):
    """Something that may work on the next try: throttling, a service that does not answer."""

    exit_code = 75
