"""Audio features from files: formats, column names, validation rules and broken files."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import encore.features.providers.file as files_module
import encore.features.providers.sources as sources_module
from encore.config import S3Config, load_config
from encore.errors import ConfigError, InputError
from encore.features.providers.file import FileProvider
from encore.features.providers.registry import FEATURE_SCHEMA, REJECTED_SCHEMA, FeatureBatch, provider
from encore.features.validation import TrackSet, bounded, normalise_ids
from encore.lake.filesystem import SourceFile
from encore.lake.tables import REASONS
from encore.vocabulary import FEATURES, RANGES

CONF = str(Path(__file__).resolve().parents[3] / "conf")
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
VALUES: dict[str, Any] = dict(zip(FEATURES, (0.5, 0.625, 7, -8.5, 1, 0.05, 0.125, 0.0, 0.25, 0.75, 120.5), strict=True))
ENDS = (
    "csv",
    "tsv",
    "jsonl",
    "ndjson",
    "json",
    "csv.gz",
    "tsv.gz",
    "jsonl.gz",
    "ndjson.gz",
    "json.gz",
    "parquet",
)


@pytest.fixture(autouse=True)
def _conf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENCORE_CONF_DIR", CONF)


def track(number: int) -> str:
    return f"{number:022d}"


def uri(number: int) -> str:
    return f"spotify:track:{track(number)}"


def row(number: int, **changes: Any) -> dict[str, Any]:
    return {"track_id": track(number), "name": 'A "title",\nin two lines', **VALUES, **changes}


def write(path: Path, rows: list[dict[str, Any]], names: dict[str, str] | None = None) -> Path:
    """Write rows in the format given by the extension of the path; `names`: other column names."""
    renamed = [{(names or {}).get(name, name): value for name, value in one.items()} for one in rows]
    end = path.name.split(".", 1)[1].removesuffix(".gz")
    if end == "parquet":
        pq.write_table(pa.Table.from_pylist(renamed), path)
        return path
    text = io.StringIO(newline="")
    if end in ("csv", "tsv"):
        writer = csv.DictWriter(text, list(renamed[0]), delimiter="," if end == "csv" else "\t")
        writer.writeheader()
        writer.writerows(renamed)
    else:
        text.writelines(json.dumps(one) + "\n" for one in renamed)
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


def file_provider(path: Path | str, columns: dict[str, str] | None = None, payload_bytes: int = 500) -> FileProvider:
    s3 = S3Config(endpoint=None, region=None, path_style=False)
    return FileProvider(str(path), s3, columns or {}, payload_bytes)


def fetch(path: Path | str, columns: dict[str, str] | None = None) -> FeatureBatch:
    """All batches as one."""
    chunks = list(file_provider(path, columns).fetch(iter([])))
    for chunk in chunks:
        assert chunk.features.schema == FEATURE_SCHEMA
        assert chunk.rejected.schema == REJECTED_SCHEMA
    whole = FeatureBatch(
        pa.concat_tables([chunk.features for chunk in chunks]),
        pa.concat_tables([chunk.rejected for chunk in chunks]),
    )
    rejected = whole.rejected.to_pylist()
    assert {one["reason"] for one in rejected} <= set(REASONS)
    assert len({(one["source"], one["record"]) for one in rejected}) == len(rejected), "a record is rejected once"
    return whole


def reasons(fetched: FeatureBatch) -> dict[str, str]:
    return {one["record"]: one["reason"] for one in fetched.rejected.to_pylist()}


def details(fetched: FeatureBatch) -> dict[str, str]:
    return {one["record"]: one["detail"] for one in fetched.rejected.to_pylist()}


@pytest.mark.parametrize("end", ENDS)
def test_every_format_gives_the_same(tmp_path: Path, end: str) -> None:
    path = write(tmp_path / f"features.{end}", [row(1), row(2, tempo=99.5), row(3, key=-1)])
    fetched = fetch(path)
    assert fetched.rejected.num_rows == 0
    expected = [
        {"track_uri": uri(number), **{name: float(value) for name, value in VALUES.items()}, **changes}
        for number, changes in ((1, {}), (2, {"tempo": 99.5}), (3, {"key": -1.0}))
    ]
    assert fetched.features.drop_columns("source").to_pylist() == expected
    assert set(fetched.features["source"].to_pylist()) == {path.name}


@pytest.mark.parametrize("end", ["csv", "tsv.gz", "jsonl", "parquet"])
@pytest.mark.parametrize(
    "names",
    [
        {"track_id": "Track URI", "key": "KEY", "tempo": "Tempo"},
        {"track_id": "spotify-id", **{name: f"audio_features.{name}" for name in FEATURES}},
        {"track_id": "trackId", **{name: f"{name}_score" for name in FEATURES}},
        {"track_id": "id", "tempo": "tempo_bpm", "loudness": "spotify_loudness_dB"},
    ],
)
def test_common_names_of_columns(tmp_path: Path, end: str, names: dict[str, str]) -> None:
    fetched = fetch(write(tmp_path / f"f.{end}", [row(1), row(2)], names))
    assert fetched.features["track_uri"].to_pylist() == [uri(1), uri(2)]
    assert fetched.features["tempo"].to_pylist() == [120.5, 120.5]
    assert fetched.features["loudness"].to_pylist() == [-8.5, -8.5]


@pytest.mark.parametrize("end", ["jsonl", "parquet"])
def test_features_in_an_inner_object(tmp_path: Path, end: str) -> None:
    nested = [{"track": {"id": track(n)}, "audio_features": VALUES} for n in (1, 2)]
    fetched = fetch(write(tmp_path / f"f.{end}", nested))
    assert fetched.features["track_uri"].to_pylist() == [uri(1), uri(2)]
    assert fetched.features["tempo"].to_pylist() == [120.5, 120.5]


def test_exact_names_win_over_similar_ones_and_uris_over_other_ids(tmp_path: Path) -> None:
    one = {**row(1), "id": "17", "track_uri": uri(4), "feature_tempo": 1.0}
    fetched = fetch(write(tmp_path / "f.csv", [one]))
    assert fetched.features["track_uri"].to_pylist() == [uri(4)]
    assert fetched.features["tempo"].to_pylist() == [120.5]


@pytest.mark.parametrize("end", ["csv", "jsonl", "parquet"])
def test_configured_columns_override_guesses(tmp_path: Path, end: str) -> None:
    one = {**row(1), "SongId": track(9), "Schwung": 0.75}
    path = write(tmp_path / f"f.{end}", [one])
    fetched = fetch(path, {"track_uri": "SongId", "energy": "Schwung"})
    assert fetched.features["track_uri"].to_pylist() == [uri(9)]
    assert fetched.features["energy"].to_pylist() == [0.75]
    with pytest.raises(InputError, match="no column for Elan; found: track_id, name"):
        fetch(path, {"energy": "Elan"})
    with pytest.raises(ConfigError, match="pace"):
        file_provider(path, {"pace": "tempo"})


@pytest.mark.parametrize("end", ["csv", "jsonl", "parquet"])
def test_each_rule_rejects_its_row_and_no_other(tmp_path: Path, end: str) -> None:
    wrong: list[tuple[dict[str, Any], str, str]] = [
        ({"track_id": "short"}, "feature_id_malformed", "track_uri: "),
        ({"track_id": None}, "feature_id_malformed", "found nothing"),
        ({"track_id": "spotify:artist:" + track(1)}, "feature_id_malformed", "track_uri: "),
        ({"track_id": track(1)[:-1] + "é"}, "feature_id_malformed", "track_uri: "),
        ({"energy": None}, "feature_missing", "energy: expected a number from 0 to 1, found "),
        ({"tempo": float("nan")}, "feature_not_a_number", "tempo: expected a number from 0 to 400, found "),
        ({"energy": 1.25}, "feature_out_of_range", "energy: expected 0 to 1, found 1.25"),
        ({"loudness": 30.0}, "feature_out_of_range", "loudness: expected -100 to 20, found 30"),
        ({"key": -2}, "feature_out_of_range", "key: expected -1 to 11, found -2"),
        ({"tempo": float("inf")}, "feature_out_of_range", "tempo: expected 0 to 400, found "),
        ({"tempo": -0.5, "energy": None}, "feature_missing", "energy: "),
        ({"tempo": 500.0, "energy": -1.0}, "feature_out_of_range", "energy: "),
        ({"tempo": None, "energy": float("nan")}, "feature_missing", "tempo: "),
        ({"track_id": "x", "energy": None}, "feature_id_malformed", "track_uri: "),
    ]
    rows = [row(0)]
    for number, (changes, _, _) in enumerate(wrong, start=1):
        rows += [row(number, **changes), row(1000 + number)]
    fetched = fetch(write(tmp_path / f"f.{end}", rows))
    assert fetched.features["track_uri"].to_pylist() == [uri(0)] + [uri(1001 + n) for n in range(len(wrong))]
    found = {one["record"]: one for one in fetched.rejected.to_pylist()}
    assert list(found) == [f"row {2 * n}" for n in range(1, len(wrong) + 1)]
    for one, (_, reason, detail) in zip(found.values(), wrong, strict=True):
        assert one["reason"] == reason
        # An empty CSV field is an empty string, not a null.
        assert detail in one["detail"] or (detail == "found nothing" and "found ''" in one["detail"])


@pytest.mark.parametrize("end", ["csv", "jsonl", "parquet"])
def test_strings_that_look_like_numbers_are_numbers(tmp_path: Path, end: str) -> None:
    texts = [
        "0.5",
        " 0.5 ",
        "5e-1",
        ".5",
        "+0.5",
        "",
        "NA",
        "null",
        "half",
        "0,5",
        "0x1",
        "1_0",
        "nan",
        "-inf",
    ]
    rows = [row(n, **{name: str(VALUES[name]) for name in FEATURES}) for n in range(len(texts))]
    for one, text in zip(rows, texts, strict=True):
        one["valence"] = text
    fetched = fetch(write(tmp_path / f"f.{end}", rows))
    assert fetched.features["valence"].to_pylist() == [0.5] * 5
    assert [one["reason"] for one in fetched.rejected.to_pylist()] == (
        ["feature_missing"] * 3 + ["feature_not_a_number"] * 5 + ["feature_out_of_range"]
    )
    assert details(fetched)["row 9"] == "valence: expected a number from 0 to 1, found 'half'"


def test_other_json_types_are_not_numbers(tmp_path: Path) -> None:
    rows = [row(1, energy=True), row(2, mode=[1]), row(3, mode={"a": 1}), row(4), row(5, key=10**30)]
    fetched = fetch(write(tmp_path / "f.jsonl", rows))
    assert fetched.features["track_uri"].to_pylist() == [uri(4)]
    assert list(reasons(fetched).values()) == ["feature_not_a_number"] * 3 + ["feature_out_of_range"]


def test_the_first_valid_row_of_a_track_is_kept(tmp_path: Path) -> None:
    write(tmp_path / "b.csv", [row(1, tempo=3.0), row(3)])
    write(tmp_path / "a.jsonl", [row(1, tempo=900.0), row(2), row(1, tempo=1.0), row(1, tempo=2.0)])
    fetched = fetch(tmp_path)
    tempo = dict(zip(fetched.features["track_uri"].to_pylist(), fetched.features["tempo"].to_pylist(), strict=True))
    assert tempo == {uri(2): 120.5, uri(1): 1.0, uri(3): 120.5}
    found = [(one["source"], one["record"], one["reason"]) for one in fetched.rejected.to_pylist()]
    assert found == [
        ("a.jsonl", "row 1", "feature_out_of_range"),
        ("a.jsonl", "row 4", "feature_duplicate"),
        ("b.csv", "row 1", "feature_duplicate"),
    ]


def test_duplicates_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "_BATCH_ROWS", 10)
    monkeypatch.setattr(files_module, "_BLOCK_BYTES", 2000)
    numbers = [*range(60), *range(30, 90), *range(95)]
    for end in ("csv", "jsonl", "parquet"):
        path = write(tmp_path / f"f.{end}", [row(n) for n in numbers])
        assert len(list(file_provider(path).fetch(iter([])))) > 5, "bounded chunks"
        fetched = fetch(path)
        assert sorted(fetched.features["track_uri"].to_pylist()) == [uri(n) for n in range(95)]
        assert Counter(reasons(fetched).values()) == {"feature_duplicate": len(numbers) - 95}


def test_csv_rows_of_another_length_are_rejected_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "_BLOCK_BYTES", 500)
    wrong = {1, 4, 5, 20, 37, 59}
    lines = [",".join(["id", *FEATURES])]
    for n in range(60):
        lines.append(",".join([track(n), *(str(VALUES[name]) for name in FEATURES)]) + (",more" if n in wrong else ""))
    lines[10] = lines[10].replace("120.5", "quick")
    (tmp_path / "f.csv").write_text("\n".join(lines) + "\n")
    fetched = fetch(tmp_path / "f.csv")
    assert fetched.features.num_rows == 60 - len(wrong) - 1
    assert {r for r, why in reasons(fetched).items() if why == "features_unreadable"} == {f"row {n + 1}" for n in wrong}
    assert reasons(fetched)["row 10"] == "feature_not_a_number"
    assert details(fetched)["row 60"] == "expected a row of 12 columns, found 13"


def test_json_lines_that_are_not_objects_are_rejected_by_line(tmp_path: Path) -> None:
    lines = [json.dumps(row(1)), "", "{", "[1]", '"text"', json.dumps(row(2))]
    (tmp_path / "f.jsonl").write_text("\n".join(lines))
    fetched = fetch(tmp_path / "f.jsonl")
    assert fetched.features.num_rows == 2
    assert reasons(fetched) == dict.fromkeys(["row 3", "row 4", "row 5"], "features_unreadable")


def gz_cut(good: Path, bad: Path) -> None:
    content = gzip.compress(good.read_bytes() * 50)
    bad.with_suffix(".csv.gz").write_bytes(content[: len(content) // 2])


def gz_damaged(good: Path, bad: Path) -> None:
    content = bytearray(gzip.compress(os.urandom(1000).hex().encode()))
    content[len(content) // 2] ^= 0xFF
    bad.with_suffix(".csv.gz").write_bytes(content)


def parquet_cut(good: Path, bad: Path) -> None:
    whole = write(good.with_name("whole.parquet"), [row(1)])
    bad.with_suffix(".parquet").write_bytes(whole.read_bytes()[:-20])
    whole.unlink()


BROKEN: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "gzip cut": (gz_cut, "cannot be read"),
    "gzip damaged": (gz_damaged, "cannot be read"),
    "parquet cut": (parquet_cut, "cannot be read"),
    "empty": (lambda good, bad: bad.with_suffix(".csv").write_bytes(b""), "empty"),
    "empty gzip": (lambda good, bad: bad.with_suffix(".csv.gz").write_bytes(gzip.compress(b"")), "empty"),
    "blank": (lambda good, bad: bad.with_suffix(".jsonl").write_bytes(b" \n\n"), "empty"),
    "latin-1": (
        lambda good, bad: bad.with_suffix(".csv").write_bytes(good.read_bytes() + "é\n".encode("latin-1")),
        "expected UTF-8, found the byte 0xE9 at position 322 (line 6); if it is from Windows: "
        "iconv -f WINDOWS-1252 -t UTF-8 broken.csv > utf8-broken.csv",
    ),
    "utf-16": (
        lambda good, bad: bad.with_suffix(".tsv").write_text(good.read_text(), "utf-16"),
        "expected UTF-8, found UTF-16 (byte order mark); iconv -f UTF-16 -t UTF-8 broken.tsv > utf8-broken.tsv",
    ),
    "no tempo": (
        lambda good, bad: write(bad.with_suffix(".csv"), [{k: v for k, v in row(1).items() if k != "tempo"}]),
        "no column for tempo; found: track_id, name, danceability",
    ),
    "no id": (
        lambda good, bad: write(bad.with_suffix(".parquet"), [VALUES]),
        "no column for track ids; found: danceability",
    ),
    "two ids": (
        lambda good, bad: write(bad.with_suffix(".csv"), [{**row(1), "Track-ID": track(2)}]),
        "expected one column for track_uri, found 2: track_id, Track-ID; name one of them",
    ),
    "an array": (
        lambda good, bad: bad.with_suffix(".json").write_text("[\n{}]"),
        "found an array; convert it: jq -c '.[]' broken.json > features.jsonl",
    ),
    "lists": (
        lambda good, bad: write(bad.with_suffix(".parquet"), [row(1, tempo=[1.0])]),
        "column tempo: expected numbers, found lists",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_rejected_and_the_others_are_read(tmp_path: Path, kind: str) -> None:
    good = write(tmp_path / "z_good.csv", [row(1), row(2)])
    make, detail = BROKEN[kind]
    make(good, tmp_path / "broken")
    fetched = fetch(tmp_path)
    assert fetched.features["track_uri"].to_pylist() == [uri(1), uri(2)]
    (rejected,) = fetched.rejected.to_pylist()
    assert (rejected["record"], rejected["reason"]) == ("file", "features_unreadable")
    assert rejected["source"].startswith("broken.")
    assert detail in rejected["detail"]


def test_an_input_error_follows_the_rejections_if_no_file_is_usable(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    (tmp_path / "b.csv").write_text("")
    chunks = file_provider(tmp_path).fetch(iter([]))
    assert [reasons(next(chunks)), reasons(next(chunks))] == [{"file": "features_unreadable"}] * 2
    with pytest.raises(InputError, match=r"none of its 2 file.*found: x, y"):
        next(chunks)


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("no table")
    with pytest.raises(InputError, match="no file of audio features"):
        fetch(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        fetch(tmp_path / "none.csv")
    with pytest.raises(InputError, match=r"readme\.txt is not a table by its name"):
        fetch(tmp_path / "readme.txt")
    with pytest.raises(ConfigError, match=r"raw\.features"):
        provider(load_config("local", ["raw.features=null"]))


def test_csv_with_only_malformed_rows(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text(",".join(["id", *FEATURES]) + "\n1,2\n3\n")
    fetched = fetch(tmp_path / "f.csv")
    assert reasons(fetched) == dict.fromkeys(["row 1", "row 2"], "features_unreadable")
    assert fetched.features.num_rows == 0


@pytest.mark.parametrize("block", [4000, 8 << 20])
def test_an_unclosed_quote_is_reported_with_the_lines_it_swallows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(files_module, "_BLOCK_BYTES", block)
    path = write(tmp_path / "f.csv", [row(n, name="x") for n in range(100)])
    lines = path.read_bytes().split(b"\r\n")
    lines[50] = b'"' + lines[50]
    path.write_bytes(b"\r\n".join(lines))
    fetched = fetch(path)
    assert fetched.features.num_rows == 49
    assert reasons(fetched) == {"row 50": "features_unreadable"}
    assert "found 1 in 51 lines; is there a quote" in details(fetched)["row 50"]


def test_rows_before_a_broken_part_are_kept(tmp_path: Path) -> None:
    write(tmp_path / "f.parquet", [row(1)])
    table = pa.Table.from_pylist([row(n) for n in range(200)])
    pq.write_table(table, tmp_path / "g.parquet", row_group_size=100, compression="none", use_dictionary=False)
    place = pq.ParquetFile(tmp_path / "g.parquet").metadata.row_group(1).column(3).data_page_offset
    content = bytearray((tmp_path / "g.parquet").read_bytes())
    content[place : place + 20] = b"\xff" * 20
    (tmp_path / "g.parquet").write_bytes(content)
    fetched = fetch(tmp_path)
    assert 1 <= fetched.features.num_rows <= 101
    (rejected,) = [one for one in fetched.rejected.to_pylist() if one["record"] == "file"]
    assert rejected["source"] == "g.parquet"
    taken = fetched.features["source"].to_pylist().count("g.parquet")
    assert f"before that, {taken} tracks were read" in rejected["detail"]


def test_a_header_alone_is_a_table_without_rows(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text(",".join(["id", *FEATURES]) + "\n")
    fetched = [(c.features.num_rows, c.rejected.num_rows) for c in file_provider(tmp_path / "f.csv").fetch(iter([]))]
    assert fetched in ([], [(0, 0)])


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"\xef\xbb\xbf" + content,
        lambda content: content.replace(b"\r\n", b"\n"),
        lambda content: content.rstrip(b"\r\n"),
        lambda content: (
            content.replace(b"name", b"unused")
            .replace(b"danceability", b"unused,danceability", 1)
            .replace(b'lines"', b'lines",0')
        ),
        lambda content: content.replace(b",", b";"),
    ],
    ids=["byte order mark", "unix lines", "no last line end", "two columns of one name unused", "semicolons"],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_csv_variants(tmp_path: Path, change: Callable[[bytes], bytes], zipped: bool) -> None:
    path = write(tmp_path / "f.csv", [row(1), row(2)])
    content = change(path.read_bytes())
    # Compression is detected by the first bytes, not by the name.
    path.write_bytes(gzip.compress(content[:300]) + gzip.compress(content[300:]) if zipped else content)
    fetched = fetch(path)
    assert fetched.features["track_uri"].to_pylist() == [uri(1), uri(2)]
    assert fetched.rejected.num_rows == 0


@pytest.mark.parametrize("kind", [pa.float32(), pa.decimal128(10, 4), pa.dictionary(pa.int8(), pa.string())])
def test_parquet_of_other_types(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.Table.from_pylist([row(1), row(2)])
    place = table.column_names.index("energy")
    energy = pa.array(["0.625", "0.625"]).cast(kind) if pa.types.is_dictionary(kind) else table["energy"].cast(kind)
    table = table.set_column(place, "energy", energy)
    place = table.column_names.index("track_id")
    table = table.set_column(place, "track_id", table["track_id"].cast(pa.large_string()))
    pq.write_table(table, tmp_path / "f.parquet")
    fetched = fetch(tmp_path / "f.parquet")
    assert fetched.features["energy"].to_pylist() == [0.625, 0.625]
    assert fetched.features["track_uri"].to_pylist() == [uri(1), uri(2)]


def test_globs_and_files_of_the_same_name(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "f.csv", [row(1), row(2)])
    fetched = fetch(str(tmp_path / "*" / "f.csv"))
    assert set(fetched.features["source"].to_pylist()) == {str(tmp_path / "a" / "f.csv")}
    assert set(fetched.rejected["source"].to_pylist()) == {str(tmp_path / "b" / "f.csv")}


@pytest.mark.parametrize("end", ["csv", "csv.gz", "jsonl", "parquet"])
def test_objects_in_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    content = write(tmp_path / f"f.{end}", [row(1), row(2, tempo=-1)]).read_bytes()
    found = SourceFile(f"s3://bucket/f.{end}", f"f.{end}", len(content), 0, "etag")
    monkeypatch.setattr(sources_module, "list_files", lambda url, pattern, s3: [found])
    monkeypatch.setattr(files_module, "read_bytes", lambda url, s3: {found.url: content}[url])
    fetched = fetch("s3://bucket/f")
    assert fetched.features["track_uri"].to_pylist() == [uri(1)]
    assert reasons(fetched) == {"row 2": "feature_out_of_range"}


def test_the_payload_is_the_truncated_row(tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", [row(1, energy="é" * 500)])
    for bound in (0, 1, 100, 101, 5000):
        (chunk,) = file_provider(path, payload_bytes=bound).fetch(iter([]))
        (payload,) = chunk.rejected["payload"].to_pylist()
        assert bound - 1 <= len(payload.encode()) <= bound or bound == 5000
    assert json.loads(payload)["energy"] == "é" * 500
    assert len(details(fetch(path))["row 1"]) < 200


def test_the_fingerprint_changes_with_the_files_and_the_configured_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", [row(1)])
    before = file_provider(tmp_path).fingerprint()
    assert file_provider(tmp_path).fingerprint() == before
    assert file_provider(tmp_path, {"energy": "x"}).fingerprint() != before
    os.utime(path, ns=(1, 1))
    touched = file_provider(tmp_path).fingerprint()
    assert touched != before
    write(tmp_path / "g.csv", [row(1)])
    assert file_provider(tmp_path).fingerprint() != touched


def test_the_registry_creates_providers_from_the_settings(tmp_path: Path) -> None:
    write(tmp_path / "f.csv", [row(1)], {"energy": "Schwung"})
    made = provider(load_config("local", [f"raw.features={tmp_path}", "features.columns.energy=Schwung"]))
    assert (made.name, made.is_service) == ("file", False)

    def never() -> Any:
        raise AssertionError("a provider of files does not ask what is wanted")
        yield

    assert [chunk.features.num_rows for chunk in made.fetch(never())] == [1]


@given(st.lists(st.text(DIGITS, min_size=22, max_size=22), max_size=20), st.data())
@settings(max_examples=50, deadline=None)
def test_ids_survive_every_way_of_writing_them(ids: list[str], data: st.DataObject) -> None:
    forms = [
        "{}",
        "spotify:track:{}",
        "https://open.spotify.com/track/{}",
        "http://open.spotify.com/track/{}?si=0a",
        "open.spotify.com/intl-de/track/{}",
        " {} ",
    ]
    written = [data.draw(st.sampled_from(forms)).format(one) for one in ids]
    once = normalise_ids(pa.array(written, pa.string()))
    assert once.to_pylist() == ids
    assert normalise_ids(once).to_pylist() == ids


@given(st.text(max_size=40))
@settings(max_examples=30, deadline=None)
def test_strings_without_22_digits_are_not_ids(text: str) -> None:
    (found,) = normalise_ids(pa.array([text], pa.string())).to_pylist()
    assert found is None or (len(found) == 22 and found in text and found.isascii() and found.isalnum())
    assert normalise_ids(pa.array([track(1) + "0", track(1)[1:], "spotify:album:" + track(1)])).null_count == 3


@given(st.lists(st.lists(st.integers(0, 300), max_size=60), max_size=12))
@settings(max_examples=50, deadline=None)
def test_a_set_of_tracks_is_a_set(chunks: list[list[int]]) -> None:
    seen: set[int] = set()
    tracks = TrackSet()
    for chunk in chunks:
        expected = []
        for number in chunk:
            expected.append(number not in seen)
            seen.add(number)
        assert tracks.add(pa.array([track(n) for n in chunk], pa.string())).tolist() == expected


def test_hashes_of_tracks_do_not_collide() -> None:
    generator = np.random.default_rng(0)
    ids = ["".join(generator.choice(list(DIGITS), 22)) for _ in range(200)]
    near = [one[:place] + sign + one[place + 1 :] for one in ids for place in range(22) for sign in DIGITS]
    assert TrackSet().add(pa.array(near, pa.string())).sum() == len(set(near))


@given(st.text(max_size=30), st.integers(0, 40))
def test_a_truncated_payload_is_a_prefix_within_its_bound(payload: str, size: int) -> None:
    cut = bounded(payload, size)
    assert cut is not None
    assert payload.startswith(cut)
    assert len(cut.encode()) <= size
    assert cut == payload or len(cut.encode()) > size - 4


def test_every_feature_has_a_range() -> None:
    assert set(RANGES) == set(FEATURES)
    assert all(low < high for low, high in RANGES.values())
