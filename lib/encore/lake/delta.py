"""Where the tables of a lake are, and how delta-rs opens them. Reading, writing and maintenance build on it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from encore.config import Config
from encore.errors import LakeError
from encore.lake.filesystem import is_s3
from encore.lake.parquet import TableLocation
from encore.lake.schema import schema_differences
from encore.lake.tables import Table

MAINTENANCE = frozenset(
    {"OPTIMIZE", "VACUUM START", "VACUUM END", "SET TBLPROPERTIES", "ADD CONSTRAINT", "CREATE TABLE"}
)
"""Operations that change no row: a table's data version is that of the last other one."""


@dataclass(frozen=True)
class Commit:
    """What a job leaves in a commit's metadata: from what it was made, and which part of the work it was."""

    job: str
    run_id: str
    fingerprint: str
    part: str = "all"

    def json(self) -> str:
        """The form in which it stands in the Delta log."""
        return json.dumps({"encore": self.__dict__}, sort_keys=True)

    @staticmethod
    def parse(text: str | None) -> Commit | None:
        """The Commit in a log entry's userMetadata; None where another program wrote it."""
        try:
            found = json.loads(text or "")["encore"]
            return Commit(**found)
        except (ValueError, KeyError, TypeError):
            return None


class Tables:
    """The tables of one lake: their places, and each as delta-rs opens it."""

    def __init__(self, config: Config) -> None:
        self.path = config.lake.path.removeprefix("file://").rstrip("/")
        self._config = config

    @cached_property
    def options(self) -> dict[str, str]:
        """What delta-rs needs to reach S3; credentials it takes from the environment itself."""
        if not is_s3(self.path):
            return {}
        s3 = self._config.s3
        options = {"aws_conditional_put": "etag"}
        if s3.endpoint:
            options["aws_endpoint"] = s3.endpoint
            options["aws_allow_http"] = str(s3.endpoint.startswith("http://")).lower()
            options["aws_virtual_hosted_style_request"] = str(not s3.path_style).lower()
        if s3.region:
            options["aws_region"] = s3.region
        return options

    def uri(self, table: Table) -> str:
        """Where a table is, as Spark writes it (Hadoop's name of S3 is s3a)."""
        return f"{self.root}/{table.name}".replace("s3://", "s3a://", 1)

    def url(self, table: Table) -> str:
        """Where a table is, as the AWS tools and delta-rs write it."""
        return f"{self.root}/{table.name}".replace("s3a://", "s3://", 1)

    @property
    def root(self) -> str:
        """The lake: an absolute path, or its prefix in S3."""
        return self.path if is_s3(self.path) else os.path.abspath(self.path)

    def open(self, table: Table) -> DeltaTable | None:
        """The newest version of a table, None where it does not exist. LakeError where it cannot be read."""
        try:
            return DeltaTable(self.url(table), storage_options=self.options)
        except TableNotFoundError:
            return None
        except (DeltaError, OSError) as error:
            raise LakeError(f"{self.uri(table)}: cannot be read: {first_line(error)}") from error

    def there(self, table: Table) -> DeltaTable:
        """As `open`. Raises LakeError where the table is not there."""
        found = self.open(table)
        if found is None:
            raise LakeError(f"{self.uri(table)}: the table is not there")
        return found

    def location(self, table: Table) -> TableLocation:
        """Where workers write files of a table."""
        return TableLocation(self.url(table), self._config.s3)

    def check_schema(self, table: Table, found: DeltaTable) -> None:
        """Raise LakeError where a table has another schema than its declaration."""
        differences = schema_differences(table, found)
        if differences:
            raise LakeError(
                f"the lake {self.path} was made by another schema: {table.name}: " + "; ".join(differences),
                remedy="choose another lake.path, or move this lake away",
            )


def data_files(found: DeltaTable) -> list[dict[str, Any]]:
    """The data files of the version that is loaded: path, size, rows, partition.<name>, min.<name>, max.<name>."""
    return pa.table(found.get_add_actions(flatten=True)).to_pylist()


def first_line(error: BaseException) -> str:
    """The first line of a message that says something, else the name of the error."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
