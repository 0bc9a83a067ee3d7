"""The interface of audio feature providers, and the registry of the three that exist."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from encore.config import Config
from encore.errors import ConfigError
from encore.features.providers.file import FileProvider
from encore.features.providers.reccobeats import ReccoBeatsProvider
from encore.features.providers.spotify import SpotifyProvider
from encore.features.validation import FEATURE_SCHEMA, REJECTED_SCHEMA, FeatureBatch

__all__ = ["FEATURE_SCHEMA", "PROVIDERS", "REJECTED_SCHEMA", "FeatureBatch", "Provider", "provider"]


class Provider(Protocol):
    """A source of audio features. Its rows are validated: `features` can be written to the table as they are."""

    @property
    def name(self) -> str:
        """Name in the settings and, for a service, in the column `source`."""

    @property
    def is_service(self) -> bool:
        """True for a network service, which returns only requested tracks; False for files, which yield everything."""

    def fetch(self, requested: Iterator[list[str]]) -> Iterator[FeatureBatch]:
        """Features in batches; a service yields one FeatureBatch per chunk of requested URIs, in order.

        Lazy: a service takes a chunk, yields its batch, and takes the next. Each track is returned once; repeated
        requests for it are ignored. Raises InputError for input that cannot be used at all, EnvironmentMissing for
        missing credentials or permissions, and TransientError for failures that may pass; batches that were yielded
        before the error stay valid.
        """

    @property
    def notes(self) -> list[str]:
        """What the user should know of what `fetch` has read so far, one line each."""

    def fingerprint(self) -> str:
        """Digest of what the result depends on: a file listing, or an address."""


PROVIDERS: dict[str, Callable[[Config], Provider]] = {
    "file": FileProvider.from_config,
    "spotify": SpotifyProvider.from_config,
    "reccobeats": ReccoBeatsProvider.from_config,
}
"""Providers by their name in the settings."""


def provider(config: Config) -> Provider:
    """The provider named by `features.provider`. Raises ConfigError or EnvironmentMissing."""
    make = PROVIDERS.get(config.features.provider)
    if make is None:
        raise ConfigError(
            f"features.provider: unknown provider {config.features.provider!r}", remedy=", ".join(PROVIDERS)
        )
    return make(config)
