"""Logs: one JSON object per line on standard error, quiet by default, without secrets."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from typing import Any, Literal

import pytest
import structlog

from encore.config import LogConfig, load_config
from encore.log import configure_logging, is_secret_name, redact

Level = Literal["debug", "info", "warning", "error"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def configured(level: Level = "info", form: Literal["auto", "json", "text"] = "json") -> Any:
    configure_logging(LogConfig(level=level, format=form))
    return structlog.get_logger("encore")


def records(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """All log records: JSON objects on standard error; nothing may be on standard output."""
    found = capsys.readouterr()
    assert found.out == ""
    return [json.loads(line) for line in found.err.splitlines()]


# secrets ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://encore:hunter2@db:5432/mlflow", "postgresql://***@db:5432/mlflow"),
        ("mysql+pymysql://u:p%40ss@h/x", "mysql+pymysql://***@h/x"),
        ("HTTPS://u:p@h", "HTTPS://***@h"),
        ("redis://:hunter2@h:6379/0", "redis://***@h:6379/0"),
        ("http://u:p@ss@h/x", "http://***@h/x"),
        ("cannot reach http://a:b@c/d, nor http://e:f@g", "cannot reach http://***@c/d, nor http://***@g"),
        ('{"a": "http://a:b@c", "d": "e@f"}', '{"a": "http://***@c", "d": "e@f"}'),
    ],
)
def test_user_and_password_are_removed_from_urls(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/a@b",
        "s3://bucket/key:with@signs",
        "sqlite:///data/mlflow.db",
        "someone@example.com: hello",
        "12:30 http://h/x a:b@c",
        "",
    ],
)
def test_other_text_is_unchanged(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("value", [None, True, 3, 0.5])
def test_numbers_and_null_are_unchanged(value: object) -> None:
    assert redact(value) is value


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "spotify_client_secret",
        "Authorization",
        "access_token",
        "credentials",
        "api_key",
        "apiKey",
        "fs.s3a.access.key",
        "private_key",
        "passwd",
    ],
)
def test_names_of_secrets_are_recognised(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["key", "track_uri", "s3.endpoint", "keys", "pid", "lake.path", "uri"])
def test_common_names_are_not_secrets(name: str) -> None:
    assert not is_secret_name(name)


def test_no_field_of_a_record_shows_a_secret(capsys: pytest.CaptureFixture[str]) -> None:
    log = configured()
    log.info(
        "sent to http://u:hunter2@h",
        password="hunter2",
        uri="http://u:hunter2@h",
        headers={"Authorization": "hunter2", "to": ["http://u:hunter2@h"]},
        error=ValueError("http://u:hunter2@h is away"),
        n=3,
    )
    (record,) = records(capsys)
    assert "hunter2" not in json.dumps(record)
    assert record["event"] == "sent to http://***@h"
    assert record["headers"] == {"Authorization": "***", "to": ["http://***@h"]}
    assert (record["password"], record["error"], record["n"]) == ("***", "http://***@h is away", 3)


def test_no_trace_shows_a_password(capsys: pytest.CaptureFixture[str]) -> None:
    log = configured()
    try:
        raise ConnectionError("cannot reach http://u:" + "hunter2" + "@h")
    except ConnectionError:
        log.exception("failed")
        logging.getLogger("library").exception("failed too")
    first, second = records(capsys)
    for record in (first, second):
        assert record["exception"].splitlines()[-1] == "ConnectionError: cannot reach http://***@h"


# form ---------------------------------------------------------------------------------------------------------------


def test_a_record_is_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    configured().bind(job="recommend").info("two\nlines", name="中文\u2028", path=object, playlists=1000)
    (record,) = records(capsys)
    assert (record["event"], record["job"], record["level"]) == ("two\nlines", "recommend", "info")
    assert (record["name"], record["playlists"]) == ("中文\u2028", 1000)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", record["timestamp"])


def test_libraries_use_the_same_format(capsys: pytest.CaptureFixture[str]) -> None:
    configured()
    logging.getLogger("some.library").warning("at %s", "http://u:hunter2@h")
    (record,) = records(capsys)
    assert (record["event"], record["logger"], record["level"]) == ("at http://***@h", "some.library", "warning")
    assert "timestamp" in record


def test_auto_is_json_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    configured(form="auto").info("started")
    assert records(capsys)[0]["event"] == "started"


def test_auto_is_text_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    configured(form="auto").info("started", uri="http://u:hunter2@h")
    assert "started" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")
    assert "hunter2" not in terminal.getvalue()


def test_text_in_a_file_has_no_colours(capsys: pytest.CaptureFixture[str]) -> None:
    configured(form="text").info("started", playlists=3)
    assert re.fullmatch(r"\S+ \[info +\] started +playlists=3\n", capsys.readouterr().err)


# level --------------------------------------------------------------------------------------------------------------


def test_it_is_quiet_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(load_config().log)
    log = structlog.get_logger("encore")
    log.info("started")
    logging.getLogger("some.library").info("noise")
    assert records(capsys) == []
    log.warning("odd")
    assert [record["event"] for record in records(capsys)] == ["odd"]


@pytest.mark.parametrize(("level", "expected"), [("debug", "deiw"), ("info", "eiw"), ("warning", "ew"), ("error", "e")])
def test_lower_levels_are_not_logged(capsys: pytest.CaptureFixture[str], level: Level, expected: str) -> None:
    log = configured(level)
    log.debug("d")
    log.info("i")
    log.warning("w")
    log.error("e")
    assert "".join(sorted(record["event"] for record in records(capsys))) == expected


@pytest.mark.parametrize("name", ["py4j", "mlflow", "alembic", "botocore", "urllib3", "pyspark"])
def test_noisy_libraries_log_only_errors(capsys: pytest.CaptureFixture[str], name: str) -> None:
    configured("debug")
    logging.getLogger(name).warning("noise")
    logging.getLogger(name).error("trouble")
    assert [record["event"] for record in records(capsys)] == ["trouble"]


def test_configuring_twice_writes_once(capsys: pytest.CaptureFixture[str]) -> None:
    configured()
    configured().info("started")
    logging.getLogger("some.library").warning("odd")
    assert [record["event"] for record in records(capsys)] == ["started", "odd"]
