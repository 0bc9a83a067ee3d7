"""Settings: frozen models, loaded from layers of YAML. No other module reads YAML.

The layers, in order of increasing precedence: `conf/base.yaml`, `conf/<env>.yaml`, then each `--set a.b=value`.
Interpolation is OmegaConf's; `${oc.env:NAME,default}` reads an environment variable, treating an empty one as unset.
Unknown keys and wrong types are errors that name the file and the path.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from yaml import YAMLError

from encore.errors import ConfigError
from encore.vocabulary import FEATURES


def _environment(name: str, *default: Any) -> str | None:
    """OmegaConf's `oc.env`, except that empty variables, which scripts and containers leave behind, count as unset."""
    value = os.environ.get(name)
    if value:
        return value
    if not default:
        raise KeyError(f"environment variable {name} is not set")
    return None if default[0] is None else str(default[0])


OmegaConf.register_resolver("oc.env", _environment, replace=True, annotation_validation="off")


class Section(BaseModel):
    """A group of settings: frozen, without unknown keys or implicit type conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class LakeConfig(Section):
    """Location of the Delta tables."""

    path: str = Field(description="Folder, or s3:// or s3a:// prefix, of the tables; each is at <path>/<table>.")


class RawConfig(Section):
    """Location of the input."""

    playlists: str = Field(description="Slices: a folder, a glob, a file, or an s3:// or s3a:// prefix or glob.")
    features: str | None = Field(
        description="File or folder of audio features for the provider `file`; null: there are none."
    )
    tracks: str | None = Field(
        default=None,
        description="File or folder of tracks, which get an id even if no playlist has them, so that they can be "
        "recommended for their audio features: CSV, TSV, JSON lines or Parquet with track_uri and any of track_name, "
        "artist_uri, artist_name, album_uri, album_name, duration_ms; null: there are none.",
    )


class S3Config(Section):
    """Access to S3. Credentials are never settings: they come from the environment or the machine's role."""

    endpoint: str | None = Field(description="URL of an S3-compatible server; null: AWS.")
    region: str | None = Field(description="AWS region; null: from the environment.")
    path_style: bool = Field(
        description="Put the bucket in the path instead of the host name, which most servers other than AWS require."
    )


class SparkConfig(Section):
    """The Spark session. On EMR, the cluster's defaults apply to settings that are null."""

    master: str | None = Field(description="Spark master, such as local[2]; null: the one passed to spark-submit.")
    driver_memory: str | None = Field(
        description="JVM heap of local sessions, such as 4g; Python workers need memory in addition."
    )
    shuffle_partitions: int = Field(
        ge=1, description="Number of shuffle partitions. Only ingest shuffles; few are faster on a small machine."
    )
    settings: dict[str, str] = Field(description="Additional Spark settings, by full name.")


class IngestConfig(Section):
    """Reading slices."""

    slices_per_task: int = Field(
        ge=1,
        description="Slices that each Python task parses: more reduce start-up costs; fewer balance the load better "
        "and need less memory (a task holds one slice and its own distinct tracks).",
    )
    max_tracks: int = Field(
        ge=1, description="Playlists with more tracks are rejected; the dataset's own limit is 250."
    )
    bad_items: Literal["drop", "refuse"] = Field(
        description="What to do with an item of a playlist that is not a track of Spotify, such as a local file, a "
        "podcast episode or null: drop the item, or refuse the playlist. Either way it is recorded in quarantine."
    )
    payload_bytes: int = Field(ge=0, description="How many bytes of a rejected record are kept in quarantine.")
    trust_timestamps: bool = Field(
        description="Treat files with the same size and modification time as unchanged; false: read and hash all files."
    )
    vanished: Literal["keep", "remove"] = Field(
        description="What to do with playlists whose file is gone and that no other file has: keep or remove them."
    )


