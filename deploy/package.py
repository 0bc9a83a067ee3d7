"""The application archive: what EMR lacks, so that jobs run there.

    python deploy/package.py --out build/package

    build/package/environment.tar.gz   Python packages, Encore, conf/; a virtual environment of the node's own Python
    build/package/jobs/<job>.py        entry points
    build/package/manifest.json        versions, digests, the commit

Neither pyspark nor delta-spark nor any jar is in it: EMR brings its own. Packages are the wheels of
deploy/requirements-emr.txt for EMR's Python and Linux, whatever builds it. The same input gives the same bytes: files
in order and without times or owners, compiled ahead, nothing of the machine in them.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
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


def build(out: Path, python: str = PYTHON) -> dict[str, object]:
    """Make the archive in a folder, which is replaced, and return its manifest. `python`: the nodes' interpreter."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=out) as temporary:
        tree = Path(temporary) / "environment"
        packages = tree / "lib" / f"python{VERSION}" / "site-packages"
        _install(packages)
        _own(tree, packages)
        _interpreter(tree, python)
        _compile(packages)
        _pack(tree, out / "environment.tar.gz")
    shutil.copytree(ROOT / "jobs", out / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    manifest = {
        "commit": commit(),
        "python": VERSION,
        "platform": PLATFORM,
        "interpreter": python,
        "files": {
            str(path.relative_to(out)): {"bytes": path.stat().st_size, "sha256": _digest(path)}
            for path in sorted(out.rglob("*"))
            if path.is_file()
        },
    }
    # other content, other name: a folder of that name is never written twice
    named = hashlib.sha256(json.dumps(manifest["files"], sort_keys=True).encode()).hexdigest()
    manifest["version"] = named[:16]
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def _install(packages: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    command = [str(uv), "pip", "install", "--quiet", "--target", str(packages), "--python-version", VERSION]
    command += ["--python-platform", PLATFORM, "--only-binary", ":all:", "--require-hashes", "--link-mode", "copy"]
    subprocess.run([*command, "-r", str(ROOT / "deploy" / "requirements-emr.txt")], check=True, cwd=ROOT)
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


def _own(tree: Path, packages: Path) -> None:
    ours = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "lib" / "encore", packages / "encore", ignore=ours)
    (packages / "encore" / "COMMIT").write_text(commit() + "\n")
    shutil.copytree(ROOT / "conf", tree / "conf", ignore=ours)


def _interpreter(tree: Path, python: str) -> None:
    """What makes a folder a virtual environment: links to the interpreter, and the file that it finds beside them."""
    (tree / "bin").mkdir()
    (tree / "bin" / "python").symlink_to(python)
    for name in ("python3", f"python{VERSION}"):
        (tree / "bin" / name).symlink_to("python")
    settings = {"home": Path(python).parent, "include-system-site-packages": "false", "version": VERSION}
    (tree / "pyvenv.cfg").write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))


def _compile(packages: Path) -> None:
    """Compile ahead: executors would do it anew each time. In one process and with fixed hashes, for the same bytes."""
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
    failed = [line for line in done.stdout.splitlines() if line.startswith("***")]
    if any("encore/" in line for line in failed):
        raise SystemExit(f"encore: {failed[0]}")


def _pack(tree: Path, archive: Path) -> None:
    with (
        archive.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in sorted(tree.rglob("*")):
            name = str(path.relative_to(tree))
            entry = tar.gettarinfo(str(path), name)
            entry.uid = entry.gid = entry.mtime = 0
            entry.uname = entry.gname = ""
            # what one machine's umask was is no part of it
            entry.mode = 0o755 if entry.isdir() or entry.issym() or entry.mode & 0o100 else 0o644
            if entry.isfile():
                # a file that another one is linked to would be packed as a link
                entry.type = tarfile.REGTYPE
                with path.open("rb") as content:
                    tar.addfile(entry, content)
            else:
                tar.addfile(entry)


def commit() -> str:
    """ENCORE_GIT_COMMIT where set, else of the checkout: `-dirty` where files differ from it, `unknown` without git."""
    given = os.environ.get("ENCORE_GIT_COMMIT")
    if given:
        return given
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--", "lib", "jobs", "conf"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")


def _digest(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def main() -> None:
    """Build it, and say what it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "package")
    parser.add_argument("--python", default=PYTHON, help=f"interpreter of the nodes; {PYTHON} on EMR")
    given = parser.parse_args()
    made = build(given.out, given.python)
    size = (given.out / "environment.tar.gz").stat().st_size
    print(f"{given.out}: version {made['version']}, {size / 1e6:,.0f} MB, commit {made['commit']}")  # noqa: T201


if __name__ == "__main__":
    main()
