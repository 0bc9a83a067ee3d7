"""Clients for AWS, and the mapping of boto's errors to Encore's: a sentence, a remedy and an exit code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from botocore.config import Config as BotoConfig
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigParseError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)

from encore.errors import ConfigError, EncoreError, EnvironmentMissing, InputError, TransientError

_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired")
_UNKNOWN = ("InvalidClientTokenId", "UnrecognizedClientException", "InvalidAccessKeyId", "SignatureDoesNotMatch")
_REFUSED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403")
_MISSING = ("ResourceNotFoundException", "NoSuchBucket", "NoSuchKey", "404", "NoSuchEntity")
_TRANSIENT = ("ThrottlingException", "Throttling", "TooManyRequestsException", "SlowDown", "InternalServerException")


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
    return int(_response_metadata(error).get("HTTPStatusCode", 0))


def response_header(error: BotoCoreError | ClientError, name: str) -> str | None:
    """A header of AWS's response, by its lower-case name; None if it is absent or there was no response."""
    found: str | None = _response_metadata(error).get("HTTPHeaders", {}).get(name)
    return found


def _response_metadata(error: BotoCoreError | ClientError) -> dict[str, Any]:
    found: dict[str, Any] = error.response.get("ResponseMetadata", {}) if isinstance(error, ClientError) else {}
    return found


def aws_error(what: str, error: BotoCoreError | ClientError) -> EncoreError:
    """Encore's error for one of boto's; `what` begins the message."""
    text = " ".join(str(error).split())
    if isinstance(error, NoCredentialsError):
        return EnvironmentMissing(
            f"{what}: no AWS credentials found",
            remedy="set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; or log in with `aws sso login`",
        )
    if isinstance(error, (SSOError, TokenRetrievalError)):
        return EnvironmentMissing(f"{what}: the login has expired: {text}", remedy="run `aws sso login`")
    if isinstance(error, (PartialCredentialsError, CredentialRetrievalError, ProfileNotFound)):
        return EnvironmentMissing(f"{what}: AWS credentials: {text}", remedy="fix the profile or the AWS_* variables")
    if isinstance(error, NoRegionError):
        return EnvironmentMissing(f"{what}: no AWS region is set", remedy="set AWS_REGION, or `region` in the profile")
    if isinstance(error, ConfigParseError):
        return EnvironmentMissing(f"{what}: {text}", remedy="fix that file, or set AWS_CONFIG_FILE to another")
    if isinstance(error, ParamValidationError):
        return ConfigError(f"{what}: {text}")
    if isinstance(error, EndpointConnectionError):
        return TransientError(
            f"{what}: AWS does not answer: {text}", remedy="check the network, the proxy and the region"
        )
    if not isinstance(error, ClientError):
        return TransientError(f"{what}: {text}")
    found = error.response.get("Error", {})
    code, message = str(found.get("Code", "")), str(found.get("Message", ""))
    answered = http_status(error)
    if code in _EXPIRED:
        return EnvironmentMissing(f"{what}: the AWS credentials have expired", remedy="get new ones: `aws sso login`")
    if code in _UNKNOWN:
        return EnvironmentMissing(f"{what}: AWS does not know these credentials ({code})", remedy="check AWS_PROFILE")
    if code in _REFUSED or answered == 403:
        return EnvironmentMissing(
            f"{what}: access denied ({code}): {message}",
            remedy="grant the caller this permission, or use another profile",
        )
    if code in ("PermanentRedirect", "301") or answered == 301:
        return InputError(f"{what}: is in another region", remedy="set AWS_REGION to the region of the bucket")
    if code in _MISSING or answered == 404:
        return InputError(f"{what}: does not exist ({code})", remedy="check the name, the account and the region")
    if code == "ServiceQuotaExceededException":
        return TransientError(
            f"{what}: quota exceeded: {message}", remedy="wait for other runs to end, or request a higher quota"
        )
    if code in _TRANSIENT or answered >= 500 or answered == 429:
        return TransientError(f"{what}: AWS returned {code}: {message}", remedy="try again")
    return InputError(f"{what}: AWS returned {code}: {message}")
