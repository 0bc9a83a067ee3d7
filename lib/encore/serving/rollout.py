"""A serving that tries a challenger on a part of the users, and promotes it or takes it off by itself.

The alias `challenger` starts a canary, and removing it ends it. Two threads take part. One follows the registry and is
the only one that reads and writes it. The other gives a verdict at an interval and never waits for the registry, so
that a bad challenger is off at once, whatever state the registry is in; the first one then records it.

Tags of the challenger's version hold all that another process needs to continue, since a scorer may be restarted at any
time, and several scorers may follow one registry: they go through the steps together, and each of them can take the
challenger off for all.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from encore.errors import ConfigError, EncoreError, InputError
from encore.serving.canary import Canary, Rule, Step, Verdict, steps_of
from encore.serving.metrics import Metrics
from encore.serving.models import CHALLENGER, CHAMPION, Resolved, Served, Serving, Source

Result = TypeVar("Result")

PREVIOUS: Final = "previous"
"""Alias: the champion before the present one."""

TAG: Final = "encore.canary."
"""Prefix of the tags of a version: those of Progress; `steps`, which replace the steps of the settings; `verdict`, the
last one as JSON; and `event.*`, an event each, as JSON."""
EVENT: Final = f"{TAG}event."

REQUESTED, RUNNING = "requested", "running"
ROLLING_BACK, PROMOTING = "rolling_back", "promoting"
ROLLED_BACK, PROMOTED, STOPPED, REFUSED = "rolled_back", "promoted", "stopped", "refused"
"""States. ROLLING_BACK and PROMOTING are written before aliases are changed: if a process is killed in between, the
next one finishes."""

BUSY_SHARE: Final = 0.5
"""The share of the threads that the challenger may use: a slow one must not keep the champion from answering."""

_TICK: Final = 0.1
"""Seconds between looks whether a verdict is due."""

log = logging.getLogger("encore.serving")


@dataclass(frozen=True)
class Progress:
    """How far a canary is, as its version's tags say it: its state, why it is in it, the version that it is compared
    with, its step from 0, and when it and its step began (seconds since 1970)."""

    state: str = ""
    reason: str = ""
    champion: str = ""
    step: int = 0
    started_at: float | None = None
    step_started_at: float | None = None

    @classmethod
    def of_tags(cls, tags: Mapping[str, str]) -> Progress:
        """From the tags of a version; what is missing or malformed is as at the beginning."""
        step = tags.get(f"{TAG}step", "")
        return cls(
            tags.get(f"{TAG}state", ""),
            tags.get(f"{TAG}reason", ""),
            tags.get(f"{TAG}champion", ""),
            int(step) if step.isascii() and step.isdigit() else 0,
            seconds_of(tags.get(f"{TAG}started_at", "")),
            seconds_of(tags.get(f"{TAG}step_started_at", "")),
        )

    @property
    def is_ending(self) -> bool:
        """Whether the aliases are being changed."""
        return self.state in (ROLLING_BACK, PROMOTING)


def time_of(seconds: float) -> str:
    """Seconds since 1970 as a time in ISO 8601, UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def seconds_of(time: str) -> float | None:
    """A time in ISO 8601 as seconds since 1970; None for another text."""
    try:
        return datetime.fromisoformat(time).timestamp()
    except ValueError:
        return None


def event_tag(started_at: float, step: int, event: str) -> str:
    """The tag of an event of a canary: the same one from each process that records it."""
    return f"{EVENT}{round(started_at * 1000)}.{step}.{event}"


def event_of(event: str, step: int, weight: float, at: float, champion: str, reason: str, verdict: Any) -> str:
    """The content of the tag of an event: what happened when, the weight after it, why, and the numbers."""
    fields = {"event": event, "step": step, "weight": weight, "at": time_of(at), "champion": champion}
    return json.dumps({**fields, "reason": reason, "verdict": verdict}, sort_keys=True)


def _shown(verdict: Verdict | None) -> dict[str, Any] | None:
    if verdict is None:
        return None
    numbers = {name: float(f"{value:.6g}") for name, value in verdict.numbers.items()}
    return {"decision": verdict.decision, "reason": verdict.reason, "numbers": numbers}


