"""Recomputes a lake from its raw files in plain Python and NumPy, without Spark and without Encore's kernels."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder

from encore.lake.tables import ALL, CANARY_EVENTS, CHECKS, FRAMEWORK, MODEL_METRICS, MODELS, REGISTRATIONS, Table


def table(lake: Path, name: str) -> list[dict[str, Any]]:
    """Rows of a table, read by delta-rs."""
    found = DeltaTable(str(lake / name))
    return pa.table(QueryBuilder().register("t", found).execute("SELECT * FROM t").read_all()).to_pylist()


EVENTS = (*FRAMEWORK, REGISTRATIONS, CANARY_EVENTS, CHECKS)
"""Tables of what happened, to jobs and in the registry of models, which does not follow from the raw files."""


def contents(lake: Path) -> dict[str, list[str]]:
    """The sorted rows of every table but EVENTS, without timestamps and the kind of a file's digest (on S3, a tag).

    From `model_metrics` only the newest means of each model, and from `models` only the digests of the newest arrays of
    each.
    """
    return {declared.name: rows_of(lake, declared) for declared in ALL if declared not in EVENTS}


def rows_of(lake: Path, declared: Table) -> list[str]:
    """The rows of one table, as in `contents`."""
    if declared is MODELS:
        rows = sorted(table(lake, MODELS.name), key=lambda row: row["fitted_at"])
        return sorted(f"{name} {digest}" for name, digest in {row["model"]: row["digest"] for row in rows}.items())
    skipped = {
        "ingested_at",
        "modified_ns",
        "digest",
        "tracks_table",
        "run_id",
        "evaluated_at",
        "fingerprint",
        "logged_to",
        "fitted",
    }
    return sorted(
        json.dumps({k: v for k, v in row.items() if k not in skipped}, sort_keys=True, default=str)
        for row in (newest_means(lake) if declared is MODEL_METRICS else table(lake, declared.name))
    )


def newest_means(lake: Path) -> list[dict[str, Any]]:
    """The rows of `model_metrics` for the models that have recommendations, each from its last evaluation."""
    rows = sorted(table(lake, "model_metrics"), key=lambda row: row["evaluated_at"])
    there = {row["model"] for row in table(lake, "playlist_metrics")}
    last = {row["model"]: row["run_id"] for row in rows}
    return [row for row in rows if row["model"] in there and row["run_id"] == last[row["model"]]]


def versions(lake: Path) -> dict[str, int]:
    """The Delta version of each table of a lake."""
    return {
        path.name: DeltaTable(str(path)).version() for path in sorted(lake.iterdir()) if (path / "_delta_log").is_dir()
    }


def raw_playlists(folder: Path) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Track URIs by pid of playlists and of challenge playlists, from the readable slices of a folder.

    If several files have a pid, the first by name counts. Items that are not tracks are left out.
    """
    ordinary: dict[int, list[str]] = {}
    challenge: dict[int, list[str]] = {}
    files = {
        str(path.relative_to(folder)): path for ending in ("json", "json.gz") for path in folder.rglob(f"*.{ending}")
    }
    for name in sorted(name for name in files if not name.startswith("features/")):
        data = files[name].read_bytes()
        try:
            playlists = json.loads((gzip.decompress(data) if name.endswith(".gz") else data).decode("utf-8"))[
                "playlists"
            ]
        except (ValueError, KeyError):
            continue
        for playlist in playlists:
            tracks = [track for track in playlist["tracks"] if track and _is_track(track.get("track_uri"))]
            if all("pos" in track for track in tracks):
                tracks = sorted(tracks, key=lambda track: track["pos"])
            if playlist["pid"] not in ordinary and playlist["pid"] not in challenge:
                found = challenge if "num_holdouts" in playlist else ordinary
                found[playlist["pid"]] = [track["track_uri"] for track in tracks]
    return ordinary, challenge


def _is_track(uri: str | None) -> bool:
    return uri is not None and uri.startswith("spotify:track:")


