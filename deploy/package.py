"""The application archive: what EMR lacks, so that jobs run there.

    python deploy/package.py --out build/package

    build/package/environment.tar.gz   Python packages, Encore, conf/; a virtual environment of the node's own Python
    build/package/jobs/<job>.py        entry points
    build/package/manifest.json        versions, digests, the commit

Neither pyspark nor delta-spark nor any jar is in it: EMR brings its own. Packages are the wheels of
deploy/requirements-emr.txt for EMR's Python and Linux, whatever builds it. The same input gives the same content, and
so the same version: files in order and without times or owners, compiled ahead, nothing of the machine in them. With
the same zlib it gives the same bytes.

An archive that is there, and was made of what is there now, is left as it is. A new one takes its place once it is
whole.
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
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
# what is packed is of this checkout, whichever one is installed
sys.path.insert(0, str(ROOT / "lib"))

from encore.runtime.provenance import commit_of  # noqa: E402

REQUIREMENTS = ROOT / "deploy" / "requirements-emr.txt"
VERSION = "3.11"
PYTHON = "/usr/bin/python3.11"
"""Of the nodes of EMR."""
PLATFORM = "x86_64-manylinux_2_28"
"""Amazon Linux 2023 has a glibc that is newer than that."""

MACHINE = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json")
"""Of an installed distribution: how and where it was installed."""
TESTED = ("numpy", "pandas", "pyarrow", "matplotlib", "numba", "llvmlite")
"""Packages that bring their tests, a fifth of all bytes."""
BUILT = ("bin", "share", "pyarrow/include", "pyarrow/src", "mlflow/server/js")
"""What programs and pages of packages are, and what other programs are built with."""
IGNORED = ("__pycache__", "*.egg-info")
"""In our own folders: what Python and its tools leave there."""
CONF_IGNORED = (*IGNORED, "deploy")
"""In conf/, besides: how stages are deployed, and not how a job runs."""
LEVEL = 6
"""Of compression."""
TOLD = 12
"""Lines of another program's error that are handed on: what it says last is what happened."""

Manifest = dict[str, Any]