class FeaturesConfig(Section):
    """Audio features: where they come from and how they are requested."""

    provider: Literal["file", "spotify", "reccobeats"] = Field(description="Source of the audio features.")
    columns: dict[str, str] = Field(
        description="For files with unusual column names: Encore's names to the file's, such as {track_uri: SongId}."
    )
    api_url: str | None = Field(description="URL of the network provider; null: its public URL.")
    chunk: int = Field(ge=1, description="Tracks per commit with a network provider.")
    max_attempts: int = Field(ge=1, description="Attempts at a request before it fails.")
    backoff_seconds: float = Field(gt=0, description="Wait after the first attempt; it doubles with each further one.")
    max_wait_seconds: float = Field(
        gt=0,
        description="Longest wait between attempts; if the service asks for a longer one (Retry-After), the job ends "
        "and can be run again later.",
    )
    timeout_seconds: float = Field(gt=0, description="Timeout for connecting and for each wait for data.")
    max_tracks: int | None = Field(
        ge=1,
        default=None,
        description="Request at most this many tracks, those in the most playlists first; null: all.",
    )


class VectorsConfig(Section):
    """Conversion of features to vectors."""

    transform: Literal["raw", "zscore", "whiten"] = Field(
        description="raw: unchanged; zscore: mean 0 and standard deviation 1; whiten: also uncorrelated (ZCA)."
    )
    weights: dict[str, float] = Field(description="Weight of each feature in distances, by name; 1 by default.")


class SplitConfig(Section):
    """The holdout split."""

    protocol: Literal["random", "challenge"] = Field(
        description="random: hold out random tracks of every playlist; challenge: take whole playlists out of training "
        "and evaluate them as the ten kinds of the RecSys Challenge 2018, from title only to 100 tracks."
    )
    seed: int = Field(ge=0, description="Seed of the hash that decides which tracks are held out.")
    fraction: float = Field(
        gt=0, lt=1, description="Share of each playlist's distinct tracks that is held out, rounded up (random)."
    )
    challenge_playlists: int | float = Field(
        gt=0,
        description="Playlists to evaluate, a tenth of them for each kind: a number, or below 1 a share of all "
        "playlists (challenge).",
    )


class FusionConfig(Section):
    """The model `fusion`."""

    depth: int = Field(ge=1, description="Candidates of each of its models, besides the playlist's own tracks.")


class RankerConfig(Section):
    """The model `ranker`: boosted trees that order the best candidates of `fusion` anew."""

    candidates: int = Field(ge=1, description="Candidates of `fusion` that are ordered anew, for each playlist.")
    trees: int = Field(ge=1, description="Trees at most; fewer if the held-out playlists of the trial want no more.")
    learning_rate: float = Field(gt=0, le=1, description="How much of its correction each tree contributes.")
    leaves: int = Field(ge=2, le=32, description="Leaves of a tree at most.")
    least_in_leaf: int = Field(ge=1, description="Candidates in a leaf at least.")
    rows: int = Field(
        ge=1,
        description="Candidates to learn from, in addition to the hits: of more, a sample stands for all. Bounds the "
        "time and memory of fitting.",
    )
    least_queries: int = Field(
        ge=2, description="With fewer playlists in the trial, nothing is learned, and the order is that of `fusion`."
    )
    ablation: bool = Field(
        description="Measure how much each group of features contributes, by fitting once more without each."
    )


class IalsConfig(Section):
    """The model `ials`: matrix factorisation by implicit alternating least squares."""

    dimensions: int = Field(ge=1, description="Dimensions of the factors; more are better, and slower.")
    iterations: int = Field(ge=1, description="Iterations of training; each solves all playlists, then all items.")
    cg_steps: int = Field(ge=1, description="Steps of the conjugate gradient method per row and iteration.")
    unobserved_weight: float = Field(gt=0, description="Weight of an item that a playlist does not have.")
    regularization: float = Field(
        gt=0,
        description="Weight of the squared norm of an average playlist's factors. Other rows have weights in "
        "proportion to the sum of their entries' weights, including unobserved ones. Because it is stated for a "
        "playlist and not per entry, it need not shrink as the catalogue grows.",
    )
    popularity_exponent: float = Field(ge=0, description="How much entries of popular tracks and artists are damped.")
    length_exponent: float = Field(ge=0, description="How much entries of long playlists are damped.")
    artist_weight: float = Field(ge=0, description="Weight of the entries of artists, relative to those of tracks.")
    title_weight: float = Field(ge=0, description="Weight of the entries of a title's words and n-grams.")
    block_entries: int = Field(
        ge=1, description="Entries of the matrix that are solved at a time, and written to one file; bounds memory."
    )
    entries_in_memory: int = Field(
        ge=1, description="Entries of the matrix that are transposed at a time, 8 bytes each; bounds memory."
    )


