"""What the log says about which work wrote which rows, against a table of single keys."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from encore.lake.coverage import complement, remaining
from encore.lake.delta import Change, Commit, Interval

KEYS = range(-3, 12)
END = st.one_of(st.none(), st.integers(-2, 10))
PARTITIONS = ((), (("model", "a"),), (("model", "b"),))


@st.composite
def commits(draw: st.DrawFn) -> Commit | None:
    """A commit of one of two works, to all rows or to a model's, of a range or of rows that it does not tell."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return None
    low, high = draw(END), draw(END)
    rows = None if kind == 1 else (low, high)
    return Commit("job", "run", draw(st.sampled_from("xy")), "part", draw(st.sampled_from(PARTITIONS)), rows)


def log_of(newest_first: list[Commit | None]) -> list[Change]:
    return [Change(len(newest_first) - i, 0, commit) for i, commit in enumerate(newest_first)]


def inside(interval: Interval, key: int) -> bool:
    low, high = interval
    return (low is None or key >= low) and (high is None or key < high)


@given(st.lists(commits(), max_size=8), st.sampled_from(PARTITIONS[1:]))
def test_what_remains_is_what_other_work_wrote_last_or_nobody(
    newest_first: list[Commit | None], partition: tuple[tuple[str, str], ...]
) -> None:
    owner: dict[int, str] = dict.fromkeys(KEYS, "")
    for commit in reversed(newest_first):
        for key in KEYS:
            if commit is None or (commit.rows is None and commit.touches(partition)):
                owner[key] = ""
            elif commit.touches(partition) and commit.rows is not None and inside(commit.rows, key):
                owner[key] = commit.fingerprint
    found = remaining(log_of(newest_first), partition, lambda commit: commit.fingerprint == "x")
    for key in KEYS:
        assert any(inside(interval, key) for interval in found) == (owner[key] != "x")
    others = complement(found)
    for key in KEYS:
        assert any(inside(interval, key) for interval in others) == (owner[key] == "x")


def test_ranges_come_in_order_and_joined() -> None:
    log = log_of([Commit("j", "r", "x", "", (), (5, 8)), Commit("j", "r", "y", "", (), (2, 5))])
    assert remaining(log, (), lambda commit: commit.fingerprint == "x") == [(None, 5), (8, None)]
    assert remaining([], (), lambda commit: True) == [(None, None)]
    assert complement([]) == [(None, None)]
    assert complement([(None, None)]) == []


def test_a_commit_says_itself_in_the_log() -> None:
    commit = Commit("job", "run", "f", "from pid 3", (("model", "a"),), (3, None))
    assert Commit.parse(commit.json()) == commit
    assert Commit.parse('{"encore": {"job": "j", "run_id": "r", "fingerprint": "f", "part": "0"}}') == Commit(
        "j", "r", "f", "0"
    )
    assert [Commit.parse(text) for text in (None, "", "[]", "{}", '{"encore": 3}')] == [None] * 5
