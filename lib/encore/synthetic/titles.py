"""Invented words: names of artists, albums and tracks, and titles and descriptions of playlists.

Names are composed of meaningless stems, so that none of them is taken from a real catalogue. Titles consist of common
words. They match the playlist's genre, mood, era, favourite artist or month of the last edit; about a quarter are
unrelated to its content. Each title is then written in one of many ways (capitals, trailing space, decoration) that the
usual normalisation of titles undoes.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import numpy as np

from encore.synthetic import catalogue
from encore.synthetic.catalogue import ERAS, GENRES, SCENES_PER_GENRE, U64, hash64


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Written with JSON's ASCII escapes, so that names need no further encoding.
_HEADS: Final = _words(
    "Ab Ador Alv Am And Ar Ast Av Az Bal Bar Bel Ber Bol Bran Brel Cal Cam Car Cas Cel Cor Cres Cyr Dal "
    "Dar Dav Del Dor Dov Dra Dun Ed El Em Er Esk Ev Fal Far Fen Fer Fin Flor Gal Gar Gel Gor Gran Hal "
    "Har Hel Hol Hor Il Im Is Iv Jal Jar Jen Jor Kal Kar Kel Kor Kr\\u00e9 Lam Lar Lav Lem Lin Lor Lum "
    "Mal Mar Mav Mel Mir Mor Nal Nar Nav Nel Nor Ol Or Os Pal Par Pel Per Por Qual Qu\\u00e9 Ral Rav "
    "Rel Rin Ros Sal Sar Sel Sil Sol Sor Tal Tar Tel Tor Tul Ul Um Ur Val Var Vel Ver Vol Wal War Wel "
    "Win Xan Yar Yel Zan Zar Zel"
)
_TAILS: Final = _words(
    "a ac ade adia ago aine al ala am ana and ane ano ant ara ard aro ax ay ea eck ed el ela ell en ena "
    "enn ent er era es et eth ette ex ey i ia ian ica id iel ik ila in ina ine ing io ion ira is ish "
    "ista ith ius ix o oda ok ol ola ole om on ona one or ora os oso ot oux ow oy u ua ue um un ur us "
    "uva ux y ya yn yr \\u00eda \\u00f3n \\u00e9e"
)
_GLUE: Final = (
    "of",
    "the",
    "in",
    "my",
    "and",
    "no",
    "to",
    "for",
    "on",
    "a",
    "with",
    "is",
    "your",
    "at",
    "so",
    "by",
)
_TRACK_ENDS: Final = (
    " - Remix", " - Live", " - Remastered", " - Radio Edit", " - Acoustic", " - Single Version",
    " - Original Mix", " - Interlude", " - Bonus Track", " - Extended Mix", " (Live)", " (Acoustic)",
    " (Interlude)", " - Demo", " - Album Version", " (Reprise)",
)  # fmt: skip
_ALBUM_ENDS: Final = (
    " (Deluxe)", " EP", " (Deluxe Edition)", " (Remastered)", " (Deluxe Version)", " (Expanded Edition)",
    " Live", " (Original Soundtrack)", " Vol. 1", " Vol. 2", ": The Collection", " - Single", " Sessions",
    " (Special Edition)", " II", " Mixtape",
)  # fmt: skip
_HEAD_COUNT, _TAIL_COUNT = len(_HEADS), len(_TAILS)


def _stems() -> tuple[str, ...]:
    return tuple(head + tail for tail in _TAILS for head in _HEADS)


_WORDS: Final = _stems()
_WORD_COUNT: Final = len(_WORDS)


def _digits(hashes: U64, *bases: int) -> list[list[int]]:
    """Split hashes into small numbers: one list of ints below each base."""
    out: list[list[int]] = []
    rest = hashes
    for base in bases:
        rest, digit = np.divmod(rest, np.uint64(base))
        out.append(digit.tolist())
    return out


def artist_names(seed: int, artist: U64) -> list[str]:
    """Return one invented name per artist id, as the inside of an ASCII JSON string."""
    form, one, two, tail = _digits(hash64(seed, 15, artist), 100, _WORD_COUNT, _WORD_COUNT, _TAIL_COUNT)
    names: list[str] = []
    for f, i, j, k in zip(form, one, two, tail, strict=True):
        if f < 45:
            names.append(f"{_WORDS[i]} {_WORDS[j]}")
        elif f < 75:
            names.append(_WORDS[i] + _TAILS[k])
        elif f < 83:
            names.append(f"The {_WORDS[i]}{_TAILS[k]}s")
        elif f < 88:
            names.append(f"{_WORDS[i]} & {_WORDS[j]}")
        elif f < 92:
            names.append(f"DJ {_WORDS[i]}{_TAILS[k]}")
        elif f < 96:
            names.append(f"{_WORDS[i]} {_WORDS[j]}{_TAILS[k]}")
        else:
            names.append(f"{_WORDS[i]} {_WORDS[j]} Band")
    return names


def album_names(seed: int, album: U64) -> list[str]:
    """Return one invented name per album id, as the inside of an ASCII JSON string."""
    form, one, two, end, glue = _digits(
        hash64(seed, 16, album), 100, _WORD_COUNT, _WORD_COUNT, len(_ALBUM_ENDS), len(_GLUE)
    )
    names: list[str] = []
    for f, i, j, e, g in zip(form, one, two, end, glue, strict=True):
        if f < 22:
            names.append(_WORDS[i] + _WORDS[j].lower())
        elif f < 50:
            names.append(f"{_WORDS[i]} {_WORDS[j]}")
        elif f < 68:
            names.append(f"{_WORDS[i]} {_GLUE[g]} {_WORDS[j]}")
        elif f < 76:
            names.append(f"The {_WORDS[i]} {_WORDS[j]}")
        elif f < 90:
            names.append(f"{_WORDS[i]} {_WORDS[j]}{_ALBUM_ENDS[e]}")
        else:
            names.append(f"{_WORDS[i]} {_GLUE[g]} {_WORDS[j]}{_ALBUM_ENDS[e]}")
    return names


def track_names(seed: int, track: U64) -> list[str]:
    """Return one invented name per track id, as the inside of an ASCII JSON string."""
    form, one, two, end, glue = _digits(
        hash64(seed, 17, track), 100, _WORD_COUNT, _WORD_COUNT, len(_TRACK_ENDS), len(_GLUE)
    )
    names: list[str] = []
    for f, i, j, e, g in zip(form, one, two, end, glue, strict=True):
        if f < 24:
            names.append(_WORDS[i] + _WORDS[j].lower())
        elif f < 50:
            names.append(f"{_WORDS[i]} {_WORDS[j]}")
        elif f < 76:
            names.append(f"{_WORDS[i]} {_GLUE[g]} {_WORDS[j]}")
        elif f < 84:
            names.append(f"{_WORDS[i]} (feat. {_WORDS[j]})")
        else:
            names.append(f"{_WORDS[i]} {_WORDS[j]}{_TRACK_ENDS[e]}")
    return names


# --- playlist titles ----------------------------------------------------------------------------------------

_MOOD_WORDS: Final[tuple[tuple[str, ...], ...]] = (
    ("chill", "chillin", "chill vibes", "chillax"),
    ("workout", "gym", "gym music", "exercise"),
    ("party", "party time", "turn up", "pregame"),
    ("sleep", "sleepy", "bedtime", "goodnight"),
    ("sad", "sad songs", "feels", "in my feels", "heartbreak"),
    ("happy", "feel good", "good vibes", "smile"),
    ("road trip", "roadtrip", "driving", "car", "cruisin"),
    ("study", "studying", "focus", "homework"),
    ("love", "love songs", "romance", "date night"),
    ("lit", "hype", "turnt", "fire", "bangers"),
    ("relax", "relaxing", "calm", "peaceful"),
    ("running", "run", "cardio", "jogging"),
    ("shower", "shower songs", "bathroom", "getting ready"),
    ("wedding", "reception", "first dance", "ceremony"),
    ("angry", "rage", "mad", "scream"),
    ("beach", "pool", "boat", "lake"),
    ("dinner", "cooking", "kitchen", "coffee shop"),
    ("work", "office", "work music", "cleaning"),
    ("morning", "wake up", "sunday morning", "sunday"),
    ("throw it back", "nostalgia", "memories", "childhood"),
)
_ERA_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "new": ("new", "new music", "new songs", "current", "fresh", "now"),
    "10s": ("2010s", "10s", "high school", "college", "recent"),
    "00s": ("throwback", "throwbacks", "2000s", "00s", "early 2000s", "tbt", "middle school"),
    "90s": ("90s", "90's", "90s hits", "nineties", "90s kid"),
    "80s": ("80s", "80's", "80s hits", "eighties"),
    "70s": ("oldies", "70s", "70's", "70s hits", "seventies"),
    "60s": ("60s", "60's", "golden oldies", "50s", "sixties"),
}
_PLAIN: Final = (
    "jams", "music", "favorites", "my playlist", "playlist", "vibes", "good", "mix", "songs", "random",
    "stuff", "summer", "everything", "faves", "all", "best", "my music", "life", "good music", "playlist 1",
    "car jams", "jamz", "yes", "mixtape", "all time favorites", "liked", "misc", "me", "daily", "fun",
    "winter", "spring", "fall", "home", "discover", "other", "top", "starred", "home playlist", "cool",
    "songs i like", "a", "tunes", "summer jams", "jam", "house party", "mood", "dope", "weekend", "friday",
    "current favorites", "my jams", "night", "best songs", "mellow", "likes", "current jams", "good songs",
    "classics", "vibe", "playlist 2", "x", "school", "birthday", "mixed", "slow", "camp", "family", "yeet",
    "untitled", "main", "travel", "my mix", "variety", "travels", "basement", "camping", "listen", "great",
    "my songs", "covers", "dad", "mom", "for you", "us", "friends", "moms playlist", "everyday", "saturday",
    "obsessed", "bops", "bop", "loud", "quiet", "late night", "midnight", "rainy day", "rain", "snow",
    "sun", "sunshine", "moon", "stars", "ocean", "mountains", "wild", "free", "young", "forever", "dream",
    "dreams", "gold", "blue", "red", "green", "black", "white", "purple", "pink", "heaven", "hell yeah",
    "ok", "okay", "hey", "hello", "goodbye", "wow", "oh", "lol", "idk", "meh", "whatever", "nice", "sweet",
    "smooth", "easy", "hard", "soft", "deep", "high", "low", "fast", "up", "down", "left", "right", "one",
    "two", "three", "first", "last", "next", "old", "older", "newer", "big", "small", "real", "true",
    "same", "b", "c", "d", "e", "j", "k", "l", "m", "s", "t", "test", "new playlist", "queue", "library",
    "collection", "shuffle", "radio", "live", "concert", "festival", "tour", "dance party", "ballads",
    "anthems", "hits", "singles",
)  # fmt: skip
_PEOPLE: Final = _words(
    "sarah emily jessica ashley anna emma hannah grace abby megan lauren rachel kate katie maddie "
    "olivia chloe ella lily mia ava zoe julia claire leah molly morgan taylor sydney haley paige brooke "
    "jenna kayla alexis sam alex jordan casey riley jamie nick matt mike chris josh jake ryan tyler "
    "kyle ben dan adam luke jack will max noah ethan liam owen sean kevin brian eric mark scott steve "
    "tom tim joe john david james andrew anthony daniel robert maria ana sofia carmen rosa elena laura "
    "lucia isabel diego carlos luis juan jose miguel pedro marco andre jay kim lee amy lisa julie karen "
    "susan linda nancy carol diane janet becky beth jen jess jill kristen kelly erin allison amanda "
    "nicole danielle michelle vanessa natalie victoria caroline charlotte lucy ruby ivy hazel"
)
_PEOPLE_FORMS: Final = (
    "{0}",
    "{0}s playlist",
    "{0}'s playlist",
    "{0}s jams",
    "{0} mix",
    "for {0}",
    "{0} songs",
)
_FORMS: Final = (
    "{0}", "{0} music", "{0} playlist", "{0} jams", "{0} mix", "{0} vibes", "{0} songs", "my {0}",
    "good {0}", "{0} 2", "best of {0}", "{0} hits", "{0} favorites", "{0} tunes", "the {0} playlist",
    "{0} time", "new {0}", "{0} stuff", "{0} 1", "{0} mixtape", "old {0}", "all {0}", "{0} 3", "just {0}",
)  # fmt: skip
_SEASONS: Final = (
    "winter", "winter", "spring", "spring", "spring", "summer", "summer", "summer", "fall", "fall", "fall",
    "winter",
)  # fmt: skip
_MONTHS: Final = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october",
    "november", "december",
)  # fmt: skip
_TIME_FORMS: Final = (
    "{0} {1}",
    "{0} '{2}",
    "{0} {2}",
    "{1}",
    "{0}",
    "{0} {1} jams",
    "{0} {1} playlist",
    "best of {1}",
)
_EMOJI: Final = tuple(
    chr(c)
    for c in (
        0x1F525, 0x1F60D, 0x1F44C, 0x1F3B6, 0x1F30A, 0x1F334, 0x1F499, 0x1F319, 0x1F60E, 0x1F602,
        0x1F389, 0x1F4AF,
        0x1F33B, 0x1F308, 0x1F49C, 0x1F48B, 0x1F485, 0x1F480, 0x1F64F, 0x1F3A7, 0x1F3B8, 0x1F331,
        0x1F33F, 0x1F340,
        0x1F31E, 0x1F30C, 0x1F4A4, 0x1F494, 0x1F495, 0x1F618, 0x1F62D, 0x1F92A, 0x1F697, 0x1F37B,
        0x1F379, 0x1F3D6,
        0x1F384, 0x1F383, 0x1F342, 0x2764, 0x2728, 0x2600, 0x2601, 0x270C, 0x2B50, 0x26A1, 0x1F918,
        0x1F44A, 0x1F4A5,
    )
)  # fmt: skip
_DECORATIONS: Final = (
    "{0}!", "{0}.", "{0}...", "{0}!!", "*{0}*", "~{0}~", "{0}!!!", "#{0}", "({0})", ".{0}", "{0} :)",
    "{0}:", "{0}~", "{0}*", "~ {0} ~", "_{0}_", "{0}_", "{0} (:", "{0};", "{0} ;)", "/{0}/", "{0}*!",
    "{0}..", "$ {0}", "{0} $", "={0}=", "@{0}", "{0} #", "* {0} *", "**{0}**", "{0},", "{0} =", "%{0}",
    "{0} %", "^{0}", "{0} ^",
)  # fmt: skip
_DESCRIPTIONS: Final = (
    "Songs for {0}.", "All about {0}", "my favorite {0} songs", "{0} &amp; more",
    "The best of {0}, updated often", "just some {0}", "For {0} only :)", "Music for long days and {0}",
    "{0} all day", "A little bit of {0}", "listen to this when you want {0}", "{0} &#x2F; good times",
)  # fmt: skip

TITLE_DRAWS: Final = 10
"""Number of uniform draws per title."""


def _zipf(u: float, count: int, exponent: float = 0.9) -> int:
    """Return a rank in [0, count) with density about (rank + 1)**-exponent (inverse of the integral)."""
    power = 1.0 - exponent
    return min(int((1.0 + u * ((count + 1.0) ** power - 1.0)) ** (1.0 / power)) - 1, count - 1)


def _time_title(u: Sequence[float], modified_at: int) -> str:
    date = datetime.fromtimestamp(modified_at, UTC)
    year = str(date.year)
    when = _SEASONS[date.month - 1] if u[3] < 0.6 else _MONTHS[date.month - 1]
    return _TIME_FORMS[_zipf(u[4], len(_TIME_FORMS))].format(when, year, year[2:])


def plain_title(u: Sequence[float], scene: int, modified_at: int, artist: str | None) -> str:
    """Return a normalised (lower-case, undecorated) title.

    ``u`` holds ``TITLE_DRAWS`` uniforms in [0, 1), ``scene`` the playlist's main scene, ``modified_at`` epoch
    seconds, ``artist`` the (unescaped) name of the artist who dominates the playlist, if there is one.
    """
    kind = u[0]
    if artist is not None and kind < 0.6:
        return _form(artist.lower(), u[4], 4)
    genre = GENRES[scene // SCENES_PER_GENRE].words
    mood = catalogue.mood_of_scene(scene) if u[1] < 0.6 else int(u[2] * len(_MOOD_WORDS))
    moods = _MOOD_WORDS[mood]
    eras = _ERA_WORDS[catalogue.era_of_scene(scene) if u[1] < 0.85 else ERAS[int(u[2] * len(ERAS))]]
    if kind < 0.22:
        return _form(genre[_zipf(u[3], len(genre))], u[4])
    if kind < 0.42:
        return _form(moods[_zipf(u[3], len(moods))], u[4])
    if kind < 0.52:
        return _form(eras[_zipf(u[3], len(eras))], u[4])
    if kind < 0.62:
        return _time_title(u, modified_at)
    if kind < 0.66:
        return f"{eras[_zipf(u[3], len(eras))]} {genre[int(u[4] * 2)]}"
    if kind < 0.70:
        return f"{moods[int(u[3] * 2)]} {genre[int(u[4] * 2)]}"
    if kind < 0.75:
        return _PEOPLE_FORMS[_zipf(u[4], len(_PEOPLE_FORMS), 1.3)].format(_PEOPLE[_zipf(u[3], len(_PEOPLE), 0.6)])
    if kind < 0.80:
        emoji = _EMOJI[_zipf(u[3], len(_EMOJI))]
        if u[4] < 0.4:
            return emoji
        if u[4] < 0.7:
            return f"{moods[0]} {emoji}"
        return emoji + _EMOJI[_zipf(u[2], 20)]
    return _form(_PLAIN[_zipf(u[3], len(_PLAIN), 0.75)], u[4], 14)


def _form(word: str, u: float, forms: int = len(_FORMS)) -> str:
    rank = 0 if u < 0.58 else _zipf((u - 0.58) / 0.42, forms, 1.1)
    return _FORMS[rank].format(word)


def written_title(u: Sequence[float], plain: str) -> str:
    """Return one of the ways to write a normalised title (capitals, decoration, trailing space)."""
    case = u[5]
    if case < 0.45:
        text = plain.title().replace("'S", "'s")
    elif case < 0.82:
        text = plain
    elif case < 0.90:
        text = plain.upper()
    else:
        text = plain[:1].upper() + plain[1:]
    if u[6] < 0.042:
        text = _DECORATIONS[_zipf(u[7], len(_DECORATIONS), 1.2)].format(text)
    if u[8] < 0.08:
        text += " "
    return text


def description(u: float, plain: str) -> str:
    """Return a short (HTML-escaped) description for a playlist with this normalised title."""
    return _DESCRIPTIONS[int(u * len(_DESCRIPTIONS))].format(plain.replace("&", "&amp;").replace("'", "&#x27;"))
