"""The choices under which the stack of the scorer is tested."""

from __future__ import annotations

from tests.deploy.choices import DOMAIN, SCORER_DOMAIN

BUNDLE = "artefacts/1/models/m-0123/artifacts/artifacts/bundle"
IMAGE = "serving_image=encore-scorer:1.0"

PRIVATE_SCORER = ("dev", "serving=fargate", IMAGE)
PUBLIC_SCORER = ("prod", "serving=fargate", IMAGE, "serving_access=public", *SCORER_DOMAIN, *DOMAIN)
SCORER_OF_BUNDLE = ("dev", "serving=fargate", IMAGE, "mlflow=sagemaker", f"serving_bundle={BUNDLE}")
BUNDLE_BESIDE_MLFLOW = ("dev", "serving=fargate", IMAGE, f"serving_bundle={BUNDLE}")
ENDPOINT = ("dev", "serving=sagemaker", IMAGE, f"serving_bundle={BUNDLE}")
