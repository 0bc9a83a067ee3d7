"""Settings: frozen models over layers of YAML, the only reader of YAML.

Layers, later ones win: `conf/base.yaml`, `conf/<env>.yaml`, then each `--set a.b=value`. Interpolation is OmegaConf's,
`${oc.env:NAME,default}` for the environment, where an empty variable counts as not set. Unknown keys and wrong types
are refused with the file and the path.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from yaml import YAMLError

from encore.errors import ConfigError
from encore.vocabulary import FEATURES


def _environment(name: str, *default: Any) -> str | None:
    """OmegaConf's `oc.env`, but for empty variables, which scripts and containers leave behind for unset ones."""
    value = os.environ.get(name)
    if value:
        return value
    if not default:
        raise KeyError(f"environment variable {name} is not set")
    return None if default[0] is None else str(default[0])


OmegaConf.register_resolver("oc.env", _environment, replace=True, annotation_validation="off")


class Section(BaseModel):
    """A group of settings: frozen, no unknown keys, and no silent conversion between types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class LakeConfig(Section):
    """Where the Delta tables are."""

    path: str = Field(description="Folder or s3://, s3a:// prefix of the tables; each lives at <path>/<table>.")


class RawConfig(Section):
    """Where the input is."""

    playlists: str = Field(description="Slices: a folder, a glob, a file, or an s3://, s3a:// prefix or glob.")
    features: str | None = Field(
        description="File or folder of audio features for the provider `file`; null where none is at hand."
    )


class S3Config(Section):
    """How S3 is reached. Credentials are never settings: they come from the environment or the machine's role."""

    endpoint: str | None = Field(description="Address of a server other than AWS; null: AWS.")
    region: str | None = Field(description="Region; null: from the environment.")
    path_style: bool = Field(description="Bucket in the path and not in the host name: servers other than AWS want it.")


class SparkConfig(Section):
    """The Spark session. On EMR the cluster's own defaults win where a value here is null."""

    master: str | None = Field(description="Spark master, such as local[2]; null: what spark-submit was given.")
    driver_memory: str | None = Field(
        description="Heap of the JVM for local sessions, such as 4g; Python workers come on top of it."
    )
    shuffle_partitions: int = Field(
        ge=1, description="Partitions of a shuffle. Only ingest shuffles; few are fast on a small machine."
    )
    settings: dict[str, str] = Field(description="Any further Spark settings, by full name.")


class IngestConfig(Section):
    """Reading slices."""

    slices_per_task: int = Field(
        ge=1,
        description="Slices that one Python task parses: more spare start-up costs, fewer spread the work better and "
        "hold less memory (a task holds one slice and its own distinct tracks).",
    )
    max_tracks: int = Field(ge=1, description="A playlist with more tracks is refused; the dataset's bound is 250.")
    payload_bytes: int = Field(ge=0, description="How much of a refused record is kept in quarantine.")
    trust_timestamps: bool = Field(
        description="Take a file of unchanged size and time of change as unchanged; false: read and digest each again."
    )
    vanished: Literal["keep", "remove"] = Field(
        description="What to do with playlists whose file is gone and that no other file has: keep or remove them."
    )


class FeaturesConfig(Section):
    """Audio features: where they come from and how they are asked for."""

    provider: Literal["file", "spotify", "reccobeats"] = Field(description="Which provider is asked.")
    columns: dict[str, str] = Field(
        description="For files whose columns have uncommon names: ours to theirs, such as {track_uri: SongId}."
    )
    api_url: str | None = Field(description="Address of the network provider; null: its public one.")
    chunk: int = Field(ge=1, description="Tracks that are committed at a time by a network provider.")
    max_attempts: int = Field(ge=1, description="Tries of a request before it counts as failed.")
    backoff_seconds: float = Field(gt=0, description="First wait between tries; it doubles each time.")
    max_wait_seconds: float = Field(
        gt=0,
        description="Longest wait; a service that asks for more (Retry-After) ends the job, to be run again.",
    )
    timeout_seconds: float = Field(gt=0, description="Of one request.")
    max_tracks: int | None = Field(
        ge=1,
        default=None,
        description="Ask for so many tracks at most, those in most playlists first; null: for all.",
    )


class VectorsConfig(Section):
    """How features become vectors."""

    transform: Literal["raw", "zscore", "whiten"] = Field(
        description="raw: as they are; zscore: mean 0 and deviation 1 each; whiten: uncorrelated as well (ZCA)."
    )
    weights: dict[str, float] = Field(description="Factor of a feature in every distance, by name; 1 where not named.")


class SplitConfig(Section):
    """Which tracks are held out."""

    seed: int = Field(ge=0, description="Another seed holds out other tracks.")
    fraction: float = Field(
        gt=0, lt=1, description="Share of a playlist's distinct tracks that are held out, rounded up."
    )


