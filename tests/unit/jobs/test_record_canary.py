"""Events of canaries go from the registry into the table `canary_events`, once each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlflow import MlflowClient

from encore.config import Config
from encore.lake.store import Store
from encore.lake.tables import CANARY_EVENTS
from encore.runtime.result import JobResult
from encore.runtime.runner import run_job
from encore.runtime.tracking import Tracking
from encore.serving.rollout import event_of, event_tag
from encore.spark.session import Session

STARTED = 1_790_000_000.5
NUMBERS = {"requests": 400.0, "errors": 20.0}


def record(config: Config) -> JobResult:
    return run_job("record_canary", config, Session(config), Tracking(config, "canary-1"))


def rows_of(config: Config) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = Store(config, Session(config)).read_small(CANARY_EVENTS).to_pylist()
    return sorted(rows, key=lambda row: (row["version"], row["at"]))


def test_events_are_recorded_once_and_kept(lake_settings: Callable[..., Config]) -> None:
    config = lake_settings()
    client = MlflowClient(tracking_uri=config.tracking.uri)
    client.create_registered_model("encore-ials")
    for _ in range(2):
        client.create_model_version("encore-ials", "file:///none")
    verdict = {"decision": "roll_back", "reason": "errors", "numbers": NUMBERS}
    events = {
        "started": event_of("started", 0, 0.1, STARTED, "1", "", None),
        "rolled_back": event_of("rolled_back", 0, 0.0, STARTED + 30, "1", "errors", verdict),
    }
    for event, text in events.items():
        client.set_model_version_tag("encore-ials", "2", event_tag(STARTED, 0, event), text)
    # tags that no scorer writes
    client.set_model_version_tag("encore-ials", "2", "encore.canary.event.1.0.started", "{")
    client.set_model_version_tag("encore-ials", "2", "encore.canary.event.1.0.what", events["started"])

    assert record(config).status == "done"
    rows = rows_of(config)
    assert [(row["model"], row["version"], row["champion"], row["event"], row["weight"]) for row in rows] == [
        ("ials", 2, 1, "started", 0.1),
        ("ials", 2, 1, "rolled_back", 0.0),
    ]
    assert dict(rows[1]["numbers"]) == NUMBERS
    assert rows[1]["started_at"].timestamp() == STARTED
    assert rows[1]["at"].timestamp() == STARTED + 30
    assert record(config).status == "up_to_date"

    client.delete_model_version("encore-ials", "2")
    refused = event_of("refused", 0, 0.0, STARTED, "", "it cannot be loaded", None)
    client.set_model_version_tag("encore-ials", "1", event_tag(STARTED, 0, "refused"), refused)
    assert record(config).status == "done"
    assert [(row["version"], row["event"]) for row in rows_of(config)] == [
        (1, "refused"),
        (2, "started"),
        (2, "rolled_back"),
    ]
