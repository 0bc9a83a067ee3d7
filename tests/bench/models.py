"""Encore's models beside those of public libraries, on the same generated playlists, holdout, queries and metrics.

Every contender runs in a process of its own, is fitted on two threads, and is asked for the best 500 tracks on one
thread. All are given the training tracks of all playlists; Encore's models also titles and artists. Peers are installed
into environments of their own under .cache/bench/peers.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encore.arrays import hashing
from encore.arrays.ragged import Ragged
from encore.evaluation import metrics
from encore.features import vectors
from encore.recommenders.registry import MODELS
from encore.splits import holdout
from encore.synthetic import catalogue
from encore.synthetic.generate import SLICE_PLAYLISTS, draw_slice
from tests.bench.contenders import harness
from tests.bench.contenders.registry import Contender, ours, peers
from tests.bench.data import _GENERATOR, CACHE, SEED, _digest, _save
from tests.bench.figures import Check, Figure, Found, figure, write_json
from tests.bench.machine import ROOT, clean_environment, python

QUALITY = ("r_precision", "r_precision_artist", "ndcg", "clicks")
COMPARED = ("r_precision", "ndcg")
"""The metrics in which the best of Encore's models must be better than the best peer."""
_MORE_THREADS = 0.15
"""By how much a contender may exceed the stated number of threads, on average."""


@dataclass(frozen=True)
class Sizes:
    """`slices` of 1,000 playlists, `queries` of them to be continued, `batch` at a time. `d`: dimensions of factors.

    `ease_tracks`: how many tracks EASE knows, the most frequent. `seconds`: after which a contender is ended. `only`:
    names of contenders, all if empty. `compare`: whether the data suffice to say which model is better.
    """

    slices: int = 20
    queries: int = 2000
    batch: int = 64
    d: int = 128
    ease_tracks: int = 10_000
    seconds: float = 3600
    only: tuple[str, ...] = ()
    compare: bool = True


QUICK = Sizes(slices=1, queries=100, d=16, ease_tracks=2000, seconds=300, compare=False)


def run(sizes: Sizes) -> Found:
    """Figures models.<contender>.<metric>, .fit in s, .query in ms of CPU time, .memory in GB; ratios
    models.best_over.<peer>.<metric>. The fact `models` is what tests.bench.models_table shows."""
    sizes = _from_environment(sizes)
    folder, truth = prepare(sizes)
    artist_of = np.load(folder / "artist_of.npy")
    rows: list[dict[str, Any]] = []
    for contender in contenders(sizes):
        print(f"  {contender.name} ...", file=sys.stderr, flush=True)  # noqa: T201
        rows.append(_row(contender, folder, truth, artist_of, sizes))
    what = f"{sizes.slices * SLICE_PLAYLISTS:,} playlists, {len(artist_of):,} tracks, {len(truth):,} queries"
    facts = {"rows": rows, "what": what, "d": sizes.d, "batch": sizes.batch}
    return Found(facts={"models": facts}) + found_of_rows(rows, what, compare=sizes.compare)


