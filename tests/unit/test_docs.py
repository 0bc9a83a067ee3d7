"""What the documentation lists is what the code has."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import typer

from encore import errors
from encore.cli.app import app
from encore.lake.tables import ALL
from encore.serving.openapi import ERRORS
from encore.serving.routes import ROUTES
from encore.serving.settings import Settings
from tests.unit.test_imports import LAYERS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def section(title: str) -> str:
    """The text of a section of the README, up to the next one of the same level."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.DOTALL | re.MULTILINE)
    assert found, f"README.md has no section {title!r}"
    return found.group(1)


def test_the_readme_lists_every_table_with_its_key() -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]*?; ([^|]+?) \|", section("Tables and views"), re.MULTILINE)
    listed = {name: tuple(re.findall(r"`(\w+)`", key)) for name, key in rows}
    assert {table.name: listed.get(table.name) for table in ALL} == {table.name: table.key for table in ALL}


def test_the_readme_shows_every_package_in_the_order_of_imports() -> None:
    """A package is shown below those that it may import."""
    picture = section("Project layout").split("```")[1].split("lib/encore/\n")[1].split("\ntests/")[0]
    shown = [name for line in picture.splitlines() for name in re.findall(r"^    (\w.*?)(?:   |$)", line)]
    names = [name.strip(" /") for line in shown for name in re.split(r",|/ ", line)]
    layer = {name: number for number, names in enumerate(LAYERS) for name in names}
    assert sorted(names) == sorted(layer)
    assert [layer[name] for name in names] == sorted(layer[name] for name in names)


def test_the_readme_lists_every_command() -> None:
    listed = set(re.findall(r"^\| `encore ((?:(?:deploy|canary|backup) )?\w+)", section("Commands"), re.MULTILINE))
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    commands = {
        f"{name} {sub}" if sub else name
        for name, command in group.commands.items()
        for sub in (getattr(command, "commands", None) or [""])
    }
    assert commands - listed == set()


def test_the_readme_lists_every_exit_code_of_an_error() -> None:
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", section("Exit codes"), re.MULTILINE)}
    codes = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "exit_code")}
    assert codes - listed == set()


def test_the_page_on_serving_lists_paths_limits_and_statuses() -> None:
    page = (ROOT / "deploy" / "docs" / "serving.md").read_text()
    limits = {field.name for field in fields(Settings) if field.name.startswith("max_")}
    assert limits - set(re.findall(r"`(max_\w+)`", page)) == set()
    assert {str(status) for status in ERRORS} - set(re.findall(r"^\| (\d{3}) \|", page, re.MULTILINE)) == set()
    first = {route.template.split("/{")[0] for route in ROUTES} - {"/api/openapi.json"}
    assert [path for path in sorted(first) if path not in page and "{model}" not in path] == []
    for name, value in re.findall(r"^\| [^|]+ \| `(\w+)` \| ([\d,]+) \|", page, re.MULTILINE):
        assert getattr(Settings(), name) == int(value.replace(",", "")), name


def test_each_row_of_the_sources_is_a_test() -> None:
    page = (ROOT / "deploy" / "docs" / "sources.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| source")]
    named = {name for line in rows for name in re.findall(r"`(test_\w+)`", line.rpartition(" | ")[2])}
    assert len(rows) > 60
    assert all("`test_" in line for line in rows if not line.startswith("| submission |"))
    files = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    there = {name for text in files for name in re.findall(r"def (test_\w+)\(", text)}
    assert named - there == set()
