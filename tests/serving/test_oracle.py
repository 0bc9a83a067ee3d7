"""The same bytes to MLflow's own scoring server and to ours: the same rows, and better answers where it is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving.oracle import mlflow_server, save_model
from tests.serving.process import Running, scorer
from tests.unit.serving.bundles import URIS, small_bundle

ROWS: list[dict[str, Any]] = [
    {"tracks": URIS[3:10], "title": "Rock"},
    {"tracks": [URIS[40]], "title": "summer"},
    {"tracks": [*URIS[:30], "nobody"], "title": "Rap \U0001f918"},
]
COLUMNS = {name: [row[name] for row in ROWS] for name in ("tracks", "title")}
SPLIT: dict[str, Any] = {"columns": ["tracks", "title"], "data": [[row["tracks"], row["title"]] for row in ROWS]}
TITLELESS = {"columns": ["tracks"], "data": [[row["tracks"]] for row in ROWS]}

ACCEPTED: dict[str, dict[str, Any]] = {
    "records": {"dataframe_records": ROWS},
    "split": {"dataframe_split": SPLIT},
    "split with an index": {"dataframe_split": {**SPLIT, "index": [5, 6, 7]}},
    "split, other order": {
        "dataframe_split": {"columns": ["title", "tracks"], "data": [r[::-1] for r in SPLIT["data"]]}
    },
    "inputs": {"inputs": ROWS},
    "inputs of one": {"inputs": ROWS[0], "params": {"k": 11}},
    "inputs of one without a title": {"inputs": {"tracks": URIS[:4]}},
    "parameters": {"dataframe_records": ROWS, "params": {"k": 7}},
    "split without titles": {"dataframe_split": TITLELESS, "params": {"k": 9}},
    "records without titles": {"dataframe_records": [{"tracks": row["tracks"]} for row in ROWS]},
    "no parameters": {"dataframe_records": ROWS[:1], "params": None},
    "empty parameters": {"dataframe_records": ROWS[:1], "params": {}},
}
"""What MLflow's server answers with 200."""

REFUSED: dict[str, bytes] = {
    "no shape": b"{}",
    "two shapes": json.dumps({"dataframe_records": ROWS, "instances": ROWS}).encode(),
    "not JSON": b"{",
    "a list": b"[]",
    "not UTF-8": b"\xff",
    "no tracks": json.dumps({"dataframe_records": [{"title": "x"}]}).encode(),
    "k is text": json.dumps({"dataframe_records": ROWS, "params": {"k": "many"}}).encode(),
}
"""What both refuse with 400."""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Running]]:
    # a model with few loops, which are compiled for each registered version anew
    bundle = small_bundle("title")
    folder = tmp_path_factory.mktemp("oracle")
    model = save_model(bundle, folder)
    with scorer(bundle) as ours, mlflow_server(model, folder / "log") as theirs:
        # it compiles its loops with the first request
        assert theirs.post("/invocations", json.dumps(ACCEPTED["records"]).encode(), 280)[0] == 200
        yield ours, theirs


@pytest.mark.parametrize("name", ACCEPTED)
def test_the_same_bytes_have_the_same_rows(servers: tuple[Running, Running], name: str) -> None:
    body = json.dumps(ACCEPTED[name]).encode()
    (our_status, ours), (their_status, theirs) = (server.post("/invocations", body) for server in servers)
    assert (our_status, their_status) == (200, 200), theirs[:2000]
    assert json.loads(ours) == json.loads(theirs)
    assert json.loads(ours)["predictions"]


@pytest.mark.parametrize("name", REFUSED)
def test_the_same_bytes_are_refused(servers: tuple[Running, Running], name: str) -> None:
    (our_status, ours), (their_status, theirs) = (server.post("/invocations", REFUSED[name]) for server in servers)
    assert (our_status, their_status) == (400, 400), theirs[:500]
    # the same fields; MLflow's may have more
    assert set(json.loads(ours)) <= set(json.loads(theirs))


def test_probes_are_the_same(servers: tuple[Running, Running]) -> None:
    for path in ("/ping", "/health"):
        assert [server.get(path) for server in servers] == [b"\n", b"\n"]
    for path in ("/version", "/ping", "/invocations", "/nothing"):
        statuses = [server.status(path) for server in servers]
        assert statuses[0] == statuses[1], path


def test_we_are_better_where_it_is_wrong(servers: tuple[Running, Running]) -> None:
    """Its faults, so that a new version of MLflow without them is noticed here."""
    ours, theirs = servers
    instances = json.dumps({"instances": ROWS}).encode()
    assert theirs.post("/invocations", instances)[0] == 400
    status, answer = ours.post("/invocations", instances)
    assert status == 200
    assert answer == ours.post("/invocations", json.dumps({"dataframe_records": ROWS}).encode())[1]
    # mlflow#5469
    columns = json.dumps({"inputs": COLUMNS}).encode()
    assert theirs.post("/invocations", columns)[0] == 400
    assert ours.post("/invocations", columns)[1] == answer
    unknown = json.dumps({"dataframe_records": ROWS, "params": {"K": 3}}).encode()
    assert theirs.post("/invocations", unknown)[0] == 200
    assert ours.post("/invocations", unknown)[0] == 400
    secret = json.dumps({"dataframe_records": [{"tracks": "do-not-repeat-me"}]}).encode()
    assert b"do-not-repeat-me" not in ours.post("/invocations", secret)[1]

    def untyped(server: Running) -> int:
        connection = server.connection()
        connection.putrequest("POST", "/invocations")
        connection.putheader("Content-Length", "2")
        connection.endheaders(b"{}")
        return connection.getresponse().status

    assert (untyped(theirs), untyped(ours)) == (500, 415)
