"""Build the scorer's image from the list in files.toml, without a container engine.

    python deploy/image/build_image.py --out build/image

    build/image/root/        the root folder, which the Dockerfile copies
    build/image/files.json   of each file: size, SHA-256, and the component that it is from
    build/image/sbom.json    the components, CycloneDX
    build/image/oci/         the image in the layout of the Open Container Initiative, as `skopeo copy oci:...` takes it

Debian packages are downloaded by apt-get, wheels by uv. Python modules are stored compiled,
without their sources. The loops are compiled for the type of CPU in --cpu. As long as Debian publishes no newer
packages, the same input gives the same files, without times, except for the names of symbols in the compiled loops.

An image that is up to date is left as it is. A new one replaces it once it is complete.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import py_compile
import re
import shutil
import subprocess
import sys
import tempfile
from email.parser import HeaderParser
from functools import cached_property
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[1]
sys.path.insert(0, str(HERE.parent / "python"))

import compile_loops  # noqa: E402
import debian_packages  # noqa: E402
import oci  # noqa: E402
import sbom  # noqa: E402
from debian_packages import Unpacked, digest, newest, paths_in, run, stop  # noqa: E402
from sbom import Component  # noqa: E402

LIST: Final = HERE / "files.toml"
REQUIREMENTS: Final = HERE / "requirements.txt"
PACKAGES: Final = "/usr/local/lib/python3.11/dist-packages"
"""Where Debian's Python looks for packages that are not Debian's."""
MACHINES: Final = {
    "x86_64": ("amd64", "x86_64-linux-gnu", "x86-64-v3"),
    "aarch64": ("arm64", "aarch64-linux-gnu", "neoverse-n1"),
}
"""By type of machine: Debian's architecture, the triplet, and the type of CPU."""
NOBODY: Final = "nonroot"


class FileList(debian_packages.FileList):
    """The list in files.toml for a type of machine."""

    def __init__(self, path: Path = LIST, machine: str = platform.machine()) -> None:
        self.architecture, self.triplet, self.cpu = MACHINES[machine]
        super().__init__(path, self.triplet)

    @cached_property
    def image(self) -> dict[str, Any]:
        """What holds for the whole image: user, entry point, limits."""
        found: dict[str, Any] = self.entries["image"]
        return found


def build(out: Path, machine: str = platform.machine(), cpu: str | None = None) -> None:
    """Build the image in a folder, replacing the one there. SystemExit with a message if it cannot be built."""
    files = FileList(machine=machine)
    cpu = cpu or files.cpu
    inputs = inputs_of(machine, cpu)
    if (out / "inputs").is_file() and (out / "inputs").read_text() == inputs:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    cache = out.with_name(f"{out.name}-cache")
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        staging = Path(temporary)
        made = Image(files, staging / "done" / "root")
        made.add_debian(staging / "debian", cache / "debian")
        made.add_wheels(staging / "wheels")
        made.add_encore(staging / "encore", cache, cpu)
        made.compile_modules()
        made.finish()
        done = staging / "done"
        described = made.described()
        (done / "files.json").write_text(json.dumps(described, indent=1) + "\n")
        document = sbom.document(made.components, described, name="encore-scorer", version=version(), cpu=cpu)
        (done / "sbom.json").write_text(json.dumps(document, indent=1) + "\n")
        oci.write(done / "oci", done / "root", files.image, files.architecture)
        (done / "inputs").write_text(inputs)
        if out.exists():
            out.rename(staging / "former")
        done.rename(out)


