"""Reads the model registry of an MLflow server over HTTP, without the MLflow library, and downloads bundles from it.

Aliases are resolved to versions first, and versions are downloaded: what an alias refers to may change at any time, but
the files of a version never do. A bundle is downloaded file by file, according to its manifest, into a folder of its
own, verified, and only then given its name, so that a folder with a name is complete. The two newest ones are kept.

The login is taken from the variables that MLflow reads too: MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and
MLFLOW_TRACKING_PASSWORD. It is sent to the server of the registry alone: redirects are errors.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlencode, urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from encore.errors import ConfigError, EnvironmentMissing, InputError, TransientError
from encore.serving import bundle
from encore.serving.models import CHALLENGER, CHAMPION, Resolved

FOLDER: Final = "artifacts/bundle"
"""The bundle within the folder of a logged model."""
KEPT: Final = 2
"""Downloaded versions of a model that are kept."""
ATTEMPTS: Final = 3
SECONDS: Final = 20.0
"""Time-out for connecting and for each wait for data."""

_API: Final = "api/2.0/mlflow"
_BLOCK: Final = 1 << 20
_PARTIAL: Final = ".partial-"
_ABANDONED_SECONDS: Final = 3600
_MODEL: Final = re.compile(r"models:/(?P<name>[A-Za-z0-9_.-]+)(?:@(?P<alias>[A-Za-z0-9_.-]+)|/(?P<version>\d+))")
_MISSING: Final = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""What a server answers for an alias that is missing depends on its version."""

T = TypeVar("T")


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


class _Refused(Exception):
    """The server answered with an error: its code."""

    def __init__(self, code: str, status: int) -> None:
        super().__init__(f"status {status} {code}".strip())
        self.code, self.status = code, status


