"""Python for the application archive: Debian's, with its libraries, its C library and their licences.

    python deploy/python/interpreter.py lock

writes the newest versions of the packages in files.toml to packages.json, on Debian 12. Until then an archive is built
from the same packages, on any machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from debian_packages import FileList, Locked, Unpacked, digest, fetch, offered, paths_in, stop

HERE: Final = Path(__file__).resolve().parent
LIST: Final = HERE / "files.toml"
LOCK: Final = HERE / "packages.json"
LAUNCHER: Final = HERE / "launcher.sh"
TRIPLET: Final = "x86_64-linux-gnu"
"""EMR's nodes have this type of CPU."""
VERSION: Final = "3.11"
STANDARD_LIBRARY: Final = Path("lib") / f"python{VERSION}"
PACKAGES: Final = STANDARD_LIBRARY / "dist-packages"
"""Where Debian's Python looks for packages below its own folder."""
RELEASE: Final = "Debian 12"


def locked() -> list[Locked]:
    """The packages of the list, in the versions of the lock. SystemExit if the lock is that of another list."""
    versions: dict[str, Any] = json.loads(LOCK.read_text())
    names = [entry["package"] for entry in FileList(LIST, TRIPLET).entries["debian"]]
    if sorted(names) != sorted(versions):
        stop(f"{LOCK.name} has other packages than {LIST.name}: run `make lock` on {RELEASE}")
    return [Locked(name, **versions[name]) for name in names]


def add(tree: Path, cache: Path) -> None:
    """Add the interpreter to the folder of an archive: programs, libraries, licences, and bin/python, which starts it.

    `cache`: folder in which downloaded packages are kept. SystemExit if a package cannot be had or has other files.
    """
    files = FileList(LIST, TRIPLET)
    packages = locked()
    names = [one.package for one in packages]
    found = fetch(packages, cache)
    with tempfile.TemporaryDirectory() as temporary:
        for entry in files.entries["debian"]:
            name = entry["package"]
            package = Unpacked(found[name], Path(temporary) / name)
            for path in files.chosen(entry, paths_in(package.folder)):
                _copy(package.folder / path[1:], tree / _place(path))
            licence = package.licence(names)
            documents = tree / "share" / "doc" / name
            documents.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(licence, Path):
                _copy(licence, documents / "copyright")
            else:
                documents.symlink_to(licence)
    # from these versions anybody can find the source of each package
    _copy(LOCK, tree / "share" / "doc" / LOCK.name)
    _copy(LAUNCHER, tree / "bin" / "python")
    # whatever the mode of the source: a checkout that was passed on as a zip file has lost it
    (tree / "bin" / "python").chmod(0o755)
    for name in ("python3", f"python{VERSION}"):
        (tree / "bin" / name).symlink_to("python")


def _place(path: str) -> str:
    place = path.removeprefix("/usr").removeprefix("/")
    return re.sub(r"^bin/", "libexec/", place)


def _copy(source: Path, target: Path) -> None:
    if target.exists() or target.is_symlink():
        stop(f"two packages have the file {target.name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target, follow_symlinks=False)
    if not source.is_symlink():
        target.chmod(0o755 if source.stat().st_mode & 0o100 else 0o644)


def lock() -> None:
    """Write the newest versions of the listed packages to the lock. SystemExit if this machine has no Debian 12."""
    names = [entry["package"] for entry in FileList(LIST, TRIPLET).entries["debian"]]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            addresses = {sha256: address for address, sha256 in offered(names, folder)}
            subprocess.run(["apt-get", "download", "--quiet", *names], cwd=folder, capture_output=True, check=True)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            stop(f"the versions of {RELEASE}'s packages are locked on {RELEASE} with up-to-date lists: {error}")
        versions = {}
        for file in folder.glob("*.deb"):
            sha256 = digest(file)
            path = re.search(r"/(debian(?:-security)?/pool/.+)$", unquote(addresses[sha256]))
            if path is None:
                stop(f"{addresses[sha256]} is not an address of Debian or a mirror of it")
            fields = Unpacked(file, folder / file.stem).fields
            sha1 = hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()
            about = {"version": fields["Version"], "path": path[1], "sha1": sha1, "sha256": sha256}
            versions[fields["Package"]] = about
    LOCK.write_text(json.dumps(versions, indent=1, sort_keys=True) + "\n")


def main() -> None:
    """Lock the versions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["lock"])
    parser.parse_args()
    lock()
    print(f"{LOCK}: {len(json.loads(LOCK.read_text()))} packages", file=sys.stderr)  # noqa: T201 - a command


if __name__ == "__main__":
    main()
