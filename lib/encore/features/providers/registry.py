"""Where audio features come from: one interface, and a registry of three providers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from encore.config import Config
from encore.errors import ConfigError
from encore.features.providers.file import FileProvider
from encore.features.providers.reccobeats import ReccoBeatsProvider
from encore.features.providers.spotify import SpotifyProvider
from encore.features.validation import FEATURE_SCHEMA, REFUSED_SCHEMA, Fetched

__all__ = ["FEATURE_SCHEMA", "PROVIDERS", "REFUSED_SCHEMA", "Fetched", "Provider", "provider"]


class Provider(Protocol):
    """A source of audio features. Its rows are checked: what is in `features` is fit for the table.

    `name`: as in the settings. `asks`: False where `fetch` ignores `wanted` and yields all that it has
    (files), True for a network service, which is asked only for what is wanted.
    """

    @property
    def name(self) -> str:
        """Name in the settings and, for a service, in the column `source`."""

    @property
    def asks(self) -> bool:
        """Whether `fetch` looks at `wanted`."""

    def fetch(self, wanted: Iterator[list[str]]) -> Iterator[Fetched]:
        """Features by chunks; for each chunk of URIs in `wanted` a service yields one Fetched, in order.

        Lazy: a service draws a chunk, answers it, and draws the next. A track is answered once; one that is
        wanted again is passed over. Raises InputError for input that cannot be used at all,
        EnvironmentMissing for credentials or rights, TransientError for what may work later: what was yielded
        before it stays good.
        """

    def state(self) -> str:
        """Digest of what the answer depends on: a listing, or an address."""


PROVIDERS: dict[str, Callable[[Config], Provider]] = {
    "file": FileProvider.of,
    "spotify": SpotifyProvider.of,
    "reccobeats": ReccoBeatsProvider.of,
}
"""Providers by their name in the settings."""


def provider(config: Config) -> Provider:
    """The provider that `features.provider` names. Raises ConfigError or EnvironmentMissing."""
    make = PROVIDERS.get(config.features.provider)
    if make is None:
        raise ConfigError(
            f"features.provider: unknown provider {config.features.provider!r}", remedy=", ".join(PROVIDERS)
        )
    return make(config)
