"""What a check of the surroundings found: a fact, and a remedy where something is wrong."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `remedy` is None where it is well; a `warning` does not keep jobs from running."""

    what: str
    fact: str
    remedy: str | None = None
    warning: bool = False
