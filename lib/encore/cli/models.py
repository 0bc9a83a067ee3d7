"""`encore models`, `encore promote` and `encore rollback`; and registered models as a source for `encore serve`."""

from __future__ import annotations

import getpass
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from encore.config import Config
from encore.errors import InputError
from encore.runtime.model_registry import BUNDLE, CHALLENGER, CHAMPION, PREVIOUS, ModelRegistry, ModelVersion
from encore.runtime.tracking import REGISTERED, Tracking
from encore.serving.models import Resolved, Source
from encore.serving.registry import RegisteredModel, Registry

VERDICT: Final = "encore.verdict"
METRICS: Final = ("ndcg", "r_precision", "clicks", "coverage", "p99_ms")
AUDIT: Final = "encore.audit."
"""Prefix of the tags of a version that say what was done by hand: when, what, who and why."""

ROLE: Final = "serve"


def print_models(config: Config, model: str | None, *, as_json: bool, out: Console) -> None:
    """Print the registered versions of a model, or of all: aliases, metrics and the verdict on each.

    Raises TransientError if MLflow does not answer, InputError if there is none.
    """
    registry = registry_of(config)
    names = [model] if model else _ordered(config, registry.models())
    found = [version for name in names for version in registry.versions(name)]
    if not found:
        raise InputError(
            f"no registered version of {model}" if model else "no registered model", remedy="call `encore run`"
        )
    if as_json:
        # not through rich, which would wrap lines
        out.file.write(json.dumps({"models": [_described(version) for version in found]}, indent=2) + "\n")
        return
    grid = Grid("model", "version", "alias", title="registered models", title_justify="left")
    for name in METRICS:
        grid.add_column(name, justify="right")
    grid.add_column("registered (UTC)")
    grid.add_column("verdict")
    for version in found:
        told = _described(version)
        values = [f"{told['metrics'][name]:.4g}" if name in told["metrics"] else "-" for name in METRICS]
        verdict = ": ".join(text for text in (told["verdict"], told["reason"]) if text)
        at = told["registered_at"][:16].replace("T", " ")
        grid.add_row(version.model, str(version.version), ", ".join(version.aliases), *values, at, escape(verdict))
    out.print(grid)


def _ordered(config: Config, names: list[str]) -> list[str]:
    """In the order of recommend.models, others behind them."""
    first = [name for name in config.recommend.models if name in names]
    return first + [name for name in names if name not in first]


def _described(version: ModelVersion) -> dict[str, Any]:
    tags = version.tags
    prefix = f"{VERDICT}."
    numbers = {name.removeprefix(prefix): _number(value) for name, value in tags.items() if name.startswith(prefix)}
    measured = {name: value for name, value in numbers.items() if value is not None}
    return {
        "model": version.model,
        "name": f"{REGISTERED}{version.model}",
        "version": version.version,
        "aliases": list(version.aliases),
        "registered_at": datetime.fromtimestamp(version.created_ms / 1000, UTC).isoformat(timespec="seconds"),
        "fingerprint": version.fingerprint,
        "holdout": tags.get("encore.holdout"),
        "metrics": {name: measured[name] for name in METRICS if name in measured},
        "verdict": tags.get(VERDICT),
        "reason": tags.get(f"{prefix}reason"),
        "numbers": measured,
        "audit": {name.removeprefix(AUDIT): value for name, value in tags.items() if name.startswith(AUDIT)},
    }


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def promote(config: Config, model: str, number: int | None, reason: str | None, *, force: bool, out: Console) -> None:
    """Make a version the champion by hand; without a number, the newest one.

    Raises InputError if there is no such version, or if the verdict on it is not "champion", without `force`.
    """
    registry = registry_of(config)
    versions = _versions(registry, model)
    wanted = next((one for one in versions if number in (None, one.version)), None)
    if wanted is None:
        raise InputError(f"{model} has no version {number}", remedy=f"`encore models {model}` lists them")
    if CHAMPION in wanted.aliases:
        out.print(f"{model} {wanted.version} is the champion already", highlight=False)
        return
    verdict = wanted.tags.get(VERDICT)
    if verdict != CHAMPION and not force:
        why = wanted.tags.get(f"{VERDICT}.reason", "it has not been judged")
        raise InputError(
            f"{model} {wanted.version} is {verdict or 'not judged'}: {why}", remedy="add --force to promote it anyway"
        )
    before = registry.promote(model, wanted.version)
    _note(registry, model, wanted.version, f"promoted in place of {before or 'none'}", reason)
    out.print(f"{model} {wanted.version} is the champion, in place of {before or 'none'}", highlight=False)


