"""The application: protocols, rows, limits, errors."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from typing import Any

import orjson
import pytest
from openapi_spec_validator import validate

from encore.arrays.ragged import Ragged
from encore.errors import ConfigError, EncoreError, InputError
from encore.recommenders.base import Queries, recommend
from encore.serving.app import App
from encore.serving.metrics import Metrics
from encore.serving.models import Folder, Resolved, Serving
from encore.serving.routes import ROUTES
from encore.serving.scorer import Playlist, Scorer
from encore.serving.settings import Settings
from tests.unit.recommenders.cases import TRAIN, fitted
from tests.unit.serving.bundles import URIS, small_bundle
from tests.unit.serving.client import JSON, ask, asked, new_app, serving, shared_serving, with_settings

SEEDS = [3, 17, 30]
TRACKS = [URIS[i] for i in SEEDS]
SECRET = "do-not-repeat-me"

MLFLOW = {
    "instances": [{"tracks": TRACKS, "title": "Rock"}],
    "dataframe_records": [{"tracks": TRACKS, "title": "Rock"}],
    "dataframe_split": {"columns": ["tracks", "title"], "data": [[TRACKS, "Rock"]]},
    "inputs": {"tracks": [TRACKS], "title": ["Rock"]},
}
INPUTS: list[Any] = [{"tracks": TRACKS, "title": "Rock"}, [{"tracks": TRACKS, "title": "Rock"}], MLFLOW["inputs"]]
V2_TRACKS = {"name": "tracks", "datatype": "BYTES", "shape": [1], "data": [orjson.dumps(TRACKS).decode()]}
V2_TITLE = {"name": "title", "datatype": "BYTES", "shape": [1], "data": ["Rock"]}


def expected(k: int, model: str = "ranker", title: str | None = "Rock") -> dict[str, Any]:
    """What the batch recommends."""
    found = recommend(fitted(model), Queries.of(Ragged.from_lists([SEEDS]), titles=[title]), k)
    return {"tracks": [URIS[i] for i in found.ids[0]], "scores": found.scores.tolist()}


@pytest.fixture(scope="module")
def app() -> App:
    return new_app()


# --- rows


@pytest.mark.parametrize("shape", MLFLOW)
def test_invocations_answer_the_rows_of_the_batch(app: App, shape: str) -> None:
    found = ask(app, "POST", "/invocations", {shape: MLFLOW[shape], "params": {"k": 7}})
    assert found.status == 200
    assert found.json() == {"predictions": [expected(7)]}
    assert found.headers["x-encore-model"] == "ranker"
    assert found.headers["x-encore-role"] == "champion"
    assert found.headers["server-timing"].startswith("score;dur=")


@pytest.mark.parametrize("inputs", INPUTS)
def test_inputs_are_one_playlist_or_many(app: App, inputs: Any) -> None:
    """MLflow's server reads an object of plain values as one playlist; that was refused."""
    assert ask(app, "POST", "/invocations", {"inputs": inputs, "params": {"k": 7}}).json()["predictions"] == [
        expected(7)
    ]
    assert len(ask(app, "POST", "/invocations", {"inputs": {"tracks": []}}).json()["predictions"]) == 1


def test_the_rest_api_answers_the_rows_of_the_batch(app: App) -> None:
    found = ask(app, "POST", "/api/recommend", {"tracks": [*TRACKS, "nobody"], "title": "Rock", "k": 7}).json()
    assert [row["uri"] for row in found["recommendations"]] == expected(7)["tracks"]
    assert [row["score"] for row in found["recommendations"]] == expected(7)["scores"]
    assert [row["rank"] for row in found["recommendations"]] == list(range(1, 8))
    assert {row["reason"] for row in found["recommendations"]} == {None}
    assert (found["model"], found["role"], found["unknown"]) == ("ranker", "champion", 1)
    first = found["recommendations"][0]
    i = URIS.index(first["uri"])
    assert first["name"] == f"Track {i}"


