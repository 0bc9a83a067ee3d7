"""Training iALS in half steps, each of which is distributed over the executors by blocks of rows.

Step 0 draws the factors of the items; odd steps solve the playlists for the items' factors, even ones the reverse. Each
block of a step writes its factors, and its share of sums over all rows, to files in Tools.folder; the next step maps
the factors of the step before, and adds the sums up in the order of the blocks. Blocks are the same for any number of
tasks, so the results are too. After a kill, finished steps and the finished blocks of the step under way are not
repeated.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encore.arrays.jit import compilation_cache
from encore.config import IalsConfig
from encore.lake.array_files import ArrayFiles
from encore.progress import meter
from encore.recommenders.base import Tools
from encore.recommenders.ials_matrix import Matrix, Side, read_block

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

_PROGRESS = "progress.json"


@lru_cache(maxsize=1)
def load_loops() -> None:
    """Compile the loops of training, or wait until another process on this machine has compiled them."""
    with compilation_cache():
        from encore.recommenders import ials_loops as loops

        offsets, ids = np.array([0, 1], np.int64), np.zeros(1, np.int32)
        weights, one = np.ones(1, np.float32), np.ones((1, 1), np.float32)
        loops.solve_rows(offsets, ids, weights, one, one, 0.1, 1.0, 1, True, one.copy())
        loops.gram_of(one)
        loops.transpose(offsets, ids, weights, 0, 0, 1, np.zeros(1, np.int64), np.empty(1, np.int32), weights.copy())


@dataclass(frozen=True)
class _Task:
    """Blocks of a half step; `regularization`: lambda."""

    files: ArrayFiles
    matrix: Matrix
    settings: IalsConfig
    seed: int
    step: int
    blocks: tuple[int, ...]
    regularization: float


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over all rows of a half step: the Gram matrix of its factors, float64 (d, d), the regularisation terms, and,
    after steps of items, the losses of the observed entries."""

    gram: F64
    penalty: float
    observed: float


def regularization_of(matrix: Matrix, settings: IalsConfig) -> float:
    """lambda, which multiplies (sum of the row's weights + unobserved x rows of the other side).

    It is chosen so that the product is `settings.regularization` for a playlist with the mean sum of weights.
    """
    if not matrix.lists.n_used:
        return 0.0
    mean = matrix.total / matrix.lists.n_used
    return settings.regularization / (mean + settings.unobserved_weight * matrix.items.n_used)


def train(files: ArrayFiles, matrix: Matrix, settings: IalsConfig, seed: int, tools: Tools) -> tuple[F32, F64]:
    """The items' factors, float32 (items, d), mapped, and their Gram matrix."""
    load_loops()
    steps = 2 * settings.iterations
    progress = _read_progress(files)
    losses: list[float] = progress["losses"]
    for i, loss in enumerate(losses):
        tools.on_step(i + 1, {"loss": loss})
    penalty = progress["penalty"]
    with meter("ials", "half steps", steps) as shown:
        for step in range(progress["step"] + 1, steps + 1):
            _run(files, matrix, settings, seed, step, tools)
            sums = _sums(files, _side(matrix, step), step, settings)
            if step > 0 and step % 2 == 0:
                gram = _sums(files, matrix.lists, step - 1, settings).gram
                unobserved = settings.unobserved_weight * float((gram * sums.gram).sum())
                losses.append(sums.observed + unobserved + penalty + sums.penalty)
                tools.on_step(step // 2, {"loss": losses[-1]})
            penalty = sums.penalty
            files.write_bytes(_PROGRESS, json.dumps({"step": step, "losses": losses, "penalty": penalty}).encode())
            if step > 1:
                files.delete(f"{_name(step - 2)}-")
            shown.update(max(step, 0))
    return factors(files, matrix, steps, settings), _sums(files, matrix.items, steps, settings).gram


def _read_progress(files: ArrayFiles) -> dict:  # type: ignore[type-arg]
    if _PROGRESS not in files.names():
        return {"step": -1, "losses": [], "penalty": 0.0}
    found: dict = json.loads(files.read_bytes(_PROGRESS))  # type: ignore[type-arg]
    return found


def _side(matrix: Matrix, step: int) -> Side:
    return matrix.lists if step % 2 else matrix.items


def _name(step: int) -> str:
    return f"step{step}"


def _run(files: ArrayFiles, matrix: Matrix, settings: IalsConfig, seed: int, step: int, tools: Tools) -> None:
    side = _side(matrix, step)
    there = files.names()
    todo = [block for block in range(side.n_blocks) if f"{_name(step)}-{block}-sums.npy" not in there]
    if not todo:
        return
    # a row without entries takes some time too
    rows = np.diff(side.bounds)
    cost = np.cumsum([side.entries[block] + 8 * int(rows[block]) for block in todo])
    cuts = np.searchsorted(cost, cost[-1] * np.arange(1, tools.n_tasks) / tools.n_tasks)
    scale = regularization_of(matrix, settings)
    tasks = [
        _Task(files, matrix, settings, seed, step, tuple(todo[i] for i in part), scale)
        for part in np.split(np.arange(len(todo)), cuts)
        if len(part)
    ]
    tools.run(tasks, _work)


def _work(task: _Task) -> pa.Table:
    load_loops()
    from encore.recommenders import ials_loops as loops

    files, settings, step = task.files, task.settings, task.step
    d, side, other = settings.dimensions, _side(task.matrix, step), _side(task.matrix, step + 1)
    if step:
        others = factors(files, task.matrix, step - 1, settings)
        before = _sums(files, other, step - 1, settings).gram
        gram = (settings.unobserved_weight * before).astype(np.float32)
    for block in task.blocks:
        offsets, ids, weights = read_block(files, side.name, block)
        start, stop = side.bounds[block], side.bounds[block + 1]
        penalty = loss = 0.0
        if step == 0:
            random = np.random.Generator(np.random.Philox(key=[task.seed % 2**64, start]))
            rows = random.standard_normal((stop - start, d), np.float32) * np.float32(0.1 / np.sqrt(d))
            rows[np.diff(offsets) == 0] = 0
        else:
            rows = np.zeros((stop - start, d), np.float32)
            if step > 1:
                rows[:] = files.read(f"{_name(step - 2)}-{block}-factors")
            penalty, loss = loops.solve_rows(
                offsets,
                ids,
                weights,
                others,
                gram,
                task.regularization,
                settings.unobserved_weight * other.n_used,
                settings.cg_steps,
                step % 2 == 0,
                rows,
            )
        files.write(f"{_name(step)}-{block}-factors", rows)
        # last, since it marks the block as finished
        files.write(f"{_name(step)}-{block}-sums", np.append(loops.gram_of(rows).ravel(), [penalty, loss]))
    return pa.table({"blocks": [len(task.blocks)]})


def _sums(files: ArrayFiles, side: Side, step: int, settings: IalsConfig) -> Sums:
    d = settings.dimensions
    total = np.zeros(d * d + 2)
    for block in range(side.n_blocks):
        total += files.read(f"{_name(step)}-{block}-sums")
    return Sums(total[:-2].reshape(d, d), float(total[-2]), float(total[-1]))


def factors(files: ArrayFiles, matrix: Matrix, step: int, settings: IalsConfig) -> F32:
    """The factors that a step solved, mapped."""
    side = _side(matrix, step)
    parts = [f"{_name(step)}-{block}-factors" for block in range(side.n_blocks)]
    return files.concatenated(f"{_name(step)}-all", parts, (len(side), settings.dimensions))
