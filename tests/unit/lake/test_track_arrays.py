"""Tables as arrays on the driver, from parts in any order."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from encore.errors import LakeError
from encore.lake.track_arrays import (
    artist_numbers,
    count_tracks,
    features_by_track,
    listed_tracks,
    vector_matrix,
    without_orphans,
)
from encore.vocabulary import FEATURES

URI = "spotify:track:" + "0" * 21


def test_vectors_come_in_the_order_of_ids() -> None:
    parts = [
        pa.table(
            {"track_id": pa.array(ids, pa.int32()), "vector": pa.array([[i, -i] for i in ids], pa.list_(pa.float32()))}
        )
        for ids in ([4, 6], [], [1, 2])
    ]
    ids, vectors = vector_matrix(parts)
    assert ids.tolist() == [1, 2, 4, 6]
    assert vectors.tolist() == [[i, -i] for i in (1, 2, 4, 6)]
    assert vector_matrix([])[1].shape == (0, 0)


def test_tracks_are_counted_as_often_as_they_stand() -> None:
    parts = [pa.table({"t": pa.array(lists, pa.list_(pa.int32()))}) for lists in ([[0, 1], [1]], [], [[4], [], [1, 1]])]
    assert count_tracks(parts, "t", 6).tolist() == [1, 4, 0, 0, 1, 0]


def test_tracks_that_no_playlist_holds_are_not_listed() -> None:
    parts = [
        pa.table({"track_id": pa.array(ids, pa.int32()), "orphaned": pa.array(orphaned, pa.bool_())})
        for ids, orphaned in (([3, 0], [None, True]), ([], []), ([1], [False]))
    ]
    assert listed_tracks(parts, 5).tolist() == [False, True, False, True, False]
    assert [part.to_pydict() for part in without_orphans(parts)] == [{"track_id": ids} for ids in ([3], [], [1])]
    assert listed_tracks([], 1).tolist() == [False]


def test_artists_are_numbered_by_their_first_tracks_however_the_parts_lie() -> None:
    rows = {0: "b", 1: None, 2: "a", 3: "b"}
    for order in ([0, 1, 2, 3], [2, 3, 0, 1]):
        parts = [
            pa.table({"track_id": pa.array([i], pa.int32()), "artist_uri": pa.array([rows[i]], pa.string())})
            for i in order
        ]
        numbers, uris = artist_numbers(parts, 5)
        assert numbers.tolist() == [0, -1, 1, 0, -1]
        assert uris.to_pylist() == ["b", "a"]


def test_features_are_found_by_uri_and_nan_where_there_are_none() -> None:
    def features(*letters: str) -> pa.Table:
        values = {name: [float(ord(letter)) for letter in letters] for name in FEATURES}
        return pa.table({"track_uri": [URI + letter for letter in letters], **values})

    tracks = [pa.table({"track_id": pa.array([3, 0], pa.int32()), "track_uri": [URI + "a", URI + "b"]})]
    tracks += [pa.table({"track_id": pa.array([2], pa.int32()), "track_uri": [URI + "c"]})]
    found = features_by_track(tracks, [features("b", "x"), features("a")], 5, np.float32)
    assert (found.dtype, found.shape) == (np.dtype(np.float32), (5, 11))
    assert found[[3, 0], 0].tolist() == [97.0, 98.0]
    assert np.isnan(found[[1, 2, 4]]).all()
    assert np.isnan(features_by_track(tracks, [], 5, np.float64)).all()
    with pytest.raises(LakeError, match="track_uri"):
        features_by_track([pa.table({"track_id": [1], "track_uri": ["x"]})], [], 5, np.float64)
