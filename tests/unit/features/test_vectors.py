"""Features to vectors: plain numpy."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from encore.errors import ConfigError, InputError
from encore.features.vectors import INPUTS, TRANSFORMS, _eigh, _Sum, apply, circular, fit
from encore.vocabulary import FEATURES, RANGES

Matrix = NDArray[np.float64]

KEY = FEATURES.index("key")


def tracks(n: int, seed: int = 0) -> Matrix:
    """Random features with dependent columns, in their ranges."""
    generator = np.random.default_rng(seed)
    features = np.column_stack([generator.uniform(*RANGES[name], n) for name in FEATURES])
    features[:, KEY] = generator.integers(-1, 12, n)
    features[:, FEATURES.index("mode")] = generator.integers(0, 2, n)
    energy, loudness = FEATURES.index("energy"), FEATURES.index("loudness")
    features[:, loudness] = -60 + 55 * features[:, energy] + generator.normal(0, 4, n)
    return features


def vectors(features: Matrix, transform: str, **weights: float) -> Matrix:
    return apply(fit(features, transform, weights), features).astype(np.float64)


def test_key_makes_two_of_the_twelve_inputs() -> None:
    assert len(INPUTS) == 12
    assert INPUTS[KEY : KEY + 2] == ("key_cos", "key_sin")
    assert [name for name in INPUTS if not name.startswith("key_")] == [n for n in FEATURES if n != "key"]


def test_raw_is_the_inputs_themselves() -> None:
    features = tracks(20)
    np.testing.assert_array_equal(apply(fit(features, "raw", {}), features), circular(features).astype(np.float32))
    plain = [place for place, name in enumerate(INPUTS) if not name.startswith("key_")]
    np.testing.assert_array_equal(circular(features)[:, plain], np.delete(features, KEY, axis=1))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(TRANSFORMS[:2]), st.integers(0, 11), st.floats(0, 5))
def test_neighbouring_keys_are_equally_near(transform: str, key: int, weight: float) -> None:
    parameters = fit(tracks(50), transform, {"key": weight})
    probe = np.repeat(tracks(1), 4, axis=0)
    probe[:, KEY] = [0, 1, key, (key + 1) % 12]
    result = apply(parameters, probe).astype(np.float64)
    np.testing.assert_allclose(
        np.linalg.norm(result[0] - result[1]), np.linalg.norm(result[2] - result[3]), atol=1e-5 * (1 + weight)
    )


def test_eleven_is_next_to_zero_and_six_is_opposite() -> None:
    probe = np.repeat(tracks(1), 4, axis=0)
    probe[:, KEY] = [0, 11, 1, 6]
    inputs = circular(probe)
    to_zero = np.linalg.norm(inputs - inputs[0], axis=1)
    np.testing.assert_allclose(to_zero, [0, 2 * np.sin(np.pi / 12), 2 * np.sin(np.pi / 12), 2], atol=1e-12)


def test_no_key_is_equally_far_from_all_keys() -> None:
    probe = np.repeat(tracks(1), 13, axis=0)
    probe[:, KEY] = range(-1, 12)
    inputs = circular(probe)
    np.testing.assert_array_equal(inputs[0, [KEY, KEY + 1]], [0, 0])
    np.testing.assert_allclose(np.linalg.norm(inputs[1:] - inputs[0], axis=1), 1, atol=1e-12)


def test_zscore_against_numpy() -> None:
    features = tracks(500)
    inputs = circular(features)
    deviation = inputs.std(axis=0)
    deviation[[KEY, KEY + 1]] = np.sqrt((deviation[[KEY, KEY + 1]] ** 2).mean())
    expected = (inputs - inputs.mean(axis=0)) / deviation
    np.testing.assert_allclose(vectors(features, "zscore"), expected, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(50, 400), st.integers(0, 2**32 - 1))
def test_whitened_vectors_have_mean_zero_and_identity_covariance(n: int, seed: int) -> None:
    result = vectors(tracks(n, seed), "whiten")
    np.testing.assert_allclose(result.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(result.T, bias=True), np.eye(12), atol=1e-4)


def test_whitening_against_an_independent_formula() -> None:
    features = tracks(300)
    inputs = circular(features)
    deviation = inputs.std(axis=0)
    deviation[[KEY, KEY + 1]] = np.sqrt((deviation[[KEY, KEY + 1]] ** 2).mean())
    standard = (inputs - inputs.mean(axis=0)) / deviation
    values, axes = np.linalg.eigh(standard.T @ standard / len(standard))
    expected = standard @ (axes / np.sqrt(values)) @ axes.T
    np.testing.assert_allclose(vectors(features, "whiten"), expected, atol=1e-4)


def test_each_whitened_output_is_most_like_its_own_input() -> None:
    features = tracks(500)
    inputs, outputs = circular(features), vectors(features, "whiten")
    correlation = np.corrcoef(inputs.T, outputs.T)[:12, 12:]
    np.testing.assert_array_equal(np.abs(correlation).argmax(axis=1), np.arange(12))
    assert (np.diag(correlation) > 0.5).all()


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_weight_is_a_factor_on_its_coordinates(transform: str) -> None:
    features = tracks(100)
    plain = vectors(features, transform)
    weighted = vectors(features, transform, tempo=3.0, key=0.5, energy=0.0)
    factor = np.ones(12)
    factor[INPUTS.index("tempo")] = 3
    factor[[KEY, KEY + 1]] = 0.5
    factor[INPUTS.index("energy")] = 0
    np.testing.assert_allclose(weighted, plain * factor, rtol=1e-6)
    np.testing.assert_array_equal(fit(features, transform, {"key": 0.5}).weights[[KEY, KEY + 1]], [0.5, 0.5])


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_parameters_match_the_documented_map(transform: str) -> None:
    features = tracks(64)
    parameters = fit(features, transform, {"valence": 2.0})
    assert (parameters.transform, parameters.columns, parameters.n_tracks) == (transform, INPUTS, 64)
    assert (parameters.mean.shape, parameters.matrix.shape) == ((12,), (12, 12))
    assert parameters.matrix.dtype == parameters.mean.dtype == parameters.weights.dtype == np.float64
    expected = (circular(features) - parameters.mean) @ parameters.matrix.T
    result = apply(parameters, features)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_same_bits_for_any_order_of_the_tracks(transform: str) -> None:
    features = tracks(40_000)
    order = np.random.default_rng(1).permutation(len(features))
    one, other = fit(features, transform, {}), fit(features[order], transform, {})
    np.testing.assert_array_equal(one.mean, other.mean)
    np.testing.assert_array_equal(one.matrix, other.matrix)
    whole = apply(one, features)
    np.testing.assert_array_equal(whole[order], apply(other, features[order]))
    np.testing.assert_array_equal(whole[17:20_001], apply(one, np.asfortranarray(features[17:20_001])))


@pytest.mark.parametrize("transform", ["zscore", "whiten"])
@pytest.mark.parametrize("n", [1, 7])
def test_tracks_that_are_all_equal_get_zero_vectors(transform: str, n: int) -> None:
    features = np.repeat(tracks(1), n, axis=0)
    features[:, FEATURES.index("valence")] = 0.1
    np.testing.assert_array_equal(vectors(features, transform), np.zeros((n, 12)))


@pytest.mark.parametrize("transform", TRANSFORMS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_degenerate_tables_give_finite_vectors(transform: str, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 30))
    features = tracks(n, data.draw(st.integers(0, 1000)))
    for name in data.draw(st.sets(st.sampled_from(FEATURES))):
        low, high = RANGES[name]
        features[:, FEATURES.index(name)] = data.draw(st.floats(low, high))
    result = vectors(features, transform)
    assert np.isfinite(result).all()
    assert transform == "raw" or np.abs(result).max() < 1000


@pytest.mark.parametrize("noise", [0.0, 1e-5])
def test_a_copied_column_adds_nothing_in_whitening(noise: float) -> None:
    features = tracks(300)
    copied = 1 - features[:, FEATURES.index("liveness")]
    features[:, FEATURES.index("valence")] = copied + noise * np.random.default_rng(1).normal(size=300)
    values = np.linalg.eigvalsh(np.cov(vectors(features, "whiten").T, bias=True))
    np.testing.assert_allclose(values, [0] + [1] * 11, atol=1e-4)


def test_a_constant_column_is_zero_and_does_not_affect_the_others() -> None:
    features = tracks(200)
    features[:, FEATURES.index("tempo")] = 120.1
    features[::2, FEATURES.index("tempo")] += 1e-10
    for transform in ("zscore", "whiten"):
        result = vectors(features, transform)
        np.testing.assert_array_equal(result[:, INPUTS.index("tempo")], 0)
        np.testing.assert_allclose(np.delete(result, INPUTS.index("tempo"), axis=1).std(axis=0).mean(), 1, atol=0.01)


def test_wrong_arguments_are_named() -> None:
    features = tracks(3)
    with pytest.raises(ConfigError, match="pca"):
        fit(features, "pca", {})
    with pytest.raises(ConfigError, match="bpm"):
        fit(features, "raw", {"bpm": 1.0})
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"weights\.tempo"):
            fit(features, "raw", {"tempo": weight})
    with pytest.raises(InputError, match="nothing"):
        fit(features[:0], "raw", {})
    features[1, 1] = np.nan
    with pytest.raises(InputError, match="energy"):
        fit(features, "whiten", {})
    with pytest.raises(ValueError, match="11"):
        fit(features[:, :10], "raw", {})
    with pytest.raises(ValueError, match="11"):
        apply(fit(tracks(3), "raw", {}), features[:, :10])


def test_no_rows_give_no_vectors() -> None:
    assert apply(fit(tracks(3), "whiten", {}), tracks(3)[:0]).shape == (0, 12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), st.randoms())
def test_sums_are_exact_enough_and_the_same_in_any_order(numbers: list[float], shuffle: object) -> None:
    assert isinstance(shuffle, random.Random)
    shuffled = list(numbers)
    shuffle.shuffle(shuffled)
    totals = []
    for order in (numbers, shuffled):
        total = _Sum(np.array([1e6]), len(numbers))
        for start in range(0, len(order), 7):
            total.add(np.array([order[start : start + 7]]))
        totals.append(float(total.total[0]))
    assert totals[0] == totals[1]
    assert abs(totals[0] - math.fsum(numbers)) <= 1e-16 * 1e6 + 1e-15 * abs(math.fsum(numbers))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_eigenvectors_against_lapack(n: int, seed: int) -> None:
    square = np.random.default_rng(seed).normal(size=(n, n))
    symmetric = square + square.T
    values, axes = _eigh(symmetric)
    np.testing.assert_allclose(np.sort(values), np.linalg.eigvalsh(symmetric), atol=1e-12)
    np.testing.assert_allclose(axes @ np.diag(values) @ axes.T, symmetric, atol=1e-12)
    np.testing.assert_allclose(axes.T @ axes, np.eye(n), atol=1e-12)
