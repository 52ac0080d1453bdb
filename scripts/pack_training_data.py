"""Packs CIFAR-100 into one file, or into parts, for `--data-root` on a machine to which little can be carried.

    python scripts/pack_training_data.py --data-root DATA -o FOLDER
    python scripts/pack_training_data.py --data-root DATA -o FOLDER --part-mib 40

Prints each file with its size and sha256. The content is checked when it is opened, against a digest that stands in
athe_export/data/packed.py.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from pathlib import Path

from athe_export.data.cifar100 import Cifar100
from athe_export.data.location import PACKED
from athe_export.data.packed import open_packed, pack, split_into_parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=os.environ.get("ATHE_DATA_ROOT"))
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--part-mib", type=float, help="split into parts of at most so many MiB")
    options = parser.parse_args()
    root = Path(options.data_root) if options.data_root else None
    content = pack(Cifar100.open(root))
    parts = split_into_parts(content, int(options.part_mib * 2**20) if options.part_mib else len(content))
    options.output.mkdir(parents=True, exist_ok=True)
    files = []
    for number, part in enumerate(parts, 1):
        file = options.output / (PACKED if len(parts) == 1 else f"{PACKED}.{number}of{len(parts)}")
        file.write_bytes(part)
        files.append(file)
        print(f"{file}  {len(part) / 2**20:.1f} MiB  sha256 {hashlib.sha256(part).hexdigest()}")
    open_packed(tuple(files))  # what was written can be read, and is the known content


if __name__ == "__main__":
    main()
