"""The process from which Spark forks its Python workers on an executor, with what they need imported already.

Every worker would else import it anew: five seconds of a core each, pandas and numba most of all. Workers share its
memory until they write to it. It is named by `spark.python.daemon.module` and started by Spark, once an executor.
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
    "encore.search.tree": "encore.search.loops",
    "encore.recommenders.seed_exclusion": "encore.recommenders.seed_exclusion",
}
"""Modules with a function `loops`, and the modules of what it compiles."""


def prepare() -> None:
    """Import what workers use, and load compiled loops where they are kept: compiling is left to who needs them."""
    for name in MODULES:
        importlib.import_module(name)
    for name, compiled in LOOPS.items():
        if is_cached(compiled):
            importlib.import_module(name).load_loops()
    # what is there now is not looked at by the workers' garbage collectors, whose marks would copy its pages
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    prepare()
    manager()
