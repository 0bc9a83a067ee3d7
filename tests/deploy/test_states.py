"""The definition of the state machine: its structure, and that every transition has a target."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from statelint.linter import Linter

from encore.aws.states import Limits, camel, definition, placeholders, substitute
from encore.lake.tables import HOLDOUT, PLAYLISTS, TRACK_VECTORS, TRACKS
from encore.runtime import graph
from encore.runtime.registry import JOBS, extra_nodes, nodes


def machines(machine: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A state machine and those nested in it: branches, and the item processors of Map states."""
    yield machine
    for state in machine["States"].values():
        for inner in [*state.get("Branches", ()), *([state["ItemProcessor"]] if "ItemProcessor" in state else [])]:
            yield from machines(inner)


def targets(state: dict[str, Any]) -> set[str]:
    """The states that may follow a state."""
    found = {state[name] for name in ("Next", "Default") if name in state}
    return found | {rule["Next"] for name in ("Catch", "Choices") for rule in state.get(name, ())}


def problems(machine: dict[str, Any]) -> list[str]:
    """Dead ends, unreachable states, and names that are duplicate or too long."""
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
                found.append(f"{name} has no successor")
        found += [f"{name} is unreachable" for name in states if name not in seen]
    # Step Functions accepts no longer names
    found += [f"{name} has more than 80 characters" for name in names if len(name) > 80]
    return found + [f"{name} is duplicated" for name in set(names) if names.count(name) > 1]


def states_of(machine: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: state for inner in machines(machine) for name, state in inner["States"].items()}


def test_every_transition_has_a_target_and_statelint_passes() -> None:
    machine = definition(nodes(), extra=extra_nodes())
    assert problems(machine) == []
    assert Linter.validate(machine) == []


@pytest.mark.parametrize("transition", ["Catch", "Next", "Default"])
def test_a_transition_without_a_target_is_found(transition: str) -> None:
    machine = definition(nodes())
    for state in states_of(machine).values():
        if transition in state:
            if transition == "Catch":
                state["Catch"][0]["Next"] = "nowhere"
            else:
                state[transition] = "nowhere"
            break
    assert "no state nowhere" in problems(machine)
    assert Linter.validate(machine) != []


def test_jobs_wait_only_for_the_jobs_that_they_need() -> None:
    """Derived from the definition itself: which jobs precede which in its branches."""
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

    pipeline = definition(nodes())["States"]["Run pipeline"]
    assert walk(pipeline["Branches"][0], set()) == set(JOBS)
    needs = graph.needs(nodes())
    assert all(needs[name] <= after[name] for name in JOBS)
    assert {frozenset(pair) for pair in itertools.combinations(JOBS, 2) if not linked(after, *pair)} == {
        frozenset(pair) for pair in itertools.combinations(JOBS, 2) if not linked(closure(needs), *pair)
    }


def test_a_lock_that_changes_hands_during_a_takeover_is_looked_up_again() -> None:
    """Its holder released it, or the response to our own put was lost: neither means that another run is going."""
    states = definition(nodes())["States"]
    assert [rule["Next"] for rule in states["Take over lock"]["Catch"]] == ["Acquire lock"]
    assert ":mine" in states["Acquire lock"]["Parameters"]["ConditionExpression"]


def linked(after: dict[str, set[str]], one: str, other: str) -> bool:
    return one in after[other] or other in after[one]


def closure(needs: dict[str, set[str]]) -> dict[str, set[str]]:
    found = copy.deepcopy(needs)
    for _ in needs:
        for name in needs:
            found[name] |= set().union(*(found[other] for other in found[name]))
    return found


def test_a_graph_that_is_not_series_parallel_keeps_its_order() -> None:
    """a and b come first; c needs only a, d needs both: no cut is exact."""
    made = [
        graph.Node("a", (), (PLAYLISTS,)),
        graph.Node("b", (), (TRACKS,)),
        graph.Node("c", (PLAYLISTS,), (HOLDOUT,)),
        graph.Node("d", (PLAYLISTS, TRACKS), (TRACK_VECTORS,)),
    ]
    assert graph.compose(made) == graph.Series((graph.Parallel(("a", "b")), graph.Parallel(("c", "d"))))
    assert graph.width(graph.compose(made)) == 2


