"""Settings: how layers combine, and how errors name their origin and path."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from encore.config import Config, conf_dir, load_config
from encore.errors import ConfigError
from encore.log import is_secret_name

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENTS = sorted(path.stem for path in (REPOSITORY / "conf").glob("*.yaml") if path.stem != "base")
VARIABLES = ("AWS_ENDPOINT_URL", "AWS_REGION", "MLFLOW_TRACKING_URI", "ENCORE_LAKE", "ENCORE_RAW", "ENCORE_FEATURES")

WriteLayer = Callable[[str, str], Path]


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset the environment variables that settings read, and use the repository's conf/."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ENCORE_CONF_DIR", str(REPOSITORY / "conf"))


@pytest.fixture
def write_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteLayer:
    """Write conf/<name>.yaml to a temporary folder with the repository's base.yaml, and use that folder."""
    (tmp_path / "base.yaml").write_text((REPOSITORY / "conf" / "base.yaml").read_text())
    monkeypatch.setenv("ENCORE_CONF_DIR", str(tmp_path))

    def write(name: str, text: str) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        return path

    return write


def refusal(*overrides: str, env: str = "local") -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(env, overrides)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def models(model: type[BaseModel] = Config) -> list[type[BaseModel]]:
    inner = [field.annotation for field in model.model_fields.values()]
    return [
        model,
        *(m for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel) for m in models(kind)),
    ]


# layers -------------------------------------------------------------------------------------------------------------


def test_a_later_layer_wins(write_layer: WriteLayer) -> None:
    write_layer("mine", "recommend: {k: 20}\nsplit: {seed: 7}\n")
    config = load_config("mine", ["split.seed=8", "split.seed=9"])
    assert (config.recommend.query_block, config.recommend.k, config.split.seed) == (256, 20, 9)
    assert config.env == "mine"


def test_a_layer_adds_to_a_mapping_and_replaces_a_list(write_layer: WriteLayer) -> None:
    write_layer("mine", "spark: {settings: {spark.a: x}}\nrecommend: {models: [random]}\n")
    config = load_config("mine", ["vectors.weights={tempo: 2, key: 0}", "vectors.weights.mode=3"])
    assert config.spark.settings == {"spark.a": "x"}
    assert config.recommend.models == ("random",)
    assert config.vectors.weights == {"tempo": 2, "key": 0, "mode": 3}


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("recommend.k=7", "recommend.k", 7),
        ("split.fraction=0.5", "split.fraction", 0.5),
        ("features.backoff_seconds=2", "features.backoff_seconds", 2.0),
        ("ingest.trust_timestamps=false", "ingest.trust_timestamps", False),
        ("raw.features=null", "raw.features", None),
        ("lake.path='123'", "lake.path", "123"),
        ("lake.path=s3://bucket/a=b", "lake.path", "s3://bucket/a=b"),
        ("recommend.models=[cosine]", "recommend.models", ["cosine"]),
        ("report.path=${lake.path}/report", "report.path", "data/lake/report"),
    ],
)
def test_an_override_is_a_yaml_value(override: str, path: str, value: object) -> None:
    assert load_config("local", [override]).flat()[path] == value


def test_the_environment_is_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    without = load_config()
    assert (without.s3.endpoint, without.tracking.uri) == (None, "sqlite:///data/mlflow.db")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:8333")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    found = load_config()
    assert (found.s3.endpoint, found.tracking.uri) == ("http://127.0.0.1:8333", "http://127.0.0.1:5000")


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
    assert (load_config().s3.endpoint, load_config().tracking.uri) == (None, "sqlite:///data/mlflow.db")
    assert "the environment variable ENCORE_LAKE is not set" in refusal(env="emr")


def test_the_folder_of_layers_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENCORE_CONF_DIR")
    monkeypatch.chdir(tmp_path)
    assert conf_dir() == REPOSITORY / "conf"
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "base.yaml").touch()
    assert conf_dir() == Path("conf")
    monkeypatch.setenv("ENCORE_CONF_DIR", "/nowhere")
    with pytest.raises(ConfigError, match=r"no conf/base\.yaml found in /nowhere") as caught:
        conf_dir()
    assert "ENCORE_CONF_DIR" in str(caught.value.remedy)


# errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "path", "what"),
    [
        ("recommend.kk=3", "recommend.kk", "unknown key"),
        ("nosuch.section=1", "nosuch", "unknown key"),
        ("recommend.k=abc", "recommend.k", "a valid integer, found 'abc'"),
        ("recommend.k='5'", "recommend.k", "a valid integer, found '5'"),
        ("recommend.k=1.5", "recommend.k", "a valid integer, found 1.5"),
        ("recommend.k=true", "recommend.k", "a valid integer, found True"),
        ("recommend.k=null", "recommend.k", "a valid integer, found None"),
        ("recommend.k.x=1", "recommend.k", "a valid integer, found {'x': 1}"),
        ("lake.path=123", "lake.path", "a valid string, found 123"),
        ("lake.path=", "lake.path", "a valid string, found None"),
        ("lake=here", "lake", "expected a mapping of settings, found 'here'"),
        ("s3.path_style=1", "s3.path_style", "a valid boolean, found 1"),
        ("spark.settings={a: 1}", "spark.settings.a", "a valid string, found 1"),
        ("recommend.models=cosine", "recommend.models", "a valid tuple, found 'cosine'"),
        ("recommend.models=[cosine,3]", "recommend.models.1", "a valid string, found 3"),
        ("vectors.weights=[1]", "vectors.weights", "expected a mapping, found a list"),
        ("recommend.k=0", "recommend.k", "greater than or equal to 1, found 0"),
        ("recommend.seed=-1", "recommend.seed", "greater than or equal to 0, found -1"),
        ("split.fraction=0", "split.fraction", "greater than 0, found 0"),
        ("split.fraction=1.0", "split.fraction", "less than 1, found 1.0"),
        ("features.timeout_seconds=.inf", "features.timeout_seconds", "a finite number, found inf"),
        ("vectors.weights.key=.nan", "vectors.weights.key", "a finite number, found nan"),
        ("vectors.weights.colour=2", "vectors.weights.colour", "unknown feature"),
        ("recommend.models=[]", "recommend.models", "at least 1 item"),
        ("log.level=loud", "log.level", "'debug', 'info', 'warning' or 'error', found 'loud'"),
        ("env=emr", "env", "the name of the environment"),
        ("lake.path=${x.y}", "lake.path", "${x.y} has no value: Interpolation key 'x.y' not found"),
        ("lake.path=${oc.env:NO_SUCH}", "lake.path", "the environment variable NO_SUCH is not set"),
    ],
)
def test_an_invalid_override_is_reported_with_its_path(override: str, path: str, what: str) -> None:
    sentence = refusal(override)
    assert sentence.startswith(f"--set {override}: {path}: ")
    assert what in sentence


@pytest.mark.parametrize(
    ("text", "path", "what"),
    [
        ("recommend: {kk: 3}", "recommend.kk", "unknown key"),
        ("recommend: {k: many}", "recommend.k", "a valid integer, found 'many'"),
        ("recommend: {k: 0}", "recommend.k", "greater than or equal to 1, found 0"),
        ("recommend: {models: [cosine, 3]}", "recommend.models.1", "a valid string, found 3"),
        ("recommend: [k]", "recommend", "expected a mapping, found a list"),
        ("recommend: {models: {k: 3}}", "recommend.models", "expected a list, found a mapping"),
        ("lake: null", "lake", "expected a mapping of settings, found None"),
        ("lake: {path: '${oc.env:NO_SUCH}/lake'}", "lake.path", "the environment variable NO_SUCH is not set"),
        ("vectors: {weights: {colour: 1}}", "vectors.weights.colour", "unknown feature"),
        ("env: other", "env", "the name of the environment"),
    ],
)
def test_an_invalid_layer_is_reported_with_its_file_and_path(
    write_layer: WriteLayer, text: str, path: str, what: str
) -> None:
    file = write_layer("mine", text)
    sentence = refusal(env="mine")
    assert sentence.startswith(f"{file}: {path}: ")
    assert what in sentence


def test_the_layer_at_fault_is_named(write_layer: WriteLayer) -> None:
    file = write_layer("mine", "recommend: {k: 0}\nsplit: {fraction: 2}\n")
    sentence = refusal("split.fraction=3", "recommend.seed=1", env="mine")
    assert f"{file}: recommend.k: " in sentence
    assert "--set split.fraction=3: split.fraction: " in sentence


def test_a_missing_setting_is_named(write_layer: WriteLayer) -> None:
    base = write_layer("base", "lake: {path: x}\n")
    write_layer("mine", "")
    assert f"{base}: raw: missing" in refusal(env="mine")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("lake: [", "not YAML settings"),
        ("lake: 1\nlake: 2\n", "duplicate key lake"),
        ("- lake\n", "expected a mapping of settings, found a list"),
        ("3", "not YAML settings"),
    ],
)
def test_a_file_that_is_not_a_mapping_is_an_error(write_layer: WriteLayer, text: str, what: str) -> None:
    file = write_layer("mine", text)
    sentence = refusal(env="mine")
    assert sentence.startswith(f"{file}: ")
    assert what in sentence


def test_a_file_that_is_not_utf8_is_an_error(write_layer: WriteLayer) -> None:
    file = write_layer("mine", "")
    file.write_bytes(b"lake: {path: \xff}")
    assert refusal(env="mine").startswith(f"{file}: not YAML settings")


