"""The list of the scorer's image: its patterns, and calls of functions that were compiled ahead of time."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "deploy" / "image"))

import build_image  # noqa: E402
import compile_loops  # noqa: E402
import debian_packages  # noqa: E402
from compiled_functions import Function  # noqa: E402


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("/a/*.py", ["/a/b.py", "/a/.py"], ["/a/b/c.py", "/a/b.pyc", "/x/a/b.py"]),
        ("/a/**", ["/a/b", "/a/b/c.d"], ["/ab", "/a"]),
        ("/a/**/tests/**", ["/a/tests/x", "/a/b/c/tests/x/y"], ["/a/b/mytests/x", "/a/tests"]),
        ("**/*.{c,pyi}", ["/a/b.c", "/b.pyi"], ["/a/b.cc"]),
        ("/lib{c,m}.so.?", ["/libc.so.6", "/libm.so.1"], ["/libx.so.6", "/libc.so.", "/libcxso.6"]),
    ],
)
def test_patterns_match_paths(pattern: str, matching: list[str], other: list[str]) -> None:
    found = debian_packages.matcher([pattern])
    assert [path for path in matching if not found.fullmatch(path)] == []
    assert [path for path in other if found.fullmatch(path)] == []


def test_no_pattern_matches_nothing() -> None:
    assert not debian_packages.matcher([]).fullmatch("")


def test_a_pattern_without_a_file_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    files = build_image.FileList(machine="x86_64")
    with pytest.raises(SystemExit):
        files.chosen({"package": "zlib1g", "files": ["/lib/libz.so.1", "/lib/gone*"]}, ["/lib/libz.so.1"])
    assert "zlib1g: nothing matches /lib/gone*" in capsys.readouterr().err


@pytest.mark.parametrize("machine", build_image.MACHINES)
def test_every_machine_has_a_list_and_a_type_of_cpu(machine: str) -> None:
    files = build_image.FileList(machine=machine)
    assert files.cpu in compile_loops.CPUS
    assert "{triplet}" not in str(files.entries)


def test_patterns_of_encore_match_modules() -> None:
    """Those that the build makes aside, so that a module that is renamed is noticed without building an image."""
    entry = build_image.FileList(machine="x86_64").entries["encore"]
    paths = [path for path in debian_packages.paths_in(ROOT / "lib") if "__pycache__" not in path]
    for pattern in [*entry["files"], *entry["leave_out"]]:
        found = debian_packages.matcher([pattern])
        assert "/compiled_" in pattern or any(map(found.fullmatch, paths)), pattern


def test_wheels_are_those_of_the_requirements() -> None:
    listed = {entry["package"] for entry in build_image.FileList(machine="x86_64").entries["wheel"]}
    assert set(re.findall(r"^([a-z0-9-]+)==", build_image.REQUIREMENTS.read_text(), re.MULTILINE)) == listed


def test_every_module_of_loops_is_compiled() -> None:
    """Of those that the scorer imports: not the one of ingest."""
    modules = {
        f"encore.{path.parent.name}.{path.stem}"
        for path in (ROOT / "lib" / "encore").glob("*/*loops.py")
        if path.parent.name in ("recommenders", "search")
    }
    assert modules == set(compile_loops.LOOPS)


def whole(*args: Any) -> str:
    return "whole"


def real(*args: Any) -> str:
    return "real"


FUNCTION = Function(
    "sum", (whole, [("int32", 1), None]), (real, [("float32", 1), None]), (real, [[("int64", 2), ("int64", 1)]])
)


def test_a_function_chooses_by_the_types_of_its_arguments() -> None:
    assert FUNCTION(np.zeros(3, np.int32), 1) == "whole"
    assert FUNCTION(np.zeros(0, np.float32), np.float32(2)) == "real"
    assert FUNCTION((np.zeros((1, 2), np.int64), np.zeros(2, np.int64))) == "real"


@pytest.mark.parametrize(
    "args",
    [
        (np.zeros(3, np.int64), 1),
        (np.zeros((3, 1), np.int32), 1),
        (np.zeros(6, np.int32)[::2], 1),
        ([1, 2], 1),
        (np.zeros(3, np.int32),),
        ((np.zeros((1, 2), np.int64),),),
        (np.zeros((1, 2), np.int64), np.zeros(2, np.int64)),
        (np.zeros(13, np.uint8)[1:].view(np.int32), 1),
        (np.zeros(3, ">i4"), 1),
    ],
    ids=["type", "dimensions", "strides", "list", "fewer", "fewer-in-tuple", "no-tuple", "alignment", "byte-order"],
)
def test_a_function_refuses_what_its_machine_code_would_misread(args: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match=r"^sum: expected .* found "):
        FUNCTION(*args)
