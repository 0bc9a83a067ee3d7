"""Which record provides a track's metadata after the playlist that it came from has changed or been deleted.

The metadata is that of the track's best record. As long as records are only added, this is either the one in `tracks`
or a new one. If the one in `tracks` is gone, the best of the others may be in a file that would otherwise not be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from encore.arrays.ragged import I64, Ragged
from encore.arrays.track_keys import KeyTable
from encore.lake.tables import TRACKS
from encore.lake.track_arrays import track_words
from encore.mpd.ingest import TaskTracks

ANY_IS_BETTER = 127
"""Number of missing fields assigned to a record that is gone: more than any record can have."""
_NOBODY = np.iinfo(np.int64).max

Mask = NDArray[np.bool_]


def unnamed(existing: pa.Table, staying: I64) -> Mask:
    """Which tracks lost the record that their metadata came from: bool, by row of `existing`.

    `existing` has first_pid and orphaned; `staying`: pids of the playlists in the lake that stay as they are.
    """
    # an orphaned track has no record left, even if its playlist stays
    orphaned = pc.fill_null(existing["orphaned"], False).to_numpy()
    return np.asarray(orphaned | np.isin(existing["first_pid"].to_numpy(), staying, invert=True))


def without_names(existing: pa.Table, lost: Mask) -> pa.Table:
    """`existing` with ANY_IS_BETTER as the number of missing fields of the `lost` tracks, a mask by row."""
    missing = np.where(lost, ANY_IS_BETTER, existing["n_missing"].to_numpy()).astype(np.int8)
    place = existing.schema.get_field_index("n_missing")
    return existing.set_column(place, "n_missing", pa.array(missing))


def files_needed(
    existing: pa.Table,
    lost: Mask,
    unread: Callable[[], Iterable[pa.Table]],
    tasks: Iterable[TaskTracks],
    *,
    every: bool,
) -> set[str]:
    """Files that have to be read to find the best record of tracks that lost theirs.

    `unread()`: tables of `pid`, `slice` and `track_ids` from files that were not read; `tasks`: the tracks of those
    that were. An unread record is no better than the lost one, and its pid is at least that of the first unread
    playlist with the track: if a known record is as good as that, nothing has to be read. Otherwise the file of that
    playlist is needed, or with `every` all files that contain the track.
    """
    ids = existing["track_id"].to_numpy()
    is_lost = np.zeros(int(ids.max(initial=-1)) + 1, np.bool_)
    is_lost[ids[lost]] = True
    first_holder = np.full(len(is_lost), _NOBODY)
    for part in unread():
        lists = Ragged.from_arrow(part["track_ids"])
        wanted = is_lost[lists.values]
        pids = np.repeat(part["pid"].to_numpy(), lists.lengths)
        np.minimum.at(first_holder, lists.values[wanted], pids[wanted])
    rows = np.flatnonzero(lost & (first_holder[ids] != _NOBODY))
    if not len(rows):
        return set()

    keys = KeyTable()
    keys.add(track_words(TRACKS, existing["track_uri"].take(pa.array(rows))))
    missing, pid = np.full(len(rows), ANY_IS_BETTER, np.int8), np.full(len(rows), _NOBODY)
    for task in tasks:
        codes = keys.find(task.words)
        here = np.flatnonzero(codes >= 0)
        codes = codes[here]
        better = _is_better(task.missing[here], task.pids[here], missing[codes], pid[codes])
        missing[codes[better]], pid[codes[better]] = task.missing[here][better], task.pids[here][better]
    bound = existing["n_missing"].to_numpy()[rows]
    open_ = ids[rows[_is_better(bound, first_holder[ids[rows]], missing, pid)]]
    is_open = np.zeros(len(is_lost), np.bool_)
    is_open[open_] = True
    first = np.unique(first_holder[open_])

    found: set[str] = set()
    for part in unread() if len(open_) else ():
        lists = Ragged.from_arrow(part["track_ids"])
        if every:
            mask = np.zeros(len(lists), np.bool_)
            mask[lists.rows[is_open[lists.values]]] = True
        else:
            mask = np.isin(part["pid"].to_numpy(), first)
        found.update(pc.unique(part["slice"].filter(pa.array(mask))).to_pylist())
    return found


def _is_better(missing: NDArray[np.int8], pid: I64, than_missing: NDArray[np.int8], than_pid: I64) -> Mask:
    """Whether records with these numbers of missing fields and pids are better than others (`than_...`)."""
    return (missing < than_missing) | ((missing == than_missing) & (pid < than_pid))
