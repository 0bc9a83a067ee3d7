"""What makes the result of a job stale."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

import encore


@cache
def code_digest(module: str) -> str:
    """Digest of the source of a module and of all of Encore's own that it imports: other code, another result."""
    root = Path(encore.__file__).parent
    digest, seen, todo = hashlib.blake2b(digest_size=16), set(), [module]
    while todo:
        name = todo.pop()
        path = root.joinpath(*name.split(".")[1:])
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in seen or name in _PRESENTATION or not path.is_file():
            continue
        seen.add(name)
        for statement in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("encore"):
                todo.append(str(statement.module))
                todo.extend(f"{statement.module}.{alias.name}" for alias in statement.names)
            elif isinstance(statement, ast.Import):
                todo.extend(alias.name for alias in statement.names if alias.name.startswith("encore"))
    for name in sorted(seen):
        path = root.joinpath(*name.split(".")[1:])
        digest.update(((path / "__init__.py") if path.is_dir() else path.with_suffix(".py")).read_bytes())
    return digest.hexdigest()


_PRESENTATION = frozenset(
    {
        "encore.reports.plots",
        "encore.progress",
        "encore.log",
        "encore.spark.session",
        "encore.runtime.runner",
        "encore.runtime.tracking",
    }
)
"""How a job is shown, started and logged: not what its rows are."""
