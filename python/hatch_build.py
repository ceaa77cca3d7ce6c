"""The wheel: puts the shared library and what the header declares beside the Python files, and says which machines it is for.

The library is METAL_CANDLE_LIBRARY, an absolute path, or, without it, what `make library` builds of this repository. No compiled code
knows Python, so one wheel serves every version of it: py3-none-PLATFORM.

With a library that is built here come the notices of what is linked into it (packaging/third-party-licenses.py); beside a given one they are
METAL_CANDLE_LICENSES. A wheel that is to be given away needs them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

PYTHON = Path(__file__).resolve().parent
NAME = {"darwin": "libmetal_candle.dylib", "win32": "metal_candle.dll"}.get(sys.platform, "libmetal_candle.so")


def library() -> Path:
    given = os.environ.get("METAL_CANDLE_LIBRARY")
    if given:
        if not Path(given).is_absolute() or not Path(given).is_file():  # this does not run where pip was called
            raise SystemExit(f"METAL_CANDLE_LIBRARY: expected the absolute path of a shared library, found {given}")
        return Path(given)
    root = PYTHON.parent
    if not (root / "Cargo.toml").is_file():
        raise SystemExit("METAL_CANDLE_LIBRARY: expected a shared library, found none; without the repository none can be built")
    subprocess.run(["make", "-C", root, "PROFILE=release", "library"], check=True)  # cargo, with no path of this machine in the result
    return root / os.environ.get("CARGO_TARGET_DIR", "target") / "release" / NAME


def licenses(folder: str) -> Path | None:
    given = os.environ.get("METAL_CANDLE_LICENSES")
    if given or os.environ.get("METAL_CANDLE_LIBRARY"):
        return Path(given) if given else None
    made = Path(folder, "THIRD-PARTY-LICENSES")
    subprocess.run([sys.executable, PYTHON.parent / "packaging" / "third-party-licenses.py", made], check=True)
    return made


def platform(built: Path) -> str:
    """On Linux the oldest glibc that has what the library asks for (PEP 600), elsewhere this machine."""
    versions = [int(minor) for minor in re.findall(rb"\0GLIBC_2\.(\d+)", built.read_bytes())]
    if sys.platform == "linux" and versions:
        return f"manylinux_2_{max(versions)}_{sysconfig.get_platform().partition('-')[2].replace('-', '_')}"
    return next(platform_tags())


class Hook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        sys.path.insert(0, str(PYTHON))
        import declarations

        declarations.write()
        built = library()
        place = PYTHON / "src" / "metal_candle" / NAME
        new = place.with_suffix(f".new{os.getpid()}")  # another build may run beside this one
        shutil.copy(built, new)
        os.replace(new, place)  # a process that runs with the one before keeps it
        self.folder = tempfile.TemporaryDirectory()  # not among the sources, from where a build beside this one would take it
        notices = licenses(self.folder.name)
        if notices:
            build_data["force_include"][str(notices)] = "metal_candle/THIRD-PARTY-LICENSES"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform(built)}"