class AdjacencyConfig(Section):
    """The model `adjacency`: tracks that are close to the seeds in other playlists."""

    reach: int = Field(ge=1, le=250, description="Largest distance in a playlist at which two tracks count as close.")
    seed_damping: float = Field(ge=0, description="A seed counts by the number of its playlists to minus this power.")
    track_damping: float = Field(
        ge=0, description="A score is divided by the number of the track's playlists to this power."
    )
    postings: int = Field(
        ge=1, description="Playlists per seed that are visited: of more, an evenly spaced sample stands for all."
    )


class ItemKnnConfig(Section):
    """The model `item_knn`: tracks that occur in the same playlists as the seeds."""

    seed_damping: float = Field(ge=0, description="A seed counts by the number of its playlists to minus this power.")
    track_damping: float = Field(
        ge=0, description="A score is divided by the number of the track's playlists to this power."
    )
    postings: int = Field(
        ge=1, description="Playlists per seed that are visited: of more, an evenly spaced sample stands for all."
    )


class PlaylistKnnConfig(Section):
    """The model `playlist_knn`: tracks of the most similar playlists."""

    neighbours: int = Field(ge=1, description="How many playlists are neighbours.")
    idf_power: float = Field(
        ge=0, description="A seed in n playlists counts 1 / ((n - 1) ** idf_power + 1) in similarities."
    )
    length_damping: float = Field(
        ge=0, description="A similarity is divided by the length of the playlist to this power."
    )
    similarity_power: int = Field(ge=1, le=8, description="A neighbour counts by its similarity to this power.")
    track_damping: float = Field(
        ge=0, description="A score is divided by the number of the track's playlists to this power."
    )
    postings: int = Field(
        ge=1, description="Playlists per seed that are visited: of more, an evenly spaced sample stands for all."
    )


class ArtistConfig(Section):
    """The model `artist`: popular tracks by the artists of the seeds."""

    seeds_power: float = Field(ge=0, description="An artist counts by the number of its seeds to this power.")
    rows_damping: float = Field(
        ge=0, description="A score is divided by the number of the artist's rows in playlists to this power."
    )
    popularity_power: float = Field(ge=0.1, description="A track counts by the number of its playlists to this power.")


class TitleConfig(Section):
    """The model `title`: tracks of playlists with similar titles."""

    neighbours: int = Field(ge=1, description="How many playlists are neighbours.")
    similarity_power: int = Field(
        ge=0, le=8, description="A neighbour counts by the similarity of its title to this power."
    )
    length_damping: float = Field(ge=0, description="What a neighbour counts is divided by its length to this power.")
    track_damping: float = Field(
        ge=0, description="A score is divided by the number of the track's playlists to this power."
    )


class RecommendConfig(Section):
    """Models and the number of recommendations."""

    models: tuple[str, ...] = Field(min_length=1, strict=False, description="Models to run, by name.")
    k: int = Field(ge=1, description="Recommended tracks per playlist; the challenge evaluates 500.")
    seed: int = Field(ge=0, description="Seed of models that use random numbers.")
    trial_playlists: int = Field(
        ge=0,
        description="Playlists whose tracks are partly hidden from the models that learn from lists, so that models "
        "that combine others can learn from how these do: at most this many, and at most a tenth of all.",
    )
    train_on_challenge: bool = Field(
        description="Train models also on the tracks that challenge sets give (challenge_playlists)."
    )
    fusion: FusionConfig
    ranker: RankerConfig
    query_block: int = Field(ge=1, description="Playlists that a kernel processes at a time; bounds its memory.")
    item_block: int = Field(ge=1, description="Tracks that a kernel processes at a time; bounds its memory.")
    index_items: int = Field(
        ge=1,
        description="Tracks per index; a larger catalogue is split into several indexes that are searched in turn. "
        "Bounds the memory of building and searching an index.",
    )
    ials: IalsConfig
    adjacency: AdjacencyConfig
    artist: ArtistConfig
    item_knn: ItemKnnConfig
    playlist_knn: PlaylistKnnConfig
    title: TitleConfig


