"""Register evaluated models in MLflow's registry, and decide which version of each is the champion.

A version has the bundle that the scorer needs (encore.serving.bundle). It is promoted by a rule: see
encore.evaluation.promotion. If MLflow fails, a warning says so, nothing is promoted, and the next run tries again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encore import temporary
from encore.arrays.ragged import Ragged
from encore.config import Config
from encore.errors import TransientError
from encore.evaluation.bootstrap import METRICS, GroupSums
from encore.evaluation.promotion import Evaluated, Verdict, judge
from encore.lake.delta import changes
from encore.lake.model_arrays import ModelArrays
from encore.lake.scan import KeyRange
from encore.lake.tables import (
    CHALLENGE_PLAYLISTS,
    HOLDOUT,
    JOB_RUNS,
    MODEL_METRICS,
    MODELS,
    PLAYLIST_METRICS,
    REGISTRATIONS,
    TRACK_VECTORS,
    TRACKS,
    arrow_schema,
)
from encore.lake.track_arrays import count_tracks, text_rows
from encore.recommenders.fitted import fingerprints
from encore.recommenders.registry import model, with_parts
from encore.runtime.context import JobContext
from encore.runtime.fingerprint import digest, source_of
from encore.runtime.model_registry import BUNDLE, CHAMPION, EVALUATION, ModelRegistry, ModelVersion, Package
from encore.runtime.tracking import FINGERPRINT
from encore.serving import bundle, catalogue
from encore.serving.portable import write_package
from encore.serving.scorer import Playlist, Scorer

READS = (TRACKS, HOLDOUT, CHALLENGE_PLAYLISTS, TRACK_VECTORS, MODELS, PLAYLIST_METRICS, MODEL_METRICS)
WRITES = (REGISTRATIONS,)
DERIVED = WRITES
SETTINGS = ("recommend", "registry")

VERDICT = "encore.verdict"
CONTENT = "encore.content"
REASON = f"{VERDICT}.reason"
COMPARED = f"{VERDICT}.compared_with"
"""Tags of a version; its numbers are tags with the prefix VERDICT, too. CONTENT: a digest of what it answers from."""


def check(config: Config) -> None:
    """Raise ConfigError for a model that is not in the registry of models."""
    for name in config.registry.models:
        model(name)


def state(ctx: JobContext) -> str:
    """Where models are registered."""
    return ctx.config.tracking.store


def model_fingerprints(ctx: JobContext) -> dict[str, str]:
    """The fingerprint of each model's registration, from its evaluation and the registry, but not from the rule."""
    newest = _evaluated(ctx)
    return {
        name: digest([ctx.name, name, state(ctx), *newest.get(name, ())])
        for name in ctx.config.registry.models or ctx.config.recommend.models
    }


class _Evaluation(NamedTuple):
    """The newest evaluation of a model: its own fingerprint, and that of the fitted model, None if unknown."""

    fingerprint: str
    fitted: str | None


def _evaluated(ctx: JobContext) -> dict[str, _Evaluation]:
    if MODEL_METRICS.name not in ctx.inputs:
        return {}
    columns = ("model", "fingerprint", "fitted", "evaluated_at")
    rows = [row for part in ctx.stream(MODEL_METRICS, columns) for row in part.to_pylist()]
    return {
        row["model"]: _Evaluation(row["fingerprint"], row["fitted"])
        for row in sorted(rows, key=itemgetter("evaluated_at"))
    }


def run(ctx: JobContext) -> None:
    """Register the models whose fingerprint is new, one after the other, and write their rows of `registrations`.

    A model is left out, and a note says why, if it was not evaluated as the present settings and tables want it.
    """
    log = list(changes(ctx.store.there(REGISTRATIONS)))
    todo = [name for name in ctx.models if ctx.remaining(log, name)]
    work = _Work(ctx)
    promoted, notes = [], []
    problems: dict[str, list[str]] = {}
    for name in todo:
        problem = work.problem(name)
        if problem is not None:
            problems.setdefault(problem, []).append(name)
            continue
        try:
            row = work.register(name)
        except TransientError as error:
            ctx.log.warning("not_registered", model=name, error=str(error))
            notes.append(f"not registered: {', '.join(todo[todo.index(name) :])}: {error}; the next run tries again")
            break
        if row["verdict"] == "champion":
            promoted.append(f"{name} {row['version']}")
        else:
            notes.append(f"{name} {row['version']} is {row['verdict']}: {row['reason']}")
    notes += [f"not registered: {', '.join(names)}: {problem}" for problem, names in problems.items()]
    if promoted:
        notes.insert(0, f"champion: {', '.join(promoted)}")
    ctx.facts |= {"promoted": len(promoted), "notes": notes}


