"""What each job may access: IAM statements derived from the tables that it declares to read and write.

Each job has its own role. It may read the tables in READS and WRITES, write those in WRITES and the framework's two
tables, in which every job records how it ended, take the lake's lock, and use its own prefixes in the other buckets.
Nothing is granted on a whole bucket. People who analyse the tables have a role too, which reads all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from encore.lake.lock import NAME as LOCK
from encore.lake.model_arrays import FOLDER as ARRAYS
from encore.lake.probe import FOLDER as PROBE
from encore.lake.tables import ALL, FRAMEWORK, MODELS, Table
from encore.runtime.graph import Node
from encore.runtime.registry import SMOKE

Statement = dict[str, Any]

RAW = {"ingest_playlists": ("playlists", "tracks"), "ingest_features": ("features",)}
"""Jobs that read raw data, and the folders of the raw bucket that each may read."""

READ_OBJECTS = ("s3:GetObject",)
WRITE_OBJECTS = ("s3:AbortMultipartUpload", "s3:DeleteObject", "s3:PutObject")
"""DeleteObject, since Delta deletes expired log files and Hadoop its temporary files."""

TRACKING = (
    "CreateExperiment",
    "CreateRun",
    "GetExperimentByName",
    "GetRun",
    "LogBatch",
    "LogInputs",
    "SearchRuns",
    "SetExperimentTag",
    "SetTag",
    "UpdateRun",
)
"""The MLflow actions that jobs need, by SageMaker's names: its server authenticates callers by their IAM role."""

APP_CALL = "sagemaker:CallMlflowAppApi"
"""The action that each request to an MLflow app of SageMaker's needs."""

REGISTERS = "register_models"
"""The job that registers models."""

REGISTRY = {
    REGISTERS: (
        "CreateModelVersion",
        "CreateRegisteredModel",
        "FinalizeLoggedModel",
        "GetDownloadURIForModelVersionArtifacts",
        "GetLoggedModel",
        "GetRegisteredModel",
        "LogModel",
        "LogOutputs",
        "SearchModelVersions",
        "SetModelVersionTag",
        "SetRegisteredModelAlias",
    ),
    "record_canary": ("GetRegisteredModel", "SearchModelVersions", "SearchRegisteredModels"),
}
"""The MLflow actions that jobs need in addition, by job. LogModel: IAM has no action of its own for logged models."""


@dataclass(frozen=True)
class Buckets:
    """ARNs of the buckets, and the prefix of the tables in the lake bucket, without a trailing slash."""

    lake: str
    raw: str
    code: str
    logs: str
    prefix: str = "lake"


def statements(node: Node, buckets: Buckets, upkeep: Sequence[Table] = ()) -> list[Statement]:
    """All that a job's role may do in S3. `upkeep`: tables that it maintains, without being their writer."""
    reads = _names([*node.reads, *node.writes, *upkeep, *FRAMEWORK])
    writes = _names([*node.writes, *upkeep, *FRAMEWORK])
    tables = f"{buckets.lake}/{buckets.prefix}"
    own = f"{buckets.prefix}/_scratch/{node.name}-*"
    found = [
        _allow("ReadTables", READ_OBJECTS, [f"{tables}/{name}/*" for name in reads]),
        _allow("WriteTables", WRITE_OBJECTS, [f"{tables}/{name}/*" for name in writes]),
        _list("ListTables", buckets.lake, [part for name in reads for part in _under(f"{buckets.prefix}/{name}")]),
        # the object is replaced, never deleted
        _allow("Lock", ("s3:GetObject", "s3:PutObject"), [f"{tables}/{LOCK}"]),
        _allow("Scratch", (*READ_OBJECTS, *WRITE_OBJECTS), [f"{buckets.lake}/{own}"]),
        _list("ListScratch", buckets.lake, [own]),
        _allow("ReadCode", READ_OBJECTS, [f"{buckets.code}/*"]),
        _allow(
            "WriteLogs",
            ("s3:AbortMultipartUpload", "s3:PutObject"),
            [f"{buckets.logs}/{kind}/{node.name}/*" for kind in ("logs", "outcomes")],
        ),
    ]
    if node.name == SMOKE:
        found.append(_allow("Probe", (*READ_OBJECTS, *WRITE_OBJECTS), [f"{tables}/{PROBE}/*"]))
        found.append(_list("ListProbe", buckets.lake, _under(f"{buckets.prefix}/{PROBE}")))
    if node.name in RAW:
        folders = RAW[node.name]
        found.append(_allow("ReadRaw", READ_OBJECTS, [f"{buckets.raw}/{folder}/*" for folder in folders]))
        found.append(_list("ListRaw", buckets.raw, [part for folder in folders for part in _under(folder)]))
    return found


def cluster_statements(buckets: Buckets) -> list[Statement]:
    """What the nodes of a cluster may do in S3: the union of all jobs' permissions, since all jobs share the nodes.

    Code and raw data are read-only; `cluster/` is where EMR puts the nodes' own logs.
    """
    tables = f"{buckets.lake}/{buckets.prefix}"
    folders = sorted(folder for own in RAW.values() for folder in own)
    return [
        _allow("Tables", (*READ_OBJECTS, *WRITE_OBJECTS), [f"{tables}/*"]),
        _list("ListTables", buckets.lake, _under(buckets.prefix)),
        _allow("ReadCode", READ_OBJECTS, [f"{buckets.code}/*"]),
        _allow("ReadRaw", READ_OBJECTS, [f"{buckets.raw}/{folder}/*" for folder in folders]),
        _list("ListRaw", buckets.raw, [part for folder in folders for part in _under(folder)]),
        _allow(
            "WriteLogs",
            ("s3:AbortMultipartUpload", "s3:PutObject"),
            [f"{buckets.logs}/{kind}/*" for kind in ("logs", "outcomes", "cluster")],
        ),
    ]


