"""A scorer with a champion and a challenger that each answer half of the users: `python -m tests.serving.two_versions`.

Settings are those of encore.serving.settings, and ENCORE_TEST_BUNDLE names the bundle of both versions.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from encore.serving.app import App
from encore.serving.metrics import Metrics
from encore.serving.models import CHALLENGER, Folder, Resolved, Served, Serving
from encore.serving.server import run
from encore.serving.settings import Settings


class TwoVersions(Folder):
    """A source of versions 1 and 2, which have the same bundle."""

    def resolve(self) -> Resolved:
        return Resolved("1", "2", {"encore.canary.weight": "0.5"})


class Half(Serving):
    """Loads both, and splits by the last bit of the key."""

    def follow(self) -> None:
        super().follow()
        wanted = self.source.resolve().challenger
        if wanted is not None and self.challenger is None:
            self.challenger = self.load(wanted, CHALLENGER)
            self.metrics.set_weight(0.5)
            self.metrics.verdict("hold")
            self.announce()

    def pick(self, key: bytes) -> Served | None:
        return self.challenger if key[-1] & 1 and self.challenger else self.champion


if __name__ == "__main__":
    settings = Settings.of_environment()
    run(App(Half(TwoVersions(Path(os.environ["ENCORE_TEST_BUNDLE"])), Metrics(), poll_seconds=1), settings), settings)
    sys.exit(0)
