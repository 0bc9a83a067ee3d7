"""The inner holdout that settings are judged by: some training playlists with hidden tracks.

Its playlists are hidden before models take their own trial (see base.Trial), which is chosen among the others. So
models that learn from a trial, such as the weights of `fusion`, are judged by playlists that they have not seen. The
test tracks are never read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from encore.config import Config
from encore.recommenders.base import Model, TrainingData, Trial
from encore.recommenders.training import Stream, take_trial, training_data

_SEED: Final = 0x7C4E55
"""Combined with split.seed, so that these playlists are independent of the test tracks and of the models' own trial."""


@dataclass(frozen=True, eq=False)
class TuningData:
    """What models are fitted on while they are tuned, and the hidden tracks by which they are judged."""

    train: TrainingData
    judged: Trial


def tuning_data(stream: Stream, n_tracks: int, models: list[Model], config: Config) -> TuningData:
    """The training data that some models need, without the inner holdout."""
    needs = {field for entry in models for field in entry.needs}
    # nothing is hidden for the models' own trial until the inner holdout is
    whole = training_data(
        stream,
        n_tracks,
        needs | {"lists", "titles"},
        config.split,
        trial_playlists=0,
        with_challenge=config.recommend.train_on_challenge,
    )
    judged, lists, titles = take_trial(
        whole.pids,
        whole.lists,
        list(whole.titles),
        config.split,
        config.tune.playlists,
        n_tracks=n_tracks,
        seed=_SEED,
    )
    eligible = ~np.isin(whole.pids, judged.queries.pids)
    trial, lists, titles = take_trial(
        whole.pids,
        lists,
        titles,
        config.split,
        config.recommend.trial_playlists,
        n_tracks=n_tracks,
        eligible=eligible,
    )
    counts = np.bincount(lists.values, minlength=n_tracks) if "counts" in needs else whole.counts
    return TuningData(replace(whole, lists=lists, titles=titles, trial=trial, counts=counts), judged)
