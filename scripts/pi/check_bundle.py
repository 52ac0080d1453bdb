"""Verifies and runs a bundle on an emulated Raspberry Pi 4, by the installed program, and holds the answers to more than
`verify` does.

python scripts/pi/check_bundle.py LAND BUNDLE [--site FOLDER] [--extra litert|onnx]

LAND is what scripts/pi/setup.sh made with this project's wheel among its requirements; --site is another folder of packages
there, and --extra the one engine that it may hold. Beyond the bundle's own tolerance

- every fp32 graph answers within 1e-5 of its golden outputs,
- the int8 graphs that were measured to be equal bit for bit are equal here too, where the golden outputs come from a
  processor such as they were measured with: x86 with VNNI,
- a photo gets the label and the branch that it gets on this machine.

Ends with 3 where one of these does not hold, with 1 where the program does not run, with 7 where there is no user land.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from land import Land, died, open_land, stop
from PIL import Image

FP32 = 1e-5
# int8 graphs by bundle whose golden outputs the emulated processor gives bit for bit. The others differ where the last bit
# of a float op tips a rounding; see docs/decisions/0007-int8-on-the-pi.md.
BIT_EQUAL = {
    "quickstart": ("onnx simple int8", "litert simple int8"),
    "tiny": ("onnx simple int8", "onnx complex int8"),
}
ANYWHERE = ("tiny",)  # reduce_range: its golden outputs are the same on an x86 processor without VNNI
MODULES = {"onnx": "onnxruntime", "litert": "ai_edge_litert"}


def program(land: Land, site: Path, *arguments: object) -> dict[str, Any]:
    """The JSON document of `athe-export ARGUMENTS` in the guest."""
    child = land.run(site / "bin" / "athe-export", *arguments, "--json", site=site)
    try:
        document: dict[str, Any] = json.loads(child.stdout)
    except ValueError:
        stop(1, f"athe-export {arguments[0]} does not run in the guest: {died(child)}")
    if child.returncode not in (0, 3):
        stop(1, f"athe-export {arguments[0]} ends with {child.returncode} in the guest: {document['error']['message']}")
    return document


def has_vnni(cpuinfo: str) -> bool:
    """Whether this machine's processor multiplies and adds four bytes a lane at once."""
    return re.search(r"^flags\s*:.*\bavx(512)?_vnni\b", cpuinfo, re.M) is not None


def broken(golden: list[dict[str, Any]], equal: tuple[str, ...]) -> list[str]:
    """What does not hold of `verify`'s golden results; `equal` names the graphs that have to be equal bit for bit."""
    found = []
    for g in golden:
        name = f"{g['target']} {g['role']} {g['precision']}"
        if not g["passed"]:
            found.append(f"{name} differs by {g['max_abs_diff']:.2g} from its golden outputs, or decides otherwise")
        elif g["precision"] == "fp32" and g["max_abs_diff"] > FP32:
            found.append(f"{name} differs by {g['max_abs_diff']:.2g} from its golden outputs; {FP32:g} is allowed on a Pi 4")
        elif name in equal and not g["bit_equal"]:
            found.append(f"{name} was equal bit for bit and differs by {g['max_abs_diff']:.2g} now")
    return found


def photo(folder: Path) -> Path:
    """A red disc on dark blue, 320 by 240."""
    y, x = np.mgrid[0:240, 0:320]
    disc = (x - 170) ** 2 + (y - 120) ** 2 < 90**2
    Image.fromarray(np.where(disc[..., None], [230, 30, 30], [20, 30, 60]).astype("uint8")).save(folder / "photo.png")
    return folder / "photo.png"


def here(bundle: Path, image: Path, target: str) -> dict[str, Any]:
    """What `athe-export run` says on this machine."""
    command = [sys.executable, "-m", "athe_export.cli", "run", bundle, image, "--target", target, "--json"]
    child = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if child.returncode:
        stop(1, f"athe-export run does not work on this machine: {died(child)}")
    document: dict[str, Any] = json.loads(child.stdout)
    return document


def check_photo(land: Land, site: Path, bundle: Path, target: str) -> list[str]:
    with tempfile.TemporaryDirectory() as name:
        image = photo(Path(name))
        (there,) = program(land, site, "run", bundle, image, "--target", target)["results"]
        (wanted,) = here(bundle, image, target)["results"]
    print(f"  run, {target}: {there['label']} at {there['probability']:.3f}, branch {there['branch']}")
    same = all(there[key] == wanted[key] for key in ("label", "branch"))
    return (
        []
        if same
        else [f"{target}: the photo is {there['label']} by {there['branch']}, here {wanted['label']} by {wanted['branch']}"]
    )


def thin(land: Land, site: Path, extra: str | None) -> list[str]:
    """Packages that can be imported in the guest and should not be there."""
    unwanted = ["torch", *(m for target, m in MODULES.items() if extra is not None and target != extra)]
    return [
        f"{m} is installed: this is no thin install"
        for m in unwanted
        if not land.run("-c", f"import {m}", site=site).returncode
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("land", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--site", type=Path, help="folder of the guest's packages; LAND/site unless said")
    parser.add_argument("--extra", choices=tuple(MODULES), help="the one engine that is installed there")
    args = parser.parse_args()
    land, bundle = open_land(args.land), args.bundle.resolve()
    site = (args.site or land.folder / "site").resolve()
    equal = BIT_EQUAL.get(bundle.name, ())
    if bundle.name not in ANYWHERE and equal and not has_vnni(Path("/proc/cpuinfo").read_text()):
        print(f"  not asked for: bit equality of {', '.join(equal)}, which was measured against x86 with VNNI")
        equal = ()
    verified = program(land, site, "verify", bundle)
    found = thin(land, site, args.extra)
    golden = verified["golden"] if "golden" in verified else stop(1, f"verify: {verified['error']['message']}")
    for g in golden:
        same = "bit-equal" if g["bit_equal"] else f"differs by {g['max_abs_diff']:.1e}"
        print(f"  verify, {g['target']} {g['role']} {g['precision']}: {same}{'' if g['passed'] else ', FAIL'}")
    for left in verified["not_run"]:
        print(f"  not run: {left['target']}: {left['why']}")
    targets = list(dict.fromkeys(g["target"] for g in golden))
    if args.extra and targets != [args.extra]:
        found.append(f"verify ran {', '.join(targets)}, not {args.extra} alone")
    found += broken(golden, equal)
    found += [line for target in targets for line in check_photo(land, site, bundle, target)]
    for line in found:
        print(f"check_bundle.py: {bundle.name} on {land.about['suite']}: {line}", file=sys.stderr)
    sys.exit(3 if found else 0)


if __name__ == "__main__":
    main()
