"""Functions that were compiled ahead of time, chosen by the types of their arguments.

Machine code does not check what it is given, and would read an array of another type as if it had the right one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


class Function:
    """A function in one or more versions, each for other types of arguments."""

    def __init__(self, name: str, *versions: tuple[Callable[..., Any], list[Any]]) -> None:
        self.name = name
        self._versions = [(compiled, _of(types)) for compiled, types in versions]

    def __call__(self, *args: Any) -> Any:
        """Call the version for these arguments. Raises TypeError if there is none."""
        for compiled, types in self._versions:
            if _fit(args, types):
                return compiled(*args)
        raise TypeError(f"{self.name}: expected {self._versions}, found {_shown(args)}")


def _of(types: list[Any]) -> list[Any]:
    made: list[Any] = []
    for kind in types:
        if isinstance(kind, list):
            made.append(_of(kind))
        else:
            made.append(kind and (np.dtype(kind[0]), kind[1]))
    return made


def _fit(args: tuple[Any, ...], types: list[Any]) -> bool:
    if len(args) != len(types):
        return False
    for arg, kind in zip(args, types, strict=True):
        if kind is None:
            continue
        if type(kind) is list:
            if not isinstance(arg, tuple) or not _fit(arg, kind):
                return False
        elif (
            not isinstance(arg, np.ndarray)
            or arg.dtype != kind[0]
            or arg.ndim != kind[1]
            or not arg.flags.c_contiguous
            or not arg.flags.aligned
        ):
            return False
    return True


def _shown(args: tuple[Any, ...]) -> list[Any]:
    return [
        _shown(arg)
        if isinstance(arg, tuple)
        else (str(arg.dtype), arg.ndim)
        if isinstance(arg, np.ndarray)
        else type(arg)
        for arg in args
    ]
