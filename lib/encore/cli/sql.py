"""Interactive SQL over the tables and views of a lake."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from encore.config import Config
from encore.errors import ConfigError
from encore.lake.store import Store, open_store
from encore.spark.session import Session


class Sql:
    """A session in which the tables and views of the lake are registered by name."""

    def __init__(self, config: Config) -> None:
        open_store(config)
        self._session = Session(config)
        self.names = Store(config, self._session).register_views()

    def rows(self, query: str, limit: int) -> tuple[pa.Table, bool]:
        """The first rows of a query's result, and whether there are more. ConfigError for an invalid query."""
        from pyspark.errors import PySparkException

        try:
            found = self._session().sql(query.strip().rstrip(";")).limit(limit + 1).toArrow()
        except PySparkException as error:
            line = next((text for text in str(error).splitlines() if text.strip()), type(error).__name__)
            raise ConfigError(line, remedy="tables and views: " + ", ".join(self.names)) from error
        return found.slice(0, limit), found.num_rows > limit

    def print(self, query: str, out: Console, limit: int) -> None:
        """Print the result of a query as a grid."""
        rows, more = self.rows(query, limit)
        grid = Grid(*(escape(name) for name in rows.column_names))
        for row in zip(*(column.to_pylist() for column in rows.columns), strict=True):
            grid.add_row(*(escape(shown(value)) for value in row))
        out.print(grid)
        if more:
            out.print(f"more than {limit:,} rows: only the first are shown (--limit)", highlight=False)

    def stop(self) -> None:
        """End the session."""
        self._session.stop()


def shown(value: Any) -> str:
    """A value as the text of a cell; long arrays are truncated."""
    if isinstance(value, list) and len(value) > 12:
        return f"[{', '.join(map(shown, value[:10]))}, ... {len(value):,} in all]"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "null" if value is None else str(value)


def shell(asked: Sql, out: Console, err: Console, limit: int) -> None:
    """Read queries, each ended by a semicolon, until `exit` or the end of input."""
    with suppress(ImportError):
        import readline  # noqa: F401 - line editing and history for input()
    out.print(
        f"tables and views: {', '.join(asked.names)}. End a query with ; and leave with exit.",
        highlight=False,
    )
    held: list[str] = []
    while True:
        try:
            line = input("   ...> " if held else "encore> ")
        except EOFError:
            return
        if not held and line.strip().lower().rstrip(";") in ("exit", "quit"):
            return
        held.append(line)
        if line.rstrip().endswith(";"):
            query, held = "\n".join(held), []
            if query.strip(" ;\n"):
                try:
                    asked.print(query, out, limit)
                except ConfigError as error:
                    err.print(escape(str(error)), highlight=False)
