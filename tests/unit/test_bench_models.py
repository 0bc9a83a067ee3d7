"""The benchmark of models without running a contender: a peer's formula, ranking, scoring, table and picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image
from scipy import sparse

from encore.arrays.ragged import Ragged
from tests.bench import models, models_table
from tests.bench.contenders import harness, turtles
from tests.bench.contenders.registry import peers
from tests.bench.figures import BenchError, Found, Report

MACHINE = {"date": "2026-01-02T03:04:05", "cpu": "x", "cores": 2, "memory_gb": 24.0}


def row(name: str, r_precision: float, *, ours: bool = False, **more: Any) -> dict[str, Any]:
    quality = {"r_precision": r_precision, "r_precision_artist": r_precision, "ndcg": 2 * r_precision, "clicks": 5.0}
    cost = {"fit_seconds": 3.0, "query_cpu_ms": 1.5, "query_ms": 1.5, "memory": 2e9}
    named = {"name": name, "label": name, "ours": ours, "settings": "defaults", "expected": True, "version": "lib 1"}
    return {**named, **quality, **cost, **more}


def failed(name: str, error: str, *, expected: bool = True) -> dict[str, Any]:
    return {"name": name, "label": name, "ours": False, "settings": "", "expected": expected, "error": error}


def report(*rows: dict[str, Any]) -> Report:
    facts = {"rows": list(rows), "what": "20 playlists", "d": 4, "batch": 8}
    return Report("20260102", False, ["models"], MACHINE, Found(facts={"models": facts}))


def test_turtles_scores_are_those_of_the_formula() -> None:
    dense = np.array([[1, 1, 0, 0, 0], [1, 0, 1, 1, 0], [1, 1, 0, 0, 1], [0, 0, 0, 1, 1]], np.float32)
    lists = sparse.csr_matrix(dense)
    unit = sparse.csr_matrix(dense / np.linalg.norm(dense, axis=1, keepdims=True)).tocsc()
    rho, counts = 0.5, dense.sum(axis=0).astype(np.int64)
    found = turtles.scores(lists, unit, counts, row=0, k=3, rho=rho)
    # pop without the playlist itself: track 0 is in two others, track 1 in one
    weight = [1 / ((2 - 1) ** rho + 1), 1 / ((1 - 1) ** rho + 1)]
    similarity = {1: weight[0] / np.sqrt(2 * 3), 2: (weight[0] + weight[1]) / np.sqrt(2 * 3)}
    # the third neighbour has no track in common, so the least similarity is 0
    amplified = {v: (s / max(similarity.values())) ** 2 for v, s in similarity.items()}
    expected = amplified[1] * dense[1] + amplified[2] * dense[2]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # with two neighbours the least similar one is subtracted to nothing
    only_nearest = turtles.scores(lists, unit, counts, row=0, k=2, rho=rho)
    np.testing.assert_allclose(only_nearest, dense[2] * (1 - similarity[1] / similarity[2]) ** 2, rtol=1e-6)


def test_turtles_settings_are_those_of_the_nearest_number_of_seeds() -> None:
    assert [turtles.settings_for(n) for n in (1, 7, 8, 60, 63, 200)] == [
        (8000, 0.352),
        (8000, 0.352),
        (12000, 0.38),
        (9000, 0.4),
        (4000, 0.39),
        (4000, 0.39),
    ]


def test_a_playlist_with_no_neighbour_gets_no_recommendation() -> None:
    lists = sparse.csr_matrix(np.array([[1, 0, 0], [0, 1, 1]], np.float32))
    task = harness.Task(Path(), lists, np.array([0]), 1, np.zeros(3, np.int32))
    fit, recommend = turtles.start(task, {})
    assert (recommend(fit(), task.rows) == -1).all()


def test_the_best_tracks_are_ranked_without_the_known_ones() -> None:
    scores = np.array([[0.1, 0.9, 0.5, 0.7], [0.4, 0.3, 0.2, 0.1]], np.float32)
    known = sparse.csr_matrix(np.array([[0, 1, 0, 0], [0, 0, 0, 1]], np.float32))
    found = harness.best(scores, known, 2)
    assert found.shape == (2, harness.K)
    assert found[:, :3].tolist() == [[3, 2, -1], [0, 1, -1]]


def test_lists_that_break_the_rules_are_not_scored() -> None:
    train, truth = Ragged.from_lists([[0]]), Ragged.from_lists([[1, 2]])
    artists = np.zeros(4, np.int32)

    def scored(*ids: int) -> dict[str, Any]:
        return models.scored(harness.padded(np.array([ids])), train, truth, artists)

    good = scored(1, 3, 2, -1)
    assert good["r_precision"] == 0.5
    assert "already has" in scored(1, 0)["error"]
    assert "twice" in scored(1, 1)["error"]


def test_a_peer_that_fails_is_a_failed_check_unless_it_cannot_be_installed() -> None:
    rows = [row("fusion", 0.2, ours=True), row("peer", 0.1), failed("broken", "no"), failed("x", "-", expected=False)]
    found = models.found_of_rows(rows, "work", compare=True)
    assert [check.name for check in found.checks if not check.ok] == ["models.broken.ran"]
    assert found["models.best_over.peer.ndcg"].value == 2.0
    better = models.found_of_rows([rows[0], row("peer", 0.3)], "work", compare=True)
    assert {check.name for check in better.checks if not check.ok} == {"models.best.r_precision", "models.best.ndcg"}


def test_models_that_are_not_in_the_expected_order_fail_a_check() -> None:
    rows = [row("fusion", 0.1, ours=True), row("ials", 0.2, ours=True), row("popularity", 0.05, ours=True)]
    checks = {check.name: check.ok for check in models.found_of_rows(rows, "work", compare=True).checks}
    assert not checks["models.fusion_above_ials"]
    assert checks["models.fusion_above_popularity"]
    assert checks["models.ials_above_popularity"]


def test_the_table_is_sorted_and_names_what_failed() -> None:
    text = models_table.table([row("peer", 0.1), failed("broken", "out of memory"), row("fusion", 0.2, ours=True)])
    lines = text.splitlines()
    assert lines[2].startswith("| **Encore: fusion** | 0.2000 | 0.2000 | 0.4000 | 5.00 | 3.00 | 1.50 | 2,000 |")
    assert lines[3].startswith("| peer | 0.1000")
    assert lines[-1] == "- broken: not measured: out of memory"


def test_the_picture_shows_the_best_variant_of_a_peer() -> None:
    rows = [row("lib: ALS", 0.1), row("lib: ALS, tuned", 0.2), row("lib: ALS, 6", 0.15), row("fusion", 0.3, ours=True)]
    found = models_table.best_variants(rows)
    assert [(one["label"], one["name"]) for one in found] == [("lib: ALS", "lib: ALS, tuned"), ("fusion", "fusion")]


def test_the_docs_are_written_between_their_marks(tmp_path: Path) -> None:
    docs, picture = tmp_path / "docs.md", tmp_path / "models.png"
    docs.write_text(f"before\n{models_table.BEGIN}\nold\n{models_table.END}\nafter\n")
    rows = [row("fusion", 0.2, ours=True), row("peer", 0.1, settings="K 20")]
    models_table.write_docs(report(*rows), docs, picture)
    text = docs.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "Measured on 2026-01-02" in text
    assert "- peer (lib 1): K 20" in text
    assert float(image.imread(picture)[:, :, :3].min()) < 0.5, "the picture is not blank"
    docs.write_text("no marks")
    with pytest.raises(BenchError, match="expected"):
        models_table.write_docs(report(*rows), docs, picture)
    with pytest.raises(BenchError, match="no part `models`"):
        models_table.section(Report("x", False, ["topk"], MACHINE, Found()))


def test_the_docs_have_the_marks() -> None:
    text = models_table.DOCS.read_text(encoding="utf-8")
    assert (text.count(models_table.BEGIN), text.count(models_table.END)) == (1, 1)


def test_every_peer_can_be_found() -> None:
    folder = Path(harness.__file__).parent
    everyone = peers(8, 100)
    assert len({peer.name for peer in everyone}) == len(everyone)
    for peer in everyone:
        assert peer.unavailable or (folder / f"{peer.module}.py").is_file(), peer.name
        assert peer.environment is None or (folder / "requirements" / f"{peer.environment}.txt").is_file(), peer.name
