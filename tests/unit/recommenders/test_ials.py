"""iALS against a dense implementation, and its training in blocks, tasks and after a kill."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from encore.arrays.ragged import NamedArrays, Ragged
from encore.config import RecommendConfig
from encore.lake.array_files import ArrayFiles
from encore.recommenders import ials, ials_matrix, ials_training
from encore.recommenders.base import Queries, Tools, TrainingData
from encore.recommenders.titles import grams
from tests.unit.recommenders.cases import CONFIG, N_TRACKS, TRAIN, new_tools

A0 = CONFIG.ials.unobserved_weight


def settings(**values: Any) -> RecommendConfig:
    """Settings with few dimensions, and blocks of few entries."""
    values = {"dimensions": 5, "block_entries": 40, **values}
    return CONFIG.model_copy(update={"ials": CONFIG.ials.model_copy(update=values)})


TINY = TrainingData(
    n_tracks=9,
    lists=Ragged.from_lists([[0, 1, 2], [3, 1], [], [4, 5, 6, 7, 0], [6, 2], [5]]),
    titles=["Go", None, "go on", "!", "Gym 💪", "on"],
    artist_of=np.array([0, 0, 1, -1, 2, 2, 2, 1, 3], np.int32),
)


@dataclass
class Recorder:
    """Tools that count tasks and blocks, and keep the loss of each step; `fail_at`: the task that raises."""

    tasks: int = 0
    blocks: int = 0
    fail_at: int = -1
    losses: list[float] = field(default_factory=list)

    def tools(self, n_tasks: int = 1, folder: str | None = None) -> Tools:
        made = new_tools()
        return Tools(folder or made.folder, made.s3, self.run, n_tasks, self.on_step)

    def run(self, tasks: Sequence[Any], work: Callable[[Any], pa.Table]) -> list[pa.Table]:
        found = []
        for task in tasks:
            if self.tasks == self.fail_at:
                raise KeyboardInterrupt
            found.append(work(task))
            self.tasks += 1
            self.blocks += found[-1]["blocks"][0].as_py()
        return found

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        assert step == len(self.losses) + 1
        self.losses.append(metrics["loss"])


def assert_equal(one: NamedArrays, other: NamedArrays) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.dtype == other[name].dtype
        assert np.array_equal(array, other[name]), name


# --- a dense implementation ----------------------------------------------------------------------------------------


@dataclass
class Dense:
    """The matrix of TINY as the formulas state it, and exact alternating least squares."""

    c: np.ndarray
    grams: list[str]
    regularization: float

    @classmethod
    def of(cls, train: TrainingData, regularization: float) -> Dense:
        lists, artists = train.lists.tolist(), train.artist_of.tolist()
        n_artists = max(artists) + 1
        per_list = [[artists[track] for track in row if artists[track] >= 0] for row in lists]
        titles = [set(grams(title or "")) for title in train.titles]
        words = sorted({gram for row in titles for gram in row})
        pop = [sum(track in row for row in lists) for track in range(train.n_tracks)]
        artist_pop = [sum(artist in row for row in per_list) for artist in range(n_artists)]
        df = [sum(word in row for row in titles) for word in words]
        mean_length = np.mean([len(row) for row in lists if row])
        mean_pop, mean_artist = (np.mean([n for n in counts if n]) for counts in (pop, artist_pop))
        c = np.zeros((len(lists), train.n_tracks + n_artists + len(words)))
        for u, row in enumerate(lists):
            for track in row:
                c[u, track] = (pop[track] / mean_pop) ** -0.25 * (len(row) / mean_length) ** -0.25
            for artist in set(per_list[u]):
                weight = 0.25 * np.log1p(per_list[u].count(artist)) * (artist_pop[artist] / mean_artist) ** -0.25
                c[u, train.n_tracks + artist] = weight * (len(row) / mean_length) ** -0.25
            idf = {word: np.log((1 + len(lists)) / (1 + df[words.index(word)])) + 1 for word in titles[u]}
            norm = np.sqrt(sum(value**2 for value in idf.values()))
            for word, value in idf.items():
                c[u, train.n_tracks + n_artists + words.index(word)] = 0.5 * value / norm
        return cls(c, words, regularization)

    @property
    def scale(self) -> float:
        """lambda."""
        rows, columns = (self.c.sum(axis=1) > 0).sum(), (self.c.sum(axis=0) > 0).sum()
        return float(self.regularization / (self.c.sum() / rows + A0 * columns))

    def ridges(self, c: np.ndarray) -> np.ndarray:
        return self.scale * (c.sum(axis=1) + A0 * (c.sum(axis=0) > 0).sum())

    def solved(self, c: np.ndarray, others: np.ndarray) -> np.ndarray:
        x = np.zeros((len(c), others.shape[1]))
        for row, ridge in enumerate(self.ridges(c)):
            if c[row].any():
                a = (A0 + c[row])[:, None] * others
                x[row] = np.linalg.solve(others.T @ a + ridge * np.eye(len(x[row])), others.T @ c[row])
        return x

    def loss(self, x: np.ndarray, v: np.ndarray) -> float:
        product = x @ v.T
        fitted = (self.c * (1 - product) ** 2).sum() + A0 * (product**2).sum()
        return float(fitted + self.ridges(self.c) @ (x**2).sum(axis=1) + self.ridges(self.c.T) @ (v**2).sum(axis=1))


def factors_of(arrays: NamedArrays) -> np.ndarray:
    """The factors of all items, in the order of the matrix."""
    row_of, d = arrays["row_of"], len(arrays["gram"])
    return np.array([arrays["vectors"][row, :d] if row >= 0 else arrays["others"][-1 - row] for row in row_of])


def order_of_items(dense: Dense, model: ials.Ials) -> np.ndarray:
    """For each item of the dense matrix, its number in the model, where n-grams are in the order of their hashes."""
    before = len(dense.c[0]) - len(dense.grams)
    hashes = [xxhash.xxh3_64_intdigest(word.encode()) for word in dense.grams]
    return np.append(np.arange(before), before + np.searchsorted(model.encoder.grams, hashes))


@pytest.mark.parametrize("iterations", [1, 3])
def test_training_solves_what_the_formula_states(iterations: int) -> None:
    """With many CG steps, each half step finds the exact minimum of the stated loss, and reports it."""
    config, recorder = settings(dimensions=3, iterations=iterations, cg_steps=30, regularization=1.0), Recorder()
    dense, start = Dense.of(TINY, 1.0), settings(dimensions=3, iterations=1, cg_steps=0, regularization=1.0)
    tools = new_tools()
    model = ials.Ials(ials.fit(TINY, config, {}, recorder.tools()), config, {})
    order = order_of_items(dense, model)
    # without steps of CG, the factors remain what they were drawn as
    v = factors_of(ials.fit(TINY, start, {}, tools))[order].astype(np.float64)
    losses = []
    for _ in range(iterations):
        x = dense.solved(dense.c, v)
        v = dense.solved(dense.c.T, x)
        losses.append(dense.loss(x, v))
    assert np.allclose(factors_of(model.arrays)[order], v, atol=1e-5)
    assert recorder.losses == pytest.approx(losses, rel=1e-5)
    assert np.abs(v).max() > 0.1

    # a query is folded in exactly: with the entries of a playlist of the training data, its factors are those it has
    queries = Queries.of(TINY.lists, titles=TINY.titles)
    assert np.allclose(model.fold_in(queries), dense.solved(dense.c, v), atol=1e-5)


def test_scores_are_inner_products() -> None:
    config = settings()
    model = ials.Ials(ials.fit(TRAIN, config, {}, new_tools()), config, {})
    queries = Queries.of(TRAIN.lists, titles=TRAIN.titles)
    found = model.candidates(queries, np.full(len(queries), N_TRACKS))
    scores = model.fold_in(queries).astype(np.float64) @ factors_of(model.arrays)[:N_TRACKS].T
    listed = np.flatnonzero(np.bincount(TRAIN.lists.values, minlength=N_TRACKS))
    for row in range(len(queries)):
        expected = listed[np.argsort(-scores[row, listed], kind="stable")]
        if not len(found.ids[row]):
            assert not len(TRAIN.lists[row])
            assert TRAIN.titles[row] is None
        else:
            assert found.ids[row].tolist() == expected.tolist()
            assert np.allclose(Ragged(found.ids.offsets, found.scores)[row], scores[row, expected], atol=1e-5)


def test_the_loss_falls() -> None:
    recorder, config = Recorder(), settings(iterations=8)
    ials.fit(TRAIN, config, {}, recorder.tools())
    assert len(recorder.losses) == 8
    assert all(after < before for before, after in zip(recorder.losses, recorder.losses[1:], strict=False))


def test_an_unknown_title_and_unknown_seeds_say_nothing() -> None:
    config = settings()
    model = ials.Ials(ials.fit(TRAIN, config, {}, new_tools()), config, {})
    # the last tracks of the catalogue are in no playlist
    nothing = Queries.of(Ragged.from_lists([[], [N_TRACKS - 1, -3, N_TRACKS]]), titles=["qqqq", "..."])
    assert model.candidates(nothing, np.full(2, 5)).ids.tolist() == [[], []]
    some = model.candidates(Queries.of(Ragged.empty(1), titles=["ROCK"]), np.full(1, 5))
    assert len(some.ids[0]) == 5


# --- blocks, tasks, checkpoints ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_tasks", [2, 5])
def test_the_number_of_tasks_changes_nothing(n_tasks: int) -> None:
    config, one, many = settings(), Recorder(), Recorder()
    expected = ials.fit(TRAIN, config, {}, one.tools())
    assert_equal(ials.fit(TRAIN, config, {}, many.tools(n_tasks)), expected)
    assert many.losses == one.losses
    assert one.tasks == 1 + 2 * config.ials.iterations
    assert many.tasks == one.tasks * n_tasks


def test_the_memory_for_transposing_changes_nothing() -> None:
    expected = ials.fit(TRAIN, settings(), {}, new_tools())
    assert_equal(ials.fit(TRAIN, settings(entries_in_memory=1), {}, new_tools()), expected)


@pytest.mark.parametrize("fail_at", [1, 11, 12, 37])
def test_a_killed_fit_goes_on_where_it_was(fail_at: int) -> None:
    config, whole = settings(), Recorder()
    expected = ials.fit(TRAIN, config, {}, whole.tools(3))
    folder, killed, resumed = new_tools().folder, Recorder(fail_at=fail_at), Recorder()
    with pytest.raises(KeyboardInterrupt):
        ials.fit(TRAIN, config, {}, killed.tools(3, folder))
    assert_equal(ials.fit(TRAIN, config, {}, resumed.tools(3, folder)), expected)
    assert killed.blocks > 0
    assert killed.blocks + resumed.blocks == whole.blocks
    assert resumed.losses == whole.losses


def test_finished_steps_are_deleted() -> None:
    config, tools = settings(), new_tools()
    ials.fit(TRAIN, config, {}, tools)
    steps = {name.split("-")[0] for name in ArrayFiles(tools.folder, tools.s3).names() if name.startswith("step")}
    assert steps == {f"step{2 * config.ials.iterations - 1}", f"step{2 * config.ials.iterations}"}


def test_rows_without_entries_stay_zero() -> None:
    config, tools = settings(dimensions=3), new_tools()
    found = ials.fit(TINY, config, {}, tools)
    # track 8 and its artist are in no playlist
    assert not factors_of(found)[[8, 9 + 3]].any()
    assert factors_of(found)[:8].any(axis=1).all()
    assert sorted(found["ids"].tolist()) == list(range(8))
    files = ArrayFiles(tools.folder, tools.s3)
    encoder, titles = ials_matrix.Encoder.of(TINY, config.ials)
    matrix = ials_matrix.store(files, encoder, TINY.lists, titles)
    step = 2 * config.ials.iterations - 1
    lists = ials_training.factors(files, matrix, step, config.ials)
    assert lists.any(axis=1).tolist() == [True] * 6
    # the third playlist has only a title
    assert not ials.Ials(found, config, {}).fold_in(Queries.of(Ragged.empty(1))).any()


def test_no_playlists_at_all() -> None:
    config = settings()
    empty = replace(TINY, lists=Ragged.empty(0), titles=[])
    model = ials.Ials(ials.fit(empty, config, {}, new_tools()), config, {})
    queries = Queries.of(Ragged.from_lists([[0, 1], []]), titles=["go", None])
    assert model.candidates(queries, np.full(2, 3)).ids.tolist() == [[], []]


def test_both_sides_hold_the_same_matrix(tmp_path: Path) -> None:
    config, tools = settings(block_entries=7), new_tools()
    files = ArrayFiles(str(tmp_path), tools.s3)
    encoder, titles = ials_matrix.Encoder.of(TRAIN, config.ials)
    matrix = ials_matrix.store(files, encoder, TRAIN.lists, titles)
    whole = encoder.encode(TRAIN.lists, titles.slice(0, len(TRAIN.lists)))
    dense = np.zeros((len(TRAIN.lists), len(encoder.weights)), np.float32)
    dense[whole.ids.rows, whole.ids.values] = whole.weights
    for side, expected in ((matrix.lists, dense), (matrix.items, dense.T)):
        assert side.n_blocks > 5
        found = np.zeros_like(expected)
        for block in range(side.n_blocks):
            offsets, ids, weights = ials_matrix.read_block(files, side.name, block)
            rows = Ragged(offsets, ids)
            assert side.name == "lists" or len(rows) == 1 or len(ids) <= 7
            found[side.bounds[block] + rows.rows, ids] = weights
            assert len(ids) == side.entries[block]
        assert np.array_equal(found, expected)
        assert side.n_used == expected.any(axis=1).sum()
