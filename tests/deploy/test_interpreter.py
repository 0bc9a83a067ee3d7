"""The application archive's own Python: how it is put together, and that it needs nothing of the node but a shell."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import re
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.deploy import debian
from tests.serving.chroot import in_image

sys.path.insert(0, str(ROOT / "deploy" / "python"))

import debian_packages
import interpreter
from debian_packages import Locked

# from packages to the archive's folder -------------------------------------------------------------------------------


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mirror with the small packages, which the list and the lock ask for; no other server is known."""
    folder = tmp_path / "mirror"
    publish(tmp_path, debian.TINY)
    for name in ("LIST", "LOCK"):
        monkeypatch.setattr(interpreter, name, tmp_path / getattr(interpreter, name).name)
    monkeypatch.setattr(debian_packages, "MIRRORS", (f"file://{folder}",))
    monkeypatch.setattr(debian_packages, "SNAPSHOT", f"file://{tmp_path / 'snapshot'}/")
    monkeypatch.delenv("ENCORE_DEBIAN_MIRROR", raising=False)
    monkeypatch.setenv("PATH", "/usr/sbin:/sbin")
    return folder


def publish(folder: Path, packages: Mapping[str, debian.Files]) -> None:
    debian.publish(folder / "mirror", folder, packages)


def test_files_programs_and_licences_are_put_in_their_places(mirror: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    interpreter.add(tree, tmp_path / "cache")
    assert set(debian_packages.paths_in(tree)) == {
        "/bin/python",
        "/bin/python3",
        "/bin/python3.11",
        "/lib/python3.11/os.py",
        "/lib/x86_64-linux-gnu/libtiny.so.1",
        "/lib/x86_64-linux-gnu/libtiny.so.1.2",
        "/libexec/python3.11",
        "/share/doc/libtiny",
        "/share/doc/packages.json",
        "/share/doc/python-tiny/copyright",
    }
    assert (tree / "lib/x86_64-linux-gnu/libtiny.so.1").read_text() == "library"
    assert (tree / "share/doc/libtiny/copyright").read_text() == "free\n"
    programs = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file() and os.access(path, os.X_OK)}
    assert programs == {"bin/python", "bin/python3", "bin/python3.11", "libexec/python3.11"}


@pytest.mark.parametrize(
    ("libtiny", "message"),
    [
        ({"usr/share/doc/libtiny": "-> gone"}, "the licence of libtiny is in gone, which is not on the list"),
        ({}, "libtiny has no copyright file"),
    ],
)
def test_a_package_without_a_licence_is_refused(
    mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], libtiny: debian.Files, message: str
) -> None:
    files = {path: what for path, what in debian.TINY["libtiny"].items() if path.startswith("lib/")}
    publish(tmp_path, {**debian.TINY, "libtiny": {**files, **libtiny}})
    with pytest.raises(SystemExit):
        interpreter.add(tmp_path / "tree", tmp_path / "cache")
    assert capsys.readouterr().err == f"encore: {message}\n"


def test_a_lock_of_another_list_is_refused(mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / "files.toml").open("a") as file:
        file.write('[[debian]]\npackage = "libnew"\nfiles = []\n')
    with pytest.raises(SystemExit):
        interpreter.locked()
    assert "packages.json has other packages than files.toml: run `make lock` on Debian 12" in capsys.readouterr().err


# where packages come from ---------------------------------------------------------------------------------------------


def file_of(mirror: Path, one: Locked) -> Path:
    return mirror / one.path


def test_a_package_that_a_mirror_no_longer_has_comes_from_the_snapshots(mirror: Path, tmp_path: Path) -> None:
    first, second = interpreter.locked()
    (tmp_path / "snapshot").mkdir()
    file_of(mirror, first).rename(tmp_path / "snapshot" / first.sha1)
    file_of(mirror, second).rename(tmp_path / "snapshot" / second.sha1)
    found = debian_packages.fetch([first, second], tmp_path / "cache")
    assert {name: debian_packages.digest(path) for name, path in found.items()} == {
        one.package: one.sha256 for one in (first, second)
    }
    shutil.rmtree(tmp_path / "snapshot")
    assert debian_packages.fetch([first, second], tmp_path / "cache") == found, "and are kept"


