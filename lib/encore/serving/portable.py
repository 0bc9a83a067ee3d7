"""A copy of the scorer's code under a name of its own, for storing it with a model version.

Two versions of a package cannot be imported into one process under one name. So the copy is renamed: its name contains
a digest of its content, and copies with equal names are equal.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Final

from encore.runtime.fingerprint import modules_of, source_of

ROOT: Final = "encore.serving.scorer"
_IMPORT: Final = re.compile(r"^(\s*)(from|import) encore(?=[.\s])", re.MULTILINE)


def write_package(folder: Path) -> str:
    """Write a renamed copy of the modules that the scorer needs below a folder; returns the name of the package.

    Contains every module that is imported anywhere in the code of another one, such as in functions.
    """
    sources = {name: source_of(name) for name in modules_of(ROOT)}
    texts = {name: path.read_text(encoding="utf-8") for name, path in sources.items()}
    digest = hashlib.blake2b(digest_size=6)
    for name in sorted(texts):
        digest.update(f"{name}\n{texts[name]}\n".encode())
    package = f"encore_{digest.hexdigest()}"
    for name, text in texts.items():
        parts = name.split(".")[1:]
        path = folder.joinpath(package, *parts)
        path = path / "__init__.py" if sources[name].name == "__init__.py" else path.with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_IMPORT.sub(rf"\1\2 {package}", text), encoding="utf-8")
    return package
