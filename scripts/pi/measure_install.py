"""What `pip install` of one extra brings to a device: the wheels as downloaded, and the files that they unpack to.

python scripts/pi/measure_install.py WHEELS

WHEELS is a folder of wheels, all that `LAND/pip download -d WHEELS REQUIREMENT` brings, LAND from scripts/pi/setup.sh. MB
are 10^6 bytes. Ends with 3 where something in there has to be compiled, belongs to the build extra, or the files
exceed 150 MB. Bytecode is not in that figure: pip writes it for every file unless told --no-compile, as deploy tells it;
then Python writes it for what it imports. What that of every file takes is printed too, as the Python that runs this
compiles it.
"""

from __future__ import annotations

import contextlib
import marshal
import re
import sys
import zipfile
from pathlib import Path

LIMIT = 150_000_000
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


def files_of(wheel: Path) -> dict[str, int]:
    """Bytes of a wheel's files by name."""
    with zipfile.ZipFile(wheel) as opened:
        return {file.filename: file.file_size for file in opened.infolist()}


def bytecode(wheel: Path) -> int:
    """Bytes of the bytecode of all its modules: 16 of a header each, and the code."""
    total = 0
    with zipfile.ZipFile(wheel) as opened:
        for name in (n for n in opened.namelist() if n.endswith(".py")):
            with contextlib.suppress(SyntaxError, ValueError):  # templates, which pip compiles as little
                total += 16 + len(marshal.dumps(compile(opened.read(name), name, "exec", dont_inherit=True)))
    return total


def measure(folder: Path) -> tuple[int, dict[str, int], list[str]]:
    """Bytes of the wheels, bytes of their files by package, and what is wrong with them."""
    found = sorted(p for p in folder.iterdir() if p.is_file())
    sizes = {p.name.split("-")[0].lower(): sum(files_of(p).values()) for p in found if p.suffix == ".whl"}
    wrong = [f"{p.name} has to be compiled on the device" for p in found if p.suffix != ".whl"]
    wrong += [f"{p.name} is built for another processor" for p in found if not re.search(r"(aarch64|any)\.whl$", p.name)]
    wrong += [f"{name} belongs to the build extra" for name in sizes if name in BUILD_ONLY]
    if sum(sizes.values()) > LIMIT:
        wrong.append(f"the files take {sum(sizes.values()) / 1e6:.1f} MB, {LIMIT // 10**6} are allowed")
    return sum(p.stat().st_size for p in found), sizes, wrong


def main() -> None:
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir() or not any(Path(sys.argv[1]).iterdir()):
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    downloaded, sizes, wrong = measure(Path(sys.argv[1]))
    files = sum(sizes.values())
    wheels = sorted(Path(sys.argv[1]).glob("*.whl"))
    single = sorted(((size, name) for w in wheels for name, size in files_of(w).items()), reverse=True)[:4]
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:5]
    python = ".".join(map(str, sys.version_info[:2]))
    print(f"  {len(sizes)} wheels, {downloaded / 1e6:.1f} MB to download")
    print(f"  {files / 1e6:.1f} MB of files")
    print("  of which " + ", ".join(f"{name} {size / 1e6:.1f}" for name, size in largest) + " MB, and small ones")
    print("  largest files: " + ", ".join(f"{name} {size / 1e6:.1f}" for size, name in single) + " MB")
    compiled = sum(map(bytecode, wheels))
    print(f"  {compiled / 1e6:.1f} MB of bytecode on top, where that of every file is written (by Python {python})")
    if not any(name in BUILD_ONLY for name in sizes):
        print("  no torch")
    for line in wrong:
        print(f"measure_install.py: {line}", file=sys.stderr)
    sys.exit(3 if wrong else 0)


if __name__ == "__main__":
    main()
