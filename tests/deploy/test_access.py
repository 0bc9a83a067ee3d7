"""What roles allow, by an IAM simulator: access to declared tables, and to no others."""

from __future__ import annotations

from typing import Any

import pytest

from encore.aws.access import RAW, Buckets, cluster_statements, statements, tracking_statements
from encore.lake.lock import NAME as LOCK
from encore.lake.tables import ALL, FRAMEWORK, MODELS
from encore.runtime.registry import EXTRA_JOBS, JOBS, node, upkeep
from tests.deploy.proxy import Request
from tests.deploy.s3proxy import Call, calls_of
from tests.deploy.simulator import denial

WRITES = ("s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload")


BUCKETS = Buckets(*(f"arn:aws:s3:::{kind}" for kind in ("lake", "raw", "code", "logs")))


def policy(job: str) -> list[dict[str, Any]]:
    return statements(node(job), BUCKETS, upkeep(job))


@pytest.mark.parametrize("job", [*JOBS, *EXTRA_JOBS])
def test_a_role_reads_and_writes_only_what_its_job_declares(job: str) -> None:
    mine, allowed = node(job), policy(job)
    written = {*mine.writes, *upkeep(job), *FRAMEWORK}
    for table in ALL:
        for key in (f"lake/{table.name}/part-0.parquet", f"lake/{table.name}/_delta_log/00000000000000000000.json"):
            may_read = denial(allowed, Call("s3:GetObject", "lake", key)) is None
            assert may_read == (table in {*mine.reads, *written}), f"{job} reads {table.name}"
            for action in WRITES:
                may_write = denial(allowed, Call(action, "lake", key)) is None
                assert may_write == (table in written), f"{job} {action} {table.name}"
        may_list = denial(allowed, Call("s3:ListBucket", "lake", prefix=f"lake/{table.name}/")) is None
        assert may_list == (table in {*mine.reads, *written}), f"{job} lists {table.name}"


@pytest.mark.parametrize("job", [*JOBS, *EXTRA_JOBS])
def test_a_role_uses_the_arrays_of_fitted_models_as_the_table_of_them(job: str) -> None:
    key, mine = "lake/_models/ials/0a1b/items.npy", node(job)
    written = {*mine.writes, *upkeep(job)}
    may_read = denial(policy(job), Call("s3:GetObject", "lake", key)) is None
    assert may_read == (MODELS in {*mine.reads, *written})
    for action in WRITES:
        assert (denial(policy(job), Call(action, "lake", key)) is None) == (MODELS in written), action
    may_list = denial(policy(job), Call("s3:ListBucket", "lake", prefix="lake/_models/ials/0a1b/")) is None
    assert may_list == may_read


@pytest.mark.parametrize("job", [*JOBS, *EXTRA_JOBS])
def test_a_role_takes_and_renews_the_lock_of_the_lake(job: str) -> None:
    key = f"lake/{LOCK}"
    for call in (
        Call("s3:GetObject", "lake", key),
        Call("s3:GetObject", "lake", key, missing=True),
        Call("s3:PutObject", "lake", key),
    ):
        assert denial(policy(job), call) is None, call
        assert denial(cluster_statements(BUCKETS), call) is None, call
    assert denial(policy(job), Call("s3:DeleteObject", "lake", key)) is not None


@pytest.mark.parametrize("job", [*JOBS, *EXTRA_JOBS])
def test_a_role_has_its_own_prefixes_for_logs_and_scratch_files(job: str) -> None:
    allowed = policy(job)
    assert denial(allowed, Call("s3:PutObject", "logs", f"outcomes/{job}/run/1.json")) is None
    assert denial(allowed, Call("s3:PutObject", "lake", f"lake/_scratch/{job}-0a1b/x")) is None
    other = "report" if job != "report" else "recommend"
    for call in (
        Call("s3:PutObject", "logs", f"outcomes/{other}/run/1.json"),
        Call("s3:GetObject", "logs", f"logs/{job}/run/stderr.gz"),
        Call("s3:PutObject", "lake", f"lake/_scratch/{other}-0a1b/x"),
        Call("s3:PutObject", "code", "current/jobs/report.py"),
        Call("s3:PutObject", "raw", "playlists/mpd.slice.0-999.json"),
        Call("s3:GetObject", "elsewhere", f"lake/{other}"),
    ):
        assert denial(allowed, call) is not None, call


