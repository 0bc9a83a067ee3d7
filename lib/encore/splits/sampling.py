"""Which playlists are evaluated if not all of them are: a pure function of the seed and the playlists with test tracks.

The n playlists with the smallest hashes of (seed, pid) are the sample, so a larger sample contains a smaller one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encore.arrays import hashing
from encore.arrays.ragged import Ragged
from encore.config import Config
from encore.lake.tables import HOLDOUT, Table

I64 = NDArray[np.int64]

_SEED: Final = 0xE7A15A
"""Combined with split.seed, so that the sample is independent of the split and of the trial."""


def sample(pids: I64, n: int, *, seed: int) -> I64:
    """The sample of n of these playlists, or of all of them if there are fewer: sorted pids."""
    return np.sort(pids[hashing.order(seed ^ _SEED, pids)[:n]])


def sample_settings(config: Config) -> list[int] | None:
    """The settings that determine which playlists are evaluated; None: all are."""
    return None if config.evaluate.sample is None else [config.evaluate.sample, config.split.seed]


def sampled_pids(
    stream: Callable[[Table, Sequence[str]], Iterator[pa.Table]], config: Config
) -> NDArray[np.int64] | None:
    """The sorted pids of the playlists that are evaluated; None: all are. `stream` reads columns of a table."""
    if config.evaluate.sample is None:
        return None
    found = [np.empty(0, np.int64)]
    for part in stream(HOLDOUT, ("pid", "test")):
        found.append(part["pid"].to_numpy()[Ragged.from_arrow(part["test"]).lengths > 0])
    return sample(np.concatenate(found), config.evaluate.sample, seed=config.split.seed)