def test_other_bytes_than_locked_are_refused(mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (one, *_) = interpreter.locked()
    file_of(mirror, one).write_bytes(debian.package(one.package, {"usr/bin/python3.11": "evil"}))
    with pytest.raises(SystemExit) as caught:
        debian_packages.fetch([one], tmp_path / "cache")
    assert caught.value.code == 4
    text = capsys.readouterr().err
    assert f"cannot download Debian's package python-tiny 1.0 with SHA-256 {one.sha256}" in text
    assert f"file://{mirror}/" in text
    assert f"its SHA-256 is {debian_packages.digest(file_of(mirror, one))}" in text
    assert one.sha1 in text, "the snapshot was asked as well"
    assert "ENCORE_DEBIAN_MIRROR" in text
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_damaged_package_in_the_cache_is_downloaded_again(mirror: Path, tmp_path: Path) -> None:
    (one, *_) = interpreter.locked()
    path = debian_packages.fetch([one], tmp_path / "cache")[one.package]
    path.write_bytes(b"cut off")
    debian_packages.fetch([one], tmp_path / "cache")
    assert debian_packages.digest(path) == one.sha256


@contextmanager
def web_server(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """A server of a folder's files while the block runs: its address, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def test_the_mirror_of_the_environment_is_asked_first(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = interpreter.locked()
    with web_server(mirror) as (address, asked):
        monkeypatch.setenv("ENCORE_DEBIAN_MIRROR", f"{address}/")
        assert debian_packages.fetch([first], tmp_path / "cache")[first.package].is_file()
        assert asked == [f"/{first.path.replace('+', '%2B')}"]
        file_of(mirror, second).unlink()
        with pytest.raises(SystemExit):
            debian_packages.fetch([second], tmp_path / "cache")
    assert f"{address}/debian/pool/main/libtiny_1.0%2Bb1_all.deb: HTTP Error 404" in capsys.readouterr().err
    monkeypatch.setenv("ENCORE_DEBIAN_MIRROR", "no-address")
    with pytest.raises(SystemExit):
        debian_packages.fetch([second], tmp_path / "cache")
    assert "no-address/debian/pool/main/libtiny_1.0%2Bb1_all.deb: unknown url type" in capsys.readouterr().err


APT = """#!/bin/sh
# apt-get download [--print-uris | --quiet] PACKAGE...
echo "$*" >>"$APT/asked"
for name; do
  case $name in download | --*) continue ;; esac
  file=$APT/$name.deb
  [ -f "$file" ] || { echo "E: Unable to locate package $name" >&2; exit 100; }
  case $2 in
    --print-uris) echo "'http://mirror/debian/pool/$name.deb' $name.deb 1 SHA256:$(sha256sum <"$file" | cut -c1-64)" ;;
    *) cp "$file" "$name.deb" ;;
  esac
