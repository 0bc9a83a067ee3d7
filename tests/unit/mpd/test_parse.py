"""Slices to arrays: two ways that agree with plain Python, and a reason for everything that is not taken."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encore.arrays.ragged import Ragged
from encore.lake.tables import REASONS
from encore.mpd import parse
from encore.mpd.parse import CHALLENGE_FIELDS, PLAYLIST_FIELDS, TRACK_FIELDS, Limits, Refused, Slice, parse_slice
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


def known_duration(track: Record) -> int | None:
    """A track's playing time: 0 or less means that it is unknown."""
    given = track.get("duration_ms")
    return given if given is not None and given > 0 else None


def plain_playlist(record: Record) -> Record:
    row = {"pid": record["pid"], **{name: record.get(name) for name in (*PLAYLIST_FIELDS, *CHALLENGE_FIELDS)}}
    row["duration_ms"] = None if row["duration_ms"] is not None and row["duration_ms"] < 0 else row["duration_ms"]
    row["collaborative"] = {None: None, "true": True, "false": False, True: True, False: False}[row["collaborative"]]
    if row["modified_at"] is not None:
        row["modified_at"] = datetime.fromtimestamp(row["modified_at"], UTC)
    own = in_order(record["tracks"])
    lacks_pos = any(track.get("pos") is None for track in own)
    positions = [place if lacks_pos else track["pos"] for place, track in enumerate(own)]
    return {
        **row,
        "tracks": [track["track_uri"] for track in own],
        "positions": [] if row["num_holdouts"] is None else positions,
    }


def plain_tracks(playlists: Sequence[Record]) -> dict[str, Record]:
    """Of each URI the record with the fewest fields missing, of the lowest pid, that comes first in its playlist."""
    found: dict[str, list[tuple[int, int, int, Record]]] = {}
    for record in playlists:
        for place, own in enumerate(record["tracks"]):
            track = {**own, "duration_ms": known_duration(own)}
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
    rows = zip(parsed.playlists.to_pylist(), lists, parsed.positions.tolist(), strict=True)
    return [{**row, "tracks": own, "positions": positions} for row, own, positions in rows]


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


def with_holes(record: Record) -> Record:
    """The record of a challenge set, whose positions start at 0 and leave some out."""
    tracks = [{**t, **({"pos": 3 * abs(t["pos"])} if t.get("pos") is not None else {})} for t in record["tracks"]]
    return {**record, "tracks": tracks}


CHALLENGES = st.tuples(PLAYLISTS, st.integers(0, 200), maybe(st.integers(0, 100))).map(
    lambda drawn: with_holes(
        {**drawn[0], "num_holdouts": drawn[1], **({} if drawn[2] is NOTHING else {"num_samples": drawn[2]})}
    )
)


@st.composite
def slices(draw: st.DrawFn) -> list[Record]:
    pids = draw(st.lists(st.integers(0, 9) | st.integers(0, 2**63 - 1), max_size=5, unique=True))
    return [{"pid": pid, **draw(CHALLENGES if draw(st.integers(0, 3)) == 0 else PLAYLISTS)} for pid in pids]


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
    assert fast.positions.tolist() == slow.positions.tolist()
    assert fast.words.tolist() == slow.words.tolist()


@settings(max_examples=60, deadline=None)
@given(slices(), st.data())
def test_good_playlists_beside_bad_ones_are_as_they_are_alone(playlists: list[Record], data: st.DataObject) -> None:
    bad: list[Any] = [None, {"tracks": []}, playlist("7"), {"pid": 7, "tracks": 3}, playlist(7, name=3)]
    mixed = list(playlists)
    for record in bad:
        mixed.insert(data.draw(st.integers(0, len(mixed))), record)
    # the last one is good, so that a file of bad records alone is not refused as a whole
    last = {"pid": 2**62, "tracks": []}
    found, alone = parsed(*mixed, last), parsed(*playlists, last)
    assert len(found.refused) == len(bad)
    assert playlists_of(found) == playlists_of(alone)
    assert tracks_of(found) == tracks_of(alone)


# good slices --------------------------------------------------------------------------------------------------------


