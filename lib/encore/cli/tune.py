"""Tunes a model and prints what was found, without Spark."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table as Grid

from encore.config import Config, as_yaml, check_layer, write_layer
from encore.lake.store import open_store
from encore.progress import meter
from encore.tuning.study import Outcome, Result, tune

_METRICS = ("ndcg", "r_precision", "clicks")


def tune_model(
    config: Config,
    model: str,
    *,
    trials: int,
    minutes: float | None,
    metric: str,
    save: str | None,
    out: Console,
    err: Console,
) -> None:
    """Run the missing trials of a study, and print the present and the best settings, the latter as YAML.

    `save`: the name of a configuration file to write, conf/<save>.yaml.
    """
    if save is not None:
        check_layer(save)
    with meter(f"tune {model}", "trials", trials) as shown:

        def on_start(found: Outcome) -> None:
            if found.results:
                err.print(f"{found.study}: continues after {len(found.results):,} trials", highlight=False)
            shown.update(len(found.results))

        def on_trial(found: Outcome) -> None:
            err.print(_line(found), highlight=False)
            shown.update(len(found.results))

        found = tune(
            config,
            open_store(config),
            model,
            trials=trials,
            metric=metric,
            minutes=minutes,
            on_start=on_start,
            on_trial=on_trial,
        )
    out.print(_grid(found))
    if found.best.number == 0:
        out.print("No trial was better than the present settings.")
    else:
        out.print("The best settings, for conf/:", highlight=False)
        out.print(as_yaml(found.settings), end="", highlight=False, markup=False)
    if save is not None:
        path = write_layer(save, config.env, found.settings)
        out.print(f"{path} has them: use --env {save}", highlight=False)


def _line(found: Outcome) -> str:
    last = found.results[-1]
    return (
        f"trial {last.number}: {found.metric} {last.metrics[found.metric]:.4f} "
        f"(best {found.best.metrics[found.metric]:.4f}), {last.metrics['seconds']:.1f} s: {_settings(last)}"
    )


def _settings(result: Result) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in result.settings.items())


def _grid(found: Outcome) -> Grid:
    grid = Grid(title=f"{found.study}: {len(found.results)} trials", title_justify="left")
    for column in ("", "trial", *_METRICS, "seconds"):
        grid.add_column(column, justify="left" if not column else "right")
    grid.add_column("settings")
    for name, result in (("present", found.first), ("best", found.best)):
        metrics = (f"{result.metrics[metric]:.4f}" for metric in _METRICS)
        grid.add_row(name, str(result.number), *metrics, f"{result.metrics['seconds']:.1f}", _settings(result))
    return grid
