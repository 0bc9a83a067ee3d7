"""Each shape becomes slices that ingest takes without a refusal."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encore.errors import InputError
from encore.importing.importer import Imported, import_playlists
from tests.unit.importing.samples import (
    account,
    archived,
    item,
    number,
    playlists,
    uri,
    uris,
    url,
    write,
    write_json,
)


def run(source: Path, tmp_path: Path, name: str | None = None) -> Imported:
    return import_playlists(source, tmp_path / "out", name)


# JSON ---------------------------------------------------------------------------------------------------------------


def test_the_playlists_of_an_account_export(tmp_path: Path) -> None:
    items = [
        item(1),
        {"track": None, "episode": {"episodeName": "E", "episodeUri": uri(5, "episode")}, "localTrack": None},
        {"track": None, "episode": None, "audiobook": {"audiobookName": "B"}, "localTrack": None},
        {"track": None, "episode": None, "localTrack": {"uri": "spotify:local:a:b:c:10"}},
        {"track": {"trackName": "Local", "trackUri": "spotify:local:a:b:c:10"}, "episode": None},
        {"track": {"trackName": "Without", "artistName": "Ada"}, "episode": None, "localTrack": None},
        {"track": {"trackName": "Bad", "trackUri": "spotify:track:short"}, "episode": None},
        {"track": None, "episode": None, "localTrack": None},
        None,
        item(2),
    ]
    source = write_json(tmp_path / "Playlist1.json", account(("Café ☕", items), ("Only local", [items[3]])))
    done = run(source, tmp_path)
    assert done.n_playlists == 1
    assert done.losses == {
        "local files": 3,
        "podcast episodes": 1,
        "audiobooks": 1,
        "items without an id": 1,
        "malformed ids": 1,
        "empty rows": 2,
        "playlists without a usable track": 1,
    }
    (playlist,) = playlists(tmp_path / "out").values()
    assert playlist == {
        "name": "Café ☕",
        "collaborative": "false",
        "pid": playlist["pid"],
        "modified_at": 1709251200,
        "num_tracks": 2,
        "num_followers": 2,
        "tracks": [
            {
                "pos": pos,
                "artist_name": "Ada",
                "track_uri": uri(n),
                "track_name": f"Track {n}",
                "album_name": "First",
            }
            for pos, n in enumerate((1, 2))
        ],
    }
    info = json.loads(done.slices[0].read_text())["info"]
    assert info["lost"] == done.losses
    assert info["source"] == "Playlist1"


def test_an_old_account_export_without_local_tracks_and_one_without_ids(tmp_path: Path) -> None:
    old = {"name": "Old", "lastModifiedDate": "2020-01-01", "items": [{"track": item(1)["track"], "episode": None}]}
    write_json(tmp_path / "in" / "Playlist1.json", {"playlists": [old]})
    older = {"name": "Older", "lastModifiedDate": "2019-01-01", "tracks": [{"trackName": "T", "artistName": "A"}]}
    write_json(tmp_path / "in" / "Playlist2.json", {"playlists": [older]})
    done = run(tmp_path / "in", tmp_path)
    assert uris(playlists(tmp_path / "out")["Old"]) == [uri(1)]
    assert done.losses == {"items without an id": 1, "playlists without a usable track": 1}


def test_the_liked_songs_of_an_account_export(tmp_path: Path) -> None:
    tracks = [{"artist": "Ada", "album": "First", "track": "One", "uri": uri(1)}, {"track": "Two", "uri": ""}]
    content = {"tracks": tracks, "albums": [{"artist": "Ada", "uri": uri(1, "album")}], "bannedTracks": [], "other": []}
    done = run(write_json(tmp_path / "YourLibrary.json", content), tmp_path)
    liked = playlists(tmp_path / "out")["Liked Songs"]
    assert uris(liked) == [uri(1)]
    assert liked["tracks"][0]["album_name"] == "First"
    assert done.losses == {"items without an id": 1}


def test_a_folder_of_the_playlist_archive(tmp_path: Path) -> None:
    pretty = tmp_path / "archive" / "playlists" / "pretty"
    write_json(pretty / f"{number(50)}.json", archived(50, "Fresh", [3, 1, 2]))
    # an early version: no URL, `name` instead of `original_name`
    early = {**archived(51, "", [4]), "name": "Early", "url": ""}
    del early["original_name"], early["unique_name"], early["snapshot_id"]
    write_json(pretty / f"{number(51)}.json", early)
    write_json(
        tmp_path / "archive" / "playlists" / "cumulative" / f"{number(50)}.json",
        {"name": "Fresh", "date_first_scraped": "2023-01-01", "tracks": []},
    )
    done = run(tmp_path / "archive", tmp_path)
    found = playlists(tmp_path / "out")
    assert uris(found["Fresh"]) == [uri(3), uri(1), uri(2)]
    assert found["Fresh"]["source_id"] == number(50)
    assert found["Early"]["source_id"] == number(51)
    assert found["Fresh"]["description"] == "Rock &amp; Roll"
    assert (found["Fresh"]["num_albums"], found["Fresh"]["num_artists"]) == (1, 1)
    assert found["Fresh"]["duration_ms"] == 3 * 192000
    assert found["Fresh"]["tracks"][0] == {
        "pos": 0,
        "artist_name": "Ada",
        "track_uri": uri(3),
        "artist_uri": uri(800, "artist"),
        "track_name": "Track 3",
        "album_uri": uri(900, "album"),
        "duration_ms": 192000,
        "album_name": "First",
    }
    (refused,) = done.refused
    assert refused.path.endswith(f"cumulative/{number(50)}.json")
    assert "playlists/pretty" in refused.reason


def test_a_playlist_that_the_archive_has_twice_is_taken_once(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_json(tmp_path / "in" / folder / "x.json", archived(50, "Fresh", [1]))
    done = run(tmp_path / "in", tmp_path)
    assert (done.n_playlists, done.losses) == (1, {"repeated playlists": 1})


# CSV of Exportify ---------------------------------------------------------------------------------------------------

NEW = "Track URI,Track Name,Artist URI(s),Artist Name(s),Album URI,Album Name,Track Duration (ms),Added By,Added At"
OLD = '"Spotify ID","Artist IDs","Track Name","Album Name","Artist Name(s)","Duration (ms)","Added By","Added At"'
OLDEST = '"Spotify URI","Track Name","Artist Name","Album Name","Track Duration (ms)","Added By","Added At"'


def test_exportify_with_new_headers(tmp_path: Path) -> None:
    artists = f'"{uri(800, "artist")}, {uri(801, "artist")}","Ada\\, Countess, Bo"'
    source = write(
        tmp_path / "road_trip.csv",
        NEW,
        f'{uri(1)},"Say ""Hi"", twice",{artists},{uri(900, "album")},First,192000,spotify:user:a,2024-02-29T00:00:00Z',
        "spotify:local:Ada:First:Home+Recording:100,Home Recording,,Ada,,First,100000,,2024-02-29T00:00:00Z",
        "",
        encoding="utf-8-sig",
    )
    done = run(source, tmp_path)
    playlist = playlists(tmp_path / "out")["road_trip"]
    assert playlist["tracks"] == [
        {
            "pos": 0,
            "artist_name": "Ada, Countess",
            "track_uri": uri(1),
            "artist_uri": uri(800, "artist"),
            "track_name": 'Say "Hi", twice',
            "album_uri": uri(900, "album"),
            "duration_ms": 192000,
            "album_name": "First",
        }
    ]
    assert done.losses == {"local files": 1, "empty rows": 1}


@pytest.mark.parametrize(
    ("header", "row", "artist", "artist_uri"),
    [
        (OLD, f'{number(1)},"{number(8)},{number(9)}","One","First","Ada,Bo",1000,u,t', "Ada", uri(8, "artist")),
        (OLD, f'{number(1)},"{number(8)}","One","First","Tyler, The C",1000,u,t', "Tyler, The C", uri(8, "artist")),
        # a number of names that does not match the ids: nobody can say where the first one ends
        (OLD, f'{number(1)},"{number(8)},{number(9)}","One","First","A,B,C",1000,u,t', "A,B,C", uri(8, "artist")),
        (OLDEST, f'"{uri(1)}","One","Ada, Bo","First","1000","u","t"', "Ada, Bo", None),
    ],
)
def test_exportify_with_old_headers(tmp_path: Path, header: str, row: str, artist: str, artist_uri: str | None) -> None:
    run(write(tmp_path / "list.csv", header, row), tmp_path)
    (track,) = playlists(tmp_path / "out")["list"]["tracks"]
    assert (track["track_uri"], track["artist_name"], track.get("artist_uri")) == (uri(1), artist, artist_uri)
    assert track["duration_ms"] == 1000


def test_a_zip_of_exportify_is_many_playlists(tmp_path: Path) -> None:
    path = tmp_path / "spotify_playlists.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("one.csv", f"{NEW}\n{uri(1)},A,,,,,,,\n")
        archive.writestr("two.csv", f"{NEW}\n{uri(2)},B,,,,,,,\n")
        archive.writestr("__MACOSX/._one.csv", "\0")
    done = run(path, tmp_path)
    assert {name: uris(found) for name, found in playlists(tmp_path / "out").items()} == {
        "one": [uri(1)],
        "two": [uri(2)],
    }
    assert [path.name for path in done.slices] == ["spotify_playlists.slice.0-1.json"]
    assert (done.losses, done.refused) == ({}, [])


def test_exportify_with_a_column_of_playlists_is_a_table(tmp_path: Path) -> None:
    source = write(tmp_path / "all.csv", f"Playlist Name,{NEW}", f"Rain,{uri(1)},A,,,,,,,", f"Sun,{uri(2)},B,,,,,,,")
    run(source, tmp_path)
    assert set(playlists(tmp_path / "out")) == {"Rain", "Sun"}


# tables -------------------------------------------------------------------------------------------------------------


NO_IDS = "no column has ids of Spotify tracks"


@pytest.mark.parametrize("is_sorted", [True, False])
@pytest.mark.parametrize("ending", ["csv", "csv.gz", "tsv", "parquet"])
def test_a_flat_table_with_ids(tmp_path: Path, ending: str, is_sorted: bool) -> None:
    header = ["pid", "name", "pos", "track_uri", "track_name", "artist_uri", "duration_ms", "num_followers"]
    places = [(pid, pos) for pid in (7, 8) for pos in (0, 1)]
    rows = [[str(p), f"List {p}", str(k), uri(10 * p + k), "T", uri(8, "artist"), "1.0", "3"] for p, k in places]
    if not is_sorted:
        rows = [rows[3], rows[0], rows[2], rows[1]]
    path = tmp_path / f"table.{ending}"
    sign = "\t" if ending == "tsv" else ","
    data = "".join(sign.join(row) + "\n" for row in [header, *rows]).encode()
    if ending == "parquet":
        columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
        whole = {name: pa.array(columns[name]).cast(pa.int64()) for name in ("pid", "pos")}
        pq.write_table(pa.table({**columns, **whole}), path)
    else:
        path.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    done = run(path, tmp_path)
    found = playlists(tmp_path / "out")
    assert {name: uris(playlist) for name, playlist in found.items()} == {
        "List 7": [uri(70), uri(71)],
        "List 8": [uri(80), uri(81)],
    }
    assert {name: playlist["source_id"] for name, playlist in found.items()} == {"List 7": "7", "List 8": "8"}
    assert found["List 7"]["num_followers"] == 3
    assert found["List 7"]["duration_ms"] == 2
    assert all(playlist["pid"] >= 2**32 for playlist in found.values())
    assert (done.losses, done.name) == ({}, "table")


def test_a_flat_table_by_title_and_one_by_user_and_title(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "playlist_name;track_id", f"Rain;{number(1)}", f"Sun;{number(2)}", f"Rain;{number(3)}")
    run(tmp_path / "a.csv", tmp_path)
    assert uris(playlists(tmp_path / "out")["Rain"]) == [uri(1), uri(3)]
    write(tmp_path / "b.csv", "user_id,playlistname,spotify_id", f"u,Rain,{number(1)}", f"v,Rain,{number(2)}")
    assert import_playlists(tmp_path / "b.csv", tmp_path / "other").n_playlists == 2


def test_without_positions_the_tracks_are_in_the_order_of_the_rows(tmp_path: Path) -> None:
    run(write(tmp_path / "t.csv", "playlist,track_id", *(f"{'AB'[n % 2]},{number(n)}" for n in range(400))), tmp_path)
    assert uris(playlists(tmp_path / "out")["B"]) == [uri(n) for n in range(1, 400, 2)]


def test_the_spellings_of_a_public_table(tmp_path: Path) -> None:
    """Among several columns of ids the one whose values are Spotify's is taken."""
    header = "track_id,song_id,track_name,track_artist,track_album_id,track_album_name,playlist_name,playlist_id,energy"
    run(write(tmp_path / "songs.csv", header, f"17,{number(4)},T,Ada,{number(9)},First,Pop,p1,0.5"), tmp_path)
    playlist = playlists(tmp_path / "out")["Pop"]
    assert playlist["source_id"] == "p1"
    assert playlist["tracks"][0]["album_uri"] == uri(9, "album")
    assert (uris(playlist), playlist["tracks"][0]["artist_name"]) == ([uri(4)], "Ada")


