"""The wheel: puts the shared library and what the header declares beside the Python files, and says which machines it is for.

The library is METAL_CANDLE_LIBRARY, an absolute path, or, without it, what `make library` builds of this repository. No compiled code
knows Python, so one wheel serves every version of it: py3-none-PLATFORM.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
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
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform(built)}"
