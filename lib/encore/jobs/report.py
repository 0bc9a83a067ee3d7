"""Render a report page: what the lake contains and how well the models perform."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encore.arrays.ragged import Ragged
from encore.config import Config
from encore.errors import ConfigError, EnvironmentMissing
from encore.evaluation.bootstrap import METRICS, GroupSums, Interval, compare
from encore.evaluation.explanation import Explanation
from encore.evaluation.rows import COLUMNS, summary
from encore.evaluation.summary import Summary
from encore.lake.expectations import BY_NAME as EXPECTATIONS
from encore.lake.expectations import newest, shown_expected, shown_value
from encore.lake.model_arrays import ModelArrays
from encore.lake.scan import KeyIn, KeyRange
from encore.lake.tables import (
    AUDIO_FEATURES,
    CHECKS,
    HOLDOUT,
    INGEST_LEDGER,
    JOB_COSTS,
    MODEL_METRICS,
    MODELS,
    PLAYLIST_METRICS,
    PLAYLISTS,
    QUARANTINE,
    RECOMMENDATIONS,
    REGISTRATIONS,
    TRACKS,
    Table,
    arrow_schema,
)
from encore.lake.track_arrays import artist_numbers, count_tracks, features_by_track, listed_tracks, without_orphans
from encore.runtime.context import JobContext
from encore.runtime.provenance import commit_of
from encore.spark.stage_metrics import latest
from encore.vocabulary import FEATURES

if TYPE_CHECKING:
    from encore.reports.data import Count
    from encore.reports.lists import Name, ShownPlaylist
    from encore.reports.page import Checked, Registered

READS = (
    INGEST_LEDGER,
    QUARANTINE,
    PLAYLISTS,
    TRACKS,
    AUDIO_FEATURES,
    HOLDOUT,
    MODELS,
    RECOMMENDATIONS,
    PLAYLIST_METRICS,
    MODEL_METRICS,
    REGISTRATIONS,
    CHECKS,
)
WRITES = ()
SETTINGS = ("report",)

PAGE = "report.html"
_TOKEN = re.compile(r'<meta name="encore-token" content="([0-9a-f]+-[0-9a-f]+)">')


def check(config: Config) -> None:
    """Raise ConfigError if a model to compare is not one of those that are run."""
    for name in config.report.compare:
        if name not in config.recommend.models:
            raise ConfigError(
                f"report.compare: {name}: not in recommend.models",
                remedy=f"choose from {', '.join(config.recommend.models)}",
            )


def state(ctx: JobContext) -> str:
    """The location of the page, its token, its template (which is code too), and where it is logged.

    A page that was deleted, or replaced by the page of another lake, is therefore made again.
    """
    tracking = ctx.config.tracking
    template = resources.files("encore.reports").joinpath("templates/report.html").read_text(encoding="utf-8")
    return f"{_path(ctx)} {_token(ctx)} {_digest(template)} {tracking.store} {tracking.experiment}"


def _path(ctx: JobContext) -> Path:
    return Path(ctx.config.report.path).absolute() / PAGE


def _token(ctx: JobContext) -> str:
    """Token of the existing page, from the lake and the run that first made it; of this run if there is no such page.

    A page that replaces an older one of the same lake keeps its token. So the state is the same before and after a
    run, and the job is found up to date. If the state were just whether the page exists, the second run would always
    make the page again.
    """
    lake = _digest(ctx.store.uri(PLAYLISTS))
    try:
        with _path(ctx).open(encoding="utf-8", errors="replace") as page:
            found = _TOKEN.search(page.read(4096))
    except OSError:
        found = None
    if found is not None and found[1].startswith(f"{lake}-"):
        return found[1]
    return f"{lake}-{_digest(ctx.run_id)}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def run(ctx: JobContext) -> None:
    """Write `report.html`, and log it as an artefact of the run."""
    # only this job needs matplotlib, but every command imports all jobs
    from encore.reports import data, page, plots

    settings = ctx.config.report
    n_tracks = ctx.n_rows(TRACKS)
    counts = count_tracks(ctx.stream(PLAYLISTS, ["track_ids"]), PLAYLISTS, "track_ids", n_tracks)
    artist_of, artist_uris = artist_numbers(_listed(ctx, "track_id", "artist_uri"), n_tracks)
    artist_rows = data.sums_by(artist_of, counts, len(artist_uris))
    facts = _playlist_facts(ctx)
    titles = data.count_titles(facts["name"], settings.top)
    albums = [part["album_uri"] for part in _listed(ctx, "album_uri")]
    n_albums = pc.count_distinct(pa.chunked_array([c for column in albums for c in column.chunks], pa.string())).as_py()
    listed = listed_tracks(ctx.stream(TRACKS, ("track_id", "orphaned")), n_tracks)

    features = _features(ctx, n_tracks)
    has = ~np.isnan(features).all(axis=1)
    sample = _sample(ctx, data.sample_pids(facts["pid"].to_numpy(), settings.sample_playlists))
    summaries, sums = _evaluations(ctx)
    best = next(iter(summaries), "")
    compared = _compared(sums, summaries, best)
    explanations = _explanations(ctx, summaries)
    figures = {
        "model_means": plots.model_means(summaries),
        "precision_by_known": plots.precision_by_known(summaries),
        **({"precision_by_kind": plots.precision_by_kind(summaries)} if plots.has_kinds(summaries) else {}),
        "clicks_distribution": plots.clicks_distribution(summaries),
        "recall_by_popularity": plots.recall_by_popularity(summaries),
        **({"intervals": plots.intervals(best, compared)} if compared else {}),
        **{f"importances {model}": plots.importances(model, one) for model, one in explanations.items()},
        **{f"ablations {model}": plots.ablations(model, one) for model, one in explanations.items()},
        "playlist_lengths": plots.playlist_lengths(facts["n"].to_numpy()),
        "track_popularity": plots.track_popularity(*data.rank_frequency(counts), *data.occurrences(counts)),
    }
    if has.any():
        rows = data.feature_histograms({"tracks": (features, None), "playlist rows": (features, counts)})
        means = data.feature_histograms({"playlist means": (data.playlist_means(sample, features), None)})
        beside = {name: {"playlist rows": rows[name]["playlist rows"], **own} for name, own in means.items()}
        figures["features"] = plots.feature_distributions("Distribution of audio features", rows)
        figures["variance_shares"] = plots.variance_shares(data.variance_components(sample, features))
        figures["playlist_means"] = plots.feature_distributions("Playlist means and the tracks in playlists", beside)
    costs = _costs(ctx)
    if costs.num_rows:
        figures["job_costs"] = plots.job_costs(costs)
    text = page.render(
        page.Content(
            token=_token(ctx),
            run_id=ctx.run_id,
            lake=ctx.store.path,
            commit=commit_of(),
            made_at=datetime.now(UTC),
            versions=ctx.versions,
            key_figures=data.key_figures(facts, counts, artist_rows, n_albums, titles),
            summaries=summaries,
            over_catalogue=_over_catalogue(ctx, page.FROM_LISTS),
            best=best,
            intervals=compared,
            shown=_shown(ctx, list(settings.compare or summaries)[:2]),
            explanations=explanations,
            artists=_artists(ctx, artist_rows, artist_uris),
            tracks=_tracks(ctx, counts),
            titles=titles.most,
            untitled=titles.untitled,
            coverage=data.coverage(has[listed], counts[listed]),
            sampled=len(sample),
            quarantine=data.quarantine_groups(_parts(ctx, QUARANTINE, data.QUARANTINE_COLUMNS)),
            ledger=data.ledger(_whole(ctx, INGEST_LEDGER, INGEST_LEDGER.names)),
            figures=figures,
            registered=_registered(ctx, summaries),
            checks=[_checked(row) for row in newest(_whole(ctx, CHECKS, CHECKS.names).to_pylist())],
        )
    )
    path = _path(ctx)
    write_page(path, text)
    ctx.facts |= {"page": str(path), "page_bytes": len(text.encode())}
    ctx.tracking.log_file(str(path), "report")
    if compared:
        ctx.tracking.log_text(_as_csv(best, compared), "report/intervals.csv")


def _costs(ctx: JobContext) -> pa.Table:
    """The newest row of `job_costs` for every other job, in the order in which they ran."""
    rows = ctx.store.read_small(JOB_COSTS).to_pylist()
    found = latest(row for row in rows if row["job"] != ctx.name)
    return pa.Table.from_pylist(found, schema=arrow_schema(JOB_COSTS))


def write_page(path: Path, text: str) -> None:
    """Write a file atomically, creating its folder if necessary. Raises EnvironmentMissing if that fails."""
    partial = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".part", delete=False) as file:
            partial = file.name
            file.write(text)
        # temporary files are readable only by their owner, but a page should be readable by everyone
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except OSError as error:
        if partial:
            Path(partial).unlink(missing_ok=True)
        raise EnvironmentMissing(
            f"{path}: cannot be written: {error.strerror}", remedy="choose another report.path, or fix its permissions"
        ) from error


def _parts(
    ctx: JobContext, table: Table, columns: Sequence[str], where: KeyRange | KeyIn | None = None
) -> Iterator[pa.Table]:
    """Columns of a table, or nothing if it does not exist: a page about an incomplete lake is better than none."""
    return ctx.stream(table, columns, where) if table.name in ctx.versions else iter(())


def _listed(ctx: JobContext, *columns: str) -> Iterator[pa.Table]:
    """Columns of the tracks that are in at least one playlist."""
    return without_orphans(ctx.stream(TRACKS, (*columns, "orphaned")))


def _whole(ctx: JobContext, table: Table, columns: Sequence[str], where: KeyRange | KeyIn | None = None) -> pa.Table:
    schema = arrow_schema(table, columns)
    return pa.concat_tables([schema.empty_table(), *_parts(ctx, table, columns, where)])


def _playlist_facts(ctx: JobContext) -> pa.Table:
    """One row per playlist: pid, name, number of tracks `n`, whether it is `described`, and more fields as ingested."""
    plain = ("pid", "name", "collaborative", "num_followers", "num_edits", "num_artists", "num_albums")
    parts = []
    for rows in ctx.stream(PLAYLISTS, (*plain, "description", "track_ids")):
        described = pc.fill_null(pc.not_equal(rows["description"], ""), False)
        part = rows.select(plain).append_column("described", described)
        parts.append(part.append_column("n", pc.list_value_length(rows["track_ids"])))
    empty = pa.schema([*arrow_schema(PLAYLISTS, plain), ("described", pa.bool_()), ("n", pa.int32())]).empty_table()
    return pa.concat_tables([empty, *parts])


def _features(ctx: JobContext, n_tracks: int) -> np.ndarray:
    """float32 (n_tracks, 11), NaN where a track has none."""
    features = _parts(ctx, AUDIO_FEATURES, ("track_uri", *FEATURES))
    return features_by_track(_listed(ctx, "track_id", "track_uri"), features, n_tracks, np.float32)


def _sample(ctx: JobContext, pids: np.ndarray) -> Ragged:
    """The tracks of some playlists, sorted by pid."""
    wanted, schema = pa.array(pids), arrow_schema(PLAYLISTS, ("pid", "track_ids"))
    parts = (rows.filter(pc.is_in(rows["pid"], wanted)) for rows in ctx.stream(PLAYLISTS, schema.names))
    rows = pa.concat_tables([schema.empty_table(), *parts])
    return Ragged.from_arrow(rows["track_ids"]).take(np.argsort(rows["pid"].to_numpy()))


def _evaluations(ctx: JobContext) -> tuple[dict[str, Summary], dict[str, GroupSums]]:
    """Summaries and sums by model, from the highest NDCG down; only one model's rows are in memory at a time."""
    summaries, sums = {}, {}
    for model in ctx.store.partitions(PLAYLIST_METRICS, "model"):
        rows = _whole(ctx, PLAYLIST_METRICS, ("pid", *COLUMNS), KeyRange((("model", model),)))
        # the page takes what is computed from lists from model_metrics
        summaries[model] = summary(rows, np.zeros(1, np.int64))
        sums[model] = GroupSums.of(rows["pid"].to_numpy(), {name: rows[name].to_numpy() for name in METRICS})
    order = sorted(summaries, key=lambda model: (-summaries[model].figures().get("ndcg", 0.0), model))
    return {model: summaries[model] for model in order}, sums


