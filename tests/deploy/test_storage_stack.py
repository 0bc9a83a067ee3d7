"""The bucket of the lake and who reads it: analysts, the key, the copy in another region."""

from __future__ import annotations

import json
from typing import Any

import pytest

from encore.lake.lock import NAME as LOCK
from encore.lake.tables import ALL
from tests.deploy.s3proxy import Call
from tests.deploy.simulator import denial, is_allowed, listed
from tests.deploy.synth import Template, assembly, of_type, plain, templates, text

WRITES = ("s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload")


@pytest.fixture(scope="session")
def dev() -> dict[str, Template]:
    return templates("dev")


def bucket(name: str, stage: str = "dev") -> str:
    return f"encore-{stage}-{name}-ACCOUNT-REGION"


def role_statements(template: Template, role: str) -> list[dict[str, Any]]:
    """All statements of a role, those of its own policies and of attached ones."""
    found = template["Resources"][role]["Properties"].get("Policies", [])
    attached = [
        one for one in of_type(template, "AWS::IAM::Policy") if role in [text(name) for name in one.get("Roles", [])]
    ]
    return [one for policy in (*found, *attached) for one in plain(policy["PolicyDocument"]["Statement"])]


def reader(template: Template) -> list[dict[str, Any]]:
    role, _ = text(template["Outputs"]["ReaderRole"]["Value"]).split("|")
    return role_statements(template, role)


# analysts


def test_readers_read_every_table_and_list_its_files(dev: dict[str, Template]) -> None:
    allowed = reader(dev["storage"])
    for table in ALL:
        for key in ("part-0.parquet", "_delta_log/00000000000000000000.json"):
            assert denial(allowed, Call("s3:GetObject", bucket("lake"), f"lake/{table.name}/{key}")) is None
        # Delta readers probe for a checkpoint, and need to be told that there is none
        missing = Call("s3:GetObject", bucket("lake"), f"lake/{table.name}/_delta_log/_last_checkpoint", missing=True)
        assert denial(allowed, missing) is None
        listing = Call("s3:ListBucket", bucket("lake"), prefix=f"lake/{table.name}/_delta_log/")
        assert denial(allowed, listing) is None


def test_readers_write_nothing_but_results_of_their_queries(dev: dict[str, Template]) -> None:
    allowed = reader(dev["storage"])
    made = [one for name in ("storage", "mlflow") for one in of_type(dev[name], "AWS::S3::Bucket")]
    buckets = [plain(one["BucketName"]) for one in made]
    assert len(buckets) == 7
    keys = [f"lake/{table.name}/part-0.parquet" for table in ALL] + ["lake/_scratch/x", "x", "0a1b.csv", "artefacts/x"]
    for name in buckets:
        for key in keys:
            for action in WRITES:
                assert denial(allowed, Call(action, name, key)) is not None, f"{action} {name}/{key}"
    assert denial(allowed, Call("s3:PutObject", bucket("results"), "readers/0a1b.csv")) is None
    assert denial(allowed, Call("s3:DeleteObject", bucket("results"), "readers/0a1b.csv")) is not None
    reading = ("Get", "List", "BatchGet")
    actions = {action for one in allowed for action in listed(one["Action"])}
    assert {action for action in actions if not action.partition(":")[2].startswith(reading)} == {
        *("s3:AbortMultipartUpload", "s3:PutObject", "athena:StartQueryExecution", "athena:StopQueryExecution"),
    }


def test_readers_read_neither_raw_data_nor_code_logs_secrets_artefacts_or_models(dev: dict[str, Template]) -> None:
    allowed = reader(dev["storage"])
    for name, key in (
        ("raw", "playlists/mpd.slice.0-999.json"),
        ("code", "v1/environment.tar.gz"),
        ("logs", "logs/recommend/run/stderr.gz"),
        ("logs", "outcomes/recommend/run/1.json"),
        ("artefacts", "artefacts/1/models/m-1/artifacts/bundle"),
        ("access-logs", "lake/2025-11-01"),
        ("lake", "lake/_models/ials/0a1b/items.npy"),
        ("lake", "lake/_scratch/recommend-0a1b/x"),
        ("lake", f"lake/{LOCK}"),
        ("results", "0a1b.csv"),
    ):
        assert denial(allowed, Call("s3:GetObject", bucket(name), key)) is not None, f"{name}/{key}"
        if name not in ("lake", "results"):
            assert denial(allowed, Call("s3:ListBucket", bucket(name), prefix=key)) is not None, name
    secrets = [name for one in dev.values() for name, found in one["Resources"].items() if "Secret" in found["Type"]]
    assert secrets
    for secret in secrets:
        assert not is_allowed(allowed, "secretsmanager:GetSecretValue", secret, {})


