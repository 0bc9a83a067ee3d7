"""Makes Grafana's dashboard of scorer and jobs: `python deploy/monitoring/dashboard.py` writes it.

The JSON is kept beside this file, so that Grafana can load it without Python; a test compares the two. Most expressions
are names of recording rules, so that dashboard and alerts agree.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

OUTPUT: Final = Path(__file__).with_name("grafana") / "dashboards" / "encore.json"
DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
WIDTH: Final = 24
"""Columns of Grafana's grid."""

USERS: Final = 'route!~"/ping|/health|/metrics|/v2/health/.*"'
"""Requests of users, without probes and scrapes."""
MODELS: Final = 'route!="other"'
"""Requests to a model, in the histogram of requests."""


@dataclass(frozen=True)
class Query:
    """An expression of PromQL, and the name of its series, in which {{label}} stands for the value of a label."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """A panel. `kind`: timeseries, stat, table, bargauge or heatmap; `unit`: one of Grafana's; `red`: the value from
    which it is shown in red, where there is one; `below`: whether low values are the bad ones."""

    title: str
    text: str
    kind: str
    queries: Sequence[Query]
    unit: str = "short"
    width: int = 8
    height: int = 7
    red: float | None = None
    below: bool = False


def panel(title: str, text: str, kind: str, *queries: tuple[str, str] | str, **more: Any) -> Panel:
    """A panel whose queries are expressions, with their legend or without."""
    made = [Query(query) if isinstance(query, str) else Query(*query) for query in queries]
    return Panel(title, text, kind, made, **more)


def within(seconds: str) -> str:
    """The share of answers of models that took at most so many seconds, one of the histogram's bounds."""
    return (
        f'sum(rate(encore_request_seconds_bucket{{{MODELS},le="{seconds}"}}[5m])) '
        f"/ sum(rate(encore_request_seconds_count{{{MODELS}}}[5m]))"
    )