def test_a_part_of_the_model_can_be_asked(app: App) -> None:
    found = ask(app, "POST", "/api/recommend", {"tracks": TRACKS, "k": 5, "model": "ials"}).json()
    assert [row["uri"] for row in found["recommendations"]] == expected(5, "ials", None)["tracks"]
    assert found["model"] == "ials"


def test_a_playlist_of_the_training_data_is_not_learned_from(app: App) -> None:
    """`pid` names the playlist itself, whose tracks would otherwise be recommended."""
    pid, seeds = int(TRAIN.pids[0]), TRAIN.lists[0][:2]
    body = {"tracks": [URIS[i] for i in seeds], "k": 10, "model": "adjacency"}
    found = {}
    for given in (pid, None):
        answer = ask(app, "POST", "/api/recommend", {**body, "pid": given}).json()
        found[given] = [(row["uri"], row["score"]) for row in answer["recommendations"]]
    queries = Queries.of(Ragged.from_lists([seeds.tolist()]), pids=TRAIN.pids[:1])
    batch = recommend(fitted("adjacency"), queries, 10)
    assert found[pid] == [(URIS[i], score) for i, score in zip(batch.ids[0], batch.scores.tolist(), strict=True)]
    assert found[pid] != found[None]


def test_reasons_are_tracks_of_the_playlist_or_its_title(app: App) -> None:
    found = ask(app, "POST", "/api/recommend", {"tracks": TRACKS, "title": "Rock", "k": 20, "explain": True}).json()
    reasons = [row["reason"] for row in found["recommendations"] if row["reason"] is not None]
    assert reasons
    assert {reason["kind"] for reason in reasons} <= {"track", "title"}
    assert {reason["uri"] for reason in reasons if reason["kind"] == "track"} <= set(TRACKS)


def test_v1_answers_the_rows_of_the_batch(app: App) -> None:
    body = {"instances": MLFLOW["instances"], "parameters": {"k": 7}}
    assert ask(app, "POST", "/v1/models/ranker:predict", body).json() == {"predictions": [expected(7)]}
    assert ask(app, "GET", "/v1/models").json()["models"] == [
        "adjacency",
        "artist",
        "fusion",
        "ials",
        "ranker",
        "title",
    ]
    assert ask(app, "GET", "/v1/models/fusion").json() == {"name": "fusion", "ready": True}
    assert ask(app, "GET", "/v1/models/fusion:predict").status == 405
    assert ask(app, "POST", "/v1/models/other:predict", body).status == 404


def v2_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The lists of an answer in V2, without what fills them up."""
    data = {output["name"]: output for output in found["outputs"]}
    n, m = data["tracks"]["shape"]
    assert data["scores"]["shape"] == [n, m]
    assert data["count"]["shape"] == [n]
    assert len(data["tracks"]["data"]) == n * m
    return [
        {name: data[name]["data"][i * m : i * m + count] for name in ("tracks", "scores")}
        for i, count in enumerate(data["count"]["data"])
    ]


@pytest.mark.parametrize(
    "tensor",
    [
        V2_TRACKS,
        {**V2_TRACKS, "shape": [1, 1]},
        {**V2_TRACKS, "shape": [1, 4], "data": [*TRACKS, ""]},
        {**V2_TRACKS, "shape": [1, 4], "data": [[*TRACKS, ""]], "parameters": {"content_type": "str"}},
    ],
)
def test_v2_answers_the_rows_of_the_batch(app: App, tensor: dict[str, Any]) -> None:
    body = {"id": "42", "inputs": [tensor, V2_TITLE], "parameters": {"k": 7}}
    version = shared_serving().pick(b"")
    assert version is not None
    for path in ("/v2/models/ranker/infer", f"/v2/models/ranker/versions/{version.version}/infer"):
        found = ask(app, "POST", path, body)
        assert found.status == 200, found.body
        assert v2_rows(found.json()) == [expected(7)]
        assert found.json()["id"] == "42"
        assert found.json()["model_version"] == version.version


def test_v2_describes_the_model(app: App) -> None:
    assert ask(app, "GET", "/v2").json()["name"] == "encore"
    assert ask(app, "GET", "/v2/health/live").json() == {"live": True}
    assert ask(app, "GET", "/v2/health/ready").json() == {"ready": True}
    found = ask(app, "GET", "/v2/models/ranker").json()
    assert {one["name"]: one["datatype"] for one in found["inputs"]} == {"tracks": "BYTES", "title": "BYTES"}
    (version,) = found["versions"]
    assert ask(app, "GET", f"/v2/models/ranker/versions/{version}/ready").json() == {"name": "ranker", "ready": True}
    assert ask(app, "GET", "/v2/models/ranker/versions/0").status == 404
    only = {"inputs": [V2_TRACKS], "outputs": [{"name": "count"}]}
    (output,) = ask(app, "POST", "/v2/models/ranker/infer", only).json()["outputs"]
    assert output["name"] == "count"


# --- what others reported about such servers


@pytest.mark.parametrize("path", [route.template for route in ROUTES if route.body])
@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"instances": [', b"NaN", b"[1]", b'"text"', b"null", b"1"])
def test_malformed_json_is_400(app: App, path: str, body: bytes) -> None:
    """mlflow#4897, mlflow#3354: it was 500."""
    found = ask(app, "POST", path.format(model="ranker", version=shared_serving().loaded()[0].version), body)
    assert found.status == 400
    assert found.json()["error_code"] in ("MALFORMED_REQUEST", "INVALID_PARAMETER_VALUE")


