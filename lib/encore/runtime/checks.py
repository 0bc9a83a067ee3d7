"""Checks what the tables contain against expectations (encore.lake.expectations), and records it in `checks`.

A breach of severity `fail` fails the job, so that nothing is made of the tables; one of severity `warn` is only told.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any

import pyarrow as pa

from encore.errors import InputError
from encore.lake.expectations import EXPECTATIONS, Expectation, good_rows, judged, sentence
from encore.lake.scan import KeyIn, KeyRange
from encore.lake.tables import CHECKS, JOB_RUNS, Table, arrow_schema
from encore.runtime.context import JobContext
from encore.runtime.fingerprint import digest


def settings_digest(ctx: JobContext) -> str:
    """A digest of the settings of the job's expectations, but not of what is accepted.

    Accepting a breach is no setting that the result depends on: the next run, without it, has nothing to do.
    """
    return digest({one.name: ctx.config.check.expect[one.name].model_dump() for one in _expectations(ctx)})


def _expectations(ctx: JobContext) -> list[Expectation]:
    return [
        one for one in EXPECTATIONS if one.job == ctx.name and ctx.config.check.expect[one.name].severity != "ignore"
    ]


def run_checks(ctx: JobContext) -> None:
    """Write the job's rows of `checks`, and raise InputError if an expectation of severity `fail` is not met."""
    settings = ctx.config.check
    history = [row for row in _history(ctx) if row["run_id"] != ctx.run_id]
    good = good_rows(history)
    lake, now = _LakeReader(ctx, good[-1]["at"] if good else None), datetime.now(UTC)
    rows: list[dict[str, Any]] = []
    for one in _expectations(ctx):
        own = settings.expect[one.name]
        for subject, measured in one.measure(lake).items():
            told = judged(one, subject, measured, good, bound=own.bound, severity=own.severity, accept=settings.accept)
            rows.append({**told, "run_id": ctx.run_id, "job": ctx.name, "at": now})
    table = pa.Table.from_pylist(rows, schema=arrow_schema(CHECKS))
    ctx.write(CHECKS, [table], KeyIn("run_id", pa.array([ctx.run_id]), (("job", ctx.name),)))
    found = {verdict: [row for row in rows if row["verdict"] == verdict] for verdict in ("warn", "fail", "accepted")}
    ctx.facts |= {"checked": len(rows), **{name: len(own) for name, own in found.items() if own}}
    warnings = [sentence(row) for row in found["warn"]]
    ctx.facts["warnings"] = warnings
    ctx.facts["notes"] = [f"warning: {text}" for text in warnings]
    ctx.facts["notes"] += [f"accepted: {sentence(row)}" for row in found["accepted"]]
    for row in found["warn"]:
        ctx.log.warning("expectation_not_met", check=row["name"], subject=row["subject"], value=row["value"])
    ctx.tracking.log_checks(ctx.name, rows)
    if found["fail"]:
        names = list(dict.fromkeys(row["name"] for row in found["fail"]))
        raise InputError(
            f"not as expected: {'; '.join(sentence(row) for row in found['fail'])}. Tables made of it, and the "
            "champions, stay as they are",
            remedy=f"mend what is wrong and run again, or accept it once: --set check.accept=[{','.join(names)}]",
        )


def _history(ctx: JobContext) -> list[dict[str, Any]]:
    parts = ctx.stream(CHECKS, CHECKS.names, KeyRange((("job", ctx.name),)))
    return [row for part in parts for row in part.to_pylist()]


class _LakeReader:
    """A `Reader` of the tables that a job declares; a column that was read once is not read again."""

    def __init__(self, ctx: JobContext, since: datetime | None) -> None:
        self._ctx = ctx
        self._read: dict[tuple[str, tuple[str, ...], KeyRange | None], pa.Table] = {}
        self.since = since
        settings = ctx.config
        self.split = json.dumps([settings.split.model_dump(), settings.recommend.k], sort_keys=True)

    def rows(self, table: Table) -> int:
        """See Reader."""
        return self._ctx.n_rows(table) if table.name in self._ctx.inputs else 0

    def read(self, table: Table, columns: Collection[str], where: KeyRange | KeyIn | None = None) -> pa.Table:
        """See Reader."""
        names = tuple(columns)
        parts = self._ctx.stream(table, names, where) if table.name in self._ctx.inputs else iter(())
        return pa.concat_tables([arrow_schema(table, names).empty_table(), *parts])

    def fact(self, job: str, name: str) -> float | None:
        """See Reader."""
        rows = self._ctx.store.read_small(JOB_RUNS, ["job", "status", "started_at", "facts"]).to_pylist()
        own = [row for row in rows if row["job"] == job and row["status"] == "done"]
        last = max(own, key=itemgetter("started_at"), default=None)
        value = json.loads(last["facts"] or "{}").get(name) if last else None
        return float(value) if isinstance(value, (int, float)) else None
