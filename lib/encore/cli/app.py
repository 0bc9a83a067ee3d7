"""The command line: `encore`, and the entry point for `spark-submit jobs/NAME.py`.

Each command imports what it needs in its body, so that `encore --help` imports little more than typer.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from encore import __version__, interrupts
from encore.cli.command import Debug, Env, Set, TakeOver, escape, guarded, settings
from encore.cli.command import exit_with as _exit
from encore.cli.deploy import deployments
from encore.errors import ConfigError, EncoreError

if TYPE_CHECKING:
    pass

app = typer.Typer(
    name="encore",
    help="Continue playlists: ingest the Million Playlist Dataset, recommend, evaluate, report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 a defect, 2 usage or configuration, 3 bad input, 4 something is missing "
    "(Java, jars, disk space), 5 the lake refuses, 75 a transient failure (try again), 130 interrupted, 143 ended.",
)


@app.command()
def generate(
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the slices; features go to its folder features/.")],
    playlists: Annotated[int, typer.Option(min=1, help="How many playlists; 1,000,000 are 33 GB.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other playlists.")] = 42,
    coverage: Annotated[float, typer.Option(min=0, max=1, help="Share of the tracks that have audio features.")] = 0.9,
    challenge: Annotated[
        int, typer.Option(min=0, help="Playlists of a challenge set, challenge_set.json, beside the slices.")
    ] = 0,
    processes: Annotated[int | None, typer.Option(min=1, help="Processes; default: one a core.")] = None,
    if_missing: Annotated[bool, typer.Option("--if-missing", help="Do nothing where the folder is complete.")] = False,
    debug: Debug = False,
) -> None:
    """Generate playlists in the dataset's format, and audio features, from a random seed."""

    def work() -> None:
        from encore.cli.console import err, out
        from encore.config import load_config
        from encore.log import configure_logging
        from encore.progress import meter
        from encore.synthetic.generate import REVISION
        from encore.synthetic.generate import generate as make

        configure_logging(load_config().log)
        done = out_dir / ".complete"
        asked = f"{__version__} {REVISION} {playlists} {seed} {coverage}{f' {challenge}' if challenge else ''}\n"
        if if_missing and done.is_file() and done.read_text() == asked:
            err.print(f"{out_dir} is there already: {playlists:,} playlists", highlight=False)
            return
        with meter("generate", "playlists", playlists) as shown:
            made = make(
                out_dir,
                playlists,
                seed=seed,
                coverage=coverage,
                processes=processes,
                on_progress=lambda count, _: shown.update(count),
            )
        if challenge:
            from encore.synthetic.challenge import write_challenge

            write_challenge(out_dir, challenge, seed=seed, tracks=made.tracks)
        done.write_text(asked)
        out.print(
            f"{made.playlists:,} playlists, {made.rows:,} rows, {made.feature_rows:,} tracks with features, "
            f"{made.bytes / 1e6:,.1f} MB in {made.files} slices: {out_dir} "
            f"({made.seconds:.1f} s, {made.bytes / 1e6 / max(made.seconds, 1e-9):,.0f} MB/s)",
            highlight=False,
        )

    _exit(guarded(work))