done
"""


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: Path) -> Path:
    """A folder of what apt-get offers, by default what the mirror has."""
    folder = tmp_path / "apt"
    folder.mkdir()
    (folder / "apt-get").write_text(APT)
    (folder / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("APT", str(folder))
    for one in interpreter.locked():
        shutil.copyfile(file_of(mirror, one), folder / f"{one.package}.deb")
    return folder


def test_apt_downloads_the_versions_that_it_offers(apt: Path, mirror: Path, tmp_path: Path) -> None:
    shutil.rmtree(mirror)
    packages = interpreter.locked()
    found = debian_packages.fetch(packages, tmp_path / "cache")
    assert {debian_packages.digest(path) for path in found.values()} == {one.sha256 for one in packages}
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted(
        Path(one.path).name for one in packages
    )


def test_what_apt_offers_in_another_version_comes_from_a_mirror(apt: Path, mirror: Path, tmp_path: Path) -> None:
    first, second = interpreter.locked()
    (apt / f"{first.package}.deb").write_bytes(debian.package(first.package, {}, "2.0"))
    file_of(mirror, second).unlink()
    found = debian_packages.fetch([first, second], tmp_path / "cache")
    assert debian_packages.digest(found[first.package]) == first.sha256
    assert (apt / "asked").read_text().splitlines()[-1] == f"download --quiet {second.package}"
    shutil.rmtree(tmp_path / "cache")
    (apt / f"{second.package}.deb").unlink()
    with pytest.raises(SystemExit):
        debian_packages.fetch([second], tmp_path / "cache")
    assert debian_packages.fetch([first], tmp_path / "cache"), "a release without these packages"


def test_the_lock_has_the_newest_versions(
    apt: Path, tmp_path: Path, mirror: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {one.package: one for one in interpreter.locked()}
    newer = debian.package("libtiny", debian.TINY["libtiny"], "2.0")
    (apt / "libtiny.deb").write_bytes(newer)
    interpreter.lock()
    after = {one.package: one for one in interpreter.locked()}
    assert after["libtiny"] == Locked(
        "libtiny",
        "2.0",
        "debian/pool/libtiny.deb",
        hashlib.sha1(newer).hexdigest(),
        hashlib.sha256(newer).hexdigest(),
    )
    assert after["python-tiny"].sha256 == before["python-tiny"].sha256
    (apt / "libtiny.deb").unlink()
    with pytest.raises(SystemExit):
        interpreter.lock()
    assert "locked on Debian 12" in capsys.readouterr().err
    assert after == {one.package: one for one in interpreter.locked()}


# the launcher ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def launched(tmp_path: Path) -> Path:
    """An unpacked archive whose dynamic linker prints how it was called."""
    home = tmp_path / "unpacked archive"
    (home / "bin").mkdir(parents=True)
    shutil.copyfile(interpreter.LAUNCHER, home / "bin" / "python")
    (home / "bin" / "python").chmod(0o755)
    (home / "bin" / "python3").symlink_to("python")
    linker = home / "lib" / "x86_64-linux-gnu" / "ld-linux-x86-64.so.2"
    linker.parent.mkdir(parents=True)
    names = "LD_PRELOAD LD_AUDIT LD_LIBRARY_PATH PYTHONHOME PYTHONPATH SSL_CERT_FILE SSL_CERT_DIR"
    script = f'for name in {names}; do printenv $name | sed "s/^/$name=/"; done; printf "%s\\n" "$@"'
    linker.write_text(f"#!/bin/sh\n{script}\n")
    linker.chmod(0o755)
    (tmp_path / "environment").symlink_to(home)
    return home


def called(command: list[str], folder: Path, **variables: str) -> list[str]:
    environment = {"PATH": "/usr/bin:/bin", **variables}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def expected(home: Path, name: str, *arguments: str) -> list[str]:
    libraries = f"{home}/lib/x86_64-linux-gnu"
    options = ["--inhibit-cache", "--library-path", libraries, "--argv0", f"{home}/bin/{name}"]
    return [*options, f"{home}/libexec/python3.11", "-s", *arguments]


def test_the_launcher_finds_its_archive_wherever_it_is_called_from(launched: Path, tmp_path: Path) -> None:
    # a folder that `cd environment` would go to instead
    (tmp_path / "other" / "environment").mkdir(parents=True)
    variables = {"CDPATH": str(tmp_path / "other"), "SSL_CERT_DIR": "/certs"}
    link = tmp_path / "environment"
    for command, home, name in (
        ("./environment/bin/python", link, "python"),
        ("environment/bin/python3", link, "python3"),
        (str(launched / "bin" / "python3"), launched, "python3"),
    ):
        found = called([command, "-c", "a b", ""], tmp_path, **variables)
        assert found == ["SSL_CERT_DIR=/certs", *expected(home, name, "-c", "a b", "")]
    for folder, search in ((tmp_path, f"{launched}/bin:/usr/bin:/bin"), (launched / "bin", ":/usr/bin:/bin")):
        found = called(["sh", "-c", "python -V"], folder, **variables, PATH=search)
        assert found == ["SSL_CERT_DIR=/certs", *expected(launched, "python", "-V")]


def test_the_launcher_drops_what_would_load_the_nodes_libraries_and_modules(launched: Path) -> None:
    dropped = {"LD_PRELOAD": "", "LD_AUDIT": "", "PYTHONHOME": "/opt/conda"}
    kept = {"LD_LIBRARY_PATH": "/usr/lib/hadoop/lib/native", "PYTHONPATH": "/spark/python"}
    found = called([str(launched / "bin" / "python")], launched, **dropped, **kept)
    certificates = f"{launched}/lib/python3.11/dist-packages/certifi/cacert.pem"
    variables = [*(f"{name}={value}" for name, value in kept.items()), f"SSL_CERT_FILE={certificates}"]
    assert found == [*variables, *expected(launched, "python")]
    own = called([str(launched / "bin" / "python")], launched, SSL_CERT_FILE="/etc/own.pem")
    assert own == ["SSL_CERT_FILE=/etc/own.pem", *expected(launched, "python")]


# on a node without Python, without a C library ------------------------------------------------------------------------

NODE: dict[str, Any] = {"user": pwd.getpwnam("nobody").pw_uid, "writable": ["/tmp"], "environment": {"PATH": "/bin"}}
FILES = {
    # as on Amazon Linux, with services that only the node's C library has
    "etc/nsswitch.conf": "passwd: sss files systemd\nhosts: files myhostname resolve [!UNAVAIL=return] dns\n",
    "etc/resolv.conf": "nameserver 127.0.0.2\noptions timeout:1\n",
    "etc/hosts": "127.0.0.1 localhost\n10.0.0.7 node.internal\n",
    "etc/passwd": f"hadoop:x:{NODE['user']}:{NODE['user']}::/home/hadoop:/bin/sh\n",
    # libraries that are none, in the folders of Debian's dynamic linker and of the JVM
    **{
        f"{folder}/{name}": "not a library"
        for folder in ("lib/x86_64-linux-gnu", "lib64", "jvm/lib")
        for name in ("libc.so.6", "libm.so.6", "libssl.so.3", "libstdc++.so.6", "libgomp.so.1", "libz.so.1")
    },
    "home/hadoop/.local/lib/python3.11/site-packages/numpy.py": "raise SystemExit('of the home folder')",
}


def full_archive(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test of the real archive, on a node that is a folder; it takes Linux and apt-get, for a static shell."""
    can = sys.platform == "linux" and shutil.which("unshare") and shutil.which("apt-get")
    skip = pytest.mark.skipif(not can, reason="a root folder without /usr takes Linux, unshare and apt-get")
    return pytest.mark.slow(pytest.mark.timeout(1200)(skip(test)))


