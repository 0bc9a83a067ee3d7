"""The commands of deploy/docs/runbooks.md: its fenced blocks, and how they are run one after the other."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

PAGE = ROOT / "deploy" / "docs" / "runbooks.md"

KINDS = ("lake", "registry", "registry-canary", "registry-scorer", "aws", "aws-mlflow", "aws by-hand")
"""What blocks say after `sh`: where they are run. What says `by-hand` is not run."""


@dataclass(frozen=True)
class Block:
    """A fenced block: the heading that it is under, its kind, and its commands."""

    section: str
    kind: str
    text: str

    def commands(self, program: str) -> Iterator[list[str]]:
        """The arguments of each call of a program, with variables as they are written."""
        joined = self.text.replace("\\\n", " ").replace("$(", "\n").replace("|\n", "\n")
        for line in joined.splitlines():
            found = re.search(rf"(?:^|[\s|;{{]){program} (.*)", line)
            if found:
                yield _words(found[1])


def _words(text: str) -> list[str]:
    """The words of a command, up to a sign that ends it."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=");|")
    lexer.whitespace_split = True
    lexer.commenters = ""
    words = []
    try:
        for word in lexer:
            if set(word) <= set(");|"):
                break
            words.append(word)
    except ValueError:
        # the closing quotation mark belongs to what is around a $( )
        pass
    return words


def blocks() -> list[Block]:
    """All blocks, in order."""
    found, section = [], ""
    for match in re.finditer(r"^## (.+)$|^```(\S*) ?(.*)\n((?:.*\n)*?)```$", PAGE.read_text(), re.MULTILINE):
        heading, language, kind, text = match.groups()
        if heading is not None:
            section = heading
        else:
            assert language == "sh", f"{section}: a block of {language!r}"
            found.append(Block(section, kind, text))
    return found


@dataclass
class Shell:
    """A shell whose variables and functions last from one block to the next. `folder` is its working directory."""

    folder: Path
    variables: dict[str, str]

    def run(self, block: Block, *, replace: dict[str, str] | None = None) -> str:
        """Run a block and return what it prints. AssertionError if a command fails."""
        text = block.text
        for old, new in (replace or {}).items():
            text = text.replace(old, new)
        state = self.folder / ".shell"
        load = f"source {state}" if state.exists() else ":"
        script = f"{load}\nset -aeuo pipefail\n{text}\nset +e\n{{ export -p; declare -f; }} > {state}\n"
        environment = {**os.environ, "COLUMNS": "200", **self.variables}
        done = subprocess.run(
            ["bash", "-c", script], cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{block.section}:\n{block.text}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout
