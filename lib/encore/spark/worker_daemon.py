"""The process from which Spark forks its Python workers on an executor, with their modules already imported.

Otherwise every worker would import them again, which takes five seconds of CPU time each, mostly for pandas and numba.
Workers share the daemon's memory until they write to it. Spark starts one daemon per executor, as set by
`spark.python.daemon.module`.
"""

from __future__ import annotations

import gc
import importlib

from pyspark.daemon import manager

from encore.arrays.jit import is_cached

MODULES = (
    "pandas",
    "pyarrow.parquet",
    "encore.mpd.ingest",
    "encore.jobs.split_holdout",
    "encore.jobs.build_centroids",
    "encore.jobs.recommend",
    "encore.jobs.evaluate",
)
LOOPS = {
    "encore.arrays.track_keys": "encore.arrays.track_key_loops",
    "encore.search.inner": "encore.search.inner_loops",
    "encore.search.tree": "encore.search.loops",
    "encore.recommenders.ials": "encore.recommenders.ials_loops",
    "encore.recommenders.ials_training": "encore.recommenders.ials_loops",
    "encore.recommenders.interactions": "encore.recommenders.loops",
    "encore.recommenders.union": "encore.recommenders.union_loops",
    "encore.recommenders.seed_exclusion": "encore.recommenders.seed_exclusion_loops",
}
"""Modules with a function `load_loops`, and the modules that contain the loops."""


def preload() -> None:
    """Import the modules that workers use, and load compiled loops if they are cached; workers compile the others."""
    for name in MODULES:
        importlib.import_module(name)
    for name, compiled in LOOPS.items():
        if is_cached(compiled):
            importlib.import_module(name).load_loops()
    # exclude the current objects from the workers' garbage collection, which would write to their pages and copy them
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    preload()
    manager()
