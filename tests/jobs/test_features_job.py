"""Features from a service: in chunks, each of which is kept even if later ones fail, without repeated requests."""

from __future__ import annotations

from pathlib import Path

import pytest

from encore.errors import TransientError
from encore.runtime.pipeline import run_pipeline
from encore.spark.session import Session
from encore.vocabulary import FEATURES
from tests import recompute
from tests.conftest import settings, write_slice
from tests.feature_server import feature_server, throttled

VALUES = dict(zip(FEATURES, (0.5, 0.6, 7, -8.0, 1, 0.05, 0.1, 0.0, 0.2, 0.7, 120.5), strict=True))


def ids(*numbers: int) -> list[str]:
    return [f"{number:022d}" for number in numbers]


def test_a_service_is_asked_in_chunks_and_goes_on_where_it_broke_off(session: Session, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    # track 0 is in every playlist, track 9 in one: frequent tracks are requested first
    playlists = [
        {"pid": pid, "tracks": [{"track_uri": f"spotify:track:{track}"} for track in ids(*range(10 - pid))]}
        for pid in range(10)
    ]
    write_slice(raw / "mpd.slice.0-9.json", playlists)
    with feature_server("reccobeats") as server:
        server.features = {track: dict(VALUES) for track in ids(*range(9))}
        config = settings(
            tmp_path / "lake",
            f"raw.playlists={raw}",
            "features.provider=reccobeats",
            f"features.api_url={server.url}",
            "features.chunk=4",
            "features.max_wait_seconds=5.0",
        )
        run_pipeline(config, ["ingest_playlists"], session=session)

        from tests.feature_server import Mood

        server.moods = [Mood(), throttled(3600)]
        with pytest.raises(TransientError, match=r"3,?600|hour|later|minutes"):
            run_pipeline(config, ["ingest_features"], session=session)
        first = {row["track_uri"] for row in recompute.table(tmp_path / "lake", "audio_features")}
        assert first == {f"spotify:track:{track}" for track in ids(0, 1, 2, 3)}, "the first chunk stays"

        server.moods, server.batches = [], []
        results = run_pipeline(config, ["ingest_features"], session=session)
        asked = [track for batch in server.batches for track in batch]
        assert sorted(asked) == ids(4, 5, 6, 7, 8, 9), "what is there is not asked for again"
        assert results[0].facts["coverage_tracks"] == pytest.approx(0.9)
        assert results[0].facts["coverage_rows"] == pytest.approx(54 / 55)
        refused = recompute.table(tmp_path / "lake", "quarantine")
        assert [(row["reason"], row["source"]) for row in refused] == [("feature_missing", "reccobeats")]
        assert results[0].rows["quarantine"] == 1

        server.batches = []
        again = run_pipeline(config, ["ingest_features"], session=session, force=True)
        assert server.batches == [], "what the service does not know is not asked for again either"
        assert again[0].rows == {"audio_features": 9, "quarantine": 0}, "the one record was refused by the run before"
