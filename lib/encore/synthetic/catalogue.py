"""The virtual catalogue behind the generator: scenes, artists, albums, tracks and their attributes.

Nothing is stored. A track is a 60-bit number ``scene << 52 | artist rank << 20 | track rank``, and each of its
attributes (album, names, URIs, duration, audio features) is a pure hash function of ``(seed, id)``, so any process can
derive any attribute without a table, and slices agree without communication.

Model
-----
* ``SCENES`` scenes = genres x ``SCENES_PER_GENRE``; a scene has a share of all listening, an era and a mood.
* Artists are ranked within a scene. Ranks are drawn from a mixture of two truncated Zipf-Mandelbrot (Lomax)
  distributions ``P(R >= r) = (1 + r/b)^-(a-1)``: "stars" (a few artists with most of the rows) and "deep" (the long
  tail).
* Tracks are ranked within an artist. Ranks follow a third Lomax distribution, whose scale (the artist's *breadth*)
  differs between artists. The tail exponents determine how the number of distinct tracks grows with the number of rows
  (Heaps' law). Besides this law of *deep cuts* there is a narrower one of *hits*: the less known the artist, the fewer
  hits have most of the rows.
* Each listener belongs to one of ``CIRCLES`` circles. Of ``CIRCLES`` tracks of an artist with neighbouring ranks, each
  circle prefers a different one. This correlates tracks while hardly changing their popularity.
* A scene has *canons*: unlimited sequences of well-known tracks, such as charts, of which many playlists copy pieces
  and take single tracks. The track at each place of a canon is a hash function, too.
* Tracks are dealt to the artist's albums like cards, so album 0 has the biggest hit, album 1 the next.
* Audio features follow a Gaussian copula: the genre, scene, artist, album and track components share one correlation
  matrix, and monotone maps give each feature its marginal distribution.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

TRACK_BITS: Final = 20
RANK_BITS: Final = 32
_TRACK_MASK: Final = np.uint64((1 << TRACK_BITS) - 1)
_RANK_MASK: Final = np.uint64((1 << RANK_BITS) - 1)


class Genre(NamedTuple):
    """A genre: relative share of all listening, title words, and related genres (by index)."""

    share: float
    words: tuple[str, ...]
    related: tuple[int, int]


GENRES: Final[tuple[Genre, ...]] = (
    Genre(17.0, ("rap", "hip hop", "hiphop", "rap music", "trap"), (4, 7)),
    Genre(15.0, ("pop", "pop music", "pop songs", "top 40", "pop hits"), (5, 10)),
    Genre(10.0, ("country", "country music", "country songs", "country roads"), (11, 3)),
    Genre(9.0, ("rock", "classic rock", "rock music", "rock n roll"), (6, 8)),
    Genre(8.0, ("r&b", "rnb", "slow jams", "soul"), (0, 13)),
    Genre(6.0, ("edm", "electronic", "dance", "dance music"), (1, 12)),
    Genre(5.0, ("alternative", "alt rock", "alt", "grunge"), (3, 9)),
    Genre(4.5, ("old school", "old school rap", "oldschool", "west coast"), (0, 4)),
    Genre(4.0, ("metal", "heavy metal", "hard rock", "metalcore"), (3, 14)),
    Genre(3.5, ("indie", "indie rock", "indie pop", "indie music"), (6, 11)),
    Genre(3.0, ("latin", "reggaeton", "spanish", "salsa", "bachata"), (1, 16)),
    Genre(2.5, ("folk", "acoustic", "indie folk", "singer songwriter"), (9, 2)),
    Genre(2.2, ("house", "deep house", "techno", "tropical house"), (5, 18)),
    Genre(2.0, ("soul music", "motown", "funk", "blues"), (4, 17)),
    Genre(1.8, ("punk", "pop punk", "emo", "punk rock"), (6, 8)),
    Genre(1.6, ("worship", "christian", "gospel", "praise", "church"), (2, 11)),
    Genre(1.4, ("reggae", "dancehall", "island", "roots"), (10, 13)),
    Genre(1.2, ("jazz", "smooth jazz", "swing", "big band"), (13, 19)),
    Genre(1.0, ("dubstep", "drum and bass", "dnb", "bass"), (12, 5)),
    Genre(0.9, ("classical", "piano", "instrumental", "orchestra"), (17, 21)),
    Genre(0.8, ("kpop", "k pop", "korean", "jpop"), (1, 5)),
    Genre(0.7, ("soundtrack", "movies", "musicals", "broadway", "scores"), (19, 22)),
    Genre(0.6, ("kids", "children", "sing along", "lullabies"), (21, 23)),
    Genre(0.5, ("christmas", "holiday", "christmas music", "xmas"), (21, 15)),
)
ERAS: Final = ("new", "10s", "00s", "90s", "80s", "70s", "60s")
SCENES_PER_GENRE: Final = 8
SCENES: Final = len(GENRES) * SCENES_PER_GENRE
_ERA_OF_SUBSCENE: Final = (0, 1, 0, 2, 3, 0, 4, 5)
MOODS: Final = 20


def _shares() -> tuple[F64, F64]:
    genre = np.array([g.share for g in GENRES])
    sub = 1.0 / (np.arange(SCENES_PER_GENRE) + 1.5)
    return genre / genre.sum(), sub / sub.sum()


GENRE_SHARE, SUBSCENE_SHARE = _shares()
"""Share of all listening by genre (24,), and by sub-scene within a genre (8,); both sum to 1."""
SCENE_SHARE: Final[F64] = (GENRE_SHARE[:, None] * SUBSCENE_SHARE).ravel()

# Fitted so that 1,000,000 playlists have the published distinct counts (see encore.mpd.published), and 7,071 playlists
# those of a real sample (see encore.synthetic.calibration).
STAR_SHARE: Final = 0.82
STAR_SCALE, STAR_EXPONENT = 16.0, 5.0
DEEP_SCALE, DEEP_EXPONENT = 345.0, 3.05
ARTIST_RANKS: Final = 1 << 30
BREADTH_SCALE, BREADTH_DECAY, BREADTH_SPREAD, BREADTH_FLOOR = 118.0, 0.55, 0.65, 0.15
DEEP_CUTS_SCALE, DEEP_CUTS_EXPONENT = 0.9, 8.0
HITS_SCALE, HITS_DECAY, HITS_EXPONENT = 0.85, 0.43, 8.0
ALBUM_TRACKS: Final = 12
CIRCLES: Final = 4
ALBUMS_SCALE: Final = 0.54
CANON_SCALE, CANON_EXPONENT = 0.5, 3.0
CANON_LENGTH, CANON_DECAY = 350.0, 4.0
CANON_STAR_SHARE, CANON_STAR_SCALE = 0.9, 40.0
CANON_HITS, CANON_DEEP_SHARE, CANON_CIRCLE_SHARE = 1.5, 0.1, 0.7

# Share of the variance of the audio latents explained by each level; the rest is specific to the track.
AUDIO_GENRE, AUDIO_SCENE, AUDIO_ARTIST, AUDIO_ALBUM = 0.12, 0.10, 0.18, 0.08

FEATURES: Final = (
    "danceability", "energy", "key", "loudness", "mode", "speechiness",
    "acousticness", "instrumentalness", "liveness", "valence", "tempo",
)  # fmt: skip
"""The eleven audio features, in the order of the columns of the feature file."""


# --- hashing ------------------------------------------------------------------------------------------------


def mix64(x: U64) -> U64:
    """Return the splitmix64 finaliser of each element (Steele, Lea, Flood 2014); a bijection of uint64."""
    z = x ^ (x >> np.uint64(30))
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def _salted(seed: int, salt: int) -> U64:
    word = (seed * 0x9E3779B97F4A7C15 + (salt + 1) * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
    return mix64(np.array([word], dtype=np.uint64))


def hash64(seed: int, salt: int, ids: U64) -> U64:
    """Return one uint64 hash per id; each (seed, salt) is an independent function."""
    return mix64(mix64(ids + _salted(seed, salt)) + np.uint64(0x9E3779B97F4A7C15))


def uniform(seed: int, salt: int, ids: U64) -> F64:
    """Return one float64 in the open interval (0, 1) per id."""
    return ((hash64(seed, salt, ids) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def normals(seed: int, salt: int, ids: U64, width: int) -> F64:
    """Return (len(ids), width) standard normal deviates (Box-Muller on hashed uniforms)."""
    out = np.empty((len(ids), width + width % 2))
    for k in range(0, width, 2):
        radius = np.sqrt(-2.0 * np.log(uniform(seed, salt * 64 + k, ids)))
        angle = 2.0 * np.pi * uniform(seed, salt * 64 + k + 1, ids)
        out[:, k] = radius * np.cos(angle)
        out[:, k + 1] = radius * np.sin(angle)
    return out[:, :width]


# --- ids ----------------------------------------------------------------------------------------------------


def track_id(scene: I64, artist_rank: I64, track_rank: I64) -> U64:
    """Pack scene (< 256), artist rank (< 2**32) and track rank (< 2**20) into one uint64 per track."""
    packed = (scene << (RANK_BITS + TRACK_BITS)) | (artist_rank << TRACK_BITS) | track_rank
    return packed.astype(np.uint64)


def track_of(artist: U64, track_rank: I64) -> U64:
    """Return the track of each rank by each artist."""
    return (artist << np.uint64(TRACK_BITS)) | track_rank.astype(np.uint64)


def artist_of(track: U64) -> U64:
    """Return the artist id (scene << 32 | artist rank) of each track."""
    return track >> np.uint64(TRACK_BITS)


def scene_of_artist(artist: U64) -> I64:
    """Return the scene (0 .. SCENES - 1) of each artist id."""
    return (artist >> np.uint64(RANK_BITS)).astype(np.int64)


def rank_of_artist(artist: U64) -> I64:
    """Return the rank (0 = most popular) of each artist within its scene."""
    return (artist & _RANK_MASK).astype(np.int64)


def rank_of_track(track: U64) -> I64:
    """Return the rank (0 = biggest hit) of each track within its artist."""
    return (track & _TRACK_MASK).astype(np.int64)


def era_of_scene(scene: int) -> str:
    """Return the era of a scene: one of ``ERAS``."""
    return ERAS[_ERA_OF_SUBSCENE[scene % SCENES_PER_GENRE]]


def mood_of_scene(scene: int) -> int:
    """Return the mood (0 .. MOODS - 1) that fits a scene; scenes of a genre have different moods."""
    genre, sub = divmod(scene, SCENES_PER_GENRE)
    return (genre * 7 + sub * 3) % MOODS


# --- popularity distributions -------------------------------------------------------------------------------


def lomax_rank(u: F64, scale: float | F64, exponent: float | F64, limit: int) -> I64:
    """Return ranks in [0, limit) from uniforms in [0, 1): ``P(R >= r) = (1 + r/scale)^-(exponent - 1)``.

    The distribution is truncated at ``limit`` and renormalised. Its tail is ``p(r) ~ r^-exponent``, so the number of
    distinct values in n draws grows like ``n^(1/exponent)``.
    """
    power = exponent - 1.0
    inside = 1.0 - (1.0 + limit / scale) ** -power
    ranks = np.floor(scale * ((1.0 - u * inside) ** (-1.0 / power) - 1.0))
    whole: I64 = np.minimum(ranks, limit - 1).astype(np.int64)
    return whole


def artist_rank(u: F64, star: NDArray[np.bool_]) -> I64:
    """Return ranks of artists within their scene: from the "stars" distribution if ``star``, otherwise "deep"."""
    ranks = lomax_rank(u, DEEP_SCALE, DEEP_EXPONENT, ARTIST_RANKS)
    ranks[star] = lomax_rank(u[star], STAR_SCALE, STAR_EXPONENT, ARTIST_RANKS)
    return ranks


def breadth(seed: int, artist: U64) -> F64:
    """Return each artist's breadth: the scale of the popularity distribution of their tracks, about their hits."""
    rank = rank_of_artist(artist).astype(np.float64)
    noise = normals(seed, 1, artist, 1)[:, 0]
    wide = BREADTH_SCALE * (1.0 + rank) ** -BREADTH_DECAY * np.exp(BREADTH_SPREAD * noise)
    return np.maximum(BREADTH_FLOOR, wide)


