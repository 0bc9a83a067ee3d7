"""The distinct tracks of some slices, with what describes each best: texts are taken once, not once an occurrence."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from encore.arrays.ragged import I64, Ragged
from encore.arrays.track_keys import BestRecords, grow
from encore.mpd.parse import TRACK_FIELDS, Slice

NAMES = ("track_uri", *TRACK_FIELDS)


class DistinctTracks:
    """Distinct tracks of slices that come one after the other, numbered from 0; these numbers are their codes.

    Of the records of a track, the one with the fewest fields missing describes it, of those the one of the lowest pid,
    of those the first. Texts are held of that one alone.
    """

    def __init__(self) -> None:
        self.best = BestRecords()
        self._parts: list[pa.Table] = []
        self._n_taken = 0
        self._place: I64 = np.empty(0, np.int64)

    def add(self, parsed: Slice) -> Ragged:
        """Take the tracks of a slice; the codes of each of its playlists, int32, in playlist order."""
        start = self.best.n_records
        codes = self.best.add(parsed.words, parsed.missing, parsed.pids)
        if len(self.best) > len(self._place):
            self._place = grow(self._place, len(self.best), -1)
        described = np.flatnonzero(self.best.column("row") >= start)
        rows = pa.array(self.best.column("row")[described] - start)
        self._parts.append(pa.table({name: parsed.records.field(name).take(rows) for name in NAMES}))
        self._place[described] = np.arange(self._n_taken, self._n_taken + len(described))
        self._n_taken += len(described)
        return parsed.lists(codes)

    def table(self) -> pa.Table:
        """A row a code: `track_uri`, TRACK_FIELDS and `first_pid`, the playlist of the record that they are from."""
        n = len(self.best)
        if not self._parts:
            names = pa.schema([(name, pa.int64() if name == "duration_ms" else pa.string()) for name in NAMES])
            return names.empty_table().append_column("first_pid", pa.array([], pa.int64()))
        names = pa.concat_tables(self._parts)
        # as long as no record was replaced by a better one, they lie in the order of the codes
        if self._n_taken != n:
            names = names.take(pa.array(self._place[:n]))
        return names.append_column("first_pid", pa.array(self.best.column("pid")))
