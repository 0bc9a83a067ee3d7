"""The registry over HTTP: aliases become versions, and versions become folders that are complete."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from encore.errors import ConfigError, EnvironmentMissing, InputError, TransientError
from encore.serving import registry as module
from encore.serving.bundle import verify
from encore.serving.models import Resolved
from encore.serving.registry import RegisteredModel, Registry
from encore.serving.settings import Settings
from encore.serving.sources import source_of
from tests.unit.serving.bundles import small_bundle
from tests.unit.serving.registry_server import NAME, State, registry_server

CHAMPION = f"models:/{NAME}@champion"


@pytest.fixture
def state(tmp_path: Path) -> State:
    """A server that has the small bundle as versions 1, 2 and 3; version 1 is the champion."""
    found = State(tmp_path / "artifacts", aliases={"champion": "1"})
    for version in "123":
        shutil.copytree(small_bundle("popularity"), found.files / f"1/models/m-{version}/artifacts/artifacts/bundle")
        found.locations[version] = f"mlflow-artifacts:/1/models/m-{version}/artifacts"
    return found


@pytest.fixture
def address(state: State) -> Iterator[str]:
    with registry_server(state) as found:
        yield found


@pytest.fixture
def source(address: str, tmp_path: Path) -> RegisteredModel:
    return RegisteredModel(Registry(address, {}), CHAMPION, tmp_path / "cache")


@pytest.fixture
def bundle_file(state: State) -> Callable[[str], Path]:
    """A file of a version on the server."""
    return lambda name: state.files / "1/models/m-1/artifacts/artifacts/bundle" / name


def test_aliases_are_resolved_once_with_the_challengers_tags(source: RegisteredModel, state: State) -> None:
    assert source.resolve() == Resolved("1")
    state.aliases["challenger"] = "2"
    state.tags["2"] = {"encore.canary.weight": "0.1"}
    assert source.resolve() == Resolved("1", "2", {"encore.canary.weight": "0.1"})
    state.aliases["challenger"] = "1"
    # a scorer that was killed while it promoted the version leaves it so, and the next one removes the alias
    assert source.resolve() == Resolved("1", "1", {})


def test_without_an_alias_or_a_model_there_is_no_champion(address: str, state: State, tmp_path: Path) -> None:
    state.aliases.clear()
    for model in (CHAMPION, "models:/encore-none@champion"):
        assert RegisteredModel(Registry(address, {}), model, tmp_path).resolve() == Resolved(None)


def test_a_fixed_version_needs_no_registry(tmp_path: Path) -> None:
    source = RegisteredModel(Registry("http://127.0.0.1:9", {}), f"models:/{NAME}/3", tmp_path)
    assert source.resolve() == Resolved("3")


def test_aliases_and_tags_are_written(source: RegisteredModel, state: State) -> None:
    source.set_alias("challenger", "2")
    source.set_tag("2", "encore.canary.state", "promoted")
    assert state.aliases["challenger"] == "2"
    assert state.tags["2"] == {"encore.canary.state": "promoted"}
    source.delete_alias("challenger")
    source.delete_alias("challenger")
    assert state.aliases == {"champion": "1"}


def test_a_version_is_downloaded_once_and_verified(source: RegisteredModel, state: State) -> None:
    folder = source.fetch("1")
    assert verify(folder) == verify(small_bundle("popularity"))
    before = len(state.requests)
    assert source.fetch("1") == folder
    assert len(state.requests) == before + 1, "only the location is asked for"


def test_the_two_newest_downloads_are_kept(source: RegisteredModel) -> None:
    folders = [source.fetch(version) for version in "123"]
    assert [folder.exists() for folder in folders] == [False, True, True]
    source.fetch("2")
    source.fetch("1")
    assert [folder.exists() for folder in folders] == [True, True, False]


def test_a_broken_connection_is_tried_again(source: RegisteredModel, state: State) -> None:
    state.broken = 2
    verify(source.fetch("1"))
    state.broken = 3
    with pytest.raises(TransientError, match=r"manifest\.json"):
        source.fetch("2")
    assert not list(source.fetch("1").parent.glob(".partial-*"))


def test_a_damaged_bundle_never_gets_a_name(
    source: RegisteredModel, bundle_file: Callable[[str], Path], tmp_path: Path
) -> None:
    path = bundle_file("catalogue/popularity.npy")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"popularity\.npy"):
        source.fetch("1")
    assert list((tmp_path / "cache" / NAME).iterdir()) == []


def test_a_damaged_download_is_replaced(source: RegisteredModel) -> None:
    folder = source.fetch("1")
    (folder / "catalogue" / "popularity.npy").unlink()
    assert source.fetch("1") == folder
    verify(folder)


def test_a_manifest_cannot_name_files_elsewhere(
    source: RegisteredModel, bundle_file: Callable[[str], Path], tmp_path: Path
) -> None:
    path = bundle_file("manifest.json")
    path.write_text(path.read_text().replace('"catalogue/popularity.npy"', '"../../../stolen.npy"'))
    with pytest.raises(InputError, match="outside of the bundle"):
        source.fetch("1")
    assert not list(tmp_path.rglob("stolen.npy"))


def test_too_little_disk_space_is_said(source: RegisteredModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 10))  # type: ignore[attr-defined]
    with pytest.raises(EnvironmentMissing, match=r"expected room for [0-9,]+ bytes, found 10"):
        source.fetch("1")


def test_files_of_this_machine_are_used_in_place(source: RegisteredModel, state: State, tmp_path: Path) -> None:
    place = state.files / "1/models/m-1/artifacts"
    state.locations["1"] = place.as_uri()
    assert source.fetch("1") == place / "artifacts/bundle"
    assert not (tmp_path / "cache").exists()


def test_other_stores_are_refused(source: RegisteredModel, state: State) -> None:
    state.locations["1"] = "s3://bucket/models/m-1"
    with pytest.raises(InputError, match="s3://, which the scorer does not read") as caught:
        source.fetch("1")
    assert "--serve-artifacts" in str(caught.value.remedy)


BASIC = "Basic " + base64.b64encode(b"me:secret").decode()


@pytest.mark.parametrize(
    ("login", "environment"),
    [
        ("Bearer abc", {"MLFLOW_TRACKING_TOKEN": "abc"}),
        (BASIC, {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "secret"}),
    ],
)
def test_logins_come_from_the_environment(
    address: str, state: State, tmp_path: Path, login: str, environment: dict[str, str]
) -> None:
    state.login = login
    assert RegisteredModel(Registry(address, environment), CHAMPION, tmp_path).resolve() == Resolved("1")
    with pytest.raises(TransientError, match="status 401 UNAUTHENTICATED"):
        RegisteredModel(Registry(address, {}), CHAMPION, tmp_path).resolve()


def test_a_login_in_the_address_is_used_and_never_shown(address: str, state: State, tmp_path: Path) -> None:
    state.login = BASIC
    found = Registry(address.replace("://", "://me:secret@"), {})
    assert RegisteredModel(found, CHAMPION, tmp_path).resolve() == Resolved("1")
    state.failing = 3
    with pytest.raises(TransientError) as caught:
        found.aliases(NAME)
    assert "secret" not in f"{caught.value} {caught.value.remedy}"


def test_logins_are_not_sent_elsewhere(address: str, state: State, tmp_path: Path) -> None:
    with registry_server(other := State(tmp_path)) as elsewhere:
        state.redirect = f"{elsewhere}/api/2.0/mlflow/registered-models/get?name={NAME}"
        with pytest.raises(TransientError, match="status 302"):
            Registry(address, {"MLFLOW_TRACKING_TOKEN": "abc"}).aliases(NAME)
        assert other.requests == []


def test_a_server_that_recovers_is_asked_again(source: RegisteredModel, state: State) -> None:
    state.failing = 2
    assert source.resolve() == Resolved("1")
    state.failing = 1
    with pytest.raises(TransientError, match="status 503"):
        source.set_tag("1", "a", "b")
    assert state.tags == {}, "a change is not repeated"


def test_a_server_that_is_down_is_a_transient_error(tmp_path: Path) -> None:
    source = RegisteredModel(Registry("http://127.0.0.1:9", {}), CHAMPION, tmp_path)
    with pytest.raises(TransientError, match=r"the registry http://127\.0\.0\.1:9"):
        source.resolve()


@pytest.mark.parametrize("model", ["encore-ranker", "models:/encore-ranker", "models:/a/b", "models:/../x@champion"])
def test_other_forms_of_a_model_are_refused(model: str) -> None:
    with pytest.raises(ConfigError, match="expected models:/NAME@ALIAS"):
        RegisteredModel.parse(model)


def test_settings_name_the_source(address: str, tmp_path: Path) -> None:
    found = source_of(Settings(model=CHAMPION, registry=address, cache=str(tmp_path)))
    assert isinstance(found, RegisteredModel)
    assert found.resolve() == Resolved("1")
    with pytest.raises(ConfigError, match="no registry is named"):
        source_of(Settings(model=CHAMPION))
    for wrong in ("mlflow:5000", "file:///tmp", "http://"):
        with pytest.raises(ConfigError, match="expected an address"):
            source_of(Settings(model=CHAMPION, registry=wrong))
