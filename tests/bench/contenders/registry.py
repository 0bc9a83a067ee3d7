"""All peers of the benchmark `models`, with their settings. Needs only the standard library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Contender:
    """A model with its settings.

    `name`: unique, part of figures' names. `module`: the module of this package that runs it, with `settings`.
    `environment`: which of requirements/<environment>.txt is installed for it; None: Encore's own environment.
    `settings_text`: what the table says about the settings. `unavailable`: why it cannot be run, if it cannot.
    """

    name: str
    label: str
    is_ours: bool
    module: str = ""
    environment: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    settings_text: str = ""
    unavailable: str = ""


def ours(name: str) -> Contender:
    """A model of Encore with its default settings."""
    return Contender(name, name, True, "ours", None, {"model": name}, "defaults")


def peers(d: int, ease_tracks: int) -> list[Contender]:
    """All peers; factor models have d dimensions, as Encore's `ials`. EASE knows `ease_tracks` tracks.

    Tuned settings are the best of a few by NDCG, on other generated playlists than those of the benchmark.
    """

    def implicit(name: str, label: str, text: str, **settings: Any) -> Contender:
        return Contender(f"implicit_{name}", f"implicit: {label}", False, "of_implicit", "implicit", settings, text)

    def lightfm(name: str, label: str, text: str, **settings: Any) -> Contender:
        return Contender(f"lightfm_{name}", f"LightFM: {label}", False, "of_lightfm", "lightfm", settings, text)

    def rectools(name: str, label: str, text: str, **settings: Any) -> Contender:
        return Contender(f"rectools_{name}", f"RecTools: {label}", False, "of_rectools", "rectools", settings, text)

    def mllib(name: str, label: str, text: str, **settings: Any) -> Contender:
        return Contender(f"mllib_{name}", f"MLlib: {label}", False, "of_mllib", None, {"d": d, **settings}, text)

    def turtles(name: str, label: str, text: str, **settings: Any) -> Contender:
        return Contender(f"turtles{name}", f"Turtles' kNN{label}", False, "turtles", None, settings, text)

    als = {"model": "als", "factors": d}
    alpha, regularization = 20.0, 10.0
    tuned = f"alpha {alpha:g}, regularization {regularization:g}"
    return [
        implicit("als", "ALS", "defaults: 15 iterations, alpha 1, regularization .01", **als),
        implicit("als_6", "ALS, 6 iterations", "6 iterations, otherwise defaults", **als, iterations=6),
        implicit(
            "als_tuned", "ALS, tuned", f"15 iterations, {tuned}", **als, alpha=alpha, regularization=regularization
        ),
        implicit("bm25", "BM25", "defaults: K 20, K1 1.2, B .75", model="bm25"),
        implicit("bm25_k500", "BM25, K 500", "K 500, K1 1.2, B .75", model="bm25", K=500),
        implicit("cosine", "cosine", "default: K 20", model="cosine"),
        implicit("cosine_k500", "cosine, K 500", "K 500", model="cosine", K=500),
        mllib("als", "ALS, 6 iterations", "6 iterations, otherwise defaults: alpha 1, regParam .1", iterations=6),
        mllib("als_tuned", "ALS, 6 iterations, tuned", f"6 iterations, alpha {alpha:g}", iterations=6, alpha=alpha),
        lightfm("warp", "WARP", "15 epochs, otherwise defaults", d=d, epochs=15),
        lightfm("warp_artists", "WARP with artists", "15 epochs, artists as item features", d=d, epochs=15, artists=1),
        rectools("svd", "PureSVD", "defaults", model="svd", factors=d),
        rectools(
            "ease",
            "EASE",
            f"lambda 150, only the {ease_tracks:,} most frequent tracks",
            model="ease",
            regularization=150.0,
            tracks=ease_tracks,
        ),
        turtles("", "", "k and rho by number of seeds, as in the authors' code"),
        turtles("_k1000", ", k 1,000", "k 1,000, rho as in the authors' code", neighbours=1000),
        Contender(
            "lenskit",
            "LensKit",
            False,
            unavailable="2026.4 needs Python 3.12.5; 2025.8 needs PyTorch with several GB of CUDA libraries",
        ),
    ]
