"""Source files: the same listing from a local disk and from S3, and a sentence for each way in which S3 fails."""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import botocore.endpoint
import pytest
from botocore.exceptions import (
    CredentialRetrievalError,
    IncompleteReadError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
)

from encore.config import S3Config
from encore.errors import ConfigError, EncoreError, EnvironmentMissing, InputError, TransientError
from encore.lake.failures import aws_error
from encore.lake.filesystem import is_s3, list_files, read_bytes, split_s3
from tests.s3server import S3Server

AWS = S3Config(endpoint=None, region=None, path_style=False)
CONTENTS = {"b.json": b"[1]", "a.json": b"{}", "c.txt": b"text", "below/d.json": b"3", "mpd.slice.0-9.json": b""}

Lister = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def _fresh_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """boto3's own session keeps the credentials that it found first."""
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)


def refused(kind: type[EncoreError], url: str, s3: S3Config = AWS) -> str:
    """The sentence with which listing is refused."""
    with pytest.raises(kind) as caught:
        list_files(url, "*.json", s3)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


# addresses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/a/b.json", ("bucket", "a/b.json")),
        ("s3a://bucket/a/", ("bucket", "a/")),
        ("s3://bucket", ("bucket", "")),
        ("s3://bucket/", ("bucket", "")),
    ],
)
def test_an_address_has_bucket_and_key(url: str, expected: tuple[str, str]) -> None:
    assert is_s3(url)
    assert split_s3(url) == expected


@pytest.mark.parametrize("url", ["/data/s3", "s3", "file:///data", "data/s3://x", "S3://bucket"])
def test_other_addresses_are_local(url: str) -> None:
    assert not is_s3(url)


# a local disk and S3 give the same listing --------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "mpd"
    (root / "below").mkdir(parents=True)
    (root / "empty").mkdir()
    for name, content in CONTENTS.items():
        (root / name).write_bytes(content)
    return root


@pytest.fixture
def _credentials(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def s3(s3_server: S3Server) -> S3Config:
    return S3Config(endpoint=s3_server.endpoint, region="us-east-1", path_style=True)


@pytest.fixture(scope="module")
def contents(s3_server: S3Server) -> str:
    """One bucket for all tests here: what is in raw/mpd is read and never changed."""
    name, client = f"bucket-{uuid.uuid4().hex[:12]}", s3_server.client()
    client.create_bucket(Bucket=name)
    for key, content in CONTENTS.items():
        client.put_object(Bucket=name, Key=f"raw/mpd/{key}", Body=content)
    client.put_object(Bucket=name, Key="raw/mpd/empty/", Body=b"")
    return name


@pytest.fixture
def bucket(contents: str, _credentials: None) -> str:
    return contents


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest) -> tuple[str, S3Config]:
    """Address of the folder with CONTENTS and of a folder `empty` in it, and how it is reached."""
    if request.param == "local":
        return str(request.getfixturevalue("folder")), AWS
    return f"s3://{request.getfixturevalue('bucket')}/raw/mpd", request.getfixturevalue("s3")


@pytest.mark.parametrize(
    ("what", "pattern", "expected"),
    [
        ("", "*.json", ["a.json", "b.json", "mpd.slice.0-9.json"]),
        ("/", "*.json", ["a.json", "b.json", "mpd.slice.0-9.json"]),
        ("", "*.txt|a*", ["a.json", "c.txt"]),
        ("", "*", ["a.json", "b.json", "c.txt", "mpd.slice.0-9.json"]),
        ("/below", "*.json", ["d.json"]),
        ("/empty", "*", []),
        ("/empty/", "*", []),
        ("/c.txt", "*.json", ["c.txt"]),
        ("/[ab].json", "*.txt", ["a.json", "b.json"]),
        ("/mpd.slice.*.json", "*", ["mpd.slice.0-9.json"]),
        ("/?.json", "*", ["a.json", "b.json"]),
        ("/*.json", "*", ["a.json", "b.json", "mpd.slice.0-9.json"]),
        ("/*/d.json", "*", ["d.json"]),
    ],
)
def test_an_address_lists_its_files_by_name(
    place: tuple[str, S3Config], what: str, pattern: str, expected: list[str]
) -> None:
    root, s3 = place
    files = list_files(root + what, pattern, s3)
    assert [file.name for file in files] == expected
    for file in files:
        content = next(content for name, content in CONTENTS.items() if name.rsplit("/", 1)[-1] == file.name)
        assert file.size == len(content)
        assert read_bytes(file.url, s3) == content


