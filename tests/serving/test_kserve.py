"""KServe's own package, in an environment of its own, reads the manifest and asks the scorer."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml

from encore.serving.scorer import Playlist, Scorer, shown
from encore.serving.settings import PREFIX, Settings
from tests.serving.environments import answer, interpreter
from tests.serving.process import Running, free_port, started
from tests.unit.serving.bundles import URIS

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = ROOT / "deploy" / "kserve" / "inferenceservice.yaml"
SDK = Path(__file__).with_name("kserve_sdk.py")
ROWS = [URIS[:3], [], URIS[4:5]]
K = 5


@pytest.fixture(scope="module")
def python() -> Path:
    return interpreter("kserve")


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    (found,) = [one for one in yaml.safe_load_all(MANIFEST.read_text()) if one["kind"] == "InferenceService"]
    return dict(found)


@pytest.fixture(scope="module")
def container(service: dict[str, Any]) -> dict[str, Any]:
    (found,) = service["spec"]["predictor"]["containers"]
    return dict(found)


def environment_of(container: Mapping[str, Any]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container["env"]}


# the manifest ---------------------------------------------------------------------------------------------------------


def test_the_model_of_kserve_holds_the_whole_manifest(python: Path) -> None:
    """A field that it does not know would be dropped."""
    found = answer(python, SDK, "manifest", str(MANIFEST))
    assert found["type"] == "V1beta1InferenceService"
    assert found["container"] == "V1Container"
    assert found["again"] == found["given"]
    assert found["canary"] == 10


def test_a_field_that_kserve_does_not_know_is_noticed(python: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(MANIFEST.read_text().replace("canaryTrafficPercent", "canaryTraffic"))
    found = answer(python, SDK, "manifest", str(wrong))
    assert found["again"] != found["given"]
    assert found["canary"] is None


def test_the_container_has_few_rights(service: dict[str, Any], container: dict[str, Any]) -> None:
    predictor = service["spec"]["predictor"]
    assert predictor["securityContext"]["runAsNonRoot"] is True
    image = tomllib.loads((ROOT / "deploy" / "image" / "files.toml").read_text())["image"]
    assert predictor["securityContext"]["runAsUser"] == image["user"] > 0, "the image's folders belong to its user"
    assert predictor["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"].keys() == {"requests", "limits"}


def test_the_settings_are_those_of_the_scorer(service: dict[str, Any], container: dict[str, Any]) -> None:
    given = environment_of(container)
    settings = Settings.of_environment(given)
    assert settings.host == "0.0.0.0"
    assert [port["containerPort"] for port in container["ports"]] == [settings.port]
    # the initializer puts the bundle there, and nothing else is writable
    assert settings.model == "/mnt/models"
    assert Path(settings.cache).is_relative_to(container["volumeMounts"][0]["mountPath"])
    predictor = service["spec"]["predictor"]
    assert predictor["containerConcurrency"] == settings.threads + settings.max_waiting
    assert predictor["timeout"] > settings.seconds
    assert predictor["terminationGracePeriodSeconds"] > settings.drain_seconds + settings.linger_seconds
    assert service["metadata"]["annotations"]["prometheus.io/port"] == str(settings.port)


# the server -----------------------------------------------------------------------------------------------------------


def test_probes_of_the_manifest_are_answered(container: dict[str, Any], bundle: Path, tmp_path: Path) -> None:
    """With the environment of the manifest, except for the folder of the bundle and the port."""
    port = free_port()
    own = {f"{PREFIX}MODEL": str(bundle), f"{PREFIX}PORT": str(port), f"{PREFIX}CACHE": str(tmp_path)}
    paths = [container[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe")]
    command = [sys.executable, "-m", "encore.serving"]
    with started(command, port, {**environment_of(container), **own}, path=paths[0]) as running:
        assert [running.status(path) for path in paths] == [200, 200]


@pytest.fixture(scope="module")
def answers(python: Path, server: Running) -> dict[str, Any]:
    return dict(answer(python, SDK, "ask", server.url, "ranker", asked={"rows": ROWS, "k": K}))


@pytest.fixture(scope="module")
def expected(bundle: Path) -> list[dict[str, Any]]:
    scorer = Scorer.open(bundle)
    return [shown(row, scorer.catalogue) for row in scorer.recommend([Playlist(row) for row in ROWS], K)]


def test_health(answers: dict[str, Any]) -> None:
    assert {name: answers[name] for name in ("live", "ready", "model_ready", "v1_model_ready")} == {
        "live": True,
        "ready": True,
        "model_ready": True,
        "v1_model_ready": True,
    }


def test_strings_come_back_as_bytes(answers: dict[str, Any]) -> None:
    """kserve#6204. The client gives an id, which is repeated."""
    outputs = answers["outputs"]
    assert {name: output[0] for name, output in outputs.items()} == {
        "tracks": "BYTES",
        "scores": "FP32",
        "count": "INT32",
    }
    assert outputs["tracks"][1] == [len(ROWS), K]
    assert outputs["count"][2] == [K] * len(ROWS)
    assert all(uri.startswith("spotify:track:") for row in outputs["tracks"][2] for uri in row)
    assert answers["id_repeated"]


def test_a_request_without_an_id_gets_the_rows_of_the_scorer(
    answers: dict[str, Any], expected: list[dict[str, Any]]
) -> None:
    """kserve#3094."""
    tracks, scores, counts = answers["without_id"]
    assert tracks == [uri for row in expected for uri in row["tracks"]]
    assert scores == pytest.approx([score for row in expected for score in row["scores"]])
    assert counts == [K] * len(ROWS)


def test_v1_gets_the_same_rows(answers: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    predictions = answers["v1"]["predictions"]
    assert [row["tracks"][:K] for row in predictions] == [row["tracks"] for row in expected]


def test_the_client_reads_what_is_wrong(answers: dict[str, Any]) -> None:
    """kserve#2746: BYTES as a bare string."""
    refused = answers["refused"]
    assert refused["status"] == 400
    # the client shows the field `error` of the protocol, and the whole body where it is missing
    assert refused["text"].startswith("inputs.tracks.data: expected a list, found a string, '400 Bad Request'")
    assert answers["no_such_model"]["status"] == 404


def test_metadata(server: Running, answers: dict[str, Any]) -> None:
    with urlopen(f"{server.url}/v2/models/ranker", timeout=30) as found_at:
        found = json.load(found_at)
    assert found["name"] == "ranker"
    assert {output["name"]: output["datatype"] for output in found["outputs"]} == {
        name: output[0] for name, output in answers["outputs"].items()
    }
    (version,) = found["versions"]
    with urlopen(f"{server.url}/v2/models/ranker/versions/{version}/ready", timeout=30) as found_at:
        assert json.load(found_at) == {"name": "ranker", "ready": True}
    with urlopen(f"{server.url}/v2", timeout=30) as found_at:
        assert json.load(found_at)["name"] == "encore"
