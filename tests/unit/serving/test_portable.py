"""The copy of the scorer's code that is stored with a model version works without Encore, and beside another copy."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from encore.serving.portable import write_package
from tests.unit.serving.bundles import URIS, small_bundle

CODE = f"""
import sys
from importlib import import_module
from pathlib import Path
sys.path.insert(0, sys.argv[2])
found = []
for package in sys.argv[3:]:
    scorer = import_module(f"{{package}}.serving.scorer")
    found.append(scorer.Scorer.open(Path(sys.argv[1])).catalogue.uri(3))
assert found == [{URIS[3]!r}, {URIS[3]!r} + "?"], found
loaded = [name for name in sys.modules if name == "encore" or name.startswith("encore.")]
sys.exit(", ".join(loaded) or 0)
"""


def test_equal_code_has_equal_names(tmp_path: Path) -> None:
    one, two = write_package(tmp_path / "one"), write_package(tmp_path / "two")
    assert one == two
    assert not list((tmp_path / "one").rglob("*.pyc"))


def test_two_copies_load_into_one_process_without_the_installed_code(tmp_path: Path) -> None:
    package = write_package(tmp_path)
    other = f"{package}_other"
    shutil.copytree(tmp_path / package, tmp_path / other)
    for path in (tmp_path / other).rglob("*.py"):
        path.write_text(path.read_text().replace(package, other))
    catalogue = tmp_path / other / "serving" / "catalogue.py"
    catalogue.write_text(
        catalogue.read_text()
        + "\n\n_uri = Catalogue.uri\nCatalogue.uri = lambda self, track: _uri(self, track) + '?'\n"
    )
    # isolated: the checkout is not on the path, and the installed Encore is found last
    command = [sys.executable, "-I", "-c", CODE, str(small_bundle("popularity")), str(tmp_path), package, other]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
