"""Environments of their own for packages that do not get along with ours."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "environments"


def interpreter(name: str, folder: Path | None = None) -> Path:
    """Of an environment in which requirements/<name>.txt is installed, made if it is missing; `folder`: of whose
    tests, by default the scorer's."""
    requirements = (folder or Path(__file__).parent) / "requirements" / f"{name}.txt"
    home = CACHE / f"{name}-{hashlib.blake2b(requirements.read_bytes(), digest_size=6).hexdigest()}"
    uv, marker, python = Path(sys.executable).with_name("uv"), home / ".complete", home / "bin" / "python"
    if not marker.is_file():
        for command in (
            [uv, "venv", "--quiet", "--clear", "--python", "3.11", home],
            [uv, "pip", "install", "--quiet", "--python", python, "--require-hashes", "-r", requirements],
        ):
            done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        marker.touch()
    return python


def answer(python: Path, script: Path, *arguments: str, asked: Any = None) -> Any:
    """The JSON that a script prints, which gets other JSON, without our packages on its path."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(python), str(script), *arguments]
    done = subprocess.run(
        command, input=json.dumps(asked), capture_output=True, text=True, check=False, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
