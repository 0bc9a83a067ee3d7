"""Translates errors of file systems, AWS, Arrow and delta-rs into Encore's errors; no other module does this.

The driver and the workers both use it, whichever library accessed the file; deploy/docs/exit-codes.md shows the mapping
as a table. A transient failure (75) may succeed on a retry; any other failure needs someone to act first.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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

from encore.errors import ConfigError, EncoreError, EnvironmentMissing, InputError, LakeError, TransientError

_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "InvalidToken", "RequestExpired", "TokenRefreshRequired")
_UNKNOWN = ("InvalidClientTokenId", "UnrecognizedClientException", "InvalidAccessKeyId", "SignatureDoesNotMatch")
_REFUSED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "401", "403")
_NO_IMAGE = ("ImageNotFoundException", "RepositoryNotFoundException")
_MISSING = ("ResourceNotFoundException", "NoSuchBucket", "NoSuchKey", "404", "NoSuchEntity", *_NO_IMAGE)
_TRANSIENT = (
    "InternalError",
    "InternalServerException",
    "OperationAborted",
    "RequestTimeout",
    "RequestTimeoutException",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TOO_MANY = (errno.EMFILE, errno.ENFILE)
_NETWORK = (
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.EPIPE,
    errno.ETIMEDOUT,
)

# delta-rs reports errors of its object store only as text; the first pattern that matches decides
_SPOKEN: tuple[tuple[str, str], ...] = (
    (r"os error 28\b|No space left on device|os error 122\b|Disk quota exceeded|os error 27\b|File too large", "full"),
    (r"os error 30\b|Read-only file system", "read-only"),
    (r"os error (24|23)\b|Too many open files", "open files"),
    (r"NoSuchBucket", "missing"),
    (
        r"error sending request|client error \(Connect\)|Connection re(fused|set)|timed out|retry_timeout|dns error"
        r"|50[0234] |Service ?Unavailable|SlowDown|429 |Too Many Requests|RequestTimeout|InternalError"
        r"|connection closed|error decoding response body|IncompleteMessage",
        "network",
    ),
    (
        r"ExpiredToken|InvalidAccessKeyId|SignatureDoesNotMatch|AccessDenied|PermissionDenied|Unauthenticated|Forbidden"
        r"|40[13] |the credential provider was not enabled|loading credentials|no providers in chain",
        "access",
    ),
    (r"os error (1|13)\b|Permission denied", "permission"),
)

_SET_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_ENDS = re.compile(r"\x1b\[[0-9;]*m|[↳]")


def one_line(error: BaseException) -> str:
    """An error's message on one line, without delta-rs's colours and arrows; the name of its class if it is empty."""
    return " ".join(_ENDS.sub(" ", str(error)).split())[:1000] or type(error).__name__


def full(what: str) -> EnvironmentMissing:
    """The error for a disk that has no space left for writing `what`."""
    return EnvironmentMissing(f"{what}: no space left on device", remedy="free some space, or choose another disk")


def os_error(what: str, error: OSError, otherwise: type[EncoreError] = LakeError) -> EncoreError:
    """Translate an OSError, raised by the operating system, delta-rs or Arrow, into one of our errors.

    `otherwise`: the class for errors whose class depends on the context: InputError for Encore's input, LakeError for
    tables.
    """
    number = error.errno
    if number in _FULL:
        return full(what)
    if number == errno.EROFS:
        return LakeError(f"{what}: the file system is read-only", remedy="choose another place, or mount it writable")
    if number in _TOO_MANY:
        return EnvironmentMissing(f"{what}: too many open files", remedy="raise the limit: ulimit -n")
    if number in _NETWORK or isinstance(error, (ConnectionError, TimeoutError)):
        return TransientError(f"{what}: {error.strerror or one_line(error)}", remedy="check the network, and try again")
    if number in (errno.EACCES, errno.EPERM):
        return otherwise(f"{what}: {error.strerror or 'Permission denied'}", remedy="fix its permissions")
    if number == errno.ENOENT:
        return otherwise(f"{what}: no such file", remedy=BROKEN_TABLE if otherwise is LakeError else None)
    if number is None:
        return _spoken(what, error) or otherwise(f"{what}: {one_line(error)}")
    return otherwise(f"{what}: {error.strerror or one_line(error)}")


BROKEN_TABLE = (
    "something other than Encore has changed the lake: restore the file, or remove the table's folder and run the "
    "job that writes it again"
)


def delta_error(what: str, error: Exception) -> EncoreError:
    """Translate an error of delta-rs, which raises DeltaError or OSError; LakeError if it is not recognised."""
    if isinstance(error, OSError) and error.errno is not None:
        return os_error(what, error)
    return _spoken(what, error) or LakeError(f"{what}: {one_line(error)[:500]}")


def _spoken(what: str, error: Exception) -> EncoreError | None:
    """Translate an error by its text alone; None if no pattern matches."""
    text = one_line(error)
    kind = next((kind for pattern, kind in _SPOKEN if re.search(pattern, text)), None)
    short = text[:500]
    if kind == "full":
        return full(what)
    if kind == "read-only":
        return LakeError(f"{what}: the file system is read-only", remedy="choose another place, or mount it writable")
    if kind == "open files":
        return EnvironmentMissing(f"{what}: too many open files", remedy="raise the limit: ulimit -n")
    if kind == "missing":
        return InputError(f"{what}: the bucket does not exist", remedy="check the name, the account and the region")
    if kind == "network":
        return TransientError(f"{what}: the S3 server does not answer: {short}", remedy=_CHECK_ENDPOINT)
    if kind == "access":
        return EnvironmentMissing(f"{what}: access denied: {short}", remedy=_CHECK_CREDENTIALS)
    if kind == "permission":
        return LakeError(f"{what}: Permission denied", remedy="fix its permissions")
    return None


_CHECK_ENDPOINT = "check s3.endpoint and the network"
_CHECK_CREDENTIALS = "check the credentials, their expiry and the bucket's policy"


def data_error(path: str, error: Exception) -> EncoreError:
    """Translate an error raised while reading a table's data file; adds the file's name, which Arrow omits."""
    if isinstance(error, OSError) and error.errno is not None:
        return os_error(path, error)
    return LakeError(f"{path}: a damaged data file: {one_line(error)[:300]}", remedy=BROKEN_TABLE)


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Translate errors of reading a data file within the block, and name the file in them: see `data_error`."""
    # imported here because callers that only list files do not need it
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        raise data_error(path, error) from error