def _from_environment(sizes: Sizes) -> Sizes:
    """Sizes with BENCH_PLAYLISTS playlists and the contenders BENCH_ONLY, separated by commas, where these are set."""
    playlists, only = os.environ.get("BENCH_PLAYLISTS"), os.environ.get("BENCH_ONLY")
    changes: dict[str, Any] = {"slices": int(playlists) // SLICE_PLAYLISTS} if playlists else {}
    return Sizes(**{**vars(sizes), **changes, **({"only": tuple(only.split(","))} if only else {})})


def contenders(sizes: Sizes) -> list[Contender]:
    """Encore's models, then the peers."""
    found = [*map(ours, MODELS), *peers(sizes.d, sizes.ease_tracks)]
    return [one for one in found if not sizes.only or one.name in sizes.only]


def prepare(sizes: Sizes) -> tuple[Path, Ragged]:
    """A folder with the arrays of harness.Task, titles.json, album_of.npy and vectors.npy; and the truth of each query.

    Tracks are numbered as by ingest: the most frequent first. The split is that of split_holdout.
    """
    key = _digest(*_GENERATOR, holdout, hashing, vectors, sys.modules[__name__])
    folder = CACHE / f"models-{sizes.slices}-{sizes.queries}-{sizes.batch}-{key}"
    if not (folder / "sizes.json").is_file():
        _write(folder, sizes)
    return folder, Ragged(np.load(folder / "truth_offsets.npy"), np.load(folder / "truth.npy"))


def _write(folder: Path, sizes: Sizes) -> None:
    draws = [draw_slice(SEED, i) for i in range(sizes.slices)]
    ids, index, counts = np.unique(
        np.concatenate([draw.tracks for draw in draws]), return_inverse=True, return_counts=True
    )
    order = np.lexsort((ids, -counts))
    numbers = np.empty(len(ids), np.int32)
    numbers[order] = np.arange(len(ids), dtype=np.int32)
    lengths = np.concatenate([np.diff(draw.offsets) for draw in draws])
    lists = Ragged.from_lengths(lengths, numbers[index])
    train, test = holdout.split(np.arange(len(lists)), lists, seed=SEED, fraction=0.25)
    tracks = ids[order]
    features = catalogue.audio_features(SEED, tracks)
    some = np.flatnonzero((train.lengths > 0) & (test.lengths > 0))
    rng = np.random.default_rng(SEED)
    rows = np.sort(rng.choice(some, min(sizes.queries, len(some)), replace=False))
    truth = test.take(rows)
    arrays: dict[str, NDArray[Any]] = {
        "offsets": train.offsets,
        "tracks": train.values,
        "rows": rows,
        "truth_offsets": truth.offsets,
        "truth": truth.values,
        "artist_of": np.unique(catalogue.artist_of(tracks), return_inverse=True)[1].astype(np.int32),
        "album_of": np.unique(catalogue.album_of(SEED, tracks), return_inverse=True)[1].astype(np.int32),
        "vectors": vectors.apply(vectors.fit(features, "whiten", {}), features),
    }
    for name, array in arrays.items():
        _save(folder / f"{name}.npy", array)
    titles = [title for draw in draws for title in draw.titles]
    (folder / "titles.json").write_text(json.dumps(titles), encoding="utf-8")
    # written last: it marks the folder as complete
    write_json(folder / "sizes.json", {"tracks": len(tracks), "batch": sizes.batch})


def _row(
    contender: Contender, folder: Path, truth: Ragged, artist_of: NDArray[np.int32], sizes: Sizes
) -> dict[str, Any]:
    """What is known of a contender: measurements and metrics, or `error`, why there are none."""
    row: dict[str, Any] = {
        "name": contender.name,
        "label": contender.label,
        "ours": contender.is_ours,
        "settings": contender.settings_text,
        "expected": not contender.unavailable,
    }
    if contender.unavailable:
        return {**row, "error": contender.unavailable}
    out = CACHE / "scratch" / f"models-{contender.name}-{os.getpid()}"
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        _run(contender, folder, out, sizes)
        measured = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
        lists = np.load(out.with_suffix(".npy"))
    except _FailedError as error:
        return {**row, "error": str(error)}
    finally:
        for suffix in (".json", ".npy"):
            out.with_suffix(suffix).unlink(missing_ok=True)
    train = Ragged(np.load(folder / "offsets.npy"), np.load(folder / "tracks.npy")).take(np.load(folder / "rows.npy"))
    return {**row, **measured, **scored(lists, train, truth, artist_of)}


def scored(lists: NDArray[np.int32], train: Ragged, truth: Ragged, artist_of: NDArray[np.int32]) -> dict[str, Any]:
    """Means of the metrics of lists int32 (n, K), -1 after the last; or `error` if they break the rules."""
    is_some = lists >= 0
    found = Ragged.from_lengths(is_some.sum(axis=1), lists[is_some])
    if found.isin(train).any():
        return {"error": "recommends tracks that the playlist already has"}
    if not found.is_first().all():
        return {"error": "recommends a track twice"}
    each = metrics.evaluate(found, truth, k=harness.K, artist_of=artist_of)
    return {name: float(getattr(each, name).mean()) for name in QUALITY}


class _FailedError(Exception):
    """A contender could not be installed, failed, or took too long."""


def _run(contender: Contender, folder: Path, out: Path, sizes: Sizes) -> None:
    settings = dict(contender.settings)
    if contender.is_ours:
        settings["overrides"] = [f"recommend.ials.dimensions={sizes.d}"]
    interpreter = sys.executable if contender.environment is None else str(_environment(contender.environment))
    _, *arguments = python(
        "tests.bench.contenders.harness", contender.module, str(folder), str(out), json.dumps(settings)
    )
    environment, _ = clean_environment(os.environ)
    # implicit slows down, and warns, if BLAS has threads of its own beside those of its loops
    environment["OPENBLAS_NUM_THREADS"] = str(harness.FIT_THREADS)
    _checked([interpreter, *arguments], environment, sizes.seconds)


def _environment(name: str) -> Path:
    """The interpreter of an environment in which requirements/<name>.txt is installed, made if it is missing."""
    requirements = Path(harness.__file__).parent / "requirements" / f"{name}.txt"
    home = CACHE / "peers" / f"{name}-{hashlib.blake2b(requirements.read_bytes(), digest_size=6).hexdigest()}"
    uv, marker = str(Path(sys.executable).with_name("uv")), home / ".complete"
    interpreter = home / "bin" / "python"
    if not marker.is_file():
        environment = dict(os.environ)
        _checked([uv, "venv", "--quiet", "--clear", "--python", "3.11", str(home)], environment, 300)
        install = [uv, "pip", "install", "--quiet", "--python", str(interpreter), "--require-hashes"]
        _checked([*install, "-r", str(requirements)], environment, 900)
        marker.touch()
    return interpreter


def _checked(command: list[str], environment: dict[str, str], seconds: float) -> None:
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, timeout=seconds, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise _FailedError(f"not finished after {seconds:,.0f} s") from error
    except OSError as error:
        raise _FailedError(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        print(done.stderr, file=sys.stderr)  # noqa: T201
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise _FailedError(lines[-1] if lines else f"exit code {done.returncode}")


def found_of_rows(rows: Iterable[dict[str, Any]], what: str, *, compare: bool) -> Found:
    """Figures and checks of the rows of all contenders; `compare`: check also which are better."""
    rows = list(rows)
    done = [row for row in rows if "error" not in row]
    found = Found()
    for row in done:
        found += _figures(row, what)
    for row in rows:
        if "error" in row and row["expected"]:
            found += Found(checks=[Check(f"models.{row['name']}.ran", False, row["error"])])
    if not compare:
        return found
    mine, theirs = ([row for row in done if row["ours"] is is_ours] for is_ours in (True, False))
    for metric in COMPARED if mine and theirs else ():
        best, peer = (max(side, key=lambda row: row[metric]) for side in (mine, theirs))
        for other in theirs:
            value = best[metric] / max(other[metric], 1e-12)
            name = f"models.best_over.{other['name']}.{metric}"
            found += Found([figure(name, "x", [value], better="higher", work=what, note=f"{best['name']}: {metric}")])
        detail = f"{best['label']} {best[metric]:.4f}, {peer['label']} {peer[metric]:.4f}"
        found += Found(checks=[Check(f"models.best.{metric}", best[metric] > peer[metric], detail)])
    return found + Found(checks=list(_orders({row["name"]: row for row in mine})))


def _figures(row: dict[str, Any], what: str) -> Found:
    name = f"models.{row['name']}"
    figures: list[Figure] = [
        figure(f"{name}.{metric}", "", [row[metric]], better="lower" if metric == "clicks" else "higher", work=what)
        for metric in QUALITY
    ]
    figures += [
        figure(f"{name}.fit", "s", [row["fit_seconds"]], work=what),
        figure(f"{name}.query", "ms/query", [row["query_cpu_ms"]], work=what),
        figure(f"{name}.memory", "GB", [row["memory"] / 1e9], work=what),
    ]
    used = row["query_cpu_ms"] / max(row["query_ms"], 1e-9)
    ok = used <= harness.QUERY_THREADS + _MORE_THREADS
    return Found(
        figures, [Check(f"{name}.threads", ok, f"{used:.2f} cores busy on average, {harness.QUERY_THREADS} given")]
    )


def _orders(by_name: dict[str, dict[str, Any]]) -> Iterable[Check]:
    """Checks that models are ordered by NDCG as on real playlists."""
    fusion = ("ials", "adjacency", "artist", "title", "popularity")
    wanted = [("fusion", part) for part in fusion]
    wanted += [("ranker", "fusion"), ("popularity", "cosine")]
    wanted += [(name, "popularity") for name in ("ials", "adjacency", "artist", "title", "item_knn", "playlist_knn")]
    for better, worse in wanted:
        if better in by_name and worse in by_name:
            values = [by_name[name]["ndcg"] for name in (better, worse)]
            detail = f"NDCG {values[0]:.4f} and {values[1]:.4f}"
            yield Check(f"models.{better}_above_{worse}", values[0] > values[1], detail)
