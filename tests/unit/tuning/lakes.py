"""A small lake on which some settings of `item_knn` are clearly better than others."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from deltalake import write_deltalake

from encore.config import Config
from encore.lake.store import Store
from encore.lake.tables import HOLDOUT, TRACKS, arrow_schema
from encore.spark.session import Session

N_TRACKS = 800
POPULAR = 300
"""Tracks that are in a tenth of all playlists; the others are in half of the playlists of their topic."""
BAD_TEST = 10**9
"""A track id that does not exist: nothing that reads the test tracks would go well."""


def make_lake(config: Config, n: int = 600, seed: int = 0) -> Store:
    """Playlists that have half of the tracks of a topic, and popular tracks that say nothing about each other."""
    rng = np.random.default_rng(seed)
    store = Store(config, Session(config))
    topics = np.array_split(np.arange(POPULAR, N_TRACKS), 20)
    rows = []
    for i in range(n):
        topic = topics[i % len(topics)]
        listed = np.concatenate([rng.choice(topic, len(topic) // 2, replace=False), rng.choice(POPULAR, 30, False)])
        rows.append({"pid": i, "train": rng.permutation(listed).tolist(), "test": [BAD_TEST], "title": f"t{i % 20}"})
    catalogue = [{"track_id": t, "track_uri": f"uri{t}", "artist_uri": f"a{t // 5}"} for t in range(N_TRACKS)]
    for table, found in ((HOLDOUT, rows), (TRACKS, catalogue)):
        named = [{name: row.get(name) for name in table.names} for row in found]
        write_deltalake(store.url(table), pa.Table.from_pylist(named, arrow_schema(table)))
    return store