def tracking_statements(server: str, artefacts: str, job: str | None = None) -> list[Statement]:
    """What a job may do with an MLflow server or app that SageMaker manages; `server` and `artefacts` are ARNs.

    Jobs write artefacts directly to the bucket. REGISTERS also reads them, to compare a model with the champion. With a
    server, jobs may delete nothing; an app has one IAM action for whatever is asked of it, deletions included. `job`:
    None for whoever runs any of them.
    """
    registry = [*REGISTRY] if job is None else [job]
    actions = sorted({*TRACKING, *(action for name in registry for action in REGISTRY.get(name, ()))})
    calls = [f"sagemaker-mlflow:{action}" for action in actions]
    found = [
        _allow("Tracking", [APP_CALL] if ":mlflow-app/" in server else calls, [server]),
        _allow("Artefacts", ("s3:AbortMultipartUpload", "s3:PutObject"), [f"{artefacts}/*"]),
    ]
    if REGISTERS in registry:
        bucket, _, folder = artefacts.rpartition("/")
        found.append(_allow("ReadArtefacts", READ_OBJECTS, [f"{artefacts}/*"]))
        found.append(_list("ListArtefacts", bucket, _under(folder)))
    return found


READERS = "readers"
"""The folder of the bucket of results, and the end of the name of the workgroup, of people who only read tables."""

READ_ONLY = ("s3:GetBucketLocation", "s3:GetObject", "s3:ListBucket")
"""All that readers may do in the lake's bucket, whatever else is granted to their role."""

_QUERIES = (
    "BatchGetQueryExecution",
    "GetQueryExecution",
    "GetQueryResults",
    "GetQueryResultsStream",
    "GetQueryRuntimeStatistics",
    "GetWorkGroup",
    "ListQueryExecutions",
    "StartQueryExecution",
    "StopQueryExecution",
)


def reader_statements(buckets: Buckets, results: str, athena: str, glue: str, database: str) -> list[Statement]:
    """What people who analyse the tables may do: read every table, query them in Athena, keep results of queries.

    `results`: ARN of the bucket of results; `athena` and `glue`: beginnings of ARNs, arn:aws:athena:REGION:ACCOUNT;
    `database`: name of the database, encore_STAGE. The stage's workgroup for readers has the name encore-STAGE-readers.
    """
    names = sorted(table.name for table in ALL)
    workgroup = f"{database.replace('_', '-')}-{READERS}"
    return [
        _allow("Query", [f"athena:{name}" for name in _QUERIES], [f"{athena}:workgroup/{workgroup}"]),
        _allow(
            "Metadata",
            [f"athena:{name}" for name in ("GetDatabase", "GetTableMetadata", "ListDatabases", "ListTableMetadata")],
            [f"{athena}:datacatalog/AwsDataCatalog"],
        ),
        # Athena's own pages list them; neither action supports resources
        _allow("Lists", ("athena:ListDataCatalogs", "athena:ListWorkGroups"), ["*"]),
        _allow(
            "Catalog",
            [f"glue:{name}" for name in ("GetDatabase", "GetDatabases", "GetPartitions", "GetTable", "GetTables")],
            # Athena asks for the database named default before any query
            [
                f"{glue}:{kind}"
                for kind in ("catalog", "database/default", f"database/{database}", f"table/{database}/*")
            ],
        ),
        _allow("FindBuckets", ("s3:GetBucketLocation",), [buckets.lake, results]),
        _allow("ReadTables", READ_OBJECTS, [f"{buckets.lake}/{buckets.prefix}/{name}/*" for name in names]),
        _list("ListTables", buckets.lake, [part for name in names for part in _under(f"{buckets.prefix}/{name}")]),
        _allow(
            "Results",
            ("s3:AbortMultipartUpload", "s3:GetObject", "s3:ListMultipartUploadParts", "s3:PutObject"),
            [f"{results}/{READERS}/*"],
        ),
        _list("ListResults", results, _under(READERS)),
    ]


def _names(tables: Sequence[Table]) -> list[str]:
    """The folders of some tables. Who may use the rows of `models` may use the arrays that they describe."""
    arrays = {ARRAYS} if MODELS in tables else set()
    return sorted({table.name for table in tables} | arrays)


def _under(folder: str) -> list[str]:
    """Prefixes that list a folder: the folder itself and its contents, but not a sibling such as `folder2`."""
    return [folder, f"{folder}/*"]


def _allow(sid: str, actions: Sequence[str], resources: Sequence[str]) -> Statement:
    return {"Sid": sid, "Effect": "Allow", "Action": list(actions), "Resource": list(resources)}


def _list(sid: str, bucket: str, prefixes: Sequence[str]) -> Statement:
    """Permission to list folders.

    `IfExists`: S3 answers 404 for a missing object (Delta readers probe for a checkpoint) only to callers that may list
    the bucket, and such a request names no prefix. As a side effect, the names of all objects in the bucket can be
    listed.
    """
    return {
        **_allow(sid, ("s3:ListBucket",), [bucket]),
        "Condition": {"StringLikeIfExists": {"s3:prefix": list(prefixes)}},
    }