def test_a_body_that_is_too_large_is_413_as_json() -> None:
    """mlflow#6825: the limit was not documented."""
    app = new_app(with_settings(max_body_bytes=1000))
    fits = b'{"instances": []}'.ljust(1000)
    assert ask(app, "POST", "/invocations", fits).status == 200
    too_large = ask(app, "POST", "/invocations", fits + b" ")
    assert (too_large.status, too_large.headers["connection"]) == (413, "close")
    assert too_large.json()["message"] == "body: expected at most 1000 bytes, found more"
    # by its header alone, before it is sent
    huge = {**JSON, "content-length": "1000000000"}
    assert ask(app, "POST", "/invocations", b"", huge).status == 413
    parts = asyncio.run(asked(app, "POST", "/invocations", [b" " * 400] * 3, JSON))
    assert parts.status == 413


def test_ragged_playlists_give_a_row_each(app: App) -> None:
    """mlflow#5469: lists of different lengths in a call."""
    rows: list[list[str]] = [[], [URIS[1]], TRACKS, URIS[:40]]
    for body in (
        {"instances": [{"tracks": row} for row in rows]},
        {"inputs": {"tracks": rows}},
        {"dataframe_split": {"columns": ["tracks"], "data": [[row] for row in rows]}},
    ):
        found = ask(app, "POST", "/invocations", body).json()["predictions"]
        alone = [
            ask(app, "POST", "/invocations", {"inputs": {"tracks": [row]}}).json()["predictions"][0] for row in rows
        ]
        assert found == alone
    v2 = {"inputs": [{**V2_TRACKS, "shape": [4], "data": [orjson.dumps(row).decode() for row in rows]}]}
    assert v2_rows(ask(app, "POST", "/v2/models/ranker/infer", v2).json()) == found


def test_nan_is_never_in_json(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """fastapi#459: it is no JSON, neither in a request nor in an answer."""
    assert ask(app, "POST", "/invocations", b'{"instances": [], "params": {"k": NaN}}').status == 400
    assert orjson.dumps({"score": float("nan")}) == b'{"score":null}'
    found = ask(app, "POST", "/invocations", {"instances": [{"tracks": []}, {"tracks": ["nobody"]}]})
    assert b"NaN" not in found.body
    assert b"null" not in found.body


def test_without_a_model_the_scorer_is_not_ready() -> None:
    """MLServer#2056, kserve#2775: no model, or a failed load, is not ready; a call is 503, not 500."""
    app = new_app(own=Serving(Folder(Path("/nowhere")), Metrics()))
    with pytest.raises(InputError):
        app.serving.follow()
    for path in ("/ping", "/health", "/v2/health/ready", "/v1/models/ranker", "/v2/models/ranker/ready", "/api/models"):
        found = ask(app, "GET", path)
        assert (found.status, found.headers["retry-after"]) == (503, "1"), path
    assert ask(app, "GET", "/ping").body == b"\n"
    assert ask(app, "GET", "/v2/health/live").status == 200
    assert ask(app, "GET", "/").status == 200
    for path, body in (
        ("/invocations", {"instances": MLFLOW["instances"]}),
        ("/api/recommend", {"tracks": TRACKS}),
        ("/v1/models/ranker:predict", {"instances": MLFLOW["instances"]}),
        ("/v2/models/ranker/infer", {"inputs": [V2_TRACKS]}),
    ):
        assert ask(app, "POST", path, body).status == 503, path


def test_v2_without_an_id_is_answered(app: App) -> None:
    """kserve#3094."""
    found = ask(app, "POST", "/v2/models/ranker/infer", {"inputs": [V2_TRACKS]})
    assert found.status == 200
    assert "id" not in found.json()


def test_v2_errors_have_the_field_that_clients_read(app: App) -> None:
    for path in ("/v2/models/ranker/infer", "/v1/models/ranker:predict"):
        found = ask(app, "POST", path, {"inputs": []})
        assert found.status == 400
        assert found.json()["error"] == found.json()["message"]
    assert "error" not in ask(app, "POST", "/api/recommend", {}).json()


def test_v2_takes_the_name_that_the_client_of_kserve_repeats(app: App) -> None:
    body = {"id": "a", "model_name": "ranker", "inputs": [V2_TRACKS]}
    assert ask(app, "POST", "/v2/models/ranker/infer", body).status == 200


def test_v2_outputs_of_strings_are_bytes(app: App) -> None:
    """kserve#6204."""
    found = ask(app, "POST", "/v2/models/ranker/infer", {"inputs": [V2_TRACKS]}).json()
    assert {output["name"]: output["datatype"] for output in found["outputs"]} == {
        "tracks": "BYTES",
        "scores": "FP32",
        "count": "INT32",
    }


@pytest.mark.parametrize("data", [TRACKS[0], SECRET, orjson.dumps(TRACKS).decode()])
def test_v2_bytes_as_a_bare_string_are_400(app: App, data: str) -> None:
    """kserve#2746: it was an error that nobody understood."""
    found = ask(app, "POST", "/v2/models/ranker/infer", {"inputs": [{**V2_TRACKS, "data": data}]})
    assert found.status == 400
    assert found.json()["message"] == "inputs.tracks.data: expected a list, found a string"


class Blocking:
    """A scorer that answers when it is told to."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self.go = threading.Event()
        self.began = threading.Semaphore(0)
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scorer, name)

    def recommend(self, playlists: list[Playlist], k: int, model: str | None = None) -> Any:
        self.asked += 1
        self.began.release()
        self.go.wait(10)
        return self._scorer.recommend(playlists, k, model)


def blocking() -> tuple[Serving, Blocking]:
    found = serving()
    assert found.champion is not None
    held = Blocking(found.champion.scorer)
    found.champion.scorer = held  # type: ignore[assignment]
    return found, held


def test_overload_is_a_fast_503_and_passes() -> None:
    """MLServer#1042: requests were queued without bound."""
    own, held = blocking()
    app = new_app(with_settings(threads=2, max_waiting=3, seconds=30), own)
    body = orjson.dumps({"instances": [{"tracks": TRACKS}]})

    async def flood() -> list[int]:
        tasks = [asyncio.create_task(asked(app, "POST", "/invocations", body, JSON)) for _ in range(20)]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        # those that are refused are answered while the others wait
        while len(done) < 15:
            await asyncio.sleep(0)
            done = {task for task in tasks if task.done()}
        assert {(task.result().status, task.result().headers["retry-after"]) for task in done} == {(503, "1")}
        assert (await asked(app, "GET", "/ping")).status == 200
        held.go.set()
        return sorted([(await task).status for task in tasks])

    assert asyncio.run(flood()) == [200] * 5 + [503] * 15
    assert ask(app, "POST", "/invocations", {"instances": [{"tracks": TRACKS}]}).status == 200


def test_a_request_whose_client_goes_away_waits_no_longer() -> None:
    """Its place is free at once, and no thread computes it."""
    own, held = blocking()
    app = new_app(with_settings(threads=1, max_waiting=2, seconds=30), own)
    body = orjson.dumps({"instances": [{"tracks": TRACKS}]})

    async def leave() -> tuple[list[int], int]:
        gone = asyncio.Event()
        first = asyncio.create_task(asked(app, "POST", "/invocations", body, JSON))
        while not held.began.acquire(blocking=False):
            await asyncio.sleep(0)
        leaving = [asyncio.create_task(asked(app, "POST", "/invocations", body, JSON, gone)) for _ in range(2)]
        await asyncio.sleep(0.05)
        refused = await asked(app, "POST", "/invocations", body, JSON)
        gone.set()
        left = [(await task).status for task in leaving]
        last = asyncio.create_task(asked(app, "POST", "/invocations", body, JSON))
        await asyncio.sleep(0.05)
        assert not first.done()
        assert not last.done()
        held.go.set()
        return [refused.status, *left, (await first).status, (await last).status], held.asked

    assert asyncio.run(leave()) == ([503, 499, 499, 200, 200], 2)
    text = ask(app, "GET", "/metrics").body.decode()
    assert 'encore_rejected_total{reason="disconnected"} 2.0' in text
    assert "encore_waiting 0.0" in text


def test_missing_content_type_is_415_not_500(app: App) -> None:
    for kind in ("", "text/csv", "application/x-www-form-urlencoded", "application/json; charset=latin-1"):
        found = ask(app, "POST", "/invocations", b"{}", {"content-type": kind})
        assert found.status == 415, kind
    body = orjson.dumps({"instances": []})
    for kind in ("application/json; charset=utf-8", 'Application/JSON; charset="UTF-8"'):
        assert ask(app, "POST", "/invocations", body, {"content-type": kind}).status == 200, kind
    assert ask(app, "POST", "/invocations", body, {"content-encoding": "gzip"}).status == 415


def test_unknown_parameters_are_refused(app: App) -> None:
    """MLflow's server ignores them, so that a typing error changes the answer without a word."""
    for body in (
        {"instances": [], "params": {"K": 3}},
        {"instances": [], "parameters": {"k": 3}},
        {"instances": [{"tracks": [], "Title": "x"}]},
        {"inputs": {"tracks": [], "k": 3}},
    ):
        assert ask(app, "POST", "/invocations", body).status == 400, body


def test_a_fault_of_the_model_is_500_without_a_trace(caplog: pytest.LogCaptureFixture) -> None:
    """MLflow's server makes it 400, with a stack trace."""
    own = serving()
    app = new_app(own=own)
    assert own.champion is not None

    def broken(*_: Any) -> Any:
        raise KeyError(SECRET)

    own.champion.scorer.recommend = broken  # type: ignore[method-assign, assignment]
    with caplog.at_level(logging.CRITICAL):
        found = ask(app, "POST", "/invocations", {"instances": [{"tracks": TRACKS}]})
    assert found.status == 500
    assert found.json() == {"error_code": "INTERNAL_ERROR", "message": "the request could not be answered"}


# --- limits


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"tracks": [1]}, "tracks[0]: expected a string, the URI or id of a track, found a number"),
        ({"tracks": None}, "tracks: expected a list, found null"),
        ({"tracks": ["a"] * 6}, "tracks: expected at most 5 tracks, found 6"),
        ({"tracks": [], "k": 0}, "k: expected a whole number from 1 to 9, found one outside of this range"),
        ({"tracks": [], "k": 10}, "k: expected a whole number from 1 to 9, found one outside of this range"),
        ({"tracks": [], "k": 10**30}, "k: expected a whole number from 1 to 9, found a number that is not whole"),
        ({"tracks": [], "k": True}, "k: expected a whole number from 1 to 9, found true or false"),
        ({"tracks": [], "k": "3"}, "k: expected a whole number from 1 to 9, found a string"),
        ({"tracks": [], "k": 2.5}, "k: expected a whole number from 1 to 9, found a number that is not whole"),
        ({"tracks": [], "title": 3}, "title: expected a string or null, found a number"),
        ({"tracks": [], "title": "x" * 1001}, "title: expected at most 1000 characters, found 1001"),
        ({"tracks": [], "model": SECRET}, "model: expected one of adjacency, artist, fusion, ials, ranker, title"),
        ({"tracks": [], "model": []}, "model: expected a string or null, found a list"),
        ({"tracks": [], "explain": 1}, "explain: expected true or false, found a number"),
        (
            {"tracks": [], "pid": -1},
            f"pid: expected a whole number from 0 to {2**63 - 1}, found one outside of this range",
        ),
        ({SECRET: 1}, "body: unknown field; known are: tracks, title, k, model, explain, pid"),
    ],
)
def test_limits_and_types_are_stated(body: dict[str, Any], message: str) -> None:
    content = orjson.dumps(body) if body.get("k") != 10**30 else b'{"tracks": [], "k": 1' + b"0" * 30 + b"}"
    found = ask(new_app(with_settings(max_seeds=5, max_k=9)), "POST", "/api/recommend", content)
    assert (found.status, found.json()) == (400, {"error_code": "INVALID_PARAMETER_VALUE", "message": message})


