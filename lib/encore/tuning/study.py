"""Studies: trials of a model's settings, chosen by Optuna, kept in a file and logged to MLflow.

A study continues where it was left, whether it ended, was interrupted or was killed: its file is named after the model
and a fingerprint of everything that the results depend on. The sampler of a trial is seeded by the number of finished
trials before it, so an interrupted study makes the same trials as one that was not.
(Tree-structured Parzen estimators: J. Bergstra et al., Algorithms for Hyper-Parameter Optimization, NIPS 2011.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from encore import temporary
from encore.config import Config, RecommendConfig
from encore.errors import ConfigError, LakeError
from encore.evaluation.metrics import evaluate
from encore.lake.filesystem import delete_folder
from encore.lake.store import Store
from encore.lake.tables import CHALLENGE_PLAYLISTS, HOLDOUT, TRACK_VECTORS, TRACKS
from encore.recommenders.base import Model, Space, Tools, recommend
from encore.recommenders.fitted import fingerprints
from encore.recommenders.registry import MODELS, model, with_parts
from encore.runtime.fingerprint import code_digest, digest
from encore.runtime.tracking import Tracking
from encore.tuning.holdout import TuningData, tuning_data

if TYPE_CHECKING:
    import optuna

METRICS: Final = ("ndcg", "r_precision")
"""The metrics that a study can maximise."""

_LOGGED: Final = ("r_precision", "ndcg", "clicks", "seconds")
_DIGITS: Final = 4
"""Significant digits of the values that are tried."""


@dataclass(frozen=True)
class Result:
    """A finished trial: its number from 0, settings in the model's section, and metrics: r_precision, ndcg, clicks,
    seconds."""

    number: int
    settings: Mapping[str, Any]
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Outcome:
    """The results of all finished trials of a study, in order. The first one has the present settings."""

    study: str
    model: str
    metric: str
    results: tuple[Result, ...]

    @property
    def first(self) -> Result:
        """The result of the present settings."""
        return self.results[0]

    @property
    def best(self) -> Result:
        """The best result, the earliest of equally good ones."""
        return max(self.results, key=lambda result: (result.metrics[self.metric], -result.number))

    @property
    def settings(self) -> dict[str, Any]:
        """The best settings, by section, as in conf/."""
        return {"recommend": {self.model: dict(self.best.settings)}}


def tunable(name: str) -> Model:
    """The model with this name. Raises ConfigError if nothing of it can be tuned."""
    found = model(name)
    if not found.tunable:
        names = sorted(entry.name for entry in MODELS.values() if entry.tunable)
        raise ConfigError(f"{name} has no settings that can be tuned", remedy=f"one of: {', '.join(names)}")
    return found


def tune(
    config: Config,
    store: Store,
    name: str,
    *,
    trials: int,
    metric: str = METRICS[0],
    minutes: float | None = None,
    on_start: Callable[[Outcome], None] = lambda outcome: None,
    on_trial: Callable[[Outcome], None] = lambda outcome: None,
) -> Outcome:
    """Run the trials of a study that are missing from `trials` in all, and return all results.

    After `minutes`, no further trial starts, but at least one is finished. `on_start` and `on_trial` are called with
    what is there so far. Raises LakeError if the lake has no holdout, or too few playlists to judge settings by.
    """
    if metric not in METRICS:
        raise ConfigError(f"no metric {metric!r} to tune by", remedy=f"one of: {', '.join(METRICS)}")
    entry = tunable(name)
    states = {
        table.name: state
        for table in (TRACKS, HOLDOUT, CHALLENGE_PLAYLISTS, TRACK_VECTORS)
        if (state := store.state(table)) is not None
    }
    if HOLDOUT.name not in states:
        raise LakeError(f"the lake {store.path} has no table {HOLDOUT.name} yet", remedy="call `encore run` first")
    data_ids = {table: state.data_id for table, state in states.items()}
    spaces = _spaces(entry, config.recommend)
    study_name = f"{name}-{_fingerprint(config, entry, spaces, data_ids, metric)[:16]}"
    entries = with_parts([name])
    data = tuning_data(
        lambda table, columns: store.scan(table, columns, states[table.name].log).read(),
        states[TRACKS.name].rows,
        entries,
        config,
    )
    if not len(data.judged.queries):
        raise LakeError(f"the lake {store.path} has too few playlists to tune by", remedy="ingest at least 10")
    study = _Study(config, entry, spaces, metric, study_name)
    tracking = Tracking(config, study_name)
    logged = tracking.begin_study(study_name, name, {table: state.version for table, state in states.items()})
    status, ends = "FAILED", None if minutes is None else time.monotonic() + 60 * minutes
    try:
        for result, times in study.finished():
            _log(tracking, name, result, times, logged)
        on_start(study.outcome())
        judge = _Judge(config, entries, data) if len(study.outcome().results) < trials else None
        while judge is not None and len(study.outcome().results) < trials:
            result, times = study.run(judge)
            _log(tracking, name, result, times, logged)
            on_trial(study.outcome())
            if ends is not None and time.monotonic() >= ends:
                break
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        found = study.outcome().results
        tracking.finish_study(study.outcome().best.metrics if found else {}, status)
    return study.outcome()


def _log(tracking: Tracking, name: str, result: Result, times: tuple[int, int], logged: set[int] | None) -> None:
    """Log a trial, unless MLflow has it: a study whose file was deleted makes the same trials again."""
    if logged is None or result.number in logged:
        return
    params = {f"recommend.{name}.{key}": value for key, value in result.settings.items()}
    tracking.log_trial(result.number, params, result.metrics, times)


def _spaces(entry: Model, recommend: RecommendConfig) -> dict[str, Space]:
    """The spaces of a model, extended to the present settings, which are always tried."""
    section = getattr(recommend, entry.name)
    found = {}
    for name, space in entry.tunable.items():
        value = getattr(section, name)
        low, high = min(space.low, value), max(space.high, value)
        found[name] = Space(low, high, space.is_log and low > 0)
    return found


def _fingerprint(
    config: Config, entry: Model, spaces: Mapping[str, Space], data_ids: Mapping[str, str], metric: str
) -> str:
    """A digest of what the results of a study depend on: the model with its settings, code and data, and the search."""
    own = fingerprints(config, [entry.name], data_ids)[entry.name]
    shown = {name: [space.low, space.high, space.is_log] for name, space in spaces.items()}
    settings = [config.tune.playlists, config.recommend.trial_playlists, config.recommend.k, metric]
    holdout = [data_ids[HOLDOUT.name], config.split.model_dump(mode="json")]
    return digest([own, shown, settings, holdout, code_digest("encore.tuning.holdout")])


class _Judge:
    """Fits a model with some settings on the tuning data, and computes its metrics. Its parts are fitted once."""

    def __init__(self, config: Config, entries: Sequence[Model], data: TuningData) -> None:
        self._config, self._data = config, data
        *parts, self._entry = entries
        self._parts: dict[str, Any] = {}
        for part in parts:
            self._parts[part.name] = self._fit(part, config.recommend)

    def _fit(self, entry: Model, recommend: RecommendConfig) -> Any:
        folder = temporary.new_folder("tune")
        try:
            arrays = entry.fit(self._data.train, recommend, self._parts, Tools(folder, self._config.s3))
            # arrays may be mapped files of the folder, which stay readable after it is deleted
            return entry.load(arrays, recommend, self._parts)
        finally:
            delete_folder(folder, self._config.s3)

    def metrics(self, settings: Mapping[str, Any]) -> dict[str, float]:
        """The means over the judged playlists."""
        began, name = time.monotonic(), self._entry.name
        section = getattr(self._config.recommend, name)
        changed = type(section).model_validate({**section.model_dump(), **settings})
        fitted = self._fit(self._entry, self._config.recommend.model_copy(update={name: changed}))
        judged, k = self._data.judged, self._config.recommend.k
        found = evaluate(recommend(fitted, judged.queries, k).ids, judged.truth, k=k, artist_of=None)
        means = {metric: float(np.mean(getattr(found, metric))) for metric in _LOGGED[:-1]}
        return {**means, "seconds": time.monotonic() - began}


class _Study:
    """The trials of a study, in Optuna's journal in the folder `tune.path`."""

    def __init__(self, config: Config, entry: Model, spaces: Mapping[str, Space], metric: str, name: str) -> None:
        # only this command needs it, and it takes a second to import
        try:
            import optuna
            import optuna.storages.journal
        except ModuleNotFoundError as error:
            raise ConfigError("Optuna is not installed", remedy="call `make setup`") from error

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._entry, self._spaces, self._metric, self._name = optuna, entry, spaces, metric, name
        self._present = {key: getattr(getattr(config.recommend, entry.name), key) for key in spaces}
        self._seed = config.recommend.seed
        folder = Path(config.tune.path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            backend = optuna.storages.journal.JournalFileBackend(str(folder / f"{name}.log"))
            storage = optuna.storages.JournalStorage(backend)
        except OSError as error:
            raise ConfigError(f"tune.path: {folder} cannot be written: {error}") from error
        self._study: Any = optuna.create_study(
            storage=storage, study_name=name, direction="maximize", load_if_exists=True
        )
        for trial in self._trials(optuna.trial.TrialState.RUNNING):
            # its process was killed
            self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)

    def _trials(self, *states: optuna.trial.TrialState) -> Iterable[optuna.trial.FrozenTrial]:
        found: Iterable[optuna.trial.FrozenTrial] = self._study.get_trials(deepcopy=False, states=states)
        return found

    def finished(self) -> list[tuple[Result, tuple[int, int]]]:
        """The finished trials, numbered from 0, with the times when they started and ended, in ms since 1970."""
        found = []
        for number, trial in enumerate(self._trials(self._optuna.trial.TrialState.COMPLETE)):
            stored = trial.user_attrs
            found.append((Result(number, stored["settings"], stored["metrics"]), tuple(stored["times"])))
        return found

    def outcome(self) -> Outcome:
        """What is finished so far."""
        return Outcome(self._name, self._entry.name, self._metric, tuple(result for result, _ in self.finished()))

    def run(self, judge: _Judge) -> tuple[Result, tuple[int, int]]:
        """Run the next trial, of the present settings if it is the first."""
        number = len(self.outcome().results)
        self._study.sampler = self._optuna.samplers.TPESampler(seed=self._seed + number, multivariate=True)
        if number == 0 and not list(self._trials(self._optuna.trial.TrialState.WAITING)):
            self._study.enqueue_trial(self._present)
        trial, state = self._study.ask(), self._optuna.trial.TrialState.FAIL
        began = int(time.time() * 1000)
        value = None
        try:
            suggested = self._suggested(trial)
            # the present settings are tried as they are, not rounded
            settings = suggested if number else self._present
            metrics = judge.metrics(settings)
            for name, stored in (
                ("settings", settings),
                ("metrics", metrics),
                ("times", [began, int(time.time() * 1000)]),
            ):
                trial.set_user_attr(name, stored)
            value, state = metrics[self._metric], self._optuna.trial.TrialState.COMPLETE
        finally:
            self._study.tell(trial, value, state=state)
        return self.finished()[-1]

    def _suggested(self, trial: optuna.trial.Trial) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, space in self._spaces.items():
            if space.is_int:
                found[name] = trial.suggest_int(name, int(space.low), int(space.high), log=space.is_log)
            else:
                value = trial.suggest_float(name, space.low, space.high, log=space.is_log)
                found[name] = min(max(float(f"{value:.{_DIGITS}g}"), space.low), space.high)
        return found
