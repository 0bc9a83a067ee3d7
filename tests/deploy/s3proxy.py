"""A proxy before an S3 server that writes down what is asked of it, whoever asks: boto3, delta-rs or Hadoop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

from tests.deploy.proxy import Asked, forwarding


@dataclass(frozen=True)
class Call:
    """What S3 needs a permission for: `key` is empty where it is about the bucket; `prefix` None where none is given.

    `missing`: the answer was that there is no such object, which S3 says only to those who may list the bucket.
    """

    action: str
    bucket: str
    key: str = ""
    prefix: str | None = None
    missing: bool = False


@dataclass
class Recorder:
    """Where the proxy listens, what was asked of it, and requests of which it is not known what they take."""

    endpoint: str = ""
    calls: set[Call] = field(default_factory=set)
    unknown: list[str] = field(default_factory=list)


def calls_of(asked: Asked, status: int) -> list[Call]:
    """The permissions that one request takes. ValueError for a request that is not known here."""
    method, parts = asked.method, urlsplit(asked.target)
    query = parse_qs(parts.query, keep_blank_values=True)
    bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
    missing = status == 404
    if not key:
        if method == "GET" and not query.keys() & {"location", "uploads", "versions"}:
            return [Call("s3:ListBucket", bucket, prefix=query.get("prefix", [None])[0])]
        if method == "HEAD":
            return [Call("s3:ListBucket", bucket)]
        if method == "POST" and "delete" in query:
            try:
                listed = ElementTree.fromstring(asked.body)
            except ElementTree.ParseError as error:
                raise ValueError(f"{method} {asked.target}: {error}") from error
            keys = [item.text or "" for item in listed.iter() if item.tag.endswith("Key")]
            return [Call("s3:DeleteObject", bucket, name) for name in keys]
        raise ValueError(f"{method} {asked.target}: not known")
    if method in ("GET", "HEAD"):
        return [Call("s3:GetObject", bucket, key, missing=missing)]
    if method == "DELETE":
        return [Call("s3:AbortMultipartUpload" if "uploadId" in query else "s3:DeleteObject", bucket, key)]
    if method in ("PUT", "POST"):
        found = [Call("s3:PutObject", bucket, key)]
        source = asked.headers.get("x-amz-copy-source")
        if source:
            other, _, name = unquote(source).lstrip("/").partition("/")
            found.append(Call("s3:GetObject", other, name))
        return found
    raise ValueError(f"{method} {asked.target}: not known")


@contextmanager
def recording(endpoint: str) -> Iterator[Recorder]:
    """A proxy before the server at `endpoint`, for as long as the block lasts."""
    recorder = Recorder()

    def answered(asked: Asked, status: int) -> None:
        recorder.calls.update(calls_of(asked, status))

    with forwarding(endpoint, answered, recorder.unknown) as recorder.endpoint:
        yield recorder
