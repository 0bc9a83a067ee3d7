"""MLlib's ALS for implicit feedback, in Spark's local mode on as many cores as others have threads.

Its own recommendForUserSubset multiplies all pairs through a shuffle; here its factors are multiplied in NumPy instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tests.bench.contenders.harness import F32, FIT_THREADS, I32, I64, Fit, Recommend, Task, best, version

VERSION = partial(version, "pyspark")


def start(task: Task, settings: Mapping[str, Any]) -> tuple[Fit, Recommend]:
    """`settings`: `d`, `iterations`, and perhaps `alpha` and `regularization`."""
    from pyspark.ml.recommendation import ALS
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master(f"local[{FIT_THREADS}]").config("spark.driver.memory", "8g")
    builder = builder.config("spark.ui.enabled", "false").config("spark.ui.showConsoleProgress", "false")
    spark = builder.config("spark.sql.shuffle.partitions", str(FIT_THREADS)).getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    entries = task.lists.tocoo()
    file = task.folder / "ratings.parquet"
    if not file.is_file():
        pd.DataFrame({"user": entries.row, "item": entries.col, "rating": entries.data}).to_parquet(file)
    als = ALS(
        rank=settings["d"],
        maxIter=settings["iterations"],
        implicitPrefs=True,
        alpha=settings.get("alpha", 1.0),
        regParam=settings.get("regularization", 0.1),
        numUserBlocks=FIT_THREADS,
        numItemBlocks=FIT_THREADS,
        seed=42,
    )
    few = spark.createDataFrame([(u, i, 1.0) for u in range(8) for i in range(8)], ["user", "item", "rating"])
    ALS(rank=4, maxIter=1, implicitPrefs=True).fit(few).itemFactors.count()

    def factors(frame: Any, n: int) -> F32:
        found = frame.toPandas()
        matrix = np.zeros((n, settings["d"]), np.float32)
        matrix[found["id"].to_numpy()] = np.stack(found["features"].to_list())
        return matrix

    def fit() -> Any:
        model = als.fit(spark.read.parquet(str(file)))
        playlists, tracks = (
            factors(model.userFactors, task.lists.shape[0]),
            factors(model.itemFactors, task.lists.shape[1]),
        )
        return playlists, np.ascontiguousarray(tracks.T)

    def recommend(model: Any, rows: I64) -> I32:
        playlists, tracks = model
        scores: NDArray[np.float32] = playlists[rows] @ tracks
        return best(scores, task.lists[rows])

    return fit, recommend
