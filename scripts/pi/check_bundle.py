"""Verifies and runs a bundle on an emulated Raspberry Pi 4, by the installed program, and holds the answers to more than
`verify` does.

python scripts/pi/check_bundle.py LAND BUNDLE [--site FOLDER] [--extra litert|onnx] [--camera]

LAND is what scripts/pi/setup.sh made with this project's wheel among its requirements; --site is another folder of packages
there, and --extra the one engine that it may hold. Beyond the bundle's own tolerance

- every fp32 graph answers within 1e-5 of its golden outputs,
- the int8 graphs that were measured to be equal bit for bit (BIT_EQUAL, by the name in the manifest) are there and equal
  here too, where the golden outputs come from a processor such as they were measured with: x86 with VNNI. Where they do
  not, or where the bundle is not among them, it says NOT RUN,
- a photo gets the label and the branch that it gets on this machine; with --camera, so does every frame of a video of it,
  for which both sides need OpenCV.

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
FRAMES = 5
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


def asked_of(name: str, targets: list[str], vnni: bool) -> tuple[tuple[str, ...], str | None]:
    """Of a bundle's graphs for the targets that ran, those that have to be equal bit for bit; why none is asked, if so.

    Args:
        name: the bundle's, as in its manifest.
        vnni: whether this machine's processor, where the golden outputs come from, has it.
    """
    known = tuple(g for g in BIT_EQUAL.get(name, ()) if g.split()[0] in targets)
    if not known:
        return (), f"no graph of a bundle {name!r} for {', '.join(targets)} was measured to be equal"
    if name not in ANYWHERE and not vnni:
        return (), f"{', '.join(known)} were measured against x86 with VNNI, which this machine lacks"
    return known, None


def named(g: dict[str, Any]) -> str:
    return f"{g['target']} {g['role']} {g['precision']}"


def broken(golden: list[dict[str, Any]], equal: tuple[str, ...]) -> list[str]:
    """What does not hold of `verify`'s golden results; `equal` names the graphs that have to be equal bit for bit."""
    seen = {named(g) for g in golden}
    found = [f"{name} has to be equal bit for bit, and verify has not run it" for name in equal if name not in seen]
    for g in golden:
        name = named(g)
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


def check_video(land: Land, site: Path, bundle: Path, target: str) -> list[str]:
    """Frames through `run --camera`, which prints a JSON object a line."""
    import cv2

    with tempfile.TemporaryDirectory() as name:
        frame, clip = cv2.imread(str(photo(Path(name)))), Path(name) / "clip.avi"
        writer = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"MJPG"), 25, (frame.shape[1], frame.shape[0]))
        for _ in range(FRAMES):
            writer.write(frame)
        writer.release()
        options = ("run", bundle, "--camera", clip, "--target", target, "--json")
        child = land.run(site / "bin" / "athe-export", *options, site=site)
        if child.returncode:
            stop(1, f"athe-export run --camera does not run in the guest: {died(child)}")
        (wanted,) = here(bundle, Path(name) / "photo.png", target)["results"]
    answers = [a for a in map(json.loads, child.stdout.splitlines()) if "frame" in a]
    found = {(a["label"], a["branch"]) for a in answers}
    print(f"  run --camera, {target}: {len(answers)} frames, {', '.join(f'{label} by {branch}' for label, branch in found)}")
    same = len(answers) == FRAMES and found == {(wanted["label"], wanted["branch"])}
    return [] if same else [f"{target}: {FRAMES} frames are not {wanted['label']} by {wanted['branch']} each"]


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
    parser.add_argument("--camera", action="store_true", help="also classify the frames of a video there")
    args = parser.parse_args()
    land, bundle = open_land(args.land), args.bundle.resolve()
    site = (args.site or land.folder / "site").resolve()
    verified = program(land, site, "verify", bundle)
    found = thin(land, site, args.extra)
    golden = verified["golden"] if "golden" in verified else stop(1, f"verify: {verified['error']['message']}")
    for g in golden:
        same = "bit-equal" if g["bit_equal"] else f"differs by {g['max_abs_diff']:.1e}"
        print(f"  verify, {named(g)}: {same}{'' if g['passed'] else ', FAIL'}")
    for left in verified["not_run"]:
        print(f"  not run: {left['target']}: {left['why']}")
    targets = list(dict.fromkeys(g["target"] for g in golden))
    if args.extra and targets != [args.extra]:
        found.append(f"verify ran {', '.join(targets)}, not {args.extra} alone")
    name = json.loads((bundle / "manifest.json").read_text())["name"]
    equal, why = asked_of(name, targets, has_vnni(Path("/proc/cpuinfo").read_text()))
    if why is not None:
        print(f"  NOT RUN: BIT EQUALITY OF INT8 GRAPHS: {why}")
    found += broken(golden, equal)
    found += [line for target in targets for line in check_photo(land, site, bundle, target)]
    if args.camera:
        found += [line for target in targets for line in check_video(land, site, bundle, target)]
    for line in found:
        print(f"check_bundle.py: {bundle.name} on {land.about['suite']}: {line}", file=sys.stderr)
    sys.exit(3 if found else 0)


if __name__ == "__main__":
    main()
