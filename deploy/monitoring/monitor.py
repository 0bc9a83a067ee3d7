"""Runs Prometheus, node_exporter for the metrics of the jobs, and Grafana if it is installed, until Ctrl-C.

    python deploy/monitoring/monitor.py --scorer 127.0.0.1:8080

All of their data is in one folder, and they listen on this machine only. Prometheus and node_exporter are Debian's
packages; with root on Debian they are installed if they are missing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final

HERE: Final = Path(__file__).resolve().parent
HOST: Final = "127.0.0.1"
PACKAGES: Final = {"prometheus": "prometheus", "prometheus-node-exporter": "prometheus-node-exporter"}
"""Debian's packages by the program that they have."""
TEXTFILES: Final = "textfile"
"""Folder of node_exporter, in the folder of the data; jobs write into it, see the setting run.textfile."""
GRAFANA_HOME: Final = Path("/usr/share/grafana")
MISSING: Final = 4
"""Exit code where something is missing, as of `encore`."""


@dataclass(frozen=True)
class Program:
    """A program to run: name, command, address, and what its environment has in addition."""

    name: str
    command: Sequence[str]
    port: int
    environment: Mapping[str, str] = field(default_factory=dict)


def configured(folder: Path, *, scorer: str, jobs_port: int, interval: str = "15s") -> Path:
    """Write Prometheus' configuration with these addresses into a folder, and return its path."""
    text = (HERE / "prometheus.yml").read_text()
    for old, new in (
        ("127.0.0.1:8080", scorer),
        ("127.0.0.1:9191", f"{HOST}:{jobs_port}"),
        ("interval: 15s", f"interval: {interval}"),
        ("- rules/", f"- {HERE}/rules/"),
    ):
        if old not in text:
            raise ValueError(f"{HERE / 'prometheus.yml'}: expected {old!r}, found none")
        text = text.replace(old, new)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "prometheus.yml"
    path.write_text(text)
    return path


def prometheus(folder: Path, port: int, configuration: Path) -> Program:
    """Prometheus with its data in a folder."""
    command = [
        "prometheus",
        f"--config.file={configuration}",
        f"--storage.tsdb.path={folder / 'prometheus'}",
        "--storage.tsdb.retention.time=30d",
        f"--web.listen-address={HOST}:{port}",
        "--log.level=warn",
    ]
    return Program("Prometheus", command, port)


def node_exporter(folder: Path, port: int) -> Program:
    """node_exporter, which reads only the files that jobs write."""
    (folder / TEXTFILES).mkdir(parents=True, exist_ok=True)
    command = [
        "prometheus-node-exporter",
        "--collector.disable-defaults",
        "--collector.textfile",
        f"--collector.textfile.directory={folder / TEXTFILES}",
        "--web.disable-exporter-metrics",
        f"--web.listen-address={HOST}:{port}",
        "--log.level=warn",
    ]
    return Program("metrics of the jobs", command, port)


def grafana(folder: Path, port: int, prometheus_port: int) -> Program | None:
    """Grafana with the dashboard, without a login; None if it is not installed."""
    server = shutil.which("grafana") or shutil.which("grafana-server")
    if server is None:
        return None
    command = [server, *(["server"] if Path(server).name == "grafana" else []), f"--homepath={GRAFANA_HOME}"]
    environment = {
        "GF_SERVER_HTTP_ADDR": HOST,
        "GF_SERVER_HTTP_PORT": str(port),
        "GF_PATHS_DATA": str(folder / "grafana"),
        "GF_PATHS_LOGS": str(folder / "grafana" / "logs"),
        "GF_PATHS_PLUGINS": str(folder / "grafana" / "plugins"),
        "GF_PATHS_PROVISIONING": str(HERE / "grafana" / "provisioning"),
        "GF_LOG_MODE": "file",
        "GF_AUTH_ANONYMOUS_ENABLED": "true",
        "GF_AUTH_DISABLE_LOGIN_FORM": "true",
        "GF_ANALYTICS_REPORTING_ENABLED": "false",
        "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
        "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH": str(HERE / "grafana" / "dashboards" / "encore.json"),
        "ENCORE_PROMETHEUS_URL": f"http://{HOST}:{prometheus_port}",
        "ENCORE_DASHBOARDS": str(HERE / "grafana" / "dashboards"),
    }
    return Program("Grafana", command, port, environment)


def missing() -> list[str]:
    """The Debian packages whose programs are not installed."""
    return [package for program, package in PACKAGES.items() if shutil.which(program) is None]


def install(packages: Sequence[str]) -> None:
    """Install Debian packages as root; raises SystemExit where that is not possible, and says what to install."""
    command = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    if shutil.which("apt-get") and os.geteuid() == 0:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-q"], check=False, stdout=sys.stderr)
        done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=sys.stderr, env=environment)
        if done.returncode == 0 and not missing():
            return
    _fail(f"not installed: {', '.join(packages)}", f"call: sudo {' '.join(command)}")


def _fail(message: str, remedy: str) -> None:
    sys.stderr.write(f"monitor: {message}\n         {remedy}\n")
    raise SystemExit(MISSING)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def running(programs: Sequence[Program]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run programs within the block, and end them after it."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for program in programs:
            environment = {**os.environ, **program.environment}
            # a session of its own: Ctrl-C reaches this process, which ends the others in order
            started.append(subprocess.Popen(program.command, env=environment, start_new_session=True))
        yield started
    finally:
        for process in started:
            process.terminate()
        for process in started:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until Ctrl-C or SIGTERM; returns the exit code: 0, or 4 if something is missing or ended by itself."""
    parser = argparse.ArgumentParser(description="Run Prometheus, node_exporter and Grafana.")
    parser.add_argument("--scorer", default=f"{HOST}:8080", help="host:port of the scorer")
    parser.add_argument("--data", type=Path, default=Path("data/monitoring"), help="folder of all data")
    parser.add_argument("--prometheus-port", type=int, default=9190)
    parser.add_argument("--jobs-port", type=int, default=9191)
    parser.add_argument("--grafana-port", type=int, default=9192)
    asked = parser.parse_args(arguments)
    lacking = missing()
    if lacking:
        install(lacking)
    folder = asked.data.resolve()
    configuration = configured(folder, scorer=asked.scorer, jobs_port=asked.jobs_port)
    programs = [
        prometheus(folder, asked.prometheus_port, configuration),
        node_exporter(folder, asked.jobs_port),
    ]
    shown = grafana(folder, asked.grafana_port, asked.prometheus_port)
    programs += [shown] if shown else []
    for program in programs:
        if not _is_free(program.port):
            option = {asked.prometheus_port: "prometheus", asked.jobs_port: "jobs"}.get(program.port, "grafana")
            _fail(f"port {program.port} is in use", f"choose another one for {program.name}: --{option}-port")
    signal.signal(signal.SIGTERM, _interrupt)
    with running(programs) as processes:
        for program in programs:
            sys.stderr.write(f"monitor: {program.name}: http://{HOST}:{program.port}\n")
        if shown is None:
            dashboard = HERE / "grafana" / "dashboards" / "encore.json"
            sys.stderr.write(f"monitor: Grafana is not installed; one that is can import {dashboard}\n")
        sys.stderr.write(f"monitor: scrapes the scorer at http://{asked.scorer}/metrics; Ctrl-C ends\n")
        try:
            while True:
                for program, process in zip(programs, processes, strict=True):
                    if process.poll() is not None:
                        sys.stderr.write(f"monitor: {program.name} ended with exit code {process.returncode}\n")
                        return MISSING
                time.sleep(0.5)
        except KeyboardInterrupt:
            return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
