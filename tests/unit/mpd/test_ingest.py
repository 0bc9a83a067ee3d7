"""Ingest on arrays: files to tasks, tracks to ids, and both passes end to end against plain Python."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from encore.arrays.track_keys import id_words
from encore.config import S3Config
from encore.errors import LakeError
from encore.lake.filesystem import SourceFile, list_files
from encore.lake.parquet import TableLocation
from encore.lake.tables import CHALLENGE_PLAYLISTS, PLAYLISTS, QUARANTINE, TRACKS, Table, arrow_schema
from encore.mpd.ingest import (
    FILES,
    Ids,
    Parsing,
    Staging,
    TaskTracks,
    Writing,
    assign_ids,
    by_number,
    parse_run,
    tasks_of,
    write_run,
)
from encore.mpd.parse import TRACK_FIELDS, Limits

Record = dict[str, Any]

S3 = S3Config(endpoint=None, region=None, path_style=False)
LIMITS = Limits(max_tracks=50, payload_bytes=100)
URIS = [f"spotify:track:{i:022d}" for i in range(12)]


def files_of(*sizes: int) -> list[SourceFile]:
    return [SourceFile(f"/raw/{i}.json", f"{i}.json", size, 0) for i, size in enumerate(sizes)]


# files to tasks -----------------------------------------------------------------------------------------------------


def test_files_are_ordered_by_the_numbers_in_their_names() -> None:
    names = [f"mpd.slice.{start}-{start + 999}.json" for start in (0, 1000, 2000, 9000, 10000, 100000, 999000)]
    others = ["7.json", "007b.json", "7²3.json", "a.json", "b2.json", "b10.json", "b10x.json"]
    files = [SourceFile(name, name, 1, 0) for name in sorted(names + others)]
    assert [file.name for file in by_number(files)] == [*others, *names]


FILE_SIZES = st.lists(st.one_of(st.integers(0, 40), st.integers(0, 10**9)), min_size=1, max_size=60)


@settings(max_examples=300, deadline=None)
@given(FILE_SIZES, st.integers(1, 20), st.integers(1, 9))
def test_every_file_is_in_one_run_and_no_run_is_too_long(sizes: list[int], each: int, parallelism: int) -> None:
    files = files_of(*sizes)
    runs = tasks_of(files, each, parallelism)
    assert [file for run in runs for file in run] == files, "every file once, in order"
    assert all(1 <= len(run) <= each for run in runs)
    assert len(runs) % parallelism == 0 or len(runs) == len(files), "all cores are busy to the end"
    fewest = max(-(-len(files) // each), min(parallelism, len(files)))
    assert fewest <= len(runs) < fewest + parallelism


@settings(max_examples=300, deadline=None)
@given(FILE_SIZES, st.integers(1, 9))
def test_runs_have_nearly_equal_bytes_where_the_bound_leaves_room(sizes: list[int], parallelism: int) -> None:
    runs = tasks_of(files_of(*sizes), len(sizes), parallelism)
    assert max(sum(file.size for file in run) for run in runs) <= sum(sizes) / len(runs) + max(sizes)


@pytest.mark.parametrize(
    ("sizes", "each", "parallelism", "expected"),
    [
        ([1, 1, 1, 97], 2, 1, [2, 2]),
        ([97, 1, 1, 1], 2, 1, [2, 2]),
        ([60, 10, 10, 10, 10], 9, 4, [1, 1, 1, 2]),
        ([10, 10, 10, 10, 60], 9, 2, [4, 1]),
        ([5, 5, 5, 5, 5, 5], 16, 2, [3, 3]),
        ([5, 5, 5], 16, 8, [1, 1, 1]),
        ([0, 0, 0, 0], 2, 2, [2, 2]),
        ([5] * 1000, 16, 4, [15, 16]),
    ],
)
def test_runs_by_example(sizes: list[int], each: int, parallelism: int, expected: list[int]) -> None:
    lengths = [len(run) for run in tasks_of(files_of(*sizes), each, parallelism)]
    assert lengths == expected if len(sizes) < 10 else sorted(set(lengths)) == expected


def test_no_files_are_no_runs() -> None:
    assert tasks_of([], 16, 4) == []


# ids ----------------------------------------------------------------------------------------------------------------


def uri(name: str) -> str:
    """A URI for a short name; they are ordered as the names are."""
    return f"spotify:track:{name * 22}"[:36]


def candidates(*tasks: list[tuple[str, int, int, int]]) -> list[TaskTracks]:
    """Of each task name, first_pid, n_missing and n_rows of each of its tracks."""
    found = []
    for rows in tasks:
        names, pids, missing, counts = zip(*rows, strict=True) if rows else ((), (), (), ())
        words = id_words(pa.array([uri(name) for name in names], pa.string()))
        assert words is not None
        found.append(
            TaskTracks(words, np.array(pids, np.int64), np.array(missing, np.int8), np.array(counts, np.int32))
        )
    return found


def held(*rows: tuple[int, str, int, int]) -> pa.Table:
    """Rows of track_id, uri, first_pid, n_missing of the table."""
    names, types = (
        ("track_id", "track_uri", "first_pid", "n_missing"),
        (pa.int32(), pa.string(), pa.int64(), pa.int8()),
    )
    columns = list(zip(*rows, strict=True)) if rows else [()] * 4
    return pa.table([pa.array(c, t) for c, t in zip(columns, types, strict=True)], names=list(names))


def lists(ids: Ids) -> tuple[list[list[int]], list[list[int]]]:
    return [part.tolist() for part in ids.of_task], [part.tolist() for part in ids.writes]


def test_frequent_tracks_get_the_first_ids_and_equals_go_by_uri() -> None:
    found = assign_ids(candidates([("d", 1, 0, 1), ("c", 1, 0, 5), ("a", 1, 0, 1)]), held())
    assert lists(found) == ([[2, 0, 1]], [[2, 0, 1]])
    assert (found.n_new, found.changed.tolist()) == (3, [])


def test_uris_are_ordered_as_texts_to_the_last_letter() -> None:
    names = sorted({f"{a}{'x' * n}{b}" + "0" * (20 - n) for a in "0Az" for b in "0Zaz" for n in range(21)})
    rows = [(name, 1, 0, 1) for name in names]
    assert lists(assign_ids(candidates(rows[::-1]), held()))[0] == [list(range(len(names)))[::-1]]


def test_occurrences_are_counted_over_all_tasks() -> None:
    rows = [("a", 1, 0, 3), ("b", 1, 0, 2)], [("b", 9, 0, 2)]
    assert lists(assign_ids(candidates(*rows), held())) == ([[1, 0], [0]], [[1, 0], [-1]])


def test_the_best_record_of_all_tasks_becomes_the_row() -> None:
    rows = [("a", 5, 0, 1)], [("a", 3, 0, 1)], [("a", 1, 2, 1)]
    assert lists(assign_ids(candidates(*rows), held())) == ([[0], [0], [0]], [[-1], [0], [-1]])


def test_known_tracks_keep_their_ids_and_new_ones_go_on_after_the_highest() -> None:
    existing = held((0, uri("x"), 1, 0), (4, uri("y"), 1, 0), (2, uri("z"), 1, 0))
    rows = [("new", 9, 0, 100), ("y", 9, 0, 1), ("newer", 9, 0, 1)]
    found = assign_ids(candidates(rows), existing)
    assert lists(found) == ([[5, 4, 6]], [[5, -1, 6]])
    assert (found.n_new, found.changed.tolist()) == (2, [])


@pytest.mark.parametrize(
    ("first_pid", "n_missing", "is_better"), [(5, 1, False), (4, 1, True), (9, 0, True), (6, 1, False), (0, 2, False)]
)
def test_a_better_record_replaces_the_row_of_a_known_track(first_pid: int, n_missing: int, is_better: bool) -> None:
    found = assign_ids(candidates([("x", first_pid, n_missing, 1)]), held((7, uri("x"), 5, 1)))
    assert lists(found) == ([[7]], [[7 if is_better else -1]])
    assert (found.n_new, found.changed.tolist()) == (0, [7] if is_better else [])


def test_a_task_without_tracks_has_no_ids() -> None:
    found = assign_ids(candidates([], [("a", 1, 0, 1)], []), held())
    assert lists(found) == ([[], [0], []], [[], [0], []])
    assert lists(assign_ids(candidates([], []), held((3, uri("a"), 1, 0)))) == ([[], []], [[], []])


def test_a_table_with_a_uri_twice_is_refused() -> None:
    with pytest.raises(LakeError, match=f"tracks: track_uri is unique: broken, such as by {uri('b')}"):
        assign_ids(candidates([("a", 1, 0, 1)]), held(*((i, uri(name), 1, 0) for i, name in enumerate("abcb"))))


def test_a_table_with_something_else_for_a_uri_is_refused() -> None:
    with pytest.raises(LakeError, match="22 letters or digits expected"):
        assign_ids(candidates([("a", 1, 0, 1)]), held((0, "spotify:track:x", 1, 0)))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 3), st.integers(1, 5)), max_size=25),
    st.sets(st.sampled_from("abcdefghijk")),
    st.integers(1, 5),
    st.randoms(use_true_random=False),
)
def test_ids_do_not_depend_on_tasks(
    records: list[tuple[str, int, int]], known: set[str], n_tasks: int, random_: random.Random
) -> None:
    """The same records, each of its own playlist, spread over tasks in any way and rows in any order."""
    existing = held(*((i, uri(name), 3, 1) for i, name in enumerate(sorted(known))))
    expected = {name: i for i, name in enumerate(sorted(known))}
    counts: Counter[str] = Counter()
    for name, _, n_rows in records:
        counts[name] += n_rows
    for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        expected.setdefault(name, len(expected))
    best = {name: min((m, pid) for pid, (u, m, _) in enumerate(records) if u == name) for name in counts}

    tasks: list[dict[str, tuple[int, int, int]]] = [{} for _ in range(n_tasks)]
    for pid, (name, missing, n_rows) in enumerate(records):
        own = random_.choice(tasks)
        before = own.get(name)
        m, p = min((missing, pid), before[:2]) if before else (missing, pid)
        own[name] = (m, p, n_rows + (before[2] if before else 0))
    rows = [[(name, p, m, n) for name, (m, p, n) in own.items()] for own in tasks]
    found = assign_ids(candidates(*rows), existing)

    written = {}
    for t, own in enumerate(tasks):
        assert found.of_task[t].tolist() == [expected[name] for name in own]
        for code, (name, (m, p, _)) in enumerate(own.items()):
            if found.writes[t][code] >= 0:
                assert found.writes[t][code] == expected[name]
                assert name not in written, "one row a track"
                written[name] = (m, p)
    assert written == {name: b for name, b in best.items() if name not in known or b < (1, 3)}
    assert found.n_new == len(set(best) - known)
    assert sorted(found.changed.tolist()) == sorted(expected[name] for name in set(written) & known)


# both passes --------------------------------------------------------------------------------------------------------


def write(folder: Path, contents: dict[str, list[Any]]) -> list[SourceFile]:
    for name, playlists in contents.items():
        (folder / name).write_text(json.dumps({"playlists": playlists}))
    return by_number(list_files(str(folder), "*.json", S3))


def random_slices(seed: int, n_files: int = 7) -> dict[str, list[Any]]:
    generator = random.Random(seed)
    pids = generator.sample(range(1000), n_files * 4)
    contents: dict[str, list[Any]] = {}
    for i in range(n_files):
        records: list[Any] = []
        for pid in pids[i * 4 : i * 4 + generator.randint(0, 4)]:
            tracks = []
            for _ in range(generator.randint(0, 9)):
                track: Record = {"track_uri": generator.choice(URIS[: 3 + i])}
                for name in TRACK_FIELDS:
                    if generator.random() < 0.8:
                        track[name] = generator.randint(1, 9) if name == "duration_ms" else f"{name} {pid}"
                tracks.append(track)
            if generator.random() < 0.5:
                for pos, track in zip(generator.sample(range(len(tracks)), len(tracks)), tracks, strict=True):
                    track["pos"] = pos
            kind = {"num_holdouts": 5, "num_samples": len(tracks)} if generator.random() < 0.3 else {}
            records.append({"pid": pid, "name": f"list {pid}", "num_followers": pid, **kind, "tracks": tracks})
        if generator.random() < 0.4:
            records.insert(0, {"pid": "bad", "tracks": []})
        contents[f"mpd.slice.{i * 1000}-{i * 1000 + 999}.json"] = records
    contents["mpd.slice.99000-99999.json"] = []
    return contents


def plain(contents: dict[str, list[Any]]) -> tuple[dict[int, Record], dict[int, Record], dict[int, Record]]:
    """Rows of `playlists` and `challenge_playlists` by pid and of `tracks` by track_id, one value after the other."""
    counts: Counter[str] = Counter()
    best: dict[str, tuple[int, int, Record]] = {}
    good = [(name, r) for name, records in contents.items() for r in records if isinstance(r["pid"], int)]
    for _, record in good:
        for track in record["tracks"]:
            uri = track["track_uri"]
            counts[uri] += 1
            rank = (sum(track.get(name) is None for name in TRACK_FIELDS), record["pid"])
            if uri not in best or rank < best[uri][:2]:
                best[uri] = (*rank, track)
    ids = {uri: i for i, uri in enumerate(sorted(counts, key=lambda uri: (-counts[uri], uri)))}
    tracks = {
        ids[uri]: {
            "track_id": ids[uri],
            "track_uri": uri,
            "first_pid": pid,
            "orphaned": None,
            **{name: track.get(name) for name in TRACK_FIELDS},
        }
        for uri, (_, pid, track) in best.items()
    }
    playlists, challenges = {}, {}
    for name, record in good:
        own = record["tracks"]
        if all("pos" in track for track in own):
            own = sorted(own, key=lambda track: track["pos"])
        track_ids = [ids[track["track_uri"]] for track in own]
        row: Record = {"pid": record["pid"], "name": record["name"], "slice": name, "track_ids": track_ids}
        if "num_holdouts" in record:
            more = {key: record[key] for key in ("num_holdouts", "num_samples")}
            row |= {**more, "num_tracks": None, "positions": [track.get("pos", i) for i, track in enumerate(own)]}
            challenges[record["pid"]] = row
        else:
            playlists[record["pid"]] = {
                **dict.fromkeys(PLAYLISTS.names),
                **row,
                "num_followers": record["num_followers"],
            }
    return playlists, challenges, tracks


@dataclass(frozen=True)
class Passes:
    """Both passes, without Spark, in a folder."""

    folder: Path

    @property
    def aside(self) -> Staging:
        return Staging(str(self.folder / "aside"), S3)

    def first(
        self,
        runs: Sequence[Sequence[SourceFile]],
        digests: dict[str, str] | None = None,
        taken: dict[str, dict[int, str]] | None = None,
    ) -> pa.Table:
        """What the first one says of the files."""
        parsing = Parsing(LIMITS, self.aside, digests or {}, taken or {})
        about = pa.concat_tables([parse_run(task, run, parsing) for task, run in enumerate(runs)])
        assert about.schema.equals(FILES)
        return about

    def second(self, about: pa.Table, existing: pa.Table) -> dict[Table, pa.Table]:
        """The rows that the second one writes, by table."""
        scratch = list(dict.fromkeys(about["scratch"].to_pylist()))
        ids = assign_ids((TaskTracks.read(self.aside, name) for name in scratch), existing)
        for name, own, rows in zip(scratch, ids.of_task, ids.writes, strict=True):
            self.aside.write(f"{name}/ids", pa.table({"track_id": own, "writes": rows}))
        tables = {t.name: t for t in (PLAYLISTS, CHALLENGE_PLAYLISTS, TRACKS, QUARANTINE)}
        places = {name: TableLocation(str(self.folder / name), S3) for name in tables}
        written: dict[Table, list[pa.Table]] = {t: [arrow_schema(t).empty_table()] for t in tables.values()}
        for task in range(len(scratch)):
            for name, reports in write_run(task, Writing(self.aside, scratch, "s", places)):
                for path in reports.column("path").to_pylist():
                    rows = pq.ParquetFile(self.folder / name / path).read()
                    if "stage" not in rows.column_names and name == QUARANTINE.name:
                        rows = rows.append_column("stage", pa.repeat("s", rows.num_rows))
                    written[tables[name]].append(rows.select(tables[name].names).cast(arrow_schema(tables[name])))
        return {table: pa.concat_tables(parts) for table, parts in written.items()}

    def both(self, runs: Sequence[Sequence[SourceFile]], existing: pa.Table) -> dict[Table, pa.Table]:
        return self.second(self.first(runs), existing)

    def tracks(self, about: pa.Table) -> list[str]:
        names = dict.fromkeys(about["scratch"].to_pylist())
        return [uri for name in names for uri in self.aside.read(f"{name}/names")["track_uri"].to_pylist()]

    def refused(self, about: pa.Table) -> list[Record]:
        names = dict.fromkeys(about["scratch"].to_pylist())
        return [row for name in names for row in self.aside.read(f"{name}/refused").to_pylist()]


@pytest.fixture
def passes(tmp_path: Path) -> Passes:
    return Passes(tmp_path / "passes")


def by_key(table: pa.Table, key: str) -> dict[int, Record]:
    rows = {row[key]: row for row in table.to_pylist()}
    assert len(rows) == table.num_rows
    return rows


def groupings(files: list[SourceFile]) -> list[list[list[SourceFile]]]:
    return [
        [files],
        [[file] for file in files],
        [files[:3], files[3:]],
        [files[::-1]],
        [files[1::2], files[::2]],
    ]


@pytest.mark.parametrize("seed", range(6))
def test_both_passes_give_the_tables_of_plain_python_for_any_grouping(
    tmp_path: Path, passes: Passes, seed: int
) -> None:
    contents = random_slices(seed)
    expected_playlists, expected_challenges, expected_tracks = plain(contents)
    assert sorted(expected_tracks) == list(range(len(expected_tracks))), "ids are dense"
    for runs in groupings(write(tmp_path, contents)):
        made = passes.both(runs, held())
        assert by_key(made[PLAYLISTS], "pid") == expected_playlists
        assert by_key(made[CHALLENGE_PLAYLISTS], "pid") == expected_challenges
        assert by_key(made[TRACKS], "track_id") == expected_tracks
        assert made[QUARANTINE].num_rows == sum(r["pid"] == "bad" for own in contents.values() for r in own)


def test_later_files_keep_the_ids_that_were_given(tmp_path: Path, passes: Passes) -> None:
    contents = random_slices(3)
    names = sorted(contents)
    old, new = {n: contents[n] for n in names[:3]}, {n: contents[n] for n in names[3:]}
    *_, before = plain(old)
    existing = held(
        *((i, r["track_uri"], r["first_pid"], sum(r[n] is None for n in TRACK_FIELDS)) for i, r in before.items())
    )
    files = [file for file in write(tmp_path, contents) if file.name in new]
    made = passes.both([files], existing)
    table = {**before, **by_key(made[TRACKS], "track_id")}
    assert sorted(table) == list(range(len(table)))
    assert all(table[i]["track_uri"] == row["track_uri"] for i, row in before.items())
    whole_playlists, _, whole_tracks = plain(contents)
    for row in whole_tracks.values():
        (own,) = (r for r in table.values() if r["track_uri"] == row["track_uri"])
        assert {**own, "track_id": row["track_id"]} == row, "the best record of all files, old and new"
    for pid, row in by_key(made[PLAYLISTS], "pid").items():
        assert [table[i]["track_uri"] for i in row["track_ids"]] == [
            whole_tracks[i]["track_uri"] for i in whole_playlists[pid]["track_ids"]
        ]


# what a task says of its files --------------------------------------------------------------------------------------


def test_a_file_row_tells_size_digest_and_counts(tmp_path: Path, passes: Passes) -> None:
    good = {"pid": 1, "tracks": [{"track_uri": URIS[0]}]}
    (file,) = write(tmp_path, {"one.json": [good, {"pid": 2}]})
    content = (tmp_path / "one.json").read_bytes()
    (row,) = passes.first([[file]]).to_pylist()
    assert {name: row[name] for name in ("slice", "size_bytes", "modified_ns", "status")} == {
        "slice": "one.json",
        "size_bytes": len(content),
        "modified_ns": (tmp_path / "one.json").stat().st_mtime_ns,
        "status": "ingested",
    }
    assert row["digest"] == f"xxh3:{xxhash.xxh3_128_hexdigest(content)}"
    assert (row["n_playlists"], row["n_quarantined"], row["longest"], row["pids"]) == (1, 1, 1, [1])


def test_a_refused_record_has_a_row_with_its_reason(tmp_path: Path, passes: Passes) -> None:
    (file,) = write(tmp_path, {"one.json": [{"pid": 2}]})
    (row,) = passes.refused(passes.first([[file]]))
    assert (row["source"], row["record"], row["pid"], row["reason"]) == ("one.json", "playlist 0", 2, "tracks_missing")
    assert row["payload"] == '{"pid": 2}'


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("cut.json", b'{"playlists": [', "not_json"),
        ("gone.json", None, "unreadable"),
        ("null.json", b"null", "not_a_slice"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_and_the_others_go_in(
    tmp_path: Path, passes: Passes, name: str, content: bytes | None, reason: str
) -> None:
    (good,) = write(tmp_path, {"a.json": [{"pid": 1, "tracks": [{"track_uri": URIS[0]}]}]})
    if content is not None:
        (tmp_path / name).write_bytes(content)
    bad = SourceFile(str(tmp_path / name), name, 15, 0)
    about = passes.first([[bad, good]])
    status = {row["slice"]: (row["status"], row["pids"]) for row in about.to_pylist()}
    assert status == {name: ("refused", []), "a.json": ("ingested", [1])}
    (row,) = passes.refused(about)
    assert (row["source"], row["record"], row["reason"]) == (name, "file", reason)
    assert passes.second(about, held())[PLAYLISTS]["slice"].to_pylist() == ["a.json"]


def test_a_file_of_a_known_digest_gives_its_file_row_alone(tmp_path: Path, passes: Passes) -> None:
    files = write(tmp_path, {"a.json": [{"pid": 1, "tracks": [{"track_uri": URIS[0]}]}], "b.json": []})
    digests = {row["slice"]: row["digest"] for row in passes.first([files]).to_pylist()}
    about = passes.first([files], {"a.json": digests["a.json"], "b.json": "xxh3:other"})
    status = {row["slice"]: (row["status"], row["pids"]) for row in about.to_pylist()}
    assert status == {"a.json": ("same", []), "b.json": ("ingested", [])}
    assert passes.tracks(about) == []


def test_playlists_that_are_taken_are_refused_and_leave_no_track(tmp_path: Path, passes: Passes) -> None:
    records = [{"pid": pid, "tracks": [{"track_uri": URIS[pid]}]} for pid in (1, 2)]
    (file,) = write(tmp_path, {"a.json": records})
    about = passes.first([[file]], taken={"a.json": {2: "z.json"}, "b.json": {1: "a.json"}})
    assert about["pids"].to_pylist() == [[1]]
    assert passes.tracks(about) == [URIS[1]]
    assert [(row["reason"], row["taken_by"]) for row in passes.refused(about)] == [("pid_duplicate", "z.json")]


def test_the_digest_of_an_object_is_its_entity_tag(tmp_path: Path, passes: Passes) -> None:
    (file,) = write(tmp_path, {"a.json": []})
    tagged = SourceFile(file.url, file.name, file.size, file.modified_ns, etag="abc")
    assert passes.first([[tagged]])["digest"].to_pylist() == ["etag:abc"]


def test_a_compressed_file_is_read_whatever_its_name(tmp_path: Path, passes: Passes) -> None:
    (plain_file,) = write(tmp_path, {"a.json": [{"pid": 1, "tracks": [{"track_uri": URIS[0]}]}]})
    content = gzip.compress((tmp_path / "a.json").read_bytes())
    (tmp_path / "a.json").write_bytes(content)
    (row,) = passes.first([[plain_file]]).to_pylist()
    assert (row["status"], row["pids"]) == ("ingested", [1])
    assert row["digest"] == f"xxh3:{xxhash.xxh3_128_hexdigest(content)}", "of the file as it is"


def test_dropped_items_are_counted_apart(tmp_path: Path, passes: Passes) -> None:
    items = [None, {"track_uri": URIS[0]}, {"track_uri": "spotify:local:x"}]
    (file,) = write(tmp_path, {"a.json": [{"pid": 1, "tracks": items}, {"pid": 2}]})
    about = passes.first([[file]])
    (row,) = about.to_pylist()
    assert (row["n_playlists"], row["n_quarantined"], row["n_dropped"]) == (1, 3, 2)
    assert [row["record"] for row in passes.refused(about)] == [
        "playlist 0, item 0",
        "playlist 0, item 2",
        "playlist 1",
    ]