def track_rank(seed: int, u: F64, artist: U64, circle: I64, deep: NDArray[np.bool_]) -> I64:
    """Return ranks of tracks within their artists, one per uniform: deep cuts if ``deep``, otherwise hits.

    If ``circle`` is not negative, the track is the one that this circle prefers in its group of ``CIRCLES`` tracks with
    neighbouring ranks.
    """
    wide = breadth(seed, artist)
    hits = HITS_SCALE * wide * (1.0 + rank_of_artist(artist)) ** -HITS_DECAY
    scale = np.where(deep, DEEP_CUTS_SCALE * wide, np.maximum(hits, BREADTH_FLOOR))
    ranks = lomax_rank(u, scale, np.where(deep, DEEP_CUTS_EXPONENT, HITS_EXPONENT), 1 << TRACK_BITS)
    turn = (hash64(seed, 14, artist) % np.uint64(CIRCLES)).astype(np.int64)
    chosen: I64 = np.where(circle < 0, ranks, ranks - ranks % CIRCLES + (circle + turn) % CIRCLES)
    return chosen


def albums_per_block(seed: int, artist: U64) -> I64:
    """Return how many albums share each block of ``12 * albums`` tracks of the artist (>= 1)."""
    spread = np.exp(0.7 * normals(seed, 2, artist, 1)[:, 0])
    return np.clip(1 + (ALBUMS_SCALE * breadth(seed, artist) * spread).astype(np.int64), 1, 60)