def test_the_parts_of_a_table_are_one_table(tmp_path: Path) -> None:
    for part in (0, 1):
        columns = {"pid": [1], "track_uri": [uri(part)]}
        (tmp_path / "table").mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), tmp_path / "table" / f"part-{part}.parquet")
    done = run(tmp_path / "table", tmp_path)
    assert (done.n_playlists, done.n_tracks) == (1, 2)


def test_losses_of_a_flat_table(tmp_path: Path) -> None:
    source = write(
        tmp_path / "t.csv",
        "pid,track_uri,track_name",
        f"1,{uri(1)},A",
        f",{uri(1)},A",
        "1,spotify:episode:x,A",
        "1,,A",
        "1,nonsense,A",
        "2,spotify:local:a,A",
        f"1,{uri(2)},Comma, too",
        ",,",
    )
    assert run(source, tmp_path).losses == {
        "local files": 1,
        "podcast episodes": 1,
        "items without an id": 1,
        "malformed ids": 1,
        "empty rows": 1,
        "rows with too many or too few fields": 1,
        "rows without a playlist": 1,
        "playlists without a usable track": 1,
    }


@pytest.mark.parametrize(
    ("header", "row", "said"),
    [
        (
            '"user_id", "artistname", "trackname", "playlistname"',
            "u,Ada,One,Rain",
            NO_IDS,
        ),
        ("id,danceability,name", f"{number(1)},0.5,One", "no column of playlists"),
        ("pid,track_id", "1,12345", NO_IDS),
    ],
)
def test_a_table_without_ids_or_playlists_is_refused_with_its_columns(
    tmp_path: Path, header: str, row: str, said: str
) -> None:
    with pytest.raises(InputError) as caught:
        run(write(tmp_path / "t.csv", header, row), tmp_path)
    assert said in str(caught.value)
    assert header.split(",")[-1].strip(' "') in str(caught.value)
    assert "trackid" in str(caught.value) or "playlistname" in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


