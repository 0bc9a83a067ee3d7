"""A bundle of models that are fitted on generated playlists, without Spark and without a lake."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

import numpy as np

from encore.arrays.ragged import Ragged
from encore.config import load_config
from encore.recommenders.base import TrainingData
from encore.recommenders.registry import with_parts
from encore.recommenders.training import take_trial
from encore.serving import bundle, catalogue
from encore.synthetic.generate import generate
from tests.unit.recommenders.cases import new_tools
from tests.unit.serving.bundles import texts

MODEL: Final = "ranker"
HOSTILE: Final = "<script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\">"
"""The name of one track, which a page must show as it is."""


def generated_bundle(folder: Path, playlists: int, seed: int = 42) -> Path:
    """Write a bundle of MODEL to a folder, which is created: the data that `make run` generates, but nothing is held
    out. One of the tracks is called HOSTILE."""
    generate(folder / "mpd", playlists, seed=seed, coverage=0.0, processes=1)
    numbers: dict[str, int] = {}
    tracks: list[dict[str, Any]] = []
    lists, titles, pids = [], [], []
    for path in sorted((folder / "mpd").glob("mpd.slice.*.json")):
        for playlist in json.loads(path.read_text())["playlists"]:
            for track in playlist["tracks"]:
                if track["track_uri"] not in numbers:
                    numbers[track["track_uri"]] = len(numbers)
                    tracks.append(track)
            lists.append(list(dict.fromkeys(numbers[track["track_uri"]] for track in playlist["tracks"])))
            titles.append(playlist["name"])
            pids.append(playlist["pid"])
    counts = np.bincount([track for row in lists for track in row], minlength=len(tracks))
    tracks[int(np.argsort(-counts)[40])]["track_name"] = HOSTILE
    config = load_config("local", ["recommend.ranker.trees=40"])
    trial, rest, left = take_trial(
        np.array(pids, np.int64), Ragged.from_lists(lists), titles, config.split, playlists // 10, n_tracks=len(tracks)
    )
    train = TrainingData(
        n_tracks=len(tracks),
        counts=counts,
        pids=np.array(pids, np.int64),
        lists=rest,
        titles=left,
        artist_of=_numbers([track["artist_uri"] for track in tracks]),
        album_of=_numbers([track["album_uri"] for track in tracks]),
        trial=trial,
    )
    loaded: dict[str, Any] = {}
    arrays: dict[str, dict[str, Path]] = {}
    for entry in with_parts([MODEL]):
        found = entry.fit(train, config.recommend, loaded, new_tools())
        loaded[entry.name] = entry.load(found, config.recommend, loaded)
        (folder / "arrays" / entry.name).mkdir(parents=True)
        arrays[entry.name] = {name: folder / "arrays" / entry.name / f"{name}.npy" for name in found}
        for name, array in found.items():
            np.save(arrays[entry.name][name], array)
    bundle.write(
        folder / "bundle",
        model=MODEL,
        arrays=arrays,
        catalogue=catalogue.build(
            texts([track["track_uri"] for track in tracks]),
            texts([track["track_name"] for track in tracks]),
            texts([track["artist_name"] for track in tracks]),
            counts,
        ),
        fingerprints={name: hashlib.sha256(name.encode()).hexdigest()[:16] for name in arrays},
        settings=config.recommend.model_dump(mode="json"),
        versions={},
        table_ids={},
        n_tracks=len(tracks),
        created="2026-01-01T00:00:00+00:00",
    )
    return folder / "bundle"


def _numbers(names: list[str]) -> np.ndarray:
    return np.unique(names, return_inverse=True)[1].astype(np.int32)