class Registry:
    """The registry of an MLflow server at an http(s) address.

    Every method raises TransientError if the server does not answer, or answers with an error.
    """

    def __init__(self, address: str, environment: Mapping[str, str] = os.environ, *, seconds: float = SECONDS) -> None:
        """Raises ConfigError if the address is not one of a server."""
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("the registry: expected an address such as https://host:port")
        place = parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"
        self.address = urlunsplit((parts.scheme, place, parts.path.rstrip("/"), "", ""))
        """Without a login."""
        self._seconds = seconds
        self._headers = _login(parts.username, parts.password, environment)
        self._opener = build_opener(_NoRedirects)

    def aliases(self, name: str) -> dict[str, str]:
        """The aliases of a registered model and their versions; empty if there is no such model."""
        try:
            found = self._call("GET", "registered-models/get", {"name": name})
        except _Refused as error:
            if error.code == _MISSING[0]:
                return {}
            raise self._error(f"aliases of {name}", error) from error
        return {one["alias"]: str(one["version"]) for one in found["registered_model"].get("aliases", ())}

    def tags(self, name: str, version: str) -> dict[str, str]:
        """The tags of a version."""
        found = self._checked(f"tags of {name} {version}", "GET", "model-versions/get", name=name, version=version)
        return {one["key"]: one["value"] for one in found["model_version"].get("tags", ())}

    def location(self, name: str, version: str) -> str:
        """Where the files of a version are."""
        what = f"files of {name} {version}"
        return str(
            self._checked(what, "GET", "model-versions/get-download-uri", name=name, version=version)["artifact_uri"]
        )

    def set_tag(self, name: str, version: str, tag: str, value: str) -> None:
        """Set a tag of a version."""
        self._checked(f"tag {tag}", "POST", "model-versions/set-tag", name=name, version=version, key=tag, value=value)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point an alias to a version."""
        self._checked(f"alias {alias}", "POST", "registered-models/alias", name=name, alias=alias, version=version)

    def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias, if it is there."""
        try:
            self._call("DELETE", "registered-models/alias", {"name": name, "alias": alias})
        except _Refused as error:
            if error.code not in _MISSING:
                raise self._error(f"alias {alias}", error) from error

    def download(self, location: str, path: str, target: Path) -> None:
        """Write a file at a location of the server's artefacts (mlflow-artifacts:/...) to a local one.

        Tries again if the connection breaks.
        """
        place = unquote(urlsplit(location).path).strip("/")
        url = f"{self.address}/api/2.0/mlflow-artifacts/artifacts/{quote(f'{place}/{path}')}"

        def attempt() -> None:
            with self._opener.open(Request(url, headers=self._headers), timeout=self._seconds) as found:
                expected = found.headers.get("Content-Length")
                with target.open("wb") as file:
                    shutil.copyfileobj(found, file, _BLOCK)
                if expected is not None and target.stat().st_size != int(expected):
                    raise HTTPException(f"expected {expected} bytes, found {target.stat().st_size}")

        try:
            self._patiently(path, attempt)
        except _Refused as error:
            raise self._error(path, error) from error

    def _checked(self, what: str, method: str, path: str, **fields: str) -> Any:
        try:
            return self._call(method, path, fields)
        except _Refused as error:
            raise self._error(what, error) from error

    def _call(self, method: str, path: str, fields: Mapping[str, str]) -> Any:
        url, body = f"{self.address}/{_API}/{path}", None
        headers = dict(self._headers)
        if method == "GET":
            url += f"?{urlencode(fields)}"
        else:
            body = json.dumps(fields).encode()
            headers["Content-Type"] = "application/json"

        def attempt() -> Any:
            request = Request(url, data=body, headers=headers, method=method)
            with self._opener.open(request, timeout=self._seconds) as found:
                return json.loads(found.read() or b"{}")

        # what changes something is not repeated: the first attempt may have been carried out
        return self._patiently(path, attempt, 1 if method != "GET" else ATTEMPTS)

    def _patiently(self, what: str, attempt: Callable[[], T], attempts: int = ATTEMPTS) -> T:
        for number in range(1, attempts + 1):
            try:
                return attempt()
            except HTTPError as error:
                if error.code < 500 or number == attempts:
                    raise _Refused(_code_of(error), error.code) from error
            except (URLError, HTTPException, TimeoutError, ConnectionError, ValueError) as error:
                if number == attempts:
                    raise self._error(what, error) from error
            time.sleep(0.2 * number)
        raise AssertionError("unreachable")

    def _error(self, what: str, error: Exception) -> TransientError:
        reason = getattr(error, "reason", None) or error
        return TransientError(
            f"the registry {self.address}: {what}: {reason}",
            remedy="check ENCORE_SERVE_REGISTRY and the login in MLFLOW_TRACKING_*, or wait until the server answers",
        )


def _login(user: str | None, password: str | None, environment: Mapping[str, str]) -> dict[str, str]:
    token = environment.get("MLFLOW_TRACKING_TOKEN")
    user = unquote(user) if user else environment.get("MLFLOW_TRACKING_USERNAME")
    password = unquote(password) if password else environment.get("MLFLOW_TRACKING_PASSWORD")
    if user and password:
        return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}
    return {"Authorization": f"Bearer {token}"} if token else {}


def _code_of(error: HTTPError) -> str:
    try:
        found = json.loads(error.read(_BLOCK))
        return str(found["error_code"])
    except (ValueError, KeyError, TypeError, OSError, HTTPException):
        return ""


class Parsed(NamedTuple):
    """A registered model, and either an alias or a version of it."""

    name: str
    alias: str | None
    version: str | None