def test_the_reduced_form_needs_pid_and_track_uri_alone() -> None:
    found = parse_slice(b'{"playlists":[{"pid":3,"tracks":[{"track_uri":"%s"}]}]}' % URIS[0].encode(), LIMITS)
    (row,) = playlists_of(found)
    assert (row.pop("pid"), row.pop("tracks"), row.pop("positions")) == (3, [URIS[0]], [])
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
        (b"", "not_json", "expected JSON, found an empty file"),
        (b" \n", "not_json", "expected JSON, found an empty file"),
        (
            b"\nplaylists",
            "not_json",
            "expected JSON, found an error at line 2, column 1 (character 1 of 10): Expecting value",
        ),
        (GOOD[:-5], "not_json", f"of {len(GOOD) - 5}): Unterminated string starting at; the file may be incomplete"),
        (GOOD[:40], "not_json", "of 40): Expecting value; the file may be incomplete"),
        (
            GOOD + GOOD,
            "not_json",
            f"expected one JSON document, found several: the second starts at line 1, column {len(GOOD) + 1} "
            f"(character {len(GOOD)} of {2 * len(GOOD)}); split the file",
        ),
        (GOOD + b"\n\n " + rendered([playlist(8)]), "not_json", "found several: the second starts at line 3, column 2"),
        (GOOD + b"null", "not_json", "found several"),
        (
            GOOD + b"\0",
            "not_json",
            "expected the end of the file after the JSON document, found more at line 1, column",
        ),
        (GOOD + b"}]", "not_json", f'column {len(GOOD) + 1} (character {len(GOOD)} of {len(GOOD) + 2}): "}}]"'),
        (GOOD.replace(b"Road", b"Ro\nd"), "not_json", "Invalid control character"),
        (b"[" * 100_000, "not_json", "expected JSON, found values that are nested too deeply"),
        (b'{"x":' + b"9" * 5000 + b"}", "not_json", "found a number that cannot be read"),
        (
            GOOD.replace(b"Road", b"Ro\xffd"),
            "not_utf8",
            f"expected UTF-8, found the byte 0xff at position {GOOD.index(b'Road') + 2} (line 1): if the file is in "
            "Windows-1252, convert it with `iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW_FILE`",
        ),
        (b"{\n\n" + "é".encode("cp1252"), "not_utf8", "the byte 0xe9 at position 3 (line 3)"),
        (GOOD.replace(b"Road", b"\xed\xa0\x80"), "not_utf8", "byte 0xed"),
        (
            GOOD.decode().encode("utf-16"),
            "not_utf8",
            "expected UTF-8, found UTF-16: convert it with `iconv -f UTF-16 -t UTF-8 FILE > NEW_FILE`",
        ),
        (GOOD.decode().encode("utf-16-le"), "not_utf8", "iconv -f UTF-16LE"),
        (GOOD.decode().encode("utf-16-be"), "not_utf8", "iconv -f UTF-16BE"),
        (GOOD.decode().encode("utf-32"), "not_utf8", "iconv -f UTF-32 "),
        (b"null", "not_a_slice", "expected an object with a list `playlists`, found null"),
        (b" null\n", "not_a_slice", ", found null"),
        (b"null null", "not_json", "found several"),
        (b"3", "not_a_slice", ", found 3"),
        (b'["a"]', "not_a_slice", 'expected an object with a list `playlists`, found ["a"]'),
        (b"{}", "not_a_slice", ", found the keys []"),
        (b'{"info":1,"tracks":[]}', "not_a_slice", ', found the keys ["info", "tracks"]'),
        (b'{"\\ud800":1}', "not_a_slice", ', found the keys ["\\ud800"]'),
        (b'{"playlists":null}', "not_a_slice", ", found playlists: null"),
        (b'{"playlists":{"pid":1}}', "not_a_slice", ', found playlists: {"pid": 1}'),
        (b'{"playlists":"none"}', "not_a_slice", ', found playlists: "none"'),
        (
            b'{"playlists":[{"name":"a"},3]}',
            "not_a_slice",
            "expected playlists with a pid, found 2 without one, the fir",
        ),
        (
            b'{"playlists":[{"name":"a","items":[]}]}',
            "not_a_slice",
            "found playlists of a Spotify account export: `encor",
        ),
        (
            b'{"original_name":"a","tracks":[]}',
            "not_a_slice",
            "found a playlist of spotify-playlist-archive: `encore im",
        ),
    ],
)
def test_a_file_is_refused_with_its_reason(data: bytes, reason: str, detail: str) -> None:
    refused = whole_file(data)
    assert refused.reason == reason
    assert detail in refused.detail
    assert refused.payload == data[: LIMITS.payload_bytes].decode("utf-8", "replace")