@pytest.fixture(scope="module")
def node(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The root folder of a node: a static shell, the settings in FILES, and the unpacked archive."""
    root = tmp_path_factory.mktemp("node")
    cache = ROOT / ".cache" / "debian-tests"
    cache.mkdir(parents=True, exist_ok=True)
    busybox = debian_packages.Unpacked(debian_packages.newest("busybox-static", cache), root / "unpacked")
    (root / "bin").mkdir()
    shutil.copy(busybox.folder / "bin" / "busybox", root / "bin" / "sh")
    shutil.rmtree(busybox.folder)
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name in ("proc", "dev", "tmp"):
        (root / name).mkdir()
    with tarfile.open(package / "environment.tar.gz") as archive:
        archive.extractall(root / "environment", filter="fully_trusted")
    for path in (root, *root.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    yield root
    shutil.rmtree(root, ignore_errors=True)


def on(node: Path, code: str, **variables: str) -> dict[str, Any]:
    """Run code on the node by the archive's Python, and read the JSON that it prints."""
    preset = {
        "HOME": "/home/hadoop",
        "LD_LIBRARY_PATH": "/jvm/lib",
        "GIT_PYTHON_REFRESH": "quiet",
        "MPLCONFIGDIR": "/tmp",
    }
    preset |= {"LD_PRELOAD": "/jvm/lib/libc.so.6", "PYTHONHOME": "/opt/conda"}
    command = ["/environment/bin/python", "-c", code]
    command, environment = in_image(node, NODE, command, None, ["/proc", "/dev"], **{**preset, **variables})
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@full_archive
def test_it_is_an_interpreter_of_its_own(node: Path) -> None:
    code = (
        "import json, os, sys; print(json.dumps({'executable': sys.executable, 'path': sys.path, "
        "'prefixes': [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix], "
        "'libc': os.confstr('CS_GNU_LIBC_VERSION'), 'maps': open('/proc/self/maps').read(), "
        "'usr': os.path.exists('/usr')}))"
    )
    found = on(node, code, PYTHONPATH="/spark/python")
    assert found["executable"] == "/environment/bin/python"
    assert set(found["prefixes"]) == {"/environment"}
    folder = "/environment/lib/python3.11"
    zipped = "/environment/lib/python311.zip"
    assert found["path"] == ["", "/spark/python", zipped, folder, f"{folder}/lib-dynload", f"{folder}/dist-packages"]
    assert not found["usr"]
    mapped = {line.split(maxsplit=5)[5] for line in found["maps"].splitlines() if line.count("/")}
    assert {path for path in mapped if not path.startswith("/environment/")} == set()
    versions = json.loads(interpreter.LOCK.read_text())
    assert found["libc"] == f"glibc {versions['libc6']['version'].partition('-')[0]}"


@full_archive
def test_every_package_is_imported_where_there_is_no_usr(node: Path, verified: Callable[[str], None]) -> None:
    code = (
        "import importlib, importlib.metadata as about, json, pkgutil, sys\n"
        "names = [one.name for one in pkgutil.iter_modules([p for p in sys.path if p.endswith('dist-packages')])]\n"
        "for name in names: importlib.import_module(name)\n"
        "found = {one.metadata['Name']: one.version for one in about.distributions()}\n"
        "print(json.dumps({'modules': names, 'found': found}))"
    )
    found = on(node, code)
    text = (ROOT / "deploy" / "requirements-emr.txt").read_text()
    pinned = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, re.MULTILINE))
    normal = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found["found"].items()}
    assert normal == pinned
    assert {"numpy", "lightgbm", "deltalake", "mlflow", "encore"} <= set(found["modules"])
    verified(
        f"the archive's Python starts in a root folder without /usr or a C library, imports all {len(pinned)} packages"
    )