class RegisteredModel:
    """A source of model versions (serving.models.Source): a registered model of a server.

    `model`: models:/NAME@ALIAS, or models:/NAME/VERSION for one fixed version; `cache`: the folder of downloads.
    """

    def __init__(self, registry: Registry, model: str, cache: Path) -> None:
        """Raises ConfigError if `model` has another form."""
        self.name, self._alias, self._version = self.parse(model)
        self._registry = registry
        self._cache = cache / self.name

    @staticmethod
    def parse(model: str) -> Parsed:
        """Parse models:/NAME@ALIAS or models:/NAME/VERSION. Raises ConfigError if it is neither."""
        found = _MODEL.fullmatch(model)
        if found is None:
            raise ConfigError(f"{model}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
        return Parsed(found["name"], found["alias"], found["version"])

    def resolve(self) -> Resolved:
        """See Source. Only the alias `champion` comes with a challenger."""
        if self._alias is None:
            return Resolved(self._version)
        aliases = self._registry.aliases(self.name)
        champion = aliases.get(self._alias)
        challenger = aliases.get(CHALLENGER) if self._alias == CHAMPION else None
        if challenger is None:
            return Resolved(champion)
        return Resolved(champion, challenger, self._registry.tags(self.name, challenger))

    def fetch(self, version: str) -> Path:
        """See Source: downloads the bundle of a version, unless it is in the cache.

        Raises InputError if the files are not those of the manifest, EnvironmentMissing if they cannot be stored.
        """
        location = self._registry.location(self.name, version)
        parts = urlsplit(location)
        if parts.scheme in ("", "file"):
            folder = Path(unquote(parts.path)) / FOLDER
            bundle.Bundle(folder)
            return folder
        if parts.scheme != "mlflow-artifacts":
            raise InputError(
                f"{self.name} {version}: its files are at {parts.scheme}://, which the scorer does not read",
                remedy="start the MLflow server with --serve-artifacts, and register the model again",
            )
        # versions of other servers, which may use the same folder, have other names
        digest = hashlib.sha256(f"{self._registry.address} {location}".encode()).hexdigest()[:12]
        folder = self._cache / f"{version}-{digest}"
        try:
            if not _is_complete(folder):
                self._download(location, folder)
            os.utime(folder)
            self._prune(folder)
        except OSError as error:
            raise EnvironmentMissing(
                f"{error.filename or self._cache}: {error.strerror or error}",
                remedy="set ENCORE_SERVE_CACHE to a folder that is writable and has room for two bundles",
            ) from error
        return folder

    def _download(self, location: str, folder: Path) -> None:
        self._cache.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=self._cache))
        try:
            self._registry.download(location, f"{FOLDER}/{bundle.MANIFEST}", partial / bundle.MANIFEST)
            manifest = bundle.Manifest.read(partial)
            free = shutil.disk_usage(partial).free
            if free < manifest.size:
                raise EnvironmentMissing(
                    f"{self._cache}: expected room for {manifest.size:,} bytes, found {free:,}",
                    remedy="free disk space, or set ENCORE_SERVE_CACHE to another folder",
                )
            for name in manifest.files:
                path = PurePosixPath(name)
                if path.is_absolute() or ".." in path.parts:
                    raise InputError(f"{self.name}: the manifest names a file outside of the bundle: {name}")
                (partial / path).parent.mkdir(parents=True, exist_ok=True)
                self._registry.download(location, f"{FOLDER}/{name}", partial / path)
            bundle.verify(partial)
            partial.chmod(0o755)
            try:
                partial.rename(folder)
            except OSError:
                # another process was faster, or the folder is damaged
                if not _is_complete(folder):
                    shutil.rmtree(folder, ignore_errors=True)
                    partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _prune(self, present: Path) -> None:
        """Remove all but the newest downloads, and what processes that were killed have left."""
        entries = [path for path in self._cache.iterdir() if path.is_dir() and path != present]
        partial = [path for path in entries if path.name.startswith(_PARTIAL)]
        complete = sorted(set(entries) - set(partial), key=lambda path: -path.stat().st_mtime)
        old = [path for path in partial if path.stat().st_mtime < time.time() - _ABANDONED_SECONDS]
        for path in (*complete[KEPT - 1 :], *old):
            # mapped files stay readable for those who have mapped them
            shutil.rmtree(path, ignore_errors=True)

    def set_tag(self, version: str, name: str, value: str) -> None:
        """See Source."""
        self._registry.set_tag(self.name, version, name, value)

    def set_alias(self, alias: str, version: str) -> None:
        """See Source."""
        self._registry.set_alias(self.name, alias, version)

    def delete_alias(self, alias: str) -> None:
        """See Source."""
        self._registry.delete_alias(self.name, alias)


def _is_complete(folder: Path) -> bool:
    try:
        bundle.Bundle(folder)
    except InputError:
        return False
    return True
