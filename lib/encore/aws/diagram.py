"""The architecture diagram of Encore on AWS, generated from the jobs and how the state machine runs them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from encore.aws.access import RAW
from encore.lake.tables import FRAMEWORK
from encore.runtime.graph import Node, Parallel, Part, compose
from encore.runtime.registry import SMOKE


def architecture(nodes: Sequence[Node], extra: Sequence[Node]) -> str:
    """A Mermaid flowchart: what starts the pipeline, the jobs as the state machine runs them, and what each writes."""
    steps: list[tuple[str, str]] = []
    first, _ = _join(compose(nodes), steps)
    before = [node.name for node in extra if node.name == SMOKE]
    others = [node.name for node in extra if node.name != SMOKE]
    steps = [*((one, other) for one in before for other in first), *steps]
    lines = [
        "flowchart LR",
        "    schedule([EventBridge Scheduler<br>nightly]) -->|execution id = run id| machine",
        "    weekly([EventBridge Scheduler<br>weekly]) -->|only| machine",
        "    schedule -. not started .-> dead[(SQS dead letters)]",
        "    machine[[Step Functions]] <-->|one execution at a time| lock[(DynamoDB lock)]",
        "    machine -. job, run, reason, log .-> topic([SNS failures])",
        "    subgraph emr [EMR Serverless, one role a job]",
        *(f"        {one} --> {other}" for one, other in steps),
        *(f"        {name}" for name in others),
        "    end",
        *(f"    machine -->|startJobRun.sync| {name}" for name in before or first),
        *(f"    machine --> {name}" for name in others),
        *(
            f"    {folder}[(S3 raw<br>{folder}/)] --> {job}"
            for job, folders in sorted(RAW.items())
            for folder in folders
        ),
    ]
    for node in nodes:
        tables = "<br>".join(table.name for table in node.writes)
        if tables:
            lines.append(f'    {node.name} -->|"{tables}"| lake[(S3 lake<br>Delta)]')
    lines += [
        f"    emr -->|{', '.join(table.name for table in FRAMEWORK)}| lake",
        "    emr -->|metrics| mlflow[MLflow<br>private]",
        "    emr -->|log, outcome| logs[(S3 logs)]",
        "    logs -->|exit code| machine",
        "    lake --> athena[Glue and Athena<br>tables and views]",
    ]
    return "\n".join(lines)


def _join(part: Part, steps: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Add the arrows within a part to `steps`; returns the part's first jobs and its last jobs."""
    if isinstance(part, str):
        return [part], [part]
    ends = [_join(inner, steps) for inner in part.parts]
    if isinstance(part, Parallel):
        return [name for first, _ in ends for name in first], [name for _, last in ends for name in last]
    for (_, before), (after, _) in pairwise(ends):
        steps.extend((one, other) for one in before for other in after)
    return ends[0][0], ends[-1][1]
