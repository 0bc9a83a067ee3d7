"""Fingerprints, which determine whether a job's result is stale, from its inputs, settings, external state and code.

Code is compared by its syntax tree, not by its bytes: comments, docstrings and line breaks do not matter. Modules that
only display, start or record jobs are left out, and so is the configuration, whose values are compared separately.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import encore
from encore.lake.tables import Table

PRESENTATION = frozenset(
    {
        "encore",
        "encore.config",
        "encore.errors",
        "encore.findings",
        "encore.interrupts",
        "encore.lake.delta",
        "encore.lake.failures",
        "encore.lake.lock",
        "encore.lake.schema",
        "encore.lake.store",
        "encore.lake.tables",
        "encore.log",
        "encore.progress",
        "encore.runtime.fingerprint",
        "encore.runtime.graph",
        "encore.runtime.leftovers",
        "encore.runtime.outcome",
        "encore.runtime.pipeline",
        "encore.runtime.provenance",
        "encore.runtime.registry",
        "encore.runtime.result",
        "encore.runtime.runner",
        "encore.runtime.tracking",
        "encore.spark.session",
        "encore.spark.stage_metrics",
        "encore.temporary",
    }
)
"""Modules that do not affect the contents of rows: messages, logs, records, starting a session, locating tables,
cleaning up. Settings and table declarations are compared by value."""


def digest(value: Any) -> str:
    """A digest of plain values; equal values have equal digests."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def code_digest(module: str, left_out: Collection[str] = ()) -> str:
    """A digest of the code, without docstrings and comments, of a module and all modules of Encore that it imports,
    directly or indirectly.

    `left_out`: further modules, or packages with their contents, to leave out along with what only they import.
    """
    return _closure_digest(module, frozenset(left_out))


@cache
def _closure_digest(module: str, left_out: frozenset[str]) -> str:
    seen: dict[str, _Module] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        if name in seen or name in PRESENTATION or _path(name) is None:
            continue
        if any(name == root or name.startswith(f"{root}.") for root in left_out):
            continue
        seen[name] = _module(name)
        todo.extend(seen[name].imports)
    return digest([[name, seen[name].digest] for name in sorted(seen)])


def modules_of(root: str) -> set[str]:
    """A module and all modules of Encore that are imported anywhere in its code or theirs, with their packages."""
    found: set[str] = set()
    todo = [root]
    while todo:
        name = todo.pop()
        if name in found or _path(name) is None:
            continue
        found.add(name)
        todo += [*_module(name).imports, name.rpartition(".")[0]]
    return found


def source_of(module: str) -> Path:
    """The file of a module or package of Encore. Raises KeyError if there is none."""
    path = _path(module)
    if path is None:
        raise KeyError(module)
    return path


def _path(name: str) -> Path | None:
    """The file of a module or package of Encore; None if the name is not one."""
    parts = name.split(".")
    if parts[0] != "encore":
        return None
    path = Path(encore.__file__).parent.joinpath(*parts[1:])
    for file in (path / "__init__.py", path.with_suffix(".py")):
        if file.is_file():
            return file
    return None


@dataclass(frozen=True)
class _Module:
    """What the fingerprint needs of a module: its digest, and the names that it imports anywhere in its code, except
    for imports only for type checkers."""

    digest: str
    imports: tuple[str, ...]


def _module(name: str) -> _Module:
    return _parsed(source_of(name).read_bytes())


@cache
def _parsed(source: bytes) -> _Module:
    tree = ast.parse(source)
    found: list[str] = []
    for statement in _statements(tree):
        if isinstance(statement, ast.ImportFrom) and statement.module:
            found.append(statement.module)
            found.extend(f"{statement.module}.{alias.name}" for alias in statement.names)
        elif isinstance(statement, ast.Import):
            found.extend(alias.name for alias in statement.names)
    return _Module(hashlib.blake2b(_syntax(tree).encode(), digest_size=16).hexdigest(), tuple(found))


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from _statements(child)


def syntax(source: bytes) -> str:
    """The syntax tree of Python code as text, without positions and without docstrings (all bare string statements)."""
    return _syntax(ast.parse(source))


def _syntax(tree: ast.Module) -> str:
    return ast.dump(_WithoutDocstrings().visit(tree))


class _WithoutDocstrings(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else node


def declaration(table: Table) -> dict[str, Any]:
    """The parts of a declaration that affect rows: column names and types, key, checks and partitions, no comments."""
    return {
        "name": table.name,
        "columns": [[column.name, column.type, column.nullable] for column in table.columns],
        "key": list(table.key),
        "checks": {name: check.sql for name, check in table.checks.items()},
        "partition_by": list(table.partition_by),
    }


def fingerprint(
    job: str,
    *,
    code: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    writes: Sequence[Table],
    state: str = "",
) -> str:
    """The fingerprint of a job's result, or of a part of it, for example for one model.

    `inputs`: by table name, the table's id and data version; `state`: the external state that the result depends on.
    """
    tables = [declaration(table) for table in writes]
    return digest({"job": job, "code": code, "settings": settings, "inputs": inputs, "writes": tables, "state": state})
