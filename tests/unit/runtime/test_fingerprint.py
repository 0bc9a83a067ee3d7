"""What the code part of a fingerprint counts: what the code says, and of that only what decides rows."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import encore
from encore.lake.tables import HOLDOUT, PLAYLISTS, RECOMMENDATIONS
from encore.runtime import fingerprint as module
from encore.runtime.fingerprint import code_digest, declaration, fingerprint, syntax
from encore.runtime.registry import JOBS

FIRST = "from __future__ import annotations\n"
REGISTRY = {"encore.recommenders.registry"}

Edit = Callable[[str, str, str], None]


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Edit]:
    """Edits a copy of the package, which is the one that digests are made of: module, old text, new text."""
    copy = tmp_path / "encore"
    shutil.copytree(Path(encore.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(encore, "__file__", str(copy / "__init__.py"))

    def change(name: str, old: str, new: str) -> None:
        path = copy.joinpath(*name.split(".")[1:]).with_suffix(".py")
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        module._closure_digest.cache_clear()

    module._closure_digest.cache_clear()
    yield change
    module._closure_digest.cache_clear()


def jobs() -> dict[str, str]:
    return {job: code_digest(f"encore.jobs.{job}") for job in JOBS}


def test_comments_docstrings_and_line_breaks_do_not_count(edit: Edit) -> None:
    before = jobs()
    edit("encore.config", "import os\n", "import os\n\n# a comment\n")
    edit("encore.splits.holdout", '"""', '"""Another docstring. ')
    edit("encore.arrays.ragged", FIRST, f"{FIRST}\n\n# so\n")
    assert jobs() == before


def test_settings_and_messages_do_not_count_but_by_their_values(edit: Edit) -> None:
    before = jobs()
    more = "class MoreConfig(Section):\n    x: int\n\n\n"
    edit("encore.config", "class LogConfig(Section):", f"{more}class LogConfig(Section):")
    edit("encore.errors", "exit_code = 75", "exit_code = 76")
    edit("encore.progress", "PLAIN_EVERY_SECONDS = 15.0", "PLAIN_EVERY_SECONDS = 5.0")
    assert jobs() == before


def test_code_that_decides_rows_counts_for_the_jobs_that_use_it(edit: Edit) -> None:
    before = jobs()
    edit("encore.splits.holdout", "from encore.arrays", "import math\nfrom encore.arrays")
    # models learn from an inner split
    assert {job for job, found in jobs().items() if found != before[job]} == {"split_holdout", "fit_models"}
    edit("encore.arrays.ragged", FIRST, f"{FIRST}\nX = 1\n")
    changed = {job for job, found in jobs().items() if found != before[job]}
    assert {"ingest_playlists", "split_holdout", "build_centroids", "recommend", "evaluate"} <= changed


def test_a_model_more_is_in_no_other_models_code(edit: Edit) -> None:
    def of(model: str) -> str:
        return code_digest("encore.jobs.recommend", left_out=REGISTRY) + code_digest(f"encore.recommenders.{model}")

    models = ("cosine", "popularity", "uniform")
    before = {model: of(model) for model in models}
    edit("encore.recommenders.registry", "MODELS:", "ANOTHER = 1\nMODELS:")
    assert {model: of(model) for model in models} == before
    edit("encore.search.tree", FIRST, f"{FIRST}\nX = 1\n")
    assert {model for model in models if of(model) != before[model]} == {"cosine"}


def test_modules_that_do_not_count_exist() -> None:
    assert [name for name in module.PRESENTATION if module._path(name) is None] == []


def test_plots_are_the_report_and_no_metric(edit: Edit) -> None:
    def found() -> tuple[str, str]:
        return code_digest("encore.jobs.evaluate", left_out={"encore.reports"}), code_digest("encore.jobs.report")

    metrics, report = found()
    edit("encore.reports.plots", FIRST, f"{FIRST}\nX = 1\n")
    assert found()[0] == metrics
    assert found()[1] != report


def test_syntax_is_what_the_code_says() -> None:
    one = b'"""Docs."""\nX = 1\n"""What X is."""\ndef f(a, b):\n    """Docs."""\n    return (a +\n        b)  # so\n'
    two = b"X = 1\ndef f(a, b): return a + b\n"
    assert syntax(one) == syntax(two)
    assert syntax(one) != syntax(two.replace(b"+", b"-"))
    assert syntax(b"X = 'a'") != syntax(b"X = 'b'")


def test_a_declaration_is_what_it_says_about_rows() -> None:
    found = declaration(PLAYLISTS)
    assert ["pid", "bigint", False] in found["columns"]
    assert "comment" not in str(found)
    assert declaration(HOLDOUT) != declaration(RECOMMENDATIONS)


def test_every_part_of_a_fingerprint_counts() -> None:
    base: dict[str, Any] = {
        "code": "c",
        "settings": {"seed": 1},
        "inputs": {"tracks": "id@3"},
        "writes": (HOLDOUT,),
        "state": "s",
    }
    others: list[dict[str, Any]] = [
        {"code": "d"},
        {"settings": {"seed": 2}},
        {"inputs": {"tracks": "other@3"}},
        {"inputs": {"tracks": "id@4"}},
        {"writes": (PLAYLISTS,)},
        {"state": "t"},
    ]
    found = {fingerprint("job", **{**base, **other}) for other in ({}, *others)}
    assert len(found) == 1 + len(others)
    assert fingerprint("other", **base) not in found
