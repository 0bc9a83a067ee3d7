"""Tables as arrays on the driver, from parts in any order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from encore.errors import LakeError
from encore.lake.tables import PLAYLISTS
from encore.lake.track_arrays import (
    artist_numbers,
    checked_tracks,
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
    ids, vectors = vector_matrix(parts, 7)
    assert ids.tolist() == [1, 2, 4, 6]
    assert vectors.tolist() == [[i, -i] for i in (1, 2, 4, 6)]
    assert vector_matrix([], 0)[1].shape == (0, 0)


def test_tracks_are_counted_as_often_as_they_stand() -> None:
    parts = [pa.table({"t": pa.array(lists, pa.list_(pa.int32()))}) for lists in ([[0, 1], [1]], [], [[4], [], [1, 1]])]
    assert count_tracks(parts, PLAYLISTS, "t", 6).tolist() == [1, 4, 0, 0, 1, 0]


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


def features(*letters: str) -> pa.Table:
    values = {name: [float(ord(letter)) for letter in letters] for name in FEATURES}
    return pa.table({"track_uri": [URI + letter for letter in letters], **values})


def track_part(ids: list[int], letters: str) -> pa.Table:
    return pa.table({"track_id": pa.array(ids, pa.int32()), "track_uri": [URI + letter for letter in letters]})


def test_features_are_found_by_uri_and_nan_where_there_are_none() -> None:
    tracks = [track_part([2, 0], "ab"), track_part([1], "c")]
    found = features_by_track(tracks, [features("b", "x"), features("a")], 3, np.float32)
    assert (found.dtype, found.shape) == (np.dtype(np.float32), (3, 11))
    assert found[[2, 0], 0].tolist() == [97.0, 98.0]
    assert np.isnan(found[1]).all()
    assert np.isnan(features_by_track(tracks, [], 3, np.float64)).all()
    with pytest.raises(LakeError, match="track_uri"):
        features_by_track([pa.table({"track_id": [0], "track_uri": ["x"]})], [], 1, np.float64)


# rows that another program added ------------------------------------------------------------------------------------


def refused(work: Callable[[], object]) -> str:
    with pytest.raises(LakeError) as caught:
        work()
    assert "encore doctor --lake" in str(caught.value.remedy)
    return str(caught.value)


@pytest.mark.parametrize("wrong", [10**8, 3, -1])
def test_an_id_that_no_track_has_is_refused(wrong: int) -> None:
    lists = pa.table({"track_ids": pa.array([[0, 2], [1, wrong]], pa.list_(pa.int32()))})
    assert refused(lambda: count_tracks([lists], PLAYLISTS, "track_ids", 3)) == (
        f"playlists: track_ids from 0 to 2, the ids of the tracks: broken, such as by {wrong}"
    )
    vectors = pa.table(
        {"track_id": pa.array([0, wrong], pa.int32()), "vector": pa.array([[1], [2]], pa.list_(pa.float32()))}
    )
    assert refused(lambda: vector_matrix([vectors], 3)).startswith("track_vectors: track_id from 0 to 2")
    tracks = track_part([0, wrong], "ab").append_column("artist_uri", pa.array(["x", "y"]))
    assert refused(lambda: artist_numbers([tracks], 3)).startswith("tracks: track_id from 0 to 2")
    assert refused(lambda: features_by_track([tracks], [], 3, np.float32)).startswith("tracks: track_id from 0 to 2")


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ([track_part([0, 1], "ab"), track_part([1], "c")], "key track_id is unique: broken, such as by 1"),
        ([track_part([0, 1, 1], "abc")], "key track_id is unique: broken, such as by 3 rows of 2 ids"),
        ([track_part([0, 5], "ab")], "track_id from 0 to 4, the ids of the tracks: broken, such as by 5"),
    ],
)
def test_ids_of_tracks_that_repeat_or_are_missing_are_refused(parts: list[pa.Table], sentence: str) -> None:
    assert refused(lambda: list(checked_tracks(parts, 5))) == f"tracks: {sentence}"


def test_uris_that_repeat_are_refused() -> None:
    tracks = [track_part([0, 1], "ab")]
    assert refused(lambda: features_by_track(tracks, [features("b"), features("a", "b")], 2, np.float32)) == (
        f"audio_features: track_uri is unique: broken, such as by {URI}b"
    )
    twice = [track_part([0, 1, 2], "aba")]
    assert refused(lambda: features_by_track(twice, [features("b", "a")], 3, np.float32)) == (
        "tracks: track_uri is unique: broken, such as by track_id 0 and 2"
    )


def test_vectors_that_repeat_or_differ_in_length_are_refused() -> None:
    def vectors(*rows: tuple[int, list[float]]) -> pa.Table:
        ids, lists = zip(*rows, strict=True)
        return pa.table({"track_id": pa.array(ids, pa.int32()), "vector": pa.array(lists, pa.list_(pa.float32()))})

    parts = [vectors((2, [1.0]), (1, [2.0])), vectors((2, [3.0]))]
    assert refused(lambda: vector_matrix(parts, 3)) == "track_vectors: key track_id is unique: broken, such as by 2"
    ragged = "track_vectors: vector is of one length: broken"
    assert refused(lambda: vector_matrix([vectors((0, [1.0]), (1, [1.0, 2.0]))], 3)).startswith(ragged)
    assert refused(lambda: vector_matrix([vectors((0, [1.0])), vectors((1, [1.0, 2.0]))], 3)).startswith(ragged)
