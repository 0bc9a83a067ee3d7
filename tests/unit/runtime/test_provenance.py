"""Which commit the code is of: what is said, what was packed, or what git says of the files that count."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from encore.runtime import provenance as commit
from encore.runtime.provenance import SOURCES, commit_of

COUNT = ("lib/encore/a.py", "jobs/a.py", "conf/base.yaml", "deploy/requirements-emr.txt", "deploy/package.py")
"""Files of which a run, or the archive, is made."""


def git(root: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither this machine's settings nor a repository above count, nor one whose hook runs these tests."""
    for name in [name for name in os.environ if name.startswith("GIT_")] + ["ENCORE_GIT_COMMIT"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    for name in (*COUNT, "README.md"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("first\n")
    (root / ".gitignore").write_text("__pycache__/\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")
    return root


def test_a_clean_checkout_is_its_head(checkout: Path) -> None:
    assert commit_of(checkout) == git(checkout, "rev-parse", "HEAD")
    assert len(commit_of(checkout)) == 40


@pytest.mark.parametrize("name", COUNT)
def test_a_file_that_differs_makes_it_dirty(checkout: Path, name: str) -> None:
    (checkout / name).write_text("second\n")
    assert commit_of(checkout) == git(checkout, "rev-parse", "HEAD") + "-dirty"


def test_a_file_that_is_gone_makes_it_dirty(checkout: Path) -> None:
    (checkout / "conf" / "base.yaml").unlink()
    assert commit_of(checkout).endswith("-dirty")


@pytest.mark.parametrize("folder", SOURCES[:3])
def test_a_new_file_makes_it_dirty_even_where_git_is_told_to_hide_it(checkout: Path, folder: str) -> None:
    git(checkout, "config", "status.showUntrackedFiles", "no")
    (checkout / folder / "new.txt").write_text("new\n")
    assert commit_of(checkout).endswith("-dirty")


def test_other_files_do_not_count(checkout: Path) -> None:
    (checkout / "README.md").write_text("second\n")
    (checkout / "deploy" / "new.txt").write_text("new\n")
    (checkout / "lib" / "__pycache__").mkdir()
    (checkout / "lib" / "__pycache__" / "a.pyc").write_text("ignored\n")
    assert commit_of(checkout) == git(checkout, "rev-parse", "HEAD")


def test_without_a_repository_a_commit_or_git_it_is_unknown(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert commit_of(empty) == "unknown"
    git(empty, "init", "-q")
    assert commit_of(empty) == "unknown"
    assert commit_of(tmp_path / "nowhere") == "unknown"
    assert commit_of(checkout) != "unknown"
    monkeypatch.setenv("PATH", str(empty))
    assert commit_of(checkout) == "unknown"


def test_the_archive_s_own_word_wins_over_git_and_the_variable_over_both(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "PACKED", tmp_path / "COMMIT")
    assert commit_of(checkout) == git(checkout, "rev-parse", "HEAD")
    (tmp_path / "COMMIT").write_text("packed\n")
    assert commit_of(checkout) == "packed"
    monkeypatch.setenv("ENCORE_GIT_COMMIT", "")
    assert commit_of(checkout) == "packed", "a variable without a value says nothing"
    monkeypatch.setenv("ENCORE_GIT_COMMIT", "given")
    assert commit_of(checkout) == "given"


def test_where_it_looks_of_itself() -> None:
    assert Path(__file__).resolve().parents[3] == commit.CHECKOUT
    assert Path(commit.__file__).parents[1] / "COMMIT" == commit.PACKED


def test_it_loads_nothing_else_of_encore() -> None:
    """What makes the archive loads it from a checkout, before anything is installed."""
    code = (
        "import sys, encore.runtime.provenance\n"
        "print(*sorted(name for name in sys.modules if name.startswith('encore')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["encore", "encore.runtime", "encore.runtime.provenance"]
