"""What each job may touch: IAM statements derived from what it declares to read and write.

One role a job. It may read the tables of READS and WRITES, write those of WRITES, and the framework's two, in which
every job records how it ended; and its own corners of the other buckets. Nothing is granted on a bucket as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from encore.lake.tables import FRAMEWORK, Table
from encore.runtime.graph import Node

Statement = dict[str, Any]

RAW = {"ingest_playlists": "playlists", "ingest_features": "features"}
"""Jobs that read what is not in the lake, and the folder of the raw bucket that is theirs."""

READ_OBJECTS = ("s3:GetObject",)
WRITE_OBJECTS = ("s3:AbortMultipartUpload", "s3:DeleteObject", "s3:PutObject")
"""Delta removes files of its log that have expired, and Hadoop what it set aside: hence DeleteObject."""

TRACKING = (
    "CreateExperiment",
    "CreateRun",
    "GetExperimentByName",
    "GetRun",
    "LogBatch",
    "SearchRuns",
    "SetTag",
    "UpdateRun",
)
"""What jobs ask of MLflow, as SageMaker names it, whose server takes the caller's role for a login."""


@dataclass(frozen=True)
class Buckets:
    """ARNs of the buckets, and the prefix of the tables within the lake's, without a slash at the end."""

    lake: str
    raw: str
    code: str
    logs: str
    prefix: str = "lake"


def statements(node: Node, buckets: Buckets, upkeep: Sequence[Table] = ()) -> list[Statement]:
    """All that the role of a job may do in S3. `upkeep`: tables whose files, but no rows, it changes."""
    reads = _names([*node.reads, *node.writes, *upkeep, *FRAMEWORK])
    writes = _names([*node.writes, *upkeep, *FRAMEWORK])
    tables = f"{buckets.lake}/{buckets.prefix}"
    own = f"{buckets.prefix}/_scratch/{node.name}-*"
    found = [
        _allow("ReadTables", READ_OBJECTS, [f"{tables}/{name}/*" for name in reads]),
        _allow("WriteTables", WRITE_OBJECTS, [f"{tables}/{name}/*" for name in writes]),
        _list("ListTables", buckets.lake, [part for name in reads for part in _under(f"{buckets.prefix}/{name}")]),
        _allow("SetAside", (*READ_OBJECTS, *WRITE_OBJECTS), [f"{buckets.lake}/{own}"]),
        _list("ListSetAside", buckets.lake, [own]),
        _allow("ReadCode", READ_OBJECTS, [f"{buckets.code}/*"]),
        _allow(
            "WriteLogs",
            ("s3:AbortMultipartUpload", "s3:PutObject"),
            [f"{buckets.logs}/{kind}/{node.name}/*" for kind in ("logs", "outcomes")],
        ),
    ]
    if node.name in RAW:
        folder = RAW[node.name]
        found.append(_allow("ReadRaw", READ_OBJECTS, [f"{buckets.raw}/{folder}/*"]))
        found.append(_list("ListRaw", buckets.raw, _under(folder)))
    return found


def cluster_statements(buckets: Buckets) -> list[Statement]:
    """What the nodes of a cluster may do in S3, which all jobs share: the union of what the jobs may. Code and raw
    data are read and never written, and `cluster/` is where EMR puts the nodes' own logs."""
    tables = f"{buckets.lake}/{buckets.prefix}"
    folders = sorted(RAW.values())
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


def tracking_statements(server: str, artefacts: str) -> list[Statement]:
    """What a job may do with an MLflow server that SageMaker manages, by their ARNs: nothing is removed, and artefacts
    go from the job into the server's bucket, which no server stands before."""
    return [
        _allow("Tracking", [f"sagemaker-mlflow:{action}" for action in TRACKING], [server]),
        _allow("Artefacts", ("s3:AbortMultipartUpload", "s3:PutObject"), [f"{artefacts}/*"]),
    ]


def _names(tables: Sequence[Table]) -> list[str]:
    return sorted({table.name for table in tables})


def _under(folder: str) -> list[str]:
    """What a listing of a folder may ask for: itself, and what is in it. A neighbour `folder2` is neither."""
    return [folder, f"{folder}/*"]


def _allow(sid: str, actions: Sequence[str], resources: Sequence[str]) -> Statement:
    return {"Sid": sid, "Effect": "Allow", "Action": list(actions), "Resource": list(resources)}


def _list(sid: str, bucket: str, prefixes: Sequence[str]) -> Statement:
    """Listing of folders. `IfExists`: S3 says of an object that it is not there, as Delta's readers ask of a
    checkpoint, only to those who may list; such a request names no prefix. So a listing of the whole bucket, of names
    alone, is allowed too."""
    return {
        **_allow(sid, ("s3:ListBucket",), [bucket]),
        "Condition": {"StringLikeIfExists": {"s3:prefix": list(prefixes)}},
    }
