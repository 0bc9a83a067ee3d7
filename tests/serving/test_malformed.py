"""Requests that are wrong: none is a 500, none ends the process, and memory stays flat."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.serving.process import Running, scorer
from tests.unit.serving.bundles import URIS

REQUESTS = 1200
GROWTH = 32_000_000
"""Bytes by which the memory may grow: what the interpreter and its allocator keep after the first requests."""

RECORD: dict[str, Any] = {"tracks": URIS[:5], "title": "Rock"}
V2: dict[str, Any] = {
    "inputs": [
        {"name": "tracks", "datatype": "BYTES", "shape": [1], "data": [json.dumps(URIS[:5])]},
        {"name": "title", "datatype": "BYTES", "shape": [1], "data": ["Rock"]},
    ],
    "parameters": {"k": 5},
}
VALID: dict[str, dict[str, Any]] = {
    "/invocations": {"instances": [RECORD], "params": {"k": 5}},
    "/api/recommend": {**RECORD, "k": 5, "explain": True, "pid": 3, "model": "fusion"},
    "/v1/models/ranker:predict": {"instances": [RECORD], "parameters": {"k": 5}},
    "/v2/models/ranker/infer": V2,
}
WRONG: tuple[Any, ...] = (
    None, True, False, 0, -1, 2**63, 10**40, -(2**70), 0.5, 1e308, "", "x", "\x00", "é" * 50, "\U0001f600", "\ufeff",
    "spotify:track:", "spotify:track:" + "x" * 5000, "NaN", "[]", "{}", '["a"]', "<script>alert(1)</script>",
    "'; DROP TABLE tracks; --", "${jndi:ldap://x}", "../../etc/passwd", "%s%s%n", [], [[]], [None], [1, "a"], [[[[]]]],
    ["x"] * 10_001, {}, {"": ""}, {"k": {}}, {"tracks": None}, {"__proto__": {}}, {"$ref": "#"},
)  # fmt: skip
"""What takes the place of a value."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to all values within a value."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from places(inner, (*path, i))


def replaced(value: Any, path: tuple[Any, ...], wrong: Any) -> Any:
    """A copy of a value in which the value at a place is another one."""
    if not path:
        return wrong
    if isinstance(value, dict):
        return {key: replaced(inner, path[1:], wrong) if key == path[0] else inner for key, inner in value.items()}
    return [replaced(inner, path[1:], wrong) if i == path[0] else inner for i, inner in enumerate(value)]


BYTES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": lambda body, draw: body[: draw.randrange(len(body))],
    "flipped": lambda body, draw: _flipped(body, draw),
    "doubled": lambda body, draw: body + body,
    "trailing comma": lambda body, draw: body[:-1] + b",}",
    "single quotes": lambda body, draw: body.replace(b'"', b"'"),
    "NaN": lambda body, draw: body.replace(b"5", b"NaN", 1),
    "Infinity": lambda body, draw: body.replace(b"5", b"-Infinity", 1),
    "comment": lambda body, draw: b"/* */" + body,
    "byte order mark": lambda body, draw: b"\xef\xbb\xbf" + body,
    "UTF-16": lambda body, draw: body.decode().encode("utf-16"),
    "Latin-1": lambda body, draw: body.replace(b"Rock", b"R\xe9ck"),
    "lone surrogate": lambda body, draw: body.replace(b"Rock", rb"\ud800"),
    "zero byte": lambda body, draw: body.replace(b"Rock", b"R\x00ck"),
    "escaped zero": lambda body, draw: body.replace(b"Rock", rb"R\u0000ck"),
    "deep list": lambda body, draw: b"[" * 100_000,
    "deep object": lambda body, draw: b'{"a":' * 100_000,
    "deep, closed": lambda body, draw: b'{"instances":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "long number": lambda body, draw: body.replace(b"5", b"5" * 5000, 1),
    "exponent": lambda body, draw: body.replace(b"5", b"5e999", 1),
    "repeated key": lambda body, draw: b'{"instances":[],' + body[1:],
    "nothing": lambda body, draw: b"",
    "spaces": lambda body, draw: b" " * 1000,
    "noise": lambda body, draw: draw.randbytes(200),
    "long title": lambda body, draw: body.replace(b"Rock", b"R" * 100_000),
    "pickle": lambda body, draw: b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07builtin\x94.",
    "gzip": lambda body, draw: b"\x1f\x8b\x08\x00" + draw.randbytes(50),
    "form": lambda body, draw: b"tracks=a&tracks=b",
}


