"""The scorer's image, built and run without a container engine."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from encore.serving.scorer import Scorer
from tests.serving.chroot import in_image
from tests.serving.process import Running, free_port, started
from tests.unit.serving.bundles import URIS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "image"
sys.path.insert(0, str(FOLDER))

import build_image  # noqa: E402
import debian_packages  # noqa: E402

PYTHON = "/usr/bin/python3.11"
LIST = build_image.FileList()
IMAGE = LIST.image


@pytest.fixture(scope="session")
def built() -> Path:
    """The folder of the image; built unless it is up to date."""
    out = ROOT / "build" / "image"
    command = [sys.executable, str(FOLDER / "build_image.py"), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def root(built: Path) -> Path:
    """The root folder of the image."""
    return built / "root"


@pytest.fixture(scope="session")
def files(built: Path) -> dict[str, dict[str, Any]]:
    """What the build says about each file."""
    found: dict[str, dict[str, Any]] = json.loads((built / "files.json").read_text())
    return found


@pytest.fixture(scope="session")
def mounted(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of all models, as any user may read it."""
    folder = tmp_path_factory.mktemp("mounted") / "bundle"
    shutil.copytree(bundle, folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


@pytest.fixture(scope="module")
def served(root: Path, mounted: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The scorer in its image."""
    port = free_port()
    variables = {"ENCORE_SERVE_MODEL": "/bundle", "ENCORE_SERVE_PORT": str(port), "ENCORE_SERVE_HOST": "127.0.0.1"}
    command, environment = in_image(root, IMAGE, IMAGE["entrypoint"], mounted, **variables)
    with started(command, port, environment, log=tmp_path_factory.mktemp("image") / "log") as running:
        yield running


def run_in(root: Path, code: str, bundle: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python code in the image."""
    command, environment = in_image(root, IMAGE, [PYTHON, "-c", code], bundle)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def paths_of(root: Path) -> dict[str, Path]:
    """All files and links."""
    return {path: root / path[1:] for path in debian_packages.paths_in(root)}


def test_it_has_exactly_the_files_of_the_list(root: Path, files: dict[str, dict[str, Any]]) -> None:
    assert set(paths_of(root)) == set(files)
    entries = {entry["package"]: entry for entry in (*LIST.entries["debian"], *LIST.entries["wheel"])}
    entries["encore"] = LIST.entries["encore"]
    own = {"/etc/passwd", "/etc/group", "/etc/nsswitch.conf"}
    for path, about in files.items():
        entry = entries[about["component"]]
        if path in own or path == entry.get("joined") or path == f"/usr/share/doc/{about['component']}/copyright":
            continue
        listed = re.sub(r"\.pyc$", ".py", path.removeprefix(build_image.PACKAGES))
        assert debian_packages.matcher(entry["files"]).fullmatch(listed), path
        assert not debian_packages.matcher(entry.get("leave_out", ())).fullmatch(listed), path


def test_its_files_are_unchanged(root: Path, files: dict[str, dict[str, Any]]) -> None:
    for path, about in files.items():
        found = root / path[1:]
        if "link" in about:
            assert str(found.readlink()) == about["link"]
        else:
            assert debian_packages.digest(found) == about["sha256"], path


def test_it_has_no_other_folders(root: Path, files: dict[str, dict[str, Any]]) -> None:
    needed = {
        str(parent) for path in (*files, *(f"{folder}/x" for folder in folders())) for parent in Path(path).parents
    }
    there = {f"/{path.relative_to(root)}" for path in root.rglob("*") if path.is_dir() and not path.is_symlink()}
    assert there == needed - {"/"}


def folders() -> list[str]:
    return [*IMAGE["writable"], *IMAGE["mounts"]]


def test_it_is_small(built: Path, files: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    size = sum(about.get("bytes", 0) for about in files.values())
    layer = max(path.stat().st_size for path in (built / "oci" / "blobs" / "sha256").iterdir())
    with capsys.disabled():
        print(f"\nimage: {size / 1e6:.1f} MB, {layer / 1e6:.1f} MB compressed, {len(files)} files")  # noqa: T201
    assert size < IMAGE["most_megabytes"] * 1e6
    assert len(files) < IMAGE["most_files"]


def test_it_has_nothing_that_is_forbidden(files: dict[str, dict[str, Any]]) -> None:
    places = (build_image.PACKAGES, "/usr/lib/python3.11", "/usr/bin")
    inside = [path.removeprefix(place)[1:] for path in files for place in places if path.startswith(f"{place}/")]
    names = {re.sub(r"[.-].*", "", path.split("/")[0]).lower() for path in inside}
    assert {"numpy", "python3", "encore", "json"} <= names
    assert (names | {Path(path).name for path in files}) & set(IMAGE["forbidden"]) == set()


def test_its_only_program_is_python(root: Path) -> None:
    loaders = {f"/lib/{LIST.triplet}/ld-linux-x86-64.so.2", f"/lib/{LIST.triplet}/ld-linux-aarch64.so.1"}
    programs = {
        path
        for path, file in paths_of(root).items()
        if not file.is_symlink() and os.access(file, os.X_OK) and not re.search(r"\.so(\.|$)", path)
    }
    assert programs - loaders == {PYTHON}
    assert all(not file.lstat().st_mode & 0o6000 for file in paths_of(root).values())


def test_shared_libraries_that_files_need_are_in_it(root: Path) -> None:
    there = {Path(path).name for path in paths_of(root)}
    missing = {}
    for path, file in paths_of(root).items():
        if not file.is_symlink() and file.read_bytes()[:4] == b"\x7fELF":
            text = subprocess.run(["readelf", "-d", str(file)], capture_output=True, text=True, check=True).stdout
            missing[path] = set(re.findall(r"\(NEEDED\).*\[(.+)\]", text)) - there
    assert len(missing) > 30
    assert {path: names for path, names in missing.items() if names} == {}


def test_all_of_encore_in_it_can_be_imported(root: Path) -> None:
    code = (
        "import encore, importlib, pkgutil, sys\n"
        "names = [m.name for m in pkgutil.walk_packages(encore.__path__, 'encore.') if '__main__' not in m.name]\n"
        "for name in names: importlib.import_module(name)\n"
        "print(len(names))\n"
    )
    done = run_in(root, code)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40


def test_nothing_in_it_can_be_written_to(root: Path) -> None:
    code = (
        "import os\n"
        "for folder in ('/', '/usr', '/usr/local/lib/python3.11/dist-packages/encore', '/bundle'):\n"
        "    try: open(folder + '/new', 'w')\n"
        "    except OSError as error: print(error.errno)\n"
        "open('/tmp/new', 'w').close(); open('/var/cache/encore/new', 'w').close()\n"
        "print(os.getuid())\n"
    )
    done = run_in(root, code)
    assert done.returncode == 0, done.stderr
    *errors, user = done.stdout.split()
    # EACCES or EROFS
    assert len(errors) == 4
    assert set(errors) <= {"13", "30"}
    if os.geteuid() == 0:
        assert int(user) == IMAGE["user"]


ROWS = """
import json, sys
from pathlib import Path
import numpy as np
from encore.serving.scorer import Playlist, Scorer

def rows(folder):
    scorer = Scorer.open(Path(folder))
    scorer.warm_up()
    uris = scorer.catalogue.uris(np.arange(len(scorer.catalogue)))
    titles = ["Rock 🤘", None, "", "summer 2017", "xyzzy"]
    playlists = [Playlist(uris[i::step][:n], titles[(i + n) % 5]) for i in range(6) for n in (0, 1, 2, 5, 30)
                 for step in (1, 7)] + [Playlist(["spotify:track:" + "z" * 22], None)]
    found = {}
    for model in scorer.models:
        for asked in ([], playlists[:1], playlists[5:8], playlists):
            for k in (1, 9, 60):
                for row in scorer.recommend(asked, k, model):
                    found.setdefault(model, []).append([row.ids.tobytes().hex(), row.scores.tobytes().hex()])
        for playlist in playlists[:9]:
            row = scorer.recommend([playlist], 9, model)[0]
            found[model].append([str(reason) for reason in scorer.explain(playlist, row.ids, model)])
    return found
"""


def test_its_loops_give_the_same_rows_as_numba(root: Path, mounted: Path) -> None:
    code = ROWS + "json.dump(rows('/bundle'), sys.stdout)\nassert 'numba' not in sys.modules\n"
    done = run_in(root, code, mounted)
    assert done.returncode == 0, done.stderr
    here: dict[str, Any] = {}
    exec(ROWS, here)
    expected = here["rows"](mounted)
    assert set(expected) == {"ials", "adjacency", "artist", "title", "fusion", "ranker"}
    assert json.loads(done.stdout) == expected
    # the trees of the ranker take part
    assert len(Scorer.open(mounted).models["ranker"].arrays["leaf_values"])


UNLOCKED = """
import threading
import numpy as np
from encore.recommenders.ranker_trees import Trees, load_loops

n = 200
trees = Trees(np.arange(n + 1) * 15, np.zeros(n * 15, np.int32), np.zeros(n * 15, np.float32),
              np.full(n * 15, 0xFFFFFFFF, np.uint32), np.zeros((n, 32)))
rows = np.zeros((1_000_000, 2), np.float32)
load_loops()
begun, done = threading.Event(), threading.Event()

def work():
    begun.set()
    trees.margins(rows)
    done.set()

threading.Thread(target=work).start()
begun.wait()
count = 0
while not done.is_set():
    count += 1
print(count)
"""


def test_its_loops_let_other_threads_run(root: Path) -> None:
    """Millions of steps are taken in its time; if it kept the lock, at most those of two turns of 5 ms."""
    done = run_in(root, UNLOCKED)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 500_000


def test_it_serves(served: Running, mounted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = json.dumps({"instances": [{"tracks": [URIS[3], URIS[17]], "title": "Rock"}], "params": {"k": 5}}).encode()
    status, answer = served.post("/invocations", body)
    assert status == 200, answer
    (prediction,) = json.loads(answer)["predictions"]
    assert len(prediction["tracks"]) == 5
    assert b"<html" in served.get("/")
    assert b"encore_requests_total" in served.get("/metrics")
    private = served.private_bytes()
    with capsys.disabled():
        print(f"\nimage: ready in {served.ready_seconds:.1f} s, {private / 1e6:.0f} MB of its own")  # noqa: T201
    status_of = dict(line.split(":", 1) for line in Path(f"/proc/{served.process.pid}/status").read_text().splitlines())
    if os.geteuid() == 0:
        assert status_of["Uid"].split() == [str(IMAGE["user"])] * 4


def test_it_ends_when_it_is_told(root: Path, mounted: Path, tmp_path: Path) -> None:
    port = free_port()
    variables = {"ENCORE_SERVE_MODEL": "/bundle", "ENCORE_SERVE_PORT": str(port), "ENCORE_SERVE_LINGER_SECONDS": "0"}
    command, environment = in_image(root, IMAGE, IMAGE["entrypoint"], mounted, **variables)
    with started(command, port, environment, log=tmp_path / "log") as running:
        running.process.terminate()
        assert running.process.wait(30) == 0


def test_the_bill_of_materials_is_valid_and_names_every_file(built: Path, files: dict[str, dict[str, Any]]) -> None:
    text = (built / "sbom.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    components = json.loads(text)["components"]
    named = [(file["name"], part["name"]) for part in components for file in part["components"]]
    assert sorted(named) == sorted((path, about["component"]) for path, about in files.items())
    digests = {
        file["name"]: file["hashes"][0]["content"]
        for part in components
        for file in part["components"]
        if "hashes" in file
    }
    assert digests == {path: about["sha256"] for path, about in files.items() if "sha256" in about}
    purls = {part["purl"] for part in components}
    assert any(purl.startswith("pkg:deb/debian/libc6@2.") for purl in purls)
    pinned = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", build_image.REQUIREMENTS.read_text(), re.MULTILINE))
    assert f"pkg:pypi/numpy@{pinned['numpy']}" in purls


def test_the_container_image_is_the_root_folder(built: Path, root: Path, files: dict[str, dict[str, Any]]) -> None:
    blobs = built / "oci" / "blobs" / "sha256"
    for path in blobs.iterdir():
        assert debian_packages.digest(path) == path.name
    (manifest,) = json.loads((built / "oci" / "index.json").read_text())["manifests"]
    found = json.loads((blobs / manifest["digest"].removeprefix("sha256:")).read_text())
    config = json.loads((blobs / found["config"]["digest"].removeprefix("sha256:")).read_text())
    assert config["config"]["User"] == "65532:65532"
    assert config["config"]["Entrypoint"] == [PYTHON, "-m", "encore.serving"]
    (layer,) = found["layers"]
    packed = gzip.decompress((blobs / layer["digest"].removeprefix("sha256:")).read_bytes())
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(packed).hexdigest()}"]
    with tarfile.open(blobs / layer["digest"].removeprefix("sha256:")) as tar:
        entries = {f"/{entry.name}": entry for entry in tar}
    assert {path for path, entry in entries.items() if not entry.isdir()} == set(files)
    assert {path for path, entry in entries.items() if entry.uid} == set(IMAGE["writable"])
    assert all(entry.uid in (0, IMAGE["user"]) and not entry.mtime for entry in entries.values())


def test_the_dockerfile_takes_the_same_list() -> None:
    text = (FOLDER / "Dockerfile").read_text()
    final = text[text.index("FROM scratch") :]
    assert "build_image.py" in text
    assert re.findall(r"^COPY (.*)$", final, re.MULTILINE) == ["--from=build /image/root /"] + [
        f"--from=build --chown={IMAGE['user']}:{IMAGE['user']} /image/root{folder} {folder}"
        for folder in IMAGE["writable"]
    ]
    assert f"USER {IMAGE['user']}:{IMAGE['user']}" in final
    assert f"ENTRYPOINT {json.dumps(IMAGE['entrypoint'])}" in final
    assert f"VOLUME {json.dumps(IMAGE['writable'])}" in final
    assert f"EXPOSE {IMAGE['port']}" in final
    assert (
        dict(re.findall(r"(\w+)=(\S+)", "".join(re.findall(r"^ENV (.*(?:\n +.*)*)", final, re.MULTILINE))))
        == IMAGE["environment"]
    )
    # nothing runs in the image itself, which has no shell
    assert "RUN" not in final