ROWS: Final[dict[str, Sequence[Panel]]] = {
    "Now": (
        panel("Requests", "Of users, each second.", "stat", "encore:requests:rate5m", unit="reqps", width=4, height=4),
        panel(
            "Errors",
            "Share of the requests of the last 5 minutes with a status of 500 or more.",
            "stat",
            "encore:error_ratio:rate5m",
            unit="percentunit",
            width=4,
            height=4,
            red=0.001,
        ),
        panel(
            "p99",
            "99 % of the requests to a model were answered within this time.",
            "stat",
            "encore:request_seconds:p99_5m",
            unit="s",
            width=4,
            height=4,
            red=0.04,
        ),
        panel(
            "Error budget left",
            "Of the 0.1 % of requests that may fail, at the rate of the last three days.",
            "stat",
            "1 - encore:error_ratio:rate3d / 0.001",
            unit="percentunit",
            width=4,
            height=4,
            red=0.0,
            below=True,
        ),
        panel(
            "Scorers with a champion",
            "Processes that can answer.",
            "stat",
            'count(encore_model_info{role="champion"})',
            width=4,
            height=4,
            red=0.5,
            below=True,
        ),
        panel(
            "Oldest job",
            "Time since the job succeeded that waits longest.",
            "stat",
            'max(encore_job:age_seconds{job_name!="maintain"})',
            unit="s",
            width=4,
            height=4,
            red=86400,
        ),
    ),
    "Requests": (
        panel(
            "Requests by route",
            "Each second; paths are templates.",
            "timeseries",
            ("sum by (route) (rate(encore_requests_total[5m]))", "{{route}}"),
            unit="reqps",
        ),
        panel(
            "Requests by status",
            "Each second.",
            "timeseries",
            ("sum by (code) (rate(encore_requests_total[5m]))", "{{code}}"),
            unit="reqps",
        ),
        panel(
            "Errors",
            "Share of failed requests over several windows; alerts compare two of them.",
            "timeseries",
            ("encore:error_ratio:rate5m", "5 minutes"),
            ("encore:error_ratio:rate1h", "1 hour"),
            ("encore:error_ratio:rate6h", "6 hours"),
            ("encore:error_ratio:rate3d", "3 days"),
            unit="percentunit",
        ),
        panel(
            "Time of a request",
            "To a model, with waiting and JSON.",
            "timeseries",
            ("encore:request_seconds:p50_5m", "p50"),
            ("encore:request_seconds:p99_5m", "p99"),
            unit="s",
        ),
        panel(
            "p99 by route",
            "Requests with many playlists take longer.",
            "timeseries",
            (
                f"histogram_quantile(0.99, sum by (le, route) (rate(encore_request_seconds_bucket{{{MODELS}}}[5m])))",
                "{{route}}",
            ),
            unit="s",
        ),
        panel(
            "Answered in time",
            "Share of the requests to a model.",
            "timeseries",
            *((within(seconds), f"{float(seconds) * 1000:g} ms") for seconds in ("0.005", "0.015", "0.04")),
            unit="percentunit",
        ),
        panel(
            "Times of requests",
            "How many requests to a model took how long.",
            "heatmap",
            (f"sum by (le) (increase(encore_request_seconds_bucket{{{MODELS}}}[5m]))", "{{le}}"),
            unit="s",
        ),
        panel(
            "In flight and waiting",
            "Requests that are answered, and those of them that wait for a thread.",
            "timeseries",
            ("sum(encore_in_flight)", "in flight"),
            ("sum(encore_waiting)", "waiting"),
        ),
        panel(
            "Refused",
            "Requests that were not computed, each second.",
            "timeseries",
            ("sum by (reason) (rate(encore_rejected_total[5m]))", "{{reason}}"),
            unit="reqps",
        ),
    ),
    "Canary": (
        panel(
            "Weight",
            "Share of the users whom the challenger answers: as set, and as it turned out.",
            "timeseries",
            ("max(encore_canary_weight)", "set"),
            (
                'sum(encore_role:requests:rate5m{role="challenger"}) / sum(encore_role:requests:rate5m)',
                "turned out",
            ),
            unit="percentunit",
        ),
        panel(
            "p99 by role",
            "Of the time that the model needs.",
            "timeseries",
            ("encore_role:score_seconds:p99_5m", "{{role}}"),
            unit="s",
        ),
        panel(
            "Faults",
            "Requests of a challenger that the champion answered, each second; and failed requests of either.",
            "timeseries",
            ("sum by (reason) (rate(encore_canary_faults_total[5m]))", "challenger: {{reason}}"),
            ("sum by (role) (rate(encore_request_errors_total[5m]))", "failed: {{role}}"),
            unit="reqps",
        ),
        panel(
            "Verdicts",
            "On challengers, within an hour.",
            "timeseries",
            ("sum by (verdict) (increase(encore_canary_verdicts_total[1h]))", "{{verdict}}"),
        ),
        panel(
            "Versions",
            "Loaded model versions.",
            "table",
            "encore_model_info",
            width=16,
        ),
    ),
    "Model": (
        panel(
            "Unknown tracks",
            "Share of the tracks in requests that the catalogue lacks; it grows as the model ages.",
            "timeseries",
            ("encore:unknown_tracks:ratio1h", "unknown"),
            unit="percentunit",
        ),
        panel(
            "Empty answers",
            "Playlists for which nothing was recommended, each second.",
            "timeseries",
            ("sum(rate(encore_empty_answers_total[5m]))", "empty"),
            unit="short",
        ),
        panel(
            "Age of the version",
            "Time since it was loaded.",
            "timeseries",
            ("time() - encore_model_loaded_timestamp_seconds", "{{instance}} {{role}}"),
            unit="s",
        ),
        panel(
            "Loads",
            "Attempts to load a version, within an hour.",
            "timeseries",
            ("sum by (result) (increase(encore_model_loads_total[1h]))", "{{result}}"),
        ),
        panel(
            "Registry",
            "1 where it answers.",
            "timeseries",
            ("encore_registry_up", "{{instance}}"),
        ),
    ),
    "Processes": (
        panel(
            "CPU",
            "Cores in use.",
            "timeseries",
            ('rate(process_cpu_seconds_total{job="encore"}[5m])', "{{instance}}"),
        ),
        panel(
            "Memory",
            "Resident, with the mapped arrays.",
            "timeseries",
            ('process_resident_memory_bytes{job="encore"}', "{{instance}}"),
            unit="bytes",
        ),
        panel(
            "File descriptors",
            "Open ones: connections and files.",
            "timeseries",
            ('process_open_fds{job="encore"}', "{{instance}}"),
        ),
    ),
    "Jobs": (
        panel(
            "Last success",
            "Time since a job succeeded or was found to be up to date.",
            "bargauge",
            ("encore_job:age_seconds", "{{job_name}}"),
            unit="s",
            red=86400,
        ),
        panel(
            "Failed",
            "1 where the last run failed.",
            "bargauge",
            ("encore_job_failed", "{{job_name}}"),
            red=1,
        ),
        panel(
            "Failures",
            "Failed runs in this lake.",
            "timeseries",
            ("encore_job_failures_total", "{{job_name}}"),
        ),
        panel(
            "Duration",
            "Of the last successful run.",
            "timeseries",
            ("encore_job_seconds", "{{job_name}}"),
            unit="s",
        ),
        panel(
            "Peak memory",
            "Of all processes together.",
            "timeseries",
            ("sum by (job_name) (encore_job_peak_bytes)", "{{job_name}}"),
            unit="bytes",
        ),
        panel(
            "Rows",
            "Of each table after the job that writes it.",
            "timeseries",
            ('encore_job_rows{table!="quarantine"}', "{{table}}"),
        ),
        panel(
            "Quarantine",
            "Rejected records by reason.",
            "timeseries",
            ("sum by (reason) (encore_quarantine_rows)", "{{reason}}"),
        ),
        panel(
            "Expectations not met",
            "1 for each that was not met when it was last checked, and that nobody accepted.",
            "bargauge",
            ("encore_check_breached", "{{check}} {{subject}}"),
            red=1,
        ),
        panel("NDCG", "Of each model's newest evaluation.", "timeseries", ("encore_model_ndcg", "{{model}}")),
        panel(
            "R-precision",
            "Of each model's newest evaluation.",
            "timeseries",
            ("encore_model_r_precision", "{{model}}"),
        ),
    ),
}
"""The panels of each row."""


