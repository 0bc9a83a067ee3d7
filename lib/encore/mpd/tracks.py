"""The distinct tracks of some slices with their metadata, which is kept once per track, not once per occurrence."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from encore.arrays.ragged import I64, Ragged
from encore.arrays.track_keys import BestRecords, grow
from encore.mpd.parse import TRACK_FIELDS, Slice

NAMES = ("track_uri", *TRACK_FIELDS)


class DistinctTracks:
    """Distinct tracks of slices that are added one by one, with codes from 0.

    A track's metadata comes from its record with the fewest missing fields; ties are broken by the lowest pid, then by
    the earliest record. No other record's metadata is kept.
    """

    def __init__(self) -> None:
        self.best = BestRecords()
        self._parts: list[pa.Table] = []
        self._n_taken = 0
        self._place: I64 = np.empty(0, np.int64)

    def add(self, parsed: Slice) -> Ragged:
        """Add the tracks of a slice; returns the codes of each playlist's tracks, int32, in playlist order."""
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
        """One row per code: `track_uri`, TRACK_FIELDS, and `first_pid`, the playlist that these were taken from."""
        n = len(self.best)
        if not self._parts:
            names = pa.schema([(name, pa.int64() if name == "duration_ms" else pa.string()) for name in NAMES])
            return names.empty_table().append_column("first_pid", pa.array([], pa.int64()))
        names = pa.concat_tables(self._parts)
        # unless a record was replaced by a better one, the rows are in the order of the codes
        if self._n_taken != n:
            names = names.take(pa.array(self._place[:n]))
        return names.append_column("first_pid", pa.array(self.best.column("pid")))