@full_archive
def test_numba_compiles_lightgbm_fits_and_deltalake_writes(node: Path, verified: Callable[[str], None]) -> None:
    code = """
import json, os, sys
import deltalake, lightgbm, numba, numpy as np, pandas as pd, pyarrow as pa, pyarrow.parquet
total = numba.njit(lambda values: values.sum())
rows = np.random.default_rng(0).random((500, 3))
booster = lightgbm.train({"objective": "binary", "verbosity": -1}, lightgbm.Dataset(rows, rows[:, 0] > 0.5), 5)
table = pa.table({"key": [1, 2, 3]})
deltalake.write_deltalake("/tmp/table", table)
written = deltalake.DeltaTable("/tmp/table")
written.delete("key = 2")
# as the jobs read: delta-rs's bridge to pyarrow's datasets sometimes aborts the process at exit
found = deltalake.QueryBuilder().register("t", written).execute("SELECT key FROM t").read_all()
openmp = [line.split()[-1] for line in open("/proc/self/maps") if "libgomp.so.1" in line]
at = pd.Timestamp("2026-07-01T12:00", tz="Etc/UTC").tz_convert("Europe/Rome")
print(json.dumps({
    "sum": total(np.arange(5)), "trees": booster.num_trees(), "openmp": sorted({*openmp}),
    "rows": sorted(pa.table(found)["key"].to_pylist()), "hour": at.hour,
}))
"""
    found = on(node, code, NUMBA_CACHE_DIR="/tmp")
    (openmp,) = found.pop("openmp")
    assert openmp.startswith("/environment/lib/x86_64-linux-gnu/libgomp.so.1")
    assert found == {"sum": 10, "trees": 5, "rows": [1, 3], "hour": 14}
    verified("there numba compiles, LightGBM fits, and deltalake writes, reads and deletes")


@full_archive
def test_processes_that_it_starts_use_it_too(node: Path) -> None:
    code = """
import json, subprocess, sys
open("/tmp/job.py", "w").write('''
import json, multiprocessing, os, sys
from concurrent.futures import ProcessPoolExecutor
def where(method): return [sys.executable, os.confstr("CS_GNU_LIBC_VERSION"), method]
if __name__ == "__main__":
    found = []
    for method in ("spawn", "forkserver", "fork"):
        with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
            found.append(pool.submit(where, method).result())
    print(json.dumps(found))
''')
done = subprocess.run([sys.executable, "/tmp/job.py"], capture_output=True, text=True)
print(json.dumps({"found": json.loads(done.stdout or "null"), "errors": done.stderr}))
"""
    found = on(node, code)
    assert found["errors"] == ""
    assert [method for *_, method in found["found"]] == ["spawn", "forkserver", "fork"]
    assert {(path, libc) for path, libc, _ in found["found"]} == {("/environment/bin/python", "glibc 2.36")}