def test_readers_query_their_own_workgroup_whose_results_they_may_write(dev: dict[str, Template]) -> None:
    allowed = reader(dev["storage"])
    groups = {one["Name"]: one["WorkGroupConfiguration"] for one in of_type(dev["storage"], "AWS::Athena::WorkGroup")}
    assert set(groups) == {"encore-dev", "encore-dev-readers"}
    athena, glue = (f"arn:aws:{service}:REGION:ACCOUNT" for service in ("athena", "glue"))
    may = {
        name: is_allowed(allowed, "athena:StartQueryExecution", f"{athena}:workgroup/{name}", {})
        for name in (*groups, "primary")
    }
    assert may == {"encore-dev": False, "encore-dev-readers": True, "primary": False}
    configuration = groups["encore-dev-readers"]
    assert configuration["EnforceWorkGroupConfiguration"], "or a query could name another place for its results"
    # the bucket is named by reference in its own stack
    output = text(configuration["ResultConfiguration"]["OutputLocation"]).removeprefix("s3://")
    resource, _, folder = output.partition("/")
    assert text(dev["storage"]["Resources"][resource]["Properties"]["BucketName"]) == bucket("results")
    assert denial(allowed, Call("s3:PutObject", bucket("results"), f"{folder}0a1b.csv")) is None
    for action in ("glue:GetTable", "glue:GetTables", "glue:GetDatabase"):
        assert is_allowed(allowed, action, f"{glue}:catalog", {})
        assert is_allowed(allowed, action, f"{glue}:table/encore_dev/playlists", {})
        assert not is_allowed(allowed, action, f"{glue}:table/encore_prod/playlists", {})
    assert not is_allowed(allowed, "glue:UpdateTable", f"{glue}:table/encore_dev/playlists", {})


def test_the_lakes_bucket_refuses_readers_all_but_reading_whatever_is_attached_to_their_role(
    dev: dict[str, Template],
) -> None:
    template = dev["storage"]
    role = text(template["Outputs"]["ReaderRole"]["Value"])
    lake = next(
        name
        for name, one in template["Resources"].items()
        if one["Type"] == "AWS::S3::Bucket" and plain(one["Properties"]["BucketName"]) == bucket("lake")
    )
    policies = [one for one in of_type(template, "AWS::S3::BucketPolicy") if text(one["Bucket"]) == lake]
    denied = [one for policy in policies for one in plain(policy["PolicyDocument"]["Statement"])]
    administrator = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    key = f"{lake}|Arn/lake/tracks/x"
    context = {"aws:PrincipalArn": role, "aws:SecureTransport": "true", "s3:TlsVersion": "1.3"}
    for action in (*WRITES, "s3:DeleteObjectVersion", "s3:PutBucketPolicy", "s3:PutLifecycleConfiguration"):
        target = f"{lake}|Arn" if "Bucket" in action or "Lifecycle" in action else key
        assert not is_allowed([administrator, *denied], action, target, context), action
        assert is_allowed([administrator, *denied], action, target, {**context, "aws:PrincipalArn": "another"}), action
    assert is_allowed([administrator, *denied], "s3:GetObject", key, context)


def test_only_the_named_principal_may_become_a_reader(dev: dict[str, Template]) -> None:
    analysts = "arn:aws:iam::210987654321:role/analysts"
    trusted = {}
    for choices in (("dev",), ("dev", f"analysts={analysts}")):
        template = templates(*choices)["storage"]
        role, _ = text(template["Outputs"]["ReaderRole"]["Value"]).split("|")
        (trust,) = template["Resources"][role]["Properties"]["AssumeRolePolicyDocument"]["Statement"]
        trusted[choices[1:]] = plain(trust["Principal"])
    assert trusted[()] == {"AWS": "arn:aws:iam::ACCOUNT:root"}
    assert trusted[(f"analysts={analysts}",)] == {"AWS": analysts}


# the copy in another region

REPLICA = "eu-west-1"
COPIES = [("dev", f"replica_region={REPLICA}"), ("dev", f"replica_region={REPLICA}", "customer_key=true")]


def lake_of(template: Template) -> dict[str, Any]:
    found = [one for one in of_type(template, "AWS::S3::Bucket") if plain(one["BucketName"]) == bucket("lake")]
    (lake,) = found
    return lake


def copied(*choices: str) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]], dict[str, Template]]:
    """The rule of replication, the bucket with the copy, what the role of replication may do, and all templates."""
    made = templates(*choices)
    replication = lake_of(made["storage"])["ReplicationConfiguration"]
    (rule,) = replication["Rules"]
    (copy,) = of_type(made["replica"], "AWS::S3::Bucket")
    role, _ = text(replication["Role"]).split("|")
    return rule, copy, role_statements(made["storage"], role), made


def test_without_the_choice_nothing_is_copied(dev: dict[str, Template]) -> None:
    assert "replica" not in dev
    assert "ReplicationConfiguration" not in lake_of(dev["storage"])


