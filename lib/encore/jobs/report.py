"""One page for people: what the lake holds and how well the models do."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from encore.catalogue import artist_numbers, count_tracks
from encore.errors import EnvironmentMissing
from encore.evaluation.metrics import Metrics, Summary
from encore.job import JobContext
from encore.ragged import Ragged
from encore.tables import (
    AUDIO_FEATURES,
    FEATURES,
    INGEST_LEDGER,
    JOB_COSTS,
    JOB_RUNS,
    PLAYLIST_METRICS,
    PLAYLISTS,
    QUARANTINE,
    TRACKS,
    Table,
    arrow_schema,
)
from encore.tracking import git_commit

if TYPE_CHECKING:
    from encore.reports.data import Count, Refused

READS = (INGEST_LEDGER, QUARANTINE, PLAYLISTS, TRACKS, AUDIO_FEATURES, PLAYLIST_METRICS)
WRITES = ()
SETTINGS = ("report",)

PAGE = "report.html"
_TOKEN = re.compile(r'<meta name="encore-token" content="([0-9a-f]+-[0-9a-f]+)">')


def state(ctx: JobContext) -> str:
    """Where the page is and where it is logged, which page it is, and its template, which is code of another kind.

    A page that is gone, or that another lake's has replaced, is so made again.
    """
    tracking = ctx.config.tracking
    template = resources.files("encore.reports").joinpath("templates/report.html").read_text(encoding="utf-8")
    return f"{_path(ctx)} {_token(ctx)} {_digest(template)} {tracking.uri} {tracking.experiment}"


def _path(ctx: JobContext) -> Path:
    return Path(ctx.config.report.path).absolute() / PAGE


def _token(ctx: JobContext) -> str:
    """Of the lake and the run that first made the page that is there; of this run where there is none.

    A page that is made anew in the place of an older one of the same lake keeps its token. The state before a run is
    so the state after it, and the run is found up to date; were it whether the page is there, the second run of all
    would make the page again.
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
    """`report.html`, also as an artefact of the run."""
    # only this job needs matplotlib, and each command imports all jobs
    from encore.reports import data, page, plots

    settings = ctx.config.report
    playlists, tracks = ctx.read(PLAYLISTS), ctx.read(TRACKS)
    n_tracks = ctx.n_rows(TRACKS)
    counts = count_tracks(playlists, "track_ids", n_tracks)
    artist_of, artist_uris = artist_numbers(tracks, n_tracks)
    artist_rows = data.sums_by(artist_of, counts, len(artist_uris))
    facts = playlists.selectExpr(
        "pid",
        "name",
        "size(track_ids) AS n",
        "nullif(description, '') IS NOT NULL AS described",
        *("collaborative", "num_followers", "num_edits", "num_artists", "num_albums"),
    ).toArrow()
    titles = data.count_titles(facts["name"], settings.top)
    n_albums = tracks.selectExpr("count(DISTINCT album_uri)").collect()[0][0]

    features = _features(ctx, n_tracks)
    has = ~np.isnan(features).all(axis=1)
    sample = _sample(ctx, data.sample_pids(facts["pid"].to_numpy(), settings.sample_playlists))
    summaries = _summaries(ctx)
    figures = {
        "model_means": plots.model_means(summaries),
        "precision_by_known": plots.precision_by_known(summaries),
        "clicks_distribution": plots.clicks_distribution(summaries),
        "playlist_lengths": plots.playlist_lengths(facts["n"].to_numpy()),
        "track_popularity": plots.track_popularity(*data.rank_frequency(counts), *data.occurrences(counts)),
    }
    if has.any():
        rows = data.feature_histograms({"tracks": (features, None), "rows of playlists": (features, counts)})
        means = data.feature_histograms({"means of playlists": (data.playlist_means(sample, features), None)})
        beside = {name: {"rows of playlists": rows[name]["rows of playlists"], **own} for name, own in means.items()}
        figures["features"] = plots.feature_distributions("How the tracks sound", rows)
        figures["variance_shares"] = plots.variance_shares(data.spreads(sample, features))
        figures["playlist_means"] = plots.feature_distributions("Playlists on average, and their tracks", beside)
    costs = _costs(ctx)
    if costs.num_rows:
        figures["job_costs"] = plots.job_costs(costs)
    text = page.render(
        page.Content(
            token=_token(ctx),
            run_id=ctx.run_id,
            lake=ctx.store.path,
            commit=git_commit(),
            made_at=datetime.now(UTC),
            versions=ctx.versions,
            key_figures=data.key_figures(facts, counts, artist_rows, n_albums, titles),
            summaries=summaries,
            coverages=_coverages(ctx),
            artists=_artists(ctx, artist_rows, artist_uris),
            tracks=_tracks(ctx, counts),
            titles=titles.most,
            untitled=titles.untitled,
            coverage=data.coverage(has, counts),
            sampled=len(sample),
            refused=_refused(ctx),
            ledger=data.ledger(_arrow(ctx, INGEST_LEDGER)),
            figures=figures,
        )
    )
    path = _path(ctx)
    write_page(path, text)
    ctx.facts |= {"page": str(path), "page_bytes": len(text.encode())}
    ctx.tracking.log_file(str(path), "report")


