"""Features to vectors: `raw`, `zscore` or `whiten`, with a weight for each feature, as one linear map.

    vector = matrix @ (inputs - mean)

The inputs are the eleven features with `key` encoded as two (see `circular`), twelve in all. Every result is the same
to the last bit for any order of the rows, number of threads and machine with IEEE arithmetic: sums do not depend on
their order (`_Sum`), eigenvectors are computed by Jacobi rotations instead of LAPACK, and no product uses BLAS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from encore.errors import ConfigError, InputError
from encore.vocabulary import FEATURES

Matrix = NDArray[np.float64]

INPUTS: tuple[str, ...] = tuple(
    part for name in FEATURES for part in (("key_cos", "key_sin") if name == "key" else (name,))
)
"""Inputs of the linear map, in order: the features, with key as two inputs."""

TRANSFORMS = ("raw", "zscore", "whiten")

CONSTANT = 1e-9
"""A column whose standard deviation is at most this fraction of its root mean square is constant: its output is 0."""

EIGENVALUE_FLOOR = 1e-6
"""Whitening drops directions in which the standardised inputs have less variance than this."""

_KEY = FEATURES.index("key")
_KEY_COS = INPUTS.index("key_cos")
_KEY_SIN = _KEY_COS + 1
_BLOCK = 16384


@dataclass(frozen=True)
class VectorParameters:
    """A fitted map from n inputs to d dimensions; here n = d = 12.

    `columns`: names of the inputs; `mean`: float64[n]; `matrix`: float64[d, n], including the weights; `weights`:
    float64[n], one per input, as applied to the matrix; `n_tracks`: number of rows it was fitted on.
    """

    transform: str
    columns: tuple[str, ...]
    mean: Matrix
    matrix: Matrix
    weights: Matrix
    n_tracks: int


def circular(features: Matrix) -> Matrix:
    """Convert features, float64[n, 11], to inputs, float64[n, 12]: key k becomes (cos, sin) of 2 pi k / 12.

    Pitch classes are circular: B (11) is a semitone from C (0), which numbers from 0 to 11 do not express. The two
    coordinates are a point on the unit circle; -1, no key detected, is its centre, (0, 0), equally far from every key.
    """
    inputs = np.empty((len(features), len(INPUTS)))
    inputs[:, :_KEY] = features[:, :_KEY]
    inputs[:, _KEY_SIN + 1 :] = features[:, _KEY + 1 :]
    key = features[:, _KEY]
    found = key >= 0
    # Rounding makes the twelve points exact where possible (cos of a quarter turn is 0) and identical on all machines.
    inputs[:, _KEY_COS] = np.where(found, np.round(np.cos(key * (math.pi / 6)), 14), 0.0)
    inputs[:, _KEY_SIN] = np.where(found, np.round(np.sin(key * (math.pi / 6)), 14), 0.0)
    return inputs


def fit(features: Matrix, transform: str, weights: Mapping[str, float]) -> VectorParameters:
    """Fit the map on the features of all tracks: float64[n_tracks, 11] as in vocabulary.FEATURES, in any row order.

    Let x be the inputs and w the weights (1 by default; both parts of key get its weight). All moments are over the
    n_tracks rows and divide by n, not n - 1:

    - raw: matrix = diag(w), mean = 0
    - zscore: matrix = diag(w / s), s the standard deviations. key_cos and key_sin share one, the root of their mean
      variance, so that the circle stays round and neighbouring keys stay equally far apart.
    - whiten: matrix = diag(w) R^(-1/2) diag(1 / s), R the covariance of the standardised inputs: ZCA on standardised
      inputs (Kessy, Lewin and Strimmer 2018, "ZCA-cor"), so that units do not matter. The root is symmetric: among
      uncorrelated outputs, each is the most similar to its own input, so a weight can be applied to it. With weights
      of 1 the covariance of the vectors is the identity.

    A weight multiplies a coordinate, so its square multiplies the squared distance. Key takes up two of the twelve
    dimensions; a weight of 0.7071 makes it count as much as the others.
    Constant columns give 0, and whitening drops directions whose eigenvalue is below EIGENVALUE_FLOOR (a
    pseudo-inverse): a single track, or tracks that are all equal, get zero vectors.

    Raises ConfigError for an unknown transform or weight, InputError if there are no rows or a value is not finite.
    """
    if features.ndim != 2 or features.shape[1] != len(FEATURES):
        raise ValueError(f"features: expected shape (tracks, {len(FEATURES)}), found {features.shape}")
    if transform not in TRANSFORMS:
        raise ConfigError(f"vectors.transform: unknown transform {transform!r}", remedy=", ".join(TRANSFORMS))
    factors = _factors(weights)
    n_tracks = len(features)
    if n_tracks == 0:
        raise InputError(
            "no track has features, so there is nothing to fit vectors on",
            remedy="run ingest_features with a table or a service that has features of the tracks in the playlists",
        )
    infinite = [name for name, column in zip(FEATURES, features.T, strict=True) if not np.isfinite(column).all()]
    if infinite:
        raise InputError(f"expected finite numbers, found others in the tracks' {', '.join(infinite)}")
    if transform == "raw":
        return VectorParameters(transform, INPUTS, np.zeros(len(INPUTS)), np.diag(factors), factors, n_tracks)
    mean, covariance = _moments(features)
    scale = _scale(mean, covariance)
    if transform == "zscore":
        matrix = np.diag(factors * scale)
    else:
        root = _inverse_root(covariance * scale[:, None] * scale[None, :])
        matrix = factors[:, None] * root * scale[None, :]
    return VectorParameters(transform, INPUTS, mean, matrix, factors, n_tracks)


def apply(parameters: VectorParameters, features: Matrix) -> NDArray[np.float32]:
    """Convert features, float64[n_tracks, 11] as in vocabulary.FEATURES, to vectors, float32[n_tracks, d].

    A vector depends, to the last bit, only on its own row. Raises ValueError for parameters with other inputs.
    """
    if parameters.columns != INPUTS:
        raise ValueError(f"parameters: expected the inputs {INPUTS}, found {parameters.columns}")
    if features.ndim != 2 or features.shape[1] != len(FEATURES):
        raise ValueError(f"features: expected shape (tracks, {len(FEATURES)}), found {features.shape}")
    vectors = np.empty((len(features), len(parameters.matrix)), dtype=np.float32)
    for start in range(0, len(features), _BLOCK):
        block = slice(start, start + _BLOCK)
        centred = np.ascontiguousarray((circular(features[block]) - parameters.mean).T)
        for dimension, row in enumerate(parameters.matrix):
            total = np.zeros(centred.shape[1])
            for factor, column in zip(row, centred, strict=True):
                total += factor * column
            vectors[block, dimension] = total
    return vectors


def _factors(weights: Mapping[str, float]) -> Matrix:
    unknown = sorted(set(weights) - set(FEATURES))
    if unknown:
        raise ConfigError(f"vectors.weights.{unknown[0]}: unknown feature", remedy=", ".join(FEATURES))
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"vectors.weights.{name}: expected a number of at least 0, found {weight}")
    by_feature = [float(weights.get(name, 1.0)) for name in FEATURES]
    return np.array(by_feature[: _KEY + 1] + by_feature[_KEY:])


class _Sum:
    """Sums of columns that arrive in blocks, identical to the last bit for any order of rows and blocks.

    Reproducible summation (Demmel and Nguyen 2013): adding and subtracting a large constant rounds each number to a
    multiple of a power of two that is coarse enough for float64 to add n of them without error; the remainders are
    summed in the same way with a finer power of two. The total error is below n^3 2^-103 times `bound`.
    """

    def __init__(self, bound: Matrix, n: int) -> None:
        """`bound`: an upper bound on the absolute values of each column; `n`: an upper bound on the number of rows."""
        self._constants = []
        self._sums = []
        for _ in range(2):
            exponent = np.frexp(np.maximum(bound, 1e-290) * (2.0 * n))[1]
            self._constants.append(np.ldexp(1.5, exponent)[:, None])
            self._sums.append(np.zeros(len(bound)))
            bound = np.ldexp(1.0, exponent - 52)

    def add(self, columns: Matrix) -> None:
        """Add a block, float64[columns, rows]."""
        rest = columns
        for constant, total in zip(self._constants, self._sums, strict=True):
            coarse = (rest + constant) - constant
            rest = rest - coarse
            total += coarse.sum(axis=1)

    @property
    def total(self) -> Matrix:
        """The sum of each column."""
        return self._sums[0] + self._sums[1]


def _moments(features: Matrix) -> tuple[Matrix, Matrix]:
    """Mean and covariance of the inputs: float64[12] and float64[12, 12]."""
    n, width = len(features), len(INPUTS)

    def blocks(mean: Matrix | float) -> list[Callable[[], Matrix]]:
        def block(start: int) -> Matrix:
            return np.ascontiguousarray((circular(features[start : start + _BLOCK]) - mean).T)

        return [partial(block, start) for start in range(0, n, _BLOCK)]

    bound = np.ones(width)
    plain = [position for position in range(width) if position not in (_KEY_COS, _KEY_SIN)]
    bound[plain] = np.abs(np.delete(features, _KEY, axis=1)).max(axis=0)
    sums = _Sum(bound, n)
    for block in blocks(0.0):
        sums.add(block())
    mean = sums.total / n
    bound = bound + np.abs(mean)
    left, right = np.triu_indices(width)
    products = _Sum(bound[left] * bound[right], n)
    for block in blocks(mean):
        centred = block()
        products.add(centred[left] * centred[right])
    covariance = np.empty((width, width))
    covariance[left, right] = covariance[right, left] = products.total / n
    return mean, covariance


def _scale(mean: Matrix, covariance: Matrix) -> Matrix:
    """The inverse standard deviation of each input, 0 if it is constant; the two inputs of key share one."""
    variance = np.diag(covariance).copy()
    square = variance + mean * mean
    for moment in (variance, square):
        moment[[_KEY_COS, _KEY_SIN]] = (moment[_KEY_COS] + moment[_KEY_SIN]) / 2
    varies = variance > CONSTANT * CONSTANT * square
    return np.where(varies, 1.0 / np.sqrt(np.where(varies, variance, 1.0)), 0.0)


def _inverse_root(symmetric: Matrix) -> Matrix:
    """Symmetric pseudo-inverse square root: sum of u u^T / sqrt(value) over values above EIGENVALUE_FLOOR.

    A sum of u u^T does not depend on the signs of the eigenvectors u, nor on their choice if eigenvalues are equal.
    """
    values, vectors = _eigh(symmetric)
    root = np.zeros_like(symmetric)
    for value, vector in zip(values, vectors.T, strict=True):
        if value > EIGENVALUE_FLOOR:
            root += vector[:, None] * vector[None, :] / math.sqrt(value)
    return root


def _eigh(symmetric: Matrix) -> tuple[Matrix, Matrix]:
    """Eigenvalues, float64[n], and eigenvectors in columns, float64[n, n], by cyclic Jacobi rotations.

    Golub and Van Loan, Matrix Computations, 8.5. This is fast for a dozen columns and, unlike LAPACK, gives the same
    bits on every machine.
    """
    a = symmetric.copy()
    vectors = np.eye(len(a))
    for _ in range(60):
        off = float(np.abs(a - np.diag(np.diag(a))).max())
        if off <= 1e-15 * float(np.abs(a).max()):
            break
        for p in range(len(a) - 1):
            for q in range(p + 1, len(a)):
                if a[p, q] == 0:
                    continue
                ratio = (a[q, q] - a[p, p]) / (2 * a[p, q])
                tangent = math.copysign(1.0, ratio) / (abs(ratio) + math.sqrt(1 + ratio * ratio))
                cosine = 1 / math.sqrt(1 + tangent * tangent)
                sine = tangent * cosine
                for matrix in (a.T, a, vectors.T):
                    row_p, row_q = matrix[p].copy(), matrix[q].copy()
                    matrix[p] = cosine * row_p - sine * row_q
                    matrix[q] = sine * row_p + cosine * row_q
                a[p, q] = a[q, p] = 0.0
    return np.diag(a).copy(), vectors
