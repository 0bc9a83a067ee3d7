"""A session for tests whose tasks need no JVM."""

from __future__ import annotations

import pytest

from encore.spark.session import Session
from tests.conftest import settings
from tests.local_spark import LocalSession


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Runs tasks in this process, because what they compute is tested elsewhere."""
    folder = tmp_path_factory.mktemp("tasks")
    return LocalSession(settings(folder / "lake"), folder / "files")