def test_disconnected_parts_of_a_graph_run_in_parallel() -> None:
    made = [graph.Node("a", (), (PLAYLISTS,)), graph.Node("b", (), (TRACKS,)), graph.Node("c", (TRACKS,), ())]
    assert graph.compose(made) == graph.Parallel(("a", graph.Series(("b", "c"))))
    assert graph.width(graph.Series(("d", graph.Parallel(("a", graph.Parallel(("b", "c"))))))) == 3


@pytest.mark.parametrize("job", JOBS)
def test_each_job_has_a_role_a_time_limit_and_a_notification(job: str) -> None:
    states = states_of(definition(nodes()))
    task = states[job]
    assert task["Resource"].endswith(":emr-serverless:startJobRun.sync")
    assert task["Parameters"]["ExecutionRoleArn"] == f"${{Role{camel(job)}}}"
    assert task["TimeoutSeconds"] > 60 * task["Parameters"]["ExecutionTimeoutMinutes"]
    assert task["Catch"] == [{"ErrorEquals": ["States.ALL"], "ResultPath": "$.error", "Next": f"{job}: read outcome"}]
    assert {error.split(".")[1] for error in task["Retry"][0]["ErrorEquals"]} >= {"ThrottlingException"}
    assert all("States." not in error for error in task["Retry"][0]["ErrorEquals"]), "a failed run is not for Retry"
    message = states[f"{job}: notify"]["Parameters"]["Message"]
    assert {"job", "run_id.$", "reason.$", "log.$"} <= set(message)


def test_every_placeholder_needs_a_value() -> None:
    machine = definition(nodes())
    names = placeholders(machine)
    assert {f"Role{camel(job)}" for job in JOBS} <= names
    full = substitute(machine, dict.fromkeys(names, "x"))
    assert placeholders(full) == set()
    with pytest.raises(KeyError, match="Lake"):
        substitute(machine, dict.fromkeys(names - {"Lake"}, "x"))


def test_the_smoke_job_comes_first_unless_the_input_says_no() -> None:
    machine = definition(nodes(), extra=extra_nodes(), limits=Limits(spark=SETTINGS))
    assert problems(machine) == []
    assert Linter.validate(machine) == []
    states = states_of(machine)
    assert machine["States"]["Run pipeline"]["Branches"][0]["StartAt"] == "smoke?"
    assert states["Defaults"]["Result"]["smoke"] is True
    for name, state in states.items():
        if name == "All jobs" or name.startswith("From "):
            assert state["Result"][0] == "smoke", name
    (choice,) = states["smoke?"]["Choices"]
    assert {one["Variable"] for one in choice["And"]} == {"$.run.smoke", "$.input.smoke"}
    task = states["smoke"]
    assert task["Parameters"]["ExecutionTimeoutMinutes"] == 15, "a network without a way out would make it wait"
    for job, executors in (("smoke", 1), ("report", 4)):
        sent = states[job]["Parameters"]["JobDriver"]["SparkSubmit"]["SparkSubmitParameters"]
        assert f"maxExecutors={executors} " in f"{sent} ", job


SETTINGS = tuple((f"spark.dynamicAllocation.{name}", "4") for name in ("initialExecutors", "maxExecutors"))


def test_extra_jobs_come_last_and_only_run_when_named() -> None:
    extra = graph.Node("maintain", (), ())
    machine = definition(nodes(), extra=[extra])
    states = states_of(machine)
    assert problems(machine) == []
    assert "maintain" not in states["All jobs"]["Result"]
    assert "maintain" in str(states["Check job name"]["Choices"])
    pipeline = machine["States"]["Run pipeline"]["Branches"][0]["States"]
    assert pipeline["maintain?"]["Default"] == "After maintain"
