"""Data that the benchmarks work on, made by the product's own generator and kept under .cache/bench.

Files are named by what they depend on, the code included, so a file that is there is right.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encore.arrays.ragged import Ragged
from encore.features import vectors
from encore.search import kernel
from encore.splits import holdout
from encore.synthetic import catalogue
from encore.synthetic.generate import FEATURES_FILE, SLICE_PLAYLISTS, DistinctIds, draw_slice
from encore.synthetic.generate import _write_features as write_features
from tests.bench.figures import BenchError
from tests.bench.machine import ROOT, cores

CACHE = ROOT / ".cache" / "bench"
SEED = 42
_FEATURES_AT_A_TIME = 1 << 18

F32 = NDArray[np.float32]
U64 = NDArray[np.uint64]


@dataclass(frozen=True)
class Search:
    """A search as `recommend` does it: `vectors` float32 (V, d) of all tracks, frequent ones first; `queries` float32
    (q, d), centroids of the train tracks of playlists 0 to q - 1, in that order."""

    vectors: F32
    queries: F32

    @property
    def ids(self) -> NDArray[np.int32]:
        """0 to V - 1."""
        return np.arange(len(self.vectors), dtype=np.int32)


def search_data(slices: int, queries: int) -> Search:
    """The tracks of `slices` times 1,000 generated playlists (1,000 slices: 2.27 million), and centroids of some."""
    key = _digest(*_DRAWING, "features/vectors", "splits/holdout", "hashing")
    files = [CACHE / f"{name}-{key}.npy" for name in (f"vectors-{slices}", f"queries-{slices}-{queries}")]
    if not all(file.is_file() for file in files):
        made = _make_search(slices, queries)
        for file, array in zip(files, (made.vectors, made.queries), strict=True):
            _save(file, array)
    found = [np.load(file) for file in files]
    return Search(*found)


_DRAWING = ("mpd/generate", "mpd/catalogue", "mpd/titles")


def _digest(*modules: str) -> str:
    """Of the source of some of Encore's modules."""
    digest = hashlib.blake2b(digest_size=6)
    for name in modules:
        digest.update((ROOT / "lib" / "encore" / f"{name}.py").read_bytes())
    return digest.hexdigest()


