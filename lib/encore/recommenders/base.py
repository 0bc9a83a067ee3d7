"""The interface of all models, and what they have in common: excluding seeds, truncating and ordering lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from encore.arrays.ragged import NamedArrays, Ragged
from encore.arrays.ranked import Ranked
from encore.evaluation.explanation import Explanation

if TYPE_CHECKING:
    import pyarrow as pa

    from encore.config import RecommendConfig, S3Config

_ROWS = 16_384
"""Playlists processed at a time, so that memory does not grow with the size of a request: 75 MB with 500 tracks and a
few dozen seeds each. A search shares work between neighbours, so smaller batches would take longer."""

NO_PID: Final = -1
"""The pid of a playlist that is in no table."""

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Queries:
    """Playlists to continue, n of them.

    `pids` int64 (n,): a playlist with this pid in the training data is this playlist itself, so a model must not learn
    from it here; NO_PID: it is in no table. `seeds`: n rows of track ids in playlist order; repeats and unknown ids
    are allowed. `titles`: n titles, None for a playlist without one.
    """

    pids: I64
    seeds: Ragged
    titles: Sequence[str | None]

    def __post_init__(self) -> None:
        if not len(self.pids) == len(self.seeds) == len(self.titles):
            raise ValueError(f"{len(self.pids)} pids but {len(self.seeds)} rows of seeds and {len(self.titles)} titles")

    @classmethod
    def of(cls, seeds: Ragged, pids: I64 | None = None, titles: Sequence[str | None] | None = None) -> Queries:
        """Queries without pids or titles where these are not given."""
        n = len(seeds)
        return cls(np.full(n, NO_PID) if pids is None else pids, seeds, [None] * n if titles is None else titles)

    def __len__(self) -> int:
        return len(self.seeds)

    def slice(self, start: int, stop: int) -> Queries:
        """The queries from `start` to `stop` - 1."""
        return Queries(self.pids[start:stop], self.seeds.slice(start, stop), self.titles[start:stop])

    def take(self, rows: NDArray[np.integer]) -> Queries:
        """The queries at some positions."""
        return Queries(self.pids[rows], self.seeds.take(rows), [self.titles[i] for i in rows.tolist()])


@dataclass(frozen=True, eq=False)
class Trial:
    """The inner holdout: playlists of the training data to learn from how good other models are, like the real ones.

    `queries`: their remaining tracks, which are in TrainingData.lists if the playlists are trained on; `truth`: their
    hidden tracks, in no field of TrainingData but `counts`, n non-empty rows.
    """

    queries: Queries
    truth: Ragged


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What models are fitted on. Fields that no model lists in `needs` are empty.

    Tracks are 0..n_tracks - 1.

    `counts` int64 (n_tracks,): in how many playlists the track is a training track. `vector_ids` int32 (V,), ascending,
    and `vectors` float32 (V, d): the tracks that have a vector. `orphaned` int32, ascending: tracks that no longer
    occur in any playlist, which are never recommended. `pids` int64 (N,), ascending, and `lists`, N rows int32:
    the training tracks of each playlist, distinct, in playlist order, without the hidden tracks of `trial`. `titles`:
    N titles, None where there is none. `artist_of` and `album_of` int32 (n_tracks,): numbers from 0, -1 if unknown.
    """

    n_tracks: int
    counts: I64 = field(default_factory=lambda: np.empty(0, np.int64))
    vector_ids: I32 = field(default_factory=lambda: np.empty(0, np.int32))
    vectors: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    orphaned: I32 = field(default_factory=lambda: np.empty(0, np.int32))
    pids: I64 = field(default_factory=lambda: np.empty(0, np.int64))
    lists: Ragged = field(default_factory=lambda: Ragged.empty(0))
    titles: Sequence[str | None] = ()
    artist_of: I32 = field(default_factory=lambda: np.empty(0, np.int32))
    album_of: I32 = field(default_factory=lambda: np.empty(0, np.int32))
    trial: Trial | None = None

    @property
    def listed(self) -> I32:
        """The ids of the tracks that may be recommended, ascending: all except the orphaned ones."""
        return np.delete(np.arange(self.n_tracks, dtype=np.int32), self.orphaned)


