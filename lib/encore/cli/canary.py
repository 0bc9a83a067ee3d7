"""`encore canary start`, `status` and `stop`: what scorers do with a challenger is in encore.serving.rollout."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from encore.config import Config
from encore.errors import InputError
from encore.runtime.model_registry import CHALLENGER, CHAMPION, ModelRegistry, ModelVersion
from encore.runtime.tracking import Tracking
from encore.serving.canary import steps_of
from encore.serving.rollout import EVENT, REQUESTED, STOPPED, TAG, Progress, event_of, event_tag, time_of


def start(config: Config, model: str, number: int, steps: str | None, out: Console) -> None:
    """Let scorers try a version on a part of the users. `steps`: weight:seconds of each, instead of the settings'.

    Raises InputError if there is no such version, no champion, or another canary; ConfigError for malformed steps.
    """
    registry = _registry(config)
    versions = {one.version: one for one in _versions(registry, model)}
    champion, challenger = (_of_alias(versions.values(), alias) for alias in (CHAMPION, CHALLENGER))
    if number not in versions:
        raise InputError(f"{model} has no version {number}", remedy=f"`encore models {model}` lists them")
    if champion is None:
        raise InputError(
            f"{model} has no champion to compare version {number} with",
            remedy=f"make it the champion: `encore promote {model} {number}`",
        )
    if champion.version == number:
        raise InputError(f"{model} {number} is the champion already")
    if challenger is not None:
        raise InputError(
            f"version {challenger.version} of {model} is a challenger already",
            remedy=f"wait until it is promoted or rolled back, or call `encore canary stop {model}`",
        )
    steps = steps or config.serve.canary.steps
    ramp = steps_of(steps)
    tags = {"steps": steps, "state": REQUESTED, "started_at": time_of(time.time()), "step": "0", "weight": "0"}
    empty = {"reason": "", "verdict": "null", "champion": str(champion.version)}
    registry.set_tags(model, number, {f"{TAG}{name}": value for name, value in {**empty, **tags}.items()})
    registry.set_alias(model, CHALLENGER, number)
    least = sum(step.seconds for step in ramp)
    out.print(
        f"{model} {number} challenges {champion.version}: {len(ramp)} steps, at least {least / 60:.0f} minutes; "
        f"`encore canary status {model}` shows how far it is",
        highlight=False,
    )


def stop(config: Config, model: str, reason: str | None, out: Console) -> None:
    """End a canary: the champion answers all users again.

    Raises InputError if there is no challenger.
    """
    registry = _registry(config)
    challenger = _of_alias(_versions(registry, model), CHALLENGER)
    if challenger is None:
        raise InputError(f"{model} has no challenger")
    registry.delete_alias(model, CHALLENGER)
    now, progress = time.time(), Progress.of_tags(challenger.tags)
    why = f"by hand: {reason}" if reason else "by hand"
    started_at = now if progress.started_at is None else progress.started_at
    event = event_of(STOPPED, progress.step, 0.0, now, progress.champion, why, None)
    tags = {f"{TAG}state": STOPPED, f"{TAG}reason": why, f"{TAG}weight": "0"}
    registry.set_tags(model, challenger.version, {event_tag(started_at, progress.step, STOPPED): event, **tags})
    out.print(f"the canary of {model} {challenger.version} is stopped", highlight=False)


def print_status(config: Config, model: str | None, *, as_json: bool, out: Console) -> None:
    """Print the canaries of a model, or of all: each version that was tried, where it is, why, and its events.

    Raises InputError if there is none.
    """
    registry = _registry(config)
    names = [model] if model else registry.models()
    tried = [
        version
        for name in names
        for version in registry.versions(name)
        if CHALLENGER in version.aliases or any(tag.startswith(TAG) for tag in version.tags)
    ]
    if not tried:
        raise InputError(
            f"no version of {model or 'any model'} was tried as challenger",
            remedy="`encore canary start MODEL VERSION` starts a canary; `encore models` lists the versions",
        )
    told = [_described(version) for version in tried]
    if as_json:
        # not through rich, which would wrap lines
        out.file.write(json.dumps({"canaries": told}, indent=2) + "\n")
        return
    grid = Grid("model", "version", "against", "state", "weight", "step", "why", title="canaries", title_justify="left")
    for one in told:
        why = one["reason"] or (one["verdict"] or {}).get("reason", "")
        columns = ("model", "version", "champion", "state", "weight", "step")
        grid.add_row(*("" if one[name] is None else escape(str(one[name])) for name in columns), escape(why))
    out.print(grid)
    events = Grid("when (UTC)", "model", "version", "event", "weight", "why", title="events", title_justify="left")
    rows = [{**event, "model": one["model"], "version": one["version"]} for one in told for event in one["events"]]
    for row in sorted(rows, key=lambda row: str(row["at"])):
        row["at"] = str(row["at"])[:19].replace("T", " ")
        events.add_row(*(escape(str(row[name])) for name in ("at", "model", "version", "event", "weight", "reason")))
    out.print(events)


def _described(version: ModelVersion) -> dict[str, Any]:
    tags, progress = version.tags, Progress.of_tags(version.tags)
    return {
        "model": version.model,
        "version": version.version,
        "is_challenger": CHALLENGER in version.aliases,
        "champion": progress.champion or None,
        "state": progress.state or "waiting for a scorer",
        "weight": tags.get(f"{TAG}weight"),
        "step": progress.step,
        "steps": tags.get(f"{TAG}steps"),
        "started_at": tags.get(f"{TAG}started_at"),
        "reason": progress.reason,
        "verdict": _parsed(tags.get(f"{TAG}verdict", "null")),
        "events": _events(tags),
    }


def _events(tags: Mapping[str, str]) -> list[dict[str, Any]]:
    found = [_parsed(text) for name, text in tags.items() if name.startswith(EVENT)]
    needed = {"at", "event", "weight", "reason"}
    return sorted((event for event in found if event and needed <= event.keys()), key=lambda event: str(event["at"]))


def _parsed(text: str) -> dict[str, Any] | None:
    """A JSON object; None for anything else, since anyone can write tags."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _registry(config: Config) -> ModelRegistry:
    return ModelRegistry(Tracking(config, "canary"))


def _versions(registry: ModelRegistry, model: str) -> list[ModelVersion]:
    found = registry.versions(model)
    if not found:
        raise InputError(
            f"no registered version of {model}", remedy=f"registered: {', '.join(registry.models()) or 'none'}"
        )
    return found


def _of_alias(versions: Any, alias: str) -> ModelVersion | None:
    return next((one for one in versions if alias in one.aliases), None)
