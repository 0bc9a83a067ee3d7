"""The first pass over the files that have to be read. Reading some can reveal that others must be read too."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encore.arrays.ragged import I64
from encore.lake.filesystem import SourceFile
from encore.lake.tables import TRACKS, arrow_schema
from encore.lake.track_arrays import checked_tracks
from encore.mpd import ingest
from encore.mpd.held import Held, text
from encore.mpd.naming import files_needed, unnamed, without_names
from encore.mpd.ownership import Claims, settle
from encore.mpd.parse import NAMING_FIELDS, Limits
from encore.progress import meter
from encore.runtime.context import JobContext

IDENTITY = ("track_id", "track_uri", "first_pid", "orphaned")


class Reading:
    """Parses files, and then those whose rows depend on what was found in them.

    A file depends on others in two ways: one of its playlists is now taken from another file, or no longer is; or it
    has the best remaining record of a track whose metadata came from another file. Both are rare.
    """

    def __init__(
        self, ctx: JobContext, files: dict[str, SourceFile], held: Held, limits: Limits, aside: ingest.Staging
    ) -> None:
        self.held, self.aside = held, aside
        self._ctx, self._files, self._limits = ctx, files, limits
        self._names = sorted(files)
        self._runs: dict[int, list[SourceFile]] = {}
        self._about: dict[int, pa.Table] = {}
        self._taken: dict[str, dict[int, str]] = {}
        self._digests: dict[str, str] = {}
        self._existing: pa.Table | None = None

    # results -------------------------------------------------------------------------------------------------------

    @property
    def about(self) -> pa.Table:
        """One row of ingest.FILES for each file that was read, in the order of the tasks."""
        return pa.concat_tables([ingest.FILES.empty_table(), *(self._about[task] for task in sorted(self._about))])

    @property
    def changed(self) -> list[str]:
        """Names of the files whose rows are replaced."""
        about = self.about
        found: list[str] = about.filter(pc.not_equal(about["status"], "same"))["slice"].to_pylist()
        return found

    @property
    def scratch(self) -> list[str]:
        """Names under which the tasks staged their tables, in the order of the tasks."""
        return list(dict.fromkeys(self.about["scratch"].to_pylist()))

    @property
    def claimed(self) -> I64:
        """Pids of the playlists of all existing files, including those that were not read."""
        return np.concatenate([self._read_claims().pids, self._held_claims().pids])

    @property
    def staying(self) -> np.ndarray:
        """Which rows of `held.playlists` stay as they are, bool."""
        keep = self._ctx.config.ingest.vanished == "keep"
        return self.held.staying(self.changed, self.claimed, keep_gone=keep)

    @property
    def existing(self) -> pa.Table:
        """From `tracks`: track_id, track_uri, first_pid, orphaned, and `n_missing`, the number of null NAMING_FIELDS.

        LakeError if the ids are not dense.
        """
        if self._existing is None:
            schema = pa.schema([*arrow_schema(TRACKS, IDENTITY), ("n_missing", pa.int8())])
            parts = [schema.empty_table()]
            # even without a ledger: an interrupted first run may have left tracks behind, which keep their ids
            for rows in self._ctx.stream(TRACKS, (*IDENTITY, *NAMING_FIELDS)):
                missing = np.zeros(rows.num_rows, np.int8)
                for name in NAMING_FIELDS:
                    missing += rows[name].is_null().to_numpy()
                parts.append(rows.select(IDENTITY).append_column("n_missing", pa.array(missing)))
            found = pa.concat_tables(parts)
            (self._existing,) = checked_tracks([found], found.num_rows)
        return self._existing

    def tasks(self) -> Iterator[ingest.TaskTracks]:
        """The distinct tracks of each task."""
        return (ingest.TaskTracks.read(self.aside, name) for name in self.scratch)

    def known_tracks(self) -> pa.Table:
        """As `existing`, but any record is better than that of a playlist that has changed or is gone."""
        return without_names(self.existing, self._unnamed())

    # reading -------------------------------------------------------------------------------------------------------

    def read(self, todo: list[SourceFile], again: Collection[str]) -> None:
        """Parse `todo` and the files that depend on them; those in `again` even if their content has not changed."""
        ledger = self.held.ledger
        self._digests = {file.name: ledger[file.name]["digest"] for file in todo if file.name not in again}
        pending, rounds = self._plan(todo), 0
        while True:
            self._parse(pending)
            taken, others = settle(self._names, self._read_claims(), self._held_claims())
            pending = {
                task
                for task, run in self._runs.items()
                if any(taken.get(file.name) != self._taken.get(file.name) for file in run)
            }
            # excluding the files that are still to be read: they are parsed once to find out what they contain
            self._taken = taken
            if not pending and not others:
                others, rounds = self._files_for_names(every=rounds > 1), rounds + 1
            if not pending and not others:
                return
            self._leave(others)
            pending |= self._plan([file for name, file in self._files.items() if name in others])

    def _plan(self, files: list[SourceFile]) -> set[int]:
        """Plan new tasks for some files; returns their numbers."""
        if not files:
            return set()
        parallelism = self._ctx.spark.sparkContext.defaultParallelism
        runs = ingest.tasks_of(files, self._ctx.config.ingest.slices_per_task, parallelism)
        first = max(self._runs, default=-1) + 1
        self._runs |= dict(enumerate(runs, first))
        return set(range(first, first + len(runs)))

    def _leave(self, names: Collection[str]) -> None:
        """Remove unchanged files from their tasks, because new tasks will read them after all."""
        wanted = pa.array(list(names), pa.string())
        for task, run in self._runs.items():
            self._runs[task] = [file for file in run if file.name not in names]
            self._about[task] = self._about[task].filter(pc.invert(pc.is_in(self._about[task]["slice"], wanted)))
        self._digests = {name: digest for name, digest in self._digests.items() if name not in names}

    def _parse(self, tasks: Collection[int]) -> None:
        runs = {task: self._runs[task] for task in sorted(tasks)}
        if not runs:
            return
        ctx, names = self._ctx, {file.name for run in runs.values() for file in run}
        parsing = ingest.Parsing(
            self._limits,
            self.aside,
            {name: digest for name, digest in self._digests.items() if name in names},
            {name: pids for name, pids in self._taken.items() if name in names},
        )
        with meter(ctx.name, "files", len(names)) as shown, ctx.watched(shown, len(names)):
            about = ingest.parse_files(ctx.spark, runs, parsing)
        for task in runs:
            self._about[task] = about.filter(pc.equal(about["task"], task))
        ctx.io_stats.read_rows += pc.sum(about["n_playlists"]).as_py() or 0
        ctx.io_stats.read_bytes += pc.sum(about["size_bytes"]).as_py() or 0

    def _read_claims(self) -> Claims:
        """Claims of the files that were read: the playlists taken from them, and those left to other files."""
        about = self.about
        taken = about["pids"].combine_chunks()
        pids, parents = [taken.flatten().to_numpy()], [text(about["slice"]).take(pc.list_parent_indices(taken))]
        for name, left in self._taken.items():
            pids.append(np.fromiter(left, np.int64, len(left)))
            parents.append(pa.repeat(pa.scalar(name, pa.string()), len(left)))
        files = pa.concat_arrays(parents)
        return Claims.of(self._names, np.concatenate(pids), files, files)

    def _held_claims(self) -> Claims:
        return self.held.claims(self._names, set(self.changed))

    def _unnamed(self) -> np.ndarray:
        return unnamed(self.existing, self.held.playlists["pid"].to_numpy()[self.staying])

    def _files_for_names(self, *, every: bool) -> set[str]:
        """Files that may contain the best remaining record of a track."""
        unread = set(self._files) - set(self.changed)
        if not unread or (not self.changed and not self.held.gone):
            return set()
        lost = self._unnamed()
        if not lost.any():
            return set()
        wanted = pa.array(sorted(unread), pa.string())

        def parts() -> Iterable[pa.Table]:
            for table in self.held.tables:
                for part in self._ctx.stream(table, ("pid", "slice", "track_ids")):
                    yield part.filter(pc.is_in(part["slice"], wanted))

        return files_needed(self.existing, lost, parts, self.tasks(), every=every)
