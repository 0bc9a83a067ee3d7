"""The scorer as a process: its end, slow and broken clients, what is not HTTP."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.serving.process import Running, scorer
from tests.unit.serving.bundles import URIS

BODY = json.dumps({"instances": [{"tracks": URIS[:3], "title": "Rock"}], "params": {"k": 5}}).encode()
HEAD = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def test_sigterm_drains(bundle: Path, tmp_path: Path) -> None:
    """Readiness is 503 at once, what was begun is answered, and the exit code is 0."""
    log = tmp_path / "log"
    with scorer(bundle, log, linger_seconds=1) as running:
        begun = running.connection()
        begun.putrequest("POST", "/invocations")
        begun.putheader("Content-Type", "application/json")
        begun.putheader("Content-Length", str(len(BODY)))
        begun.endheaders()
        begun.send(BODY[:10])
        assert running.status() == 200
        running.process.send_signal(signal.SIGTERM)
        while (status := running.status()) == 200:
            time.sleep(0.01)
        assert status == 503
        begun.send(BODY[10:])
        answer = begun.getresponse()
        assert answer.status == 200
        assert answer.getheader("connection") == "close"
        assert len(json.loads(answer.read())["predictions"][0]["tracks"]) == 5
        assert running.process.wait(20) == 0
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert any(event.startswith("loaded ranker") for event in events)
    assert "draining" in events


def test_sigterm_does_not_wait_for_idle_connections(bundle: Path) -> None:
    with scorer(bundle, linger_seconds=0, drain_seconds=20) as running:
        idle = running.connection()
        idle.request("GET", "/ping")
        idle.getresponse().read()
        began = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(20) == 0
        assert time.monotonic() - began < 10


def test_a_model_that_cannot_be_loaded_ends_the_process(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="exit code 3"), scorer(tmp_path, tmp_path / "log"):
        pass
    assert "no bundle" in (tmp_path / "log").read_text()


def test_a_port_that_is_taken_is_named(bundle: Path, server: Running, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="exit code 4"), scorer(bundle, tmp_path / "log", port=server.port):
        pass
    assert f"127.0.0.1:{server.port}: Address already in use" in (tmp_path / "log").read_text()


def exchanged(running: Running, *parts: bytes, pause: float = 0.0) -> bytes:
    """What the server answers to bytes, until it closes the connection."""
    with socket.create_connection(("127.0.0.1", running.port), 20) as connection:
        for part in parts:
            try:
                connection.sendall(part)
            except OSError:
                # the server has closed it
                break
            time.sleep(pause)
        found = b""
        while True:
            try:
                part = connection.recv(65536)
            except ConnectionResetError:
                break
            if not part:
                break
            found += part
        return found


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"\x00" * 100,
        HEAD + b"Content-Length: x\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"bad header\r\n\r\n",
        b"GET /\x80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_not_http_is_400(server: Running, sent: bytes) -> None:
    found = exchanged(server, sent)
    status = found.split(b" ")[1:2]
    assert status in ([b"400"], [b"404"], [b"405"], [b"408"]), found
    assert found.endswith(b"}")
    assert server.status() == 200


def test_a_head_that_is_too_large_is_431(server: Running) -> None:
    """uvicorn has no limit with this parser."""
    many = exchanged(server, b"GET /ping HTTP/1.1\r\n", *[b"x: " + b"y" * 10_000 + b"\r\n"] * 20)
    one = exchanged(server, b"GET /ping HTTP/1.1\r\nx: ", *[b"y" * 10_000] * 20)
    path = exchanged(server, b"GET /", *[b"y" * 10_000] * 20)
    for found in (many, one, path):
        # the answer may be lost if the client is still sending
        assert not found or found.startswith(b"HTTP/1.1 431")
    assert server.status() == 200


def test_a_head_that_does_not_arrive_is_408(server: Running) -> None:
    """uvicorn would wait for ever."""
    assert exchanged(server, b"GET /ping HTTP/1.1\r\nHost:").startswith(b"HTTP/1.1 408")
    # a byte at a time, which must not start the time anew
    dripping = exchanged(server, *[bytes([byte]) for byte in b"GET /ping HTTP/1.1\r\nHost: x\r\n"], pause=0.1)
    assert not dripping or dripping.startswith(b"HTTP/1.1 408")


def test_a_body_that_does_not_arrive_is_408(server: Running) -> None:
    found = exchanged(server, HEAD + b"Content-Length: 100\r\n\r\n{")
    assert found.startswith(b"HTTP/1.1 408")


def test_a_connection_without_a_request_is_closed(server: Running) -> None:
    assert exchanged(server) == b""


def test_a_body_that_is_too_large_is_answered_to_a_client_that_sends_all_of_it(server: Running) -> None:
    status, body = server.post("/invocations", b" " * 3_000_000)
    assert (status, json.loads(body)["error_code"]) == (413, "REQUEST_TOO_LARGE")


def test_too_many_connections_are_503_and_the_others_go_on(bundle: Path) -> None:
    with scorer(bundle, max_connections=20, keep_alive_seconds=2) as running:
        first = running.connection()
        first.request("GET", "/ping")
        assert first.getresponse().read() == b"\n"
        held = [socket.create_connection(("127.0.0.1", running.port), 5) for _ in range(40)]
        time.sleep(0.5)
        refused = [connection.recv(100) for connection in held[30:]]
        assert all(found.startswith(b"HTTP/1.1 503") for found in refused)
        first.request("POST", "/invocations", BODY, {"Content-Type": "application/json"})
        assert first.getresponse().status == 200
        first.close()
        for connection in held[:5]:
            connection.close()
        time.sleep(0.5)
        assert running.status() == 200


def test_clients_that_do_not_read_and_half_open_connections_are_dropped(bundle: Path) -> None:
    rows = json.dumps({"instances": [{"tracks": URIS[:3]}] * 256, "params": {"k": 50}}).encode()
    head = HEAD + b"Content-Length: %d\r\n\r\n" % len(rows)
    with scorer(bundle, seconds=1, keep_alive_seconds=1) as running:
        held = []
        for _ in range(20):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", running.port))
            connection.sendall(head + rows)
            held.append(connection)
        for _ in range(20):
            held.append(socket.create_connection(("127.0.0.1", running.port), 5))
        for connection in held[20:30]:
            connection.sendall(b"GET /ping HT")
            # the client is done writing, and never reads
            connection.shutdown(socket.SHUT_WR)
        assert running.status() == 200
        deadline = time.monotonic() + 20
        while len(_established(running)) > 0 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert _established(running) == []
        assert running.status() == 200
        for connection in held:
            connection.close()


def _established(running: Running) -> list[object]:
    return [one for one in running.process.net_connections("tcp") if one.status != "LISTEN"]


def test_pipelined_requests_are_answered_in_order(server: Running) -> None:
    request = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    last = b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    found = exchanged(server, request * 3 + last)
    assert found.count(b"HTTP/1.1 200") == 4
    assert found.count(b'"predictions"') == 3


@pytest.mark.parametrize("pause", [0.0, 0.2])
def test_an_offer_of_http2_is_ignored(server: Running, pause: float) -> None:
    """Java's client and `curl --http2` make it with the first request: the body was lost, which was a 400."""
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    head = HEAD + offer + b"Content-Length: %d\r\n\r\n" % len(BODY)
    last = b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    parts = [head, BODY, last] if pause else [head + BODY + last]
    found = exchanged(server, *parts, pause=pause)
    assert found.count(b"HTTP/1.1 200") == 2, found
    assert b'"predictions"' in found


def test_requests_at_a_time_have_the_rows_of_requests_alone(server: Running) -> None:
    bodies = [json.dumps({"instances": [{"tracks": URIS[i : i + 4]}]}).encode() for i in range(20)]
    alone = [server.post("/invocations", body) for body in bodies]
    found: dict[int, tuple[int, bytes]] = {}

    def ask(i: int) -> None:
        for j in range(i, i + 5):
            found[i * 5 + j - i] = server.post("/invocations", bodies[j % 20])
            assert found[i * 5 + j - i] == alone[j % 20]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 100


def test_a_client_that_goes_away_changes_nothing(server: Running) -> None:
    for _ in range(20):
        connection = server.connection()
        connection.request("POST", "/invocations", BODY, {"Content-Type": "application/json"})
        connection.close()
        half = http.client.HTTPConnection("127.0.0.1", server.port)
        half.connect()
        half.sock.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
        half.close()
    assert server.post("/invocations", BODY)[0] == 200