@contextmanager
def writing(path: str) -> Iterator[None]:
    """Translate errors of writing a file within the block, and name the file in them: see `os_error`."""
    try:
        yield
    except OSError as error:
        raise os_error(path, error) from error


def known(error: BaseException) -> EncoreError | None:
    """Translate an error that left a task or a job untranslated; None if it can only be a defect."""
    if isinstance(error, EncoreError):
        return error
    if isinstance(error, (BotoCoreError, ClientError)):
        return aws_error("AWS", error)
    if isinstance(error, OSError):
        names = [str(name) for name in (error.filename, error.filename2) if name]
        everywhere = (*_FULL, *_TOO_MANY, *_NETWORK, errno.EROFS, errno.EACCES, errno.EPERM)
        # other errors, such as a missing file that no caller handled, are defects
        if error.errno in everywhere or isinstance(error, (ConnectionError, TimeoutError)):
            return os_error(names[0] if names else "a file", error)
        return _spoken("a file", error) if error.errno is None else None
    return None


@contextmanager
def translated() -> Iterator[None]:
    """Translate errors within the block that are `known`; others pass through unchanged."""
    try:
        yield
    except EncoreError:
        raise
    except Exception as error:
        found = known(error)
        if found is None:
            raise
        raise found from error


def response_metadata(error: BotoCoreError | ClientError) -> dict[str, Any]:
    """The metadata of AWS's response; empty if there was none."""
    found: dict[str, Any] = error.response.get("ResponseMetadata", {}) if isinstance(error, ClientError) else {}
    return found


def aws_error(what: str, error: BotoCoreError | ClientError, *, server: str = "AWS") -> EncoreError:
    """Translate an error of boto. `what` was requested; `server` is the name of the service in the message."""
    text = one_line(error)
    if isinstance(error, ClientError):
        return _answer_error(what, error, server)
    if isinstance(error, NoCredentialsError):
        return EnvironmentMissing(f"{what}: no AWS credentials found", remedy=f"{_SET_CREDENTIALS}; `aws sso login`")
    if isinstance(error, (SSOError, TokenRetrievalError)):
        return EnvironmentMissing(
            f"{what}: AWS credentials: the login has expired: {text}", remedy="call `aws sso login`"
        )
    if isinstance(error, (PartialCredentialsError, CredentialRetrievalError, ProfileNotFound)):
        return EnvironmentMissing(f"{what}: AWS credentials: {text}", remedy=_SET_CREDENTIALS)
    if isinstance(error, NoRegionError):
        return EnvironmentMissing(f"{what}: no AWS region is set", remedy="set AWS_REGION, or region in the profile")
    if isinstance(error, ConfigParseError):
        return EnvironmentMissing(f"{what}: {text}", remedy="fix that file, or set AWS_CONFIG_FILE to another")
    if isinstance(error, ParamValidationError):
        if server == "S3":
            return InputError(f"{what}: not an address in S3: {text}")
        return ConfigError(f"{what}: {text}")
    if isinstance(error, EndpointConnectionError):
        if server == "S3":
            return TransientError(f"{what}: the S3 server does not answer", remedy=_CHECK_ENDPOINT)
        return TransientError(
            f"{what}: AWS does not answer: {text}", remedy="check the network, the proxy and the region"
        )
    return TransientError(f"{what}: {text}")


def _answer_error(what: str, error: ClientError, server: str) -> EncoreError:
    """Translate an error response."""
    found = error.response.get("Error", {})
    code, message = str(found.get("Code", "")), str(found.get("Message", ""))
    said = f"{code}: {message}" if message else code
    status = int(response_metadata(error).get("HTTPStatusCode", 0))
    if code in _EXPIRED:
        return EnvironmentMissing(
            f"{what}: the AWS credentials have expired ({code})", remedy="get new ones: `aws sso login`"
        )
    if code in _UNKNOWN:
        return EnvironmentMissing(
            f"{what}: {server} does not know these credentials ({code})", remedy="check the credentials and AWS_PROFILE"
        )
    if code in _REFUSED or status in (401, 403):
        return EnvironmentMissing(
            f"{what}: access denied ({code})" + (f": {message}" if message else ""), remedy=_CHECK_CREDENTIALS
        )
    if code in ("PermanentRedirect", "301") or status == 301:
        return InputError(f"{what}: is in another region", remedy="set AWS_REGION to the region of the bucket")
    if code in _MISSING or status == 404:
        return InputError(f"{what}: does not exist ({code})", remedy="check the name, the account and the region")
    if code == "ServiceQuotaExceededException":
        return TransientError(
            f"{what}: quota exceeded: {message}", remedy="wait for other runs to end, or request a higher quota"
        )
    if code in _TRANSIENT or status >= 500 or status == 429:
        return TransientError(f"{what}: {server} returned {said}", remedy="try again")
    return InputError(f"{what}: {server} returned {said}")
