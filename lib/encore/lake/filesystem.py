"""Access to files on a local disk or in S3. Which files belong to a table is decided in store.py."""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import io
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from encore.config import S3Config
from encore.errors import ConfigError, InputError, LakeError
from encore.lake.failures import aws_error, os_error

_BLOCK = 1 << 20
"""The bytes that are copied at a time."""
_WILDCARDS = "*?["
_SKIPPED = (".", "_")
"""How names of files and folders start that tools write for themselves: .DS_Store, __MACOSX, _SUCCESS."""


@dataclass(frozen=True)
class SourceFile:
    """A file as listed. `etag` is set only for files in S3; `modified_ns` is in ns since 1970."""

    url: str
    name: str
    size: int
    modified_ns: int
    etag: str | None = None


def is_s3(url: str) -> bool:
    """Whether a URL points into S3 (s3:// as the AWS tools write it, s3a:// as Hadoop does)."""
    return url.startswith(("s3://", "s3a://"))


def split_s3(url: str) -> tuple[str, str]:
    """Bucket and key (or prefix) of an S3 URL."""
    bucket, _, key = url.split("://", 1)[1].partition("/")
    return bucket, key


def s3_client(s3: S3Config) -> Any:
    """A boto3 client with credentials from the environment or the machine's role. ConfigError for a bad endpoint."""
    # imported here because it takes half a second, which workers with local files should not pay
    import boto3
    from botocore.config import Config as BotoConfig

    try:
        return boto3.client(
            "s3",
            endpoint_url=s3.endpoint,
            region_name=s3.region,
            config=BotoConfig(
                s3={"addressing_style": "path" if s3.path_style else "auto"},
                retries={"mode": "standard", "max_attempts": 5},
            ),
        )
    except ValueError as error:
        raise ConfigError(
            f"s3.endpoint: an address such as https://host:port expected, {s3.endpoint!r} found: {error}"
        ) from error


def list_files(url: str, pattern: str, s3: S3Config) -> list[SourceFile]:
    """The files at `url`, sorted by name: one file, the matches of a glob, or the files directly in a folder or prefix
    that match `pattern`.

    Raises InputError if the folder or file does not exist. For an empty folder the list is empty.
    """
    found = _list_s3(url, pattern, s3) if is_s3(url) else _list_local(url, pattern)
    return sorted(found, key=lambda file: (file.name, file.url))


def _list_local(url: str, pattern: str) -> list[SourceFile]:
    path = url.removeprefix("file://")
    files = []
    try:
        if os.path.isdir(path):
            names = [os.path.join(path, entry) for entry in os.listdir(path) if _matches(entry, pattern)]
        else:
            names = [path] if os.path.isfile(path) else glob.glob(path)
            if not names:
                raise InputError(f"no such file or folder: {path}")
        for name in names:
            if os.path.isfile(name):
                stat = os.stat(name)
                files.append(SourceFile(os.path.abspath(name), os.path.basename(name), stat.st_size, stat.st_mtime_ns))
    except OSError as error:
        raise os_error(str(error.filename or path), error, InputError) from error
    return files


def _matches(name: str, pattern: str) -> bool:
    return any(fnmatch.fnmatch(name, p) for p in pattern.split("|"))


def _list_s3(url: str, pattern: str, s3: S3Config) -> list[SourceFile]:
    bucket, key = split_s3(url)
    is_glob = any(sign in key for sign in _WILDCARDS)
    prefix = key[: min(key.find(sign) for sign in _WILDCARDS if sign in key)] if is_glob else key
    folder = key if key == "" or key.endswith("/") else key + "/"
    files, is_there = [], key == ""
    try:
        pages = s3_client(s3).get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        for page in pages:
            for item in page.get("Contents", ()):
                if is_glob:
                    wanted = fnmatch.fnmatch(item["Key"], key) and item["Key"].count("/") == key.count("/")
                    is_there = is_there or wanted
                elif item["Key"] == key:
                    wanted = is_there = True
                else:
                    # the prefix "mp" must not match mpd/1.json
                    rest = item["Key"].removeprefix(folder)
                    is_below = item["Key"].startswith(folder)
                    is_there = is_there or is_below
                    wanted = is_below and "/" not in rest and _matches(rest, pattern)
                # an empty object such as mpd/, which some tools create as a folder, is not a file
                if wanted and not item["Key"].endswith("/"):
                    files.append(_object(f"s3://{bucket}/{item['Key']}", item["Key"].rsplit("/", 1)[-1], item))
    except (BotoCoreError, ClientError) as error:
        raise aws_error(url, error, server="S3") from error
    if not is_there:
        raise InputError(f"nothing at {url}")
    return files