def expressions() -> list[str]:
    """All expressions of the dashboard."""
    return [query.expr for panels in ROWS.values() for shown in panels for query in shown.queries]


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, shown in ROWS.items():
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
                "panels": [],
            }
        )
        y += 1
        x = height = 0
        for one in shown:
            if x + one.width > WIDTH:
                x, y, height = 0, y + height, 0
            place = {"x": x, "y": y, "w": one.width, "h": one.height}
            panels.append(_json(one, len(panels) + 1, place))
            x, height = x + one.width, max(height, one.height)
        y += height
    return {
        "uid": "encore",
        "title": "Encore",
        "tags": ["encore"],
        "schemaVersion": 38,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Prometheus",
                    "type": "datasource",
                    "query": "prometheus",
                    "hide": 0,
                    "refresh": 1,
                    "includeAll": False,
                    "multi": False,
                    "options": [],
                }
            ]
        },
        "panels": panels,
    }


def _json(shown: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if shown.red is not None:
        first, second = ("red", "green") if shown.below else ("green", "red")
        steps = [{"color": first, "value": None}, {"color": second, "value": shown.red}]
    instant = shown.kind in ("stat", "table", "bargauge")
    targets = [
        {
            "refId": chr(ord("A") + i),
            "datasource": DATASOURCE,
            "expr": query.expr,
            "legendFormat": query.legend or "__auto",
            "editorMode": "code",
            "instant": instant,
            "range": not instant,
            "format": {"table": "table", "heatmap": "heatmap"}.get(shown.kind, "time_series"),
        }
        for i, query in enumerate(shown.queries)
    ]
    made: dict[str, Any] = {
        "id": number,
        "type": shown.kind,
        "title": shown.title,
        "description": shown.text,
        "datasource": DATASOURCE,
        "gridPos": place,
        "targets": targets,
        "fieldConfig": {
            "defaults": {"unit": shown.unit, "thresholds": {"mode": "absolute", "steps": steps}},
            "overrides": [],
        },
        "options": OPTIONS[shown.kind],
    }
    if shown.kind == "timeseries":
        made["fieldConfig"]["defaults"] |= {"min": 0, "custom": {"fillOpacity": 10, "showPoints": "never"}}
    if shown.kind == "table":
        hidden = {"Time": True, "Value": True, "__name__": True, "job": True}
        made["transformations"] = [{"id": "organize", "options": {"excludeByName": hidden}}]
    return made


_LAST: Final = {"calcs": ["lastNotNull"], "fields": "", "values": False}
OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {"reduceOptions": _LAST, "colorMode": "value", "graphMode": "none", "textMode": "auto"},
    "bargauge": {"reduceOptions": _LAST, "displayMode": "basic", "orientation": "horizontal", "showUnfilled": True},
    "table": {"showHeader": True, "cellHeight": "sm"},
    "heatmap": {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5},
        "yAxis": {"unit": "s", "reverse": False},
        "legend": {"show": True},
        "tooltip": {"show": True, "yHistogram": False},
    },
}
"""The options of each kind of panel."""


def main() -> None:
    """Write the dashboard."""
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(text())


def text() -> str:
    """The content of the file."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    main()
