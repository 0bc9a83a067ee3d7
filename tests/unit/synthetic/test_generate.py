"""The generator: file layout, determinism, calibration, audio features, ranking of models."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from scipy import sparse

from encore.errors import InputError
from encore.mpd import published
from encore.synthetic import calibration, catalogue, titles
from encore.synthetic import generate as generator
from encore.synthetic.generate import SLICE_PLAYLISTS, draw_slice, generate, render_slice

PLAYLIST_KEYS = [
    "name", "collaborative", "pid", "modified_at", "num_tracks", "num_albums", "num_followers", "tracks",
    "num_edits", "duration_ms", "num_artists",
]  # fmt: skip
TRACK_KEYS = [
    "pos", "artist_name", "track_uri", "artist_uri", "track_name", "album_uri", "duration_ms", "album_name",
]  # fmt: skip


@pytest.fixture(scope="module")
def raw() -> bytes:
    """The bytes of the first slice."""
    return render_slice(42, 0, 1000, draw_slice(42, 0))


@pytest.fixture(scope="module")
def content(raw: bytes) -> dict[str, Any]:
    """The first slice, parsed."""
    parsed: dict[str, Any] = json.loads(raw)
    return parsed


@pytest.fixture(scope="module")
def tracks() -> NDArray[np.uint64]:
    """The distinct tracks of 3,000 playlists."""
    return np.unique(np.concatenate([draw_slice(42, i).tracks for i in range(3)]))


def digests(folder: Path) -> dict[str, str]:
    """Hashes of all files below a folder, by relative name."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


# --- layout -------------------------------------------------------------------------------------------------


def test_bytes_match_python_2_json(raw: bytes, content: dict[str, Any]) -> None:
    assert json.dumps(content, indent=4, separators=(", ", ": ")).encode("ascii") == raw
    assert raw.startswith(b'{\n    "info": {\n        "generated_on": "2017-12-03 08:41:42.057563", \n')
    assert b"\\ud83" in raw  # emoji as escaped surrogates
    assert 440 < len(raw) / sum(p["num_tracks"] for p in content["playlists"]) < 550


def test_keys_and_their_order(content: dict[str, Any]) -> None:
    assert list(content) == ["info", "playlists"]
    assert list(content["info"]) == ["generated_on", "slice", "version"]
    assert content["info"]["slice"] == "0-999"
    assert content["info"]["version"] == "v1"
    described = 0
    for playlist in content["playlists"]:
        keys = list(playlist)
        if "description" in playlist:
            described += 1
            assert keys.pop() == "description"
            assert playlist["description"]
        assert keys == PLAYLIST_KEYS
        for track in playlist["tracks"]:
            assert list(track) == TRACK_KEYS
    assert 5 <= described <= 40


def test_values_are_consistent(content: dict[str, Any]) -> None:
    artist_of: dict[str, tuple[str, str, str, int]] = {}
    for pid, playlist in enumerate(content["playlists"]):
        rows = playlist["tracks"]
        assert playlist["pid"] == pid
        assert [t["pos"] for t in rows] == list(range(len(rows)))
        assert playlist["num_tracks"] == len(rows)
        assert 5 <= len(rows) <= 250
        assert playlist["num_artists"] == len({t["artist_uri"] for t in rows})
        assert playlist["num_albums"] == len({t["album_uri"] for t in rows})
        assert playlist["duration_ms"] == sum(t["duration_ms"] for t in rows)
        assert playlist["collaborative"] in ("true", "false")
        assert playlist["modified_at"] % 86_400 == 0
        assert 1_262_304_000 < playlist["modified_at"] <= 1_509_494_400
        assert playlist["num_followers"] >= 1
        assert playlist["num_edits"] >= 1
        assert playlist["name"].strip()
        for t in rows:
            about = (t["artist_uri"], t["album_uri"], t["track_name"], t["duration_ms"])
            assert artist_of.setdefault(t["track_uri"], about) == about