def folder_of(url: str) -> str:
    """The longest folder of a glob without wildcards; any other URL as it is."""
    signs = [place for sign in _WILDCARDS if (place := url.find(sign)) >= 0]
    return url[: min(signs)].rpartition("/")[0] if signs else url


def list_tree(url: str, s3: S3Config) -> list[SourceFile]:
    """The files at `url`, sorted by name: one file, the matches of a glob, or the contents of a folder or prefix. Of
    folders, also those that a glob matches, all subfolders are listed too.

    The name of a file is its path relative to the folder. Of a glob it is relative to `folder_of` the glob, but if all
    files lie in one folder, it is the plain name of the file. Names that start with `.` or `_` are skipped unless `url`
    contains them. Raises InputError if nothing exists at `url`. For an empty folder the list is empty.
    """
    found = _tree_s3(url, s3) if is_s3(url) else _tree_local(url.removeprefix("file://"))
    return sorted(found, key=lambda file: file.name)


def _tree_local(path: str) -> list[SourceFile]:
    try:
        if os.path.isdir(path):
            return list(_below(os.path.abspath(path), "", set()))
        is_glob = not os.path.isfile(path)
        matches = glob.glob(path) if is_glob else [path]
        if not matches:
            raise InputError(f"no such file or folder: {path}")
        base = os.path.abspath(folder_of(path) if is_glob else os.path.dirname(path))
        files: list[SourceFile] = []
        for match in matches:
            parts = match.split("/")
            if is_glob and _is_skipped(parts, path.split("/")):
                continue
            name = os.path.relpath(match, base)
            if os.path.isdir(match):
                files += _below(os.path.abspath(match), f"{name}/", set())
            elif os.path.isfile(match):
                files.append(_local_file(os.path.abspath(match), name))
        return _plainly_named(files)
    except OSError as error:
        raise os_error(str(error.filename or path), error, InputError) from error


def _below(folder: str, prefix: str, seen: set[tuple[int, int]]) -> Iterator[SourceFile]:
    """The files in a local folder and its subfolders, with `prefix` before their names. `seen`: the folders above, so
    that a link to one of them is not followed."""
    stat = os.stat(folder)
    above = {*seen, (stat.st_dev, stat.st_ino)}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(_SKIPPED):
                continue
            if entry.is_dir():
                own = entry.stat()
                if (own.st_dev, own.st_ino) not in above:
                    yield from _below(entry.path, f"{prefix}{entry.name}/", above)
            elif entry.is_file():
                yield _local_file(entry.path, prefix + entry.name)


def _local_file(path: str, name: str) -> SourceFile:
    stat = os.stat(path)
    return SourceFile(path, name, stat.st_size, stat.st_mtime_ns)


def _tree_s3(url: str, s3: S3Config) -> list[SourceFile]:
    bucket, key = split_s3(url)
    key = key.rstrip("/")
    is_glob = folder_of(f"/{key}") != f"/{key}"
    prefix = key[: min(key.find(sign) for sign in _WILDCARDS if sign in key)] if is_glob else key
    base = folder_of(f"/{key}")[1:] if is_glob else key
    pattern = key.split("/")
    files, is_there = [], key == ""
    try:
        pages = s3_client(s3).get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        for item in (item for page in pages for item in page.get("Contents", ())):
            parts = item["Key"].split("/")
            if is_glob:
                wanted = fnmatch.fnmatch("/".join(parts[: len(pattern)]), key) and len(parts) >= len(pattern)
            else:
                # the prefix "mp" must not match mpd/1.json
                wanted = item["Key"] == key or item["Key"].startswith(f"{key}/" if key else "")
            is_there = is_there or wanted
            # an empty object such as mpd/, which some tools create as a folder, is not a file
            if wanted and not item["Key"].endswith("/") and not _is_skipped(parts, pattern if key else []):
                name = parts[-1] if item["Key"] == key else item["Key"].removeprefix(f"{base}/" if base else "")
                files.append(_object(f"s3://{bucket}/{item['Key']}", name, item))
    except (BotoCoreError, ClientError) as error:
        raise aws_error(url, error, server="S3") from error
    if not is_there:
        raise InputError(f"nothing at {url}")
    return _plainly_named(files) if is_glob else files


def _object(url: str, name: str, item: dict[str, Any]) -> SourceFile:
    """A file in S3 from an item of a listing."""
    modified_ns = int(item["LastModified"].timestamp() * 1e9)
    return SourceFile(url, name, item["Size"], modified_ns, item["ETag"].strip('"'))


