"""Audio features from the Spotify Web API, for applications that still have access to them."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import requests
import spotipy
from spotipy.cache_handler import MemoryCacheHandler
from spotipy.oauth2 import SpotifyClientCredentials, SpotifyOauthError
from tenacity import Retrying

from encore.config import Config
from encore.errors import EnvironmentMissing, InputError
from encore.features.providers.service import (
    ServiceProvider,
    TryAgain,
    retry_after_seconds,
    retrying,
    service_address,
)

PUBLIC_ADDRESS = "https://api.spotify.com"

CREDENTIALS = ("SPOTIPY_CLIENT_ID", "SPOTIPY_CLIENT_SECRET")
"""The environment variables that hold the client's credentials, which are read from nowhere else."""

_INSTEAD = (
    "use features.provider=file with a table of features, or features.provider=reccobeats, which needs no credentials"
)


class SpotifyProvider(ServiceProvider):
    """Features from GET /v1/audio-features with spotipy, 100 ids per request, using client credentials.

    Spotify closed the endpoint to new applications on 2024-11-27: they get a 403. Older applications may still have
    access. With another address, the token is requested there as well, at {address}/api/token.
    """

    name = "spotify"
    ids_per_request = 100

    def __init__(
        self,
        address: str,
        retrying: Retrying,
        payload_bytes: int,
        timeout: float,
        client_id: str,
        client_secret: str,
    ) -> None:
        """`timeout`: seconds, for connecting and for each wait for data."""
        super().__init__(address, retrying, payload_bytes)
        # spotipy's debug messages contain the credentials, and its error messages repeat the exception.
        logging.getLogger("spotipy").setLevel(logging.CRITICAL)
        self._credentials = SpotifyClientCredentials(
            client_id,
            client_secret,
            requests_timeout=timeout,
            # The default handler writes the token to a file in the working directory.
            cache_handler=MemoryCacheHandler(),
        )
        # Use our own session: spotipy's turns every 429 and 5xx into a 429 without headers, even with retries
        # disabled, which loses the Retry-After header.
        self._client = spotipy.Spotify(
            auth_manager=self._credentials,
            requests_session=requests.Session(),
            requests_timeout=timeout,
            retries=0,
            status_retries=0,
        )
        if address != PUBLIC_ADDRESS:
            self._client.prefix = f"{address}/v1/"
            self._credentials.OAUTH_TOKEN_URL = f"{address}/api/token"

    @classmethod
    def from_config(cls, config: Config, sleep: Callable[[float], None] = time.sleep) -> SpotifyProvider:
        """The provider described by the settings. Raises EnvironmentMissing if there are no credentials."""
        missing = [name for name in CREDENTIALS if not os.environ.get(name)]
        if missing:
            raise EnvironmentMissing(
                f"the Spotify Web API needs credentials: {' and '.join(missing)} not set",
                remedy=f"set {' and '.join(CREDENTIALS)} to those of an application created before 2024-11-27, "
                f"or {_INSTEAD}",
            )
        return cls(
            service_address(config.features.api_url, PUBLIC_ADDRESS),
            retrying(cls.name, config.features, sleep),
            config.ingest.payload_bytes,
            config.features.timeout_seconds,
            *(os.environ[name] for name in CREDENTIALS),
        )

    def _request(self, ids: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        self._log_in()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                entries = self._client.audio_features(ids)
        except spotipy.SpotifyException as error:
            raise _failure(error.http_status, error.headers.get("Retry-After"), str(error.msg)) from error
        except requests.exceptions.RequestException as error:
            raise TryAgain(f"no response ({type(error).__name__})") from error
        except (TypeError, AttributeError) as error:
            # This is how spotipy fails on a truncated body (which it treats as None) and on an error that is not a
            # JSON object.
            raise TryAgain("the response is not the expected JSON, perhaps truncated") from error
        # Spotify returns a null for an unknown id, so a list of another length is a broken response.
        if not isinstance(entries, list) or len(entries) != len(ids):
            raise TryAgain("the response is not a list with one entry per id")
        for entry in entries:
            if isinstance(entry, dict) and isinstance(entry.get("id"), str):
                yield entry["id"], entry
            elif entry is not None:
                raise TryAgain("the response has entries without an id")

    def _log_in(self) -> None:
        """Make sure that spotipy has a valid token; a separate step, so that its failures can be distinguished."""
        try:
            self._credentials.get_access_token(as_dict=False)
        except SpotifyOauthError as error:
            # spotipy keeps the response only in the exception that it was handling.
            response = getattr(error.__context__, "response", None)
            status = 0 if response is None else response.status_code
            if status in (408, 425, 429) or status >= 500:
                wait = None if response is None else retry_after_seconds(response.headers.get("Retry-After"))
                raise TryAgain(f"the token service responded with {status}", wait) from error
            raise EnvironmentMissing(
                f"spotify: the credentials were rejected ({error.error})",
                remedy=f"check {' and '.join(CREDENTIALS)}",
            ) from error
        except requests.exceptions.RequestException as error:
            raise TryAgain(f"no response from the token service ({type(error).__name__})") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise TryAgain("the response of the token service is not the expected JSON") from error


def _failure(status: int, retry_after: str | None, message: str) -> Exception:
    if status in (408, 425, 429) or status >= 500:
        return TryAgain(f"it responded with {status}", retry_after_seconds(retry_after))
    if status == 401:
        return EnvironmentMissing("spotify: the token was rejected (401)", remedy=f"check {' and '.join(CREDENTIALS)}")
    if status in (403, 404, 410):
        return EnvironmentMissing(
            f"spotify: no access to audio features ({status}): Spotify closed them to new applications on 2024-11-27",
            remedy=_INSTEAD,
        )
    return InputError(f"spotify: it responded with {status}: {' '.join(message.split())[:200]}")
