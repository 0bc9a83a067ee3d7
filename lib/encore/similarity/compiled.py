"""The compiled loops, imported when they are needed, and compiled once a machine: half a minute.

Commands that search for nothing must not import numba: no module here does before `loops` is called.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

import numpy as np

from encore.compiling import prepared


@lru_cache(maxsize=1)
def loops() -> ModuleType:
    """`encore.similarity.loops`, with everything in it compiled; other processes of this machine wait for the first."""
    with prepared():
        from encore.similarity import loops as module

        _compile(module)
    return module


def warm_up() -> None:
    """Compile everything that a search needs, or wait until another process has, so that a first search is as
    quick as any."""
    loops()


def _compile(module: ModuleType) -> None:
    """Call what `tree` calls, with arguments of the types it has there."""
    from encore.similarity.tree import Tree, search_with

    vectors = np.eye(3, 2, dtype=np.float32)
    tree = Tree.built_with(module, np.arange(3, dtype=np.int32), vectors)
    search_with(module, vectors, tree, 1)
