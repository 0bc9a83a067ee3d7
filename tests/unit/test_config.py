"""Settings: layers over layers, and every wrong one refused with its origin and its path."""

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
    """No variable of the machine reaches a setting, and conf/ is the repository's."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ENCORE_CONF_DIR", str(REPOSITORY / "conf"))


@pytest.fixture
def write_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteLayer:
    """Write conf/<name>.yaml in a folder of its own, with the repository's base.yaml, and use that folder."""
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


# refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "path", "what"),
    [
        ("recommend.kk=3", "recommend.kk", "unknown key"),
        ("nosuch.section=1", "nosuch", "unknown key"),
        ("recommend.k=abc", "recommend.k", "a valid integer, 'abc' found"),
        ("recommend.k='5'", "recommend.k", "a valid integer, '5' found"),
        ("recommend.k=1.5", "recommend.k", "a valid integer, 1.5 found"),
        ("recommend.k=true", "recommend.k", "a valid integer, True found"),
        ("recommend.k=null", "recommend.k", "a valid integer, None found"),
        ("recommend.k.x=1", "recommend.k", "a valid integer, {'x': 1} found"),
        ("lake.path=123", "lake.path", "a valid string, 123 found"),
        ("lake.path=", "lake.path", "a valid string, None found"),
        ("lake=here", "lake", "a mapping of settings expected, 'here' found"),
        ("s3.path_style=1", "s3.path_style", "a valid boolean, 1 found"),
        ("spark.settings={a: 1}", "spark.settings.a", "a valid string, 1 found"),
        ("recommend.models=cosine", "recommend.models", "a valid tuple, 'cosine' found"),
        ("recommend.models=[cosine,3]", "recommend.models.1", "a valid string, 3 found"),
        ("vectors.weights=[1]", "vectors.weights", "a mapping expected, a list found"),
        ("recommend.k=0", "recommend.k", "greater than or equal to 1, 0 found"),
        ("recommend.seed=-1", "recommend.seed", "greater than or equal to 0, -1 found"),
        ("split.fraction=0", "split.fraction", "greater than 0, 0 found"),
        ("split.fraction=1.0", "split.fraction", "less than 1, 1.0 found"),
        ("features.timeout_seconds=.inf", "features.timeout_seconds", "a finite number, inf found"),
        ("vectors.weights.key=.nan", "vectors.weights.key", "a finite number, nan found"),
        ("vectors.weights.colour=2", "vectors.weights.colour", "unknown feature"),
        ("recommend.models=[]", "recommend.models", "at least 1 item"),
        ("log.level=loud", "log.level", "'debug', 'info', 'warning' or 'error', 'loud' found"),
        ("env=emr", "env", "the name of the environment"),
        ("lake.path=${x.y}", "lake.path", "${x.y} has no value: Interpolation key 'x.y' not found"),
        ("lake.path=${oc.env:NO_SUCH}", "lake.path", "the environment variable NO_SUCH is not set"),
    ],
)
def test_a_wrong_override_is_refused_with_its_path(override: str, path: str, what: str) -> None:
    sentence = refusal(override)
    assert sentence.startswith(f"--set {override}: {path}: ")
    assert what in sentence


@pytest.mark.parametrize(
    ("text", "path", "what"),
    [
        ("recommend: {kk: 3}", "recommend.kk", "unknown key"),
        ("recommend: {k: many}", "recommend.k", "a valid integer, 'many' found"),
        ("recommend: {k: 0}", "recommend.k", "greater than or equal to 1, 0 found"),
        ("recommend: {models: [cosine, 3]}", "recommend.models.1", "a valid string, 3 found"),
        ("recommend: [k]", "recommend", "a mapping expected, a list found"),
        ("recommend: {models: {k: 3}}", "recommend.models", "a list expected, a mapping found"),
        ("lake: null", "lake", "a mapping of settings expected, None found"),
        ("lake: {path: '${oc.env:NO_SUCH}/lake'}", "lake.path", "the environment variable NO_SUCH is not set"),
        ("vectors: {weights: {colour: 1}}", "vectors.weights.colour", "unknown feature"),
        ("env: other", "env", "the name of the environment"),
    ],
)
def test_a_wrong_layer_is_refused_with_its_file_and_path(
    write_layer: WriteLayer, text: str, path: str, what: str
) -> None:
    file = write_layer("mine", text)
    sentence = refusal(env="mine")
    assert sentence.startswith(f"{file}: {path}: ")
    assert what in sentence


def test_of_several_layers_the_one_at_fault_is_named(write_layer: WriteLayer) -> None:
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
        ("- lake\n", "a mapping of settings expected, a list found"),
        ("3", "not YAML settings"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(write_layer: WriteLayer, text: str, what: str) -> None:
    file = write_layer("mine", text)
    sentence = refusal(env="mine")
    assert sentence.startswith(f"{file}: ")
    assert what in sentence


def test_a_file_that_is_not_utf8_is_refused(write_layer: WriteLayer) -> None:
    file = write_layer("mine", "")
    file.write_bytes(b"lake: {path: \xff}")
    assert refusal(env="mine").startswith(f"{file}: not YAML settings")


@pytest.mark.parametrize("override", ["recommend.k", "=3", "", " =3"])
def test_an_override_without_name_or_value_is_refused(override: str) -> None:
    assert refusal(override) == f"--set {override}: a.b=value expected"


@pytest.mark.parametrize("override", ["recommend.k=[1", "lake.path=${bad"])
def test_an_override_that_is_not_yaml_is_refused(override: str) -> None:
    assert refusal(override).startswith(f"--set {override}: not understood: ")


@pytest.mark.parametrize("env", ["nowhere", "base", "", "../conf/base"])
def test_an_unknown_environment_is_refused_with_the_known_ones(env: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"no environment {env!r}")) as caught:
        load_config(env)
    assert caught.value.remedy == "one of: " + ", ".join(ENVIRONMENTS)


# models -------------------------------------------------------------------------------------------------------------


def test_every_knob_says_what_it_changes() -> None:
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
def test_models_are_frozen_strict_and_closed(model: type[BaseModel]) -> None:
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
    assert flat["recommend.models"] == ["cosine", "popularity", "random"]
    assert flat["vectors.weights.key"] == 2
    assert flat["features.columns"] == {}
    assert flat["spark.settings.spark.ui.enabled"] == "false"
    knobs = {name.split(".")[0] for name in flat}
    assert knobs == set(Config.model_fields)


def test_the_yaml_of_a_configuration_gives_it_again(write_layer: WriteLayer) -> None:
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
    assert caught.value.remedy == f"set it, or give --set {path}=VALUE"
    assert load_config("emr", [f"{path}=s3://bucket/other"]).flat()[path] == "s3://bucket/other"


def test_every_layer_of_the_repository_is_tried() -> None:
    assert ENVIRONMENTS == ["emr", "local"]
    assert load_config("local").spark.master == "local[*]"


def test_no_layer_holds_a_secret() -> None:
    def names(prefix: str, value: object) -> list[str]:
        if isinstance(value, dict):
            return [found for name, inner in value.items() for found in names(f"{prefix}.{name}", inner)]
        return [prefix]

    for path in (REPOSITORY / "conf").glob("*.yaml"):
        text = path.read_text()
        assert [name for name in names(path.stem, yaml.safe_load(text)) if is_secret_name(name)] == []
        assert re.findall(r"AKIA[0-9A-Z]{16}|://[^/\s]+:[^/\s]+@", text) == []
    assert [name for name in load_config().flat() if is_secret_name(name)] == []
