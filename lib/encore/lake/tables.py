"""The declaration of every table: name, layer, columns with their meaning, key, checks and layout.

The declarations are used to create the Delta tables, to check each write, and to render the SQL views and the
documentation. Types are those of Spark SQL; non-nullable columns and checks become Delta constraints, so that no writer
can bypass them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from encore.vocabulary import RANGES

Layer = Literal["raw", "intermediate", "primary", "feature", "model_input", "model", "model_output", "reporting"]

REASONS = (
    "not_utf8",
    "not_json",
    "not_a_slice",
    "unreadable",
    "pid_missing",
    "pid_not_integer",
    "pid_duplicate",
    "tracks_missing",
    "track_uri_malformed",
    "too_many_tracks",
    "field_malformed",
    "item_missing",
    "item_local",
    "item_episode",
    "feature_id_malformed",
    "feature_missing",
    "feature_not_a_number",
    "feature_out_of_range",
    "feature_duplicate",
    "features_unreadable",
)
"""The closed set of values of `quarantine.reason`: the first four are for files, the next ones for playlists and their
items, the last ones for a track's features or a file of features."""


@dataclass(frozen=True)
class Column:
    """A column: its Spark SQL type, what it means, and whether it may be null."""

    name: str
    type: str
    comment: str
    nullable: bool = False


@dataclass(frozen=True)
class Check:
    """A condition that every row must satisfy; null does not satisfy it.

    `sql` is the constraint that Delta enforces on every writer; `holds` is the same condition on Arrow rows, for files
    that workers write themselves. The functions below derive both from one declaration.
    """

    sql: str
    holds: Callable[[pa.Table], pa.ChunkedArray]


def at_least(name: str, least: int) -> Check:
    """The column is at least `least`."""
    return Check(f"{name} >= {least}", lambda rows: pc.greater_equal(rows[name], least))


def between(name: str, low: float, high: float) -> Check:
    """The column lies between `low` and `high`, both included."""
    return Check(
        f"{name} BETWEEN {low} AND {high}",
        lambda rows: pc.and_(pc.greater_equal(rows[name], low), pc.less_equal(rows[name], high)),
    )


def one_of(name: str, values: tuple[str, ...]) -> Check:
    """The column is one of a closed set of strings."""
    listed = ", ".join(f"'{value}'" for value in values)
    # the array is built at each check, not here: pa.array of a list imports pandas, which takes longer
    return Check(f"{name} IN ({listed})", lambda rows: pc.is_in(rows[name], pa.array(values)))


def starts_with(name: str, prefix: str) -> Check:
    """The column is a string that starts with `prefix`, which must not contain SQL wildcards."""
    return Check(f"{name} LIKE '{prefix}%'", lambda rows: pc.starts_with(rows[name], prefix))


def same_size(one: str, other: str) -> Check:
    """The two array columns have the same length."""
    return Check(
        f"size({one}) = size({other})",
        lambda rows: pc.equal(pc.list_value_length(rows[one]), pc.list_value_length(rows[other])),
    )


