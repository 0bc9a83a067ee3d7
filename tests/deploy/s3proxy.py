"""A proxy before an S3 server that writes down what is asked of it, whoever asks: boto3, delta-rs or Hadoop."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "te", "upgrade"}


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
    """Where the proxy listens, and what was asked of it."""

    endpoint: str = ""
    calls: set[Call] = field(default_factory=set)


def calls_of(method: str, target: str, headers: dict[str, str], body: bytes, status: int) -> list[Call]:
    """The permissions that one request takes. ValueError for a request that is not known here."""
    parts = urlsplit(target)
    query = parse_qs(parts.query, keep_blank_values=True)
    bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
    missing = status == 404
    if not key:
        if method == "GET" and not query.keys() & {"location", "uploads", "versions"}:
            return [Call("s3:ListBucket", bucket, prefix=query.get("prefix", [None])[0])]
        if method == "HEAD":
            return [Call("s3:ListBucket", bucket)]
        if method == "POST" and "delete" in query:
            keys = [item.text or "" for item in ElementTree.fromstring(body).iter() if item.tag.endswith("Key")]
            return [Call("s3:DeleteObject", bucket, name) for name in keys]
        raise ValueError(f"{method} {target}: not known")
    if method in ("GET", "HEAD"):
        return [Call("s3:GetObject", bucket, key, missing=missing)]
    if method == "DELETE":
        return [Call("s3:AbortMultipartUpload" if "uploadId" in query else "s3:DeleteObject", bucket, key)]
    if method in ("PUT", "POST"):
        found = [Call("s3:PutObject", bucket, key)]
        source = headers.get("x-amz-copy-source")
        if source:
            other, _, name = unquote(source).lstrip("/").partition("/")
            found.append(Call("s3:GetObject", other, name))
        return found
    raise ValueError(f"{method} {target}: not known")


@contextmanager
def recording(endpoint: str) -> Iterator[Recorder]:
    """A proxy before the server at `endpoint`, for as long as the block lasts."""
    recorder, origin = Recorder(), urlsplit(endpoint).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """What is asked is written down elsewhere."""

        def forward(self) -> None:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                body = b"".join(iter(self._chunk, b""))
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            given = {name.lower(): value for name, value in self.headers.items() if name.lower() not in HOP}
            given["content-length"] = str(len(body))
            # the signature covers the name of the host as the client knows it, so that goes on unchanged
            connection = http.client.HTTPConnection(origin, timeout=60)
            connection.request(self.command, self.path, body, given)
            answer = connection.getresponse()
            content = answer.read()
            recorder.calls.update(calls_of(self.command, self.path, given, body, answer.status))
            self.send_response_only(answer.status, answer.reason)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            for name, value in answer.getheaders():
                if name.lower() not in HOP | {"content-length"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            self.wfile.write(content)
            connection.close()

        def _chunk(self) -> bytes:
            size = int(self.rfile.readline().split(b";")[0], 16)
            data = self.rfile.read(size)
            self.rfile.readline()
            return data

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    recorder.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield recorder
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