def roll_back(config: Config, model: str, reason: str | None, out: Console) -> None:
    """Make the champion before the present one the champion again, and the present one `previous`.

    Raises InputError if there is none.
    """
    registry = registry_of(config)
    versions = _versions(registry, model)
    aliases = {alias: one.version for one in versions for alias in one.aliases}
    before, present = aliases.get(PREVIOUS), aliases.get(CHAMPION)
    if before is None or before == present:
        raise InputError(
            f"{model} has no champion before the present one",
            remedy=f"name a version: `encore promote {model} VERSION`",
        )
    registry.promote(model, before)
    _note(registry, model, before, f"rolled back from {present}", reason)
    out.print(f"{model} {before} is the champion again, in place of {present}", highlight=False)


def _versions(registry: ModelRegistry, model: str) -> list[ModelVersion]:
    found = registry.versions(model)
    if not found:
        raise InputError(
            f"no registered version of {model}", remedy=f"registered: {', '.join(registry.models()) or 'none'}"
        )
    return found


def _note(registry: ModelRegistry, model: str, version: int, what: str, reason: str | None) -> None:
    at = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    text = f"{what} by {getpass.getuser()}: {reason or 'no reason given'}"
    registry.set_tags(model, version, {f"{AUDIT}{at}": text})


def registry_of(config: Config) -> ModelRegistry:
    """The registry that the configuration names."""
    return ModelRegistry(Tracking(config, ROLE))


def registered_source(config: Config, model: str | None, cache: Path) -> Source:
    """The source of a registered model for the scorer, in the registry that the configuration names.

    `model`: models:/NAME@ALIAS or models:/NAME/VERSION; None: the first of recommend.models that has a champion.
    Raises InputError if no model has one, ConfigError if `model` has another form.
    """
    tracking = Tracking(config, ROLE)
    registry = ModelRegistry(tracking)
    if model is None:
        champions = (name for name in config.recommend.models if CHAMPION in registry.aliases(name))
        name = next(champions, None)
        if name is None:
            raise InputError(
                "no model of recommend.models has a champion",
                remedy="call `encore run`, or `encore promote MODEL`; `encore models` lists the registered versions",
            )
        model = f"models:/{REGISTERED}{name}@{CHAMPION}"
    uri = tracking.uri
    if urlsplit(uri).scheme in ("http", "https"):
        return RegisteredModel(Registry(uri), model, cache)
    parsed = RegisteredModel.parse(model)
    return StoredModel(registry, parsed.name.removeprefix(REGISTERED), parsed.alias, parsed.version)


@dataclass(frozen=True)
class StoredModel:
    """A source of model versions (serving.models.Source): a registered model in a store that MLflow opens, such as a
    database on this machine. The files of local artefacts are used in place."""

    registry: ModelRegistry
    model: str
    alias: str | None
    version: str | None

    def resolve(self) -> Resolved:
        """See Source."""
        if self.alias is None:
            return Resolved(self.version)
        aliases = {alias: str(version) for alias, version in self.registry.aliases(self.model).items()}
        champion = aliases.get(self.alias)
        challenger = aliases.get(CHALLENGER) if self.alias == CHAMPION else None
        if challenger is None:
            return Resolved(champion)
        found = self.registry.version(self.model, int(challenger))
        return Resolved(champion, challenger, dict(found.tags) if found else {})

    def fetch(self, version: str) -> Path:
        """See Source."""
        found = self.registry.version(self.model, int(version))
        if found is None:
            raise InputError(f"{self.model} has no version {version}")
        return self.registry.folder(found, BUNDLE)

    def set_tag(self, version: str, name: str, value: str) -> None:
        """See Source."""
        self.registry.set_tags(self.model, int(version), {name: value})

    def set_alias(self, alias: str, version: str) -> None:
        """See Source."""
        self.registry.set_alias(self.model, alias, int(version))

    def delete_alias(self, alias: str) -> None:
        """See Source."""
        self.registry.delete_alias(self.model, alias)
