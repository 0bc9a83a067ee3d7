"""Files that are not slices are recognised by their content or their name."""

from __future__ import annotations

import pytest

from encore.mpd.shapes import Shape, recognise, recognise_name, shape_of

TRACK = {"trackName": "One", "artistName": "Some", "albumName": "First", "trackUri": "spotify:track:" + "a" * 22}
ITEM = {"track": TRACK, "episode": None, "localTrack": None, "addedDate": "2020-01-01"}
URL = "https://open.spotify.com/track/" + "a" * 22
ARCHIVED = {"album": {"name": "First"}, "artists": [{"name": "Some"}], "duration_ms": 1, "name": "One", "url": URL}


@pytest.mark.parametrize(
    ("content", "shape"),
    [
        ({"playlists": [{"name": "A", "items": [ITEM]}]}, Shape.ACCOUNT_PLAYLISTS),
        ({"playlists": [{"name": "A", "lastModifiedDate": "2019-01-01", "tracks": []}]}, Shape.ACCOUNT_PLAYLISTS),
        ({"tracks": [{"artist": "a", "album": "b", "track": "c", "uri": "d"}], "albums": []}, Shape.ACCOUNT_LIBRARY),
        ({"tracks": [], "albums": [], "bannedTracks": []}, Shape.ACCOUNT_LIBRARY),
        ({"original_name": "A", "unique_name": "A (2)", "tracks": []}, Shape.ARCHIVE_PLAYLIST),
        ({"name": "A", "description": "", "tracks": [ARCHIVED]}, Shape.ARCHIVE_PLAYLIST),
        ({"name": "A", "date_first_scraped": "2020-01-01", "tracks": []}, Shape.ARCHIVE_HISTORY),
        ([{"endTime": "2020-01-01 00:00", "artistName": "a", "msPlayed": 1}], Shape.STREAMING_HISTORY),
        ([{"ts": "2020-01-01T00:00:00Z", "ms_played": 1}], Shape.STREAMING_HISTORY),
        ({"info": {}, "playlists": [{"pid": 0, "tracks": []}]}, Shape.SLICE),
        ({"playlists": []}, None),
        ({"playlists": [None, 3, "x"]}, None),
        ({"tracks": "none"}, None),
        ([], None),
        (None, None),
        ("text", None),
    ],
)
def test_a_json_value_is_recognised(content: object, shape: Shape | None) -> None:
    assert shape_of(content) is shape
    assert recognise(content) == (None if shape in (None, Shape.SLICE) else shape.value)


def test_what_can_be_converted_names_the_command() -> None:
    for shape in (Shape.ACCOUNT_PLAYLISTS, Shape.ACCOUNT_LIBRARY, Shape.ARCHIVE_PLAYLIST):
        assert "`encore import FILE --out DIR`" in shape.value


@pytest.mark.parametrize("name", ["a.csv", "A.CSV", "a.csv.gz", "a.tsv", "a.parquet", "a.m3u", "a.M3U8", "a.zip"])
def test_a_file_name_is_recognised(name: str) -> None:
    assert "`encore import FILE --out DIR`" in (recognise_name(name) or "")


@pytest.mark.parametrize("name", ["mpd.slice.0-999.json", "README", "notes.txt", ".csv.swp"])
def test_other_names_are_not(name: str) -> None:
    assert recognise_name(name) is None
