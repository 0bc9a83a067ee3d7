"""Which error is which: the rows of deploy/docs/exit-codes.md, each with what raises it."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
)
from deltalake.exceptions import DeltaError

from encore.errors import EncoreError, InputError
from encore.lake.failures import aws_error, data_error, delta_error, known, os_error

DOCS = Path(__file__).resolve().parents[3] / "deploy" / "docs" / "exit-codes.md"


def answer(code: str, status: int) -> ClientError:
    about: Any = {"Error": {"Code": code, "Message": "why"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(about, "GetObject")


def of_os(number: int) -> EncoreError:
    return os_error("f", OSError(number, "why"))


REFUSED_CONNECTION = (
    "Kernel error -> Generic S3 error\n \x1b[31m↳\x1b[0m Error performing GET http://h/b in 11s, after 10 retries\n"
    " ↳ error sending request\n ↳ client error (Connect)\n ↳ tcp connect error\n ↳ Connection refused (os error 111)\n"
)
FULL = "Failed to parse parquet: External: Generic LocalFileSystem error: No space left on device (os error 28)"

FAILING = "Throttling, a time-out or a failure of a service"

ROWS: list[tuple[str, EncoreError | None, int]] = [
    ("No space left on device", of_os(errno.ENOSPC), 4),
    ("No space left on device", of_os(errno.EDQUOT), 4),
    ("No space left on device", of_os(errno.EFBIG), 4),
    ("No space left on device", delta_error("t", DeltaError(FULL)), 4),
    ("Too many open files", of_os(errno.EMFILE), 4),
    ("A read-only file system", of_os(errno.EROFS), 5),
    ("A read-only file system", delta_error("t", OSError("Read-only file system (os error 30)")), 5),
    ("Permission denied: a table", of_os(errno.EACCES), 5),
    ("Permission denied: input", os_error("f", OSError(errno.EACCES, "why"), InputError), 3),
    ("A missing file: input", os_error("f", OSError(errno.ENOENT, "why"), InputError), 3),
    ("A missing file: a data file of a table", data_error("f", FileNotFoundError(errno.ENOENT, "why")), 5),
    ("A damaged data file", data_error("f", pa.ArrowInvalid("Parquet magic bytes not found")), 5),
    ("A damaged data file", data_error("f", OSError("Corrupt snappy compressed data.")), 5),
    ("A server that does not answer", aws_error("u", EndpointConnectionError(endpoint_url="http://h")), 75),
    ("A server that does not answer", aws_error("u", ConnectTimeoutError(endpoint_url="http://h")), 75),
    ("A server that does not answer", aws_error("u", ReadTimeoutError(endpoint_url="http://h")), 75),
    ("A server that does not answer", delta_error("t", OSError(REFUSED_CONNECTION)), 75),
    ("A server that does not answer", of_os(errno.ECONNRESET), 75),
    ("A server that does not answer", known(TimeoutError("timed out")), 75),
    (FAILING, aws_error("u", answer("SlowDown", 503)), 75),
    (FAILING, aws_error("u", answer("RequestTimeout", 400)), 75),
    (
        "Throttling, a time-out or a failure of a service",
        aws_error("u", answer("RequestTimeout", 400), server="S3"),
        75,
    ),
    (FAILING, aws_error("u", answer("Throttling", 400)), 75),
    (FAILING, aws_error("u", answer("InternalError", 500)), 75),
    ("A quota that is exceeded", aws_error("u", answer("ServiceQuotaExceededException", 402)), 75),
    ("No credentials, unknown or expired ones", aws_error("u", NoCredentialsError()), 4),
    ("No credentials, unknown or expired ones", aws_error("u", answer("ExpiredToken", 400)), 4),
    ("No credentials, unknown or expired ones", aws_error("u", answer("InvalidAccessKeyId", 403)), 4),
    ("Access denied", aws_error("u", answer("AccessDenied", 403)), 4),
    ("Access denied", delta_error("t", OSError("Generic S3 error: 403 Forbidden: AccessDenied")), 4),
    ("A bucket or an object that does not exist", aws_error("u", answer("NoSuchBucket", 404), server="S3"), 3),
    ("A bucket in another region", aws_error("u", answer("PermanentRedirect", 301)), 3),
]


@pytest.mark.parametrize(("row", "found", "code"), ROWS)
def test_the_exit_code_of_an_error(row: str, found: EncoreError | None, code: int) -> None:
    assert found is not None
    assert found.exit_code == code
    assert "\x1b" not in str(found)
    assert str(found).count("\n") == 0


def test_the_table_in_the_docs_is_this_one() -> None:
    table = re.findall(r"^\| ([^|]+?) \| (\d+) \|", DOCS.read_text(), re.M)
    wanted = {(row, str(code)) for row, _, code in ROWS}
    assert wanted <= set(table)


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), FileNotFoundError(errno.ENOENT, "x"), OSError("x")])
def test_a_defect_stays_one(error: Exception) -> None:
    assert known(error) is None


@pytest.mark.parametrize("server", ["AWS", "S3"])
@pytest.mark.parametrize("code", ["RequestTimeout", "SlowDown", "ExpiredToken", "AccessDenied", "NoSuchKey", "Odd"])
def test_s3_and_other_services_agree(server: str, code: str) -> None:
    error: BotoCoreError | ClientError = answer(code, 400)
    assert aws_error("u", error, server=server).exit_code == aws_error("u", error).exit_code