@dataclass(frozen=True)
class Table:
    """The declaration of a Delta table. `key` is unique; `checks`, by name, hold for every row."""

    name: str
    layer: Layer
    grain: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    checks: dict[str, Check] = field(default_factory=dict, hash=False)
    partition_by: tuple[str, ...] = ()
    stats_columns: int = 1
    """The number of leading columns for which Delta keeps minimum and maximum; not worthwhile for arrays and
    payloads."""

    def column(self, name: str) -> Column:
        """The column with that name. Raises KeyError if there is none."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(f"{self.name} has no column {name}")

    @property
    def names(self) -> tuple[str, ...]:
        """Column names in their declared order."""
        return tuple(column.name for column in self.columns)

    @property
    def ddl(self) -> str:
        """The columns as a Spark DDL string, without comments or nullability."""
        return ", ".join(f"`{column.name}` {column.type}" for column in self.columns)

    @property
    def number_key(self) -> str | None:
        """The key column, if the key apart from the partition columns is a single integer column; otherwise None."""
        names = [name for name in self.key if name not in self.partition_by]
        return names[0] if len(names) == 1 and self.column(names[0]).type in ("int", "bigint") else None


def arrow_type(ddl: str) -> pa.DataType:
    """The Arrow type for a Spark SQL type used in this module."""
    simple = {
        "bigint": pa.int64(),
        "int": pa.int32(),
        "double": pa.float64(),
        "float": pa.float32(),
        "boolean": pa.bool_(),
        "string": pa.string(),
        "timestamp": pa.timestamp("us", tz="UTC"),
    }
    if ddl.startswith("array<"):
        return pa.list_(pa.field("element", arrow_type(ddl[6:-1])))
    if ddl.startswith("map<"):
        key, value = ddl[4:-1].split(",")
        return pa.map_(arrow_type(key), arrow_type(value))
    return simple[ddl]


def arrow_schema(table: Table, names: Iterable[str] | None = None) -> pa.Schema:
    """The Arrow schema of a declared table, or of some of its columns in the order of `names`."""
    columns = table.columns if names is None else [table.column(name) for name in names]
    return pa.schema([pa.field(c.name, arrow_type(c.type), nullable=True) for c in columns])


PLAYLISTS = Table(
    name="playlists",
    layer="primary",
    grain="a playlist",
    key=("pid",),
    columns=(
        Column("pid", "bigint", "The playlist's id in the dataset"),
        Column("name", "string", "Title as its owner wrote it", True),
        Column("description", "string", "Text that its owner gave, rare", True),
        Column("collaborative", "boolean", "Whether others may edit it", True),
        Column("modified_at", "timestamp", "Day of the last change, UTC", True),
        Column("num_tracks", "int", "Number of tracks as the file states it, repeats counted", True),
        Column("num_albums", "int", "Number of distinct albums as the file states it", True),
        Column("num_artists", "int", "Number of distinct artists as the file states it", True),
        Column("num_followers", "int", "Followers when the dataset was made, the owner not counted", True),
        Column("num_edits", "int", "Editing sessions", True),
        Column(
            "duration_ms",
            "bigint",
            "Total playing time as the file states it, milliseconds; null if that is negative",
            True,
        ),
        Column("track_ids", "array<int>", "tracks.track_id in playlist order, repeats kept"),
        Column("slice", "string", "Name of the source file"),
    ),
    checks={"pid_not_negative": at_least("pid", 0)},
)

CHALLENGE_PLAYLISTS = Table(
    name="challenge_playlists",
    layer="primary",
    grain="a playlist of a challenge set",
    key=("pid",),
    columns=(
        Column("pid", "bigint", "The playlist's id in the challenge set; no playlist of `playlists` has it"),
        Column("name", "string", "Title; null if the challenge withholds it", True),
        Column("num_tracks", "int", "Number of tracks of the whole playlist, as the file states it", True),
        Column("num_holdouts", "int", "Number of tracks that the challenge withholds"),
        Column("num_samples", "int", "Number of tracks that the challenge gives, as the file states it", True),
        Column("track_ids", "array<int>", "tracks.track_id of the tracks that are given, in playlist order"),
        Column("positions", "array<int>", "Position of each of these tracks in the whole playlist, from 0"),
        Column("slice", "string", "Name of the source file"),
    ),
    checks={
        "pid_not_negative": at_least("pid", 0),
        "a_position_for_each_track": same_size("track_ids", "positions"),
    },
)

TRACKS = Table(
    name="tracks",
    layer="primary",
    grain="a track",
    key=("track_id",),
    columns=(
        Column(
            "track_id",
            "int",
            "Dense id 0, 1, 2, ...: given once, never changed; later tracks go on after the highest",
        ),
        Column("track_uri", "string", "spotify:track: and 22 characters; unique"),
        Column("track_name", "string", "Title", True),
        Column("artist_uri", "string", "URI of the first artist", True),
        Column("artist_name", "string", "Name of the first artist", True),
        Column("album_uri", "string", "URI of the album", True),
        Column("album_name", "string", "Name of the album", True),
        Column("duration_ms", "bigint", "Playing time, milliseconds; null if the file gives 0 or less", True),
        Column(
            "first_pid",
            "bigint",
            "Playlist, possibly of a challenge set, whose record gave the names and the playing time: the lowest pid "
            "of those with the fewest of these fields missing; -1: they are from raw.tracks",
        ),
        Column(
            "orphaned",
            "boolean",
            "True: no playlist holds it any more; false or null: some playlist does, possibly of a challenge set, or "
            "raw.tracks lists it",
            True,
        ),
    ),
    checks={
        "track_id_not_negative": at_least("track_id", 0),
        "track_uri_form": starts_with("track_uri", "spotify:track:"),
    },
)

INGEST_LEDGER = Table(
    name="ingest_ledger",
    layer="raw",
    grain="a source file",
    key=("slice",),
    columns=(
        Column(
            "slice",
            "string",
            "Name of the source file: its path in the folder raw.playlists, or in the part of a glob without wildcards",
        ),
        Column("size_bytes", "bigint", "Its size, bytes; of a compressed file, compressed"),
        Column(
            "digest",
            "string",
            "Of its content: xxh3: and 32 hex digits, or etag: and the object's entity tag",
        ),
        Column(
            "modified_ns",
            "bigint",
            "Its time of change, ns since 1970: with the size, spares reading it again",
        ),
        Column("n_playlists", "bigint", "Playlists taken from it, those of challenge sets included"),
        Column("n_quarantined", "bigint", "Its rows in quarantine: refused playlists and items"),
        Column("status", "string", "ingested, or refused: the whole file stands in quarantine"),
        Column("ingested_at", "timestamp", "When it was read last"),
        Column("parser", "string", "Digest of the code that parsed it; null: read again", True),
        Column("max_tracks", "bigint", "ingest.max_tracks when it was read", True),
        Column("payload_bytes", "bigint", "ingest.payload_bytes when it was read", True),
        Column("bad_items", "string", "ingest.bad_items when it was read", True),
        Column("longest", "int", "Items of its longest playlist, refused ones included", True),
        Column("tracks_table", "string", "Id of the Delta table that its playlists' track ids refer to", True),
        Column("vanished_at", "timestamp", "When a run first found it gone; null: it exists", True),
    ),
    checks={"status_known": one_of("status", ("ingested", "refused"))},
)

QUARANTINE = Table(
    name="quarantine",
    layer="raw",
    grain="a refused file, playlist, item of a playlist or record of features",
    key=("source", "record"),
    columns=(
        Column("source", "string", "Name of the source file, or of the service"),
        Column(
            "record",
            "string",
            "file: the file as a whole; playlist 3: by its position, from 0; playlist 3, item 5: an item that was "
            "dropped from it; of features: position or id",
        ),
        Column("pid", "bigint", "Its playlist, where readable", True),
        Column("reason", "string", "One of a closed set"),
        Column("detail", "string", "What was expected and what was found"),
        Column("payload", "string", "The beginning of the record", True),
        Column("stage", "string", "The job that refused it"),
        Column("taken_by", "string", "The other file that the playlist is taken from, if that is the reason", True),
    ),
    checks={"reason_known": one_of("reason", REASONS)},
    partition_by=("stage",),
)

AUDIO_FEATURES = Table(
    name="audio_features",
    layer="feature",
    grain="a track",
    key=("track_uri",),
    columns=(
        Column("track_uri", "string", "spotify:track: and 22 characters"),
        Column("danceability", "double", "How fit for dancing, 0 to 1"),
        Column("energy", "double", "Intensity, 0 to 1"),
        Column("key", "double", "Pitch class, 0 (C) to 11 (B); -1: none found"),
        Column("loudness", "double", "Mean loudness, dB, about -60 to 0"),
        Column("mode", "double", "1 major, 0 minor"),
        Column("speechiness", "double", "Share of spoken words, 0 to 1"),
        Column("acousticness", "double", "Confidence that it is acoustic, 0 to 1"),
        Column("instrumentalness", "double", "Confidence that there is no voice, 0 to 1"),
        Column("liveness", "double", "Confidence that an audience is heard, 0 to 1"),
        Column("valence", "double", "How positive it sounds, 0 to 1"),
        Column("tempo", "double", "Beats a minute"),
        Column("source", "string", "The file or the service that it came from"),
    ),
    checks={f"{name}_in_range": between(name, low, high) for name, (low, high) in RANGES.items()},
)

TRACK_VECTORS = Table(
    name="track_vectors",
    layer="feature",
    grain="a track with features",
    key=("track_id",),
    columns=(
        Column("track_id", "int", "tracks.track_id"),
        Column("vector", "array<float>", "Its standardised features, one length for all, not unit length"),
    ),
)

VECTOR_PARAMETERS = Table(
    name="vector_parameters",
    layer="model",
    grain="a transform that was fitted; the one in use is of the newest version",
    key=("transform",),
    columns=(
        Column("transform", "string", "raw, zscore or whiten"),
        Column("columns", "array<string>", "Inputs of the linear map, in order: the features, key as two"),
        Column("mean", "array<double>", "Subtracted from the inputs"),
        Column("matrix", "array<array<double>>", "Then multiplied from the left: vector = matrix (inputs - mean)"),
        Column("weights", "array<double>", "Of the inputs, applied within the matrix"),
        Column("n_tracks", "bigint", "Tracks it was fitted on"),
    ),
)

HOLDOUT = Table(
    name="holdout",
    layer="model_input",
    grain="a playlist",
    key=("pid",),
    columns=(
        Column("pid", "bigint", "playlists.pid"),
        Column("train", "array<int>", "Distinct tracks to recommend from, in playlist order"),
        Column("test", "array<int>", "Distinct tracks held out, in playlist order"),
        Column("title", "string", "Title that models may use; null: none", True),
        Column(
            "kind",
            "string",
            "Kind of the challenge protocol: the playlist is only evaluated, never trained on; null: trained on",
            True,
        ),
    ),
)

PLAYLIST_CENTROIDS = Table(
    name="playlist_centroids",
    layer="model_input",
    grain="a playlist with at least one train track that has a vector",
    key=("pid",),
    columns=(
        Column("pid", "bigint", "playlists.pid"),
        Column("vector", "array<float>", "Mean of the vectors of its train tracks"),
        Column("n_tracks", "int", "How many train tracks have a vector"),
    ),
    checks={"n_tracks_positive": at_least("n_tracks", 1)},
)

MODELS = Table(
    name="models",
    layer="model",
    grain="a fitted model, or a part that models are made of",
    key=("model", "fingerprint"),
    columns=(
        Column("model", "string", "Name in the registry of models"),
        Column("fingerprint", "string", "Digest of all that it depends on; arrays: _models/MODEL/FINGERPRINT"),
        Column("settings", "string", "Its settings, as JSON"),
        Column("parts", "map<string,string>", "Fingerprint of each model that it is made of"),
        Column("fitted_at", "timestamp", "When, UTC"),
        Column("run_id", "string", "The pipeline run that fitted it"),
        Column("seconds", "double", "How long fitting it took"),
        Column("size_bytes", "bigint", "Size of its arrays"),
        Column("arrays", "map<string,string>", "Type and shape of each array"),
        Column("digest", "string", "Of the contents of its arrays"),
        Column("inputs", "map<string,bigint>", "Delta version of each table that it was fitted on"),
        Column("table_ids", "map<string,string>", "Delta id of each of these tables"),
    ),
)

RECOMMENDATIONS = Table(
    name="recommendations",
    layer="model_output",
    grain="a playlist and a model",
    key=("model", "pid"),
    columns=(
        Column("model", "string", "Name in the registry of models"),
        Column("pid", "bigint", "playlists.pid"),
        Column("track_ids", "array<int>", "Best first, none of the playlist's train tracks, no repeats"),
        Column("scores", "array<float>", "Of the same length, not increasing; equal scores ordered by track_id"),
    ),
    checks={"a_score_for_each_track": same_size("track_ids", "scores")},
    partition_by=("model",),
    stats_columns=2,
)

PLAYLIST_METRICS = Table(
    name="playlist_metrics",
    layer="reporting",
    grain="a playlist with a non-empty test and a model",
    key=("model", "pid"),
    columns=(
        Column("model", "string", "Name in the registry of models"),
        Column("pid", "bigint", "playlists.pid"),
        Column("n_test", "int", "Test tracks"),
        Column("n_hits", "int", "Test tracks among the recommended"),
        Column("r_precision", "double", "Share of the test tracks among as many first recommendations"),
        Column("ndcg", "double", "Discounted cumulative gain over the ideal one"),
        Column("clicks", "int", "Pages of ten to turn until the first hit; 51: none"),
        Column("r_precision_artist", "double", "r_precision with .25 for each artist met without its track"),
        Column("n_train", "int", "Train tracks"),
        Column("n_recommended", "int", "Recommended tracks; 0: the model had nothing to say"),
        Column("kind", "string", "holdout.kind", True),
        Column(
            "novelty",
            "double",
            "Mean self-information of the first ten recommended tracks, bits; null: none recommended",
            True,
        ),
        Column(
            "artist_diversity",
            "double",
            "Distinct artists of the first ten recommended tracks over the number of these; null: none known",
            True,
        ),
        Column("popularity_test", "array<int>", "Test tracks by popularity: head, middle, tail, unseen", True),
        Column("popularity_hits", "array<int>", "Those of them among the recommended, in the same order", True),
        Column("popularity_early", "array<int>", "Those of them among the first n_test recommended", True),
    ),
    checks={
        "r_precision_in_range": between("r_precision", 0, 1),
        "clicks_in_range": between("clicks", 0, 51),
    },
    partition_by=("model",),
    stats_columns=2,
)

MODEL_METRICS = Table(
    name="model_metrics",
    layer="reporting",
    grain="a mean over the playlists of a bucket, of a model in a run that evaluated it",
    key=("run_id", "model", "bucket", "metric"),
    columns=(
        Column("run_id", "string", "The pipeline run that evaluated the model"),
        Column("model", "string", "Name in the registry of models"),
        Column(
            "bucket",
            "string",
            "all; train_<least>_<most>: by number of train tracks; kind_<kind>: by kind of the challenge protocol; "
            "popularity_<group>: test tracks that are head, middle, tail or unseen",
        ),
        Column(
            "metric",
            "string",
            "r_precision, r_precision_artist, ndcg, clicks; of all also share_unserved, coverage, gini, novelty, "
            "artist_diversity; of popularity groups recall (among all recommended), r_recall (among the first n_test)",
        ),
        Column("value", "double", "Mean over the playlists, or share"),
        Column("n_playlists", "bigint", "Playlists in the bucket"),
        Column("fingerprint", "string", "Digest of all that the model's rows of playlist_metrics depend on"),
        Column("evaluated_at", "timestamp", "When, UTC; a model's newest rows are those in force"),
        Column("logged_to", "string", "The MLflow store and experiment that have them; null: none", True),
        Column("fitted", "string", "models.fingerprint of the model that was evaluated; null: unknown", True),
    ),
    partition_by=("model",),
)

REGISTRATIONS = Table(
    name="registrations",
    layer="reporting",
    grain="a registered version of a model",
    key=("model", "registry", "version"),
    columns=(
        Column("model", "string", "Name in the registry of models; registered as encore-MODEL"),
        Column("registry", "string", "The MLflow store that it is registered in"),
        Column("version", "bigint", "Number of the version in that store"),
        Column("fingerprint", "string", "models.fingerprint of what was registered"),
        Column("run_id", "string", "The pipeline run that registered it"),
        Column("evaluation_run", "string", "The MLflow run with its metrics; null: not logged", True),
        Column("holdout", "string", "What it was evaluated on: id and data version of holdout, seed, k"),
        Column("verdict", "string", "champion: promoted; held: not good enough; refused: cannot be compared"),
        Column("reason", "string", "Why"),
        Column(
            "compared_with", "bigint", "Version of the champion that it was compared with; null: there was none", True
        ),
        Column("numbers", "map<string,double>", "What the verdict is based on"),
        Column("size_bytes", "bigint", "Size of its bundle"),
        Column("registered_at", "timestamp", "When, UTC"),
    ),
    checks={"verdict_known": one_of("verdict", ("champion", "held", "refused"))},
    partition_by=("model",),
)

CANARY_EVENTS = Table(
    name="canary_events",
    layer="reporting",
    grain="an event of a canary: a registered version that was tried on a part of the users",
    key=("model", "registry", "version", "started_at", "step", "event"),
    columns=(
        Column("model", "string", "Name in the registry of models; registered as encore-MODEL"),
        Column("registry", "string", "The MLflow store that it is registered in"),
        Column("version", "bigint", "Number of the challenger's version in that store"),
        Column("started_at", "timestamp", "When the canary began, UTC: a version can have several"),
        Column("step", "int", "Step of the ramp, from 0"),
        Column(
            "event",
            "string",
            "started; resumed: by another process; step: went on; promoted; rolled_back; stopped: by hand; refused",
        ),
        Column("at", "timestamp", "When, UTC"),
        Column("weight", "double", "Share of the users that the challenger answers from then on"),
        Column("champion", "bigint", "Version that it was compared with; null: it was not compared", True),
        Column("reason", "string", "Why"),
        Column("numbers", "map<string,double>", "What the verdict rests on; empty without one"),
    ),
    checks={
        "event_known": one_of("event", ("started", "resumed", "step", "promoted", "rolled_back", "stopped", "refused")),
        "weight_is_share": between("weight", 0, 1),
    },
)

CHECKS = Table(
    name="checks",
    layer="reporting",
    grain="an expectation that a job checked, for one model or for the lake as a whole",
    key=("run_id", "job", "name", "subject"),
    columns=(
        Column("run_id", "string", "The pipeline run that compared it"),
        Column("job", "string", "check: what was ingested; check_results: what was evaluated"),
        Column("name", "string", "Name of the expectation: encore.lake.expectations"),
        Column("subject", "string", "The model that it is about; empty: the lake as a whole"),
        Column("value", "double", "What was measured"),
        Column("baseline", "double", "The same in the last good run; null: none, or not comparable", True),
        Column("relation", "string", "at_least or at_most: how the value compares with the expected one"),
        Column("expected", "double", "The lowest or highest value that is expected; null: no baseline", True),
        Column("bound", "double", "The setting from which the expected value follows"),
        Column("severity", "string", "fail: a breach fails the job; warn: it does not"),
        Column(
            "verdict",
            "string",
            "ok; warn or fail: a breach; accepted: a breach that a person accepted; uncompared: no baseline",
        ),
        Column("basis", "string", "Only values of the same basis are compared; null: all are", True),
        Column("at", "timestamp", "When, UTC; a job's newest rows are those in force"),
    ),
    checks={
        "relation_known": one_of("relation", ("at_least", "at_most")),
        "severity_known": one_of("severity", ("fail", "warn")),
        "verdict_known": one_of("verdict", ("ok", "warn", "fail", "accepted", "uncompared")),
    },
    partition_by=("job",),
)

_JOB_KEY = ("run_id", "job", "started_at")
_OF_A_JOB = (
    Column("run_id", "string", "The pipeline run that it was part of"),
    Column("job", "string", "Its name"),
    Column("started_at", "timestamp", "When it started, UTC"),
    Column("seconds", "double", "How long it took"),
)

JOB_RUNS = Table(
    name="job_runs",
    layer="reporting",
    grain="a job that ended",
    key=_JOB_KEY,
    columns=(
        *_OF_A_JOB,
        Column("status", "string", "done, up_to_date or failed"),
        Column(
            "fingerprint",
            "string",
            "Digest of all that its result depends on: a second run of it has nothing to do",
        ),
        Column("inputs", "map<string,bigint>", "Delta version of each table that it read"),
        Column("outputs", "map<string,bigint>", "Delta version of each table that it wrote, after it"),
        Column(
            "rows", "map<string,bigint>", "Rows of each table that it wrote, after it; in quarantine: those it added"
        ),
        Column("facts", "string", "What else it had to say, as JSON", True),
        Column("error", "string", "Why it failed", True),
        Column("table_ids", "map<string,string>", "Delta id of each of these tables: another id, another table", True),
    ),
)

JOB_COSTS = Table(
    name="job_costs",
    layer="reporting",
    grain="a job that ended and had work",
    key=_JOB_KEY,
    columns=(
        *_OF_A_JOB,
        Column("stages", "bigint", "Stages that Spark ran"),
        Column("tasks", "bigint", "Tasks that Spark started"),
        Column("run_seconds", "double", "Seconds of all tasks together"),
        Column("cpu_seconds", "double", "CPU of the JVM's task threads, seconds; Python workers are not in it"),
        Column("gc_seconds", "double", "Garbage collection in tasks, seconds"),
        Column("read_rows", "bigint", "Rows read from files and tables"),
        Column("read_bytes", "bigint", "Bytes read from files and tables"),
        Column("written_rows", "bigint", "Rows written"),
        Column("written_bytes", "bigint", "Bytes written"),
        Column("shuffled_rows", "bigint", "Records written for shuffles"),
        Column("shuffled_bytes", "bigint", "Bytes written for shuffles"),
        Column("spilled_bytes", "bigint", "Bytes spilled to disk"),
        Column("jvm_bytes", "bigint", "Peak resident memory of the executor's JVM"),
        Column("python_bytes", "bigint", "Peak resident memory of its Python workers; mapped pages count for each"),
        Column("driver_bytes", "bigint", "Peak resident memory of the driver's Python process since it started"),
    ),
)

FRAMEWORK: tuple[Table, ...] = (JOB_RUNS, JOB_COSTS)
"""Tables in which every job records its runs, and which it reads to determine whether it has work to do."""

SHARED: tuple[Table, ...] = (QUARANTINE, CHECKS)
"""Tables that several jobs write, each of them its own partition. A job that reads one waits for none of them."""

ALL: tuple[Table, ...] = (
    INGEST_LEDGER,
    QUARANTINE,
    PLAYLISTS,
    CHALLENGE_PLAYLISTS,
    TRACKS,
    AUDIO_FEATURES,
    VECTOR_PARAMETERS,
    TRACK_VECTORS,
    HOLDOUT,
    PLAYLIST_CENTROIDS,
    MODELS,
    RECOMMENDATIONS,
    PLAYLIST_METRICS,
    MODEL_METRICS,
    REGISTRATIONS,
    CANARY_EVENTS,
    CHECKS,
    JOB_RUNS,
    JOB_COSTS,
)
"""All tables, in the order of the data flow."""

BY_NAME: dict[str, Table] = {table.name: table for table in ALL}

VIEWS: dict[str, str] = {
    "playlist_tracks": """
        SELECT p.pid, p.name AS playlist_name, p.pos, t.track_id, t.track_uri, t.track_name, t.artist_uri,
               t.artist_name, t.album_uri, t.album_name, t.duration_ms
        FROM (SELECT pid, name, posexplode(track_ids) AS (pos, track_id) FROM playlists) p
        JOIN tracks t USING (track_id)""",
    "holdout_tracks": """
        SELECT h.pid, h.part, h.pos, t.track_id, t.track_uri, t.track_name, t.artist_uri, t.artist_name
        FROM (SELECT pid, 'train' AS part, posexplode(train) AS (pos, track_id) FROM holdout
              UNION ALL
              SELECT pid, 'test' AS part, posexplode(test) AS (pos, track_id) FROM holdout) h
        JOIN tracks t USING (track_id)""",
    "recommended_tracks": """
        SELECT r.model, r.pid, r.place + 1 AS rank, t.track_uri, r.scores[r.place] AS score, t.track_id, t.track_name,
               t.artist_uri, t.artist_name, array_contains(h.test, r.track_id) AS hit
        FROM (SELECT model, pid, scores, posexplode(track_ids) AS (place, track_id) FROM recommendations) r
        JOIN tracks t USING (track_id)
        LEFT JOIN holdout h ON h.pid = r.pid""",
}
"""Views that explode the arrays for readability: rank starts at 1, pos at 0."""