# playlists that are refused -----------------------------------------------------------------------------------------

URI_EXPECTED = "track_uri: expected spotify:track: and 22 letters or digits"


@pytest.mark.parametrize(
    ("record", "pid", "reason", "detail"),
    [
        ("x", None, "pid_missing", 'expected an object with a pid, found "x"'),
        (None, None, "pid_missing", "expected an object with a pid, found null"),
        ({"tracks": []}, None, "pid_missing", "pid: expected a whole number, found nothing"),
        (playlist(None), None, "pid_missing", "pid: expected a whole number, found nothing"),
        (playlist("7"), None, "pid_not_integer", 'pid: expected a whole number from 0, found "7"'),
        (playlist(7.5), None, "pid_not_integer", "pid: expected a whole number from 0, found 7.5"),
        (playlist(1e400), None, "pid_not_integer", "pid: expected a whole number from 0, found Infinity"),
        (playlist(True), None, "pid_not_integer", "pid: expected a whole number from 0, found true"),
        (playlist(-1), -1, "pid_not_integer", "pid: expected a whole number from 0, found -1"),
        (playlist(2**63), None, "pid_not_integer", f"pid: expected a whole number from 0, found {2**63}, which is too"),
        (playlist(2**70), None, "pid_not_integer", "found 1.1805916207174113e+21, which is too large"),
        (playlist(1), 1, "pid_duplicate", "pid: 1 occurs earlier in this file"),
        (playlist(1.0), 1, "pid_duplicate", "pid: 1 occurs earlier in this file"),
        (playlist(99), 99, "pid_duplicate", "pid: 99 is taken from a.json"),
        ({"pid": 7}, 7, "tracks_missing", "tracks: expected a list, found null"),
        ({"pid": 7, "tracks": None}, 7, "tracks_missing", "tracks: expected a list, found null"),
        ({"pid": 7, "tracks": {"0": 1}}, 7, "tracks_missing", 'tracks: expected a list, found {"0": 1}'),
        (playlist(7, *URIS * 6), 7, "too_many_tracks", "tracks: expected at most 40, found 48"),
        (playlist(name=3), 7, "field_malformed", "name: expected text, found 3"),
        (playlist(name="a\udc00"), 7, "field_malformed", 'name: expected text, found "a\\udc00"'),
        (playlist(description={}), 7, "field_malformed", "description: expected text, found {}"),
        (playlist(num_followers="3"), 7, "field_malformed", 'num_followers: expected a whole number, found "3"'),
        (playlist(num_followers=2**31), 7, "field_malformed", "number, found 2147483648, which is too large"),
        (playlist(num_followers=-(2**40)), 7, "field_malformed", "found -1099511627776, which is too small"),
        (playlist(num_edits=1.5), 7, "field_malformed", "num_edits: expected a whole number, found 1.5"),
        (playlist(num_albums=True), 7, "field_malformed", "num_albums: expected a whole number, found true"),
        (playlist(modified_at=-1), 7, "field_malformed", "modified_at: expected seconds since 1970, found -1"),
        (playlist(modified_at="now"), 7, "field_malformed", 'modified_at: expected seconds since 1970, found "now"'),
        (
            playlist(modified_at=1493424000000),
            7,
            "field_malformed",
            "seconds since 1970, found 1493424000000, which is after the year 9999 (milliseconds?)",
        ),
        (playlist(collaborative="yes"), 7, "field_malformed", 'collaborative: expected true or false, found "yes"'),
        (playlist(collaborative=1), 7, "field_malformed", "collaborative: expected true or false, found 1"),
        (playlist(collaborative=[]), 7, "field_malformed", "collaborative: expected true or false, found []"),
        (playlist(num_holdouts="5"), 7, "field_malformed", 'num_holdouts: expected a whole number, found "5"'),
        (playlist(num_holdouts=-5), 7, "field_malformed", "num_holdouts: expected a whole number from 0, found -5"),
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
    assert "9223372036854775807" not in refused.detail, "nobody knows the bounds of int64"
    assert not found.is_refused
    assert [(row["pid"], row["tracks"]) for row in playlists_of(found)] == [(1, [URIS[0]]), (2, [URIS[2]])]
    assert set(tracks_of(found)) == {URIS[0], URIS[2]}, "a refused playlist leaves no trace"


def test_the_first_of_two_playlists_of_one_pid_is_taken_even_after_a_bad_one() -> None:
    found = parsed({"pid": 1, "tracks": 3}, playlist(1, URIS[1]), playlist(1, URIS[2]))
    assert [row["tracks"] for row in playlists_of(found)] == [[URIS[1]]]
    assert [(r.record, r.reason) for r in found.refused] == [
        ("playlist 0", "tracks_missing"),
        ("playlist 2", "pid_duplicate"),
    ]


# items that are not tracks ------------------------------------------------------------------------------------------

BAD_ITEMS: list[tuple[object, str, str]] = [
    (None, "item_missing", "tracks[1]: expected a track, found null"),
    (3, "item_missing", "tracks[1]: expected a track, found 3"),
    ({}, "item_missing", "tracks[1].track_uri: expected a URI, found null"),
    ({"track_uri": None}, "item_missing", "tracks[1].track_uri: expected a URI, found null"),
    ({"track_uri": ""}, "item_missing", 'tracks[1].track_uri: expected a URI, found ""'),
    (
        {"track_uri": "spotify:local:A:B:C:1"},
        "item_local",
        f'tracks[1].{URI_EXPECTED}, found "spotify:local:A:B:C:1", a local file of the playlist\'s owner',
    ),
    ({"track_uri": "spotify:episode:" + "a" * 22}, "item_episode", ", an episode of a podcast"),
    ({"track_uri": 3}, "track_uri_malformed", f"{URI_EXPECTED}, found 3"),
    ({"track_uri": "spotify:artist:" + "a" * 22}, "track_uri_malformed", URI_EXPECTED),
    ({"track_uri": URIS[0][:-1]}, "track_uri_malformed", f'found "{URIS[0][:-1]}"'),
    ({"track_uri": URIS[0] + "a"}, "track_uri_malformed", URI_EXPECTED),
    ({"track_uri": URIS[0] + "\n"}, "track_uri_malformed", URI_EXPECTED),
    ({"track_uri": "x" + URIS[0]}, "track_uri_malformed", URI_EXPECTED),
    ({"track_uri": URIS[0][:-1] + "é"}, "track_uri_malformed", '\\u00e9"'),
    ({"track_uri": URIS[1], "pos": "1"}, "field_malformed", 'tracks[1].pos: expected a whole number, found "1"'),
    ({"track_uri": URIS[1], "pos": 0.5}, "field_malformed", "tracks[1].pos: expected a whole number, found 0.5"),
    ({"track_uri": URIS[1], "duration_ms": 1234.5}, "field_malformed", "expected a whole number, found 1234.5"),
    ({"track_uri": URIS[1], "duration_ms": 2**63}, "field_malformed", f"found {2**63}, which is too large"),
    (
        {"track_uri": URIS[1], "track_name": ["a"]},
        "field_malformed",
        'tracks[1].track_name: expected text, found ["a"]',
    ),
    ({"track_uri": URIS[1], "artist_name": "\ud800"}, "field_malformed", 'artist_name: expected text, found "\\ud800"'),
]


@pytest.mark.parametrize(("item", "reason", "detail"), BAD_ITEMS)
def test_an_item_that_is_not_a_track_is_dropped_and_recorded(item: object, reason: str, detail: str) -> None:
    found = parsed(playlist(1), {"pid": 7, "tracks": [{"track_uri": URIS[2]}, item, {"track_uri": URIS[3]}]})
    (refused,) = found.refused
    assert (refused.record, refused.pid, refused.reason) == ("playlist 1, item 1", 7, reason)
    assert refused.reason in REASONS
    assert detail in refused.detail
    assert refused.payload == json.dumps(item)[: LIMITS.payload_bytes]
    assert refused.taken_by is None
    assert (found.n_dropped, found.is_refused, found.longest) == (1, False, 3)
    assert [(row["pid"], row["tracks"]) for row in playlists_of(found)] == [(1, [URIS[0]]), (7, [URIS[2], URIS[3]])]
    assert set(tracks_of(found)) == {URIS[0], URIS[2], URIS[3]}


@pytest.mark.parametrize(("item", "reason", "detail"), BAD_ITEMS)
def test_an_item_that_is_not_a_track_refuses_its_playlist_if_so_set(item: object, reason: str, detail: str) -> None:
    record = {"pid": 7, "tracks": [{"track_uri": URIS[2]}, item, None]}
    found = parsed(playlist(1), record, limits=Limits(40, 80, "refuse"))
    (refused,) = found.refused
    assert (refused.record, refused.pid, refused.reason) == ("playlist 1", 7, reason)
    assert detail in refused.detail
    assert refused.payload == json.dumps(record)[:80]
    assert found.n_dropped == 0
    assert [row["pid"] for row in playlists_of(found)] == [1]
    assert set(tracks_of(found)) == {URIS[0]}, "a refused playlist leaves no trace"


def test_the_tracks_beside_dropped_items_stay_in_the_order_of_pos() -> None:
    items = [
        {"track_uri": URIS[0], "pos": 3},
        None,
        {"track_uri": "spotify:local:x", "pos": 1},
        {"track_uri": URIS[1], "pos": 0},
        {"track_uri": URIS[2], "pos": 2},
    ]
    found = parsed({"pid": 7, "tracks": items})
    assert [row["tracks"] for row in playlists_of(found)] == [[URIS[1], URIS[2], URIS[0]]]
    assert [refused.record for refused in found.refused] == ["playlist 0, item 1", "playlist 0, item 2"]


def test_a_playlist_of_dropped_items_alone_stays_and_is_empty() -> None:
    found = parsed({"pid": 7, "tracks": [None, {"track_uri": "spotify:local:x"}]})
    assert [(row["pid"], row["tracks"]) for row in playlists_of(found)] == [(7, [])]
    assert found.n_dropped == 2


def test_a_playlist_that_is_refused_anyway_has_no_rows_for_its_items() -> None:
    found = parsed(playlist(1), {"pid": 1, "tracks": [None]}, {"pid": 2, "name": 3, "tracks": [None]})
    assert [refused.record for refused in found.refused] == ["playlist 1", "playlist 2"]


# numbers ------------------------------------------------------------------------------------------------------------


def test_a_float_without_a_fraction_is_a_whole_number() -> None:
    tracks = [
        {"track_uri": URIS[0], "pos": 1.0, "duration_ms": 1234.0},
        {"track_uri": URIS[1], "pos": 0.0, "duration_ms": 1e3},
    ]
    found = parsed({"pid": 5.0, "num_edits": 3.0, "modified_at": 1493424000.0, "duration_ms": 2234.0, "tracks": tracks})
    assert found.refused == []
    (row,) = playlists_of(found)
    assert (row["pid"], row["num_edits"], row["duration_ms"], row["tracks"]) == (5, 3, 2234, [URIS[1], URIS[0]])
    assert row["modified_at"] == datetime(2017, 4, 29, tzinfo=UTC)
    assert {uri: own["duration_ms"] for uri, own in tracks_of(found).items()} == {URIS[0]: 1234, URIS[1]: 1000}


@pytest.mark.parametrize("beside", [[], [None]], ids=["clean", "beside a bad record"])
@pytest.mark.parametrize("duration", [0, -5])
def test_a_duration_of_0_or_less_is_unknown(duration: int, beside: list[object]) -> None:
    other = {"pid": 9, "tracks": [track(duration_ms=1234)]}
    alone = parsed({"pid": 3, "tracks": [track(duration_ms=duration)]}, *beside)
    both = parsed({"pid": 3, "tracks": [track(duration_ms=duration)]}, other, *beside)
    (row,) = tracks_of(alone).values()
    assert (row["duration_ms"], row["n_missing"]) == (None, 1)
    (row,) = tracks_of(both).values()
    assert (row["duration_ms"], row["first_pid"]) == (1234, 9), "a record with a duration is better"


@pytest.mark.parametrize(("duration", "expected"), [(-1, None), (0, 0), (1, 1)])
def test_a_negative_duration_of_a_playlist_is_unknown(duration: int, expected: int | None) -> None:
    assert playlists_of(parsed(playlist(duration_ms=duration)))[0]["duration_ms"] == expected


# challenge sets -----------------------------------------------------------------------------------------------------


def challenge(pid: int, *positions: int | None, **fields: object) -> Record:
    """A playlist of a challenge set with a track at each of these positions."""
    tracks = [
        {"track_uri": uri, "artist_name": "a", **({} if pos is None else {"pos": pos})}
        for uri, pos in zip(URIS, positions, strict=False)
    ]
    return {"num_holdouts": 5, "pid": pid, "num_tracks": 9, "tracks": tracks, "num_samples": len(tracks), **fields}


@pytest.mark.parametrize("beside", [[], [None]], ids=["clean", "beside a bad record"])
def test_a_challenge_set_is_read_with_the_positions_of_its_tracks(beside: list[object]) -> None:
    records = [challenge(1), challenge(2, 8, 0, 3, name="Road trip"), playlist(3, URIS[0], URIS[1])]
    found = parse_slice(
        json.dumps({"date": "2018-01-16", "version": "v1", "name": "x", "playlists": [*records, *beside]}).encode(),
        LIMITS,
    )
    rows = playlists_of(found)
    assert [(row["pid"], row["num_holdouts"], row["num_samples"]) for row in rows] == [
        (1, 5, 0),
        (2, 5, 3),
        (3, None, None),
    ]
    assert [row["name"] for row in rows] == [None, "Road trip", None]
    assert [row["positions"] for row in rows] == [[], [0, 3, 8], []]
    assert rows[1]["tracks"] == [URIS[1], URIS[2], URIS[0]]


def test_a_track_of_a_challenge_set_without_pos_has_its_place_in_the_file() -> None:
    (row,) = playlists_of(parsed(challenge(1, 4, None, 2)))
    assert (row["tracks"], row["positions"]) == (URIS[:3], [0, 1, 2])


def test_a_challenge_playlist_without_a_list_of_tracks_has_none() -> None:
    found = parsed({"pid": 1, "num_holdouts": 5, "name": "Road trip"})
    assert found.refused == []
    assert [(row["num_holdouts"], row["tracks"]) for row in playlists_of(found)] == [(5, [])]


@pytest.mark.parametrize("pos", [-1, 2**31])
def test_a_position_outside_of_any_playlist_is_refused(pos: int) -> None:
    found = parsed(challenge(1, 0, pos))
    (refused,) = found.refused
    assert refused.detail == f"tracks[1].pos: expected a whole number from 0, found {pos}"
    assert playlists_of(found)[0]["positions"] == [0]


# gzip ---------------------------------------------------------------------------------------------------------------


def test_a_compressed_slice_is_read() -> None:
    data = rendered([playlist(1), playlist(2)])
    for compressed in (gzip.compress(data), gzip.compress(data[:20]) + gzip.compress(data[20:])):
        assert [row["pid"] for row in playlists_of(parse_slice(compressed, LIMITS))] == [1, 2]


@pytest.mark.parametrize("spoil", [lambda d: d[:-9], lambda d: d[:30] + b"xxxx" + d[34:], lambda d: d[:2]])
def test_a_damaged_compressed_slice_is_refused(spoil: Callable[[bytes], bytes]) -> None:
    refused = whole_file(spoil(gzip.compress(rendered([playlist(pid) for pid in range(50)]))))
    assert refused.reason == "unreadable"
    assert "expected a file that gzip can decompress, found a damaged one: " in refused.detail


# what is kept of refused records ------------------------------------------------------------------------------------


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