@pytest.mark.parametrize("choices", COPIES, ids=" ".join)
def test_the_lake_is_copied_to_a_versioned_bucket_in_the_other_region_with_deletions_as_markers(
    choices: tuple[str, ...],
) -> None:
    rule, copy, _, made = copied(*choices)
    assert (rule["Status"], rule["DeleteMarkerReplication"]) == ("Enabled", {"Status": "Enabled"})
    assert rule["Filter"] == {"Prefix": ""}
    name = plain(copy["BucketName"])
    assert name == f"encore-dev-lake-replica-ACCOUNT-{REPLICA}"
    assert plain(rule["Destination"]["Bucket"]) == f"arn:aws:s3:::{name}"
    manifest = json.loads((assembly(*choices) / "manifest.json").read_text())["artifacts"]
    assert manifest["encore-dev-replica"]["environment"] == f"aws://unknown-account/{REPLICA}"
    # a rule for a bucket that does not exist, or without versions, is refused
    assert "encore-dev-replica" in manifest["encore-dev-storage"]["dependencies"]
    assert copy["VersioningConfiguration"] == {"Status": "Enabled"}
    rules = [one["LifecycleConfiguration"]["Rules"] for one in (copy, lake_of(made["storage"]))]
    kept = [{json.dumps(each, sort_keys=True) for each in found if each["Id"] != "abort"} for found in rules]
    assert kept[0] == kept[1], "the copy keeps deleted versions as long, and scratch files as short, as the lake"
    (expiry,) = [one["NoncurrentVersionExpiration"]["NoncurrentDays"] for one in rules[0] if one["Id"] == "superseded"]
    assert expiry >= 30, "the storage class bills 30 days for each version"


@pytest.mark.parametrize("choices", COPIES, ids=" ".join)
def test_s3_may_read_the_lake_and_write_the_copy_and_nothing_else(choices: tuple[str, ...]) -> None:
    _, copy, allowed, _ = copied(*choices)
    lake, target = f"arn:aws:s3:::{bucket('lake')}", f"arn:aws:s3:::{plain(copy['BucketName'])}"
    for action in ("s3:GetReplicationConfiguration", "s3:ListBucket"):
        assert is_allowed(allowed, action, lake, {})
    for name in ("GetObjectVersionForReplication", "GetObjectVersionAcl", "GetObjectVersionTagging"):
        assert is_allowed(allowed, f"s3:{name}", f"{lake}/lake/tracks/x", {})
        assert not is_allowed(allowed, f"s3:{name}", f"arn:aws:s3:::{bucket('raw')}/x", {})
    for name in ("ReplicateObject", "ReplicateDelete", "ReplicateTags"):
        assert is_allowed(allowed, f"s3:{name}", f"{target}/lake/tracks/x", {})
        assert not is_allowed(allowed, f"s3:{name}", f"{lake}/lake/tracks/x", {})
    for name in ("PutObject", "DeleteObject", "DeleteObjectVersion"):
        assert not is_allowed(allowed, f"s3:{name}", f"{target}/lake/tracks/x", {})


def test_an_alarm_names_the_rule_of_replication() -> None:
    """With other dimensions it would watch a metric that does not exist."""
    rule, copy, _, made = copied(*COPIES[0])
    (alarm,) = of_type(made["storage"], "AWS::CloudWatch::Alarm")
    dimensions = {one["Name"]: plain(one["Value"]) for one in alarm["Dimensions"]}
    assert dimensions == {
        "SourceBucket": bucket("lake"),
        "DestinationBucket": plain(copy["BucketName"]),
        "RuleId": rule["Id"],
    }
    assert rule["Destination"]["Metrics"] == {"Status": "Enabled"}, "or S3 publishes none"
    (topic,) = of_type(made["orchestration"], "AWS::SNS::Topic")
    assert [plain(one).rpartition(":")[2] for one in alarm["AlarmActions"]] == [topic["TopicName"]]


def test_a_copy_of_encrypted_objects_is_encrypted_by_a_key_of_its_region() -> None:
    """S3 skips objects that are encrypted with a customer's key unless the rule selects them."""
    rule, copy, allowed, made = copied(*COPIES[1])
    assert rule["SourceSelectionCriteria"] == {"SseKmsEncryptedObjects": {"Status": "Enabled"}}
    named = plain(rule["Destination"]["EncryptionConfiguration"]["ReplicaKmsKeyID"])
    (alias,) = [plain(one["AliasName"]) for one in of_type(made["replica"], "AWS::KMS::Alias")]
    assert named == f"arn:aws:kms:{REPLICA}:ACCOUNT:{alias}"
    (encryption,) = copy["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    key = text(encryption["ServerSideEncryptionByDefault"]["KMSMasterKeyID"]).split("|")[0]
    assert [text(one["TargetKeyId"]).split("|")[0] for one in of_type(made["replica"], "AWS::KMS::Alias")] == [key]
    there = {"kms:ViaService": f"s3.{REPLICA}.amazonaws.com"}
    keys = f"arn:aws:kms:{REPLICA}:ACCOUNT:key"
    for action in ("kms:Encrypt", "kms:GenerateDataKey"):
        assert is_allowed(allowed, action, f"{keys}/0a1b", {**there, "kms:ResourceAliases": alias})
        assert not is_allowed(allowed, action, f"{keys}/0a1b", {**there, "kms:ResourceAliases": "alias/other"})
    assert is_allowed(allowed, "kms:Decrypt", "encore-dev-key-arn", {"kms:ViaService": "s3.REGION.amazonaws.com"})
    plainly, *_ = copied(*COPIES[0])
    assert "SourceSelectionCriteria" not in plainly