def _compared(sums: Mapping[str, GroupSums], models: Iterable[str], best: str) -> dict[str, dict[str, Interval]]:
    """The differences of some models from the best one, without models that were evaluated on other playlists.

    After an interrupted run, some models may have been evaluated on another sample. Empty if there are no playlists.
    """
    if best not in sums or not sums[best].counts.any():
        return {}
    others = (model for model in models if model != best and sums[model].has_same_playlists(sums[best]))
    return {model: compare(sums[model], sums[best]) for model in others}


def _as_csv(best: str, compared: Mapping[str, Mapping[str, Interval]]) -> str:
    """Intervals as a table: one row per model and metric."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("model", "compared_with", "metric", *Interval._fields))
    table.writerows((model, best, metric, *one) for model, own in compared.items() for metric, one in own.items())
    return text.getvalue()


def _explanations(ctx: JobContext, models: Iterable[str]) -> dict[str, Explanation]:
    """Explanations of the newest fitted version of each model that has one, if its arrays are still stored."""
    # only models with an explanation need the models' code
    from encore.recommenders.registry import MODELS as REGISTRY

    explained = {name: entry.explain for name in models if (entry := REGISTRY.get(name)) and entry.explain}
    newest: dict[str, dict[str, Any]] = {}
    for part in _parts(ctx, MODELS, ("model", "fingerprint", "fitted_at")) if explained else ():
        for row in part.to_pylist():
            known = newest.setdefault(row["model"], row)
            newest[row["model"]] = max(known, row, key=itemgetter("fitted_at"))
    arrays = ModelArrays.of(ctx.config)
    return {
        name: explain(arrays.open(name, newest[name]["fingerprint"]))
        for name, explain in explained.items()
        if name in newest and arrays.has(name, newest[name]["fingerprint"])
    }


def _checked(row: Mapping[str, Any]) -> Checked:
    from encore.reports.page import Checked

    one = EXPECTATIONS.get(row["name"])
    return Checked(
        row["name"],
        row["subject"],
        one.meaning if one else "",
        shown_value(row, "value"),
        shown_expected(row),
        shown_value(row, "baseline"),
        row["severity"],
        row["verdict"],
        row["at"],
    )


def _registered(ctx: JobContext, models: Iterable[str]) -> list[Registered]:
    """The newest registered version of each of some models that has one, in their order."""
    from encore.reports.page import Registered

    names = ("model", "version", "registered_at", "verdict", "reason", "compared_with", "numbers", "size_bytes")
    found: dict[str, Registered] = {}
    rows = [row for part in _parts(ctx, REGISTRATIONS, names) for row in part.to_pylist()]
    for row in sorted(rows, key=itemgetter("registered_at")):
        found[row["model"]] = Registered(**{**row, "numbers": dict(row["numbers"])})
    return [found[model] for model in models if model in found]


def _shown(ctx: JobContext, models: Sequence[str]) -> list[ShownPlaylist]:
    """Some playlists for which the first of some models was evaluated, and the lists of all of them."""
    from encore.reports import data
    from encore.reports.lists import shown_playlists, tracks_to_name

    n = ctx.config.report.compare_playlists
    if not models or not n:
        return []
    # not all playlists of holdout: evaluate.sample may have left out some
    pids = _whole(ctx, PLAYLIST_METRICS, ["pid"], KeyRange((("model", models[0]),)))["pid"].to_numpy()
    chosen = pa.array(data.sample_pids(pids, n))
    rows = _whole(ctx, HOLDOUT, ("pid", "train", "test", "title"), KeyIn("pid", chosen)).to_pylist()
    lists = {
        (model, row["pid"]): row["track_ids"]
        for model in models
        for part in _parts(ctx, RECOMMENDATIONS, ("pid", "track_ids"), KeyIn("pid", chosen, (("model", model),)))
        for row in part.to_pylist()
    }
    return shown_playlists(rows, lists, _names(ctx, tracks_to_name(rows, lists)), models)


def _names(ctx: JobContext, tracks: Iterable[int]) -> dict[int, Name]:
    from encore.reports.lists import Name

    wanted = pa.array(sorted(tracks), pa.int32())
    return {
        row["track_id"]: Name(row["track_name"] or row["track_uri"], row["artist_name"] or "")
        for part in ctx.stream(
            TRACKS, ("track_id", "track_uri", "track_name", "artist_name"), KeyIn("track_id", wanted)
        )
        for row in part.to_pylist()
    }


def _over_catalogue(ctx: JobContext, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Figures about the catalogue of each model, from its newest evaluation.

    Computing them again would require reading all lists.
    """
    parts = list(_parts(ctx, MODEL_METRICS, ("model", "metric", "value", "evaluated_at")))
    rows = [row for part in parts for row in part.to_pylist() if row["metric"] in names]
    found: dict[str, dict[str, float]] = {}
    for row in sorted(rows, key=itemgetter("evaluated_at")):
        found.setdefault(row["model"], {})[row["metric"]] = row["value"]
    return found


def _artists(ctx: JobContext, rows: np.ndarray, uris: pa.Array) -> list[Count]:
    """The artists with the most rows, named as in the metadata of their first track."""
    from encore.reports.data import Count, top

    places = top(rows, ctx.config.report.top).tolist()
    wanted = uris.take(pa.array(places, pa.int64()))
    names: dict[str, tuple[int, str]] = {}
    for part in _listed(ctx, "track_id", "artist_uri", "artist_name"):
        own = part.filter(pc.and_(pc.is_in(part["artist_uri"], wanted), part["artist_name"].is_valid()))
        for row in own.to_pylist():
            known = (row["track_id"], row["artist_name"])
            names[row["artist_uri"]] = min(names.get(row["artist_uri"], known), known)
    return [
        Count(names[uri][1] if uri in names else uri, "", int(rows[place]))
        for uri, place in zip(wanted.to_pylist(), places, strict=True)
    ]


def _tracks(ctx: JobContext, counts: np.ndarray) -> list[Count]:
    from encore.reports.data import Count, top

    places = top(counts, ctx.config.report.top).tolist()
    names = _names(ctx, places)
    return [Count(*names[place], int(counts[place])) for place in places]
