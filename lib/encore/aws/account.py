"""Clients for AWS, and the mapping of boto's errors to Encore's: a sentence, a remedy and an exit code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from botocore.config import Config as BotoConfig
from botocore.exceptions import BotoCoreError, ClientError

from encore.lake.failures import aws_error, response_metadata


def client(service: str, region: str | None) -> Any:
    """A boto3 client that retries throttled calls. EnvironmentMissing if there is no region or no such profile."""
    with translate_errors(service):
        retries = BotoConfig(retries={"mode": "standard", "max_attempts": 5})
        return boto3.client(service, region_name=region, config=retries)


def region_of(given: str | None) -> str | None:
    """The given region, else AWS_REGION, else what boto3 finds; None if no region is set."""
    with translate_errors("AWS region"):
        return given or os.environ.get("AWS_REGION") or boto3.session.Session().region_name


@contextmanager
def translate_errors(what: str) -> Iterator[None]:
    """Turn boto's errors raised in the block into ours. `what`: the subject of the message, such as a bucket."""
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise aws_error(what, error) from error


def http_status(error: BotoCoreError | ClientError) -> int:
    """The HTTP status of AWS's response; 0 if there was none."""
    return int(response_metadata(error).get("HTTPStatusCode", 0))


def response_header(error: BotoCoreError | ClientError, name: str) -> str | None:
    """A header of AWS's response, by its lower-case name; None if it is absent or there was no response."""
    found: str | None = response_metadata(error).get("HTTPHeaders", {}).get(name)
    return found
