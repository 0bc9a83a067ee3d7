"""A dashboard as Grafana's own package holds it, JSON in and out; runs in an environment of its own, without ours."""

from __future__ import annotations

import json
import sys

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

if __name__ == "__main__":
    register_default_plugins()
    sys.stdout.write(JSONEncoder().encode(Dashboard.from_json(json.load(sys.stdin))))
