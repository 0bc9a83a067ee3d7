"""Credentials for S3. There is a single source: boto3's chain, which also feeds delta-rs.

delta-rs has a chain of its own, which finds credentials in other places and does not report where it looked. Options
with fixed keys take precedence over it, so it is never used.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from encore.config import S3Config
from encore.lake.failures import aws_error


def default_session() -> Any:
    """The session that all boto3 clients of this process share, with its credentials."""
    # imported here because it takes half a second, which workers with local files should not pay
    import boto3

    if boto3.DEFAULT_SESSION is None:
        boto3.setup_default_session()
    return boto3.DEFAULT_SESSION


def delta_credentials(url: str, s3: S3Config) -> dict[str, str]:
    """The storage options of delta-rs with the current credentials, and the region.

    Temporary credentials are renewed by boto3 if they expire within 15 minutes, so that the options are valid for at
    least 10 minutes: get new ones for each table that is opened. EnvironmentMissing if there are no credentials; `url`
    is the location that the message names.
    """
    try:
        session = default_session()
        found = session.get_credentials()
        if found is None:
            raise NoCredentialsError
        keys = found.get_frozen_credentials()
    except (BotoCoreError, ClientError) as error:
        raise aws_error(url, error, server="S3") from error
    options = {"aws_access_key_id": keys.access_key, "aws_secret_access_key": keys.secret_key}
    if keys.token:
        options["aws_session_token"] = keys.token
    region = s3.region or session.region_name
    if region:
        options["aws_region"] = region
    return options


def aws_identity(s3: S3Config) -> str | None:
    """The ARN of the principal whose credentials this process uses, according to AWS STS; None if the settings name a
    server other than AWS."""
    if s3.endpoint is not None:
        return None
    try:
        client = default_session().client("sts", region_name=s3.region)
        if not str(urlsplit(client.meta.endpoint_url).hostname).startswith("sts."):
            return None
        found: str = client.get_caller_identity()["Arn"]
    except (BotoCoreError, ClientError) as error:
        raise aws_error("AWS STS", error) from error
    return found