class RecommendConfig(Section):
    """Which models recommend, and how much."""

    models: tuple[str, ...] = Field(min_length=1, strict=False, description="Names in the registry of models.")
    k: int = Field(ge=1, description="Recommended tracks a playlist; the challenge's measure is at 500.")
    seed: int = Field(ge=0, description="Of models that draw at random.")
    query_block: int = Field(ge=1, description="Playlists that a kernel works on at a time: bounds its memory.")
    item_block: int = Field(ge=1, description="Tracks that a kernel looks at at a time: bounds its memory.")
    index_items: int = Field(
        ge=1,
        description="Tracks of one index; a catalogue of more is searched index after index: bounds the memory of "
        "building one and of searching.",
    )


class RunConfig(Section):
    """How a job goes about its work."""

    chunk_playlists: int = Field(
        ge=1,
        description="Pids to a commit of a long write: what a failure may cost, and what the driver holds.",
    )


class MaintainConfig(Section):
    """Keeping tables in order."""

    small_files: int = Field(
        ge=2, description="A table, or a partition, of at least so many files below 16 MB has them merged."
    )
    retention_days: int = Field(
        ge=7,
        description="Files that no newest version refers to are kept so long at least: no reader takes longer. Those "
        "of a version that a run in MLflow refers to are kept for as long as that run.",
    )


class ReportConfig(Section):
    """The report."""

    path: str = Field(description="Folder where the page is written, besides being logged.")
    top: int = Field(ge=1, description="Rows of its lists: most featured artists, titles, tracks.")
    sample_playlists: int = Field(ge=1, description="Playlists, spread evenly, that its costlier pictures look at.")


class TrackingConfig(Section):
    """MLflow."""

    uri: str = Field(description="Tracking store: MLFLOW_TRACKING_URI where that is set, else a local sqlite file.")
    login: str | None = Field(
        description="Name or ARN of a secret in AWS Secrets Manager with `uri`, `username` and `password` of MLflow, "
        "JSON; it stands for tracking.uri, and keeps address and login out of command lines, logs and plans."
    )
    experiment: str = Field(description="Name of the experiment.")
    artifacts: str | None = Field(description="Where a new experiment of a local store keeps its artefacts.")

    @property
    def store(self) -> str:
        """The store as the settings name it: the secret that holds its address, or the address."""
        return self.login or self.uri


class EmrConfig(Section):
    """Where `encore submit` starts jobs on AWS; `--stage` fills in what a deployment made."""

    application: str | None = Field(description="Id of the EMR Serverless application.")
    role: str | None = Field(description="ARN of the role with which the job runs there.")
    cluster: str | None = Field(description="Id of the EMR cluster on EC2.")
    code: str | None = Field(description="s3:// folder with what `make package` made.")
    logs: str | None = Field(description="s3:// folder for logs and outcomes.")
    minutes: int = Field(ge=5, description="After how long a job is ended by EMR.")


class LogConfig(Section):
    """Logs."""

    level: Literal["debug", "info", "warning", "error"] = Field(description="Least level that is written.")
    format: Literal["auto", "json", "text"] = Field(description="auto: text on a terminal, JSON lines elsewhere.")


class Config(Section):
    """All settings of a run."""

    env: str = Field(description="Name of the environment, of conf/<env>.yaml.")
    lake: LakeConfig
    raw: RawConfig
    s3: S3Config
    spark: SparkConfig
    ingest: IngestConfig
    features: FeaturesConfig
    vectors: VectorsConfig
    split: SplitConfig
    recommend: RecommendConfig
    run: RunConfig
    maintain: MaintainConfig
    report: ReportConfig
    tracking: TrackingConfig
    emr: EmrConfig
    log: LogConfig

    def flat(self) -> dict[str, Any]:
        """Settings by dotted path, for logging and comparing runs."""
        found: dict[str, Any] = {}

        def walk(prefix: str, value: Any) -> None:
            if isinstance(value, dict) and value:
                for name, inner in value.items():
                    walk(f"{prefix}.{name}" if prefix else name, inner)
            else:
                found[prefix] = value

        walk("", self.model_dump(mode="json"))
        return found

    def yaml(self, hide: Callable[[Any], Any] = lambda settings: settings) -> str:
        """The resolved settings as YAML; `hide` takes out of the mapping what is not to be shown or logged."""
        return OmegaConf.to_yaml(OmegaConf.create(hide(self.model_dump(mode="json"))))


def conf_dir() -> Path:
    """The folder of the YAML layers: ENCORE_CONF_DIR, else conf/ in the working folder, beside the package, or in the
    application archive."""
    given = os.environ.get("ENCORE_CONF_DIR")
    own = [Path("conf"), Path(__file__).resolve().parents[2] / "conf", Path(sys.prefix) / "conf"]
    candidates = [Path(given)] if given else own
    for candidate in candidates:
        if (candidate / "base.yaml").is_file():
            return candidate
    raise ConfigError(
        "no conf/base.yaml found in " + " or ".join(str(c) for c in candidates),
        remedy="call from the project's folder or set ENCORE_CONF_DIR",
    )


def _layer(path: Path) -> DictConfig:
    try:
        loaded = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not YAML settings: {_one_line(error)}") from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{path}: a mapping of settings expected, a list found")
    return loaded