@app.command()
def run(
    env: Env = "local",
    overrides: Set = [],  # noqa: B006 - typer makes a new list each time
    first: Annotated[str | None, typer.Option("--from", help="First job.")] = None,
    last: Annotated[str | None, typer.Option("--to", help="Last job.")] = None,
    only: Annotated[list[str], typer.Option("--only", help="Only this job; may be repeated.")] = [],  # noqa: B006
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and run nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Run jobs again even where nothing changed.")] = False,
    take_over: TakeOver = False,
    run_id: Annotated[str | None, typer.Option(help="Id of the pipeline run, to join one; default: a new one.")] = None,
    debug: Debug = False,
) -> None:
    """Run the jobs in dependency order, skipping those that are up to date."""

    def work() -> None:
        from encore.cli.console import err, out
        from encore.runtime import pipeline

        config = settings(env, overrides, debug)
        jobs = pipeline.plan(first, last, only)
        pipeline.check(config)
        if dry_run:
            from encore.runtime.registry import node

            for name in jobs:
                job = node(name)
                reads, writes = (", ".join(table.name for table in tables) for tables in (job.reads, job.writes))
                out.print(f"[bold]{name}[/]: {reads or 'files'} -> {writes}", highlight=False)
            return
        notes: list[str] = []
        try:
            results = pipeline.run_pipeline(
                config,
                jobs,
                run_id=run_id,
                force=force,
                take_over=take_over,
                on_result=lambda result: err.print(_result_line(result), highlight=False),
                on_note=notes.append,
            )
            if all(result.status == "up_to_date" for result in results):
                out.print("Nothing to do: every table is up to date.")
            else:
                from encore.cli.show import print_metrics

                print_metrics(config, out)
        finally:
            for note in notes:
                out.print(note, highlight=False, markup=False)

    _exit(guarded(work))


def _result_line(result: Any) -> str:
    from encore.cli.show import row_counts

    rows = ", ".join(row_counts(result.rows))
    status = "up to date" if result.status == "up_to_date" else f"{result.seconds:.1f} s"
    notes = "".join(f"\n{escape(note)}" for note in result.facts.get("notes", ()))
    return f"[bold]{result.name:20}[/] {status:>10}  {rows}{notes}"


