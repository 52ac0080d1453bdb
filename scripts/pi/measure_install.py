"""What `pip install` of one extra brings to a device: the wheels as downloaded, and the files that they unpack to.

python scripts/pi/measure_install.py WHEELS

WHEELS is a folder of wheels, all that `LAND/pip download -d WHEELS REQUIREMENT` brings, LAND from scripts/pi/setup.sh. MB
are 10^6 bytes, MiB 2^20. Ends with 3 where something in there has to be compiled, belongs to the build extra, or the files
exceed 150 MiB. Bytecode is not in the figure: pip writes it for every file unless told --no-compile, Python for what it
imports.
"""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path

LIMIT = 150 * 2**20
BUILD_ONLY = (
    "torch",
    "onnx",
    "onnxsim",
    "litert_torch",
    "litert_converter",
    "ai_edge_quantizer",
    "torchao",
    "safetensors",
    "jax",
)


def unpacked(wheel: Path) -> int:
    """Bytes of a wheel's files."""
    with zipfile.ZipFile(wheel) as opened:
        return sum(file.file_size for file in opened.infolist())


def measure(folder: Path) -> tuple[int, dict[str, int], list[str]]:
    """Bytes of the wheels, bytes of their files by package, and what is wrong with them."""
    found = sorted(p for p in folder.iterdir() if p.is_file())
    sizes = {p.name.split("-")[0].lower(): unpacked(p) for p in found if p.suffix == ".whl"}
    wrong = [f"{p.name} has to be compiled on the device" for p in found if p.suffix != ".whl"]
    wrong += [f"{p.name} is built for another processor" for p in found if not re.search(r"(aarch64|any)\.whl$", p.name)]
    wrong += [f"{name} belongs to the build extra" for name in sizes if name in BUILD_ONLY]
    if sum(sizes.values()) > LIMIT:
        wrong.append(f"the files take {sum(sizes.values()) / 2**20:.1f} MiB, {LIMIT // 2**20} are allowed")
    return sum(p.stat().st_size for p in found), sizes, wrong


def main() -> None:
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir() or not any(Path(sys.argv[1]).iterdir()):
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    downloaded, sizes, wrong = measure(Path(sys.argv[1]))
    files = sum(sizes.values())
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:5]
    print(f"  {len(sizes)} wheels, {downloaded / 1e6:.1f} MB to download")
    print(f"  {files / 1e6:.1f} MB ({files / 2**20:.1f} MiB) of files")
    print("  of which " + ", ".join(f"{name} {size / 1e6:.1f}" for name, size in largest) + " MB, and small ones; no torch")
    for line in wrong:
        print(f"measure_install.py: {line}", file=sys.stderr)
    sys.exit(3 if wrong else 0)


if __name__ == "__main__":
    main()
