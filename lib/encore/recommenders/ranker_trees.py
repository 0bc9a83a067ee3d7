"""Regression trees as flat arrays: fitted by LightGBM, predicted by a compiled loop without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from encore.arrays.jit import compilation_cache
from encore.arrays.ragged import NamedArrays, offsets_of
from encore.errors import EnvironmentMissing

if TYPE_CHECKING:
    from encore.config import RankerConfig

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

MOST_LEAVES: Final = 32
"""Leaves of a tree are bits of a uint32."""
_DE_BRUIJN: Final = 0x077CB531
_PATIENCE: Final = 20
"""So many trees that do not lower the loss on other rows end the fit."""


@dataclass(frozen=True, eq=False)
class Trees:
    """T trees with N inner nodes in all. A row goes to the left of a node if its feature is at most the threshold.

    `node_offsets` int64 (T + 1,): the nodes of each tree, in any order. Of each node, `node_feature` int32 (N,),
    `node_threshold` float32 (N,), and `node_mask` uint32 (N,): a bit for each leaf of the tree, from left to right,
    that is not to the left of the node. `leaf_values` float64 (T, 32): the value of each leaf, at the place of its bit
    in a de Bruijn sequence.
    """

    node_offsets: NDArray[np.int64]
    node_feature: NDArray[np.int32]
    node_threshold: F32
    node_mask: NDArray[np.uint32]
    leaf_values: F64

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> Trees:
        """From the arrays of a model, which have the names of the fields."""
        return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})

    @property
    def arrays(self) -> NamedArrays:
        """The fields by name, to be stored."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def __len__(self) -> int:
        return len(self.node_offsets) - 1

    def margins(self, rows: F32) -> F64:
        """The sum of the trees' values, float64 (n,), for features without NaN, float32 (n, F).

        It is the same to the last bit as LightGBM's raw score: values are added in the order of the trees.
        """
        out = np.empty(len(rows))
        load_loops().margins(
            np.ascontiguousarray(rows.T),
            self.node_offsets,
            self.node_feature,
            self.node_threshold,
            self.node_mask,
            self.leaf_values,
            out,
        )
        return out

    @classmethod
    def none(cls) -> Trees:
        """No trees."""
        return cls.of_dump({"tree_info": []})

    @classmethod
    def of_dump(cls, dump: Mapping[str, Any]) -> Trees:
        """From lightgbm.Booster.dump_model. Raises ValueError for trees that this form cannot hold."""
        lengths, nodes, values = [], [], []
        for tree in dump["tree_info"]:
            own: list[tuple[int, np.float32, int]] = []
            leaves: list[float] = []
            _flatten(tree["tree_structure"], own, leaves)
            if len(leaves) > MOST_LEAVES:
                raise ValueError(f"expected trees of at most {MOST_LEAVES} leaves, found {len(leaves)}")
            row = np.zeros(MOST_LEAVES)
            for leaf, value in enumerate(leaves):
                row[((1 << leaf) * _DE_BRUIJN & 0xFFFFFFFF) >> 27] = value
            lengths.append(len(own))
            nodes += own
            values.append(row)
        return cls(
            offsets_of(np.array(lengths, np.int64)),
            np.array([feature for feature, _, _ in nodes], np.int32),
            np.array([threshold for _, threshold, _ in nodes], np.float32),
            np.array([mask for _, _, mask in nodes], np.uint32),
            np.array(values).reshape(-1, MOST_LEAVES),
        )


def _flatten(node: Mapping[str, Any], nodes: list[tuple[int, np.float32, int]], leaves: list[float]) -> None:
    """Add the nodes and, from left to right, the leaves of a subtree."""
    if "leaf_value" in node:
        leaves.append(float(node["leaf_value"]))
        return
    if node["decision_type"] != "<=" or node["missing_type"] != "None":
        raise ValueError(f"expected numeric splits, found {node['decision_type']}, missing: {node['missing_type']}")
    first = len(leaves)
    _flatten(node["left_child"], nodes, leaves)
    to_the_left = (1 << len(leaves)) - (1 << first)
    nodes.append((node["split_feature"], _rounded_down(node["threshold"]), 0xFFFFFFFF & ~to_the_left))
    _flatten(node["right_child"], nodes, leaves)


def _rounded_down(threshold: float) -> np.float32:
    """The greatest float32 that is not above a threshold: a float32 is at most the one exactly if it is at most the
    other."""
    found = np.float32(threshold)
    return found if float(found) <= threshold else np.nextafter(found, np.float32(-np.inf))


class Fit(NamedTuple):
    """Fitted trees, the gain of each feature, float64 (F,), and the losses on other rows by number of trees, from 1."""

    trees: Trees
    gains: F64
    losses: list[float]


def fit_trees(
    rows: F32, is_hit: Mask, weights: F32, settings: RankerConfig, seed: int, until: tuple[F32, Mask] | None = None
) -> Fit:
    """Trees whose summed values are the log odds of a hit.

    `rows` float32 (n, F), without NaN; `is_hit` and `weights` (n,). `until`: other rows and their hits, which decide
    how many of `settings.trees` there are, at least 1. The result depends on the order of the rows. Raises
    EnvironmentMissing if LightGBM cannot be loaded.
    """
    lightgbm = _lightgbm()
    parameters = {
        "objective": "binary",
        "metric": "binary_logloss",
        "learning_rate": settings.learning_rate,
        "num_leaves": settings.leaves,
        "min_data_in_leaf": settings.least_in_leaf,
        "use_missing": False,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        # several would wait for each other at every node, for long if another program uses a processor
        "num_threads": 1,
        "verbosity": -1,
    }
    data = lightgbm.Dataset(rows, is_hit.astype(np.float32), weight=weights, params=parameters)
    if until is None:
        booster, losses = lightgbm.train(parameters, data, settings.trees), []
    else:
        recorded: dict[str, dict[str, list[float]]] = {}
        other = lightgbm.Dataset(until[0], until[1].astype(np.float32), reference=data, params=parameters)
        callbacks = [lightgbm.early_stopping(_PATIENCE, verbose=False), lightgbm.record_evaluation(recorded)]
        booster = lightgbm.train(parameters, data, settings.trees, valid_sets=[other], callbacks=callbacks)
        losses = recorded["valid_0"]["binary_logloss"]
    gains = booster.feature_importance("gain").astype(np.float64)
    return Fit(Trees.of_dump(booster.dump_model()), gains, losses)


def _lightgbm() -> ModuleType:
    try:
        import lightgbm
    except (ImportError, OSError) as error:
        raise EnvironmentMissing(
            f"LightGBM, with which the model ranker is fitted, cannot be loaded: {error}",
            remedy="install the system package libgomp (libgomp1 on Debian and Ubuntu), or take ranker out of "
            "recommend.models",
        ) from error
    return lightgbm


@lru_cache(maxsize=1)
def load_loops() -> ModuleType:
    """The compiled loops; compiles them, or waits until another process on this machine has compiled them."""
    with compilation_cache():
        from encore.recommenders import ranker_loops as loops
    return loops
