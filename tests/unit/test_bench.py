"""Benchmark reports, without a clock: spreads, verdicts, files, memory limits."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib import image

from tests.bench import __main__ as bench_command
from tests.bench.figures import (
    BenchError,
    Check,
    Figure,
    Found,
    Report,
    compare,
    figure,
    found_of,
    markdown,
    ratio,
    read_report,
    shown,
    write_json,
)
from tests.bench.limits import in_cgroup, parse_size
from tests.bench.line import Ran, figures_of, growth
from tests.bench.machine import clean_environment
from tests.bench.memory import Peaks, kind_of, tree_memory

MACHINE = {"cpu": "x", "cores": 2, "memory_gb": 24.0}


def report(*figures: Figure, quick: bool = False, checks: tuple[Check, ...] = (), **machine: object) -> Report:
    return Report("20260101", quick, ["topk"], {**MACHINE, **machine}, Found(list(figures), list(checks)))


def verdict(a: Figure, b: Figure) -> str:
    (change,), _ = compare(report(a), report(b))
    return change.verdict


def test_a_figure_is_the_median_with_its_extremes() -> None:
    found = figure("a", "s", [3.0, 1.0, 2.0])
    assert (found.value, found.low, found.high, found.repeats) == (2.0, 1.0, 3.0, 3)
    with pytest.raises(ValueError, match="at least one"):
        figure("a", "s", [])


def test_the_spread_of_a_ratio_covers_both_spreads() -> None:
    found = ratio("r", figure("a", "s", [8.0, 10.0, 12.0]), figure("b", "s", [1.0, 2.0, 4.0]))
    assert (found.value, found.low, found.high) == (5.0, 2.0, 12.0)
    assert found.better == "higher"


def test_only_a_change_beyond_the_noise_has_a_direction() -> None:
    slow, fast, near = figure("a", "s", [10.0, 10.1]), figure("a", "s", [5.0, 5.1]), figure("a", "s", [10.05, 10.2])
    assert verdict(slow, fast) == "better"
    assert verdict(fast, slow) == "worse"
    assert verdict(slow, near) == "same"
    rate = [replace(one, better="higher") for one in (slow, fast)]
    assert verdict(*rate) == "worse"
    assert verdict(figure("a", "s", [10.0]), figure("a", "s", [10.9])) == "same", "measured once: 10 % either way"
    assert verdict(slow, replace(fast, work="half of it")) == "other work"


def test_reports_of_different_sizes_do_not_compare_and_different_machines_are_warned_about() -> None:
    with pytest.raises(BenchError, match="quick"):
        compare(report(), report(quick=True))
    _, doubts = compare(report(), report(cores=8, checks=(Check("topk.x.agrees", False, "off"),)))
    assert doubts == ["cores: 2 and 8", "B: topk.x.agrees failed: off"]


def test_a_report_survives_a_round_trip_through_its_file(tmp_path: Path) -> None:
    made = report(figure("a", "s", [1.0, 2.0]), checks=(Check("c", True, "d"),))
    write_json(tmp_path / "r.json", made.as_json())
    assert read_report(tmp_path / "r.json") == made
    (tmp_path / "r.json").write_text('{"schema": 0}')
    with pytest.raises(BenchError, match="schema 1 expected"):
        read_report(tmp_path / "r.json")
    assert found_of({"figures": [], "checks": [], "facts": {}}) == Found()


def test_number_formatting() -> None:
    assert [shown(value) for value in (0.0, 12345.6, 123.4, 1.2345, 0.01234)] == ["0", "12,346", "123", "1.23", "0.012"]
    assert markdown(("a", "b"), [("x", "1")]) == "| a | b |\n|---|---:|\n| x | 1 |\n"


def test_variables_that_affect_library_kernels_are_removed() -> None:
    kept, removed = clean_environment({"OPENBLAS_CORETYPE": "x", "OMP_NUM_THREADS": "1", "PATH": "p"})
    assert kept == {"PATH": "p"}
    assert removed == ["OMP_NUM_THREADS", "OPENBLAS_CORETYPE"]


def test_memory_is_summed_over_the_process_tree_by_kind() -> None:
    child = subprocess.Popen(["sleep", "5"])
    try:
        found, measure = tree_memory(child.pid)
    finally:
        child.kill()
        child.wait()
    assert measure in ("pss", "rss")
    assert 0 < found["other"] < 50 << 20
    assert [kind_of(name) for name in ("java", "python3.11", "sh")] == ["jvm", "python", "other"]
    peaks = Peaks()
    peaks.note({"jvm": 5, "python": 1})
    peaks.note({"jvm": 1, "python": 4})
    assert (peaks.total, peaks.by_kind) == (6, {"jvm": 5, "python": 4})


def test_a_memory_limit_applies_to_the_command_and_its_children() -> None:
    assert [parse_size(text) for text in ("8g", "512M", "4k")] == [8 << 30, 512 << 20, 4096]
    with pytest.raises(BenchError, match="8g or 512m expected, '8' found"):
        parse_size("8")
    with in_cgroup(None) as prefix:
        assert prefix == []
    greedy = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', 'bytearray(200 << 20)']))"
    try:
        with in_cgroup(100 << 20) as prefix:
            little = subprocess.run([*prefix, "true"], check=False).returncode
            much = subprocess.run([*prefix, "python3", "-c", greedy], check=False).returncode
    except BenchError:
        pytest.skip("control groups cannot be created here")
    assert little == 0
    assert much != 0


def test_the_figures_of_a_pipeline_run() -> None:
    jobs = [{"job": "ingest_playlists", "seconds": 3.0, "shuffled_rows": 5}]
    jobs += [{"job": "recommend", "seconds": 4.0, "shuffled_rows": 0}]
    ran = Ran(seconds=10.0, memory={"all": 2_000_000_000}, disk=30, input=20, done=True, jobs=jobs)
    found = figures_of(1000, ran)
    assert found["line.n1000.recommend"].value == 4.0
    assert found["line.n1000.disk"].value == 1.5
    assert found["line.n1000.memory"].value == 2.0
    assert found.checks[0].ok
    jobs[1]["shuffled_rows"] = 1
    assert not figures_of(1000, ran).checks[0].ok
    assert growth(1000, ran, 2000, replace(ran, seconds=21.0))["line.growth.1000_2000"].value == 2.1


def test_curve_points_are_sorted_by_size(tmp_path: Path) -> None:
    names = [f"curve.{letter}{n}" for letter in bench_command.CURVES for n in (100, 20, 3)]
    figures = [figure(name, "ms/query", [float(i + 1)]) for i, name in enumerate(names)]
    assert bench_command._curve(figures, "k") == [(3, 6.0), (20, 5.0), (100, 4.0)]
    bench_command._plot(figures, tmp_path / "curves.png")
    pixels = image.imread(tmp_path / "curves.png")[:, :, :3]
    assert float(pixels.min()) < 0.5, "the plot is not blank"
