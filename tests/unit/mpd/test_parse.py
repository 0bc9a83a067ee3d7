"""Slices to arrays: two ways that agree with plain Python, and a reason for everything that is not taken."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encore.arrays.ragged import Ragged
from encore.lake.tables import REASONS
from encore.mpd import parse
from encore.mpd.parse import PLAYLIST_FIELDS, TRACK_FIELDS, Limits, Refused, Slice, parse_slice
from encore.mpd.tracks import DistinctTracks

Record = dict[str, Any]

LIMITS = Limits(max_tracks=40, payload_bytes=80)
URIS = [f"spotify:track:{letter * 22}" for letter in "abcXYZ01"]


# plain Python -------------------------------------------------------------------------------------------------------


def in_order(tracks: Sequence[Record]) -> list[Record]:
    """Tracks by `pos`, by place where any track of the playlist lacks it; equal positions by place."""
    if any(track.get("pos") is None for track in tracks):
        return list(tracks)
    return sorted(tracks, key=lambda track: track["pos"])


def plain_playlist(record: Record) -> Record:
    row = {"pid": record["pid"], **{name: record.get(name) for name in PLAYLIST_FIELDS}}
    row["collaborative"] = {None: None, "true": True, "false": False, True: True, False: False}[row["collaborative"]]
    if row["modified_at"] is not None:
        row["modified_at"] = datetime.fromtimestamp(row["modified_at"], UTC)
    return {**row, "tracks": [track["track_uri"] for track in in_order(record["tracks"])]}


def plain_tracks(playlists: Sequence[Record]) -> dict[str, Record]:
    """Of each URI the record with the fewest fields missing, of the lowest pid, that comes first in its playlist."""
    found: dict[str, list[tuple[int, int, int, Record]]] = {}
    for record in playlists:
        for place, track in enumerate(record["tracks"]):
            missing = sum(track.get(name) is None for name in TRACK_FIELDS)
            found.setdefault(track["track_uri"], []).append((missing, record["pid"], place, track))
    rows = {}
    for uri, records in found.items():
        missing, pid, _, track = min(records, key=lambda entry: entry[:3])
        fields = {name: track.get(name) for name in TRACK_FIELDS}
        rows[uri] = {"first_pid": pid, "n_missing": missing, "n_rows": len(records), **fields}
    return rows


def playlists_of(parsed: Slice) -> list[Record]:
    tracks = DistinctTracks()
    return with_uris(parsed, tracks.add(parsed), tracks)


def with_uris(parsed: Slice, codes: Ragged, tracks: DistinctTracks) -> list[Record]:
    uris = tracks.table()["track_uri"].to_pylist()
    lists = [[uris[code] for code in row] for row in codes.tolist()]
    return [{**row, "tracks": own} for row, own in zip(parsed.playlists.to_pylist(), lists, strict=True)]


def tracks_of(*parsed: Slice) -> dict[str, Record]:
    tracks = DistinctTracks()
    for part in parsed:
        tracks.add(part)
    return rows_of(tracks)


def rows_of(tracks: DistinctTracks) -> dict[str, Record]:
    table = tracks.table()
    numbers = zip(tracks.best.column("missing").tolist(), tracks.best.column("n_rows").tolist(), strict=True)
    rows = {
        row.pop("track_uri"): {**row, "n_missing": missing, "n_rows": n_rows}
        for row, (missing, n_rows) in zip(table.to_pylist(), numbers, strict=True)
    }
    assert len(rows) == table.num_rows, "a URI stands there twice"
    return rows


def rendered(playlists: Sequence[object], **more: object) -> bytes:
    return json.dumps({"info": {"version": "v1"}, "playlists": playlists, **more}).encode()


def parsed(*playlists: object, taken: Sequence[int] = (), limits: Limits = LIMITS) -> Slice:
    return parse_slice(rendered(playlists), limits, dict.fromkeys(taken, "a.json"))


def playlist(pid: object = 7, *uris: object, **fields: object) -> Record:
    return {"pid": pid, "tracks": [{"track_uri": uri} for uri in (uris or URIS[:1])], **fields}


def whole_file(data: bytes, limits: Limits = LIMITS) -> Refused:
    found = parse_slice(data, limits)
    assert found.is_refused
    assert (found.playlists.num_rows, found.offsets.tolist(), len(found.records)) == (0, [0], 0)
    (refused,) = found.refused
    assert (refused.record, refused.pid) == ("file", None)
    return refused


# generated slices ---------------------------------------------------------------------------------------------------

NOTHING = object()
TEXT = st.sampled_from(["", "Road trip", "ünïcode", "中文 \U0001f3b8", 'a"b\\c\n\t\0', "\ufeff x"]) | st.text(
    max_size=8
)
INT32 = st.integers(-(2**31), 2**31 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
UNKNOWN = st.sampled_from([NOTHING, NOTHING, None, 1.5, {"pid": [1]}, [[]], "x"])


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(values, values, st.none(), st.just(NOTHING))


def record_of(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Record]:
    made = st.fixed_dictionaries(fields)
    return made.map(lambda record: {name: value for name, value in record.items() if value is not NOTHING})


TRACKS = record_of(
    track_uri=st.sampled_from(URIS),
    unknown=UNKNOWN,
    duration_ms=maybe(INT64),
    **{name: maybe(TEXT) for name in TRACK_FIELDS if name != "duration_ms"},
)


@st.composite
def track_lists(draw: st.DrawFn) -> list[Record]:
    tracks = draw(st.lists(TRACKS, max_size=8))
    kind = draw(st.sampled_from(["absent", "in order", "shuffled", "some missing", "repeated"]))
    positions: list[Any] = list(range(len(tracks)))
    if kind in ("shuffled", "some missing"):
        positions = draw(st.permutations(positions))
    if kind == "some missing" and tracks:
        positions[draw(st.integers(0, len(tracks) - 1))] = draw(st.sampled_from([None, NOTHING]))
    if kind == "repeated":
        positions = [draw(st.integers(-2, 2)) for _ in tracks]
    if kind == "absent":
        return tracks
    return [{**track, **({} if pos is NOTHING else {"pos": pos})} for track, pos in zip(tracks, positions, strict=True)]


PLAYLISTS = record_of(
    name=maybe(TEXT),
    description=maybe(TEXT),
    collaborative=maybe(st.sampled_from(["true", "false"])),
    modified_at=maybe(st.integers(0, parse.LATEST)),
    num_tracks=maybe(INT32),
    num_albums=maybe(INT32),
    num_artists=maybe(INT32),
    num_followers=maybe(INT32),
    num_edits=maybe(INT32),
    duration_ms=maybe(INT64),
    unknown=UNKNOWN,
    tracks=track_lists(),
)


@st.composite
def slices(draw: st.DrawFn) -> list[Record]:
    pids = draw(st.lists(st.integers(0, 9) | st.integers(0, 2**63 - 1), max_size=5, unique=True))
    return [{"pid": pid, **draw(PLAYLISTS)} for pid in pids]


@settings(max_examples=150, deadline=None)
@given(slices(), st.booleans(), st.sampled_from([None, 2]))
def test_both_ways_agree_with_plain_python(playlists: list[Record], ascii_only: bool, indent: int | None) -> None:
    data = json.dumps({"x": 1, "playlists": playlists}, ensure_ascii=ascii_only, indent=indent).encode()
    fast = parse._to_slice(parse._fast(data, LIMITS, {}), [])
    slow = parse._slow(data, LIMITS, {})
    for found in (fast, slow, parse_slice(data, LIMITS)):
        assert found.refused == []
        assert playlists_of(found) == [plain_playlist(record) for record in playlists]
        assert tracks_of(found) == plain_tracks(playlists)
    assert fast.playlists.equals(slow.playlists)
    assert fast.records.equals(slow.records)
    assert fast.words.tolist() == slow.words.tolist()


@settings(max_examples=60, deadline=None)
@given(slices(), st.data())
def test_good_playlists_beside_bad_ones_are_as_they_are_alone(playlists: list[Record], data: st.DataObject) -> None:
    bad: list[Any] = [None, {"tracks": []}, playlist("7"), playlist(7, "spotify:local:x"), playlist(7, name=3)]
    mixed = list(playlists)
    for record in bad:
        mixed.insert(data.draw(st.integers(0, len(mixed))), record)
    found, alone = parsed(*mixed), parsed(*playlists)
    assert len(found.refused) == len(bad)
    assert playlists_of(found) == playlists_of(alone)
    assert tracks_of(found) == tracks_of(alone)


# good slices --------------------------------------------------------------------------------------------------------


def test_the_reduced_form_needs_pid_and_track_uri_alone() -> None:
    found = parse_slice(b'{"playlists":[{"pid":3,"tracks":[{"track_uri":"%s"}]}]}' % URIS[0].encode(), LIMITS)
    (row,) = playlists_of(found)
    assert (row.pop("pid"), row.pop("tracks")) == (3, [URIS[0]])
    assert set(row.values()) == {None}
    assert tracks_of(found)[URIS[0]] == plain_tracks([playlist(3)])[URIS[0]]


@pytest.mark.parametrize("data", [b'{"playlists":[]}', b' \n{"playlists" : [ ]}\n\n'])
def test_a_slice_without_playlists_is_good_and_empty(data: bytes) -> None:
    found = parse_slice(data, LIMITS)
    assert (found.refused, found.playlists.num_rows, len(found.records)) == ([], 0, 0)


def test_a_playlist_without_tracks_is_good() -> None:
    assert playlists_of(parsed(playlist(1), {"pid": 2, "tracks": []}, playlist(3)))[1]["tracks"] == []


def test_repeats_are_kept_in_playlist_order() -> None:
    (row,) = playlists_of(parsed(playlist(1, URIS[1], URIS[0], URIS[1], URIS[1])))
    assert row["tracks"] == [URIS[1], URIS[0], URIS[1], URIS[1]]


def test_pos_orders_tracks_and_place_breaks_ties() -> None:
    tracks = [{"track_uri": uri, "pos": pos} for uri, pos in zip(URIS, [2, 0, 2, 1], strict=False)]
    (row,) = playlists_of(parsed({"pid": 1, "tracks": tracks}))
    assert row["tracks"] == [URIS[1], URIS[3], URIS[0], URIS[2]]


def test_a_missing_pos_makes_its_playlist_alone_be_ordered_by_place() -> None:
    tracks = [{"track_uri": uri, "pos": pos} for uri, pos in zip(URIS, [2, 1, 0], strict=False)]
    lacking = [tracks[0], {"track_uri": URIS[1]}, tracks[2]]
    found = parsed({"pid": 1, "tracks": tracks}, {"pid": 2, "tracks": lacking})
    assert [row["tracks"] for row in playlists_of(found)] == [URIS[2::-1], URIS[:3]]


@pytest.mark.parametrize(
    ("given_", "expected"),
    [("true", True), ("false", False), (True, True), (False, False), (None, None)],
)
def test_collaborative_may_be_text_or_boolean(given_: object, expected: bool | None) -> None:
    assert playlists_of(parsed(playlist(collaborative=given_)))[0]["collaborative"] is expected


@pytest.mark.parametrize("seconds", [0, 1493424000, parse.LATEST])
def test_times_are_seconds_since_1970_in_utc(seconds: int) -> None:
    found = parsed(playlist(modified_at=seconds)).playlists
    assert found["modified_at"].to_pylist() == [datetime.fromtimestamp(seconds, UTC)]
    assert found.schema.field("modified_at").type == pa.timestamp("us", "UTC")


@pytest.mark.parametrize("beside", [[], [None]], ids=["clean", "beside a bad record"])
def test_a_byte_order_mark_is_passed_over(beside: list[object]) -> None:
    found = parse_slice(b"\xef\xbb\xbf" + rendered([playlist(1), *beside]), LIMITS)
    assert [row["pid"] for row in playlists_of(found)] == [1]


def test_of_a_repeated_key_the_last_counts() -> None:
    found = parse_slice(b'{"playlists":[],"playlists":[{"pid":1,"pid":2,"tracks":[]}]}', LIMITS)
    assert [row["pid"] for row in playlists_of(found)] == [2]


# the record of a track ----------------------------------------------------------------------------------------------


def track(uri: str = URIS[0], **fields: object) -> Record:
    known = {name: 1000 if name == "duration_ms" else f"some {name}" for name in TRACK_FIELDS}
    return {"track_uri": uri, **known, **fields}


@pytest.mark.parametrize(
    ("candidates", "name"),
    [
        ([(5, {"track_name": "late"}), (3, {"track_name": "early"})], "early"),
        ([(3, {"track_name": "poor", "album_uri": None}), (5, {"track_name": "rich"})], "rich"),
        ([(3, {"track_name": "first"}), (3, {"track_name": "second"})], "first"),
        ([(3, {"track_name": None}), (9, {"track_name": "known"})], "known"),
    ],
    ids=["lowest pid", "fewest fields missing", "first in the playlist", "a null counts as missing"],
)
def test_a_track_is_described_by_its_best_record(candidates: list[tuple[int, Record]], name: str) -> None:
    lists: dict[int, list[Record]] = {}
    for pid, fields in candidates:
        lists.setdefault(pid, []).append(track(**fields))
    (row,) = tracks_of(parsed(*({"pid": pid, "tracks": tracks} for pid, tracks in lists.items()))).values()
    assert (row["track_name"], row["n_rows"]) == (name, len(candidates))


@settings(max_examples=40, deadline=None)
@given(slices(), st.randoms(use_true_random=False))
def test_tracks_of_several_files_do_not_depend_on_files(playlists: list[Record], random_: random.Random) -> None:
    expected = plain_tracks(playlists)
    shuffled = list(playlists)
    random_.shuffle(shuffled)
    cut = random_.randint(0, len(shuffled))
    parts = [parsed(*shuffled[:cut]), parsed(*shuffled[cut:])]
    alone = [parsed(record) for record in shuffled] or [parsed()]
    for files in (parts, parts[::-1], alone):
        tracks = DistinctTracks()
        codes = [tracks.add(part) for part in files]
        assert rows_of(tracks) == expected
        for part, own in zip(files, codes, strict=True):
            assert with_uris(part, own, tracks) == playlists_of(part)


def test_the_longest_list_counts_whether_it_was_taken_or_not() -> None:
    tracks = [track(URIS[0])] * 3
    assert parsed(playlist(1, URIS[0]), playlist(2)).longest == 1
    assert parsed(playlist(1, URIS[0]), {"pid": None, "tracks": tracks}, 7).longest == 3
    assert parsed({"pid": 1, "tracks": tracks}, limits=Limits(2, 9)).longest == 3
    assert parsed({"pid": 1, "tracks": "none"}).longest == 0


def test_texts_are_taken_once_a_track_and_again_only_for_a_better_record() -> None:
    first = parsed({"pid": 5, "tracks": [track(), track(), track(URIS[1])]})
    same = parsed({"pid": 6, "tracks": [track(), track(URIS[1])]})
    better = parsed({"pid": 4, "tracks": [track(), track(URIS[2])]})
    tracks, taken = DistinctTracks(), []
    for part in (first, same, better):
        tracks.add(part)
        taken.append(tracks._parts[-1].num_rows)
    assert taken == [2, 0, 2]
    assert [row["first_pid"] for row in tracks.table().to_pylist()] == [4, 5, 4]


# files that are refused as a whole ----------------------------------------------------------------------------------

GOOD = rendered([playlist(name="Road trip")])


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        (b"", "not_json", "JSON expected, found: an empty file"),
        (b" \n", "not_json", "JSON expected, found: an empty file"),
        (b"playlists", "not_json", "JSON expected, found: Expecting value: line 1 column 1"),
        (GOOD[:-5], "not_json", f"(of {len(GOOD) - 5} bytes)"),
        (GOOD[:40], "not_json", "(of 40 bytes)"),
        (GOOD + GOOD, "not_json", "Extra data"),
        (GOOD + b"\n" + rendered([playlist(8)]), "not_json", "Extra data"),
        (GOOD + b"null", "not_json", "Extra data"),
        (GOOD + b"\0", "not_json", "Extra data"),
        (GOOD.replace(b"Road", b"Ro\nd"), "not_json", "Invalid control character"),
        (b"[" * 100_000, "not_json", "maximum recursion depth"),
        (
            GOOD.replace(b"Road", b"Ro\xffd"),
            "not_utf8",
            f"UTF-8 expected, byte 0xff at {GOOD.index(b'Road') + 2} found",
        ),
        (GOOD.replace(b"Road", b"\xed\xa0\x80"), "not_utf8", "byte 0xed"),
        (GOOD.decode().encode("utf-16"), "not_utf8", "byte 0xff at 0"),
        (b"null", "not_a_slice", "expected, null found"),
        (b" null\n", "not_a_slice", "expected, null found"),
        (b"null null", "not_json", "Extra data"),
        (b"3", "not_a_slice", "expected, 3 found"),
        (b'["a"]', "not_a_slice", 'an object with a list `playlists` expected, ["a"] found'),
        (b"{}", "not_a_slice", "expected, the keys [] found"),
        (b'{"info":1,"tracks":[]}', "not_a_slice", 'expected, the keys ["info", "tracks"] found'),
        (b'{"\\ud800":1}', "not_a_slice", 'expected, the keys ["\\ud800"] found'),
        (b'{"playlists":null}', "not_a_slice", "expected, playlists: null found"),
        (b'{"playlists":{"pid":1}}', "not_a_slice", 'expected, playlists: {"pid": 1} found'),
        (b'{"playlists":"none"}', "not_a_slice", 'expected, playlists: "none" found'),
    ],
)
def test_a_file_is_refused_with_its_reason(data: bytes, reason: str, detail: str) -> None:
    refused = whole_file(data)
    assert refused.reason == reason
    assert detail in refused.detail
    assert refused.payload == data[: LIMITS.payload_bytes].decode("utf-8", "replace")


# playlists that are refused -----------------------------------------------------------------------------------------

URI_EXPECTED = "spotify:track: and 22 letters or digits expected"
INT32_EXPECTED = "an integer from -2147483648 to 2147483647 expected"


def with_track(**fields: object) -> Record:
    return {"pid": 7, "tracks": [{"track_uri": URIS[0]}, {"track_uri": URIS[1], **fields}]}


@pytest.mark.parametrize(
    ("record", "pid", "reason", "detail"),
    [
        ("x", None, "pid_missing", 'an object with a pid expected, "x" found'),
        (None, None, "pid_missing", "an object with a pid expected, null found"),
        ({"tracks": []}, None, "pid_missing", "pid: an integer expected, nothing found"),
        (playlist(None), None, "pid_missing", "pid: an integer expected, nothing found"),
        (playlist("7"), None, "pid_not_integer", 'pid: an integer from 0 expected, "7" found'),
        (playlist(7.0), None, "pid_not_integer", "pid: an integer from 0 expected, 7.0 found"),
        (playlist(True), None, "pid_not_integer", "pid: an integer from 0 expected, true found"),
        (playlist(-1), -1, "pid_not_integer", "pid: an integer from 0 expected, -1 found"),
        (playlist(2**63), None, "pid_not_integer", f"pid: an integer from 0 expected, {2**63} found"),
        (playlist(2**70), None, "pid_not_integer", "pid: an integer from 0 expected, 1.18"),
        (playlist(1), 1, "pid_duplicate", "pid: 1 occurs earlier in this file"),
        (playlist(99), 99, "pid_duplicate", "pid: 99 is taken from a.json"),
        ({"pid": 7}, 7, "tracks_missing", "tracks: a list expected, null found"),
        ({"pid": 7, "tracks": None}, 7, "tracks_missing", "tracks: a list expected, null found"),
        ({"pid": 7, "tracks": {"0": 1}}, 7, "tracks_missing", 'tracks: a list expected, {"0": 1} found'),
        ({"pid": 7, "tracks": [3]}, 7, "track_uri_malformed", "tracks[0]: an object expected, 3 found"),
        ({"pid": 7, "tracks": [None]}, 7, "track_uri_malformed", "tracks[0]: an object expected, null found"),
        (playlist(7, *URIS * 6), 7, "too_many_tracks", "tracks: at most 40 expected, 48 found"),
        (with_track(track_uri=None), 7, "track_uri_malformed", f"tracks[1].track_uri: {URI_EXPECTED}, null found"),
        (with_track(track_uri=3), 7, "track_uri_malformed", f"{URI_EXPECTED}, 3 found"),
        (with_track(track_uri="spotify:local:A:B:C:1"), 7, "track_uri_malformed", '"spotify:local:A:B:C:1" found'),
        (with_track(track_uri=URIS[0][:-1]), 7, "track_uri_malformed", f'"{URIS[0][:-1]}" found'),
        (with_track(track_uri=URIS[0] + "a"), 7, "track_uri_malformed", URI_EXPECTED),
        (with_track(track_uri=URIS[0] + "\n"), 7, "track_uri_malformed", URI_EXPECTED),
        (with_track(track_uri="x" + URIS[0]), 7, "track_uri_malformed", URI_EXPECTED),
        (with_track(track_uri=URIS[0][:-1] + "é"), 7, "track_uri_malformed", '\\u00e9" found'),
        (with_track(pos="1"), 7, "field_malformed", "tracks[1].pos: an integer from -9223372036854775808 to"),
        (with_track(pos=0.5), 7, "field_malformed", "expected, 0.5 found"),
        (with_track(duration_ms=2**63), 7, "field_malformed", f"expected, {2**63} found"),
        (with_track(track_name=["a"]), 7, "field_malformed", 'tracks[1].track_name: text expected, ["a"] found'),
        (
            with_track(artist_name="\ud800"),
            7,
            "field_malformed",
            'tracks[1].artist_name: text expected, "\\ud800" found',
        ),
        (playlist(name=3), 7, "field_malformed", "name: text expected, 3 found"),
        (playlist(name="a\udc00"), 7, "field_malformed", 'name: text expected, "a\\udc00" found'),
        (playlist(description={}), 7, "field_malformed", "description: text expected, {} found"),
        (playlist(num_followers="3"), 7, "field_malformed", f'num_followers: {INT32_EXPECTED}, "3" found'),
        (playlist(num_followers=2**31), 7, "field_malformed", f"num_followers: {INT32_EXPECTED}, 2147483648 found"),
        (playlist(num_edits=1.0), 7, "field_malformed", f"num_edits: {INT32_EXPECTED}, 1.0 found"),
        (playlist(num_albums=True), 7, "field_malformed", f"num_albums: {INT32_EXPECTED}, true found"),
        (playlist(modified_at=-1), 7, "field_malformed", "modified_at: an integer from 0 to 253402300799 expected, -1"),
        (playlist(modified_at=253402300800), 7, "field_malformed", "to 253402300799 expected, 253402300800 found"),
        (playlist(collaborative="yes"), 7, "field_malformed", 'collaborative: true or false expected, "yes" found'),
        (playlist(collaborative=1), 7, "field_malformed", "collaborative: true or false expected, 1 found"),
        (playlist(collaborative=[]), 7, "field_malformed", "collaborative: true or false expected, [] found"),
    ],
)
def test_a_playlist_is_refused_and_those_beside_it_go_in(
    record: object, pid: int | None, reason: str, detail: str
) -> None:
    found = parsed(playlist(1), record, playlist(2, URIS[2]), taken=[99, 100])
    (refused,) = found.refused
    assert (refused.record, refused.pid, refused.reason) == ("playlist 1", pid, reason)
    assert refused.reason in REASONS
    assert detail in refused.detail
    assert not found.is_refused
    assert [(row["pid"], row["tracks"]) for row in playlists_of(found)] == [(1, [URIS[0]]), (2, [URIS[2]])]
    assert set(tracks_of(found)) == {URIS[0], URIS[2]}, "a refused playlist leaves no trace"


def test_the_first_of_two_playlists_of_one_pid_is_taken_even_after_a_bad_one() -> None:
    found = parsed(playlist(1, "spotify:local:x"), playlist(1, URIS[1]), playlist(1, URIS[2]))
    assert [row["tracks"] for row in playlists_of(found)] == [[URIS[1]]]
    assert [(r.record, r.reason) for r in found.refused] == [
        ("playlist 0", "track_uri_malformed"),
        ("playlist 2", "pid_duplicate"),
    ]


@pytest.mark.parametrize("most", [0, 1, 17, 80])
def test_what_is_kept_of_a_refused_record_is_bounded(most: int) -> None:
    limits = Limits(10, most)
    long = playlist("x" * 10_000, name="é\ud800" * 1000)
    (refused,) = parsed(long, limits=limits).refused
    assert refused.payload is not None
    assert refused.payload == json.dumps(long)[:most]
    assert len(refused.payload.encode()) == most
    assert len(refused.detail) < 250
    file = whole_file(b'{"' + b"k" * 10_000 + b'":1}', limits)
    assert len(file.payload or "") == most
    assert len(file.detail) < 250


def test_a_deeply_nested_record_is_refused_like_any_other() -> None:
    for depth in (900, 1000, 1015):
        nested = b"[" * depth + b"]" * depth
        found = parse_slice(b'{"playlists":[{"pid":"x","y":%s,"tracks":[]}]}' % nested, LIMITS)
        assert [refused.reason for refused in found.refused] == ["pid_not_integer"]