def problems(
    lake: Path,
    expected: dict[int, list[str]] | Path,
    *,
    k: int,
    fraction: float = 0.25,
    sample: int = 25,
    models: Collection[str] = ("cosine", "popularity", "random"),
    challenge: Mapping[int, list[str]] = MappingProxyType({}),
) -> list[str]:
    """All differences between the tables of a lake and the values derived from its playlists; empty if there are none.

    `expected`: the track URIs of each playlist by pid, or the folder of the raw files. `challenge`: those of each
    challenge playlist; known from the folder if that is given.
    """
    wrong: list[str] = []
    if isinstance(expected, Path):
        expected, challenge = raw_playlists(expected)
    tracks_found = table(lake, "tracks")
    uris = {row["track_id"]: row["track_uri"] for row in tracks_found}
    artist = {row["track_id"]: row["artist_uri"] for row in tracks_found}
    listed = {row["track_id"] for row in tracks_found if not row["orphaned"]}
    if sorted(uris) != list(range(len(uris))) or len(set(uris.values())) != len(uris):
        wrong.append("track ids are not dense, or a URI repeats")
    if {uris[t] for t in listed} != {uri for own in (expected, challenge) for tracks in own.values() for uri in tracks}:
        wrong.append("tracks are not those of the raw files")
    playlists = {row["pid"]: row["track_ids"] for row in table(lake, "playlists")}
    if {pid: [uris[t] for t in tracks] for pid, tracks in playlists.items()} != expected:
        wrong.append("playlists are not those of the raw files")
    challenges = {row["pid"]: [uris[t] for t in row["track_ids"]] for row in table(lake, "challenge_playlists")}
    if challenges != challenge:
        wrong.append("challenge playlists are not those of the raw files")

    holdout = {row["pid"]: row for row in table(lake, "holdout")}
    if set(holdout) != set(playlists):
        return [*wrong, "holdout is not of the playlists"]
    for pid, tracks in playlists.items():
        distinct = list(dict.fromkeys(tracks))
        n_test = max(0, min(math.ceil(fraction * len(distinct) - 1e-9), len(distinct) - 1))
        train, test = holdout[pid]["train"], holdout[pid]["test"]
        in_order = [t for t in distinct if t in set(train)] == train and [t for t in distinct if t in set(test)] == test
        if not in_order or len(test) != n_test or set(train) & set(test) or len(train) + len(test) != len(distinct):
            wrong.append(f"holdout of {pid}")

    vectors = {row["track_id"]: np.array(row["vector"], np.float32) for row in table(lake, "track_vectors")}
    known = {row["track_uri"] for row in table(lake, "audio_features")}
    if set(vectors) != {t for t in listed if uris[t] in known}:
        wrong.append("track_vectors are not of the tracks with features")
    centroids = {row["pid"]: row for row in table(lake, "playlist_centroids")}
    for pid, row in holdout.items():
        own = [vectors[t] for t in row["train"] if t in vectors]
        if bool(own) != (pid in centroids):
            wrong.append(f"centroid of {pid} is there or is not, wrongly")
        elif own:
            mean = np.mean(np.array(own, np.float64), axis=0)
            if centroids[pid]["n_tracks"] != len(own) or not np.allclose(centroids[pid]["vector"], mean, atol=1e-6):
                wrong.append(f"centroid of {pid}")

    ranked = {(row["model"], row["pid"]): (row["track_ids"], row["scores"]) for row in table(lake, "recommendations")}
    if {pid for _, pid in ranked} - set(holdout) or {model for model, _ in ranked} - set(models):
        return [*wrong, "recommendations are of other playlists or models"]
    for (model, pid), (ids, scores) in ranked.items():
        ordered = sorted(zip(ids, scores, strict=True), key=lambda item: (-item[1], item[0]))
        if len(ids) > k or len(set(ids)) != len(ids) or set(ids) & set(holdout[pid]["train"]):
            wrong.append(f"{model} {pid}: more than k, a repeat, or a train track")
        if not set(ids) <= listed:
            wrong.append(f"{model} {pid}: a track that no playlist holds")
        if [item[0] for item in ordered] != ids:
            wrong.append(f"{model} {pid}: not by score, then track_id")
    ids = np.array(sorted(vectors))
    matrix = np.array([vectors[t] for t in ids], np.float64)
    norms = np.linalg.norm(matrix, axis=1)
    for pid in sorted(centroids)[:: max(1, len(centroids) // sample)] if "cosine" in models else ():
        centre = np.array(centroids[pid]["vector"], np.float64)
        cosines = (matrix @ centre / (norms * np.linalg.norm(centre))).astype(np.float32)
        cosines[np.isin(ids, holdout[pid]["train"])] = -2
        best = np.lexsort((ids, -cosines))[:k]
        best = best[cosines[best] > -2]
        found, scores = ranked.get(("cosine", pid), ([], []))
        if len(found) != len(best) or not np.allclose(scores, cosines[best], rtol=0, atol=2e-7):
            wrong.append(f"cosine of {pid} is not the exact top {k}")
    counts = np.zeros(len(uris), int)
    for row in holdout.values():
        counts[row["train"]] += 1
    for pid in sorted(holdout)[:: max(1, len(holdout) // sample)] if "popularity" in models else ():
        train = set(holdout[pid]["train"])
        best_ids = [t for t in np.lexsort((np.arange(len(counts)), -counts)).tolist() if t in listed - train][:k]
        if ranked.get(("popularity", pid), ([], []))[0] != best_ids:
            wrong.append(f"popularity of {pid}")

    for pid, row in holdout.items() if "random" in models else ():
        if len(ranked.get(("random", pid), ([], []))[0]) != min(k, len(listed - set(row["train"]))):
            wrong.append(f"random of {pid}")

    metrics = {(row["model"], row["pid"]): row for row in table(lake, "playlist_metrics")}
    if set(metrics) != {(model, pid) for model in models for pid, row in holdout.items() if row["test"]}:
        wrong.append("playlist_metrics lacks playlists, or has others")
    for (model, pid), row in metrics.items():
        truth, found = holdout[pid]["test"], ranked.get((model, pid), ([], []))[0]
        expect = scores_of(found, truth, artist, k)
        wrong += [f"{model} {pid}: {name}" for name, value in expect.items() if abs(row[name] - value) > 1e-12]
    return wrong + beyond_accuracy_problems(lake, k)


def beyond_accuracy_problems(lake: Path, k: int) -> list[str]:
    """Differences between the metrics beyond accuracy in a lake and their definitions."""
    wrong: list[str] = []
    tracks, holdout = table(lake, "tracks"), {row["pid"]: row for row in table(lake, "holdout")}
    artist = {row["track_id"]: row["artist_uri"] for row in tracks}
    listed = {row["track_id"] for row in tracks if not row["orphaned"]}
    trained = [row["train"] for row in holdout.values() if row["kind"] is None and row["train"]]
    counts = np.zeros(len(tracks), int)
    for train in trained:
        counts[train] += 1
    groups = np.full(len(tracks), 3)
    for count in set(counts.tolist()) - {0}:
        same = counts == count
        groups[same] = min(2, (6 * counts[counts > count].sum() + 3 * counts[same].sum()) // (2 * counts.sum()))
    ranked = {(row["model"], row["pid"]): row["track_ids"] for row in table(lake, "recommendations")}
    totals: dict[str, np.ndarray] = {}
    for row in table(lake, "playlist_metrics"):
        model, found = row["model"], ranked.get((row["model"], row["pid"]), [])[:k]
        bits = [math.log2(len(trained) / max(1, counts[track])) for track in found[:10]]
        artists = [artist[track] for track in found[:10] if artist[track]]
        expected = sum(bits) / len(bits) if bits else None, len(set(artists)) / len(artists) if artists else None
        for name, value in zip(("novelty", "artist_diversity"), expected, strict=True):
            if (row[name] is None) != (value is None) or (value is not None and abs(row[name] - value) > 1e-9):
                wrong.append(f"{model} {row['pid']}: {name}")
        test = holdout[row["pid"]]["test"]
        by_group = [
            np.bincount([groups[track] for track in own], minlength=4).tolist()
            for own in (test, set(test) & set(found), set(test) & set(found[: len(test)]))
        ]
        names = ("popularity_test", "popularity_hits", "popularity_early")
        wrong += [f"{model} {row['pid']}: {n}" for n, own in zip(names, by_group, strict=True) if row[n] != own]
        totals[model] = totals.get(model, np.zeros((3, 4), int)) + np.array(by_group)
    means = {(row["model"], row["bucket"], row["metric"]): row["value"] for row in newest_means(lake)}
    for model, total in totals.items():
        exposure = np.zeros(len(tracks), int)
        for (name, _), found in ranked.items():
            exposure[found] += name == model
        exposures = sorted(exposure[sorted(listed)].tolist())
        m, n = len(exposures), sum(exposures)
        expected_means = {("all", "coverage"): sum(1 for x in exposures if x) / m}
        if n and m > 1:
            index = sum((2 * j - m - 1) * x for j, x in enumerate(exposures, 1)) / ((m - 1) * n)
            expected_means["all", "gini"] = index
        for p, group in enumerate(("head", "middle", "tail", "unseen")):
            if total[0, p]:
                expected_means[f"popularity_{group}", "recall"] = total[1, p] / total[0, p]
                expected_means[f"popularity_{group}", "r_recall"] = total[2, p] / total[0, p]
        for (bucket, metric), value in expected_means.items():
            if abs(means[model, bucket, metric] - value) > 1e-9:
                wrong.append(f"{model}: {bucket}/{metric}")
    return wrong


def scores_of(found: list[int], truth: list[int], artist: dict[int, str | None], k: int) -> dict[str, float]:
    """The metrics of one list, computed from their definitions."""
    hits = [i for i, t in enumerate(found[:k]) if t in set(truth)]
    g = len(truth)
    early = [t for t in found[:g] if t in set(truth)]
    near = {artist[t] for t in found[:g] if t not in set(truth) and artist[t]} & {artist[t] for t in truth if artist[t]}
    return {
        "n_test": g,
        "n_hits": len(hits),
        "r_precision": len(early) / g,
        "r_precision_artist": (len(early) + 0.25 * len(near)) / g,
        "clicks": hits[0] // 10 if hits else 51,
    }


def ndcg_of(found: list[int], truth: list[int], k: int) -> float:
    """Discounted cumulative gain divided by the ideal one."""
    gain = sum(1 / math.log2(i + 2) for i, t in enumerate(found[:k]) if t in set(truth))
    return gain / sum(1 / math.log2(i + 2) for i in range(min(len(truth), k)))