@full_archive
@pytest.mark.parametrize("locale", ["", "C", "POSIX", "C.UTF-8", "en_US.UTF-8", "de_DE.ISO-8859-1"])
def test_text_is_utf8_whatever_locale_the_node_has(node: Path, locale: str) -> None:
    code = (
        "import json, locale, sys; print(json.dumps([sys.getfilesystemencoding(), sys.stdout.encoding, "
        "locale.getpreferredencoding(False).lower(), open('/tmp/x', 'w').encoding.lower()]))"
    )
    assert set(on(node, code, LANG=locale)) == {"utf-8"}


@full_archive
@pytest.mark.skipif(os.geteuid() != 0, reason="a name server on port 53 takes root")
def test_it_finds_names_and_users_by_the_settings_of_another_distribution(node: Path) -> None:
    code = (
        "import getpass, json, pwd, os, socket\n"
        "names = ('node.internal', 'mlflow.encore.test', 'localhost')\n"
        "found = {name: socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)[0][4][0] for name in names}\n"
        "print(json.dumps({**found, 'user': pwd.getpwuid(os.getuid()).pw_name}))"
    )
    with name_server({"mlflow.encore.test": "10.1.2.3"}):
        found = on(node, code)
    assert found == {
        "node.internal": "10.0.0.7",
        "mlflow.encore.test": "10.1.2.3",
        "localhost": "127.0.0.1",
        "user": "hadoop",
    }


@contextmanager
def name_server(known: Mapping[str, str]) -> Iterator[None]:
    """A name server on 127.0.0.2 while the block runs."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.2", 53))
        server.settimeout(0.2)
        done = threading.Event()

        def serve() -> None:
            while not done.is_set():
                try:
                    query, client = server.recvfrom(512)
                except TimeoutError:
                    continue
                server.sendto(_answer(query, known), client)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _answer(query: bytes, known: Mapping[str, str]) -> bytes:
    labels, at = [], 12
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode())
        at += 1 + length
    kind = struct.unpack(">H", query[at + 1 : at + 3])[0]
    address = known.get(".".join(labels)) if kind == 1 else None
    record = struct.pack(">HHHIH", 0xC00C, 1, 1, 60, 4) + socket.inet_aton(address) if address else b""
    return query[:2] + struct.pack(">HHHHH", 0x8180, 1, int(bool(address)), 0, 0) + query[12 : at + 5] + record


@full_archive
def test_it_verifies_servers_with_the_archives_certificates(node: Path) -> None:
    code = (
        "import json, ssl; print(json.dumps({'own': ssl.create_default_context().cert_store_stats()['x509_ca'], "
        "'openssl': ssl.OPENSSL_VERSION}))"
    )
    found = on(node, code)
    assert found["own"] > 100
    assert re.match(r"OpenSSL 3\.0\.", found["openssl"])


@full_archive
def test_every_library_that_it_needs_is_in_it(node: Path) -> None:
    """By the ELF headers, so also of modules that no test imports."""
    home = node / "environment"
    files = [path for path in home.rglob("*") if path.is_file() and not path.is_symlink() and _is_elf(path)]
    assert len(files) > 200
    there = {path.name for path in files} | {path.name for path in home.rglob("*.so*") if path.is_symlink()}
    missing = {}
    for path in files:
        text = subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True, check=True).stdout
        if lacking := set(re.findall(r"\(NEEDED\).*\[(.+)\]", text)) - there:
            missing[path.name] = lacking
    # one of numba's three thread pools, which it does without; nothing here runs threads of numba
    assert missing == {"tbbpool.cpython-311-x86_64-linux-gnu.so": {"libtbb.so.12"}}


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


@full_archive
def test_its_licences_are_in_it(node: Path) -> None:
    documents = node / "environment" / "share" / "doc"
    packages = json.loads((documents / "packages.json").read_text())
    assert {path.name for path in documents.iterdir() if path.is_dir()} == set(packages)
    texts = {name: (documents / name / "copyright").read_text(errors="replace") for name in packages}
    assert "GCC RUNTIME LIBRARY EXCEPTION" in texts["libgomp1"].upper()
    assert "PYTHON SOFTWARE FOUNDATION LICENSE" in texts["libpython3.11-stdlib"].upper()
    licences = node / "environment" / "share" / "common-licenses"
    referred = {name.rstrip(".") for text in texts.values() for name in re.findall(r"common-licenses/([\w.-]+)", text)}
    assert {name for name in referred if not (licences / name).exists()} == set()
    assert "LGPL-2.1" in referred
