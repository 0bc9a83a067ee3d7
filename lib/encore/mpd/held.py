"""What a lake contains from files that were read before, and which of them have to be read again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encore.arrays.ragged import I64
from encore.lake.filesystem import SourceFile
from encore.lake.tables import CHALLENGE_PLAYLISTS, PLAYLISTS, Table
from encore.mpd.ownership import Claims
from encore.mpd.parse import Limits


@dataclass(frozen=True, eq=False)
class Held:
    """What the lake contains from files when the job starts.

    `ledger`: rows of `ingest_ledger` by file. `playlists`: `pid` and `slice` of all playlists, first those of
    `playlists`, then the `n_challenge` ones of `challenge_playlists`. `refused`: `source`, `pid` and `taken_by` of
    rejected records. `files`: names of the files that exist. `tracks_table`: id of the Delta table `tracks`;
    `tracks_lost`: the track ids in `playlists` refer to another table, which was dropped.
    """

    ledger: dict[str, dict[str, Any]]
    playlists: pa.Table
    n_challenge: int
    refused: pa.Table
    files: Collection[str]
    tracks_table: str
    tracks_lost: bool

    @cached_property
    def gone(self) -> tuple[str, ...]:
        """Names of files that no longer exist but that the lake still contains rows from, sorted."""
        return tuple(sorted({*self.ledger, *self.n_playlists, *self.n_refused} - set(self.files)))

    @cached_property
    def n_playlists(self) -> Counter[str]:
        """Number of playlists in the lake by file."""
        return count_values(self.playlists["slice"])

    @cached_property
    def n_refused(self) -> Counter[str]:
        """Number of rejected records in the lake by file."""
        return count_values(self.refused["source"])

    @property
    def tables(self) -> dict[Table, slice]:
        """The rows of `playlists` that belong to each table."""
        n_ordinary = self.playlists.num_rows - self.n_challenge
        return {PLAYLISTS: slice(0, n_ordinary), CHALLENGE_PLAYLISTS: slice(n_ordinary, None)}

    @property
    def is_empty(self) -> bool:
        """Whether the lake contains nothing from any file."""
        return not self.ledger and not self.playlists.num_rows and not self.refused.num_rows

    def is_outdated(self, name: str, limits: Limits, parser: str) -> bool:
        """Whether reading an unchanged file again could give rows different from those in the lake."""
        row = self.ledger.get(name)
        if row is None or self.tracks_lost or row["vanished_at"] is not None or row["digest"] == "unreadable":
            return True
        read_with = (row["max_tracks"], row["payload_bytes"], row["bad_items"], row["longest"])
        if row["parser"] != parser or None in read_with:
            return True
        if row["max_tracks"] != limits.max_tracks and row["longest"] > min(row["max_tracks"], limits.max_tracks):
            return True
        as_before = (row["payload_bytes"], row["bad_items"]) == (limits.payload_bytes, limits.bad_items)
        if not as_before and row["n_quarantined"]:
            return True
        return bool(row["n_playlists"] != self.n_playlists[name] or row["n_quarantined"] != self.n_refused[name])

    def may_have_changed(self, file: SourceFile, *, trust_timestamps: bool) -> bool:
        """Whether a file in the ledger may have changed since it was read."""
        row = self.ledger[file.name]
        if not trust_timestamps:
            return True
        if file.etag is not None:
            return bool(row["digest"] != f"etag:{file.etag}")
        return bool(row["size_bytes"] != file.size or row["modified_ns"] != file.modified_ns)

    def claims(self, names: Sequence[str], read: Collection[str]) -> Claims:
        """Claims of the files that exist (`names`, sorted) but were not `read`."""
        refused = self.refused.filter(pc.is_valid(self.refused["taken_by"]))
        own = text(self.playlists["slice"])
        files, taken_from = (pa.concat_arrays([own, text(refused[name])]) for name in ("source", "taken_by"))
        pids = np.concatenate([self.playlists["pid"].to_numpy(), refused["pid"].to_numpy()])
        found = Claims.of(names, pids, files, taken_from)
        was_read = np.array([name in read for name in names], np.bool_)
        return found.select(~was_read[found.files])

    def staying(self, read: Collection[str], claimed: I64, *, keep_gone: bool) -> np.ndarray:
        """Which rows of `playlists` stay as they are, bool: those of existing files that were not `read`, and with
        `keep_gone` those of deleted files, unless an existing file has the playlist (`claimed`: pids)."""
        slices = self.playlists["slice"]
        is_gone = pc.is_in(slices, value_set=pa.array(self.gone, pa.string())).to_numpy()
        was_read = pc.is_in(slices, value_set=pa.array(list(read), pa.string())).to_numpy()
        if self.tracks_lost or not keep_gone:
            return np.asarray(~is_gone & ~was_read)
        alone = np.isin(self.playlists["pid"].to_numpy(), claimed, invert=True)
        return np.asarray(np.where(is_gone, alone, ~was_read))


def text(column: pa.ChunkedArray) -> pa.Array:
    """A string column as one array."""
    return pa.concat_arrays([pa.array([], pa.string()), *column.chunks])


def count_values(column: pa.ChunkedArray) -> Counter[str]:
    """How often each value of a column of text occurs."""
    return Counter({row["values"]: row["counts"] for row in pc.value_counts(column).to_pylist()})
