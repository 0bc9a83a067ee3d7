"""A minimal IAM policy simulator: a statement must allow and none may deny. Supports the operators that we use."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from tests.deploy.s3proxy import Call

OPERATORS = {
    *("ArnEquals", "ArnLike", "Bool", "NumericLessThan", "StringEquals", "StringLike", "StringLikeIfExists"),
    # of a key with several values, of which tests give one
    "ForAnyValue:StringEquals",
}


def matches(pattern: str, value: str) -> bool:
    """IAM's wildcards: * and ?, but no brackets."""
    return fnmatchcase(value, pattern.replace("[", "[[]"))


def listed(value: Any) -> list[str]:
    return list(value) if isinstance(value, list) else [value]


def applies(statement: dict[str, Any], action: str, resource: str, context: dict[str, str]) -> bool:
    """Whether a statement applies. ValueError for an unknown condition operator."""
    if "NotAction" in statement:
        if any(matches(pattern, action) for pattern in listed(statement["NotAction"])):
            return False
    elif not any(matches(pattern, action) for pattern in listed(statement["Action"])):
        return False
    if not any(matches(pattern, resource) for pattern in listed(statement["Resource"])):
        return False
    for operator, wanted in statement.get("Condition", {}).items():
        if operator not in OPERATORS:
            raise ValueError(f"unknown operator {operator}")
        for key, patterns in wanted.items():
            if key not in context:
                if not operator.endswith("IfExists"):
                    return False
            elif not any(_holds(operator, pattern, context[key]) for pattern in listed(patterns)):
                return False
    return True


def _holds(operator: str, pattern: Any, value: str) -> bool:
    """Whether one value of a condition holds."""
    if operator == "NumericLessThan":
        return float(value) < float(pattern)
    return (
        value == pattern
        if operator in ("Bool", "ForAnyValue:StringEquals", "StringEquals")
        else matches(pattern, value)
    )


def is_allowed(statements: list[dict[str, Any]], action: str, resource: str, context: dict[str, str]) -> bool:
    """Whether the action is allowed."""
    effects = {one["Effect"] for one in statements if applies(one, action, resource, context)}
    return "Allow" in effects and "Deny" not in effects


def denial(statements: list[dict[str, Any]], call: Call, arn: str = "arn:aws:s3:::") -> str | None:
    """None if S3 would allow the call, else the permission that is missing."""
    bucket = f"{arn}{call.bucket}"
    if call.action == "s3:ListBucket":
        context = {} if call.prefix is None else {"s3:prefix": call.prefix}
        return None if is_allowed(statements, call.action, bucket, context) else f"{call.action} {bucket} {context}"
    resource = f"{bucket}/{call.key}"
    if not is_allowed(statements, call.action, resource, {}):
        return f"{call.action} {resource}"
    # S3 answers 403 for a missing object to callers that may not list, and such a request names no prefix
    if call.missing and not is_allowed(statements, "s3:ListBucket", bucket, {}):
        return f"s3:ListBucket {bucket}, to be told that {call.key} does not exist"
    return None