@app.command("import")
def import_command(
    source: Annotated[Path, typer.Argument(help="A file, a folder or a ZIP archive of playlists.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the slices.")],
    name: Annotated[
        str | None,
        typer.Option("--as", help="Name of the source, on which pids and file names depend; default: that of SOURCE."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Convert playlists from a Spotify account export, Exportify, M3U, CSV or Parquet to slices."""

    def work() -> None:
        from encore.cli.console import err, out
        from encore.cli.imported import print_imported
        from encore.importing.importer import import_playlists
        from encore.progress import meter

        with meter("import", "items") as shown:
            imported = import_playlists(source, out_dir, name, on_progress=shown.update)
        print_imported(imported, out_dir, out, err)

    _exit(guarded(work))


@app.command()
def recommend(
    tracks: Annotated[
        list[str], typer.Option("--tracks", "-t", help="Tracks of the playlist, separated by commas.")
    ] = [],  # noqa: B006
    title: Annotated[str | None, typer.Option(help="Title of the playlist.")] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="File of a playlist, in a format that `encore import` reads.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Default: the first of recommend.models that is fitted.")
    ] = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="How many tracks.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    env: Env = "local",
    overrides: Set = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Recommend tracks for a playlist that is in no table: its tracks, its title, or both."""

    def work() -> None:
        from encore.cli.console import err, out
        from encore.cli.recommend import print_recommendations

        config = settings(env, overrides, debug)
        print_recommendations(config, tracks, title, source, model, k, as_json=as_json, out=out, err=err)

    _exit(guarded(work))


@app.command()
def serve(
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="A folder with a bundle, or models:/NAME@ALIAS; default: serve.model."),
    ] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; default: serve.port.")] = None,
    env: Env = "local",
    overrides: Set = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Serve recommendations over HTTP, with a page to try them, until Ctrl-C or SIGTERM."""

    def work() -> None:
        # before NumPy is imported: a thread for each core makes small products many times as expensive
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        from encore.cli.console import err
        from encore.cli.serve import serve_model

        given = [f"serve.port={port}"] if port is not None else []
        serve_model(settings(env, [*overrides, *given], debug), model, err)

    _exit(guarded(work))


@app.command("models")
def models_command(
    model: Annotated[str | None, typer.Argument(help="A model; default: all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    env: Env = "local",
    overrides: Set = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """List the registered model versions: aliases, metrics, and the verdict on each."""

    def work() -> None:
        from encore.cli.console import out
        from encore.cli.models import print_models

        print_models(settings(env, overrides, debug), model, as_json=as_json, out=out)

    _exit(guarded(work))


Why = Annotated[str | None, typer.Option("--reason", help="Why; kept as a tag of the version.")]


@app.command("promote")
def promote_command(
    model: Annotated[str, typer.Argument(help="A registered model, such as ranker.")],
    version: Annotated[int | None, typer.Argument(min=1, help="Its version; default: the newest.")] = None,
    reason: Why = None,
    force: Annotated[bool, typer.Option("--force", help="Even if the version was held or refused.")] = False,
    env: Env = "local",
    overrides: Set = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Make a registered version of a model its champion, by hand."""

    def work() -> None:
        from encore.cli.console import out
        from encore.cli.models import promote

        promote(settings(env, overrides, debug), model, version, reason, force=force, out=out)

    _exit(guarded(work))


@app.command("rollback")
def rollback_command(
    model: Annotated[str, typer.Argument(help="A registered model, such as ranker.")],
    reason: Why = None,
    env: Env = "local",
    overrides: Set = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Make the champion before the present one the champion again."""

    def work() -> None:
        from encore.cli.console import out
        from encore.cli.models import roll_back

        roll_back(settings(env, overrides, debug), model, reason, out)

    _exit(guarded(work))


@app.command()
def tune(
    model: Annotated[str, typer.Argument(help="The model whose settings are tuned.")],
    trials: Annotated[int, typer.Option(min=1, help="How many trials in all, including those of earlier calls.")] = 50,
    budget: Annotated[
        float | None, typer.Option("--budget", min=0, help="Minutes after which no further trial starts.")
    ] = None,
    metric: Annotated[str, typer.Option(help="What is maximised: ndcg or r_precision.")] = "ndcg",
    save: Annotated[
        str | None, typer.Option("--save", help="Write the best settings to conf/NAME.yaml, for --env NAME.")
    ] = None,
    env: Env = "local",
    overrides: Set = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Choose a model's settings on training playlists with hidden tracks; called again, it continues."""

    def work() -> None:
        from encore.cli.console import err, out
        from encore.cli.tune import tune_model

        config = settings(env, overrides, debug)
        tune_model(config, model, trials=trials, minutes=budget, metric=metric, save=save, out=out, err=err)

    _exit(guarded(work))


@app.command()
def challenge(
    model: Annotated[str, typer.Option("--model", "-m", help="Model whose recommendations are submitted.")] = "cosine",
    out_file: Annotated[Path, typer.Option("--out", help="File to write.")] = Path("submission.csv.gz"),
    team: Annotated[str, typer.Option(help="Name of the team.")] = "",
    email: Annotated[str, typer.Option(help="Email address of the team.")] = "",
    verify: Annotated[Path | None, typer.Option("--verify", help="Only verify this submission; write nothing.")] = None,
    env: Env = "local",
    overrides: Set = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Write a submission to the RecSys Challenge 2018 for the challenge set in the lake, or verify one."""

    def work() -> None:
        from encore.cli.challenge import check_submission, make_submission
        from encore.cli.console import out

        config = settings(env, overrides, debug)
        if verify is not None:
            check_submission(config, verify, out)
        else:
            make_submission(config, model, out_file, team, email, out)

    _exit(guarded(work))


@app.command()
def sql(
    query: Annotated[str | None, typer.Argument(help="A query; without one, a shell.")] = None,
    env: Env = "local",
    overrides: Set = [],  # noqa: B006
    limit: Annotated[int, typer.Option(min=1, help="Rows that are shown at most.")] = 1000,
    debug: Debug = False,
) -> None:
    """Query the tables and the views playlist_tracks, holdout_tracks and recommended_tracks in SQL."""

    def work() -> None:
        from encore.cli.console import err, out
        from encore.cli.sql import Sql, shell

        asked = Sql(settings(env, overrides, debug))
        try:
            if query is None:
                shell(asked, out, err, limit)
            else:
                asked.print(query, out, limit)
        finally:
            asked.stop()

    _exit(guarded(work))


@app.command()
def tables(env: Env = "local", overrides: Set = [], debug: Debug = False) -> None:  # noqa: B006
    """Show the tables of the lake: rows, version, size and the job that last wrote each."""

    def work() -> None:
        from encore.cli.console import out
        from encore.cli.show import print_tables
        from encore.config import load_config

        print_tables(load_config(env, overrides), out)

    _exit(guarded(work))


@app.command()
def show(env: Env = "local", overrides: Set = [], debug: Debug = False) -> None:  # noqa: B006
    """Show the last run: duration, rows and cost of each job, and metrics by model."""

    def work() -> None:
        from encore.cli.console import out
        from encore.cli.show import print_last_run
        from encore.config import load_config

        config = load_config(env, overrides)
        print_last_run(config, out)
        out.print(
            f"MLflow: experiment {config.tracking.experiment}, `make ui` shows it; `encore log RUN_ID` logs a run that "
            "is missing there",
            highlight=False,
        )

    _exit(guarded(work))


@app.command()
def checks(
    run_id: Annotated[str | None, typer.Option(help="Of this run; default: each job's newest.")] = None,
    describe: Annotated[bool, typer.Option("--describe", help="Say what each expectation is about instead.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    env: Env = "local",
    overrides: Set = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Show what was expected of the tables, what was found, and what was not as expected."""

    def work() -> None:
        from encore.cli.checks import describe_expectations, print_checks
        from encore.cli.console import out

        config = settings(env, overrides, debug)
        if describe:
            describe_expectations(config, out)
        else:
            print_checks(config, run_id, as_json=as_json, out=out)

    _exit(guarded(work))


@app.command()
def metrics(
    textfile: Annotated[
        Path | None,
        typer.Option(help="Replace this file, for node_exporter: a name that ends in .prom. Default: print them."),
    ] = None,
    env: Env = "local",
    overrides: Set = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Write metrics of the jobs, models and rejected records for Prometheus; `run.textfile` does so after each run."""

    def work() -> None:
        from encore.lake.store import open_store
        from encore.runtime.textfile import job_metrics, write_textfile

        store = open_store(settings(env, overrides, debug))
        if textfile is None:
            typer.echo(job_metrics(store), nl=False)
        else:
            write_textfile(store, textfile)

    _exit(guarded(work))


@app.command("log")
def log_command(
    run_id: Annotated[str | None, typer.Argument(help="Id of a pipeline run; default: the last one.")] = None,
    env: Env = "local",
    overrides: Set = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Log a run to MLflow from the lake, for runs during which MLflow was unreachable."""

    def work() -> None:
        from encore.cli.console import out
        from encore.cli.log_run import log_run

        log_run(settings(env, overrides, debug), run_id, out)

    _exit(guarded(work))


@app.command()
def doctor(
    env: Env = "local",
    overrides: Set = [],  # noqa: B006
    lake: Annotated[
        bool, typer.Option("--lake", help="Check the tables of the lake instead: logs, files, keys, references.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Check Java, Python, jars, memory, disk, credentials, lake and MLflow, and suggest a remedy for each problem."""

    def work() -> None:
        from encore.cli.console import out
        from encore.cli.doctor import findings, lake_findings, print_findings

        config = settings(env, overrides, debug)
        if not print_findings(lake_findings(config) if lake else findings(config), out):
            _exit(5 if lake else 4)

    _exit(guarded(work))


@app.command("restore")
def restore_command(
    table: Annotated[str, typer.Argument(help="A table, such as playlists.")],
    version: Annotated[int | None, typer.Option(min=0, help="The version of the table to go back to.")] = None,
    time: Annotated[
        str | None, typer.Option(help="Go back to this time, such as 2026-01-31T02:00 (UTC unless it says otherwise).")
    ] = None,
    intact: Annotated[
        bool, typer.Option("--intact", help="Go back to the newest version of which every file is there.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be restored, and restore nothing.")
    ] = False,
    take_over: TakeOver = False,
    env: Env = "local",
    overrides: Set = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Bring back an earlier version of a table, and of those that its job writes with it; without one, list them."""

    def work() -> None:
        from encore.cli.console import out
        from encore.cli.recovery import restore_table

        config = settings(env, overrides, debug)
        restore_table(config, table, version, time, intact=intact, dry_run=dry_run, take_over=take_over, out=out)

    _exit(guarded(work))


@app.command("config")
def show_config(
    env: Env = "local",
    overrides: Set = [],  # noqa: B006
    describe: Annotated[bool, typer.Option("--describe", help="Say of each setting what it changes.")] = False,
    debug: Debug = False,
) -> None:
    """Print the resolved configuration."""

    def work() -> None:
        from rich.table import Table as Grid

        from encore.cli.console import out
        from encore.log import redact

        config = settings(env, overrides, debug)
        if not describe:
            out.print(config.yaml(redact), end="", highlight=False, markup=False)
            return
        grid = Grid("setting", "value", "what it changes", show_lines=False)
        for section, model in type(config).model_fields.items():
            value = getattr(config, section)
            if not hasattr(value, "model_fields_set"):
                grid.add_row(section, str(value), model.description or "")
                continue
            for name, knob in type(value).model_fields.items():
                grid.add_row(f"{section}.{name}", escape(str(getattr(value, name))), knob.description or "")
        out.print(grid)

    _exit(guarded(work))


@app.command("graph")
def show_graph(
    aws: Annotated[bool, typer.Option("--aws", help="The picture of Encore on AWS instead.")] = False,
    debug: Debug = False,
) -> None:
    """Print the graph of jobs and tables in Mermaid syntax, as shown in the README."""

    def work() -> None:
        from encore.aws.diagram import architecture
        from encore.cli.console import out
        from encore.runtime.graph import mermaid
        from encore.runtime.registry import extra_nodes, nodes

        out.print(architecture(nodes(), extra_nodes()) if aws else mermaid(nodes()), highlight=False, markup=False)

    _exit(guarded(work))


@app.command()
def submit(
    job: Annotated[str, typer.Argument(help="A job of the line, or maintain.")],
    target: Annotated[str, typer.Option("--target", "-t", help="local, emr-serverless or emr-ec2.")] = "local",
    stage: Annotated[
        str | None, typer.Option(help="Fill in what the deployment of dev, staging or prod made, from its outputs.")
    ] = None,
    env: Annotated[
        str | None, typer.Option("--env", "-e", help="Environment; default: local for local, else emr.")
    ] = None,
    overrides: Set = [],  # noqa: B006
    run_id: Annotated[str | None, typer.Option(help="Id of the pipeline run, to join one; default: a new one.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run it even where nothing changed.")] = False,
    take_over: TakeOver = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")] = False,
    debug: Debug = False,
) -> None:
    """Run one job with spark-submit, on this machine, EMR Serverless or an EMR cluster, and wait for it to end."""

    def work() -> None:
        from encore.cli.aws import submit_job
        from encore.cli.console import err, out

        code = submit_job(
            job,
            target,
            stage=stage,
            env=env or ("local" if target == "local" else "emr"),
            settings=[*overrides, *(["log.level=debug"] if debug else [])],
            run_id=run_id,
            force=force,
            take_over=take_over,
            dry_run=dry_run,
            out=out,
            err=err,
        )
        if code:
            _exit(code)

    _exit(guarded(work))


@app.command()
def cost(
    playlists: Annotated[
        int | None, typer.Option(min=1, help="How many playlists; default: as many as are in the lake.")
    ] = None,
    region: Annotated[str, typer.Option(help="Whose prices: conf/prices/<region>.yaml.")] = "us-east-1",
    executors: Annotated[
        int | None, typer.Option(min=1, help="Executors of a job on AWS; default: as many as conf/emr.yaml allows.")
    ] = None,
    cores: Annotated[
        int | None, typer.Option(min=1, help="Cores that the last run had; default: spark.master.")
    ] = None,
    stacks: Annotated[
        Path | None, typer.Option(help="Instead: what these templates cost a month; `make synth` writes build/cdk.out.")
    ] = None,
    env: Env = "local",
    overrides: Set = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Estimate from the last run what a run would cost on EMR Serverless and EC2, and explain the estimate."""

    def work() -> None:
        from encore.cli.aws import print_cost, print_stack_cost
        from encore.cli.console import out

        if stacks is not None:
            print_stack_cost(stacks, region, out)
            return

        print_cost(settings(env, overrides, debug), playlists, region, executors, cores, out)

    _exit(guarded(work))


backup = typer.Typer(name="backup", help="Copy a lake to a backup, and bring it back.", no_args_is_help=True)
app.add_typer(backup)

Place = Annotated[str, typer.Argument(help="Folder, or s3:// prefix, of the backups.")]
BackupId = Annotated[str | None, typer.Option("--id", help="A backup; default: the newest.")]


@backup.command("create")
def backup_create(
    place: Place,
    keep_days: Annotated[
        int | None, typer.Option(min=1, help="Then remove backups that are older, but never the newest one.")
    ] = None,
    env: Env = "local",
    overrides: Set = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Copy the newest version of every table, and the fitted models, as of one moment; runs may continue meanwhile."""

    def work() -> None:
        from encore.cli.console import out
        from encore.cli.recovery import create_backup

        create_backup(settings(env, overrides, debug), place, keep_days, out)

    _exit(guarded(work))


@backup.command("list")
def backup_list(
    place: Place,
    env: Env = "local",
    overrides: Set = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """List the backups in a place."""

    def work() -> None:
        from encore.cli.console import out
        from encore.cli.recovery import list_backups

        list_backups(settings(env, overrides, debug), place, out)

    _exit(guarded(work))


@backup.command("verify")
def backup_verify(
    place: Place,
    backup_id: BackupId = None,
    env: Env = "local",
    overrides: Set = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Read every file of a backup and compare it with its digest."""

    def work() -> None:
        from encore.cli.console import out
        from encore.cli.recovery import verify_backup

        verify_backup(settings(env, overrides, debug), place, backup_id, out)

    _exit(guarded(work))


@backup.command("restore")
def backup_restore(
    place: Place,
    backup_id: BackupId = None,
    time: Annotated[str | None, typer.Option(help="The newest backup that is not later than this time.")] = None,
    only: Annotated[list[str], typer.Option("--table", help="Only this table; may be repeated.")] = [],  # noqa: B006
    replace: Annotated[
        bool, typer.Option("--replace", help="Remove tables that were dropped and made again since the backup.")
    ] = False,
    take_over: TakeOver = False,
    env: Env = "local",
    overrides: Set = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Bring back what a lake lacks: all of it, or files that are missing or damaged. Newer versions of tables stay."""

    def work() -> None:
        from encore.cli.console import out
        from encore.cli.recovery import restore_backup

        config = settings(env, overrides, debug)
        restore_backup(config, place, backup_id, time, only, replace=replace, take_over=take_over, out=out)

    _exit(guarded(work))


canary = typer.Typer(name="canary", help="Try a model version on a part of the users.", no_args_is_help=True)
app.add_typer(canary)


@canary.command("start")
def canary_start(
    model: Annotated[str, typer.Argument(help="A registered model, such as ranker.")],
    version: Annotated[int, typer.Argument(min=1, help="Its version that is to be tried.")],
    steps: Annotated[
        str | None, typer.Option(help="The ramp, such as 0.05:300,0.5:600: weight:seconds of each step.")
    ] = None,
    env: Env = "local",
    overrides: Set = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Let scorers try a version, and promote it or roll it back by themselves."""

    def work() -> None:
        from encore.cli.canary import start
        from encore.cli.console import out

        start(settings(env, overrides, debug), model, version, steps, out)

    _exit(guarded(work))


@canary.command("status")
def canary_status(
    model: Annotated[str | None, typer.Argument(help="A registered model; default: all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    env: Env = "local",
    overrides: Set = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Show the versions that were tried, how far they are, and what happened."""

    def work() -> None:
        from encore.cli.canary import print_status
        from encore.cli.console import out

        print_status(settings(env, overrides, debug), model, as_json=as_json, out=out)

    _exit(guarded(work))


@canary.command("stop")
def canary_stop(
    model: Annotated[str, typer.Argument(help="A registered model, such as ranker.")],
    reason: Annotated[str | None, typer.Option("--reason", help="Why; kept as a tag of the version.")] = None,
    env: Env = "local",
    overrides: Set = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """End a canary: the champion answers everybody again."""

    def work() -> None:
        from encore.cli.canary import stop
        from encore.cli.console import out

        stop(settings(env, overrides, debug), model, reason, out)

    _exit(guarded(work))


app.add_typer(deployments)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Continue playlists: ingest the Million Playlist Dataset, recommend, evaluate, report."""
    if version:
        typer.echo(__version__)
        _exit(0)


def main() -> NoReturn:
    """The command `encore`."""

    def command() -> None:
        try:
            app(standalone_mode=True)
        except EncoreError as error:
            typer.echo(f"encore: {error}", err=True)
            sys.exit(error.exit_code)

    interrupts.run(command)


def _settings_list(text: str) -> list[str]:
    """Parse `--set-json`, for callers that cannot repeat an option. ConfigError unless it is a JSON list of strings."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--set-json {text}: not JSON: {error}") from error
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise ConfigError(f'--set-json {text}: a list of texts such as ["a.b=value"] expected')
    return found


def job_main(name: str) -> NoReturn:
    """Entry point of `spark-submit jobs/NAME.py --env ENV --set a.b=value`, which runs one job of the pipeline."""

    def command(
        env: Env = "local",
        overrides: Set = [],  # noqa: B006
        run_id: Annotated[str | None, typer.Option(help="Id of the pipeline run that it is part of.")] = None,
        force: Annotated[bool, typer.Option("--force", help="Run it even where nothing changed.")] = False,
        take_over: TakeOver = False,
        more: Annotated[
            str, typer.Option("--set-json", help="Settings after those of --set: a JSON list of a.b=value.")
        ] = "[]",
        outcome: Annotated[
            str | None,
            typer.Option(help="File or s3:// object that is to say how it ended, as JSON, for a scheduler."),
        ] = None,
        debug: Debug = False,
    ) -> None:
        def work() -> None:
            from encore.cli.console import err
            from encore.runtime import pipeline
            from encore.runtime.outcome import outcome_at

            with outcome_at(outcome, name, run_id) as warnings:
                config = settings(env, [*overrides, *_settings_list(more)], debug)
                results = pipeline.run_pipeline(
                    config,
                    [name],
                    run_id=run_id,
                    force=force,
                    take_over=take_over,
                    on_result=lambda result: err.print(_result_line(result), highlight=False),
                    on_note=lambda note: err.print(note, highlight=False, markup=False),
                )
                warnings.texts = [text for result in results for text in result.facts.get("warnings", ())]
                warnings.remedy = "`encore checks` shows every value; deploy/docs/checks.md says what to do"

        _exit(guarded(work))

    from encore.runtime.registry import job_module

    command.__doc__ = job_module(name).__doc__
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command(name)(command)
    interrupts.run(single)
