"""The graph of jobs: what each reads and writes gives the order, the picture, and the part that is run."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from encore.config import Config
from encore.errors import ConfigError
from encore.lake.tables import ALL, JOB_COSTS, JOB_RUNS, QUARANTINE, SHARED, Table
from encore.runtime import registry
from encore.runtime.graph import Node, Series, compose, edges, mermaid, needs, order, predecessors, select, writer_of

REPOSITORY = Path(__file__).resolve().parents[3]
README = REPOSITORY / "README.md"


def table(name: str) -> Table:
    return Table(name, "primary", "a row", ("id",), ())


RAW, CLEAN, MODEL, REPORT = table("raw"), table("clean"), table("model"), table("report")
INGEST = Node("ingest", (RAW,), (RAW, QUARANTINE))
CLEANSE = Node("cleanse", (RAW,), (CLEAN, QUARANTINE))
FIT = Node("fit", (CLEAN,), (MODEL,))
TELL = Node("tell", (MODEL, RAW), (REPORT,))
LINE = [INGEST, CLEANSE, FIT, TELL]


@pytest.fixture(scope="module")
def nodes() -> list[Node]:
    return registry.nodes()


# order --------------------------------------------------------------------------------------------------------------


def test_a_job_comes_after_those_whose_tables_it_reads() -> None:
    assert order(LINE) == ["ingest", "cleanse", "fit", "tell"]
    assert order(LINE[::-1]) == ["ingest", "cleanse", "fit", "tell"]


def test_jobs_that_do_not_depend_on_each_other_stay_in_their_order() -> None:
    left, right = Node("left", (RAW,), (CLEAN,)), Node("right", (RAW,), (MODEL,))
    assert order([left, INGEST, right]) == ["ingest", "left", "right"]
    assert order([right, left, INGEST]) == ["ingest", "right", "left"]


def test_a_table_without_a_writer_asks_for_no_order() -> None:
    assert order([FIT]) == ["fit"]
    assert edges([FIT]) == []


def test_a_job_that_reads_what_it_writes_is_no_cycle() -> None:
    assert edges([INGEST]) == []
    assert order([INGEST]) == ["ingest"]


def test_edges_name_writer_table_and_reader() -> None:
    assert edges(LINE) == [
        ("ingest", "raw", "cleanse"),
        ("cleanse", "clean", "fit"),
        ("fit", "model", "tell"),
        ("ingest", "raw", "tell"),
    ]


def test_two_writers_of_a_table_are_refused() -> None:
    with pytest.raises(ValueError, match="clean has two writers: cleanse and again"):
        order([*LINE, Node("again", (), (CLEAN,))])


def test_only_shared_tables_may_have_many_writers() -> None:
    assert writer_of(LINE) == {"raw": "ingest", "clean": "cleanse", "model": "fit", "report": "tell"}


def test_a_cycle_is_refused_with_the_jobs_in_it() -> None:
    back = Node("back", (MODEL,), (CLEAN,))
    with pytest.raises(ValueError, match=r"a cycle among back, fit$"):
        order([INGEST, back, FIT])


def test_a_job_can_precede_others_that_read_none_of_its_tables() -> None:
    gate = Node("gate", (CLEAN,), (QUARANTINE,), before=("fit",))
    line = [TELL, FIT, gate, CLEANSE, INGEST]
    assert order(line) == ["ingest", "cleanse", "gate", "fit", "tell"]
    assert needs(line)["fit"] == {"cleanse", "gate"}
    assert predecessors(line)["tell"] == {"ingest", "cleanse", "gate", "fit"}
    assert compose(line) == Series(("ingest", "cleanse", "gate", "fit", "tell"))
    assert ("gate", "fit") not in {(before, after) for before, _, after in edges(line)}


def test_a_job_that_is_to_precede_one_that_is_not_there_asks_for_no_order() -> None:
    assert order([Node("gate", (), (), before=("nosuch",)), INGEST]) == ["gate", "ingest"]


def test_jobs_that_are_to_precede_each_other_are_a_cycle() -> None:
    with pytest.raises(ValueError, match=r"a cycle among gate, ingest$"):
        order([Node("gate", (RAW,), (), before=("ingest",)), INGEST])


# parts of the line --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "last", "only", "expected"),
    [
        (None, None, [], ["ingest", "cleanse", "fit", "tell"]),
        ("cleanse", None, [], ["cleanse", "fit", "tell"]),
        (None, "cleanse", [], ["ingest", "cleanse"]),
        ("cleanse", "fit", [], ["cleanse", "fit"]),
        ("fit", "fit", [], ["fit"]),
        (None, None, ["tell", "ingest"], ["ingest", "tell"]),
    ],
)
def test_a_part_is_selected_in_order(first: str | None, last: str | None, only: list[str], expected: list[str]) -> None:
    assert select(LINE[::-1], first, last, only) == expected


@pytest.mark.parametrize(
    ("first", "last", "only"), [("nosuch", None, []), (None, "nosuch", []), (None, None, ["fit", "nosuch"])]
)
def test_an_unknown_job_is_refused_with_the_known_ones(first: str | None, last: str | None, only: list[str]) -> None:
    with pytest.raises(ConfigError, match="no job 'nosuch'") as caught:
        select(LINE, first, last, only)
    assert caught.value.remedy == "one of: ingest, cleanse, fit, tell"


@pytest.mark.parametrize(
    ("first", "last", "only"), [("", None, []), (None, "", []), (None, None, [""])], ids=["from", "to", "only"]
)
def test_an_empty_name_is_an_unknown_job(first: str | None, last: str | None, only: list[str]) -> None:
    with pytest.raises(ConfigError, match="no job ''"):
        select(LINE, first, last, only)


@pytest.mark.parametrize(("first", "last"), [("fit", None), (None, "fit"), ("ingest", "fit")])
def test_only_beside_from_or_to_is_refused(first: str | None, last: str | None) -> None:
    with pytest.raises(ConfigError, match="--only"):
        select(LINE, first, last, ["tell"])


def test_an_empty_part_is_refused_with_the_order() -> None:
    with pytest.raises(ConfigError, match="--from tell comes after --to cleanse") as caught:
        select(LINE, "tell", "cleanse", [])
    assert caught.value.remedy == "the order is: ingest, cleanse, fit, tell"


# the real jobs ------------------------------------------------------------------------------------------------------


def test_each_table_has_one_writer(nodes: list[Node]) -> None:
    writers = writer_of(nodes)
    shared = {t.name for t in SHARED}
    assert not shared & writers.keys()
    assert {t.name for node in nodes for t in node.writes} == writers.keys() | shared


def test_every_declared_table_has_a_writer(nodes: list[Node]) -> None:
    written = {t.name for node in (*nodes, *registry.extra_nodes()) for t in node.writes}
    assert {t.name for t in ALL} - written == {JOB_RUNS.name, JOB_COSTS.name}


def test_every_table_that_is_read_is_declared_and_written(nodes: list[Node]) -> None:
    written = {t.name for node in nodes for t in node.writes}
    for node in nodes:
        assert {t.name for t in node.reads} <= written | {JOB_RUNS.name}, node.name
        assert set(map(id, (*node.reads, *node.writes))) <= set(map(id, ALL)), node.name


def test_nothing_is_declared_twice(nodes: list[Node]) -> None:
    for node in nodes:
        assert len(set(node.reads)) == len(node.reads), node.name
        assert len(set(node.writes)) == len(node.writes), node.name


def test_the_line_runs_from_slices_to_the_report(nodes: list[Node]) -> None:
    names = order(nodes)
    assert sorted(names) == sorted(registry.JOBS)
    assert order(nodes[::-1])[0].startswith("ingest_")
    place = {name: i for i, name in enumerate(names)}
    assert all(place[before] < place[after] for before, _, after in edges(nodes))
    assert (names[0], names[-1]) == ("ingest_playlists", "report")


def test_the_picture_has_every_job_and_every_edge(nodes: list[Node]) -> None:
    picture = mermaid(nodes)
    assert picture.startswith("flowchart LR\n")
    for before, name, after in edges(nodes):
        assert re.search(rf"^    {before} -- [\w, ]*\b{name}\b[\w, ]* --> {after}$", picture, re.MULTILINE)
    for node in nodes:
        assert all(f"    {node.name} -. passed .-> {after}" in picture.splitlines() for after in node.before)
    assert set(registry.JOBS) <= set(re.findall(r"\w+", picture))


def test_the_picture_in_the_readme_is_that_of_the_jobs(nodes: list[Node]) -> None:
    if not README.is_file():
        pytest.skip("there is no README.md yet")
    blocks = re.findall(r"^```mermaid\n(.*?)\n```$", README.read_text(), re.DOTALL | re.MULTILINE)
    assert mermaid(nodes) in blocks, "put the output of `encore graph` into README.md"


# entry points -------------------------------------------------------------------------------------------------------


def test_every_job_has_one_entry_point() -> None:
    assert sorted(path.stem for path in (REPOSITORY / "jobs").glob("*.py")) == sorted(
        [*registry.JOBS, *registry.EXTRA_JOBS]
    )


def test_every_job_is_a_module() -> None:
    modules = {path.stem for path in (Path(registry.__file__).parents[1] / "jobs").glob("*.py")} - {"__init__"}
    assert modules == {*registry.JOBS, *registry.EXTRA_JOBS}


@pytest.mark.parametrize("name", [*registry.JOBS, *registry.EXTRA_JOBS])
def test_an_entry_point_has_no_logic(name: str) -> None:
    source = (REPOSITORY / "jobs" / f"{name}.py").read_text()
    assert len(source.splitlines()) <= 40
    tree = ast.parse(source)
    assert name in (ast.get_docstring(tree) or "")
    assert not any(isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.For, ast.While)) for node in ast.walk(tree))
    calls = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert calls == [f"job_main({name!r})"]


@pytest.mark.parametrize("name", [*registry.JOBS, *registry.EXTRA_JOBS])
def test_a_job_declares_the_one_shape(name: str) -> None:
    module = registry.job_module(name)
    assert module.__doc__
    assert isinstance(module.READS, tuple)
    assert isinstance(module.WRITES, tuple)
    assert set(module.SETTINGS) <= set(Config.model_fields)
    assert callable(module.run)