def test_too_many_playlists_are_400() -> None:
    app = new_app(with_settings(max_playlists=2))
    for shape, value in {
        "instances": [{"tracks": []}] * 3,
        "dataframe_records": [{"tracks": []}] * 3,
        "dataframe_split": {"columns": ["tracks"], "data": [[[]]] * 3},
        "inputs": {"tracks": [[]] * 3},
    }.items():
        found = ask(app, "POST", "/invocations", {shape: value})
        assert found.status == 400
        assert "expected at most 2 playlists, found 3" in found.json()["message"]
    v2 = {"inputs": [{**V2_TRACKS, "shape": [3], "data": ["[]"] * 3}]}
    assert ask(app, "POST", "/v2/models/ranker/infer", v2).status == 400
    v2 = {"inputs": [{**V2_TRACKS, "shape": [3, 0], "data": []}]}
    assert ask(app, "POST", "/v2/models/ranker/infer", v2).status == 400


def test_an_answer_that_takes_too_long_is_503() -> None:
    own, held = blocking()
    app = new_app(with_settings(threads=1, seconds=0.05), own)
    found = ask(app, "POST", "/invocations", {"instances": [{"tracks": TRACKS}]})
    held.go.set()
    assert (found.status, found.headers["retry-after"]) == (503, "1")