class Image:
    """A root folder that is being filled, and what its files are from."""

    def __init__(self, files: FileList, root: Path) -> None:
        self.list = files
        self.root = root
        self.components: list[Component] = []
        root.mkdir(parents=True)

    def add_debian(self, staging: Path, cache: Path) -> None:
        """Download and unpack the Debian packages."""
        cache.mkdir(parents=True, exist_ok=True)
        entries = self.list.entries["debian"]
        for entry in entries:
            package = Unpacked(newest(entry["package"], cache), staging / entry["package"])
            folder = package.folder
            wanted = ("Package", "Version", "Architecture", "Source", "Maintainer", "Homepage")
            about = {name: package.fields.get(name, "") for name in wanted}
            component = Component("deb", entry["package"], about["Version"], about)
            paths = self.list.chosen(entry, paths_in(folder))
            if "joined" in entry:
                self._write(component, entry["joined"], b"".join((folder / path[1:]).read_bytes() for path in paths))
            else:
                for path in paths:
                    self._copy(component, folder / path[1:], path)
            licence = package.licence(other["package"] for other in entries)
            if isinstance(licence, Path):
                self._write(component, f"/usr/share/doc/{entry['package']}/copyright", licence.read_bytes())
            self.components.append(component)

    def add_wheels(self, staging: Path) -> None:
        """Install the wheels."""
        command = [uv(), "pip", "install", "--quiet", "--target", str(staging), "--python-version", "3.11"]
        command += ["--python-platform", f"{self.list.triplet.split('-')[0]}-manylinux_2_28", "--no-deps"]
        command += ["--only-binary", ":all:", "--require-hashes", "--link-mode", "copy", "-r", str(REQUIREMENTS)]
        run(command)
        listed = {entry["package"] for entry in self.list.entries["wheel"]}
        installed = {metadata_of(folder)["Name"]: folder for folder in sorted(staging.glob("*.dist-info"))}
        found = {name.replace("_", "-").lower(): folder for name, folder in installed.items()}
        if set(found) != listed:
            stop(f"{LIST.name} lists the wheels {sorted(listed)}, {REQUIREMENTS.name} has {sorted(found)}")
        there = list(paths_in(staging))
        for entry in self.list.entries["wheel"]:
            about = metadata_of(found[entry["package"]])
            paths = self.list.chosen(entry, there)
            if not paths:
                continue
            component = Component("pypi", entry["package"], about["Version"], about)
            for path in paths:
                self._copy(component, staging / path[1:], PACKAGES + path)
            self.components.append(component)

    def add_encore(self, staging: Path, cache: Path, cpu: str) -> None:
        """Copy our own modules, with the loops compiled."""
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "lib" / "encore", staging / "encore", ignore=ignored)
        compiled = compiled_loops(cache, cpu)
        shutil.copytree(compiled, staging / "encore", dirs_exist_ok=True)
        component = Component("generic", "encore", version(), {"Summary": "Continues playlists"})
        for path in self.list.chosen(self.list.entries["encore"], paths_in(staging)):
            self._copy(component, staging / path[1:], PACKAGES + path)
        user = self.list.image["user"]
        self._write(component, "/etc/passwd", f"{NOBODY}:x:{user}:{user}::/:/\n".encode())
        self._write(component, "/etc/group", f"{NOBODY}:x:{user}:\n".encode())
        self._write(component, "/etc/nsswitch.conf", b"hosts: files dns\n")
        self.components.append(component)

    def compile_modules(self) -> None:
        """Replace the sources of Python modules by compiled ones, which needs no cache to start fast."""
        for component in self.components:
            for i, path in enumerate(component.files):
                source = self.root / path[1:]
                if path.endswith(".py"):
                    # without times, so that the same source gives the same bytes
                    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
                    made = source.with_suffix(".pyc")
                    py_compile.compile(str(source), str(made), dfile=path, doraise=True, invalidation_mode=mode)
                    source.unlink()
                    component.files[i] = f"{path}c"

    def finish(self) -> None:
        """Make the folders that may be written to or mounted on, and set the modes of all files."""
        for path in self.root.rglob("*"):
            if not path.is_symlink():
                executable = path.is_dir() or path.stat().st_mode & 0o100
                path.chmod(0o755 if executable else 0o644)
        for folder in (*self.list.image["writable"], *self.list.image["mounts"]):
            (self.root / folder[1:]).mkdir(parents=True)
            (self.root / folder[1:]).chmod(0o1777 if folder in self.list.image["writable"] else 0o755)

    def described(self) -> dict[str, dict[str, Any]]:
        """Of each file, by path: size in bytes, SHA-256, the component; of a link its target. SystemExit if a file is
        of no component, or of two."""
        owners: dict[str, str] = {}
        for component in self.components:
            for path in component.files:
                if path in owners:
                    stop(f"{path} is of {owners[path]} and of {component.name}")
                owners[path] = component.name
        there = {f"/{path.relative_to(self.root)}": path for path in self.root.rglob("*")}
        files = {name: path for name, path in sorted(there.items()) if path.is_symlink() or not path.is_dir()}
        if unknown := set(files) ^ set(owners):
            stop(f"files without a component, or components without their file: {sorted(unknown)}")
        return {
            name: {"component": owners[name], "link": str(path.readlink())}
            if path.is_symlink()
            else {"component": owners[name], "bytes": path.stat().st_size, "sha256": digest(path)}
            for name, path in files.items()
        }

    def _copy(self, component: Component, source: Path, path: str) -> None:
        target = self.root / path[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() or target.is_symlink():
            stop(f"{path} is in {component.name} and in another package")
        shutil.copyfile(source, target, follow_symlinks=False)
        if not source.is_symlink():
            target.chmod(source.stat().st_mode & 0o777)
        component.files.append(path)

    def _write(self, component: Component, path: str, content: bytes) -> None:
        target = self.root / path[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        component.files.append(path)


def compiled_loops(cache: Path, cpu: str) -> Path:
    """A folder with the compiled loops, which are compiled again only if their code has changed."""
    names = [
        *compile_loops.LOOPS,
        *compile_loops.LOOPS.values(),
        "encore.arrays.prefetch",
        "encore.search.lanes",
        "encore.search.kernel",
    ]
    sources = [ROOT / "lib" / f"{name.replace('.', '/')}.py" for name in names]
    state = hashlib.sha256(f"{cpu} {sys.version}".encode())
    for path in [*sources, *sorted(HERE.glob("compile*.py")), HERE / "requirements-build.txt"]:
        state.update(path.read_bytes())
    folder = cache / f"loops-{state.hexdigest()[:16]}"
    if not folder.is_dir():
        for former in cache.glob("loops-*"):
            shutil.rmtree(former)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            made = Path(temporary) / "made"
            for name in ("recommenders", "search"):
                (made / name).mkdir(parents=True)
            try:
                compile_loops.build(made, cpu)
            except subprocess.CalledProcessError as error:
                stop(f"the loops cannot be compiled: {error}")
            made.rename(folder)
    return folder


def metadata_of(folder: Path) -> dict[str, str]:
    """The fields of an installed distribution."""
    found = HeaderParser().parsestr((folder / "METADATA").read_text())
    return {name: found[name] for name in ("Name", "Version", "Summary", "License-Expression") if found[name]}


def inputs_of(machine: str, cpu: str) -> str:
    """A digest of all that the image is made of, except for Debian's packages."""
    state = hashlib.sha256(f"{machine} {cpu} {sys.version}".encode())
    folders = (ROOT / "lib" / "encore", HERE, HERE.parent / "python")
    for path in sorted(path for folder in folders for path in folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            state.update(f"{path.relative_to(ROOT)} {digest(path)}\n".encode())
    return state.hexdigest()


def version() -> str:
    """The version of Encore."""
    found = re.search(r'__version__ = "(.+)"', (ROOT / "lib" / "encore" / "__init__.py").read_text())
    return found[1] if found else "0"


def uv() -> str:
    """The program uv, of the same environment or on the PATH."""
    own = Path(sys.executable).with_name("uv")
    found = str(own) if own.is_file() else shutil.which("uv")
    if found is None:
        stop("uv is missing: run `make setup`")
    return found


def main() -> None:
    """Build the image if it is not up to date, and print how large it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "image", help="folder for the image")
    parser.add_argument("--cpu", choices=compile_loops.CPUS, help="type of CPU; by default the oldest one that serves")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    build(out, cpu=arguments.cpu)
    files = json.loads((out / "files.json").read_text())
    size = sum(file.get("bytes", 0) for file in files.values())
    layer = max((out / "oci" / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size).stat().st_size
    about = f"{len(files)} files, {size / 1e6:.1f} MB, {layer / 1e6:.1f} MB compressed"
    print(f"{arguments.out}: {about}")  # noqa: T201 - a command


if __name__ == "__main__":
    main()