def _is_skipped(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a part of a path starts with a sign that is skipped, except where the pattern of a glob names it."""
    named = [*pattern, *("*" for _ in parts[len(pattern) :])]
    return any(
        part.startswith(_SKIPPED) and wanted.startswith(tuple(_WILDCARDS))
        for part, wanted in zip(parts, named, strict=True)
    )


def _plainly_named(files: list[SourceFile]) -> list[SourceFile]:
    """The files with their plain names if all of them lie in one folder."""
    if len({file.name.rpartition("/")[0] for file in files}) > 1:
        return files
    return [replace(file, name=file.name.rpartition("/")[2]) for file in files]


def read_bytes(url: str, s3: S3Config) -> bytes:
    """The whole content of a file. Raises InputError or TransientError with the URL."""
    if not is_s3(url):
        try:
            with open(url.removeprefix("file://"), "rb") as handle:
                return handle.read()
        except OSError as error:
            raise os_error(url, error, InputError) from error
    bucket, key = split_s3(url)
    try:
        body: bytes = s3_client(s3).get_object(Bucket=bucket, Key=key)["Body"].read()
    except (BotoCoreError, ClientError) as error:
        raise aws_error(url, error, server="S3") from error
    return body


def download(url: str, path: Path, client: Any) -> str:
    """Copy a file to a local path, in blocks; returns its SHA-256. `client`: of `s3_client`, for objects in S3.

    Raises InputError or TransientError with the URL.
    """
    digest = hashlib.sha256()
    try:
        with path.open("wb") as target:
            for block in _blocks(url, client):
                digest.update(block)
                target.write(block)
    except OSError as error:
        raise os_error(str(error.filename or path), error, InputError) from error
    return digest.hexdigest()


def _blocks(url: str, client: Any) -> Iterator[bytes]:
    if not is_s3(url):
        with open(url.removeprefix("file://"), "rb") as source:
            while block := source.read(_BLOCK):
                yield block
        return
    bucket, key = split_s3(url)
    try:
        yield from client.get_object(Bucket=bucket, Key=key)["Body"].iter_chunks(_BLOCK)
    except (BotoCoreError, ClientError) as error:
        raise aws_error(url, error, server="S3") from error


def upload(path: Path, url: str, client: Any) -> None:
    """Copy a local file of at most 5 GB to an object in S3, which readers see completely or not at all."""
    bucket, key = split_s3(url)
    try:
        with path.open("rb") as source:
            client.put_object(Bucket=bucket, Key=key, Body=source)
    except (BotoCoreError, ClientError) as error:
        raise aws_error(url, error, server="S3") from error


def open_file(url: str, s3: S3Config) -> Any:
    """Open a file for random access by pyarrow; of an object in S3, only the requested ranges are fetched.

    Raises InputError or TransientError with the URL.
    """
    # imported here because callers that only list files do not need it
    import pyarrow as pa

    if is_s3(url):
        return pa.PythonFile(_S3Object(url, s3), mode="r")
    try:
        return pa.OSFile(url.removeprefix("file://"))
    except OSError as error:
        raise os_error(url, error, InputError) from error


class _S3Object(io.RawIOBase):
    """An object in S3, read with range requests."""

    def __init__(self, url: str, s3: S3Config) -> None:
        self._url, self._client, self._at = url, s3_client(s3), 0
        self._bucket, self._key = split_s3(url)
        try:
            self._size = int(self._client.head_object(Bucket=self._bucket, Key=self._key)["ContentLength"])
        except (BotoCoreError, ClientError) as error:
            raise aws_error(url, error, server="S3") from error

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._size, self._at + size)
        if self._at >= end:
            return b""
        try:
            found = self._client.get_object(Bucket=self._bucket, Key=self._key, Range=f"bytes={self._at}-{end - 1}")
            data: bytes = found["Body"].read()
        except (BotoCoreError, ClientError) as error:
            raise aws_error(self._url, error, server="S3") from error
        self._at += len(data)
        return data


def files_below(prefix: str, s3: S3Config) -> list[SourceFile]:
    """All files, at any depth, whose paths start with a prefix, which may end within a name; `url` keeps the prefix's
    form."""
    if not is_s3(prefix):
        parent, found = os.path.dirname(prefix), []
        for folder, _, names in os.walk(parent):
            # in folders that do not match, only the names are read
            for name in names:
                path = os.path.join(folder, name)
                if path.startswith(prefix):
                    with suppress(FileNotFoundError):
                        stat = os.stat(path)
                        found.append(SourceFile(path, name, stat.st_size, stat.st_mtime_ns))
        return found
    bucket, key = split_s3(prefix)
    try:
        pages = s3_client(s3).get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
        return [
            _object(f"{prefix.split('://', 1)[0]}://{bucket}/{item['Key']}", item["Key"].rsplit("/", 1)[-1], item)
            for page in pages
            for item in page.get("Contents", ())
        ]
    except (BotoCoreError, ClientError) as error:
        raise aws_error(prefix, error, server="S3") from error


def delete_files(urls: Sequence[str], s3: S3Config) -> None:
    """Delete files by URL; a file that no longer exists is not an error."""
    for url in urls:
        if not is_s3(url):
            try:
                os.unlink(url)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise os_error(url, error) from error
    remote = [split_s3(url) for url in urls if is_s3(url)]
    for i in range(0, len(remote), 1000):
        keys = [{"Key": key} for _, key in remote[i : i + 1000]]
        try:
            s3_client(s3).delete_objects(Bucket=remote[0][0], Delete={"Objects": keys, "Quiet": True})
        except (BotoCoreError, ClientError) as error:
            raise aws_error(urls[0], error, server="S3") from error


def file_sizes(url: str, s3: S3Config) -> dict[str, int]:
    """The size in bytes of every file below a folder or a prefix, by relative path; empty if there is none."""
    found: dict[str, int] = {}
    if not is_s3(url):
        for folder, _, names in os.walk(url):
            for name in names:
                path = os.path.join(folder, name)
                found[os.path.relpath(path, url)] = os.stat(path).st_size
        return found
    bucket, key = split_s3(url)
    prefix = f"{key.rstrip('/')}/"
    try:
        for page in s3_client(s3).get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            found |= {item["Key"].removeprefix(prefix): item["Size"] for item in page.get("Contents", ())}
    except (BotoCoreError, ClientError) as error:
        raise aws_error(url, error, server="S3") from error
    return found


def delete_folder(url: str, s3: S3Config) -> None:
    """Delete a folder with its contents, or all objects under a prefix; does nothing if there are none."""
    if not is_s3(url):
        shutil.rmtree(url, ignore_errors=True)
        return
    bucket, key = split_s3(url)
    client = s3_client(s3)
    try:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{key.rstrip('/')}/"):
            keys = [{"Key": item["Key"]} for item in page.get("Contents", ())]
            if keys:
                client.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
    except (BotoCoreError, ClientError) as error:
        raise aws_error(url, error, server="S3") from error


def write_bytes(url: str, data: Any, s3: S3Config) -> None:
    """Write a file, creating its folders, or an object in S3, which readers see completely or not at all.

    Errors are translated by `failures` and name the URL.
    """
    if not is_s3(url):
        try:
            os.makedirs(os.path.dirname(url), exist_ok=True)
            with open(url, "wb") as handle:
                handle.write(data)
        except OSError as error:
            raise os_error(url, error) from error
        return
    bucket, key = split_s3(url)
    try:
        s3_client(s3).put_object(Bucket=bucket, Key=key, Body=memoryview(data).tobytes())
    except (BotoCoreError, ClientError) as error:
        raise aws_error(url, error, server="S3") from error


def read_versioned(client: Any, url: str) -> tuple[bytes, str, float]:
    """An object's content, its ETag, and the server's time in seconds since 1970; the first two are empty if the object
    does not exist."""
    bucket, key = split_s3(url)
    try:
        found = client.get_object(Bucket=bucket, Key=key)
        return found["Body"].read(), found["ETag"], _server_time(found)
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") != "NoSuchKey":
            raise aws_error(url, error, server="S3") from error
        return b"", "", _server_time(error.response)
    except BotoCoreError as error:
        raise aws_error(url, error, server="S3") from error


def _server_time(answer: dict[str, Any]) -> float:
    stated = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    return parsedate_to_datetime(stated).timestamp() if stated else time.time()


def write_if(client: Any, url: str, data: bytes, etag: str) -> bool:
    """Replace the object that has an ETag, or create it if `etag` is empty; returns False if it has changed meanwhile.

    Raises LakeError if the server does not support conditional puts.
    """
    bucket, key = split_s3(url)
    condition = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
    try:
        client.put_object(Bucket=bucket, Key=key, Body=data, **condition)
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        # 409: another put is in progress; NoSuchKey: the object with that ETag has been deleted
        if status in (409, 412) or code == "NoSuchKey":
            return False
        if status == 501 or code in ("NotImplemented", "InvalidArgument", "InvalidRequest"):
            raise no_conditional_puts(url, f"it answers {code}") from error
        raise aws_error(url, error, server="S3") from error
    except BotoCoreError as error:
        raise aws_error(url, error, server="S3") from error
    return True


def no_conditional_puts(url: str, why: str) -> LakeError:
    """The error for a server without conditional puts, on which neither the lock nor commits would be safe."""
    return LakeError(
        f"{url}: this S3 server has no conditional puts (If-None-Match, If-Match): {why}. Without them neither the "
        "lake's lock nor a commit is safe against another run",
        remedy="put the lake on a server that has them: AWS S3, or a newer version of this one",
    )
