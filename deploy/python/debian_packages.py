"""Take files out of Debian packages by a list: for the scorer's image, and for the archive's own Python.

A list is a TOML file with a table [[debian]] for each package: `package` is its name, `files` are patterns of the paths
to take, `leave_out` patterns of those not to take. In a pattern * is any part of a name, ** any number of folders,
{a,b} either, and {triplet} such as x86_64-linux-gnu. A pattern that matches nothing is an error.

Packages are unpacked here, without dpkg, so that any machine can do it.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from email.parser import HeaderParser
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import quote

MIRRORS: Final = ("https://deb.debian.org",)
"""Where packages are downloaded without apt-get. ENCORE_DEBIAN_MIRROR names a mirror that is asked first."""
SNAPSHOT: Final = "https://snapshot.debian.org/file/"
"""Every version that Debian has ever published, by SHA-1; mirrors only have the newest."""
TIMEOUT: Final = 60
"""Seconds until a server that does not answer is given up."""


class FileList:
    """A list of files, for packages of one type of machine."""

    def __init__(self, path: Path, triplet: str) -> None:
        self.name = path.name
        self.entries: dict[str, Any] = tomllib.loads(path.read_text().replace("{triplet}", triplet))

    def chosen(self, entry: dict[str, Any], paths: Iterable[str]) -> list[str]:
        """The paths that an entry of the list takes, sorted. SystemExit if one of its patterns matches none."""
        every = [pattern for name in ("files", "leave_out") for pattern in entry.get(name, ())]
        there = sorted(paths)
        for pattern in every:
            if not any(re.fullmatch(regex(pattern), path) for path in there):
                stop(f"{entry.get('package', 'encore')}: nothing matches {pattern} in {self.name}")
        wanted = matcher(entry["files"])
        unwanted = matcher([*entry.get("leave_out", ()), *self.entries.get("everywhere", {}).get("leave_out", ())])
        return [path for path in there if wanted.fullmatch(path) and not unwanted.fullmatch(path)]


def matcher(patterns: Sequence[str]) -> re.Pattern[str]:
    """What matches a path that any of the patterns matches."""
    return re.compile("|".join(f"(?:{regex(pattern)})" for pattern in patterns) or r"(?!)")


def regex(pattern: str) -> str:
    """A pattern of a list as a regular expression."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\{[^}]*\})", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        known.get(part)
        or (
            "(?:" + "|".join(regex(choice) for choice in part[1:-1].split(",")) + ")"
            if part.startswith("{")
            else re.escape(part)
        )
        for part in parts
    )


