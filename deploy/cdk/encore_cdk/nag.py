"""Acknowledgment of cdk-nag findings that are not fixed, each with a reason, where the resource is defined."""

from __future__ import annotations

from aws_cdk import Acknowledgment, Aws, Stack, Token, Validations
from constructs import IConstruct


def acknowledge(construct: IConstruct, reasons: dict[str, str]) -> None:
    """Acknowledge that a construct, with its children, breaks rules, each for a reason."""
    for rule, reason in reasons.items():
        Validations.of(construct).acknowledge(Acknowledgment(id=f"AwsSolutions::{rule}", reason=reason))


def acknowledge_wildcards(construct: IConstruct, reason: str, *findings: str) -> None:
    """Acknowledge wildcards in policies; `findings` are `Action::...` or `Resource::...`, as cdk-nag writes them.

    Where the stack's account and region are known, the CDK writes them out in some ARNs and not in others.
    """
    stack, known = Stack.of(construct), {}
    if not Token.is_unresolved(stack.account):
        known["<AWS::AccountId>"] = stack.account
    if not Token.is_unresolved(stack.region):
        known["<AWS::Region>"] = stack.region
    written_out = list(findings)
    for name, value in known.items():
        written_out = [finding.replace(name, value) for finding in written_out]
    acknowledge(construct, {f"AwsSolutions-IAM5[{finding}]": reason for finding in (*findings, *written_out)})


def nag_arn(arn: str) -> str:
    """An ARN as cdk-nag writes it: with the names of the pseudo parameters."""
    pseudo = {
        Aws.PARTITION: "<AWS::Partition>",
        Aws.ACCOUNT_ID: "<AWS::AccountId>",
        Aws.REGION: "<AWS::Region>",
        Aws.STACK_NAME: "<AWS::StackName>",
    }
    for token, name in pseudo.items():
        arn = arn.replace(token, name)
    return arn


SHARED_BUCKET = ("Action::s3:GetBucket*", "Action::s3:GetObject*", "Action::s3:List*")
SHARED_BUCKET_WRITE = ("Action::s3:Abort*", "Action::s3:DeleteObject*")
SHARED_KEY = ("Action::kms:GenerateDataKey*", "Action::kms:ReEncrypt*")
"""Wildcard actions that the CDK's own grants on a bucket or a key contain."""