class FittedModel(Protocol):
    """A fitted model. It accepts any seeds, of playlists that it was trained on and of others."""

    arrays: NamedArrays
    """The complete fitted state: stored as .npy files and passed to Model.load, possibly memory-mapped."""

    def candidates(self, queries: Queries, n: I64) -> Ranked:
        """At least the n[i] best tracks for query i, or all tracks that the model can rank if there are fewer.

        Best first, equal scores by id; seeds are not excluded. A row depends only on its own query. Unknown seeds (ids
        outside the catalogue) are ignored. A row is empty if the model has no candidates.
        """


Parts = Mapping[str, Any]
"""Fitted models by name: those that a model is made of."""

Task = TypeVar("Task")


def run_here(tasks: Sequence[Task], work: Callable[[Task], pa.Table]) -> list[pa.Table]:
    """Run tasks in this process, one after the other: what Tools.run does without Spark."""
    return [work(task) for task in tasks]


@dataclass(frozen=True)
class Tools:
    """What fitting may use besides the training data.

    `run(tasks, work)` calls `work` for each task on the executors and returns the results in the order of the tasks;
    `n_tasks` are enough to keep all cores busy. `folder`: a local folder or an s3:// prefix, shared with the executors,
    for checkpoints; it still has the files of a fit with the same fingerprint that was killed, and is deleted once the
    model is stored. `on_step(step, metrics)` records metrics of a step, counted from 1, such as the loss.
    """

    folder: str
    s3: S3Config
    run: Callable[[Sequence[Any], Callable[[Any], pa.Table]], list[pa.Table]] = run_here
    n_tasks: int = 1
    on_step: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None


@dataclass(frozen=True)
class Space:
    """The values of a setting that tuning tries, from `low` to `high`: whole numbers if both are; `is_log`: evenly
    spaced on a logarithmic scale."""

    low: float
    high: float
    is_log: bool = False

    @property
    def is_int(self) -> bool:
        """Whether the values are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)


@dataclass(frozen=True)
class Model:
    """An entry of the registry.

    `needs` lists the fields of TrainingData that `fit` reads besides n_tracks and orphaned. `fit` learns and returns
    arrays; `load` makes a fitted model of them. Both take the settings and the fitted models of `parts`, which are
    fitted first. `settings` lists the settings, besides k, on which the arrays or the model's rows depend. `tunable`:
    the settings in the model's own section, recommend.<name>, that `encore tune` chooses, and where it looks for them.
    """

    name: str
    needs: tuple[str, ...]
    fit: Callable[[TrainingData, RecommendConfig, Parts, Tools], NamedArrays]
    load: Callable[[NamedArrays, RecommendConfig, Parts], Any]
    settings: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    is_distributed: bool = False
    """Whether `fit` uses the executors, for which Spark has to be started."""
    tunable: Mapping[str, Space] = field(default_factory=dict)
    explain: Callable[[NamedArrays], Explanation] | None = None
    """Explains the fitted model from its arrays, for the report; None if there is nothing to explain."""


def recommend(fitted: FittedModel, queries: Queries, k: int) -> Ranked:
    """At most k tracks for each playlist: none of its seeds, no repeats, best first, equal scores by id.

    A row is empty if the model has no candidates or the catalogue is empty. Raises ValueError if k is less than 1.
    """
    if k < 1:
        raise ValueError(f"k: expected at least 1, found {k}")
    # compiled code is loaded on use: commands that only import this module do not wait for it
    from encore.recommenders.seed_exclusion import exclude_seeds

    parts = [Ranked.empty(0)]
    for start in range(0, len(queries), _ROWS):
        own = queries.slice(start, min(start + _ROWS, len(queries)))
        # enough even if every seed is among the best
        found = fitted.candidates(own, k + own.seeds.distinct().lengths)
        parts.append(exclude_seeds(found, own.seeds, k))
    return Ranked.concat(parts)
