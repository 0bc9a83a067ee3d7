"""Build the application archive: everything that jobs need on EMR, except for Spark and Delta.

    python deploy/package.py --out build/package

    build/package/environment.tar.gz   Python with its libraries and C library, packages, Encore and conf/
    build/package/jobs/<job>.py        entry points
    build/package/manifest.json        versions, digests, the commit

It contains neither pyspark nor delta-spark nor any jars, since EMR brings its own. Packages are the wheels pinned in
deploy/requirements-emr.txt for Linux, and Python is that of the Debian packages pinned in deploy/python/packages.json,
whatever machine builds the archive. Builds are reproducible: the same input gives the same content and thus the same
version (sorted files without times or owners, compiled in advance, nothing specific to the machine), and with the same
zlib also the same bytes.

An archive that is up to date is left as it is. A new one replaces it once it is complete.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.metadata import distributions
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# package this checkout, whichever Encore is installed
sys.path.insert(0, str(ROOT / "lib"))

sys.path.insert(0, str(ROOT / "deploy" / "python"))

import interpreter  # noqa: E402
from debian_packages import digest, stop  # noqa: E402
from interpreter import PACKAGES, STANDARD_LIBRARY, VERSION  # noqa: E402

from encore.runtime.provenance import commit_of  # noqa: E402

REQUIREMENTS = ROOT / "deploy" / "requirements-emr.txt"
PYTHON = ROOT / "deploy" / "python"
PLATFORM = "x86_64-manylinux_2_28"
"""The archive has its own, newer glibc."""
DEBIAN_CACHE = ROOT / ".cache" / "debian"

INSTALL_RECORDS = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json")
"""Files of an installed distribution that record how and where it was installed."""
WITH_TESTS = ("numpy", "pandas", "pyarrow", "matplotlib", "numba", "llvmlite", "scipy")
"""Packages that ship their tests, a fifth of all bytes."""
CONTENTS = "encore-packages.json"
"""File that lists the distributions for the smoke job: without RECORD, nothing else says which modules they have."""
UNUSED = ("bin", "share", "pyarrow/include", "pyarrow/src", "mlflow/server/js")
"""Folders that jobs do not use: programs, headers and web pages."""
IGNORED = ("__pycache__", "*.egg-info")
"""What Python and its tools leave in our own folders."""
CONF_IGNORED = (*IGNORED, "deploy")
"""In conf/, the settings for deploying stages are left out as well: jobs do not read them."""
LEVEL = 6
"""Compression level."""
ERROR_LINES = 12
"""Lines at the end of another program's error output that are shown."""

Manifest = dict[str, Any]


