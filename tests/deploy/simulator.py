"""What IAM would say: allow where a statement allows and none denies. For the few operators that our policies use."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from tests.deploy.s3proxy import Call

OPERATORS = {"StringLike", "StringLikeIfExists"}


def matches(pattern: str, value: str) -> bool:
    """IAM's wildcards: * and ?, and no brackets."""
    return fnmatchcase(value, pattern.replace("[", "[[]"))


def listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def applies(statement: dict[str, Any], action: str, resource: str, context: dict[str, str]) -> bool:
    """Whether a statement speaks of this. ValueError for an operator that is not known here."""
    if not any(matches(pattern, action) for pattern in listed(statement["Action"])):
        return False
    if not any(matches(pattern, resource) for pattern in listed(statement["Resource"])):
        return False
    for operator, wanted in statement.get("Condition", {}).items():
        if operator not in OPERATORS:
            raise ValueError(f"operator {operator} is not known")
        for key, patterns in wanted.items():
            if key not in context:
                if not operator.endswith("IfExists"):
                    return False
            elif not any(matches(pattern, context[key]) for pattern in listed(patterns)):
                return False
    return True


def decides(statements: list[dict[str, Any]], action: str, resource: str, context: dict[str, str]) -> bool:
    """Whether the action is allowed."""
    effects = {one["Effect"] for one in statements if applies(one, action, resource, context)}
    return "Allow" in effects and "Deny" not in effects


def refused(statements: list[dict[str, Any]], call: Call, arn: str = "arn:aws:s3:::") -> str | None:
    """None where S3 would do what was asked, else what is wanting."""
    bucket = f"{arn}{call.bucket}"
    if call.action == "s3:ListBucket":
        context = {} if call.prefix is None else {"s3:prefix": call.prefix}
        return None if decides(statements, call.action, bucket, context) else f"{call.action} {bucket} {context}"
    resource = f"{bucket}/{call.key}"
    if not decides(statements, call.action, resource, {}):
        return f"{call.action} {resource}"
    # an object that is not there is a refusal to whoever may not list, and a request for it names no prefix
    if call.missing and not decides(statements, "s3:ListBucket", bucket, {}):
        return f"s3:ListBucket {bucket}, to be told that {call.key} is not there"
    return None