def test_only_the_smoke_job_uses_its_folder() -> None:
    key = "lake/_smoke/run/table/part-0.parquet"
    for job in (*JOBS, *EXTRA_JOBS):
        for call in (*(Call(action, "lake", key) for action in ("s3:GetObject", *WRITES)),
                     Call("s3:ListBucket", "lake", prefix="lake/_smoke/")):  # fmt: skip
            assert (denial(policy(job), call) is None) == (job == "smoke"), f"{job}: {call}"


def test_only_ingest_jobs_read_raw_data_and_each_only_its_own() -> None:
    slices, features = Call("s3:GetObject", "raw", "playlists/a.json"), Call("s3:GetObject", "raw", "features/a.csv")
    may = {job: [denial(policy(job), call) is None for call in (slices, features)] for job in JOBS}
    assert may.pop("ingest_playlists") == [True, False]
    assert may.pop("ingest_features") == [False, True]
    assert set(map(tuple, may.values())) == {(False, False)}


@pytest.mark.parametrize("job", [*JOBS, *EXTRA_JOBS])
def test_cluster_nodes_may_do_all_that_each_job_may(job: str) -> None:
    nodes, allowed, n_allowed = cluster_statements(BUCKETS), policy(job), 0
    keys = [f"lake/{table.name}/{name}" for table in ALL for name in ("part-0.parquet", "_delta_log/0.json")]
    keys.append(f"lake/_scratch/{job}-0a1b/x")
    calls = [Call(action, "lake", key) for key in keys for action in ("s3:GetObject", *WRITES)]
    calls += [Call("s3:GetObject", "lake", key, missing=True) for key in keys]
    calls += [Call("s3:ListBucket", "lake", prefix=f"{key.rpartition('/')[0]}/") for key in keys]
    folders = [folder for own in RAW.values() for folder in own]
    calls += [Call("s3:ListBucket", "raw", prefix=f"{folder}/") for folder in folders]
    calls += [Call("s3:GetObject", "raw", f"{folder}/x", missing=gone) for folder in folders for gone in (False, True)]
    calls += [Call(action, "logs", f"{kind}/{job}/x") for kind in ("logs", "outcomes") for action in WRITES]
    calls.append(Call("s3:GetObject", "code", "v1/environment.tar.gz"))
    for call in calls:
        if denial(allowed, call) is None:
            n_allowed += 1
            assert denial(nodes, call) is None, call
    assert n_allowed > 10


def test_cluster_nodes_write_neither_code_nor_raw_data_nor_other_prefixes() -> None:
    nodes = cluster_statements(BUCKETS)
    assert denial(nodes, Call("s3:PutObject", "logs", "cluster/j-1/node/i-1/daemon.log.gz")) is None
    for action in WRITES:
        for bucket, key in (
            ("code", "v1/environment.tar.gz"),
            ("code", "v1/jobs/report.py"),
            ("raw", "playlists/mpd.slice.0-999.json"),
            ("raw", "features/a.csv"),
            ("lake", "elsewhere/x"),
            ("logs", "elsewhere/x"),
        ):
            assert denial(nodes, Call(action, bucket, key)) is not None, f"{action} {bucket}/{key}"
    assert denial(nodes, Call("s3:DeleteObject", "logs", "outcomes/report/run/1.json")) is not None
    assert denial(nodes, Call("s3:GetObject", "logs", "logs/report/run/stderr.gz")) is not None
    for bucket, prefix in (("lake", "elsewhere/"), ("raw", "elsewhere/"), ("code", "v1/"), ("logs", "logs/")):
        assert denial(nodes, Call("s3:ListBucket", bucket, prefix=prefix)) is not None, f"{bucket}/{prefix}"