@pytest.mark.parametrize("what", ["/nosuch", "/nosuch.json", "/nosuch/*.json", "/a*.txt", "/belo", "/b"])
def test_what_is_not_there_is_bad_input(place: tuple[str, S3Config], what: str) -> None:
    root, s3 = place
    assert root + what in refused(InputError, root + what, s3)


def test_reading_what_is_not_there_is_bad_input(place: tuple[str, S3Config]) -> None:
    root, s3 = place
    with pytest.raises(InputError, match=r"nosuch\.json: ") as caught:
        read_bytes(f"{root}/nosuch.json", s3)
    assert caught.value.exit_code == 3


def test_equal_names_are_ordered_by_address(folder: Path) -> None:
    (folder / "below" / "a.json").write_bytes(b"longer")
    (folder / "empty" / "a.json").touch()
    files = list_files(f"{folder}/*/*.json", "*", AWS)
    assert [file.url for file in files] == [
        f"{folder}/{name}" for name in ("below/a.json", "empty/a.json", "below/d.json")
    ]


# a local disk -------------------------------------------------------------------------------------------------------


def test_a_local_file_has_its_absolute_path_and_its_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    (file,) = list_files("mpd/a.json", "*", AWS)
    assert (file.url, file.etag) == (str(folder / "a.json"), None)
    assert file.modified_ns == (folder / "a.json").stat().st_mtime_ns


def test_a_file_address_is_local(folder: Path) -> None:
    assert [file.name for file in list_files(f"file://{folder}", "*.txt", AWS)] == ["c.txt"]
    assert read_bytes(f"file://{folder}/c.txt", AWS) == b"text"


def test_a_folder_is_not_read_as_a_file(folder: Path) -> None:
    with pytest.raises(InputError, match="Is a directory"):
        read_bytes(str(folder), AWS)