class EvaluateConfig(Section):
    """What is evaluated."""

    sample: int | None = Field(
        ge=1,
        description="Evaluate only this many playlists, chosen by a hash, the same for all models; null: all. Other "
        "playlists get no recommendations, so an expensive model can be tried on a large dataset within minutes.",
    )


class ExpectationConfig(Section):
    """The bound of an expectation, and what a breach does."""

    bound: float = Field(ge=0, description="What is still as expected; `encore checks --describe` says of what.")
    severity: Literal["fail", "warn", "ignore"] = Field(
        description="fail: a breach fails the job, and no later one runs; warn: it is reported; ignore: not checked."
    )


class CheckConfig(Section):
    """Expectations of what was ingested and evaluated."""

    expect: dict[str, ExpectationConfig] = Field(
        description="Bound and severity of each expectation, by name; `encore checks --describe` explains them."
    )
    accept: tuple[str, ...] = Field(
        strict=False,
        description="Breaches that this run accepts: names of expectations, or NAME/MODEL. Set it for one run only.",
    )


class TuneConfig(Section):
    """Tuning of models by `encore tune`."""

    path: str = Field(description="Local folder of the studies, which `encore tune` continues when called again.")
    playlists: int = Field(
        ge=1, description="Training playlists that trials are judged by: at most this many, and a tenth of all."
    )


class RunConfig(Section):
    """How jobs run."""

    chunk_playlists: int = Field(
        ge=1,
        description="Playlists per commit of a long write: the most work that a failure can lose, and what the driver "
        "holds at a time.",
    )
    textfile: str | None = Field(
        description="File with metrics of the jobs that each run replaces when it ends, for node_exporter's textfile "
        "collector: a name that ends in .prom. null: none."
    )


class MaintainConfig(Section):
    """Table maintenance."""

    small_files: int = Field(
        ge=2, description="Compact a table or partition that has at least this many files below 16 MB."
    )
    retention_days: int = Field(
        ge=7,
        description="Keep files that the latest version no longer references for at least this many days; no reader "
        "may take longer. Files of versions that an MLflow run references are kept as long as the run. Fitted "
        "models to which nothing refers are kept as long, too.",
    )


class RegistryConfig(Section):
    """Registering models in MLflow."""

    models: tuple[str, ...] = Field(strict=False, description="Models to register; empty: all of recommend.models.")
    p99_ms: float = Field(
        gt=0,
        description="Milliseconds of CPU within which a version must answer 99 % of playlists to be promoted.",
    )
    timed_playlists: int = Field(ge=1, description="Playlists that are asked for to measure that.")


class ReportConfig(Section):
    """The report."""

    path: str = Field(description="Folder to which the page is written, in addition to being logged in MLflow.")
    top: int = Field(ge=1, description="Length of its lists of top artists, tracks and titles.")
    sample_playlists: int = Field(ge=1, description="Size of the uniform sample of playlists behind its slower plots.")
    compare: tuple[str, ...] = Field(
        max_length=2,
        strict=False,
        description="Models whose lists it shows side by side, at most two; empty: the two with the highest NDCG.",
    )
    compare_playlists: int = Field(
        ge=0,
        description="Number of playlists with held-out tracks, a uniform sample, for which it shows these lists.",
    )


