"""A scorer with a champion and a challenger that each answer half of the users: `python -m tests.serving.two_versions`.

Settings are those of encore.serving.settings; `model` is the folder of the bundle of both versions.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from encore.serving.app import App
from encore.serving.canary import Rule, Step
from encore.serving.metrics import Metrics
from encore.serving.models import Folder, Resolved
from encore.serving.rollout import Rollout
from encore.serving.server import run
from encore.serving.settings import Settings

NEVER = Rule(min_requests=10**9, slow_requests=10**9, p=0.0, seconds=1.0)
"""A rule that always holds, each second."""


class TwoVersions(Folder):
    """A source of versions 1 and 2, which have the same bundle."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.tags: dict[str, str] = {}

    def resolve(self) -> Resolved:
        return Resolved("1", "2", dict(self.tags))

    def set_tag(self, version: str, name: str, value: str) -> None:
        self.tags[name] = value


if __name__ == "__main__":
    settings = Settings.of_environment()
    rollout = Rollout(
        TwoVersions(Path(settings.model)),
        Metrics(),
        steps=(Step(0.5, 1e9),),
        rule=NEVER,
        threads=settings.threads,
        poll_seconds=1.0,
    )
    run(App(rollout, settings), settings)