def test_uris_are_128_bit_numbers_in_base_62(content: dict[str, Any]) -> None:
    digits = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    tops = []
    for playlist in content["playlists"][:100]:
        for track in playlist["tracks"]:
            for kind in ("track", "artist", "album"):
                match = re.fullmatch(f"spotify:{kind}:([0-9a-zA-Z]{{22}})", track[f"{kind}_uri"])
                assert match is not None
                number = 0
                for letter in match[1]:
                    number = number * 62 + digits.index(letter)
                assert number < 1 << 128
                tops.append(number >> 124)
    assert set(tops) == set(range(16))


def test_base_62_of_known_numbers() -> None:
    high = np.array([0, 0, (1 << 64) - 1, 1], dtype=np.uint64)
    low = np.array([0, 61, (1 << 64) - 1, 0], dtype=np.uint64)
    expected = []
    for value in (0, 61, (1 << 128) - 1, 1 << 64):
        text = ""
        rest = value
        for _ in range(22):
            rest, digit = divmod(rest, 62)
            text = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"[digit] + text
        expected.append(text)
    assert catalogue._base62(high, low) == expected


# --- determinism and sizes ----------------------------------------------------------------------------------


def test_mix64_is_the_published_finaliser() -> None:
    # First outputs of splitmix64 with seed 0, as published with its reference implementation.
    gamma = np.uint64(0x9E3779B97F4A7C15)
    states = np.arange(1, 4, dtype=np.uint64) * gamma
    assert [hex(x) for x in catalogue.mix64(states).tolist()] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


@pytest.mark.parametrize("playlists", [1, 5, 999])
def test_a_short_slice_is_the_start_of_the_full_one(content: dict[str, Any], playlists: int) -> None:
    short = json.loads(render_slice(42, 0, playlists, draw_slice(42, 0)))
    assert short["info"]["slice"] == f"0-{playlists - 1}"
    assert short["playlists"] == content["playlists"][:playlists]


