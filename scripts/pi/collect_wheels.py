"""Collects what `athe-export deploy --offline` sends to a device: for an emulated Raspberry Pi 4, by deploy's own code.

python scripts/pi/collect_wheels.py LAND EXTRAS FOLDER [--constraint scripts/constraints.txt]

LAND is what scripts/pi/setup.sh made; its Python says for which version, processor and C library. EXTRAS are as in
athe-export[EXTRAS], such as litert or litert,camera. FOLDER then holds the wheel of this athe-export and all that it needs.
Ends with 7 where there is no user land, with 1 where its Python does not run; else as the deployment would.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from land import died, open_land, stop

from athe_export.deploy.own_wheel import own_wheel
from athe_export.deploy.preflight import Device
from athe_export.deploy.wheels import collect_wheels
from athe_export.errors import AtheExportError

FACTS = """
import json, os, platform
told = {"machine": platform.machine(), "libc": os.confstr("CS_GNU_LIBC_VERSION"), "python": platform.python_version()}
print(json.dumps(told))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("land", type=Path)
    parser.add_argument("extras")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--constraint", type=Path)
    args = parser.parse_args()
    asked = open_land(args.land).run("-I", "-c", FACTS)
    if asked.returncode:
        stop(1, f"the guest's Python does not run: {died(asked)}")
    device = Device(json.loads(asked.stdout))
    args.folder.mkdir(parents=True, exist_ok=True)
    try:
        wheels = collect_wheels(own_wheel(args.folder), args.extras, device, args.constraint, lambda text: None)
    except AtheExportError as error:
        print(f"collect_wheels.py: {error.what}\n  next: {error.remedy}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(f"  deploy --offline sends {len(wheels)} wheels for {device.said}")


if __name__ == "__main__":
    main()