class TrackingConfig(Section):
    """Tracking in MLflow."""

    uri: str = Field(description="Tracking URI: MLFLOW_TRACKING_URI if it is set, otherwise a local SQLite file.")
    login: str | None = Field(
        description="Name or ARN of a JSON secret in AWS Secrets Manager with MLflow's `uri`, `username` and "
        "`password`. It replaces tracking.uri and keeps the address and login out of command lines, logs and plans."
    )
    experiment: str = Field(description="Name of the experiment.")
    artifacts: str | None = Field(description="Artifact location of a new experiment in a local store.")

    @property
    def store(self) -> str:
        """The store as named by the settings: the secret that contains its address, or the address itself."""
        return self.login or self.uri


class CanaryConfig(Section):
    """How a challenger becomes champion, or does not: see deploy/docs/canary.md."""

    steps: str = Field(
        description="The ramp: weight:seconds of each step, separated by commas. The weight is the share of users that "
        "the challenger answers; after the last step it is the champion."
    )
    seconds: float = Field(gt=0, description="Interval of verdicts.")
    min_requests: int = Field(
        ge=1, description="Requests of a step that either version must have answered for a verdict."
    )
    slow_requests: int = Field(
        ge=1, description="Requests of the challenger from which on its 99th percentile is compared."
    )
    bound_ms: float = Field(ge=0, description="A challenger with a 99th percentile up to here is not slow.")
    slow_ratio: float = Field(ge=1, description="Nor is one up to this multiple of the champion's.")


class ServeConfig(Section):
    """The scorer: recommendations over HTTP by `encore serve`. In its container, settings are environment variables,
    ENCORE_SERVE_ and the name in capitals. The token that requests must have is only such a variable,
    ENCORE_SERVE_TOKEN."""

    model: str | None = Field(
        description="A folder with a bundle, or models:/encore-ranker@champion or models:/encore-ranker/3 in the "
        "registry; null: the champion of the first of recommend.models that has one."
    )
    cache: str = Field(description="Folder of downloaded bundles.")
    host: str = Field(description="Address to listen on; 0.0.0.0: all addresses of this machine.")
    port: int = Field(ge=0, le=65535, description="Port to listen on; 0: any free one.")
    max_body_bytes: int = Field(ge=1, description="Size of a request's body; larger ones are answered with 413.")
    max_seeds: int = Field(ge=1, description="Tracks of a playlist at most.")
    max_playlists: int = Field(ge=1, description="Playlists of a request at most.")
    max_k: int = Field(ge=1, description="Recommendations for a playlist at most.")
    threads: int = Field(
        ge=1,
        description="Requests that are computed at a time; one alone uses all threads if its model is made of several.",
    )
    max_waiting: int = Field(
        ge=0, description="Requests that wait for a thread; further ones are answered with 503 at once."
    )
    max_connections: int = Field(
        ge=1, description="Open connections at most; further ones are answered with 503 and closed."
    )
    seconds: float = Field(gt=0, description="A request not answered after this time is answered with 503.")
    drain_seconds: float = Field(ge=0, description="After SIGTERM, requests have this long to be answered.")
    linger_seconds: float = Field(
        ge=0,
        description="After SIGTERM, new connections are still accepted for this long, in which a load balancer learns "
        "of it.",
    )
    keep_alive_seconds: int = Field(
        ge=1,
        description="An idle connection is closed after this time. It must be longer than the idle time-out of a load "
        "balancer in front, or that one sends requests to connections that are being closed and answers 502.",
    )
    poll_seconds: float = Field(gt=0, description="The registry is asked this often which versions to serve.")
    canary: CanaryConfig
    embed: bool = Field(
        description="Whether the page may show Spotify's player, which loads content from open.spotify.com."
    )


class EmrConfig(Section):
    """Where `encore submit` runs jobs on AWS; `--stage` fills in the values of a deployment."""

    application: str | None = Field(description="Id of the EMR Serverless application.")
    role: str | None = Field(description="ARN of the job's execution role on EMR Serverless.")
    cluster: str | None = Field(description="Id of the EMR cluster on EC2.")
    code: str | None = Field(description="s3:// folder with the output of `make package`.")
    logs: str | None = Field(description="s3:// folder for logs and job outcomes.")
    minutes: int = Field(ge=5, description="Minutes after which EMR ends a job.")
    stage: str | None = Field(description="Name of the stage, with which job runs are tagged for the bill.")


