"""The baseline of the benchmarks makes the same tables as `ingest_playlists`, so that both do the same work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from encore.config import Config
from encore.runtime.pipeline import plan, run_pipeline
from encore.spark.session import Session
from tests import recompute
from tests.bench.plain_spark import plain_ingest


@pytest.mark.slow
def test_plain_spark_writes_the_tables_that_encore_writes(
    session: Session, generated: Path, lake_settings: Callable[..., Config], tmp_path: Path
) -> None:
    config = lake_settings(f"raw.playlists={generated}")
    run_pipeline(config, plan(only=["ingest_playlists"]), session=session)
    other = tmp_path / "plain"
    plain_ingest(session(), [str(path) for path in generated.glob("*.json")], str(other))
    for name, key in (("playlists", "pid"), ("tracks", "track_id")):
        own = {row[key]: row for row in recompute.table(Path(config.lake.path), name)}
        plain = {row[key]: row for row in recompute.table(other, name)}
        assert len(own) > 100
        if name == "tracks":
            assert not any(row.pop("orphaned") for row in own.values()), "of a first ingest, no track is"
        assert plain == own
