"""Users who ask a scorer for recommendations all the time, and what they are answered."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType

from tests.serving.process import Running
from tests.unit.serving.bundles import URIS

USERS = 5_000


@dataclass
class Told:
    """What was answered. `versions`: how many answers are of each; `users`: who was answered by each; `failed`: what
    was no answer; `last`: when the last request was sent that a version answered, by time.monotonic."""

    versions: Counter[str] = field(default_factory=Counter)
    users: dict[str, set[int]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    last: dict[str, float] = field(default_factory=dict)

    @property
    def requests(self) -> int:
        """All of them."""
        return sum(self.versions.values()) + len(self.failed)


class Load:
    """Asks from several threads within the block, each over one connection, at most `rate` times a second in all."""

    def __init__(self, running: Running, *, rate: float = 200.0, threads: int = 8) -> None:
        self.told = Told()
        self._running, self._pause = running, threads / rate
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(i,), daemon=True) for i in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        draw = random.Random(number)
        connection = self._running.connection()
        due = time.monotonic() + draw.random() * self._pause
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            # those that wait for an answer do not ask more often afterwards
            due = max(due + self._pause, time.monotonic())
            user = draw.randrange(USERS)
            body = json.dumps({"tracks": draw.sample(URIS[:50], 3), "title": "Rock", "k": 10})
            headers = {"Content-Type": "application/json", "X-Encore-User": f"user-{user}"}
            sent = time.monotonic()
            try:
                connection.request("POST", "/api/recommend", body, headers)
                answer = connection.getresponse()
                text = answer.read()
                failed = "" if answer.status == 200 else f"{answer.status} {text[:200]!r}"
                version = answer.headers.get("X-Encore-Version", "")
            except (OSError, http.client.HTTPException) as error:
                failed, version = f"{type(error).__name__}: {error}", ""
                connection.close()
            self._count(user, version, failed, sent)
        connection.close()

    def _count(self, user: int, version: str, failed: str, sent: float) -> None:
        with self._lock:
            if failed:
                self.told.failed.append(failed)
                return
            self.told.versions[version] += 1
            self.told.users.setdefault(version, set()).add(user)
            self.told.last[version] = max(sent, self.told.last.get(version, 0.0))
