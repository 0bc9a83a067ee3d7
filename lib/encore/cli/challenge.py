"""Recommends for the playlists of a challenge set and writes the submission, without Spark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console

from encore import __version__
from encore.arrays.ragged import Ragged
from encore.config import Config
from encore.errors import InputError
from encore.evaluation.submission import N_TRACKS, verify_submission, write_submission
from encore.lake.store import Store, open_store
from encore.lake.tables import CHALLENGE_PLAYLISTS, TRACKS, Table, arrow_schema
from encore.lake.track_arrays import check_track_ids
from encore.progress import meter
from encore.recommenders.base import Queries, recommend
from encore.recommenders.fallback import completed
from encore.recommenders.fitted import FittedModels

_BLOCK = 2000


class ChallengeSet:
    """The playlists of the challenge sets in a lake as `queries`, sorted by pid.

    Raises InputError if the lake has none.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        rows = self.whole(CHALLENGE_PLAYLISTS, ("pid", "name", "track_ids"))
        if not rows.num_rows:
            raise InputError(
                f"no challenge playlists in the lake {store.path}",
                remedy="put challenge_set.json beside the slices and call `encore run`",
            )
        order = np.argsort(rows["pid"].to_numpy())
        every = Queries(rows["pid"].to_numpy(), Ragged.from_arrow(rows["track_ids"]), rows["name"].to_pylist())
        self.queries = every.take(order)
        tracks = self.whole(TRACKS, ("track_id", "track_uri"))
        check_track_ids(CHALLENGE_PLAYLISTS, "track_ids", self.queries.seeds.values, tracks.num_rows)
        uris = np.empty(tracks.num_rows, object)
        uris[tracks["track_id"].to_numpy()] = tracks["track_uri"].to_numpy()
        self.uris = uris
        """The URI of each track by its id, strings (n_tracks,)."""

    def whole(self, table: Table, columns: Sequence[str]) -> pa.Table:
        """Columns of a table; no rows if it does not exist."""
        found = self._store.exists(table)
        return self._store.scan(table, columns).whole() if found else arrow_schema(table, columns).empty_table()

    def seed_uris(self) -> dict[int, frozenset[str]]:
        """The URIs of the seeds of each playlist, by pid."""
        return {int(pid): frozenset(self.uris[self.queries.seeds[i]]) for i, pid in enumerate(self.queries.pids)}


def make_submission(config: Config, name: str, path: Path, team: str, email: str, out: Console) -> None:
    """Write and verify a submission with the recommendations of a model.

    The model is the newest that `fit_models` has fitted. A list that the model leaves short is completed with
    the most popular tracks, so that a playlist of which only the title is known gets its row too. Raises InputError if
    the catalogue is too small, or if there is no challenge set.
    """
    store = open_store(config)
    challenge = ChallengeSet(store)
    fitted = FittedModels.newest(config, store, name).load(name)
    popular = FittedModels.newest(config, store, "popularity").load("popularity").arrays["order"]
    longest = int(challenge.queries.seeds.lengths.max())
    if len(popular) < N_TRACKS + longest:
        raise InputError(
            f"{store.path}: expected at least {N_TRACKS + longest:,} tracks, for rows of {N_TRACKS} without the "
            f"given ones; found {len(popular):,}",
            remedy="ingest more playlists",
        )
    completed_rows = 0

    def rows() -> Iterator[tuple[int, list[str]]]:
        nonlocal completed_rows
        with meter(f"challenge {name}", "playlists", len(challenge.queries)) as shown:
            for start in range(0, len(challenge.queries), _BLOCK):
                stop = min(start + _BLOCK, len(challenge.queries))
                queries = challenge.queries.slice(start, stop)
                ranked = recommend(fitted, queries, N_TRACKS)
                completed_rows += int((ranked.ids.lengths < N_TRACKS).sum())
                lists = completed(ranked.ids, queries.seeds, popular, N_TRACKS)
                for i, pid in enumerate(queries.pids.tolist()):
                    yield pid, challenge.uris[lists[i]].tolist()
                shown.update(stop)

    comments = [f"Encore {__version__}, model {name}"]
    n = write_submission(path, team, email, comments, rows())
    problems = verify_submission(path, challenge.seed_uris())
    assert not problems, problems
    out.print(f"{path}: {n:,} playlists with {N_TRACKS} tracks each, verified", highlight=False)
    if completed_rows:
        out.print(
            f"{completed_rows:,} lists were completed with the most popular tracks, because {name} knew too few",
            highlight=False,
        )


def check_submission(config: Config, path: Path, out: Console) -> None:
    """Verify a submission against the challenge sets in the lake. Raises InputError that lists what is wrong."""
    challenge = ChallengeSet(open_store(config))
    problems = verify_submission(path, challenge.seed_uris())
    if problems:
        raise InputError(f"{path} is not a valid submission:\n" + "\n".join(f"  {problem}" for problem in problems))
    out.print(f"{path}: a valid submission for {len(challenge.queries):,} playlists", highlight=False)
