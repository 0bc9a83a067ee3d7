"""Encore's models, fitted as the job fit_models fits them, with threads of this process instead of Spark's tasks."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from encore.arrays.ragged import Ragged
from encore.arrays.ranked import Ranked
from encore.config import Config, load_config
from encore.lake.tables import HOLDOUT, TRACK_VECTORS, TRACKS, Table
from encore.recommenders.base import Queries, Tools
from encore.recommenders.base import recommend as recommended
from encore.recommenders.registry import with_parts
from encore.recommenders.training import training_data
from tests.bench.contenders.harness import FIT_THREADS, I32, I64, Fit, K, Recommend, Task, padded, version

VERSION = partial(version, "encore")

_FEW_PLAYLISTS, _FEW_TRACKS = 400, 20_000
"""What models are fitted on before they are measured, so that compiled code is loaded."""


def start(task: Task, settings: Mapping[str, Any]) -> tuple[Fit, Recommend]:
    """`settings`: `model`, and `overrides` of Encore's settings."""
    config = load_config("local", settings.get("overrides", ()))
    titles = json.loads((task.folder / "titles.json").read_text(encoding="utf-8"))
    lists = Ragged(task.lists.indptr.astype(np.int64), task.lists.indices.astype(np.int32))
    tables = _tables(task, lists, titles)
    queries = Queries(task.rows, lists.take(task.rows), [titles[row] for row in task.rows.tolist()])
    at = {row: i for i, row in enumerate(task.rows.tolist())}

    few = lists.slice(0, min(_FEW_PLAYLISTS, len(lists)))
    few = few.where(few.values < _FEW_TRACKS)
    small = _tables(task, few, titles[: len(few)], min(_FEW_TRACKS, task.lists.shape[1]))
    warm = _fit(settings["model"], small, config)
    recommended(warm, Queries.of(few.slice(0, 8)), K)

    def fit() -> Any:
        return _fit(settings["model"], tables, config)

    def recommend(model: Any, rows: I64) -> I32:
        own = queries.take(np.array([at[row] for row in rows.tolist()], np.int64))
        return _matrix(recommended(model, own, K))

    return fit, recommend


def _matrix(found: Ranked) -> I32:
    lengths = found.ids.lengths
    lists = np.full((len(found), int(lengths.max(initial=0))), -1, np.int32)
    lists[found.ids.rows, found.ids.positions] = found.ids.values
    return padded(lists)


def _tables(
    task: Task, lists: Ragged, titles: Sequence[str | None], n_tracks: int | None = None
) -> dict[str, pa.Table]:
    """The columns of the tables that models are fitted on; the first `n_tracks` tracks, or all."""
    n = task.lists.shape[1] if n_tracks is None else n_tracks
    ids = np.arange(n, dtype=np.int32)
    vectors = np.load(task.folder / "vectors.npy")[:n]
    columns = {"pid": np.arange(len(lists)), "train": lists.to_arrow(), "title": pa.array(titles, pa.string())}
    albums = np.load(task.folder / "album_of.npy")[:n]
    rows = Ragged.from_lengths(np.full(n, vectors.shape[1]), vectors.ravel())
    return {
        HOLDOUT.name: pa.table({**columns, "kind": pa.nulls(len(lists), pa.string())}),
        TRACKS.name: pa.table(
            {
                "track_id": ids,
                "artist_uri": [f"artist {number}" for number in task.artist_of[:n].tolist()],
                "album_uri": [f"album {number}" for number in albums.tolist()],
                "orphaned": pa.nulls(n, pa.bool_()),
            }
        ),
        TRACK_VECTORS.name: pa.table({"track_id": ids, "vector": rows.to_arrow()}),
    }


def _fit(name: str, tables: Mapping[str, pa.Table], config: Config) -> Any:
    def stream(table: Table, columns: Sequence[str]) -> Iterator[pa.Table]:
        yield tables[table.name].select(list(columns))

    def run(tasks: Sequence[Any], work: Callable[[Any], pa.Table]) -> list[pa.Table]:
        with ThreadPoolExecutor(FIT_THREADS) as pool:
            return list(pool.map(work, tasks))

    entries = with_parts([name])
    train = training_data(
        stream,
        len(tables[TRACKS.name]),
        {field for entry in entries for field in entry.needs},
        config.split,
        trial_playlists=config.recommend.trial_playlists,
    )
    loaded: dict[str, Any] = {}
    for entry in entries:
        folder = Path(tempfile.mkdtemp(prefix=f"encore-bench-{entry.name}-"))
        try:
            tools = Tools(str(folder), config.s3, run, FIT_THREADS if entry.is_distributed else 1)
            arrays = entry.fit(train, config.recommend, loaded, tools)
        finally:
            shutil.rmtree(folder)
        loaded[entry.name] = entry.load(arrays, config.recommend, loaded)
    return loaded[name]
