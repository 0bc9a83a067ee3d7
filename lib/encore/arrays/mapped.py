"""Arrays in .npy files, memory-mapped."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray


def open_mapped(path: str | os.PathLike[str]) -> NDArray[Any]:
    """The array in a .npy file, read-only and memory-mapped; an empty array, which cannot be mapped, is read.

    Raises OSError if the file cannot be opened.
    """
    try:
        # as a plain array, which takes a fraction of the time of numpy.memmap to index
        return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)  # type: ignore[no-any-return]
    except ValueError:
        return np.load(path, allow_pickle=False)  # type: ignore[no-any-return]