def read_yaml(path: Path) -> Any:
    """A YAML file of conf/ that is not a layer of settings, as plain values. ConfigError where it is not one."""
    return OmegaConf.to_container(_layer(path), resolve=True)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _node(layer: Any, path: tuple[Any, ...]) -> Any:
    """The node at a path, not interpolated. KeyError where the layer does not have it."""
    for part in path:
        is_there = isinstance(layer, DictConfig) and part in layer
        is_there = is_there or (isinstance(layer, ListConfig) and isinstance(part, int) and part < len(layer))
        if not is_there:
            raise KeyError(part)
        layer = layer._get_node(part)
    return layer


_EXPECTED = {"extra_forbidden": "unknown key", "missing": "missing", "model_type": "a mapping of settings expected"}


def _origin(path: tuple[Any, ...], layers: list[tuple[str, DictConfig]]) -> str:
    """The last layer that says something about a path."""
    for name, layer in reversed(layers):
        try:
            _node(layer, path)
        except KeyError:
            continue
        return name
    return layers[0][0]


def _merge(layers: list[tuple[str, DictConfig]]) -> DictConfig:
    """One layer over the other. Raises ConfigError for a list where a mapping is, or the other way round."""
    merged = OmegaConf.create()
    for name, layer in layers:
        try:
            merged.merge_with(layer)
        except (OmegaConfBaseException, TypeError, ValueError) as error:
            raise ConfigError(f"{name}: {_clash(merged, layer) or _one_line(error)}") from error
    return merged


def _clash(below: DictConfig, above: DictConfig, prefix: str = "") -> str | None:
    """Where a layer has a list instead of a mapping, or the other way round, which OmegaConf does not say."""
    for name in map(str, above):
        old, new = (layer._get_node(name) for layer in (below, above))
        if isinstance(old, DictConfig) and isinstance(new, DictConfig):
            inner = _clash(old, new, f"{prefix}{name}.")
            if inner:
                return inner
        elif isinstance(old, (DictConfig, ListConfig)) and isinstance(new, (DictConfig, ListConfig)):
            kinds = ["a mapping" if isinstance(node, DictConfig) else "a list" for node in (old, new)]
            if kinds[0] != kinds[1]:
                return f"{prefix}{name}: {kinds[0]} expected, {kinds[1]} found"
    return None


def _unresolved(error: OmegaConfBaseException, layers: list[tuple[str, DictConfig]]) -> ConfigError:
    """Our error for an interpolation that gives nothing: names the layer, the path and the variables not set."""
    dotted = str(error.full_key or "")
    path = tuple(int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", dotted))
    origin = _origin(path, layers)
    try:
        text = str(_node(dict(layers)[origin], path)._value())
    except KeyError:
        text = ""
    unset = [name for name in re.findall(r"oc\.env:\s*([A-Za-z_]\w*)", text) if not os.environ.get(name)]
    if unset:
        what = f"the environment variable {' or '.join(unset)} is not set"
        return ConfigError(f"{origin}: {dotted}: {what}", remedy=f"set it, or give --set {dotted}=VALUE")
    return ConfigError(f"{origin}: {dotted}: {text} has no value: {str(error).splitlines()[0]}")


def load_config(env: str = "local", overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read the layers for `env`, apply `a.b=value` overrides (YAML values), and check everything.

    Raises ConfigError that names file, path, expected and found of every wrong setting.
    """
    folder = conf_dir()
    own = folder / f"{env}.yaml"
    known = sorted(p.stem for p in folder.glob("*.yaml") if p.stem != "base")
    if env not in known:
        raise ConfigError(f"no environment {env!r} in {folder}", remedy=f"one of: {', '.join(known)}")
    layers = [(str(folder / "base.yaml"), _layer(folder / "base.yaml")), (str(own), _layer(own))]
    for override in overrides:
        name, sign, _ = override.partition("=")
        if not sign or not name.strip():
            raise ConfigError(f"--set {override}: a.b=value expected")
        try:
            layers.append((f"--set {override}", OmegaConf.from_dotlist([override])))
        except (YAMLError, OmegaConfBaseException) as error:
            raise ConfigError(f"--set {override}: not understood: {_one_line(error)}") from error
    for name, layer in layers:
        if "env" in layer:
            raise ConfigError(f"{name}: env: not a setting, but the name of the environment", remedy="give it by --env")
    merged = _merge([*layers, ("--env", OmegaConf.create({"env": env}))])
    try:
        plain = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise _unresolved(error, layers) from error
    try:
        config = Config.model_validate(plain)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            path = tuple(item["loc"])
            dotted = ".".join(str(part) for part in path)
            found = "" if item["type"] in ("extra_forbidden", "missing") else f", {item['input']!r} found"
            what = _EXPECTED.get(item["type"], item["msg"].lower())
            problems.append(f"{_origin(path, layers)}: {dotted}: {what}{found}")
        raise ConfigError("; ".join(problems)) from error
    unknown = sorted(set(config.vectors.weights) - set(FEATURES))
    if unknown:
        where = _origin(("vectors", "weights", unknown[0]), layers)
        raise ConfigError(f"{where}: vectors.weights.{unknown[0]}: unknown feature", remedy=", ".join(FEATURES))
    return config