def album_index(seed: int, track: U64) -> I64:
    """Return the index of each track's album within its artist."""
    per = albums_per_block(seed, artist_of(track))
    rank, size = rank_of_track(track), per * ALBUM_TRACKS
    return rank // size * per + rank % size % per


def album_of(seed: int, track: U64) -> U64:
    """Return the album id (artist << 20 | album index) of each track."""
    index = album_index(seed, track)
    return (artist_of(track) << np.uint64(TRACK_BITS)) | index.astype(np.uint64)


def album_mate(seed: int, track: U64, step: I64) -> U64:
    """Return the track ``step`` places after each given track on its album; the artist's next album follows."""
    artist = artist_of(track)
    per = albums_per_block(seed, artist)
    size = per * ALBUM_TRACKS
    block, place = np.divmod(rank_of_track(track), size)
    ahead, slot = np.divmod(place // per + step, ALBUM_TRACKS)
    block, column = np.divmod(block * per + place % per + ahead, per)
    return track_of(artist, np.minimum(block * size + column + per * slot, int(_TRACK_MASK)))


def canon_number(u: F64, circle: I64) -> I64:
    """Return numbers of canons (< 2**23) within their scenes; circles share the most popular ones in pairs."""
    return lomax_rank(u, CANON_SCALE, CANON_EXPONENT, 1 << 22) * 2 + circle % 2


def canon_place(u: F64) -> I64:
    """Return places within a canon (< 2**14), mostly near its start."""
    return lomax_rank(u, CANON_LENGTH, CANON_DECAY, 1 << 14)


def canon_track(seed: int, scene: I64, number: I64, place: I64) -> U64:
    """Return the track at each place (< 2**16) of a canon, given by its scene and its number within the scene."""
    key = ((scene << 40) | (number << 16) | place).astype(np.uint64)
    star = uniform(seed, 61, key) < CANON_STAR_SHARE
    u = uniform(seed, 62, key)
    rank = lomax_rank(u, DEEP_SCALE, DEEP_EXPONENT, ARTIST_RANKS)
    rank[star] = lomax_rank(u[star], CANON_STAR_SCALE, STAR_EXPONENT, ARTIST_RANKS)
    artist = artist_of(track_id(scene, rank, np.zeros_like(rank)))
    circle = np.where(uniform(seed, 63, key) < CANON_CIRCLE_SHARE, number % CIRCLES, -1)
    deep = uniform(seed, 64, key) < CANON_DEEP_SHARE
    return track_of(artist, track_rank(seed, uniform(seed, 65, key) ** CANON_HITS, artist, circle, deep))


# --- attributes ---------------------------------------------------------------------------------------------

_BASE62: Final = np.frombuffer(b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", dtype=np.uint8)
_TRACK_SALT, _ARTIST_SALT, _ALBUM_SALT = 11, 12, 13


def _base62(high: U64, low: U64) -> list[str]:
    """Write 128-bit numbers as 22 base-62 digits (0-9 a-z A-Z), by long division by 62**5 of 32-bit limbs."""
    mask, chunk = np.uint64(0xFFFFFFFF), np.uint64(62**5)
    limbs = [high >> np.uint64(32), high & mask, low >> np.uint64(32), low & mask]
    digits = np.empty((len(high), 22), dtype=np.uint8)
    for group in range(5):
        rest = np.zeros_like(high)
        for i, limb in enumerate(limbs):
            limbs[i], rest = np.divmod((rest << np.uint64(32)) | limb, chunk)
        small = rest.astype(np.uint32)
        for k in range(min(5, 22 - group * 5)):
            small, digit = np.divmod(small, np.uint32(62))
            digits[:, 21 - group * 5 - k] = digit
    text = _BASE62[digits].tobytes().decode("ascii")
    return [text[i : i + 22] for i in range(0, len(text), 22)]


def _uri_ids(seed: int, salt: int, ids: U64) -> list[str]:
    return _base62(hash64(seed, salt * 2, ids), hash64(seed, salt * 2 + 1, ids))


def track_uri_ids(seed: int, track: U64) -> list[str]:
    """Return the 22 base-62 characters of each track's URI (after ``spotify:track:``)."""
    return _uri_ids(seed, _TRACK_SALT, track)


def artist_uri_ids(seed: int, artist: U64) -> list[str]:
    """Return the 22 base-62 characters of each artist's URI (after ``spotify:artist:``)."""
    return _uri_ids(seed, _ARTIST_SALT, artist)


def album_uri_ids(seed: int, album: U64) -> list[str]:
    """Return the 22 base-62 characters of each album's URI (after ``spotify:album:``)."""
    return _uri_ids(seed, _ALBUM_SALT, album)


def duration_ms(seed: int, track: U64) -> I64:
    """Return each track's duration in milliseconds: log-normal around 3:50, 1% short interludes."""
    noise = normals(seed, 3, track, 2)
    length = 229_000.0 * np.exp(0.235 * noise[:, 0])
    short = uniform(seed, 31, track) < 0.01
    length = np.where(short, 55_000.0 * np.exp(0.4 * noise[:, 1]), length)
    return np.clip(length, 4_000.0, 3_600_000.0).astype(np.int64)


_LATENT: Final = (
    "danceability", "energy", "loudness", "speechiness", "acousticness",
    "instrumentalness", "liveness", "valence", "tempo", "mode",
)  # fmt: skip
_CORRELATION: Final = {
    ("energy", "loudness"): 0.80, ("energy", "acousticness"): -0.76, ("loudness", "acousticness"): -0.60,
    ("danceability", "valence"): 0.44, ("energy", "valence"): 0.28, ("loudness", "valence"): 0.20,
    ("danceability", "acousticness"): -0.20, ("danceability", "energy"): 0.10, ("danceability",
    "loudness"): 0.16,
    ("danceability", "tempo"): -0.10, ("danceability", "speechiness"): 0.20, ("danceability",
    "liveness"): -0.13,
    ("energy", "liveness"): 0.16, ("energy", "tempo"): 0.20, ("loudness", "tempo"): 0.15,
    ("acousticness", "tempo"): -0.16, ("acousticness", "valence"): -0.12, ("loudness",
    "instrumentalness"): -0.30,
    ("valence", "instrumentalness"): -0.22, ("speechiness", "instrumentalness"): -0.15,
    ("acousticness", "instrumentalness"): 0.10, ("danceability", "mode"): -0.10, ("speechiness",
    "mode"): -0.08,
}  # fmt: skip


def _cholesky() -> F64:
    matrix = np.eye(len(_LATENT))
    for (one, other), value in _CORRELATION.items():
        i, j = _LATENT.index(one), _LATENT.index(other)
        matrix[i, j] = matrix[j, i] = value
    return np.asarray(np.linalg.cholesky(matrix), dtype=np.float64)


_MIXING: Final[F64] = _cholesky()
_KEY_EDGES: Final[F64] = np.cumsum([0.106, 0.121, 0.087, 0.028, 0.068, 0.081, 0.080, 0.103, 0.073, 0.093, 0.070])


def _logistic(x: F64) -> F64:
    return 1.0 / (1.0 + np.exp(-x))


def _significant(x: F64, digits: int) -> F64:
    """Round positive numbers to a number of significant digits (zero stays zero)."""
    safe = np.where(x > 0.0, x, 1.0)
    places = 10.0 ** (digits - 1 - np.floor(np.log10(safe)))
    return np.where(x > 0.0, np.round(safe * places) / places, 0.0)


def audio_features(seed: int, track: U64) -> F64:
    """Return the (len(track), 11) float64 audio features of tracks, columns as in ``FEATURES``.

    Units and ranges are those of Spotify's Web API: loudness in dB (-60 .. 0), tempo in beats per minute, key 0 to 11,
    mode 0 or 1, the others 0 to 1; rounded to 3 decimals (tempo, loudness) or 3 significant digits.
    """
    artist = artist_of(track)
    scene = scene_of_artist(artist)
    width = len(_LATENT)
    genres = normals(seed, 4, np.arange(len(GENRES), dtype=np.uint64), width)
    scenes = normals(seed, 5, np.arange(SCENES, dtype=np.uint64), width)
    own = 1.0 - AUDIO_GENRE - AUDIO_SCENE - AUDIO_ARTIST - AUDIO_ALBUM
    latent = np.sqrt(own) * normals(seed, 8, track, width)
    latent += np.sqrt(AUDIO_GENRE) * genres[scene // SCENES_PER_GENRE]
    latent += np.sqrt(AUDIO_SCENE) * scenes[scene]
    latent += np.sqrt(AUDIO_ARTIST) * normals(seed, 6, artist, width)
    latent += np.sqrt(AUDIO_ALBUM) * normals(seed, 7, album_of(seed, track), width)
    z = dict(zip(_LATENT, (latent @ _MIXING.T).T, strict=True))

    place = np.clip((_logistic(1.702 * z["instrumentalness"]) - 0.42) / 0.58, 0.0, None)
    instrumental = np.where(place > 0.0, 10.0 ** (-6.0 * (1.0 - place**0.75)) * 0.97, 0.0)
    values = {
        "danceability": np.round(_logistic(0.50 + 0.75 * z["danceability"]), 3),
        "energy": _significant(_logistic(0.65 + 1.10 * z["energy"]), 3),
        "key": np.searchsorted(_KEY_EDGES, uniform(seed, 41, track)).astype(np.float64),
        "loudness": np.clip(np.round(-np.exp(1.96 - 0.48 * z["loudness"]), 3), -60.0, 0.0),
        "mode": (z["mode"] < 0.45).astype(np.float64),
        "speechiness": _significant(np.minimum(0.0225 + np.exp(-3.2 + 0.95 * z["speechiness"]), 0.965), 3),
        "acousticness": _significant(_logistic(-1.9 + 2.2 * z["acousticness"]), 3),
        "instrumentalness": _significant(np.where(instrumental < 1e-6, 0.0, instrumental), 3),
        "liveness": _significant(np.minimum(0.025 + np.exp(-1.95 + 0.65 * z["liveness"]), 0.995), 3),
        "valence": _significant(_logistic(1.15 * z["valence"]), 3),
        "tempo": np.clip(np.round(119.0 * np.exp(0.235 * z["tempo"]), 3), 46.0, 218.0),
    }
    return np.column_stack([values[name] for name in FEATURES])