# M3U ----------------------------------------------------------------------------------------------------------------


def test_m3u_with_uris_and_urls(tmp_path: Path) -> None:
    source = write(
        tmp_path / "mix.m3u8",
        "#EXTM3U",
        "#PLAYLIST:Mañana",
        "#EXTINF:192,Ada - One - Remix",
        uri(1),
        "#EXTINF:-1,Two",
        url(2).replace(".com/", ".com/intl-de/") + "?si=abc",
        uri(3),
        "Music/three.mp3",
        "C:\\Music\\four.mp3",
        "file:///music/five.mp3",
        "https://example.org/stream",
        "spotify:episode:" + number(9),
    )
    done = run(source, tmp_path)
    assert playlists(tmp_path / "out")["Mañana"]["tracks"] == [
        {"pos": 0, "artist_name": "Ada", "track_uri": uri(1), "track_name": "One - Remix", "duration_ms": 192000},
        {"pos": 1, "track_uri": uri(2), "track_name": "Two"},
        {"pos": 2, "track_uri": uri(3)},
    ]
    assert done.losses == {"local files": 3, "podcast episodes": 1, "malformed ids": 1}


def test_m3u_without_a_title_is_named_after_its_file(tmp_path: Path) -> None:
    run(write(tmp_path / "Mix 1.m3u", uri(1)), tmp_path)
    assert list(playlists(tmp_path / "out")) == ["Mix 1"]