def _costs(ctx: JobContext) -> pa.Table:
    """The newest row of `job_costs` of each other job, in the order in which they ran."""
    rows = sorted(ctx.store.read_small(JOB_COSTS).to_pylist(), key=lambda row: row["started_at"])
    last = {row["job"]: row for row in rows if row["job"] != ctx.name}
    ordered = sorted(last.values(), key=lambda row: row["started_at"])
    return pa.Table.from_pylist(ordered, schema=arrow_schema(JOB_COSTS))


def write_page(path: Path, text: str) -> None:
    """Write a file whole or not at all, making its folder. Raises EnvironmentMissing where that is not allowed."""
    partial = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".part", delete=False) as file:
            partial = file.name
            file.write(text)
        # temporary files are for their owner alone, a page is for all
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except OSError as error:
        if partial:
            Path(partial).unlink(missing_ok=True)
        raise EnvironmentMissing(
            f"{path}: cannot be written: {error.strerror}", remedy="choose another report.path or mend its rights"
        ) from error


def _rows(ctx: JobContext, table: Table) -> Any:
    """The rows of a table, none where it is not there: a page of half a lake is better than none."""
    if table.name in ctx.versions:
        return ctx.read(table)
    return ctx.spark.createDataFrame(arrow_schema(table).empty_table())


def _arrow(ctx: JobContext, table: Table) -> pa.Table:
    return _rows(ctx, table).toArrow()


def _features(ctx: JobContext, n_tracks: int) -> np.ndarray:
    """float32 (n_tracks, 11), NaN where a track has none."""
    from encore.reports.data import feature_matrix

    ids = ctx.read(TRACKS).select("track_id", "track_uri")
    narrow = _rows(ctx, AUDIO_FEATURES).selectExpr("track_uri", *(f"float(`{name}`) AS `{name}`" for name in FEATURES))
    return feature_matrix(ids.join(narrow, "track_uri").drop("track_uri").toArrow(), n_tracks)


def _sample(ctx: JobContext, pids: np.ndarray) -> Ragged:
    """The tracks of some playlists, in the order of their pids."""

    def keep(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield batch.filter(pa.array(np.isin(batch["pid"].to_numpy(), pids)))

    lists = ctx.read(PLAYLISTS).select("pid", "track_ids").mapInArrow(keep, "pid bigint, track_ids array<int>")
    return Ragged.from_arrow(lists.toArrow().sort_by("pid")["track_ids"])


def _summaries(ctx: JobContext) -> dict[str, Summary]:
    """By name of the model; one model's rows are held at a time."""
    from encore.reports.data import summary

    rows = _rows(ctx, PLAYLIST_METRICS)
    models = sorted(row["model"] for row in rows.select("model").distinct().collect())
    columns = (*Metrics._fields, "n_train", "n_recommended")
    return {model: summary(rows.where(rows["model"] == model).select(*columns).toArrow()) for model in models}


def _coverages(ctx: JobContext) -> dict[str, float]:
    """Share of the catalogue that each model recommended, as the last evaluation said.

    Finding it anew would take reading all lists.
    """
    runs = [
        run
        for run in ctx.store.read_small(JOB_RUNS, ["job", "status", "started_at", "facts"]).to_pylist()
        if run["job"] == "evaluate" and run["status"] == "done"
    ]
    if not runs:
        return {}
    facts = json.loads(max(runs, key=lambda run: run["started_at"])["facts"] or "{}")
    return {name.removesuffix("/coverage"): value for name, value in facts.items() if name.endswith("/coverage")}


def _artists(ctx: JobContext, rows: np.ndarray, uris: list[str]) -> list[Count]:
    """Those of most rows, by the name that their first track gives them."""
    from pyspark.sql import functions as F

    from encore.reports.data import Count, top

    places = top(rows, ctx.config.report.top).tolist()
    wanted = [uris[place] for place in places]
    named = ctx.read(TRACKS).where("artist_name IS NOT NULL")
    grouped = named.where(named["artist_uri"].isin(wanted)).groupBy("artist_uri")
    names = {row[0]: row[1] for row in grouped.agg(F.min_by("artist_name", "track_id")).collect()}
    return [Count(names.get(uri, uri), "", int(rows[place])) for uri, place in zip(wanted, places, strict=True)]


def _tracks(ctx: JobContext, counts: np.ndarray) -> list[Count]:
    from encore.reports.data import Count, top

    places = top(counts, ctx.config.report.top).tolist()
    tracks = ctx.read(TRACKS)
    found = tracks.where(tracks["track_id"].isin(places)).select("track_id", "track_uri", "track_name", "artist_name")
    rows = {row["track_id"]: row for row in found.collect()}
    return [
        Count(
            rows[place]["track_name"] or rows[place]["track_uri"], rows[place]["artist_name"] or "", int(counts[place])
        )
        for place in places
    ]


def _refused(ctx: JobContext) -> list[Refused]:
    from pyspark.sql import functions as F

    from encore.reports.data import refused

    order = F.struct("source", "record")
    examples = [F.min_by(name, order).alias(name) for name in ("source", "record", "detail", "payload")]
    groups = _rows(ctx, QUARANTINE).groupBy("stage", "reason").agg(F.count("*").alias("n"), *examples)
    return refused(groups.toArrow())