def test_a_folder_that_may_not_be_listed_is_bad_input(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> list[str]:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.listdir", refuse)
    assert refused(InputError, str(folder)) == f"{folder}: Permission denied"


# S3 -----------------------------------------------------------------------------------------------------------------


def test_an_object_has_its_address_and_entity_tag(bucket: str, s3: S3Config) -> None:
    (file,) = list_files(f"s3a://{bucket}/raw/mpd/b.json", "*", s3)
    assert file.url == f"s3://{bucket}/raw/mpd/b.json"
    assert file.etag == hashlib.md5(CONTENTS["b.json"]).hexdigest()
    assert file.modified_ns > 1_600_000_000 * 10**9


def test_listings_longer_than_a_page_are_whole(
    bucket: str, s3: S3Config, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = s3_server.client()
    for i in range(7):
        client.put_object(Bucket=bucket, Key=f"many/{i}.json", Body=b"")
    paginator = client.get_paginator("list_objects_v2")
    paginate = paginator.paginate
    paginator.paginate = lambda **given: paginate(**given, PaginationConfig={"PageSize": 2})
    monkeypatch.setattr(
        "encore.lake.filesystem.s3_client", lambda _: SimpleNamespace(get_paginator=lambda _: paginator)
    )
    assert [file.name for file in list_files(f"s3://{bucket}/many", "*.json", s3)] == [f"{i}.json" for i in range(7)]


@pytest.mark.usefixtures("_credentials")
def test_an_empty_bucket_is_an_empty_folder(s3_server: S3Server, s3: S3Config) -> None:
    s3_server.client().create_bucket(Bucket="empty-bucket")
    assert list_files("s3://empty-bucket", "*", s3) == []
    assert list_files("s3://empty-bucket/", "*", s3) == []


@pytest.mark.usefixtures("_credentials")
def test_a_missing_bucket_is_bad_input(s3: S3Config) -> None:
    assert refused(InputError, "s3://nosuchbucket/mpd", s3) == "s3://nosuchbucket/mpd: does not exist (NoSuchBucket)"
    with pytest.raises(InputError, match="does not exist"):
        read_bytes("s3://nosuchbucket/mpd/a.json", s3)


@pytest.mark.usefixtures("_credentials")
def test_an_impossible_bucket_name_is_bad_input(s3: S3Config) -> None:
    assert refused(InputError, "s3://a bucket!/mpd", s3).startswith("s3://a bucket!/mpd: not an address in S3: ")


@pytest.mark.parametrize(
    ("name", "code"), [("AWS_ACCESS_KEY_ID", "InvalidAccessKeyId"), ("AWS_SECRET_ACCESS_KEY", "SignatureDoesNotMatch")]
)
def test_a_wrong_key_is_said(bucket: str, s3: S3Config, monkeypatch: pytest.MonkeyPatch, name: str, code: str) -> None:
    monkeypatch.setenv(name, "wrong")
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
    sentence = refused(EnvironmentMissing, f"s3://{bucket}/raw/mpd", s3)
    assert sentence == f"s3://{bucket}/raw/mpd: S3 does not know these credentials ({code})"
    with pytest.raises(EnvironmentMissing) as caught:
        read_bytes(f"s3://{bucket}/raw/mpd/a.json", s3)
    assert caught.value.exit_code == 4
    assert "credentials" in str(caught.value.remedy)


@pytest.fixture
def _nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials anywhere, and no machine's role is asked for."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


@pytest.mark.usefixtures("_nobody")
def test_no_credentials_are_said(s3: S3Config) -> None:
    assert refused(EnvironmentMissing, "s3://bucket/mpd", s3) == "s3://bucket/mpd: no AWS credentials found"


@pytest.mark.usefixtures("_nobody")
def test_half_of_the_credentials_is_said(s3: S3Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    assert "missing: AWS_SECRET_ACCESS_KEY" in refused(EnvironmentMissing, "s3://bucket/mpd", s3)


@pytest.mark.usefixtures("_nobody")
def test_an_unknown_profile_is_said(s3: S3Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nosuch")
    assert "The config profile (nosuch) could not be found" in refused(EnvironmentMissing, "s3://bucket/mpd", s3)


@pytest.mark.parametrize("endpoint", ["", "localhost:8333", "http://"])
def test_an_endpoint_that_is_no_address_is_a_wrong_setting(endpoint: str) -> None:
    s3 = S3Config(endpoint=endpoint, region="us-east-1", path_style=True)
    sentence = refused(ConfigError, "s3://bucket/mpd", s3)
    assert sentence.startswith(f"s3.endpoint: an address such as https://host:port expected, {endpoint!r} found")


# a server that fails ------------------------------------------------------------------------------------------------


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """boto3 tries again without waiting."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
    monkeypatch.setattr(botocore.endpoint, "time", SimpleNamespace(sleep=lambda seconds: None))


@contextmanager
def answering(status: int, body: bytes = b"") -> Iterator[tuple[S3Config, list[str]]]:
    """A server with one answer to everything, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        yield S3Config(endpoint=address, region="us-east-1", path_style=True), asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.usefixtures("_impatient")
def test_a_server_that_is_away_is_a_passing_failure() -> None:
    with answering(200) as (gone, _):
        pass
    with pytest.raises(TransientError, match="s3://bucket/mpd: the S3 server does not answer") as caught:
        list_files("s3://bucket/mpd", "*", gone)
    assert caught.value.exit_code == 75
    assert "s3.endpoint" in str(caught.value.remedy)
    with pytest.raises(TransientError, match="does not answer"):
        read_bytes("s3://bucket/mpd/a.json", gone)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (503, b"<Error><Code>SlowDown</Code><Message>slower</Message></Error>"),
        (500, b"<Error><Code>InternalError</Code></Error>"),
        (502, b""),
        (503, b""),
        (429, b""),
    ],
)
@pytest.mark.usefixtures("_impatient")
def test_a_throttled_or_broken_server_is_a_passing_failure_after_some_tries(status: int, body: bytes) -> None:
    with answering(status, body) as (s3, asked):
        assert refused(TransientError, "s3://bucket/mpd", s3).startswith("s3://bucket/mpd: S3 returned ")
        assert len(asked) == 6


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "ExpiredToken", EnvironmentMissing),
        (403, "RequestTimeTooSkewed", EnvironmentMissing),
        (403, "AccessDenied", EnvironmentMissing),
        (404, "NoSuchBucket", InputError),
        (400, "AuthorizationHeaderMalformed", InputError),
    ],
)
@pytest.mark.usefixtures("_impatient")
def test_what_another_try_does_not_mend_is_not_tried_again(status: int, code: str, kind: type[EncoreError]) -> None:
    body = f"<Error><Code>{code}</Code><Message>why</Message></Error>".encode()
    with answering(status, body) as (s3, asked):
        assert code in refused(kind, "s3://bucket/mpd", s3)
        assert len(asked) == 1


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ReadTimeoutError(endpoint_url="http://s3"), TransientError),
        (IncompleteReadError(actual_bytes=1, expected_bytes=2), TransientError),
        (PartialCredentialsError(provider="env", cred_var="secret"), EnvironmentMissing),
        (CredentialRetrievalError(provider="sso", error_msg="expired"), EnvironmentMissing),
        (ProfileNotFound(profile="x"), EnvironmentMissing),
    ],
)
def test_an_error_of_boto_has_one_of_ours(error: Exception, kind: type[EncoreError]) -> None:
    found = aws_error("s3://bucket/key", error, server="S3")
    assert type(found) is kind
    assert str(found).startswith("s3://bucket/key: ")
