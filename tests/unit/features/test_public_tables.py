"""The headers of public tables of audio features, with invented rows: which columns are read, or why the file is not.

Only column names, and how ids, keys and modes are written, are those of the tables.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encore.errors import InputError
from encore.vocabulary import FEATURES
from tests.unit.features.test_file_provider import fetch, file_provider, reasons, track, uri

VALUES: dict[str, Any] = dict(zip(FEATURES, (0.5, 0.625, 1, -8.5, 1, 0.05, 0.125, 0.0, 0.25, 0.75, 120.5), strict=True))
PLAIN = "danceability,energy,key,loudness,mode,speechiness,acousticness,instrumentalness,liveness,valence,tempo"
TITLED = "Danceability,Energy,Key,Loudness,Mode,Speechiness,Acousticness,Instrumentalness,Liveness,Valence,Tempo"


@dataclass(frozen=True)
class Public:
    """A public table: its header; `ids`: how it writes the id of track n, by column; `written`: other values."""

    header: str
    ids: dict[str, str]
    written: dict[str, str] = field(default_factory=dict)
    delimiter: str = ","


BARE, URI, URL = "{id}", "spotify:track:{id}", "https://open.spotify.com/track/{id}"
API = "https://api.spotify.com/v1/tracks/{id}"
MSD = "TRIOREW128F424EA{n:02d}"

READ: dict[str, Public] = {
    "Ultimate Spotify Tracks DB: SpotifyFeatures.csv": Public(
        "genre,artist_name,track_name,track_id,popularity,acousticness,danceability,duration_ms,energy,"
        "instrumentalness,key,liveness,loudness,mode,speechiness,tempo,time_signature,valence",
        {"track_id": BARE},
        {"mode": "Major", "key": "C#"},
    ),
    "tidytuesday: spotify_songs.csv": Public(
        "track_id,track_name,track_artist,track_popularity,track_album_id,track_album_name,track_album_release_date,"
        f"playlist_name,playlist_id,playlist_genre,playlist_subgenre,{PLAIN},duration_ms",
        {"track_id": BARE, "track_album_id": "7777777777777777777777", "playlist_id": "8888888888888888888888"},
    ),
    "tidytuesday: billboard audio_features.csv": Public(
        "song_id,performer,song,spotify_genre,spotify_track_id,spotify_track_preview_url,spotify_track_duration_ms,"
        f"spotify_track_explicit,spotify_track_album,{PLAIN},time_signature,spotify_track_popularity",
        {"song_id": "Some SongSome Performer", "spotify_track_id": BARE},
    ),
    "Spotify 1.2M+ Songs: tracks_features.csv": Public(
        f"id,name,album,album_id,artists,artist_ids,track_number,disc_number,explicit,{PLAIN},duration_ms,"
        "time_signature,year,release_date",
        {"id": BARE, "album_id": "7777777777777777777777", "artist_ids": "['9999999999999999999999']"},
    ),
    "maharshipandya: dataset.csv": Public(
        f",track_id,artists,album_name,track_name,popularity,duration_ms,explicit,{PLAIN},time_signature,track_genre",
        {"": "{n}", "track_id": BARE},
    ),
    "Spotify 1 million tracks: spotify_data.csv": Public(
        f",artist_name,track_name,track_id,popularity,year,genre,{PLAIN},duration_ms,time_signature",
        {"": "{n}", "track_id": BARE},
    ),
    "Million Song Dataset + Last.fm: Music Info.csv": Public(
        f"track_id,name,artist,spotify_preview_url,spotify_id,tags,genre,year,duration_ms,{PLAIN},time_signature",
        {"track_id": MSD, "spotify_id": BARE, "spotify_preview_url": "https://p.scdn.co/mp3-preview/{n}"},
    ),
    "Million Song Dataset with Spotify ids in id": Public(f"track_id,id,{PLAIN}", {"track_id": MSD, "id": BARE}),
    "Spotify Dataset 1921-2020: data.csv": Public(
        "acousticness,artists,danceability,duration_ms,energy,explicit,id,instrumentalness,key,liveness,loudness,mode,"
        "name,popularity,release_date,speechiness,tempo,valence,year",
        {"id": BARE},
    ),
    "Spotify Dataset 1921-2020: tracks.csv": Public(
        f"id,name,popularity,duration_ms,explicit,artists,id_artists,release_date,{PLAIN},time_signature",
        {"id": BARE, "id_artists": "['9999999999999999999999']"},
    ),
    "The Spotify Hit Predictor: dataset-of-60s.csv": Public(
        f"track,artist,uri,{PLAIN},duration_ms,time_signature,chorus_hit,sections,target", {"uri": URI}
    ),
    "Spotify and Youtube: Spotify_Youtube.csv": Public(
        ",Artist,Url_spotify,Track,Album,Album_type,Uri,Danceability,Energy,Key,Loudness,Speechiness,Acousticness,"
        "Instrumentalness,Liveness,Valence,Tempo,Duration_ms,Url_youtube,Title,Mode",
        {"Url_spotify": "https://open.spotify.com/artist/9999999999999999999999", "Uri": URI},
        {"key": "1.0"},
    ),
    "Dataset of songs in Spotify: genres_v2.csv": Public(
        f"{PLAIN},type,id,uri,track_href,analysis_url,duration_ms,time_signature,genre,song_name,Unnamed: 0,title",
        {"id": BARE, "uri": URI, "track_href": API, "analysis_url": "https://api.spotify.com/v1/audio-analysis/{id}"},
    ),
    "Exportify, old": Public(
        "Spotify ID,Artist IDs,Track Name,Album Name,Artist Name(s),Release Date,Duration (ms),Popularity,Added By,"
        f"Added At,Genres,{TITLED},Time Signature",
        {"Spotify ID": BARE, "Artist IDs": "9999999999999999999999"},
    ),
    "Exportify, new": Public(
        "Track URI,Track Name,Album Name,Artist Name(s),Release Date,Duration (ms),Popularity,Explicit,Added By,"
        f"Added At,Genres,Record Label,{TITLED},Time Signature",
        {"Track URI": URI},
    ),
    "spotifyr: get_playlist_audio_features": Public(
        f"playlist_id,playlist_name,{PLAIN},track.id,analysis_url,time_signature,added_at,is_local,added_by.id,"
        "track.artists,track.album.id,track.album.uri,track.href,track.uri,key_name,mode_name,key_mode",
        {"playlist_id": "8888888888888888888888", "track.id": BARE, "track.href": API, "track.uri": URI},
        {"key_name": "C#", "mode_name": "major"},
    ),
    "spotipy and json_normalize": Public(
        "added_at,track.id,track.name,track.album.id,track.external_urls.spotify,"
        + ",".join(f"audio_features.{name}" for name in (*FEATURES, "id", "uri")),
        {
            "track.id": BARE,
            "track.album.id": "7777777777777777777777",
            "track.external_urls.spotify": URL,
            "audio_features.id": BARE,
            "audio_features.uri": URI,
        },
    ),
    "columns with the prefix track_": Public(
        "track_name,artist_id,track_id," + ",".join(f"track_{name}" for name in FEATURES),
        {"artist_id": "9999999999999999999999", "track_id": BARE},
    ),
    "columns with the prefixes song_ and audio_": Public(
        "song_name,song_popularity,song_id,acousticness,danceability,energy,instrumentalness,song_key,liveness,"
        "loudness,audio_mode,speechiness,tempo,time_signature,audio_valence",
        {"song_id": BARE},
    ),
    "Spotify charts with features": Public(
        f"Position,Track Name,Artist,Streams,URL,Date,Region,{PLAIN}", {"URL": URL, "Position": "{n}"}
    ),
    "ids in a column of any other name": Public(
        f"artist_id,Link to Song,{PLAIN}", {"artist_id": "9999999999999999999999", "Link to Song": URL}
    ),
    "Hugging Face: spotify_audio_features": Public(
        "track_id,null_response,duration_ms,time_signature,tempo,key,mode,danceability,energy,loudness,speechiness,"
        "instrumentalness,acousticness,liveness,valence",
        {"track_id": BARE},
        {"mode": "True"},
    ),
    "GetSongBPM and others: BPM": Public(
        f"Song ID;{TITLED.removesuffix(',Tempo').replace(',', ';')};BPM", {"Song ID": BARE}, {}, ";"
    ),
    "MusicOSet: acoustic_features.csv": Public(
        "song_id,duration_ms,key,mode,time_signature,acousticness,danceability,energy,instrumentalness,liveness,"
        "loudness,speechiness,valence,tempo".replace(",", "\t"),
        {"song_id": BARE},
        {},
        "\t",
    ),
}


def rows_of(public: Public) -> list[dict[str, Any]]:
    """Three rows: features where the header has them, in whatever spelling, and the table's ids."""
    rows = []
    for n in (1, 2, 3):
        row: dict[str, Any] = {}
        for column in public.header.split(public.delimiter):
            words = column.lower().replace(".", "_").split("_")
            name = next((one for one in FEATURES if one in words), "tempo" if column == "BPM" else "")
            row[column] = public.written.get(column, public.written.get(words[-1], VALUES.get(name, "text")))
            if column in public.ids:
                row[column] = public.ids[column].format(id=track(n), n=n)
        rows.append(row)
    return rows


