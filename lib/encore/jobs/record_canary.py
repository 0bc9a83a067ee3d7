"""Record the events of canaries, which scorers leave as tags of model versions, in the table `canary_events`.

Not a job of the pipeline: canaries run between runs of the pipeline, and scorers have no access to the lake. Events
stay in the table when their versions are deleted from the registry.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from encore.lake.scan import KeyRange
from encore.lake.tables import CANARY_EVENTS, arrow_schema
from encore.runtime.context import JobContext
from encore.runtime.fingerprint import digest
from encore.runtime.model_registry import ModelRegistry, ModelVersion
from encore.serving.rollout import EVENT

READS = ()
WRITES = (CANARY_EVENTS,)
SETTINGS = ()


def state(ctx: JobContext) -> str:
    """The events in the registry. Raises TransientError if MLflow fails."""
    return digest([ctx.config.tracking.store, json.dumps(_events(ctx), sort_keys=True, default=str)])


def run(ctx: JobContext) -> None:
    """Write the events of the registry, and keep those of deleted versions and of other registries.

    Raises TransientError if MLflow fails.
    """
    found = _events(ctx)
    here = {_key(row) for row in found}
    kept = [row for row in ctx.store.read_small(CANARY_EVENTS).to_pylist() if _key(row) not in here]
    ctx.write(CANARY_EVENTS, [pa.Table.from_pylist([*kept, *found], schema=arrow_schema(CANARY_EVENTS))], KeyRange())
    ctx.facts["events"] = len(found)


def _events(ctx: JobContext) -> list[dict[str, Any]]:
    """The rows of all events that can be read; `numbers` as a list of pairs."""
    registry = ModelRegistry(ctx.tracking)
    rows = []
    for model in registry.models():
        for version in registry.versions(model):
            for name, text in version.tags.items():
                if name.startswith(EVENT):
                    row = _row(ctx.config.tracking.store, version, name, text)
                    if row is None:
                        ctx.log.warning("event_unreadable", model=model, version=version.version, tag=name)
                    else:
                        rows.append(row)
    return sorted(rows, key=lambda row: tuple(str(value) for value in _key(row)))


def _row(store: str, version: ModelVersion, name: str, text: str) -> dict[str, Any] | None:
    """An event as a row; None if the tag, which anyone can write, is not one that a scorer writes."""
    started_at, _, rest = name.removeprefix(EVENT).partition(".")
    step, _, event = rest.partition(".")
    try:
        told = json.loads(text)
        numbers = (told["verdict"] or {}).get("numbers", {})
        row = {
            "model": version.model,
            "registry": store,
            "version": version.version,
            "started_at": datetime.fromtimestamp(int(started_at) / 1000, UTC),
            "step": int(step),
            "event": event,
            "at": datetime.fromisoformat(told["at"]),
            "weight": float(told["weight"]),
            "champion": int(told["champion"]) if told["champion"] else None,
            "reason": str(told["reason"]),
            "numbers": [(key, float(value)) for key, value in sorted(numbers.items()) if math.isfinite(value)],
        }
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None
    table = pa.Table.from_pylist([row], schema=arrow_schema(CANARY_EVENTS))
    return row if all(check.holds(table).to_pylist() == [True] for check in CANARY_EVENTS.checks.values()) else None


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in CANARY_EVENTS.key)
