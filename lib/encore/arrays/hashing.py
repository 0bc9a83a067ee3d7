"""Pseudo-random numbers as a pure function of a seed and keys: the same on every machine and in any order.

The mixing function is that of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators,
OOPSLA 2014):

    f(x):  z = x + 0x9E3779B97F4A7C15
           z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9
           z = (z ^ z >> 27) * 0x94D049BB133111EB
           f = z ^ z >> 31                                        all modulo 2**64

    mix(seed)          = f(seed)
    mix(seed, a)       = f(mix(seed) ^ a)
    mix(seed, a, b)    = f(mix(seed, a) ^ b)    and so on

f is a bijection, so for the same seed and a, different values of b never collide.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def _finalise(z: U64) -> U64:
    """f as defined in the module docstring; overwrites `z` and returns it."""
    z += _GAMMA
    shifted = z >> np.uint64(30)
    z ^= shifted
    z *= _FIRST
    np.right_shift(z, np.uint64(27), out=shifted)
    z ^= shifted
    z *= _SECOND
    np.right_shift(z, np.uint64(31), out=shifted)
    z ^= shifted
    return z


def extend(state: U64, column: NDArray[Any]) -> U64:
    """`mix` with one more column: extend(mix(seed, a), b) is mix(seed, a, b).

    `state` is uint64, `column` any integer type (negative numbers as two's complement); the two are broadcast
    against each other.
    """
    if column.dtype.kind not in "iu":
        raise ValueError(f"expected integers to hash, found {column.dtype}")
    return _finalise(np.bitwise_xor(state, column.astype(np.uint64)))


def mix(seed: int, *columns: NDArray[Any]) -> U64:
    """A 64-bit hash of the seed (modulo 2**64) and each row of the integer columns, which all have the same length.

    Without columns, the result has length 1.
    """
    state = _finalise(np.array([seed % 2**64], dtype=np.uint64))
    for column in columns:
        state = extend(state, column)
    return state


def order(seed: int, keys: NDArray[Any]) -> I64:
    """The positions of integer keys (n,) by their hashes, equal keys by position: the first ones are a uniform sample.

    Which keys come first does not depend on the order of `keys`, and a larger sample contains a smaller one.
    """
    return np.argsort(mix(seed, keys), kind="stable")
