"""Submissions to the RecSys Challenge 2018, as its successor at AIcrowd takes them: writing and verifying.

A submission is a gzipped text file. Lines that start with # and empty lines are comments. The first other line is
`team_info,TEAM,EMAIL`; then there is one line for each playlist of the challenge set: its pid and exactly 500 track
URIs, best first, without repeats and without the tracks that the challenge gives. White space around commas is ignored.
"""

from __future__ import annotations

import gzip
import os
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from encore.errors import InputError

N_TRACKS: Final = 500
_URI: Final = re.compile(r"spotify:track:[0-9A-Za-z]{22}")
_SHOWN: Final = 20


def write_submission(
    path: Path, team: str, email: str, comments: Sequence[str], rows: Iterable[tuple[int, Sequence[str]]]
) -> int:
    """Write a submission, atomically, and return the number of playlists. The same arguments give the same bytes.

    Raises InputError for a team or an address that the format cannot hold, or if the file cannot be written.
    """
    for name, value in (("team", team), ("email", email)):
        if not value.strip() or re.search(r"[,\r\n]", value):
            raise InputError(f"--{name}: expected text without commas or line breaks, found {value!r}")
    if not re.fullmatch(r"\S+@\S+", email.strip()):
        raise InputError(f"--email: expected an address such as name@example.org, found {email!r}")
    n, partial = 0, ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            partial = file.name
            with gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
                lines = [*(f"# {comment}" for comment in comments), f"team_info,{team.strip()},{email.strip()}"]
                packed.write("".join(f"{line}\n" for line in lines).encode())
                for pid, uris in rows:
                    packed.write(f"{pid},{','.join(uris)}\n".encode())
                    n += 1
        # temporary files are readable only by their owner
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}", remedy="choose another --out") from error
    finally:
        if partial:
            Path(partial).unlink(missing_ok=True)
    return n


def verify_submission(path: Path, seeds: Mapping[int, frozenset[str]]) -> list[str]:
    """All violations of the format, at most 20 and then a line with the number of the others; empty if it is valid.

    `seeds`: for each pid of the challenge set, the URIs of the tracks that it gives. Raises InputError if the file
    cannot be read.
    """
    try:
        with open(path, "rb") as file:
            if file.read(2) != b"\x1f\x8b":
                return [f"{path}: expected a gzipped file"]
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            found = list(_violations(lines, seeds))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if len(found) > _SHOWN:
        return [*found[:_SHOWN], f"and {len(found) - _SHOWN:,} more"]
    return found


def _violations(lines: Iterable[str], seeds: Mapping[int, frozenset[str]]) -> Iterator[str]:
    has_team, seen = False, set()
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        fields = [field.strip() for field in text.split(",")]
        if not has_team:
            has_team = True
            if fields[0] != "team_info":
                yield f"line {number}: expected team_info first, found {fields[0][:40]!r}"
            elif len(fields) != 3 or not all(fields) or "@" not in fields[2]:
                yield f"line {number}: expected team_info, the team's name and an email address, found {text[:80]!r}"
            else:
                continue
            if fields[0] == "team_info":
                continue
        pid = int(fields[0]) if re.fullmatch(r"\d{1,18}", fields[0]) else None
        if pid is None or pid not in seeds:
            yield f"line {number}: expected a pid of the challenge set, found {fields[0][:40]!r}"
            continue
        if pid in seen:
            yield f"line {number}: pid {pid} occurs twice"
        seen.add(pid)
        for problem in _problems(fields[1:], seeds[pid]):
            yield f"line {number}: pid {pid}: {problem}"
    if not has_team:
        yield "expected a line with team_info, found none"
    missing = sorted(set(seeds) - seen)
    if missing:
        yield f"{len(missing):,} playlists of the challenge set are missing, the first is pid {missing[0]}"


def _problems(uris: Sequence[str], seeds: frozenset[str]) -> Iterator[str]:
    if len(uris) != N_TRACKS:
        yield f"expected {N_TRACKS} tracks, found {len(uris)}"
    if malformed := [uri for uri in uris if not _URI.fullmatch(uri)]:
        yield f"expected track URIs, found {malformed[0][:60]!r}"
    if len(set(uris)) < len(uris):
        again = next(uri for at, uri in enumerate(uris) if uri in uris[:at])
        yield f"{again} occurs twice"
    if given := [uri for uri in uris if uri in seeds]:
        yield f"{given[0]} is one of the tracks that the challenge gives"
