"""Findings of cdk-nag that are not mended, each with its reason, at the place that it is about."""

from __future__ import annotations

from aws_cdk import Acknowledgment, Aws, Validations
from constructs import IConstruct


def argued(construct: IConstruct, reasons: dict[str, str]) -> None:
    """Say of rules why a construct, and what is in it, does not keep them."""
    for rule, reason in reasons.items():
        Validations.of(construct).acknowledge(Acknowledgment(id=f"AwsSolutions::{rule}", reason=reason))


def wildcards(construct: IConstruct, why: str, *found: str) -> None:
    """Argue wildcards of policies: each `Action::...` or `Resource::...`, as cdk-nag writes it, by itself."""
    argued(construct, {f"AwsSolutions-IAM5[{finding}]": why for finding in found})


def shown(arn: str) -> str:
    """An ARN as cdk-nag writes it: account, region and partition by their names in the template."""
    pseudo = {Aws.PARTITION: "<AWS::Partition>", Aws.ACCOUNT_ID: "<AWS::AccountId>", Aws.REGION: "<AWS::Region>"}
    for token, name in pseudo.items():
        arn = arn.replace(token, name)
    return arn


SHARED_BUCKET = ("Action::s3:GetBucket*", "Action::s3:GetObject*", "Action::s3:List*")
SHARED_BUCKET_WRITE = ("Action::s3:Abort*", "Action::s3:DeleteObject*")
SHARED_KEY = ("Action::kms:GenerateDataKey*", "Action::kms:ReEncrypt*")
"""What the CDK grants on a bucket or a key: actions of one kind, on that one resource."""
