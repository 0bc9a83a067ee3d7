"""Run the scorer's image without a container engine: its root folder, read-only, in a mount namespace of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RUN = """
mount --bind "$ROOT" "$ROOT"
for folder in $SHARED; do mount --rbind "$folder" "$ROOT$folder"; done
for folder in $WRITABLE; do mount -t tmpfs -o mode=1777 tmpfs "$ROOT$folder"; done
if [ -n "$BUNDLE" ]; then mount --bind "$BUNDLE" "$ROOT/bundle"; mount -o remount,bind,ro "$ROOT/bundle"; fi
mount -o remount,bind,ro "$ROOT"
cd "$ROOT"
exec env -i $VARIABLES "$(command -v chroot)" $USERSPEC "$ROOT" "$@"
"""


def in_image(
    root: Path,
    image: Mapping[str, Any],
    command: Sequence[str],
    bundle: Path | None = None,
    shared: Sequence[str] = (),
    **variables: str,
) -> tuple[list[str], dict[str, str]]:
    """The command and the environment that run a command in the image.

    As root, it runs as the image's user; otherwise as this user, mapped to root. `bundle`: a folder without links,
    since they point to nothing in there; it is mounted at /bundle. `shared`: this machine's folders that the image
    sees.
    """
    is_root = os.geteuid() == 0
    settings = {
        "ROOT": str(root),
        "BUNDLE": str(bundle or ""),
        "SHARED": " ".join(shared),
        "WRITABLE": " ".join(image["writable"]),
        "USERSPEC": f"--userspec={image['user']}:{image['user']}" if is_root else "",
        "VARIABLES": " ".join(f"{name}={value}" for name, value in {**image["environment"], **variables}.items()),
        "PATH": os.environ["PATH"],
    }
    unshare = ["unshare", "--mount"] if is_root else ["unshare", "--map-root-user", "--mount"]
    return [*unshare, "sh", "-euc", RUN, "sh", *command], settings
