"""iALS trained on Spark."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from encore.recommenders import ials
from encore.spark.session import Session
from encore.spark.tasks import run_tasks
from tests.unit.recommenders.cases import CONFIG, TRAIN, new_tools


@pytest.mark.slow
def test_training_on_spark_gives_the_same_arrays(session: Session) -> None:
    values = {"dimensions": 4, "iterations": 2, "block_entries": 60}
    config = CONFIG.model_copy(update={"ials": CONFIG.ials.model_copy(update=values)})
    expected = ials.fit(TRAIN, config, {}, new_tools())
    losses = []
    tools = replace(
        new_tools(),
        run=lambda tasks, work: run_tasks(session(), tasks, work),
        n_tasks=2,
        on_step=lambda step, metrics: losses.append(metrics["loss"]),
    )
    found = ials.fit(TRAIN, config, {}, tools)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(array, expected[name]) for name, array in found.items())
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 2