class _Work:
    """What is needed to register models, made when it is first used."""

    def __init__(self, ctx: JobContext) -> None:
        self._ctx = ctx
        self._registry = ModelRegistry(ctx.tracking)
        self._evaluated = _evaluated(ctx)

    def problem(self, name: str) -> str | None:
        """Why a model cannot be registered; None if it can."""
        fitted = self._evaluated[name].fitted if name in self._evaluated else None
        if fitted is None:
            return "it has not been evaluated, or its recommendations are of several fitted models"
        if self._present.get(name) != fitted:
            return "the evaluated model is not that of the present settings and tables: run it from fit_models on"
        if not self._is_current:
            return "the table holdout has changed since the evaluation: run it from recommend on"
        return None

    @cached_property
    def _present(self) -> dict[str, str]:
        data_ids = {table.name: self._ctx.data_id(table) for table in READS}
        return fingerprints(self._ctx.config, self._ctx.models, data_ids)

    @cached_property
    def _is_current(self) -> bool:
        """Whether the last evaluation was of the present rows of `holdout`."""
        state = self._ctx.inputs[HOLDOUT.name]
        columns = ["job", "status", "started_at", "inputs", "table_ids"]
        rows = self._ctx.store.read_small(JOB_RUNS, columns).to_pylist()
        runs = [row for row in rows if row["job"] == "evaluate" and row["status"] == "done"]
        last = max(runs, key=itemgetter("started_at"), default=None)
        if last is None or dict(last["table_ids"] or ()).get(HOLDOUT.name) != state.id:
            return False
        version = dict(last["inputs"]).get(HOLDOUT.name)
        return version is not None and state.data_version_at(version) == state.data_version

    def register(self, name: str) -> dict[str, Any]:
        """Register a model unless its fingerprint or content is registered, and judge it unless it has been judged.

        Writes its row of `registrations`, and returns it. Raises TransientError if MLflow fails.
        """
        ctx = self._ctx
        if ctx.tracking.parent() is None:
            raise TransientError(f"MLflow: {ctx.tracking.place}: {ctx.tracking.failed}")
        started = time.monotonic()
        fitted = self._present[name]
        versions = self._registry.versions(name)
        content = self._content(name)
        version = next((one for one in versions if one.fingerprint == fitted or one.tags.get(CONTENT) == content), None)
        if version is None or VERDICT not in version.tags:
            version = self._registered_and_judged(name, version)
            seconds = round(time.monotonic() - started, 3)
            ctx.log.info("model_registered", model=name, version=version.version, seconds=seconds)
        row = _row(ctx, version)
        where = KeyRange((("model", name),))
        before = [old for old in self._rows if old["model"] == name and not _same_version(old, row)]
        table = pa.Table.from_pylist([*before, row], schema=arrow_schema(REGISTRATIONS))
        ctx.write(REGISTRATIONS, [table], where, part=name, fingerprint=ctx.models[name])
        return row

    def _content(self, name: str) -> str:
        """A digest of the arrays and the settings of a model and its parts, and of the tracks.

        A model that was fitted again, by other code, and came out the same is no new version.
        """
        own = [self._fitted[entry.name, self._present[entry.name]] for entry in with_parts([name])]
        return digest([self._ctx.data_id(TRACKS), *([row["model"], row["settings"], row["digest"]] for row in own)])

    @cached_property
    def _fitted(self) -> dict[tuple[str, str], dict[str, Any]]:
        """The rows of `models`, by model and fingerprint."""
        columns = ["model", "fingerprint", "settings", "digest", "inputs", "table_ids"]
        rows = self._ctx.store.read_small(MODELS, columns).to_pylist()
        return {(row["model"], row["fingerprint"]): row for row in rows}

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        return self._ctx.store.read_small(REGISTRATIONS).to_pylist()

    def _registered_and_judged(self, name: str, version: ModelVersion | None) -> ModelVersion:
        """Register a model, unless a `version` is given that a killed run has registered, and judge it."""
        registry, new = self._registry, self._evaluation(name)
        folder = Path(temporary.new_folder("register"))
        try:
            if version is None:
                staged, run = self._stage(name, new, folder), registry.evaluation_run(name, self._present[name])
            p99 = self._p99(folder / "bundle" if version is None else registry.folder(version, BUNDLE))
            champion = registry.aliases(name).get(CHAMPION)
            compared = None
            if champion is not None and (version is None or champion != version.version):
                compared = registry.version(name, champion)
            bound = self._ctx.config.registry.p99_ms
            verdict = judge(new, self._read(compared) if compared else None, p99_ms=p99, bound_ms=bound)
            told = _verdict_tags(verdict, compared)
            if version is None:
                tags = {**self._tags(name, new, run, folder / "bundle"), **told}
                version = registry.register(name, staged, run, tags)
            else:
                registry.set_tags(name, version.version, told)
            if verdict.outcome == "champion":
                registry.promote(name, version.version)
            # last: a version without it has not been dealt with completely
            registry.set_tags(name, version.version, {VERDICT: verdict.outcome})
            return replace(version, tags={**version.tags, **told, VERDICT: verdict.outcome})
        finally:
            shutil.rmtree(folder)

    def _evaluation(self, name: str) -> Evaluated:
        """The newest evaluation of a model."""
        ctx = self._ctx
        columns = ("pid", "n_recommended", *METRICS)
        rows = ctx.scan(PLAYLIST_METRICS, columns, KeyRange((("model", name),))).whole(ctx.io_stats)
        sums = GroupSums.of(rows["pid"].to_numpy(), {metric: rows[metric].to_numpy() for metric in METRICS})
        served = int((rows["n_recommended"].to_numpy() > 0).sum())
        settings = ctx.config
        holdout = f"holdout {ctx.data_id(HOLDOUT)}, seed {settings.split.seed}, k {settings.recommend.k}"
        return Evaluated(holdout, sums, served / len(rows) if len(rows) else 0.0)

    def _read(self, version: ModelVersion) -> Evaluated | None:
        """The evaluation that is stored with a version."""
        folder = self._registry.folder(version, EVALUATION)
        told = json.loads((folder / "evaluation.json").read_bytes())
        arrays = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("counts", "sums", "pids")}
        return Evaluated(told["holdout"], GroupSums(**arrays), told["coverage"])

    def _stage(self, name: str, new: Evaluated, folder: Path) -> Package:
        """Write what is to be registered into a folder."""
        self._write_bundle(name, folder / "bundle")
        evaluation = folder / "evaluation"
        evaluation.mkdir()
        for array in ("counts", "sums", "pids"):
            np.save(evaluation / f"{array}.npy", getattr(new.sums, array), allow_pickle=False)
        told = {"holdout": new.holdout, "coverage": new.coverage, "run_id": self._ctx.run_id}
        (evaluation / "evaluation.json").write_text(json.dumps(told), encoding="utf-8")
        return Package(
            bundle=folder / "bundle",
            evaluation=evaluation,
            model_code=source_of("encore.serving.pyfunc"),
            code=self._code[0],
            package=self._code[1],
            example=tuple(self._sample[0].tracks[:3]),
        )

    def _tags(self, name: str, new: Evaluated, run: str | None, folder: Path) -> dict[str, str]:
        manifest = bundle.Manifest.read(folder)
        return {
            FINGERPRINT: self._present[name],
            CONTENT: self._content(name),
            "encore.run_id": self._ctx.run_id,
            "encore.holdout": new.holdout,
            "encore.size_bytes": str(manifest.size),
            **({"encore.evaluation_run": run} if run else {}),
            **{f"version.{table}": str(number) for table, number in manifest.versions.items()},
        }

    @cached_property
    def _code(self) -> tuple[Path, str]:
        folder = Path(temporary.new_folder("code"))
        return folder, write_package(folder)

    def _write_bundle(self, name: str, folder: Path) -> None:
        ctx, stored = self._ctx, ModelArrays.of(self._ctx.config)
        own = {entry.name: self._present[entry.name] for entry in with_parts([name])}
        row = self._fitted[name, own[name]]
        bundle.write(
            folder,
            model=name,
            arrays={part: stored.files(part, fingerprint) for part, fingerprint in own.items()},
            catalogue=self._catalogue,
            fingerprints=own,
            settings=ctx.config.recommend.model_dump(mode="json"),
            versions=dict(row["inputs"]),
            table_ids=dict(row["table_ids"]),
            n_tracks=ctx.n_rows(TRACKS),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    @cached_property
    def _catalogue(self) -> dict[str, Path]:
        """The files of the catalogue's arrays, which all bundles share."""
        ctx, n_tracks = self._ctx, self._ctx.n_rows(TRACKS)
        folder = Path(temporary.new_folder("catalogue"))
        counts = np.zeros(n_tracks, np.int64)
        for column in ("train", "test"):
            counts += count_tracks(ctx.stream(HOLDOUT, [column]), HOLDOUT, column, n_tracks)
        uris, names, artists = (
            text_rows(ctx.stream(TRACKS, ("track_id", column)), column, n_tracks)
            for column in ("track_uri", "track_name", "artist_name")
        )
        files = {}
        for array, values in catalogue.build(uris, names, artists, counts).items():
            files[array] = folder / f"{array}.npy"
            np.save(files[array], values, allow_pickle=False)
        return files

    @cached_property
    def _sample(self) -> list[Playlist]:
        """Playlists to ask the scorer for: evenly spaced in the first part of `holdout`."""
        ctx = self._ctx
        wanted = ctx.config.registry.timed_playlists
        part = next(iter(ctx.stream(HOLDOUT, ("train", "title"))), None)
        rows = part.filter(pc.greater(pc.list_value_length(part["train"]), 0)) if part is not None else None
        if rows is None or not len(rows):
            return [Playlist([])]
        rows = rows.take(np.unique(np.linspace(0, len(rows) - 1, wanted).astype(np.int64)))
        seeds = Ragged.from_arrow(rows["train"])
        known = catalogue.Catalogue({name: np.load(path, mmap_mode="r") for name, path in self._catalogue.items()})
        return [Playlist(known.uris(seeds[i]), title) for i, title in enumerate(rows["title"].to_pylist())]

    def _p99(self, folder: Path) -> float:
        """The 99th percentile of the CPU time to answer a playlist of the sample, ms, with the files of a bundle."""
        scorer = Scorer.open(folder)
        scorer.warm_up()
        k, milliseconds = self._ctx.config.recommend.k, []
        for playlist in self._sample:
            started = time.process_time()
            scorer.recommend([playlist], k)
            milliseconds.append(1000 * (time.process_time() - started))
        return float(np.quantile(milliseconds, 0.99))


def _verdict_tags(verdict: Verdict, compared: ModelVersion | None) -> dict[str, str]:
    numbers = {f"{VERDICT}.{name}": f"{value:.6g}" for name, value in verdict.numbers.items()}
    against = {COMPARED: str(compared.version)} if compared else {}
    return {**numbers, **against, REASON: verdict.reason}


def _row(ctx: JobContext, version: ModelVersion) -> dict[str, Any]:
    """A version as a row of `registrations`, from its tags."""
    tags = version.tags
    texts = {name for name in tags if name in (REASON, COMPARED) or not name.startswith(f"{VERDICT}.")}
    return {
        "model": version.model,
        "registry": state(ctx),
        "version": version.version,
        "fingerprint": version.fingerprint,
        "run_id": tags.get("encore.run_id", ctx.run_id),
        "evaluation_run": tags.get("encore.evaluation_run"),
        "holdout": tags.get("encore.holdout", ""),
        "verdict": tags[VERDICT],
        "reason": tags.get(REASON, ""),
        "compared_with": int(tags[COMPARED]) if COMPARED in tags else None,
        "numbers": [(name.removeprefix(f"{VERDICT}."), float(tags[name])) for name in sorted(tags.keys() - texts)],
        "size_bytes": int(tags.get("encore.size_bytes", 0)),
        "registered_at": datetime.fromtimestamp(version.created_ms / 1000, UTC),
    }


def _same_version(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one[name] == other[name] for name in REGISTRATIONS.key)