def build(out: Path, python: str = PYTHON) -> Manifest:
    """Make the archive in a folder, whose former archive it replaces, and return its manifest.

    `python`: the nodes' interpreter. SystemExit with a sentence where it cannot be made; what is there then stays.
    """
    out = out.resolve()
    archive_in(out)
    commit = commit_of(ROOT)
    inputs = inputs_of(commit, python)
    out.parent.mkdir(parents=True, exist_ok=True)
    # beside the folder: nothing is copied from disk to disk in the end
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        tree, made = Path(temporary) / "environment", Path(temporary) / "made"
        made.mkdir()
        packages = tree / "lib" / f"python{VERSION}" / "site-packages"
        # ours first, as long as it is what `inputs` says: packages take a minute, in which somebody may edit it
        _own(tree, packages, commit)
        shutil.copytree(ROOT / "jobs", made / "jobs", ignore=shutil.ignore_patterns(*IGNORED))
        _install(packages)
        _interpreter(tree, python)
        _compile(packages)
        content = _pack(tree, made / "environment.tar.gz")
        manifest: Manifest = {
            "commit": commit,
            "python": VERSION,
            "platform": PLATFORM,
            "interpreter": python,
            "inputs": inputs,
            "files": {
                str(path.relative_to(made)): {"bytes": path.stat().st_size, "sha256": _digest(path)}
                for path in sorted(made.rglob("*"))
                if path.is_file()
            },
        }
        jobs = {name: about["sha256"] for name, about in manifest["files"].items() if name.startswith("jobs/")}
        manifest["version"] = version_of(content, jobs)
        (made / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        _replace(out, made, Path(temporary) / "former")
    return manifest


def archive_in(folder: Path) -> Manifest | None:
    """The manifest of the archive in a folder; None where there is nothing yet.

    SystemExit where something else is in it, which is not ours to replace.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        found = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        found = None
    # other programs write a manifest.json too
    if not isinstance(found, dict) or not {"version", "commit", "files"} <= found.keys():
        _stop(2, f"{folder} holds something else than an archive, and would be replaced: name another folder")
    return found


def is_whole(folder: Path, manifest: Manifest) -> bool:
    """Whether all files of the manifest are there with their sizes."""
    files = {folder / name: about["bytes"] for name, about in manifest["files"].items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in files.items())


def inputs_of(commit: str, python: str) -> str:
    """The digest of all that an archive is made of: what is packed or says what is, the commit, the interpreter."""
    files = [REQUIREMENTS, Path(__file__).resolve(), *_sources()]
    # of the modes that a file may have, one bit is packed
    found = {str(path.relative_to(ROOT)): (bool(path.stat().st_mode & 0o100), _digest(path)) for path in files}
    return hashlib.sha256(json.dumps([commit, python, found], sort_keys=True).encode()).hexdigest()


def _sources() -> Iterator[Path]:
    for folder in (ROOT / "lib" / "encore", ROOT / "jobs", ROOT / "conf"):
        ignored = CONF_IGNORED if folder.name == "conf" else IGNORED
        for path in folder.rglob("*"):
            parts = path.relative_to(folder).parts
            if path.is_file() and not any(fnmatch(part, pattern) for part in parts for pattern in ignored):
                yield path


def version_of(content: str, jobs: dict[str, str]) -> str:
    """The name of an archive, by its content before compression and the digests of its jobs.

    Other content, other name: a folder of that name is never written with anything else.
    """
    return hashlib.sha256(json.dumps([content, jobs], sort_keys=True).encode()).hexdigest()[:16]


def _replace(out: Path, made: Path, former: Path) -> None:
    if out.exists():
        out.rename(former)
    try:
        made.rename(out)
    except OSError:
        if former.exists():
            former.rename(out)
        raise


def _install(packages: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    if not uv.is_file():
        _stop(4, f"{uv} is missing: call `make setup`")
    command = [str(uv), "pip", "install", "--quiet", "--target", str(packages), "--python-version", VERSION]
    command += ["--python-platform", PLATFORM, "--only-binary", ":all:", "--require-hashes", "--link-mode", "copy"]
    command += ["-r", str(REQUIREMENTS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        _stop(4, f"the packages of {REQUIREMENTS.relative_to(ROOT)} cannot be had:\n{_end(done.stderr)}")
    for info in packages.glob("*.dist-info"):
        for name in MACHINE:
            (info / name).unlink(missing_ok=True)
    for name in BUILT:
        shutil.rmtree(packages / name, ignore_errors=True)
    for name in TESTED:
        for folder in sorted((packages / name).rglob("tests")):
            shutil.rmtree(folder, ignore_errors=True)
    for folder in sorted(packages.rglob("__pycache__")):
        shutil.rmtree(folder)
    for lock in packages.glob(".lock"):
        lock.unlink()


def _own(tree: Path, packages: Path, commit: str) -> None:
    shutil.copytree(ROOT / "lib" / "encore", packages / "encore", ignore=shutil.ignore_patterns(*IGNORED))
    (packages / "encore" / "COMMIT").write_text(commit + "\n")
    shutil.copytree(ROOT / "conf", tree / "conf", ignore=shutil.ignore_patterns(*CONF_IGNORED))


def _interpreter(tree: Path, python: str) -> None:
    """What makes a folder a virtual environment: links to the interpreter, and the file that it finds beside them."""
    (tree / "bin").mkdir()
    (tree / "bin" / "python").symlink_to(python)
    for name in ("python3", f"python{VERSION}"):
        (tree / "bin" / name).symlink_to("python")
    settings = {"home": Path(python).parent, "include-system-site-packages": "false", "version": VERSION}
    (tree / "pyvenv.cfg").write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))


def _compile(packages: Path) -> None:
    """Compile ahead: executors would do it anew each time. In one process and with fixed hashes, for the same bytes.

    SystemExit where a module of Encore does not compile, and where the compiler itself breaks off.
    """
    command = [sys.executable, "-m", "compileall", "-q", "-j", "1", "--invalidation-mode", "unchecked-hash"]
    environment = {"PYTHONHASHSEED": "0", "PATH": os.environ["PATH"]}
    # names within compiled code are those that they have where it is unpacked; files that are no code stay as they are
    done = subprocess.run(
        [*command, "-s", str(packages.parents[3]), str(packages)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    # a file that does not compile: a line with its name after three stars, then why
    refused = re.split(r"^\*\*\* ", done.stdout, flags=re.MULTILINE)[1:]
    for text in refused:
        # the checkout's own folder may be called encore as well
        if f"{packages / 'encore'}{os.sep}" in text:
            _stop(1, f"a module does not compile:\n{_end(text)}")
    # 1: some files do not; with none of them named, or with anything else, it did not get to the end
    if done.returncode not in ((0, 1) if refused else (0,)):
        _stop(1, f"compileall broke off with {done.returncode}:\n{_end(done.stderr or done.stdout)}")


def _pack(tree: Path, archive: Path) -> str:
    """Pack a folder, and return the digest of its content before compression: of each entry name, type, mode, and
    where a link leads or the digest of a file."""
    content = hashlib.sha256()
    with (
        archive.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=LEVEL, fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in sorted(tree.rglob("*")):
            entry = _entry(path, str(path.relative_to(tree)))
            what = _digest(path) if entry.isreg() else entry.linkname
            content.update(json.dumps([entry.name, entry.type.decode(), entry.mode, what]).encode() + b"\n")
            if entry.isreg():
                with path.open("rb") as file:
                    tar.addfile(entry, file)
            else:
                tar.addfile(entry)
    return content.hexdigest()


def _entry(path: Path, name: str) -> tarfile.TarInfo:
    """What the archive says of a file, a folder or a symbolic link; no owner and no time.

    Not by tarfile's own look at the file, which makes a link of a file that shares its bytes with an earlier one.
    """
    entry = tarfile.TarInfo(name)
    about = path.lstat()
    if path.is_symlink():
        entry.type, entry.linkname = tarfile.SYMTYPE, str(path.readlink())
    elif path.is_dir():
        entry.type = tarfile.DIRTYPE
    else:
        entry.size = about.st_size
    # what one machine's umask was is no part of it
    entry.mode = 0o755 if not entry.isreg() or about.st_mode & 0o100 else 0o644
    return entry


def _digest(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _end(text: str) -> str:
    return "\n".join([line for line in text.splitlines() if line.strip()][-TOLD:])


def _stop(code: int, text: str) -> NoReturn:
    print(f"encore: {text}", file=sys.stderr)  # noqa: T201 - a command
    sys.exit(code)


def main() -> None:
    """Build it where it is not up to date, and say what it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "package", help="the archive's folder")
    parser.add_argument("--python", default=PYTHON, help=f"interpreter of the nodes; {PYTHON} on EMR")
    parser.add_argument("--force", action="store_true", help="build anew what is up to date")
    given = parser.parse_args()
    made = None if given.force else archive_in(given.out)
    word = "up to date, "
    if made is None or made.get("inputs") != inputs_of(commit_of(ROOT), given.python) or not is_whole(given.out, made):
        made, word = build(given.out, given.python), ""
    size = (given.out / "environment.tar.gz").stat().st_size
    about = f"{word}version {made['version']}, {size / 1e6:,.0f} MB, commit {made['commit']}"
    print(f"{given.out}: {about}")  # noqa: T201


if __name__ == "__main__":
    main()
