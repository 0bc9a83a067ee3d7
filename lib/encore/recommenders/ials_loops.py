"""Compiled loops of iALS: solving rows, Gram matrices, and folding in; see recommenders.ials.

Each row is computed by one thread in a fixed order, so it does not depend on the other rows, on blocks or on tasks.
Where sums are reassociated (fastmath), so that they use vector registers, their last bits depend on the type of CPU.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

_SUMS = {"reassoc", "contract", "nsz"}


@numba.njit(cache=True, nogil=True, fastmath=_SUMS)
def _dot(a: F32, b: F32) -> np.float32:
    total = np.float32(0)
    for k in range(len(b)):
        total += a[k] * b[k]
    return total


@numba.njit(cache=True, nogil=True, fastmath=_SUMS)
def _add(y: F32, factor: np.float32, x: F32) -> None:
    for k in range(len(y)):
        y[k] += factor * x[k]


@numba.njit(cache=True, nogil=True)
def _multiply(gram: F32, ridge: np.float32, others: F32, ids: I32, weights: F32, p: F32, out: F32) -> None:
    """out = (gram + ridge I + sum of weights[j] v_j v_j') p, with v_j = others[ids[j]]."""
    for k in range(len(p)):
        out[k] = _dot(gram[k], p) + ridge * p[k]
    for j in range(len(ids)):
        v = others[ids[j]]
        _add(out, weights[j] * _dot(v, p), v)


@numba.njit(cache=True, nogil=True)
def solve_rows(
    offsets: I64,
    ids: I32,
    weights: F32,
    others: F32,
    gram: F32,
    regularization: float,
    unobserved: float,
    steps: int,
    with_loss: bool,
    rows: F32,
) -> tuple[float, float]:
    """Improve each row by some steps of the conjugate gradient method, in place.

    `gram`: the Gram matrix of `others` times the weight of unobserved entries; `unobserved`: that weight times the
    number of others. Rows without entries become 0. Returns the sums of the rows' regularisation terms and, if
    `with_loss`, of their observed entries' losses, otherwise 0. Memory: 3 d.
    """
    d = rows.shape[1]
    residual, p, product = np.empty(d, np.float32), np.empty(d, np.float32), np.empty(d, np.float32)
    penalty, loss = 0.0, 0.0
    for row in range(len(rows)):
        start, stop = offsets[row], offsets[row + 1]
        x = rows[row]
        if start == stop:
            x[:] = 0
            continue
        own, c = ids[start:stop], weights[start:stop]
        total = 0.0
        for j in range(len(c)):
            total += c[j]
        ridge = regularization * (total + unobserved)
        _multiply(gram, np.float32(ridge), others, own, c, x, residual)
        for k in range(d):
            residual[k] = -residual[k]
        for j in range(len(own)):
            _add(residual, c[j], others[own[j]])
        p[:] = residual
        size = _dot(residual, residual)
        for _ in range(steps):
            if size < 1e-20:
                break
            _multiply(gram, np.float32(ridge), others, own, c, p, product)
            step = size / _dot(p, product)
            _add(x, step, p)
            _add(residual, -step, product)
            before, size = size, _dot(residual, residual)
            for k in range(d):
                p[k] = residual[k] + size / before * p[k]
        penalty += ridge * np.float64(_dot(x, x))
        if with_loss:
            for j in range(len(own)):
                error = 1.0 - np.float64(_dot(others[own[j]], x))
                loss += np.float64(c[j]) * error * error
    return penalty, loss


@numba.njit(cache=True, nogil=True)
def gram_of(rows: F32) -> F64:
    """rows' rows, float64 (d, d), summed in the order of the rows, four at a time."""
    n, d = rows.shape
    out = np.zeros((d, d))
    four = np.zeros((4, d))
    for start in range(0, n, 4):
        for i in range(4):
            for k in range(d):
                four[i, k] = rows[start + i, k] if start + i < n else 0.0
        for k in range(d):
            a, b, c, e = four[0, k], four[1, k], four[2, k], four[3, k]
            for m in range(k + 1):
                out[k, m] += a * four[0, m] + b * four[1, m] + c * four[2, m] + e * four[3, m]
    for k in range(d):
        for m in range(k):
            out[m, k] = out[k, m]
    return out


@numba.njit(cache=True, nogil=True)
def transpose(
    offsets: I64, ids: I32, weights: F32, first: int, low: int, high: int, ends: I64, out_rows: I32, out_weights: F32
) -> None:
    """Append the entries of a block of rows, the first of which is row `first`, to the columns low to high - 1.

    `ends` int64 (high - low,): where the next entry of each column goes, updated.
    """
    for row in range(len(offsets) - 1):
        for j in range(offsets[row], offsets[row + 1]):
            column = ids[j] - low
            if 0 <= column < high - low:
                at = ends[column]
                out_rows[at] = first + row
                out_weights[at] = weights[j]
                ends[column] = at + 1


@numba.njit(cache=True, nogil=True)
def fold_in(
    offsets: I64,
    places: I32,
    weights: F32,
    vectors: F32,
    others: F32,
    gram: F64,
    regularization: float,
    unobserved: float,
    out: F32,
) -> None:
    """The exact solution of each row, by Cholesky decomposition in float64.

    The entry j of a row is for the item vectors[places[j]], of which only the first d columns count, or, if that is
    negative, others[-1 - places[j]]; the other arguments are as in `solve_rows`. Memory: d^2 float64.
    """
    d = out.shape[1]
    a, x, v = np.empty((d, d)), np.empty(d), np.empty(d)
    for row in range(len(out)):
        start, stop = offsets[row], offsets[row + 1]
        if start == stop:
            out[row] = 0
            continue
        total = 0.0
        for j in range(start, stop):
            total += weights[j]
        a[:] = gram
        x[:] = 0
        ridge = regularization * (total + unobserved)
        for k in range(d):
            a[k, k] += ridge
        for j in range(start, stop):
            c = np.float64(weights[j])
            place = places[j]
            for k in range(d):
                v[k] = vectors[place, k] if place >= 0 else others[-1 - place, k]
            for k in range(d):
                x[k] += c * v[k]
                scaled = c * v[k]
                # the upper triangle: row k from the diagonal on
                for m in range(k, d):
                    a[k, m] += scaled * v[m]
        # a = u'u with u upper triangular, in place
        for k in range(d):
            pivot = np.sqrt(a[k, k])
            for m in range(k, d):
                a[k, m] /= pivot
            for i in range(k + 1, d):
                scaled = a[k, i]
                for m in range(i, d):
                    a[i, m] -= scaled * a[k, m]
        for k in range(d):
            x[k] /= a[k, k]
            for m in range(k + 1, d):
                x[m] -= a[k, m] * x[k]
        for k in range(d - 1, -1, -1):
            for m in range(k + 1, d):
                x[k] -= a[k, m] * x[m]
            x[k] /= a[k, k]
        for k in range(d):
            out[row, k] = x[k]
