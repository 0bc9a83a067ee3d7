"""What a fitted model says about itself: which of its features matter, and how much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Ablation(NamedTuple):
    """How accurate a model is without a group of features, on the playlists of Explanation.held_out."""

    group: str
    features: tuple[str, ...]
    r_precision: float
    ndcg: float


@dataclass(frozen=True)
class Explanation:
    """The features of a fitted model.

    `importances`: by feature, not negative, in any unit. `held_out`: mean R-precision and NDCG, with all features, on
    playlists that the model did not learn from. `ablations`: the same after fitting without a group of features.
    """

    importances: dict[str, float]
    held_out: tuple[float, float]
    ablations: tuple[Ablation, ...]
