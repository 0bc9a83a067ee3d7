"""The result of a job."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class JobResult:
    """The result of a job: `status` (done or up_to_date), seconds, rows of each table that it wrote, facts and cost.

    For `quarantine`, which several jobs write, `rows` counts the records that this run rejected.
    """

    name: str
    status: str
    seconds: float
    rows: dict[str, int]
    facts: dict[str, Any]
    cost: dict[str, Any] = field(default_factory=dict)
