"""Arrays of fitted models in the lake: whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from encore.config import S3Config
from encore.errors import EnvironmentMissing, LakeError
from encore.lake.model_arrays import MANIFEST, ModelArrays

ARRAYS = {"one": np.arange(6, dtype=np.float32).reshape(2, 3), "none": np.empty(0, np.int32), "single": np.array(7)}


@pytest.fixture
def stored(tmp_path: Path) -> ModelArrays:
    return ModelArrays(str(tmp_path), S3Config(endpoint=None, region=None, path_style=False))


def test_arrays_come_back_mapped_and_read_only(stored: ModelArrays) -> None:
    about = stored.write("ials", "f1", ARRAYS)
    back = stored.open("ials", "f1")
    assert set(back) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(back[name], array)
    assert isinstance(back["one"].base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        back["one"][0, 0] = 1
    assert about.size == sum(array.nbytes for array in ARRAYS.values())
    assert about.arrays == {"none": "int32 (0,)", "one": "float32 (2, 3)", "single": "int64 ()"}


def test_the_digest_is_that_of_the_contents(stored: ModelArrays) -> None:
    digest = stored.write("ials", "f1", ARRAYS).digest
    assert stored.write("ials", "f2", dict(reversed(ARRAYS.items()))).digest == digest
    assert stored.write("ials", "f3", {**ARRAYS, "one": ARRAYS["one"] + 1}).digest != digest
    assert stored.write("ials", "f4", {**ARRAYS, "one": ARRAYS["one"].reshape(3, 2)}).digest != digest


def test_arrays_that_are_not_all_there_do_not_exist(
    stored: ModelArrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not stored.has("ials", "f1")
    with pytest.raises(LakeError, match="no arrays of a fitted model"):
        stored.open("ials", "f1")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(EnvironmentMissing, match="no space left"):
            stored.write("ials", "f1", ARRAYS)
    assert list((tmp_path / "_models" / "ials").iterdir()) == []
    stored.write("ials", "f1", ARRAYS)
    (tmp_path / "_models" / "ials" / "f1" / "one.npy").unlink()
    assert not stored.has("ials", "f1")
    stored.write("ials", "f1", ARRAYS)
    (tmp_path / "_models" / "ials" / "f1" / MANIFEST).unlink()
    assert not stored.has("ials", "f1")


def test_what_is_stored_is_listed_and_deleted(stored: ModelArrays) -> None:
    stored.write("ials", "f1", ARRAYS)
    stored.write("title", "f2", ARRAYS)
    stored.write_token("run")
    assert stored.fitted() == {("ials", "f1"), ("title", "f2")}
    stored.delete("ials", "f1")
    stored.delete("ials", "f1")
    assert stored.fitted() == {("title", "f2")}


def test_the_token_changes_only_if_something_was_missing(stored: ModelArrays) -> None:
    assert stored.token("first", complete=True) == "first"
    stored.write_token("first")
    assert stored.token("second", complete=True) == "first"
    assert stored.token("second", complete=False) == "second"
