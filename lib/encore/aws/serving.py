"""Sizes of the scorer's deployment, which its stack and the estimate of its cost share."""

from __future__ import annotations

from typing import Final

PORT: Final = 8080
"""Of the scorer, on Fargate as on SageMaker, which requires this one."""

TASK_VCPU: Final = 1
TASK_GB: Final = 6
"""Of a Fargate task. The bundle of a million playlists has 2.2 GB; while a model changes, two of them are mapped."""

INSTANCE: Final = "ml.m5.large"
"""Of a SageMaker endpoint: 2 vCPU and 8 GB."""

RULES: Final = 3
"""Of the firewall."""


def least_tasks(serving: str, keep: bool) -> int:
    """Tasks or instances that run all the time.

    SageMaker shifts load by instance, at most half of them at first, so there are two even where an outage is
    acceptable.
    """
    return 2 if keep or serving == "sagemaker" else 1
