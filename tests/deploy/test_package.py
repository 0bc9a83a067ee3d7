"""The application archive: its content, that builds are reproducible, and that a job runs from it. Its Python has
tests of its own in test_interpreter.py.

How it is built is tested on a small archive, which takes a second.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pyspark
import pytest

from encore.jobs.smoke import CONTENTS
from encore.runtime.registry import EXTRA_JOBS, JOBS
from tests import recompute
from tests.conftest import FAST_JVM, ROOT
from tests.deploy import debian
from tests.deploy.conftest import COMMIT, packaged

Run = Callable[..., subprocess.CompletedProcess[str]]


def full_archive(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test of the real archive, which takes minutes to build."""
    return pytest.mark.slow(pytest.mark.timeout(1200)(test))


LOCK = ROOT / "deploy" / "requirements-emr.txt"


def digest(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def content_of(archive: Path) -> str:
    """The digest of an archive's content, computed from the archive itself."""
    found = hashlib.sha256()
    with tarfile.open(archive) as tar:
        for entry in tar:
            file = tar.extractfile(entry) if entry.isreg() else None
            what = hashlib.sha256(file.read()).hexdigest() if file else entry.linkname
            found.update(json.dumps([entry.name, entry.type.decode(), entry.mode, what]).encode() + b"\n")
    return found.hexdigest()


@pytest.fixture(scope="module")
def names(package: Path) -> list[str]:
    with tarfile.open(package / "environment.tar.gz") as archive:
        return archive.getnames()


@full_archive
def test_the_manifest_describes_the_files(package: Path) -> None:
    manifest = json.loads((package / "manifest.json").read_text())
    files = {str(path.relative_to(package)): path for path in package.rglob("*") if path.is_file()}
    del files["manifest.json"]
    assert {name: about["sha256"] for name, about in manifest["files"].items()} == {
        name: digest(path) for name, path in files.items()
    }
    assert {f"jobs/{job}.py" for job in (*JOBS, *EXTRA_JOBS)} <= set(files)
    assert manifest["commit"] == COMMIT
    # the version depends on the content, but not on its compression
    jobs = {name: about["sha256"] for name, about in manifest["files"].items() if name.startswith("jobs/")}
    named = json.dumps([content_of(package / "environment.tar.gz"), jobs], sort_keys=True)
    assert manifest["version"] == hashlib.sha256(named.encode()).hexdigest()[:16]


@full_archive
def test_it_contains_what_emr_lacks_and_nothing_that_emr_has(names: list[str]) -> None:
    site = "lib/python3.11/dist-packages"
    assert {
        f"{site}/encore/runtime/runner.py",
        f"{site}/encore/COMMIT",
        "conf/base.yaml",
        "conf/emr.yaml",
        "bin/python",
    } <= {*names}
    assert {
        f"{site}/{name}/__init__.py"
        for name in ("numba", "mlflow", "sagemaker_mlflow", "pyarrow", "deltalake", "boto3")
    } <= {*names}
    top = {name.split("/")[3] for name in names if name.startswith(f"{site}/") and name.count("/") >= 3}
    assert top & {"pyspark", "delta", "py4j", "sklearn", "sqlalchemy", "pytest", "moto", "aws_cdk"} == set()
    assert [name for name in names if name.endswith(".jar") or name.startswith("conf/deploy")] == []


@full_archive
def test_the_same_input_gives_the_same_bytes(package: Path, tmp_path: Path, verified: Callable[[str], None]) -> None:
    """Build it again from a checkout in another folder, with newer files and another umask."""
    other = tmp_path / "checkout"
    for name in ("lib", "jobs", "conf", "deploy"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "cdk")
        shutil.copytree(ROOT / name, other / name, ignore=ignored, copy_function=shutil.copyfile)
    before = os.umask(0o077)
    try:
        again = packaged(other, tmp_path / "again")
    finally:
        os.umask(before)
    first = (package / "manifest.json").read_text()
    assert (again / "manifest.json").read_text() == first
    assert digest(again / "environment.tar.gz") == digest(package / "environment.tar.gz")
    size = (package / "environment.tar.gz").stat().st_size / 1e6
    verified(f"the application archive, {size:,.0f} MB, built twice in different folders: identical bytes")


@full_archive
def test_a_job_runs_from_it_by_spark_submit_with_an_external_pyspark(
    package: Path, generated: Path, tmp_path: Path, verified: Callable[[str], None]
) -> None:
    with tarfile.open(package / "environment.tar.gz") as archive:
        archive.extractall(tmp_path / "elsewhere", filter="fully_trusted")
    python = tmp_path / "elsewhere" / "bin" / "python"
    alone = subprocess.run([python, "-c", "import encore, pyspark"], capture_output=True, text=True, check=False)
    assert "No module named 'pyspark'" in alone.stderr, "pyspark comes with Spark, not with the archive"
    inherited = ("JAVA_HOME", "LANG", "LD_LIBRARY_PATH")
    spark = Path(pyspark.__file__).parent
    variables = {name: os.environ[name] for name in inherited if name in os.environ}
    variables |= {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "SPARK_HOME": str(spark)}
    variables |= {"PYSPARK_PYTHON": str(python), "PYSPARK_DRIVER_PYTHON": str(python)}
    command = [str(spark / "bin" / "spark-submit"), "--master", "local[2]", "--conf", "spark.ui.enabled=false"]
    command += ["--conf", f"spark.driver.extraJavaOptions={FAST_JVM}", str(package / "jobs" / "ingest_playlists.py")]
    command += ["--env", "emr", "--set", f"lake.path={tmp_path}/lake", "--set", f"raw.playlists={generated}"]
    command += ["--set", "tracking.uri=http://127.0.0.1:9"]
    done = subprocess.run(
        command, env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert len(recompute.table(tmp_path / "lake", "playlists")) == 300
    command[command.index(str(package / "jobs" / "ingest_playlists.py"))] = str(package / "jobs" / "smoke.py")
    checked = subprocess.run(
        command, env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert checked.returncode == 0, checked.stderr[-4000:]
    (row,) = [row for row in recompute.table(tmp_path / "lake", "job_runs") if row["job"] == "smoke"]
    facts = json.loads(row["facts"])
    for process in (facts["driver"], facts["executor"]):
        assert process["packages"] == len(re.findall(r"^[a-z0-9.-]+==", LOCK.read_text(), re.MULTILINE))
        assert process["python"].startswith(str(tmp_path / "elsewhere"))
    assert "mlflow_failed" in done.stdout, "nothing listens on that port, and the job succeeds all the same"
    verified("two jobs ran from the unpacked archive by spark-submit, with an external pyspark and no checkout")
    verified("the smoke job imported every package of the archive, on the driver and in a worker")


# a small archive: one local package, and the module of Encore that finds the commit ---------------------------------


def wheel(folder: Path) -> Path:
    path = folder / "tiny-1.0-py3-none-any.whl"
    about = {
        "METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("tiny/__init__.py", "")
        for name, text in about.items():
            packed.writestr(f"tiny-1.0.dist-info/{name}", text)
    return path


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    names = ["lib/encore/__init__.py", "lib/encore/runtime/provenance.py", "deploy/package.py"]
    names += [f"deploy/python/{name}" for name in ("debian_packages.py", "interpreter.py", "launcher.sh")]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, root / name)
    for name, text in (("jobs/one.py", "1\n"), ("conf/base.yaml", "a: 1\n")):
        (root / name).parent.mkdir()
        (root / name).write_text(text)
    made = wheel(tmp_path)
    (root / "deploy" / "requirements-emr.txt").write_text(f"tiny @ file://{made} --hash=sha256:{digest(made)}\n")
    debian.publish(tmp_path / "mirror", root / "deploy" / "python", debian.TINY)
    return root


@pytest.fixture
def run(checkout: Path, tmp_path: Path) -> Run:
    """Run package.py of the small checkout without a network; the archive goes to `out`."""

    def call(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(checkout / "deploy" / "package.py"), "--out", str(tmp_path / "out"), *arguments]
        mirror = f"file://{tmp_path / 'mirror'}"
        own = {"ENCORE_GIT_COMMIT": COMMIT, "UV_OFFLINE": "1", "ENCORE_DEBIAN_MIRROR": mirror}
        # uv finds Python there, and there is no apt-get
        own["PATH"] = str(Path(sys.executable).parent)
        environment = {**os.environ, **own, **variables}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return call


def loaded(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """package.py of a checkout as a module."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec = importlib.util.spec_from_file_location("package_of_a_checkout", root / "deploy" / "package.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return loaded(ROOT, monkeypatch)


def test_it_lists_its_distributions_for_the_smoke_job(run: Run, tmp_path: Path) -> None:
    """Which says in the archive what RECORD says where packages were installed."""
    assert run().returncode == 0
    with tarfile.open(tmp_path / "out" / "environment.tar.gz") as archive:
        listed = archive.extractfile(f"lib/python3.11/dist-packages/{CONTENTS}")
        assert listed is not None
        assert json.loads(listed.read()) == {"tiny": {"version": "1.0", "modules": ["tiny"]}}


def test_it_is_rebuilt_only_if_it_is_incomplete_or_on_request(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run()
    assert first.returncode == 0, first.stderr
    assert f"commit {COMMIT}" in first.stdout
    assert "up to date" not in first.stdout
    packed = out / "environment.tar.gz"
    made = packed.stat().st_mtime_ns
    assert "up to date" in run().stdout
    assert packed.stat().st_mtime_ns == made
    assert "up to date" not in run("--force").stdout
    assert packed.stat().st_mtime_ns != made
    before = packed.read_bytes()
    packed.write_bytes(before[:-1])
    assert "up to date" not in run().stdout
    assert packed.read_bytes() == before
    (out / "jobs" / "one.py").unlink()
    assert "up to date" not in run().stdout
    assert (out / "jobs" / "one.py").read_text() == "1\n"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [], "nothing is left beside it"


def test_the_input_digest_covers_all_inputs_and_nothing_else(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = loaded(checkout, monkeypatch)
    seen = [module.inputs_of(COMMIT)]
    (checkout / "lib" / "encore" / "__pycache__").mkdir()
    (checkout / "lib" / "encore" / "__pycache__" / "commit.cpython-311.pyc").write_text("compiled")
    (checkout / "lib" / "encore.egg-info").mkdir()
    (checkout / "lib" / "encore.egg-info" / "PKG-INFO").write_text("installed")
    (checkout / "README.md").write_text("read")
    assert module.inputs_of(COMMIT) == seen[0]
    for name in (
        "lib/encore/runtime/provenance.py",
        "lib/encore/new.py",
        "jobs/one.py",
        "conf/base.yaml",
        "deploy/requirements-emr.txt",
        "deploy/python/packages.json",
        "deploy/python/launcher.sh",
        "deploy/package.py",
    ):
        with (checkout / name).open("a") as file:
            file.write("# changed\n")
        seen.append(module.inputs_of(COMMIT))
    (checkout / "jobs" / "one.py").rename(checkout / "jobs" / "two.py")
    seen.append(module.inputs_of(COMMIT))
    (checkout / "jobs" / "two.py").chmod(0o755)
    seen.append(module.inputs_of(COMMIT))
    seen.append(module.inputs_of("another"))
    assert len(set(seen)) == len(seen) == 12


def test_packages_that_cannot_be_installed_are_reported_and_the_old_archive_is_kept(
    run: Run, checkout: Path, tmp_path: Path
) -> None:
    assert run().returncode == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    requirements = checkout / "deploy" / "requirements-emr.txt"
    wrong = requirements.read_text().partition("sha256:")[0] + f"sha256:{'0' * 64}\n"
    for text, message in ((wrong, "Hash mismatch"), (f"absent==1.0 --hash=sha256:{'0' * 64}\n", "absent")):
        requirements.write_text(text)
        done = run()
        assert done.returncode == 4
        assert done.stderr.startswith("encore: cannot install the packages of deploy/requirements-emr.txt:\n")
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkout", "mirror", "out", wheel(tmp_path).name]


@pytest.mark.parametrize("name", ["thesis.txt", "manifest.json", ""])
def test_a_path_that_is_not_an_archive_is_not_replaced(run: Run, tmp_path: Path, name: str) -> None:
    """Neither a folder with other content, even another program's manifest, nor a file."""
    path = tmp_path / "out" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"version": "48.0.0", "artifacts": {}}')
    for arguments in ((), ("--force",)):
        done = run(*arguments)
        assert done.returncode == 2
        assert done.stderr == (
            f"encore: {tmp_path / 'out'} is not an archive and will not be replaced: choose another folder\n"
        )
    assert path.read_text() == '{"version": "48.0.0", "artifacts": {}}'


def test_the_old_archive_is_restored_if_the_new_one_cannot_be_moved_into_place(
    module: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text("the last")
    with pytest.raises(FileNotFoundError):
        module._replace(tmp_path / "out", tmp_path / "not there", tmp_path / "former")
    assert (tmp_path / "out" / "manifest.json").read_text() == "the last"


def test_an_empty_folder_is_accepted(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert run().returncode == 0
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_the_commit_is_that_of_the_checkout_being_packaged(checkout: Path, run: Run, tmp_path: Path) -> None:
    """Not that of the installed Encore."""
    text = "def commit_of(root):\n    return f'{root.name} of its own'\n"
    (checkout / "lib" / "encore" / "runtime" / "provenance.py").write_text(text)
    assert run().returncode == 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["commit"] == "checkout of its own"
    with tarfile.open(tmp_path / "out" / "environment.tar.gz") as archive:
        file = archive.extractfile("lib/python3.11/dist-packages/encore/COMMIT")
        assert file is not None
        assert file.read() == b"checkout of its own\n"


def tree_of(folder: Path) -> Path:
    tree = folder / "tree"
    (tree / "a").mkdir(parents=True)
    (tree / "a" / "one").write_text("the same bytes")
    os.link(tree / "a" / "one", tree / "a" / "two")
    (tree / "link").symlink_to("a/one")
    (tree / "program").write_text("run")
    (tree / "program").chmod(0o700)
    return tree


def test_hard_links_are_packed_as_regular_files(module: ModuleType, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    module._pack(tree_of(tmp_path), archive)
    with tarfile.open(archive) as tar:
        entries = {entry.name: entry for entry in tar}
        for name in ("a/one", "a/two"):
            assert entries[name].isreg()
            file = tar.extractfile(entries[name])
            assert file is not None
            assert file.read() == b"the same bytes"
    assert entries["a"].isdir()
    assert (entries["link"].issym(), entries["link"].linkname) == (True, "a/one")
    assert {name: entry.mode for name, entry in entries.items()} == {
        **dict.fromkeys(("a", "link", "program"), 0o755),
        **dict.fromkeys(("a/one", "a/two"), 0o644),
    }
    assert {(entry.uid, entry.gid, entry.mtime, entry.uname) for entry in entries.values()} == {(0, 0, 0, "")}


def test_the_version_depends_on_the_content_and_not_on_its_compression(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, archives = tree_of(tmp_path), [tmp_path / "a.tar.gz", tmp_path / "b.tar.gz"]
    first = module._pack(tree, archives[0])
    assert first == content_of(archives[0])
    # stands in for another zlib
    monkeypatch.setattr(module, "LEVEL", 1)
    assert module._pack(tree, archives[1]) == first
    assert digest(archives[0]) != digest(archives[1])

    def relink() -> None:
        (tree / "link").unlink()
        (tree / "link").symlink_to("a/two")

    seen = [first]
    for change in (
        lambda: (tree / "a" / "one").write_text("other bytes...."),
        lambda: (tree / "program").chmod(0o600),
        lambda: (tree / "program").rename(tree / "renamed"),
        lambda: (tree / "b").mkdir(),
        relink,
    ):
        change()
        seen.append(module._pack(tree, archives[1]))
    assert len(set(seen)) == 6
    named = [module.version_of(first, {"jobs/one.py": "1"}), module.version_of(first, {"jobs/one.py": "2"})]
    assert len({*named, module.version_of(seen[1], {"jobs/one.py": "1"})}) == 3


def test_compile_errors_are_reported_for_our_modules_but_not_for_packages(
    module: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # the checkout itself may be named encore
    tree = tmp_path / "encore" / "environment"
    packages = tree / "lib" / "python3.11" / "dist-packages"
    for name in ("a_template", "encore", "z_good"):
        (packages / name).mkdir(parents=True)
    (packages / "a_template" / "main.py").write_text("class {{ name }}:\n")
    (packages / "z_good" / "main.py").write_text("")
    module._compile(tree)
    assert len(list(packages.rglob("*.pyc"))) == 1
    (packages / "encore" / "wrong.py").write_text("def\n")
    with pytest.raises(SystemExit) as caught:
        module._compile(tree)
    assert caught.value.code == 1
    stderr = capsys.readouterr().err
    assert stderr.startswith("encore: a module does not compile:\n")
    assert "encore/wrong.py" in stderr
    assert "SyntaxError" in stderr
    assert "a_template" not in stderr


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo \"*** Error compiling 'a.py'...\"; kill -9 $$", "with exit code -9"),
        ("echo No module named compileall >&2; exit 1", "with exit code 1:\nNo module named compileall"),
    ],
)
def test_a_crash_of_compileall_is_reported(
    module: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script: str,
    message: str,
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(SystemExit) as caught:
        module._compile(tmp_path / "environment")
    assert caught.value.code == 1
    assert f"encore: compileall failed {message}" in capsys.readouterr().err
