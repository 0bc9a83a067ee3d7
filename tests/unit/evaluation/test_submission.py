"""Submissions to the challenge: what is written, and what the verifier finds."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from encore.errors import InputError
from encore.evaluation.submission import verify_submission, write_submission


def uri(number: int) -> str:
    return f"spotify:track:{number:022d}"


SEEDS = {1000000: frozenset[str](), 1000005: frozenset({uri(0), uri(1)})}
ROWS = [(1000000, [uri(n) for n in range(500)]), (1000005, [uri(n) for n in range(2, 502)])]


def written(path: Path, lines: list[str]) -> Path:
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    return path


@pytest.fixture
def lines(tmp_path: Path) -> list[str]:
    """The lines of a valid submission."""
    write_submission(tmp_path / "valid.csv.gz", "the team", "a@example.org", ["made by a test"], ROWS)
    return gzip.decompress((tmp_path / "valid.csv.gz").read_bytes()).decode().splitlines()


def test_a_written_submission_is_valid(tmp_path: Path, lines: list[str]) -> None:
    assert lines[:2] == ["# made by a test", "team_info,the team,a@example.org"]
    assert [line.split(",")[0] for line in lines[2:]] == ["1000000", "1000005"]
    assert {len(line.split(",")) for line in lines[2:]} == {501}
    assert verify_submission(tmp_path / "valid.csv.gz", SEEDS) == []
    before = (tmp_path / "valid.csv.gz").read_bytes()
    write_submission(tmp_path / "valid.csv.gz", "the team", "a@example.org", ["made by a test"], ROWS)
    assert (tmp_path / "valid.csv.gz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["valid.csv.gz"]


def test_spaces_comments_and_empty_lines_are_ignored(tmp_path: Path, lines: list[str]) -> None:
    spaced = ["", "# another", *(line.replace(",", " , ") for line in lines), "", "  "]
    assert verify_submission(written(tmp_path / "spaced.gz", spaced), SEEDS) == []


def _cell(row: int, column: int, text: str) -> Callable[[list[str]], list[str]]:
    def change(lines: list[str]) -> list[str]:
        fields = lines[row].split(",")
        fields[column] = text
        return [*lines[:row], ",".join(fields), *lines[row + 1 :]]

    return change


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda lines: lines[2:], "line 1: expected team_info first"),
        (_cell(1, 2, "nobody"), "line 2: expected team_info, the team's name and an email address"),
        (lambda lines: [*lines[:1], "team_info,main,team,a@b.c", *lines[2:]], "line 2: expected team_info, the team's"),
        (lambda lines: ["# nothing"], "expected a line with team_info, found none"),
        (lambda lines: lines[:3], "1 playlists of the challenge set are missing, the first is pid 1000005"),
        (lambda lines: [*lines, lines[3]], "line 5: pid 1000005 occurs twice"),
        (_cell(2, 0, "7"), "line 3: expected a pid of the challenge set, found '7'"),
        (_cell(2, 0, "x"), "line 3: expected a pid of the challenge set, found 'x'"),
        (
            lambda lines: [*lines[:3], lines[3].rpartition(",")[0]],
            "line 4: pid 1000005: expected 500 tracks, found 499",
        ),
        (lambda lines: [*lines[:3], f"{lines[3]},{uri(900)}"], "line 4: pid 1000005: expected 500 tracks, found 501"),
        (_cell(3, 7, uri(2)), f"line 4: pid 1000005: {uri(2)} occurs twice"),
        (_cell(3, 7, uri(1)), f"line 4: pid 1000005: {uri(1)} is one of the tracks that the challenge gives"),
        (_cell(3, 7, "spotify:track:1"), "line 4: pid 1000005: expected track URIs, found 'spotify:track:1'"),
        (_cell(3, 7, uri(3).removeprefix("spotify:track:")), "line 4: pid 1000005: expected track URIs, found"),
    ],
)
def test_each_violation_is_found(
    tmp_path: Path, lines: list[str], change: Callable[[list[str]], list[str]], found: str
) -> None:
    problems = verify_submission(written(tmp_path / "wrong.gz", change(lines)), SEEDS)
    assert any(problem.startswith(found) for problem in problems), problems


def test_at_most_twenty_violations_are_listed(tmp_path: Path, lines: list[str]) -> None:
    problems = verify_submission(written(tmp_path / "many.gz", [*lines, *[lines[3]] * 30]), SEEDS)
    assert len(problems) == 21
    assert problems[-1] == "and 10 more"


def test_a_file_that_is_not_gzipped_or_cut_is_said_to_be(tmp_path: Path, lines: list[str]) -> None:
    plain = tmp_path / "plain.csv"
    plain.write_text("\n".join(lines))
    assert verify_submission(plain, SEEDS) == [f"{plain}: expected a gzipped file"]
    cut = tmp_path / "cut.gz"
    cut.write_bytes((tmp_path / "valid.csv.gz").read_bytes()[:-40])
    with pytest.raises(InputError, match=r"cut\.gz: cannot be read"):
        verify_submission(cut, SEEDS)
    with pytest.raises(InputError, match=r"none\.gz: cannot be read"):
        verify_submission(tmp_path / "none.gz", SEEDS)


@pytest.mark.parametrize(
    ("team", "email", "message"),
    [
        ("", "a@b.c", "--team: expected text"),
        ("one, two", "a@b.c", "--team: expected text without commas"),
        ("team", "a@b.c\n", "--email: expected text without commas or line breaks"),
        ("team", "nobody", "--email: expected an address"),
    ],
)
def test_a_team_that_the_format_cannot_hold_is_refused(tmp_path: Path, team: str, email: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_submission(tmp_path / "s.gz", team, email, [], ROWS)
    assert list(tmp_path.iterdir()) == []
