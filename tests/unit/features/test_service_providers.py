"""Network providers, tested against a real server on this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import structlog

from encore.config import Config, load_config
from encore.errors import ConfigError, EnvironmentMissing, InputError, TransientError
from encore.features.providers.reccobeats import ReccoBeatsProvider
from encore.features.providers.registry import FEATURE_SCHEMA, REJECTED_SCHEMA, FeatureBatch, provider
from encore.features.providers.service import ServiceProvider, TryAgain, retry_after_seconds, retrying
from encore.features.providers.spotify import SpotifyProvider
from encore.vocabulary import FEATURES
from tests.feature_server import CLIENT, TOKEN, FeatureServer, Mood, feature_server, throttled

SERVICES: dict[str, type[SpotifyProvider | ReccoBeatsProvider]] = {
    "spotify": SpotifyProvider,
    "reccobeats": ReccoBeatsProvider,
}
GOOD = dict(zip(FEATURES, (0.5, 0.6, 7, -8.0, 1, 0.05, 0.1, 0.0, 0.2, 0.7, 120.5), strict=True))


def track(number: int) -> str:
    return f"{number:022d}"


def uris(*numbers: int) -> list[str]:
    return [f"spotify:track:{track(number)}" for number in numbers]


@cache
def base() -> Config:
    return load_config("local")


def settings(**changes: Any) -> Config:
    """The settings in conf/, with changes to `features`."""
    config = base()
    features = config.features.model_validate({**config.features.model_dump(), **changes})
    return config.model_copy(update={"features": features})


class World:
    """A server, the waits that a provider requested, and a provider."""

    def __init__(self, service: str, server: FeatureServer) -> None:
        self.service = service
        self.server = server
        self.waits: list[float] = []

    def provider(self, **changes: Any) -> ServiceProvider:
        config = settings(
            provider=self.service,
            **{
                "api_url": self.server.url,
                "max_attempts": 3,
                "backoff_seconds": 2.0,
                "max_wait_seconds": 60.0,
                "timeout_seconds": 5.0,
                **changes,
            },
        )
        return SERVICES[self.service].from_config(config, self.waits.append)

    def fetch(self, *chunks: list[str], **changes: Any) -> list[FeatureBatch]:
        return list(self.provider(**changes).fetch(iter(chunks)))


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENCORE_CONF_DIR", str(Path(__file__).resolve().parents[3] / "conf"))
    monkeypatch.setenv("SPOTIPY_CLIENT_ID", CLIENT[0])
    monkeypatch.setenv("SPOTIPY_CLIENT_SECRET", CLIENT[1])
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=sorted(SERVICES))
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with feature_server(request.param) as server:
        server.features = {track(number): dict(GOOD) for number in range(250)}
        yield World(request.param, server)


@pytest.fixture
def spotify() -> Iterator[World]:
    with feature_server("spotify") as server:
        server.features = {track(number): dict(GOOD) for number in range(250)}
        yield World("spotify", server)


def rejected(fetched: FeatureBatch) -> dict[str, tuple[str, str]]:
    rows = fetched.rejected.to_pylist()
    return {row["record"]: (row["reason"], row["detail"]) for row in rows}


def test_batches_have_the_declared_columns_and_the_values_of_the_service(world: World) -> None:
    world.server.features[track(1)]["tempo"] = 99.5
    (fetched,) = world.fetch(uris(0, 1))
    assert fetched.features.schema == FEATURE_SCHEMA
    assert fetched.rejected.schema == REJECTED_SCHEMA
    rows = {row["track_uri"]: row for row in fetched.features.to_pylist()}
    assert rows[uris(0)[0]] == {"track_uri": uris(0)[0], **GOOD, "source": world.service}
    assert rows[uris(1)[0]]["tempo"] == 99.5
    assert fetched.rejected.num_rows == 0


def test_one_batch_per_chunk_in_order_and_requests_of_the_services_size(world: World) -> None:
    size = {"spotify": 100, "reccobeats": 40}[world.service]
    numbers = list(range(size + 5))
    answers = world.fetch(uris(*numbers), [], uris(200))
    assert [a.features.num_rows for a in answers] == [size + 5, 0, 1]
    assert [len(batch) for batch in world.server.batches] == [size, 5, 1]
    assert answers[2].features["track_uri"].to_pylist() == uris(200)


def test_a_chunk_is_taken_after_the_previous_batch(world: World) -> None:
    drawn: list[int] = []

    def wanted() -> Iterator[list[str]]:
        for number in range(3):
            drawn.append(number)
            yield uris(number)

    answers = world.provider().fetch(wanted())
    next(answers)
    assert drawn == [0]


def test_unknown_tracks_are_rejected_as_missing(world: World) -> None:
    (fetched,) = world.fetch(uris(3, 999, 4))
    assert sorted(fetched.features["track_uri"].to_pylist()) == uris(3, 4)
    assert rejected(fetched) == {uris(999)[0]: ("feature_missing", f"{world.service} has no features of this track")}
    assert fetched.rejected["source"].to_pylist() == [world.service]


def test_invalid_values_are_rejected_by_the_same_rules_as_files(world: World) -> None:
    world.server.features[track(1)]["key"] = None
    world.server.features[track(2)]["energy"] = 1.5
    world.server.features[track(3)]["mode"] = "mixolydian"
    del world.server.features[track(4)]["mode"]
    (fetched,) = world.fetch(uris(0, 1, 2, 3, 4))
    assert fetched.features["track_uri"].to_pylist() == uris(0)
    found = rejected(fetched)
    assert {record: reason for record, (reason, _) in found.items()} == {
        uris(1)[0]: "feature_missing",
        uris(2)[0]: "feature_out_of_range",
        uris(3)[0]: "feature_not_a_number",
        uris(4)[0]: "feature_missing",
    }
    assert found[uris(2)[0]][1] == "energy: expected 0 to 1, found 1.5"


def test_a_malformed_uri_is_rejected_and_not_requested(world: World) -> None:
    first, second = world.fetch(["spotify:local:a:b:c:1", *uris(5)], ["spotify:local:a:b:c:1"])
    assert world.server.batches == [[track(5)]]
    assert rejected(first)["spotify:local:a:b:c:1"][0] == "feature_id_malformed"
    assert second.rejected.num_rows == 0, "a record is rejected once"


def test_a_repeated_track_is_requested_once(world: World) -> None:
    first, second = world.fetch(uris(1, 2, 1), uris(2, 3))
    assert world.server.batches == [[track(1), track(2)], [track(3)]]
    assert first.features.num_rows == 2
    assert second.features["track_uri"].to_pylist() == uris(3)
    assert first.rejected.num_rows == second.rejected.num_rows == 0


def test_retry_after_is_honoured(world: World) -> None:
    world.server.moods = [throttled(7)]
    (fetched,) = world.fetch(uris(1))
    assert fetched.features.num_rows == 1
    assert world.waits == [7.0]


def test_retry_after_as_a_date_is_honoured(world: World) -> None:
    world.server.moods = [throttled(30, as_date=True)]
    world.fetch(uris(1))
    assert len(world.waits) == 1
    assert 25 < world.waits[0] <= 30


def test_a_wait_above_the_limit_ends_the_job_and_says_when_to_run_it_again(world: World) -> None:
    world.server.moods = [throttled(7200)]
    before = datetime.now(UTC) + timedelta(seconds=7200)
    with pytest.raises(TransientError, match="7200 s") as caught:
        world.fetch(uris(1))
    assert world.waits == []
    assert caught.value.exit_code == 75
    assert caught.value.remedy is not None
    when = datetime.strptime(caught.value.remedy[24:43], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    assert abs((when - before).total_seconds()) < 30


@pytest.mark.parametrize(
    "mood",
    [
        Mood(429),
        Mood(500),
        Mood(502, b"<html>bad gateway</html>"),
        Mood(503, b""),
        Mood(cut=True),
        Mood(body=b'{"audio_features": [{"id": "00'),
        Mood(body=b'"text"'),
        Mood(body=b"[1]"),
        Mood(body=b'{"audio_features": []}'),
        Mood(body=b"{}"),
    ],
    ids=[
        "429",
        "500",
        "html",
        "empty 503",
        "cut",
        "half JSON",
        "text",
        "array",
        "no entries",
        "empty object",
    ],
)
def test_transient_failures_are_retried_with_doubled_waits(world: World, mood: Mood) -> None:
    world.server.moods = [mood, mood]
    (fetched,) = world.fetch(uris(1))
    assert fetched.features.num_rows == 1
    assert world.waits == [2.0, 4.0]


def test_waits_are_capped(world: World) -> None:
    world.server.moods = [Mood(500)] * 8
    world.fetch(uris(1), max_attempts=9)
    assert world.waits == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


def test_the_last_failed_attempt_is_a_transient_error_and_earlier_chunks_are_kept(world: World) -> None:
    world.server.moods = [Mood(), *[Mood(503)] * 3]
    answers = world.provider().fetch(iter([uris(1), uris(2), uris(3)]))
    assert next(answers).features.num_rows == 1
    with pytest.raises(TransientError, match="503, 3 times"):
        next(answers)
    assert len(world.waits) == 2


def test_a_slow_answer_and_a_server_that_is_gone(world: World) -> None:
    world.server.moods = [Mood(slow=0.5)]
    (fetched,) = world.fetch(uris(1), timeout_seconds=0.2)
    assert fetched.features.num_rows == 1
    assert world.waits == [2.0]
    with pytest.raises(TransientError, match="ConnectionError"):
        world.fetch(uris(1), api_url="http://127.0.0.1:9")


def test_a_permanent_failure_is_not_retried(world: World) -> None:
    for status, kind in ((401, EnvironmentMissing), (403, EnvironmentMissing), (400, InputError)):
        world.server.batches.clear()
        world.server.moods = [Mood(status, b'{"error": {"status": 0, "message": "no"}}')]
        with pytest.raises(kind, match=str(status)):
            world.fetch(uris(1))
        assert len(world.server.batches) == 1
    assert world.waits == []


def test_the_fingerprint_changes_with_the_address_which_must_be_a_url(world: World) -> None:
    assert world.provider().fingerprint() == world.provider().fingerprint()
    assert world.provider().fingerprint() != world.provider(api_url="http://127.0.0.1:9").fingerprint()
    with pytest.raises(ConfigError, match="api_url"):
        world.provider(api_url="localhost")


def test_the_registry_creates_providers_from_the_settings(world: World) -> None:
    made = provider(settings(provider=world.service, api_url=world.server.url))
    assert (made.name, made.is_service, type(made)) == (world.service, True, SERVICES[world.service])


def test_spotify_403_explains_and_names_what_to_use_instead(spotify: World) -> None:
    spotify.server.moods = [Mood(403, b'{"error": {"status": 403}}')]
    with pytest.raises(EnvironmentMissing, match="2024-11-27") as caught:
        spotify.fetch(uris(1))
    assert "reccobeats" in str(caught.value.remedy)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("missing", ["SPOTIPY_CLIENT_ID", "SPOTIPY_CLIENT_SECRET"])
def test_spotify_needs_both_credentials(spotify: World, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.delenv(missing)
    with pytest.raises(EnvironmentMissing, match=missing) as caught:
        spotify.provider()
    assert "reccobeats" in str(caught.value.remedy)


def test_spotify_does_not_retry_wrong_credentials(spotify: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPOTIPY_CLIENT_SECRET", "wrong-secret")
    with pytest.raises(EnvironmentMissing, match="invalid_client") as caught:
        spotify.fetch(uris(1))
    assert spotify.waits == []
    assert "wrong-secret" not in str(caught.value) + str(caught.value.remedy)


@pytest.mark.parametrize(
    ("mood", "wait"),
    [
        (throttled(9), 9.0),
        (Mood(503, b"busy"), 2.0),
        (Mood(body=b'{"access'), 2.0),
        (Mood(body=b"{}"), 2.0),
        (Mood(500, b"[]"), 2.0),
        (Mood(cut=True), 2.0),
    ],
    ids=["429", "503", "half JSON", "no token", "array", "cut"],
)
def test_spotify_retries_the_token_request(spotify: World, mood: Mood, wait: float) -> None:
    spotify.server.token_moods = [mood]
    (fetched,) = spotify.fetch(uris(1))
    assert fetched.features.num_rows == 1
    assert spotify.waits == [wait]


def test_spotify_one_token_no_file_and_no_secret_in_the_logs(
    spotify: World, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    spotify.server.moods = [Mood(500)]
    spotify.fetch(uris(*range(150)), uris(200))
    assert spotify.server.tokens_given == 1
    assert os.listdir(tmp_path) == []
    out, err = capfd.readouterr()
    written = caplog.text + out + err
    assert CLIENT[1] not in written
    assert TOKEN not in written


def test_reccobeats_entries_are_matched_by_link_not_by_position() -> None:
    with feature_server("reccobeats") as server:
        server.features = {track(n): {**GOOD, "tempo": 100.0 + n} for n in range(5)}
        del server.features[track(2)]

        def spoil(truth: Any) -> Any:
            stranger = {**GOOD, "href": f"https://open.spotify.com/track/{track(77)}"}
            return {"content": [None, {"href": None}, {"href": "x"}, stranger, *truth["content"]]}

        server.moods = [Mood(change=spoil)]
        (fetched,) = World("reccobeats", server).fetch(uris(*range(5)))
        tempo = dict(zip(fetched.features["track_uri"].to_pylist(), fetched.features["tempo"].to_pylist(), strict=True))
        assert tempo == {uris(n)[0]: 100.0 + n for n in (0, 1, 3, 4)}
        assert list(rejected(fetched)) == uris(2)


def date_in(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        (lambda: "0", 0, 0),
        (lambda: " 12 ", 12, 12),
        (lambda: "1.5", 1.5, 1.5),
        (lambda: date_in(100), 95, 100),
        (lambda: date_in(-100), 0, 0),
    ],
)
def test_retry_after_header(header: Callable[[], str], low: float, high: float) -> None:
    seconds = retry_after_seconds(header())
    assert seconds is not None
    assert low <= seconds <= high


@pytest.mark.parametrize("header", [None, "", "soon", "-5", "nan", "1.2.3", "²"])
def test_an_invalid_retry_after_header(header: str | None) -> None:
    assert retry_after_seconds(header) is None


def test_many_attempts_do_not_overflow() -> None:
    waits: list[float] = []

    def fail() -> None:
        raise TryAgain("no")

    patient = settings(max_attempts=1500, backoff_seconds=1.0, max_wait_seconds=5.0).features
    with pytest.raises(TransientError, match="1500 times"):
        retrying("x", patient, waits.append)(fail)
    assert max(waits) == 5.0


def test_each_wait_is_in_the_log(world: World) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    world.server.moods = [throttled(7), Mood(500)]
    with structlog.testing.capture_logs() as logs:
        world.fetch(uris(1))
    waits = [(line["service"], line["attempt"], line["wait"]) for line in logs if "wait" in line]
    assert waits == [(world.service, 1, 7.0), (world.service, 2, 4.0)]