@pytest.mark.parametrize("override", ["recommend.k", "=3", "", " =3"])
def test_an_override_without_name_or_value_is_an_error(override: str) -> None:
    assert refusal(override) == f"--set {override}: expected a.b=value"


@pytest.mark.parametrize("override", ["recommend.k=[1", "lake.path=${bad"])
def test_an_override_that_is_not_yaml_is_an_error(override: str) -> None:
    assert refusal(override).startswith(f"--set {override}: invalid YAML: ")


@pytest.mark.parametrize("env", ["nowhere", "base", "", "../conf/base"])
def test_an_unknown_environment_is_an_error_that_lists_the_known_ones(env: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"no environment {env!r}")) as caught:
        load_config(env)
    assert caught.value.remedy == "one of: " + ", ".join(ENVIRONMENTS)


# models -------------------------------------------------------------------------------------------------------------


def test_every_setting_has_a_description() -> None:
    silent = [
        f"{model.__name__}.{name}"
        for model in models()
        for name, field in model.model_fields.items()
        if not field.description
        and not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel))
    ]
    assert silent == []
    assert len(models()) > 10


@pytest.mark.parametrize("model", models(), ids=lambda model: model.__name__)
def test_models_are_frozen_strict_and_forbid_extra_keys(model: type[BaseModel]) -> None:
    assert model.model_config["frozen"]
    assert model.model_config["strict"]
    assert model.model_config["extra"] == "forbid"


def test_a_setting_cannot_be_changed() -> None:
    config = load_config()
    with pytest.raises(ValidationError, match="frozen"):
        config.recommend.k = 3  # type: ignore[misc]


def test_flat_has_every_setting_by_its_path() -> None:
    flat = load_config("local", ["vectors.weights.key=2"]).flat()
    assert flat["env"] == "local"
    assert flat["recommend.models"][0] == "ranker"
    assert flat["vectors.weights.key"] == 2
    assert flat["features.columns"] == {}
    assert flat["spark.settings.spark.ui.enabled"] == "false"
    sections = {name.split(".")[0] for name in flat}
    assert sections == set(Config.model_fields)


def test_yaml_round_trip(write_layer: WriteLayer) -> None:
    write_layer("local", "split: {seed: 3}")
    config = load_config("local", ["recommend.k=9"])
    text = config.yaml()
    assert text.startswith("env: local\n")
    write_layer("base", text.removeprefix("env: local\n"))
    write_layer("local", "")
    assert load_config() == config


# the repository's own layers ----------------------------------------------------------------------------------------


def test_emr_loads_with_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENCORE_LAKE", "s3://bucket/lake")
    monkeypatch.setenv("ENCORE_RAW", "s3://bucket/raw")
    config = load_config("emr")
    assert (config.lake.path, config.raw.playlists, config.raw.features) == (
        "s3://bucket/lake",
        "s3://bucket/raw",
        None,
    )
    assert config.spark.master is None
    assert config.log.format == "json"


@pytest.mark.parametrize(
    ("given", "wanting", "path"),
    [("ENCORE_RAW", "ENCORE_LAKE", "lake.path"), ("ENCORE_LAKE", "ENCORE_RAW", "raw.playlists")],
)
def test_emr_without_a_variable_says_which(
    monkeypatch: pytest.MonkeyPatch, given: str, wanting: str, path: str
) -> None:
    monkeypatch.setenv(given, "s3://bucket/given")
    with pytest.raises(ConfigError) as caught:
        load_config("emr")
    file = REPOSITORY / "conf" / "emr.yaml"
    assert str(caught.value) == f"{file}: {path}: the environment variable {wanting} is not set"
    assert caught.value.remedy == f"set it, or use --set {path}=VALUE"
    assert load_config("emr", [f"{path}=s3://bucket/other"]).flat()[path] == "s3://bucket/other"


def test_every_layer_of_the_repository_is_tested() -> None:
    assert ENVIRONMENTS == ["emr", "local"]
    assert load_config("local").spark.master == "local[*]"


def test_no_layer_contains_a_secret() -> None:
    def names(prefix: str, value: object) -> list[str]:
        if isinstance(value, dict):
            return [found for name, inner in value.items() for found in names(f"{prefix}.{name}", inner)]
        return [prefix]

    for path in (REPOSITORY / "conf").glob("*.yaml"):
        text = path.read_text()
        assert [name for name in names(path.stem, yaml.safe_load(text)) if is_secret_name(name)] == []
        assert re.findall(r"AKIA[0-9A-Z]{16}|://[^/\s]+:[^/\s]+@", text) == []
    assert [name for name in load_config().flat() if is_secret_name(name)] == []
