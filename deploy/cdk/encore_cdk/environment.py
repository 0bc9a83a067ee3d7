"""The account and region of stacks."""

from __future__ import annotations

from aws_cdk import Environment

from encore.aws.stage import Stage


def environment(stage: Stage) -> Environment | None:
    """Where a stage is deployed: its own account and region; None for those of the caller's credentials.

    With an account, the CDK deploys by the roles that `cdk bootstrap` made there, also from another account.
    """
    if not stage.region:
        return None
    return Environment(account=stage.account or None, region=stage.region)


def pipeline_environment(stage: Stage) -> Environment | None:
    """Where the delivery pipeline is: in the account and region of its connection to the git host, if there is one."""
    if not stage.connection:
        return None
    _, _, _, region, account, _ = stage.connection.split(":", 5)
    return Environment(account=account, region=region)
