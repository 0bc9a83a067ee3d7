"""A proxy in front of an S3 server that records the calls of every client: boto3, delta-rs and Hadoop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

from tests.deploy.proxy import Request, forwarding


@dataclass(frozen=True)
class Call:
    """A call that needs a permission: `key` is empty for calls on a bucket, `prefix` None if the call has none.

    `missing`: the response was 404, which S3 only sends to callers that may list the bucket.
    """

    action: str
    bucket: str
    key: str = ""
    prefix: str | None = None
    missing: bool = False


@dataclass
class Recorder:
    """The proxy's URL, the recorded calls, and requests whose permissions are unknown."""

    endpoint: str = ""
    calls: set[Call] = field(default_factory=set)
    unknown: list[str] = field(default_factory=list)


def calls_of(request: Request, status: int) -> list[Call]:
    """The permissions that a request needs. ValueError for an unknown request."""
    method, parts = request.method, urlsplit(request.target)
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
                listed = ElementTree.fromstring(request.body)
            except ElementTree.ParseError as error:
                raise ValueError(f"{method} {request.target}: {error}") from error
            keys = [item.text or "" for item in listed.iter() if item.tag.endswith("Key")]
            return [Call("s3:DeleteObject", bucket, name) for name in keys]
        raise ValueError(f"{method} {request.target}: unknown request")
    if method in ("GET", "HEAD"):
        return [Call("s3:GetObject", bucket, key, missing=missing)]
    if method == "DELETE":
        return [Call("s3:AbortMultipartUpload" if "uploadId" in query else "s3:DeleteObject", bucket, key)]
    if method in ("PUT", "POST"):
        found = [Call("s3:PutObject", bucket, key)]
        source = request.headers.get("x-amz-copy-source")
        if source:
            other, _, name = unquote(source).lstrip("/").partition("/")
            found.append(Call("s3:GetObject", other, name))
        return found
    raise ValueError(f"{method} {request.target}: unknown request")


@contextmanager
def recording(endpoint: str) -> Iterator[Recorder]:
    """A recording proxy in front of the server at `endpoint` while the block runs."""
    recorder = Recorder()

    def on_response(request: Request, status: int) -> None:
        recorder.calls.update(calls_of(request, status))

    with forwarding(endpoint, on_response, recorder.unknown) as recorder.endpoint:
        yield recorder
