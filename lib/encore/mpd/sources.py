"""Which of the files that raw.playlists refers to are slices, and which are ignored."""

from __future__ import annotations

import fnmatch
import os
import re
from collections import Counter
from dataclasses import dataclass

from encore.config import S3Config
from encore.errors import InputError
from encore.lake.filesystem import SourceFile, folder_of, is_s3, list_tree
from encore.mpd.shapes import recognise_name

_SLICE = re.compile(r"\.json(\.gz)?$", re.IGNORECASE)
_EXTENSION = re.compile(r"(?<=[^/])\.[^./]+(\.gz)?$")


@dataclass(frozen=True)
class Sources:
    """The `slices` at `url`, sorted by name, and the `others`, which are ignored."""

    url: str
    slices: list[SourceFile]
    others: list[SourceFile]

    def note(self) -> str | None:
        """One line about the ignored files for the terminal; None if there are none."""
        if not self.others:
            return None
        kinds = self._kinds().items()
        listed = [f"{n:,} {kind}" + (f" ({meaning})" if meaning is not None else "") for (kind, meaning), n in kinds]
        ignored = "1 file was" if len(self.others) == 1 else f"{len(self.others):,} files were"
        return f"{ignored} ignored in {self.url}, not being .json or .json.gz: {', '.join(listed)}"

    def none_found(self) -> InputError:
        """The error for a place without slices: it names what is there instead."""
        kinds = self._kinds()
        there = ", ".join(f"{n:,} {kind}" for (kind, _), n in kinds.items())
        meanings = [f"{kind} is {meaning}" for kind, meaning in kinds if meaning is not None]
        return InputError(
            f"no slices (.json or .json.gz) in {self.url}" + (f", only {there}" if there else ""),
            remedy="; ".join(meanings) or "set raw.playlists, or call `encore generate`",
        )

    def _kinds(self) -> Counter[tuple[str, str | None]]:
        """The number of ignored files by extension, with what `recognise_name` says of it; the most frequent first."""
        kinds: Counter[tuple[str, str | None]] = Counter()
        for file in self.others:
            found = _EXTENSION.search(file.name.lower())
            kinds[found.group() if found else "without an extension", recognise_name(file.name)] += 1
        return Counter(dict(sorted(kinds.items(), key=lambda item: (-item[1], item[0][0]))))


def find_slices(playlists: str, features: str | None, s3: S3Config, tracks: str | None = None) -> Sources:
    """The files that raw.playlists refers to, without those of raw.features and raw.tracks if these lie inside it.

    Of a folder, .json and .json.gz files are slices, in upper or lower case. A file, or the matches of a glob, may have
    other names if none of them has such a name. Raises InputError if there are no slices.
    """
    place, found = _normal(playlists), list_tree(playlists, s3)
    for other in (features, tracks):
        if other is not None:
            found = [file for file in found if not _belongs_to(file, folder_of(place), _normal(other))]
    slices = [file for file in found if _SLICE.search(file.name)]
    if not slices and not any(file.url.startswith(f"{place}/") for file in found):
        slices = [file for file in found if recognise_name(file.name) is None]
    names = {file.name for file in slices}
    sources = Sources(playlists, slices, [file for file in found if file.name not in names])
    if not slices:
        raise sources.none_found()
    return sources


def _belongs_to(file: SourceFile, root: str, other: str) -> bool:
    """Whether a file below the folder of raw.playlists (`root`) belongs to raw.features or raw.tracks (`other`)."""
    folder = folder_of(other)
    if folder != other:
        # a glob, whose wildcards match no slash
        matches = fnmatch.fnmatch(file.url, other) and file.url.count("/") == other.count("/")
        return matches and (folder.startswith(f"{root}/") or not _SLICE.search(file.name))
    if other == root:
        return not _SLICE.search(file.name)
    return other.startswith(f"{root}/") and (file.url == other or file.url.startswith(f"{other}/"))


def _normal(url: str) -> str:
    """A URL in the form of SourceFile.url, without a slash at the end."""
    if is_s3(url):
        return url.replace("s3a://", "s3://", 1).rstrip("/")
    return os.path.abspath(url.removeprefix("file://"))
