"""Draws deploy/images/exact-top-k.png, the picture of exact-top-k.md: run it with the project's Python."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Arc, Circle

from encore.search import tree
from encore.search.tree import Tree

OUT = Path(__file__).parents[1] / "images" / "exact-top-k.png"
ITEM, QUERY, CAP = "#8a8f98", "#c0392b", "#2c6fbb"


def draw_bound(axes: Axes) -> None:
    """The three angles of the bound, on a circle."""
    axes.add_patch(Circle((0, 0), 1, fill=False, color="#444444", lw=1))
    angles = {"q": (100, QUERY), "c": (35, CAP)}
    for name, (degrees, colour) in angles.items():
        x, y = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        axes.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "->", "color": colour, "lw": 1.8})
        axes.text(1.1 * x, 1.1 * y, name, color=colour, ha="center", va="center", fontsize=13, style="italic")
    for middle, half, radius, colour, name in (
        (100, 34, 0.80, QUERY, "T"),
        (35, 22, 0.55, CAP, "b"),
    ):
        axes.add_patch(
            Arc((0, 0), 2 * radius, 2 * radius, theta1=middle - half, theta2=middle + half, color=colour, lw=4)
        )
        for side in (middle - half, middle + half):
            direction = np.array([np.cos(np.radians(side)), np.sin(np.radians(side))])
            axes.plot(*np.transpose([direction * 0, direction]), color=colour, lw=0.7, ls=":")
        at = np.radians(middle + half * 0.55)
        axes.text(
            (radius - 0.16) * np.cos(at),
            (radius - 0.16) * np.sin(at),
            name,
            color=colour,
            ha="center",
            va="center",
            fontsize=9,
        )
    axes.text(0, -0.3, "T = arccos t;  a, the angle of q and c, is above b + T here", ha="center", fontsize=11)
    axes.set(xlim=(-1.2, 1.2), ylim=(-0.45, 1.25), aspect="equal")
    axes.axis("off")
    axes.set_title("A cap that the query cannot reach holds none of its best", fontsize=11)


def draw_leaves(axes: Axes) -> None:
    """Items around a pole of the sphere, seen from above: leaves of the tree and which of them a query looks into."""
    rng = np.random.default_rng(4)
    middles = rng.normal(0, 0.16, (14, 2))
    flat = middles[rng.integers(0, 14, 1600)] + rng.normal(0, 0.055, (1600, 2))
    items = np.column_stack([flat, np.sqrt(1 - (flat**2).sum(axis=1))]).astype(np.float32)
    query = np.array([[0.08, 0.05, 0.99]], dtype=np.float32)
    query /= np.linalg.norm(query)
    built = Tree.build(np.arange(1600, dtype=np.int32), items)
    found = tree.search(query, built, 40)
    t = float(found.scores.min())
    caps = built.leaf_caps.transpose(0, 2, 1).reshape(-1, built.leaf_caps.shape[1])[:100]
    reached = caps[:, :3] @ query[0] - t * caps[:, 3] + np.sqrt(1 - t * t) * caps[:, 4] >= 0
    for cap, hit in zip(caps, reached, strict=True):
        face = "#2c6fbb55" if hit else "none"
        axes.add_patch(Circle((cap[0], cap[1]), cap[4], facecolor=face, edgecolor=CAP, lw=0.6))
    axes.scatter(flat[:, 0], flat[:, 1], s=1.5, color=ITEM)
    best = items[found.ids.values]
    axes.scatter(best[:, 0], best[:, 1], s=5, color=QUERY)
    axes.add_patch(Circle((query[0, 0], query[0, 1]), np.sqrt(1 - t * t), fill=False, color=QUERY, lw=1.6))
    axes.set(xlim=(-0.42, 0.42), ylim=(-0.36, 0.36), aspect="equal")
    axes.axis("off")
    axes.set_title(f"100 leaves of 16 items: a query for 40 looks into {int(reached.sum())}", fontsize=11)


def main() -> None:
    """Draw and save."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6))
    draw_bound(left)
    draw_leaves(right)
    figure.tight_layout()
    figure.savefig(OUT, dpi=110)


if __name__ == "__main__":
    main()