class LogConfig(Section):
    """Logging."""

    level: Literal["debug", "info", "warning", "error"] = Field(description="Lowest level that is logged.")
    format: Literal["auto", "json", "text"] = Field(description="auto: text on a terminal, JSON lines elsewhere.")


class Config(Section):
    """All settings of a run."""

    env: str = Field(description="Name of the environment: settings come from conf/<env>.yaml.")
    lake: LakeConfig
    raw: RawConfig
    s3: S3Config
    spark: SparkConfig
    ingest: IngestConfig
    features: FeaturesConfig
    vectors: VectorsConfig
    split: SplitConfig
    recommend: RecommendConfig
    evaluate: EvaluateConfig
    check: CheckConfig
    tune: TuneConfig
    run: RunConfig
    maintain: MaintainConfig
    registry: RegistryConfig
    report: ReportConfig
    tracking: TrackingConfig
    serve: ServeConfig
    emr: EmrConfig
    log: LogConfig

    def flat(self) -> dict[str, Any]:
        """All settings by dotted path, for logging and comparing runs."""
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
        """The resolved settings as YAML; `hide` removes from the mapping what must not be shown or logged."""
        return OmegaConf.to_yaml(OmegaConf.create(hide(self.model_dump(mode="json"))))


def conf_dir() -> Path:
    """The folder of the YAML layers.

    ENCORE_CONF_DIR if it is set; otherwise conf/ in the working directory, in the repository or in the application
    archive, whichever exists first. Raises ConfigError if there is none.
    """
    given = os.environ.get("ENCORE_CONF_DIR")
    own = [Path("conf"), Path(__file__).resolve().parents[2] / "conf", Path(sys.prefix) / "conf"]
    candidates = [Path(given)] if given else own
    for candidate in candidates:
        if (candidate / "base.yaml").is_file():
            return candidate
    raise ConfigError(
        "no conf/base.yaml found in " + " or ".join(str(c) for c in candidates),
        remedy="run this in the project folder, or set ENCORE_CONF_DIR",
    )


def _layer(path: Path) -> DictConfig:
    try:
        loaded = _parsed(path.read_text(encoding="utf-8"))
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not YAML settings: {_one_line(error)}") from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{path}: expected a mapping of settings, found a list")
    return loaded


@cache
def _parsed(text: str) -> DictConfig | ListConfig:
    """The content of a YAML file, not to be changed: parsing takes longer than everything else that is done with it."""
    return OmegaConf.load(io.StringIO(text))


_WRITTEN = "# Written by `encore tune`."


def write_layer(name: str, env: str, values: Mapping[str, Any]) -> Path:
    """Write conf/<name>.yaml: the layer of an environment with some settings replaced; returns its path.

    `values`: by section. Raises ConfigError if a file of that name exists that was not written by this function.
    """
    check_layer(name)
    folder = conf_dir()
    path = folder / f"{name}.yaml"
    merged = _merge([(f"{env}.yaml", _layer(folder / f"{env}.yaml")), ("tuned", OmegaConf.create(dict(values)))])
    text = f"{_WRITTEN} It is {env}.yaml with tuned settings; use it with --env {name}.\n{OmegaConf.to_yaml(merged)}"
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {_one_line(error)}") from error
    return path


def check_layer(name: str) -> None:
    """Raise ConfigError if `write_layer` would not write this configuration, whose name may be taken."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ConfigError(f"a configuration cannot be named {name!r}", remedy="use letters, digits, - and _")
    path = conf_dir() / f"{name}.yaml"
    if path.is_file() and not path.read_text(encoding="utf-8").startswith(_WRITTEN):
        raise ConfigError(f"{path} exists already", remedy="choose another name")


def as_yaml(values: Mapping[str, Any]) -> str:
    """Settings by section as YAML, to paste into a layer."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(values)))