class Rollout(Serving):
    """Serves the champion, and a challenger to a part of the users that grows in steps.

    `steps` and `rule`: of canaries; the tag `steps` of a version replaces the steps; `threads`: how many requests are
    computed at a time; `clock`: seconds since 1970.
    """

    def __init__(
        self,
        source: Source,
        metrics: Metrics,
        *,
        steps: tuple[Step, ...],
        rule: Rule,
        threads: int = 2,
        poll_seconds: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(source, metrics, threads=threads, poll_seconds=poll_seconds)
        self._steps, self._rule, self._clock = steps, rule, clock
        self._canary: Canary | None = None
        self._live: tuple[Canary, Served] | None = None
        """The canary and its challenger, while it answers."""
        self._decided: Verdict | None = None
        """The verdict that the registry has not been told of."""
        self._settled: Canary | None = None
        """The canary that is being promoted, so that nothing is left to decide."""
        self._most_busy = max(1, math.floor(threads * BUSY_SHARE))
        self._busy: list[tuple[float, int]] = []
        """The running requests of the challenger: since when, and for how many playlists."""
        self._failed: Canary | None = None
        """The canary whose challenger has failed, so that one stack trace is logged and not each."""
        self._busy_lock = threading.Lock()
        self._judge_thread = threading.Thread(target=self._judge, name="canary", daemon=True)

    # --- requests

    def pick(self, key: bytes) -> Served | None:
        """The version that answers a request, the same one for the same key; None while none is loaded."""
        live = self._live
        return live[1] if live is not None and live[0].is_for(key) else self.champion

    def answer(
        self, served: Served, work: Callable[[Served], Result], is_empty: Callable[[Result], bool], playlists: int = 1
    ) -> tuple[Served, Result]:
        """See Serving. The champion answers instead of a challenger that fails, or that has no thread left.

        What the champion cannot answer either is no fault of the challenger.
        """
        live, champion = self._live, self.champion
        if served.role == CHALLENGER and champion is not None:
            if live is not None and live[1] is served:
                return self._answer_of_challenger(live[0], served, champion, work, is_empty, playlists)
            # taken off since it was picked
            return super().answer(champion, work, is_empty, playlists)
        if live is None or served is not champion:
            return super().answer(served, work, is_empty, playlists)
        counts, started = live[0].counts[0], time.monotonic()
        try:
            found = super().answer(served, work, is_empty, playlists)
        except Exception:
            counts.failed()
            raise
        counts.answered((time.monotonic() - started) / playlists, empty=is_empty(found[1]))
        return found

    def _answer_of_challenger(
        self,
        canary: Canary,
        challenger: Served,
        champion: Served,
        work: Callable[[Served], Result],
        is_empty: Callable[[Result], bool],
        playlists: int,
    ) -> tuple[Served, Result]:
        counts, started = canary.counts[1], time.monotonic()
        with self._busy_lock:
            oldest = min(self._busy) if len(self._busy) >= self._most_busy else None
            if oldest is None:
                self._busy.append((started, playlists))
        if oldest is not None:
            counts.diverted((started - oldest[0]) / oldest[1])
            self.metrics.canary_fault(busy=True)
            return super().answer(champion, work, is_empty, playlists)
        try:
            found = super().answer(challenger, work, is_empty, playlists)
        except Exception:
            if self._failed is not canary:
                self._failed = canary
                log.exception("the challenger, version %s, failed; the champion answers", challenger.version)
            self.metrics.canary_fault()
            found = super().answer(champion, work, is_empty, playlists)
            counts.failed()
            return found
        finally:
            with self._busy_lock:
                self._busy.remove((started, playlists))
        counts.answered((time.monotonic() - started) / playlists, empty=is_empty(found[1]))
        return found

    @property
    def canary(self) -> dict[str, Any] | None:
        """See Serving."""
        canary = self._canary
        if canary is None:
            return None
        return {
            "version": canary.version,
            "champion": canary.champion,
            "weight": canary.weight,
            "step": canary.step,
            "steps": [[step.weight, step.seconds] for step in canary.steps],
            "started_at": time_of(canary.started_at),
            "step_started_at": time_of(canary.step_started_at),
            "verdict": _shown(canary.last),
        }

    # --- verdicts, in a thread of their own

    def start(self) -> None:
        """Load in the background, follow the source and give verdicts until `stop`."""
        super().start()
        self._judge_thread.start()

    def _judge(self) -> None:
        canary, due = None, 0.0
        while not self._stop.wait(_TICK):
            live = self._live
            if live is None or live[0] is not canary:
                # due an interval after the first request can come
                canary, due = (live[0] if live else None), time.monotonic() + self._rule.seconds
            elif time.monotonic() >= due:
                due += self._rule.seconds
                self.judge()

    def judge(self) -> None:
        """Give a verdict on the challenger, and take it off if it is bad. Does not wait for the registry."""
        live = self._live
        if live is None or live[0] is self._settled:
            return
        canary, _ = live
        found = canary.judge()
        self.metrics.verdict(found.decision)
        if found.decision == "roll_back":
            canary.turn_off()
            self._live = self.challenger = None
            self.announce()
            log.warning("rolling back version %s: %s", canary.version, found.reason)
        else:
            log.info("version %s at weight %g: %s: %s", canary.version, canary.weight, found.decision, found.reason)
        self._decided = found
        self.wake()

    def announce(self) -> None:
        """Tell the metrics what is loaded, and the weight of the challenger."""
        super().announce()
        live = self._live
        self.metrics.set_weight(live[0].weight if live else 0.0)

    # --- the registry: only in the thread that follows it

    def adopt(self, wanted: Resolved) -> None:
        """Record the last verdict, load what should be served, begin or end a canary. Raises EncoreError."""
        canary, found = self._canary, self._decided
        if canary is not None and found is not None:
            if wanted.challenger == canary.version:
                self._act(canary, found)
                wanted = self.source.resolve()
            if self._decided is found:
                self._decided = None
        live = self._live
        if live is not None and wanted.champion == live[1].version:
            # another process promoted it, or a person did
            self._take_over(live[1])
        super().adopt(wanted)
        champion = self.champion
        if champion is None or champion.version != wanted.champion:
            return
        progress = Progress.of_tags(wanted.tags)
        if wanted.challenger is None:
            self._drop()
        elif wanted.challenger == champion.version:
            self._drop()
            promoted = progress.state == PROMOTING
            self._end(wanted.challenger, PROMOTED if promoted else STOPPED, progress, "it is the champion")
        else:
            self._follow_challenger(wanted.challenger, champion, progress, wanted.tags)

    def _follow_challenger(self, version: str, champion: Served, progress: Progress, tags: Mapping[str, str]) -> None:
        canary = self._canary
        if canary is not None and not _is_same(canary, version, champion.version, progress):
            self._drop()
            canary = None
        if progress.is_ending:
            # by another process, which may have been killed
            if progress.state == ROLLING_BACK:
                self._drop()
            self._finish(version, progress)
        elif canary is None:
            self._begin(version, champion, progress, tags)
        elif not canary.is_off and progress.step > canary.step:
            canary.go_to(progress.step, progress.step_started_at)
            self.announce()

    def _begin(self, version: str, champion: Served, progress: Progress, tags: Mapping[str, str]) -> None:
        """Start a canary, or continue the one that another process began."""
        resumed = progress.state == RUNNING and progress.champion == champion.version
        if not resumed:
            asked_at = progress.started_at if progress.state == REQUESTED else None
            progress = Progress(RUNNING, "", champion.version, 0, asked_at or self._clock(), self._clock())
        try:
            steps = steps_of(tags[f"{TAG}steps"]) if f"{TAG}steps" in tags else self._steps
            served = self.load(version, CHALLENGER)
        except (InputError, ConfigError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            # whatever a damaged bundle causes; what this machine lacks, or the registry, is no reason to refuse
            log.exception("version %s cannot be loaded", version)
            said = str(error) if isinstance(error, EncoreError) else f"{type(error).__name__}: {error}"
            self._end(version, REFUSED, progress, f"it cannot be loaded: {said}")
            return
        # loading takes time
        now = self.source.resolve()
        if (now.champion, now.challenger) != (champion.version, version):
            return
        canary = Canary(
            version,
            champion.version,
            steps,
            self._rule,
            started_at=progress.started_at,
            step=progress.step,
            step_started_at=progress.step_started_at,
            clock=self._clock,
        )
        self._record(canary, "resumed" if resumed else "started")
        self._decided = None
        self._canary, self.challenger = canary, served
        self._live = canary, served
        self.announce()
        log.info("version %s challenges version %s at weight %g", version, champion.version, canary.weight)

    def _act(self, canary: Canary, found: Verdict) -> None:
        """Do what follows from a verdict. Raises EncoreError if the registry does not answer: it is done later."""
        self.source.set_tag(canary.version, f"{TAG}verdict", json.dumps(_shown(found)))
        if found.decision == "roll_back":
            self._finish(canary.version, _progress(canary, ROLLING_BACK, found.reason), found)
            self._drop()
        elif found.decision == "promote" and canary.is_over:
            if canary.is_last:
                self._promote(canary, found)
            else:
                self._advance(canary, found)

    def _advance(self, canary: Canary, found: Verdict) -> None:
        step, now = canary.step + 1, self._clock()
        self._record(canary, "step", found, step, now)
        canary.go_to(step, now)
        self.announce()
        log.info("version %s goes on at weight %g", canary.version, canary.weight)

    def _promote(self, canary: Canary, found: Verdict) -> None:
        self._settled = canary
        try:
            now = self.source.resolve()
            if (now.champion, now.challenger) == (canary.champion, canary.version) and not canary.is_off:
                self._finish(canary.version, _progress(canary, PROMOTING, found.reason), found)
                if self._live is not None:
                    self._take_over(self._live[1])
        finally:
            self._settled = None

    def _take_over(self, challenger: Served) -> None:
        """Make the loaded challenger the champion."""
        challenger.role = CHAMPION
        self.champion = challenger
        log.info("version %s is the champion", challenger.version)
        self._drop()

    def _drop(self) -> None:
        """Let the challenger answer nobody any more."""
        if self._canary is None:
            return
        self._canary.turn_off()
        self._live = self.challenger = self._canary = self._decided = None
        self.announce()

    def _finish(self, version: str, progress: Progress, found: Verdict | None = None) -> None:
        """Change the aliases as a state says. Can be repeated."""
        self._tags(version, {"reason": progress.reason, "state": progress.state})
        if progress.state == PROMOTING:
            self.source.set_alias(PREVIOUS, progress.champion)
            self.source.set_alias(CHAMPION, version)
        self._end(version, PROMOTED if progress.state == PROMOTING else ROLLED_BACK, progress, progress.reason, found)

    def _end(self, version: str, state: str, progress: Progress, reason: str, found: Verdict | None = None) -> None:
        """Remove the alias, and record why."""
        self.source.delete_alias(CHALLENGER)
        now = self._clock()
        started_at = now if progress.started_at is None else progress.started_at
        event = event_of(state, progress.step, 0.0, now, progress.champion, reason, _shown(found))
        self.source.set_tag(version, event_tag(started_at, progress.step, state), event)
        self._tags(version, {"weight": "0", "reason": reason, "state": state})
        log.info("the canary of version %s has ended, %s: %s", version, state, reason)

    def _record(
        self, canary: Canary, event: str, found: Verdict | None = None, step: int | None = None, at: float | None = None
    ) -> None:
        """Write how far a canary is, and an event."""
        step = canary.step if step is None else step
        weight, reason = canary.steps[step].weight, found.reason if found else ""
        own = {
            "champion": canary.champion,
            "step": str(step),
            "weight": f"{weight:g}",
            "started_at": time_of(canary.started_at),
            "step_started_at": time_of(canary.step_started_at if at is None else at),
            "reason": reason,
            "state": RUNNING,
        }
        self._tags(canary.version, own)
        text = event_of(event, step, weight, self._clock(), canary.champion, reason, _shown(found))
        self.source.set_tag(canary.version, event_tag(canary.started_at, step, event), text)

    def _tags(self, version: str, tags: Mapping[str, str]) -> None:
        for name, value in tags.items():
            self.source.set_tag(version, f"{TAG}{name}", value)


def _is_same(canary: Canary, version: str, champion: str, progress: Progress) -> bool:
    """Whether what the registry says is about this canary, and not about a later one of the same version."""
    at = progress.started_at
    return (
        (canary.version, canary.champion) == (version, champion)
        and at is not None
        and abs(at - canary.started_at) < 0.01
        and progress.state in (RUNNING, ROLLING_BACK, PROMOTING)
    )


def _progress(canary: Canary, state: str, reason: str) -> Progress:
    return Progress(state, reason, canary.champion, canary.step, canary.started_at, canary.step_started_at)