def test_files_and_summary(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    summary = generate(tmp_path, 1001, processes=1, on_progress=lambda n, size: seen.append((n, size)))
    names = sorted(p.name for p in tmp_path.glob("*.json"))
    assert names == ["mpd.slice.0-999.json", "mpd.slice.1000-1000.json"]
    assert sorted(p.name for p in (tmp_path / "features").iterdir()) == ["audio_features.parquet"]
    sizes = sum((tmp_path / name).stat().st_size for name in names)
    assert [n for n, _ in seen] == [1000, 1001]
    assert seen[-1][1] == sizes == summary.bytes
    last = json.loads((tmp_path / names[1]).read_bytes())
    assert [p["pid"] for p in last["playlists"]] == [1000]
    first = json.loads((tmp_path / names[0]).read_bytes())
    assert summary.rows == sum(p["num_tracks"] for s in (first, last) for p in s["playlists"])
    assert (summary.playlists, summary.files) == (1001, 3)
    occurring = {t["track_uri"] for s in (first, last) for p in s["playlists"] for t in p["tracks"]}
    table = pq.read_table(tmp_path / "features" / "audio_features.parquet")
    known = table["track_uri"].to_pylist()
    assert table.column_names == ["track_uri", *catalogue.FEATURES]
    assert len(set(known)) == len(known) == summary.feature_rows
    assert set(known) <= occurring
    assert len(known) / len(occurring) == pytest.approx(0.9, abs=0.01)
    ids = np.unique(np.concatenate([draw_slice(42, 0).tracks, draw_slice(42, 1).tracks[:250]]))
    at = {uri: i for i, uri in enumerate(catalogue.track_uri_ids(42, ids))}
    values = catalogue.audio_features(42, ids)[[at[uri.removeprefix("spotify:track:")] for uri in known]]
    for name, column in zip(catalogue.FEATURES, values.T, strict=True):
        assert np.array_equal(table[name].to_numpy(), column), name


@pytest.mark.slow
def test_two_processes_and_another_total_write_the_same_slices(tmp_path: Path) -> None:
    generate(tmp_path / "one", 2000, seed=7, processes=1)
    generate(tmp_path / "two", 2000, seed=7, processes=2)
    one = digests(tmp_path / "one")
    assert len(one) == 3
    assert one == digests(tmp_path / "two")
    longer = render_slice(7, 1, 1_000_000, draw_slice(7, 1))
    assert hashlib.sha256(longer).hexdigest() == one["mpd.slice.1000-1999.json"]


def test_seeds_and_slices_differ() -> None:
    base, other = draw_slice(1, 0), draw_slice(2, 0)
    assert not np.array_equal(base.offsets, other.offsets)
    assert set(base.tracks.tolist()) != set(other.tracks.tolist())
    assert not np.array_equal(base.tracks[:500], draw_slice(1, 1).tracks[:500])
    same = base.tracks[:50]
    assert set(catalogue.track_uri_ids(1, same)).isdisjoint(catalogue.track_uri_ids(2, same))


def test_slices_of_another_dataset_are_an_error(tmp_path: Path) -> None:
    generate(tmp_path, 5, processes=1)
    before = digests(tmp_path)
    with pytest.raises(InputError, match="another dataset"):
        generate(tmp_path, 6, processes=1)
    assert digests(tmp_path) == before
    generate(tmp_path, 5, processes=1)  # the same again is fine
    assert digests(tmp_path) == before


def test_an_interrupted_run_leaves_no_partial_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("encore.synthetic.generate.os.replace", refuse)
    with pytest.raises(OSError, match="No space"):
        generate(tmp_path, 5, processes=1)
    assert list(tmp_path.glob("*.json")) == []
    assert list(tmp_path.glob("features/*.parquet")) == []


@pytest.mark.parametrize(
    ("playlists", "options"),
    [
        (0, {}),
        (5, {"coverage": 1.1}),
        (5, {"coverage": -0.1}),
        (5, {"seed": -1}),
        (5, {"processes": 0}),
    ],
)
def test_arguments_out_of_range_are_errors(tmp_path: Path, playlists: int, options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        generate(tmp_path / "out", playlists, **options)
    assert not (tmp_path / "out").exists()


def test_a_file_as_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="not a directory"):
        generate(tmp_path / "out", 5, processes=1)


# --- calibration --------------------------------------------------------------------------------------------


def test_sample_has_the_published_shape() -> None:
    lines = {line.name: line for line in calibration.measure(7071, processes=1).compare()}
    limits = {
        "mean length": 0.03,
        "median length": 0.05,
        "mean edits": 0.05,
        "mean albums per playlist": 0.12,
        "share of collaborative playlists": 0.25,
        "share of playlists with a description": 0.25,
        "share of playlists with one follower": 0.05,
        "share of rows that repeat a track": 0.10,
        "share of playlists with the top track": 0.20,
    }
    for name, limit in limits.items():
        assert lines[name].ratio == pytest.approx(1.0, abs=limit), name
    assert lines["distinct tracks"].ratio is None  # not comparable at another size
    assert lines["share of tracks that occur once"].generated == pytest.approx(0.62, abs=0.05)


@pytest.mark.slow
def test_order_is_that_of_the_real_sample() -> None:
    lines = {line.name: line for line in calibration.measure_sample()}
    assert lines.keys() == calibration.SAMPLE.keys()
    assert lines["rows"].ratio == pytest.approx(1.0, abs=0.02)
    assert lines["distinct tracks"].ratio == pytest.approx(1.0, abs=0.10)
    for name, line in lines.items():
        assert line.ratio == pytest.approx(1.0, abs=0.15), name


def test_order_of_playlists_made_by_hand() -> None:
    # Tracks 1 and 2 are by artist 0; 3 (once shifted) is another artist's.
    one, two, three = 1, 2, 3 << catalogue.TRACK_BITS
    playlists = [[one, two, three], [three, one, two], [two, one, three], [one, three, two, two]]
    offsets = np.concatenate(([0], np.cumsum([len(p) for p in playlists])))
    tracks = np.array([t for p in playlists for t in p], dtype=np.uint64)
    occurrences = calibration._Occurrences(offsets, tracks)
    # The pair (1, 2) of the first playlist is together in all others, adjacent in two, in the same order in one.
    found = occurrences.elsewhere(np.array([0]), np.array([1]))
    assert found == pytest.approx((1.0, 2 / 3, 1 / 3))
    # The pair (2, 2) is no pair of two tracks.
    both = occurrences.elsewhere(np.array([0, 11]), np.array([1, 12]))
    assert both == pytest.approx(found)


def test_measurement_agrees_with_the_written_files(content: dict[str, Any]) -> None:
    figures = calibration.measure(1000, processes=1).figures
    rows = [t for p in content["playlists"] for t in p["tracks"]]
    assert figures["rows"] == len(rows)
    for name, key in (("tracks", "track_uri"), ("artists", "artist_uri"), ("albums", "album_uri")):
        assert figures[f"distinct {name}"] == len({t[key] for t in rows})
    assert figures["distinct titles"] == len({p["name"] for p in content["playlists"]})
    lengths = [p["num_tracks"] for p in content["playlists"]]
    assert figures["median length"] == np.median(lengths)
    distinct = sum(len({t["track_uri"] for t in p["tracks"]}) for p in content["playlists"])
    assert figures["share of rows that repeat a track"] == pytest.approx(1 - distinct / len(rows))


def test_titles_match_the_preferences() -> None:
    by_genre: dict[str, list[int]] = {}
    for index in range(4):
        draw = draw_slice(42, index)
        for i, title in enumerate(draw.plain_titles):
            rows = draw.tracks[draw.offsets[i] : draw.offsets[i + 1]]
            genres = catalogue.scene_of_artist(catalogue.artist_of(rows)) // catalogue.SCENES_PER_GENRE
            by_genre.setdefault(title, []).append(int(np.bincount(genres).argmax()))
    for genre, title in ((0, "rap"), (2, "country"), (3, "rock")):
        assert len(by_genre[title]) >= 5
        assert np.mean(np.array(by_genre[title]) == genre) > 0.6
    assert len(set(by_genre["jams"])) > 5


def test_normalising_undoes_the_ways_titles_are_written() -> None:
    draw = draw_slice(42, 0)
    normal = [published.normalised_title(t) for t in draw.titles]
    assert normal == [published.normalised_title(t) for t in draw.plain_titles]
    assert len(set(draw.titles)) > 1.15 * len(set(normal))


def test_names_need_no_escaping(tracks: NDArray[np.uint64]) -> None:
    names = titles.track_names(1, tracks[:5000]) + titles.artist_names(1, catalogue.artist_of(tracks[:5000]))
    for name in names:
        assert json.dumps(json.loads(f'"{name}"')) == f'"{name}"'


# --- audio features -----------------------------------------------------------------------------------------


def test_features_have_real_ranges(tracks: NDArray[np.uint64]) -> None:
    f = dict(zip(catalogue.FEATURES, catalogue.audio_features(42, tracks).T, strict=True))
    for name in ("danceability", "energy", "speechiness", "acousticness", "liveness", "valence"):
        assert 0.0 <= f[name].min() < f[name].max() <= 1.0
        assert f[name].std() > 0.04
    assert set(np.unique(f["key"])) == set(range(12))
    assert set(np.unique(f["mode"])) == {0.0, 1.0}
    assert f["mode"].mean() == pytest.approx(0.63, abs=0.1)
    assert f["loudness"].min() >= -60.0
    assert f["loudness"].max() <= 0.0
    assert f["loudness"].mean() == pytest.approx(-8.0, abs=1.0)
    assert f["loudness"].std() == pytest.approx(4.0, abs=1.0)
    assert f["tempo"].min() >= 46.0
    assert f["tempo"].max() <= 218.0
    assert np.median(f["tempo"]) == pytest.approx(120.0, abs=6.0)
    assert np.median(f["instrumentalness"]) < 0.001
    assert (f["instrumentalness"] > 0.5).mean() > 0.01
    assert np.array_equal(np.round(f["tempo"], 3), f["tempo"])
    assert all(len(f"{x:.10g}".replace("0.", "").lstrip("0")) <= 3 for x in f["valence"][:500])


def test_features_have_real_correlations(tracks: NDArray[np.uint64]) -> None:
    r = np.asarray(np.corrcoef(catalogue.audio_features(42, tracks).T))
    at = {name: i for i, name in enumerate(catalogue.FEATURES)}
    for one, other, expected in (
        ("energy", "loudness", 0.75),
        ("energy", "acousticness", -0.70),
        ("danceability", "valence", 0.40),
        ("key", "energy", 0.0),
    ):
        assert r[at[one], at[other]] == pytest.approx(expected, abs=0.1), (one, other)


def test_coverage_is_a_fixed_share_of_the_tracks(tmp_path: Path, tracks: NDArray[np.uint64]) -> None:
    some = generator.has_features(42, tracks, 0.5)
    assert some.mean() == pytest.approx(0.5, abs=0.01)
    assert np.all(generator.has_features(42, tracks, 0.9)[some])
    assert generate(tmp_path / "none", 5, coverage=0.0, processes=1).feature_rows == 0
    full = generate(tmp_path / "all", 5, coverage=1.0, processes=1)
    assert full.feature_rows == len(np.unique(draw_slice(42, 0).tracks[: full.rows]))


# --- ranking of the models ------------------------------------------------------------------------------------


def model_scores(playlists: int, sampled: int) -> dict[str, tuple[float, float]]:
    """R-precision and NDCG@500 of four models, on a quarter of each playlist's distinct tracks held out."""
    draws = [draw_slice(42, i) for i in range(playlists // SLICE_PLAYLISTS)]
    owner = np.concatenate([np.repeat(np.arange(1000), np.diff(d.offsets)) + 1000 * i for i, d in enumerate(draws)])
    ids, item = np.unique(np.concatenate([d.tracks for d in draws]), return_inverse=True)
    pairs = np.unique(owner * len(ids) + item)
    owner, item = np.divmod(pairs, len(ids))
    rng = np.random.default_rng(0)
    held = rng.random(len(pairs)) < 0.25
    shape = (playlists, len(ids))
    train = sparse.csr_matrix((np.ones((~held).sum()), (owner[~held], item[~held])), shape)
    truth = sparse.csr_matrix((np.ones(held.sum()), (owner[held], item[held])), shape)
    by_item = train.T.tocsr()
    popularity = np.asarray(train.sum(axis=0)).ravel()
    norm = 1.0 / np.sqrt(np.maximum(popularity, 1.0))

    known = generator.has_features(42, ids, 0.9)
    values = catalogue.audio_features(42, ids)
    values = (values - values[known].mean(axis=0)) / values[known].std(axis=0)
    variance, axes = np.linalg.eigh(np.cov(values[known].T))
    white = values @ axes / np.sqrt(variance)
    unit = white / np.linalg.norm(white, axis=1, keepdims=True)

    found: dict[str, list[tuple[float, float]]] = {m: [] for m in ("items", "popular", "audio", "random")}
    discount = 1.0 / np.log2(np.arange(500) + 2.0)
    for p in rng.choice(playlists, sampled, replace=False):
        seen, relevant = train[p].indices, truth[p].indices
        if len(seen) == 0 or len(relevant) == 0:
            continue
        scores = {
            "items": (by_item @ (train[:, seen] @ norm[seen])) * norm,
            "popular": popularity,
            "audio": np.where(known, unit @ white[seen[known[seen]]].sum(axis=0), -np.inf),
            "random": rng.random(len(ids)),
        }
        for model, score in scores.items():
            ranked = score + 1e-9 * rng.random(len(ids))
            ranked[seen] = -np.inf
            top = np.argpartition(-ranked, 500)[:500]
            hit = np.isin(top[np.argsort(-ranked[top])], relevant)
            ideal = discount[: len(relevant)].sum()
            found[model].append((hit[: len(relevant)].mean(), (hit * discount).sum() / ideal))
    return {m: (float(np.mean([a for a, _ in v])), float(np.mean([b for _, b in v]))) for m, v in found.items()}


@pytest.mark.slow
def test_models_rank_as_on_real_data() -> None:
    scores = model_scores(3000, 600)
    for metric in (0, 1):
        items, popular, audio, chance = (scores[m][metric] for m in ("items", "popular", "audio", "random"))
        assert items > 2.0 * popular
        assert popular > 1.5 * audio
        assert audio > 3.0 * chance