def test_a_body_that_does_not_arrive_is_408() -> None:
    app = new_app(with_settings(seconds=0.05))

    async def stalled() -> int:
        async def receive() -> dict[str, Any]:
            await asyncio.sleep(10)
            raise AssertionError

        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json"), (b"content-length", b"10")]
        scope = {"type": "http", "method": "POST", "path": "/invocations", "query_string": b"", "headers": headers}
        await app(scope, receive, send)
        return int(sent[0]["status"])

    assert asyncio.run(stalled()) == 408


def test_the_token_is_needed_except_for_probes_and_the_page() -> None:
    app = new_app(with_settings(token=SECRET))
    version = shared_serving().loaded()[0].version
    for route in ROUTES:
        path = route.template.format(model="ranker", version=version, pid="1")
        found = ask(app, route.method, path)
        if route.is_open:
            assert found.status == 200, path
            continue
        assert found.status == 401, path
        assert found.headers["www-authenticate"] == "Bearer"
        assert SECRET not in found.body.decode()
        for wrong in ("Bearer no", SECRET, f"bearer {SECRET}x"):
            assert ask(app, route.method, path, headers={"Authorization": wrong}).status == 401
        assert ask(app, route.method, path, headers={"Authorization": f"Bearer {SECRET}"}).status != 401