@pytest.mark.parametrize("end", ["csv", "parquet"])
@pytest.mark.parametrize("name", READ)
def test_a_public_table_is_read(tmp_path: Path, name: str, end: str) -> None:
    rows = rows_of(READ[name])
    path = tmp_path / f"table.{end}"
    if end == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=READ[name].delimiter)
            writer.writeheader()
            writer.writerows(rows)
    fetched = fetch(path)
    assert reasons(fetched) == {}
    expected = [{"track_uri": uri(n), **{name: float(value) for name, value in VALUES.items()}} for n in (1, 2, 3)]
    assert fetched.features.drop_columns("source").to_pylist() == expected


NOT_READ: dict[str, tuple[str, str]] = {
    "19,000 Spotify Songs: song_data.csv": (
        "song_name,song_popularity,song_duration_ms,acousticness,danceability,energy,instrumentalness,key,liveness,"
        "loudness,audio_mode,speechiness,tempo,time_signature,audio_valence",
        "no column for track ids; found: song_name, song_popularity, song_duration_ms",
    ),
    "Most Streamed Spotify Songs 2023": (
        "track_name,artist(s)_name,artist_count,released_year,streams,bpm,key,mode,danceability_%,valence_%,energy_%,"
        "acousticness_%,instrumentalness_%,liveness_%,speechiness_%",
        "no column for track ids, loudness; found: track_name, artist(s)_name",
    ),
    "Spotify Top 2000": (
        "Index,Title,Artist,Top Genre,Year,Beats Per Minute (BPM),Energy,Danceability,Loudness (dB),Liveness,Valence,"
        "Length (Duration),Acousticness,Speechiness,Popularity",
        "no column for track ids, key, mode, instrumentalness; found: Index, Title, Artist",
    ),
}