def paths_in(folder: Path) -> Iterator[str]:
    """All files and links below a folder, as paths from it that begin with a slash."""
    return (f"/{path.relative_to(folder)}" for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


class Unpacked:
    """A Debian package whose files are in a folder."""

    def __init__(self, package: Path, folder: Path) -> None:
        """Unpack a package into a folder, which is created. SystemExit if the file is not a Debian package."""
        self.folder = folder
        members = _members(package)
        folder.mkdir(parents=True)
        try:
            with _tar(members, "control.tar") as control:
                fields = next(control.extractfile(entry) for entry in control if Path(entry.name).name == "control")
                assert fields is not None
                self.fields = dict(HeaderParser().parsestr(fields.read().decode()).items())
            with _tar(members, "data.tar") as data:
                # verified by digest or by apt-get, and Debian 12's own Python has no filters
                data.extractall(folder)
        except (KeyError, StopIteration, tarfile.TarError) as error:
            stop(f"{package} is not a Debian package that can be read: {error}")

    def licence(self, packages: Iterable[str]) -> Path | str:
        """The package's copyright file, or the name of the package that has the same one.

        SystemExit if there is none, or if that package is not one of `packages`.
        """
        name = self.fields["Package"]
        documents = self.folder / "usr/share/doc" / name
        if documents.is_symlink():
            other = str(documents.readlink())
            if other not in packages:
                stop(f"the licence of {name} is in {other}, which is not on the list")
            return other
        if not (documents / "copyright").is_file():
            stop(f"{name} has no copyright file")
        return documents / "copyright"


def _members(package: Path) -> dict[str, bytes]:
    """The members of an archive in the format of ar, by name without compression suffix: control.tar and data.tar."""
    content = package.read_bytes()
    found, at = {}, len(b"!<arch>\n")
    if content[:at] != b"!<arch>\n":
        stop(f"{package} is not a Debian package")
    while at + 60 <= len(content):
        name, size = content[at : at + 16].decode().strip().rstrip("/"), int(content[at + 48 : at + 58])
        found[".".join(name.split(".")[:2])] = content[at + 60 : at + 60 + size]
        # members begin at even positions
        at += 60 + size + size % 2
    return found


def _tar(members: dict[str, bytes], name: str) -> tarfile.TarFile:
    return tarfile.open(fileobj=io.BytesIO(members[name]))


@dataclass(frozen=True)
class Locked:
    """An exact version of a package. `path`: on a mirror, such as debian/pool/main/z/zlib/zlib1g_1.2_amd64.deb."""

    package: str
    version: str
    path: str
    sha1: str
    sha256: str


def newest(package: str, cache: Path) -> Path:
    """The newest version of a package in the release of this machine, downloaded by apt-get unless it is there."""
    # nothing is printed if the newest version is there
    if run(["apt-get", "download", "--print-uris", package], cache).split():
        for former in cache.glob(f"{package}_*.deb"):
            former.unlink()
        run(["apt-get", "download", "--quiet", package], cache)
    return next(cache.glob(f"{package}_*.deb"))


def fetch(packages: Sequence[Locked], cache: Path) -> dict[str, Path]:
    """The files of exact versions by package, downloaded unless they are in the cache; their digests are verified.

    By apt-get where it offers these versions, else from a mirror, else from Debian's snapshots. SystemExit if a package
    cannot be had.
    """
    cache.mkdir(parents=True, exist_ok=True)
    files = {one.package: cache / Path(one.path).name for one in packages}

    def missing() -> list[Locked]:
        return [one for one in packages if not _is(files[one.package], one.sha256)]

    if shutil.which("apt-get") and missing():
        _by_apt(missing(), files)
    for one in missing():
        _by_url(one, files[one.package])
    return files


def offered(packages: Sequence[str], folder: Path) -> list[tuple[str, str]]:
    """The address and the SHA-256 of the versions of packages that apt-get would download.

    Raises CalledProcessError if apt-get does not know one of them.
    """
    lines = _output(["apt-get", "download", "--print-uris", *packages], folder).splitlines()
    found = [re.match(r"'(\S+)' \S+ \d+ SHA256:([0-9a-f]{64})", line) for line in lines]
    return [(match[1], match[2]) for match in found if match]


def _by_apt(packages: Sequence[Locked], files: dict[str, Path]) -> None:
    """Download what apt-get offers in exactly these versions; it may offer other ones, or know none of them."""
    with tempfile.TemporaryDirectory(dir=files[packages[0].package].parent) as temporary:
        folder = Path(temporary)
        try:
            same = {sha256 for _, sha256 in offered([one.package for one in packages], folder)}
            wanted = [one for one in packages if one.sha256 in same]
            if wanted:
                _output(["apt-get", "download", "--quiet", *(one.package for one in wanted)], folder)
        except subprocess.CalledProcessError:
            return
        there = {digest(path): path for path in folder.glob("*.deb")}
        for one in wanted:
            if one.sha256 in there:
                there[one.sha256].replace(files[one.package])


def _by_url(one: Locked, file: Path) -> None:
    own = os.environ.get("ENCORE_DEBIAN_MIRROR")
    addresses = [f"{mirror.rstrip('/')}/{quote(one.path)}" for mirror in (*([own] if own else []), *MIRRORS)]
    reasons = []
    for address in [*addresses, SNAPSHOT + one.sha1]:
        part = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            with urllib.request.urlopen(address, timeout=TIMEOUT) as answer, part.open("wb") as out:
                shutil.copyfileobj(answer, out)
            if _is(part, one.sha256):
                part.replace(file)
                return
            reasons.append(f"  {address}: its SHA-256 is {digest(part)}")
        except (OSError, HTTPException, ValueError) as error:
            # the last one for addresses that are none
            reasons.append(f"  {address}: {error}")
        finally:
            part.unlink(missing_ok=True)
    stop(
        f"cannot download Debian's package {one.package} {one.version} with SHA-256 {one.sha256}:\n"
        + "\n".join(reasons)
        + f"\nallow one of these addresses, set ENCORE_DEBIAN_MIRROR to a mirror, or put the package into {file.parent}"
    )


def _is(file: Path, sha256: str) -> bool:
    return file.is_file() and digest(file) == sha256


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run(command: list[str], folder: Path | None = None) -> str:
    """The output of a program. SystemExit with its errors if it fails."""
    try:
        return _output(command, folder)
    except FileNotFoundError:
        stop(f"{command[0]} is missing: it takes Debian 12, or the container of deploy/image/Dockerfile")
    except subprocess.CalledProcessError as error:
        stop(f"{' '.join(command)}:\n{error.stderr}")


def _output(command: list[str], folder: Path | None) -> str:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def stop(text: str, code: int = 4) -> NoReturn:
    """End with a message."""
    print(f"encore: {text}", file=sys.stderr)  # noqa: T201 - part of commands
    sys.exit(code)