def _save(path: Path, array: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.save(file, array)
    os.replace(partial, path)


def _make_search(slices: int, queries: int) -> Search:
    ids, counts = _counted(slices)
    # as ingest numbers them: the most frequent first
    order = np.lexsort((ids, -counts))
    row_of = np.empty(len(ids), np.int32)
    row_of[order] = np.arange(len(ids), dtype=np.int32)
    features = np.concatenate(
        [catalogue.audio_features(SEED, part) for part in _pieces(ids[order], _FEATURES_AT_A_TIME)]
    )
    made = vectors.apply(vectors.fit(features, "whiten", {}), features)
    parts = []
    for index in range(-(-queries // SLICE_PLAYLISTS)):
        draw = draw_slice(SEED, index)
        parts.append(Ragged(draw.offsets, row_of[np.searchsorted(ids, draw.tracks)]))
    playlists = Ragged.concat(parts).slice(0, queries)
    train, _ = holdout.split(np.arange(queries), playlists, seed=SEED, fraction=0.25)
    means, _ = kernel.centroids(train, np.arange(len(made), dtype=np.int32), made)
    return Search(made, means)


def _pieces(values: U64, size: int) -> Iterable[U64]:
    return (values[start : start + size] for start in range(0, len(values), size))


def _counted(slices: int) -> tuple[U64, NDArray[np.int64]]:
    """The distinct tracks of some slices, ascending, and how often each stands there."""
    runs = _runs(slices)
    # spawned, as the generator itself does: a forked process would inherit threads that are not there
    with ProcessPoolExecutor(cores(), mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = list(pool.map(_count_run, runs))
    every = np.concatenate([ids for ids, _ in parts])
    ids, place = np.unique(every, return_inverse=True)
    counts = np.bincount(place, weights=np.concatenate([counts for _, counts in parts]), minlength=len(ids))
    return ids, counts.astype(np.int64)


def _runs(slices: int) -> list[list[int]]:
    """Numbers of slices, some to a process's task."""
    return [list(range(start, min(start + 25, slices))) for start in range(0, slices, 25)]


def _count_run(indices: Sequence[int]) -> tuple[U64, NDArray[np.int64]]:
    return np.unique(np.concatenate([draw_slice(SEED, i).tracks for i in indices]), return_counts=True)


def slices_of(playlists: int) -> Path:
    """A folder of generated slices, with features/, by `encore generate`; made where it is missing."""
    folder = CACHE / f"mpd-{playlists}-{SEED}-{_digest(*_DRAWING)}"
    generate(folder, playlists)
    return folder


def generate(folder: Path, playlists: int) -> None:
    """Call `encore generate --if-missing`. Raises BenchError where it fails."""
    command = [str(encore()), "generate", "--playlists", str(playlists), "--seed", str(SEED)]
    done = subprocess.run([*command, "--out", str(folder), "--if-missing"], cwd=ROOT, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(command)} ended with {done.returncode}")


def encore() -> Path:
    """The command `encore` of this environment."""
    return Path(sys.executable).with_name("encore")


def in_order(folder: Path) -> list[Path]:
    """The slices of a folder, by their first pid. Raises BenchError where there are none."""
    found = sorted(folder.glob("mpd.slice.*.json"), key=lambda path: int(path.name.split(".")[2].split("-")[0]))
    if not found:
        raise BenchError(f"{folder}: no slices (mpd.slice.<first>-<last>.json)")
    return found


def first_slices(data: Path, slices: int, target: Path) -> tuple[Path, str]:
    """A folder with links to the first slices of `data` and their features; and a sentence on where those are from.

    Where `data` is generated, the features are those that `encore generate` gives for so few playlists. Of others it is
    not known here which tracks a slice has, so all their features are used. Raises BenchError for too few slices.
    """
    found = in_order(data)
    if len(found) < slices:
        raise BenchError(f"{data} has {len(found)} slices, {slices} are asked for")
    if len(found) == slices:
        return data, "the features of the whole folder"
    (target / "features").mkdir(parents=True, exist_ok=True)
    wanted = {path.name: path.absolute() for path in found[:slices]}
    for link in target.glob("*.json"):
        if link.name not in wanted:
            link.unlink()
    for name, path in wanted.items():
        link = target / name
        if not link.is_symlink() or link.readlink() != path:
            link.unlink(missing_ok=True)
            link.symlink_to(path)
    file = target / "features" / FEATURES_FILE
    settings = generated_with(data)
    if settings is None:
        for other in (data / "features").iterdir():
            link = target / "features" / other.name
            if not link.is_symlink():
                link.symlink_to(other.absolute())
        return target, "the features of all slices: more tracks than these slices have"
    if not file.is_file():
        write_features(file, settings[0], distinct_tracks(settings[0], slices), settings[1])
    return target, f"features of the tracks of these slices, as generated for {slices * SLICE_PLAYLISTS:,} playlists"


def generated_with(data: Path) -> tuple[int, float] | None:
    """Seed and coverage with which `encore generate` made a whole folder; None where it did not."""
    try:
        _, _, seed, coverage = (data / ".complete").read_text(encoding="utf-8").split()
        return int(seed), float(coverage)
    except (OSError, ValueError):
        return None


def playlists_in(data: Path) -> int:
    """Playlists of a folder by the names of its slices: those of whole slices are enough here."""
    return sum(1 for _ in data.glob("mpd.slice.*.json")) * SLICE_PLAYLISTS


def distinct_tracks(seed: int, slices: int) -> U64:
    """The distinct tracks of the first slices that a seed gives, without writing one."""
    runs = _runs(slices)
    distinct = DistinctIds()
    with ProcessPoolExecutor(cores(), mp_context=multiprocessing.get_context("spawn")) as pool:
        for ids in pool.map(_distinct_run, [seed] * len(runs), runs):
            distinct.add(ids)
    return distinct.values()


def _distinct_run(seed: int, indices: Sequence[int]) -> U64:
    return np.unique(np.concatenate([draw_slice(seed, i).tracks for i in indices]))