# a mixture ----------------------------------------------------------------------------------------------------------


def test_a_folder_of_everything(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    write_json(folder / "Playlist1.json", account(("Account", [item(1)])))
    write_json(folder / "archive" / "x.json", archived(50, "Archive", [2]))
    write(folder / "exportify.csv", NEW, f"{uri(3)},A,,,,,,,")
    write(folder / "table.csv", "pid,name,track_uri,track_name", f"1,Table,{uri(4)},A")
    write(folder / "m3u.m3u", uri(5))
    write_json(folder / "StreamingHistory0.json", [{"endTime": "2024-01-01 00:00", "artistName": "A", "msPlayed": 1}])
    write_json(folder / "mpd.slice.0-0.json", {"info": {}, "playlists": [{"pid": 0, "tracks": []}]})
    write(folder / "notes.txt", "x")
    write(folder / "book.xlsx", "PK")
    write(folder / "broken.json", '{"a": ')
    write(folder / ".hidden.json", "{")
    done = run(folder, tmp_path)
    assert set(playlists(tmp_path / "out")) == {"Account", "Archive", "exportify", "Table", "m3u"}
    assert done.losses == {"files that were not imported": 5}
    reasons = {refused.path: refused.reason for refused in done.refused}
    assert set(reasons) == {"StreamingHistory0.json", "mpd.slice.0-0.json", "notes.txt", "book.xlsx", "broken.json"}
    assert "plays, not playlists" in reasons["StreamingHistory0.json"]
    assert "`encore run` reads" in reasons["mpd.slice.0-0.json"]
    assert "spreadsheet" in reasons["book.xlsx"]
    assert reasons["broken.json"].startswith("not JSON:")


# encodings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["a.csv", "a.m3u", "a.json"])
def test_encodings_that_are_read(tmp_path: Path, name: str, encoding: str) -> None:
    texts = {
        "a.csv": f"{NEW}\n{uri(1)},Zoë,,,,,,,",
        "a.m3u": f"#EXTINF:1,Zoë\n{uri(1)}",
        "a.json": json.dumps(account(("a", [{"track": {**item(1)["track"], "trackName": "Zoë"}}])), ensure_ascii=False),
    }
    run(write(tmp_path / name, texts[name], encoding=encoding), tmp_path)
    assert playlists(tmp_path / "out")["a"]["tracks"][0]["track_name"] == "Zoë"


def test_another_encoding_is_refused_with_the_byte(tmp_path: Path) -> None:
    start = f"{NEW}\n{uri(1)},"
    path = write(tmp_path / "a.csv", f"{start}Zoë,,,,,,,", encoding="cp1252")
    with pytest.raises(InputError, match=f"UTF-8 expected, byte 0xeb at position {len(start) + 2} found") as caught:
        run(path, tmp_path)
    assert "iconv -f WINDOWS-1252 -t UTF-8" in str(caught.value.remedy)


def test_the_position_of_a_bad_byte_far_into_a_file_counts_from_its_start(tmp_path: Path) -> None:
    # characters of three bytes, so that blocks end within one
    path = tmp_path / "a.m3u"
    path.write_bytes("#€€€€€€€€€€\n".encode() * 100_000 + b"\xe9")
    with pytest.raises(InputError, match=f"byte 0xe9 at position {32 * 100_000} found"):
        run(path, tmp_path)


def test_utf_16_without_a_byte_order_mark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="byte 0x00 at position 1 found: UTF-16 without a byte order mark") as caught:
        run(write(tmp_path / "a.csv", NEW, encoding="utf-16-le"), tmp_path)
    assert "iconv" in str(caught.value.remedy)


def test_lone_surrogates_do_not_cost_the_playlist(tmp_path: Path) -> None:
    run(write_json(tmp_path / "Playlist1.json", account(("half \ud83c", [item(1)]))), tmp_path)
    assert list(playlists(tmp_path / "out")) == ["half \ufffd"]
