"""Raw data to a stage: the slices and features of a folder, such as `encore generate` writes, to the raw bucket."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encore.aws.account import translate_errors
from encore.aws.stage import load_stage
from encore.errors import ConfigError, InputError

FOLDERS = {"playlists": "", "features": "features"}
"""Where the raw bucket has them, and where the folder does."""


@dataclass(frozen=True)
class Uploaded:
    """How much was uploaded."""

    files: int
    bytes: int


def upload(stage: str, folder: Path, bucket: str, s3: Any, say: Callable[[str], None]) -> Uploaded:
    """Upload the files of a folder to the raw bucket of a stage, and check that they arrived with their sizes.

    ConfigError for a stage that keeps its data: other data must not get among what it has. InputError if the folder
    has no slices, or the bucket has other files.
    """
    if load_stage({"stage": stage}).keep:
        raise ConfigError(
            f"{stage} keeps its data (keep: true): nothing is uploaded to it",
            remedy="choose a stage for trials, or use `aws s3 cp`",
        )
    files = {name: sorted(path for path in (folder / own).glob("*") if path.is_file()) for name, own in FOLDERS.items()}
    if not any(path.suffix == ".json" for path in files["playlists"]):
        raise InputError(f"{folder}: no slices (*.json)", remedy="write some with `encore generate --out DIR`")
    count = total = 0
    for name, paths in files.items():
        sizes = {f"{name}/{path.name}": path.stat().st_size for path in paths}
        others = sorted(set(_sizes(s3, bucket, f"{name}/")) - set(sizes))
        if others:
            raise InputError(
                f"s3://{bucket}/{others[0]}: {len(others)} other file(s) are there already",
                remedy=f"delete them: `aws s3 rm --recursive s3://{bucket}/{name}/`",
            )
        for path in paths:
            with translate_errors(f"s3://{bucket}/{name}/{path.name}"):
                s3.upload_file(str(path), bucket, f"{name}/{path.name}")
        arrived = _sizes(s3, bucket, f"{name}/")
        wrong = [key for key, size in sizes.items() if arrived.get(key) != size]
        if wrong:
            raise InputError(
                f"s3://{bucket}/{wrong[0]}: {arrived.get(wrong[0])} bytes arrived of {sizes[wrong[0]]}",
                remedy="did anything change the files? upload them again",
            )
        say(f"{name}: {len(paths)} files, {sum(sizes.values()) / 1e6:,.1f} MB")
        count, total = count + len(paths), total + sum(sizes.values())
    return Uploaded(count, total)


def _sizes(s3: Any, bucket: str, prefix: str) -> dict[str, int]:
    """Size of each object below a prefix, by key."""
    found: dict[str, int] = {}
    with translate_errors(f"s3://{bucket}/{prefix}"):
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            found |= {item["Key"]: item["Size"] for item in page.get("Contents", ())}
    return found