def test_the_simulator_evaluates_deny_and_conditions() -> None:
    allow = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    deny = {"Effect": "Deny", "Action": ["s3:PutObject"], "Resource": "arn:aws:s3:::b/secret/*"}
    assert denial([allow, deny], Call("s3:PutObject", "b", "secret/x")) is not None
    assert denial([allow, deny], Call("s3:GetObject", "b", "secret/x")) is None
    only = {**allow, "Condition": {"StringLike": {"s3:prefix": "mine/*"}}}
    assert denial([only], Call("s3:ListBucket", "b", prefix="mine/x")) is None
    assert denial([only], Call("s3:ListBucket", "b", prefix="other/x")) is not None
    assert denial([only], Call("s3:ListBucket", "b")) is not None
    known = {**only, "Condition": {"StringLikeIfExists": {"s3:prefix": "mine/*"}}}
    assert denial([known], Call("s3:ListBucket", "b")) is None
    with pytest.raises(ValueError, match="unknown operator IpAddress"):
        denial([{**allow, "Condition": {"IpAddress": {"aws:SourceIp": "::1"}}}], Call("s3:GetObject", "b", "x"))


def test_only_callers_that_may_list_are_told_that_an_object_is_missing() -> None:
    read = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::b/*"}
    assert denial([read], Call("s3:GetObject", "b", "x")) is None
    assert "to be told that x does not exist" in str(denial([read], Call("s3:GetObject", "b", "x", missing=True)))


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (("GET", "/b?list-type=2&prefix=lake%2Ft%2F", {}, b"", 200), [Call("s3:ListBucket", "b", prefix="lake/t/")]),
        (("GET", "/b/?list-type=2", {}, b"", 200), [Call("s3:ListBucket", "b")]),
        (("HEAD", "/b/lake/t/x%20y", {}, b"", 404), [Call("s3:GetObject", "b", "lake/t/x y", missing=True)]),
        (("PUT", "/b/k?partNumber=1&uploadId=u", {}, b"", 200), [Call("s3:PutObject", "b", "k")]),
        (("DELETE", "/b/k?uploadId=u", {}, b"", 204), [Call("s3:AbortMultipartUpload", "b", "k")]),
        (("DELETE", "/b/k", {}, b"", 204), [Call("s3:DeleteObject", "b", "k")]),
        (
            ("PUT", "/b/k", {"x-amz-copy-source": "/a/from"}, b"", 200),
            [Call("s3:PutObject", "b", "k"), Call("s3:GetObject", "a", "from")],
        ),
        (
            (
                "POST",
                "/b?delete=",
                {},
                b"<Delete><Object><Key>x</Key></Object><Object><Key>y</Key></Object></Delete>",
                200,
            ),
            [Call("s3:DeleteObject", "b", "x"), Call("s3:DeleteObject", "b", "y")],
        ),
    ],
)
def test_requests_map_to_the_permissions_that_they_need(request_: Any, expected: list[Call]) -> None:
    *request, status = request_
    assert calls_of(Request(*request), status) == expected


def test_an_unknown_request_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown request"):
        calls_of(Request("GET", "/b?location", {}, b""), 200)


@pytest.mark.parametrize("job", [*JOBS, *EXTRA_JOBS])
def test_a_job_may_call_an_mlflow_app_and_nothing_else_of_sagemaker(job: str) -> None:
    """IAM has one action for whatever is asked of an app."""
    app, artefacts = "arn:aws:sagemaker:us-east-1:111111111111:mlflow-app/app-0123", "arn:aws:s3:::artefacts/folder"
    server = app.replace("mlflow-app", "mlflow-tracking-server")
    of_app, of_server = ({one["Sid"]: one for one in tracking_statements(arn, artefacts, job)} for arn in (app, server))
    assert of_app["Tracking"]["Action"] == ["sagemaker:CallMlflowAppApi"]
    assert of_app["Tracking"]["Resource"] == [app]
    assert all(action.startswith("sagemaker-mlflow:") for action in of_server["Tracking"]["Action"])
    assert {**of_app, "Tracking": None} == {**of_server, "Tracking": None}, "artefacts as with a server"
