"""The state machine's definition, as text: its shape, and that every way through it leads somewhere."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from statelint.linter import Linter

from encore.aws.states import camel, definition, filled, placeholders
from encore.lake.tables import HOLDOUT, PLAYLISTS, TRACK_VECTORS, TRACKS
from encore.runtime import graph
from encore.runtime.registry import JOBS, nodes


def machines(machine: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A machine and those within it: branches, and what Map does for each item."""
    yield machine
    for state in machine["States"].values():
        for inner in [*state.get("Branches", ()), *([state["ItemProcessor"]] if "ItemProcessor" in state else [])]:
            yield from machines(inner)


def targets(state: dict[str, Any]) -> set[str]:
    """The states that may follow."""
    found = {state[name] for name in ("Next", "Default") if name in state}
    return found | {rule["Next"] for name in ("Catch", "Choices") for rule in state.get(name, ())}


def problems(machine: dict[str, Any]) -> list[str]:
    """What leads nowhere, what nothing leads to, and names that are there twice."""
    found, names = [], []
    for inner in machines(machine):
        states, seen, todo = inner["States"], set(), [inner["StartAt"]]
        names += states
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            if name not in states:
                found.append(f"no state {name}")
                continue
            todo += targets(states[name])
            ends = states[name].get("End") or states[name]["Type"] in ("Succeed", "Fail")
            if not ends and not targets(states[name]):
                found.append(f"{name} leads nowhere")
        found += [f"{name} is not reached" for name in states if name not in seen]
    return found + [f"{name} is there twice" for name in set(names) if names.count(name) > 1]


def states_of(machine: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: state for inner in machines(machine) for name, state in inner["States"].items()}


def test_every_way_through_the_line_leads_somewhere_and_the_language_is_kept() -> None:
    machine = definition(nodes())
    assert problems(machine) == []
    assert Linter.validate(machine) == []


@pytest.mark.parametrize("way", ["Catch", "Next", "Default"])
def test_a_way_that_leads_nowhere_is_found_by_our_check(way: str) -> None:
    machine = definition(nodes())
    for state in states_of(machine).values():
        if way in state:
            if way == "Catch":
                state["Catch"][0]["Next"] = "nowhere"
            else:
                state[way] = "nowhere"
            break
    assert "no state nowhere" in problems(machine)
    assert Linter.validate(machine) != []


def test_jobs_wait_for_those_whose_tables_they_read_and_for_no_others() -> None:
    """Read from the definition itself: what is before what in its branches."""
    after: dict[str, set[str]] = {name: set() for name in JOBS}

    def walk(machine: dict[str, Any], before: set[str]) -> set[str]:
        done, name = set(before), machine["StartAt"]
        while name is not None:
            state = machine["States"][name]
            if name.endswith("?"):
                after[name[:-1]] = set(done)
                done.add(name[:-1])
                name = state["Default"]
            else:
                done |= set().union(*(walk(branch, done) for branch in state.get("Branches", ())))
                name = state.get("Next")
        return done

    line = definition(nodes())["States"]["The line"]
    assert walk(line["Branches"][0], set()) == set(JOBS)
    needs = {name: {one for one, _, other in graph.edges(nodes()) if other == name} for name in JOBS}
    assert all(needs[name] <= after[name] for name in JOBS)
    assert {frozenset(pair) for pair in itertools.combinations(JOBS, 2) if not linked(after, *pair)} == {
        frozenset(pair) for pair in itertools.combinations(JOBS, 2) if not linked(closure(needs), *pair)
    }


def test_a_lock_that_changes_hands_while_it_is_taken_over_is_looked_at_again() -> None:
    """Its holder let it go, or the put was done and its answer lost: neither is another run at work."""
    states = definition(nodes())["States"]
    assert [rule["Next"] for rule in states["Take the lock over"]["Catch"]] == ["Take the lock"]
    assert ":mine" in states["Take the lock"]["Parameters"]["ConditionExpression"]


def linked(after: dict[str, set[str]], one: str, other: str) -> bool:
    return one in after[other] or other in after[one]


def closure(needs: dict[str, set[str]]) -> dict[str, set[str]]:
    found = copy.deepcopy(needs)
    for _ in needs:
        for name in needs:
            found[name] |= set().union(*(found[other] for other in found[name]))
    return found


def test_a_graph_that_is_not_of_series_and_parallels_alone_is_still_in_order() -> None:
    """a and b first; c needs a alone, d needs both: no cut is exact."""
    made = [
        graph.Node("a", (), (PLAYLISTS,)),
        graph.Node("b", (), (TRACKS,)),
        graph.Node("c", (PLAYLISTS,), (HOLDOUT,)),
        graph.Node("d", (PLAYLISTS, TRACKS), (TRACK_VECTORS,)),
    ]
    assert graph.compose(made) == graph.Series((graph.Parallel(("a", "b")), graph.Parallel(("c", "d"))))


def test_a_graph_in_pieces_runs_side_by_side() -> None:
    made = [graph.Node("a", (), (PLAYLISTS,)), graph.Node("b", (), (TRACKS,)), graph.Node("c", (TRACKS,), ())]
    assert graph.compose(made) == graph.Parallel(("a", graph.Series(("b", "c"))))


@pytest.mark.parametrize("job", JOBS)
def test_each_job_has_its_role_a_limit_and_someone_who_is_told(job: str) -> None:
    states = states_of(definition(nodes()))
    task = states[job]
    assert task["Resource"].endswith(":emr-serverless:startJobRun.sync")
    assert task["Parameters"]["ExecutionRoleArn"] == f"${{Role{camel(job)}}}"
    assert task["TimeoutSeconds"] > 60 * task["Parameters"]["ExecutionTimeoutMinutes"]
    assert task["Catch"] == [{"ErrorEquals": ["States.ALL"], "ResultPath": "$.error", "Next": f"{job}: why"}]
    assert {error.split(".")[1] for error in task["Retry"][0]["ErrorEquals"]} >= {"ThrottlingException"}
    assert all("States." not in error for error in task["Retry"][0]["ErrorEquals"]), "a failed run is not for Retry"
    message = states[f"{job}: tell"]["Parameters"]["Message"]
    assert {"job", "run_id.$", "reason.$", "log.$"} <= set(message)


def test_placeholders_are_filled_or_refused() -> None:
    machine = definition(nodes())
    names = placeholders(machine)
    assert {f"Role{camel(job)}" for job in JOBS} <= names
    full = filled(machine, dict.fromkeys(names, "x"))
    assert placeholders(full) == set()
    with pytest.raises(KeyError, match="Lake"):
        filled(machine, dict.fromkeys(names - {"Lake"}, "x"))


def test_extra_jobs_come_last_and_only_when_named() -> None:
    extra = graph.Node("maintain", (), ())
    machine = definition(nodes(), extra=[extra])
    states = states_of(machine)
    assert problems(machine) == []
    assert "maintain" not in states["All jobs"]["Result"]
    assert "maintain" in str(states["Is it a job"]["Choices"])
    line = machine["States"]["The line"]["Branches"][0]["States"]
    assert line["maintain?"]["Default"] == "After maintain"