REPEATING: list[Any] = [
    {SECRET: SECRET},
    {"instances": SECRET},
    {"instances": [SECRET]},
    {"instances": [{SECRET: 1}]},
    {"instances": [{"tracks": SECRET}]},
    {"instances": [{"tracks": [], "title": [SECRET]}]},
    {"instances": [], "params": {SECRET: 1}},
    {"instances": [], "params": {"k": SECRET}},
    {"dataframe_split": {"columns": [SECRET], "data": []}},
    {"dataframe_split": {"columns": ["tracks"], "data": [SECRET]}},
    {"dataframe_split": {"columns": ["tracks"], "data": [], "index": [SECRET]}},
    {"inputs": {SECRET: []}},
    {"tracks": SECRET},
    {"model": SECRET},
    {"inputs": [{"name": SECRET}]},
    {"inputs": [{**V2_TRACKS, "datatype": SECRET}]},
    {"inputs": [{**V2_TRACKS, "shape": [SECRET]}]},
    {"inputs": [{**V2_TRACKS, "data": [SECRET]}]},
    {"inputs": [V2_TRACKS], "outputs": [{"name": SECRET}]},
    {"inputs": [V2_TRACKS], "parameters": {SECRET: 1}},
    f'{{"instances": {SECRET}}}'.encode(),
]


@pytest.mark.parametrize(
    "path", ["/invocations", "/api/recommend", "/v1/models/ranker:predict", "/v2/models/ranker/infer"]
)
@pytest.mark.parametrize("body", REPEATING)
def test_errors_repeat_nothing(app: App, path: str, body: Any) -> None:
    found = ask(app, "POST", path, body, {"x-request": SECRET})
    assert found.status == 400
    assert set(found.json()) - {"error"} == {"error_code", "message"}
    assert SECRET not in str(found)


def test_paths_and_queries_are_not_repeated(app: App) -> None:
    for path in (
        f"/{SECRET}",
        f"/v2/models/{SECRET}",
        f"/v1/models/{SECRET}",
        f"/api/playlists/{SECRET}",
        f"/api/tracks?{SECRET}=1",
        f"/api/tracks?n={SECRET}",
        f"/page/{SECRET}",
        "/page/../app.py",
        "/page//etc/passwd",
    ):
        found = ask(app, "GET", path)
        assert found.status in (400, 404), path
        assert SECRET not in str(found)


# --- other routes


def test_methods_are_named(app: App) -> None:
    found = ask(app, "GET", "/invocations")
    assert (found.status, found.headers["allow"]) == (405, "POST")
    found = ask(app, "DELETE", "/ping")
    assert (found.status, found.headers["allow"]) == (405, "GET, HEAD")
    head = ask(app, "HEAD", "/ping")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "1")


def test_probes_answer_as_those_of_mlflow(app: App) -> None:
    for path in ("/ping", "/health"):
        found = ask(app, "GET", path)
        assert (found.status, found.body, found.headers["content-type"]) == (200, b"\n", "application/json")
    assert ask(app, "GET", "/version").headers["content-type"].startswith("text/plain")


def test_tracks_are_found(app: App) -> None:
    found = ask(app, "GET", "/api/tracks?q=track%201&n=5").json()["tracks"]
    assert found
    assert all(" 1" in f" {track['name']} {track['artist']}" for track in found)
    found = ask(app, "GET", f"/api/tracks?ids={URIS[7]},nobody,{URIS[2]}").json()["tracks"]
    assert [track["uri"] for track in found] == [URIS[7], URIS[2]]
    popular = ask(app, "GET", "/api/tracks").json()["tracks"]
    assert len(popular) == 10
    assert [track["popularity"] for track in popular] == sorted((t["popularity"] for t in popular), reverse=True)
    assert ask(app, "GET", "/api/tracks?n=51").status == 400
    assert ask(app, "GET", "/api/tracks?ids=").json() == {"tracks": []}


