"""Choices that a team makes for itself, as the tests make them. Their ARNs are of no real account."""

from __future__ import annotations

ACCOUNT, REGION = "111122223333", "eu-central-1"
CERTIFICATE = f"arn:aws:acm:{REGION}:{ACCOUNT}:certificate/01234567-89ab-cdef-0123-456789abcdef"
SCORER_CERTIFICATE = f"arn:aws:acm:{REGION}:{ACCOUNT}:certificate/fedcba98-7654-3210-fedc-ba9876543210"
CONNECTION = f"arn:aws:codeconnections:{REGION}:{ACCOUNT}:connection/01234567-89ab-cdef-0123-456789abcdef"

DOMAIN = ("domain=music.example.com", f"certificate={CERTIFICATE}")
PIPELINE = (f"connection={CONNECTION}", "repository=team/encore")
OF_ITS_OWN = (
    *("prod", "account=444455556666", "region=eu-central-1", "customer_key=true", "replica_region=eu-west-1"),
    *("analysts=arn:aws:iam::444455556666:role/analysts", *PIPELINE),
)
"""A stage with an account, a key, readers and a copy of its lake."""
SCORER_DOMAIN = ("serving_domain=playlists.example.com", f"serving_certificate={SCORER_CERTIFICATE}")