@pytest.mark.parametrize("name", NOT_READ)
def test_a_public_table_without_ids_or_features_is_refused_with_its_columns(tmp_path: Path, name: str) -> None:
    header, message = NOT_READ[name]
    path = tmp_path / "table.csv"
    path.write_text(f"{header}\n{','.join('0.5' for _ in header.split(','))}\n")
    with pytest.raises(InputError) as caught:
        fetch(path)
    assert message in str(caught.value)
    assert caught.value.remedy == "provide track ids and all eleven features, or name the columns in features.columns"


def test_the_tracks_of_the_skip_prediction_challenge_have_ids_of_their_own(tmp_path: Path) -> None:
    header = f"track_id,duration,release_year,us_popularity_estimate,beat_strength,{PLAIN},time_signature"
    row = ["t_0a1b2c3d-0000-4000-8000-000000000000", 200, 1999, 99.5, 0.5, *VALUES.values(), 4]
    (tmp_path / "tf.csv").write_text(f"{header}\n{','.join(map(str, row))}\n".replace(",1,0.05", ",major,0.05"))
    (rejected,) = fetch(tmp_path / "tf.csv").rejected.to_pylist()
    assert rejected["reason"] == "feature_id_malformed"
    assert rejected["detail"].endswith("letters and digits, found 't_0a1b2c3d-0000-4000-8000-000000000000'")


def test_an_answer_of_the_web_api_is_refused_with_the_command_that_converts_it(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text(json.dumps({"audio_features": [{"id": track(1), **VALUES}]}))
    with pytest.raises(InputError, match="found an object with all of them in an array, audio_features") as caught:
        list(file_provider(tmp_path / "f.json").fetch(iter([])))
    assert caught.value.remedy == "convert it: jq -c '.audio_features[]' f.json > features.jsonl"