def test_playlists_of_a_lake() -> None:
    lake = {7: ("Rock", [URIS[1], "nobody"])}
    app = new_app(playlists=lake.get)
    found = ask(app, "GET", "/api/playlists/7").json()
    assert (found["pid"], found["title"], [track["uri"] for track in found["tracks"]]) == (7, "Rock", [URIS[1]])
    for pid in ("8", "x", "-1", "9" * 30, "²"):
        assert ask(app, "GET", f"/api/playlists/{pid}").status == 404
    assert ask(new_app(), "GET", "/api/playlists/7").status == 404


def test_the_page_has_a_strict_policy(app: App) -> None:
    found = ask(app, "GET", "/")
    assert found.status == 200
    policy = found.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "spotify" not in policy
    assert (
        "frame-src https://open.spotify.com"
        in ask(new_app(with_settings(embed=True)), "GET", "/").headers["content-security-policy"]
    )
    again = ask(app, "GET", "/", headers={"If-None-Match": found.headers["etag"]})
    assert (again.status, again.body) == (304, b"")


def test_metrics_count_requests() -> None:
    app = new_app()
    ask(app, "POST", "/invocations", b"{")
    text = ask(app, "GET", "/metrics").body.decode()
    assert 'encore_requests_total{code="400"' in text


def test_models_are_listed(app: App) -> None:
    found = ask(app, "GET", "/api/models").json()
    assert found["served"] == "ranker"
    (model,) = found["models"]
    assert (model["name"], model["role"], model["n_tracks"]) == ("ranker", "champion", len(URIS))


# --- the document


@pytest.mark.parametrize("token", ["", SECRET])
def test_the_openapi_document_is_valid(token: str) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    found = ask(new_app(with_settings(token=token)), "GET", "/api/openapi.json", headers=headers).json()
    validate(found)
    assert set(found["paths"]) == {route.template for route in ROUTES}
    assert SECRET not in str(found)


# --- settings


def test_settings_come_from_the_environment() -> None:
    found = Settings.of_environment({"ENCORE_SERVE_PORT": "81", "ENCORE_SERVE_EMBED": "TRUE", "PATH": "/bin"})
    assert (found.port, found.embed, found.max_k) == (81, True, 500)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "x"),
        ("EMBED", "1"),
        ("THREADS", "0"),
        ("SECONDS", "nan"),
        ("SECONDS", "0"),
        ("MAX_WAITING", "-1"),
        ("NO", "1"),
    ],
)
def test_settings_that_are_wrong_are_named(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"ENCORE_SERVE_{name}"):
        Settings.of_environment({f"ENCORE_SERVE_{name}": value})


# --- the source


class Moving(Folder):
    """A source whose version changes, or that cannot be read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.version: str | None = "1"
        self.is_down = False

    def resolve(self) -> Resolved:
        if self.is_down:
            raise EncoreError("the registry does not answer")
        return Resolved(self.version)


def test_a_new_version_replaces_the_old_one_and_a_failure_changes_nothing(tmp_path: Path) -> None:
    source = Moving(small_bundle())
    own = Serving(source, Metrics())
    own.follow()
    first = own.champion
    own.follow()
    assert own.champion is first
    source.version = "2"
    own.follow()
    second = own.champion
    assert second is not None
    assert second.version == "2"
    source.version, source.folder = "3", tmp_path
    with pytest.raises(InputError):
        own.follow()
    source.is_down = True
    with pytest.raises(EncoreError):
        own.follow()
    assert own.champion is second
    source.is_down, source.version = False, None
    own.follow()
    assert own.champion is second


def test_the_thread_survives_a_source_that_fails() -> None:
    """A defect in reading one version must not keep the next from being loaded."""
    source = Moving(small_bundle())
    answers = [RuntimeError("defect"), EncoreError("down")]
    resolve = source.resolve

    def failing() -> Resolved:
        if answers:
            raise answers.pop(0)
        return resolve()

    source.resolve = failing  # type: ignore[method-assign]
    own = Serving(source, Metrics(), poll_seconds=0.01)
    own.start()
    for _ in range(1000):
        if own.is_ready:
            break
        threading.Event().wait(0.01)
    own.stop()
    assert own.is_ready