def read_yaml(path: Path) -> Any:
    """A YAML file in conf/ that is not a layer of settings, as plain values. Raises ConfigError if it is not valid."""
    return OmegaConf.to_container(_layer(path), resolve=True)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _node(layer: Any, path: tuple[Any, ...]) -> Any:
    """The node at a path, without interpolation. Raises KeyError if the layer does not have it."""
    for part in path:
        exists = isinstance(layer, DictConfig) and part in layer
        exists = exists or (isinstance(layer, ListConfig) and isinstance(part, int) and part < len(layer))
        if not exists:
            raise KeyError(part)
        layer = layer._get_node(part)
    return layer


_EXPECTED = {"extra_forbidden": "unknown key", "missing": "missing", "model_type": "expected a mapping of settings"}


def _origin(path: tuple[Any, ...], layers: list[tuple[str, DictConfig]]) -> str:
    """The last layer that sets a path."""
    for name, layer in reversed(layers):
        try:
            _node(layer, path)
        except KeyError:
            continue
        return name
    return layers[0][0]


def _merge(layers: list[tuple[str, DictConfig]]) -> DictConfig:
    """Merge the layers in order. Raises ConfigError if one has a list where another has a mapping."""
    merged = OmegaConf.create()
    for name, layer in layers:
        try:
            merged.merge_with(layer)
        except (OmegaConfBaseException, TypeError, ValueError) as error:
            raise ConfigError(f"{name}: {_clash(merged, layer) or _one_line(error)}") from error
    return merged


def _clash(below: DictConfig, above: DictConfig, prefix: str = "") -> str | None:
    """Describe where one layer has a list and the other a mapping, which OmegaConf's error does not say."""
    for name in map(str, above):
        old, new = (layer._get_node(name) for layer in (below, above))
        if isinstance(old, DictConfig) and isinstance(new, DictConfig):
            inner = _clash(old, new, f"{prefix}{name}.")
            if inner:
                return inner
        elif isinstance(old, (DictConfig, ListConfig)) and isinstance(new, (DictConfig, ListConfig)):
            kinds = ["a mapping" if isinstance(node, DictConfig) else "a list" for node in (old, new)]
            if kinds[0] != kinds[1]:
                return f"{prefix}{name}: expected {kinds[0]}, found {kinds[1]}"
    return None


def _unresolved(error: OmegaConfBaseException, layers: list[tuple[str, DictConfig]]) -> ConfigError:
    """The error for a failed interpolation, which names the layer, the path and any unset variables."""
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
        return ConfigError(f"{origin}: {dotted}: {what}", remedy=f"set it, or use --set {dotted}=VALUE")
    return ConfigError(f"{origin}: {dotted}: {text} has no value: {str(error).splitlines()[0]}")


def load_config(env: str = "local", overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read the layers for `env`, apply the `a.b=value` overrides (YAML values), and validate the result.

    Raises a ConfigError that names, for every invalid setting, the file, the path, and what was expected and found.
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
            raise ConfigError(f"--set {override}: expected a.b=value")
        try:
            layers.append((f"--set {override}", OmegaConf.from_dotlist([override])))
        except (YAMLError, OmegaConfBaseException) as error:
            raise ConfigError(f"--set {override}: invalid YAML: {_one_line(error)}") from error
    for name, layer in layers:
        if "env" in layer:
            raise ConfigError(f"{name}: env: is the name of the environment, not a setting", remedy="use --env")
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
            found = "" if item["type"] in ("extra_forbidden", "missing") else f", found {item['input']!r}"
            what = _EXPECTED.get(item["type"], item["msg"].lower())
            problems.append(f"{_origin(path, layers)}: {dotted}: {what}{found}")
        raise ConfigError("; ".join(problems)) from error
    unknown = sorted(set(config.vectors.weights) - set(FEATURES))
    if unknown:
        where = _origin(("vectors", "weights", unknown[0]), layers)
        raise ConfigError(f"{where}: vectors.weights.{unknown[0]}: unknown feature", remedy=", ".join(FEATURES))
    return config
