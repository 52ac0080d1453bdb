"""Does int8 saturate on x86 CPUs without VNNI? Runs a bundle natively and on an emulated AVX2-only CPU, same images.

python scripts/check_saturation.py BUNDLE [--target onnx|litert] [--images 200] [--data-root DIR]

AVX2 multiplies unsigned by signed bytes and adds pairs into 16 bits, which can overflow with 8-bit weights; VNNI and
Arm's instructions cannot, nor can 7-bit weights (`reduce_range: true`). Needs qemu-user (Debian: qemu-user).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from athe_export.bundle.reader import open_bundle
from athe_export.data import open_dataset
from athe_export.runtime.predictor import RoutedGraphs, preprocessing_of


def outputs(bundle_path: Path, target: str, images: int, data_root: Path | None) -> dict[str, np.ndarray]:
    """Logits of every branch on the first gate images, [n, classes] each."""
    bundle = open_bundle(bundle_path)
    manifest = bundle.manifest
    dataset = open_dataset(manifest.dataset["name"], data_root, data_root)
    preprocessing = preprocessing_of(manifest)
    graphs = RoutedGraphs(bundle, target)
    sources = [preprocessing.source(dataset.image(manifest.gate["split"], i)) for i in range(images)]
    return {
        branch: np.stack([graphs.answer(source, preprocessing, branch).logits for source in sources])
        for branch in graphs.branches
    }


def emulated(arguments: list[str], cpu: str) -> dict[str, np.ndarray]:
    """The same, in a child on the emulated CPU."""
    qemu = shutil.which("qemu-x86_64")
    if qemu is None:
        sys.exit("not run: qemu-x86_64 is not installed (Debian: apt-get install qemu-user)")
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "out.npz"
        program = f"import sys; sys.path[:] = {sys.path!r}; sys.argv[1:] = {[*arguments, '--write', str(result)]!r}\n"
        program += f"import runpy; runpy.run_path({__file__!r}, run_name='__main__')"
        python = os.path.realpath(sys.executable)
        child = subprocess.run([qemu, "-cpu", cpu, python, "-c", program], stderr=subprocess.PIPE, text=True)
        if child.returncode:
            sys.exit(f"the emulated run ended with {child.returncode}:\n{child.stderr[-2000:]}")
        with np.load(result) as arrays:
            return dict(arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--target", choices=("onnx", "litert"), default="onnx")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--data-root", type=Path, default=os.environ.get("ATHE_DATA_ROOT"))
    parser.add_argument("--cpu", default="Haswell", help="qemu CPU model: AVX2 without VNNI")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    root = Path(args.data_root) if args.data_root else None
    found = outputs(args.bundle, args.target, args.images, root)
    if args.write:
        np.savez(args.write, **found)
        return
    there = emulated(sys.argv[1:], args.cpu)
    rows = {}
    for branch, here in found.items():
        rows[branch] = {
            "same_answer": float((here.argmax(-1) == there[branch].argmax(-1)).mean()),
            "bit_equal_images": float((here == there[branch]).all(-1).mean()),
            "max_abs_diff": float(np.abs(here - there[branch]).max()),
        }
    print(json.dumps({"cpu": args.cpu, "target": args.target, "images": args.images, "branches": rows}, indent=2))


if __name__ == "__main__":
    main()
