"""The result of a check of the environment."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One result: what was checked, the fact found, and a remedy if something is wrong, else None.

    A `warning` is a problem that does not prevent jobs from running.
    """

    what: str
    fact: str
    remedy: str | None = None
    warning: bool = False