def build(out: Path) -> Manifest:
    """Build the archive in a folder, replacing the one there, and return its manifest.

    SystemExit with a message if it cannot be built; the existing archive is kept.
    """
    out = out.resolve()
    archive_in(out)
    commit = commit_of(ROOT)
    inputs = inputs_of(commit)
    out.parent.mkdir(parents=True, exist_ok=True)
    # a sibling of the folder, so that the last step is a rename and not a copy between file systems
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        tree, staging = Path(temporary) / "environment", Path(temporary) / "staging"
        staging.mkdir()
        packages = tree / PACKAGES
        # copy our own code first, while it matches `inputs`: installing packages takes a minute, and it may be edited
        _copy_own(tree, packages, commit)
        shutil.copytree(ROOT / "jobs", staging / "jobs", ignore=shutil.ignore_patterns(*IGNORED))
        _install(packages)
        interpreter.add(tree, DEBIAN_CACHE)
        _compile(tree)
        content = _pack(tree, staging / "environment.tar.gz")
        manifest: Manifest = {
            "commit": commit,
            "python": VERSION,
            "platform": PLATFORM,
            "debian": {one.package: one.version for one in interpreter.locked()},
            "inputs": inputs,
            "files": {
                str(path.relative_to(staging)): {"bytes": path.stat().st_size, "sha256": digest(path)}
                for path in sorted(staging.rglob("*"))
                if path.is_file()
            },
        }
        jobs = {name: about["sha256"] for name, about in manifest["files"].items() if name.startswith("jobs/")}
        manifest["version"] = version_of(content, jobs)
        (staging / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        _replace(out, staging, Path(temporary) / "former")
    return manifest


def archive_in(folder: Path) -> Manifest | None:
    """The manifest of the archive in a folder; None if there is nothing yet.

    SystemExit if the folder holds something else, which must not be replaced.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        found = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        found = None
    # other programs also write files named manifest.json
    if not isinstance(found, dict) or not {"version", "commit", "files"} <= found.keys():
        stop(f"{folder} is not an archive and will not be replaced: choose another folder", 2)
    return found


def is_complete(folder: Path, manifest: Manifest) -> bool:
    """Whether all files in the manifest exist with the right sizes."""
    files = {folder / name: about["bytes"] for name, about in manifest["files"].items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in files.items())


def inputs_of(commit: str) -> str:
    """The digest of all inputs of an archive: the packed files, requirements, the interpreter's packages, scripts and
    the commit."""
    files = [REQUIREMENTS, Path(__file__).resolve(), *_sources()]
    # only the executable bit of a file's mode is packed
    found = {str(path.relative_to(ROOT)): (bool(path.stat().st_mode & 0o100), digest(path)) for path in files}
    return hashlib.sha256(json.dumps([commit, found], sort_keys=True).encode()).hexdigest()


def _sources() -> Iterator[Path]:
    for folder in (ROOT / "lib" / "encore", ROOT / "jobs", ROOT / "conf", PYTHON):
        ignored = CONF_IGNORED if folder.name == "conf" else IGNORED
        for path in folder.rglob("*"):
            parts = path.relative_to(folder).parts
            if path.is_file() and not any(fnmatch(part, pattern) for part in parts for pattern in ignored):
                yield path


def version_of(content: str, jobs: dict[str, str]) -> str:
    """The version of an archive, a digest of its uncompressed content and of its jobs.

    Different content gets a different version, so a folder named after a version never changes.
    """
    return hashlib.sha256(json.dumps([content, jobs], sort_keys=True).encode()).hexdigest()[:16]


def _replace(out: Path, staging: Path, former: Path) -> None:
    if out.exists():
        out.rename(former)
    try:
        staging.rename(out)
    except OSError:
        if former.exists():
            former.rename(out)
        raise


def _install(packages: Path) -> None:
    _uv_install(packages)
    contents = _contents(packages)
    for info in packages.glob("*.dist-info"):
        for name in INSTALL_RECORDS:
            (info / name).unlink(missing_ok=True)
    for name in UNUSED:
        shutil.rmtree(packages / name, ignore_errors=True)
    for name in WITH_TESTS:
        for folder in sorted((packages / name).rglob("tests")):
            shutil.rmtree(folder, ignore_errors=True)
    for folder in sorted(packages.rglob("__pycache__")):
        shutil.rmtree(folder)
    for lock in packages.glob(".lock"):
        lock.unlink()
    (packages / CONTENTS).write_text(json.dumps(contents, indent=1, sort_keys=True) + "\n")


def _contents(packages: Path) -> dict[str, Any]:
    """By distribution: its version, and its modules and packages that others import, for the smoke job."""
    found = {}
    for one in distributions(path=[str(packages)]):
        paths = [PurePosixPath(str(path)) for path in one.files or ()]
        folders = {path.parent for path in paths if path.name == "__init__.py"}
        # without those within another package; a folder without __init__.py is shared by distributions
        outer = [folder for folder in folders if not folders & set(folder.parents)]
        single = [path for path in paths if len(path.parts) == 1 and path.suffix in (".py", ".so")]
        names = [".".join(folder.parts) for folder in outer] + [path.name.split(".")[0] for path in single]
        modules = [name for name in names if all(re.fullmatch(r"[A-Za-z]\w*", part) for part in name.split("."))]
        name = re.sub(r"[-_.]+", "-", one.name).lower()
        found[name] = {"version": one.version, "modules": sorted(set(modules))}
    return found


def _uv_install(packages: Path) -> None:
    """Install the wheels into a folder. SystemExit if they cannot be installed."""
    uv = Path(sys.executable).with_name("uv")
    if not uv.is_file():
        stop(f"{uv} is missing: run `make setup`")
    command = [str(uv), "pip", "install", "--quiet", "--target", str(packages), "--python-version", VERSION]
    command += ["--python-platform", PLATFORM, "--only-binary", ":all:", "--require-hashes", "--link-mode", "copy"]
    command += ["-r", str(REQUIREMENTS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        stop(f"cannot install the packages of {REQUIREMENTS.relative_to(ROOT)}:\n{_end(done.stderr)}")


def _copy_own(tree: Path, packages: Path, commit: str) -> None:
    shutil.copytree(ROOT / "lib" / "encore", packages / "encore", ignore=shutil.ignore_patterns(*IGNORED))
    (packages / "encore" / "COMMIT").write_text(commit + "\n")
    shutil.copytree(ROOT / "conf", tree / "conf", ignore=shutil.ignore_patterns(*CONF_IGNORED))


def _compile(tree: Path) -> None:
    """Compile in advance, which each executor would do otherwise; in one process with fixed hashes, for equal bytes.

    SystemExit if a module of Encore does not compile, or if the compiler itself fails.
    """
    command = [sys.executable, "-m", "compileall", "-q", "-j", "1", "--invalidation-mode", "unchecked-hash"]
    environment = {"PYTHONHASHSEED": "0", "PATH": os.environ["PATH"]}
    # -s: strip the build folder, so that compiled code names files by their paths in the archive
    done = subprocess.run(
        [*command, "-s", str(tree), str(tree / STANDARD_LIBRARY)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    # for a file that does not compile: a line with three asterisks and its name, then the reason
    failures = re.split(r"^\*\*\* ", done.stdout, flags=re.MULTILINE)[1:]
    for text in failures:
        # the folder of the checkout may be named encore as well
        if f"{tree / PACKAGES / 'encore'}{os.sep}" in text:
            stop(f"a module does not compile:\n{_end(text)}", 1)
    # 1 means that some files did not compile; if none is named, or for any other code, compileall itself failed
    if done.returncode not in ((0, 1) if failures else (0,)):
        stop(f"compileall failed with exit code {done.returncode}:\n{_end(done.stderr or done.stdout)}", 1)


def _pack(tree: Path, archive: Path) -> str:
    """Pack a folder, and return a digest of its uncompressed content: the name, type and mode of each entry, and the
    target of a link or the digest of a file."""
    content = hashlib.sha256()
    with (
        archive.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=LEVEL, fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in sorted(tree.rglob("*")):
            entry = _entry(path, str(path.relative_to(tree)))
            what = digest(path) if entry.isreg() else entry.linkname
            content.update(json.dumps([entry.name, entry.type.decode(), entry.mode, what]).encode() + b"\n")
            if entry.isreg():
                with path.open("rb") as file:
                    tar.addfile(entry, file)
            else:
                tar.addfile(entry)
    return content.hexdigest()


def _entry(path: Path, name: str) -> tarfile.TarInfo:
    """The archive entry of a file, a folder or a symbolic link, without owner and time.

    Not tarfile's own `gettarinfo`, which stores a hard link for a second name of the same file.
    """
    entry = tarfile.TarInfo(name)
    about = path.lstat()
    if path.is_symlink():
        entry.type, entry.linkname = tarfile.SYMTYPE, str(path.readlink())
    elif path.is_dir():
        entry.type = tarfile.DIRTYPE
    else:
        entry.size = about.st_size
    # independent of the umask of the machine that builds
    entry.mode = 0o755 if not entry.isreg() or about.st_mode & 0o100 else 0o644
    return entry


def _end(text: str) -> str:
    return "\n".join([line for line in text.splitlines() if line.strip()][-ERROR_LINES:])


def main() -> None:
    """Build the archive if it is not up to date, and print its version."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "package", help="folder for the archive")
    parser.add_argument("--force", action="store_true", help="rebuild even if it is up to date")
    arguments = parser.parse_args()
    manifest = None if arguments.force else archive_in(arguments.out)
    prefix = "up to date, "
    if (
        manifest is None
        or manifest.get("inputs") != inputs_of(commit_of(ROOT))
        or not is_complete(arguments.out, manifest)
    ):
        manifest, prefix = build(arguments.out), ""
    size = (arguments.out / "environment.tar.gz").stat().st_size
    about = f"{prefix}version {manifest['version']}, {size / 1e6:,.0f} MB, commit {manifest['commit']}"
    print(f"{arguments.out}: {about}")  # noqa: T201


if __name__ == "__main__":
    main()