def _flipped(body: bytes, draw: random.Random) -> bytes:
    changed = bytearray(body)
    changed[draw.randrange(len(body))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def malformed(n: int, seed: int = 0) -> Iterator[tuple[str, str, bytes, dict[str, str]]]:
    """Kind, path, body and headers of n requests."""
    draw = random.Random(seed)
    kinds: list[str] = [*(f"bytes: {name}" for name in BYTES), *(f"value {i}" for i in range(len(WRONG)))]
    kinds += ["missing", "renamed", "added", "content type", "headers"]
    for i in range(n):
        kind = kinds[i % len(kinds)]
        path = draw.choice(list(VALID))
        value: Any = VALID[path]
        headers = {"Content-Type": "application/json"}
        at = draw.choice(list(places(value)))
        if kind.startswith("value"):
            wrong = WRONG[int(kind.split()[1])]
            value = replaced(value, at, wrong)
        elif kind == "missing":
            value = {key: inner for key, inner in value.items() if key != draw.choice(list(value))}
        elif kind == "renamed":
            old = draw.choice(list(value))
            value = {key.upper() if key == old else key: inner for key, inner in value.items()}
        elif kind == "added":
            value = {**value, draw.choice(["x", "", "model_name", "__class__"]): draw.choice(["y", 1, None])}
        elif kind == "content type":
            headers["Content-Type"] = draw.choice(
                ["", "text/csv", "application/json; charset=x", "a" * 5000, ";", "*/*"]
            )
        elif kind == "headers":
            headers |= draw.choice(
                [
                    {"Authorization": "Basic " + "x" * 3000},
                    {"Cookie": "encore_user=" + "\xff" * 1000},
                    {"X-Encore-User": "\xe9" * 500},
                    {"Content-Encoding": "br"},
                    {"Inference-Header-Content-Length": "7"},
                    {"Upgrade": "h2c", "Connection": "Upgrade"},
                    {"Expect": "100-continue"},
                ]
            )
        body = _dumped(value)
        if kind.startswith("bytes"):
            body = BYTES[kind.removeprefix("bytes: ")](body, draw)
        yield kind, path, body, headers


def _dumped(value: Any) -> bytes:
    # not by orjson, which writes no large numbers
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


@pytest.fixture(scope="module")
def limited(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Path]]:
    log = tmp_path_factory.mktemp("scorer") / "log"
    with scorer(bundle, log) as running:
        yield running, log


def test_malformed_requests_are_refused_and_memory_is_flat(limited: tuple[Running, Path]) -> None:
    running, log = limited
    kinds = {kind for kind, *_ in malformed(REQUESTS)}
    assert len(kinds) >= 60
    before = 0
    statuses: dict[int, int] = {}
    for round_ in range(3):
        connection = running.connection()
        for kind, path, body, headers in malformed(REQUESTS, seed=round_):
            connection.request("POST", path, body, {name: value.encode("latin-1") for name, value in headers.items()})
            answer = connection.getresponse()
            content = answer.read()
            statuses[answer.status] = statuses.get(answer.status, 0) + 1
            assert answer.status in (200, 400, 413, 415), (kind, path, body[:300], content)
            if answer.status != 200:
                assert set(orjson.loads(content)) >= {"error_code", "message"}
                assert len(content) < 400, (kind, content)
            elif path != "/api/recommend":
                orjson.loads(content)
        connection.close()
        if round_ == 0:
            before = running.private_bytes()
    grown = running.private_bytes() - before
    print(f"{3 * REQUESTS:,} requests of {len(kinds)} kinds: {statuses}; memory grew by {grown / 1e6:.1f} MB")  # noqa: T201
    assert grown < GROWTH
    assert statuses[400] > 1.5 * REQUESTS
    assert running.post("/invocations", _dumped(VALID["/invocations"]))[0] == 200
    assert "exception" not in log.read_text()


def test_schemathesis_finds_no_fault(limited: tuple[Running, Path], tmp_path: Path) -> None:
    """Requests generated from the OpenAPI document: no 500, and answers as they are documented."""
    running, log = limited
    config = tmp_path / "schemathesis.toml"
    config.write_text(
        f"""
        [parameters]
        "path.model" = "ranker"
        "path.version" = "{orjson.loads(running.get("/api/models"))["models"][0]["version"]}"
        [checks.negative_data_rejection]
        expected-statuses = [400, 404, 413, 415]
        """
    )
    # the line feed of MLflow's /ping is no JSON
    checks = (
        "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
        "response_headers_conformance,negative_data_rejection,unsupported_method"
    )
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(config), "run",
        f"{running.url}/api/openapi.json",
        "--checks", checks, "--max-examples", "60", "--seed", "1", "--workers", "2", "--no-color",
        "--generation-database", "none", "--exclude-path", "/ping", "--exclude-path", "/health",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    print(done.stdout[-600:])  # noqa: T201
    assert running.status() == 200
    assert "exception" not in log.read_text()
