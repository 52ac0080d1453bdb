"""A user land that setup.sh made, and running the guest's Python in it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

Child = subprocess.CompletedProcess[str]


def stop(code: int, message: str) -> NoReturn:
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    sys.exit(code)


@dataclass(frozen=True)
class Land:
    """`about` is what setup.sh wrote last: suite, python, cpu, emulator, and packages with their versions."""

    folder: Path
    about: dict[str, Any]

    def run(self, *arguments: object, site: Path | None = None, counts: Path | None = None) -> Child:
        """The guest's Python with these arguments; `site` is where its packages lie, `counts` where counts are appended."""
        chosen = {"SITE": site, "COUNTS": counts}
        environment = os.environ | {name: str(path) for name, path in chosen.items() if path is not None}
        command = [str(word) for word in (self.folder / "pi", *arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment)


def open_land(folder: Path) -> Land:
    """Ends with 7 where the emulator is not installed or the folder holds no whole user land."""
    if shutil.which("qemu-aarch64") is None:
        stop(7, "not run: qemu-aarch64 is not installed; on Debian, as root: apt-get install qemu-user")
    try:
        return Land(folder.resolve(), json.loads((folder / "land.json").read_text()))
    except (OSError, ValueError):
        stop(7, f"not run: {folder} holds no whole user land; make one: scripts/pi/setup.sh {folder}")


def died(child: Child) -> str:
    """Why a process ended, in words. qemu passes the guest's signal on; as a shell's code it is 128 more."""
    code = child.returncode
    try:
        return f"killed by {signal.Signals(-code if code < 0 else code - 128).name}"
    except ValueError:
        return (child.stderr.strip().splitlines() or [f"exit code {code}"])[-1]
