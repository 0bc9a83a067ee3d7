"""Small Debian packages, a mirror that has them, and the list and the lock that ask for them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

Files = Mapping[str, str]
"""By path: content, or `-> target` for a link."""

COPYRIGHT = {"usr/share/doc/{name}/copyright": "free\n"}
TINY: dict[str, Files] = {
    "python-tiny": {
        "usr/bin/python3.11": "program",
        "usr/lib/python3.11/os.py": "1\n",
        "usr/lib/python3.11/left_out.py": "1\n",
        **COPYRIGHT,
    },
    "libtiny": {
        "lib/x86_64-linux-gnu/libtiny.so.1": "-> libtiny.so.1.2",
        "lib/x86_64-linux-gnu/libtiny.so.1.2": "library",
        "usr/share/doc/libtiny": "-> python-tiny",
    },
}
LIST = """
[[debian]]
package = "python-tiny"
files = ["/usr/bin/*", "/usr/lib/python3.11/**"]
leave_out = ["/usr/lib/python3.11/left_out.py"]

[[debian]]
package = "libtiny"
files = ["/lib/{triplet}/libtiny.so.1*"]
"""


def package(name: str, files: Files, version: str = "1.0") -> bytes:
    """A Debian package."""
    control = _tar({"./control": f"Package: {name}\nVersion: {version}\nArchitecture: all\n"})
    data = _tar({f"./{path.format(name=name)}": content for path, content in files.items()})
    found = b"!<arch>\n"
    for member, content in (("debian-binary", b"2.0\n"), ("control.tar.xz", control), ("data.tar.xz", data)):
        found += f"{member:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        found += b"\n" * (len(content) % 2)
    return found


def _tar(files: Files) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as tar:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            if content.startswith("-> "):
                entry.type, entry.linkname = tarfile.SYMTYPE, content[3:]
                tar.addfile(entry)
            else:
                entry.size, entry.mode = len(content), 0o755 if "/bin/" in path else 0o644
                tar.addfile(entry, io.BytesIO(content.encode()))
    return packed.getvalue()


def publish(mirror: Path, folder: Path, packages: Mapping[str, Files]) -> None:
    """Put packages on a mirror, and the list and the lock that ask for them into `folder`."""
    locked = {}
    for name, files in packages.items():
        content = package(name, files)
        path = f"debian/pool/main/{name}_1.0+b1_all.deb"
        (mirror / path).parent.mkdir(parents=True, exist_ok=True)
        (mirror / path).write_bytes(content)
        digests = {"sha1": hashlib.sha1(content).hexdigest(), "sha256": hashlib.sha256(content).hexdigest()}
        locked[name] = {"version": "1.0", "path": path, **digests}
    (folder / "packages.json").write_text(json.dumps(locked))
    (folder / "files.toml").write_text(LIST)
